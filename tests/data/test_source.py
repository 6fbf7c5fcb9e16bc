import cv2
import numpy as np
import pytest

from segjax.data.labels import numbered_classes
from segjax.data.source import DataError, decode_image, decode_mask, make_example

CLASSES = numbered_classes(("a", "b", "c"))


def test_images_are_rgb_and_grey_ones_keep_one_channel(make):
    colour, grey = make.image(0), make.image(1, channels=1)
    np.testing.assert_array_equal(decode_image(make.encoded(colour), 3, "x"), colour)
    np.testing.assert_array_equal(decode_image(make.encoded(grey), 1, "x"), grey[..., None])
    np.testing.assert_array_equal(decode_image(make.encoded(grey), 3, "x"), np.repeat(grey[..., None], 3, -1))


def test_alpha_is_dropped_and_sixteen_bits_become_eight(make):
    colour = make.image(0)
    np.testing.assert_array_equal(decode_image(make.encoded(colour, mode="RGBA"), 3, "x"), colour)
    deep = make.image(1, channels=1).astype(np.uint16) * 257
    np.testing.assert_array_equal(decode_image(cv2.imencode(".png", deep)[1].tobytes(), 1, "x")[..., 0], deep // 257)


def test_masks_are_indices_whatever_their_palette(make):
    ids = make.ids(0)
    np.testing.assert_array_equal(decode_mask(make.encoded(ids), "x"), ids)
    np.testing.assert_array_equal(decode_mask(make.encoded(ids, palette=[9, 8, 7] * 3, mode="P"), "x"), ids)
    np.testing.assert_array_equal(decode_mask(make.encoded(ids > 0), "x"), ids > 0)


def test_what_is_no_mask_is_refused_with_its_kind(make):
    with pytest.raises(DataError, match=r"m.png: expected a mask .* got a PNG in mode RGB"):
        decode_mask(make.encoded(make.image()), "m.png")
    with pytest.raises(DataError, match="got a JPEG in mode L"):
        decode_mask(make.encoded(make.ids(), "JPEG"), "m.jpg")
    with pytest.raises(DataError, match=r"m.png: cannot be decoded; expected a PNG mask, got 5 bytes"):
        decode_mask(b"words", "m.png")


def test_an_example_whose_parts_do_not_fit_is_refused(make):
    image = make.encoded(make.image(size=(4, 6)))
    with pytest.raises(DataError, match=r"a: the image is \(4, 6\) and its mask \(4, 5\); expected one size"):
        make_example(image, make.encoded(make.ids(size=(4, 5))), "a", 3, CLASSES)
    with pytest.raises(ValueError, match="mask of a: label id 7 is outside the 3 classes; expected the ids 0-2, 255"):
        make_example(image, make.encoded(np.full((4, 6), 7, np.uint8)), "a", 3, CLASSES)
    with pytest.raises(DataError, match="image of a: cannot be decoded; expected a PNG or JPEG image, got 5 bytes"):
        make_example(b"words", image, "a", 3, CLASSES)
