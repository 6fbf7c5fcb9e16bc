"""How well a score ranks rare positives above negatives: average precision, AUROC, FPR at a TPR, from a histogram.

Exact ranking needs every score of the data set in memory, sorted. A histogram adds over batches and devices and has a
constant size. Its bins are equal in the *logit*: the positives of a rare class crowd into probabilities near 0, where
equal bins of the probability cannot tell them apart (errors of 8e-3 in average precision, here 2e-4).

What a histogram cannot tell is the order inside a bin. The estimates take positives and negatives there as evenly
mixed, which for equal scores means: ties broken at random. scikit-learn takes equal scores as one step of the curve. So
where many scores are equal (rounded to bfloat16, clamped at ±16) the two differ, by as much as the certified `_bounds`
are apart: these hold scikit-learn's value always, and are what to look at before an estimate is believed.
"""

from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer

from segjax import checks
from segjax.metrics.counts import count, host_counts

NUM_BINS = 4096
MAX_LOGIT = 16.0
_BINS_PER_UNIT = NUM_BINS / (2 * MAX_LOGIT)
# A bound must hold after the rounding of float64, here and in whatever computes the exact value it is compared with.
ROUNDING = 1e-12

Histogram = Integer[jax.Array | np.ndarray, "2 bins"]


def score_histogram(
    logits: Float[ArrayLike, "*pixels"],
    targets: Integer[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"],
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    axis_name: Hashable | None = None,
) -> Int[Array, "2 4096"]:
    r"""Histograms of the logits of the negatives and of the positives, over all devices.

    .. math:: H_{tb} = \#\{\text{kept pixels with target } t \text{ and } \lfloor 128\,(z + 16) \rfloor = b\}

    with 4096 equal bins b of the logit z on [-16, 16]; what lies outside (p < 1e-7 or > 1 - 1e-7) is in the first or
    last bin and not told apart: `average_precision_bounds` widens where that matters. Histograms add: over batches with
    `+`, in int64 on the host. To rank a softmax's class c, pass its log odds: z_c - logsumexp of the other logits.

    Args:
        logits: z, any shape: log p/(1-p) of the score. (`jax.scipy.special.logit` turns probabilities into logits.)
        targets: boolean, or integers 0 and 1, the same shape.
        where: boolean of that shape or broadcastable to it; False: no such pixel, whatever its logit or target.
        axis_name: the mapped device axis, or None under `jit`.

    Returns:
        int32 `[2, 4096]`: row 0 the negatives, row 1 the positives, bins by rising logit. If `where` keeps a NaN logit
        or a target that is neither 0 nor 1, every entry is -2^31 (integers have no NaN), which the scores refuse.

    Raises:
        TypeError: logits are not floating, targets neither boolean nor integers, `where` not boolean.
        ValueError: shapes do not fit.

    References:
        Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27 (2006).
        Su et al., A Relationship between the Average Precision and the Area Under the ROC Curve, ICTIR 2015.

    >>> import jax.numpy as jnp
    >>> histogram = score_histogram(jnp.array([-20.0, 0.0, 3.0]), jnp.array([0, 0, 1]))
    >>> print(histogram.shape, histogram.sum(axis=1), histogram[0, 0], histogram[0, 2048], histogram[1, 2432])
    (2, 4096) [2 1] 1 1 1
    """
    logits = checks.floating("logits", logits)
    targets = jnp.asarray(targets)
    targets = checks.integers("targets", targets.astype(jnp.int32) if targets.dtype == jnp.bool_ else targets)
    checks.same_shape("targets", targets.shape, "logits", logits.shape)
    keep = None if where is None else checks.mask("where", where, logits.shape)
    # Scaled by a power of two before the floor, and shifted as integers: no logit is rounded into its neighbour's bin.
    bins = jnp.floor(jnp.clip(logits, -MAX_LOGIT, MAX_LOGIT) * _BINS_PER_UNIT).astype(jnp.int32) + NUM_BINS // 2
    valid = ~jnp.isnan(logits) & ((targets == 0) | (targets == 1))
    places = targets.astype(jnp.int32) * NUM_BINS + jnp.minimum(bins, NUM_BINS - 1)
    return count(places, valid, keep, 2 * NUM_BINS, axis_name).reshape(2, NUM_BINS)


def average_precision(histogram: Histogram) -> float:
    r"""Average precision: the area under the precision-recall curve, without interpolation between its points.

    .. math:: AP = \frac{1}{P} \sum_{i=1}^{P} \frac{i}{\text{rank}_i}

    over the P positives by falling score, rank counting positives and negatives alike. Inside a bin, whose order is not
    known, positives and negatives are taken as evenly mixed and the curve is integrated.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.

    Returns:
        AP in [0, 1]; NaN without positives. A scorer without skill gets the share of positives.

    Raises:
        TypeError: the histogram is traced, or not integers.
        ValueError: it is not `[2, bins]`, or a count is negative (see `score_histogram`).

    References:
        Su et al., A Relationship between the Average Precision and the Area Under the ROC Curve, ICTIR 2015.

    >>> import jax.numpy as jnp
    >>> histogram = score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0]))
    >>> round(average_precision(histogram), 3)  # (1/1 + 2/3) / 2
    0.833
    """
    ranked = ranked_counts(histogram)
    # The i-th of p positives has about n i / (p + 1) of the bin's n negatives before it.
    mixed = ranked.negatives / (ranked.positives + 1)
    return _mean_over_positives(ranked, _sum_of_precisions(ranked, ranked.negatives_above, mixed))


def average_precision_bounds(histogram: Histogram) -> tuple[float, float]:
    r"""The lowest and highest average precision that any scores with this histogram can have.

    .. math::
        low = \frac{1}{P} \sum_b \sum_{i=1}^{p_b} \frac{P_{>b} + i}{P_{>b} + i + N_{\ge b}}, \qquad
        high = \frac{1}{P} \sum_b p_b \frac{P_{\ge b}}{P_{\ge b} + N_{>b}}

    with p_b of the P positives in bin b, P_{>b} in the bins above it and P_{\ge b} the sum of both; N_{>b}, N_{\ge b}
    count negatives. (For p_b > 1 the inner sum is taken as an integral, which is never above it.) Low: in every bin all
    negatives come before the positives. High: the positives come first, and tied: as a tie they all get the precision
    after the last of them, and no order gives any of them more.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.

    Returns:
        (low, high), within 1e-12 of [0, 1]; both NaN without positives. The exact value, as scikit-learn computes it
        from the scores, lies between them, always; they are widened by 1e-12 for its rounding and ours.

    Raises:
        TypeError: the histogram is traced, or not integers.
        ValueError: it is not `[2, bins]`, or a count is negative (see `score_histogram`).

    References:
        Su et al., A Relationship between the Average Precision and the Area Under the ROC Curve, ICTIR 2015.

    >>> import jax.numpy as jnp
    >>> histogram = score_histogram(jnp.array([3.0, 0.001, 0.002]), jnp.array([1, 0, 1]))
    >>> low, high = average_precision_bounds(histogram)
    >>> round(low, 3), round(high, 3)  # (1 + 2/3) / 2 and (1 + 1) / 2
    (0.833, 1.0)
    """
    ranked = ranked_counts(histogram)
    low = _sum_of_precisions(ranked, ranked.negatives_above + ranked.negatives, np.zeros_like(ranked.negatives))
    hits = ranked.positives_above + ranked.positives
    high = ranked.positives * hits / np.maximum(hits + ranked.negatives_above, 1)
    # Not clipped to [0, 1]: a perfect ranking may be computed as 1 + 2e-16, and the interval holds it.
    return _mean_over_positives(ranked, low) - ROUNDING, _mean_over_positives(ranked, high) + ROUNDING


def auroc(histogram: Histogram) -> float:
    r"""Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    .. math:: AUROC = \frac{1}{P N} \sum_b n_b \left(P_{>b} + \tfrac{1}{2} p_b\right)

    with p_b and n_b the positives and negatives of bin b, P and N their sums.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.

    Returns:
        AUROC in [0, 1], 0.5 without skill; NaN without positives or without negatives.

    Raises:
        TypeError: the histogram is traced, or not integers.
        ValueError: it is not `[2, bins]`, or a count is negative (see `score_histogram`).

    References:
        Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27 (2006).

    >>> import jax.numpy as jnp
    >>> auroc(score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0])))
    0.75
    """
    ranked = ranked_counts(histogram)
    pairs = ranked.positives.sum() * ranked.negatives.sum()
    wins = (ranked.negatives * (ranked.positives_above + ranked.positives / 2)).sum()
    return float(wins / pairs) if pairs else float("nan")


def fpr_at_tpr(histogram: Histogram, tpr: float = 0.95) -> float:
    r"""The share of negatives that pass the highest threshold at which a share `tpr` of the positives passes.

    .. math:: FPR = FP(τ) / N, \qquad τ = \max\{τ : TP(τ) \ge tpr \cdot P\}

    Inside a bin positives and negatives are taken as evenly mixed. FPR95, the obstacle literature's, is `tpr=0.95`.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.
        tpr: the true positive rate asked for, in (0, 1].

    Returns:
        FPR in [0, 1], smaller is better; NaN without positives or without negatives.

    Raises:
        TypeError: the histogram is traced, or not integers.
        ValueError: it is not `[2, bins]`, a count is negative (see `score_histogram`), or `tpr` is out of range.

    References:
        Pinggera et al., Lost and Found, arXiv 1609.04653.

    >>> import jax.numpy as jnp
    >>> fpr_at_tpr(score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0])))
    0.5
    """
    ranked = ranked_counts(histogram)
    reached = _reached(ranked, tpr)
    if reached is None:
        return float("nan")
    last, needed = reached
    share = (needed - ranked.positives_above[last]) / (ranked.positives[last] + 1)
    return float((ranked.negatives_above[last] + share * ranked.negatives[last]) / ranked.negatives.sum())


def auroc_bounds(histogram: Histogram) -> tuple[float, float]:
    r"""The lowest and highest AUROC that any scores with this histogram can have.

    .. math:: low = \frac{1}{P N} \sum_b n_b P_{>b}, \qquad high = \frac{1}{P N} \sum_b n_b P_{\ge b}

    with n_b of the N negatives in bin b; of the P positives P_{>b} are in the bins above it, P_{\ge b} there or in it.
    Low: a positive wins against no negative of its own bin. High: against all of them.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.

    Returns:
        (low, high), within 1e-12 of [0, 1] and with `auroc` in the middle; both NaN without positives or without
        negatives. The exact value, as scikit-learn computes it from the scores, lies between them, always.

    Raises:
        TypeError: the histogram is traced, or not integers.
        ValueError: it is not `[2, bins]`, or a count is negative (see `score_histogram`).

    References:
        Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27 (2006).

    >>> import jax.numpy as jnp
    >>> histogram = score_histogram(jnp.array([3.0, 0.001, 0.002]), jnp.array([1, 0, 1]))
    >>> low, high = auroc_bounds(histogram)
    >>> round(low, 3), round(high, 3)
    (0.5, 1.0)
    """
    ranked = ranked_counts(histogram)
    pairs = ranked.positives.sum() * ranked.negatives.sum()
    if not pairs:
        return float("nan"), float("nan")
    low = (ranked.negatives * ranked.positives_above).sum() / pairs
    high = (ranked.negatives * (ranked.positives_above + ranked.positives)).sum() / pairs
    return float(low) - ROUNDING, float(high) + ROUNDING


def fpr_at_tpr_bounds(histogram: Histogram, tpr: float = 0.95) -> tuple[float, float]:
    r"""The lowest and highest `fpr_at_tpr` that any scores with this histogram can have.

    .. math:: low = N_{>b} / N, \qquad high = N_{\ge b} / N, \qquad b = \max\{b : P_{\ge b} \ge tpr \cdot P\}

    with N_{>b} of the N negatives in the bins above bin b, N_{\ge b} there or in it, and P_{\ge b} of the P positives.
    Low: no negative of the bin in which the TPR is reached passes. High: all of them do.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram`.
        tpr: the true positive rate asked for, in (0, 1].

    Returns:
        (low, high), within 1e-12 of [0, 1]; both NaN without positives or without negatives. The exact value, as
        scikit-learn computes it from the scores, lies between them, always.

    Raises:
        TypeError: the histogram is traced, or not integers.
        ValueError: it is not `[2, bins]`, a count is negative (see `score_histogram`), or `tpr` is out of range.

    References:
        Pinggera et al., Lost and Found, arXiv 1609.04653.

    >>> import jax.numpy as jnp
    >>> histogram = score_histogram(jnp.array([3.0, 0.001, 0.002, -1.0]), jnp.array([0, 0, 1, 0]))
    >>> low, high = fpr_at_tpr_bounds(histogram)
    >>> round(low, 3), round(high, 3)
    (0.333, 0.667)
    """
    ranked = ranked_counts(histogram)
    reached = _reached(ranked, tpr)
    if reached is None:
        return float("nan"), float("nan")
    last, _ = reached
    above, total = ranked.negatives_above[last], ranked.negatives.sum()
    return float(above / total) - ROUNDING, float((above + ranked.negatives[last]) / total) + ROUNDING


class Ranked(NamedTuple):
    """Counts in float64 (exact to 2^53) by falling score: in the bin, and in all bins above it."""

    positives: np.ndarray
    negatives: np.ndarray
    positives_above: np.ndarray
    negatives_above: np.ndarray


def ranked_counts(histogram: ArrayLike) -> Ranked:
    """Checked, and in the order of falling scores."""
    counts = host_counts(
        "histogram", histogram, "a NaN logit or a target other than 0 and 1 was counted, in a pixel that `where` keeps"
    )
    if counts.ndim != 2 or counts.shape[0] != 2:
        raise ValueError(f"histogram must be [2, bins], negatives and positives; got shape {counts.shape}")
    negatives, positives = counts[:, ::-1].astype(np.float64)
    return Ranked(positives, negatives, np.cumsum(positives) - positives, np.cumsum(negatives) - negatives)


def _reached(ranked: Ranked, tpr: float) -> tuple[int, float] | None:
    """The bin in which the true positive rate is reached, and the number of positives that it takes."""
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr must be above 0 and at most 1; got {tpr:g}")
    if not ranked.positives.any() or not ranked.negatives.any():
        return None
    # Less a rounding: 0.7 · 10 is 7.000000000000001 in floating point, and 7 positives are enough.
    needed = max(float(np.ceil(tpr * ranked.positives.sum() * (1 - ROUNDING))), 1.0)
    return int(np.searchsorted(ranked.positives_above + ranked.positives, needed)), needed


def _sum_of_precisions(ranked: Ranked, before: np.ndarray, between: np.ndarray) -> np.ndarray:
    """Per bin, Σ over its positives i = 1..p of the precision f(i) = (A + i) / (A + i + before + between · i).

    A is the number of positives above. Beyond p = 1 the sum is taken as the integral of f over [1/2, p + 1/2], which
    has a closed form and no cost in p. For `between` = 0, f is concave and the integral is never above the sum: a lower
    bound stays one.
    """
    above, inside = ranked.positives_above, ranked.positives
    rate = 1 + between
    alone = (above + 1) / (above + before + rate)
    # f(s) = 1/rate + (A - (A + before)/rate) / (A + before + rate s)
    grown = np.log1p(rate * inside / (above + before + rate / 2))
    integral = inside / rate + (above - (above + before) / rate) / rate * grown
    return np.where(inside == 1, alone, integral)


def _mean_over_positives(ranked: Ranked, precisions: np.ndarray) -> float:
    total = ranked.positives.sum()
    return float(precisions.sum() / total) if total else float("nan")
