import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom

from segjax import metrics

RNG = np.random.default_rng(0)


def _miss_rates(scores, thresholds):
    """Returns the share of each image's positives (all pixels of `[images, pixels]`) below each threshold."""
    return (scores[:, :, None] < thresholds).mean(axis=1)


@pytest.mark.parametrize("images", [9, 50])
@pytest.mark.parametrize("level", [0.12, 0.3])
def test_risk_control_holds_over_1000_exchangeable_draws(images, level):
    # Images differ: each has its own mean score, so pixels of one image are not exchangeable with those of another.
    rng = np.random.default_rng(images)
    thresholds = np.linspace(-6, 6, 200)
    risks = []
    for _ in range(1000):
        scores = rng.normal(size=(images + 1, 20)) + 2 * rng.normal(size=(images + 1, 1))
        rates = _miss_rates(scores, np.concatenate([[-np.inf], thresholds]))
        risks.append(rates[-1, metrics.risk_control(rates[:-1], level)])
    deviation = np.std(risks) / np.sqrt(len(risks))
    assert np.mean(risks) <= level + 3 * deviation
    # Not needlessly safe: theorem 2 of the paper, and the grid of thresholds.
    assert np.mean(risks) >= level - 2 / (images + 1) - 0.02 - 3 * deviation


@pytest.mark.parametrize("images", [10, 30])
def test_risk_control_of_0_1_risks_is_split_conformal_prediction(images):
    # With one pixel per image the risk is 0 or 1, and the coverage that of a split conformal quantile: a binomial.
    rng, level, draws = np.random.default_rng(images), 0.2, 1000
    covered = 0
    for _ in range(draws):
        scores = rng.normal(size=(images + 1, 1))
        thresholds = np.concatenate([[-np.inf], np.sort(scores[:-1, 0])])
        chosen = thresholds[metrics.risk_control(_miss_rates(scores[:-1], thresholds), level)]
        rank = int(np.floor((images + 1) * level))  # the quantile of Lei et al.: at most `rank` scores below it
        assert chosen == thresholds[rank]
        covered += scores[-1, 0] >= chosen
    low, high = binom.interval(0.999, draws, 1 - np.floor((images + 1) * level) / (images + 1))
    assert low <= covered <= high


def test_risk_control_infeasible_level_names_the_smallest():
    risks = np.repeat([[0.0, 0.5]], 9, axis=0)
    with pytest.raises(ValueError, match=r"no candidate reaches level 0\.05 with 9 .* raise the level to 0\.1 or more"):
        metrics.risk_control(risks, level=0.05)
    assert metrics.risk_control(risks, level=0.1) == 0


@pytest.mark.parametrize(
    ("risks", "level", "message"),
    [
        (np.zeros((0, 3)), 0.1, "at least one image"),
        (np.zeros(3), 0.1, "images, candidates"),
        ([[0.2, 0.1]], 0.6, "must not fall"),
        ([[0.0, np.nan]], 0.6, "must be in"),
        ([[0.0, 2.0]], 0.6, "must be in"),
        ([[0.0, 1.0]], 0.0, "level must be between 0 and 1"),
        ([[0.0, 1.0]], 1.0, "level must be between 0 and 1"),
    ],
)
def test_risk_control_broken_input(raw, risks, level, message):
    with pytest.raises(ValueError, match=message):
        raw.risk_control(np.asarray(risks), level)


def test_false_negative_rates_equal_comparisons_with_the_thresholds():
    logits = (RNG.normal(size=(4, 6, 5, 3)) * 6).astype(np.float32)
    labels = RNG.integers(0, 3, size=(4, 6, 5))
    labels[2] = 1  # an image without the class
    labels[0, 0, 0], logits[0, 0, 0] = 0, [0.5, 0, -1e9]  # on the edge of a bin
    where = RNG.uniform(size=labels.shape) < 0.8
    odds = np.asarray(metrics.class_log_odds(logits))[..., 0]
    histograms = jax.vmap(lambda z, y, k: metrics.score_histogram(z, y == 0, where=k))(odds, labels, where)
    rates, thresholds = metrics.false_negative_rates(histograms)
    assert rates.shape == (3, 4096)
    assert thresholds[0] == -np.inf
    for row, i in zip(rates, (0, 1, 3), strict=True):
        positives = odds[i][(labels[i] == 0) & where[i]]
        np.testing.assert_allclose(row, (positives[:, None] < thresholds).mean(axis=0))


