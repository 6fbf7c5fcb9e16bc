"""A dense CRF after a trained network: `python -m experiments.camvid.crf_table --checkpoint=RUN --workdir=…`.

Scores the network's probabilities at the images' native size, before and after mean field with several kernels, on the
evaluation split: mean IoU, boundary F1 at `TOLERANCE` pixels, pixel accuracy, and the time of the CRF relative to a
forward pass without dropout.

All settings were fixed before any of them was scored. Weights and widths are those of Krähenbühl and Koltun's program
(w₁ = 10, w₂ = 3, θ_β = 13, θ_γ = 3), except θ_α, which is the radius of the window. The other settings omit one kernel,
halve the weights, or use fewer iterations or a wider window.

The counts of each setting are stored in the workdir; a rerun computes only the missing settings.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import flags

from experiments.camvid.crf import dense_crf
from experiments.sweep.results_io import local_path
from experiments.sweep.table_rows import segmentation_columns
from segjax import cli, metrics
from segjax.data.labels import VOID
from segjax.inference import predict_logits, probabilities
from segjax.reporting import Report, Section, Table, show, write_report
from segjax.storage import read_json, to_json, write_outputs
from segjax.trained_run import TrainedRun, load_run
from segjax.training import open_split
from segjax.training.provenance import provenance

TOLERANCE = 3.0  # of boundary F1, in pixels, as in the uncertainty ladder
THETA_BETA, THETA_GAMMA = 13.0, 3.0


class Setting(NamedTuple):
    """One row: arguments of `dense_crf`, with θ_α = radius; radius 0 is the network alone."""

    name: str
    radius: int = 0
    iterations: int = 5
    appearance: float = 0.0
    smoothness: float = 0.0

    def refined(self, p: jax.Array, images: jax.Array) -> jax.Array:
        """Returns the probabilities after the CRF."""
        if not self.radius:
            return p
        return dense_crf(
            p,
            images,
            radius=self.radius,
            iterations=self.iterations,
            appearance_weight=self.appearance,
            smoothness_weight=self.smoothness,
            theta_alpha=float(self.radius),
            theta_beta=THETA_BETA,
            theta_gamma=THETA_GAMMA,
        )


PLAIN = Setting("network alone")
SETTINGS = (
    PLAIN,
    Setting("both kernels", 3, 5, 10, 3),
    Setting("smoothness alone", 3, 5, 0, 3),
    Setting("appearance alone", 3, 5, 10, 0),
    Setting("half the weights", 3, 5, 5, 1.5),
    Setting("2 iterations", 3, 2, 10, 3),
    Setting("a wider window", 5, 5, 10, 3),
)


def counter(run: TrainedRun) -> tuple[Callable, Callable]:
    """Returns `network(image) -> p [1, H, W, C]` for a uint8 image `[1, H, W, channels]`, and `count(p, label)`."""
    classes = run.label_set.num_classes

    @jax.jit
    def network(state, image):
        sizes = jnp.array([image.shape[1:3]], jnp.int32)
        return probabilities(predict_logits(run.model, state.variables, image, sizes, run.preprocessing), classes)

    @jax.jit
    def count(p, label):
        where, predicted = label != VOID, jnp.argmax(p, axis=-1)
        return {
            "confusion": metrics.confusion_matrix(label, predicted, classes, where=where),
            "boundary": metrics.boundary_counts(label, predicted, classes, tolerance=TOLERANCE, where=where),
        }

    return lambda image: network(run.state, image), count


def measure(run: TrainedRun, source: Any, indices: Sequence[int], setting: Setting) -> dict[str, Any]:
    """Returns the summed counts of a setting, and the median seconds of network and CRF, ready for JSON.

    Both are timed in turn on every image, so that other load on the machine affects both. The first image, which
    compiles, is not counted if there are more.
    """
    network, count = counter(run)
    totals, taken = None, []
    for index in indices:
        example = source[index]
        image, label = jnp.asarray(example["image"][None]), jnp.asarray(example["label"][None], jnp.int32)
        begun = time.perf_counter()
        p = jax.block_until_ready(network(image))
        between = time.perf_counter()
        p = jax.block_until_ready(setting.refined(p, image))
        taken.append((between - begun, time.perf_counter() - between))
        counts = jax.tree.map(lambda one: np.asarray(one, np.int64), count(p, label))
        totals = counts if totals is None else jax.tree.map(np.add, totals, counts)
    seconds = [statistics.median(times) for times in zip(*(taken[1:] or taken), strict=True)]
    return {
        "setting": setting._asdict(),
        "images": len(indices),
        **{name: counts.tolist() for name, counts in totals.items()},
        "seconds": {"network": seconds[0], "crf": seconds[1]},
        "provenance": provenance(),
    }


def stored(run: TrainedRun, source: Any, indices: Sequence[int], setting: Setting, workdir: Path) -> dict[str, Any]:
    """Returns the result of `measure`, read from the file of an earlier call with the same checkpoint and images."""
    file = workdir / f"{setting.name.replace(' ', '_')}.json"
    asked = {"checkpoint": str(run.workdir), "step": int(run.state.step), "indices": list(indices)}
    asked["setting"] = setting._asdict()
    found = read_json(file, dict, "the result of a CRF", "Remove the file") if file.exists() else {}
    if found.get("asked") != asked:
        found = {"asked": asked, **measure(run, source, indices, setting)}
        write_outputs({file: to_json(found)})
    return found


def scored(result: dict[str, Any]) -> dict[str, float]:
    """Returns the columns of one setting."""
    columns = segmentation_columns(np.array(result["confusion"]), np.array(result["boundary"]))
    return {**columns, "crf_over_network": result["seconds"]["crf"] / result["seconds"]["network"]}


def report(run: TrainedRun, results: list[dict[str, Any]]) -> Report:
    """Returns the report: the table, and IoU per class of each setting."""
    rows, per_class = [], []
    for one in results:
        setting, score = Setting(**one["setting"]), scored(one)
        kernels = ("–",) * 4
        if setting.radius:
            kernels = (f"{setting.appearance:g}", f"{setting.smoothness:g}", setting.radius, setting.iterations)
        scores = (score[key] for key in ("mean_iou", "boundary_f1", "pixel_accuracy"))
        ratio = f"{score['crf_over_network']:.1f}" if setting.radius else "–"
        rows.append((setting.name, *kernels, *scores, ratio))
        per_class.append((setting.name, *score["iou_per_class"]))
    best = ("mean IoU", "boundary F1", "pixel accuracy")
    columns = ("", "w₁", "w₂", "radius = θ_α", "iterations", *best, "time ÷ forward pass")
    text = (
        f"{results[0]['images']} images of {run.config.data.name}, {run.config.data.eval_split}, at their native size; "
        f"the network's input is {run.config.data.size[0]}×{run.config.data.size[1]}. Boundary F1 is that of the data "
        f"set, at {TOLERANCE:g} pixels; θ_β = {THETA_BETA:g}, θ_γ = {THETA_GAMMA:g}. All settings were fixed first."
    )
    sections = (
        Section("Scores", text, (Table("Before and after the CRF", columns, rows, highest=best),)),
        Section("IoU by class", "", (Table("IoU", ("", *run.label_set.names), per_class),)),
    )
    facts = {
        "checkpoint": f"step {int(run.state.step)} of {run.config.training.steps}, seed {run.config.seed}",
        "network": f"{run.config.model.name} of width {run.config.model.width}",
        **results[0]["provenance"],
    }
    question = "Scores of one trained network, before and after a dense CRF in a window around each pixel."
    return Report("Does a dense CRF help?", question, sections, facts)


def main(argv: list[str]) -> None:
    """Measures the missing settings, writes the report after each, and prints it."""
    del argv
    options, workdir = flags.FLAGS, local_path(flags.FLAGS.workdir)
    run = load_run(options.checkpoint)
    source = open_split(run.config.data, run.config.data.eval_split)
    workdir.mkdir(parents=True, exist_ok=True)
    results = []
    for setting in SETTINGS:
        results.append(stored(run, source, range(0, len(source), options.every), setting, workdir))
        data = {one["setting"]["name"]: {**one, "scores": scored(one)} for one in results}
        made = report(run, results)
        write_report(made, workdir, f"crf_{run.config.data.name}", data)
    for section in made.sections:
        show(section.tables[0], rich.console.Console(width=140))


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A run's workdir (its best) or WORKDIR/checkpoints/STEP.")
    flags.DEFINE_string("workdir", "runs/crf_table", "Folder of the counts of each setting and the report.")
    flags.DEFINE_integer("every", 1, "Score only every N-th image of the split.", lower_bound=1)
    cli.run(main, required=["checkpoint"])
