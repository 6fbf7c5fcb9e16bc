"""The mean of a per-pixel loss over the pixels of all devices, and the choice of the hardest pixels for it (OHEM)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer, Real, UInt

from segjax import checks
from segjax.checks import AxisName, PerPixel, Scalar, Where
from segjax.collectives import psum
from segjax.losses._log_odds import mask_to_zero, sum_and_count


def mean(
    per_pixel: PerPixel,
    *,
    where: Where = None,
    weights: Real[ArrayLike, "*#pixels"] | None = None,
    positives: Where = None,
    normalizer: str = "valid",
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Returns the mean of a per-pixel loss over the unmasked pixels of all devices.

    .. math::
        L = \frac{\sum_i w_i l_i}{N}, \qquad
        N = \sum_i 1 \;(valid), \quad \sum_i w_i \;(weights), \quad \max(1, \sum_i [i \text{ positive}]) \;(positives)

    Args:
        per_pixel: l, the unreduced loss, any shape.
        where: boolean; False removes the pixel. Pass it to the per-pixel loss too: a masked NaN has a NaN gradient.
        weights: w ≥ 0, broadcastable; default 1. They multiply the loss under every normalizer.
        positives: boolean, broadcastable; used by `normalizer="positives"` only.
        normalizer: "valid", "weights" or "positives" (the normalizer of the focal loss paper).
        axis_name: mapped device axis, or None. Every device gets the same global loss; `pmean` the gradients.

    Returns:
        A scalar, at least float32; 0 where N = 0.

    Raises: TypeError or ValueError if a dtype or shape does not fit, a weight is negative, or an option is not valid.

    References: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.1 (positives).

    >>> loss = jnp.array([[1.0, 2.0], [3.0, jnp.nan]])
    >>> where = jnp.array([[True, True], [True, False]])
    >>> print(mean(loss, where=where), mean(loss, where=where, positives=loss > 2.5, normalizer="positives"))
    2.0 6.0
    """
    checks.choice("normalizer", normalizer, ("valid", "weights", "positives"))
    for name, value in (("weights", weights), ("positives", positives)):
        if normalizer == name and value is None:
            raise ValueError(f'normalizer="{name}" divides by the {name}; got {name}=None')
    loss = checks.floating("per_pixel", per_pixel)
    keep = checks.mask("where", where, loss.shape)
    loss = mask_to_zero(loss, keep)
    if weights is not None:
        checks.not_negative("weights", weights, where)
        weights = checks.spread("weights", checks.array("weights", weights).astype(loss.dtype), loss.shape)
        weights = mask_to_zero(weights, keep)
        loss = loss * weights
    counted = keep
    if normalizer == "positives":
        counted = checks.mask("positives", positives, loss.shape) & keep

    # The count is an integer on all devices too: float32 stops counting at 2^24.
    total, count = psum(sum_and_count(jnp.atleast_1d(loss), jnp.atleast_1d(counted)), axis_name)
    if normalizer == "positives":
        return total / jnp.maximum(count, 1).astype(loss.dtype)
    divisor = psum(jnp.sum(weights), axis_name) if normalizer == "weights" else count.astype(loss.dtype)
    return jnp.where(divisor == 0, 0, total / jnp.where(divisor == 0, 1, divisor))


def hard_pixels(
    per_pixel: PerPixel,
    *,
    where: Where = None,
    fraction: Scalar | None = None,
    min_kept: Integer[ArrayLike, ""] | None = None,
    threshold: Scalar | None = None,
    positives: Where = None,
    negatives_per_positive: Scalar | None = None,
    axis_name: AxisName = None,
) -> Bool[Array, "*pixels"]:
    r"""Selects the pixels of largest loss over all devices: OHEM is `mean(loss, where=hard_pixels(loss, ...))`.

    With n unmasked pixels, P unmasked positives and losses l, the mask is exactly one of

    .. math::
        \{l_i \ge l_{(k)}\},\; k = \lceil \text{fraction} \cdot n \rceil \qquad
        \{l_i \ge \text{threshold}\} \qquad
        \{i \text{ positive}\} \cup \{i \text{ negative},\, l_i \ge l^-_{(m)}\},\;
        m = \lceil \text{negatives per positive} \cdot P \rceil

    with the k-th largest loss :math:`l_{(k)}` and the m-th largest loss of the negatives :math:`l^-_{(m)}`. The cut is
    exact. Losses equal to it are all selected. An unmasked NaN is the hardest pixel.

    Args:
        per_pixel: l, the unreduced loss, any shape. The mask has no gradient.
        where: boolean, broadcastable; a pixel with False is never selected. Pass it to the per-pixel loss too.
        fraction: in [0, 1], of the unmasked pixels. All numbers may be traced.
        min_kept: at least 0; enlarges the mask, hardest pixels first, to this size. Alone: the k hardest pixels.
        threshold: a value of the loss, not a probability: p_t ≤ 0.7 is a cross entropy of at least -log 0.7.
        positives: boolean, broadcastable; required by `negatives_per_positive`.
        negatives_per_positive: at least 0; 3 is the focal loss paper's OHEM 1:3.
        axis_name: mapped device axis, or None.

    Returns:
        Boolean, the shape of `per_pixel`.

    Raises: TypeError or ValueError if a dtype or shape does not fit, a criterion is missing, or there are several.

    References: Shrivastava et al., arXiv 1604.03540 (OHEM); Lin et al., arXiv 1708.02002, section 5 (OHEM 1:3).

    >>> loss = jnp.array([0.1, 2.0, 0.3, 0.7, 9.0])
    >>> print(hard_pixels(loss, where=loss < 9, fraction=0.5))
    [False  True False  True False]
    """
    criteria = {"fraction": fraction, "threshold": threshold, "negatives_per_positive": negatives_per_positive}
    given = [name for name, value in criteria.items() if value is not None]
    if len(given) > 1 or (not given and min_kept is None):
        expected = "one criterion, fraction, threshold, negatives_per_positive, or min_kept alone"
        raise ValueError(f"hard_pixels needs {expected}; got {' and '.join(given) or 'none'}")
    if (positives is None) != (negatives_per_positive is None):
        missing = "positives" if positives is None else "negatives_per_positive"
        raise ValueError(f"positives and negatives_per_positive go together; got {missing}=None")
    loss = checks.floating("per_pixel", per_pixel)
    keep = checks.mask("where", where, loss.shape)
    keys = _ordered(loss)
    least = checks.scalar("min_kept", 0 if min_kept is None else min_kept, jnp.int32, 0.0)

    if threshold is not None:
        cut = _ordered(checks.scalar("threshold", threshold, loss.dtype, -np.inf, infinite=True))
        if min_kept is not None:
            cut = jnp.minimum(cut, _kth_largest(keys, keep, least, axis_name))
        return keep & (keys >= cut)
    if positives is not None:
        taken = checks.mask("positives", positives, loss.shape) & keep
        ratio = checks.scalar("negatives_per_positive", negatives_per_positive, jnp.float32, 0.0, infinite=True)
        num_taken, negatives = _count(taken, axis_name), keep & ~taken
        wanted = jnp.maximum(_ceil_product(ratio, num_taken), least - num_taken)
        return taken | (negatives & (keys >= _kth_largest(keys, negatives, wanted, axis_name)))
    if fraction is not None:
        share = checks.scalar("fraction", fraction, jnp.float32, 0.0, 1.0)
        least = jnp.maximum(least, _ceil_product(share, _count(keep, axis_name)))
    return keep & (keys >= _kth_largest(keys, keep, least, axis_name))


