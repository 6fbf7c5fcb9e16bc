"""Boundary F1 (BF score) and boundary IoU from counts of boundary pixels.

One label map contains the boundaries of all classes, so no class is expanded to an image of its own. Matching handles
eight classes per byte, in a time proportional to the tolerance.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer, UInt8

from segjax import checks
from segjax.checks import AxisName, Labels, Scalar, Where
from segjax.collectives import psum
from segjax.metrics._counting import INVALID, Counts, fill_of, host_counts, nanmean, ratio, sum_by_place

_CAUSE = "a label or prediction outside [0, C) was counted in an unmasked pixel"


def boundary_tolerance(height: int, width: int, share: Scalar = 0.0075) -> float:
    r"""Returns a share of the image's diagonal, in pixels.

    .. math:: θ = s \sqrt{H^2 + W^2}

    Args:
        height, width: H and W, in pixels.
        share: s ≥ 0; SegNet uses 0.0075. For boundary IoU use 0.02, rounded to pixels, at least 1.

    Returns: θ in pixels, a Python float because `tolerance` is static.
    Raises: ValueError if the height or width is below 1, or the share is negative.
    References: Badrinarayanan et al., SegNet, arXiv 1511.00561.

    >>> boundary_tolerance(600, 800)
    7.5
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1; got {height} and {width}")
    return _non_negative("share", share) * math.hypot(height, width)


def boundary_counts(
    labels: Labels,
    predictions: Labels,
    num_classes: int,
    *,
    tolerance: Scalar,
    where: Where = None,
    axis_name: AxisName = None,
) -> Int[Array, "{num_classes} 4"]:
    r"""Counts the boundary pixels of each class and the matched ones, over all images and devices.

    .. math::
        M_c = \left(\#\{i \in \hat B_c : d(i, B_c) \le θ\},\; \#\hat B_c,\;
        \#\{i \in B_c : d(i, \hat B_c) \le θ\},\; \#B_c\right)

    B_c is the boundary of class c in the labels, \hat B_c in the predictions, d the Euclidean distance between pixel
    centres of one image. The boundary of a class is its pixels with a 4-neighbour of another class (scikit-image's
    `find_boundaries(mask, mode="inner")`). The edges of the image and of void are not boundaries.

    Args:
        labels: true classes in [0, C), `[..., H, W]`.
        predictions: predicted classes, in the labels' shape.
        num_classes: C ≥ 1, static.
        tolerance: θ ≥ 0 in pixels, static; see `boundary_tolerance`.
        where, axis_name: as in `confusion_matrix`.

    Returns: int32 `[C, 4]`: M. Every entry is -2^31 if an unmasked label or prediction is outside [0, C).
    Raises: TypeError or ValueError if a dtype or shape does not fit, C < 1, or the tolerance is traced or negative.
    References: Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013.

    >>> labels, predictions = jnp.array([[0, 0, 0, 1, 1, 1]]), jnp.array([[0, 0, 1, 1, 1, 1]])
    >>> [boundary_counts(labels, predictions, 2, tolerance=θ).tolist() for θ in (0, 1)]
    [[[0, 1, 0, 1], [0, 1, 0, 1]], [[1, 1, 1, 1], [1, 1, 1, 1]]]
    """
    images = _inputs(labels, predictions, num_classes, where)
    counts, invalid = _count_boundaries(*images, num_classes, _non_negative("tolerance", tolerance))
    return _sum_over_images(counts, invalid, axis_name)


def boundary_counts_per_image(
    labels: Labels, predictions: Labels, num_classes: int, *, tolerance: Scalar, where: Where = None
) -> Int[Array, "... {num_classes} 4"]:
    r"""Returns the `boundary_counts` M of each image, for `boundary_f1_per_image`.

    .. math:: \sum_n M_{nc} = M_c

    Args:
        labels, predictions, num_classes, tolerance, where: as in `boundary_counts`.

    Returns: int32 `[..., C, 4]`; concatenate batches. An image with an unmasked class outside [0, C) has only -2^31.
    Raises: as `boundary_counts`.
    References: Badrinarayanan et al., SegNet, arXiv 1511.00561.

    >>> labels = jnp.array([[[0, 0, 1, 1]], [[0, 0, 0, 0]]])
    >>> boundary_counts_per_image(labels, labels, 2, tolerance=2)[:, 1].tolist()
    [[1, 1, 1, 1], [0, 0, 0, 0]]
    """
    images = _inputs(labels, predictions, num_classes, where)
    counts, invalid = _count_boundaries(*images, num_classes, _non_negative("tolerance", tolerance))
    counts = jnp.where(invalid[:, None, None], jnp.int32(INVALID), counts)
    return counts.reshape(*jnp.shape(labels)[:-2], num_classes, 4)


