import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from segjax import metrics

CLASSES, BINS = 4, 15
INVALID = -(2**31)
RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(3, 9, 11, CLASSES)) * 2).astype(np.float32)
LABELS = np.where(RNG.uniform(size=LOGITS.shape[:-1]) < 0.5, LOGITS.argmax(-1), RNG.integers(0, CLASSES, (3, 9, 11)))
PROBABILITIES = softmax(LOGITS.astype(np.float64), axis=-1)
CONFIDENCE = PROBABILITIES.max(axis=-1).ravel()
CORRECT = (LOGITS.argmax(axis=-1) == LABELS).ravel()

COUNTED = calibration_bins, classwise_calibration_bins, proper_score_sums = [
    jax.jit(
        f, static_argnames=("num_bins", "axis_name") if "num_bins" in inspect.signature(f).parameters else "axis_name"
    )
    for f in (metrics.calibration_bins, metrics.classwise_calibration_bins, metrics.proper_score_sums)
]
BIN_SCORES = (
    metrics.expected_calibration_error,
    metrics.maximum_calibration_error,
    metrics.reliability_diagram,
)
SUM_SCORES = (metrics.brier_score, metrics.negative_log_likelihood)


def _oracle(confidence, correct, num_bins=BINS):
    """Returns count, correct and sum of confidence in float64, in the bins (a, b]."""
    places = np.searchsorted(np.linspace(0, 1, num_bins + 1)[1:-1], confidence)
    return [np.bincount(places, weights, num_bins) for weights in (np.ones_like(confidence), correct, confidence)]


def _wide(sums):
    return jax.tree.map(lambda x: np.asarray(x, np.int64 if x.dtype == jnp.int32 else np.float64), sums)


def _assert_equal_sums(result, expected, rtol):
    for one, other in zip(result, expected, strict=True):
        if np.issubdtype(np.asarray(one).dtype, np.integer):
            np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_allclose(one, other, rtol=rtol)


def test_calibration_bins_float64_oracle():
    bins = calibration_bins(LOGITS, LABELS)
    assert [x.dtype for x in bins] == [jnp.int32, jnp.int32, jnp.float32]
    _assert_equal_sums(bins, _oracle(CONFIDENCE, CORRECT), rtol=1e-6)


def test_classwise_calibration_bins_float64_oracle():
    bins = classwise_calibration_bins(LOGITS, LABELS, num_bins=10)
    for c in range(CLASSES):
        expected = _oracle(PROBABILITIES[..., c].ravel(), (c == LABELS).ravel(), 10)
        _assert_equal_sums([x[c] for x in bins], expected, rtol=1e-6)


def test_calibration_errors_definition():
    bins = calibration_bins(LOGITS, LABELS)
    counts, correct, confidence = _oracle(CONFIDENCE, CORRECT)
    some = counts > 0
    gap = np.abs(correct[some] - confidence[some]) / counts[some]
    expected = (gap * counts[some]).sum() / counts.sum()
    assert metrics.expected_calibration_error(bins) == pytest.approx(expected, abs=1e-6)
    assert metrics.maximum_calibration_error(bins) == pytest.approx(gap.max(), abs=1e-6)


