"""The grid of a sweep: its data, its heat map, and the page to explore it in a browser."""

import json
import math
import re

import cv2
import numpy as np
import pytest

from segjax.reporting import Chart, Grid, GridCell, Report, Section, as_markdown, html

PIXEL = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes()


def cell(ap, iou, **options):
    curves = {"AP": ([10, 20], [[value / 2, value] for value in ap if value is not None])}
    return GridCell({"AP": ap, "IoU": iou}, curves, **options)


CELLS = {
    (0, 0): cell([0.25, 0.75], [0.5, 0.5]),
    (0, 1): cell([0.75, 0.5], [0.25, 0.25], pictures={"seed 0": PIXEL}),
    (1, 1): cell([0.125, None], [0.75, None], notes=["", "diverged at step 3"]),
}
GRID = Grid("grid", "The best is framed.", "α", "γ", ("0.1", "0.5"), ("0", "2"), ("0", "1"), CELLS, ("AP", "IoU"))


def test_grid_data_of_a_cell():
    first, second, third = GRID.data()["cells"]
    assert (first["row"], first["column"], third["row"], third["column"]) == (0, 0, 1, 1)
    assert first["values"] == [[0.25, 0.75], [0.5, 0.5]]
    assert (first["mean"], first["std"]) == ([0.5, 0.5], [0.353553, 0])
    line, without_curve = first["lines"]
    assert (line["x"], line["y"], line["low"], without_curve) == ([10, 20], [0.25, 0.5], [0.125, 0.25], None)
    assert second["pictures"][0][1].startswith("data:image/png;base64,")


def test_grid_data_of_a_cell_with_a_diverged_seed():
    third = GRID.data()["cells"][2]
    assert (third["values"][0], third["mean"][0], third["std"][0]) == ([0.125, None], 0.125, None)
    assert third["notes"] == ["", "diverged at step 3"]


def test_grid_cell_without_a_value_has_no_mean():
    empty = GridCell({"AP": [None, math.nan], "IoU": [None, None]})
    assert math.isnan(empty.mean("AP"))
    assert GRID._replace(cells={(0, 0): empty}).data()["cells"][0]["mean"] == [None, None]


def test_grid_content_is_the_heat_map_of_the_first_score():
    assert GRID.title == "AP, mean ± std of 2 seed(s)"
    assert cv2.imdecode(np.frombuffer(GRID.content, np.uint8), cv2.IMREAD_COLOR).shape[2] == 3
    swapped = GRID._replace(scores=("IoU", "AP"))
    assert GRID.content != swapped.content


def test_as_markdown_links_the_heat_map():
    assert "![The best is framed.](report_grid.png)" in as_markdown(report(), "report")


def report(grid=GRID):
    return Report("A sweep", "", (Section("Grid", "", (), (grid,)),), {})


def test_html_of_a_report_without_a_grid_has_no_script_of_grids():
    chart = Chart("loss", "", {"loss": ([1], [[0.5]])}, "Loss", "step")
    without, having = (html(Report("", "", (Section("", "", (), (one,)),), {})) for one in (chart, GRID))
    assert "class Explorer" not in without
    assert "class Explorer" in having


def test_html_embeds_the_data_of_a_grid():
    evil = "</script><b>"
    page = html(report(GRID._replace(x=evil)))
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', page)
    assert json.loads(data)["x"] == evil
    assert evil not in page


@pytest.fixture
def opened(tmp_path, tab):
    page = tmp_path / "page.html"
    page.write_text(html(report()), encoding="utf-8")
    with tab() as found:
        found.open(page)
        yield found
        assert found.console == []
        assert {url for url in found.requests if not url.startswith("data:")} == {page.as_uri()}


FIRST, SECOND, THIRD = (f".cells tbody tr:nth-child({i}) td:nth-child({j})" for i, j in ((1, 2), (1, 3), (2, 3)))


def comparison(opened):
    """Returns the head and the rows of the table of the shown cells, as text."""
    rows = (
        "[...document.querySelectorAll('.comparison tr')].map(row => [...row.children].map(cell => cell.textContent))"
    )
    return [[text.replace("\xa0", " ") for text in row] for row in opened.evaluate(rows)]


def names(opened):
    """Returns the names of the shown cells."""
    return [text.removesuffix("×") for text in comparison(opened)[0][1:3]]


def focused(opened):
    return opened.evaluate("document.activeElement.getAttribute('aria-label')")


@pytest.mark.slow
def test_grid_shows_the_best_cell_at_first(opened):
    assert names(opened) == ["A γ = 0, α = 0.5"]
    assert opened.evaluate("document.querySelector('.cells .star b').textContent") == "0.625"
    assert opened.evaluate("document.querySelectorAll('.cells .framed').length") == 2
    assert opened.evaluate("document.querySelectorAll('.cells .missing').length") == 1


