"""Tables of reports from made-up results: FL*, OHEM, SGD, the training length, and those of detectors."""

import importlib

import pytest

from experiments.focal_paper import focal_ablation, focal_star, ohem_vs_focal, prior_init, sgd_focal, training_length
from experiments.sweep import paper_report
from segjax import boxes
from segjax.configs import focal_star as focal_star_config
from segjax.configs import ohem_vs_focal as ohem_config
from segjax.configs import sgd_focal as sgd_config
from segjax.configs import training_length as length_config
from segjax.reporting import cell

OHEM_NAMES = [
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
LENGTH_NAMES = ["balanced CE, α = 0.25", "CE", "FL, γ = 2, α = 0.1", "FL, γ = 2, α = 0.25", "softmax CE"]


def test_focal_star_rows_and_published_numbers(made_up):
    (section,) = focal_star.sections(made_up(focal_star_config, lambda cell: 0.25))
    (table,) = section.tables
    assert [(row[0], row[-1]) for row in table.rows] == [
        ("CE", "31.1 %"),
        ("FL, γ = 2", "34.0 %"),
        ("FL*, γ = 2, β = 1", "33.8 %"),
        ("FL*, γ = 4, β = 0", "33.9 %"),
    ]


def test_ohem_rows_published_numbers_and_divergence(made_up):
    results = made_up(ohem_config, lambda cell: None if cell.config.objective.loss == "hinge" else 0.25)
    (section,) = ohem_vs_focal.sections(results)
    (table,) = section.tables
    assert [row[0] for row in table.rows] == OHEM_NAMES
    published = {row[0]: row[-1] for row in table.rows if row[-1] is not None}
    assert published == {"OHEM, hardest 6.25 %": "32.8 %", "OHEM 1:3": "31.1 %", "FL, γ = 2, α = 0.25": "36.0 %"}
    (hinge,) = (row for row in table.rows if row[0] == "hinge")
    assert cell(hinge[1]) == "2 diverged"


def test_sgd_rows_count_diverged_seeds(made_up):
    def precision_of(cell):
        diverges = cell.config.optimizer.learning_rate == 0.01 and not cell.config.model.prior
        return None if diverges else 0.25

    (section,) = sgd_focal.sections(made_up(sgd_config, precision_of))
    (table,) = section.tables
    assert len({row[:3] for row in table.rows}) == len(table.rows) == 4 * 2 * 2
    assert {row[:3]: row[4] for row in table.rows if row[4]} == {("0.01", "CE", None): 2, ("0.01", "focal", None): 2}
    assert [picture.name for picture in section.pictures] == ["curves_1", "curves_2"]


def test_sgd_finding_is_the_best_rate_of_each_loss_and_start(made_up):
    def precision_of(cell):
        rate, balanced = cell.config.optimizer.learning_rate, cell.config.objective.alpha == 0.9
        return rate if cell.config.model.prior and not balanced else 0.01

    results = made_up(sgd_config, precision_of, data="road_debris_boxes")
    assert sgd_focal.finding(results) == (
        "AP of boxes at the best learning rate of each: CE, no prior: 0.010; focal, no prior: 0.010; "
        "CE, π = 0.01: 0.300; focal, π = 0.01: 0.300; CE, α = 0.9, π = 0.01: 0.010."
    )


def test_sgd_cells_have_the_papers_optimizer():
    for sgd_cell in paper_report.make_cells(sgd_config, "cpu", "road_debris"):
        optimizer = sgd_cell.config.optimizer
        assert (optimizer.name, optimizer.momentum, optimizer.clip_norm) == ("sgd", 0.9, 0.0)
        assert optimizer.warmup_fraction == 0
        assert sgd_cell.config.objective.normalizer == "positives"


def test_training_length_cells_have_four_times_the_steps():
    for steps, expected in ((None, 1200), (8, 8)):
        cells = paper_report.make_cells(length_config, "cpu", "road_debris", steps=steps)
        assert {cell.config.training.steps for cell in cells} == {expected}


def test_training_length_scores_of_each_quarter(made_up):
    results = made_up(length_config, lambda cell: 0.5)
    for result in results.by_cell.values():
        result["steps"] = 100
        result["curves"] = {"step": [10, 40, 60, 100], "average_precision": [0.1, 0.7, None, 0.5]}
    (section,) = training_length.sections(results)
    (table,) = section.tables
    assert [row[0] for row in table.rows] == LENGTH_NAMES
    row = table.rows[1]
    assert [spread.mean for spread in row[1:6]] == pytest.approx([0.1, 0.7, float("nan"), 0.5, 0.7], nan_ok=True)
    for result in results.by_cell.values():  # not evaluated in the first quarter
        result["curves"] = {"step": [50, 100], "average_precision": [0.2, 0.3]}
    assert training_length.precision_at(results, results.rows()[0], 0.25).values == ()


@pytest.mark.parametrize("paper", [focal_ablation, focal_star, ohem_vs_focal, prior_init, sgd_focal])
def test_sections_of_detectors_have_the_scores_of_boxes(paper, made_up):
    config = importlib.import_module(f"segjax.configs.{paper.PAPER_REPORT.name}")
    results = made_up(config, lambda cell: 0.25, data="road_debris_boxes")
    for section in paper.sections(results):
        for table in section.tables:
            if table.columns[0] != "γ" or "AP50" in table.columns:  # else the grid of one score
                start = table.columns.index("AP of boxes")
                assert table.columns[start : start + 3] == ("AP of boxes", "AP50", "AR100")
                assert [cell(value) for value in table.rows[0][start : start + 2]] == ["0.250 ± 0.000", "0.500 ± 0.000"]


def test_ohem_of_detectors_keeps_the_papers_numbers_of_anchors():
    cells = paper_report.make_cells(ohem_config, "cpu", "road_debris_boxes", seeds=(0,))
    anchors = sum(boxes.anchor_counts(cells[0].config.data.size, levels=cells[0].config.model.levels))
    shares = [each.changes["objective.hard_fraction"] for each in cells if "objective.hard_fraction" in each.changes]
    assert [round(share * anchors, -1) for share in shares] == [510, 260, 130]
