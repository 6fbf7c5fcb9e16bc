"""The background trap and ways out of it: `python -m experiments.focal_paper.background_trap --workdir=…`.

On road_debris (`--data=crackforest` for cracks), for cross entropy, the same with the rare class
weighted, focal loss with and without α, and two of them with a prior bias: accuracy, recall and average precision of
the rare class through training, and the gradient budget: which share of the summed |∂loss/∂logit| comes from easy
background (p_t > 0.9), from hard background, and from the rare class.

Each run trains in a folder of its own below the workdir: one that was cut carries on, one that is done is read. For
each data set a report is written to the workdir: a page, Markdown, CSV, LaTeX, JSON and the figure.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich.console
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from configs import crackforest_unet, rare_class
from segjax import cli
from segjax.reporting import Picture, Report, Section, Table, cell, png, show, spread, write_report
from segjax.storage import local_path
from segjax.training import open_split, train
from segjax.training.config import leaves
from segjax.training.loop import CONFIG_FILE, SCORES_FILE
from segjax.training.metrics_writer import METRICS_FILE
from segjax.training.provenance import provenance

BALANCED = "1 - f"
_QUESTION = (
    "Accuracy is high, and nothing is found. Why, and what gets out? Six losses train the same network on the same "
    "batches; the gradient budget is whose pixels the summed |∂loss/∂logit| comes from."
)


class Loss(NamedTuple):
    """One column of the figure: the loss with its γ and α, and the prior π of the head's bias.

    α = `BALANCED` is 1 - f, with f the rare class' share of the training pixels: α f = (1 - α)(1 - f), so both classes
    weigh the same in total.
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
_OF = {"budget": "", "budget_pixels": ", pixels"}
STEPS = ("steps in the trap", "recall > 0.1 from", "recall > 0.5 from")
COLUMNS = ("loss", "γ", "α", "π", *STEPS, *CURVES)


def _road_debris() -> ConfigDict:
    config = rare_class.get_config("cpu", "road_debris")
    config.model.prior, config.model.head_stddev = (), None
    config.training.steps = 600
    return config


def _crackforest() -> ConfigDict:
    config = crackforest_unet.get_config()
    # A fraction of the work of the config's own size and network: the question is asked six times.
    config.data.size, config.data.workers = (192, 288), 0
    config.model.width, config.model.depth, config.model.padding = 8, 3, "zeros"
    return config


DATA: dict[str, Callable[[], ConfigDict]] = {"road_debris": _road_debris, "crackforest": _crackforest}


def run_config(data: str, loss: Loss, *, rare_share: float, seed: int = 0, steps: int | None = None) -> ConfigDict:
    """The config of one run. Runs of a data set differ in the loss, α, γ, the prior bias and the seed alone."""
    config = DATA[data]()
    config.seed = seed
    config.objective.loss, config.objective.gamma = loss.loss, loss.gamma
    config.objective.alpha = 1 - rare_share if loss.alpha == BALANCED else loss.alpha
    if loss.prior is not None:
        config.model.prior, config.model.head_stddev = (loss.prior,), 0.01
    config.training.steps = steps or config.training.steps
    config.training.evaluate_every = config.training.checkpoint_every = min(20, config.training.steps)
    config.training.log_every, config.training.gradient_budget = 1, True
    return config


def rare_pixels(config: ConfigDict) -> float:
    """The share of class 1 among the labelled pixels of the training split."""
    source = open_split(config.data, config.data.train_split)
    counts = sum(np.bincount(source[i]["label"].ravel(), minlength=256) for i in range(len(source)))
    return float(counts[1] / counts[:2].sum())


def finished(config: ConfigDict, folder: Path) -> dict[str, Any] | None:
    """The scores of a run that has ended with this very config; else None."""
    if not (folder / SCORES_FILE).exists():
        return None
    was, now = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")), json.loads(json.dumps(leaves(config)))
    return json.loads((folder / SCORES_FILE).read_text(encoding="utf-8")) if was == now else None


