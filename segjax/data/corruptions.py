"""Common corruptions of images on the device, with the constants of ImageNet-C (Hendrycks and Dietterich, 2019).

The constants are those of `ImageNet-C/create_c/make_imagenet_c.py` in github.com/hendrycks/robustness, for pixels in
[0, 1] and severities 1 to 5. Images may be of any size; the reference has 224 × 224 pixels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer, Key, Shaped

from segjax.data.resize import resize

# Tables K.1 and K.2 of the JPEG standard (ITU-T T.81).
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# RGB to YCbCr (JFIF), without the offset of 128.
_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
_FOG_SIDE = 256  # of the fractal, before it is resized to the image

Image = Float[Array, "h w c"]  # pixels in [0, 1]
Size = Integer[Array, "2"]  # height and width of an image in the top left corner of its array


def corrupt(
    images: Shaped[Array, "b h w c"],
    keys: Key[Array, "b"],
    *,
    kind: str,
    severity: Integer[ArrayLike, ""] | int,
    sizes: Integer[ArrayLike, "b 2"] | None = None,
) -> Shaped[Array, "b h w c"]:
    r"""Corrupts images: noise, blur, fog, brightness, contrast or compression, in five severities.

    With pixels x in [0, 1], the result is clipped to [0, 1] and scaled back; c is the constant of the severity:

    ==================  ============================================================================================
    gaussian_noise      :math:`x + n, \; n \sim \mathcal{N}(0, c^2)`
    impulse_noise       a share c of the values becomes 0 or 1
    gaussian_blur       Gaussian of standard deviation c pixels, truncated at 4c and renormalised at the border
    motion_blur         one-sided Gaussian (radius r, σ) along a line at a random angle in [-45°, 45°]; borders repeat
    fog                 :math:`(x + c f) \, m / (m + c), \; m = \max x`, f a random plasma fractal in [0, 1]
    brightness          adds c to the value of the HSV colour
    contrast            :math:`\bar x + c (x - \bar x)`, with the mean of each channel
    jpeg_compression    JPEG of quality c with the standard tables, without chroma subsampling
    ==================  ============================================================================================

    The result for an image depends only on its pixels and its key (up to rounding), not on padding or the other images.

    Args:
        images: `[B, H, W, C]`, uint8 or floating in [0, 255], C = 1 or 3 (RGB).
        keys: `[B]`, from `example_keys`.
        kind: one of `CORRUPTIONS`; static.
        severity: 1 (weak) to 5; may be traced.
        sizes: (height, width) of each image in the top left corner of its array, `[B, 2]`; None: all of the array.

    Returns: As `images`; uint8 is rounded. 0 outside the images.
    Raises: TypeError or ValueError if a dtype, shape, kind or severity is invalid.
    References: Hendrycks and Dietterich, Benchmarking Neural Network Robustness, arXiv 1903.12261.

    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> corrupt(jnp.full((1, 1, 2, 1), 100, jnp.uint8), keys, kind="brightness", severity=2).ravel().tolist()
    [151, 151]
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"kind must be one of {', '.join(CORRUPTIONS)}; got {kind!r}")
    if not isinstance(severity, jax.core.Tracer) and severity not in range(1, 6):
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5; got {severity}")
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must be [batch, height, width, 1 or 3 channels]; got shape {images.shape}")
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images must be uint8 or floating point in [0, 255]; got {images.dtype}")
    whole = jnp.broadcast_to(jnp.asarray(images.shape[1:3], jnp.int32), (len(images), 2))
    function, constants = CORRUPTIONS[kind]
    constants = jnp.asarray(constants, jnp.float32)[severity - 1]

    def corrupt_one(image: Array, key: Array, size: Size) -> Array:
        row, column = jnp.arange(image.shape[0]), jnp.arange(image.shape[1])
        inside = ((row < size[0])[:, None] & (column < size[1]))[..., None]
        image = jnp.where(inside, image.astype(jnp.float32) / 255, 0)
        result = 255 * jnp.clip(function(image, key, size, constants), 0, 1)
        result = jnp.where(inside, result, 0)
        return (jnp.round(result) if images.dtype == jnp.uint8 else result).astype(images.dtype)

    return jax.vmap(corrupt_one)(images, keys, whole if sizes is None else jnp.asarray(sizes, jnp.int32))


