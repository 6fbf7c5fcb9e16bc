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


SIZE = 2**18


def _normal(share, separation, spread=1.0, shift=0.0):
    def sample(rng):
        targets = rng.uniform(size=SIZE) < share
        return rng.normal(size=SIZE) * spread + targets * separation + shift, targets

    return sample


def _calibrated(rng):
    """Samples a calibrated scorer of a rare class: nearly every logit is far below 0, where probabilities crowd."""
    logits = rng.normal(size=SIZE) * 2 - 9
    return logits, rng.uniform(size=SIZE) < 1 / (1 + np.exp(-logits))


def _mixture(rng):
    """Samples positives of which half are easy and half look like background."""
    targets = rng.uniform(size=SIZE) < 0.005
    easy = rng.uniform(size=SIZE) < 0.5
    return rng.normal(size=SIZE) + np.where(targets & easy, 6.0, 0.0) - 4, targets


def _logistic(rng):
    targets = rng.uniform(size=SIZE) < 0.001
    return rng.logistic(size=SIZE) + targets * 5 - 7, targets


def _beta(rng):
    """Samples a simple distribution of the probabilities, which crowd at 0 as those of a network do."""
    targets = rng.uniform(size=SIZE) < 0.001
    p = np.where(targets, rng.beta(2, 3, size=SIZE), rng.beta(0.5, 20, size=SIZE))
    p = np.clip(p, 1e-12, 1 - 1e-7)
    return np.log(p / (1 - p)), targets


def _saturated(rng):
    """Samples logits of which 93 % are outside the range of the histogram, nearly all on the right side."""
    targets = rng.uniform(size=SIZE) < 0.001
    return rng.normal(size=SIZE) * 6 + np.where(targets, 5, -25), targets


DISTRIBUTIONS = {
    "balanced": _normal(0.5, 1.5),
    "rare, 0.5 %": _normal(0.005, 3.0, shift=-5.0),
    "rare, 0.1 %": _normal(0.001, 3.0, shift=-7.0),
    "rare, 0.1 %, hard": _normal(0.001, 1.0, shift=-7.0),
    "rare, 0.1 %, nearly perfect": _normal(0.001, 9.0, shift=-7.0),
    "no skill": _normal(0.01, 0.0),
    "narrow": _normal(0.01, 0.5, spread=0.2),
    "calibrated, 0.1 %": _calibrated,
    "half easy, half hidden": _mixture,
    "rare, 0.1 %, logistic": _logistic,
    "rare, 0.1 %, beta": _beta,
    "rare, 0.1 %, saturated": _saturated,
}


score_histogram = jax.jit(metrics.score_histogram)


def _histogram(logits, targets):
    """Returns the histogram of `score_histogram`, by NumPy."""
    histogram = np.zeros((2, 4096), np.int64)
    bins = np.clip(np.floor((np.asarray(logits) + 16) * 128), 0, 4095).astype(int)
    np.add.at(histogram, (np.asarray(targets).astype(int), bins), 1)
    return histogram


class Exact:
    """Scores of scikit-learn, from one precision-recall curve and one ROC curve."""

    def __init__(self, targets, logits):
        self.precision, self.recall, self.thresholds = sklearn_metrics.precision_recall_curve(targets, logits)
        self.average_precision = -np.sum(np.diff(self.recall) * self.precision[:-1])
        self.f1 = (2 * self.precision * self.recall / np.maximum(self.precision + self.recall, 1e-30))[:-1]
        if targets.any() and not targets.all():
            self.fpr, self.tpr, _ = sklearn_metrics.roc_curve(targets, logits, drop_intermediate=False)
            self.auroc = sklearn_metrics.auc(self.fpr, self.tpr)

    def fpr_at_tpr(self, wanted):
        return self.fpr[np.searchsorted(self.tpr, wanted)]


@pytest.fixture(scope="module", params=DISTRIBUTIONS)
def sample(request):
    logits, targets = DISTRIBUTIONS[request.param](np.random.default_rng(0))
    logits = logits.astype(np.float32)
    return logits, targets, np.asarray(score_histogram(logits, targets), np.int64), Exact(targets, logits)


def test_average_precision_scikit_learn(sample):
    _, _, histogram, exact = sample
    low, high = metrics.average_precision_bounds(histogram)
    estimate = metrics.average_precision(histogram)
    assert abs(estimate - exact.average_precision) < 2e-3
    assert low <= exact.average_precision <= high
    assert low <= estimate <= high


