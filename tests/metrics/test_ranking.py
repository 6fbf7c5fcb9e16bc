import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn import metrics as sklearn_metrics

from segjax import metrics

INVALID = -(2**31)


def _normal(share, separation, spread=1.0, shift=0.0, size=200_000):
    def sample(rng):
        targets = rng.uniform(size=size) < share
        return rng.normal(size=size) * spread + targets * separation + shift, targets

    return sample


def _trained_with_ce(rng):
    """A calibrated scorer of a rare class: nearly every logit is far below 0, where probabilities crowd."""
    size = 400_000
    logits = rng.normal(size=size) * 2 - 9
    return logits, rng.uniform(size=size) < 1 / (1 + np.exp(-logits))


def _mixture(rng):
    """Half of the positives are easy, half look like background."""
    size = 300_000
    targets = rng.uniform(size=size) < 0.005
    easy = rng.uniform(size=size) < 0.5
    return rng.normal(size=size) + np.where(targets & easy, 6.0, 0.0) - 4, targets


def _logistic(rng):
    targets = rng.uniform(size=2**20) < 0.001
    return rng.logistic(size=2**20) + targets * 5 - 7, targets


def _beta(rng):
    """Probabilities, not logits, have the simple distribution: they crowd at 0, as a network's do."""
    targets = rng.uniform(size=2**20) < 0.001
    p = np.where(targets, rng.beta(2, 3, size=2**20), rng.beta(0.5, 20, size=2**20))
    p = np.clip(p, 1e-12, 1 - 1e-7)
    return np.log(p / (1 - p)), targets


def _saturated(rng):
    """93 % of the logits lie outside the histogram's range, nearly all of them on the right side."""
    targets = rng.uniform(size=2**20) < 0.001
    return rng.normal(size=2**20) * 6 + np.where(targets, 5, -25), targets


DISTRIBUTIONS = {
    "balanced": _normal(0.5, 1.5),
    "rare, 0.5 %": _normal(0.005, 3.0, shift=-5.0),
    "rare, 0.1 %": _normal(0.001, 3.0, shift=-7.0),
    "rare, 0.1 %, hard": _normal(0.001, 1.0, shift=-7.0),
    "rare, 0.1 %, nearly perfect": _normal(0.001, 9.0, shift=-7.0),
    "no skill": _normal(0.01, 0.0),
    "narrow": _normal(0.01, 0.5, spread=0.2),
    "calibrated, 0.1 %": _trained_with_ce,
    "half easy, half hidden": _mixture,
    "rare, 0.1 %, logistic": _logistic,
    "rare, 0.1 %, beta": _beta,
    "rare, 0.1 %, saturated": _saturated,
}


def _f1_by_threshold(targets, logits):
    precision, recall, thresholds = sklearn_metrics.precision_recall_curve(targets, logits)
    return (2 * precision * recall / np.maximum(precision + recall, 1e-30))[:-1], thresholds


@pytest.fixture(scope="module", params=DISTRIBUTIONS)
def sample(request):
    logits, targets = DISTRIBUTIONS[request.param](np.random.default_rng(0))
    logits = logits.astype(np.float32)
    return logits, targets, np.asarray(metrics.score_histogram(logits, targets), np.int64)


def test_average_precision_scikit_learn(sample):
    logits, targets, histogram = sample
    exact = sklearn_metrics.average_precision_score(targets, logits)
    low, high = metrics.average_precision_bounds(histogram)
    estimate = metrics.average_precision(histogram)
    assert abs(estimate - exact) < 2e-3
    assert low <= exact <= high
    assert low <= estimate <= high


def test_auroc_and_fpr_scikit_learn(sample):
    logits, targets, histogram = sample
    assert abs(metrics.auroc(histogram) - sklearn_metrics.roc_auc_score(targets, logits)) < 2e-3
    fpr, tpr, _ = sklearn_metrics.roc_curve(targets, logits, drop_intermediate=False)
    for wanted in (0.5, 0.95):
        assert abs(metrics.fpr_at_tpr(histogram, wanted) - fpr[np.searchsorted(tpr, wanted)]) < 2e-3


