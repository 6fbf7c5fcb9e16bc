"""Time and memory of the uncertainty methods over one clean pass: `python -m experiments.uncertainty.cost`.

An untrained U-Net and random statistics: the cost does not depend on their values. All cases are compiled programs of
one image at the network's resolution. Times are medians of interleaved rounds; memory is the compiler's, of temporary
arrays and of parameters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import flags
from jaxtyping import Array

from experiments.benchmarks.timing import Case, milliseconds
from experiments.sweep.results_io import local_path, provenance_facts, publish
from experiments.uncertainty.scores import HEAD_SAMPLES, RATE, SCALES
from segjax import cli, metrics, training
from segjax.inference import augmented_statistics, head_uncertainty
from segjax.inference.augmentation import SYMMETRIES
from segjax.inference.monte_carlo import linear_head, uncertainty_of
from segjax.metrics.anomaly import Gaussians
from segjax.reporting import Report, Section, Table
from segjax.training.network import make_model
from segjax.training.provenance import provenance

CLASSES, MEMBERS = 11, 5
CLEAN = "one pass: mask and entropy"


def programs(width: int, size: tuple[int, int]) -> dict[str, tuple[Callable, tuple]]:
    """Returns the function and the arguments of each case."""
    config = training.defaults()
    config.model.width = width
    model = make_model(config, CLASSES)
    image = jax.random.normal(jax.random.key(0), (1, *size, 3))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), image)
    members = jax.tree.map(lambda x: jnp.stack([x] * MEMBERS), variables)
    features = linear_head(variables)[0].shape[0]
    shape = (CLASSES, features, features)
    whitening = np.broadcast_to(np.eye(features, dtype=np.float32), shape)
    gaussians = Gaussians(np.zeros(shape[:2], np.float32), whitening, *np.zeros((2, CLASSES), np.float32))

    def network(variables: Any, x: Array) -> Any:
        return model.apply(variables, x, train=False)

    def softmax(variables: Any, x: Array) -> tuple:
        logits = network(variables, x).logits
        return jnp.argmax(logits, axis=-1), metrics.predictive_entropy(logits[None])

    def energy(variables: Any, x: Array) -> tuple:
        logits = network(variables, x).logits
        return jnp.argmax(logits, axis=-1), metrics.energy_score(logits)

    def density(variables: Any, x: Array, gaussians: Gaussians) -> tuple:
        output = network(variables, x)
        return jnp.argmax(output.logits, axis=-1), metrics.gaussian_density_score(output.features, gaussians)

    def dropout(variables: Any, x: Array) -> Any:
        kernel, bias = linear_head(variables)
        options = {"samples": HEAD_SAMPLES, "rate": RATE, "mask": "channel"}
        return head_uncertainty(network(variables, x).features, kernel, bias, jax.random.key(2), **options)

    def augmentation(variables: Any, x: Array) -> Any:
        symmetries = SYMMETRIES["mirror"]
        found = augmented_statistics(x, lambda x, _: network(variables, x).logits, symmetries=symmetries, scales=SCALES)
        return uncertainty_of(found, len(symmetries) * len(SCALES))

    def ensemble(members: Any, x: Array) -> tuple:
        logits = jax.lax.map(lambda variables: network(variables, x).logits, members)
        mean = metrics.log_mean_softmax(logits)
        return jnp.argmax(mean, axis=-1), metrics.predictive_entropy(logits), metrics.mutual_information(logits)

    return {
        CLEAN: (softmax, (variables, image)),
        "energy": (energy, (variables, image)),
        "feature density": (density, (variables, image, gaussians)),
        f"dropout of the head, {HEAD_SAMPLES} samples": (dropout, (variables, image)),
        f"augmentation, {len(SCALES) * 2} images": (augmentation, (variables, image)),
        f"ensemble of {MEMBERS}": (ensemble, (members, image)),
    }


def measure(width: int, size: tuple[int, int], rounds: int) -> list[dict[str, Any]]:
    """Returns milliseconds, ratio to one pass and megabytes of each case."""
    compiled = {name: (jax.jit(f).lower(*args).compile(), args) for name, (f, args) in programs(width, size).items()}
    times = milliseconds([Case(name, partial(run, *args)) for name, (run, args) in compiled.items()], rounds)
    rows = []
    for name, (run, _) in compiled.items():
        memory = run.memory_analysis()
        rows.append(
            {
                "method": name,
                "milliseconds": times[name],
                "ratio": times[name] / times[CLEAN],
                "temporary_megabytes": memory.temp_size_in_bytes / 1e6,
                "argument_megabytes": memory.argument_size_in_bytes / 1e6,
            }
        )
    return rows


def report(found: dict[int, list[dict[str, Any]]], size: tuple[int, int], rounds: int) -> Report:
    """Returns the report, one table per width."""
    columns = ("method", "ms", "ratio to one pass", "temporary MB", "parameters and image, MB")
    tables = tuple(
        Table(f"U-Net of width {width}", columns, [tuple(row.values()) for row in rows])
        for width, rows in found.items()
    )
    ratios = "; ".join(f"{row['method']} {row['ratio']:.2f}" for row in found[max(found)] if row["method"] != CLEAN)
    text = f"Time over one pass of a U-Net of width {max(found)}: {ratios}."
    facts = {
        "image": "×".join(map(str, size)),
        "classes": CLASSES,
        "rounds": rounds,
        **provenance_facts([{"provenance": provenance()}]),
    }
    return Report("Cost of the uncertainty methods", text, (Section("Time and memory", "", tables),), facts)


def main(argv: list[str]) -> None:
    """Times all cases, then prints and writes the report."""
    del argv
    options = flags.FLAGS
    found = {width: measure(width, options.size, options.rounds) for width in (16, 64)}
    made, folder = report(found, options.size, options.rounds), local_path(options.workdir)
    publish(made, folder, "uncertainty_method_cost", found, rich.console.Console(width=140))


if __name__ == "__main__":
    cli.define_size("size", "Height and width of the network's input in pixels.", (192, 256))
    flags.DEFINE_integer("rounds", 15, "Number of timed rounds.", lower_bound=1)
    flags.DEFINE_string("workdir", "runs/uncertainty", "Folder of the report.")
    cli.run(main, required=[])
