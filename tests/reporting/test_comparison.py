"""Comparison of runs: groups of seeds, intervals against a plain bootstrap, and the tables of chosen counts."""

import types

import cv2
import numpy as np
import pytest
from etils import epath

from segjax import metrics
from segjax.boxes import Detections
from segjax.data import LabelSet, Source
from segjax.reporting import comparison, detector_page
from segjax.reporting.comparison import Compared, check_same_images, group_runs, image_scores, mean_iou_interval
from segjax.reporting.detector_page import DetectorInspection, ShownDetections
from segjax.reporting.run_page import Inspection
from segjax.trained_run import TrainedRun
from segjax.training import ConfigError, defaults


def run(workdir, seed=0, step=4, gamma=2.0, classes=("road", "debris"), **data):
    """Returns a run without a network."""
    config = defaults()
    config.seed, config.objective.gamma = seed, gamma
    config.data.update(data)
    labels = LabelSet(classes, np.zeros((len(classes), 3), np.uint8), np.full(256, 255, np.uint8))
    return TrainedRun(epath.Path(workdir), config, None, types.SimpleNamespace(step=step), labels)


def compared(name, *runs):
    """Returns a group whose runs have these confusion matrices per image."""
    inspections = []
    for matrices in runs:
        matrices = np.array(matrices)
        confusion = matrices.sum(0)
        correct = np.diagonal(matrices, axis1=1, axis2=2)
        overlaps = np.stack([correct, matrices.sum(1) + matrices.sum(2) - correct], axis=1)
        names = [f"class {i}" for i in range(len(confusion))]
        scores = {"classes": names, "confusion": confusion.tolist(), "images": len(matrices), "rare_class": "class 1"}
        scores |= {key: np.asarray(value).tolist() for key, value in metrics.segmentation_scores(confusion).items()}
        scores |= {"expected_calibration_error": 0.25, "average_precision": 0.5}
        inspections.append(Inspection(scores, {}, {}, {}, overlaps, (), ()))
    seeds = tuple(run(f"runs/{name}_{i}", seed=i, gamma=float(len(name))) for i in range(len(runs)))
    return Compared(name, seeds, tuple(inspections))


RIGHT = [[[8, 0], [0, 2]], [[6, 0], [0, 4]], [[0, 0], [0, 0]]]
WRONG = [[[8, 0], [2, 0]], [[5, 1], [0, 4]], [[0, 0], [0, 0]]]


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([run("r/a_0"), run("r/b_0", gamma=0.0), run("r/a_1", 1)], {"a": [0, 2], "b_0": [1]}),
        ([run("r/a_0", manual_dir="x"), run("r/a_1", 1), run("r/b", gamma=0.0)], {"a": [0, 1], "b": [2]}),
        ([run("r/a_0"), run("r/a_1", 1)], {"a_0": [0], "a_1": [1]}),  # seeds only: each on its own
        ([run("r/a3_0"), run("r/a3_1", 1), run("r/b", gamma=0.0)], {"a3": [0, 1], "b": [2]}),
        ([run("r/a_10"), run("r/a_11", 1), run("r/b", gamma=0.0)], {"a": [0, 1], "b": [2]}),
        ([run("r/a"), run("s/a"), run("r/b", gamma=0.0)], {"r/a": [0], "s/a": [1], "r/b": [2]}),  # one seed twice
        ([run("r/a", step=2), run("r/a")], {"a, step 2": [0], "a, step 4": [1]}),
        (
            [run("r/1", 1), run("r/2", 2), run("r/3", gamma=0.0)],
            {"1 and 1 more": [0, 1], "3": [2]},
        ),
    ],
)
def test_group_runs_joins_seeds_of_one_config_and_names_them(runs, expected):
    found = {group.name: [runs.index(one) for one in group.runs] for group in group_runs(runs)}
    assert list(found.items()) == list(expected.items())


