"""The tables of the γ × α grid from made-up results, and the command with two processes."""

import csv
import functools
import io
import json
import shlex

import cv2
import pytest

from experiments.focal_paper import focal_ablation
from segjax.configs import focal_ablation as config

HOWTO = "howto/reproduce_a_table.md"
GAMMA, ALPHA = focal_ablation.GAMMA, focal_ablation.ALPHA


@pytest.fixture
def results(made_up, monkeypatch):
    """Returns results whose AP is highest at α = 0.9 for γ = 0, and at a lower α for a higher γ."""
    places = {gamma: (0.9, 0.75, 0.75, 0.5, 0.5, 0.25, 0.1)[i] for i, gamma in enumerate(config.GAMMAS)}

    def precision_of(cell):
        gamma = cell.changes[GAMMA]
        return 0.5 + 0.05 * gamma * (gamma <= 2) - abs(cell.changes[ALPHA] - places[gamma])

    monkeypatch.setattr(focal_ablation, "_examples", lambda *_: ())  # there are no checkpoints
    return made_up(config, precision_of)


def test_sections_best_alpha_of_each_gamma(results):
    trap, table_1a, table_1b, grid = focal_ablation.sections(results)
    (best,) = table_1b.tables
    assert [row[:2] for row in best.rows] == [
        ("0", "0.9"),
        ("0.1", "0.75"),
        ("0.2", "0.75"),
        ("0.5", "0.5"),
        ("1", "0.5"),
        ("2", "0.25"),
        ("5", "0.1"),
    ]
    assert [row[-1] for row in best.rows] == [f"{ap} %" for ap in (31.1, 31.4, 31.9, 32.9, 33.7, 34.0, 32.2)]
    assert table_1b.text.startswith("The best α falls as γ rises: 0.9, 0.75,")
    assert "The best γ is 2, average precision 0.600" in table_1b.text
    (by_alpha,) = table_1a.tables
    assert [row[0] for row in by_alpha.rows] == ["0.1", "0.25", "0.5", "0.75", "0.9", "0.99", "0.999"]
    assert by_alpha.rows[4][1].mean == pytest.approx(0.5)
    assert [len(table.rows) for section in (trap, grid) for table in section.tables] == [5, 7]


def test_sections_grid_has_scores_and_curves_per_seed(results):
    *_, section = focal_ablation.sections(results)
    (grid,) = section.pictures
    assert (len(grid.rows), len(grid.columns), len(grid.cells)) == (7, 9, 57)
    assert grid.seeds == ["0", "1"]
    cell = grid.cells[grid.rows.index("2"), grid.columns.index("0.25")]
    assert cell.scores["average precision"] == pytest.approx([0.6, 0.6])
    assert cell.curves["average precision"] == ([1, 2, 3, 4], [pytest.approx([0, 0, 0.6, 0.6])] * 2)
    assert "best IoU" not in cell.curves  # it was not logged
    assert cell.notes == ["", ""]
    (row,) = (row for row in section.tables[0].rows if row[0] == "2")
    assert grid.cells.keys() >= {(0, 2), (6, 0)}
    assert (0, 0) not in grid.cells  # α = 0.01 is not run for γ = 0
    assert row[4].mean == cell.mean("average precision")


def test_sections_grid_names_diverged_and_missing_seeds(made_up, monkeypatch):
    monkeypatch.setattr(focal_ablation, "_examples", lambda *_: ())
    results = made_up(config, lambda cell: None if cell.config.seed == 1 else 0.5)
    (first,) = (c for c in results.cells if c.changes[GAMMA] == 2 and c.changes[ALPHA] == 0.25 and c.config.seed == 0)
    del results.by_cell[first.name]
    (grid,) = focal_ablation.sections(results)[-1].pictures
    cell = grid.cells[grid.rows.index("2"), grid.columns.index("0.25")]
    assert cell.notes == ["not finished", "diverged at step 1"]
    assert cell.scores["average precision"] == [None, None]
    assert cell.curves == {}


def test_best_alphas_prefers_rows_with_more_seeds(results):
    grid = [row for row in results.rows() if row["model.prior"]]
    lucky = next(row for row in grid if row[GAMMA] == 2 and row[ALPHA] == 0.25)
    (cell,) = (c for c in results.cells if c.changes == {**lucky, "seed": 1})
    del results.by_cell[cell.name]
    assert focal_ablation.best_alphas(results, grid)[2.0][ALPHA] == 0.1


def test_sections_of_an_incomplete_grid_conclude_nothing(made_up, monkeypatch):
    monkeypatch.setattr(focal_ablation, "_examples", lambda *_: ())
    results = made_up(config, lambda cell: None if cell.changes[GAMMA] == 5 else 0.5)
    for cell in results.cells:
        if cell.changes[GAMMA] == 2:
            del results.by_cell[cell.name]
    _, _, table_1b, _ = focal_ablation.sections(results)
    assert table_1b.text == "The grid is not complete yet."
    assert [row[0] for row in table_1b.tables[0].rows] == ["0", "0.1", "0.2", "0.5", "1"]


def test_sections_trap_without_and_with_the_prior(results):
    (table,) = focal_ablation.sections(results)[0].tables
    assert [row[0] for row in table.rows] == ["CE", "balanced CE", "focal", "CE, prior bias", "focal, prior bias"]
    assert [row[3] for row in table.rows] == [None, None, None, "0.01", "0.01"]


@pytest.mark.slow
def test_commands_of_the_howto_train_in_two_processes_and_write_the_report(tmp_path, python, page):
    """Runs docs/howto/reproduce_a_table.md, with the smallest preset and one step per cell."""
    changes = (("runs/focal_ablation", str(tmp_path)), ("--preset=cpu", "--preset=smoke"))
    blocks = [(language, functools.reduce(lambda t, c: t.replace(*c), changes, text)) for language, text in page(HOWTO)]
    (train, report), (read,) = ([text for one, text in blocks if one == language] for language in ("bash", "python"))
    done = python(*shlex.split(train)[1:], "--steps=1")
    assert done.returncode == 0, done.stderr
    assert "5/5" in done.stdout
    name = "focal_ablation_road_debris"
    table = (tmp_path / f"{name}.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["loss"] for row in rows] == ["CE", "balanced CE", "focal", "CE, prior bias", "focal, prior bias"]
    assert all(0 <= float(row["pixel accuracy"]) <= 1 for row in rows)
    assert len(json.loads((tmp_path / f"{name}.json").read_text())["data"]["cells"]) == 5
    picture = cv2.imread(str(tmp_path / f"{name}_examples.png"))
    assert picture.shape == (20 + 3 * 200 + 20, 4 + 7 * 244, 3)
    page = (tmp_path / f"{name}.html").read_text()
    assert (page.count("<img"), page.count('<figure class="chart"')) == (1, 1)
    again = python(*shlex.split(report)[1:], "--steps=1")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / f"{name}.csv").read_text() == table
    names = {}
    exec(compile(read, HOWTO, "exec"), names)
    assert names["ap_per_loss"] == {row["loss"]: row["average precision"] for row in rows}
    assert len(names["cells"]) == 5
