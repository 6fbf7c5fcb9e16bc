"""From grids to reports, in this process; and as a command, in many, killed at three moments."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rich.console
from absl import flags

from configs import focal_ablation, rare_class
from experiments.focal_paper.focal_ablation import STUDY
from experiments.sweep import grid, paper_report
from experiments.sweep.paper_report import SweepResults

ROOT = Path(__file__).parents[2]


def run(cells, workdir):
    grid.run(cells, workdir, rich.console.Console(file=io.StringIO()))
    return SweepResults(cells, workdir)


@pytest.fixture(scope="module")
def outcomes(tiny_scenes, tmp_path_factory):
    """Two rows, the second of which diverges, with two seeds."""
    rows = [
        {"objective.gamma": 2.0, "optimizer.learning_rate": 1e-3},
        {"objective.gamma": 0.0, "optimizer.learning_rate": 3e38},
    ]
    return run(grid.make_cells(tiny_scenes, rows, (0, 1)), tmp_path_factory.mktemp("outcomes"))


def test_a_row_is_summed_up_over_its_seeds(outcomes):
    fine, _ = outcomes.rows()
    assert fine == {"objective.gamma": 2.0, "optimizer.learning_rate": 1e-3}
    values = [one["scores"]["average_precision"] for one in outcomes.of(fine)]
    assert len(values) == 2
    assert outcomes.score(fine, "average_precision").values == tuple(values)
    assert outcomes.average_precision(fine) == pytest.approx(np.mean(values))
    steps, curves = outcomes.curves(fine, "average_precision")
    assert steps == [2, 4]
    assert [curve[-1] for curve in curves] == values


def test_a_row_that_diverged_has_no_score_and_no_curve(outcomes):
    _, diverged = outcomes.rows()
    assert outcomes.score(diverged, "average_precision") == ((), 2, 2)
    assert outcomes.average_precision(diverged) == -np.inf
    assert outcomes.curves(diverged, "average_precision") == ([], [])


def test_a_report_says_how_much_was_measured_and_how(outcomes):
    report = paper_report.report_of(STUDY._replace(sections=lambda _: ()), outcomes, "road_debris", "smoke")
    assert report.facts["cells"] == "4 of 4 measured, 2 diverged"
    assert report.facts["seeds"] == [0, 1]
    assert report.facts["run"] == "4 steps of batch 4, 32×48 pixels, U-Net of width 4 and depth 2"
    assert {"command", "commit", "device", "versions", "time"} <= report.facts.keys()


def test_cells_that_are_missing_are_left_out(outcomes, tmp_path):
    empty = SweepResults(outcomes.cells, tmp_path)
    report = paper_report.report_of(STUDY._replace(sections=lambda _: ()), empty, "road_debris", "smoke")
    assert report.facts["cells"] == "0 of 4 measured, 0 diverged"


def test_a_seed_that_has_not_ended_is_missing(outcomes, tmp_path):
    (done,) = (cell for cell in outcomes.cells if cell.config.objective.gamma == 2 and cell.config.seed == 0)
    shutil.copytree(outcomes.workdir / done.name, tmp_path / done.name)
    score = SweepResults(outcomes.cells, tmp_path).score(outcomes.rows()[0], "average_precision")
    assert (len(score.values), score.missing) == (1, 1)


def test_a_child_gets_the_flags_that_were_given():
    values = flags.FlagValues()
    flags.DEFINE_multi_integer("seed", None, "", flag_values=values)
    flags.DEFINE_string("workdir", "runs", "", flag_values=values)
    flags.DEFINE_integer("steps", None, "", flag_values=values)
    values(["program", "--seed=0", "--seed=1", "--steps=8"])
    assert paper_report.given(values) == ["--steps=8", "--seed=0", "--seed=1"]


def test_steps_and_seeds_can_be_given_in_place_of_the_presets():
    cells = paper_report.make_cells(focal_ablation, "smoke", "road_debris", steps=8, seeds=(3,))
    assert {cell.config.seed for cell in cells} == {3}
    assert {(cell.config.training.steps, cell.config.training.evaluate_every) for cell in cells} == {(8, 2)}


@pytest.mark.parametrize("data", rare_class.DATA)
@pytest.mark.parametrize("preset", rare_class.PRESETS)
def test_every_data_set_of_the_configs_has_a_description(preset, data):
    assert data in paper_report.DATA
    assert rare_class.get_config(preset, data).data.name == data


# Real processes.


SWEEP = """
import sys
import rich.console
from pathlib import Path
from configs import rare_class
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


@pytest.fixture
def start(tiny_scenes, process_environment):
    """`start(workdir)`: the sweep of `SWEEP` as a process."""

    def popen(workdir):
        command = [sys.executable, "-c", SWEEP, str(workdir), tiny_scenes.data.data_dir]
        return subprocess.Popen(command, cwd=ROOT, env=process_environment, stdout=subprocess.DEVNULL)

    return popen


def logged(workdir):
    return sum(len(path.read_text().splitlines()) for path in workdir.glob("*/metrics.jsonl"))


def measured(workdir):
    results = {path.parent.name: json.loads(path.read_text()) for path in sorted(workdir.glob("*/cell.json"))}
    return {name: {k: v for k, v in one.items() if k != "provenance"} for name, one in results.items()}


def test_a_sweep_killed_three_times_measures_what_one_that_was_not_does(start, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole).wait(300) == 0
    assert len(measured(whole)) == 2
    for moment in (7, 31, 57):  # lines of log: in the first cell, later in it, and in the second
        process = start(broken)
        deadline = time.monotonic() + 300
        while logged(broken) < moment and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL  # it had not ended before
    assert start(broken).wait(300) == 0
    assert measured(broken) == measured(whole)