def test_auroc_and_fpr_scikit_learn(sample):
    _, _, histogram, exact = sample
    assert abs(metrics.auroc(histogram) - exact.auroc) < 2e-3
    low, high = metrics.auroc_bounds(histogram)
    assert low <= exact.auroc <= high
    assert (low + high) / 2 == pytest.approx(metrics.auroc(histogram), abs=1e-12)
    for wanted in (0.5, 0.95, 1.0):
        fpr = metrics.fpr_at_tpr(histogram, wanted)
        low, high = metrics.fpr_at_tpr_bounds(histogram, wanted)
        assert low <= exact.fpr_at_tpr(wanted) <= high
        assert low <= fpr <= high
        assert wanted == 1 or abs(fpr - exact.fpr_at_tpr(wanted)) < 2e-3


def test_best_f1_scikit_learn(sample):
    logits, targets, histogram, exact = sample
    best = exact.f1.max()
    f1, threshold = metrics.best_f1(histogram)
    # The narrow scores fill some 250 bins, so the best threshold inside a bin gains up to 4e-3.
    assert best - (5e-3 if np.ptp(logits) < 4 else 2e-3) < f1 <= best + 1e-12
    low, high = metrics.best_f1_bounds(histogram)
    assert low <= best <= high
    assert low <= f1 <= high
    assert sklearn_metrics.f1_score(targets, logits >= threshold) == pytest.approx(f1, rel=1e-12)


# Spacing of the logits, which are all edges of bins. bfloat16 has a spacing of 1/16 between 8 and 16.
@pytest.mark.parametrize("spacing", [1 / 16, 1 / 2, 1.0])
def test_average_precision_heavy_ties(spacing):
    rng = np.random.default_rng(1)
    targets = rng.uniform(size=50_000) < 0.01
    logits = np.round((rng.normal(size=50_000) + targets * 3 - 7) / spacing) * spacing
    histogram, exact = _histogram(logits, targets), Exact(targets, logits)
    low, high = metrics.average_precision_bounds(histogram)
    assert low <= exact.average_precision <= high
    broken = [logits + spacing / 2 * rng.uniform(size=logits.size) for _ in range(10)]
    at_random = np.mean([sklearn_metrics.average_precision_score(targets, scores) for scores in broken])
    assert abs(metrics.average_precision(histogram) - at_random) < 2e-3
    # Ties do not change these: both count a tie as half a win, and no threshold separates equal scores.
    assert metrics.auroc(histogram) == pytest.approx(exact.auroc, rel=1e-12)
    best = exact.f1.argmax()
    assert metrics.best_f1(histogram) == pytest.approx((exact.f1[best], exact.thresholds[best]), rel=1e-12)


def test_average_precision_bounds_logits_beyond_the_range():
    rng = np.random.default_rng(0)
    targets = rng.uniform(size=20_000) < 0.1
    logits = (rng.normal(size=20_000) * 8 + targets * 12 - 4).astype(np.float32)
    histogram, exact = score_histogram(logits, targets), Exact(targets, logits)
    np.testing.assert_array_equal(histogram, _histogram(logits.astype(np.float64), targets))
    low, high = metrics.average_precision_bounds(histogram)
    assert low <= exact.average_precision <= high
    assert high - low > 0.01
    low, high = metrics.auroc_bounds(histogram)
    assert low <= exact.auroc <= high
    assert high - low > 0.001


# Few distinct logits: many are equal, and many others share a bin.
COARSE = st.sampled_from([-40.0, -16.0, -1.0, 0.0, 0.001, 0.002, 0.003, 0.5, 15.999, 16.0, 40.0])


