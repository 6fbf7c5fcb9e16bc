"""Command and report of a sweep that answers one question of the focal loss paper: grid in `configs/`, tables here."""

import base64
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import rich.console
from absl import app, flags

from experiments.sweep import grid, results_io
from experiments.sweep.grid import Cell, Changes
from segjax import cli
from segjax.reporting import Chart, Grid, GridCell, Picture, Report, Section, Spread, dots, png, spread
from segjax.storage import say

# `--help` lists the flags of the module that is run; `main_of` defines them for it.
flags.disclaim_key_flags()

DATA = {
    "road_debris": "drawn road scenes, validation split; 0.5 % of the pixels are debris",
    "crackforest": "CrackForest, test images, because it has no validation split: the best scores are best on these "
    "images; 1.6 % of the pixels are cracks",
    "road_debris_boxes": "the boxes of the debris in the same drawn road scenes, validation split; 0.04 % of the "
    "anchors match a piece of debris",
}
# Columns of tables, each computed from the scores of a result. Tables mark the highest value in the first two.
PIXEL_SCORES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "average precision": lambda scores: scores["average_precision"],
    "best IoU": lambda scores: scores["best_iou"],
    "recall at p = 0.5": lambda scores: scores["recall_per_class"][1],
}
BOX_SCORES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "AP of boxes": lambda scores: scores["ap"],
    "AP50": lambda scores: scores["ap50"],
    "AR100": lambda scores: scores["ar100"],
}

# Key of each column's curve in a result; {rare} is the name of the rare class.
CURVES = {
    "average precision": "average_precision",
    "best IoU": "best_iou",
    "recall at p = 0.5": "recall/{rare}",
    "AP of boxes": "ap",
    "AP50": "ap50",
    "AR100": "ar100",
}

Result = dict[str, Any]


class SweepResults:
    """Results of the finished cells of a sweep.

    Attributes:
      cells: all cells.
      by_cell: results by cell name, as `grid.result_of` returns them; cells that have not ended are missing.
      workdir: folder of the cells; it need not exist if `by_cell` is given.
      on_boxes: True if the cells are detectors.
      columns: columns of the scores in tables.
      headline: name of the score in `columns[0]`, in results and curves.
    """

    def __init__(self, cells: Sequence[Cell], workdir: Path, by_cell: dict[str, Result] | None = None):
        self.cells, self.workdir, self.on_boxes = cells, workdir, bool(cells[0].config.data.box_classes)
        self.columns = tuple(BOX_SCORES if self.on_boxes else PIXEL_SCORES)
        self.headline = "ap" if self.on_boxes else "average_precision"
        if by_cell is None:
            found = {cell.name: grid.result_of(cell, workdir) for cell in cells}
            by_cell = {name: result for name, result in found.items() if result is not None}
        self.by_cell = by_cell

    def rows(self) -> list[dict[str, Any]]:
        """Returns the changes of each row of the grid, without the seed, in its order."""
        rows: list[dict[str, Any]] = []
        for cell in self.cells:
            row = {key: value for key, value in cell.changes.items() if key != "seed"}
            if row not in rows:
                rows.append(row)
        return rows

    def for_row(self, row: Changes) -> list[Result]:
        """Returns the results of a row, one per seed."""
        return [
            self.by_cell[cell.name]
            for cell in self.cells
            if {**row, "seed": cell.changes["seed"]} == cell.changes and cell.name in self.by_cell
        ]

    def over_seeds(self, row: Changes, value: Callable[[Result], float | None]) -> Spread:
        """Returns `value(result)` over the seeds of a row; cells that diverged or have not ended have no value."""
        seeds, results = len({cell.changes["seed"] for cell in self.cells}), self.for_row(row)
        values = [value(result) for result in results if result["status"] != "diverged"]
        return spread([*values, *[None] * (seeds - len(results))], len(results) - len(values))

    def score(self, row: Changes, key: str) -> Spread:
        """Returns a score of the last step over the seeds of a row."""
        return self.over_seeds(row, lambda result: result["scores"][key])

    def recall(self, row: Changes) -> Spread:
        """Returns the recall of the rare class at p = 0.5 over the seeds of a row."""
        return self.over_seeds(row, lambda result: result["scores"]["recall_per_class"][1])

    def scores(self, row: Changes) -> tuple[Spread, ...]:
        """Returns the `columns` of a row."""
        scores = BOX_SCORES if self.on_boxes else PIXEL_SCORES
        return tuple(self.over_seeds(row, lambda result, of=of: of(result["scores"])) for of in scores.values())

    def average_precision(self, row: Changes) -> float:
        """Returns the mean average precision over the seeds of a row; -inf if no seed has one."""
        mean = self.score(row, self.headline).mean
        return -math.inf if math.isnan(mean) else mean

    def curves(self, row: Changes, key: str) -> tuple[list[int], list[list[float | None]]]:
        """Returns the evaluated steps of a row, and a score at these steps per seed; both empty without a result."""
        done = [result for result in self.for_row(row) if result["status"] == "done"]
        return (done[0]["curves"]["step"] if done else [], [result["curves"][key] for result in done])

    def diverged(self, row: Changes) -> int:
        """Returns the number of seeds of a row that diverged."""
        return sum(result["status"] == "diverged" for result in self.for_row(row))


