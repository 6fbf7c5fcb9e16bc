"""Is a model unsure where it is wrong? Its uncertainty counted for right and wrong pixels, which adds, and scored.

Any uncertainty will do: those of `uncertainty.py`, or `segjax.losses.mc_variance`.
"""

from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer, Num, Real

from segjax import checks
from segjax.metrics.counts import count, host_counts, ratio

# Bounds must hold after the rounding of float64, here and in whatever computes the exact value.
_ROUNDING = 1e-12
_TABLE = 64
_HARMONIC = np.concatenate([[0.0], np.cumsum(1 / np.arange(1.0, _TABLE + 1))])

Histogram = Integer[jax.Array | np.ndarray, "2 bins"]


def patch_means(
    values: Num[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"],
    patch: int,
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
) -> tuple[Float[Array, "*images rows columns"], Bool[Array, "*images rows columns"]]:
    r"""Means over square patches that tile the image: PAvPU, as published, counts patches and not pixels.

    .. math:: \bar{v}_Q = \frac{1}{n_Q} \sum_{i \in Q,\, kept} v_i, \qquad n_Q = \#\{i \in Q : \text{kept}\}

    for each patch Q. A patch is accurate if most of its pixels are, uncertain if its mean uncertainty is above the
    threshold::

        uncertainty, kept = patch_means(entropy, 4, where=where)
        accuracy, _ = patch_means(prediction == labels, 4, where=where)
        uncertainty_histogram(uncertainty, accuracy > 0.5, maximum=..., where=kept)

    Args:
        values: `[..., H, W]`, numbers or booleans.
        patch: side of a patch in pixels, ≥ 1, static. Where it does not divide H or W, the last patches are smaller.
        where: boolean `[..., H, W]` or broadcastable to it; False: no such pixel.

    Returns:
        The means of the kept pixels of each patch, `[..., ceil(H / patch), ceil(W / patch)]`, at least float32, and
        which patches have a kept pixel; the mean of one that has none is 0.

    Raises:
        TypeError: `where` is not boolean.
        ValueError: shapes do not fit, or patch < 1.

    References:
        Mukhoti and Gal, Evaluating Bayesian Deep Learning Methods for Semantic Segmentation, arXiv 1811.12709.

    >>> import jax.numpy as jnp
    >>> means, kept = patch_means(jnp.array([[1.0, 3.0, 5.0], [2.0, 2.0, 7.0]]), 2)
    >>> print(means, kept)
    [[2. 6.]] [[ True  True]]
    """
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.float32)
    values = checks.floating("values", values)
    if values.ndim < 2:
        raise ValueError(f"values must be [..., height, width]; got shape {values.shape}")
    if patch < 1:
        raise ValueError(f"patch must be at least 1; got {patch}")
    keep = jnp.ones(values.shape, bool) if where is None else checks.mask("where", where, values.shape)
    sums = _patch_sums(jnp.where(keep, values, 0), patch)
    pixels = _patch_sums(keep.astype(values.dtype), patch)
    return sums / jnp.maximum(pixels, 1), pixels > 0