def test_classwise_calibration_error_mean_of_classes():
    errors = metrics.classwise_calibration_error(classwise_calibration_bins(LOGITS, LABELS))
    expected = []
    for c in range(CLASSES):
        _, hits, probability = _oracle(PROBABILITIES[..., c].ravel(), (c == LABELS).ravel())
        expected.append(np.abs(hits - probability).sum() / LABELS.size)
    np.testing.assert_allclose(errors["calibration_error_per_class"], expected, atol=1e-6)
    assert errors["mean_calibration_error"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_reliability_diagram_scikit_learn():
    diagram = metrics.reliability_diagram(calibration_bins(LOGITS, LABELS))
    accuracy, confidence = calibration_curve(CORRECT, CONFIDENCE, n_bins=BINS)
    some = diagram["share"] > 0
    np.testing.assert_allclose(diagram["accuracy"][some], accuracy, rtol=1e-12)
    np.testing.assert_allclose(diagram["confidence"][some], confidence, rtol=1e-6)
    assert np.isnan(diagram["accuracy"][~some]).all()
    assert np.isnan(diagram["confidence"][~some]).all()
    assert diagram["share"].sum() == pytest.approx(1)
    np.testing.assert_array_equal(diagram["edges"], np.linspace(0, 1, BINS + 1))


def test_reliability_diagram_per_class():
    bins = classwise_calibration_bins(LOGITS, LABELS)
    diagram = metrics.reliability_diagram(bins)
    np.testing.assert_allclose(diagram["share"].sum(axis=-1), np.ones(CLASSES))
    accuracy, _ = calibration_curve((LABELS == 2).ravel(), PROBABILITIES[..., 2].ravel(), n_bins=BINS)
    np.testing.assert_allclose(diagram["accuracy"][2][diagram["share"][2] > 0], accuracy, rtol=1e-12)


def test_calibration_bins_closed_at_the_right():
    # Equal logits and classes ruled out give p = 1/4, 1/2 and 1 without rounding.
    out = -jnp.inf
    logits = jnp.array([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, out, out], [0.0, 0.0, out, out], [out, 0.0, out, out]])
    labels = jnp.zeros(4, jnp.int32)
    np.testing.assert_array_equal(calibration_bins(logits, labels, num_bins=4).count, [1, 2, 0, 1])
    classwise = classwise_calibration_bins(logits, labels, num_bins=4)
    np.testing.assert_array_equal(classwise.count, [[2, 2, 0, 0], [1, 2, 0, 1], [4, 0, 0, 0], [4, 0, 0, 0]])


def test_calibration_bins_near_an_edge():
    edges = np.linspace(0, 1, BINS + 1)[8:-1]
    logits = np.log(edges / (1 - edges)).astype(np.float32)[:, None]
    for _ in range(4):
        logits = np.concatenate([np.nextafter(logits[:, :1], -9), logits, np.nextafter(logits[:, -1:], 9)], axis=1)
    logits = np.stack([np.zeros_like(logits), logits], axis=-1)
    confidence = np.asarray(jax.nn.softmax(logits).max(axis=-1), np.float64)
    bins = calibration_bins(logits, np.ones(logits.shape[:-1], int))
    np.testing.assert_array_equal(bins.count, _oracle(confidence.ravel(), np.ones(confidence.size))[0])


def test_proper_scores_scikit_learn():
    sums = proper_score_sums(LOGITS, LABELS)
    labels, probabilities = LABELS.ravel(), PROBABILITIES.reshape(-1, CLASSES)
    one_hot = np.eye(CLASSES)[labels]
    assert sums.count == LABELS.size
    nll = sklearn_metrics.log_loss(labels, probabilities)
    np.testing.assert_allclose(metrics.negative_log_likelihood(sums), nll, rtol=1e-6)
    brier = CLASSES * sklearn_metrics.mean_squared_error(one_hot, probabilities)
    np.testing.assert_allclose(metrics.brier_score(sums), brier, rtol=1e-6)


def test_brier_score_two_classes():
    labels = LABELS.ravel() % 2
    sums = proper_score_sums(LOGITS[..., :2].reshape(-1, 2), labels)
    positive = softmax(LOGITS[..., :2].reshape(-1, 2).astype(np.float64), axis=-1)[:, 1]
    binary = sklearn_metrics.brier_score_loss(labels, positive)
    np.testing.assert_allclose(metrics.brier_score(sums), 2 * binary, rtol=1e-6)


@pytest.mark.parametrize("margin", [5.0, 30.0, 80.0])
def test_proper_score_sums_confident_pixels(margin):
    logits = np.array([[margin, 0.0, -1.0]], np.float32)
    sums = proper_score_sums(logits, np.array([0]))
    others = np.exp([-margin, -margin - 1])
    np.testing.assert_allclose(sums.nll, np.log1p(others.sum()), rtol=1e-5)
    if margin < 80:  # float32 has no 1e-70
        brier = (others.sum() ** 2 + (others**2).sum()) / (1 + others.sum()) ** 2
        np.testing.assert_allclose(sums.brier, brier, rtol=1e-5)


def test_proper_scores_true_class_ruled_out():
    sums = proper_score_sums(np.array([[0.0, -np.inf]], np.float32), np.array([1]))
    assert metrics.brier_score(sums) == 2
    assert metrics.negative_log_likelihood(sums) == np.inf


