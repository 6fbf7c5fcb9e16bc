import itertools
from functools import partial

import chex
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from segjax.data import resize as resize_module
from segjax.data.resize import Axis, nearest_pixels, resize, resize_nearest, resize_window

IMAGES = jax.random.normal(jax.random.key(0), (2, 16, 18, 3))
SHAPES = [(7, 23), (33, 5), (16, 40)]


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_resize_equals_jax(shape, antialias):
    found = jax.jit(partial(resize, shape=shape, antialias=antialias))(IMAGES)
    expected = jax.image.resize(IMAGES, (2, *shape, 3), "linear", antialias=antialias)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_resize_to_its_own_size_returns_the_images():
    assert resize(IMAGES, (16, 18), antialias=True) is IMAGES


@pytest.mark.parametrize("antialias", [True, False])
def test_resize_sizes_inside_padded_arrays_share_one_program(antialias):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def resized(images, sources, targets):
        return resize(images, (20, 30), antialias=antialias, from_sizes=sources, to_sizes=targets)

    for sources, targets in (([[16, 18], [5, 9]], [[20, 30], [13, 7]]), ([[16, 1], [7, 8]], [[5, 30], [20, 1]])):
        found = resized(IMAGES, jnp.array(sources), jnp.array(targets))
        for one, image, (h, w), (height, width) in zip(found, IMAGES, sources, targets, strict=True):
            expected = jax.image.resize(image[:h, :w], (height, width, 3), "linear", antialias=antialias)
            np.testing.assert_allclose(one[:height, :width], expected, atol=1e-5)
            assert not one[height:].any()
            assert not one[:, width:].any()


@pytest.mark.parametrize("antialias", [True, False])
def test_resize_window_has_the_weights_of_the_whole(antialias):
    whole = resize(IMAGES, (40, 11), antialias=antialias)[0]
    rows, columns = slice(3, 12), slice(0, 18)
    axes = (Axis(16, 40, 3, (2 * 10 + 1) * 16 - (2 * 3 + 1) * 40), Axis(18, 11, 0, (2 * 4 + 1) * 18 - 11))
    found = resize_window(IMAGES[0, rows, columns], axes, (9, 3), antialias=antialias)
    np.testing.assert_array_equal(found, whole[10:19, 4:7])


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(7, 9), (50, 31), (20, 40), (900, 3)], ids=str)
def test_resize_blocks_of_any_size_equal_jax(monkeypatch, size, antialias):
    image = np.random.default_rng(0).integers(0, 256, (20, 28, 3)).astype(np.uint8)
    for name, value in (("BLOCK", 11), ("_WINDOW", 8), ("_STEP", 4)):
        monkeypatch.setattr(resize_module, name, value)
    found = np.full((*size, 3), np.nan)
    for rows, columns, block in resize_module.resize_blocks(image, size, antialias=antialias):
        found[rows, columns] = resize_module.crop_block(block, rows, columns)
    expected = jax.image.resize(image.astype(np.float32), (*size, 3), "linear", antialias=antialias)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_resize_strict_ranks_and_dtypes():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        sizes = jnp.array([[5, 9], [3, 3]], jnp.int32)
        assert resize(IMAGES, (4, 5), antialias=True, from_sizes=sizes, to_sizes=sizes // 2).dtype == jnp.float32


# All pairs of short lengths, and some long ones.
LENGTHS = [*itertools.product(range(1, 33), repeat=2), *itertools.product((719, 720, 2049), (64, 255, 511, 2050))]


def pixels_along(source, target):
    return resize_nearest(np.arange(source)[None], (1, target))[0]


def test_resize_nearest_keeps_the_cross_of_the_middles_of_the_blocks():
    cross = np.zeros((9, 9), np.uint8)
    cross[4], cross[:, 4] = 1, 1
    np.testing.assert_array_equal(resize_nearest(cross, (3, 3)), [[0, 1, 0], [1, 1, 1], [0, 1, 0]])


def test_resize_nearest_takes_the_pixel_nearest_to_each_centre():
    for source, target in LENGTHS:
        distances = (2 * pixels_along(source, target) + 1) * target - (2 * np.arange(target) + 1) * source
        assert np.abs(distances).max() <= target, (source, target)  # half a pixel, in units of 1 / (2 target)


def test_resize_nearest_mirrored():
    for source, target in LENGTHS:
        found = pixels_along(source, target)
        mirrored = source - 1 - found[::-1]
        if source % 2 == 0 and target % 2:  # the middle is between two pixels, and takes the second
            assert found[target // 2] == mirrored[target // 2] + 1
            found, mirrored = (np.delete(pixels, target // 2) for pixels in (found, mirrored))
        np.testing.assert_array_equal(found, mirrored)


def test_resize_nearest_keeps_lines_as_wide_as_a_step():
    for source, target in LENGTHS:
        skipped = np.diff(pixels_along(source, target), prepend=-1, append=source).max() - 1
        assert skipped < -(-source // target), (source, target)


def test_resize_nearest_in_two_axes_equals_one_after_the_other():
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 2), np.uint8)
    found = resize_nearest(values, (7, 50))
    np.testing.assert_array_equal(found, resize_nearest(resize_nearest(values, (7, 30)), (7, 50)))
    assert (found.shape, found.dtype) == ((7, 50, 2), np.uint8)


def by_pillow(grey, shape):
    """Resizes bilinearly with half-pixel centres, antialiased where the image shrinks."""
    return np.asarray(Image.fromarray(grey.astype(np.float32)).resize(shape[::-1], Image.Resampling.BILINEAR))


@pytest.mark.parametrize("shape", [(20, 31), (17, 64), (40, 200), (33, 50)], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_resize_nearest_of_a_mask_equals_its_resized_image_above_one_half(shape, axis):
    mask = np.zeros((80, 100), np.uint8)
    np.moveaxis(mask, axis, 0)[23:52] = 1
    grey = by_pillow(mask, shape)
    is_tie = np.abs(grey - 0.5) < 1e-5
    assert is_tie.mean() < 0.15
    np.testing.assert_array_equal(resize_nearest(mask, shape)[~is_tie], (grey > 0.5)[~is_tie])


@pytest.mark.parametrize("native", [(120, 160), (144, 192), (101, 137)], ids=str)
def test_resize_nearest_of_thin_lines_is_undone_by_the_resize_of_logits(native):
    """A network that reproduces the reduced labels exactly finds most of a line of 3 pixels at the native size."""
    lines, rng = np.zeros(native, np.uint8), np.random.default_rng(0)
    for _ in range(6):
        cv2.line(lines, *(tuple(map(int, rng.integers(0, native[::-1]))) for _ in range(2)), 1, 3)
    logits = 2.0 * resize_nearest(lines, (48, 64)) - 1
    predicted = by_pillow(logits, native) > 0
    assert (predicted & lines).sum() / (predicted | lines).sum() > 0.78  # 0.66 to 0.75 from the corners of blocks


def test_nearest_pixels_equal_in_numpy_and_jax():
    positions = np.arange(0.25, 20, 0.25, np.float32)
    found = jax.jit(nearest_pixels, static_argnums=1)(positions, 20)
    np.testing.assert_array_equal(found, nearest_pixels(positions, 20))
