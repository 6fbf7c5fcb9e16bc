"""Data sets by name: a config's split is opened, and its data set prepared and verified on first use."""

import contextlib
import fcntl
import io
import os
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from segjax.data import builders
from segjax.data.decode import image_header
from segjax.data.io import DataError, RawFile, as_data_error
from segjax.data.labels import (
    LABEL_SETS,
    UNSEEN,
    VOID,
    LabelSet,
    hide_classes,
    numbered_classes,
    overlapping_classes,
)
from segjax.data.layout import find_layout
from segjax.data.pairs import (
    Example,
    FolderSource,
    Source,
    find_range,
    fingerprint,
    listing_fingerprint,
    make_example,
    refuse_palettes,
    refuse_problems,
    summarize,
    verify,
)
from segjax.data.splits import DEFAULT_OPTIONS, FolderOptions, folder_options
from segjax.storage import say

DATASETS = {
    "road_debris": builders.RoadDebris,
    "road_debris_scene": builders.RoadDebris,
    "camvid": builders.CamVid,
    "crackforest": builders.CrackForest,
    "cityscapes": builders.Cityscapes,
    "lost_and_found": builders.LostAndFound,
    "folder": None,
    "coco": None,
}
"""TFDS builder of each value of `config.data.name`; a folder and COCO's JSON are read without preparation."""


def label_set(data_config: Any, *, mark_unseen: bool = False) -> LabelSet:
    """Returns the classes of a config's data set without the unseen ones, see `open_split`.

    Raises: DataError for an unknown name of the data set, of an unseen class or of the rare one, or if fewer than two
    classes are left.
    """
    name, unseen = data_config.name, tuple(getattr(data_config, "unseen_classes", ()))
    if name not in DATASETS:
        raise DataError(f"config.data.name must be one of {', '.join(DATASETS)}; got {name!r}")
    if name == "coco":
        every_class = numbered_classes(("background", *data_config.box_classes))
    elif name != "folder":
        every_class = LABEL_SETS[name]
    elif getattr(data_config, "multilabel", False):
        options = {field: getattr(data_config, field) for field in ("void_values", "mask_threshold")}
        return overlapping_classes(tuple(data_config.class_names), **options)
    else:
        optional = ("mask_values", "void_values", "mask_colours", "void_colours", "mask_threshold")
        given = {field: getattr(data_config, field) for field in optional if hasattr(data_config, field)}
        every_class = numbered_classes(getattr(data_config, "class_names", ()), **given)
    if not unseen:
        return _with_rare(every_class, data_config)
    if not set(unseen) <= set(every_class.names):
        raise DataError(
            f"config.data.unseen_classes must be classes of {name}: {', '.join(every_class.names)}; got {unseen!r}"
        )
    seen = hide_classes(every_class, unseen, UNSEEN if mark_unseen else VOID)
    if seen.num_classes < 2:
        raise DataError(
            f"config.data.unseen_classes must leave at least 2 of the {every_class.num_classes} classes of {name}; "
            f"got {unseen!r}"
        )
    return _with_rare(seen, data_config)


def _with_rare(classes: LabelSet, data_config: Any) -> LabelSet:
    name = getattr(data_config, "rare_class", "")
    if not name:
        return classes
    if classes.num_classes != 2 or name not in classes.names:
        expected = f"one of two classes; {data_config.name} has {', '.join(classes.names)}"
        raise DataError(f"config.data.rare_class must be {expected}; got {name!r}")
    return replace(classes, rare=classes.names.index(name))


