"""Per-pixel classification losses: cross entropy, focal loss, Poly-1 and related losses, softmax and sigmoid.

They share these conventions. A pixel where `where` (broadcastable to the pixels) is False has loss 0 and gradient 0,
whatever its label (255, -1) or logit (NaN). An unmasked label outside the classes gives NaN by design, in value and
gradient. Narrow floats are widened to float32; float64 stays. Numbers (`gamma`, `alpha`, ...) may be traced; their
range is checked only if they are not. Derivatives of every order are finite for γ ≥ 0 and |logit| ≤ 1e4.
"""

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array, Float

from segjax import checks
from segjax.checks import ClassWeights, Distribution, Labels, Logits, PerPixel, Scalar, Targets, Where
from segjax.losses import _log_odds as numerics

_WHY_NO_SCALAR_ALPHA = (
    "RetinaNet's scalar alpha balances positives against negatives, and softmax classes are neither: "
    "give one weight per class (see class_weights), or use sigmoid_focal_loss"
)


def softmax_cross_entropy(
    logits: Logits,
    labels: Labels | Distribution,
    *,
    where: Where = None,
    class_weights: ClassWeights | None = None,
    label_smoothing: Scalar = 0.0,
) -> Float[Array, "*pixels"]:
    r"""Computes the cross entropy of integer labels, or of a distribution over the classes, per pixel.

    .. math::
        CE = -(1-ε) w_y \log p_y - \frac{ε}{C} \sum_j w_j \log p_j, \qquad p = softmax(z)

    and of a distribution t, :math:`-\sum_j w_j \left((1-ε) t_j + ε / C\right) \log p_j`, in which t is a constant.

    Args:
        logits: z, `[..., C]`, C ≥ 2. -inf switches a class off, if one other than the label's is left.
        labels: y, integers in [0, C), `[...]`; or t, floats ≥ 0 with sum 1, `[..., C]`. An unmasked t with a negative
            element, or with a sum that is not 1 to within 1 %, gives NaN.
        where: boolean `[...]`; False removes the pixel.
        class_weights: w ≥ 0, `[C]`; default 1. See `segjax.losses.class_weights`.
        label_smoothing: ε in [0, 1]. With ε > 0 a class switched off costs infinity, unless its weight is 0.

    Returns:
        `[...]`, in nats, at least float32.

    Raises: TypeError or ValueError if a dtype or shape does not fit, a weight is negative, or ε is outside [0, 1].

    References: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, arXiv 1512.00567.

    >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    >>> print(softmax_cross_entropy(logits, jnp.array([0, 255]), where=jnp.array([True, False])))
    [0.6931472 0.       ]
    """
    logits, labels, where = checks.softmax_targets(logits, labels, where)
    num_classes, dtype = logits.shape[-1], logits.dtype
    smoothing = checks.scalar("label_smoothing", label_smoothing, dtype, 0.0, 1.0)
    weights = None if class_weights is None else checks.per_class("class_weights", class_weights, num_classes, dtype)

    if labels.ndim == logits.ndim:
        log_p, _ = numerics.class_log_probabilities(logits, where)
        t = (1 - smoothing) * labels + smoothing / num_classes
        t = t if weights is None else jnp.broadcast_to(weights, t.shape) * t
        return numerics.mask_to_zero(-numerics.weighted_sum(t, log_p), where)

    x = numerics.softmax_log_odds(logits, labels, where)
    own = -log_sigmoid(x)  # -log p_y
    loss = own if weights is None else numerics.weight_of_label(weights, labels) * own
    if isinstance(label_smoothing, jax.Array) or label_smoothing != 0:
        logits = logits if where is None else jnp.where(numerics.mask_classes(where, num_classes), logits, 0)
        own_logit = jnp.sum(jnp.where(numerics.is_label(labels, num_classes), logits, 0), axis=-1)
        every = own[..., None] + (own_logit[..., None] - logits)  # -log p_j
        if weights is not None:  # selected, since a class of weight 0 may have the logit -inf, and 0 · inf is NaN
            every = jnp.where(weights == 0, 0, every) * jnp.broadcast_to(weights, every.shape)
        loss = jnp.where(smoothing == 0, loss, (1 - smoothing) * loss + smoothing * jnp.mean(every, axis=-1))
    return numerics.mask_to_zero(loss, where)


