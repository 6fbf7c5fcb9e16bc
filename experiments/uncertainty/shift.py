"""Uncertainty under shift: `python -m experiments.uncertainty.shift --data=camvid --workdir=…`.

The networks of `experiments.uncertainty.methods`, alone and as an ensemble, are measured on corrupted evaluation
images: eight kinds, five severities. Nothing is fitted again: the temperature is that of the clean images. Each kind
and severity is measured once; kill the command and rerun it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import app, flags
from jaxtyping import Array
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments.sweep.results_io import local_path, provenance_facts, publish
from experiments.uncertainty import methods, scores
from experiments.uncertainty.scores import ImageCounts
from segjax import cli, metrics
from segjax.data.augment import example_keys
from segjax.data.corruptions import CORRUPTIONS, corrupt
from segjax.reporting import Picture, Report, Section, Spread, Table, spread
from segjax.reporting.figures import png
from segjax.storage import read_json, write_json
from segjax.training.provenance import provenance

SEVERITIES = (1, 2, 3, 4, 5)
CLEAN = "clean"
# Kind and severity by their name in the results.
CONDITIONS = {f"{CLEAN} 0": (CLEAN, 0)} | {f"{k} {s}": (k, s) for s, k in product(SEVERITIES, CORRUPTIONS)}
RESULT_FORM = {"scores": dict, "provenance": dict}
# Scores whose detection is shown, one per family.
SHOWN = {
    "softmax": "entropy",
    "dropout": "dropout: mutual information",
    "augmentation": "augmentation: entropy",
    "ensemble": "ensemble: entropy",
}
COLUMNS = {
    "mean IoU": "mean_iou",
    "errors: AURC, %": "aurc",
    "ECE, %": "ece",
    "ECE with the clean temperature, %": "ece_scaled",
    "unseen: AUROC": "auroc",
}


def corrupted(config: ConfigDict, kind: str, severity: int, every: int) -> Iterator[tuple]:
    """Yields every so many examples of `methods.examples`, corrupted; severity 0 changes nothing."""
    seed = jax.random.key(0)
    for index, (image, label, unknown) in enumerate(islice(methods.examples(config), 0, None, every)):
        if severity:
            key = example_keys(seed, 0, jnp.array([index]))
            image = np.asarray(_corrupt(image[None], key, kind, severity)[0])
        yield image, label, unknown


_corrupt = jax.jit(
    lambda images, keys, kind, severity: corrupt(images, keys, kind=kind, severity=severity), static_argnums=2
)


def summary(images: Sequence[ImageCounts], temperatures: Mapping[str, metrics.Scaling]) -> dict[str, dict[str, float]]:
    """Returns per family the columns of the tables, in per cent where they say so."""
    pixels, labels = scores.score_pixels(images), np.stack([one.labels for one in images])
    result = {}
    for family in filter(images[0].confusion.__contains__, scores.FAMILIES):
        confusion = sum(np.asarray(one.confusion[family], np.int64) for one in images)
        logits = np.stack([one.pixels[family] for one in images])
        scaled = metrics.scale_logits(logits, temperatures[family])
        entropy = "entropy" if family == "softmax" else f"{family}: entropy"
        result[family] = {
            "mean_iou": float(metrics.segmentation_scores(confusion)["mean_iou"]),
            "aurc": 100 * pixels[entropy]["aurc"],
            "ece": 100 * scores.calibration_scores(logits, labels)["ece"],
            "ece_scaled": 100 * scores.calibration_scores(scaled, labels)["ece"],
            "auroc": pixels[SHOWN[family]]["auroc"],
        }
    return result


def measure(
    data: str, workdir: Path, row: str, seeds: Sequence[int], every: int, console: rich.console.Console
) -> None:
    """Measures the network of one seed, or the ensemble of several, on the conditions that have no result."""
    file = shift_file(workdir, row, seeds, every)
    done = read_json(file, RESULT_FORM, "the scores under shift") if file.exists() else {"scores": {}}
    if done["scores"].keys() >= set(CONDITIONS):
        return
    runs = methods.trained(data, workdir, row, seeds)
    maps = scores.single_network(runs[0], None) if len(runs) == 1 else scores.ensemble(runs)
    count = scores.make_count(partial(_shown, maps), runs[0].label_set.num_classes)
    clean = scores.count_images(count, corrupted(runs[0].config, CLEAN, 0, every))
    labels = np.stack([one.labels for one in clean])
    temperatures = {
        family: metrics.fit_scaling(np.stack([one.pixels[family] for one in clean]), labels)
        for family in clean[0].confusion
    }
    for name, (kind, severity) in CONDITIONS.items():
        if name in done["scores"]:
            continue
        images = clean if not severity else scores.count_images(count, corrupted(runs[0].config, kind, severity, every))
        done["scores"][name] = summary(images, temperatures)
        write_json(file, done | {"provenance": provenance()})
        console.print(f"{file.stem}: {name}", highlight=False)


def _shown(maps: Callable, image: Array) -> dict[str, scores.Maps]:
    """Returns `maps(image)` with the scores of `summary` only."""
    wanted = {"entropy", *SHOWN.values(), *(f"{family}: entropy" for family in scores.FAMILIES)}
    return {
        family: scores.Maps(logits, {name: values for name, values in found.items() if name in wanted})
        for family, (logits, found) in maps(image).items()
    }


def shift_file(workdir: Path, row: str, seeds: Sequence[int], every: int) -> Path:
    """Returns the file of the scores under shift of a row's network, or of its ensemble.

    >>> shift_file(Path("runs"), methods.ALL, [0], 2).name, shift_file(Path("runs"), methods.ALL, range(5), 1).name
    ('shift_all_classes,seed=0,every=2.json', 'shift_all_classes,ensemble_of_5,every=1.json')
    """
    which = f"seed={seeds[0]}" if len(seeds) == 1 else f"ensemble_of_{len(seeds)}"
    return workdir / f"shift_{row.replace(' ', '_')},{which},every={every}.json"


def measured(workdir: Path, row: str, seeds: int, members: int, every: int) -> list[dict[str, Any]]:
    """Returns the results of a row whose conditions have all been measured: of its first seeds, and of its ensemble."""
    subjects = [[seed] for seed in range(seeds)] + [range(members)] * (members > 1)
    files = [shift_file(workdir, row, subject, every) for subject in subjects]
    found = [read_json(file, RESULT_FORM, "the scores under shift") for file in files if file.exists()]
    return [one for one in found if one["scores"].keys() >= set(CONDITIONS)]


def combined(known: Sequence[dict[str, Any]], unseen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the values of each column over the seeds, by condition and family.

    The AUROC is that of the networks with `unseen` classes, all other columns are those of networks of all classes.
    """
    result: dict[str, Any] = {}
    for results, is_unseen in ((known, False), (unseen, True)):
        for name, families in (item for one in results for item in one["scores"].items()):
            for family, values in families.items():
                columns = result.setdefault(name, {}).setdefault(family, {})
                for key in values:
                    if (key == "auroc") == is_unseen:
                        columns.setdefault(key, []).append(values[key])
    return result


