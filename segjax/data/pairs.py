"""Images with their masks: matched by name, verified before training, decoded to examples."""

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypedDict, runtime_checkable

import cv2
import numpy as np

from segjax.data.decode import decode_ids, decode_image, inspect_image, used_palette
from segjax.data.io import DataError, RawFile, read_bytes
from segjax.data.labels import LabelSet, to_train_ids


class Example(TypedDict):
    """An image, uint8 `[H, W, C]`, its train ids, uint8 `[H, W]` with 255 for void, and its name."""

    image: np.ndarray
    label: np.ndarray
    name: str


@runtime_checkable
class Source(Protocol):
    """A split, open for random access, and picklable for worker processes."""

    label_set: LabelSet
    channels: int  # 1, or 3 in the order RGB, for every image
    native_size: tuple[int, int] | None  # height and width that all images share; None if they differ
    sizes: Sequence[tuple[int, int]]  # height and width of each image
    skipped: tuple[str, ...]  # one message per pair of files left out by `on_error="skip"`
    absent: Sequence[str]  # names of the classes without a pixel; () if that is unknown
    digest: str  # short hash of the names and contents of the files

    def __len__(self) -> int:
        """Returns the number of images."""

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes example `index`."""

    def name(self, index: int) -> str:
        """Returns the name of example `index`, without decoding it."""


class Pair(NamedTuple):
    """An image and its mask."""

    name: str
    image: RawFile
    mask: RawFile


class Sizes(NamedTuple):
    """Sizes of the images of a verified split; see `Source`."""

    native_size: tuple[int, int] | None
    largest_size: tuple[int, int]
    channels: int  # 1 if every image is grey, else 3


class Verified(NamedTuple):
    """A verified split: its good pairs, (height, width, channels) of each; see `Source` for the rest."""

    pairs: list[Pair]
    shapes: list[tuple[int, int, int]]
    skipped: tuple[str, ...]
    absent: list[str]


def match(images: dict[str, RawFile], masks: dict[str, RawFile], where: str) -> list[Pair]:
    """Pairs images and masks of the same name, in the order of the names; raises `DataError` for an empty split.

    A file without a partner becomes a pair whose missing half has a problem, which `verify` raises or skips. Errors
    name `where`, the folder or archive.
    """

    def missing(partner: RawFile, expected: str, name: str) -> RawFile:
        return RawFile("", 0, bytes, partner.problem or f"{partner.path}: {expected} named {name!r} in {where}")

    pairs = [
        Pair(
            name,
            images.get(name) or missing(masks[name], "a mask without an image; expected an image", name),
            masks.get(name) or missing(images[name], "an image without a mask; expected a mask", name),
        )
        for name in sorted(masks.keys() | images.keys())
    ]
    if not pairs:
        found = f"found {len(images)} images"
        raise DataError(f"{where}: an empty split; expected at least one image with its mask, {found}")
    return pairs


def fingerprint(splits: dict[str, list[Pair]]) -> str:
    """Returns a short hash of the names and contents of all files; it reads those that have no checksum."""

    def line(part: tuple[str, Pair]) -> str:
        split, (name, *files) = part
        return f"{split}/{name}:{':'.join(map(_checksum, files))}"

    with ThreadPoolExecutor(8) as threads:
        return _short_hash(threads.map(line, [(split, pair) for split in sorted(splits) for pair in splits[split]]))


def listing_fingerprint(splits: dict[str, list[Pair]]) -> str:
    """Returns a short hash of the names, sizes and times of all files. If it is equal, no file needs to be read."""
    return _short_hash(
        f"{split}/{name}:{[(file.size, file.changed, file.checksum) for file in files]}"
        for split in sorted(splits)
        for name, *files in splits[split]
    )


def _checksum(file: RawFile) -> str:
    try:
        return str(zlib.crc32(read_bytes(file)) if file.checksum is None else file.checksum)
    except DataError:  # "skip" leaves the pair out; once the file can be read, the hash is another
        return "unreadable"


def _short_hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def refuse_problems(pairs: Iterable[Pair]) -> None:
    """Raises `DataError` for the first file whose listing found a problem."""
    for problem in (file.problem for pair in pairs for file in (pair.image, pair.mask) if file.problem):
        raise DataError(problem)


def refuse_palettes(pairs: Iterable[Pair]) -> None:
    """Raises `DataError` if an index of the masks' palettes has two colours, and so may mean two classes."""

    def palette(pair: Pair) -> dict[int, tuple[int, ...]]:
        try:
            return used_palette(read_bytes(pair.mask), pair.mask.path)
        except DataError:  # left to `verify`
            return {}

    pairs, seen = list(pairs), {}
    with ThreadPoolExecutor(8) as threads:
        for pair, colours in zip(pairs, threads.map(palette, pairs), strict=True):
            for index, colour in colours.items():
                first, other = seen.setdefault(index, (pair.mask.path, colour))
                if other != colour:
                    raise DataError(
                        f"{first} and {pair.mask.path}: index {index} of their palettes has the colours {other} and "
                        f"{colour}, so it may mean two classes. Set config.data.mask_colours to the colour of each "
                        "class, or save the masks without palettes"
                    )


