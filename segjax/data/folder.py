"""Anyone's own images and masks: ROOT/images/* and ROOT/masks/*, matched by their stems."""

import hashlib
import math
from pathlib import Path

from segjax.data.labels import LabelSet
from segjax.data.pairs import IMAGE_SUFFIXES, Pair, RawFile, image_header, list_folder, match, summarize, verify
from segjax.data.source import DataError, Example, make_example


class FolderSource:
    """A split of a folder, verified when it is opened; see `segjax.data.source.Source`."""

    def __init__(self, pairs: list[Pair], label_set: LabelSet, channels: int):
        sizes = verify(pairs, label_set)
        self.label_set, self.channels = label_set, channels
        self.native_size, self.largest_size = sizes.native_size, sizes.largest_size
        self._pairs = pairs

    def __len__(self) -> int:
        """The number of images."""
        return len(self._pairs)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes example `index`."""
        pair = self._pairs[index]
        return make_example(pair.image.read(), pair.mask.read(), pair.name, self.channels, self.label_set)

    def name(self, index: int) -> str:
        """The name of example `index`: its path under `images`, without its suffix."""
        return self._pairs[index].name


def open_folder(root: Path, split: str, label_set: LabelSet, *, val_fraction: float = 0.1) -> FolderSource:
    """Opens a split of a folder of images (JPEG or PNG, grey or colour, any sizes) and masks (PNG, index or palette).

    Either ROOT holds `images` and `masks`, or it holds `train`, and perhaps `val` and `test`, each with `images` and
    `masks` in it. Files match by their path without suffix. Where there is no `val`, the images are split: ordered by
    the SHA-256 of their names, the first ⌈fraction · n⌉ are "val" and the rest "train", the same on every machine.

    Args:
      root: ROOT.
      split: "train", "val" or "test".
      label_set: the classes, see `segjax.data.labels.numbered_classes`.
      val_fraction: the share of images for "val" where it has no folder, in (0, 1).

    Returns:
      The split, every file of it verified. If any image of `train` or `val` has colour, all are read as RGB.

    Raises:
      DataError: no such split or folder, a file that cannot be decoded, an image and a mask that do not match.
      ValueError: a label id outside the classes.
    """
    splits = list_splits(Path(root), val_fraction)
    if split not in splits:
        raise DataError(f"{root}: no split {split!r}; found {', '.join(splits)}")
    # Over both splits, so that a model trained on one can read the other.
    channels = summarize(image_header(pair.image) for part in splits.values() for pair in part).channels
    return FolderSource(splits[split], label_set, channels)


def list_splits(root: Path, val_fraction: float = 0.1) -> dict[str, list[Pair]]:
    """The pairs of each split of a folder; see `open_folder` for its layouts."""
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie in (0, 1); got {val_fraction}")
    splits = {name: _pairs(root / name) for name in ("train", "val", "test") if (root / name / "images").is_dir()}
    if "train" not in splits:
        splits["train"] = _pairs(root)
    if "val" not in splits:
        pairs = splits["train"]
        if len(pairs) < 2:
            raise DataError(f"{root}: expected at least 2 images to split into train and val; found {len(pairs)}")
        order = sorted(pairs, key=lambda pair: hashlib.sha256(pair.name.encode()).digest())
        held_out = {pair.name for pair in order[: min(math.ceil(val_fraction * len(pairs)), len(pairs) - 1)]}
        splits["train"] = [pair for pair in pairs if pair.name not in held_out]
        splits["val"] = [pair for pair in pairs if pair.name in held_out]
    return splits


def _pairs(folder: Path) -> list[Pair]:
    images = _by_stem(list_folder(folder / "images", IMAGE_SUFFIXES))
    return match(images, _by_stem(list_folder(folder / "masks", (".png",))), str(folder))


def _by_stem(files: dict[str, RawFile]) -> dict[str, RawFile]:
    by_stem: dict[str, RawFile] = {}
    for path, file in files.items():
        stem = path.rsplit(".", 1)[0]
        if stem in by_stem:
            raise DataError(f"{file.path}: another file has the same stem, {by_stem[stem].path}; expected one a stem")
        by_stem[stem] = file
    return by_stem
