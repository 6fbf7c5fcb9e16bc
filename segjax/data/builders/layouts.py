"""Where the raw files of each data set lie: a function from its folder to the pairs of each split."""

import re
from pathlib import Path

from segjax.data.errors import DataError
from segjax.data.files import RawFile, by_name, by_stem, list_folder, list_zip
from segjax.data.pairs import Pair, match


def camvid(root: Path) -> dict[str, list[Pair]]:
    """The SegNet tutorial's CamVid: `train`, `trainannot`, `val`, `valannot`, and `test`, `testannot` if there."""
    names = ["train", "val"] + ["test"] * ((root / "test").is_dir() or (root / "testannot").is_dir())
    return {
        _SPLITS.get(name, name): match(
            by_stem(list_folder(root / name, root=root)),
            by_stem(list_folder(root / f"{name}annot", root=root)),
            str(root),
        )
        for name in names
    }


def crackforest(root: Path) -> dict[str, list[Pair]]:
    """CrackForest: `image/NNN.jpg` with `groundTruth/NNN.mat`; images without ground truth are left out.

    The set has no official split. Ours: an image whose number divides by 3 is "test" (39 of the 118), the rest is
    "train" (79), so that both see the whole sequence of photographs.
    """
    images = by_stem(list_folder(root / "image", root=root))
    masks = by_stem(list_folder(root / "groundTruth", (".mat",), root=root))
    pairs = match(images, masks, str(root), unlabelled=True)
    strange = [pair.mask.path for pair in pairs if not pair.name.isdecimal()]
    if strange:
        raise DataError(f"{strange[0]}: expected a number as its name")
    test = [pair for pair in pairs if int(pair.name) % 3 == 0]
    train = [pair for pair in pairs if int(pair.name) % 3 != 0]
    for split, part in {"train": train, "test": test}.items():
        if not part:
            raise DataError(f"{root}: the split {split!r} is empty; found only the images {[p.name for p in pairs]}")
    return {"train": train, "test": test}


def cityscapes(root: Path) -> dict[str, list[Pair]]:
    """Cityscapes, fine labels: `leftImg8bit_trainvaltest.zip` and `gtFine_trainvaltest.zip`, or both extracted."""
    images = _tree(root, "leftImg8bit_trainvaltest.zip", "leftImg8bit")
    masks = _tree(root, "gtFine_trainvaltest.zip", "gtFine")
    return _by_city(root, images, masks, "gtFine_labelIds", ("train", "val", "test"))


def lost_and_found(root: Path) -> dict[str, list[Pair]]:
    """Lost and Found, as `leftImg8bit.zip` and `gtCoarse.zip` or both extracted."""
    images = _tree(root, "leftImg8bit.zip", "leftImg8bit")
    return _by_city(root, images, _tree(root, "gtCoarse.zip", "gtCoarse"), "gtCoarse_labelIds", ("train", "test"))


# TFDS names the split that the data sets call "val".
_SPLITS = {"val": "validation"}


def _tree(root: Path, archive: str, folder: str) -> dict[str, RawFile]:
    if (root / archive).is_file():
        return list_zip(root / archive, (".png",))
    if (root / folder).is_dir():
        return {f"{folder}/{path}": file for path, file in list_folder(root / folder, (".png",), root=root).items()}
    raise DataError(f"{root}: expected the archive {archive} or its extracted folder {folder}; found neither")


def _by_city(root: Path, images, masks, mask_suffix: str, splits: tuple[str, ...]) -> dict[str, list[Pair]]:
    # leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png beside
    # gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png
    def select(files: dict[str, RawFile], split: str, suffix: str) -> dict[str, RawFile]:
        pattern = re.compile(rf"[^/]+/{split}/[^/]+/([^/]+)_{suffix}\.png")
        return by_name((m[1], file) for path, file in files.items() if (m := pattern.fullmatch(path)))

    return {
        _SPLITS.get(split, split): match(
            select(images, split, "leftImg8bit"), select(masks, split, mask_suffix), f"{root}, split {split}"
        )
        for split in splits
    }