def test_auroc_and_fpr_bounds_scikit_learn(sample):
    logits, targets, histogram = sample
    low, high = metrics.auroc_bounds(histogram)
    assert low <= sklearn_metrics.roc_auc_score(targets, logits) <= high
    assert (low + high) / 2 == pytest.approx(metrics.auroc(histogram), abs=1e-12)
    fpr, tpr, _ = sklearn_metrics.roc_curve(targets, logits, drop_intermediate=False)
    for wanted in (0.5, 0.95, 1.0):
        low, high = metrics.fpr_at_tpr_bounds(histogram, wanted)
        assert low <= fpr[np.searchsorted(tpr, wanted)] <= high
        assert low <= metrics.fpr_at_tpr(histogram, wanted) <= high


def test_best_f1_scikit_learn(sample):
    logits, targets, histogram = sample
    exact = _f1_by_threshold(targets, logits)[0].max()
    f1, threshold = metrics.best_f1(histogram)
    # The narrow scores fill some 250 bins: the best threshold's luck inside its bin is 4e-3 there.
    assert exact - (5e-3 if np.ptp(logits) < 4 else 2e-3) < f1 <= exact + 1e-12
    low, high = metrics.best_f1_bounds(histogram)
    assert low <= exact <= high
    assert low <= f1 <= high
    assert sklearn_metrics.f1_score(targets, logits >= threshold) == pytest.approx(f1, rel=1e-12)


# Spacing of the logits; every one of them is the edge of a bin. bfloat16 has 1/16 between 8 and 16.
@pytest.mark.parametrize("spacing", [1 / 16, 1 / 2, 1.0])
def test_average_precision_heavy_ties(spacing):
    rng = np.random.default_rng(1)
    targets = rng.uniform(size=50_000) < 0.01
    logits = np.round((rng.normal(size=50_000) + targets * 3 - 7) / spacing) * spacing
    histogram = np.asarray(metrics.score_histogram(logits.astype(np.float32), targets), np.int64)
    tied = sklearn_metrics.average_precision_score(targets, logits)
    low, high = metrics.average_precision_bounds(histogram)
    assert low <= tied <= high
    broken = [logits + spacing / 2 * rng.uniform(size=logits.size) for _ in range(10)]
    at_random = np.mean([sklearn_metrics.average_precision_score(targets, scores) for scores in broken])
    assert abs(metrics.average_precision(histogram) - at_random) < 2e-3
    # Not a matter of ties: half a win each for both, and a threshold never parts equal scores.
    assert metrics.auroc(histogram) == pytest.approx(sklearn_metrics.roc_auc_score(targets, logits), rel=1e-12)
    f1, thresholds = _f1_by_threshold(targets, logits)
    assert metrics.best_f1(histogram) == pytest.approx((f1.max(), thresholds[f1.argmax()]), rel=1e-12)


def test_average_precision_bounds_logits_beyond_the_range():
    rng = np.random.default_rng(0)
    targets = rng.uniform(size=20_000) < 0.1
    logits = (rng.normal(size=20_000) * 8 + targets * 12 - 4).astype(np.float32)
    low, high = metrics.average_precision_bounds(metrics.score_histogram(logits, targets))
    assert low <= sklearn_metrics.average_precision_score(targets, logits) <= high
    assert high - low > 0.01
    low, high = metrics.auroc_bounds(metrics.score_histogram(logits, targets))
    assert low <= sklearn_metrics.roc_auc_score(targets, logits) <= high
    assert high - low > 0.001


# Few distinct logits: many ties, and many in one bin that are none.
COARSE = st.sampled_from([-40.0, -16.0, -1.0, 0.0, 0.001, 0.002, 0.003, 0.5, 15.999, 16.0, 40.0])


@settings(max_examples=300)
@given(st.lists(st.tuples(COARSE, st.booleans()), min_size=1, max_size=40))
def test_average_precision_and_f1_bounds_contain_exact_value(pixels):
    logits, targets = (np.array(x) for x in zip(*pixels, strict=True))
    histogram = np.zeros((2, 4096), np.int64)
    bins = np.clip(np.floor((logits + 16) * 128).astype(int), 0, 4095)
    np.add.at(histogram, (targets.astype(int), bins), 1)
    low, high = metrics.average_precision_bounds(histogram)
    if targets.any():
        exact = sklearn_metrics.average_precision_score(targets, logits)
        assert low <= exact <= high
        assert low <= metrics.average_precision(histogram) <= high
        low, high = metrics.best_f1_bounds(histogram)
        assert low <= _f1_by_threshold(targets, logits)[0].max() <= high
        assert low <= metrics.best_f1(histogram).f1 <= high
    else:
        assert np.isnan([low, high, metrics.average_precision(histogram), *metrics.best_f1(histogram)]).all()


