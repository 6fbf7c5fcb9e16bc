from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import EfficientNetLite, ResNet

SMALL = ResNet(18, width=4)
IMAGES = jax.ShapeDtypeStruct((4, 33, 455, 3), jnp.float32)


def shapes(model: ResNet | EfficientNetLite):
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), IMAGES)


@cache
def start(model: ResNet | EfficientNetLite = SMALL):
    """Returns initial variables drawn by NumPy, because compiling `init` takes longer than the tests."""
    rng = np.random.default_rng(3)

    def drawn(path, leaf):
        if path[-1].key == "kernel":
            return (rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:3]))).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(drawn, shapes(model))


@partial(jax.jit, static_argnums=0)
def evaluate(model: ResNet | EfficientNetLite, variables, images):
    return model.apply(variables, images, train=False)


DEEP = pytest.param(101, 42_500_160, marks=pytest.mark.slow)


# `torchvision.models.resnet18()` and so on, without `fc`.
@pytest.mark.parametrize(("depth", "count"), [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), DEEP])
def test_parameter_counts_equal_torchvision(depth, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(ResNet(depth))["params"])) == count


# `EfficientNet.from_name("efficientnet-lite0")` and so on of efficientnet_lite_pytorch, without the head.
@pytest.mark.parametrize(("variant", "count"), [("efficientnet_lite0", 2_958_848), ("efficientnet_lite2", 4_357_952)])
def test_parameter_counts_equal_efficientnet_lite_pytorch(variant, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(EfficientNetLite(variant))["params"])) == count


def test_efficientnet_dilated_features_contain_the_strided_features():
    model = EfficientNetLite()
    images = np.random.default_rng(4).standard_normal((1, 64, 96, 3)).astype(np.float32)
    coarse, fine = (evaluate(model.clone(output_stride=stride), start(model), images) for stride in (32, 8))
    # With TensorFlow's padding, stride 2 keeps the odd pixels of an even size.
    for step, expected, actual in zip((1, 1, 1, 2, 4), coarse, fine, strict=True):
        np.testing.assert_allclose(actual[:, step - 1 :: step, step - 1 :: step], expected, rtol=1e-3, atol=1e-4)


def test_dilated_features_contain_the_strided_features():
    images = np.random.default_rng(4).standard_normal(IMAGES.shape).astype(np.float32)
    coarse, fine = (evaluate(SMALL.clone(output_stride=stride), start(), images) for stride in (32, 8))
    assert [feature.shape for feature in fine] == [
        (4, 17, 228, 4),
        (4, 9, 114, 4),
        (4, 5, 57, 8),
        (4, 5, 57, 16),
        (4, 5, 57, 32),
    ]
    for step, expected, actual in zip((1, 1, 1, 2, 4), coarse, fine, strict=True):
        np.testing.assert_allclose(actual[:, ::step, ::step], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("output_stride", [32, 8])
def test_receptive_field_is_435_pixels_strided_or_dilated(output_stride):
    # Stem 7, pool 2·2, then 2·stride per convolution: four at 4, one at 4 and three at 8, one at 8 and three at 16 …
    reach = (7 + 4 + 32 + (8 + 48) + (16 + 96) + (32 + 192)) // 2
    assert 2 * reach + 1 == 435
    centre = 224
    places = np.array([centre - reach - 1, centre - reach, centre + reach, centre + reach + 1])
    # With positive weights and one bright pixel, only the features that see the pixel are positive.
    images = np.zeros(IMAGES.shape, np.float32)
    images[np.arange(4), 0, places] = 1
    last = evaluate(SMALL.clone(output_stride=output_stride), jax.tree.map(np.abs, start()), images)[-1]
    seen = (last[:, 0, centre // output_stride] > 0).any(axis=-1)
    assert seen.tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({}, (31, 64), "at least 32x32, the output stride of this ResNet-50; got 31x64"),
        ({"output_stride": 8}, (64, 7), "at least 8x8, the output stride of this ResNet-50; got 64x7"),
        ({"depth": 20}, (64, 64), "depth must be one of 18, 34, 50, 101; got 20"),
        ({"output_stride": 4}, (64, 64), "output_stride must be one of 8, 16, 32; got 4"),
    ],
)
def test_resnet_invalid_fields_and_sizes_are_rejected(fields, size, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**{"width": 4, **fields}).init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False)


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({}, (31, 64), "at least 32x32, the output stride of this efficientnet_lite0; got 31x64"),
        (
            {"variant": "resnet"},
            (64, 64),
            "variant must be one of 'efficientnet_lite0', 'efficientnet_lite2'; got 'resnet'",
        ),
        ({"output_stride": 4}, (64, 64), "output_stride must be one of 8, 16, 32; got 4"),
    ],
)
def test_efficientnet_invalid_fields_and_sizes_are_rejected(fields, size, message):
    with pytest.raises(ValueError, match=message):
        EfficientNetLite(**fields).init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False)


def test_efficientnet_convolutions_have_a_bias_without_a_norm():
    variables = shapes(EfficientNetLite(norm="none"))
    assert "batch_stats" not in variables
    assert variables["params"]["block1"]["depthwise_conv"]["bias"].shape == (96,)
