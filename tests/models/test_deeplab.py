import runpy
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segjax.models import ASPP, DeepLabV2, DeepLabV3Plus, network

GOLDEN = Path(__file__).parent / "golden"
DRAWN = runpy.run_path(str(GOLDEN / "drawn.py"))
V2 = DeepLabV2(3, encoder_depth=18, width=4)
V3 = DeepLabV3Plus(3, encoder_depth=18, width=4, channels=8, low=5)
IMAGES = jax.ShapeDtypeStruct((2, 48, 32, 3), jnp.float32)
ONE_IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
KEY = jax.random.key(0)


@cache
def shapes(model):
    return jax.eval_shape(partial(model.init, train=False), KEY, IMAGES)


def count(model) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(model)["params"]))


def test_v3_plus_parameter_count():
    # smp.DeepLabV3Plus("resnet50", encoder_weights=None, classes=12), version 0.6.0:
    # sum(p.numel() for p in model.parameters()).
    assert count(DeepLabV3Plus(12)) == 26_680_412


def test_v2_parameter_count():
    # The encoder is torchvision's ResNet-18.
    encoder, channels, classes = 11_176_512, 512, 21
    aspp = 4 * 9 * channels * classes
    assert count(DeepLabV2(classes, encoder_depth=18)) == encoder + aspp + classes * classes + classes


@pytest.mark.parametrize(("stride", "rates"), [(8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9))])
def test_v3_plus_default_rates_follow_the_output_stride(stride, rates):
    names = shapes(V3.clone(output_stride=stride))["params"]["aspp"]
    assert {name for name in names if name.startswith("rate")} == {f"rate{rate}" for rate in rates}


def test_v3_plus_default_low_is_the_papers_share():
    for width, depth, low in ((64, 50, 48), (64, 18, 12), (4, 18, 1)):
        model = DeepLabV3Plus(3, encoder_depth=depth, width=width, channels=8)
        assert shapes(model)["params"]["low"]["conv"]["kernel"].shape[-1] == low


def test_v2_initial_features_have_the_same_scale_for_more_rates():
    def variance(rates):
        model, images = V2.clone(aspp=32, rates=rates), jnp.zeros(IMAGES.shape)
        kernel = jax.jit(lambda: model.init(KEY, images, train=False)["params"]["aspp_rate1"]["kernel"])()
        return float(kernel.var()) * len(rates)

    assert variance((1, 2, 3, 4)) == pytest.approx(variance((1,)), rel=0.1)


def test_v2_aspp_is_the_sum_of_its_dilated_convolutions():
    model = V2.clone(aspp=6, rates=(1, 5, 2))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((1, 40, 56, 3)), jnp.float32)
    # Batch statistics have to be positive.
    low = {"params": -0.3, "batch_stats": 0.1}
    variables = {
        kind: jax.tree.map(lambda leaf, low=low[kind]: rng.uniform(low, 0.5, leaf.shape).astype(np.float32), tree)
        for kind, tree in shapes(model).items()
    }

    @jax.jit
    def both(variables):
        output, seen = model.apply(
            variables, images, train=False, capture_intermediates=lambda module, _: module.name in ("encoder", "head")
        )
        x = seen["intermediates"]["encoder"]["__call__"][0][-1]
        total = 0.0
        for rate in (1, 5, 2):
            kernel = variables["params"][f"aspp_rate{rate}"]["kernel"]
            padding, dilation = ((rate, rate), (rate, rate)), (rate, rate)
            numbers = ("NHWC", "HWIO", "NHWC")
            total += lax.conv_general_dilated(x, kernel, (1, 1), padding, None, dilation, numbers)
        linear = variables["params"]["head"]["linear"]
        return output.logits, jax.image.resize(total @ linear["kernel"] + linear["bias"], (1, 40, 56, 3), "linear")

    logits, expected = both(variables)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_aspp_equals_segmentation_models_pytorch():
    expected = np.load(GOLDEN / "resnets.npz")["aspp"]
    image = DRAWN["image"]()
    x = jnp.asarray(np.concatenate([image, image[::-1]], axis=-1)[:, :9, :11])
    model = ASPP(4, (2, 3, 5))
    # Names of the convolution and the norm of each branch in segmentation-models-pytorch.
    theirs = {
        "point": ("convs.0.0.weight", "convs.0.1"),
        "rate2": ("convs.1.0.1.weight", "convs.1.1"),
        "rate3": ("convs.2.0.1.weight", "convs.2.1"),
        "rate5": ("convs.3.0.1.weight", "convs.3.1"),
        "pool": ("convs.4.1.weight", "convs.4.2"),
        "project": ("project.0.weight", "project.1"),
    }
    variables = jax.eval_shape(partial(model.init, train=False), KEY, x)

    def weights(path, leaf):
        branch, *_, last = (key.key for key in path[1:])
        conv, norm = theirs[branch]
        if last == "depthwise":
            kernel = DRAWN["drawn"](conv.replace("0.1.weight", "0.0.weight"), (leaf.shape[-1], 1, 3, 3))
            return kernel[:, 0].transpose(1, 2, 0)
        if last == "kernel":
            return DRAWN["drawn"](conv, (leaf.shape[3], leaf.shape[2], 1, 1)).transpose(2, 3, 1, 0)
        of_torch = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
        return DRAWN["drawn"](f"{norm}.{of_torch[last]}", leaf.shape)

    variables = jax.tree_util.tree_map_with_path(weights, variables)
    actual = jax.jit(partial(model.apply, train=False))(variables, x)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("output_stride", [8, 32])
