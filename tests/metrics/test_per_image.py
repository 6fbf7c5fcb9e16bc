import inspect

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


def test_each_matrix_is_that_images_and_their_sum_the_batchs():
    where = RNG.uniform(size=LABELS.shape) < 0.7
    matrices = metrics.confusion_matrix_per_image(LABELS, PREDICTIONS, 4, where=where)
    assert matrices.dtype == jnp.int32
    for n in range(3):
        alone = metrics.confusion_matrix(LABELS[n], PREDICTIONS[n], 4, where=where[n])
        np.testing.assert_array_equal(matrices[n], alone)
    np.testing.assert_array_equal(matrices.sum(axis=0), metrics.confusion_matrix(LABELS, PREDICTIONS, 4, where=where))


def test_logits_count_as_their_largest_class():
    logits = jnp.asarray(RNG.normal(size=(*LABELS.shape, 4)), jnp.bfloat16)
    np.testing.assert_array_equal(
        metrics.confusion_matrix_per_image(LABELS, logits, 4),
        metrics.confusion_matrix_per_image(LABELS, jnp.argmax(logits, axis=-1), 4),
    )


@pytest.mark.parametrize("wrong", ["label", "prediction", "logit"])
def test_an_image_with_an_invalid_pixel_is_invalid_and_the_others_are_not(wrong):
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


def test_images_on_four_devices_give_matrices_on_four_devices():
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    labels, predictions = np.tile(LABELS, (4, 1, 1))[:8], np.tile(PREDICTIONS, (4, 1, 1))[:8]
    where = RNG.uniform(size=labels.shape) < 0.5
    where[6:] = False
    batch = jax.device_put((labels, predictions, where), NamedSharding(mesh, PartitionSpec("devices")))
    matrices = jax.jit(lambda y, p, k: metrics.confusion_matrix_per_image(y, p, 4, where=k))(*batch)
    np.testing.assert_array_equal(matrices, metrics.confusion_matrix_per_image(labels, predictions, 4, where=where))
    assert not matrices[6:].any()


def test_means_over_images_equal_scikit_learns_image_by_image():
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


# One image of 1,000 pixels without a fault, three of 10 in which the rare class is missed or seen where it is not.
APART = np.array([[[950, 0], [0, 50]], [[9, 0], [1, 0]], [[9, 1], [0, 0]], [[9, 0], [1, 0]]])


def test_the_mean_over_images_is_far_from_the_score_of_the_data_set():
    of_set = metrics.segmentation_scores(APART.sum(axis=0))
    of_images = metrics.per_image_scores(metrics.per_image_sums(APART))
    assert of_set["mean_iou"] == pytest.approx((977 / 980 + 50 / 53) / 2)  # 0.970
    assert of_images["mean_iou_per_image"] == pytest.approx((1 + 3 * 0.45) / 4)  # 0.588
    assert of_images["iou_per_class_per_image"][1] == pytest.approx(1 / 4)


def test_three_means_that_are_called_mean_iou():
    # Class 2 is in one image only: (0.5 + 1 + 1) / 3 there, (0.25 + 1) / 2 in the other.
    matrices = np.array([[[1, 1, 0], [0, 0, 0], [0, 0, 1]], [[1, 0, 0], [0, 2, 0], [0, 0, 0]]])
    scores = metrics.per_image_scores(metrics.per_image_sums(matrices))
    np.testing.assert_allclose(scores["iou_per_class_per_image"], [0.75, 0.5, 1.0])
    assert scores["mean_iou_per_image"] == pytest.approx(((0.5 + 0 + 1) / 3 + (1 + 1) / 2) / 2)
    assert scores["iou_per_class_per_image"].mean() == pytest.approx(0.75)
    assert metrics.segmentation_scores(matrices.sum(axis=0))["mean_iou"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_an_image_without_a_kept_pixel_does_not_exist_under_any_policy():
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
def test_a_class_absent_from_an_image_follows_the_policy(absent, mean_iou, images_of_class_1):
    # IoU 1/2, none and 0.
    sums = metrics.per_image_sums(np.array([[[3, 0, 3], [0, 0, 0], [0, 0, 0]]]), absent=absent)
    assert sums["iou_per_class_per_image"][1].tolist() == [1, images_of_class_1, 1]
    assert metrics.per_image_scores(sums)["mean_iou_per_image"] == pytest.approx(mean_iou)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_any_split_of_the_images_adds_up(seed, batches):
    rng = np.random.default_rng(seed)
    matrices = rng.integers(0, 50, size=(12, 3, 3)) * (rng.uniform(size=(12, 3, 3)) < 0.5)
    parts = rng.permutation(np.arange(12) % batches)
    sums = [metrics.per_image_sums(matrices[parts == b]) for b in range(batches)]
    added = jax.tree.map(lambda *x: np.sum(x, axis=0), *sums)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), added, metrics.per_image_sums(matrices))


def test_a_single_matrix_is_one_image():
    jax.tree.map(np.testing.assert_array_equal, metrics.per_image_sums(APART[1]), metrics.per_image_sums(APART[1:2]))


def test_recipe_jaccard_is_the_images_mean_accuracy_with_void_as_a_class():
    # Void (class 3 here) is counted: 20 labels that the recipe trained on and scored.
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
    "scalar": (
        lambda f: f.confusion_matrix_per_image(np.int32(0), np.int32(0), 4),
        ValueError,
        r"labels must have an axis of images; got a scalar",
    ),
    "mask": (
        lambda f: f.confusion_matrix_per_image(LABELS, PREDICTIONS, 4, where=np.ones(4, bool)),
        ValueError,
        r"where must have shape \(3, 6, 5\).* got \(4,\)",
    ),
    "shape": (
        lambda f: f.confusion_matrix_per_image(LABELS, PREDICTIONS[:2], 4),
        ValueError,
        r"predictions must have the shape of labels, \(3, 6, 5\); got \(2, 6, 5\)",
    ),
    "not square": (
        lambda f: f.per_image_sums(np.ones((4, 2, 3), int)),
        ValueError,
        r"confusions must be \[images, classes, classes\]; got shape \(4, 2, 3\)",
    ),
    "a vector": (
        lambda f: f.per_image_sums(np.ones(3, int)),
        ValueError,
        r"confusions must be \[images, classes, classes\]; got shape \(3,\)",
    ),
    "float counts": (
        lambda f: f.per_image_sums(APART * 1.0),
        TypeError,
        r"confusions must be integers .*got float64",
    ),
    "absent": (
        lambda f: f.per_image_sums(APART, absent="skip"),
        ValueError,
        r"absent must be one of 'exclude', 'zero', 'one'; got 'skip'",
    ),
    "traced": (
        lambda f: jax.jit(f.per_image_sums)(APART),
        TypeError,
        r"confusions must be known on the host; got a traced array of shape \(4, 2, 2\)",
    ),
    "sums that are scores": (
        lambda f: f.per_image_scores({"mean_iou_per_image": np.float64(0.5)}),
        ValueError,
        r"sums\['mean_iou_per_image'\] must be \[2, ...\], sum and number; got shape \(\)",
    ),
}


class Raw:
    """The functions without the tests' import hook, as a user has them."""

    confusion_matrix_per_image = staticmethod(inspect.unwrap(metrics.confusion_matrix_per_image))
    per_image_sums = staticmethod(inspect.unwrap(metrics.per_image_sums))
    per_image_scores = staticmethod(inspect.unwrap(metrics.per_image_scores))


@pytest.mark.parametrize("case", BROKEN)
def test_broken_input_is_named(case):
    call, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        call(Raw)
