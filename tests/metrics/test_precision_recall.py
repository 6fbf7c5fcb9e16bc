"""The curve against scikit-learn's, the log odds against float64."""

import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn import metrics as sklearn_metrics

from segjax import metrics


@pytest.fixture(scope="module")
def scored():
    """Logits on the bins' edges, so that nothing is lost in a bin, and their targets."""
    rng = np.random.default_rng(0)
    logits = np.round(rng.normal(size=3000) * 4 * 128) / 128
    return logits.astype(np.float32), rng.uniform(size=3000) < 1 / (1 + np.exp(4 - logits))


def test_the_points_are_those_of_scikit_learn(scored):
    logits, targets = scored
    curve = metrics.precision_recall_curve(np.asarray(metrics.score_histogram(logits, targets), np.int64))
    precision, recall, thresholds = sklearn_metrics.precision_recall_curve(targets, logits)
    np.testing.assert_array_equal(curve["threshold_logit"], thresholds[::-1])
    np.testing.assert_allclose(curve["precision"], precision[-2::-1], rtol=1e-12)
    np.testing.assert_allclose(curve["recall"], recall[-2::-1], rtol=1e-12)


def test_a_logit_below_the_range_is_found_by_no_finite_threshold():
    curve = metrics.precision_recall_curve(metrics.score_histogram(np.array([-20.0, 3.0]), np.array([1, 1])))
    assert curve["threshold_logit"].tolist() == [3.0, -np.inf]
    assert curve["recall"].tolist() == [0.5, 1.0]


def test_without_positives_the_recall_is_nan_and_without_pixels_there_is_no_point():
    curve = metrics.precision_recall_curve(metrics.score_histogram(np.zeros(2), np.zeros(2, int)))
    assert np.isnan(curve["recall"]).tolist() == [True]
    assert curve["precision"].tolist() == [0.0]
    assert all(values.size == 0 for values in metrics.precision_recall_curve(np.zeros((2, 4096), int)).values())


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_log_odds_are_right_to_float32_however_sure_a_class_is(scale):
    logits = (np.random.default_rng(1).normal(size=(200, 5)) * scale).astype(np.float32)
    wide = logits.astype(np.float64)
    expected = np.stack([wide[:, c] - logsumexp(np.delete(wide, c, 1), axis=1) for c in range(5)], axis=1)
    found = np.asarray(metrics.class_log_odds(logits), np.float64)
    within = np.abs(expected) < 80  # beyond, exp leaves float32's range, and the histogram's ends are at 16
    np.testing.assert_allclose(found[within], expected[within], rtol=1e-5, atol=2e-6 * scale)
    assert (np.sign(found) == np.sign(expected)).all()


def test_of_two_classes_the_log_odds_are_the_logits_difference():
    logits = np.array([[0.0, 3.0], [2.0, -5.0], [1.0, 1.0]], np.float32)
    np.testing.assert_allclose(metrics.class_log_odds(logits)[:, 1], [3.0, -7.0, 0.0], atol=1e-6)


def test_a_class_ruled_out_is_never_ranked_above_another_and_nan_stays():
    odds = np.asarray(metrics.class_log_odds(np.array([[0.0, -np.inf, 0.0], [np.nan, 0.0, 0.0]], np.float32)))
    assert odds[0].tolist() == [0.0, -np.inf, 0.0]
    assert np.isnan(odds[1]).all()


def test_a_single_class_has_no_odds():
    with pytest.raises(ValueError, match=r"at least 2 classes; got shape \(3, 1\)"):
        metrics.class_log_odds(np.zeros((3, 1), np.float32))
