"""The report of a trained run: one pass over a split, and its numbers and pictures as sections of one page.

The pass adds up the counts of all scores and curves on the device. The images that are shown, those with the best and
the worst mean IoU, are read and predicted again at the end.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich
import rich.progress
from jaxtyping import Array, Bool, Float, Int, UInt8

from segjax import inference, metrics
from segjax.data import CORRUPTIONS, Source
from segjax.data.labels import UNSEEN, LabelSet
from segjax.data.loader import eval_rows, padded_sizes
from segjax.reporting.charts import Chart, ConfusionMatrix, ReliabilityDiagram
from segjax.reporting.live_page import MOST_LINES, Log, columns_of, training_sections
from segjax.reporting.overlays import mask_overlay
from segjax.reporting.report import Report, Section, Table, calibration_tables, per_class_table, unknown_table
from segjax.trained_run import TrainedRun, calibration_of, counter_of, facts_of
from segjax.training import changed, evaluation, parallel, segmentation
from segjax.training.network import TrainState, images_of
from segjax.training.objective import hparams_from_config

Rows = Sequence[Mapping[str, float | int]]
Curves = dict[str, dict[str, list]]

# The histograms are of the logarithm of an uncertainty, which may have any scale: of values from e^-16 to e^16.
# Values below the floor share a bin.
_LOWEST, _FLOOR = -16.0, 1e-7
LOG_SPAN, LOG_BINS = 32.0, 4096
CURVE_POINTS = 400
# Name, key and meaning of the main scores.
_HEADLINES = (
    ("mean IoU", "mean_iou", "over the pixels of the split, then the mean over classes"),
    ("mean IoU per image", "mean_iou_per_image", "mean over images of the mean IoU of each image"),
    ("average precision", "average_precision", "area under the precision-recall curve of the rare class"),
    ("AUROC", "auroc", "rare class; optimistic if it is very rare"),
    ("best IoU", "best_iou", "rare class, at the best threshold"),
    ("best threshold", "best_threshold", "probability of the rare class; chosen on these images"),
    ("mean accuracy", "mean_accuracy", "mean recall over classes"),
    ("pixel accuracy", "pixel_accuracy", "fraction of correct pixels; dominated by frequent classes"),
    ("frequency weighted IoU", "frequency_weighted_iou", "IoU per class, weighted by its fraction of the pixels"),
)
# The main scores that are drawn over the steps.
_PLOTTED = ("mean_iou", "average_precision", "best_iou", "mean_accuracy", "pixel_accuracy")


class ShownImage(NamedTuple):
    """An image of the split at its own size, its labels (void 255), its prediction, and uncertainties by name."""

    name: str
    mean_iou: float
    image: UInt8[np.ndarray, "H W C"]
    truth: UInt8[np.ndarray, "H W"]
    prediction: UInt8[np.ndarray, "H W"]
    uncertainties: dict[str, Float[np.ndarray, "H W"]]


class ImageScore(NamedTuple):
    """Mean IoU of an image, its index in the split, and if one class is all that it contains and all predicted."""

    mean_iou: float
    index: int
    has_one_class: bool = False


class Inspection(NamedTuple):
    """Results of a pass over a split; all but the images and `overlaps` are ready for JSON.

    The scores are those of `evaluation.evaluate` and `metrics.per_image_scores`, "average_precision_per_class",
    "expected_calibration_error" and "area_under_risk_coverage" by uncertainty. Of two classes, only the rare one has a
    precision-recall curve. `overlaps` are the pixels in the intersection and in the union of truth and prediction, per
    image and class. The best images come best first, the worst worst first. `shift` contains scores by kind of
    corruption, if a severity was given.
    """

    scores: dict[str, Any]
    reliability: dict[str, list]
    precision_recall: Curves
    risk_coverage: Curves
    overlaps: Int[np.ndarray, "images 2 classes"]
    best: tuple[ShownImage, ...]
    worst: tuple[ShownImage, ...]
    severity: int | None = None
    shift: dict[str, dict[str, Any]] | None = None


def inspect_run(run: TrainedRun, source: Source, *, images: int, severity: int | None = None) -> Inspection:
    """Inspects a run on every image of a split once, on all devices, and shows as many best and worst `images`.

    With a `severity`, 1 to 5, it also scores the images under each kind of `segjax.data.corrupt`, one pass per kind. A
    terminal shows the progress. If the devices cannot divide the run's batch, it raises ConfigError.
    """
    names, ranked = run.label_set.names, []
    overlaps = np.zeros((len(source), 2, len(names)), np.int64)

    def rank(matrices: Int[np.ndarray, "images C C"], indices: Int[np.ndarray, "images"]) -> dict[str, np.ndarray]:
        ranked.extend(_image_scores(matrices, indices))
        kept = indices < len(source)  # the others are fillers
        overlaps[indices[kept]] = _overlaps(matrices[kept])
        return metrics.per_image_sums(matrices)

    totals = sum_with_progress(run, source, make_inspection_step(run), rank)
    best, worst = best_and_worst(ranked, images)
    shown = list(read_and_predict(run, source, tracked([*best, *worst])))
    if len(names) == 2:
        histograms = {names[run.label_set.rare]: totals["scores"]}
    else:
        histograms = dict(zip(names, totals["rankings"], strict=True))
    precisions = {name: metrics.average_precision(histogram) for name, histogram in histograms.items()}
    risks, calibration = totals["errors"], totals["calibration"]
    scores = {
        **segmentation.split_facts(source),
        **_scores(totals),
        "average_precision_per_class": [precisions.get(name, math.nan) for name in names],
        **lists(metrics.per_image_scores(totals["per_image"])),
    }
    return Inspection(
        scores,
        lists(metrics.reliability_diagram(calibration) | {"count": calibration.count}),
        {name: subsample(metrics.precision_recall_curve(counts), "recall") for name, counts in histograms.items()},
        {name: subsample(metrics.risk_coverage(counts), "coverage") for name, counts in risks.items()},
        overlaps,
        tuple(shown[: len(best)]),
        tuple(shown[len(best) :]),
        severity,
        None if severity is None else _shift_scores(run, source, severity),
    )


def sum_with_progress(run: TrainedRun, source: Source, step: Callable, rank: Callable) -> dict[str, Any]:
    """Returns the sum over a split of the counts of `step(state, batch)`; a terminal shows the progress.

    Of "per_image", the confusion matrices of a batch, the sum is of `rank(matrices, indices)`.
    """
    count, console = counter_of(run, step), rich.get_console()
    bar = rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("compiling…", total=len(source))

    def count_batch(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        counts = count(batch)
        matrices, indices = np.asarray(counts["per_image"], np.int64), np.asarray(counts.pop("index"))
        bar.update(task, description="scoring", advance=int((indices < len(source)).sum()))
        return counts | {"per_image": rank(matrices, indices)}

    with bar:
        return evaluation.sum_counts(count_batch, source, run.config, devices=jax.device_count())


def tracked(images: Sequence[Any]) -> Iterable[Any]:
    """Yields `images`, which are predicted one after another; a terminal shows the progress."""
    console = rich.get_console()
    options = {"console": console, "transient": True, "disable": not console.is_terminal}
    return rich.progress.track(images, "predicting the shown images", **options)


def _shift_scores(run: TrainedRun, source: Source, severity: int) -> dict[str, dict[str, Any]]:
    """Returns `_scores` of the whole split under each kind of `data.corrupt`, by its name."""
    found, shown = {}, {"console": rich.get_console(), "transient": True}
    for kind in rich.progress.track(CORRUPTIONS, "scoring corrupted images", **shown):
        count = counter_of(run, make_inspection_step(run, (kind, severity)))
        found[kind] = _scores(evaluation.sum_counts(count, source, run.config, devices=jax.device_count()))
    return found


def _scores(totals: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **segmentation.scores(totals),
        "expected_calibration_error": metrics.expected_calibration_error(totals["calibration"]),
        "area_under_risk_coverage": {
            name: metrics.area_under_risk_coverage(risk) for name, risk in totals["errors"].items()
        },
    }


def make_inspection_step(run: TrainedRun, corruption: tuple[str, int] | None = None) -> Callable:
    """Builds `step(state, batch) -> counts`, which add over batches except for "per_image" and "index".

    With a `corruption`, (kind, severity) of `data.corrupt`, the images are corrupted first.

    `batch` is one of `eval_batches`. "rankings" `[C, 2, bins]` exist for more than two classes. "per_image" are the
    confusion matrices of the images of the global batch, and "index" their indices in the split.
    """
    num_classes, axis_name = run.label_set.num_classes, parallel.axis_name(run.config)
    maps_of, hparams = _make_maps(run), hparams_from_config(run.config)
    count = segmentation.make_score_counts(run.config, num_classes, axis_name, is_ensemble=run.members > 1)

    def count_strip(maps: dict[str, Array], labels: Int[Array, "b H W"], where: Bool[Array, "b H W"]) -> dict[str, Any]:
        outputs, logs = _outputs_and_logs(maps, num_classes)
        counts = count(outputs, labels, where, hparams)
        if run.config.data.unseen_classes:
            options = {"where": where, "axis_name": axis_name}
            counts["unknown"] = segmentation.score_histograms(logs, labels == UNSEEN, **options) | counts["unknown"]
            where = where & (labels != UNSEEN)
        logits, predicted = inference.class_logits(outputs, num_classes), inference.classify(outputs, num_classes)
        options = {"where": where, "axis_name": axis_name}
        counts["calibration"] = metrics.calibration_bins(logits, labels, **options)
        counts["errors"] = {name: error_histogram(u, predicted == labels, **options) for name, u in logs.items()}
        if num_classes > 2:
            odds = jnp.moveaxis(metrics.class_log_odds(logits), -1, 0)
            counts["rankings"] = jax.lax.map(
                lambda one: metrics.score_histogram(one[0], labels == one[1], **options),
                (odds, jnp.arange(num_classes, dtype=jnp.int32)),
            )
        return counts | {"per_image": metrics.confusion_matrix_per_image(labels, predicted, num_classes, where=where)}

    def step(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, Any]:
        maps = maps_of(state.variables, batch | {"image": images_of(batch, corruption)})
        counts = segmentation.sum_over_strips(
            count_strip, maps, batch, run.preprocessing, run.config.training.eval_pixels
        )
        per_image = {"per_image": counts["per_image"], "index": batch["index"]}
        if axis_name is not None:
            per_image = jax.lax.all_gather(per_image, axis_name, tiled=True)
        return counts | per_image

    return step


def error_histogram(
    log_uncertainty: Float[Array, "b H W"], correct: Bool[Array, "b H W"], **options: Any
) -> Int[Array, "2 bins"]:
    """Returns `metrics.uncertainty_histogram` of the logarithm of an uncertainty of any scale (`log_of`)."""
    values = log_uncertainty - _LOWEST
    return metrics.uncertainty_histogram(values, correct, maximum=LOG_SPAN, num_bins=LOG_BINS, **options)


def log_of(uncertainty: Float[Array, "*pixels"]) -> Float[Array, "*pixels"]:
    """Returns the logarithm of an uncertainty, finite at 0."""
    return jnp.log(jnp.maximum(uncertainty, _FLOOR))


def _make_maps(run: TrainedRun) -> Callable:
    """Builds `maps(variables, batch)`: "outputs" and logs of uncertainties by name, `[b, h, w, k]` each.

    The uncertainties are those of an ensemble's members, or of the head of a network with dropout. All have the
    network's resolution. `_outputs_and_logs` takes them, resized to that of the labels.
    """
    config, preprocessing, num_classes = run.config.model, run.preprocessing, run.label_set.num_classes
    model = run.model.clone(dropout="none", remat=False, axis_name=None)

    def maps(variables: Any, batch: dict[str, jax.Array]) -> dict[str, Array]:
        output = model.apply(variables, preprocessing.network_input(batch["image"], batch["size"]), train=False)
        found = {}
        if run.members > 1:
            members = inference.class_logits(output.mc_logits, num_classes)
            variance = jnp.var(members, axis=0, ddof=1).mean(axis=-1)
            found = {"variance": variance, "mutual information": metrics.mutual_information(members)}
        elif config.dropout != "none":
            options = {"num_classes": num_classes, "rate": config.dropout_rate}
            found = inference.head_uncertainty_maps(variables, output.features, batch["index"], **options)
        return {"outputs": output.logits} | {name: log_of(values)[..., None] for name, values in found.items()}

    return maps


def _outputs_and_logs(maps: dict[str, Array], num_classes: int) -> tuple[Array, dict[str, Array]]:
    """Returns the outputs, and the logs of all uncertainties by name."""
    outputs = maps["outputs"]
    logs = {"entropy": log_of(metrics.predictive_entropy(inference.class_logits(outputs, num_classes)[None]))}
    return outputs, logs | {name: values[..., 0] for name, values in maps.items() if name != "outputs"}


def read_and_predict(run: TrainedRun, source: Source, chosen: Iterable[ImageScore]) -> Iterator[ShownImage]:
    """Reads and predicts the chosen images again; one program serves all images of one padded size."""
    num_classes, padded, maps_of = run.label_set.num_classes, padded_sizes(source.sizes), _make_maps(run)

    @jax.jit
    def predict(variables: Any, batch: dict[str, jax.Array]) -> tuple[Array, dict[str, Array]]:
        to_native = partial(run.preprocessing.to_native, shape=batch["image"].shape[1:3], sizes=batch["size"])
        maps = jax.tree.map(to_native, maps_of(variables, batch))
        outputs, logs = _outputs_and_logs(maps, num_classes)
        return inference.classify(outputs, num_classes), jax.tree.map(jnp.exp, logs)

    for one in chosen:
        batch = eval_rows(source, [one.index], padded[one.index], 1)
        on_device = {key: batch[key] for key in ("image", "size", "index")}
        prediction, uncertainties = jax.device_get(predict(run.state.variables, on_device))
        height, width = batch["size"][0]
        cropped = {name: values[0, :height, :width] for name, values in uncertainties.items()}
        arrays = (batch["image"], batch["label"], prediction.astype(np.uint8))
        yield ShownImage(str(batch["name"][0]), one.mean_iou, *(x[0, :height, :width] for x in arrays), cropped)


def _image_scores(
    matrices: Int[np.ndarray, "images classes classes"], indices: Int[np.ndarray, "images"]
) -> list[ImageScore]:
    """Returns the scores of the images of these indices, without images that have no labels."""
    scores = []
    for index, matrix in zip(indices.tolist(), matrices, strict=True):
        if matrix.any():
            has_one_class = np.count_nonzero(matrix.sum(0) + matrix.sum(1)) == 1
            scores.append(ImageScore(metrics.segmentation_scores(matrix)["mean_iou"], index, has_one_class))
    return scores


def _overlaps(matrices: Int[np.ndarray, "images classes classes"]) -> Int[np.ndarray, "images 2 classes"]:
    """Returns the pixels in the intersection and in the union of truth and prediction, per class."""
    correct = np.diagonal(matrices, axis1=1, axis2=2)
    return np.stack([correct, matrices.sum(1) + matrices.sum(2) - correct], axis=1)


def best_and_worst(images: Sequence[ImageScore], count: int) -> tuple[list[ImageScore], list[ImageScore]]:
    """Returns the `count` best and the `count` worst images; if there are too few for both, the worst come first."""
    worst = sorted(images)[:count]
    # An image with one class that is also the only one predicted is right, but shows nothing: it comes last.
    best = sorted(set(images) - set(worst), key=lambda one: (one.has_one_class, -one.mean_iou, one.index))
    return best[:count], worst


def subsample(curve: dict[str, np.ndarray], along: str) -> dict[str, list]:
    """Returns at most `CURVE_POINTS` of a curve's points, evenly spaced in `along`, which rises."""
    at = np.nan_to_num(curve[along])
    if at.size > CURVE_POINTS:
        indices = np.searchsorted(at, np.linspace(at[0], at[-1], CURVE_POINTS))
        curve = {name: values[np.unique([0, *indices, at.size - 1])] for name, values in curve.items()}
    return lists(curve)


