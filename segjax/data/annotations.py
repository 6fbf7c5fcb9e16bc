"""Annotations of labelling tools, read as pixels of objects and painted into index masks.

COCO JSON, labelme JSON, CVAT XML for images, and the class masks of Pascal VOC. Coordinates are continuous: pixel i
covers [i, i + 1), and it belongs to an outline if its centre is inside, so that two outlines with a common edge share
no pixel and leave no gap.
"""

import base64
import io
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from segjax.data.io import DataError, RawFile, as_data_error, list_folder, read_bytes
from segjax.data.labels import VOID, numbered_classes
from segjax.storage import StorageError, read_json

OVERLAPS = ("listed", "first", "small", "void")
"""Rules for pixels of several objects; see `paint`."""
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
    """Annotations of one form: the class names in the order of the source, and the images, read one by one."""

    form: str
    names: tuple[str, ...]
    count: int
    images: Iterator[Annotated]
    folder: Path  # where the images are looked for


def open_annotations(source: Path, *, crowd_is_void: bool = False, line_width: float | None = None) -> Annotations:
    """Opens annotations, whose form is found by their content.

    Args:
      source: a COCO or labelme JSON file, a CVAT XML file, or a folder with one of these, with labelme files at any
        depth, or with the `SegmentationClass` of Pascal VOC.
      crowd_is_void: make the crowds of COCO (`iscrowd`) void; otherwise they are pixels of their class.
      line_width: width in pixels of lines and points, which have no area; None refuses them.

    Raises: DataError if there are no annotations in these forms, or only boxes; reading an image raises it for an
    object that cannot be drawn.
    """
    if source.is_dir():
        if (source / "SegmentationClass").is_dir():
            return _open_voc(source)
        files = [source / path for path in list_folder(source, (".json", ".xml"))]
        kinds = {file: _kind(file) for file in files}
        found = {kind: [file for file in files if kinds[file] == kind] for kind in ("coco", "cvat", "labelme", "boxes")}
        if found["labelme"] and not found["coco"] and not found["cvat"]:
            return _open_labelme(found["labelme"], source, line_width)
        whole = found["coco"] + found["cvat"]
        if len(whole) > 1:
            several = ", ".join(str(file.relative_to(source)) for file in whole[:5])
            raise DataError(
                f"{source}: {len(whole)} files of annotations ({several}); name one, and repeat the command with "
                "--split=NAME for each"
            )
        if not whole:
            boxes = "; the XML files of Pascal VOC have boxes only, and boxes are not masks" * bool(found["boxes"])
            expected = "expected a COCO or labelme JSON file, a CVAT XML file, or the folder SegmentationClass"
            raise DataError(f"{source}: no annotations of objects with pixels; {expected}{boxes}")
        source = whole[0]
    kind = _kind(source)
    if kind == "coco":
        return _open_coco(source, crowd_is_void)
    if kind == "cvat":
        return _open_cvat(source, line_width)
    if kind == "labelme":
        return _open_labelme([source], source.parent, line_width)
    if kind == "boxes":
        raise DataError(f"{source}: Pascal VOC's XML files have boxes only, and boxes are not masks; expected masks")
    if not source.exists():
        raise DataError(f"{source}: expected a file or folder of annotations; it does not exist")
    raise DataError(f"{source}: expected a COCO or labelme JSON file, or an XML file of CVAT for images")


def _kind(file: Path) -> str:
    """Returns "coco", "labelme", "cvat" or "boxes" for a file of annotations, and "" for another one."""
    if file.suffix.lower() == ".json":
        try:
            content = read_json(file, {})
        except StorageError:
            return ""
        return "coco" if {"images", "annotations"} <= content.keys() else "labelme" if "shapes" in content else ""
    if file.suffix.lower() == ".xml":
        try:
            with file.open("rb") as opened:
                _, root = next(ElementTree.iterparse(opened, ["start"]))
            return {"annotations": "cvat", "annotation": "boxes"}.get(root.tag, "")
        except (OSError, ElementTree.ParseError):
            return ""
    return ""


