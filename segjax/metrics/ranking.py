"""Ranking of rare positives above negatives, from a histogram: average precision, AUROC, FPR at a TPR, thresholds.

A histogram adds over batches and devices and has a constant size; exact ranking has to sort every score of the data
set. The bins are equal in the *logit*, because equal bins of the probability cannot separate the positives of a rare
class near 0 (errors of 8e-3 in average precision; here 2e-4).

The order inside a bin is lost. The estimates take positives and negatives of a bin as evenly mixed; scikit-learn treats
equal scores as one step of the curve. The two differ where many scores are equal (in bfloat16, or clamped at ±16). The
certified `_bounds`, widened by 1e-12 for rounding, always contain scikit-learn's value: check them first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from segjax import checks
from segjax.checks import AxisName, Labels, Logits, PerPixel, Where
from segjax.metrics._counting import ROUNDING, Counts, count, host_histogram, ratio

NUM_BINS = 4096
MAX_LOGIT = 16.0
_BINS_PER_UNIT = NUM_BINS / (2 * MAX_LOGIT)
_CAUSE = "a NaN logit or a target other than 0 and 1 was counted in an unmasked pixel"


class BestF1(NamedTuple):
    """The best F1 over the bin edges, and its threshold: pixels with a logit ≥ `threshold_logit` are positive."""

    f1: float
    threshold_logit: float


class ThresholdAtPrecision(NamedTuple):
    """The lowest logit of a positive pixel, and the precision and recall of the positive pixels."""

    threshold_logit: float
    precision: float
    recall: float


def score_histogram(
    logits: PerPixel, targets: Labels, *, where: Where = None, axis_name: AxisName = None
) -> Int[Array, "2 4096"]:
    r"""Counts the logits of the negatives and of the positives in 4096 bins, over all devices.

    .. math:: H_{tb} = \#\{\text{unmasked pixels with target } t \text{ and } \lfloor 128\,(z + 16) \rfloor = b\}

    The bins b are equal in the logit z on [-16, 16]; the first and the last also contain the logits outside.

    Args:
        logits: z, any shape: log p/(1-p) of the score; for class c of a softmax, its `class_log_odds`.
        targets: boolean, or integers 0 and 1, in the shape of the logits.
        where, axis_name: as in `confusion_matrix`.

    Returns: int32 `[2, 4096]`: negatives, positives. All -2^31 if an unmasked logit is NaN or a target neither 0 nor 1.
    Raises: TypeError or ValueError if a dtype or shape does not fit.
    References: Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27 (2006).

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

    Returns: `[..., C]`, at least float32, accurate also for p near 1; ±inf where a class or all others have p = 0.
    Raises: TypeError or ValueError if logits are not floating, or have fewer than 2 classes.
    References: Bishop, Pattern Recognition and Machine Learning, Springer 2006, section 4.2.

    >>> print(class_log_odds(jnp.log(jnp.array([0.5, 0.25, 0.25]))).round(4))
    [ 0.     -1.0986 -1.0986]
    """
    logits = checks.classes("logits", logits)
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

    Returns: AP in [0, 1]; NaN without positives. A random ranking has the share of positives as AP.
    Raises: TypeError or ValueError if the counts are traced, not integers, not `[2, bins]`, or negative (invalid).
    References: Su et al., A Relationship between the Average Precision and the Area Under the ROC Curve, ICTIR 2015.

    >>> histogram = score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0]))
    >>> round(average_precision(histogram), 3)  # (1/1 + 2/3) / 2
    0.833
    """
    ranked = _ranked_counts(histogram)
    # The i-th of p positives has about n i / (p + 1) of the bin's n negatives before it.
    mixed = ranked.negatives / (ranked.positives + 1)
    precisions = _sum_of_precisions(ranked, ranked.false_positives - ranked.negatives, mixed)
    return float(ratio(precisions.sum(), ranked.positives.sum()))


