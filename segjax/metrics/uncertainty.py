"""How unsure a model is of each pixel, from K stochastic passes (dropout heads, an ensemble) `[K, ..., C]`.

On the device, unreduced. The variance over the passes is `segjax.losses.mc_variance`; whether a model is unsure where
it is wrong is the question of `selective.py`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from segjax import checks
from segjax.metrics.probabilities import log_softmax

# Below it the series is right to 1e-11 of itself, and the closed form has begun to lose digits.
_SERIES_BELOW = 0.1


def log_mean_softmax(
    mc_logits: Float[ArrayLike, "samples *pixels classes"], *, where: Bool[ArrayLike, "*#pixels"] | None = None
) -> Float[Array, "*pixels classes"]:
    r"""The log probabilities of the ensemble: of the mean of the samples' softmax.

    .. math:: \log \bar{p}, \qquad \bar{p} = \frac{1}{K} \sum_k softmax(z_k)

    They are logits too, and their softmax is the mean: what asks for `[..., C]` (`calibration_bins`, `max_probability`,
    an argmax) takes them as they are.

    Args:
        mc_logits: z, `[K, ..., C]`, K ≥ 1, C ≥ 2; -inf rules a class out.
        where: boolean `[...]` or broadcastable to it; False: no such pixel, its result is 0, whatever its logits.

    Returns:
        `[..., C]` in nats, at least float32, ≤ 0; finite (a class ruled out by all samples has about -1e38). NaN where
        `where` keeps a NaN or +inf.

    Raises:
        TypeError: logits are not floating, `where` not boolean.
        ValueError: shapes do not fit.

    References:
        Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles, arXiv
        1612.01474; Gal, Uncertainty in Deep Learning, PhD thesis, Cambridge 2016, section 3.3.

    >>> import jax.numpy as jnp
    >>> mc_logits = jnp.log(jnp.array([[0.5, 0.5], [0.75, 0.25]]))
    >>> print(jnp.exp(log_mean_softmax(mc_logits)))
    [0.625 0.375]
    """
    log_p, keep = _log_probabilities("mc_logits", mc_logits, where, samples=True)
    return _kept(_log_mean(log_p), None if keep is None else keep[..., None])


def predictive_entropy(
    mc_logits: Float[ArrayLike, "samples *pixels classes"], *, where: Bool[ArrayLike, "*#pixels"] | None = None
) -> Float[Array, "*pixels"]:
    r"""Entropy of the ensemble's prediction: the whole uncertainty of a pixel.

    .. math:: H[\bar{p}] = -\sum_c \bar{p}_c \log \bar{p}_c, \qquad \bar{p} = \frac{1}{K} \sum_k softmax(z_k)

    It is `expected_entropy` (the data's) plus `mutual_information` (the model's). For K = 1, the softmax's entropy.

    Args:
        mc_logits: z, `[K, ..., C]`, K ≥ 1, C ≥ 2; -inf rules a class out.
        where: boolean `[...]` or broadcastable to it; False: no such pixel, its result is 0, whatever its logits.

    Returns:
        `[...]` in nats, in [0, log C], at least float32; NaN where `where` keeps a NaN or +inf. Values and gradients
        are finite for |z| ≤ 1e4.

    Raises:
        TypeError: logits are not floating, `where` not boolean.
        ValueError: shapes do not fit.

    References:
        Gal, Uncertainty in Deep Learning, PhD thesis, Cambridge 2016, section 3.3.

    >>> import jax.numpy as jnp
    >>> sure_but_split = jnp.array([[100.0, 0.0], [0.0, 100.0]])
    >>> print(predictive_entropy(sure_but_split))  # log 2
    0.6931472
    """
    log_p, keep = _log_probabilities("mc_logits", mc_logits, where, samples=True)
    return _kept(_entropy(_log_mean(log_p)), keep)


def expected_entropy(
    mc_logits: Float[ArrayLike, "samples *pixels classes"], *, where: Bool[ArrayLike, "*#pixels"] | None = None
) -> Float[Array, "*pixels"]:
    r"""Mean entropy of the samples: the uncertainty that each of them has by itself (aleatoric, the data's).

    .. math:: \frac{1}{K} \sum_k H[softmax(z_k)]

    Args:
        mc_logits: as in `predictive_entropy`.
        where: as in `predictive_entropy`.

    Returns:
        `[...]` in nats, in [0, log C], at least float32; else as `predictive_entropy`.

    Raises:
        TypeError: logits are not floating, `where` not boolean.
        ValueError: shapes do not fit.

    References:
        Depeweg et al., Decomposition of Uncertainty in Bayesian Deep Learning, arXiv 1710.07283.

    >>> import jax.numpy as jnp
    >>> sure_but_split = jnp.array([[100.0, 0.0], [0.0, 100.0]])
    >>> print(expected_entropy(sure_but_split).round(6))
    0.0
    """
    log_p, keep = _log_probabilities("mc_logits", mc_logits, where, samples=True)
    return _kept(jnp.mean(_entropy(log_p), axis=0), keep)


def mutual_information(
    mc_logits: Float[ArrayLike, "samples *pixels classes"], *, where: Bool[ArrayLike, "*#pixels"] | None = None
) -> Float[Array, "*pixels"]:
    r"""Mutual information of label and parameters, BALD: what the samples disagree about (epistemic, the model's).

    .. math:: I = H[\bar{p}] - \frac{1}{K} \sum_k H[p_k] = \frac{1}{K} \sum_k KL(p_k \| \bar{p})

    The difference of the entropies rounds to noise where the samples nearly agree, and below 0. Computed is the sum of
    the divergences, of terms that are never negative: it is accurate however small.

    Args:
        mc_logits: as in `predictive_entropy`.
        where: as in `predictive_entropy`.

    Returns:
        `[...]` in nats, in [0, min(log K, log C)], at least float32, 0 for equal samples and for K = 1; else as
        `predictive_entropy`.

    Raises:
        TypeError: logits are not floating, `where` not boolean.
        ValueError: shapes do not fit.

    References:
        Houlsby et al., Bayesian Active Learning for Classification and Preference Learning, arXiv 1112.5745.

    >>> import jax.numpy as jnp
    >>> sure_but_split = jnp.array([[100.0, 0.0], [0.0, 100.0]])
    >>> unsure = jnp.zeros((2, 2))
    >>> print(mutual_information(sure_but_split), mutual_information(unsure))
    0.6931472 0.0
    """
    log_p, keep = _log_probabilities("mc_logits", mc_logits, where, samples=True)
    log_mean = _log_mean(log_p)
    divergence = jnp.exp(log_mean)[None] * _divergence(log_p - log_mean[None])
    return _kept(jnp.mean(jnp.sum(divergence, axis=-1), axis=0), keep)


def max_probability(
    logits: Float[ArrayLike, "*pixels classes"], *, where: Bool[ArrayLike, "*#pixels"] | None = None
) -> Float[Array, "*pixels"]:
    r"""The confidence: the probability of the likeliest class. Its uncertainty is `1 - max_probability(logits)`.

    .. math:: \max_c softmax(z)_c

    Args:
        logits: z, `[..., C]`, C ≥ 2; of an ensemble `log_mean_softmax(mc_logits)`, for the maximum of the mean (which
            is not the mean of the samples' maxima).
        where: boolean `[...]` or broadcastable to it; False: no such pixel, its result is 0, whatever its logits.

    Returns:
        `[...]` in [1/C, 1], at least float32; NaN where `where` keeps a NaN or +inf.

    Raises:
        TypeError: logits are not floating, `where` not boolean.
        ValueError: shapes do not fit.

    References:
        Hendrycks and Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, arXiv 1610.02136.

    >>> import jax.numpy as jnp
    >>> print(max_probability(jnp.log(jnp.array([[0.75, 0.25], [0.5, 0.5]]))))
    [0.75 0.5 ]
    """
    log_p, keep = _log_probabilities("logits", logits, where, samples=False)
    return _kept(jnp.exp(jnp.max(log_p, axis=-1)), keep)


def _log_probabilities(name, logits, where, *, samples):
    """Log softmax, `[K, ..., C]` or `[..., C]`, finite for classes ruled out; and the mask of the pixels."""
    logits = checks.floating(name, logits)
    wanted = "[samples, ..., classes]" if samples else "[..., classes]"
    if logits.ndim < 1 + samples or logits.shape[-1] < 2 or 0 in logits.shape[:samples]:
        raise ValueError(
            f"{name} must be {wanted} with at least 2 classes{' and 1 sample' * samples}; got shape {logits.shape}"
        )
    keep = None if where is None else checks.mask("where", where, logits.shape[samples:-1])
    if keep is not None:
        # Before the maths: a NaN of a pixel that does not exist must not reach a gradient.
        logits = jnp.where(keep[None, ..., None] if samples else keep[..., None], logits, 0)
    # 0 · -inf is NaN, where p log p is 0.
    return jnp.maximum(log_softmax(logits), float(jnp.finfo(logits.dtype).min) / 4), keep


def _kept(values, keep):
    return values if keep is None else jnp.where(keep, values, 0)


def _log_mean(log_p: Float[Array, "samples *pixels classes"]) -> Float[Array, "*pixels classes"]:
    """Log of the mean of exp. As log1p of expm1 it keeps the digits of a p near 1, and equal samples are their mean."""
    largest = jax.lax.stop_gradient(jnp.max(log_p, axis=0))
    return largest + jnp.log1p(jnp.mean(jnp.expm1(log_p - largest[None]), axis=0))


def _entropy(log_p: Float[Array, "*pixels classes"]) -> Float[Array, "*pixels"]:
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def _divergence(delta: Float[Array, "*items"]) -> Float[Array, "*items"]:
    """δ e^δ - e^δ + 1 ≥ 0 for δ = log(p / q): q times it, summed over the classes, is KL(p ‖ q), because Σ p = Σ q."""
    small = jnp.abs(delta) < _SERIES_BELOW
    near = jnp.where(small, delta, 0)
    far = jnp.where(small, 0, delta)
    # Σ_n δ^n (n - 1) / n!
    tail = 1 / 30 + near * (1 / 144 + near * (1 / 840 + near / 5760))
    series = near**2 * (1 / 2 + near * (1 / 3 + near * (1 / 8 + near * tail)))
    return jnp.where(small, series, far * jnp.exp(far) - jnp.expm1(far))
