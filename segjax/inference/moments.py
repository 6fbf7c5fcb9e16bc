"""What samples of the logits say together, as means over the samples, of which everything else follows.

Means of means are means: the moments of augmentations add up one after another on the device, those of tiles on the
host.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from segjax.inference.streaming import concluded, pixels_last


class Moments(NamedTuple):
    """Means over the samples of a batch of images; a pytree.

    Attributes:
        probabilities: `[..., C]`, of the samples' softmax.
        entropy: `[...]` in nats, of the entropies of the samples' softmax: the data's part of the uncertainty.
        logits: `[..., C]`, of the samples' logits.
        variance: `[...]` in squared logits, of the squared distances from `logits`, and over the classes.
    """

    probabilities: Float[Array, "*pixels c"]
    entropy: Float[Array, "*pixels"]
    logits: Float[Array, "*pixels c"]
    variance: Float[Array, "*pixels"]


class Uncertainty(NamedTuple):
    """What the samples of a batch of images say together; a pytree.

    Attributes:
        probabilities: `[B, H, W, C]`, the mean of the samples' softmax.
        predictive_entropy: `[B, H, W]` in nats, in [0, log C]: of `probabilities`, the whole uncertainty.
        mutual_information: `[B, H, W]` in nats, ≥ 0: what the samples disagree on, the model's part of it. None where
            there are no samples: it has no closed form.
        variance: `[B, H, W]` in squared logits: the unbiased variance over the samples, mean over the classes.
    """

    probabilities: Float[Array, "b h w c"]
    predictive_entropy: Float[Array, "b h w"]
    mutual_information: Float[Array, "b h w"] | None
    variance: Float[Array, "b h w"]


def uncertainty_of(moments: Moments, samples: int) -> Uncertainty:
    r"""What the moments of N samples say, in the words of `head_uncertainty`.

    .. math:: H = -\sum_c \bar p_c \log \bar p_c, \qquad I = H - \bar h, \qquad \text{variance} = \frac{N}{N - 1} v

    Args:
        moments: of images `[B, H, W, ...]`, of `augmented_moments`, or blended over tiles.
        samples: N = A · K ≥ 2, augmentations times dropout samples. Tiles do not count: N is what a tile has.

    Returns:
        `Uncertainty`. Information below 2e-6 nats (float32) is rounding and given as 0.

    Raises:
        ValueError: N < 2.

    >>> p = jnp.array([0.5, 0.5]).reshape(1, 1, 1, 2)  # two samples, each sure of another class
    >>> found = uncertainty_of(Moments(p, jnp.zeros((1, 1, 1)), 0 * p, jnp.ones((1, 1, 1))), samples=2)
    >>> print(found.predictive_entropy[0, 0].round(3), found.mutual_information[0, 0].round(3), found.variance[0, 0])
    [0.693] [0.693] [2.]
    """
    check_samples(samples)
    found = concluded(pixels_last(moments.probabilities), pixels_last(moments.entropy[..., None]))
    shape = moments.entropy.shape
    return Uncertainty(
        moments.probabilities,
        found.entropy.reshape(shape),
        found.information.reshape(shape),
        moments.variance * (samples / (samples - 1)),
    )


def packed(moments: Moments) -> Float[Array, "*pixels maps"]:
    r"""The moments as 2C + 2 maps that blend: what `predict_tiled` takes of a tile.

    .. math:: \bar p, \quad \bar h, \quad \bar z, \quad s = v + \frac{1}{C} \sum_c \bar z_c^2

    All are means over samples, and a blend of tiles with weights that add up to 1 is the mean over all (tile,
    augmentation, dropout sample) of a pixel, each of weight w / N. So what the tiles disagree on counts as information
    and as variance: there is no seam in it, but it is part of the uncertainty.

    Args:
        moments: of any pixels.

    Returns:
        `[..., 2C + 2]`, finite where the logits' squares are.

    >>> p = jnp.full((1, 1, 2, 3), 1 / 3)
    >>> packed(Moments(p, jnp.zeros((1, 1, 2)), p, jnp.zeros((1, 1, 2)))).shape
    (1, 1, 2, 8)
    """
    squares = moments.variance + jnp.mean(moments.logits**2, axis=-1)
    return jnp.concatenate(
        [moments.probabilities, moments.entropy[..., None], moments.logits, squares[..., None]], axis=-1
    )


def unpacked(maps: Float[ArrayLike, "*pixels maps"]) -> Moments:
    r"""The moments of blended maps, `packed`'s inverse: of `predict_tiled`'s result, or of some rows of it.

    .. math:: v = s - \frac{1}{C} \sum_c \bar z_c^2

    The difference of squares is right to about 1e-6 of the larger: the variance to 1e-4 where logits are 10.

    Args:
        maps: `[..., 2C + 2]`, NumPy or JAX; an axis for the batch goes before H and W for `uncertainty_of`.

    Raises:
        ValueError: the last axis is not 2C + 2 with C ≥ 2.

    >>> maps = jnp.arange(6.0)
    >>> moments = unpacked(maps.at[5].set(10.0))
    >>> print(moments.probabilities, moments.entropy, moments.logits, moments.variance)
    [0. 1.] 2.0 [3. 4.] 0.0
    """
    maps = jnp.asarray(maps)
    if maps.shape[-1] < 6 or maps.shape[-1] % 2:
        raise ValueError(f"maps must be 2C + 2 of at least 2 classes; got {maps.shape[-1]} of shape {maps.shape}")
    classes = maps.shape[-1] // 2 - 1
    logits = maps[..., classes + 1 : -1]
    variance = jnp.maximum(maps[..., -1] - jnp.mean(logits**2, axis=-1), 0)
    return Moments(maps[..., :classes], maps[..., classes], logits, variance)


def check_samples(samples: int) -> None:
    """A ValueError where there are too few for a variance."""
    if samples < 2:
        raise ValueError(f"samples must be at least 2, since the unbiased variance divides by K - 1; got {samples}")
