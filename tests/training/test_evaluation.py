"""Scores from counts."""

import numpy as np
import pytest

from segjax import metrics
from segjax.training.evaluation import Scores, scores


def counted(logits, labels):
    predictions = (logits > 0).astype(np.int32)
    return {
        "confusion": np.asarray(metrics.confusion_matrix(labels, predictions, 2), np.int64),
        "scores": np.asarray(metrics.score_histogram(logits, labels == 1), np.int64),
    }


def test_scores_best_iou_and_its_threshold():
    rng = np.random.default_rng(0)
    labels = (rng.random(4000) < 0.1).astype(np.int32)
    # Nearly every positive is below 0, so that 0 is a bad threshold.
    logits = (2 * labels + rng.normal(-3, 1, labels.shape)).astype(np.float32)
    found = scores(counted(logits, labels))

    def iou(threshold):
        predicted = logits >= threshold
        return (predicted & (labels == 1)).sum() / (predicted | (labels == 1)).sum()

    assert found["best_iou"] == pytest.approx(max(map(iou, np.sort(logits))), abs=5e-3)
    assert found["best_iou"] > found["iou_per_class"][1] + 0.1
    logit = np.log(found["best_threshold"] / (1 - found["best_threshold"]))
    assert found["best_iou"] == pytest.approx(iou(logit), rel=1e-3)


def test_scores_show_a_table_in_a_notebook():
    found = scores(counted(np.array([1.0, -1.0], np.float32), np.array([1, 0], np.int32)))
    table = Scores(found | {"classes": ["road", "<b>"]})._repr_html_()
    assert "<td>&lt;b&gt;</td><td>1.000</td>" in table
    assert "mean_iou 1.000" in table


def test_scores_without_a_positive_are_nan():
    found = scores(counted(np.full(5, -1.0, np.float32), np.zeros(5, np.int32)))
    assert np.isnan([found["best_iou"], found["best_threshold"], found["average_precision"]]).all()


def test_scores_of_three_classes_have_no_ranking():
    confusion = np.asarray(metrics.confusion_matrix(np.array([0, 1, 2]), np.array([0, 1, 1]), 3), np.int64)
    assert {"best_iou", "average_precision", "auroc"} & scores({"confusion": confusion}).keys() == set()
