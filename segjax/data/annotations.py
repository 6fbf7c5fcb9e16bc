"""Annotations of labelling tools, read as pixels of objects and painted into index masks.

COCO JSON, labelme JSON, CVAT XML for images, and the class masks of Pascal VOC.
"""

import base64
import io
import math
import os
import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from segjax.data.io import DataError, RawFile, as_data_error, list_folder, list_tree, read_bytes
from segjax.data.labels import VOID, numbered_classes
from segjax.data.shapes import box_corners, clip_window, decompress, draw_lines, fill, fill_ellipse, runs_to_mask
from segjax.storage import StorageError, read_json

OVERLAPS = ("listed", "first", "small", "void")
"""Rules for pixels of several objects; see `paint`."""
OVERLAP_VOID = 128
"""Value of void in the masks of `paint_classes`."""
_BACKGROUND = ("background", "_background_", "__background__")
_IGNORED = "__ignore__"  # labelme's name for void
# Pascal VOC 2012, in the order of the palette's indices.
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class Region(NamedTuple):
    """Pixels of one object: `inside` is a window of the image, whose first row and column are `top` and `left`."""

    label: str | None  # None: void
    top: int
    left: int
    inside: Bool[np.ndarray, "h w"]
    level: int = 0  # higher ones lie on top


class Annotated(NamedTuple):
    """The objects of one image."""

    file: str  # name of the image, as the annotations give it
    size: tuple[int, int] | None  # height and width, if they are given
    regions: list[Region]
    source: Path  # file of the annotations
    embedded: bytes = b""  # the image, if the annotations contain it


class Annotations(NamedTuple):
    """Annotations of one format: the class names in the order of the source, and the images, read one by one."""

    format: str
    names: tuple[str, ...]
    count: int
    images: Iterator[Annotated]
    folder: Path  # where the images are looked for


def open_annotations(source: Path, *, crowd_is_void: bool = False, line_width: float | None = None) -> Annotations:
    """Opens annotations, whose format is detected from their content.

    Args:
      source: a COCO or labelme JSON file, a CVAT XML file, or a folder with one of these, with labelme files at any
        depth, or with the `SegmentationClass` of Pascal VOC.
      crowd_is_void: make the crowds of COCO (`iscrowd`) void; otherwise they are pixels of their class.
      line_width: width in pixels of lines and points, which have no area; None refuses them.

    Raises: DataError if there are no annotations in these formats, or only boxes; reading an image raises it for an
    object that cannot be drawn.
    """
    folder = source.parent
    if source.is_dir():
        if (source / "SegmentationClass").is_dir():
            return _open_voc(source)
        found = _files_by_kind(source)
        whole = found["coco"] + found["cvat"]
        if found["labelme"] and not whole:
            return _open_labelme(found["labelme"], source, line_width)
        if len(whole) > 1:
            found = f"{len(whole)} files of annotations"
            raise DataError(f"{source}: {found}; convert each with its own command: {conversion(source)}")
        if not whole:
            boxes = "; the XML files of Pascal VOC have boxes only, and boxes are not masks" * bool(found["boxes"])
            expected = "expected a COCO or labelme JSON file, a CVAT XML file, or the folder SegmentationClass"
            raise DataError(f"{source}: no annotations of objects with pixels; {expected}{boxes}")
        source, folder = whole[0], _image_folder(whole[0], source)
    kind = annotation_format(source)
    if kind == "coco":
        return _open_coco(source, folder, crowd_is_void)
    if kind == "cvat":
        return _open_cvat(source, folder, line_width)
    if kind == "labelme":
        return _open_labelme([source], folder, line_width)
    if kind == "boxes":
        raise DataError(f"{source}: Pascal VOC's XML files have boxes only, and boxes are not masks; expected masks")
    if not source.exists():
        raise DataError(f"{source}: expected a file or folder of annotations; it does not exist. Correct the path")
    raise DataError(f"{source}: expected a COCO or labelme JSON file, or an XML file of CVAT for images")


