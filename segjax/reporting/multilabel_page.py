"""The report of classes that overlap: one pass over a split, and its numbers and pictures as sections of one page."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich
import rich.progress
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from segjax import inference, metrics
from segjax.data import CORRUPTIONS, LabelSet, Source
from segjax.inference.visualize import colorize_overlaps
from segjax.reporting.charts import Chart, Series
from segjax.reporting.live_page import MOST_LINES, columns_of, training_sections
from segjax.reporting.overlays import overlap_overlay
from segjax.reporting.report import Report, Section, Table, multilabel_table
from segjax.reporting.run_page import (
    Curves,
    ImageScore,
    Rows,
    best_and_worst,
    calibration_sections,
    headline_table,
    lists,
    page_of,
    subsample,
    sum_with_progress,
    tracked,
)
from segjax.trained_run import TrainedRun, counter_of
from segjax.training import evaluation, multilabel, parallel
from segjax.training.network import TrainState
from segjax.training.objective import hparams_from_config
from segjax.training.segmentation import counting_step, split_facts

_HEADLINES = (
    ("mean IoU", "mean_iou", "over the pixels of the split, of p > 1/2, then the mean over classes"),
    ("mean IoU per image", "mean_iou_per_image", "mean over images of the mean IoU of the classes in each"),
    ("mean average precision", "mean_average_precision", "area under the precision-recall curve, mean over classes"),
    ("mean Dice", "mean_dice", "over the pixels of the split, mean over classes"),
    ("exact match", "exact_match", "fraction of the pixels with exactly the right classes"),
    ("mean calibration error", "mean_calibration_error", "mean |p - frequency| over pixels and classes; 0 is best"),
)
_PLOTTED = {"mean IoU": "eval/mean_iou", "mean AP": "eval/mean_average_precision", "exact match": "eval/exact_match"}


class ShownOverlaps(NamedTuple):
    """An image of the split at its own size, its labels (combinations, void 255), its predicted classes and entropy."""

    name: str
    mean_iou: float
    image: Shaped[np.ndarray, "H W C"]
    truth: UInt8[np.ndarray, "H W"]
    prediction: Bool[np.ndarray, "H W classes"]
    entropy: Float[np.ndarray, "H W"]


class MultilabelInspection(NamedTuple):
    """Results of a pass over a split; all but the images and `overlaps` are ready for JSON.

    The scores are those of `training.multilabel.score_batches`, `metrics.classwise_calibration_error` and
    "mean_iou_per_image". Reliability and precision-recall curves are by class. `overlaps` are the pixels in the
    intersection and in the union of truth and prediction, per image and class. `shift` contains scores by kind of
    corruption, if a severity was given.
    """

    scores: dict[str, Any]
    reliability: Curves
    precision_recall: Curves
    overlaps: Int[np.ndarray, "images 2 classes"]
    best: tuple[ShownOverlaps, ...]
    worst: tuple[ShownOverlaps, ...]
    severity: int | None = None
    shift: dict[str, dict[str, Any]] | None = None


def inspect_multilabel(
    run: TrainedRun, source: Source, *, images: int, severity: int | None = None
) -> MultilabelInspection:
    """Inspects a run on every image of a split once, on all devices, and shows as many best and worst `images`.

    With a `severity`, 1 to 5, it also scores the images under each kind of `segjax.data.corrupt`, one pass per kind. A
    terminal shows the progress. If the devices cannot divide the run's batch, it raises ConfigError.
    """
    names, ranked = run.label_set.names, []
    overlaps = np.zeros((len(source), 2, len(names)), np.int64)

    def rank(matrices: Int[np.ndarray, "images C 2 2"], indices: Int[np.ndarray, "images"]) -> dict[str, Any]:
        each, kept = _overlaps(matrices), indices < len(source)  # the others are fillers
        overlaps[indices[kept]] = each[kept]
        means = _mean_ious(each)
        defined = np.isfinite(means)
        ranked.extend(ImageScore(*one, False) for one in zip(means[defined], indices[defined].tolist(), strict=True))
        return {"sum": means[defined].sum(), "count": np.int64(defined.sum())}

    totals = sum_with_progress(run, source, make_inspection_step(run), rank)
    best, worst = (tuple(show_overlaps(run, source, tracked(part))) for part in best_and_worst(ranked, images))
    per_image, bins = totals["per_image"], totals["calibration"]
    scores = split_facts(source) | _scores(totals)
    scores["mean_iou_per_image"] = float(per_image["sum"] / per_image["count"]) if per_image["count"] else math.nan
    of_classes = [jax.tree.map(lambda x, i=i: x[i], bins) for i in range(len(names))]
    diagrams = [lists(metrics.reliability_diagram(one) | {"count": one.count}) for one in of_classes]
    curves = [subsample(metrics.precision_recall_curve(one), "recall") for one in totals["scores"]]
    shift = None
    if severity is not None:
        kinds = rich.progress.track(CORRUPTIONS, "scoring corrupted images", console=rich.get_console(), transient=True)
        shift = {kind: _corrupted_scores(run, source, (kind, severity)) for kind in kinds}
    by_class = dict(zip(names, diagrams, strict=True)), dict(zip(names, curves, strict=True))
    return MultilabelInspection(scores, *by_class, overlaps, best, worst, severity, shift)


def _scores(totals: Mapping[str, Any]) -> dict[str, Any]:
    return multilabel.scores(totals) | lists(metrics.classwise_calibration_error(totals["calibration"]))


def _corrupted_scores(run: TrainedRun, source: Source, corruption: tuple[str, int]) -> dict[str, Any]:
    count = counter_of(run, make_inspection_step(run, corruption))

    def without_images(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        return {key: values for key, values in count(batch).items() if key not in ("per_image", "index")}

    return _scores(evaluation.sum_counts(without_images, source, run.config, devices=jax.device_count()))


def _overlaps(matrices: Int[np.ndarray, "images C 2 2"]) -> Int[np.ndarray, "images 2 C"]:
    """Returns the pixels in the intersection and in the union of truth and prediction, per class."""
    return np.stack([matrices[..., 1, 1], matrices.sum(axis=(-1, -2)) - matrices[..., 0, 0]], axis=1)


def _mean_ious(overlaps: Int[np.ndarray, "images 2 C"]) -> Float[np.ndarray, "images"]:
    """Returns the mean IoU of the classes in the labels or the prediction of each image; NaN without any."""
    both, either = overlaps[:, 0], overlaps[:, 1]
    classes = (either > 0).sum(axis=-1)
    sums = (both / np.maximum(either, 1)).sum(axis=-1)
    return np.where(classes > 0, sums / np.maximum(classes, 1), np.nan)


def make_inspection_step(run: TrainedRun, corruption: tuple[str, int] | None = None) -> Callable:
    """Builds `step(state, batch) -> counts`, which add over batches except for "per_image" and "index".

    They are the counts of `training.multilabel.make_score_counts`, and "calibration", the
    `metrics.classwise_calibration_bins` of each class. "per_image" `[images, C, 2, 2]` are the confusion matrices of
    the images of the global batch, and "index" their indices in the split. With a `corruption`, (kind, severity) of
    `data.corrupt`, the images are corrupted first.
    """
    config, axis_name = run.config, parallel.axis_name(run.config)
    count_scores, hparams = multilabel.make_score_counts(config, axis_name), hparams_from_config(config)
    targets_of = multilabel.make_class_targets(config)

    def count(maps: dict[str, Array], labels: Int[Array, "b H W"], where: Bool[Array, "b H W"]) -> dict[str, Any]:
        odds = maps["outputs"]
        each = jnp.moveaxis(odds, -1, 0), jnp.moveaxis(targets_of(labels), -1, 0)

        def count_class(one: tuple[Array, Array]) -> tuple[Any, Array]:
            pairs, target = inference.class_logits(one[0][..., None], 2), one[1]
            bins = metrics.classwise_calibration_bins(pairs, target, where=where, axis_name=axis_name)
            present = (one[0] > 0).astype(jnp.int32)
            matrices = metrics.confusion_matrix_per_image(target, present, 2, where=where)
            return jax.tree.map(lambda x: x[1], bins), matrices

        bins, matrices = jax.lax.map(count_class, each)
        counts = count_scores(odds, labels, where, hparams)
        return counts | {"calibration": bins, "per_image": jnp.moveaxis(matrices, 0, 1)}

    count_batch = counting_step(config, run.model, run.label_set.num_classes, count, corruption)

    def step(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, Any]:
        counts = count_batch(state, batch)
        per_image = {"per_image": counts["per_image"], "index": batch["index"]}
        if axis_name is not None:
            per_image = jax.lax.all_gather(per_image, axis_name, tiled=True)
        return counts | per_image

    return step


def show_overlaps(run: TrainedRun, source: Source, chosen: Iterable[ImageScore]) -> list[ShownOverlaps]:
    """Reads and predicts the chosen images again, as `segjax predict` does."""
    predict, shown = run.predictor(), []
    for one in chosen:
        example = source[one.index]
        found = predict(example["image"])
        arrays = example["image"], example["label"], found.mask, found.uncertainties["entropy"]
        shown.append(ShownOverlaps(source.name(one.index), float(one.mean_iou), *arrays))
    return shown


def multilabel_report(
    run: TrainedRun, log: Rows, split: str, inspection: MultilabelInspection, *, is_best: bool = False
) -> Report:
    """Builds the report of a checkpoint from the rows of `read_log` and the results of `inspect_multilabel`.

    The report of several runs has no training curves; those are in their own reports.
    """
    scores = inspection.scores
    rarest = _rarest(scores)
    caption = "IoU per class." if len(rarest) == len(scores["classes"]) else "IoU of the rarest classes."
    per_class = ("iou", "IoU per class", caption, {name: f"eval/iou/{name}" for name in rarest})
    sections = (
        Section("Scores", "", (headline_table([(name, float(scores[key]), note) for name, key, note in _HEADLINES]),)),
        *(() if run.runs else training_sections(columns_of(log), run.step, _PLOTTED, per_class)),
        _class_section(inspection),
        *calibration_sections(run),
        *([_shift_section(inspection)] if inspection.shift else []),
        *_image_sections(inspection, run.label_set),
    )
    return page_of(run, split, scores, sections, is_best=is_best)


def _class_section(inspection: MultilabelInspection) -> Section:
    scores, rarest = inspection.scores, _rarest(inspection.scores)
    table = multilabel_table(scores, "Each class against its absence")
    own = zip(
        [*scores["best_iou_per_class"], None],
        [*scores["best_threshold_per_class"], None],
        [*scores["calibration_error_per_class"], scores["mean_calibration_error"]],
        strict=True,
    )
    columns = (*table.columns, "best IoU", "at p", "calibration error")
    rows = [(*row, *more) for row, more in zip(table.rows, own, strict=True)]
    subject = f"the {MOST_LINES} rarest classes" if len(rarest) < len(scores["classes"]) else "each class"
    curves = {name: inspection.precision_recall[name] for name in rarest}
    drawn = {name: (curve["recall"], [curve["precision"]]) for name, curve in curves.items()}
    options = {"x_range": (0, 1), "y_range": (0, 1.02)}
    caption = f"Precision over recall of {subject}, over all thresholds."
    precision = Chart("precision_recall", caption, drawn, "Precision and recall", "recall", "precision", **options)
    diagrams = {name: inspection.reliability[name] for name in rarest}
    drawn = {name: _without_empty_bins(diagram) for name, diagram in diagrams.items()}
    drawn["perfect calibration"] = ([0, 1], [[0, 1]])
    labels = {"x": "probability of the class", "y": "fraction with the class"}
    caption = f"Reliability of {subject}: how often pixels of a probability have it."
    reliability = Chart("reliability", caption, drawn, "Reliability", **labels, **options)
    text = (
        "A pixel has every class whose probability is above 1/2. The best IoU is that at the best threshold p of each "
        "class, chosen on these images. The calibration error is the mean |p - frequency| of the pixels; compare it "
        "with the share of the class."
    )
    return Section("Classes", text, (table._replace(columns=columns, rows=rows),), (precision, reliability))


def _without_empty_bins(diagram: Mapping[str, list]) -> Series:
    filled = [i for i, count in enumerate(diagram["count"]) if count]
    return [diagram["confidence"][i] for i in filled], [[diagram["accuracy"][i] for i in filled]]


def _shift_section(inspection: MultilabelInspection) -> Section:
    keys = {"mean IoU ↑": "mean_iou", "mean AP ↑": "mean_average_precision"}
    keys |= {"calibration error ↓": "mean_calibration_error"}
    scores = {"none": inspection.scores, **inspection.shift}
    rows = [(kind, *(float(one[key]) for key in keys.values())) for kind, one in scores.items()]
    text = "The same scores for corrupted images, with the severity constants of ImageNet-C."
    return Section("Shift", text, (Table(f"Severity {inspection.severity} of 5", ("corruption", *keys), rows),))


def _image_sections(inspection: MultilabelInspection, labels: LabelSet) -> list[Section]:
    maximum = max((float(one.entropy.max()) for one in (*inspection.worst, *inspection.best)), default=0) or 1.0

    def section(kind: str, text: str, images: Sequence[ShownOverlaps]) -> Section:
        pictures = []
        for i, one in enumerate(images, 1):
            caption, drawn = f"{one.name}: mean IoU {one.mean_iou:.3f}", inference.png(_draw(one, maximum, labels))
            masks = {"prediction": one.prediction}
            options = {"entropy": one.entropy, "maximum": maximum}
            pictures.append(
                overlap_overlay(f"{kind}_{i}", caption, drawn, one.image, one.truth, masks, labels, **options)
            )
        return Section(f"{kind.capitalize()} images", text, (), tuple(pictures))

    text = (
        "Ranked by the mean IoU of each image, over the classes in its labels or its prediction. Choose a layer, one "
        "class or all, and how opaque the layer is. A pixel of several classes has the mean of their colours, inside "
        "the outline of each. The entropy is the sum over the classes, on one scale for all images."
    )
    sections = [section("worst", text, inspection.worst), section("best", "", inspection.best)]
    return [section for section in sections if section.pictures]


def _draw(one: ShownOverlaps, maximum: float, labels: LabelSet) -> UInt8[np.ndarray, "height total 3"]:
    """Draws an image, its truth, its prediction and the entropy, above a legend of the classes."""
    shown = {
        "image": inference.as_rgb(one.image),
        "truth": multilabel.draw_truth(one.truth, labels),
        "prediction": colorize_overlaps(one.prediction, labels.palette),
        f"entropy, 0 to {maximum:.2g}": inference.heatmap(one.entropy, maximum),
    }
    sheet = inference.tiles(shown)
    return np.concatenate([sheet, inference.legend(labels, width=sheet.shape[1])])


def _rarest(scores: Mapping[str, Any]) -> list[str]:
    """Returns the names of the rarest classes, at most `MOST_LINES`, in class order."""
    pixels = [sum(matrix[1]) for matrix in scores["confusion"]]
    chosen = sorted(range(len(pixels)), key=lambda i: pixels[i])[:MOST_LINES]
    return [scores["classes"][i] for i in sorted(chosen)]
