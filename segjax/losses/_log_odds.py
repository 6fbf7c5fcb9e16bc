r"""Private numerics of the losses: masks, log odds, and sums whose gradient keeps few arrays.

**Log odds.** The usual `(1 - exp(-ce)) ** gamma * ce` has NaN gradients at confident pixels: `exp(-ce)` rounds to 1,
and the derivative of `0 ** gamma` is NaN or infinite for gamma < 1. The losses therefore use the log odds x of the
label against all other classes, whose terms are smooth, finite and accurate for every x:

.. math::
    x = z_y - \log \sum_{j \ne y} e^{z_j}, \qquad \log p_y = \log σ(x), \qquad \log (1 - p_y) = \log σ(-x), \qquad
    (1 - p_y)^γ = e^{γ \log σ(-x)}

**Masks.** `where` replaces masked logits and labels before they reach a gradient (0 · NaN is NaN), and sets the loss
of the masked pixels to 0.

**Derivative rules.** JAX's own derivatives of the plain forms keep 2 to 8 arrays as large as the logits. The rules here
keep the arguments and a few numbers per pixel, and recompute the rest; a test holds them to the plain forms. XLA's CPU
compiler writes the operand of a sum over one array to memory, but not that of a sum over two: hence sums in pairs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Real, Shaped

from segjax import checks

Logits = Float[Array, "*pixels classes"]
PerClass = Bool[Array, "*pixels classes"]
Floats = Float[Array, "*pixels"]
Labels = Int[Array, "*pixels"]
Mask = Bool[Array, "*pixels"]
Targets = Real[Array, "*pixels"]


def sigmoid_inputs(logits: ArrayLike, targets: ArrayLike, where: Any) -> tuple[Floats, Targets, Mask | None]:
    """Returns checked arguments; targets are constants, integers or (soft) floats. `rematerialized` masks them."""
    logits = checks.floating_as_given("logits", logits)
    targets = checks.array("targets", targets)
    checks.same_shape("targets", targets.shape, "logits", logits.shape)
    hard = not jnp.issubdtype(targets.dtype, jnp.floating)
    targets = checks.integers("targets", targets) if hard else lax.stop_gradient(targets)
    return logits, targets, None if where is None else checks.mask("where", where, logits.shape)


def mask_to_zero(values: Shaped[Array, "*pixels"], where: Mask | None) -> Shaped[Array, "*pixels"]:
    """Returns `values`, and 0 (False) where `where` is False."""
    return values if where is None else jnp.where(where, values, jnp.zeros_like(values))


def mask_classes(where: Mask, num_classes: int) -> PerClass:
    """Returns `where` for every class, compared per class: the CPU compiler does not vectorise a shared condition."""
    classes = lax.broadcasted_iota(jnp.int32, (*where.shape, num_classes), where.ndim)
    return classes < jnp.where(where, num_classes, 0)[..., None]


def mask_logits(logits: Logits, where: Mask | None) -> Logits:
    """Returns `logits`, and 0 for every class where `where` is False."""
    return logits if where is None else jnp.where(mask_classes(where, logits.shape[-1]), logits, 0)


# Reductions of several arrays in one loop. A lambda in their place would be compiled at every call outside of jit.
def _sums(a, b):
    return tuple(map(lax.add, a, b))


def _max_and_sum(a, b):
    return lax.max(a[0], b[0]), a[1] + b[1]


def _sum_and_any(a, b):
    return a[0] + b[0], a[1] | b[1]


def is_label(labels: Labels, num_classes: int) -> PerClass:
    """Returns one-hot labels by comparison: a TPU gathers and scatters one pixel at a time."""
    classes = lax.broadcasted_iota(labels.dtype, (*labels.shape, num_classes), labels.ndim)
    return labels[..., None] == classes


def nan_unless(valid: Mask, dtype: jnp.dtype) -> Floats:
    """Returns 0 where `valid`, else NaN, which makes a sum with it and the sum's gradient NaN."""
    return jnp.where(valid, 0.0, jnp.nan).astype(dtype)


def varying_like(values: Shaped[Array, "*pixels"], floats: Floats) -> Shaped[Array, "*pixels"]:
    """Returns numbers or booleans that vary over the mapped axes of `floats`, as reductions of both require."""
    zero = jnp.isnan(floats) & False
    return values | zero if values.dtype == jnp.bool_ else values + zero.astype(values.dtype)


def softmax_log_odds(logits: Logits, labels: Labels, where: Mask | None = None) -> Floats:
    """Returns x = z_y - log Σ_{j≠y} exp z_j, 0 where masked; value and gradient are NaN if the label is not a class."""
    own, largest, log_sum, flaw = own_and_others(logits, varying_like(labels, logits[..., 0]), where)
    # In this order a large offset that all logits share does not round the small logarithm away.
    return mask_to_zero((own - largest) - log_sum + flaw, where)


