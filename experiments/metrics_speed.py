"""How long counting takes, beside other libraries, in one run on the CPU: `python -m experiments.metrics_speed`.

The confusion matrix of given predictions, with ours and with whichever of torchmetrics, segmentation-models-pytorch
(smp) and scikit-learn is installed; then our other counts. The rounds are interleaved, every case once a round and each
round in another order, so that whatever else the machine does falls on all alike; of each case the median is taken.
Before that, every library must have found the same true positives.

The labels lie in blocks of 32 pixels, as the things in a street do, and 5 % of the pixels are predicted wrongly. Each
library gets them as it wants them: NumPy and PyTorch int64 on the host, ours on the device.
"""

import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import flags

from segjax import cli, metrics
from segjax.reporting import Table, show
from segjax.training.loop import write_json
from segjax.training.provenance import provenance

CLASSES = 19
OURS = "segjax, int32"
PAUSE = 0.02
# Modules, and the packages they come in.
PEERS = {
    "torch": "torch",
    "torchmetrics": "torchmetrics",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "sklearn": "scikit-learn",
}


class Case(NamedTuple):
    """What is timed, and the true positives of each class in what it returns (None: it counts something else)."""

    name: str
    run: Callable[[], Any]
    true_positives: Callable[[Any], Any] | None = np.diagonal


