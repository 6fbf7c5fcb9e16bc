"""Costs of the ways to predict, beside one clean pass: `python -m experiments.benchmarks.prediction_cost`.

One U-Net, not trained, predicts an image at its own scale on the CPU, through `segjax.inference.Predictor` as
`segjax.predict` does, to a mask and an uncertainty a pixel: whole; in tiles without overlap and with a quarter;
mirrored; under the eight symmetries of the square; with 3 and 30 dropout masks of the head; all of these together.
Beside them the network alone, without what the host does around it; K whole passes with dropout deep in it, and the
clean one; and a dense CRF after the whole clean pass. The rounds are interleaved, every case once a round and each
round in another order, so that whatever else the machine does falls on all alike; of each case the median is taken, and
its ratio to the whole clean pass.
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
from segjax.storage import write_json
from segjax.training.provenance import provenance
from segjax.training.train_step import make_model

CLASSES, PASSES = 11, 3
WHOLE = "whole, clean"
CRF = {"radius": 3, "iterations": 5, "theta_alpha": 3.0}
# The ways, but for the tile of those without one, which is the image.
WAYS = {
    WHOLE: {},
    "tiles, no overlap": {"tiled": 0},
    "tiles, a quarter of overlap": {"tiled": 4},
    "flip": {"augment": "flip"},
    "D4": {"augment": "d4"},
    "3 samples of the head": {"samples": 3},
    "30 samples of the head": {"samples": 30},
    "tiles, D4 and 3 samples": {"tiled": 4, "augment": "d4", "samples": 3},
}


def way_of(size: tuple[int, int], tile: tuple[int, int], fields: dict) -> PredictOptions:
    """Returns the options of one of `WAYS`; "tiled" is the share of the shorter side that tiles overlap, 0: none."""
    others = {key: value for key, value in fields.items() if key != "tiled"}
    share = fields.get("tiled")
    if share is None:
        return PredictOptions(size, scale=1.0, **others)
    return PredictOptions(tile, scale=1.0, overlap=min(tile) // share if share else 0, **others)


def cases(width: int, size: tuple[int, int], tile: tuple[int, int]) -> list[Case]:
    """One network, predicting in every way."""
    config = training.defaults()
    config.model.width, config.model.deep_dropout = width, 2
    model = make_model(config, CLASSES)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)

    preprocessing = Preprocessing(size, 3, (0.5,), (0.5,), CLASSES)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), jnp.zeros((1, *size, 3)))
    parts = (model, variables, preprocessing)
    engines = {name: Predictor(*parts, way_of(size, tile, fields)) for name, fields in WAYS.items()}
    ready = Predictor(*parts, way_of(size, tile, {}), probabilities=True)
    network = jax.jit(lambda variables, x: model.apply(variables, preprocessing.normalise(x), train=False).logits)
    passes = jax.jit(
        lambda variables, x, key: whole_passes(model, variables, preprocessing.normalise(x), key, samples=PASSES)
    )

    def crf() -> jax.Array:
        return dense_crf(ready(image).probabilities[None], image[None], **CRF).argmax(-1)

    runs: dict[str, Callable] = {name: partial(predict, image) for name, predict in engines.items()}
    runs |= {
        "the network alone": lambda: network(variables, image[None]),
        f"{PASSES} whole passes": lambda: passes(variables, image[None], jax.random.key(2)),
        f"CRF, radius {CRF['radius']}": crf,
    }
    return [Case(name, run, None) for name, run in runs.items()]


def measure(width: int, size: tuple[int, int], tile: tuple[int, int], rounds: int) -> dict[str, dict[str, float]]:
    """The median seconds a megapixel of each case, and their ratios to the whole clean pass."""
    taken = milliseconds(cases(width, size, tile), rounds)
    megapixels = size[0] * size[1] / 1e6
    return {
        "seconds_per_megapixel": {name: time / 1000 / megapixels for name, time in taken.items()},
        "ratios": {name: time / taken[WHOLE] for name, time in taken.items()},
    }


def main(argv: list[str]) -> None:
    """Times all cases, prints a table and writes it as JSON."""
    del argv
    options, load = flags.FLAGS, os.getloadavg()[0]
    with jax.default_device(jax.devices("cpu")[0]):
        measured = measure(options.width, options.size, options.tile, options.rounds)
    rows = [(name, value, measured["ratios"][name]) for name, value in measured["seconds_per_megapixel"].items()]
    size, tile = ("×".join(map(str, sides)) for sides in (options.size, options.tile))
    title = f"U-Net of width {options.width}, image {size}, tiles {tile}, {CLASSES} classes"
    show(Table(title, ("", "s a megapixel", "ratio"), rows), rich.console.Console())
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    about = {"size": options.size, "tile": options.tile, "width": options.width, "classes": CLASSES}
    about |= {"rounds": options.rounds, "whole_passes": PASSES, "crf": CRF, "load_average": load}
    write_json(output, {**about, **measured, "provenance": provenance()})


if __name__ == "__main__":
    cli.define_size("size", "Of the image.", (720, 960))
    cli.define_size("tile", "Of the tiles.", (192, 256))
    flags.DEFINE_integer("width", 16, "Of the first level's channels.", lower_bound=1)
    flags.DEFINE_integer("rounds", 11, "How often each case is timed.", lower_bound=1)
    flags.DEFINE_string("output", "runs/prediction_cost.json", "Where the result goes.")
    cli.run(main, required=[])
