r"""Numerics of the losses: argument checks, masks, log-odds, and sums whose gradient keeps few arrays. Private.

**Log-odds.** The usual focal loss, `(1 - exp(-ce)) ** gamma * ce`, has NaN gradients at confident pixels: `exp(-ce)`
rounds to 1, and the derivative of `0 ** gamma` is NaN for gamma = 0 and infinite for gamma < 1. So the probability is
never formed. With x the log-odds of the label against all other classes,

.. math::
    x = z_y - \log \sum_{j \ne y} e^{z_j}, \qquad \log p_y = \log σ(x), \qquad \log (1 - p_y) = \log σ(-x), \qquad
    (1 - p_y)^γ = e^{γ \log σ(-x)}

are smooth, finite and accurate for any x: a tiny loss stays tiny instead of rounding to 0.

**Masks.** `where` acts twice. A masked logit or label is replaced before it can reach a gradient (0 · NaN is NaN), and
the loss of the replaced pixel is set to 0 afterwards.

**Rules of differentiation.** The plain forms are a few lines of `jax.numpy`: `tests/losses/test_log_odds.py` holds each
rule to its plain form, in value and derivatives. Differentiated as they are, they keep 2 to 8 arrays as large as the
logits; the rules keep a few numbers per pixel:

- `softmax_log_odds` keeps the largest other logit and the log-sum; the gradient recomputes the exponentials.
- `rematerialized` losses, one per logit, keep their arguments only.
- `pixel_sums` of the region losses keeps what `softmax_log_odds` keeps.

XLA's CPU compiler hands a sum or maximum of one array to a library and first writes that array to memory. A reduction
of two arrays at once is one loop on every device: that is why sums come in pairs here.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Real, Shaped

from segjax import checks

# Arguments and masks


def softmax_inputs(
    logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None
) -> tuple[Float[Array, "*pixels classes"], Int[Array, "*pixels"], Bool[Array, "*pixels"] | None]:
    """Returns checked arguments: logits widened, labels 0 where masked. Masked logits are left to the caller."""
    logits = checks.floating("logits", logits)
    labels = checks.integers("labels", labels)
    if logits.ndim == 0 or logits.shape[-1] < 2:
        raise ValueError(
            f"logits must be [..., classes] with at least 2 classes, class last; got shape {logits.shape}. "
            "For one logit per pixel use the sigmoid losses"
        )
    checks.same_shape("labels", labels.shape, "logits without their class axis", logits.shape[:-1])
    where = None if where is None else checks.mask("where", where, labels.shape)
    return logits, mask_to_zero(labels, where), where


def sigmoid_inputs(
    logits: ArrayLike, targets: ArrayLike, where: ArrayLike | None
) -> tuple[Float[Array, "*pixels"], Real[Array, "*pixels"], Bool[Array, "*pixels"] | None]:
    """Returns checked arguments, masked later by `rematerialized`; targets are constants, integers or (soft) floats."""
    logits = checks.floating_as_given("logits", logits)
    targets = checks.array("targets", targets)
    checks.same_shape("targets", targets.shape, "logits", logits.shape)
    hard = not jnp.issubdtype(targets.dtype, jnp.floating)
    targets = checks.integers("targets", targets) if hard else lax.stop_gradient(targets)
    return logits, targets, None if where is None else checks.mask("where", where, logits.shape)


def mask_to_zero(values: Shaped[Array, "*pixels"], where: Bool[Array, "*pixels"] | None) -> Shaped[Array, "*pixels"]:
    """Returns `values`, and 0 (False) where `where` is False."""
    return values if where is None else jnp.where(where, values, jnp.zeros_like(values))


def mask_classes(where: Bool[Array, "*pixels"], num_classes: int) -> Bool[Array, "*pixels {num_classes}"]:
    """Returns `where` for every class, computed by a comparison per class.

    XLA's CPU compiler turns a condition shared by all classes of a pixel into a branch around the loop over them, which
    is then not vectorised: a masked loss took three times as long.
    """
    classes = lax.broadcasted_iota(jnp.int32, (*where.shape, num_classes), where.ndim)
    return classes < jnp.where(where, num_classes, 0)[..., None]


def is_label(labels: Int[Array, "*pixels"], num_classes: int) -> Bool[Array, "*pixels {num_classes}"]:
    """Returns the one-hot labels; comparing needs neither gather nor scatter, which a TPU does one pixel at a time."""
    classes = lax.broadcasted_iota(labels.dtype, (*labels.shape, num_classes), labels.ndim)
    return labels[..., None] == classes


def nan_unless(valid: Bool[Array, "*pixels"], dtype: jnp.dtype) -> Float[Array, "*pixels"]:
    """Returns 0 where `valid`, else NaN: added to a value, it makes the value and its gradient NaN."""
    return jnp.where(valid, 0.0, jnp.nan).astype(dtype)


def varying_like(values: Shaped[Array, "*pixels"], floats: Float[Array, "*pixels"]) -> Shaped[Array, "*pixels"]:
    """Returns integers or booleans typed as varying over the mapped axes of `floats`.

    In a checked `shard_map` a constant has another type than per-device data, and a reduction of two arrays needs one
    type for both. The compiler removes the addition of 0.
    """
    zero = jnp.isnan(floats) & False
    return values | zero if values.dtype == jnp.bool_ else values + zero.astype(values.dtype)


# Softmax


def softmax_log_odds(
    logits: Float[Array, "*pixels classes"], labels: Int[Array, "*pixels"], where: Bool[Array, "*pixels"] | None = None
) -> Float[Array, "*pixels"]:
    """Returns x = z_y - log Σ_{j≠y} exp z_j; 0 where masked, NaN (as is its gradient) if the label is not a class."""
    own, largest, log_sum, flaw = own_and_others(logits, varying_like(labels, logits[..., 0]), where)
    # The largest is subtracted first: an offset that all logits share would round the small logarithm away.
    return mask_to_zero((own - largest) - log_sum + flaw, where)


@jax.custom_jvp
def own_and_others(
    logits: Float[Array, "*pixels classes"], labels: Int[Array, "*pixels"], where: Bool[Array, "*pixels"] | None
) -> tuple[Float[Array, "*pixels"], Float[Array, "*pixels"], Float[Array, "*pixels"], Float[Array, "*pixels"]]:
    """Returns z_y, the largest other logit m, log Σ_{j≠y} exp(z_j - m), and 0 (NaN if the label is not a class).

    m has the derivative 0, since the log-sum adds back what m subtracts.
    """
    own = is_label(labels, logits.shape[-1])
    zero, lowest, last = logits.dtype.type(0), logits.dtype.type(-jnp.inf), (logits.ndim - 1,)
    largest, own_logit = lax.reduce(
        (jnp.where(own, lowest, logits), jnp.where(own, logits, zero)),
        (lowest, zero),
        lambda a, b: (lax.max(a[0], b[0]), a[1] + b[1]),
        last,
    )
    exps = jnp.where(own, zero, jnp.exp(logits - largest[..., None]))
    total, found = lax.reduce((exps, own), (zero, np.bool_(False)), lambda a, b: (a[0] + b[0], a[1] | b[1]), last)
    return own_logit, largest, jnp.log(total), nan_unless(found, logits.dtype)


@own_and_others.defjvp
def _own_and_others_jvp(primals, tangents):
    logits, labels, where = primals
    own_logit, largest, log_sum, flaw = own_and_others(*primals)
    own = is_label(labels, logits.shape[-1])
    share = _shares(logits, largest, log_sum, ~own, where)
    own_dot = jnp.sum(jnp.where(own, tangents[0], 0), axis=-1)
    log_sum_dot = jnp.sum(share * tangents[0], axis=-1)
    return (own_logit, largest, log_sum, flaw), (own_dot, jnp.zeros_like(largest), log_sum_dot, jnp.zeros_like(flaw))


def _shares(logits, largest, log_sum, other, where):
    """Returns p_j / (1 - p_y) of every other class j, 0 elsewhere."""
    other = other if where is None else other & mask_classes(where, logits.shape[-1])
    # Selected before exp: the label's own exp overflows, and its derivative would be 0 · ∞.
    return jnp.exp(jnp.where(other, (logits - largest[..., None]) - log_sum[..., None], -jnp.inf))


def weight_of_label(weights: Float[Array, "classes"], labels: Int[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """Returns the weight of each pixel's class, NaN if the label is not a class."""
    own = is_label(labels, weights.shape[0])
    own = varying_like(own, jnp.broadcast_to(weights, own.shape))
    weight, count = sum_and_count(jnp.where(own, weights, 0), own, per_row=True)
    return weight + nan_unless(count > 0, weights.dtype)