def families_of(found: Mapping[str, Any]) -> list[str]:
    """Returns the families that were measured, in the order of `scores.FAMILIES`."""
    return [family for family in scores.FAMILIES if any(family in one for one in found.values())]


def over_kinds(found: Mapping[str, Any], severity: int, family: str, key: str) -> Spread:
    """Returns the mean of a column over the kinds, for each seed."""
    names = [f"{kind} {severity}" for kind in (CORRUPTIONS if severity else (CLEAN,))]
    values = [values_of(found, name, family, key) for name in names]
    return spread([float(np.mean(one)) for one in zip(*values, strict=True)])


def values_of(found: Mapping[str, Any], name: str, family: str, key: str) -> list[float]:
    """Returns the values of a column over the seeds for a condition, none if it was not measured."""
    return found.get(name, {}).get(family, {}).get(key, [])


def severity_table(found: Mapping[str, Any]) -> Table:
    """Returns one row per family and severity, means over the kinds."""
    rows = [
        (family, severity or CLEAN, *(over_kinds(found, severity, family, key) for key in COLUMNS.values()))
        for family in families_of(found)
        for severity in (0, *SEVERITIES)
    ]
    return Table("Means over the eight kinds", ("family", "severity", *COLUMNS), rows, text=("severity",))


def kind_table(found: Mapping[str, Any], family: str, severity: int) -> Table:
    """Returns one row per kind, for one family at one severity."""
    names = {CLEAN: f"{CLEAN} 0"} | {kind: f"{kind} {severity}" for kind in CORRUPTIONS}
    rows = [
        (kind.replace("_", " "), *(spread(values_of(found, name, family, key)) for key in COLUMNS.values()))
        for kind, name in names.items()
    ]
    return Table(f"{family}, severity {severity}", ("kind", *COLUMNS), rows)


