import math

import numpy as np
import pytest

from experiments.sweep import grid
from experiments.uncertainty import methods, scores
from segjax.data import UNSEEN, open_split


def _result(names, auroc, ece=0.05):
    one = {"aurc": 0.02, "average_precision": auroc / 4, "auroc": auroc, "fpr95": 0.4, "share": 0.05}
    calibration = {
        kind: {"ece": ece, "ace": ece, "nll": 1.0} for kind in ("none", "every other image", *scores.SCALINGS)
    }
    calibration["class"] = dict.fromkeys(("ece", "ace", "nll")) | {"error": "no optimum"}
    families = {scores.family_of(name): {"mean_iou": 0.5, "calibration": calibration} for name in names}
    images = {name: {"mean": {"aurc": 0.2, "excess_aurc": 0.1, "augrc": 0.05}} for name in names}
    return {"pixels": dict.fromkeys(names, one), "families": families, "images": images}


FOUND = {
    methods.ALL: [_result(["entropy", methods.BASELINE], 0.9)],
    methods.SOME: [_result(["entropy", methods.BASELINE], value) for value in (0.7, 0.8)],
    methods.EXPOSED: [_result(["entropy", methods.BASELINE], 0.95)],
    f"{methods.SOME}, ensemble": [_result(["ensemble: entropy"], 0.85)],
}


@pytest.mark.parametrize("data", methods.DATA)
def test_base_and_rows_are_valid_configs(data):
    base, rows = methods.base_and_rows(data)
    cells = grid.make_cells(base, rows, [0])
    assert {cell.row for cell in cells} <= methods.SEEDS.keys()
    unseen = [cell.row for cell in cells if cell.config.data.unseen_classes]
    assert unseen == [methods.SOME, methods.EXPOSED]


def test_pixel_table_has_a_row_per_method_and_the_exposed_networks():
    table = methods.pixel_table(FOUND)
    rows = {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}
    exposed = [f"{methods.EXPOSED}: {name}" for name in ("entropy", methods.BASELINE)]
    assert list(rows) == ["entropy", methods.BASELINE, "ensemble: entropy", *exposed]
    assert rows["entropy"]["unseen: AUROC"].mean == pytest.approx(0.75)
    assert rows["entropy"]["errors: AURC, %"].mean == pytest.approx(2)
    assert rows["ensemble: entropy"]["errors: AURC, %"] is None
    assert rows[f"{methods.EXPOSED}: entropy"]["unseen: AP"].mean == pytest.approx(0.95 / 4)


def test_family_table_without_an_optimum_is_empty_there():
    row = methods.family_table({methods.ALL: FOUND[methods.ALL]}).rows[0]
    assert row[:2] == (methods.ALL, "softmax")
    assert row[3].mean == pytest.approx(5)
    assert math.isnan(row[8].mean)


def test_image_table_has_a_row_per_score_and_aggregation():
    assert [row[:2] for row in methods.image_table(FOUND).rows] == [("entropy", "mean"), (methods.BASELINE, "mean")]


def test_finding_names_the_best_method_and_the_baseline():
    text = methods.finding(FOUND)
    assert text.startswith(f"{methods.EXPOSED}: entropy finds the unseen classes best: AUROC 0.950, against 0.750")
    assert "not been trained" in methods.finding({})


def test_examples_mark_unseen_or_void(tiny_scenes):
    config = tiny_scenes.copy_and_resolve_references().unlock()
    config.data.name = "road_debris_scene"
    for unseen in ((), ("debris",)):
        config.data.unseen_classes = unseen
        _, label, unknown = next(methods.examples(config))
        raw = open_split(config.data, config.data.eval_split, mark_unseen=True)[0]["label"]
        np.testing.assert_array_equal(unknown, raw == (UNSEEN if unseen else 255))
        assert (label[unknown] == 255).all()
        assert unknown.any()
