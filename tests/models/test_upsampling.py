from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segjax.models import ConvTransposeBilinear
from segjax.models.layers import upsample_bilinear


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_close(actual, expected, atol=1e-5):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=atol, rtol=1e-5), actual, expected)


def value_and_gradients(function, *args):
    """The output, and the gradients of a generic scalar of it with respect to every argument."""
    output, pull_back = jax.vjp(function, *args)
    return output, pull_back(normal(99, *output.shape))


@pytest.mark.parametrize("stride", [2, 8])
def test_a_new_bilinear_transposed_convolution_is_bilinear_upsampling_edges_included(stride):
    x = normal(0, 2, 3, 5, 4)
    y, _ = jax.jit(ConvTransposeBilinear(stride).init_with_output)(jax.random.key(0), x)
    assert_close(y, upsample_bilinear(x, stride))


def test_bilinear_transposed_convolution_is_the_transpose_of_the_convolutions_matrix():
    # Of each channel alone, on the image with its edges repeated; the convolution has the kernel's stride and size.
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
def test_bilinear_transposed_convolution_needs_an_even_stride(stride):
    with pytest.raises(ValueError, match=f"even and at least 2; got {stride}"):
        ConvTransposeBilinear(stride).init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