# Sums


def sum_and_count(
    values: Float[Array, "*pixels last"], counted: Bool[Array, "*pixels last"], *, per_row: bool = False
) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
    """Returns the sum and the number of counted values, in one loop; `per_row`: over the last axis only."""
    total, high, low = _sum_and_halves(values, varying_like(counted, values), per_row)
    return total, (high.astype(jnp.int32) << 16) + low.astype(jnp.int32)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _sum_and_halves(values, counted, per_row):
    """Returns the sum, and the halves of the count as floats: an integer's tangent has no type under `shard_map`."""
    zeros = values.dtype.type(0), np.int32(0)
    terms = values, counted.astype(jnp.int32)
    total, count = lax.reduce(terms, zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), (values.ndim - 1,))
    if not per_row:
        total, count = jnp.sum(total), jnp.sum(count, dtype=jnp.int32)
    return total, (count >> 16).astype(jnp.float32), (count & 0xFFFF).astype(jnp.float32)


@_sum_and_halves.defjvp
def _sum_and_halves_jvp(per_row, primals, tangents):
    total, high, low = _sum_and_halves(*primals, per_row)
    total_dot = jnp.sum(tangents[0], axis=-1 if per_row else None)
    return (total, high, low), (total_dot, jnp.zeros_like(high), jnp.zeros_like(low))


