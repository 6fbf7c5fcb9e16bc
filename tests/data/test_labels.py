import numpy as np
import pytest

from segjax.data.io import DataError
from segjax.data.labels import (
    LABEL_SETS,
    UNDEFINED,
    UNSEEN,
    VOID,
    LabelSet,
    colorize,
    numbered_classes,
    to_train_ids,
)
from segjax.data.road_debris import SCENE_CLASSES
from segjax.data.road_debris import VOID as SCENE_VOID


@pytest.mark.parametrize("name", LABEL_SETS)
def test_label_sets_every_class_has_an_id_and_a_colour(name):
    labels = LABEL_SETS[name]
    assert sorted(set(labels.lut.tolist()) - {VOID, UNDEFINED}) == list(range(labels.num_classes))
    assert len({tuple(colour) for colour in labels.palette.tolist()}) == labels.num_classes


@pytest.mark.parametrize(
    ("name", "classes", "raw", "train_ids"),
    [
        ("camvid", 11, [0, 10, 11], [0, 10, VOID]),
        ("cityscapes", 19, [0, 6, 7, 8, 26, 29, 33, 255], [VOID, VOID, 0, 1, 13, VOID, 18, VOID]),
        ("lost_and_found", 2, [0, 1, 2, 42], [VOID, 0, 1, 1]),
        ("crackforest", 2, [1, 2, 3, 4], [0, 1, VOID, VOID]),
        ("road_debris", 2, [0, 1, 2, 3, 4, 255], [0, 0, 0, 0, 1, VOID]),
        ("road_debris_scene", 5, [0, 4, 255], [0, 4, VOID]),
    ],
)
def test_to_train_ids_known_sets(name, classes, raw, train_ids):
    labels = LABEL_SETS[name]
    assert labels.num_classes == classes
    assert to_train_ids(np.array(raw, np.uint8), labels, "file").tolist() == train_ids


def test_label_set_of_scenes_equals_scene_classes():
    assert LABEL_SETS["road_debris_scene"].names == SCENE_CLASSES
    assert SCENE_CLASSES[4] == "debris"
    assert SCENE_VOID == VOID


def test_to_train_ids_unknown_id():
    with pytest.raises(ValueError, match=r"a/mask.png: label ids 5, 9-10 are outside the 2 classes; .* the ids 1-4"):
        to_train_ids(np.array([[1, 9], [5, 10]], np.uint8), LABEL_SETS["crackforest"], "a/mask.png")


def test_colorize_void_unseen_and_unknown_id():
    palette = LABEL_SETS["camvid"].palette
    painted = colorize(np.array([[0, 10], [VOID, UNSEEN]]), palette)
    assert painted.tolist() == [[[128, 128, 128], [0, 128, 192]], [[0, 0, 0], [0, 255, 255]]]
    with pytest.raises(ValueError, match="no colour for train id 11; the palette has 11 classes"):
        colorize(np.array([11]), palette)


def test_numbered_classes_values_and_default():
    assert numbered_classes(("a", "b", "c")).lut[[0, 1, 2, 3, 255]].tolist() == [0, 1, 2, UNDEFINED, VOID]
    assert numbered_classes(("a", "b"), (0, 255)).lut[[0, 1, 255]].tolist() == [0, UNDEFINED, 1]
    assert numbered_classes(("a", "b")).palette.tolist() == [[128, 0, 0], [0, 128, 0]]  # VOC's aeroplane and bicycle


@pytest.mark.parametrize("values", [(0,), (0, 0), (0, 256)])
def test_numbered_classes_invalid_values(values):
    with pytest.raises(ValueError, match=r"expected 2 different mask values in 0..255, one per class"):
        numbered_classes(("a", "b"), values)


def test_label_set_inconsistent_fields():
    palette, lut = np.zeros((2, 3), np.uint8), np.full(256, 5, np.uint8)
    with pytest.raises(ValueError, match="palette must have 1 colours, one per class; got 2"):
        LabelSet(("a",), palette, lut)
    with pytest.raises(ValueError, match="the lookup table contains train id 5, but there are 2 classes"):
        LabelSet(("a", "b"), palette, lut)


@pytest.mark.parametrize("names", [("a", "a"), ("a", ""), ("a", "b\n"), ("a", "\x1b[2J"), ("a", "\udcff")])
def test_numbered_classes_equal_empty_or_unprintable_names(names):
    with pytest.raises(DataError, match=r"config.data.class_names: expected distinct names, .*; got \('a', "):
        numbered_classes(names)
