"""The data of charts, and a page of charts in a browser: pointer, keys, legend, scale and theme."""

import json
import math
import re

import numpy as np
import pytest

from segjax.reporting import Chart, Report, Section, html
from segjax.reporting.charts import MOST_POINTS, extremes, running_mean

STEPS = list(range(10, 410, 10))
LOSS = [1 / step for step in STEPS]


def chart(lines, **options):
    return Chart("loss", "Loss of the batches.", lines, "Loss", "step", **options)


def test_chart_data_mean_and_band_over_seeds():
    (line,) = chart({"AP": ([1, 2, 3], [[0.25, 0.5, None], [0.75, None, math.nan]])}).data()["lines"]
    assert line == {
        "name": "AP",
        "x": [1, 2, 3],
        "y": [0.5, 0.5, None],
        "low": [0.25, 0.5, None],
        "high": [0.75, 0.5, None],
    }


def test_chart_data_without_seeds_has_no_points():
    assert chart({"AP": ([1, 2], [])}).data()["lines"] == [{"name": "AP", "x": [], "y": []}]


def test_chart_data_of_a_long_line_keeps_its_spike_and_the_running_mean():
    values = np.random.default_rng(0).random(50_000)
    values[31_234] = 9
    (line,) = chart({"loss": (range(50_000), [values.tolist()])}, smoothed=True).data()["lines"]
    assert len(line["x"]) <= MOST_POINTS
    assert line["y"][line["x"].index(31_234)] == 9
    smooth = running_mean(np.ma.masked_invalid(values), 2500)
    np.testing.assert_allclose(line["smooth"], smooth[line["x"]], rtol=1e-5)


def test_chart_data_of_a_short_line_is_not_smoothed():
    assert "smooth" not in chart({"loss": ([1, 2], [[0.5, 0.25]])}, smoothed=True).data()["lines"][0]


def test_extremes_of_a_stretch_of_nan_are_in_the_range():
    values = np.full(100, np.nan)
    values[:3] = 1
    assert extremes(values, 10).max() < 100


def test_chart_content_is_a_png_file():
    assert chart({"loss": (STEPS, [LOSS])}).content.startswith(b"\x89PNG")


