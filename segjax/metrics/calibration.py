"""Calibration errors from binned confidences, proper scores (Brier, log-likelihood), and scaling of the logits."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from segjax import checks
from segjax.checks import AxisName, Labels, Logits, Where
from segjax.collectives import psum
from segjax.metrics._counting import INVALID, Counts, count, host_counts, host_histogram, ratio, sum_by_place

_CAUSE = "a label outside [0, C) or a NaN logit was counted in an unmasked pixel"
# Spacing of float32 below 1: exact for a confidence above 1/2, and at most 3e-8 off for a smaller one.
_FRACTION_BITS = 24


class CalibrationBins(NamedTuple):
    """Sums per confidence bin, `[bins]`, or `[classes, bins]` from `classwise_calibration_bins`.

    Add batches with `jax.tree.map(np.add, a, b)`, from int64 and float64 zeros: int32 overflows and float32 rounds.
    """

    count: Counts
    """Pixels whose confidence is in the bin, int32."""
    correct: Counts
    """Those of them whose label is the class of the confidence, int32."""
    confidence: Float[jax.Array | np.ndarray, "*classes bins"]
    """Sum of their confidences, float32 (float64 for float64 logits), accurate to 1e-6 relative plus 3e-8 per pixel."""


class ProperScoreSums(NamedTuple):
    """Sums over pixels; they add as `CalibrationBins` do."""

    count: Counts
    """Unmasked pixels, int32."""
    brier: Float[jax.Array | np.ndarray, ""]
    """Sum of the pixels' Brier scores, at least float32."""
    nll: Float[jax.Array | np.ndarray, ""]
    """Sum of -log p of the true class in nats, at least float32."""


class Scaling(NamedTuple):
    """Affine map of the logits that calibrates their softmax (a pytree), from `fit_scaling`."""

    scale: Float[ArrayLike, "classes"]
    """One factor per class, more than 0; with kind="temperature", all 1/T."""
    bias: Float[ArrayLike, "classes"]
    """One summand per class; 0 but for kind="vector"."""


def calibration_bins(
    logits: Logits, labels: Labels, *, num_bins: int = 15, where: Where = None, axis_name: AxisName = None
) -> CalibrationBins:
    r"""Bins the confidence of the top class, over all devices.

    .. math:: c = \max_j softmax(z)_j, \qquad c \in \left(\tfrac{b}{B}, \tfrac{b + 1}{B}\right] \text{ is in bin } b

    The B bins are closed at the right, as in Guo et al. and scikit-learn. A pixel is correct if the first of its
    largest logits is the label's. For an ensemble, pass `log_mean_softmax(mc_logits)`.

    Args:
        logits: z, `[..., C]`, C ≥ 2; -inf rules a class out.
        labels: integers in [0, C) or booleans, `[...]`.
        num_bins: B ≥ 1, static.
        where, axis_name: as in `confusion_matrix`.

    Returns:
        `CalibrationBins` of `[num_bins]`. Every count is -2^31 and every sum NaN if an unmasked label is outside
        [0, C), or unmasked logits contain NaN or +inf (or only -inf).

    Raises: TypeError or ValueError if a dtype or shape does not fit, or num_bins < 1.
    References: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599.

    >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.375, 0.625], [0.125, 0.875]]))
    >>> print(*calibration_bins(logits, jnp.array([0, 0, 1]), num_bins=5)[:2])
    [0 0 0 2 1] [0 0 0 1 1]
    """
    logits, labels, valid, keep = _softmax_inputs(logits, labels, where)
    # A confidence does not need the digits of `log_softmax`, and counts have no gradient that a masked NaN could
    # reach. Both would take four times as long on a CPU.
    confidence = 1 / jnp.sum(jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)), axis=-1)
    correct = jnp.argmax(logits, axis=-1).astype(jnp.int32) == labels
    return _binned(confidence, correct, jnp.zeros_like(labels), valid, keep, (num_bins,), axis_name)


