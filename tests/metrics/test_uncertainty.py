import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import entr, log_softmax, rel_entr, softmax
from sklearn.metrics import roc_auc_score

from segjax import metrics

CLASSES, SAMPLES = 3, 5
INVALID = -(2**31)
RNG = np.random.default_rng(0)
MC_LOGITS = (RNG.normal(size=(SAMPLES, 4, 7, CLASSES)) * 3).astype(np.float32)


def _oracle(logits):
    """Returns the uncertainties in float64, by SciPy."""
    probabilities = softmax(logits.astype(np.float64), axis=-1)
    mean = probabilities.mean(axis=0)
    return {
        "predictive_entropy": entr(mean).sum(axis=-1),
        "expected_entropy": entr(probabilities).sum(axis=-1).mean(axis=0),
        "mutual_information": rel_entr(probabilities, mean[None]).sum(axis=-1).mean(axis=0),
        "max_probability": probabilities[0].max(axis=-1),
        "log_mean_softmax": np.log(mean),
    }


def _plain(logits):
    """Returns the uncertainties by the textbook formulas, for their gradients."""
    p = jax.nn.softmax(logits, axis=-1)
    mean = jnp.mean(p, axis=0)
    entropy, entropies = -jnp.sum(mean * jnp.log(mean), -1), -jnp.mean(jnp.sum(p * jnp.log(p), -1), 0)
    return {
        "predictive_entropy": entropy,
        "expected_entropy": entropies,
        "mutual_information": entropy - entropies,
        "max_probability": jnp.max(p[0], axis=-1),
        "log_mean_softmax": jnp.log(mean),
    }


EXPECTED = _oracle(MC_LOGITS)
MEAN = softmax(MC_LOGITS.astype(np.float64), axis=-1).mean(axis=0)
FUNCTIONS = {
    "predictive_entropy": metrics.predictive_entropy,
    "expected_entropy": metrics.expected_entropy,
    "mutual_information": metrics.mutual_information,
    "max_probability": lambda z, **options: metrics.max_probability(z[0], **options),
    "log_mean_softmax": metrics.log_mean_softmax,
}
EACH = {name: jax.jit(function) for name, function in FUNCTIONS.items()}
each = pytest.mark.parametrize("name", EACH)


@functools.cache
def _sum_and_gradient(name):
    """Returns the compiled sum over the unmasked pixels and its gradient, as a function of logits and mask."""
    return jax.jit(jax.value_and_grad(lambda z, where: jnp.sum(FUNCTIONS[name](z, where=where))))


@each
def test_uncertainties_float64_oracle(name):
    np.testing.assert_allclose(EACH[name](MC_LOGITS), EXPECTED[name], rtol=1e-5, atol=1e-9)


@each
def test_uncertainties_bfloat16(name):
    logits = jnp.asarray(MC_LOGITS).astype(jnp.bfloat16)
    result = EACH[name](logits)
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, EACH[name](logits.astype(jnp.float32)))


@each
def test_uncertainties_float64(name):
    with jax.enable_x64(True):
        result = EACH[name](MC_LOGITS.astype(np.float64))
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, EXPECTED[name], rtol=1e-11, atol=1e-15)


@each
def test_uncertainties_extreme_logits(name):
    rows = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0], [-1e4, -1e4, -1e4]], np.float32)
    logits = np.stack([rows, rows[::-1], rows, rows, rows])[:, :, None].repeat(7, axis=2)
    value, gradient = _sum_and_gradient(name)(logits, np.ones((4, 7), bool))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", [name for name in EACH if name != "log_mean_softmax"])
def test_uncertainties_class_ruled_out(name):
    logits = np.where(np.arange(CLASSES) == 2, np.float32(-np.inf), MC_LOGITS)
    value, gradient = _sum_and_gradient(name)(logits, np.ones((4, 7), bool))
    np.testing.assert_allclose(value, _oracle(MC_LOGITS[..., :2])[name].sum(), rtol=1e-5)
    assert np.isfinite(gradient).all()


