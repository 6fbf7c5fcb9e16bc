"""The appendix' table from results that are made up."""

from configs import focal_star as config
from experiments.focal_paper import focal_star


def test_the_rows_are_the_papers_with_its_numbers(made_up):
    (section,) = focal_star.sections(made_up(config, lambda cell: 0.25))
    (table,) = section.tables
    assert [(row[0], row[-1]) for row in table.rows] == [
        ("CE", "31.1 %"),
        ("FL, γ = 2", "34.0 %"),
        ("FL*, γ = 2, β = 1", "33.8 %"),
        ("FL*, γ = 4, β = 0", "33.9 %"),
    ]
