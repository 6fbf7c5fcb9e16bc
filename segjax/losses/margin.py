"""The margin x_t, from which cross entropy and focal loss are both computed, and why.

The usual focal loss is `(1 - exp(-ce)) ** gamma * ce`. At a confident pixel `exp(-ce)` rounds to 1, so the base is 0,
and the derivative of `0 ** gamma` is NaN for every gamma below 1, and for gamma = 0 too. So the probability is never
formed. With x_t the logit of the truth against everything else,

    log p_t = log_sigmoid(x_t),    log(1 - p_t) = log_sigmoid(-x_t),    (1 - p_t)^γ = exp(γ log(1 - p_t)),

all of them finite, smooth and accurate however large x_t is; a tiny loss stays tiny instead of rounding to 0.
Private: import the losses from `segjax.losses`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real


def is_label(labels: Int[Array, "*pixels"], num_classes: int) -> Bool[Array, "*pixels {num_classes}"]:
    """True at each pixel's own class: z_y by a comparison, where a gather has a scatter for its transpose."""
    classes = jax.lax.broadcasted_iota(labels.dtype, (*labels.shape, num_classes), labels.ndim)
    return labels[..., None] == classes


def softmax_margin(logits: Float[Array, "*pixels classes"], labels: Int[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """x_t = z_y - logsumexp of the other logits; NaN (as is its gradient) where the label is no class."""
    num_classes = logits.shape[-1]
    own = is_label(labels, num_classes)
    others = jnp.where(own, -jnp.inf, logits)
    largest = jax.lax.stop_gradient(jnp.max(others, axis=-1))
    log_sum = jnp.log(jnp.sum(jnp.exp(others - largest[..., None]), axis=-1))
    # The largest is taken off the logit first: what all logits share would round the small logarithm away.
    margin = (jnp.sum(jnp.where(own, logits, 0), axis=-1) - largest) - log_sum
    # Added, not selected: a selected NaN would leave the gradient of a wrong label finite, and so unseen.
    return margin + _nan_unless((labels >= 0) & (labels < num_classes), margin.dtype)


def sigmoid_margin(logits: Float[Array, "*pixels"], targets: Real[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """x_t = z where the target is 1, -z where it is 0; NaN where it is neither."""
    margin = jnp.where(targets == 1, logits, -logits)
    return margin + _nan_unless((targets == 0) | (targets == 1), margin.dtype)


def cross_entropy(margin: Float[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """-log p_t."""
    return -jax.nn.log_sigmoid(margin)


def log_miss(margin: Float[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """log(1 - p_t)."""
    return jax.nn.log_sigmoid(-margin)


def soft_targets(targets: Float[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """The targets, NaN where they are outside [0, 1]."""
    return targets + _nan_unless((targets >= 0) & (targets <= 1), targets.dtype)


def soft_cross_entropy(logits: Float[Array, "*pixels"], targets: Float[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """-t log p - (1 - t) log(1 - p), equal to `cross_entropy` to the last bit where t is 0 or 1."""
    return -(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits))


@jax.custom_jvp
def soft_log_miss(logits: Float[Array, "*pixels"], targets: Float[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """log(1 - p_t) = log(t (1-p) + (1-t) p) for soft targets, equal to `log_miss` to the last bit where t is 0 or 1.

    With u = |z| and a the target's share on the unlikely side, 1 - p_t = σ(u) (a + (1-a) exp(-u)): a = 0 needs care.
    """
    distance = jnp.abs(logits)
    tail = jnp.exp(-distance)
    share = jnp.where(logits > 0, 1 - targets, targets)
    hard = share == 0
    log_mixture = jnp.where(hard, -distance, jnp.log(jnp.where(hard, 1, share + (1 - share) * tail)))
    return log_mixture - jnp.log1p(tail)


@soft_log_miss.defjvp
def _soft_log_miss_jvp(primals, tangents):
    """d/dz log(1 - p_t) = σ(-z) - σ(logit(t) - z): smooth where the formula above has a kink (z = 0, every fresh head).

    Targets are data here: their tangent is zero by `stop_gradient` in the losses.
    """
    logits, targets = primals
    logit_of_target = jnp.log(targets) - jnp.log1p(-targets)
    # Two forms of one function; each keeps its digits on its own side.
    slope = jnp.where(
        targets > 0.5,
        jax.nn.sigmoid(logits - logit_of_target) - jax.nn.sigmoid(logits),
        jax.nn.sigmoid(-logits) - jax.nn.sigmoid(logit_of_target - logits),
    )
    return soft_log_miss(logits, targets), slope * tangents[0]


def focus(log_miss: Float[Array, "*pixels"], gamma: Float[Array, ""]) -> Float[Array, "*pixels"]:
    """(1 - p_t)^γ, exactly 1 for γ = 0."""
    return jnp.exp(gamma * log_miss)


def _nan_unless(valid: Bool[Array, "*pixels"], dtype: jnp.dtype) -> Float[Array, "*pixels"]:
    return jnp.where(valid, 0.0, jnp.nan).astype(dtype)
