"""Boxes and pixels: hidden pixels, the shares of positives and the table."""

import pickle

import numpy as np
import pytest

from experiments.focal_paper import boxes_and_pixels
from experiments.focal_paper.boxes_and_pixels import HiddenPixels, positives, sections
from experiments.sweep import grid
from segjax.configs import focal_ablation, rare_class
from segjax.data.labels import VOID
from segjax.training import open_split


@pytest.fixture(scope="module")
def split(tiny_scenes):
    return open_split(tiny_scenes.data, "train")


def test_hidden_pixels_are_void_and_the_same_every_time(split):
    whole, hidden = split[3]["label"], HiddenPixels(split, 0.25)
    changed = hidden[3]["label"] != whole
    assert set(hidden[3]["label"][changed]) == {VOID}
    assert set(whole[changed]) == {split.label_set.rare}
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(hidden))[3]["label"], hidden[3]["label"])


def test_positives_is_the_share_of_the_labelled_pixels(tiny_scenes, split):
    labels = np.stack([split[i]["label"] for i in range(len(split))])
    assert positives(tiny_scenes) == (labels == 1).sum() / (labels != VOID).sum()
    assert positives(tiny_scenes, 0.25) == pytest.approx(0.25 * positives(tiny_scenes), rel=0.3)


def test_positives_of_a_detector_is_the_share_of_its_anchors(tiny_scenes):
    config = rare_class.get_config("smoke", "road_debris_boxes")
    config.data = tiny_scenes.data.copy_and_resolve_references()
    config.data.box_classes, config.data.max_boxes = ("debris",), 16
    config.data.size = config.data.scene_size
    anchors = 9 * (32 * 48 + 16 * 24 + 8 * 12)
    assert 1 / (8 * anchors) < positives(config) < 0.05


def test_sections_compare_the_best_alphas(made_up):
    def precision_of(cell):
        return {0.0: 0.5, 2.0: 0.6}.get(cell.config.objective.gamma, 0.1) - abs(cell.config.objective.alpha - 0.25)

    results = made_up(focal_ablation, precision_of)
    (section,) = sections({"pixels": (results, 0.005)})
    assert [row[:4] for row in section.tables[0].rows] == [
        ("pixels", "0.500 %", "CE", "0.25"),
        ("", "", "FL, γ = 2", "0.25"),
    ]
    assert section.text.endswith("α of its grid: pixels: +20 %.")


def test_make_cells_changes_gamma_and_alpha_only():
    cells = boxes_and_pixels.make_cells((0, 1))
    assert len(cells) == 24
    assert {grid.program(cell.config) for cell in cells} == {grid.program(cells[0].config)}
