"""Folders with one mask per class."""

import pickle
from itertools import product

import numpy as np
import pytest

from segjax.data import VOID, DataError, Source, check_split, class_pixels, open_split
from segjax.data.labels import class_combinations, overlapping_classes
from segjax.data.multilabel import combine

SIZE = (6, 8)
RUST, CRACK = np.zeros((2, *SIZE), bool)
RUST[1:5, 1:5], CRACK[3:, 4:] = True, True  # both in the pixels (3, 4) and (4, 4)


@pytest.fixture
def folder(make, tmp_path):
    """Returns `folder(count, masks, value)`: a root of images, and masks in folders of the classes."""

    def write(count=4, masks=("masks/rust", "masks/crack"), value=255):
        for i, (path, present) in product(range(count), zip(masks, (RUST, CRACK), strict=True)):
            make.put(tmp_path / "images" / f"{i}.png", make.encoded(make.image(i, SIZE)))
            make.put(tmp_path / path / f"{i}.png", make.encoded(present * np.uint8(value)))
        return tmp_path

    return write


@pytest.fixture
def opened(config):
    """Returns `opened(root, split, **fields)`, the split of a folder of rust and crack."""

    def open_folder(root, split="train", **fields):
        fields = {"class_names": ("rust", "crack"), "void_values": (), "mask_threshold": None} | fields
        return open_split(config("folder", multilabel=True, manual_dir=str(root), **fields), split)

    return open_folder


def classes_of(source, index=0):
    return np.moveaxis(source.label_set.combinations[source[index]["label"]], -1, 0)


def test_open_split_joins_the_masks_of_the_classes(folder, opened):
    source = opened(folder(), val_fraction=0.3)
    assert isinstance(source, Source)
    assert source.label_set.names == ("rust", "crack")
    for i in range(len(source)):
        np.testing.assert_array_equal(classes_of(source, i), [RUST, CRACK])
    assert (source.native_size, source.absent, source.void) == (SIZE, [], 0.0)
    assert source.pixels == [RUST.sum() * len(source), CRACK.sum() * len(source)]
    assert "rust: train: images/{stem}.png with masks/rust/{stem}.png" in source.notes[0]


def test_class_pixels_counts_pixels_without_a_class_first(folder, opened):
    counts = class_pixels(opened(folder(2), "all"))
    np.testing.assert_array_equal(counts, [[(~(RUST | CRACK)).sum(), RUST.sum(), CRACK.sum()]] * 2)


def test_open_split_splits_images_as_for_one_mask(folder, opened, make):
    root = folder(9)
    names = [{source.name(i) for i in range(len(source))} for source in (opened(root), opened(root, "val"))]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {str(i) for i in range(9)}


def test_multilabel_source_is_equal_in_another_process(folder, opened):
    source = opened(folder())
    again = pickle.loads(pickle.dumps(source))
    assert (again.digest, len(again), again.name(0)) == (source.digest, len(source), source.name(0))
    np.testing.assert_array_equal(again[1]["label"], source[1]["label"])


def test_open_split_digest_depends_on_every_mask(folder, opened, make):
    root = folder()
    before = opened(root, "all").digest
    make.put(root / "masks/crack/0.png", make.encoded(RUST * np.uint8(255)))
    assert opened(root, "all").digest != before


def test_open_split_pattern_of_masks_beside_images(folder, opened, make, tmp_path):
    for i in range(3):
        make.put(tmp_path / "all" / f"{i}.png", make.encoded(make.image(i, SIZE)))
        for name, present in (("rust", RUST), ("crack", CRACK)):
            make.put(tmp_path / "all" / f"{i}_{name}.png", make.encoded(present * np.uint8(1)))
    np.testing.assert_array_equal(classes_of(opened(tmp_path, masks="{stem}_{class}")), [RUST, CRACK])


def test_open_split_threshold_and_void_values(folder, opened, make):
    root = folder(value=100)
    assert opened(root, mask_threshold=128).absent == ["rust", "crack"]
    mask = RUST * np.uint8(255)
    mask[0] = 9
    make.put(root / "masks/rust/0.png", make.encoded(mask))
    source = opened(root, "all", void_values=(9,))
    label = source[0]["label"]
    assert (label[0] == VOID).all()  # of all classes
    np.testing.assert_array_equal(source.label_set.combinations[label[1:]][..., 1], CRACK[1:])
    assert source.void == SIZE[1] / (4 * RUST.size)


