"""Pixels as rare as anchors: `python -m experiments.focal_paper.boxes_and_pixels --workdir=runs/boxes_and_pixels`.

Tests whether the rarity of positives is the reason why focal loss helps on boxes and not on pixels. Among the anchors
of the detector a positive is about twelve times as rare as among the pixels of the U-Net. Here the U-Net of
`configs/focal_ablation.py` is trained again with eleven of twelve debris pixels set to void, at random per image and
the same in every epoch. Images, network and steps stay as they are. If rarity is the reason, these pixels give the
result of the boxes.

The results of all pixels and of the boxes, from `experiments/results/`, stand beside it. The detector has the same
encoder and size of the scenes, but 512 scenes in place of 256 and 400 steps in place of 300.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
from absl import flags
from ml_collections import ConfigDict

from experiments.focal_paper.focal_ablation import ALPHA, GAMMA, best_alphas
from experiments.sweep import grid, paper_report, results_io
from experiments.sweep.grid import Cell
from experiments.sweep.paper_report import SweepResults
from segjax import cli
from segjax.configs import focal_ablation, rare_class
from segjax.configs.rare_class import PRIOR
from segjax.data import Source
from segjax.data.labels import VOID
from segjax.reporting import Report, Section, Table
from segjax.training import open_split
from segjax.training.config import with_found_data
from segjax.training.detection import make_anchor_targets

NAME = "boxes_and_pixels"
RESULTS = Path(__file__).parents[1] / "results"
GAMMAS = (0.0, 2.0)
ALPHAS = {0.0: (0.25, 0.5, 0.75, 0.9, 0.97, 0.99, 0.999), 2.0: (0.05, 0.1, 0.25, 0.5, 0.75)}
# Leaves debris at 0.04 % of the pixels, the share of the anchors that match debris.
KEPT = 1 / 12


class HiddenPixels:
    """A split in which all but a share of the pixels of the rare class, chosen at random per image, are void."""

    def __init__(self, source: Source, kept: float):
        self._source, self._kept = source, kept
        for attribute in Source.__annotations__:
            setattr(self, attribute, getattr(source, attribute))

    def __reduce__(self):
        return HiddenPixels, (self._source, self._kept)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[index]
        hidden = np.random.default_rng(index).random(example["label"].shape) >= self._kept
        rare = example["label"] == self.label_set.rare
        return {**example, "label": np.where(rare & hidden, np.uint8(VOID), example["label"])}

    def name(self, index: int) -> str:
        """Returns the name of an example."""
        return self._source.name(index)


def make_cells(seeds: Sequence[int], steps: int | None = None) -> list[Cell]:
    """Returns the cells with hidden pixels: cross entropy and focal loss, γ = 2, with several α."""
    base = rare_class.get_config("cpu", "road_debris")
    if steps:
        base.training.steps = base.training.evaluate_every = base.training.checkpoint_every = steps
    rows = [{**PRIOR, GAMMA: gamma, ALPHA: alpha} for gamma in GAMMAS for alpha in ALPHAS[gamma]]
    return grid.make_cells(base, rows, seeds)


def measured(data: str, workdir: Path) -> SweepResults:
    """Returns the committed results of the γ × α grid, with the prior, on a data set of `rare_class`."""
    cells = paper_report.make_cells(focal_ablation, "cpu", data)
    cells = [cell for cell in cells if cell.changes["model.prior"] == PRIOR["model.prior"]]
    results_io.import_results(cells, workdir / data, RESULTS / f"focal_ablation_{data}.json")
    return SweepResults(cells, workdir / data)


def positives(config: ConfigDict, kept: float = 1.0) -> float:
    """Returns the share of positives among the labelled pixels, or the anchors that are not ignored, of training."""
    source = open_split(config.data, config.data.train_split)
    if not config.data.box_classes:
        labels = [HiddenPixels(source, kept)[i]["label"] for i in range(len(source))]
        rare = sum(int((label == source.label_set.rare).sum()) for label in labels)
        return rare / sum(int((label != VOID).sum()) for label in labels)
    targets_of, count, total = jax.jit(make_anchor_targets(with_found_data(config, source))), 0, 0
    for i in range(len(source)):
        targets = jax.device_get(targets_of(source[i]["label"][None]))
        count += int((targets.classes[targets.where] == 1).sum())
        total += int(targets.where.sum())
    return count / total


def sections(tasks: Mapping[str, tuple[SweepResults, float]]) -> tuple[Section, ...]:
    """Returns the table of the tasks, by name: their results and their share of positives."""
    lines, findings = [], []
    for name, (results, share) in tasks.items():
        best = best_alphas(results, results.rows())
        plain, focal = (results.average_precision(best[gamma]) for gamma in GAMMAS)
        for gamma in GAMMAS:
            scores = results.scores(best[gamma])[:2]
            start = (name, f"{100 * share:.3f} %") if gamma == GAMMAS[0] else ("", "")
            lines.append((*start, "FL, γ = 2" if gamma else "CE", f"{best[gamma][ALPHA]:g}", *scores))
        findings.append(f"{name}: {100 * (focal / plain - 1):+.0f} %")
    table = Table(
        "Cross entropy and focal loss, the best α of each",
        ("task", "positives", "loss", "best α", "AP", "best IoU (pixels) or AP50 (boxes)"),
        lines,
    )
    text = (
        "Change of average precision from cross entropy to focal loss, each with the best α of its grid: "
        f"{'; '.join(findings)}."
    )
    return (Section("Two losses at three shares of positives", text, (table,)),)


def _paragraphs(doc: str) -> str:
    """Returns a docstring without its first paragraph and line breaks, for the head of the report."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in doc.split("\n\n")[1:])


def main(argv: list[str]) -> None:
    """Trains the cells with hidden pixels and writes the report."""
    cli.refuse_arguments(argv)
    folder, console = results_io.local_path(flags.FLAGS.workdir), rich.console.Console()
    cells = make_cells(flags.FLAGS.seed, flags.FLAGS.steps)
    on_pixels, on_boxes = (measured(data, folder) for data in ("road_debris", "road_debris_boxes"))
    grid.run(cells, folder / "hidden", console, change_split=lambda source: HiddenPixels(source, KEPT))
    hidden = SweepResults(cells, folder / "hidden")
    tasks = {
        "pixels": (on_pixels, positives(on_pixels.cells[0].config)),
        "pixels, eleven of twelve hidden": (hidden, positives(cells[0].config, KEPT)),
        "anchors": (on_boxes, positives(on_boxes.cells[0].config)),
    }
    facts = {"seeds": flags.FLAGS.seed, **results_io.provenance_facts(list(hidden.by_cell.values()))}
    report = Report("Boxes and pixels", _paragraphs(__doc__), sections(tasks), facts)
    results_io.publish(report, folder, NAME, results_io.cells_as_json(cells, hidden.by_cell), console)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", f"runs/{NAME}", "Folder of the cells and the report.")
    flags.DEFINE_multi_integer("seed", [0, 1, 2], "A seed; may be repeated.")
    flags.DEFINE_integer("steps", None, "Steps per cell. Default: those of the other sweeps.", lower_bound=1)
    cli.run(main, required=[])
