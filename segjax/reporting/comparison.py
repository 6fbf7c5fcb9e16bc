"""Comparison of runs on the same images: scores, classes, curves, configs, and the images on which they differ most."""

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from segjax import inference
from segjax.data import Source
from segjax.data.labels import LabelSet, colorize
from segjax.inference.visualize import colorize_overlaps
from segjax.reporting.charts import Chart, Series
from segjax.reporting.detector_page import DetectorInspection, detections_overlay, inspect_detector, show_detections
from segjax.reporting.multilabel_page import MultilabelInspection, ShownOverlaps, inspect_multilabel, show_overlaps
from segjax.reporting.overlays import comparison_overlay, overlap_overlay, predictions_differ
from segjax.reporting.report import Overlay, Report, Section, Table, spread
from segjax.reporting.run_page import ImageScore, Inspection, Rows, ShownImage, inspect_run, read_and_predict
from segjax.trained_run import TrainedRun, facts_of
from segjax.training import ConfigError, multilabel, read_log
from segjax.training.config import comparable

AnyInspection = Inspection | MultilabelInspection | DetectorInspection
Overlaps = Int[np.ndarray, "images 2 classes"]
DRAWS = 1000
"""Number of bootstrap samples behind an interval."""
_LEVEL = 0.95
# Names of the scores in the table, and their keys.
_SCORES = {
    "mean IoU": "mean_iou",
    "pixel accuracy": "pixel_accuracy",
    "AP of {rare}": "average_precision",
    "best IoU of {rare}": "best_iou",
    "ECE ↓": "expected_calibration_error",
    "mean AP": "mean_average_precision",
    "exact match": "exact_match",
    "calibration error ↓": "mean_calibration_error",
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "AR100": "ar100",
    "best F1": "best_f1",
}
_CURVES = {"mean IoU": "eval/mean_iou", "average precision": "eval/average_precision"}
_CURVES |= {"mean average precision": "eval/mean_average_precision", "AP": "eval/ap"}
_CURVES |= {"AP50": "eval/ap50", "loss": "train/loss"}


class Group(NamedTuple):
    """Runs of one config, which differ in the seed only; the scores of a group have a mean and a spread."""

    name: str
    runs: tuple[TrainedRun, ...]


class Compared(NamedTuple):
    """A group and the results of each of its runs on the split."""

    name: str
    runs: tuple[TrainedRun, ...]
    inspections: tuple[AnyInspection, ...]

    def score(self, key: str) -> Any:
        """Returns a score of the group: that of its only run, or a `Spread` over its runs."""
        return _one_or_spread([inspection.scores.get(key) for inspection in self.inspections])

    def class_score(self, key: str, index: int) -> Any:
        """Returns a score of one class, as `score`."""
        return _one_or_spread([inspection.scores[key][index] for inspection in self.inspections])


def _one_or_spread(values: list[float | None]) -> Any:
    return spread(values) if len(values) > 1 else values[0] if values[0] is None else float(values[0])


def group_runs(runs: Sequence[TrainedRun]) -> list[Group]:
    """Returns the runs in groups of one config, in the order of their first runs.

    Runs are in one group if their configs differ in the seed only. Each run is a group of its own if two runs of its
    config have the same seed, as two checkpoints of one run have, or if all runs have one config. The name of a group
    is the common beginning of its runs' names.

    Raises:
      ConfigError: a checkpoint is named twice, or the classes of two runs differ.
    """
    first, names = runs[0], [", ".join(run.checkpoints) for run in runs]
    by_config: dict[str, list[TrainedRun]] = {}
    for i, run in enumerate(runs):
        if names[i] in names[:i]:
            raise ConfigError(f"{names[i]} is named twice; name every run once")
        if _kind(run) != _kind(first):
            kinds = f"the first has {_kind(run)}, the second {_kind(first)}"
            raise ConfigError(f"{run.name} and {first.name} cannot be compared: {kinds}; name runs of one kind")
        if _classes(run) != _classes(first):
            classes = [", ".join(_classes(one)) for one in (run, first)]
            raise ConfigError(
                f"{run.name} and {first.name} cannot be compared: their classes are {classes[0]} and {classes[1]}; "
                "name runs of the same classes"
            )
        by_config.setdefault(repr([_settings(one) for one in run.runs or (run,)]), []).append(run)
    groups = []
    for alike in by_config.values():
        seeds = [tuple(one.config.seed for one in run.runs or (run,)) for run in alike]
        is_group = len(set(seeds)) == len(seeds) < len(runs)  # runs of one config are compared with each other
        groups += [tuple(alike)] if is_group else [(run,) for run in alike]
    groups.sort(key=lambda group: names.index(", ".join(group[0].checkpoints)))
    return [Group(*pair) for pair in zip(_names(groups), groups, strict=True)]