def test_calibration_sums_quarter_million_pixels():
    size = 2**18 + 3
    # Nearly all in the last bin and nearly equal: the worst case for a sequential sum in float32.
    logits = np.zeros((size, 2), np.float32)
    logits[:, 0] = 9.0 + RNG.uniform(size=size) * 0.01
    logits[::100, 0] = RNG.normal(size=len(logits[::100]))
    labels = (RNG.uniform(size=size) < 0.1).astype(np.int32)
    probabilities = softmax(logits.astype(np.float64), axis=-1)
    right = logits.argmax(axis=-1) == labels
    bins = calibration_bins(logits, labels)
    expected = _oracle(probabilities.max(axis=-1), right)
    _assert_equal_sums(bins, expected, rtol=1e-6)
    classwise = classwise_calibration_bins(logits, labels)
    # Probabilities of 1e-4 are rounded to 2^-24 each.
    np.testing.assert_allclose(classwise.confidence[1], _oracle(probabilities[:, 1], labels)[2], rtol=1e-6, atol=0.03)
    sums = proper_score_sums(logits, labels)
    log_p = log_softmax(logits.astype(np.float64), axis=-1)[np.arange(size), labels]
    np.testing.assert_allclose(sums.nll, -log_p.sum(), rtol=1e-5)
    brier = ((probabilities - np.eye(2)[labels]) ** 2).sum()
    np.testing.assert_allclose(sums.brier, brier, rtol=1e-5)


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(0, 2**31))
def test_calibration_sums_any_split_adds_up(batches, seed):
    rng = np.random.default_rng(seed)
    logits, labels = (rng.normal(size=(60, 3)) * 3).astype(np.float32), rng.integers(0, 3, size=60)
    where = rng.uniform(size=60) < 0.8
    parts = rng.permutation(np.arange(60) % batches)
    for counted in COUNTED:
        whole = _wide(counted(logits, labels, where=where))
        total = jax.tree.map(np.zeros_like, whole)
        for b in range(batches):
            total = jax.tree.map(np.add, total, counted(logits, labels, where=where & (parts == b)))
        assert [x.dtype for x in total] == [x.dtype for x in whole]
        _assert_equal_sums(total, whole, rtol=1e-5)


@pytest.mark.parametrize("counted", COUNTED)
def test_calibration_sums_masked_pixels(counted):
    where = np.random.default_rng(1).uniform(size=LABELS.shape) < 0.5
    logits = np.where(where[..., None], LOGITS, np.array([np.nan, np.inf, 0, -np.inf], np.float32))
    expected = counted(LOGITS[where], LABELS[where])
    for void in (255, -1, 2**31 - 1):
        _assert_equal_sums(counted(logits, np.where(where, LABELS, void), where=where), expected, rtol=1e-6)


@pytest.mark.parametrize("counted", COUNTED)
def test_calibration_sums_broadcast_mask(counted):
    rows = np.array([True, False, True]).reshape(3, 1, 1)
    result = counted(LOGITS, LABELS, where=rows)
    _assert_equal_sums(result, counted(LOGITS[[0, 2]], LABELS[[0, 2]]), rtol=1e-6)


def test_proper_score_sums_gradient_of_masked_nan():
    logits = jnp.array([[np.nan, 0.0], [1.0, 2.0]])
    where = jnp.array([False, True])
    gradient = jax.jit(jax.grad(lambda z: proper_score_sums(z, jnp.array([255, 0]), where=where).nll))(logits)
    np.testing.assert_allclose(gradient, [[0, 0], [-0.7310586, 0.7310586]], rtol=1e-6)


def test_calibration_scores_all_void():
    void = np.zeros(LABELS.shape, bool)
    results = [counted(LOGITS * np.nan, LABELS + 255, where=void) for counted in COUNTED]
    for result in results:
        assert all((np.asarray(x) == 0).all() for x in result)
    bins, classwise, sums = results
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(metrics.expected_calibration_error(bins))
        assert np.isnan(metrics.maximum_calibration_error(bins))
        assert np.isnan(metrics.reliability_diagram(bins)["share"]).all()
        assert np.isnan(metrics.classwise_calibration_error(classwise)["mean_calibration_error"])
        assert all(np.isnan(score(sums)) for score in SUM_SCORES)


def test_classwise_calibration_error_one_class_present():
    labels = np.zeros_like(LABELS)
    errors = metrics.classwise_calibration_error(classwise_calibration_bins(LOGITS, labels))
    # The error of a class that is never true is its mean probability.
    means = PROBABILITIES.reshape(-1, CLASSES).mean(axis=0)
    np.testing.assert_allclose(errors["calibration_error_per_class"][1:], means[1:], rtol=1e-6)


