import dataclasses
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from scipy.special import logit, softmax, xlogy

from segjax import metrics
from segjax.inference import (
    LOGIT_SCORES,
    UNCERTAINTIES,
    Ensemble,
    PredictOptions,
    Predictor,
    Preprocessing,
    head_uncertainty,
    predict_options,
    predict_tiled,
    predictor,
    whole_passes,
)
from segjax.inference.predictor import mask_and_calibrated_logits
from segjax.models import UNet

CLASSES = 3
MODEL = UNet(CLASSES, width=4, depth=1, padding="zeros")
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (20, 28, 3)).astype(np.uint8)
SIZES = ((20, 28), (9, 40), (33, 17))
PREPROCESSING = Preprocessing((16, 24), 3, (0.5,), (0.5,), CLASSES)
TWO = PREPROCESSING._replace(num_classes=2)  # the third output is void
WHOLE, TILES = PredictOptions((16, 24)), PredictOptions((16, 24), scale=1.0, overlap=6, batch=2)
replace = dataclasses.replace


@pytest.fixture(scope="module")
def variables():
    # Compiling `init` would take longer than the tests.
    shapes = jax.eval_shape(partial(MODEL.init, train=False), jax.random.key(0), jnp.zeros((1, 8, 8, 3)))

    def draw(path, one):
        values = RNG.normal(size=one.shape)
        if path[-1].key == "kernel":
            return jnp.asarray(values * 1.5 / np.prod(one.shape[:-1]) ** 0.5, jnp.float32)
        return jnp.asarray(0.5 + 0.5 * abs(values), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def members(variables):
    """Returns the variables of two networks."""
    return variables, jax.tree.map(lambda x: x[..., ::-1], variables)


def normalise(pixels):
    return pixels / 127.5 - 1


@pytest.fixture(scope="module")
def predictor_of(variables):
    """Returns `predictor_of(options)`, which makes and compiles each predictor once for all tests."""
    made = {}

    def make(options, *, preprocessing=PREPROCESSING, probabilities=True, model=MODEL):
        key = (options, preprocessing, probabilities, model)
        if key not in made:
            made[key] = Predictor(model, variables, preprocessing, options, probabilities=probabilities)
        return made[key]

    return make


@pytest.fixture(scope="module")
def logits_of(variables):
    """Returns a function from an image `[h, w, 3]` to the network's logits at its own size."""
    clean = jax.jit(lambda x: MODEL.apply(variables, normalise(x[None]), train=False).logits[0])
    return lambda image: np.asarray(clean(jnp.asarray(image, jnp.float32)))


def by_jax(x, size, antialias):
    return np.asarray(
        jax.image.resize(jnp.asarray(x, jnp.float32), (*size, x.shape[-1]), "linear", antialias=antialias)
    )


@pytest.mark.parametrize("name", LOGIT_SCORES)
def test_logit_score_is_that_of_the_resized_logits(predictor_of, logits_of, name):
    found = predictor_of(replace(WHOLE, logit_score=name))(IMAGE)
    logits = by_jax(logits_of(by_jax(IMAGE, WHOLE.tile, True)), IMAGE.shape[:2], False)
    assert list(found.uncertainties) == ["entropy", name]
    np.testing.assert_allclose(found.uncertainties[name], LOGIT_SCORES[name](logits), atol=3e-4)


@pytest.mark.parametrize("several", [{"samples": 2}, {"augment": "flip"}, {"members": 3}], ids=str)
def test_logit_score_needs_one_pass(several):
    with pytest.raises(ValueError, match=r"^uncertainty=energy is a score of one pass .*: remove augment, samples"):
        replace(WHOLE, logit_score="energy", **several)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_default_prediction_resizes_the_image_and_the_logits(predictor_of, logits_of, size):
    image = np.resize(IMAGE, (*size, 3))
    expected = by_jax(logits_of(by_jax(image, WHOLE.tile, True)), size, False)
    found = predictor_of(WHOLE)(image)
    p = softmax(expected, axis=-1)
    assert found.probabilities.dtype == found.uncertainties["entropy"].dtype == np.float32
    assert list(found.uncertainties) == ["entropy"]
    np.testing.assert_allclose(found.probabilities, p, atol=1e-4)
    np.testing.assert_allclose(found.uncertainties["entropy"], -xlogy(p, p).sum(-1), atol=3e-4)
    np.testing.assert_array_equal(found.mask, found.probabilities.argmax(-1))
    assert (found.mask == expected.argmax(-1)).mean() > 0.995


@pytest.mark.parametrize(
    "options",
    [WHOLE, TILES, replace(TILES, samples=3, augment="flip", scale=0.7)],
    ids=["whole", "tiles", "samples in resized tiles"],
)
def test_images_of_all_sizes_share_one_compilation(variables, options):
    traced = []

    class Counted(UNet):
        def __call__(self, images, **options):
            traced.append(images.shape)
            return super().__call__(images, **options)

    fields = {"width": 4, "depth": 1, "padding": "zeros"}
    predict = Predictor(Counted(CLASSES, **fields), variables, PREPROCESSING, options)
    for size in SIZES:
        assert predict(np.resize(IMAGE, (*size, 3))).mask.shape == size
        before = list(traced) if size == SIZES[0] else before
    assert traced == before


@pytest.mark.parametrize("options", [WHOLE, TILES], ids=["whole", "tiles"])
def test_predict_batch_equals_single_predictions(predictor_of, options):
    images = [np.resize(IMAGE, (*size, 3)) for size in SIZES]
    together = predictor_of(replace(options, batch=2))
    for image, found in zip(images, together.predict_batch(images), strict=True):
        expected = predictor_of(options)(image)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
        np.testing.assert_array_equal(found.uncertainties.keys(), expected.uncertainties.keys())


def test_one_tile_of_the_whole_image_equals_the_whole_image(predictor_of, logits_of):
    image = IMAGE[:19, :27]  # the network pads it to 20×28
    found = predictor_of(PredictOptions((20, 28), scale=1.0))(image)
    np.testing.assert_allclose(found.probabilities, softmax(logits_of(image), axis=-1), atol=1e-5)


def test_a_tile_larger_than_the_image_is_filled_by_reflection(predictor_of, logits_of):
    continued = np.pad(IMAGE[:13, :20], ((0, 3), (0, 4), (0, 0)), mode="reflect")
    found = predictor_of(TILES)(IMAGE[:13, :20])
    np.testing.assert_allclose(found.probabilities, softmax(logits_of(continued), axis=-1)[:13, :20], atol=1e-5)


def test_tiles_without_samples_blend_logits(predictor_of, logits_of):
    blended = predict_tiled(
        IMAGE, lambda tiles: np.stack([logits_of(tile) for tile in tiles]), tile=TILES.tile, overlap=TILES.overlap
    )
    np.testing.assert_allclose(predictor_of(TILES)(IMAGE).probabilities, softmax(blended, axis=-1), atol=1e-5)


def test_samples_of_one_tile_equal_head_uncertainty(predictor_of, variables):
    options = PredictOptions((20, 28), scale=1.0, samples=4, rate=0.3, seed=5)
    features = jax.jit(lambda x: MODEL.apply(variables, normalise(x[None]), train=False).features)(IMAGE)
    head = variables["params"]["head"]["linear"]
    expected = jax.jit(partial(head_uncertainty, samples=4, rate=0.3))(
        features, head["kernel"], head["bias"], jax.random.key(5)
    )
    found = predictor_of(options)(IMAGE)
    np.testing.assert_allclose(found.probabilities, expected.probabilities[0], atol=1e-5)
    assert tuple(found.uncertainties) == options.uncertainties == UNCERTAINTIES
    named = {"entropy": expected.predictive_entropy, "mutual_information": expected.mutual_information}
    for name, values in {**named, "variance": expected.variance}.items():
        np.testing.assert_allclose(found.uncertainties[name], values[0], rtol=1e-3, atol=1e-5)
        assert values.mean() > 0.005


def test_passes_equal_whole_passes(predictor_of, variables):
    deep = MODEL.clone(deep_dropout=1, deep_rate=0.4)
    options, key = PredictOptions((20, 28), scale=1.0, passes=3, seed=5), jax.random.key(5)
    found = predictor_of(options, model=deep)(IMAGE)
    passes = jax.jit(lambda x: whole_passes(deep, variables, x, key, samples=3, examples=jnp.zeros(1, int))[1])
    expected = passes(normalise(jnp.asarray(IMAGE, jnp.float32)[None]))
    np.testing.assert_allclose(found.probabilities, expected.probabilities[0], atol=1e-5)
    information = found.uncertainties["mutual_information"]
    np.testing.assert_allclose(information, expected.mutual_information[0], rtol=1e-3, atol=1e-5)
    assert information.mean() > 1e-3


ONE_TILE = PredictOptions((20, 28), scale=1.0)


@pytest.mark.parametrize(
    "options",
    [ONE_TILE, replace(TILES, augment="flip"), replace(ONE_TILE, samples=4, rate=0.3, seed=5)],
    ids=["one tile", "augmented tiles", "dropout"],
)
def test_ensemble_averages_its_members(predictor_of, members, options):
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *members)
    predict = Predictor(Ensemble(MODEL, 2, CLASSES), stacked, PREPROCESSING, options, probabilities=True)
    found, *single = predict(IMAGE), *(predictor_of(options).with_variables(one)(IMAGE) for one in members)
    np.testing.assert_allclose(found.probabilities, np.mean([one.probabilities for one in single], 0), atol=1e-5)
    unsure = found.uncertainties
    assert tuple(unsure) == UNCERTAINTIES
    # The expected entropy is the mean of the members'; the rest of the entropy is mutual information.
    expected = [one.uncertainties["entropy"] - one.uncertainties.get("mutual_information", 0) for one in single]
    np.testing.assert_allclose(unsure["entropy"] - unsure["mutual_information"], np.mean(expected, 0), atol=3e-4)
    assert unsure["mutual_information"].mean() > 0.01
    if options is ONE_TILE:
        clean = jax.jit(lambda one: MODEL.apply(one, normalise(jnp.float32(IMAGE[None])), train=False).logits[0])
        variance = np.var([clean(one) for one in members], axis=0, ddof=1).mean(-1)
        np.testing.assert_allclose(unsure["variance"], variance, rtol=1e-3, atol=1e-4)