@settings(max_examples=200)
@given(st.lists(st.tuples(COARSE, st.booleans()), min_size=1, max_size=40), st.floats(0.01, 1))
def test_ranking_bounds_contain_exact_value(pixels, tpr):
    logits, targets = (np.array(x) for x in zip(*pixels, strict=True))
    histogram = _histogram(logits, targets)
    of_positives = (
        *metrics.average_precision_bounds(histogram),
        metrics.average_precision(histogram),
        *metrics.best_f1_bounds(histogram),
        metrics.best_f1(histogram).f1,
    )
    of_both = (
        *metrics.auroc_bounds(histogram),
        *metrics.fpr_at_tpr_bounds(histogram, tpr),
        metrics.fpr_at_tpr(histogram, tpr),
    )
    if not targets.any():
        assert np.isnan(of_positives).all()
        assert np.isnan(of_both).all()
        return
    exact = Exact(targets, logits)
    low, high, precision, worst, best, f1 = of_positives
    assert low <= exact.average_precision <= high
    assert low <= precision <= high
    assert worst <= exact.f1.max() <= best
    assert worst <= f1 <= best
    if targets.all():
        assert np.isnan(of_both).all()
        return
    low, high, least, most, fpr = of_both
    assert low <= exact.auroc <= high
    assert least <= exact.fpr_at_tpr(tpr * (1 - 1e-12)) <= most
    assert least <= fpr <= most


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
    histogram = _histogram(logits, targets)
    exact = sklearn_metrics.average_precision_score(targets, logits)
    np.testing.assert_allclose(metrics.average_precision(histogram), exact, rtol=1e-12)
    np.testing.assert_allclose(metrics.average_precision_bounds(histogram), [exact, exact], rtol=1e-9)
    np.testing.assert_allclose(metrics.auroc(histogram), sklearn_metrics.roc_auc_score(targets, logits), rtol=1e-12)


def test_ranking_scores_perfect_and_random():
    perfect = _histogram(np.array([5.0, 5.0, -5.0], np.float32), np.array([1, 1, 0]))
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
    assert metrics.best_f1(_histogram(logits, targets)) == pytest.approx((f1, threshold))


def test_score_histogram_bins_and_clamping():
    edges = np.array([-np.inf, -40, -16, -16 + 1 / 128, -1e-30, 0, 15.9999, 16, 40, np.inf], np.float32)
    histogram = np.asarray(score_histogram(edges, np.ones(10, np.int32)))
    bins = np.repeat(np.arange(4096), histogram[1])
    np.testing.assert_array_equal(bins, [0, 0, 0, 1, 2047, 2048, 4095, 4095, 4095, 4095])
    assert histogram.dtype == np.int32
    assert not histogram[0].any()


def test_score_histogram_big_endian():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=50).astype(np.float32), rng.integers(0, 2, size=50)
    expected = score_histogram(logits, targets)
    # A constant of the program: `jit` does not take big-endian arguments.
    big_endian = jax.jit(lambda: metrics.score_histogram(logits.astype(">f4"), targets.astype(">i2")))()
    np.testing.assert_array_equal(big_endian, expected)
    counted = np.asarray(expected).astype(">i4")
    assert metrics.average_precision(counted) == metrics.average_precision(expected)


def test_score_histogram_bfloat16():
    logits = jnp.asarray(np.linspace(-15, 15, 50), jnp.bfloat16)
    targets = np.arange(50) % 2
    wide = score_histogram(logits.astype(jnp.float32), targets)
    np.testing.assert_array_equal(score_histogram(logits, targets), wide)


def test_score_histogram_masked_pixels():
    logits = np.array([np.nan, 1.0, np.inf, -2.0], np.float32)
    targets = np.array([1, 1, 255, 0])
    where = np.array([False, True, False, True])
    histogram = score_histogram(logits, targets, where=where)
    np.testing.assert_array_equal(histogram, score_histogram(logits[where], targets[where]))
    assert not score_histogram(logits, targets, where=where & False).any()


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
    summed = sum(score_histogram(logits, targets, where=parts == b) for b in range(batches))
    np.testing.assert_array_equal(summed, score_histogram(logits, targets))


@pytest.mark.parametrize(("logit", "target"), [(np.nan, 0), (0.0, 2), (0.0, -1), (0.0, 255)])
def test_score_histogram_invalid_pixel(logit, target):
    histogram = score_histogram(np.array([logit, 1.0], np.float32), np.array([target, 1]))
    np.testing.assert_array_equal(histogram, np.full((2, 4096), INVALID))
    run = np.asarray(histogram, np.int64) + 10**9
    for score in SCORES:
        with pytest.raises(ValueError, match=r"histogram has a negative count, -\d+: a NaN logit or a target other"):
            score(run)


@pytest.mark.parametrize("present", [0, 1])
def test_ranking_scores_one_class_present(present):
    histogram = score_histogram(np.zeros(3, np.float32), np.full(3, present))
    for score in (metrics.auroc, metrics.auroc_bounds, metrics.fpr_at_tpr, metrics.fpr_at_tpr_bounds):
        assert np.isnan(score(histogram)).all()
    for score in (metrics.average_precision, metrics.average_precision_bounds, metrics.best_f1, metrics.best_f1_bounds):
        assert np.isnan(score(histogram)).all() == (present == 0)