def test_group_runs_puts_ensembles_of_one_config_in_one_group():
    members = [run(f"r/{i}", i) for i in range(4)]
    pairs = [members[i]._replace(workdir=None, runs=tuple(members[i : i + 2])) for i in (0, 2)]
    assert [group.name for group in group_runs([*pairs, run("r/b", gamma=0.0)])] == ["0,1 and 1 more", "b"]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([run("r/a"), run("r/b", 1), run("r/a")], "r/a/checkpoints/4 is named twice; name every run once"),
        (
            [run("r/a"), run("r/b", classes=("road", "car"))],
            "r/b and r/a cannot be compared: their classes are road, car and road, debris; name runs of the same",
        ),
        (
            [run("r/a"), run("r/b", multilabel=True)],
            "r/b and r/a cannot be compared: the first has classes that overlap, the second one class per pixel",
        ),
        (
            [run("r/a", box_classes=("road",)), run("r/b", box_classes=("debris",))],
            "r/b and r/a cannot be compared: their classes are debris and road",
        ),
    ],
)
def test_group_runs_refuses_runs_that_cannot_be_compared(runs, message):
    with pytest.raises(ConfigError, match=message):
        group_runs(runs)


def test_check_same_images_names_the_runs_and_the_way_out():
    class Images(list):
        name = list.__getitem__

    for attribute in Source.__annotations__:
        setattr(Images, attribute, "a")
    groups = group_runs([run("r/a"), run("r/b", gamma=0.0)])
    check_same_images(groups, {"r/a": Images([1, 2]), "r/b": Images([3, 4])}, "val")
    with pytest.raises(ConfigError, match="r/b and r/a have different images in val, 1 and 2; add --split=NAME"):
        check_same_images(groups, {"r/a": Images([1, 2]), "r/b": Images([3])}, "val")


def test_mean_iou_interval_is_that_of_a_plain_bootstrap():
    rng = np.random.default_rng(5)
    union = rng.integers(20, 40, (12, 1, 3))
    first, second = (np.concatenate([rng.integers(low, 20, (12, 1, 3)), union], axis=1) for low in (0, 10))

    def mean_iou(images, overlaps):
        total = overlaps[images].sum(0)
        return (total[0] / total[1]).mean()

    drawn = rng.integers(0, 12, (4000, 12))
    expected = np.quantile([mean_iou(one, second) - mean_iou(one, first) for one in drawn], [0.025, 0.975])
    np.testing.assert_allclose(mean_iou_interval([first], [second]), expected, atol=0.02)


def test_mean_iou_interval_leaves_out_classes_without_pixels_and_averages_seeds():
    half, whole = (np.array([[[value, 0], [10, 0]]] * 3) for value in (5, 10))
    assert mean_iou_interval([half, whole], [whole]) == (0.25, 0.25)


def test_image_scores_are_the_mean_iou_of_each_image():
    scores = image_scores([compared("right", RIGHT), compared("wrong", WRONG, RIGHT)])
    expected = [metrics.segmentation_scores(np.array(matrix))["mean_iou"] for matrix in WRONG[:2]]
    np.testing.assert_allclose(scores[:, :2], [[1.0, 1.0], expected])  # of the first seed
    assert np.isnan(scores[:, 2]).all()


def test_most_different_ranks_by_the_difference_and_leaves_out_images_without_labels():
    scores = np.array([[0.5, np.nan, 0.9, 0.2], [0.6, np.nan, 0.1, 0.2]])
    assert comparison.most_different(scores, 2) == [2, 0]
    assert comparison.most_different(scores, 9) == [2, 0, 3]


def test_score_table_has_a_spread_per_group_and_the_difference_to_the_first():
    table = comparison.score_table([compared("wrong", WRONG), compared("right", RIGHT, WRONG)], "val")
    assert table.columns[:5] == ("run", "seed", "mean IoU", "minus wrong", "95 % interval")
    (first, second), wrong = table.rows, metrics.segmentation_scores(np.sum(WRONG, axis=0))["mean_iou"]
    assert first[:5] == ("wrong", "0", pytest.approx(wrong), None, None)
    assert (second[0], second[1], second[2].values) == ("right", "0, 1", pytest.approx((1.0, wrong)))
    assert second[3] == f"{(1 - wrong) / 2:+.3f}"
    assert "AP of class 1" in table.columns


