"""Layers over an image: masks, the error map and uncertainties."""

import base64

import cv2
import numpy as np
import pytest

from segjax.data import UNSEEN, VOID, LabelSet
from segjax.reporting import Report, Section, html
from segjax.reporting.overlays import DrawnBox, box_overlay, comparison_overlay, mask_overlay, overlap_overlay


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


IMAGE, NO_LUT = np.full((1, 5, 3), 200, np.uint8), np.full(256, 255, np.uint8)
COLOURS = np.eye(3, dtype=np.uint8) * 255
TRUTH = np.array([[0, 1, 2, 1, VOID]], np.uint8)


def compared(**predictions):
    labels = LabelSet(("a", "b", "c"), COLOURS, NO_LUT)
    masks = {name: np.array([mask], np.uint8) for name, mask in predictions.items()}
    return comparison_overlay("image_1", "street", b"", IMAGE, TRUTH, masks, labels)


def test_comparison_overlay_of_two_shows_which_one_is_right():
    found = compared(first=[0, 0, 1, 1, 0], second=[0, 1, 0, 2, 1])
    assert list(found.layers) == ["first", "second", "truth", "difference"]
    names = {tuple(map(int, colour[4:-1].split(","))): name for name, colour in found.legends["difference"].items()}
    shown = [names[tuple(pixel[:3])] if pixel[3] else "" for pixel in decoded(found.layers["difference"])[0].tolist()]
    both = "both are wrong and differ, or void"
    assert shown == ["", "only second is right", both, "only first is right", both]


def test_comparison_overlay_of_three_shows_where_not_all_are_equal():
    found = compared(x=[0, 0, 1, 1, 0], y=[0, 1, 1, 1, 0], z=[0, 0, 1, 2, 0])
    assert list(found.legends["difference"]) == ["predictions differ"]
    assert (decoded(found.layers["difference"])[0, :, 3] > 0).tolist() == [False, True, False, True, False]


def overlapping(**options):
    """Returns an image of the pixels: no class, rust, crack, both, void; the first prediction misses the crack."""
    combinations = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], bool)
    labels = LabelSet(("rust", "crack"), COLOURS[:2], NO_LUT, combinations=combinations)
    truth = np.array([[0, 1, 2, 3, VOID]], np.uint8)
    first = np.array([[[0, 0], [1, 0], [0, 0], [1, 1], [0, 1]]], bool)
    masks = {"prediction": first} | {name: np.array([mask], bool) for name, mask in options.pop("more", {}).items()}
    return overlap_overlay("worst_1", "wall", b"", IMAGE, truth, masks, labels, **options)


def test_overlap_overlay_has_a_layer_of_each_class():
    found = overlapping(entropy=np.full((1, 5), 0.5), maximum=1.0)
    assert list(found.layers) == ["prediction", "truth", "errors", "entropy, 0 to 1"]
    assert decoded(found.layers["truth"]["crack"])[0].tolist()[2] == [0, 255, 0, 255]
    assert (decoded(found.layers["truth"]["crack"])[0, :, 3] > 0).tolist() == [False, False, True, True, False]
    assert (decoded(found.layers["truth"]["void"])[0, :, 3] > 0).tolist() == [False] * 4 + [True]
    missed, errors = (240, 228, 66, 255), decoded(found.layers["errors"]["crack"])[0]
    assert [tuple(pixel) == missed for pixel in errors.tolist()] == [False, False, True, False, False]
    assert not decoded(found.layers["errors"]["rust"])[..., 3].any()


def test_overlap_overlay_of_several_predictions_shows_where_they_differ():
    found = overlapping(more={"second": [[0, 0], [0, 0], [0, 0], [1, 1], [0, 1]]})
    assert list(found.layers) == ["prediction", "second", "truth", "difference"]
    differ = {part: (decoded(file)[0, :, 3] > 0).tolist() for part, file in found.layers["difference"].items()}
    only_second_pixel = [False, True, False, False, False]
    assert differ == {"": only_second_pixel, "rust": only_second_pixel, "crack": [False] * 5}


@pytest.mark.slow
def test_overlay_shows_one_class_or_all_and_the_classes_of_a_pixel(tmp_path, tab):
    pictures = (overlapping(), overlapping()._replace(name="worst_2"))
    (tmp_path / "page.html").write_text(html(Report("", "", (Section("", "", (), pictures),), {})), encoding="utf-8")
    shown = "[...document.querySelectorAll('[data-layer]:not([hidden])')].map(i => [i.dataset.layer, i.dataset.part])"
    line = "document.querySelector('.reading span').textContent"
    with tab() as opened:
        opened.open(tmp_path / "page.html")
        assert opened.evaluate(shown) == [["prediction", ""]] * 2
        opened.evaluate("document.querySelector('.layers select').focus()")
        for _ in range(2):
            opened.press("ArrowDown")
        assert opened.evaluate(shown) == [["prediction", "crack"]] * 2
        opened.click(".layers label:nth-child(2) input")
        assert opened.evaluate(shown) == [["truth", "crack"]] * 2
        for pixel, classes in enumerate(
            (
                "no class; truth: no class",
                "rust; truth: rust",
                "no class; truth: crack",
                "rust and crack; truth: rust and crack",
                "crack; truth: void",
            )
        ):
            opened.move(".stack", (pixel + 0.5) / 5)
            assert opened.evaluate(line) == f"x {pixel}, y 0; prediction: {classes}"
        assert opened.console == []


@pytest.mark.slow
def test_overlay_of_boxes_shows_the_chosen_layer_and_the_boxes_of_a_pixel(tmp_path, tab):
    layers = {
        "detections": [DrawnBox((2, 2, 8, 8), (0, 114, 178), "0.90", "stone 0.90, right")],
        "objects": [
            DrawnBox((2, 2, 8, 8), (0, 158, 115), "", "stone"),
            DrawnBox((12, 2, 18, 8), (0, 158, 115), "", "stone"),
        ],
    }
    image = np.full((10, 20, 3), 90, np.uint8)
    picture = box_overlay("worst_1", "street", image, layers, {kind: {} for kind in layers})
    (tmp_path / "page.html").write_text(html(Report("", "", (Section("", "", (), (picture,)),), {})), encoding="utf-8")
    shown = "document.querySelector('[data-layer]:not([hidden])').dataset.layer"
    line = "document.querySelector('.reading span').textContent"
    with tab() as opened:
        opened.open(tmp_path / "page.html")
        assert opened.evaluate(shown) == "detections"
        opened.click(".layers label:nth-child(2) input")
        assert opened.evaluate(shown) == "objects"
        opened.move(".stack", 0.25)
        assert opened.evaluate(line) == "x 5, y 5; detections: stone 0.90, right; objects: stone"
        opened.move(".stack", 0.75)
        assert opened.evaluate(line) == "x 15, y 5; detections: none; objects: stone"
        opened.move(".stack", 0.5)
        assert opened.evaluate(line) == "x 10, y 5; detections: none; objects: none"
        assert opened.console == []
