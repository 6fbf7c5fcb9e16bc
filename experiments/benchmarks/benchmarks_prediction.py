"""Cost of uncertainty relative to one clean pass of the network.

A U-Net predicts one image without dropout; with K = 30 dropout heads, masks per channel and per element; with the
variance in closed form; and with 5 whole passes under dropout deep in it. All are jitted and return mean probabilities,
entropy and variance (sampled ones also the mutual information), the clean pass its logits. A whole pass costs less than
a clean one, because the layers before the first dropout run once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from experiments.benchmarks.baselines import OURS, Candidate, Setting, Target, measure, quotient
from segjax import training
from segjax.inference import analytic_uncertainty, predict_with_uncertainty, whole_passes
from segjax.training.network import make_model

TITLE = "Prediction: uncertainty over one clean pass"
CLASSES = 12
HEADS, PASSES = 30, 5
CHANNEL, ELEMENT = f"+ {HEADS} heads, channel masks", f"+ {HEADS} heads, element masks"
ANALYTIC, WHOLE = "+ analytic variance", f"+ {PASSES} whole passes"
COLUMNS = (CHANNEL, ELEMENT, ANALYTIC, WHOLE)
WIDTHS, DEPTH = (16, 64), 4


def rows(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns one row per width; `OURS` is the clean pass."""
    return {f"width {width}": lambda width=width: measure(candidates(width, setting), setting) for width in WIDTHS}


def candidates(width: int, setting: Setting) -> list[Candidate]:
    """Returns five predictions of one image by one network, at 3/8 of the setting's height and 1/4 of its width."""
    size = 3 * setting.shape[1] // 8, setting.shape[2] // 4
    config = training.defaults()
    config.model.width, config.model.depth, config.model.deep_dropout = width, DEPTH, 2
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
    return [
        Candidate(name, lambda function=function: partial(jax.jit(function), *arguments))
        for name, function in found.items()
    ]


def targets(measured: dict[str, Any]) -> list[Target]:
    """Returns target 5."""
    limits = {CHANNEL: 1.5, ELEMENT: 1.5, ANALYTIC: 1.1}
    return [
        Target(5, f"{name}: {label[2:]} / a clean pass", quotient(row["ms"][label], row["ms"][OURS]), limit)
        for name, row in measured.items()
        for label, limit in limits.items()
    ]