def test_check_split_names_classes_without_a_pixel(folder, opened):
    source = opened(folder(value=0))
    expected = "warning: train has no pixel of rust, crack. If this is wrong, set config.data.mask_threshold"
    assert check_split(source, "train")[0].startswith(expected)


def test_open_split_left_out_files_are_those_that_no_class_uses(folder, opened, make):
    root = folder()
    make.put(root / "masks/spall/0.png", make.encoded(RUST * np.uint8(255)))
    (line,) = opened(root).notes[1:]
    assert line.endswith("masks/spall/0.png")
    assert line.startswith("left out 1 path ")


def test_open_split_mask_missing_for_one_class(folder, opened):
    root = folder()
    (root / "masks/crack/2.png").unlink()
    with pytest.raises(DataError, match=r"class crack: .*2.png: an image without a mask; expected a mask named '2'"):
        opened(root)
    source = opened(root, "all", on_error="skip")
    assert [source.name(i) for i in range(len(source))] == ["0", "1", "3"]
    assert len(source.skipped) == 1
    assert "2.png: an image without a mask" in source.skipped[0]
    np.testing.assert_array_equal(classes_of(source, 2), [RUST, CRACK])


def test_open_split_class_without_a_folder(folder, opened):
    message = r"class spall: .* no mask.*config.data.multilabel expects one mask per class and image: masks/{class}/{st"
    with pytest.raises(DataError, match=message):
        opened(folder(), class_names=("rust", "crack", "spall"))


def test_open_split_masks_of_different_sizes(folder, opened, make):
    root = folder()
    make.put(root / "masks/crack/1.png", make.encoded(np.zeros((6, 9), np.uint8)))
    with pytest.raises(DataError, match=r"class crack: .*crack/1.png: a mask of 6×9 for an image of 6×8"):
        opened(root, "all")


def test_open_split_pattern_without_a_class(folder, opened):
    with pytest.raises(DataError, match=r"config.data.masks: expected a pattern with {class} .*; got 'masks/{stem}'"):
        opened(folder(), masks="masks/{stem}")


def test_open_split_more_overlapping_classes_than_train_ids(opened, make, tmp_path):
    names = tuple("abcdefghijkl")  # of 12 classes, 2 may overlap
    for i, name in product(range(2), names):
        make.put(tmp_path / "images" / f"{i}.png", make.encoded(make.image(i, SIZE)))
        present = RUST if i == 0 and name in "ace" else np.zeros(SIZE, bool)
        make.put(tmp_path / "masks" / name / f"{i}.png", make.encoded(present * np.uint8(255)))
    with pytest.raises(DataError, match="0: a pixel of a, c, e; with 12 classes at most 2 may overlap in a pixel"):
        opened(tmp_path, "all", class_names=names)
    source = opened(tmp_path, "all", class_names=names, on_error="skip")
    assert (len(source), source.name(0), len(source.skipped)) == (1, "1", 1)


@pytest.mark.parametrize(("classes", "overlapping"), [(2, 2), (7, 7), (8, 6), (9, 3), (11, 3), (12, 2), (21, 2)])
def test_class_combinations_are_all_up_to_a_size(classes, overlapping):
    table = class_combinations(classes)
    assert table.sum(axis=1).max() == overlapping
    assert len(np.unique(table, axis=0)) == len(table) < 254
    assert not table[0].any()


def test_combine_is_the_inverse_of_the_table():
    for count in (2, 7, 12):
        labels = overlapping_classes(tuple(map(str, range(count))))
        ids = combine(labels.combinations, labels)
        np.testing.assert_array_equal(ids, np.arange(len(labels.combinations)))


@pytest.mark.parametrize("names", [("rust",), ("rust", "rust"), ("a/b", "c"), tuple(map(str, range(22)))])
def test_overlapping_classes_refuses_names(names):
    with pytest.raises(DataError, match=r"config.data.class_names: expected 2 to 21 different names"):
        overlapping_classes(names)
