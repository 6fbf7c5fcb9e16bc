"""Counts of the metrics in comparison with other libraries: confusion matrix, boundaries, ranking and calibration.

The labels are blocks of 32 pixels within a border of class 0, because MONAI counts the edge of the image as a boundary
and segjax does not; 5 % of the pixels are predicted wrongly. NumPy and PyTorch get int64 arrays on the host, segjax
arrays on the device. Each row includes the final score.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import benchmarks_losses
from experiments.benchmarks.baselines import (
    OURS,
    Candidate,
    Setting,
    Target,
    copy_of,
    fastest,
    measure,
    quotient,
    torch_here,
)
from segjax import metrics

TITLE = "Metrics: counts"
COPY = benchmarks_losses.COPY
PLAIN, NARROW, MASKED = "jax.numpy.bincount", "segjax, uint8", "segjax, where"
UNCHECKED = "torchmetrics, unchecked"
COLUMNS = (NARROW, MASKED, PLAIN, "NumPy", "SciPy", "scikit-learn", "torchmetrics", UNCHECKED, "SMP", "MONAI", COPY)
BASELINES = ("SciPy", "scikit-learn", "torchmetrics", "SMP", "MONAI")
# SegNet's tolerance for 360 × 480 pixels.
TOLERANCE = 4.5


def scene(shape: tuple[int, int, int], classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns int64 labels and predictions, and float32 logits that mostly agree with the labels."""
    logits, labels = benchmarks_losses.scene(shape, classes)
    rng, labels = np.random.default_rng(1), labels.astype(np.int64)
    labels[:, [0, -1]] = labels[:, :, [0, -1]] = 0
    predictions = np.where(rng.uniform(size=shape) < 0.95, labels, rng.integers(0, classes, shape))
    predictions[:, [0, -1]] = predictions[:, :, [0, -1]] = 0
    np.put_along_axis(logits, labels[..., None], np.take_along_axis(logits, labels[..., None], -1) + 5, -1)
    return labels, predictions, logits


