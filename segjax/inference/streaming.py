"""Sums over Monte Carlo samples of the logits, one sample at a time: no array here holds K of them. Private.

Pixels lie in tiles, `[B, n, C, 256]`: on a CPU the sums over the classes are then the fast ones, and exp is vectorised.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TILE = 256
# Where a sample's exp(logits) add up to what lies in here, no digit is lost without a shift by their maximum.
_UNSHIFTED = (1e-25, 1e30)
# In units of the dtype's epsilon: mutual information below it is rounding.
_ROUNDING = 16


class Sums(NamedTuple):
    """What is kept of the samples seen: sums of the softmax and of its entropy, Welford's mean and squares."""

    probability: Float[Array, "b n c t"]
    entropy: Float[Array, "b n t"]
    mean: Float[Array, "b n c t"] | None
    squares: Float[Array, "b n t"] | None


class Summary(NamedTuple):
    """Mean probabilities, their entropy, and the mutual information."""

    probabilities: Float[Array, "b n c t"]
    entropy: Float[Array, "b n t"]
    information: Float[Array, "b n t"]


def tiled(x: Float[Array, "b h w c"]) -> Float[Array, "b n c 256"]:
    """An image's pixels in tiles, the last one filled up with zeros."""
    batch, height, width, channels = x.shape
    tiles = math.ceil(height * width / TILE)
    pixels = x.reshape(batch, height * width, channels)
    padded = jnp.pad(pixels, ((0, 0), (0, tiles * TILE - height * width), (0, 0)))
    return jnp.swapaxes(padded.reshape(batch, tiles, TILE, channels), 2, 3)


def untiled(x: Float[Array, "b n ... 256"], height: int, width: int) -> Float[Array, "b h w ..."]:
    """Undoes `tiled`; of `[B, n, 256]` it makes `[B, H, W]`."""
    x = jnp.moveaxis(x, -1, 2)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, : height * width].reshape(-1, height, width, *x.shape[3:])


def summed(
    logits: Callable[[Array], Float[Array, "b n c t"]], samples: int, *, shifted: bool = True, spread: bool = True
) -> Sums:
    """The sums over `samples`, the k-th of which has `logits(k)`.

    `shifted` is right for any logits. Without it they have to be near log probabilities, within some 60: beyond, the
    entropy is NaN. That saves half the time. `spread`: the variance is wanted.
    """

    def terms(z: Array) -> tuple[Array, Array]:
        if shifted:
            z = z - jnp.max(z, axis=2, keepdims=True)
        exps = jnp.exp(z)
        total, weighted = _two_sums(exps, exps * z)
        if not shifted:
            total = jnp.where((total > _UNSHIFTED[0]) & (total < _UNSHIFTED[1]), total, jnp.nan)
        inverse = 1 / total
        return exps * inverse[:, :, None], jnp.log(total) - weighted * inverse

    def add(sums: Sums, k: Array) -> tuple[Sums, None]:
        z = logits(k)
        probability, entropy = terms(z)
        mean = squares = None
        if spread:
            mean = sums.mean + (z - sums.mean) / (k + 1).astype(z.dtype)
            squares = sums.squares + sum_of_products(z - sums.mean, z - mean)
        return Sums(sums.probability + probability, sums.entropy + entropy, mean, squares), None

    # From the first sample and not from zeros, which a checked shard_map takes for another type than a device's sums.
    z = logits(jnp.int32(0))
    first = Sums(*terms(z), z if spread else None, jnp.sum(0 * z, axis=2) if spread else None)
    return jax.lax.scan(add, first, jnp.arange(1, samples, dtype=jnp.int32))[0]


def summary(sums: Sums, samples: int) -> Summary:
    """What the sums say.

    The information is H[p̄] - mean_k H[p_k]. Its rounding error is that of the entropies; what is below it is set to 0,
    so that samples that agree have none.
    """
    p = sums.probability / samples
    # Rounded, p̄ may be a little over 1.
    entropy = jnp.maximum(-sum_of_products(p, jnp.log(jnp.where(p == 0, 1, p))), 0)
    information = entropy - jnp.maximum(sums.entropy / samples, 0)
    return Summary(p, entropy, jnp.where(information < _ROUNDING * jnp.finfo(p.dtype).eps, 0, information))


def sum_of_products(a: Float[Array, "b n c t"], b: Float[Array, "b n c t"]) -> Float[Array, "b n t"]:
    """Over the classes. Written as a product: XLA's sum of the same terms takes ten times as long on a CPU."""
    return jnp.einsum("bnct,bnct->bnt", a, b, precision="highest")


def _two_sums(a: Array, b: Array) -> tuple[Array, Array]:
    """The sums of both over the classes, in one pass."""
    zero = jnp.zeros((), a.dtype)
    return tuple(jax.lax.reduce((a, b), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), (2,)))
