import io
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from segjax.data.decode import decode_image, inspect_image, read_image, read_mask, read_palette, scale_values
from segjax.data.io import DataError, RawFile

BANDS = np.random.default_rng(0).integers(0, 60_000, (32, 48, 5), dtype=np.uint16)
BYTES = (BANDS >> 8).astype(np.uint8)


def tiff(samples, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **options)
    return buffer.getvalue()


def saved(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def ppm(array):
    magic = b"P5" if array.ndim == 2 else b"P6"
    header = magic + b" %d %d %d\n" % (*array.shape[1::-1], np.iinfo(array.dtype).max)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def info(data):
    return inspect_image(RawFile("x", len(data), lambda: data), data, whole=True)


LOSSLESS = {
    "PNG": (saved(Image.fromarray(BYTES[..., :3]), "PNG"), BYTES[..., :3]),
    "BMP": (saved(Image.fromarray(BYTES[..., :3]), "BMP"), BYTES[..., :3]),
    "WebP": (saved(Image.fromarray(BYTES[..., :3]), "WEBP", lossless=True), BYTES[..., :3]),
    "PPM": (ppm(BYTES[..., :3]), BYTES[..., :3]),
    "PGM": (ppm(BYTES[..., 0]), BYTES[..., :1]),
    "NPY": (npy(BANDS), BANDS),
    "NPY, big-endian": (npy(BANDS.astype(">u2")), BANDS),
    "NPY of float64": (npy(BANDS / 7.0), (BANDS / 7.0).astype(np.float32)),
    "NPY of int16": (npy(BANDS.astype(np.int16)), BANDS.astype(np.int16).astype(np.float32)),
    "PNG, 16-bit grey": (cv2.imencode(".png", BANDS[..., 0])[1].tobytes(), BANDS[..., :1]),
    "PNG, 16-bit RGB": (cv2.imencode(".png", BANDS[..., 2::-1])[1].tobytes(), BANDS[..., :3]),
    "PNG, 1-bit": (saved(Image.fromarray(BYTES[..., 0] > 99), "PNG"), (BYTES[..., :1] > 99) * np.uint8(255)),
    "PNG, grey with alpha": (saved(Image.fromarray(BYTES[..., :2], "LA"), "PNG"), BYTES[..., :1]),
    "PNG, RGB with alpha": (saved(Image.fromarray(BYTES[..., :4], "RGBA"), "PNG"), BYTES[..., :3]),
    "PPM, 16-bit": (ppm(BANDS[..., :3]), BANDS[..., :3]),
    "TIFF": (tiff(BYTES[..., :3], photometric="rgb"), BYTES[..., :3]),
    "TIFF, LZW by Pillow": (saved(Image.fromarray(BYTES[..., :3]), "TIFF", compression="tiff_lzw"), BYTES[..., :3]),
    "TIFF, tiled": (tiff(BANDS, photometric="minisblack", planarconfig="contig", tile=(16, 16)), BANDS),
    "TIFF, deflate": (tiff(BANDS, photometric="minisblack", planarconfig="contig", compression="zlib"), BANDS),
    "TIFF, LZW": (tiff(BANDS, photometric="minisblack", planarconfig="contig", compression="lzw"), BANDS),
    "TIFF, planar": (tiff(np.moveaxis(BANDS, -1, 0), photometric="minisblack", planarconfig="separate"), BANDS),
    "TIFF, big": (tiff(BANDS[..., 0], bigtiff=True), BANDS[..., :1]),
    "TIFF of float32": (tiff(BANDS[..., 0] / np.float32(7)), BANDS[..., :1] / np.float32(7)),
    "TIFF, RGB with alpha": (tiff(BYTES[..., :4], photometric="rgb", extrasamples=["unassalpha"]), BYTES[..., :3]),
    "TIFF, RGB and infrared": (tiff(BYTES[..., :4], photometric="rgb", extrasamples=["unspecified"]), BYTES[..., :4]),
    "TIFF, 1-bit, 0 is white": (
        tiff(BYTES[..., 0] > 99, photometric="miniswhite"),
        (BYTES[..., :1] <= 99) * np.uint8(255),
    ),
    "TIFF, 0 is white": (tiff(BYTES[..., 0], photometric="miniswhite"), 255 - BYTES[..., :1]),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_read_image_of_every_format(name):
    data, expected = LOSSLESS[name]
    found = read_image(data, "x")
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", LOSSLESS)
def test_inspect_image_of_every_format(name):
    data, expected = LOSSLESS[name]
    extremes = None if expected.dtype == np.uint8 else (expected.min(), expected.max())
    assert info(data) == (*expected.shape, str(expected.dtype), 1, extremes)
    header = inspect_image(RawFile("x", len(data), lambda: data), data, whole=False)
    assert header == (*expected.shape, str(expected.dtype), 1, None)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_read_image_palette(kind):
    picture = Image.fromarray(BYTES[..., :3]).quantize(16)
    data = saved(picture, kind, lossless=True) if kind == "WEBP" else saved(picture, kind)
    np.testing.assert_array_equal(read_image(data, "x"), np.asarray(picture.convert("RGB")))


def test_read_image_cmyk_jpeg():
    smooth = Image.fromarray(np.full((16, 16, 3), (200, 100, 50), np.uint8))
    found = read_image(saved(smooth.convert("CMYK"), "JPEG", quality=100), "x")
    np.testing.assert_allclose(found.astype(int), np.asarray(smooth), atol=3)


def test_read_image_first_frame_of_an_animation():
    first, second = (Image.fromarray(BYTES[..., i]) for i in (0, 1))
    data = saved(first, "GIF", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(data, "x")[..., 0], BYTES[..., 0])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_read_image_exif_orientation(kind, orientation):
    picture, exif = Image.fromarray(BYTES[..., :3]), Image.Exif()
    exif[0x0112] = orientation
    data = saved(picture, kind, exif=exif, **{"lossless": True} if kind == "WEBP" else {})
    picture.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(read_image(data, "x"), expected)
    assert info(data)[:5] == (*expected.shape, "uint8", orientation)


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parent / "cases" / "predict_folder").iterdir()), ids=lambda file: file.suffix
)
def test_read_image_made_case(file):
    with Image.open(file) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    np.testing.assert_array_equal(read_image(file.read_bytes(), file.name), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0words"])
def test_read_image_damaged_exif(exif):
    data = saved(Image.fromarray(BYTES[..., :3]), "JPEG", exif=exif)
    assert (read_image(data, "x").shape, info(data).orientation) == ((32, 48, 3), 1)


@pytest.mark.parametrize("name", [name for name in LOSSLESS if "white" not in name])
@pytest.mark.parametrize("length", [0.5, 0.95])
def test_inspect_image_cut_short(name, length):
    data = LOSSLESS[name][0]
    with pytest.raises(DataError, match=r"^x: cannot be decoded; expected PNG, .* bytes"):
        info(data[: int(len(data) * length)])


@pytest.mark.parametrize("data", [b"", b"words", b"\x93NUMPY", b"II*\0", b"MM\0*" + bytes(50), b"GIF89a", b"P6 2"])
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_read_image_and_mask_without_an_image(read, data):
    with pytest.raises(DataError, match=rf"^x: cannot be decoded; expected PNG, .*, got {len(data)} bytes"):
        read(data, "x")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(np.moveaxis(BANDS, -1, 0)), r"a TIFF of several pages \(5 × 32 × 48 samples.*one image per file"),
        (tiff(BYTES[..., :4], photometric="separated"), "a TIFF of SEPARATED pixels; convert it to grey, RGB"),
        (npy(BANDS[None]), r"expected an image .*; got the shape \[1, 32, 48, 5\]"),
        (npy(np.moveaxis(BANDS, -1, 0)), r"expected an image .*; got the shape \[5, 32, 48\]"),
        (npy(BANDS * 1j), "expected an image of integers or real numbers; got complex128"),
        (npy(np.array([[1.0, np.nan]])), "1 values are NaN or infinite"),
        (npy(np.array([{}], object)), "cannot be decoded"),  # nothing is unpickled
        (saved(Image.fromarray(BYTES[..., :3]), "ICO"), "expected PNG, .*; got ICO"),
    ],
)
def test_read_image_refused(data, reason):
    with pytest.raises(DataError, match=f"^x: {reason}"):
        read_image(data, "x")


