import io
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from experiments.camvid import uncertainty_ladder as ladder
from experiments.camvid.ladder_scores import TOLERANCE, make_counts
from experiments.camvid.ladder_scores import scores as scores_of
from experiments.sweep import table_rows
from segjax import metrics
from segjax.data.labels import VOID
from segjax.models import Segmentation
from segjax.training import defaults, validate
from segjax.training.config import leaves


def quiet():
    return rich.console.Console(file=io.StringIO(), width=200)


@pytest.mark.parametrize("name", ladder.ROWS)
def test_every_row_is_a_valid_config(name):
    config = ladder.row_config(ladder.ROWS[name], seed=1)
    validate(config)
    assert config.seed == 1
    assert config.training.steps == 2202


def test_each_step_of_the_ladder_changes_one_thing():
    rows = [leaves(ladder.row_config(row, 0)) for row in ladder.LADDER]
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


def test_the_class_weights_are_the_root_of_the_median_frequency_scheme():
    counts = 1e6 * np.array(ladder.SHARES)
    np.testing.assert_allclose(ladder.CLASS_WEIGHTS, np.sqrt(np.median(counts) / counts), atol=5e-4)


class Fixed:
    """A network that always says the same."""

    def __init__(self, logits, variance):
        self.output = Segmentation(jnp.asarray(logits), None, jnp.asarray(variance), jnp.zeros((1, 1, 1, 1)))

    def clone(self, **fields):
        assert fields == {"dropout": "analytic"}
        return self

    def apply(self, variables, images, *, train, rate):
        assert not train
        return self.output


def test_the_columns_are_what_their_names_say():
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
    found = scores_of(jax.tree.map(np.asarray, counts), images=2)

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


def test_a_cell_is_trained_scored_and_written_once(tiny_recipe, tmp_path, monkeypatch):
    row = ladder.ROWS["+ sampled variance"]
    config = ladder.row_config(row, 0, steps=3)
    table_rows.run_cell(config, row, tmp_path / "runs", quiet(), make_counts, scores_of)
    (cell,) = table_rows.cells(tmp_path / "runs", ladder.ROWS)
    assert (cell["row"], cell["seed"], cell["steps"]) == ("+ sampled variance", 0, 3)
    assert all(0 <= cell[key] <= 1 for key in ladder.COLUMNS.values())
    assert len(cell["iou_per_class"]) == len(cell["classes"]) == 11
    monkeypatch.setattr(table_rows, "train", None)  # a second call would fail
    table_rows.run_cell(config, row, tmp_path / "runs", quiet(), make_counts, scores_of)


def test_the_table_has_mean_and_spread_and_leaves_out_what_was_not_run(tmp_path):
    for seed, value in ((0, 0.5), (1, 0.6)):
        folder = table_rows.cell_folder(tmp_path, ladder.ROWS["CE, void left out"], seed)
        folder.mkdir(parents=True)
        scores = dict.fromkeys(ladder.COLUMNS.values(), value)
        (folder / "cell.json").write_text(json.dumps({"row": "CE, void left out", "seed": seed, **scores}))
    table = ladder.table(table_rows.cells(tmp_path, ladder.ROWS), ladder.LADDER, "title")
    assert [(*row[:2], row[2].values) for row in table.rows] == [("CE, void left out", "2", (0.5, 0.6))]
    milliseconds = {"CE": 200.0, "CE, void left out": 190.0}
    timed = ladder.table(table_rows.cells(tmp_path, ladder.ROWS), ladder.LADDER, "title", milliseconds)
    assert (timed.columns[-1], timed.rows[0][-1]) == ("time a step", "0.95")


def test_an_unknown_row_is_refused_with_the_names_there_are(tmp_path, python):
    done = python("-m", "experiments.camvid.uncertainty_ladder", f"--workdir={tmp_path}", "--row=dropout")
    assert done.returncode != 0
    assert "no row is called dropout; the rows are CE; + curriculum" in done.stdout + done.stderr
