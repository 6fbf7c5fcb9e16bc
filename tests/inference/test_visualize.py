import numpy as np
import pytest

from segjax.inference import overlay

IMAGE = np.full((2, 3, 3), 100, np.uint8)


def test_black_leaves_the_image_as_it_is():
    np.testing.assert_array_equal(overlay(IMAGE, np.zeros((2, 3, 3), np.uint8)), IMAGE)


def test_opacity_mixes_image_and_colour():
    colours = np.zeros((2, 3, 3), np.uint8)
    colours[0, 0] = (200, 0, 0)
    mixed = overlay(IMAGE, colours, opacity=0.25)
    assert mixed[0, 0].tolist() == [125, 75, 75]
    assert mixed[1, 2].tolist() == [100, 100, 100]


def test_a_grey_image_becomes_a_colour_picture():
    colours = np.full((2, 3, 3), (0, 0, 250), np.uint8)
    assert overlay(IMAGE[..., :1], colours, opacity=1.0)[1, 1].tolist() == [0, 0, 250]


def test_an_opacity_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"opacity must lie in \[0, 1\]; got 2.0"):
        overlay(IMAGE, IMAGE, opacity=2.0)