def test_read_image_too_many_pixels(make):
    one = make.encoded(make.image(0))
    header = b"IHDR" + (40_000).to_bytes(4) * 2 + one[24:29]
    huge = one[:12] + header + zlib.crc32(header).to_bytes(4) + one[33:]
    with pytest.raises(DataError, match=r"x.png: cannot be decoded; expected at most 2\^30 pixels, .*[^\n]$"):
        read_image(huge, "x.png")


def test_decode_image_rgb_and_grey(make):
    colour, grey = make.image(0), make.image(1, channels=1)
    np.testing.assert_array_equal(decode_image(make.encoded(colour), 3, None, "x"), colour)
    np.testing.assert_array_equal(decode_image(make.encoded(grey), 1, None, "x"), grey[..., None])
    np.testing.assert_array_equal(decode_image(make.encoded(grey), 3, None, "x"), np.repeat(grey[..., None], 3, -1))


IDS = BYTES[..., 0] % 7
MASKS = {
    "PNG": (saved(Image.fromarray(IDS), "PNG"), IDS),
    "PNG, 1-bit": (saved(Image.fromarray(IDS > 3), "PNG"), IDS > 3),
    "PNG, 16-bit": (cv2.imencode(".png", BANDS[..., 0])[1].tobytes(), BANDS[..., 0]),
    "PNG, 16-bit, small ids": (cv2.imencode(".png", IDS.astype(np.uint16))[1].tobytes(), IDS),
    "PNG, colours": (saved(Image.fromarray(BYTES[..., :3]), "PNG"), BYTES[..., :3]),
    "PNG, opaque alpha": (saved(Image.fromarray(BYTES[..., :3]).convert("RGBA"), "PNG"), BYTES[..., :3]),
    "BMP": (saved(Image.fromarray(IDS), "BMP"), IDS),
    "GIF": (saved(Image.fromarray(IDS), "GIF", optimize=False), IDS),
    "WebP, colours": (saved(Image.fromarray(BYTES[..., :3]), "WEBP", lossless=True), BYTES[..., :3]),
    "PGM": (ppm(IDS), IDS),
    "TIFF": (tiff(IDS), IDS),
    "TIFF, LZW": (tiff(IDS, compression="lzw"), IDS),
    "TIFF of int32": (tiff(IDS.astype(np.int32)), IDS),
    "TIFF, colours": (tiff(BYTES[..., :3], photometric="rgb"), BYTES[..., :3]),
    "NPY of int64": (npy(IDS.astype(np.int64)), IDS),
    "NPY of bool": (npy(IDS > 3), IDS > 3),
    "NPY of one channel": (npy(IDS[..., None]), IDS),
}