@each
def test_uncertainties_class_ruled_out_by_one_sample(name):
    logits = np.where(np.arange(SAMPLES).reshape(-1, 1, 1, 1) == 1, np.array([0, -np.inf, 1], np.float32), MC_LOGITS)
    assert np.isfinite(EACH[name](logits)).all()


@each
def test_uncertainties_gradients(name):
    logits = jnp.asarray(MC_LOGITS[:, 0] / 3)
    ours, plain = FUNCTIONS[name], lambda z: _plain(z)[name]
    gradients = [jax.jit(jax.grad(lambda z, f=f: jnp.sum(jnp.sin(f(z)))))(logits) for f in (ours, plain)]
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=2e-6)


@each
def test_uncertainties_masked_pixels(name):
    where = RNG.uniform(size=MC_LOGITS.shape[1:-1]) < 0.5
    for bad in (np.nan, np.inf, -np.inf):
        logits = np.where(where[..., None], MC_LOGITS, np.float32(bad))
        value, gradient = _sum_and_gradient(name)(logits, where)
        np.testing.assert_allclose(value, EXPECTED[name][where].sum(), rtol=1e-5)
        assert np.isfinite(gradient).all()
        assert not gradient[:, ~where].any()
        np.testing.assert_array_equal(np.asarray(EACH[name](logits, where=where))[~where], 0)


@each
def test_uncertainties_broadcast_and_empty_mask(name):
    column = np.array([True, False, True, True])[:, None]
    result = np.asarray(EACH[name](MC_LOGITS, where=column))
    np.testing.assert_allclose(result[2], EXPECTED[name][2], rtol=1e-5, atol=1e-9)
    assert not result[1].any()
    assert not np.asarray(EACH[name](MC_LOGITS, where=column & False)).any()


@each
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_uncertainties_nonfinite_logit(name, bad):
    logits = MC_LOGITS.copy()
    logits[0, 1, 2, 0] = bad
    result = np.asarray(EACH[name](logits)).reshape(4, 7, -1)
    assert np.isnan(result[1, 2]).any()
    assert np.isnan(result).any(axis=-1).sum() == 1


SMALL_LOGITS = st.lists(st.floats(-60, 60, width=32), min_size=6, max_size=6)
DECOMPOSITION = [EACH[name] for name in ("predictive_entropy", "expected_entropy", "mutual_information")]


@settings(max_examples=200)
@given(SMALL_LOGITS)
def test_mutual_information_nonnegative_and_entropies_add_up(values):
    logits = np.array(values, np.float32).reshape(3, 2)
    whole, expected, information = (float(f(logits)) for f in DECOMPOSITION)
    assert information >= 0
    assert expected >= 0
    assert whole == pytest.approx(expected + information, rel=1e-5, abs=1e-6)
    assert whole <= np.log(2) * (1 + 1e-6)


@pytest.mark.parametrize("size", [1e-1, 1e-2, 1e-3, 1e-4])
def test_mutual_information_small_values(size):
    logits = (RNG.normal(size=(SAMPLES, 50, CLASSES)) * size + 2 * RNG.normal(size=(50, CLASSES))).astype(np.float32)
    log_p = log_softmax(logits.astype(np.longdouble), axis=-1)
    log_mean = np.log(np.exp(log_p).mean(axis=0))
    exact = (np.exp(log_p) * (log_p - log_mean)).sum(axis=-1).mean(axis=0).astype(np.float64)
    np.testing.assert_allclose(EACH["mutual_information"](logits), exact, rtol=2e-6 / size)


def test_predictive_entropy_confident_pixels():
    logits = np.array([[[30.0, 0.0]], [[31.0, 0.0]]], np.float32)
    mean = softmax(logits.astype(np.longdouble), axis=-1).mean(axis=0)[0]
    rare = float(mean[1])
    exact = -rare * np.log(rare) - (1 - rare) * np.log1p(-rare)
    np.testing.assert_allclose(EACH["predictive_entropy"](logits)[0], exact, rtol=1e-5)


