"""Receptive fields of the networks whose last layers have the size of the image."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import DeepLabV2, DeepLabV3Plus, EncoderUNet, UNet

KEY = jax.random.key(0)
PLAIN = {"width": 4, "norm": "none"}
RESNET18 = 217  # rows above and below its own in the receptive field of a feature of the last stage


def coarse_rows(rows, factor):
    """Returns the rows of a map of 1/`factor` of the height that bilinear interpolation reads for these rows."""
    first, last = ((row + 0.5) / factor - 0.5 for row in rows)
    return int(np.floor(first)), int(np.floor(last)) + 1


def widened(rows, by):
    return rows[0] - by, rows[1] + by


def unet_rows(row):
    # Two 3×3 convolutions, nearest upsampling, two 3×3 at half the size, a pooling of two rows, two 3×3.
    first, last = (around // 2 for around in widened((row, row), 2))
    first, last = widened((first, last), 2)
    return widened((2 * first, 2 * last + 1), 2)


def encoder_unet_rows(row):
    rows = (row, row)
    for _ in range(5):
        first, last = widened(rows, 2)
        rows = first // 2, last // 2
    return widened((32 * rows[0], 32 * rows[1]), RESNET18)


def deeplab_v2_rows(row):
    first, last = widened(coarse_rows((row, row), 8), 5)
    return widened((8 * first, 8 * last), RESNET18)


def deeplab_v3_plus_rows(row):
    decoder = widened(coarse_rows((row, row), 4), 1)
    aspp = widened(coarse_rows(decoder, 4), 1 + 4)
    return widened((16 * aspp[0], 16 * aspp[1]), RESNET18)


NETWORKS = {
    "unet": (UNet(2, depth=1, padding="zeros", upsample="nearest", **PLAIN), unet_rows),
    "resnet unet": (EncoderUNet(2, **PLAIN), encoder_unet_rows),
    "deeplab v2": (DeepLabV2(2, encoder_depth=18, rates=(5, 2), **PLAIN), deeplab_v2_rows),
    "deeplab v3+": (DeepLabV3Plus(2, encoder_depth=18, rates=(1, 4), channels=4, **PLAIN), deeplab_v3_plus_rows),
}


def depends_on(model, row, rows, *, image_pooling=False):
    """Returns for each of `rows` whether the logits of `row` depend on it, by positive kernels without biases."""
    height = 2 * (rows[2] // 32 + 2) * 32
    images = jnp.zeros((4, height, model.multiple, 3)).at[np.arange(4), np.array(rows)].set(1.0)
    shapes = jax.eval_shape(partial(model.init, train=False), KEY, images)["params"]

    def kernel(path, leaf):
        of_pool = ".pool." in f".{jax.tree_util.keystr(path, simple=True, separator='.')}."
        return jnp.full(leaf.shape, 0.1 * (len(leaf.shape) > 1 and (image_pooling or not of_pool)))

    params = jax.tree.map_with_path(kernel, shapes)
    logits = jax.jit(partial(model.apply, train=False))({"params": params}, images).logits
    return (logits[:, row] > 0).any(axis=(1, 2)).tolist()


@pytest.mark.parametrize(("model", "field"), NETWORKS.values(), ids=NETWORKS)
def test_logit_depends_on_exactly_its_receptive_field(model, field):
    row = next(row for row in range(0, 10_000, 37) if field(row)[0] > 0)
    first, last = field(row)
    assert depends_on(model, row, (first - 1, first, last, last + 1)) == [False, True, True, False]


def test_image_pooling_depends_on_the_whole_image():
    model, field = NETWORKS["deeplab v3+"]
    row = next(row for row in range(0, 10_000, 37) if field(row)[0] > 0)
    first, last = field(row)
    assert depends_on(model, row, (first - 1, first, last, last + 1), image_pooling=True) == [True] * 4
