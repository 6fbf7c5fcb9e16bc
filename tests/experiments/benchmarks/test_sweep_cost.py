"""Every variant of running the cells runs once per round; times are not tested."""

import json
from pathlib import Path

import pytest

from experiments.benchmarks import sweep_cost
from experiments.sweep import paper_report
from segjax.configs import focal_ablation
from segjax.training.config import from_leaves, leaves


def test_seconds_of_every_variant_and_no_files(tmp_path, monkeypatch):
    taken = []

    def variant(name):
        def run(workdir, steps):
            workdir.mkdir(parents=True)
            taken.append((name, steps))

        return run

    monkeypatch.setattr(sweep_cost, "variants", lambda processes: {name: variant(name) for name in ("a", "b")})
    measured = sweep_cost.seconds(tmp_path, steps=7, rounds=2, processes=2)
    assert taken == [("a", 7), ("b", 7)] * 2
    assert {name: len(values) for name, values in measured.items()} == {"a": 2, "b": 2}
    assert list(tmp_path.iterdir()) == []


def test_separately_runs_the_configs_of_the_grid(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(sweep_cost, "_run", lambda *arguments: commands.append(arguments))
    sweep_cost.separately(tmp_path / "runs", steps=8)
    cells = paper_report.make_cells(focal_ablation, "smoke", "road_debris", steps=8)
    given = [from_leaves(json.loads(Path(arguments[2]).read_text())) for arguments in commands]
    assert [leaves(config) for config in given] == [leaves(cell.config) for cell in cells]


@pytest.mark.parametrize("processes", [1, 2])
def test_as_a_grid_runs_the_smoke_preset(tmp_path, monkeypatch, processes):
    commands = []
    monkeypatch.setattr(sweep_cost, "_run", lambda *arguments: commands.append(arguments))
    sweep_cost.as_a_grid(tmp_path, 8, processes)
    ((_, module, *arguments),) = commands
    assert module == "experiments.focal_paper.focal_ablation"
    assert {"--preset=smoke", "--steps=8", f"--processes={processes}"} <= set(arguments)
