import pickle
import re
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from segjax.data import UNSEEN, VOID, Source, check_split, open_split
from segjax.data.datasets import open_folder
from segjax.data.io import DataError
from segjax.data.labels import numbered_classes
from segjax.data.splits import FolderOptions

NAMES = ("asphalt", "gravel", "hole")
CLASSES = numbered_classes(NAMES)


def names(source):
    return {source.name(i) for i in range(len(source))}


def test_open_folder_palette_masks_and_different_sizes(make, tmp_path):
    source = open_folder(make.folder(tmp_path), "train", CLASSES)
    assert isinstance(source, Source)
    assert (source.native_size, source.channels) == (None, 3)
    for i in range(len(source)):
        example = source[i]
        number = int(example["name"][-2:])
        shape = (10 + number % 3, 14 + number % 2)
        np.testing.assert_array_equal(example["label"], make.ids(number, shape))
        assert example["image"].shape == (*shape, 3)
        if number % 2 == 0:  # a PNG, so lossless
            np.testing.assert_array_equal(example["image"], make.image(number, shape))


def test_open_folder_split_by_fraction_is_deterministic_and_complete(make, tmp_path):
    root = make.folder(tmp_path)
    train, val = (
        names(open_folder(root, split, CLASSES, options=FolderOptions(val_fraction=0.25))) for split in ("train", "val")
    )
    assert not train & val
    assert train | val == {f"road_{i:02d}" for i in range(10)}
    assert val == {"road_01", "road_06"}  # on every machine
    assert names(open_folder(root, "val", CLASSES, options=FolderOptions(val_fraction=0.6))) > val


def test_open_folder_neither_split_is_empty(make, tmp_path):
    root = make.folder(tmp_path, 2)
    for fraction in (0.001, 0.999):
        assert [
            len(open_folder(root, split, CLASSES, options=FolderOptions(val_fraction=fraction)))
            for split in ("train", "val")
        ] == [1, 1]


def test_open_folder_uses_the_folders_of_splits(make, tmp_path):
    for sub, count in (("train", 4), ("val", 2), ("test", 1)):
        make.folder(tmp_path, count, sub=sub)
    assert [len(open_folder(tmp_path, split, CLASSES)) for split in ("train", "val", "test")] == [4, 2, 1]


def test_open_folder_grey_images(make, tmp_path):
    root = make.folder(tmp_path, 4, (9, 7), channels=1)
    source = open_folder(root, "train", CLASSES)
    assert (source.native_size, source.channels) == ((9, 7), 1)
    assert source[0]["image"].shape == (9, 7, 1)


def test_open_folder_splits_share_channels(make, tmp_path):
    make.folder(tmp_path, 2, channels=1, sub="train")
    make.folder(tmp_path, 2, channels=3, sub="val")
    assert [open_folder(tmp_path, split, CLASSES)[0]["image"].shape[-1] for split in ("train", "val")] == [3, 3]


def test_open_folder_of_isbi_2012(tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 2, (2, 5, 8, 9), np.uint8) * np.uint8(255)
    for name, stack in (("train-volume", images), ("train-labels", labels), ("test-volume", images)):
        tifffile.imwrite(tmp_path / f"{name}.tif", stack, photometric="minisblack")
    source = open_folder(tmp_path, "all", numbered_classes(("cell", "membrane"), (0, 255)))
    assert names(source) == {f"image/{i}" for i in range(5)}
    for example in pickle.loads(pickle.dumps(source)):
        i = int(example["name"][-1])
        np.testing.assert_array_equal(example["image"][..., 0], images[i])
        np.testing.assert_array_equal(example["label"] * 255, labels[i])
    with pytest.raises(DataError, match=r"no image of split 'test' has a mask \(1 image, such as .*test-volume.tif\)"):
        open_folder(tmp_path, "test", CLASSES)


def test_open_folder_stacks_of_different_lengths(make, tmp_path):
    make.folder(tmp_path, 2)
    for part, pages in (("images", 3), ("masks", 2)):
        tifffile.imwrite(tmp_path / part / "a.tif", np.zeros((pages, 4, 4), np.uint8), photometric="minisblack")
    with pytest.raises(DataError, match=r"masks/a.tif: 2 page\(s\) for an image of 3"):
        open_folder(tmp_path, "all", CLASSES)