def test_flip_augmentation_is_equivariant_to_flips(predictor_of):
    predict = predictor_of(replace(WHOLE, augment="flip"))
    mirrored = predict(IMAGE[:, ::-1]).probabilities[:, ::-1]
    np.testing.assert_allclose(predict(IMAGE).probabilities, mirrored, atol=1e-4)
    assert np.abs(predictor_of(WHOLE)(IMAGE).probabilities - mirrored).max() > 0.01


def test_threshold_applies_to_the_log_odds_of_the_positive_class(predictor_of):
    two = {"preprocessing": TWO}
    p = predictor_of(WHOLE, **two)(IMAGE).probabilities.astype(float)
    odds = float(np.median(np.log(p[..., 1] / p[..., 0])))
    assert predictor_of(replace(WHOLE, threshold=odds), **two)(IMAGE).mask.mean() == pytest.approx(0.5, abs=0.01)


def test_threshold_of_one_of_many_classes_leaves_the_likeliest_of_the_others(predictor_of):
    p = predictor_of(WHOLE)(IMAGE).probabilities.astype(float)
    odds = np.log(p[..., 2] / p[..., :2].sum(-1))
    middle = float(np.median(odds))
    mask = predictor_of(replace(WHOLE, threshold=middle, positive=2))(IMAGE).mask
    clear = abs(odds - middle) > 1e-3
    np.testing.assert_array_equal(mask[clear], np.where(odds >= middle, 2, p[..., :2].argmax(-1))[clear])
    assert clear.mean() > 0.9


