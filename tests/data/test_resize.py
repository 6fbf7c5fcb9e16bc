from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.data.resize import Axis, resize, resize_window

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


def test_resize_strict_ranks_and_dtypes():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        sizes = jnp.array([[5, 9], [3, 3]], jnp.int32)
        assert resize(IMAGES, (4, 5), antialias=True, from_sizes=sizes, to_sizes=sizes // 2).dtype == jnp.float32