@pytest.mark.parametrize("name", MASKS)
def test_read_mask_of_every_format(name):
    data, expected = MASKS[name]
    found = read_mask(data, "x")
    assert found.dtype == (np.uint16 if expected.max() > 255 else np.uint8)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_read_mask_palette_indices(kind):
    picture = Image.fromarray(IDS)
    picture.putpalette([9, 8, 7] * 7)
    options = {"optimize": False} if kind == "GIF" else {}
    np.testing.assert_array_equal(read_mask(saved(picture, kind, **options), "x"), IDS)


def test_read_mask_exif_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(IDS), "PNG", exif=exif)
    np.testing.assert_array_equal(read_mask(data, "x"), np.rot90(IDS, -1))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (saved(Image.fromarray(BYTES[..., :4], "RGBA"), "PNG"), "a mask with transparent pixels"),
        (saved(Image.fromarray(BYTES[..., :2], "LA"), "PNG"), "a mask with transparent pixels"),
        (tiff(IDS > 3, photometric="miniswhite"), "a mask whose 0 is white; expected .* MINISBLACK"),
        (npy(IDS - 1.0), "integers in 0..65535; got -1.0 to 5.0, float64"),
        (npy(IDS + 0.5), "integers in 0..65535"),
        (npy(BANDS), r"a mask of integers \[H, W\], or of .* got uint16 of shape \[32, 48, 5\]"),
    ],
)
def test_read_mask_refused(data, reason):
    with pytest.raises(DataError, match=f"^x: .*{reason}"):
        read_mask(data, "x")


