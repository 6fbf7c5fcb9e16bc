"""The page of a run while it trains, built from its log; `segjax report` has the same training curves."""

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from segjax import inference
from segjax.reporting.charts import Chart, Series
from segjax.reporting.report import Picture, Progress, Report, Section, Table

Log = Mapping[str, tuple[Sequence[int], Sequence[float]]]  # steps and values by key, as "train/loss"

# Charts show at most this many classes; the tables contain all.
MOST_LINES = 12
_LOSSES = {"loss": "train/loss", "pixel loss": "train/pixel_loss", "region loss": "train/region_loss"}
_LOSSES |= {"outlier loss": "train/outlier_loss", "margin penalty": "train/margin_penalty"}
_LOSSES |= {"class loss": "train/class_loss", "box loss": "train/box_loss"}
# The scores of segmentation networks, of classes that overlap, and of detectors.
_SCORES = {"mean IoU": "mean_iou", "average precision": "average_precision", "AUROC": "auroc", "best IoU": "best_iou"}
_SCORES |= {"mean accuracy": "mean_accuracy", "pixel accuracy": "pixel_accuracy", "mean Dice": "mean_dice"}
_SCORES |= {"frequency weighted IoU": "frequency_weighted_iou", "exact match": "exact_match"}
_SCORES |= {"mean average precision": "mean_average_precision"}
_SCORES |= {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "AR100": "ar100"}
_SCORES = {name: f"eval/{key}" for name, key in _SCORES.items()}
_PLOTTED = ("mean IoU", "average precision", "best IoU", "mean accuracy", "pixel accuracy", "mean average precision")
_PLOTTED += ("AP", "AP50", "AP75", "AR100")
_EXAMPLES = "Images of the evaluation split"  # begin of a caption
# The first of these that was logged selects the best checkpoint (`evaluation.headline`).
_SELECTING = ("AP", "average precision", "mean IoU")


def columns_of(rows: Iterable[Mapping[str, float | int]]) -> Log:
    """Returns the rows of `read_log` by key.

    >>> columns_of([{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": 0.25, "eval/ap": 1.0}])
    {'train/loss': ([1, 2], [0.5, 0.25]), 'eval/ap': ([2], [1.0])}
    """
    log = {}
    for row in rows:
        for key, value in row.items():
            if key != "step":
                steps, values = log.setdefault(key, ([], []))
                steps.append(row["step"])
                values.append(value)
    return log


def live_report(
    log: Log,
    progress: Progress,
    examples: Picture | None = None,
    *,
    title: str,
    workdir: str,
    fields: Sequence[tuple[str, Any, Any]],
    facts: Mapping[str, Any],
) -> Report:
    """Builds the page of a run from its log so far.

    Args:
      log: the log by key.
      progress: progress of the run.
      examples: `examples_picture` of the last evaluation.
      title: heading.
      workdir: folder of the run.
      fields: (field, value, default) of each config field that is not at its default.
      facts: provenance.
    """
    per_class = _keys_per_class(log)
    plotted = {name: _SCORES[name] for name in _PLOTTED}
    kind = "AP" if "eval/ap" in log else "IoU"
    chosen = sorted(per_class, key=lambda name: log[per_class[name]][1][-1])[:MOST_LINES]
    shown = {name: key for name, key in per_class.items() if name in chosen}
    caption = f"{kind} per class." if len(shown) == len(per_class) else f"{kind} of the {MOST_LINES} worst classes."
    selecting = next((name for name in _SELECTING if _SCORES[name] in log), None)
    step = None
    if selecting is not None:
        step, _ = best_of(log[_SCORES[selecting]])
    sections = training_sections(log, step, plotted, (kind.lower(), f"{kind} per class", caption, shown))
    if selecting is not None:
        text = f"The dotted line marks step {step}, the best by {selecting}, whose checkpoint is kept."
        sections = (sections[0]._replace(text=text), *sections[1:])
    if examples is not None:
        sections += (Section("Examples", "", (), (examples,)),)
    fields = [(name, repr(value), repr(default)) for name, value, default in fields]
    names = ("field", "value", "default")
    table = Table("Fields that are not at their default", names, fields, text=("value", "default"))
    return Report(title, workdir, (*sections, Section("Configuration", "", (table,))), facts, progress)


