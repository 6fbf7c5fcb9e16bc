"""Layers of packed columns: the numbers and the gradients of the layers themselves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import ConvTranspose2x2, UNet, max_pool_2x2
from segjax.models.convolution import conv3x3_reflect, conv3x3_zeros
from segjax.models.packed import conv3x3_packed, max_pool_2x2_packed, pack, unpack

PLAIN = {"zeros": conv3x3_zeros, "reflect": conv3x3_reflect}


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


def value_and_gradients(function, *arguments):
    """`function`'s value, and the gradients of a fixed sum of it."""
    y = function(*arguments)
    return y, jax.grad(lambda *a: (function(*a) * drawn(*y.shape)).sum(), argnums=tuple(range(len(arguments))))(
        *arguments
    )


def assert_close(actual, expected, atol=1e-4):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=atol), actual, expected)


def test_packing_puts_neighbours_side_by_side_and_unpacking_undoes_it():
    x = drawn(2, 3, 8, 5)
    packed = pack(x, 4)
    np.testing.assert_array_equal(packed[:, :, 1, 5:10], x[:, :, 5])
    np.testing.assert_array_equal(unpack(packed, 4), x)


def test_a_width_that_cannot_be_packed_is_named():
    with pytest.raises(ValueError, match="a width of 6 cannot be packed by 4 columns; expected a multiple of 4"):
        pack(drawn(1, 2, 6, 1), 4)


@pytest.mark.parametrize("padding", PLAIN)
@pytest.mark.parametrize(("columns", "width"), [(2, 2), (2, 8), (4, 4), (4, 12)])
def test_a_packed_convolution_is_the_convolution(padding, columns, width):
    def packed(x, kernel):
        return unpack(conv3x3_packed(pack(x, columns), kernel, columns, padding=padding), columns)

    x, kernel = drawn(2, 4, width, 3), drawn(3, 3, 3, 5)
    assert_close(value_and_gradients(packed, x, kernel), value_and_gradients(PLAIN[padding], x, kernel))


def test_a_packed_convolution_takes_concatenated_parts():
    def packed(a, b, kernel):
        both = jnp.concatenate([pack(a, 2), pack(b, 2)], axis=-1)
        return unpack(conv3x3_packed(both, kernel, 2, padding="reflect", parts=2), 2)

    def plain(a, b, kernel):
        return conv3x3_reflect(jnp.concatenate([a, b], axis=-1), kernel)

    arguments = drawn(1, 4, 6, 3), drawn(1, 4, 6, 3) + 1, drawn(3, 3, 6, 2)
    assert_close(value_and_gradients(packed, *arguments), value_and_gradients(plain, *arguments))


def test_a_packed_convolution_has_second_derivatives():
    x, kernel = drawn(1, 3, 4, 1), drawn(3, 3, 1, 1)

    def energy(x):
        return (conv3x3_packed(x, kernel, 2, padding="reflect") ** 3).sum()

    gradient, step = jax.grad(energy), drawn(1, 3, 2, 2)
    _, along = jax.jvp(gradient, (pack(x, 2),), (step,))
    assert_close(along, jax.grad(lambda x: (gradient(x) * step).sum())(pack(x, 2)), atol=1e-3)


@pytest.mark.parametrize("columns", [2, 4])
def test_packed_max_pooling_is_max_pooling_and_of_equal_maxima_the_same_takes_the_gradient(columns):
    def packed(x):
        return unpack(max_pool_2x2_packed(pack(x, columns), columns), columns // 2)

    x = jnp.round(drawn(2, 4, 8, 3))  # with many equal ones
    assert_close(value_and_gradients(packed, x), value_and_gradients(max_pool_2x2, x), atol=0)


@pytest.mark.parametrize("columns", [1, 2])
def test_a_packed_transposed_convolution_is_the_transposed_convolution(columns):
    plain, packed = ConvTranspose2x2(3), ConvTranspose2x2(3, columns=columns)
    params = {"params": {"kernel": drawn(2, 2, 5, 3), "bias": drawn(3)}}
    x = drawn(2, 3, 4, 5)
    actual = value_and_gradients(lambda v, x: unpack(packed.apply(v, pack(x, columns)), 2 * columns), params, x)
    assert_close(actual, value_and_gradients(plain.apply, params, x))


UNETS = {
    "two levels, reflected": (4, {"depth": 2}),
    "two levels, dropout in every block": (4, {"depth": 2, "deep_dropout": 2, "padding": "zeros"}),
    "one level of two": (2, {"depth": 2, "padding": "zeros", "dropout": "sampled", "heads": 2}),
    "strided, pixel shuffle": (2, {"downsample": "stride", "upsample": "pixel_shuffle"}),
    "max unpooling": (2, {"upsample": "max_unpool"}),
    "group norm": (2, {"norm": "group"}),
    "no norm": (2, {"norm": "none"}),
    "rematerialised": (2, {"remat": True}),
}


@pytest.mark.parametrize(("columns", "fields"), UNETS.values(), ids=UNETS)
def test_a_packed_unet_has_the_parameters_numbers_and_gradients_of_the_unet(columns, fields):
    model, images = UNet(3, width=4, **{"depth": 1, **fields}), drawn(2, 13, 30, 3)
    rngs = {"dropout": jax.random.key(5)}

    def names_and_shapes(model):
        return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

    variables = jax.tree.map(lambda leaf: 0.3 * drawn(*leaf.shape), names_and_shapes(model))
    assert names_and_shapes(model.clone(pack=columns)) == names_and_shapes(model)

    @partial(jax.jit, static_argnums=0)
    @partial(jax.grad, argnums=1, has_aux=True)
    def step(model, params):
        output, updated = model.apply(
            {**variables, "params": params}, images, train=True, rngs=rngs, mutable=["batch_stats"]
        )
        return (output.logits * drawn(*output.logits.shape)).sum(), (output, updated)

    of_plain, (expected, statistics) = step(model, variables["params"])
    of_packed, (output, updated) = step(model.clone(pack=columns), variables["params"])
    assert_close((output, updated), (expected, statistics), atol=1e-4)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(of_plain))
    assert_close(of_packed, of_plain, atol=1e-5 * largest)