def conversion(root: Path) -> str:
    """Returns the commands that turn the annotations below a folder into masks; "" if there are none.

    Several files are one command each, for the split in the file's path, or else named like the file.
    """
    found, output = _files_by_kind(root), f"--output={shlex.quote(root.absolute().name + '_masks')}"
    files = found["coco"] + found["cvat"]
    if len(files) < 2:
        return f"segjax data masks {shlex.quote(str(root))} {output}" if files or found["labelme"] else ""
    commands = []
    for file in files:
        words, folder = re.findall("train|val|test", str(file.relative_to(root)).lower()), _image_folder(file, root)
        options = [f"--split={words[-1] if words else file.stem}", f"--images={folder}"]
        options = options if folder != file.parent else options[:1]
        commands.append(f"segjax data masks {shlex.quote(str(file))} {output} {shlex.join(options)}")
    return " && ".join(commands)


def _image_folder(file: Path, root: Path) -> Path:
    """Returns the folder of a file of annotations, or the whole `root` if that has no images."""
    return file.parent if list_folder(file.parent) else root


def _files_by_kind(root: Path) -> dict[str, list[Path]]:
    """Returns the files of annotations below a folder by their format; see `annotation_format`."""
    files = [root / path for path in list_tree(root, (".json", ".xml"))[0]]
    kinds = {file: annotation_format(file) for file in files}
    return {kind: [file for file in files if kinds[file] == kind] for kind in ("coco", "cvat", "labelme", "boxes")}


def annotation_format(file: Path) -> str:
    """Returns "coco", "labelme", "cvat" or "boxes" for a file of annotations, and "" for another one."""
    if file.suffix.lower() == ".json":
        try:
            content = read_json(file, {})
        except StorageError:
            return ""
        if {"images", "annotations", "categories"} <= content.keys():
            return "coco"
        return "labelme" if "shapes" in content else ""
    if file.suffix.lower() == ".xml":
        try:
            with file.open("rb") as opened:
                _, root = next(ElementTree.iterparse(opened, ["start"]))
            return {"annotations": "cvat", "annotation": "boxes"}.get(root.tag, "")
        except (OSError, ElementTree.ParseError):
            return ""
    return ""


def read_coco(file: Path) -> tuple[dict[str, Any], dict[Any, str]]:
    """Returns the content of a file of COCO annotations, and the names of its categories by id.

    Raises: DataError if it is not COCO's JSON, or two images or categories have the same id.
    """
    form = {
        "images": [{"id": object, "file_name": str, "width": float, "height": float}],
        "annotations": [{"image_id": object, "category_id": object}],
        "categories": [{"id": object, "name": str}],
    }
    try:
        content = read_json(file, form, "COCO annotations of objects")
    except StorageError as error:
        raise DataError(str(error)) from error
    for kind in ("images", "categories"):
        check_ids(content[kind], kind, file)
    return content, {category["id"]: category["name"] for category in content["categories"]}


def _open_coco(file: Path, folder: Path, crowd_is_void: bool) -> Annotations:
    content, names = read_coco(file)
    objects: dict[Any, list[dict]] = {image["id"]: [] for image in content["images"]}
    for one in content["annotations"]:
        check_references(one, file, image_id=objects, category_id=names)
        objects[one["image_id"]].append(one)

    def read() -> Iterator[Annotated]:
        for image in content["images"]:
            height, width = checked_size(image["height"], image["width"], f"{file}: {image['file_name']}")
            regions = []
            for one in objects[image["id"]]:
                where = f"{file}: annotation {one.get('id')} of {image['file_name']}"
                label = None if one.get("iscrowd") and crowd_is_void else names[one["category_id"]]
                regions.append(Region(label, *_coco_pixels(one.get("segmentation"), (height, width), where)))
            yield Annotated(image["file_name"], (height, width), regions, file)

    return Annotations("COCO", tuple(names.values()), len(objects), read(), folder)


def check_ids(entries: Sequence[Mapping[str, Any]], kind: str, file: Path) -> None:
    """Raises DataError unless the ids are numbers or texts that differ from each other."""
    seen = set()
    for entry in entries:
        number = entry["id"]
        if not isinstance(number, int | float | str):
            raise DataError(f"{file}: {kind}: the id {number!r}; expected a number or a text")
        if number in seen:
            remedy = f"expected one; give the {kind} and their annotations different ids"
            raise DataError(f"{file}: {kind}: two have the id {number!r}; {remedy}")
        seen.add(number)


