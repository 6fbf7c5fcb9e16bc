"""Training of several cells at once on four devices: results, resuming and divergence."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sweep import grid, parallel_cells
from segjax.configs import rare_class
from segjax.trained_run import load_run
from segjax.training import ConfigError, parallel, read_log, train
from segjax.training.config import leaves


@pytest.fixture(scope="module")
def compiled(tiny_scenes):
    """Returns the compiled sweep, and a list with one entry per trace of its training step."""
    traces = []
    with pytest.MonkeyPatch.context() as patch:
        make = parallel_cells.make_train_step

        def counting(*arguments):
            step = make(*arguments)

            def counted(*operands):
                traces.append(1)
                return step(*operands)

            return counted

        patch.setattr(parallel_cells, "make_train_step", counting)
        return parallel_cells.compile_sweep(tiny_scenes, parallel.make_mesh()), traces


def changed(config, **fields):
    config = config.copy_and_resolve_references().unlock()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in fields.items()})
    return config


@pytest.mark.parametrize("field", ["evaluate_examples", "patience"])
def test_compile_sweep_refuses_fields_of_single_runs(tiny_scenes, field):
    with pytest.raises(ConfigError, match=f"config.training.{field}=1 has no effect with a sweep of parallel cells"):
        parallel_cells.compile_sweep(changed(tiny_scenes, **{f"training__{field}": 1}), None)


@pytest.mark.slow
def test_results_of_a_sweep(trained_sweep):
    cells, workdir, printed = trained_sweep
    for cell in cells[:2]:
        result = grid.result_of(cell, workdir)
        assert (result["status"], result["steps"], result["diverged_at"]) == ("done", 4, None)
        assert result["curves"]["step"] == [2, 4]
        assert result["curves"]["average_precision"][-1] == result["scores"]["average_precision"]
        assert result["scores"]["images"] == 4
        assert result["first_loss"] > 0
        assert {"wall_seconds", "commit", "versions", "device"} <= result["provenance"].keys()
        assert f"{cell.name}  average precision 0." in printed
    assert grid.result_of(cells[0], workdir)["scores"]["auroc"] != grid.result_of(cells[1], workdir)["scores"]["auroc"]
    assert "3/3" in printed


@pytest.mark.slow
def test_diverged_cell_of_a_sweep(trained_sweep):
    cells, workdir, printed = trained_sweep
    result = grid.result_of(cells[2], workdir)
    assert (result["status"], result["diverged_at"], result["scores"]) == ("diverged", 1, None)
    assert f"{cells[2].name}  diverged at step 1" in printed
    assert not any((workdir / cells[2].name / "checkpoints").glob("[0-9]*"))


@pytest.mark.slow
def test_result_is_json_without_nan(trained_sweep):
    cells, workdir, _ = trained_sweep
    for cell in cells:
        json.loads((workdir / cell.name / "cell.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.slow
def test_cell_folder_is_a_run(trained_sweep):
    cells, workdir, _ = trained_sweep
    opened = load_run(workdir / cells[0].name / "checkpoints" / "latest")
    assert int(opened.state.step) == 4
    assert leaves(opened.config) == leaves(cells[0].config) | {"data.channels": 3}  # as found


@pytest.mark.slow
def test_cells_of_one_program_compile_once_whatever_their_number(compiled, trained_sweep, tiny_scenes, tmp_path):
    sweep, traces = compiled
    cells, workdir, _ = trained_sweep
    configs = [changed(tiny_scenes, objective__gamma=gamma, objective__alpha=0.25) for gamma in (0.0, 2.0)]
    both = parallel_cells.train_together(configs, [tmp_path / "0", tmp_path / "2"], sweep)
    (alone,) = parallel_cells.train_together(configs[1:], [tmp_path / "alone"], sweep)
    assert len(traces) == 1
    assert both[1]["scores"] == alone["scores"]
    # The diverged cell of the sweep did not change the scores of the others.
    assert both[0]["scores"] == grid.result_of(cells[0], workdir)["scores"]


@pytest.mark.slow
def test_resumed_cell(compiled, trained_sweep, tmp_path):
    cells, workdir, _ = trained_sweep
    before = grid.result_of(cells[1], workdir)
    for last in (2, 4):  # killed before the end, and after the last save
        folder = shutil.copytree(workdir / cells[1].name, tmp_path / str(last))
        if last == 2:
            shutil.rmtree(folder / "checkpoints" / "4")
        (after,) = parallel_cells.train_together([cells[1].config], [folder], compiled[0])
        assert after["provenance"]["wall_seconds_from_step"] == last
        for key in ("scores", "curves", "first_loss"):
            assert after[key] == before[key]


@pytest.mark.slow
def test_before_step_ends_the_training(compiled, tiny_scenes, tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parallel_cells.train_together([tiny_scenes], [tmp_path], compiled[0], before_step=stop)


@pytest.mark.slow
def test_nan_parameters_at_an_evaluated_step_are_a_divergence(compiled, tiny_scenes, tmp_path):
    config = changed(tiny_scenes, training__evaluate_every=1, optimizer__learning_rate=3e38)
    (result,) = parallel_cells.train_together([config], [tmp_path], compiled[0])
    assert result["status"] == "diverged"
    assert result["curves"]["step"] == list(range(1, result["diverged_at"]))


@pytest.mark.slow
def test_best_checkpoint_is_one_that_was_scored(compiled, tiny_scenes, tmp_path):
    config = changed(tiny_scenes, training__evaluate_every=3, training__checkpoint_every=1)
    (result,) = parallel_cells.train_together([config], [tmp_path], compiled[0])
    best = load_run(tmp_path).state.step
    assert int(best) == (3, 4)[int(np.argmax(result["curves"]["average_precision"]))]


@pytest.mark.slow
def test_cell_equals_train_of_its_config(trained_sweep, tmp_path, quiet):
    cells, workdir, _ = trained_sweep
    alone = train(cells[1].config, tmp_path, console=quiet)
    result = grid.result_of(cells[1], workdir)
    for key in ("average_precision", "pixel_accuracy", "auroc"):
        assert result["scores"][key] == pytest.approx(alone[key], rel=1e-3)


@pytest.mark.slow
def test_gradient_budget_of_each_cell_is_logged(tiny_scenes, tmp_path):
    config = changed(tiny_scenes, training__gradient_budget=True, training__log_every=1, training__steps=2)
    other = changed(config, objective__gamma=0.0)
    sweep = parallel_cells.compile_sweep(config, parallel.make_mesh())
    parallel_cells.train_together([config, other], [tmp_path / "2", tmp_path / "0"], sweep)
    logs = [[row for row in read_log(tmp_path / name) if "train/loss" in row] for name in ("2", "0")]
    for row in (*logs[0], *logs[1]):
        assert sum(value for key, value in row.items() if key.startswith("budget/")) == pytest.approx(1, abs=1e-6)
    assert logs[0][0]["budget/debris/hard"] != logs[1][0]["budget/debris/hard"]


def test_map_cells_runs_one_cell_per_device():
    mesh = parallel.make_mesh()
    step = parallel_cells.map_cells(
        lambda state, batch, factor: state + factor * batch, mesh, shared=(False, True, False)
    )
    found = step(jnp.arange(8.0).reshape(4, 2), jnp.ones(2), jnp.arange(4.0))
    np.testing.assert_array_equal(found, np.arange(8.0).reshape(4, 2) + np.arange(4.0)[:, None])


@pytest.mark.slow
def test_cell_of_a_detector_equals_train_of_its_config(tiny_scenes, tmp_path, quiet):
    base = rare_class.get_config("smoke", "road_debris_boxes")
    base.data, base.training = tiny_scenes.data.copy_and_resolve_references(), tiny_scenes.training
    base.data.box_classes, base.data.max_boxes = ("debris",), 16
    base.model.width = 4
    (cell,) = grid.make_cells(base, [{"objective.gamma": 2.0}], (0,))
    grid.run([cell], tmp_path / "sweep", quiet)
    result = grid.result_of(cell, tmp_path / "sweep")
    alone = train(cell.config, tmp_path / "alone", console=quiet)
    assert (result["scores"]["objects"], result["scores"]["images"]) == (alone["objects"], 4)
    assert result["scores"]["ar100"] == pytest.approx(alone["ar100"], abs=0.02)
    assert result["curves"]["ar100"][-1] == result["scores"]["ar100"]
