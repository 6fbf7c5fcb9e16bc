import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from segjax import metrics

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, size=(3, 6, 5))
PREDICTIONS = np.where(RNG.uniform(size=LABELS.shape) < 0.6, LABELS, RNG.integers(0, 4, size=LABELS.shape))
INVALID = -(2**31)


def test_counts_equal_scikit_learns():
    matrix = metrics.confusion_matrix(LABELS, PREDICTIONS, 4)
    assert matrix.dtype == jnp.int32
    np.testing.assert_array_equal(matrix, sklearn_metrics.confusion_matrix(LABELS.ravel(), PREDICTIONS.ravel()))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.uint32])
def test_integers_of_every_dtype_up_to_their_range(dtype):
    labels = np.array([0, 100, 127], dtype)
    matrix = metrics.confusion_matrix(labels, labels, 200)
    assert [int(matrix[i, i]) for i in labels] == [1, 1, 1]
    assert matrix.sum() == 3


@pytest.mark.parametrize("void", [255, -1, 2**31 - 1])
def test_masked_pixels_are_not_counted(void):
    where = np.random.default_rng(1).uniform(size=LABELS.shape) < 0.5
    expected = sklearn_metrics.confusion_matrix(LABELS[where], PREDICTIONS[where])
    matrix = metrics.confusion_matrix(np.where(where, LABELS, void), np.where(where, PREDICTIONS, -7), 4, where=where)
    np.testing.assert_array_equal(matrix, expected)


def test_a_mask_may_be_the_same_along_an_axis_or_empty():
    rows = np.array([True, False, True]).reshape(3, 1, 1)
    expected = sklearn_metrics.confusion_matrix(LABELS[[0, 2]].ravel(), PREDICTIONS[[0, 2]].ravel())
    np.testing.assert_array_equal(metrics.confusion_matrix(LABELS, PREDICTIONS, 4, where=rows), expected)
    assert not metrics.confusion_matrix(LABELS, PREDICTIONS, 4, where=rows & False).any()


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.integers(0, 2**31))
def test_any_split_into_batches_adds_up_bit_for_bit(batches, seed):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, 3, size=(2, 60))
    where = rng.uniform(size=60) < 0.8
    parts = rng.permutation(np.arange(60) % batches)
    # Same shapes for every split: the pixels of other batches are masked out.
    summed = sum(metrics.confusion_matrix(labels, predictions, 3, where=where & (parts == b)) for b in range(batches))
    np.testing.assert_array_equal(summed, metrics.confusion_matrix(labels, predictions, 3, where=where))


@pytest.mark.parametrize("where_wrong", ["labels", "predictions"])
@pytest.mark.parametrize("wrong", [-1, 4, 255])
def test_a_kept_class_out_of_range_makes_every_count_invalid_and_the_scores_refuse_it(where_wrong, wrong):
    arrays = {"labels": LABELS.copy(), "predictions": PREDICTIONS.copy()}
    arrays[where_wrong][0, 0, 0] = wrong
    matrix = metrics.confusion_matrix(**arrays, num_classes=4)
    np.testing.assert_array_equal(matrix, np.full((4, 4), INVALID))
    # It is still seen after a whole run of good batches has been added to it.
    run = np.asarray(matrix, np.int64) + np.full((4, 4), 10**9)
    with pytest.raises(ValueError, match=r"confusion has a negative count, -\d+: a label or prediction outside"):
        metrics.segmentation_scores(run)


def test_scores_equal_scikit_learns():
    scores = metrics.segmentation_scores(metrics.confusion_matrix(LABELS, PREDICTIONS, 4))
    y, p = LABELS.ravel(), PREDICTIONS.ravel()
    iou = sklearn_metrics.jaccard_score(y, p, average=None)
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(y, p)
    expected = {
        "mean_iou": iou.mean(),
        "iou_per_class": iou,
        "pixel_accuracy": sklearn_metrics.accuracy_score(y, p),
        "mean_accuracy": sklearn_metrics.balanced_accuracy_score(y, p),
        "accuracy_per_class": recall,
        "one_vs_rest_accuracy_per_class": [sklearn_metrics.accuracy_score(y == c, p == c) for c in range(4)],
        "frequency_weighted_iou": (support * iou).sum() / support.sum(),
        "mean_dice": f1.mean(),
        "dice_per_class": f1,
        "precision_per_class": precision,
        "recall_per_class": recall,
    }
    assert scores.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(scores[name], value, rtol=1e-12, err_msg=name)
        assert isinstance(scores[name], np.ndarray if name.endswith("_per_class") else float)


