"""Results in a report's JSON, and their import into another workdir."""

import json

import pytest

from experiments.sweep import grid, results_io
from segjax.storage import StorageError
from segjax.training import ConfigError, defaults

ROWS = [{"objective.gamma": 2.0, "model.prior": (0.9, 0.1)}, {"objective.gamma": 0.0, "model.prior": ()}]
RESULT = {"status": "done", "scores": {"mean_iou": 0.5}, "provenance": {"commit": "abc", "wall_seconds": 3}}


@pytest.fixture
def cells():
    return grid.make_cells(defaults(), ROWS, (0, 1))


@pytest.fixture
def report(cells, tmp_path):
    """Writes the JSON of a report in which the first row has seed 0, and the second has seed 1 and diverged."""
    results = {cells[0].name: RESULT, cells[3].name: RESULT | {"status": "diverged"}}
    file = tmp_path / "report.json"
    file.write_text(json.dumps({"facts": {}, "data": results_io.cells_as_json(cells, results)}))
    return file


def statuses(cells, workdir):
    return [(grid.result_of(cell, workdir) or {}).get("status") for cell in cells]


def test_import_results(cells, report, tmp_path):
    assert results_io.import_results(cells, tmp_path / "other", report) == 2
    assert statuses(cells, tmp_path / "other") == ["done", None, None, "diverged"]
    assert grid.result_of(cells[0], tmp_path / "other") == RESULT
    longer = defaults()
    longer.training.steps += 1
    with pytest.raises(ConfigError, match=r"was run with config\.training\.steps = "):
        grid.result_of(grid.make_cells(longer, ROWS, (0,))[0], tmp_path / "other")


def test_import_results_keeps_those_that_exist(cells, report, tmp_path):
    own = tmp_path / "other" / cells[0].name / "cell.json"
    own.parent.mkdir(parents=True)
    own.write_text('{"status": "own", "provenance": {}}')
    assert results_io.import_results(cells, tmp_path / "other", report) == 1
    assert statuses(cells, tmp_path / "other") == ["own", None, None, "diverged"]


def test_import_results_of_another_config_is_refused(report, tmp_path):
    other = defaults()
    other.model.width = 24
    with pytest.raises(ConfigError, match=r"report\.json was run with config\.model\.width = \d+; expected 24"):
        results_io.import_results(grid.make_cells(other, ROWS, (0,)), tmp_path / "other", report)
    assert not (tmp_path / "other").exists()


def test_import_results_from_before_a_field_existed(cells, report, tmp_path):
    old = json.loads(report.read_text())
    del old["data"]["config"]["model.remat"]
    report.write_text(json.dumps(old))
    assert results_io.import_results(cells, tmp_path / "other", report) == 2


def test_import_results_with_a_field_that_only_some_cells_change(tmp_path):
    base = defaults()
    base.optimizer.learning_rate = 0.5
    cells = grid.make_cells(base, [{"model.width": 8}, {"model.width": 8, "optimizer.learning_rate": 0.1}], (0,))
    data = results_io.cells_as_json(cells, {cell.name: RESULT for cell in cells})
    assert data["config"]["optimizer.learning_rate"] == 0.5
    file = tmp_path / "report.json"
    for version in ("new", "old"):
        file.write_text(json.dumps({"data": data}))
        assert results_io.import_results(cells, tmp_path / version, file) == 2
        data["config"].pop("optimizer.learning_rate", None)  # as in earlier reports
    file.write_text(json.dumps({"data": data | {"config": data["config"] | {"optimizer.learning_rate": 0.4}}}))
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate = 0\.4; expected 0\.5"):
        results_io.import_results(cells, tmp_path / "other", file)


@pytest.mark.parametrize("content", [None, "{", "{}", '{"data": []}', '{"data": {"config": {}, "cells": [{}]}}'])
def test_import_results_names_a_file_that_is_not_a_report(content, cells, tmp_path):
    file = tmp_path / "strange.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StorageError, match=r"strange\.json: expected the JSON of a sweep's report"):
        results_io.import_results(cells, tmp_path / "other", file)


def test_import_results_names_a_damaged_report(cells, report, tmp_path, misread):
    returned = misread(report, lambda: results_io.import_results(cells, tmp_path / "other", report))
    assert not {"empty", "half", "null", "without data", "missing", "folder"} & returned


def test_local_path_refuses_a_bucket(tmp_path):
    assert results_io.local_path(str(tmp_path)) == tmp_path
    with pytest.raises(StorageError, match=r"^gs://bucket/grid: expected a local folder"):
        results_io.local_path("gs://bucket/grid")
