"""Boxes of COCO's JSON for detectors: files, annotations and images of a split, verified before training.

Read are the official layout, `annotations/instances_train2017.json` with `train2017`, and the exports of labelling
tools: a JSON per split beside its images, or a single JSON, of which a part is held out.
"""

import math
import os
import re
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from segjax.data.annotations import (
    Annotated,
    Images,
    annotation_format,
    check_references,
    checked_size,
    read_coco,
)
from segjax.data.decode import decode_image, inspect_image
from segjax.data.io import DataError, RawFile, from_listing, list_folder, list_tree, read_bytes, to_listing
from segjax.data.labels import LabelSet
from segjax.data.objects import ImageBoxes
from segjax.data.pairs import Example, Pair, fingerprint
from segjax.data.splits import SPLIT_WORD, SPLIT_WORDS, FolderOptions, check_options, hold_out
from segjax.storage import read_json, write_json

_REMEDY = "correct or delete it, or export the annotations again"


class Objects(NamedTuple):
    """Annotated objects of one image; see `segjax.metrics.detection_records`."""

    boxes: Float[np.ndarray, "n 4"]  # (x_min, y_min, x_max, y_max) in pixels, as annotated, also outside the image
    classes: Int[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]
    areas: Float[np.ndarray, " n"]


class CocoImage(NamedTuple):
    """An image with its annotated objects."""

    name: str
    image: RawFile
    size: tuple[int, int]  # height and width
    objects: Objects


class CocoSource:
    """A verified split of images with boxes; see `segjax.data.Source`.

    Grey images are converted to RGB. An example has "boxes" `[max_boxes, 4]` and "classes" `[max_boxes]`, of -1 where
    there is no box: the objects to train on, without crowds, cut to the image. Its "label" is 0 everywhere. `objects`
    has all annotations.
    """

    def __init__(
        self,
        images: Sequence[CocoImage],
        label_set: LabelSet,
        max_boxes: int,
        skipped: tuple[str, ...] = (),
        notes: Sequence[str] = (),
    ):
        self._images, self._max_boxes = list(images), max_boxes
        self.label_set, self.skipped, self.notes = label_set, skipped, notes
        self.channels, self.value_range, self.dtype, self.unsure_turns = 3, None, "uint8", 0
        self.absent, self.void, self.pixels = (), None, None
        self.sizes = [one.size for one in self._images]
        self.native_size = self.sizes[0] if len(set(self.sizes)) == 1 else None
        self.digest, self._listing = _digest(self._images), None

    def __reduce__(self):
        """Pickles the path of a temporary file, deleted together with this source; see `FolderSource`."""
        if self._listing is None:
            handle, path = tempfile.mkstemp(prefix="segjax-", suffix=".json")
            os.close(handle)
            write_json(path, [_to_json(one) for one in self._images])
            self._listing = Path(path)
            weakref.finalize(self, self._listing.unlink, missing_ok=True)
        return _from_listing, (self._listing, self.label_set, self._max_boxes)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        name, image, size, objects = self._images[index]
        pixels = decode_image(read_bytes(image), 3, None, image.path)
        kept = _trainable(objects, size)
        boxes, classes = np.zeros((self._max_boxes, 4), np.float32), np.full(self._max_boxes, -1, np.int32)
        boxes[: kept.sum()] = _cut(objects.boxes, size)[kept]
        classes[: kept.sum()] = objects.classes[kept]
        label = np.zeros(size, np.uint8)
        return {"image": pixels, "label": label, "name": name, "boxes": boxes, "classes": classes}

    def name(self, index: int) -> str:
        """Returns the name of example `index`: its path in the annotations, without its suffix."""
        return self._images[index].name

    def objects(self, indices: Sequence[int]) -> ImageBoxes:
        """Returns all annotations of some images, with crowds, in pixels of the image; NumPy arrays."""
        found = [self._images[index].objects for index in indices]
        places = max(len(each.classes) for each in found)

        def padded(name: str) -> np.ndarray:
            arrays = [getattr(each, name) for each in found]
            result = np.zeros((len(found), places, *arrays[0].shape[1:]), arrays[0].dtype)
            for row, array in zip(result, arrays, strict=True):
                row[: len(array)] = array
            return result

        where = np.arange(places) < np.array([len(each.classes) for each in found])[:, None]
        return ImageBoxes(padded("boxes"), padded("classes"), where, padded("crowd"), padded("areas"))