@pytest.fixture(scope="module")
def logits():
    """Returns class logits of a block, some of them equal in the two largest."""
    z = RNG.normal(size=(30, 40, CLASSES)).astype(np.float32)
    return np.where(RNG.random((30, 40, 1)) < 0.1, z[..., :1], z)


@pytest.mark.parametrize("temperature", [0.3, 7.0])
def test_scaling_calibrates_probabilities_and_entropy_and_leaves_the_mask(logits, temperature):
    scaling = metrics.Scaling((1 / temperature,) * CLASSES, (0.0,) * CLASSES)
    plain = mask_and_calibrated_logits(jnp.asarray(logits), WHOLE)
    mask, calibrated = mask_and_calibrated_logits(jnp.asarray(logits), replace(WHOLE, scaling=scaling))
    np.testing.assert_array_equal(mask, plain[0])
    np.testing.assert_array_equal(plain[1], logits)
    np.testing.assert_allclose(calibrated, logits / temperature, rtol=1e-6)


def test_predictor_with_a_scaling(predictor_of):
    scaling = metrics.Scaling((0.5, 1.0, 2.0), (0.1, 0.0, -0.1))
    plain, found = predictor_of(WHOLE)(IMAGE), predictor_of(replace(WHOLE, scaling=scaling))(IMAGE)
    np.testing.assert_array_equal(found.mask, plain.mask)
    assert (abs(found.probabilities - plain.probabilities) > 1e-3).mean() > 0.9
    np.testing.assert_allclose(found.probabilities.sum(-1), 1, rtol=1e-6)
    q = found.probabilities
    np.testing.assert_allclose(found.uncertainties["entropy"], -xlogy(q, q).sum(-1), atol=1e-5)


