"""The page of a run while it trains: its sections, and in a browser its refresh."""

import math
import time

import numpy as np
import pytest

from segjax.reporting import html
from segjax.reporting.live_page import (
    best_of,
    best_table,
    columns_of,
    earlier_examples,
    examples_picture,
    live_report,
    loss_lines,
    training_sections,
)
from segjax.reporting.report import Progress

ROWS = [{"step": i, "train/loss": 1 / i, "train/pixel_loss": 1 / i, "train/learning_rate": 0.1} for i in (1, 2, 3, 4)]
SCORED = [
    {"step": 2, "eval/mean_iou": 0.75, "eval/average_precision": 0.25, "eval/pixel_loss": 0.5, "eval/iou/debris": 0.5},
    {"step": 4, "eval/mean_iou": 0.5, "eval/average_precision": 0.5, "eval/pixel_loss": 0.75, "eval/iou/debris": 0.25},
]
RUN = {"title": "unet on debris", "workdir": "runs/a", "fields": [("model.width", 8, 16)], "facts": {"commit": "abc"}}


EXAMPLES = examples_picture(np.zeros((40, 60, 3), np.uint8), 4)


def made(rows, refresh=15, examples=None, age=0):
    progress = Progress("Step 4 of 8, running.", 4, 8, refresh, time.time() - age)
    return live_report(columns_of(rows), progress, examples, **RUN)


def test_live_report_has_charts_best_steps_examples_and_fields():
    report = made(ROWS + SCORED, examples=EXAMPLES)
    assert [one.title for one in report.sections] == ["Training", "Best by score", "Examples", "Configuration"]
    charts = report.sections[0].pictures
    assert [one.name for one in charts] == ["loss", "scores", "iou", "learning_rate"]
    assert all(one.checkpoint_step == 4 for one in charts)  # the best average precision
    assert "step 4, the best by average precision" in report.sections[0].text
    assert report.sections[2].pictures[0].form == "jpeg"
    assert report.sections[3].tables[0].rows == [("model.width", "8", "16")]


def test_live_report_before_the_first_step_and_before_the_first_evaluation():
    assert made([]).sections[0].pictures == ()
    report = made(ROWS)
    assert [one.name for one in report.sections[0].pictures] == ["loss", "learning_rate"]
    assert [one.title for one in report.sections] == ["Training", "Configuration"]


def test_live_report_shows_examples_of_a_split_without_a_score():
    report = made(ROWS, examples=EXAMPLES)  # as of a split without labels
    (examples,) = [one for one in report.sections if one.title == "Examples"]
    assert examples.pictures[0].caption == "Images of the evaluation split at step 4."


def test_earlier_examples_are_those_of_the_page():
    assert earlier_examples(html(made(ROWS, None, EXAMPLES))) == EXAMPLES
    assert earlier_examples(html(made(ROWS))) is None


def test_live_report_of_a_detector():
    report = made([*ROWS, {"step": 4, "eval/ap": 0.5, "eval/ap50": 0.75, "eval/ap/car": 0.5, "eval/ap50/car": 0.5}])
    charts = {one.name: one for one in report.sections[0].pictures}
    assert list(charts["scores"].lines) == ["AP", "AP50"]
    assert list(charts["ap"].lines) == ["car"]


def test_live_report_of_many_classes_shows_the_worst():
    report = made([{"step": 1, "eval/mean_iou": 0.5} | {f"eval/iou/{i}": i / 20 for i in range(20)}])
    (chart,) = [one for one in report.sections[0].pictures if one.name == "iou"]
    assert list(chart.lines) == [str(i) for i in range(12)]


def test_best_of_highest_and_lowest():
    assert best_of(([2, 4, 6], [0.5, math.nan, 0.75])) == (6, 0.75)
    assert best_of(([2, 4, 6], [0.5, 0.25, 0.25]), lowest=True) == (4, 0.25)


def test_best_table_has_step_and_last_value_of_each_score():
    assert best_table(columns_of(SCORED)).rows == [
        ("mean IoU", "0.750", 2, "0.500"),
        ("average precision", "0.500", 4, "0.500"),
        ("IoU of debris", "0.500", 2, "0.250"),
        ("pixel loss in evaluation ↓", "0.5", 2, "0.75"),
    ]