def open_split(data_config: Any, split: str, *, mark_unseen: bool = False) -> Source:
    """Opens a split for random access; the first use of a data set prepares and verifies it.

    Args:
      data_config: has these attributes (an `ml_collections.ConfigDict`, a dataclass, ...):

        - `name`: a key of `DATASETS`.
        - `data_dir`: folder of the prepared sets, "" for TFDS's default; or the folder of one prepared set.
        - `manual_dir`: the raw files, or the folder's ROOT; "" for $SEGJAX_<NAME>_DIR, else TFDS's manual folder.
        - road_debris, optional: `scene_size` (height, width), `scene_seed`, `train_examples`, `val_examples`.
        - folder: `class_names`; optional: the fields of `labels.numbered_classes` and `layout.FolderOptions`; `range`,
          `orientation` and `train_split`, see `open_folder`; `multilabel`, for the classes of
          `labels.overlapping_classes`, with one mask each.
        - coco: `box_classes`, the categories to detect, in the order of their class indices; `max_boxes`, the largest
          number of objects of an image; optional: the fields of `layout.FolderOptions` that hold images out.
        - `unseen_classes`, optional: names of classes to leave out of the training. Their pixels are void, and the
          split's `label_set` has the other classes only, with train ids from 0 in their order.
        - `rare_class`, optional: the `LabelSet.rare` of two classes; "": the second.
        - `box_classes`, optional: names of classes with objects, at most `max_boxes` per class and image: the labels
          are the ids of a `segjax.data.objects.ObjectSource`.
        - `channels` and `dtype`, optional: those that the images must have; None: any.
        - `on_error`, optional: "raise", or "skip" to leave bad pairs of image and mask out and list the reasons in
          the split's `skipped`. "skip" prepares the data set in a folder of its own.
      split: "train", "val" (or "validation"), "test", or a TFDS slice of one ("train[:10%]").
      mark_unseen: give the pixels of unseen classes the train id `UNSEEN` (253) instead of `VOID`, to score how well
        they are detected. Such labels are for counting, not for training. In a counting step of
        `segjax.training.evaluation`, whose `where` leaves void out, the unknown pixels are `labels == UNSEEN` and the
        known ones are `where & (labels != UNSEEN)`.

    Raises: DataError if the raw files are missing or damaged, differ from those that were prepared, or contain a label
    id outside the classes; or if the split or name does not exist.
    """
    name, classes = data_config.name, label_set(data_config, mark_unseen=mark_unseen)
    if name == "coco":
        from segjax.data.coco import open_coco  # for detectors only

        root = _required_dir(data_config, "images and COCO annotations")
        options = {"options": folder_options(data_config), "on_error": _on_error(data_config)}
        source = open_coco(root, split.replace("validation", "val"), classes, data_config.max_boxes, **options)
    elif name != "folder":
        split = re.sub(r"\bval\b", "validation", split)
        source = PreparedSource(str(_prepared_folder(data_config)), split, classes)
    else:
        root = _required_dir(data_config, "images and masks")
        split, on_error = split.replace("validation", "val"), _on_error(data_config)
        options = {"options": folder_options(data_config), "on_error": on_error}
        options |= {"value_range": getattr(data_config, "range", "dtype")}
        options |= {"drawn_on": getattr(data_config, "orientation", "displayed")}
        options |= {"train_split": getattr(data_config, "train_split", "train")}
        if classes.combinations is None:
            source = open_folder(root, split, classes, **options)
        else:
            source = _open_multilabel(root, split, classes, **options)
    channels = getattr(data_config, "channels", None) or source.channels
    if source.channels != channels:
        found = f"the images of {name} have {source.channels} channel(s): set it to {source.channels}"
        raise DataError(f"config.data.channels = {channels}, but {found}")
    dtype = getattr(data_config, "dtype", None) or source.dtype
    if source.dtype != dtype:
        raise DataError(f"config.data.dtype = {dtype}, but the images of {name} are {source.dtype}: convert them")
    objects = tuple(getattr(data_config, "box_classes", ()))
    if not objects or name == "coco":
        return source
    if not set(objects) <= set(classes.names) or len(set(objects)) < len(objects):
        expected = f"different classes of {name}, {', '.join(classes.names)}"
        raise DataError(f"config.data.box_classes must be {expected}; got {objects!r}")
    from segjax.data.objects import ObjectSource  # for detectors only

    drawn = getattr(data_config, "scene_seed", 0) if DATASETS[name] is builders.RoadDebris else None
    return ObjectSource(source, objects, data_config.max_boxes, drawn)


