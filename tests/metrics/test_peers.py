"""Metrics of other libraries against ours: equal, or different by their conventions.

The results of torchmetrics, segmentation-models-pytorch (smp), MONAI and mmsegmentation are stored. `golden/make.py`
makes them, and `golden/versions.json` lists the versions. These libraries divide in float32, so scores are compared to
six digits, and counts exactly. The tests of the single metrics compare them with scikit-learn.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import metrics

with np.load(Path(__file__).parent / "golden" / "peers.npz") as _stored:
    GOLDEN = dict(_stored)

LABELS, PREDICTIONS, UNSEEN, KEEP = GOLDEN["labels"], GOLDEN["predictions"], GOLDEN["unseen"], ~GOLDEN["void"]
CLASSES = 5


def per_image(labels, predictions, where=None, num_classes=CLASSES):
    matrices = metrics.confusion_matrix_per_image(
        jnp.asarray(labels, jnp.int32), jnp.asarray(predictions, jnp.int32), num_classes, where=where
    )
    return np.asarray(matrices, np.int64)


VOIDED = per_image(LABELS, PREDICTIONS, KEEP)
WHOLE = per_image(LABELS, PREDICTIONS)


def of_set(confusions=VOIDED, absent="exclude"):
    """Returns the scores of the whole set."""
    return metrics.segmentation_scores(confusions.sum(axis=0), absent=absent)


def of_images(confusions=WHOLE, absent="exclude"):
    """Returns the means over the images."""
    return metrics.per_image_scores(metrics.per_image_sums(confusions, absent=absent))


def iou_of_each(confusions, name="iou_per_class"):
    """Returns `[images, classes]`, NaN where a class is neither labelled nor predicted."""
    return np.stack([metrics.segmentation_scores(matrix)[name] for matrix in confusions])


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


# Result of another library -> the same number of ours.

EQUAL = {
    "torchmetrics/jaccard, macro": lambda: of_set()["mean_iou"],
    "torchmetrics/jaccard, macro, no void": lambda: of_set(WHOLE)["mean_iou"],
    "torchmetrics/jaccard, none": lambda: of_set(absent="zero")["iou_per_class"],
    "torchmetrics/matthews": lambda: of_set()["matthews_correlation"],
    "torchmetrics/precision, none": lambda: of_set(absent="zero")["precision_per_class"],
    "torchmetrics/recall, none": lambda: of_set(absent="zero")["recall_per_class"],
    "torchmetrics/f1, none": lambda: of_set(absent="zero")["dice_per_class"],
    "torchmetrics/f1, macro": lambda: of_set()["mean_dice"],
    "torchmetrics/accuracy, none": lambda: of_set(absent="zero")["accuracy_per_class"],
    "torchmetrics/accuracy, macro": lambda: of_set()["mean_accuracy"],
    "torchmetrics/accuracy, micro": lambda: of_set()["pixel_accuracy"],
    "torchmetrics/dice, macro, samplewise": lambda: of_images()["mean_dice_per_image"],
    "torchmetrics/dice, default": lambda: of_images()["mean_dice_per_image"],
    "torchmetrics/dice, none, samplewise": lambda: of_images()["dice_per_class_per_image"],
    "torchmetrics/dice, macro, global": lambda: of_set(WHOLE)["mean_dice"],
    "torchmetrics/dice, none, global": lambda: of_set(WHOLE)["dice_per_class"],
    "smp/iou_score, macro": lambda: of_set(absent="one")["mean_iou"],
    "smp/iou_score, macro-imagewise": lambda: of_images(VOIDED, absent="one")["mean_iou_per_image"],
    "smp/f1_score, macro": lambda: of_set(absent="one")["mean_dice"],
    "smp/f1_score, macro-imagewise": lambda: of_images(VOIDED, absent="one")["mean_dice_per_image"],
    "smp/precision, macro": lambda: of_set(absent="one")["precision_per_class"].mean(),
    "smp/recall, macro": lambda: of_set(absent="one")["mean_accuracy"],
    "smp/accuracy, per class": lambda: of_set()["one_vs_rest_accuracy_per_class"],
    "monai/accuracy": lambda: [metrics.segmentation_scores(WHOLE[0])["one_vs_rest_accuracy_per_class"]],
    "monai/iou, mean, empty kept": lambda: [of_images(absent="one")["mean_iou_per_image"]],
    "monai/iou, mean_batch, empty kept": lambda: of_images(absent="one")["iou_per_class_per_image"],
    "monai/dice, mean, empty kept": lambda: [of_images(absent="one")["mean_dice_per_image"]],
    "monai/dice, mean_batch, empty kept": lambda: of_images(absent="one")["dice_per_class_per_image"],
    "mmseg/aAcc, predictions": lambda: of_set()["pixel_accuracy"],
    "mmseg/IoU, predictions": lambda: of_set()["iou_per_class"],
    "mmseg/Acc, predictions": lambda: of_set()["accuracy_per_class"],
    "mmseg/Dice, predictions": lambda: of_set()["dice_per_class"],
    "mmseg/Fscore, predictions": lambda: of_set()["dice_per_class"],
    "mmseg/Precision, predictions": lambda: of_set()["precision_per_class"],
    "mmseg/Recall, predictions": lambda: of_set()["recall_per_class"],
}


@pytest.mark.parametrize("name", EQUAL)
def test_peers_equal(name):
    assert_close(EQUAL[name](), GOLDEN[name])


def test_confusion_matrix_torchmetrics():
    ours = metrics.confusion_matrix(LABELS, PREDICTIONS, CLASSES, where=KEEP)
    np.testing.assert_array_equal(ours, GOLDEN["torchmetrics/confusion"])


def test_confusion_matrix_smp():
    hits = VOIDED.diagonal(axis1=1, axis2=2)
    misses, alarms = VOIDED.sum(axis=2) - hits, VOIDED.sum(axis=1) - hits
    rest = VOIDED.sum(axis=(1, 2))[:, None] - hits - misses - alarms
    np.testing.assert_array_equal(np.stack([hits, alarms, misses, rest]), GOLDEN["smp/stats"])


# Mean IoU: one name, many numbers.


def test_mean_iou_torchmetrics_toy():
    toy = per_image(GOLDEN["toy"], GOLDEN["toy predictions"], num_classes=2)
    assert (
        round(of_set(toy)["mean_iou"], 3)
        == round(float(GOLDEN["torchmetrics/jaccard, macro, toy, no void"]), 3)
        == 0.974
    )
    assert (
        round(of_images(toy)["mean_iou_per_image"], 3) == round(float(GOLDEN["torchmetrics/mean_iou, toy"]), 3) == 0.745
    )


def test_mean_iou_per_image_torchmetrics_pools_pairs():
    """Ours is a mean of the images' means. They differ where images have different numbers of classes."""
    assert_close(np.nanmean(iou_of_each(WHOLE)), GOLDEN["torchmetrics/mean_iou"])
    assert abs(of_images()["mean_iou_per_image"] - GOLDEN["torchmetrics/mean_iou"]) > 1e-3


