"""Images with their masks: matched by name, verified before training, decoded to examples."""

import hashlib
import io
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypedDict, runtime_checkable

import cv2
import numpy as np
import scipy.io
from PIL import Image

from segjax.data.io import DataError, RawFile, decode_image, decode_mask, read_bytes
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
      skipped: one message per pair of files that `on_error="skip"` left out.
    """

    label_set: LabelSet
    channels: int
    native_size: tuple[int, int] | None
    largest_size: tuple[int, int]
    skipped: tuple[str, ...]

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes example `index`."""
        ...

    def name(self, index: int) -> str:
        """Returns the name of example `index`, without decoding it."""
        ...


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
    """Formats the skipped pairs of a split for the user: their number, then one line with the reason for each.

    Args:
      source: the split, open.
      split: its name.
      shown: number of messages to include; the rest is counted.

    Returns:
      The lines; an empty list if nothing was skipped.
    """
    count = len(source.skipped)
    if not count:
        return []
    lines = [f"{split}: skipped {count} bad pair(s) of image and mask (config.data.on_error = 'skip'):"]
    lines += [f"  {message}" for message in source.skipped[:shown]]
    return lines + [f"  and {count - shown} more"] * (count > shown)


_THREADS = 8
ON_ERROR = ("raise", "skip")


class Pair(NamedTuple):
    """An image and its mask."""

    name: str
    image: RawFile
    mask: RawFile


@dataclass(frozen=True)
class Sizes:
    """Sizes of the images of a verified split.

    Attributes:
      native_size: height and width that all images share; None if they differ.
      largest_size: the greatest height and the greatest width.
      channels: 1 if every image is grey, else 3.
    """

    native_size: tuple[int, int] | None
    largest_size: tuple[int, int]
    channels: int


class Verified(NamedTuple):
    """A verified split: its good pairs, their sizes, and the reason for each skipped pair."""

    pairs: list[Pair]
    sizes: Sizes
    skipped: tuple[str, ...]


def match(images: dict[str, RawFile], masks: dict[str, RawFile], where: str, *, unlabelled: bool = False) -> list[Pair]:
    """Pairs images and masks of the same name, in the order of the names.

    A mask without an image and an image without a mask are pairs too, whose missing half has a problem: `verify`
    raises or skips it like any other.

    Args:
      images: by name.
      masks: by name.
      where: the folder or archive, for errors.
      unlabelled: leave out images without a mask.

    Raises:
      DataError: no pair at all.
    """
    names = masks.keys() if unlabelled else masks.keys() | images.keys()
    pairs = [
        Pair(
            name,
            images.get(name) or _missing(masks[name], "a mask without an image; expected an image", name, where),
            masks.get(name) or _missing(images[name], "an image without a mask; expected a mask", name, where),
        )
        for name in sorted(names)
    ]
    if not pairs:
        raise DataError(
            f"{where}: an empty split; expected at least one image with its mask, found {len(images)} images"
        )
    return pairs


def _missing(partner: RawFile, what: str, name: str, where: str) -> RawFile:
    return RawFile("", 0, bytes, partner.problem or f"{partner.path}: {what} named {name!r} in {where}")


def fingerprint(splits: dict[str, list[Pair]]) -> str:
    """Returns a short hash of the names and sizes of all files, to detect another or a changed folder."""
    lines = [
        f"{split}/{pair.name}:{pair.image.size}:{pair.mask.size}" for split in sorted(splits) for pair in splits[split]
    ]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def _ids(mask: RawFile, data: bytes) -> np.ndarray:
    """Decodes the raw ids of a mask, uint8 `[H, W]`: a PNG, or a CrackForest `.mat` (groundTruth → Segmentation)."""
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
    """Returns the mask as a grey PNG of raw ids; a mask that already is one is returned byte for byte."""
    data = read_bytes(mask)
    if data.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(data)) as picture:
            if picture.mode == "L":
                return data
    return cv2.imencode(".png", _ids(mask, data))[1].tobytes()


def refuse_problems(pairs: Iterable[Pair]) -> None:
    """Raises `DataError` for the first file with a problem that is known before any is read."""
    for problem in (file.problem for pair in pairs for file in (pair.image, pair.mask) if file.problem):
        raise DataError(problem)


def verify(pairs: list[Pair], label_set: LabelSet, on_error: str = "raise") -> Verified:
    """Reads and decodes every image and mask, in threads.

    Args:
      pairs: a split.
      label_set: its classes.
      on_error: "raise", or "skip": a bad pair is left out, and the result gives the reason.

    Returns:
      The good pairs in their order, their files with checksums, so that one that changes later is noticed.

    Raises:
      DataError: a file that cannot be read, is cut short or cannot be decoded, an image and a mask of different sizes,
        a label id outside the classes; under "skip", only if no pair is good.
    """
    check_on_error(on_error)
    if on_error == "raise":
        refuse_problems(pairs)  # at once, and not after an hour of decoding
    good, sizes, skipped = [], [], []
    with ThreadPoolExecutor(_THREADS) as threads:
        tasks = [threads.submit(_verify_pair, pair, label_set) for pair in pairs]
        try:
            for task in tasks:
                try:
                    pair, size = task.result()
                except DataError as error:
                    if on_error == "raise":
                        raise
                    skipped.append(str(error))
                else:
                    good.append(pair)
                    sizes.append(size)
        finally:
            threads.shutdown(cancel_futures=True)
    if not good:
        raise DataError(f"none of the {len(pairs)} pairs of a split is good; expected at least one. {skipped[0]}")
    return Verified(good, summarize(sizes), tuple(skipped))


def check_on_error(on_error: str) -> None:
    """Raises `DataError` if it is neither "raise" nor "skip"."""
    if on_error not in ON_ERROR:
        raise DataError(f"config.data.on_error must be one of {', '.join(ON_ERROR)}; got {on_error!r}")


def summarize(found: Iterable[tuple[int, int, int]]) -> Sizes:
    """Sums up the (height, width, channels) of each image."""
    heights, widths, channels = map(set, zip(*found, strict=True))
    one_size = len(heights) == len(widths) == 1
    largest = (max(heights), max(widths))
    return Sizes(largest if one_size else None, largest, max(channels))


def merge(parts: Iterable[Sizes]) -> Sizes:
    """Merges the sizes of several splits."""
    parts = list(parts)
    largest = tuple(max(part.largest_size[axis] for part in parts) for axis in range(2))
    native = {part.native_size for part in parts}
    return Sizes(native.pop() if len(native) == 1 else None, largest, max(part.channels for part in parts))


def image_header(image: RawFile) -> tuple[int, int, int]:
    """Reads height, width and channels of an image from its header."""
    return _picture(image, read_bytes(image), whole=False)


def _verify_pair(pair: Pair, label_set: LabelSet) -> tuple[Pair, tuple[int, int, int]]:
    image, mask = read_bytes(pair.image), read_bytes(pair.mask)
    height, width, channels = _picture(pair.image, image, whole=True)
    ids = _ids(pair.mask, mask)
    check_sizes((height, width), ids.shape, pair.image.path, pair.mask.path)
    to_train_ids(ids, label_set, pair.mask.path)
    files = (file._replace(checksum=zlib.crc32(data)) for file, data in ((pair.image, image), (pair.mask, mask)))
    return Pair(pair.name, *files), (height, width, channels)


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
