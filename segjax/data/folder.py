"""Your own folder: its layouts, and a split of it as a source."""

import hashlib
import os
import tempfile
import weakref
from pathlib import Path
from typing import NamedTuple

from segjax.data.decode import image_header
from segjax.data.io import DataError, RawFile, by_stem, list_folder, read_bytes
from segjax.data.labels import LabelSet
from segjax.data.pairs import (
    Example,
    Pair,
    Verified,
    fingerprint,
    make_example,
    match,
    refuse_problems,
    summarize,
    verify,
)
from segjax.storage import read_json, write_json


class Layout(NamedTuple):
    """The images and masks of a folder, as `find_layout` found them; no file was read."""

    description: str  # in words, for the user: "train/images with train/masks, …"
    splits: dict[str, list[Pair]]  # "train" and "val", and "test" if it has masks
    unlabelled: dict[str, list[RawFile]]  # images of each split whose folder has no masks
    ignored: dict[str, list[str]]  # paths below the root by the reason for which they are not read
    class_file: Path | None = None  # file of class names with their colours or ids, for `labels.read_class_file`


class FolderSource:
    """A verified split of a folder; see `segjax.data.Source`."""

    def __init__(self, verified: Verified, label_set: LabelSet, channels: int):
        self._pairs, self._shapes, self.skipped, self.absent = verified
        self.label_set, self.channels = label_set, channels
        self.native_size, self.sizes = summarize(self._shapes).native_size, [shape[:2] for shape in self._shapes]
        self.digest, self._listing = fingerprint({"": self._pairs}), None

    def __reduce__(self):
        """Pickles the path of a temporary file with the list of files, deleted together with this source."""
        # Python passes the arguments of a new process through a pipe of 64 KiB, and waits forever if that process dies
        # before it has read more than that, as a worker does that is killed for its memory.
        if self._listing is None:
            handle, path = tempfile.mkstemp(prefix="segjax-", suffix=".json")
            os.close(handle)
            pairs = [(name, *(file._replace(read=None) for file in files)) for name, *files in self._pairs]
            write_json(path, {"pairs": pairs, "shapes": self._shapes})
            self._listing = Path(path)
            weakref.finalize(self, self._listing.unlink, missing_ok=True)
        return _from_listing, (self._listing, self.label_set, self.channels)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        name, image, mask = self._pairs[index]
        files = (image.path, mask.path)
        return make_example(read_bytes(image), read_bytes(mask), name, self.channels, self.label_set, files)

    def name(self, index: int) -> str:
        """Returns the name of example `index`: its path under `images`, without its suffix."""
        return self._pairs[index].name


def _from_listing(listing: Path, label_set: LabelSet, channels: int) -> FolderSource:
    listed = read_json(listing)
    pairs = [
        Pair(name, *(RawFile(*file)._replace(read=Path(file[0]).read_bytes) for file in files))
        for name, *files in listed["pairs"]
    ]
    shapes = [tuple(shape) for shape in listed["shapes"]]
    return FolderSource(Verified(pairs, shapes, (), []), label_set, channels)


def open_folder(
    root: Path, split: str, label_set: LabelSet, *, val_fraction: float = 0.1, on_error: str = "raise"
) -> FolderSource:
    """Opens and verifies a split of a folder of images (JPEG or PNG, any size) and masks (PNG, grey or palette).

    ROOT contains `images` and `masks`, or `train` and optionally `val` and `test` with `images` and `masks` in each.
    Files match by their path without suffix. Without `val`, the images whose name has a SHA-256, read as a number
    in [0, 1), below `val_fraction` are "val", and the rest "train". So adding, removing or skipping a file moves no
    other file. (An otherwise empty split gets the nearest image.) All images are RGB if any of any split has colour.
    """
    splits = list_splits(Path(root), val_fraction)
    if split not in splits:
        raise DataError(f"{root}: no split {split!r}; found {', '.join(splits)}")
    everything = [pair for part in splits.values() for pair in part]
    if on_error == "raise":
        refuse_problems(everything)  # at once, and not after an hour of decoding
    channels = []  # over all splits, so that a model trained on one can read the others
    for pair in everything:
        try:
            channels.append(image_header(pair.image)[2])
        except DataError:
            if on_error == "raise":
                raise
    return FolderSource(verify(splits[split], label_set, on_error), label_set, max(channels, default=3))


def find_layout(root: Path, *, val_fraction: float = 0.1) -> Layout:
    """Finds the splits, pairs and other files of a folder; see `Layout`."""
    return Layout("images with masks", list_splits(root, val_fraction), {}, {})


def list_splits(root: Path, val_fraction: float = 0.1) -> dict[str, list[Pair]]:
    """Returns the pairs of each split of a folder; see `open_folder` for its layouts."""
    if not 0 < val_fraction < 1:
        raise DataError(f"config.data.val_fraction must lie in (0, 1); got {val_fraction}")

    def pairs_in(folder: Path) -> list[Pair]:
        images = by_stem(list_folder(folder / "images", root=root))
        return match(images, by_stem(list_folder(folder / "masks", (".png",), root=root)), str(folder))

    splits = {name: pairs_in(root / name) for name in ("train", "val", "test") if (root / name / "images").is_dir()}
    if splits and "train" not in splits and not (root / "images").is_dir():
        raise DataError(f"{root}: found {', '.join(splits)} only; expected training images in {root / 'train'}")
    if "train" not in splits:
        splits["train"] = pairs_in(root)
    if "val" not in splits:
        pairs = splits["train"]
        if len(pairs) < 2:
            raise DataError(f"{root}: expected at least 2 images to split into train and val; found {len(pairs)}")
        hashes = [hashlib.sha256(pair.name.encode(errors="surrogateescape")).digest()[:6] for pair in pairs]
        count = sum(int.from_bytes(digest, "big") < val_fraction * 2**48 for digest in hashes)
        last = sorted(hashes)[min(max(count, 1), len(pairs) - 1) - 1]
        splits["train"] = [pair for pair, digest in zip(pairs, hashes, strict=True) if digest > last]
        splits["val"] = [pair for pair, digest in zip(pairs, hashes, strict=True) if digest <= last]
    return splits
