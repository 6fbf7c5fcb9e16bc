"""Your own images and masks: ROOT/images/* and ROOT/masks/*, matched by their stems."""

import hashlib
import json
import os
import tempfile
import weakref
from pathlib import Path

from segjax.data.io import (
    IMAGE_SUFFIXES,
    DataError,
    RawFile,
    by_stem,
    list_folder,
    read_bytes,
)
from segjax.data.labels import LabelSet
from segjax.data.pairs import (
    Example,
    Pair,
    Sizes,
    Verified,
    check_on_error,
    image_header,
    make_example,
    match,
    refuse_problems,
    verify,
)
from segjax.storage import write_json


class FolderSource:
    """A verified split of a folder; see `segjax.data.Source`."""

    def __init__(self, found: Verified, label_set: LabelSet, channels: int):
        self._pairs, self._sizes, self.skipped = found
        self.label_set, self.channels = label_set, channels
        self.native_size, self.largest_size = self._sizes.native_size, self._sizes.largest_size
        self._listing: Path | None = None

    def __reduce__(self):
        """Pickles the path of a temporary file with the list of files, deleted together with this source."""
        # Python hands a new process its arguments through a pipe of 64 KiB, and waits for ever where that process dies
        # before it has read more than that (as every worker of a script without an `if __name__ == "__main__"` does).
        if self._listing is None:
            handle, name = tempfile.mkstemp(prefix="segjax-", suffix=".json")
            os.close(handle)
            write_json(name, [(name, _plain(image), _plain(mask)) for name, image, mask in self._pairs])
            self._listing = Path(name)
            weakref.finalize(self, self._listing.unlink, missing_ok=True)
        return _from_listing, (self._listing, self._sizes, self.label_set, self.channels)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes example `index`; a file that changed since it was verified is a `DataError`."""
        name, image, mask = self._pairs[index]
        files = (image.path, mask.path)
        return make_example(read_bytes(image), read_bytes(mask), name, self.channels, self.label_set, files)

    def name(self, index: int) -> str:
        """Returns the name of example `index`: its path under `images`, without its suffix."""
        return self._pairs[index].name


def open_folder(
    root: Path, split: str, label_set: LabelSet, *, val_fraction: float = 0.1, on_error: str = "raise"
) -> FolderSource:
    """Opens a split of a folder of images (JPEG or PNG, grey or colour, any sizes) and masks (PNG, index or palette).

    Either ROOT holds `images` and `masks`, or it holds `train`, and perhaps `val` and `test`, each with `images` and
    `masks` in it. Files match by their path without suffix. Where there is no `val`, the images are split: "val" are
    those whose name's SHA-256, taken as a number in [0, 1), is below the fraction, so about that share, and the rest
    "train". It depends on an image's own name alone: no file moves from one to the other when another is added, removed
    or skipped. (Only where a split would be empty, it gets the image that is nearest to it.)

    Args:
      root: ROOT.
      split: "train", "val" or "test".
      label_set: the classes, see `segjax.data.labels.numbered_classes`.
      val_fraction: the share of images for "val" where it has no folder, in (0, 1).
      on_error: "raise", or "skip": a bad pair of files is left out of its split, and `skipped` says why.

    Returns:
      The split, every file of it verified. If any image of `train`, `val` or `test` has colour, all are read as RGB.

    Raises:
      DataError: no such split or folder, a file that cannot be read or decoded, an image and a mask that do not match,
        a label id outside the classes; under "skip", of these only a split without any good pair.
    """
    check_on_error(on_error)
    splits = list_splits(Path(root), val_fraction)
    if split not in splits:
        raise DataError(f"{root}: no split {split!r}; found {', '.join(splits)}")
    everything = [pair for part in splits.values() for pair in part]
    if on_error == "raise":
        refuse_problems(everything)
    # Over all splits, so that a model trained on one can read the other.
    channels = _channels(everything, on_error)
    return FolderSource(verify(splits[split], label_set, on_error), label_set, channels)


def _plain(file: RawFile) -> tuple[str, int, int | None]:
    return file.path, file.size, file.checksum


def _from_listing(listing: Path, sizes: Sizes, label_set: LabelSet, channels: int) -> FolderSource:
    def on_disk(path: str, size: int, checksum: int | None) -> RawFile:
        return RawFile(path, size, Path(path).read_bytes, checksum=checksum)

    pairs = [Pair(name, on_disk(*image), on_disk(*mask)) for name, image, mask in json.loads(listing.read_bytes())]
    return FolderSource(Verified(pairs, sizes, ()), label_set, channels)


def _channels(pairs: list[Pair], on_error: str) -> int:
    """Returns 1 if every image is grey, else 3; under "skip", unreadable headers are ignored."""
    channels = []
    for pair in pairs:
        try:
            channels.append(image_header(pair.image)[2])
        except DataError:
            if on_error == "raise":
                raise
    return max(channels, default=3)


def list_splits(root: Path, val_fraction: float = 0.1) -> dict[str, list[Pair]]:
    """Returns the pairs of each split of a folder; see `open_folder` for its layouts."""
    if not 0 < val_fraction < 1:
        raise DataError(f"config.data.val_fraction must lie in (0, 1); got {val_fraction}")
    splits = {name: _pairs(root / name, root) for name in ("train", "val", "test") if (root / name / "images").is_dir()}
    if "train" not in splits:
        splits["train"] = _pairs(root, root)
    if "val" not in splits:
        pairs = splits["train"]
        if len(pairs) < 2:
            raise DataError(f"{root}: expected at least 2 images to split into train and val; found {len(pairs)}")
        held_out = _held_out([pair.name for pair in pairs], val_fraction)
        splits["train"] = [pair for pair in pairs if pair.name not in held_out]
        splits["val"] = [pair for pair in pairs if pair.name in held_out]
    return splits


def _held_out(names: list[str], fraction: float) -> set[str]:
    def place(name: str) -> float:
        return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:6], "big") / 2**48

    order = sorted(names, key=place)
    count = sum(place(name) < fraction for name in names)
    return set(order[: min(max(count, 1), len(names) - 1)])


def _pairs(folder: Path, root: Path) -> list[Pair]:
    images = by_stem(list_folder(folder / "images", IMAGE_SUFFIXES, root=root))
    return match(images, by_stem(list_folder(folder / "masks", (".png",), root=root)), str(folder))
