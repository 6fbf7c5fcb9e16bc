from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segjax.models.layers import max_pool_2x2_positions, upsample_bilinear
from segjax.models.upsampling import (
    UPSAMPLINGS,
    ConvTranspose2x2,
    ConvTransposeBilinear,
    ConvTransposeOverlapping,
    PixelShuffle2x2,
    bed_of_nails_2x2,
    depth_to_space_2x2,
    max_unpool_2x2,
    upsample_nearest_2x2,
)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_close(actual, expected, atol=1e-5):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=atol, rtol=1e-5), actual, expected)


def value_and_gradients(function, *args):
    """Returns the output, and the gradients of a random projection of it with respect to every argument."""
    output, pull_back = jax.vjp(function, *args)
    return output, pull_back(normal(99, *output.shape))


def reduced(params, x):
    """Returns the 1×1 convolution of a `FixedUpsampling2x2`."""
    return x @ params["reduce"]["kernel"] + params["reduce"]["bias"]


@pytest.mark.parametrize("upsample", UPSAMPLINGS)
def test_upsamplings_double_the_size_in_their_dtype(upsample):
    x = normal(0, 2, 3, 5, 8)
    positions = [jnp.zeros((2, 3, 5, 4), jnp.uint8)] * (upsample == "max_unpool")
    layer = UPSAMPLINGS[upsample](4, dtype=jnp.bfloat16)
    y, variables = jax.jit(layer.init_with_output)(jax.random.key(0), x, *positions)
    assert y.shape == (2, 6, 10, 4)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("upsample", "expected"),
    [
        ("nearest", lambda x: x.repeat(2, axis=1).repeat(2, axis=2)),
        ("bilinear", lambda x: jax.image.resize(x, (1, 6, 10, 2), "linear")),
        ("bed_of_nails", lambda x: jnp.zeros((1, 6, 10, 2)).at[:, ::2, ::2].set(x)),
    ],
)
def test_fixed_upsampling_equals_its_definition(upsample, expected):
    x = normal(0, 1, 3, 5, 4)
    y, variables = UPSAMPLINGS[upsample](2).init_with_output(jax.random.key(0), x)
    assert_close(y, expected(reduced(variables["params"], x)))


@pytest.mark.parametrize("upsample", [upsample_nearest_2x2, bed_of_nails_2x2])
def test_fixed_upsampling_is_the_transpose_of_a_sum_or_a_selection(upsample):
    # <up(x), y> = <x, down(y)>: down sums each block for nearest, and selects the pixel under the nail.
    x, y = normal(0, 1, 3, 2, 2), normal(1, 1, 6, 4, 2)
    blocks = y.reshape(1, 3, 2, 2, 2, 2)
    down = blocks.sum((2, 4)) if upsample is upsample_nearest_2x2 else blocks[:, :, 0, :, 0]
    np.testing.assert_allclose((upsample(x) * y).sum(), (x * down).sum(), rtol=1e-5)


def test_max_unpool_2x2_of_the_lectures_grid():
    grid = jnp.array([[1.0, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]])[None, :, :, None]
    pooled, positions = max_pool_2x2_positions(grid)
    np.testing.assert_array_equal(pooled[0, :, :, 0], [[5, 6], [7, 8]])
    unpooled = max_unpool_2x2(jnp.array([[1.0, 2], [3, 4]])[None, :, :, None], positions)
    np.testing.assert_array_equal(unpooled[0, :, :, 0], [[0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0], [3, 0, 0, 4]])


def unpooled_by_numpy(x, positions):
    y = np.zeros((x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), np.float32)
    for b, i, j, c in np.ndindex(x.shape):
        row, column = divmod(int(positions[b, i, j, c]), 2)
        y[b, 2 * i + row, 2 * j + column, c] = x[b, i, j, c]
    return y


def test_max_unpool_2x2_equals_numpy():
    x, positions = normal(0, 2, 3, 4, 3), jnp.asarray(np.random.default_rng(1).integers(0, 4, (2, 3, 4, 3)), jnp.uint8)
    np.testing.assert_array_equal(max_unpool_2x2(x, positions), unpooled_by_numpy(x, positions))