def classwise_calibration_bins(
    logits: Logits, labels: Labels, *, num_bins: int = 15, where: Where = None, axis_name: AxisName = None
) -> CalibrationBins:
    r"""Bins the probability of every class, over all devices: each pixel is counted once per class.

    .. math:: p_j = softmax(z)_j, \qquad p_j \in \left(\tfrac{b}{B}, \tfrac{b + 1}{B}\right] \text{ is in bin } (j, b)

    Args:
        logits, labels, num_bins, where, axis_name: as in `calibration_bins`; p = 0 is in the first bin.

    Returns: `CalibrationBins` of `[C, num_bins]`: `correct` counts the pixels of class j, `confidence` sums p_j.
    Raises: as `calibration_bins`.
    References: Kull et al., Beyond temperature scaling, arXiv 1910.12656; Nixon et al., arXiv 1904.01685.

    >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.375, 0.625]]))
    >>> bins = classwise_calibration_bins(logits, jnp.array([0, 0]), num_bins=2)
    >>> print(bins.count.tolist(), bins.correct.tolist())
    [[1, 1], [1, 1]] [[1, 1], [0, 0]]
    """
    logits, labels, valid, keep = _softmax_inputs(logits, labels, where)
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, labels.ndim)
    valid, keep = (mask if mask is None else jnp.broadcast_to(mask[..., None], logits.shape) for mask in (valid, keep))
    shape = (logits.shape[-1], num_bins)
    return _binned(jax.nn.softmax(logits), classes == labels[..., None], classes, valid, keep, shape, axis_name)


def expected_calibration_error(bins: CalibrationBins) -> float:
    r"""Returns the expected calibration error: |accuracy - confidence|, averaged over the pixels.

    .. math:: ECE = \sum_b \frac{n_b}{N} \left|acc_b - conf_b\right|

    Bin b has n_b of the N pixels, with accuracy acc_b and mean confidence conf_b.

    Args:
        bins: `[bins]`, sums of `calibration_bins`.

    Returns: ECE in [0, 1] (not percent), 0 is best; NaN if nothing was counted.
    Raises: TypeError or ValueError if the bins are traced, not `[bins]`, or count an invalid pixel or an overflow.
    References: Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015.

    >>> expected_calibration_error(CalibrationBins(np.array([0, 2]), np.array([0, 1]), np.array([0.0, 1.75])))
    0.375

    The error near the boundaries of the labels, where most errors are, is that of fewer pixels:

    >>> from segjax.losses import boundary_mask
    >>> labels, logits = jnp.array([[0, 0, 0, 1, 1, 255]]), jnp.log(jnp.full((1, 6, 2), jnp.array([0.75, 0.25])))
    >>> where = labels != 255
    >>> near = calibration_bins(logits, labels, where=where & boundary_mask(labels, where=where))
    >>> [round(expected_calibration_error(b), 4) for b in (near, calibration_bins(logits, labels, where=where))]
    [0.25, 0.15]
    """
    gap, share = _gaps(bins, 1)
    return float(np.nansum(gap * share)) if share.any() else float("nan")


def maximum_calibration_error(bins: CalibrationBins) -> float:
    r"""Returns the maximum calibration error: the largest |accuracy - confidence| of any bin.

    .. math:: MCE = \max_{b:\, n_b > 0} \left|acc_b - conf_b\right|

    Args:
        bins: `[bins]`, sums of `calibration_bins`.

    Returns: MCE in [0, 1], 0 is best; NaN if nothing was counted. A single pixel in a bin may decide it.
    Raises: as `expected_calibration_error`.
    References: Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015.

    >>> maximum_calibration_error(CalibrationBins(np.array([1, 9]), np.array([1, 9]), np.array([0.25, 9.0])))
    0.75
    """
    gap, share = _gaps(bins, 1)
    return float(np.nanmax(gap)) if share.any() else float("nan")


