"""The report of a single run, from random scores of two and of many classes, and the figures in it."""

import itertools
import math
import types

import cv2
import numpy as np
import pytest
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg

from segjax.data import UNSEEN, LabelSet
from segjax.reporting import figures, html, run_page
from segjax.reporting.run_page import Inspection, ShownImage, run_report
from segjax.trained_run import TrainedRun
from segjax.training import defaults

LOG = [{"step": i, "train/loss": 1 / i, "train/pixel_loss": 1 / i, "train/learning_rate": 0.1} for i in (1, 2, 3, 4)]
SCORED = [{"step": 4, "eval/mean_iou": 0.5} | {f"eval/iou/class {i}": 0.5 for i in range(32)}]


def inspection(classes, images, pixel_accuracy):
    """Returns random results of a pass over a split, with as many best and worst images."""
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 100, (classes, classes)) + 1000 * np.eye(classes, dtype=int)
    confusion[-1] = 0  # no true pixel
    names = [f"class {i}" for i in range(classes)]
    ranked = names if classes > 2 else names[1:]
    scores = {"classes": names, "confusion": confusion.tolist(), "expected_calibration_error": 0.0123}
    scores |= {f"{key}_per_class": rng.random(classes).tolist() for key in ("iou", "dice", "precision", "recall")}
    means = ("mean_iou", "mean_dice", "mean_accuracy", "pixel_accuracy", "mean_iou_per_image", "frequency_weighted_iou")
    scores |= dict.fromkeys(means, 0.5) | {"pixel_accuracy": pixel_accuracy}
    scores |= {"area_under_risk_coverage": {"entropy": 0.25}, "images": 4, "skipped": 0}
    scores["average_precision_per_class"] = [float("nan")] * (classes - len(ranked)) + [0.5] * len(ranked)
    bins = {"edges": [0, 0.5, 1], "confidence": [float("nan"), 0.8], "accuracy": [float("nan"), 0.7], "count": [0, 90]}
    curve = {"threshold_logit": [0.0, -math.inf], "recall": [0.5, 1.0], "precision": [1.0, 0.5]}
    labels = rng.integers(0, classes, (6, 8)).astype(np.uint8)
    truth = labels
    if classes > 2:
        truth = np.where(np.arange(8) < 2, UNSEEN, labels).astype(np.uint8)
        detection = {"average_precision": 0.5, "auroc": 0.5, "fpr_at_95_tpr": 0.5}
        scores["unknown"] = {"pixels": 12, "share": 0.25, "energy": detection}
    image = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    shown = ShownImage("street", 0.5, image, truth, labels, {"entropy": rng.random((6, 8))})
    risk_coverage = {"entropy": {"coverage": [0.5, 1.0], "risk": [0.0, 0.5]}}
    curves, overlaps = dict.fromkeys(ranked, curve), np.ones((4, 2, classes), np.int64)
    return Inspection(scores, bins, curves, risk_coverage, overlaps, (shown,) * images, (shown,) * images)


def report(classes=2, log=(*LOG, *SCORED), images=1, pixel_accuracy=0.5):
    config = defaults()
    config.data.manual_dir, config.training.phases = "x", ((0.6, 10, 0.002),)
    palette = np.arange(3 * classes, dtype=np.uint8).reshape(classes, 3)
    names = tuple(f"class {i}" for i in range(classes))
    state = types.SimpleNamespace(step=4, num_parameters=0)
    labels = LabelSet(names, palette, np.full(256, 255, np.uint8))
    run = TrainedRun(epath.Path("no_such_run"), config, None, state, labels)
    return run_report(run, log, "val", inspection(classes, images, pixel_accuracy), is_best=True)


def names_of(made):
    return [picture.name for section in made.sections for picture in section.pictures]


@pytest.fixture(scope="module")
def made():
    return report()


@pytest.mark.parametrize("classes", [2, 32])
def test_run_report_pictures_and_tables(classes, made):
    made = made if classes == 2 else report(classes)
    expected = ["loss", "scores", "iou", "learning_rate", "confusion", "precision_recall"]
    threshold = ["threshold"] * (classes > 2)  # of two, the rare one has no true pixel here
    assert names_of(made) == [*expected, *threshold, "reliability", "risk_coverage", "worst_1", "best_1"]
    pictures = [picture for section in made.sections for picture in section.pictures]
    assert all(cv2.imdecode(np.frombuffer(one.content, np.uint8), 1).std() > 5 for one in pictures[:8])
    (by_class,) = made.sections[3].tables
    assert len(by_class.rows) == classes + 1
    assert ("AP" in by_class.columns) == (classes > 2)
    assert ("Unseen classes" in [section.title for section in made.sections]) == (classes > 2)
    page = html(made)
    assert page.count('<div class="halves">') == 5
    assert page.count("<div") == page.count("</div>")


