"""The U-Net recipe step by step, on CamVid: `python -m experiments.camvid.uncertainty_ladder --workdir=…`.

Every row is the one before with one thing more (or instead), all with the same number of steps and the seeds of
`--seed`. A row and seed is a cell with a folder of its own: it is trained, scored and written once, so the program can
be cut and called again, and `--row` shares the cells among processes. `--only_table` prints what there is.

Void is trained as a twelfth class, as in the recipe; predictions are the likeliest of the other eleven, and void pixels
are scored by no column but the recipe's own. The variance is the analytic one at p = 0.2 for all rows, so that rows
without dropout heads can be compared: a head is linear whether it was trained with dropout or not.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
from absl import flags
from ml_collections import ConfigDict

from configs import camvid_unet_recipe
from experiments.camvid.ladder_scores import make_counts, scores
from experiments.sweep import table_rows
from experiments.sweep.table_rows import Row
from segjax import cli
from segjax.reporting import Report, Section, Table, show, spread, write_report
from segjax.storage import local_path, write_json
from segjax.training.objective import hparams_from_config
from segjax.training.optimizer import hparams_at, phases
from segjax.training.provenance import provenance
from segjax.training.train_step import init_state, make_model, make_train_step

_QUESTION = (
    "The recipe's author reports 0.78, and 0.835 with crops that grow and a weight on boundaries, by a score that is "
    "pixel accuracy with void. Every row here is the one before with one thing more, or instead of another, all with "
    "the same number of steps. Void is trained as a twelfth class; predictions are the likeliest of the other eleven, "
    "and void is scored in no column but the recipe's own. The variance is the exact one at p = 0.2 in all rows."
)

TIMES_FILE = "times.json"

# sqrt(median frequency / frequency) with the training split's shares of pixels; void is weighted 1.
SHARES = (0.169, 0.233, 0.010, 0.317, 0.045, 0.097, 0.012, 0.011, 0.059, 0.006, 0.003)
CLASS_WEIGHTS = tuple(round((statistics.median(SHARES) / share) ** 0.5, 3) for share in SHARES)


_CE = {
    "training.phases": (),
    "objective.boundary_factor": None,
    "objective.uncertainty_weight": None,
    "model.dropout": "none",
}


def _without(*fields: str) -> dict[str, Any]:
    return {field: _CE[field] for field in fields}


_NO_HEADS = _without("objective.uncertainty_weight", "model.dropout")
_FOCAL = _CE | {"objective.loss": "softmax_focal", "objective.gamma": 2.0}
_WEIGHTS = {"objective.class_weights": (*CLASS_WEIGHTS, 1.0)}
# That of configs/camvid_unet_weighted.py: no penalty, void left out, and a region loss for what is rare.
_BEST = _NO_HEADS | {
    "objective.void": "ignore",
    "objective.class_weights": CLASS_WEIGHTS,
    "objective.boundary_factor": 3.0,
    "objective.region": "jaccard",
    "training.ema_decay": 0.99,
}
# What the softmax predicts before it has learned anything: the class frequencies, void's 4 % last.
_PRIOR = {"model.prior": tuple(np.round(np.array([*SHARES, 0.04]) / (sum(SHARES) + 0.04), 4).tolist())}
_PRIOR["model.head_stddev"] = 0.01

LADDER = (
    Row("CE", _CE),
    Row("+ curriculum", {"objective.boundary_factor": None, **_NO_HEADS}),
    Row("+ boundary weight", _NO_HEADS),
    Row("+ sampled variance", {}),
    Row("analytic variance", {"model.dropout": "analytic"}),
    Row("focal instead of CE", {"objective.loss": "softmax_focal", "objective.gamma": 2.0}),
    Row("+ class weights", _WEIGHTS),
    Row("CE, void left out", _CE | {"objective.void": "ignore"}),
    Row("best combination", _BEST),
)
FACTORS = (
    Row("C = 10", {"objective.uncertainty_weight": 10.0}),
    Row("C = 100", {"objective.uncertainty_weight": 100.0}),
    Row("k = 1", {"objective.boundary_factor": 1.0}),
    Row("k = 4", {"objective.boundary_factor": 4.0}),
)
TRAP = (
    Row("focal", _FOCAL),
    Row("focal, class weights", _FOCAL | _WEIGHTS),
    Row("focal, prior bias", _FOCAL | _PRIOR),
    Row("focal, class weights, prior bias", _FOCAL | _WEIGHTS | _PRIOR),
)
ROWS = {row.name: row for row in (*LADDER, *FACTORS, *TRAP)}
COLUMNS = {
    "mean IoU": "mean_iou",
    "mean accuracy": "mean_accuracy",
    "pixel accuracy": "pixel_accuracy",
    "boundary F1": "boundary_f1",
    "ECE": "expected_calibration_error",
    "AP void or wrong": "void_or_wrong_average_precision",
    "accuracy with void": "recipe_jaccard",
}


def row_config(row: Row, seed: int, steps: int | None = None) -> ConfigDict:
    """The config of one cell; with `steps` a shorter run of the same shape."""
    return table_rows.row_config(camvid_unet_recipe.get_config(), row, seed, steps)


def time_rows(workdir: Path, rounds: int = 9) -> None:
    """Writes `times.json`: milliseconds a step of each row of the ladder, medians of interleaved rounds on one device.

    The pixels are noise: a step takes no longer over streets. Nothing else should run meanwhile.
    """
    rng = np.random.default_rng(0)
    prepared = []
    for row in LADDER:
        config = row_config(row, 0)
        batch, classes = config.training.global_batch, len(SHARES)
        model = make_model(config, classes)
        step = jax.jit(make_train_step(config, model, classes, None))
        data = {
            "image": rng.integers(0, 256, (batch, 360, 480, 3), np.uint8),
            "label": rng.integers(0, classes, (batch, 360, 480), np.uint8),
            "index": np.arange(batch, dtype=np.int32),
        }
        operands = (init_state(config, model), data, hparams_at(1, hparams_from_config(config), phases(config)))
        jax.block_until_ready(step(*operands))
        prepared.append((row.name, step, operands))
    seconds: dict[str, list[float]] = {name: [] for name, *_ in prepared}
    for _ in range(rounds):
        for name, step, operands in prepared:
            begun = time.perf_counter()
            jax.block_until_ready(step(*operands))
            seconds[name].append(time.perf_counter() - begun)
    medians = {name: round(1000 * statistics.median(values), 1) for name, values in seconds.items()}
    write_json(workdir / TIMES_FILE, {"milliseconds": medians, "rounds": rounds, "provenance": provenance()})


def table(
    measured: list[dict[str, Any]], rows: tuple[Row, ...], title: str, milliseconds: dict[str, float] | None = None
) -> Table:
    """Mean ± standard deviation over the seeds, a row of the ladder each; rows without a cell are left out.

    With `milliseconds` (of `time_rows`) the last column is the time of a step, as a multiple of the first row's.
    """
    lines, first = [], rows[0].name
    for row in rows:
        of_row = [cell for cell in measured if cell["row"] == row.name]
        if of_row:
            values = [spread([cell[key] for cell in of_row]) for key in COLUMNS.values()]
            ratio = (f"{milliseconds[row.name] / milliseconds[first]:.2f}",) if milliseconds else ()
            lines.append((row.name, str(len(of_row)), *values, *ratio))
    columns = ("row", "seeds", *COLUMNS, *(("time a step",) if milliseconds else ()))
    return Table(title, columns, lines, tuple(name for name in COLUMNS if name != "ECE"), ("ECE",))


def report(measured: list[dict[str, Any]], timed: dict[str, Any] | None) -> Report:
    """The ladder, its factors and the way out of the trap, with all that was measured so far."""
    tables = (
        table(measured, LADDER, "The recipe, step by step: CamVid validation", timed and timed["milliseconds"]),
        table(measured, FACTORS, "Its factors, from C = 1 and k = 2"),
        table(measured, TRAP, "Focal loss, γ = 2, without the recipe"),
    )
    about = measured[0]["provenance"] if measured else provenance()
    seconds = sum(cell["provenance"]["wall_seconds"] for cell in measured)
    facts = {
        "data": "CamVid, validation, scored at 360×480",
        "cells": f"{len(measured)} of {2 * len(LADDER) + len(FACTORS) + len(TRAP)} measured",
        "run": f"{row_config(LADDER[0], 0).training.steps} steps, 192×256 pixels, U-Net of width 16 and depth 4",
        "time": f"{seconds / 3600:.1f} hours, the sum of the cells",
        "command": provenance()["command"],
        "commit of the cells": sorted({cell["provenance"]["commit"] for cell in measured}),
        "device": about["device"],
        "CPU threads a process": about["cpu_threads"],
        "versions": about["versions"],
    }
    section = Section("What each step is worth", "", tuple(one for one in tables if one.rows))
    return Report("The uncertainty U-Net's recipe on CamVid", _QUESTION, (section,), facts)


def main(argv: list[str]) -> None:
    """Runs the cells asked for that are missing, then prints and writes the tables of all there are."""
    del argv
    options, console = flags.FLAGS, rich.console.Console()
    workdir = local_path(options.workdir)
    table_rows.run_cells(options, ROWS, row_config, workdir, console, make_counts, scores)
    if options.time:
        time_rows(workdir)
    times, measured = workdir / TIMES_FILE, table_rows.cells(workdir, ROWS)
    timed = json.loads(times.read_text(encoding="utf-8")) if times.exists() else None
    whole = report(measured, timed)
    for one in whole.sections[0].tables:
        show(one, console)
    data = {"cells": measured, "times": timed}
    written = write_report(whole, workdir, "uncertainty_ladder", data)
    console.print(f"Wrote {written[0]}, and the same as Markdown, CSV, LaTeX and JSON beside it")


if __name__ == "__main__":
    table_rows.define_flags(
        "uncertainty_ladder", [0, 1], "the config's 12 epochs", "Time a step of every row of the ladder"
    )
    cli.run(main, required=[])