def classwise_calibration_error(bins: CalibrationBins) -> dict[str, float | np.ndarray]:
    r"""Returns the calibration error of each class's probability, and their mean.

    .. math:: ECE_j = \sum_b \frac{n_{jb}}{N} \left|freq_{jb} - p_{jb}\right|, \qquad cwECE = \frac{1}{C} \sum_j ECE_j

    In a bin of n pixels, freq is the share of class j, and p its mean probability. A rare class has a small error,
    because p is near 0 almost everywhere: compare the error with the class's frequency.

    Args:
        bins: `[classes, bins]`, sums of `classwise_calibration_bins`.

    Returns: `calibration_error_per_class` (float64 `[C]`) and `mean_calibration_error`, in [0, 1]; NaN without pixels.
    Raises: as `expected_calibration_error`, for `[classes, bins]`.
    References: Kull et al., Beyond temperature scaling, arXiv 1910.12656, equation 3; Nixon et al., arXiv 1904.01685.

    >>> bins = CalibrationBins(np.array([[4], [4]]), np.array([[4], [0]]), np.array([[3.0], [1.0]]))
    >>> classwise_calibration_error(bins)
    {'mean_calibration_error': 0.25, 'calibration_error_per_class': array([0.25, 0.25])}
    """
    gap, share = _gaps(bins, 2)
    per_class = np.where(share.any(axis=-1), np.nansum(gap * share, axis=-1), np.nan)
    return {"mean_calibration_error": float(per_class.mean()), "calibration_error_per_class": per_class}


def adaptive_calibration_error(histogram: Counts, *, num_bins: int = 15) -> float:
    r"""Returns the calibration error of bins with equally many pixels.

    .. math:: ACE = \sum_r \frac{n_r}{N} \left|acc_r - conf_r\right|, \qquad n_r \approx N / R

    Equal-width bins put almost all pixels of a segmentation into the last bin. Here, fine bins of the confidence's log
    odds are merged into groups of about N / R pixels::

        log_odds = jnp.max(class_log_odds(logits), axis=-1)
        histogram = score_histogram(log_odds, jnp.argmax(logits, axis=-1) == labels, where=where)

    Args:
        histogram: integers `[2, bins]`, wrong and right pixels, sums of `score_histogram`.
        num_bins: R ≥ 1.

    Returns: ACE in [0, 1], 0 is best; NaN if nothing was counted. The confidence of a pixel is rounded by up to 1e-3.
    Raises: as `average_precision`, or num_bins < 1.
    References: Nixon et al., Measuring Calibration in Deep Learning, arXiv 1904.01685.

    >>> histogram = np.zeros((2, 4096), int)
    >>> histogram[:, 2048 + 128] = 1, 3  # confidence sigmoid(1) = 0.73, accuracy 0.75
    >>> round(adaptive_calibration_error(histogram), 2)
    0.02
    """
    checks.scalar("num_bins", num_bins, jnp.int32, 1.0)
    wrong, right = host_histogram(histogram, "wrong and right pixels", _CAUSE)
    pixels = wrong + right
    if not pixels.any():
        return float("nan")
    middles = (np.arange(pixels.size) + 0.5) / pixels.size * 32 - 16
    surplus = pixels / (1 + np.exp(-middles)) - right
    # A bin belongs to the group in which the middle of its pixels falls.
    group = np.minimum(((np.cumsum(pixels) - pixels / 2) / pixels.sum() * num_bins).astype(int), num_bins - 1)
    return float(np.abs(np.bincount(group, surplus)).sum() / pixels.sum())


def reliability_diagram(bins: CalibrationBins) -> dict[str, np.ndarray]:
    r"""Returns the data of a reliability diagram: accuracy against mean confidence, per bin.

    .. math:: acc_b = \frac{k_b}{n_b}, \qquad conf_b = \frac{1}{n_b} \sum_{i \in b} p_i, \qquad share_b = \frac{n_b}{N}

    Bin b has n_b of the N pixels; k_b of them are correct, and p_i are their confidences.

    Args:
        bins: `[bins]` or `[classes, bins]`, sums of `calibration_bins` or `classwise_calibration_bins`.

    Returns:
        float64: `edges` `[bins + 1]`; in the bins' shape, `confidence`, `accuracy` and `share`, NaN without pixels.

    Raises: as `expected_calibration_error`, or shapes differ.
    References: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, figure 1.

    >>> bins = CalibrationBins(np.array([1, 3]), np.array([1, 0]), np.array([0.25, 2.25]))
    >>> print(*reliability_diagram(bins).values())  # edges, confidence, accuracy, share
    [0.  0.5 1. ] [0.25 0.75] [1. 0.] [0.25 0.75]
    """
    counts, correct, confidence = _host_bins(bins)
    return {
        "edges": np.linspace(0.0, 1.0, counts.shape[-1] + 1),
        "confidence": ratio(confidence, counts),
        "accuracy": ratio(correct, counts),
        "share": ratio(counts, counts.sum(axis=-1, keepdims=True)),
    }


