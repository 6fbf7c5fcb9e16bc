"""Cost of classifying every patch relative to one convolutional pass: `python -m experiments.benchmarks.patches`.

The sliding-window classifier (`segjax.models.PatchClassifier`) predicts images patch by patch and in one pass, for
several depths and so patch sizes. FLOPs are from XLA's cost analysis, which counts the body of a loop once; FLOPs of
all patches are the FLOPs of an image of one pixel times the pixels. Times are medians of interleaved rounds. Both
kinds of prediction must give the same logits.
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
from segjax.storage import say
from segjax.training.provenance import provenance

CLASSES = 12
PATCHES, ONE_PASS = "every patch separately", "one pass"
TOLERANCE = 1e-4  # for float32 logits of order 1


def flops(model: PatchClassifier, variables: Any, shape: tuple[int, int, int]) -> dict[str, float]:
    """Returns the compiler's FLOPs for a batch of `shape` = (images, height, width) by kind of prediction."""

    def count(model: PatchClassifier, *size: int) -> float:
        images = jax.ShapeDtypeStruct((*size, 3), np.float32)
        program = jax.jit(lambda variables, images: model.apply(variables, images, train=False).logits)
        return program.lower(variables, images).compile().cost_analysis()["flops"]

    return {PATCHES: np.prod(shape).item() * count(model.clone(sliding=True), 1, 1, 1), ONE_PASS: count(model, *shape)}


def cases(model: PatchClassifier, variables: Any, images: jax.Array) -> list[Case]:
    """Returns both kinds of prediction, which compile at their first call."""

    def program(model: PatchClassifier) -> Any:
        return jax.jit(lambda variables, images: model.apply(variables, images, train=False).logits)

    models = {PATCHES: model.clone(sliding=True), ONE_PASS: model}
    return [Case(name, partial(program(one), variables, images)) for name, one in models.items()]


def difference(pair: list[Case]) -> float:
    """Returns the largest difference of the logits of both cases.

    Raises:
        ValueError: the difference exceeds `TOLERANCE`.
    """
    slow, fast = (np.asarray(case.run()) for case in pair)
    largest = float(np.abs(slow - fast).max())
    if not largest <= TOLERANCE:
        raise ValueError(f"patches and one pass must give the same logits to {TOLERANCE}; they differ by {largest:.3g}")
    return largest


def measure(shape: tuple[int, int, int], width: int, depth: int, rounds: int) -> dict[str, Any]:
    """Measures one network in both kinds of prediction: "patch" in pixels, "flops", "ms", and their ratios."""
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
    """Builds the report: a table with one row per depth."""
    columns = ("patch", *(f"{what} {of}" for what in ("GFLOP,", "ms,") for of in ("patches", "pass", "ratio")))
    shown = [
        (
            f"{row['patch']}×{row['patch']}",
            *(f"{row['flops'][kind] / 1e9:.2f}" for kind in (PATCHES, ONE_PASS)),
            f"{row['flops_ratio']:.1f}",
            *(f"{row['ms'][kind]:.1f}" for kind in (PATCHES, ONE_PASS)),
            f"{row['ms_ratio']:.1f}",
        )
        for row in rows
    ]
    size = "×".join(map(str, facts["images, height, width"]))
    table = Table(f"{size} pixels, width {facts['width']}, {CLASSES} classes", columns, shown)
    text = (
        "The sliding-window classifier repeats for every pixel's patch the computation of overlapping patches. With "
        "dilations instead of strides the same weights give the same logits in one pass."
    )
    return Report("One patch per pixel, or one pass", text, (Section("Cost", "", (table,)),), facts)


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
    say(f"wrote {written[0]}", console)


if __name__ == "__main__":
    flags.DEFINE_list("shape", ["1", "96", "128"], "Images, height and width.")
    flags.DEFINE_integer("width", 16, "Channels of the first level.", lower_bound=1)
    flags.DEFINE_list("depths", ["1", "2", "3"], "Poolings; the patches are 10, 24, 52, … pixels wide.")
    flags.DEFINE_integer("rounds", 5, "Number of timed rounds.", lower_bound=1)
    flags.DEFINE_string("workdir", "runs/patches", "Folder for the report.")
    cli.run(main, required=[])