def boundary_f1(counts: Counts, *, absent: str = "exclude") -> dict[str, float | np.ndarray]:
    r"""Returns the boundary F1 of each class over the data set, from sums of `boundary_counts`.

    .. math:: F_c = \frac{2 P_c R_c}{P_c + R_c}

    P_c is the matched share of the class's predicted boundary pixels, R_c that of its true ones. The images are pooled.

    Args:
        counts: integers `[C, 4]`, sums of `boundary_counts`.
        absent: as in `segmentation_scores`.

    Returns:
        `mean_boundary_f1` (float; NaN if no class remains) and float64 `[C]` arrays `boundary_f1_per_class` (0 if only
        one side has a boundary), `boundary_precision_per_class` and `boundary_recall_per_class`, all in [0, 1].

    Raises: as `segmentation_scores`, with counts `[C, 4]`.
    References: Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013.

    >>> scores = boundary_f1(np.array([[6, 8, 5, 10], [0, 3, 0, 0], [0, 0, 0, 0]]))
    >>> print(scores["boundary_f1_per_class"], scores["mean_boundary_f1"])
    [0.6 0.  nan] 0.3
    """
    fill = fill_of(absent)
    counts = _host(counts, "[classes, 4]", 2, 4)
    f1 = _f1(counts, fill)
    return {
        "mean_boundary_f1": nanmean(f1),
        "boundary_f1_per_class": f1,
        "boundary_precision_per_class": ratio(counts[:, 0], counts[:, 1], fill),
        "boundary_recall_per_class": ratio(counts[:, 2], counts[:, 3], fill),
    }


def boundary_f1_per_image(counts: Counts) -> dict[str, float | np.ndarray]:
    r"""Returns SegNet's boundary F1: the mean over images of the mean F1 of the classes present in the image.

    .. math:: BF = \frac{1}{|J|} \sum_{n \in J} \frac{1}{|K_n|} \sum_{c \in K_n} F_{nc}

    K_n are the classes with a true boundary pixel in image n, and J the images that have such a class.

    Args:
        counts: integers `[N, C, 4]`, concatenated from `boundary_counts_per_image`.

    Returns: `mean_boundary_f1_per_image` (float) and `boundary_f1_per_image` (float64 `[N]`), in [0, 1]; NaN outside J.
    Raises: as `segmentation_scores`, with counts `[N, C, 4]`.
    References: Badrinarayanan et al., SegNet, arXiv 1511.00561.

    >>> scores = boundary_f1_per_image(np.array([[[6, 8, 5, 10], [0, 3, 0, 0]], [[4, 4, 4, 4], [0, 0, 0, 2]]]))
    >>> print(scores["boundary_f1_per_image"], scores["mean_boundary_f1_per_image"])
    [0.6 0.5] 0.55
    """
    counts = _host(counts, "[images, classes, 4]", 3, 4)
    present = counts[..., 3] > 0
    f1 = np.where(present, _f1(counts, np.nan), 0).sum(axis=-1)
    per_image = ratio(f1, present.sum(axis=-1))
    return {"mean_boundary_f1_per_image": nanmean(per_image), "boundary_f1_per_image": per_image}