def test_positions_and_max_unpool_2x2_equal_pytorch():
    with np.load(Path(__file__).parent / "golden" / "unpooling.npz") as stored:
        x, values, pooled, indices, unpooled = (stored[n] for n in ("x", "values", "pooled", "indices", "unpooled"))
    ours, positions = max_pool_2x2_positions(jnp.asarray(x))
    np.testing.assert_array_equal(ours, pooled)
    # PyTorch's index into the plane is row · 10 + column.
    i, j = np.indices((4, 5))[:, :, :, None]
    rows, columns = np.divmod(np.asarray(positions, np.int64), 2)
    np.testing.assert_array_equal((2 * i + rows) * 10 + 2 * j + columns, indices)
    np.testing.assert_array_equal(max_unpool_2x2(jnp.asarray(values), positions), unpooled)


def test_max_unpool_2x2_of_the_maxima_restores_them():
    x = normal(0, 2, 6, 4, 3)

    def there_and_back(x):
        pooled, positions = max_pool_2x2_positions(x)
        return max_unpool_2x2(pooled, positions)

    y, (gradient,) = jax.jit(partial(value_and_gradients, there_and_back))(x)
    np.testing.assert_array_equal(y, jnp.where(y != 0, x, 0))
    # The gradient at a maximum goes back to it; all other gradients are zero.
    np.testing.assert_array_equal(gradient, jnp.where(y != 0, normal(99, *y.shape), 0))
    assert (y != 0).mean() == 0.25


def test_max_unpool_2x2_rejects_positions_of_another_shape():
    with pytest.raises(ValueError, match=r"shape of the pooled values, \(1, 2, 2, 3\); got \(1, 2, 2, 4\)"):
        max_unpool_2x2(jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 4), jnp.uint8))


def test_conv_transpose_2x2_equals_nn_conv_transpose():
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


def test_conv_transpose_2x2_is_the_transpose_of_a_convolution():
    x, kernel = normal(0, 1, 2, 3, 2), normal(1, 2, 2, 2, 5)

    def convolution(y):  # from F = 5 back to C = 2 channels; Linen's kernel is rotated by 180 degrees
        back = kernel[::-1, ::-1].swapaxes(2, 3)
        return lax.conv_general_dilated(y, back, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    matrix = jax.jit(jax.jacobian(convolution))(jnp.zeros((1, 4, 6, 5))).reshape(2 * 3 * 2, 4 * 6 * 5)
    y = ConvTranspose2x2(5).apply({"params": {"kernel": kernel, "bias": jnp.zeros(5)}}, x)
    assert_close(y.ravel(), matrix.T @ x.ravel())


@pytest.mark.parametrize("size", [3, 4])
def test_conv_transpose_overlapping_is_the_transpose_of_a_convolution(size):
    x, kernel = normal(0, 1, 2, 3, 2), normal(1, size, size, 2, 5)
    padding = ((1, size - 3), (1, size - 3))

    def convolution(y):  # from F = 5 back to C = 2 channels
        back = kernel.swapaxes(2, 3)
        return lax.conv_general_dilated(y, back, (2, 2), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    matrix = jax.jit(jax.jacobian(convolution))(jnp.zeros((1, 4, 6, 5))).reshape(2 * 3 * 2, 4 * 6 * 5)
    y = ConvTransposeOverlapping(5, size).apply({"params": {"kernel": kernel, "bias": jnp.zeros(5)}}, x)
    assert_close(y.ravel(), matrix.T @ x.ravel())


def test_conv_transpose_overlapping_of_a_constant():
    x, by_size = jnp.ones((1, 4, 4, 1)), {}
    for size in (3, 4):
        params = {"kernel": jnp.ones((size, size, 1, 1)), "bias": jnp.zeros(1)}
        inner = ConvTransposeOverlapping(1, size).apply({"params": params}, x)[0, 2:4, 2:4, 0]
        by_size[size] = inner.tolist()
    assert by_size == {3: [[1, 2], [2, 4]], 4: [[4, 4], [4, 4]]}


def test_conv_transpose_overlapping_rejects_size_5():
    with pytest.raises(ValueError, match="size of ConvTransposeOverlapping must be 3 or 4; got 5"):
        ConvTransposeOverlapping(1, 5).init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))


