"""The confusion matrix and the reliability diagram: their data, and in a browser their values by pointer and keys."""

import json
import math
import re

import pytest

from segjax.reporting import ConfusionMatrix, ReliabilityDiagram, Report, Section, html

MATRIX = ConfusionMatrix(
    "confusion", "Percent of each row.", ("road", "car", "a|b"), [[30, 10, 0], [0, 50, 0], [0] * 3]
)
BINS = {"edges": [0, 0.5, 0.75, 1], "confidence": [math.nan, 0.7, 0.9], "accuracy": [math.nan, 0.5, 1.0]}
RELIABILITY = ReliabilityDiagram("reliability", "Accuracy per confidence.", **BINS, count=[0, 1000, 3000])


def report(*diagrams):
    return html(Report("Diagrams", "", (Section("Diagrams", "", (), diagrams),), {}))


def test_confusion_matrix_data_and_picture():
    assert MATRIX.data() == {"classes": ["road", "car", "a|b"], "counts": [[30, 10, 0], [0, 50, 0], [0, 0, 0]]}
    assert MATRIX.content.startswith(b"\x89PNG")


def test_reliability_diagram_data_of_an_empty_bin_is_none():
    expected = {"edges": [0, 0.5, 0.75, 1], "confidence": [None, 0.7, 0.9], "accuracy": [None, 0.5, 1]}
    assert RELIABILITY.data() == expected | {"count": [0, 1000, 3000]}
    assert RELIABILITY.content.startswith(b"\x89PNG")


def test_html_embeds_the_data_of_diagrams_and_no_picture():
    page = report(MATRIX, RELIABILITY)
    data = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    assert data == [MATRIX.data(), RELIABILITY.data()]
    assert "<img" not in page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("diagrams") / "page.html"
    path.write_text(report(MATRIX, RELIABILITY), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def opened(page, tab):
    with tab() as found:
        found.open(page)
        yield found
        assert found.console == []
        assert {url for url in found.requests if not url.startswith("data:")} == {page.as_uri()}


def shown(opened, name):
    """Returns the lines of the box with the values, or None if it is hidden."""
    box = f"document.querySelector('[data-name={name}] .values')"
    return opened.evaluate(f"{box}.hidden ? null : [...{box}.children].map(line => line.textContent)")


@pytest.mark.slow
def test_confusion_matrix_pointer_shows_pixels_and_shares(opened):
    opened.move("[data-name=confusion] .cell:nth-of-type(2)")
    expected = ["road predicted as car", "10 pixels", "25.00 % of the pixels of road"]
    assert shown(opened, "confusion") == [*expected, "16.67 % of the pixels predicted as car"]
    opened.move("h1")
    assert shown(opened, "confusion") is None


@pytest.mark.slow
def test_confusion_matrix_cells_have_their_percent(opened):
    texts = opened.evaluate("[...document.querySelectorAll('[data-name=confusion] text')].map(one => one.textContent)")
    assert [text for text in texts if "%" in text] == ["75.00 %", "25.00 %", "0.00 %", "0.00 %", "100.00 %", "0.00 %"]


@pytest.mark.slow
def test_confusion_matrix_keys_move_from_cell_to_cell(opened):
    opened.evaluate("document.querySelector('[data-name=confusion] .plot').focus()")
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowLeft"):
        opened.press(key)
        seen.append(shown(opened, "confusion")[0].replace(" predicted as ", ">"))
    assert seen == ["road>road", "road>car", "car>car", "a|b>car", "a|b>car", "a|b>road"]
    assert shown(opened, "confusion")[2] == "no pixel is of a|b"
    opened.press("Escape")
    assert shown(opened, "confusion") is None


@pytest.mark.slow
def test_reliability_diagram_shows_the_values_of_a_bin(opened):
    opened.evaluate("document.querySelector('[data-name=reliability] .plot').focus()")
    opened.press("ArrowRight")
    assert shown(opened, "reliability") == ["confidence 0 to 0.5", "no pixel"]
    opened.press("ArrowRight")
    expected = ["confidence 0.5 to 0.75", "accuracy 0.5", "mean confidence 0.7", "gap −0.200"]
    assert shown(opened, "reliability") == [*expected, "1,000 pixels, 25.00 %"]
    opened.move("[data-name=reliability] .plot", 0.95, 0.5)
    assert shown(opened, "reliability")[0] == "confidence 0.75 to 1"
    opened.move("h1")


@pytest.mark.slow
def test_diagrams_fit_the_window_and_open_large(opened):
    for width in (390, 768, 1600):
        opened.resize(width, 900)
        opened.wait(
            "[...document.querySelectorAll('.diagram .plot')].every(plot =>"
            " plot.querySelector('svg').viewBox.baseVal.width === plot.clientWidth)"
        )
        assert opened.evaluate("document.documentElement.scrollWidth") == width
    opened.click("[data-name=reliability] [aria-label=large]")
    opened.wait("document.querySelector('.large .plot').clientWidth > 1200")
    assert opened.evaluate("document.querySelector('.large svg').clientHeight") < 900
    opened.press("Escape")
    opened.resize(1280, 900)
