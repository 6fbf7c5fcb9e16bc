"""From a grid in `configs/` to a report: what the sweeps of the focal loss paper's questions have in common."""

import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import rich.console
from absl import app, flags

from experiments.sweep import grid, results_io
from experiments.sweep.grid import Cell, Changes
from segjax import cli
from segjax.reporting import Picture, Report, Section, Spread, curves, png, show, spread, write_report
from segjax.storage import local_path
from segjax.training.provenance import provenance

# `--help` shows the flags of the module that is run, and `main_of` defines them for it.
flags.disclaim_key_flags()

DATA = {
    "road_debris": "drawn road scenes, validation; debris is 0.5 % of the pixels",
    "crackforest": "CrackForest, test images, for lack of a validation split: what is best, is best on these images; "
    "cracks are 1.6 % of the pixels",
}


# The columns of `SweepResults.scores`; of the first two the highest is the best.
SCORES = ("average precision", "best IoU", "recall at p = 0.5")


class SweepResults:
    """What the cells of a sweep have measured so far.

    Attributes:
      cells: all of them.
      results: by the cell's name, what `sweep.result_of` gives; cells that have not ended are missing.
      workdir: their folder.
    """

    def __init__(self, cells: Sequence[Cell], workdir: Path):
        self.cells, self.workdir = cells, workdir
        found = {cell.name: grid.result_of(cell, workdir) for cell in cells}
        self.by_cell = {name: result for name, result in found.items() if result is not None}

    def rows(self) -> list[dict[str, Any]]:
        """The changes of each row of the grid, without the seed, in its order."""
        rows: list[dict[str, Any]] = []
        for cell in self.cells:
            row = {key: value for key, value in cell.changes.items() if key != "seed"}
            if row not in rows:
                rows.append(row)
        return rows

    def of(self, row: Changes) -> list[dict[str, Any]]:
        """The results of a row, one a seed."""
        return [
            self.by_cell[cell.name]
            for cell in self.cells
            if cell.name in self.by_cell and {**row, "seed": cell.changes["seed"]} == cell.changes
        ]

    def over_seeds(self, row: Changes, value: Callable[[dict[str, Any]], float | None]) -> Spread:
        """`value(result)` of each seed of a row; a cell that diverged, or has not ended, is one without a value."""
        seeds, results = len({cell.changes["seed"] for cell in self.cells}), self.of(row)
        values = [value(one) for one in results if one["status"] != "diverged"]
        return spread([*values, *[None] * (seeds - len(results))], len(results) - len(values))

    def score(self, row: Changes, key: str) -> Spread:
        """A score of the end of training, over the seeds."""
        return self.over_seeds(row, lambda one: one["scores"][key])

    def recall(self, row: Changes) -> Spread:
        """Of the rare class, at p = 0.5."""
        return self.over_seeds(row, lambda one: one["scores"]["recall_per_class"][1])

    def scores(self, row: Changes) -> tuple[Spread, Spread, Spread]:
        """What every table shows of a row: `SCORES`."""
        return self.score(row, "average_precision"), self.score(row, "best_iou"), self.recall(row)

    def average_precision(self, row: Changes) -> float:
        """Its mean over the seeds; -inf where there is none."""
        mean = self.score(row, "average_precision").mean
        return -math.inf if math.isnan(mean) else mean

    def curves(self, row: Changes, key: str) -> tuple[list[int], list[list[float | None]]]:
        """A score through training: the steps, and the values a seed; empty where nothing has ended."""
        done = [one for one in self.of(row) if one["status"] == "done"]
        return (done[0]["curves"]["step"] if done else [], [one["curves"][key] for one in done])


def precision_curves(outcomes: SweepResults, rows: Mapping[str, Changes], title: str, name: str = "curves") -> Picture:
    """Average precision through training, a line a row, under the names given."""
    drawn = curves(
        {label: outcomes.curves(row, "average_precision") for label, row in rows.items()},
        title=title,
        x="step",
        y="average precision",
        y_range=(0, 1),
    )
    return Picture(name, f"{title}: mean over the seeds, and the range between them.", png(drawn))


class Study(NamedTuple):
    """One experiment.

    Attributes:
      name: of its config, `configs/NAME.py`.
      title: of the report.
      question: what is asked.
      sections: how outcomes become a report.
    """

    name: str
    title: str
    question: str
    sections: Callable[[SweepResults], tuple[Section, ...]]


