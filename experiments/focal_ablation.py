"""CE, α-balanced CE and focal loss on the embedded road scenes: `python -m experiments.focal_ablation --workdir=…`.

Each loss trains in a folder of its own below the workdir, so a run that was cut carries on; then one table (pixel
accuracy, and recall, IoU and average precision of debris) is printed and written as Markdown, CSV and JSON, with a
picture of what each network sees.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
import rich.console
from absl import flags
from ml_collections import ConfigDict

from configs import road_debris_ablation
from segjax import cli
from segjax.data import colorize, open_split
from segjax.inference import overlay
from segjax.reporting import Table, markdown, show, to_csv
from segjax.training import load_run, train
from segjax.training.loop import write_json
from segjax.training.provenance import provenance
from segjax.training.step import classify, make_predict

_WORKDIR = flags.DEFINE_string("workdir", "runs/ablation", "Where the runs, the table and the picture go.")
_STEPS = flags.DEFINE_integer("steps", None, "Steps a loss; default the config's.")


class Cell(NamedTuple):
    """One row of the table: a name, and the loss with its γ and α."""

    name: str
    loss: str
    gamma: float
    alpha: float | None


CELLS = (
    Cell("CE", "sigmoid_cross_entropy", 0.0, None),
    Cell("balanced CE, α = 0.9", "sigmoid_cross_entropy", 0.0, 0.9),
    Cell("focal, γ = 2, α = 0.9", "sigmoid_focal", 2.0, 0.9),
)
COLUMNS = ("loss", "pixel accuracy", "debris recall", "debris IoU", "average precision")


def cell_config(cell: Cell, steps: int | None) -> ConfigDict:
    """The config of one row."""
    config = road_debris_ablation.get_config()
    config.objective.loss, config.objective.gamma, config.objective.alpha = cell.loss, cell.gamma, cell.alpha
    if steps:
        config.training.steps = steps
    return config


def row(cell: Cell, scores: dict[str, Any]) -> tuple[Any, ...]:
    """One row of the table from a run's scores; class 1 is debris."""
    return (
        cell.name,
        scores["pixel_accuracy"],
        scores["recall_per_class"][1],
        scores["iou_per_class"][1],
        scores["average_precision"],
    )


def picture(folders: list[Path], count: int = 3, scale: int = 2) -> np.ndarray:
    """A row a scene: image, truth, and what each trained network predicts; the scenes with the most debris."""
    runs = [load_run(folder / "checkpoints" / "latest") for folder in folders]
    source = open_split(runs[0].config.data, runs[0].config.data.eval_split)
    palette = runs[0].label_set.palette * np.array([[0], [1]], np.uint8)  # paint debris only
    predicts = [jax.jit(make_predict(run.config, run.model), static_argnames="canvas") for run in runs]
    records = sorted((source[i] for i in range(len(source))), key=lambda r: -(r["label"] == 1).sum())[:count]
    rows = []
    for record in records:
        image, label = record["image"], record["label"]
        masks = [label]
        for run, predict in zip(runs, predicts, strict=True):
            logits = predict(run.state, image[None], np.array([label.shape], np.int32), label.shape)
            masks.append(np.asarray(classify(logits)[0]))
        rows.append(
            np.concatenate([image, *(overlay(image, colorize(m, palette), opacity=0.8) for m in masks)], axis=1)
        )
    return np.concatenate(rows).repeat(scale, axis=0).repeat(scale, axis=1)


def main(argv: list[str]) -> None:
    """Trains the three losses, prints the table and writes it."""
    del argv
    console, workdir, started = rich.console.Console(), Path(_WORKDIR.value), time.monotonic()
    folders, rows, results = [], [], {}
    for i, cell in enumerate(CELLS):
        console.rule(f"{i + 1}/{len(CELLS)}  {cell.name}")
        folders.append(workdir / f"{i + 1}_{cell.loss}")
        scores = train(cell_config(cell, _STEPS.value), folders[-1], console=console)
        rows.append(row(cell, scores))
        results[cell.name] = {key: scores[key] for key in scores if key != "provenance"}
    seconds = time.monotonic() - started
    table = Table("road_debris, validation: debris is 0.5 % of the pixels", COLUMNS, rows)
    show(table, console)
    (workdir / "table.md").write_text(f"{markdown(table)}\n", encoding="utf-8")
    (workdir / "table.csv").write_text(to_csv(table), encoding="utf-8")
    write_json(workdir / "table.json", {"cells": results, "wall_seconds": round(seconds), "provenance": provenance()})
    cv2.imwrite(str(workdir / "picture.png"), cv2.cvtColor(picture(folders), cv2.COLOR_RGB2BGR))
    console.print(f"{seconds:.0f} s. Wrote table.md, table.csv, table.json and picture.png to {workdir}/")


if __name__ == "__main__":
    cli.run(main, required=[])
