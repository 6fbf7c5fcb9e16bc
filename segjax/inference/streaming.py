"""Sums over Monte Carlo samples of the logits, a few samples at a time: no array here holds K of them. Private.

Pixels come last, `[..., C, P]`: exp is then vectorised on a CPU, and a sum over the classes is a product with ones,
which it computes several times as fast as it sums.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Where a sample's exp(logits) add up to what lies in here, no digit is lost without a shift by their maximum.
_UNSHIFTED = (1e-25, 1e30)
# In units of the dtype's epsilon: mutual information below it is rounding.
_ROUNDING = 16


class Sums(NamedTuple):
    """Over the samples seen: p = softmax(z), p · z, log Σ exp z, and Welford's mean and squares of z."""

    probability: Float[Array, "... c p"]
    weighted: Float[Array, "... c p"]
    log_total: Float[Array, "... 1 p"]
    mean: Float[Array, "... c p"] | None
    squares: Float[Array, "... 1 p"] | None


class Summary(NamedTuple):
    """Mean probabilities, their entropy, and the mutual information."""

    probabilities: Float[Array, "... c p"]
    entropy: Float[Array, "... 1 p"]
    information: Float[Array, "... 1 p"]


def pixels_last(x: Float[Array, "b h w c"]) -> Float[Array, "b c p"]:
    """As all here wants them."""
    return jnp.swapaxes(x.reshape(x.shape[0], -1, x.shape[-1]), 1, 2)


def over_classes(x: Float[Array, "... c p"]) -> Float[Array, "... 1 p"]:
    """The sum over the classes."""
    return jnp.matmul(jnp.ones((1, x.shape[-2]), x.dtype), x, precision="highest")


def summed(
    logits: Callable[[Array], list[Float[Array, "... c p"]]],
    samples: int,
    *,
    together: int = 1,
    shifted: bool = True,
    spread: bool = True,
) -> Sums:
    """The sums over `samples`, whose numbers `[n]`, n ≤ `together`, are given to `logits`, which gives a list of n.

    `shifted` is right for any logits. Without it they have to be near log probabilities, within some 60: beyond, the
    sums are NaN. That saves half the time. `spread`: the variance is wanted.
    """

    def add(sums: Sums, k: Array, z: Array) -> Sums:
        one = _of_one(z, shifted)
        added = Sums(*(a + b for a, b in zip(sums[:3], one[:3], strict=True)), None, None)
        if not spread:
            return added
        mean = sums.mean + (z - sums.mean) / (k + 1).astype(z.dtype)
        return added._replace(mean=mean, squares=sums.squares + over_classes((z - sums.mean) * (z - mean)))

    def add_all(sums: Sums, numbers: Array) -> tuple[Sums, None]:
        for k, z in zip(numbers, logits(numbers), strict=True):
            sums = add(sums, k, z)
        return sums, None

    # From the first samples and not from zeros, which a checked shard_map takes for another type than a device's sums.
    numbers = jnp.arange(samples, dtype=jnp.int32)
    head = samples % together or together
    first, *others = logits(numbers[:head])
    sums = _of_one(first, shifted)
    sums = sums._replace(mean=first, squares=0 * sums.log_total) if spread else sums
    for k, z in zip(numbers[1:head], others, strict=True):
        sums = add(sums, k, z)
    return jax.lax.scan(add_all, sums, numbers[head:].reshape(-1, together))[0]


def means(sums: Sums, samples: int) -> tuple[Float[Array, "... c p"], Float[Array, "... 1 p"]]:
    """The mean probabilities, and the mean of the samples' entropies."""
    return sums.probability / samples, (sums.log_total - over_classes(sums.weighted)) / samples


def concluded(p: Float[Array, "... c p"], each: Float[Array, "... 1 p"]) -> Summary:
    """What the mean probabilities and the mean of the samples' entropies say.

    The information is H[p̄] - mean_k H[p_k]. Its rounding error is that of the entropies; what is below it is set to 0,
    so that samples that agree have none.
    """
    # Rounded, p may be a little over 1.
    entropy = jnp.maximum(-over_classes(p * jnp.log(jnp.where(p == 0, 1, p))), 0)
    information = entropy - jnp.maximum(each, 0)
    return Summary(p, entropy, jnp.where(information < _ROUNDING * jnp.finfo(p.dtype).eps, 0, information))


def _of_one(z: Array, shifted: bool) -> Sums:
    if shifted:
        z = z - jnp.max(z, axis=-2, keepdims=True)
    exps = jnp.exp(z)
    total = over_classes(exps)
    if not shifted:
        total = jnp.where((total > _UNSHIFTED[0]) & (total < _UNSHIFTED[1]), total, jnp.nan)
    probability = exps * (1 / total)
    return Sums(probability, probability * z, jnp.log(total), None, None)