def open_folder(
    root: Path,
    split: str,
    label_set: LabelSet,
    *,
    options: FolderOptions = DEFAULT_OPTIONS,
    on_error: str = "raise",
    value_range: str | tuple[float, float] = "dtype",
    drawn_on: str = "displayed",
    train_split: str = "train",
) -> FolderSource:
    """Opens and verifies a split of a folder, or "all" of them; `find_layout` finds its files.

    Grey images are converted to RGB if any image of any split has colour. `find_range` applies the option `value_range`
    to the images of `train_split`; `drawn_on` is passed to `align_mask`.
    """
    layout = find_layout(Path(root), options)
    if split in layout.without_masks:
        images = layout.without_masks[split]
        count = f"{len(images)} image{'s' * (len(images) > 1)}, such as {images[0].path}"
        way_out = "use segjax predict, or add masks"
        raise DataError(f"{root}: no image of split {split!r} has a mask ({count}), so it cannot be scored; {way_out}")
    everything = [pair for part in layout.splits.values() for pair in part]
    pairs = everything if split == "all" else layout.splits.get(split)
    if pairs is None:
        valid = f"valid: {', '.join(layout.splits)}, or all (every split)"
        expected = f"expected training images in {root / 'train'}"
        raise DataError(f"{root}: split {split!r} does not exist; {expected if split == 'train' else valid}")
    if on_error == "raise":
        refuse_problems(everything)  # at once, and not after an hour of decoding
    if not label_set.by_colour:
        refuse_palettes(everything)
    channels = []  # over all splits, so that a model trained on one can read the others
    for pair in everything:
        try:
            channels.append(image_header(pair.image).channels)
        except DataError:
            if on_error == "raise":
                raise
    channels = common_channels(channels, root)
    verified = verify(pairs, label_set, on_error, drawn_on)
    value_range = find_range(value_range, verified, layout.splits.get(train_split, ()), on_error)
    return FolderSource(verified, label_set, channels, value_range, drawn_on, layout.notes())


def _open_multilabel(root: Path, split: str, classes: LabelSet, *, options: FolderOptions, **reading: Any) -> Source:
    """Opens and verifies a split of a folder with one mask per class; the arguments are those of `open_folder`."""
    from segjax.data.multilabel import PATTERN, MultilabelSource, class_options, layout_notes  # for such folders only

    sources = []
    for name in classes.names:
        try:
            own = class_options(options, name)
            sources.append(open_folder(root, split, classes, options=own, **reading))
        except DataError as error:
            remedy = f". config.data.multilabel expects one mask per class and image: {options.masks or PATTERN}"
            raise DataError(f"class {name}: {error}{remedy}") from error
    source = MultilabelSource(sources, classes, layout_notes(root, classes.names, options))
    source.verify(reading["on_error"])
    return source


def common_channels(channels: Iterable[int], root: Path) -> int:
    """Returns the number of channels to which images of these numbers are converted: 3 for grey and RGB.

    Raises: DataError if other numbers are mixed.
    """
    numbers = set(channels)
    if len(numbers - {1}) > 1 or (1 in numbers and max(numbers) not in (1, 3)):
        text = " and ".join(map(str, sorted(numbers)))
        raise DataError(f"{root}: images of {text} channels; expected one number of channels, or grey and RGB")
    return max(numbers, default=3)


