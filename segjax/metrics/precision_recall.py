"""The precision-recall curve of a histogram, and the log odds by which a softmax's classes are ranked one by one."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from segjax import checks
from segjax.metrics.ranking import MAX_LOGIT, Histogram, ranked_counts


def class_log_odds(logits: Float[ArrayLike, "*pixels classes"]) -> Float[Array, "*pixels classes"]:
    r"""The log odds of every class against all others: what `score_histogram` takes of a softmax.

    .. math:: x_c = \log \frac{p_c}{1 - p_c} = z_c - \log \sum_{j \ne c} e^{z_j}

    From the logits and not from p, which near 1 has no digits left for 1 - p.

    Args:
        logits: z, `[..., C]`, class last, C ≥ 2; -inf rules a class out.

    Returns:
        `[..., C]`, at least float32; ±inf where a class or all others are ruled out or beyond the range of exp, NaN
        where a logit is NaN. For C = 2 it is ±(z_1 - z_0), to rounding.

    Raises:
        TypeError: logits are not floating.
        ValueError: there are fewer than 2 classes.

    References:
        Bishop, Pattern Recognition and Machine Learning, Springer 2006, section 4.2.

    >>> import jax.numpy as jnp
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
    # Taken off the whole sum, the largest would leave rounding; of the others each leaves at least the largest's 1.
    without_top = jnp.sum(jnp.where(is_top, 0, powers), axis=-1, keepdims=True)
    others = jnp.where(is_top, without_top, 1 + without_top - powers)
    return shifted - jnp.log(others)


def precision_recall_curve(histogram: Histogram) -> dict[str, np.ndarray]:
    r"""The precision-recall curve, a point for every edge of a bin at which it moves, by falling threshold.

    .. math::
        precision_τ = \frac{TP(τ)}{TP(τ) + FP(τ)}, \qquad recall_τ = \frac{TP(τ)}{P}, \qquad
        TP(τ) = \#\{\text{positives with } z \ge τ\}

    At the edges both are known exactly: each point is one of the scores' own curve, though not each of that is here.
    `average_precision` is the area under it, integrated within the bins too.

    Args:
        histogram: integers `[2, bins]`, sums of `score_histogram` (equal bins on [-16, 16]).

    Returns:
        float64 arrays of one length, at most the number of bins: `threshold_logit`, falling, the last one -inf where
        the first bin is not empty (it holds every logit below -16); `precision`; `recall`, rising to 1, NaN without
        positives. Empty if nothing was counted.

    Raises:
        TypeError: the histogram is traced, or not integers.
        ValueError: it is not `[2, bins]`, or a count is negative (see `score_histogram`).

    References:
        Davis and Goadrich, The relationship between Precision-Recall and ROC curves, ICML 2006.

    >>> import jax.numpy as jnp
    >>> from segjax.metrics import score_histogram
    >>> curve = precision_recall_curve(score_histogram(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([1, 0, 1, 0])))
    >>> print(curve["threshold_logit"], curve["precision"].round(3), curve["recall"])
    [3. 2. 1. 0.] [1.    0.5   0.667 0.5  ] [0.5 0.5 1.  1. ]
    """
    ranked = ranked_counts(histogram)
    (at,) = np.nonzero(ranked.positives + ranked.negatives)
    found, wrong = np.cumsum(ranked.positives)[at], np.cumsum(ranked.negatives)[at]
    num_bins, total = ranked.positives.size, ranked.positives.sum()
    edges = MAX_LOGIT - 2 * MAX_LOGIT * (at + 1) / num_bins
    return {
        "threshold_logit": np.where(at == num_bins - 1, -np.inf, edges),
        "precision": found / (found + wrong),
        "recall": found / total if total else np.full(at.shape, np.nan),
    }
