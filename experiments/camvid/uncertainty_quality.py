"""Quality of a run's uncertainties: `python -m experiments.camvid.uncertainty_quality --checkpoint=RUN --output=…`.

Scores the uncertainties of one trained network on CamVid's validation images in two ways. Errors: are wrong pixels
more uncertain? Area under the risk-coverage curve, and accuracy versus uncertainty. Unknown: are void pixels, which
belong to none of the eleven classes, more uncertain than the others? Average precision, and false positive rate at 95 %
recall; for these the network must not have been trained on void.

Compares 1 - the largest probability and the entropy without dropout; variance, mutual information and entropy of K = 3
and K = 30 dropout heads with channel masks; and the analytic variance, the limit K → ∞.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments.sweep.table_rows import counts_over_split
from segjax import cli, metrics
from segjax.data.labels import VOID
from segjax.data.resize import resize
from segjax.inference import analytic_uncertainty, classify, head_uncertainty
from segjax.reporting import Table, markdown, png, show
from segjax.reporting.run_page import LOG_SPAN, error_histogram, log_of
from segjax.storage import say, to_json, write_outputs
from segjax.trained_run import load_run
from segjax.training.network import preprocessing_of
from segjax.training.provenance import provenance

RATE = 0.2
HEADS = (3, 30)
# The order of the table; JAX sorts the keys of the counts.
NAMES = (
    "1 - max probability",
    "entropy",
    *(f"{kind}, K = {heads}" for heads in HEADS for kind in ("variance", "mutual information", "entropy")),
    "variance, analytic",
)


def uncertainties(config: ConfigDict, model: Any, num_classes: int, key: jax.Array) -> Callable:
    """Builds `maps(state, images) -> (logits, {name: uncertainty [B, h, w]})`, from one pass of the network."""
    preprocessing, model = preprocessing_of(config, num_classes), model.clone(dropout="none", deep_dropout=0)

    def maps(state, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        images = preprocessing.network_input(batch["image"], batch["size"])
        output = model.apply(state.variables, images, train=False)
        linear = state.variables["params"]["head"]["linear"]
        # Without the output for void, as in the prediction.
        kernel, bias = linear["kernel"][:, :num_classes], linear["bias"][:num_classes]
        logits = output.logits[..., :num_classes]
        exact = analytic_uncertainty(output.features, kernel, bias, rate=RATE)
        found = {"1 - max probability": 1 - metrics.max_probability(logits), "entropy": exact.predictive_entropy}
        for heads in HEADS:
            sampled = head_uncertainty(output.features, kernel, bias, key, samples=heads, rate=RATE, mask="channel")
            found |= {
                f"variance, K = {heads}": sampled.variance,
                f"mutual information, K = {heads}": sampled.mutual_information,
                f"entropy, K = {heads}": sampled.predictive_entropy,
            }
        return logits, found | {"variance, analytic": exact.variance}

    return maps


def make_counts(config: ConfigDict, model: Any, num_classes: int, key: jax.Array) -> Callable:
    """Builds `step(state, batch) -> counts`: two histograms per uncertainty, at the resolution of the labels."""
    maps_of = uncertainties(config, model, num_classes, key)

    def step(state, batch: dict[str, jax.Array]) -> dict[str, Any]:
        labels = batch["label"].astype(jnp.int32)
        logits, found = maps_of(state, batch)
        logs = jnp.stack([log_of(values) for values in found.values()], axis=-1)
        maps = jnp.concatenate([logits, logs], -1)
        native = resize(maps, labels.shape[1:], antialias=False, to_sizes=batch["size"])
        predicted = classify(native, num_classes)
        shown = jnp.broadcast_to(batch["where"][:, None, None], labels.shape)
        counts = {}
        for i, name in enumerate(found):
            values = native[..., num_classes + i]
            counts[name] = {
                "errors": error_histogram(values, predicted == labels, where=shown & (labels != VOID)),
                "void": metrics.score_histogram(values, labels == VOID, where=shown),
            }
        return counts

    return step


def scores(counts: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Returns the numbers of the table per uncertainty; the 90 % most certain pixels count as certain."""
    result = {}
    for name in filter(counts.__contains__, NAMES):
        histograms = counts[name]
        curve = metrics.risk_coverage(histograms["errors"])
        at = int(np.searchsorted(curve["coverage"], 0.9))
        versus = metrics.accuracy_vs_uncertainty(histograms["errors"], LOG_SPAN)
        result[name] = {
            "area_under_risk_coverage": float(metrics.area_under_risk_coverage(histograms["errors"])),
            "coverage": float(curve["coverage"][at]),
            "accurate_given_certain": float(versus["accurate_given_certain"][at + 1]),
            "uncertain_given_inaccurate": float(versus["uncertain_given_inaccurate"][at + 1]),
            "void_average_precision": float(metrics.average_precision(histograms["void"])),
            "void_fpr_at_95_tpr": float(metrics.fpr_at_tpr(histograms["void"], 0.95)),
        }
    return result


