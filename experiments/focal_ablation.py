"""The background trap on the embedded road scenes: `python -m experiments.focal_ablation --workdir=…`.

Cross entropy, balanced cross entropy and focal loss, and what the prior bias does for the first and the last, at the
same small budget.

Each row trains in a folder of its own below the workdir, so a run that was cut carries on; then one table (pixel
accuracy, and recall, IoU and average precision of debris) is printed and written as Markdown, CSV and JSON, with a
picture of what each network sees.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import rich.console
from absl import flags
from ml_collections import ConfigDict

from configs import road_debris_ablation
from segjax import cli
from segjax.reporting import Table, markdown, show, to_csv
from segjax.training import load_run, open_split, run_predictor, train
from segjax.training.evaluation import contact_sheet, rarest_first
from segjax.training.loop import write_json
from segjax.training.provenance import provenance


class Cell(NamedTuple):
    """One row of the table: a name, the loss with its γ and α, and the prior π of the head's bias."""

    name: str
    loss: str
    gamma: float = 0.0
    alpha: float | None = None
    prior: float | None = None


CELLS = (
    Cell("CE", "sigmoid_cross_entropy"),
    Cell("balanced CE", "sigmoid_cross_entropy", alpha=0.95),
    Cell("focal", "sigmoid_focal", gamma=2.0, alpha=0.75),
    Cell("CE, prior bias", "sigmoid_cross_entropy", prior=0.01),
    Cell("focal, prior bias", "sigmoid_focal", gamma=2.0, alpha=0.75, prior=0.01),
)
COLUMNS = ("loss", "γ", "α", "π", "pixel accuracy", "debris recall", "debris IoU", "average precision")


def cell_config(cell: Cell, steps: int | None) -> ConfigDict:
    """The config of one row."""
    config = road_debris_ablation.get_config()
    config.objective.loss, config.objective.gamma, config.objective.alpha = cell.loss, cell.gamma, cell.alpha
    if cell.prior is not None:
        config.model.prior, config.model.head_stddev = (cell.prior,), 0.01
    if steps:
        config.training.steps = steps
    return config


def row(cell: Cell, scores: dict[str, Any]) -> tuple[Any, ...]:
    """One row of the table from a run's scores; class 1 is debris."""
    return (
        cell.name,
        *(None if value is None else f"{value:g}" for value in (cell.gamma, cell.alpha, cell.prior)),
        scores["pixel_accuracy"],
        scores["recall_per_class"][1],
        scores["iou_per_class"][1],
        scores["average_precision"],
    )


def picture(folders: list[Path], names: Sequence[str], count: int = 3) -> np.ndarray:
    """A row a scene with much debris: image, truth, and what each trained network predicts; with titles."""
    runs = [load_run(folder / "checkpoints" / "latest") for folder in folders]
    source = open_split(runs[0].config.data, runs[0].config.data.eval_split)
    sheet = contact_sheet([run_predictor(run) for run in runs], source, rarest_first(source, 1)[:count])
    sheet = sheet.repeat(2, axis=0).repeat(2, axis=1)
    titles = np.full((28, sheet.shape[1], 3), 255, np.uint8)
    panels = ["image", "truth", *names]
    for i, name in enumerate(panels):
        left = i * sheet.shape[1] // len(panels) + 4
        cv2.putText(titles, name, (left, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([titles, sheet])


def main(argv: list[str]) -> None:
    """Trains every row, prints the table and writes it."""
    del argv
    console, workdir, started = rich.console.Console(), Path(flags.FLAGS.workdir), time.monotonic()
    folders, rows, results = [], [], {}
    for i, cell in enumerate(CELLS):
        console.rule(f"{i + 1}/{len(CELLS)}  {cell.name}")
        folders.append(workdir / cell.name.replace(", ", "_").replace(" ", "_"))
        scores = train(cell_config(cell, flags.FLAGS.steps), folders[-1], console=console)
        rows.append(row(cell, scores))
        results[cell.name] = {key: scores[key] for key in scores if key != "provenance"}
    seconds = time.monotonic() - started
    table = Table("road_debris, validation: debris is 0.5 % of the pixels", COLUMNS, rows)
    show(table, console)
    (workdir / "table.md").write_text(f"{markdown(table)}\n", encoding="utf-8")
    (workdir / "table.csv").write_text(to_csv(table), encoding="utf-8")
    write_json(workdir / "table.json", {"cells": results, "wall_seconds": round(seconds), "provenance": provenance()})
    sheet = picture(folders, [cell.name for cell in CELLS])
    cv2.imwrite(str(workdir / "picture.png"), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    console.print(f"{seconds:.0f} s. Wrote table.md, table.csv, table.json and picture.png to {workdir}/")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/ablation", "Where the runs, the table and the picture go.")
    flags.DEFINE_integer("steps", None, "Steps a loss; default the config's.")
    cli.run(main, required=[])
