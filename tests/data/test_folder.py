import pickle

import numpy as np
import pytest

from segjax.data import Source, open_split
from segjax.data.folder import list_splits, open_folder
from segjax.data.labels import numbered_classes
from segjax.data.source import DataError

NAMES = ("asphalt", "gravel", "hole")
CLASSES = numbered_classes(NAMES)


def names(source):
    return {source.name(i) for i in range(len(source))}


def test_palette_masks_and_different_sizes_are_read(make, tmp_path):
    source = open_folder(make.folder(tmp_path), "train", CLASSES)
    assert isinstance(source, Source)
    assert (source.native_size, source.largest_size, source.channels) == (None, (12, 15), 3)
    for i in range(len(source)):
        example = source[i]
        number = int(example["name"][-2:])
        shape = (10 + number % 3, 14 + number % 2)
        np.testing.assert_array_equal(example["label"], make.ids(number, shape))
        assert example["image"].shape == (*shape, 3)
        if number % 2 == 0:  # a PNG, so lossless
            np.testing.assert_array_equal(example["image"], make.image(number, shape))


def test_the_split_by_fraction_is_fixed_and_whole(make, tmp_path):
    root = make.folder(tmp_path)
    train, val = (names(open_folder(root, split, CLASSES, val_fraction=0.25)) for split in ("train", "val"))
    assert not train & val
    assert train | val == {f"road_{i:02d}" for i in range(10)}
    assert val == {"road_01", "road_06"}  # on every machine
    assert names(open_folder(root, "val", CLASSES, val_fraction=0.6)) > val


def test_the_share_held_out_is_about_the_fraction(make, tmp_path):
    for i in range(400):
        for part in ("images", "masks"):
            make.put(tmp_path / part / f"{i}.png", b"")
    assert 20 <= len(list_splits(tmp_path, 0.1)["val"]) <= 60


def test_neither_split_is_empty(make, tmp_path):
    root = make.folder(tmp_path, 2)
    for fraction in (0.001, 0.999):
        assert [len(open_folder(root, split, CLASSES, val_fraction=fraction)) for split in ("train", "val")] == [1, 1]


def test_folders_for_the_splits_are_used_where_they_exist(make, tmp_path):
    for sub, count in (("train", 4), ("val", 2), ("test", 1)):
        make.folder(tmp_path, count, sub=sub)
    assert [len(open_folder(tmp_path, split, CLASSES)) for split in ("train", "val", "test")] == [4, 2, 1]


def test_grey_images_have_one_channel_and_a_shared_size(make, tmp_path):
    root = make.folder(tmp_path, 4, (9, 7), channels=1)
    source = open_folder(root, "train", CLASSES)
    assert (source.native_size, source.channels) == ((9, 7), 1)
    assert source[0]["image"].shape == (9, 7, 1)


def test_both_splits_have_the_channels_of_either(make, tmp_path):
    make.folder(tmp_path, 2, channels=1, sub="train")
    make.folder(tmp_path, 2, channels=3, sub="val")
    assert [open_folder(tmp_path, split, CLASSES)[0]["image"].shape[-1] for split in ("train", "val")] == [3, 3]


def test_it_opens_from_a_config_with_masks_of_0_and_255(make, config, tmp_path, monkeypatch):
    for i in range(2):
        make.put(tmp_path / "images" / f"{i}.png", make.encoded(make.image(i)))
        make.put(tmp_path / "masks" / f"{i}.png", make.encoded(make.ids(i, classes=2) * np.uint8(255)))
    monkeypatch.setenv("SEGJAX_FOLDER_DIR", str(tmp_path))
    data = config("folder", class_names=("road", "hole"), mask_values=(0, 255), val_fraction=0.5)
    source = open_split(data, "val")
    assert source.label_set.names == ("road", "hole")
    assert set(np.unique(source[0]["label"])) == {0, 1}


def test_it_is_picklable(make, tmp_path):
    source = open_folder(make.folder(tmp_path), "train", CLASSES)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[1]["image"], source[1]["image"])


def test_everything_is_verified_when_it_is_opened(make, tmp_path):
    root = make.folder(tmp_path, 3)
    make.put(root / "masks" / "road_01.png", make.encoded(np.full((11, 15), 200, np.uint8)))
    with pytest.raises(ValueError, match=r"masks/road_01.png: label id 200 is outside the 3 classes"):
        [open_folder(root, split, CLASSES) for split in ("train", "val")]


def test_what_is_missing_or_double_is_named(make, tmp_path):
    root = make.folder(tmp_path, 3)
    with pytest.raises(DataError, match=r"no split 'test'; found train, val"):
        open_folder(root, "test", CLASSES)
    make.put(root / "images" / "road_00.jpg", make.encoded(make.image(), "JPEG"))
    with pytest.raises(DataError, match=r"road_00.png: another file has the same stem, .*road_00.jpg"):
        open_folder(root, "train", CLASSES)
    with pytest.raises(DataError, match=r"images: expected a folder; there is nothing"):
        open_folder(root / "nowhere", "train", CLASSES)


def test_one_image_cannot_be_split(make, tmp_path):
    with pytest.raises(DataError, match=r"expected at least 2 images to split into train and val; found 1"):
        open_folder(make.folder(tmp_path, 1), "train", CLASSES)


def test_a_fraction_outside_0_and_1_is_refused(make, tmp_path):
    with pytest.raises(ValueError, match=r"val_fraction must lie in \(0, 1\); got 1.5"):
        open_folder(tmp_path, "train", CLASSES, val_fraction=1.5)


def test_a_config_without_a_place_or_names_says_so(config, monkeypatch):
    monkeypatch.delenv("SEGJAX_FOLDER_DIR", raising=False)
    with pytest.raises(DataError, match=r"folder: set config.data.manual_dir or \$SEGJAX_FOLDER_DIR"):
        open_split(config("folder", class_names=NAMES), "train")
    with pytest.raises(ValueError, match=r"config.data.class_names must name the classes"):
        open_split(config("folder"), "train")