def _open_coco(file: Path, crowd_is_void: bool) -> Annotations:
    size = {"width": float, "height": float}
    form = {
        "images": [{"id": object, "file_name": str} | size],
        "annotations": [{"image_id": object, "category_id": object}],
        "categories": [{"id": object, "name": str}],
    }
    try:
        content = read_json(file, form, "COCO annotations of objects")
    except StorageError as error:
        raise DataError(str(error)) from error
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects: dict[Any, list[dict]] = {image["id"]: [] for image in content["images"]}
    for one in content["annotations"]:
        for key, known in (("image_id", objects), ("category_id", names)):
            if one[key] not in known:
                raise DataError(f"{file}: annotation {one.get('id')}: its {key} {one[key]!r} is not in the file")
        objects[one["image_id"]].append(one)

    def read() -> Iterator[Annotated]:
        for image in content["images"]:
            height, width = int(image["height"]), int(image["width"])
            regions = []
            for one in objects[image["id"]]:
                where = f"{file}: annotation {one.get('id')} of {image['file_name']}"
                label = None if one.get("iscrowd") and crowd_is_void else names[one["category_id"]]
                regions.append(Region(label, *_coco_pixels(one.get("segmentation"), (height, width), where)))
            yield Annotated(image["file_name"], (height, width), regions, file)

    return Annotations("COCO", tuple(names.values()), len(objects), read(), file.parent)


def _coco_pixels(segmentation: Any, size: tuple[int, int], where: str) -> tuple[int, int, np.ndarray]:
    if isinstance(segmentation, dict):
        with as_data_error(f"{where}: expected a run-length encoding with counts and size"):
            counts, encoded_size = segmentation["counts"], tuple(segmentation["size"])
            if encoded_size != size:
                raise DataError(f"{where}: encoded for {encoded_size}; the image is {size}")
            counts = decompress(counts) if isinstance(counts, str) else counts
            return 0, 0, runs_to_mask(counts, size[::-1]).T
    if not segmentation:
        raise DataError(f"{where} has no segmentation, only a box; add one, or delete it")
    with as_data_error(f"{where}: expected polygons of at least 3 points, [[x, y, x, y, …], …]"):
        polygons = [np.array(one, float).reshape(-1, 2) for one in segmentation]
        if min(map(len, polygons)) < 3:
            raise ValueError(f"{min(map(len, polygons))} point(s)")
        return fill(polygons, size)


def decompress(counts: str) -> list[int]:
    """Returns the run lengths of COCO's compressed encoding, in which five bits and a flag make a character.

    From the third on, each length is the difference to the last but one (pycocotools, `rleFrString`).

    >>> decompress("52203")
    [5, 2, 2, 2, 5]
    """
    lengths: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:  # more follow
            continue
        if bits & 0x10:  # negative
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return lengths


