import dataclasses

import cv2
import numpy as np
import pytest

from segjax.data.labels import LABEL_SETS, LabelSet, colorize, numbered_classes
from segjax.inference import contact_sheet, example_tiles, heatmap, legend, overlay, tiles
from segjax.inference.visualize import overlay_palette, rare_outlines

IMAGE = np.full((2, 3, 3), 100, np.uint8)
PALETTE = np.array([[200, 0, 0], [0, 150, 0]], np.uint8)
PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
TRUTH = np.tile(np.array([0, 1, 255]), (40, 20))
PREDICTION = np.tile(np.array([1, 0, 0]), (40, 20))
UNSURE = np.linspace(0, 2, 40 * 60).reshape(40, 60)


def test_overlay_of_black_leaves_the_image():
    np.testing.assert_array_equal(overlay(IMAGE, np.zeros((2, 3, 3), np.uint8)), IMAGE)


def test_overlay_opacity_mixes_image_and_colour():
    colours = np.zeros((2, 3, 3), np.uint8)
    colours[0, 0] = (200, 0, 0)
    mixed = overlay(IMAGE, colours, opacity=0.25)
    assert mixed[0, 0].tolist() == [125, 75, 75]
    assert mixed[1, 2].tolist() == [100, 100, 100]


def test_overlay_of_a_grey_image_is_rgb():
    colours = np.full((2, 3, 3), (0, 0, 250), np.uint8)
    assert overlay(IMAGE[..., :1], colours, opacity=1.0)[1, 1].tolist() == [0, 0, 250]


def test_overlay_opacity_out_of_range():
    with pytest.raises(ValueError, match=r"opacity must lie in \[0, 1\]; got 2.0"):
        overlay(IMAGE, IMAGE, opacity=2.0)


@pytest.mark.parametrize(
    ("names", "only", "tinted"),
    [
        (("road", "crack"), None, [1]),
        (("cat", "background", "dog"), None, [0, 2]),
        (("a", "b", "c"), None, [0, 1, 2]),
        (("a", "b", "c"), 1, [1]),
    ],
)
def test_overlay_palette_leaves_the_background_black(names, only, tinted):
    labels = numbered_classes(names)
    palette = overlay_palette(labels, only)
    assert np.flatnonzero(palette.any(-1)).tolist() == tinted
    np.testing.assert_array_equal(palette[tinted], labels.palette[tinted])


def test_overlay_palette_tints_the_rare_class_of_two():
    labels = dataclasses.replace(numbered_classes(("crack", "road")), rare=0)
    assert np.flatnonzero(overlay_palette(labels).any(-1)).tolist() == [0]


def test_rare_outlines_surround_classes_below_two_percent():
    mask = np.zeros((400, 500), np.uint8)
    mask[:100] = 1  # a quarter
    mask[200:210, 300:310] = 2  # 100 of 200 000 pixels
    outlines = rare_outlines(mask, LABEL_SETS["camvid"].palette)
    ring = np.zeros((400, 500), bool)
    ring[198:212, 298:312] = True  # two pixels wide in an image of 400
    ring[200:210, 300:310] = False
    np.testing.assert_array_equal(outlines, np.where(ring, 2, 255))


def test_heatmap_lightness_grows_with_the_value():
    colours = heatmap(np.linspace(0, 3, 256), maximum=3.0)
    lightness = cv2.cvtColor(colours[None], cv2.COLOR_RGB2Lab)[0, :, 0].astype(int)
    assert (np.diff(lightness) >= 0).all()
    assert lightness[0] < 5
    assert lightness[-1] > 240
    steps = np.diff(lightness[::16])
    assert steps.max() < 3 * steps.min()


def test_heatmap_clips_values_and_paints_nan_grey():
    colours = heatmap(np.array([-1, 0, 2, 5, np.inf, np.nan]), maximum=2.0)
    np.testing.assert_array_equal(colours[0], colours[1])
    np.testing.assert_array_equal(colours[3:5], colours[[2, 2]])
    assert colours[5].tolist() == [128, 128, 128]


