"""Eleven architectures on CamVid: `python -m experiments.camvid.architectures --workdir=…`.

All networks are trained with the recipe of `configs/camvid_unet_weighted.py` for the same number of steps. Their widths
are chosen so that a forward pass costs about as many operations as the U-Net's. Each row and seed is trained, scored
and written once; kill the command and rerun it, or run it twice to share the rows between two processes.
"""

import json
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import flags
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from experiments.benchmarks.timing import Case, milliseconds
from experiments.camvid.uncertainty_ladder import TOLERANCE
from experiments.sweep import table_rows
from experiments.sweep.grid import Changes
from experiments.sweep.results_io import local_path, provenance_facts, publish
from experiments.sweep.table_rows import Rows
from segjax import cli, metrics
from segjax.configs import camvid_unet_weighted
from segjax.data.labels import VOID
from segjax.data.resize import resize
from segjax.inference import classify, predict_logits, whole_passes
from segjax.reporting import Report, Section, Table
from segjax.storage import read_json, to_json, write_outputs
from segjax.training.config import from_leaves, leaves
from segjax.training.network import make_model, preprocessing_of
from segjax.training.provenance import provenance

COST_FILE = "cost.json"
CLASSES = 11


class Published(NamedTuple):
    """Scores of a paper on CamVid's test split, in per cent, and how its network or training differs from ours."""

    mean_iou: float
    pixel_accuracy: float | None
    boundary_f1: float | None
    note: str


BAYESIAN = "Bayesian SegNet"
ROWS: Rows = {
    "U-Net": {},
    "patch classifier": {"model.name": "patch", "model.width": 8, "model.depth": 3},
    "FCN-32s": {"model.name": "fcn", "model.width": 24, "model.hidden": 384, "model.output_stride": 32},
    "FCN-16s": {"model.name": "fcn", "model.width": 24, "model.hidden": 384, "model.output_stride": 16},
    "FCN-8s": {"model.name": "fcn", "model.width": 24, "model.hidden": 384},
    "SegNet": {"model.name": "segnet", "model.width": 18},
    # Dropout of ½ after each of the central six units.
    BAYESIAN: {"model.name": "segnet", "model.width": 18, "model.deep_dropout": 3, "model.deep_dropout_rate": 0.5},
    "SegNet-Basic": {"model.name": "segnet_basic", "model.width": 23},
    "U-Net, ResNet-18": {"model.name": "encoder_unet", "model.width": 48},
    # The papers' dilations as shares of the feature map, which has 24×32 pixels here, and 12×16 for v3+. Group norm,
    # because a batch norm over the pooled features of two images would leave only their signs.
    "DeepLab v2, ResNet-18": {"model.name": "deeplab_v2", "model.width": 32, "model.aspp_dilations": (4, 7, 10, 14)},
    "DeepLab v3+, ResNet-18": {
        "model.name": "deeplab_v3_plus",
        "model.width": 56,
        "model.hidden": 64,
        "model.aspp_dilations": (2, 4, 6),
        "model.norm": "group",
    },
}
# Networks that are not among our rows are at the end of the table.
PUBLISHED = {
    "FCN-8s": Published(57.0, 88.0, None, "135 M parameters, pretrained"),
    "SegNet": Published(46.4, None, None, "trained on the same 367 images, wider"),
    BAYESIAN: Published(63.1, 86.9, None, "wider, and many samples"),
    "SegNet-Basic": Published(47.7, 82.7, 35.8, "1.4 M parameters"),
    "FC-DenseNet56": Published(58.9, 88.9, None, "1.4 M parameters"),
    "FC-DenseNet103": Published(66.9, 91.5, None, "9.4 M parameters"),
    "FC-HarDNet84": Published(67.7, 91.1, None, "8.4 M parameters"),
}
SEGNET_TOLERANCE = 0.0075  # of the diagonal, 4.5 pixels here: the tolerance of the boundary F1 in SegNet's paper
PASSES = 8  # with dropout, of Bayesian SegNet
QUESTION = (
    "Each architecture is trained with the same recipe, from random weights, for the same number of steps, at a width "
    "at which a forward pass costs about as much as the U-Net's. The recipe was chosen with the U-Net, on this "
    "validation split. Eight epochs of batch 2 show which networks learn fast; the U-Net itself improves for twenty. "
    "Images are resized to 192×256, and scores are those of the validation split at its native 360×480. The papers' "
    "scores are those of the test split, of wider networks at full size, some with a pretrained encoder, trained for "
    "hundreds of epochs: compare the order and not the values."
)