def test_read_mask_four_bits(make):
    whole = bytearray(make.encoded(make.ids()))
    whole[24] = 4
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    with pytest.raises(DataError, match=r"m.png: a grey mask of 4 bits per pixel, whose ids are stretched to 0..255"):
        read_mask(bytes(whole), "m.png")


PALETTE = [0, 0, 0, 255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_read_mask_palette_as_ids_or_colours(make, kind):
    data = make.encoded(np.array([[0, 1]], np.uint8), kind, PALETTE, "P")
    assert read_mask(data, "m").tolist() == [[0, 1]]
    assert read_mask(data, "m", colours=True).tolist() == [[[0, 0, 0], [255, 0, 0]]]
    assert read_palette(data, "m")[:2].tolist() == [[0, 0, 0], [255, 0, 0]]


def test_read_mask_one_bit_as_ids_or_colours(make):
    data = make.encoded(np.array([[False, True]]))
    assert read_mask(data, "m").tolist() == [[0, 1]]
    assert read_mask(data, "m", colours=True).tolist() == [[[0] * 3, [255] * 3]]


def test_read_mask_grey_palette_of_a_gif(make):
    data = make.encoded(np.array([[0, 1]], np.uint8), "GIF", [255, 255, 255, 0, 0, 0], "P")
    assert read_mask(data, "m").tolist() == [[255, 0]]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_read_palette_of_a_mask_without_one(make, kind):
    assert len(read_palette(make.encoded(make.ids(), kind), "m")) == 0


@pytest.mark.parametrize(
    ("pixels", "value_range", "expected"),
    [
        ([0, 99, 255], None, [0, 99, 255]),
        (np.uint16([0, 257 * 99, 65_535]), None, [0, 99, 255]),
        ([0.0, 0.5, 1.0], None, [0, 128, 255]),
        (np.uint16([0, 1000, 3000, 9000]), (1000.0, 5000.0), [0, 0, 127.5, 255]),
        ([-4.0, 0.0, 6.0], (-4.0, 6.0), [0, 102, 255]),
        ([0, 50, 255], (0.0, 100.0), [0, 127.5, 255]),
    ],
)
def test_scale_values(pixels, value_range, expected):
    pixels = np.array(pixels)
    pixels = pixels.astype({"i": np.uint8, "f": np.float32, "u": np.uint16}[pixels.dtype.kind])[None, :, None]
    found = scale_values(pixels, 1, value_range, "x")
    assert found.dtype == (np.uint8 if value_range is None else np.float32)
    np.testing.assert_allclose(found[0, :, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "value_range", "reason"),
    [
        (np.uint8([9]), (0.0, 4095.0), "8 bits per channel; expected values from 0 to 4095, .* config.data.range"),
        (np.uint16([0, 4095]), None, "16 bits per channel, of which values up to 4095 are used; expected 8 bits"),
        (np.float32([0, 2]), None, "float32 from 0 to 2; expected 8 bits per channel"),
    ],
)
def test_scale_values_refused(pixels, value_range, reason):
    with pytest.raises(DataError, match=f"^x: .*{reason}"):
        scale_values(pixels[None, :, None], 1, value_range, "x")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_scale_values_refuses_another_dtype_under_a_range(dtype):
    for other in {"uint8", "uint16", "float32"} - {dtype}:
        with pytest.raises(DataError, match=f"x: an image of {dtype}; expected {other}, .*42 to 219"):
            scale_values(np.ones((1, 3, 1), dtype), 1, (42.0, 219.0), "x", other)
    assert scale_values(np.full((1, 3, 1), 219, dtype), 1, (42.0, 219.0), "x", dtype).max() == 255


@pytest.mark.parametrize(("found", "expected"), [(5, 3), (3, 5), (1, 5), (2, 1)])
def test_scale_values_other_number_of_channels(found, expected):
    with pytest.raises(DataError, match=f"an image of {found} channels; expected {expected}"):
        scale_values(np.zeros((4, 6, found), np.uint8), expected, None, "x")