@settings(max_examples=100)
@given(st.lists(st.tuples(COARSE, st.booleans()), min_size=1, max_size=40), st.floats(0.01, 1))
def test_auroc_and_fpr_bounds_contain_exact_value(pixels, wanted):
    logits, targets = (np.array(x) for x in zip(*pixels, strict=True))
    histogram = np.zeros((2, 4096), np.int64)
    np.add.at(histogram, (targets.astype(int), np.clip(np.floor((logits + 16) * 128).astype(int), 0, 4095)), 1)
    (low, high), (least, most) = metrics.auroc_bounds(histogram), metrics.fpr_at_tpr_bounds(histogram, wanted)
    if targets.any() and not targets.all():
        assert low <= sklearn_metrics.roc_auc_score(targets, logits) <= high
        fpr, tpr, _ = sklearn_metrics.roc_curve(targets, logits, drop_intermediate=False)
        assert least <= fpr[np.searchsorted(tpr, wanted * (1 - 1e-12))] <= most
        assert least <= metrics.fpr_at_tpr(histogram, wanted) <= most
    else:
        assert np.isnan([low, high, least, most]).all()


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(2, 400))
def test_average_precision_bounds_worst_and_best_order(seed, bins, pixels):
    rng = np.random.default_rng(seed)
    where, targets = rng.integers(0, bins, size=pixels), rng.uniform(size=pixels) < rng.uniform()
    targets[0] = True
    histogram = np.zeros((2, bins), np.int64)
    np.add.at(histogram, (targets.astype(int), where), 1)
    low, high = metrics.average_precision_bounds(histogram)
    worst_first = where - 0.5 * targets + rng.uniform(0, 0.1, size=pixels)
    best_first_tied = where + 0.5 * targets
    for scores in (worst_first, best_first_tied, where + rng.uniform(0, 0.5, size=pixels), where):
        assert low <= sklearn_metrics.average_precision_score(targets, scores) <= high


def test_average_precision_bounds_tight():
    histogram = np.array([[5, 3], [2, 1]])
    low, high = metrics.average_precision_bounds(histogram)
    # Worst order: 3 negatives, 1 positive, 5 negatives, 2 positives. Best: each bin's positives first, tied.
    assert low == pytest.approx((1 / 4 + 2 / 10 + 3 / 11) / 3, abs=1e-3)
    assert high == pytest.approx((1 + 2 * 3 / 6) / 3)


def test_average_precision_one_pixel_per_bin():
    logits = np.linspace(-10, 10, 200, dtype=np.float32)
    targets = np.random.default_rng(3).uniform(size=200) < 0.2
    histogram = metrics.score_histogram(logits, targets)
    exact = sklearn_metrics.average_precision_score(targets, logits)
    np.testing.assert_allclose(metrics.average_precision(histogram), exact, rtol=1e-12)
    np.testing.assert_allclose(metrics.average_precision_bounds(histogram), [exact, exact], rtol=1e-9)
    np.testing.assert_allclose(metrics.auroc(histogram), sklearn_metrics.roc_auc_score(targets, logits), rtol=1e-12)


def test_ranking_scores_perfect_and_random():
    perfect = metrics.score_histogram(np.array([5.0, 5.0, -5.0], np.float32), np.array([1, 1, 0]))
    assert metrics.average_precision(perfect) == 1
    assert metrics.auroc(perfect) == 1
    assert metrics.fpr_at_tpr(perfect) == 0
    blind = np.zeros((2, 4096), np.int64)
    blind[:, 7] = 9_000_000_000, 10_000_000
    assert metrics.average_precision(blind) == pytest.approx(1 / 901, rel=1e-5)
    assert metrics.auroc(blind) == 0.5
    assert metrics.fpr_at_tpr(blind, 0.95) == pytest.approx(0.95, rel=1e-6)


