"""The variance over Monte Carlo dropout heads, and a penalty on it outside the background.

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
    r"""Computes the unbiased variance of the logits over dropout heads, averaged over the classes.

    .. math::
        v = \frac{1}{C} \sum_c \frac{1}{K - 1} \sum_k (z_{kc} - \bar z_c)^2, \qquad \bar z_c = \frac{1}{K} \sum_k z_{kc}

    with the logit z of head k and class c.

    Args:
        mc_logits: z, `[K, ..., C]`, K ≥ 2 heads first, class last.
        where: boolean, broadcastable to `[...]`; a pixel with False has variance 0 and gradient 0, even if it is NaN.

    Returns:
        v, `[...]`, in logits squared, at least float32.

    Raises:
        TypeError: `mc_logits` are not floating point, or `where` is not boolean.
        ValueError: no head or class axis, K < 2, no class, or a mask that does not fit.

    References:
        Gal and Ghahramani, Dropout as a Bayesian Approximation, arXiv 1506.02142;
        Kendall and Gal, What Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?, arXiv 1703.04977.

    >>> print(mc_variance(jnp.array([[[1.0, 0.0]], [[2.0, 0.0]], [[3.0, 3.0]]])))  # class variances 1 and 3
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
        mc_logits = jnp.where(checks.mask("where", where, mc_logits.shape[1:-1])[None, ..., None], mc_logits, 0)
    # Without the offset that the heads share, the mean loses no digits.
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
    r"""Returns the variance per pixel, weighted by the probability that the pixel is not background.

    .. math::
        U = v \, (1 - p_b), \qquad p = softmax(z)

    with variance v, logit z and background class b. The factor keeps the large, uncertain rim of the background from
    dominating the objects. Gradients flow through variance and logits, as in the recipe: the loss also falls when an
    uncertain pixel becomes background. `jax.lax.stop_gradient(logits)` leaves the variance only.

    Args:
        variance: v ≥ 0, `[...]`: `mc_variance(mc_logits)`, or `logit_variance.mean(-1)` of analytic dropout.
        logits: z, `[..., C]`, class last, of the pass without dropout. C ≥ 2 unless `background` is None.
        background: b in [0, C), static. None: the penalty is the variance, and the logits have no effect.
        where: boolean, broadcastable to `[...]`; a pixel with False has penalty 0 and gradient 0.

    Returns:
        U, `[...]`, unreduced, in logits squared, at least float32.

    Raises:
        TypeError: variance or logits are not floating point, `background` is not an integer, or `where` not boolean.
        ValueError: shapes do not fit, C < 2, or `background` is outside [0, C).

    References:
        The Cityscapes U-Net recipe (Regressionist/Semantic-Segmentation-UNet);
        Kendall and Gal, What Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?, arXiv 1703.04977.

    >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.5, 0.5]]))
    >>> print(uncertainty_penalty(jnp.array([2.0, 2.0]), logits, background=0).round(4))
    [0.5 1. ]
    """
    logits = checks.floating("logits", logits)
    if logits.ndim == 0:
        raise ValueError("logits must be [..., classes], class last; got a scalar")
    variance = checks.floating("variance", variance)
    if variance.shape == logits.shape:
        raise ValueError(
            f"variance must have one value per pixel, shape {logits.shape[:-1]}; got one per class, {variance.shape}: "
            "give their mean, variance.mean(-1)"
        )
    checks.same_shape("variance", variance.shape, "logits without their class axis", logits.shape[:-1])
    dtype = max(variance.dtype, logits.dtype, key=lambda dtype: dtype.itemsize)
    variance, logits = variance.astype(dtype), logits.astype(dtype)
    if background is not None:
        background = _class_index(background, logits.shape[-1])
    keep = None if where is None else checks.mask("where", where, variance.shape)

    variance = mask_to_zero(variance, keep)
    if background is None:
        return variance
    x = softmax_log_odds(logits, jnp.full(variance.shape, background, jnp.int32), keep)
    return mask_to_zero(variance * jax.nn.sigmoid(-x), keep)  # 1 - p_b = σ(-x)


def _class_index(background: Any, num_classes: int) -> int:
    try:
        index = operator.index(background)
    except TypeError as error:
        raise TypeError(
            f"background must be a class index, an integer known at compile time, or None; got {background!r}"
        ) from error
    if num_classes < 2:
        raise ValueError(f"logits must have at least 2 classes for one of them to be the background; got {num_classes}")
    if not 0 <= index < num_classes:
        raise ValueError(f"background must be a class index in [0, {num_classes}); got {index}")
    return index
