"""Uncertainty as a loss: what the dropout heads disagree on, where it is not background.

The Cityscapes U-Net recipe (Regressionist/Semantic-Segmentation-UNet) adds to its cross entropy

    C · mean(uncertainty_penalty(mc_variance(mc_logits), logits, background)).
"""

import operator
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from segjax import checks
from segjax.losses._log_odds import mask_to_zero, softmax_log_odds


def mc_variance(
    mc_logits: Float[ArrayLike, "heads *pixels classes"],
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
) -> Float[Array, "*pixels"]:
    r"""The variance of the logits over Monte Carlo dropout heads, averaged over the classes, per pixel.

    .. math::
        v = \frac{1}{C} \sum_c \frac{1}{K - 1} \sum_k (z_{kc} - \bar z_c)^2, \qquad \bar z_c = \frac{1}{K} \sum_k z_{kc}

    with the logit z of head k and class c: the unbiased variance (NumPy's and PyTorch's with one degree of freedom
    taken off). Deviations are squared, not E[z²] - E[z]² formed, so logits far from 0 keep their digits.

    Args:
        mc_logits: z, `[K, ..., C]`, K ≥ 2 heads first, class last.
        where: boolean `[...]`, broadcastable; False: no such pixel, its variance is 0. `uncertainty_penalty` takes the
            same mask, but cannot undo the NaN gradient of a NaN that stands in `mc_logits`; here is where to stop it.

    Returns:
        v, `[...]`, in logits squared, at least float32. The gradient flows to every head; it is 0 where all agree.

    Raises:
        TypeError: `mc_logits` are not floating, `where` not boolean.
        ValueError: no head and class axis, K < 2, no class, or a mask that does not fit.

    References:
        Gal and Ghahramani, Dropout as a Bayesian Approximation, arXiv 1506.02142;
        Kendall and Gal, What Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?, arXiv 1703.04977.

    >>> import jax.numpy as jnp
    >>> heads = jnp.array([[[1.0, 0.0]], [[2.0, 0.0]], [[3.0, 3.0]]])  # 3 heads, 1 pixel, 2 classes
    >>> print(mc_variance(heads))  # of 1, 2, 3 it is 1, of 0, 0, 3 it is 3
    [2.]
    """
    mc_logits = checks.floating("mc_logits", mc_logits)
    if mc_logits.ndim < 2 or mc_logits.shape[-1] == 0:
        raise ValueError(
            f"mc_logits must be [heads, ..., classes], head first and class last; got shape {mc_logits.shape}"
        )
    heads = mc_logits.shape[0]
    if heads < 2:
        raise ValueError(
            f"mc_logits must hold at least 2 heads, since the unbiased variance divides by heads - 1; got {heads} "
            f"(shape {mc_logits.shape})"
        )
    if where is not None:
        keep = checks.mask("where", where, mc_logits.shape[1:-1])
        # With every head 0 such a pixel's variance is 0 already.
        mc_logits = jnp.where(keep[None, ..., None], mc_logits, 0)
    # A variance has no origin: seen from the first head, what all heads share is gone before their mean is rounded.
    deviations = mc_logits - jax.lax.stop_gradient(mc_logits[:1])
    deviations = deviations - jnp.mean(deviations, axis=0, keepdims=True)
    return jnp.mean(jnp.sum(deviations**2, axis=0) / (heads - 1), axis=-1)


def uncertainty_penalty(
    variance: Float[ArrayLike, "*pixels"],
    logits: Float[ArrayLike, "*pixels classes"],
    background: SupportsIndex | None,
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
) -> Float[Array, "*pixels"]:
    r"""The variance of each pixel, weighed by the probability that the pixel is *not* background.

    .. math::
        U = v \, (1 - p_b), \qquad p = softmax(z)

    with variance v, logit z and background class b. Background is large and its edge always uncertain: the factor
    keeps it from drowning the objects. `segjax.losses.mean` reduces U, and the recipe adds it to the cross entropy with
    a factor of 1 or 100. 1 - p_b is computed from the margin of b, so it keeps its digits where p_b is nearly 1.

    The gradient flows through the variance *and* through the logits, as in the recipe's code: the loss also falls when
    an uncertain pixel is called background. `jax.lax.stop_gradient(logits)` leaves the variance only.

    Args:
        variance: v ≥ 0, `[...]`: sampled, `mc_variance(mc_logits)`, or in closed form, `logit_variance.mean(-1)` of the
            `[..., C]` that a network with analytic dropout returns.
        logits: z, `[..., C]`, class last: those of the pass without dropout. C ≥ 2 unless `background` is None.
        background: b, in [0, C), known at compile time; None: the factor is 1, the penalty the variance itself. The
            logits are then read for their shape only: a NaN in them does not show, and their gradient is 0.
        where: boolean `[...]`, broadcastable; False: no such pixel, whatever its variance and logits.

    Returns:
        U, `[...]`, in logits squared, at least float32. Not reduced.

    Raises:
        TypeError: `variance` or `logits` are not floating, `background` no integer, `where` not boolean.
        ValueError: shapes do not fit, C < 2, or `background` is negative or not below C.

    References:
        The Cityscapes U-Net recipe (Regressionist/Semantic-Segmentation-UNet);
        Kendall and Gal, What Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?, arXiv 1703.04977.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.5, 0.5]]))
    >>> print(uncertainty_penalty(jnp.array([2.0, 2.0]), logits, background=0).round(4))
    [0.5 1. ]
    >>> print(uncertainty_penalty(jnp.array([2.0, 2.0]), logits, background=None))
    [2. 2.]
    """
    logits = checks.floating("logits", logits)
    if logits.ndim == 0:
        raise ValueError("logits must be [..., classes], class last; got a scalar")
    variance = _variance(variance, logits)
    dtype = max(variance.dtype, logits.dtype, key=lambda dtype: dtype.itemsize)
    variance, logits = variance.astype(dtype), logits.astype(dtype)
    background = None if background is None else _class("background", background, logits.shape[-1])
    keep = None if where is None else checks.mask("where", where, variance.shape)
    variance = mask_to_zero(variance, keep)
    if background is None:
        return variance
    x = softmax_log_odds(logits, jnp.full(variance.shape, background, jnp.int32), keep)
    return mask_to_zero(variance * jax.nn.sigmoid(-x), keep)


def _variance(variance: ArrayLike, logits: Float[Array, "*pixels classes"]) -> Float[Array, "*pixels"]:
    variance = checks.floating("variance", variance)
    if variance.shape == logits.shape:
        raise ValueError(
            f"variance must have one value a pixel, shape {logits.shape[:-1]}; got one a class, {variance.shape}: "
            "give their mean, variance.mean(-1)"
        )
    checks.same_shape("variance", variance.shape, "logits without their class axis", logits.shape[:-1])
    return variance


def _class(name: str, value: Any, num_classes: int) -> int:
    try:
        index = operator.index(value)
    except TypeError as error:
        raise TypeError(
            f"{name} must be a class index, an integer known at compile time, or None; got {value!r}"
        ) from error
    if num_classes < 2:
        raise ValueError(f"logits must have at least 2 classes for one of them to be the {name}; got {num_classes}")
    if not 0 <= index < num_classes:
        raise ValueError(f"{name} must be a class index in [0, {num_classes}); got {index}")
    return index
