"""Decoding of image and mask files."""

import io
import operator
from typing import Any, NamedTuple

import cv2
import numpy as np
import scipy.io
import tifffile
from jaxtyping import Num, UInt8, UInt16
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from segjax.data.io import DataError, RawFile, as_data_error, read_bytes

FORMATS = "PNG, JPEG, TIFF, BMP, GIF, WebP, PPM, PGM or NPY"
_TIFF, _NPY, _PPM = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), b"\x93NUMPY", (b"P5", b"P6")
DARK_UINT16 = 1 << 14
"""Values of 16-bit images below this one leave the scale to 65535 unused, and come from a sensor of fewer bits."""
ValueRange = tuple[float, float] | None
"""Values that become 0 and 255; None: 8-bit images, whose values stay."""
ORIGIN_FILE = "predicted_by.json"
"""File of a folder of predictions that names the network and its classes."""
SOURCE_KEYWORD = "segjax"
"""Keyword of the text in a PNG of `segjax predict` that names the source of a picture."""
SCRIPT_MARK = ("made_by", "run.py")
"""Keyword and text in a PNG of the script of an export."""
DATASET_VALUES = ("segjax_values", "dataset")
"""Keyword and text in the PNG of a predicted mask whose pixels are values of the data set, and not class indices."""
_ORIENTATION = 0x0112  # tag of EXIF and TIFF


class ImageInfo(NamedTuple):
    """Properties of an image; height and width are those of the picture as displayed."""

    height: int
    width: int
    channels: int
    dtype: str  # of `read_image`: "uint8", "uint16" or "float32"
    orientation: int  # EXIF: 1 to 8, 1 is upright
    values: tuple[float, float] | None = None  # minimum and maximum of a whole image that is not 8-bit


def inspect_image(image: RawFile, data: bytes, *, whole: bool) -> ImageInfo:
    """Returns the properties of an image from its header; `whole` decodes the pixels too, and so finds damage."""
    if data.startswith((*_TIFF, _NPY, *_PPM)):
        pixels, orientation = _read_stored(data, image.path, whole=whole)
        height, width, channels = turned(pixels, orientation).shape
        values = _extremes(pixels) if whole else None
        return ImageInfo(height, width, channels, str(pixels.dtype), orientation, values)
    # Pillow, because it refuses a file that is cut short, where some versions of OpenCV fill the rest with grey. Its
    # `verify` tests the checksums of a PNG, its `load`, or OpenCV for 16 bits, the pixels; each finds damage that the
    # other does not.
    deep = _is_deep_png(data)
    with as_data_error(_unreadable(data, image.path)):
        if whole and data.startswith(b"\x89PNG"):
            _open(data, image.path).verify()
        with _open(data, image.path) as opened:
            if whole and not deep:
                opened.load()
            orientation = _orientation(opened, data)
            height, width = opened.size if orientation > 4 else opened.size[::-1]
            channels = 1 if opened.mode in ("1", "L", "LA", "I;16") else 3
        values = _extremes(read_image(data, image.path)) if whole and deep else None
        return ImageInfo(height, width, channels, "uint16" if deep else "uint8", orientation, values)


def image_header(image: RawFile) -> ImageInfo:
    """Reads the properties of an image from its header."""
    return inspect_image(image, read_bytes(image), whole=False)


def read_image(data: bytes, file: str) -> Num[np.ndarray, "h w channels"]:
    """Decodes an image as it is displayed, turned by its EXIF orientation, or raises `DataError`.

    Values keep the range of the file: uint8, uint16, or float32 for all other numbers. Grey images have one channel,
    colour images three (RGB); TIFF and NPY files have as many as they contain. A palette becomes its colours, a single
    bit 0 or 255, and alpha is dropped. Only the first frame of an animation is read; a TIFF of several pages raises
    `DataError`.
    """
    return read_turned(data, file)[0]