def proper_score_sums(
    logits: Logits, labels: Labels, *, where: Where = None, axis_name: AxisName = None
) -> ProperScoreSums:
    r"""Sums the Brier score and the negative log-likelihood over the pixels of all devices.

    .. math:: \left(N,\; \sum_i \sum_c (p_{ic} - t_{ic})^2,\; -\sum_i \log p_{i y_i}\right), \qquad p_i = softmax(z_i)

    The sums run over the N unmasked pixels i; t is 1 for the true class y_i and 0 for the others.

    Args:
        logits, labels, where, axis_name: as in `calibration_bins`.

    Returns: `ProperScoreSums`, scalars. Invalid pixels: as in `calibration_bins`.
    Raises: as `calibration_bins`.
    References: Gneiting and Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation, JASA 102 (2007).

    >>> sums = proper_score_sums(jnp.zeros((3, 2)), jnp.array([0, 1, 255]), where=jnp.array([True, True, False]))
    >>> print(sums.count, sums.brier, round(float(sums.nll), 4))
    2 1.0 1.3863
    """
    logits, labels, valid, keep = _softmax_inputs(logits, labels, where)
    if keep is not None:
        # These sums have a gradient, which a NaN of a masked pixel must not reach.
        logits = jnp.where(keep[..., None], logits, 0)
    log_p = log_softmax(logits)
    own = jax.lax.broadcasted_iota(jnp.int32, logits.shape, labels.ndim) == labels[..., None]
    brier = jnp.sum(jnp.where(own, jnp.expm1(log_p), jnp.exp(log_p)) ** 2, axis=-1)
    nll = -jnp.sum(jnp.where(own, log_p, 0), axis=-1)
    counted = valid if keep is None else valid & keep
    counts = count(jnp.zeros_like(labels), valid, keep, 1, axis_name)[0]
    sums = psum([jnp.sum(jnp.where(counted, score, 0)) for score in (brier, nll)], axis_name)
    return ProperScoreSums(counts, *(jnp.where(counts < 0, jnp.nan, one) for one in sums))


def brier_score(sums: ProperScoreSums) -> float:
    r"""Returns the mean Brier score of all classes.

    .. math:: BS = \frac{1}{N} \sum_i \sum_c (p_{ic} - t_{ic})^2

    t is 1 for the true class and 0 for the others. This is Brier's own definition; others halve it or divide by C.

    Args:
        sums: sums of `proper_score_sums`.

    Returns: The score in [0, 2], 0 is best; NaN if nothing was counted.
    Raises: as `expected_calibration_error`, for scalars.
    References: Brier, Verification of Forecasts Expressed in Terms of Probability, Monthly Weather Review 78 (1950).

    >>> brier_score(proper_score_sums(jnp.zeros((3, 2)), jnp.array([0, 1, 1])))
    0.5
    """
    return _mean_score(sums, "brier")


def negative_log_likelihood(sums: ProperScoreSums) -> float:
    r"""Returns the mean negative log-likelihood of the true class (log loss, cross entropy).

    .. math:: NLL = -\frac{1}{N} \sum_i \log p_{i y_i}

    Args:
        sums: sums of `proper_score_sums`.

    Returns: NLL in nats, in [0, inf], 0 is best; NaN if nothing was counted.
    Raises: as `brier_score`.
    References: Gneiting and Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation, JASA 102 (2007).

    >>> round(negative_log_likelihood(proper_score_sums(jnp.zeros((3, 2)), jnp.array([0, 1, 1]))), 6)
    0.693147
    """
    return _mean_score(sums, "nll")


