"""Two losses with the paper's optimizer: `python -m experiments.focal_paper.sgd_focal --preset=cpu`."""

from typing import Any

from experiments.focal_paper.prior_init import found_from, prior, ranked_from
from experiments.sweep.paper_report import SCORES, Study, SweepResults, main_of, precision_curves
from segjax.reporting import Section, Table


def loss(row: dict[str, Any]) -> str:
    """Its name."""
    return "focal" if row["objective.loss"] == "sigmoid_focal" else "CE"


def name(row: dict[str, Any]) -> str:
    """The loss and its learning rate."""
    return f"{loss(row)}, rate {row['optimizer.learning_rate']:g}"


def start(row: dict[str, Any]) -> str:
    """What its head begins with."""
    return f"π = {prior(row)}" if prior(row) else "no prior"


def sections(outcomes: SweepResults) -> tuple[Section, ...]:
    """The table, and the curves of each start."""
    rows = outcomes.rows()
    starts = {start(row): [one for one in rows if start(one) == start(row)] for row in rows}
    lines = [
        (
            f"{row['optimizer.learning_rate']:g}",
            loss(row),
            prior(row),
            outcomes.over_seeds(row, lambda one: one["first_loss"]),
            sum(one["status"] == "diverged" for one in outcomes.of(row)),
            ranked_from(outcomes, row),
            found_from(outcomes, row),
            *outcomes.scores(row),
        )
        for row in rows
    ]
    start_and_way = ("loss at step 1", "diverged", "AP > 0.1 from", "recall > 0.1 from")
    columns = ("learning rate", "loss", "π", *start_and_way, *SCORES)
    table = Table("SGD with momentum 0.9, not clipped, over rare pixels", columns, lines, highest=SCORES[:2])
    pictures = tuple(
        precision_curves(outcomes, {name(row): row for row in of}, f"SGD, {title}", f"curves_{i}")
        for i, (title, of) in enumerate(starts.items(), 1)
    )
    return (Section("With the paper's optimiser", "", (table,), pictures),)


STUDY = Study(
    "sgd_focal",
    "Is it the optimiser?",
    "Lin et al. 2017 (arXiv 1708.02002): with SGD at a learning rate of 0.01, cross entropy from the usual start "
    "diverges, and with the prior focal loss (γ = 2, α = ¼) is better than cross entropy. With AdamW and clipped "
    "gradients nothing diverges here, and cross entropy is the better one. Is that the optimiser?",
    sections,
)

if __name__ == "__main__":
    main_of(STUDY)