def lists(arrays: dict[str, Any]) -> dict[str, Any]:
    """Returns arrays as lists, for JSON."""
    return {name: np.asarray(value).tolist() for name, value in arrays.items()}


def run_report(run: TrainedRun, log: Rows, split: str, inspection: Inspection, *, is_best: bool = False) -> Report:
    """Builds the report of a checkpoint from the rows of `read_log` and the results of `inspect_run` on a split.

    The report of several runs has no training curves; those are in their own reports.
    """
    scores, step = inspection.scores, run.step
    headlines = [(name, float(scores[key]), note) for name, key, note in _HEADLINES if key in scores]
    error = f"{scores['expected_calibration_error']:.4f}"
    headlines.append(("expected calibration error", error, "mean |confidence - accuracy|; 0 is best"))
    sections = (
        Section("Scores", "", (headline_table(headlines),)),
        *(() if run.runs else _training_sections(columns_of(log), step, scores)),
        _class_section(inspection),
        *_threshold_sections(inspection),
        _uncertainty_section(inspection),
        *calibration_sections(run),
        *([_unknown_section(inspection)] if "unknown" in scores else []),
        *([_shift_section(inspection)] if inspection.shift else []),
        *_image_sections(inspection, run.label_set),
    )
    return page_of(run, split, scores, sections, is_best=is_best)


