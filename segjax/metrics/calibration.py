"""Whether a probability means what it says: calibration errors from binned counts.

Counted on the device, scored on the host; all of it adds. Softmax logits `[..., C]` and integer labels `[...]`.
"""

import math
from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer

from segjax import checks
from segjax.collectives import psum
from segjax.metrics.counts import INVALID, add_up, count, host_counts, ratio
from segjax.metrics.probabilities import softmax_inputs

_CAUSE = "a label outside [0, classes) or a NaN logit was counted, in a pixel that `where` keeps"
# Float32 has this spacing below 1: nothing of a confidence above 1/2 is lost, and at most 3e-8 of a smaller one.
_FRACTION_BITS = 24


class CalibrationBins(NamedTuple):
    """What calibration is computed from; `[bins]`, or `[classes, bins]` from `classwise_calibration_bins`.

    Bins add: `jax.tree.map(np.add, a, b)`. A sum over a data set starts from int64 and float64 zeros, because a set
    can have more than 2^31 pixels and float32 rounds each time it adds.
    """

    count: Integer[jax.Array | np.ndarray, "*classes bins"]
    """Pixels whose confidence is in the bin, int32."""
    correct: Integer[jax.Array | np.ndarray, "*classes bins"]
    """Those of them that are of the class that the confidence speaks of, int32."""
    confidence: Float[jax.Array | np.ndarray, "*classes bins"]
    """The sum of their confidences, float32 (float64 for float64 logits), right to 1e-6 of itself plus 3e-8 a pixel."""


def calibration_bins(
    logits: Float[ArrayLike, "*pixels classes"],
    labels: Integer[ArrayLike, "*pixels"],
    *,
    num_bins: int = 15,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    axis_name: Hashable | None = None,
) -> CalibrationBins:
    r"""Bins of the top label's confidence, over all devices.

    .. math:: c = \max_j softmax(z)_j, \qquad c \in \left(\tfrac{b}{B}, \tfrac{b + 1}{B}\right] \text{ is in bin } b

    with logits z and B bins: closed at the right, as in Guo et al. and scikit-learn (NumPy, TensorFlow Probability and
    netcal close the left; torchmetrics does too, and gives c = 1 a bin of its own). A pixel is correct if the first of
    its largest logits is the label's. For an ensemble, pass `log_mean_softmax(mc_logits)`.

    Args:
        logits: z, `[..., C]`, class last, C ≥ 2; -inf rules a class out.
        labels: integers in [0, C), `[...]`.
        num_bins: B ≥ 1, static.
        where: boolean `[...]` or broadcastable to it; False: no such pixel, whatever its logits or label.
        axis_name: the mapped device axis, or None under `jit`.

    Returns:
        `CalibrationBins` of `[num_bins]`. If `where` keeps a label outside [0, C) or logits with a NaN or +inf (or -inf
        only), every count is -2^31 (integers have no NaN) and every sum NaN, which the scores refuse.

    Raises:
        TypeError: logits are not floating, labels not integers, `where` not boolean.
        ValueError: shapes do not fit, or num_bins < 1.

    References:
        Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599.

    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.375, 0.625], [0.125, 0.875]]))
    >>> bins = calibration_bins(logits, jnp.array([0, 0, 1]), num_bins=5)
    >>> print(bins.count, bins.correct, np.asarray(bins.confidence).round(3))
    [0 0 0 2 1] [0 0 0 1 1] [0.    0.    0.    1.375 0.875]
    """
    logits, labels, valid, keep = softmax_inputs(logits, labels, where)
    # No logarithm: a confidence does not need the digits that `log_softmax` keeps. And no `where` before the result:
    # counts have no gradient that a NaN could reach. Both together would take four times as long on a CPU.
    confidence = 1 / jnp.sum(jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)), axis=-1)
    correct = jnp.argmax(logits, axis=-1).astype(jnp.int32) == labels
    group = jnp.zeros_like(labels)
    return _binned(confidence, correct, group, valid, keep, (_at_least_one("num_bins", num_bins),), axis_name)


