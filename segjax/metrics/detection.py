"""Detection of whole objects: boxes, scored as in COCO, and obstacles on the road, scored as in Lost and Found.

**Boxes.** Each image is matched by itself, on the host in float64: `detection_records` marks which of its detections
are right, at every IoU threshold and for objects of every size. The records of batches and hosts are concatenated;
`detection_scores` ranks the detections of the whole data set. The numbers are pycocotools'.

**Obstacles.** One near obstacle has as many pixels as a hundred far ones, so obstacles are counted as connected
components, on the host. The pixel scores (average precision, FPR at 95 % TPR) are in `ranking`; `obstacle_targets`
makes their targets.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer, Real

from segjax import checks
from segjax.boxes import Detections
from segjax.checks import Labels, Where
from segjax.metrics._counting import Counts, host_counts, nanmean, ratio

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100
SIZES = ("all", "small", "medium", "large")


class DetectionRecords(NamedTuple):
    """Matches of the detections of each image: concatenate those of several batches along the first axis.

    `where` is True for the detections that count, `ranks` is the place of a detection among those of its class in its
    image, and `num_true` is the number of objects. `correct` and `ignored` hold for each size of the objects (all,
    small, medium, large) and each IoU threshold (0.5, 0.55, ..., 0.95).
    """

    scores: Float[np.ndarray, "images detections"]
    classes: Int[np.ndarray, "images detections"]
    ranks: Int[np.ndarray, "images detections"]
    where: Bool[np.ndarray, "images detections"]
    correct: Bool[np.ndarray, "images detections 4 10"]
    ignored: Bool[np.ndarray, "images detections 4 10"]
    num_true: Int[np.ndarray, "images classes 4"]


def detection_records(
    detections: Detections | tuple,
    boxes: Real[ArrayLike, "images boxes 4"],
    classes: Integer[ArrayLike, "images boxes"],
    num_classes: int,
    *,
    where: Bool[ArrayLike, "images boxes"] | None = None,
    crowd: Bool[ArrayLike, "images boxes"] | None = None,
    areas: Real[ArrayLike, "images boxes"] | None = None,
    area_limits: tuple[float, float] = (32.0**2, 96.0**2),
) -> DetectionRecords:
    r"""Matches the detections of each image to its objects, on the host.

    .. math:: \text{match}_τ(d) = \arg\max_{o: \; \mathrm{IoU}(d, o) \ge τ, \; c_o = c_d, \; o \text{ not taken}}
        \mathrm{IoU}(d, o)

    Detections choose in the order of their scores, of which the 100 highest per image and class count. An object that
    is a crowd, or whose area is not of the size in question, is ignored: it is chosen only where no other object fits,
    and a detection that chooses it is neither right nor wrong. A crowd can be chosen many times, and its IoU is the
    intersection over the detection's area. A detection without a match whose own area is of another size is ignored.

    Args:
        detections: (boxes, scores, classes, where) of each image, `[images, D, 4]` and `[images, D]`: the result of
            `boxes.detect` under `jax.vmap`, in the coordinates of the objects.
        boxes: the objects, `[images, N, 4]`: (x_min, y_min, x_max, y_max).
        classes: `[images, N]`, in [0, num_classes).
        num_classes: C.
        where: `[images, N]`; False: the object does not exist (padding).
        crowd: `[images, N]`, True for a region of many objects (COCO's `iscrowd`). None: there is none.
        areas: `[images, N]`, areas of the objects' masks in pixels, which decide COCO's size. None: those of the boxes.
        area_limits: objects up to the first area are small, those of at least the second large; in pixels. Both bounds
            are inclusive, so that an object of exactly this area has two sizes.

    Returns: DetectionRecords, NumPy arrays. Ties of scores are resolved by order, here and in `detection_scores`.
    Raises: TypeError or ValueError if an argument is traced, or a dtype, shape, class, box or score is not valid.
    References: Lin et al., Microsoft COCO, arXiv 1405.0312; pycocotools.cocoeval.COCOeval.evaluateImg.

    >>> found = np.array([[[0.0, 0.0, 4.0, 4.0], [9.0, 9.0, 12.0, 12.0]]]), np.array([[0.9, 0.8]]), np.array([[0, 0]])
    >>> objects = np.array([[[0.0, 0.0, 4.0, 5.0]]])
    >>> records = detection_records((*found, np.array([[True, True]])), objects, np.array([[0]]), 1)
    >>> records.correct[0, :, 0, 6]  # IoU 0.8 ≥ τ = 0.8
    array([ True, False])
    """
    found = _checked_boxes(detections, num_classes, scores=True)
    objects = _checked_boxes((boxes, classes, where), num_classes)
    if len(found.boxes) != len(objects.boxes):
        got = f"{len(found.boxes)} and {len(objects.boxes)}"
        raise ValueError(f"detections and boxes must have the same number of images; got {got}")
    shape = objects.classes.shape
    crowd = np.zeros(shape, bool) if crowd is None else checks.host("crowd", crowd)
    sizes = _areas(objects.boxes) if areas is None else checks.host("areas", areas).astype(np.float64)
    checks.same_shape("crowd", crowd.shape, "classes", shape)
    checks.same_shape("areas", sizes.shape, "classes", shape)
    low, high = _size_bounds(area_limits)

    # One row per image and class with its detections by rank, and with its objects.
    row, rank = _rows(found, num_classes)
    counted = found.where & (rank < MAX_DETECTIONS)
    object_row, place = _rows(objects, num_classes)
    ignored = crowd[..., None] | (sizes[..., None] < low) | (sizes[..., None] > high)
    num_true = np.zeros((shape[0] * num_classes, len(SIZES)), np.int32)
    np.add.at(num_true, object_row[objects.where], ~ignored[objects.where])

    rows = np.unique(object_row[objects.where])
    table = np.full(shape[0] * num_classes, -1)
    table[rows] = np.arange(len(rows))
    grid = (len(rows), int(place[objects.where].max(initial=-1)) + 1)
    at = table[object_row[objects.where]], place[objects.where]

    def gridded(values: np.ndarray, fill: object) -> np.ndarray:
        padded = np.full((*grid, *values.shape[2:]), fill, values.dtype)
        padded[at] = values[objects.where]
        return padded

    grids = gridded(objects.boxes, 0), gridded(crowd, False), gridded(ignored, True)
    matched, skipped = _match(found, np.where(counted, table[row], -1), rank, *grids)
    size = _areas(found.boxes)[..., None]
    skipped |= ~matched & ((size < low) | (size > high))[..., None]
    return DetectionRecords(
        *(found.scores, found.classes, rank.astype(np.int32), counted, matched & ~skipped, skipped),
        num_true.reshape(shape[0], num_classes, len(SIZES)),
    )


def detection_scores(*records: DetectionRecords) -> dict[str, float | np.ndarray]:
    r"""Returns COCO's average precision and recall, from the records of all images.

    .. math::
        \mathrm{AP}_{cτ} = \frac{1}{101} \sum_{r \in \{0, 0.01, ..., 1\}} \max_{R_{cτ}(n) \ge r} P_{cτ}(n), \qquad
        \mathrm{AR}_{cτ} = \max_n R_{cτ}(n)

    P and R are precision and recall of the n detections of class c with the highest scores. Every mean is over the
    classes that have an object of the size in question.

    Args:
        records: results of `detection_records`, one for each batch, in the order of the images.

    Returns:
        `ap` (mean over the IoU thresholds 0.5, 0.55, ..., 0.95), `ap50`, `ap75` (at one threshold), `ap_small`,
        `ap_medium`, `ap_large`; `ar1`, `ar10`, `ar100` (with at most so many detections per image and class),
        `ar_small`, `ar_medium`, `ar_large`; `ap_per_class`, `ap50_per_class`, `ar100_per_class` `[C]`; and
        `precision_at_recall` `[C, 10, 101]`, the curves of the thresholds. In [0, 1]; NaN where there is no object.

    Raises: ValueError if there are no records, or if they differ in the number of classes.
    References: Lin et al., Microsoft COCO, arXiv 1405.0312; pycocotools.cocoeval.COCOeval.accumulate.

    >>> box, one = np.array([[[0.0, 0.0, 4.0, 4.0]]]), np.array([[0]])
    >>> hit = detection_records((box, np.array([[0.9]]), one, one == 0), box, one, 1)
    >>> miss = detection_records((box + 9, np.array([[0.8]]), one, one == 0), box, one, 1)
    >>> scores = detection_scores(hit, miss)  # one of two objects found, and one false detection
    >>> print(round(scores["ap"], 3), scores["ar100"])
    0.505 0.5
    """
    _same_classes(records)
    num_true = sum(part.num_true.sum(axis=0, dtype=np.int64) for part in records)

    def counted(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name)[part.where] for part in records])

    scores, classes, ranks, correct, ignored = map(counted, ("scores", "classes", "ranks", "correct", "ignored"))
    order = np.lexsort((-scores, classes))
    ends = np.searchsorted(classes[order], np.arange(len(num_true) + 1))
    curves = np.empty((len(num_true), len(SIZES), len(IOU_THRESHOLDS), len(RECALLS)))
    recalls = {most: np.empty(curves.shape[:-1]) for most in (1, 10, MAX_DETECTIONS)}
    for label, (start, end) in enumerate(itertools.pairwise(ends)):
        ranked = order[start:end]
        curves[label] = _precision_at_recall(correct[ranked], ignored[ranked], num_true[label])
        for most, recall in recalls.items():
            recall[label] = ratio(correct[ranked[ranks[ranked] < most]].sum(axis=0), num_true[label][:, None])

    precisions, last = curves.mean(axis=-1), recalls[MAX_DETECTIONS]
    means = {"ap": precisions[:, 0], "ap50": precisions[:, 0, 0], "ap75": precisions[:, 0, 5]}
    means |= {f"ap_{size}": precisions[:, i] for i, size in enumerate(SIZES) if i}
    means |= {f"ar{most}": recall[:, 0] for most, recall in recalls.items()}
    means |= {f"ar_{size}": last[:, i] for i, size in enumerate(SIZES) if i}
    return {name: nanmean(values) for name, values in means.items()} | {
        "ap_per_class": precisions[:, 0].mean(axis=-1),
        "ap50_per_class": precisions[:, 0, 0],
        "ar100_per_class": last[:, 0].mean(axis=-1),
        "precision_at_recall": curves[:, 0],
    }


def detection_curve(*records: DetectionRecords, iou_threshold: float = 0.5) -> dict[str, np.ndarray]:
    r"""Returns precision, recall and F1 of the detections of at least each score, over all classes together.

    .. math::
        P_s = \frac{TP_s}{TP_s + FP_s}, \qquad R_s = \frac{TP_s}{N}, \qquad F_{1,s} = \frac{2 \, TP_s}{TP_s + FP_s + N}

    TP_s and FP_s are the right and the false detections of score s or more, and N is the number of objects.

    Args:
        records: as in `detection_scores`.
        iou_threshold: smallest IoU of a right detection, one of 0.5, 0.55, ..., 0.95.

    Returns:
        float64 arrays, one value per score that occurs: `threshold` (falling), `precision`, `recall`, `f1`. NaN for
        0 / 0.

    Raises: ValueError if there are no records, they differ in the number of classes, or the threshold is another one.
    References: Powers, Evaluation: from precision, recall and F-measure to ROC, 2011.

    >>> box, one = np.array([[[0.0, 0.0, 4.0, 4.0]]]), np.array([[0]])
    >>> hit = detection_records((box, np.array([[0.9]]), one, one == 0), box, one, 1)
    >>> miss = detection_records((box + 9, np.array([[0.8]]), one, one == 0), box, one, 1)
    >>> curve = detection_curve(hit, miss)
    >>> print(curve["threshold"], curve["precision"], curve["recall"], curve["f1"].round(3))
    [0.9 0.8] [1.  0.5] [0.5 0.5] [0.667 0.5  ]
    """
    _same_classes(records)
    (at,) = np.nonzero(np.isclose(IOU_THRESHOLDS, iou_threshold))
    if not at.size:
        raise ValueError(f"iou_threshold must be one of 0.5, 0.55, ..., 0.95; got {iou_threshold}")
    counted = [part.where & ~part.ignored[..., 0, at[0]] for part in records]
    scores = np.concatenate([part.scores[where] for part, where in zip(records, counted, strict=True)])
    correct = np.concatenate([part.correct[..., 0, at[0]][where] for part, where in zip(records, counted, strict=True)])
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    (last,) = np.nonzero(np.append(ranked[1:] != ranked[:-1], True)[: ranked.size])  # of equal scores
    right, found = np.cumsum(correct[order], dtype=np.int64)[last], last + 1
    objects = sum(int(part.num_true[..., 0].sum(dtype=np.int64)) for part in records)
    rates = {"precision": ratio(right, found), "recall": ratio(right, objects), "f1": ratio(2 * right, found + objects)}
    return {"threshold": ranked[last], **rates}


def _same_classes(records: Sequence[DetectionRecords]) -> None:
    num_classes = {part.num_true.shape[1] for part in records}
    if len(num_classes) != 1:
        got = f"{sorted(num_classes)} classes" if records else "none"
        raise ValueError(f"records must be those of one or more batches with the same classes; got {got}")


def _checked_boxes(arrays: tuple, num_classes: int, *, scores: bool = False) -> Detections:
    """Returns boxes, scores, classes and mask of detections or of objects (with scores of 0) as NumPy arrays."""
    fields = ("boxes", "scores", "classes", "where")
    names = [f"detections.{field}" for field in fields] if scores else fields
    boxes, *middle, classes, where = arrays
    boxes, classes = checks.host(names[0], boxes).astype(np.float64), checks.host(names[2], classes)
    if boxes.ndim != 3 or boxes.shape[-1] != 4:
        raise ValueError(f"{names[0]} must be [images, boxes, 4]; got shape {boxes.shape}")
    if not np.issubdtype(classes.dtype, np.integer):
        raise TypeError(f"{names[2]} must be integers; got {classes.dtype}")
    checks.same_shape(names[2], classes.shape, f"{names[0]} without their last axis", boxes.shape[:-1])
    where = np.ones(classes.shape, bool) if where is None else np.array(checks.host(names[3], where), bool)
    checks.same_shape(names[3], where.shape, f"{names[0]} without their last axis", boxes.shape[:-1])
    values = checks.host(names[1], middle[0]).astype(np.float64) if middle else np.zeros(classes.shape)
    checks.same_shape(names[1], values.shape, f"{names[0]} without their last axis", boxes.shape[:-1])
    if np.isnan(values[where]).any():
        raise ValueError(f"{names[1]} must not be NaN where {names[3]} is True")
    invalid = classes[where][(classes[where] < 0) | (classes[where] >= num_classes)]
    if invalid.size:
        raise ValueError(f"{names[2]} must be in [0, {num_classes}) where {names[3]} is True; got {invalid[0]}")
    inverted = boxes[where][~(boxes[where][:, 2:] >= boxes[where][:, :2]).all(axis=-1)]
    if inverted.size:
        raise ValueError(
            f"{names[0]} must be (x_min, y_min, x_max, y_max) with each maximum at least its minimum; "
            f"got {tuple(inverted[0].tolist())}. For (x, y, width, height) add x to width and y to height"
        )
    boxes, classes = np.where(where[..., None], boxes, 0), np.where(where, classes, 0)
    return Detections(boxes, np.where(where, values, 0), classes.astype(np.int32), where)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _size_bounds(limits: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the smallest and the largest area of the four sizes."""
    small, large = limits
    if not 0 < small <= large:
        raise ValueError(f"area_limits must be two areas in pixels, 0 < small ≤ large; got {tuple(limits)}")
    return np.array([0, 0, small, large]), np.array([np.inf, small, large, np.inf])


def _rows(found: Detections, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row (image and class) of every box, and its place in the row by decreasing score, then by order."""
    images = np.arange(len(found.classes))[:, None]
    row = np.where(found.where, images * num_classes + found.classes, len(images) * num_classes)
    order = np.lexsort((-found.scores.ravel(), row.ravel()))
    ordered = row.ravel()[order]
    place = np.empty(row.size, np.int64)
    place[order] = np.arange(row.size) - np.searchsorted(ordered, ordered)
    return np.where(found.where, row, 0), np.where(found.where, place.reshape(row.shape), 0)


def _match(found, row, rank, boxes, crowd, ignored) -> tuple[np.ndarray, np.ndarray]:
    """Returns which detections have a match, and which an ignored one, `[images, D, sizes, thresholds]`.

    `row` is -1 for detections that do not count or have no object in their row. All rows are matched at once, one rank
    after another.
    """
    matched = np.zeros((*row.shape, len(SIZES), len(IOU_THRESHOLDS)), bool)
    skipped = np.zeros_like(matched)
    taken = np.zeros((*crowd.shape, len(SIZES), len(IOU_THRESHOLDS)), bool)
    for place in range(int(rank[row >= 0].max(initial=-1)) + 1):
        image, index = np.nonzero((row >= 0) & (rank == place))
        at = row[image, index]
        overlap = _box_iou(found.boxes[image, index][:, None], boxes[at], crowd[at])
        fits = (~taken[at] | crowd[at][..., None, None]) & (overlap[..., None, None] >= IOU_THRESHOLDS)
        counts = ~ignored[at][..., None]
        fits &= counts | ~(fits & counts).any(axis=1, keepdims=True)
        # The last of equal overlaps, as in pycocotools.
        choice = fits.shape[1] - 1 - np.where(fits, overlap[..., None, None], -1)[:, ::-1].argmax(axis=1)
        hit = fits.any(axis=1)
        row_at, size_at, threshold_at = np.nonzero(hit)
        chosen = choice[hit]
        taken[at[row_at], chosen, size_at, threshold_at] = True
        matched[image, index] = hit
        skipped[image[row_at], index[row_at], size_at, threshold_at] = ignored[at[row_at], chosen, size_at]
    return matched, skipped


def _box_iou(box: np.ndarray, boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Returns the IoU of a box and the boxes of its row, `[rows, boxes]`; for a crowd, over the area of the box."""
    sides = np.minimum(box[..., 2:], boxes[..., 2:]) - np.maximum(box[..., :2], boxes[..., :2])
    common = np.where((sides > 0).all(axis=-1), sides[..., 0] * sides[..., 1], 0)
    area = np.broadcast_to(_areas(box), common.shape)
    return ratio(common, np.where(crowd, area, area + _areas(boxes) - common), 0.0)


def _precision_at_recall(correct: np.ndarray, ignored: np.ndarray, num_true: np.ndarray) -> np.ndarray:
    """Returns the largest precision at each recall or above, `[sizes, thresholds, 101]`, of ranked detections."""
    true = np.cumsum(correct, axis=0, dtype=np.int64)
    false = np.cumsum(~correct & ~ignored, axis=0, dtype=np.int64)
    precision = np.maximum.accumulate((true / np.maximum(true + false, 1))[::-1])[::-1]
    precision = np.concatenate([precision, np.zeros((1, *true.shape[1:]))])
    curves = np.full((len(SIZES), len(IOU_THRESHOLDS), len(RECALLS)), np.nan)
    for size in np.flatnonzero(num_true):
        recall = true[:, size] / num_true[size]
        for i in range(len(IOU_THRESHOLDS)):
            curves[size, i] = precision[np.searchsorted(recall[:, i], RECALLS), size, i]
    return curves


class ObstacleTargets(NamedTuple):
    """Targets (0 road, 1 obstacle, -1 neither) and the region of interest, both of the labels' shape."""

    targets: Int[Array, "*pixels"]
    where: Bool[Array, "*pixels"]


def obstacle_targets(labels: Integer[ArrayLike, "*pixels"]) -> ObstacleTargets:
    r"""Converts Lost and Found's coarse labels (0 ignored, 1 road, 2 obstacle) to targets and region of interest.

    .. math:: \text{target} = \text{label} - 1, \qquad \text{where} = (\text{label} \ne 0)

    Args:
        labels: integers 0, 1 and 2, any shape.

    Returns:
        (targets, where) for `score_histogram`: int32 and boolean. Any other label (also void, 255) becomes -1, invalid.

    Raises: TypeError if labels are not integers.
    References: Pinggera et al., Lost and Found: Detecting Small Road Hazards, arXiv 1609.04653.

    >>> print(*obstacle_targets(jnp.array([0, 1, 2, 7])))
    [-1  0  1 -1] [False  True  True  True]
    """
    labels = checks.integers("labels", labels)
    road_or_obstacle = (labels == 1) | (labels == 2)
    return ObstacleTargets(jnp.where(road_or_obstacle, labels - 1, -1).astype(jnp.int32), labels != 0)


def component_counts(
    targets: Labels,
    detections: Bool[ArrayLike, "*pixels"],
    *,
    where: Where = None,
    overlap: str = "coverage",
    thresholds: Sequence[float] | np.ndarray = (0.5,),
    min_size: int = 1,
    min_detection_size: int = 1,
    connectivity: int = 2,
) -> np.ndarray:
    r"""Counts found obstacles, missed obstacles and false detections: connected components, on the host.

    .. math::
        found_τ = \#\{k : o_k \ge τ\}, \qquad missed_τ = \#\{k : o_k < τ\}, \qquad
        false_τ = \#\{d : |d \cap T| / |d| < τ\}

    T and D are all target and all detected pixels, k and d their components. The overlap o_k of k is

    - "coverage": |k ∩ D| / |k|. At τ = 0.5 an obstacle is found if at least half of its pixels are.
    - "siou": |k ∩ D_k| / |k ∪ (D_k \ other targets)|, with D_k the detected components that touch k.

    SegmentMeIfYouCan's obstacle track is `overlap="siou", thresholds=np.linspace(0.25, 0.75, 11), min_size=10,
    min_detection_size=50`, with detections at the threshold of the best pixel F1 (`best_f1`).

    Args:
        targets: 0 or 1 (or boolean), `[..., H, W]`, each image by itself.
        detections: boolean, the same shape: the score is above a threshold.
        where: boolean, that shape, broadcastable; False removes the pixel. It may cut a component in two.
        overlap: "coverage" or "siou".
        thresholds: τ, each in (0, 1].
        min_size: the pixels of a smaller target component count neither as obstacle nor as road.
        min_detection_size: a smaller component of the detections is not a detection.
        connectivity: 1: pixels touch at their sides (4 neighbours); 2: also at their corners (8).

    Returns: int64 `[thresholds, 3]`: found, missed, false. They add over images, batches and hosts.
    Raises: TypeError or ValueError if an argument is traced, or a dtype, shape, target or option is not valid.
    References: Pinggera et al., Lost and Found, arXiv 1609.04653; Chan et al., SegmentMeIfYouCan, arXiv 2104.14812.

    >>> targets = np.array([[1, 1, 0, 0, 1], [1, 1, 0, 0, 1]])
    >>> detections = np.array([[1, 1, 0, 0, 0], [0, 1, 0, 1, 0]], bool)
    >>> component_counts(targets, detections)  # one of two obstacles found, and one false detection
    array([[1, 1, 1]])
    """
    targets, detections = _checked_masks(targets, detections, where)
    checks.choice("overlap", overlap, ("coverage", "siou"))
    checks.choice("connectivity", connectivity, (1, 2))
    levels = np.asarray(thresholds, np.float64)
    if levels.ndim != 1 or not levels.size or not ((levels > 0) & (levels <= 1)).all():
        raise ValueError(f"thresholds must be one or more numbers above 0 and at most 1; got {thresholds}")
    checks.scalar("min_size", min_size, jnp.int32, 1.0)
    checks.scalar("min_detection_size", min_detection_size, jnp.int32, 1.0)
    counts = np.zeros((len(levels), 3), np.int64)
    for image in zip(targets, detections, strict=True):
        pairs = _component_pairs(*image, min_size, min_detection_size, connectivity)
        overlaps, shares = _overlaps(*pairs, overlap)
        found = (overlaps >= levels[:, None]).sum(axis=1)
        counts += np.stack([found, len(overlaps) - found, (shares < levels[:, None]).sum(axis=1)], axis=1)
    return counts


def component_scores(counts: Counts) -> dict[str, float | np.ndarray]:
    r"""Returns recall and F1 of obstacles, from the sums of `component_counts`.

    .. math::
        R_τ = \frac{found_τ}{found_τ + missed_τ}, \qquad
        F_{1,τ} = \frac{2\,found_τ}{2\,found_τ + missed_τ + false_τ}

    Args:
        counts: integers `[thresholds, 3]`: found, missed, false.

    Returns:
        `component_recall` R and `component_f1` F_1, float64 `[thresholds]`, and the mean of F_1, `mean_component_f1`
        (SegmentMeIfYouCan's F1*); in [0, 1]. NaN for 0 / 0.

    Raises: TypeError or ValueError if counts are traced, not integers, not `[thresholds, 3]`, or negative.
    References: Chan et al., SegmentMeIfYouCan: A Benchmark for Anomaly Segmentation, arXiv 2104.14812.

    >>> scores = component_scores(np.array([[3, 1, 2], [1, 3, 4]]))
    >>> print(scores["component_recall"], scores["component_f1"], round(scores["mean_component_f1"], 3))
    [0.75 0.25] [0.66666667 0.22222222] 0.444
    """
    counts = host_counts("counts", counts, "components are never negative")
    if counts.ndim != 2 or counts.shape[1] != 3 or not len(counts):
        raise ValueError(f"counts must be [thresholds, 3], found, missed and false; got shape {counts.shape}")
    found, missed, false = counts.T
    f1 = ratio(2 * found, 2 * found + missed + false)
    return {"component_recall": ratio(found, found + missed), "component_f1": f1, "mean_component_f1": float(f1.mean())}


def _checked_masks(targets, detections, where) -> tuple[np.ndarray, np.ndarray]:
    """Returns the unmasked pixels of the targets and of the detections, boolean `[N, H, W]`."""
    targets, detections = checks.host("targets", targets), checks.host("detections", detections)
    if targets.dtype != np.bool_ and not np.issubdtype(targets.dtype, np.integer):
        raise TypeError(f"targets must be boolean or integers; got {targets.dtype} of shape {targets.shape}")
    if detections.dtype != np.bool_:
        raise TypeError(f"detections must be boolean; got {detections.dtype} of shape {detections.shape}")
    if targets.ndim < 2:
        raise ValueError(f"targets must be [..., height, width]; got shape {targets.shape}")
    checks.same_shape("detections", detections.shape, "targets", targets.shape)
    where = None if where is None else checks.host("where", where)
    kept = np.asarray(checks.mask("where", where, targets.shape))
    invalid = np.unique(targets[kept & (targets != 0) & (targets != 1)])
    if invalid.size:
        raise ValueError(f"targets must be 0 and 1 where `where` is True; got {', '.join(map(str, invalid[:5]))}")
    images = (int(np.prod(targets.shape[:-2])), *targets.shape[-2:])
    return ((targets == 1) & kept).reshape(images), (detections & kept).reshape(images)


def _component_pairs(targets: np.ndarray, detections: np.ndarray, min_size, min_detection_size, connectivity):
    """Returns (target component, detected component, common pixels) of one image, 0 for none, without (0, 0)."""
    # SciPy comes with JAX, but takes longer to import than all of segjax.metrics.
    from scipy import ndimage

    structure = ndimage.generate_binary_structure(2, connectivity)
    truth, found = (ndimage.label(mask, structure)[0].astype(np.int64) for mask in (targets, detections))
    found[(np.bincount(found.ravel()) < min_detection_size)[found]] = 0
    sizes = np.bincount(truth.ravel())
    counted = np.where(truth > 0, sizes[truth] >= min_size, found > 0)
    pairs, pixels = np.unique(truth[counted] * (found.max(initial=0) + 1) + found[counted], return_counts=True)
    return *np.divmod(pairs, found.max(initial=0) + 1), pixels


def _overlaps(truth: np.ndarray, found: np.ndarray, pixels: np.ndarray, overlap: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns each target component's overlap with the detections, and each detection's share of target pixels."""
    hit = (truth > 0) & (found > 0)
    bins = int(max(truth.max(initial=0), found.max(initial=0))) + 1

    def total(components, selected, amount):
        return np.bincount(components[selected], weights=amount[selected], minlength=bins)

    size, hits = total(truth, truth > 0, pixels), total(truth, hit, pixels)
    union = size
    if overlap == "siou":
        # The union's part outside k: pixels of the detections that touch k and are not on a target.
        outside = total(found, truth == 0, pixels)
        union = size + total(truth, hit, outside[found])
    detected, right = total(found, found > 0, pixels), total(found, hit, pixels)
    return hits[size > 0] / union[size > 0], right[detected > 0] / detected[detected > 0]
