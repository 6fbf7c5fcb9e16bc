"""The committed sweeps as live pages: each has the numbers of its committed Markdown and works in a browser."""

import importlib

import pytest

from experiments.focal_paper.live_pages import RESULTS, committed_sweeps, live_page
from experiments.sweep.paper_report import report_of_json
from segjax.reporting import as_markdown

GRIDS = [name for name in committed_sweeps() if name.startswith("focal_ablation") and not name.endswith("smoke")]


def test_committed_sweeps_are_those_of_the_reports():
    names = committed_sweeps()
    assert len(GRIDS) == 3
    assert {"focal_ablation_smoke", "focal_star_crackforest", "training_length_road_debris"} <= names.keys()
    assert names["ohem_vs_focal_road_debris_boxes"] == "ohem_vs_focal"


@pytest.mark.parametrize("name", list(committed_sweeps()))
def test_report_of_a_committed_json_has_the_committed_numbers(name):
    module = importlib.import_module(f"experiments.focal_paper.{committed_sweeps()[name]}")
    made = as_markdown(report_of_json(module.PAPER_REPORT, RESULTS / f"{name}.json"), name).splitlines()
    committed = (RESULTS / f"{name}.md").read_text(encoding="utf-8").splitlines()
    numbers = [line for line in committed if line.startswith("| ")]
    assert numbers
    assert set(numbers) <= set(made)
    assert made[made.index("## Provenance") :] == committed[committed.index("## Provenance") :]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(committed_sweeps()))
def test_live_page_fits_a_phone_and_writes_nothing_to_the_console(name, browser):
    seen = browser(live_page(name))
    assert [width for width, view in seen.items() if view["wide"]] == []
    assert all(all(view["images"]) and view["cells"] for view in seen.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_live_page_shows_the_curves_of_two_clicked_cells(name, tmp_path, tab):
    page = tmp_path / "page.html"
    page.write_text(live_page(name), encoding="utf-8")
    with tab() as opened:
        opened.open(page)
        for row in (1, 6):
            opened.click(f".cells tbody tr:nth-child({row}) td:nth-child(6)")
        shown = (
            "[...document.querySelectorAll('.comparison th')].map(cell => cell.textContent.replaceAll('\\xa0', ' '))"
        )
        assert opened.evaluate(shown)[1:4] == ["A γ = 0, α = 0.5×", "B γ = 2, α = 0.5×", "B − A"]
        assert opened.evaluate("document.querySelectorAll('.details path.line').length") == 2
        assert opened.console == []
        assert len([url for url in opened.requests if not url.startswith("data:")]) == 1
