"""Tables 1a and 1b of the focal loss paper: `python -m experiments.focal_paper.focal_ablation --preset=cpu`.

Which α is best for cross entropy and for each γ, and is γ = 2 best? The whole γ × α grid of `configs/focal_ablation.py`
is run, so that the best α is found and not assumed. The same losses without the prior bias show the background trap.
`--preset=smoke` is `make ablation`: the trap and its cure in minutes, with a picture.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from experiments.focal_paper.cell_pictures import rarest_first, store_pictures
from experiments.focal_paper.paper_numbers import TABLE_1A, TABLE_1B, percent
from experiments.sweep.paper_report import PaperReport, SweepResults, main_of, precision_curves, score_grid
from segjax.configs.rare_class import NO_PRIOR, PRIOR
from segjax.data.labels import VOID
from segjax.reporting import Picture, Section, Spread, Table
from segjax.trained_run import load_run
from segjax.training import open_split
from segjax.training.checkpoint import FOLDER
from segjax.training.train_step import task_of

GAMMA, ALPHA = "objective.gamma", "objective.alpha"


def sections(results: SweepResults) -> tuple[Section, ...]:
    """Returns the section on the trap and, if the grid was run, table 1a, table 1b and the whole grid."""
    rows = results.rows()
    grid = [row for row in rows if row["model.prior"] == PRIOR["model.prior"]]
    parts = (_trap(results, rows),)
    if len({row[GAMMA] for row in grid}) > 2:
        parts += (_table_1a(results, grid), _table_1b(results, grid), _whole_grid(results, grid))
    return parts


def name(row: dict[str, Any]) -> str:
    """Returns the name of a row in the table of the trap."""
    loss = "focal" if row[GAMMA] else "CE" if row[ALPHA] == 0.5 else "balanced CE"
    return loss if row["model.prior"] == () else f"{loss}, prior bias"


def trap_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows without the prior bias, then those of the same γ and α with it."""
    without = [row for row in rows if row["model.prior"] == NO_PRIOR["model.prior"]]
    return without + [row for row in rows if row not in without and {**row, **NO_PRIOR} in without]


def _trap(results: SweepResults, rows: Sequence[dict[str, Any]]) -> Section:
    chosen = trap_rows(rows)
    lines = [
        (
            name(row),
            f"{row[GAMMA]:g}",
            f"{row[ALPHA]:g}",
            f"{row['model.prior'][0]:g}" if row["model.prior"] else None,
            *([] if results.on_boxes else [results.score(row, "pixel_accuracy")]),
            *results.scores(row),
        )
        for row in chosen
    ]
    accuracy = () if results.on_boxes else ("pixel accuracy",)
    columns = ("loss", "γ", "α", "π", *accuracy, *results.columns)
    table = Table("With and without the prior bias", columns, lines, highest=results.columns[:2])
    return Section(
        "The background trap and the prior bias",
        f"A new head predicts p = ½ for every {'anchor' if results.on_boxes else 'pixel'}, and the first steps only "
        "teach it to predict background: accuracy is high and nothing is found. A head that starts at the prior π "
        "skips these steps. γ = 0 with α = ½ is cross entropy.",
        (table,),
        (
            precision_curves(results, {name(row): row for row in chosen}, "With and without the prior", "trap"),
            *_examples(results, chosen),
        ),
    )


def _table_1a(results: SweepResults, grid: Sequence[dict[str, Any]]) -> Section:
    lines = [
        (f"{row[ALPHA]:g}", *results.scores(row), percent(TABLE_1A.get(row[ALPHA]))) for row in grid if row[GAMMA] == 0
    ]
    table = Table("Balanced cross entropy, γ = 0", ("α", *results.columns, "paper: AP"), lines, results.columns[:2])
    return Section("Table 1a: α for cross entropy", "", (table,))


def best_alphas(results: SweepResults, grid: Sequence[dict[str, Any]]) -> dict[float, dict[str, Any]]:
    """Returns, per γ, the row of highest average precision among those with the most seeds; no γ without results."""
    by_gamma: dict[float, list[dict[str, Any]]] = {}
    for row in grid:
        by_gamma.setdefault(row[GAMMA], []).append(row)

    def rank(row: dict[str, Any]) -> tuple[int, float]:
        return len(results.score(row, results.headline).values), results.average_precision(row)

    best = {gamma: max(rows, key=rank) for gamma, rows in by_gamma.items()}
    return {gamma: row for gamma, row in best.items() if results.average_precision(row) > -math.inf}


def published(gamma: float) -> tuple[str | None, str | None]:
    """Returns the paper's best α for γ, and its AP."""
    alpha, average_precision = TABLE_1B.get(gamma, (None, None))
    return alpha, percent(average_precision)


