"""Draws the picture at the top of README: `python -m experiments.focal_paper.overview --workdir=runs/overview`.

Trains `configs/road_debris_uncertainty.py` twice, with the usual initialisation of the head and with the prior as the
config has it, and shows both on validation images. A finished run is not trained again.
"""

import io
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from experiments.focal_paper.cell_pictures import rarest_first
from segjax import cli, inference
from segjax.configs import road_debris_uncertainty
from segjax.data import colorize
from segjax.inference.visualize import contact_sheet, heatmap, overlay_palette
from segjax.reporting import cell
from segjax.storage import read_json, write_outputs
from segjax.trained_run import TrainedRun, load_run
from segjax.training import open_split, train
from segjax.training.checkpoint import FOLDER
from segjax.training.loop import SCORES_FILE

IMAGES, WIDTH = 3, 240
MAXIMUM = float(np.log(2))  # nats, the largest entropy of two classes


def configs() -> dict[str, ConfigDict]:
    """Returns the configs of the two runs by the titles of their columns."""
    plain, prior = road_debris_uncertainty.get_config(), road_debris_uncertainty.get_config()
    plain.model.prior, plain.model.head_stddev = (), None
    return {"cross entropy": plain, "with the prior": prior}


def overview(runs: dict[str, TrainedRun]) -> np.ndarray:
    """Returns a contact sheet of the validation images with the most debris, uint8 RGB `[height, width, 3]`.

    Its columns are the image, the truth and the mask of each run over it, and the entropy of the last run's
    probabilities.
    """
    *_, last = runs.values()
    source, palette = (
        open_split(last.config.data, last.config.data.eval_split),
        overlay_palette(last.label_set),
    )
    predictors, rows = [run.predictor() for run in runs.values()], {}
    for index in rarest_first(source, [1])[:IMAGES]:
        image, truth = source[index]["image"], source[index]["label"]
        predictions = [predictor(image) for predictor in predictors]
        masks = [truth, *(one.mask for one in predictions)]
        overlays = [inference.overlay(image, colorize(mask, palette), opacity=0.8) for mask in masks]
        entropy = heatmap(predictions[-1].uncertainties["entropy"], MAXIMUM)
        rows[f"validation image {index}"] = [image, *overlays, entropy]
    titles = [f"{name}, AP {_precision(run)}" for name, run in runs.items()]
    return contact_sheet(rows, ("image", "truth", *titles, "uncertainty: entropy"), last.label_set, [1], width=WIDTH)


def _precision(run: TrainedRun) -> str:
    return cell(read_json(run.workdir / SCORES_FILE, {"average_precision": float}, "scores")["average_precision"])


def main(argv: list[str]) -> None:
    """Trains and writes overview.jpg."""
    cli.refuse_arguments(argv)
    workdir, runs = Path(flags.FLAGS.workdir), {}
    for name, config in configs().items():
        folder = workdir / name.replace(" ", "_")
        if not (folder / SCORES_FILE).exists():
            train(config, folder)
        runs[name] = load_run(folder / FOLDER / "latest")
    encoded = io.BytesIO()
    Image.fromarray(overview(runs)).save(encoded, "JPEG", quality=88)
    write_outputs({workdir / "overview.jpg": encoded.getvalue()})
    print(f"wrote {workdir / 'overview.jpg'}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the two runs and of overview.jpg.")
    cli.run(main, required=["workdir"])
