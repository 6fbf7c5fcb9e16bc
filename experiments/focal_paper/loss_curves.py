"""Distribution of focal loss, figure 4: `python -m experiments.focal_paper.loss_curves --preset=cpu`.

Figures 1, 5 and 6 of the paper show the losses and their gradients. Figure 4 shows, for the pixels of a network or the
anchors of a detector trained with γ = 2, how the loss is distributed over them under several γ.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

from experiments.sweep.paper_report import PaperReport, SweepResults, main_of
from experiments.sweep.parallel_cells import RESULT_FILE
from segjax import losses
from segjax.inference import predict_logits
from segjax.reporting import Picture, Section, Table, png, spread
from segjax.reporting.figures import COLORS
from segjax.storage import write_json
from segjax.trained_run import TrainedRun, load_run
from segjax.training import open_split
from segjax.training.checkpoint import FOLDER
from segjax.training.detection import make_anchor_targets

GAMMAS = (0.0, 0.5, 1.0, 2.0)
HARDEST = 0.2
# γ of FL, (γ, β) of FL*, as in the paper's figures.
FOCAL, STAR = (0.0, 0.5, 1.0, 2.0, 5.0), ((2.0, 1.0), (4.0, 0.0))


class Logits(NamedTuple):
    """The logits of a network on labelled pixels, or of a detector on the anchors that are not ignored."""

    rare: np.ndarray
    background: np.ndarray


def held_by_hardest(loss: np.ndarray, share: float = HARDEST) -> float:
    """Returns the part of the summed loss that the `share` of pixels with the largest loss has; NaN if all are 0."""
    ordered = np.sort(loss.astype(np.float64))[::-1]
    total = ordered.sum()
    return float(ordered[: round(share * len(ordered))].sum() / total) if total > 0 else float("nan")


def cumulative(loss: np.ndarray, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Returns the CDF of the normalised loss: shares of the pixels, easiest first, and their shares of the loss."""
    ordered = np.concatenate([[0.0], np.cumsum(np.sort(loss.astype(np.float64)))])
    at = np.linspace(0, len(loss), points).round().astype(int)
    return at / len(loss), ordered[at] / ordered[-1]


def focal(logits: np.ndarray, rare: bool, gamma: float) -> np.ndarray:
    """Returns the focal loss of pixels of one class."""
    targets = np.full(logits.shape, int(rare), np.int32)
    return np.asarray(losses.sigmoid_focal_loss(logits.astype(np.float32), targets, gamma=gamma))


def logits_of(folder: Path) -> Logits:
    """Returns the logits of a cell's network on its evaluation split, those of pixels at native resolution."""
    run = load_run(folder / FOLDER / "latest", detectors=True)
    return _anchor_logits(run) if run.config.data.box_classes else _pixel_logits(run)


def _pixel_logits(run: TrainedRun) -> Logits:
    predict = jax.jit(partial(predict_logits, run.model, preprocessing=run.preprocessing))
    source, rare, background = open_split(run.config.data, run.config.data.eval_split), [], []
    for i in range(len(source)):
        label = source[i]["label"]
        sizes = np.array([label.shape], np.int32)
        logits = np.asarray(predict(run.state.variables, source[i]["image"][None], sizes))[0, ..., 0]
        rare.append(logits[label == 1])
        background.append(logits[label == 0])
    return Logits(np.concatenate(rare), np.concatenate(background))


def _anchor_logits(run: TrainedRun) -> Logits:
    config, preprocessing = run.config, run.detector().preprocessing
    source, targets_of = open_split(config.data, config.data.eval_split), make_anchor_targets(config)

    @jax.jit
    def of_image(image: Array, ids: Array, size: Array) -> tuple[Array, Array, Array]:
        images = preprocessing.network_input(image[None], size[None])
        logits = run.model.apply(run.state.variables, images, train=False).logits
        targets = targets_of(ids[None])
        return logits, targets.classes, jnp.broadcast_to(targets.where[..., None], logits.shape)

    rare, background = [], []
    for i in range(len(source)):
        example = source[i]
        size = np.array(example["label"].shape, np.int32)
        logits, classes, where = jax.device_get(of_image(example["image"], example["label"], size))
        rare.append(logits[where & (classes == 1)])
        background.append(logits[where & (classes == 0)])
    return Logits(np.concatenate(rare), np.concatenate(background))


