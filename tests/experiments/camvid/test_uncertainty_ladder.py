import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.camvid import uncertainty_ladder as ladder
from experiments.camvid.uncertainty_ladder import TOLERANCE, make_counts
from experiments.sweep import grid, table_rows
from segjax import metrics
from segjax.data.labels import VOID
from segjax.models import Segmentation
from segjax.training import defaults
from segjax.training.config import leaves


def test_rows_are_valid_configs_of_the_same_length():
    cells = grid.make_cells(ladder.base_config(), ladder.ROWS, (1,))
    assert {cell.config.training.steps for cell in cells} == {2202}


def test_each_step_of_the_ladder_changes_one_thing():
    rows = [leaves(cell.config) for cell in grid.make_cells(ladder.base_config(), ladder.LADDER, (0,))]
    changed = [{key for key in before if before[key] != after[key]} for before, after in itertools.pairwise(rows)]
    assert changed[:4] == [
        {"training.phases"},
        {"objective.boundary_factor"},
        {"model.dropout", "objective.uncertainty_weight"},
        {"model.dropout"},
    ]
    sampled = rows[3]
    against_sampled = [{key for key in sampled if sampled[key] != row[key]} for row in rows[5:7]]
    assert against_sampled == [{"objective.loss"}, {"objective.class_weights"}]
    assert {key for key in rows[0] if rows[0][key] != rows[7][key]} == {"objective.void"}


def test_answer_compares_the_recipe_with_cross_entropy():
    cells = [
        {"row": "CE", "mean_iou": 0.4},
        {"row": "CE", "mean_iou": 0.5},
        {"row": "+ sampled variance", "mean_iou": 0.4},
    ]
    assert "lowers mean IoU, from 0.450 (cross entropy) to 0.400" in ladder.answer(cells)
    assert ladder.answer(cells[:2]) == ""


def test_class_weights_are_the_root_of_the_median_frequency_scheme():
    counts = 1e6 * np.array(ladder.SHARES)
    np.testing.assert_allclose(ladder.CLASS_WEIGHTS, np.sqrt(np.median(counts) / counts), atol=5e-4)


class Fixed:
    """A network with constant output."""

    def __init__(self, logits, variance):
        self.output = Segmentation(jnp.asarray(logits), None, jnp.asarray(variance), jnp.zeros((1, 1, 1, 1)))

    def clone(self, **fields):
        assert fields == {"dropout": "analytic"}
        return self

    def apply(self, variables, images, *, train, rate):
        assert not train
        return self.output


def test_make_counts_and_scores_of_known_outputs():
    rng, classes, shape = np.random.default_rng(0), 3, (2, 12, 16)
    labels = rng.integers(0, classes, shape).astype(np.uint8)
    labels[0, :3], labels[1, :, :5] = VOID, VOID
    logits = rng.normal(size=(*shape, classes + 1)).astype(np.float32)
    variance = rng.random((*shape, classes + 1)).astype(np.float32)
    config = defaults()
    config.data.size, config.objective.void = shape[1:], "class"
    step = make_counts(config, Fixed(logits, variance), classes)
    state = type("State", (), {"variables": {}})()
    counts = jax.jit(step, static_argnums=0)(
        state,
        {
            "image": np.zeros((*shape, 3), np.uint8),
            "label": labels,
            "size": np.array([shape[1:]] * 2, np.int32),
            "where": np.array([True, True]),
        },
    )
    found = ladder.scores(jax.tree.map(np.asarray, counts), images=2)

    kept, predicted = labels != VOID, logits[..., :classes].argmax(-1)
    assert found["pixel_accuracy"] == pytest.approx((predicted == labels)[kept].mean())
    with_void = (logits.argmax(-1) == np.where(labels == VOID, classes, labels)).mean((1, 2))
    assert found["recipe_jaccard"] == pytest.approx(with_void.mean(), rel=1e-6)
    u, wrong = variance.mean(-1).ravel(), (predicted != labels).ravel()
    ranked = wrong[np.argsort(-u)]
    precision = np.cumsum(ranked) / np.arange(1, ranked.size + 1)
    assert found["void_or_wrong_average_precision"] == pytest.approx(precision[ranked].mean(), abs=0.02)
    boundary = metrics.boundary_counts(labels.astype(np.int32), predicted, classes, tolerance=TOLERANCE, where=kept)
    assert found["boundary_f1"] == float(metrics.boundary_f1(boundary)["mean_boundary_f1"])
    bins = metrics.calibration_bins(logits[..., :classes], labels.astype(np.int32), where=kept)
    assert found["expected_calibration_error"] == pytest.approx(float(metrics.expected_calibration_error(bins)))


@pytest.mark.slow
def test_row_is_trained_scored_and_written_once(tiny_recipe, tmp_path, quiet):
    options = SimpleNamespace(row=["+ sampled variance"], seed=[0], only_table=False)
    run = (options, ladder.ROWS, ladder.base_config(3), tmp_path / "runs", quiet, make_counts, ladder.scores)
    table_rows.run_cells(*run)
    (cell,) = table_rows.finished_cells(tmp_path / "runs", ladder.ROWS)
    assert (cell["row"], cell["seed"], cell["steps"]) == ("+ sampled variance", 0, 3)
    assert all(0 <= cell[key] <= 1 for key in ladder.COLUMNS.values())
    assert len(cell["iou_per_class"]) == len(cell["classes"]) == 11
    printed = quiet.file.getvalue()
    table_rows.run_cells(*run)  # runs nothing
    assert quiet.file.getvalue() == printed


def test_table_has_mean_and_spread_of_the_rows_that_were_run():
    cells = [
        {"row": "CE, void left out", "seed": seed, **dict.fromkeys(ladder.COLUMNS.values(), value)}
        for seed, value in ((0, 0.5), (1, 0.6))
    ]
    table = ladder.table(cells, ladder.LADDER, "title")
    assert [(*row[:2], row[2].values) for row in table.rows] == [("CE, void left out", "2", (0.5, 0.6))]
    milliseconds = {"CE": 200.0, "CE, void left out": 190.0}
    timed = ladder.table(cells, ladder.LADDER, "title", milliseconds)
    assert (timed.columns[-1], timed.rows[0][-1]) == ("time per step", "0.95")


@pytest.mark.slow
def test_command_names_an_unknown_row(tmp_path, python):
    done = python("-m", "experiments.camvid.uncertainty_ladder", f"--workdir={tmp_path}", "--row=dropout")
    assert done.returncode != 0
    assert "--row=dropout is not a row; the rows are CE; + curriculum" in done.stdout + done.stderr
