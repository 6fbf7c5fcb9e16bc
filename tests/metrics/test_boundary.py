import math
import warnings

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import find_boundaries

from segjax import metrics

INVALID = -(2**31)


def _blobs(seed, classes, shape=(2, 24, 33)):
    """Returns labels of a few regions each, and predictions whose regions are slightly shifted."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, 0, 3, 3))
    noise[1] = 0.7 * noise[0] + 0.3 * noise[1]
    ranks = noise.reshape(2, -1).argsort(axis=1).argsort(axis=1).reshape(noise.shape)
    return ranks * classes // ranks[0].size


LABELS, PREDICTIONS = _blobs(0, 3)
WHERE = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=LABELS.shape), (0, 2, 2)) < 0.08


def _oracle(labels, predictions, num_classes, tolerance, where=None):
    """Counts class by class: boundaries by SciPy's dilation, matches by its exact distance transform."""
    where = np.ones(labels.shape, bool) if where is None else where
    counts = np.zeros((len(labels), num_classes, 4), int)
    for image, c in np.ndindex(len(labels), num_classes):
        kept = where[image]
        edges = []
        for classes in (predictions[image], labels[image]):
            mask = (classes == c) & kept
            edges.append(mask & ndimage.binary_dilation(kept & ~mask))
        for side, (edge, other) in enumerate((edges, edges[::-1])):
            near = ndimage.distance_transform_edt(~other) <= tolerance if other.any() else other
            counts[image, c, 2 * side : 2 * side + 2] = (edge & near).sum(), edge.sum()
    return counts


