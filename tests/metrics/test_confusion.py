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


@settings(max_examples=20)
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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_logits_count_as_their_largest_class_and_ties_as_the_lowest(dtype):
    logits = jnp.asarray(RNG.integers(-2, 3, size=(*LABELS.shape, 4)), dtype)
    predictions = np.argmax(np.asarray(logits, np.float32), axis=-1)
    matrix = metrics.confusion_matrix(LABELS, logits, 4)
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(LABELS, predictions, 4))
    tied = metrics.confusion_matrix(np.array([1, 1]), jnp.array([[0, 5, 5], [-jnp.inf, -jnp.inf, -jnp.inf]], dtype), 3)
    assert tied[1].tolist() == [1, 1, 0]


def test_a_kept_nan_logit_makes_every_count_invalid_and_a_masked_one_is_not_there():
    logits = np.zeros((2, 3), np.float32)
    logits[0, 1] = np.nan
    labels = np.array([1, 2])
    np.testing.assert_array_equal(metrics.confusion_matrix(labels, logits, 3), np.full((3, 3), INVALID))
    masked = metrics.confusion_matrix(labels, logits, 3, where=np.array([False, True]))
    np.testing.assert_array_equal(masked, metrics.confusion_matrix(labels[1:], logits[1:], 3))


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
        "matthews_correlation": sklearn_metrics.matthews_corrcoef(y, p),
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


def test_a_perfect_single_class_is_one_but_correlates_with_nothing():
    scores = metrics.segmentation_scores(np.array([[7]]))
    assert np.isnan(scores.pop("matthews_correlation"))
    assert all(np.all(value == 1) for value in scores.values())


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_matthews_is_scikit_learns_except_where_it_is_not_defined(pixels):
    y, p = np.array(pixels).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of a single class
        expected = sklearn_metrics.matthews_corrcoef(y, p)
    matrix = np.zeros((4, 4), np.int64)
    np.add.at(matrix, (y, p), 1)
    ours = metrics.segmentation_scores(matrix)["matthews_correlation"]
    if len(set(y.tolist())) == 1 or len(set(p.tolist())) == 1:
        assert np.isnan(ours)
        assert expected == 0
    else:
        assert ours == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[2**40, 0], [0, 1]], 1.0),
        ([[0, 2**40], [2**40, 0]], -1.0),
        ([[2**40, 2**40], [3, 3]], 0.0),
        # 3 of 4 rare pixels found, 1 false alarm: √(3/4 · 3/4) but for 2^-40. In float64 N² - Σ t² would lose it.
        ([[2**40, 1], [1, 3]], 0.75),
    ],
)
def test_matthews_of_2_to_the_40_pixels(matrix, expected):
    scores = metrics.segmentation_scores(np.array(matrix))
    assert scores["matthews_correlation"] == pytest.approx(expected, rel=1e-11)


def test_a_stream_of_2_to_the_31_pixels_and_more_is_exact():
    batch = np.asarray(metrics.confusion_matrix(np.zeros(2**20, np.int32), np.zeros(2**20, np.int32), 2))
    last = np.asarray(metrics.confusion_matrix(np.zeros(1000, np.int32), np.arange(1000) // 999, 2))
    exact, single = np.zeros((2, 2), np.int64), np.zeros((2, 2), np.float32)
    for matrix in [batch] * 2**11 + [last]:
        exact += matrix
        single += matrix.astype(np.float32)
    np.testing.assert_array_equal(exact, [[2**31 + 999, 1], [0, 0]])
    assert metrics.segmentation_scores(exact)["pixel_accuracy"] == (2**31 + 999) / (2**31 + 1000)
    assert single.astype(np.float64).sum() != 2**31 + 1000
    # The loop that counts one pixel after the other in float32 stops long before.
    assert np.float32(2**24) + np.float32(1) == np.float32(2**24)


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
    "logits of other classes": (
        lambda f: f.confusion_matrix(LABELS, jnp.zeros((3, 6, 5, 7)), 4),
        ValueError,
        r"predictions must be classes of shape \(3, 6, 5\) or logits of shape \(3, 6, 5, 4\); "
        r"got float32 of shape \(3, 6, 5, 7\)",
    ),
    "float predictions": (
        lambda f: f.confusion_matrix(LABELS, jnp.zeros((3, 6, 5)), 4),
        ValueError,
        r"predictions must be classes .* or logits .*; got float32 of shape \(3, 6, 5\)",
    ),
    "boolean predictions": (
        lambda f: f.confusion_matrix(LABELS, LABELS == 1, 4),
        TypeError,
        r"predictions must be integers; got bool of shape \(3, 6, 5\)",
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
