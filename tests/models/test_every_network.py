"""The contract of `Network`, tested on every network."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax import export

from segjax.models import (
    FCN,
    DeepLabV2,
    DeepLabV3Plus,
    EncoderUNet,
    PackedUNet,
    PatchClassifier,
    SegNet,
    SegNetBasic,
    UNet,
    network,
)

# Small; each kind of layer occurs once.
NETWORKS = {
    "patch classifier": PatchClassifier(3, width=4, depth=1),
    "fcn": FCN(3, width=4, hidden=8),
    "segnet": SegNet(3, width=4),
    "segnet-basic": SegNetBasic(3, width=4),
    "unet": UNet(3, width=4, depth=1, padding="zeros"),
    "unet, reflected": UNet(3, width=4, depth=1),
    "unet, packed": PackedUNet(3, width=4, depth=1, padding="zeros", pack=2),
    "unet, strided": UNet(3, width=4, depth=1, padding="zeros", downsample="stride", upsample="nearest"),
    "unet, unpooled": UNet(3, width=4, depth=1, padding="zeros", upsample="max_unpool", multiscale=True),
    "resnet unet": EncoderUNet(3, width=4),
    "efficientnet unet": EncoderUNet(3, width=4, encoder="efficientnet_lite0", multiscale=True),
    "deeplab v2": DeepLabV2(3, encoder_depth=18, width=4),
    "deeplab v3+": DeepLabV3Plus(3, encoder_depth=18, width=4, channels=8, low=4),
}
KEY = jax.random.key(4)
SIZE = (45, 67)
every_network = pytest.mark.parametrize("model", NETWORKS.values(), ids=NETWORKS)
# Networks that take long to compile, or that the tests of their own modules run too.
SLOW = ("fcn", "segnet", "unet", "unet, reflected", "unet, packed", "resnet unet", "efficientnet unet")
SLOW += ("deeplab v3+",)
compiled_network = pytest.mark.parametrize(
    "model",
    [pytest.param(model, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, model in NETWORKS.items()],
)


def random_images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(7).standard_normal(shape), jnp.float32)


IMAGES = random_images(2, *SIZE, 3)


@cache
def start(model):
    """Returns variables like those of `init`, drawn by NumPy because compiling `init` takes longer than the tests."""
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        if path.endswith(("scale", "var")):
            return jnp.ones(leaf.shape)
        if path.endswith(("bias", "mean")):
            return jnp.zeros(leaf.shape)
        return jnp.asarray(rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1])), jnp.float32)

    names = jax.tree_util.keystr
    return jax.tree.map_with_path(lambda path, leaf: drawn(names(path, simple=True), leaf), parameters(model))


@partial(jax.jit, static_argnums=0)
def evaluate(model, variables, images):
    return model.apply(variables, images, train=False)


@cache
def gradients(model):
    variables, target = start(model.clone(remat=False)), random_images(*IMAGES.shape[:3], 3)

    def loss(params):
        output, _ = model.apply({**variables, "params": params}, IMAGES, train=True, mutable=["batch_stats"])
        return (output.logits * target).sum()

    return jax.jit(jax.grad(loss))(variables["params"])


def shapes(model, images=IMAGES, **arguments):
    """Returns the shapes and dtypes of a pass, without compiling it."""
    # Parameters depend neither on dropout nor on the size of the images.
    variables = parameters(model.clone(dropout="none", heads=3, mask="element", deep_dropout=0))
    return jax.eval_shape(partial(model.apply, train=False, **arguments), variables, images)


@cache
def parameters(model):
    return jax.eval_shape(partial(model.init, train=False), KEY, IMAGES)


def paths(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in jax.tree.leaves_with_path(tree)}


@compiled_network
def test_logits_have_the_size_of_images_of_odd_size(model):
    output = evaluate(model, start(model), IMAGES)
    assert output.logits.shape == (*IMAGES.shape[:3], 3)
    assert output.features.shape[:3] == IMAGES.shape[:3]
    assert np.isfinite(output.logits).all()
    assert np.ptp(output.logits, axis=(1, 2)).min() > 0


@every_network
def test_one_pixel_gives_one_pixel_of_logits(model):
    assert shapes(model, random_images(1, 1, 1, 3)).logits.shape == (1, 1, 1, 3)


@every_network
def test_init_apply_and_gradient_under_strict_promotion(model):
    model = model.clone(dropout="sampled", deep_dropout=model.deep_places)

    def everything(images):
        variables = model.init(KEY, images, train=True)

        def loss(params):
            output, updated = model.apply(
                {**variables, "params": params}, images, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"]
            )
            return output.logits.sum() + output.mc_logits.sum(), updated

        analytic = model.clone(dropout="analytic", deep_dropout=0).apply(variables, images, train=False)
        return jax.grad(loss, has_aux=True)(variables["params"]), analytic

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        gradients, analytic = jax.eval_shape(everything, IMAGES)
    assert analytic.logit_variance.shape == (*IMAGES.shape[:3], 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.float32)}


@every_network
def test_symbolic_sizes_are_valid_from_the_minimum(model, monkeypatch):
    # A symbolic size is not an `int`, which the annotations require of every size.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    # A patch is reflected around the image, and an image of symbolic size cannot be reflected repeatedly.
    least = model.patch // 2 + 1 if isinstance(model, PatchClassifier) else model.minimum
    n, constraints = model.multiple, [f"{model.multiple}*{side} >= {least}" for side in "hw"]
    b, height, width = export.symbolic_shape(f"b, {n}*h, {n}*w", constraints=constraints)
    traced = shapes(model, jax.ShapeDtypeStruct((b, height, width, 3), jnp.float32))
    assert traced.logits.shape == (b, height, width, 3)


@compiled_network
def test_logits_are_the_head_of_the_features(model):
    output = evaluate(model, start(model), IMAGES)
    linear = start(model)["params"]["head"]["linear"]
    expected = output.features @ linear["kernel"] + linear["bias"]
    np.testing.assert_allclose(output.logits, expected, atol=1e-5 * np.abs(expected).max() + 1e-6)


@compiled_network
def test_head_bias_alone_gives_the_prior(model):
    variables = start(model)
    prior = jnp.array([-4.0, 0.5, 2.0])
    linear = {"kernel": jnp.zeros_like(variables["params"]["head"]["linear"]["kernel"]), "bias": prior}
    params = {**variables["params"], "head": {"linear": linear}}
    logits = evaluate(model, {**variables, "params": params}, IMAGES).logits
    np.testing.assert_allclose(logits, np.broadcast_to(prior, logits.shape), rtol=1e-6)


@compiled_network
def test_examples_are_independent_in_evaluation(model):
    swapped = evaluate(model, start(model), IMAGES[::-1]).logits
    logits = evaluate(model, start(model), IMAGES).logits
    np.testing.assert_allclose(swapped[::-1], logits, atol=1e-5 * np.abs(logits).max())


@compiled_network
def test_gradient_reaches_every_parameter(model):
    found = {path: bool(np.isfinite(g).all() and np.any(g)) for path, g in paths(gradients(model)).items()}
    assert [path for path, reached in found.items() if not reached] == []


@every_network
def test_remat_dropout_dtype_and_axis_name_do_not_change_the_parameters(model):
    fields = {"remat": True, "axis_name": "devices", "dtype": jnp.bfloat16}
    other = model.clone(dropout="sampled", heads=5, deep_dropout=model.deep_places, **fields)
    assert parameters(other) == parameters(model)


@every_network
def test_remat_computes_blocks_again(model):
    forward = partial(model.clone(remat=True).apply, train=True, mutable=["batch_stats"])
    assert "remat" in str(jax.make_jaxpr(forward)(parameters(model), IMAGES))


@every_network
def test_bfloat16_network_has_float32_logits_and_samples(model):
    half = model.clone(dtype=jnp.bfloat16, dropout="sampled", heads=5, mask="channel")
    output = shapes(half, rngs={"dropout": KEY})
    assert output.features.dtype == jnp.bfloat16
    assert output.logits.dtype == output.mc_logits.dtype == jnp.float32
    assert output.mc_logits.shape == (5, *output.logits.shape)


@every_network
def test_only_batch_norm_has_batch_statistics(model):
    assert set(parameters(model)) == {"params", "batch_stats"}
    assert set(parameters(model.clone(norm="group"))) == {"params"}


@every_network
def test_deep_dropout_adds_dropout_at_each_place(model, monkeypatch):
    keys = []

    def spy(x, rate, keys_of_place):
        keys.append(keys_of_place)
        return x

    monkeypatch.setattr(network, "dropout", spy)
    counts = []
    for deep in sorted({min(1, model.deep_places), model.deep_places}):
        keys.clear()
        shapes(model.clone(deep_dropout=deep), rngs={"dropout": KEY})
        counts.append(len(keys))
    assert (counts[0] > 0) == (model.deep_places > 0)
    assert counts == sorted(set(counts))


@every_network
def test_parameter_names_are_readable(model):
    # Linen's own names are Conv_0, Dense_1.
    assert [path for path in paths(parameters(model)) if re.search(r"(^|/)[A-Z]\w*_\d+(/|$)", path)] == []
    for section in ("head/linear/kernel", "head/linear/bias"):
        assert f"params/{section}" in paths(parameters(model))