def check_references(annotation: Mapping[str, Any], file: Path, **known: Container[Any]) -> None:
    """Raises DataError unless each of the named ids of a COCO annotation is known."""
    for key, ids in known.items():
        if isinstance(annotation[key], list | dict) or annotation[key] not in ids:
            missing = f"its {key} {annotation[key]!r} is not in the file"
            raise DataError(f"{file}: annotation {annotation.get('id')}: {missing}; export the annotations again")


def checked_size(height: int | float, width: int | float, where: str) -> tuple[int, int]:
    """Returns the height and width as integers; raises DataError for a side without a pixel or without an end."""
    if not all(1 <= side < math.inf for side in (height, width)):
        raise DataError(f"{where}: a size of {height}×{width} (height×width); expected at least 1 pixel each")
    return int(height), int(width)


def _finite(points: Float[np.ndarray, "..."], where: str) -> Float[np.ndarray, "..."]:
    """Returns the coordinates; raises DataError if one is NaN or infinite, which both JSON and XML can contain."""
    if not np.isfinite(points).all():
        raise DataError(f"{where}: a coordinate is NaN or infinite; expected finite ones: correct or delete the object")
    return points


def _coco_pixels(segmentation: Any, size: tuple[int, int], where: str) -> tuple[int, int, np.ndarray]:
    if isinstance(segmentation, dict):
        with as_data_error(f"{where}: expected a run-length encoding with counts and size"):
            counts, encoded_size = segmentation["counts"], tuple(segmentation["size"])
            if encoded_size != size:
                sizes = f"encoded for {encoded_size[0]}×{encoded_size[1]}; the image is {size[0]}×{size[1]}"
                raise DataError(f"{where}: {sizes}; export the annotations again")
            counts = decompress(counts) if isinstance(counts, str) else counts
            return 0, 0, runs_to_mask(counts, size[::-1]).T
    if not segmentation:
        raise DataError(f"{where} has no segmentation, only a box; add one, or delete it")
    with as_data_error(f"{where}: expected polygons of at least 3 points, [[x, y, x, y, …], …]"):
        polygons = [_finite(np.array(one, float), where).reshape(-1, 2) for one in segmentation]
        if min(map(len, polygons)) < 3:
            raise ValueError(f"{min(map(len, polygons))} point(s)")
        return fill(polygons, size)


def _open_labelme(files: list[Path], folder: Path, line_width: float | None) -> Annotations:
    form = {"shapes": [{"label": str, "points": [[float]]}], "imagePath": str}

    def content(file: Path) -> dict[str, Any]:
        try:
            return read_json(file, form, "labelme annotations")
        except StorageError as error:
            raise DataError(str(error)) from error

    labels = {shape["label"] for file in files for shape in content(file)["shapes"]} - {_IGNORED}

    def read() -> Iterator[Annotated]:
        for file in files:
            found = content(file)
            with as_data_error(f"{file}: imageData is not an image in base64"):
                data = base64.b64decode(found.get("imageData") or "")
            size = (found.get("imageHeight"), found.get("imageWidth"))
            size = size if all(isinstance(side, int) for side in size) else None
            if size is None and data:
                with as_data_error(f"{file}: imageData cannot be decoded"), Image.open(io.BytesIO(data)) as image:
                    size = (image.height, image.width)
            if size is None:
                raise DataError(f"{file}: expected imageHeight and imageWidth")
            size = checked_size(*size, str(file))
            regions = []
            for i, shape in enumerate(found["shapes"], 1):
                where = f"{file}: shape {i}, {shape['label']!r}"
                label = None if shape["label"] == _IGNORED else shape["label"]
                regions.append(Region(label, *_labelme_pixels(shape, size, line_width, where)))
            # Its name as from the folder; an image elsewhere is named like its annotations.
            path = os.path.relpath(file.parent / PureWindowsPath(found["imagePath"]).as_posix(), folder)
            if path.startswith(".."):
                path = file.relative_to(folder).with_suffix(os.path.splitext(path)[1])
            yield Annotated(Path(path).as_posix(), size, regions, file, data)

    return Annotations("labelme", tuple(sorted(labels)), len(files), read(), folder)