def precision_curves(
    results: SweepResults, rows: Mapping[str, Changes], title: str, name: str = "curves"
) -> Picture | Chart:
    """Returns a picture of average precision: one line per row over training, or only the last values for many rows."""
    if len(rows) > 6:  # lines would hide each other
        ends = {label: results.score(row, results.headline).values for label, row in rows.items()}
        drawn = dots(ends, title=title, x=f"{results.columns[0]} at the end")
        return Picture(name, f"{title} at the end: each seed, and larger their mean.", png(drawn))
    lines = {label: results.curves(row, results.headline) for label, row in rows.items()}
    caption, y_range = (
        f"{title}: mean over the seeds, and the range between them.",
        (0, None if results.on_boxes else 1),
    )
    return Chart(name, caption, lines, title, "step", results.columns[0], y_range=y_range, half=False)


def score_grid(
    results: SweepResults, rows: Sequence[Changes], y: str, x: str, *, name: str, caption: str, names: tuple[str, str]
) -> Grid:
    """Returns the scores of `rows`, which differ in the fields `y` and `x`, as a grid to explore.

    `names` are the names of `y` and `x` in the report. If a result has a "picture", with a "caption" and a "file" (PNG
    or JPEG in base64), its cell shows it.
    """
    scores = BOX_SCORES if results.on_boxes else PIXEL_SCORES
    ys, xs = (sorted({row[field] for row in rows}) for field in (y, x))
    seeds = list(dict.fromkeys(cell.changes["seed"] for cell in results.cells))

    def grid_cell(row: Changes) -> GridCell:
        by_seed = [results.by_cell.get(cells_by_changes.get(_frozen({**row, "seed": seed}), "")) for seed in seeds]
        done = [result for result in by_seed if result is not None and result["status"] == "done"]

        def over_seeds(of: Callable[[Mapping[str, Any]], float]) -> list[float | None]:
            return [of(result["scores"]) if result in done else None for result in by_seed]

        curves = {key: series for key in scores if (series := _series(done, key))[1]}
        drawn = [result["picture"] for result in done if "picture" in result]
        pictures = {one["caption"]: base64.b64decode(one["file"]) for one in drawn}
        notes = [_note(result) for result in by_seed]
        return GridCell({key: over_seeds(of) for key, of in scores.items()}, curves, notes, pictures)

    cells_by_changes = {_frozen(cell.changes): cell.name for cell in results.cells}
    cells = {(ys.index(row[y]), xs.index(row[x])): grid_cell(row) for row in rows}
    labels = [[f"{value:g}" for value in values] for values in (xs, ys)]
    return Grid(name, caption, names[1], names[0], *labels, list(map(str, seeds)), cells, tuple(scores))


def _frozen(changes: Changes) -> frozenset:
    return frozenset(changes.items())


def _series(done: Sequence[Result], column: str) -> tuple[list[int], list[list[float | None]]]:
    """Returns the steps of finished results and the values of a column at these steps; both empty without a curve."""
    keys = [CURVES[column].format(rare=result["scores"]["classes"][-1]) for result in done]
    found = [result["curves"][key] for result, key in zip(done, keys, strict=True) if key in result["curves"]]
    return (done[0]["curves"]["step"] if found else [], found)


def _note(result: Result | None) -> str:
    if result is None:
        return "not finished"
    return f"diverged at step {result['diverged_at']}" if result["status"] == "diverged" else ""


class PaperReport(NamedTuple):
    """One question of the paper.

    Attributes:
      name: name of its config, `configs/NAME.py`, and of its module.
      title: title of the report.
      question: the paper's finding and the question, for the head of the report.
      sections: builds the sections of the report from the results.
    """

    name: str
    title: str
    question: str
    sections: Callable[[SweepResults], tuple[Section, ...]]


