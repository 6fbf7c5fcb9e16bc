"""Packed layers and the packed U-Net: the values, statistics and gradients of the plain ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import Conv3x3, ConvTranspose2x2, Layout, Norm, PackedUNet, UNet, max_pool_2x2
from segjax.models.packed_unet import (
    PackedConv3x3,
    PackedConvTranspose2x2,
    PackedNorm,
    conv3x3_laid_out,
    max_pool_2x2_packed,
)


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


def value_and_gradients(function, *arguments):
    """Returns the value of `function`, and the gradients of a fixed projection of it."""

    @jax.jit
    def both(*arguments):
        y, pull_back = jax.vjp(function, *arguments)
        return y, pull_back(drawn(*y.shape))

    return both(*arguments)


def convolve(x, kernel, padding):
    return Conv3x3(kernel.shape[-1], padding).apply({"params": {"kernel": kernel}}, x)


def assert_close(actual, expected, atol=1e-4):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=atol), actual, expected)


def test_layout_puts_columns_into_channels_and_strips_into_the_batch():
    x = drawn(2, 6, 8, 5)
    laid = Layout(columns=4, strips=3).lay(x)
    np.testing.assert_array_equal(laid[3 + 2, 1, 1, 5:10], x[1, 5, 5])
    np.testing.assert_array_equal(Layout(columns=4, strips=3).flat(laid), x)


@pytest.mark.parametrize("layout", [Layout(columns=4), Layout(strips=4)])
def test_layout_rejects_sizes_that_are_not_multiples(layout):
    with pytest.raises(ValueError, match=rf"6×6 pixels cannot be laid out in {layout.strips} strips and packed by"):
        layout.lay(drawn(1, 6, 6, 1))


@pytest.mark.parametrize(
    ("layout", "width", "padding"),
    [
        ((1, 1), 5, "reflect"),
        ((2, 1), 2, "reflect"),
        ((4, 1), 12, "reflect"),
        ((1, 4), 5, "reflect"),
        ((1, 2), 2, "zeros"),
        ((2, 4), 6, "reflect"),
    ],
)
def test_conv3x3_laid_out_equals_plain_convolution(layout, width, padding):
    layout = Layout(*layout)

    def laid_out(x, kernel):
        return layout.flat(conv3x3_laid_out(layout.lay(x), kernel, layout, padding=padding))

    x, kernel = drawn(2, 8, width, 3), drawn(3, 3, 3, 5)
    assert_close(
        value_and_gradients(laid_out, x, kernel), value_and_gradients(partial(convolve, padding=padding), x, kernel)
    )


def test_packed_conv3x3_of_several_arrays_equals_that_of_their_concatenation():
    layout = Layout(columns=2, strips=2)
    conv = PackedConv3x3(2, layout=layout)

    def in_parts(a, b, kernel):
        return layout.flat(conv.apply({"params": {"kernel": kernel}}, [layout.lay(a), layout.lay(b)]))

    def whole(a, b, kernel):
        return convolve(jnp.concatenate([a, b], axis=-1), kernel, "reflect")

    arguments = drawn(1, 4, 6, 3), drawn(1, 4, 6, 1) + 1, drawn(3, 3, 4, 2)
    assert_close(value_and_gradients(in_parts, *arguments), value_and_gradients(whole, *arguments))


def test_conv3x3_laid_out_second_derivatives():
    packed = Layout(columns=2)
    x, kernel = drawn(1, 3, 4, 1), drawn(3, 3, 1, 1)

    def energy(x):
        return (conv3x3_laid_out(x, kernel, packed, padding="reflect") ** 3).sum()

    gradient, step = jax.grad(energy), drawn(1, 3, 2, 2)
    forward = jax.jit(lambda x: jax.jvp(gradient, (x,), (step,))[1])(packed.lay(x))
    assert_close(forward, jax.jit(jax.grad(lambda x: (gradient(x) * step).sum()))(packed.lay(x)), atol=1e-3)


@pytest.mark.parametrize("columns", [2, 4])
def test_max_pool_2x2_packed_equals_max_pool_2x2_in_ties_too(columns):
    def packed(x):
        return Layout(columns // 2).flat(max_pool_2x2_packed(Layout(columns).lay(x), columns))

    x = jnp.round(drawn(2, 4, 8, 3))  # with many ties
    assert_close(value_and_gradients(packed, x), value_and_gradients(max_pool_2x2, x), atol=0)


@pytest.mark.parametrize("columns", [1, 2])
def test_packed_conv_transpose_equals_conv_transpose(columns):
    plain, packed = ConvTranspose2x2(3), PackedConvTranspose2x2(3, columns=columns)
    params = {"params": {"kernel": drawn(2, 2, 5, 3), "bias": drawn(3)}}
    x = drawn(2, 3, 4, 5)
    actual = value_and_gradients(
        lambda v, x: Layout(2 * columns).flat(packed.apply(v, Layout(columns).lay(x))), params, x
    )
    assert_close(actual, value_and_gradients(plain.apply, params, x))


@pytest.mark.parametrize(("kind", "train"), [("batch", True), ("batch", False), ("group", True), ("none", True)])
def test_packed_norm_equals_norm(kind, train):
    layout = Layout(columns=2, strips=2)
    x, plain, packed = 2 + 3 * drawn(3, 4, 8, 6), Norm(kind), PackedNorm(kind, layout=layout)
    variables = jax.tree.map(lambda leaf: leaf + 0.5, plain.init(jax.random.key(0), x, train=False))

    def everything(norm, images, target):
        def loss(variables, images):
            y, updated = norm.apply(variables, images, train, mutable=["batch_stats"])
            return (y * target).sum(), (y, updated)

        gradients, (y, updated) = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, images)
        return {"y": y, "updated": updated, "of_variables": gradients[0], "of_images": gradients[1]}

    target = drawn(3, 4, 8, 6)
    actual = everything(packed, layout.lay(x), layout.lay(target))
    actual |= {name: layout.flat(actual[name]) for name in ("y", "of_images")}
    assert_close(actual, everything(plain, x, target), atol=2e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pack": 3}, r"pack must be a power of two, at most 2\^depth = 4; got 3"),
        ({"pack": 8}, r"pack must be a power of two, at most 2\^depth = 4; got 8"),
        ({"strips": 0}, "strips must be at least 1; got 0"),
        ({"upsample": "cubic"}, "upsample must be one of .* got 'cubic'"),
    ],
)
def test_packed_unet_rejects_wrong_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        PackedUNet(3, width=4, depth=2, **fields).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)


# (columns, strips) and other fields.
UNETS = {
    "reflection, dropout in every block": ((2, 4), {"deep_dropout": 1}),
    "strided, pixel shuffle, group norm": (
        (2, 2),
        {"downsample": "stride", "upsample": "pixel_shuffle", "norm": "group", "padding": "zeros"},
    ),
    "two levels, multiscale, max unpooling, no norm, rematerialized": (
        (4, 2),
        {
            "depth": 2,
            "max_width": 6,
            "padding": "zeros",
            "upsample": "max_unpool",
            "multiscale": True,
            "norm": "none",
            "remat": True,
        },
    ),
}


def test_packed_unet_too_low_for_strips_is_not_cut():
    model, images = PackedUNet(3, width=4, depth=1, pack=2, strips=16), drawn(2, 16, 22, 3)
    output = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False)[0])
    assert output.logits.shape == (2, 16, 22, 3)


@pytest.mark.parametrize(
    "name", [name if "reflection" in name else pytest.param(name, marks=pytest.mark.slow) for name in UNETS]
)
def test_packed_unet_equals_unet_in_parameters_statistics_values_and_gradients(name):
    layout, fields = UNETS[name]
    fields, images = {"num_classes": 3, "width": 4, "depth": 1, **fields}, drawn(2, 16, 22, 3)
    model, laid_out = UNet(**fields), PackedUNet(pack=layout[0], strips=layout[1], **fields)
    rngs = {"dropout": jax.random.key(5)}

    def names_and_shapes(model):
        return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

    variables = jax.tree.map(lambda leaf: 0.3 * drawn(*leaf.shape), names_and_shapes(model))
    assert names_and_shapes(laid_out) == names_and_shapes(model)

    @partial(jax.jit, static_argnums=0)
    @partial(jax.grad, argnums=1, has_aux=True)
    def step(model, params):
        output, updated = model.apply(
            {**variables, "params": params}, images, train=True, rngs=rngs, mutable=["batch_stats"]
        )
        return (output.logits * drawn(*output.logits.shape)).sum(), (output, updated)

    gradient, (expected, statistics) = step(model, variables["params"])
    packed_gradient, (output, updated) = step(laid_out, variables["params"])
    assert_close((output, updated), (expected, statistics), atol=1e-4)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    assert_close(packed_gradient, gradient, atol=1e-5 * largest)
