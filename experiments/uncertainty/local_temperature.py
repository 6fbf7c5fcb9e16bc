"""A temperature per pixel against one temperature: `python -m experiments.uncertainty.local_temperature --workdir=…`.

Local temperature scaling (Ding et al., ICCV 2021, arXiv 2008.05105): a small network predicts the temperature of each
pixel from the logits, or from logits and image. It is fitted by the likelihood, and starts as the temperature that
`segjax.metrics.fit_scaling` finds. The segmentation networks are those of `experiments.uncertainty.methods`.

The first half of the evaluation images is for fitting, the other for scoring. Each network is measured once; kill the
command and rerun it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
from absl import flags
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from experiments.sweep.results_io import local_path, provenance_facts, publish
from experiments.uncertainty import methods, scores
from segjax import cli, metrics
from segjax.data import VOID
from segjax.data.resize import resize
from segjax.inference import class_logits
from segjax.losses import boundary_mask, softmax_cross_entropy
from segjax.reporting import Report, Section, Spread, Table, spread
from segjax.storage import read_json, write_json
from segjax.trained_run import TrainedRun
from segjax.training.provenance import provenance

SEEDS = 3
PIXELS = 8192  # random pixels per image
WIDTH, EPOCHS, PATIENCE, BATCH, RATE, DECAY = 8, 60, 6, 4, 5e-3, 1e-4
SCALINGS = ("none", "temperature", "vector", "local: logits", "local: logits and image")
COLUMNS = {
    "ECE, %": ("ece", 100),
    "ACE, %": ("ace", 100),
    "NLL": ("nll", 1),
    "ECE near boundaries, %": ("boundary_ece", 100),
}
RESULT_FORM = {"scalings": dict, "provenance": dict}


class Pixels(NamedTuple):
    """Network outputs and random labelled pixels of several images."""

    inputs: Float[Any, "images h w channels"]  # normalised, at the size of the network's input
    outputs: Float[Any, "images h w C"]  # logits at this size
    at: Int[Any, "images {PIXELS}"]  # index of the nearest of these pixels
    logits: Float[Any, "images {PIXELS} C"]  # resized to the image
    labels: Int[Any, "images {PIXELS}"]
    near: Bool[Any, "images {PIXELS}"]  # on a boundary of the labels

    def select(self, rows: Any) -> "Pixels":
        """Returns some of the images."""
        return jax.tree.map(lambda values: values[rows], self)


def pixels_of(run: TrainedRun) -> Pixels:
    """Returns the pixels of all images of the evaluation split."""
    classes, variables = run.label_set.num_classes, run.state.variables
    model = run.model.clone(dropout="none", deep_dropout=0, remat=False)

    @jax.jit
    def forward(image: Array, label: Array, at: Array) -> tuple:
        size = image.shape[:2]
        inputs = run.preprocessing.network_input(image[None], jnp.array([size], jnp.int32))
        outputs = class_logits(model.apply(variables, inputs, train=False).logits, classes)
        logits = resize(outputs, size, antialias=False).reshape(-1, classes)[at]
        near = boundary_mask(label, where=label != VOID).ravel()[at]
        return inputs[0], outputs[0], nearest(at, size, outputs.shape[1:3]), logits, label.ravel()[at], near

    found, rng = [], np.random.default_rng(0)
    for image, label, _ in methods.examples(run.config):
        at = rng.choice(np.flatnonzero(label != VOID), PIXELS)
        found.append(jax.device_get(forward(image, label.astype(np.int32), at)))
    return Pixels(*map(np.stack, zip(*found, strict=True)))


def nearest(at: Int[Array, "n"], size: tuple[int, int], smaller: tuple[int, int]) -> Int[Array, "n"]:
    """Returns the indices of the pixels at the same places in an image of another size.

    >>> print(nearest(jnp.array([0, 3, 23]), (4, 6), (2, 3)))
    [0 1 5]
    """
    rows, columns = jnp.unravel_index(at, size)
    return (rows * smaller[0] // size[0]) * smaller[1] + columns * smaller[1] // size[1]


class LocalTemperature(nn.Module):
    """Network that predicts the log of 1/T per pixel; before training, `start` everywhere."""

    start: float

    @nn.compact
    def __call__(self, maps: Float[Array, "b h w maps"]) -> Float[Array, "b h w"]:
        """Returns log 1/T for maps whose values are of the order of 1."""
        for dilation in (1, 2, 4):
            maps = nn.relu(nn.Conv(WIDTH, (3, 3), kernel_dilation=dilation)(maps))
        return self.start + nn.Dense(1, kernel_init=nn.initializers.zeros)(maps)[..., 0]


def fit_local(pixels: Pixels, start: float, use_image: bool, seed: int) -> Any:
    """Fits a `LocalTemperature` and returns `scale(pixels)`, the calibrated logits `[images, pixels, C]`.

    The last fifth of the images is held out; the parameters are those of the epoch with its best likelihood. Fitting
    stops `PATIENCE` epochs after it.
    """
    model, optimizer = LocalTemperature(start), optax.adamw(RATE, weight_decay=DECAY)
    deviation = float(np.std(pixels.outputs))

    def scaled(parameters: Any, some: Pixels) -> Float[Array, "images pixels C"]:
        maps = some.outputs / deviation
        maps = jnp.concatenate([maps, some.inputs], axis=-1) if use_image else maps
        log_scale = model.apply(parameters, maps).reshape(len(maps), -1)
        return some.logits * jnp.exp(jnp.take_along_axis(log_scale, some.at, axis=1))[..., None]

    def loss(parameters: Any, some: Pixels) -> Float[Array, ""]:
        return softmax_cross_entropy(scaled(parameters, some), some.labels).mean()

    @jax.jit
    def step(parameters: Any, state: Any, some: Pixels) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(parameters, some), state, parameters)
        return optax.apply_updates(parameters, updates), state

    held = max(1, len(pixels.labels) // 5)
    fitted, held_out = pixels.select(slice(None, -held)), pixels.select(slice(-held, None))
    channels = pixels.outputs.shape[-1] + use_image * pixels.inputs.shape[-1]
    parameters = model.init(jax.random.key(seed), jnp.zeros((1, 8, 8, channels)))
    state, rng, score = optimizer.init(parameters), np.random.default_rng(seed), jax.jit(loss)
    best, lowest, at = parameters, float(score(parameters, held_out)), 0
    for epoch in range(1, EPOCHS + 1):
        order = rng.permutation(len(fitted.labels))
        for first in range(0, len(order) - BATCH + 1, BATCH):
            parameters, state = step(parameters, state, fitted.select(order[first : first + BATCH]))
        if (now := float(score(parameters, held_out))) < lowest:
            best, lowest, at = parameters, now, epoch
        if epoch - at == PATIENCE:
            break
    return jax.jit(lambda some: scaled(best, some))


def calibrated(kind: str, fitted: Pixels, scored: Pixels, seed: int) -> Float[Any, "images pixels C"]:
    """Returns the logits of `scored` after a scaling that was fitted to the other images."""
    if kind == "none":
        return scored.logits
    local = kind.startswith("local")
    scaling = metrics.fit_scaling(fitted.logits, fitted.labels, kind="temperature" if local else kind)
    if not local:
        return metrics.scale_logits(scored.logits, scaling)
    scale = fit_local(fitted, float(np.log(scaling.scale[0])), kind.endswith("image"), seed)
    return jnp.concatenate([scale(scored.select([i])) for i in range(len(scored.labels))])


def measure(run: TrainedRun, seed: int) -> dict[str, dict[str, float]]:
    """Returns per scaling the calibration scores of all pixels of the second half, and of those near boundaries."""
    pixels, result = pixels_of(run), {}
    half = len(pixels.labels) // 2
    fitted, scored = pixels.select(slice(None, half)), pixels.select(slice(half, None))
    for kind in SCALINGS:
        logits = np.asarray(calibrated(kind, fitted, scored, seed))
        near = scores.calibration_scores(logits[scored.near], scored.labels[scored.near])
        result[kind] = scores.calibration_scores(logits, scored.labels) | {"boundary_ece": near["ece"]}
    return result


def result_file(workdir: Path, data: str, seed: int) -> Path:
    """Returns the file of the scores of one network."""
    return workdir / data / f"local_temperature_seed={seed}.json"


def table(found: Mapping[str, list[dict[str, Any]]]) -> Table:
    """Returns one row per data set and scaling, over the seeds."""
    lines = [
        (data, kind, *(_over(results, kind, *column) for column in COLUMNS.values()))
        for data, results in found.items()
        for kind in SCALINGS
    ]
    return Table("Second half of the evaluation images", ("data", "scaling", *COLUMNS), lines, text=("scaling",))


def _over(results: list[dict[str, Any]], kind: str, key: str, factor: float) -> Spread:
    return spread([factor * one["scalings"][kind][key] for one in results])


def finding(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """Returns the result in one sentence per data set."""
    sentences = []
    for data, results in found.items():
        nll, ece = ({kind: _over(results, kind, key, 1).mean for kind in SCALINGS} for key in ("nll", "ece"))
        local = min(SCALINGS[3:], key=nll.get)
        sentences.append(
            f"{data}: NLL {nll['temperature']:.4f} with one temperature, {nll[local]:.4f} with one per pixel (from "
            f"{local.removeprefix('local: ')}), {nll['vector']:.4f} with vector scaling; ECE "
            f"{100 * ece['temperature']:.2f} %, {100 * ece[local]:.2f} % and {100 * ece['vector']:.2f} %."
        )
    return " ".join(sentences)


def report(found: Mapping[str, list[dict[str, Any]]]) -> Report:
    """Returns the report of all measured networks, with their provenance."""
    text = (
        f"Scores of {PIXELS} random labelled pixels of each image that was not used for fitting; near boundaries: "
        "those with a neighbour of another label."
    )
    facts = {
        "networks": "; ".join(f"{data}: {len(results)} seeds" for data, results in found.items()),
        "temperature network": f"3 convolutions of {WIDTH} channels, dilations 1, 2, 4; AdamW, at most {EPOCHS} epochs",
        **provenance_facts([one for results in found.values() for one in results]),
    }
    return Report("A temperature per pixel", finding(found), (Section("Calibration", text, (table(found),)),), facts)


def main(argv: list[str]) -> None:
    """Measures the networks that have no result, then prints and writes the report."""
    del argv
    options, console = flags.FLAGS, rich.console.Console(width=160)
    workdir, found = local_path(options.workdir), {}
    for data in methods.DATA:
        for seed in range(SEEDS):
            if not (file := result_file(workdir, data, seed)).exists():
                (run,) = methods.trained(data, workdir / data, methods.ALL, [seed])
                write_json(file, {"scalings": measure(run, seed), "provenance": provenance()})
                console.print(f"{data}, seed {seed}: measured", highlight=False)
            found.setdefault(data, []).append(read_json(file, RESULT_FORM, "the scores of a temperature per pixel"))
    publish(report(found), workdir, "uncertainty_local_temperature", found, console)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/uncertainty", "The --workdir of experiments.uncertainty.methods.")
    cli.run(main, required=[])
