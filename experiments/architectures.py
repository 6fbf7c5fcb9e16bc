"""The architectures beside each other on CamVid: `python -m experiments.architectures --workdir=…`.

One recipe, that of `configs/camvid_unet_weighted.py`, and as many steps for each network; their widths are chosen so
that a pass costs about as many operations as the U-Net's. A row and seed of `--seed` is a cell: trained, scored and
written once, so the program can be cut and called again, and `--row` shares the cells among processes. `--time`
measures images a second too, on a machine with nothing else to do. `--only_table` prints what there is.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import flags
from ml_collections import ConfigDict

from configs import camvid_unet_weighted
from experiments import cells
from experiments.cells import Row
from experiments.ladder_scores import TOLERANCE
from segjax import cli, metrics
from segjax.data.labels import VOID
from segjax.reporting import Report, Section, Table, show, spread, write_report
from segjax.training.loop import write_json
from segjax.training.networks import make_model
from segjax.training.prediction import classify, make_predict
from segjax.training.provenance import provenance
from segjax.training.storage import local_path, write_bytes

COST_FILE = "cost.json"
CLASSES = 11


class Published(NamedTuple):
    """What a paper reports of CamVid's test split, in per cent, and how its network or training is another."""

    mean_iou: float
    boundary_f1: float | None
    of: str


FCN_8S = Published(57.0, None, "FCN-8s, 135 M parameters, pretrained")
ROWS = {
    row.name: row
    for row in (
        Row("U-Net", {}),
        Row("patch classifier", {"model.name": "patch", "model.width": 8, "model.depth": 3}),
        Row("FCN-32s", {"model.name": "fcn", "model.width": 24, "model.hidden": 384, "model.output_stride": 32}),
        Row("FCN-16s", {"model.name": "fcn", "model.width": 24, "model.hidden": 384, "model.output_stride": 16}),
        Row("FCN-8s", {"model.name": "fcn", "model.width": 24, "model.hidden": 384}),
        Row("SegNet", {"model.name": "segnet", "model.width": 18}),
        Row("SegNet-Basic", {"model.name": "segnet_basic", "model.width": 23}),
        Row("U-Net, ResNet-18", {"model.name": "resnet_unet", "model.width": 48}),
        Row("DeepLab v2, ResNet-18", {"model.name": "deeplab_v2", "model.width": 32}),
        Row("DeepLab v3+, ResNet-18", {"model.name": "deeplab_v3_plus", "model.width": 56, "model.hidden": 64}),
    )
}
PUBLISHED = {
    "FCN-8s": FCN_8S,
    "SegNet": Published(46.4, None, "SegNet, trained on the same 367 images"),
    "SegNet-Basic": Published(47.7, 35.8, "SegNet-Basic, 1.4 M parameters"),
}
QUESTION = (
    "Each architecture is trained with the same recipe, from random weights, for as many steps, at a width at which a "
    "pass costs about what the U-Net's does. Scores are of the validation split at its native 360×480. What papers "
    "report is of the test split, of wider networks at full size, most with a pretrained encoder, and trained for "
    "hundreds of epochs: the order is worth comparing and the height is not."
)


