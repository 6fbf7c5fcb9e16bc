"""Shows a trained run on one page: `python -m segjax.report runs/camvid [--split=test]`.

One pass over a split adds up the counts of all scores and curves on the device. The images that are shown, those with
the best and the worst mean IoU, are read and predicted again at the end.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from segjax import cli, metrics
from segjax.data import EvalExamples, Source, open_split
from segjax.data.labels import LabelSet
from segjax.data.resize import resize
from segjax.inference import class_logits, classify, example_tiles, head_uncertainty_maps, legend, png
from segjax.reporting import Picture, run_report, summary_line, write_report
from segjax.storage import nan_to_none, output_folder, path_of
from segjax.trained_run import TrainedRun, facts_of, load_run, on_all_devices
from segjax.training import changed, evaluation, parallel, read_log
from segjax.training.train_step import TrainState

ENTROPY = "entropy"
# Uncertainties may have any scale above 0, so that their histograms are of the logarithm, which ranks pixels alike:
# bins from -16 on, 32 wide in all. Values below the floor share a bin.
_LOWEST, _FLOOR = -16.0, 1e-7
LOG_SPAN, LOG_BINS = 32.0, 4096
_CURVE_POINTS = 400


class Shown(NamedTuple):
    """An image of the split, at its own size, and its prediction.

    Attributes:
      name: of the image.
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
    """Results of a pass over a split; all but the pictures are ready for JSON.

    Attributes:
      scores: those of `evaluation.evaluate`, "average_precision_per_class", "expected_calibration_error",
        "area_under_risk_coverage" by uncertainty, and those of `metrics.per_image_scores`.
      reliability: the lists of `metrics.reliability_diagram`, and "count", the pixels per bin.
      precision_recall: by class "recall", "precision" and "threshold_logit" of at most 400 points; of two classes the
        second only.
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
        """The end of each uncertainty's colour scale: log C for the entropy, the largest value shown for others."""
        shown = [one.uncertainties for one in (*self.best, *self.worst)]
        highest = {name: max(float(one[name].max()) for one in shown) for name in (shown[0] if shown else ())}
        return highest | {ENTROPY: math.log(len(self.scores["classes"]))}


def main(argv: list[str]) -> None:
    """Scores every image of a split once, and writes the page, also as Markdown, CSV, LaTeX, JSON and PNG."""
    if len(argv) != 2:
        raise app.UsageError(f"expected one WORKDIR or WORKDIR/checkpoints/STEP; got {' '.join(argv[1:]) or 'nothing'}")
    run = load_run(argv[1])
    log, config, labels, step = read_log(run.workdir), run.config, run.label_set, int(run.state.step)
    split = flags.FLAGS.split or config.data.eval_split
    output = output_folder(flags.FLAGS.output or run.workdir / "report")
    source, chosen = open_split(config.data, split), "its best checkpoint, " if path_of(argv[1]) == run.workdir else ""
    output.mkdir(parents=True, exist_ok=True)
    found = inspect_run(run, source, images=flags.FLAGS.images)
    numbers = {key: value for key, value in found._asdict().items() if key not in ("best", "worst")}
    report = run_report(
        f"{config.model.name} on {config.data.name}",
        f"{run.workdir}, {chosen}step {step} of {config.training.steps}, on the {len(source)} images of {split}.",
        log=log,
        step=step,
        **numbers,
        best=_pictures("best", found.best, found.scales, labels),
        worst=_pictures("worst", found.worst, found.scales, labels),
        colours=Picture("colours", "The classes and their colours.", png(legend(labels))),
        changed=changed(config),
        facts=facts_of(run, split, found.scores),
    )
    data = {"step": step, "split": split, **numbers}
    data |= {key: [[one.name, one.mean_iou] for one in getattr(found, key)] for key in ("best", "worst")}
    written = write_report(report, output, "report", nan_to_none(data))
    print(summary_line(found.scores))
    print(f"wrote {written[0]}, and the same as Markdown, CSV, LaTeX, JSON and PNG beside it")


def _pictures(kind: str, images: Sequence[Shown], scales: dict[str, float], labels: LabelSet) -> list[Picture]:
    return [
        Picture(
            f"{kind}_{i}",
            f"{one.name}: mean IoU {one.mean_iou:.3f}",
            png(example_tiles(one.image, one.truth, one.prediction, one.uncertainties, scales, labels.palette)),
            half=True,
        )
        for i, one in enumerate(images, 1)
    ]