def scene(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, predictions and logits of `shape` pixels."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, CLASSES, (shape[0], -(-shape[1] // 32), -(-shape[2] // 32)))
    labels = coarse.repeat(32, axis=1).repeat(32, axis=2)[:, : shape[1], : shape[2]].copy()
    predictions = np.where(rng.uniform(size=shape) < 0.95, labels, rng.integers(0, CLASSES, shape))
    return labels, predictions, rng.standard_normal((*shape, CLASSES), np.float32) * 3


def our_confusion(labels: np.ndarray, predictions: np.ndarray) -> list[Case]:
    """Ours on device arrays of several types, and NumPy's and JAX's own bincount."""
    count = jax.jit(lambda labels, predictions: metrics.confusion_matrix(labels, predictions, CLASSES))
    count_kept = jax.jit(lambda labels, predictions, w: metrics.confusion_matrix(labels, predictions, CLASSES, where=w))
    bincount = jax.jit(lambda cells: jnp.bincount(cells.ravel(), length=CLASSES**2))
    wide = [jnp.asarray(x, jnp.int32) for x in (labels, predictions)]
    narrow = [x.astype(jnp.uint8) for x in wide]
    void = wide[0].at[..., ::7].set(255)
    kept = void != 255

    def square(counts: Any) -> np.ndarray:
        return np.diagonal(np.reshape(counts, (CLASSES, CLASSES)))

    return [
        Case(OURS, lambda: count(*wide)),
        Case("segjax, uint8", lambda: count(*narrow)),
        Case("segjax, int32, where", lambda: count_kept(void, wide[1], kept), None),
        Case("jax.numpy.bincount, int32", lambda: bincount(wide[0] * CLASSES + wide[1]), square),
        Case(
            "numpy.bincount",
            lambda: np.bincount((labels * CLASSES + predictions).ravel(), minlength=CLASSES**2),
            square,
        ),
    ]


def peers_confusion(labels: np.ndarray, predictions: np.ndarray) -> list[Case]:
    """The peers that are installed."""
    cases = []
    if importlib.util.find_spec("sklearn"):
        from sklearn.metrics import confusion_matrix

        cases.append(
            Case("scikit-learn confusion_matrix", lambda: confusion_matrix(labels.ravel(), predictions.ravel()))
        )
    if importlib.util.find_spec("torchmetrics"):
        cases += torchmetrics_updates(labels, predictions)
    if importlib.util.find_spec("segmentation_models_pytorch"):
        import torch
        from segmentation_models_pytorch.metrics import get_stats

        pair = torch.from_numpy(predictions), torch.from_numpy(labels)
        cases.append(
            Case(
                "smp get_stats",
                lambda: get_stats(*pair, "multiclass", num_classes=CLASSES),
                lambda stats: stats[0].sum(0).numpy(),
            )
        )
    return cases


def torchmetrics_updates(labels: np.ndarray, predictions: np.ndarray) -> list[Case]:
    """torchmetrics' update of the confusion matrix, as it is by default and without its check of the arguments."""
    import torch
    from torchmetrics import classification

    pair = torch.from_numpy(predictions), torch.from_numpy(labels)

    def case(name: str, metric: Any) -> Case:
        def update() -> np.ndarray:
            metric.reset()
            metric.update(*pair)
            return metric.confmat

        return Case(name, update, lambda matrix: matrix.diagonal().numpy())

    matrix, jaccard = classification.MulticlassConfusionMatrix, classification.MulticlassJaccardIndex
    return [
        case("torchmetrics MulticlassConfusionMatrix", matrix(CLASSES)),
        case("torchmetrics MulticlassConfusionMatrix, validate_args=False", matrix(CLASSES, validate_args=False)),
        case("torchmetrics MulticlassJaccardIndex", jaccard(CLASSES)),
    ]


def other_counts(labels: np.ndarray, logits: np.ndarray) -> list[Case]:
    """Our counts from logits."""
    # Arguments and not closures: XLA would compute with constants while it compiles.
    arguments = jnp.asarray(logits), jnp.asarray(labels, jnp.int32)
    counts = {
        "confusion_matrix": lambda logits, labels: metrics.confusion_matrix(labels, logits, CLASSES),
        "score_histogram, one class": lambda logits, labels: metrics.score_histogram(logits[..., 0], labels == 0),
        "calibration_bins": metrics.calibration_bins,
        "classwise_calibration_bins": metrics.classwise_calibration_bins,
        "proper_score_sums": metrics.proper_score_sums,
    }
    return [Case(name, partial(jax.jit(count), *arguments), None) for name, count in counts.items()]


def check(cases: list[Case]) -> None:
    """Raises where two libraries counted different true positives."""
    found = {case.name: case.true_positives(case.run()) for case in cases if case.true_positives}
    for name, hits in found.items():
        if not np.array_equal(hits, found[OURS]):
            raise ValueError(f"{name} counts other true positives, {hits}, than {OURS}, {found[OURS]}")


def milliseconds(cases: list[Case], rounds: int) -> dict[str, float]:
    """The median time of each case. The first call of each, which compiles and warms up, is not counted."""
    times: dict[str, list[float]] = {case.name: [] for case in cases}
    rng = np.random.default_rng(0)
    for _ in range(rounds + 1):
        for i in rng.permutation(len(cases)):
            case = cases[i]
            # OpenMP's threads go on spinning for a while after PyTorch's work is done, and would slow whoever is next.
            time.sleep(PAUSE)
            started = time.perf_counter()
            jax.block_until_ready(case.run())
            times[case.name].append(time.perf_counter() - started)
    return {name: 1000 * float(np.median(taken[1:])) for name, taken in times.items()}


def main(argv: list[str]) -> None:
    """Times all cases, prints two tables and writes both as JSON."""
    del argv
    console, shape = rich.console.Console(), tuple(map(int, flags.FLAGS.shape))
    load = os.getloadavg()[0]
    with jax.default_device(jax.devices("cpu")[0]):
        labels, predictions, logits = scene(shape)
        cases = our_confusion(labels, predictions) + peers_confusion(labels, predictions)
        check(cases)
        matrix = milliseconds(cases, flags.FLAGS.rounds)
        others = milliseconds(other_counts(labels, logits), max(flags.FLAGS.rounds // 4, 1))
    ratios = {name: taken / matrix[OURS] for name, taken in matrix.items()}
    size = " x ".join(map(str, shape))
    rows = [(name, taken, ratios[name]) for name, taken in matrix.items()]
    show(Table(f"confusion matrix, {size} pixels, {CLASSES} classes", ("", "ms", "ratio"), rows), console)
    show(Table(f"from logits, {size} pixels, {CLASSES} classes", ("segjax", "ms"), list(others.items())), console)
    installed = {package: importlib.util.find_spec(module) is not None for module, package in PEERS.items()}
    if not all(installed.values()):
        missing = [package for package, here in installed.items() if not here]
        console.print(f"Not installed, and so not timed: {', '.join(missing)}.")
    came_from = provenance()
    came_from["versions"] |= {name: importlib.metadata.version(name) for name, here in installed.items() if here}
    output = Path(flags.FLAGS.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        output,
        {
            "shape": shape,
            "classes": CLASSES,
            "rounds": flags.FLAGS.rounds,
            "confusion_matrix_ms": matrix,
            "confusion_matrix_ratios": ratios,
            "from_logits_ms": others,
            "load_average": load,
            "provenance": came_from,
        },
    )


if __name__ == "__main__":
    flags.DEFINE_list("shape", ["2", "512", "1024"], "Images, height and width.")
    flags.DEFINE_integer("rounds", 20, "How often each case is timed.", lower_bound=1)
    flags.DEFINE_string("output", "runs/metrics_speed.json", "Where the result goes.")
    cli.run(main, required=[])
