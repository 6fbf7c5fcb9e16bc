"""How well the boundaries of the classes are met: the boundary F1 (BF score) and the boundary IoU, from counts."""

import math
from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer, Real

from segjax import checks
from segjax.collectives import psum
from segjax.metrics.contours import count_boundaries, count_regions
from segjax.metrics.counts import ABSENT, INVALID, host_counts, mean_of_known, ratio

_CAUSE = "a label or prediction outside [0, classes) was counted, in a pixel that `where` keeps"


def boundary_tolerance(height: int, width: int, share: Real[ArrayLike, ""] = 0.0075) -> float:
    r"""A share of the image's diagonal, in pixels.

    .. math:: θ = s \sqrt{H^2 + W^2}

    SegNet's boundary F1 takes s = 0.0075 (4.5 pixels of its 360 × 480), DAVIS 0.008 and rounds up. The boundary IoU's
    distance is `max(1, round(boundary_tolerance(height, width, 0.02)))`.

    Args:
        height: H, in pixels.
        width: W, in pixels.
        share: s ≥ 0.

    Returns:
        θ in pixels, a Python float: `tolerance` is static.

    Raises:
        ValueError: the height or width is below 1, or the share negative.

    References:
        Badrinarayanan et al., SegNet, arXiv 1511.00561. Perazzi et al., A Benchmark Dataset and Evaluation Methodology
        for Video Object Segmentation, CVPR 2016 (DAVIS).

    >>> boundary_tolerance(600, 800)
    7.5
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1; got {height} and {width}")
    return _non_negative("share", share) * math.hypot(height, width)


def boundary_counts(
    labels: Integer[ArrayLike, "*batch height width"],
    predictions: Integer[ArrayLike, "*batch height width"],
    num_classes: int,
    *,
    tolerance: Real[ArrayLike, ""],
    where: Bool[ArrayLike, "..."] | None = None,
    axis_name: Hashable | None = None,
) -> Int[Array, "{num_classes} 4"]:
    r"""Boundary pixels of each class and how many of them are matched, over all images and devices.

    .. math::
        M_c = \left(\#\{i \in \hat B_c : d(i, B_c) \le θ\},\; \#\hat B_c,\;
        \#\{i \in B_c : d(i, \hat B_c) \le θ\},\; \#B_c\right)

    with the boundary B_c of class c in the labels, \hat B_c in the predictions, the Euclidean distance d between
    the centres of two pixels of one image, and the tolerance θ. A boundary is the inner one of the class's mask: its
    pixels with a 4-neighbour of another class (scikit-image's `find_boundaries(mask, mode="inner")`). The edge of the
    image is none, and neither is void's: the image ends where `where` is False. (Csurka et al. match where d < θ, which
    differs for whole θ only; DAVIS's `seg2bmap` marks pixels half a pixel towards the origin, on either side.)

    Counts add: over batches with `+`, in int64 on the host; then `boundary_f1`.

    Args:
        labels: the true classes, integers in [0, num_classes), `[..., H, W]`.
        predictions: the predicted classes, the same shape.
        num_classes: C ≥ 1, static.
        tolerance: θ ≥ 0 in pixels, static; `boundary_tolerance` takes it from the image's size.
        where: boolean `[..., H, W]`, broadcastable; False: no such pixel, whatever its label.
        axis_name: the mapped device axis, or None under `jit`.

    Returns:
        int32 `[C, 4]`: matched predicted, predicted, matched true and true boundary pixels. If `where` keeps a label or
        prediction outside [0, C), every entry is -2^31 (integers have no NaN), which `boundary_f1` refuses.

    Raises:
        TypeError: labels or predictions are not integers, `where` not boolean, the tolerance is traced.
        ValueError: shapes do not fit or have fewer than two axes, C < 1, or the tolerance is negative.

    References:
        Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013.

    >>> import jax.numpy as jnp
    >>> labels = jnp.array([[0, 0, 0, 1, 1, 1]])
    >>> print(boundary_counts(labels, jnp.array([[0, 0, 1, 1, 1, 1]]), 2, tolerance=0))
    [[0 1 0 1]
     [0 1 0 1]]
    >>> print(boundary_counts(labels, jnp.array([[0, 0, 1, 1, 1, 1]]), 2, tolerance=1))
    [[1 1 1 1]
     [1 1 1 1]]
    """
    images = _inputs(labels, predictions, num_classes, where)
    counts, invalid = count_boundaries(*images, num_classes, _non_negative("tolerance", tolerance))
    return _sum_over_images(counts, invalid, axis_name)


def boundary_counts_per_image(
    labels: Integer[ArrayLike, "*batch height width"],
    predictions: Integer[ArrayLike, "*batch height width"],
    num_classes: int,
    *,
    tolerance: Real[ArrayLike, ""],
    where: Bool[ArrayLike, "..."] | None = None,
) -> Int[Array, "*batch {num_classes} 4"]:
    r"""`boundary_counts` of each image, for `boundary_f1_per_image`.

    .. math::
        M_{nc} = \left(\#\{i \in \hat B_{nc} : d(i, B_{nc}) \le θ\},\; \#\hat B_{nc},\;
        \#\{i \in B_{nc} : d(i, \hat B_{nc}) \le θ\},\; \#B_{nc}\right)

    with the boundaries B of class c in the labels of image n, and \hat B in its predictions.

    These concatenate: over batches and devices along the images' axis. Under a mapped device axis each device has the
    counts of its own images.

    Args:
        labels: as in `boundary_counts`.
        predictions: as in `boundary_counts`.
        num_classes: C ≥ 1, static.
        tolerance: in pixels, as in `boundary_counts`; static.
        where: as in `boundary_counts`.

    Returns:
        int32 `[..., C, 4]`. Every entry of an image in which `where` keeps a label or prediction outside [0, C) is
        -2^31.

    Raises:
        TypeError: as `boundary_counts`.
        ValueError: as `boundary_counts`.

    References:
        Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013.
        Badrinarayanan et al., SegNet, arXiv 1511.00561.

    >>> import jax.numpy as jnp
    >>> labels = jnp.array([[[0, 0, 1, 1]], [[0, 0, 0, 0]]])
    >>> print(boundary_counts_per_image(labels, labels, 2, tolerance=2)[:, 1])
    [[1 1 1 1]
     [0 0 0 0]]
    """
    images = _inputs(labels, predictions, num_classes, where)
    counts, invalid = count_boundaries(*images, num_classes, _non_negative("tolerance", tolerance))
    counts = jnp.where(invalid[:, None, None], jnp.int32(INVALID), counts)
    return counts.reshape(*jnp.shape(labels)[:-2], num_classes, 4)


def boundary_f1(
    counts: Integer[jax.Array | np.ndarray, "classes 4"], *, absent: str = "exclude"
) -> dict[str, float | np.ndarray]:
    r"""Boundary F1 of each class over the data set, from sums of `boundary_counts`.

    .. math:: F_c = \frac{2 P_c R_c}{P_c + R_c}

    with P_c the share of the class's predicted boundary pixels that are matched, and R_c that of its true ones. All
    images are one pool here: a long boundary counts for more. `boundary_f1_per_image` is another thing.

    Args:
        counts: integers `[C, 4]`, sums of `boundary_counts`.
        absent: what a class gets whose denominator is 0 (F1: neither a true nor a predicted boundary pixel; precision:
            no predicted one; recall: no true one). "exclude": NaN per class, and left out of the mean (NaN if nothing
            is left); "zero" or "one": that score, and it counts in the mean.

    Returns:
        `mean_boundary_f1`, a float, and float64 `[C]`: `boundary_f1_per_class`, `boundary_precision_per_class` and
        `boundary_recall_per_class`, all in [0, 1]. F1 is 0 where only one of truth and prediction has a boundary.

    Raises:
        TypeError: the counts are traced, or not integers.
        ValueError: they are not `[C, 4]`, one is negative (see `boundary_counts`), or `absent` is unknown.

    References:
        Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013.

    >>> import numpy as np
    >>> scores = boundary_f1(np.array([[6, 8, 5, 10], [0, 3, 0, 0], [0, 0, 0, 0]]))
    >>> print(scores["boundary_f1_per_class"], scores["mean_boundary_f1"])
    [0.6 0.  nan] 0.3
    """
    checks.choice("absent", absent, tuple(ABSENT))
    fill = ABSENT[absent]
    counts = _host("counts", counts, "[classes, 4]", 2, 4)
    f1 = _f1(counts, fill)
    return {
        "mean_boundary_f1": mean_of_known(f1),
        "boundary_f1_per_class": f1,
        "boundary_precision_per_class": ratio(counts[:, 0], counts[:, 1], fill),
        "boundary_recall_per_class": ratio(counts[:, 2], counts[:, 3], fill),
    }


def boundary_f1_per_image(counts: Integer[jax.Array | np.ndarray, "images classes 4"]) -> dict[str, float | np.ndarray]:
    r"""SegNet's boundary F1: the mean over images of the mean F1 of the classes present in the image.

    .. math:: BF = \frac{1}{|J|} \sum_{n \in J} \frac{1}{|K_n|} \sum_{c \in K_n} F_{nc}

    with the classes K_n that have a true boundary pixel in image n, and the images J that have such a class. A class
    that is predicted where it is not true is in no K_n: it costs here only what it takes from the true ones.
    `boundary_f1` counts it.

    Args:
        counts: integers `[N, C, 4]`, concatenated from `boundary_counts_per_image`.

    Returns:
        `mean_boundary_f1_per_image`, a float, NaN if J is empty; and `boundary_f1_per_image`, float64 `[N]`, NaN for an
        image that is not in J (all void, say, or of one class only). In [0, 1].

    Raises:
        TypeError: the counts are traced, or not integers.
        ValueError: they are not `[N, C, 4]`, or one is negative (see `boundary_counts_per_image`).

    References:
        Badrinarayanan et al., SegNet, arXiv 1511.00561.

    >>> import numpy as np
    >>> one, other = [[6, 8, 5, 10], [0, 3, 0, 0]], [[4, 4, 4, 4], [0, 0, 0, 2]]
    >>> scores = boundary_f1_per_image(np.array([one, other]))
    >>> print(scores["boundary_f1_per_image"], scores["mean_boundary_f1_per_image"])
    [0.6 0.5] 0.55
    """
    counts = _host("counts", counts, "[images, classes, 4]", 3, 4)
    present = counts[..., 3] > 0
    f1 = np.where(present, _f1(counts, np.nan), 0).sum(axis=-1)
    per_image = ratio(f1, present.sum(axis=-1), np.nan)
    return {"mean_boundary_f1_per_image": mean_of_known(per_image), "boundary_f1_per_image": per_image}


def boundary_iou_counts(
    labels: Integer[ArrayLike, "*batch height width"],
    predictions: Integer[ArrayLike, "*batch height width"],
    num_classes: int,
    *,
    distance: Integer[ArrayLike, ""],
    where: Bool[ArrayLike, "..."] | None = None,
    axis_name: Hashable | None = None,
) -> Int[Array, "{num_classes} 2"]:
    r"""Intersection and union of each class's inner boundary regions, over all images and devices.

    .. math:: M_c = \left(\#(G_c \cap P_c),\; \#(G_c \cup P_c)\right)

    with G_c the pixels of class c in the labels that lie within `distance` pixels of its contour, P_c in the
    predictions. As in the authors' code the distance is that of the chessboard: the region is what `distance` erosions
    by a 3 × 3 square take away. And the edge of the image is part of the contour (unlike in `boundary_counts`); so is
    void, since the image ends where `where` is False.

    Counts add: over batches with `+`, in int64 on the host; then `boundary_iou`.

    Args:
        labels: the true classes, integers in [0, num_classes), `[..., H, W]`.
        predictions: the predicted classes, the same shape.
        num_classes: C ≥ 1, static.
        distance: at least 1, a whole number of pixels, static; the authors take 2 % of the diagonal (see
            `boundary_tolerance`). Where it exceeds every object this is the mask's IoU.
        where: boolean `[..., H, W]`, broadcastable; False: no such pixel, whatever its label.
        axis_name: the mapped device axis, or None under `jit`.

    Returns:
        int32 `[C, 2]`: intersection, union. If `where` keeps a label or prediction outside [0, C), every entry is
        -2^31, which `boundary_iou` refuses.

    Raises:
        TypeError: labels, predictions or the distance are not integers, `where` not boolean, the distance is traced.
        ValueError: shapes do not fit or have fewer than two axes, C < 1, or the distance is below 1.

    References:
        Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, arXiv 2103.16562.

    >>> import jax.numpy as jnp
    >>> labels = jnp.zeros((5, 5), int).at[:, 3:].set(1)
    >>> print(boundary_iou_counts(labels, jnp.zeros((5, 5), int), 2, distance=1))
    [[ 9 19]
     [ 0 10]]
    """
    images = _inputs(labels, predictions, num_classes, where)
    counts, invalid = count_regions(*images, num_classes, _whole("distance", distance))
    return _sum_over_images(counts, invalid, axis_name)


def boundary_iou(
    counts: Integer[jax.Array | np.ndarray, "classes 2"], *, absent: str = "exclude"
) -> dict[str, float | np.ndarray]:
    r"""Boundary IoU of each class over the data set, from sums of `boundary_iou_counts`.

    .. math:: IoU_c = \frac{\#(G_c \cap P_c)}{\#(G_c \cup P_c)}

    The semantic form: all pixels of a class in all images are pooled, as in `mean_iou`. The paper's boundary AP and
    boundary PQ match instances by the smaller of mask IoU and boundary IoU, which is another thing.

    Args:
        counts: integers `[C, 2]`, sums of `boundary_iou_counts`.
        absent: what a class gets that is neither true nor predicted anywhere. "exclude": NaN, and left out of the mean
            (NaN if nothing is left); "zero" or "one": that score, and it counts in the mean.

    Returns:
        `mean_boundary_iou`, a float, and `boundary_iou_per_class`, float64 `[C]`, in [0, 1].

    Raises:
        TypeError: the counts are traced, or not integers.
        ValueError: they are not `[C, 2]`, one is negative (see `boundary_iou_counts`), or `absent` is unknown.

    References:
        Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, arXiv 2103.16562.

    >>> import numpy as np
    >>> scores = boundary_iou(np.array([[9, 12], [0, 4], [0, 0]]))
    >>> print(scores["boundary_iou_per_class"], scores["mean_boundary_iou"])
    [0.75 0.    nan] 0.375
    """
    checks.choice("absent", absent, tuple(ABSENT))
    counts = _host("counts", counts, "[classes, 2]", 2, 2)
    iou = ratio(counts[:, 0], counts[:, 1], ABSENT[absent])
    return {"mean_boundary_iou": mean_of_known(iou), "boundary_iou_per_class": iou}


def _inputs(labels, predictions, num_classes, where):
    """Labels, predictions and what to keep, checked, all `[images, H, W]`."""
    labels = checks.integers("labels", labels)
    predictions = checks.integers("predictions", predictions)
    if labels.ndim < 2:
        raise ValueError(f"labels must be [..., height, width]; got shape {labels.shape}")
    checks.same_shape("predictions", predictions.shape, "labels", labels.shape)
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1; got {num_classes}")
    keep = jnp.ones(labels.shape, bool) if where is None else checks.mask("where", where, labels.shape)
    images = (math.prod(labels.shape[:-2]), *labels.shape[-2:])
    return labels.reshape(images), predictions.reshape(images), keep.reshape(images)


def _sum_over_images(
    counts: Int[Array, "images classes columns"], invalid: Bool[Array, "images"], axis_name: Hashable | None
) -> Int[Array, "classes columns"]:
    # The flag is applied after the sum: two INVALIDs would wrap around to 0.
    total, num_invalid = psum((counts.sum(axis=0, dtype=jnp.int32), jnp.sum(invalid, dtype=jnp.int32)), axis_name)
    return jnp.where(num_invalid > 0, jnp.int32(INVALID), total)


def _non_negative(name: str, value: ArrayLike) -> float:
    array = checks.host(name, value)
    if array.ndim != 0 or not array >= 0:
        raise ValueError(f"{name} must be a number of at least 0; got {value!r}")
    return float(array)


def _whole(name: str, value: ArrayLike) -> int:
    array = checks.host(name, value)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be a whole number of pixels; got {value!r}")
    if array.ndim != 0 or array < 1:
        raise ValueError(f"{name} must be at least 1; got {value!r}")
    return int(array)


def _host(
    name: str, counts: jax.Array | np.ndarray, expected: str, ndim: int, columns: int
) -> Float[np.ndarray, "..."]:
    array = host_counts(name, counts, _CAUSE)
    if array.ndim != ndim or array.shape[-1] != columns:
        raise ValueError(f"{name} must be {expected}; got shape {array.shape}")
    # Exact to 2^53; products of two counts would not fit into int64.
    return array.astype(np.float64)


def _f1(counts: Float[np.ndarray, "*shape 4"], absent: float) -> Float[np.ndarray, "*shape"]:
    matched_predicted, predicted, matched_true, true = np.moveaxis(counts, -1, 0)
    weighted = matched_predicted * true + matched_true * predicted
    return ratio(2 * matched_predicted * matched_true, weighted, np.where(predicted + true > 0, 0.0, absent))
