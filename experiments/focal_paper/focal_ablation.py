"""Tables 1a and 1b of the focal loss paper: `python -m experiments.focal_paper.focal_ablation --preset=cpu`.

Which α is best for cross entropy, which for each γ, and is γ = 2 best? The whole γ × α grid is run, so that the best α
is found and not assumed. And the trap: the same losses without the prior bias. `configs/focal_ablation.py` has the
grids; `--preset=smoke` is `make ablation`, the trap and its cure in minutes, with a picture.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from configs.rare_class import NO_PRIOR, PRIOR
from experiments.focal_paper.paper_numbers import TABLE_1A, TABLE_1B, percent
from experiments.sweep.paper_report import SCORES, Study, SweepResults, main_of, precision_curves
from segjax.reporting import Picture, Section, Spread, Table, heatmap, png
from segjax.trained_run import load_run
from segjax.training import open_split
from segjax.training.checkpoint import FOLDER
from segjax.training.evaluation import contact_sheet, rarest_first

GAMMA, ALPHA = "objective.gamma", "objective.alpha"


def sections(outcomes: SweepResults) -> tuple[Section, ...]:
    """The trap; and where the grid was run, table 1a, table 1b, and the grid itself."""
    rows = outcomes.rows()
    grid = [row for row in rows if row["model.prior"] == PRIOR["model.prior"]]
    parts = (_trap(outcomes, rows),)
    if len({row[GAMMA] for row in grid}) > 2:
        parts += (_table_1a(outcomes, grid), _table_1b(outcomes, grid), _whole_grid(outcomes, grid))
    return parts


def name(row: dict[str, Any]) -> str:
    """What a row is called in the table of the trap."""
    loss = "focal" if row[GAMMA] else "CE" if row[ALPHA] == 0.5 else "balanced CE"
    return loss if row["model.prior"] == () else f"{loss}, prior bias"


def trap_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the prior bias, and then those of the same γ and α that have it."""
    without = [row for row in rows if row["model.prior"] == NO_PRIOR["model.prior"]]
    return without + [row for row in rows if row not in without and {**row, **NO_PRIOR} in without]


def _trap(outcomes: SweepResults, rows: Sequence[dict[str, Any]]) -> Section:
    chosen = trap_rows(rows)
    lines = [
        (
            name(row),
            f"{row[GAMMA]:g}",
            f"{row[ALPHA]:g}",
            f"{row['model.prior'][0]:g}" if row["model.prior"] else None,
            outcomes.score(row, "pixel_accuracy"),
            *outcomes.scores(row),
        )
        for row in chosen
    ]
    columns = ("loss", "γ", "α", "π", "pixel accuracy", *SCORES)
    table = Table("With and without the prior bias", columns, lines, highest=SCORES[:2])
    return Section(
        "The trap, and what leaves it",
        "A fresh head says p = ½ of every pixel, and the first steps teach it that all is background: high accuracy, "
        "and nothing found. A head that starts at the prior π needs no such lesson. γ = 0 and α = ½ is cross entropy.",
        (table,),
        (
            precision_curves(outcomes, {name(row): row for row in chosen}, "With and without the prior", "trap"),
            *_examples(outcomes, chosen),
        ),
    )


def _table_1a(outcomes: SweepResults, grid: Sequence[dict[str, Any]]) -> Section:
    lines = [
        (f"{row[ALPHA]:g}", *outcomes.scores(row), percent(TABLE_1A.get(row[ALPHA]))) for row in grid if row[GAMMA] == 0
    ]
    table = Table("Balanced cross entropy, γ = 0", ("α", *SCORES, "paper: AP"), lines, SCORES[:2])
    return Section("Table 1a: α for cross entropy", "", (table,))


def best_alphas(outcomes: SweepResults, grid: Sequence[dict[str, Any]]) -> dict[float, dict[str, Any]]:
    """By γ, the row of highest mean average precision of those with the most seeds to take it of; no γ without any."""
    by_gamma: dict[float, list[dict[str, Any]]] = {}
    for row in grid:
        by_gamma.setdefault(row[GAMMA], []).append(row)

    def rank(row: dict[str, Any]) -> tuple[int, float]:
        return len(outcomes.score(row, "average_precision").values), outcomes.average_precision(row)

    best = {gamma: max(rows, key=rank) for gamma, rows in by_gamma.items()}
    return {gamma: row for gamma, row in best.items() if outcomes.average_precision(row) > -math.inf}


def published(gamma: float) -> tuple[str | None, str | None]:
    """The paper's best α and its AP."""
    alpha, average_precision = TABLE_1B.get(gamma, (None, None))
    return alpha, percent(average_precision)


def _table_1b(outcomes: SweepResults, grid: Sequence[dict[str, Any]]) -> Section:
    best = best_alphas(outcomes, grid)
    lines = [(f"{gamma:g}", f"{row[ALPHA]:g}", *outcomes.scores(row), *published(gamma)) for gamma, row in best.items()]
    columns = ("γ", "best α", *SCORES, "paper: best α", "paper: AP")
    table = Table("Focal loss, the best α of each γ", columns, lines, SCORES[:2])
    named = {f"γ = {gamma:g}, α = {row[ALPHA]:g}": row for gamma, row in best.items()}
    return Section(
        "Table 1b: γ, with the best α of each",
        seen(best, grid, outcomes)
        if all(outcomes.of(row) for row in grid)
        else "The grid has not been run to its end yet.",
        (table,),
        (precision_curves(outcomes, named, "The best α of each γ", "gamma"),),
    )


