"""Trains on a folder of images of many sizes: `python -m experiments.fault_injection.mixed_sizes --workdir=…`.

Every image is resized to the network's input, and its mask with it. The masks are lines of 3 pixels, which end up
beside those of the image if image and mask are resized around different centres. Writes the scores of each seed to
`mixed_sizes.json`, and prints their mean.
"""

from pathlib import Path

import cv2
import numpy as np
import rich.console
from absl import flags
from ml_collections import ConfigDict

from experiments.sweep.results_io import local_path
from segjax import cli
from segjax.reporting import Table, show, spread
from segjax.storage import write_json
from segjax.training import defaults
from segjax.training.loop import train
from segjax.training.provenance import provenance

SCORES = ("mean_iou", "line_iou", "average_precision")
INPUT = (48, 64)


def write_images(root: Path, counts: dict[str, int]) -> None:
    """Writes images of one to three times the size of the input, with three lines each, and their masks."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            factor = rng.choice([1.0, 1.5, 2.0, 2.5, 3.0])
            height, width = (int(length * factor) + int(rng.integers(0, 5)) for length in INPUT)
            mask = np.zeros((height, width), np.uint8)
            for _ in range(3):
                first, last = ((int(rng.integers(0, width)), int(rng.integers(0, height))) for _ in range(2))
                cv2.line(mask, first, last, 1, 3)
            image = np.clip(90 + 70 * mask[..., None] + rng.normal(0, 12, (height, width, 3)), 0, 255)
            cv2.imwrite(str(root / split / "images" / f"{index:03}.png"), image.astype(np.uint8))
            cv2.imwrite(str(root / split / "masks" / f"{index:03}.png"), mask)


def config_of(root: Path, seed: int) -> ConfigDict:
    """Returns the config of one training."""
    config = defaults()
    config.seed = seed
    config.data.name, config.data.manual_dir = "folder", str(root)
    config.data.class_names, config.data.size, config.data.workers = ("background", "line"), INPUT, 0
    config.model.width, config.model.depth, config.model.padding = 4, 2, "zeros"
    config.objective.loss, config.optimizer.learning_rate = "sigmoid_cross_entropy", 1e-2
    config.training.steps = config.training.evaluate_every = config.training.checkpoint_every = 400
    return config


def main(argv: list[str]) -> None:
    """Trains one network per seed, and writes and prints their scores."""
    del argv
    workdir = local_path(flags.FLAGS.workdir)
    write_images(workdir / "images", {"train": 64, "val": 24})
    quiet, cells = rich.console.Console(quiet=True), []
    for seed in flags.FLAGS.seed:
        result = train(config_of(workdir / "images", seed), workdir / str(seed), console=quiet)
        result["line_iou"] = result["iou_per_class"][1]
        cells.append({"seed": seed, **{score: result[score] for score in SCORES}})
    write_json(workdir / "mixed_sizes.json", {"cells": cells, "provenance": provenance()})
    row = [spread([cell[score] for cell in cells]) for score in SCORES]
    table = Table("Lines of 3 pixels, images of many sizes", ("", *SCORES), [("mean of the seeds", *row)])
    show(table, rich.console.Console())


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/mixed_sizes", "Folder of the images, the runs and the scores.")
    flags.DEFINE_multi_integer("seed", [0, 1, 2], "A seed; may be repeated.")
    cli.run(main, required=[])
