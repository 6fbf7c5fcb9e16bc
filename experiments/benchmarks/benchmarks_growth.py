"""Growth of time and memory with pixels, classes and heads: each row doubles one of them four times.

Linear work has an exponent of 1 between the smallest and the largest size. Below 1 a constant part remains; above 1
something grows that should not, or the data no longer fits a cache.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import benchmarks_losses
from experiments.benchmarks.baselines import Candidate, Setting, Target, measure
from segjax import losses, metrics, training
from segjax.inference import head_uncertainty
from segjax.reporting import Picture, Table
from segjax.reporting.figures import curves, png
from segjax.training.network import make_model

TITLE = "Growth: pixels, classes and heads"
COLUMNS = ()
DOUBLINGS = 4
FEATURES = 16


def rows(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns one row per growing quantity; its columns are the sizes."""
    return {name: partial(_row, make, setting) for name, make in _ROWS.items()}


def _row(make: Callable[[Setting, int], Callable[..., Any]], setting: Setting) -> dict[str, Any]:
    candidates, extra = [], {}
    for doubling in range(DOUBLINGS + 1):
        function, arguments = make(setting, 2**doubling)
        # One compilation serves both memory and time.
        program = jax.jit(function).lower(*arguments).compile()
        extra[str(2**doubling)] = program.memory_analysis().temp_size_in_bytes
        candidates.append(
            Candidate(str(2**doubling), lambda program=program, arguments=arguments: partial(program, *arguments))
        )
    return measure(candidates, setting) | {"extra_bytes": extra}


def _logits(setting: Setting, share: int, classes: int) -> tuple[jax.Array, jax.Array]:
    """Returns logits and labels of one image with `share`/16 of the setting's pixels."""
    shape = 1, setting.shape[1] // 4 * max(share // 4, 1), setting.shape[2] // 4 * min(share, 4)
    logits, labels = benchmarks_losses.scene(shape, classes)
    return jnp.asarray(logits), jnp.asarray(labels)


def _focal(logits: jax.Array, labels: jax.Array) -> Any:
    return jax.value_and_grad(lambda z: losses.mean(losses.softmax_focal_loss(z, labels)))(logits)


def _pixels_loss(setting: Setting, times: int) -> Any:
    return _focal, _logits(setting, times, setting.classes)


def _classes_loss(setting: Setting, times: int) -> Any:
    return _focal, _logits(setting, 4, 2 * times)


def _pixels_confusion(setting: Setting, times: int) -> Any:
    logits, labels = _logits(setting, times, setting.classes)
    return lambda z, y: metrics.confusion_matrix(y, z, setting.classes), (logits, labels)


def _pixels_network(setting: Setting, times: int) -> Any:
    config = training.defaults()
    config.model.width = FEATURES
    model = make_model(config, setting.classes)
    height, width = setting.shape[1] // 16 * max(times // 4, 1), setting.shape[2] // 16 * min(times, 4)
    images = jax.random.normal(jax.random.key(0), (1, height, width, 3))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), images)
    return lambda v, x: model.apply(v, x, train=False).logits, (variables, images)


def _heads(setting: Setting, times: int) -> Any:
    shape = 1, setting.shape[1] // 8, setting.shape[2] // 8, FEATURES
    features = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (FEATURES, setting.classes)) / 4
    return partial(head_uncertainty, samples=4 * times, rate=0.2), (
        features,
        kernel,
        jnp.zeros(setting.classes),
        jax.random.key(2),
    )


# The name of a row gives the unit of its sizes.
_ROWS = {
    "focal loss, pixels": _pixels_loss,
    "focal loss, pairs of classes": _classes_loss,
    "confusion matrix of logits, pixels": _pixels_confusion,
    "U-Net, clean pass, pixels": _pixels_network,
    "dropout heads, fours": _heads,
}


def exponent(values: dict[str, float]) -> float:
    """Returns the exponent of the power law through the first and the last value."""
    (low, first), *_, (high, last) = values.items()
    return math.log(last / first) / math.log(int(high) / int(low))


def targets(measured: dict[str, Any]) -> list[Target]:
    """Returns target 8."""
    return [Target(8, f"{name}: exponent of the time", exponent(row["ms"]), 1.1) for name, row in measured.items()]


def tables(measured: dict[str, Any], memory: str = "temporary memory") -> list[Table]:
    """Builds the tables of time and memory at each size, as multiples of the smallest."""
    sizes = tuple(next(iter(measured.values()))["ms"])
    found = []
    for what, unit in (("ms", "time"), ("extra_bytes", memory)):
        rows = [
            (name, *(row[what][size] / max(row[what][sizes[0]], 1e-9) for size in sizes))
            for name, row in measured.items()
        ]
        found.append(Table(f"{unit}, as multiples of the smallest size's", ("×", *sizes), rows))
    return found


def pictures(measured: dict[str, Any], name: str = "growth") -> tuple[Picture, ...]:
    """Draws the time divided by the size: a horizontal line is linear growth."""
    series = {
        label: ([int(size) for size in row["ms"]], [[ms / row["ms"]["1"] / int(n) for n, ms in row["ms"].items()]])
        for label, row in measured.items()
    }
    drawn = curves(series, title="Time divided by size", x="size", y="relative to the smallest", y_range=(0, None))
    drawn.axes[0].set_xscale("log", base=2)
    return (Picture(name, "A horizontal line is linear growth.", png(drawn)),)
