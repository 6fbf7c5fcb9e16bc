"""The moments of dropout samples of a linear head, or of any samples, without keeping them.

A mask a channel is the same at all pixels: a sample is another kernel, and its logits another product. On a CPU the
pixels are taken a block at a time, whose features, logits and sums stay in the cache from one sample to the next.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer, Key, Real

from segjax.inference.moments import Moments
from segjax.inference.streaming import means, over_classes, pixels_last, summed
from segjax.models.dropout import dropout

# Pixels at a time. On a CPU so few that its cache holds them from one sample to the next, and enough for several cores;
# elsewhere each step of a loop costs a launch.
_BLOCK, _BLOCK_CPU = 2**20, 2**14


def sampled_moments(
    logits: Callable[[Integer[Array, ""]], Float[Array, "b h w c"]], numbers: Integer[Array, "k"]
) -> Moments:
    r"""The moments of samples, one after another: what `augmented_moments` takes of a head of one's own.

    .. math::
        \bar p = \frac{1}{K} \sum_k softmax(z_k), \quad \bar h = \frac{1}{K} \sum_k H[softmax(z_k)], \quad
        \bar z = \frac{1}{K} \sum_k z_k, \quad v = \frac{1}{KC} \sum_{kc} (z_{kc} - \bar z_c)^2

    Args:
        logits: n to z_n, `[B, H, W, C]`, C ≥ 2; n is traced, and `logits` at least once.
        numbers: `[K]`, the samples' n, K ≥ 1.

    Returns:
        `Moments`, in the logits' dtype. Finite for |z| ≤ 1e4.

    >>> found = sampled_moments(lambda n: n * jnp.ones((1, 2, 3, 2)), jnp.arange(3))
    >>> print(found.logits[0, 0, 0], f"{found.variance[0, 0, 0]:.3f}", found.probabilities[0, 0, 0])
    [1. 1.] 0.667 [0.5 0.5]
    """
    shape = jax.eval_shape(logits, numbers[0]).shape

    def image(y: Float[Array, "b c p"]) -> Float[Array, "b h w c"]:
        return jnp.swapaxes(y, 1, 2).reshape(*shape[:3], -1)

    sums = summed(lambda places: [pixels_last(logits(numbers[place])) for place in places], len(numbers))
    probabilities, entropy = means(sums, len(numbers))
    variance = sums.squares / (len(numbers) * shape[-1])
    return Moments(image(probabilities), image(entropy)[..., 0], image(sums.mean), image(variance)[..., 0])


def head_moments(
    features: Float[Array, "b h w f"],
    kernel: Float[Array, "f c"],
    bias: Float[Array, "c"],
    keys: Key[Array, "b"],
    numbers: Integer[Array, "k"],
    *,
    rate: Real[ArrayLike, ""],
    mask: str,
) -> Moments:
    """Those of the samples n of a linear head under dropout, `segjax.models.head_samples`' heads; one dtype for all."""
    if mask != "channel":
        return sampled_moments(lambda n: dropout(features, rate, folded(keys, n), mask=mask) @ kernel + bias, numbers)
    batch, height, width, channels = features.shape
    ones = jnp.ones((batch, 1, 1, channels), features.dtype)
    kept = jax.vmap(lambda n: dropout(ones, rate, folded(keys, n), mask=mask))(numbers)
    thinned = kept[:, :, 0, 0, None] * kernel.T  # [K, B, C, F]

    most = _BLOCK_CPU if jax.default_backend() == "cpu" else _BLOCK
    steps = math.ceil(height * width / most)
    size = math.ceil(height * width / steps)
    padded = ((0, 0), (0, steps * size - height * width), (0, 0))
    pixels = jnp.pad(features.reshape(batch, -1, channels), padded)
    blocks = jnp.swapaxes(pixels.reshape(batch * steps, size, channels), 1, 2)
    found = jax.lax.map(_block(kernel, bias, thinned), (jnp.repeat(jnp.arange(batch), steps), blocks))

    def image(y: Float[Array, "blocks c size"]) -> Float[Array, "b h w c"]:
        pixels = jnp.swapaxes(y, 1, 2).reshape(batch, steps * size, -1)
        return pixels[:, : height * width].reshape(batch, height, width, -1)

    probabilities, entropy, mean, variance = map(image, found)
    return Moments(probabilities, entropy[..., 0], mean, variance[..., 0])


def folded(keys: Key[Array, "b"], n: Integer[Array, ""]) -> Key[Array, "b"]:
    """The keys of head n, those of `segjax.models.head_samples`."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, n)


def _block(kernel: Array, bias: Array, thinned: Float[Array, "k b c f"]) -> Callable[[tuple[Array, Array]], tuple]:
    """Of an image's number and a block of its pixels, `[F, P]`: the four moments, pixels last."""
    samples, channels = thinned.shape[0], kernel.shape[0]
    # Seen from the first: what all share is gone before the mean is rounded.
    centred = thinned - thinned[:1]
    away = jnp.mean(centred, axis=0)
    mean_kernel = thinned[0] + away
    centred -= away
    scale, rows = 1 / (samples * kernel.shape[1]), samples * kernel.shape[1]
    precise = partial(jnp.matmul, precision="highest")
    if rows < channels:
        centred = centred.swapaxes(0, 1).reshape(-1, rows, channels)
    else:
        covariance = scale * jnp.einsum("kbcf,kbcg->bfg", centred, centred, precision="highest")

    def variance_of(image: Array, x: Array) -> Array:
        """A quadratic form of x, of F² products a pixel; where the head is wide, Σ (z - mean)² of fewer."""
        if rows < channels:
            return scale * over_classes(precise(centred[image], x) ** 2)
        return over_classes(precise(covariance[image], x) * x)

    def block(image_and_pixels: tuple[Array, Array]) -> tuple[Array, ...]:
        image, x = image_and_pixels
        # Less the sum of the clean exp, the clean logits are log probabilities and the samples' near them.
        log_total = jax.nn.logsumexp(kernel.T @ x + bias[:, None], axis=0)

        def logits(places: Array) -> list[Array]:
            kernels = thinned[places, image].reshape(-1, channels)
            return [z + bias[:, None] - log_total for z in jnp.split(kernels @ x, len(places))]

        def result(shifted: bool) -> tuple[Array, Array]:
            return means(summed(logits, samples, together=2, shifted=shifted, spread=False), samples)

        quick = result(shifted=False)
        sound = jnp.all(jnp.isfinite(quick[-1]))
        probabilities, entropy = jax.lax.cond(sound, lambda: quick, lambda: result(shifted=True))
        return probabilities, entropy, mean_kernel[image] @ x + bias[:, None], jnp.maximum(variance_of(image, x), 0)

    return block