def _prepared_folder(data_config: Any) -> Path:
    """Returns the folder of the prepared data set; prepares the data set on first use."""
    given = data_config.data_dir and Path(data_config.data_dir)
    if given and (given / "dataset_info.json").is_file():
        return given
    name = data_config.name
    options = {"data_dir": data_config.data_dir or None, "file_format": "array_record"}
    if DATASETS[name] is builders.RoadDebris:
        fields = {"seed": "scene_seed", "train_examples": "train_examples", "val_examples": "val_examples"}
        given = {field: getattr(data_config, key) for field, key in fields.items() if hasattr(data_config, key)}
        given |= zip(("height", "width"), getattr(data_config, "scene_size", ()), strict=False)
        options["config"] = builders.RoadDebrisConfig(**given)
    elif _on_error(data_config) == "skip":
        options["config"] = builders.SKIP
    with _damage_named(Path(data_config.data_dir, name)):  # the builder reads a set that is already prepared
        builder = DATASETS[name](**options)
    if DATASETS[name] is builders.RoadDebris:
        return _prepare(builder, None)
    manual_dir = _manual_dir(data_config)
    if not Path(builder.data_dir).exists():
        if manual_dir is None:
            manual_dir = Path(builder.data_dir_root) / "downloads" / "manual"
            manual_dir = manual_dir / name if (manual_dir / name).is_dir() else manual_dir
        if not manual_dir.is_dir():
            problem = f"{name}: not prepared in {builder.data_dir}, and no raw files in {manual_dir}"
            remedy = f"Set config.data.manual_dir or $SEGJAX_{name.upper()}_DIR to the folder with"
            raise DataError(f"{problem}. {remedy} {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}")
    folder = _prepare(builder, manual_dir)
    with _damage_named(folder):
        metadata = dict(builder.info.metadata or {})
    prepared_from = now = metadata.get("fingerprint")
    if prepared_from and manual_dir:
        with contextlib.suppress(DataError):  # raw files may be deleted after preparing
            splits = builder.list_files(manual_dir)
            if listing_fingerprint(splits) != metadata.get("listing"):
                now = fingerprint(splits)
    if now != prepared_from:
        remedy = "Delete it to prepare again, or set config.data.data_dir to another folder"
        raise DataError(
            f"{folder}: prepared from files that differ from those in {manual_dir}, or by an older segjax. {remedy}"
        )
    return folder


def _on_error(data_config: Any) -> str:
    on_error = getattr(data_config, "on_error", "raise")
    if on_error not in ("raise", "skip"):
        raise DataError(f"config.data.on_error must be one of raise, skip; got {on_error!r}")
    return on_error


def _manual_dir(data_config: Any) -> Path | None:
    given = data_config.manual_dir or os.environ.get(f"SEGJAX_{data_config.name.upper()}_DIR", "")
    return Path(given).expanduser() if given else None


def _required_dir(data_config: Any, content: str) -> Path:
    root = _manual_dir(data_config)
    if root is None:
        variable = f"$SEGJAX_{data_config.name.upper()}_DIR"
        raise DataError(f"{data_config.name}: set config.data.manual_dir or {variable} to its {content}")
    if not root.exists():  # the data of a trained run may have moved
        way_out = f"name the folder of its {content} with --config.data.manual_dir=FOLDER"
        raise DataError(f"{data_config.name}: {root.absolute()} does not exist; {way_out}")
    return root


def _prepare(builder: tfds.core.DatasetBuilder, manual_dir: Path | None) -> Path:
    """Prepares a data set from its raw files in `manual_dir` unless it already is, and returns its folder.

    TFDS writes to a temporary folder and renames it at the end. If several processes start at once, one prepares and
    the others wait.
    """
    target = Path(builder.data_dir)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel when its holder dies
        if target.exists():
            return target
        for remains in target.parent.glob(f"incomplete.*_{target.name}"):  # of a process that was killed
            shutil.rmtree(remains)
        source = f" from {manual_dir}" if manual_dir else ""
        say(f"segjax: preparing {builder.name}{source} in {target}, once", sys.stderr)
        tfds.disable_progress_bar()
        options = tfds.download.DownloadConfig(manual_dir=manual_dir and str(manual_dir), try_download_gcs=False)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints that it is "downloading"
                builder.download_and_prepare(download_config=options)
        finally:
            tfds.enable_progress_bar()
    return target