def rows(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns a function that measures each row, by name."""
    return {name: partial(_row, make, setting) for name, make in _CANDIDATES.items()}


def _row(make: Callable[..., tuple[list[Candidate], float]], setting: Setting) -> dict[str, Any]:
    candidates, tolerance = make(*scene(setting.shape, setting.classes), setting.classes)
    return measure(candidates, setting, tolerance)


def targets(measured: dict[str, Any]) -> list[Target]:
    """Returns target 2."""
    found = []
    if "confusion matrix" in measured:
        times = measured["confusion matrix"]["ms"]
        found.append(Target(2, "torchmetrics / confusion matrix", _over(times, "torchmetrics"), 10.0, True))
    for name in ("boundary F1", "average precision", "calibration error"):
        if name in measured:
            baseline = fastest(measured[name], BASELINES)
            found.append(
                Target(2, f"the fastest baseline / {name}", quotient(baseline, measured[name]["ms"][OURS]), 5.0, True)
            )
    return found


def _over(times: dict[str, float], label: str) -> float | None:
    return quotient(times.get(label), times[OURS])


def _confusion(
    labels: np.ndarray, predictions: np.ndarray, logits: np.ndarray, classes: int
) -> tuple[list[Candidate], float]:
    del logits
    count = jax.jit(lambda labels, predictions: metrics.confusion_matrix(labels, predictions, classes))
    count_kept = jax.jit(lambda labels, predictions, w: metrics.confusion_matrix(labels, predictions, classes, where=w))
    bincount = jax.jit(lambda cells: jnp.bincount(cells.ravel(), length=classes**2))
    wide = [jnp.asarray(x, jnp.int32) for x in (labels, predictions)]
    narrow = [x.astype(jnp.uint8) for x in wide]
    void = wide[0].at[..., ::7].set(255)

    def host() -> np.ndarray:
        return np.bincount((labels * classes + predictions).ravel(), minlength=classes**2)

    def sklearn() -> Callable[[], Any]:
        from sklearn.metrics import confusion_matrix

        return partial(confusion_matrix, labels.ravel(), predictions.ravel(), labels=np.arange(classes))

    def smp() -> Callable[[], Any]:
        torch = torch_here()
        from segmentation_models_pytorch.metrics import get_stats

        pair = torch.from_numpy(predictions), torch.from_numpy(labels)
        return lambda: get_stats(*pair, "multiclass", num_classes=classes)

    def square(counts: Any) -> np.ndarray:
        return np.diagonal(np.reshape(counts, (classes, classes)))

    def torchmetrics(checked: bool) -> Callable[[], Any]:
        torch = torch_here()
        from torchmetrics.classification import MulticlassConfusionMatrix

        metric = MulticlassConfusionMatrix(classes, validate_args=checked)
        pair = torch.from_numpy(predictions), torch.from_numpy(labels)

        def update() -> Any:
            metric.reset()
            metric.update(*pair)
            return metric.confmat

        return update

    return [
        Candidate(OURS, lambda: partial(count, *wide), square),
        Candidate(NARROW, lambda: partial(count, *narrow), square),
        Candidate(MASKED, lambda: partial(count_kept, void, wide[1], void != 255)),
        Candidate(PLAIN, lambda: partial(bincount, wide[0] * classes + wide[1]), square),
        Candidate("NumPy", lambda: host, square),
        Candidate("scikit-learn", sklearn, square),
        Candidate("torchmetrics", partial(torchmetrics, True), square),
        Candidate(UNCHECKED, partial(torchmetrics, False), square),
        Candidate("SMP", smp, lambda stats: stats[0].sum(0).numpy()),
    ], 0.0


def _boundary(
    labels: np.ndarray, predictions: np.ndarray, logits: np.ndarray, classes: int
) -> tuple[list[Candidate], float]:
    """Compares the fraction of matched boundary pixels of each image and class except the border's."""
    del logits
    count = partial(metrics.boundary_counts_per_image, num_classes=classes, tolerance=TOLERANCE)
    ours = jax.jit(lambda labels, predictions: count(labels, predictions))
    wide = [jnp.asarray(x, jnp.int32) for x in (labels, predictions)]

    def share(counts: Any) -> np.ndarray:
        counts = np.asarray(counts, np.float64)[..., 1:, :]
        return (counts[..., 0] + counts[..., 2]) / (counts[..., 1] + counts[..., 3])

    def scipy() -> Callable[[], Any]:
        from scipy import ndimage

        def edges(mask: np.ndarray) -> np.ndarray:
            return mask & ~ndimage.binary_erosion(mask, border_value=1)

        def counts() -> np.ndarray:
            found = np.zeros((len(labels), classes, 4))
            for i, c in np.ndindex(found.shape[:2]):
                of_prediction, of_truth = edges(predictions[i] == c), edges(labels[i] == c)
                near_truth, near_prediction = (
                    ndimage.distance_transform_edt(~edge) <= TOLERANCE for edge in (of_truth, of_prediction)
                )
                found[i, c] = [
                    *((of_prediction & near_truth).sum(), of_prediction.sum()),
                    *((of_truth & near_prediction).sum(), of_truth.sum()),
                ]
            return found

        return counts

    def monai() -> Callable[[], Any]:
        torch = torch_here()
        from monai.metrics import compute_surface_dice

        pair = torch.from_numpy(predictions), torch.from_numpy(labels)

        def surface_dice() -> Any:
            hot = (torch.nn.functional.one_hot(x, classes).movedim(-1, 1) for x in pair)
            return compute_surface_dice(*hot, class_thresholds=[TOLERANCE] * (classes - 1))

        return surface_dice

    return [
        Candidate(OURS, lambda: partial(ours, *wide), share),
        Candidate("SciPy", scipy, share),
        Candidate("MONAI", monai, lambda found: found.numpy()),
    ], 1e-6


def _ranking(
    labels: np.ndarray, predictions: np.ndarray, logits: np.ndarray, classes: int
) -> tuple[list[Candidate], float]:
    """Compares the average precision of class 1 by its logit."""
    del predictions, classes
    scores, positive = np.ascontiguousarray(logits[..., 1]), labels == 1
    histogram, arrays = jax.jit(metrics.score_histogram), (jnp.asarray(scores), jnp.asarray(positive))

    def sklearn() -> Callable[[], Any]:
        from sklearn.metrics import average_precision_score

        return lambda: average_precision_score(positive.ravel(), scores.ravel())

    def torchmetrics() -> Callable[[], Any]:
        torch = torch_here()
        from torchmetrics.functional.classification import binary_average_precision

        pair = torch.from_numpy(scores).ravel(), torch.from_numpy(positive.astype(np.int64)).ravel()
        return lambda: binary_average_precision(*pair, thresholds=None)

    return [
        Candidate(OURS, lambda: lambda: metrics.average_precision(histogram(*arrays)), np.asarray),
        Candidate("scikit-learn", sklearn, np.asarray),
        Candidate("torchmetrics", torchmetrics, lambda found: found.numpy()),
    ], 1e-3


def _calibration(
    labels: np.ndarray, predictions: np.ndarray, logits: np.ndarray, classes: int
) -> tuple[list[Candidate], float]:
    """Compares the calibration error of the top label with 15 bins."""
    del predictions
    bins, arrays = jax.jit(metrics.calibration_bins), (jnp.asarray(logits), jnp.asarray(labels, jnp.int32))

    def torchmetrics() -> Callable[[], Any]:
        torch = torch_here()
        from torchmetrics.functional.classification import multiclass_calibration_error

        pair = torch.from_numpy(logits).reshape(-1, classes), torch.from_numpy(labels).ravel()
        return lambda: multiclass_calibration_error(*pair, num_classes=classes, n_bins=15, norm="l1")

    return [
        Candidate(OURS, lambda: lambda: metrics.expected_calibration_error(bins(*arrays)), np.asarray),
        Candidate("torchmetrics", torchmetrics, lambda found: found.numpy()),
        Candidate(COPY, partial(copy_of, arrays[0])),
    ], 1e-3


def _of_logits(count: Callable[..., Any]) -> Callable[..., tuple[list[Candidate], float]]:
    """Builds the row of counts without a baseline: segjax and a copy of the logits."""

    def make(
        labels: np.ndarray, predictions: np.ndarray, logits: np.ndarray, classes: int
    ) -> tuple[list[Candidate], float]:
        del predictions
        # Arguments instead of closures, because XLA would fold constants while it compiles.
        arrays = jnp.asarray(logits), jnp.asarray(labels, jnp.int32)
        counted = jax.jit(lambda logits, labels: count(logits, labels, classes))
        return [
            Candidate(OURS, lambda: partial(counted, *arrays)),
            Candidate(COPY, partial(copy_of, arrays[0])),
        ], 0.0

    return make


# Functions of logits, labels and the number of classes.
COUNTS: dict[str, Callable[..., Any]] = {
    "confusion matrix of logits": lambda z, y, classes: metrics.confusion_matrix(y, z, classes),
    "classwise calibration bins": lambda z, y, classes: metrics.classwise_calibration_bins(z, y),
    "proper scores": lambda z, y, classes: metrics.proper_score_sums(z, y),
}
_CANDIDATES = {
    "confusion matrix": _confusion,
    "boundary F1": _boundary,
    "average precision": _ranking,
    "calibration error": _calibration,
    **{name: _of_logits(count) for name, count in COUNTS.items()},
}
