"""Layers over an image: masks, the error map and uncertainties."""

import base64

import cv2
import numpy as np
import pytest

from segjax.data import UNSEEN, VOID, LabelSet
from segjax.reporting.overlays import mask_overlay


def shown_with_errors(num_classes, third=VOID):
    """Returns an image of the classes 0 and 1 with a missed, a false, a void (or other) and two right pixels."""
    truth, prediction = (np.array([row], np.uint8) for row in ([1, 0, third, 1, 0], [0, 1, 0, 1, 0]))
    image = np.full((1, 5, 3), 200, np.uint8)
    entropy = {"entropy": np.full((1, 5), 0.25)}
    labels = LabelSet(
        tuple("abc"[:num_classes]), np.eye(3, dtype=np.uint8)[:num_classes] * 255, np.full(256, 255, np.uint8)
    )
    return mask_overlay("worst_1", "street", image, truth, prediction, entropy, {"entropy": 0.5}, labels)


def decoded(file):
    return cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)[..., [2, 1, 0, 3]]


def test_mask_overlay_error_map_of_two_classes_has_missed_and_false_pixels():
    found = shown_with_errors(2)
    missed, false, *right = decoded(found.layers["errors"])[0].tolist()
    assert (missed, false) == ([240, 228, 66, 255], [0, 158, 255, 255])
    assert [pixel[3] for pixel in right] == [0, 0, 0]
    assert found.legends["errors"] == {"missed b": "rgb(240, 228, 66)", "false b": "rgb(0, 158, 255)"}


def test_mask_overlay_error_map_of_many_classes_has_wrong_pixels():
    found = shown_with_errors(3)
    assert (decoded(found.layers["errors"])[0, :, 3] > 0).tolist() == [True, True, False, False, False]
    assert list(found.legends["errors"]) == ["wrong class"]


def test_mask_overlay_error_map_leaves_out_unseen_classes():
    found = shown_with_errors(3, third=UNSEEN)
    assert (decoded(found.layers["errors"])[0, :, 3] > 0).tolist() == [True, True, False, False, False]
    assert list(found.legends["truth"]) == ["a", "b", "unseen class"]


def test_mask_overlay_layers_leave_void_and_background_transparent():
    found = shown_with_errors(2)
    assert list(found.layers) == ["prediction", "truth", "errors", "entropy, 0 to 0.5"]
    assert decoded(found.layers["truth"])[0].tolist()[:3] == [[0, 255, 0, 255], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert found.legends["truth"] == {"b": "rgb(0, 255, 0)"}


def test_mask_overlay_values_are_the_classes_of_every_pixel():
    found = shown_with_errors(3, third=UNSEEN).values
    ids = cv2.imdecode(np.frombuffer(base64.b64decode(found["ids"].partition(",")[2]), np.uint8), cv2.IMREAD_UNCHANGED)
    names = [[found["classes"][int(i)] for i in row] for row in ids]
    assert found["masks"] == ["prediction", "truth"]
    assert names == [["a", "b", "a", "b", "a"], ["b", "a", "unseen class", "b", "a"]]


def test_mask_overlay_uncertainty_can_be_read_from_its_colour():
    found = shown_with_errors(2)
    colour = cv2.imdecode(np.frombuffer(found.layers["entropy, 0 to 0.5"], np.uint8), 1)[0, 0, ::-1]
    assert found.values["maxima"] == {"entropy, 0 to 0.5": ["entropy", 0.5]}
    assert found.values["colours"].index(colour.tolist()) / 63 * 0.5 == pytest.approx(0.25, abs=0.5 / 126)
    assert list(found.legends["entropy, 0 to 0.5"]) == ["0", "0.17", "0.33", "0.5"]