# Sigmoid: one loss per logit


def sigmoid_log_odds(logits: Float[Array, "*pixels"], targets: Real[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """Returns x = z where the target is 1, -z where it is 0, NaN elsewhere."""
    x = jnp.where(targets == 1, logits, -logits)
    return x + nan_unless((targets == 0) | (targets == 1), x.dtype)


def hinge(x: Float[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """Returns max(0, 1 - x), with the slope 0 at x = 1; if x is NaN, so are the value and the gradient."""
    # A constant has the gradient 0 even if x is NaN; the factor carries the NaN into the gradient.
    x = x * (1 + nan_unless(~jnp.isnan(x), x.dtype))
    return jnp.where(x >= 1, 0, 1 - x)


def soft_targets(targets: Float[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """Returns the targets as constants (log t has no derivative at 0), NaN where they are outside [0, 1]."""
    return lax.stop_gradient(targets + nan_unless((targets >= 0) & (targets <= 1), targets.dtype))


def binary_terms(
    logits: Float[Array, "*pixels"], targets: Real[Array, "*pixels"]
) -> tuple[Float[Array, "*pixels"], Float[Array, "*pixels"]]:
    """Returns the cross entropy -t log p - (1-t) log(1-p), and log(1 - p_t) = log(t (1-p) + (1-t) p).

    Integer targets take the form with half of the exponentials; it equals the other to the last bit at t = 0 and 1.
    """
    if jnp.issubdtype(targets.dtype, jnp.integer):
        x = sigmoid_log_odds(logits, targets)
        return -jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)
    t = soft_targets(targets)
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -(t * log_p + (1 - t) * log_not_p), jnp.logaddexp(jnp.log(t) + log_not_p, jnp.log1p(-t) + log_p)


def balance(alpha: Float[Array, ""] | None, targets: Real[Array, "*pixels"]) -> Float[Array, "*pixels"] | float:
    """Returns α_t = α t + (1 - α)(1 - t), or 1 without α."""
    if alpha is None:
        return 1.0
    if jnp.issubdtype(targets.dtype, jnp.integer):
        return jnp.where(targets == 1, alpha, 1 - alpha)
    return alpha * targets + (1 - alpha) * (1 - targets)


def rematerialized(
    formula: Callable[..., Float[Array, "*pixels"]],
    dtype: jnp.dtype,
    where: Bool[Array, "*pixels"] | None,
    arrays: Sequence[Real[Array, "*pixels"]],
    parameters: Sequence[Float[Array, ""] | None] = (),
) -> Float[Array, "*pixels"]:
    """Returns `formula(*arrays, *parameters)`, masked, whose gradient keeps the arguments and recomputes the rest.

    Every exp and log of such a loss is as large as its logits; computing it again costs less than storing it. Floating
    arrays are widened to `dtype` and all are masked inside, behind the barrier that separates the two computations, so
    that it holds only what is in memory anyway. `jax.checkpoint` also puts a barrier around the cotangent, and from jax
    0.12 on whatever a barrier holds is written to memory.
    """

    def masked(where, arrays, parameters):
        widened = (x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in arrays)
        return mask_to_zero(formula(*(mask_to_zero(x, where) for x in widened), *parameters), where)

    run = jax.custom_jvp(masked)

    @run.defjvp
    def _(primals, tangents):
        return run(*primals), jax.jvp(masked, lax.optimization_barrier(primals), tangents)[1]

    return run(where, tuple(arrays), tuple(parameters))


# Regions


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def pixel_sums(
    logits: Float[Array, "images *pixels classes"],
    labels: Int[Array, "images *pixels"],
    where: Bool[Array, "images *pixels"],
    squared: bool,
) -> tuple[Array, Array, Array, Array, Array]:
    """Returns Σ p t, Σ_{t=1} (1-p), Σ_{t=0} p or (squared) Σ (p-t)², and Σ t, `[images, classes]`; and a NaN alarm.

    The alarm is 0, or NaN if a label that `where` keeps is not a class. Pixels are counted as integers, since float32
    stops counting at 2^24, and added over images as floats, since int32 ends at 2^31.
    """
    own, probability, missed, share, flaw = _softmax_parts(logits, labels, where)
    other = share * missed[..., None]
    miss = jnp.where(own, missed[..., None], 0)
    hit = jnp.where(own, probability[..., None], 0)
    error = other * other + miss * miss if squared else other
    zero = logits.dtype.type(0)
    rows = lax.reduce(
        (hit, miss, error, own.astype(jnp.int32)),
        (zero, zero, zero, np.int32(0)),
        lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
        (labels.ndim - 1,),
    )
    sums = (jnp.sum(row, axis=tuple(range(1, row.ndim - 1)), dtype=row.dtype) for row in rows)
    return *(total.astype(logits.dtype) for total in sums), jnp.sum(flaw)


@pixel_sums.defjvp
def _pixel_sums_jvp(squared, primals, tangents):
    """The derivative in a form whose transpose, the gradient, is one sum over the classes and one loop."""
    _, labels, where = primals
    own, probability, missed, share, flaw = _softmax_parts(*primals)
    share_dot = jnp.sum(share * tangents[0], axis=-1)
    x_dot = jnp.sum(jnp.where(own, tangents[0], 0), axis=-1) - share_dot
    hit_dot = mask_to_zero(probability * missed * x_dot, where)
    # d log p_j of every other class j is the tangent of its own logit minus this.
    common = share_dot + probability * x_dot
    other = share * missed[..., None]
    other_dot = other * (tangents[0] - common[..., None])
    pixel_axes = tuple(range(1, labels.ndim))

    def by_label(values):
        # A scatter, whose transpose is a gather from C numbers: the transpose of a masked sum is one array more.
        zeros = jnp.zeros(own.shape[-1], values.dtype)
        return jax.vmap(lambda y, v: zeros.at[y.ravel()].add(v.ravel()))(labels, values)

    error_dot = jnp.sum(2 * other * other_dot if squared else other_dot, axis=pixel_axes)
    if squared:
        error_dot = error_dot - by_label(2 * missed * hit_dot)
    sums = pixel_sums(*primals, squared)
    alarm_dot = -jnp.sum(jnp.where(jnp.isnan(flaw), hit_dot, 0))
    hits_dot = by_label(hit_dot)
    return sums, (hits_dot, -hits_dot, error_dot, jnp.zeros_like(sums[3]), alarm_dot)


def _softmax_parts(logits, labels, where):
    """Returns the kept one-hot labels, p_y, 1 - p_y, p_j / (1 - p_y) of the other classes, and the NaN flaw."""
    own_logit, largest, log_sum, flaw = own_and_others(logits, labels, where)
    x = mask_to_zero((own_logit - largest) - log_sum + flaw, where)
    own = is_label(jnp.where(where, labels, -1), logits.shape[-1])
    return own, jax.nn.sigmoid(x), jax.nn.sigmoid(-x), _shares(logits, largest, log_sum, ~own, where), flaw
