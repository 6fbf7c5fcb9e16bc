"""Pictures of the predictions of cells: their colours, and their way through a result into the report."""

import base64
import json
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from experiments.focal_paper import cell_pictures
from experiments.sweep import paper_report, results_io
from experiments.sweep.paper_report import SweepResults
from experiments.sweep.parallel_cells import RESULT_FILE
from segjax.data.labels import VOID
from segjax.training.checkpoint import FOLDER

GROUND, FOUND, MISSED, FALSE = [40, 44, 52], [0, 158, 115], [240, 228, 66], [86, 180, 233]


def decoded(picture):
    file = np.frombuffer(base64.b64decode(picture["file"]), np.uint8)
    return cv2.cvtColor(cv2.imdecode(file, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_error_map_has_no_colour_on_void():
    assert cell_pictures.error_map(np.array([[1, 0, 1]]), np.array([[VOID, VOID, 0]])).tolist() == [
        [GROUND, GROUND, FALSE]
    ]


@pytest.mark.slow
def test_store_pictures_of_a_trained_sweep_reach_the_grid_of_its_json(trained_sweep, tmp_path):
    cells, workdir, _ = trained_sweep
    cells = cells[:2]  # the third diverges
    shutil.copytree(workdir, tmp_path / "cells")
    results = SweepResults(cells, tmp_path / "cells")
    cell_pictures.store_pictures(results, results.rows())
    stored = [json.loads((tmp_path / "cells" / cell.name / RESULT_FILE).read_text())["picture"] for cell in cells]
    assert [picture["caption"] for picture in stored] == [
        "seed 0: found green, missed yellow, false blue, at p = 0.5"
    ] * 2
    seen = decoded(stored[0])
    assert seen.shape == (64, 96 + 2 + 96, 3)
    assert (seen[:, 96:98] == 255).all()
    colours = np.unique(seen[:, :96].reshape(-1, 3), axis=0).tolist()
    assert all(colour in (GROUND, FOUND, MISSED, FALSE) for colour in colours)
    assert (seen == FOUND).all(-1).sum() + (seen == MISSED).all(-1).sum() > 0  # the truth
    file = tmp_path / "report.json"
    file.write_text(json.dumps({"facts": {}, "data": results_io.cells_as_json(cells, results.by_cell)}))
    read_cells, by_cell, _ = results_io.cells_from_json(file)
    again = SweepResults(read_cells, tmp_path, by_cell)
    grid = paper_report.score_grid(
        again, again.rows(), "objective.gamma", "objective.alpha", name="grid", caption="", names=("γ", "α")
    )
    assert [list(cell.pictures.values()) for cell in grid.cells.values()] == [
        [base64.b64decode(picture["file"])] for picture in stored
    ]


@pytest.fixture
def on_boxes(tmp_path, monkeypatch):
    """Returns results of a detector that detects a box of p = 0.9 and one of p = 0.1; its images have one object."""
    data = SimpleNamespace(box_classes=("debris",), max_boxes=2, eval_split="val")
    detections = SimpleNamespace(boxes=np.array([[8.0, 8, 12, 12], [20, 20, 24, 24]]), scores=np.array([0.9, 0.1]))
    config = SimpleNamespace(data=data, seed=3)
    label = np.zeros((32, 32), np.uint8)
    label[2:6, 2:6] = 1
    run = SimpleNamespace(config=config, detector=lambda: lambda image: detections)
    source = [{"image": np.zeros((32, 32, 3), np.uint8), "label": label}]
    monkeypatch.setattr(cell_pictures, "load_run", lambda path, detectors: run)
    monkeypatch.setattr(cell_pictures, "open_split", lambda data, split: source)
    (tmp_path / "cell" / FOLDER).mkdir(parents=True)
    cell = SimpleNamespace(name="cell", changes={"objective.gamma": 2.0, "seed": 3}, config=config)
    return SimpleNamespace(cells=[cell], by_cell={"cell": {"status": "done"}}, workdir=tmp_path, on_boxes=True)


def test_store_pictures_draws_the_truth_and_the_likely_boxes(on_boxes):
    cell_pictures.store_pictures(on_boxes, [{"objective.gamma": 2.0}])
    picture = on_boxes.by_cell["cell"]["picture"]
    seen = decoded(picture).astype(int)
    assert picture["caption"] == "seed 3: truth yellow, boxes of p ≥ 0.5 blue"
    assert np.abs(seen[1, 3] - MISSED).max() < 60  # JPEG
    assert np.abs(seen[7, 9] - FALSE).max() < 60
    assert seen[18:, 18:].max() < 20


def test_store_pictures_keeps_one_that_exists_and_needs_a_checkpoint(on_boxes, monkeypatch):
    monkeypatch.setattr(cell_pictures, "load_run", None)
    on_boxes.by_cell["cell"]["picture"] = {"caption": "", "file": ""}
    cell_pictures.store_pictures(on_boxes, [{"objective.gamma": 2.0}])
    assert on_boxes.by_cell["cell"]["picture"] == {"caption": "", "file": ""}
    del on_boxes.by_cell["cell"]["picture"]
    (on_boxes.workdir / "cell" / FOLDER).rmdir()
    cell_pictures.store_pictures(on_boxes, [{"objective.gamma": 2.0}])
    assert on_boxes.by_cell["cell"] == {"status": "done"}