def test_open_folder_threshold_of_palettes(make, tmp_path):
    for i, palette in enumerate(([0, 0, 0, 255, 255, 255], [255, 255, 255, 0, 0, 0])):
        make.put(tmp_path / "images" / f"{i}.png", make.encoded(make.image()))
        mask = make.encoded(make.ids(classes=2), palette=palette, mode="P")
        make.put(tmp_path / "masks" / f"{i}.png", mask)
    source = open_folder(tmp_path, "all", numbered_classes(("a", "b"), mask_threshold=128))
    labels = {example["name"]: example["label"] for example in source}
    np.testing.assert_array_equal(labels["0"], make.ids(classes=2))
    np.testing.assert_array_equal(labels["1"], 1 - make.ids(classes=2))


def test_open_folder_palettes_that_differ(make, tmp_path):
    root = make.folder(tmp_path, 3)
    mask = make.encoded(make.ids(0, (10, 14)), palette=[0, 0, 255, 255, 0, 0, 0, 255, 0], mode="P")
    make.put(root / "masks" / "road_00.png", mask)
    with pytest.raises(DataError, match=r"road_00.png and .*index \d of their palettes .*config.data.mask_colours"):
        open_folder(root, "train", CLASSES)
    colours = numbered_classes(NAMES, mask_colours=("#ff0000", "#00ff00", "#0000ff"))
    source = open_folder(root, "all", colours)
    np.testing.assert_array_equal(source[0]["label"], np.array([2, 0, 1])[make.ids(0, (10, 14))])


def test_open_folder_palettes_that_differ_in_unused_indices(make, tmp_path):
    root = make.folder(tmp_path, 3)
    for i, unused in enumerate([(0, 0, 255), (255, 0, 0), (0, 0, 0)]):
        mask = make.encoded(np.zeros((10 + i, 14 + i % 2), np.uint8), palette=[9, 9, 9, *unused], mode="P")
        make.put(root / "masks" / f"road_0{i}.png", mask)
    assert len(open_folder(root, "all", CLASSES)) == 3


def test_open_split_folder_with_masks_of_0_and_255(make, config, tmp_path, monkeypatch):
    for i in range(2):
        make.put(tmp_path / "images" / f"{i}.png", make.encoded(make.image(i)))
        make.put(tmp_path / "masks" / f"{i}.png", make.encoded(make.ids(i, classes=2) * np.uint8(255)))
    monkeypatch.setenv("SEGJAX_FOLDER_DIR", str(tmp_path))
    data = config("folder", class_names=("road", "hole"), mask_values=(0, 255), val_fraction=0.5)
    source = open_split(data, "val")
    assert source.label_set.names == ("road", "hole")
    assert set(np.unique(source[0]["label"])) == {0, 1}


def test_open_split_folder_with_an_unseen_class(make, config, tmp_path):
    make.folder(tmp_path, 3)
    data = config("folder", "", tmp_path, class_names=CLASSES.names, unseen_classes=(CLASSES.names[0],))
    every = open_folder(tmp_path, "train", CLASSES)[0]["label"].astype(int)
    source = open_split(data, "train", mark_unseen=True)
    label = pickle.loads(pickle.dumps(source))[0]["label"]
    np.testing.assert_array_equal(label, np.select([every == VOID, every == 0], [VOID, UNSEEN], every - 1))
    assert source.label_set.names == CLASSES.names[1:]


def test_folder_source_pickles(make, tmp_path):
    source = open_folder(make.folder(tmp_path), "train", CLASSES)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[1]["image"], source[1]["image"])


def test_open_folder_verifies_every_pair(make, tmp_path):
    root = make.folder(tmp_path, 3)
    make.put(root / "masks" / "road_01.png", make.encoded(np.full((11, 15), 200, np.uint8)))
    with pytest.raises(ValueError, match=r"masks/road_01.png: label id 200 is outside the 3 classes"):
        [open_folder(root, split, CLASSES) for split in ("train", "val")]


def test_open_folder_without_training_images(make, tmp_path):
    make.folder(tmp_path / "val", 2)
    with pytest.raises(DataError, match=rf"split 'train' does not exist; expected training images in {tmp_path}/train"):
        open_folder(tmp_path, "train", CLASSES)
    assert len(open_folder(tmp_path, "val", CLASSES)) == 2


