"""Data sets by name: a split is opened from a config, and prepared and verified on first use."""

import contextlib
import fcntl
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from segjax.data import builders
from segjax.data.folder import open_folder
from segjax.data.io import DataError, RawFile
from segjax.data.labels import LABEL_SETS, LabelSet, numbered_classes
from segjax.data.pairs import (
    Example,
    Sizes,
    Source,
    check_on_error,
    fingerprint,
    image_header,
    make_example,
    merge,
    summarize,
)

DATASETS = {
    "road_debris": builders.RoadDebris,
    "road_debris_scene": builders.RoadDebris,
    "camvid": builders.CamVid,
    "crackforest": builders.CrackForest,
    "cityscapes": builders.Cityscapes,
    "lost_and_found": builders.LostAndFound,
    "folder": None,
}
"""The TFDS builder behind each name that `config.data.name` may have; a folder is read as it lies."""


def label_set(data_config: Any) -> LabelSet:
    """Returns the classes of a config's data set.

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
        such split or name; or the prepared set was made from other files than the raw folder holds now.
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
    """Returns the folder of the prepared data set; prepares the data set on first use."""
    given = data_config.data_dir and Path(data_config.data_dir)
    if given and (given / "dataset_info.json").is_file():
        return given
    name, builder = data_config.name, _builder(data_config)
    if DATASETS[name] is builders.RoadDebris:
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
    if DATASETS[data_config.name] is builders.RoadDebris:
        fields = {"seed": "scene_seed", "train_examples": "train_examples", "val_examples": "val_examples"}
        given = {ours: getattr(data_config, theirs) for ours, theirs in fields.items() if hasattr(data_config, theirs)}
        if hasattr(data_config, "scene_size"):
            given["height"], given["width"] = data_config.scene_size
        options["config"] = builders.RoadDebrisConfig(**given)
    elif _on_error(data_config) == "skip":
        options["config"] = builders.SkipConfig()
    with damage_named(Path(data_config.data_dir, data_config.name)):  # it reads what was prepared, if there is
        return DATASETS[data_config.name](**options)


def _check_unchanged(builder, manual_dir: Path | None) -> None:
    """Raises `DataError` if the set was prepared from other files than those that the config names now."""
    prepared = (builder.info.metadata or {}).get("fingerprint")
    if not prepared or manual_dir is None:
        return
    try:
        now = fingerprint(type(builder).LAYOUT(manual_dir))
    except DataError:  # raw files may be deleted after preparing
        return
    if now != prepared:
        raise DataError(
            f"{builder.data_dir}: was prepared from other files than {manual_dir} holds now. Delete it to prepare "
            f"again, or set config.data.data_dir to another folder"
        )


def prepare(builder: tfds.core.DatasetBuilder, manual_dir: Path | None) -> Path:
    """Prepares a data set unless it is there, and returns its folder.

    TFDS writes to a folder beside it and renames that at the end, so a failed or killed preparing leaves nothing that
    looks prepared. Of several processes that ask at once, one prepares and the others wait.

    Args:
      builder: the data set.
      manual_dir: its raw files; None for a set that needs none.

    Raises:
      DataError: the raw files are damaged or incomplete, or hold a label id outside the classes.
    """
    target = Path(builder.data_dir)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / f".{target.name}.lock"):
        if target.exists():
            return target
        for remains in target.parent.glob(f"incomplete.*_{target.name}"):  # of a process that was killed
            shutil.rmtree(remains)
        source = f" from {manual_dir}" if manual_dir else ""
        print(f"segjax: preparing {builder.name}{source} in {target}, once", file=sys.stderr, flush=True)
        tfds.disable_progress_bar()
        options = tfds.download.DownloadConfig(manual_dir=manual_dir and str(manual_dir), try_download_gcs=False)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints that it is "downloading"
                builder.download_and_prepare(download_config=options)
        finally:
            tfds.enable_progress_bar()
    return target


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The kernel lets the lock go when its holder dies, so a killed process blocks nobody.
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def damage_named(folder: str | Path) -> Iterator[None]:
    """Turns every exception that damaged files of the prepared set in `folder` cause into a `DataError`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{folder}: a prepared set that is damaged or incomplete ({error}). Delete this folder, and the next run "
            "prepares it again"
        ) from error


