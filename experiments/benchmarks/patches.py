"""Classifying every patch beside one convolutional pass: `python -m experiments.benchmarks.patches`.

The sliding-window classifier (`segjax.models.PatchClassifier`) predicts images in both of its ways, for several depths
and so sizes of patch: FLOPs as XLA's cost analysis has them, and time. The compiler counts the body of a loop once;
that of all patches is the program of an image of one pixel, which has one patch, times the pixels. The rounds are
interleaved, each case once a round and each round in another order, so that whatever else the machine does falls on all
alike; of each case the median is taken. Before that, both ways must have given the same logits.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
from absl import flags

from experiments.benchmarks.timing import Case, milliseconds
from segjax import cli
from segjax.models import PatchClassifier
from segjax.reporting import Report, Section, Table, show, write_report
from segjax.training.provenance import provenance

CLASSES = 12
PATCHES, ONE_PASS = "every patch of its own", "one pass"
# Of float32 logits of order 1.
TOLERANCE = 1e-4


def flops(model: PatchClassifier, variables: Any, shape: tuple[int, int, int]) -> dict[str, float]:
    """What the compiler counts for a batch of `shape` = (images, height, width), in either way."""

    def of(model: PatchClassifier, *size: int) -> float:
        images = jax.ShapeDtypeStruct((*size, 3), np.float32)
        program = jax.jit(lambda variables, images: model.apply(variables, images, train=False).logits)
        return program.lower(variables, images).compile().cost_analysis()["flops"]

    return {PATCHES: np.prod(shape).item() * of(model.clone(sliding=True), 1, 1, 1), ONE_PASS: of(model, *shape)}


def cases(model: PatchClassifier, variables: Any, images: jax.Array) -> list[Case]:
    """Both ways, compiled at their first call."""

    def program(model: PatchClassifier) -> Any:
        return jax.jit(lambda variables, images: model.apply(variables, images, train=False).logits)

    ways = {PATCHES: model.clone(sliding=True), ONE_PASS: model}
    return [Case(name, partial(program(way), variables, images), None) for name, way in ways.items()]


def difference(pair: list[Case]) -> float:
    """The largest one between the two ways' logits.

    Raises:
        ValueError: it is more than rounding.
    """
    slow, fast = (np.asarray(case.run()) for case in pair)
    largest = float(np.abs(slow - fast).max())
    if not largest <= TOLERANCE:
        raise ValueError(f"the two ways must give the same logits to {TOLERANCE}; they differ by {largest:.3g}")
    return largest


def measure(shape: tuple[int, int, int], width: int, depth: int, rounds: int) -> dict[str, Any]:
    """One network in both ways: its patch in pixels, "flops", "ms", and the ratios of each."""
    model = PatchClassifier(CLASSES, width=width, depth=depth)
    images = jax.random.normal(jax.random.key(0), (*shape, 3))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), images[:1, :1, :1])
    pair = cases(model, variables, images)
    differs, counted = difference(pair), flops(model, variables, shape)
    taken = milliseconds(pair, rounds)
    return {
        "depth": depth,
        "patch": model.patch,
        "largest_difference": differs,
        "flops": counted,
        "flops_ratio": counted[PATCHES] / counted[ONE_PASS],
        "ms": taken,
        "ms_ratio": taken[PATCHES] / taken[ONE_PASS],
    }


def report(rows: list[dict[str, Any]], facts: dict[str, Any]) -> Report:
    """The table, a row a depth."""
    columns = ("patch", *(f"{what} {of}" for what in ("GFLOP,", "ms,") for of in ("patches", "pass", "ratio")))
    shown = [
        (
            f"{row['patch']}×{row['patch']}",
            *(f"{row['flops'][way] / 1e9:.2f}" for way in (PATCHES, ONE_PASS)),
            f"{row['flops_ratio']:.1f}",
            *(f"{row['ms'][way]:.1f}" for way in (PATCHES, ONE_PASS)),
            f"{row['ms_ratio']:.1f}",
        )
        for row in rows
    ]
    size = "×".join(map(str, facts["images, height, width"]))
    table = Table(f"{size} pixels, width {facts['width']}, {CLASSES} classes", columns, shown)
    text = (
        "The sliding-window classifier computes for every pixel's patch what the neighbours' patches have computed "
        "too. With strides turned into dilations the same weights give the same logits in one pass."
    )
    return Report("A patch a pixel, or one pass", text, (Section("What both cost", "", (table,)),), facts)


def main(argv: list[str]) -> None:
    """Measures each depth, prints the table and writes the report."""
    del argv
    options, console = flags.FLAGS, rich.console.Console()
    shape, load = tuple(map(int, options.shape)), os.getloadavg()[0]
    with jax.default_device(jax.devices("cpu")[0]):
        rows = [measure(shape, options.width, int(depth), options.rounds) for depth in options.depths]
    facts = {
        "images, height, width": shape,
        "width": options.width,
        "rounds": options.rounds,
        "largest difference of logits": max(row["largest_difference"] for row in rows),
        "load average": load,
        **provenance(),
    }
    whole = report(rows, facts)
    for table in whole.sections[0].tables:
        show(table, console)
    written = write_report(whole, Path(options.workdir), "patches", rows)
    console.print(f"Wrote {written[0]}")


if __name__ == "__main__":
    flags.DEFINE_list("shape", ["1", "96", "128"], "Images, height and width.")
    flags.DEFINE_integer("width", 16, "Channels of the first level.", lower_bound=1)
    flags.DEFINE_list("depths", ["1", "2", "3"], "Poolings; the patches are 10, 24, 52, … pixels wide.")
    flags.DEFINE_integer("rounds", 5, "How often each case is timed.", lower_bound=1)
    flags.DEFINE_string("workdir", "runs/patches", "Where the report goes.")
    cli.run(main, required=[])
