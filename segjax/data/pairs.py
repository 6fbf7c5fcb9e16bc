"""Images with their masks: matched by name, verified before training, decoded to examples."""

import hashlib
import itertools
import os
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from segjax.data.decode import (
    DARK_UINT16,
    ImageInfo,
    ValueRange,
    decode_ids,
    inspect_image,
    read_image,
    read_palette,
    read_turned,
    scale_values,
    turned,
)
from segjax.data.io import DataError, RawFile, from_listing, read_bytes, to_listing
from segjax.data.labels import VOID, LabelSet, count_ids, to_train_ids, values_of
from segjax.storage import read_json, write_json


class Example(TypedDict):
    """An image `[H, W, C]` of values 0..255, its train ids, uint8 `[H, W]` with 255 for void, and its name.

    The image is uint8 or, if the source has a `value_range`, float32. COCO annotations have "boxes" and "classes" too,
    see `segjax.data.coco.CocoSource`.
    """

    image: np.ndarray
    label: np.ndarray
    name: str
    boxes: NotRequired[np.ndarray]
    classes: NotRequired[np.ndarray]


@runtime_checkable
class Source(Protocol):
    """A split, open for random access, and picklable for worker processes."""

    label_set: LabelSet
    channels: int  # of every image; 3 in the order RGB
    value_range: ValueRange  # values of the files that become 0 and 255; None: images of 8 bits, which are uint8
    dtype: str  # of the image files
    native_size: tuple[int, int] | None  # height and width that all images share; None if they differ
    sizes: Sequence[tuple[int, int]]  # height and width of each image
    unsure_turns: int  # number of images turned by EXIF whose mask has the same size either way, see `align_mask`
    skipped: tuple[str, ...]  # one message per pair of files left out by `on_error="skip"`
    absent: Sequence[str]  # names of the classes without a pixel; () if that is unknown
    void: float | None  # fraction of void pixels; None if that is unknown
    pixels: Sequence[int] | None  # number of pixels of each class; None if that is unknown
    notes: Sequence[str]  # lines for the user: how the files were found, and which were left out
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
    """A verified split: its good pairs and their images' properties; see `Source` for the rest."""

    pairs: list[Pair]
    images: list[ImageInfo]
    skipped: tuple[str, ...]
    absent: list[str]
    void: float | None
    pixels: list[int] | None


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
    """Raises `DataError` if an index of the masks' palettes has two colours, and so may mean two classes.

    Masks are decoded only if their palettes differ, to leave out indices without a pixel.
    """

    def palette(pair: Pair) -> np.ndarray:
        try:
            return read_palette(read_bytes(pair.mask), pair.mask.path)
        except DataError:  # left to `verify`
            return np.zeros((0, 3), np.uint8)

    def used_indices(pair: Pair) -> np.ndarray:
        try:
            return np.flatnonzero(count_ids(decode_ids(read_bytes(pair.mask), pair.mask.path), 256))
        except DataError:
            return np.zeros(0, int)

    pairs, seen = list(pairs), {}
    with ThreadPoolExecutor(8) as threads:
        palettes = list(threads.map(palette, pairs))
        longest = max(palettes, key=len, default=())
        if all(np.array_equal(each, longest[: len(each)]) for each in palettes):
            return
        pairs, palettes = zip(*(each for each in zip(pairs, palettes, strict=True) if len(each[1])), strict=True)
        for pair, colours, indices in zip(pairs, palettes, threads.map(used_indices, pairs), strict=True):
            for index in indices[indices < len(colours)].tolist():
                colour = tuple(colours[index].tolist())
                first, other = seen.setdefault(index, (pair.mask.path, colour))
                if other != colour:
                    raise DataError(
                        f"{first} and {pair.mask.path}: index {index} of their palettes has the colours {other} and "
                        f"{colour}, so it may mean two classes. Set config.data.mask_colours to the colour of each "
                        "class, or save the masks without palettes"
                    )


def verify(pairs: list[Pair], label_set: LabelSet, on_error: str = "raise", drawn_on: str = "displayed") -> Verified:
    """Reads and decodes every image and mask of a split, in threads, and adds checksums that detect a later change.

    A bad pair has a file that cannot be read or decoded, two sizes, or a label id outside the classes. Under "raise"
    it raises `DataError`; under "skip" it is left out, and only a split without a good pair raises. `drawn_on` is that
    of `align_mask`.
    """

    def attempt(pair: Pair) -> tuple[Pair, ImageInfo, np.ndarray] | str:
        try:
            return _verify_pair(pair, label_set, drawn_on)
        except DataError as error:
            if on_error == "raise":
                raise DataError(f"{error}. Repair it, or leave such pairs out: config.data.on_error=skip") from error
            return str(error)

    with ThreadPoolExecutor(8) as threads:  # an error cancels the pairs that are still waiting
        found = list(threads.map(attempt, pairs))
    good, skipped = ([each for each in found if isinstance(each, kind)] for kind in (tuple, str))
    refuse_all_bad(len(good), skipped)
    pairs, images, counts = map(list, zip(*good, strict=True))
    counts = np.sum(counts, axis=0)
    absent = [name for name, count in zip(label_set.names, counts, strict=False) if not count]
    pixels = counts[: label_set.num_classes].astype(int).tolist()
    return Verified(pairs, images, tuple(skipped), absent, float(counts[VOID] / counts.sum()), pixels)


