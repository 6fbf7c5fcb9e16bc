"""Two losses with the paper's optimizer: `python -m experiments.focal_paper.sgd_focal --preset=cpu`."""

import math
from typing import Any

from experiments.focal_paper.prior_init import beginning, prior
from experiments.sweep.paper_report import PaperReport, SweepResults, main_of, precision_curves
from segjax.reporting import Section, Table


def loss(row: dict[str, Any]) -> str:
    """Returns the name of a row's loss."""
    alpha = row["objective.alpha"]
    return "focal" if row["objective.loss"] == "sigmoid_focal" else "CE" if alpha is None else f"CE, α = {alpha:g}"


def name(row: dict[str, Any]) -> str:
    """Returns the name of a row: its loss and learning rate."""
    return f"{loss(row)}, rate {row['optimizer.learning_rate']:g}"


def start(row: dict[str, Any]) -> str:
    """Returns the prior of the head at the start."""
    return f"π = {prior(row)}" if prior(row) else "no prior"


def finding(results: SweepResults) -> str:
    """Returns the best average precision over the learning rates of each loss and start."""
    best: dict[str, float] = {}
    for row in results.rows():
        key = f"{loss(row)}, {start(row)}"
        best[key] = max(results.average_precision(row), best.get(key, -math.inf))
    listed = "; ".join(f"{key}: {value:.3f}" for key, value in best.items() if value > -math.inf)
    return f"{results.columns[0][0].upper()}{results.columns[0][1:]} at the best learning rate of each: {listed}."


def sections(results: SweepResults) -> tuple[Section, ...]:
    """Returns the table, and the curves of each start."""
    rows = results.rows()
    starts = {start(row): [one for one in rows if start(one) == start(row)] for row in rows}
    lines = [
        (
            f"{row['optimizer.learning_rate']:g}",
            loss(row),
            prior(row),
            results.over_seeds(row, lambda one: one["first_loss"]),
            sum(one["status"] == "diverged" for one in results.for_row(row)),
            *beginning(results, row).values(),
            *results.scores(row),
        )
        for row in rows
    ]
    first = ("loss at step 1", "diverged", *beginning(results, rows[0]))
    columns = ("learning rate", "loss", "π", *first, *results.columns)
    table = Table(
        "SGD with momentum 0.9, not clipped, over rare pixels or matched anchors",
        columns,
        lines,
        highest=results.columns[:2],
    )
    pictures = tuple(
        precision_curves(results, {name(row): row for row in chosen}, f"SGD, {title}", f"curves_{i}")
        for i, (title, chosen) in enumerate(starts.items(), 1)
    )
    return (Section("SGD, the paper's optimizer", finding(results), (table,), pictures),)


PAPER_REPORT = PaperReport(
    "sgd_focal",
    "Is it the optimizer?",
    "Lin et al. 2017 (arXiv 1708.02002): with SGD at a learning rate of 0.01, cross entropy from the usual start "
    "diverges, and with the prior focal loss (γ = 2, α = ¼) is better than cross entropy. The other sweeps use AdamW "
    "and clipped gradients. Is the optimizer the reason where they differ from the paper?",
    sections,
)

if __name__ == "__main__":
    main_of(PAPER_REPORT)