@pytest.mark.parametrize("counted", COUNTED)
def test_calibration_sums_bfloat16(counted):
    narrow = jnp.asarray(LOGITS).astype(jnp.bfloat16)
    result = counted(narrow, LABELS)
    _assert_equal_sums(result, counted(narrow.astype(jnp.float32), LABELS), rtol=0)
    assert result[-1].dtype == jnp.float32


@pytest.mark.parametrize("counted", COUNTED)
def test_calibration_sums_big_endian_and_booleans(counted):
    logits, labels = LOGITS[..., :2], LABELS % 2
    expected = counted(logits, labels)
    function = inspect.unwrap(counted)
    # Constants of the program: `jit` does not take big-endian arguments.
    big_endian, booleans = jax.jit(
        lambda: (function(logits.astype(">f4"), labels.astype(">i2")), function(logits, labels == 1))
    )()
    _assert_equal_sums(big_endian, expected, rtol=1e-6)
    _assert_equal_sums(booleans, expected, rtol=1e-6)


BAD_PIXELS = {
    "label too large": ([0.0, 1.0], 2),
    "negative label": ([0.0, 1.0], -1),
    "void label": ([0.0, 1.0], 255),
    "NaN": ([np.nan, 1.0], 0),
    "infinite": ([np.inf, 1.0], 0),
    "all ruled out": ([-np.inf, -np.inf], 0),
}


@pytest.mark.parametrize("counted", COUNTED)
@pytest.mark.parametrize("bad", BAD_PIXELS)
def test_calibration_sums_invalid_pixel(counted, bad):
    logits, label = BAD_PIXELS[bad]
    result = counted(np.array([logits, [1.0, 0.0]], np.float32), np.array([label, 0]))
    for x in result:
        expected = INVALID if x.dtype == jnp.int32 else np.nan
        np.testing.assert_array_equal(x, np.full(x.shape, expected, x.dtype))


@pytest.mark.parametrize("score", [*BIN_SCORES, *SUM_SCORES, metrics.classwise_calibration_error])
def test_calibration_scores_refuse_invalid_batch(score):
    counted = {
        metrics.classwise_calibration_error: classwise_calibration_bins,
        **dict.fromkeys(BIN_SCORES, calibration_bins),
        **dict.fromkeys(SUM_SCORES, proper_score_sums),
    }[score]
    good, bad = (_wide(counted(LOGITS, labels)) for labels in (LABELS, LABELS + CLASSES))
    run = jax.tree.map(lambda x, y: x * 10**6 + y, good, bad)
    with pytest.raises(ValueError, match=r"count has a negative count, -\d+: a label outside \[0, C\) or a NaN"):
        score(run)


@pytest.mark.parametrize("score", [*BIN_SCORES, *SUM_SCORES])
def test_calibration_scores_refuse_nan_sum(score):
    counted = proper_score_sums if score in SUM_SCORES else calibration_bins
    result = counted(LOGITS, LABELS)
    result = jax.tree.map(lambda x: x if x.dtype == jnp.int32 else x * jnp.nan, result)
    with pytest.raises(ValueError, match=r"(bins\.confidence|sums\.(brier|nll)) is NaN: a label outside"):
        score(result)


