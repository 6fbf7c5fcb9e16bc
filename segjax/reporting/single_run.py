"""The report of a single run: what was logged, counted and seen of it becomes the sections of one page."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from segjax.reporting import diagrams
from segjax.reporting.figures import png
from segjax.reporting.page import Picture, Report, Section
from segjax.reporting.tables import Table, per_class_table

# Of more classes than these only so many lines are drawn, those of the rarest; the table has all.
_MOST_LINES = 12
_LOSSES = {"loss": "train/loss", "pixel loss": "train/pixel_loss", "region loss": "train/region_loss"}
_SCORES = {
    "mean IoU": "eval/mean_iou",
    "average precision": "eval/average_precision",
    "best IoU": "eval/best_iou",
    "mean accuracy": "eval/mean_accuracy",
    "pixel accuracy": "eval/pixel_accuracy",
}
# What a run is judged by, by the keys of its scores, and what the number means.
_HEADLINES = (
    ("mean IoU", "mean_iou", "of the split's pixels, mean over the classes"),
    ("mean IoU per image", "mean_iou_per_image", "mean over the images of each image's own"),
    ("average precision", "average_precision", "area under the precision-recall curve of the second class"),
    ("AUROC", "auroc", "flatters rare classes"),
    ("best IoU", "best_iou", "of the second class, at the best threshold"),
    ("its threshold", "best_threshold", "a probability; chosen on these images"),
    ("mean accuracy", "mean_accuracy", "mean recall of the classes"),
    ("pixel accuracy", "pixel_accuracy", "share of right pixels; flatters what is frequent"),
    ("frequency weighted IoU", "frequency_weighted_iou", "each class by its share of the pixels"),
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
    """The report of one checkpoint of a run.

    Args:
      title: of the page.
      text: what was looked at, in a sentence or two.
      log: what was logged through training, each with its "step"; names like "train/loss" and "eval/mean_iou".
      step: of the checkpoint.
      scores: of the split, as `segjax.training.inspection` gives them.
      reliability: "edges", "confidence", "accuracy" and "count" of the bins.
      precision_recall: by class, "recall" and "precision".
      risk_coverage: by uncertainty, "coverage" and "risk".
      best: pictures of the images that the run is best at.
      worst: and of those it is worst at.
      colours: the picture that says which class has which colour.
      changed: (field, value, default) of what the configuration sets.
      facts: where it comes from.
    """
    headlines = [(name, float(scores[key]), note) for name, key, note in _HEADLINES if key in scores]
    error = scores["expected_calibration_error"]
    headlines.append(("expected calibration error", f"{error:.4f}", "how far confidence is from accuracy; 0 is best"))
    rows = [tuple(map(_written, row)) for row in changed]
    sections = (
        Section(
            "Scores",
            tables=(Table("Of the whole split", ("score", "value", "what it is"), headlines, text=("what it is",)),),
        ),
        _training(log, step, scores),
        _classes(scores, precision_recall),
        _certainty(reliability, risk_coverage, scores),
        *_images(best, worst, colours),
        Section(
            "Configuration",
            "What differs from the defaults; the whole of it is the run's config.json.",
            (Table("Fields", ("field", "value", "default"), rows, text=("value", "default")),),
        ),
    )
    return Report(title, text, sections, facts)


def _training(log: Sequence[Mapping[str, float | int]], step: int, scores: Mapping[str, Any]) -> Section:
    drawn = {
        "loss": ("Loss", "Loss of the training batches, and where it is long its running mean.", loss_lines(log)),
        "scores": ("Scores", "Scores of the evaluation split.", _logged(log, _SCORES)),
        "iou": (
            "IoU by class",
            "IoU of the classes." if len(scores["classes"]) <= _MOST_LINES else "IoU of the rarest classes.",
            _logged(log, {name: f"eval/iou/{name}" for name in _rarest(scores)}),
        ),
        "learning_rate": ("Learning rate", "Learning rate.", _logged(log, {"learning rate": "train/learning_rate"})),
    }
    pictures = []
    for name, (title, caption, lines) in drawn.items():
        if not lines:
            continue
        is_score = name in ("scores", "iou")
        figure = diagrams.training_curve(
            lines, title=title, mark=step, smoothed=name == "loss", unit=is_score, zero=name == "learning_rate"
        )
        pictures.append(Picture(name, caption, png(figure), half=True))
    missing = "" if "scores" in [one.name for one in pictures] else " The run was not scored yet."
    return Section(
        "Training", f"The dotted line is the checkpoint of this page, step {step}.{missing}", (), (*pictures,)
    )


def loss_lines(log: Sequence[Mapping[str, float | int]]) -> dict[str, diagrams.Line]:
    """The loss and its parts; without them where there is but one, which is the loss."""
    lines = _logged(log, _LOSSES)
    return lines if len(lines) > 2 else {name: line for name, line in lines.items() if name == "loss"}


def _logged(log: Sequence[Mapping[str, float | int]], names: Mapping[str, str]) -> dict[str, diagrams.Line]:
    """The lines of those names that were logged."""
    found = {name: [(row["step"], row[key]) for row in log if key in row] for name, key in names.items()}
    return {name: tuple(map(list, zip(*points, strict=True))) for name, points in found.items() if points}


def _classes(scores: Mapping[str, Any], curves: Mapping[str, Mapping[str, Sequence[float | int]]]) -> Section:
    classes, pixels = scores["classes"], [sum(row) for row in scores["confusion"]]
    table = per_class_table(scores, "Every class against all others")
    if len(classes) > 2:
        ranked = scores["average_precision_per_class"]
        known = [value for value in ranked if not math.isnan(value)]
        ranked = [*ranked, statistics.mean(known) if known else None]
        rows = [(*row, value) for row, value in zip(table.rows, ranked, strict=True)]
        table = table._replace(columns=(*table.columns, "AP"), rows=rows)
    drawn = {name: curve for name, curve in curves.items() if name in _rarest(scores)}
    of = f"the {_MOST_LINES} rarest classes" if len(drawn) < len(curves) else " and ".join(drawn)
    of = of if len(drawn) < 3 or len(drawn) < len(curves) else "each class against all others"
    figures = {
        "confusion": (
            diagrams.confusion_picture(scores["confusion"], classes),
            "Where the pixels of each class went, in percent of the row: rows are the truth, columns the prediction.",
        ),
        "precision_recall": (
            diagrams.precision_recall(
                {name: (curve["recall"], curve["precision"]) for name, curve in drawn.items()},
                chance=pixels[1] / max(sum(pixels), 1) if len(classes) == 2 else None,
            ),
            f"Precision over recall of {of}: what another threshold than the likeliest class would find, and what it "
            "would cost in false alarms.",
        ),
    }
    small = len(classes) <= _MOST_LINES
    pictures = [Picture(name, caption, png(figure), half=small) for name, (figure, caption) in figures.items()]
    return Section("Class by class", "", (table,), (*pictures,))


def _certainty(
    reliability: Mapping[str, Sequence[float | int]],
    risk_coverage: Mapping[str, Mapping[str, Sequence[float | int]]],
    scores: Mapping[str, Any],
) -> Section:
    error = scores["expected_calibration_error"]
    bins = diagrams.reliability(**{key: reliability[key] for key in ("edges", "confidence", "accuracy", "count")})
    curves = {name: (curve["coverage"], curve["risk"]) for name, curve in risk_coverage.items()}
    errors = 1 - scores["pixel_accuracy"]
    risks = diagrams.risk_coverage(curves, errors=errors)
    areas = scores["area_under_risk_coverage"]
    rows = [(name, f"{area:.3g}") for name, area in sorted(areas.items(), key=lambda item: item[1])]
    table = Table("Which uncertainty finds the errors", ("uncertainty", "AURC ↓"), rows)
    caption = (
        f"Is a confidence of 0.8 right in 80 %? Expected calibration error {error:.4f}. Below, the pixels a bin holds."
    )
    text = (
        "The surest pixels should be the right ones: the lower a curve of risk and coverage, the more of the errors "
        "its uncertainty knows of. AURC is the area under it; without skill it is the share of wrong pixels, "
        f"{errors:.3g}."
    )
    pictures = (
        Picture("reliability", caption, png(bins), half=True),
        Picture("risk_coverage", "Share of errors among the pixels that are answered.", png(risks), half=True),
    )
    return Section("Does it know when it does not know", text, (table,), pictures)


def _images(best: Sequence[Picture], worst: Sequence[Picture], colours: Picture) -> list[Section]:
    if not best and not worst:
        return []
    text = (
        "By each image's own mean IoU, over the classes that are in it. Black is void in the truth; in an uncertainty "
        "black is sure and pale yellow unsure, on the same scale in all images."
    )
    worst_of = Section("The worst images", text, (), (colours, *worst))
    return [worst_of, *([Section("The best images", "", (), (*best,))] if best else [])]


def _rarest(scores: Mapping[str, Any]) -> list[str]:
    """The classes that are drawn, in their own order."""
    pixels = [sum(row) for row in scores["confusion"]]
    chosen = sorted(range(len(pixels)), key=lambda i: pixels[i])[:_MOST_LINES]
    return [scores["classes"][i] for i in sorted(chosen)]


def _written(value: Any) -> str:
    if isinstance(value, float):
        return "nan" if math.isnan(value) else f"{value:g}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_written, value))})"
    return repr(value) if value == "" else str(value)