# Class 1 is never the truth and once predicted, class 2 is nowhere, class 3 is the truth and never predicted.
HOLES = np.array([[6, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [3, 0, 0, 0]])


def test_a_class_with_a_denominator_of_zero_is_nan_and_left_out_of_the_means():
    scores = metrics.segmentation_scores(HOLES)
    np.testing.assert_allclose(scores["iou_per_class"], [0.6, 0, np.nan, 0])
    np.testing.assert_allclose(scores["recall_per_class"], [6 / 7, np.nan, np.nan, 0])
    np.testing.assert_allclose(scores["precision_per_class"], [6 / 9, 0, np.nan, np.nan])
    np.testing.assert_allclose(scores["dice_per_class"], [0.75, 0, np.nan, 0])
    np.testing.assert_allclose(scores["one_vs_rest_accuracy_per_class"], [0.6, 0.9, 1.0, 0.7])
    assert scores["mean_iou"] == pytest.approx(0.2)
    assert scores["mean_accuracy"] == pytest.approx(3 / 7)
    assert scores["mean_dice"] == pytest.approx(0.25)
    assert scores["frequency_weighted_iou"] == pytest.approx(0.7 * 0.6)


@pytest.mark.parametrize(("absent", "fill", "mean_iou"), [("zero", 0.0, 0.15), ("one", 1.0, 0.4)])
def test_the_other_absent_policies_count_the_class(absent, fill, mean_iou):
    scores = metrics.segmentation_scores(HOLES, absent=absent)
    np.testing.assert_allclose(scores["iou_per_class"], [0.6, 0, fill, 0])
    np.testing.assert_allclose(scores["precision_per_class"], [6 / 9, 0, fill, fill])
    assert scores["mean_iou"] == pytest.approx(mean_iou)
    assert scores["frequency_weighted_iou"] == pytest.approx(0.7 * 0.6)


def test_nothing_counted_is_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = metrics.segmentation_scores(np.zeros((2, 2), np.int64))
    assert all(np.isnan(value).all() for value in scores.values())


def test_a_perfect_single_class_is_one():
    scores = metrics.segmentation_scores(np.array([[7]]))
    assert all(np.all(value == 1) for value in scores.values())


def test_counts_beyond_float32_and_int32_are_exact():
    # 2^31 + 1000 pixels, one of them wrong: float32 has no such number.
    scores = metrics.segmentation_scores(np.array([[2**31 + 999, 1], [0, 0]]))
    assert 1 - scores["pixel_accuracy"] == pytest.approx(1 / (2**31 + 1000), rel=1e-6)
    assert np.float32(2**31) + np.float32(1) == np.float32(2**31)


BROKEN = {
    "float labels": (
        lambda f: f.confusion_matrix(LABELS * 1.0, PREDICTIONS, 4),
        TypeError,
        r"labels must be integers; got float32 of shape \(3, 6, 5\)",
    ),
    "logits": (
        lambda f: f.confusion_matrix(LABELS, jnp.zeros((3, 6, 5, 4)), 4),
        TypeError,
        r"predictions must be integers; got float32 of shape \(3, 6, 5, 4\)",
    ),
    "shape": (
        lambda f: f.confusion_matrix(LABELS, PREDICTIONS[:2], 4),
        ValueError,
        r"predictions must have the shape of labels, \(3, 6, 5\); got \(2, 6, 5\)",
    ),
    "mask": (
        lambda f: f.confusion_matrix(LABELS, PREDICTIONS, 4, where=np.ones(4, bool)),
        ValueError,
        r"where must have shape \(3, 6, 5\).* got \(4,\)",
    ),
    "no classes": (
        lambda f: f.confusion_matrix(LABELS, PREDICTIONS, 0),
        ValueError,
        r"num_classes must be at least 1; got 0",
    ),
    "float counts": (
        lambda f: f.segmentation_scores(np.eye(2)),
        TypeError,
        r"confusion must be integers .*got float64",
    ),
    "not square": (
        lambda f: f.segmentation_scores(np.ones((2, 3), int)),
        ValueError,
        r"confusion must be \[classes, classes\]; got shape \(2, 3\)",
    ),
    "absent": (
        lambda f: f.segmentation_scores(HOLES, absent="skip"),
        ValueError,
        r"absent must be one of 'exclude', 'zero', 'one'; got 'skip'",
    ),
    "traced": (
        lambda f: jax.jit(f.segmentation_scores)(HOLES),
        TypeError,
        r"confusion must be known on the host; got a traced array of shape \(4, 4\)",
    ),
}


class Raw:
    """The functions without the tests' import hook, as a user has them."""

    confusion_matrix = staticmethod(inspect.unwrap(metrics.confusion_matrix))
    segmentation_scores = staticmethod(inspect.unwrap(metrics.segmentation_scores))


@pytest.mark.parametrize("case", BROKEN)
def test_broken_input_is_named(case):
    call, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        call(Raw)
