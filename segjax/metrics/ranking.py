"""Ranking of rare positives above negatives, from a histogram: average precision, AUROC, FPR at a TPR, thresholds.

A histogram adds over batches and devices and has a constant size; exact ranking has to sort every score of the data
set. The bins are equal in the *logit*, because equal bins of the probability cannot separate the positives of a rare
class near 0 (errors of 8e-3 in average precision; here 2e-4).

The order inside a bin is lost. The estimates take positives and negatives of a bin as evenly mixed, which breaks ties
at random; scikit-learn treats equal scores as one step of the curve. The two differ where many scores are equal (in
bfloat16, or clamped at ±16), by at most the width of the certified `_bounds`, which always contain scikit-learn's value
(they are widened by 1e-12 for rounding). Check the bounds before you trust an estimate.
"""

from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from segjax import checks
from segjax.metrics._counting import ROUNDING, Counts, Labels, Logits, Where, count, host_histogram, ratio

NUM_BINS = 4096
MAX_LOGIT = 16.0
_BINS_PER_UNIT = NUM_BINS / (2 * MAX_LOGIT)
_CAUSE = "a NaN logit or a target other than 0 and 1 was counted in an unmasked pixel"


class BestF1(NamedTuple):
    """The best F1 over the bin edges, and its threshold: pixels with a logit ≥ `threshold_logit` are positive."""

    f1: float
    threshold_logit: float


class ThresholdAtPrecision(NamedTuple):
    """The threshold from which on a pixel is positive, and the precision and recall of these pixels."""

    threshold_logit: float
    precision: float
    recall: float


def score_histogram(
    logits: Float[ArrayLike, "*pixels"], targets: Labels, *, where: Where = None, axis_name: Hashable | None = None
) -> Int[Array, "2 4096"]:
    r"""Counts the logits of the negatives and of the positives in 4096 bins, over all devices.

    .. math:: H_{tb} = \#\{\text{unmasked pixels with target } t \text{ and } \lfloor 128\,(z + 16) \rfloor = b\}

    The bins b are equal in the logit z on [-16, 16]; the first and the last also contain the logits outside.

    Args:
        logits: z, any shape: log p/(1-p) of the score; for class c of a softmax, its `class_log_odds`.
        targets: boolean, or integers 0 and 1, in the shape of the logits.
        where: boolean, broadcastable to that shape; False: the pixel does not exist.
        axis_name: mapped device axis, or None.

    Returns:
        int32 `[2, 4096]`: negatives, positives, bins by rising logit. Add batches in int64 on the host. Every entry is
        -2^31 if an unmasked logit is NaN or an unmasked target neither 0 nor 1.

    Raises:
        TypeError: logits are not floating, targets neither boolean nor integers, or `where` is not boolean.
        ValueError: shapes do not fit.

    References:
        Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27 (2006).

    >>> histogram = score_histogram(jnp.array([-20.0, 0.0, 3.0]), jnp.array([0, 0, 1]))
    >>> print(histogram.shape, histogram.sum(axis=1), histogram[0, 0], histogram[0, 2048], histogram[1, 2432])
    (2, 4096) [2 1] 1 1 1
    """
    logits = checks.floating("logits", logits)
    targets = checks.integers("targets", targets)
    checks.same_shape("targets", targets.shape, "logits", logits.shape)
    keep = None if where is None else checks.mask("where", where, logits.shape)
    # Scaled by a power of two before the floor and shifted as integers, so no logit is rounded into the next bin.
    bins = jnp.floor(jnp.clip(logits, -MAX_LOGIT, MAX_LOGIT) * _BINS_PER_UNIT).astype(jnp.int32) + NUM_BINS // 2
    valid = ~jnp.isnan(logits) & ((targets == 0) | (targets == 1))
    places = targets.astype(jnp.int32) * NUM_BINS + jnp.minimum(bins, NUM_BINS - 1)
    return count(places, valid, keep, 2 * NUM_BINS, axis_name).reshape(2, NUM_BINS)


