import zlib

import cv2
import numpy as np
import pytest

from segjax.data.decode import decode_image, decode_mask
from segjax.data.io import DataError


def test_decode_image_rgb_and_grey(make):
    colour, grey = make.image(0), make.image(1, channels=1)
    np.testing.assert_array_equal(decode_image(make.encoded(colour), 3, "x"), colour)
    np.testing.assert_array_equal(decode_image(make.encoded(grey), 1, "x"), grey[..., None])
    np.testing.assert_array_equal(decode_image(make.encoded(grey), 3, "x"), np.repeat(grey[..., None], 3, -1))


def test_decode_image_alpha_and_sixteen_bits(make):
    colour = make.image(0)
    np.testing.assert_array_equal(decode_image(make.encoded(colour, mode="RGBA"), 3, "x"), colour)
    deep = make.image(1, channels=1).astype(np.uint16) * 257
    np.testing.assert_array_equal(decode_image(cv2.imencode(".png", deep)[1].tobytes(), 1, "x")[..., 0], deep // 257)


def test_decode_image_too_many_pixels(make):
    one = make.encoded(make.image(0))
    header = b"IHDR" + (40_000).to_bytes(4) * 2 + one[24:29]
    huge = one[:12] + header + zlib.crc32(header).to_bytes(4) + one[33:]
    with pytest.raises(DataError, match=r"x.png: cannot be decoded; expected at most 2\^30 pixels, .*[^\n]$"):
        decode_image(huge, 3, "x.png")


def test_decode_mask_palette_indices(make):
    ids = make.ids(0)
    np.testing.assert_array_equal(decode_mask(make.encoded(ids), "x"), ids)
    np.testing.assert_array_equal(decode_mask(make.encoded(ids, palette=[9, 8, 7] * 3, mode="P"), "x"), ids)
    np.testing.assert_array_equal(decode_mask(make.encoded(ids > 0), "x"), ids > 0)


def test_decode_mask_other_formats(make):
    with pytest.raises(DataError, match=r"m.png: expected a mask .* got a PNG in mode RGB"):
        decode_mask(make.encoded(make.image()), "m.png")
    with pytest.raises(DataError, match="got a JPEG in mode L"):
        decode_mask(make.encoded(make.ids(), "JPEG"), "m.jpg")
    with pytest.raises(DataError, match=r"m.png: cannot be decoded; expected a PNG mask, got 5 bytes"):
        decode_mask(b"words", "m.png")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_decode_mask_with_alpha(make, mode):
    with pytest.raises(DataError, match=rf"m.png: expected a mask .* grey or palette; got a PNG in mode {mode}"):
        decode_mask(make.encoded(make.image(), mode=mode), "m.png")


def test_decode_mask_sixteen_bits(make):
    deep = cv2.imencode(".png", make.ids().astype(np.uint16))[1].tobytes()
    with pytest.raises(DataError, match=r"m.png: expected a mask .* 8 bits per pixel, .* got a PNG in mode I;16"):
        decode_mask(deep, "m.png")


def test_decode_mask_four_bits(make):
    whole = bytearray(make.encoded(make.ids()))
    whole[24] = 4
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    with pytest.raises(DataError, match=r"m.png: a grey mask of 4 bits per pixel, whose ids are stretched to 0..255"):
        decode_mask(bytes(whole), "m.png")
