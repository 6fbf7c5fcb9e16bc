"""Four times the training steps: `python -m experiments.focal_paper.training_length --preset=cpu`.

The networks of the other sweeps train for minutes, and some end before a single rare pixel has p > ½. Here some of them
train four times as long: do these leave the trap, and do the others keep their order? `configs/training_length.py` has
the cells.
"""

import math
from typing import Any

from experiments.sweep.paper_report import PaperReport, SweepResults, main_of, precision_curves
from segjax.reporting import Section, Spread, Table


def name(row: dict[str, Any]) -> str:
    """Returns the name of a row: its loss, with γ and α if it has them."""
    if row["objective.loss"].startswith("softmax"):
        return "softmax CE"
    gamma, alpha = row["objective.gamma"], row["objective.alpha"]
    return f"FL, γ = {gamma:g}, α = {alpha:g}" if gamma else "CE" if alpha == 0.5 else f"balanced CE, α = {alpha:g}"


def precision_at(results: SweepResults, row: dict[str, Any], share: float) -> Spread:
    """Returns average precision after `share` of the steps: that of the last evaluation until then."""

    def of_seed(one: dict[str, Any]) -> float | None:
        curves = one["curves"]
        until = [i for i, step in enumerate(curves["step"]) if step <= share * one["steps"]]
        return curves["average_precision"][until[-1]] if until else None

    return results.over_seeds(row, of_seed)


def highest(results: SweepResults, row: dict[str, Any]) -> Spread:
    """Returns the highest average precision of any evaluation."""
    return results.over_seeds(
        row, lambda one: max((v for v in one["curves"]["average_precision"] if v is not None), default=None)
    )


def sections(results: SweepResults) -> tuple[Section, ...]:
    """Returns the scores after each quarter of the training, and the curves."""
    rows, steps = results.rows(), results.cells[0].config.training.steps
    quarters = (0.25, 0.5, 0.75, 1.0)
    lines = [
        (
            name(row),
            *(precision_at(results, row, share) for share in quarters),
            highest(results, row),
            results.score(row, "best_iou"),
            results.recall(row),
        )
        for row in rows
    ]
    at = tuple(f"AP at step {math.floor(share * steps)}" for share in quarters)
    columns = ("loss", *at, "highest AP", "best IoU", "recall at p = 0.5")
    table = Table("Average precision in a long training", columns, lines, highest=(*at, "highest AP", "best IoU"))
    picture = precision_curves(results, {name(row): row for row in rows}, "Average precision in a long training")
    text = (
        "The learning rate falls over the whole training, so no column equals the end of a shorter training, which is "
        "in the tables of `focal_ablation` and `prior_init`. Best IoU and recall are those of the last step."
    )
    return (Section("Four times the steps", text, (table,), (picture,)),)


PAPER_REPORT = PaperReport(
    "training_length",
    "Four times the steps",
    "The other sweeps stop early, before some of their networks have left the trap. Do these leave it later, does the "
    "order of the others change, and do scores still rise?",
    sections,
)

if __name__ == "__main__":
    main_of(PAPER_REPORT)
