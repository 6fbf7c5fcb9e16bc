from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from segjax.models import (
    Conv,
    Conv3x3,
    ConvBlock,
    ConvNorm,
    ConvStack,
    Norm,
    SeparableConv3x3,
    StridedConv3x3,
    max_pool_2x2,
    max_pool_2x2_dense,
    max_pool_2x2_positions,
    max_pool_3x3,
    pad_to_multiple,
)
from segjax.models.layers import depthwise_conv, fan_in_normal


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_close(actual, expected, atol=1e-5):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=atol, rtol=1e-5), actual, expected)


def initialized(module, *args):
    """Returns the output and the initial variables of a module, by one compiled program."""
    return jax.jit(lambda: module.init_with_output(jax.random.key(0), *args))()


def value_and_gradients(function, *args):
    """Returns the output, and the gradients of a random projection of it with respect to every argument."""
    output, pull_back = jax.vjp(function, *args)
    return output, pull_back(normal(99, *output.shape))


def test_conv3x3_zeros_equals_nn_conv():
    x = normal(0, 1, 4, 5, 2)
    variables = {"params": {"kernel": normal(1, 3, 3, 2, 3), "bias": normal(2, 3)}}
    module = Conv3x3(3, padding="zeros", use_bias=True)
    assert_close(module.apply(variables, x), nn.Conv(3, (3, 3)).apply(variables, x))


def test_conv3x3_reflect_equals_the_convolution_of_the_reflected_image():
    x, variables = normal(0, 2, 3, 6, 2), {"params": {"kernel": normal(1, 3, 3, 2, 3)}}
    reflected = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    plain = nn.Conv(3, (3, 3), padding="VALID", use_bias=False).apply(variables, reflected)
    assert_close(Conv3x3(3).apply(variables, x), plain)


def test_unknown_padding_is_rejected():
    with pytest.raises(ValueError, match="padding must be one of 'reflect', 'zeros'; got 'circular'"):
        Conv3x3(2, padding="circular").init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    with pytest.raises(ValueError, match="padding must be one of 'reflect', 'zeros'; got 'circular'"):
        StridedConv3x3(2, padding="circular").init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), False)


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_strided_conv3x3_is_every_second_pixel_of_conv3x3(padding):
    # Of even size, so that the padding at the bottom and the right does not matter.
    x = normal(0, 2, 6, 8, 3)
    strided = StridedConv3x3(4, norm="none", padding=padding)
    y, variables = initialized(strided, x, False)
    plain = Conv3x3(4, padding, use_bias=True).apply({"params": variables["params"]["conv"]}, x)
    assert_close(y, nn.relu(plain[:, ::2, ::2]))


def test_strided_conv3x3_rejects_odd_sizes():
    with pytest.raises(ValueError, match="even height and width; got 3x4"):
        StridedConv3x3(2).init(jax.random.key(0), jnp.zeros((1, 3, 4, 1)), False)


@pytest.mark.parametrize(("norm", "biased"), [("batch", False), ("group", False), ("none", True)])
def test_conv_block_has_a_bias_only_without_a_norm(norm, biased):
    init = partial(ConvBlock(4, norm=norm).init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 4, 4, 2)))["params"]
    assert ("bias" in params["conv1"], "bias" in params["conv2"]) == (biased, biased)


def test_conv_stack_equals_its_convolutions_in_sequence():
    x = normal(0, 1, 4, 6, 3)
    stack, block = ConvStack(8, 3, last=4, norm="none"), ConvBlock(8, norm="none")
    y, variables = initialized(stack, x, False)
    params = variables["params"]
    assert {name: leaves["kernel"].shape[2:] for name, leaves in params.items()} == {
        "conv1": (3, 8),
        "conv2": (8, 8),
        "conv3": (8, 4),
    }

    @jax.jit
    def in_sequence(params):
        two = block.apply({"params": {name: params[name] for name in ("conv1", "conv2")}}, x, False)
        return nn.relu(Conv3x3(4, use_bias=True).apply({"params": params["conv3"]}, two))

    assert_close(y, in_sequence(params))


def test_conv_stack_rejects_count_0():
    with pytest.raises(ValueError, match="count of ConvStack must be at least 1; got 0"):
        ConvStack(4, 0).init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), False)


def test_initial_conv3x3_keeps_the_scale_under_relu():
    x = jnp.abs(normal(0, 1, 32, 32, 64))
    y, _ = initialized(Conv3x3(64), x)
    np.testing.assert_allclose((y**2).mean(), 2 * (x**2).mean(), rtol=0.15)


def test_fan_in_normal_equals_he_normal():
    key, shape = jax.random.key(3), (3, 3, 4, 5)
    assert_close(fan_in_normal(2.0, 36)(key, shape), nn.initializers.he_normal()(key, shape))


