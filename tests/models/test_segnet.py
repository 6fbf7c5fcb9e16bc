import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import SegNet, SegNetBasic, max_pool_2x2, network

KEY = jax.random.key(4)
# Channels of VGG16's convolutions, in units of the width.
VGG16 = [[1, 1], [2, 2], [4, 4, 4], [8, 8, 8], [8, 8, 8]]


@cache
def parameters(model):
    shapes = jax.eval_shape(partial(model.init, train=False), KEY, jnp.zeros((1, 32, 32, 3)))
    return shapes["params"]


def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def kernels(blocks) -> list[tuple[int, int]]:
    """Returns the numbers of input and output channels of the convolutions, in the order of computation."""
    return [block[name]["kernel"].shape[2:] for block in blocks for name in sorted(block) if "conv" in name]


def test_segnet_kernels_are_those_of_vgg16_and_its_mirror():
    params = parameters(SegNet(11))
    outputs = [64 * factor for level in VGG16 for factor in level]
    there = list(zip([3, *outputs], outputs, strict=False))
    assert kernels([params[f"down{level}"] for level in range(5)]) == there
    # The mirror of the first convolution is the head.
    assert kernels([params[f"up{level}"] for level in reversed(range(5))]) == [(o, i) for i, o in there[:0:-1]]
    assert params["head"]["linear"]["kernel"].shape == (64, 11)


def test_segnet_parameter_counts():
    params = parameters(SegNet(11))
    encoder = count([params[f"down{level}"] for level in range(5)])
    assert encoder == 14_710_464 + 2 * 4_224  # VGG16's kernels, and scale and bias of a norm after each
    assert round(encoder / 1e6, 1) == 14.7  # published, arXiv 1511.00561
    assert count(params) == 29_435_787
    # The authors' 29.45 M include a bias before every norm and 3×3 kernels to the classes.
    norms = sum(
        leaves["batch"]["bias"].size for block in params.values() for leaves in block.values() if "batch" in leaves
    )
    assert round((count(params) + norms + 8 * 64 * 11) / 1e6, 2) == 29.45


def test_segnet_basic_parameter_count():
    total = count(parameters(SegNetBasic(11)))
    assert total == 49 * 64 * (3 + 7 * 64) + 2 * 8 * 64 + 64 * 11 + 11 == 1_416_075
    assert round(total / 25_000) * 0.025 == pytest.approx(1.425)


@pytest.mark.parametrize(
    ("model", "stride", "field"),
    [(SegNet(2, width=1, norm="none"), 32, 212), (SegNetBasic(2, width=1, norm="none"), 16, 106)],
)
def test_lowest_level_receptive_field(model, stride, field):
    # With positive kernels, no biases and one bright row, only the pixels that see the row are positive.
    depth, pixel = model.deep_places, field // 2 // stride + 1
    first, last = pixel * stride - (field - stride) // 2, (pixel + 1) * stride - 1 + (field - stride) // 2
    rows = np.array([first - 1, first, last, last + 1])
    images = jnp.zeros((4, (2 * pixel + 1) * stride, stride, 3)).at[np.arange(4), rows].set(1.0)
    assert first >= 1
    assert last + 1 < images.shape[1]
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1 * (len(leaf.shape) > 1)), parameters(model))
    run = partial(model.apply, train=False, capture_intermediates=True, mutable=["intermediates"])
    _, seen = jax.jit(run)({"params": params}, images)
    lowest = max_pool_2x2(seen["intermediates"][f"down{depth - 1}"]["__call__"][0])
    np.testing.assert_array_equal((lowest[:, pixel] > 0).any(axis=(1, 2)), [False, True, True, False])


def test_segnet_basic_has_relu_only_in_the_encoder():
    model = SegNetBasic(2, width=4)
    images = jax.random.normal(KEY, (2, 32, 32, 3))
    variables = jax.jit(partial(model.init, train=False))(KEY, images)
    run = partial(model.apply, train=False, capture_intermediates=True, mutable=["intermediates"])
    _, seen = jax.jit(run)(variables, images)
    lowest = {
        name: float(leaves["__call__"][0].min()) for name, leaves in seen["intermediates"].items() if name[-1].isdigit()
    }
    assert {name for name, value in lowest.items() if value < 0} == {f"up{level}" for level in range(4)}


def test_decoder_receives_only_positions():
    model = SegNetBasic(2, width=4, norm="none")
    images = jax.random.normal(KEY, (1, 32, 32, 3))
    params = jax.jit(partial(model.init, train=False))(KEY, images)["params"]
    # One level is doubled and the next halved; only a skip connection would change the features.
    factors = {"down0": 2, "down1": 0.5}
    scaled = params | {n: jax.tree.map(lambda leaf, f=f: f * leaf, params[n]) for n, f in factors.items()}
    run = jax.jit(partial(model.apply, train=False))
    features = run({"params": params}, images).features
    assert np.abs(features).max() > 0
    np.testing.assert_array_equal(run({"params": scaled}, images).features, features)


@pytest.mark.parametrize(
    ("model", "deep_dropout", "shapes"),
    [
        # The central six units of Bayesian SegNet, and the central four of Bayesian SegNet-Basic.
        (SegNet(2, width=4), 3, [(8, 16), (4, 32), (2, 32), (4, 32), (8, 16), (16, 8)]),
        (SegNetBasic(2, width=4), 2, [(8, 4), (4, 4), (8, 4), (16, 4)]),
        (SegNet(2, width=4), 0, []),
    ],
)
def test_deep_dropout_follows_the_central_units(model, deep_dropout, shapes, monkeypatch):
    seen = []

    def spy(x, rate, keys):
        seen.append(x.shape[2:])
        return x

    monkeypatch.setattr(network, "dropout", spy)
    images = jnp.zeros((1, 64, 64, 3))
    # The head samples too, so that the key is always used.
    model = model.clone(deep_dropout=deep_dropout, dropout="sampled")
    variables = jax.eval_shape(partial(model.init, train=False), KEY, images)
    jax.eval_shape(partial(model.apply, train=False, rngs={"dropout": KEY}), variables, images)
    assert seen == shapes


@pytest.mark.parametrize(("model", "most"), [(SegNet(2, deep_dropout=6), 5), (SegNetBasic(2, deep_dropout=5), 4)])
def test_deep_dropout_beyond_the_levels_is_rejected(model, most):
    with pytest.raises(
        ValueError, match=rf"deep_dropout of this SegNet\w* must be between 0 and {most}; got {most + 1}"
    ):
        model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False)
