"""Test-time augmentation: predictions of flipped, rotated and rescaled copies, with or without Monte Carlo dropout.

Each pair of an augmentation and a dropout sample is one sample of `SampleStatistics`.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Num, Real, Shaped

from segjax.data.resize import resize
from segjax.inference.monte_carlo import SampleStatistics, head_statistics, linear_head, sample_statistics
from segjax.models import example_dropout_keys
from segjax.models.network import checked_rate


class Symmetry(NamedTuple):
    """A symmetry of the square: flip the rows, flip the columns, then transpose, each or not."""

    rows: bool | Bool[Array, ""] = False
    columns: bool | Bool[Array, ""] = False
    transpose: bool | Bool[Array, ""] = False


_BOTH = (False, True)
SYMMETRIES = {
    "none": (Symmetry(),),
    # Road scenes: left and right are alike, up and down are not.
    "mirror": (Symmetry(), Symmetry(columns=True)),
    "flips": tuple(Symmetry(r, c) for r in _BOTH for c in _BOTH),
    # Aerial images and microscopy.
    "d4": tuple(Symmetry(r, c, t) for t in _BOTH for r in _BOTH for c in _BOTH),
}
"""Sets of symmetries by name: "none", "mirror" (two), "flips" (four) and "d4" (all eight)."""


def transformed(x: Num[Array, "b h w c"], symmetry: Symmetry) -> Num[Array, "b H W c"]:
    """Applies a symmetry, which may be traced except for `transpose` if `x` is not square."""
    x = jnp.where(symmetry.rows, jnp.flip(x, 1), x)
    x = jnp.where(symmetry.columns, jnp.flip(x, 2), x)
    return _transposed(x, symmetry.transpose)


def restored(y: Num[Array, "b h w c"], symmetry: Symmetry) -> Num[Array, "b H W c"]:
    """Applies the inverse of `transformed`."""
    return transformed(_transposed(y, symmetry.transpose), symmetry._replace(transpose=False))


def augmented_statistics(
    images: Float[Array, "b h w channels"],
    encode: Callable,
    head: Callable | None = None,
    *,
    samples: int = 1,
    symmetries: Sequence[Symmetry] = SYMMETRIES["none"],
    scales: Sequence[float] = (1.0,),
) -> SampleStatistics:
    r"""Returns the statistics over all augmentations and dropout samples of a batch of images.

    .. math:: z_{ak} = head(T_a^{-1} \, encode(T_a \, x), aK + k), \quad a = 0 \ldots A - 1, \; k = 0 \ldots K - 1

    The means and the variance over the AK samples z are those of `sample_statistics`. T_a resizes (linearly,
    antialiased) and then mirrors or turns. Its inverse is applied to features or logits, because interpolated
    probabilities would count blurred edges as a disagreement of samples. Call it under `jax.jit`.

    Args:
        images: `[B, H, W, channels]`, as the network takes them.
        encode: `(images [B, h, w, channels], a) -> [B, h, w, F]`: logits, or features for `head`. a is the traced index
            of the augmentation, scale by scale; fold it into the key of dropout deep in the network.
        head: `(features [B, H, W, F], indices [K]) -> SampleStatistics [B, H, W]` of the samples with these traced
            indices, such as that of `dropout_head`. None: `encode` returns logits.
        samples: K ≥ 1, samples of the head per augmentation.
        symmetries: at least one, such as those of `SYMMETRIES`. Repeat each K times for K passes.
        scales: at least one, each > 0.

    Returns:
        `SampleStatistics`, at least float32. Finite for |z| ≤ 1e4.

    Raises:
        ValueError: an argument out of range, K > 1 without a head, fewer than 2 classes, or a result of `encode` with
            another height or width.

    References:
        Cohen and Welling, arXiv 1602.07576 (groups); Wang et al., arXiv 1807.07356 (test-time augmentation).

    >>> images = jax.random.normal(jax.random.key(0), (1, 6, 8, 3))
    >>> found = augmented_statistics(images, lambda x, a: x * x, symmetries=SYMMETRIES["d4"])
    >>> found.probabilities.shape, bool(jnp.allclose(found.variance, 0))
    ((1, 6, 8, 3), True)
    """
    if not symmetries or not scales or not all(0 < scale < float("inf") for scale in scales):
        found = f"{len(symmetries)} symmetries and scales {tuple(scales)}"
        raise ValueError(f"expected at least one symmetry, at least one scale, and positive scales; got {found}")
    if samples < 1 or (head is None and samples > 1):
        raise ValueError(f"samples must be 1 without a head, and at least 1 with one; got {samples}")
    size = images.shape[1:3]

    def statistics_of(x: Array, symmetry: Symmetry, a: Array) -> SampleStatistics:
        seen = transformed(x, symmetry)
        features = encode(seen, a)
        if features.ndim != 4 or features.shape[:3] != seen.shape[:3]:
            raise ValueError(f"encode must return maps of its images, {seen.shape[:3]}; got shape {features.shape}")
        features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
        features = resize(restored(features, symmetry), size, antialias=True)
        numbers = a * samples + jnp.arange(samples, dtype=jnp.int32)
        return sample_statistics(lambda n: features, numbers) if head is None else head(features, numbers)

    shapes = jax.eval_shape(lambda x: statistics_of(x, Symmetry(), jnp.int32(0)), images)
    if shapes.logits.shape[-1] < 2:
        raise ValueError("the softmax needs at least 2 classes; got 1: turn a single logit z into the logits 0 and z")
    # Zeros that vary over devices as the images do: a checked shard_map requires it of a scan's carry.
    zero = (0 * images[..., :1]).astype(shapes.logits.dtype)
    maps, pixels = jnp.zeros(shapes.logits.shape, zero.dtype) + zero, zero[..., 0]

    def add(resized: Array, transpose: bool | None, merged: SampleStatistics, member: tuple) -> tuple:
        before, a, symmetry = member
        symmetry = symmetry if transpose is None else symmetry._replace(transpose=transpose)
        found = statistics_of(resized, symmetry, a)
        # Merging by Chan, Golub and LeVeque: squares of the logits themselves would cancel.
        share = 1 / (before + 1).astype(merged.logits.dtype)
        between = share * (1 - share) * jnp.mean((found.logits - merged.logits) ** 2, axis=-1)
        merged = jax.tree.map(lambda mean, one: mean + share * (one - mean), merged, found)
        return merged._replace(variance=merged.variance + between), None

    merged, done = SampleStatistics(maps, pixels, maps, pixels), 0
    for (shape, transpose), members in _groups(symmetries, scales, size).items():
        indices, flags = zip(*members, strict=True)
        before = done + jnp.arange(len(members), dtype=jnp.int32)
        flags = Symmetry(*map(jnp.array, zip(*flags, strict=True)))
        step = partial(add, resize(images, shape, antialias=True), transpose)
        merged = jax.lax.scan(step, merged, (before, jnp.array(indices, jnp.int32), flags))[0]
        done += len(members)
    return merged


def dropout_head(
    model: Any,
    variables: Any,
    key: Shaped[Array, "..."],
    *,
    rate: Real[ArrayLike, ""] | None = None,
    mask: str | None = None,
    examples: Integer[ArrayLike, "b"] | None = None,
    class_logits: Callable[[Array], Array] | None = None,
) -> tuple[Callable, Callable]:
    """Builds `encode` and `head` for `augmented_statistics`: a network's features, and its linear head under dropout.

    The samples are those of `head_uncertainty`: A augmentations of K samples use the masks of A · K heads.

    The arguments are those of `predict_with_uncertainty`. Tiles of one image need one index in `examples`, so that
    masks per channel leave no seams. `class_logits` maps the head's outputs `[..., O]` linearly to one logit per class,
    `[..., C]`; None: identity.

    Raises:
        ValueError: no `head/linear` in the parameters, a rate outside [0, 1), or an unknown `mask`.

    >>> from segjax.models import UNet
    >>> variables = {"params": {"head": {"linear": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}}}
    >>> encode, head = dropout_head(UNet(num_classes=3), variables, jax.random.key(1), mask="channel")
    >>> head(jnp.ones((1, 8, 12, 4)), jnp.arange(30)).probabilities.shape
    (1, 8, 12, 3)
    """
    kernel, bias = map(class_logits or (lambda outputs: outputs), linear_head(variables))
    rate, mask = checked_rate("rate", model.rate if rate is None else rate), model.mask if mask is None else mask

    def encode(images: Array, a: Array) -> Array:
        return model.apply(variables, images, train=False).features

    def head(features: Array, numbers: Array) -> SampleStatistics:
        keys = example_dropout_keys(key, jnp.arange(features.shape[0]) if examples is None else examples)
        parts = (features, *(one.astype(features.dtype) for one in (kernel, bias)))
        return head_statistics(*parts, keys, numbers, rate=rate, mask=mask)

    return encode, head


def _groups(symmetries: Sequence[Symmetry], scales: Sequence[float], size: tuple[int, int]) -> dict:
    """Groups augmentations, (index, symmetry) each, by (shape, transposition), which is None where it is traced."""
    groups: dict = {}
    for index, (scale, symmetry) in enumerate(itertools.product(scales, symmetries)):
        shape = tuple(max(1, round(side * scale)) for side in size)
        transpose = None if shape[0] == shape[1] else bool(symmetry.transpose)
        groups.setdefault((shape, transpose), []).append((index, symmetry))
    return groups


def _transposed(x: Array, flag: bool | Array) -> Array:
    """Swaps height and width if `flag`, which is a Python bool where they differ."""
    turned = jnp.swapaxes(x, 1, 2)
    return (turned if flag else x) if isinstance(flag, bool) else jnp.where(flag, turned, x)
