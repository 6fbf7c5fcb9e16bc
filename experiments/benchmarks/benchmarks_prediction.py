"""What uncertainty costs over one clean pass of the network.

A U-Net predicts one image: without dropout; with K = 30 dropout heads, masks per channel and per element; with the
variance in closed form; and by 5 whole passes with dropout deep in it, beside the clean one. All are jitted and give
mean probabilities, entropy and variance (the samples mutual information too), the clean pass its logits. Whole passes
cost less than one each: what lies before the first dropout is the same for all, and computed once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from experiments.benchmarks.baselines import OURS, Setting, Target, Way, measure, quotient
from segjax import training
from segjax.inference import analytic_uncertainty, predict_with_uncertainty, whole_passes
from segjax.reporting import Table
from segjax.training.train_step import make_model

TITLE = "Prediction: uncertainty over one clean pass"
CLASSES = 12
HEADS, PASSES = 30, 5
CHANNEL, ELEMENT = f"+ {HEADS} heads, channel masks", f"+ {HEADS} heads, element masks"
ANALYTIC, WHOLE = "+ analytic variance", f"+ {PASSES} whole passes"
COLUMNS = (CHANNEL, ELEMENT, ANALYTIC, WHOLE)
WIDTHS = (16, 64)


def rows(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """A row a width; `OURS` is the clean pass."""
    return {f"width {width}": lambda width=width: measure(ways(width, setting), setting) for width in WIDTHS}


def ways(width: int, setting: Setting) -> list[Way]:
    """One network, predicting one image in five ways, at three eighths of the setting's height and a quarter's width.

    So 192×256 of 512×1024 pixels: the size at which the CPU's recipes train.
    """
    size = 3 * setting.shape[1] // 8, setting.shape[2] // 4
    config = training.defaults()
    config.model.width, config.model.deep_dropout = width, 2
    model = make_model(config, CLASSES)
    images = jax.random.normal(jax.random.key(0), (1, *size, 3))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), images)

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

    found = {
        OURS: clean,
        CHANNEL: partial(heads, "channel"),
        ELEMENT: partial(heads, "element"),
        ANALYTIC: analytic,
        WHOLE: passes,
    }
    arguments = variables, images, jax.random.key(2)
    return [Way(name, lambda way=way: partial(jax.jit(way), *arguments)) for name, way in found.items()]


def targets(measured: dict[str, Any]) -> list[Target]:
    """Target 5."""
    limits = {CHANNEL: 1.5, ELEMENT: 1.5, ANALYTIC: 1.1}
    return [
        Target(5, f"{name}: {way[2:]} / a clean pass", quotient(row["ms"][way], row["ms"][OURS]), limit)
        for name, row in measured.items()
        for way, limit in limits.items()
    ]


def tables(measured: dict[str, Any]) -> list[Table]:
    """None beside the times."""
    del measured
    return []