def test_iou_per_class_per_image_torchmetrics_absent_class():
    ours = of_images()["iou_per_class_per_image"]
    np.testing.assert_array_equal(np.isnan(ours), [False, False, False, False, True])
    assert_close(np.where(np.isnan(ours), -1, ours), GOLDEN["torchmetrics/mean_iou, per class"])


def test_mean_iou_per_image_torchmetrics_functional():
    assert_close(of_images()["mean_iou_per_image"], GOLDEN["torchmetrics/mean_iou, functional"].mean())
    assert_close(np.nanmean(iou_of_each(WHOLE), axis=1), GOLDEN["torchmetrics/mean_iou, functional"])


@pytest.mark.parametrize("name", ["torchmetrics/jaccard, micro", "smp/iou_score, micro"])
def test_pixel_accuracy_micro_iou(name):
    """Micro IoU is Σ TP / Σ union. Every error is in two unions, so it is a / (2 - a) for the pixel accuracy a."""
    accuracy = of_set()["pixel_accuracy"]
    assert_close(accuracy / (2 - accuracy), GOLDEN[name])


def test_pixel_accuracy_smp_micro():
    assert_close(of_set()["pixel_accuracy"], GOLDEN["smp/f1_score, micro"])
    accuracy = of_set()["pixel_accuracy"]
    assert_close(1 - 2 * (1 - accuracy) / CLASSES, GOLDEN["smp/accuracy, micro"])


# Absent classes.


def test_per_image_scores_monai_unlabelled_class():
    """Class 3 is predicted but not labelled in the second image: 0 here, NaN in MONAI."""
    for name in ("iou", "dice"):
        ours, theirs = iou_of_each(WHOLE, f"{name}_per_class"), GOLDEN[f"monai/{name}, none"]
        unlabelled = WHOLE.sum(axis=2) == 0
        assert unlabelled[1, 3]
        assert ours[1, 3] == 0
        assert_close(np.where(unlabelled, np.nan, ours), theirs)
        assert_close(np.nanmean(np.nanmean(theirs, axis=1)), GOLDEN[f"monai/{name}, mean"][0])
        assert GOLDEN[f"monai/{name}, mean"][0] > of_images()[f"mean_{name}_per_image"] + 0.04


