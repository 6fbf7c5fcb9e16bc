import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segjax.models.convolution import conv3x3_reflect, conv3x3_zeros, depthwise3x3

# Inputs and outputs that take each road of the kernel's gradient (turned, packed, plain), and sizes at their edges.
SHAPES = [(32, 16, 6, 8), (32, 3, 2, 2), (16, 16, 6, 8), (8, 9, 2, 2), (16, 16, 5, 7), (3, 16, 6, 8), (16, 32, 4, 4)]


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_close(actual, expected, atol=1e-5):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=atol, rtol=1e-5), actual, expected)


def value_and_gradients(function, *args):
    """The output, and the gradients of a generic scalar of it with respect to every argument."""
    output, pull_back = jax.vjp(function, *args)
    return output, pull_back(normal(99, *output.shape))


def xla(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("images", [0, 2, 3])
@pytest.mark.parametrize(("channels", "features", "height", "width"), SHAPES)
def test_convolution_and_its_gradients_are_xlas(channels, features, height, width, images):
    x, kernel = normal(0, images, height, width, channels), normal(1, 3, 3, channels, features)
    actual = jax.jit(lambda x, k: value_and_gradients(conv3x3_zeros, x, k))(x, kernel)
    assert_close(actual, jax.jit(lambda x, k: value_and_gradients(xla, x, k))(x, kernel), atol=1e-4)


@pytest.mark.parametrize(("channels", "features", "height", "width"), SHAPES)
def test_convolution_has_forward_and_second_derivatives(channels, features, height, width):
    x, kernel = normal(0, 1, height, width, channels), normal(1, 3, 3, channels, features) / channels
    dx, dkernel = normal(2, *x.shape), normal(3, *kernel.shape) / channels

    def derivatives(convolution):
        def gradient(kernel):
            return jax.grad(lambda kernel: (convolution(x, kernel) ** 2).mean())(kernel)

        return jax.jvp(convolution, (x, kernel), (dx, dkernel)), jax.jvp(gradient, (kernel,), (dkernel,))

    assert_close(jax.jit(lambda: derivatives(conv3x3_zeros))(), jax.jit(lambda: derivatives(xla))(), atol=1e-4)


@pytest.mark.parametrize("channels", [32, 16])
def test_gradient_of_a_kernel_maps_over_kernels(channels):
    x, kernels = normal(0, 2, 4, 4, channels), normal(1, 3, 3, 3, channels, 12)

    def gradients(convolution):
        return jax.vmap(jax.grad(lambda kernel: (convolution(x, kernel) ** 2).mean()))(kernels)

    assert_close(jax.jit(lambda: gradients(conv3x3_zeros))(), jax.jit(lambda: gradients(xla))(), atol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_only_a_cpu_takes_another_road_to_the_kernels_gradient(platform):
    def gradient(convolution):
        traced = jax.jit(jax.grad(lambda kernel: convolution(jnp.ones((2, 6, 8, 32)), kernel).sum())).trace(
            jax.ShapeDtypeStruct((3, 3, 32, 16), jnp.float32)
        )
        return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.reverse")

    assert (gradient(conv3x3_zeros) > gradient(xla)) == (platform == "cpu")


@pytest.mark.parametrize("size", [(2, 2), (2, 5), (3, 2), (7, 6)])
def test_reflected_convolution_is_that_of_the_reflected_input(size):
    x, kernel = normal(0, 2, *size, 3), normal(1, 3, 3, 3, 4)

    def plain(x, kernel):
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        return lax.conv_general_dilated(padded, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    actual = jax.jit(lambda x, k: value_and_gradients(conv3x3_reflect, x, k))(x, kernel)
    assert_close(actual, jax.jit(lambda x, k: value_and_gradients(plain, x, k))(x, kernel), atol=1e-4)


def test_reflected_convolution_has_second_derivatives():
    x, kernel = normal(0, 1, 3, 3, 1), normal(1, 3, 3, 1, 1)

    def energy(x):
        return (conv3x3_reflect(x, kernel) ** 3).sum()

    gradient, step = jax.grad(energy), normal(2, *x.shape)
    _, along = jax.jvp(gradient, (x,), (step,))
    assert_close(along, jax.grad(lambda x: (gradient(x) * step).sum())(x), atol=1e-3)


def test_reflected_convolution_of_one_row_is_an_error():
    with pytest.raises(ValueError, match="at least 2; got 1x4"):
        conv3x3_reflect(jnp.zeros((1, 1, 4, 1)), jnp.zeros((3, 3, 1, 1)))


@pytest.mark.parametrize(("dilation", "size"), [(1, (5, 6)), (3, (7, 4)), (6, (3, 3))])
def test_depthwise_convolution_and_its_gradients_are_xlas(dilation, size):
    x, kernel = normal(0, 2, *size, 5), normal(1, 3, 3, 5)

    def grouped(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel[:, :, None],
            (1, 1),
            [(dilation, dilation)] * 2,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=5,
        )

    def ours(x, kernel):
        return depthwise3x3(x, kernel, dilation)

    actual, expected = (jax.jit(lambda x, k, f=f: value_and_gradients(f, x, k))(x, kernel) for f in (ours, grouped))
    assert_close(actual, expected, atol=1e-4)
