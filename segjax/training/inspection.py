"""A run looked at closely: one pass over a split gives its scores, its curves, and the images it is best and worst at.

The pass adds counts on the device, as every evaluation does, and keeps no image: those that are shown are read and
predicted again at the end.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from segjax import metrics
from segjax.data import VOID, EvalExamples, Source
from segjax.training import evaluation, parallel
from segjax.training.prediction import class_logits, classify, make_input, resize_logits_to, score_counts
from segjax.training.run import Run
from segjax.training.train_step import TrainState

ENTROPY = "entropy"
# Uncertainties lie anywhere above 0: their logarithm ranks as they do. Its bins begin at -16 and span
# 32; below the floor all are alike.
_LOWEST, _FLOOR = -16.0, 1e-7
LOG_SPAN, LOG_BINS = 32.0, 4096
_POINTS = 400  # of a curve

Measures = Callable[[Any, Array, Array], dict[str, Array]]
"""`measures(variables, features, examples)`: more uncertainties by name, `[b, h, w]` ≥ 0 each, of the features `[b, h,
w, f]` of a clean pass; `examples` `[b]` are the images' places in the split, for what is random."""


class Shown(NamedTuple):
    """An image of the split, at its own size, and what the run says of it.

    Attributes:
      name: its own.
      mean_iou: of this image, over the classes in it.
      image: `[H, W, C]`.
      truth: train ids, void 255.
      prediction: train ids.
      uncertainties: by name, `[H, W]`.
    """

    name: str
    mean_iou: float
    image: UInt8[np.ndarray, "H W C"]
    truth: UInt8[np.ndarray, "H W"]
    prediction: UInt8[np.ndarray, "H W"]
    uncertainties: dict[str, Float[np.ndarray, "H W"]]


class Inspection(NamedTuple):
    """What one pass found; all but the pictures is ready for JSON.

    Attributes:
      scores: `evaluation.evaluate`'s, and "average_precision_per_class", "expected_calibration_error",
        "area_under_risk_coverage" by uncertainty, and what `metrics.per_image_scores` gives.
      reliability: what `metrics.reliability_diagram` gives, and "count", the pixels a bin.
      precision_recall: by class "recall", "precision" and "threshold_logit", of as many points as are drawn; of two
        classes the second only.
      risk_coverage: by uncertainty "coverage" and "risk", likewise.
      best: the images with the highest mean IoU, best first.
      worst: those with the lowest, worst first. No image is in both.
    """

    scores: dict[str, Any]
    reliability: dict[str, list]
    precision_recall: dict[str, dict[str, list]]
    risk_coverage: dict[str, dict[str, list]]
    best: tuple[Shown, ...]
    worst: tuple[Shown, ...]

    @property
    def scales(self) -> dict[str, float]:
        """By uncertainty, the end of a scale for all pictures: log C of the entropy, of others the largest shown."""
        shown = [one.uncertainties for one in (*self.best, *self.worst)]
        highest = {name: max(float(one[name].max()) for one in shown) for name in (shown[0] if shown else ())}
        return highest | {ENTROPY: math.log(len(self.scores["classes"]))}