def _kind(run: TrainedRun) -> str:
    data = run.config.data
    return "boxes" if data.box_classes else "classes that overlap" if data.multilabel else "one class per pixel"


def _classes(run: TrainedRun) -> tuple[str, ...]:
    return tuple(run.config.data.box_classes) or run.label_set.names


def _settings(run: TrainedRun) -> dict[str, object]:
    """Returns the config fields that affect the results of a run, without the seed."""
    return {key: value for key, value in comparable(run.config).items() if key != "config.seed"}


def _names(groups: Sequence[tuple[TrainedRun, ...]]) -> list[str]:
    """Returns a short name per group: its workdirs without the folders that all share, and the step if needed."""
    every = [one for group in groups for run in group for one in run.runs or (run,)]
    folders = [one.workdir for one in every]
    shared = os.path.commonpath([folder.parent for folder in folders])
    several = len(groups) > len({tuple(run.name for run in group) for group in groups})  # checkpoints of one run
    names = []
    for group in groups:
        each = [",".join(os.path.relpath(one.workdir, shared) for one in run.runs or (run,)) for run in group]
        common = _common_beginning(each) if len(each) > 1 else each[0]
        step = f", step {group[0].step}" * several
        names.append((common + step, each[0] + f" and {len(each) - 1} more" * (len(each) > 1) + step))
    return [common if common and [pair[0] for pair in names].count(common) == 1 else more for common, more in names]


def _common_beginning(names: Sequence[str]) -> str:
    letters = itertools.takewhile(lambda each: len(set(each)) == 1, zip(*names, strict=False))
    beginning = "".join(each[0] for each in letters)
    if all(name[len(beginning) :][:1].isdigit() for name in names):  # within a number, as of run_10 and run_11
        beginning = beginning.rstrip("0123456789")
    return beginning.rstrip("_-./ ")


def check_same_images(groups: Sequence[Group], sources: Mapping[str, Source], split: str) -> None:
    """Raises ConfigError if a run's `split`, by the name of the run, does not have the images of the first run."""
    runs = [run for group in groups for run in group.runs]
    first = sources[runs[0].name]
    for run in runs[1:]:
        source = sources[run.name]
        if (len(source), source.digest) != (len(first), first.digest):
            raise ConfigError(
                f"{run.name} and {runs[0].name} have different images in {split}, {len(source)} and {len(first)}; add "
                "--split=NAME for a split that they share, or --config.data.FIELD=VALUE for all runs"
            )


def compare(groups: Sequence[Group], sources: Mapping[str, Source]) -> list[Compared]:
    """Scores every run on all images of its source (`sources[run.name]`); a terminal shows the progress."""
    return [Compared(*group, tuple(_inspect(run, sources[run.name]) for run in group.runs)) for group in groups]


def _inspect(run: TrainedRun, source: Source) -> AnyInspection:
    kinds = {"boxes": inspect_detector, "classes that overlap": inspect_multilabel, "one class per pixel": inspect_run}
    return kinds[_kind(run)](run, source, images=0)


def mean_iou_interval(first: Sequence[Overlaps], second: Sequence[Overlaps]) -> tuple[float, float]:
    r"""Returns a 95 % interval of the mean IoU of `second` minus that of `first`, each a group of runs.

    A paired bootstrap over images: each of `DRAWS` samples draws images with replacement, the same ones for all runs.
    The interval covers the choice of the images and not that of the seeds.

    Args:
      first: one array `[images, 2, classes]` per run: pixels in the intersection and in the union, per image and class.
      second: the arrays of the other group.

    Returns:
      (low, high); NaN without labels.

    >>> good, bad = np.array([[[9], [10]]] * 4), np.array([[[5], [10]]] * 4)
    >>> [round(end, 3) for end in mean_iou_interval([bad], [good])]
    [0.4, 0.4]
    """
    images = len(first[0])
    drawn = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=DRAWS)
    difference = _mean_iou(drawn, second) - _mean_iou(drawn, first)
    known = difference[~np.isnan(difference)]  # leaves out samples without a labelled pixel
    if not known.size:
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def _mean_iou(drawn: Int[np.ndarray, "draws images"], runs: Sequence[Overlaps]) -> Float[np.ndarray, "draws"]:
    """Returns the mean over runs of the mean IoU of the drawn images, over the classes that occur or are predicted."""
    return np.mean([_iou_mean(np.tensordot(drawn, run, 1)) for run in runs], axis=0)