def softmax_focal_loss(
    logits: Logits,
    labels: Labels | Distribution,
    *,
    gamma: Scalar = 2.0,
    alpha: ClassWeights | None = None,
    where: Where = None,
) -> Float[Array, "*pixels"]:
    r"""Computes the focal loss of integer labels, or of a distribution, per pixel; it down-weights easy pixels.

    .. math:: FL = -α_y (1 - p_y)^γ \log p_y, \qquad p = softmax(z)

    and of a distribution t, :math:`-\sum_j α_j t_j (1 - p_j)^γ \log p_j`, as in MONAI and Keras.

    Args:
        logits, labels: z, and y or t, as in `softmax_cross_entropy`.
        gamma: focusing parameter γ ≥ 0; 0 is `softmax_cross_entropy`.
        alpha: α ≥ 0, `[C]`; default 1. A scalar is an error, since softmax classes are not positives and negatives.
        where: boolean `[...]`; False removes the pixel.

    Returns:
        `[...]`, in nats, at least float32.

    Raises: TypeError or ValueError if a dtype or shape does not fit, C < 2, `alpha` is a scalar or negative, or γ < 0.

    References: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002.

    >>> logits, labels = jnp.log(jnp.array([[0.9, 0.05, 0.05], [0.25, 0.5, 0.25]])), jnp.array([0, 1])
    >>> [round(float(x)) for x in softmax_cross_entropy(logits, labels) / softmax_focal_loss(logits, labels)]
    [100, 4]
    """
    logits, labels, where = checks.softmax_targets(logits, labels, where)
    num_classes, dtype = logits.shape[-1], logits.dtype
    gamma = checks.scalar("gamma", gamma, dtype, 0.0)
    alpha = None if alpha is None else checks.per_class("alpha", alpha, num_classes, dtype, _WHY_NO_SCALAR_ALPHA)

    if labels.ndim == logits.ndim:
        log_p, log_one_minus_p = numerics.class_log_probabilities(logits, where)
        t = labels if alpha is None else jnp.broadcast_to(alpha, labels.shape) * labels
        return numerics.mask_to_zero(-numerics.weighted_sum(t * jnp.exp(gamma * log_one_minus_p), log_p), where)

    x = numerics.softmax_log_odds(logits, labels, where)
    loss = jnp.exp(gamma * log_sigmoid(-x)) * -log_sigmoid(x)  # (1 - p_y)^γ · -log p_y
    if alpha is not None:
        loss = numerics.weight_of_label(alpha, labels) * loss
    return numerics.mask_to_zero(loss, where)


def softmax_poly1_loss(
    logits: Logits,
    labels: Labels,
    *,
    epsilon: Scalar = 1.0,
    gamma: Scalar = 0.0,
    alpha: ClassWeights | None = None,
    where: Where = None,
) -> Float[Array, "*pixels"]:
    r"""Computes Poly-1 of integer labels per pixel: cross entropy or focal loss with another leading coefficient.

    .. math::
        L = α_y \left(-(1 - p_y)^γ \log p_y + ε (1 - p_y)^{γ + 1}\right)
        = α_y (1 - p_y)^γ \left((1 + ε)(1 - p_y) + \sum_{j \ge 2} \frac{(1 - p_y)^j}{j}\right), \qquad p = softmax(z)

    γ = 0 is Poly-1 cross entropy, the paper's loss for softmax; ε = 0 is `softmax_focal_loss`.

    Args:
        logits: z, `[..., C]`, C ≥ 2.
        labels: y, integers in [0, C), `[...]`.
        epsilon: ε ≥ -1. The paper uses 2 for ImageNet and -1 for instance segmentation on COCO.
        gamma: focusing parameter γ ≥ 0.
        alpha: α ≥ 0, `[C]`; default 1. It weights both terms; other code weights one.
        where: boolean `[...]`; False removes the pixel.

    Returns:
        `[...]`, in nats, at least float32.

    Raises: TypeError or ValueError if a dtype or shape does not fit, C < 2, `alpha` is a scalar or negative, ε < -1, or
        γ < 0.

    References: Leng et al., PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions, arXiv
        2204.12511.

    >>> print(softmax_poly1_loss(jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.int32(0), epsilon=2.0))  # log 2 + 2 (1 - p)
    1.6931472
    """
    logits, labels, where = checks.softmax_inputs(logits, labels, where)
    num_classes, dtype = logits.shape[-1], logits.dtype
    epsilon = checks.scalar("epsilon", epsilon, dtype, -1.0)
    gamma = checks.scalar("gamma", gamma, dtype, 0.0)
    alpha = None if alpha is None else checks.per_class("alpha", alpha, num_classes, dtype, _WHY_NO_SCALAR_ALPHA)

    log_p, log_one_minus_p = numerics.log_probabilities(numerics.softmax_log_odds(logits, labels, where))
    loss = jnp.exp(gamma * log_one_minus_p) * -log_p + epsilon * jnp.exp((gamma + 1) * log_one_minus_p)
    if alpha is not None:
        loss = numerics.weight_of_label(alpha, labels) * loss
    return numerics.mask_to_zero(loss, where)


