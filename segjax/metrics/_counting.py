"""Counting on the device, and checks of the counts on the host. Private.

Integers have no NaN. If an unmasked pixel cannot be counted (a label outside [0, C), a NaN score), *every* count of
that call becomes `INVALID`, -2^31, on all devices. The int64 sum stays negative, and the scores refuse it.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer

from segjax import checks
from segjax.collectives import psum

INVALID = int(np.iinfo(np.int32).min)
# Bounds of ranking scores are widened by this much, for the rounding of float64 here and in the exact computation.
ROUNDING = 1e-12
_LANES = 128

Counts = Integer[jax.Array | np.ndarray, "..."]


def count(
    places: Int[Array, "*pixels"], valid: Bool[Array, "*pixels"], keep: Array | None, num_places: int, axis_name
) -> Int[Array, "places"]:
    """Counts the unmasked pixels per place, over all devices; all `INVALID` if one of them is not `valid`."""
    # Two extra places, dropped again, take the invalid and the masked pixels.
    at = jnp.where(valid, places, num_places)
    if keep is not None:
        at = jnp.where(keep, at, num_places + 1)
    counts = sum_by_place(at, None, num_places + 2)
    # INVALID is written after the sum over devices, because two of them would wrap around to 0.
    counts, num_invalid = psum((counts[:num_places], counts[num_places]), axis_name)
    return jnp.where(num_invalid > 0, jnp.int32(INVALID), counts)


def sum_by_place(
    places: Int[Array, "*pixels"], values: Int[Array, "*pixels"] | None, num_places: int, bits: int = 1
) -> Int[Array, "{num_places}"]:
    """Sums the values in [0, 2^bits) at each place of this device in int32; without values, counts the pixels.

    A TPU scatters one element after another. There, exact int8 matrix products of one-hot rows and columns replace the
    scatter; `experiments/results/tpu_programs.md` lists their cost according to the TPU compiler.
    """

    def scattered(places, values):
        updates = 1 if values is None else values.ravel()
        return jnp.zeros(num_places, jnp.int32).at[places.ravel()].add(updates, mode="promise_in_bounds")

    def multiplied(places, values):
        values = jnp.ones_like(places) if values is None else values
        parts = ((values >> shift & 127).astype(jnp.int8) for shift in range(0, bits, 7))
        return sum(_one_hot_product(places, part, num_places) << 7 * i for i, part in enumerate(parts))

    return jax.lax.platform_dependent(places, values, tpu=multiplied, default=scattered)


def _one_hot_product(places: Int[Array, "*pixels"], values: Int[Array, "*pixels"], num_places: int) -> Int[Array, "_"]:
    """Sums 7-bit values at each place, with the places laid out as a matrix."""

    def one_hot(index, size):
        # Pixels last, as they are stored: the transposed form costs a TPU fifteen times as many cycles.
        return jnp.arange(size, dtype=index.dtype)[:, None] == index[None]

    # A TPU stores a short last axis (the classes) elsewhere; the order of the pixels does not matter.
    short = places.ndim > 1 and places.shape[-1] < _LANES
    at, values = (jnp.moveaxis(x, -1, 0).ravel() if short else x.ravel() for x in (places, values))
    # About as many rows as columns: with a single row this would not be a matrix product.
    width = min(_LANES, 2 ** math.ceil(math.log2(num_places) / 2))
    rows = jnp.where(one_hot(at // width, -(-num_places // width)), values[None], 0)
    columns = one_hot(at % width, width).astype(jnp.int8)
    sums = jax.lax.dot_general(rows, columns, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    return sums.ravel()[:num_places]


def host_counts(name: str, counts: ArrayLike, cause: str) -> np.ndarray:
    """Returns counts as int64 on the host; raises if one is negative, with `cause` or an overflow as the reason."""
    array = checks.host(name, counts)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be integers (float32 stops counting at 2^24); got {array.dtype}")
    wide = array.astype(np.int64)
    if (wide < 0).any():
        # An invalid call makes all counts of a matrix negative; an overflow of int32 hardly ever does.
        all_negative = (wide < 0).all(axis=tuple(range(max(wide.ndim - 2, 0), wide.ndim))).any()
        reasons = [cause] if all_negative or array.dtype.itemsize > 4 else []
        reasons += ["a sum overflowed int32: add counts on the host in int64, `total += np.asarray(counts, np.int64)`"]
        raise ValueError(f"{name} has a negative count, {wide.min()}: {'; or '.join(reasons)}")
    return wide


def host_histogram(histogram: ArrayLike, rows: str, cause: str) -> Float[np.ndarray, "2 bins"]:
    """Returns the counts of a `[2, bins]` histogram in float64, exact to 2^53."""
    counts = host_counts("histogram", histogram, cause)
    if counts.ndim != 2 or counts.shape[0] != 2:
        raise ValueError(f"histogram must be [2, bins], {rows}; got shape {counts.shape}")
    return counts.astype(np.float64)


def ratio(numerator: ArrayLike, denominator: ArrayLike, otherwise: ArrayLike = np.nan) -> np.ndarray:
    """Returns numerator / denominator in float64, `otherwise` where the denominator is 0."""
    empty = denominator == 0
    return np.where(empty, otherwise, numerator / np.where(empty, 1, denominator))


def nanmean(scores: np.ndarray) -> float:
    """Returns `np.nanmean` of the scores, without its warning if all are NaN."""
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if known.size else float("nan")


def fill_of(absent: str) -> float:
    """Returns the score of a class whose denominator is 0, which `nanmean` leaves out if it is NaN."""
    checks.choice("absent", absent, ("exclude", "zero", "one"))
    return {"exclude": np.nan, "zero": 0.0, "one": 1.0}[absent]