def _damage_named(folder: str | Path) -> contextlib.AbstractContextManager[None]:
    """Turns every exception that damaged files of the prepared set in `folder` cause into a `DataError`."""
    remedy = "Delete this folder, and the next run prepares it again"
    return as_data_error(f"{folder}: a prepared set that is damaged or incomplete. {remedy}")


class PreparedSource:
    """A split of a prepared TFDS data set, ours or the catalogue's; see `segjax.data.Source`."""

    def __init__(self, folder: str, split: str, label_set: LabelSet):
        self._folder, self._split, self.label_set = folder, split, label_set
        with _damage_named(folder):
            builder = tfds.builder_from_directory(folder)
            info, metadata = builder.info, dict(builder.info.metadata or {})
        self._image = next((key for key in ("image", "image_left") if key in info.features), None)
        if self._image is None or not {"segmentation_label", "image_id"} <= set(info.features):
            expected = "expected the features image or image_left, segmentation_label and image_id"
            raise DataError(f"{folder}: {expected}; got {', '.join(info.features)}")
        parts = re.findall(r"[A-Za-z_]\w*", split)
        for part in parts:
            if part not in info.splits:
                remedy = "If its raw files were added since, delete this folder and run again"
                raise DataError(f"{folder}: no split {part!r}; prepared are {', '.join(info.splits)}. {remedy}")
        try:
            count = info.splits[split].num_examples
        except ValueError as error:
            expected = f"{', '.join(info.splits)}, or a slice such as train[:10%]"
            raise DataError(f"{folder}: {split!r} is not a split; expected {expected}") from error
        if not count:
            raise DataError(f"{folder}: the split {split!r} is empty; expected at least one image")
        with _damage_named(folder):
            raw = {key: tfds.decode.SkipDecoding() for key in (self._image, "segmentation_label")}
            try:
                self._records = builder.as_data_source(split, decoders=raw)
            except NotImplementedError as error:
                found = f"prepared as {info.file_format.value}, which has no random access"
                raise DataError(f"{folder}: {found}; prepare it with file_format='array_record'") from error
            for index in {0, len(self._records) - 1}:  # detects damage before training; files are opened when read
                self._records[index]
        with _damage_named(folder):
            self.digest = metadata.get("fingerprint", info.full_name)  # scenes and the catalogue's sets: by their names
            absent = metadata.get("absent", {})
            self.absent = [name for name in label_set.names if all(name in absent.get(part, ()) for part in parts)]
            self.skipped = tuple(message for part in parts for message in metadata.get("skipped", {}).get(part, ()))
            # Sets of the catalogue are not described, but usually their features have a fixed shape.
            described = metadata.get("splits", {})
            natives = {tuple(described[part]["native_size"] or ()) for part in parts if part in described}
            shape = info.features[self._image].shape
            if len(natives) == 1 and () not in natives:
                shape = (*natives.pop(), metadata["channels"])
            if None in shape[:2]:
                files = (RawFile(self.name(i), 0, lambda i=i: self._records[i][self._image]) for i in range(len(self)))
                shapes = [image_header(file)[:3] for file in files]
            else:
                shapes = [shape] * len(self)
            self.native_size, _, channels = summarize(shapes)
            self.dtype = "uint8"
            self.value_range, self.unsure_turns, self.void, self.pixels, self.notes = None, 0, None, None, ()
            self.channels = metadata.get("channels", channels)
            self.sizes = [each[:2] for each in shapes]

    def __reduce__(self):
        # A worker process opens the files itself.
        return PreparedSource, (self._folder, self._split, self.label_set)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        with _damage_named(self._folder):
            record = self._records[index]
            name = record["image_id"].decode()
        files = (f"image of {name} in {self._folder}", f"mask of {name} in {self._folder}")
        image, mask = record[self._image], record["segmentation_label"]
        return make_example(image, mask, name, self.channels, self.label_set, files)

    def name(self, index: int) -> str:
        """Returns the `image_id` of example `index`."""
        with _damage_named(self._folder):
            return self._records[index]["image_id"].decode()