def uncertainty_histogram(
    uncertainty: Float[ArrayLike, "*pixels"],
    correct: Bool[ArrayLike, "*pixels"],
    *,
    maximum: Real[ArrayLike, ""],
    num_bins: int = 1024,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    axis_name: Hashable | None = None,
) -> Int[Array, "2 {num_bins}"]:
    r"""Histograms of the uncertainty of the wrong and of the right pixels, over all devices.

    .. math:: H_{tb} = \#\{\text{kept pixels, right if } t = 1, \text{ with } \lfloor B u / u_{max} \rfloor = b\}

    with B equal bins of the uncertainty u on [0, maximum]; what lies outside is in the first or the last. Histograms
    add: over batches with `+`, in int64 on the host. A rising function of u ranks as u does: if most pixels crowd near
    0, pass its square root.

    Args:
        uncertainty: u, any shape (of pixels, or of patches: see `patch_means`).
        correct: boolean, the same shape: the prediction is the label.
        maximum: the end of the last bin, above 0, the same for all batches: log C for entropies in nats. May be traced.
        num_bins: B ≥ 1, static.
        where: boolean of that shape or broadcastable to it; False: no such pixel, whatever its uncertainty.
        axis_name: the mapped device axis, or None under `jit`.

    Returns:
        int32 `[2, num_bins]`: row 0 the wrong pixels, row 1 the right ones. If `where` keeps a NaN (or a traced maximum
        is not above 0), every entry is -2^31 (integers have no NaN), which the scores refuse.

    Raises:
        TypeError: the uncertainty is not floating, `correct` or `where` not boolean.
        ValueError: shapes do not fit, num_bins < 1, or the maximum is not above 0 and finite.

    References:
        Mukhoti and Gal, Evaluating Bayesian Deep Learning Methods for Semantic Segmentation, arXiv 1811.12709.

    >>> import jax.numpy as jnp
    >>> u, correct = jnp.array([0.1, 0.2, 0.6, 0.9]), jnp.array([True, True, True, False])
    >>> print(uncertainty_histogram(u, correct, maximum=1.0, num_bins=4))
    [[0 0 0 1]
     [2 0 1 0]]
    """
    uncertainty = checks.floating("uncertainty", uncertainty)
    checks.same_shape("correct", jnp.shape(correct), "uncertainty", uncertainty.shape)
    correct = checks.mask("correct", correct, uncertainty.shape)
    keep = None if where is None else checks.mask("where", where, uncertainty.shape)
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1; got {num_bins}")
    top = checks.finite("maximum", maximum, uncertainty.dtype, above=0.0)
    bins = jnp.clip(jnp.floor(uncertainty * (num_bins / top)), 0, num_bins - 1).astype(jnp.int32)
    valid = ~jnp.isnan(uncertainty) & (top > 0) & jnp.isfinite(top)
    places = correct.astype(jnp.int32) * num_bins + bins
    return count(places, valid, keep, 2 * num_bins, axis_name).reshape(2, num_bins)


def accuracy_vs_uncertainty(
    histogram: Histogram, maximum: float | int, *, threshold: float | int | None = None
) -> dict[str, float | np.ndarray]:
    r"""Whether the certain is right and the wrong uncertain, for every threshold: PAvPU and its two conditionals.

    With n_ac the pixels accurate and certain (u below the threshold), n_au accurate and uncertain, n_ic and n_iu the
    inaccurate ones:

    .. math::
        p(acc | cert) = \frac{n_{ac}}{n_{ac} + n_{ic}}, \quad
        p(unc | inacc) = \frac{n_{iu}}{n_{ic} + n_{iu}}, \quad
        PAvPU = \frac{n_{ac} + n_{iu}}{n_{ac} + n_{au} + n_{ic} + n_{iu}}

    The paper's are of patches: count patches (`patch_means`) for its numbers.

    Args:
        histogram: integers `[2, bins]`, sums of `uncertainty_histogram`.
        maximum: the one that the histogram was counted with; it scales the thresholds.
        threshold: in [0, maximum]; the nearest edge of a bin is taken, where counts are exact. None: all edges.

    Returns:
        `threshold` (the edges), `accurate_given_certain`, `uncertain_given_inaccurate` and `pavpu`, in [0, 1], bigger
        is better: float64 `[bins + 1]`, or floats for one threshold. NaN where nothing is certain, wrong or counted.

    Raises:
        TypeError: the histogram is traced, or not integers.
        ValueError: it is not `[2, bins]`, a count is negative (see `uncertainty_histogram`), or maximum or threshold
            are out of range.

    References:
        Mukhoti and Gal, Evaluating Bayesian Deep Learning Methods for Semantic Segmentation, arXiv 1811.12709.

    >>> import numpy as np
    >>> scores = accuracy_vs_uncertainty(np.array([[1, 0, 0, 3], [4, 0, 2, 0]]), 1.0, threshold=0.5)
    >>> scores["accurate_given_certain"], scores["uncertain_given_inaccurate"], scores["pavpu"]
    (0.8, 0.75, 0.7)
    """
    if not 0 < maximum < float("inf"):
        raise ValueError(f"maximum must be above 0 and finite; got {maximum:g}")
    if threshold is not None and not 0 <= threshold <= maximum:
        raise ValueError(f"threshold must be between 0 and the maximum, {maximum:g}; got {threshold:g}")
    wrong, right = _counts(histogram)
    inaccurate_certain, accurate_certain = (np.concatenate([[0.0], np.cumsum(row)]) for row in (wrong, right))
    inaccurate_uncertain = wrong.sum() - inaccurate_certain
    total = np.full_like(accurate_certain, wrong.sum() + right.sum())
    curves = {
        "threshold": np.linspace(0.0, maximum, wrong.size + 1),
        "accurate_given_certain": ratio(accurate_certain, accurate_certain + inaccurate_certain),
        "uncertain_given_inaccurate": ratio(inaccurate_uncertain, inaccurate_certain + inaccurate_uncertain),
        "pavpu": ratio(accurate_certain + inaccurate_uncertain, total),
    }
    if threshold is None:
        return curves
    nearest = int(np.abs(curves["threshold"] - threshold).argmin())
    return {name: float(curve[nearest]) for name, curve in curves.items()}