def test_run_report_before_the_first_evaluation_and_of_a_split_of_void():
    young = report(log=LOG, images=0, pixel_accuracy=float("nan"))
    assert names_of(young)[:2] == ["loss", "learning_rate"]
    assert "was not scored yet" in young.sections[1].text
    assert young.sections[-2].title == "Uncertainty"


def test_run_report_shows_the_stored_calibration(monkeypatch):
    on = {"split": "val", "images": 4, "data": "x"}
    scores = {"negative_log_likelihood": 0.5, "expected_calibration_error": 0.25, "adaptive_calibration_error": 0.125}
    scaling = {
        "kind": "temperature",
        "scale": [0.5],
        "bias": [0.0],
        "pixels": 9,
        "before": scores,
        "after": scores,
        **on,
    }
    one = {"risk": "fnr", "class": "class 1", "level": 0.1, "smallest_level": 0.01, "threshold": -math.log(3), **on}
    one |= {"miss_rate": 0.0625, "false_positive_rate": 0.03125, "images_with_class": 3}
    dilated = {key: value for key, value in one.items() if key != "threshold"} | {"level": 0.2, "radius": 4}
    covered = {"coverage": 0.75, "mean_size": 1.5}
    classes = [{"class": f"class {i}", "threshold": 0.0, "images": i, **covered} for i in range(3)]
    sets = one | {"risk": "miscoverage", "class": "", "family": "adaptive", "classes": classes, **covered}
    calibration = {"scaling": scaling, "guarantees": [dilated, one, sets, sets | {"level": 0.3, "family": "class"}]}
    monkeypatch.setattr(run_page, "calibration_of", lambda run: (calibration, ""))
    section = report(log=LOG, images=0).sections[-2]
    assert section.title == "Calibration after training"
    assert section.tables[0].title == "Scaling on val: temperature 2"
    assert [row[1] for row in section.tables[0].rows] == ["0.5000", "0.2500", "0.1250"]
    assert [row[1] for row in section.tables[1].rows] == ["0.1", "0.2"]
    assert section.tables[1].rows[0][3:] == ("p ≥ 0.25", "0.0625", "0.03125", "3 of val")
    assert section.tables[1].rows[1][3] == "dilated by 4 pixels"
    rows = section.tables[2].rows
    assert rows[0] == ("all", "0.1", "0.01", "likelier ones ≤ 0.5", "0.7500", "1.500", "4 of val")
    expected = ["class 1", "class 2", "all", "class 1", "class 2"]  # class 0 has no image
    assert [row[0] for row in rows[1:]] == expected
    assert [row[3] for row in rows[1:]] == ["", "", "", "p ≥ 0.5", "p ≥ 0.5"]


def test_run_report_threshold_of_the_rare_class():
    confusion = [[90, 0], [5, 5]]
    found = inspection(2, 0, 0.5)
    section = run_page._threshold_sections(found._replace(scores=found.scores | {"confusion": confusion}))[0]
    assert section.title == "Threshold of class 1"
    (chart,) = section.pictures
    assert chart.slider == 0.5  # the higher of two with one F1
    assert chart.lines["precision"] == ([0.0, 0.5], [[0.5, 1.0]])
    assert chart.lines["F1"][1] == [pytest.approx([2 / 3, 2 / 3])]
    assert chart.lines["IoU"][1] == [pytest.approx([0.5, 0.5])]


@pytest.mark.slow
def test_overlay_layer_and_opacity_hold_for_all_images(made, tmp_path, tab):
    (tmp_path / "page.html").write_text(html(made), encoding="utf-8")
    shown = "[...document.querySelectorAll('[data-layer]:not([hidden])')].map(i => [i.dataset.layer, i.style.opacity])"
    with tab() as opened:
        opened.open(tmp_path / "page.html")
        assert opened.evaluate(shown) == [["prediction", "0.6"]] * 2
        opened.click(".layers label:nth-child(3) input")
        opened.click(".layers input[type=range]", 0.99)
        assert opened.evaluate(shown) == [["errors", "1"]] * 2
        opened.click(".stack")
        width, height = opened.evaluate(
            "(box => [box.width, box.height])(document.querySelector('.large .stack').getBoundingClientRect())"
        )
        assert (width > 600, height < 900, width / height) == (True, True, pytest.approx(8 / 6, rel=0.01))
        opened.click(".stack")
        assert opened.evaluate("document.querySelector('.large')") is None
        assert opened.console == []