def fit_scaling(logits: Logits, labels: Labels, *, kind: str = "temperature", where: Where = None) -> Scaling:
    r"""Fits the scaling of the logits that minimises the negative log-likelihood, in float64 on the host.

    .. math:: \min_{s, b}\; -\sum_i \log softmax(s \odot z_i + b)_{y_i}

    The problem is convex; Newton's method solves it. A hundred thousand pixels are enough, drawn from all calibration
    images: pixels that the network was trained on are too confident.

    Args:
        logits: z, `[..., C]`, C ≥ 2, finite.
        labels: y, integers in [0, C) or booleans, `[...]`.
        kind: "temperature" (s = 1/T for all classes, b = 0: the likeliest class stays the likeliest), "class" (one s
            per class, b = 0), or "vector" (one s and one b per class).
        where: as in `calibration_bins`.

    Returns: `Scaling` in float32, for `scale_logits`.

    Raises:
        TypeError, ValueError: a dtype or shape does not fit; an unmasked label or logit is invalid; for "class" and
            "vector", a class has no pixel; or there is no optimum, because no pixel (of a class) is predicted wrongly,
            or float32 cannot hold it.

    References: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599.

    >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]))
    >>> scaling = fit_scaling(logits, jnp.array([0, 0, 0, 1]))  # right three times in four
    >>> print(jax.nn.softmax(scale_logits(logits, scaling))[0].round(4))
    [0.75 0.25]
    """
    checks.choice("kind", kind, ("temperature", "class", "vector"))
    z, y = _host_pixels(logits, labels, where)
    classes = z.shape[1]
    pixels = np.bincount(y, minlength=classes)
    if kind != "temperature" and not pixels.all():
        absent = np.flatnonzero(pixels == 0).tolist()
        raise ValueError(f'kind="{kind}" needs pixels of all classes; {absent} have none: fit a temperature')
    # Parameters x = (s, b); `basis` maps the free ones to them.
    identity, zeros = np.eye(classes), np.zeros((classes, classes))
    basis = {
        "temperature": np.concatenate([np.ones((classes, 1)), np.zeros((classes, 1))]),
        "class": np.concatenate([identity, zeros]),
        # The softmax ignores a common summand, so the last bias is minus the sum of the others.
        "vector": np.block([[identity, zeros[:, 1:]], [zeros, np.eye(classes, classes - 1) - np.eye(classes)[:, -1:]]]),
    }[kind]
    # In units of the logits' size: at a scale of 1, large logits have saturated probabilities, which are flat.
    center = z.mean(axis=0) if kind == "vector" else np.zeros(classes)
    z = z - center
    unit = np.sqrt(np.mean(z**2, axis=None if kind == "temperature" else 0)) * np.ones(classes)
    unit[unit == 0] = 1
    start = np.linalg.lstsq(basis, np.concatenate([np.ones(classes), np.zeros(classes)]), rcond=None)[0]
    best = _newton(lambda free: _scaled_likelihood(z / unit, y, basis @ free, basis), start)
    scale, bias = np.split(basis @ best, 2)
    scale = scale / unit
    bias = bias - scale * center
    bias = bias - bias.mean()
    if not (scale > 0).all():
        raise ValueError(
            f'the best scaling of kind="{kind}" has a factor of {scale.min():.3g}; expected all above 0: the logits '
            "have no skill, or are not those of the labels; with several factors, fit a temperature"
        )
    limits = np.finfo(np.float32)
    if scale.min() < limits.tiny or max(scale.max(), np.abs(bias).max()) > limits.max:
        raise ValueError(
            f"the best scaling is not finite and above 0 in float32: factors from {scale.min():.3g} to "
            f"{scale.max():.3g}; multiply the logits by a constant that brings them near 1"
        )
    return Scaling(scale.astype(np.float32), bias.astype(np.float32))


def scale_logits(logits: Logits, scaling: Scaling) -> Float[Array, "*pixels classes"]:
    r"""Returns calibrated logits.

    .. math:: z' = s \odot z + b

    Args:
        logits: z, `[..., C]`, C ≥ 2.
        scaling: s and b, `[C]` each, from `fit_scaling`.

    Returns: `[..., C]`, at least float32.
    Raises: TypeError or ValueError if a dtype or shape does not fit.
    References: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599.

    >>> print(scale_logits(jnp.array([[2.0, 4.0]]), Scaling(jnp.array([0.5, 0.5]), jnp.zeros(2))))
    [[1. 2.]]
    """
    logits = checks.classes("logits", logits)
    scale, bias = (checks.array(f"scaling.{name}", getattr(scaling, name)) for name in ("scale", "bias"))
    for name, value in (("scale", scale), ("bias", bias)):
        checks.same_shape(f"scaling.{name}", value.shape, "one pixel's classes", logits.shape[-1:])
    scale, bias = (jnp.broadcast_to(value.astype(logits.dtype), logits.shape) for value in (scale, bias))
    return logits * scale + bias