def test_html_embeds_the_data_of_a_chart_and_no_picture():
    evil = "</script><script>alert(1)</script>"
    page = html(Report("", "", (Section("", "", (), (chart({evil: (STEPS, [LOSS])}),)),), {}))
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', page)
    assert json.loads(data)["lines"][0]["name"] == evil
    assert evil not in page
    assert "<img" not in page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    curves = {"loss": (STEPS, [LOSS]), "evaluation": ([100, 400], [[0.5, 0.25]])}
    seeds = {"AP": ([100, 400], [[0.25, 0.5], [0.5, 0.75]])}
    charts = (chart(curves, smoothed=True), chart(seeds, y_range=(0, 1))._replace(name="ap", title="AP"))
    path = tmp_path_factory.mktemp("charts") / "page.html"
    path.write_text(html(Report("Charts", "", (Section("Training", "", (), charts),), {})), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def opened(page, tab):
    with tab() as found:
        found.open(page)
        yield found
        assert found.console == []
        assert {url for url in found.requests if not url.startswith("data:")} == {page.as_uri()}


BOX = '[data-name="loss"] .values'


def shown(opened, box=BOX):
    """Returns the lines of the box with the values, or None if it is hidden."""
    return opened.evaluate(
        f"(box => box.hidden ? null : [box.querySelector('strong').textContent,"
        f" ...[...box.querySelectorAll('td:last-child')].map(cell => cell.textContent)])"
        f"(document.querySelector('{box}'))"
    )


@pytest.mark.slow
def test_pointer_shows_step_and_values_and_marks_the_other_charts(opened):
    opened.move('[data-name="loss"] .plot .line', 0)
    opened.move('[data-name="loss"] .plot .line', 1)
    assert shown(opened) == ["step 400", "0.0025 (mean 0.002532)", "0.25"]
    assert opened.evaluate("document.querySelectorAll('[data-name=ap] .plot g circle').length") == 1
    assert shown(opened, '[data-name="ap"] .values') is None
    opened.move("h1")
    assert shown(opened) is None


@pytest.mark.slow
def test_pointer_shows_the_range_over_seeds(opened):
    opened.move('[data-name="ap"] .plot .line', 0)
    assert shown(opened, '[data-name="ap"] .values') == ["step 100", "0.375 (0.25 to 0.5)"]


@pytest.mark.slow
def test_keys_move_from_value_to_value(opened):
    opened.evaluate("document.querySelector('[data-name=loss] .plot').focus()")
    seen = []
    for key in ("Home", "ArrowRight", "End", "ArrowLeft"):
        opened.press(key)
        seen.append(shown(opened)[0])
    assert seen == ["step 10", "step 20", "step 400", "step 390"]
    opened.press("Escape")
    assert shown(opened) is None


@pytest.mark.slow
def test_legend_hides_a_line(opened):
    count = "document.querySelectorAll('[data-name=loss] .plot path.line').length"
    opened.click('[data-name="loss"] .legend button:nth-child(2)')
    assert opened.evaluate(count) == 1
    opened.click('[data-name="loss"] .legend button:nth-child(2)')
    assert opened.evaluate(count) == 2


@pytest.mark.slow
def test_log_scale_is_offered_for_positive_values_without_a_range(opened):
    ticks = "[...document.querySelectorAll('[data-name=loss] .plot text')].map(text => text.textContent)"
    before = opened.evaluate(ticks)
    opened.click('[data-name="loss"] h3 button')
    assert "0.01" in opened.evaluate(ticks)
    opened.click('[data-name="loss"] h3 button')
    assert opened.evaluate(ticks) == before
    assert opened.evaluate("document.querySelector('[data-name=ap] h3 [aria-pressed]')") is None


@pytest.mark.slow
def test_page_is_dark_as_the_system_or_as_chosen(page, tab):
    with tab(dark=True) as opened:
        opened.open(page)
        ground = "getComputedStyle(document.body).backgroundColor"
        assert opened.evaluate(ground) == "rgb(20, 23, 27)"
        opened.click(".theme")
        assert opened.evaluate(ground) == "rgb(255, 255, 255)"
        opened.open(page)  # the choice is kept
        assert opened.evaluate(ground) == "rgb(255, 255, 255)"


@pytest.mark.slow
def test_charts_fit_the_window(opened):
    for width in (390, 768, 1600):
        opened.resize(width, 900)
        opened.wait(
            "[...document.querySelectorAll('.plot')].every(plot =>"
            " plot.querySelector('svg').viewBox.baseVal.width === plot.clientWidth)"
        )
        assert opened.evaluate("document.documentElement.scrollWidth") == width
    opened.resize(1280, 900)


@pytest.fixture(scope="module")
def threshold(tmp_path_factory, tab):
    lines = {"precision": ([0.0, 0.25, 0.5], [[0.25, 0.5, 1.0]]), "recall": ([0.0, 0.25, 0.5], [[1.0, 0.75, 0.5]])}
    curve = Chart("threshold", "Scores.", lines, "Threshold", "probability", x_range=(0, 1), slider=0.25)
    path = tmp_path_factory.mktemp("threshold") / "page.html"
    path.write_text(html(Report("", "", (Section("Threshold", "", (), (curve,)),), {})), encoding="utf-8")
    with tab() as found:
        found.open(path)
        yield found
        assert found.console == []


def reading(opened):
    return opened.evaluate("[...document.querySelectorAll('.slider span')].map(span => span.textContent)")


@pytest.mark.slow
def test_slider_shows_the_values_at_its_threshold(threshold):
    assert reading(threshold) == ["probability 0.25", "precision 0.5", "recall 0.75"]
    threshold.click(".slider input", 0.99)
    assert reading(threshold) == ["probability 0.5", "precision 1", "recall 0.5"]
    threshold.press("ArrowLeft")
    threshold.press("ArrowLeft")
    assert reading(threshold) == ["probability 0", "precision 0.25", "recall 1"]


@pytest.mark.slow
def test_chart_opens_large_and_closes(threshold):
    width = "document.querySelector('.plot').clientWidth"
    before = threshold.evaluate(width)
    threshold.click(".chart h3 [aria-label=large]")
    assert threshold.evaluate(width) > 1.5 * before
    threshold.press("Escape")
    assert threshold.evaluate(width) == before