def average_precision_bounds(histogram: Counts) -> tuple[float, float]:
    r"""Returns the lowest and highest average precision that scores with this histogram can have.

    .. math::
        low = \frac{1}{P} \sum_b \sum_{i=1}^{p_b} \frac{P_{>b} + i}{P_{>b} + i + N_{\ge b}}, \qquad
        high = \frac{1}{P} \sum_b p_b \frac{P_{\ge b}}{P_{\ge b} + N_{>b}}

    p_b of the P positives are in bin b, P_{>b} in the bins above it, P_{\ge b} in both; n and N count negatives. Low:
    the negatives of a bin precede its positives (an integral takes the place of the inner sum). High: they come last.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.

    Returns: (low, high), within 1e-12 of [0, 1]; both NaN without positives.
    Raises: as `average_precision`.
    References: Su et al., A Relationship between the Average Precision and the Area Under the ROC Curve, ICTIR 2015.

    >>> low, high = average_precision_bounds(score_histogram(jnp.array([3.0, 0.001, 0.002]), jnp.array([1, 0, 1])))
    >>> round(low, 3), round(high, 3)  # (1 + 2/3) / 2 and (1 + 1) / 2
    (0.833, 1.0)
    """
    ranked = _ranked_counts(histogram)
    low = _sum_of_precisions(ranked, ranked.false_positives, np.zeros_like(ranked.negatives))
    best = ranked.true_positives + ranked.false_positives - ranked.negatives
    high = ranked.positives * ranked.true_positives / np.maximum(best, 1)
    # Not clipped to [0, 1]: the exact value of a perfect ranking may be computed as 1 + 2e-16.
    low, high = (float(ratio(precisions.sum(), ranked.positives.sum())) for precisions in (low, high))
    return low - ROUNDING, high + ROUNDING


def auroc(histogram: Counts) -> float:
    r"""Returns the area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    .. math:: AUROC = \frac{1}{P N} \sum_b n_b \left(P_{>b} + \tfrac{1}{2} p_b\right)

    Symbols: as in `average_precision_bounds`.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.

    Returns: AUROC in [0, 1], 0.5 for a random ranking; NaN without positives or without negatives.
    Raises: as `average_precision`.
    References: Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27 (2006).

    >>> auroc(score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0])))
    0.75
    """
    return _auroc_with_ties(histogram, 0.5)


def auroc_bounds(histogram: Counts) -> tuple[float, float]:
    r"""Returns the lowest and highest AUROC that scores with this histogram can have.

    .. math:: low = \frac{1}{P N} \sum_b n_b P_{>b}, \qquad high = \frac{1}{P N} \sum_b n_b (P_{>b} + p_b)

    Symbols: as in `average_precision_bounds`. Low: a positive wins against no negative of its bin. High: against all.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.

    Returns:
        (low, high), within 1e-12 of [0, 1], `auroc` in the middle; both NaN without positives or without negatives.

    Raises: as `average_precision`.
    References: Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27 (2006).

    >>> bounds = auroc_bounds(score_histogram(jnp.array([3.0, 0.001, 0.002]), jnp.array([1, 0, 1])))
    >>> print([round(bound, 3) for bound in bounds])
    [0.5, 1.0]
    """
    return _auroc_with_ties(histogram, 0.0) - ROUNDING, _auroc_with_ties(histogram, 1.0) + ROUNDING


def fpr_at_tpr(histogram: Counts, tpr: float = 0.95) -> float:
    r"""Returns the share of negatives above the highest threshold that a share `tpr` of the positives passes.

    .. math:: FPR = FP(τ) / N, \qquad τ = \max\{τ : TP(τ) \ge tpr \cdot P\}

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.
        tpr: required true positive rate, in (0, 1]; 0.95 is FPR95 of the obstacle literature.

    Returns: FPR in [0, 1], smaller is better; NaN without positives or without negatives.
    Raises: as `average_precision`, or `tpr` is out of range.
    References: Pinggera et al., Lost and Found, arXiv 1609.04653.

    >>> fpr_at_tpr(score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0])))
    0.5
    """
    return _fpr_at_tpr(histogram, tpr)[1]


def fpr_at_tpr_bounds(histogram: Counts, tpr: float = 0.95) -> tuple[float, float]:
    r"""Returns the lowest and highest `fpr_at_tpr` that scores with this histogram can have.

    .. math:: low = N_{>b} / N, \qquad high = N_{\ge b} / N, \qquad b = \max\{b : P_{\ge b} \ge tpr \cdot P\}

    Symbols: as in `average_precision_bounds`. Low: no negative of bin b passes. High: all of them do.

    Args:
        histogram, tpr: as in `fpr_at_tpr`.

    Returns: (low, high), within 1e-12 of [0, 1]; both NaN without positives or without negatives.
    Raises: as `fpr_at_tpr`.
    References: Pinggera et al., Lost and Found, arXiv 1609.04653.

    >>> histogram = score_histogram(jnp.array([3.0, 0.001, 0.002, -1.0]), jnp.array([0, 0, 1, 0]))
    >>> print([round(bound, 3) for bound in fpr_at_tpr_bounds(histogram)])
    [0.333, 0.667]
    """
    low, _, high = _fpr_at_tpr(histogram, tpr)
    return low - ROUNDING, high + ROUNDING


