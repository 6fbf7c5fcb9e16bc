"""Surface distances between predicted and true boundaries: Hausdorff distance, its percentile, and their mean.

One record per image and class is computed on the device; concatenate the records of batches. The boundary is
defined as in MONAI: unlike in `boundary_counts`, it includes the edges of the image and of void.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from segjax import checks
from segjax.checks import Labels, Scalar, Where
from segjax.distance import distance_to
from segjax.metrics._counting import INVALID, host_counts, nanmean, ratio

_CAUSE = "a label or prediction outside [0, C) was counted in an unmasked pixel"


class SurfaceDistances(NamedTuple):
    """Distances of boundary pixels per image and class, `[..., C, 2]`.

    The last axis is the direction: from the predicted boundary to the true one, and from the true to the predicted one.
    """

    count: Int[Array, "*images classes 2"]  # boundary pixels; -2^31 if the image has an invalid label or prediction
    total: Float[Array, "*images classes 2"]  # sum of their distances; inf if the other side has no boundary
    maximum: Float[Array, "*images classes 2"]  # NaN without a boundary pixel, like the percentile
    percentile: Float[Array, "*images classes 2"]


def surface_distances(
    labels: Labels,
    predictions: Labels,
    num_classes: int,
    *,
    spacing: tuple[Scalar, Scalar] = (1.0, 1.0),
    percentile: Scalar = 95.0,
    where: Where = None,
) -> SurfaceDistances:
    r"""Returns sum, maximum and percentile of the distances between both boundaries, for `surface_scores`.

    .. math::
        D_{\hat B \to B} = \{\min_{j \in B} d(i, j) : i \in \hat B\}, \qquad
        D_{B \to \hat B} = \{\min_{i \in \hat B} d(i, j) : j \in B\}

    B is the boundary of a class in the labels of an image, :math:`\hat B` is that in the predictions, and d is the
    Euclidean distance between pixel centres. The boundary of a class is its pixels with a 4-neighbour that is not of
    the class, is void, or is outside of the image. The distances are exact (`segjax.distance`).

    Args:
        labels: true classes in [0, C), `[..., H, W]`.
        predictions: predicted classes, in the labels' shape.
        num_classes: C ≥ 1, static.
        spacing: height and width of a pixel, for instance in millimetres; may be traced, like the percentile.
        percentile: in [0, 100], interpolated linearly between two distances, as by NumPy.
        where: as in `confusion_matrix`.

    Returns: the distances of each image and class; concatenate batches with `jax.tree.map`.
    Raises: TypeError or ValueError if a dtype or shape does not fit, C < 1, a spacing is not positive, or the
        percentile is outside [0, 100].
    References: Huttenlocher et al., Comparing images using the Hausdorff distance, TPAMI 1993; Heimann et al.,
        Comparison and Evaluation of Methods for Liver Segmentation From CT Datasets, TMI 2009 (mean distance).

    >>> labels = jnp.zeros((1, 9), int).at[:, 2:5].set(1)
    >>> distances = surface_distances(labels, jnp.roll(labels, 2), 2)
    >>> print(distances.count[1], distances.total[1], distances.maximum[1])
    [3 3] [3. 3.] [2. 2.]
    """
    labels, predictions = checks.integers("labels", labels), checks.integers("predictions", predictions)
    if labels.ndim < 2:
        raise ValueError(f"labels must be [..., height, width]; got shape {labels.shape}")
    checks.same_shape("predictions", predictions.shape, "labels", labels.shape)
    checks.scalar("num_classes", num_classes, jnp.int32, 1.0)
    keep = checks.mask("where", where, labels.shape)
    percentile = checks.scalar("percentile", percentile, jnp.float32, 0.0, 100.0)
    spacing = tuple(checks.finite("spacing", size, jnp.float32, above=0.0) for size in spacing)
    leading = labels.shape[:-2]
    images = (math.prod(leading), *labels.shape[-2:])
    labels, predictions, keep = (x.reshape(images) for x in (labels, predictions, keep))
    found = _distances(labels, predictions, keep, percentile, spacing, num_classes)
    return SurfaceDistances(*(x.reshape(*leading, *x.shape[1:]) for x in found))


def surface_scores(distances: SurfaceDistances) -> dict[str, float | np.ndarray]:
    r"""Returns the Hausdorff distance, its percentile and the mean surface distance, from `surface_distances`.

    .. math::
        HD = \max\left(\max D_{\hat B \to B}, \max D_{B \to \hat B}\right), \qquad
        HD_q = \max\left(P_q(D_{\hat B \to B}), P_q(D_{B \to \hat B})\right), \qquad
        MSD = \frac{\sum D_{\hat B \to B} + \sum D_{B \to \hat B}}{|\hat B| + |B|}

    As in MONAI, the percentile is computed per direction, and the mean is over the pixels of both boundaries (MONAI's
    `symmetric=True`). If only the labels or only the predictions of an image contain the class, all three are inf. If
    neither does, they are NaN. The means leave both out; `unmatched_images_per_class` counts the first.

    Args:
        distances: arrays `[N, C, 2]`, concatenated from `surface_distances`.

    Returns:
        For each `NAME` of hausdorff_distance, hausdorff_percentile and mean_surface_distance: `NAME_per_image` (float64
        `[N, C]`), `NAME_per_class` (float64 `[C]`: the mean over images; NaN without any) and `NAME` (float: the mean
        over classes). `unmatched_images_per_class`: int64 `[C]`.

    Raises: TypeError or ValueError if the counts are traced, negative (invalid), or not `[N, C, 2]`.
    References: as `surface_distances`.

    >>> labels = jnp.zeros((1, 1, 9), int).at[..., 2:5].set(1)
    >>> scores = surface_scores(surface_distances(labels, jnp.roll(labels, 2), 2))
    >>> print(scores["hausdorff_distance_per_class"][1], scores["mean_surface_distance_per_class"][1])
    2.0 1.0
    """
    count = host_counts("distances.count", distances.count, _CAUSE)
    if count.ndim != 3 or count.shape[-1] != 2:
        raise ValueError(f"distances must have arrays [images, classes, 2]; got a count of shape {count.shape}")
    total, maximum, percentile = (
        checks.host(f"distances.{name}", getattr(distances, name)).astype(np.float64)
        for name in ("total", "maximum", "percentile")
    )
    on_one_side = (count > 0).sum(axis=-1) == 1
    scores = {"unmatched_images_per_class": on_one_side.sum(axis=0)}
    for name, values in (
        ("hausdorff_distance", np.max(np.where(count > 0, maximum, -np.inf), axis=-1)),
        ("hausdorff_percentile", np.max(np.where(count > 0, percentile, -np.inf), axis=-1)),
        ("mean_surface_distance", ratio(total.sum(axis=-1), count.sum(axis=-1))),
    ):
        per_image = np.where((count > 0).any(axis=-1), values, np.nan)
        on_both = np.where(np.isfinite(per_image), per_image, 0)
        per_class = ratio(on_both.sum(axis=0), np.isfinite(per_image).sum(axis=0))
        scores |= {f"{name}_per_image": per_image, f"{name}_per_class": per_class, name: nanmean(per_class)}
    return scores


# Compiled here, because an uncompiled caller would compile the loop over the classes anew at each call.
@partial(jax.jit, static_argnames="num_classes")
def _distances(labels, predictions, keep, percentile, spacing, num_classes):
    """Returns the arrays of `SurfaceDistances` for `[images, H, W]`."""
    valid = (labels >= 0) & (labels < num_classes) & (predictions >= 0) & (predictions < num_classes)
    boundaries = jnp.stack([_boundary(jnp.where(valid & keep, classes, -1)) for classes in (predictions, labels)])

    def of_class(c):
        edges = boundaries == c  # [2, images, H, W]
        count = jnp.sum(edges, axis=(2, 3), dtype=jnp.int32)
        to_other = distance_to(edges, spacing=spacing)[::-1]
        total = jnp.sum(jnp.where(edges, to_other, 0), axis=(2, 3))
        # Ascending; pixels that are not on the boundary come last.
        ordered = jnp.sort(jnp.where(edges, to_other, jnp.inf).reshape(*count.shape, -1), axis=-1)
        return count, total, _interpolated(ordered, count, jnp.float32(100)), _interpolated(ordered, count, percentile)

    count, *distances = jax.lax.map(of_class, jnp.arange(num_classes, dtype=boundaries.dtype))
    invalid = jnp.any(~valid & keep, axis=(1, 2))
    count = jnp.where(invalid[None, None], jnp.int32(INVALID), count)
    return tuple(jnp.transpose(x, (2, 0, 1)) for x in (count, *distances))  # [C, 2, images] → [images, C, 2]


def _boundary(classes: Int[Array, "images height width"]) -> Int[Array, "images height width"]:
    """Returns the class of each pixel with a 4-neighbour of another class or none; -1 elsewhere."""
    height, width = classes.shape[1:]
    padded = jnp.pad(classes, [(0, 0), (1, 1), (1, 1)], constant_values=-1)
    on_boundary = jnp.zeros(classes.shape, bool)
    for down, right in ((0, 1), (1, 0), (1, 2), (2, 1)):
        on_boundary |= padded[:, down : down + height, right : right + width] != classes
    return jnp.where(on_boundary, classes, -1)


def _interpolated(ordered, count, percentile):
    """Returns the percentile of the first `count` of the ordered numbers; NaN if there is none."""
    at = percentile * jnp.maximum(count - 1, 0).astype(jnp.float32) / 100
    low = jnp.floor(at)
    place = jax.lax.broadcasted_iota(jnp.int32, ordered.shape, ordered.ndim - 1)

    def taken(index):
        # Not an index, because a TPU gathers one number after another.
        return jnp.sum(jnp.where(place == index.astype(jnp.int32)[..., None], ordered, 0), axis=-1)

    below, above = taken(low), taken(jnp.ceil(at))
    value = jnp.where(jnp.isfinite(above), below + (above - below) * (at - low), above)
    return jnp.where(count > 0, value, jnp.nan)
