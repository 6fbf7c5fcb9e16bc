import zlib

import cv2
import numpy as np
import pytest

from segjax.data.io import DataError, decode_image, decode_mask
from segjax.data.labels import numbered_classes
from segjax.data.pairs import make_example, skipped_lines

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


def test_an_image_of_more_pixels_than_opencv_takes_is_refused_in_one_line(make):
    one = make.encoded(make.image(0))
    header = b"IHDR" + (40_000).to_bytes(4) * 2 + one[24:29]
    huge = one[:12] + header + zlib.crc32(header).to_bytes(4) + one[33:]
    with pytest.raises(DataError, match=r"x.png: cannot be decoded; expected at most 2\^30 pixels, .*[^\n]$"):
        decode_image(huge, 3, "x.png")


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


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_mask_with_transparency_is_refused(make, mode):
    with pytest.raises(DataError, match=rf"m.png: expected a mask .* grey or palette; got a PNG in mode {mode}"):
        decode_mask(make.encoded(make.image(), mode=mode), "m.png")


def test_a_mask_of_sixteen_bits_is_refused(make):
    deep = cv2.imencode(".png", make.ids().astype(np.uint16))[1].tobytes()
    with pytest.raises(DataError, match=r"m.png: expected a mask .* 8 bits per pixel, .* got a PNG in mode I;16"):
        decode_mask(deep, "m.png")


def test_a_grey_mask_of_four_bits_is_refused_because_its_ids_would_change(make):
    whole = bytearray(make.encoded(make.ids()))
    whole[24] = 4
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    with pytest.raises(DataError, match=r"m.png: a grey mask of 4 bits per pixel, whose ids are stretched to 0..255"):
        decode_mask(bytes(whole), "m.png")


class Skipping:
    """A source of which only what was skipped matters."""

    label_set, channels, native_size, largest_size = CLASSES, 3, (1, 1), (1, 1)

    def __init__(self, count):
        self.skipped = tuple(f"{i}.png: bad" for i in range(count))

    def __len__(self):
        return 7

    def __getitem__(self, index):
        raise IndexError(index)

    def name(self, index):
        return str(index)


def test_what_was_skipped_is_counted_then_named():
    assert skipped_lines(Skipping(0), "train") == []
    first, *rest = skipped_lines(Skipping(2), "train")
    assert first == "train: skipped 2 bad pair(s) of image and mask (config.data.on_error = 'skip'):"
    assert rest == ["  0.png: bad", "  1.png: bad"]


def test_of_many_the_first_are_named_and_the_rest_counted():
    lines = skipped_lines(Skipping(25), "val")
    assert lines[0].startswith("val: skipped 25 ")
    assert lines[-2:] == ["  19.png: bad", "  and 5 more"]


def test_an_example_whose_parts_do_not_fit_is_refused(make):
    files = ("image.png", "mask.png")
    image = make.encoded(make.image(size=(4, 6)))
    with pytest.raises(DataError, match=r"mask.png: a mask of 4×5 for an image of 4×6 \(image.png\); expected one"):
        make_example(image, make.encoded(make.ids(size=(4, 5))), "a", 3, CLASSES, files)
    with pytest.raises(ValueError, match=r"mask.png: label id 7 is outside the 3 classes; expected the ids 0-2, 255"):
        make_example(image, make.encoded(np.full((4, 6), 7, np.uint8)), "a", 3, CLASSES, files)
    with pytest.raises(DataError, match=r"image.png: cannot be decoded; expected a PNG or JPEG image, got 5 bytes"):
        make_example(b"words", image, "a", 3, CLASSES, files)