def _mask_to_boundary(mask, distance):
    """Returns the inner boundary region by the algorithm of Cheng et al.: pad, erode, subtract from the mask."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)
    return mask & (eroded[1:-1, 1:-1] == 0)


def _iou_oracle(labels, predictions, num_classes, distance):
    counts = np.zeros((num_classes, 2), int)
    for true, predicted in zip(labels, predictions, strict=True):
        for c in range(num_classes):
            g, p = (_mask_to_boundary(classes == c, distance) for classes in (true, predicted))
            counts[c] += (g & p).sum(), (g | p).sum()
    return counts


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 3.7, 11.3, math.inf])
def test_boundary_counts_exact_distances(tolerance):
    expected = _oracle(LABELS, PREDICTIONS, 3, tolerance, WHERE)
    counts = metrics.boundary_counts_per_image(LABELS, PREDICTIONS, 3, tolerance=tolerance, where=WHERE)
    np.testing.assert_array_equal(counts, expected)
    total = metrics.boundary_counts(LABELS, PREDICTIONS, 3, tolerance=tolerance, where=WHERE)
    assert counts.dtype == total.dtype == jnp.int32
    np.testing.assert_array_equal(total, expected.sum(axis=0))


@pytest.mark.parametrize("classes", [1, 8, 9, 128, 129])
def test_boundary_counts_any_number_of_classes(classes):
    labels, predictions = _blobs(2, classes)
    assert classes == 1 or labels.max() == classes - 1
    counts = metrics.boundary_counts_per_image(labels, predictions, classes, tolerance=2)
    np.testing.assert_array_equal(counts, _oracle(labels, predictions, classes, 2))


def test_boundary_counts_scikit_image_inner_boundaries():
    counts = metrics.boundary_counts_per_image(LABELS, PREDICTIONS, 3, tolerance=1)
    for column, classes in ((1, PREDICTIONS), (3, LABELS)):
        for image, c in np.ndindex(2, 3):
            edge = find_boundaries(classes[image] == c, mode="inner", connectivity=1)
            assert counts[image, c, column] == edge.sum()


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, math.sqrt(2), 2.5]))
def test_boundary_counts_tiny_maps(seed, tolerance):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, rng.integers(1, 4), size=(2, 2, 4, 5))
    where = rng.uniform(size=labels.shape) < rng.uniform()
    counts = metrics.boundary_counts_per_image(labels, predictions, 3, tolerance=tolerance, where=where)
    np.testing.assert_array_equal(counts, _oracle(labels, predictions, 3, tolerance, where))


@pytest.mark.parametrize(("down", "right"), [(2, 3), (0, 4), (5, 0)])
def test_boundary_counts_distance_equal_to_tolerance(down, right):
    labels, predictions = np.zeros((2, 7, 7), int)
    labels[0, 0] = predictions[down, right] = 1
    length = math.sqrt(down**2 + right**2)
    within = metrics.boundary_counts(labels, predictions, 2, tolerance=length)
    short = metrics.boundary_counts(labels, predictions, 2, tolerance=math.nextafter(length, 0))
    np.testing.assert_array_equal(within[1], [1, 1, 1, 1])
    np.testing.assert_array_equal(short[1], [0, 1, 0, 1])


@pytest.mark.parametrize("tolerance", [0, 2])
def test_boundary_scores_perfect_prediction(tolerance):
    scores = metrics.boundary_f1(metrics.boundary_counts(LABELS, LABELS, 3, tolerance=tolerance, where=WHERE))
    assert all(np.all(score == 1) for score in scores.values())
    per_image = metrics.boundary_counts_per_image(LABELS, LABELS, 3, tolerance=tolerance, where=WHERE)
    assert metrics.boundary_f1_per_image(per_image)["mean_boundary_f1_per_image"] == 1
    region = metrics.boundary_iou_counts(LABELS, LABELS, 3, distance=1 + tolerance, where=WHERE)
    assert metrics.boundary_iou(region)["mean_boundary_iou"] == 1


def test_boundary_f1_shift_by_one_pixel():
    labels = np.zeros((12, 12), int)
    labels[3:8, 3:8] = 1
    moved = np.roll(labels, 1, axis=1)
    assert metrics.boundary_f1(metrics.boundary_counts(labels, moved, 2, tolerance=1))["mean_boundary_f1"] == 1
    assert metrics.boundary_f1(metrics.boundary_counts(labels, moved, 2, tolerance=0))["mean_boundary_f1"] < 0.8


def test_boundary_counts_image_edge_and_void():
    labels = np.ones((5, 6), int)
    labels[2, 3] = 255
    counts = metrics.boundary_counts(labels, np.ones((5, 6), int), 2, tolerance=1, where=labels != 255)
    assert not counts.any()


@pytest.mark.parametrize(
    "counts",
    [
        lambda *arrays, **options: metrics.boundary_counts(*arrays, 3, tolerance=2.5, **options),
        lambda *arrays, **options: metrics.boundary_iou_counts(*arrays, 3, distance=2, **options),
    ],
    ids=["f1", "iou"],
)
def test_boundary_counts_void_is_the_end_of_the_image(counts):
    where = np.zeros(LABELS.shape, bool)
    where[:, 2:, :-4] = True
    expected = counts(LABELS[:, 2:, :-4], PREDICTIONS[:, 2:, :-4])
    for void in (255, -1, 2**31 - 1):
        masked = counts(np.where(where, LABELS, void), np.where(where, PREDICTIONS, -7), where=where)
        np.testing.assert_array_equal(masked, expected)


@pytest.mark.parametrize("distance", [1, 2, 12, 1000])
def test_boundary_iou_counts_authors_algorithm(distance):
    counts = metrics.boundary_iou_counts(LABELS, PREDICTIONS, 3, distance=distance)
    assert counts.dtype == jnp.int32
    np.testing.assert_array_equal(counts, _iou_oracle(LABELS, PREDICTIONS, 3, distance))


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]))
def test_boundary_iou_counts_tiny_maps(seed, distance):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, rng.integers(1, 4), size=(2, 2, 4, 9)).repeat(2, axis=2)
    counts = metrics.boundary_iou_counts(labels, predictions, 3, distance=distance)
    np.testing.assert_array_equal(counts, _iou_oracle(labels, predictions, 3, distance))


def test_boundary_iou_counts_large_distance():
    counts = metrics.boundary_iou_counts(LABELS, PREDICTIONS, 3, distance=24)
    true, predicted = (classes.reshape(-1, 1) == np.arange(3) for classes in (LABELS, PREDICTIONS))
    expected = np.stack([(true & predicted).sum(axis=0), (true | predicted).sum(axis=0)], axis=1)
    np.testing.assert_array_equal(counts, expected)


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(0, 2**31))
def test_boundary_counts_any_split_adds_up(batches, seed):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, 3, size=(2, 6, 5, 4))
    where = rng.uniform(size=labels.shape) < 0.8
    parts = rng.permutation(np.arange(6) % batches).reshape(6, 1, 1)
    # Same shapes for every split: the images of other batches are masked out.
    f1 = [metrics.boundary_counts(labels, predictions, 3, tolerance=1.5, where=where & (parts == b)) for b in range(4)]
    iou = [
        metrics.boundary_iou_counts(labels, predictions, 3, distance=1, where=where & (parts == b)) for b in range(4)
    ]
    images = metrics.boundary_counts_per_image(labels, predictions, 3, tolerance=1.5, where=where)
    np.testing.assert_array_equal(sum(f1), np.asarray(images).sum(axis=0))
    np.testing.assert_array_equal(
        sum(iou), metrics.boundary_iou_counts(labels, predictions, 3, distance=1, where=where)
    )


def test_boundary_counts_per_image_leading_axes():
    labels, predictions = LABELS.reshape(1, 2, 24, 33), PREDICTIONS.reshape(1, 2, 24, 33)
    counts = metrics.boundary_counts_per_image(labels, predictions, 3, tolerance=2, where=WHERE[0])
    expected = _oracle(LABELS, PREDICTIONS, 3, 2, np.stack([WHERE[0]] * 2))
    np.testing.assert_array_equal(counts, expected[None])
    one = metrics.boundary_counts_per_image(LABELS[1], PREDICTIONS[1], 3, tolerance=2, where=WHERE[0])
    np.testing.assert_array_equal(one, expected[1])


def test_boundary_counts_integer_dtypes():
    labels, predictions = _blobs(3, 120)
    expected = metrics.boundary_counts(labels, predictions, 120, tolerance=2)
    assert expected.any()
    for dtype in (np.uint8, np.int8, np.uint32, ">i2"):
        counts = metrics.boundary_counts(labels.astype(dtype), predictions.astype(dtype), 120, tolerance=2)
        np.testing.assert_array_equal(counts, expected)


def test_boundary_counts_booleans():
    labels, predictions = LABELS == 1, PREDICTIONS == 1
    counts = metrics.boundary_counts(labels, predictions, 2, tolerance=2)
    np.testing.assert_array_equal(counts, metrics.boundary_counts(labels * 1, predictions * 1, 2, tolerance=2))
    regions = metrics.boundary_iou_counts(labels, predictions, 2, distance=2)
    np.testing.assert_array_equal(regions, metrics.boundary_iou_counts(labels * 1, predictions * 1, 2, distance=2))


def test_boundary_counts_jit_vmap():
    def counts(labels, predictions, where):
        return (
            metrics.boundary_counts(labels, predictions, 3, tolerance=2, where=where),
            metrics.boundary_iou_counts(labels, predictions, 3, distance=2, where=where),
        )

    eager, mapped = counts(LABELS, PREDICTIONS, WHERE), jax.jit(jax.vmap(counts))(LABELS, PREDICTIONS, WHERE)
    for one, other in zip(eager, mapped, strict=True):
        np.testing.assert_array_equal(other.sum(axis=0), one)


@pytest.mark.parametrize("where", [np.zeros(LABELS.shape, bool), np.zeros((1, 1), bool)])
def test_boundary_scores_all_void(where):
    void = np.full_like(LABELS, 255)
    counts = metrics.boundary_counts(void, PREDICTIONS, 3, tolerance=2, where=where)
    images = metrics.boundary_counts_per_image(void, PREDICTIONS, 3, tolerance=2, where=where)
    regions = metrics.boundary_iou_counts(void, PREDICTIONS, 3, distance=2, where=where)
    assert [counts.sum(), images.sum(), regions.sum()] == [0, 0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = metrics.boundary_f1(counts) | metrics.boundary_f1_per_image(images) | metrics.boundary_iou(regions)
    assert all(np.isnan(score).all() for score in scores.values())


def test_boundary_counts_image_of_one_class():
    labels = np.ones((4, 6), int)
    assert not metrics.boundary_counts(labels, labels, 3, tolerance=2).any()
    counts = metrics.boundary_iou_counts(labels, labels, 3, distance=1)
    np.testing.assert_array_equal(counts, [[0, 0], [16, 16], [0, 0]])


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0)])
def test_boundary_counts_no_pixels(shape):
    empty = np.zeros(shape, int)
    assert not metrics.boundary_counts(empty, empty, 2, tolerance=2).any()
    assert not metrics.boundary_iou_counts(empty, empty, 2, distance=2).any()


@pytest.mark.parametrize("where_wrong", ["labels", "predictions"])
@pytest.mark.parametrize("wrong", [-1, 3, 255])
def test_boundary_counts_class_out_of_range(where_wrong, wrong):
    arrays = {"labels": LABELS.copy(), "predictions": PREDICTIONS.copy()}
    arrays[where_wrong][1, 0, 0] = wrong
    counts = metrics.boundary_counts(**arrays, num_classes=3, tolerance=2)
    regions = metrics.boundary_iou_counts(**arrays, num_classes=3, distance=2)
    np.testing.assert_array_equal(counts, np.full((3, 4), INVALID))
    np.testing.assert_array_equal(regions, np.full((3, 2), INVALID))
    # The sum still shows it after a whole run of good batches.
    for score, sums in ((metrics.boundary_f1, counts), (metrics.boundary_iou, regions)):
        with pytest.raises(ValueError, match=r"counts has a negative count, -\d+: a label or prediction outside"):
            score(np.asarray(sums, np.int64) + 10**9)


def test_boundary_counts_per_image_class_out_of_range():
    labels = LABELS.copy()
    labels[1, 0, 0] = 9
    counts = metrics.boundary_counts_per_image(labels, PREDICTIONS, 3, tolerance=2)
    np.testing.assert_array_equal(counts[0], _oracle(LABELS, PREDICTIONS, 3, 2)[0])
    np.testing.assert_array_equal(counts[1], np.full((3, 4), INVALID))
    with pytest.raises(ValueError, match=r"counts has a negative count, -\d+: a label or prediction outside"):
        metrics.boundary_f1_per_image(counts)


# Class 1 is predicted only, class 2 is absent, class 3 is labelled only, class 4 has no match.
HOLES = np.array([[6, 8, 5, 10], [0, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 7], [0, 2, 0, 2]])


@pytest.mark.parametrize(
    ("absent", "fill", "mean"), [("exclude", np.nan, 0.6 / 4), ("zero", 0.0, 0.6 / 5), ("one", 1.0, 1.6 / 5)]
)
def test_boundary_f1_absent_policy(absent, fill, mean):
    scores = metrics.boundary_f1(HOLES, absent=absent)
    np.testing.assert_allclose(scores["boundary_precision_per_class"], [0.75, 0, fill, fill, 0])
    np.testing.assert_allclose(scores["boundary_recall_per_class"], [0.5, fill, fill, 0, 0])
    np.testing.assert_allclose(scores["boundary_f1_per_class"], [0.6, 0, fill, 0, 0])
    assert scores["mean_boundary_f1"] == pytest.approx(mean)
    assert isinstance(scores["mean_boundary_f1"], float)
    iou = metrics.boundary_iou(np.array([[3, 4], [0, 0]]), absent=absent)
    np.testing.assert_allclose(iou["boundary_iou_per_class"], [0.75, fill])
    assert iou["mean_boundary_iou"] == pytest.approx(np.nanmean([0.75, fill]))


def test_boundary_f1_counts_beyond_int32():
    huge = np.array([[6, 8, 5, 10]]) * 10**12
    assert metrics.boundary_f1(huge)["mean_boundary_f1"] == pytest.approx(0.6, rel=1e-15)


def test_boundary_f1_per_image_segnet_definition():
    counts = metrics.boundary_counts_per_image(LABELS, PREDICTIONS, 3, tolerance=1.5)
    images = []
    for classes in np.asarray(counts):
        scores = []
        for matched_predicted, predicted, matched_true, true in classes:
            precision, recall = matched_predicted / predicted, matched_true / true
            scores.append(2 * precision * recall / (precision + recall))
        images.append(np.mean(scores))
    scores = metrics.boundary_f1_per_image(counts)
    np.testing.assert_allclose(scores["boundary_f1_per_image"], images)
    assert scores["mean_boundary_f1_per_image"] == pytest.approx(np.mean(images))
    pooled = metrics.boundary_f1(counts.sum(axis=0))["mean_boundary_f1"]
    assert pooled != pytest.approx(np.mean(images), rel=1e-6)


def test_boundary_f1_per_image_without_true_boundary():
    scores = metrics.boundary_f1_per_image(np.stack([HOLES, np.zeros_like(HOLES)]))
    np.testing.assert_allclose(scores["boundary_f1_per_image"], [0.6 / 3, np.nan])
    assert scores["mean_boundary_f1_per_image"] == pytest.approx(0.6 / 3)


def test_boundary_tolerance_share_of_diagonal():
    assert metrics.boundary_tolerance(3, 4, 0.2) == pytest.approx(1)
    assert metrics.boundary_tolerance(1024, 2048) == pytest.approx(17.17, abs=0.01)
    assert isinstance(metrics.boundary_tolerance(1024, 2048), float)


@pytest.mark.parametrize("radius", [0, 1, 1.5, 5, 40])
def test_dilate_equals_distances(radius):
    masks = np.random.default_rng(0).random((3, 17, 23)) < 0.02
    masks[2] = False
    expected = [ndimage.distance_transform_edt(~mask) <= radius if mask.any() else mask for mask in masks]
    np.testing.assert_array_equal(jax.jit(lambda mask: metrics.dilate(mask, radius))(masks), expected)


BROKEN = {
    "float labels": (
        lambda f: f.boundary_counts(LABELS * 1.0, PREDICTIONS, 3, tolerance=1),
        TypeError,
        r"labels must be integers; got float32 of shape \(2, 24, 33\)",
    ),
    "logits": (
        lambda f: f.boundary_iou_counts(LABELS, np.zeros((2, 24, 33, 3), np.float32), 3, distance=1),
        TypeError,
        r"predictions must be integers; got float32 of shape \(2, 24, 33, 3\)",
    ),
    "shape": (
        lambda f: f.boundary_counts_per_image(LABELS, PREDICTIONS[:1], 3, tolerance=1),
        ValueError,
        r"predictions must have the shape of labels, \(2, 24, 33\); got \(1, 24, 33\)",
    ),
    "flat": (
        lambda f: f.boundary_counts(LABELS.ravel(), LABELS.ravel(), 3, tolerance=1),
        ValueError,
        r"labels must be \[\.\.\., height, width\]; got shape \(1584,\)",
    ),
    "mask": (
        lambda f: f.boundary_iou_counts(LABELS, PREDICTIONS, 3, distance=1, where=np.ones(4, bool)),
        ValueError,
        r"where must have shape \(2, 24, 33\).* got \(4,\)",
    ),
    "float mask": (
        lambda f: f.boundary_counts(LABELS, PREDICTIONS, 3, tolerance=1, where=WHERE * 1.0),
        TypeError,
        r"where must be boolean; got float32",
    ),
    "no classes": (
        lambda f: f.boundary_counts(LABELS, PREDICTIONS, 0, tolerance=1),
        ValueError,
        r"num_classes must be at least 1; got 0",
    ),
    "negative tolerance": (
        lambda f: f.boundary_counts(LABELS, PREDICTIONS, 3, tolerance=-0.5),
        ValueError,
        r"tolerance must be a number of at least 0; got -0\.5",
    ),
    "NaN tolerance": (
        lambda f: f.boundary_counts_per_image(LABELS, PREDICTIONS, 3, tolerance=math.nan),
        ValueError,
        r"tolerance must be a number of at least 0; got nan",
    ),
    "two tolerances": (
        lambda f: f.boundary_counts(LABELS, PREDICTIONS, 3, tolerance=np.ones(2)),
        ValueError,
        r"tolerance must be a number of at least 0; got array\(\[1\., 1\.\]\)",
    ),
    "traced tolerance": (
        lambda f: jax.jit(lambda t: f.boundary_counts(LABELS, PREDICTIONS, 3, tolerance=t))(1.0),
        TypeError,
        r"tolerance must be known on the host; got a traced array",
    ),
    "no distance": (
        lambda f: f.boundary_iou_counts(LABELS, PREDICTIONS, 3, distance=0),
        ValueError,
        r"distance must be at least 1; got 0",
    ),
    "fractional distance": (
        lambda f: f.boundary_iou_counts(LABELS, PREDICTIONS, 3, distance=1.5),
        TypeError,
        r"distance must be integers; got float32",
    ),
    "share": (
        lambda f: f.boundary_tolerance(3, 4, -1),
        ValueError,
        r"share must be a number of at least 0; got -1",
    ),
    "no image": (
        lambda f: f.boundary_tolerance(0, 4),
        ValueError,
        r"height and width must be at least 1; got 0 and 4",
    ),
    "float counts": (
        lambda f: f.boundary_f1(np.ones((3, 4))),
        TypeError,
        r"counts must be integers .*got float64",
    ),
    "counts of boundary_iou": (
        lambda f: f.boundary_f1(np.ones((3, 2), int)),
        ValueError,
        r"counts must be \[classes, 4\]; got shape \(3, 2\)",
    ),
    "counts per image": (
        lambda f: f.boundary_iou(np.ones((5, 3, 2), int)),
        ValueError,
        r"counts must be \[classes, 2\]; got shape \(5, 3, 2\)",
    ),
    "counts of all images": (
        lambda f: f.boundary_f1_per_image(np.ones((3, 4), int)),
        ValueError,
        r"counts must be \[images, classes, 4\]; got shape \(3, 4\)",
    ),
    "absent": (
        lambda f: f.boundary_f1(HOLES, absent="skip"),
        ValueError,
        r"absent must be one of 'exclude', 'zero', 'one'; got 'skip'",
    ),
    "dilate a class": (
        lambda f: f.dilate(np.zeros((4, 4), int), 1),
        TypeError,
        r"mask must be boolean; got int",
    ),
    "dilate a row": (lambda f: f.dilate(np.zeros(4, bool), 1), ValueError, r"mask must be .*got shape \(4,\)"),
    "dilate without end": (
        lambda f: f.dilate(np.zeros((4, 4), bool), np.inf),
        ValueError,
        r"radius must be at least 0 and finite; got inf",
    ),
    "traced counts": (
        lambda f: jax.jit(f.boundary_iou)(np.ones((3, 2), int)),
        TypeError,
        r"counts must be known on the host; got a traced array of shape \(3, 2\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_boundary_broken_input(case, raw):
    call, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        call(raw)