def test_open_folder_all_splits(make, tmp_path):
    assert len(open_folder(make.folder(tmp_path), "all", CLASSES)) == 10


def test_open_folder_missing_split_double_stem_missing_folder(make, tmp_path):
    root = make.folder(tmp_path, 3)
    with pytest.raises(DataError, match=r"split 'test' does not exist; valid: train, val, or all"):
        open_folder(root, "test", CLASSES)
    make.put(root / "images" / "road_00.jpg", make.encoded(make.image(), "JPEG"))
    with pytest.raises(DataError, match=r"road_00.png: another file has the same stem, .*road_00.jpg"):
        open_folder(root, "train", CLASSES)
    with pytest.raises(DataError, match=r"nowhere: expected a folder; it does not exist"):
        open_folder(root / "nowhere", "train", CLASSES)


def test_open_folder_one_image(make, tmp_path):
    with pytest.raises(DataError, match=r"expected at least 2 images to split into train and val; found 1"):
        open_folder(make.folder(tmp_path, 1), "train", CLASSES)


def test_open_split_folder_without_path_or_class_names(config, monkeypatch):
    monkeypatch.delenv("SEGJAX_FOLDER_DIR", raising=False)
    with pytest.raises(DataError, match=r"folder: set config.data.manual_dir or \$SEGJAX_FOLDER_DIR"):
        open_split(config("folder", class_names=NAMES), "train")
    with pytest.raises(ValueError, match=r"config.data.class_names: expected 1 to 253 class names; got 0"):
        open_split(config("folder"), "train")


def test_open_split_moved_folder_names_the_field(config, tmp_path):
    moved = config("folder", class_names=NAMES, manual_dir=str(tmp_path / "moved"))
    expected = r"folder: /.*moved does not exist; name the folder of its images and masks with --config.data.manual_dir"
    with pytest.raises(DataError, match=expected):
        open_split(moved, "train")


# A grey scene with one red rectangle and its mask per image, of 48x64 pixels; the fields are those of folder_unet.
CASES = Path(__file__).parent / "cases"
DEFAULTS = {"class_names": ("background", "object"), "mask_values": (0, 255)}


def overlap(example):
    """Returns the IoU of class 1 with the red pixels."""
    red = example["image"][..., 0].astype(int) - example["image"][..., 2] > 60
    return (red & (example["label"] == 1)).sum() / (red | (example["label"] == 1)).sum()


@pytest.mark.parametrize(
    ("case", "fields", "train", "val"),
    [
        ("train_valid", {}, 6, 6),
        ("train_validation", {}, 6, 6),
        ("images_train_val", {}, 6, 6),
        ("unlabelled_test", {}, 4, 4),
        ("tif_only", {}, 3, 1),
        ("gif_masks", {}, 3, 1),
        ("jpeg_masks", {"mask_values": (), "mask_threshold": 128}, 3, 1),
        ("noisy_grey_png", {"mask_threshold": 128}, 3, 1),
        ("suffix_mask", {}, 3, 1),
        ("suffix_mask", {"masks": "{stem}_mask"}, 3, 1),
        ("rgb_black_white_mask", {}, 3, 1),
        ("rgb_colour_mask", {"mask_colours": ("#0000ff", "#ff0000")}, 3, 1),
        ("void_255_by_accident", {}, 3, 1),
        ("zero_is_void", {"mask_values": (1, 2), "void_values": (0,)}, 3, 1),
        ("synology_eaDir", {}, 3, 1),
        ("exif_3", {}, 3, 1),
        ("exif_6_square", {}, 3, 1),
    ],
)
def test_open_split_made_case(config, case, fields, train, val):
    data = config("folder", manual_dir=CASES / case, **DEFAULTS | fields)
    sources = [open_split(data, split) for split in ("train", "val")]
    assert [len(source) for source in sources] == [train, val]
    for source in sources:
        assert not source.absent
        assert min(overlap(source[i]) for i in range(len(source))) > 0.8  # JPEG blurs red


