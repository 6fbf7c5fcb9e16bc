"""Compares about thirty ways to see a rare pixel: `python -m experiments.rare_methods --processes=2 --workdir=…`.

Trains the same network with every method of `configs/rare_methods.py` on road_debris, CrackForest and CamVid, and
scores the rare classes. All methods of a data set have the same steps and learning rate, and the same batches unless
they sample images. Their parameters are those of the papers or defaults; none is tuned. Every cell is trained once:
kill the command and rerun it, or run it twice to share the cells.

"Logit adjustment after training" is not trained: it is the network of cross entropy with log π subtracted from its
logits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import flags
from jaxtyping import Array
from ml_collections import ConfigDict

from experiments.sweep import grid, results_io, table_rows
from experiments.sweep.grid import Cell
from segjax import cli, losses, metrics
from segjax.configs import rare_methods
from segjax.configs.rare_methods import BASELINE, DATA, PIXELS, RARE
from segjax.data import label_set
from segjax.data.labels import VOID
from segjax.inference import classify
from segjax.inference.forward import class_logits
from segjax.reporting import Picture, Report, Section, Spread, Table, dots, png, spread
from segjax.storage import say
from segjax.training.network import preprocessing_of

NAME = "rare_methods"
AFTER = "logit adjustment after training"
PRECISION = 0.9
# Columns of the tables, and the scores of a cell that they show.
COLUMNS = {
    "AP": "average_precision",
    "IoU": "iou",
    f"recall at precision {PRECISION:g}": "recall",
    "ECE": "expected_calibration_error",
}
LOWEST = "lowest AP of a seed"
QUESTION = (
    "Each method trains the same network for the same steps, on the same batches unless it samples images. Nothing "
    "is tuned. Scores are of the rare classes, their mean if there are several: average precision (one class against "
    "the rest), IoU of the likeliest class, and the "
    f"highest recall at a precision of at least {PRECISION:g}, 0 if no threshold has it. ECE is of the likeliest class "
    "of all pixels. Two methods are tied if their difference in average precision is at most two standard errors over "
    "the seeds. A method with fewer seeds than cross entropy has no rank."
)


def make_counts(config: ConfigDict, model: Any, num_classes: int, *, adjustment: Array | None = None) -> Callable:
    """Builds `step(state, batch) -> counts` at the labels' resolution; `adjustment` [C] is added to the logits."""
    preprocessing, names = preprocessing_of(config, num_classes), label_set(config.data).names
    rare = [names.index(name) for name in RARE[config.data.name]]

    def step(state: Any, batch: dict[str, jax.Array]) -> dict[str, Any]:
        labels = batch["label"].astype(jnp.int32)
        images = preprocessing.network_input(batch["image"], batch["size"])
        outputs = model.apply(state.variables, images, train=False).logits
        logits = class_logits(preprocessing.to_native(outputs, labels.shape[1:], batch["size"]), num_classes)
        logits = logits if adjustment is None else logits + adjustment
        where, odds = batch["where"][:, None, None] & (labels != VOID), metrics.class_log_odds(logits)
        return {
            "confusion": metrics.confusion_matrix(labels, classify(logits, num_classes), num_classes, where=where),
            "calibration": metrics.calibration_bins(logits, labels, where=where),
            "scores": {
                name: metrics.score_histogram(odds[..., number], labels == number, where=where)
                for name, number in zip(RARE[config.data.name], rare, strict=True)
            },
        }

    return step


def scores(counts: dict[str, Any], images: int) -> dict[str, Any]:
    """Returns the columns of a cell from its summed counts: scores per rare class, and the ECE."""
    del images
    histograms = counts["scores"].values()
    return {
        "average_precision": [float(metrics.average_precision(one)) for one in histograms],
        "recall": [_recall(one) for one in histograms],
        "iou_per_class": metrics.segmentation_scores(counts["confusion"])["iou_per_class"].tolist(),
        "expected_calibration_error": float(metrics.expected_calibration_error(counts["calibration"])),
    }


def _recall(histogram: np.ndarray) -> float:
    threshold, _, recall = metrics.threshold_at_precision(histogram, PRECISION)
    return 0.0 if math.isnan(threshold) else float(recall)


def measure(cell: Cell, folder: Path) -> dict[str, Any]:
    """Returns the columns of a trained cell, and for the baseline those of the logit adjustment after training."""
    columns = {cell.row: table_rows.columns_of(folder, make_counts, scores)["columns"]}
    if cell.row == BASELINE:
        shares = np.array(PIXELS[cell.config.data.name], np.float32)
        adjusted = partial(make_counts, adjustment=-losses.logit_adjustment(shares))
        columns[AFTER] = table_rows.columns_of(folder, adjusted, scores)["columns"]
    return {"columns": columns}