@pytest.mark.parametrize("maximum", [0.0, -1.0, np.inf, np.nan])
def test_heatmap_maximum_out_of_range(maximum):
    with pytest.raises(ValueError, match=r"maximum must be finite and more than 0; got"):
        heatmap(UNSURE, maximum)


GREEN = np.full((30, 40, 3), (0, 200, 0), np.uint8)


def test_contact_sheet_has_one_row_per_image_and_one_column_per_title():
    sheet = contact_sheet({"a": [GREEN, GREEN], "b": [GREEN[:15], GREEN[:15]]}, ("image", "prediction"), width=80)
    assert sheet.shape == (20 + (20 + 60) + (20 + 30), 4 + 2 * 84, 3)
    assert (sheet == (0, 200, 0)).all(-1).sum() == 2 * 80 * (60 + 30)


def test_contact_sheet_draws_names_with_accents_and_cyrillic():
    drawn = {name: contact_sheet({name: [GREEN]}, ("image",)) for name in ("è", "é", "ж")}
    assert not np.array_equal(drawn["è"], drawn["é"])
    assert all((sheet[20:40] < 128).any() for sheet in drawn.values())


def test_contact_sheet_explains_every_class_colour():
    labels = numbered_classes(tuple(f"a long name of class {i}" for i in range(9)))
    sheet = contact_sheet({"a": [GREEN]}, ("image",), labels)
    legend = sheet[contact_sheet({"a": [GREEN]}, ("image",)).shape[0] :]
    assert all((legend == colour).all(-1).sum() >= 100 for colour in labels.palette)


@pytest.mark.parametrize("rows", [{}, {"a": [GREEN]}])
def test_contact_sheet_needs_one_picture_per_title(rows):
    with pytest.raises(ValueError, match="a contact sheet needs rows of 2 pictures, one per title"):
        contact_sheet(rows, ("image", "prediction"))


def test_tiles_are_two_per_row_and_keep_the_aspect_ratio():
    sheet = tiles({"image": PHOTO, "truth": PHOTO, "prediction": PHOTO}, width=120)
    assert sheet.shape == (2 * (20 + 80) + 4, 2 * 120 + 4, 3)
    np.testing.assert_array_equal(sheet[20:100, :120], PHOTO.repeat(2, 0).repeat(2, 1))  # enlarged, and not blurred
    assert (sheet[124:, 124:] == 255).all()  # the fourth place is empty
    assert (sheet[:20] < 128).any()  # its title


def test_tiles_need_a_picture():
    with pytest.raises(ValueError, match="at least one picture; got none"):
        tiles({})


def test_example_tiles_show_image_truth_prediction_uncertainties_and_a_legend():
    labels = LabelSet(("a", "b"), PALETTE, np.full(256, 255, np.uint8))
    sheet = example_tiles(
        PHOTO,
        TRUTH,
        PREDICTION,
        {"entropy": UNSURE, "variance": 0 * UNSURE},
        {"entropy": 2.0, "variance": 1.0},
        labels,
    )
    places = [(0, 0), (0, 244), (184, 0), (184, 244), (368, 0)]
    expected = [
        PHOTO,
        colorize(TRUTH, PALETTE),
        colorize(PREDICTION, PALETTE),
        heatmap(UNSURE, 2.0),
        heatmap(0 * UNSURE, 1.0),
    ]
    for (top, left), picture in zip(places, expected, strict=True):
        np.testing.assert_array_equal(sheet[top + 20 : top + 180 : 4, left : left + 240 : 4], picture)
    np.testing.assert_array_equal(sheet[548:], legend(labels, [0, 1, 255], width=484))


def test_legend_has_the_given_width_and_every_colour():
    labels = numbered_classes(tuple(f"class {i}" for i in range(8)), ())
    picture = legend(labels, width=200)
    assert picture.shape[1] == 200
    seen = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in labels.palette.tolist()} <= seen
    some = legend(labels, [2, 255], width=200)
    colours = [*labels.palette, (0, 0, 0)]
    assert [(some == colour).all(-1).sum() > 100 for colour in colours] == [i in (2, 8) for i in range(9)]