def log_softmax(logits: Logits) -> Float[Array, "*pixels classes"]:
    """Returns log probabilities that keep their digits near 0, where JAX's round to 0 below 1 - p = 6e-8. Private."""
    top = jnp.argmax(logits, axis=-1, keepdims=True).astype(jnp.int32)
    is_top = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == top
    shifted = logits - jnp.sum(jnp.where(is_top, logits, 0), axis=-1, keepdims=True)
    return shifted - jnp.log1p(jnp.sum(jnp.where(is_top, 0, jnp.exp(shifted)), axis=-1, keepdims=True))


def _softmax_inputs(logits, labels, where):
    """Returns logits and labels, checked, and the masks of valid and of unmasked pixels. A NaN stays in the logits."""
    logits, labels, keep = checks.softmax_inputs(logits, labels, where)
    valid = (labels >= 0) & (labels < logits.shape[-1]) & jnp.isfinite(jnp.max(logits, axis=-1))
    return logits, labels.astype(jnp.int32), valid, keep


def _binned(confidence, correct, group, valid, keep, shape: tuple[int, ...], axis_name) -> CalibrationBins:
    """Returns bins of `shape`: the last axis by confidence, the first of two by group; a group has each pixel once."""
    num_bins, num_places = shape[-1], math.prod(shape)
    checks.scalar("num_bins", num_bins, jnp.int32, 1.0)
    # Edges rounded down to the dtype: a value is above one of them if it is above the float64 edge.
    exact = np.linspace(0.0, 1.0, num_bins + 1)[1:-1]
    edges = exact.astype(confidence.dtype)
    edges = np.where(edges > exact, np.nextafter(edges, np.zeros_like(edges)), edges)
    places = group * num_bins + jnp.searchsorted(edges, confidence, method="compare_all").astype(jnp.int32)
    outcome = correct.astype(jnp.int32) * num_places + places
    wrong, right = count(outcome, valid, keep, 2 * num_places, axis_name).reshape(2, *shape)
    # Two INVALIDs would add up to 0.
    counts = jnp.where(wrong < 0, jnp.int32(INVALID), wrong + right)
    counted = valid if keep is None else valid & keep
    pixels = confidence.size // math.prod(shape[:-1])
    sums = _exact_sums(places, jnp.where(counted, confidence, 0), num_places, pixels, axis_name).reshape(shape)
    return CalibrationBins(counts, right, jnp.where(counts < 0, jnp.nan, sums))


def _exact_sums(
    places: Int[Array, "*items"], values: Float[Array, "*items"], num_places: int, most: int, axis_name: AxisName
) -> Float[Array, "places"]:
    """Sums values in [0, 1] by place over all devices, exact but for rounding each to fixed point.

    A place has at most `most` values of this device. Added one by one, 4 million float32 pixels are off by 5e-3. So the
    bits of each value are cut into parts short enough that no integer sum of them can overflow.
    """
    items = most * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    part_bits = max(31 - items.bit_length(), 1)
    fixed = jnp.round(values * 2**_FRACTION_BITS).astype(jnp.int32)
    parts = [(fixed >> shift) & (2**part_bits - 1) for shift in range(0, _FRACTION_BITS + 1, part_bits)]
    sums = psum([sum_by_place(places, part, num_places, part_bits) for part in parts], axis_name)
    scaled = [one.astype(values.dtype) * 2.0 ** (i * part_bits - _FRACTION_BITS) for i, one in enumerate(sums)]
    return sum(reversed(scaled[:-1]), start=scaled[-1])


