import pickle
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.data import DataError, road_debris
from segjax.data.augment import augment, example_keys
from segjax.data.labels import VOID
from segjax.data.objects import ObjectSource, fragment_ids, image_boxes, object_ids

# Two objects of class 1, of which one is L-shaped; one of class 2 that touches the border; void; class 3.
LABEL = np.zeros((12, 16), np.uint8)
LABEL[1:4, 1:3] = LABEL[3, 1:6] = 1
LABEL[6:8, 9:14] = 1
LABEL[9:, 12:] = 2
LABEL[0, 15], LABEL[5, :4] = VOID, 3
BOXES = [[1, 1, 6, 4], [9, 6, 14, 8], [12, 9, 16, 12]]
find = jax.jit(image_boxes, static_argnums=(1, 2))


class Masks(list):
    """A split of masks without images."""

    label_set = SimpleNamespace(names=("road", "stone", "tyre", "paint"))
    channels, value_range, dtype, native_size, sizes = 3, None, "uint8", (12, 16), [(12, 16)]
    unsure_turns, skipped, absent, void, pixels, notes, digest = 0, (), (), None, None, (), "0"

    def name(self, index):
        return f"scene_{index}"

    def __getitem__(self, index):
        return {"image": np.zeros((12, 16, 3), np.uint8), "label": super().__getitem__(index), "name": f"scene_{index}"}


def test_image_boxes_are_those_of_the_components():
    found = find(object_ids(LABEL, (1, 2), 3)[None], 2, 3)
    assert found.where.tolist() == [[True, True, False, True, False, False]]
    assert found.boxes[found.where].tolist() == BOXES
    assert found.classes[found.where].tolist() == [0, 0, 1]
    assert not found.boxes[~found.where].any()


def test_object_ids_join_diagonal_neighbours():
    assert len(np.unique(object_ids(np.eye(3, dtype=np.uint8), (1,), 5))) == 2


def test_object_ids_keep_void():
    ids = object_ids(LABEL, (3,), 1)
    assert (ids == VOID).sum() == 1
    assert (ids == 1).sum() == 4


def test_too_many_objects_are_an_error_that_names_the_image():
    source = ObjectSource(Masks([LABEL]), ("stone",), 1)
    with pytest.raises(DataError, match=r"scene_0: 2 objects .* config\.data\.max_boxes = 1: raise it"):
        source[0]


def test_object_ids_of_too_many_places():
    with pytest.raises(DataError, match=r"max_boxes = 200 for each of 2 classes are 400 ids; .*lower it to 127"):
        object_ids(LABEL, (1, 2), 200)


def test_object_source_survives_pickling_and_passes_attributes_on():
    source = pickle.loads(pickle.dumps(ObjectSource(Masks([LABEL]), ("tyre",), 1)))
    assert len(source) == 1
    assert source.label_set.names[2] == "tyre"
    assert (source[0]["label"] == 1).sum() == 12


def test_fragment_ids_cover_the_debris_and_separate_pieces_that_touch():
    label = road_debris.scene(0, 0, height=96, width=128).label
    ids = fragment_ids(label, road_debris.DEBRIS, 0, "scene_0000000", 4)
    np.testing.assert_array_equal((ids > 0) & (ids < VOID), label == road_debris.DEBRIS)
    np.testing.assert_array_equal(ids == VOID, label == VOID)
    assert len(np.unique(ids)) > len(np.unique(object_ids(label, (road_debris.DEBRIS,), 4)))


def test_object_source_of_scenes_has_their_fragments():
    masks = Masks([road_debris.scene(5, 0, height=64, width=96).label])
    masks.label_set = SimpleNamespace(names=road_debris.SCENE_CLASSES)
    source = pickle.loads(pickle.dumps(ObjectSource(masks, ("debris",), 9, scene_seed=5)))
    np.testing.assert_array_equal(source[0]["label"] % VOID, road_debris.fragments(5, 0, height=64, width=96))


def test_fragment_ids_of_another_seed():
    label = road_debris.scene(5, 0, height=64, width=96).label
    with pytest.raises(DataError, match=r"config\.data\.scene_seed = 6"):
        fragment_ids(label, road_debris.DEBRIS, 6, "scene_0000000", 9)


def test_object_source_of_scenes_has_debris_only():
    masks = Masks([])
    masks.label_set = SimpleNamespace(names=road_debris.SCENE_CLASSES)
    with pytest.raises(DataError, match=r"config\.data\.box_classes"):
        ObjectSource(masks, ("road",), 9, scene_seed=5)


def test_boxes_fit_what_a_rotated_crop_shows_of_the_objects():
    options = {"size": (12, 16), "flip": False, "brightness": 0.0, "contrast": 0.0, "mean": (0.5,), "std": (0.5,)}
    options |= {"crop_fraction": 0.6, "scale": (1.0, 1.0), "rotation": 40.0}
    images = jnp.zeros((2, 12, 16, 1), jnp.uint8)
    ids = jnp.asarray(np.stack([object_ids(LABEL, (1, 2), 2)] * 2))
    keys = example_keys(jax.random.key(0), 0, jnp.arange(2))
    _, shown = jax.jit(lambda images, ids, keys: augment(images, ids, keys, **options))(images, ids, keys)
    found = find(shown, 2, 2)
    assert 0 < found.where.sum() < 6  # some objects have left
    for image, place in np.argwhere(found.where):
        rows, columns = np.nonzero(np.asarray(shown[image]) == place + 1)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert found.boxes[image, place].tolist() == expected
    assert set(np.unique(shown)) - {0, VOID} == set(np.flatnonzero(found.where.any(axis=0)) + 1)
