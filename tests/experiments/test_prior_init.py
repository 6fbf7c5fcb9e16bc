"""The table of the priors from results that are made up; and that a head with a prior does say it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import prior_init as config
from experiments.focal_paper import prior_init
from experiments.sweep import paper_report
from segjax.data.augment import prepare
from segjax.training.train_step import init_state, make_model


@pytest.fixture
def sections(made_up):
    """The worst start, cross entropy without a prior, diverges in seed 1."""

    def precision_of(cell):
        plain = cell.config.objective.loss == "sigmoid_cross_entropy" and not cell.config.model.prior
        return None if plain and cell.config.seed == 1 else 0.25

    return prior_init.sections(made_up(config, precision_of))


def test_there_is_a_row_for_every_start_of_every_loss(sections):
    sigmoid, softmax = (section.tables[0] for section in sections)
    assert len(sigmoid.rows) == 5 * 2 * 2
    assert len(softmax.rows) == 5 * 2
    assert {row[0] for row in sigmoid.rows} == {
        f"{loss}, over {pixels} pixels" for loss in ("CE", "focal") for pixels in ("all", "rare")
    }
    assert [row[1] for row in softmax.rows] == [None, "0.5", "0.1", "0.01", "0.001"] * 2


def test_steps_until_something_is_found_are_those_of_each_seed(sections):
    column = sections[0].tables[0].columns.index("recall > 0.1 from")
    assert {row[column] for row in sections[1].tables[0].rows} == {"3, never"}


def test_a_seed_that_diverged_is_counted_and_has_no_score(sections):
    (row,) = (row for row in sections[0].tables[0].rows if row[0] == "CE, over all pixels" and row[1] is None)
    assert row[3] == 1
    columns = sections[0].tables[0].columns
    assert row[columns.index("recall > 0.1 from")] == "3, diverged"
    assert row[columns.index("AP > 0.1 from")].endswith(", diverged")
    assert row[columns.index("average precision")] == ((0.25,), 1, 1)


def test_every_loss_has_its_curves(sections):
    names = [picture.name for section in sections for picture in section.pictures]
    assert len(names) == len(set(names)) == 6


# At step 0 the network says π, in the mean, whatever it is shown: within 10 %.


STARTS = [
    (loss, pi)
    for loss in ("sigmoid_cross_entropy", "sigmoid_focal", "softmax_cross_entropy", "softmax_focal")
    for pi in config.PRIORS
]


@pytest.mark.parametrize(("loss", "pi"), STARTS)
def test_a_fresh_head_says_its_prior(loss, pi, tiny_scenes):
    cells = paper_report.make_cells(config, "cpu", "road_debris", seeds=(0,))
    cell = next(cell for cell in cells if cell.config.objective.loss == loss and cell.config.model.prior[-1:] == (pi,))
    small = tiny_scenes.copy_and_resolve_references()
    small.model.prior, small.model.head_stddev = cell.config.model.prior, cell.config.model.head_stddev
    small.objective = cell.config.objective
    model = make_model(small, 2)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
    inputs = prepare(jnp.asarray(images), size=(32, 48), mean=tuple(small.data.mean), std=tuple(small.data.std))
    # As at the first training step: batch norm takes the batch's own statistics.
    output, _ = model.apply(init_state(small, model).variables, inputs, train=True, mutable=["batch_stats"])
    logits = output.logits
    probability = jax.nn.sigmoid(logits[..., 0]) if logits.shape[-1] == 1 else jax.nn.softmax(logits)[..., 1]
    assert float(probability.mean()) == pytest.approx(pi, rel=0.1)