def table(measured: dict[str, dict[str, float]]) -> Table:
    """Returns one row per uncertainty."""
    columns = {
        "AURC ↓": "area_under_risk_coverage",
        "accurate if certain ↑": "accurate_given_certain",
        "uncertain if wrong ↑": "uncertain_given_inaccurate",
        "void AP ↑": "void_average_precision",
        "void FPR95 ↓": "void_fpr_at_95_tpr",
    }
    rows = [(name, *(f"{values[key]:.4f}" for key in columns.values())) for name, values in measured.items()]
    return Table("Uncertainties of one network; certain: the 90 % most certain pixels", ("", *columns), rows)


def figure(counts: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Draws risk over coverage, detected errors over coverage, and precision over recall of void, per uncertainty."""
    drawn = Figure(figsize=(16, 5), layout="constrained")
    axes = drawn.subplots(1, 3)
    # One colour per measure: solid without dropout or in the limit, dotted for K = 3, dashed for K = 30.
    colours = {"1 - max probability": "black", "entropy": "tab:blue", "variance": "tab:green"}
    for name in NAMES:
        colour = colours.get(name.split(",")[0], "tab:red")
        style = ":" if "K = 3" in name and "K = 30" not in name else "--" if "K = 30" in name else "-"
        histograms = counts[name]
        curve = metrics.risk_coverage(histograms["errors"])
        versus = metrics.accuracy_vs_uncertainty(histograms["errors"], LOG_SPAN)
        width = 2.2 if style == "-" else 1.4
        axes[0].plot(curve["coverage"], curve["risk"], style, c=colour, lw=width, label=name)
        axes[1].plot(curve["coverage"], versus["uncertain_given_inaccurate"][1:], style, c=colour, lw=width)
        known, void = (np.cumsum(row[::-1]) for row in histograms["void"])
        axes[2].plot(void / void[-1], void / np.maximum(known + void, 1), style, c=colour, lw=width)
    for axis, title, x, y in (
        (
            axes[0],
            "Risk and coverage",
            "share of pixels kept, most certain first",
            "share of these that are wrong",
        ),
        (
            axes[1],
            "Detected errors",
            "share of pixels kept, most certain first",
            "share of all errors not kept",
        ),
        (axes[2], "Void detected as unknown", "recall of void", "precision"),
    ):
        axis.set(title=title, xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, None))
        axis.grid(alpha=0.3)
    # The risk of the first few pixels is noise; at full coverage it is the network's error for all measures.
    axes[0].set_ylim(0, 1.5 * curve["risk"][-1] or None)
    axes[0].legend(fontsize=8)
    return drawn


def main(argv: list[str]) -> None:
    """Counts over the split once, then writes the table and the figure."""
    del argv
    options, console = flags.FLAGS, rich.console.Console()
    run = load_run(options.checkpoint)
    num_classes = len(run.label_set.names)
    step = make_counts(run.config, run.model, num_classes, jax.random.key(options.seed))
    counts, images = counts_over_split(run, step)
    measured = scores(counts)
    show(table(measured), console)
    output = Path(options.output)
    files = {
        "md": (markdown(table(measured)) + "\n").encode(),
        "json": to_json({"images": images, "rate": RATE, "uncertainties": measured, "provenance": provenance()}),
        "png": png(figure(counts)),
    }
    files = {output / f"uncertainty_quality.{suffix}": data for suffix, data in files.items()}
    write_outputs(files, overwrite=options.overwrite)
    say(f"Wrote uncertainty_quality.md, .json and .png to {output}/", console)


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A run's workdir (its best) or WORKDIR/checkpoints/STEP.")
    flags.DEFINE_string("output", "runs/uncertainty_quality", "Folder of the table and the figure.")
    flags.DEFINE_integer("seed", 0, "Seed of the dropout masks.")
    cli.define_overwrite()
    cli.run(main, required=["checkpoint"])
