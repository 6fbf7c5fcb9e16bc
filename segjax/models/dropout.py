"""Dropout of our own: `nn.Dropout` wants a Python float for its rate, and ours is traced.

Every mask is keyed by an example's own PRNG key, so it knows neither the device nor the place in the batch.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Key, Real, Shaped

from segjax import checks

MASKS = ("element", "channel")


def example_dropout_keys(key: Shaped[Array, "..."], examples: Integer[ArrayLike, "b"]) -> Key[Array, "b"]:
    """One PRNG key an example, from (key, global example index): the same on whatever device the example lands.

    Args:
        key: a step's or a pass's dropout key, typed (`jax.random.key`) or raw (`jax.random.PRNGKey`).
        examples: `[B]`, the examples' indices in the whole data set, or in the global batch.

    Returns:
        `[B]` typed keys.

    Raises:
        TypeError: `examples` are not integers.
        ValueError: `examples` is not of rank 1.

    >>> keys = example_dropout_keys(jax.random.key(0), jnp.array([7, 8]))
    >>> bool(keys[1] == example_dropout_keys(jax.random.key(0), jnp.array([8]))[0])
    True
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    examples = checks.integers("examples", examples)
    if examples.ndim != 1:
        raise ValueError(f"examples must be [batch], one index an image; got shape {examples.shape}")
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, examples)


def dropout(
    x: Float[Array, "b h w f"], rate: Real[ArrayLike, ""], keys: Key[Array, "b"], *, mask: str = "element"
) -> Float[Array, "b h w f"]:
    r"""Inverted dropout: each value, or each channel of an image, is 0 with probability p, and the rest grows.

    .. math:: x'_i = \frac{m_i}{1 - p} x_i, \quad m_i \sim \operatorname{Bernoulli}(1 - p), \quad
        \operatorname{E} x' = x, \quad \operatorname{Var} x'_i = \frac{p}{1 - p} x_i^2

    Both masks have this variance at every value. What they cost differs: "element" draws H · W times as many random
    numbers, and on a CPU these take longer than all else that dropout does. A random number has 16 bits: 1 - p is
    rounded to a multiple of 2^-16 (at least 1), and the rounded one divides, so that the mean is exact.

    Args:
        x: `[B, H, W, F]`, any floating dtype; scaled in float32 at least.
        rate: p in [0, 1), a scalar; may be traced, and is then not checked.
        keys: `[B]`, an example's PRNG key (`example_dropout_keys`).
        mask: "element", `[B, H, W, F]`, or "channel", `[B, 1, 1, F]`; static.

    Returns:
        `[B, H, W, F]` of x's dtype; x itself, in value, where p = 0.

    Raises:
        ValueError: p is not in [0, 1), `mask` is unknown, or there is not one key an image.

    References:
        Srivastava et al., Dropout, JMLR 15 (2014); as a Bayesian approximation: Gal and Ghahramani, arXiv 1506.02142;
        whole channels: Tompson et al., arXiv 1411.4280.

    >>> keys = example_dropout_keys(jax.random.key(0), jnp.arange(1))
    >>> print(dropout(jnp.ones((1, 1, 2, 4)), 0.5, keys, mask="channel")[0, 0])
    [[0. 2. 0. 2.]
     [0. 2. 0. 2.]]
    """
    one_key_an_image(keys, x)
    threshold, scale = threshold_and_scale(checked_rate("rate", rate))
    keep = keep_mask(keys, mask_shape(mask, x), threshold)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.where(keep, (x.astype(dtype) * scale.astype(dtype)).astype(x.dtype), 0)


def checked_rate(name: str, rate: Real[ArrayLike, ""]) -> Float[Array, ""]:
    """`rate` as a float32 scalar, or a ValueError that names it where it is known and not in [0, 1)."""
    given = checks.finite(name, rate, jnp.float32)
    # `rate` and not `given`: under jit the array of a Python number is traced.
    if not isinstance(rate, jax.core.Tracer) and not 0 <= np.float32(rate) < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1; got {float(rate):g}")
    return given


def one_key_an_image(keys: Array, x: Array) -> None:
    """A ValueError where `keys` are not `[B]` of x's B."""
    if keys.shape != x.shape[:1]:
        raise ValueError(f"keys must hold one PRNG key an image, shape {x.shape[:1]}; got {keys.shape}")


def mask_shape(mask: str, x: Array) -> tuple[int, int, int]:
    """The shape of one image's mask, or a ValueError that names the kinds."""
    checks.choice("mask", mask, MASKS)
    return x.shape[1:] if mask == "element" else (1, 1, x.shape[-1])


def threshold_and_scale(rate: Array) -> tuple[Array, Array]:
    """The largest 16-bit number that keeps a value, and 1 / (the probability with which a value is then kept)."""
    kept = jnp.clip(jnp.round((1 - rate) * 2**16), 1, 2**16)
    return kept.astype(jnp.uint32) - 1, 2**16 / kept


def keep_mask(keys: Array, shape: tuple[int, ...], threshold: Array) -> Bool[Array, "b ..."]:
    """A mask of `shape` for each key. Both halves of a random word are used: half the draws, which are all the cost."""
    *outer, channels = shape
    words = jax.vmap(lambda key: jax.random.bits(key, (*outer, (channels + 1) // 2), jnp.uint32))(keys)
    return jnp.concatenate([(words & 0xFFFF) <= threshold, (words >> 16) <= threshold], axis=-1)[..., :channels]