def test_false_negative_rates_of_another_shape_or_of_invalid_counts_are_an_error():
    with pytest.raises(ValueError, match="one per image"):
        metrics.false_negative_rates(np.zeros((2, 8), int))
    with pytest.raises(ValueError, match="negative count"):
        metrics.false_negative_rates(np.full((1, 2, 8), -(2**31)))


def test_adaptive_log_odds_equals_the_mass_of_likelier_classes():
    logits = (RNG.normal(size=(50, 5)) * 3).astype(np.float32)
    p = softmax(logits.astype(np.float64), axis=-1)
    mass = np.where(p[:, None, :] > p[:, :, None], p[:, None, :], 0).sum(axis=-1)
    with np.errstate(divide="ignore"):
        expected = np.log((1 - mass) / mass)
    np.testing.assert_allclose(metrics.adaptive_log_odds(logits), expected, rtol=1e-4, atol=1e-4)


def test_adaptive_log_odds_of_equal_and_of_impossible_classes():
    odds = np.asarray(metrics.adaptive_log_odds(jnp.array([[0.0, 0.0, -jnp.inf], [-1e4, 1e4, 0.0]])))
    assert odds[0].tolist() == [np.inf, 0.0, -np.inf]
    assert odds[1, 1] == np.inf
    assert not np.isnan(odds).any()


@pytest.mark.parametrize(
    ("conformity", "per_class"),
    [(metrics.class_log_odds, False), (metrics.class_log_odds, True), (metrics.adaptive_log_odds, False)],
)
def test_prediction_sets_cover_the_labels_of_a_new_image(conformity, per_class):
    rng, images, level, draws = np.random.default_rng(1), 19, 0.2, 200
    logits = 2 * rng.normal(size=(draws, images + 1, 30, 4)) + 2 * rng.normal(size=(draws, images + 1, 1, 4))
    labels = (softmax(logits, axis=-1).cumsum(axis=-1) > rng.uniform(size=(*logits.shape[:-1], 1))).argmax(axis=-1)
    odds = np.asarray(jax.jit(conformity)(logits.astype(np.float32)))
    own = np.take_along_axis(odds, labels[..., None], axis=-1)[..., 0]
    histograms = jax.jit(jax.vmap(metrics.score_histogram))
    count = jax.jit(jax.vmap(lambda s, y, k: metrics.prediction_set_counts(s, y, where=k)))
    for group in [labels == c for c in range(4)] if per_class else [np.ones(labels.shape, bool)]:
        chosen = []
        for z, y in zip(own[:, :-1], group[:, :-1], strict=True):
            rates, thresholds = metrics.false_negative_rates(histograms(z, y))
            chosen.append(thresholds[metrics.risk_control(rates, level)])
        counts = count(odds[:, -1] >= np.reshape(chosen, (-1, 1, 1)), labels[:, -1], group[:, -1])
        missed = [1 - metrics.prediction_set_scores(one)["coverage"] for one in np.asarray(counts) if one.any()]
        assert level - 0.12 < np.mean(missed) <= level + 3 * np.std(missed) / np.sqrt(len(missed))


