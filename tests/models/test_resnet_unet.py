from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import ResNetUNet, network, upsample_nearest_2x2

SMALL = {"num_classes": 3, "width": 4, "decoder": (16, 12, 8, 6, 4)}
IMAGES = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)


@cache
def shapes(model):
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), IMAGES)


def test_parameter_count_is_segmentation_models_pytorchs_but_for_the_head():
    # sum(p.numel() for p in smp.Unet("resnet34", encoder_weights=None, classes=12).parameters()), version 0.6.0.
    theirs = 24_437_964
    ours = sum(leaf.size for leaf in jax.tree.leaves(shapes(ResNetUNet(12, encoder_depth=34))["params"]))
    # Their head is a 3×3 convolution of the 16 channels, ours 1×1.
    assert ours + 8 * 16 * 12 == theirs


def test_every_step_up_joins_the_features_of_its_size():
    params = shapes(ResNetUNet(**SMALL))["params"]
    inputs = [params[f"up{level}"]["conv1"]["kernel"].shape[2] for level in (4, 3, 2, 1, 0)]
    assert inputs == [32 + 16, 16 + 8, 12 + 4, 8 + 4, 6]
    assert params["head"]["linear"]["kernel"].shape == (4, 3)


def test_nearest_upsampling_repeats():
    x = jnp.arange(2 * 3 * 4 * 2.0).reshape(2, 3, 4, 2)
    np.testing.assert_array_equal(upsample_nearest_2x2(x), x.repeat(2, axis=1).repeat(2, axis=2))


@pytest.mark.parametrize(("deep_dropout", "widths"), [(1, [32]), (5, [32, 16, 12, 8, 6])])
def test_deep_dropout_follows_the_encoder_and_the_first_steps_up(deep_dropout, widths, monkeypatch):
    seen = []
    monkeypatch.setattr(network, "dropout", lambda x, rate, keys: seen.append(x.shape[-1]) or x)
    model, key = ResNetUNet(**SMALL, deep_dropout=deep_dropout), jax.random.key(0)
    variables = shapes(ResNetUNet(**SMALL))
    jax.eval_shape(partial(model.apply, train=False, rngs={"dropout": key}), variables, IMAGES)
    assert seen == widths


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder": (8, 4)}, r"decoder must have 5 positive widths, one per step; got \(8, 4\)"),
        ({"encoder_depth": 19}, "encoder_depth must be one of 18, 34, 50, 101; got 19"),
        ({"deep_dropout": 6}, "deep_dropout of this ResNetUNet must be between 0 and 5; got 6"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ResNetUNet(**SMALL | fields).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