def refuse_all_bad(good: int, skipped: Sequence[str]) -> None:
    """Raises `DataError` for a split without a good pair; `skipped` are the reasons of the bad ones."""
    if not good:
        raise DataError(f"all {len(skipped)} pairs of a split are unusable; expected at least one good. {skipped[0]}")


def _verify_pair(pair: Pair, label_set: LabelSet, drawn_on: str) -> tuple[Pair, ImageInfo, np.ndarray]:
    """Returns the pair with checksums, the properties of the image and the number of pixels of each train id."""
    image, mask = read_bytes(pair.image), read_bytes(pair.mask)
    info = inspect_image(pair.image, image, whole=True)
    size = (info.height, info.width)
    ids = decode_ids(mask, pair.mask.path, colours=label_set.by_colour)
    ids = align_mask(ids, size, info.orientation, drawn_on)
    _check_sizes(size, ids.shape[:2], pair.image.path, pair.mask.path)
    labels = to_train_ids(ids, label_set, pair.mask.path)
    counts = count_ids(labels, 256)
    files = (file._replace(checksum=zlib.crc32(data)) for file, data in ((pair.image, image), (pair.mask, mask)))
    return Pair(pair.name, *files), info, counts


def summarize(found: Iterable[tuple]) -> Sizes:
    """Summarizes the height, width and channels of each image, the first three of an `ImageInfo`."""
    heights, widths, channels = map(set, zip(*(each[:3] for each in found), strict=True))
    largest = (max(heights), max(widths))
    return Sizes(largest if len(heights) == len(widths) == 1 else None, largest, max(channels))


def make_example(
    image: bytes,
    mask: bytes,
    name: str,
    channels: int,
    label_set: LabelSet,
    files: tuple[str, str],
    value_range: ValueRange = None,
    drawn_on: str = "displayed",
) -> Example:
    """Decodes an image and its mask, and maps the raw ids to train ids; errors name the two `files`."""
    pixels, ids, _ = decode_pair(image, mask, files, colours=label_set.by_colour, drawn_on=drawn_on)
    pixels = scale_values(pixels, channels, value_range, files[0])
    return {"image": pixels, "label": to_train_ids(ids, label_set, files[1]), "name": name}


def decode_pair(
    image: bytes, mask: bytes, files: tuple[str, str], *, colours: bool = False, drawn_on: str = "displayed"
) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the pixels of `read_image`, the raw ids aligned with them, and the image's EXIF orientation."""
    pixels, orientation = read_turned(image, files[0])
    ids = align_mask(decode_ids(mask, files[1], colours=colours), pixels.shape[:2], orientation, drawn_on)
    _check_sizes(pixels.shape[:2], ids.shape[:2], *files)
    return pixels, ids, orientation


def align_mask(ids: np.ndarray, size: tuple[int, int], orientation: int, drawn_on: str) -> np.ndarray:
    """Turns a mask that was drawn on the stored pixels of an image with an EXIF orientation, as the image is turned.

    `size` is that of the displayed image. A mask of one size with the stored image only is turned, and one of the
    displayed size only is not. Where both have one size, `drawn_on` decides, "displayed" or "stored".
    """
    stored = size[::-1] if orientation > 4 else size
    return turned(ids, orientation) if ids.shape[:2] == stored and (stored != size or drawn_on == "stored") else ids