def best_f1(histogram: Counts) -> BestF1:
    r"""Returns the best F1 that one threshold on the logit can reach, and that threshold.

    .. math:: F_1(τ) = \frac{2\,TP(τ)}{P + TP(τ) + FP(τ)}, \qquad TP(τ) = \#\{\text{positives with } z \ge τ\}

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram` (equal bins on [-16, 16]); τ is a lower edge.

    Returns: (f1, threshold_logit): the highest threshold with this F1 (-inf: all pixels); both NaN without positives.
    Raises: as `average_precision`.
    References: van Rijsbergen, Information Retrieval, 2nd edition, Butterworths 1979.

    >>> best_f1(score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0])))
    BestF1(f1=0.8, threshold_logit=1.0)
    """
    ranked = _ranked_counts(histogram)
    if not ranked.positives.any():
        return BestF1(float("nan"), float("nan"))
    f1 = _f1(ranked, ranked.false_positives)
    # Bins are in order of falling scores: the first maximum has the highest threshold.
    best = int(np.argmax(f1))
    return BestF1(float(f1[best]), float(bin_thresholds(len(f1))[best]))


def best_f1_bounds(histogram: Counts) -> tuple[float, float]:
    r"""Returns the lowest and highest best F1 over all thresholds that scores with this histogram can have.

    .. math::
        low = \max_b \frac{2 P_{\ge b}}{P + P_{\ge b} + N_{\ge b}}, \qquad
        high = \max_b \frac{2 P_{\ge b}}{P + P_{\ge b} + N_{>b}}

    Symbols: as in `average_precision_bounds`. Low: `best_f1`. High: the positives of a bin precede its negatives.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.

    Returns: (low, high), within 1e-12 of [0, 1]; both NaN without positives.
    Raises: as `average_precision`.
    References: van Rijsbergen, Information Retrieval, 2nd edition, Butterworths 1979.

    >>> bounds = best_f1_bounds(score_histogram(jnp.array([3.0, 0.001, 0.002]), jnp.array([1, 0, 1])))
    >>> print([round(bound, 3) for bound in bounds])  # 2 · 2 / (2 + 3) and 1
    [0.8, 1.0]
    """
    ranked = _ranked_counts(histogram)
    if not ranked.positives.any():
        return float("nan"), float("nan")
    low, high = _f1(ranked, ranked.false_positives), _f1(ranked, ranked.false_positives - ranked.negatives)
    return float(low.max()) - ROUNDING, float(high.max()) + ROUNDING


def threshold_at_precision(histogram: Counts, precision: float) -> ThresholdAtPrecision:
    r"""Returns the threshold of highest recall that reaches `precision`; of equal ones, the highest.

    .. math::
        R = \max \{TP(τ) : TP(τ) \ge precision \cdot (TP(τ) + FP(τ)) > 0\}, \qquad \max \{τ : TP(τ) = R\}

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram` (equal bins on [-16, 16]); τ is a lower edge.
        precision: required precision, in (0, 1].

    Returns:
        (threshold_logit, precision, recall). If no threshold reaches the precision, it is NaN, followed by the highest
        precision and its recall. All NaN without positives.

    Raises: as `average_precision`, or `precision` is not in (0, 1].
    References: van Rijsbergen, Information Retrieval, 2nd edition, Butterworths 1979.

    >>> threshold_at_precision(score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0])), 0.6)
    ThresholdAtPrecision(threshold_logit=1.0, precision=0.666..., recall=1.0)
    """
    if not 0 < precision <= 1:
        raise ValueError(f"precision must be above 0 and at most 1; got {precision:g}")
    ranked = _ranked_counts(histogram)
    if not ranked.positives.any():
        return ThresholdAtPrecision(float("nan"), float("nan"), float("nan"))
    found, positive = ranked.true_positives, ranked.true_positives + ranked.false_positives
    precisions = found / np.maximum(positive, 1)
    # Reduced by a rounding: 0.7 · 10 is 7.000000000000001 in floating point, and 7 of 10 are enough.
    (reached,) = np.nonzero((positive > 0) & (found >= precision * positive * (1 - ROUNDING)))
    last = int(reached[-1]) if reached.size else int(np.argmax(precisions))
    # The first bin with as many true positives has the highest threshold and no more false positives.
    last = int(np.searchsorted(found, found[last]))
    threshold = float(bin_thresholds(len(found))[last]) if reached.size else float("nan")
    return ThresholdAtPrecision(threshold, float(precisions[last]), float(found[last] / ranked.positives.sum()))