def _host_bins(bins: CalibrationBins) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns count, correct and confidence on the host."""
    counts = host_counts("bins.count", bins.count, _CAUSE)
    correct = host_counts("bins.correct", bins.correct, _CAUSE)
    confidence = checks.host("bins.confidence", bins.confidence).astype(np.float64)
    checks.same_shape("bins.correct", correct.shape, "bins.count", counts.shape)
    checks.same_shape("bins.confidence", confidence.shape, "bins.count", counts.shape)
    if counts.ndim not in (1, 2):
        raise ValueError(f"bins must be [bins] or [classes, bins]; got shape {counts.shape}")
    if np.isnan(confidence).any():
        raise ValueError(f"bins.confidence is NaN: {_CAUSE}")
    return counts, correct, confidence


def _gaps(bins: CalibrationBins, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns |accuracy - confidence| of each bin, NaN if empty, and its share of the pixels, 0 without pixels."""
    counts, correct, confidence = _host_bins(bins)
    if counts.ndim != ndim:
        wanted = ("[bins], from calibration_bins", "[classes, bins], from classwise_calibration_bins")[ndim - 1]
        raise ValueError(f"bins must be {wanted}; got shape {counts.shape}")
    return np.abs(ratio(correct - confidence, counts)), counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)


def _mean_score(sums: ProperScoreSums, name: str) -> float:
    counts = host_counts("sums.count", sums.count, _CAUSE)
    total = checks.host(f"sums.{name}", getattr(sums, name)).astype(np.float64)
    if counts.shape != () or total.shape != ():
        raise ValueError(f"sums.count and sums.{name} must be scalars; got shapes {counts.shape} and {total.shape}")
    if np.isnan(total):
        raise ValueError(f"sums.{name} is NaN: {_CAUSE}")
    return float(ratio(total, counts))


def _host_pixels(logits, labels, where) -> tuple[np.ndarray, np.ndarray]:
    """Returns the unmasked pixels on the host: logits float64 `[pixels, C]` and labels."""
    logits, labels = checks.host("logits", logits), checks.host("labels", labels)
    where = None if where is None else checks.host("where", where)
    checks.classes("logits", logits)
    checks.integers("labels", labels)
    checks.same_shape("labels", labels.shape, "logits without their class axis", logits.shape[:-1])
    keep = np.asarray(checks.mask("where", where, labels.shape))
    z, y = logits[keep].astype(np.float64), labels[keep].astype(np.int64)
    if not len(z):
        raise ValueError("fit_scaling needs at least one unmasked pixel; got 0")
    if not np.isfinite(z).all() or (y < 0).any() or (y >= z.shape[1]).any():
        raise ValueError(
            f"fit_scaling needs finite logits and labels in [0, {z.shape[1]}) in all unmasked pixels; got labels from "
            f"{y.min()} to {y.max()}, and {np.count_nonzero(~np.isfinite(z))} logits that are not finite"
        )
    return z, y


def _scaled_likelihood(z, y, parameters, basis):
    """Returns the mean of -log p of the scaled logits, its gradient and its Hessian, in the free parameters."""
    scale, bias = np.split(parameters, 2)
    scaled = z * scale + bias
    shifted = scaled - scaled.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    sums = powers.sum(axis=1, keepdims=True)
    p, n, rows = powers / sums, len(z), np.arange(len(z))
    value = np.mean(np.log(sums[:, 0]) - shifted[rows, y])
    surplus = p.copy()
    surplus[rows, y] -= 1
    gradient = np.concatenate([(surplus * z).sum(axis=0), surplus.sum(axis=0)]) / n
    both = np.concatenate([p * z, p], axis=1)
    squares, products, ones = (np.diag(x.sum(axis=0)) for x in (p * z * z, p * z, p))
    own = np.block([[squares, products], [products, ones]])
    return value, basis.T @ gradient, basis.T @ ((own - both.T @ both) / n) @ basis


def _newton(function, x: np.ndarray) -> np.ndarray:
    """Minimises a convex function of value, gradient and Hessian; raises a ValueError if it has no unique minimum."""
    value, gradient, hessian = function(x)
    curvature = np.linalg.eigvalsh(hessian)[-1]
    for _ in range(100):
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        decrease = gradient @ step
        if decrease < 1e-15:
            break
        size = 1.0
        while function(x - size * step)[0] > value - 1e-4 * size * decrease and size > 1e-8:
            size /= 2
        x = x - size * step
        value, gradient, hessian = function(x)
    # Where no pixel is wrong, the minimum is at infinity, and the function is flat on the way.
    if np.linalg.eigvalsh(hessian)[0] < 1e-9 * curvature:
        raise ValueError(
            "fit_scaling has no unique optimum: almost all pixels (of some class) are predicted correctly, or the "
            "logits of a class are constant; add images, or fit a temperature"
        )
    return x
