"""Online hard example mining: which pixels are hard, as a mask for `segjax.losses.mean`."""

from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer, Real, UInt

from segjax import checks
from segjax.collectives import psum

_CRITERIA = "fraction, threshold, negatives_per_positive, or min_kept alone"
_MOST = np.iinfo(np.int32).max


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
    r"""The pixels of largest loss, over all devices, as a mask: OHEM is `mean(loss, where=hard_pixels(loss, ...))`.

    With n kept pixels, P kept positives and losses l, the mask is exactly one of

    .. math::
        \{l_i \ge l_{(k)}\},\; k = \lceil \text{fraction} \cdot n \rceil \qquad
        \{l_i \ge \text{threshold}\} \qquad
        \{i \text{ positive}\} \cup \{i \text{ negative},\, l_i \ge l^-_{(m)}\},\;
        m = \lceil \text{negatives per positive} \cdot P \rceil

    with :math:`l_{(k)}` the k-th largest loss of the kept pixels and :math:`l^-_{(m)}` the m-th largest of the kept
    negatives. `min_kept` makes the mask larger, hardest pixels first, until it holds that many (or all there are).

    The cut is found exactly, by bisection on the bits of the losses: nothing is sorted or gathered, devices exchange
    counts only, and the mask does not depend on how the pixels lie on them. Equal losses at the cut are all in, so the
    mask may hold more pixels than asked for. A kept NaN counts as the hardest of all: the loss then says so.

    Args:
        per_pixel: l, the unreduced loss, any shape. The mask carries no gradient to it.
        where: boolean of that shape or broadcastable to it; False: no such pixel, never in the mask, whatever its loss.
            Give it to the per-pixel loss too (see `mean`).
        fraction: in [0, 1]: that share of the kept pixels, 1 for all.
        min_kept: at least 0: the mask holds so many kept pixels if there are so many; 0 if not given. Alone it is a
            criterion, the k hardest pixels. With `threshold` it keeps a good batch from teaching nothing.
        threshold: a value of the loss, not a probability: of cross entropy, p_t ≤ 0.7 is a loss of at least -log 0.7.
        positives: boolean of that shape or broadcastable to it; for `negatives_per_positive`, which needs it.
        negatives_per_positive: at least 0: all positives, and so many of the hardest negatives for each of them; 3 is
            the focal loss paper's OHEM 1:3. Without positives the mask is empty: give `min_kept` to learn from
            background alone.
        axis_name: the mapped device axis, or None under `jit`. Counts and the cut are then those of all devices.

    All numbers may be traced. `fraction` and `negatives_per_positive` are read as float32 and rounded up, but a product
    that is whole up to float32's rounding is taken as whole: 0.1 of 10 pixels is 1.

    Returns:
        Boolean, the shape of `per_pixel`.

    Raises:
        TypeError: `per_pixel` is not floating, `where` or `positives` not boolean, or `min_kept` no integer.
        ValueError: a shape does not fit, there is no criterion or more than one, `positives` and
            `negatives_per_positive` are not given together, or a number is NaN or out of its range (where it has a
            value: not when traced).

    References:
        Shrivastava et al., Training Region-based Object Detectors with Online Hard Example Mining, arXiv 1604.03540;
        Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 5 (1:3, and how focal loss fares
        against it).

    >>> import jax.numpy as jnp
    >>> loss = jnp.array([0.1, 2.0, 0.3, 0.7, 9.0])
    >>> where = jnp.array([True, True, True, True, False])
    >>> print(hard_pixels(loss, where=where, fraction=0.5))
    [False  True False  True False]
    >>> print(hard_pixels(loss, where=where, threshold=1.0, min_kept=3))
    [False  True  True  True False]
    >>> print(hard_pixels(loss, where=where, positives=loss < 0.2, negatives_per_positive=1))
    [ True  True False False False]
    """
    _check_criteria(fraction, min_kept, threshold, positives, negatives_per_positive)
    loss = checks.floating("per_pixel", per_pixel)
    keep = jnp.ones(loss.shape, bool) if where is None else checks.mask("where", where, loss.shape)
    keys = _ordered(loss)
    least = None if min_kept is None else checks.scalar("min_kept", min_kept, jnp.int32, 0.0)
    if threshold is not None:
        cut = _ordered(checks.scalar("threshold", threshold, loss.dtype, -np.inf, infinite=True))
        if least is not None:
            cut = jnp.minimum(cut, _kth_largest(keys, keep, least, axis_name))
        return keep & (keys >= cut)
    if positives is not None:
        taken = checks.mask("positives", positives, loss.shape) & keep
        ratio = checks.scalar("negatives_per_positive", negatives_per_positive, jnp.float32, 0.0, infinite=True)
        num_taken = _count(taken, axis_name)
        wanted = _multiple(ratio, num_taken)
        if least is not None:
            wanted = jnp.maximum(wanted, least - num_taken)
        negatives = keep & ~taken
        return taken | (negatives & (keys >= _kth_largest(keys, negatives, wanted, axis_name)))
    wanted = least
    if fraction is not None:
        wanted = _share(checks.scalar("fraction", fraction, jnp.float32, 0.0, 1.0), _count(keep, axis_name))
        wanted = wanted if least is None else jnp.maximum(wanted, least)
    return keep & (keys >= _kth_largest(keys, keep, wanted, axis_name))


