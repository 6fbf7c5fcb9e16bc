r"""Boxes for dense detectors: anchors, overlap, matching, coding, and the detections of an image.

A box is (x_min, y_min, x_max, y_max) in pixels, floating point. Coordinates are those of edges: the box of the single
pixel 0 is (0, 0, 1, 1), and its area is 1. A box whose maximum is not above its minimum has the area 0.

All functions are pure, and have static shapes under `jit`, `vmap` and `grad`. `where=False` marks a box that does not
exist (padding), whatever its coordinates. Narrow floats are widened to float32; float64 stays.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer, Real

from segjax import checks
from segjax.checks import Scalar

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "Detections",
    "anchor_counts",
    "anchors",
    "areas",
    "clip",
    "decode",
    "detect",
    "encode",
    "iou",
    "match_anchors",
    "nms",
]

BACKGROUND = -1
"""Value of `match_anchors` for an anchor whose target is that there is no object."""

IGNORED = -2
"""Value of `match_anchors` for an anchor that is left out of the loss."""

LEVELS = (3, 4, 5, 6, 7)
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
RATIOS = (0.5, 1.0, 2.0)

Boxes = Float[ArrayLike, "*batch boxes 4"]
Weights = tuple[float, float, float, float]


class Detections(NamedTuple):
    """Detections of an image by decreasing score; `where` is False in the unused places at the end, which are 0."""

    boxes: Float[Array, "detections 4"]
    scores: Float[Array, "detections"]
    classes: Int[Array, "detections"]
    where: Bool[Array, "detections"]


def areas(boxes: Float[ArrayLike, "*boxes 4"]) -> Float[Array, "*boxes"]:
    r"""Returns the area of each box in pixels.

    .. math:: \max(0, x_{max} - x_{min}) \cdot \max(0, y_{max} - y_{min})

    Args:
        boxes: `[..., 4]`.

    Returns: at least float32, `[...]`.
    Raises: TypeError or ValueError if boxes are not floating point or their last axis is not 4.
    References: torchvision.ops.box_area, where an inverted box has a negative area.

    >>> print(areas(jnp.array([[0.0, 0.0, 3.0, 2.0], [5.0, 5.0, 4.0, 9.0]])))
    [6. 0.]
    """
    x_min, y_min, x_max, y_max = _coordinates(_boxes("boxes", boxes))
    return jnp.maximum(x_max - x_min, 0) * jnp.maximum(y_max - y_min, 0)


def iou(
    boxes: Boxes,
    others: Float[ArrayLike, "*batch others 4"],
    *,
    crowd: Bool[ArrayLike, "*batch others"] | None = None,
) -> Float[Array, "*batch boxes others"]:
    r"""Returns the intersection over union of every pair of boxes.

    .. math:: \mathrm{IoU}(b, o) = \frac{|b \cap o|}{|b \cup o|}, \qquad
        \text{crowd } o: \; \frac{|b \cap o|}{|b|}

    Args:
        boxes: `[..., N, 4]`.
        others: `[..., M, 4]`.
        crowd: `[..., M]`, True for a region of many objects, which a box need not fill (COCO's `iscrowd`).

    Returns: at least float32, `[..., N, M]`, in [0, 1]; 0 for two empty boxes.
    Raises: TypeError or ValueError if a dtype or a shape is not valid.
    References: Lin et al., Microsoft COCO, arXiv 1405.0312; torchvision.ops.box_iou.

    >>> print(iou(jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[1.0, 0.0, 3.0, 2.0], [5.0, 5.0, 6.0, 6.0]])))
    [[0.33333334 0.        ]]
    """
    boxes, others = _same_dtype(_boxes("boxes", boxes), _boxes("others", others))
    area, other_area = areas(boxes)[..., :, None], areas(others)[..., None, :]
    pairs = boxes[..., :, None, :], others[..., None, :, :]
    low, high = (x[..., :2] for x in pairs), (x[..., 2:] for x in pairs)
    sides = jnp.maximum(jnp.minimum(*high) - jnp.maximum(*low), 0)
    common = sides[..., 0] * sides[..., 1]
    union = area + other_area - common
    if crowd is not None:
        union = jnp.where(checks.mask("crowd", crowd, others.shape[:-1])[..., None, :], area, union)
    # Inverted boxes have no area, but may have an intersection.
    valid = (union > 0) & (area > 0) & (other_area > 0)
    return jnp.where(valid, common / jnp.where(valid, union, 1), 0)


def anchor_counts(image_size: tuple[int, int], *, levels: Sequence[int] = LEVELS, per_cell: int = 9) -> tuple[int, ...]:
    r"""Returns the number of anchors of each pyramid level.

    .. math:: \text{per cell} \cdot \lceil H / 2^l \rceil \cdot \lceil W / 2^l \rceil

    Args:
        image_size: (height, width) of the images in pixels.
        levels: pyramid levels l; the features of level l have the stride 2^l.
        per_cell: anchors per feature cell, scales times ratios.

    Returns: Python integers, one per level.
    Raises: ValueError if a side is not an integer of at least 1, or a level not one of at least 0.
    References: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.

    >>> anchor_counts((256, 384))
    (13824, 3456, 864, 216, 54)
    """
    return tuple(per_cell * rows * columns for rows, columns in _grids(image_size, levels))


def anchors(
    image_size: tuple[int, int],
    *,
    levels: Sequence[int] = LEVELS,
    scales: Sequence[float] = SCALES,
    ratios: Sequence[float] = RATIOS,
    base: float = 4.0,
) -> Float[Array, "anchors 4"]:
    r"""Returns the anchors of a feature pyramid: boxes of several sizes and shapes around every feature cell.

    .. math:: h = s \sqrt{r}, \qquad w = s / \sqrt{r}, \qquad s = \lfloor \text{base} \cdot 2^l \cdot \text{scale}
        \rfloor, \qquad \text{centre of cell } (i, j): \; (2^l j, \, 2^l i)

    Half widths and half heights are rounded to whole pixels. The anchors are ordered by level, row, column, ratio and
    scale, like the outputs of a detector. They equal torchvision's for images whose sizes are multiples of the coarsest
    stride. For other sizes torchvision rounds the strides down, so that the anchors drift from the features.

    Args:
        image_size: (height, width) of the images in pixels.
        levels: pyramid levels l; the features of level l have the stride 2^l and the size ⌈image / 2^l⌉.
        scales: sizes per level, relative to base · 2^l.
        ratios: r, height / width.
        base: size of an anchor of scale 1 in strides; 4 is RetinaNet's: 32 pixels at level 3.

    Returns: float32 `[A, 4]`; anchors at the border extend beyond the image.
    Raises: ValueError if a side is not an integer of at least 1, a level not one of at least 0, a scale, a ratio or
        base not positive, or an anchor smaller than one pixel.
    References: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002; torchvision's AnchorGenerator.

    >>> print(anchors((8, 16), levels=(3,), scales=(1.0,), ratios=(1.0,)))
    [[-16. -16.  16.  16.]
     [ -8. -16.  24.  16.]]
    """
    for name, values in (("scales", scales), ("ratios", ratios), ("base", (base,))):
        if not values or not all(0 < value < math.inf for value in values):
            raise ValueError(f"{name} must be positive numbers; got {values if name != 'base' else base}")
    found = []
    for level, (rows, columns) in zip(levels, _grids(image_size, levels), strict=True):
        sizes = np.array([int(base * 2**level * scale) for scale in scales], np.float32)
        roots = np.sqrt(np.array(ratios, np.float32))
        half = np.stack([np.outer(1 / roots, sizes), np.outer(roots, sizes)], axis=-1).reshape(-1, 2) / 2
        if (np.round(half) == 0).any():
            raise ValueError(
                f"an anchor of level {level} is smaller than one pixel, with base={base:g}, scales={tuple(scales)} and "
                f"ratios={tuple(ratios)}: raise base or use higher levels"
            )
        cell = np.round(np.concatenate([-half, half], axis=1))
        y, x = jnp.meshgrid(2**level * jnp.arange(rows), 2**level * jnp.arange(columns), indexing="ij")
        centres = jnp.stack([x, y, x, y], axis=-1).astype(jnp.float32)
        found.append((centres[:, :, None] + cell[None, None]).reshape(-1, 4))
    return jnp.concatenate(found)


def match_anchors(
    anchors: Float[ArrayLike, "anchors 4"],
    boxes: Float[ArrayLike, "boxes 4"],
    *,
    where: Bool[ArrayLike, "boxes"] | None = None,
    positive: float = 0.5,
    negative: float = 0.4,
    low_quality: bool = True,
) -> Int[Array, "anchors"]:
    r"""Returns the index of the box that each anchor has to predict, or BACKGROUND (-1) or IGNORED (-2).

    .. math::
        \text{match}(a) = \begin{cases}
            \arg\max_b \mathrm{IoU}(a, b) & \text{if } \max_b \mathrm{IoU}(a, b) \ge \text{positive} \\
            -1 & \text{if } \max_b \mathrm{IoU}(a, b) < \text{negative} \\
            -2 & \text{otherwise}
        \end{cases}

    With `low_quality`, an anchor that has the largest IoU of all anchors with some box (ties included) is matched to
    its own argmax as well, whatever that IoU. A box that overlaps no anchor is then left out; torchvision would match
    it to every anchor that it does not overlap.

    Args:
        anchors: `[A, 4]`.
        boxes: `[N, 4]` of one image; use `jax.vmap` for a batch. N may be 0.
        where: `[N]`; False: the box does not exist.
        positive: smallest IoU of a match.
        negative: an anchor whose IoU with all boxes is below this is background.
        low_quality: also match the anchors that overlap a box most, whatever their IoU. An anchor that is best for two
            boxes is matched to the one that it overlaps more.

    Returns: int32 `[A]`; of two boxes with the same IoU, the first.
    Raises: TypeError or ValueError if a dtype or a shape is not valid, or not 0 ≤ negative ≤ positive ≤ 1.
    References: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4; torchvision's Matcher.

    >>> anchors = jnp.array([[0.0, 0.0, 4.0, 4.0], [4.0, 0.0, 8.0, 4.0], [0.0, 0.0, 4.0, 9.0]])
    >>> print(match_anchors(anchors, jnp.array([[0.0, 0.0, 4.0, 4.0]])))
    [ 0 -1 -2]
    """
    if not 0 <= negative <= positive <= 1:
        got = f"negative={negative}, positive={positive}"
        raise ValueError(f"negative and positive must satisfy 0 ≤ negative ≤ positive ≤ 1; got {got}")
    anchors, boxes = _same_dtype(_boxes("anchors", anchors), _boxes("boxes", boxes))
    where = checks.mask("where", where, boxes.shape[:-1])
    if not boxes.shape[0]:
        return jnp.full(anchors.shape[:1], BACKGROUND, jnp.int32)
    # Computed once: a second, fused computation may round differently, and the ties below compare for equality.
    overlap = jax.lax.optimization_barrier(iou(boxes, anchors))
    overlap = jnp.where(where[:, None], overlap, -1)
    best, match = jnp.max(overlap, axis=0), jnp.argmax(overlap, axis=0).astype(jnp.int32)
    matched = best >= positive
    if low_quality:
        best_of_box = jnp.max(overlap, axis=1, keepdims=True)
        matched |= jnp.any((overlap == best_of_box) & (best_of_box > 0), axis=0)
    return jnp.where(matched, match, jnp.where(best < negative, BACKGROUND, IGNORED)).astype(jnp.int32)


def encode(
    boxes: Float[ArrayLike, "*boxes 4"],
    anchors: Float[ArrayLike, "*#boxes 4"],
    *,
    where: Bool[ArrayLike, "*boxes"] | None = None,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*boxes 4"]:
    r"""Returns the offset of each box from its anchor, the regression target of a detector.

    .. math:: \left( w_x \frac{x - x_a}{w_a}, \; w_y \frac{y - y_a}{h_a}, \; w_w \log \frac{w}{w_a}, \;
        w_h \log \frac{h}{h_a} \right)

    with the centre (x, y), width w and height h of the box, and those of the anchor.

    Args:
        boxes: `[..., 4]`, one per anchor.
        anchors: `[..., 4]`, not empty.
        where: `[...]`; False: the box does not exist, and its offset is 0.
        weights: (w_x, w_y, w_w, w_h).

    Returns: at least float32, `[..., 4]`; -inf for the side of a box of width or height 0 that `where` keeps.
    Raises: TypeError or ValueError if a dtype or a shape is not valid.
    References: Girshick et al., Rich feature hierarchies, arXiv 1311.2524, appendix C; torchvision's BoxCoder.

    >>> print(encode(jnp.array([[2.0, 0.0, 6.0, 8.0]]), jnp.array([[0.0, 0.0, 4.0, 8.0]])))
    [[0.5 0.  0.  0. ]]
    """
    boxes, anchors = _same_dtype(_boxes("boxes", boxes), _boxes("anchors", anchors))
    anchors = jnp.broadcast_to(anchors, boxes.shape)
    if where is not None:
        boxes = jnp.where(checks.mask("where", where, boxes.shape[:-1])[..., None], boxes, anchors)
    (centre, size), (anchor_centre, anchor_size) = _centre_and_size(boxes), _centre_and_size(anchors)
    offsets = jnp.concatenate([(centre - anchor_centre) / anchor_size, jnp.log(size / anchor_size)], axis=-1)
    return offsets * checks.spread("weights", jnp.asarray(weights, offsets.dtype), offsets.shape)


def decode(
    offsets: Float[ArrayLike, "*boxes 4"],
    anchors: Float[ArrayLike, "*#boxes 4"],
    *,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
    max_growth: float = 1000 / 16,
) -> Float[Array, "*boxes 4"]:
    r"""Returns the boxes at these offsets from their anchors, the inverse of `encode`.

    .. math:: (x, y) = (x_a + t_x w_a / w_x, \; y_a + t_y h_a / w_y), \qquad
        w = w_a \min(e^{t_w / w_w}, \text{max growth}), \qquad h = h_a \min(e^{t_h / w_h}, \text{max growth})

    Args:
        offsets: (t_x, t_y, t_w, t_h), `[..., 4]`, the regression output of a detector.
        anchors: `[..., 4]`.
        weights: (w_x, w_y, w_w, w_h), as in `encode`.
        max_growth: upper bound of the box's width over the anchor's, likewise of the height.

    Returns: at least float32, `[..., 4]`; not clipped to the image.
    Raises: TypeError or ValueError if a dtype or a shape is not valid.
    References: Girshick et al., Rich feature hierarchies, arXiv 1311.2524, appendix C; torchvision's BoxCoder.

    >>> print(decode(jnp.array([[0.5, 0.0, 0.0, 0.0]]), jnp.array([[0.0, 0.0, 4.0, 8.0]])))
    [[2. 0. 6. 8.]]
    """
    offsets, anchors = _same_dtype(_boxes("offsets", offsets), _boxes("anchors", anchors))
    offsets = offsets / checks.spread("weights", jnp.asarray(weights, offsets.dtype), offsets.shape)
    centre, size = _centre_and_size(jnp.broadcast_to(anchors, offsets.shape))
    centre = offsets[..., :2] * size + centre
    half = jnp.exp(jnp.minimum(offsets[..., 2:], math.log(max_growth))) * size * 0.5
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes: Float[ArrayLike, "*boxes 4"], image_size: Real[ArrayLike, "2"] | Sequence) -> Float[Array, "*boxes 4"]:
    r"""Returns boxes whose coordinates are clipped to the image.

    .. math:: x \leftarrow \min(\max(x, 0), W), \qquad y \leftarrow \min(\max(y, 0), H)

    Args:
        boxes: `[..., 4]`.
        image_size: (height, width) in pixels; may be traced.

    Returns: at least float32, `[..., 4]`; a box outside the image has the area 0.
    Raises: TypeError or ValueError if a dtype or a shape is not valid.
    References: torchvision.ops.clip_boxes_to_image.

    >>> print(clip(jnp.array([[-2.0, 1.0, 9.0, 4.0]]), (3, 8)))
    [[0. 1. 8. 3.]]
    """
    boxes = _boxes("boxes", boxes)
    height, width = (jnp.asarray(side).astype(boxes.dtype) for side in _sides(image_size))
    return jnp.clip(boxes, 0, jnp.broadcast_to(jnp.stack([width, height, width, height]), boxes.shape))


def nms(
    boxes: Float[ArrayLike, "boxes 4"],
    scores: Float[ArrayLike, "boxes"],
    classes: Integer[ArrayLike, "boxes"],
    *,
    max_detections: int,
    iou_threshold: float | Scalar = 0.5,
    where: Bool[ArrayLike, "boxes"] | None = None,
) -> Int[Array, "{max_detections}"]:
    r"""Returns the indices of the boxes that non-maximum suppression keeps, by decreasing score.

    .. math:: \text{keep } i \text{ unless a kept } j \text{ before it has } \;
        c_j = c_i \text{ and } \mathrm{IoU}(b_j, b_i) > \text{iou threshold}

    Boxes are visited by decreasing score; of equal scores, the lower index first.

    Args:
        boxes: `[N, 4]` of one image; use `jax.vmap` for a batch.
        scores: `[N]`, probabilities or logits.
        classes: `[N]`; boxes of different classes do not suppress each other.
        max_detections: number of indices that are returned; the boxes with the highest scores.
        iou_threshold: boxes that overlap more than this are duplicates.
        where: `[N]`; False: the box does not exist. Boxes whose score is NaN or -inf do not exist either.

    Returns: int32 `[max_detections]`, -1 in the unused places at the end.
    Raises: TypeError or ValueError if a dtype or a shape is not valid.
    References: torchvision.ops.batched_nms.

    >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0], [8.0, 0.0, 9.0, 4.0]])
    >>> print(nms(boxes, jnp.array([0.8, 0.9, 0.7]), jnp.array([0, 0, 0]), max_detections=3))
    [ 1  2 -1]
    """
    boxes, scores = _boxes("boxes", boxes), checks.floating("scores", scores)
    classes = checks.integers("classes", classes)
    checks.same_shape("scores", scores.shape, "boxes without their last axis", boxes.shape[:-1])
    checks.same_shape("classes", classes.shape, "boxes without their last axis", boxes.shape[:-1])
    where = checks.mask("where", where, scores.shape) & (scores > -jnp.inf)
    if not boxes.shape[0]:
        return jnp.full(max_detections, -1, jnp.int32)
    threshold = jnp.asarray(iou_threshold).astype(boxes.dtype)

    def keep_best(remaining, _):
        best = jnp.argmax(remaining)
        same_class = classes == classes[best]
        suppressed = same_class & (iou(boxes[best][None], boxes)[0] > threshold)
        index = jnp.where(remaining[best] > -jnp.inf, best, -1).astype(jnp.int32)
        return jnp.where(suppressed, -jnp.inf, remaining).at[best].set(-jnp.inf), index

    return jax.lax.scan(keep_best, jnp.where(where, scores, -jnp.inf), None, length=max_detections)[1]


def detect(
    logits: Float[ArrayLike, "anchors classes"],
    offsets: Float[ArrayLike, "anchors 4"],
    anchors: Float[ArrayLike, "anchors 4"],
    image_size: Real[ArrayLike, "2"] | Sequence,
    *,
    counts: Sequence[int],
    score_threshold: float | Scalar = 0.05,
    iou_threshold: float | Scalar = 0.5,
    max_candidates: int = 1000,
    max_detections: int = 100,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
) -> Detections:
    r"""Selects the detections of one image from the outputs of a dense detector.

    .. math:: \text{nms}\left( \bigcup_{\text{level}} \text{top}_k \{ (a, c) : σ(z_{ac}) > \text{score threshold} \}
        \right)

    Args:
        logits: `[A, C]`, one sigmoid classifier per class; there is no class for the background.
        offsets: `[A, 4]`, see `decode`.
        anchors: `[A, 4]`.
        image_size: (height, width) in pixels, to which the boxes are clipped; may be traced.
        counts: anchors per pyramid level, see `anchor_counts`.
        score_threshold: only probabilities above this are detections.
        iou_threshold: boxes of one class that overlap more than this are duplicates.
        max_candidates: k, pairs of anchor and class per level that enter non-maximum suppression.
        max_detections: D, detections that are returned.
        weights: as in `decode`.

    Returns: Detections of static size D, by decreasing score. Boxes are in pixels; scores are probabilities.
    Raises: TypeError or ValueError if a dtype or a shape is not valid, the numbers of rows differ, or counts do not add
        up to A.
    References: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.1; torchvision's
        RetinaNet.postprocess_detections, which keeps 300.

    >>> anchors = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0], [8.0, 0.0, 12.0, 4.0]])
    >>> found = detect(jnp.array([[1.0], [2.0], [-9.0]]), jnp.zeros((3, 4)), anchors, (4, 16), counts=(2, 1))
    >>> print(found.boxes[found.where], found.scores[found.where])
    [[0. 0. 4. 4.]] [0.880797]
    """
    logits = checks.floating("logits", logits)
    offsets, anchors = _same_dtype(_boxes("offsets", offsets), _boxes("anchors", anchors))
    checks.same_shape("offsets", offsets.shape, "anchors", anchors.shape)
    checks.same_shape("logits without their last axis", logits.shape[:-1], "anchors without theirs", anchors.shape[:-1])
    if sum(counts) != len(anchors):
        got = f"{tuple(counts)}, {sum(counts)} in all; use anchor_counts(image_size) with the levels of these anchors"
        raise ValueError(f"counts must add up to the {len(anchors)} anchors; got {got}")
    num_classes = logits.shape[-1]
    top, places = [], []
    for start, count in zip(np.cumsum((0, *counts)), counts, strict=False):
        level = logits[start : start + count].ravel()
        # The order of logits is that of scores, of which several may round to 1.
        values, at = jax.lax.top_k(jnp.where(jnp.isnan(level), -jnp.inf, level), min(max_candidates, level.size))
        top.append(values)
        places.append(at + start * num_classes)
    top, places = jnp.concatenate(top), jnp.concatenate(places)
    at, classes = jnp.divmod(places, num_classes)
    candidates = clip(decode(offsets[at], anchors[at], weights=weights), image_size)
    scores = jax.nn.sigmoid(top)
    where = scores > jnp.asarray(score_threshold).astype(scores.dtype)
    kept = nms(candidates, top, classes, iou_threshold=iou_threshold, max_detections=max_detections, where=where)
    exists = kept >= 0
    found = candidates[kept], scores[kept], classes[kept].astype(jnp.int32)
    boxes, scores, classes = (jnp.where(exists.reshape(-1, *[1] * (x.ndim - 1)), x, 0) for x in found)
    return Detections(boxes, scores, classes, exists)


def _boxes(name: str, value: ArrayLike) -> Float[Array, "*boxes 4"]:
    """Returns `value` as boxes of at least float32."""
    given = checks.floating(name, value)
    if given.ndim == 0 or given.shape[-1] != 4:
        raise ValueError(f"{name} must be [..., 4], four numbers per box; got shape {given.shape}")
    return given


def _same_dtype(*arrays: Array) -> list[Array]:
    """Returns floating-point arrays in the widest of their dtypes."""
    widest = max((x.dtype for x in arrays), key=lambda dtype: dtype.itemsize)
    return [x.astype(widest) for x in arrays]


def _coordinates(boxes: Float[Array, "*boxes 4"]) -> list[Float[Array, "*boxes"]]:
    return [boxes[..., i] for i in range(4)]


def _centre_and_size(boxes: Float[Array, "*boxes 4"]) -> tuple[Float[Array, "*boxes 2"], Float[Array, "*boxes 2"]]:
    """Returns (x, y) of the centre, and (width, height)."""
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def _sides(image_size: ArrayLike | Sequence) -> list:
    """Returns height and width."""
    sides = list(image_size) if np.iterable(image_size) else [image_size]
    if len(sides) != 2:
        raise ValueError(f"image_size must be (height, width); got {len(sides)} number(s): use image.shape[:2]")
    return sides


def _grids(image_size: Sequence, levels: Sequence[int]) -> list[tuple[int, int]]:
    """Returns (rows, columns) of the features of each level."""
    height, width = _sides(image_size)
    if not all(isinstance(side, int | np.integer) and side >= 1 for side in (height, width)):
        raise ValueError(f"image_size must be (height, width), integers of at least 1; got {(height, width)}")
    if not levels or not all(isinstance(level, int | np.integer) and level >= 0 for level in levels):
        raise ValueError(f"levels must be integers of at least 0; got {tuple(levels)}")
    return [(-(-height // 2**level), -(-width // 2**level)) for level in levels]
