"""The sums that region losses are made of, and the arithmetic that keeps their digits. Private.

1 - TI is never formed by a subtraction. With N = α Σ_{t=0} p + β Σ_{t=1} (1 - p), or for squared sums
N = α Σ (p - t)² + (β - α) Σ_{t=1} (1 - p), it is N / (I + N), and 1 - p of the own class comes from the margin (see
`margin.py`): all terms are accurate and none is negative, so a nearly perfect prediction keeps its tiny loss.
"""

from collections.abc import Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from segjax import checks
from segjax.collectives import psum
from segjax.losses import margin
from segjax.losses.inputs import each_class, softmax_inputs, varying_like

ABSENT = ("exclude", "zero", "one")


class Sums(NamedTuple):
    """Of the kept pixels of each image (or of the one batch), all floats, `[images, classes]`; pixels `[images, 1]`."""

    hit: Array  # Σ p t
    miss: Array  # Σ_{t=1} (1 - p)
    error: Array  # plain: Σ_{t=0} p; squared: Σ (p - t)²
    truth: Array  # Σ t
    pixels: Array  # Σ 1


def sums_of(
    logits: ArrayLike,
    labels: ArrayLike,
    where: ArrayLike | None,
    squared: bool,
    over_batch: bool,
    classes: Any,
    axis_name: Hashable | None,
) -> tuple[Sums, Float[Array, ""]]:
    """All that the losses need, and 0: NaN, in value and gradient, if a kept label is no class."""
    logits, labels, keep = _inputs(logits, labels, where)
    num_classes, pixel_axes = logits.shape[-1], tuple(range(1, labels.ndim))
    keep = jnp.ones(labels.shape, bool) if keep is None else keep
    labels, keep = varying_like(labels, logits[..., 0]), varying_like(keep, logits[..., 0])
    hit, miss, error, truth, alarm = _pixel_sums(logits, labels, keep, squared)

    def of_class(total):
        return total if classes is None else total[:, _indices(classes, num_classes)]

    pixels = jnp.sum(keep, axis=pixel_axes, dtype=jnp.int32).astype(logits.dtype)[:, None]
    sums = Sums(of_class(hit), of_class(miss), of_class(error), of_class(truth), pixels)
    if over_batch:
        sums = psum(jax.tree.map(lambda x: jnp.sum(x, axis=0, keepdims=True), sums), axis_name)
    return sums, psum(alarm, axis_name)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _pixel_sums(
    logits: Float[Array, "images *pixels classes"],
    labels: Int[Array, "images *pixels"],
    keep: Bool[Array, "images *pixels"],
    squared: bool,
) -> tuple[Array, Array, Array, Array, Array]:
    """hit, miss, error and truth, `[images, classes]`; and 0, or NaN if a kept label is no class.

    Pixels are counted as integers, since float32 stops counting at 2^24, and added up over images as floats: int32 ends
    at 2^31.
    """
    in_rows, at_once = (partial(way, squared=squared) for way in (_in_rows, _at_once))
    return jax.lax.platform_dependent(logits, labels, keep, cpu=in_rows, default=at_once)


@_pixel_sums.defjvp
def _pixel_sums_jvp(squared, primals, tangents):
    """By hand, so that its transpose, the gradient, is one sum over the classes and one loop, with no exp kept."""
    _, labels, keep = primals
    own, probability, missed, share, flaw = _parts(*primals)
    share_dot = jnp.sum(share * tangents[0], axis=-1)
    margin_dot = jnp.sum(jnp.where(own, tangents[0], 0), axis=-1) - share_dot
    hit_dot = jnp.where(keep, probability * missed * margin_dot, 0)
    # d log(share of the class · 1 - p) of every other class is its own logit's tangent less this.
    common = share_dot + probability * margin_dot
    off = share * missed[..., None]
    off_dot = off * (tangents[0] - common[..., None])
    error_dot = jnp.sum(2 * off * off_dot if squared else off_dot, axis=tuple(range(1, labels.ndim)))
    of_hit = _by_label(labels, own, hit_dot)
    if squared:
        error_dot = error_dot - _by_label(labels, own, 2 * missed * hit_dot)
    sums = _pixel_sums(*primals, squared)
    alarm_dot = -jnp.sum(jnp.where(jnp.isnan(flaw), hit_dot, 0))
    return sums, (of_hit, -of_hit, error_dot, jnp.zeros_like(sums[3]), alarm_dot)


def _by_label(labels, own, values):
    """Σ of what the pixels of each class have, `[images, classes]`; 0 at a pixel that does not count."""
    num_classes, pixel_axes = own.shape[-1], tuple(range(1, labels.ndim))

    def scattered(labels, own, values):  # and so in the gradient a gather from C numbers
        del own
        return jax.vmap(lambda y, v: jnp.zeros(num_classes, v.dtype).at[y.ravel()].add(v.ravel()))(labels, values)

    def selected(labels, own, values):  # a TPU scatters and gathers one pixel after another
        del labels
        return jnp.sum(jnp.where(own, values[..., None], 0), axis=pixel_axes)

    return jax.lax.platform_dependent(labels, own, values, tpu=selected, default=scattered)


