"""Eleven architectures on CamVid: `python -m experiments.camvid.architectures --workdir=…`.

One recipe, that of `configs/camvid_unet_weighted.py`, and as many steps for each network; their widths are chosen so
that a pass costs about as many operations as the U-Net's. A row and seed of `--seed` is a cell: trained, scored and
written once, so the program can be cut and called again, and `--row` shares the cells among processes. `--time`
measures images a second too, on a machine with nothing else to do. `--only_table` prints what there is.
"""

import json
import math
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import flags
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from configs import camvid_unet_weighted
from experiments.camvid.ladder_scores import TOLERANCE
from experiments.sweep import table_rows
from experiments.sweep.table_rows import Row
from segjax import cli, metrics
from segjax.data.labels import VOID
from segjax.data.resize import resize
from segjax.inference import classify, predict_logits, whole_passes
from segjax.reporting import Report, Section, Table, show, spread, write_report
from segjax.storage import local_path, write_json
from segjax.training.evaluation import preprocessing_of
from segjax.training.provenance import provenance
from segjax.training.train_step import make_model

COST_FILE = "cost.json"
CLASSES = 11


class Published(NamedTuple):
    """What a paper reports of CamVid's test split, in per cent, and how its network or training is another."""

    mean_iou: float
    pixel_accuracy: float | None
    boundary_f1: float | None
    of: str


BAYESIAN = "Bayesian SegNet"
ROWS = {
    row.name: row
    for row in (
        Row("U-Net", {}),
        Row("patch classifier", {"model.name": "patch", "model.width": 8, "model.depth": 3}),
        Row("FCN-32s", {"model.name": "fcn", "model.width": 24, "model.hidden": 384, "model.output_stride": 32}),
        Row("FCN-16s", {"model.name": "fcn", "model.width": 24, "model.hidden": 384, "model.output_stride": 16}),
        Row("FCN-8s", {"model.name": "fcn", "model.width": 24, "model.hidden": 384}),
        Row("SegNet", {"model.name": "segnet", "model.width": 18}),
        # Dropout of ½ after each of the central six units.
        Row(
            BAYESIAN,
            {
                "model.name": "segnet",
                "model.width": 18,
                "model.deep_dropout": 3,
                "model.deep_dropout_rate": 0.5,
            },
        ),
        Row("SegNet-Basic", {"model.name": "segnet_basic", "model.width": 23}),
        Row("U-Net, ResNet-18", {"model.name": "resnet_unet", "model.width": 48}),
        # The papers' dilations, as shares of the map: 24×32 pixels here, and 12×16. Batch norm of the mean of each of
        # two images would be a sign.
        Row(
            "DeepLab v2, ResNet-18",
            {"model.name": "deeplab_v2", "model.width": 32, "model.aspp_dilations": (4, 7, 10, 14)},
        ),
        Row(
            "DeepLab v3+, ResNet-18",
            {
                "model.name": "deeplab_v3_plus",
                "model.width": 56,
                "model.hidden": 64,
                "model.aspp_dilations": (2, 4, 6),
                "model.norm": "group",
            },
        ),
    )
}
# Those without a row of ours stand at the end.
PUBLISHED = {
    "FCN-8s": Published(57.0, 88.0, None, "135 M parameters, pretrained"),
    "SegNet": Published(46.4, None, None, "trained on the same 367 images, wider"),
    BAYESIAN: Published(63.1, 86.9, None, "wider, and many samples"),
    "SegNet-Basic": Published(47.7, 82.7, 35.8, "1.4 M parameters"),
    "FC-DenseNet56": Published(58.9, 88.9, None, "1.4 M parameters"),
    "FC-DenseNet103": Published(66.9, 91.5, None, "9.4 M parameters"),
    "FC-HarDNet84": Published(67.7, 91.1, None, "8.4 M parameters"),
}
SEGNETS = 0.0075  # of the image's diagonal: the tolerance of its BF, 4.5 pixels here
PASSES = 8  # of Bayesian SegNet's dropout
QUESTION = (
    "Each architecture is trained with the same recipe, from random weights, for as many steps, at a width at which a "
    "pass costs about what the U-Net's does. The recipe was chosen with the U-Net, on this validation split; in eight "
    "epochs of batch 2 it shows who learns fast, and the U-Net itself goes on rising for twenty. Images are seen at "
    "192×256, and scores are of the validation split at its native 360×480. What papers report is of the test split, "
    "of wider networks at full size, some with a pretrained encoder, and trained for hundreds of epochs: compare the "
    "order, and not the height."
)