def build_report(paper: PaperReport, results: SweepResults, data: str, preset: str) -> Report:
    """Returns the report of the finished cells, with the number of cells and their provenance."""
    first, done = results.cells[0].config, list(results.by_cell.values())
    network = f"U-Net of width {first.model.width} and depth {first.model.depth}"
    if results.on_boxes:
        network = f"RetinaNet on the encoder of a U-Net of width {first.model.width}, levels {first.model.levels}"
    facts = {
        "data": DATA[data],
        "preset": preset,
        "cells": f"{len(done)} of {len(results.cells)} finished, "
        f"{sum(result['status'] == 'diverged' for result in done)} diverged",
        "seeds": sorted({cell.changes["seed"] for cell in results.cells}),
        "run": f"{first.training.steps} steps of batch {first.training.global_batch}, {first.data.size[0]}×"
        f"{first.data.size[1]} pixels, {network}",
        **results_io.provenance_facts(done),
    }
    text = f"{paper.question}\n\nData: {DATA[data]}."
    return Report(f"{paper.title}: {data}", text, paper.sections(results), facts)


def report_of_json(paper: PaperReport, file: Path) -> Report:
    """Returns the report of a JSON file that this command wrote, without pictures that need checkpoints.

    Raises:
      StorageError: the file does not exist, or is not the JSON of a sweep's report.
      ConfigError: a field of its config is unknown.
    """
    cells, by_cell, facts = results_io.cells_from_json(file)
    data = cells[0].config.data
    name = "road_debris_boxes" if data.box_classes else data.name
    report = build_report(paper, SweepResults(cells, file.parent, by_cell), name, facts["preset"])
    return report._replace(facts=facts)


def make_cells(
    config: ModuleType, preset: str, data: str, *, steps: int | None = None, seeds: Sequence[int] | None = None
) -> list[Cell]:
    """Returns the cells of the grids of a config module; `steps` and `seeds` replace those of the preset."""
    base = config.get_config(preset, data)
    if steps:
        base.training.steps = steps
        base.training.evaluate_every = base.training.checkpoint_every = max(1, steps // 4)
    rows = [row for axes in config.get_grids(preset, data) for row in grid.product(*axes)]
    return grid.make_cells(base, rows, seeds or config.get_seeds(preset, data))


def main_of(paper: PaperReport) -> None:
    """Runs the command line of a report."""
    config = importlib.import_module(f"segjax.configs.{paper.name}")
    flags.DEFINE_enum(
        "preset", "cpu", list(config.PRESETS), f"Size of the grid and its runs; see configs/{paper.name}.py."
    )
    flags.DEFINE_enum("data", "road_debris", list(config.DATA), "The data set.")
    flags.DEFINE_string("workdir", f"runs/{paper.name}", "Folder of the cells and the report.")
    flags.DEFINE_integer(
        "processes", 1, "Number of processes, each on one CPU core. 1: this process, on all devices.", lower_bound=1
    )
    flags.DEFINE_integer("steps", None, "Steps per cell. Default: the preset's.", lower_bound=1)
    flags.DEFINE_multi_integer("seed", None, "A seed; may be repeated. Default: the preset's.")
    flags.DEFINE_multi_string("measured", [], "JSON of an earlier report; its cells are not run again.")
    flags.DEFINE_bool("only_report", False, "Run nothing; report the finished cells.")
    flags.DEFINE_integer("parent", None, "Internal, set by --processes: stop when this process ends; write no report.")
    cli.run(lambda argv: _main(paper, config, argv), required=[])


def _main(paper: PaperReport, config: ModuleType, argv: list[str]) -> None:
    options, console = flags.FLAGS, rich.console.Console()
    if argv[1:]:
        raise app.UsageError(f"unexpected {' '.join(argv[1:])}")
    cells = make_cells(config, options.preset, options.data, steps=options.steps, seeds=options.seed)
    folder = results_io.local_path(options.workdir)
    workdir = folder / options.data
    of_preset = make_cells(config, options.preset, options.data, steps=options.steps)
    for file in options.measured:
        imported = results_io.import_results([*of_preset, *cells], workdir, Path(file))
        say(f"imported {imported} cells from {file}", console)
    if options.parent:
        grid.run(cells, workdir, console, parent=options.parent)
        return
    if not options.only_report:
        say(f"{paper.name}, preset {options.preset}: {len(cells)} cells on {options.data} in {workdir}/", console)
        if options.processes > 1:
            command = ["-m", f"experiments.focal_paper.{paper.name}", *given_flags(flags.FLAGS)]
            grid.run_in_processes(cells, workdir, console, command, options.processes)
        else:
            grid.run(cells, workdir, console)
    results = SweepResults(cells, workdir)
    report = build_report(paper, results, options.data, options.preset)
    data = results_io.cells_as_json(cells, results.by_cell)
    results_io.publish(report, folder, f"{paper.name}_{options.data}", data, console)


def given_flags(values: flags.FlagValues) -> list[str]:
    """Returns the sweep's flags that were given on the command line, one argument each, for a child process."""
    return [
        argument
        for name in ("preset", "data", "workdir", "steps", "seed")
        if name in values and values[name].present and values[name].value is not None
        for argument in values[name].serialize().splitlines()  # one line per value of a repeated flag
    ]
