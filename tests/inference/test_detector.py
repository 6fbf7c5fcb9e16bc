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


def bright_box(variables, images, train):
    """Finds the bounding box of the bright pixels of each image, from the anchor of the largest overlap."""
    bright = images[..., 0] > 1

    def side(lines):
        return jnp.argmax(lines, axis=-1), lines.shape[-1] - jnp.argmax(lines[:, ::-1], axis=-1)

    (left, right), (top, bottom) = side(bright.any(axis=1)), side(bright.any(axis=2))
    found, grid = jnp.stack([left, top, right, bottom], axis=-1)[:, None].astype(jnp.float32), anchors_of_64
    best = jnp.argmax(boxes.iou(found[:, 0], grid), axis=-1)
    logits = jnp.full((len(images), len(grid), 2), -9.0).at[jnp.arange(len(images)), best, 1].set(2.0)
    return DetectorOutput(logits, boxes.encode(jnp.broadcast_to(found, (len(images), *grid.shape)), grid))


anchors_of_64 = boxes.anchors((64, 64), **ANCHORS._asdict())


@pytest.mark.parametrize("letterbox", [True, False])
@pytest.mark.parametrize(("size", "box"), [((40, 160), (30, 10, 70, 30)), ((170, 60), (10, 100, 40, 150))], ids=str)
def test_boxes_of_images_in_a_square_network_are_in_pixels_of_the_image(size, box, letterbox):
    preprocessing = Preprocessing((64, 64), 3, (0.5,), (0.25,), 2, letterbox=letterbox)
    left, top, right, bottom = box
    image = np.zeros((*size, 3), np.uint8)
    image[top:bottom, left:right] = 255
    found = Detector(SimpleNamespace(apply=bright_box), None, preprocessing, ANCHORS)(image)
    assert found.classes.tolist() == [1]
    # The network sees whole pixels, and those that the antialiasing darkens do not count as bright.
    pixel = np.full(2, max(size)) / 64 if letterbox else np.array(size[::-1]) / 64
    assert (np.abs(found.boxes[0] - box) <= np.tile(pixel, 2)).all()


def test_padding_of_a_letterboxed_image_has_no_detections():
    preprocessing = Preprocessing(SIZE, 3, (0.5,), (0.25,), 2, letterbox=True)

    def every_anchor(variables, images, train):
        logits = jnp.zeros((len(images), len(GRID), 2)).at[..., 0].set(-9.0)
        return DetectorOutput(logits, jnp.zeros((len(images), len(GRID), 4)))

    found = Detector(SimpleNamespace(apply=every_anchor), None, preprocessing, ANCHORS)(np.zeros((32, 96, 3), np.uint8))
    # The image has 16 rows of the network's 32, in which lie 2, 1 and 1 rows of anchors of the strides 8, 16 and 32.
    assert len(found.scores) == 2 * 6 + 1 * 3 + 1 * 2
    assert found.boxes.max(axis=0).tolist() == [72, 8, 96, 32]


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
