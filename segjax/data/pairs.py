"""Raw files: images and masks matched by name, and verified before anything is trained on them."""

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import scipy.io
from PIL import Image

from segjax.data.labels import LabelSet, to_train_ids
from segjax.data.source import DataError, decode_mask

_THREADS = 8
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


class RawFile(NamedTuple):
    """A file on disk or in an archive: the name that errors show, its size in bytes, and how to read it."""

    path: str
    size: int
    read: Callable[[], bytes]


class Pair(NamedTuple):
    """An image and its mask."""

    name: str
    image: RawFile
    mask: RawFile


@dataclass(frozen=True)
class Sizes:
    """What verifying a split found out.

    Attributes:
      native_size: height and width that all images share; None if they differ.
      largest_size: the greatest height and the greatest width.
      channels: 1 if every image is grey, else 3.
    """

    native_size: tuple[int, int] | None
    largest_size: tuple[int, int]
    channels: int


def list_folder(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, RawFile]:
    """The files under a folder with one of these suffixes, by their path within it, hidden ones left out."""
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder; there is {'a file' if folder.exists() else 'nothing'}")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and not p.name.startswith("."))
    return {p.relative_to(folder).as_posix(): RawFile(str(p), p.stat().st_size, p.read_bytes) for p in paths}


def list_zip(archive: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, RawFile]:
    """The members of a ZIP archive with one of these suffixes, by their path within it; nothing is extracted."""
    try:
        opened = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{archive}: expected a whole ZIP archive ({error})") from error
    members = sorted(
        (m for m in opened.infolist() if m.filename.lower().endswith(suffixes)), key=lambda member: member.filename
    )
    return {
        m.filename: RawFile(f"{archive}:{m.filename}", m.file_size, partial(opened.read, m.filename)) for m in members
    }


def match(images: dict[str, RawFile], masks: dict[str, RawFile], where: str, *, unlabelled: bool = False) -> list[Pair]:
    """Pairs images and masks of the same name, in the order of the names.

    Args:
      images: by name.
      masks: by name.
      where: the folder or archive, for errors.
      unlabelled: leave out images without a mask instead of refusing them.

    Raises:
      DataError: a mask without an image, an image without a mask, or no pair at all.
    """
    for name in sorted(masks.keys() - images.keys()):
        raise DataError(f"{masks[name].path}: a mask without an image; expected an image named {name!r} in {where}")
    for name in sorted(images.keys() - masks.keys())[:1]:
        if not unlabelled:
            raise DataError(f"{images[name].path}: an image without a mask; expected a mask named {name!r} in {where}")
    pairs = [Pair(name, images[name], masks[name]) for name in sorted(masks)]
    if not pairs:
        raise DataError(
            f"{where}: an empty split; expected at least one image with its mask, found {len(images)} images"
        )
    return pairs


def fingerprint(splits: dict[str, list[Pair]]) -> str:
    """A short hash of the names and sizes of all files: it differs if another folder is read, or this one changed."""
    lines = [
        f"{split}/{pair.name}:{pair.image.size}:{pair.mask.size}" for split in sorted(splits) for pair in splits[split]
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def read_ids(mask: RawFile) -> np.ndarray:
    """The raw ids of a mask, uint8 `[H, W]`: a PNG, or a CrackForest `.mat` (groundTruth → Segmentation)."""
    data = _read(mask)
    if not mask.path.lower().endswith(".mat"):
        return decode_mask(data, mask.path)
    try:
        ids = scipy.io.loadmat(io.BytesIO(data))["groundTruth"]["Segmentation"][0, 0]
    except Exception as error:  # SciPy's reader raises whatever the damaged bytes lead it into
        raise DataError(f"{mask.path}: expected a MATLAB file with groundTruth.Segmentation ({error!r})") from error
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise DataError(f"{mask.path}: expected a uint8 matrix of label ids; got {ids.dtype} of shape {ids.shape}")
    return ids


def mask_png(mask: RawFile) -> bytes:
    """The mask as a grey PNG of raw ids: its own bytes where it is one already."""
    data = _read(mask)
    if data.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(data)) as picture:
            if picture.mode == "L":
                return data
    return cv2.imencode(".png", read_ids(mask))[1].tobytes()


def verify(pairs: list[Pair], label_set: LabelSet) -> Sizes:
    """Reads and decodes every image and mask, in threads.

    Args:
      pairs: a split.
      label_set: its classes.

    Returns:
      The sizes and the number of channels.

    Raises:
      DataError: a file that is cut short or cannot be decoded, or an image and a mask of different sizes.
      ValueError: a label id outside the classes.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        tasks = [threads.submit(_verify_pair, pair, label_set) for pair in pairs]
        try:
            found = [task.result() for task in tasks]
        finally:
            threads.shutdown(cancel_futures=True)
    return summarize(found)


def summarize(found: Iterable[tuple[int, int, int]]) -> Sizes:
    """Sums up the (height, width, channels) of each image."""
    heights, widths, channels = map(set, zip(*found, strict=True))
    one_size = len(heights) == len(widths) == 1
    largest = (max(heights), max(widths))
    return Sizes(largest if one_size else None, largest, max(channels))


def merge(parts: Iterable[Sizes]) -> Sizes:
    """The sizes of several splits taken together."""
    parts = list(parts)
    largest = tuple(max(part.largest_size[axis] for part in parts) for axis in range(2))
    native = {part.native_size for part in parts}
    return Sizes(native.pop() if len(native) == 1 else None, largest, max(part.channels for part in parts))


def image_header(image: RawFile) -> tuple[int, int, int]:
    """Height, width and channels of an image from its first bytes, its pixels not decoded."""
    return _picture(image, _read(image), whole=False)


def _verify_pair(pair: Pair, label_set: LabelSet) -> tuple[int, int, int]:
    height, width, channels = _picture(pair.image, _read(pair.image), whole=True)
    ids = read_ids(pair.mask)
    if ids.shape != (height, width):
        raise DataError(
            f"{pair.mask.path}: a mask of {ids.shape[0]}×{ids.shape[1]} for an image of {height}×{width} "
            f"({pair.image.path}); expected one size"
        )
    to_train_ids(ids, label_set, pair.mask.path)
    return height, width, channels


def _picture(image: RawFile, data: bytes, *, whole: bool) -> tuple[int, int, int]:
    # Pillow, because it refuses a file that is cut short, where some versions of OpenCV fill the rest with grey. Its
    # `verify` looks at the checksums of a PNG, its `load` at the pixels; each finds damage that the other does not.
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.format not in ("PNG", "JPEG", "MPO"):
                raise DataError(f"{image.path}: expected a PNG or JPEG image; got {picture.format}")
            if whole and picture.format == "PNG":
                picture.verify()
        with Image.open(io.BytesIO(data)) as picture:
            if whole:
                picture.load()
            grey = picture.mode in ("1", "L", "LA", "I", "I;16")
            return picture.height, picture.width, 1 if grey else 3
    except DataError:
        raise
    except Exception as error:  # whatever Pillow's parsers raise for damaged bytes: OSError, SyntaxError, ValueError...
        raise DataError(
            f"{image.path}: cannot be decoded; expected a PNG or JPEG image, got {len(data)} bytes ({error})"
        ) from error


def _read(file: RawFile) -> bytes:
    try:
        return file.read()
    except (OSError, zipfile.BadZipFile) as error:  # a bad checksum in an archive too
        raise DataError(f"{file.path}: cannot be read ({error})") from error