def boundary_iou_counts(
    labels: Labels,
    predictions: Labels,
    num_classes: int,
    *,
    distance: Integer[ArrayLike, ""],
    where: Where = None,
    axis_name: AxisName = None,
) -> Int[Array, "{num_classes} 2"]:
    r"""Counts the intersection and union of each class's inner boundary regions, over all images and devices.

    .. math:: M_c = \left(\#(G_c \cap P_c),\; \#(G_c \cup P_c)\right)

    G_c is the pixels of class c in the labels within `distance` pixels of its contour, P_c in the predictions. As in
    the authors' code, it is what `distance` erosions by a 3 × 3 square remove (chessboard distance). Unlike in
    `boundary_counts`, the edges of the image and of void are part of the contour.

    Args:
        labels, predictions, num_classes: as in `boundary_counts`.
        distance: whole number of pixels, at least 1, static; the authors use 2 % of the diagonal.
        where, axis_name: as in `boundary_counts`.

    Returns: int32 `[C, 2]`: intersection, union; all -2^31 if an unmasked label or prediction is outside [0, C).
    Raises: as `boundary_counts`, or the distance is traced, not an integer, or below 1.
    References: Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, arXiv 2103.16562.

    >>> labels = jnp.zeros((5, 5), int).at[:, 3:].set(1)
    >>> boundary_iou_counts(labels, jnp.zeros((5, 5), int), 2, distance=1).tolist()
    [[9, 19], [0, 10]]
    """
    images = _inputs(labels, predictions, num_classes, where)
    pixels = checks.host("distance", distance)
    checks.scalar("distance", pixels, jnp.int32, 1.0)
    counts, invalid = _count_regions(*images, num_classes, int(pixels))
    return _sum_over_images(counts, invalid, axis_name)


def boundary_iou(counts: Counts, *, absent: str = "exclude") -> dict[str, float | np.ndarray]:
    r"""Returns the boundary IoU of each class over the data set, from sums of `boundary_iou_counts`.

    .. math:: IoU_c = \frac{\#(G_c \cap P_c)}{\#(G_c \cup P_c)}

    Args:
        counts: integers `[C, 2]`, sums of `boundary_iou_counts`, which defines G_c and P_c.
        absent: as in `segmentation_scores`.

    Returns:
        `mean_boundary_iou` (float; NaN if no class remains) and `boundary_iou_per_class` (float64 `[C]`), in [0, 1].

    Raises: as `segmentation_scores`, with counts `[C, 2]`.
    References: Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, arXiv 2103.16562.

    >>> scores = boundary_iou(np.array([[9, 12], [0, 4], [0, 0]]))
    >>> print(scores["boundary_iou_per_class"], scores["mean_boundary_iou"])
    [0.75 0.    nan] 0.375
    """
    fill = fill_of(absent)
    counts = _host(counts, "[classes, 2]", 2, 2)
    iou = ratio(counts[:, 0], counts[:, 1], fill)
    return {"mean_boundary_iou": nanmean(iou), "boundary_iou_per_class": iou}


def dilate(mask: Bool[ArrayLike, "*images height width"], radius: Scalar) -> Bool[Array, "*images height width"]:
    r"""Returns the pixels within a distance of a mask: its dilation by a disc, for the radius of `distance_histogram`.

    .. math:: D = \{i : d(i, M) \le r\}

    d is the Euclidean distance between pixel centres. An empty mask stays empty.

    Args:
        mask: M, boolean `[..., H, W]`.
        radius: r ≥ 0, in pixels, static. The time grows with r, the memory does not.

    Returns: Boolean `[..., H, W]`.
    Raises: TypeError or ValueError if the mask is not boolean or has fewer than 2 axes, or the radius is traced,
        negative or infinite.
    References: Gonzalez and Woods, Digital Image Processing, chapter 9.

    >>> print(dilate(jnp.array([[False, False, True], [False, False, False]]), 1).astype(int))
    [[0 1 1]
     [0 0 1]]
    """
    mask = checks.array("mask", mask)
    mask = checks.mask("mask", mask, mask.shape)
    if mask.ndim < 2:
        raise ValueError(f"mask must be [..., height, width]; got shape {mask.shape}")
    pixels = checks.host("radius", radius)
    checks.scalar("radius", pixels, jnp.float32, 0.0)
    side = int(pixels) + 1
    return _dilated(mask.astype(jnp.uint8), _quarter_circle(float(pixels), side, side)) == 1


def _inputs(labels, predictions, num_classes, where):
    """Returns labels, predictions and the mask, checked, all `[images, H, W]`."""
    labels = checks.integers("labels", labels)
    predictions = checks.integers("predictions", predictions)
    if labels.ndim < 2:
        raise ValueError(f"labels must be [..., height, width]; got shape {labels.shape}")
    checks.same_shape("predictions", predictions.shape, "labels", labels.shape)
    checks.scalar("num_classes", num_classes, jnp.int32, 1.0)
    keep = checks.mask("where", where, labels.shape)
    images = (math.prod(labels.shape[:-2]), *labels.shape[-2:])
    return labels.reshape(images), predictions.reshape(images), keep.reshape(images)


