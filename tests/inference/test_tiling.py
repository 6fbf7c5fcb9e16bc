import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segjax.inference import predict_tiled
from segjax.inference.predictor import tiles_along
from segjax.models import UNet

MODEL = UNet(3, width=4, depth=1)  # initial batch statistics, zero padding
REACH = 10  # upper bound of MODEL's receptive field to each side
IMAGE = np.random.default_rng(0).normal(size=(52, 70, 3)).astype(np.float32)
VARIABLES = jax.jit(partial(MODEL.init, train=False))(jax.random.key(0), IMAGE[None])


@jax.jit
def network(images):
    return jax.nn.softmax(MODEL.apply(VARIABLES, images, train=False).logits)


def doubled(tiles):
    return np.float32(2) * tiles


@given(st.data())
def test_tile_weights_are_a_partition_of_unity(data):
    tile = data.draw(st.integers(1, 20), "tile")
    length = tile + data.draw(st.integers(0, 40), "more")
    overlap = data.draw(st.integers(0, tile - 1), "overlap")
    starts, weights = tiles_along(length, tile, overlap)
    total = np.zeros(length)
    for start, one in zip(starts, weights, strict=True):
        total[start : start + tile] += one
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-15 * len(starts))
    assert (weights >= 0).all()
    assert (np.diff(starts) <= tile - overlap).all()
    assert (starts[0], starts[-1]) == (0, length - tile)


def test_tile_weights_equal_the_normalized_importance_map_of_nnunet():
    # A Gaussian of an eighth of the tile, for two tiles that share half.
    _, weights = tiles_along(12, 8, 4)
    bell = np.exp(-((np.arange(8) - 3.5) ** 2) / 2)
    np.testing.assert_allclose(weights[1, :4], bell[:4] / (bell[:4] + bell[4:]), rtol=1e-12)
    np.testing.assert_array_equal(weights[1, 4:], 1)


@pytest.mark.parametrize("size", [(9, 13), (8, 8), (3, 21), (1, 2)], ids=str)
def test_predict_tiled_of_a_constant_is_constant(size):
    found = predict_tiled(np.full((*size, 2), 0.3, np.float32), doubled, tile=(8, 6), overlap=3, batch=2)
    assert found.shape == (*size, 2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 0.6, rtol=3e-7)


def test_tiles_give_the_prediction_of_the_whole_image_where_they_hold_the_receptive_field():
    found = predict_tiled(IMAGE, network, tile=(36, 40), overlap=2 * REACH, batch=2)
    wrong = np.abs(found - network(IMAGE[None])[0]).max(axis=-1) > 2e-6
    starts = [tiles_along(side, tile, 2 * REACH)[0] for side, tile in zip(IMAGE.shape, (36, 40), strict=False)]
    near = []
    for side, tile, first in zip(IMAGE.shape, (36, 40), starts, strict=False):
        edges = np.concatenate([first[1:], first[:-1] + tile])
        near.append((np.abs(np.arange(side)[:, None] + 0.5 - edges) < REACH).any(axis=1))
    assert wrong.any()
    assert not wrong[~near[0]][:, ~near[1]].any()


def test_predict_tiled_compiles_once_for_all_sizes():
    shapes = []

    @jax.jit
    def predict(tiles):
        shapes.append(tiles.shape)
        return tiles.mean(axis=-1, keepdims=True) / 255

    for size in ((16, 16), (5, 40), (33, 17), (1, 1)):
        image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
        found = predict_tiled(image, predict, tile=(16, 16), overlap=4, batch=3)
        np.testing.assert_allclose(found[..., 0], image.mean(axis=-1) / 255, rtol=1e-5)
    assert shapes == [(3, 16, 16, 3)]


def test_predict_tiled_is_independent_of_the_batch():
    one, many = (predict_tiled(IMAGE, doubled, tile=(20, 30), overlap=7, batch=batch) for batch in (1, 5))
    np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predict_tiled_with_memory_mapped_image_and_result(tmp_path, dtype):
    np.save(tmp_path / "image.npy", IMAGE)
    image = np.load(tmp_path / "image.npy", mmap_mode="r")
    out = np.memmap(tmp_path / "maps", dtype, "w+", shape=IMAGE.shape)
    out[:] = 7  # left by an earlier use
    found = predict_tiled(image, doubled, tile=(20, 30), overlap=7, out=out)
    assert found is out
    np.testing.assert_allclose(np.memmap(tmp_path / "maps", dtype, "r", shape=IMAGE.shape), 2 * IMAGE, rtol=1e-6)


def test_a_nan_of_a_tile_stays_in_the_tile():
    image = np.ones((8, 12, 1), np.float32)
    image[0, 11] = np.nan

    def spread(tiles):
        return tiles + 0 * tiles.sum(axis=(1, 2, 3), keepdims=True)

    found = predict_tiled(image, spread, tile=(8, 8), overlap=4)
    assert np.isnan(found[:, 4:]).all()
    np.testing.assert_array_equal(found[:, :4], 1)


# Unwrapped from the tests' type checks.
TILED = partial(inspect.unwrap(predict_tiled), IMAGE, doubled, tile=(20, 30), overlap=7)
BROKEN = {
    "grey image": (
        lambda: inspect.unwrap(predict_tiled)(IMAGE[..., 0], doubled, tile=(4, 4), overlap=0),
        r"\[height, width, channels\] with pixels; got shape \(52, 70\)",
    ),
    "no pixels": (
        lambda: inspect.unwrap(predict_tiled)(IMAGE[:0], doubled, tile=(4, 4), overlap=0),
        r"with pixels; got shape \(0, 70, 3\)",
    ),
    "tile": (lambda: TILED(tile=(20, 0)), r"tile must be a positive height and width .*got \(20, 0\) and 1"),
    "batch": (lambda: TILED(batch=0), r"batch at least 1; got \(20, 30\) and 0"),
    "overlap": (lambda: TILED(overlap=20), r"less than the tile of 20 pixels; got 20"),
    "out's dtype": (
        lambda: TILED(out=np.zeros(IMAGE.shape, np.float16)),
        r"out must be float32 or float64 of shape \(52, 70, 3\); got float16 of \(52, 70, 3\)",
    ),
    "out's shape": (lambda: TILED(out=np.zeros((52, 70, 2))), r"got float64 of \(52, 70, 2\)"),
    "predict's result": (
        lambda: inspect.unwrap(predict_tiled)(IMAGE, lambda x: jnp.ones((1, 3, 3, 1)), tile=(20, 30), overlap=7),
        r"predict must give maps \[1, 20, 30, k\]; got shape \(1, 3, 3, 1\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_invalid_arguments(case):
    call, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        call()