@pytest.mark.parametrize("name", LOGIT_SCORES)
def test_logit_score_is_of_the_unscaled_logits(predictor_of, name):
    options = replace(WHOLE, logit_score=name)
    scaling = metrics.Scaling((0.5, 1.0, 2.0), (0.1, 0.0, -0.1))
    plain, found = predictor_of(options)(IMAGE), predictor_of(replace(options, scaling=scaling))(IMAGE)
    np.testing.assert_array_equal(found.uncertainties[name], plain.uncertainties[name])
    assert (found.uncertainties["entropy"] != plain.uncertainties["entropy"]).any()


@pytest.mark.parametrize("scaled", [True, False])
def test_threshold_with_a_scaling_is_of_the_log_odds_with_or_without_it(logits, scaled):
    scaling = metrics.Scaling((0.5, 1.0, 2.0), (0.1, 0.0, -0.1))
    options = replace(WHOLE, threshold=0.3, positive=2, scaling=scaling, scale_threshold=scaled)
    z = logits.astype(float) * scaling.scale + scaling.bias if scaled else logits.astype(float)
    p = softmax(z, axis=-1)
    odds = np.log(p[..., 2] / p[..., :2].sum(-1))
    mask, clear = np.asarray(mask_and_calibrated_logits(jnp.asarray(logits), options)[0]), abs(odds - 0.3) > 1e-4
    np.testing.assert_array_equal(mask[clear], np.where(odds >= 0.3, 2, logits[..., :2].argmax(-1))[clear])


@pytest.mark.parametrize("adaptive", [False, True])
def test_sets_contain_the_classes_that_reach_their_threshold_without_the_scaling(predictor_of, adaptive):
    scaling, thresholds = metrics.Scaling((0.1,) * CLASSES, (0.0,) * CLASSES), (-1.0, -0.5, 0.0)
    plain = predictor_of(WHOLE)(IMAGE)
    found = predictor_of(replace(WHOLE, scaling=scaling, set_thresholds=thresholds, adaptive_sets=adaptive))(IMAGE)
    assert plain.sets is None
    p = plain.probabilities.astype(float)
    if adaptive:
        likelier = p[..., None, :] * (p[..., None, :] > p[..., None])
        p = 1 - likelier.sum(-1)
        assert (found.sets.sum(-1) >= 1).all()
    odds = logit(np.clip(p, 1e-9, 1 - 1e-9))
    clear = (abs(odds - thresholds) > 1e-3).all(-1)
    np.testing.assert_array_equal(found.sets[clear], (odds >= thresholds)[clear])
    assert clear.mean() > 0.9
    assert len(np.unique(found.sets.sum(-1))) > 1