def test_class_table_ends_with_the_difference_of_the_last_group_to_the_first():
    table = comparison.class_table([compared("wrong", WRONG), compared("right", RIGHT)])
    iou = metrics.segmentation_scores(np.sum(WRONG, axis=0))["iou_per_class"]
    assert table.columns == ("class", "share", "wrong", "right", "right − wrong")
    assert table.rows[1] == ("class 1", pytest.approx(0.3), pytest.approx(iou[1]), 1.0, f"{1 - iou[1]:+.3f}")


def test_config_table_shows_the_fields_that_differ():
    table = comparison.config_table([compared("a", WRONG), compared("right", RIGHT)])
    assert table.rows == [("config.objective.gamma", "1.0", "5.0")]


def test_finding_of_images_without_labels_says_so():
    nothing = [[[0, 0], [0, 0]]] * 2
    groups = [compared("a", nothing), compared("b", nothing)]
    assert comparison.finding(groups) == "No image has a labelled pixel, so there is no mean IoU."
    assert comparison.score_table(groups, "val").rows[1][3] is None


def test_finding_names_the_best_group_and_the_interval_to_the_next():
    text = comparison.finding([compared("wrong", WRONG), compared("right", RIGHT)])
    wrong = metrics.segmentation_scores(np.sum(WRONG, axis=0))["mean_iou"]
    assert text.startswith(f"right has the highest mean IoU, 1.000; that of wrong is {1 - wrong:.3f} lower (95 %")


def detectors(name, ap, *found):
    """Returns a group of one detector, with objects that are found, missed and false in each image."""
    scores = {"classes": ["car", "dog"], "objects": [3, 4], "ap_per_class": [ap, ap / 2], "ap": ap, "best_f1": 0.5}
    scores |= {"images": len(found), "best_threshold": 0.5, "ap50": 0.5}
    counts = [detector_page._ImageCounts(i, *one) for i, one in enumerate(found)]
    detected = detector_page._Detected({}, None, counts)
    one = DetectorInspection(scores, {}, {}, {}, (), (), detected=detected)
    return Compared(name, (run(f"runs/{name}", box_classes=("car", "dog")),), (one,))


def test_comparison_of_detectors_has_their_ap_and_no_interval():
    groups = [detectors("a", 0.25, (1, 0, 0)), detectors("b", 0.5, (1, 0, 0))]
    table = comparison.score_table(groups, "val")
    assert table.columns == ("run", "seed", "AP", "minus a", "AP50", "best F1")
    assert table.rows[1] == ("b", "0", 0.5, "+0.250", 0.5, 0.5)
    assert comparison.class_table(groups).rows[1] == ("dog", 4, 0.125, 0.25, "+0.125")
    assert comparison.finding(groups) == "b has the highest AP, 0.500; that of a is 0.250 lower."


def test_image_scores_of_detectors_are_the_f1_of_each_image():
    scores = image_scores([detectors("a", 0.25, (1, 1, 0), (0, 0, 0)), detectors("b", 0.5, (2, 0, 0), (0, 0, 1))])
    np.testing.assert_allclose(scores, [[2 / 3, np.nan], [1.0, 0.0]])
    assert comparison.most_different(scores, 2) == [0]


def test_comparison_of_detectors_draws_right_and_false_detections():
    boxes, names = np.array([[8.0, 8, 16, 16]]), ("car", "dog")
    shown = {}
    for name, correct in (("a", True), ("b", False)):
        found = Detections(boxes, np.array([0.5]), np.array([0]), np.array([True]))
        image = np.full((48, 64, 3), 90, np.uint8)
        shown[name] = ShownDetections("street", 0.5, image, boxes, np.array([1]), found, np.array([correct]))
    overlay = comparison.detections_overlay("image_1", "street", shown, names)
    assert list(overlay.layers) == ["a", "b", "objects"]
    for layer, colour in (("a", detector_page.RIGHT), ("b", detector_page.FALSE), ("objects", detector_page.OBJECT)):
        pixels = cv2.imdecode(np.frombuffer(overlay.layers[layer], np.uint8), -1)[..., [2, 1, 0, 3]]
        assert pixels.shape == (360, 480, 4)
        assert pixels[120, 90].tolist() == [*colour, 255]  # its lower edge
        assert pixels[90, 90, 3] == 0  # inside the box