def sigmoid_cross_entropy(
    logits: PerPixel, targets: Targets, *, where: Where = None, alpha: Scalar | None = None
) -> Float[Array, "*pixels"]:
    r"""Computes the binary cross entropy per logit, balanced by α if given.

    .. math::
        CE = -α_t \left(t \log p + (1 - t) \log(1 - p)\right), \qquad p = σ(z), \quad α_t = α t + (1 - α)(1 - t)

    Args:
        logits: z, any shape; `[..., C]` for C independent labels per pixel.
        targets: t, that shape: boolean, 0 and 1, or floats in [0, 1] (soft). They have no gradient.
        where: boolean, that shape; False removes the logit.
        alpha: α in [0, 1]. None: α_t = 1. PyTorch's `pos_weight` w is α = w / (1 + w) and the factor 1 + w for hard
            targets; with one w per label, it is the factor `jnp.where(targets == 1, w, 1)` on the loss without α.

    Returns:
        The loss per logit, in nats, at least float32.

    Raises: TypeError or ValueError if a dtype or shape does not fit, or α is outside [0, 1].

    References: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 3.1.

    >>> print(sigmoid_cross_entropy(jnp.zeros(3), jnp.array([1, 0, 255]), where=jnp.array([True, True, False])))
    [0.6931472 0.6931472 0.       ]
    """
    logits, targets, where = numerics.sigmoid_inputs(logits, targets, where)
    dtype = checks.widened(logits.dtype)
    alpha = None if alpha is None else checks.scalar("alpha", alpha, dtype, 0.0, 1.0)

    def formula(z, t, alpha):
        cross_entropy, _ = numerics.binary_terms(z, t)
        return numerics.balance(alpha, t) * cross_entropy

    return numerics.rematerialized(formula, dtype, where, (logits, targets), (alpha,))


def sigmoid_focal_loss(
    logits: PerPixel, targets: Targets, *, gamma: Scalar = 2.0, alpha: Scalar | None = None, where: Where = None
) -> Float[Array, "*pixels"]:
    r"""Computes RetinaNet's focal loss of binary targets per logit.

    .. math::
        FL = -α_t (1 - p_t)^γ \left(t \log p + (1 - t) \log(1 - p)\right), \qquad p_t = t p + (1 - t)(1 - p)

    with p = σ(z) and α_t = α t + (1 - α)(1 - t). γ = 0 is `sigmoid_cross_entropy`. The paper's best values are γ = 2
    and α = 0.25; its reduction is `mean(..., positives=targets == 1, normalizer="positives")`.

    Args:
        logits, targets: z and t, as in `sigmoid_cross_entropy`.
        gamma: focusing parameter γ ≥ 0.
        alpha, where: as in `sigmoid_cross_entropy`.

    Returns:
        The loss per logit, in nats, at least float32.

    Raises: TypeError or ValueError if a dtype or shape does not fit, α is outside [0, 1], or γ < 0.

    References: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002.

    >>> logits, targets = jnp.array([2.1972246, 0.0]), jnp.array([1, 1])  # p = 0.9 and p = 0.5
    >>> [round(float(x)) for x in sigmoid_cross_entropy(logits, targets) / sigmoid_focal_loss(logits, targets)]
    [100, 4]
    """
    logits, targets, where = numerics.sigmoid_inputs(logits, targets, where)
    dtype = checks.widened(logits.dtype)
    gamma = checks.scalar("gamma", gamma, dtype, 0.0)
    alpha = None if alpha is None else checks.scalar("alpha", alpha, dtype, 0.0, 1.0)

    def formula(z, t, gamma, alpha):
        cross_entropy, log_one_minus_pt = numerics.binary_terms(z, t)
        return numerics.balance(alpha, t) * (jnp.exp(gamma * log_one_minus_pt) * cross_entropy)

    return numerics.rematerialized(formula, dtype, where, (logits, targets), (gamma, alpha))