def test_radius_dilates_the_mask_of_the_positive_class(predictor_of, monkeypatch):
    monkeypatch.setattr(predictor, "BLOCK", 7)  # blocks with neighbours on all sides
    mask = predictor_of(WHOLE)(IMAGE).mask
    positive = int(np.bincount(mask.ravel())[1:].argmin()) + 1
    expected = np.where(distance_transform_edt(mask != positive) <= 2, positive, mask)
    np.testing.assert_array_equal(predictor_of(replace(WHOLE, radius=2.0, positive=positive))(IMAGE).mask, expected)
    assert (mask != expected).any()


def test_maps_in_a_file_give_the_same_prediction(predictor_of, tmp_path, monkeypatch):
    predict = predictor_of(replace(TILES, augment="flip"), probabilities=False)
    expected, shapes = predict(IMAGE), []

    def in_file(shape):
        shapes.append(shape)
        return np.memmap(tmp_path / "maps", np.float32, "w+", shape=shape)

    monkeypatch.setattr(predictor, "scratch", in_file)
    found = predict(IMAGE)
    assert shapes == [(20, 28, 2 * CLASSES + 2)]
    assert found.probabilities is None
    np.testing.assert_array_equal(found.mask, expected.mask)
    for name, values in expected.uncertainties.items():
        np.testing.assert_array_equal(found.uncertainties[name], values)


def test_with_variables_shares_the_programs(predictor_of, variables):
    predict = predictor_of(WHOLE)
    doubled = predict.with_variables(jax.tree.map(lambda x: 2 * x, variables))
    assert doubled._tile_maps is predict._tile_maps
    assert not np.allclose(doubled(IMAGE).probabilities, predict(IMAGE).probabilities)


def test_predict_options_non_default():
    assert predict_options((16, 24), batch=3, rate=0.1, seed=4).non_default() == {}
    scaling = metrics.Scaling((0.5,), (0.0,))
    assert predict_options((16, 24), threshold=0.1, scaling=scaling, scale_threshold=False).non_default() == {}
    assert predict_options((16, 24), overlap=2).non_default() == {"scale": 1.0, "overlap": 2, "tile": [16, 24]}
    assert predict_options((16, 24), tile=(8, 32)).overlap == 2
    sampled = predict_options((16, 24), samples=3, augment="d4")
    assert sampled.non_default() == {"samples": 3, "augment": "d4", "rate": 0.2}


def test_passes_of_a_network_without_dropout_are_refused(predictor_of):
    with pytest.raises(ValueError, match=r"whole passes need a model with deep_dropout > 0 .*got deep_dropout=0"):
        predictor_of(PredictOptions((16, 24), passes=3), probabilities=False)


