"""What uncertainty costs over one clean pass, in one run on the CPU: `python -m experiments.uncertainty_cost`.

A U-Net of each width predicts a batch: without dropout; with K = 30 dropout heads, masks per channel and per element;
with the variance in closed form; and by 5 whole passes with dropout deep in it, beside the clean one. All are jitted
and give mean probabilities, entropy and variance (the samples mutual information too), the clean pass its logits. Whole
passes cost less than one each: what lies before the first dropout is the same for all, and computed once. The rounds
are interleaved, every case once a round and each round in another order, so that whatever else the machine does falls
on all alike; of each case the median is taken, and its ratio to the clean pass.
"""

import os
from functools import partial
from pathlib import Path

import jax
import rich.console
from absl import flags

from experiments.metrics_speed import Case, milliseconds
from segjax import cli, training
from segjax.inference import analytic_uncertainty, predict_with_uncertainty, whole_passes
from segjax.reporting import Table, show
from segjax.training.loop import write_json
from segjax.training.networks import make_model
from segjax.training.provenance import provenance

CLASSES = 12
HEADS, PASSES = 30, 5
CLEAN = "one clean pass"
CHANNEL, ELEMENT = f"+ {HEADS} heads, channel masks", f"+ {HEADS} heads, element masks"
ANALYTIC, WHOLE = "+ analytic variance", f"+ {PASSES} whole passes"


def cases(width: int, shape: tuple[int, int, int]) -> list[Case]:
    """One network, predicting in five ways."""
    config = training.defaults()
    config.model.width, config.model.deep_dropout = width, 2
    model = make_model(config, CLASSES)
    images = jax.random.normal(jax.random.key(0), (*shape, 3))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), images)
    key = jax.random.key(2)

    def clean(variables, images, key):
        del key
        return model.apply(variables, images, train=False).logits

    def analytic(variables, images, key):
        del key
        output, head = model.apply(variables, images, train=False), variables["params"]["head"]["linear"]
        return output.logits, analytic_uncertainty(output.features, head["kernel"], head["bias"], rate=model.rate)

    def heads(mask, variables, images, key):
        output, unsure = predict_with_uncertainty(model, variables, images, key, samples=HEADS, mask=mask)
        return output.logits, unsure

    def passes(variables, images, key):
        output, unsure = whole_passes(model, variables, images, key, samples=PASSES)
        return output.logits, unsure

    ways = {
        CLEAN: clean,
        CHANNEL: partial(heads, "channel"),
        ELEMENT: partial(heads, "element"),
        ANALYTIC: analytic,
        WHOLE: passes,
    }
    return [Case(name, partial(jax.jit(way), variables, images, key), None) for name, way in ways.items()]


def measure(width: int, shape: tuple[int, int, int], rounds: int) -> dict[str, dict[str, float]]:
    """The median milliseconds of each case, and their ratios to the clean pass."""
    taken = milliseconds(cases(width, shape), rounds)
    return {"ms": taken, "ratios": {name: time / taken[CLEAN] for name, time in taken.items()}}


def main(argv: list[str]) -> None:
    """Times all cases at each width, prints a table and writes it as JSON."""
    del argv
    console, shape = rich.console.Console(), tuple(map(int, flags.FLAGS.shape))
    load = os.getloadavg()[0]
    with jax.default_device(jax.devices("cpu")[0]):
        measured = {width: measure(int(width), shape, flags.FLAGS.rounds) for width in flags.FLAGS.widths}
    columns = [column for width in measured for column in (f"width {width}, ms", "ratio")]
    names = next(iter(measured.values()))["ms"]
    rows = [
        (name, *(value for one in measured.values() for value in (one["ms"][name], one["ratios"][name])))
        for name in names
    ]
    size = " x ".join(map(str, shape))
    show(Table(f"U-Net, {size} pixels, {CLASSES} classes", ("", *columns), rows), console)
    output = Path(flags.FLAGS.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        output,
        {
            "shape": shape,
            "classes": CLASSES,
            "rounds": flags.FLAGS.rounds,
            "widths": measured,
            "load_average": load,
            "provenance": provenance(),
        },
    )


if __name__ == "__main__":
    flags.DEFINE_list("shape", ["1", "192", "256"], "Images, height and width.")
    flags.DEFINE_list("widths", ["16", "64"], "Of the first level's channels.")
    flags.DEFINE_integer("rounds", 11, "How often each case is timed.", lower_bound=1)
    flags.DEFINE_string("output", "runs/uncertainty_cost.json", "Where the result goes.")
    cli.run(main, required=[])
