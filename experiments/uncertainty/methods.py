"""Uncertainty methods on five tasks: `python -m experiments.uncertainty.methods --data=camvid --workdir=…`.

The tasks: find wrong pixels, find void, find pixels of classes that the network never saw, give calibrated
probabilities, and find the images on which the network fails. The methods: scores of one pass, dropout of the head,
test-time augmentation, ensembles of five, and outlier exposure.

A row is one way to train; all have the same number of steps. Each network is trained and measured once; kill the
command and rerun it, or run it twice to share the networks between processes.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
from absl import app, flags
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from ml_collections import ConfigDict

from experiments.sweep import grid
from experiments.sweep.grid import Changes
from experiments.sweep.results_io import local_path, provenance_facts, publish
from experiments.uncertainty import scores
from segjax import cli
from segjax.configs import camvid_outliers, camvid_unet_weighted, camvid_unseen, road_debris_unseen
from segjax.data import UNSEEN, VOID, open_split
from segjax.reporting import Picture, Report, Section, Table, spread
from segjax.reporting.figures import png
from segjax.storage import read_json, write_json
from segjax.trained_run import TrainedRun, load_run
from segjax.training.checkpoint import FOLDER
from segjax.training.config import from_leaves, leaves
from segjax.training.provenance import provenance

ALL, SOME, EXPOSED, FOCAL = "all classes", "unseen classes", "outlier exposure", "focal loss"
SMOOTHED, MARGIN = "label smoothing", "logit margin"
DATA = ("road_debris_scene", "camvid")
MEMBERS = 5
# Seeds of each row. The first two rows have an ensemble of all their seeds.
SEEDS = {ALL: MEMBERS, SOME: MEMBERS, EXPOSED: 3, FOCAL: 3, SMOOTHED: 3, MARGIN: 3}
BASELINE = "dropout: mutual information"
RESULT_FORM = {"row": str, "pixels": dict, "families": dict, "images": dict, "classes": list, "provenance": dict}


def base_and_rows(data: str) -> tuple[ConfigDict, dict[str, Changes]]:
    """Returns the config of all rows of a data set, and the fields that each row changes.

    The rows that train against miscalibration are those of `road_debris_scene` only.
    """
    if data == "camvid":
        config, unseen = camvid_unet_weighted.get_config(), camvid_unseen
        config.data.size = (144, 192)
        third = 612  # steps: ten epochs in all
        rate = config.optimizer.learning_rate
        config.training.steps = 3 * third
        config.training.phases = ((0.6, third, rate), (0.75, third, rate), (1.0, third, rate))
        config.training.evaluate_every, config.training.checkpoint_every = third, third // 3
    else:
        config, unseen = road_debris_unseen.get_config(), road_debris_unseen
        config.data.unseen_classes = ()
        config.training.steps = 600
        config.training.evaluate_every = config.training.checkpoint_every = 200
    fields = leaves(unseen.get_config())
    taught = {key: fields[key] for key in ("data.unseen_classes", "objective.class_weights")}
    fields = leaves(camvid_outliers.get_config())
    exposure = {key: fields[key] for key in ("augment.outliers", "objective.outlier_weight")}
    rows = {
        ALL: {},
        SOME: taught,
        EXPOSED: taught | exposure,
        FOCAL: {"objective.loss": "softmax_focal", "objective.gamma": 2.0},
    }
    if data == "road_debris_scene":
        rows |= {SMOOTHED: {"objective.label_smoothing": 0.05}, MARGIN: {"objective.logit_margin": 10.0}}
    return config, rows


def examples(config: ConfigDict) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields image, label and mask of the unknown pixels: those of unseen classes or, if there are none, void."""
    source = open_split(config.data, config.data.eval_split, mark_unseen=True)
    for index in range(len(source)):
        example = source[index]
        label = example["label"]
        unknown = label == (UNSEEN if config.data.unseen_classes else VOID)
        yield example["image"], np.where(unknown, VOID, label), unknown


def trained(data: str, workdir: Path, row: str, seeds: Sequence[int]) -> list[TrainedRun]:
    """Returns the networks of a row that were trained with `seeds`; raises UsageError for an unfinished one."""
    base, rows = base_and_rows(data)
    cells = grid.make_cells(base, {row: rows[row]}, seeds)
    for cell in cells:
        if grid.result_of(cell, workdir) is None:
            raise app.UsageError(
                f"{workdir / cell.name} is not a finished network; run python -m experiments.uncertainty.methods "
                f"--data={data} --row='{row}' --workdir={workdir.parent}"
            )
    return [load_run(workdir / cell.name / FOLDER / "latest") for cell in cells]


