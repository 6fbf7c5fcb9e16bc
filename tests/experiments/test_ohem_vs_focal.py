"""The names and the published numbers of table 1d, from results that are made up."""

from configs import ohem_vs_focal as config
from experiments.focal_paper import ohem_vs_focal
from segjax.reporting import cell

NAMES = [
    "CE",
    "OHEM, hardest 25 %",
    "OHEM, hardest 6.25 %",
    "OHEM, hardest 1.56 %",
    "OHEM, p_t below 0.95",
    "OHEM, p_t below 0.7",
    "OHEM 1:1",
    "OHEM 1:3",
    "OHEM 1:10",
    "hinge",
    "FL, γ = 2, α = 0.25",
    "FL, γ = 2, α = 0.5",
    "FL, γ = 2, α = 0.75",
]


def test_every_way_of_mining_has_its_row(made_up):
    (section,) = ohem_vs_focal.sections(made_up(config, lambda cell: 0.25))
    (table,) = section.tables
    assert [row[0] for row in table.rows] == NAMES
    published = {row[0]: row[-1] for row in table.rows if row[-1] is not None}
    assert published == {"OHEM, hardest 6.25 %": "32.8 %", "OHEM 1:3": "31.1 %", "FL, γ = 2, α = 0.25": "36.0 %"}


def test_hinge_that_diverges_says_so(made_up):
    outcomes = made_up(config, lambda cell: None if cell.config.objective.loss == "hinge" else 0.25)
    (section,) = ohem_vs_focal.sections(outcomes)
    (hinge,) = (row for row in section.tables[0].rows if row[0] == "hinge")
    assert cell(hinge[1]) == "2 diverged"