def headline_table(rows: list[tuple[str, Any, str]]) -> Table:
    """Builds the table of the main scores from rows of name, value and meaning."""
    return Table("Whole split", ("score", "value", "meaning"), rows, text=("meaning",))


def page_of(
    run: TrainedRun, split: str, scores: dict[str, Any], sections: Sequence[Section], *, is_best: bool
) -> Report:
    """Builds the report of a checkpoint from its sections, and adds the configuration and the provenance."""
    config, step = run.config, run.step
    fields = [(name, repr(value), repr(default)) for name, value, default in changed(config)]
    field_table = Table("Fields", ("field", "value", "default"), fields, text=("value", "default"))
    fields_text = "Fields that are not at their default; config.json in the workdir contains all fields."
    fields_text += f" Here those of {run.runs[0].name}." if run.runs else ""
    sections = (*sections, Section("Configuration", fields_text, (field_table,)))
    checkpoint = f"{'its best checkpoint, ' if is_best else ''}step {step} of {config.training.steps}"
    checkpoint = f"the ensemble of {len(run.runs)} runs" if run.runs else checkpoint
    text = f"{run.name}, {checkpoint}, on {scores['images']} image(s) of {split}."
    network = f"{run.members} × {config.model.name}" if run.members > 1 else config.model.name
    return Report(f"{network} on {config.data.name}", text, sections, facts_of(run, split, scores))