@pytest.mark.parametrize(
    ("case", "fields", "message"),
    [
        ("unlabelled_test", {"split": "test"}, r"no image of split 'test' has a mask .*segjax predict"),
        ("jpeg_masks", {}, r"masks/\d.jpg: label ids .* config.data.mask_threshold=128"),
        ("noisy_grey_png", {}, r"masks/\d.png: label ids 1-12, .* config.data.mask_threshold=128"),
        ("rgb_colour_mask", {}, r"#0000ff .*, #ff0000 .* config.data.mask_colours"),
        ("zero_is_void", {"mask_values": (1, 2)}, r"label id 0 is outside .* config.data.void_values"),
        ("suffix_mask", {"masks": "{stem}_label"}, r"0.jpg.*config.data.masks"),
        (
            "uint16_12bit",
            {},
            r"config.data.range=dtype would scale by 65535, .* values from 960 to 3680; set it to perc",
        ),
    ],
)
def test_open_split_made_case_refused(config, case, fields, message):
    data = config("folder", manual_dir=CASES / case, **DEFAULTS | fields)
    with pytest.raises(DataError, match=message):
        open_split(data, fields.get("split", "train"))


def test_check_split_of_made_case_void_by_accident(config):
    data = config("folder", manual_dir=CASES / "void_255_by_accident", class_names=("background", "object"))
    (warning,) = check_split(open_split(data, "train"), "train")
    assert re.search(r"no pixel of object \(1\), and \d+\.\d% .* void \(255\)\. .*config.data.mask_values", warning)


@pytest.mark.parametrize(
    ("range_", "expected"), [("percentile", (960, 3680)), ((0.0, 4095.0), (0, 4095)), ((960.0, 2000.0), (960, 2000))]
)
def test_open_split_made_case_of_twelve_bits(config, range_, expected):
    data = config("folder", manual_dir=CASES / "uint16_12bit", range=range_, **DEFAULTS)
    train, val = (open_split(data, split) for split in ("train", "val"))
    assert train.value_range == val.value_range == expected
    for source in (train, val):
        with Image.open(CASES / "uint16_12bit" / "images" / f"{source.name(0)}.png") as opened:
            stored = np.asarray(opened).astype(float)[..., None]
        low, high = expected
        scaled = 255 * np.clip((stored - low) / (high - low), 0, 1)
        np.testing.assert_allclose(pickle.loads(pickle.dumps(source))[0]["image"], scaled, atol=1e-3)


def test_open_split_of_another_dtype_than_in_training(config):
    data = config("folder", manual_dir=CASES / "uint16_12bit", range=(42.0, 1219.0), dtype="uint8", **DEFAULTS)
    with pytest.raises(DataError, match=r"config.data.dtype = uint8, but the images of folder are uint16: convert"):
        open_split(data, "train")


@pytest.mark.parametrize("case", ["exif_3", "exif_6_square"])
def test_open_split_masks_drawn_on_stored_pixels(config, case):
    """The option turns the masks, which were drawn on the displayed pictures, away from them."""
    data = config("folder", manual_dir=CASES / case, orientation="stored", **DEFAULTS)
    source = open_split(data, "train")
    assert max(overlap(source[i]) for i in range(3)) < 0.1
    (line,) = check_split(source, "train")
    assert re.match(r"train: 3 image\(s\) are turned by EXIF, .* config.data.orientation", line)


def test_open_split_masks_whose_sizes_tell(make, config, tmp_path):
    """Masks of the stored size are turned like the image, those of the displayed size are not, whatever the option."""
    exif, stored = Image.Exif(), np.zeros((12, 20, 3), np.uint8)
    exif[0x0112], stored[:4, :5, 0], ids = 6, 255, np.zeros((12, 20), np.uint8)
    ids[:4, :5] = 255
    for name, mask in (("a", ids), ("b", np.rot90(ids, -1))):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(stored).save(tmp_path / "images" / f"{name}.png", exif=exif)
        make.put(tmp_path / "masks" / f"{name}.png", make.encoded(np.ascontiguousarray(mask)))
    for drawn_on in ("displayed", "stored"):
        source = open_split(config("folder", manual_dir=tmp_path, orientation=drawn_on, **DEFAULTS), "all")
        assert (source.native_size, source.unsure_turns) == ((20, 12), 0)
        assert [overlap(source[i]) for i in range(2)] == [1, 1]