def read_mask(
    data: bytes, file: str, *, colours: bool = False
) -> UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]:
    """Decodes a mask as it is displayed to ids `[H, W]`, uint8 or uint16, or to RGB colours `[H, W, 3]`, uint8.

    Ids are the indices of a palette, else grey values, with 0 and 1 for 1 bit; the grey palette of a GIF counts as grey
    values. With `colours`, palettes and single bits become the colours that they show.

    Raises: DataError if the file is damaged, has transparent pixels or grey of 2 or 4 bits, is a TIFF whose 0 is white,
    or contains numbers other than integers in 0..65535.
    """
    with as_data_error(_unreadable(data, file)):
        if data.startswith(_NPY):
            return _as_ids(np.load(io.BytesIO(data), allow_pickle=False), file)
        if data.startswith(_TIFF):
            samples, page = _tiff_samples(data, file)
            if page.photometric == 0:
                raise DataError(f"{file}: a mask whose 0 is white; expected a TIFF with the photometric MINISBLACK")
            samples = _tiff_colours(samples, page, file) if colours and page.photometric == 3 else samples
            return _as_ids(turned(samples, _tiff_orientation(page)), file)
        if data.startswith(b"\x89PNG"):
            with _open(data, file) as image:
                if image.mode == "L" and (bits := data[24]) != 8:  # of the PNG header
                    stretched = "whose ids are stretched to 0..255 when it is read"
                    raise DataError(f"{file}: a grey mask of {bits} bits per pixel, {stretched}; expected 8 bits")
                image.verify()  # the checksums, which decoding ignores
        with _open(data, file) as image:
            image.load()
            orientation = _orientation(image, data)
            if _is_deep_png(data) or data.startswith(_PPM):
                return _as_ids(turned(_by_opencv(data, file), orientation), file)
            if image.has_transparency_data and image.convert("RGBA").getextrema()[3] != (255, 255):
                raise DataError(f"{file}: a mask with transparent pixels; expected one without alpha")
            mode = {"1": "1", "L": "L", "LA": "L", "P": "P", "PA": "P"}.get(image.mode, "RGB")
            if colours and mode in ("1", "P"):
                mode = "RGB"
            elif mode == "P" and image.format == "GIF" and _is_grey(image):  # a GIF has no grey pixels
                mode = "L"
            return turned(np.array(image.convert(mode)).astype(np.uint8), orientation)


def read_turned(data: bytes, file: str) -> tuple[Num[np.ndarray, "h w channels"], int]:
    """Returns the image of `read_image`, and the EXIF orientation of the stored pixels."""
    pixels, orientation = _read_stored(data, file)
    return turned(pixels, orientation), orientation


def decode_image(
    data: bytes, channels: int, value_range: ValueRange, file: str, dtype: str | None = None
) -> np.ndarray:
    """Decodes an image as `read_image` to the values of `scale_values`, `[H, W, channels]`."""
    return scale_values(read_image(data, file), channels, value_range, file, dtype)


def scale_values(
    pixels: np.ndarray, channels: int, value_range: ValueRange, file: str, dtype: str | None = None
) -> np.ndarray:
    """Returns the pixels of `read_image` on the scale 0..255, with as many channels as the other images.

    With a range (low, high): clip(255 (x - low) / (high - low), 0, 255), float32. With None: uint8, where 16 bits are
    rounded to 8, and numbers from 0 to 1 are multiplied by 255. Grey is repeated to 3 channels, and RGB is converted
    to 1. `dtype` is that of the images in which a range was found; None: not known.

    Raises: DataError if the dtype or the number of channels is another one, or the values are not on the scale of the
    other images.
    """
    pixels = _with_channels(pixels, channels, file)
    largest = pixels.max()
    if value_range is not None:
        low, high = value_range
        if dtype and pixels.dtype != dtype:
            expected = f"expected {dtype}, as the images in which config.data.range was found, {low:g} to {high:g}"
            raise DataError(f"{file}: an image of {pixels.dtype}; {expected}: convert it")
        if pixels.dtype == np.uint8 and high > 255:
            expected = f"expected values from {low:g} to {high:g}, as the other images have: config.data.range"
            raise DataError(f"{file}: an image of 8 bits per channel; {expected}")
        scale = np.float32(255 / (high - low))
        return np.clip((pixels.astype(np.float32) - np.float32(low)) * scale, 0, 255)
    if pixels.dtype == np.uint8:
        return pixels
    expected = "expected 8 bits per channel, as the other images have: convert it"
    if pixels.dtype == np.uint16:
        if 0 < largest < DARK_UINT16:
            raise DataError(f"{file}: 16 bits per channel, of which values up to {largest} are used; {expected}")
        return np.round(pixels / np.float32(257)).astype(np.uint8)
    if pixels.min() < 0 or largest > 1:
        raise DataError(f"{file}: {pixels.dtype} from {pixels.min():g} to {largest:g}; {expected}")
    return np.round(pixels * np.float32(255)).astype(np.uint8)


