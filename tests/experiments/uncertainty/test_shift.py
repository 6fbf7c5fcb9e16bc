import math

import numpy as np
import pytest

from experiments.uncertainty import methods, scores, shift
from segjax import metrics
from segjax.storage import write_json


def test_corrupted_severity_zero_is_the_image_itself(tiny_scenes):
    (image, *_), *rest = shift.corrupted(tiny_scenes, "clean", 0, 2)
    expected, *_ = methods.examples(tiny_scenes)
    np.testing.assert_array_equal(image, expected[0])
    assert len(rest) == 1


def test_corrupted_keeps_the_labels_and_is_the_same_in_every_call(tiny_scenes):
    one, two = (next(shift.corrupted(tiny_scenes, "gaussian_noise", 3, 4)) for _ in range(2))
    np.testing.assert_array_equal(one[0], two[0])
    expected = next(methods.examples(tiny_scenes))
    assert (one[0] != expected[0]).any()
    np.testing.assert_array_equal(one[1], expected[1])


def test_summary_scales_by_the_clean_temperature():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(scores.PIXELS, 3)).astype(np.float32)
    labels = np.array([rng.choice(3, p=p) for p in np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)])
    histogram = np.zeros((2, 4096), int)
    histogram[0, 100], histogram[1, 3000] = 8, 2
    counts = scores.ImageCounts(
        {"entropy": histogram}, {"entropy": histogram}, {"softmax": np.eye(3, dtype=int)}, {"softmax": 4 * logits},
        labels, {}
    )  # fmt: skip
    quarter = metrics.Scaling(np.full(3, 0.25, np.float32), np.zeros(3, np.float32))
    found = shift.summary([counts], {"softmax": quarter})["softmax"]
    assert found["ece_scaled"] < 5 < found["ece"]
    assert found["auroc"] == 1
    assert found["aurc"] == pytest.approx(100 * (1 / 9 + 2 / 10) / 10, rel=0.1)


@pytest.fixture
def measured():
    """Results of two networks of all classes, whose mean IoU falls with the severity, and of the unseen classes."""

    def of(auroc, quality):
        return {
            "scores": {
                name: {
                    "softmax": {
                        "mean_iou": quality - severity / 10,
                        "aurc": 2.0,
                        "ece": 3.0,
                        "ece_scaled": 1.0,
                        "auroc": auroc,
                    }
                }
                for name, (_, severity) in shift.CONDITIONS.items()
            }
        }

    return shift.combined([of(0.5, 0.5), of(0.5, 0.7)], [of(0.9, 0.5)])


def test_combined_takes_the_auroc_of_the_unseen_classes(measured):
    assert shift.over_kinds(measured, 0, "softmax", "auroc").mean == 0.9
    assert shift.over_kinds(measured, 5, "softmax", "mean_iou").values == pytest.approx((0.0, 0.2))
    assert math.isnan(shift.over_kinds(measured, 5, "ensemble", "mean_iou").mean)


def test_report_of_incomplete_results(measured):
    made = shift.report(measured, "camvid", {})
    assert "falls from 0.600 to 0.100" in made.text
    assert [len(table.rows) for section in made.sections for table in section.tables] == [6, 9]


def test_measured_leaves_out_what_has_not_ended(tmp_path):
    file = shift.shift_file(tmp_path, methods.ALL, [0], 2)
    write_json(file, {"scores": {"clean 0": {}}, "provenance": {}})
    assert shift.measured(tmp_path, methods.ALL, 1, 1, 2) == []
    write_json(file, {"scores": {name: {} for name in shift.CONDITIONS}, "provenance": {}})
    assert len(shift.measured(tmp_path, methods.ALL, 1, 1, 2)) == 1
    assert shift.measured(tmp_path, methods.ALL, 1, 1, 1) == []