def sigmoid_poly1_loss(
    logits: PerPixel,
    targets: Targets,
    *,
    epsilon: Scalar = 1.0,
    gamma: Scalar = 0.0,
    alpha: Scalar | None = None,
    where: Where = None,
) -> Float[Array, "*pixels"]:
    r"""Computes Poly-1 of binary targets per logit: cross entropy or focal loss with another leading coefficient.

    .. math::
        L = α_t \left(-(1 - p_t)^γ \left(t \log p + (1 - t) \log(1 - p)\right) + ε (1 - p_t)^{γ + 1}\right)

    with p, p_t and α_t of `sigmoid_focal_loss`. γ > 0 is Poly-1 focal loss, the paper's loss for sigmoid; ε = 0 is
    `sigmoid_focal_loss`.

    Args:
        logits, targets: z and t, as in `sigmoid_cross_entropy`.
        epsilon: ε ≥ -1.
        gamma: focusing parameter γ ≥ 0; the paper uses RetinaNet's γ = 2 and α = 0.25.
        alpha: α in [0, 1]. None: α_t = 1. It weights both terms; other code weights one.
        where: boolean, that shape; False removes the logit.

    Returns:
        The loss per logit, in nats, at least float32.

    Raises: TypeError or ValueError if a dtype or shape does not fit, α is outside [0, 1], ε < -1, or γ < 0.

    References: Leng et al., PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions, arXiv
        2204.12511.

    >>> print(sigmoid_poly1_loss(jnp.zeros(2), jnp.array([1, 0]), epsilon=-1.0, gamma=2.0))  # log 2 / 4 - 1 / 8
    [0.0482868 0.0482868]
    """
    logits, targets, where = numerics.sigmoid_inputs(logits, targets, where)
    dtype = checks.widened(logits.dtype)
    epsilon = checks.scalar("epsilon", epsilon, dtype, -1.0)
    gamma = checks.scalar("gamma", gamma, dtype, 0.0)
    alpha = None if alpha is None else checks.scalar("alpha", alpha, dtype, 0.0, 1.0)

    def formula(z, t, epsilon, gamma, alpha):
        cross_entropy, log_one_minus_pt = numerics.binary_terms(z, t)
        focal = jnp.exp(gamma * log_one_minus_pt) * cross_entropy
        return numerics.balance(alpha, t) * (focal + epsilon * jnp.exp((gamma + 1) * log_one_minus_pt))

    return numerics.rematerialized(formula, dtype, where, (logits, targets), (epsilon, gamma, alpha))


def sigmoid_focal_star_loss(
    logits: PerPixel,
    targets: Targets,
    *,
    gamma: Scalar = 2.0,
    beta: Scalar = 1.0,
    alpha: Scalar | None = None,
    where: Where = None,
) -> Float[Array, "*pixels"]:
    r"""Computes FL*, the focal loss paper's second form, per logit: cross entropy of a steeper and shifted logit.

    .. math:: FL^* = -\frac{α_t}{γ} \left(t \log σ(γ z + β) + (1 - t) \log σ(-γ z + β)\right)

    with α_t = α t + (1 - α)(1 - t). γ = 1, β = 0 is `sigmoid_cross_entropy`; the paper uses (γ, β) = (2, 1) and (4, 0).

    Args:
        logits, targets: z and t, as in `sigmoid_cross_entropy`.
        gamma: steepness γ > 0.
        beta: shift β; a larger β makes a pixel easy at a smaller logit.
        alpha, where: as in `sigmoid_cross_entropy`.

    Returns:
        The loss per logit, in nats divided by γ, at least float32.

    Raises: TypeError or ValueError if a dtype or shape does not fit, γ ≤ 0, β is not finite, or α is outside [0, 1].

    References: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, appendices A and B.

    >>> print(sigmoid_focal_star_loss(jnp.array([0.0, -3.0]), jnp.array([1, 1])).round(2))
    [0.16 2.5 ]
    """
    logits, targets, where = numerics.sigmoid_inputs(logits, targets, where)
    dtype = checks.widened(logits.dtype)
    gamma = checks.finite("gamma", gamma, dtype, above=0.0)
    beta = checks.finite("beta", beta, dtype)
    alpha = None if alpha is None else checks.scalar("alpha", alpha, dtype, 0.0, 1.0)

    def star(x, gamma, beta):
        log_p, _ = numerics.log_probabilities(gamma * x + beta)
        return -log_p / gamma

    def formula(z, t, gamma, beta, alpha):
        if jnp.issubdtype(t.dtype, jnp.integer):
            loss = star(numerics.sigmoid_log_odds(z, t), gamma, beta)
        else:
            t = numerics.soft_targets(t)
            loss = t * star(z, gamma, beta) + (1 - t) * star(-z, gamma, beta)
        return numerics.balance(alpha, t) * loss

    return numerics.rematerialized(formula, dtype, where, (logits, targets), (gamma, beta, alpha))