def test_loss_lines_of_one_part_and_of_two():
    assert list(loss_lines(columns_of(ROWS))) == ["loss"]
    evaluated = columns_of([*ROWS, {"step": 4, "eval/pixel_loss": 0.5}])
    assert list(loss_lines(evaluated)) == ["loss", "pixel loss in evaluation"]
    parts = columns_of([row | {"train/region_loss": 0.5} for row in ROWS])
    assert list(loss_lines(parts)) == ["loss", "pixel loss", "region loss"]


def test_training_sections_mark_the_step_of_the_report():
    section, *_ = training_sections(columns_of(ROWS), 3, {}, ("iou", "IoU", "IoU.", {}))
    assert section.text == "The dotted line marks the checkpoint of this page, step 3. The run was not scored yet."
    assert [one.checkpoint_step for one in section.pictures] == [3, 3]


def write(path, rows, refresh):
    path.write_text(html(made(rows, refresh)), encoding="utf-8")


@pytest.mark.slow
def test_live_page_loads_itself_again_until_the_run_has_ended_and_keeps_its_place(tmp_path, tab):
    page = tmp_path / "run.html"
    steps = "JSON.parse(document.querySelector('.chart script').textContent).lines[0].x.length"
    write(page, ROWS + SCORED, 1)
    with tab(width=390, height=500) as opened:
        opened.open(page)
        opened.click('[data-name="scores"] .legend button')
        opened.evaluate("scrollTo(0, 700)")
        write(page, [*ROWS, *SCORED, {"step": 5, "train/loss": 0.1}], 1)
        opened.wait(f"{steps} === 5")
        opened.wait("scrollY === 700")  # the script of the page may not have run yet
        opened.wait("document.querySelector('[data-name=scores] .legend button').ariaPressed === 'false'")
        write(page, [*ROWS, *SCORED, {"step": 6, "train/loss": 0.1}], None)
        opened.wait("!document.body.dataset.refresh")
        opened.evaluate("window.mark = 1")
        opened.evaluate("new Promise(done => setTimeout(done, 2500))")
        assert opened.evaluate("window.mark") == 1  # the same document
        assert opened.console == []
        assert set(opened.requests) - {page.as_uri()} <= {"data:,"}


@pytest.mark.slow
def test_live_page_is_not_loaded_again_under_the_pointer(tmp_path, tab):
    page = tmp_path / "run.html"
    write(page, ROWS, 1)
    with tab() as opened:
        opened.open(page)
        opened.evaluate("window.mark = 1")
        for _ in range(6):
            opened.move(".plot", 0.4)
            opened.evaluate("new Promise(done => setTimeout(done, 500))")
        assert opened.evaluate("window.mark") == 1


@pytest.mark.slow
def test_picture_opens_large_and_closes(tmp_path, tab):
    page = tmp_path / "run.html"
    page.write_text(html(made(ROWS + SCORED, None, EXAMPLES)), encoding="utf-8")
    with tab() as opened:
        opened.open(page)
        opened.click("figure > img")
        assert opened.evaluate("document.querySelector('.large > img').getBoundingClientRect().width") == 640
        opened.press("Escape")
        assert opened.evaluate("document.querySelector('.large')") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("age", "text"),
    [(30, ""), (430, "not been written for 7 minutes"), (8000, "for 2 hours"), (3e5, "for 3 days")],
)
def test_live_page_says_how_long_it_was_not_written(tmp_path, tab, age, text):
    page = tmp_path / "run.html"
    page.write_text(html(made(ROWS, age=age)), encoding="utf-8")
    with tab() as opened:
        opened.open(page)
        shown = opened.evaluate("document.querySelector('.stale').textContent")
        assert (text in shown, bool(shown)) == (True, bool(text))


@pytest.mark.slow
def test_live_page_of_a_finished_run_does_not_age(tmp_path, tab):
    page = tmp_path / "run.html"
    page.write_text(html(made(ROWS, None, age=3e5)), encoding="utf-8")
    with tab() as opened:
        opened.open(page)
        assert opened.evaluate("document.querySelector('.stale')") is None
