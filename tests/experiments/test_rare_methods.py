import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import rare_methods as experiment
from experiments.rare_methods import AFTER, COLUMNS
from experiments.sweep import grid, results_io
from segjax import losses, metrics
from segjax.configs import rare_methods
from segjax.configs.rare_methods import BASELINE, DATA, PIXELS, RARE
from segjax.data import label_set
from segjax.data.labels import VOID
from segjax.models import Segmentation
from segjax.reporting import Spread
from segjax.training.config import from_leaves, leaves

FIXED = ("training.", "optimizer.", "model.width", "model.depth", "data.size")
PROVENANCE = {"command": "python", "commit": "abc", "device": "cpu", "cpu_threads": 1, "python": "3", "versions": {}}


@pytest.mark.parametrize("data", DATA)
def test_make_cells_has_twenty_methods_of_equal_training(data):
    cells = experiment.make_cells(data, (0,))
    assert len(cells) >= 20
    assert all(not key.startswith(FIXED) for cell in cells for key in cell.changes)


@pytest.mark.parametrize("data", DATA)
def test_pixels_and_rare_fit_the_classes(data):
    names = label_set(rare_methods.get_config(data).data).names
    assert len(PIXELS[data]) == len(names)
    shares = dict(zip(names, np.array(PIXELS[data]) / sum(PIXELS[data]), strict=True))
    assert max(shares[name] for name in RARE[data]) < 0.017 < min(shares[name] for name in set(names) - set(RARE[data]))


class Fixed:
    """A network with constant logits."""

    def __init__(self, logits):
        self.logits = jnp.asarray(logits)

    def apply(self, variables, images, *, train):
        assert not train
        return Segmentation(self.logits, None, None, jnp.zeros((1, 1, 1, 1)))


@pytest.fixture(scope="module")
def scene():
    """Returns config, labels and a batch of one road scene."""
    config, rng = rare_methods.get_config("road_debris"), np.random.default_rng(0)
    config = from_leaves(leaves(config) | {"data.size": (12, 16)})
    labels = (rng.random((2, 12, 16)) < 0.2).astype(np.uint8)
    labels[0, :2] = VOID
    batch = {
        "image": np.zeros((2, 12, 16, 3), np.uint8),
        "label": labels,
        "size": np.full((2, 2), (12, 16), np.int32),
        "where": np.ones(2, bool),
    }
    return config, labels, batch


def columns_of(config, batch, logits, **options):
    step = experiment.make_counts(config, Fixed(logits), 2, **options)
    state = type("State", (), {"variables": {}})()
    return experiment.scores(jax.device_get(jax.jit(lambda batch: step(state, batch))(batch)), 2)


def test_scores_of_a_perfect_network_are_one(scene):
    config, labels, batch = scene
    columns = columns_of(config, batch, 12.0 * np.eye(2, dtype=np.float32)[(labels == 1).astype(int)])
    found = experiment.rare_scores(columns, "road_debris", label_set(config.data).names)
    assert found == pytest.approx(dict.fromkeys(COLUMNS.values(), 1.0) | {"expected_calibration_error": 0}, abs=1e-4)


def test_scores_have_no_recall_where_no_threshold_has_the_precision(scene):
    config, labels, batch = scene
    columns = columns_of(config, batch, np.zeros((*labels.shape, 2), np.float32))
    assert columns["recall"] == [0.0]
    assert columns["average_precision"] == pytest.approx([(labels == 1).sum() / (labels != VOID).sum()], abs=5e-3)


def test_make_counts_adjusts_the_logits(scene):
    config, labels, batch = scene
    logits = np.random.default_rng(1).normal(size=(*labels.shape, 2)).astype(np.float32)
    adjustment = -losses.logit_adjustment(np.array([0.9, 0.1], np.float32))
    columns = columns_of(config, batch, logits, adjustment=adjustment)
    predicted = np.argmax(logits - np.log([0.9, 0.1]), axis=-1)
    confusion = metrics.confusion_matrix(labels, predicted, 2, where=labels != VOID)
    np.testing.assert_allclose(
        columns["iou_per_class"], metrics.segmentation_scores(confusion)["iou_per_class"], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"a": (0.5, 0.6), "b": (0.5, 0.62), "c": (0.1, 0.1)}, {"a": 1, "b": 1, "c": 3}),
        ({"a": (0.5,), "b": (0.4,), "c": (0.4,)}, {"a": 1, "b": 2, "c": 2}),
        ({"a": (0.5, 0.5), "b": (0.4, 0.4), "c": (0.2, 0.8)}, {"a": 1, "b": 2, "c": 1}),
    ],
    ids=["tie", "one seed", "wide spread"],
)
def test_ranks_by_two_standard_errors(values, expected):
    assert experiment.ranks({name: Spread(one) for name, one in values.items()}) == expected