def test_pad_to_multiple_keeps_the_image_in_the_corner():
    x = normal(0, 1, 5, 8, 2)
    padded = pad_to_multiple(x, 4, minimum=12)
    assert padded.shape == (1, 12, 12, 2)
    assert_close(padded[:, :5, :8], x, atol=0)
    assert_close(padded[:, 5:8], padded[:, 3:0:-1], atol=0)
    assert pad_to_multiple(x, 1) is x


@partial(jax.jit, static_argnums=0)
def updated_batch_norm(norm, x):
    """Returns the output of a training step of a new batch norm, and its new statistics."""
    return norm.apply(norm.init(jax.random.key(0), x, False), x, True, mutable=["batch_stats"])


def test_batch_norm_of_half_precision_keeps_its_statistics_in_float32():
    images = jnp.full((2, 16, 32, 1), 1.0, jnp.bfloat16).at[:, :, ::2].set(1.0 + 2**-7)
    y, updated = updated_batch_norm(Norm("batch", dtype=jnp.bfloat16), images)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(updated["batch_stats"]["batch"]["mean"], 0.1 * (1 + 2**-8), rtol=1e-6)


def test_unknown_norm_is_rejected():
    with pytest.raises(ValueError, match="'batch', 'group', 'none'; got 'layer'"):
        Norm("layer").init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), train=True)


def test_batch_norm_normalizes_channels_far_from_zero():
    # E[x²] - E[x]² in float32 would leave nothing of this variance.
    y, _ = updated_batch_norm(Norm("batch"), 3e4 + normal(0, 4, 8, 8, 3))
    np.testing.assert_allclose(y.var(axis=(0, 1, 2)), 1.0, rtol=1e-2)


def test_batch_norm_statistics_move_by_a_tenth():
    x = 2 + normal(0, 4, 8, 8, 3)
    statistics = updated_batch_norm(Norm("batch"), x)[1]["batch_stats"]["batch"]
    assert_close(statistics["mean"], 0.1 * x.mean((0, 1, 2)))
    assert_close(statistics["var"], 0.9 + 0.1 * x.var((0, 1, 2)))


def test_group_norm_normalizes_examples_separately():
    x = normal(0, 2, 4, 4, 12)
    both, alone = (initialized(Norm("group"), a, True)[0] for a in (x, x[:1]))
    assert_close(both[:1], alone)


def test_max_pool_2x2_equals_nn_max_pool():
    x = normal(0, 2, 6, 8, 3)
    actual = jax.jit(lambda x: value_and_gradients(max_pool_2x2, x))(x)
    expected = jax.jit(lambda x: value_and_gradients(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x))(x)
    assert_close(actual, expected, atol=0)