def verify(pairs: list[Pair], label_set: LabelSet, on_error: str = "raise") -> Verified:
    """Reads and decodes every image and mask of a split, in threads, and adds checksums that detect a later change.

    A bad pair has a file that cannot be read or decoded, two sizes, or a label id outside the classes. Under "raise"
    it raises `DataError`; under "skip" it is left out, and only a split without a good pair raises.
    """

    def attempt(pair: Pair) -> tuple[Pair, tuple[int, int, int], np.ndarray] | str:
        try:
            return _verify_pair(pair, label_set)
        except DataError as error:
            if on_error == "raise":
                raise DataError(f"{error}. Repair it, or leave such pairs out: config.data.on_error=skip") from error
            return str(error)

    with ThreadPoolExecutor(8) as threads:  # an error cancels the pairs that are still waiting
        found = list(threads.map(attempt, pairs))
    good, skipped = ([each for each in found if isinstance(each, kind)] for kind in (tuple, str))
    if not good:
        raise DataError(f"all {len(pairs)} pairs of a split are unusable; expected at least one good. {skipped[0]}")
    pairs, shapes, counts = map(list, zip(*good, strict=True))
    absent = [name for name, count in zip(label_set.names, np.sum(counts, axis=0), strict=False) if not count]
    return Verified(pairs, shapes, tuple(skipped), absent)


def _verify_pair(pair: Pair, label_set: LabelSet) -> tuple[Pair, tuple[int, int, int], np.ndarray]:
    """Returns the pair with checksums, (height, width, channels) and the number of pixels of each train id."""
    image, mask = read_bytes(pair.image), read_bytes(pair.mask)
    height, width, channels = inspect_image(pair.image, image, whole=True)[:3]
    ids = decode_ids(mask, pair.mask.path, colours=label_set.mask_colours is not None)
    _check_sizes((height, width), ids.shape[:2], pair.image.path, pair.mask.path)
    labels = to_train_ids(ids, label_set, pair.mask.path)
    counts = cv2.calcHist([labels], [0], None, [256], (0, 256)).ravel()
    files = (file._replace(checksum=zlib.crc32(data)) for file, data in ((pair.image, image), (pair.mask, mask)))
    return Pair(pair.name, *files), (height, width, channels), counts


def summarize(found: Iterable[tuple[int, int, int]]) -> Sizes:
    """Summarizes the (height, width, channels) of each image."""
    heights, widths, channels = map(set, zip(*found, strict=True))
    largest = (max(heights), max(widths))
    return Sizes(largest if len(heights) == len(widths) == 1 else None, largest, max(channels))


def make_example(
    image: bytes, mask: bytes, name: str, channels: int, label_set: LabelSet, files: tuple[str, str]
) -> Example:
    """Decodes an image and its mask, and maps the raw ids to train ids; errors name the two `files`."""
    pixels = decode_image(image, channels, files[0])
    ids = decode_ids(mask, files[1], colours=label_set.mask_colours is not None)
    _check_sizes(pixels.shape[:2], ids.shape[:2], *files)
    return {"image": pixels, "label": to_train_ids(ids, label_set, files[1]), "name": name}


def _check_sizes(image: tuple[int, ...], mask: tuple[int, ...], image_file: str, mask_file: str) -> None:
    if image != mask:
        sizes = f"a mask of {mask[0]}×{mask[1]} for an image of {image[0]}×{image[1]}"
        raise DataError(f"{mask_file}: {sizes} ({image_file}); expected one size")


def check_split(source: Source, split: str, shown: int = 20) -> list[str]:
    """Returns lines for the user about a split: classes without pixels, and the first `shown` skipped pairs.

    Raises `DataError` if not one pixel has a class.
    """
    count, hint = len(source.skipped), "If this is wrong, set config.data.mask_values to the values of the classes"
    if len(source.absent) == source.label_set.num_classes:
        raise DataError(f"{split}: all pixels of the {len(source)} masks are void; expected some of a class. {hint}")
    more = [f"{len(source.absent) - shown} more"] * (len(source.absent) > shown)
    names = ", ".join([*source.absent[:shown], *more])
    absent = [f"warning: {split} has no pixel of {names}. {hint}"] * bool(names)
    head = f"{split}: skipped {count} bad pair(s) of image and mask (config.data.on_error = 'skip'):"
    reasons = [f"  {message}" for message in source.skipped[:shown]]
    return absent + [head] * (count > 0) + reasons + [f"  and {count - shown} more"] * (count > shown)
