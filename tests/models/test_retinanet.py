import runpy
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from segjax import boxes, losses
from segjax.models import RetinaNet, load_retinanet

GOLDEN = Path(__file__).parent / "golden"
DRAWN = runpy.run_path(str(GOLDEN / "drawn.py"))
STEP = 7  # of the stored rows
SMALL = RetinaNet(3, encoder_depth=18, width=4, channels=8)
WHOLE = pytest.param("whole", RetinaNet(3), marks=pytest.mark.slow)


@cache
def shapes(model: RetinaNet, channels: int = 3):
    images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)


@cache
def torchvision_state(name: str) -> dict[str, np.ndarray]:
    """Returns a state dict with torchvision's names and shapes and the values of `golden/drawn.py`."""
    lines = str(np.load(GOLDEN / "retinanet.npz")[f"{name}/state"]).splitlines()
    sizes = {name: tuple(map(int, shape)) for name, *shape in map(str.split, lines)}
    return {name: DRAWN["drawn"](name, shape) for name, shape in sizes.items()}


def load(state, folder, model: RetinaNet = SMALL, channels: int = 3):
    path = folder / "weights.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, path)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes(model, channels))
    return load_retinanet(path, zeros)


@partial(jax.jit, static_argnums=0)
def evaluate(model: RetinaNet, variables, images):
    return model.apply(variables, images, train=False)