def _check_criteria(fraction, min_kept, threshold, positives, negatives_per_positive):
    given = {"fraction": fraction, "threshold": threshold, "negatives_per_positive": negatives_per_positive}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1 or (not names and min_kept is None):
        raise ValueError(f"hard_pixels needs one criterion, {_CRITERIA}; got {' and '.join(names) or 'none'}")
    if (positives is None) != (negatives_per_positive is None):
        missing = "positives" if positives is None else "negatives_per_positive"
        raise ValueError(f"positives and negatives_per_positive go together; got {missing}=None")


def _count(mask: Bool[Array, "*pixels"], axis_name: Hashable | None) -> Int[Array, ""]:
    return psum(jnp.sum(mask, dtype=jnp.int32), axis_name)


def _ordered(loss: Float[Array, "*pixels"]) -> UInt[Array, "*pixels"]:
    """Unsigned integers in the order of the floats: -0 is 0, all NaN are one, above infinity and below all ones."""
    dtype = np.uint64 if loss.dtype.itemsize == 8 else np.uint32
    sign = dtype(1) << dtype(np.iinfo(dtype).bits - 1)
    info = jnp.finfo(loss.dtype)
    infinity = ((dtype(1) << dtype(info.nexp)) - dtype(1)) << dtype(info.nmant)
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(loss), dtype)
    # In bits, because a device may take a subnormal float for 0, and another may not.
    size = jnp.minimum(bits & ~sign, infinity + dtype(1))
    negative = (bits >= sign) & (size > 0) & (size <= infinity)
    return jnp.where(negative, ~bits, size | sign)


def _kth_largest(
    keys: UInt[Array, "*pixels"], among: Bool[Array, "*pixels"], k: Int[Array, ""], axis_name: Hashable | None
) -> UInt[Array, ""]:
    """The k-th largest key of all devices' pixels in `among`: above all keys if k is 0, below all if there are fewer.

    Bit by bit from the highest: the largest number that at least k of the keys reach.
    """
    num_bits = np.iinfo(keys.dtype).bits

    def step(i, low):
        candidate = low | (keys.dtype.type(1) << (num_bits - 1 - i).astype(keys.dtype))
        reached = _count(among & (keys >= candidate), axis_name)
        return jnp.where(reached >= k, candidate, low)

    # The first step outside: under shard_map the carry must have the type (varying over which axes) of a step's result.
    first = step(jnp.int32(0), jnp.zeros((), keys.dtype))
    return jax.lax.fori_loop(1, num_bits, step, first)


def _share(x: Float[Array, ""], count: Int[Array, ""]) -> Int[Array, ""]:
    """⌈x · count⌉ for x in [0, 1], in integers: float32 has too few digits for a count above 2^24.

    x is taken at the low end of what rounds to this float32, so that 0.1 of 10 is 1, and not the 2 that
    ⌈0.100000001 · 10⌉ is. What has twelve binary digits or fewer (0.25, 1) is meant as it stands.
    """
    one = 1 << 30
    scaled = (x * one).astype(jnp.uint32)
    short = scaled % (1 << 18) == 0
    low_end = jnp.where(short, scaled, scaled - jnp.minimum(scaled, (scaled >> 24) + 1))
    # low_end · count / 2^30, rounded up, in halves of 15 bits: the product has 61 bits.
    count_high, count_low = jnp.divmod(count.astype(jnp.uint32), 1 << 15)
    high, low = jnp.divmod(low_end, 1 << 15)
    carry, rest = jnp.divmod(low * count_low, 1 << 15)
    whole, part = jnp.divmod(high * count_low + low * count_high + carry, 1 << 15)
    rounded = high * count_high + whole + ((part > 0) | (rest > 0)).astype(jnp.uint32)
    # Too small for 30 binary digits is not yet nothing.
    return jnp.where((x > 0) & (count > 0), jnp.maximum(rounded, 1), rounded).astype(jnp.int32)


def _multiple(x: Float[Array, ""], count: Int[Array, ""]) -> Int[Array, ""]:
    """⌈x · count⌉ for any x ≥ 0, at most 2^31 - 1: a share of the count doubled until x is at most 1.

    Where that count has 32 bits the last doubling is done with the share, which may then be one too small.
    """
    mantissa, exponent = jnp.frexp(x)
    doublings = jnp.clip(exponent, 0, 31)
    before_last = jnp.maximum(doublings - 1, 0)
    fits = (x < 1 << 30) & (count <= (_MOST >> doublings))
    half_fits = (x < 2.0**31) & (count <= (_MOST >> before_last))
    doubled = jnp.where(fits, count << doublings, jnp.where(half_fits, count << before_last, 0))
    share = _share(jnp.where(exponent > 0, mantissa, x), doubled)
    twice = jnp.where(half_fits & (share <= 1 << 30), 2 * (share - 1) + 1, _MOST)
    return jnp.where(fits, share, jnp.where(count > 0, twice, 0))
