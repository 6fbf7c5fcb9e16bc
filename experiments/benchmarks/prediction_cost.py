"""Cost of prediction options relative to one clean pass: `python -m experiments.benchmarks.prediction_cost`.

An untrained U-Net predicts the mask and the uncertainty of an image at its own scale on the CPU through
`segjax.inference.Predictor`: whole, in tiles, mirrored, under the eight symmetries of the square, and with 3 and 30
dropout masks of the head. For comparison: the network alone, K whole passes with dropout deep in the network, and a
dense CRF after the clean pass. Times are medians of interleaved rounds, and ratios to the whole clean pass.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import flags

from experiments.benchmarks.timing import Case, milliseconds
from experiments.camvid.crf import dense_crf
from segjax import cli, training
from segjax.inference import PredictOptions, Predictor, Preprocessing, whole_passes
from segjax.reporting import Table, show
from segjax.storage import check_outputs, to_json, write_outputs
from segjax.training.network import make_model
from segjax.training.provenance import provenance

CLASSES, PASSES = 11, 3
WHOLE = "whole, clean"
CRF = {"radius": 3, "iterations": 5, "theta_alpha": 3.0}
# Options by case; without "tiled" the tile is the image.
OPTIONS = {
    WHOLE: {},
    "tiles, no overlap": {"tiled": 0},
    "tiles, a quarter of overlap": {"tiled": 4},
    "flip": {"augment": "flip"},
    "D4": {"augment": "d4"},
    "3 samples of the head": {"samples": 3},
    "30 samples of the head": {"samples": 30},
    "tiles, D4 and 3 samples": {"tiled": 4, "augment": "d4", "samples": 3},
}


def options_of(size: tuple[int, int], tile: tuple[int, int], fields: dict) -> PredictOptions:
    """Returns the options of a case; tiles overlap by 1/"tiled" of their shorter side, or not at all for 0."""
    others = {key: value for key, value in fields.items() if key != "tiled"}
    share = fields.get("tiled")
    if share is None:
        return PredictOptions(size, scale=1.0, **others)
    return PredictOptions(tile, scale=1.0, overlap=min(tile) // share if share else 0, **others)


def cases(width: int, size: tuple[int, int], tile: tuple[int, int]) -> list[Case]:
    """Returns the cases: predictions of one image by one network."""
    config = training.defaults()
    config.model.width, config.model.deep_dropout = width, 2
    model = make_model(config, CLASSES)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)

    preprocessing = Preprocessing(size, 3, (0.5,), (0.5,), CLASSES)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), jnp.zeros((1, *size, 3)))
    parts = (model, variables, preprocessing)
    predictors = {name: Predictor(*parts, options_of(size, tile, fields)) for name, fields in OPTIONS.items()}
    clean = Predictor(*parts, options_of(size, tile, {}), probabilities=True)
    network = jax.jit(lambda variables, x: model.apply(variables, preprocessing.normalise(x), train=False).logits)
    passes = jax.jit(
        lambda variables, x, key: whole_passes(model, variables, preprocessing.normalise(x), key, samples=PASSES)
    )

    def crf() -> jax.Array:
        return dense_crf(clean(image).probabilities[None], image[None], **CRF).argmax(-1)

    runs: dict[str, Callable] = {name: partial(predict, image) for name, predict in predictors.items()}
    runs |= {
        "the network alone": lambda: network(variables, image[None]),
        f"{PASSES} whole passes": lambda: passes(variables, image[None], jax.random.key(2)),
        f"CRF, radius {CRF['radius']}": crf,
    }
    return [Case(name, run) for name, run in runs.items()]


def measure(width: int, size: tuple[int, int], tile: tuple[int, int], rounds: int) -> dict[str, dict[str, float]]:
    """Returns the median seconds per megapixel of each case, and their ratios to the whole clean pass."""
    taken = milliseconds(cases(width, size, tile), rounds)
    megapixels = size[0] * size[1] / 1e6
    return {
        "seconds_per_megapixel": {name: time / 1000 / megapixels for name, time in taken.items()},
        "ratios": {name: time / taken[WHOLE] for name, time in taken.items()},
    }


def main(argv: list[str]) -> None:
    """Times all cases, prints the table and writes it as JSON."""
    del argv
    options, load, output = flags.FLAGS, os.getloadavg()[0], Path(flags.FLAGS.output)
    check_outputs([output])
    with jax.default_device(jax.devices("cpu")[0]):
        measured = measure(options.width, options.size, options.tile, options.rounds)
    rows = [(name, value, measured["ratios"][name]) for name, value in measured["seconds_per_megapixel"].items()]
    size, tile = ("×".join(map(str, sides)) for sides in (options.size, options.tile))
    title = f"U-Net of width {options.width}, image {size}, tiles {tile}, {CLASSES} classes"
    show(Table(title, ("", "s per megapixel", "ratio"), rows), rich.console.Console())
    about = {"size": options.size, "tile": options.tile, "width": options.width, "classes": CLASSES}
    about |= {"rounds": options.rounds, "whole_passes": PASSES, "crf": CRF, "load_average": load}
    write_outputs({output: to_json({**about, **measured, "provenance": provenance()})})


if __name__ == "__main__":
    cli.define_size("size", "Height and width of the image in pixels.", (720, 960))
    cli.define_size("tile", "Height and width of the tiles in pixels.", (192, 256))
    flags.DEFINE_integer("width", 16, "Channels of the first level.", lower_bound=1)
    flags.DEFINE_integer("rounds", 11, "Number of timed rounds.", lower_bound=1)
    flags.DEFINE_string("output", "runs/prediction_cost.json", "JSON file of the result.")
    cli.run(main, required=[])