def rare_scores(columns: Mapping[str, Any], data: str, names: Sequence[str]) -> dict[str, float]:
    """Returns the scores in `COLUMNS` of one cell, the mean over the rare classes of `data`."""
    iou = [columns["iou_per_class"][names.index(name)] for name in RARE[data]]
    return {
        "average_precision": float(np.mean(columns["average_precision"])),
        "iou": float(np.mean(iou)),
        "recall": float(np.mean(columns["recall"])),
        "expected_calibration_error": columns["expected_calibration_error"],
    }


def make_cells(data: str, seeds: Sequence[int] | None = None, steps: int | None = None) -> list[Cell]:
    """Returns one cell per method and seed on a data set."""
    base = rare_methods.get_config(data)
    if steps:
        base.training.steps = base.training.evaluate_every = base.training.checkpoint_every = steps
    return grid.make_cells(base, rare_methods.get_rows(data), seeds or rare_methods.get_seeds(data))


def of_methods(cells: Sequence[Cell], methods: Sequence[str]) -> list[Cell]:
    """Returns the cells of `methods`; all cells if none is given."""
    return [cell for cell in cells if not methods or cell.row in methods]


def by_method(cells: Sequence[Cell], results: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Spread]]:
    """Returns the scores in `COLUMNS` of each method over its finished cells on one data set."""
    found: dict[str, list[dict[str, float]]] = {}
    for cell in cells:
        names = label_set(cell.config.data).names
        for method, columns in results.get(cell.name, {}).get("columns", {}).items():
            found.setdefault(method, []).append(rare_scores(columns, cell.config.data.name, names))
    return {
        method: {key: spread([one[key] for one in values]) for key in COLUMNS.values()}
        for method, values in found.items()
    }


def ranks(values: Mapping[str, Spread]) -> dict[str, int]:
    """Returns the rank of each method: 1 plus the number of methods that are better by more than two standard errors.

    The standard error is that of the difference of two means. One seed has none, and the values decide.

    >>> a, b, c = Spread((0.5, 0.6)), Spread((0.5, 0.62)), Spread((0.1, 0.1))
    >>> ranks({"a": a, "b": b, "c": c})
    {'a': 1, 'b': 1, 'c': 3}
    """

    def error(one: Spread) -> float:
        return 0.0 if math.isnan(one.std) else one.std**2 / len(one.values)

    def better(one: Spread, other: Spread) -> bool:
        return one.mean - other.mean > 2 * math.sqrt(error(one) + error(other))

    return {name: 1 + sum(better(other, one) for other in values.values()) for name, one in values.items()}


def ranked(table: Mapping[str, dict[str, Spread]]) -> dict[str, dict[str, Spread]]:
    """Returns the methods of one data set that have as many seeds as the baseline."""
    count = len(table[BASELINE]["average_precision"].values)
    return {method: values for method, values in table.items() if len(values["average_precision"].values) >= count}


def mean_ranks(tables: Mapping[str, dict[str, dict[str, Spread]]]) -> dict[str, tuple[dict[str, int], float]]:
    """Returns the ranks of each method by data set and their mean, best first; of methods that all data sets have."""
    per_data = {data: _precision_ranks(table) for data, table in tables.items()}
    shared = [method for method in next(iter(tables.values())) if all(method in each for each in per_data.values())]
    found = {method: {data: per_data[data][method] for data in tables} for method in shared}
    means = {method: (places, sum(places.values()) / len(places)) for method, places in found.items()}
    return dict(sorted(means.items(), key=lambda item: item[1][1]))


def _precision_ranks(table: Mapping[str, dict[str, Spread]]) -> dict[str, int]:
    return ranks({method: values["average_precision"] for method, values in ranked(table).items()})


def sections(tables: Mapping[str, dict[str, dict[str, Spread]]]) -> tuple[Section, ...]:
    """Returns the ranks over all data sets, and one table and one picture per data set, the best method first."""
    overall = mean_ranks(tables)
    lines = [
        (
            method,
            f"{mean:.1f}",
            *(f"{places[data]}" for data in tables),
            *(tables[data][method]["average_precision"] for data in tables),
        )
        for method, (places, mean) in overall.items()
    ]
    columns = ("method", "mean rank", *(f"rank, {data}" for data in tables), *(f"AP, {data}" for data in tables))
    found = [Section("All data sets", "", (Table("Ranks by average precision; ties share a rank", columns, lines),))]
    for data, table in tables.items():
        places = _precision_ranks(table)
        order = sorted(table, key=lambda method: -table[method]["average_precision"].mean)
        lines = [
            (
                method,
                places.get(method),
                *(table[method][key] for key in COLUMNS.values()),
                min(table[method]["average_precision"].values),
            )
            for method in order
        ]
        columns = ("method", "rank", *COLUMNS, LOWEST)
        title = f"{data}: {', '.join(RARE[data])}"
        drawn = dots({method: table[method]["average_precision"].values for method in order}, title=title, x="AP")
        picture = Picture(data, f"{title}: average precision of each seed, and larger their mean.", png(drawn))
        highest, lowest = (*(name for name in COLUMNS if name != "ECE"), LOWEST), ("ECE",)
        found.append(Section(data, "", (Table(title, columns, lines, highest, lowest),), (picture,)))
    return tuple(found)


