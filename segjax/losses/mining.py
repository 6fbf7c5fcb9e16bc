"""Online hard example mining (OHEM): a mask of the hard pixels for `segjax.losses.mean`."""

from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer, Real, UInt

from segjax import checks
from segjax.collectives import psum


def hard_pixels(
    per_pixel: Float[ArrayLike, "*pixels"],
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    fraction: Real[ArrayLike, ""] | None = None,
    min_kept: Integer[ArrayLike, ""] | None = None,
    threshold: Real[ArrayLike, ""] | None = None,
    positives: Bool[ArrayLike, "*#pixels"] | None = None,
    negatives_per_positive: Real[ArrayLike, ""] | None = None,
    axis_name: Hashable | None = None,
) -> Bool[Array, "*pixels"]:
    r"""Selects the pixels of largest loss over all devices: OHEM is `mean(loss, where=hard_pixels(loss, ...))`.

    With n unmasked pixels, P unmasked positives and losses l, the mask is exactly one of

    .. math::
        \{l_i \ge l_{(k)}\},\; k = \lceil \text{fraction} \cdot n \rceil \qquad
        \{l_i \ge \text{threshold}\} \qquad
        \{i \text{ positive}\} \cup \{i \text{ negative},\, l_i \ge l^-_{(m)}\},\;
        m = \lceil \text{negatives per positive} \cdot P \rceil

    with the k-th largest loss :math:`l_{(k)}` and the m-th largest loss of the negatives :math:`l^-_{(m)}`. The cut is
    exact, found by bisection on the bits of the losses: no sort, and devices exchange counts only. Losses equal to the
    cut are all selected, so the mask may be larger than requested. An unmasked NaN counts as the hardest pixel.

    Args:
        per_pixel: l, the unreduced loss, any shape. The mask has no gradient.
        where: boolean, broadcastable to `per_pixel`; a pixel with False is never selected. Pass it to the per-pixel
            loss too (see `mean`).
        fraction: in [0, 1], of the unmasked pixels.
        min_kept: at least 0; enlarges the mask, hardest pixels first, to this many unmasked pixels if there are so
            many. Alone it selects the k hardest pixels.
        threshold: a value of the loss, not a probability: p_t ≤ 0.7 is a cross entropy of at least -log 0.7.
        positives: boolean, broadcastable to `per_pixel`; required by `negatives_per_positive`.
        negatives_per_positive: at least 0; 3 is the focal loss paper's OHEM 1:3. Without positives the mask is empty
            unless `min_kept` is given.
        axis_name: mapped device axis, or None. Counts and the cut are those of all devices.

    All numbers may be traced. `fraction` and `negatives_per_positive` are read as float32. A product that is whole up
    to float32's rounding counts as whole: 0.1 of 10 pixels is 1.

    Returns:
        Boolean, the shape of `per_pixel`.

    Raises:
        TypeError: `per_pixel` is not floating point, `where` or `positives` not boolean, or `min_kept` not an integer.
        ValueError: a shape does not fit, there is not exactly one criterion, `positives` or `negatives_per_positive`
            is missing, or a number is NaN or out of range (not checked when traced).

    References:
        Shrivastava et al., Training Region-based Object Detectors with Online Hard Example Mining, arXiv 1604.03540;
        Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 5 (OHEM 1:3).

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
    keep = jnp.ones(loss.shape, bool) if where is None else checks.mask("where", where, loss.shape)
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


def _count(mask: Bool[Array, "*pixels"], axis_name: Hashable | None) -> Int[Array, ""]:
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


def _kth_largest(
    keys: UInt[Array, "*pixels"], among: Bool[Array, "*pixels"], k: Int[Array, ""], axis_name: Hashable | None
) -> UInt[Array, ""]:
    """Returns the k-th largest key in `among` on all devices: above all keys if k is 0, below all if there are fewer.

    It is the largest number that at least k keys reach, found bit by bit from the highest.
    """
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

    An x of more than twelve binary digits is replaced by the smallest number that rounds to it, so that 0.1 of 10 is 1
    and not ⌈0.100000001 · 10⌉ = 2.
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
