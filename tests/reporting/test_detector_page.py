"""The report of a detector: its scores are those of an evaluation, and its pictures show boxes."""

import types

import cv2
import numpy as np
import pytest
from etils import epath

from segjax.boxes import Detections
from segjax.data import LabelSet, label_set, open_split
from segjax.reporting import detector_page, figures, html
from segjax.reporting.detector_page import (
    DetectorInspection,
    ShownDetections,
    detections_overlay,
    detector_report,
    inspect_detector,
)
from segjax.trained_run import TrainedRun, score_run
from segjax.training import defaults
from segjax.training.network import make_model
from segjax.training.train_step import init_state

LOG = [{"step": i, "train/loss": 2 / i, "train/class_loss": 1 / i, "train/box_loss": 1 / i} for i in (1, 2, 3, 4)]
SCORED = [{"step": 4, "eval/ap": 0.5, "eval/ap50": 0.75} | {f"eval/ap/class {i}": 0.5 for i in range(32)}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the run of a detector that was not trained, with scores around one half."""
    config = defaults()
    config.data.data_dir = str(tmp_path_factory.mktemp("prepared"))
    config.data.box_classes, config.data.max_boxes = ("debris",), 20
    config.data.scene_size = config.data.size = (64, 96)
    config.data.train_examples, config.data.val_examples, config.data.workers = 4, 6, 0
    config.model.name, config.model.width, config.model.hidden = "retinanet", 4, 8
    config.model.levels, config.model.anchor_base, config.model.prior = (2, 3, 4, 5), 1.0, (0.5,)
    config.objective.loss, config.training.global_batch = "sigmoid_focal", 4
    labels = label_set(config.data)
    model = make_model(config, labels.num_classes)
    return TrainedRun(None, config, model, init_state(config, model), labels)


@pytest.fixture(scope="module")
def inspection(run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector_page, "CORRUPTIONS", ("contrast",))
        return inspect_detector(run, open_split(run.config.data, "val"), images=2, severity=5)


def test_inspect_detector_scores_are_those_of_an_evaluation(run, inspection):
    reference = score_run(run, "val")
    np.testing.assert_equal({key: inspection.scores[key] for key in reference}, reference)
    scores = score_run(run, "val", ("contrast", 5))
    assert inspection.shift == {"contrast": {key: scores[key] for key in ("ap", "ap50", "ar100")}}


def test_inspect_detector_counts_boxes_at_the_best_threshold(inspection):
    scores, curve = inspection.scores, inspection.by_threshold
    assert scores["found"] + scores["missed"] == sum(scores["objects"])
    f1 = 2 * scores["found"] / (2 * scores["found"] + scores["missed"] + scores["false"])
    assert 0 < f1 == pytest.approx(scores["best_f1"])
    assert f1 >= max(curve["f1"]) - 1e-12
    assert np.mean(inspection.precision_at_recall["IoU 0.5"]) == pytest.approx(scores["ap50"])
    assert scores["ap75_per_class"] == [pytest.approx(scores["ap75"])]
    histogram = inspection.histogram
    assert sum(histogram["right"]) == pytest.approx(curve["recall"][-1] * sum(scores["objects"]))
    assert sum(histogram["right"]) + sum(histogram["false"]) == 6 * 100


def test_inspect_detector_shows_the_best_and_the_worst_images(run, inspection):
    source = open_split(run.config.data, "val")
    shown = [*inspection.best, *inspection.worst[::-1]]
    assert len({one.name for one in shown}) == 4
    assert [one.f1 for one in shown] == sorted((one.f1 for one in shown), reverse=True)
    indices = {source.name(i): i for i in range(len(source))}
    detect = run.detector()
    for one in shown:
        example = source[indices[one.name]]
        np.testing.assert_array_equal(one.image, example["image"])
        assert len(one.boxes) == len(np.setdiff1d(example["label"], (0, 255)))
        found = detect(example["image"])
        likely = found.scores >= inspection.scores["best_threshold"]
        np.testing.assert_allclose(one.detections.boxes, found.boxes[likely], atol=1e-3)
        right = one.correct.sum()
        assert one.f1 == 2 * right / (len(one.boxes) + likely.sum())


def test_best_and_worst_leaves_out_images_with_nothing_to_find():
    counts = [(0, 2, 0, 1), (1, 0, 1, 0), (2, 0, 0, 0), (3, 1, 1, 1), (4, 0, 3, 2), (5, 1, 0, 0)]
    best, worst = detector_page._best_and_worst([detector_page._ImageCounts(*one) for one in counts], 2)
    assert [one.index for one in worst] == [4, 1]  # more errors come first
    assert [one.index for one in best] == [5, 0]


def made_inspection(classes, images=1, **scores):
    """Returns random results of a pass, with as many best and worst images."""
    rng = np.random.default_rng(0)
    names = [f"class {i}" for i in range(classes)]
    keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
    keys += ("ar_small", "ar_medium", "ar_large", "best_f1", "best_threshold")
    scores = dict.fromkeys(keys, 0.5) | {"classes": names, "objects": [0, *[5] * (classes - 1)][-classes:]} | scores
    scores |= {f"{key}_per_class": rng.random(classes).tolist() for key in ("ap", "ap50", "ap75", "ar100")}
    scores |= {"images": 4, "skipped": 0, "found": 3, "missed": 1, "false": 2}
    curves = np.where(np.array(scores["objects"])[:, None] > 0, np.linspace(1, 0, 101), np.nan).tolist()
    rates = {"threshold": [0.9, 0.5], "precision": [1.0, 0.5], "recall": [0.5, 1.0], "f1": [0.7, 0.6]}
    histogram = {"edges": [0, 0.5, 1], "right": [1, 9], "false": [90, 0]}
    boxes = np.array([[1.0, 1, 9, 9], [4, 2, 12, 6]])
    labels = np.arange(2, dtype=np.int32) % classes
    found = Detections(boxes, np.array([0.9, 0.6]), labels, np.array([True, True]))
    image = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    shown = ShownDetections("street", 0.5, image, boxes[:1], labels[:1], found, np.array([True, False]))
    parts = (scores, {"IoU 0.5": curves, "IoU 0.75": curves}, rates, histogram)
    return DetectorInspection(*parts, (shown,) * images, (shown,) * images)


def report(inspection, log=(*LOG, *SCORED)):
    classes, config = len(inspection.scores["classes"]), defaults()
    config.data.manual_dir = "x"
    names = tuple(inspection.scores["classes"])
    labels = LabelSet(names, np.arange(3 * classes, dtype=np.uint8).reshape(-1, 3), np.full(256, 255, np.uint8))
    state = types.SimpleNamespace(step=4, num_parameters=0)
    run = TrainedRun(epath.Path("no_such_run"), config, None, state, labels)
    return detector_report(run, log, "val", inspection, is_best=True)


@pytest.mark.parametrize("classes", [1, 3, 32])
def test_detector_report_pictures_and_tables(classes):
    made = report(made_inspection(classes, objects=[5] * classes))
    names = [one.name for section in made.sections for one in section.pictures]
    per_class = ["ap", "precision_recall_class"] if classes > 1 else []
    curves = ["loss", "scores", *per_class[:1], "precision_recall", *per_class[1:], "threshold", "scores_histogram"]
    assert names == [*curves, "worst_1", "best_1"]
    by_class = made.sections[3].tables[0]
    assert by_class.columns == ("class", "objects", "AP", "AP50", "AP75", "AR100")
    assert len(by_class.rows) == classes + 1
    pictures = [one for section in made.sections for one in section.pictures]
    assert all(cv2.imdecode(np.frombuffer(one.content, np.uint8), 1).std() > 5 for one in pictures)
    assert pictures[-1].caption == "street: 1 of 1 object(s) found, 1 false detection(s), F1 0.500"
    page = html(made)
    assert page.count("<div") == page.count("</div>")


@pytest.mark.parametrize("objects", [[0, 0], [0, 4]])
def test_detector_report_of_classes_without_objects(objects):
    empty = {"threshold": [], "precision": [], "recall": [], "f1": []}
    undefined = dict.fromkeys(("ap", "ap50", "best_f1", "best_threshold"), float("nan")) if not any(objects) else {}
    inspection = made_inspection(2, images=0, objects=objects, **undefined)
    inspection = inspection._replace(by_threshold=empty, histogram={"edges": [0, 1], "right": [0], "false": [0]})
    made = report(inspection, log=LOG)
    assert "was not scored yet" in made.sections[1].text
    assert [section.title for section in made.sections][-2:] == ["Score threshold", "Configuration"]


def shown_detections(objects, found, correct, detected=0):
    """Returns objects of class 0, and detections of one class."""
    count = len(found)
    detections = Detections(
        np.array(found), np.linspace(0.9, 0.6, count), np.full(count, detected), np.ones(count, bool)
    )
    image = np.full((48, 64, 3), 90, np.uint8)
    labels = np.zeros(len(objects), int)
    return ShownDetections("street", 0.5, image, np.array(objects, float), labels, detections, np.array(correct))


def test_missed_leaves_out_the_object_of_each_true_positive():
    objects = [[0, 0, 10, 10], [0, 0, 10, 12], [30, 30, 40, 40]]
    assert shown_detections(objects, [[0.0, 0, 10, 11.8]], [True]).missed.tolist() == [True, False, True]
    both = shown_detections(objects, [[0.0, 0, 10, 11.8], [0.0, 0, 10, 12]], [True, True])
    assert both.missed.tolist() == [False, False, True]
    assert shown_detections(objects, [[0.0, 0, 10, 12]], [False]).missed.all()


def test_missed_matches_objects_of_the_class_only():
    one = shown_detections([[0, 0, 10, 12], [0, 0, 10, 10]], [[0.0, 0, 10, 12]], [True], detected=1)
    assert one._replace(classes=np.array([0, 1])).missed.tolist() == [True, False]


def test_detections_overlay_layers_and_values():
    objects, found = [[8, 8, 16, 16], [40, 8, 48, 16]], [[8.0, 8, 16, 16], [8.0, 24, 16, 32]]
    shown = shown_detections(objects, found, [True, False])
    overlay = detections_overlay("worst_1", "street", {"detections": shown}, ["stone"])
    assert list(overlay.layers) == ["detections", "objects", "errors"]

    def colour(layer, x, y):  # of a lower edge, in an image that is 7.5 times as large
        pixels = cv2.imdecode(np.frombuffer(overlay.layers[layer], np.uint8), -1)[..., [2, 1, 0, 3]]
        assert pixels.shape == (360, 480, 4)
        return pixels[y, x].tolist()

    right, false, missed = (90, 120), (90, 240), (330, 120)
    assert colour("detections", *right) == [*detector_page.RIGHT, 255]
    assert colour("detections", *false) == colour("errors", *false) == [*detector_page.FALSE, 255]
    assert colour("objects", *right) == colour("objects", *missed) == [*detector_page.OBJECT, 255]
    assert colour("errors", *missed) == [*detector_page.MISSED, 255]
    assert colour("errors", *right)[3] == colour("detections", *missed)[3] == 0
    assert overlay.values["boxes"] == {
        "detections": [
            [60.0, 180.0, 120.0, 240.0, "stone 0.60, false"],
            [60.0, 60.0, 120.0, 120.0, "stone 0.90, right"],
        ],
        "objects": [[60.0, 60.0, 120.0, 120.0, "stone"], [300.0, 60.0, 360.0, 120.0, "stone"]],
        "errors": [[300.0, 60.0, 360.0, 120.0, "missed stone"], [60.0, 180.0, 120.0, 240.0, "stone 0.60, false"]],
    }
    assert overlay.legends["errors"] == {"missed": "rgb(240, 228, 66)", "false": "rgb(213, 94, 0)"}


def test_detections_overlay_of_an_image_without_objects_and_detections():
    empty = shown_detections([], np.zeros((0, 4)), np.zeros(0, bool))._replace(boxes=np.zeros((0, 4)))
    overlay = detections_overlay("worst_1", "street", {"detections": empty}, ["stone"])
    assert overlay.values["boxes"] == {"detections": [], "objects": [], "errors": []}


def test_steps_is_logarithmic_unless_all_bins_are_empty():
    drawn = figures.steps({"right": [1, 9], "false": [90, 0]}, [0, 0.5, 1], title="t", x="x", y="y").axes[0]
    assert [one.get_data().values.tolist() for one in drawn.patches] == [[1, 9], [90, 0]]
    assert drawn.get_yscale() == "log"
    assert figures.steps({"right": [0]}, [0, 1], title="t", x="x", y="y").axes[0].get_yscale() == "linear"
