from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segjax.models.pooling import max_pool_2x2, max_pool_2x2_dense, max_pool_2x2_positions, max_pool_3x3


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_close(actual, expected, atol=1e-5):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=atol, rtol=1e-5), actual, expected)


def value_and_gradients(function, *args):
    """The output, and the gradients of a generic scalar of it with respect to every argument."""
    output, pull_back = jax.vjp(function, *args)
    return output, pull_back(normal(99, *output.shape))


def test_max_pool_equals_linens_in_value_and_gradient():
    x = normal(0, 2, 6, 8, 3)
    actual = jax.jit(lambda x: value_and_gradients(max_pool_2x2, x))(x)
    expected = jax.jit(lambda x: value_and_gradients(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x))(x)
    assert_close(actual, expected, atol=0)


def test_max_pool_gives_the_gradient_of_a_tie_to_the_first_as_linens():
    tied = jnp.array([[5.0, 5.0, 1.0, 2.0], [5.0, 0.0, 2.0, 2.0]]).reshape(1, 2, 4, 1)
    ours = jax.grad(lambda x: max_pool_2x2(x).sum())(tied)
    np.testing.assert_array_equal(ours.ravel(), [1, 0, 0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(ours, jax.grad(lambda x: nn.max_pool(x, (2, 2), (2, 2)).sum())(tied))


@pytest.mark.parametrize("place", range(4))
def test_max_pool_hides_no_nan(place):
    window = jnp.arange(4.0).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
    assert jnp.isnan(max_pool_2x2(window)).all()


@pytest.mark.parametrize("pool", [max_pool_2x2, max_pool_2x2_positions])
def test_max_pool_refuses_odd_sizes(pool):
    with pytest.raises(ValueError, match="even height and width; got 3x4"):
        pool(jnp.zeros((1, 3, 4, 1)))


@pytest.mark.parametrize("dilation", [1, 4])
def test_dense_max_pool_is_that_of_every_offset_in_value_and_gradient(dilation):
    # Of few values, so that windows have ties.
    x = jnp.round(normal(0, 2, 4 * dilation, 5 * dilation, 3))

    def of_every_offset(x):
        # Pixels `dilation` apart are neighbours of a map of their own; its windows begin at every place.
        tiles = [[x[:, i::dilation, j::dilation] for j in range(dilation)] for i in range(dilation)]
        pooled = [[nn.max_pool(tile, (2, 2), (1, 1)) for tile in row] for row in tiles]
        y = jnp.stack([jnp.stack(row, axis=3) for row in pooled], axis=2)
        return y.reshape(2, 3 * dilation, 4 * dilation, 3)

    actual = jax.jit(lambda x: value_and_gradients(lambda x: max_pool_2x2_dense(x, dilation), x))(x)
    expected = jax.jit(lambda x: value_and_gradients(of_every_offset, x))(x)
    assert_close(actual, expected, atol=0)


# Of few different values, so that every kind of tie comes up.
WINDOWS = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=48, max_size=48)


@given(WINDOWS)
def test_positions_are_the_first_maxima_as_numpy_finds_them(values):
    x = np.asarray(values, np.float32).reshape(1, 4, 6, 2)
    windows = x.reshape(1, 2, 2, 3, 2, 2).transpose(0, 1, 3, 5, 2, 4).reshape(1, 2, 3, 2, 4)
    pooled, positions = _pool(x)
    np.testing.assert_array_equal(pooled, windows.max(axis=-1))
    np.testing.assert_array_equal(positions, windows.argmax(axis=-1))
    assert positions.dtype == np.uint8


_pool = jax.jit(max_pool_2x2_positions)


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (1, 2)])
def test_overlapping_max_pool_equals_linens_in_value_and_gradient(size):
    # Few different numbers: nearly every window has ties.
    x = jnp.round(normal(0, 2, *size, 3))

    def linens(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    actual, expected = (jax.jit(partial(value_and_gradients, pool))(x) for pool in (max_pool_3x3, linens))
    assert_close(actual, expected, atol=0)
