"""Objects of masks, and their boxes: connected components of a class, or the pieces of drawn debris.

On the host each object gets an id of its own, which takes the place of the class in the label map, so that loading
and augmentation treat objects as they treat classes. On the device the boxes are those of the pixels of an id, and so
they fit the objects after any crop, zoom or rotation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer, UInt8

from segjax.data import road_debris
from segjax.data.io import DataError
from segjax.data.labels import VOID
from segjax.data.pairs import Example, Source

MAX_IDS = VOID - 1
"""Largest number of classes times `max_boxes`: ids are 1 to 254, 0 is the background and 255 is void."""


class ImageBoxes(NamedTuple):
    """Objects of a batch of images; N places per image, of which `where` marks those that are used.

    `crowd` and `areas` are those of COCO's annotations, see `segjax.metrics.detection_records`; None for masks.
    """

    boxes: Float[Array, "b n 4"]  # (x_min, y_min, x_max, y_max) in pixels, of edges, see `segjax.boxes`; 0 if unused
    classes: Int[Array, "b n"]
    where: Bool[Array, "b n"]
    crowd: Bool[Array, "b n"] | None = None
    areas: Float[Array, "b n"] | None = None


def object_ids(label: UInt8[np.ndarray, "h w"], classes: Sequence[int], max_boxes: int) -> UInt8[np.ndarray, "h w"]:
    """Returns the id of the object of each pixel: 1 + n · max_boxes + i for component i of class n of `classes`.

    n and i count from 0. Components are 8-connected. Void stays 255; all other pixels become 0.

    Raises: DataError if a class has more than `max_boxes` components, or classes times `max_boxes` exceeds `MAX_IDS`.

    >>> print(object_ids(np.array([[3, 0, 1, 3], [0, 3, 255, 0]], np.uint8), classes=(1, 3), max_boxes=2))
    [[  3   0   1   4]
     [  0   3 255   0]]
    """
    if (most := len(classes) * max_boxes) > MAX_IDS:
        way_out = f"lower it to {MAX_IDS // len(classes)} or less"
        got = f"config.data.max_boxes = {max_boxes} for each of {len(classes)} classes are {most} ids"
        raise DataError(f"{got}; expected at most {MAX_IDS}: {way_out}")
    ids = np.where(label == VOID, np.uint8(VOID), np.uint8(0))
    for number, train_id in enumerate(classes):
        count, components = cv2.connectedComponents((label == train_id).astype(np.uint8), connectivity=8)
        _check_count(count - 1, max_boxes)
        found = components > 0
        ids[found] = components[found] + number * max_boxes
    return ids


def fragment_ids(
    label: UInt8[np.ndarray, "h w"], debris: int, scene_seed: int, name: str, max_boxes: int
) -> UInt8[np.ndarray, "h w"]:
    """Returns the ids of the pieces of debris in a scene of `road_debris`, from 1, also where pieces touch.

    Args:
        label: that of the scene; its void stays 255.
        debris: train id of the debris.
        scene_seed: `config.data.scene_seed`.
        name: that of the scene, `scene_0000003`.
        max_boxes: as in `object_ids`.

    Raises: DataError if there are more than `max_boxes` pieces, or the scene is of another seed.

    >>> label, debris = road_debris.scene(0, 0, height=96, width=128).label, road_debris.DEBRIS
    >>> np.unique(object_ids(label, (debris,), 9)).tolist()
    [0, 1, 2, 3, 255]
    >>> np.unique(fragment_ids(label, debris, 0, "scene_0000000", 9)).tolist()  # two pieces touch
    [0, 1, 2, 3, 4, 255]
    """
    height, width = label.shape
    number = int(name.removeprefix("scene_"))
    ids = road_debris.fragments(scene_seed, number, height=height, width=width)
    if not np.array_equal(ids > 0, label == debris):
        raise DataError(f"it was drawn with another seed than config.data.scene_seed = {scene_seed}: set that seed")
    _check_count(int(ids.max()), max_boxes)
    return np.where(label == VOID, np.uint8(VOID), ids)


def _check_count(count: int, max_boxes: int) -> None:
    if count > max_boxes:
        raise DataError(f"{count} objects of one class; config.data.max_boxes = {max_boxes}: raise it")


def image_boxes(ids: Integer[ArrayLike, "b h w"], num_classes: int, max_boxes: int) -> ImageBoxes:
    """Returns the boxes of the `object_ids` of a batch of images, on the device, N = num_classes · max_boxes.

    An object that augmentation has moved out of the image has no pixel left, and no box.

    >>> found = image_boxes(jnp.array([[[0, 2, 2], [0, 2, 0]]]), num_classes=1, max_boxes=2)
    >>> print(found.boxes[0, 1], found.where)
    [1. 0. 3. 2.] [[False  True]]
    """
    places = num_classes * max_boxes

    def of_image(ids: Array) -> tuple[Array, Array]:
        rows, columns = (jax.lax.broadcasted_iota(jnp.int32, ids.shape, axis).ravel() for axis in (0, 1))
        place = jnp.where((ids > 0) & (ids <= places), ids.astype(jnp.int32) - 1, places).ravel()
        low, high = (
            [reduce(pixels, place, num_segments=places + 1)[:places] for pixels in (columns, rows)]
            for reduce in (jax.ops.segment_min, jax.ops.segment_max)
        )
        exists = high[0] >= low[0]  # an empty segment has the largest and the smallest integer
        boxes = jnp.stack([*low, *(edge + 1 for edge in high)], axis=-1).astype(jnp.float32)
        return jnp.where(exists[:, None], boxes, 0), exists

    boxes, where = jax.vmap(of_image)(jnp.asarray(ids))
    classes = jnp.repeat(jnp.arange(num_classes, dtype=jnp.int32), max_boxes)
    return ImageBoxes(boxes, jnp.broadcast_to(classes, where.shape), where)


class ObjectSource:
    """A split whose labels are the `object_ids` of some of its classes, by name; see `segjax.data.Source`.

    With `scene_seed`, that of `road_debris`, they are the `fragment_ids`.
    """

    def __init__(self, source: Source, box_classes: Sequence[str], max_boxes: int, scene_seed: int | None = None):
        self._source, self._box_classes, self._max_boxes = source, tuple(box_classes), max_boxes
        self._train_ids = [source.label_set.names.index(name) for name in box_classes]
        self._scene_seed = scene_seed
        if scene_seed is not None and self._box_classes != ("debris",):
            raise DataError(f'config.data.box_classes of road_debris must be ("debris",); got {self._box_classes!r}')
        for attribute in Source.__annotations__:
            setattr(self, attribute, getattr(source, attribute))

    def __reduce__(self):
        return ObjectSource, (self._source, self._box_classes, self._max_boxes, self._scene_seed)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        try:
            if self._scene_seed is not None:
                debris, scene = self._train_ids[0], (self._scene_seed, example["name"])
                label = fragment_ids(example["label"], debris, *scene, self._max_boxes)
            else:
                label = object_ids(example["label"], self._train_ids, self._max_boxes)
        except DataError as error:
            raise DataError(f"{example['name']}: {error}") from error
        return {**example, "label": label}

    def name(self, index: int) -> str:
        """Returns the name of example `index`, without decoding it."""
        return self._source.name(index)
