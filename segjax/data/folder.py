"""A split of your own folder as a source."""

import os
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from segjax.data.decode import ImageInfo, ValueRange, image_header
from segjax.data.io import DataError, RawFile, read_bytes, with_reader
from segjax.data.labels import LabelSet
from segjax.data.layout import DEFAULT_OPTIONS, FolderOptions, find_layout
from segjax.data.pairs import (
    Example,
    Pair,
    Verified,
    find_range,
    fingerprint,
    make_example,
    refuse_palettes,
    refuse_problems,
    summarize,
    verify,
)
from segjax.storage import read_json, write_json


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
        self._pairs, self._images, self.skipped, self.absent, self.void = verified
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
            pairs = [(name, *(file._replace(read=None) for file in files)) for name, *files in self._pairs]
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


def _from_listing(listing: Path, *reading: Any) -> FolderSource:
    listed = read_json(listing)
    pairs = [Pair(name, *(with_reader(RawFile(*file)) for file in files)) for name, *files in listed["pairs"]]
    images = [ImageInfo(*image) for image in listed["images"]]
    return FolderSource(Verified(pairs, images, (), [], None), *reading)


def open_folder(
    root: Path,
    split: str,
    label_set: LabelSet,
    *,
    options: FolderOptions = DEFAULT_OPTIONS,
    on_error: str = "raise",
    value_range: str | tuple[float, float] = "dtype",
    drawn_on: str = "displayed",
    train_split: str = "train",
) -> FolderSource:
    """Opens and verifies a split of a folder, or "all" of them; `find_layout` finds its files.

    Grey images are converted to RGB if any image of any split has colour. `find_range` applies the option `value_range`
    to the images of `train_split`; `drawn_on` is passed to `align_mask`.
    """
    layout = find_layout(Path(root), options)
    if split in layout.without_masks:
        images = layout.without_masks[split]
        count = f"{len(images)} image{'s' * (len(images) > 1)}, such as {images[0].path}"
        way_out = "use segjax predict, or add masks"
        raise DataError(f"{root}: no image of split {split!r} has a mask ({count}), so it cannot be scored; {way_out}")
    everything = [pair for part in layout.splits.values() for pair in part]
    pairs = everything if split == "all" else layout.splits.get(split)
    if pairs is None:
        valid = f"valid: {', '.join(layout.splits)}, or all (every split)"
        expected = f"expected training images in {root / 'train'}"
        raise DataError(f"{root}: split {split!r} does not exist; {expected if split == 'train' else valid}")
    if on_error == "raise":
        refuse_problems(everything)  # at once, and not after an hour of decoding
    if not label_set.by_colour:
        refuse_palettes(everything)
    channels = []  # over all splits, so that a model trained on one can read the others
    for pair in everything:
        try:
            channels.append(image_header(pair.image).channels)
        except DataError:
            if on_error == "raise":
                raise
    channels = common_channels(channels, root)
    verified = verify(pairs, label_set, on_error, drawn_on)
    value_range = find_range(value_range, verified, layout.splits.get(train_split, ()), on_error)
    return FolderSource(verified, label_set, channels, value_range, drawn_on, layout.notes())


def common_channels(channels: Iterable[int], root: Path) -> int:
    """Returns the number of channels to which images of these numbers are converted: 3 for grey and RGB.

    Raises: DataError if other numbers are mixed.
    """
    numbers = set(channels)
    if len(numbers - {1}) > 1 or (1 in numbers and max(numbers) not in (1, 3)):
        text = " and ".join(map(str, sorted(numbers)))
        raise DataError(f"{root}: images of {text} channels; expected one number of channels, or grey and RGB")
    return max(numbers, default=3)