def shapes() -> Figure:
    """Draws figures 1, 5 and 6: loss over p_t, loss over x_t, and |gradient| over x_t, of a positive."""
    drawn = Figure(figsize=(15, 4.4), layout="constrained", dpi=100)
    by_probability, by_logit, by_gradient = drawn.subplots(1, 3)
    x = jnp.linspace(-6.0, 6.0, 400)
    one = jnp.ones(x.shape, jnp.int32)
    lines = {}
    for gamma in FOCAL:
        name = f"FL, γ = {gamma:g}" if gamma else "CE"
        lines[name] = partial(losses.sigmoid_focal_loss, targets=one, gamma=gamma)
    for gamma, beta in STAR:
        name = f"FL*, γ = {gamma:g}, β = {beta:g}"
        lines[name] = partial(losses.sigmoid_focal_star_loss, targets=one, gamma=gamma, beta=beta)
    for color, (name, loss) in zip(COLORS, lines.items(), strict=False):
        look = {"color": color, "lw": 1.8, "label": name, "linestyle": "--" if name.startswith("FL*") else "-"}
        if not name.startswith("FL*"):
            by_probability.plot(jax.nn.sigmoid(x), loss(x), **look)
        by_logit.plot(x, loss(x), **look)
        by_gradient.plot(x, abs(jax.grad(lambda z, loss=loss: loss(z).sum())(x)), **look)
    by_probability.set(title="Figure 1", xlabel="p_t", ylabel="loss", ylim=(0, 5), xlim=(0, 1))
    by_logit.set(title="Figure 5", xlabel="x_t", ylabel="loss", ylim=(0, 5))
    by_gradient.set(title="Figure 6", xlabel="x_t", ylabel="|d loss / d x|")
    for axes in (by_probability, by_logit, by_gradient):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    return drawn


def distributions(found: Logits, unit: str) -> Figure:
    """Draws figure 4: the CDF of the normalised loss of each class over pixels or anchors, one line per γ."""
    drawn = Figure(figsize=(11, 4.4), layout="constrained", dpi=110)
    for axes, title, logits in zip(drawn.subplots(1, 2), ("Rare class", "Background"), found, strict=True):
        for color, gamma in zip(COLORS, GAMMAS, strict=False):
            loss = focal(logits, title == "Rare class", gamma)
            axes.plot(*cumulative(loss), color=color, lw=1.8, label=f"γ = {gamma:g}")
        axes.axvline(1 - HARDEST, color="0.6", lw=1, ls=":")
        axes.set(title=title, xlabel=f"share of the {unit}, easiest first", ylabel="share of the loss", xlim=(0, 1))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=9)
    return drawn


def sections(results: SweepResults) -> tuple[Section, ...]:
    """Returns the losses and, if a network was trained, the distribution of the loss over its pixels."""
    caption = "Loss over p_t, loss over x_t, and magnitude of the gradient over x_t."
    form = Section("The losses", "x_t is the logit of a positive, and the negated logit of a negative.")
    form = form._replace(pictures=(Picture("shapes", caption, png(shapes())),))
    shares = {cell.name: shares_of(cell.name, results) for cell in results.cells}
    known = [found for found in shares.values() if found]
    if not known:
        return (form,)
    rows = [
        (f"{gamma:g}", *(spread([one["held"][kind][f"{gamma:g}"] for one in known]) for kind in Logits._fields))
        for gamma in GAMMAS
    ]
    unit = "anchors" if results.on_boxes else "pixels"
    title = f"Share of the loss from the hardest {100 * HARDEST:.0f} % of the {unit}"
    table = Table(title, ("γ", "rare class", "background"), rows)
    here = [results.workdir / name for name, found in shares.items() if found]
    here = [folder for folder in here if (folder / FOLDER).exists()]
    caption = "The CDF of the normalised loss, first seed."
    pictures = (Picture("cdf", caption, png(distributions(logits_of(here[0]), unit))),) if here else ()
    text = (
        f"One network per seed, trained with γ = 2 and α = 0.25; {known[0]['pixels']['rare']} {unit} of the rare class "
        f"and {known[0]['pixels']['background']} of the background. In the paper, the hardest 20 % of the positives "
        "have about half of their loss for any γ, and a few negatives have nearly all of theirs at γ = 2."
    )
    return form, Section(f"Figure 4: distribution of the loss over {unit}", text, (table,), pictures)


def shares_of(name: str, results: SweepResults) -> dict[str, Any] | None:
    """Returns the number of pixels or anchors and the shares per class and γ of a finished cell; None if not trained.

    They are stored in the cell's result, so that reports which import the result have them too.
    """
    result = results.by_cell.get(name, {})
    if result.get("status") != "done":
        return None
    if "hardest" not in result and (results.workdir / name / FOLDER).exists():
        found = logits_of(results.workdir / name)._asdict()
        held = {
            kind: {f"{gamma:g}": held_by_hardest(focal(logits, kind == "rare", gamma)) for gamma in GAMMAS}
            for kind, logits in found.items()
        }
        result["hardest"] = {"pixels": {kind: len(logits) for kind, logits in found.items()}, "held": held}
        write_json(results.workdir / name / RESULT_FILE, result)
    return result.get("hardest")


PAPER_REPORT = PaperReport(
    "loss_curves",
    "Focal loss and its distribution",
    "Lin et al. 2017 (arXiv 1708.02002), figures 1, 4, 5 and 6.",
    sections,
)

if __name__ == "__main__":
    main_of(PAPER_REPORT)