def history(folder: Path, classes: Sequence[str]) -> tuple[dict[str, list], dict[str, list]]:
    """What a run has logged: its `CURVES` by evaluated step, and `SHARES` of gradient and pixels by training step."""
    background, rare = classes
    rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    evaluated = [row for row in rows if "eval/pixel_accuracy" in row]
    keys = ("eval/pixel_accuracy", f"eval/recall/{rare}", f"eval/iou/{rare}", "eval/average_precision")
    curves = {name: [row[key] for row in evaluated] for name, key in zip(CURVES, keys, strict=True)}
    logged = [row for row in rows if f"budget/{rare}/easy" in row]
    budget = {"step": [row["step"] for row in logged]}
    for of in ("budget", "budget_pixels"):
        shares = (
            [row[f"{of}/{background}/easy"] for row in logged],
            [row[f"{of}/{background}/hard"] for row in logged],
            [row[f"{of}/{rare}/easy"] + row[f"{of}/{rare}/hard"] for row in logged],
        )
        budget |= {f"{share}{_OF[of]}": values for share, values in zip(SHARES, shares, strict=True)}
    return {"step": [row["step"] for row in evaluated], **curves}, budget


def trapped(curves: dict[str, list], rare_share: float) -> list[bool]:
    """At which evaluations a run was in the trap: less than a tenth of the rare class found, and an accuracy not 0.01
    below that of calling everything background.
    """
    both = zip(curves["recall"], curves["pixel accuracy"], strict=True)
    return [recall < 0.1 and accuracy > 1 - rare_share - 0.01 for recall, accuracy in both]


def lasting(steps: Sequence[int], values: Sequence[float], threshold: float) -> int | None:
    """The first of `steps` from which on all values are above the threshold; None if the last one is not.

    The plain first would be the first evaluation: a fresh network calls half of the pixels rare.
    """
    start = next((i for i in range(len(values), 0, -1) if not values[i - 1] > threshold), 0)
    return steps[start] if start < len(steps) else None


def moments(budget: dict[str, list]) -> dict[str, dict[str, float]]:
    """The budget at `MOMENTS`.

    Batches differ in how much of the rare class they show, so all but the first are means: of the steps from 8 to 12 %,
    from 48 to 52 %, and from 95 %.
    """
    step = np.array(budget["step"])
    tenth, half = (abs(step - part * step[-1]) <= max(1, 0.02 * step[-1]) for part in (0.1, 0.5))
    at = (step == step[0], tenth, half, step > 0.95 * step[-1])
    return {
        moment: {key: _mean(np.array(values)[chosen]) for key, values in budget.items() if key != "step"}
        for moment, chosen in zip(MOMENTS, at, strict=True)
    }


def _mean(values: np.ndarray) -> float:
    # A step whose gradient has vanished has no shares.
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def coarse(budget: dict[str, list], intervals: int = 60) -> dict[str, list]:
    """The budget's means over at most so many equal intervals of the steps: for a picture, and for a small file."""
    groups = np.array_split(np.arange(len(budget["step"])), min(intervals, len(budget["step"])))
    return {key: [round(_mean(np.array(v, float)[group]), 6) for group in groups] for key, v in budget.items()}


def measured(config: ConfigDict, folder: Path, scores: dict[str, Any]) -> dict[str, Any]:
    """All that is reported of one run."""
    curves, budget = history(folder, scores["classes"])
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
        "seconds": scores["provenance"]["wall_seconds"],
        "seconds_from_step": scores["provenance"]["wall_seconds_from_step"],
        "curves": {key: [round(value, 6) for value in values] for key, values in curves.items()},
        "budget": coarse(budget),
    }