@pytest.mark.parametrize(("name", "model"), [("narrow", SMALL), WHOLE])
def test_logits_and_boxes_equal_torchvision(name, model, tmp_path):
    golden, images = np.load(GOLDEN / "retinanet.npz"), DRAWN["image"]((1, 128, 128, 3))
    output = evaluate(model, load(torchvision_state(name), tmp_path, model), images)
    found = boxes.decode(output.offsets, boxes.anchors((128, 128))[None])
    for key, values in (("logits", output.logits), ("offsets", output.offsets), ("boxes", found)):
        expected = golden[f"{name}/{key}"]
        np.testing.assert_allclose(values[:, ::STEP], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_logits_of_odd_sizes_equal_those_of_torchvision_within_the_image(tmp_path):
    images = DRAWN["image"]()
    height, width = images.shape[1:3]
    output = evaluate(SMALL, load(torchvision_state("narrow"), tmp_path), images)
    padded, start, expected = np.load(GOLDEN / "retinanet.npz")["narrow/odd_logits"], 0, []
    for level in SMALL.levels:
        rows, columns = (-(-64 // 2**level) for _ in range(2))
        cells = padded[:, start : start + 9 * rows * columns].reshape(2, rows, columns, 9, 3)
        expected.append(cells[:, : -(-height // 2**level), : -(-width // 2**level)].reshape(2, -1, 3))
        start += 9 * rows * columns
    assert start == padded.shape[1]
    expected = np.concatenate(expected, axis=1)
    np.testing.assert_allclose(output.logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("levels", "size"), [((2, 3, 4, 5), (64, 130)), ((3, 4, 5, 6, 7), (1, 1)), ((5,), (45, 61))], ids=str
)
def test_rows_are_those_of_the_anchors(levels, size):
    model = SMALL.clone(levels=levels)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    output = jax.eval_shape(partial(model.apply, train=False), shapes(model), images)
    count = sum(boxes.anchor_counts(size, levels=levels))
    assert (output.logits.shape, output.offsets.shape) == ((2, count, 3), (2, count, 4))


def test_unet_encoder_has_rows_for_every_anchor_and_a_normalized_head():
    model = RetinaNet(2, encoder="unet", width=4, levels=(1, 2, 3), channels=8, head_convs=1, head_norm="group")
    images = jnp.asarray(DRAWN["image"]((2, 29, 37, 3)))
    output, variables = jax.jit(lambda key: model.init_with_output(key, images, train=True))(jax.random.key(0))
    assert output.logits.shape == (2, sum(boxes.anchor_counts((29, 37), levels=(1, 2, 3))), 2)
    assert {*variables["params"]["classification"]} == {"conv1", "norm1", "linear"}
    assert {*variables["params"]["encoder"]} == {"down0", "down1", "down2", "down3"}
    shape = jax.eval_shape(partial(model.apply, train=False), variables, images)
    assert [x.shape for x in shape] == [x.shape for x in output]


@pytest.mark.slow
def test_first_probabilities_are_the_prior():
    bias = (float(losses.prior_bias(0.01)),) * 2
    model = RetinaNet(2, encoder_depth=18, width=4, channels=32, head_bias=bias)
    images = jnp.asarray(DRAWN["image"]((2, 64, 64, 3)))
    output = jax.jit(lambda key: model.init_with_output(key, images, train=True)[0])(jax.random.key(0))
    assert np.mean(jax.nn.sigmoid(output.logits)) == pytest.approx(0.01, rel=0.1)


def test_gradients_are_float32_under_strict_promotion_and_rematerialization():
    model, images = SMALL.clone(remat=True), jnp.zeros((2, 45, 61, 3))

    def loss(params, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        output, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return output.logits.sum() + output.offsets.sum()

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        gradients = jax.eval_shape(jax.grad(loss), shapes(SMALL)["params"], shapes(SMALL)["batch_stats"])
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.float32)}


def test_bfloat16_gives_float32_outputs():
    images = jax.ShapeDtypeStruct((1, 45, 61, 3), jnp.bfloat16)
    output = jax.eval_shape(partial(SMALL.clone(dtype=jnp.bfloat16).apply, train=False), shapes(SMALL), images)
    assert output.logits.dtype == output.offsets.dtype == jnp.float32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"levels": (3, 5)},
            r"levels must be consecutive, .* first level in \[2, 5\] and the last in \[5, 7\]; got \(3, 5\)",
        ),
        ({"levels": (1, 2, 3, 4, 5)}, "levels must be consecutive, with encoder 'resnet'"),
        ({"encoder": "unet", "levels": (0, 1)}, r"with encoder 'unet' all levels in \[1, 7\]; got \(0, 1\): use"),
        (
            {"encoder": "vgg"},
            "encoder must be one of 'resnet', 'efficientnet_lite0', 'efficientnet_lite2', 'unet'; got 'vgg'",
        ),
        ({"head_norm": "batch"}, "head_norm must be one of 'none', 'group'; got 'batch'"),
        ({"head_convs": -1}, "head_convs must be at least 0; got -1"),
        ({"levels": (3, 4)}, r"the last in \[5, 7\]"),
        ({"head_bias": (0.0,)}, r"head_bias must have one value per class, 3; got \(0.0,\)"),
        ({"channels": 0}, "channels must be at least 1; got 0"),
    ],
)
def test_invalid_fields_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        SMALL.clone(**fields).check_fields()


def old_name(name: str) -> str:
    """Returns the name of an array in the first version of torchvision's RetinaNet, that of the published weights."""
    parts = name.split(".")
    if parts[2] == "conv":
        return ".".join([*parts[:3], str(2 * int(parts[3])), parts[5]])
    return name.replace(".0.weight", ".weight").replace(".0.bias", ".bias") if "_blocks." in name else name


def test_load_retinanet_reads_the_names_of_the_published_weights(tmp_path):
    state = torchvision_state("narrow")
    old = {old_name(name): value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert "head.regression_head.conv.6.weight" in old
    assert "backbone.fpn.inner_blocks.2.bias" in old
    jax.tree.map(np.testing.assert_array_equal, load(old, tmp_path), load(state, tmp_path))


def test_load_retinanet_keeps_the_last_classification_layer_for_other_classes(tmp_path):
    loaded = load(torchvision_state("narrow"), tmp_path, SMALL.clone(num_classes=1))["params"]
    assert not np.any(loaded["classification"]["linear"]["kernel"])
    assert np.any(loaded["classification"]["conv4"]["kernel"])


def test_load_retinanet_reads_a_resnet_for_the_encoder(tmp_path):
    state = torchvision_state("narrow")
    body = {name.removeprefix("backbone.body."): value for name, value in state.items() if ".body." in name}
    loaded = load(body, tmp_path)["params"]
    np.testing.assert_array_equal(loaded["encoder"]["conv1"]["kernel"], body["conv1.weight"].transpose(2, 3, 1, 0))
    assert not np.any(loaded["regression"]["linear"]["kernel"])


def test_load_retinanet_sums_the_stem_for_grey_images(tmp_path):
    state = torchvision_state("narrow")
    kernel = load(state, tmp_path, channels=1)["params"]["encoder"]["conv1"]["kernel"]
    stem = state["backbone.body.conv1.weight"]
    np.testing.assert_allclose(kernel[:, :, 0], stem.sum(1).transpose(1, 2, 0), rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (SMALL.clone(levels=(2, 3, 4, 5, 6, 7)), r"weights.safetensors: .* lacks backbone.fpn.inner_blocks.3.0.bias"),
        (SMALL.clone(channels=16), r"conv.0.0.bias of a RetinaNet must have shape \(16,\); got \(8,\)"),
    ],
)
def test_load_retinanet_rejects_weights_of_another_network(model, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(torchvision_state("narrow"), tmp_path, model)