def test_mutual_information_equal_samples():
    one = MC_LOGITS[:1]
    for logits in (one, np.repeat(one, 3, axis=0)):
        np.testing.assert_array_equal(EACH["mutual_information"](logits), np.zeros((4, 7)))
        entropy = EACH["expected_entropy"](logits)
        np.testing.assert_allclose(EACH["predictive_entropy"](logits), entropy, rtol=1e-6)


def test_log_mean_softmax_is_logits():
    log_mean = np.asarray(EACH["log_mean_softmax"](MC_LOGITS))
    np.testing.assert_allclose(softmax(log_mean, axis=-1), MEAN, rtol=1e-5)
    np.testing.assert_allclose(EACH["max_probability"](log_mean[None]), MEAN.max(axis=-1), rtol=1e-5)
    bins = jax.jit(metrics.calibration_bins)(log_mean, RNG.integers(0, CLASSES, size=(4, 7)))
    assert bins.confidence.sum() == pytest.approx(MEAN.max(axis=-1).sum(), rel=1e-5)


patch_means = jax.jit(metrics.patch_means, static_argnames="patch")


@pytest.mark.parametrize("patch", [1, 2, 3, 10])
def test_patch_means_tile_the_image(patch):
    values = RNG.normal(size=(2, 5, 7)).astype(np.float32)
    where = RNG.uniform(size=values.shape) < 0.4
    where[0, :3, :3] = False
    means, kept = patch_means(np.where(where, values, np.nan), patch, where=where)
    assert means.shape == kept.shape == (2, -(-5 // patch), -(-7 // patch))
    for i, row, column in np.ndindex(means.shape):
        window = (i, slice(row * patch, (row + 1) * patch), slice(column * patch, (column + 1) * patch))
        inside = values[window][where[window]]
        assert kept[i, row, column] == (inside.size > 0)
        np.testing.assert_allclose(means[i, row, column], inside.mean() if inside.size else 0, rtol=1e-5)


def test_patch_means_booleans_and_broadcast_mask():
    means, kept = patch_means(np.array([[True, False, True, True]] * 2), 2)
    np.testing.assert_array_equal(means, [[0.5, 1.0]])
    assert kept.all()
    means, _ = patch_means(np.array([[1, 2], [3, 4]]), 2, where=np.array([True, False]))
    np.testing.assert_array_equal(means, [[2.0]])


uncertainty_histogram = jax.jit(metrics.uncertainty_histogram, static_argnames=("num_bins", "axis_name"))


def _sample(size, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.gamma(1.0, 0.2, size=size).astype(np.float32)
    return values, rng.uniform(size=size) > np.clip(values, 0.02, 0.9)


def test_uncertainty_histogram_bins_and_clamping():
    values = np.array([-1.0, -0.0, 0.25, 0.4999, 0.5, 1.9999, 2.0, 99.0, np.inf], np.float32)
    correct = np.arange(9) % 2 == 0
    histogram = uncertainty_histogram(values, correct, maximum=2, num_bins=8)
    assert histogram.dtype == jnp.int32
    np.testing.assert_array_equal(histogram[1], [1, 1, 1, 0, 0, 0, 0, 2])
    np.testing.assert_array_equal(histogram[0], [1, 1, 0, 0, 0, 0, 0, 2])


def test_uncertainty_histogram_masked_pixels():
    values, correct = _sample(40)
    where = np.arange(40) % 3 == 0
    expected = uncertainty_histogram(values[where], correct[where], maximum=1.0)
    masked = np.where(where, values, np.float32(np.nan))
    np.testing.assert_array_equal(uncertainty_histogram(masked, correct, maximum=1.0, where=where), expected)
    assert not uncertainty_histogram(masked, correct, maximum=1.0, where=where & False).any()


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(0, 2**31))
def test_uncertainty_histogram_any_split_adds_up(batches, seed):
    values, correct = _sample(60, seed)
    parts = np.random.default_rng(seed).permutation(np.arange(60) % batches)
    whole = uncertainty_histogram(values, correct, maximum=1.0)
    summed = sum(uncertainty_histogram(values, correct, maximum=1.0, where=parts == b) for b in range(batches))
    np.testing.assert_array_equal(summed, whole)


SCORES = (
    lambda h: metrics.accuracy_vs_uncertainty(h, 1.0),
    metrics.risk_coverage,
    metrics.area_under_risk_coverage,
    metrics.area_under_risk_coverage_bounds,
)


def test_uncertainty_histogram_nan():
    histogram = uncertainty_histogram(np.array([np.nan, 0.5], np.float32), np.ones(2, bool), maximum=1.0)
    np.testing.assert_array_equal(histogram, np.full((2, 1024), INVALID))
    run = np.asarray(histogram, np.int64) + 10**9
    for score in SCORES:
        with pytest.raises(ValueError, match=r"histogram has a negative count, -\d+: a NaN uncertainty was counted"):
            score(run)


def test_uncertainty_histogram_traced_maximum():
    values, correct = _sample(40)
    histogram = jax.jit(lambda top: uncertainty_histogram(values, correct, maximum=top, num_bins=7))
    np.testing.assert_array_equal(histogram(0.5), uncertainty_histogram(values, correct, maximum=0.5, num_bins=7))
    for wrong in (0.0, -1.0, np.nan, np.inf):
        np.testing.assert_array_equal(histogram(wrong), np.full((2, 7), INVALID))


def test_accuracy_vs_uncertainty_every_edge():
    values, correct = _sample(500)
    histogram = uncertainty_histogram(values, correct, maximum=1.0, num_bins=8)
    scores = metrics.accuracy_vs_uncertainty(histogram, 1.0)
    np.testing.assert_array_equal(scores["threshold"], np.arange(9) / 8)
    for i, threshold in enumerate(scores["threshold"]):
        certain = (values < threshold) | (i == 8)
        expected = {
            "accurate_given_certain": correct[certain].mean() if certain.any() else np.nan,
            "uncertain_given_inaccurate": (~certain)[~correct].mean(),
            "pavpu": ((correct & certain) | (~correct & ~certain)).mean(),
        }
        one = metrics.accuracy_vs_uncertainty(histogram, 1, threshold=float(threshold) * 0.99 + 0.001)
        for name, value in expected.items():
            np.testing.assert_allclose(scores[name][i], value, rtol=1e-12, err_msg=name)
            np.testing.assert_allclose(one[name], value, rtol=1e-12, err_msg=name)
            assert isinstance(one[name], float)
        assert one["threshold"] == threshold


def test_accuracy_vs_uncertainty_of_patches():
    # Four patches: accurate and certain, accurate and uncertain, inaccurate and certain, inaccurate and uncertain.
    entropy = np.kron([[0.1, 0.9], [0.1, 0.9]], np.ones((2, 2))).astype(np.float32)
    right = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 0, 0]], bool)
    means, kept = patch_means(entropy, 2)
    accuracy, _ = patch_means(right, 2)
    histogram = uncertainty_histogram(means, accuracy > 0.5, maximum=1.0, num_bins=4, where=kept)
    scores = metrics.accuracy_vs_uncertainty(histogram, 1.0, threshold=0.5)
    assert scores == {
        "threshold": 0.5,
        "accurate_given_certain": 0.5,
        "uncertain_given_inaccurate": 0.5,
        "pavpu": 0.5,
    }


