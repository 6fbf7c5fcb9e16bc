from types import SimpleNamespace

import pytest
from absl import app
from ml_collections import ConfigDict

from experiments import cells
from experiments.cells import Row

ROWS = {row.name: row for row in (Row("plain", {}), Row("with more", {"model.width": 8}))}


@pytest.fixture
def asked(monkeypatch):
    """`asked(options)`: the (row, seed, steps) that `run_cells` runs."""
    ran = []
    monkeypatch.setattr(cells, "run_cell", lambda config, row, *_: ran.append((row.name, config.seed, config.steps)))

    def run(**changes):
        options = SimpleNamespace(**({"row": None, "seed": [0, 1], "steps": None, "only_table": False} | changes))

        def make(row, seed, steps):
            return ConfigDict({"seed": seed, "steps": steps})

        cells.run_cells(options, ROWS, make, None, None, None, None)
        return ran

    return run


def test_all_rows_of_a_seed_come_before_those_of_the_next(asked):
    assert asked(steps=3) == [("plain", 0, 3), ("with more", 0, 3), ("plain", 1, 3), ("with more", 1, 3)]


def test_rows_and_seeds_are_chosen_by_name(asked):
    assert asked(row=["with more"], seed=[7]) == [("with more", 7, None)]


def test_only_the_table_runs_nothing(asked):
    assert asked(only_table=True) == []


def test_a_row_that_is_none_is_said_with_those_there_are(asked):
    with pytest.raises(app.UsageError, match="no row is called nothing; the rows are plain; with more"):
        asked(row=["plain", "nothing"])