def _with_channels(pixels: np.ndarray, channels: int, file: str) -> np.ndarray:
    found = pixels.shape[-1]
    if found == channels:
        return pixels
    if (found, channels) == (1, 3):
        return np.repeat(pixels, 3, axis=-1)
    if (found, channels) == (3, 1):
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    raise DataError(f"{file}: an image of {found} channels; expected {channels}, as the other images have")


def decode_ids(data: bytes, file: str, *, colours: bool = False) -> np.ndarray:
    """Decodes a mask as `read_mask` does, or the `.mat` of CrackForest, uint8 `[H, W]`."""
    if not file.lower().endswith(".mat"):
        return read_mask(data, file, colours=colours)
    with as_data_error(f"{file}: expected a MATLAB file with groundTruth.Segmentation"):
        ids = scipy.io.loadmat(io.BytesIO(data))["groundTruth"]["Segmentation"][0, 0]
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise DataError(f"{file}: expected a uint8 matrix of label ids; got {ids.dtype} of shape {ids.shape}")
    return ids


def predicted_values(data: bytes, file: str) -> str | None:
    """Returns "indices" or "dataset", the pixels of a mask that segjax or an exported script predicted; otherwise None.

    Only marks in the file count, because a name such as `a_mask.png` is also usual for labels.
    """
    with as_data_error(_unreadable(data, file)):
        texts = _open(data, file).info if data.startswith(b"\x89PNG") else {}
    if SOURCE_KEYWORD not in texts and texts.get(SCRIPT_MARK[0]) != SCRIPT_MARK[1]:
        return None
    return "dataset" if texts.get(DATASET_VALUES[0]) == DATASET_VALUES[1] else "indices"


def read_palette(data: bytes, file: str) -> UInt8[np.ndarray, "indices 3"]:
    """Returns the RGB colour of each index of a mask from the file's header; none for a mask without a palette."""
    none, is_png = np.zeros((0, 3), np.uint8), data.startswith(b"\x89PNG")
    if file.lower().endswith(".mat") or data.startswith(_NPY) or (is_png and data[25:26] != b"\x03"):  # colour type
        return none
    with as_data_error(_unreadable(data, file)):
        if data.startswith(_TIFF):
            page = _tiff_samples(data, file, whole=False)[1]
            return _tiff_palette(page) if page.photometric == 3 else none
        with _open(data, file) as image:
            if image.mode not in ("P", "PA") or (image.format == "GIF" and _is_grey(image)):
                return none
            mode, colours = image.palette.getdata()
        single = Image.new("P", (1, 1))
        single.putpalette(colours, mode)
        return np.array(single.getpalette("RGB"), np.uint8).reshape(-1, 3)


def mask_png(mask: RawFile) -> bytes:
    """Returns the mask as a grey PNG of raw ids; the bytes of a mask that already is one do not change."""
    data = read_bytes(mask)
    if data.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(data)) as opened:
            if opened.mode == "L":
                return data
    ids = decode_ids(data, mask.path)
    return cv2.imencode(".png", ids if ids.ndim == 2 else ids[..., 0])[1].tobytes()  # of equal red, green and blue


