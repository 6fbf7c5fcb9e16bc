"""Augmentation on the device, inside the jitted step: uint8 pictures in, normalised images and int32 labels out.

Geometry is told in continuous coordinates in which pixel i covers [i, i + 1) and has its centre at i + 0.5. Images are
resampled by `jax.image.scale_and_translate` (linear, antialiased) and labels by nearest neighbour, both from one
description of where the output lies in the source: a `_Window`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Integer, Key, Shaped

from segjax.data.labels import VOID
from segjax.data.resize import resize


class _Window(NamedTuple):
    """Where an example's output lies in its source: source = corner + output / zoom, rows and columns."""

    corner: Float[Array, "2"]
    zoom: Float[Array, "2"]
    flip: Array
    radians: Array


def example_keys(
    seed_key: Key[Array, ""], step: Integer[ArrayLike, ""], index: Integer[Array, "batch"]
) -> Key[Array, "batch"]:
    """Derives one PRNG key per example from (seed, step, global example index), independent of the device.

    Args:
        seed_key: the run's key, `jax.random.key(seed)`.
        step: the training step.
        index: `[B]`, the examples' indices in the whole data set.

    Returns:
        `[B]` keys.

    >>> keys = example_keys(jax.random.key(0), 3, jnp.array([7, 8]))
    >>> bool(keys[1] == example_keys(jax.random.key(0), 3, jnp.array([8]))[0])
    True
    """
    step_key = jax.random.fold_in(seed_key, step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, index)


def prepare(
    images: Shaped[Array, "..."],
    *,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    sizes: Integer[ArrayLike, "b 2"] | None = None,
) -> Float[Array, "b h w c"]:
    """Resizes images to `size`, then normalises them: (x / 255 - mean) / std. Nothing is random.

    Args:
        images: uint8 `[B, H, W, C]`.
        size: height and width of the result; static.
        mean: of the pixels in 0..1, one value or one per channel.
        std: likewise.
        sizes: `[B, 2]`, the height and width of each image in the top left corner of its array; None: all of it.

    Returns:
        float32 `[B, h, w, C]`; linear interpolation, antialiased.

    Raises:
        TypeError: images are not uint8.
        ValueError: images of another rank, a size that is not positive, or mean and std that do not fit the channels.

    >>> print(prepare(jnp.full((1, 4, 6, 3), 255, jnp.uint8), size=(2, 3), mean=(0.5,), std=(0.25,))[0, 0, 0].round(4))
    [2. 2. 2.]
    """
    _check_images(images, size, mean, std)
    resized = resize(images.astype(jnp.float32), size, antialias=True, from_sizes=sizes)
    return normalise(resized, mean, std)


