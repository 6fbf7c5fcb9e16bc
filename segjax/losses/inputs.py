"""Both ends of a per-pixel loss: arguments checked, widened and cleaned before the maths, the mask applied after.

`where` needs both ends. Cleaned before: a NaN logit, or the label 255, of a pixel that does not exist must not reach a
gradient. Masked after: the loss of the harmless pixel put in its place is not 0. Private: import the losses from
`segjax.losses`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Real, Shaped

from segjax import checks


def softmax_inputs(
    logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None
) -> tuple[Float[Array, "*pixels classes"], Int[Array, "*pixels"], Bool[Array, "*pixels"] | None]:
    """Checked and widened, with a harmless pixel wherever `where` is False: nothing there may reach a gradient."""
    logits = checks.floating("logits", logits)
    labels = checks.integers("labels", labels)
    if logits.ndim == 0 or logits.shape[-1] < 2:
        raise ValueError(
            f"logits must be [..., classes] with at least 2 classes, class last; got shape {logits.shape}. "
            "For one logit per pixel use the sigmoid losses"
        )
    checks.same_shape("labels", labels.shape, "logits without their class axis", logits.shape[:-1])
    if where is None:
        return logits, labels, None
    keep = checks.mask("where", where, labels.shape)
    return jnp.where(each_class(keep, logits.shape[-1]), logits, 0), jnp.where(keep, labels, 0), keep


def each_class(keep: Bool[Array, "*pixels"], num_classes: int) -> Bool[Array, "*pixels {num_classes}"]:
    """`keep[..., None]` for every class, by a comparison of each.

    A condition that is one for all classes of a pixel becomes a branch around the loop over them, which LLVM then does
    not vectorise: on a CPU a masked loss took three times as long as an unmasked one.
    """
    classes = jax.lax.broadcasted_iota(jnp.int32, (*keep.shape, num_classes), keep.ndim)
    return classes < jnp.where(keep, num_classes, 0)[..., None]


def varying_like(values: Shaped[Array, "*pixels"], floats: Float[Array, "*pixels"]) -> Shaped[Array, "*pixels"]:
    """`values`, integers or booleans, as something that varies over whatever mapped axes `floats` vary over.

    In a checked `shard_map` a constant is of another type than what the devices hold, and the two forms of one formula,
    for a CPU and for all else, have to be of one type. Costs nothing: the compiler takes it out again.
    """
    nothing = jnp.isnan(floats) & False
    return values | nothing if values.dtype == jnp.bool_ else values + nothing.astype(values.dtype)


def sigmoid_inputs(
    logits: ArrayLike, targets: ArrayLike, where: ArrayLike | None
) -> tuple[Float[Array, "*pixels"], Real[Array, "*pixels"], Bool[Array, "*pixels"] | None]:
    """Checked only; `cleaned` then does what `softmax_inputs` does, or `recomputed` does it where it has to be done.

    The targets come back as constants: integers (hard), or floats (soft).
    """
    logits = checks.floating_as_given("logits", logits)
    targets = checks.array("targets", targets)
    checks.same_shape("targets", targets.shape, "logits", logits.shape)
    if jnp.issubdtype(targets.dtype, jnp.floating):
        targets = jax.lax.stop_gradient(targets)
    else:
        targets = checks.integers("targets", targets.astype(jnp.int32) if targets.dtype == jnp.bool_ else targets)
    return logits, targets, None if where is None else checks.mask("where", where, logits.shape)


def cleaned(
    logits: Float[Array, "*pixels"], targets: Real[Array, "*pixels"], keep: Bool[Array, "*pixels"] | None
) -> tuple[Float[Array, "*pixels"], Real[Array, "*pixels"]]:
    """Widened, soft targets to what the logits are, and with a harmless pixel wherever nothing is kept."""
    logits = logits.astype(checks.widened(logits.dtype))
    if jnp.issubdtype(targets.dtype, jnp.floating):
        targets = targets.astype(logits.dtype)
    return kept(logits, keep), kept(targets, keep)


def recomputed(function: Callable[..., Float[Array, "*pixels"]]) -> Callable[..., Float[Array, "*pixels"]]:
    """A loss of (logits, targets, keep, *others) of one of (logits, targets, *others), whose gradient keeps nothing.

    For a loss as large as its logits, each exp and log on the way to which is as large too: computed twice, once in the
    loop of the value and once in that of the gradient, they are not written to memory, which takes longer than they do.
    `jax.checkpoint` says the same, but its barrier stands around the cotangent too, and from jax 0.12 on what a barrier
    holds is written. So it must hold what is in memory already, the arguments: they are cleaned behind it.
    """

    def from_arguments(logits, targets, keep, *others):
        return kept(function(*cleaned(logits, targets, keep), *others), keep)

    run = jax.custom_jvp(from_arguments)

    @run.defjvp
    def _(primals, tangents):
        return run(*primals), jax.jvp(from_arguments, jax.lax.optimization_barrier(primals), tangents)[1]

    return run


def balanced(
    loss: Float[Array, "*pixels"], alpha: Float[Array, ""] | None, targets: Real[Array, "*pixels"]
) -> Float[Array, "*pixels"]:
    """α_t times the loss, α_t = α t + (1 - α)(1 - t). Of hard targets, told by their dtype, a choice.

    XLA's CPU compiler writes the sum of products to memory, and makes a choice where it is needed.
    """
    if alpha is None:
        return loss
    if jnp.issubdtype(targets.dtype, jnp.integer):
        return loss * jnp.where(targets == 1, alpha, 1 - alpha)
    return loss * (alpha * targets + (1 - alpha) * (1 - targets))


def kept(values: Shaped[Array, "*pixels"], keep: Bool[Array, "*pixels"] | None) -> Shaped[Array, "*pixels"]:
    """`values`, and 0 (False) at every pixel that is not kept."""
    return values if keep is None else jnp.where(keep, values, jnp.zeros_like(values))