def base_config(steps: int | None = None) -> ConfigDict:
    """Returns the config that the rows change: `steps` steps, by default 8 epochs."""
    config = camvid_unet_weighted.get_config()
    epoch = -(-367 // config.training.global_batch)
    return table_rows.shortened(config, steps or 8 * epoch)


def make_counts(config: ConfigDict, model: Any, num_classes: int) -> Any:
    """Builds `step(state, batch) -> counts`: the confusion matrix and the counts of boundary F1.

    For a network with deep dropout the mean of `PASSES` samples is scored.
    """
    preprocessing = preprocessing_of(config, num_classes)

    def logits_of(state: Any, batch: dict[str, jax.Array], canvas: tuple[int, int]) -> jax.Array:
        if not config.model.deep_dropout:
            return predict_logits(model, state.variables, batch["image"], batch["size"], preprocessing)
        images, key = preprocessing.network_input(batch["image"], batch["size"]), jax.random.key(0)
        _, uncertainty = whole_passes(model, state.variables, images, key, samples=PASSES)
        logits = jnp.log(jnp.maximum(uncertainty.probabilities, 1e-30))
        return resize(logits, canvas, antialias=False, to_sizes=batch["size"])

    def step(state: Any, batch: dict[str, jax.Array]) -> dict[str, Any]:
        labels = batch["label"].astype(jnp.int32)
        predicted = classify(logits_of(state, batch, labels.shape[1:]), num_classes)
        where, counted = (labels != VOID) & batch["where"][:, None, None], (labels, predicted, num_classes)
        tolerance = SEGNET_TOLERANCE * math.hypot(*labels.shape[1:])
        by_image = metrics.boundary_counts_per_image(*counted, tolerance=tolerance, where=where)
        return {
            "confusion": metrics.confusion_matrix(*counted, where=where),
            "boundary": metrics.boundary_counts(*counted, tolerance=TOLERANCE, where=where),
            "segnet_boundary_f1": segnet_boundary_f1_sums(by_image),
        }

    return step


def segnet_boundary_f1_sums(counts: Int[Array, "images classes 4"]) -> Float[Array, "2"]:
    """Returns the sum of `metrics.boundary_f1_per_image` and the number of images, which add over batches."""
    hit, predicted, found, true = jnp.moveaxis(counts.astype(jnp.float32), -1, 0)
    precision, recall = hit / jnp.maximum(predicted, 1), found / jnp.maximum(true, 1)
    f1 = 2 * precision * recall / jnp.maximum(precision + recall, 1e-12)
    present = jnp.sum(true > 0, axis=-1)
    per_image = jnp.sum(jnp.where(true > 0, f1, 0), axis=-1) / jnp.maximum(present, 1)
    return jnp.stack([jnp.sum(per_image), jnp.sum(present > 0)])


def scores(counts: dict[str, Any], images: int) -> dict[str, Any]:
    """Returns the columns of a cell, and its IoU per class."""
    columns = table_rows.segmentation_columns(counts["confusion"], counts["boundary"])
    return {"images": images, **columns, "segnets_boundary_f1": float(np.divide(*counts["segnet_boundary_f1"]))}


def costs(rows: Rows, rounds: int) -> dict[str, Any]:
    """Returns parameters, operations per image by the compiler's count and, if `rounds` > 0, images per second.

    Times are medians of `rounds` interleaved passes over a batch of 8 images of noise. The compiler does not count
    products with padding, so its count for a dilated network is lower than one by hand.
    """
    found, cases, rng = {}, [], np.random.default_rng(0)
    for name, row in rows.items():
        config = from_leaves(leaves(base_config()) | row)
        model, images = make_model(config, CLASSES), rng.standard_normal((8, *config.data.size, 3)).astype(np.float32)
        variables = jax.jit(lambda key, x, model=model: model.init(key, x, train=False))(jax.random.key(0), images[:1])
        forward = jax.jit(lambda v, x, model=model: model.apply(v, x, train=False).logits)
        cost = forward.lower(variables, images[:1]).compile().cost_analysis()
        parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        found[name] = {"parameters": parameters, "flops": cost["flops"]}
        cases.append(Case(name, partial(forward, variables, images)))
    for name, value in milliseconds(cases, rounds).items() if rounds else ():
        found[name]["images_a_second"] = 8000 / value
    return {"rows": found, "rounds": rounds, "of": json.loads(json.dumps(rows)), "provenance": provenance()}


def _flags(row: Changes) -> str:
    """Returns the changes of a row in the form of command-line flags."""
    return " ".join(f"{field}={value}".replace(" ", "") for field, value in row.items()) or "the recipe's own"


SCORED = {
    "mean IoU": "mean_iou",
    "pixel accuracy": "pixel_accuracy",
    "boundary F1": "boundary_f1",
    "SegNet's BF": "segnets_boundary_f1",
}


def table(measured: list[dict[str, Any]], cost: dict[str, Any]) -> Table:
    """Returns one row per architecture with a finished cell: its cost, its scores and those of its paper."""
    lines = []
    for name in {**ROWS, **PUBLISHED}:
        paper = PUBLISHED.get(name)
        if name in ROWS and all(cell["row"] != name for cell in measured):
            continue
        price = cost["rows"].get(name, {})
        rate = price.get("images_a_second")
        lines.append(
            (
                name,
                f"{price['parameters'] / 1e6:.2f}" if price else None,
                f"{price['flops'] / 1e9:.2f}" if price else None,
                None if rate is None else f"{rate:.1f}",
                *table_rows.over_seeds(measured, name, SCORED.values()),
                *(None if one is None else f"{one / 100:.3f}" for one in (paper[:3] if paper else ())),
                *([] if paper else [None] * 3),
            )
        )
    columns = ("network", "M parameters", "GFLOP per image", "images/s", *SCORED)
    papers = tuple(f"paper: {score}" for score in ("mean IoU", "pixel accuracy", "BF"))
    return Table("CamVid validation, one recipe for all", columns + papers, lines, tuple(SCORED))


def report(measured: list[dict[str, Any]], cost: dict[str, Any]) -> Report:
    """Returns the report of all finished cells, with their provenance."""
    config, reach = base_config(), SEGNET_TOLERANCE * math.hypot(360, 480)
    facts = {
        "data": "CamVid, validation, scored at 360×480",
        "recipe": f"configs/camvid_unet_weighted.py, {measured[0]['steps'] if measured else config.training.steps} "
        f"steps of batch {config.training.global_batch}, {config.data.size[0]}×{config.data.size[1]} pixels",
        "rows": "; ".join(f"{name}: {_flags(row)}" for name, row in ROWS.items()),
        "papers": "; ".join(f"{name}: {one.note}" for name, one in PUBLISHED.items()),
        "seeds": sorted({cell["seed"] for cell in measured}),
        "boundary F1": f"over all images together, within {TOLERANCE:g} pixels",
        "SegNet's BF": f"mean over images, within {reach:.2g} pixels, as in its paper",
        BAYESIAN: f"mean of {PASSES} passes with dropout",
        "images/s": f"medians of {cost['rounds']} interleaved passes over 8 images of the network's input size, "
        "float32, without resizing"
        if cost["rounds"]
        else "not timed",
        **provenance_facts(measured),
    }
    return Report("From patches to DeepLab", QUESTION, (Section("All networks", "", (table(measured, cost),)),), facts)


def main(argv: list[str]) -> None:
    """Runs the selected cells that are missing, then prints and writes the table of all finished cells."""
    del argv
    options, console = flags.FLAGS, rich.console.Console()
    workdir = local_path(options.workdir)
    table_rows.run_cells(options, ROWS, base_config(options.steps), workdir, console, make_counts, scores)
    cost_file = workdir / COST_FILE
    cost = read_json(cost_file, dict, "the costs of the networks", "Remove the file") if cost_file.exists() else {}
    if options.time or cost.get("of") != json.loads(json.dumps(ROWS)):
        cost = costs(ROWS, rounds=9 if options.time else 0)
        write_outputs({cost_file: to_json(cost)})
    measured = table_rows.finished_cells(workdir, ROWS)
    publish(report(measured, cost), workdir, "architectures", {"cells": measured, "cost": cost}, console)


if __name__ == "__main__":
    table_rows.define_flags("architectures", [0], "8 epochs", "Measure images per second")
    cli.run(main, required=[])
