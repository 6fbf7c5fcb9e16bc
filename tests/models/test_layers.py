import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.layers import Conv3x3, ConvBlock, ConvStack, StridedConv3x3, fan_in_normal, pad_to_multiple


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_close(actual, expected, atol=1e-5):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=atol, rtol=1e-5), actual, expected)


def test_zero_padded_convolution_is_linens():
    x = normal(0, 1, 4, 5, 2)
    variables = {"params": {"kernel": normal(1, 3, 3, 2, 3), "bias": normal(2, 3)}}
    module = Conv3x3(3, padding="zeros", use_bias=True)
    assert_close(module.apply(variables, x), nn.Conv(3, (3, 3)).apply(variables, x))


def test_unknown_padding_is_named():
    with pytest.raises(ValueError, match="padding must be one of 'reflect', 'zeros'; got 'circular'"):
        Conv3x3(2, padding="circular").init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    with pytest.raises(ValueError, match="padding must be one of 'reflect', 'zeros'; got 'circular'"):
        StridedConv3x3(2, padding="circular").init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), False)


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_a_strided_convolution_is_every_second_pixel_of_one_with_stride_1(padding):
    # Even rows and columns; a plain 3×3 convolution is then right at the bottom and the right too.
    x = normal(0, 2, 6, 8, 3)
    strided = StridedConv3x3(4, norm="none", padding=padding)
    y, variables = strided.init_with_output(jax.random.key(0), x, False)
    plain = Conv3x3(4, padding, use_bias=True).apply({"params": variables["params"]["conv"]}, x)
    assert_close(y, nn.relu(plain[:, ::2, ::2]))


def test_a_strided_convolution_refuses_odd_sizes():
    with pytest.raises(ValueError, match="even height and width; got 3x4"):
        StridedConv3x3(2).init(jax.random.key(0), jnp.zeros((1, 3, 4, 1)), False)


@pytest.mark.parametrize(("norm", "biased"), [("batch", False), ("group", False), ("none", True)])
def test_convolutions_have_a_bias_only_without_a_norm(norm, biased):
    params = ConvBlock(4, norm=norm).init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)), False)["params"]
    assert ("bias" in params["conv1"], "bias" in params["conv2"]) == (biased, biased)


def test_a_stack_is_its_convolutions_one_after_another():
    x = normal(0, 1, 4, 6, 3)
    stack, block = ConvStack(8, 3, last=4, norm="none"), ConvBlock(8, norm="none")
    y, variables = stack.init_with_output(jax.random.key(0), x, False)
    params = variables["params"]
    assert {name: leaves["kernel"].shape[2:] for name, leaves in params.items()} == {
        "conv1": (3, 8),
        "conv2": (8, 8),
        "conv3": (8, 4),
    }
    two = block.apply({"params": {name: params[name] for name in ("conv1", "conv2")}}, x, False)
    assert_close(y, nn.relu(Conv3x3(4, use_bias=True).apply({"params": params["conv3"]}, two)))


def test_an_empty_stack_is_refused():
    with pytest.raises(ValueError, match="count of ConvStack must be at least 1; got 0"):
        ConvStack(4, 0).init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), False)


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