def _iou_mean(overlaps: Int[np.ndarray, "*batch 2 classes"]) -> Float[np.ndarray, "*batch"]:
    """Returns the mean IoU over the classes that occur or are predicted; NaN without any."""
    intersection, union = overlaps[..., 0, :], overlaps[..., 1, :]
    total = np.sum(intersection / np.maximum(union, 1), axis=-1)
    count = np.count_nonzero(union, axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def image_scores(compared: Sequence[Compared]) -> Float[np.ndarray, "groups images"]:
    """Returns the mean IoU of each image under the first run of each group; NaN for an image without labels.

    For detectors it is the F1 at IoU 0.5 and the best threshold of the run; NaN without objects and detections.
    """
    first = [group.inspections[0] for group in compared]
    if is_detection(compared):
        return np.stack([inspection.image_f1 for inspection in first])
    return np.stack([_iou_mean(inspection.overlaps) for inspection in first])


def is_detection(compared: Sequence[Compared]) -> bool:
    """Returns True if the runs are detectors."""
    return isinstance(compared[0].inspections[0], DetectorInspection)


def most_different(scores: Float[np.ndarray, "groups images"], count: int) -> list[int]:
    """Returns the indices of the images whose highest and lowest score differ most, the largest difference first."""
    difference = np.nan_to_num(scores.max(0) - scores.min(0), nan=-1.0)
    order = np.argsort(-difference, kind="stable")[:count]
    return [int(index) for index in order if difference[index] >= 0]


def score_table(compared: Sequence[Compared], split: str) -> Table:
    """Builds the table of the scores of each group and their difference from the first group.

    The AP of detectors is not a sum over images, so it has no interval.
    """
    scores, first = compared[0].inspections[0].scores, compared[0]
    shown = {name.format(rare=scores.get("rare_class")): key for name, key in _SCORES.items() if key in scores}
    (headline, key), *others = shown.items()
    has_interval, rows = not is_detection(compared), []
    for group in compared:
        seeds = ", ".join(str(one.config.seed) for run in group.runs for one in run.runs or (run,))
        difference = interval = None
        if group is not first:
            difference = _signed(_mean(group.score(key)) - _mean(first.score(key)))
        if group is not first and has_interval:
            low, high = mean_iou_interval(*([one.overlaps for one in each.inspections] for each in (first, group)))
            interval = None if math.isnan(low) else f"{low:+.3f} to {high:+.3f}"
        values = [group.score(other) for _, other in others]
        rows.append((group.name, seeds, group.score(key), difference, *([interval] * has_interval), *values))
    columns = ("run", "seed", headline, f"minus {first.name}", *(["95 % interval"] * has_interval))
    columns += tuple(name for name, _ in others)
    lowest = tuple(name for name in shown if name.endswith("↓"))
    return Table(f"Scores on {split}", columns, rows, tuple(set(shown) - set(lowest)), lowest, text=("seed",))


def _mean(value: Any) -> float:
    return value if isinstance(value, float) else value.mean


def _signed(difference: float) -> str | None:
    return None if math.isnan(difference) else f"{difference:+.3f}"


def class_table(compared: Sequence[Compared]) -> Table:
    """Builds the table of the IoU (for detectors, the AP) per class and group.

    The last column is the last group minus the first.
    """
    scores = compared[0].inspections[0].scores
    if is_detection(compared):
        name, key, column, amounts = "AP", "ap_per_class", "objects", scores["objects"]
    else:
        name, key, column, amounts = "IoU", "iou_per_class", "share", _shares(np.array(scores["confusion"]))
    rows = []
    for i, (one, amount) in enumerate(zip(scores["classes"], amounts, strict=True)):
        values = [group.class_score(key, i) for group in compared]
        rows.append((one, amount, *values, _signed(_mean(values[-1]) - _mean(values[0]))))
    names = [group.name for group in compared]
    return Table(f"{name} per class", ("class", column, *names, f"{names[-1]} − {names[0]}"), rows)


def _shares(confusion: Int[np.ndarray, "classes *matrix"]) -> list[float]:
    """Returns the share of each class in the pixels, from one confusion matrix or from one per class."""
    overlap = confusion.ndim == 3
    pixels = confusion[:, 1].sum(axis=-1) if overlap else confusion.sum(axis=-1)
    return (pixels / max(int(confusion[0].sum() if overlap else confusion.sum()), 1)).tolist()


def config_table(groups: Sequence[Compared]) -> Table:
    """Builds the table of the config fields that differ between groups; of an ensemble, its first run counts."""
    settings = [_settings(group.runs[0].runs[0] if group.runs[0].runs else group.runs[0]) for group in groups]
    keys = [key for key in settings[0] if any(one[key] != settings[0][key] for one in settings)]
    rows = [(key, *(repr(one[key]) for one in settings)) for key in keys]
    names = tuple(group.name for group in groups)
    return Table("Fields that differ", ("field", *names), rows, text=names)


def finding(compared: Sequence[Compared]) -> str:
    """Returns the result in one sentence: the group with the highest main score, and its lead over the second.

    The main score is the mean IoU, or the AP for detectors.
    """
    detection = is_detection(compared)
    name, key, nothing = ("AP", "ap", "an object") if detection else ("mean IoU", "mean_iou", "a labelled pixel")
    values = [_mean(group.score(key)) for group in compared]
    best, second = sorted(compared, key=lambda group: _mean(group.score(key)), reverse=True)[:2]
    if any(map(math.isnan, values)):
        return f"No image has {nothing}, so there is no {name}."
    lead = max(values) - _mean(second.score(key))
    text = f"{best.name} has the highest {name}, {max(values):.3f}; that of {second.name} is {lead:.3f} lower"
    if detection:
        return f"{text}."
    low, high = mean_iou_interval(*([one.overlaps for one in group.inspections] for group in (second, best)))
    return f"{text} (95 % interval over the choice of images: {low:.3f} to {high:.3f})."


def comparison_report(
    compared: Sequence[Compared], sources: Mapping[str, Source], split: str, *, images: int
) -> Report:
    """Builds the report of the groups; it shows the `images` images whose score differs most between groups."""
    fields = config_table(compared)
    same = "" if fields.rows else "The configs are equal; paths and the number of loader processes do not count."
    seeds = any(len(group.runs) > 1 for group in compared)
    text = (
        f"{finding(compared)}\n\nEvery run was scored on the same {compared[0].inspections[0].scores['images']} "
        f"image(s) of {split}."
    )
    text += " Runs whose configs differ in the seed only are one row, with mean ± standard deviation." * seeds
    if not is_detection(compared):
        text += (
            " The intervals are of the difference in mean IoU, by a paired bootstrap over the images; they do not "
            "cover the choice of the seeds."
        )
    sections = (
        Section("Scores", "", (score_table(compared, split),)),
        Section("Classes", "", (class_table(compared),)),
        *_curve_sections(compared),
        Section("Configuration", same, (fields,) if fields.rows else ()),
        *_image_sections(compared, sources, images),
    )
    facts: dict[str, Any] = {}
    for group in compared:
        for run, inspection in zip(group.runs, group.inspections, strict=True):
            own = facts_of(run, split, inspection.scores)
            here = {key: own.pop(key) for key in list(own) if key.startswith("this page's ")}
            facts |= {"data": own.pop("data"), run.name: own} | here
    return Report(f"Comparison of {len(compared)} networks", text, sections, facts)


def log_of(run: TrainedRun) -> Rows:
    """Returns the rows of `read_log` of a run; none for an ensemble of runs or a run without a log."""
    return [] if run.runs else read_log(run.workdir, required=False)


def _curve_sections(compared: Sequence[Compared]) -> list[Section]:
    """Returns the section of the curves over the steps, one line per group of runs that were logged."""
    logs = {group.name: [log_of(run) for run in group.runs] for group in compared}
    pictures = []
    for name, key in _CURVES.items():
        lines = {group: line for group, each in logs.items() if (line := _line(each, key))}
        if lines:
            y_range = (0, 1.02 if "eval/" in key else None)
            caption = f"{name[0].upper()}{name[1:]} over the steps."
            pictures.append(Chart(key.replace("/", "_"), caption, lines, name, "step", y_range=y_range))
    return [Section("Training", "", (), tuple(pictures))] if pictures else []


def _line(logs: Sequence[Rows], key: str) -> Series | None:
    """Returns the steps that all seeds logged, and the values of each seed there; None without a step."""
    values = [{row["step"]: row[key] for row in log if key in row} for log in logs]
    steps = sorted(set.intersection(*map(set, values)))
    return (steps, [[one[step] for step in steps] for one in values]) if steps else None


def _image_sections(compared: Sequence[Compared], sources: Mapping[str, Source], count: int) -> list[Section]:
    scores, labels = image_scores(compared), compared[0].runs[0].label_set
    chosen = most_different(scores, count)
    if not chosen:
        return []
    if is_detection(compared):
        name, draw = "F1", partial(detections_overlay, names=compared[0].inspections[0].scores["classes"])
    else:
        name, draw = "mean IoU", partial(_overlay if labels.combinations is None else _overlap_overlay, labels=labels)
    shown = [
        _show(group, sources[group.runs[0].name], [ImageScore(row[i], i) for i in chosen])
        for group, row in zip(compared, scores.tolist(), strict=True)
    ]
    pictures = []
    for number, (index, *each) in enumerate(zip(chosen, *shown, strict=True), 1):
        parts = [f"{group.name} {score:.3f}" for group, score in zip(compared, scores[:, index], strict=True)]
        by_layer = dict(zip(map(_layer_name, compared), each, strict=True))
        caption = f"{each[0].name}: {name} {', '.join(parts)}"
        pictures.append(draw(f"image_{number}", caption, by_layer))
    text = (
        f"The images whose {name} differs most between the rows, the largest difference first. Choose a layer for "
        "all images, and its opacity."
    )
    text += (
        " The F1 is that at IoU 0.5 and the best score threshold of each run, whose detections are shown."
        if is_detection(compared)
        else " The pointer shows the classes of a pixel."
    )
    first_seed = (
        " If a row has several seeds, its first run is shown." if any(len(group.runs) > 1 for group in compared) else ""
    )
    return [Section("Images", text + first_seed, (), tuple(pictures))]


def _show(group: Compared, source: Source, chosen: Sequence[ImageScore]) -> Iterable[Any]:
    """Reads the chosen images again, with the prediction of the group's first run."""
    run, inspection = group.runs[0], group.inspections[0]
    if isinstance(inspection, DetectorInspection):
        return show_detections(inspection, source, [one.index for one in chosen])
    return (show_overlaps if run.config.data.multilabel else read_and_predict)(run, source, chosen)


def _layer_name(group: Compared) -> str:
    return f"run {group.name}" if group.name in ("truth", "difference", "objects") else group.name


def _overlay(name: str, caption: str, shown: Mapping[str, ShownImage], labels: LabelSet) -> Overlay:
    one, masks = next(iter(shown.values())), {kind: each.prediction for kind, each in shown.items()}
    drawn = {kind: colorize(mask, labels.palette) for kind, mask in {"truth": one.truth, **masks}.items()}
    ids = np.unique(np.stack([one.truth, *masks.values()])).tolist()
    tiles = _tiles(one.image, drawn, predictions_differ(list(masks.values())), labels, ids)
    return comparison_overlay(name, caption, tiles, one.image, one.truth, masks, labels)


def _overlap_overlay(name: str, caption: str, shown: Mapping[str, ShownOverlaps], labels: LabelSet) -> Overlay:
    one, masks = next(iter(shown.values())), {kind: each.prediction for kind, each in shown.items()}
    drawn = {"truth": multilabel.draw_truth(one.truth, labels)}
    drawn |= {kind: colorize_overlaps(mask, labels.palette) for kind, mask in masks.items()}
    differ = predictions_differ(list(masks.values())).any(axis=-1)
    tiles = _tiles(one.image, drawn, differ, labels, None)
    return overlap_overlay(name, caption, tiles, one.image, one.truth, masks, labels)


def _tiles(
    image: Shaped[np.ndarray, "H W C"],
    drawn: Mapping[str, UInt8[np.ndarray, "H W 3"]],
    differ: Bool[np.ndarray, "H W"],
    labels: LabelSet,
    ids: Sequence[int] | None,
) -> bytes:
    """Returns tiles of an image, its masks and where they differ, above a legend of the classes `ids`, as PNG."""
    difference = np.repeat(np.where(differ, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)
    sheet = inference.tiles({"image": inference.as_rgb(image), **drawn, "difference": difference})
    return inference.png(np.concatenate([sheet, inference.legend(labels, ids, width=sheet.shape[1])]))


def comparison_data(compared: Sequence[Compared], names: Sequence[str], split: str) -> dict[str, Any]:
    """Returns the scores of every run, and the mean IoU of every image, ready for JSON."""
    per_image, key = image_scores(compared), "f1_per_image" if is_detection(compared) else "mean_iou_per_image"
    return {
        "split": split,
        "groups": [
            {
                "name": group.name,
                "runs": [
                    {"checkpoints": run.checkpoints, "seed": run.config.seed, "scores": inspection.scores}
                    for run, inspection in zip(group.runs, group.inspections, strict=True)
                ],
                key: dict(zip(names, row.tolist(), strict=True)),
            }
            for group, row in zip(compared, per_image, strict=True)
        ],
    }