def _exact_curve(values, correct):
    wrong = ~correct[np.argsort(values, kind="stable")]
    return np.cumsum(wrong) / np.arange(1, wrong.size + 1)


def _histogram(places, correct, bins):
    histogram = np.zeros((2, bins), np.int64)
    np.add.at(histogram, (correct.astype(int), places), 1)
    return histogram


def test_risk_coverage_sorted_curve():
    values, correct = _sample(2000)
    histogram = np.asarray(uncertainty_histogram(values, correct, maximum=1.0, num_bins=64))
    curve = metrics.risk_coverage(histogram)
    exact = _exact_curve(values, correct)
    covered = np.cumsum(histogram.sum(axis=0))
    np.testing.assert_allclose(curve["coverage"], covered / 2000, rtol=1e-12)
    np.testing.assert_allclose(curve["risk"], exact[covered - 1], rtol=1e-12)


@pytest.mark.parametrize("size", [1000, 200_000])
def test_area_under_risk_coverage_sorted_pixels(size):
    values, correct = _sample(size)
    histogram = uncertainty_histogram(values, correct, maximum=2.0)
    exact = _exact_curve(values, correct).mean()
    assert metrics.area_under_risk_coverage(histogram) == pytest.approx(exact, abs=2e-4)
    low, high = metrics.area_under_risk_coverage_bounds(histogram)
    assert low <= exact <= high
    assert high - low < 5e-3