@pytest.mark.parametrize("score", SCORES)
def test_ranking_scores_empty_histogram(score):
    void = score_histogram(np.full(3, np.nan, np.float32), np.full(3, 255), where=np.zeros(3, bool))
    assert np.isnan(score(void)).all()


# Bin edges are 1/128 apart: 0.5 and 1 are edges.
@pytest.mark.parametrize(
    ("precision", "threshold", "reached", "recall"),
    [(1.0, 3.0, 1.0, 1 / 3), (0.7, 1.0, 0.75, 1.0), (0.75, 1.0, 0.75, 1.0), (0.5, 1.0, 0.75, 1.0)],
)
def test_threshold_at_precision_best_recall(precision, threshold, reached, recall):
    logits, targets = np.array([3.0, 2.0, 1.5, 1.0, 0.5]), np.array([1, 0, 1, 1, 0])
    found = metrics.threshold_at_precision(_histogram(logits, targets), precision)
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
    histogram = _histogram(logits, np.arange(410) < 10)
    assert metrics.threshold_at_precision(histogram, 0.9) == (5.0, 1.0, 1.0)


def test_threshold_at_precision_never_reached():
    histogram = _histogram([3.0, 2.0, 1.0], [0, 1, 0])
    assert metrics.threshold_at_precision(histogram, 0.6) == pytest.approx((np.nan, 0.5, 1.0), nan_ok=True)


def test_threshold_at_precision_all_pixels_positive():
    histogram = _histogram([1.0, -20.0], [0, 1])
    assert metrics.threshold_at_precision(histogram, 0.5) == (-np.inf, 0.5, 1.0)


def test_threshold_at_precision_without_positives():
    assert np.isnan(metrics.threshold_at_precision(_histogram(np.ones(3), np.zeros(3)), 0.5)).all()


@pytest.mark.parametrize("precision", [0.0, 1.1])
def test_threshold_at_precision_out_of_range(precision):
    with pytest.raises(ValueError, match=r"precision must be above 0 and at most 1; got"):
        metrics.threshold_at_precision(np.zeros((2, 4096), int), precision)


@pytest.fixture(scope="module")
def scored():
    """Returns logits on the edges of the bins, so that no order is lost in a bin, and their targets."""
    rng = np.random.default_rng(0)
    logits = np.round(rng.normal(size=3000) * 4 * 128) / 128
    return logits.astype(np.float32), rng.uniform(size=3000) < 1 / (1 + np.exp(4 - logits))


def test_precision_recall_curve_scikit_learn(scored):
    logits, targets = scored
    curve = metrics.precision_recall_curve(_histogram(logits, targets))
    precision, recall, thresholds = sklearn_metrics.precision_recall_curve(targets, logits)
    np.testing.assert_array_equal(curve["threshold_logit"], thresholds[::-1])
    np.testing.assert_allclose(curve["precision"], precision[-2::-1], rtol=1e-12)
    np.testing.assert_allclose(curve["recall"], recall[-2::-1], rtol=1e-12)


def test_precision_recall_curve_logit_below_the_range():
    curve = metrics.precision_recall_curve(_histogram(np.array([-20.0, 3.0]), np.array([1, 1])))
    assert curve["threshold_logit"].tolist() == [3.0, -np.inf]
    assert curve["recall"].tolist() == [0.5, 1.0]


def test_precision_recall_curve_nothing_counted():
    curve = metrics.precision_recall_curve(_histogram(np.zeros(2), np.zeros(2, int)))
    assert np.isnan(curve["recall"]).tolist() == [True]
    assert curve["precision"].tolist() == [0.0]
    assert all(values.size == 0 for values in metrics.precision_recall_curve(np.zeros((2, 4096), int)).values())


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_class_log_odds_float32_accuracy(scale):
    logits = (np.random.default_rng(1).normal(size=(200, 5)) * scale).astype(np.float32)
    wide = logits.astype(np.float64)
    expected = np.stack([wide[:, c] - logsumexp(np.delete(wide, c, 1), axis=1) for c in range(5)], axis=1)
    found = np.asarray(jax.jit(metrics.class_log_odds)(logits), np.float64)
    within = np.abs(expected) < 80  # larger ones exceed the range of exp in float32; the histogram ends at 16
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
    with pytest.raises(ValueError, match=r"at least 2 classes, class last; got shape \(3, 1\)"):
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
