"""The grid on four devices: as each cell alone, compiled once, resumed, and with a cell that diverges."""

import fcntl
import io
import json
import shutil

import numpy as np
import pytest
import rich.console

from experiments.sweep import grid, parallel_cells
from segjax.trained_run import load_run
from segjax.training import ConfigError, train

GRID = grid.product(grid.axis("objective.gamma", 0.0, 2.0), grid.axis("objective.alpha", 0.25, 0.75))
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def base(tiny_scenes):
    return tiny_scenes


def run(cells, workdir):
    console = rich.console.Console(file=io.StringIO(), width=200)
    grid.run(cells, workdir, console)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """The whole grid, run once: its cells, its folder, what was printed, and how often a step was traced."""
    workdir, traces = tmp_path_factory.mktemp("grid"), []
    with pytest.MonkeyPatch.context() as patch:
        make = parallel_cells.make_train_step

        def counting(*arguments):
            step = make(*arguments)

            def counted(*operands):
                traces.append(1)
                return step(*operands)

            return counted

        patch.setattr(parallel_cells, "make_train_step", counting)
        cells = grid.make_cells(base, GRID, SEEDS)
        printed = run(cells, workdir)
    return cells, workdir, printed, len(traces)


def test_a_whole_grid_is_compiled_once(finished):
    cells, *_, traces = finished
    assert len(cells) == 8
    assert traces == 1


def test_a_cell_of_the_grid_is_the_run_of_its_config_alone(finished, tmp_path):
    cells, workdir, *_ = finished
    cell = cells[5]
    assert cell.changes == {"objective.gamma": 0.0, "objective.alpha": 0.75, "seed": 1}
    alone = train(cell.config, tmp_path, console=rich.console.Console(file=io.StringIO()))
    of_grid = grid.result_of(cell, workdir)["scores"]
    for key in ("average_precision", "pixel_accuracy", "auroc"):
        assert of_grid[key] == pytest.approx(alone[key], rel=1e-4)


def test_every_cell_says_what_it_measured(finished):
    cells, workdir, printed, _ = finished
    for cell in cells:
        result = grid.result_of(cell, workdir)
        assert (result["status"], result["steps"], result["diverged_at"]) == ("done", 4, None)
        assert result["curves"]["step"] == [2, 4]
        assert result["curves"]["average_precision"][-1] == result["scores"]["average_precision"]
        assert result["first_loss"] > 0
        assert {"wall_seconds", "commit", "versions", "device"} <= result["provenance"].keys()
        assert f"{cell.name}  average precision 0." in printed
    assert "8/8" in printed


def test_cells_differ(finished):
    cells, workdir, *_ = finished
    assert len({grid.result_of(cell, workdir)["scores"]["auroc"] for cell in cells}) == len(cells)


def test_a_cell_is_a_run_that_evaluation_opens(finished):
    cells, workdir, *_ = finished
    opened = load_run(workdir / cells[0].name / "checkpoints" / "latest")
    assert int(opened.state.step) == 4
    assert opened.config.to_json() == cells[0].config.to_json()


def test_called_again_nothing_is_run(finished):
    cells, workdir, *_ = finished
    assert run(cells, workdir) == ""


def test_a_cell_without_its_result_carries_on_from_its_checkpoint(finished, tmp_path):
    cells, workdir, *_ = finished
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    before = grid.result_of(cells[2], copy)
    (copy / cells[2].name / parallel_cells.RESULT_FILE).unlink()
    assert run(cells, copy).startswith("8/8")
    after = grid.result_of(cells[2], copy)
    assert after["provenance"]["wall_seconds_from_step"] == 4
    assert {k: after[k] for k in ("scores", "curves", "first_loss")} == {
        k: before[k] for k in ("scores", "curves", "first_loss")
    }


