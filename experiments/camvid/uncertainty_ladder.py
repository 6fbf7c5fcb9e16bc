"""The U-Net recipe step by step, on CamVid: `python -m experiments.camvid.uncertainty_ladder --workdir=…`.

Every row adds one thing to the row before it, or replaces one, with the same number of steps. Each row and seed is
trained, scored and written once; kill the command and rerun it, or run it twice to share the rows between processes.

Void is trained as a twelfth class, as in the recipe. Predictions are the likeliest of the other eleven classes, and
only the recipe's own score counts void pixels. The variance is the analytic one at p = 0.2 in all rows, which exists
for heads trained without dropout too, because a head is linear.
"""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import flags
from ml_collections import ConfigDict

from experiments.benchmarks.timing import Case, milliseconds
from experiments.sweep import table_rows
from experiments.sweep.results_io import local_path, provenance_facts, publish
from experiments.sweep.table_rows import Rows
from segjax import cli, metrics
from segjax.configs import camvid_unet_recipe
from segjax.data.labels import VOID
from segjax.data.resize import resize
from segjax.inference import classify
from segjax.reporting import Report, Section, Table
from segjax.storage import read_json, to_json, write_outputs
from segjax.training.config import from_leaves, leaves
from segjax.training.network import make_model, preprocessing_of
from segjax.training.objective import hparams_at, hparams_from_config, phases
from segjax.training.provenance import provenance
from segjax.training.train_step import init_state, make_train_step

_QUESTION = (
    "The recipe's author reports 0.78, and 0.835 with growing crops and a weight on boundaries, by a score that is "
    "pixel accuracy including void. Every row here adds one thing to the row before it, or replaces one, with the same "
    "number of steps. Void is trained as a twelfth class; predictions are the likeliest of the other eleven classes, "
    "and only the recipe's own score counts void. The variance is the exact one at p = 0.2 in all rows."
)

TIMES_FILE = "times.json"

RATE = 0.2  # p of the dropout whose variance is scored
TOLERANCE = 3.0  # of boundary F1, in pixels of 360×480 images

# sqrt(median frequency / frequency) with the training split's shares of pixels; the weight of void is 1.
SHARES = (0.169, 0.233, 0.010, 0.317, 0.045, 0.097, 0.012, 0.011, 0.059, 0.006, 0.003)
CLASS_WEIGHTS = tuple(round((statistics.median(SHARES) / share) ** 0.5, 3) for share in SHARES)

_CE = {
    "training.phases": (),
    "objective.boundary_factor": None,
    "objective.uncertainty_weight": None,
    "model.dropout": "none",
}
_NO_HEADS = {"objective.uncertainty_weight": None, "model.dropout": "none"}
_FOCAL = _CE | {"objective.loss": "softmax_focal", "objective.gamma": 2.0}
_WEIGHTS = {"objective.class_weights": (*CLASS_WEIGHTS, 1.0)}
# The recipe of configs/camvid_unet_weighted.py: no penalty, void ignored, and a region loss for the rare classes.
_BEST = _NO_HEADS | {
    "objective.void": "ignore",
    "objective.class_weights": CLASS_WEIGHTS,
    "objective.boundary_factor": 3.0,
    "objective.region": "jaccard",
    "training.ema_decay": 0.99,
}
# A softmax that starts at the class frequencies, those of void (4 %) last.
_PRIOR = {"model.prior": tuple(np.round(np.array([*SHARES, 0.04]) / (sum(SHARES) + 0.04), 4).tolist())}
_PRIOR["model.head_stddev"] = 0.01