@pytest.mark.slow
def test_pointer_on_a_cell_shows_its_scores_seeds_curve_and_pictures(opened):
    opened.move(SECOND)
    assert comparison(opened) == [
        ["", "A γ = 0, α = 0.5"],
        ["AP", "0.625 ± 0.177"],
        ["seed 0", "0.750"],
        ["seed 1", "0.500"],
        ["IoU", "0.250 ± 0.000"],
    ]
    assert opened.evaluate("document.querySelectorAll('.details path.line').length") == 1
    assert opened.evaluate("document.querySelector('.cells img').alt") == "seed 0"
    opened.move(THIRD)
    assert comparison(opened)[3] == ["seed 1", "diverged at step 3"]
    assert opened.evaluate("document.querySelector('.cells img')") is None
    opened.move("h1")
    assert names(opened) == ["A γ = 0, α = 0.5"]


@pytest.mark.slow
def test_click_pins_a_cell_and_the_pointer_compares_another_with_it(opened):
    opened.click(FIRST)
    opened.move(SECOND)
    assert comparison(opened) == [
        ["", "A γ = 0, α = 0.1×", "B γ = 0, α = 0.5", "B − A"],
        ["AP", "0.500 ± 0.354", "0.625 ± 0.177", "+0.125"],
        ["seed 0", "0.250", "0.750", "+0.500"],
        ["seed 1", "0.750", "0.500", "−0.250"],
        ["IoU", "0.500 ± 0.000", "0.250 ± 0.000", "−0.250"],
    ]
    assert opened.evaluate("document.querySelectorAll('.details path.line').length") == 2


@pytest.mark.slow
def test_two_pinned_cells_stay_and_a_third_click_replaces_the_second(opened):
    for place in (FIRST, THIRD):
        opened.click(place)
    opened.move(SECOND)
    assert names(opened) == ["A γ = 0, α = 0.1", "B γ = 2, α = 0.5"]
    opened.click(SECOND)
    assert names(opened) == ["A γ = 0, α = 0.1", "B γ = 0, α = 0.5"]
    opened.click(".comparison button")
    opened.move("h1")
    assert names(opened) == ["A γ = 0, α = 0.5"]
    assert opened.evaluate("document.querySelectorAll('[aria-selected=true]').length") == 1


@pytest.mark.slow
def test_finger_pins_cells(opened):
    opened.resize(390, 844)
    opened.tap(FIRST)
    opened.tap(THIRD)
    assert names(opened) == ["A γ = 0, α = 0.1", "B γ = 2, α = 0.5"]


@pytest.mark.slow
def test_pins_and_score_survive_a_reload(opened, tmp_path):
    opened.click(FIRST)
    opened.click(".scores button:nth-child(2)")
    opened.open(tmp_path / "page.html")
    assert comparison(opened)[:2] == [["", "A γ = 0, α = 0.1×"], ["IoU", "0.500 ± 0.000"]]


@pytest.mark.slow
def test_score_button_shows_another_score(opened):
    opened.click(".scores button:nth-child(2)")
    assert opened.evaluate("document.querySelector('.cells .star b').textContent") == "0.750"
    opened.move(FIRST)
    assert comparison(opened)[1][0] == "IoU"
    assert opened.evaluate("document.querySelectorAll('.details path.line').length") == 0


@pytest.mark.slow
def test_keys_move_over_cells_pin_and_unpin(opened):
    opened.evaluate("document.querySelector('.cells [tabindex=\"0\"]').focus()")
    assert focused(opened) == "γ = 0, α = 0.5: AP 0.625 ± 0.177, best of γ = 0, best of all"
    opened.press("ArrowLeft")
    opened.press("ArrowLeft")  # there is no cell
    assert focused(opened) == "γ = 0, α = 0.1: AP 0.500 ± 0.354"
    opened.press("ArrowDown")  # that cell is not part of the sweep
    assert focused(opened) == "γ = 0, α = 0.1: AP 0.500 ± 0.354"
    opened.press("Enter")
    opened.press("End")
    opened.press("ArrowDown")
    assert focused(opened) == "γ = 2, α = 0.5: AP 0.125, best of γ = 2, diverged at step 3"
    assert names(opened) == ["A γ = 0, α = 0.1", "B γ = 2, α = 0.5"]
    opened.press("Escape")
    assert names(opened) == ["A γ = 2, α = 0.5"]


@pytest.mark.slow
def test_numbers_have_a_contrast_of_4_5_on_every_colour(opened):
    contrast = """(cell => {
        const luminance = colour => colour.match(/[0-9]+/g).slice(0, 3).map(value => value / 255)
            .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
            .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0) + 0.05;
        const {backgroundColor, color} = getComputedStyle(cell), both = [luminance(backgroundColor), luminance(color)];
        return Math.max(...both) / Math.min(...both);
    })"""
    found = f"[...document.querySelectorAll('.cells td[aria-label]')].map(cell => {contrast}(cell))"
    assert min(opened.evaluate(found)) >= 4.5


@pytest.mark.slow
def test_grid_fits_the_window(opened):
    opened.click(FIRST)
    opened.click(THIRD)
    for width in (390, 768, 1600):
        opened.resize(width, 900)
        assert opened.evaluate("document.documentElement.scrollWidth") == width
