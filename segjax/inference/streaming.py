"""Sums over Monte Carlo samples of the logits, one sample at a time: no array here holds K of them. Private.

Pixels lie in tiles, `[B, n, C, 256]`: on a CPU the sums over the classes are then the fast ones, and exp is vectorised.
Samples come as deviations from the clean logits, so that what they share is gone before anything is rounded.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TILE = 256
# Where exp(z_k) sums to what lies in here times that of the clean logits, no digit is lost without a shift.
_UNSHIFTED = (1e-25, 1e30)


class Clean(NamedTuple):
    """The logits that the samples deviate from: their log softmax, and the log of the sum of its exp (0, rounded)."""

    log_p: Float[Array, "b n c t"]
    log_total: Float[Array, "b n t"]


class Sums(NamedTuple):
    """What is kept of the samples seen: sums of probabilities and of KL(p_k ‖ p_clean), Welford's mean and squares."""

    probability: Float[Array, "b n c t"]
    divergence: Float[Array, "b n t"]
    mean: Float[Array, "b n c t"] | None
    squares: Float[Array, "b n t"] | None


class Summary(NamedTuple):
    """Mean probabilities, their entropy, mutual information; `[B, n, C, 256]` and twice `[B, n, 256]`."""

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


def clean(logits: Float[Array, "b n c t"], *, shifted: bool) -> Clean:
    """The reference for `summed`, computed as a sample that does not deviate: such samples then agree to the bit."""
    log_p = jax.nn.log_softmax(logits, axis=2)
    return Clean(log_p, _exp_sums(jnp.zeros_like(log_p), log_p, shifted)[2])


def summed(
    deviation: Callable[[Array], Float[Array, "b n c t"]], clean: Clean, samples: int, *, shifted: bool, spread: bool
) -> Sums:
    """The sums over `samples`, the k-th of which is `deviation(k)` away from the clean logits.

    `shifted` is right for any logits. Without it a sample whose largest logit is some 60 from the clean ones' leaves
    NaN, and half the time is saved. `spread`: the variance is wanted.
    """

    def terms(d: Array) -> tuple[Array, Array]:
        exps, total, log_total, weighted = _exp_sums(d, clean.log_p, shifted)
        if not shifted:
            total = jnp.where((total > _UNSHIFTED[0]) & (total < _UNSHIFTED[1]), total, jnp.nan)
        inverse = 1 / total
        return exps * inverse[:, :, None], weighted * inverse - (log_total - clean.log_total)

    def add(sums: Sums, k: Array) -> tuple[Sums, None]:
        d = deviation(k)
        probability, divergence = terms(d)
        mean = squares = None
        if spread:
            mean = sums.mean + (d - sums.mean) / (k + 1).astype(d.dtype)
            squares = sums.squares + jnp.sum((d - sums.mean) * (d - mean), axis=2)
        return Sums(sums.probability + probability, sums.divergence + divergence, mean, squares), None

    # From the first sample and not from zeros, which a checked shard_map takes for another type than a device's sums.
    d = deviation(jnp.int32(0))
    first = Sums(*terms(d), d if spread else None, 0 * jnp.sum(d, axis=2) if spread else None)
    return jax.lax.scan(add, first, jnp.arange(1, samples, dtype=jnp.int32))[0]


def summary(sums: Sums, clean: Clean, samples: int) -> Summary:
    """Entropy and mutual information of the summed samples.

    The information is mean_k KL(p_k ‖ q) - KL(p̄ ‖ q), true of any q: with the clean softmax both terms are about as
    small as their difference, while those of H[p̄] - mean_k H[p_k] are of the size of the entropy.
    """
    p = sums.probability / samples
    log_p = jnp.log(jnp.where(p == 0, 1, p))
    log_q = clean.log_p - clean.log_total[:, :, None]
    q = jnp.exp(log_q)
    usual = (q > 1e-30) & (p > 0)
    # The quotient keeps the digits of p close to q. Each summand is ≥ 0, and they add up to KL(p̄ ‖ q).
    ratio = jnp.where(usual, jnp.log(jnp.where(usual, p / jnp.where(usual, q, 1), 1)), log_p - log_q)
    distance = jnp.sum(jnp.where(p == 0, 0, p * ratio) + (q - p), axis=2)
    information = jnp.maximum(sums.divergence / samples - distance, 0)
    return Summary(p, -jnp.sum(p * log_p, axis=2), information)


def _exp_sums(d: Array, log_p: Array, shifted: bool) -> tuple[Array, Array, Array, Array]:
    """Of e = exp(d + log_p), or e over its largest: e, its sum, the log of the unshifted sum, and the sum of e · d."""
    exponent = d + log_p
    top = jax.lax.stop_gradient(jnp.max(exponent, axis=2)) if shifted else None
    exps = jnp.exp(exponent if top is None else exponent - top[:, :, None])
    zero = jnp.zeros((), d.dtype)
    # Both sums in one pass over the array.
    total, weighted = jax.lax.reduce((exps, exps * d), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (2,))
    log_total = jnp.log(total)
    return exps, total, log_total if top is None else log_total + top, weighted
