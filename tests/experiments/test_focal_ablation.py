import csv
import json

import cv2
import pytest

from experiments.focal_ablation import CELLS, COLUMNS, cell_config
from segjax.training import validate


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_every_row_has_a_valid_config_that_differs_in_loss_and_prior_alone(cell):
    config, first = cell_config(cell, None), cell_config(CELLS[0], None)
    validate(config)
    config.objective, config.model = first.objective, first.model
    assert config.to_json() == first.to_json()


def test_one_step_of_each_loss_gives_a_table_and_a_picture(tmp_path, python):
    done = python("-m", "experiments.focal_ablation", f"--workdir={tmp_path}", "--steps=1")
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, (tmp_path / "table.md").read_text()):
        assert all(cell.name in text for cell in CELLS)
    with (tmp_path / "table.csv").open() as table:
        header, *rows = csv.reader(table)
    assert tuple(header) == COLUMNS
    assert all(0 <= float(value) <= 1 for row in rows for value in row[4:])
    assert list(json.loads((tmp_path / "table.json").read_text())["cells"]) == [cell.name for cell in CELLS]
    assert cv2.imread(str(tmp_path / "picture.png")).shape == (28 + 3 * 100 * 2, 7 * 132 * 2, 3)