def _labelme_pixels(
    shape: dict[str, Any], size: tuple[int, int], line_width: float | None, where: str
) -> tuple[int, int, np.ndarray]:
    kind = shape.get("shape_type") or "polygon"
    with as_data_error(f"{where}: expected points [[x, y], …]"):
        points = _finite(np.array(shape["points"], float), where).reshape(-1, 2)
    needed = {"polygon": 3, "oriented_rectangle": 3, "rectangle": 2, "circle": 2, "mask": 2}
    needed |= {"line": 2, "linestrip": 2, "point": 1, "points": 1}
    if kind not in needed:
        raise DataError(f"{where}: a shape of kind {kind!r}; known are {', '.join(needed)}")
    if len(points) < needed[kind]:
        raise DataError(f"{where}: a {kind} with {len(points)} point(s); expected at least {needed[kind]}")
    if kind in ("polygon", "oriented_rectangle"):
        return fill([points], size)
    if kind == "rectangle":
        return fill([box_corners(*points[0], *points[1])], size)
    if kind == "circle":
        return fill_ellipse(points[0], (np.hypot(*(points[1] - points[0])),) * 2, 0.0, size)
    if kind == "mask":
        with as_data_error(f"{where}: expected a PNG in base64"), io.BytesIO(base64.b64decode(shape["mask"])) as data:
            left, top = np.floor(points[0]).astype(int).tolist()
            return clip_window(top, left, np.asarray(Image.open(data)).astype(bool), size)
    parts = points[:, None] if kind == "points" else [points]
    return draw_lines(parts, size, line_width, where)


def _open_cvat(file: Path, folder: Path, line_width: float | None) -> Annotations:
    with as_data_error(f"{file}: expected an XML file of CVAT for images"):
        root = ElementTree.parse(file).getroot()
    images = root.findall("image")
    if not images:
        hint = "; it has tracks: export the task as 'CVAT for images'" * (root.find("track") is not None)
        raise DataError(f"{file}: no image is annotated; expected <image> elements{hint}")
    labels = dict.fromkeys(name.text or "" for name in root.findall("meta//labels/label/name"))
    labels |= dict.fromkeys(shape.get("label", "") for image in images for shape in image if shape.tag != "tag")

    def read() -> Iterator[Annotated]:
        for image in images:
            with as_data_error(f"{file}: expected name, width and height of each image"):
                name, height, width = image.attrib["name"], int(image.attrib["height"]), int(image.attrib["width"])
            size = checked_size(height, width, f"{file}: {name}")
            regions = []
            for shape in image:
                where = f"{file}: a {shape.tag} of {name}"
                if shape.tag != "tag":  # of the whole image
                    pixels = _cvat_pixels(shape, size, line_width, where)
                    with as_data_error(f"{where}: expected a whole number as z_order"):
                        level = int(shape.get("z_order", 0))
                    regions.append(Region(shape.get("label", ""), *pixels, level))
            yield Annotated(name, size, regions, file)

    return Annotations("CVAT", tuple(labels), len(images), read(), folder)