def class_log_odds(logits: Logits) -> Float[Array, "*pixels classes"]:
    r"""Returns the log odds of every class of a softmax against all others, for `score_histogram`.

    .. math:: x_c = \log \frac{p_c}{1 - p_c} = z_c - \log \sum_{j \ne c} e^{z_j}

    Args:
        logits: z, `[..., C]`, C ≥ 2; -inf rules a class out.

    Returns:
        `[..., C]`, at least float32, accurate also for p near 1; ±inf where a class or all others are ruled out or
        beyond the range of exp, NaN where a logit is NaN.

    Raises:
        TypeError, ValueError: logits are not floating, or have fewer than 2 classes.

    References:
        Bishop, Pattern Recognition and Machine Learning, Springer 2006, section 4.2.

    >>> print(class_log_odds(jnp.log(jnp.array([0.5, 0.25, 0.25]))).round(4))
    [ 0.     -1.0986 -1.0986]
    """
    logits = checks.floating("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] < 2:
        raise ValueError(f"logits must be [..., classes] with at least 2 classes; got shape {logits.shape}")
    top = jnp.argmax(logits, axis=-1, keepdims=True).astype(jnp.int32)
    is_top = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == top
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    powers = jnp.exp(shifted)
    # Subtracting the largest from the whole sum would leave rounding. The others leave at least its 1.
    without_top = jnp.sum(jnp.where(is_top, 0, powers), axis=-1, keepdims=True)
    return shifted - jnp.log(jnp.where(is_top, without_top, 1 + without_top - powers))


def average_precision(histogram: Counts) -> float:
    r"""Returns average precision: the area under the precision-recall curve, without interpolation between points.

    .. math:: AP = \frac{1}{P} \sum_{i=1}^{P} \frac{i}{\text{rank}_i}

    The P positives are ordered by falling score; the rank counts positives and negatives.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.

    Returns:
        AP in [0, 1]; NaN without positives. The share of positives is the AP without skill.

    Raises:
        TypeError: the histogram is traced, or not integers.
        ValueError: it is not `[2, bins]`, or a count is negative (invalid pixels or an overflow).

    References:
        Su et al., A Relationship between the Average Precision and the Area Under the ROC Curve, ICTIR 2015.

    >>> histogram = score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0]))
    >>> round(average_precision(histogram), 3)  # (1/1 + 2/3) / 2
    0.833
    """
    ranked = _ranked_counts(histogram)
    # The i-th of p positives has about n i / (p + 1) of the bin's n negatives before it.
    mixed = ranked.negatives / (ranked.positives + 1)
    return _mean_over_positives(ranked, _sum_of_precisions(ranked, ranked.negatives_above, mixed))


def average_precision_bounds(histogram: Counts) -> tuple[float, float]:
    r"""Returns the lowest and highest average precision that scores with this histogram can have.

    .. math::
        low = \frac{1}{P} \sum_b \sum_{i=1}^{p_b} \frac{P_{>b} + i}{P_{>b} + i + N_{\ge b}}, \qquad
        high = \frac{1}{P} \sum_b p_b \frac{P_{\ge b}}{P_{\ge b} + N_{>b}}

    p_b of the P positives are in bin b, P_{>b} in the bins above it, P_{\ge b} in both; N counts negatives. Low: the
    negatives of a bin precede its positives (for p_b > 1 the inner sum is an integral, which is never above it). High:
    the positives of a bin come first, tied.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.

    Returns:
        (low, high), within 1e-12 of [0, 1]; both NaN without positives.

    Raises:
        TypeError, ValueError: as `average_precision`.

    References:
        Su et al., A Relationship between the Average Precision and the Area Under the ROC Curve, ICTIR 2015.

    >>> low, high = average_precision_bounds(score_histogram(jnp.array([3.0, 0.001, 0.002]), jnp.array([1, 0, 1])))
    >>> round(low, 3), round(high, 3)  # (1 + 2/3) / 2 and (1 + 1) / 2
    (0.833, 1.0)
    """
    ranked = _ranked_counts(histogram)
    low = _sum_of_precisions(ranked, ranked.negatives_above + ranked.negatives, np.zeros_like(ranked.negatives))
    hits = ranked.positives_above + ranked.positives
    high = ranked.positives * hits / np.maximum(hits + ranked.negatives_above, 1)
    # Not clipped to [0, 1]: the exact value of a perfect ranking may be computed as 1 + 2e-16.
    return _mean_over_positives(ranked, low) - ROUNDING, _mean_over_positives(ranked, high) + ROUNDING


def auroc(histogram: Counts) -> float:
    r"""Returns the area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    .. math:: AUROC = \frac{1}{P N} \sum_b n_b \left(P_{>b} + \tfrac{1}{2} p_b\right)

    Bin b has p_b of the P positives and n_b of the N negatives; P_{>b} positives are in the bins above it.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.

    Returns:
        AUROC in [0, 1], 0.5 without skill; NaN without positives or without negatives.

    Raises:
        TypeError, ValueError: as `average_precision`.

    References:
        Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27 (2006).

    >>> auroc(score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0])))
    0.75
    """
    return _auroc_with_ties(histogram, 0.5)


def auroc_bounds(histogram: Counts) -> tuple[float, float]:
    r"""Returns the lowest and highest AUROC that scores with this histogram can have.

    .. math:: low = \frac{1}{P N} \sum_b n_b P_{>b}, \qquad high = \frac{1}{P N} \sum_b n_b (P_{>b} + p_b)

    Symbols: as in `auroc`. Low: a positive wins against no negative of its own bin. High: against all of them.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.

    Returns:
        (low, high), within 1e-12 of [0, 1], `auroc` in the middle; both NaN without positives or without negatives.

    Raises:
        TypeError, ValueError: as `average_precision`.

    References:
        Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27 (2006).

    >>> bounds = auroc_bounds(score_histogram(jnp.array([3.0, 0.001, 0.002]), jnp.array([1, 0, 1])))
    >>> print([round(bound, 3) for bound in bounds])
    [0.5, 1.0]
    """
    return _auroc_with_ties(histogram, 0.0) - ROUNDING, _auroc_with_ties(histogram, 1.0) + ROUNDING


def fpr_at_tpr(histogram: Counts, tpr: float = 0.95) -> float:
    r"""Returns the share of negatives above the highest threshold that a share `tpr` of the positives passes.

    .. math:: FPR = FP(τ) / N, \qquad τ = \max\{τ : TP(τ) \ge tpr \cdot P\}

    `tpr=0.95` is FPR95 of the obstacle literature.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.
        tpr: required true positive rate, in (0, 1].

    Returns:
        FPR in [0, 1], smaller is better; NaN without positives or without negatives.

    Raises:
        TypeError, ValueError: as `average_precision`, or `tpr` is out of range.

    References:
        Pinggera et al., Lost and Found, arXiv 1609.04653.

    >>> fpr_at_tpr(score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0])))
    0.5
    """
    return _fpr_at_tpr(histogram, tpr)[1]


def fpr_at_tpr_bounds(histogram: Counts, tpr: float = 0.95) -> tuple[float, float]:
    r"""Returns the lowest and highest `fpr_at_tpr` that scores with this histogram can have.

    .. math:: low = N_{>b} / N, \qquad high = N_{\ge b} / N, \qquad b = \max\{b : P_{\ge b} \ge tpr \cdot P\}

    N_{>b} of the N negatives are in the bins above b, N_{\ge b} also in it; P counts positives. Low: no negative of the
    bin in which the TPR is reached passes. High: all of them do.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.
        tpr: required true positive rate, in (0, 1].

    Returns:
        (low, high), within 1e-12 of [0, 1]; both NaN without positives or without negatives.

    Raises:
        TypeError, ValueError: as `average_precision`, or `tpr` is out of range.

    References:
        Pinggera et al., Lost and Found, arXiv 1609.04653.

    >>> histogram = score_histogram(jnp.array([3.0, 0.001, 0.002, -1.0]), jnp.array([0, 0, 1, 0]))
    >>> print([round(bound, 3) for bound in fpr_at_tpr_bounds(histogram)])
    [0.333, 0.667]
    """
    low, _, high = _fpr_at_tpr(histogram, tpr)
    return low - ROUNDING, high + ROUNDING


def best_f1(histogram: Counts) -> BestF1:
    r"""Returns the best F1 that one threshold on the logit can reach, and that threshold.

    .. math:: F_1(τ) = \frac{2\,TP(τ)}{P + TP(τ) + FP(τ)}, \qquad TP(τ) = \#\{\text{positives with } z \ge τ\}

    The thresholds τ are the lower edges of the bins, where TP and FP are exact. A threshold inside a bin may do better.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram` (equal bins on [-16, 16]).

    Returns:
        (f1, threshold_logit): F1 in (0, 1], and the highest threshold that reaches it; -inf: all pixels are positive
        (the first bin contains every logit below -16). Both NaN without positives.

    Raises:
        TypeError, ValueError: as `average_precision`.

    References:
        van Rijsbergen, Information Retrieval, 2nd edition, Butterworths 1979.

    >>> best_f1(score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0])))
    BestF1(f1=0.8, threshold_logit=1.0)
    """
    ranked = _ranked_counts(histogram)
    if not ranked.positives.any():
        return BestF1(float("nan"), float("nan"))
    f1 = _f1(ranked, ranked.negatives_above + ranked.negatives)
    # Bins are in order of falling scores: the first maximum has the highest threshold.
    best = int(np.argmax(f1))
    return BestF1(float(f1[best]), float(_thresholds(len(f1))[best]))


def best_f1_bounds(histogram: Counts) -> tuple[float, float]:
    r"""Returns the lowest and highest best F1 over all thresholds that scores with this histogram can have.

    .. math::
        low = \max_b \frac{2 P_{\ge b}}{P + P_{\ge b} + N_{\ge b}}, \qquad
        high = \max_b \frac{2 P_{\ge b}}{P + P_{\ge b} + N_{>b}}

    P_{\ge b} of the P positives are in bin b and above it; N counts negatives. Low: `best_f1`, at the edge of a bin.
    High: inside a bin, all of its positives come before its negatives.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.

    Returns:
        (low, high), within 1e-12 of [0, 1]; both NaN without positives.

    Raises:
        TypeError, ValueError: as `average_precision`.

    References:
        van Rijsbergen, Information Retrieval, 2nd edition, Butterworths 1979.

    >>> bounds = best_f1_bounds(score_histogram(jnp.array([3.0, 0.001, 0.002]), jnp.array([1, 0, 1])))
    >>> print([round(bound, 3) for bound in bounds])  # 2 · 2 / (2 + 3) and 1
    [0.8, 1.0]
    """
    ranked = _ranked_counts(histogram)
    if not ranked.positives.any():
        return float("nan"), float("nan")
    low = _f1(ranked, ranked.negatives_above + ranked.negatives).max()
    return float(low) - ROUNDING, float(_f1(ranked, ranked.negatives_above).max()) + ROUNDING


def threshold_at_precision(histogram: Counts, precision: float) -> ThresholdAtPrecision:
    r"""Returns the highest threshold of the best recall among those that reach a precision.

    .. math::
        R = \max \{TP(τ) : TP(τ) \ge precision \cdot (TP(τ) + FP(τ)) > 0\}, \qquad \max \{τ : TP(τ) = R\}

    The thresholds τ are the lower edges of the bins, where both counts are exact.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram` (equal bins on [-16, 16]).
        precision: required precision, in (0, 1].

    Returns:
        (threshold_logit, precision, recall); a threshold of -inf: all pixels are positive. If no threshold reaches the
        precision: NaN, and the highest precision with its recall. All NaN without positives.

    Raises:
        TypeError, ValueError: as `average_precision`, or `precision` is not in (0, 1].

    References:
        van Rijsbergen, Information Retrieval, 2nd edition, Butterworths 1979.

    >>> threshold_at_precision(score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0])), 0.6)
    ThresholdAtPrecision(threshold_logit=1.0, precision=0.666..., recall=1.0)
    """
    if not 0 < precision <= 1:
        raise ValueError(f"precision must be above 0 and at most 1; got {precision:g}")
    ranked = _ranked_counts(histogram)
    if not ranked.positives.any():
        return ThresholdAtPrecision(float("nan"), float("nan"), float("nan"))
    found = ranked.positives_above + ranked.positives
    positive = found + ranked.negatives_above + ranked.negatives
    precisions = found / np.maximum(positive, 1)
    # Reduced by a rounding: 0.7 · 10 is 7.000000000000001 in floating point, and 7 of 10 are enough.
    (reached,) = np.nonzero((positive > 0) & (found >= precision * positive * (1 - ROUNDING)))
    last = int(reached[-1]) if reached.size else int(np.argmax(precisions))
    # Bins are in order of falling scores. The first bin with as many true positives has the highest threshold and no
    # more false positives, so it reaches the precision too.
    last = int(np.searchsorted(found, found[last]))
    threshold = float(_thresholds(len(found))[last]) if reached.size else float("nan")
    return ThresholdAtPrecision(threshold, float(precisions[last]), float(found[last] / ranked.positives.sum()))


def precision_recall_curve(histogram: Counts) -> dict[str, np.ndarray]:
    r"""Returns the precision-recall curve, one point per bin that is not empty, by falling threshold.

    .. math::
        precision_τ = \frac{TP(τ)}{TP(τ) + FP(τ)}, \qquad recall_τ = \frac{TP(τ)}{P}, \qquad
        TP(τ) = \#\{\text{positives with } z \ge τ\}

    Both are exact at the edges of the bins. `average_precision` is the area under the curve, also within the bins.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram` (equal bins on [-16, 16]).

    Returns:
        float64 arrays of one length: `threshold_logit`, falling, to -inf if the first bin is not empty; `precision`;
        `recall`, rising to 1, NaN without positives. Empty if nothing was counted.

    Raises:
        TypeError, ValueError: as `average_precision`.

    References:
        Davis and Goadrich, The relationship between Precision-Recall and ROC curves, ICML 2006.

    >>> curve = precision_recall_curve(score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0])))
    >>> print(curve["threshold_logit"], curve["precision"].round(3), curve["recall"])
    [3. 2. 1. 0.] [1.    0.5   0.667 0.5  ] [0.5 0.5 1.  1. ]
    """
    ranked = _ranked_counts(histogram)
    (at,) = np.nonzero(ranked.positives + ranked.negatives)
    found, wrong = np.cumsum(ranked.positives)[at], np.cumsum(ranked.negatives)[at]
    return {
        "threshold_logit": _thresholds(ranked.positives.size)[at],
        "precision": found / (found + wrong),
        "recall": ratio(found, ranked.positives.sum()),
    }


class _Ranked(NamedTuple):
    """Counts in float64 (exact to 2^53) by falling score: in each bin, and in all bins above it."""

    positives: np.ndarray
    negatives: np.ndarray
    positives_above: np.ndarray
    negatives_above: np.ndarray


def _ranked_counts(histogram: ArrayLike) -> _Ranked:
    negatives, positives = host_histogram(histogram, "negatives and positives", _CAUSE)[:, ::-1]
    return _Ranked(positives, negatives, np.cumsum(positives) - positives, np.cumsum(negatives) - negatives)


def _thresholds(num_bins: int) -> np.ndarray:
    """Returns the lower edges of equal bins on [-16, 16], falling; -inf for the last, which has no lower edge."""
    edges = MAX_LOGIT - 2 * MAX_LOGIT * np.arange(1, num_bins + 1) / num_bins
    return np.where(np.arange(num_bins) == num_bins - 1, -np.inf, edges)


def _auroc_with_ties(histogram: ArrayLike, win: float) -> float:
    """Returns the AUROC if a positive has this share of wins against a negative of its own bin."""
    ranked = _ranked_counts(histogram)
    wins = (ranked.negatives * (ranked.positives_above + win * ranked.positives)).sum()
    return float(ratio(wins, ranked.positives.sum() * ranked.negatives.sum()))


def _fpr_at_tpr(histogram: ArrayLike, tpr: float) -> tuple[float, float, float]:
    """Returns lowest, estimated and highest FPR, if no, some or all negatives of the last bin pass the threshold."""
    ranked = _ranked_counts(histogram)
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr must be above 0 and at most 1; got {tpr:g}")
    if not ranked.positives.any() or not ranked.negatives.any():
        return float("nan"), float("nan"), float("nan")
    # Reduced by a rounding: 0.7 · 10 is 7.000000000000001 in floating point, and 7 positives are enough.
    needed = max(float(np.ceil(tpr * ranked.positives.sum() * (1 - ROUNDING))), 1.0)
    last = int(np.searchsorted(ranked.positives_above + ranked.positives, needed))
    mixed = (needed - ranked.positives_above[last]) / (ranked.positives[last] + 1)
    passing = ranked.negatives_above[last] + np.array([0.0, mixed, 1.0]) * ranked.negatives[last]
    low, estimate, high = (passing / ranked.negatives.sum()).tolist()
    return low, estimate, high


def _f1(ranked: _Ranked, false_positives: np.ndarray) -> np.ndarray:
    found = ranked.positives_above + ranked.positives
    return 2 * found / (ranked.positives.sum() + found + false_positives)


def _sum_of_precisions(ranked: _Ranked, before: np.ndarray, between: np.ndarray) -> np.ndarray:
    """Sums f(i) = (A + i) / (A + i + before + between · i) over the positives i = 1..p of each bin.

    A is the number of positives above. For p > 1 the sum is the integral of f over [1/2, p + 1/2], whose cost does not
    depend on p. For `between` = 0, f is concave, so the integral is never above the sum: a bound stays a bound.
    """
    above, inside = ranked.positives_above, ranked.positives
    rate = 1 + between
    single = (above + 1) / (above + before + rate)
    # f(s) = 1/rate + (A - (A + before)/rate) / (A + before + rate s)
    logs = np.log1p(rate * inside / (above + before + rate / 2))
    integral = inside / rate + (above - (above + before) / rate) / rate * logs
    return np.where(inside == 1, single, integral)


def _mean_over_positives(ranked: _Ranked, precisions: np.ndarray) -> float:
    return float(ratio(precisions.sum(), ranked.positives.sum()))
