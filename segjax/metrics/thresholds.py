"""Where to cut a score: the threshold of the best F1, and that of a precision, from the histogram of `ranking`."""

from typing import NamedTuple

import numpy as np

from segjax.metrics.ranking import MAX_LOGIT, ROUNDING, Histogram, Ranked, ranked_counts


class BestF1(NamedTuple):
    """The best F1 of all thresholds at the bins' edges, and the logit from which on a pixel is positive there."""

    f1: float
    threshold_logit: float


def best_f1(histogram: Histogram) -> BestF1:
    r"""The best F1 that one threshold on the logit can reach, and that threshold.

    .. math:: F_1(τ) = \frac{2\,TP(τ)}{P + TP(τ) + FP(τ)}, \qquad TP(τ) = \#\{\text{positives with } z \ge τ\}

    over the thresholds τ at the lower edges of the bins, where TP and FP are known exactly: the result is the F1 of the
    scores at that threshold, and so never above the best of all thresholds, most of which lie inside a bin.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram` (equal bins on [-16, 16]).

    Returns:
        (f1, threshold_logit): F1 in (0, 1], and the highest threshold that reaches it: pixels with logit ≥
        `threshold_logit` are positive; -inf if all are (the first bin holds every logit below -16). Both NaN without
        positives.

    Raises:
        TypeError: the histogram is traced, or not integers.
        ValueError: it is not `[2, bins]`, or a count is negative (see `score_histogram`).

    References:
        van Rijsbergen, Information Retrieval, 2nd edition, Butterworths 1979.

    >>> import jax.numpy as jnp
    >>> from segjax.metrics import score_histogram
    >>> best_f1(score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0])))
    BestF1(f1=0.8, threshold_logit=1.0)
    """
    ranked = ranked_counts(histogram)
    if not ranked.positives.any():
        return BestF1(float("nan"), float("nan"))
    f1 = _f1(ranked, ranked.negatives_above + ranked.negatives)
    # By falling score, so that the first of equals has the highest threshold.
    best = int(np.argmax(f1))
    num_bins = len(f1)
    edge = MAX_LOGIT - 2 * MAX_LOGIT * (best + 1) / num_bins
    return BestF1(float(f1[best]), edge if best < num_bins - 1 else float("-inf"))


def best_f1_bounds(histogram: Histogram) -> tuple[float, float]:
    r"""The lowest and highest best F1 over all thresholds that any scores with this histogram can have.

    .. math::
        low = \max_b \frac{2 P_{\ge b}}{P + P_{\ge b} + N_{\ge b}}, \qquad
        high = \max_b \frac{2 P_{\ge b}}{P + P_{\ge b} + N_{>b}}

    with P_{\ge b} of the P positives and N_{\ge b} negatives in bin b and above it, N_{>b} negatives above it. Low:
    `best_f1`, at the edge of a bin. High: inside a bin, all of its positives come before its negatives.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.

    Returns:
        (low, high), within 1e-12 of [0, 1]; both NaN without positives. The exact value, the maximum over
        scikit-learn's `precision_recall_curve` of the scores, lies between them, always.

    Raises:
        TypeError: the histogram is traced, or not integers.
        ValueError: it is not `[2, bins]`, or a count is negative (see `score_histogram`).

    References:
        van Rijsbergen, Information Retrieval, 2nd edition, Butterworths 1979.

    >>> import jax.numpy as jnp
    >>> from segjax.metrics import score_histogram
    >>> low, high = best_f1_bounds(score_histogram(jnp.array([3.0, 0.001, 0.002]), jnp.array([1, 0, 1])))
    >>> round(low, 3), round(high, 3)  # 2 · 2 / (2 + 3) and 1
    (0.8, 1.0)
    """
    ranked = ranked_counts(histogram)
    if not ranked.positives.any():
        return float("nan"), float("nan")
    low = _f1(ranked, ranked.negatives_above + ranked.negatives).max()
    return float(low) - ROUNDING, float(_f1(ranked, ranked.negatives_above).max()) + ROUNDING


class ThresholdAtPrecision(NamedTuple):
    """The logit from which on a pixel is positive, and the precision and recall of these pixels."""

    threshold_logit: float
    precision: float
    recall: float


def threshold_at_precision(histogram: Histogram, precision: float) -> ThresholdAtPrecision:
    r"""The threshold that finds most of the positives among those at which a precision is reached.

    .. math:: \min \{τ : TP(τ) \ge precision \cdot (TP(τ) + FP(τ)) > 0\}

    over the thresholds τ at the lower edges of the bins, where both counts are known exactly: on the pixels that were
    counted the precision is reached, not estimated. On others it may be missed.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram` (equal bins on [-16, 16]).
        precision: the precision asked for, in (0, 1].

    Returns:
        (threshold_logit, precision, recall): pixels with logit ≥ `threshold_logit` are positive, -inf: all are. Where
        no threshold reaches it, a NaN threshold and the highest precision that one does, with its recall. All NaN
        without positives.

    Raises:
        TypeError: the histogram is traced, or not integers.
        ValueError: it is not `[2, bins]`, a count is negative (see `score_histogram`), or `precision` is not in (0, 1].

    References:
        van Rijsbergen, Information Retrieval, 2nd edition, Butterworths 1979.

    >>> import jax.numpy as jnp
    >>> from segjax.metrics import score_histogram
    >>> histogram = score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0]))
    >>> threshold_at_precision(histogram, 0.6)
    ThresholdAtPrecision(threshold_logit=1.0, precision=0.666..., recall=1.0)
    """
    if not 0 < precision <= 1:
        raise ValueError(f"precision must be above 0 and at most 1; got {precision:g}")
    ranked = ranked_counts(histogram)
    if not ranked.positives.any():
        return ThresholdAtPrecision(float("nan"), float("nan"), float("nan"))
    found = ranked.positives_above + ranked.positives
    positive = found + ranked.negatives_above + ranked.negatives
    reached = found / np.maximum(positive, 1)
    # Less a rounding: 0.7 · 10 is 7.000000000000001 in floating point, and 7 of 10 are enough.
    enough = np.flatnonzero((positive > 0) & (found >= precision * positive * (1 - ROUNDING)))
    # By falling score. Of thresholds that call the same pixels positive, the highest.
    last = int(enough[-1]) if enough.size else int(np.argmax(reached))
    last = int(np.searchsorted(positive, positive[last]))
    edge = MAX_LOGIT - 2 * MAX_LOGIT * (last + 1) / len(found) if last < len(found) - 1 else float("-inf")
    recall = float(found[last] / ranked.positives.sum())
    return ThresholdAtPrecision(edge if enough.size else float("nan"), float(reached[last]), recall)


def _f1(ranked: Ranked, false_positives: np.ndarray) -> np.ndarray:
    """Per bin, F1 where its positives and all above are found, with so many false positives."""
    found = ranked.positives_above + ranked.positives
    return 2 * found / (ranked.positives.sum() + found + false_positives)