def _training_sections(log: Log, step: int, scores: Mapping[str, Any]) -> tuple[Section, ...]:
    classes = {name: f"eval/iou/{name}" for name in _rarest(scores)}
    evaluated = {name: f"eval/{key}" for name, key, _ in _HEADLINES if key in _PLOTTED}
    iou_caption = "IoU per class." if len(classes) == len(scores["classes"]) else "IoU of the rarest classes."
    return training_sections(log, step, evaluated, ("iou", "IoU per class", iou_caption, classes))


def _class_section(inspection: Inspection) -> Section:
    scores, curves = inspection.scores, inspection.precision_recall
    classes, pixels = scores["classes"], [sum(row) for row in scores["confusion"]]
    table = per_class_table(scores, "Each class against all others")
    options = {"x": "recall", "y": "precision", "x_range": (0, 1), "y_range": (0, 1.02)}
    if len(classes) > 2:
        values = scores["average_precision_per_class"]
        defined = [value for value in values if not math.isnan(value)]
        column = [*values, statistics.mean(defined) if defined else None]
        rows = [(*row, value) for row, value in zip(table.rows, column, strict=True)]
        table = table._replace(columns=(*table.columns, "AP"), rows=rows)
    else:
        (rare,) = curves
        chance = pixels[classes.index(rare)] / max(sum(pixels), 1)
        options["reference"] = f"chance ({chance:.2g})", chance
    drawn = {name: (curve["recall"], [curve["precision"]]) for name, curve in curves.items() if name in _rarest(scores)}
    subject = f"the {MOST_LINES} rarest classes" if len(drawn) < len(curves) else ", ".join(drawn)
    matrix_caption = "Confusion matrix in percent of each row: true classes in rows, predictions in columns."
    caption = f"Precision over recall of {subject}, over all thresholds."
    half = len(classes) <= MOST_LINES
    pictures = (
        ConfusionMatrix("confusion", matrix_caption, classes, scores["confusion"], half),
        Chart("precision_recall", caption, drawn, "Precision and recall", **options, half=half),
    )
    return Section("Classes", "", (table,), pictures)


