"""The tables of the priors from made-up results, and the mean prediction of a new head with a prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.focal_paper import prior_init
from experiments.sweep import paper_report
from segjax.configs import prior_init as config
from segjax.data.augment import prepare
from segjax.training.network import make_model
from segjax.training.train_step import init_state


@pytest.fixture
def sections(made_up):
    """Returns the sections of results in which cross entropy without a prior diverges with seed 1."""

    def precision_of(cell):
        plain = cell.config.objective.loss == "sigmoid_cross_entropy" and not cell.config.model.prior
        return None if plain and cell.config.seed == 1 else 0.25

    return prior_init.sections(made_up(config, precision_of))


def test_sections_have_one_row_per_start_and_loss(sections):
    sigmoid, softmax = (section.tables[0] for section in sections)
    assert len(sigmoid.rows) == 5 * 2 * 2
    assert len(softmax.rows) == 5 * 2
    assert {row[0] for row in sigmoid.rows} == {
        f"{loss}, over {pixels} pixels" for loss in ("CE", "focal") for pixels in ("all", "rare")
    }
    assert [row[1] for row in softmax.rows] == [None, "0.5", "0.1", "0.01", "0.001"] * 2


def test_sections_steps_of_each_seed(sections):
    column = sections[0].tables[0].columns.index("recall > 0.1 from")
    assert {row[column] for row in sections[1].tables[0].rows} == {"3, never"}


def test_sections_count_diverged_seeds(sections):
    (row,) = (row for row in sections[0].tables[0].rows if row[0] == "CE, over all pixels" and row[1] is None)
    assert row[3] == 1
    columns = sections[0].tables[0].columns
    assert row[columns.index("recall > 0.1 from")] == "3, diverged"
    assert row[columns.index("AP > 0.1 from")].endswith(", diverged")
    assert row[columns.index("average precision")] == ((0.25,), 1, 1)


def test_sections_have_curves_of_every_loss(sections):
    names = [picture.name for section in sections for picture in section.pictures]
    assert len(names) == len(set(names)) == 6


@pytest.mark.parametrize("loss", ["sigmoid_focal", pytest.param("softmax_focal", marks=pytest.mark.slow)])
def test_new_head_predicts_its_prior_on_average(loss, tiny_scenes):
    cells = paper_report.make_cells(config, "cpu", "road_debris", seeds=(0,))
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
    data, forward = tiny_scenes.data, None
    inputs = prepare(jnp.asarray(images), size=(32, 48), mean=tuple(data.mean), std=tuple(data.std))
    for pi in config.PRIORS:
        small = tiny_scenes.copy_and_resolve_references()
        cell = next(c for c in cells if c.config.objective.loss == loss and c.config.model.prior[-1:] == (pi,))
        small.model.prior, small.model.head_stddev = cell.config.model.prior, cell.config.model.head_stddev
        small.objective = cell.config.objective
        model = make_model(small, 2)
        # As in the first training step: batch norm uses the statistics of the batch.
        forward = forward or jax.jit(lambda v, x, m=model: m.apply(v, x, train=True, mutable=["batch_stats"])[0].logits)
        logits = forward(init_state(small, model).variables, inputs)
        probability = jax.nn.sigmoid(logits[..., 0]) if loss == "sigmoid_focal" else jax.nn.softmax(logits)[..., 1]
        assert float(probability.mean()) == pytest.approx(pi, rel=0.1)
