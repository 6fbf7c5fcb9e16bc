from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.layout import Layout
from segjax.models.norm import BatchNorm, Norm


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=1e-5)


IMAGES, TARGET = 2 + 3 * normal(3, 3, 4, 8, 5), normal(4, 3, 4, 8, 5)


def everything(norm, images, target):
    """Values, new statistics, and the gradients of parameters and images."""
    params = {"scale": jnp.linspace(0.5, 2.0, 5), "bias": jnp.linspace(-1.0, 1.0, 5)}
    statistics = {"mean": jnp.linspace(1.0, 3.0, 5), "var": jnp.linspace(4.0, 12.0, 5)}

    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(params, images):
        y, updated = norm({"params": params, "batch_stats": statistics}, images)
        return (y * target).sum(), (y, updated)

    (_, (y, updated)), (of_params, of_images) = jax.jit(loss)(params, images)
    return {"y": y, "statistics": updated, "of_params": of_params, "of_images": of_images}


@pytest.mark.parametrize("layout", [Layout(), Layout(columns=4), Layout(columns=2, strips=2)])
@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_is_linens_whatever_the_layout(layout, train):
    def linens(variables, x):
        norm = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, use_fast_variance=False)
        return norm.apply(variables, x, mutable=["batch_stats"])

    def ours(variables, x):
        return BatchNorm(layout=layout).apply(variables, x, train, mutable=["batch_stats"])

    expected = everything(linens, IMAGES, TARGET)
    actual = everything(ours, layout.lay(IMAGES), layout.lay(TARGET))
    actual |= {name: layout.flat(actual[name]) for name in ("y", "of_images")}
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5), actual, expected)


def test_group_norm_of_a_laid_out_image_is_that_of_the_image():
    images, layout = jnp.tile(IMAGES, 2), Layout(columns=4, strips=2)
    norm = Norm("group", groups=2)
    variables = norm.init(jax.random.key(0), images, train=True)
    expected = norm.apply(variables, images, train=True)
    laid_out = norm.clone(layout=layout).apply(variables, layout.lay(images), train=True)
    np.testing.assert_allclose(layout.flat(laid_out), expected, rtol=1e-6)


def test_batch_norm_of_half_precision_keeps_its_statistics_in_float32():
    images = jnp.full((2, 16, 32, 1), 1.0, jnp.bfloat16).at[:, :, ::2].set(1.0 + 2**-7)
    norm = BatchNorm(dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), images, False)
    y, updated = norm.apply(variables, images, True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * (1 + 2**-8), rtol=1e-6)


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