def risk_coverage(histogram: Histogram) -> dict[str, np.ndarray]:
    r"""The risk-coverage curve: the share of errors if only the most certain pixels are answered.

    .. math:: coverage_b = \frac{1}{N} \sum_{a \le b} n_a, \qquad risk_b = \frac{\sum_{a \le b} w_a}{\sum_{a \le b} n_a}

    with n_a the pixels of bin a, w_a the wrong ones, N all.

    Args:
        histogram: integers `[2, bins]`, sums of `uncertainty_histogram`.

    Returns:
        `coverage` and `risk`, float64 `[bins]`, at the upper edge of each bin; the risk is NaN where nothing is
        covered, and both are if nothing was counted. At full coverage the risk is 1 - accuracy.

    Raises:
        TypeError: the histogram is traced, or not integers.
        ValueError: it is not `[2, bins]`, or a count is negative (see `uncertainty_histogram`).

    References:
        Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, arXiv 1705.08500.

    >>> import numpy as np
    >>> curve = risk_coverage(np.array([[0, 1, 2], [5, 1, 1]]))
    >>> print(curve["coverage"], curve["risk"])
    [0.5 0.7 1. ] [0.         0.14285714 0.3       ]
    """
    wrong, right = _counts(histogram)
    covered = np.cumsum(wrong + right)
    return {"coverage": ratio(covered, np.full_like(covered, covered[-1])), "risk": ratio(np.cumsum(wrong), covered)}


def area_under_risk_coverage(histogram: Histogram) -> float:
    r"""AURC: the risk, averaged over all coverages.

    .. math:: AURC = \frac{1}{N} \sum_{i=1}^{N} \frac{1}{i} \sum_{j \le i} [\text{pixel } j \text{ is wrong}]

    over the N pixels by rising uncertainty. Inside a bin, whose order is not known, wrong and right are taken as evenly
    mixed: the mean over all orders, exactly.

    Args:
        histogram: integers `[2, bins]`, sums of `uncertainty_histogram`.

    Returns:
        AURC in [0, 1], smaller is better; NaN if nothing was counted. Without skill it is 1 - accuracy.

    Raises:
        TypeError: the histogram is traced, or not integers.
        ValueError: it is not `[2, bins]`, or a count is negative (see `uncertainty_histogram`).

    References:
        Geifman, Uziel and El-Yaniv, Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, arXiv 1805.08206
        (the area; the curve is of arXiv 1705.08500).

    >>> import numpy as np
    >>> round(area_under_risk_coverage(np.array([[0, 1, 0], [1, 0, 1]])), 4)  # (0/1 + 1/2 + 1/3) / 3
    0.2778
    """
    wrong, right = _counts(histogram)
    inside, before, wrong_before = _inside_and_before(wrong, right)
    rate = wrong / np.maximum(inside, 1)
    # Σ_j (W + rate j) / (M + j), with M pixels before and W of them wrong.
    slope = (wrong_before - rate * before) * _harmonic_between(before, before + inside)
    return _mean_risk(rate * inside + slope, inside)