def find_range(
    option: str | tuple[float, float], verified: Verified, training: Sequence[Pair], on_error: str = "raise"
) -> ValueRange:
    """Returns the values that become 0 and 255 under `config.data.range`; None leaves 8 bits as they are.

    "dtype" is 0 to 65535 for 16 bits, and 0 to 1 for other numbers. "percentile" is `percentile_range` of the
    `training` images, of all pixels and channels together. `DataError`: images of several dtypes, or values that do
    not suit the range: 16 bits of which the upper two are unused, numbers outside [0, 1], or no value between low and
    high.
    """
    by_dtype = {info.dtype: pair.image.path for pair, info in zip(verified.pairs, verified.images, strict=True)}
    if len(by_dtype) > 1:
        found = " and ".join(f"{dtype} ({file})" for dtype, file in by_dtype.items())
        raise DataError(f"the images have several dtypes, {found}; expected one: convert them")
    (dtype,) = by_dtype
    if option == "percentile":
        return percentile_range([pair.image for pair in training], dtype, on_error)
    lows, highs = zip(*(info.values or (0, 255) for info in verified.images), strict=True)
    low, high = min(lows), max(highs)
    seen = f"the {len(lows)} {dtype} images have values from {low:g} to {high:g}"
    way_out = f"set it to percentile, or to the values that become black and white, such as {low:g},{high:g}"
    if option == "dtype":
        if dtype == "uint16" and high < DARK_UINT16:
            raise DataError(f"config.data.range=dtype would scale by 65535, but {seen}; {way_out}")
        if dtype == "float32" and (low < 0 or high > 1):
            raise DataError(f"config.data.range=dtype expects values from 0 to 1, but {seen}; {way_out}")
        return {"uint8": None, "uint16": (0.0, 65535.0), "float32": (0.0, 1.0)}[dtype]
    if high <= option[0] or low >= option[1] or (dtype == "uint8" and option[1] > 255):
        raise DataError(f"config.data.range={option[0]:g},{option[1]:g}, but {seen}; {way_out}")
    return option


