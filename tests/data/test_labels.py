import inspect

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from segjax.data.labels import (
    LABEL_SETS,
    UNKNOWN,
    VOID,
    LabelSet,
    border_weights,
    colorize,
    numbered_classes,
    to_train_ids,
)
from segjax.data.road_debris import SCENE_CLASSES
from segjax.data.road_debris import VOID as SCENE_VOID


@pytest.mark.parametrize("name", LABEL_SETS)
def test_label_sets_every_class_has_an_id_and_a_colour(name):
    labels = LABEL_SETS[name]
    assert sorted(set(labels.lut.tolist()) - {VOID, UNKNOWN}) == list(range(labels.num_classes))
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


def test_colorize_void_and_unknown_id():
    palette = LABEL_SETS["camvid"].palette
    painted = colorize(np.array([[0, 10], [VOID, 3]]), palette)
    assert painted.tolist() == [[[128, 128, 128], [0, 128, 192]], [[0, 0, 0], [128, 64, 128]]]
    with pytest.raises(ValueError, match="no colour for train id 11; the palette has 11 classes"):
        colorize(np.array([11]), palette)


def test_numbered_classes_values_and_default():
    assert numbered_classes(("a", "b", "c")).lut[[0, 1, 2, 3, 255]].tolist() == [0, 1, 2, UNKNOWN, VOID]
    assert numbered_classes(("a", "b"), (0, 255)).lut[[0, 1, 255]].tolist() == [0, UNKNOWN, 1]
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


def boxes(count, shape, seed=0, size=6):
    """Returns an instance map of random boxes, later ones over earlier ones."""
    rng = np.random.default_rng(seed)
    instances = np.zeros(shape, np.int32)
    for number in range(1, count + 1):
        row, column = (rng.integers(0, side) for side in shape)
        height, width = rng.integers(1, size, 2)
        instances[row : row + height, column : column + width] = number
    return instances


def by_the_formula(instances, w0=10.0, sigma=5.0):
    """Computes all distances at once and takes the two smallest."""
    ids = np.unique(instances[instances != 0])
    if len(ids) < 2:
        return np.zeros(instances.shape, np.float32)
    first, second = np.sort([distance_transform_edt(instances != i) for i in ids], axis=0)[:2]
    return np.where(instances == 0, w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2)), 0).astype(np.float32)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0, 40.0])
def test_border_weights_equal_the_formula_bit_for_bit(sigma):
    for seed in range(4):
        instances = boxes(12, (60, 90), seed)
        np.testing.assert_array_equal(border_weights(instances, w0=3, sigma=sigma), by_the_formula(instances, 3, sigma))


def test_border_weights_equal_the_formula_down_to_the_smallest_float32():
    # The smallest nonzero weights belong to instances 14 σ apart, which a shorter window would lose.
    smallest = 1.0
    for gap in range(60, 80):
        instances = np.zeros((1, 82), np.int32)
        instances[0, [0, gap + 1]] = 1, 2
        weights = border_weights(instances)
        np.testing.assert_array_equal(weights, by_the_formula(instances))
        smallest = min(smallest, weights[weights > 0].min(initial=1.0))
    assert smallest < 1e-43


def test_border_weights_worked_example():
    # A gap of 3 between two cells: in its middle d1 = d2 = 2, beside a cell 1 and 3.
    weights = border_weights(np.array([[4, 4, 0, 0, 0, 9]]))
    np.testing.assert_allclose(weights, [[0, 0, *[10 * np.exp(-16 / 50)] * 3, 0]], rtol=1e-6)


def test_border_weights_decrease_with_the_gap():
    instances = np.zeros((9, 120), np.uint8)
    instances[:, 0:4], instances[:, 5:9], instances[:, 19:23] = 1, 2, 3
    weights = border_weights(instances)
    assert weights[4, 4] > weights[4, 14] > 0
    assert weights[4, 100] < 1e-6
    assert not weights[instances > 0].any()


@pytest.mark.parametrize("instances", [np.zeros((4, 5), int), np.full((4, 5), 3), np.eye(4, dtype=int) * 7])
def test_border_weights_zero_for_fewer_than_two_instances(instances):
    assert not border_weights(instances).any()


def test_border_weights_zero_without_background():
    assert not border_weights(np.array([[1, 2], [1, 2]])).any()


@pytest.mark.parametrize("ids", [(-3, 5), (26001, 26002), (255, 2**31 - 1), (2**40, -(2**40))])
def test_border_weights_any_instance_numbers(ids):
    plain = boxes(2, (20, 20), seed=3)
    renamed = np.select([plain == 1, plain == 2], ids, 0)
    np.testing.assert_array_equal(border_weights(renamed), border_weights(plain))


def test_border_weights_disconnected_instance():
    instances = np.array([[1, 0, 0, 0, 1, 0, 0, 2]])
    np.testing.assert_array_equal(border_weights(instances), by_the_formula(instances))
    assert border_weights(instances)[0, 2] == np.float32(10 * np.exp(-((2 + 5) ** 2) / 50))


def test_border_weights_are_float32_and_keep_the_input():
    instances = boxes(5, (20, 20))
    before = instances.copy()
    weights = border_weights(instances)
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(instances, before)


MAP = np.array([[1, 0, 2]])
BROKEN = {
    "float": ((MAP.astype(np.float32),), {}, TypeError, r"instances must be integers; got float32 of shape \(1, 3\)$"),
    "mask": ((MAP > 0,), {}, TypeError, r"instances must be integers; got bool .*number its parts"),
    "rank": ((MAP[0],), {}, ValueError, r"instances must be \[height, width\]; got shape \(3,\)"),
    "w0": ((MAP,), {"w0": -1.0}, ValueError, r"w0 must be at least 0 and finite; got -1"),
    "endless w0": ((MAP,), {"w0": np.inf}, ValueError, r"w0 must be at least 0 and finite; got inf"),
    "sigma": ((MAP,), {"sigma": 0}, ValueError, r"sigma must be positive and finite; got 0"),
    "no sigma": ((MAP,), {"sigma": np.nan}, ValueError, r"sigma must be positive and finite; got nan"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_border_weights_invalid_arguments(case):
    # Unwrapped, because users have no type-checking import hook.
    arguments, options, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        inspect.unwrap(border_weights)(*arguments, **options)