def inspect_run(run: Run, source: Source, *, images: int, measures: Measures | None = None) -> Inspection:
    """Looks at `run` on every image of `source` once, on all devices.

    Args:
      run: an opened checkpoint.
      source: a split of its data set.
      images: how many of the best, and how many of the worst images are shown.
      measures: uncertainties besides the entropy of the probabilities.

    Raises:
      ConfigError: the run's batch cannot be split over the devices.
    """
    config, mesh, num_classes = run.config, parallel.make_mesh(), len(run.label_set.names)
    parallel.check_batch(config, mesh)
    axis_name = parallel.axis_name(config)
    step = make_inspection_step(config, run.model, num_classes, axis_name, measures)
    count = evaluation.counter(
        parallel.map_step(step, config, mesh, arguments=2), parallel.replicate(run.state, config, mesh), config, mesh
    )
    each, begun, host = _EachImage(images), 0, jax.process_index()

    def counted(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        nonlocal begun
        size = len(batch["where"])
        counts = count(batch | {"index": np.arange(size, dtype=np.int32) + (begun + host * size)})
        each.take(begun, np.asarray(counts.pop("per_image"), np.int64))
        begun += size * jax.process_count()
        return counts

    totals = evaluation.add_up(counted, source, config)
    show = _shower(run, source, measures)
    best, worst = each.best_and_worst()
    return Inspection(
        evaluation.about(source) | evaluation.scores(totals) | _more_scores(totals, run.label_set.names, each.sums),
        _lists(metrics.reliability_diagram(totals["calibration"]) | {"count": totals["calibration"].count}),
        {
            name: _drawn(metrics.precision_recall_curve(histogram), "recall")
            for name, histogram in _rankings(totals, run.label_set.names).items()
        },
        {name: _drawn(metrics.risk_coverage(histogram), "coverage") for name, histogram in totals["errors"].items()},
        tuple(show(*one) for one in best),
        tuple(show(*one) for one in worst),
    )


def make_inspection_step(
    config: ConfigDict, model: Any, num_classes: int, axis_name: str | None, measures: Measures | None = None
) -> Callable:
    """Builds `step(state, batch) -> counts`, which add over batches but for "per_image".

    `batch` is one of `eval_batches`, with "index" `[b]`, the images' places in the split. The counts are those of
    `score_counts`, "calibration", "errors" by uncertainty, for more than two classes "rankings" `[C, 2, bins]`, and
    "per_image", the confusion matrices of the global batch in its order.
    """
    maps_of = _make_maps(config, model, num_classes, measures)

    def step(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, Any]:
        labels = batch["label"].astype(jnp.int32)
        logits, unsure = maps_of(state.variables, batch, labels.shape[1:])
        where, predicted = (labels != VOID) & batch["where"][:, None, None], classify(logits, num_classes)
        counted = {"where": where, "axis_name": axis_name}
        counts = score_counts(logits, labels, num_classes, **counted)
        counts["calibration"] = metrics.calibration_bins(class_logits(logits, num_classes), labels, **counted)
        counts["errors"] = {
            name: error_histogram(values, predicted == labels, **counted) for name, values in unsure.items()
        }
        if num_classes > 2:
            odds = jnp.moveaxis(metrics.class_log_odds(class_logits(logits, num_classes)), -1, 0)
            counts["rankings"] = jax.lax.map(
                lambda one: metrics.score_histogram(one[0], labels == one[1], **counted),
                (odds, jnp.arange(num_classes, dtype=jnp.int32)),
            )
        of_images = metrics.confusion_matrix_per_image(labels, predicted, num_classes, where=where)
        if axis_name is not None:
            of_images = jax.lax.all_gather(of_images, axis_name, tiled=True)
        return counts | {"per_image": of_images}

    return step


def error_histogram(
    log_uncertainty: Float[Array, "b H W"],
    correct: Bool[Array, "b H W"],
    *,
    where: Bool[Array, "b H W"],
    axis_name: str | None = None,
) -> Int[Array, "2 bins"]:
    """`metrics.uncertainty_histogram` of the logarithm of any uncertainty (`log_of`), whose scale is then its own."""
    return metrics.uncertainty_histogram(
        log_uncertainty - _LOWEST, correct, maximum=LOG_SPAN, num_bins=LOG_BINS, where=where, axis_name=axis_name
    )


def log_of(uncertainty: Float[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """Its logarithm, finite where it is 0."""
    return jnp.log(jnp.maximum(uncertainty, _FLOOR))


def _make_maps(config: ConfigDict, model: Any, num_classes: int, measures: Measures | None) -> Callable:
    """Builds `maps(variables, batch, canvas)`: logits and logs of uncertainties by name, at the labels' resolution."""
    input_of, model = make_input(config), model.clone(dropout="none", remat=False)

    def maps(variables: Any, batch: dict[str, jax.Array], canvas: tuple[int, int]) -> tuple[Array, dict[str, Array]]:
        output = model.apply(variables, input_of(batch["image"]), train=False)
        logits = resize_logits_to(output.logits, canvas, batch["size"])
        unsure = {ENTROPY: log_of(metrics.predictive_entropy(class_logits(logits, num_classes)[None]))}
        found = measures(variables, output.features, batch["index"]) if measures else {}
        if found:
            logs = jnp.stack([log_of(values) for values in found.values()], axis=-1)
            logs = resize_logits_to(logs, canvas, batch["size"])
            unsure |= {name: logs[..., i] for i, name in enumerate(found)}
        return logits, unsure

    return maps


def _shower(run: Run, source: Source, measures: Measures | None) -> Callable[[int, float], Shown]:
    """`show(index, mean_iou)`: an image read and predicted again, all of them by one program."""
    config, num_classes = run.config, len(run.label_set.names)
    maps_of = _make_maps(config, run.model.clone(axis_name=None), num_classes, measures)
    examples = EvalExamples(source, tuple(config.data.size))
    canvas = tuple(source.largest_size)

    @jax.jit
    def found(variables: Any, batch: dict[str, jax.Array]) -> tuple[Array, dict[str, Array]]:
        logits, unsure = maps_of(variables, batch, canvas)
        return classify(logits, num_classes), jax.tree.map(jnp.exp, unsure)

    def show(index: int, mean_iou: float) -> Shown:
        example, read = examples(index), source[index]
        batch = {key: np.asarray(example[key])[None] for key in ("image", "size")} | {"index": np.array([index])}
        prediction, unsure = jax.device_get(found(run.state.variables, batch))
        height, width = read["label"].shape
        return Shown(
            read["name"],
            mean_iou,
            read["image"],
            read["label"],
            prediction[0, :height, :width].astype(np.uint8),
            {name: values[0, :height, :width] for name, values in unsure.items()},
        )

    return show


class _EachImage:
    """What is kept of each image's confusion matrix: sums of scores, and the places of the best and the worst."""

    def __init__(self, keep: int):
        self._keep, self.sums = keep, None
        self._best: list[tuple[tuple[Any, ...], int, float]] = []
        self._worst: list[tuple[tuple[Any, ...], int, float]] = []

    def take(self, begun: int, matrices: Int[np.ndarray, "images classes classes"]) -> None:
        """The matrices of the images from `begun` on; those without a kept pixel are no images."""
        sums = metrics.per_image_sums(matrices)
        self.sums = sums if self.sums is None else jax.tree.map(np.add, self.sums, sums)
        for index, matrix in enumerate(matrices, begun):
            if not matrix.any():
                continue
            mean_iou = metrics.segmentation_scores(matrix)["mean_iou"]
            # An image of a single class that nothing else is seen in is right, and nothing to look at: they come last.
            alone = np.count_nonzero(matrix.sum(0) + matrix.sum(1)) == 1
            self._best.append(((alone, -mean_iou, index), index, mean_iou))
            self._worst.append(((mean_iou, index), index, mean_iou))
        self._best = sorted(self._best)[: 2 * self._keep]
        self._worst = sorted(self._worst)[: self._keep]

    def best_and_worst(self) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        """(place, mean IoU) of each; of fewer than twice as many images as are wanted the worst come first."""
        worst = [one[1:] for one in self._worst]
        best = [one[1:] for one in self._best if one[1:] not in worst]
        return best[: self._keep], worst


def _rankings(totals: dict[str, Any], names: Sequence[str]) -> dict[str, np.ndarray]:
    if len(names) == 2:
        return {names[1]: totals["scores"]}
    return dict(zip(names, totals["rankings"], strict=True))


def _more_scores(totals: dict[str, Any], names: Sequence[str], sums: dict[str, np.ndarray]) -> dict[str, Any]:
    precisions = [metrics.average_precision(histogram) for histogram in _rankings(totals, names).values()]
    return {
        "average_precision_per_class": [*[float("nan")] * (len(names) - len(precisions)), *precisions],
        "expected_calibration_error": metrics.expected_calibration_error(totals["calibration"]),
        "area_under_risk_coverage": {
            name: metrics.area_under_risk_coverage(histogram) for name, histogram in totals["errors"].items()
        },
        **_lists(metrics.per_image_scores(sums)),
    }


def _drawn(curve: dict[str, np.ndarray], along: str) -> dict[str, list]:
    """A curve as it is drawn: at most `_POINTS` of its points, evenly spaced in `along`, which rises."""
    at = np.nan_to_num(curve[along])
    if at.size > _POINTS:
        places = np.searchsorted(at, np.linspace(at[0], at[-1], _POINTS))
        curve = {name: values[np.unique([0, *places, at.size - 1])] for name, values in curve.items()}
    return _lists(curve)


def _lists(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in arrays.items()}
