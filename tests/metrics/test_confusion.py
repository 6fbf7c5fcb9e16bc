import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from sklearn import metrics as sklearn_metrics

from segjax import metrics

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, size=(3, 6, 5))
PREDICTIONS = np.where(RNG.uniform(size=LABELS.shape) < 0.6, LABELS, RNG.integers(0, 4, size=LABELS.shape))
INVALID = -(2**31)


def test_confusion_matrix_scikit_learn():
    matrix = metrics.confusion_matrix(LABELS, PREDICTIONS, 4)
    assert matrix.dtype == jnp.int32
    np.testing.assert_array_equal(matrix, sklearn_metrics.confusion_matrix(LABELS.ravel(), PREDICTIONS.ravel()))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.uint32])
def test_confusion_matrix_integer_dtypes(dtype):
    labels = np.array([0, 100, 127], dtype)
    matrix = metrics.confusion_matrix(labels, labels, 200)
    assert [int(matrix[i, i]) for i in labels] == [1, 1, 1]
    assert matrix.sum() == 3


@pytest.mark.parametrize("dtype", [">i2", ">u2", ">i4", ">i8"])
def test_confusion_matrix_big_endian(dtype):
    expected = metrics.confusion_matrix(LABELS, PREDICTIONS, 4)
    np.testing.assert_array_equal(
        metrics.confusion_matrix(LABELS.astype(dtype), PREDICTIONS.astype(dtype), 4), expected
    )
    logits = np.eye(4)[PREDICTIONS].astype(">f4")
    np.testing.assert_array_equal(metrics.confusion_matrix(LABELS.astype(dtype), logits, 4), expected)


def test_confusion_matrix_booleans():
    labels, predictions = LABELS == 1, PREDICTIONS == 1
    expected = sklearn_metrics.confusion_matrix(labels.ravel(), predictions.ravel())
    np.testing.assert_array_equal(metrics.confusion_matrix(labels, predictions, 2), expected)
    np.testing.assert_array_equal(metrics.confusion_matrix_per_image(labels, predictions, 2).sum(axis=0), expected)


def test_confusion_matrix_int64_class_beyond_int32():
    beyond = np.full(LABELS.shape, 2**32 + 1)
    assert (np.asarray(metrics.confusion_matrix(LABELS, beyond, 4)) == INVALID).all()


@pytest.mark.parametrize("void", [255, -1, 2**31 - 1])
def test_confusion_matrix_masked_pixels(void):
    where = np.random.default_rng(1).uniform(size=LABELS.shape) < 0.5
    expected = sklearn_metrics.confusion_matrix(LABELS[where], PREDICTIONS[where])
    matrix = metrics.confusion_matrix(np.where(where, LABELS, void), np.where(where, PREDICTIONS, -7), 4, where=where)
    np.testing.assert_array_equal(matrix, expected)


def test_confusion_matrix_broadcast_and_empty_mask():
    rows = np.array([True, False, True]).reshape(3, 1, 1)
    expected = sklearn_metrics.confusion_matrix(LABELS[[0, 2]].ravel(), PREDICTIONS[[0, 2]].ravel())
    np.testing.assert_array_equal(metrics.confusion_matrix(LABELS, PREDICTIONS, 4, where=rows), expected)
    assert not metrics.confusion_matrix(LABELS, PREDICTIONS, 4, where=rows & False).any()


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(0, 2**31))
def test_confusion_matrix_any_split_adds_up(batches, seed):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, 3, size=(2, 60))
    where = rng.uniform(size=60) < 0.8
    parts = rng.permutation(np.arange(60) % batches)
    # Same shapes for every split: the pixels of other batches are masked out.
    summed = sum(metrics.confusion_matrix(labels, predictions, 3, where=where & (parts == b)) for b in range(batches))
    np.testing.assert_array_equal(summed, metrics.confusion_matrix(labels, predictions, 3, where=where))


