"""The background trap and ways out of it: `python -m experiments.focal_paper.background_trap --workdir=…`.

Trains one network per loss on road_debris (`--data=crackforest` for cracks): cross entropy, plain and with the rare
class weighted; focal loss with and without α; and two of them with a prior bias. Reports accuracy, recall and average
precision of the rare class through training, and the gradient budget: the shares of the summed |∂loss/∂logit| that
come from easy background (p_t > 0.9), from hard background and from the rare class.

Each run has a folder in the workdir; a killed run resumes, and a finished one is read. Writes one report per data set.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich.console
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments.sweep import grid
from experiments.sweep.results_io import local_path, publish
from segjax import cli
from segjax.configs import crackforest_unet, rare_class
from segjax.reporting import Picture, Report, Section, Table, cell, png, spread
from segjax.storage import say
from segjax.training import open_split, read_log
from segjax.training.provenance import provenance

BALANCED = "1 - f"
_QUESTION = (
    "Accuracy is high, yet nothing is found. Why, and which loss finds the rare class? Six losses train the same "
    "network on the same batches. The gradient budget shows which pixels the summed |∂loss/∂logit| comes from."
)


class Loss(NamedTuple):
    """One column of the figure: a loss with its γ and α, and the prior π of the head's bias.

    α = `BALANCED` stands for 1 - f, with f the rare class' share of the training pixels. Both classes then have the
    same total weight, because α f = (1 - α)(1 - f).
    """

    name: str
    loss: str
    gamma: float = 0.0
    alpha: float | str | None = None
    prior: float | None = None


LOSSES = (
    Loss("CE", "sigmoid_cross_entropy"),
    Loss("weighted CE", "sigmoid_cross_entropy", alpha=BALANCED),
    Loss("focal", "sigmoid_focal", gamma=2.0),
    Loss("focal with α", "sigmoid_focal", gamma=2.0, alpha=0.75),
    Loss("CE with prior", "sigmoid_cross_entropy", prior=0.01),
    Loss("focal with α and prior", "sigmoid_focal", gamma=2.0, alpha=0.75, prior=0.01),
)
SHARES = ("easy background", "hard background", "rare class")
CURVES = ("pixel accuracy", "recall", "IoU", "average precision")
MOMENTS = ("first step", "at 10 %", "half way", "end")
SUFFIXES = {"budget": "", "budget_pixels": ", pixels"}
STEPS = ("steps in the trap", "recall > 0.1 from", "recall > 0.5 from")
COLUMNS = ("loss", "γ", "α", "π", *STEPS, *CURVES)


def _road_debris() -> ConfigDict:
    config = rare_class.get_config("cpu", "road_debris")
    config.model.prior, config.model.head_stddev = (), None
    config.training.steps = 600
    return config


def _crackforest() -> ConfigDict:
    config = crackforest_unet.get_config()
    # Smaller than the config, because six losses are trained.
    config.data.size, config.data.workers = (192, 288), 0
    config.model.width, config.model.depth, config.model.padding = 8, 3, "zeros"
    return config


DATA: dict[str, Callable[[], ConfigDict]] = {"road_debris": _road_debris, "crackforest": _crackforest}


def make_cells(
    data: str, losses: Sequence[Loss], seeds: Sequence[int], *, rare_share: float, steps: int | None = None
) -> list[grid.Cell]:
    """Returns one cell per loss and seed; the cells differ only in loss, γ, α, prior bias and seed."""
    base = DATA[data]()
    base.training.steps = steps or base.training.steps
    base.training.evaluate_every = base.training.checkpoint_every = min(20, base.training.steps)
    base.training.log_every, base.training.gradient_budget = 1, True
    rows = {
        loss.name: {
            "objective.loss": loss.loss,
            "objective.gamma": loss.gamma,
            "objective.alpha": 1 - rare_share if loss.alpha == BALANCED else loss.alpha,
        }
        | ({} if loss.prior is None else {"model.prior": (loss.prior,), "model.head_stddev": 0.01})
        for loss in losses
    }
    return grid.make_cells(base, rows, seeds)


def rare_pixels(config: ConfigDict) -> float:
    """Returns the share of class 1 among the labelled pixels of the training split."""
    source = open_split(config.data, config.data.train_split)
    counts = sum(np.bincount(source[i]["label"].ravel(), minlength=256) for i in range(len(source)))
    return float(counts[1] / counts[:2].sum())


def history(folder: Path, classes: Sequence[str]) -> tuple[dict[str, list], dict[str, list]]:
    """Returns a run's `CURVES` by evaluated step, and the `SHARES` of gradient and pixels by training step."""
    background, rare = classes
    rows = read_log(folder)
    evaluated = [row for row in rows if "eval/pixel_accuracy" in row]
    keys = ("eval/pixel_accuracy", f"eval/recall/{rare}", f"eval/iou/{rare}", "eval/average_precision")
    curves = {name: [row[key] for row in evaluated] for name, key in zip(CURVES, keys, strict=True)}
    logged = [row for row in rows if f"budget/{rare}/easy" in row]
    budget = {"step": [row["step"] for row in logged]}
    for prefix, suffix in SUFFIXES.items():
        shares = (
            [row[f"{prefix}/{background}/easy"] for row in logged],
            [row[f"{prefix}/{background}/hard"] for row in logged],
            [row[f"{prefix}/{rare}/easy"] + row[f"{prefix}/{rare}/hard"] for row in logged],
        )
        budget |= {f"{share}{suffix}": values for share, values in zip(SHARES, shares, strict=True)}
    return {"step": [row["step"] for row in evaluated], **curves}, budget