def measure(row: str, runs: Sequence[TrainedRun]) -> dict[str, Any]:
    """Returns the scores of one trained network, or of the ensemble of several."""
    maps = scores.single_network(runs[0], scores.fit(runs[0])) if len(runs) == 1 else scores.ensemble(runs)
    count = scores.make_count(maps, runs[0].label_set.num_classes)
    images = scores.count_images(count, examples(runs[0].config))
    return {
        "row": row,
        "pixels": scores.score_pixels(images),
        "families": scores.score_families(images),
        "images": scores.score_images(images),
        "classes": list(runs[0].label_set.names),
    }


def run(data: str, rows: Sequence[str], workdir: Path, console: rich.console.Console) -> None:
    """Trains and measures the networks of `rows` that have no result, and then the ensembles whose members exist."""
    base, changes = base_and_rows(data)
    for seed in range(MEMBERS):
        now = {name: changes[name] for name in rows if seed < SEEDS[name]}
        if now:
            cells = grid.make_cells(base, now, [seed])
            grid.run(cells, workdir, console, measure=_measure_cell)
    for name in rows:
        if SEEDS[name] == MEMBERS and not ensemble_file(workdir, name).exists():
            result = measure(name, trained(data, workdir, name, range(MEMBERS))) | {"provenance": provenance()}
            write_json(ensemble_file(workdir, name), result)


def _measure_cell(cell: grid.Cell, folder: Path) -> dict[str, Any]:
    return measure(cell.row, [load_run(folder / FOLDER / "latest")])


def ensemble_file(workdir: Path, row: str) -> Path:
    """Returns the file of the scores of a row's ensemble."""
    return workdir / f"ensemble_{row.replace(' ', '_')}.json"