def report_of(study: Study, outcomes: SweepResults, data: str, preset: str) -> Report:
    """The report of what there is, saying how much that is and where it comes from."""
    first, done = outcomes.cells[0].config, list(outcomes.by_cell.values())
    seconds = sum(one["provenance"]["wall_seconds"] for one in done)
    origins = [one["provenance"] for one in done] or [provenance()]
    diverged = sum(one["status"] == "diverged" for one in done)
    taken = sum("wall_seconds_of" in one["provenance"] for one in done)
    means = f"; of {taken} the mean over the cells of an earlier report" if taken else ""
    seeds = sorted({cell.changes["seed"] for cell in outcomes.cells})
    facts = {
        "data": DATA[data],
        "preset": preset,
        "cells": f"{len(done)} of {len(outcomes.cells)} measured, {diverged} diverged",
        "seeds": seeds,
        "run": f"{first.training.steps} steps of batch {first.training.global_batch}, {first.data.size[0]}×"
        f"{first.data.size[1]} pixels, U-Net of width {first.model.width} and depth {first.model.depth}",
        "time": f"{seconds / 3600:.1f} hours, the sum over the cells (wall time of each since last begun{means})",
        "command": sorted({re.sub(r" --parent=\d+", "", one["command"]) for one in origins}),
        "commit": _distinct(origins, "commit"),
        "device": _distinct(origins, "device"),
        "CPU threads a process": _distinct(origins, "cpu_threads"),
        "python": _distinct(origins, "python"),
        "versions": _distinct(origins, "versions"),
    }
    return Report(f"{study.title}: {data}", f"{study.question}\n\nOf {DATA[data]}.", study.sections(outcomes), facts)


def _distinct(origins: Sequence[dict[str, Any]], key: str) -> list[Any]:
    """What the cells say of `key`, each thing once: they may have been run here and there, now and then."""
    values: list[Any] = []
    for one in origins:
        if one[key] not in values:
            values.append(one[key])
    return values


def main_of(study: Study) -> None:
    """The command line of a study."""
    config = importlib.import_module(f"configs.{study.name}")
    flags.DEFINE_enum("preset", "cpu", list(config.PRESETS), f"Which grid; see configs/{study.name}.py.")
    flags.DEFINE_enum("data", "road_debris", list(config.DATA), "The data set.")
    flags.DEFINE_string("workdir", f"runs/{study.name}", "Where the cells and the report go.")
    flags.DEFINE_integer("processes", 1, "Processes, one CPU core each; 1: this one, on all devices.", lower_bound=1)
    flags.DEFINE_integer("steps", None, "Steps a cell; default the preset's.", lower_bound=1)
    flags.DEFINE_multi_integer("seed", None, "A seed in place of the preset's; may be given again.")
    flags.DEFINE_multi_string("measured", [], "The JSON of an earlier report: its cells are not run again.")
    flags.DEFINE_bool("only_report", False, "Run nothing; report what there is.")
    flags.DEFINE_integer("parent", None, "Used by --processes: run cells while this process lives; report nothing.")
    cli.run(lambda argv: _main(study, config, argv), required=[])


def make_cells(
    config: ModuleType, preset: str, data: str, *, steps: int | None = None, seeds: Sequence[int] | None = None
) -> list[Cell]:
    """The cells of a config's grids; `steps` and `seeds` in place of its own."""
    base = config.get_config(preset, data)
    if steps:
        base.training.steps = steps
        base.training.evaluate_every = base.training.checkpoint_every = max(1, steps // 4)
    rows = [row for axes in config.get_grids(preset, data) for row in grid.product(*axes)]
    return grid.make_cells(base, rows, seeds or config.get_seeds(preset, data))


def _main(study: Study, config: ModuleType, argv: list[str]) -> None:
    options, console = flags.FLAGS, rich.console.Console()
    if argv[1:]:
        raise app.UsageError(f"unexpected {' '.join(argv[1:])}")
    cells = make_cells(config, options.preset, options.data, steps=options.steps, seeds=options.seed)
    folder = local_path(options.workdir)
    workdir = folder / options.data
    presets = make_cells(config, options.preset, options.data, steps=options.steps)
    for file in options.measured:
        console.print(f"{results_io.take_over([*presets, *cells], workdir, Path(file))} cells taken over from {file}")
    if options.parent:
        grid.run(cells, workdir, console, parent=options.parent)
        return
    if not options.only_report:
        console.print(f"{study.name}, {options.preset}: {len(cells)} cells on {options.data}, in {workdir}/")
        if options.processes > 1:
            command = ["-m", f"experiments.focal_paper.{study.name}", *given(flags.FLAGS)]
            grid.run_in_processes(cells, workdir, console, command, options.processes)
        else:
            grid.run(cells, workdir, console)
    outcomes = SweepResults(cells, workdir)
    report = report_of(study, outcomes, options.data, options.preset)
    for section in report.sections:
        for table in section.tables:
            show(table, console)
    written = write_report(report, folder, f"{study.name}_{options.data}", results_io.record(cells, outcomes.by_cell))
    console.print(f"Wrote {written[0]}, and the same as Markdown, CSV, LaTeX, JSON and PNG beside it")


def given(values: flags.FlagValues) -> list[str]:
    """The flags of the sweep as they were given on the command line, one argument each, for a child process."""
    return [
        argument
        for name in ("preset", "data", "workdir", "steps", "seed")
        if name in values and values[name].present and values[name].value is not None
        for argument in values[name].serialize().splitlines()  # a line a value, of a flag that may be given again
    ]
