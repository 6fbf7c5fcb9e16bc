"""Conformal guarantees of a trained run: `python -m experiments.uncertainty.guarantee --checkpoint=RUN --class=NAME`.

The images of a split are divided at random, many times, into a half for calibration and a half for testing. On the
first half `segjax.metrics.risk_control` selects the threshold of the rare class for each level; on the other half its
false negative rate is measured, and its false positive rate. The same with a dilation of the predicted mask,
and with prediction sets of all classes.

The network is applied once per image; the divisions reuse its histograms.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import flags
from matplotlib.figure import Figure

from experiments.sweep.results_io import local_path
from segjax import cli, metrics
from segjax.calibrate import RADII, distances
from segjax.reporting import Picture, Report, Section, Table, show, write_report
from segjax.reporting.figures import png
from segjax.trained_run import TrainedRun, find_class, image_counts, load_run
from segjax.training import open_split
from segjax.training.provenance import provenance

LEVELS = (0.01, 0.05, 0.1)
# The histograms' bin of a log odds of 0: a probability of 1/2.
_EVEN = 2048


class Histograms(NamedTuple):
    """Counts of every image, by the log odds of each class, the conformity of adaptive sets, and the distance.

    In `classes`, `[images, C, 2, bins]`, the second row of a class are its own pixels; in `adaptive`,
    `[images, 2, bins]`, it is the true class of every pixel, and the first row all other classes. `distances`,
    `[images, 2, radii + 1]`, are the distances to the predicted mask of the rare class, its pixels in the second row.
    """

    classes: np.ndarray
    adaptive: np.ndarray
    distances: np.ndarray


def histograms_of(run: TrainedRun, source: Any, class_index: int) -> Histograms:
    """Returns the histograms of all images of `source`, at their own resolution, for the rare class `class_index`."""

    def count(logits, labels, where, index):
        del index
        is_own = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.int32)
        odds = metrics.class_log_odds(logits)
        per_class = jax.vmap(lambda z, y: metrics.score_histogram(z, y, where=where), in_axes=-1)(odds, is_own)
        adaptive = metrics.score_histogram(metrics.adaptive_log_odds(logits), is_own, where=where[..., None])
        return per_class, adaptive, jnp.argmax(logits, axis=-1) == class_index

    counts = []
    for index, (per_class, adaptive, strips) in enumerate(image_counts(run, source, count)):
        near = distances(strips, source[index]["label"], class_index)
        counts.append((per_class.sum(axis=0), adaptive.sum(axis=0), near))
    return Histograms(*map(np.stack, zip(*counts, strict=True)))


def divisions(images: int, splits: int, seed: int) -> np.ndarray:
    """Returns random divisions, boolean `[splits, images]`: True for the half of calibration."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(images) < images // 2 for _ in range(splits)])


def control(positives: np.ndarray, calibration: np.ndarray, level: float) -> tuple[int | None, np.ndarray, str]:
    """Returns the lowest positive bin, the risks of the test images there, and an error if no bin reaches the level.

    `positives` `[images, bins]` are the counts of what must not be missed; images without any have no risk.
    """

    def rates(rows: np.ndarray) -> np.ndarray:
        return metrics.false_negative_rates(np.stack([np.zeros_like(rows), rows], axis=1)).rates

    try:
        chosen = metrics.risk_control(rates(positives[calibration]), level)
    except ValueError as error:
        return None, np.array([]), str(error)
    return chosen, rates(positives[~calibration])[:, chosen], ""


def rare_class_rows(rare: np.ndarray, halves: np.ndarray, levels: tuple[float, ...]) -> list[dict[str, Any]]:
    """Returns per level the false negative rate and the false positive rate of each division.

    `rare` `[images, 2, bins]` are the histograms of the rare class, by log odds or by distance.
    """
    rows = []
    for level in levels:
        row = {"level": level, "calibration_images": [], "risks": [], "false_positive_rate": [], "precision": []}
        for half in halves:
            chosen, risks, error = control(rare[:, 1], half, level)
            row["calibration_images"].append(int((rare[half, 1].sum(axis=1) > 0).sum()))
            if chosen is None:
                row["infeasible"] = error
                continue
            negatives, positives = rare[~half].sum(axis=0)
            false, true = negatives[chosen:].sum(), positives[chosen:].sum()
            row["risks"].append(float(risks.mean()))
            row["false_positive_rate"].append(float(false / negatives.sum()))
            row["precision"].append(float(true / max(false + true, 1)))
        rows.append(row)
    return rows


