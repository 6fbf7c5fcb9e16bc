"""Where the raw files of each data set lie: a function from its folder to the pairs of each split."""

import re
from pathlib import Path

from segjax.data.pairs import Pair, RawFile, list_folder, list_zip, match
from segjax.data.source import DataError


def camvid(root: Path) -> dict[str, list[Pair]]:
    """The SegNet tutorial's CamVid: `train`, `trainannot`, `val`, `valannot`, and `test`, `testannot` if there."""
    names = ["train", "val"] + ["test"] * ((root / "test").is_dir() or (root / "testannot").is_dir())
    return {
        _SPLITS.get(name, name): match(
            _by_stem(list_folder(root / name)), _by_stem(list_folder(root / f"{name}annot")), str(root)
        )
        for name in names
    }


def crackforest(root: Path) -> dict[str, list[Pair]]:
    """CrackForest: `image/NNN.jpg` with `groundTruth/NNN.mat`; images without ground truth are left out.

    The set has no official split. Ours: an image whose number divides by 3 is "test" (39 of the 118), the rest is
    "train" (79), so that both see the whole sequence of photographs.
    """
    images = _by_stem(list_folder(root / "image"))
    pairs = match(images, _by_stem(list_folder(root / "groundTruth", (".mat",))), str(root), unlabelled=True)
    strange = [pair.mask.path for pair in pairs if not pair.name.isdigit()]
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


def _by_stem(files: dict[str, RawFile]) -> dict[str, RawFile]:
    return {path.rsplit(".", 1)[0]: file for path, file in files.items()}


def _tree(root: Path, archive: str, folder: str) -> dict[str, RawFile]:
    if (root / archive).is_file():
        return list_zip(root / archive, (".png",))
    if (root / folder).is_dir():
        return {f"{folder}/{path}": file for path, file in list_folder(root / folder, (".png",)).items()}
    raise DataError(f"{root}: expected the archive {archive} or its extracted folder {folder}; found neither")


def _by_city(root: Path, images, masks, mask_suffix: str, splits: tuple[str, ...]) -> dict[str, list[Pair]]:
    # leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png beside
    # gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png
    def select(files: dict[str, RawFile], split: str, suffix: str) -> dict[str, RawFile]:
        pattern = re.compile(rf"[^/]+/{split}/[^/]+/([^/]+)_{suffix}\.png")
        return {m[1]: file for path, file in files.items() if (m := pattern.fullmatch(path))}

    return {
        _SPLITS.get(split, split): match(
            select(images, split, "leftImg8bit"), select(masks, split, mask_suffix), f"{root}, split {split}"
        )
        for split in splits
    }