def examples_picture(image: UInt8[np.ndarray, "H W 3"], step: int) -> Picture:
    """Returns the picture of an evaluation for `live_report`."""
    return Picture("examples", f"{_EXAMPLES} at step {step}.", inference.jpeg(image))


def earlier_examples(page: str) -> Picture | None:
    """Returns the `examples_picture` in the HTML of an earlier page of the run, if it has one."""
    found = re.search(rf'<img src="data:image/jpeg;base64,([^"]*)" alt="({_EXAMPLES} at step \d+\.)"', page)
    return found and Picture("examples", found[2], base64.b64decode(found[1]))


def _keys_per_class(log: Log) -> dict[str, str]:
    """Returns the keys of the IoU, or of the average precision of a detector, by class."""
    prefix = "eval/ap/" if "eval/ap" in log else "eval/iou/"
    return {key.removeprefix(prefix): key for key in log if key.startswith(prefix)}


def best_of(series: tuple[Sequence[int], Sequence[float]], *, lowest: bool = False) -> tuple[int, float]:
    """Returns the first step with the highest value of a logged score, or with the lowest, and the value."""
    steps, values = series
    at = int(np.nanargmin(values) if lowest else np.nanargmax(values))
    return steps[at], values[at]


def best_table(log: Log) -> Table:
    """Builds the table of the step at which each score was best, with its last value."""
    rows, kind = [], "AP" if "eval/ap" in log else "IoU"
    per_class = {f"{kind} of {name}": key for name, key in _keys_per_class(log).items()}
    losses = {f"{name} ↓": key for name, key in _evaluated_losses().items()}
    for name, key in (_SCORES | (per_class if len(per_class) <= MOST_LINES else {}) | losses).items():
        if key in log and not all(map(math.isnan, log[key][1])):
            form = "{:.4g}" if name in losses else "{:.3f}"
            step, best = best_of(log[key], lowest=name in losses)
            rows.append((name, form.format(best), step, form.format(log[key][1][-1])))
    return Table("Best step by each score", ("score", "best", "at step", "last"), rows)


def training_sections(
    log: Log, step: int | None, evaluated: Mapping[str, str], per_class: tuple[str, str, str, Mapping[str, str]]
) -> tuple[Section, ...]:
    """Builds the sections of the training curves, in which a dotted line marks `step`, and of the best steps.

    `evaluated` are keys of the log by the names of their lines. `per_class` has the name, title and caption of one more
    chart, and the keys of its lines.
    """
    loss_caption = "Loss of the training batches, with its running mean if the run is long, and loss in evaluation."
    name, title, caption, classes = per_class
    scores, rates = logged(log, evaluated), logged(log, {"learning rate": "train/learning_rate"})
    plots = (
        ("loss", loss_caption, loss_lines(log), "Loss", (None, None)),
        ("scores", "Scores of the evaluation split.", scores, "Scores", (0, 1.02)),
        (name, caption, logged(log, classes), title, (0, 1.02)),
        ("learning_rate", "Learning rate.", rates, "Learning rate", (0, None)),
    )
    charts = tuple(
        Chart(name, caption, lines, title, "step", y_range=y_range, smoothed=name == "loss", checkpoint_step=step)
        for name, caption, lines, title, y_range in plots
        if lines
    )
    text = "" if step is None else f"The dotted line marks the checkpoint of this page, step {step}."
    text += "" if scores else " The run was not scored yet."
    best = best_table(log)
    return Section("Training", text, (), charts), *([Section("Best by score", "", (best,))] if best.rows else [])


def _evaluated_losses() -> dict[str, str]:
    return {f"{name} loss in evaluation": f"eval/{name}_loss" for name in ("pixel", "class", "box")}


def loss_lines(log: Log) -> dict[str, Series]:
    """Returns the lines of the loss, of its parts if it has several, and of the loss in evaluation."""
    lines = logged(log, _LOSSES)
    lines = lines if len(lines) > 2 else {name: line for name, line in lines.items() if name == "loss"}
    return lines | logged(log, _evaluated_losses())


def logged(log: Log, names: Mapping[str, str]) -> dict[str, Series]:
    """Returns steps and values by name, for the names whose key was logged."""
    return {name: (log[key][0], [log[key][1]]) for name, key in names.items() if key in log}