def _count(mask: Bool[Array, "*pixels"], axis_name: AxisName) -> Int[Array, ""]:
    """Returns the number of True values on all devices."""
    return psum(jnp.sum(mask, dtype=jnp.int32), axis_name)


def _ordered(loss: Float[Array, "*pixels"]) -> UInt[Array, "*pixels"]:
    """Returns unsigned integers in the order of the floats; -0 equals 0, and every NaN is one value above infinity."""
    dtype = np.uint64 if loss.dtype.itemsize == 8 else np.uint32
    sign = dtype(1) << dtype(np.iinfo(dtype).bits - 1)
    info = jnp.finfo(loss.dtype)
    infinity = ((dtype(1) << dtype(info.nexp)) - dtype(1)) << dtype(info.nmant)
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(loss), dtype)
    # On bits, because some devices flush subnormal floats to 0.
    size = jnp.minimum(bits & ~sign, infinity + dtype(1))
    negative = (bits >= sign) & (size > 0) & (size <= infinity)
    return jnp.where(negative, ~bits, size | sign)


@partial(jax.jit, static_argnames="axis_name", inline=True)  # else a call outside of jit compiles the loop again
def _kth_largest(
    keys: UInt[Array, "*pixels"], among: Bool[Array, "*pixels"], k: Int[Array, ""], axis_name: AxisName
) -> UInt[Array, ""]:
    """Returns the k-th largest key in `among` on all devices: above all if k = 0, below all if there are fewer."""
    # The largest number that at least k keys reach, found bit by bit from the highest, without a sort.
    num_bits = np.iinfo(keys.dtype).bits

    def step(i, low):
        candidate = low | (keys.dtype.type(1) << (num_bits - 1 - i).astype(keys.dtype))
        reached = _count(among & (keys >= candidate), axis_name)
        return jnp.where(reached >= k, candidate, low)

    # The first step is outside the loop: under shard_map the carry must vary over the same axes as a step's result.
    first = step(jnp.int32(0), jnp.zeros((), keys.dtype))
    return jax.lax.fori_loop(1, num_bits, step, first)


def _ceil_product(x: Float[Array, ""], count: Int[Array, ""]) -> Int[Array, ""]:
    """Returns ⌈x · count⌉ for a float32 x ≥ 0, at most 2^31 - 1, in integers: float32 counts to 2^24 only.

    An x of more than twelve binary digits is replaced by the smallest number that rounds to it: 0.1 of 10 is 1, not 2.
    """
    mantissa, exponent = jnp.frexp(jnp.minimum(x, 2.0**31))  # x = mantissa · 2^exponent
    with jax.enable_x64(True):
        digits = (mantissa * (1 << 25)).astype(jnp.uint64)
        digits = jnp.where(digits % (1 << 13) == 0, digits, digits - np.uint64(1))
        product = digits * count.astype(jnp.uint64)  # below 2^56, in units of 2^(exponent - 25)
        down = jnp.clip(25 - exponent, 0, 60).astype(jnp.uint64)
        up = jnp.clip(exponent - 25, 0, 7).astype(jnp.uint64)
        rounded = ((product + (np.uint64(1) << down) - np.uint64(1)) >> down) << up
        return jnp.minimum(rounded, np.uint64(np.iinfo(np.int32).max)).astype(jnp.int32)
