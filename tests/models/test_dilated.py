from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.dilated import Conv, ConvNorm, SeparableConv3x3


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(
    ("size", "stride", "dilation"), [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 4), (7, 2, 1)]
)
def test_convolutions_take_every_stride_th_pixel_and_see_zeros_beyond_the_edge(size, stride, dilation):
    x, kernel, bias = normal(0, 1, 9, 6, 2), normal(1, size, size, 2, 3), normal(2, 3)
    conv = Conv(3, size, stride, dilation, use_bias=True)
    actual = conv.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    reach = dilation * (size // 2)
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    taps = dilation * np.arange(size)
    rows, columns = np.arange(0, 9, stride), np.arange(0, 6, stride)
    windows = padded[:, rows[:, None] + taps][:, :, :, columns[:, None] + taps]  # [B, H, k, W, k, C]
    np.testing.assert_allclose(actual, np.einsum("bhiwjc,ijcf->bhwf", windows, kernel) + bias, atol=1e-5, rtol=1e-5)


def test_a_separable_convolution_is_the_full_one_of_the_kernels_product():
    x, depthwise, pointwise = normal(0, 2, 6, 7, 4), normal(1, 3, 3, 4), normal(2, 1, 1, 4, 5)
    conv = SeparableConv3x3(5, dilation=2)
    shapes = jax.tree.map(jnp.shape, conv.init(jax.random.key(0), x)["params"])
    assert shapes == {"depthwise": (3, 3, 4), "pointwise": {"kernel": (1, 1, 4, 5)}}
    actual = jax.jit(conv.apply)({"params": {"depthwise": depthwise, "pointwise": {"kernel": pointwise}}}, x)
    whole = Conv(5, dilation=2).apply({"params": {"kernel": depthwise[..., None] * pointwise}}, x)
    np.testing.assert_allclose(actual, whole, atol=1e-4)


@pytest.mark.parametrize("conv", [Conv(64), SeparableConv3x3(64)], ids=["full", "separable"])
def test_initial_kernels_keep_the_scale_under_relu(conv):
    x = normal(0, 1, 24, 24, 32)
    y, _ = jax.jit(conv.init_with_output)(jax.random.key(1), x)
    np.testing.assert_allclose((y**2).mean(), 2 * (x**2).mean(), rtol=0.3)


@pytest.mark.parametrize(("norm", "biased"), [("group", False), ("none", True)])
def test_there_is_a_bias_only_without_a_norm(norm, biased):
    for separable in (False, True):
        block = ConvNorm(4, separable=separable, norm=norm)
        params = jax.eval_shape(partial(block.init, train=False), jax.random.key(0), jnp.zeros((1, 4, 4, 2)))["params"]
        assert ("bias" in params["conv"].get("pointwise", params["conv"])) == biased
