"""The two ways to resize, both with half-pixel centres: bilinear for images and outputs, nearest for labels.

Evaluation, prediction, report and export share the bilinear one. Its sizes and offsets are traced values, so images of
any size in a padded array share one compiled program.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer, Shaped

# Images and maps are resized in blocks of this side, from windows of at most `_WINDOW` pixels per side. Sides
# of windows are rounded up to `_STEP`, so that images of many sizes share a few compiled programs.
BLOCK, _WINDOW, _STEP = 256, 2048, 64


class Axis(NamedTuple):
    """Geometry of a resize along one axis, for a window of source and target."""

    source: ArrayLike  # length n of the whole source axis
    target: ArrayLike  # length N of the whole target axis
    source_start: ArrayLike  # first source pixel i₀ of the window
    # (2 o₀ + 1) n - (2 i₀ + 1) N for the window's first target pixel o₀; the products may exceed int32.
    offset: ArrayLike


def resize(
    images: Float[Array, "b h w c"],
    shape: tuple[int, int],
    *,
    antialias: bool,
    from_sizes: Integer[ArrayLike, "b 2"] | None = None,
    to_sizes: Integer[ArrayLike, "b 2"] | None = None,
    first_row: Integer[ArrayLike, ""] | int = 0,
) -> Float[Array, "b H W c"]:
    r"""Resizes images bilinearly with half-pixel centres, each in the top left corner of a padded array.

    .. math::
        y_o = \frac{\sum_i k(s_o - i) \, x_i}{\sum_i k(s_o - i)}, \qquad s_o = (o + \tfrac12) \frac{n}{N} - \tfrac12,
        \qquad k(d) = \max(0, 1 - |d| / r), \quad r = \max(1, n / N) \text{ if antialias, else } 1

    per axis, over the n pixels of the image without the padding. Equals `jax.image.resize(…, "linear")`.

    Args:
        images: `[B, h, w, C]`.
        shape: (H, W) of the result; static. It has the images' dtype and is 0 outside `to_sizes`.
        antialias: widens the kernel where the image shrinks.
        from_sizes: (height, width) of each image `[B, 2]`, at most (h, w); traced. None: (h, w).
        to_sizes: (height, width) to resize each image to `[B, 2]`; traced. None: `shape`.
        first_row: row of the resized images with which the result begins, for strips of large ones; traced.

    >>> resize(jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1), (1, 4), antialias=False)[0, 0, :, 0]
    Array([0., 1., 3., 4.], dtype=float32)
    """
    if from_sizes is None and to_sizes is None and tuple(shape) == images.shape[1:3]:
        return images
    whole, full = (equal_sizes(lengths, images.shape[0]) for lengths in (images.shape[1:3], shape))
    sources = whole if from_sizes is None else jnp.asarray(from_sizes)
    targets = full if to_sizes is None else jnp.asarray(to_sizes)
    for axis in (0, 1):
        source, target = sources[:, axis], targets[:, axis]
        first = first_row if axis == 0 else 0
        geometry = Axis(source, target, 0 * source, (2 * first + 1) * source - target)
        weights = _weights(geometry, shape[axis], images.shape[1 + axis], antialias)
        weights = jnp.where((first + jnp.arange(shape[axis]))[None, :, None] < target[:, None, None], weights, 0)
        images = _apply(weights, images, axis)
    return images


def fit_within(
    sizes: Integer[Array | np.ndarray, "*b 2"], size: tuple[int, int]
) -> Integer[Array | np.ndarray, "*b 2"]:
    r"""Returns the sizes of letterboxed images: the largest within `size` that keep each image's proportions, int32.

    .. math:: s = \min(h / H, w / W), \qquad (\max(1, \lfloor s H + \tfrac12 \rfloor),
        \max(1, \lfloor s W + \tfrac12 \rfloor))

    Args:
        sizes: (H, W) of each image, each below 2^16.
        size: (h, w).

    >>> fit_within(np.array([[480, 640], [100, 50], [3000, 2]]), (192, 256)).tolist()
    [[192, 256], [192, 96], [192, 1]]
    """
    within = np.array(size, np.uint32).reshape((1,) * (sizes.ndim - 1) + (2,))
    own = sizes.astype(np.uint32)  # products with `within` are below 2^32
    other = own[..., ::-1]
    return ((own * within[..., ::-1] + other // 2) // other).clip(1, within).astype(np.int32)


def equal_sizes(size: Sequence[Any], batch: Any) -> Integer[Array, "b 2"]:
    """Returns the sizes of a batch of images of one height and width, which may be symbolic."""
    return jnp.broadcast_to(jnp.stack([jnp.asarray(n) for n in size]), (batch, 2))


def resize_nearest(values: Shaped[np.ndarray, "h w *c"], shape: tuple[int, int]) -> Shaped[np.ndarray, "H W *c"]:
    """Resizes labels, masks or anything that must not be mixed: each pixel is the nearest one; see `nearest_pixels`.

    >>> resize_nearest(np.array([[7, 8, 9]]), (1, 6))
    array([[7, 7, 8, 8, 9, 9]])
    """
    rows, columns = (
        nearest_pixels((2 * np.arange(target) + 1) * source / (2 * target), source)
        for source, target in zip(values.shape, shape, strict=False)
    )
    return values.take(rows, axis=0).take(columns, axis=1)  # five times as fast as values[rows[:, None], columns]


def nearest_pixels(
    positions: Float[np.ndarray | Array, "*n"], length: Integer[ArrayLike, ""] | int
) -> Integer[np.ndarray | Array, "*n"]:
    """Returns the pixel that contains each position along an axis, where pixel i covers [i, i + 1).

    A position between two pixels is equally near to both. It takes the one closer to the middle of the axis, so that a
    mirrored axis gives mirrored pixels, and features as wide as the step between two positions never vanish. The one
    exception to the mirroring is a position in the middle of an even length, which takes the pixel after it.

    >>> nearest_pixels(np.array([1.0, 3.0, 5.0, 7.0]), 8).tolist()  # 8 pixels reduced to 4
    [1, 3, 4, 6]
    """
    pixels = positions // 1
    return pixels.astype(np.int32) - ((positions == pixels) & (positions > length / 2)).astype(np.int32)


def resize_window(
    window: Float[Array, "h w c"], axes: tuple[Axis, Axis], shape: tuple[int, int], *, antialias: bool
) -> Float[Array, "H W c"]:
    """Resizes a window of an image to the block of `shape` that `axes` describe, with the weights of `resize`."""
    images = window[None]
    for axis, geometry in enumerate(axes):
        geometry = Axis(*(jnp.asarray(value)[None] for value in geometry))
        images = _apply(_weights(geometry, shape[axis], images.shape[1 + axis], antialias), images, axis)
    return images[0]


def resize_large(image: Shaped[np.ndarray, "H W c"], size: tuple[int, int]) -> Shaped[np.ndarray, "h w c"]:
    """Returns the image resized with antialiasing, float32; the image itself if it has that size."""
    if image.shape[:2] == size:
        return image
    out = np.empty((*size, image.shape[-1]), np.float32)
    for rows, columns, block in resize_blocks(image, size, antialias=True):
        out[rows, columns] = crop_block(block, rows, columns)
    return out


@partial(jax.jit, static_argnums=(2, 3))
def _resize_block(window: Array, axes: tuple[Axis, Axis], shape: tuple[int, int], antialias: bool) -> Array:
    return resize_window(window.astype(jnp.float32), axes, shape, antialias=antialias)


def resize_blocks(
    values: Shaped[np.ndarray, "h w c"], size: tuple[int, int], *, antialias: bool = False
) -> Iterator[tuple]:
    """Yields (rows, columns, block) of `values` resized to `size`; a block is padded where it ends outside."""
    windows = (_windows(n, m, antialias) for n, m in zip(values.shape, size, strict=False))
    for row, column in product(*windows):
        block = values[row.read, column.read]
        missing = [(0, one.length - n) for one, n in zip((row, column), block.shape, strict=False)]
        block = np.pad(block, [*missing, (0, 0)])
        if values.shape[:2] != size:
            block = _resize_block(block, (row.axis, column.axis), (row.block, column.block), antialias)
        yield row.write, column.write, block


class _Window(NamedTuple):
    """One block along an axis: source pixels read, padded to `length`, and target pixels written, out of `block`."""

    read: slice
    length: int
    write: slice
    block: int
    axis: Axis


def _windows(source: int, target: int, antialias: bool) -> list[_Window]:
    block = max(1, min(BLOCK, _WINDOW * target // source))
    reach = math.ceil(max(1, source / target)) if antialias else 1
    length = block
    if source != target:
        length = math.ceil((math.ceil(block * source / target) + 2 * reach + 2) / _STEP) * _STEP
    windows = []
    for start in range(0, target, block):
        # The first pixel that may have a weight: floor of the first position, less the reach of the kernel.
        first = max(0, ((2 * start + 1) * source - target) // (2 * target) - reach) if source != target else start
        offset = (2 * start + 1) * source - (2 * first + 1) * target
        axis = Axis(*map(np.int32, (source, target, first, offset)))
        write = slice(start, min(start + block, target))
        windows.append(_Window(slice(first, min(first + length, source)), length, write, block, axis))
    return windows


def crop_block(block: Shaped[Any, "..."], rows: slice, columns: slice) -> Shaped[np.ndarray, "..."]:
    """Returns the rows and columns of a block of `resize_blocks` that are inside, without the padding."""
    return np.asarray(block)[: rows.stop - rows.start, : columns.stop - columns.start]


def _weights(axis: Axis, target_length: int, source_length: int, antialias: bool) -> Float[Array, "b o i"]:
    source, target, start, offset = (jnp.asarray(value)[..., None, None] for value in axis)
    o, i = jnp.arange(target_length)[None, :, None], jnp.arange(source_length)[None, None]
    # 2N (s_o - i) is an integer: a window and the whole image have bit-identical weights.
    distance = jnp.abs(offset + 2 * o * source - 2 * i * target).astype(jnp.float32) / (2 * target).astype(jnp.float32)
    if antialias:
        distance = distance / jnp.maximum(source.astype(jnp.float32) / target.astype(jnp.float32), 1)
    weights = jnp.where(i + start < source, jnp.maximum(1 - distance, 0), 0)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)


def _apply(weights: Float[Array, "b o i"], images: Float[Array, "b h w c"], axis: int) -> Float[Array, "b H W c"]:
    formula = ("boh,bhwc->bowc", "bow,bhwc->bhoc")[axis]
    return jnp.einsum(formula, weights.astype(images.dtype), images, precision="highest")