def _non_negative(name: str, value: ArrayLike) -> float:
    array = checks.host(name, value)
    if array.ndim != 0 or not array >= 0:
        raise ValueError(f"{name} must be a number of at least 0; got {value!r}")
    return float(array)


def _host(counts: ArrayLike, expected: str, ndim: int, columns: int) -> Float[np.ndarray, "..."]:
    array = host_counts("counts", counts, _CAUSE)
    if array.ndim != ndim or array.shape[-1] != columns:
        raise ValueError(f"counts must be {expected}; got shape {array.shape}")
    return array.astype(np.float64)  # exact to 2^53; the product of two counts could exceed int64


def _f1(counts: Float[np.ndarray, "*shape 4"], absent: float) -> Float[np.ndarray, "*shape"]:
    matched_predicted, predicted, matched_true, true = np.moveaxis(counts, -1, 0)
    weighted = matched_predicted * true + matched_true * predicted
    return ratio(2 * matched_predicted * matched_true, weighted, np.where(predicted + true > 0, 0.0, absent))


def _sum_over_images(counts, invalid, axis_name):
    # INVALID is written after the sum, because two of them would wrap around to 0.
    total, num_invalid = psum((counts.sum(axis=0, dtype=jnp.int32), jnp.sum(invalid, dtype=jnp.int32)), axis_name)
    return jnp.where(num_invalid > 0, jnp.int32(INVALID), total)


# Compiled here, because an uncompiled caller would compile the loops inside anew at each call.
@partial(jax.jit, static_argnames=("num_classes", "tolerance"))
def _count_boundaries(labels, predictions, keep, num_classes, tolerance):
    """Returns `[images, C, 4]` as `boundary_counts_per_image`, and a mask of the images with a class out of range."""
    labels, predictions, invalid = _narrow_classes(labels, predictions, keep, num_classes)
    true, predicted = _boundary(labels), _boundary(predictions)
    edges, others = jnp.stack([predicted, true]), jnp.stack([true, predicted])
    return _count_per_class(edges, _is_matched(edges, others, num_classes, tolerance), num_classes), invalid


@partial(jax.jit, static_argnames=("num_classes", "distance"))
def _count_regions(labels, predictions, keep, num_classes, distance):
    """Returns `[images, C, 2]`, intersection and union, and a mask of the images with a class out of range."""
    labels, predictions, invalid = _narrow_classes(labels, predictions, keep, num_classes)
    true, predicted = _region(labels, distance), _region(predictions, distance)
    both = true == predicted
    counts = _count_per_class(jnp.stack([predicted, true]), jnp.stack([both, both]), num_classes)
    union = counts[..., 1] + counts[..., 3] - counts[..., 0]
    return jnp.stack([counts[..., 0], union], axis=-1), invalid


def _narrow_classes(labels, predictions, keep, num_classes):
    """Returns both in the narrowest integer type, -1 where masked or invalid, and a mask of the invalid images."""
    valid = (labels >= 0) & (labels < num_classes) & (predictions >= 0) & (predictions < num_classes)
    # The steps after this are bound by memory traffic: one byte per pixel is several times as fast as four.
    narrow = np.min_scalar_type(-num_classes)
    labels, predictions = (jnp.where(valid & keep, classes, -1).astype(narrow) for classes in (labels, predictions))
    return labels, predictions, (~valid & keep).any(axis=(1, 2))


def _boundary(classes: Int[Array, "images height width"]) -> Int[Array, "images height width"]:
    """Returns the class of each pixel on the inner boundary of its class; -1 elsewhere."""
    height, width = classes.shape[1:]
    padded = jnp.pad(classes, [(0, 0), (1, 1), (1, 1)], constant_values=-1)
    on_boundary = jnp.zeros(classes.shape, bool)
    for down, right in ((0, 1), (1, 0), (1, 2), (2, 1)):
        neighbour = padded[:, down : down + height, right : right + width]
        on_boundary |= (neighbour != classes) & (neighbour >= 0)
    return jnp.where(on_boundary, classes, -1)