def _extremes(pixels: np.ndarray) -> tuple[float, float] | None:
    return None if pixels.dtype == np.uint8 else (float(pixels.min()), float(pixels.max()))


def _read_stored(data: bytes, file: str, *, whole: bool = True) -> tuple[np.ndarray, int]:
    """Returns the pixels `[H, W, channels]` as they are stored, and their orientation; without `whole`, TIFFs are 0."""
    with as_data_error(_unreadable(data, file)):
        if data.startswith(_NPY):
            return _as_image(np.load(io.BytesIO(data), allow_pickle=False), file), 1
        if data.startswith(_TIFF):
            samples, page = _tiff_samples(data, file, whole=whole)
            return _as_image(_tiff_colours(samples, page, file), file), _tiff_orientation(page)
        with _open(data, file) as opened:
            orientation = _orientation(opened, data)
            if data.startswith(_PPM):
                opened.load()  # OpenCV reads a file that is cut short
            if opened.format in ("PNG", "JPEG", "PPM"):  # Pillow reads 16-bit colours as 8-bit ones
                pixels = _by_opencv(data, file)
                pixels = pixels[..., :1] if opened.mode == "LA" else pixels
            else:
                pixels = np.array(opened.convert("L" if opened.mode in ("1", "L", "LA") else "RGB"))
        return _as_image(pixels, file), orientation


def _open(data: bytes, file: str) -> Image.Image:
    """Opens an image of 8 bits, or of a format that OpenCV reads; no pixel is decoded."""
    if not data:
        raise ValueError("the file is empty")
    # `Image.open` refuses pictures of more than 1.8e8 pixels, which OpenCV reads.
    classes = {b"\x89PNG": PngImageFile, b"\xff\xd8": JpegImageFile}
    open_it = next((kind for start, kind in classes.items() if data.startswith(start)), Image.open)
    try:
        opened = open_it(io.BytesIO(data))
    except UnidentifiedImageError:  # names an address in memory
        raise ValueError("not an image") from None
    if opened.format not in ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "PPM"):
        raise DataError(f"{file}: expected {FORMATS}; got {opened.format}")
    return opened


def _unreadable(data: bytes, file: str) -> str:
    return f"{file}: cannot be decoded; expected {FORMATS}, got {len(data)} bytes"


def _by_opencv(data: bytes, file: str) -> np.ndarray:
    """Decodes grey `[H, W]` or RGB `[H, W, 3]` of 8 or 16 bits, without alpha."""
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
    limit = "expected at most 2^30 pixels, or as many as $OPENCV_IO_MAX_IMAGE_PIXELS"
    with as_data_error(f"{file}: cannot be decoded; {limit}"):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise ValueError("damaged pixels")
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _is_grey(image: Image.Image) -> bool:
    pixels = np.array(image.convert("RGB"))
    return bool((pixels == pixels[..., :1]).all())


def _is_deep_png(data: bytes) -> bool:
    return data.startswith(b"\x89PNG") and data[24] == 16  # bits per channel; Pillow's mode is RGB for 16 bits too


def _orientation(opened: Image.Image, data: bytes) -> int:
    # Pillow decodes a PNG to find EXIF behind its pixels.
    if not (b"eXIf" in data if opened.format == "PNG" else "exif" in opened.info):
        return 1
    try:
        orientation = opened.getexif().get(_ORIENTATION, 1)
    except Exception:  # of damaged EXIF, whatever Pillow raises; the pixels may be whole
        return 1
    return orientation if orientation in range(1, 9) else 1