def _threshold_sections(inspection: Inspection) -> list[Section]:
    """Returns a section on the threshold of the rarest class, unless no class has true pixels and a curve."""
    scores = inspection.scores
    pixels = {name: sum(row) for name, row in zip(scores["classes"], scores["confusion"], strict=True)}
    rare = min((name for name in inspection.precision_recall if pixels[name]), key=pixels.get, default=None)
    if rare is None:
        return []
    curve = inspection.precision_recall[rare]
    logits, precision, recall = (np.array(curve[k])[::-1] for k in ("threshold_logit", "precision", "recall"))
    with np.errstate(over="ignore"):  # the lowest threshold may be -inf
        thresholds = (1 / (1 + np.exp(-logits))).tolist()
    total = precision + recall
    f1 = 2 * precision * recall / np.where(total > 0, total, 1)
    scored = {"precision": precision, "recall": recall, "F1": f1, "IoU": f1 / (2 - f1)}
    lines = {name: (thresholds, [values.tolist()]) for name, values in scored.items()}
    _, best = max(zip(f1.tolist(), thresholds, strict=True))
    caption = f"Scores of {rare} for the pixels whose probability of it is at least the threshold."
    options = {"x_range": (0, 1), "y_range": (0, 1.02), "slider": best}
    chart = Chart("threshold", caption, lines, f"Threshold of {rare}", f"probability of {rare}", **options)
    text = (
        f"The slider starts at the threshold with the best F1 and IoU on these images. segjax predict --class={rare} "
        "--threshold=P applies another one."
    )
    return [Section(f"Threshold of {rare}", text, (), (chart,))]