@jax.custom_jvp
def own_and_others(logits: Logits, labels: Labels, where: Mask | None) -> tuple[Floats, Floats, Floats, Floats]:
    """Returns z_y, the largest other logit m (a constant), log Σ_{j≠y} exp(z_j - m), and 0 or NaN (not a class)."""
    own = is_label(labels, logits.shape[-1])
    zero, lowest, last = logits.dtype.type(0), logits.dtype.type(-jnp.inf), (logits.ndim - 1,)
    candidates = jnp.where(own, lowest, logits), jnp.where(own, logits, zero)
    largest, own_logit = lax.reduce(candidates, (lowest, zero), _max_and_sum, last)
    exps = jnp.where(own, zero, jnp.exp(logits - largest[..., None]))
    total, found = lax.reduce((exps, own), (zero, np.bool_(False)), _sum_and_any, last)
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
    # Selected before exp: the exp of the label's own logit may overflow, with the derivative 0 · ∞.
    return jnp.exp(jnp.where(other, (logits - largest[..., None]) - log_sum[..., None], -jnp.inf))


def channels(
    logits: ArrayLike, labels: ArrayLike, where: Any, activation: str, *, soft: bool = False
) -> tuple[Array, Array, Array, Array]:
    """Returns every class as a binary channel: log odds x with p = σ(x), boolean targets, the mask, all `[..., C]`.

    With `soft`, floating-point labels `[..., C]` become targets in [0, 1] of the logits' dtype. The last result is 0,
    or NaN with a NaN gradient if an unmasked label is not a class or a distribution (softmax), or not 0 or 1, or not in
    [0, 1] (sigmoid). Masked logits are replaced by 0.
    """
    if activation == "softmax":
        check = checks.softmax_targets if soft else checks.softmax_inputs
        logits, labels, where = check(logits, labels, where)
        num_classes = logits.shape[-1]
        where = jnp.broadcast_to(jnp.bool_(True) if where is None else where[..., None], logits.shape)
        if labels.ndim == logits.ndim:
            targets, valid = labels, labels >= 0
        else:
            valid = ((labels >= 0) & (labels < num_classes))[..., None]
            targets = is_label(labels, num_classes)
    else:
        logits, labels = checks.floating("logits", logits), checks.array("labels", labels)
        checks.same_shape("labels", labels.shape, "logits", logits.shape)
        labels = labels.astype(jnp.int32) if labels.dtype == jnp.bool_ else labels
        where = checks.array("where", True if where is None else where)
        where = checks.mask("where", where if where.ndim == logits.ndim else where[..., None], logits.shape)
        labels = mask_to_zero(labels, where)
        targets, valid = labels == 1, (labels == 0) | (labels == 1)
        if soft and jnp.issubdtype(labels.dtype, jnp.floating):
            targets, valid = lax.stop_gradient(labels.astype(logits.dtype)), (labels >= 0) & (labels <= 1)
    targets, where = varying_like(targets, logits), varying_like(where, logits)
    logits = mask_to_zero(logits, where)
    alarm = jnp.sum(nan_unless(valid, logits.dtype) * logits)
    return class_log_odds(logits) if activation == "softmax" else logits, targets, where, alarm


def class_log_odds(logits: Logits) -> Logits:
    """Returns x_c = z_c - log Σ_{j≠c} exp z_j of every class c, finite for finite logits."""
    classes = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    is_top = classes == lax.argmax(logits, logits.ndim - 1, jnp.int32)[..., None]
    below = jnp.where(is_top, -jnp.inf, logits)
    largest, second = (lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True)) for z in (logits, below))
    shifted = logits - largest
    powers = jnp.exp(shifted)
    # Subtracting the largest from the whole sum would leave rounding. The others leave at least its 1.
    others = jnp.where(is_top, 1, jnp.sum(powers, axis=-1, keepdims=True) - powers)
    others_of_top = jnp.sum(jnp.exp(below - second), axis=-1, keepdims=True)
    return shifted - jnp.where(is_top, jnp.log(others_of_top) + (second - largest), jnp.log(others))


def class_log_probabilities(logits: Logits, where: Mask | None) -> tuple[Array, Array]:
    """Returns log p_j and log(1 - p_j) of every class j, for masked pixels those of equal logits."""
    return log_probabilities(class_log_odds(mask_logits(logits, where)))