def _region(classes: Int[Array, "images height width"], distance: int) -> Int[Array, "images height width"]:
    """Returns the class of each pixel whose square of 2 · distance + 1 pixels is not all of that class; else -1."""
    distance = min(distance, *classes.shape[1:])
    padded = jnp.pad(classes, [(0, 0), (distance, distance), (distance, distance)], constant_values=-1)
    lowest, highest = (
        _sliding(_sliding(padded, 2 * distance + 1, 1, combine), 2 * distance + 1, 2, combine)
        for combine in (jnp.minimum, jnp.maximum)
    )
    return jnp.where(lowest != highest, classes, -1)


def _sliding(values: Array, length: int, axis: int, combine: Callable[[Array, Array], Array]) -> Array:
    """Combines every `length` neighbours along an axis, from windows of 2, 4, 8, ... pixels."""
    reach = 1
    while reach < length:
        shift, size = min(reach, length - reach), values.shape[axis]
        cut = partial(jax.lax.slice_in_dim, values, axis=axis)
        values = combine(cut(0, size - shift), cut(shift, size))
        reach += shift
    return values


def _is_matched(edges: Array, others: Array, num_classes: int, tolerance: float) -> Bool[Array, "..."]:
    """Marks the pixels of `edges` with a pixel of their class in `others` within the tolerance."""
    steps = _quarter_circle(tolerance, *edges.shape[-2:])

    def match_eight_classes(matched, group):
        bits = jnp.where(others >> 3 == group, jnp.uint8(1) << (others & 7).astype(jnp.uint8), jnp.uint8(0))
        own = _dilated(bits, steps) >> (edges & 7).astype(jnp.uint8) & 1
        return matched | ((edges >> 3 == group) & (own == 1)), None

    # Not `jnp.zeros`: in a `shard_map` the carry must vary over the devices from the start.
    nothing = edges < -1
    return jax.lax.scan(match_eight_classes, nothing, jnp.arange(-(-num_classes // 8), dtype=edges.dtype))[0]


def _quarter_circle(tolerance: float, height: int, width: int) -> list[tuple[int, int]]:
    """Returns (right, down) along the rim of a quarter disc: right grows by at most one per step, down falls."""
    steps, reach = [], -1
    for down in range(height - 1, -1, -1):
        before = reach
        # Lengths are compared, not squares: the rounded square of sqrt(13) is less than 13.
        while reach + 1 < width and math.sqrt((reach + 1) ** 2 + down**2) <= tolerance:
            reach += 1
            steps.append((reach, down))
        if reach == before and reach >= 0:
            steps.append((reach, down))
    return steps


def _dilated(bits: UInt8[Array, "*images height width"], steps: list[tuple[int, int]]) -> UInt8[Array, "..."]:
    """Returns the bitwise or over the disc around each pixel: of its rows, which grow step by step along the rim."""
    height, width = bits.shape[-2:]
    right, down = max((r for r, _ in steps), default=0), max((d for _, d in steps), default=0)
    other_axes = [(0, 0)] * (bits.ndim - 2)
    run = jnp.pad(bits, [*other_axes, (down, down), (0, 0)])
    wide = jnp.pad(run, [*other_axes, (0, 0), (right, right)])
    cut = jax.lax.dynamic_slice_in_dim

    def step(carry, offset):
        run, disc = carry
        run |= cut(wide, right - offset[0], width, -1) | cut(wide, right + offset[0], width, -1)
        disc |= cut(run, down - offset[1], height, -2) | cut(run, down + offset[1], height, -2)
        return (run, disc), None

    # A loop, not a chain: XLA would fuse the chain and read every row of the disc again for every pixel.
    return jax.lax.scan(step, (run, bits), np.array(steps, np.int32).reshape(-1, 2))[0][1]


def _count_per_class(classes: Int[Array, "2 images height width"], matched: Bool[Array, "..."], num_classes: int):
    """Returns `[images, C, 4]`: matched pixels and all pixels of each class, on both sides."""
    images = classes.shape[1]
    image = jnp.arange(2 * images, dtype=jnp.int32).reshape(2, images, 1, 1) * num_classes
    nowhere = 2 * images * num_classes * 2
    places = jnp.where(classes >= 0, (image + classes.astype(jnp.int32)) * 2 + matched.astype(jnp.int32), nowhere)
    counts = sum_by_place(places, None, nowhere + 1)[:nowhere].reshape(2, images, num_classes, 2)
    columns = jnp.stack([counts[..., 1], counts.sum(axis=-1, dtype=jnp.int32)], axis=-1)
    return jnp.moveaxis(columns, 0, -2).reshape(images, num_classes, 4)