@pytest.mark.parametrize("where_wrong", ["labels", "predictions"])
@pytest.mark.parametrize("wrong", [-1, 4, 255])
def test_confusion_matrix_class_out_of_range(where_wrong, wrong):
    arrays = {"labels": LABELS.copy(), "predictions": PREDICTIONS.copy()}
    arrays[where_wrong][0, 0, 0] = wrong
    matrix = metrics.confusion_matrix(**arrays, num_classes=4)
    np.testing.assert_array_equal(matrix, np.full((4, 4), INVALID))
    # The sum still shows it after a whole run of good batches.
    run = np.asarray(matrix, np.int64) + np.full((4, 4), 10**9)
    with pytest.raises(ValueError, match=r"confusion has a negative count, -\d+: a label or prediction outside"):
        metrics.segmentation_scores(run)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_confusion_matrix_logits_and_ties(dtype):
    logits = jnp.asarray(RNG.integers(-2, 3, size=(*LABELS.shape, 4)), dtype)
    predictions = np.argmax(np.asarray(logits, np.float32), axis=-1)
    matrix = metrics.confusion_matrix(LABELS, logits, 4)
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(LABELS, predictions, 4))
    tied = metrics.confusion_matrix(np.array([1, 1]), jnp.array([[0, 5, 5], [-jnp.inf, -jnp.inf, -jnp.inf]], dtype), 3)
    assert tied[1].tolist() == [1, 1, 0]


def test_confusion_matrix_nan_logit():
    logits = np.zeros((2, 3), np.float32)
    logits[0, 1] = np.nan
    labels = np.array([1, 2])
    np.testing.assert_array_equal(metrics.confusion_matrix(labels, logits, 3), np.full((3, 3), INVALID))
    masked = metrics.confusion_matrix(labels, logits, 3, where=np.array([False, True]))
    np.testing.assert_array_equal(masked, metrics.confusion_matrix(labels[1:], logits[1:], 3))


def test_segmentation_scores_scikit_learn():
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


@pytest.mark.parametrize("beta", [0.5, 1, 2.0])
def test_segmentation_scores_f_beta_scikit_learn(beta):
    matrix = metrics.confusion_matrix(LABELS, PREDICTIONS, 4)
    scores = metrics.segmentation_scores(matrix, beta=beta)
    expected = sklearn_metrics.fbeta_score(LABELS.ravel(), PREDICTIONS.ravel(), beta=beta, average=None)
    np.testing.assert_allclose(scores.pop("f_beta_per_class"), expected, rtol=1e-12)
    np.testing.assert_allclose(scores.pop("mean_f_beta"), expected.mean(), rtol=1e-12)
    assert scores.keys() == metrics.segmentation_scores(matrix).keys()


def test_segmentation_scores_f_beta_of_absent_classes_and_a_beta_of_zero():
    np.testing.assert_allclose(metrics.segmentation_scores(HOLES, beta=2)["f_beta_per_class"], [30 / 37, 0, np.nan, 0])
    assert metrics.segmentation_scores(HOLES, beta=2, absent="one")["f_beta_per_class"][2] == 1
    with pytest.raises(ValueError, match="beta must be finite and more than 0; got 0"):
        metrics.segmentation_scores(HOLES, beta=0)


# Class 1 is predicted but not labelled, class 2 is absent, class 3 is labelled but not predicted.
HOLES = np.array([[6, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [3, 0, 0, 0]])


def test_segmentation_scores_absent_exclude():
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
def test_segmentation_scores_absent_zero_and_one(absent, fill, mean_iou):
    scores = metrics.segmentation_scores(HOLES, absent=absent)
    np.testing.assert_allclose(scores["iou_per_class"], [0.6, 0, fill, 0])
    np.testing.assert_allclose(scores["precision_per_class"], [6 / 9, 0, fill, fill])
    assert scores["mean_iou"] == pytest.approx(mean_iou)
    assert scores["frequency_weighted_iou"] == pytest.approx(0.7 * 0.6)


def test_segmentation_scores_nothing_counted():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = metrics.segmentation_scores(np.zeros((2, 2), np.int64))
    assert all(np.isnan(value).all() for value in scores.values())


def test_segmentation_scores_perfect_single_class():
    scores = metrics.segmentation_scores(np.array([[7]]))
    assert np.isnan(scores.pop("matthews_correlation"))
    assert all(np.all(value == 1) for value in scores.values())


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_segmentation_scores_matthews_scikit_learn(pixels):
    y, p = np.array(pixels).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of a single class
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
        # 3 of 4 rare pixels found, 1 false alarm: √(3/4 · 3/4) up to 2^-40. N² - Σ t² cancels in float64.
        ([[2**40, 1], [1, 3]], 0.75),
    ],
)
def test_segmentation_scores_matthews_2_to_the_40_pixels(matrix, expected):
    scores = metrics.segmentation_scores(np.array(matrix))
    assert scores["matthews_correlation"] == pytest.approx(expected, rel=1e-11)