@pytest.mark.parametrize("upsample", ["transpose", "transpose3", "transpose4"])
def test_initial_transposed_convolutions_keep_the_variance(upsample):
    x = normal(0, 4, 8, 8, 64)
    y, _ = jax.jit(UPSAMPLINGS[upsample](64).init_with_output)(jax.random.key(1), x)
    np.testing.assert_allclose(y[:, 1:-1, 1:-1].var(), 1.0, rtol=0.1)


def test_depth_to_space_2x2_puts_the_groups_into_a_block():
    x = normal(0, 2, 3, 5, 8)
    y = depth_to_space_2x2(x)
    for group in range(4):
        row, column = divmod(group, 2)
        np.testing.assert_array_equal(y[:, row::2, column::2], x[..., 2 * group : 2 * group + 2])


def test_depth_to_space_2x2_rejects_6_channels():
    with pytest.raises(ValueError, match="multiple of 4 channels; got 6"):
        depth_to_space_2x2(jnp.zeros((1, 2, 2, 6)))


def test_pixel_shuffle_2x2_starts_as_nearest_neighbour_upsampling():
    x = normal(0, 2, 3, 5, 4)
    y, variables = PixelShuffle2x2(6).init_with_output(jax.random.key(1), x)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (4, 24)
    nearest = nn.relu(x @ kernel[:, :6]).repeat(2, axis=1).repeat(2, axis=2)
    assert_close(y, nearest)
    assert np.unique(kernel).size == 4 * 6


def test_initial_pixel_shuffle_2x2_keeps_the_scale():
    x = normal(0, 4, 8, 8, 64)
    y, _ = PixelShuffle2x2(64).init_with_output(jax.random.key(1), x)
    np.testing.assert_allclose((y**2).mean(), (x**2).mean(), rtol=0.15)


@pytest.mark.parametrize("stride", [2, 8])
def test_initial_conv_transpose_bilinear_equals_upsample_bilinear(stride):
    x = normal(0, 2, 3, 5, 4)
    y, _ = jax.jit(ConvTransposeBilinear(stride).init_with_output)(jax.random.key(0), x)
    assert_close(y, upsample_bilinear(x, stride))


def test_conv_transpose_bilinear_is_the_transpose_of_a_convolution():
    # Each channel separately, on the image with its edges repeated; the convolution has the same stride and size.
    x, kernel, s = normal(0, 1, 3, 4, 2), normal(1, 8, 8, 1, 2), 4

    def convolution(y, one):
        return lax.conv_general_dilated(y, one, (s, s), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def transposed(x, kernel):
        around, (b, h, w, _) = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge"), x.shape
        channels = []
        for c in range(2):
            matrix = jax.linear_transpose(
                partial(convolution, one=kernel[..., c : c + 1]), jnp.zeros((b, (h + 3) * s, (w + 3) * s, 1))
            )
            channels.append(matrix(around[..., c : c + 1])[0])
        half = s + s // 2
        return jnp.concatenate(channels, axis=-1)[:, half:-half, half:-half]

    def ours(x, kernel):
        return ConvTransposeBilinear(s).apply({"params": {"kernel": kernel}}, x)

    actual, expected = (jax.jit(partial(value_and_gradients, each))(x, kernel) for each in (ours, transposed))
    assert_close(actual, expected, atol=1e-4)


@pytest.mark.parametrize("stride", [3, 0])
def test_conv_transpose_bilinear_rejects_odd_strides(stride):
    with pytest.raises(ValueError, match=f"even and at least 2; got {stride}"):
        ConvTransposeBilinear(stride).init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