def precision_recall_curve(histogram: Counts) -> dict[str, np.ndarray]:
    r"""Returns the precision-recall curve, one point per bin that is not empty, by falling threshold.

    .. math:: precision_τ = \frac{TP(τ)}{TP(τ) + FP(τ)}, \qquad recall_τ = \frac{TP(τ)}{P}

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram` (equal bins on [-16, 16]).

    Returns:
        float64 arrays: `threshold_logit` (falling, at most to -inf), `precision`, `recall` (NaN without positives).

    Raises: as `average_precision`.
    References: Davis and Goadrich, The relationship between Precision-Recall and ROC curves, ICML 2006.

    >>> curve = precision_recall_curve(score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0])))
    >>> print(curve["threshold_logit"], curve["precision"].round(3), curve["recall"])
    [3. 2. 1. 0.] [1.    0.5   0.667 0.5  ] [0.5 0.5 1.  1. ]
    """
    ranked = _ranked_counts(histogram)
    (at,) = np.nonzero(ranked.positives + ranked.negatives)
    found = ranked.true_positives[at]
    return {
        "threshold_logit": bin_thresholds(ranked.positives.size)[at],
        "precision": found / (found + ranked.false_positives[at]),
        "recall": ratio(found, ranked.positives.sum()),
    }


class _Ranked(NamedTuple):
    """Counts in float64 (exact to 2^53) by falling score: in each bin, and from its lower edge on."""

    positives: np.ndarray
    negatives: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray


def _ranked_counts(histogram: ArrayLike) -> _Ranked:
    negatives, positives = host_histogram(histogram, "negatives and positives", _CAUSE)[:, ::-1]
    return _Ranked(positives, negatives, np.cumsum(positives), np.cumsum(negatives))


def bin_thresholds(num_bins: int) -> np.ndarray:
    """Returns the lower edges of equal bins on [-16, 16], falling; -inf for the last, which has no lower edge."""
    edges = MAX_LOGIT - 2 * MAX_LOGIT * np.arange(1, num_bins + 1) / num_bins
    return np.where(np.arange(num_bins) == num_bins - 1, -np.inf, edges)


def _auroc_with_ties(histogram: ArrayLike, win: float) -> float:
    """Returns the AUROC if a positive has this share of wins against a negative of its own bin."""
    ranked = _ranked_counts(histogram)
    above = ranked.true_positives - ranked.positives
    wins = (ranked.negatives * (above + win * ranked.positives)).sum()
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
    last = int(np.searchsorted(ranked.true_positives, needed))
    positives, negatives = ranked.positives[last], ranked.negatives[last]
    mixed = (needed - (ranked.true_positives[last] - positives)) / (positives + 1)
    passing = ranked.false_positives[last] - negatives + np.array([0.0, mixed, 1.0]) * negatives
    low, estimate, high = (passing / ranked.negatives.sum()).tolist()
    return low, estimate, high


def _f1(ranked: _Ranked, false_positives: np.ndarray) -> np.ndarray:
    return 2 * ranked.true_positives / (ranked.positives.sum() + ranked.true_positives + false_positives)


def _sum_of_precisions(ranked: _Ranked, before: np.ndarray, between: np.ndarray) -> np.ndarray:
    """Sums f(i) = (A + i) / (A + i + before + between · i) over the positives i = 1..p of each bin.

    A is the number of positives above. For p > 1 the sum is the integral of f over [1/2, p + 1/2], whose cost does not
    depend on p. For `between` = 0, f is concave, so the integral is never above the sum: a bound stays a bound.
    """
    above, inside = ranked.true_positives - ranked.positives, ranked.positives
    rate = 1 + between
    single = (above + 1) / (above + before + rate)
    # f(s) = 1/rate + (A - (A + before)/rate) / (A + before + rate s)
    logs = np.log1p(rate * inside / (above + before + rate / 2))
    integral = inside / rate + (above - (above + before) / rate) / rate * logs
    return np.where(inside == 1, single, integral)