def _cvat_pixels(
    shape: ElementTree.Element, size: tuple[int, int], line_width: float | None, where: str
) -> tuple[int, int, np.ndarray]:
    kinds = ("polygon", "box", "ellipse", "mask", "polyline", "points")
    if shape.tag not in kinds:
        raise DataError(f"{where}: its pixels are not defined; expected one of {', '.join(kinds)}")
    with as_data_error(f"{where}: a value is missing or not a number"):
        if shape.tag == "mask":
            left, top, width, height = (int(float(shape.attrib[key])) for key in ("left", "top", "width", "height"))
            lengths = [int(length) for length in shape.attrib["rle"].split(",")]
            return clip_window(top, left, runs_to_mask(lengths, (height, width)), size)
        sides = {"box": ("xtl", "ytl", "xbr", "ybr"), "ellipse": ("cx", "cy", "rx", "ry")}
        if shape.tag in sides:
            numbers = np.array([shape.get("rotation", 0), *(shape.attrib[key] for key in sides[shape.tag])], float)
            turn, *numbers = _finite(numbers, where).tolist()
            turn = np.deg2rad(turn)
            if shape.tag == "box":
                return fill([box_corners(*numbers, turn)], size)
            return fill_ellipse(np.array(numbers[:2]), tuple(numbers[2:]), turn, size)
        points = _finite(np.array([point.split(",") for point in shape.attrib["points"].split(";")], float), where)
        if shape.tag == "polygon":
            return fill([points], size)
    return draw_lines(points[:, None] if shape.tag == "points" else [points], size, line_width, where)


def _open_voc(folder: Path) -> Annotations:
    masks = list_folder(folder / "SegmentationClass", (".png",))
    if not masks:
        raise DataError(f"{folder / 'SegmentationClass'}: no PNG; expected the class masks of Pascal VOC")
    table = _voc_colours(folder / "labelmap.txt")
    # Where the tools write a class's border, 224, 224, 192, and black of a table without it.
    codes = {red << 16 | green << 8 | blue: name for name, (red, green, blue) in table.items()}
    images = folder / "JPEGImages"

    def read() -> Iterator[Annotated]:
        for path, file in masks.items():
            with as_data_error(f"{file.path}: cannot be decoded"), Image.open(io.BytesIO(read_bytes(file))) as image:
                colours = np.asarray(image.convert("RGB")).astype(np.int32) @ (1 << 16, 1 << 8, 1)
            regions = []
            for code in np.unique(colours).tolist():
                if code not in codes:
                    unknown = f"#{code:06x} is not the colour of a class in {where}"
                    raise DataError(f"{file.path}: {unknown}; add it to labelmap.txt, or correct the mask")
                regions.append(Region(codes[code], 0, 0, colours == code))
            yield Annotated(str(PurePosixPath(path).with_suffix("")), colours.shape, regions, Path(file.path))

    where = "labelmap.txt" if (folder / "labelmap.txt").is_file() else "Pascal VOC, and there is no labelmap.txt"
    names = tuple(name for name in table if name is not None)
    return Annotations("Pascal VOC", names, len(masks), read(), images if images.is_dir() else folder)


def _voc_colours(file: Path) -> dict[str | None, tuple[int, ...]]:
    """Returns the colour of each class, and of void (None): those of a tool's `labelmap.txt`, or Pascal VOC's."""
    colours: dict[str | None, tuple[int, ...]] = {None: (224, 224, 192)}
    if not file.is_file():
        palette = numbered_classes(VOC_CLASSES[1:]).palette.tolist()
        return colours | dict(zip(VOC_CLASSES, [(0, 0, 0), *map(tuple, palette)], strict=True))
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.partition(":")
            with as_data_error(f"{file}: expected lines NAME:RED,GREEN,BLUE:…; got {line!r}"):
                red, green, blue = (int(part) for part in rest.split(":")[0].split(","))
            colours[name] = (red, green, blue)
    return colours


def class_values(
    names: Sequence[str], chosen: Sequence[str] = (), *, rest_is_void: bool = False
) -> tuple[tuple[str, ...], dict[str, int], int]:
    """Returns the class names in the order of their mask values, the value of each label, and that of all other pixels.

    The others are "background", value 0, unless they are void. A class of the annotations named "background", or as
    labelme writes it, "_background_", is that one.

    Args:
      names: the classes of the annotations.
      chosen: those to paint, in the order of their values; (): all.
      rest_is_void: pixels without an object are void.

    >>> class_values(["cat", "dog"])
    (('background', 'cat', 'dog'), {'background': 0, 'cat': 1, 'dog': 2}, 0)
    """
    if unknown := [name for name in chosen if name not in names]:
        raise DataError(f"--classes: {unknown[0]!r} is not a class of the annotations; they have {', '.join(names)}")
    own = next((name for name in names if name.lower() in _BACKGROUND), None)
    names = tuple(chosen or names)
    if own not in names:  # left out, it would not cut the holes of objects
        own = None if rest_is_void else own or "background"
    ordered = ((own,) if own is not None else ()) + tuple(name for name in names if name != own)
    numbered_classes(ordered)  # refuses too many, and names that cannot be printed
    values = {name: i for i, name in enumerate(ordered)}
    # A number alone is not a name in a file of classes.
    return tuple(f"class {name}" if name.isdecimal() else name for name in ordered), values, VOID if rest_is_void else 0