def runs_to_mask(lengths: Sequence[int], size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Returns the mask of run lengths by rows, of which the first, third, … are outside.

    Raises: ValueError if they do not add up to the number of pixels.

    >>> runs_to_mask([1, 2, 1], (2, 2)).tolist()
    [[False, True], [True, False]]
    """
    if min(lengths, default=0) < 0 or sum(lengths) != size[0] * size[1]:
        raise ValueError(f"run lengths add up to {sum(lengths)}; expected {size[0] * size[1]}")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(size)


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
            data = base64.b64decode(found.get("imageData") or "")
            size = (found.get("imageHeight"), found.get("imageWidth"))
            size = size if all(isinstance(side, int) for side in size) else None
            if size is None and data:
                with as_data_error(f"{file}: imageData cannot be decoded"), Image.open(io.BytesIO(data)) as image:
                    size = (image.height, image.width)
            if size is None:
                raise DataError(f"{file}: expected imageHeight and imageWidth")
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
    kind, points = shape.get("shape_type") or "polygon", np.array(shape["points"], float).reshape(-1, 2)
    needed = {"polygon": 3, "oriented_rectangle": 3, "rectangle": 2, "circle": 2, "mask": 2}
    needed |= {"line": 2, "linestrip": 2, "point": 1, "points": 1}
    if kind not in needed:
        raise DataError(f"{where}: a shape of kind {kind!r}; known are {', '.join(needed)}")
    if len(points) < needed[kind]:
        raise DataError(f"{where}: a {kind} with {len(points)} point(s); expected at least {needed[kind]}")
    if kind in ("polygon", "oriented_rectangle"):
        return fill([points], size)
    if kind == "rectangle":
        return fill([_box(*points[0], *points[1])], size)
    if kind == "circle":
        return fill_ellipse(points[0], (np.hypot(*(points[1] - points[0])),) * 2, 0.0, size)
    if kind == "mask":
        with as_data_error(f"{where}: expected a PNG in base64"), io.BytesIO(base64.b64decode(shape["mask"])) as data:
            left, top = np.floor(points[0]).astype(int).tolist()
            return _clip(top, left, np.asarray(Image.open(data)).astype(bool), size)
    parts = points[:, None] if kind == "points" else [points]
    return _draw_lines(parts, size, line_width, where)


def _open_cvat(file: Path, line_width: float | None) -> Annotations:
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
                name, size = image.attrib["name"], (int(image.attrib["height"]), int(image.attrib["width"]))
            regions = []
            for shape in image:
                where = f"{file}: a {shape.tag} of {name}"
                if shape.tag != "tag":  # of the whole image
                    pixels = _cvat_pixels(shape, size, line_width, where)
                    regions.append(Region(shape.get("label", ""), *pixels, int(shape.get("z_order", 0))))
            yield Annotated(name, size, regions, file)

    return Annotations("CVAT", tuple(labels), len(images), read(), file.parent)


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
            return _clip(top, left, runs_to_mask(lengths, (height, width)), size)
        turn = np.deg2rad(float(shape.get("rotation", 0)))
        if shape.tag == "box":
            return fill([_box(*(float(shape.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr")), turn)], size)
        if shape.tag == "ellipse":
            x, y, *radii = (float(shape.attrib[key]) for key in ("cx", "cy", "rx", "ry"))
            return fill_ellipse(np.array((x, y)), tuple(radii), turn, size)
        points = np.array([point.split(",") for point in shape.attrib["points"].split(";")], float)
        if shape.tag == "polygon":
            return fill([points], size)
    return _draw_lines(points[:, None] if shape.tag == "points" else [points], size, line_width, where)


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
                    colour = (code >> 16, code >> 8 & 255, code & 255)
                    raise DataError(f"{file.path}: {colour} is not the colour of a class; expected those of {where}")
                regions.append(Region(codes[code], 0, 0, colours == code))
            yield Annotated(str(PurePosixPath(path).with_suffix("")), colours.shape, regions, Path(file.path))

    where = "labelmap.txt" if (folder / "labelmap.txt").is_file() else "Pascal VOC, or a labelmap.txt beside the folder"
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


def _box(left: float, top: float, right: float, bottom: float, turn: float = 0.0) -> Float[np.ndarray, "4 2"]:
    """Returns the corners of a box that is turned clockwise about its centre by `turn` radians."""
    corners, centre = (
        np.array([(left, top), (right, top), (right, bottom), (left, bottom)]),
        (left + right, top + bottom),
    )
    cos, sin = np.cos(turn), np.sin(turn)
    return (corners - np.array(centre) / 2) @ np.array([(cos, sin), (-sin, cos)]) + np.array(centre) / 2


def _window(low: np.ndarray, high: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns top, left, bottom and right of the pixels whose centres may lie between two points (x, y)."""
    limits = np.clip(np.floor([low[::-1], high[::-1] + 1]), 0, size).astype(int)
    return (*limits[0].tolist(), *np.maximum(*limits).tolist())


def fill(polygons: Sequence[Float[np.ndarray, "points 2"]], size: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """Returns top, left and pixels of the union of polygons of points (x, y), each filled by the even-odd rule.

    >>> fill([np.array([(1.0, 0.0), (3.0, 0.0), (3.0, 1.0), (1.0, 1.0)])], (2, 4))[2].astype(int).tolist()
    [[1, 1, 0], [0, 0, 0]]
    """
    points = np.concatenate(polygons)
    top, left, bottom, right = _window(points.min(axis=0), points.max(axis=0), size)
    union = np.zeros((bottom - top, right - left), bool)
    for polygon in polygons:
        (x, y), (next_x, next_y) = polygon.T, np.roll(polygon, -1, axis=0).T
        # One entry per edge and row whose centres it crosses. A pixel is inside if an odd number of these crossings is
        # to the left of its centre.
        first, last = (np.clip(np.ceil(f(y, next_y) - 0.5), top, bottom).astype(int) for f in (np.minimum, np.maximum))
        lengths = last - first
        edge = np.repeat(np.arange(len(x)), lengths)
        row = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + first[edge]
        at = x[edge] + (row + 0.5 - y[edge]) * (next_x - x)[edge] / (next_y - y)[edge]
        column = np.clip(np.ceil(at - 0.5), left, right).astype(int) - left
        crossings = np.zeros((union.shape[0], union.shape[1] + 1), np.int32)
        np.add.at(crossings, (row - top, column), 1)
        union |= np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1
    return top, left, union


def fill_ellipse(
    centre: Float[np.ndarray, "2"], radii: tuple[float, float], turn: float, size: tuple[int, int]
) -> tuple[int, int, np.ndarray]:
    """Returns top, left and pixels of an ellipse, turned clockwise by `turn` radians; see `fill`."""
    reach = max(radii)
    top, left, bottom, right = _window(centre - reach, centre + reach, size)
    dy, dx = np.arange(top, bottom)[:, None] + 0.5 - centre[1], np.arange(left, right)[None] + 0.5 - centre[0]
    along, across = np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx
    return top, left, (along * radii[1]) ** 2 + (across * radii[0]) ** 2 < (radii[0] * radii[1]) ** 2


def _draw_lines(
    lines: Sequence[Float[np.ndarray, "points 2"]], size: tuple[int, int], width: float | None, where: str
) -> tuple[int, int, np.ndarray]:
    """Returns top, left and the pixels whose centres are at most width / 2 from one of the lines."""
    if width is None:
        raise DataError(f"{where}: a line or point has no area; --line_width=3 draws it 3 pixels wide")
    points = np.concatenate(list(lines))
    top, left, bottom, right = _window(points.min(axis=0) - width / 2, points.max(axis=0) + width / 2, size)
    y, x = np.mgrid[top:bottom, left:right] + 0.5
    drawn = np.zeros(x.shape, bool)
    for line in lines:
        for start, end in zip(line[: max(1, len(line) - 1)], line[min(1, len(line) - 1) :], strict=True):
            step = end - start
            along = ((x - start[0]) * step[0] + (y - start[1]) * step[1]) / max(step @ step, 1e-12)
            along = np.clip(along, 0, 1)
            drawn |= np.hypot(x - start[0] - along * step[0], y - start[1] - along * step[1]) <= width / 2
    return top, left, drawn


def _clip(top: int, left: int, inside: np.ndarray, size: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """Returns a window without what is outside of the image."""
    first_row, first_column = max(0, -top), max(0, -left)
    inside = inside[first_row : max(0, size[0] - top), first_column : max(0, size[1] - left)]
    return top + first_row, left + first_column, inside


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
    names = tuple(chosen or names)
    own = next((name for name in names if name.lower() in _BACKGROUND), None)
    if own is None and not rest_is_void:
        own, names = "background", ("background", *names)
    ordered = ((own,) if own is not None else ()) + tuple(name for name in names if name != own)
    numbered_classes(ordered)  # refuses too many, and names that cannot be printed
    values = {name: i for i, name in enumerate(ordered)}
    # A number alone is not a name in a file of classes.
    return tuple(f"class {name}" if name.isdecimal() else name for name in ordered), values, VOID if rest_is_void else 0


class Images:
    """The images of a folder, which annotations name by their path, or by a name or stem that only one file has."""

    def __init__(self, folder: Path):
        self.folder, self.files = folder, list_folder(folder)
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
        if len(paths) != 1:
            found = f"{len(paths)} files of this name, {' and '.join(paths[:2])}" if paths else "no file of this name"
            remedy = "--images=FOLDER names the folder of the images"
            raise DataError(f"{one.source}: the image {one.file!r}: {found} in {self.folder}; {remedy}")
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