def augment(
    images: Shaped[Array, "..."],
    labels: Shaped[Array, "..."],
    keys: Key[Array, "b"],
    *,
    size: tuple[int, int],
    crop_fraction: Float[ArrayLike, ""],
    flip: bool,
    scale: tuple[float, float],
    rotation: float,
    brightness: float,
    contrast: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[Float[Array, "b h w c"], Int[Array, "b h w"]]:
    """Applies random crop and zoom in one resampling, flip, rotation, brightness and contrast, and normalises.

    A window of `crop_fraction` / zoom of the source's height and width becomes the output, so that a crop is never an
    enlargement of a picture that was shrunk before. Its place is uniform over all where it fits or, if it is larger
    than the source, over all where it holds the source. With every setting neutral this is `prepare`.

    A rotation turns about the middle of the output, in output pixels. It is a second, bilinear, gather at output
    resolution, from a margin around the window wide enough for any angle; labels are gathered once, through both
    mappings. `rotation=0` compiles to nothing.

    What lies outside the source is the mean (0) in the image and `VOID` in the labels.

    Args:
        images: uint8 `[B, H, W, C]`; C is 1, 3 or anything.
        labels: uint8 `[B, H, W]`; values are never mixed.
        keys: `[B]`, from `example_keys`.
        size: height and width of the result; static.
        crop_fraction: side of the window as a share of the source's, in (0, 1]; traced, so a curriculum compiles once.
        flip: mirror left and right in half of the examples.
        scale: the zoom is uniform in [lo, hi]; (1, 1) disables it, above 1 enlarges.
        rotation: the angle is uniform in [-rotation, rotation] degrees; at most 180.
        brightness: an offset uniform in [-brightness, brightness] on pixels in 0..1, the same for all channels.
        contrast: a factor uniform in [1 - contrast, 1 + contrast] on the distance from `mean`. Nothing is clipped.
        mean: of the pixels in 0..1, one value or one per channel.
        std: likewise.

    Returns:
        images float32 `[B, h, w, C]`, labels int32 `[B, h, w]`.

    Raises:
        TypeError: images or labels are not uint8.
        ValueError: shapes that do not fit, or a setting out of its range.
    """
    _check_images(images, size, mean, std)
    _check_labels(labels, images)
    _check_settings(crop_fraction, scale, rotation, brightness, contrast)

    def one(image: jax.Array, label: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        top, left, zoom, flips, turn, bright, contrasts = jax.random.uniform(key, (7,))
        side = crop_fraction / (scale[0] + zoom * (scale[1] - scale[0]))
        source = jnp.asarray(label.shape, jnp.float32)
        window = _Window(
            corner=jnp.stack([top, left]) * source * (1 - side),
            zoom=jnp.asarray(size, jnp.float32) / (source * side),
            flip=flip & (flips < 0.5),
            radians=jnp.deg2rad(rotation * (2 * turn - 1)),
        )
        image, label, inside = _resample(normalise(image, mean, std), label, window, size, rotation)
        offset = brightness * (2 * bright - 1) / jnp.asarray(std, jnp.float32).reshape(1, 1, -1)
        image = image * (1 + contrast * (2 * contrasts - 1)) + jnp.where(inside[..., None], offset, 0)
        return image, label

    return jax.vmap(one)(images, labels, keys)


def normalise(images: Shaped[Array, "..."], mean: Sequence[float], std: Sequence[float]) -> Shaped[Array, "..."]:
    """Normalises uint8 images, channels last: (x / 255 - mean) / std in float32."""
    # Before resampling, which is linear, so that the 0 that `scale_and_translate` puts outside the source is the mean.
    per_channel = (1,) * (images.ndim - 1) + (-1,)
    mean, std = (jnp.asarray(values, jnp.float32).reshape(per_channel) for values in (mean, std))
    return (images / 255 - mean) / std


def _resample(
    image: jax.Array, label: jax.Array, window: _Window, size: tuple[int, int], rotation: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Samples an image `[H, W, C]` and its label `[H, W]` through `window` at `size`, with a mask of what is inside."""
    margin = np.asarray(_margin(size, rotation), np.float32)
    canvas = jax.image.scale_and_translate(
        image,
        (*(n + 2 * int(m) for n, m in zip(size, margin, strict=True)), image.shape[-1]),
        spatial_dims=(0, 1),
        scale=window.zoom,
        translation=margin - window.corner * window.zoom,
        method="linear",
        antialias=True,
    )
    y, x = (jnp.arange(n, dtype=jnp.float32) + 0.5 for n in size)
    x = jnp.where(window.flip, size[1] - x, x)
    y, x = y[:, None], x[None, :]
    if rotation:
        dy, dx = y - size[0] / 2, x - size[1] / 2
        cos, sin = jnp.cos(window.radians), jnp.sin(window.radians)
        y, x = size[0] / 2 + cos * dy - sin * dx, size[1] / 2 + sin * dy + cos * dx
        index = (y + margin[0] - 0.5, x + margin[1] - 0.5)
        canvas = jax.vmap(lambda channel: map_coordinates(channel, index, order=1), in_axes=-1, out_axes=-1)(canvas)
    else:
        canvas = jnp.where(window.flip, canvas[:, ::-1], canvas)

    rows = jnp.floor(window.corner[0] + y / window.zoom[0]).astype(jnp.int32)
    columns = jnp.floor(window.corner[1] + x / window.zoom[1]).astype(jnp.int32)
    height, width = label.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    nearest = label[rows, columns] if rotation else _crossing(label, rows[:, 0], columns[0])
    return canvas, jnp.where(inside, nearest.astype(jnp.int32), VOID), inside


def _crossing(label: Array, rows: Int[Array, "h"], columns: Int[Array, "w"]) -> Array:
    """Gathers the labels at the given rows and columns."""

    def multiplied(label: Array, rows: Array, columns: Array) -> Array:
        # A TPU gathers one pixel after another. Each sum has one term, and bfloat16 has all integers up to 256.
        height, width = label.shape
        lines = jax.nn.one_hot(rows, height, dtype=jnp.bfloat16) @ label.astype(jnp.bfloat16)
        return (lines @ jax.nn.one_hot(columns, width, dtype=jnp.bfloat16).T).astype(label.dtype)

    def gathered(label: Array, rows: Array, columns: Array) -> Array:
        return label[rows[:, None], columns[None, :]]

    return jax.lax.platform_dependent(label, rows, columns, tpu=multiplied, default=gathered)


def _margin(size: tuple[int, int], rotation: float) -> tuple[int, int]:
    """Returns the rows and columns by which an output rotated by at most `rotation` degrees exceeds its own size."""
    if not rotation:
        return 0, 0

    def reach(along: int, across: int) -> int:
        widest = min(math.radians(rotation), math.atan2(across, along))
        extent = along * math.cos(widest) + across * math.sin(widest)
        return math.ceil((extent - along) / 2) + 1  # and one for the bilinear neighbour

    return reach(*size), reach(*size[::-1])


def _check_images(images: jax.Array, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> None:
    if images.dtype != jnp.uint8:
        raise TypeError(f"images must be uint8, as decoded; got {images.dtype}")
    if images.ndim != 4:
        raise ValueError(f"images must be [batch, height, width, channels]; got shape {images.shape}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be a positive height and width; got {size}")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, images.shape[-1]):
            raise ValueError(f"{name} needs one value or one for each of {images.shape[-1]} channels; got {values}")
    if min(std) <= 0:
        raise ValueError(f"std must be positive; got {std}")


def _check_labels(labels: jax.Array, images: jax.Array) -> None:
    if labels.dtype != jnp.uint8:
        raise TypeError(f"labels must be uint8 class indices; got {labels.dtype}")
    if labels.shape != images.shape[:3]:
        raise ValueError(f"labels must have the images' shape {images.shape[:3]}; got {labels.shape}")


def _check_settings(
    crop_fraction: ArrayLike, scale: tuple[float, float], rotation: float, brightness: float, contrast: float
) -> None:
    if not isinstance(crop_fraction, jax.core.Tracer) and not 0 < float(crop_fraction) <= 1:
        raise ValueError(f"crop_fraction must be in (0, 1]; got {crop_fraction}")
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be (lo, hi) with 0 < lo <= hi; got {scale}")
    if not 0 <= rotation <= 180:
        raise ValueError(f"rotation must be in [0, 180] degrees; got {rotation}")
    if not (brightness >= 0 and contrast >= 0):
        raise ValueError(f"brightness and contrast must not be negative; got {brightness} and {contrast}")