def trapped(curves: dict[str, list], rare_share: float) -> list[bool]:
    """Returns, for each evaluation, whether the run was in the trap.

    That is: recall of the rare class below 0.1, and accuracy above that of an all-background prediction minus 0.01.
    """
    both = zip(curves["recall"], curves["pixel accuracy"], strict=True)
    return [recall < 0.1 and accuracy > 1 - rare_share - 0.01 for recall, accuracy in both]


def lasting(steps: Sequence[int], values: Sequence[float], threshold: float) -> int | None:
    """Returns the first of `steps` from which on all values exceed the threshold; None if the last one does not.

    The first value above it would often be that of the untrained network, which labels half of the pixels as rare.
    """
    start = next((i for i in range(len(values), 0, -1) if not values[i - 1] > threshold), 0)
    return steps[start] if start < len(steps) else None


def moments(budget: dict[str, list]) -> dict[str, dict[str, float]]:
    """Returns the budget at `MOMENTS`.

    All but the first are means, because batches differ in their share of the rare class: over the steps from 8 to
    12 %, from 48 to 52 %, and from 95 % on.
    """
    step = np.array(budget["step"])
    tenth, half = (abs(step - part * step[-1]) <= max(1, 0.02 * step[-1]) for part in (0.1, 0.5))
    at = (step == step[0], tenth, half, step > 0.95 * step[-1])
    return {
        moment: {key: _mean(np.array(values)[chosen]) for key, values in budget.items() if key != "step"}
        for moment, chosen in zip(MOMENTS, at, strict=True)
    }


def _mean(values: np.ndarray) -> float:
    # The shares of a vanished gradient are NaN.
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def coarse(budget: dict[str, list], intervals: int = 60) -> dict[str, list]:
    """Returns the budget's means over at most `intervals` equal intervals of the steps, for picture and JSON."""
    groups = np.array_split(np.arange(len(budget["step"])), min(intervals, len(budget["step"])))
    return {key: [round(_mean(np.array(v, float)[group]), 6) for group in groups] for key, v in budget.items()}


def measured(run: grid.Cell, workdir: Path) -> dict[str, Any]:
    """Returns everything that is reported of one finished run.

    Raises:
      RuntimeError: the run diverged.
    """
    result, config = grid.result_of(run, workdir), run.config
    if result["status"] != "done":
        raise RuntimeError(f"{workdir / run.name} diverged at step {result['diverged_at']}; expected a finite loss")
    scores = result["scores"]
    curves, budget = history(workdir / run.name, scores["classes"])
    pixels = np.sum(scores["confusion"], axis=1)
    steps = (
        config.training.evaluate_every * sum(trapped(curves, float(pixels[1] / pixels.sum()))),
        lasting(curves["step"], curves["recall"], 0.1),
        lasting(curves["step"], curves["recall"], 0.5),
    )
    return {
        "seed": config.seed,
        "α": config.objective.alpha,
        **dict(zip(STEPS, steps, strict=True)),
        **{name: values[-1] for name, values in curves.items() if name != "step"},
        **moments(budget),
        "seconds": result["provenance"]["wall_seconds"],
        "seconds_from_step": result["provenance"]["wall_seconds_from_step"],
        "curves": {key: [round(value, 6) for value in values] for key, values in curves.items()},
        "budget": coarse(budget),
    }


def scores_table(title: str, results: dict[str, list[dict[str, Any]]]) -> Table:
    """Returns one row per loss: steps of each seed, and mean ± standard deviation of the last scores over the seeds."""
    rows = []
    for loss in (loss for loss in LOSSES if loss.name in results):
        runs = results[loss.name]
        numbers = [None if v is None else f"{v:.3g}" for v in (loss.gamma, runs[0]["α"], loss.prior)]
        steps = [", ".join(cell(run[column]) for run in runs) for column in STEPS]
        rows.append((loss.name, *numbers, *steps, *(spread([run[curve] for run in runs]) for curve in CURVES)))
    return Table(title, COLUMNS, rows, highest=CURVES[2:])


