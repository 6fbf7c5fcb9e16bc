from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from segjax import boxes
from segjax.inference import AnchorOptions, Detector, Preprocessing, draw_boxes
from segjax.models import DetectorOutput

ANCHORS = AnchorOptions((3, 4, 5), (1.0,), (1.0,), 1.0)
SIZE = (32, 48)
PREPROCESSING = Preprocessing(SIZE, 3, (0.5,), (0.25,), 2)
GRID = boxes.anchors(SIZE, **ANCHORS._asdict())


def first_anchor(variables, images, train):
    """Finds the anchor that the variables name, of class 1, in every image."""
    logits = jnp.full((len(images), len(GRID), 2), -9.0).at[:, variables, 1].set(2.0)
    return DetectorOutput(logits, jnp.zeros((len(images), len(GRID), 4)))


@pytest.fixture(scope="module")
def detector():
    return Detector(SimpleNamespace(apply=first_anchor), 8, PREPROCESSING, ANCHORS)


def test_boxes_are_in_pixels_of_the_image(detector):
    found = detector(np.zeros((64, 144, 3), np.uint8))
    np.testing.assert_allclose(found.boxes, [GRID[8] * np.array([3, 2, 3, 2])], rtol=1e-6)
    np.testing.assert_allclose(found.scores, [1 / (1 + np.exp(-2))], rtol=1e-6)
    assert found.classes.tolist() == [1]


def test_with_variables_leaves_the_detector_as_it_was(detector):
    other, image = detector.with_variables(9), np.zeros((32, 48, 3), np.uint8)
    np.testing.assert_allclose([other(image).boxes[0], detector(image).boxes[0]], GRID[jnp.array([9, 8])])


def test_draw_boxes_that_leave_the_image():
    picture = draw_boxes(np.zeros((4, 4, 1), np.uint8), np.array([[-9.0, 1, 2, 9]]), np.array([[7, 8, 9]], np.uint8))
    assert picture[..., 1].tolist() == [[8, 8, 8, 0], [0, 0, 8, 0], [0, 0, 8, 0], [0, 0, 8, 0]]


def test_draw_boxes_writes_a_text_beside_each_box():
    picture, boxes = np.zeros((80, 80, 3), np.uint8), np.array([[20.0, 1, 30, 9], [20, 60, 30, 70]])
    colours = np.array([[200, 0, 0], [0, 200, 0]], np.uint8)
    bare, labelled = (draw_boxes(picture, boxes, colours, texts) for texts in ((), ("stone 0.9", "tyre 0.8")))
    rows = np.flatnonzero((bare != labelled).any(axis=(1, 2)))
    assert rows.min() >= 9  # below the box at the upper edge
    assert ((rows > 40) & (rows < 60)).any()  # above the other
