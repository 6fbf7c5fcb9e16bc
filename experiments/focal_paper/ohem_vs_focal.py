"""OHEM beside focal loss, table 1d: `python -m experiments.focal_paper.ohem_vs_focal --preset=cpu`.

OHEM by fraction, by threshold and 1:3, and hinge, against focal loss, all from the same prior bias. Table 1d of the
focal loss paper; `configs/ohem_vs_focal.py` has the grid.
"""

import math
from typing import Any

from experiments.focal_paper.paper_numbers import TABLE_1D, percent
from experiments.sweep.paper_report import SCORES, Study, SweepResults, main_of, precision_curves
from segjax.reporting import Section, Table


def name(row: dict[str, Any]) -> str:
    """What is trained with."""
    if "objective.hard_fraction" in row:
        return f"OHEM, hardest {100 * row['objective.hard_fraction']:.3g} %"
    if "objective.hard_threshold" in row:
        return f"OHEM, p_t below {math.exp(-row['objective.hard_threshold']):.2g}"
    if "objective.negatives_per_positive" in row:
        return f"OHEM 1:{row['objective.negatives_per_positive']:g}"
    if row["objective.loss"] == "sigmoid_focal":
        return f"FL, γ = {row['objective.gamma']:g}, α = {row['objective.alpha']:g}"
    return "hinge" if row["objective.loss"] == "hinge" else "CE"


def published(row: dict[str, Any]) -> float | None:
    """The paper's AP of what comes nearest; its fractions and batches of boxes are not ours of pixels."""
    if row.get("objective.negatives_per_positive") == 3:
        return TABLE_1D["OHEM 1:3"]
    if row.get("objective.gamma") == 2 and row["objective.alpha"] == 0.25:
        return TABLE_1D["FL"]
    return TABLE_1D["OHEM"] if row.get("objective.hard_fraction") == 0.0625 else None


def sections(outcomes: SweepResults) -> tuple[Section, ...]:
    """The table and the curves."""
    rows = outcomes.rows()
    lines = [(name(row), *outcomes.scores(row), percent(published(row))) for row in rows]
    table = Table("Mining and focal loss", ("loss", *SCORES, "paper: AP"), lines, highest=SCORES[:2])
    picture = precision_curves(outcomes, {name(row): row for row in rows}, "Average precision through training")
    text = (
        "The paper's OHEM is the best of those it tried, which keep 128 to 512 boxes of an image after non-maximum "
        "suppression. Pixels have no such thing: its number stands beside the hardest 1/16 only to be there."
    )
    return (Section("Table 1d: OHEM and focal loss", text, (table,), (picture,)),)


STUDY = Study(
    "ohem_vs_focal",
    "Mining hard pixels, or weighing them",
    "Lin et al. 2017 (arXiv 1708.02002, table 1d): with ResNet-101 focal loss reaches AP 36.0 on COCO, the best OHEM "
    "32.8 and the best OHEM 1:3 31.1; hinge loss was unstable. Is it better to drop what is easy, or to weigh it?",
    sections,
)

if __name__ == "__main__":
    main_of(STUDY)