def inspect_run(run: TrainedRun, source: Source, *, images: int) -> Inspection:
    """Inspects `run` on every image of `source` once, on all devices.

    Args:
      run: an opened checkpoint.
      source: a split of its data set.
      images: number of the best images to show, and of the worst.

    Raises:
      ConfigError: the run's batch cannot be divided over the devices.
    """
    config, num_classes, names = run.config, run.label_set.num_classes, run.label_set.names
    step = make_inspection_step(config, run.model, num_classes, parallel.axis_name(config))
    step, state, mesh = on_all_devices(run, step)
    count = evaluation.counter(step, state, config, mesh)
    ranking, begun, host = _ImageRanking(images), 0, jax.process_index()

    def counted(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        nonlocal begun
        size = len(batch["where"])
        counts = count(batch | {"index": np.arange(size, dtype=np.int32) + (begun + host * size)})
        ranking.add(begun, np.asarray(counts.pop("per_image"), np.int64))
        begun += size * jax.process_count()
        return counts

    totals = evaluation.sum_counts(counted, source, config)
    show = _make_show(run, source)
    best, worst = ranking.best_and_worst()
    return Inspection(
        evaluation.split_facts(source) | evaluation.scores(totals) | _more_scores(totals, names, ranking.sums),
        _lists(metrics.reliability_diagram(totals["calibration"]) | {"count": totals["calibration"].count}),
        {
            name: _thinned(metrics.precision_recall_curve(histogram), "recall")
            for name, histogram in _score_histograms(totals, names).items()
        },
        {name: _thinned(metrics.risk_coverage(histogram), "coverage") for name, histogram in totals["errors"].items()},
        tuple(show(*one) for one in best),
        tuple(show(*one) for one in worst),
    )


def make_inspection_step(config: ConfigDict, model: Any, num_classes: int, axis_name: str | None) -> Callable:
    """Builds `step(state, batch) -> counts`, which add over batches except for "per_image".

    `batch` is one of `eval_batches`, with "index" `[b]`, the images' indices in the split. The counts are those of
    `score_counts`, "calibration", "errors" by uncertainty, for more than two classes "rankings" `[C, 2, bins]`, and
    "per_image", the confusion matrices of the global batch in its order.
    """
    maps_of = _make_maps(config, model, num_classes)

    def step(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, Any]:
        labels, where = evaluation.kept_labels(batch)
        outputs, log_uncertainties = maps_of(state.variables, batch)
        logits, predicted = class_logits(outputs, num_classes), classify(outputs, num_classes)
        counted = {"where": where, "axis_name": axis_name}
        counts = evaluation.score_counts(outputs, labels, num_classes, **counted)
        counts["calibration"] = metrics.calibration_bins(logits, labels, **counted)
        counts["errors"] = {
            name: error_histogram(values, predicted == labels, **counted) for name, values in log_uncertainties.items()
        }
        if num_classes > 2:
            odds = jnp.moveaxis(metrics.class_log_odds(logits), -1, 0)
            counts["rankings"] = jax.lax.map(
                lambda one: metrics.score_histogram(one[0], labels == one[1], **counted),
                (odds, jnp.arange(num_classes, dtype=jnp.int32)),
            )
        per_image = metrics.confusion_matrix_per_image(labels, predicted, num_classes, where=where)
        if axis_name is not None:
            per_image = jax.lax.all_gather(per_image, axis_name, tiled=True)
        return counts | {"per_image": per_image}

    return step


def error_histogram(
    log_uncertainty: Float[Array, "b H W"],
    correct: Bool[Array, "b H W"],
    *,
    where: Bool[Array, "b H W"],
    axis_name: str | None = None,
) -> Int[Array, "2 bins"]:
    """Returns `metrics.uncertainty_histogram` of the logarithm of an uncertainty of any scale (`log_of`)."""
    return metrics.uncertainty_histogram(
        log_uncertainty - _LOWEST, correct, maximum=LOG_SPAN, num_bins=LOG_BINS, where=where, axis_name=axis_name
    )


def log_of(uncertainty: Float[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """Returns the logarithm of an uncertainty, finite at 0."""
    return jnp.log(jnp.maximum(uncertainty, _FLOOR))


def _make_maps(config: ConfigDict, model: Any, num_classes: int) -> Callable:
    """Builds `maps(variables, batch)`: outputs, and logs of uncertainties by name, at the labels' resolution.

    The uncertainties are the entropy, and for a network trained with dropout heads those of its samples.
    """
    preprocessing, model = evaluation.preprocessing_of(config, num_classes), model.clone(dropout="none", remat=False)

    def maps(variables: Any, batch: dict[str, jax.Array]) -> tuple[Array, dict[str, Array]]:
        images, sizes = batch["image"], batch["size"]

        def native(values: Array) -> Array:
            return resize(values, images.shape[1:3], antialias=False, to_sizes=sizes)

        output = model.apply(variables, preprocessing.network_input(images, sizes), train=False)
        outputs = native(output.logits)
        logs = {ENTROPY: log_of(metrics.predictive_entropy(class_logits(outputs, num_classes)[None]))}
        if config.model.dropout != "none":
            found = head_uncertainty_maps(
                variables, output.features, batch["index"], num_classes=num_classes, rate=config.model.dropout_rate
            )
            stacked = native(jnp.stack([log_of(values) for values in found.values()], axis=-1))
            logs |= {name: stacked[..., i] for i, name in enumerate(found)}
        return outputs, logs

    return maps


def _make_show(run: TrainedRun, source: Source) -> Callable[[int, float], Shown]:
    """Builds `show(index, mean_iou)`, which reads and predicts an image again; one program serves all images."""
    num_classes = run.label_set.num_classes
    maps_of = _make_maps(run.config, run.model.clone(axis_name=None), num_classes)
    examples = EvalExamples(source)

    @jax.jit
    def predict(variables: Any, batch: dict[str, jax.Array]) -> tuple[Array, dict[str, Array]]:
        outputs, logs = maps_of(variables, batch)
        return classify(outputs, num_classes), jax.tree.map(jnp.exp, logs)

    def show(index: int, mean_iou: float) -> Shown:
        example = examples(index)
        batch = {key: example[key][None] for key in ("image", "size")} | {"index": np.array([index], np.int32)}
        prediction, uncertainties = jax.device_get(predict(run.state.variables, batch))
        height, width = example["size"]
        return Shown(
            example["name"],
            mean_iou,
            example["image"][:height, :width],
            example["label"][:height, :width],
            prediction[0, :height, :width].astype(np.uint8),
            {name: values[0, :height, :width] for name, values in uncertainties.items()},
        )

    return show


class _ImageRanking:
    """Sums of per-image scores, and the indices of the best and the worst images; memory does not grow."""

    def __init__(self, keep: int):
        self._keep, self.sums = keep, None
        self._best: list[tuple[tuple[Any, ...], int, float]] = []
        self._worst: list[tuple[tuple[Any, ...], int, float]] = []

    def add(self, begun: int, matrices: Int[np.ndarray, "images classes classes"]) -> None:
        """Adds the confusion matrices of the images from `begun` on; empty ones do not count as images."""
        sums = metrics.per_image_sums(matrices)
        self.sums = sums if self.sums is None else jax.tree.map(np.add, self.sums, sums)
        for index, matrix in enumerate(matrices, begun):
            if not matrix.any():
                continue
            mean_iou = metrics.segmentation_scores(matrix)["mean_iou"]
            # An image with one class that is also the only one predicted is right, but shows nothing: it comes last.
            has_one_class = np.count_nonzero(matrix.sum(0) + matrix.sum(1)) == 1
            self._best.append(((has_one_class, -mean_iou, index), index, mean_iou))
            self._worst.append(((mean_iou, index), index, mean_iou))
        self._best = sorted(self._best)[: 2 * self._keep]
        self._worst = sorted(self._worst)[: self._keep]

    def best_and_worst(self) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        """Returns (index, mean IoU) of each; if there are too few images for both, the worst are chosen first."""
        worst = [one[1:] for one in self._worst]
        best = [one[1:] for one in self._best if one[1:] not in worst]
        return best[: self._keep], worst


def _score_histograms(totals: dict[str, Any], names: Sequence[str]) -> dict[str, np.ndarray]:
    if len(names) == 2:
        return {names[1]: totals["scores"]}
    return dict(zip(names, totals["rankings"], strict=True))


def _more_scores(totals: dict[str, Any], names: Sequence[str], sums: dict[str, np.ndarray]) -> dict[str, Any]:
    precisions = [metrics.average_precision(histogram) for histogram in _score_histograms(totals, names).values()]
    return {
        "average_precision_per_class": [*[float("nan")] * (len(names) - len(precisions)), *precisions],
        "expected_calibration_error": metrics.expected_calibration_error(totals["calibration"]),
        "area_under_risk_coverage": {
            name: metrics.area_under_risk_coverage(histogram) for name, histogram in totals["errors"].items()
        },
        **_lists(metrics.per_image_scores(sums)),
    }


def _thinned(curve: dict[str, np.ndarray], along: str) -> dict[str, list]:
    """Returns at most `_CURVE_POINTS` of a curve's points, evenly spaced in `along`, which rises."""
    at = np.nan_to_num(curve[along])
    if at.size > _CURVE_POINTS:
        indices = np.searchsorted(at, np.linspace(at[0], at[-1], _CURVE_POINTS))
        curve = {name: values[np.unique([0, *indices, at.size - 1])] for name, values in curve.items()}
    return _lists(curve)


def _lists(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in arrays.items()}


if __name__ == "__main__":
    flags.DEFINE_string("split", None, "Split to inspect; default the config's data.eval_split.")
    flags.DEFINE_string("output", None, "Folder for report.html and its other files; default WORKDIR/report.")
    flags.DEFINE_integer("images", 4, "Number of best images to show, and of worst images.", lower_bound=0)
    cli.run(main, required=[])