def _tiff_orientation(page: Any) -> int:
    tag = page.tags.get(_ORIENTATION)
    return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns stored pixels to those that are displayed."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _as_image(pixels: np.ndarray, file: str) -> np.ndarray:
    """Returns numbers `[H, W]` or `[H, W, channels]` in the shape and dtype of `read_image`."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or not pixels.size or pixels.shape[-1] > max(4, min(pixels.shape[:2])):
        raise DataError(f"{file}: expected an image [H, W] or [H, W, channels]; got the shape {list(pixels.shape)}")
    if pixels.dtype == bool:
        return pixels * np.uint8(255)
    if pixels.dtype.kind not in "uif":
        raise DataError(f"{file}: expected an image of integers or real numbers; got {pixels.dtype}")
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    pixels = pixels.astype(np.float32)
    if not np.isfinite(pixels).all():
        raise DataError(f"{file}: {np.sum(~np.isfinite(pixels))} values are NaN or infinite; expected finite ones")
    return pixels


def _as_ids(ids: np.ndarray, file: str) -> np.ndarray:
    """Returns ids `[H, W]` as uint8 or uint16, and colours `[H, W, 3]` as they are."""
    ids = ids[..., 0] if ids.ndim == 3 and ids.shape[-1] == 1 else ids
    if ids.dtype == np.uint8 and ids.size and (ids.ndim == 2 or ids.shape[2:] == (3,)):
        return ids
    if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "buif":
        expected = "expected a mask of integers [H, W], or of uint8 colours [H, W, 3]"
        raise DataError(f"{file}: {expected}; got {ids.dtype} of shape {list(ids.shape)}")
    with np.errstate(invalid="ignore"):  # of NaN
        whole = ids.astype(np.uint16)
    if (whole != ids).any():
        raise DataError(f"{file}: expected a mask of integers in 0..65535; got {ids.min()} to {ids.max()}, {ids.dtype}")
    return whole.astype(np.uint8) if whole.max() < 256 else whole


def _tiff_samples(data: bytes, file: str, *, whole: bool = True) -> tuple[np.ndarray, Any]:
    """Returns the samples of a TIFF, `[H, W]` or `[H, W, channels]` without alpha, and tifffile's page of them.

    Without `whole`, nothing is decoded, and the samples are 0.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as opened:
        largest, *others = opened.series
        page, frames = largest.keyframe, (opened.imagej_metadata or {}).get("images", 1)
        several = frames > 1 or any(series.shape == largest.shape for series in others)
        if several or largest.axes not in ("YX", "YXS", "SYX"):
            found = f"{' × '.join(map(str, largest.shape))} samples, axes {largest.axes}"
            expected = "expected one image per file: save each page as a file, or bands as samples of one page"
            raise DataError(f"{file}: a TIFF of several pages ({found}); {expected}")
        if max(map(operator.add, page.dataoffsets, page.databytecounts)) > len(data):
            raise ValueError("the file is cut short")
        samples = largest.asarray() if whole else np.zeros(largest.shape, largest.dtype)
        samples = np.moveaxis(samples, 0, -1) if largest.axes == "SYX" else samples
        is_alpha = [kind in (1, 2) for kind in page.extrasamples]  # of the last samples
        if any(is_alpha):
            samples = np.delete(samples, np.flatnonzero(is_alpha) - len(is_alpha), axis=-1)
        return samples, page


def _tiff_colours(samples: np.ndarray, page: Any, file: str) -> np.ndarray:
    """Returns the colours or grey values of the samples of a TIFF as they are displayed."""
    kind, jpeg = int(page.photometric), int(page.compression) in (6, 7)
    if kind in (1, 2) or (kind == 6 and jpeg):  # grey, RGB, and the YCbCr that tifffile turns into RGB
        return samples
    if kind == 0 and samples.dtype.kind in "bu":  # 0 is white
        return ~samples
    if kind == 3:
        return _tiff_palette(page)[samples]
    raise DataError(f"{file}: a TIFF of {page.photometric.name} pixels; convert it to grey, RGB or a palette")


def _tiff_palette(page: Any) -> UInt8[np.ndarray, "indices 3"]:
    return (page.colormap >> 8).astype(np.uint8).T