def test_per_image_scores_monai_absent_class():
    theirs = np.nanmean(GOLDEN["monai/iou, none"][:, :4], axis=0)
    assert_close([*theirs, 0], GOLDEN["monai/iou, mean_batch"])
    assert np.isnan(of_images()["iou_per_class_per_image"][4])


def test_iou_per_class_smp_absent_class():
    ours = of_set()["iou_per_class"]
    assert np.isnan(ours[4])
    assert_close((np.nansum(ours) + 1) / CLASSES, GOLDEN["smp/iou_score, macro"])
    assert GOLDEN["smp/iou_score, macro"] > of_set()["mean_iou"] + 0.08


def test_mean_accuracy_torchmetrics_only_predicted_class():
    """Class 4 has no label, so our mean leaves it out. torchmetrics counts 0, because it is predicted."""
    scores = of_set(per_image(LABELS, UNSEEN, KEEP))
    assert np.isnan(scores["accuracy_per_class"][4])
    for name in ("accuracy", "recall"):
        assert_close(scores["mean_accuracy"] * 4 / 5, GOLDEN[f"torchmetrics/{name}, macro, unseen"])


def test_precision_per_class_torchmetrics_never_predicted_class():
    scores = of_set(per_image(LABELS, UNSEEN, KEEP))
    assert np.isnan(scores["precision_per_class"][2])
    assert_close(np.nansum(scores["precision_per_class"]) / 5, GOLDEN["torchmetrics/precision, macro, unseen"])


def test_mean_dice_mmseg_never_found_class():
    """Without predictions, precision and so mmseg's F are NaN, which mFscore leaves out; Dice is 0 and counts."""
    scores = of_set(per_image(LABELS, UNSEEN, KEEP))
    missed = [2, 4]
    assert_close(scores["dice_per_class"], GOLDEN["mmseg/Dice, unseen"])
    assert_close(scores["mean_dice"], np.nanmean(GOLDEN["mmseg/Dice, unseen"]))
    assert (scores["dice_per_class"][missed] == 0).all()
    assert np.isnan(GOLDEN["mmseg/Fscore, unseen"][missed]).all()
    assert_close(scores["mean_dice"] * 5 / 3, np.nanmean(GOLDEN["mmseg/Fscore, unseen"]))


@pytest.mark.parametrize("ours", ["iou", "accuracy", "precision", "recall"])
def test_scores_per_class_mmseg_unseen(ours):
    theirs = {"iou": "IoU", "accuracy": "Acc", "precision": "Precision", "recall": "Recall"}[ours]
    scores = of_set(per_image(LABELS, UNSEEN, KEEP))
    assert_close(scores[f"{ours}_per_class"], GOLDEN[f"mmseg/{theirs}, unseen"])


def test_counts_mmseg_float32():
    one, many = np.array([[1, 0], [0, 0]], np.int32), np.array([[2**24, 0], [0, 0]], np.int32)
    assert GOLDEN["mmseg/area, 2^24 and one pixels"][0] == 2**24
    assert (many.astype(np.int64) + one)[0, 0] == 2**24 + 1


@pytest.mark.parametrize(
    ("confusion", "name", "of_two", "of_several"),
    [
        ([[0, 0], [0, 4]], "all of one class and right", 1, 0),
        ([[0, 1], [0, 3]], "always the same, three of four right", 1 / np.sqrt(3), 0),
    ],
)
def test_matthews_correlation_torchmetrics_constant(confusion, name, of_two, of_several):
    assert np.isnan(metrics.segmentation_scores(np.array(confusion))["matthews_correlation"])
    assert_close(GOLDEN[f"torchmetrics/matthews, two classes, {name}"], of_two)
    assert GOLDEN[f"torchmetrics/matthews, {name}"] == of_several


# Ranking.


@pytest.fixture(scope="module")
def histogram():
    return metrics.score_histogram(GOLDEN["scores"], GOLDEN["targets"].astype(np.int32))


def test_average_precision_torchmetrics(histogram):
    theirs = float(GOLDEN["torchmetrics/average_precision"])
    low, high = metrics.average_precision_bounds(histogram)
    assert low - 1e-6 <= theirs <= high + 1e-6
    assert abs(metrics.average_precision(histogram) - theirs) < 1e-3


