"""The one reduction of per-pixel losses: sum and count, both over all devices, divide last."""

from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Real

from segjax import checks
from segjax.collectives import psum
from segjax.losses.inputs import kept, varying_like

NORMALIZERS = ("valid", "weights", "positives")


def mean(
    per_pixel: Float[ArrayLike, "*pixels"],
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    weights: Real[ArrayLike, "*#pixels"] | None = None,
    positives: Bool[ArrayLike, "*#pixels"] | None = None,
    normalizer: str = "valid",
    axis_name: Hashable | None = None,
) -> Float[Array, ""]:
    r"""The mean of a per-pixel loss over the kept pixels of all devices.

    .. math::
        L = \frac{\sum_i w_i l_i}{N}, \qquad
        N = \sum_i 1 \;(valid), \quad \sum_i w_i \;(weights), \quad \max(1, \sum_i [i \text{ positive}]) \;(positives)

    with every sum over the pixels i that `where` keeps, on all devices of `axis_name`. An empty sum divided by 0 is 0.

    Args:
        per_pixel: l, the unreduced loss, any shape.
        where: boolean of that shape or broadcastable to it; False: no such pixel. It protects the *value* only:
            give it to the per-pixel loss too, or a masked NaN logit still gives a NaN gradient.
        weights: w ≥ 0, that shape or broadcastable to it; 1 if not given. They multiply the loss whatever the
            normalizer, which only says what to divide by.
        positives: boolean, that shape or broadcastable to it; read by `normalizer="positives"` only.
        normalizer: "valid" divides by the number of kept pixels, "weights" by their weight, "positives" by the number
            of positive ones, at least 1 (the focal loss paper's: easy negatives then do not dilute the loss).
        axis_name: the mapped device axis, or None under `jit`. Inside a map every device gets the same *global* loss;
            `pmean` the gradients.

    Returns:
        A scalar, at least float32.

    Raises:
        TypeError: `per_pixel` is not floating, or `where` or `positives` not boolean.
        ValueError: a shape does not fit, the normalizer is unknown, or what it divides by was not given.

    References:
        Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.1 (positives).

    >>> import jax.numpy as jnp
    >>> loss = jnp.array([[1.0, 2.0], [3.0, jnp.nan]])
    >>> where = jnp.array([[True, True], [True, False]])
    >>> print(mean(loss, where=where))
    2.0
    >>> print(mean(loss, where=where, weights=jnp.array([[3.0], [1.0]]), normalizer="weights"))
    1.7142857
    >>> print(mean(loss, where=where, positives=loss > 2.5, normalizer="positives"))
    6.0
    """
    checks.choice("normalizer", normalizer, NORMALIZERS)
    for name, value in (("weights", weights), ("positives", positives)):
        if normalizer == name and value is None:
            raise ValueError(f'normalizer="{name}" divides by the {name}; got {name}=None')
    loss = checks.floating("per_pixel", per_pixel)
    keep = None if where is None else checks.mask("where", where, loss.shape)
    loss = kept(loss, keep)
    if weights is not None:
        weights = kept(checks.spread("weights", checks.array("weights", weights).astype(loss.dtype), loss.shape), keep)
        loss = loss * weights
    counted = jnp.ones(loss.shape, bool) if keep is None else keep
    if normalizer == "positives":
        counted = kept(checks.mask("positives", positives, loss.shape), keep)
    total, *halves = _total_and_count(loss, varying_like(counted, loss))
    total, count = psum((total, _whole(*halves)), axis_name)
    if normalizer == "weights":
        return _ratio(total, psum(jnp.sum(weights), axis_name))
    divisor = count.astype(loss.dtype)
    return total / jnp.maximum(divisor, 1) if normalizer == "positives" else _ratio(total, divisor)


@jax.custom_jvp
def _total_and_count(
    loss: Float[Array, "*pixels"], counted: Bool[Array, "*pixels"]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Σ loss, and how many are counted, in two floats that hold its halves exactly.

    An integer's tangent is a float0, which does not say over which devices it varies, and a `shard_map` refuses it.
    """
    if loss.ndim == 0:
        return _plainly(loss, counted)
    return jax.lax.platform_dependent(loss, counted, cpu=_together, default=_plainly)


@_total_and_count.defjvp
def _total_and_count_jvp(primals, tangents):
    total, high, low = _total_and_count(*primals)
    return (total, high, low), (jnp.sum(tangents[0]), jnp.zeros_like(high), jnp.zeros_like(low))


def _plainly(loss, counted):
    return jnp.sum(loss), *_halves(jnp.sum(counted, dtype=jnp.int32))


def _together(loss, counted):
    """Both in one loop, row by row, which XLA's CPU compiler joins with the loop that computes the loss.

    A sum alone it hands to a library, for which the loss of every pixel is first written to memory.
    """
    start = loss.dtype.type(0), np.int32(0)
    rows = jax.lax.reduce(
        (loss, counted.astype(jnp.int32)), start, lambda a, b: (a[0] + b[0], a[1] + b[1]), (loss.ndim - 1,)
    )
    return jnp.sum(rows[0]), *_halves(jnp.sum(rows[1], dtype=jnp.int32))


def _halves(count):
    return (count >> 16).astype(jnp.float32), (count & 0xFFFF).astype(jnp.float32)


def _whole(high, low):
    # Counted as an integer, over all devices too: float32 stops counting at 2^24.
    return (high.astype(jnp.int32) << 16) + low.astype(jnp.int32)


def _ratio(total: jax.Array, divisor: jax.Array) -> jax.Array:
    """total / divisor, and 0 with a gradient of 0 where the divisor is 0."""
    empty = divisor == 0
    return jnp.where(empty, 0, total / jnp.where(empty, 1, divisor))
