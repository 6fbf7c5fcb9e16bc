"""The way in: a config's data section → an open split, prepared on first use."""

import os
import re
from pathlib import Path
from typing import Any

from segjax.data.builders import tfds_builders
from segjax.data.builders.prepared import PreparedSource, damage_named, prepare
from segjax.data.errors import DataError
from segjax.data.folder import open_folder
from segjax.data.labels import LABEL_SETS, LabelSet, numbered_classes
from segjax.data.pairs import check_on_error, fingerprint
from segjax.data.source import Source

__all__ = ["DATASETS", "label_set", "open_split"]

DATASETS = {
    "road_debris": tfds_builders.RoadDebris,
    "road_debris_scene": tfds_builders.RoadDebris,
    "camvid": tfds_builders.CamVid,
    "crackforest": tfds_builders.CrackForest,
    "cityscapes": tfds_builders.Cityscapes,
    "lost_and_found": tfds_builders.LostAndFound,
    "folder": None,
}
"""The TFDS builder behind each name that `config.data.name` may have; a folder is read as it lies."""


def label_set(data_config: Any) -> LabelSet:
    """The classes of a config's data set.

    Args:
      data_config: anything with the attribute `name`, a key of `DATASETS`; for "folder", `class_names` and perhaps
        `mask_values` as well.

    Raises:
      DataError: an unknown name, or a folder without class names.
    """
    name = _known(data_config)
    if name != "folder":
        return LABEL_SETS[name]
    names = tuple(getattr(data_config, "class_names", ()))
    if not names:
        raise DataError('config.data.class_names must name the classes of the data set "folder"; got none')
    return numbered_classes(names, tuple(getattr(data_config, "mask_values", ())))


def open_split(data_config: Any, split: str) -> Source:
    """Opens a split; the first use of a data set prepares and verifies it, and says so in one line.

    Args:
      data_config: anything with these attributes (an `ml_collections.ConfigDict`, a dataclass, ...):

        - `name`: a key of `DATASETS`.
        - `data_dir`: where prepared sets live, "" for TFDS's own default; or the folder of one prepared set itself,
          the one that holds its `dataset_info.json`.
        - `manual_dir`: the raw files, or the folder's ROOT; "" for $SEGJAX_<NAME>_DIR, else TFDS's manual folder.
        - road_debris, optional: `scene_size` (height, width), `scene_seed`, `train_examples`, `val_examples`.
        - folder: `class_names`; optional: `mask_values`, `val_fraction`.
        - optional: `on_error`, "raise", or "skip": a bad pair of image and mask is left out, and the split's `skipped`
          says why. A set that is prepared is prepared once more for "skip", in a folder of its own.
      split: "train", "val" (or "validation"), "test", or a TFDS slice of one ("train[:10%]").

    Returns:
      The split, open for random access.

    Raises:
      DataError: the raw files are missing, incomplete or damaged, or hold a label id outside the classes; there is no
        such split or name; or what was prepared is not what lies in the raw folder now.
    """
    classes = label_set(data_config)
    if data_config.name == "folder":
        root = _manual_dir(data_config)
        if root is None:
            raise DataError(
                "folder: set config.data.manual_dir or $SEGJAX_FOLDER_DIR to the folder of images and masks"
            )
        fraction = getattr(data_config, "val_fraction", 0.1)
        return open_folder(
            root, split.replace("validation", "val"), classes, val_fraction=fraction, on_error=_on_error(data_config)
        )
    return PreparedSource(str(_prepared(data_config)), re.sub(r"\bval\b", "validation", split), classes)


def _prepared(data_config: Any) -> Path:
    """The folder of the prepared data set, which is made if it is not there."""
    given = data_config.data_dir and Path(data_config.data_dir)
    if given and (given / "dataset_info.json").is_file():
        return given
    name, builder = data_config.name, _builder(data_config)
    if DATASETS[name] is tfds_builders.RoadDebris:
        return prepare(builder, None)
    manual_dir = _manual_dir(data_config)
    if not Path(builder.data_dir).exists():
        manual_dir = manual_dir or _tfds_manual_dir(builder)
        if not manual_dir.is_dir():
            raise DataError(
                f"{name}: not prepared in {builder.data_dir}, and no raw files in {manual_dir}. Set "
                f"config.data.manual_dir or ${_variable(name)} to: {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
    folder = prepare(builder, manual_dir)
    _check_unchanged(builder, manual_dir)
    return folder


def _known(data_config: Any) -> str:
    if data_config.name not in DATASETS:
        raise DataError(f"config.data.name must be one of {', '.join(DATASETS)}; got {data_config.name!r}")
    return data_config.name


def _on_error(data_config: Any) -> str:
    on_error = getattr(data_config, "on_error", "raise")
    check_on_error(on_error)
    return on_error


def _variable(name: str) -> str:
    return f"SEGJAX_{name.upper()}_DIR"


def _manual_dir(data_config: Any) -> Path | None:
    given = data_config.manual_dir or os.environ.get(_variable(data_config.name), "")
    return Path(given).expanduser() if given else None


def _tfds_manual_dir(builder) -> Path:
    manual = Path(builder.data_dir_root) / "downloads" / "manual"
    return manual / builder.name if (manual / builder.name).is_dir() else manual


def _builder(data_config: Any):
    options = {"data_dir": data_config.data_dir or None, "file_format": "array_record"}
    if DATASETS[data_config.name] is tfds_builders.RoadDebris:
        fields = {"seed": "scene_seed", "train_examples": "train_examples", "val_examples": "val_examples"}
        given = {ours: getattr(data_config, theirs) for ours, theirs in fields.items() if hasattr(data_config, theirs)}
        if hasattr(data_config, "scene_size"):
            given["height"], given["width"] = data_config.scene_size
        options["config"] = tfds_builders.RoadDebrisConfig(**given)
    elif _on_error(data_config) == "skip":
        options["config"] = tfds_builders.SkipConfig()
    with damage_named(Path(data_config.data_dir, data_config.name)):  # it reads what was prepared, if there is
        return DATASETS[data_config.name](**options)


def _check_unchanged(builder, manual_dir: Path | None) -> None:
    """Refuses to train on what was once prepared from other files than those that the config points to now."""
    prepared = (builder.info.metadata or {}).get("fingerprint")
    if not prepared or manual_dir is None:
        return
    try:
        now = fingerprint(type(builder).LAYOUT(manual_dir))
    except DataError:  # raw files that were tidied away after preparing are no harm
        return
    if now != prepared:
        raise DataError(
            f"{builder.data_dir}: was prepared from other files than {manual_dir} holds now. Delete it to prepare "
            f"again, or set config.data.data_dir to another folder"
        )