def test_v3_plus_logits_are_computed_at_stride_4(output_stride):
    model = V3.clone(output_stride=output_stride)
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    output, seen = jax.eval_shape(
        partial(model.apply, train=False, capture_intermediates=lambda module, _: module.name == "linear"),
        shapes(model),
        images,
    )
    assert seen["intermediates"]["head"]["linear"]["__call__"][0].shape == (1, 16, 24, 3)
    assert output.logits.shape == (1, 64, 96, 3)


def test_v3_plus_rejects_training_on_one_image():
    with pytest.raises(ValueError, match=r"image pooling of DeepLabV3Plus .* at least 2 .*got a batch of 1.*group"):
        jax.eval_shape(partial(V3.apply, train=True, mutable=["batch_stats"]), shapes(V3), ONE_IMAGE)


@pytest.mark.parametrize("fields", [{"axis_name": "devices"}, {"norm": "group"}], ids=["synchronized", "group"])
def test_v3_plus_trains_on_one_image_per_device_with_shared_statistics(fields):
    model = V3.clone(**fields)

    def step(variables, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[0].logits

    images = jax.ShapeDtypeStruct((2, *ONE_IMAGE.shape), jnp.float32)
    logits = jax.eval_shape(jax.vmap(step, in_axes=(None, 0), axis_name="devices"), shapes(model), images)
    assert logits.shape == (2, 1, 32, 32, 3)


@pytest.mark.parametrize(
    ("model", "widths"),
    [(V2.clone(deep_dropout=1), [32]), (V3.clone(deep_dropout=1), [8]), (V3.clone(deep_dropout=2), [8, 8])],
    ids=["v2", "v3+ 1", "v3+ 2"],
)
def test_deep_dropout_places(model, widths, monkeypatch):
    seen = []
    monkeypatch.setattr(network, "dropout", lambda x, rate, keys: seen.append(x.shape[-1]) or x)
    variables = shapes(model.clone(deep_dropout=0))
    jax.eval_shape(partial(model.apply, train=False, rngs={"dropout": KEY}), variables, IMAGES)
    assert seen == widths


@pytest.mark.parametrize("model", [V2, V3], ids=["v2", "v3+"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder_depth": 19}, "encoder_depth must be one of 18, 34, 50, 101; got 19"),
        ({"output_stride": 4}, "output_stride must be one of 8, 16, 32; got 4"),
        ({"rates": (6, 0)}, r"rates must be one or more different dilations of at least 1; got \(6, 0\)"),
        ({"rates": ()}, r"rates must be one or more .* got \(\)"),
        ({"rates": (6, 6)}, r"rates must be one or more different .* got \(6, 6\)"),
    ],
)
def test_invalid_fields_are_rejected(model, fields, message):
    with pytest.raises(ValueError, match=message):
        model.clone(**fields).init(KEY, jnp.zeros((1, 32, 32, 3)), train=False)
