"""Decoding of image and mask files."""

import io

import cv2
import numpy as np
import scipy.io
from jaxtyping import UInt8
from PIL import Image

from segjax.data.io import DataError, RawFile, as_data_error, read_bytes


def inspect_image(image: RawFile, data: bytes, *, whole: bool) -> tuple[int, int, int]:
    """Returns height, width and channels from the header; `whole` decodes the pixels too."""
    # Pillow, because it refuses a file that is cut short, where some versions of OpenCV fill the rest with grey. Its
    # `verify` tests the checksums of a PNG, its `load` the pixels; each finds damage that the other does not.
    with as_data_error(f"{image.path}: cannot be decoded; expected a PNG or JPEG image, got {len(data)} bytes"):
        with Image.open(io.BytesIO(data)) as opened:
            if opened.format not in ("PNG", "JPEG", "MPO"):
                raise DataError(f"{image.path}: expected a PNG or JPEG image; got {opened.format}")
            if whole and opened.format == "PNG":
                opened.verify()
        with Image.open(io.BytesIO(data)) as opened:
            if whole:
                opened.load()
            return opened.height, opened.width, 1 if opened.mode in ("1", "L", "LA", "I", "I;16") else 3


def image_header(image: RawFile) -> tuple[int, int, int]:
    """Reads height, width and channels of an image from its header."""
    return inspect_image(image, read_bytes(image), whole=False)


def decode_image(data: bytes, channels: int, file: str) -> UInt8[np.ndarray, "h w channels"]:
    """Decodes a PNG or JPEG to grey (1 channel) or RGB (3), or raises `DataError`.

    16 bits become 8, alpha is dropped, and EXIF orientation is ignored, because the mask beside an image has none.
    """
    if not data:
        raise DataError(f"{file}: cannot be decoded; the file is empty")
    colour = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    limit = "expected at most 2^30 pixels, or as many as $OPENCV_IO_MAX_IMAGE_PIXELS"
    with as_data_error(f"{file}: cannot be decoded; {limit}"):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), colour | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:  # damaged
        raise DataError(f"{file}: cannot be decoded; expected a PNG or JPEG image, got {len(data)} bytes")
    return image[..., None] if channels == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode_mask(data: bytes, file: str) -> UInt8[np.ndarray, "h w"]:
    """Decodes a PNG of one byte per pixel, grey values or the indices of a palette, or raises `DataError`."""
    # Pillow, because OpenCV converts the indices of a palette to colours.
    with as_data_error(f"{file}: cannot be decoded; expected a PNG mask, got {len(data)} bytes"):
        with Image.open(io.BytesIO(data)) as image:
            if image.format != "PNG" or image.mode not in ("L", "P", "1"):
                expected = "expected a mask that is a PNG of class ids, 8 bits per pixel, grey or palette"
                raise DataError(f"{file}: {expected}; got a {image.format} in mode {image.mode}")
            bits = data[24]  # of the PNG header
            if image.mode == "L" and bits != 8:
                stretched = "whose ids are stretched to 0..255 when it is read"
                raise DataError(f"{file}: a grey mask of {bits} bits per pixel, {stretched}; expected 8 bits")
            image.verify()  # the checksums, which decoding ignores
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image).astype(np.uint8)


def decode_ids(mask: RawFile, data: bytes) -> np.ndarray:
    """Decodes the raw ids of a mask, uint8 `[H, W]`: a PNG, or a `.mat` of CrackForest."""
    if not mask.path.lower().endswith(".mat"):
        return decode_mask(data, mask.path)
    with as_data_error(f"{mask.path}: expected a MATLAB file with groundTruth.Segmentation"):
        ids = scipy.io.loadmat(io.BytesIO(data))["groundTruth"]["Segmentation"][0, 0]
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise DataError(f"{mask.path}: expected a uint8 matrix of label ids; got {ids.dtype} of shape {ids.shape}")
    return ids


def mask_png(mask: RawFile) -> bytes:
    """Returns the mask as a grey PNG of raw ids; the bytes of a mask that already is one do not change."""
    data = read_bytes(mask)
    if data.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(data)) as opened:
            if opened.mode == "L":
                return data
    return cv2.imencode(".png", decode_ids(mask, data))[1].tobytes()