def made_up(data, precision_of):
    """Returns the cells of two seeds of a data set and their results, of the average precision `precision_of(row)`."""
    cells, results = experiment.make_cells(data, (0, 1)), {}
    for cell in cells:
        columns = {
            "average_precision": [precision_of(cell.row)] * len(RARE[data]),
            "recall": [0.5] * len(RARE[data]),
            "iou_per_class": [0.25] * len(PIXELS[data]),
            "expected_calibration_error": 0.01,
        }
        results[cell.name] = {"status": "done", "columns": {cell.row: columns}, "provenance": PROVENANCE}
    return cells, results


def test_build_report_ranks_over_the_data_sets():
    made = {
        "road_debris": made_up("road_debris", lambda row: {"focal": 0.9, BASELINE: 0.8}.get(row, 0.5)),
        "camvid": made_up("camvid", lambda row: {"focal": 0.7, BASELINE: 0.2}.get(row, 0.5)),
    }
    cells, results = ({data: pair[i] for data, pair in made.items()} for i in (0, 1))
    report = experiment.build_report(cells, results)
    assert report.text.startswith("Over the data sets, focal ranks best, with a mean rank of 1.0.")
    overall, road, camvid = (section.tables[0] for section in report.sections)
    assert overall.rows[0][:4] == ("focal", "1.0", "1", "1")
    assert "asymmetric focal" not in [row[0] for row in overall.rows]  # of two classes only
    assert [row[:2] for row in road.rows[:3]] == [("focal", 1), (BASELINE, 2), ("weights, inverse frequency", 3)]
    assert camvid.rows[-1][:2] == (BASELINE, len(camvid.rows))


def test_of_methods_keeps_all_seeds_of_the_methods():
    cells = experiment.make_cells("camvid", (0, 1))
    chosen = {(cell.row, cell.config.seed) for cell in experiment.of_methods(cells, ["focal", "prior"])}
    assert chosen == {("prior", 0), ("prior", 1), ("focal", 0), ("focal", 1)}
    assert experiment.of_methods(cells, []) == cells


def test_method_with_fewer_seeds_than_the_baseline_has_no_rank():
    cells, results = made_up("road_debris", lambda row: {"focal": 0.9, BASELINE: 0.8}.get(row, 0.5))
    del results[cells[0].name.replace("cross_entropy", "focal")]
    report = experiment.build_report({"road_debris": cells}, {"road_debris": results})
    overall, road = (section.tables[0] for section in report.sections)
    assert "focal" not in [row[0] for row in overall.rows]
    assert [row[:2] for row in road.rows[:2]] == [("focal", None), (BASELINE, 1)]
    assert report.text.startswith("Over the data sets, cross entropy ranks best")
    assert "cross entropy has the best lowest seed, 0.800." in report.text


def test_build_report_leaves_out_data_without_a_baseline():
    cells, _ = made_up("camvid", lambda row: 0.5)
    report = experiment.build_report({"camvid": cells}, {"camvid": {}})
    assert report.sections == ()
    assert report.facts["cells"] == f"0 of {len(cells)} finished, 0 diverged"


def test_results_are_imported_from_an_earlier_report(tmp_path):
    cells, results = made_up("camvid", lambda row: 0.5)
    data = {"camvid": results_io.cells_as_json(cells, results)}
    file = tmp_path / "report.json"
    file.write_text(json.dumps({"data": data}))
    assert results_io.import_results(cells, tmp_path / "camvid", file, part="camvid") == len(cells)
    assert results_io.import_results(cells, tmp_path / "other", file, part="crackforest") == 0
    imported = {cell.name: grid.result_of(cell, tmp_path / "camvid") for cell in cells}
    assert experiment.by_method(cells, imported) == experiment.by_method(cells, results)


@pytest.mark.slow
def test_measure_has_the_adjusted_baseline(tiny_scenes, tmp_path, quiet, monkeypatch):
    changes = {"objective.loss": "softmax_cross_entropy", "objective.alpha": None, "model.prior": ()}
    base = from_leaves(leaves(tiny_scenes) | changes)
    monkeypatch.setattr(rare_methods, "get_config", lambda data: base.copy_and_resolve_references())
    monkeypatch.setattr(
        rare_methods, "get_rows", lambda data: {BASELINE: {}, "focal": {"objective.loss": "softmax_focal"}}
    )
    cells = experiment.make_cells("road_debris", (0,), steps=2)
    grid.run(cells, tmp_path, quiet, measure=experiment.measure)
    results = {cell.name: grid.result_of(cell, tmp_path) for cell in cells}
    table = experiment.by_method(cells, results)
    assert set(table) == {BASELINE, AFTER, "focal"}
    # Of two classes the adjustment does not change the order of the pixels, but the likeliest class.
    plain, after = table[BASELINE], table[AFTER]
    assert after["average_precision"].mean == pytest.approx(plain["average_precision"].mean, abs=2e-3)
    assert after["iou"].mean != plain["iou"].mean
    assert json.loads(json.dumps(results[cells[0].name]))["columns"][AFTER]["iou_per_class"][1] == after["iou"].mean