def percentile_range(
    files: Sequence[RawFile], dtype: str, on_error: str = "raise", percent: float = 0.1
) -> tuple[float, float]:
    """Returns the values below which `percent` and 100 - `percent` of all pixels and channels of the images lie.

    They are exact to 1/1000 of their difference. The images are read one after another, several times if a few values
    are far away from the others. With `on_error="skip"`, images that cannot be read are left out.
    """
    bins, passes = 1 << 14, 8

    def over_images(measure: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
        def attempt(file: RawFile) -> list[np.ndarray]:
            try:
                return [measure(read_image(read_bytes(file), file.path))]
            except DataError:
                if on_error == "raise":
                    raise
                return []

        with ThreadPoolExecutor(8) as threads:
            yield from itertools.chain.from_iterable(threads.map(attempt, files))

    if dtype == "float32":
        lows, highs = zip(*over_images(lambda x: np.array([x.min(), x.max()], np.float64)), strict=True)
        low, high = min(lows), max(highs)
    else:
        low, high = 0.0, float(np.iinfo(dtype).max)
    for _ in range(passes):
        if not low < high:
            break
        width = (high - low) / bins

        def histogram(x: np.ndarray, low: float = low, width: float = width) -> np.ndarray:
            """Counts values below `low`, in each bin, and above `high`."""
            places = np.clip(np.floor((x.astype(np.float64) - low) / width), -1, bins).astype(np.int32)
            return np.bincount(places.ravel() + 1, minlength=bins + 2)

        counts = np.cumsum(sum(over_images(histogram)))
        first, last = np.searchsorted(counts, counts[-1] * np.array([percent, 100 - percent]) / 100)
        span, low, high = high - low, max(low, low + (first - 1) * width), min(high, low + last * width)
        if high - low >= span / 16:
            return (float(low), float(high)) if dtype == "float32" else (float(round(low)), float(round(high)))
    raise DataError(
        f"config.data.range=percentile: {100 - 2 * percent:g} % of the pixels of the training images are equal; set it "
        "to the values that become black and white, such as 0,255"
    )


def _check_sizes(image: tuple[int, ...], mask: tuple[int, ...], image_file: str, mask_file: str) -> None:
    if image != mask:
        sizes = f"a mask of {mask[0]}×{mask[1]} for an image of {image[0]}×{image[1]}"
        raise DataError(f"{mask_file}: {sizes} ({image_file}); expected one size")


class FolderSource:
    """A verified split of a folder; see `segjax.data.Source`."""

    def __init__(
        self,
        verified: Verified,
        label_set: LabelSet,
        channels: int,
        value_range: ValueRange = None,
        drawn_on: str = "displayed",
        notes: Sequence[str] = (),
    ):
        self._pairs, self._images, self.skipped, self.absent, self.void, self.pixels = verified
        self.label_set, self.channels, self.value_range, self._drawn_on = label_set, channels, value_range, drawn_on
        self.notes, self.dtype = notes, self._images[0].dtype
        self.native_size, self.sizes = summarize(self._images).native_size, [image[:2] for image in self._images]
        self.unsure_turns = sum(
            image.orientation in (2, 3, 4) or (image.orientation > 4 and image.height == image.width)
            for image in self._images
        )
        self.digest, self._listing = fingerprint({"": self._pairs}), None

    def __reduce__(self):
        """Pickles the path of a temporary file with the list of files, deleted together with this source."""
        # Python passes the arguments of a new process through a pipe of 64 KiB, and waits forever if that process dies
        # before it has read more than that, as a worker does that is killed for its memory.
        if self._listing is None:
            handle, path = tempfile.mkstemp(prefix="segjax-", suffix=".json")
            os.close(handle)
            pairs = [(name, *map(to_listing, files)) for name, *files in self._pairs]
            write_json(path, {"pairs": pairs, "images": self._images})
            self._listing = Path(path)
            weakref.finalize(self, self._listing.unlink, missing_ok=True)
        return _from_listing, (self._listing, self.label_set, self.channels, self.value_range, self._drawn_on)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        name, image, mask = self._pairs[index]
        files = (image.path, mask.path)
        reading = (self.channels, self.label_set, files, self.value_range, self._drawn_on)
        return make_example(read_bytes(image), read_bytes(mask), name, *reading)

    def name(self, index: int) -> str:
        """Returns the name of example `index`: its path under `images`, without its suffix."""
        return self._pairs[index].name

    def label(self, index: int) -> UInt8[np.ndarray, "H W"]:
        """Reads the train ids of example `index`, without decoding its image."""
        mask, info = self._pairs[index].mask, self._images[index]
        ids = decode_ids(read_bytes(mask), mask.path, colours=self.label_set.by_colour)
        ids = align_mask(ids, (info.height, info.width), info.orientation, self._drawn_on)
        return to_train_ids(ids, self.label_set, mask.path)


def _from_listing(listing: Path, *reading: Any) -> FolderSource:
    listed = read_json(listing)
    pairs = [Pair(name, *map(from_listing, files)) for name, *files in listed["pairs"]]
    images = [ImageInfo(*image) for image in listed["images"]]
    return FolderSource(Verified(pairs, images, (), [], None, None), *reading)


class Part:
    """A source of `count` images of another one, evenly spread over it; a `Source`."""

    def __init__(self, source: Source, count: int):
        self._source, self._indices = source, [(2 * i + 1) * len(source) // (2 * count) for i in range(count)]
        for name in Source.__annotations__:
            setattr(self, name, getattr(source, name))
        self.sizes = [source.sizes[i] for i in self._indices]

    def __reduce__(self):
        return Part, (self._source, len(self))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[self._indices[index]]

    def name(self, index: int) -> str:
        """Returns the name of image `index` of this part."""
        return self._source.name(self._indices[index])

    def objects(self, indices: Sequence[int]) -> Any:
        """Returns the annotated objects of images of this part, see `segjax.data.coco.CocoSource`."""
        return self._source.objects([self._indices[i] for i in indices])


def class_pixels(source: Source) -> Int64[np.ndarray, "images classes"]:
    """Counts the pixels of each class in each image; it reads every image once.

    Where classes overlap, the first column counts the pixels without a class, and the others one class each.
    """
    combinations = source.label_set.combinations
    ids = source.label_set.num_classes if combinations is None else len(combinations)
    with ThreadPoolExecutor(8) as threads:
        counts = np.stack(list(threads.map(lambda index: count_ids(source[index]["label"], ids), range(len(source)))))
    return counts if combinations is None else np.column_stack([counts[:, 0], counts @ combinations])


def check_split(source: Source, split: str, shown: int = 20) -> list[str]:
    """Returns lines for the user about a split: classes without pixels, and the first `shown` skipped pairs.

    Raises `DataError` if not one pixel has a class.
    """
    count, hint = len(source.skipped), "If this is wrong, set config.data.mask_values to the values of the classes"
    overlapping = source.label_set.combinations is not None
    if overlapping:
        hint = "If this is wrong, set config.data.mask_threshold to the smallest value of a class"
    elif len(source.absent) == source.label_set.num_classes:
        raise DataError(f"{split}: all pixels of the {len(source)} masks are void; expected some of a class. {hint}")
    more = [f"{len(source.absent) - shown} more"] * (len(source.absent) > shown)
    classes = [
        name if overlapping else f"{name} ({values_of(source.label_set, name)})" for name in source.absent[:shown]
    ]
    void = f", and {source.void:.1%} of its pixels are void ({values_of(source.label_set)})" if source.void else ""
    absent = [f"warning: {split} has no pixel of {', '.join([*classes, *more])}{void}. {hint}"] * bool(classes)
    turned_by_exif = [
        f"{split}: {source.unsure_turns} image(s) are turned by EXIF, and the sizes do not show which way their masks "
        "were drawn: config.data.orientation decides, displayed or stored"
    ] * bool(source.unsure_turns)
    head = f"{split}: skipped {count} bad pair(s) of image and mask (config.data.on_error = 'skip'):"
    reasons = [f"  {message}" for message in source.skipped[:shown]]
    return absent + turned_by_exif + [head] * (count > 0) + reasons + [f"  and {count - shown} more"] * (count > shown)