def _table_1b(results: SweepResults, grid: Sequence[dict[str, Any]]) -> Section:
    best = best_alphas(results, grid)
    lines = [(f"{gamma:g}", f"{row[ALPHA]:g}", *results.scores(row), *published(gamma)) for gamma, row in best.items()]
    columns = ("γ", "best α", *results.columns, "paper: best α", "paper: AP")
    table = Table("Focal loss, the best α of each γ", columns, lines, results.columns[:2])
    named = {f"γ = {gamma:g}, α = {row[ALPHA]:g}": row for gamma, row in best.items()}
    return Section(
        "Table 1b: γ, with the best α of each",
        conclusion(best, grid, results)
        if all(results.for_row(row) for row in grid)
        else "The grid is not complete yet.",
        (table,),
        (precision_curves(results, named, "The best α of each γ", "gamma"),),
    )


def conclusion(best: dict[float, dict[str, Any]], grid: Sequence[dict[str, Any]], results: SweepResults) -> str:
    """Returns the conclusion of table 1b, derived from its numbers."""
    alphas = [row[ALPHA] for _, row in sorted(best.items())]
    falls = all(late <= early for early, late in itertools.pairwise(alphas)) and alphas[-1] < alphas[0]
    winner = max(best, key=lambda gamma: results.average_precision(best[gamma]))
    of_winner, of_two = (results.average_precision(best[gamma]) for gamma in (winner, 2.0 if 2.0 in best else winner))
    every = {gamma: sorted(row[ALPHA] for row in grid if row[GAMMA] == gamma) for gamma in best}
    edge = [f"{gamma:g}" for gamma, row in sorted(best.items()) if row[ALPHA] in (every[gamma][0], every[gamma][-1])]
    further = f" At γ = {', '.join(edge)} it is at the edge of the grid; a better α may lie outside." if edge else ""
    return (
        f"The best α {'falls' if falls else 'does not fall steadily'} as γ rises: "
        f"{', '.join(f'{alpha:g}' for alpha in alphas)} (in the paper .75, .75, .75, .5, .25, .25, .25).{further} "
        f"The best γ is {winner:g}, {results.columns[0]} {of_winner:.3f}; γ = 2 reaches {of_two:.3f}."
    )


def _whole_grid(results: SweepResults, grid: Sequence[dict[str, Any]]) -> Section:
    gammas, alphas = (sorted({row[field] for row in grid}) for field in (GAMMA, ALPHA))
    by_place = {(row[GAMMA], row[ALPHA]): row for row in grid}

    def precision(gamma: float, alpha: float) -> Spread | None:
        return results.score(by_place[gamma, alpha], results.headline) if (gamma, alpha) in by_place else None

    cells = [[precision(gamma, alpha) for alpha in alphas] for gamma in gammas]
    table = Table(
        results.columns[0].capitalize() if not results.on_boxes else results.columns[0],
        ("γ", *(f"α = {alpha:g}" for alpha in alphas)),
        [(f"{gamma:g}", *row) for gamma, row in zip(gammas, cells, strict=True)],
    )
    caption = "The best α of each γ is framed. Grey cells are not part of the grid."
    store_pictures(results, grid)
    explorer = score_grid(results, grid, GAMMA, ALPHA, name="grid", caption=caption, names=("γ", "α"))
    return Section("The whole grid", "", (table,), (explorer,))


def picture(folders: Sequence[Path], names: Sequence[str], count: int = 3) -> np.ndarray:
    """Draws one row per image with many rare pixels: truth and the mask or boxes of each network, with titles."""
    runs = [load_run(folder / FOLDER / "latest", detectors=True) for folder in folders]
    config = runs[0].config
    source = open_split(config.data, config.data.eval_split)
    on_boxes = bool(config.data.box_classes)
    predictors = {name: run.detector() if on_boxes else run.predictor() for name, run in zip(names, runs, strict=True)}
    # The labels of a detector are object ids.
    indices = rarest_first(source, range(1, VOID) if on_boxes else [1])[:count]
    return task_of(config).example_sheet(predictors, source, config, indices)


def _examples(results: SweepResults, rows: Sequence[dict[str, Any]]) -> tuple[Picture, ...]:
    """Returns the picture of the first seed whose finished cells all have checkpoints here; empty without one."""
    for seed in dict.fromkeys(cell.changes["seed"] for cell in results.cells):
        named = {
            name(row): results.workdir / cell.name
            for row in rows
            for cell in results.cells
            if cell.changes == {**row, "seed": seed} and results.by_cell.get(cell.name, {}).get("status") == "done"
        }
        if named and all((folder / FOLDER).exists() for folder in named.values()):
            break
    else:
        return ()
    sheet = picture(list(named.values()), list(named))
    _, file = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    drawn = "boxes of p ≥ 0.5" if results.on_boxes else "mask"
    return (Picture("examples", f"Truth and the {drawn} of each network, seed {seed}.", file.tobytes()),)


PAPER_REPORT = PaperReport(
    "focal_ablation",
    "Focal loss, γ and α",
    "Lin et al. 2017 (arXiv 1708.02002) find for RetinaNet on COCO that cross entropy is best with α = 0.75, that "
    "γ = 2 is better, and that the best α falls as γ rises. Does this hold here? The paper's AP is that of boxes on "
    "COCO with a ResNet; compare the order of the rows, not the values.",
    sections,
)

if __name__ == "__main__":
    main_of(PAPER_REPORT)