def _uncertainty_section(inspection: Inspection) -> Section:
    scores, error_rate = inspection.scores, 1 - inspection.scores["pixel_accuracy"]
    lines = {name: (curve["coverage"], [curve["risk"]]) for name, curve in inspection.risk_coverage.items()}
    areas = sorted(scores["area_under_risk_coverage"].items(), key=lambda item: item[1])
    rows = [(name, f"{area:.3g}") for name, area in areas]
    table = Table("Error detection per uncertainty measure", ("uncertainty", "AURC ↓"), rows)
    text = (
        "The curve of risk and coverage gives the error rate of the most certain pixels; the lower it is, the better "
        f"the uncertainty ranks the errors. AURC is the area under it; a random ranking has AURC {error_rate:.3g}, the "
        "error rate of all pixels."
    )
    bins = [inspection.reliability[key] for key in ("edges", "confidence", "accuracy", "count")]
    # The first few pixels may have any error rate; at full coverage all lines meet the reference.
    limits = {
        "x_range": (0, 1),
        "y_range": (0, 1.5 * error_rate if error_rate > 0 else 1),
        "reference": ("random order", error_rate),
    }
    x = "coverage, most certain pixels first"
    caption = "Error rate of the most certain pixels over their fraction."
    risks = Chart("risk_coverage", caption, lines, "Risk and coverage", x, "error rate", **limits)
    error = f"expected calibration error {scores['expected_calibration_error']:.4f}"
    pictures = (
        ReliabilityDiagram("reliability", f"Accuracy per confidence; {error}. Below: pixels per bin.", *bins),
        risks,
    )
    return Section("Uncertainty", text, (table,), pictures)


