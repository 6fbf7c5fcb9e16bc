"""Augmentation on the device, inside the jitted step: images of 0..255 in, normalised images and int32 labels out.

Geometry uses continuous coordinates: pixel i covers [i, i + 1) and its centre is at i + 0.5.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer, Key, Shaped

from segjax.data.labels import VOID
from segjax.data.resize import equal_sizes, fit_within, nearest_pixels, resize

# Folded into an example's key, for random numbers that do not change the others of `augment`.
_OUTLIERS, _RARE, _COPY_PASTE = np.uint32(1), np.uint32(2), np.uint32(3)


def example_keys(
    seed_key: Key[Array, ""], step: Integer[ArrayLike, ""], index: Integer[Array, "batch"]
) -> Key[Array, "batch"]:
    """Derives one PRNG key per example from the run's key, the step and the example's position in the stream."""
    step_key = jax.random.fold_in(seed_key, step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, index)


def prepare(
    images: Shaped[Array, "..."],
    *,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    sizes: Integer[ArrayLike, "b 2"] | None = None,
    letterbox: bool = False,
) -> Float[Array, "b h w c"]:
    """Resizes images to `size` with antialiasing, then normalises them. Nothing is random.

    Args and errors are those of `augment`.

    >>> print(prepare(jnp.full((1, 4, 6, 3), 255, jnp.uint8), size=(2, 3), mean=(0.5,), std=(0.25,))[0, 0, 0].round(4))
    [2. 2. 2.]
    """
    _check_images(images, size, mean, std)
    fitted = None
    if letterbox:
        sizes = equal_sizes(images.shape[1:3], images.shape[0]) if sizes is None else jnp.asarray(sizes)
        fitted = fit_within(sizes, size)
    resized = resize(images.astype(jnp.float32), size, antialias=True, from_sizes=sizes, to_sizes=fitted)
    return normalise(resized, mean, std, fitted)


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
    sizes: Integer[ArrayLike, "b 2"] | None = None,
    letterbox: bool = False,
    rare_classes: Sequence[int | Sequence[int]] = (),
    rare_crops: Float[ArrayLike, ""] = 0.0,
) -> tuple[Float[Array, "b h w c"], Int[Array, "b h w"]]:
    """Applies random crop and zoom in one resampling, flip, rotation, brightness and contrast, and normalises.

    A window of `crop_fraction` / zoom of the source's height and width becomes the output. Its position is uniform
    over all that lie in the source or, for a window larger than the source, over all that contain the source.
    With every setting neutral this is `prepare`. Outside the source the image is the mean (0) and the label `VOID`.

    A letterboxed source is resized by one factor to `fit_within(sizes, size)`, in the top left corner of the output.
    The window has the proportions of the output, and extends beyond the source at the bottom or the right only where
    it is larger.

    With the probability `rare_crops`, the window contains a rare pixel. The pixel's class is drawn uniformly from the
    `rare_classes` in the image, then the pixel uniformly from that class. The position is uniform over all windows in
    the source that contain the pixel. (nnU-Net centres the window, so that its rare pixels are more often at the
    centre.) Zoom, flip and colours are those without rare crops. A rotation may turn the pixel out of the output.

    Args:
        images: uint8 or float32 `[B, H, W, C]` in 0..255, any C.
        labels: uint8 `[B, H, W]`; values are never mixed.
        keys: `[B]`, from `example_keys`.
        size: (h, w) of the result; static.
        crop_fraction: side of the window relative to the source's, before the zoom, in (0, 1]; traced, so a curriculum
            compiles once.
        flip: mirrors left and right in half of the examples.
        scale: (lo, hi) of the uniform zoom; above 1 enlarges, (1, 1) disables it.
        rotation: the angle is uniform in [-rotation, rotation] degrees; at most 180. 0 compiles to nothing.
        brightness: an offset uniform in [-brightness, brightness] on pixels in [0, 1], shared by all channels.
        contrast: a factor uniform in [1 - contrast, 1 + contrast] on the distance from `mean`. Nothing is clipped.
        mean: mean of the pixels in [0, 1], one value or one per channel.
        std: standard deviation, like `mean`.
        sizes: (height, width) of each image in the top left corner of its array, `[B, 2]`; None: all of the array.
        letterbox: keep the proportions of the image; False: stretch it to those of `size`.
        rare_classes: values of `labels`; static. Several values that are one class, as where classes overlap, are a
            tuple. (): no rare crops.
        rare_crops: the probability of a rare crop, in [0, 1]; traced. Images without a rare class are not affected.

    References: Isensee et al., nnU-Net, Nature Methods 2021 (oversampling of foreground patches).

    Raises: TypeError unless images and labels are as above; ValueError if a shape or a setting is out of range.
    """
    _check_images(images, size, mean, std)
    if labels.dtype != jnp.uint8:
        raise TypeError(f"labels must be uint8 class indices; got {labels.dtype}")
    if labels.shape != images.shape[:3]:
        raise ValueError(f"labels must have the images' shape {images.shape[:3]}; got {labels.shape}")
    if not isinstance(crop_fraction, jax.core.Tracer) and not 0 < float(crop_fraction) <= 1:
        raise ValueError(f"crop_fraction must be in (0, 1]; got {crop_fraction}")
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be (lo, hi) with 0 < lo <= hi; got {scale}")
    if not 0 <= rotation <= 180:
        raise ValueError(f"rotation must be in [0, 180] degrees; got {rotation}")
    if not (brightness >= 0 and contrast >= 0):
        raise ValueError(f"brightness and contrast must not be negative; got {brightness} and {contrast}")

    if not isinstance(rare_crops, jax.core.Tracer) and not 0 <= float(rare_crops) <= 1:
        raise ValueError(f"rare_crops must be in [0, 1]; got {rare_crops}")

    margin = _margin(size, rotation)

    def augment_one(
        image: jax.Array, label: jax.Array, key: jax.Array, own_size: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        own = label.shape if own_size is None else own_size
        rare = _draw_rare_pixel(key, label, rare_classes, rare_crops) if rare_classes else None
        window = _draw_window(key, own, size, crop_fraction, flip, scale, rotation, letterbox, rare)
        (height, width), (corner, zoom, side, flips, radians, bright, contrasts) = own, window
        # Normalised first (resampling is linear), so that the 0 outside the source is the mean. The margin around the
        # window is wide enough for a second resampling that rotates by any angle.
        shape = (size[0] + 2 * margin[0], size[1] + 2 * margin[1], image.shape[-1])
        start = jnp.asarray(margin, jnp.float32) - corner * zoom
        image = normalise(image, mean, std, own_size)
        image = jax.image.scale_and_translate(image, shape, (0, 1), zoom, start, method="linear", antialias=True)

        # Centres of the output's pixels: in the output, then in the source.
        y, x = (jnp.arange(n, dtype=jnp.float32) + 0.5 for n in size)
        x = jnp.where(flips, size[1] - x, x)
        y, x = y[:, None], x[None, :]
        if rotation:
            dy, dx = y - size[0] / 2, x - size[1] / 2
            cos, sin = jnp.cos(radians), jnp.sin(radians)
            y, x = size[0] / 2 + cos * dy - sin * dx, size[1] / 2 + sin * dy + cos * dx
            points = (y + margin[0] - 0.5, x + margin[1] - 0.5)
            image = jax.vmap(lambda channel: map_coordinates(channel, points, order=1), in_axes=-1, out_axes=-1)(image)
        else:
            image = jnp.where(flips, image[:, ::-1], image)
        rows, columns = corner[0] + y / zoom[0], corner[1] + x / zoom[1]
        # Only the whole, upright source has exact ties; elsewhere they are rounding errors, and either pixel is right.
        rows, columns = (
            jnp.where((side == 1) & (not rotation), nearest_pixels(at, length), jnp.floor(at).astype(jnp.int32))
            for at, length in ((rows, height), (columns, width))
        )
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        if letterbox:  # resampling would blend the image with its padding
            image = jnp.where(inside[..., None], image, 0)
        rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
        nearest = label[rows, columns] if rotation else _take_grid(label, rows[:, 0], columns[0])
        label = jnp.where(inside, nearest.astype(jnp.int32), VOID)

        offset = brightness * (2 * bright - 1) / jnp.asarray(std, jnp.float32).reshape(1, 1, -1)
        image = image * (1 + contrast * (2 * contrasts - 1)) + jnp.where(inside[..., None], offset, 0)
        return image, label

    return jax.vmap(augment_one)(images, labels, keys, None if sizes is None else jnp.asarray(sizes))


def augment_boxes(
    boxes: Float[ArrayLike, "b boxes 4"],
    keys: Key[Array, "b"],
    sizes: Integer[ArrayLike, "b 2"],
    *,
    size: tuple[int, int],
    crop_fraction: Float[ArrayLike, ""],
    flip: bool,
    scale: tuple[float, float],
    rotation: float,
    letterbox: bool = False,
) -> tuple[Float[Array, "b boxes 4"], Float[Array, "b boxes"]]:
    """Moves boxes as `augment` moves the pixels of their images with the same keys and settings.

    A rotated box becomes the smallest upright one that contains its four corners. The part outside the output is cut
    off.

    Args:
        boxes: `[B, N, 4]`, (x_min, y_min, x_max, y_max) in pixels, of edges.
        keys: as in `augment`.
        sizes: height and width of each image, `[B, 2]`.
        size: as in `augment`.
        crop_fraction: as in `augment`.
        flip: as in `augment`.
        scale: as in `augment`.
        rotation: as in `augment`.
        letterbox: as in `augment`.

    Returns: the boxes in pixels of the output, and the share of the area of each that is inside; 0 for no area.

    >>> settings = {"size": (4, 8), "crop_fraction": 1.0, "flip": False, "scale": (1.0, 1.0), "rotation": 0.0}
    >>> key = example_keys(jax.random.key(0), 0, jnp.arange(1))
    >>> moved, inside = augment_boxes(jnp.array([[[1.0, 0.0, 3.0, 2.0]]]), key, jnp.array([[4, 4]]), **settings)
    >>> print(moved[0, 0], inside[0, 0])
    [2. 0. 6. 2.] 1.0
    """
    height, width = size

    def move(boxes: Float[Array, "boxes 4"], key: Key[Array, ""], own: Integer[Array, "2"]) -> tuple[Array, Array]:
        window = _draw_window(key, own, size, crop_fraction, flip, scale, rotation, letterbox)
        x = (boxes[:, jnp.array([0, 2, 0, 2])] - window.corner[1]) * window.zoom[1]  # of the four corners
        y = (boxes[:, jnp.array([1, 1, 3, 3])] - window.corner[0]) * window.zoom[0]
        if rotation:  # the inverse of the rotation of `augment`, from the output to the source
            dy, dx, cos, sin = y - height / 2, x - width / 2, jnp.cos(window.radians), jnp.sin(window.radians)
            y, x = height / 2 + cos * dy + sin * dx, width / 2 - sin * dy + cos * dx
        x = jnp.where(window.flips, width - x, x)
        whole = jnp.stack([x.min(axis=1), y.min(axis=1), x.max(axis=1), y.max(axis=1)], axis=-1)
        seen = jnp.clip(whole, 0, jnp.array([width, height, width, height], whole.dtype))
        area, inside = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (whole, seen))
        return seen, jnp.where(area > 0, inside / jnp.where(area > 0, area, 1), 0)

    return jax.vmap(move)(jnp.asarray(boxes, jnp.float32), keys, jnp.asarray(sizes))


class _Window(NamedTuple):
    """Random numbers of an augmented image: its window of the source, in pixels, and its colours in [0, 1)."""

    corner: Float[Array, "2"]  # row and column
    zoom: Float[Array, "2"]  # pixels of the output per pixel of the source
    side: Float[Array, ""]  # of the window over that of the source
    flips: Bool[Array, ""]
    radians: Float[Array, ""]
    bright: Float[Array, ""]
    contrast: Float[Array, ""]


def _draw_window(
    key: Key[Array, ""],
    source_size: tuple[int, int] | Integer[Array, "2"],
    size: tuple[int, int],
    crop_fraction: Float[ArrayLike, ""],
    flip: bool,
    scale: tuple[float, float],
    rotation: float,
    letterbox: bool,
    rare: tuple[Int[Array, "2"], Bool[Array, ""]] | None = None,
) -> _Window:
    """Draws the window of one image of height and width `source_size`; see `augment` and `_draw_rare_pixel`."""
    top, left, enlarge, flips, turn, bright, contrast = jax.random.uniform(key, (7,))
    side = crop_fraction / (scale[0] + enlarge * (scale[1] - scale[0]))
    height, width = source_size
    source, output = jnp.asarray((height, width), jnp.float32), jnp.asarray(size, jnp.float32)
    if letterbox:
        fitted = fit_within(jnp.asarray((height, width)), size).astype(jnp.float32)
        frame = source * output / fitted  # the output in pixels of the source
        free, zoom = jnp.minimum(frame * (1 - side), jnp.maximum(source - frame * side, 0)), fitted / (source * side)
    else:
        free, zoom = source * (1 - side), output / (source * side)
    first, last = jnp.zeros_like(free), free  # of the corner
    if rare is not None:
        (pixel, is_rare), last_inside = rare, jnp.maximum(free, 0)
        containing = (jnp.clip(at, 0, last_inside) for at in (pixel + 1 - output / zoom, pixel))
        first, last = (
            jnp.where(is_rare & (free > 0), one, other) for one, other in zip(containing, (first, last), strict=True)
        )
    corner = first + jnp.stack([top, left]) * (last - first)
    return _Window(corner, zoom, side, flip & (flips < 0.5), jnp.deg2rad(rotation * (2 * turn - 1)), bright, contrast)


def _draw_rare_pixel(
    key: Key[Array, ""],
    label: Integer[Array, "H W"],
    rare_classes: Sequence[int | Sequence[int]],
    rare_crops: Float[ArrayLike, ""],
) -> tuple[Int[Array, "2"], Bool[Array, ""]]:
    """Draws a pixel of a rare class, and True if the window has to contain it; see `augment`."""
    chance, by_class, by_row, by_column = jax.random.uniform(jax.random.fold_in(key, _RARE), (4,))
    values = [np.atleast_1d(each).astype(label.dtype) for each in rare_classes]

    def pixels_of(label: Integer[Array, "*shape"]) -> list[Bool[Array, "*shape"]]:
        return [(label[..., None] == each).any(axis=-1) for each in values]

    rows = jnp.stack([pixels.sum(axis=1, dtype=jnp.int32) for pixels in pixels_of(label)])  # pixels per row
    occurs = rows.any(axis=1)
    chosen = _draw_index(occurs, by_class)
    row = _draw_index(rows[chosen], by_row)
    column = _draw_index(jnp.stack(pixels_of(label[row]))[chosen], by_column)
    return jnp.stack([row, column]), (chance < rare_crops) & occurs.any()


def _draw_index(weights: Shaped[Array, "n"], uniform: Float[Array, ""]) -> Int[Array, ""]:
    """Draws an index with a probability proportional to its weight, which is an integer or boolean."""
    until = jnp.cumsum(weights, dtype=jnp.int32)
    index = jnp.searchsorted(until, (uniform * until[-1]).astype(jnp.int32), side="right")
    return jnp.minimum(index, len(weights) - 1).astype(jnp.int32)


def paste_outliers(
    images: Float[Array, "b h w c"],
    labels: Int[Array, "b h w"],
    keys: Key[Array, "b"],
    count: int,
    inside: Bool[Array, "b h w"] | None = None,
) -> tuple[Float[Array, "b h w c"], Int[Array, "b h w"], Bool[Array, "b h w"]]:
    """Pastes drawn fragments into augmented images, for outlier exposure.

    Each fragment is a rough polygon of random position, orientation and pattern. Its mean radius is about 1.5 to 12 %
    of the image's height and its aspect ratio at most about 4. Its two random colours have the image's mean and
    standard deviation, and it shows some texture of another position. Fragments represent objects outside the label
    set.

    Args:
        images: any scale, from `augment`.
        labels: from `augment`.
        keys: `[B]`, the keys of `augment`; pasting does not change its random numbers.
        count: number of fragments per image; static. A later one may cover an earlier one.
        inside: False in the padding of a letterboxed image, which gets no fragment; None: no padding.

    Returns: the images; the labels, `VOID` where a fragment touches a pixel; and True where it covers at least half of
        it.
    """

    def paste_one(
        image: jax.Array, label: jax.Array, key: jax.Array, inside: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        def paste(pasted, key):
            colours, cover = _draw_fragment(key, image, inside)
            blended = pasted[0] + (colours - pasted[0]) * cover[..., None]
            return (blended, jnp.maximum(pasted[1], cover)), None

        fragments = jax.random.split(jax.random.fold_in(key, _OUTLIERS), count)
        (pasted, covered), _ = jax.lax.scan(paste, (image, jnp.zeros(label.shape, image.dtype)), fragments)
        return pasted, jnp.where(covered > 0, VOID, label), covered >= 0.5

    return jax.vmap(paste_one)(images, labels, keys, inside)


def copy_paste(
    images: Float[Array, "b h w c"],
    labels: Int[Array, "b h w"],
    donors: Float[Array, "b h w c"],
    donor_labels: Int[Array, "b h w"],
    keys: Key[Array, "b"],
    *,
    rare_classes: Sequence[int],
    probability: Float[ArrayLike, ""],
) -> tuple[Float[Array, "b h w c"], Int[Array, "b h w"]]:
    """Pastes the pixels of the rare classes of one augmented image into another, at their place and without blending.

    The donor has its own crop, zoom and flip, so objects appear in new surroundings at new positions and sizes.

    Args:
        images: from `augment`.
        labels: from `augment`.
        donors: another augmented image per image, such as the next one of the batch (`collectives.next_example`).
        donor_labels: its labels.
        keys: `[B]`, the keys of `augment`; pasting does not change its random numbers.
        rare_classes: values of `donor_labels`; static.
        probability: the share of the images that are pasted into, in [0, 1]; traced.

    Returns: the images and the labels.

    References: Ghiasi et al., Simple Copy-Paste, arXiv 2012.07177, without its choice of a subset of the objects.

    >>> road, debris = jnp.zeros((1, 1, 3), jnp.int32), jnp.array([[[0, 1, 0]]])
    >>> options = {"rare_classes": (1,), "probability": 1.0}
    >>> key = example_keys(jax.random.key(0), 0, jnp.arange(1))
    >>> images, labels = copy_paste(jnp.zeros((1, 1, 3, 1)), road, jnp.ones((1, 1, 3, 1)), debris, key, **options)
    >>> print(images[0, 0, :, 0], labels[0, 0])
    [0. 1. 0.] [0 1 0]
    """
    chances = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, _COPY_PASTE)))(keys)
    is_rare = (donor_labels[..., None] == jnp.asarray(rare_classes, donor_labels.dtype)).any(axis=-1)
    pasted = is_rare & (chances < probability)[:, None, None]
    return jnp.where(pasted[..., None], donors, images), jnp.where(pasted, donor_labels, labels)


def _draw_fragment(
    key: Key[Array, ""], image: Float[Array, "h w c"], inside: Bool[Array, "h w"] | None
) -> tuple[Float[Array, "h w c"], Float[Array, "h w"]]:
    """Draws one fragment for an image; returns its colours and the share of each pixel that it covers."""
    (height, width, channels), first_row, first_column = image.shape, 0, 0
    rows, columns = jnp.arange(height, dtype=image.dtype), jnp.arange(width, dtype=image.dtype)
    shift_limit = max(height, width)
    if inside is not None:
        height, width = (inside.any(axis=axis).sum().astype(image.dtype) for axis in (1, 0))
        first_row, first_column = jnp.argmax(inside.any(axis=1)), jnp.argmax(inside.any(axis=0))
    geometry, waves, paint, tint, pattern, grain, elsewhere = jax.random.split(key, 7)
    top, left, size, turn, stretch, corners, rough = jax.random.uniform(geometry, (7,))
    # Coordinates along and across the fragment, in its half widths.
    radius, turn, stretch = 0.015 * 8**size * height, 2 * jnp.pi * turn, jnp.exp(1.4 * stretch - 0.7)
    dy = (rows - first_row + 0.5 - height * top)[:, None]
    dx = (columns - first_column + 0.5 - width * left)[None, :]
    along = (jnp.cos(turn) * dx + jnp.sin(turn) * dy) / (radius * stretch)
    across = (jnp.cos(turn) * dy - jnp.sin(turn) * dx) * (stretch / radius)

    # The outline is a regular polygon of 3 to 8 corners, roughened by waves; the edge is one pixel wide.
    angle, sector = jnp.arctan2(across, along), 2 * jnp.pi / (3 + jnp.floor(6 * corners))
    polygon = jnp.cos(sector / 2) / jnp.cos(jnp.mod(angle, sector) - sector / 2)
    orders, waves = jnp.arange(1, 7, dtype=image.dtype)[None, None], jax.random.normal(waves, (2, 1, 1, 6))
    bumps = (jnp.cos(angle[..., None] * orders + 2 * jnp.pi * waves[0]) * waves[1] / orders).sum(axis=-1)
    outline = polygon * jnp.maximum(1 + 0.5 * rough * bumps, 0.3)
    cover = jnp.clip(0.5 + (outline - jnp.hypot(along, across)) * radius, 0, 1)
    where = None if inside is None else inside[..., None]
    cover = cover if inside is None else jnp.where(inside, cover, 0)

    frequency, phase, tilt, sharpness, light, noise, texture, colourful = jax.random.uniform(pattern, (8,))
    tilt, light, phase = 2 * jnp.pi * tilt, 2 * jnp.pi * light, 2 * jnp.pi * phase
    stripes = jnp.sin((1 + 7 * frequency) * (jnp.cos(tilt) * along + jnp.sin(tilt) * across) + phase)
    mix = jax.nn.sigmoid(20 * sharpness**2 * stripes)[..., None]
    one, other = jax.random.normal(paint, (2, 1, 1, 1)) + colourful * jax.random.normal(tint, (2, 1, 1, channels))
    shade = 0.3 * (jnp.cos(light) * along + jnp.sin(light) * across)
    shade += 0.3 * noise * jax.random.normal(grain, image.shape[:2])
    over = {"axis": (0, 1), "keepdims": True, "where": where}
    mean, deviation = image.mean(**over), image.std(**over)
    shift = jax.random.randint(elsewhere, (2,), 0, shift_limit)
    detail = texture * (jnp.roll(image, shift, axis=(0, 1)) - mean)
    colours = mean + deviation * (one * mix + other * (1 - mix) + shade[..., None]) + detail
    low, high = image.min(initial=jnp.inf, **over), image.max(initial=-jnp.inf, **over)
    return jnp.clip(colours, low, high), cover


def normalise(
    images: Shaped[Array, "*b h w c"],
    mean: Sequence[float],
    std: Sequence[float],
    sizes: Integer[Array, "*b 2"] | None = None,
) -> Shaped[Array, "*b h w c"]:
    """Normalises images of 0..255, channels last: (x / 255 - mean) / std in float32.

    `sizes` are the height and width of each image in the top left corner of its array, outside which the result is 0.
    """
    per_channel = (1,) * (images.ndim - 1) + (-1,)
    mean, std = (jnp.asarray(values, jnp.float32).reshape(per_channel) for values in (mean, std))
    normalised = (images / 255 - mean) / std
    if sizes is None:
        return normalised
    heights, widths = (sizes[..., axis, None, None, None] for axis in (0, 1))
    row, column = (jax.lax.broadcasted_iota(jnp.int32, images.shape, images.ndim - axis) for axis in (3, 2))
    return jnp.where((row < heights) & (column < widths), normalised, 0)


def _take_grid(label: Array, rows: Int[Array, "h"], columns: Int[Array, "w"]) -> Array:
    """Gathers the labels at every crossing of the given rows and columns."""

    def multiplied(label: Array, rows: Array, columns: Array) -> Array:
        # A TPU gathers pixels one by one. Each sum has one term, and bfloat16 represents all integers up to 256.
        height, width = label.shape
        lines = jax.nn.one_hot(rows, height, dtype=jnp.bfloat16) @ label.astype(jnp.bfloat16)
        return (lines @ jax.nn.one_hot(columns, width, dtype=jnp.bfloat16).T).astype(label.dtype)

    def gathered(label: Array, rows: Array, columns: Array) -> Array:
        return label[rows[:, None], columns[None, :]]

    return jax.lax.platform_dependent(label, rows, columns, tpu=multiplied, default=gathered)


def _margin(size: tuple[int, int], rotation: float) -> tuple[int, int]:
    """Returns the rows and columns by which an output rotated by at most `rotation` degrees exceeds its own size."""

    def reach(along: int, across: int) -> int:
        widest = min(math.radians(rotation), math.atan2(across, along))
        extent = along * math.cos(widest) + across * math.sin(widest)
        return math.ceil((extent - along) / 2) + 1  # one more for the bilinear neighbour

    return (reach(*size), reach(*size[::-1])) if rotation else (0, 0)


def _check_images(images: jax.Array, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> None:
    if images.dtype not in (jnp.uint8, jnp.float32):
        raise TypeError(f"images must be uint8 or float32, in 0..255; got {images.dtype}")
    if images.ndim != 4:
        raise ValueError(f"images must be [batch, height, width, channels]; got shape {images.shape}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be a positive height and width; got {size}")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, images.shape[-1]):
            raise ValueError(f"{name} needs one value or one for each of {images.shape[-1]} channels; got {values}")
    if min(std) <= 0:
        raise ValueError(f"std must be positive; got {std}")
