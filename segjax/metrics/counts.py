"""Counting on the device, and how counts say that something impossible was counted.

Integers have no NaN. So where a kept pixel has no place to be counted (a label that is no class, a NaN score), *every*
count of that call becomes `INVALID`, -2^31, on all devices. A sum with it in int64 stays negative until each single
cell has counted 2^31 pixels, and the functions that turn counts into scores refuse negative counts. Private.
"""

import math
from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int

from segjax import checks
from segjax.collectives import psum

INVALID = int(np.iinfo(np.int32).min)
_TURNS, _LANES = 4, 128
# What a class scores whose denominator is 0; NaN is left out of means.
ABSENT = {"exclude": np.nan, "zero": 0.0, "one": 1.0}


def count(
    places: Int[Array, "*pixels"],
    valid: Bool[Array, "*pixels"],
    keep: Bool[Array, "*pixels"] | None,
    num_places: int,
    axis_name: Hashable | None,
) -> Int[Array, "places"]:
    """How many kept pixels of all devices have each place; all `INVALID` if one of them is not `valid`."""
    # Two more places, cut off again, take what is not counted and what must not be there.
    at = jnp.where(valid, places, num_places)
    if keep is not None:
        at = jnp.where(keep, at, num_places + 1)
    counts = tally(at, num_places + 2)
    # The flag travels with the counts, and is applied after the sum: two INVALIDs would wrap around to 0.
    counts, num_invalid = psum((counts[:num_places], counts[num_places]), axis_name)
    return jnp.where(num_invalid > 0, jnp.int32(INVALID), counts)


def tally(places: Int[Array, "*pixels"], num_places: int) -> Int[Array, "{num_places}"]:
    """How many pixels have each place, all of which lie in [0, num_places); of this device."""

    # A scatter that adds one constant reads half of what it would read with a 0 or 1 for each pixel. Neighbours are
    # mostly of one place, where each addition waits for the one before: so they take turns in four rows.
    def scattered(places):
        at = places.ravel()
        at += jax.lax.iota(jnp.int32, at.size) % _TURNS * num_places
        counts = jnp.zeros(_TURNS * num_places, jnp.int32).at[at].add(1, mode="promise_in_bounds")
        return jnp.sum(counts.reshape(_TURNS, num_places), axis=0, dtype=jnp.int32)

    def multiplied(places):
        return _products(places, jnp.ones_like(places, jnp.int8), num_places)

    return jax.lax.platform_dependent(places, tpu=multiplied, default=scattered)


def add_up(
    places: Int[Array, "*pixels"], values: Int[Array, "*pixels"], num_places: int, bits: int
) -> Int[Array, "{num_places}"]:
    """Σ of the values, each in [0, 2^bits), of each place; what does not fit an int32 wraps around."""

    def scattered(places, values):
        return jnp.zeros(num_places, jnp.int32).at[places.ravel()].add(values.ravel(), mode="promise_in_bounds")

    def multiplied(places, values):
        parts = ((values >> shift & 127).astype(jnp.int8) for shift in range(0, bits, 7))
        return sum(_products(places, part, num_places) << 7 * i for i, part in enumerate(parts))

    return jax.lax.platform_dependent(places, values, tpu=multiplied, default=scattered)


def _products(places: Int[Array, "*pixels"], values: Int[Array, "*pixels"], num_places: int) -> Int[Array, "_"]:
    """Σ of values of 7 bits by place, as a product of matrices of 0 and 1: the rows and the columns of the places.

    A TPU scatters one number after another; of int8 it multiplies 128 × 128 at once, and its sums are exact.
    """

    def one_hot(index: Array, count: int) -> Array:
        # Pixels last, as they lie: the other way round takes fifteen times as long.
        return jnp.arange(count, dtype=index.dtype)[:, None] == index[None]

    # In any order: a short last axis, of classes, is not where a TPU has it last.
    short = places.ndim > 1 and places.shape[-1] < _LANES
    at, values = (jnp.moveaxis(x, -1, 0).ravel() if short else x.ravel() for x in (places, values))
    # About as many rows as columns: one row alone would not be a product.
    width = min(_LANES, 2 ** math.ceil(math.log2(num_places) / 2))
    rows = jnp.where(one_hot(at // width, -(-num_places // width)), values[None], 0)
    columns = one_hot(at % width, width).astype(jnp.int8)
    sums = jax.lax.dot_general(rows, columns, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    return sums.ravel()[:num_places]


def confusion_cells(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int
) -> tuple[Int[Array, "*pixels"], Bool[Array, "*pixels"]]:
    """Each pixel's cell of the flattened confusion matrix, and whether it has one."""
    labels = checks.integers("labels", labels)
    predictions = jnp.asarray(predictions)
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1; got {num_classes}")
    valid = (labels >= 0) & (labels < num_classes)
    if jnp.issubdtype(predictions.dtype, jnp.floating):
        if predictions.shape != (*labels.shape, num_classes):
            raise ValueError(
                f"predictions must be classes of shape {labels.shape} or logits of shape "
                f"{(*labels.shape, num_classes)}; got {predictions.dtype} of shape {predictions.shape}"
            )
        # argmax takes a NaN for the largest logit; max hands it on, and costs a third of isnan(...).any().
        valid &= ~jnp.isnan(jnp.max(predictions, axis=-1))
        predictions = jnp.argmax(predictions, axis=-1)
    else:
        predictions = checks.integers("predictions", predictions)
        checks.same_shape("predictions", predictions.shape, "labels", labels.shape)
        valid &= (predictions >= 0) & (predictions < num_classes)
    return labels.astype(jnp.int32) * num_classes + predictions.astype(jnp.int32), valid


def host_counts(name: str, counts: jax.Array | np.ndarray, cause: str) -> np.ndarray:
    """Counts as int64 on the host, refused with their `cause` where an `INVALID` went into them."""
    array = checks.host(name, counts)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be integers (float32 stops counting at 2^24); got {array.dtype}")
    array = array.astype(np.int64)
    if (array < 0).any():
        raise ValueError(f"{name} has a negative count, {array.min()}: {cause}")
    return array


def ratio(numerator: ArrayLike, denominator: ArrayLike, otherwise: ArrayLike = np.nan) -> np.ndarray:
    """numerator / denominator in float64, `otherwise` where the denominator is 0."""
    empty = denominator == 0
    return np.where(empty, otherwise, numerator / np.where(empty, 1, denominator))


def mean_of_known(scores: np.ndarray) -> float:
    """The mean of what is not NaN; NaN if nothing is left."""
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if known.size else float("nan")