def test_average_precision_torchmetrics_thresholds(histogram):
    exact = GOLDEN["torchmetrics/average_precision"]
    lost = abs(GOLDEN["torchmetrics/average_precision, 200 thresholds"] - exact)
    assert lost > 0.01
    assert abs(metrics.average_precision(histogram) - exact) < lost / 10


def test_auroc_torchmetrics(histogram):
    theirs = float(GOLDEN["torchmetrics/auroc"])
    low, high = metrics.auroc_bounds(histogram)
    assert low - 1e-6 <= theirs <= high + 1e-6
    assert abs(metrics.auroc(histogram) - theirs) < 1e-4


def test_fpr_at_tpr_torchmetrics(histogram):
    theirs = 1 - float(GOLDEN["torchmetrics/specificity_at_sensitivity"])
    low, high = metrics.fpr_at_tpr_bounds(histogram, 0.95)
    assert low - 1e-6 <= theirs <= high + 1e-6
    assert abs(metrics.fpr_at_tpr(histogram, 0.95) - theirs) < 1e-3


# Calibration.

calibration_bins = jax.jit(metrics.calibration_bins, static_argnames="num_bins")


@pytest.mark.parametrize(
    ("norm", "score"),
    [("l1", metrics.expected_calibration_error), ("max", metrics.maximum_calibration_error)],
)
def test_calibration_errors_torchmetrics(norm, score):
    bins = calibration_bins(GOLDEN["logits"], GOLDEN["classes"].astype(np.int32), num_bins=15)
    assert_close(score(bins), GOLDEN[f"torchmetrics/calibration_error, {norm}"])


def ours_and_theirs(name, labels, num_bins):
    # The logit of a probability of 0 is -inf, which rules the class out.
    with np.errstate(divide="ignore"):
        logits = np.log(GOLDEN[name])
    bins = calibration_bins(logits, np.array(labels, np.int32), num_bins=num_bins)
    return metrics.expected_calibration_error(bins), float(GOLDEN[f"torchmetrics/calibration_error, {name}"])


def test_calibration_bins_torchmetrics_confidence_on_an_edge():
    """Confidence 1/2 (right) is in the first of two bins here, but in torchmetrics in the second, with 3/4 (wrong)."""
    ours, theirs = ours_and_theirs("halves", [0, 1], 2)
    assert ours == pytest.approx((0.5 + 0.75) / 2)
    assert theirs == pytest.approx((0.75 - 0.5) / 2)


def test_calibration_bins_torchmetrics_confidence_of_one():
    """Confidence 1 (wrong) and 0.6 (right) share the only bin here; torchmetrics separates them."""
    ours, theirs = ours_and_theirs("certain", [1, 0], 1)
    assert ours == pytest.approx((1 - 0.4) / 2)
    assert theirs == pytest.approx((1 + 0.4) / 2)


# Boundaries.


def surface_dice(counts):
    matched_predicted, predicted, matched_true, true = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    return (matched_predicted + matched_true) / (predicted + true)


def boundary(image):
    return metrics.boundary_counts_per_image(
        jnp.asarray(GOLDEN["blob"][image], jnp.int32)[None],
        jnp.asarray(GOLDEN["found"][image], jnp.int32)[None],
        2,
        tolerance=1.5,
    )[0, 1]


def test_boundary_counts_monai_surface_dice():
    """Surface Dice pools the matched pixels of both boundaries; F1 is the harmonic mean of the two shares."""
    assert_close(surface_dice(boundary(0)), GOLDEN["monai/surface_dice"][0, 0])


def test_boundary_counts_monai_image_edge():
    assert abs(surface_dice(boundary(1)) - GOLDEN["monai/surface_dice"][1, 0]) > 0.05


# The table of the docs.

DOCS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_docs_metrics_example(capsys):
    exec(re.search(r"```python\n(.*?)```", DOCS, re.DOTALL)[1], {})
    assert float(capsys.readouterr().out) == pytest.approx((1 + 0.5 + 0) / 3)


def test_docs_metrics_names_exist():
    of_components = metrics.component_scores(np.array([[1, 0, 0]]))
    no_box = np.zeros((1, 0, 4)), np.zeros((1, 0)), np.zeros((1, 0), int), np.zeros((1, 0), bool)
    of_boxes = metrics.detection_scores(metrics.detection_records(no_box, no_box[0], no_box[2], 1))
    known = {
        *metrics.__all__,
        *of_set(),
        *of_images(),
        *of_components,
        *of_boxes,
        "where",
        "jit",
        "pmap",
        "shard_map",
        "axis_name",
    }
    named = set(re.findall(r"`([a-z][a-z0-9_]+)`", DOCS))
    assert named - known == set()
    assert len(named) > 40