FLAT = metrics.CalibrationBins(np.ones(5, int), np.ones(5, int), np.ones(5))
ROWS = metrics.CalibrationBins(np.ones((2, 5), int), np.ones((2, 5), int), np.ones((2, 5)))
BROKEN = {
    "integer logits": (
        lambda f: f.calibration_bins(np.zeros((3, 2), int), np.zeros(3, int)),
        TypeError,
        r"logits must be floating point; got int32 of shape \(3, 2\)",
    ),
    "float labels": (
        lambda f: f.proper_score_sums(LOGITS, LABELS * np.float32(1)),
        TypeError,
        r"labels must be integers; got float32 of shape \(3, 9, 11\)",
    ),
    "one logit": (
        lambda f: f.classwise_calibration_bins(LOGITS[..., :1], LABELS),
        ValueError,
        r"logits must be \[\.\.\., classes\] with at least 2 classes.* got shape \(3, 9, 11, 1\).* stack 0 and z",
    ),
    "shape": (
        lambda f: f.calibration_bins(LOGITS, LABELS[:2]),
        ValueError,
        r"labels must have the shape of logits without their class axis, \(3, 9, 11\); got \(2, 9, 11\)",
    ),
    "mask": (
        lambda f: f.calibration_bins(LOGITS, LABELS, where=np.ones(4, bool)),
        ValueError,
        r"where must have shape \(3, 9, 11\).* got \(4,\)",
    ),
    "integer mask": (
        lambda f: f.proper_score_sums(LOGITS, LABELS, where=np.ones(11, int)),
        TypeError,
        r"where must be boolean; got int32",
    ),
    "no bins": (
        lambda f: f.calibration_bins(LOGITS, LABELS, num_bins=0),
        ValueError,
        r"num_bins must be at least 1; got 0",
    ),
    "negative class-wise bins": (
        lambda f: f.classwise_calibration_bins(LOGITS, LABELS, num_bins=-1),
        ValueError,
        r"num_bins must be at least 1; got -1",
    ),
    "class-wise bins for ECE": (
        lambda f: f.expected_calibration_error(ROWS),
        ValueError,
        r"bins must be \[bins\], from calibration_bins; got shape \(2, 5\)",
    ),
    "class-wise bins for MCE": (
        lambda f: f.maximum_calibration_error(ROWS),
        ValueError,
        r"bins must be \[bins\], from calibration_bins; got shape \(2, 5\)",
    ),
    "bins of the top label for classes": (
        lambda f: f.classwise_calibration_error(FLAT),
        ValueError,
        r"bins must be \[classes, bins\], from classwise_calibration_bins; got shape \(5,\)",
    ),
    "bins without an axis": (
        lambda f: f.reliability_diagram(jax.tree.map(np.sum, FLAT)),
        ValueError,
        r"bins must be \[bins\] or \[classes, bins\]; got shape \(\)",
    ),
    "float counts": (
        lambda f: f.expected_calibration_error(FLAT._replace(count=np.ones(5))),
        TypeError,
        r"bins\.count must be integers .*got float64",
    ),
    "bins of two lengths": (
        lambda f: f.reliability_diagram(FLAT._replace(correct=np.ones(4, int))),
        ValueError,
        r"bins\.correct must have the shape of bins\.count, \(5,\); got \(4,\)",
    ),
    "sums of a batch": (
        lambda f: f.brier_score(metrics.ProperScoreSums(np.ones(2, int), np.ones(2), np.ones(2))),
        ValueError,
        r"sums\.count and sums\.brier must be scalars; got shapes \(2,\) and \(2,\)",
    ),
    "float count": (
        lambda f: f.negative_log_likelihood(metrics.ProperScoreSums(np.ones(()), np.ones(()), np.ones(()))),
        TypeError,
        r"sums\.count must be integers .*got float64",
    ),
    "traced": (
        lambda f: jax.jit(f.expected_calibration_error)(FLAT),
        TypeError,
        r"bins\.count must be known on the host; got a traced array of shape \(5,\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_calibration_broken_input(case, raw):
    call, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        call(raw)


# Scaling of the logits


def _overconfident(pixels=3000, classes=4, seed=0):
    """Returns logits three times too large for their labels, with a bias towards the last class."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(pixels, classes)) * 2
    labels = (softmax(honest, axis=-1).cumsum(axis=-1) > rng.uniform(size=(pixels, 1))).argmax(axis=-1)
    return (3 * honest + np.arange(classes)).astype(np.float32), labels


def _likelihood(logits, labels):
    return metrics.negative_log_likelihood(metrics.proper_score_sums(logits, labels))


@pytest.mark.parametrize("kind", ["temperature", "class", "vector"])
def test_fit_scaling_equals_scipys_optimum(kind):
    logits, labels = _overconfident()
    scaling = metrics.fit_scaling(logits, labels, kind=kind)
    size = {"temperature": 1, "class": 4, "vector": 7}[kind]

    def unpack(x):
        scale = np.repeat(x[:1], 4) if kind == "temperature" else x[:4]
        return scale, np.append(x[4:], -x[4:].sum()) if kind == "vector" else np.zeros(4)

    def loss(x):
        scale, bias = unpack(x)
        return -log_softmax(logits.astype(np.float64) * scale + bias, axis=-1)[np.arange(len(labels)), labels].mean()

    start = np.concatenate([np.ones(min(size, 4)), np.zeros(max(size - 4, 0))])
    best = minimize(loss, start, method="BFGS", options={"gtol": 1e-9, "xrtol": 1e-12})
    scale, bias = unpack(best.x)
    np.testing.assert_allclose(scaling.scale, scale, rtol=1e-4)
    np.testing.assert_allclose(scaling.bias, bias, atol=1e-4)
    assert _likelihood(metrics.scale_logits(logits, scaling), labels) < _likelihood(logits, labels)


def test_fit_scaling_temperature_recovers_the_factor_and_keeps_the_likeliest_class():
    logits, labels = _overconfident(pixels=20_000)
    logits = logits - np.arange(4, dtype=np.float32)
    scaling = metrics.fit_scaling(logits, labels)
    np.testing.assert_allclose(1 / scaling.scale, 3.0, rtol=0.05)
    assert not scaling.bias.any()
    np.testing.assert_array_equal(metrics.scale_logits(logits, scaling).argmax(-1), logits.argmax(-1))


def test_fit_scaling_ignores_masked_pixels():
    logits, labels = _overconfident()
    where = np.arange(len(labels)) % 3 != 0
    noise = np.where(where[:, None], logits, np.nan).astype(np.float32)
    masked = metrics.fit_scaling(noise, np.where(where, labels, 255), where=where)
    np.testing.assert_array_equal(masked.scale, metrics.fit_scaling(logits[where], labels[where]).scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, y: (z, z.argmax(-1), "temperature"), "no unique optimum"),
        (lambda z, y: (z, np.minimum(y, 2), "vector"), r"pixels of all classes; \[3\] have none"),
        (lambda z, y: (-z, y, "temperature"), "expected all above 0"),
        (lambda z, y: (z[:0], y[:0], "temperature"), "at least one unmasked pixel"),
        (lambda z, y: (z * np.inf, y, "temperature"), "finite logits"),
        (lambda z, y: (z * np.float32(1e-40), y, "temperature"), "float32.*multiply the logits"),
        (lambda z, y: (z, y + 1, "temperature"), "labels in"),
        (lambda z, y: (z, y, "matrix"), "kind must be one of"),
    ],
)
def test_fit_scaling_degenerate_calibration_set(change, message):
    logits, labels, kind = change(*_overconfident(pixels=300))
    with pytest.raises(ValueError, match=message):
        metrics.fit_scaling(logits, labels, kind=kind)


@pytest.mark.parametrize("num_bins", [1, 15])
def test_adaptive_calibration_error_equals_sorted_groups(num_bins):
    logits, labels = _overconfident(pixels=30_000)
    log_odds = np.asarray(metrics.class_log_odds(logits)).max(axis=-1)
    correct = logits.argmax(axis=-1) == labels
    ours = metrics.adaptive_calibration_error(metrics.score_histogram(log_odds, correct), num_bins=num_bins)
    order = np.argsort(log_odds)
    confidence = 1 / (1 + np.exp(-log_odds.astype(np.float64)))
    groups = [np.array_split(x[order], num_bins) for x in (confidence, correct)]
    expected = np.mean([abs(c.mean() - a.mean()) for c, a in zip(*groups, strict=True)])
    assert ours == pytest.approx(expected, abs=2e-3)
    calibrated = metrics.scale_logits(logits, metrics.fit_scaling(logits, labels, kind="vector"))
    odds = jnp.max(metrics.class_log_odds(calibrated), axis=-1)
    assert (
        metrics.adaptive_calibration_error(
            metrics.score_histogram(odds, calibrated.argmax(-1) == labels), num_bins=num_bins
        )
        < 0.02
    )


def test_adaptive_calibration_error_without_pixels_is_nan():
    assert np.isnan(metrics.adaptive_calibration_error(np.zeros((2, 4096), int)))


@pytest.mark.parametrize("kind", ["temperature", "class", "vector"])
@pytest.mark.parametrize("factor", [1e-6, 1e4])
def test_fit_scaling_has_no_unit(kind, factor):
    logits, labels = _overconfident(pixels=500)
    expected, scaled = (metrics.fit_scaling(z, labels, kind=kind) for z in (logits, logits * np.float32(factor)))
    np.testing.assert_allclose(np.asarray(scaled.scale) * factor, expected.scale, rtol=1e-3)
    np.testing.assert_allclose(scaled.bias, expected.bias, atol=1e-3)
