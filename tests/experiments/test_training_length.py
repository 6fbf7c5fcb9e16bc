"""The table of quarters from results that are made up."""

import pytest

from configs import training_length as config
from experiments.focal_paper import training_length
from experiments.sweep import paper_report

NAMES = ["balanced CE, α = 0.25", "CE", "FL, γ = 2, α = 0.1", "FL, γ = 2, α = 0.25", "softmax CE"]


def test_cells_have_four_times_the_steps_of_the_other_sweeps_and_steps_still_changes_them():
    assert {cell.config.training.steps for cell in paper_report.make_cells(config, "cpu", "road_debris")} == {1200}
    assert {cell.config.training.steps for cell in paper_report.make_cells(config, "cpu", "road_debris", steps=8)} == {
        8
    }


def test_a_row_has_the_last_evaluation_of_each_quarter_and_the_highest(made_up):
    outcomes = made_up(config, lambda cell: 0.5)
    for result in outcomes.by_cell.values():
        result["steps"] = 100
        result["curves"] = {"step": [10, 40, 60, 100], "average_precision": [0.1, 0.7, None, 0.5]}
    (section,) = training_length.sections(outcomes)
    (table,) = section.tables
    assert [row[0] for row in table.rows] == NAMES
    row = table.rows[1]
    assert [spread.mean for spread in row[1:6]] == pytest.approx([0.1, 0.7, float("nan"), 0.5, 0.7], nan_ok=True)


def test_a_training_that_was_not_evaluated_in_its_first_quarter_has_no_score_there(made_up):
    outcomes = made_up(config, lambda cell: 0.5)
    for result in outcomes.by_cell.values():
        result["steps"], result["curves"] = 100, {"step": [50, 100], "average_precision": [0.2, 0.3]}
    quarter = training_length.precision_at(outcomes, outcomes.rows()[0], 0.25)
    assert quarter.mean != quarter.mean