def set_rows(counts: Histograms, halves: np.ndarray, levels: tuple[float, ...]) -> list[dict[str, Any]]:
    """Returns per kind of set and level the share of labels that each division misses, and the mean size of a set."""
    # Per kind, the histograms that share a threshold.
    kinds = {
        "one threshold": [counts.classes.sum(axis=1)],
        "a threshold per class": list(counts.classes.swapaxes(0, 1)),
        "adaptive": [counts.adaptive],
    }
    rows = []
    for name, groups in kinds.items():
        for level in levels:
            row = {"sets": name, "level": level, "risks": [], "mean_size": []}
            for half in halves:
                controls = [control(group[:, 1], half, level) for group in groups]
                errors = [error for _, _, error in controls if error]
                if errors:
                    row["infeasible"] = errors[0]
                    continue
                members = sum(
                    group[~half, :, chosen:].sum() for group, (chosen, *_) in zip(groups, controls, strict=True)
                )
                row["risks"].append(float(np.mean([risks.mean() for _, risks, _ in controls])))
                row["mean_size"].append(float(members / counts.adaptive[~half, 1].sum()))
            rows.append(row)
    return rows


def band(risks: list[float]) -> str:
    """Returns mean ± standard error over the divisions, and the range of nine tenths of them."""
    if not risks:
        return "not feasible"
    error = np.std(risks) / np.sqrt(len(risks))
    low, high = np.quantile(risks, [0.05, 0.95])
    return f"{np.mean(risks):.4f} ± {error:.4f} ({low:.3f} to {high:.3f})"


def mean(values: list[float], digits: int = 4) -> str:
    """Returns the mean over the divisions, or a dash."""
    return f"{np.mean(values):.{digits}f}" if values else "–"


def finding(rare: list[dict[str, Any]], name: str) -> str:
    """Returns the result in two sentences."""
    done = [row for row in rare if row["risks"]]
    held = [row for row in done if np.mean(row["risks"]) <= row["level"] + 2 * _standard_error(row["risks"])]
    costs = ", ".join(f"{100 * np.mean(row['false_positive_rate']):.1f} % at level {row['level']:g}" for row in done)
    return (
        f"Of {len(done)} feasible levels, the mean share of missed {name} pixels is below the level, or above it by at "
        f"most two standard errors, at {len(held)}. The false positive rates are {costs}."
    )


def _standard_error(risks: list[float]) -> float:
    return float(np.std(risks) / np.sqrt(len(risks)))


def own_threshold(rare: np.ndarray) -> dict[str, float]:
    """Returns the same numbers for all images at a probability of 1/2."""
    (negatives, positives), rates = rare.sum(axis=0), metrics.false_negative_rates(rare).rates
    false, true = negatives[_EVEN:].sum(), positives[_EVEN:].sum()
    return {
        "risk": float(rates[:, _EVEN].mean()),
        "false_positive_rate": float(false / negatives.sum()),
        "precision": float(true / max(false + true, 1)),
    }


def figure(rare: list[dict[str, Any]], name: str) -> bytes:
    """Draws one dot per division and level: its false negative rate, beside the level that is promised."""
    drawn = Figure(figsize=(7, 1.4 + 0.6 * len(rare)), layout="constrained")
    axes, rng = drawn.subplots(), np.random.default_rng(0)
    for row, place in zip(rare, range(len(rare), 0, -1), strict=True):
        height = place + rng.uniform(-0.2, 0.2, len(row["risks"]))
        axes.plot(row["risks"], height, ".", color="tab:blue", alpha=0.35, markeredgewidth=0)
        axes.plot([row["level"]] * 2, [place - 0.38, place + 0.38], color="black")
        if row["risks"]:
            axes.plot(np.mean(row["risks"]), place, "D", color="tab:blue", markersize=6)
    labels = [f"level {row['level']:g}" + ("" if row["risks"] else "\n(not feasible)") for row in rare]
    axes.set_yticks(range(len(rare), 0, -1), labels)
    axes.set(
        xlabel=f"missed share of the {name} pixels\ndot: one division, diamond: mean, line: level",
        xlim=(0, None),
        ylim=(0.4, len(rare) + 0.6),
    )
    axes.grid(axis="x", alpha=0.25)
    return png(drawn)


