import inspect

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from segjax.distance import distance_to

RNG = np.random.default_rng(0)


@settings(max_examples=40)
@given(
    st.integers(0, 2**31), st.sampled_from([(1, 1), (1, 9), (8, 1), (13, 17)]), st.sampled_from([(1, 1), (0.3, 2.5)])
)
def test_distance_to_equals_scipy(seed, shape, spacing):
    rng = np.random.default_rng(seed)
    masks = rng.uniform(size=(2, *shape)) < rng.choice([0.02, 0.3, 0.9])
    expected = [distance_transform_edt(~m, sampling=spacing) if m.any() else np.full(shape, np.inf) for m in masks]
    np.testing.assert_allclose(distance_to(masks, spacing=spacing), expected, rtol=3e-7)


def test_distance_to_is_exact_for_512_by_512_pixels():
    mask = RNG.uniform(size=(512, 512)) < 1e-4
    distance = np.asarray(distance_to(mask))
    squares = np.round(distance_transform_edt(~mask) ** 2)
    assert squares.max() > 1e4
    np.testing.assert_array_equal(distance, np.sqrt(squares).astype(np.float32))


def test_distance_to_takes_leading_axes_and_a_traced_spacing():
    masks = RNG.uniform(size=(2, 3, 5, 4)) < 0.3
    together = jax.jit(lambda height: distance_to(masks, spacing=(height, 1.0)))(2.0)
    for i, j in np.ndindex(2, 3):
        expected = distance_transform_edt(~masks[i, j], sampling=(2, 1))
        np.testing.assert_allclose(together[i, j], expected if masks[i, j].any() else np.inf, rtol=3e-7)


def test_distance_to_of_no_image_and_no_row_is_empty():
    assert distance_to(np.zeros((0, 3, 4), bool)).shape == (0, 3, 4)
    assert distance_to(np.zeros((2, 0, 4), bool)).shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("mask", "spacing", "error", "message"),
    [
        (np.zeros((3, 4)), (1, 1), TypeError, r"mask must be boolean; got float32 of shape \(3, 4\)"),
        (np.zeros(4, bool), (1, 1), ValueError, r"mask must be \[..., height, width\]; got shape \(4,\)"),
        (np.zeros((3, 4), bool), (1, 0), ValueError, r"spacing must be finite and more than 0; got 0"),
        (np.zeros((3, 4), bool), (1, 1, 1), ValueError, r"spacing must be the height and the width .*; got 3 numbers"),
    ],
)
def test_distance_to_names_invalid_arguments(mask, spacing, error, message):
    with pytest.raises(error, match=message):
        inspect.unwrap(distance_to)(mask, spacing=spacing)
