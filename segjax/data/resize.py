"""The one bilinear resize of the package: training input, evaluation, prediction, report and export all use it.

Sizes and offsets are values and not shapes, so images of any size in a padded array share one compiled program, and an
image can be resized block by block with the same weights.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer


class Axis(NamedTuple):
    """Geometry of a resize along one axis, for a window of source and target.

    Attributes:
        source: pixels of the whole source axis, n.
        target: pixels of the whole target axis, N.
        source_start: first source pixel of the window, i₀.
        offset: (2 o₀ + 1) n - (2 i₀ + 1) N, with o₀ the first target pixel of the window. Computed by the caller, so
            that it may exceed int32 on the way.
    """

    source: ArrayLike
    target: ArrayLike
    source_start: ArrayLike
    offset: ArrayLike


def resize(
    images: Float[Array, "b h w c"],
    shape: tuple[int, int],
    *,
    antialias: bool,
    from_sizes: Integer[ArrayLike, "b 2"] | None = None,
    to_sizes: Integer[ArrayLike, "b 2"] | None = None,
) -> Float[Array, "b H W c"]:
    r"""Resizes images bilinearly with half-pixel centres, each in the top left corner of a padded array.

    .. math::
        y_o = \frac{\sum_i k(s_o - i) \, x_i}{\sum_i k(s_o - i)}, \qquad s_o = (o + \tfrac12) \frac{n}{N} - \tfrac12,
        \qquad k(d) = \max(0, 1 - |d| / r), \quad r = \max(1, n / N) \text{ if antialias, else } 1

    per axis, over the n pixels of the image and not over the padding. Equal to `jax.image.resize(…, "linear")`.

    Args:
        images: `[B, h, w, C]`.
        shape: height and width of the result; static.
        antialias: widen the kernel where the image shrinks.
        from_sizes: `[B, 2]`, height and width of each image, at most `[h, w]`; traced. None: all of it.
        to_sizes: `[B, 2]`, height and width to resize each to, at most `shape`; traced. None: `shape`.

    Returns:
        `[B, H, W, C]` in the images' dtype; 0 outside `to_sizes`.

    >>> resize(jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1), (1, 4), antialias=False)[0, 0, :, 0]
    Array([0., 1., 3., 4.], dtype=float32)
    """
    if from_sizes is None and to_sizes is None and tuple(shape) == images.shape[1:3]:
        return images
    whole = jnp.ones((images.shape[0], 1), jnp.int32)
    sources = whole * jnp.stack([jnp.asarray(n) for n in images.shape[1:3]])[None] if from_sizes is None else from_sizes
    targets = whole * jnp.stack([jnp.asarray(n) for n in shape])[None] if to_sizes is None else to_sizes
    for axis in (0, 1):
        source, target = jnp.asarray(sources)[:, axis], jnp.asarray(targets)[:, axis]
        weights = _weights(
            Axis(source, target, 0 * source, source - target), shape[axis], images.shape[1 + axis], antialias
        )
        weights = jnp.where(jnp.arange(shape[axis])[None, :, None] < target[:, None, None], weights, 0)
        images = _apply(weights, images, axis)
    return images


def resize_window(
    window: Float[Array, "h w c"], axes: tuple[Axis, Axis], shape: tuple[int, int], *, antialias: bool
) -> Float[Array, "H W c"]:
    """Resizes a window of an image to the block of `shape` that `axes` describe, with the weights of `resize`."""
    images = window[None]
    for axis, geometry in enumerate(axes):
        geometry = Axis(*(jnp.asarray(value)[None] for value in geometry))
        images = _apply(_weights(geometry, shape[axis], images.shape[1 + axis], antialias), images, axis)
    return images[0]


def _weights(axis: Axis, target_length: int, source_length: int, antialias: bool) -> Float[Array, "b o i"]:
    source, target, start, offset = (jnp.asarray(value)[..., None, None] for value in axis)
    o, i = jnp.arange(target_length)[None, :, None], jnp.arange(source_length)[None, None]
    # 2N (s_o - i) is an integer: a window and the whole image have the same weights to the last bit.
    distance = jnp.abs(offset + 2 * o * source - 2 * i * target).astype(jnp.float32) / (2 * target).astype(jnp.float32)
    if antialias:
        distance = distance / jnp.maximum(source.astype(jnp.float32) / target.astype(jnp.float32), 1)
    weights = jnp.where(i + start < source, jnp.maximum(1 - distance, 0), 0)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)


def _apply(weights: Float[Array, "b o i"], images: Float[Array, "b h w c"], axis: int) -> Float[Array, "b H W c"]:
    formula = ("boh,bhwc->bowc", "bow,bhwc->bhoc")[axis]
    return jnp.einsum(formula, weights.astype(images.dtype), images, precision="highest")
