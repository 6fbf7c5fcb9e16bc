"""The report of a single run: its log, its scores and its pictures as the sections of one page."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from segjax.reporting import figures
from segjax.reporting.figures import Line, png
from segjax.reporting.page import Picture, Report, Section
from segjax.reporting.tables import Table, per_class_table

# Plots show at most this many classes, the rarest; the table contains all.
_MOST_LINES = 12
_LOSSES = {"loss": "train/loss", "pixel loss": "train/pixel_loss", "region loss": "train/region_loss"}
_SCORES = {
    "mean IoU": "eval/mean_iou",
    "average precision": "eval/average_precision",
    "best IoU": "eval/best_iou",
    "mean accuracy": "eval/mean_accuracy",
    "pixel accuracy": "eval/pixel_accuracy",
}
# Name, key and meaning of the main scores.
_HEADLINES = (
    ("mean IoU", "mean_iou", "over the pixels of the split, then the mean over classes"),
    ("mean IoU per image", "mean_iou_per_image", "mean over images of the mean IoU of each image"),
    ("average precision", "average_precision", "area under the precision-recall curve of the second class"),
    ("AUROC", "auroc", "second class; optimistic for rare classes"),
    ("best IoU", "best_iou", "second class, at the best threshold"),
    ("best threshold", "best_threshold", "probability of the second class; chosen on these images"),
    ("mean accuracy", "mean_accuracy", "mean recall over classes"),
    ("pixel accuracy", "pixel_accuracy", "fraction of correct pixels; dominated by frequent classes"),
    ("frequency weighted IoU", "frequency_weighted_iou", "IoU per class, weighted by its fraction of the pixels"),
)


def run_report(
    title: str,
    text: str,
    *,
    log: Sequence[Mapping[str, float | int]],
    step: int,
    scores: Mapping[str, Any],
    reliability: Mapping[str, Sequence[float | int]],
    precision_recall: Mapping[str, Mapping[str, Sequence[float | int]]],
    risk_coverage: Mapping[str, Mapping[str, Sequence[float | int]]],
    best: Sequence[Picture],
    worst: Sequence[Picture],
    colours: Picture,
    changed: Sequence[tuple[str, Any, Any]],
    facts: Mapping[str, Any],
) -> Report:
    """Builds the report of one checkpoint of a run.

    Args:
      title: title of the page.
      text: the run, the checkpoint and the split, in a sentence or two.
      log: rows of the training log, each with its "step" and names like "train/loss" and "eval/mean_iou".
      step: step of the checkpoint.
      scores: scores of the split from `segjax.report.inspect_run`.
      reliability: "edges", "confidence", "accuracy" and "count" of the calibration bins.
      precision_recall: "recall" and "precision" by class.
      risk_coverage: "coverage" and "risk" by uncertainty measure.
      best: pictures of the images with the highest mean IoU.
      worst: pictures of the images with the lowest mean IoU.
      colours: picture of the classes and their colours.
      changed: (field, value, default) of every config field that is not at its default.
      facts: provenance by name.
    """
    headlines = [(name, float(scores[key]), note) for name, key, note in _HEADLINES if key in scores]
    error = scores["expected_calibration_error"]
    headlines.append(("expected calibration error", f"{error:.4f}", "mean |confidence - accuracy|; 0 is best"))
    rows = [tuple(map(_field_text, row)) for row in changed]
    sections = (
        Section("Scores", "", (Table("Whole split", ("score", "value", "meaning"), headlines, text=("meaning",)),)),
        _training_section(log, step, scores),
        _class_section(scores, precision_recall),
        _uncertainty_section(reliability, risk_coverage, scores),
        *_image_sections(best, worst, colours),
        Section(
            "Configuration",
            "Fields that are not at their default; config.json in the workdir contains all fields.",
            (Table("Fields", ("field", "value", "default"), rows, text=("value", "default")),),
        ),
    )
    return Report(title, text, sections, facts)


def _training_section(log: Sequence[Mapping[str, float | int]], step: int, scores: Mapping[str, Any]) -> Section:
    classes = {name: f"eval/iou/{name}" for name in _rarest(scores)}
    plots = {
        "loss": (
            "Loss",
            "Loss of the training batches, with its running mean on top where it is long.",
            loss_lines(log),
        ),
        "scores": ("Scores", "Scores of the evaluation split.", _logged(log, _SCORES)),
        "iou": (
            "IoU per class",
            "IoU per class." if len(scores["classes"]) <= _MOST_LINES else "IoU of the rarest classes.",
            _logged(log, classes),
        ),
        "learning_rate": ("Learning rate", "Learning rate.", _logged(log, {"learning rate": "train/learning_rate"})),
    }
    ranges = {"loss": (None, None), "learning_rate": (0, None)}
    pictures = []
    for name, (title, caption, lines) in plots.items():
        if lines:
            figure = figures.training_curves(
                lines, title=title, checkpoint_step=step, smoothed=name == "loss", y_range=ranges.get(name, (0, 1.02))
            )
            pictures.append(Picture(name, caption, png(figure), half=True))
    missing = "" if plots["scores"][2] else " The run was not scored yet."
    return Section(
        "Training", f"The dotted line marks the checkpoint of this page, step {step}.{missing}", (), (*pictures,)
    )


def loss_lines(log: Sequence[Mapping[str, float | int]]) -> dict[str, Line]:
    """Returns the lines of the loss and, if it has several parts, of its parts."""
    lines = _logged(log, _LOSSES)
    return lines if len(lines) > 2 else {name: line for name, line in lines.items() if name == "loss"}


def _logged(log: Sequence[Mapping[str, float | int]], names: Mapping[str, str]) -> dict[str, Line]:
    """Returns steps and values by name, for the names whose key was logged."""
    points = {name: [(row["step"], row[key]) for row in log if key in row] for name, key in names.items()}
    return {name: tuple(map(list, zip(*pairs, strict=True))) for name, pairs in points.items() if pairs}


def _class_section(scores: Mapping[str, Any], curves: Mapping[str, Mapping[str, Sequence[float | int]]]) -> Section:
    classes, pixels = scores["classes"], [sum(row) for row in scores["confusion"]]
    table = per_class_table(scores, "Each class against all others")
    if len(classes) > 2:
        average_precision = scores["average_precision_per_class"]
        defined = [value for value in average_precision if not math.isnan(value)]
        column = [*average_precision, statistics.mean(defined) if defined else None]
        rows = [(*row, value) for row, value in zip(table.rows, column, strict=True)]
        table = table._replace(columns=(*table.columns, "AP"), rows=rows)
    drawn = {name: (curve["recall"], curve["precision"]) for name, curve in curves.items() if name in _rarest(scores)}
    if len(drawn) < len(curves):
        subject = f"the {_MOST_LINES} rarest classes"
    else:
        subject = " and ".join(drawn) if len(drawn) < 3 else "each class against all others"
    confusion = figures.confusion_figure(scores["confusion"], classes)
    chance = pixels[1] / max(sum(pixels), 1) if len(classes) == 2 else None
    precision_recall = figures.precision_recall_figure(drawn, chance=chance)
    half = len(classes) <= _MOST_LINES
    pictures = (
        Picture(
            "confusion",
            "Confusion matrix in percent of each row: true classes in rows, predictions in columns.",
            png(confusion),
            half,
        ),
        Picture(
            "precision_recall", f"Precision over recall of {subject}, over all thresholds.", png(precision_recall), half
        ),
    )
    return Section("Classes", "", (table,), pictures)


def _uncertainty_section(
    reliability: Mapping[str, Sequence[float | int]],
    risk_coverage: Mapping[str, Mapping[str, Sequence[float | int]]],
    scores: Mapping[str, Any],
) -> Section:
    error = scores["expected_calibration_error"]
    calibration = figures.reliability_figure(
        **{key: reliability[key] for key in ("edges", "confidence", "accuracy", "count")}
    )
    error_rate = 1 - scores["pixel_accuracy"]
    lines = {name: (curve["coverage"], curve["risk"]) for name, curve in risk_coverage.items()}
    risks = figures.risk_coverage_figure(lines, error_rate=error_rate)
    areas = sorted(scores["area_under_risk_coverage"].items(), key=lambda item: item[1])
    table = Table(
        "Error detection per uncertainty measure", ("uncertainty", "AURC ↓"), [(name, f"{a:.3g}") for name, a in areas]
    )
    caption = f"Accuracy per confidence; expected calibration error {error:.4f}. Below: pixels per bin."
    text = (
        "The curve of risk and coverage gives the error rate of the most certain pixels; the lower it is, the better "
        f"the uncertainty ranks the errors. AURC is the area under it; a random ranking has AURC {error_rate:.3g}, the "
        "error rate of all pixels."
    )
    pictures = (
        Picture("reliability", caption, png(calibration), half=True),
        Picture("risk_coverage", "Error rate of the most certain pixels over their fraction.", png(risks), half=True),
    )
    return Section("Uncertainty", text, (table,), pictures)


def _image_sections(best: Sequence[Picture], worst: Sequence[Picture], colours: Picture) -> list[Section]:
    if not best and not worst:
        return []
    text = (
        "Ranked by the mean IoU of each image, over the classes that it contains. Void is black in the ground truth. "
        "Uncertainty goes from black (certain) to pale yellow (uncertain), on one scale for all images."
    )
    worst_section = Section("Worst images", text, (), (colours, *worst))
    return [worst_section, *([Section("Best images", "", (), (*best,))] if best else [])]


def _rarest(scores: Mapping[str, Any]) -> list[str]:
    """Returns the names of the rarest classes, at most `_MOST_LINES`, in class order."""
    pixels = [sum(row) for row in scores["confusion"]]
    chosen = sorted(range(len(pixels)), key=lambda i: pixels[i])[:_MOST_LINES]
    return [scores["classes"][i] for i in sorted(chosen)]


def _field_text(value: Any) -> str:
    if isinstance(value, float):
        return "nan" if math.isnan(value) else f"{value:g}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_field_text, value))})"
    return repr(value) if value == "" else str(value)