def test_open_split_bands(make, config, tmp_path):
    bands = put_bands(make, tmp_path, 3)
    data = config("folder", manual_dir=tmp_path, range=(0.0, 4000.0), **DEFAULTS)
    source = open_split(data, "all")
    assert (source.channels, source[1]["image"].dtype) == (5, np.float32)
    np.testing.assert_allclose(source[1]["image"], bands[int(source.name(1))] / 4000 * 255, rtol=1e-5)
    with pytest.raises(DataError, match=r"config.data.channels = 3, but the images of folder have 5 channel"):
        open_split(config("folder", manual_dir=tmp_path, range=(0.0, 4000.0), channels=3, **DEFAULTS), "all")


def put_bands(make, root, count):
    """Writes 16-bit TIFF images of five bands, tiled or compressed, and masks."""
    bands = np.random.default_rng(0).integers(0, 4000, (count, 32, 48, 5), dtype=np.uint16)
    (root / "images").mkdir()
    for i, one in enumerate(bands):
        options = {"tile": (16, 16)} if i % 2 else {"compression": "lzw"}
        tifffile.imwrite(root / "images" / f"{i}.tif", one, photometric="minisblack", planarconfig="contig", **options)
        make.put(root / "masks" / f"{i}.png", make.encoded((one[..., 3] > 2000) * np.uint8(255)))
    return bands


def test_open_split_images_of_several_numbers_of_channels(make, config, tmp_path):
    put_bands(make, tmp_path, 1)
    make.put(tmp_path / "images" / "x.png", make.encoded(make.image()))
    make.put(tmp_path / "masks" / "x.png", make.encoded(make.ids(classes=1)))
    with pytest.raises(DataError, match=r"images of 3 and 5 channels; expected one number of channels"):
        open_split(config("folder", manual_dir=tmp_path, range="percentile", **DEFAULTS), "train")


def cut_image(make, root, name):
    (image,) = (root / "images").glob(f"{name}.*")
    image.write_bytes(image.read_bytes()[:-40])


def other_size(make, root, name):
    make.put(root / "masks" / f"{name}.png", make.encoded(make.ids(size=(3, 3))))


def strange_label(make, root, name):
    with Image.open(root / "masks" / f"{name}.png") as mask:
        make.put(root / "masks" / f"{name}.png", make.encoded(np.full(mask.size[::-1], 9, np.uint8)))


def sixteen_bits(make, root, name):
    with Image.open(root / "masks" / f"{name}.png") as mask:
        ids = np.full(mask.size[::-1], 9000, np.uint16)
    make.put(root / "masks" / f"{name}.png", cv2.imencode(".png", ids)[1].tobytes())


def no_mask(make, root, name):
    (root / "masks" / f"{name}.png").unlink()


def no_image(make, root, name):
    for image in (root / "images").glob(f"{name}.*"):
        image.unlink()


def leads_out(make, root, name):
    mask = root / "masks" / f"{name}.png"
    mask.rename(root.parent / "outside.png")
    mask.symlink_to(root.parent / "outside.png")


BAD = [
    (cut_image, r"images/{}\.\w+: cannot be decoded; expected PNG, JPEG, .* got \d+ bytes"),
    (other_size, r"masks/{}\.png: a mask of 3×3 for an image of 10×14 \(.*images/{}\.\w+\); expected one size"),
    (strange_label, r"masks/{}\.png: label id 9 is outside the 3 classes; expected the ids 0-2, 255"),
    (sixteen_bits, r"masks/{}\.png: label id 9000 is outside the 3 classes; expected the ids 0-2, 255"),
    (no_mask, r"images/{}\.\w+: an image without a mask; expected a mask named '{}' in "),
    (no_image, r"masks/{}\.png: a mask without an image; expected an image named '{}' in "),
    (leads_out, r"masks/{}\.png: a link that leads out of the data set, to .*outside.png"),
]


@pytest.fixture
def ten(make, config, tmp_path):
    """Returns the config of a folder of ten images, its path, and the name of a training image."""
    root = make.folder(tmp_path / "set")
    data = config("folder", manual_dir=root, class_names=NAMES, val_fraction=0.25)
    return data, root, "road_00"