def area_under_risk_coverage_bounds(histogram: Histogram) -> tuple[float, float]:
    r"""The lowest and highest AURC that any uncertainties with this histogram can have.

    .. math::
        low = \frac{1}{N} \sum_b \left(\sum_{j=1}^{r_b} \frac{W_b}{M_b + j}
        + \sum_{j=1}^{w_b} \frac{W_b + j}{M_b + r_b + j}\right), \qquad
        high = \frac{1}{N} \sum_b \left(\sum_{j=1}^{w_b} \frac{W_b + j}{M_b + j}
        + \sum_{j=1}^{r_b} \frac{W_b + w_b}{M_b + w_b + j}\right)

    with w_b wrong and r_b right pixels in bin b, and M_b pixels in the bins before it, W_b of them wrong. Low: in every
    bin the right pixels are the more certain ones. High: the wrong ones are.

    Args:
        histogram: integers `[2, bins]`, sums of `uncertainty_histogram`.

    Returns:
        (low, high), within 1e-12 of [0, 1]; both NaN if nothing was counted. The exact value, of the sorted pixels,
        lies between them, always, ties in any order; they are widened by 1e-12 for its rounding and ours.

    Raises:
        TypeError: the histogram is traced, or not integers.
        ValueError: it is not `[2, bins]`, or a count is negative (see `uncertainty_histogram`).

    References:
        Geifman, Uziel and El-Yaniv, Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, arXiv 1805.08206.

    >>> import numpy as np
    >>> low, high = area_under_risk_coverage_bounds(np.array([[1], [1]]))
    >>> round(low, 4), round(high, 4)  # (0/1 + 1/2) / 2 and (1/1 + 1/2) / 2
    (0.25, 0.75)
    """
    wrong, right = _counts(histogram)
    inside, before, wrong_before = _inside_and_before(wrong, right)
    end = before + inside
    low = _all_right(before, right, wrong_before) + _all_wrong(before + right, wrong, wrong_before)
    high = _all_wrong(before, wrong, wrong_before) + _all_right(before + wrong, right, wrong_before + wrong)
    return _mean_risk(low, end - before) - _ROUNDING, _mean_risk(high, end - before) + _ROUNDING


def _patch_sums(values: Float[Array, "*images height width"], patch: int) -> Float[Array, "*images rows columns"]:
    *images, height, width = values.shape
    padded = jnp.pad(values, [(0, 0)] * len(images) + [(0, -height % patch), (0, -width % patch)])
    rows, columns = (size // patch for size in padded.shape[-2:])
    return jnp.sum(padded.reshape(*images, rows, patch, columns, patch), axis=(-3, -1))


def _counts(histogram: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Wrong and right in float64 (exact to 2^53), by rising uncertainty."""
    counts = host_counts("histogram", histogram, "a NaN uncertainty was counted, in a pixel that `where` keeps")
    if counts.ndim != 2 or counts.shape[0] != 2:
        raise ValueError(f"histogram must be [2, bins], wrong and right pixels; got shape {counts.shape}")
    wrong, right = counts.astype(np.float64)
    return wrong, right


def _inside_and_before(wrong: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per bin: its pixels, the pixels in the bins before, and the wrong ones among those."""
    inside = wrong + right
    return inside, np.cumsum(inside) - inside, np.cumsum(wrong) - wrong


def _all_right(before: np.ndarray, pixels: np.ndarray, wrong_before: np.ndarray) -> np.ndarray:
    """Σ_j W / (M + j) over j = 1..pixels."""
    return wrong_before * _harmonic_between(before, before + pixels)


def _all_wrong(before: np.ndarray, pixels: np.ndarray, wrong_before: np.ndarray) -> np.ndarray:
    """Σ_j (W + j) / (M + j) over j = 1..pixels."""
    return pixels + (wrong_before - before) * _harmonic_between(before, before + pixels)


def _harmonic_between(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Σ 1/i over low < i ≤ high: a table up to 64, from there the asymptotic series, exact to 1e-13."""
    head = _HARMONIC[np.minimum(high, _TABLE).astype(int)] - _HARMONIC[np.minimum(low, _TABLE).astype(int)]
    a, b = np.maximum(low, _TABLE), np.maximum(high, _TABLE)
    tail = np.log1p((b - a) / a) + (1 / b - 1 / a) / 2 - (1 / b**2 - 1 / a**2) / 12 + (1 / b**4 - 1 / a**4) / 120
    return head + tail


def _mean_risk(risks: np.ndarray, inside: np.ndarray) -> float:
    total = inside.sum()
    return float(risks.sum() / total) if total else float("nan")
