"""Selection of a table's cells, and reading of the finished ones; nothing is trained."""

import json
from types import SimpleNamespace

import pytest
from absl import app

from experiments.sweep import table_rows
from segjax.configs import camvid_unet_recipe
from segjax.training import defaults

ROWS = {"plain": {}, "with more": {"model.width": 8}}


@pytest.fixture
def selected(monkeypatch, tmp_path):
    """Returns `selected(**options)`: (row, seed, width) of the cells that `run_cells` runs."""
    ran = []
    monkeypatch.setattr(table_rows.grid, "run", lambda cells, *_, **__: ran.extend(cells))

    def run(**options):
        options = SimpleNamespace(**({"row": None, "seed": [0, 1], "only_table": False} | options))
        table_rows.run_cells(options, ROWS, defaults(), tmp_path, None, None, None)
        return [(cell.row, cell.config.seed, cell.config.model.width) for cell in ran]

    return run


def test_run_cells_runs_all_rows_of_a_seed_before_the_next(selected):
    width = defaults().model.width
    assert selected() == [("plain", 0, width), ("with more", 0, 8), ("plain", 1, width), ("with more", 1, 8)]


def test_run_cells_selects_rows_and_seeds(selected):
    assert selected(row=["with more"], seed=[7]) == [("with more", 7, 8)]


def test_run_cells_with_only_table_runs_nothing(selected):
    assert selected(only_table=True) == []


def test_run_cells_names_an_unknown_row(selected):
    with pytest.raises(app.UsageError, match="--row=nothing is not a row; the rows are plain; with more"):
        selected(row=["plain", "nothing"])


def test_finished_cells_in_the_order_of_the_rows(tmp_path):
    for row, seed in (("with more", 0), ("plain", 1), ("plain", 0), ("gone", 0), (None, 0)):
        (tmp_path / f"{row},seed={seed}").mkdir()
        result = {"row": row, "seed": seed, "steps": 3, "columns": {"mean_iou": 0.5}, "classes": ["a"]}
        if row is None:
            result = {"status": "diverged"}
        (tmp_path / f"{row},seed={seed}" / "cell.json").write_text(json.dumps(result | {"provenance": {}}))
    cells = table_rows.finished_cells(tmp_path, ROWS)
    assert [(cell["row"], cell["seed"]) for cell in cells] == [("plain", 0), ("plain", 1), ("with more", 0)]
    assert list(cells[0]) == ["row", "seed", "steps", "mean_iou", "classes", "provenance"]


def test_shortened_keeps_the_phases():
    config = table_rows.shortened(camvid_unet_recipe.get_config(), 7)
    assert (config.training.steps, config.training.evaluate_every) == (7, 7)
    assert config.training.checkpoint_every <= 7
    assert [length for _, length, _ in config.training.phases] == [2, 2, 3]
    assert table_rows.shortened(camvid_unet_recipe.get_config(), None) == camvid_unet_recipe.get_config()


def test_damaged_cell_of_a_table_is_named(tmp_path, misread):
    (tmp_path / "a").mkdir()
    result = {"row": "plain", "seed": 0, "steps": 3, "columns": {}, "classes": ["a"], "provenance": {}}
    (tmp_path / "a" / "cell.json").write_text(json.dumps(result))
    returned = misread(tmp_path / "a" / "cell.json", lambda: table_rows.finished_cells(tmp_path, ROWS))
    assert not {"empty", "half", "null", "without seed", "folder"} & returned