def scores_table(title: str, results: dict[str, list[dict[str, Any]]]) -> Table:
    """A row a loss: each seed's steps, and the last scores, mean ± standard deviation over the seeds."""
    rows = []
    for loss in (loss for loss in LOSSES if loss.name in results):
        runs = results[loss.name]
        numbers = [None if v is None else f"{v:.3g}" for v in (loss.gamma, runs[0]["α"], loss.prior)]
        steps = [", ".join(cell(run[column]) for run in runs) for column in STEPS]
        rows.append((loss.name, *numbers, *steps, *(spread([run[curve] for run in runs]) for curve in CURVES)))
    return Table(title, COLUMNS, rows, highest=CURVES[2:])


def budget_table(results: dict[str, list[dict[str, Any]]]) -> Table:
    """A row a loss: the `SHARES` of the gradient and of the pixels at `MOMENTS`, in per cent, mean of the seeds."""

    def shares(runs: list[dict[str, Any]], moment: str, of: str) -> str:
        return " / ".join(f"{100 * np.mean([run[moment][share + of] for run in runs]):.1f}" for share in SHARES)

    columns = [(moment, of) for moment in MOMENTS for of in _OF.values()]
    rows = [(name, *(shares(runs, moment, of) for moment, of in columns)) for name, runs in results.items()]
    title = f"share of the gradient, and of the pixels, in %: {' / '.join(SHARES)}"
    return Table(title, ("loss", *(f"{moment}{of}" for moment, of in columns)), rows)


def figure(title: str, results: dict[str, list[dict[str, Any]]]) -> Figure:
    """A column a loss: above the scores through training (a line a seed), below the first seed's gradient budget."""
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
    """The two tables and the figure."""
    title = f"{data}: the rare class is {100 * about['rare share of the training pixels']:.2g} % of the pixels"
    caption = "Scores through training, and the first seed's gradient budget."
    picture = Picture("curves", caption, png(figure(title, results)))
    tables = (scores_table(title, results), budget_table(results))
    section = Section("In the trap, and out of it", "", tables, (picture,))
    return Report(f"The background trap: {data}", _QUESTION, (section,), about | provenance())


def main(argv: list[str]) -> None:
    """Trains every loss with every seed, prints a table a data set and writes it all."""
    del argv
    options, console = flags.FLAGS, rich.console.Console()
    workdir = local_path(options.workdir)
    for data in options.data:
        results, rare_share = {}, rare_pixels(DATA[data]())
        for loss in (loss for loss in LOSSES if loss.name in options.loss):
            for seed in options.seed:
                console.rule(f"{data}  {loss.name}  seed {seed}")
                config = run_config(data, loss, rare_share=rare_share, seed=seed, steps=options.steps)
                folder = workdir / data / f"{loss.name.replace(' ', '_')}_{seed}"
                scores = finished(config, folder) or train(config, folder, console=console)
                results.setdefault(loss.name, []).append(measured(config, folder, scores))
        about = {"rare share of the training pixels": rare_share, "steps": config.training.steps, "seeds": options.seed}
        about["seconds"] = sum(run["seconds"] for runs in results.values() for run in runs)
        whole = report(data, results, about)
        for one in whole.sections[0].tables:
            show(one, console)
        written = write_report(whole, workdir, f"background_trap_{data}", results)
        console.print(f"Wrote {written[0]}, and the same as Markdown, CSV, LaTeX, JSON and PNG beside it")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/background_trap", "Where the runs, the tables and the figures go.")
    flags.DEFINE_multi_enum("data", ["road_debris"], list(DATA), "A data set; may be given again.")
    flags.DEFINE_multi_enum("loss", [one.name for one in LOSSES], [one.name for one in LOSSES], "As data; default all.")
    flags.DEFINE_multi_integer("seed", [0], "A seed; may be given again.")
    flags.DEFINE_integer("steps", None, "Steps a run; default 600 on road_debris, 400 on CrackForest.", lower_bound=1)
    cli.run(main, required=[])