@pytest.mark.parametrize(
    ("negatives", "positives", "f1", "threshold"),
    [
        ([-5.0], [5.0], 1.0, 5.0),  # any threshold in (-5, 5] would do: the highest
        ([5.0, 4.0], [-20.0], 0.5, -np.inf),  # all positive: the first bin has no lower edge
        ([3.0, 3.0, 1.0], [4.0, 1.0, 1.0], 2 / 3, 1.0),
        ([], [0.5, 1.0], 1.0, 0.5),
    ],
)
def test_best_f1_threshold(negatives, positives, f1, threshold):
    logits = np.array(negatives + positives, np.float32)
    targets = np.arange(len(logits)) >= len(negatives)
    assert metrics.best_f1(metrics.score_histogram(logits, targets)) == pytest.approx((f1, threshold))


def test_score_histogram_bins_and_clamping():
    edges = np.array([-np.inf, -40, -16, -16 + 1 / 128, -1e-30, 0, 15.9999, 16, 40, np.inf], np.float32)
    histogram = np.asarray(metrics.score_histogram(edges, np.ones(10, np.int32)))
    bins = np.repeat(np.arange(4096), histogram[1])
    np.testing.assert_array_equal(bins, [0, 0, 0, 1, 2047, 2048, 4095, 4095, 4095, 4095])
    assert histogram.dtype == np.int32
    assert not histogram[0].any()


def test_score_histogram_big_endian():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=50).astype(np.float32), rng.integers(0, 2, size=50)
    expected = metrics.score_histogram(logits, targets)
    np.testing.assert_array_equal(metrics.score_histogram(logits.astype(">f4"), targets.astype(">i2")), expected)
    counted = np.asarray(expected).astype(">i4")
    assert metrics.average_precision(counted) == metrics.average_precision(expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_score_histogram_narrow_logits(dtype):
    logits = jnp.linspace(-15, 15, 50).astype(dtype)
    targets = jnp.arange(50) % 2
    wide = metrics.score_histogram(logits.astype(jnp.float32), targets)
    np.testing.assert_array_equal(metrics.score_histogram(logits, targets), wide)


def test_score_histogram_masked_pixels():
    logits = np.array([np.nan, 1.0, np.inf, -2.0], np.float32)
    targets = np.array([1, 1, 255, 0])
    where = np.array([False, True, False, True])
    histogram = metrics.score_histogram(logits, targets, where=where)
    np.testing.assert_array_equal(histogram, metrics.score_histogram(logits[where], targets[where]))
    assert not metrics.score_histogram(logits, targets, where=where & False).any()


SCORES = (
    metrics.average_precision,
    metrics.average_precision_bounds,
    metrics.auroc,
    metrics.auroc_bounds,
    metrics.fpr_at_tpr,
    metrics.fpr_at_tpr_bounds,
    metrics.best_f1,
    metrics.best_f1_bounds,
)


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(0, 2**31))
def test_score_histogram_any_split_adds_up(batches, seed):
    rng = np.random.default_rng(seed)
    logits, targets = rng.normal(size=60).astype(np.float32) * 5, rng.integers(0, 2, size=60)
    parts = rng.permutation(np.arange(60) % batches)
    summed = sum(metrics.score_histogram(logits, targets, where=parts == b) for b in range(batches))
    np.testing.assert_array_equal(summed, metrics.score_histogram(logits, targets))


@pytest.mark.parametrize(("logit", "target"), [(np.nan, 0), (0.0, 2), (0.0, -1), (0.0, 255)])
def test_score_histogram_invalid_pixel(logit, target):
    histogram = metrics.score_histogram(np.array([logit, 1.0], np.float32), np.array([target, 1]))
    np.testing.assert_array_equal(histogram, np.full((2, 4096), INVALID))
    run = np.asarray(histogram, np.int64) + 10**9
    for score in SCORES:
        with pytest.raises(ValueError, match=r"histogram has a negative count, -\d+: a NaN logit or a target other"):
            score(run)


@pytest.mark.parametrize("present", [0, 1])
def test_ranking_scores_one_class_present(present):
    histogram = metrics.score_histogram(np.zeros(3, np.float32), np.full(3, present))
    for score in (metrics.auroc, metrics.auroc_bounds, metrics.fpr_at_tpr, metrics.fpr_at_tpr_bounds):
        assert np.isnan(score(histogram)).all()
    for score in (metrics.average_precision, metrics.average_precision_bounds, metrics.best_f1, metrics.best_f1_bounds):
        assert np.isnan(score(histogram)).all() == (present == 0)