def open_coco(
    root: Path,
    split: str,
    label_set: LabelSet,
    max_boxes: int,
    *,
    options: FolderOptions,
    on_error: str = "raise",
) -> CocoSource:
    """Opens a split of the images and the COCO annotations in a folder, and verifies every image.

    Args:
      root: the folder.
      split: "train", "val" or "test". Without annotations of "val", a part of "train" is held out.
      label_set: its classes, after the first, the background, are the categories to read.
      max_boxes: largest number of objects of an image, without crowds.
      options: those of `hold_out`.
      on_error: "skip" leaves out images that are missing, damaged or of another size than annotated.

    Raises: DataError for annotations or images that cannot be used, or a split without an object.
    """
    check_options(options)
    files = annotation_files(root)
    if split in files and not options.folds and not (split == "train" and "val" not in files):
        found, note = {split: _read_split(files[split], root, label_set.names[1:])}, ""
    else:
        found = {part: _read_split(file, root, label_set.names[1:]) for part, file in files.items()}
        found, note = hold_out(root, found, options)
    if split not in found:
        raise DataError(f"{root}: split {split!r} does not exist; valid: {', '.join(found)}")
    images, skipped = _verified(found[split], on_error)
    notes = _describe_boxes(images, split, label_set, max_boxes, note)
    return CocoSource(images, label_set, max_boxes, skipped, notes)


def annotation_files(root: Path) -> dict[str, Path]:
    """Returns the file of COCO annotations of each split below a folder; a single file is "train".

    Files named `instances_…` come before all others, and the split is the last of the words train, val and test in the
    path of the file.

    Raises: DataError if there is no file, or not one per split.
    """
    files = [root / path for path in list_tree(root, (".json",), follow_links=True)[0]]
    official = [file for file in files if file.name.startswith("instances_")]
    files = official or [file for file in files if annotation_format(file) == "coco"]
    if not files:
        expected = "expected annotations/instances_train2017.json, or one JSON file of COCO annotations"
        raise DataError(f"{root}: no COCO annotations; {expected}")
    splits: dict[str, Path] = {}
    if len(files) == 1 and not _split_of(files[0], root):
        return {"train": files[0]}
    for file in files:
        split = _split_of(file, root)
        if not split or split in splits:
            problem = f"{splits[split]} is of the split {split!r} too" if split else "its path has no split"
            expected = "expected one file per split, with train, val or test in its path: move the others away"
            raise DataError(f"{file}: {problem}; {expected}")
        splits[split] = file
    return splits


def _split_of(file: Path, root: Path) -> str:
    words = re.findall(rf"(?<![a-z])({SPLIT_WORD})(?![a-z])", str(file.relative_to(root).with_suffix("")).lower())
    return SPLIT_WORDS[words[-1]] if words else ""


def _read_split(file: Path, root: Path, categories: Sequence[str]) -> list[CocoImage]:
    """Reads the annotations of a split; a file that is missing is an image with a problem."""
    content, names = read_coco(file)
    if unknown := [name for name in categories if name not in names.values()]:
        known = ", ".join(dict.fromkeys(names.values()))
        raise DataError(f"config.data.box_classes: {unknown[0]!r} is not a category of {file}, which has {known}")
    entries = {image["id"]: image for image in content["images"]}
    rows: dict[Any, list[tuple]] = {key: [] for key in entries}
    seen = set()
    for number, one in enumerate(content["annotations"], 1):
        check_references(one, file, image_id=entries, category_id=names)
        if (own := repr(one["id"]) if "id" in one else f"number {number}") in seen:
            raise DataError(f"{file}: two annotations have the id {own}; expected different ids: {_REMEDY}")
        seen.add(own)
        where = f"{file}: annotation {own} of {entries[one['image_id']]['file_name']}"
        row = _checked_annotation(one, where)
        if names[one["category_id"]] in categories:
            rows[one["image_id"]].append((*row, categories.index(names[one["category_id"]])))
    folder = _image_folder(file, root)
    listed, images, paths = Images(folder, "put it there, or delete it from the annotations"), [], set()
    for key, entry in entries.items():
        name = PurePosixPath(entry["file_name"].replace("\\", "/"))
        if name in paths:
            raise DataError(f"{file}: two images have the file_name {entry['file_name']!r}; expected one: {_REMEDY}")
        paths.add(name)
        size = checked_size(entry["height"], entry["width"], f"{file}: {name}")
        try:
            image = listed.find(Annotated(entry["file_name"], None, [], file))[1]
        except DataError as error:
            image = RawFile(str(name), 0, bytes, str(error))
        images.append(CocoImage(str(name.with_suffix("")), image, size, _as_objects(rows[key])))
    if not images:
        raise DataError(f"{file}: no images; expected at least one")
    return images


def _image_folder(file: Path, root: Path) -> Path:
    """Returns the folder of the images of a file of annotations: that of its split's name, its own, or the root."""
    split = file.stem.removeprefix("instances_")
    for folder in (root / split, root / "images" / split):
        if folder.is_dir():
            return folder
    return file.parent if list_folder(file.parent) else root


def _checked_annotation(one: Mapping[str, Any], where: str) -> tuple[list[float], bool, float]:
    """Returns the box (x_min, y_min, x_max, y_max), `iscrowd` and the area of an annotation."""
    box = one.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)) or min(box[2:]) < 0:
        expected = "[x, y, width, height], finite numbers with width and height of at least 0"
        raise DataError(f"{where}: bbox is {box!r}; expected {expected}: {_REMEDY}")
    x, y, width, height = map(float, box)
    area = one.get("area", width * height)
    if not _is_finite(area) or area < 0:
        raise DataError(f"{where}: area is {area!r}; expected a finite number of at least 0: {_REMEDY}")
    if (crowd := one.get("iscrowd", 0)) not in (0, 1):
        raise DataError(f"{where}: iscrowd is {crowd!r}; expected 0 or 1: {_REMEDY}")
    return [x, y, x + width, y + height], bool(crowd), float(area)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _as_objects(rows: Sequence[tuple]) -> Objects:
    """Returns the objects of rows (box, crowd, area, class)."""
    boxes, crowd, areas, classes = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Objects(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(classes, np.int32),
        np.array(crowd, bool),
        np.array(areas, np.float64),
    )