def _gaussian_noise(x: Image, key: Array, size: Size, scale: Array) -> Image:
    return x + scale * _per_pixel(jax.random.normal, key, x.shape)


def _impulse_noise(x: Image, key: Array, size: Size, share: Array) -> Image:
    draw = _per_pixel(jax.random.uniform, key, x.shape)
    return jnp.where(draw < share, (draw < share / 2).astype(x.dtype), x)


def _per_pixel(sample: Callable, key: Array, shape: tuple[int, int, int]) -> Image:
    """Draws a number per pixel and channel, which depends on the pixel's place and not on the array's size."""
    places = (jnp.arange(shape[0])[:, None] << 16) + jnp.arange(shape[1])  # a side has at most 2^16 pixels
    return jax.vmap(jax.vmap(lambda place: sample(jax.random.fold_in(key, place), shape[2:])))(places)


def _gaussian_blur(x: Image, key: Array, size: Size, scale: Array) -> Image:
    for axis, formula in enumerate(("oi,iwc->owc", "oi,hic->hoc")):
        place = jnp.arange(x.shape[axis], dtype=jnp.float32)
        distance = jnp.abs(place[:, None] - place)
        near = (distance <= jnp.round(4 * scale)) & (place < size[axis])
        weights = jnp.where(near, jnp.exp(-((distance / scale) ** 2) / 2), 0)
        weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-9)  # 0 far out in the padding
        x = jnp.einsum(formula, weights, x, precision="highest")
    return x


def _motion_blur(x: Image, key: Array, size: Size, constants: Float[Array, "2"]) -> Image:
    """Averages along a line, as ImageMagick does: the pixel itself has the largest weight."""
    longest = 2 * int(max(radius for radius, _ in _MOTION)) + 1
    radius, scale = constants
    step = jnp.arange(longest, dtype=jnp.float32)
    weights = jnp.where(step <= 2 * radius, jnp.exp(-((step / scale) ** 2) / 2), 0)
    weights = weights / weights.sum()
    angle = jnp.deg2rad(jax.random.uniform(key, (), minval=-45, maxval=45))
    down, right = (jnp.ceil(step * slope - 0.5).astype(jnp.int32) for slope in (jnp.sin(angle), jnp.cos(angle)))
    around = _with_edges(x, size, before=longest, after=longest)

    def add(total: Array, tap: tuple[Array, Array, Array]) -> tuple[Array, None]:
        weight, row, column = tap
        moved = jax.lax.dynamic_slice(around, (longest + row, longest + column, 0), x.shape)
        return total + weight * moved, None

    return jax.lax.scan(add, jnp.zeros_like(x), (weights, down, right))[0]


def _with_edges(x: Image, size: Size, *, before: int, after: int) -> Float[Array, "rows columns c"]:
    """Returns an image with margins on both axes, in which the edge pixels of the image (not of its array) repeat."""
    rows, columns = (
        jnp.clip(jnp.arange(-before, length + after), 0, own - 1) for length, own in zip(x.shape[:2], size, strict=True)
    )
    return x[rows[:, None], columns]


def _fog(x: Image, key: Array, size: Size, constants: Float[Array, "2"]) -> Image:
    thickness, decay = constants
    fractal = resize(_plasma(key, decay)[None, :, :, None], x.shape[:2], antialias=True, to_sizes=size[None])[0]
    return (x + thickness * fractal) * x.max() / (x.max() + thickness)


