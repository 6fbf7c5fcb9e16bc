"""The report of the run of a detector: one pass over a split, and its numbers and pictures as sections of one page."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import rich
import rich.progress
from jaxtyping import Bool, Float, Int, Shaped

from segjax import metrics
from segjax.boxes import Detections, iou
from segjax.data import CORRUPTIONS, Source
from segjax.metrics.detection import RECALLS
from segjax.reporting import figures
from segjax.reporting.charts import Chart
from segjax.reporting.live_page import MOST_LINES, columns_of, training_sections
from segjax.reporting.overlays import DrawnBox, box_overlay
from segjax.reporting.report import Overlay, Picture, Report, Section, Table, cell, detection_table
from segjax.reporting.run_page import Rows, headline_table, lists, page_of, subsample
from segjax.trained_run import TrainedRun, counter_of
from segjax.training import parallel
from segjax.training.detection import join_images, make_eval_step, match_split, split_scores
from segjax.training.evaluation import count_batches
from segjax.training.objective import hparams_from_config

_HEADLINES = (
    ("AP", "ap", "COCO's average precision: mean over the IoU thresholds 0.5, 0.55, ..., 0.95 and over classes"),
    ("AP50", "ap50", "average precision at IoU 0.5"),
    ("AP75", "ap75", "average precision at IoU 0.75"),
    ("AP small", "ap_small", "AP of objects with a box area of at most 32² pixels"),
    ("AP medium", "ap_medium", "AP of objects with a box area of 32² to 96² pixels"),
    ("AP large", "ap_large", "AP of objects with a box area of at least 96² pixels"),
    ("AR1", "ar1", "average recall with one detection per image and class"),
    ("AR10", "ar10", "average recall with 10 detections per image and class"),
    ("AR100", "ar100", "average recall with 100 detections per image and class"),
    ("AR small", "ar_small", "AR100 of objects with a box area of at most 32² pixels"),
    ("AR medium", "ar_medium", "AR100 of objects with a box area of 32² to 96² pixels"),
    ("AR large", "ar_large", "AR100 of objects with a box area of at least 96² pixels"),
    ("best F1", "best_f1", "at IoU 0.5 and the best score threshold; all classes together"),
    ("best score threshold", "best_threshold", "chosen on these images"),
    ("objects found", "found", "at this threshold and IoU 0.5"),
    ("objects missed", "missed", "at this threshold and IoU 0.5"),
    ("false detections", "false", "at this threshold and IoU 0.5"),
)
_PLOTTED = {"AP": "eval/ap", "AP50": "eval/ap50", "AP75": "eval/ap75", "AR100": "eval/ar100"}
_CURVES = {"IoU 0.5": 0, "IoU 0.75": 5}  # positions of the IoU thresholds
_SCORE_BINS = 40
# Green, blue and orange of the palette of Okabe and Ito; the last two are also those of the histogram.
OBJECT, RIGHT, FALSE = (0, 158, 115), (0, 114, 178), (213, 94, 0)
MISSED = (240, 228, 66)  # yellow


class ShownDetections(NamedTuple):
    """An image of the split, its objects, and its detections with a score of at least the best threshold.

    `correct` marks the true positives.
    """

    name: str
    f1: float
    image: Shaped[np.ndarray, "H W C"]
    boxes: Float[np.ndarray, "objects 4"]
    classes: Int[np.ndarray, "objects"]
    detections: Detections
    correct: Bool[np.ndarray, "detections"]

    @property
    def missed(self) -> Bool[np.ndarray, "objects"]:
        """True for the objects without a true positive, each of which belongs to the free object of the highest IoU."""
        missed, found = np.ones(len(self.boxes), bool), self.detections
        for i in np.flatnonzero(self.correct):
            overlaps = np.where(
                missed & (self.classes == found.classes[i]), iou(found.boxes[i : i + 1], self.boxes)[0], 0
            )
            missed[overlaps.argmax()] = False
        return missed


class DetectorInspection(NamedTuple):
    """Results of a pass over a split; all but the images and `detected` are ready for JSON.

    Attributes:
        scores: those of `training.detection.split_scores`, with "ap75_per_class", "best_f1", "best_threshold", and the
            numbers of "found", "missed" and "false" boxes at this threshold, at IoU 0.5.
        precision_at_recall: precision of each class at the recalls 0, 0.01, ..., 1, by the name of the IoU threshold.
        by_threshold: result of `metrics.detection_curve`.
        histogram: edges of bins of the score, and the numbers of right and of false detections per bin.
        best: images in descending order of F1.
        worst: images in ascending order of F1.
        severity: that of the corruptions, 1 to 5, or None.
        shift: scores by kind of corruption; None without a severity.
        detected: detections of every image, for `show_detections`.
    """

    scores: dict[str, Any]
    precision_at_recall: dict[str, list]
    by_threshold: dict[str, list]
    histogram: dict[str, list]
    best: tuple[ShownDetections, ...]
    worst: tuple[ShownDetections, ...]
    severity: int | None = None
    shift: dict[str, dict[str, Any]] | None = None
    detected: "_Detected | None" = None

    @property
    def image_f1(self) -> Float[np.ndarray, "images"]:
        """F1 of each image at IoU 0.5 and the best threshold; NaN without objects and detections."""
        counts = self.detected.counts
        return np.array([one.f1 if one.found + one.missed + one.false else math.nan for one in counts])


class _ImageCounts(NamedTuple):
    """Objects found and missed, and false detections, in the image of an index of the split."""

    index: int
    found: int
    missed: int
    false: int

    @property
    def f1(self) -> float:
        return 2 * self.found / (2 * self.found + self.missed + self.false)


class _Detected(NamedTuple):
    """Result of `_detect`, its matches with the objects, and the counts of each image at the best threshold."""

    rows: dict[str, Any]
    records: metrics.DetectionRecords
    counts: list[_ImageCounts]


def inspect_detector(
    run: TrainedRun, source: Source, *, images: int, severity: int | None = None
) -> DetectorInspection:
    """Evaluates the run on a split and returns its scores, with the `images` best and the `images` worst images.

    With a `severity`, 1 to 5, it also scores the images under each kind of `segjax.data.corrupt`, one pass per kind. A
    terminal shows the progress.

    Raises: ConfigError if the batch is not divisible by the number of devices.
    """
    rows = _detect(run, source)
    records = match_split(rows, run.config)
    scores = split_scores(rows, records, source, run.config)
    curves, by_score = np.array(scores.pop("precision_at_recall")), metrics.detection_curve(records)
    best = int(np.nanargmax(by_score["f1"])) if np.isfinite(by_score["f1"]).any() else None
    threshold = math.nan if best is None else float(by_score["threshold"][best])
    counts = _image_counts(records, threshold)
    scores |= {
        "ap75_per_class": curves[:, _CURVES["IoU 0.75"]].mean(axis=-1).tolist(),
        "best_f1": math.nan if best is None else float(by_score["f1"][best]),
        "best_threshold": threshold,
        **{name: sum(getattr(one, name) for one in counts) for name in ("found", "missed", "false")},
    }
    parts = _best_and_worst(counts, images)
    shown = [tuple(_shown(rows, records, source, threshold, one) for one in part) for part in parts]
    shift = None
    if severity is not None:
        kinds = rich.progress.track(CORRUPTIONS, "scoring corrupted images", console=rich.get_console(), transient=True)
        shift = {kind: _corrupted_scores(run, source, (kind, severity)) for kind in kinds}
    return DetectorInspection(
        scores,
        {name: curves[:, at].tolist() for name, at in _CURVES.items()},
        subsample(by_score, "recall"),
        _score_histogram(records),
        *shown,
        severity,
        shift,
        _Detected(rows, records, counts),
    )


def show_detections(inspection: DetectorInspection, source: Source, indices: Sequence[int]) -> list[ShownDetections]:
    """Reads the images of these indices again, with their objects and detections."""
    rows, records, counts = inspection.detected
    threshold = inspection.scores["best_threshold"]
    return [_shown(rows, records, source, threshold, counts[index]) for index in indices]


def _detect(run: TrainedRun, source: Source, corruption: tuple[str, int] | None = None) -> dict[str, Any]:
    """Returns the `join_images` of a split on all devices; a terminal shows the progress."""
    config, console = run.config, rich.get_console()
    step = make_eval_step(config, run.model, run.label_set.num_classes, parallel.axis_name(config), corruption)
    count = counter_of(run, partial(step, hparams=hparams_from_config(config)))
    bar = rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal or bool(corruption))
    task = bar.add_task("compiling…", total=len(source))

    def count_batch(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        rows = count(batch)
        bar.update(task, description="detecting", advance=int((np.asarray(rows["index"]) < len(source)).sum()))
        return rows

    with bar:
        return join_images(count_batches(count_batch, source, config, devices=jax.device_count()), source)


def _corrupted_scores(run: TrainedRun, source: Source, corruption: tuple[str, int]) -> dict[str, Any]:
    rows = _detect(run, source, corruption)
    scores = split_scores(rows, match_split(rows, run.config), source, run.config)
    return {name: scores[name] for name in ("ap", "ap50", "ar100")}


def _image_counts(records: metrics.DetectionRecords, threshold: float) -> list[_ImageCounts]:
    """Returns the counts of each image at IoU 0.5, of the detections whose score is at least `threshold`."""
    shown, correct = records.where & (records.scores >= threshold), records.correct[..., 0, 0]
    found = (shown & correct).sum(axis=1)
    missed, false = records.num_true[..., 0].sum(axis=1) - found, (shown & ~correct).sum(axis=1)
    return [_ImageCounts(i, *map(int, row)) for i, row in enumerate(zip(found, missed, false, strict=True))]


def _best_and_worst(images: Sequence[_ImageCounts], count: int) -> tuple[list[_ImageCounts], list[_ImageCounts]]:
    """Returns the `count` best and the `count` worst images by F1.

    No image is in both lists; if there are too few, the worst list is filled first. Images without objects and without
    detections are left out.
    """
    ranked = [one for one in images if one.found + one.missed + one.false]
    worst = sorted(ranked, key=lambda one: (one.f1, -one.missed - one.false, one.index))[:count]
    best = sorted(set(ranked) - set(worst), key=lambda one: (-one.f1, -one.found, one.index))
    return best[:count], worst


def _shown(
    rows: dict[str, Any], records: metrics.DetectionRecords, source: Source, threshold: float, one: _ImageCounts
) -> ShownDetections:
    """Reads an image again, with its objects and its detections with a score of at least the threshold."""
    example, truth = source[one.index], jax.tree.map(lambda x: x[one.index], rows["truth"])
    likely = records.where[one.index] & (records.scores[one.index] >= threshold)
    found = Detections(*(x[one.index][likely] for x in rows["detections"]))
    objects, correct = (truth.boxes[truth.where], truth.classes[truth.where]), records.correct[one.index, likely, 0, 0]
    return ShownDetections(str(example["name"]), one.f1, example["image"], *objects, found, correct)


def _score_histogram(records: metrics.DetectionRecords) -> dict[str, list]:
    """Returns the edges of bins of the score, and the numbers of right and of false detections at IoU 0.5."""
    scores, correct = records.scores[records.where], records.correct[records.where][:, 0, 0]
    right, false = (np.histogram(scores[chosen], _SCORE_BINS, (0, 1)) for chosen in (correct, ~correct))
    return lists({"edges": right[1], "right": right[0], "false": false[0]})


def detector_report(
    run: TrainedRun, log: Rows, split: str, inspection: DetectorInspection, *, is_best: bool = False
) -> Report:
    """Builds the report of a detector from the rows of `read_log` and the results of `inspect_detector` on a split."""
    scores = inspection.scores
    headlines = [(name, scores[key], note) for name, key, note in _HEADLINES]
    classes = {name: f"eval/ap/{name}" for name in _rarest(scores)}
    caption = "AP per class." if len(classes) == len(scores["classes"]) else "AP of the rarest classes."
    per_class = ("ap", "AP per class", caption, classes if len(classes) > 1 else {})
    sections = (
        Section("Scores", "", (headline_table(headlines),)),
        *training_sections(columns_of(log), run.step, _PLOTTED, per_class),
        _class_section(inspection),
        _threshold_section(inspection),
        *([_shift_section(inspection)] if inspection.shift else []),
        *_image_sections(inspection),
    )
    return page_of(run, split, scores, sections, is_best=is_best)


def _class_section(inspection: DetectorInspection) -> Section:
    scores = inspection.scores
    table = detection_table(scores, "Each class")
    columns = (*table.columns[:4], "AP75", *table.columns[4:])
    rows = [
        (*row[:4], value, *row[4:])
        for row, value in zip(table.rows, [*scores["ap75_per_class"], scores["ap75"]], strict=True)
    ]
    exists, recalls = np.array(scores["objects"]) > 0, RECALLS.tolist()
    options = {"x": "recall", "y": "precision", "x_range": (0, 1), "y_range": (0, 1.02)}
    means = {}
    for (name, curves), ap in zip(inspection.precision_at_recall.items(), ("ap50", "ap75"), strict=True):
        mean = [np.array(curves)[exists].mean(axis=0).tolist()] if exists.any() else []
        means[f"{name}, AP {cell(scores[ap])}"] = recalls, mean
    caption = "Precision at each recall" + (", mean over classes." if len(exists) > 1 else ".")
    title = "Precision and recall"
    pictures = [Chart("precision_recall", caption, means, title, **options)]
    if len(exists) > 1:
        of_class = dict(zip(scores["classes"], inspection.precision_at_recall["IoU 0.5"], strict=True))
        lines = {name: (recalls, [of_class[name]]) for name in _rarest(scores)}
        subject = "each class" if len(lines) == len(of_class) else f"the {MOST_LINES} rarest classes"
        caption, title = f"Precision of {subject} at IoU 0.5.", "Precision and recall at IoU 0.5"
        pictures.append(Chart("precision_recall_class", caption, lines, title, **options))
    return Section("Classes", "", (table._replace(columns=columns, rows=rows),), tuple(pictures))


def _threshold_section(inspection: DetectorInspection) -> Section:
    curve, bins = inspection.by_threshold, inspection.histogram
    keys = {"precision": "precision", "recall": "recall", "F1": "f1"}
    lines = {name: (curve["threshold"][::-1], [curve[key][::-1]]) for name, key in keys.items()}
    best = inspection.scores["best_threshold"]
    options = {"x": "score threshold", "x_range": (0, 1), "y_range": (0, 1.02)}
    options["slider"] = None if math.isnan(best) else best
    caption = "Precision, recall and F1 of the detections of at least each score."
    histogram = figures.steps(
        {name: bins[name] for name in ("right", "false")}, bins["edges"], title="Scores", x="score", y="detections"
    )
    text = (
        "A detection is right if its IoU with an object of its class is at least 0.5 and no detection with a higher "
        "score is already matched to this object. segjax predict draws the boxes of score 0.5 or more; choose another "
        "threshold with --min_score."
    )
    pictures = (
        Chart("threshold", caption, lines, "Score threshold", **options),
        Picture("scores_histogram", "Number of right and of false detections per score.", figures.png(histogram), True),
    )
    return Section("Score threshold", text, (), pictures)


def _shift_section(inspection: DetectorInspection) -> Section:
    keys = {"AP ↑": "ap", "AP50 ↑": "ap50", "AR100 ↑": "ar100"}
    scores = {"none": inspection.scores, **inspection.shift}
    rows = [(kind, *(float(one[key]) for key in keys.values())) for kind, one in scores.items()]
    text = "The same scores for corrupted images, with the severity constants of ImageNet-C."
    return Section("Shift", text, (Table(f"Severity {inspection.severity} of 5", ("corruption", *keys), rows),))


def _image_sections(inspection: DetectorInspection) -> list[Section]:
    names, threshold = inspection.scores["classes"], inspection.scores["best_threshold"]

    def section(kind: str, text: str, images: Sequence[ShownDetections]) -> Section:
        pictures = []
        for i, one in enumerate(images, 1):
            found, total = int(one.correct.sum()), len(one.boxes)
            false = len(one.correct) - found
            caption = f"{one.name}: {found} of {total} object(s) found, {false} false detection(s), F1 {one.f1:.3f}"
            pictures.append(detections_overlay(f"{kind}_{i}", caption, {"detections": one}, names))
        return Section(f"{kind.capitalize()} images", text, (), tuple(pictures))

    text = (
        f"Images are ranked by their F1 at IoU 0.5. Only detections with a score of at least {cell(threshold)}, the "
        "threshold with the best F1, count. The pointer shows the detections and the objects of a pixel."
    )
    sections = [section("worst", text, inspection.worst), section("best", "", inspection.best)]
    return [section for section in sections if section.pictures]


def detections_overlay(name: str, caption: str, shown: Mapping[str, ShownDetections], names: Sequence[str]) -> Overlay:
    """Draws an image and its layers: the detections of each network, the objects, and the errors of a single network.

    `names` are those of the classes; a single one is not written beside the boxes.
    """
    one = next(iter(shown.values()))
    layers = {kind: _detections(each, names) for kind, each in shown.items()} | {"objects": _objects(one, names)}
    legends = {kind: {"right": RIGHT, "false": FALSE} for kind in shown} | {"objects": {"object": OBJECT}}
    if len(shown) == 1:
        missed = [
            box._replace(colour=MISSED, meaning=f"missed {box.meaning}")
            for box, is_missed in zip(layers["objects"], one.missed, strict=True)
            if is_missed
        ]
        found = zip(layers[next(iter(shown))], one.correct[::-1], strict=True)
        false = [box for box, is_correct in found if not is_correct]
        layers["errors"], legends["errors"] = [*missed, *false], {"missed": MISSED, "false": FALSE}
    return box_overlay(name, caption, one.image, layers, legends)


def _objects(one: ShownDetections, names: Sequence[str]) -> list[DrawnBox]:
    return [
        DrawnBox(tuple(box), OBJECT, names[i] if len(names) > 1 else "", names[i])
        for box, i in zip(one.boxes.tolist(), one.classes.tolist(), strict=True)
    ]


def _detections(one: ShownDetections, names: Sequence[str]) -> list[DrawnBox]:
    """Returns the boxes of the detections; the most likely one is the last, which is drawn over the others."""
    found, drawn = one.detections, []
    columns = (found.boxes.tolist(), found.classes.tolist(), found.scores.tolist(), one.correct.tolist())
    for box, i, score, correct in zip(*columns, strict=True):
        text = f"{names[i]} {score:.2f}"
        meaning = f"{text}, {'right' if correct else 'false'}"
        drawn.append(
            DrawnBox(tuple(box), RIGHT if correct else FALSE, text if len(names) > 1 else f"{score:.2f}", meaning)
        )
    return drawn[::-1]


def _rarest(scores: dict[str, Any]) -> list[str]:
    """Returns the names of the classes with the fewest objects, at most `MOST_LINES`, in class order."""
    chosen = sorted(range(len(scores["classes"])), key=lambda i: scores["objects"][i])[:MOST_LINES]
    return [scores["classes"][i] for i in sorted(chosen)]