def figure(found: Mapping[str, Any]) -> Figure:
    """Draws each column over the severity, one line per family."""
    drawn, severities = Figure(figsize=(15, 3.2), layout="constrained"), (0, *SEVERITIES)
    for axes, (title, key) in zip(drawn.subplots(1, len(COLUMNS)), COLUMNS.items(), strict=True):
        for family in families_of(found):
            axes.plot(severities, [over_kinds(found, s, family, key).mean for s in severities], ".-", label=family)
        axes.set(title=title, xlabel="severity", xticks=severities)
        axes.grid(alpha=0.25)
    drawn.axes[0].legend(fontsize=8)
    return drawn


def finding(found: Mapping[str, Any]) -> str:
    """Returns the result in a few sentences."""
    families = families_of(found)
    clean, worst = (
        {family: {key: over_kinds(found, s, family, key).mean for key in COLUMNS.values()} for family in families}
        for s in (0, SEVERITIES[-1])
    )
    least = min(families, key=lambda family: np.nan_to_num(worst[family]["ece_scaled"], nan=np.inf))
    return (
        f"From clean images to severity 5 the mean IoU of one pass falls from {clean['softmax']['mean_iou']:.3f} to "
        f"{worst['softmax']['mean_iou']:.3f}, and its ECE with the clean temperature rises from "
        f"{clean['softmax']['ece_scaled']:.1f} to {worst['softmax']['ece_scaled']:.1f} %: a temperature does not hold "
        f"under shift. The smallest ECE at severity 5 has the family {least}, {worst[least]['ece_scaled']:.1f} %."
    )


def report(found: Mapping[str, Any], data: str, facts: dict[str, Any]) -> Report:
    """Returns the report of everything that was measured."""
    text = (
        "Mean IoU, AURC of the entropy and the calibration error are those of networks of all classes; the AUROC is "
        "that of networks that were not taught the unseen classes, by the entropy, or by the mutual information for "
        "dropout. The temperature was fitted to the clean images."
    )
    sections = (
        Section(
            "Severity", text, (severity_table(found),), (Picture("severity", "Means over kinds", png(figure(found))),)
        ),
        Section("Kinds", "", tuple(kind_table(found, family, 3) for family in families_of(found))),
    )
    return Report(f"Uncertainty under shift on {data}", finding(found), sections, facts)


def main(argv: list[str]) -> None:
    """Measures what is missing, then prints and writes the report."""
    del argv
    options, console = flags.FLAGS, rich.console.Console(width=180)
    workdir, seeds, members = local_path(options.workdir) / options.data, options.seeds, options.members
    rows = methods.ALL, methods.SOME
    if not options.only_table:
        for row, subject in product(rows, [[seed] for seed in range(seeds)] + [range(members)] * (members > 1)):
            measure(options.data, workdir, row, subject, options.every, console)
    results = [measured(workdir, row, seeds, members, options.every) for row in rows]
    found = combined(*results)
    if "softmax" not in families_of(found):
        raise app.UsageError(f"--only_table: {workdir} has no complete results for these options; remove --only_table")
    facts = {
        "data": f"{options.data}, one evaluation image in {options.every}",
        "networks": "those of experiments.uncertainty.methods: "
        + (f"seeds 0 to {seeds - 1}" if seeds > 1 else "seed 0")
        + f", and an ensemble of {members}" * (members > 1),
        **provenance_facts([one for row in results for one in row]),
    }
    publish(report(found, options.data, facts), workdir, f"uncertainty_shift_{options.data}", found, console)


if __name__ == "__main__":
    flags.DEFINE_enum("data", methods.DATA[0], methods.DATA, "The data set.")
    flags.DEFINE_string("workdir", "runs/uncertainty", "The --workdir of experiments.uncertainty.methods.")
    flags.DEFINE_integer("seeds", 3, "Number of networks that are measured alone.", 1, methods.MEMBERS)
    flags.DEFINE_integer("members", methods.MEMBERS, "Members of the ensemble; 1: no ensemble.", 1, methods.MEMBERS)
    flags.DEFINE_integer("every", 1, "Measure one evaluation image in so many.", lower_bound=1)
    flags.DEFINE_bool("only_table", False, "Measure nothing; print the report of what was measured.")
    cli.run(main, required=[])
