"""Which rows of an image a logit sees, of the networks whose last layers are on the image's own grid."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import DeepLabV2, DeepLabV3Plus, ResNetUNet, UNet

KEY = jax.random.key(0)
PLAIN = {"width": 4, "norm": "none"}
RESNET18 = 217  # rows that a feature of its last stage sees above its own and below it, at every output stride


def coarse(rows, factor):
    """The rows of a map 1/`factor` as high from which bilinear interpolation takes these rows."""
    first, last = ((row + 0.5) / factor - 0.5 for row in rows)
    return int(np.floor(first)), int(np.floor(last)) + 1


def wider(rows, by):
    return rows[0] - by, rows[1] + by


def of_unet(row):
    # Two 3×3 convolutions, the nearest row of half the size, two 3×3 there, the two rows of a pooling, two 3×3.
    first, last = (around // 2 for around in wider((row, row), 2))
    first, last = wider((first, last), 2)
    return wider((2 * first, 2 * last + 1), 2)


def of_resnet_unet(row):
    rows = (row, row)
    for _ in range(5):
        first, last = wider(rows, 2)
        rows = first // 2, last // 2
    return wider((32 * rows[0], 32 * rows[1]), RESNET18)


def of_deeplab_v2(row):
    first, last = wider(coarse((row, row), 8), 5)
    return wider((8 * first, 8 * last), RESNET18)


def of_deeplab_v3_plus(row):
    decoder = wider(coarse((row, row), 4), 1)
    aspp = wider(coarse(decoder, 4), 1 + 4)
    return wider((16 * aspp[0], 16 * aspp[1]), RESNET18)


NETWORKS = {
    "unet": (UNet(2, depth=1, padding="zeros", upsample="nearest", **PLAIN), of_unet),
    "resnet unet": (ResNetUNet(2, **PLAIN), of_resnet_unet),
    "deeplab v2": (DeepLabV2(2, encoder_depth=18, rates=(5, 2), **PLAIN), of_deeplab_v2),
    "deeplab v3+": (DeepLabV3Plus(2, encoder_depth=18, rates=(1, 4), channels=4, **PLAIN), of_deeplab_v3_plus),
}


def sees(model, row, rows, *, image_pooling=False):
    """Of each of `rows`, whether a logit of `row` sees it: with positive kernels and no biases nothing else lights."""
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
def test_a_logit_sees_its_receptive_field_and_no_more(model, field):
    row = next(row for row in range(0, 10_000, 37) if field(row)[0] > 0)
    first, last = field(row)
    assert sees(model, row, (first - 1, first, last, last + 1)) == [False, True, True, False]


def test_image_pooling_sees_the_whole_image():
    model, field = NETWORKS["deeplab v3+"]
    row = next(row for row in range(0, 10_000, 37) if field(row)[0] > 0)
    first, last = field(row)
    assert sees(model, row, (first - 1, first, last, last + 1), image_pooling=True) == [True] * 4
