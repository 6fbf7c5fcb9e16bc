"""OHEM and focal loss, table 1d of the paper: `python -m experiments.focal_paper.ohem_vs_focal --preset=cpu`.

Compares OHEM by fraction, by threshold and 1:3, and hinge loss, with focal loss, all from the same prior bias.
`configs/ohem_vs_focal.py` has the grid.
"""

import math
from typing import Any

from experiments.focal_paper.paper_numbers import OHEM_BY_BATCH, TABLE_1D, percent
from experiments.sweep.paper_report import PaperReport, SweepResults, main_of, precision_curves
from segjax.configs.ohem_vs_focal import BOX_FRACTIONS
from segjax.reporting import Section, Table


def name(row: dict[str, Any]) -> str:
    """Returns the name of a row: its loss and mining."""
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
    """Returns the paper's AP of the nearest method; its batches of boxes are not fractions of pixels."""
    if row.get("objective.negatives_per_positive") == 3:
        return TABLE_1D["OHEM 1:3"]
    if row.get("objective.gamma") == 2 and row["objective.alpha"] == 0.25:
        return TABLE_1D["FL"]
    of_boxes = {fraction: OHEM_BY_BATCH[number] for number, fraction in BOX_FRACTIONS.items()}
    return (of_boxes | {0.0625: TABLE_1D["OHEM"]}).get(row.get("objective.hard_fraction"))


def sections(results: SweepResults) -> tuple[Section, ...]:
    """Returns the table and the curves."""
    rows = results.rows()
    lines = [(name(row), *results.scores(row), percent(published(row))) for row in rows]
    table = Table("Mining and focal loss", ("loss", *results.columns, "paper: AP"), lines, highest=results.columns[:2])
    picture = precision_curves(results, {name(row): row for row in rows}, "Average precision")
    text = (
        "The paper's OHEM number is the best of several variants, which keep 128 to 512 boxes per image after "
        "non-maximum suppression. Pixels have no counterpart of this; the number stands beside the hardest 1/16."
    )
    if results.on_boxes:
        text = (
            "The fractions are 512, 256 and 128 anchors per image, as in the paper, whose OHEM selects boxes after "
            "non-maximum suppression, per image. Ours selects anchors of the whole batch."
        )
    return (Section("Table 1d: OHEM and focal loss", text, (table,), (picture,)),)


PAPER_REPORT = PaperReport(
    "ohem_vs_focal",
    "Mining hard pixels or weighting them",
    "Lin et al. 2017 (arXiv 1708.02002, table 1d): with ResNet-101 focal loss reaches AP 36.0 on COCO, the best OHEM "
    "32.8 and the best OHEM 1:3 31.1; hinge loss was unstable. Is it better to drop easy pixels, or to weight them?",
    sections,
)

if __name__ == "__main__":
    main_of(PAPER_REPORT)