def test_area_under_risk_coverage_one_pixel_per_bin():
    correct = np.random.default_rng(3).uniform(size=300) < 0.7
    histogram = _histogram(np.arange(300), correct, 300)
    exact = _exact_curve(np.arange(300), correct).mean()
    assert metrics.area_under_risk_coverage(histogram) == pytest.approx(exact, rel=1e-12)
    np.testing.assert_allclose(metrics.area_under_risk_coverage_bounds(histogram), [exact, exact], rtol=1e-10)


def test_area_under_risk_coverage_all_orders_in_a_bin():
    before, wrong_inside, right_inside = [True, False, True], 2, 3
    orders = set(itertools.permutations([False] * wrong_inside + [True] * right_inside))
    areas = [_exact_curve(np.arange(8), np.array([*before, *order])).mean() for order in orders]
    histogram = np.array([[0, 1, 0, wrong_inside], [1, 0, 1, right_inside]])
    assert metrics.area_under_risk_coverage(histogram) == pytest.approx(np.mean(areas), rel=1e-12)
    bounds = metrics.area_under_risk_coverage_bounds(histogram)
    np.testing.assert_allclose(bounds, [min(areas), max(areas)], rtol=1e-10)


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 400))
def test_area_under_risk_coverage_bounds_contain_exact_value(seed, bins, pixels):
    rng = np.random.default_rng(seed)
    places, correct = rng.integers(0, bins, size=pixels), rng.uniform(size=pixels) < rng.uniform()
    histogram = _histogram(places, correct, bins)
    low, high = metrics.area_under_risk_coverage_bounds(histogram)
    assert low <= metrics.area_under_risk_coverage(histogram) <= high
    for values in (places, places + rng.uniform(0, 0.5, size=pixels), places - 0.5 * correct, places + 0.5 * correct):
        assert low <= _exact_curve(values, correct).mean() <= high


def test_area_under_risk_coverage_billions_of_pixels():
    histogram = np.array([[10_000_000, 20_000_000], [8_990_000_000, 17_980_000_000]])
    area = metrics.area_under_risk_coverage(histogram)
    assert area == pytest.approx(1 / 900, rel=1e-9)
    low, high = metrics.area_under_risk_coverage_bounds(histogram)
    assert low < area < high


