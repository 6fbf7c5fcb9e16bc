"""What every data set looks like once it is open: random access to decoded images and train ids."""

import io
from typing import Protocol, TypedDict, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segjax.data.errors import DataError
from segjax.data.labels import LabelSet, to_train_ids


class Example(TypedDict):
    """An image, uint8 `[H, W, C]`, its train ids, uint8 `[H, W]` with 255 for void, and its name."""

    image: np.ndarray
    label: np.ndarray
    name: str


@runtime_checkable
class Source(Protocol):
    """A split, open for random access. Sources are picklable, so that worker processes can read.

    Attributes:
      label_set: the classes.
      channels: of every image: 1, or 3 in the order RGB.
      native_size: height and width that all images of the split share; None if they differ.
      largest_size: the greatest height and the greatest width in the split.
      skipped: why each pair of files that was left out under `on_error="skip"` was: a message a pair.
    """

    label_set: LabelSet
    channels: int
    native_size: tuple[int, int] | None
    largest_size: tuple[int, int]
    skipped: tuple[str, ...]

    def __len__(self) -> int:
        """The number of images."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes example `index`."""
        ...

    def name(self, index: int) -> str:
        """The name of example `index`, without decoding it."""
        ...


def decode_image(data: bytes, channels: int, file: str) -> UInt8[np.ndarray, "h w channels"]:
    """Decodes a PNG or JPEG to grey (1 channel) or RGB (3), 16 bits to 8, alpha dropped, pixels as they are stored.

    Raises:
      DataError: the bytes are no image, or one of too many pixels.
    """
    if not data:
        raise DataError(f"{file}: cannot be decoded; the file is empty")
    # The stored pixels, because the mask beside an image has no EXIF orientation to turn it by.
    colour = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), colour | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:  # a size that it refuses; damaged bytes give None
        raise DataError(
            f"{file}: cannot be decoded; expected at most 2^30 pixels, or as many as $OPENCV_IO_MAX_IMAGE_PIXELS "
            f"({str(error).strip()[:200]})"
        ) from error
    if image is None:
        raise DataError(f"{file}: cannot be decoded; expected a PNG or JPEG image, got {len(data)} bytes")
    return image[..., None] if channels == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode_mask(data: bytes, file: str) -> UInt8[np.ndarray, "h w"]:
    """Decodes a PNG of one byte a pixel: grey values, or the indices (not the colours) of a palette.

    Raises:
      DataError: the bytes are no such PNG.
    """
    # Pillow, because OpenCV turns a palette's indices into colours.
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.format != "PNG" or picture.mode not in ("L", "P", "1"):
                raise DataError(
                    f"{file}: expected a mask that is a PNG of class ids, 8 bits a pixel, grey or palette; "
                    f"got a {picture.format} in mode {picture.mode}"
                )
            if picture.mode == "L" and data[24] != 8:  # the byte of the PNG's bit depth
                raise DataError(
                    f"{file}: a grey mask of {data[24]} bits a pixel, whose ids are stretched to 0..255 when it is "
                    "read; expected 8 bits"
                )
            picture.verify()  # the checksums, which decoding does not look at
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture).astype(np.uint8)
    except DataError:
        raise
    except Exception as error:  # whatever Pillow's parsers raise for damaged bytes: OSError, SyntaxError, ValueError...
        raise DataError(f"{file}: cannot be decoded; expected a PNG mask, got {len(data)} bytes ({error})") from error


def make_example(
    image: bytes, mask: bytes, name: str, channels: int, label_set: LabelSet, files: tuple[str, str] | None = None
) -> Example:
    """Decodes an image and its mask and maps its ids to train ids.

    Args:
      image: a PNG or JPEG.
      mask: a PNG of raw ids.
      name: of the example.
      channels: 1 or 3.
      label_set: the classes.
      files: what errors call the image and the mask; default "image of NAME" and "mask of NAME".

    Raises:
      DataError: either cannot be decoded, their sizes differ, or the mask holds an id outside the classes.
    """
    image_file, mask_file = files or (f"image of {name}", f"mask of {name}")
    pixels = decode_image(image, channels, image_file)
    ids = decode_mask(mask, mask_file)
    check_sizes(pixels.shape[:2], ids.shape, image_file, mask_file)
    return {"image": pixels, "label": to_train_ids(ids, label_set, mask_file), "name": name}


def check_sizes(image: tuple[int, int], mask: tuple[int, int], image_file: str, mask_file: str) -> None:
    """Raises `DataError` if an image and its mask, each of height and width, are not of one size."""
    if image != mask:
        raise DataError(
            f"{mask_file}: a mask of {mask[0]}×{mask[1]} for an image of {image[0]}×{image[1]} ({image_file}); "
            "expected one size"
        )


def skipped_lines(source: Source, split: str, shown: int = 20) -> list[str]:
    """What to tell a person of the pairs that a split was opened without: how many, then why, one line each.

    Args:
      source: the split, open.
      split: its name.
      shown: how many are named; of the rest, only the number.

    Returns:
      The lines; none if nothing was skipped.
    """
    count = len(source.skipped)
    if not count:
        return []
    lines = [f"{split}: skipped {count} bad pair(s) of image and mask (config.data.on_error = 'skip'):"]
    lines += [f"  {message}" for message in source.skipped[:shown]]
    return lines + [f"  and {count - shown} more"] * (count > shown)