def classwise_calibration_bins(
    logits: Float[ArrayLike, "*pixels classes"],
    labels: Integer[ArrayLike, "*pixels"],
    *,
    num_bins: int = 15,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    axis_name: Hashable | None = None,
) -> CalibrationBins:
    r"""Bins of the probability of every class, over all devices: a pixel is counted once for each class.

    .. math:: p_j = softmax(z)_j, \qquad p_j \in \left(\tfrac{b}{B}, \tfrac{b + 1}{B}\right] \text{ is in bin } (j, b)

    Args:
        logits: z, as in `calibration_bins`, and so are the bins; p = 0 is in the first.
        labels: as in `calibration_bins`.
        num_bins: B ≥ 1, static.
        where: as in `calibration_bins`.
        axis_name: as in `calibration_bins`.

    Returns:
        `CalibrationBins` of `[C, num_bins]`: `correct` counts the pixels of that class, `confidence` sums its p. Kept
        labels or logits that are none: as in `calibration_bins`.

    Raises:
        TypeError: logits are not floating, labels not integers, `where` not boolean.
        ValueError: shapes do not fit, or num_bins < 1.

    References:
        Kull et al., Beyond temperature scaling, arXiv 1910.12656; Nixon et al., Measuring Calibration in Deep
        Learning, arXiv 1904.01685 (as the static calibration error).

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.375, 0.625]]))
    >>> bins = classwise_calibration_bins(logits, jnp.array([0, 0]), num_bins=2)
    >>> print(bins.count, bins.correct)
    [[1 1]
     [1 1]] [[1 1]
     [0 0]]
    """
    logits, labels, valid, keep = softmax_inputs(logits, labels, where)
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, labels.ndim)
    return _binned(
        jax.nn.softmax(logits),
        classes == labels[..., None],
        classes,
        jnp.broadcast_to(valid[..., None], logits.shape),
        None if keep is None else jnp.broadcast_to(keep[..., None], logits.shape),
        (logits.shape[-1], _at_least_one("num_bins", num_bins)),
        axis_name,
    )


def expected_calibration_error(bins: CalibrationBins) -> float:
    r"""Expected calibration error: how far confidence is from accuracy, averaged over the pixels.

    .. math:: ECE = \sum_b \frac{n_b}{N} \left|acc_b - conf_b\right|

    with n_b of the N pixels in bin b, acc_b their accuracy and conf_b their mean confidence.

    Args:
        bins: `[bins]`, sums of `calibration_bins`.

    Returns:
        ECE in [0, 1], 0 is best (a share, not percent); NaN if nothing was counted.

    Raises:
        TypeError: the bins are traced, or their counts not integers.
        ValueError: they are not `[bins]`, or something impossible was counted (see `calibration_bins`).

    References:
        Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015; Guo et al., arXiv
        1706.04599.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.375, 0.625]]))
    >>> bins = calibration_bins(logits, jnp.array([0, 0]))
    >>> round(expected_calibration_error(bins), 4)  # (|1 - 0.75| + |0 - 0.625|) / 2
    0.4375
    """
    gap, share = _gaps(bins, "calibration_bins", 1)
    return float(np.nansum(gap * share)) if share.any() else float("nan")


def maximum_calibration_error(bins: CalibrationBins) -> float:
    r"""Maximum calibration error: the worst bin's distance of confidence from accuracy.

    .. math:: MCE = \max_{b:\, n_b > 0} \left|acc_b - conf_b\right|

    A bin with a single pixel counts as much as one with all others, so it is only for large sets.

    Args:
        bins: `[bins]`, sums of `calibration_bins`.

    Returns:
        MCE in [0, 1], 0 is best; NaN if nothing was counted.

    Raises:
        TypeError: the bins are traced, or their counts not integers.
        ValueError: they are not `[bins]`, or something impossible was counted (see `calibration_bins`).

    References:
        Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.375, 0.625]]))
    >>> round(maximum_calibration_error(calibration_bins(logits, jnp.array([0, 0]))), 4)
    0.625
    """
    gap, share = _gaps(bins, "calibration_bins", 1)
    return float(np.nanmax(gap)) if share.any() else float("nan")