def test_selective_scores_nothing_counted():
    empty = np.zeros((2, 5), int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = [score(empty) for score in SCORES]
    assert np.isnan(results[0]["pavpu"]).all()
    assert np.isnan(results[1]["risk"]).all()
    assert np.isnan(results[1]["coverage"]).all()
    assert np.isnan(results[2])
    assert np.isnan(results[3]).all()


@pytest.mark.parametrize("row", [0, 1])
def test_area_under_risk_coverage_all_wrong_and_all_right(row):
    histogram = np.zeros((2, 5), int)
    histogram[row] = [3, 0, 4, 1, 0]
    area = metrics.area_under_risk_coverage(histogram)
    assert area == pytest.approx(1 - row, abs=1e-12)
    np.testing.assert_allclose(metrics.area_under_risk_coverage_bounds(histogram), [area, area], atol=1e-11)
    assert np.isnan(metrics.accuracy_vs_uncertainty(histogram, 1.0)["uncertain_given_inaccurate"]).all() == (row == 1)


U, RIGHT = np.zeros((2, 3), np.float32), np.ones((2, 3), bool)
BROKEN = {
    "integer logits": (
        lambda f: f.predictive_entropy(np.zeros((2, 3, 4), int)),
        TypeError,
        r"mc_logits must be floating point; got int32 of shape \(2, 3, 4\)",
    ),
    "no samples": (
        lambda f: f.mutual_information(MC_LOGITS[:0]),
        ValueError,
        r"mc_logits must be \[samples, \.\.\., classes\] with at least 2 classes and 1 sample; got .*\(0, 4, 7, 3\)",
    ),
    "no sample axis": (
        lambda f: f.expected_entropy(np.zeros(3, np.float32)),
        ValueError,
        r"mc_logits must be \[samples, \.\.\., classes\].*got shape \(3,\)",
    ),
    "one class": (
        lambda f: f.max_probability(MC_LOGITS[..., :1]),
        ValueError,
        r"logits must be \[\.\.\., classes\] with at least 2 classes, class last; got shape \(5, 4, 7, 1\)",
    ),
    "mask": (
        lambda f: f.log_mean_softmax(MC_LOGITS, where=np.ones(5, bool)),
        ValueError,
        r"where must have shape \(4, 7\).*got \(5,\)",
    ),
    "patch": (lambda f: f.patch_means(U, 0), ValueError, r"patch must be at least 1; got 0"),
    "row": (
        lambda f: f.patch_means(U[0], 2),
        ValueError,
        r"values must be \[\.\.\., height, width\]; got shape \(3,\)",
    ),
    "integer correct": (
        lambda f: f.uncertainty_histogram(U, RIGHT.astype(int), maximum=1.0),
        TypeError,
        r"correct must be boolean; got int32",
    ),
    "correct of another shape": (
        lambda f: f.uncertainty_histogram(U, RIGHT[0], maximum=1.0),
        ValueError,
        r"correct must have the shape of uncertainty, \(2, 3\); got \(3,\)",
    ),
    "integer uncertainty": (
        lambda f: f.uncertainty_histogram(U.astype(int), RIGHT, maximum=1.0),
        TypeError,
        r"uncertainty must be floating point; got int32",
    ),
    "no bins": (
        lambda f: f.uncertainty_histogram(U, RIGHT, maximum=1.0, num_bins=0),
        ValueError,
        r"num_bins must be at least 1; got 0",
    ),
    "no maximum": (
        lambda f: f.uncertainty_histogram(U, RIGHT, maximum=0.0),
        ValueError,
        r"maximum must be finite and more than 0; got 0",
    ),
    "many maxima": (
        lambda f: f.uncertainty_histogram(U, RIGHT, maximum=np.ones(2)),
        ValueError,
        r"maximum must be a scalar; got shape \(2,\)",
    ),
    "maximum of the scores": (
        lambda f: f.accuracy_vs_uncertainty(np.ones((2, 4), int), float("inf")),
        ValueError,
        r"maximum must be finite and more than 0; got inf",
    ),
    "threshold": (
        lambda f: f.accuracy_vs_uncertainty(np.ones((2, 4), int), 0.7, threshold=0.8),
        ValueError,
        r"threshold must be between 0 and the maximum, 0\.7; got 0\.8",
    ),
    "float counts": (
        lambda f: f.risk_coverage(np.ones((2, 4))),
        TypeError,
        r"histogram must be integers .*got float64",
    ),
    "one row": (
        lambda f: f.area_under_risk_coverage(np.ones(5, int)),
        ValueError,
        r"histogram must be \[2, bins\], wrong and right pixels; got shape \(5,\)",
    ),
    "traced": (
        lambda f: jax.jit(f.area_under_risk_coverage)(np.ones((2, 5), int)),
        TypeError,
        r"histogram must be known on the host; got a traced array",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_uncertainty_broken_input(case, raw):
    call, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        call(raw)


# Whole images


@pytest.mark.parametrize("aggregation", ["mean", "patch", "threshold"])
def test_image_uncertainty_equals_loops(aggregation):
    u, where = RNG.uniform(size=(3, 8, 11)).astype(np.float32), RNG.uniform(size=(3, 8, 11)) < 0.4
    where[1] = False
    noise = np.where(where, u, np.nan)
    values = metrics.image_uncertainty(noise, aggregation, patch=3, threshold=0.6, where=where)
    expected = []
    for image, keep in zip(u, where, strict=True):
        patches = [(i, j) for i in range(6) for j in range(9)] if aggregation == "patch" else [(0, 0)]
        height, width = (3, 3) if aggregation == "patch" else (8, 11)
        means = []
        for i, j in patches:
            area = np.s_[i : i + height, j : j + width]
            chosen = image[area][keep[area] & ((image[area] > 0.6) | (aggregation != "threshold"))]
            means += [chosen.mean()] if chosen.size else []
        expected.append(max(means, default=0))
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_image_uncertainty_patch_larger_than_the_image_is_the_mean():
    u = RNG.uniform(size=(4, 5)).astype(np.float32)
    patch, mean = metrics.image_uncertainty(u, "patch", patch=50), metrics.image_uncertainty(u)
    np.testing.assert_allclose(patch, mean, rtol=1e-6)


def test_image_uncertainty_threshold_is_needed():
    with pytest.raises(ValueError, match='aggregation="threshold" needs a threshold'):
        metrics.image_uncertainty(np.ones((2, 2), np.float32), "threshold")


def test_failure_detection_augrc_equals_its_closed_form():
    # Traub et al., equation 6: (1 - AUROC) acc (1 - acc) + (1 - acc)² / 2.
    rng = np.random.default_rng(0)
    failed = rng.uniform(size=200) < 0.3
    unsure = rng.normal(size=200) + failed
    accuracy = 1 - failed.mean()
    expected = (1 - roc_auc_score(failed, unsure)) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert metrics.failure_detection(failed.astype(float), unsure)["augrc"] == pytest.approx(expected, rel=1e-12)


def test_failure_detection_equals_the_mean_over_the_orders_of_ties():
    risks, unsure = np.array([0.1, 0.9, 0.4, 0.0, 0.6]), np.array([1.0, 1.0, 0.0, 1.0, 2.0])
    orders = []
    for tied in itertools.permutations([0, 1, 3]):
        r = risks[[2, *tied, 4]]
        orders.append((np.cumsum(r) / np.arange(1, 6)).mean())
    scores = metrics.failure_detection(risks, unsure)
    assert scores["aurc"] == pytest.approx(np.mean(orders), rel=1e-12)
    perfect = metrics.failure_detection(risks, risks)
    assert perfect["excess_aurc"] == 0 < scores["excess_aurc"]


@pytest.mark.parametrize(("risks", "unsure"), [([], []), ([-0.1], [0.0]), ([np.nan], [0.0]), ([0.1], [np.nan])])
def test_failure_detection_broken_input(risks, unsure):
    with pytest.raises(ValueError, match="risks must be"):
        metrics.failure_detection(np.array(risks, float), np.array(unsure, float))


@pytest.mark.parametrize("aggregation", ["mean", "patch", "threshold"])
def test_image_uncertainty_of_an_unmasked_nan_is_nan(aggregation):
    u = np.full((4, 4), 0.8, np.float32)
    u[0, 0] = np.nan
    assert np.isnan(metrics.image_uncertainty(u, aggregation, threshold=0.5))
