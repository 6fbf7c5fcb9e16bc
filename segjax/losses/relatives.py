"""Focal loss's relatives in its paper: FL* with its shift β, the hinge loss, and Huber's loss (smooth L1).

They keep the rules of the per-pixel losses (`pixel.py`): not reduced, and nothing comes of a pixel that `where` says
does not exist, whatever it holds; a kept target that is none gives NaN, in the value and in the gradient; bfloat16
and float16 are computed and returned in float32, float64 in float64; `gamma`, `beta`, `delta` and `alpha` may be
traced; first and second derivatives are finite for |logit| ≤ 1e4.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Real

from segjax import checks
from segjax.losses import margin
from segjax.losses.inputs import balanced, cleaned, kept, recomputed, sigmoid_inputs


def sigmoid_focal_star_loss(
    logits: Float[ArrayLike, "*pixels"],
    targets: Real[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"],
    *,
    gamma: Real[ArrayLike, ""] = 2.0,
    beta: Real[ArrayLike, ""] = 1.0,
    alpha: Real[ArrayLike, ""] | None = None,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
) -> Float[Array, "*pixels"]:
    r"""FL*, the focal loss paper's second form: cross entropy of a steeper and shifted logit, per logit.

    .. math::
        FL^* = -\frac{α_t}{γ} \log p_t^*, \qquad p_t^* = σ(γ x_t + β), \qquad
        \frac{dFL^*}{dx} = α_t \, y \, (p_t^* - 1)

    with logit x, y = 1 for a positive and -1 for a negative, x_t = y x, steepness γ, shift β and
    α_t = α t + (1 - α)(1 - t) for the target t. A soft target weighs the two sides:
    :math:`-\frac{α_t}{γ} (t \log σ(γ x + β) + (1 - t) \log σ(-γ x + β))`.
    γ = 1, β = 0 is `sigmoid_cross_entropy`. The paper's pairs are γ = 2, β = 1 and γ = 4, β = 0.

    Args:
        logits: x, any shape. For multi-label problems `[..., C]`: each class is a problem of its own.
        targets: t, the same shape: boolean, integers 0 and 1, or floats in [0, 1] (soft). Constants: no gradient.
        gamma: γ > 0, a scalar. There is no γ = 0: the loss grows beyond all bounds as γ falls.
        beta: β, a scalar. It moves the point from which a pixel counts as easy: without it FL* at γ = 2 is only CE of
            the doubled logit, halved.
        alpha: α in [0, 1], a scalar, or None for no balance.
        where: boolean of that shape or broadcastable to it; False: no such pixel.

    Returns:
        The loss of each logit, in nats over γ, the shape of the logits, at least float32. Not reduced: see
        `sigmoid_focal_loss` for the paper's reduction.

    Raises:
        TypeError: logits are not floating, `where` not boolean.
        ValueError: shapes do not fit, γ is not above 0, β is not finite or α is outside [0, 1] (where they have
            values: not when traced).

    References:
        Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, appendices A and B.

    >>> import jax.numpy as jnp
    >>> logits, targets = jnp.array([0.0, 3.0, -3.0]), jnp.array([1, 1, 1])
    >>> loss = sigmoid_focal_star_loss(logits, targets, gamma=2.0, beta=1.0)
    >>> print([round(float(l), 4) for l in loss])
    [0.1566, 0.0005, 2.5034]
    """
    logits, targets, keep = sigmoid_inputs(logits, targets, where)
    dtype = checks.widened(logits.dtype)
    gamma = checks.finite("gamma", gamma, dtype, above=0.0)
    beta = checks.finite("beta", beta, dtype)
    alpha = None if alpha is None else checks.scalar("alpha", alpha, dtype, 0.0, 1.0)
    return _focal_star(logits, targets, keep, gamma, beta, alpha)


def hinge_loss(
    logits: Float[ArrayLike, "*pixels"],
    targets: Real[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"],
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
) -> Float[Array, "*pixels"]:
    r"""Hinge loss of binary targets, per logit: nothing is left to gain once the margin is 1.

    .. math::
        H = \max(0, 1 - x_t), \qquad x_t = x \text{ if } t = 1, \; -x \text{ if } t = 0

    with logit x and target t. The slope at x_t = 1 exactly, where both sides meet, is 0. The focal loss paper tried a
    hinge (on p_t) and found training with it unstable.

    Args:
        logits: x, any shape.
        targets: t, the same shape, {0, 1}: boolean, integers, or floats that are exactly 0 or 1. No soft targets, and
            not the {-1, 1} of some libraries: any other kept value gives NaN, in the value and in the gradient.
        where: boolean of that shape or broadcastable to it; False: no such pixel.

    Returns:
        The loss of each logit, in units of the logit, the shape of the logits, at least float32. Not reduced.

    Raises:
        TypeError: logits are not floating, `where` not boolean.
        ValueError: shapes do not fit.

    References:
        Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 5.1 (as a rival of focal loss);
        Cortes and Vapnik, Support-Vector Networks, Machine Learning 20, 1995.

    >>> import jax.numpy as jnp
    >>> print(hinge_loss(jnp.array([0.25, 0.25, 3.0, jnp.nan]), jnp.array([1, 0, 1, 255]), where=jnp.arange(4) < 3))
    [0.75 1.25 0.   0.  ]
    """
    logits, targets, keep = sigmoid_inputs(logits, targets, where)
    margins = margin.sigmoid_margin(*cleaned(logits, targets, keep))
    # A straight line forgets that its argument was NaN; the factor brings the NaN into the gradient too.
    margins = margins * jnp.where(jnp.isnan(margins), jnp.nan, 1).astype(margins.dtype)
    return kept(jnp.where(margins >= 1, 0, 1 - margins), keep)


def huber_loss(
    predictions: Float[ArrayLike, "*pixels"],
    targets: Float[ArrayLike, "*pixels"],
    *,
    delta: Real[ArrayLike, ""] = 1.0,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
) -> Float[Array, "*pixels"]:
    r"""Huber's loss, per value: squared where the error is small, linear where it is large.

    .. math::
        H_δ = \begin{cases} d^2 / 2 & |d| \le δ \\ δ (|d| - δ / 2) & |d| > δ \end{cases}

    with the error d = prediction - target and δ, the largest slope. At δ = 1 it is the *smooth L1* loss of Fast R-CNN.
    It equals `optax.huber_loss` and PyTorch's `huber_loss`, each with the same δ; PyTorch's `smooth_l1_loss` with its
    `beta` = δ is this divided by δ, so that its largest slope is always 1.

    Args:
        predictions: any shape.
        targets: the same shape. Gradients flow to both; `jax.lax.stop_gradient` keeps one of them constant.
        delta: δ > 0, a scalar, in the unit of the values.
        where: boolean of that shape or broadcastable to it; False: no such value.

    Returns:
        The loss of each value, in their unit squared, their shape, at least float32. Not reduced.

    Raises:
        TypeError: predictions or targets are not floating, `where` not boolean.
        ValueError: shapes do not fit, or δ is not above 0 (where it has a value: not when traced).

    References:
        Huber, Robust Estimation of a Location Parameter, Annals of Mathematical Statistics 35, 1964;
        Girshick, Fast R-CNN, arXiv 1504.08083 (smooth L1).

    >>> import jax.numpy as jnp
    >>> print(huber_loss(jnp.array([0.5, -3.0, 1e30]), jnp.zeros(3), delta=2.0))
    [1.25e-01 4.00e+00 2.00e+30]
    """
    predictions = checks.floating("predictions", predictions)
    targets = checks.floating("targets", targets)
    checks.same_shape("targets", targets.shape, "predictions", predictions.shape)
    dtype = max(predictions.dtype, targets.dtype, key=lambda dtype: dtype.itemsize)
    predictions, targets = predictions.astype(dtype), targets.astype(dtype)
    delta = checks.finite("delta", delta, dtype, above=0.0)
    keep = None
    if where is not None:
        keep = checks.mask("where", where, predictions.shape)
        predictions, targets = kept(predictions, keep), kept(targets, keep)
    return kept(_huber(predictions, targets, delta), keep)


@jax.custom_jvp
def _huber(
    predictions: Float[Array, "*pixels"], targets: Float[Array, "*pixels"], delta: Float[Array, ""]
) -> Float[Array, "*pixels"]:
    """Its own rule of differentiation, so that a gradient is made of the arguments and keeps no array between."""
    error = predictions - targets
    cut = _cut_off(error, delta)
    return cut * (error - cut / 2)


@_huber.defjvp
def _huber_jvp(primals, tangents):
    predictions, targets, delta = primals
    error = predictions - targets
    cut = _cut_off(error, delta)
    slope = cut * (tangents[0] - tangents[1]) + jnp.abs(error - cut) * tangents[2]
    return _huber(*primals), slope


@jax.custom_jvp
def _cut_off(error: Float[Array, "*pixels"], delta: Float[Array, ""]) -> Float[Array, "*pixels"]:
    """The error, at most ±δ: joins both cases without ever squaring a large error, and has no kink at 0 as |d| does."""
    return jnp.maximum(-delta, jnp.minimum(error, delta))


@_cut_off.defjvp
def _cut_off_jvp(primals, tangents):
    # At ±δ itself the loss is still the squared one; maximum and minimum would share the slope between both sides.
    error, delta = primals
    slope = jnp.where(jnp.abs(error) <= delta, tangents[0], jnp.sign(error) * tangents[1])
    return _cut_off(*primals), slope


@recomputed
def _focal_star(logits, targets, gamma, beta, alpha):
    if jnp.issubdtype(targets.dtype, jnp.integer):
        loss = _star(margin.sigmoid_margin(logits, targets), gamma, beta)
    else:
        targets = margin.soft_targets(targets)
        loss = targets * _star(logits, gamma, beta) + (1 - targets) * _star(-logits, gamma, beta)
    return balanced(loss, alpha, targets)


def _star(margins: Float[Array, "*pixels"], gamma: Float[Array, ""], beta: Float[Array, ""]) -> Float[Array, "*pixels"]:
    return margin.cross_entropy(gamma * margins + beta) / gamma
