"""The sums that region losses are made of, and the arithmetic that keeps their digits. Private.

1 - TI is never formed by a subtraction. With N = α Σ_{t=0} p + β Σ_{t=1} (1 - p), or for squared sums
N = α Σ (p - t)² + (β - α) Σ_{t=1} (1 - p), it is N / (I + N), and 1 - p of the own class comes from the margin (see
`margin.py`): all terms are accurate and none is negative, so a nearly perfect prediction keeps its tiny loss.
"""

from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from segjax import checks
from segjax.collectives import psum
from segjax.losses import margin
from segjax.losses.inputs import softmax_inputs

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
    own = margin.is_label(labels, num_classes)
    probability = jax.nn.softmax(logits)
    missed = jnp.exp(margin.log_miss(margin.softmax_margin(logits, labels)))
    off = jnp.where(keep[..., None], jnp.where(own, missed[..., None], probability), 0)

    def of_class(values):
        total = jnp.sum(values, axis=pixel_axes)
        return total if classes is None else total[:, _indices(classes, num_classes)]

    # Counted as integers: float32 stops counting at 2^24. Added up over images as floats: int32 ends at 2^31.
    truth = of_class((own & keep[..., None]).astype(jnp.int32)).astype(logits.dtype)
    pixels = jnp.sum(keep, axis=pixel_axes, dtype=jnp.int32).astype(logits.dtype)[:, None]
    sums = Sums(
        hit=of_class(jnp.where(own & keep[..., None], probability, 0)),
        miss=of_class(jnp.where(own, off, 0)),
        error=of_class(off * off if squared else jnp.where(own, 0, off)),
        truth=truth,
        pixels=pixels,
    )
    if over_batch:
        sums = psum(jax.tree.map(lambda x: jnp.sum(x, axis=0, keepdims=True), sums), axis_name)
    # `missed` is NaN at a wrong label, and so is its gradient; an absent class would hide that.
    alarm = jnp.sum(jnp.where((labels >= 0) & (labels < num_classes), 0, missed))
    return sums, psum(alarm, axis_name)


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