def classwise_calibration_error(bins: CalibrationBins) -> dict[str, float | np.ndarray]:
    r"""The calibration error of each class's probability, and their mean.

    .. math:: ECE_j = \sum_b \frac{n_{jb}}{N} \left|freq_{jb} - p_{jb}\right|, \qquad cwECE = \frac{1}{C} \sum_j ECE_j

    with freq the share of class j among the n pixels of a bin and p their mean probability of class j. A class without
    a true pixel has an error too (its whole probability), and is in the mean. A rare class has p near 0 in nearly all
    pixels, and so a small error whatever the model knows of it: compare it with the class's frequency.

    Args:
        bins: `[classes, bins]`, sums of `classwise_calibration_bins`.

    Returns:
        `calibration_error_per_class`, float64 `[C]`, and `mean_calibration_error`, in [0, 1]; NaN if nothing was
        counted.

    Raises:
        TypeError: the bins are traced, or their counts not integers.
        ValueError: they are not `[classes, bins]`, or something impossible was counted (see `calibration_bins`).

    References:
        Kull et al., Beyond temperature scaling, arXiv 1910.12656, equation 3; Nixon et al., arXiv 1904.01685.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.375, 0.625]]))
    >>> errors = classwise_calibration_error(classwise_calibration_bins(logits, jnp.array([0, 0])))
    >>> round(errors["mean_calibration_error"], 4), errors["calibration_error_per_class"].round(4).tolist()
    (0.4375, [0.4375, 0.4375])
    """
    gap, share = _gaps(bins, "classwise_calibration_bins", 2)
    per_class = np.where(share.any(axis=-1), np.nansum(gap * share, axis=-1), np.nan)
    return {"mean_calibration_error": float(per_class.mean()), "calibration_error_per_class": per_class}


def reliability_diagram(bins: CalibrationBins) -> dict[str, np.ndarray]:
    r"""What a reliability diagram draws: accuracy against mean confidence, bin by bin.

    .. math:: acc_b = \frac{k_b}{n_b}, \qquad conf_b = \frac{1}{n_b} \sum_{i \in b} p_i, \qquad share_b = \frac{n_b}{N}

    with n_b of the N pixels in bin b, k_b of them correct, and their confidences p_i.

    Args:
        bins: `[bins]` or `[classes, bins]`, sums of `calibration_bins` or `classwise_calibration_bins`.

    Returns:
        float64 arrays: `edges` `[bins + 1]`; in the shape of the bins `confidence` (the mean) and `accuracy`, NaN in
        empty bins, and `share`, the bin's share of the pixels, NaN if there are none.

    Raises:
        TypeError: the bins are traced, or their counts not integers.
        ValueError: their shapes differ, or something impossible was counted (see `calibration_bins`).

    References:
        Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, figure 1.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.375, 0.625]]))
    >>> diagram = reliability_diagram(calibration_bins(logits, jnp.array([0, 0]), num_bins=2))
    >>> print(diagram["edges"], diagram["confidence"], diagram["accuracy"], diagram["share"])
    [0.  0.5 1. ] [   nan 0.6875] [nan 0.5] [0. 1.]
    """
    counts, correct, confidence = _host_bins(bins)
    return {
        "edges": np.linspace(0.0, 1.0, counts.shape[-1] + 1),
        "confidence": ratio(confidence, counts),
        "accuracy": ratio(correct, counts),
        "share": ratio(counts, counts.sum(axis=-1, keepdims=True)),
    }


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")
    return value


