"""Per-pixel losses, softmax and sigmoid: cross entropy, focal loss and its relatives. `mean` reduces them.

They share these rules. Where `where` is False the pixel does not exist: its loss and its gradient are 0, whatever its
label (255, -1) or logit (NaN). An unmasked label outside the classes gives NaN by design, in the value and in the
gradient. bfloat16 and float16 are computed and returned in float32, float64 in float64. `gamma`, `alpha`, `beta`,
`delta`, `class_weights` and `label_smoothing` may be traced: a sweep over them compiles once, and `jax.vmap` over them
works. Derivatives of every order are finite for γ ≥ 0 and |logit| ≤ 1e4 (see `_log_odds.py`).
"""

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Real

from segjax import checks
from segjax.losses._log_odds import (
    balance,
    binary_terms,
    hinge,
    is_label,
    mask_classes,
    mask_to_zero,
    rematerialized,
    sigmoid_inputs,
    sigmoid_log_odds,
    soft_targets,
    softmax_inputs,
    softmax_log_odds,
    weight_of_label,
)

_WHY_NO_SCALAR_ALPHA = (
    "RetinaNet's scalar alpha balances positives against negatives, and softmax classes are neither: "
    "give one weight per class (see class_weights), or use sigmoid_focal_loss"
)


def softmax_cross_entropy(
    logits: Float[ArrayLike, "*pixels classes"],
    labels: Integer[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"],
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    class_weights: Real[ArrayLike, "classes"] | None = None,
    label_smoothing: Real[ArrayLike, ""] = 0.0,
) -> Float[Array, "*pixels"]:
    r"""Cross entropy of integer labels, per pixel.

    .. math::
        CE = -(1-ε) w_y \log p_y - \frac{ε}{C} \sum_j w_j \log p_j, \qquad p = softmax(z)

    with logits z, label y, class weights w (1 if not given) and label smoothing ε. This is PyTorch's convention: the
    smoothed terms carry the weights of *their* class.

    Args:
        logits: z, `[..., C]`, C ≥ 2, class last. A class switched off by a logit of -inf is fine, if one is left beside
            the label's.
        labels: y, integers in [0, C), `[...]`.
        where: boolean `[...]`, broadcastable; False: no such pixel.
        class_weights: w, `[C]`, for instance from `class_weights(counts, scheme)`.
        label_smoothing: ε in [0, 1]. With ε > 0 a class switched off costs infinity, unless its weight is 0.

    Returns:
        `[...]`, in nats, at least float32. Not reduced.

    Raises:
        TypeError: logits are not floating, labels not integers, `where` not boolean.
        ValueError: shapes do not fit, C < 2, or ε is outside [0, 1] (where it has a value: not when traced).

    References:
        Szegedy et al., Rethinking the Inception Architecture for Computer Vision, arXiv 1512.00567 (label smoothing).

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    >>> print(softmax_cross_entropy(logits, jnp.array([0, 255]), where=jnp.array([True, False])))
    [0.6931472 0.       ]
    """
    logits, labels, where = softmax_inputs(logits, labels, where)
    num_classes, dtype = logits.shape[-1], logits.dtype
    smoothing = checks.scalar("label_smoothing", label_smoothing, dtype, 0.0, 1.0)
    weights = None if class_weights is None else checks.per_class("class_weights", class_weights, num_classes, dtype)

    x = softmax_log_odds(logits, labels, where)
    own = -log_sigmoid(x)  # -log p_y
    loss = own if weights is None else weight_of_label(weights, labels) * own
    if isinstance(label_smoothing, jax.Array) or label_smoothing != 0:
        logits = logits if where is None else jnp.where(mask_classes(where, num_classes), logits, 0)
        own_logit = jnp.sum(jnp.where(is_label(labels, num_classes), logits, 0), axis=-1)
        every = own[..., None] + (own_logit[..., None] - logits)  # -log p_j
        if weights is not None:
            # A class of weight 0 may be switched off by a logit of -inf, and 0 · inf is NaN.
            every = jnp.where(weights == 0, 0, every) * jnp.broadcast_to(weights, every.shape)
        loss = jnp.where(smoothing == 0, loss, (1 - smoothing) * loss + smoothing * jnp.mean(every, axis=-1))
    return mask_to_zero(loss, where)


def softmax_focal_loss(
    logits: Float[ArrayLike, "*pixels classes"],
    labels: Integer[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"],
    *,
    gamma: Real[ArrayLike, ""] = 2.0,
    alpha: Real[ArrayLike, "classes"] | None = None,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
) -> Float[Array, "*pixels"]:
    r"""Focal loss of integer labels, per pixel: the easier the pixel, the less it counts.

    .. math::
        FL = -α_y (1 - p_y)^γ \log p_y, \qquad p = softmax(z)

    with logits z, label y, focusing parameter γ and class weights α. γ = 0 is `softmax_cross_entropy`, to the last bit.
    At γ = 2 a pixel with p_y = 0.9 counts 100 times less than in cross entropy, one with p_y = 0.5 four times less.

    Args:
        logits: z, `[..., C]`, C ≥ 2, class last. A class switched off by a logit of -inf is fine, if one is left beside
            the label's.
        labels: y, integers in [0, C), `[...]`.
        gamma: γ ≥ 0, a scalar.
        alpha: α, `[C]`, or None for 1. A scalar is an error: it weighs positives against negatives, and here are none.
        where: boolean `[...]`, broadcastable; False: no such pixel.

    Returns:
        `[...]`, in nats, at least float32. Not reduced; the paper divides by the number of positives.

    Raises:
        TypeError: logits are not floating, labels not integers, `where` not boolean.
        ValueError: shapes do not fit, C < 2, `alpha` is a scalar, or γ < 0 (where it has a value: not when traced).

    References:
        Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.9, 0.05, 0.05], [0.25, 0.5, 0.25]]))
    >>> labels = jnp.array([0, 1])
    >>> ratio = softmax_cross_entropy(logits, labels) / softmax_focal_loss(logits, labels, gamma=2.0)
    >>> print([round(float(r), 3) for r in ratio])
    [100.0, 4.0]
    """
    logits, labels, where = softmax_inputs(logits, labels, where)
    num_classes, dtype = logits.shape[-1], logits.dtype
    gamma = checks.scalar("gamma", gamma, dtype, 0.0)
    alpha = None if alpha is None else checks.per_class("alpha", alpha, num_classes, dtype, _WHY_NO_SCALAR_ALPHA)

    x = softmax_log_odds(logits, labels, where)
    loss = jnp.exp(gamma * log_sigmoid(-x)) * -log_sigmoid(x)  # (1 - p_y)^γ · -log p_y
    if alpha is not None:
        loss = weight_of_label(alpha, labels) * loss
    return mask_to_zero(loss, where)


def sigmoid_cross_entropy(
    logits: Float[ArrayLike, "*pixels"],
    targets: Real[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"],
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    alpha: Real[ArrayLike, ""] | None = None,
) -> Float[Array, "*pixels"]:
    r"""Binary cross entropy, balanced by α if it is given, per logit.

    .. math::
        CE = -α_t \left(t \log p + (1 - t) \log(1 - p)\right), \qquad p = σ(z), \quad α_t = α t + (1 - α)(1 - t)

    with logit z and target t: α weighs the positives, 1 - α the negatives; without α both count 1.

    Args:
        logits: z, any shape. For multi-label problems `[..., C]`: each class is a problem of its own.
        targets: t, the same shape: boolean, integers 0 and 1, or floats in [0, 1] (soft). Constants: no gradient.
        where: boolean of that shape or broadcastable to it; False: no such pixel.
        alpha: α in [0, 1], a scalar, or None.

    Returns:
        The loss of each logit, in nats, the shape of the logits, at least float32. Not reduced.

    Raises:
        TypeError: logits are not floating, `where` not boolean.
        ValueError: shapes do not fit, or α is outside [0, 1] (where it has a value: not when traced).

    References:
        Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 3.1.

    >>> import jax.numpy as jnp
    >>> print(sigmoid_cross_entropy(jnp.zeros(3), jnp.array([1, 0, 255]), where=jnp.array([True, True, False])))
    [0.6931472 0.6931472 0.       ]
    """
    logits, targets, where = sigmoid_inputs(logits, targets, where)
    dtype = checks.widened(logits.dtype)
    alpha = None if alpha is None else checks.scalar("alpha", alpha, dtype, 0.0, 1.0)

    def formula(z, t, alpha):
        cross_entropy, _ = binary_terms(z, t)
        return balance(alpha, t) * cross_entropy

    return rematerialized(formula, dtype, where, (logits, targets), (alpha,))


def sigmoid_focal_loss(
    logits: Float[ArrayLike, "*pixels"],
    targets: Real[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"],
    *,
    gamma: Real[ArrayLike, ""] = 2.0,
    alpha: Real[ArrayLike, ""] | None = None,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
) -> Float[Array, "*pixels"]:
    r"""Focal loss of binary targets, RetinaNet's, per logit.

    .. math::
        FL = -α_t (1 - p_t)^γ \left(t \log p + (1 - t) \log(1 - p)\right), \qquad p_t = t p + (1 - t)(1 - p)

    with p = σ(z), logit z, target t, focusing parameter γ and α_t = α t + (1 - α)(1 - t). γ = 0 is
    `sigmoid_cross_entropy`, to the last bit. The paper's best pair is γ = 2, α = 0.25.

    Args:
        logits: z, any shape. For multi-label problems `[..., C]`: each class is a problem of its own.
        targets: t, the same shape: boolean, integers 0 and 1, or floats in [0, 1] (soft). Constants: no gradient.
        gamma: γ ≥ 0, a scalar.
        alpha: α in [0, 1], a scalar, or None for no balance.
        where: boolean of that shape or broadcastable to it; False: no such pixel.

    Returns:
        The loss of each logit, in nats, the shape of the logits, at least float32. Not reduced: the paper's reduction
        is `mean(..., positives=targets == 1, normalizer="positives")`.

    Raises:
        TypeError: logits are not floating, `where` not boolean.
        ValueError: shapes do not fit, α is outside [0, 1] or γ < 0 (where they have values: not when traced).

    References:
        Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002.

    >>> import jax.numpy as jnp
    >>> logits = jnp.array([2.1972246, 0.0])  # p = 0.9 and p = 0.5
    >>> targets = jnp.array([1, 1])
    >>> ratio = sigmoid_cross_entropy(logits, targets) / sigmoid_focal_loss(logits, targets, gamma=2.0)
    >>> print([round(float(r), 3) for r in ratio])
    [100.0, 4.0]
    """
    logits, targets, where = sigmoid_inputs(logits, targets, where)
    dtype = checks.widened(logits.dtype)
    gamma = checks.scalar("gamma", gamma, dtype, 0.0)
    alpha = None if alpha is None else checks.scalar("alpha", alpha, dtype, 0.0, 1.0)

    def formula(z, t, gamma, alpha):
        cross_entropy, log_one_minus_pt = binary_terms(z, t)
        return balance(alpha, t) * (jnp.exp(gamma * log_one_minus_pt) * cross_entropy)

    return rematerialized(formula, dtype, where, (logits, targets), (gamma, alpha))


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
    logits, targets, where = sigmoid_inputs(logits, targets, where)
    dtype = checks.widened(logits.dtype)
    gamma = checks.finite("gamma", gamma, dtype, above=0.0)
    beta = checks.finite("beta", beta, dtype)
    alpha = None if alpha is None else checks.scalar("alpha", alpha, dtype, 0.0, 1.0)

    def star(x, gamma, beta):
        return -log_sigmoid(gamma * x + beta) / gamma

    def formula(z, t, gamma, beta, alpha):
        if jnp.issubdtype(t.dtype, jnp.integer):
            loss = star(sigmoid_log_odds(z, t), gamma, beta)
        else:
            t = soft_targets(t)
            loss = t * star(z, gamma, beta) + (1 - t) * star(-z, gamma, beta)
        return balance(alpha, t) * loss

    return rematerialized(formula, dtype, where, (logits, targets), (gamma, beta, alpha))


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
    logits, targets, where = sigmoid_inputs(logits, targets, where)

    def formula(z, t):
        return hinge(sigmoid_log_odds(z, t))

    return rematerialized(formula, checks.widened(logits.dtype), where, (logits, targets))


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
    predictions = checks.floating_as_given("predictions", predictions)
    targets = checks.floating_as_given("targets", targets)
    checks.same_shape("targets", targets.shape, "predictions", predictions.shape)
    where = None if where is None else checks.mask("where", where, predictions.shape)
    dtypes = checks.widened(predictions.dtype), checks.widened(targets.dtype)
    dtype = max(dtypes, key=lambda dtype: dtype.itemsize)
    delta = checks.finite("delta", delta, dtype, above=0.0)

    def formula(predictions, targets, delta):
        error = predictions - targets
        small = ~(jnp.abs(error) > delta)  # NaN counts as small: the square keeps it in the gradient
        # Selected before the square: a large one overflows, and its derivative would be 0 · ∞.
        return jnp.where(small, jnp.where(small, error, 0) ** 2 / 2, delta * (jnp.abs(error) - delta / 2))

    return rematerialized(formula, dtype, where, (predictions, targets), (delta,))