@pytest.mark.slow
def test_pointer_keys_and_finger_show_the_values_of_a_pixel(made, tmp_path, tab):
    (tmp_path / "page.html").write_text(html(made), encoding="utf-8")
    line = "document.querySelector('.reading span').textContent"
    shown = inspection(2, 1, 0.5).worst[0]

    def expected(x, y):
        names = f"prediction: class {shown.prediction[y, x]}; truth: class {shown.truth[y, x]}"
        return f"x {x}, y {y}; {names}; entropy: "

    with tab(width=390, height=800) as opened:
        opened.open(tmp_path / "page.html")
        opened.wait(f"{line} === 'The pointer shows the values of a pixel.'")
        opened.move(".stack", 5.5 / 8, 2.5 / 6)
        text, value = opened.evaluate(line).split("entropy: ")
        assert f"{text}entropy: " == expected(5, 2)
        assert float(value) == pytest.approx(shown.uncertainties["entropy"][2, 5], abs=math.log(2) / 126 + 0.005)
        opened.evaluate("document.querySelector('.stack').focus()")
        for key, pixel in (
            ("ArrowRight", (6, 2)),
            ("ArrowRight", (7, 2)),
            ("ArrowRight", (7, 2)),
            ("ArrowDown", (7, 3)),
        ):
            opened.press(key)
            assert opened.evaluate(line).startswith(expected(*pixel))
        opened.tap(".stack", 0.5 / 8, 0.5 / 6)
        opened.wait(f"{line}.startsWith('x 0, y 0; ')")
        assert opened.evaluate("document.querySelector('.large')") is None
        opened.tap(".reading button")
        opened.wait("document.querySelector('.large') !== null")
        assert opened.console == []


@pytest.mark.slow
def test_legend_has_the_classes_of_the_shown_layer(made, tmp_path, tab):
    (tmp_path / "page.html").write_text(html(made), encoding="utf-8")
    legend = "[...document.querySelectorAll('.overlay [data-legend]:not([hidden])')].map(one => one.textContent)[0]"
    with tab() as opened:
        opened.open(tmp_path / "page.html")
        assert opened.evaluate(legend) == "class 1"
        opened.click(".layers label:nth-child(3) input")
        assert opened.evaluate(legend) == "missed class 1false class 1"


def test_run_report_prints_fields_as_typed(made):
    (table,) = made.sections[-1].tables
    assert table.rows == [("data.manual_dir", "'x'", "''"), ("training.phases", "((0.6, 10, 0.002),)", "()")]


def test_run_report_describes_run_checkpoint_and_split(made):
    steps = defaults().training.steps
    assert made.text == f"no_such_run, its best checkpoint, step 4 of {steps}, on 4 image(s) of val."
    assert made.facts["data"] == "road_debris, val: 4 images"


def test_curves_running_mean():
    steps = list(range(200))
    lines = {"loss": (steps, [[float(i % 2) for i in steps]])}
    noisy, smooth = figures.curves(lines, title="t", x="step", smoothed=True).axes[0].lines
    assert np.ptp(noisy.get_ydata()) == 1
    np.testing.assert_allclose(smooth.get_ydata()[10:-10], 0.5)
    assert np.isfinite(smooth.get_ydata()).all()


def test_confusion_figure_percent_per_row_and_blank_class():
    figure = figures.confusion_figure([[3, 1], [0, 0]], ["road", "crack"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["75.00 %\n3", "25.00 %\n1"]


@pytest.mark.parametrize("classes", [11, 32])
def test_confusion_figure_labels_do_not_overlap(classes):
    figure = figures.confusion_figure([[10] * classes] * classes, [f"a long name {i}" for i in range(classes)])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    for labels in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels(), figure.axes[0].texts):
        boxes = [label.get_window_extent(renderer) for label in labels]
        overlaps = sum(a.overlaps(b) for a, b in itertools.pairwise(boxes))
        assert overlaps == 0
        assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)


def test_reliability_figure_empty_bin_has_no_bar():
    figure = figures.reliability_figure([0, 0.5, 1], [float("nan"), 0.8], [float("nan"), 0.7], [0, 90])
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == pytest.approx([0, 0.7, 0, -0.1])
    assert [bar.get_height() for bar in figure.axes[1].patches] == [0, 90]


def test_uncertainty_figure_without_errors_has_a_y_range():
    figure = figures.curves({"entropy": ([0.5, 1.0], [[0.0, 0.0]])}, title="t", x="x", y_range=(0, 1))
    assert figure.axes[0].get_ylim() == (0, 1)


def test_curves_more_lines_than_colours():
    lines = {f"class {i}": ([0, 1], [[1, 0]]) for i in range(12)}
    drawn = figures.curves(lines, title="t", x="x").axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 12