def seen(best: dict[float, dict[str, Any]], grid: Sequence[dict[str, Any]], outcomes: SweepResults) -> str:
    """What the table answers, in words that follow from its numbers."""
    alphas = [row[ALPHA] for _, row in sorted(best.items())]
    falls = all(late <= early for early, late in itertools.pairwise(alphas)) and alphas[-1] < alphas[0]
    winner = max(best, key=lambda gamma: outcomes.average_precision(best[gamma]))
    of_winner, of_two = (outcomes.average_precision(best[gamma]) for gamma in (winner, 2.0 if 2.0 in best else winner))
    every = {gamma: sorted(row[ALPHA] for row in grid if row[GAMMA] == gamma) for gamma in best}
    edge = [f"{gamma:g}" for gamma, row in sorted(best.items()) if row[ALPHA] in (every[gamma][0], every[gamma][-1])]
    further = f" At γ = {', '.join(edge)} it lies at the edge of the grid, and may lie beyond." if edge else ""
    return (
        f"The best α {'falls' if falls else 'does not fall steadily'} as γ rises: "
        f"{', '.join(f'{alpha:g}' for alpha in alphas)} (in the paper .75, .75, .75, .5, .25, .25, .25).{further} "
        f"The best γ is {winner:g}, average precision {of_winner:.3f}; γ = 2 reaches {of_two:.3f}."
    )


def _whole_grid(outcomes: SweepResults, grid: Sequence[dict[str, Any]]) -> Section:
    gammas, alphas = (sorted({row[field] for row in grid}) for field in (GAMMA, ALPHA))
    by_place = {(row[GAMMA], row[ALPHA]): row for row in grid}

    def precision(gamma: float, alpha: float) -> Spread | None:
        return outcomes.score(by_place[gamma, alpha], "average_precision") if (gamma, alpha) in by_place else None

    values = [[found.mean if (found := precision(g, a)) else math.nan for a in alphas] for g in gammas]
    table = Table(
        "Average precision",
        ("γ", *(f"α = {alpha:g}" for alpha in alphas)),
        [(f"{g:g}", *(precision(g, a) for a in alphas)) for g in gammas],
    )
    drawn = heatmap(
        values,
        rows=[f"{gamma:g}" for gamma in gammas],
        columns=[f"{alpha:g}" for alpha in alphas],
        title="Average precision, mean over the seeds",
        x="α",
        y="γ",
    )
    caption = "The best α of each γ is framed."
    return Section("The whole grid", "", (table,), (Picture("grid", caption, png(drawn)),))


def picture(folders: Sequence[Path], names: Sequence[str], count: int = 3) -> np.ndarray:
    """A row a scene with much debris: image, truth, and what each trained network predicts; with titles."""
    runs = [load_run(folder / FOLDER / "latest") for folder in folders]
    source = open_split(runs[0].config.data, runs[0].config.data.eval_split)
    sheet = contact_sheet([run.predictor() for run in runs], source, rarest_first(source, 1)[:count])
    sheet = sheet.repeat(2, axis=0).repeat(2, axis=1)
    titles = np.full((28, sheet.shape[1], 3), 255, np.uint8)
    panels = ["image", "truth", *names]
    for i, title in enumerate(panels):
        left = i * sheet.shape[1] // len(panels) + 4
        cv2.putText(titles, title, (left, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([titles, sheet])


def _examples(outcomes: SweepResults, rows: Sequence[dict[str, Any]]) -> tuple[Picture, ...]:
    """The networks of the first seed that has all that ended here, side by side; none before one has ended."""
    for seed in dict.fromkeys(cell.changes["seed"] for cell in outcomes.cells):
        named = {
            name(row): outcomes.workdir / cell.name
            for row in rows
            for cell in outcomes.cells
            if cell.changes == {**row, "seed": seed} and outcomes.by_cell.get(cell.name, {}).get("status") == "done"
        }
        if named and all((folder / FOLDER).exists() for folder in named.values()):
            break
    else:
        return ()
    sheet = picture(list(named.values()), list(named))
    _, file = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    return (Picture("examples", f"Image, truth, and what each network finds, seed {seed}.", file.tobytes()),)


STUDY = Study(
    "focal_ablation",
    "Focal loss, γ and α",
    "Lin et al. 2017 (arXiv 1708.02002) find for RetinaNet on COCO that cross entropy is best with α = 0.75, that "
    "γ = 2 is better, and that the best α falls as γ rises. Is it so for rare pixels? The paper's AP is COCO's, of "
    "boxes; ours is the average precision of the rare class' pixels: compare their order, not their size.",
    sections,
)

if __name__ == "__main__":
    main_of(STUDY)