def table_rows(rare: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Returns the rows of a table of `rare_class_rows`."""
    return [
        (f"{row['level']:g}", band(row["risks"]), mean(row["false_positive_rate"]), mean(row["precision"], 3))
        for row in rare
    ]


def report(
    run: TrainedRun, split: str, name: str, rare: list, dilations: list, sets: list, plain: dict[str, float]
) -> Report:
    """Returns the report: the tables, the figure, and what they rest on."""
    headings = ("level, or threshold", "false negative rate", "false positive rate", "precision")
    rows = table_rows(rare)
    rows.append(("p ≥ 1/2", f"{plain['risk']:.4f}", f"{plain['false_positive_rate']:.4f}", f"{plain['precision']:.3f}"))
    infeasible = "".join(f"\n\nNot feasible: {row['infeasible']}." for row in rare if "infeasible" in row)
    images = sorted(set(rare[0]["calibration_images"]))
    span = f"{images[0]} to {images[-1]}" if len(images) > 1 else f"{images[0]}"
    text = (
        f"False negative rate: missed share of an image's {name} pixels, averaged over the test images with {name}. "
        "The table gives mean ± standard error and the 5th to 95th percentile over the divisions. False positive rate: "
        f"share of the other pixels that is marked. Each calibration half has {span} images with {name}. Last row: "
        f"p ≥ 1/2, not calibrated.{infeasible}"
    )
    set_table = [(row["sets"], f"{row['level']:g}", band(row["risks"]), mean(row["mean_size"], 3)) for row in sets]
    set_headings = ("", "level", "missed labels", "mean size")
    sections = (
        Section(
            f"Missed {name} pixels",
            text,
            (Table("Thresholds by conformal risk control", headings, rows, text=headings[1:2]),),
            (Picture("divisions", f"Missed {name} pixels in each division", figure(rare, name)),),
        ),
        Section(
            "Dilation of the mask",
            f"The predicted mask grows by a radius of {RADII[0]} to {RADII[-1]} pixels, or to the whole image, which "
            f"alone finds {name} in an image without a mask. Columns as above.",
            (Table("Radii by conformal risk control", headings, table_rows(dilations), text=headings[1:2]),),
        ),
        Section(
            "Prediction sets",
            "Each pixel gets a set of classes. Least ambiguous sets contain the classes whose log odds reach a "
            "threshold, shared or per class. Adaptive sets contain the likeliest classes up to a total probability, at "
            "least one. Missed labels: share of an image's pixels whose set lacks the label; with a threshold per "
            "class, the mean over the classes.",
            (Table("Sets of classes", set_headings, set_table, text=set_headings[2:3]),),
        ),
    )
    facts = {
        "data": f"{run.config.data.name}, {split}",
        "checkpoint": f"step {int(run.state.step)} of {run.config.training.steps}, seed {run.config.seed}",
        "divisions": len(rare[0]["calibration_images"]),
        **provenance(),
    }
    return Report(
        f"Guarantees by conformal risk control on {run.config.data.name}", finding(rare, name), sections, facts
    )


def main(argv: list[str]) -> None:
    """Counts every image once, measures all divisions, and writes the report."""
    del argv
    options, workdir = flags.FLAGS, local_path(flags.FLAGS.workdir)
    run = load_run(options.checkpoint)
    class_index, split = find_class(run, options["class"].value), options.split or run.config.data.eval_split
    source = open_split(run.config.data, split)
    counts = histograms_of(run, source, class_index)
    halves, histograms = divisions(len(source), options.divisions, options.seed), counts.classes[:, class_index]
    rare, dilations = (rare_class_rows(each, halves, LEVELS) for each in (histograms, counts.distances))
    sets = set_rows(counts, halves, LEVELS)
    workdir.mkdir(parents=True, exist_ok=True)
    names, data = run.label_set.names, run.config.data.name
    made = report(run, split, names[class_index], rare, dilations, sets, own_threshold(histograms))
    results = {"rare_class": rare, "dilations": dilations, "prediction_sets": sets}
    write_report(made, workdir, f"guarantee_{data}" + f"_{names[class_index]}" * (len(names) > 2), results)
    for section in made.sections:
        show(section.tables[0], rich.console.Console(width=140))


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A run's workdir (its best) or WORKDIR/checkpoints/STEP.")
    flags.DEFINE_string("workdir", "runs/guarantee", "Folder of the report.")
    flags.DEFINE_string("class", None, "Name of the rare class.")
    flags.DEFINE_string("split", None, "Split of the data set that the training did not use. Default: the run's own.")
    flags.DEFINE_integer("divisions", 100, "Number of random divisions of the split.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the divisions.")
    cli.run(main, required=["checkpoint", "class"])