def hinge_loss(logits: PerPixel, targets: Targets, *, where: Where = None) -> Float[Array, "*pixels"]:
    r"""Computes the hinge loss of binary targets per logit.

    .. math:: H = \max(0, 1 - x), \qquad x = z \text{ if } t = 1, \; -z \text{ if } t = 0

    Args:
        logits: z, any shape.
        targets: t, that shape: boolean, or numbers that are 0 or 1. Any other unmasked target, -1 too, gives NaN.
        where: boolean, that shape; False removes the logit.

    Returns:
        The loss per logit, in units of the logit, at least float32.

    Raises: TypeError or ValueError if a dtype or shape does not fit.

    References: Cortes and Vapnik, Support-Vector Networks, Machine Learning 20, 1995.

    >>> print(hinge_loss(jnp.array([0.25, 0.25, 3.0, jnp.nan]), jnp.array([1, 0, 1, 255]), where=jnp.arange(4) < 3))
    [0.75 1.25 0.   0.  ]
    """
    logits, targets, where = numerics.sigmoid_inputs(logits, targets, where)

    def formula(z, t):
        return numerics.hinge(numerics.sigmoid_log_odds(z, t))

    return numerics.rematerialized(formula, checks.widened(logits.dtype), where, (logits, targets))


def huber_loss(
    predictions: PerPixel, targets: PerPixel, *, delta: Scalar = 1.0, where: Where = None
) -> Float[Array, "*pixels"]:
    r"""Computes Huber's loss per value: squared for small errors, linear for large ones.

    .. math::
        H_δ = \begin{cases} d^2 / 2 & |d| \le δ \\ δ (|d| - δ / 2) & |d| > δ \end{cases}

    with d = prediction - target. δ = 1 is Fast R-CNN's smooth L1. It equals `optax.huber_loss` and PyTorch's
    `huber_loss`; PyTorch's `smooth_l1_loss` with `beta` = δ is this loss divided by δ.

    Args:
        predictions: any shape.
        targets: that shape. Gradients flow to both.
        delta: δ > 0, in the unit of the values: the largest slope.
        where: boolean, that shape; False removes the value.

    Returns:
        The loss per value, in their unit squared, at least float32.

    Raises: TypeError or ValueError if a dtype or shape does not fit, or δ ≤ 0.

    References: Huber, Robust Estimation of a Location Parameter, 1964; Girshick, Fast R-CNN, arXiv 1504.08083.

    >>> print(huber_loss(jnp.array([0.5, -3.0]), jnp.zeros(2), delta=2.0))
    [0.125 4.   ]
    """
    predictions = checks.floating_as_given("predictions", predictions)
    targets = checks.floating_as_given("targets", targets)
    checks.same_shape("targets", targets.shape, "predictions", predictions.shape)
    where = None if where is None else checks.mask("where", where, predictions.shape)
    dtype = checks.widened(max(predictions.dtype, targets.dtype, key=lambda dtype: dtype.itemsize))
    delta = checks.finite("delta", delta, dtype, above=0.0)

    def formula(predictions, targets, delta):
        error = predictions - targets
        small = ~(jnp.abs(error) > delta)  # NaN counts as small: the square keeps it in the gradient
        # Selected before the square, which overflows for large errors, with the derivative 0 · ∞.
        return jnp.where(small, jnp.where(small, error, 0) ** 2 / 2, delta * (jnp.abs(error) - delta / 2))

    return numerics.rematerialized(formula, dtype, where, (predictions, targets), (delta,))
