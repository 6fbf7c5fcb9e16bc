"""The table of the paper's optimiser from results that are made up."""

from configs import sgd_focal as config
from experiments.focal_paper import sgd_focal
from experiments.sweep import paper_report


def test_every_rate_start_and_loss_is_a_row_and_what_diverged_is_counted(made_up):
    def precision_of(cell):
        wild = cell.config.optimizer.learning_rate == 0.01 and not cell.config.model.prior
        return None if wild else 0.25

    (section,) = sgd_focal.sections(made_up(config, precision_of))
    (table,) = section.tables
    assert len({row[:3] for row in table.rows}) == len(table.rows) == 4 * 2 * 2
    assert {row[:3]: row[4] for row in table.rows if row[4]} == {("0.01", "CE", None): 2, ("0.01", "focal", None): 2}
    assert [picture.name for picture in section.pictures] == ["curves_1", "curves_2"]


def test_all_cells_are_those_of_the_paper_but_for_rate_start_and_loss():
    for cell in paper_report.make_cells(config, "cpu", "road_debris"):
        optimizer = cell.config.optimizer
        assert (optimizer.name, optimizer.momentum, optimizer.clip_norm) == ("sgd", 0.9, 0.0)
        assert optimizer.warmup_fraction == 0
        assert cell.config.objective.normalizer == "positives"