def _binned(
    confidence: Float[Array, "*items"],
    correct: Bool[Array, "*items"],
    group: Int[Array, "*items"],
    valid: Bool[Array, "*items"],
    keep: Bool[Array, "*items"] | None,
    shape: tuple[int, ...],
    axis_name: Hashable | None,
) -> CalibrationBins:
    """Bins of that shape: the last axis by confidence, the first of two by group. A pixel is in each group once."""
    num_bins, num_places = shape[-1], math.prod(shape)
    edges = _edges_below(num_bins, confidence.dtype)
    places = group * num_bins + jnp.searchsorted(edges, confidence, method="compare_all").astype(jnp.int32)
    outcome = correct.astype(jnp.int32) * num_places + places
    wrong, right = count(outcome, valid, keep, 2 * num_places, axis_name).reshape(2, *shape)
    # Two INVALIDs would add up to 0.
    counts = jnp.where(wrong < 0, jnp.int32(INVALID), wrong + right)
    counted = valid if keep is None else valid & keep
    pixels = confidence.size // math.prod(shape[:-1])
    sums = _sums(places, jnp.where(counted, confidence, 0), num_places, pixels, axis_name).reshape(shape)
    return CalibrationBins(counts, right, jnp.where(counts < 0, jnp.nan, sums))


def _edges_below(num_bins: int, dtype: jnp.dtype) -> np.ndarray:
    """The inner edges rounded down to `dtype`: a confidence is above one of these if it is above the float64 edge."""
    exact = np.linspace(0.0, 1.0, num_bins + 1)[1:-1]
    edges = exact.astype(dtype)
    return np.where(edges > exact, np.nextafter(edges, np.zeros_like(edges)), edges)


def _sums(
    places: Int[Array, "*items"],
    values: Float[Array, "*items"],
    num_places: int,
    most: int,
    axis_name: Hashable | None,
) -> Float[Array, "places"]:
    """Σ of values in [0, 1] by place, over all devices, exact but for the values' rounding to fixed point.

    No place takes more than `most` of this device's values.

    Float32 is wrong by 5e-3 after 4 million pixels added one by one, which is what a scatter does. So the bits of a
    value are cut into parts so short that no integer sum of them can overflow; the order does not matter either.
    """
    items = most * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    part_bits = max(31 - items.bit_length(), 1)
    fixed = jnp.round(values * 2**_FRACTION_BITS).astype(jnp.int32)
    parts = [(fixed >> shift) & (2**part_bits - 1) for shift in range(0, _FRACTION_BITS + 1, part_bits)]
    sums = psum([add_up(places, part, num_places, part_bits) for part in parts], axis_name)
    scaled = [one.astype(values.dtype) * 2.0 ** (i * part_bits - _FRACTION_BITS) for i, one in enumerate(sums)]
    return sum(reversed(scaled[:-1]), start=scaled[-1])


def _host_bins(bins: CalibrationBins) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count, correct and confidence on the host."""
    counts = host_counts("bins.count", checks.host("bins.count", bins.count), _CAUSE)
    correct = host_counts("bins.correct", checks.host("bins.correct", bins.correct), _CAUSE)
    confidence = checks.host("bins.confidence", bins.confidence).astype(np.float64)
    checks.same_shape("bins.correct", correct.shape, "bins.count", counts.shape)
    checks.same_shape("bins.confidence", confidence.shape, "bins.count", counts.shape)
    if counts.ndim not in (1, 2):
        raise ValueError(f"bins must be [bins] or [classes, bins]; got shape {counts.shape}")
    if np.isnan(confidence).any():
        raise ValueError(f"bins.confidence is NaN: {_CAUSE}")
    return counts, correct, confidence


def _gaps(bins: CalibrationBins, source: str, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    """|accuracy - confidence| of each bin, NaN if empty, and its share of the pixels, 0 if there are none."""
    counts, correct, confidence = _host_bins(bins)
    if counts.ndim != ndim:
        wanted = "[bins]" if ndim == 1 else "[classes, bins]"
        raise ValueError(f"bins must be {wanted}, from {source}; got shape {counts.shape}")
    return np.abs(ratio(correct - confidence, counts)), counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
