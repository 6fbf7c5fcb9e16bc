import io
import json
from types import SimpleNamespace

import pytest
import rich.console
from absl import app
from ml_collections import ConfigDict

from experiments.sweep import grid, table_rows
from experiments.sweep.table_rows import Row
from segjax.training import ConfigError, defaults
from segjax.training.config import leaves

ROWS = {row.name: row for row in (Row("plain", {}), Row("with more", {"model.width": 8}))}


@pytest.fixture
def asked(monkeypatch):
    """`asked(options)`: the (row, seed, steps) that `run_cells` runs."""
    ran = []
    monkeypatch.setattr(
        table_rows, "run_cell", lambda config, row, *_: ran.append((row.name, config.seed, config.steps))
    )

    def run(**changes):
        options = SimpleNamespace(**({"row": None, "seed": [0, 1], "steps": None, "only_table": False} | changes))

        def make(row, seed, steps):
            return ConfigDict({"seed": seed, "steps": steps})

        table_rows.run_cells(options, ROWS, make, None, None, None, None)
        return ran

    return run


def test_all_rows_of_a_seed_come_before_those_of_the_next(asked):
    assert asked(steps=3) == [("plain", 0, 3), ("with more", 0, 3), ("plain", 1, 3), ("with more", 1, 3)]


def test_rows_and_seeds_are_chosen_by_name(asked):
    assert asked(row=["with more"], seed=[7]) == [("with more", 7, None)]


def test_only_the_table_runs_nothing(asked):
    assert asked(only_table=True) == []


def test_a_cell_of_another_config_is_neither_kept_nor_run_over(tmp_path):
    folder = table_rows.cell_folder(tmp_path, ROWS["plain"], 0)
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text("{}")
    config = defaults()
    (folder / "config.json").write_text(json.dumps(leaves(config)))
    assert table_rows.run_cell(config, ROWS["plain"], tmp_path, None, None, None) is None
    config.training.steps += 1
    with pytest.raises(ConfigError, match=r"plain/0 was run with config\.training\.steps = "):
        table_rows.run_cell(config, ROWS["plain"], tmp_path, None, None, None)


def test_a_cell_that_another_process_runs_is_left_to_it(tmp_path):
    console = rich.console.Console(file=io.StringIO())
    with grid.locked(table_rows.cell_folder(tmp_path, ROWS["plain"], 0)):
        table_rows.run_cell(defaults(), ROWS["plain"], tmp_path, console, None, None)
    assert console.file.getvalue() == "plain, seed 0: another process runs it\n"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_cells_of_rows_that_are_gone_are_left_out(tmp_path):
    for name in ("plain", "gone"):
        (tmp_path / name / "0").mkdir(parents=True)
        (tmp_path / name / "0" / "cell.json").write_text(json.dumps({"row": name, "seed": 0}))
    assert [cell["row"] for cell in table_rows.cells(tmp_path, ROWS)] == ["plain"]


def test_a_row_that_is_none_is_said_with_those_there_are(asked):
    with pytest.raises(app.UsageError, match="no row is called nothing; the rows are plain; with more"):
        asked(row=["plain", "nothing"])
