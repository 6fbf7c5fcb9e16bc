"""Brier score and negative log-likelihood: how good probabilities are, calibration and sharpness in one number.

Summed on the device, scored on the host. Softmax logits `[..., C]` and integer labels `[...]`.
"""

from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Integer

from segjax import checks
from segjax.collectives import psum
from segjax.metrics.counts import count, host_counts, ratio
from segjax.metrics.probabilities import log_softmax, softmax_inputs

_CAUSE = "a label outside [0, classes) or a NaN logit was counted, in a pixel that `where` keeps"


class ProperScoreSums(NamedTuple):
    """Sums over pixels; they add as `CalibrationBins` do."""

    count: Integer[jax.Array | np.ndarray, ""]
    """Kept pixels, int32."""
    brier: Float[jax.Array | np.ndarray, ""]
    """Σ of the pixels' Brier scores, at least float32."""
    nll: Float[jax.Array | np.ndarray, ""]
    """Σ of -log p of the true class in nats, at least float32."""


def proper_score_sums(
    logits: Float[ArrayLike, "*pixels classes"],
    labels: Integer[ArrayLike, "*pixels"],
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    axis_name: Hashable | None = None,
) -> ProperScoreSums:
    r"""Sums of the Brier score and of the negative log-likelihood over the pixels of all devices.

    .. math:: \left(N,\; \sum_i \sum_c (p_{ic} - t_{ic})^2,\; -\sum_i \log p_{i y_i}\right), \qquad p_i = softmax(z_i)

    over the N kept pixels i, with t = 1 for the true class y_i and 0 for the others.

    Args:
        logits: z, as in `calibration_bins`; confident pixels keep their digits (1 - p is never formed from p).
        labels: as in `calibration_bins`.
        where: as in `calibration_bins`.
        axis_name: as in `calibration_bins`.

    Returns:
        `ProperScoreSums`, scalars. Kept labels or logits that are none: as in `calibration_bins`. The true class ruled
        out (logit -inf): an infinite NLL, which is what it is.

    Raises:
        TypeError: logits are not floating, labels not integers, `where` not boolean.
        ValueError: shapes do not fit.

    References:
        Gneiting and Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation, JASA 102 (2007).

    >>> import jax.numpy as jnp
    >>> sums = proper_score_sums(jnp.zeros((3, 2)), jnp.array([0, 1, 255]), where=jnp.array([True, True, False]))
    >>> print(sums.count, sums.brier, round(float(sums.nll), 4))
    2 1.0 1.3863
    """
    logits, labels, valid, keep = softmax_inputs(logits, labels, where)
    if keep is not None:
        # These sums have a gradient, which a NaN of a pixel that does not exist must not reach.
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
    r"""The mean Brier score of all classes.

    .. math:: BS = \frac{1}{N} \sum_i \sum_c (p_{ic} - t_{ic})^2

    with t = 1 for the true class and 0 for the others. This is Brier's own definition; others halve it (so that it is
    in [0, 1], and for two classes equal to the binary score of one of them) or divide by C.

    Args:
        sums: sums of `proper_score_sums`.

    Returns:
        The score in [0, 2], 0 is best; NaN if nothing was counted.

    Raises:
        TypeError: the sums are traced, or the count not an integer.
        ValueError: something impossible was counted (see `calibration_bins`).

    References:
        Brier, Verification of Forecasts Expressed in Terms of Probability, Monthly Weather Review 78 (1950).

    >>> import jax.numpy as jnp
    >>> brier_score(proper_score_sums(jnp.zeros((3, 2)), jnp.array([0, 1, 1])))
    0.5
    """
    return _mean_of(sums, "brier")


def negative_log_likelihood(sums: ProperScoreSums) -> float:
    r"""The mean negative log-likelihood of the true class, also known as log loss or cross entropy.

    .. math:: NLL = -\frac{1}{N} \sum_i \log p_{i y_i}

    Args:
        sums: sums of `proper_score_sums`.

    Returns:
        NLL in nats, [0, inf], 0 is best; NaN if nothing was counted.

    Raises:
        TypeError: the sums are traced, or the count not an integer.
        ValueError: something impossible was counted (see `calibration_bins`).

    References:
        Gneiting and Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation, JASA 102 (2007).

    >>> import jax.numpy as jnp
    >>> round(negative_log_likelihood(proper_score_sums(jnp.zeros((3, 2)), jnp.array([0, 1, 1]))), 6)
    0.693147
    """
    return _mean_of(sums, "nll")


def _mean_of(sums: ProperScoreSums, name: str) -> float:
    # A sum of 0-d arrays is a NumPy scalar: an array again.
    counts = host_counts("sums.count", checks.host("sums.count", sums.count), _CAUSE)
    total = checks.host(f"sums.{name}", getattr(sums, name)).astype(np.float64)
    if counts.shape != () or total.shape != ():
        raise ValueError(f"sums.count and sums.{name} must be scalars; got shapes {counts.shape} and {total.shape}")
    if np.isnan(total):
        raise ValueError(f"sums.{name} is NaN: {_CAUSE}")
    return float(ratio(total, counts))
