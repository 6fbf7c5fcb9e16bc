"""The config's network: which it is, whose its fields are, and what its encoder begins with."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from segjax.models import ResNet
from segjax.models.pretrained import torch_name
from segjax.training import ConfigError, defaults, validate
from segjax.training.config import NETWORKS
from segjax.training.train_step import init_state, make_model


@pytest.fixture
def deeplab(tiny):
    tiny.model.name, tiny.model.width, tiny.model.depth, tiny.model.hidden = "deeplab_v3_plus", 2, 4, 4
    tiny.model.padding = "reflect"
    return tiny


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A torchvision file of the encoder above, and its stem's kernel as ours."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    shapes = jax.eval_shape(lambda: ResNet(18, 2).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False))
    state = {}
    for place, leaf in jax.tree.leaves_with_path(shapes):
        value = rng.uniform(0.1, 0.2, leaf.shape).astype(np.float32)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        state[torch_name(tuple(key.key for key in place[1:]))] = np.ascontiguousarray(value)
    save_file(state, path)
    return path, state["conv1.weight"].transpose(2, 3, 1, 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_name_is_a_network_whose_fields_the_config_has(name):
    config = defaults()
    config.model.name, config.model.norm, config.model.dropout_rate = name, "group", 0.375
    network, fields = NETWORKS[name]
    assert set(fields) <= set(inspect.signature(network).parameters)
    model = make_model(config, 11, "devices")
    assert issubclass(network, type(model))  # a U-Net without packing is the base class
    assert (model.num_classes, model.norm, model.rate, model.axis_name) == (11, "group", 0.375, "devices")
    assert model.width == config.model.width


@pytest.mark.parametrize("name", NETWORKS)
def test_every_field_of_a_network_gets_there(name):
    other = {
        "width": 8,
        "depth": 3,
        "padding": "zeros",
        "downsample": "stride",
        "upsample": "nearest",
        "pack": 2,
        "strips": 2,
        "encoder_depth": 34,
        "output_stride": 16,
        "hidden": 3,
        "aspp_dilations": (2, 5),
    }
    for argument, field in NETWORKS[name][1].items():
        config = defaults()
        config.model.name, config.model[field] = name, other[field]
        assert getattr(make_model(config, 3), argument) == config.model[field]


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        (
            "segnet",
            "depth",
            3,
            r"config.model.depth belongs to unet, patch; segnet does not have it: leave it at 4; got 3",
        ),
        (
            "unet",
            "hidden",
            9,
            r"config.model.hidden belongs to fcn, .*; unet does not have it: leave it at None; got 9",
        ),
        (
            "fcn",
            "pretrained",
            "a.pth",
            r"pretrained is for networks with an encoder; fcn does not have one; got 'a.pth'",
        ),
        ("unet", "upsample", "pixels", r"config.model.upsample must be one of nearest, .*max_unpool.*; got 'pixels'"),
        ("deeplab_v2", "encoder_depth", 19, r"config.model.encoder_depth must be one of 18, 34, 50, 101; got 19"),
    ],
)
def test_a_field_of_another_network_is_refused(name, field, value, message):
    config = defaults()
    config.model.name, config.model[field] = name, value
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_what_the_network_refuses_is_an_error_of_the_config():
    config = defaults()
    config.model.name, config.model.output_stride = "fcn", 4
    with pytest.raises(ConfigError, match=r"config.model of fcn: stride of an FCN must be 8, 16 or 32; got 4"):
        make_model(config, 11)


def test_a_run_begins_with_the_encoder_of_a_file_and_a_restore_does_not_ask_for_it(deeplab, weights):
    path, stem = weights
    model = make_model(deeplab, 2)
    plain = init_state(deeplab, model)
    deeplab.model.pretrained = str(path)
    validate(deeplab)
    begun = init_state(deeplab, model, pretrained=True)
    np.testing.assert_array_equal(begun.params["encoder"]["conv1"]["kernel"], stem)
    np.testing.assert_array_equal(begun.params["low"]["conv"]["kernel"], plain.params["low"]["conv"]["kernel"])
    assert jax.tree.map(np.shape, begun) == jax.tree.map(np.shape, plain)
    deeplab.model.pretrained = "elsewhere.safetensors"
    restored = init_state(deeplab, model).params["encoder"]["conv1"]["kernel"]
    np.testing.assert_array_equal(restored, plain.params["encoder"]["conv1"]["kernel"])


def test_a_file_that_is_not_there_or_does_not_fit_is_one_line(deeplab, weights):
    deeplab.model.pretrained = "nowhere.safetensors"
    model = make_model(deeplab, 2)
    with pytest.raises(
        ConfigError,
        match=r"config.model.pretrained: nowhere.safetensors: the file .* does not exist",
    ):
        init_state(deeplab, model, pretrained=True)
    deeplab.model.pretrained, deeplab.model.width = str(weights[0]), 4
    with pytest.raises(ConfigError, match=r"config.model.pretrained: .*resnet18.safetensors: .*must have shape"):
        init_state(deeplab, make_model(deeplab, 2), pretrained=True)
