"""Losses of one pixel each: cross entropy and focal loss, softmax and sigmoid. `segjax.losses.mean` reduces them.

All of them share these rules. `where` is False for a pixel that does not exist: its loss is 0 and its gradient 0,
whatever its label (255, -1) or logit (NaN). A label that is no class and that `where` keeps gives NaN, on purpose.
bfloat16 and float16 are computed and returned in float32, float64 in float64. `gamma`, `alpha`, `class_weights` and
`label_smoothing` may be traced: a sweep over them compiles once, and `jax.vmap` over them works.
First and second derivatives are finite for every γ ≥ 0 and |logit| ≤ 1e4 (see `margin.py`).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Real

from segjax import checks
from segjax.losses import margin
from segjax.losses.inputs import balanced, kept, recomputed, sigmoid_inputs, softmax_inputs


def softmax_cross_entropy(
    logits: Float[ArrayLike, "*pixels classes"],
    labels: Integer[ArrayLike, "*pixels"],
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
    logits, labels, keep = softmax_inputs(logits, labels, where)
    num_classes = logits.shape[-1]
    smoothing = checks.scalar("label_smoothing", label_smoothing, logits.dtype, 0.0, 1.0)
    weights = None
    if class_weights is not None:
        weights = checks.per_class("class_weights", class_weights, num_classes, logits.dtype)
    own = margin.cross_entropy(margin.softmax_margin(logits, labels))
    loss = own if weights is None else own * _of_label(weights, labels)
    if isinstance(label_smoothing, jax.Array) or label_smoothing != 0:
        own_logit = jnp.sum(jnp.where(margin.is_label(labels, num_classes), logits, 0), axis=-1)
        every = own[..., None] + (own_logit[..., None] - logits)
        if weights is not None:
            # A class of weight 0 may be switched off by a logit of -inf, and 0 · inf is NaN.
            every = jnp.where(weights == 0, 0, every) * jnp.broadcast_to(weights, every.shape)
        smoothed = (1 - smoothing) * loss + smoothing * jnp.mean(every, axis=-1)
        loss = jnp.where(smoothing == 0, loss, smoothed)
    return kept(loss, keep)


def softmax_focal_loss(
    logits: Float[ArrayLike, "*pixels classes"],
    labels: Integer[ArrayLike, "*pixels"],
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
    logits, labels, keep = softmax_inputs(logits, labels, where)
    gamma = checks.scalar("gamma", gamma, logits.dtype, 0.0)
    margins = margin.softmax_margin(logits, labels)
    loss = margin.focus(margin.log_miss(margins), gamma) * margin.cross_entropy(margins)
    if alpha is not None:
        alpha = checks.per_class("alpha", alpha, logits.shape[-1], logits.dtype, _WHY_NO_SCALAR_ALPHA)
        loss = loss * _of_label(alpha, labels)
    return kept(loss, keep)


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
    logits, targets, keep = sigmoid_inputs(logits, targets, where)
    alpha = None if alpha is None else checks.scalar("alpha", alpha, checks.widened(logits.dtype), 0.0, 1.0)
    return _sigmoid_cross_entropy(logits, targets, keep, alpha)


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
    logits, targets, keep = sigmoid_inputs(logits, targets, where)
    dtype = checks.widened(logits.dtype)
    gamma = checks.scalar("gamma", gamma, dtype, 0.0)
    alpha = None if alpha is None else checks.scalar("alpha", alpha, dtype, 0.0, 1.0)
    return _sigmoid_focal(logits, targets, keep, gamma, alpha)


_WHY_NO_SCALAR_ALPHA = (
    "RetinaNet's scalar alpha weighs positives against negatives, and softmax classes are neither: "
    "give one weight per class (see class_weights), or use sigmoid_focal_loss"
)


@recomputed
def _sigmoid_cross_entropy(logits, targets, alpha):
    return balanced(_sigmoid_terms(logits, targets)[0], alpha, targets)


@recomputed
def _sigmoid_focal(logits, targets, gamma, alpha):
    loss, log_miss = _sigmoid_terms(logits, targets)
    return balanced(margin.focus(log_miss, gamma) * loss, alpha, targets)


def _sigmoid_terms(logits, targets):
    """Cross entropy and log(1 - p_t). Hard targets, told by their dtype, take the cheaper way to the same bits."""
    if jnp.issubdtype(targets.dtype, jnp.integer):
        margins = margin.sigmoid_margin(logits, targets)
        return margin.cross_entropy(margins), margin.log_miss(margins)
    targets = margin.soft_targets(targets)
    return margin.soft_cross_entropy(logits, targets), margin.soft_log_miss(logits, targets)


def _of_label(weights, labels):
    """Each pixel's entry of a table of C. Of a label that is no class any will do: its loss is NaN already."""

    def compared(weights, labels):
        return jnp.sum(jnp.where(margin.is_label(labels, weights.shape[0]), weights, 0), axis=-1)

    # Elsewhere a gather is cheap; a TPU makes it one pixel after another.
    gathered = partial(jnp.take, mode="clip")
    return jax.lax.platform_dependent(weights, labels, tpu=compared, default=gathered)
