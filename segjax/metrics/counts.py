"""Counting on the device, and how counts say that something impossible was counted.

Integers have no NaN. So where a kept pixel has no place to be counted (a label that is no class, a NaN score), *every*
count of that call becomes `INVALID`, -2^31, on all devices. A sum with it in int64 stays negative until each single
cell has counted 2^31 pixels, and the functions that turn counts into scores refuse negative counts. Private.
"""

from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from segjax import checks
from segjax.collectives import psum

INVALID = int(np.iinfo(np.int32).min)


def count(
    places: Int[Array, "*pixels"],
    valid: Bool[Array, "*pixels"],
    keep: Bool[Array, "*pixels"] | None,
    num_places: int,
    axis_name: Hashable | None,
) -> Int[Array, "places"]:
    """How many kept pixels of all devices have each place; all `INVALID` if one of them is not `valid`."""
    counted = valid if keep is None else valid & keep
    invalid = ~valid if keep is None else ~valid & keep
    # An uncounted pixel adds 0 to place 0: no bounds check in the scatter, and no extra bin to cut off.
    counts = (
        jnp.zeros(num_places, jnp.int32)
        .at[jnp.where(counted, places, 0).ravel()]
        .add(counted.astype(jnp.int32).ravel(), mode="promise_in_bounds")
    )
    # The flag travels with the counts, and is applied after the sum: two INVALIDs would wrap around to 0.
    counts, num_invalid = psum((counts, jnp.sum(invalid, dtype=jnp.int32)), axis_name)
    return jnp.where(num_invalid > 0, jnp.int32(INVALID), counts)


def host_counts(name: str, counts: jax.Array | np.ndarray, cause: str) -> np.ndarray:
    """Counts as int64 on the host, refused with their `cause` where an `INVALID` went into them."""
    array = checks.host(name, counts)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be integers (float32 stops counting at 2^24); got {array.dtype}")
    array = array.astype(np.int64)
    if (array < 0).any():
        raise ValueError(f"{name} has a negative count, {array.min()}: {cause}")
    return array
