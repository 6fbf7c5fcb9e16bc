"""Cells, and their distribution over processes; training is replaced except for the killed sweep."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.sweep import grid
from segjax.configs import rare_class
from segjax.storage import write_json
from segjax.training import ConfigError, defaults
from segjax.training.config import leaves

ROOT = Path(__file__).parents[3]
GRID = grid.product(
    [{"objective.gamma": 0.0}, {"objective.gamma": 2.0}], [{"objective.alpha": 0.25}, {"objective.alpha": 0.75}]
)


@pytest.fixture
def chunks(monkeypatch):
    """Replaces training by a made-up result; lists the folders of each call."""
    calls = []

    def train_together(configs, folders, sweep, *, before_step):
        before_step()
        calls.append([folder.name for folder in folders])
        for config, folder in zip(configs, folders, strict=True):
            (folder / "config.json").write_text(json.dumps(leaves(config)))
        return [{"status": "done", "scores": {"mean_iou": 0.5}, "provenance": {"wall_seconds": 1}} for _ in folders]

    monkeypatch.setattr(grid, "train_together", train_together)
    monkeypatch.setattr(grid, "compile_sweep", lambda config, mesh, change_split: (config.training.steps, mesh))
    return calls


def make(rows=GRID, seeds=(0,), **training):
    config = rare_class.get_config("smoke")
    config.training.update(training)
    return grid.make_cells(config, rows, seeds)


def test_make_cells_order_and_names():
    names = [cell.name for cell in make(GRID[:2], (0, 1))]
    assert names == [f"gamma=0,alpha={alpha},seed={seed}" for seed in (0, 1) for alpha in (0.25, 0.75)]
    (cell,) = make({"+ focal, α": {"objective.gamma": 2.0}})
    assert (cell.row, cell.name, cell.config.objective.gamma) == ("+ focal, α", "focal,_α,seed=0", 2.0)


def test_make_cells_names_an_invalid_cell():
    with pytest.raises(ConfigError, match=r"config.objective.gamma must be .*\[0, inf\); got -1"):
        make([{"objective.gamma": -1.0}])
    with pytest.raises(ConfigError, match=r"config.model.prior needs 1 value\(s\)"):
        make([{"model.prior": (0.5, 0.5)}])
    with pytest.raises(ConfigError, match=r"two cells of the sweep are named gamma=1,seed=0"):
        make([{"objective.gamma": 1.0}] * 2)


def test_run_takes_cells_of_one_seed_and_program_at_once(chunks, tmp_path, quiet):
    rows = [{"objective.gamma": gamma} for gamma in range(5)] + [{"model.width": 4}]
    cells = make(rows, (0, 1))
    grid.run(cells, tmp_path, quiet)
    assert [len(chunk) for chunk in chunks] == [4, 1, 1, 4, 1, 1]  # four devices
    assert sorted(name for chunk in chunks for name in chunk) == sorted(cell.name for cell in cells)
    assert "12/12" in quiet.file.getvalue()


def test_run_again_runs_nothing(chunks, tmp_path, quiet):
    grid.run(make(), tmp_path, quiet)
    before = (len(chunks), quiet.file.getvalue())
    grid.run(make(), tmp_path, quiet)
    assert (len(chunks), quiet.file.getvalue()) == before


def test_run_adds_the_measurements_of_trained_cells(chunks, tmp_path, quiet):
    (cell,) = make(GRID[:1])
    grid.run([cell], tmp_path, quiet, measure=lambda cell, folder: {"row": cell.row, "in": folder.name})
    result = grid.result_of(cell, tmp_path)
    assert (result["row"], result["in"], result["status"]) == ("gamma=0,alpha=0.25", cell.name, "done")


def test_run_stops_when_its_parent_ends(chunks, tmp_path, quiet):
    grid.run(make(GRID[:1]), tmp_path, quiet, parent=os.getppid())
    with pytest.raises(grid.Orphaned):
        grid.run(make(GRID[1:2]), tmp_path, quiet, parent=os.getpid())
    assert len(chunks) == 1


def test_run_waits_for_a_locked_cell_and_runs_it_when_it_is_left(chunks, tmp_path, quiet, monkeypatch):
    cells = make(GRID[:1])
    (tmp_path / cells[0].name).mkdir()
    with (tmp_path / cells[0].name / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr(grid, "_pause", lambda _: lock.close())  # its process is killed
        grid.run(cells, tmp_path, quiet)
    assert quiet.file.getvalue().startswith("waiting for 1 cells that other processes are running\n1/1")


def test_result_of_another_config_is_refused(chunks, tmp_path, quiet):
    grid.run(make(GRID[:1]), tmp_path, quiet)
    with pytest.raises(ConfigError, match=r"was run with config\.training\.steps = \d+; expected 5; choose another"):
        grid.run(make(GRID[:1], steps=5), tmp_path, quiet)


def test_result_from_before_a_field_existed_has_its_default(chunks, tmp_path, quiet):
    cells = make(GRID[:1])
    grid.run(cells, tmp_path, quiet)
    saved = tmp_path / cells[0].name / "config.json"
    fields = json.loads(saved.read_text())
    del fields["data.on_error"]
    saved.write_text(json.dumps(fields))
    assert grid.result_of(cells[0], tmp_path)["status"] == "done"


SWEEP = """
import sys
import rich.console
from pathlib import Path
from segjax.configs import rare_class
from experiments.sweep import grid
config = rare_class.get_config("smoke")
config.data.data_dir = sys.argv[2]
config.data.scene_size, config.data.size = (64, 96), (32, 48)
config.data.train_examples, config.data.val_examples = 8, 4
config.model.width, config.model.depth = 4, 2
config.training.global_batch, config.training.steps = 4, 40
config.training.evaluate_every, config.training.checkpoint_every, config.training.log_every = 20, 5, 1
rows = [{"objective.gamma": gamma} for gamma in (0.0, 2.0)]
grid.run(grid.make_cells(config, rows, (0,)), Path(sys.argv[1]), rich.console.Console())
"""


def measured(workdir):
    results = {path.parent.name: json.loads(path.read_text()) for path in sorted(workdir.glob("*/cell.json"))}
    return {name: {k: v for k, v in result.items() if k != "provenance"} for name, result in results.items()}


@pytest.mark.slow
def test_sweep_killed_in_each_cell_equals_one_that_was_not(tiny_scenes, process_environment, tmp_path):
    def start(workdir):
        command = [sys.executable, "-c", SWEEP, str(workdir), tiny_scenes.data.data_dir]
        return subprocess.Popen(command, cwd=ROOT, env=process_environment, stdout=subprocess.DEVNULL)

    def logged():
        return sum(len(path.read_text().splitlines()) for path in broken.glob("*/metrics.jsonl"))

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole).wait(300) == 0
    assert len(measured(whole)) == 2
    for moment in (7, 57):  # lines of log: in the first cell and in the second
        process = start(broken)
        deadline = time.monotonic() + 300
        while logged() < moment and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL  # it had not ended before
    assert start(broken).wait(300) == 0
    assert measured(broken) == measured(whole)


def test_damaged_result_or_config_of_a_cell_is_named(tmp_path, misread):
    (cell,) = grid.make_cells(defaults(), [{"objective.gamma": 1.0}], (0,))
    folder = tmp_path / cell.name
    folder.mkdir()
    write_json(folder / "cell.json", {"status": "done", "scores": {}, "provenance": {}})
    write_json(folder / "config.json", leaves(cell.config))
    for name in ("cell.json", "config.json"):
        returned = misread(folder / name, lambda: grid.result_of(cell, tmp_path))
        assert not {"empty", "half", "null", "lists", "folder"} & returned