def _parts(logits, labels, keep):
    """Is it the label's class, p and 1 - p of that, each other class's share of 1 - p, and 0, or NaN without it."""
    num_classes = logits.shape[-1]
    own_logit, largest, log_sum, flaw = margin.against_others(logits, labels)
    probability, missed = margin.probabilities(margin.margin_of(own_logit, largest, log_sum, flaw))
    own = margin.is_label(jnp.where(keep, labels, -1), num_classes)
    # Selected before exp: the label's own overflows, and a derivative would be 0 · ∞.
    other = each_class(keep, num_classes) & ~own
    share = jnp.exp(jnp.where(other, (logits - largest[..., None]) - log_sum[..., None], -jnp.inf))
    return own, probability, missed, share, flaw


def _terms(logits, labels, keep, squared):
    """What is added up: of each pixel and class hit, miss, error and truth, and of each pixel the alarm."""
    own, probability, missed, share, flaw = _parts(logits, labels, keep)
    off = share * missed[..., None]
    miss = jnp.where(own, missed[..., None], 0)
    hit = jnp.where(own, probability[..., None], 0)
    error = off * off + miss * miss if squared else off
    # `missed` is NaN at a wrong label, and so is its gradient; an absent class would hide that.
    return hit, miss, error, own.astype(jnp.int32), flaw


def _at_once(logits, labels, keep, squared):
    *terms, alarm = _terms(logits, labels, keep, squared)
    return _of_images(terms, alarm, logits.dtype)


def _in_rows(logits, labels, keep, squared):
    """The same, all in one loop, row by row: XLA's CPU compiler writes what it sums alone to memory first."""
    *terms, alarm = _terms(logits, labels, keep, squared)
    zero = logits.dtype.type(0)
    rows = jax.lax.reduce(
        tuple(terms),
        (zero, zero, zero, np.int32(0)),
        lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
        (labels.ndim - 1,),
    )
    return _of_images(rows, alarm, logits.dtype)


def _of_images(terms, alarm, dtype):
    sums = [jnp.sum(term, axis=tuple(range(1, term.ndim - 1)), dtype=term.dtype) for term in terms]
    return *(total.astype(dtype) for total in sums), jnp.sum(alarm)


def _inputs(logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None) -> tuple[Array, Array, Array | None]:
    shape = jnp.shape(logits)
    if len(shape) < 3 or shape[-1] < 2:
        raise ValueError(
            "logits must be [batch, ..., classes] with at least one axis of pixels and 2 classes, class last; "
            f"got shape {shape}. A single sigmoid logit z is the two classes (0, z), with classes=(1,)"
        )
    return softmax_inputs(logits, labels, where)


def _indices(classes: Any, num_classes: int) -> np.ndarray:
    indices = checks.host("classes", classes)
    if (
        indices.ndim != 1
        or indices.size == 0
        or not np.issubdtype(indices.dtype, np.integer)
        or ((indices < 0) | (indices >= num_classes)).any()
        or np.unique(indices).size != indices.size
    ):
        raise ValueError(
            f"classes must be None or a sequence of distinct class indices in [0, {num_classes}), at least one; "
            f"got {classes!r}"
        )
    return indices


def cost_of(sums: Sums, alpha: Any, beta: Any, squared: bool) -> Float[Array, "images classes"]:
    """N: what stands beside I in the denominator of TI, by sums that are accurate and not negative."""
    if not squared:
        return alpha * sums.error + beta * sums.miss
    cost = alpha * sums.error + (beta - alpha) * sums.miss
    return jnp.where(cost < 0, 0, cost)


def share(cost: Float[Array, "images classes"], hit: Float[Array, "images classes"]) -> Float[Array, "images classes"]:
    """N / (I + N), and 0 where both are."""
    whole = jax.lax.stop_gradient(hit + cost)
    nothing = whole < jnp.finfo(whole.dtype).tiny
    # Scaled by a constant that cancels: the derivatives of a quotient have squares of I + N, which is tiny if β is 0.
    scale = 1 / jnp.where(nothing, 1, whole)
    cost, hit = cost * scale, hit * scale
    return jnp.where(nothing, 0, cost / jnp.where(nothing, 1, hit + cost))


def power(base: Float[Array, "images classes"], gamma: Float[Array, ""]) -> Float[Array, "images classes"]:
    """base^γ, γ ≥ 1, with the derivatives that it has at 0 where the formula's are 0 · ∞."""
    live = base >= jnp.finfo(base.dtype).tiny
    return jnp.where(live, jnp.where(live, base, 1) ** gamma, jnp.where(gamma == 1, base, 0))


def mean_over_pairs(
    loss: Float[Array, "images pairs"],
    present: Bool[Array, "images pairs"],
    exists: Bool[Array, "images 1"],
    absent: str,
    axis_name: Hashable | None,
) -> Float[Array, ""]:
    """The mean over the pairs that the policy counts, on all devices."""
    checks.choice("absent", absent, ABSENT)
    counted = jnp.broadcast_to(exists, present.shape)
    counted = counted & present if absent == "exclude" else counted
    loss = jnp.where(present, loss, 1 if absent == "one" else 0)
    total, count = psum((jnp.sum(jnp.where(counted, loss, 0)), jnp.sum(counted, dtype=jnp.int32)), axis_name)
    return total / jnp.maximum(count, 1).astype(total.dtype)