def _plasma(key: Array, decay: Array) -> Float[Array, "n n"]:
    """Returns a periodic plasma fractal in [0, 1] by the diamond-square algorithm."""
    noise = jax.random.uniform(key, (_FOG_SIDE, _FOG_SIDE), minval=-1, maxval=1)
    row, column = jnp.arange(_FOG_SIDE)[:, None], jnp.arange(_FOG_SIDE)

    def refine(level: Array, grid: Array) -> Array:
        half = _FOG_SIDE >> (level + 1)  # of the distance between the points so far
        is_new_row, is_new_column = row % (2 * half) == half, column % (2 * half) == half
        is_row, is_column = row % (2 * half) == 0, column % (2 * half) == 0
        new = noise * decay ** (-2.0 * level)
        squares = sum(jnp.roll(grid, (down, right), (0, 1)) for down in (-half, half) for right in (-half, half))
        grid = jnp.where(is_new_row & is_new_column, squares / 4 + new, grid)
        diamonds = sum(jnp.roll(grid, shift, axis) for axis in (0, 1) for shift in (-half, half))
        return jnp.where((is_new_row & is_column) | (is_row & is_new_column), diamonds / 4 + new, grid)

    grid = jax.lax.fori_loop(0, _FOG_SIDE.bit_length() - 1, refine, jnp.zeros_like(noise))
    return (grid - grid.min()) / (grid.max() - grid.min())


def _brightness(x: Image, key: Array, size: Size, added: Array) -> Image:
    # Hue and saturation stay: the channels keep their ratio to the largest, which is the value. Black becomes grey.
    value = x.max(axis=-1, keepdims=True)
    brighter = jnp.minimum(value + added, 1)
    return jnp.where(value > 0, x / jnp.where(value > 0, value, 1), 1) * brighter


def _contrast(x: Image, key: Array, size: Size, factor: Array) -> Image:
    mean = x.sum(axis=(0, 1)) / size.prod()  # the padding is 0
    return mean + factor * (x - mean)


def _jpeg_compression(x: Image, key: Array, size: Size, quality: Array) -> Image:
    height, width, channels = x.shape
    levels = jnp.round(255 * _with_edges(x, size, before=0, after=7))
    levels = levels[: -(-height // 8) * 8, : -(-width // 8) * 8]
    to_ycbcr = np.array(_YCBCR, np.float32) if channels == 3 else np.ones((1, 1), np.float32)
    offset = np.array((0, 128, 128)[:channels], np.float32)
    planes = jnp.round(jnp.matmul(levels, to_ycbcr.T, precision="highest") + offset) - 128
    tables = np.array((_LUMINANCE, _CHROMINANCE, _CHROMINANCE)[:channels], np.float32)
    scale = jnp.where(quality < 50, jnp.floor(5000 / quality), 200 - 2 * quality)
    steps = jnp.moveaxis(jnp.clip(jnp.floor((tables * scale + 50) / 100), 1, 255), 0, -1)
    frequency, place = np.arange(8)[:, None], np.arange(8)
    cosines = np.cos(np.pi / 8 * (place + 0.5) * frequency) * np.where(frequency == 0, 1, np.sqrt(2)) / np.sqrt(8)
    cosines = cosines.astype(np.float32)
    blocks = planes.reshape(-1, 8, planes.shape[1] // 8, 8, channels)
    spectrum = jnp.einsum("ui,vj,yixjc->yxuvc", cosines, cosines, blocks, precision="highest")
    spectrum = jnp.round(spectrum / steps) * steps
    blocks = jnp.einsum("ui,vj,yxuvc->yixjc", cosines, cosines, spectrum, precision="highest")
    planes = jnp.clip(jnp.round(blocks.reshape(planes.shape) + 128), 0, 255)
    from_ycbcr = np.linalg.inv(to_ycbcr).astype(np.float32)
    return jnp.matmul(planes - offset, from_ycbcr.T, precision="highest")[:height, :width] / 255


_MOTION = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))  # radius in pixels, σ in pixels
# Per kind: its function of (image, key, size, constants), and the constants of each severity.
CORRUPTIONS: dict[str, tuple[Callable, tuple]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
    "motion_blur": (_motion_blur, _MOTION),
    "fog": (_fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),  # thickness, decay per level
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "jpeg_compression": (_jpeg_compression, (25, 18, 15, 10, 7)),
}
"""Function of each kind, and its constants at the severities 1 to 5."""