def test_prediction_set_counts_equal_numpy():
    sets = RNG.uniform(size=(6, 7, 4)) < 0.4
    labels, where = RNG.integers(0, 4, size=(6, 7)), RNG.uniform(size=(6, 7)) < 0.7
    counts = metrics.prediction_set_counts(sets, np.where(where, labels, 255), where=where)
    size, covered = sets.sum(axis=-1)[where], np.take_along_axis(sets, labels[..., None], -1)[..., 0][where]
    expected = [[((size == k) & (covered == b)).sum() for b in (False, True)] for k in range(5)]
    np.testing.assert_array_equal(counts, expected)
    scores = metrics.prediction_set_scores(counts)
    assert scores["coverage"] == pytest.approx(covered.mean())
    assert scores["mean_size"] == pytest.approx(size.mean())
    assert (np.asarray(metrics.prediction_set_counts(sets, labels + 1)) == -(2**31)).all()


@pytest.mark.parametrize("logits", [[2.0, np.nan, 0.0], [2.0, np.inf, 0.0], [-np.inf] * 3])
def test_adaptive_log_odds_of_invalid_logits_are_nan(logits):
    assert np.isnan(metrics.adaptive_log_odds(jnp.array(logits))).all()


def test_distance_histogram_equals_distances_of_all_pairs():
    rng, radii = np.random.default_rng(3), [0, 1, 1.5, 4]
    mask, targets, where = (rng.random((7, 9)) < share for share in (0.05, 0.3, 0.8))
    places = np.argwhere(np.ones_like(mask))
    distance = np.linalg.norm(places[:, None] - np.argwhere(mask), axis=-1).min(axis=1).reshape(mask.shape)
    within = np.array([[((distance <= r) & (targets == t) & where).sum() for r in (*radii, np.inf)] for t in (0, 1)])
    expected = np.diff(within, prepend=0)[:, ::-1]
    np.testing.assert_array_equal(metrics.distance_histogram(mask, targets, radii, where=where), expected)


def test_distance_histogram_of_an_empty_mask_finds_targets_in_the_whole_image_only():
    histogram = metrics.distance_histogram(np.zeros((4, 5), bool), np.eye(4, 5, dtype=bool), [0, 100])
    assert histogram.tolist() == [[16, 0, 0], [4, 0, 0]]
    assert metrics.false_negative_rates(histogram[None]).rates.tolist() == [[0, 1, 1]]


def test_distance_histogram_radius_holds_for_new_images():
    rng, radii, level = np.random.default_rng(4), range(12), 0.2

    def image():
        """Returns a histogram of a square and of a mask that misses a strip of random width on its right."""
        targets, mask = np.zeros((2, 24, 24), bool)
        targets[6:18, 4:20], mask[6:18, 4 : 20 - rng.integers(0, 13)] = True, True
        return metrics.distance_histogram(mask, targets, radii)

    rates = metrics.false_negative_rates(np.stack([image() for _ in range(300)])).rates
    risks = []
    for _ in range(200):
        order = rng.permutation(300)
        risks.append(rates[order[40:], metrics.risk_control(rates[order[:40]], level)].mean())
    assert level - 2 / 41 - 0.05 < np.mean(risks) <= level + 0.01


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"radii": [1, 1]}, ValueError, "radii must be rising"),
        ({"radii": [-1, 1]}, ValueError, "at least 0"),
        ({"radii": [[1], [1, 2]]}, ValueError, "radii must be an array; got rows of different lengths"),
        ({"radii": ["0", "1"]}, TypeError, "radii must be real numbers"),
        ({"radii": [False, True]}, TypeError, "radii must be real numbers"),
        ({"radii": [0j, 1]}, TypeError, "radii must be real numbers"),
        ({"mask": np.zeros((2, 4, 4), bool)}, ValueError, "of one image"),
        ({"targets": np.zeros((4, 3), bool)}, ValueError, "targets must have the shape of mask"),
        ({"targets": np.zeros((4, 4), int)}, TypeError, "targets must be boolean; got int64"),
    ],
)
def test_distance_histogram_broken_input(raw, changes, error, message):
    arguments = {"mask": np.zeros((4, 4), bool), "targets": np.zeros((4, 4), bool), "radii": [0, 1]} | changes
    with pytest.raises(error, match=message):
        raw.distance_histogram(**arguments)