def weighted_sum(weights: Float[Array, "*pixels classes"], values: Float[Array, "*pixels classes"]) -> Floats:
    """Returns the sum over the classes of weights · values, in which a weight of 0 removes an infinite value."""
    return jnp.sum(weights * jnp.where(weights == 0, 0, values), axis=-1)


def weight_of_label(weights: Float[Array, "classes"], labels: Labels) -> Floats:
    """Returns the weight of each pixel's class, NaN if the label is not a class."""
    own = is_label(labels, weights.shape[0])
    own = varying_like(own, jnp.broadcast_to(weights, own.shape))
    weight, count = sum_and_count(jnp.where(own, weights, 0), own, per_row=True)
    return weight + nan_unless(count > 0, weights.dtype)


def sum_and_count(values: Floats, counted: Mask, *, per_row: bool = False) -> tuple[Array, Array]:
    """Returns the sum of values and the number of `counted`, in one loop; `per_row`: over the last axis only."""
    total, high, low = _sum_and_halves(values, varying_like(counted, values), per_row)
    return total, (high.astype(jnp.int32) << 16) + low.astype(jnp.int32)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _sum_and_halves(values, counted, per_row):
    """Returns the sum and the halves of the count as floats, since `shard_map` has no tangents of integers."""
    zeros = values.dtype.type(0), np.int32(0)
    terms = values, counted.astype(jnp.int32)
    total, count = lax.reduce(terms, zeros, _sums, (values.ndim - 1,))
    if not per_row:
        total, count = jnp.sum(total), jnp.sum(count, dtype=jnp.int32)
    return total, (count >> 16).astype(jnp.float32), (count & 0xFFFF).astype(jnp.float32)


@_sum_and_halves.defjvp
def _sum_and_halves_jvp(per_row, primals, tangents):
    total, high, low = _sum_and_halves(*primals, per_row)
    total_dot = jnp.sum(tangents[0], axis=-1 if per_row else None)
    return (total, high, low), (total_dot, jnp.zeros_like(high), jnp.zeros_like(low))


def sigmoid_log_odds(logits: Floats, targets: Targets) -> Floats:
    """Returns x = z where the target is 1, -z where it is 0, NaN elsewhere."""
    x = jnp.where(targets == 1, logits, -logits)
    return x + nan_unless((targets == 0) | (targets == 1), x.dtype)


def hinge(x: Floats) -> Floats:
    """Returns max(0, 1 - x) with slope 0 at x = 1; value and gradient are NaN if x is NaN."""
    x = x * (1 + nan_unless(~jnp.isnan(x), x.dtype))  # the factor carries the NaN into the gradient
    return jnp.where(x >= 1, 0, 1 - x)


def soft_targets(targets: Floats) -> Floats:
    """Returns the targets as constants, since log t has no derivative at 0; NaN where they are outside [0, 1]."""
    return lax.stop_gradient(targets + nan_unless((targets >= 0) & (targets <= 1), targets.dtype))


@jax.custom_jvp
def log_probabilities(x: Floats) -> tuple[Floats, Floats]:
    """Returns log σ(x) and log σ(-x) with one exp and one log for both, half the time of two `log_sigmoid`."""
    tail = jnp.log1p(jnp.exp(-jnp.abs(x)))
    return jnp.minimum(x, 0) - tail, jnp.minimum(-x, 0) - tail


@log_probabilities.defjvp
def _log_probabilities_jvp(primals, tangents):
    # The derivatives of the formula have a kink at 0, where |x| has one.
    (x,), (x_dot,) = primals, tangents
    return log_probabilities(x), (jax.nn.sigmoid(-x) * x_dot, -jax.nn.sigmoid(x) * x_dot)


def binary_terms(logits: Floats, targets: Targets) -> tuple[Floats, Floats]:
    """Returns the cross entropy -t log p - (1-t) log(1-p), and log(1 - p_t) = log(t (1-p) + (1-t) p)."""
    if jnp.issubdtype(targets.dtype, jnp.integer):  # same bits as below with half of the work
        log_pt, log_one_minus_pt = log_probabilities(sigmoid_log_odds(logits, targets))
        return -log_pt, log_one_minus_pt
    t = soft_targets(targets)
    log_p, log_not_p = log_probabilities(logits)
    return -(t * log_p + (1 - t) * log_not_p), jnp.logaddexp(jnp.log(t) + log_not_p, jnp.log1p(-t) + log_p)


def balance(alpha: Float[Array, ""] | None, targets: Targets) -> Floats | float:
    """Returns α_t = α t + (1 - α)(1 - t), or 1 without α."""
    if alpha is None:
        return 1.0
    if jnp.issubdtype(targets.dtype, jnp.integer):
        return jnp.where(targets == 1, alpha, 1 - alpha)
    return alpha * targets + (1 - alpha) * (1 - targets)