def answer(tables: Mapping[str, dict[str, dict[str, Spread]]]) -> str:
    """Returns the finding: the best methods, and how many are better or worse than the baseline on each data set."""
    means = {method: mean for method, (_, mean) in mean_ranks(tables).items()}
    lowest = min(means.values())
    best = [method for method, mean in means.items() if mean == lowest]
    verb = "ranks" if len(best) == 1 else "rank"
    sentences = [f"Over the data sets, {'; '.join(best)} {verb} best, with a mean rank of {lowest:.1f}."]
    for data, table in tables.items():
        places, whole = _precision_ranks(table), ranked(table)
        first = [method for method, place in places.items() if place == 1]
        better = sum(place < places[BASELINE] for place in places.values())
        surest = max(whole, key=lambda method: min(whole[method]["average_precision"].values))
        sentences.append(
            f"{data}: of {len(places)} methods {better} rank above cross entropy, which has rank {places[BASELINE]}. "
            f"The best, or tied with it: {'; '.join(first)}. {surest} has the best lowest seed, "
            f"{min(whole[surest]['average_precision'].values):.3f}."
        )
    return " ".join(sentences)


def build_report(cells: Mapping[str, Sequence[Cell]], results: Mapping[str, dict[str, dict[str, Any]]]) -> Report:
    """Returns the report of the finished cells of each data set."""
    tables = {data: by_method(cells[data], results[data]) for data in cells}
    tables = {data: table for data, table in tables.items() if BASELINE in table}
    done = [result for found in results.values() for result in found.values()]
    facts = {
        "cells": f"{len(done)} of {sum(map(len, cells.values()))} finished, "
        f"{sum(result['status'] == 'diverged' for result in done)} diverged",
        "runs": {data: _run_fact(cells[data][0].config) for data in tables},
        **results_io.provenance_facts(done),
    }
    found = sections(tables) if tables else ()
    return Report("Ways to see a rare pixel", (answer(tables) + "\n\n" if tables else "") + QUESTION, found, facts)


def _run_fact(config: ConfigDict) -> str:
    height, width = config.data.size
    return (
        f"{config.training.steps} steps of batch {config.training.global_batch}, {height}×{width} pixels, U-Net of "
        f"width {config.model.width} and depth {config.model.depth}, scored on {config.data.eval_split}"
    )


def main(argv: list[str]) -> None:
    """Runs the cells that are missing on each data set, then writes the report of all finished cells."""
    cli.refuse_arguments(argv)
    options, console = flags.FLAGS, rich.console.Console()
    folder = results_io.local_path(options.workdir)
    cells = {data: make_cells(data, options.seed, options.steps) for data in options.data}
    for data in options.data:
        for file in options.measured:
            imported = results_io.import_results(cells[data], folder / data, Path(file), part=data)
            say(f"imported {imported} cells of {data} from {file}", console)
    if not options.only_report:
        for data in options.data:
            wanted = of_methods(cells[data], options.method)
            if options.processes > 1:
                command = ["-m", "experiments.rare_methods", f"--data={data}", f"--workdir={folder}"]
                command += [f"--seed={seed}" for seed in options.seed or ()]
                command += [f"--method={method}" for method in options.method]
                command += [f"--steps={options.steps}"] * bool(options.steps)
                grid.run_in_processes(wanted, folder / data, console, command, options.processes)
            else:
                grid.run(wanted, folder / data, console, measure=measure, parent=options.parent)
    if options.parent:
        return
    results = {
        data: {one.name: result for one in found if (result := grid.result_of(one, folder / data)) is not None}
        for data, found in cells.items()
    }
    data = {name: results_io.cells_as_json(cells[name], results[name]) for name in cells}
    results_io.publish(build_report(cells, results), folder, NAME, data, console)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", f"runs/{NAME}", "Folder of the cells and the report.")
    flags.DEFINE_multi_enum("data", list(DATA), list(DATA), "A data set; may be repeated.")
    flags.DEFINE_multi_integer("seed", None, "A seed; may be repeated. Default: 0, 1 and 2.")
    flags.DEFINE_multi_enum(
        "method", [], list(rare_methods.get_rows()), "A method to run; may be repeated. Default: all. All are reported."
    )
    flags.DEFINE_integer("steps", None, "Steps per cell. Default: those of the config.", lower_bound=1)
    flags.DEFINE_integer("processes", 1, "Number of processes, each on one CPU core.", lower_bound=1)
    flags.DEFINE_multi_string("measured", [], "JSON of an earlier report; its cells are not run again.")
    flags.DEFINE_bool("only_report", False, "Run nothing; report the finished cells.")
    flags.DEFINE_integer("parent", None, "Internal, set by --processes: stop when this process ends; write no report.")
    cli.run(main, required=[])