class Images:
    """The images of a folder, which annotations name by their path, or by a name or stem that only one file has.

    `remedy` ends the error of an image that is missing.
    """

    def __init__(self, folder: Path, remedy: str = "--images=FOLDER names the folder of the images"):
        self.folder, self.files, self._remedy = folder, list_folder(folder), remedy
        self._paths: dict[str, list[str]] = {}
        for path in self.files:
            for name in (PurePosixPath(path).name, PurePosixPath(path).stem):
                self._paths.setdefault(name, []).append(path)

    def find(self, one: Annotated) -> tuple[str, RawFile]:
        """Returns the path of an annotated image within the folder, and its file.

        Raises: DataError if there is no such file, or several.
        """
        name = PureWindowsPath(one.file).as_posix()
        paths = [name] if name in self.files else self._paths.get(PurePosixPath(name).name, [])
        if not paths and one.embedded:
            return name, RawFile(f"{one.source} (imageData)", len(one.embedded), lambda: one.embedded)
        if len(paths) != 1:
            found = f"{len(paths)} files of this name, {' and '.join(paths[:2])}" if paths else "no file of this name"
            raise DataError(f"{one.source}: the image {one.file!r}: {found} in {self.folder}; {self._remedy}")
        return paths[0], self.files[paths[0]]


def paint(
    regions: Sequence[Region], size: tuple[int, int], values: Mapping[str, int], *, rest: int, overlap: str
) -> tuple[UInt8[np.ndarray, "H W"], int]:
    """Paints the objects of an image; returns the mask, and the number of pixels that objects of two classes share.

    Args:
      regions: the objects, in the order of their source; those whose label is not in `values` are left out.
      size: height and width.
      values: the value of each class.
      rest: the value of the other pixels.
      overlap: which object gets the pixels of several: the last one "listed", after those of a lower level; the
        "first" one; the "small" one, by its number of pixels; or none of them, "void".
    """
    shown = [one for one in regions if one.label is None or one.label in values]
    order = sorted(shown, key=(lambda one: -int(one.inside.sum())) if overlap == "small" else (lambda one: one.level))
    mask, painted, shared = np.full(size, rest, np.uint8), np.zeros(size, bool), np.zeros(size, bool)
    for one in reversed(order) if overlap == "first" else order:
        value = VOID if one.label is None else values[one.label]
        window = np.s_[one.top : one.top + one.inside.shape[0], one.left : one.left + one.inside.shape[1]]
        shared[window] |= one.inside & painted[window] & (mask[window] != value)
        painted[window] |= one.inside
        mask[window][one.inside] = value
    if overlap == "void":
        mask[shared] = VOID
    return mask, int(shared.sum())


def paint_classes(
    regions: Sequence[Region], size: tuple[int, int], values: Mapping[str, int], count: int
) -> UInt8[np.ndarray, "count H W"]:
    """Paints one mask per class of 1 to `count`, in which objects of other classes hide nothing.

    Pixels are 255 in the class, 0 elsewhere, and `OVERLAP_VOID` where an object of void is. `values` is that of
    `paint`.
    """
    masks = np.zeros((count, *size), np.uint8)
    for value in range(1, count + 1):
        own = [one for one in regions if one.label is not None and values.get(one.label) == value]
        for one in (*own, *(one for one in regions if one.label is None)):
            window = np.s_[one.top : one.top + one.inside.shape[0], one.left : one.left + one.inside.shape[1]]
            masks[value - 1][window][one.inside] = OVERLAP_VOID if one.label is None else 255
    return masks
