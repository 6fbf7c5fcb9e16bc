"""Obstacles on the road, scored as in Lost and Found and its successors: on the road only, and per obstacle.

One near obstacle has as many pixels as a hundred far ones, so obstacles are counted as connected components, on the
host. The pixel scores (average precision, FPR at 95 % TPR) are in `ranking`; `obstacle_targets` makes their targets.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int, Integer

from segjax import checks
from segjax.checks import Labels, Where
from segjax.metrics._counting import Counts, host_counts, ratio


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
        where: boolean, that shape, broadcastable; False: the pixel does not exist. It may cut a component in two.
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
    targets, detections = _checked(targets, detections, where)
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


def _checked(targets, detections, where) -> tuple[np.ndarray, np.ndarray]:
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
