"""FL*, appendix A of the focal loss paper: `python -m experiments.focal_paper.focal_star --preset=cpu`."""

from typing import Any

from experiments.focal_paper.paper_numbers import TABLE_FL_STAR, percent
from experiments.sweep.paper_report import PaperReport, SweepResults, main_of, precision_curves
from segjax.reporting import Section, Table


def form(row: dict[str, Any]) -> tuple[str, float, float | None]:
    """Returns loss, γ and β of a row, named as in the paper."""
    gamma = row["objective.gamma"]
    if row["objective.loss"] == "sigmoid_focal_star":
        return "FL*", gamma, row["objective.beta"]
    return ("FL" if gamma else "CE"), gamma, None


def name(row: dict[str, Any]) -> str:
    """Returns the name of a row: its loss with γ and β."""
    loss, gamma, beta = form(row)
    return loss if loss == "CE" else f"{loss}, γ = {gamma:g}" + ("" if beta is None else f", β = {beta:g}")


def sections(results: SweepResults) -> tuple[Section, ...]:
    """Returns the table of appendix A, with curves."""
    rows = results.rows()
    lines = [(name(row), *results.scores(row), percent(TABLE_FL_STAR.get(form(row)))) for row in rows]
    table = Table("FL* and FL", ("loss", *results.columns, "paper: AP"), lines, highest=results.columns[:2])
    picture = precision_curves(results, {name(row): row for row in rows}, "Average precision")
    text = "The last column is the paper's best result per loss: α = ¾ for CE, ¼ for FL and FL*. Our rows have α = ½."
    return (Section("Appendix A: another form of the focal loss", text, (table,), (picture,)),)


PAPER_REPORT = PaperReport(
    "focal_star",
    "FL*, another form of the focal loss",
    "Lin et al. 2017 (arXiv 1708.02002, appendix A): FL* = -log σ(γ x_t + β) / γ, a steeper and shifted cross entropy, "
    "does as well as FL on COCO, so the exact form does not matter. Does it matter here? All rows have α = ½.",
    sections,
)

if __name__ == "__main__":
    main_of(PAPER_REPORT)