def rematerialized(
    formula: Callable, dtype: jnp.dtype, where: Mask | None, arrays: Sequence[Targets], parameters: Sequence = ()
) -> Floats:
    """Returns `formula(*arrays, *parameters)`, widened to `dtype` and masked; its derivatives keep the arguments only.

    The barrier separates the two computations. It holds only arrays that are in memory anyway; `jax.checkpoint` also
    puts the cotangent behind it, which jax 0.12 then writes to memory.
    """

    def masked(where, arrays, parameters):
        widened = (x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in arrays)
        return mask_to_zero(formula(*(mask_to_zero(x, where) for x in widened), *parameters), where)

    run = jax.custom_jvp(masked)

    @run.defjvp
    def _(primals, tangents):
        return run(*primals), jax.jvp(masked, lax.optimization_barrier(primals), tangents)[1]

    return run(where, tuple(arrays), tuple(parameters))


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def pixel_sums(logits: Logits, labels: Labels, where: Mask, squared: bool) -> tuple[Array, Array, Array, Array, Array]:
    """Returns Σ p t, Σ_{t=1} (1-p), Σ_{t=0} p or (squared) Σ (p-t)², and Σ t, `[images, classes]`; and an alarm.

    The alarm is 0, or NaN if an unmasked label is not a class. The pixels of an image are counted as integers (float32
    stops counting at 2^24) and added over images as floats (int32 ends at 2^31).
    """
    own, probability, missed, share, flaw = _softmax_parts(logits, labels, where)
    other = share * missed[..., None]
    miss = jnp.where(own, missed[..., None], 0)
    hit = jnp.where(own, probability[..., None], 0)
    error = other * other + miss * miss if squared else other
    terms = hit, miss, error, own.astype(jnp.int32)
    zeros = tuple(x.dtype.type(0) for x in terms)
    rows = lax.reduce(terms, zeros, _sums, (labels.ndim - 1,))
    sums = (jnp.sum(row, axis=tuple(range(1, row.ndim - 1)), dtype=row.dtype) for row in rows)
    return *(total.astype(logits.dtype) for total in sums), jnp.sum(flaw)


@pixel_sums.defjvp
def _pixel_sums_jvp(squared, primals, tangents):
    """Returns the derivatives in a form whose transpose is one sum over the classes and one loop."""
    _, labels, where = primals
    own, probability, missed, share, flaw = _softmax_parts(*primals)
    share_dot = jnp.sum(share * tangents[0], axis=-1)
    x_dot = jnp.sum(jnp.where(own, tangents[0], 0), axis=-1) - share_dot
    hit_dot = mask_to_zero(probability * missed * x_dot, where)
    # The derivative of log p_j, for every other class j, is the tangent of its logit minus this.
    common = share_dot + probability * x_dot
    other = share * missed[..., None]
    other_dot = other * (tangents[0] - common[..., None])

    def scattered(values):
        # Its transpose gathers from C numbers, whereas that of a masked sum needs one more array on a CPU.
        zeros = jnp.zeros(own.shape[-1], values.dtype)
        return jax.vmap(lambda y, v: zeros.at[y.ravel()].add(v.ravel()))(labels, values)

    def masked(values):
        return jnp.sum(jnp.where(own, values[..., None], 0), axis=tuple(range(1, labels.ndim)))

    def by_label(values):
        # A TPU scatters and gathers one number after another: six times the bytes of the masked sum.
        return lax.platform_dependent(values, tpu=masked, default=scattered)

    error_dot = jnp.sum(2 * other * other_dot if squared else other_dot, axis=tuple(range(1, labels.ndim)))
    if squared:
        error_dot = error_dot - by_label(2 * missed * hit_dot)
    sums, hits_dot = pixel_sums(*primals, squared), by_label(hit_dot)
    alarm_dot = -jnp.sum(jnp.where(jnp.isnan(flaw), hit_dot, 0))
    return sums, (hits_dot, -hits_dot, error_dot, jnp.zeros_like(sums[3]), alarm_dot)


def _softmax_parts(logits, labels, where):
    """Returns the unmasked one-hot labels, p_y, 1 - p_y, p_j / (1 - p_y) of the other classes, and the NaN flaw."""
    own_logit, largest, log_sum, flaw = own_and_others(logits, labels, where)
    x = mask_to_zero((own_logit - largest) - log_sum + flaw, where)
    own = is_label(jnp.where(where, labels, -1), logits.shape[-1])
    return own, jax.nn.sigmoid(x), jax.nn.sigmoid(-x), _shares(logits, largest, log_sum, ~own, where), flaw