LADDER: Rows = {
    "CE": _CE,
    "+ curriculum": {"objective.boundary_factor": None, **_NO_HEADS},
    "+ boundary weight": _NO_HEADS,
    "+ sampled variance": {},
    "analytic variance": {"model.dropout": "analytic"},
    "focal instead of CE": {"objective.loss": "softmax_focal", "objective.gamma": 2.0},
    "+ class weights": _WEIGHTS,
    "CE, void left out": _CE | {"objective.void": "ignore"},
    "best combination": _BEST,
}
FACTORS: Rows = {
    "C = 10": {"objective.uncertainty_weight": 10.0},
    "C = 100": {"objective.uncertainty_weight": 100.0},
    "k = 1": {"objective.boundary_factor": 1.0},
    "k = 4": {"objective.boundary_factor": 4.0},
}
TRAP: Rows = {
    "focal": _FOCAL,
    "focal, class weights": _FOCAL | _WEIGHTS,
    "focal, prior bias": _FOCAL | _PRIOR,
    "focal, class weights, prior bias": _FOCAL | _WEIGHTS | _PRIOR,
}
ROWS = LADDER | FACTORS | TRAP
COLUMNS = {
    "mean IoU": "mean_iou",
    "mean accuracy": "mean_accuracy",
    "pixel accuracy": "pixel_accuracy",
    "boundary F1": "boundary_f1",
    "ECE": "expected_calibration_error",
    "AP void or wrong": "void_or_wrong_average_precision",
    "accuracy with void": "recipe_jaccard",
}


def base_config(steps: int | None = None) -> ConfigDict:
    """Returns the config that the rows change, if `steps` is given shortened to a run of the same shape."""
    return table_rows.shortened(camvid_unet_recipe.get_config(), steps)


def make_counts(config: ConfigDict, model: Any, num_classes: int) -> Callable:
    """Builds `step(state, batch) -> counts` of the columns, at the resolution of the labels."""
    preprocessing, model = preprocessing_of(config, num_classes), model.clone(dropout="analytic")
    predicts_void = config.objective.void == "class"

    def step(state, batch: dict[str, jax.Array]) -> dict[str, Any]:
        labels = batch["label"].astype(jnp.int32)
        images = preprocessing.network_input(batch["image"], batch["size"])
        output = model.apply(state.variables, images, train=False, rate=RATE)
        maps = jnp.concatenate([output.logits, output.logit_variance.mean(-1, keepdims=True)], axis=-1)
        maps = resize(maps, labels.shape[1:], antialias=False, to_sizes=batch["size"])
        logits, variance = maps[..., :-1], maps[..., -1]
        shown = jnp.broadcast_to(batch["where"][:, None, None], labels.shape)
        where, predicted = shown & (labels != VOID), classify(logits, num_classes)
        likeliest = jnp.argmax(logits, axis=-1) if predicts_void else predicted
        with_void = metrics.confusion_matrix_per_image(
            jnp.where(labels == VOID, num_classes, labels), likeliest, num_classes + 1, where=shown
        )
        right = jnp.trace(with_void, axis1=1, axis2=2)
        return {
            "confusion": metrics.confusion_matrix(labels, predicted, num_classes, where=where),
            "boundary": metrics.boundary_counts(labels, predicted, num_classes, tolerance=TOLERANCE, where=where),
            "calibration": metrics.calibration_bins(logits[..., :num_classes], labels, where=where),
            # The histogram has bins for logits; the order of the pixels is that of the variance itself.
            "void_or_wrong": metrics.score_histogram(
                jnp.log(jnp.maximum(variance, 1e-7)), predicted != labels, where=shown
            ),
            # scikit-learn's old "Jaccard", `metrics.recipe_jaccard`, as a sum over the images.
            "accuracy_with_void": jnp.sum(right / jnp.maximum(with_void.sum((1, 2)), 1)),
        }

    return step


def scores(counts: dict[str, Any], images: int) -> dict[str, Any]:
    """Returns the columns, and IoU per class, from the summed counts."""
    return {
        **table_rows.segmentation_columns(counts["confusion"], counts["boundary"]),
        "expected_calibration_error": float(metrics.expected_calibration_error(counts["calibration"])),
        "void_or_wrong_average_precision": float(metrics.average_precision(counts["void_or_wrong"])),
        "recipe_jaccard": float(counts["accuracy_with_void"]) / images,
    }