def test_a_cell_that_another_process_holds_is_waited_for_and_taken_over_if_it_is_left(base, tmp_path, monkeypatch):
    cells = grid.make_cells(base, GRID[:1], (0,))
    (tmp_path / cells[0].name).mkdir()
    with (tmp_path / cells[0].name / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def killed_meanwhile(_):
            assert grid.result_of(cells[0], tmp_path) is None
            lock.close()

        monkeypatch.setattr(grid, "_pause", killed_meanwhile)
        printed = run(cells, tmp_path)
    assert printed.startswith("waiting for 1 cells that other processes hold\n1/1")
    assert grid.result_of(cells[0], tmp_path)["status"] == "done"


def test_a_cell_that_diverges_is_recorded_and_harms_no_other(base, finished, tmp_path):
    rows = [{"objective.gamma": 0.0, "objective.alpha": 0.25, "optimizer.learning_rate": rate} for rate in (1e-3, 3e38)]
    fine, diverged = grid.make_cells(base, rows, (0,))
    printed = run([fine, diverged], tmp_path)
    bad = grid.result_of(diverged, tmp_path)
    assert bad["status"] == "diverged"
    assert bad["diverged_at"] == 1  # its parameters are looked at as well as its loss
    assert f"diverged at step {bad['diverged_at']}" in printed
    cells, workdir, *_ = finished
    assert grid.result_of(fine, tmp_path)["scores"] == grid.result_of(cells[0], workdir)["scores"]


def test_parameters_that_break_at_the_step_that_is_scored_are_a_divergence(base, tmp_path):
    config = base.copy_and_resolve_references()
    config.training.evaluate_every, config.optimizer.learning_rate = 1, 3e38
    (cell,) = grid.make_cells(config, [{"objective.gamma": 0.0}], (0,))
    run([cell], tmp_path)
    result = grid.result_of(cell, tmp_path)
    assert result["status"] == "diverged"
    assert result["curves"]["step"] == list(range(1, result["diverged_at"]))


def test_only_checkpoints_that_were_scored_can_be_the_best(base, tmp_path):
    config = base.copy_and_resolve_references()
    config.training.evaluate_every, config.training.checkpoint_every = 3, 1
    (cell,) = grid.make_cells(config, GRID[:1], (0,))
    run([cell], tmp_path)
    precision = grid.result_of(cell, tmp_path)["curves"]["average_precision"]
    best = load_run(tmp_path / cell.name).state.step
    assert int(best) == (3, 4)[int(np.argmax(precision))]


def test_the_gradient_budget_belongs_to_single_runs(base, tmp_path):
    config = base.copy_and_resolve_references()
    config.training.gradient_budget = True
    with pytest.raises(ConfigError, match=r"gradient_budget is a log of single runs"):
        run(grid.make_cells(config, GRID[:1], (0,)), tmp_path)


def test_a_field_that_is_newer_than_a_result_has_its_default_there(finished, tmp_path):
    cells, workdir, *_ = finished
    old = shutil.copytree(workdir / cells[0].name, tmp_path / cells[0].name) / "config.json"
    fields = json.loads(old.read_text())
    old.write_text(json.dumps({key: value for key, value in fields.items() if key != "data.on_error"}))
    assert grid.result_of(cells[0], tmp_path) == grid.result_of(cells[0], workdir)


def test_the_result_of_another_config_is_not_taken_for_this_ones(finished, base):
    cells, workdir, *_ = finished
    other = base.copy_and_resolve_references()
    other.training.steps = 5
    changed = grid.make_cells(other, GRID, SEEDS)
    assert changed[0].name == cells[0].name
    with pytest.raises(ConfigError, match=r"was run with config.training.steps = 4; expected 5"):
        run(changed, workdir)


def test_a_wrong_cell_is_named_before_anything_runs(base):
    with pytest.raises(ConfigError, match=r"config.objective.gamma must be in \[0, inf\); got -1"):
        grid.make_cells(base, [{"objective.gamma": -1.0}], (0,))
    with pytest.raises(ConfigError, match=r"config.model.prior needs 1 value\(s\) for sigmoid_focal; got \(0.5, 0.5\)"):
        grid.make_cells(base, [{"objective.gamma": 0.0}, {"model.prior": (0.5, 0.5)}], (0,))
    with pytest.raises(ConfigError, match=r"two cells of the sweep are called gamma=1,seed=0"):
        grid.make_cells(base, [{"objective.gamma": 1.0}] * 2, (0,))


def test_results_are_files_that_anybody_reads(finished):
    cells, workdir, *_ = finished
    text = (workdir / cells[0].name / parallel_cells.RESULT_FILE).read_text()
    assert np.isfinite(json.loads(text)["scores"]["best_iou"])