def _unknown_section(inspection: Inspection) -> Section:
    text = (
        "The network was trained without these classes. A pixel of them is a positive, any other labelled pixel a "
        "negative. Void is left out. A ranking without skill has the share of the positives as AP and an AUROC of 0.5."
    )
    return Section("Unseen classes", text, (unknown_table(inspection.scores),))


def _shift_section(inspection: Inspection) -> Section:
    unknown = "unknown" in inspection.scores

    def row(name: str, scores: Mapping[str, Any]) -> tuple[Any, ...]:
        detection = (scores["unknown"]["entropy"]["auroc"],) if unknown else ()
        errors = scores["area_under_risk_coverage"]["entropy"]
        return (name, float(scores["mean_iou"]), float(scores["expected_calibration_error"]), float(errors), *detection)

    columns = ("corruption", "mean IoU ↑", "calibration error ↓", "AURC of the entropy ↓")
    columns += ("AUROC of unseen classes, entropy ↑",) if unknown else ()
    rows = [row("none", inspection.scores), *(row(*one) for one in inspection.shift.items())]
    text = (
        "The same scores for corrupted images, with the severity constants of ImageNet-C. Neither a calibration nor a "
        "guarantee holds for images that differ from those of the calibration."
    )
    return Section("Shift", text, (Table(f"Severity {inspection.severity} of 5", columns, rows),))


def calibration_sections(run: TrainedRun) -> list[Section]:
    """Returns a section about the calibration that is stored for this checkpoint, if there is one."""
    calibration, _ = calibration_of(run)
    if calibration is None:
        return []
    text = (
        "From segjax calibrate. The scaling is applied to probabilities by segjax predict and export, and not to the "
        "scores of this page; it is judged by the pixels that it was fitted to. A guarantee bounds the missed share of "
        "a class, or the share of pixels whose set lacks their class, on average over images that contain the class "
        "and are exchangeable with the calibration images. Shares and sizes are those on the calibration images. A "
        "probability p is that before the scaling; an adaptive set contains a class if the likelier ones have at most "
        "that probability together."
    )
    return [Section("Calibration after training", text, tuple(calibration_tables(calibration)))]


def _image_sections(inspection: Inspection, labels: LabelSet) -> list[Section]:
    shown = (*inspection.best, *inspection.worst)
    if not shown:
        return []
    # One colour scale for all images: the largest value shown, and log C for the entropy.
    maxima = {name: max(float(one.uncertainties[name].max()) for one in shown) for name in shown[0].uncertainties}
    maxima["entropy"] = math.log(labels.num_classes)

    def section(kind: str, text: str, images: Sequence[ShownImage]) -> Section:
        pictures = tuple(
            mask_overlay(f"{kind}_{i}", f"{one.name}: mean IoU {one.mean_iou:.3f}", *one[2:], maxima, labels)
            for i, one in enumerate(images, 1)
        )
        return Section(f"{kind.capitalize()} images", text, (), pictures)

    text = (
        "Ranked by the mean IoU of each image, over the classes that it contains. Choose a layer over the image, and "
        "how opaque it is. Uncertainty goes from black (certain) to pale yellow (uncertain), on one scale for all "
        "images."
    )
    sections = [section("worst", text, inspection.worst), section("best", "", inspection.best)]
    return [section for section in sections if section.pictures]


def _rarest(scores: Mapping[str, Any]) -> list[str]:
    """Returns the names of the rarest classes, at most `MOST_LINES`, in class order."""
    pixels = [sum(row) for row in scores["confusion"]]
    chosen = sorted(range(len(pixels)), key=lambda i: pixels[i])[:MOST_LINES]
    return [scores["classes"][i] for i in sorted(chosen)]