class PreparedSource:
    """A split of a prepared TFDS data set, ours or the catalogue's; see `segjax.data.Source`."""

    def __init__(self, folder: str, split: str, label_set: LabelSet):
        self._folder, self._split, self.label_set = folder, split, label_set
        with damage_named(self._folder):
            builder = tfds.builder_from_directory(folder)
        self._image = next((key for key in ("image", "image_left") if key in builder.info.features), None)
        if self._image is None or not {"segmentation_label", "image_id"} <= set(builder.info.features):
            raise DataError(
                f"{folder}: expected the features image or image_left, segmentation_label and image_id; "
                f"got {', '.join(builder.info.features)}"
            )
        parts = re.findall(r"[A-Za-z_]\w*", split)
        for part in parts:
            if part not in builder.info.splits:
                raise DataError(
                    f"{folder}: no split {part!r}; prepared are {', '.join(builder.info.splits)}. If its raw files "
                    f"were added since, delete this folder and run again"
                )
        if not builder.info.splits[split].num_examples:
            raise DataError(f"{folder}: the split {split!r} is empty; expected at least one image")
        with damage_named(self._folder):
            self._records = self._open(builder)
            for index in {
                0,
                len(self._records) - 1,
            }:  # before training, since a file is opened when it is read
                self._records[index]
        self._describe(builder, parts)
        self.skipped = tuple(
            message for part in parts for message in (builder.info.metadata or {}).get("skipped", {}).get(part, ())
        )

    def _open(self, builder: tfds.core.DatasetBuilder):
        raw = {key: tfds.decode.SkipDecoding() for key in (self._image, "segmentation_label")}
        try:
            return builder.as_data_source(self._split, decoders=raw)
        except NotImplementedError as error:
            raise DataError(
                f"{self._folder}: prepared as {builder.info.file_format.value}, which has no random access; "
                f"prepare it with file_format='array_record'"
            ) from error

    def _describe(self, builder: tfds.core.DatasetBuilder, parts: list[str]) -> None:
        metadata = builder.info.metadata or {}
        height, width, channels = builder.info.features[self._image].shape
        if "splits" in metadata:  # ours
            sizes = merge(map(_from_json, (metadata["splits"][part] for part in parts)))
            self.channels = metadata["channels"]
        elif height and width:  # the catalogue's, whose features have a fixed shape
            sizes = Sizes((height, width), (height, width), channels)
            self.channels = channels
        else:
            read = (RawFile(self.name(i), 0, lambda i=i: self._records[i][self._image]) for i in range(len(self)))
            sizes = summarize(map(image_header, read))
            self.channels = sizes.channels
        self.native_size, self.largest_size = sizes.native_size, sizes.largest_size

    def __reduce__(self):
        """Pickles the folder and the split; a worker process opens the files itself."""
        return PreparedSource, (self._folder, self._split, self.label_set)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes example `index`."""
        with damage_named(self._folder):
            record = self._records[index]
            name = _text(record["image_id"])
        files = (f"image of {name} in {self._folder}", f"mask of {name} in {self._folder}")
        image, mask = record[self._image], record["segmentation_label"]
        return make_example(image, mask, name, self.channels, self.label_set, files)

    def name(self, index: int) -> str:
        """Returns the `image_id` of example `index`."""
        with damage_named(self._folder):
            return _text(self._records[index]["image_id"])


def _from_json(sizes: dict) -> Sizes:
    native = sizes["native_size"]
    return Sizes(native and tuple(native), tuple(sizes["largest_size"]), sizes["channels"])


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