def row_config(row: Row, seed: int, steps: int | None = None) -> ConfigDict:
    """The config of one cell: 8 epochs, or `steps`."""
    config = camvid_unet_weighted.get_config()
    epoch = -(-367 // config.training.global_batch)
    return table_rows.row_config(config, row, seed, steps or 8 * epoch)


def make_counts(config: ConfigDict, model: Any, num_classes: int) -> Any:
    """Builds `step(state, batch) -> counts`: the confusion matrix, and the boundaries' matches.

    Of a network with dropout deep in it the mean of `PASSES` samples is scored.
    """
    preprocessing = preprocessing_of(config, num_classes)

    def logits_of(state: Any, batch: dict[str, jax.Array], canvas: tuple[int, int]) -> jax.Array:
        if not config.model.deep_dropout:
            return predict_logits(model, state.variables, batch["image"], batch["size"], preprocessing)
        images, key = preprocessing.network_input(batch["image"], batch["size"]), jax.random.key(0)
        _, unsure = whole_passes(model, state.variables, images, key, samples=PASSES)
        logits = jnp.log(jnp.maximum(unsure.probabilities, 1e-30))
        return resize(logits, canvas, antialias=False, to_sizes=batch["size"])

    def step(state: Any, batch: dict[str, jax.Array]) -> dict[str, Any]:
        labels = batch["label"].astype(jnp.int32)
        predicted = classify(logits_of(state, batch, labels.shape[1:]), num_classes)
        where, counted = (labels != VOID) & batch["where"][:, None, None], (labels, predicted, num_classes)
        tolerance = SEGNETS * math.hypot(*labels.shape[1:])
        by_image = metrics.boundary_counts_per_image(*counted, tolerance=tolerance, where=where)
        return {
            "confusion": metrics.confusion_matrix(*counted, where=where),
            "boundary": metrics.boundary_counts(*counted, tolerance=TOLERANCE, where=where),
            "segnets": segnets_boundary_f1(by_image),
        }

    return step


def segnets_boundary_f1(counts: Int[Array, "images classes 4"]) -> Float[Array, "2"]:
    """`metrics.boundary_f1_per_image` as two sums that add over batches: of the images' scores, and of the images."""
    hit, predicted, found, true = jnp.moveaxis(counts.astype(jnp.float32), -1, 0)
    precision, recall = hit / jnp.maximum(predicted, 1), found / jnp.maximum(true, 1)
    f1 = 2 * precision * recall / jnp.maximum(precision + recall, 1e-12)
    present = jnp.sum(true > 0, axis=-1)
    of_image = jnp.sum(jnp.where(true > 0, f1, 0), axis=-1) / jnp.maximum(present, 1)
    return jnp.stack([jnp.sum(of_image), jnp.sum(present > 0)])


def scores(counts: dict[str, Any], images: int) -> dict[str, Any]:
    """The columns, and IoU by class."""
    segmentation = metrics.segmentation_scores(counts["confusion"])
    return {
        "images": images,
        "mean_iou": float(segmentation["mean_iou"]),
        "pixel_accuracy": float(segmentation["pixel_accuracy"]),
        "boundary_f1": float(metrics.boundary_f1(counts["boundary"])["mean_boundary_f1"]),
        "segnets_boundary_f1": float(counts["segnets"][0] / counts["segnets"][1]),
        "iou_per_class": [float(value) for value in segmentation["iou_per_class"]],
    }


def costs(rows: dict[str, Row], rounds: int) -> dict[str, Any]:
    """Parameters, operations of a pass over one image by the compiler's count, and with rounds images a second.

    The pixels are noise. The seconds are medians of `rounds` interleaved passes over a batch of 8. The compiler leaves
    out products with padding: of a dilated network it counts less than by hand.
    """
    found, prepared, rng = {}, [], np.random.default_rng(0)
    for name, row in rows.items():
        config = row_config(row, 0)
        model, images = make_model(config, CLASSES), rng.standard_normal((8, *config.data.size, 3)).astype(np.float32)
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
        for name, forward, operands in (prepared[i] for i in rng.permutation(len(prepared))):
            begun = time.perf_counter()
            jax.block_until_ready(forward(*operands))
            seconds[name].append(time.perf_counter() - begun)
    for name, values in seconds.items():
        found[name]["images_a_second"] = 8 / statistics.median(values)
    return {"rows": found, "rounds": rounds, "of": _changes(rows), "provenance": provenance()}


def _changes(rows: Mapping[str, Row]) -> dict[str, Any]:
    """What the rows change, as JSON gives it back."""
    return json.loads(json.dumps({name: row.changes for name, row in rows.items()}))


def _flags(row: Row) -> str:
    """The row's changes as the command line takes them, and as short."""
    return " ".join(f"{field}={value}".replace(" ", "") for field, value in row.changes.items()) or "the recipe's own"


SCORED = {
    "mean IoU": "mean_iou",
    "pixel accuracy": "pixel_accuracy",
    "boundary F1": "boundary_f1",
    "SegNet's BF": "segnets_boundary_f1",
}


def table(measured: list[dict[str, Any]], cost: dict[str, Any]) -> Table:
    """A row an architecture that has a cell: what it costs, its scores, and what its paper reports."""
    lines = []
    for name in {**ROWS, **PUBLISHED}:
        of_row, paper = [cell for cell in measured if cell["row"] == name], PUBLISHED.get(name)
        if name in ROWS and not of_row:
            continue
        price = cost["rows"].get(name, {})
        rate = price.get("images_a_second")
        lines.append(
            (
                name,
                f"{price['parameters'] / 1e6:.2f}" if price else None,
                f"{price['flops'] / 1e9:.2f}" if price else None,
                None if rate is None else f"{rate:.1f}",
                *(spread([cell[key] for cell in of_row]) for key in SCORED.values()),
                *(None if one is None else f"{one / 100:.3f}" for one in (paper[:3] if paper else ())),
                *([] if paper else [None] * 3),
            )
        )
    columns = ("network", "M parameters", "GFLOP an image", "images/s", *SCORED)
    papers = tuple(f"paper: {what}" for what in ("mean IoU", "pixel accuracy", "BF"))
    return Table("CamVid validation, one recipe for all", columns + papers, lines, tuple(SCORED))


def report(measured: list[dict[str, Any]], cost: dict[str, Any]) -> Report:
    """The table of all that was measured so far, and where it comes from."""
    config, reach = row_config(ROWS["U-Net"], 0), SEGNETS * math.hypot(360, 480)
    seconds = sum(cell["provenance"]["wall_seconds"] for cell in measured)
    facts = {
        "data": "CamVid, validation, scored at 360×480",
        "recipe": f"configs/camvid_unet_weighted.py, {measured[0]['steps'] if measured else config.training.steps} "
        f"steps of batch {config.training.global_batch}, {config.data.size[0]}×{config.data.size[1]} pixels",
        "rows": "; ".join(f"{name}: {_flags(row)}" for name, row in ROWS.items()),
        "papers": "; ".join(f"{name}: {one.of}" for name, one in PUBLISHED.items()),
        "seeds": sorted({cell["seed"] for cell in measured}),
        "boundary F1": f"of all images together, within {TOLERANCE:g} pixels",
        "SegNet's BF": f"the mean over images, within {reach:.2g} pixels, as in its paper",
        BAYESIAN: f"the mean of {PASSES} passes with dropout",
        "time": f"{seconds / 3600:.1f} hours, the sum of the cells, each since it was last begun",
        "images/s": f"medians of {cost['rounds']} interleaved passes over 8 images of the network's size, float32, "
        "without resizing"
        if cost["rounds"]
        else "not timed",
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
    table_rows.run_cells(options, ROWS, row_config, workdir, console, make_counts, scores)
    cost_file = workdir / COST_FILE
    cost = json.loads(cost_file.read_text(encoding="utf-8")) if cost_file.exists() else {}
    if options.time or cost.get("of") != _changes(ROWS):
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(cost_file, costs(ROWS, rounds=9 if options.time else 0))
    cost, measured = json.loads(Path(cost_file).read_text(encoding="utf-8")), table_rows.cells(workdir, ROWS)
    whole = report(measured, cost)
    show(whole.sections[0].tables[0], console)
    written = write_report(whole, workdir, "architectures", {"cells": measured, "cost": cost})
    console.print(f"Wrote {written[0]}, and the same as Markdown, CSV, LaTeX and JSON beside it")


if __name__ == "__main__":
    table_rows.define_flags("architectures", [0], "8 epochs", "Measure images a second")
    cli.run(main, required=[])