BROKEN = {
    "two masks": ({"threshold": 0.5, "radius": 2.0}, r"threshold and radius exclude each other; got 0.5 and 2"),
    "one sample": ({"samples": 1}, r"samples must be 0 \(none\) or at least 2, .*got 1"),
    "both": ({"samples": 2, "passes": 3}, r"samples and passes exclude each other; got samples 2 and passes 3"),
    "one pass": ({"passes": 1}, r"passes must be 0 \(none\) or at least 2, .*got 1"),
    "overlap": ({"overlap": 16}, r"overlap must be at least 0 and less than the tile's 16 pixels; got 16"),
    "scale": ({"scale": 0.0}, r"scale must be more than 0; got 0"),
    "batch": ({"batch": 0}, r"batch must be at least 1; got 0"),
    "augmentation": ({"augment": "flips"}, r"augment must be one of none, flip, d4, scales; got 'flips'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_predict_options_out_of_range(case):
    fields, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(predict_options)((16, 24), **fields)


MULTILABEL = PREPROCESSING._replace(multilabel=True)


def test_predictor_multilabel_is_a_sigmoid_per_class(variables, logits_of):
    image = IMAGE[:16, :24]
    median = np.median(logits_of(image), axis=(0, 1))
    log_odds, linear = logits_of(image) - median, variables["params"]["head"]["linear"]
    head = {"linear": linear | {"bias": linear["bias"] - median}}
    variables = variables | {"params": variables["params"] | {"head": head}}
    found = Predictor(MODEL, variables, MULTILABEL, probabilities=True)(image)
    p = 1 / (1 + np.exp(-log_odds.astype(np.float64)))
    np.testing.assert_allclose(found.probabilities, p, rtol=1e-4, atol=1e-6)
    clear = abs(log_odds) > 1e-5
    np.testing.assert_array_equal(found.mask[clear], log_odds[clear] > 0)
    assert 0 < (found.mask.sum(axis=-1) > 1).mean() < 1  # classes overlap
    entropy = -(xlogy(p, p) + xlogy(1 - p, 1 - p)).sum(axis=-1)
    np.testing.assert_allclose(found.uncertainties["entropy"], entropy, rtol=1e-3, atol=1e-5)
    of_one = Predictor(MODEL, variables, MULTILABEL, replace(WHOLE, threshold=logit(0.2), positive=1))(image).mask
    np.testing.assert_array_equal(of_one[..., 1], found.probabilities[..., 1] >= 0.2)
    np.testing.assert_array_equal(of_one[..., ::2], found.mask[..., ::2])


def test_predictor_multilabel_samples_are_those_of_each_class_alone(variables):
    image, options = IMAGE[:16, :24], replace(WHOLE, augment="flip", samples=3, rate=0.3)
    found = Predictor(MODEL, variables, MULTILABEL, options, probabilities=True)(image)
    one = UNet(1, width=4, depth=1, padding="zeros")
    alone = []
    for c in range(CLASSES):
        head = jax.tree.map(lambda x, c=c: x[..., c : c + 1], variables["params"]["head"])
        own = variables | {"params": variables["params"] | {"head": head}}
        alone.append(Predictor(one, own, TWO, options, probabilities=True)(image))
    p = np.stack([each.probabilities[..., 1] for each in alone], axis=-1)
    np.testing.assert_allclose(found.probabilities, p, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.mask, np.stack([each.mask == 1 for each in alone], axis=-1))
    # The variance of a class alone is the mean of those of the logits 0 and z.
    for name, factor in (("entropy", 1), ("mutual_information", 1), ("variance", 2 / CLASSES)):
        expected = factor * np.sum([each.uncertainties[name] for each in alone], axis=0)
        np.testing.assert_allclose(found.uncertainties[name], expected, rtol=1e-3, atol=1e-4)


def test_predictor_multilabel_ensemble_and_tiles_average_the_sigmoids(variables, members):
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *members)
    image, model = IMAGE[:16, :24], Ensemble(MODEL, 2, CLASSES, multilabel=True)
    alone = [Predictor(MODEL, one, MULTILABEL, probabilities=True)(image).probabilities for one in members]
    for options in (WHOLE, TILES):
        found = Predictor(model, stacked, MULTILABEL, options, probabilities=True)(image).probabilities
        np.testing.assert_allclose(found, np.mean(alone, axis=0), rtol=1e-4, atol=1e-5)
    network_input = jnp.asarray(normalise(image)[None], jnp.float32)
    outputs = jax.jit(partial(model.apply, train=False))(stacked, network_input).logits[0]
    np.testing.assert_allclose(jax.nn.sigmoid(outputs), np.mean(alone, axis=0), rtol=1e-4, atol=1e-5)


def test_predictor_multilabel_refuses_options_of_one_class_per_pixel(variables):
    with pytest.raises(ValueError, match="set_thresholds is of one class per pixel"):
        Predictor(MODEL, variables, MULTILABEL, replace(WHOLE, set_thresholds=(0.0,) * CLASSES))