def row_config(row: Row, seed: int, steps: int | None = None) -> ConfigDict:
    """The config of one cell: 8 epochs, or `steps`."""
    config = camvid_unet_weighted.get_config()
    epoch = -(-367 // config.training.global_batch)
    return cells.row_config(config, row, seed, steps or 8 * epoch)


def make_counts(config: ConfigDict, model: Any, num_classes: int) -> Any:
    """Builds `step(state, batch) -> counts`: the confusion matrix, and the boundaries' matches."""
    predict = make_predict(config, model)

    def step(state: Any, batch: dict[str, jax.Array]) -> dict[str, Any]:
        labels = batch["label"].astype(jnp.int32)
        predicted = classify(predict(state, batch["image"], batch["size"], labels.shape[1:]), num_classes)
        where = (labels != VOID) & batch["where"][:, None, None]
        return {
            "confusion": metrics.confusion_matrix(labels, predicted, num_classes, where=where),
            "boundary": metrics.boundary_counts(labels, predicted, num_classes, tolerance=TOLERANCE, where=where),
        }

    return step


def scores(counts: dict[str, Any], images: int) -> dict[str, Any]:
    """The columns, and IoU by class."""
    segmentation = metrics.segmentation_scores(counts["confusion"])
    return {
        "images": images,
        "mean_iou": float(segmentation["mean_iou"]),
        "pixel_accuracy": float(segmentation["pixel_accuracy"]),
        "boundary_f1": float(metrics.boundary_f1(counts["boundary"])["mean_boundary_f1"]),
        "iou_per_class": [float(value) for value in segmentation["iou_per_class"]],
    }


def costs(rows: dict[str, Row], rounds: int) -> dict[str, Any]:
    """Parameters, operations of a pass over one image by the compiler's count, and with rounds images a second.

    The pixels are noise. The seconds are medians of `rounds` interleaved passes over a batch of 8.
    """
    found, prepared = {}, []
    for name, row in rows.items():
        config = row_config(row, 0)
        model, images = make_model(config, CLASSES), np.zeros((8, *config.data.size, 3), np.float32)
        variables = jax.jit(lambda key, x, model=model: model.init(key, x, train=False))(jax.random.key(0), images[:1])
        forward = jax.jit(lambda v, x, model=model: model.apply(v, x, train=False).logits)
        cost = forward.lower(variables, images[:1]).compile().cost_analysis()
        parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        found[name] = {"parameters": parameters, "flops": cost["flops"]}
        if rounds:
            jax.block_until_ready(forward(variables, images))
            prepared.append((name, forward, (variables, images)))
    seconds: dict[str, list[float]] = {name: [] for name, *_ in prepared}
    for _ in range(rounds):
        for name, forward, operands in prepared:
            begun = time.perf_counter()
            jax.block_until_ready(forward(*operands))
            seconds[name].append(time.perf_counter() - begun)
    for name, values in seconds.items():
        found[name]["images_a_second"] = 8 / statistics.median(values)
    return {"rows": found, "rounds": rounds, "provenance": provenance()}


def table(measured: list[dict[str, Any]], cost: dict[str, Any]) -> Table:
    """A row an architecture that has a cell: what it costs, its scores, and what its paper reports."""
    lines = []
    for name in ROWS:
        of_row = [cell for cell in measured if cell["row"] == name]
        if not of_row:
            continue
        price, paper = cost["rows"][name], PUBLISHED.get(name)
        rate = price.get("images_a_second")
        lines.append(
            (
                name,
                f"{price['parameters'] / 1e6:.2f}",
                f"{price['flops'] / 1e9:.2f}",
                None if rate is None else f"{rate:.1f}",
                *(spread([cell[key] for cell in of_row]) for key in ("mean_iou", "pixel_accuracy", "boundary_f1")),
                paper and f"{paper.mean_iou / 100:.3f}",
                paper and paper.boundary_f1 and f"{paper.boundary_f1 / 100:.3f}",
            )
        )
    scored = ("mean IoU", "pixel accuracy", "boundary F1")
    columns = ("network", "M parameters", "GFLOP an image", "images/s", *scored, "paper: mean IoU", "paper: BF")
    return Table("CamVid validation, one recipe for all", columns, lines, scored)


def report(measured: list[dict[str, Any]], cost: dict[str, Any]) -> Report:
    """The table of all that was measured so far, and where it comes from."""
    config = row_config(ROWS["U-Net"], 0)
    seconds = sum(cell["provenance"]["wall_seconds"] for cell in measured)
    facts = {
        "data": "CamVid, validation, scored at 360×480",
        "recipe": f"configs/camvid_unet_weighted.py, {measured[0]['steps'] if measured else config.training.steps} "
        f"steps of batch {config.training.global_batch}, {config.data.size[0]}×{config.data.size[1]} pixels",
        "widths": {name: row.changes for name, row in ROWS.items()},
        "papers": {name: one.of for name, one in PUBLISHED.items()},
        "seeds": sorted({cell["seed"] for cell in measured}),
        "time": f"{seconds / 3600:.1f} hours, the sum of the cells",
        "images/s": f"medians of {cost['rounds']} interleaved passes over 8 images" if cost["rounds"] else "not timed",
        "command": provenance()["command"],
        "commit of the cells": sorted({cell["provenance"]["commit"] for cell in measured}),
        "device": cost["provenance"]["device"],
        "CPU threads": cost["provenance"]["cpu_threads"],
        "versions": cost["provenance"]["versions"],
    }
    return Report("From patches to DeepLab", QUESTION, (Section("In one table", "", (table(measured, cost),)),), facts)


def main(argv: list[str]) -> None:
    """Runs the cells asked for that are missing, then prints and writes the table of all there are."""
    del argv
    options, console = flags.FLAGS, rich.console.Console()
    workdir = local_path(options.workdir)
    cells.run_cells(options, ROWS, row_config, workdir, console, make_counts, scores)
    cost_file = workdir / COST_FILE
    if options.time or not cost_file.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(cost_file, costs(ROWS, rounds=9 if options.time else 0))
    cost, measured = json.loads(Path(cost_file).read_text(encoding="utf-8")), cells.cells(workdir, ROWS)
    whole = report(measured, cost)
    show(whole.sections[0].tables[0], console)
    written = write_report(whole, workdir, "architectures", {"cells": measured, "cost": cost}, write=write_bytes)
    console.print(f"Wrote {written[0]}, and the same as Markdown, CSV, LaTeX and JSON beside it")


if __name__ == "__main__":
    cells.define_flags("architectures", [0], "8 epochs", "Measure images a second")
    cli.run(main, required=[])