def budget_table(results: dict[str, list[dict[str, Any]]]) -> Table:
    """Returns one row per loss: `SHARES` of gradient and pixels at `MOMENTS`, in per cent, mean over the seeds."""

    def shares(runs: list[dict[str, Any]], moment: str, suffix: str) -> str:
        return " / ".join(f"{100 * np.mean([run[moment][share + suffix] for run in runs]):.1f}" for share in SHARES)

    columns = [(moment, suffix) for moment in MOMENTS for suffix in SUFFIXES.values()]
    rows = [(name, *(shares(runs, *column) for column in columns)) for name, runs in results.items()]
    title = f"shares of the gradient and of the pixels in %: {' / '.join(SHARES)}"
    return Table(title, ("loss", *map("".join, columns)), rows)


def figure(title: str, results: dict[str, list[dict[str, Any]]]) -> Figure:
    """Draws one column per loss: scores through training (one line per seed), and the first seed's gradient budget."""
    drawn = Figure(figsize=(3 * len(results) + 1.5, 5.6), layout="constrained", dpi=110)
    axes = drawn.subplots(2, len(results), sharex=True, sharey=True, squeeze=False)
    styles = {"pixel accuracy": ("0.45", "--"), "recall": ("#c1121f", "-"), "average precision": ("#1d5fa8", "-")}
    for (name, runs), (above, below) in zip(results.items(), axes.T, strict=True):
        for i, curves in enumerate(run["curves"] for run in runs):
            for curve, (color, style) in styles.items():
                look = {"color": color, "lw": 1.6, "alpha": 0.4 if i else 1, "label": None if i else curve}
                above.plot(curves["step"], curves[curve], style, **look)
        budget = runs[0]["budget"]
        heights = [budget[share] for share in SHARES]
        below.stackplot(budget["step"], *heights, labels=SHARES, colors=("#d9d9d9", "#7a8699", "#c1121f"))
        above.set_title(name, fontsize=11)
        below.set(xlabel="step", xlim=(0, max(1, budget["step"][-1])), ylim=(0, 1.02))
    axes[0, 0].set_ylabel("validation")
    axes[1, 0].set_ylabel("share of Σ |∂loss/∂logit|")
    for left, place in zip(axes[:, 0], ("upper", "lower"), strict=True):
        drawn.legend(*left.get_legend_handles_labels(), loc=f"outside right {place}", fontsize=9)
    drawn.suptitle(title, fontsize=12)
    return drawn


def report(data: str, results: dict[str, list[dict[str, Any]]], about: dict[str, Any]) -> Report:
    """Returns the report: two tables and the figure."""
    title = f"{data}: the rare class is {100 * about['rare share of the training pixels']:.2g} % of the pixels"
    caption = "Scores through training, and the first seed's gradient budget."
    picture = Picture("curves", caption, png(figure(title, results)))
    tables = (scores_table(title, results), budget_table(results))
    section = Section("Scores and gradient budget", "", tables, (picture,))
    return Report(f"The background trap: {data}", _QUESTION, (section,), about | provenance())


def main(argv: list[str]) -> None:
    """Trains every loss with every seed, then prints the tables and writes the report, for each data set."""
    del argv
    options, console = flags.FLAGS, rich.console.Console()
    folder, chosen = local_path(options.workdir), [loss for loss in LOSSES if loss.name in options.loss]
    for data in options.data:
        rare_share, workdir = rare_pixels(DATA[data]()), folder / data
        runs = make_cells(data, chosen, options.seed, rare_share=rare_share, steps=options.steps)
        say(f"background_trap: {len(runs)} runs on {data} in {workdir}/", console)
        grid.run(runs, workdir, console)
        results = {loss.name: [measured(run, workdir) for run in runs if run.row == loss.name] for loss in chosen}
        about = {"rare share of the training pixels": rare_share, "steps": runs[0].config.training.steps}
        about["seeds"] = options.seed
        about["seconds"] = sum(run["seconds"] for of_loss in results.values() for run in of_loss)
        publish(report(data, results, about), folder, f"background_trap_{data}", results, console)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/background_trap", "Folder of the runs, the tables and the figures.")
    flags.DEFINE_multi_enum("data", ["road_debris"], list(DATA), "A data set; may be repeated.")
    names = [loss.name for loss in LOSSES]
    flags.DEFINE_multi_enum("loss", names, names, "A loss; may be repeated. Default: all.")
    flags.DEFINE_multi_integer("seed", [0], "A seed; may be repeated.")
    flags.DEFINE_integer("steps", None, "Steps per run. Default: 600; on CrackForest 400.", lower_bound=1)
    cli.run(main, required=[])
