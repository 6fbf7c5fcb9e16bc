"""Cost of a sweep relative to separate runs: `python -m experiments.benchmarks.sweep_cost --workdir=…`.

The five cells of `focal_ablation --preset=smoke` run in new processes: one process per cell in sequence, each calling
`segjax.training.train`; the sweep in one process, which starts and compiles once; and the sweep in one process per
core. Each round runs all three; the result is the median over rounds.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import rich.console
from absl import flags

from experiments.sweep import paper_report
from segjax import cli
from segjax.configs import focal_ablation
from segjax.reporting import Table, show
from segjax.storage import to_json, write_json, write_outputs
from segjax.training.config import leaves
from segjax.training.provenance import provenance

SEPARATE, GRID = "separate runs", "a grid, one process"
_TRAIN = (
    "import json, sys; from segjax.training import train; from segjax.training.config import from_leaves; "
    "train(from_leaves(json.load(open(sys.argv[1]))), sys.argv[2])"
)


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def separately(workdir: Path, steps: int) -> None:
    """Trains the cells in sequence, one process per cell."""
    workdir.mkdir(parents=True)
    for cell in paper_report.make_cells(focal_ablation, "smoke", "road_debris", steps=steps):
        given = workdir / f"{cell.name}.json"
        write_json(given, leaves(cell.config))
        _run("-c", _TRAIN, str(given), str(workdir / cell.name))


def as_a_grid(workdir: Path, steps: int, processes: int) -> None:
    """Runs the sweep with its report."""
    arguments = ("--preset=smoke", f"--steps={steps}", f"--workdir={workdir}", f"--processes={processes}")
    _run("-m", "experiments.focal_paper.focal_ablation", *arguments)


def variants(processes: int) -> dict[str, Callable[[Path, int], None]]:
    """Returns the compared variants by name."""
    return {
        SEPARATE: separately,
        GRID: lambda workdir, steps: as_a_grid(workdir, steps, 1),
        f"a grid, {processes} processes": lambda workdir, steps: as_a_grid(workdir, steps, processes),
    }


def seconds(workdir: Path, steps: int, rounds: int, processes: int) -> dict[str, list[float]]:
    """Returns the seconds of each variant per round; rounds leave no files."""
    measured: dict[str, list[float]] = {name: [] for name in variants(processes)}
    for _ in range(rounds):
        for name, run in variants(processes).items():
            begun = time.perf_counter()
            run(workdir / "round", steps)
            measured[name].append(round(time.perf_counter() - begun, 1))
            shutil.rmtree(workdir / "round")
    return measured


def main(argv: list[str]) -> None:
    """Measures, prints the table and writes `sweep_cost.json`."""
    del argv
    options, workdir = flags.FLAGS, Path(flags.FLAGS.workdir)
    measured = seconds(workdir, options.steps, options.rounds, options.processes)
    medians = {name: statistics.median(values) for name, values in measured.items()}
    ratios = {name: round(value / medians[SEPARATE], 3) for name, value in medians.items()}
    rows = [(name, f"{medians[name]:.0f}", ratios[name]) for name in measured]
    title = f"Five cells of {options.steps} steps, medians of {options.rounds} rounds"
    show(Table(title, ("", "seconds", "ratio"), rows), rich.console.Console())
    about = {"steps": options.steps, "rounds": options.rounds, "cells": 5}
    data = about | {"seconds": measured, "ratios": ratios, "provenance": provenance()}
    write_outputs({workdir / "sweep_cost.json": to_json(data)})


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/sweep_cost", "Folder for the runs, which are removed, and the result.")
    flags.DEFINE_integer("steps", 200, "Steps per cell.", lower_bound=1)
    flags.DEFINE_integer("rounds", 3, "Number of rounds.", lower_bound=1)
    flags.DEFINE_integer("processes", os.cpu_count() or 1, "Processes of the last variant.", lower_bound=2)
    cli.run(main, required=[])