@pytest.mark.parametrize("score", SCORES)
def test_ranking_scores_empty_histogram(score):
    void = metrics.score_histogram(np.full(3, np.nan, np.float32), np.full(3, 255), where=np.zeros(3, bool))
    assert np.isnan(score(void)).all()


# Bin edges are 1/128 apart: 0.5 and 1 are edges.
@pytest.mark.parametrize(
    ("precision", "threshold", "reached", "recall"),
    [(1.0, 3.0, 1.0, 1 / 3), (0.7, 1.0, 0.75, 1.0), (0.75, 1.0, 0.75, 1.0), (0.5, 1.0, 0.75, 1.0)],
)
def test_threshold_at_precision_best_recall(precision, threshold, reached, recall):
    logits, targets = jnp.array([3.0, 2.0, 1.5, 1.0, 0.5]), jnp.array([1, 0, 1, 1, 0])
    found = metrics.threshold_at_precision(metrics.score_histogram(logits, targets), precision)
    assert found == pytest.approx((threshold, reached, recall))


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12), st.floats(0.01, 1))
def test_threshold_at_precision_brute_force(bins, precision):
    """The expected edge has the best recall of all that reach the precision; of equal ones, it is the highest."""
    histogram = np.array(bins).T
    num_bins = histogram.shape[1]
    candidates = []
    for i in range(num_bins):
        negatives, positives = histogram[:, i:].sum(axis=1)
        edge = -np.inf if i == 0 else -16 + 32 * i / num_bins
        if negatives + positives and positives >= precision * (negatives + positives) * (1 - 1e-12):
            candidates.append((positives / histogram[1].sum(), edge, positives / (negatives + positives)))
    threshold, reached, recall = metrics.threshold_at_precision(histogram, precision)
    if not histogram[1].any():
        assert np.isnan([threshold, reached, recall]).all()
    elif candidates:
        assert (recall, threshold, reached) == pytest.approx(max(candidates), rel=1e-12)
    else:
        assert np.isnan(threshold)
        assert reached < precision


def test_threshold_at_precision_not_dominated():
    logits = np.concatenate([np.full(10, 5.0), np.linspace(-8, -4.01, 400)]).astype(np.float32)
    histogram = metrics.score_histogram(logits, np.arange(410) < 10)
    assert metrics.threshold_at_precision(histogram, 0.9) == (5.0, 1.0, 1.0)


def test_threshold_at_precision_never_reached():
    histogram = metrics.score_histogram(jnp.array([3.0, 2.0, 1.0]), jnp.array([0, 1, 0]))
    assert metrics.threshold_at_precision(histogram, 0.6) == pytest.approx((np.nan, 0.5, 1.0), nan_ok=True)


def test_threshold_at_precision_all_pixels_positive():
    histogram = metrics.score_histogram(jnp.array([1.0, -20.0]), jnp.array([0, 1]))
    assert metrics.threshold_at_precision(histogram, 0.5) == (-np.inf, 0.5, 1.0)


def test_threshold_at_precision_without_positives():
    assert np.isnan(metrics.threshold_at_precision(metrics.score_histogram(jnp.ones(3), jnp.zeros(3, int)), 0.5)).all()


@pytest.mark.parametrize("precision", [0.0, 1.1])
def test_threshold_at_precision_out_of_range(precision):
    with pytest.raises(ValueError, match=r"precision must be above 0 and at most 1; got"):
        metrics.threshold_at_precision(np.zeros((2, 4096), int), precision)


@pytest.fixture(scope="module")
def scored():
    """Logits on the bins' edges, so that nothing is lost in a bin, and their targets."""
    rng = np.random.default_rng(0)
    logits = np.round(rng.normal(size=3000) * 4 * 128) / 128
    return logits.astype(np.float32), rng.uniform(size=3000) < 1 / (1 + np.exp(4 - logits))


def test_precision_recall_curve_scikit_learn(scored):
    logits, targets = scored
    curve = metrics.precision_recall_curve(np.asarray(metrics.score_histogram(logits, targets), np.int64))
    precision, recall, thresholds = sklearn_metrics.precision_recall_curve(targets, logits)
    np.testing.assert_array_equal(curve["threshold_logit"], thresholds[::-1])
    np.testing.assert_allclose(curve["precision"], precision[-2::-1], rtol=1e-12)
    np.testing.assert_allclose(curve["recall"], recall[-2::-1], rtol=1e-12)


