"""Tables whose rows are named networks or recipes: one cell per row and seed, scored by columns of the table's own."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
from absl import app, flags
from ml_collections import ConfigDict

from experiments.sweep import grid
from experiments.sweep.grid import Cell, Changes
from experiments.sweep.parallel_cells import RESULT_FILE
from segjax import metrics
from segjax.reporting import Spread, spread
from segjax.storage import read_json
from segjax.trained_run import TrainedRun, load_run
from segjax.training import open_split, parallel
from segjax.training.checkpoint import FOLDER
from segjax.training.evaluation import counter, sum_counts

Rows = Mapping[str, Changes]
# `make_counts(config, model, num_classes)` builds the step over the evaluation split whose counts are added up, and
# `scores(counts, images)` returns the columns of a cell.
MakeCounts = Callable[[ConfigDict, Any, int], Callable]
Scores = Callable[[dict[str, Any], int], dict[str, Any]]


def shortened(config: ConfigDict, steps: int | None) -> ConfigDict:
    """Returns `config`, changed in place to a run of `steps` steps of the same shape; None changes nothing."""
    if steps:
        training = config.training
        training.steps = training.evaluate_every = steps
        training.checkpoint_every = min(training.checkpoint_every, steps)
        lengths = (steps // 3, steps // 3, steps - 2 * (steps // 3))
        training.phases = tuple(
            (crop, length, rate) for (crop, _, rate), length in zip(training.phases, lengths, strict=False)
        )
    return config


def define_flags(name: str, seeds: Collection[int], steps: str, timed: str | None = None) -> None:
    """Defines the flags of a command. `steps` describes the default of --steps, `timed` the flag --time, if any."""
    flags.DEFINE_string("workdir", f"runs/{name}", "Folder of the cells and the table.")
    flags.DEFINE_multi_string("row", None, "Name of a row to run; may be repeated. Default: all rows.")
    flags.DEFINE_multi_integer("seed", list(seeds), "A seed; may be repeated.")
    flags.DEFINE_integer("steps", None, f"Steps per cell. Default: {steps}.")
    if timed is not None:
        flags.DEFINE_bool("time", False, f"{timed}; run it on an otherwise idle machine.")
    flags.DEFINE_bool("only_table", False, "Run nothing; print the table of the finished cells.")


def run_cells(
    options: flags.FlagValues,
    rows: Rows,
    base: ConfigDict,
    workdir: Path,
    console: rich.console.Console,
    make_counts: MakeCounts,
    scores: Scores,
) -> None:
    """Runs the cells that the options of `define_flags` select and that have no result.

    Raises:
      app.UsageError: `--row` names no row.
      ConfigError: a cell was run with another config, such as fewer steps.
    """
    unknown = [name for name in options.row or () if name not in rows]
    if unknown:
        raise app.UsageError(f"--row={', '.join(unknown)} is not a row; the rows are {'; '.join(rows)}")
    if options.only_table:
        return

    def measure(cell: Cell, folder: Path) -> dict[str, Any]:
        return {"row": cell.row, "seed": cell.config.seed, **columns_of(folder, make_counts, scores)}

    cells = grid.make_cells(base, {name: rows[name] for name in options.row or rows}, options.seed)
    grid.run(cells, workdir, console, measure=measure)


def columns_of(folder: Path, make_counts: MakeCounts, scores: Scores) -> dict[str, Any]:
    """Returns the columns of a trained cell, and the names of its classes."""
    run = load_run(folder / FOLDER / "latest")
    classes = list(run.label_set.names)
    counts, images = counts_over_split(run, make_counts(run.config, run.model, len(classes)))
    return {"columns": scores(counts, images), "classes": classes}


def counts_over_split(run: TrainedRun, step: Callable, split: str | None = None) -> tuple[dict[str, Any], int]:
    """Returns the sum of `step(state, batch)` over a split, by default that of the evaluation, and its image count."""
    source = open_split(run.config.data, split or run.config.data.eval_split)
    # One device, because the batch of a recipe may be smaller than the number of devices.
    mapping = parallel.device_mapping(run.config, jax.devices()[:1])
    count = counter(mapping.map_step(step, arguments=2), mapping.replicate(run.state), mapping)
    return sum_counts(count, source, run.config, devices=1), len(source)


def finished_cells(workdir: Path, rows: Iterable[str]) -> list[dict[str, Any]]:
    """Returns row, seed, steps, columns, classes and provenance of the finished cells of `rows`, in their order."""
    order = {name: i for i, name in enumerate(rows)}
    paths = workdir.glob(f"*/{RESULT_FILE}")
    paths = [path for path in paths if read_json(path, dict, "the result of a cell").get("row") in list(order)]
    form = {"row": str, "seed": int, "steps": int, "columns": dict, "classes": list, "provenance": dict}
    found = [read_json(path, form, "the result of a cell") for path in paths]
    cells = [
        {
            **{key: result[key] for key in ("row", "seed", "steps")},
            **result["columns"],
            **{key: result[key] for key in ("classes", "provenance")},
        }
        for result in found
    ]
    return sorted(cells, key=lambda cell: (order[cell["row"]], cell["seed"]))


def segmentation_columns(confusion: np.ndarray, boundary: np.ndarray) -> dict[str, Any]:
    """Returns the columns of a confusion matrix and of the counts of boundary F1, and IoU per class."""
    scores = metrics.segmentation_scores(confusion)
    return {
        "mean_iou": float(scores["mean_iou"]),
        "mean_accuracy": float(scores["mean_accuracy"]),
        "pixel_accuracy": float(scores["pixel_accuracy"]),
        "boundary_f1": float(metrics.boundary_f1(boundary)["mean_boundary_f1"]),
        "iou_per_class": [float(value) for value in scores["iou_per_class"]],
    }


def over_seeds(cells: Sequence[dict[str, Any]], row: str, columns: Iterable[str]) -> list[Spread]:
    """Returns the columns of a row over its finished cells."""
    return [spread([cell[column] for cell in cells if cell["row"] == row]) for column in columns]
