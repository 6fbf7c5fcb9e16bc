"""FL*, appendix A of the focal loss paper: `python -m experiments.focal_paper.focal_star --preset=cpu`."""

from typing import Any

from experiments.focal_paper.paper_numbers import TABLE_FL_STAR, percent
from experiments.sweep.paper_report import SCORES, Study, SweepResults, main_of, precision_curves
from segjax.reporting import Section, Table


def form(row: dict[str, Any]) -> tuple[str, float, float | None]:
    """Loss, γ and β as the paper names them."""
    gamma = row["objective.gamma"]
    if row["objective.loss"] == "sigmoid_focal_star":
        return "FL*", gamma, row["objective.beta"]
    return ("FL" if gamma else "CE"), gamma, None


def name(row: dict[str, Any]) -> str:
    """The loss with its numbers."""
    loss, gamma, beta = form(row)
    return loss if loss == "CE" else f"{loss}, γ = {gamma:g}" + ("" if beta is None else f", β = {beta:g}")


def sections(outcomes: SweepResults) -> tuple[Section, ...]:
    """The appendix' table, and the curves."""
    rows = outcomes.rows()
    lines = [(name(row), *outcomes.scores(row), percent(TABLE_FL_STAR.get(form(row)))) for row in rows]
    table = Table("FL* and FL", ("loss", *SCORES, "paper: AP"), lines, highest=SCORES[:2])
    picture = precision_curves(outcomes, {name(row): row for row in rows}, "Average precision through training")
    text = "Beside them the paper's best of each loss: its CE has α = ¾ and its FL and FL* α = ¼, where ours have ½."
    return (Section("Appendix A: another form of the focal loss", text, (table,), (picture,)),)


STUDY = Study(
    "focal_star",
    "FL*, another form of the focal loss",
    "Lin et al. 2017 (arXiv 1708.02002, appendix A): FL* = -log σ(γ x_t + β) / γ, a steeper and shifted cross entropy, "
    "does as well as FL on COCO, so the exact form does not matter. Does it here? α = ½ in all rows.",
    sections,
)

if __name__ == "__main__":
    main_of(STUDY)