def _cut(boxes: Float[np.ndarray, "n 4"], size: tuple[int, int]) -> Float[np.ndarray, "n 4"]:
    """Returns the parts of boxes inside an image of height and width `size`."""
    return np.clip(boxes, 0, [*size[::-1], *size[::-1]])


def _trainable(objects: Objects, size: tuple[int, int]) -> Bool[np.ndarray, " n"]:
    """Returns True for the objects that are not crowds and have an area inside their image."""
    inside = _cut(objects.boxes, size)
    return ~objects.crowd & (inside[:, 2:] > inside[:, :2]).all(axis=1)


def _verified(images: Sequence[CocoImage], on_error: str) -> tuple[list[CocoImage], tuple[str, ...]]:
    """Decodes every image in threads; returns the good ones with checksums, and one message per bad one."""

    def attempt(one: CocoImage) -> CocoImage | str:
        try:
            data = read_bytes(one.image)
            info = inspect_image(one.image, data, whole=True)
            if (info.height, info.width) != one.size:
                sizes = f"{info.height}×{info.width} (height×width), and annotated as {one.size[0]}×{one.size[1]}"
                turned = ", or save it without EXIF's orientation" * (info.orientation > 1)
                raise DataError(f"{one.image.path}: {sizes}; expected one size: annotate this image again{turned}")
            if info.dtype != "uint8" or info.channels not in (1, 3):
                found = f"an image of {info.channels} channels of {info.dtype}"
                raise DataError(f"{one.image.path}: {found}; expected grey or RGB of 8 bits: convert it")
        except DataError as error:
            if on_error == "raise":
                raise DataError(f"{error}. Or leave such images out: config.data.on_error=skip") from error
            return str(error)
        return one._replace(image=one.image._replace(checksum=zlib.crc32(data)))

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(attempt, images))
    good, skipped = ([each for each in found if isinstance(each, kind)] for kind in (CocoImage, str))
    if not good:
        raise DataError(f"all {len(images)} images of a split are unusable; expected at least one good. {skipped[0]}")
    return good, tuple(skipped)


def _describe_boxes(
    images: Sequence[CocoImage], split: str, label_set: LabelSet, max_boxes: int, held_out: str
) -> list[str]:
    """Returns lines for the user about the objects of a split; raises DataError if an image has too many, or all none.

    `held_out` describes the images that were held out.
    """
    counts, outside = np.zeros(label_set.num_classes - 1, int), 0
    for one in images:
        kept = _trainable(one.objects, one.size)
        if (count := int(kept.sum())) > max_boxes:
            raise DataError(f"{one.image.path}: {count} objects; config.data.max_boxes = {max_boxes}: raise it")
        counts += np.bincount(one.objects.classes[kept], minlength=len(counts))
        outside += int((~one.objects.crowd & ~kept).sum())
    names = label_set.names[1:]
    if not counts.any():
        categories = f"config.data.box_classes = {names!r}"
        raise DataError(f"{split}: no box of {categories} in {len(images)} image(s); expected at least one")
    lines = [f"{split}: {counts.sum()} box(es) in {len(images)} image(s)" + f"; {held_out}" * bool(held_out)]
    if outside:
        lines.append(f"{split}: {outside} box(es) have no area inside their image, and are not trained on")
    if absent := [name for name, count in zip(names, counts, strict=True) if not count]:
        lines.append(f"warning: {split} has no box of {', '.join(absent)}")
    return lines


def _digest(images: Sequence[CocoImage]) -> str:
    """Returns a short hash of the names, contents and objects of images."""

    def annotations(one: CocoImage) -> RawFile:
        data = b"".join(np.ascontiguousarray(values).tobytes() for values in one.objects)
        return RawFile("", len(data), bytes, checksum=zlib.crc32(data))

    return fingerprint({"": [Pair(one.name, one.image, annotations(one)) for one in images]})


def _to_json(one: CocoImage) -> list[Any]:
    return [one.name, to_listing(one.image), one.size, [values.tolist() for values in one.objects]]


def _from_listing(listing: Path, label_set: LabelSet, max_boxes: int) -> CocoSource:
    def images() -> Iterator[CocoImage]:
        for name, image, size, (boxes, classes, crowd, areas) in read_json(listing):
            objects = _as_objects(list(zip(boxes, crowd, areas, classes, strict=True)))
            yield CocoImage(name, from_listing(image), tuple(size), objects)

    return CocoSource(list(images()), label_set, max_boxes)
