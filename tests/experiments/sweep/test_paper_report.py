"""Statistics over seeds, reports of made-up and of trained results, and the flags of the command."""

import json

import numpy as np
import pytest
from absl import flags

from experiments.focal_paper.focal_ablation import PAPER_REPORT
from experiments.sweep import paper_report, results_io
from experiments.sweep.paper_report import SweepResults
from segjax.configs import focal_ablation as config
from segjax.configs import rare_class
from segjax.reporting import as_markdown, write_report

EMPTY = PAPER_REPORT._replace(sections=lambda _: ())


@pytest.fixture
def results(made_up):
    """Returns results in which γ = 5 diverges; the others have average precision 0.25, with seed 1 0.75."""
    return made_up(config, lambda cell: None if cell.config.objective.gamma == 5 else 0.25 + 0.5 * cell.config.seed)


def row_of(results, gamma):
    return next(row for row in results.rows() if row["objective.gamma"] == gamma)


def test_statistics_of_a_row(results):
    row = row_of(results, 2.0)
    assert len(results.for_row(row)) == 2
    assert results.score(row, "average_precision").values == (0.25, 0.75)
    assert results.average_precision(row) == 0.5
    assert results.diverged(row) == 0
    assert results.curves(row, "average_precision") == ([1, 2, 3, 4], [[0, 0, 0.25, 0.25], [0, 0, 0.75, 0.75]])


def test_statistics_of_a_diverged_row(results):
    row = row_of(results, 5.0)
    assert results.score(row, "average_precision") == ((), 2, 2)
    assert results.average_precision(row) == -np.inf
    assert results.diverged(row) == 2
    assert results.curves(row, "average_precision") == ([], [])


def test_statistics_with_a_missing_seed(results):
    row = row_of(results, 2.0)
    (cell,) = (cell for cell in results.cells if cell.changes == {**row, "seed": 1})
    del results.by_cell[cell.name]
    score = results.score(row, "average_precision")
    assert (score.values, score.missing) == ((0.25,), 1)


def test_build_report_facts(results, tmp_path):
    facts = paper_report.build_report(EMPTY, results, "road_debris", "cpu").facts
    diverged = sum(result["status"] == "diverged" for result in results.by_cell.values())
    assert facts["cells"] == f"{len(results.cells)} of {len(results.cells)} finished, {diverged} diverged"
    assert facts["seeds"] == [0, 1]
    assert facts["run"] == "300 steps of batch 8, 96×128 pixels, U-Net of width 8 and depth 3"
    assert {"command", "commit", "device", "versions", "time"} <= facts.keys()
    empty = SweepResults(results.cells, tmp_path / "empty")
    facts = paper_report.build_report(EMPTY, empty, "road_debris", "cpu").facts
    assert facts["cells"] == f"0 of {len(results.cells)} finished, 0 diverged"


@pytest.mark.slow
def test_report_of_a_trained_sweep(trained_sweep, tmp_path):
    cells, workdir, _ = trained_sweep
    results = SweepResults(cells, workdir)
    report = paper_report.build_report(EMPTY, results, "road_debris", "smoke")
    assert report.facts["cells"] == "3 of 3 finished, 1 diverged"
    write_report(report, tmp_path, "tiny", results_io.cells_as_json(cells, results.by_cell))
    assert results_io.import_results(cells, tmp_path / "other", tmp_path / "tiny.json") == 3
    assert SweepResults(cells, tmp_path / "other").by_cell == results.by_cell
    assert [cell["status"] for cell in json.loads((tmp_path / "tiny.json").read_text())["data"]["cells"]] == [
        *("done", "done", "diverged")
    ]


def test_given_flags():
    values = flags.FlagValues()
    flags.DEFINE_multi_integer("seed", None, "", flag_values=values)
    flags.DEFINE_string("workdir", "runs", "", flag_values=values)
    flags.DEFINE_integer("steps", None, "", flag_values=values)
    values(["program", "--seed=0", "--seed=1", "--steps=8"])
    assert paper_report.given_flags(values) == ["--steps=8", "--seed=0", "--seed=1"]


def test_make_cells_with_other_steps_and_seeds():
    cells = paper_report.make_cells(config, "smoke", "road_debris", steps=8, seeds=(3,))
    assert {cell.config.seed for cell in cells} == {3}
    assert {(cell.config.training.steps, cell.config.training.evaluate_every) for cell in cells} == {(8, 2)}


def test_every_data_set_has_a_description():
    assert set(rare_class.DATA) <= paper_report.DATA.keys()


def test_report_of_json_equals_the_report_of_the_results(results, tmp_path):
    report = paper_report.build_report(PAPER_REPORT, results, "road_debris", "cpu")
    data = results_io.cells_as_json(results.cells, results.by_cell)
    (written, *_) = write_report(report, tmp_path / "report", "focal_ablation_road_debris", data)
    again = paper_report.report_of_json(PAPER_REPORT, written.with_suffix(".json"))
    assert as_markdown(again, "r") == as_markdown(report, "r")
    assert [[one.content for one in section.pictures] for section in again.sections] == [
        [one.content for one in section.pictures] for section in report.sections
    ]


def test_report_of_json_keeps_the_number_of_unfinished_cells(results, tmp_path):
    results.by_cell.popitem()
    report = paper_report.build_report(EMPTY, results, "road_debris", "cpu")
    data = results_io.cells_as_json(results.cells, results.by_cell)
    (written, *_) = write_report(report, tmp_path / "report", "focal_ablation_road_debris", data)
    again = paper_report.report_of_json(EMPTY, written.with_suffix(".json"))
    assert again.facts["cells"] == report.facts["cells"]
    assert again.facts["cells"].startswith(f"{len(results.cells) - 1} of {len(results.cells)} finished")
