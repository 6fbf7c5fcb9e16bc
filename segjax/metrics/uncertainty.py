"""Uncertainty per pixel from K stochastic passes `[K, ..., C]`, and scores of how well an uncertainty predicts errors.

The variance over passes is `segjax.losses.mc_variance`. `uncertainty_histogram` counts any uncertainty for wrong and
right pixels on the device; the scores of its sums are computed on the host.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num

from segjax import checks
from segjax.checks import AxisName, Logits, PerPixel, Scalar, Where
from segjax.metrics._counting import ROUNDING, Counts, count, host_histogram, ratio
from segjax.metrics.calibration import log_softmax

_CAUSE = "a NaN uncertainty was counted in an unmasked pixel"
# Below it the series is accurate to 1e-11 relative, and the closed form starts to lose digits.
_SERIES_BELOW = 0.1
_TABLE = 64
_HARMONIC = np.concatenate([[0.0], np.cumsum(1 / np.arange(1.0, _TABLE + 1))])

McLogits = Float[ArrayLike, "samples *pixels classes"]


def log_mean_softmax(mc_logits: McLogits, *, where: Where = None) -> Float[Array, "*pixels classes"]:
    r"""Returns the log of the mean of the samples' softmax: the ensemble's log probabilities, which are logits too.

    .. math:: \log \bar{p}, \qquad \bar{p} = \frac{1}{K} \sum_k softmax(z_k)

    Args:
        mc_logits: z, `[K, ..., C]`, K ≥ 1, C ≥ 2; -inf rules a class out.
        where: boolean `[...]`, broadcastable; False removes the pixel; its result is 0.

    Returns:
        `[..., C]` in nats, at least float32, finite (-inf is about -1e38); NaN where an unmasked logit is NaN or +inf.

    Raises: TypeError or ValueError if a dtype or shape does not fit.
    References: Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation, arXiv 1612.01474.

    >>> print(jnp.exp(log_mean_softmax(jnp.log(jnp.array([[0.5, 0.5], [0.75, 0.25]])))))
    [0.625 0.375]
    """
    log_p, keep = _log_probabilities(mc_logits, where)
    return jnp.where(keep[..., None], _log_mean(log_p), 0)


def predictive_entropy(mc_logits: McLogits, *, where: Where = None) -> Float[Array, "*pixels"]:
    r"""Returns the entropy of the ensemble's prediction, the total uncertainty: aleatoric and epistemic.

    .. math:: H[\bar{p}] = -\sum_c \bar{p}_c \log \bar{p}_c, \qquad \bar{p} = \frac{1}{K} \sum_k softmax(z_k)

    Args:
        mc_logits, where: as in `log_mean_softmax`.

    Returns: `[...]` in nats, in [0, log C]; otherwise as `log_mean_softmax`. Gradients are finite for |z| ≤ 1e4.
    Raises: as `log_mean_softmax`.
    References: Gal, Uncertainty in Deep Learning, PhD thesis, Cambridge 2016, section 3.3.

    >>> print(predictive_entropy(jnp.array([[100.0, 0.0], [0.0, 100.0]])))  # sure but split: log 2
    0.6931472
    """
    log_p, keep = _log_probabilities(mc_logits, where)
    return jnp.where(keep, _entropy(_log_mean(log_p)), 0)


def expected_entropy(mc_logits: McLogits, *, where: Where = None) -> Float[Array, "*pixels"]:
    r"""Returns the mean entropy of the samples: the uncertainty of the data (aleatoric).

    .. math:: \frac{1}{K} \sum_k H[softmax(z_k)]

    Args:
        mc_logits, where: as in `log_mean_softmax`.

    Returns: `[...]` in nats, in [0, log C]; otherwise as `predictive_entropy`.
    Raises: as `log_mean_softmax`.
    References: Depeweg et al., Decomposition of Uncertainty in Bayesian Deep Learning, arXiv 1710.07283.

    >>> print(expected_entropy(jnp.array([[100.0, 0.0], [0.0, 100.0]])).round(6))  # sure but split
    0.0
    """
    log_p, keep = _log_probabilities(mc_logits, where)
    return jnp.where(keep, jnp.mean(_entropy(log_p), axis=0), 0)


def mutual_information(mc_logits: McLogits, *, where: Where = None) -> Float[Array, "*pixels"]:
    r"""Returns the mutual information of label and parameters (BALD): the samples' disagreement (epistemic).

    .. math:: I = H[\bar{p}] - \frac{1}{K} \sum_k H[p_k] = \frac{1}{K} \sum_k KL(p_k \| \bar{p})

    Args:
        mc_logits, where: as in `log_mean_softmax`.

    Returns: `[...]` in nats, in [0, min(log K, log C)], 0 for equal samples; otherwise as `predictive_entropy`.
    Raises: as `log_mean_softmax`.
    References: Houlsby et al., Bayesian Active Learning for Classification and Preference Learning, arXiv 1112.5745.

    >>> sure_but_split, unsure = jnp.array([[100.0, 0.0], [0.0, 100.0]]), jnp.zeros((2, 2))
    >>> print(mutual_information(sure_but_split), mutual_information(unsure))
    0.6931472 0.0
    """
    log_p, keep = _log_probabilities(mc_logits, where)
    log_mean = _log_mean(log_p)  # the difference of the entropies rounds to noise where the samples nearly agree
    divergence = jnp.exp(log_mean)[None] * _divergence(log_p - log_mean[None])
    return jnp.where(keep, jnp.mean(jnp.sum(divergence, axis=-1), axis=0), 0)


def max_probability(logits: Logits, *, where: Where = None) -> Float[Array, "*pixels"]:
    r"""Returns the confidence: the probability of the likeliest class. Its uncertainty is `1 - max_probability`.

    .. math:: \max_c softmax(z)_c

    Args:
        logits: z, `[..., C]`, C ≥ 2; for an ensemble, `log_mean_softmax(mc_logits)`.
        where: as in `log_mean_softmax`.

    Returns: `[...]` in [1/C, 1], at least float32; NaN where an unmasked logit is NaN or +inf.
    Raises: as `log_mean_softmax`.
    References: Hendrycks and Gimpel, A Baseline for Detecting Misclassified Examples, arXiv 1610.02136.

    >>> print(max_probability(jnp.log(jnp.array([[0.75, 0.25], [0.5, 0.5]]))))
    [0.75 0.5 ]
    """
    logits = checks.classes("logits", logits)
    keep = checks.mask("where", where, logits.shape[:-1])
    log_p = log_softmax(jnp.where(keep[..., None], logits, 0))
    return jnp.where(keep, jnp.exp(jnp.max(log_p, axis=-1)), 0)


def patch_means(
    values: Num[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"], patch: int, *, where: Where = None
) -> tuple[Float[Array, "*images rows columns"], Bool[Array, "*images rows columns"]]:
    r"""Returns means over square patches that tile the image: the published PAvPU counts patches, not pixels.

    .. math:: \bar{v}_Q = \frac{1}{n_Q} \sum_{i \in Q} v_i, \qquad n_Q = \#\{\text{unmasked } i \in Q\}

    A patch is accurate if most of its pixels are, and uncertain if its mean uncertainty is above the threshold::

        uncertainty, kept = patch_means(entropy, 4, where=where)
        accuracy, _ = patch_means(prediction == labels, 4, where=where)
        uncertainty_histogram(uncertainty, accuracy > 0.5, maximum=..., where=kept)

    Args:
        values: `[..., H, W]`, numbers or booleans.
        patch: side of a patch in pixels, ≥ 1, static. The last patches are smaller if it does not divide H or W.
        where: boolean `[..., H, W]`, broadcastable; False removes the pixel.

    Returns:
        `[..., ceil(H / patch), ceil(W / patch)]` twice: means (0 without pixels), and the mask of patches with pixels.

    Raises: TypeError or ValueError if a dtype or shape does not fit, or patch < 1.
    References: Mukhoti and Gal, Evaluating Bayesian Deep Learning Methods for Semantic Segmentation, arXiv 1811.12709.

    >>> print(*patch_means(jnp.array([[1.0, 3.0, 5.0], [2.0, 2.0, 7.0]]), 2))
    [[2. 6.]] [[ True  True]]
    """
    values = checks.array("values", values)
    is_floating = jnp.issubdtype(values.dtype, jnp.floating)
    values = checks.floating("values", values if is_floating else values.astype(jnp.float32))
    if values.ndim < 2:
        raise ValueError(f"values must be [..., height, width]; got shape {values.shape}")
    checks.scalar("patch", patch, jnp.int32, 1.0)
    keep = checks.mask("where", where, values.shape)
    sums = _patch_sums(jnp.where(keep, values, 0), patch)
    pixels = _patch_sums(keep.astype(values.dtype), patch)
    return sums / jnp.maximum(pixels, 1), pixels > 0


def uncertainty_histogram(
    uncertainty: PerPixel,
    correct: Bool[ArrayLike, "*pixels"],
    *,
    maximum: Scalar,
    num_bins: int = 1024,
    where: Where = None,
    axis_name: AxisName = None,
) -> Int[Array, "2 {num_bins}"]:
    r"""Counts the uncertainties of the wrong and of the right pixels in bins, over all devices.

    .. math:: H_{tb} = \#\{\text{unmasked pixels, right if } t = 1, \text{ with } \lfloor B u / u_{max} \rfloor = b\}

    The B bins are equal on [0, maximum]; the first and the last also contain the values outside. If most pixels are
    near 0, pass the square root of u, which ranks alike.

    Args:
        uncertainty: u, any shape (of pixels, or of patches: see `patch_means`).
        correct: boolean, the same shape: True where the prediction is the label.
        maximum: end of the last bin, above 0, the same for all batches: log C for entropies in nats. May be traced.
        num_bins: B ≥ 1, static.
        where, axis_name: as in `confusion_matrix`.

    Returns:
        int32 `[2, num_bins]`: wrong pixels, right pixels. All -2^31 if an unmasked u is NaN or a traced maximum ≤ 0.

    Raises: TypeError or ValueError if a dtype or shape does not fit, num_bins < 1, or the maximum is out of range.
    References: Mukhoti and Gal, Evaluating Bayesian Deep Learning Methods for Semantic Segmentation, arXiv 1811.12709.

    >>> u, correct = jnp.array([0.1, 0.2, 0.6, 0.9]), jnp.array([True, True, True, False])
    >>> uncertainty_histogram(u, correct, maximum=1.0, num_bins=4).tolist()
    [[0, 0, 0, 1], [2, 0, 1, 0]]
    """
    uncertainty = checks.floating("uncertainty", uncertainty)
    checks.same_shape("correct", jnp.shape(correct), "uncertainty", uncertainty.shape)
    correct = checks.mask("correct", correct, uncertainty.shape)
    keep = None if where is None else checks.mask("where", where, uncertainty.shape)
    checks.scalar("num_bins", num_bins, jnp.int32, 1.0)
    top = checks.finite("maximum", maximum, uncertainty.dtype, above=0.0)
    bins = jnp.clip(jnp.floor(uncertainty * (num_bins / top)), 0, num_bins - 1).astype(jnp.int32)
    valid = ~jnp.isnan(uncertainty) & (top > 0) & jnp.isfinite(top)
    places = correct.astype(jnp.int32) * num_bins + bins
    return count(places, valid, keep, 2 * num_bins, axis_name).reshape(2, num_bins)


def accuracy_vs_uncertainty(
    histogram: Counts, maximum: float | int, *, threshold: float | int | None = None
) -> dict[str, float | np.ndarray]:
    r"""Returns PAvPU and its two conditional probabilities, for every threshold on the uncertainty.

    .. math::
        p(acc | cert) = \frac{n_{ac}}{n_{ac} + n_{ic}}, \quad
        p(unc | inacc) = \frac{n_{iu}}{n_{ic} + n_{iu}}, \quad
        PAvPU = \frac{n_{ac} + n_{iu}}{n_{ac} + n_{au} + n_{ic} + n_{iu}}

    n_ac counts the pixels that are accurate and certain (u below the threshold), n_au the accurate and uncertain ones,
    n_ic and n_iu the inaccurate ones. The paper counts patches: use `patch_means` for its numbers.

    Args:
        histogram: integers `[2, bins]`, sums of `uncertainty_histogram`.
        maximum: the maximum that the histogram was counted with.
        threshold: in [0, maximum], rounded to the nearest bin edge. None: all edges.

    Returns:
        `threshold` (the edges), `accurate_given_certain`, `uncertain_given_inaccurate` and `pavpu`, in [0, 1], larger
        is better: float64 `[bins + 1]`, or floats for one threshold. NaN where nothing is certain, wrong or counted.

    Raises: as `risk_coverage`, or the maximum or the threshold is out of range.
    References: Mukhoti and Gal, Evaluating Bayesian Deep Learning Methods for Semantic Segmentation, arXiv 1811.12709.

    >>> scores = accuracy_vs_uncertainty(np.array([[1, 0, 0, 3], [4, 0, 2, 0]]), 1.0, threshold=0.5)
    >>> scores["accurate_given_certain"], scores["uncertain_given_inaccurate"], scores["pavpu"]
    (0.8, 0.75, 0.7)
    """
    checks.finite("maximum", maximum, jnp.float32, above=0.0)
    if threshold is not None and not 0 <= threshold <= maximum:
        raise ValueError(f"threshold must be between 0 and the maximum, {maximum:g}; got {threshold:g}")
    wrong, right = _host(histogram)
    inaccurate_certain, accurate_certain = (np.concatenate([[0.0], np.cumsum(row)]) for row in (wrong, right))
    inaccurate_uncertain = wrong.sum() - inaccurate_certain
    curves = {
        "threshold": np.linspace(0.0, maximum, wrong.size + 1),
        "accurate_given_certain": ratio(accurate_certain, accurate_certain + inaccurate_certain),
        "uncertain_given_inaccurate": ratio(inaccurate_uncertain, wrong.sum()),
        "pavpu": ratio(accurate_certain + inaccurate_uncertain, wrong.sum() + right.sum()),
    }
    if threshold is None:
        return curves
    nearest = int(np.abs(curves["threshold"] - threshold).argmin())
    return {name: float(curve[nearest]) for name, curve in curves.items()}


def risk_coverage(histogram: Counts) -> dict[str, np.ndarray]:
    r"""Returns the risk-coverage curve: the error rate if only the most certain pixels are predicted.

    .. math:: coverage_b = \frac{1}{N} \sum_{a \le b} n_a, \qquad risk_b = \frac{\sum_{a \le b} w_a}{\sum_{a \le b} n_a}

    Bin a has n_a of the N pixels; w_a of them are wrong.

    Args:
        histogram: integers `[2, bins]`, sums of `uncertainty_histogram`.

    Returns: `coverage` and `risk`, float64 `[bins]`, at the upper edge of each bin; NaN where nothing is covered.
    Raises: TypeError or ValueError if the counts are traced, not integers, not `[2, bins]`, or negative (invalid).
    References: Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, arXiv 1705.08500.

    >>> curve = risk_coverage(np.array([[0, 1, 2], [5, 1, 1]]))
    >>> print(curve["coverage"], curve["risk"])
    [0.5 0.7 1. ] [0.         0.14285714 0.3       ]
    """
    wrong, right = _host(histogram)
    covered = np.cumsum(wrong + right)
    return {"coverage": ratio(covered, covered[-1]), "risk": ratio(np.cumsum(wrong), covered)}


def area_under_risk_coverage(histogram: Counts) -> float:
    r"""Returns AURC: the risk, averaged over all coverages.

    .. math:: AURC = \frac{1}{N} \sum_{i=1}^{N} \frac{1}{i} \sum_{j \le i} [\text{pixel } j \text{ is wrong}]

    The N pixels are ordered by rising uncertainty. Inside a bin the result is the mean over all orders, exactly.

    Args:
        histogram: integers `[2, bins]`, sums of `uncertainty_histogram`.

    Returns: AURC in [0, 1], smaller is better; NaN if nothing was counted. A random order has 1 - accuracy.
    Raises: as `risk_coverage`.
    References: Geifman et al., Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, arXiv 1805.08206.

    >>> round(area_under_risk_coverage(np.array([[0, 1, 0], [1, 0, 1]])), 4)  # (0/1 + 1/2 + 1/3) / 3
    0.2778
    """
    wrong, right = _host(histogram)
    inside = wrong + right
    before, wrong_before = np.cumsum(inside) - inside, np.cumsum(wrong) - wrong
    rate = wrong / np.maximum(inside, 1)
    return float(ratio(_sum_of_risks(before, inside, wrong_before, rate).sum(), inside.sum()))


def area_under_risk_coverage_bounds(histogram: Counts) -> tuple[float, float]:
    r"""Returns the lowest and highest AURC that uncertainties with this histogram can have.

    .. math::
        low = \frac{1}{N} \sum_b \left(\sum_{j=1}^{r_b} \frac{W_b}{M_b + j}
        + \sum_{j=1}^{w_b} \frac{W_b + j}{M_b + r_b + j}\right), \qquad
        high = \frac{1}{N} \sum_b \left(\sum_{j=1}^{w_b} \frac{W_b + j}{M_b + j}
        + \sum_{j=1}^{r_b} \frac{W_b + w_b}{M_b + w_b + j}\right)

    Bin b has w_b wrong and r_b right pixels; of the M_b pixels in the bins before it, W_b are wrong. Low: in every bin
    the right pixels are the more certain ones. High: the wrong ones are.

    Args:
        histogram: integers `[2, bins]`, sums of `uncertainty_histogram`.

    Returns: (low, high), widened by 1e-12 for rounding; both NaN if nothing was counted.
    Raises: as `risk_coverage`.
    References: Geifman et al., Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, arXiv 1805.08206.

    >>> low, high = area_under_risk_coverage_bounds(np.array([[1], [1]]))
    >>> round(low, 4), round(high, 4)  # (0/1 + 1/2) / 2 and (1/1 + 1/2) / 2
    (0.25, 0.75)
    """
    wrong, right = _host(histogram)
    inside = wrong + right
    before, wrong_before = np.cumsum(inside) - inside, np.cumsum(wrong) - wrong
    low = _sum_of_risks(before, right, wrong_before, 0) + _sum_of_risks(before + right, wrong, wrong_before, 1)
    high = _sum_of_risks(before, wrong, wrong_before, 1) + _sum_of_risks(before + wrong, right, wrong_before + wrong, 0)
    low, high = (float(ratio(risks.sum(), inside.sum())) for risks in (low, high))
    return low - ROUNDING, high + ROUNDING


def image_uncertainty(
    uncertainty: PerPixel,
    aggregation: str = "mean",
    *,
    patch: int = 10,
    threshold: Scalar | None = None,
    where: Where = None,
) -> Float[Array, "*images"]:
    r"""Returns one uncertainty per image, to find the images on which a network fails.

    .. math::
        u_{mean} = \frac{1}{n} \sum_i u_i, \qquad
        u_{patch} = \max_Q \frac{1}{n_Q} \sum_{i \in Q} u_i, \qquad
        u_{threshold} = \frac{\sum_i u_i [u_i > \tau]}{\#\{i : u_i > \tau\}}

    Q runs over all squares of side `patch` inside the image. The mean grows with the length of the boundaries;
    the other two do not.

    Args:
        uncertainty: u, `[..., H, W]`, such as `predictive_entropy`.
        aggregation: "mean", "patch" or "threshold".
        patch: side of Q in pixels, ≥ 1, static; clipped to the image.
        threshold: τ, needed by "threshold"; may be traced.
        where: boolean `[..., H, W]`, broadcastable; False removes the pixel. A Q without pixels is ignored.

    Returns: `[...]`, at least float32; 0 without a pixel, or without one above the threshold.
    Raises: TypeError or ValueError if a dtype or shape does not fit, or an argument is out of range or missing.
    References: Kahl et al., ValUES: A Framework for Systematic Validation of Uncertainty Estimation, arXiv 2401.08501.

    >>> u = jnp.zeros((4, 6)).at[:2, :2].set(0.5).at[3, 5].set(1.0)
    >>> print(*(image_uncertainty(u, how, patch=2, threshold=0.2) for how in ("mean", "patch", "threshold")))
    0.125 0.5 0.6
    """
    uncertainty = checks.floating("uncertainty", uncertainty)
    if uncertainty.ndim < 2:
        raise ValueError(f"uncertainty must be [..., height, width]; got shape {uncertainty.shape}")
    checks.choice("aggregation", aggregation, ("mean", "patch", "threshold"))
    checks.scalar("patch", patch, jnp.int32, 1.0)
    keep = checks.mask("where", where, uncertainty.shape)
    if aggregation == "threshold":
        if threshold is None:
            raise ValueError('aggregation="threshold" needs a threshold; got None')
        keep &= ~(uncertainty <= checks.finite("threshold", threshold, uncertainty.dtype))  # a NaN stays
    values, pixels = jnp.where(keep, uncertainty, 0), keep.astype(uncertainty.dtype)
    if aggregation == "patch":
        window = (1,) * (values.ndim - 2) + tuple(min(patch, size) for size in values.shape[-2:])
        values, pixels = (
            jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1,) * x.ndim, "VALID") for x in (values, pixels)
        )
        means = jnp.where(pixels > 0, values / jnp.maximum(pixels, 1), -jnp.inf)
        return jnp.where(jnp.any(pixels > 0, axis=(-2, -1)), jnp.max(means, axis=(-2, -1)), 0)
    return jnp.sum(values, axis=(-2, -1)) / jnp.maximum(jnp.sum(pixels, axis=(-2, -1)), 1)


def failure_detection(risks: Float[ArrayLike, "images"], uncertainties: Float[ArrayLike, "images"]) -> dict[str, float]:
    r"""Returns how well an uncertainty per image ranks the images by their risk.

    .. math::
        AURC = \frac{1}{n} \sum_{i=1}^{n} \frac{1}{i} \sum_{j \le i} r_j, \qquad
        AUGRC = \frac{1}{n^2} \sum_{i=1}^{n} \left(\sum_{j \le i} r_j - \tfrac{1}{2} r_i\right)

    The images are ordered by rising uncertainty. AUGRC is the average risk of undetected failures; AURC weights the
    most certain images far more. E-AURC is AURC minus that of the best order.

    Args:
        risks: r ≥ 0, one per image: 1 - Dice, 1 - IoU, or 0 and 1 for a failure.
        uncertainties: one per image, such as `image_uncertainty`. Ties are averaged over all orders.

    Returns: `aurc`, `excess_aurc` and `augrc`, floats, smaller is better.
    Raises: TypeError or ValueError if shapes differ, there is no image, an uncertainty is NaN, or a risk is not ≥ 0.
    References: Geifman et al., arXiv 1805.08206; Traub et al., Overcoming Common Flaws in the Evaluation of Selective
        Classification Systems, arXiv 2407.01032.

    >>> failure_detection(np.array([0.0, 1.0]), np.array([0.1, 0.9]))
    {'aurc': 0.25, 'excess_aurc': 0.0, 'augrc': 0.125}
    """
    risks, uncertainties = (
        checks.host(name, value).astype(np.float64)
        for name, value in (("risks", risks), ("uncertainties", uncertainties))
    )
    checks.same_shape("uncertainties", uncertainties.shape, "risks", risks.shape)
    if risks.ndim != 1 or not risks.size:
        raise ValueError(f"risks must be [images], at least one; got shape {risks.shape}")
    if np.isnan(uncertainties).any() or not ((risks >= 0) & np.isfinite(risks)).all():
        raise ValueError("risks must be finite and at least 0, and uncertainties must not be NaN")
    _, group = np.unique(uncertainties, return_inverse=True)
    ordered = (np.bincount(group, risks) / np.bincount(group))[np.sort(group)]

    def aurc(values):
        return float(np.mean(np.cumsum(values) / np.arange(1, values.size + 1)))

    return {
        "aurc": aurc(ordered),
        "excess_aurc": aurc(ordered) - aurc(np.sort(risks)),
        "augrc": float((np.cumsum(ordered) - ordered / 2).sum() / risks.size**2),
    }


def _log_probabilities(mc_logits, where):
    """Returns log softmax, finite for classes ruled out, and the mask of the pixels."""
    logits = checks.floating("mc_logits", mc_logits)
    if logits.ndim < 2 or logits.shape[-1] < 2 or not len(logits):
        wanted = "[samples, ..., classes] with at least 2 classes and 1 sample"
        raise ValueError(f"mc_logits must be {wanted}; got shape {logits.shape}")
    keep = checks.mask("where", where, logits.shape[1:-1])
    # Masked before the maths: a NaN of a masked pixel must not reach a gradient.
    logits = jnp.where(keep[None, ..., None], logits, 0)
    # 0 · -inf is NaN, where p log p is 0.
    return jnp.maximum(log_softmax(logits), float(jnp.finfo(logits.dtype).min) / 4), keep


def _log_mean(log_p: McLogits) -> Float[Array, "*pixels classes"]:
    """Returns log of the mean of exp. log1p of expm1 keeps the digits of p near 1, and equal samples are their mean."""
    largest = jax.lax.stop_gradient(jnp.max(log_p, axis=0))
    return largest + jnp.log1p(jnp.mean(jnp.expm1(log_p - largest[None]), axis=0))


def _entropy(log_p: Logits) -> Float[Array, "*pixels"]:
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def _divergence(delta: Float[Array, "*items"]) -> Float[Array, "*items"]:
    """Returns δ e^δ - e^δ + 1 ≥ 0 for δ = log(p / q). Times q and summed over classes it is KL(p ‖ q): Σ p = Σ q."""
    small = jnp.abs(delta) < _SERIES_BELOW
    near, far = jnp.where(small, delta, 0), jnp.where(small, 0, delta)
    # Σ_n δ^n (n - 1) / n!
    tail = 1 / 30 + near * (1 / 144 + near * (1 / 840 + near / 5760))
    series = near**2 * (1 / 2 + near * (1 / 3 + near * (1 / 8 + near * tail)))
    return jnp.where(small, series, far * jnp.exp(far) - jnp.expm1(far))


def _patch_sums(values: Float[Array, "*images height width"], patch: int) -> Float[Array, "*images rows columns"]:
    *images, height, width = values.shape
    padded = jnp.pad(values, [(0, 0)] * len(images) + [(0, -height % patch), (0, -width % patch)])
    rows, columns = (size // patch for size in padded.shape[-2:])
    return jnp.sum(padded.reshape(*images, rows, patch, columns, patch), axis=(-3, -1))


def _host(histogram: ArrayLike) -> Float[np.ndarray, "2 bins"]:
    return host_histogram(histogram, "wrong and right pixels", _CAUSE)


def _sum_of_risks(before: np.ndarray, pixels: np.ndarray, wrong_before: np.ndarray, rate: np.ndarray | int):
    """Sums (W + rate · j) / (M + j) over j = 1..pixels, with M pixels before and W of them wrong."""
    # Σ 1 / (M + j): a table up to 64, beyond it the asymptotic series, exact to 1e-13.
    first, last = before, before + pixels
    head = _HARMONIC[np.minimum(last, _TABLE).astype(int)] - _HARMONIC[np.minimum(first, _TABLE).astype(int)]
    a, b = np.maximum(first, _TABLE), np.maximum(last, _TABLE)
    tail = np.log1p((b - a) / a) + (1 / b - 1 / a) / 2 - (1 / b**2 - 1 / a**2) / 12 + (1 / b**4 - 1 / a**4) / 120
    return rate * pixels + (wrong_before - rate * before) * (head + tail)
