from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segjax.models.layers import (
    Conv3x3,
    ConvBlock,
    ConvTranspose2x2,
    Norm,
    PixelShuffle2x2,
    depth_to_space_2x2,
    fan_in_normal,
    max_pool_2x2,
    max_pool_3x3,
    pad_to_multiple,
)


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


def test_max_pool_refuses_odd_sizes():
    with pytest.raises(ValueError, match="even height and width; got 3x4"):
        max_pool_2x2(jnp.zeros((1, 3, 4, 1)))


def test_transposed_convolution_is_linens_with_linens_parameters():
    x = normal(0, 2, 3, 5, 4)
    ours, linens = ConvTranspose2x2(6), nn.ConvTranspose(6, (2, 2), (2, 2))
    params = {"kernel": normal(1, 2, 2, 4, 6), "bias": normal(2, 6)}
    shapes = jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)["params"])
    assert shapes == jax.tree.map(jnp.shape, linens.init(jax.random.key(0), x)["params"])

    def output(module, params, x):
        return module.apply({"params": params}, x)

    actual, expected = (
        jax.jit(partial(value_and_gradients, partial(output, module)))(params, x) for module in (ours, linens)
    )
    assert_close(actual, expected)


def test_transposed_convolution_equals_lax():
    x, kernel = normal(0, 1, 4, 3, 2), normal(1, 2, 2, 2, 5)
    variables = {"params": {"kernel": kernel, "bias": jnp.zeros(5)}}
    expected = lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert_close(ConvTranspose2x2(5).apply(variables, x), expected)


def test_transposed_convolution_keeps_the_variance_of_its_input():
    x = normal(0, 4, 8, 8, 64)
    y, _ = ConvTranspose2x2(64).init_with_output(jax.random.key(1), x)
    np.testing.assert_allclose(y.var(), 1.0, rtol=0.1)


def test_depth_to_space_lays_the_groups_out_as_a_block():
    x = normal(0, 2, 3, 5, 8)
    y = depth_to_space_2x2(x)
    for group in range(4):
        row, column = divmod(group, 2)
        np.testing.assert_array_equal(y[:, row::2, column::2], x[..., 2 * group : 2 * group + 2])


def test_depth_to_space_needs_four_groups():
    with pytest.raises(ValueError, match="multiple of 4 channels; got 6"):
        depth_to_space_2x2(jnp.zeros((1, 2, 2, 6)))


def test_pixel_shuffle_starts_as_the_nearest_neighbour_upsampling_of_a_convolution():
    x = normal(0, 2, 3, 5, 4)
    y, variables = PixelShuffle2x2(6).init_with_output(jax.random.key(1), x)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (4, 24)
    nearest = nn.relu(x @ kernel[:, :6]).repeat(2, axis=1).repeat(2, axis=2)
    assert_close(y, nearest)
    assert np.unique(kernel).size == 4 * 6


def test_pixel_shuffle_keeps_the_scale_under_its_relu():
    x = normal(0, 4, 8, 8, 64)
    y, _ = PixelShuffle2x2(64).init_with_output(jax.random.key(1), x)
    np.testing.assert_allclose((y**2).mean(), (x**2).mean(), rtol=0.15)


def test_pixel_shuffle_computes_in_its_dtype():
    y, variables = PixelShuffle2x2(3, dtype=jnp.bfloat16).init_with_output(jax.random.key(0), normal(0, 1, 2, 2, 4))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_zero_padded_convolution_is_linens():
    x = normal(0, 1, 4, 5, 2)
    variables = {"params": {"kernel": normal(1, 3, 3, 2, 3), "bias": normal(2, 3)}}
    module = Conv3x3(3, padding="zeros", use_bias=True)
    assert_close(module.apply(variables, x), nn.Conv(3, (3, 3)).apply(variables, x))


def test_unknown_padding_is_named():
    with pytest.raises(ValueError, match="'reflect' or 'zeros'; got 'circular'"):
        Conv3x3(2, padding="circular").init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))


def test_unknown_norm_is_named():
    with pytest.raises(ValueError, match="'batch', 'group' or 'none'; got 'layer'"):
        Norm("layer").init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), train=True)


def test_batch_norm_normalises_channels_far_from_zero():
    # E[x²] - E[x]² in float32 would leave nothing of this variance.
    x = 3e4 + normal(0, 4, 8, 8, 3)
    y, _ = Norm("batch").init_with_output(jax.random.key(0), x, train=True)
    np.testing.assert_allclose(y.var(axis=(0, 1, 2)), 1.0, rtol=1e-2)


def test_batch_norm_statistics_move_by_a_tenth():
    x = 2 + normal(0, 4, 8, 8, 3)
    variables = Norm("batch").init(jax.random.key(0), x, train=False)
    _, updated = Norm("batch").apply(variables, x, train=True, mutable=["batch_stats"])
    statistics = updated["batch_stats"]["batch"]
    assert_close(statistics["mean"], 0.1 * x.mean((0, 1, 2)))
    assert_close(statistics["var"], 0.9 + 0.1 * x.var((0, 1, 2)))


def test_group_norm_takes_each_example_alone():
    x = normal(0, 2, 4, 4, 12)
    variables = Norm("group").init(jax.random.key(0), x, train=True)
    both, alone = (Norm("group").apply(variables, a, train=True) for a in (x, x[:1]))
    assert_close(both[:1], alone)


@pytest.mark.parametrize(("norm", "biased"), [("batch", False), ("group", False), ("none", True)])
def test_convolutions_have_a_bias_only_without_a_norm(norm, biased):
    params = ConvBlock(4, norm=norm).init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)), False)["params"]
    assert ("bias" in params["conv1"], "bias" in params["conv2"]) == (biased, biased)


def test_initial_convolutions_keep_the_scale_under_relu():
    x = jnp.abs(normal(0, 1, 32, 32, 64))
    y, _ = Conv3x3(64).init_with_output(jax.random.key(1), x)
    np.testing.assert_allclose((y**2).mean(), 2 * (x**2).mean(), rtol=0.15)


def test_initial_kernels_are_linens():
    key, shape = jax.random.key(3), (3, 3, 4, 5)
    assert_close(fan_in_normal(2.0, 36)(key, shape), nn.initializers.he_normal()(key, shape))


def test_padding_to_a_multiple_keeps_the_image_in_the_corner():
    x = normal(0, 1, 5, 8, 2)
    padded = pad_to_multiple(x, 4, minimum=12)
    assert padded.shape == (1, 12, 12, 2)
    assert_close(padded[:, :5, :8], x, atol=0)
    assert_close(padded[:, 5:8], padded[:, 3:0:-1], atol=0)
    assert pad_to_multiple(x, 1) is x


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (1, 2)])
def test_overlapping_max_pool_equals_linens_in_value_and_gradient(size):
    # Few different numbers: nearly every window has ties.
    x = jnp.round(normal(0, 2, *size, 3))

    def linens(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    actual, expected = (jax.jit(partial(value_and_gradients, pool))(x) for pool in (max_pool_3x3, linens))
    assert_close(actual, expected, atol=0)