def time_rows(workdir: Path, rounds: int = 9) -> None:
    """Writes `times.json`: milliseconds per step of each row of the ladder, medians of interleaved rounds on noise.

    Nothing else should run on the machine.
    """
    rng = np.random.default_rng(0)
    cases = []
    for name, changes in LADDER.items():
        config = from_leaves(leaves(base_config()) | changes)
        batch, classes = config.training.global_batch, len(SHARES)
        model = make_model(config, classes)
        step = jax.jit(make_train_step(config, model, classes, None))
        data = {
            "image": rng.integers(0, 256, (batch, 360, 480, 3), np.uint8),
            "label": rng.integers(0, classes, (batch, 360, 480), np.uint8),
            "index": np.arange(batch, dtype=np.int32),
        }
        operands = (init_state(config, model), data, hparams_at(1, hparams_from_config(config), phases(config)))
        cases.append(Case(name, partial(step, *operands)))
    medians = {name: round(value, 1) for name, value in milliseconds(cases, rounds).items()}
    data = {"milliseconds": medians, "rounds": rounds, "provenance": provenance()}
    write_outputs({workdir / TIMES_FILE: to_json(data)})


def table(measured: list[dict[str, Any]], rows: Rows, title: str, times: dict[str, float] | None = None) -> Table:
    """Returns mean ± standard deviation over the seeds, one line per row that has a finished cell.

    With `times` (of `time_rows`) the last column is the time per step as a multiple of that of the first row.
    """
    lines = []
    for row in rows:
        seeds = sum(cell["row"] == row for cell in measured)
        if seeds:
            values = table_rows.over_seeds(measured, row, COLUMNS.values())
            ratio = (f"{times[row] / times[next(iter(rows))]:.2f}",) if times else ()
            lines.append((row, str(seeds), *values, *ratio))
    columns = ("row", "seeds", *COLUMNS, *(("time per step",) if times else ()))
    return Table(title, columns, lines, tuple(name for name in COLUMNS if name != "ECE"), ("ECE",))


def report(measured: list[dict[str, Any]], timed: dict[str, Any] | None) -> Report:
    """Returns the report of all finished cells: the ladder, its factors, and focal loss."""
    tables = (
        table(measured, LADDER, "The recipe, step by step: CamVid validation", timed and timed["milliseconds"]),
        table(measured, FACTORS, "Other factors than C = 1 and k = 2"),
        table(measured, TRAP, "Focal loss, γ = 2, without the recipe"),
    )
    facts = {
        "data": "CamVid, validation, scored at 360×480",
        "cells": f"{len(measured)} of {2 * len(LADDER) + len(FACTORS) + len(TRAP)} finished",
        "run": f"{base_config().training.steps} steps, 192×256 pixels, U-Net of width 16 and depth 4",
        **provenance_facts(measured),
    }
    section = Section("Contribution of each step", "", tuple(one for one in tables if one.rows))
    return Report("The uncertainty U-Net's recipe on CamVid", answer(measured) + _QUESTION, (section,), facts)


def answer(measured: list[dict[str, Any]]) -> str:
    """Returns a sentence with the effect of the whole recipe; "" until both of its rows have a cell."""
    ends = [[cell["mean_iou"] for cell in measured if cell["row"] == row] for row in ("CE", "+ sampled variance")]
    if not all(ends):
        return ""
    before, after = map(statistics.mean, ends)
    verb = "lowers" if after < before else "raises"
    return f"The whole recipe {verb} mean IoU, from {before:.3f} (cross entropy) to {after:.3f}. "


def main(argv: list[str]) -> None:
    """Runs the selected cells that are missing, then prints and writes the tables of all finished cells."""
    del argv
    options, console = flags.FLAGS, rich.console.Console()
    workdir = local_path(options.workdir)
    table_rows.run_cells(options, ROWS, base_config(options.steps), workdir, console, make_counts, scores)
    if options.time:
        time_rows(workdir)
    times, measured = workdir / TIMES_FILE, table_rows.finished_cells(workdir, ROWS)
    form = {"milliseconds": dict, "rounds": int, "provenance": dict}
    timed = read_json(times, form, "the times of the ladder", "Remove the file") if times.exists() else None
    data = {"cells": measured, "times": timed}
    publish(report(measured, timed), workdir, "uncertainty_ladder", data, console)


if __name__ == "__main__":
    table_rows.define_flags(
        "uncertainty_ladder", [0, 1], "the config's 12 epochs", "Measure the time per step of every row of the ladder"
    )
    cli.run(main, required=[])
