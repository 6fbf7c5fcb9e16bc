import inspect

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from segjax.data.labels import border_weights


def boxes(count, shape, seed=0, size=6):
    """Instance maps of boxes at random, the later over the earlier."""
    rng = np.random.default_rng(seed)
    instances = np.zeros(shape, np.int32)
    for number in range(1, count + 1):
        row, column = (rng.integers(0, side) for side in shape)
        height, width = rng.integers(1, size, 2)
        instances[row : row + height, column : column + width] = number
    return instances


def by_the_formula(instances, w0=10.0, sigma=5.0):
    """All distances at once, and the two smallest of them."""
    ids = np.unique(instances[instances != 0])
    if len(ids) < 2:
        return np.zeros(instances.shape, np.float32)
    first, second = np.sort([distance_transform_edt(instances != i) for i in ids], axis=0)[:2]
    return np.where(instances == 0, w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2)), 0).astype(np.float32)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0, 40.0])
def test_equals_the_formula_to_the_last_bit_though_it_looks_at_windows(sigma):
    for seed in range(4):
        instances = boxes(12, (60, 90), seed)
        np.testing.assert_array_equal(border_weights(instances, w0=3, sigma=sigma), by_the_formula(instances, 3, sigma))


def test_equals_the_formula_down_to_where_float32_ends():
    # The last weights that are not 0 belong to instances 14 σ apart: a shorter window would lose them.
    smallest = 1.0
    for gap in range(60, 80):
        instances = np.zeros((1, 82), np.int32)
        instances[0, [0, gap + 1]] = 1, 2
        weights = border_weights(instances)
        np.testing.assert_array_equal(weights, by_the_formula(instances))
        smallest = min(smallest, weights[weights > 0].min(initial=1.0))
    assert smallest < 1e-43


def test_worked_numbers():
    # A gap of 3 between two cells: in its middle d1 = d2 = 2, beside a cell 1 and 3.
    weights = border_weights(np.array([[4, 4, 0, 0, 0, 9]]))
    np.testing.assert_allclose(weights, [[0, 0, *[10 * np.exp(-16 / 50)] * 3, 0]], rtol=1e-6)


def test_a_narrow_gap_weighs_more_than_a_wide_one_and_the_open_background_nothing():
    instances = np.zeros((9, 120), np.uint8)
    instances[:, 0:4], instances[:, 5:9], instances[:, 19:23] = 1, 2, 3
    weights = border_weights(instances)
    assert weights[4, 4] > weights[4, 14] > 0
    assert weights[4, 100] < 1e-6
    assert not weights[instances > 0].any()


@pytest.mark.parametrize("instances", [np.zeros((4, 5), int), np.full((4, 5), 3), np.eye(4, dtype=int) * 7])
def test_fewer_than_two_instances_have_no_border(instances):
    assert not border_weights(instances).any()


def test_two_instances_without_background_have_none():
    assert not border_weights(np.array([[1, 2], [1, 2]])).any()


@pytest.mark.parametrize("ids", [(-3, 5), (26001, 26002), (255, 2**31 - 1), (2**40, -(2**40))])
def test_any_numbers_name_instances(ids):
    plain = boxes(2, (20, 20), seed=3)
    renamed = np.select([plain == 1, plain == 2], ids, 0)
    np.testing.assert_array_equal(border_weights(renamed), border_weights(plain))


def test_an_instance_in_two_pieces_is_one():
    instances = np.array([[1, 0, 0, 0, 1, 0, 0, 2]])
    np.testing.assert_array_equal(border_weights(instances), by_the_formula(instances))
    assert border_weights(instances)[0, 2] == np.float32(10 * np.exp(-((2 + 5) ** 2) / 50))


def test_is_float32_and_leaves_its_input_alone():
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
def test_broken_input_is_named(case):
    # Unwrapped: a user has no import hook, and must be told all the same.
    arguments, options, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        inspect.unwrap(border_weights)(*arguments, **options)
