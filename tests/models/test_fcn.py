import zlib
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import FCN, network
from segjax.models.layers import upsample_bilinear

SMALL = FCN(num_classes=3, width=2, hidden=4)
IMAGES = jnp.asarray(np.random.default_rng(7).standard_normal((1, 45, 70, 3)), jnp.float32)
SCORES = ("score_fr", "score_pool4", "score_pool3")


def shapes(model: FCN):
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), IMAGES)


@cache
def start():
    """Returns parameters of FCN-8s, which contain those of the coarser networks; the scores are those of `init`."""
    rng = np.random.default_rng(0)

    def drawn(leaf):
        return jnp.asarray(rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1])), jnp.float32)

    def scores():
        params = SMALL.init(jax.random.key(0), IMAGES, train=False)["params"]
        return {name: params[name] for name in params if "score" in name}

    variables = shapes(SMALL)
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables["batch_stats"])
    params = jax.tree.map(drawn, variables["params"])
    return {"params": {**params, **jax.jit(scores)()}, "batch_stats": ones}


@partial(jax.jit, static_argnums=0)
def evaluate(model: FCN, variables, images):
    """Returns the output of the network and of its layers."""
    output, kept = model.apply(variables, images, train=False, mutable=["intermediates"], capture_intermediates=True)
    return output, {name: layer["__call__"][0] for name, layer in kept["intermediates"].items() if "__call__" in layer}


@pytest.mark.parametrize(("stride", "skips"), [(32, ()), (16, (512,)), (8, (512, 256))])
def test_fcn_parameter_count(stride, skips):
    widths = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    vgg16 = sum(9 * i * o + o for i, o in pairwise(widths))
    assert vgg16 == 14_714_688  # as torchvision.models.vgg16().features
    fully_connected = 49 * 512 * 4096 + 4096 + 4096 * 4096 + 4096
    scores = 4096 * 21 + 21 + sum(c * 21 + 21 for c in skips) + 16 * 21 * len(skips)
    head = 21 * 21 + 21
    params = shapes(FCN(21, stride=stride, norm="none"))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == vgg16 + fully_connected + scores + head
    assert round(count / 1e6) == 134


@pytest.mark.parametrize("stride", [16, 32])
def test_fcn_8s_starts_as_the_coarser_networks(stride):
    finest, _ = evaluate(SMALL, start(), IMAGES)
    coarser, layers = evaluate(SMALL.clone(stride=stride), start(), IMAGES)
    linear = start()["params"]["head"]["linear"]
    scores = layers["score_fr"] if stride == 32 else layers["upscore2"]
    # Upsampled in several steps, where the coarser network takes one.
    for step in (*[2] * (stride // 16), 8):
        scores = upsample_bilinear(scores, step)
    expected = scores[:, :45, :70] @ linear["kernel"] + linear["bias"]
    np.testing.assert_allclose(finest.logits, expected, rtol=1e-6, atol=1e-5)
    assert np.abs(finest.logits - coarser.logits).mean() < 0.1 * coarser.logits.std()


def test_fcn_scores_are_upsampled_and_summed_from_coarse_to_fine():
    rng = np.random.default_rng(1)
    params = dict(start()["params"])
    for name in SCORES[1:]:
        assert not np.any(params[name]["kernel"])
        kernel = jnp.asarray(rng.standard_normal(params[name]["kernel"].shape), jnp.float32)
        params[name] = {**params[name], "kernel": kernel}
    output, layers = evaluate(SMALL, {**start(), "params": params}, IMAGES)
    coarse, middle, fine = (layers[name] for name in SCORES)
    # The image is padded to 64×96.
    assert [x.shape[1:3] for x in (coarse, middle, fine)] == [(2, 3), (4, 6), (8, 12)]
    summed = upsample_bilinear(upsample_bilinear(coarse, 2) + middle, 2) + fine
    np.testing.assert_allclose(output.features, upsample_bilinear(summed, 8)[:, :45, :70], atol=1e-5)


def test_fcn_8s_logits_equal_torchvision_vgg16():
    def drawn(path, leaf):
        """Draws an array as golden/fcn.py does."""
        name, shape = "/".join(key.key for key in path), leaf.shape
        scale = np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0.1
        return (np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape) * scale).astype(np.float32)

    with np.load(Path(__file__).parent / "golden" / "fcn.npz") as golden:
        images, expected = golden["images"], golden["logits"]
    model = SMALL.clone(hidden=8, norm="none")
    output, _ = evaluate(model, {"params": jax.tree_util.tree_map_with_path(drawn, shapes(model)["params"])}, images)
    np.testing.assert_allclose(output.logits, expected, atol=1e-5)


def test_fcn_score_has_a_receptive_field_of_404_pixels():
    # With positive kernels, no biases and one bright line, only the scores that see the line are positive.
    model = FCN(1, width=1, hidden=1, stride=32, norm="none")
    params = jax.tree.map(lambda x: jnp.full(x.shape, 0.2 * (x.ndim > 1)), shapes(model)["params"])
    lines = (300, 301, 330, 512)
    images = jnp.zeros((len(lines), 704, 32, 1)).at[jnp.arange(len(lines)), jnp.asarray(lines)].set(1.0)
    params["block1"]["conv1"]["kernel"] = params["block1"]["conv1"]["kernel"][:, :, :1]
    _, layers = evaluate(model, {"params": params}, images)
    # (kernel, stride, padding) of each layer give the beginning and the size of the receptive field.
    begin, size, jump = 0, 1, 1
    block = [(3, 1, 1), (2, 2, 0)]
    for kernel, stride, padding in [*block[:1], *block] * 2 + [*block[:1] * 2, *block] * 3 + [(7, 1, 3), (1, 1, 0)]:
        begin, size, jump = begin - padding * jump, size + (kernel - 1) * jump, jump * stride
    assert (size, jump) == (404, 32)
    for line, scores in zip(lines, layers["score_fr"], strict=True):
        expected = [i for i in range(22) if begin + 32 * i <= line < begin + 32 * i + size]
        assert np.flatnonzero(scores[:, 0, 0] > 0).tolist() == expected


@pytest.mark.parametrize(
    ("deep_dropout", "order"),
    [
        (0, ["fc6", "fc7", "score_fr"]),
        (1, ["fc6", "fc7", "dropout", "score_fr"]),
        (2, ["fc6", "dropout", "fc7", "dropout", "score_fr"]),
    ],
)
def test_fcn_deep_dropout_follows_the_fully_connected_layers(deep_dropout, order, monkeypatch):
    seen = []

    def spy(x, rate, keys):
        seen.append("dropout")
        return x

    def note(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.module.name in ("fc6", "fc7", "score_fr") and context.method_name == "__call__":
            seen.append(context.module.name)
        return result

    monkeypatch.setattr(network, "dropout", spy)
    apply = partial(SMALL.clone(deep_dropout=deep_dropout).apply, train=False, rngs={"dropout": jax.random.key(4)})
    with nn.intercept_methods(note):
        jax.eval_shape(apply, start(), IMAGES)
    assert seen == order


def test_fcn_score_sets_the_features_of_the_head():
    params = shapes(SMALL.clone(score=7))["params"]
    assert {params[name]["kernel"].shape[-1] for name in SCORES} == {7}
    assert params["upscore2"]["kernel"].shape == params["upscore_pool4"]["kernel"].shape == (4, 4, 1, 7)
    assert params["head"]["linear"]["kernel"].shape == (7, 3)


def test_fcn_rejects_stride_4():
    with pytest.raises(ValueError, match="stride must be one of 8, 16, 32; got 4"):
        shapes(SMALL.clone(stride=4))