def test_precision_recall_curve_logit_below_the_range():
    curve = metrics.precision_recall_curve(metrics.score_histogram(np.array([-20.0, 3.0]), np.array([1, 1])))
    assert curve["threshold_logit"].tolist() == [3.0, -np.inf]
    assert curve["recall"].tolist() == [0.5, 1.0]


def test_precision_recall_curve_nothing_counted():
    curve = metrics.precision_recall_curve(metrics.score_histogram(np.zeros(2), np.zeros(2, int)))
    assert np.isnan(curve["recall"]).tolist() == [True]
    assert curve["precision"].tolist() == [0.0]
    assert all(values.size == 0 for values in metrics.precision_recall_curve(np.zeros((2, 4096), int)).values())


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_class_log_odds_float32_accuracy(scale):
    logits = (np.random.default_rng(1).normal(size=(200, 5)) * scale).astype(np.float32)
    wide = logits.astype(np.float64)
    expected = np.stack([wide[:, c] - logsumexp(np.delete(wide, c, 1), axis=1) for c in range(5)], axis=1)
    found = np.asarray(metrics.class_log_odds(logits), np.float64)
    within = np.abs(expected) < 80  # beyond, exp leaves float32's range, and the histogram's ends are at 16
    np.testing.assert_allclose(found[within], expected[within], rtol=1e-5, atol=2e-6 * scale)
    assert (np.sign(found) == np.sign(expected)).all()


def test_class_log_odds_two_classes():
    logits = np.array([[0.0, 3.0], [2.0, -5.0], [1.0, 1.0]], np.float32)
    np.testing.assert_allclose(metrics.class_log_odds(logits)[:, 1], [3.0, -7.0, 0.0], atol=1e-6)


def test_class_log_odds_ruled_out_and_nan():
    odds = np.asarray(metrics.class_log_odds(np.array([[0.0, -np.inf, 0.0], [np.nan, 0.0, 0.0]], np.float32)))
    assert odds[0].tolist() == [0.0, -np.inf, 0.0]
    assert np.isnan(odds[1]).all()


def test_class_log_odds_single_class():
    with pytest.raises(ValueError, match=r"at least 2 classes; got shape \(3, 1\)"):
        metrics.class_log_odds(np.zeros((3, 1), np.float32))


BROKEN = {
    "float targets": (
        lambda f: f.score_histogram(np.zeros(3, np.float32), np.zeros(3, np.float32)),
        TypeError,
        r"targets must be integers; got float32 of shape \(3,\)",
    ),
    "integer logits": (
        lambda f: f.score_histogram(np.zeros(3, int), np.zeros(3, int)),
        TypeError,
        r"logits must be floating point; got int32",
    ),
    "shape": (
        lambda f: f.score_histogram(np.zeros((2, 3, 1), np.float32), np.zeros((2, 3), int)),
        ValueError,
        r"targets must have the shape of logits, \(2, 3, 1\); got \(2, 3\)",
    ),
    "mask": (
        lambda f: f.score_histogram(np.zeros((2, 3), np.float32), np.zeros((2, 3), int), where=np.zeros((2, 3), int)),
        TypeError,
        r"where must be boolean; got int32",
    ),
    "float counts": (lambda f: f.auroc(np.ones((2, 5))), TypeError, r"histogram must be integers .*got float64"),
    "one row": (lambda f: f.auroc(np.ones(5, int)), ValueError, r"histogram must be \[2, bins\].*got shape \(5,\)"),
    "traced": (
        lambda f: jax.jit(f.auroc)(np.ones((2, 5), int)),
        TypeError,
        r"histogram must be known on the host; got a traced array",
    ),
    "tpr of the bounds": (
        lambda f: f.fpr_at_tpr_bounds(np.ones((2, 5), int), 0.0),
        ValueError,
        r"tpr must be above 0 and at most 1; got 0",
    ),
    "float counts of F1": (
        lambda f: f.best_f1(np.ones((2, 5))),
        TypeError,
        r"histogram must be integers .*got float64",
    ),
    "tpr": (
        lambda f: f.fpr_at_tpr(np.ones((2, 5), int), 95.0),
        ValueError,
        r"tpr must be above 0 and at most 1; got 95",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_ranking_broken_input(case, raw):
    call, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        call(raw)