def finished(data: str, workdir: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the results by row, of seeds in order and, as a row of its own, "ROW, ensemble"."""
    base, rows = base_and_rows(data)
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in grid.make_cells(base, rows, range(MEMBERS)):
        if (result := grid.result_of(cell, workdir)) is not None:
            found.setdefault(cell.row, []).append(result)
    for name in rows:
        if (file := ensemble_file(workdir, name)).exists():
            found[f"{name}, ensemble"] = [read_json(file, RESULT_FORM, "the scores of an ensemble")]
    return found


def pixel_table(found: Mapping[str, list[dict[str, Any]]]) -> Table:
    """Returns one row per method: errors and void of networks of all classes, and the unseen classes."""
    columns = {
        "errors: AURC, %": (ALL, "aurc", 100),
        "void: AP": (ALL, "average_precision", 1),
        "void: FPR95": (ALL, "fpr95", 1),
        "unseen: AP": (SOME, "average_precision", 1),
        "unseen: AUROC": (SOME, "auroc", 1),
        "unseen: FPR95": (SOME, "fpr95", 1),
    }
    lines = []
    for suffix in ("", ", ensemble"):
        names = [name for row in (ALL, SOME) for one in found.get(row + suffix, ()) for name in one["pixels"]]
        for name in dict.fromkeys(names):
            cells = [_over(found.get(row + suffix, ()), name, key, scale) for row, key, scale in columns.values()]
            lines.append((name, *cells))
    for name in _scores_of(found.get(EXPOSED, ())):
        cells = [
            _over(found[EXPOSED], name, key, scale) if row == SOME else None for row, key, scale in columns.values()
        ]
        lines.append((f"{EXPOSED}: {name}", *cells))
    lowest = tuple(name for name in columns if "AURC" in name or "FPR" in name)
    highest = tuple(name for name in columns if name not in lowest)
    return Table("Scores per pixel", ("method", *columns), lines, highest, lowest)


def _scores_of(results: Sequence[dict[str, Any]]) -> list[str]:
    return list(results[0]["pixels"]) if results else []


def _over(results: Sequence[dict[str, Any]], name: str, key: str, scale: float) -> Any:
    values = [scale * one["pixels"][name][key] for one in results if name in one["pixels"]]
    return spread(values) if values else None


def family_table(found: Mapping[str, list[dict[str, Any]]]) -> Table:
    """Returns one row per way to train and family: mean IoU, and the calibration before and after each scaling."""
    columns = {
        "ECE, %": ("none", "ece"),
        "ACE, %": ("none", "ace"),
        "temperature: ECE": ("temperature", "ece"),
        "ACE": ("temperature", "ace"),
        "every other image: ECE": ("every other image", "ece"),
        "per class: ECE": ("class", "ece"),
        "vector: ECE": ("vector", "ece"),
    }
    lines = []
    for row, results in found.items():
        for family in results[0]["families"]:
            entries = [one["families"][family] for one in results]
            errors = [
                spread([_percent(one["calibration"][kind][key]) for one in entries]) for kind, key in columns.values()
            ]
            quality = spread([one["mean_iou"] for one in entries])
            lines.append((row.removesuffix(", ensemble"), family, quality, *errors))
    names = ("trained on", "family", "mean IoU", *columns)
    return Table("Calibration", names, lines, ("mean IoU",), tuple(columns), text=("family",))


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def image_table(found: Mapping[str, list[dict[str, Any]]]) -> Table:
    """Returns one row per score and aggregation: failure detection by networks of all classes."""
    lines = []
    results = [*found.get(ALL, ()), *found.get(f"{ALL}, ensemble", ())]
    names = dict.fromkeys((name, how) for one in results for name in one["images"] for how in one["images"][name])
    for name, how in names:
        entries = [one["images"][name][how] for one in results if name in one["images"]]
        lines.append((name, how, *(spread([one[key] for one in entries]) for key in ("aurc", "excess_aurc", "augrc"))))
    columns = ("score", "over the image", "AURC", "E-AURC", "AUGRC")
    return Table("Images on which the network fails", columns, lines, (), columns[2:], text=columns[1:2])


def finding(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """Returns the result in a few sentences, from the means over the seeds."""
    means = {}
    for row in (SOME, f"{SOME}, ensemble", EXPOSED):
        prefix = f"{EXPOSED}: " if row == EXPOSED else ""
        for name in _scores_of(found.get(row, ())):
            means[prefix + name] = {
                key: float(np.mean([one["pixels"][name][key] for one in found[row]]))
                for key in ("auroc", "average_precision", "share")
            }
    if BASELINE not in means:
        return "The networks with unseen classes have not been trained yet."
    best = max(means, key=lambda name: means[name]["auroc"])
    precise = max(means, key=lambda name: means[name]["average_precision"])
    base, share = means[BASELINE], means[BASELINE]["share"]
    return (
        f"{best} finds the unseen classes best: AUROC {means[best]['auroc']:.3f}, against {base['auroc']:.3f} of the "
        f"mutual information of dropout. The best average precision is {means[precise]['average_precision']:.3f}, of "
        f"{precise}: {means[precise]['average_precision'] / share:.1f} times the {share:.4f} of chance."
    )


def figure(found: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """Draws one line per method, sorted by the AUROC of the unseen classes, with one dot per seed in each panel."""
    panels = (
        (SOME, "auroc", 1, "AUROC of the unseen classes"),
        (SOME, "average_precision", 1, "average precision of the unseen classes"),
        (ALL, "aurc", 100, "AURC of the errors, % (left is better)"),
    )
    values: dict[str, list[list[float]]] = {}
    for row, prefix in ((SOME, ""), (f"{SOME}, ensemble", ""), (EXPOSED, f"{EXPOSED}: ")):
        for name in _scores_of(found.get(row, ())):
            values[prefix + name] = [
                [scale * one["pixels"][name][key] for one in found.get(row.replace(SOME, source), ())]
                for source, key, scale, _ in panels
            ]
            if row == EXPOSED:
                values[prefix + name][-1] = []
    order = sorted(values, key=lambda name: np.mean(values[name][0]))
    colours = {"dropout": "tab:red", "augmentation": "tab:green", "ensemble": "tab:purple", EXPOSED: "tab:orange"}
    drawn = Figure(figsize=(12, 1 + 0.24 * max(len(order), 3)), layout="constrained")
    for i, (axes, (*_, title)) in enumerate(zip(drawn.subplots(1, len(panels), sharey=True), panels, strict=True)):
        for line, name in enumerate(order):
            dots = values[name][i]
            axes.plot(dots, [line] * len(dots), "o", color=colours.get(name.split(":")[0], "tab:blue"), alpha=0.7)
        axes.set(xlabel=title, yticks=range(len(order)), yticklabels=order, ylim=(-1, len(order)))
        axes.grid(alpha=0.25)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    return drawn


def pictures(data: str, workdir: Path) -> Figure:
    """Draws image, unknown pixels and scores of several methods for two images with many unknown pixels."""
    base, rows = base_and_rows(data)
    images = list(examples(from_leaves(leaves(base) | rows[SOME])))
    # One of each half: neighbouring frames of a video are alike.
    halves = images[: len(images) // 2], images[len(images) // 2 :]
    chosen = [max(half, key=lambda one: one[2].sum()) for half in halves]
    single, exposed = (trained(data, workdir, row, [0])[0] for row in (SOME, EXPOSED))
    predictors = {
        ("entropy", BASELINE): scores.single_network(single, None),
        (f"{EXPOSED}: entropy", f"{EXPOSED}: augmentation: entropy"): scores.single_network(exposed, None),
    }
    if ensemble_file(workdir, SOME).exists():
        networks = trained(data, workdir, SOME, range(MEMBERS))
        predictors[("ensemble: entropy", "ensemble: mutual information")] = scores.ensemble(networks)
    panels: list[dict[str, np.ndarray]] = []
    for image, _, unknown in chosen:
        panel = {"image": image, "unknown": np.where(unknown[..., None], (0, 255, 255), image // 3)}
        for names, maps in predictors.items():
            found = {name: values for family in jax.jit(maps)(image).values() for name, values in family.scores.items()}
            panel |= {name: np.asarray(found[name.removeprefix(f"{EXPOSED}: ")]) for name in names}
        panels.append(panel)
    drawn = Figure(figsize=(1.5 * len(panels[0]), 2.8), layout="constrained")
    for line, panel in zip(drawn.subplots(len(panels), len(panels[0])), panels, strict=True):
        for axes, (name, values) in zip(line, panel.items(), strict=True):
            high = np.quantile(values, 0.995) if values.ndim == 2 else None  # one bright pixel would darken the rest
            axes.imshow(values, cmap="inferno", vmin=0, vmax=high)
            axes.set_title(name.replace(": ", ":\n"), fontsize=6)
            axes.axis("off")
    return drawn


def report(found: Mapping[str, list[dict[str, Any]]], data: str, shown: bytes | None) -> Report:
    """Returns the report of all finished networks, with their provenance; `shown` is the PNG of `pictures`."""
    base, rows = base_and_rows(data)
    training = base.training
    unseen = " and ".join(rows[SOME]["data.unseen_classes"])
    counted = {row: len(results) for row, results in found.items()}
    sections = (
        Section(
            "Pixels",
            "Errors and void: networks of all classes. Unseen: networks that were trained without "
            f"{unseen} (void in training) have to find these pixels among all other labelled ones. AURC: mean error "
            "rate of the most certain pixels over all coverages. A random order has an AUROC of 0.5, an FPR95 of 0.95 "
            "and as AP the share of the unknown pixels.",
            (pixel_table(found),),
            (
                Picture("tasks", "One dot per seed; methods by their AUROC", png(figure(found))),
                *(
                    [Picture("unknown", "Scores of unseen classes; each from black to its 99.5th percentile", shown)]
                    if shown
                    else []
                ),
            ),
        ),
        Section(
            "Probabilities",
            "ECE has 15 bins of equal width, ACE 15 of equal mass. The scaling is fitted to 2000 random pixels of each "
            "image of the first half of the split and scored on those of the other half; a second temperature is "
            "fitted to every other image and scored on the rest.",
            (family_table(found),),
        ),
        Section(
            "Images",
            "An image's score is the mean of its pixels' scores, or the mean over the 10×10 pixels where it is "
            "largest. It ranks the images by 1 - mean IoU.",
            (image_table(found),),
        ),
    )
    facts = {
        "data": f"{data}, {base.data.eval_split}, at its own resolution",
        "training": f"{training.steps} steps of batch {training.global_batch}, "
        f"{base.data.size[0]}×{base.data.size[1]} pixels, {base.model.name} of width {base.model.width}",
        "rows": "; ".join(f"{name}: {grid.row_name(row) or 'the base config'}" for name, row in rows.items()),
        "networks": "; ".join(f"{row}: {count}" for row, count in counted.items()),
        "dropout": f"{scores.HEAD_SAMPLES} masks per channel, rate {scores.RATE}; trained without dropout",
        "augmentation": f"mirrored or not, at the scales {', '.join(map(str, scores.SCALES))}",
        "ensemble": f"{MEMBERS} seeds",
        **provenance_facts([one for results in found.values() for one in results]),
    }
    return Report(f"Uncertainty methods on {data}", finding(found), sections, facts)


def main(argv: list[str]) -> None:
    """Runs the selected networks that are missing, then prints and writes the report of all finished ones."""
    del argv
    options, console = flags.FLAGS, rich.console.Console(width=180)
    workdir = local_path(options.workdir) / options.data
    known = base_and_rows(options.data)[1]
    rows = options.row or list(known)
    if unknown := [name for name in rows if name not in known]:
        raise app.UsageError(
            f"--row={', '.join(unknown)} is not a row of --data={options.data}; the rows are {', '.join(known)}"
        )
    if not options.only_table:
        run(options.data, rows, workdir, console)
    found = finished(options.data, workdir)
    shown = png(pictures(options.data, workdir)) if {SOME, EXPOSED} <= found.keys() else None
    data = {row: [{key: one[key] for key in RESULT_FORM} for one in results] for row, results in found.items()}
    publish(report(found, options.data, shown), workdir, f"uncertainty_methods_{options.data}", data, console)


if __name__ == "__main__":
    flags.DEFINE_enum("data", DATA[0], DATA, "The data set.")
    flags.DEFINE_string("workdir", "runs/uncertainty", "Folder with one folder per data set.")
    flags.DEFINE_multi_string("row", None, "Name of a row to run; may be repeated. Default: all rows.")
    flags.DEFINE_bool("only_table", False, "Run nothing; print the report of the finished networks.")
    cli.run(main, required=[])
