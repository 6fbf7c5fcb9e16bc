"""Chooses a recipe for CamVid without its validation split: `python -m experiments.camvid.selection --workdir=…`.

Every row changes the recipe of `configs/camvid_unet_weighted.py` and is trained for ten epochs on 317 of the 367
training images. It is scored on the other 50, which are ten stretches of five frames of one sequence. A scored frame is
1 to 3 seconds from a trained one, so it is easier than one of the validation split, which is 1.3 to 4.5 seconds away.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
from absl import flags
from ml_collections import ConfigDict

from experiments.camvid.uncertainty_ladder import TOLERANCE
from experiments.sweep import table_rows
from experiments.sweep.results_io import local_path, provenance_facts, publish
from experiments.sweep.table_rows import Rows
from segjax import cli, metrics
from segjax.configs import camvid_unet_weighted
from segjax.data.labels import VOID
from segjax.inference import classify
from segjax.reporting import Report, Section, Table
from segjax.training.network import preprocessing_of

IMAGES, EPOCHS, BATCH = 367, 10, 2
# First frames of the stretches, and their length; the sequence 0016E5 has the frames from 163.
STRETCHES, LENGTH = range(170, 360, 20), 5
RATE = 2e-3  # of the recipe

RECIPE, MULTISCALE = "recipe", "multiscale"
COLUMNS = {"mean IoU": "mean_iou", "pixel accuracy": "pixel_accuracy", "boundary F1": "boundary_f1"}


def splits() -> tuple[str, str]:
    """Returns the trained and the scored part of the training split."""
    ends = [0, *(end for first in STRETCHES for end in (first, first + LENGTH)), IMAGES]
    kept = zip(ends[::2], ends[1::2], strict=True)
    held_out = ((first, first + LENGTH) for first in STRETCHES)
    kept, held_out = ("+".join(f"train[{a}:{b}]" for a, b in parts) for parts in (kept, held_out))
    return kept, held_out


def _schedule(batch: int = BATCH, rate: float = RATE) -> dict[str, Any]:
    """Returns the fields of ten epochs, with the recipe's crops of 60 %, 75 % and 100 % for a third each."""
    steps = (IMAGES - LENGTH * len(STRETCHES)) * EPOCHS // batch
    lengths = (steps // 3, steps // 3, steps - 2 * (steps // 3))
    return {
        "training.global_batch": batch,
        "training.steps": steps,
        "training.evaluate_every": steps,
        "training.checkpoint_every": steps // 10,
        "optimizer.learning_rate": rate,
        "training.phases": tuple((crop, length, rate) for crop, length in zip((0.6, 0.75, 1.0), lengths, strict=True)),
    }


_MULTISCALE = {"model.multiscale": True}
_LOVASZ = {"objective.region": "lovasz"}
_RARE = {"augment.rare_classes": ("pole", "sign", "pedestrian", "bicyclist")}
_WIDE = {"model.width": 32, "model.depth": 3}
_CAPPED = {"model.width": 32, "model.depth": 5, "model.max_width": 96}
_LITE0 = {
    "model.name": "encoder_unet",
    "model.encoder": "efficientnet_lite0",
    "model.pretrained": "package",
    "model.width": 32,
    "data.mean": (127 / 255,),
    "data.std": (128 / 255,),
}
ROWS: Rows = {
    RECIPE: {},
    "width 8, depth 5": {"model.width": 8, "model.depth": 5},
    "FCN-8s, width 20": {"model.name": "fcn", "model.width": 20, "model.hidden": 64},
    MULTISCALE: _MULTISCALE,
    "multiscale, batch 1": _MULTISCALE | _schedule(batch=1) | {"training.ema_decay": 0.995},
    "multiscale, learning rate 4e-3": _MULTISCALE | _schedule(rate=4e-3),
    "multiscale, width 32, depth 3": _MULTISCALE | _WIDE,
    "multiscale, Lovász": _MULTISCALE | _LOVASZ,
    "multiscale, Lovász, copy-paste": _MULTISCALE | _LOVASZ | _RARE | {"augment.copy_paste": 0.5},
    "multiscale, Lovász, width 32, depth 5, at most 96": _MULTISCALE | _LOVASZ | _CAPPED,
    "multiscale, Lovász, group norm": _MULTISCALE | _LOVASZ | {"model.norm": "group"},
    "multiscale, boundary factor 6": _MULTISCALE | {"objective.boundary_factor": 6.0},
    "multiscale, width 32, depth 3, Lovász": _MULTISCALE | _WIDE | _LOVASZ,
    "Lite0": _LITE0,
    "Lite0, multiscale": _LITE0 | _MULTISCALE,
    "Lite0, multiscale, learning rate 1e-3": _LITE0 | _MULTISCALE | _schedule(rate=1e-3),
    "Lite0, multiscale, learning rate 5e-4": _LITE0 | _MULTISCALE | _schedule(rate=5e-4),
}


def base_config(steps: int | None = None) -> ConfigDict:
    """Returns the config that the rows change, if `steps` is given shortened to a run of the same shape."""
    config = camvid_unet_weighted.get_config()
    config.data.train_split, config.data.eval_split = splits()
    config.data.workers = 0
    config.update_from_flattened_dict(_schedule())
    return table_rows.shortened(config, steps)


def make_counts(config: ConfigDict, model: Any, num_classes: int) -> Callable:
    """Builds `step(state, batch) -> counts` of the columns, at the resolution of the labels."""
    preprocessing = preprocessing_of(config, num_classes)

    def step(state: Any, batch: dict[str, jax.Array]) -> dict[str, Any]:
        labels = batch["label"].astype(jnp.int32)
        images = preprocessing.network_input(batch["image"], batch["size"])
        outputs = model.apply(state.variables, images, train=False).logits
        predicted = classify(preprocessing.to_native(outputs, labels.shape[1:], batch["size"]), num_classes)
        where = batch["where"][:, None, None] & (labels != VOID)
        count = partial(metrics.boundary_counts, tolerance=TOLERANCE, where=where)
        return {
            "confusion": metrics.confusion_matrix(labels, predicted, num_classes, where=where),
            "boundary": count(labels, predicted, num_classes),
        }

    return step


def scores(counts: dict[str, Any], images: int) -> dict[str, Any]:
    """Returns the columns, and IoU per class, from the summed counts."""
    del images
    return table_rows.segmentation_columns(counts["confusion"], counts["boundary"])


def report(measured: list[dict[str, Any]]) -> Report:
    """Returns the report of all finished cells, with the IoU of every class."""
    names, lines = measured[0]["classes"], []
    for row in ROWS:
        cells = [cell for cell in measured if cell["row"] == row]
        if cells:
            per_class = zip(*(cell["iou_per_class"] for cell in cells), strict=True)
            means = [sum(values) / len(values) for values in per_class]
            lines.append((row, str(len(cells)), *table_rows.over_seeds(measured, row, COLUMNS.values()), *means))
    best = max(lines, key=lambda line: line[2].mean)
    table = Table("Scored part of the training split", ("row", "seeds", *COLUMNS, *names), lines, tuple(COLUMNS))
    text = (
        f"{best[0]} has the highest mean IoU, {best[2].mean:.3f}. Every row changes the recipe of "
        "configs/camvid_unet_weighted.py and is trained for ten epochs on 317 of the 367 training images; the other "
        "50 are scored. The validation split is not used."
    )
    facts = {"data": "CamVid, parts of the training split", **_run_facts(), **provenance_facts(measured)}
    return Report(
        "A recipe for CamVid, chosen on training images", text, (Section("All settings", "", (table,)),), facts
    )


def _run_facts() -> dict[str, Any]:
    config = base_config()
    height, width = config.data.size
    return {"run": f"{config.training.steps} steps of batch {config.training.global_batch}, {height}×{width} pixels"}


def main(argv: list[str]) -> None:
    """Runs the selected cells that are missing, then prints and writes the table of all finished cells."""
    cli.refuse_arguments(argv)
    options, console = flags.FLAGS, rich.console.Console()
    workdir = local_path(options.workdir)
    table_rows.run_cells(options, ROWS, base_config(options.steps), workdir, console, make_counts, scores)
    measured = table_rows.finished_cells(workdir, ROWS)
    publish(report(measured), workdir, "camvid_selection", {"cells": measured}, console)


if __name__ == "__main__":
    table_rows.define_flags("camvid_selection", [0], "ten epochs")
    cli.run(main, required=[])