@pytest.mark.parametrize(("damage", "message"), BAD, ids=[damage.__name__ for damage, _ in BAD])
def test_open_split_bad_pair(make, ten, damage, message):
    data, root, name = ten
    damage(make, root, name)
    with pytest.raises(DataError, match=message.replace("{}", name)):
        open_split(data, "train")


@pytest.mark.parametrize(("damage", "message"), BAD, ids=[damage.__name__ for damage, _ in BAD])
def test_open_split_skip_leaves_out_only_the_bad_pair(make, ten, damage, message):
    data, root, name = ten
    before = {split: names(open_split(data, split)) for split in ("train", "val")}
    damage(make, root, name)
    data.on_error = "skip"
    train, val = (open_split(data, split) for split in ("train", "val"))
    assert (names(train), names(val)) == (before["train"] - {name}, before["val"])
    assert [len(train), len(train.skipped), len(val.skipped)] == [7, 1, 0]
    assert re.search(message.replace("{}", name), train.skipped[0])


def test_open_split_removed_file_moves_no_other_file(make, ten):
    data, root, _ = ten
    before = {split: names(open_split(data, split)) for split in ("train", "val")}
    for gone in ("road_01", "road_00"):  # one of each split
        no_mask(make, root, gone)
        no_image(make, root, gone)
    after = {split: names(open_split(data, split)) for split in ("train", "val")}
    assert after == {split: before[split] - {"road_00", "road_01"} for split in before}


def test_open_split_skip_without_a_good_pair(make, ten):
    data, root, _ = ten
    for mask in (root / "masks").iterdir():
        mask.write_bytes(b"words")
    data.on_error = "skip"
    with pytest.raises(DataError, match=r"all 8 pairs of a split are unusable; .* one good\. .*road_00.png"):
        open_split(data, "train")


def test_open_split_invalid_on_error(ten):
    data, _, _ = ten
    data.on_error = "ignore"
    with pytest.raises(DataError, match=r"config.data.on_error must be one of raise, skip; got 'ignore'"):
        open_split(data, "train")


def test_open_split_names_with_spaces_and_non_ascii_letters(make, config, tmp_path):
    for name in ("strada bagnata è", "дорога", "道路 [1]"):
        make.put(tmp_path / "images" / "giorno 1" / f"{name}.png", make.encoded(make.image()))
        make.put(tmp_path / "masks" / "giorno 1" / f"{name}.png", make.encoded(make.ids()))
    data = config("folder", manual_dir=tmp_path, class_names=NAMES, val_fraction=0.5)
    read = [
        open_split(data, split)[i]["name"] for split in ("train", "val") for i in range(len(open_split(data, split)))
    ]
    assert sorted(read) == sorted(f"giorno 1/{name}" for name in ("strada bagnata è", "дорога", "道路 [1]"))


AS_ANOTHER_USER = """
import os, sys
from types import SimpleNamespace
from segjax.data import DataError, open_split

data = SimpleNamespace(name="folder", data_dir="", manual_dir=sys.argv[1], class_names=("a", "b", "c"))
if os.getuid() == 0:  # root ignores permissions
    os.setgid(65534)
    os.setuid(65534)
for data.on_error in ("raise", "skip"):
    try:
        print(*open_split(data, "train").skipped)
    except DataError as error:
        print(error)
"""


@pytest.fixture
def readable():
    """Yields a folder that every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "set"


@pytest.mark.slow
def test_open_split_file_without_permission(make, readable, python):
    (make.folder(readable, 4) / "masks" / "road_02.png").chmod(0)
    done = python("-c", AS_ANOTHER_USER, readable)
    mask = f"{readable}/masks/road_02.png"
    expected = f"{mask}: cannot be read ([Errno 13] Permission denied: '{mask}')"
    assert [line.startswith(expected) for line in done.stdout.splitlines()] == [True] * 2, done.stderr


@pytest.mark.slow
def test_open_split_folder_without_permission(make, readable, python):
    (make.folder(readable, 4) / "masks").chmod(0)
    done = python("-c", AS_ANOTHER_USER, readable)
    assert done.stdout.splitlines() == [f"{readable}/masks: a folder that cannot be read (Permission denied)"] * 2
