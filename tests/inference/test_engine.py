import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax, xlogy

from segjax.inference import (
    UNCERTAINTIES,
    Way,
    chosen_way,
    engine,
    head_uncertainty,
    make_engine,
    predict_tiled,
    whole_passes,
)
from segjax.models import UNet

CLASSES = 3
MODEL = UNet(CLASSES, width=4, depth=1, padding="zeros")
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (20, 28, 3)).astype(np.uint8)
SIZES = ((20, 28), (9, 40), (33, 17))
WHOLE, TILES = Way((16, 24)), Way((16, 24), scale=1.0, overlap=6, batch=2)


@pytest.fixture(scope="module")
def variables():
    # Compiling `init` takes longer than all else here.
    shapes = jax.eval_shape(partial(MODEL.init, train=False), jax.random.key(0), jnp.zeros((1, 8, 8, 3)))

    def draw(path, one):
        values = RNG.normal(size=one.shape)
        if path[-1].key == "kernel":
            return jnp.asarray(values * 1.5 / np.prod(one.shape[:-1]) ** 0.5, jnp.float32)
        return jnp.asarray(0.5 + 0.5 * abs(values), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def normalise(pixels):
    return pixels / 127.5 - 1


@pytest.fixture(scope="module")
def engine_of(variables):
    """`engine_of(way)`, each made and compiled once for all tests."""
    made = {}

    def make(way, **options):
        options = {"normalise": normalise, "class_logits": lambda logits: logits, "probabilities": True} | options
        return make_engine(MODEL, variables, way, **options)

    def kept(way, **options):
        return make(way, **options) if options else made.setdefault(way, make(way))

    return kept


@pytest.fixture(scope="module")
def logits_of(variables):
    """The network's logits of one image `[h, w, 3]` at its own size."""
    clean = jax.jit(lambda x: MODEL.apply(variables, normalise(x[None]), train=False).logits[0])
    return lambda image: np.asarray(clean(jnp.asarray(image, jnp.float32)))


def by_jax(x, size, antialias):
    return np.asarray(
        jax.image.resize(jnp.asarray(x, jnp.float32), (*size, x.shape[-1]), "linear", antialias=antialias)
    )


@pytest.mark.parametrize("size", [(7, 9), (50, 31), (20, 40)], ids=str)
def test_the_hosts_resizing_is_the_devices(size):
    np.testing.assert_allclose(engine._resized(IMAGE, size), by_jax(IMAGE, size, True), atol=2e-3)
    maps, rows = RNG.normal(size=(20, 28, 5)).astype(np.float32), slice(2, 6)
    np.testing.assert_allclose(engine._band(maps, size, rows), by_jax(maps, size, False)[rows], atol=1e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_plain_way_is_the_resized_image_and_the_resized_logits(engine_of, logits_of, size):
    image = np.resize(IMAGE, (*size, 3))
    expected = by_jax(logits_of(by_jax(image, WHOLE.tile, True)), size, False)
    found = engine_of(WHOLE)(image)
    p = softmax(expected, axis=-1)
    assert found.probabilities.dtype == found.uncertainties["entropy"].dtype == np.float32
    assert list(found.uncertainties) == ["entropy"]
    np.testing.assert_allclose(found.probabilities, p, atol=1e-4)
    np.testing.assert_allclose(found.uncertainties["entropy"], -xlogy(p, p).sum(-1), atol=3e-4)
    np.testing.assert_array_equal(found.mask, found.probabilities.argmax(-1))
    assert (found.mask == expected.argmax(-1)).mean() > 0.995


@pytest.mark.parametrize(
    "way",
    [WHOLE, TILES, TILES._replace(samples=3, augment="flip", scale=0.7)],
    ids=["whole", "tiles", "samples in resized tiles"],
)
def test_all_sizes_are_one_compilation(engine_of, way):
    traced = []

    def counted(pixels):
        traced.append(pixels.shape)
        return normalise(pixels)

    predict = engine_of(way, normalise=counted)
    for size in SIZES:
        assert predict(np.resize(IMAGE, (*size, 3))).mask.shape == size
    assert traced == [(way.batch, *way.tile, 3)]


@pytest.mark.parametrize("way", [WHOLE, TILES], ids=["whole", "tiles"])
def test_images_that_pass_the_network_together_are_as_alone(engine_of, way):
    images = [np.resize(IMAGE, (*size, 3)) for size in SIZES]
    together = engine_of(way._replace(batch=2))
    for image, found in zip(images, together.many(images), strict=True):
        expected = engine_of(way)(image)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
        np.testing.assert_array_equal(found.uncertainties.keys(), expected.uncertainties.keys())


def test_one_tile_of_the_whole_image_is_the_whole_image(engine_of, logits_of):
    image = IMAGE[:19, :27]  # which the network itself pads to 20×28
    found = engine_of(Way((20, 28), scale=1.0))(image)
    np.testing.assert_allclose(found.probabilities, softmax(logits_of(image), axis=-1), atol=1e-5)


def test_a_larger_tile_is_the_image_continued_by_reflection(engine_of, logits_of):
    continued = np.pad(IMAGE[:13, :20], ((0, 3), (0, 4), (0, 0)), mode="reflect")
    found = engine_of(TILES)(IMAGE[:13, :20])
    np.testing.assert_allclose(found.probabilities, softmax(logits_of(continued), axis=-1)[:13, :20], atol=1e-5)


def test_tiles_of_a_clean_pass_blend_its_logits(engine_of, logits_of):
    blended = predict_tiled(
        IMAGE, lambda tiles: np.stack([logits_of(tile) for tile in tiles]), tile=TILES.tile, overlap=TILES.overlap
    )
    np.testing.assert_allclose(engine_of(TILES)(IMAGE).probabilities, softmax(blended, axis=-1), atol=1e-5)


def test_samples_of_one_tile_are_those_of_the_head(engine_of, variables):
    way = Way((20, 28), scale=1.0, samples=4, rate=0.3, seed=5)
    features = jax.jit(lambda x: MODEL.apply(variables, normalise(x[None]), train=False).features)(IMAGE)
    head = variables["params"]["head"]["linear"]
    expected = jax.jit(partial(head_uncertainty, samples=4, rate=0.3))(
        features, head["kernel"], head["bias"], jax.random.key(5)
    )
    found = engine_of(way)(IMAGE)
    np.testing.assert_allclose(found.probabilities, expected.probabilities[0], atol=1e-5)
    assert tuple(found.uncertainties) == way.uncertainties == UNCERTAINTIES
    named = {"entropy": expected.predictive_entropy, "mutual_information": expected.mutual_information}
    for name, values in {**named, "variance": expected.variance}.items():
        np.testing.assert_allclose(found.uncertainties[name], values[0], rtol=1e-3, atol=1e-5)
        assert values.mean() > 0.005


def test_passes_are_whole_ones_with_the_networks_own_dropout(variables):
    deep = MODEL.clone(deep_dropout=1, deep_rate=0.4)
    way, key = Way((20, 28), scale=1.0, passes=3, seed=5), jax.random.key(5)
    parts = {"normalise": normalise, "class_logits": lambda logits: logits, "probabilities": True}
    found = make_engine(deep, variables, way, **parts)(IMAGE)
    passes = jax.jit(lambda x: whole_passes(deep, variables, x, key, samples=3, examples=jnp.zeros(1, int))[1])
    expected = passes(normalise(jnp.asarray(IMAGE, jnp.float32)[None]))
    np.testing.assert_allclose(found.probabilities, expected.probabilities[0], atol=1e-5)
    information = found.uncertainties["mutual_information"]
    np.testing.assert_allclose(information, expected.mutual_information[0], rtol=1e-3, atol=1e-5)
    assert information.mean() > 1e-3


def test_the_mean_over_flips_is_flipped_with_the_image(engine_of):
    predict = engine_of(WHOLE._replace(augment="flip"))
    mirrored = predict(IMAGE[:, ::-1]).probabilities[:, ::-1]
    np.testing.assert_allclose(predict(IMAGE).probabilities, mirrored, atol=1e-4)
    assert np.abs(engine_of(WHOLE)(IMAGE).probabilities - mirrored).max() > 0.01


def test_a_threshold_is_of_the_log_odds_of_the_second_class(engine_of):
    two = {"class_logits": lambda logits: logits[..., :2]}
    p = engine_of(WHOLE, **two)(IMAGE).probabilities.astype(float)
    odds = float(np.median(np.log(p[..., 1] / p[..., 0])))
    assert engine_of(WHOLE._replace(threshold=odds), **two)(IMAGE).mask.mean() == pytest.approx(0.5, abs=0.01)


def test_a_threshold_of_one_of_many_classes_leaves_the_others_to_the_likeliest(engine_of):
    p = engine_of(WHOLE)(IMAGE).probabilities.astype(float)
    odds = np.log(p[..., 2] / p[..., :2].sum(-1))
    middle = float(np.median(odds))
    mask = engine_of(WHOLE._replace(threshold=middle, positive=2))(IMAGE).mask
    clear = abs(odds - middle) > 1e-3
    np.testing.assert_array_equal(mask[clear], np.where(odds >= middle, 2, p[..., :2].argmax(-1))[clear])
    assert clear.mean() > 0.9


def test_maps_in_a_file_change_nothing_and_nobody_asks_for_probabilities(engine_of, tmp_path):
    asked = []

    def second_in_file(shape, dtype):
        asked.append(shape)
        return np.empty(shape, dtype) if len(asked) == 1 else np.memmap(tmp_path / "maps", dtype, "w+", shape=shape)

    predict = engine_of(TILES._replace(augment="flip"), empty=second_in_file, probabilities=False)
    expected, found = predict(IMAGE), predict(IMAGE)
    assert asked == [(20, 28, 2 * CLASSES + 2)] * 2
    assert found.probabilities is None
    np.testing.assert_array_equal(found.mask, expected.mask)
    for name, values in expected.uncertainties.items():
        np.testing.assert_array_equal(found.uncertainties[name], values)


def test_a_way_remembers_on_what_the_mask_depends():
    assert chosen_way((16, 24), batch=3, rate=0.1, seed=4).differing() == {}
    assert chosen_way((16, 24), overlap=2).differing() == {"scale": 1.0, "overlap": 2, "tile": [16, 24]}
    assert chosen_way((16, 24), tile=(8, 32)).overlap == 2
    sampled = chosen_way((16, 24), samples=3, augment="d4")
    assert sampled.differing() == {"samples": 3, "augment": "d4", "rate": 0.2}


def test_passes_of_a_network_without_dropout_are_refused(engine_of):
    with pytest.raises(ValueError, match=r"whole passes differ by their dropout: .*got deep_dropout=0"):
        engine_of(Way((16, 24), passes=3), probabilities=False)


BROKEN = {
    "one sample": ({"samples": 1}, r"samples must be 0 \(none\) or at least 2, .*got 1"),
    "both": ({"samples": 2, "passes": 3}, r"samples of the head or whole passes, not both; got 2 and 3"),
    "one pass": ({"passes": 1}, r"passes must be 0 \(none\) or at least 2, .*got 1"),
    "overlap": ({"overlap": 16}, r"overlap must be at least 0 and less than the tile's 16 pixels; got 16"),
    "scale": ({"scale": 0.0}, r"scale must be more than 0; got 0"),
    "batch": ({"batch": 0}, r"batch at least 1; got \(16, 24\), 0"),
    "augmentation": ({"augment": "flips"}, r"augment must be one of none, flip, d4, scales; got 'flips'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_way_that_makes_no_sense_is_named(case):
    fields, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(chosen_way)((16, 24), **fields)