def test_max_pool_2x2_gives_the_gradient_of_a_tie_to_the_first():
    tied = jnp.array([[5.0, 5.0, 1.0, 2.0], [5.0, 0.0, 2.0, 2.0]]).reshape(1, 2, 4, 1)
    ours = jax.grad(lambda x: max_pool_2x2(x).sum())(tied)
    np.testing.assert_array_equal(ours.ravel(), [1, 0, 0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(ours, jax.grad(lambda x: nn.max_pool(x, (2, 2), (2, 2)).sum())(tied))


@pytest.mark.parametrize("place", range(4))
def test_max_pool_2x2_propagates_nan(place):
    window = jnp.arange(4.0).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
    assert jnp.isnan(max_pool_2x2(window)).all()


@pytest.mark.parametrize("pool", [max_pool_2x2, max_pool_2x2_positions])
def test_max_pool_2x2_rejects_odd_sizes(pool):
    with pytest.raises(ValueError, match="even height and width; got 3x4"):
        pool(jnp.zeros((1, 3, 4, 1)))


@pytest.mark.parametrize("dilation", [1, 4])
def test_max_pool_2x2_dense_equals_max_pool_at_all_offsets(dilation):
    # Few values, so that windows have ties.
    x = jnp.round(normal(0, 2, 4 * dilation, 5 * dilation, 3))

    def of_every_offset(x):
        # Pixels `dilation` apart are neighbours in a tile.
        tiles = [[x[:, i::dilation, j::dilation] for j in range(dilation)] for i in range(dilation)]
        pooled = [[nn.max_pool(tile, (2, 2), (1, 1)) for tile in row] for row in tiles]
        y = jnp.stack([jnp.stack(row, axis=3) for row in pooled], axis=2)
        return y.reshape(2, 3 * dilation, 4 * dilation, 3)

    actual = jax.jit(lambda x: value_and_gradients(lambda x: max_pool_2x2_dense(x, dilation), x))(x)
    expected = jax.jit(lambda x: value_and_gradients(of_every_offset, x))(x)
    assert_close(actual, expected, atol=0)


# Few different values, so that every kind of tie occurs.
WINDOWS = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=48, max_size=48)


@given(WINDOWS)
def test_max_pool_2x2_positions_equal_numpy_argmax(values):
    x = np.asarray(values, np.float32).reshape(1, 4, 6, 2)
    windows = x.reshape(1, 2, 2, 3, 2, 2).transpose(0, 1, 3, 5, 2, 4).reshape(1, 2, 3, 2, 4)
    pooled, positions = _pool(x)
    np.testing.assert_array_equal(pooled, windows.max(axis=-1))
    np.testing.assert_array_equal(positions, windows.argmax(axis=-1))
    assert positions.dtype == np.uint8


_pool = jax.jit(max_pool_2x2_positions)


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (1, 2)])
def test_max_pool_3x3_equals_nn_max_pool(size):
    # Few different values: nearly every window has ties.
    x = jnp.round(normal(0, 2, *size, 3))

    def linens(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    actual, expected = (jax.jit(partial(value_and_gradients, pool))(x) for pool in (max_pool_3x3, linens))
    assert_close(actual, expected, atol=0)


@pytest.mark.parametrize(
    ("size", "stride", "dilation"), [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 4), (7, 2, 1)]
)
def test_conv_equals_numpy_with_zero_padding(size, stride, dilation):
    x, kernel, bias = normal(0, 1, 9, 6, 2), normal(1, size, size, 2, 3), normal(2, 3)
    conv = Conv(3, size, stride, dilation, use_bias=True)
    actual = conv.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    reach = dilation * (size // 2)
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    taps = dilation * np.arange(size)
    rows, columns = np.arange(0, 9, stride), np.arange(0, 6, stride)
    windows = padded[:, rows[:, None] + taps][:, :, :, columns[:, None] + taps]  # [B, H, k, W, k, C]
    np.testing.assert_allclose(actual, np.einsum("bhiwjc,ijcf->bhwf", windows, kernel) + bias, atol=1e-5, rtol=1e-5)


def test_separable_conv3x3_equals_conv_of_the_product_kernel():
    x, depthwise, pointwise = normal(0, 2, 6, 7, 4), normal(1, 3, 3, 4), normal(2, 1, 1, 4, 5)
    conv = SeparableConv3x3(5, dilation=2)
    shapes = jax.tree.map(jnp.shape, conv.init(jax.random.key(0), x)["params"])
    assert shapes == {"depthwise": (3, 3, 4), "pointwise": {"kernel": (1, 1, 4, 5)}}
    actual = jax.jit(conv.apply)({"params": {"depthwise": depthwise, "pointwise": {"kernel": pointwise}}}, x)
    whole = Conv(5, dilation=2).apply({"params": {"kernel": depthwise[..., None] * pointwise}}, x)
    np.testing.assert_allclose(actual, whole, atol=1e-4)


@pytest.mark.parametrize("conv", [Conv(64), SeparableConv3x3(64)], ids=["full", "separable"])
def test_initial_conv_and_separable_conv_keep_the_scale_under_relu(conv):
    x = normal(0, 1, 24, 24, 32)
    y, _ = jax.jit(conv.init_with_output)(jax.random.key(1), x)
    np.testing.assert_allclose((y**2).mean(), 2 * (x**2).mean(), rtol=0.3)


@pytest.mark.parametrize(("norm", "biased"), [("group", False), ("none", True)])
def test_conv_norm_has_a_bias_only_without_a_norm(norm, biased):
    for separable in (False, True):
        block = ConvNorm(4, separable=separable, norm=norm)
        params = jax.eval_shape(partial(block.init, train=False), jax.random.key(0), jnp.zeros((1, 4, 4, 2)))["params"]
        assert ("bias" in params["conv"].get("pointwise", params["conv"])) == biased


@pytest.mark.parametrize(
    ("side", "stride", "dilation", "size"),
    [(3, 1, 1, (5, 6)), (3, 1, 3, (7, 4)), (3, 1, 6, (3, 3)), (3, 2, 1, (6, 5)), (5, 2, 1, (7, 8)), (5, 1, 2, (1, 4))],
)
def test_depthwise_conv_equals_grouped_convolution(side, stride, dilation, size):
    x, kernel = normal(0, 2, *size, 5), normal(1, side, side, 1, 5)
    strides, dilations = (stride, stride), (dilation, dilation)

    def grouped(x, kernel):
        fields = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 5}
        return lax.conv_general_dilated(x, kernel, strides, "SAME", rhs_dilation=dilations, **fields)

    def ours(x, kernel):
        return depthwise_conv(x, kernel, strides, rhs_dilation=dilations)

    actual, expected = (jax.jit(lambda x, k, f=f: value_and_gradients(f, x, k))(x, kernel) for f in (ours, grouped))
    assert_close(actual, expected, atol=1e-4)
