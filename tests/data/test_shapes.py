"""Pixels of outlines against scikit-image, and run lengths of pycocotools."""

import numpy as np
import pytest
from skimage.draw import polygon as skimage_polygon

from segjax.data import shapes

SIZE = (8, 10)


def full(pixels):
    """Returns the pixels of a window in the whole image."""
    top, left, inside = pixels
    mask = np.zeros(SIZE, bool)
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return mask


@pytest.mark.parametrize("seed", range(5))
def test_fill_equals_scikit_image(seed):
    points = np.random.default_rng(seed).uniform(-4, 14, (7, 2))
    mask = np.zeros(SIZE, bool)
    mask[skimage_polygon(points[:, 1] - 0.5, points[:, 0] - 0.5, SIZE)] = True  # pixel centres are whole numbers there
    np.testing.assert_array_equal(full(shapes.fill([points], SIZE)), mask)


def test_fill_neighbours_share_no_pixel_and_leave_no_gap():
    corners = np.array([(0, 0), (10, 0), (10, 8), (0, 8)], float)
    centre = (4.5, 3.5)
    edges = zip(corners, np.roll(corners, -1, axis=0), strict=True)
    parts = [full(shapes.fill([np.array([start, end, centre])], SIZE)) for start, end in edges]
    assert (np.sum(parts, axis=0) == 1).all()


def test_fill_ellipse_of_equal_radii_is_a_disc():
    y, x = np.mgrid[:8, :10] + 0.5
    mask = full(shapes.fill_ellipse(np.array((4.0, 5.0)), (3.0, 3.0), 0.3, SIZE))
    np.testing.assert_array_equal(mask, np.hypot(y - 5, x - 4) < 3)


def test_decompress_equals_pycocotools():
    mask = np.zeros((6, 7), bool)
    mask[1:4, 2:6] = True
    mask[2, 3], mask[5, 6] = False, True
    np.testing.assert_array_equal(shapes.runs_to_mask(shapes.decompress("=33NN022004N"), (7, 6)).T, mask)
