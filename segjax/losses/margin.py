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
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Real

from segjax.losses.inputs import varying_like


def is_label(labels: Int[Array, "*pixels"], num_classes: int) -> Bool[Array, "*pixels {num_classes}"]:
    """True at each pixel's own class: z_y by a comparison, where a gather has a scatter for its transpose."""
    classes = jax.lax.broadcasted_iota(labels.dtype, (*labels.shape, num_classes), labels.ndim)
    return labels[..., None] == classes


def softmax_margin(logits: Float[Array, "*pixels classes"], labels: Int[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """x_t = z_y - logsumexp of the other logits; NaN (as is its gradient) where the label is no class."""
    return margin_of(*against_others(logits, varying_like(labels, logits[..., 0])))


def margin_of(
    own: Float[Array, "*pixels"],
    largest: Float[Array, "*pixels"],
    log_sum: Float[Array, "*pixels"],
    flaw: Float[Array, "*pixels"],
) -> Float[Array, "*pixels"]:
    """x_t of what `against_others` found."""
    # The largest is taken off the logit first: what all logits share would round the small logarithm away.
    # Added, not selected: a selected NaN would leave the gradient of a wrong label finite, and so unseen.
    return (own - largest) - log_sum + flaw


@jax.custom_jvp
def against_others(
    logits: Float[Array, "*pixels classes"], labels: Int[Array, "*pixels"]
) -> tuple[Float[Array, "*pixels"], Float[Array, "*pixels"], Float[Array, "*pixels"], Float[Array, "*pixels"]]:
    """The label's logit, the largest of the others, log Σ exp of the others less that; 0, or NaN if it is no class.

    The second and the last are constants: the largest is a shift that the third takes back.

    Its own rule of differentiation, so that a gradient keeps these three numbers a pixel and not an exp a class.
    """
    return lax.platform_dependent(logits, labels, cpu=_in_two_passes, default=_in_reductions)


@against_others.defjvp
def _against_others_jvp(primals, tangents):
    logits, labels = primals
    own, largest, log_sum, flaw = against_others(logits, labels)
    is_own = is_label(labels, logits.shape[-1])
    # Selected before exp: the label's own overflows, and its second derivative would be 0 · ∞.
    share = jnp.exp(jnp.where(is_own, -jnp.inf, (logits - largest[..., None]) - log_sum[..., None]))
    own_dot = jnp.sum(jnp.where(is_own, tangents[0], 0), axis=-1)
    log_sum_dot = jnp.sum(share * tangents[0], axis=-1)
    # Not a boolean for the flaw: the float0 that is its tangent does not say over which devices it varies.
    dots = own_dot, jnp.zeros_like(largest), log_sum_dot, jnp.zeros_like(flaw)
    return (own, largest, log_sum, flaw), dots


def _in_reductions(logits, labels):
    own = is_label(labels, logits.shape[-1])
    others = jnp.where(own, -jnp.inf, logits)
    largest = jnp.max(others, axis=-1)
    log_sum = jnp.log(jnp.sum(jnp.exp(others - largest[..., None]), axis=-1))
    flaw = _nan_unless(jnp.any(own, axis=-1), logits.dtype)
    return jnp.sum(jnp.where(own, logits, 0), axis=-1), largest, log_sum, flaw


def _in_two_passes(logits, labels):
    """The same; two results a reduction, since XLA's CPU compiler hands a plain one with all its exp to a library.

    What the library does not know, the comparison with the label, would first be written to memory, for every class.
    """
    own, zero, lowest = is_label(labels, logits.shape[-1]), logits.dtype.type(0), logits.dtype.type(-jnp.inf)
    last = (logits.ndim - 1,)
    largest, of_label = lax.reduce(
        (jnp.where(own, lowest, logits), jnp.where(own, logits, zero)),
        (lowest, zero),
        lambda a, b: (lax.max(a[0], b[0]), a[1] + b[1]),
        last,
    )
    exps = jnp.where(own, zero, jnp.exp(logits - largest[..., None]))
    total, is_class = lax.reduce((exps, own), (zero, np.bool_(False)), lambda a, b: (a[0] + b[0], a[1] | b[1]), last)
    return of_label, largest, jnp.log(total), _nan_unless(is_class, logits.dtype)


def sigmoid_margin(logits: Float[Array, "*pixels"], targets: Real[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """x_t = z where the target is 1, -z where it is 0; NaN where it is neither."""
    margin = jnp.where(targets == 1, logits, -logits)
    return margin + _nan_unless((targets == 0) | (targets == 1), margin.dtype)


def cross_entropy(margin: Float[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """-log p_t."""
    return -log_probabilities(margin)[0]


def log_miss(margin: Float[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """log(1 - p_t)."""
    return log_probabilities(margin)[1]


@jax.custom_jvp
def log_probabilities(margin: Float[Array, "*pixels"]) -> tuple[Float[Array, "*pixels"], Float[Array, "*pixels"]]:
    """log p_t and log(1 - p_t): `jax.nn.log_sigmoid` of x and of -x, with one exp and one log for both."""
    tail = jnp.log1p(jnp.exp(-jnp.abs(margin)))
    return jnp.minimum(margin, 0) - tail, jnp.minimum(-margin, 0) - tail


@log_probabilities.defjvp
def _log_probabilities_jvp(primals, tangents):
    p, miss = probabilities(*primals)
    return log_probabilities(*primals), (miss * tangents[0], -p * tangents[0])


@jax.custom_jvp
def probabilities(margin: Float[Array, "*pixels"]) -> tuple[Float[Array, "*pixels"], Float[Array, "*pixels"]]:
    """p_t = σ(x_t) and 1 - p_t = σ(-x_t), both with all their digits."""
    tail = jnp.exp(-jnp.abs(margin))
    likely = 1 / (1 + tail)
    unlikely = tail * likely
    return jnp.where(margin >= 0, likely, unlikely), jnp.where(margin >= 0, unlikely, likely)


@probabilities.defjvp
def _probabilities_jvp(primals, tangents):
    # By hand, for the derivative of the formula has a kink where |x| has: at 0, where every fresh head is.
    p, miss = probabilities(*primals)
    slope = p * miss * tangents[0]
    return (p, miss), (slope, -slope)


def soft_targets(targets: Float[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """The targets, NaN where they are outside [0, 1]."""
    return targets + _nan_unless((targets >= 0) & (targets <= 1), targets.dtype)


def soft_cross_entropy(logits: Float[Array, "*pixels"], targets: Float[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """-t log p - (1 - t) log(1 - p), equal to `cross_entropy` to the last bit where t is 0 or 1."""
    log_p, log_not_p = log_probabilities(logits)
    return -(targets * log_p + (1 - targets) * log_not_p)


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