def test_confusion_matrix_stream_beyond_int32():
    batch = np.asarray(metrics.confusion_matrix(np.zeros(2**20, np.int32), np.zeros(2**20, np.int32), 2))
    last = np.asarray(metrics.confusion_matrix(np.zeros(1000, np.int32), np.arange(1000) // 999, 2))
    exact, single = np.zeros((2, 2), np.int64), np.zeros((2, 2), np.float32)
    for matrix in [batch] * 2**11 + [last]:
        exact += matrix
        single += matrix.astype(np.float32)
    np.testing.assert_array_equal(exact, [[2**31 + 999, 1], [0, 0]])
    assert metrics.segmentation_scores(exact)["pixel_accuracy"] == (2**31 + 999) / (2**31 + 1000)
    assert single.astype(np.float64).sum() != 2**31 + 1000
    # A float32 counter that adds one pixel at a time stops at 2^24.
    assert np.float32(2**24) + np.float32(1) == np.float32(2**24)


def test_segmentation_scores_counts_beyond_float32():
    # 2^31 + 1000 pixels, one of them wrong: float32 cannot hold this number.
    scores = metrics.segmentation_scores(np.array([[2**31 + 999, 1], [0, 0]]))
    assert 1 - scores["pixel_accuracy"] == pytest.approx(1 / (2**31 + 1000), rel=1e-6)
    assert np.float32(2**31) + np.float32(1) == np.float32(2**31)


def test_confusion_matrix_per_image_sum_is_the_batch():
    where = RNG.uniform(size=LABELS.shape) < 0.7
    matrices = metrics.confusion_matrix_per_image(LABELS, PREDICTIONS, 4, where=where)
    assert matrices.dtype == jnp.int32
    for n in range(3):
        alone = metrics.confusion_matrix(LABELS[n], PREDICTIONS[n], 4, where=where[n])
        np.testing.assert_array_equal(matrices[n], alone)
    np.testing.assert_array_equal(matrices.sum(axis=0), metrics.confusion_matrix(LABELS, PREDICTIONS, 4, where=where))


def test_confusion_matrix_per_image_logits():
    logits = jnp.asarray(RNG.normal(size=(*LABELS.shape, 4)), jnp.bfloat16)
    np.testing.assert_array_equal(
        metrics.confusion_matrix_per_image(LABELS, logits, 4),
        metrics.confusion_matrix_per_image(LABELS, jnp.argmax(logits, axis=-1), 4),
    )


@pytest.mark.parametrize("wrong", ["label", "prediction", "logit"])
def test_confusion_matrix_per_image_invalid_pixel(wrong):
    labels, predictions = LABELS.copy(), PREDICTIONS.copy()
    if wrong == "logit":
        predictions = np.eye(4, dtype=np.float32)[predictions]
        predictions[1, 0, 0, 2] = np.nan
    else:
        {"label": labels, "prediction": predictions}[wrong][1, 0, 0] = 255
    matrices = metrics.confusion_matrix_per_image(labels, predictions, 4)
    np.testing.assert_array_equal(matrices[1], np.full((4, 4), INVALID))
    expected = metrics.confusion_matrix_per_image(LABELS, PREDICTIONS, 4)
    np.testing.assert_array_equal(matrices[::2], expected[::2])
    with pytest.raises(ValueError, match=r"confusions has a negative count, -2147483648: a label or prediction"):
        metrics.per_image_sums(matrices)
    where = np.ones_like(LABELS, bool)
    where[1, 0, 0] = False
    assert (metrics.confusion_matrix_per_image(labels, predictions, 4, where=where) >= 0).all()


def test_confusion_matrix_per_image_four_devices():
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    labels, predictions = np.tile(LABELS, (4, 1, 1))[:8], np.tile(PREDICTIONS, (4, 1, 1))[:8]
    where = RNG.uniform(size=labels.shape) < 0.5
    where[6:] = False
    batch = jax.device_put((labels, predictions, where), NamedSharding(mesh, PartitionSpec("devices")))
    matrices = jax.jit(lambda y, p, k: metrics.confusion_matrix_per_image(y, p, 4, where=k))(*batch)
    np.testing.assert_array_equal(matrices, metrics.confusion_matrix_per_image(labels, predictions, 4, where=where))
    assert not matrices[6:].any()


def test_per_image_scores_scikit_learn():
    scores = metrics.per_image_scores(
        metrics.per_image_sums(metrics.confusion_matrix_per_image(LABELS, PREDICTIONS, 4))
    )
    images = [(y.ravel(), p.ravel()) for y, p in zip(LABELS, PREDICTIONS, strict=True)]
    iou = np.array([sklearn_metrics.jaccard_score(y, p, average=None) for y, p in images])
    dice = np.array([sklearn_metrics.f1_score(y, p, average=None) for y, p in images])
    expected = {
        "mean_iou_per_image": iou.mean(),
        "mean_dice_per_image": dice.mean(),
        "pixel_accuracy_per_image": np.mean([sklearn_metrics.accuracy_score(y, p) for y, p in images]),
        "mean_accuracy_per_image": np.mean([sklearn_metrics.balanced_accuracy_score(y, p) for y, p in images]),
        "iou_per_class_per_image": iou.mean(axis=0),
        "dice_per_class_per_image": dice.mean(axis=0),
    }
    assert scores.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(scores[name], value, rtol=1e-12, err_msg=name)
        assert isinstance(scores[name], np.ndarray if "_per_class" in name else float)


# One image of 1,000 pixels without an error, and three of 10 pixels with a missed or false pixel of the rare class.
APART = np.array([[[950, 0], [0, 50]], [[9, 0], [1, 0]], [[9, 1], [0, 0]], [[9, 0], [1, 0]]])


def test_per_image_scores_differ_from_data_set_scores():
    of_set = metrics.segmentation_scores(APART.sum(axis=0))
    of_images = metrics.per_image_scores(metrics.per_image_sums(APART))
    assert of_set["mean_iou"] == pytest.approx((977 / 980 + 50 / 53) / 2)  # 0.970
    assert of_images["mean_iou_per_image"] == pytest.approx((1 + 3 * 0.45) / 4)  # 0.588
    assert of_images["iou_per_class_per_image"][1] == pytest.approx(1 / 4)


def test_per_image_scores_three_mean_ious():
    # Class 2 is in one image only: (0.5 + 1 + 1) / 3 there, (0.25 + 1) / 2 in the other.
    matrices = np.array([[[1, 1, 0], [0, 0, 0], [0, 0, 1]], [[1, 0, 0], [0, 2, 0], [0, 0, 0]]])
    scores = metrics.per_image_scores(metrics.per_image_sums(matrices))
    np.testing.assert_allclose(scores["iou_per_class_per_image"], [0.75, 0.5, 1.0])
    assert scores["mean_iou_per_image"] == pytest.approx(((0.5 + 0 + 1) / 3 + (1 + 1) / 2) / 2)
    assert scores["iou_per_class_per_image"].mean() == pytest.approx(0.75)
    assert metrics.segmentation_scores(matrices.sum(axis=0))["mean_iou"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_per_image_sums_void_image():
    void = np.zeros((5, 2, 2), np.int64)
    for absent in ("exclude", "zero", "one"):
        sums = metrics.per_image_sums(APART, absent=absent)
        jax.tree.map(
            np.testing.assert_array_equal, sums, metrics.per_image_sums(np.concatenate([APART, void]), absent=absent)
        )
    for nothing in (void, void[:0]):
        scores = metrics.per_image_scores(metrics.per_image_sums(nothing))
        assert all(np.isnan(value).all() for value in scores.values())


@pytest.mark.parametrize(
    ("absent", "mean_iou", "images_of_class_1"), [("exclude", 0.25, 0), ("zero", 0.5 / 3, 1), ("one", 0.5, 1)]
)
def test_per_image_sums_absent_policy(absent, mean_iou, images_of_class_1):
    # IoU 1/2, 0 / 0 and 0.
    sums = metrics.per_image_sums(np.array([[[3, 0, 3], [0, 0, 0], [0, 0, 0]]]), absent=absent)
    assert sums["iou_per_class_per_image"][1].tolist() == [1, images_of_class_1, 1]
    assert metrics.per_image_scores(sums)["mean_iou_per_image"] == pytest.approx(mean_iou)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_per_image_sums_any_split_adds_up(seed, batches):
    rng = np.random.default_rng(seed)
    matrices = rng.integers(0, 50, size=(12, 3, 3)) * (rng.uniform(size=(12, 3, 3)) < 0.5)
    parts = rng.permutation(np.arange(12) % batches)
    sums = [metrics.per_image_sums(matrices[parts == b]) for b in range(batches)]
    added = jax.tree.map(lambda *x: np.sum(x, axis=0), *sums)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), added, metrics.per_image_sums(matrices))


def test_per_image_sums_single_matrix():
    jax.tree.map(np.testing.assert_array_equal, metrics.per_image_sums(APART[1]), metrics.per_image_sums(APART[1:2]))


def test_recipe_jaccard_mean_accuracy_with_void():
    # Void (class 3 here) is counted, as the recipe did.
    void = RNG.uniform(size=LABELS.shape) < 0.3
    labels, predictions = np.where(void, 3, LABELS % 3), np.where(void, 3, PREDICTIONS % 3)
    matrices = metrics.confusion_matrix_per_image(labels, predictions, 4)
    by_image = [sklearn_metrics.accuracy_score(y.ravel(), p.ravel()) for y, p in zip(labels, predictions, strict=True)]
    assert metrics.recipe_jaccard(matrices) == pytest.approx(np.mean(by_image), rel=1e-12)
    assert metrics.recipe_jaccard(matrices[0]) == pytest.approx(by_image[0], rel=1e-12)
    masked = metrics.confusion_matrix_per_image(labels, predictions, 4, where=~void)
    assert metrics.recipe_jaccard(masked) < metrics.recipe_jaccard(matrices)
    assert metrics.recipe_jaccard(matrices) > metrics.segmentation_scores(np.asarray(masked).sum(axis=0))["mean_iou"]


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
    "per image: scalar": (
        lambda f: f.confusion_matrix_per_image(np.int32(0), np.int32(0), 4),
        ValueError,
        r"labels must have an axis of images; got a scalar",
    ),
    "per image: mask": (
        lambda f: f.confusion_matrix_per_image(LABELS, PREDICTIONS, 4, where=np.ones(4, bool)),
        ValueError,
        r"where must have shape \(3, 6, 5\).* got \(4,\)",
    ),
    "per image: shape": (
        lambda f: f.confusion_matrix_per_image(LABELS, PREDICTIONS[:2], 4),
        ValueError,
        r"predictions must have the shape of labels, \(3, 6, 5\); got \(2, 6, 5\)",
    ),
    "per image: not square": (
        lambda f: f.per_image_sums(np.ones((4, 2, 3), int)),
        ValueError,
        r"confusions must be \[images, classes, classes\]; got shape \(4, 2, 3\)",
    ),
    "per image: a vector": (
        lambda f: f.per_image_sums(np.ones(3, int)),
        ValueError,
        r"confusions must be \[images, classes, classes\]; got shape \(3,\)",
    ),
    "per image: float counts": (
        lambda f: f.per_image_sums(APART * 1.0),
        TypeError,
        r"confusions must be integers .*got float64",
    ),
    "per image: absent": (
        lambda f: f.per_image_sums(APART, absent="skip"),
        ValueError,
        r"absent must be one of 'exclude', 'zero', 'one'; got 'skip'",
    ),
    "per image: traced": (
        lambda f: jax.jit(f.per_image_sums)(APART),
        TypeError,
        r"confusions must be known on the host; got a traced array of shape \(4, 2, 2\)",
    ),
    "per image: sums that are scores": (
        lambda f: f.per_image_scores({"mean_iou_per_image": np.float64(0.5)}),
        ValueError,
        r"sums\['mean_iou_per_image'\] must be \[2, ...\], sum and number; got shape \(\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_confusion_broken_input(case, raw):
    call, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        call(raw)
