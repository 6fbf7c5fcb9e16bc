import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from segjax.data.io import DataError
from segjax.data.layout import find_layout
from segjax.data.splits import FolderOptions

CASES = Path(__file__).parent / "cases"

# "" instead of image files; TIFFs are opened for their number of pages.
ONE_PIXEL = cv2.imencode(".tif", np.zeros((1, 1), np.uint8))[1].tobytes()


def test_find_layout_holds_out_about_the_fraction(make, tmp_path):
    for i in range(400):
        for part in ("images", "masks"):
            make.put(tmp_path / part / f"{i}.png", b"")
    assert 20 <= len(find_layout(tmp_path).splits["val"]) <= 60


def layout(root, files, **options):
    """Writes files of the size 0, and TIFFs of one pixel, and returns their layout and the names of each split."""
    for path in files.split():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(ONE_PIXEL if path.endswith(".tif") else b"")
    found = find_layout(root, FolderOptions(**options))
    return found, {split: [pair.name for pair in pairs] for split, pairs in found.splits.items()}


LAYOUTS = {
    "valid": ("train/images/0.png train/masks/0.png valid/images/1.png valid/masks/1.png", ["0"], ["1"]),
    "validation": ("Training/imgs/0.png Training/gt/0.png validation/imgs/1.png validation/gt/1.png", ["0"], ["1"]),
    "split below": ("images/train/0.png images/val/1.png masks/train/0.png masks/val/1.png", ["0"], ["1"]),
    "ADE20K": (
        "images/training/0.jpg images/validation/1.jpg annotations/training/0.png annotations/validation/1.png",
        ["0"],
        ["1"],
    ),
    "SegNet": ("train/0.png trainannot/0.png val/1.png valannot/1.png", ["0"], ["1"]),
    "Carvana": ("train/0.jpg train_masks/0_mask.gif val/1.jpg val_masks/1_mask.gif", ["0"], ["1"]),
    "one folder": (
        "train/0.tif train/0_mask.tif val/1_2.tif val/1_2_mask.tif val/1.tif val/1_mask.tif",
        ["0"],
        ["1", "1_2"],
    ),
    "TrainDataset": ("TrainDataset/image/0.png TrainDataset/mask/0.png val/image/1.png val/mask/1.png", ["0"], ["1"]),
    "Cityscapes": (
        "leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png gtFine/train/ulm/ulm_0_1_gtFine_labelIds.png"
        " gtFine/train/ulm/ulm_0_1_gtFine_color.png gtFine/train/ulm/ulm_0_1_gtFine_instanceIds.png"
        " gtFine/train/ulm/ulm_0_1_gtFine_polygons.json"
        " leftImg8bit/val/bonn/bonn_0_2_leftImg8bit.png gtFine/val/bonn/bonn_0_2_gtFine_labelIds.png",
        ["ulm/ulm_0_1"],
        ["bonn/bonn_0_2"],
    ),
    "names that end in words": (
        "images/train/a_color.png images/val/b.png masks/train/a_color.png masks/val/b.png",
        ["a_color"],
        ["b"],
    ),
    "prefixes": (
        "images/train/img_0.png images/val/img_1.png masks/train/mask_0.png masks/val/mask_1.png",
        ["0"],
        ["1"],
    ),
    "a prefix in one folder": ("train/img_0.png train/mask_0.png val/img_1.png val/mask_1.png", ["0"], ["1"]),
    "a prefix of masks": ("train/a_0.png train/seg_a_0.png val/a_1.png val/seg_a_1.png", ["a_0"], ["a_1"]),
    "suffixes": ("train/0.jpg train/0.png val/1.jpeg val/1.png", ["0"], ["1"]),
    "folders of samples": (
        "train/0_json/img.png train/0_json/label.png val/1_json/img.png val/1_json/label.png",
        ["0_json"],
        ["1_json"],
    ),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_find_layout_of_usual_names(tmp_path, kind):
    files, train, val = LAYOUTS[kind]
    assert layout(tmp_path, files)[1] == {"train": train, "val": val}


def test_find_layout_of_drive(tmp_path):
    files = " ".join(
        f"{part}/images/{n}_{name}.tif {part}/1st_manual/{n}_manual1.gif {part}/mask/{n}_{name}_mask.gif"
        for part, n, name in [("training", 21, "training"), ("training", 22, "training"), ("test", "01", "test")]
    )
    found, names = layout(tmp_path, f"{files} test/2nd_manual/01_manual2.gif", val_fraction=0.5)
    assert names == {"train": ["22"], "val": ["21"], "test": ["01"]}
    assert {pair.mask.path.rpartition("_")[2] for pairs in found.splits.values() for pair in pairs} == {"manual1.gif"}
    assert sorted(map(len, found.ignored.values())) == [1, 3]  # of the second annotator, of the field of view


def test_find_layout_of_drive_second_annotator(tmp_path):
    files = "test/images/01_test.tif test/1st_manual/01_manual1.gif test/2nd_manual/01_manual2.gif"
    files += " training/images/21_training.tif training/1st_manual/21_manual1.gif"
    found, names = layout(tmp_path, files, masks="2nd_manual/{stem}_manual2")
    assert names == {"test": ["01"]}
    assert list(found.without_masks) == ["train"]


def test_find_layout_of_chase(tmp_path):
    files = " ".join(f"Image_{n}{end}" for n in ("01L", "01R") for end in (".jpg", "_1stHO.png", "_2ndHO.png"))
    first, names = layout(tmp_path, files)
    second, _ = layout(tmp_path, files, masks="{stem}_2ndHO")
    assert names["train"] + names["val"] == ["Image_01L", "Image_01R"]
    assert [pair.mask.path[-9:] for found in (first, second) for pair in found.splits["train"]] == [
        "1stHO.png",
        "2ndHO.png",
    ]


def test_find_layout_of_voc(tmp_path):
    files = " ".join(f"VOC2012/JPEGImages/{n}.jpg" for n in range(6))
    files += " ".join(f" VOC2012/Segmentation{kind}/{n}.png" for n in range(4) for kind in ("Class", "Object"))
    lists = {
        "Segmentation/train": "0\n1\n",
        "Segmentation/val": "2\n3\n",
        "Segmentation/trainval": "0\n",
        "Main/train": "5\n",
    }
    for name, text in lists.items():
        path = tmp_path / "VOC2012" / "ImageSets" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found, names = layout(tmp_path, f"{files} VOC2012/Annotations/0.xml")
    assert names == {"train": ["VOC2012/0", "VOC2012/1"], "val": ["VOC2012/2", "VOC2012/3"]}
    assert found.ignored["not in a list of a split"] == ["VOC2012/JPEGImages/4.jpg", "VOC2012/JPEGImages/5.jpg"]


def test_find_layout_patterns_with_folders(tmp_path):
    files = "raw/train/cam1/7_rgb.png raw/valid/cam1/8_rgb.png truth/train/7-gt.png truth/valid/8-gt.png"
    found, names = layout(
        tmp_path, f"{files} other/7_rgb.png", images="raw/{split}/*/{stem}_rgb", masks="truth/{split}/{stem}-gt.png"
    )
    assert names == {"train": ["7"], "val": ["8"]}
    assert list(found.ignored.values()) == [["other/7_rgb.png"]]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (
            "images/0.png masks/0_a.png masks/0_b.png",
            {},
            r"config.data.masks = '\{stem\}_a' \(1 files\) or '\{stem\}_b'",
        ),
        ("images/0.png labels/0.png gt/0.png", {}, r"config.data.masks = 'gt/\{stem\}' or 'labels/\{stem\}'"),
        ("images/0.png masks/1.png", {}, r"images/0.png and masks/1.png; give the patterns .*config.data.masks"),
        ("", {}, r"no image and no mask; .*config.data.masks"),
        ("images/0.png images/1.png", {}, r"2 image\(s\), such as images/0.png, and no mask; .*config.data.masks"),
        ("train/images/0.png train/masks/0.png dev/images/1.png dev/masks/1.png", {}, r"dev/.*move .* into .*/val"),
        ("images/\u00e8.png images/e\u0300.png masks/\u00e8.png", {}, r"form of their Unicode characters; remove one"),
        (
            "images/0_photo.png masks/0_a.png",
            {"masks": "{stem}"},
            r"another pattern; .* config.data.masks = '\{stem\}_a'",
        ),
        ("images/0.png masks/0.png", {"masks": "mask"}, r"config.data.masks: .*\{stem\} once.* got 'mask'"),
        ("images/0.png masks/0.png", {"fold": 1}, r"config.data.fold = 1 needs config.data.folds"),
        ("images/0.png masks/0.png", {"folds": 1}, r"config.data.folds must be at least 2.* got 1"),
        ("images/0.png masks/0.png", {"folds": 2, "fold": 2}, r"config.data.fold must be one of 0 to 1.* got 2"),
        ("images/0.png masks/0.png", {"folds": 2}, r"at least 2 images for 2 folds; found 1"),
        (
            "images/0.png masks/0.png",
            {"groups": "{group}_*"},
            r"config.data.groups = '\{group\}_\*' .*'0'",
        ),
    ],
)
def test_find_layout_ambiguous_or_unknown(tmp_path, files, options, message):
    with pytest.raises(DataError, match=message):
        layout(tmp_path, files, **options)


def test_find_layout_names_what_it_leaves_out(tmp_path):
    files = (
        "images/0.png images/1.png masks/0.png masks/1.png overview.png notes.txt images/.cache/0.png __MACOSX/x.png"
    )
    found, names = layout(tmp_path, f"{files} labels/0.png")
    assert names == {"train": ["1"], "val": ["0"]}
    assert sorted(path for paths in found.ignored.values() for path in paths) == [
        "__MACOSX/",
        "images/.cache/",
        "labels/0.png",
        "notes.txt",
        "overview.png",
    ]


def test_find_layout_names_in_other_unicode_forms(tmp_path):
    composed, decomposed = "\u00e8", "e\u0300"
    _, names = layout(tmp_path, f"images/{decomposed}.png images/a.png masks/{composed}.png masks/a.png")
    assert set(names["train"] + names["val"]) == {decomposed, "a"}


@pytest.mark.parametrize("mask", ["b_1.png", "b_1_Mask.png"])
def test_find_layout_pairs_names_of_other_case(tmp_path, mask):
    found, names = layout(tmp_path, f"images/B_1.PNG images/A.png masks/{mask} masks/{mask.replace('b_1', 'a')}")
    assert sorted(names["train"] + names["val"]) == ["A", "B_1"]
    assert all(pair.mask.path.endswith(pair.name.lower() + mask[3:]) for part in found.splits.values() for pair in part)
    assert "2 of whose names differ from their images' in small and capital letters" in found.description


@pytest.mark.parametrize(
    "files",
    [
        "images/0.png images/1.png masks/MASK_0.png masks/mask_1.png",
        "images/IMG_0.png images/img_1.png masks/0_MASK.png masks/1_mask.png",
        "IMG_0.png img_1.png mask_0.png MASK_1.png",
    ],
    ids=["folders", "both", "one folder"],
)
def test_find_layout_affixes_of_other_case(tmp_path, files):
    found, names = layout(tmp_path, files)
    assert sorted(names["train"] + names["val"]) == ["0", "1"]
    assert "like it" not in found.description


@pytest.mark.parametrize("folders", [("images/", "masks/"), ("", "")], ids=["two", "one"])
def test_find_layout_image_without_the_prefix_of_the_others_has_no_mask(tmp_path, folders):
    images, masks = folders
    files = f"{images}overview.png"
    for i in range(2):
        files += f" {images}img_{i}.png {masks}mask_{i}.png"
    pairs = [pair for split in layout(tmp_path, files)[0].splits.values() for pair in split]
    assert sorted(pair.name for pair in pairs if not pair.mask.problem) == ["0", "1"]
    (problem,) = (pair.mask.problem for pair in pairs if pair.mask.problem)
    assert "overview.png: an image without a mask" in problem


def test_find_layout_prefix_without_which_two_images_have_one_name(tmp_path):
    with pytest.raises(DataError, match=r"no image of train has a mask"):
        layout(tmp_path, "images/0.png images/img_0.png images/img_1.png masks/mask_1.png")


@pytest.mark.parametrize(
    ("masks", "pattern"),
    [
        ("masks/{name}/{i}.png", "masks/{class}/{stem}"),
        ("labels/{name}/{i}_mask.png", "labels/{class}/{stem}_mask"),
        ("masks/{i}/{name}.png", "masks/{stem}/{class}"),
        ("masks/{i}_{name}.png", "masks/{stem}_{class}"),
        ("{name}/{i}.png", "{class}/{stem}"),
    ],
)
def test_find_layout_one_mask_per_class_names_multilabel(tmp_path, masks, pattern):
    files = [f"images/{i}.png" for i in range(3)]
    files += [masks.format(name=name, i=i) for name in ("rust", "crack") for i in range(3)]
    with pytest.raises(DataError) as raised:
        layout(tmp_path, " ".join(files))
    expected = f"--config.data.class_names=\"('crack', 'rust')\" --config.data.masks='{pattern}'"
    assert f"config.data.multilabel=True: segjax train --config=folder_multilabel {expected}" in str(raised.value)
    for name in ("rust", "crack"):
        found = find_layout(tmp_path, FolderOptions(masks=pattern.replace("{class}", name)))
        assert sum(map(len, found.splits.values())) == 3


def test_find_layout_names_that_differ_in_case_only(tmp_path):
    found, _ = layout(tmp_path, "images/a.png images/A.png masks/a.png masks/A.png")
    pairs = [(pair.image.path[-5:], pair.mask.path[-5:]) for split in found.splits.values() for pair in split]
    assert sorted(pairs) == [("A.png", "A.png"), ("a.png", "a.png")]


def test_find_layout_links_to_folders(make, tmp_path):
    make.folder(tmp_path / "elsewhere", 4)
    (tmp_path / "root").mkdir()
    for part in ("images", "masks"):
        (tmp_path / "root" / part).symlink_to(tmp_path / "elsewhere" / part)
    with pytest.raises(DataError, match=r"images: a link to a folder.*config.data.follow_links=True"):
        find_layout(tmp_path / "root")
    (tmp_path / "root" / "again").symlink_to(tmp_path / "root")  # a circle
    splits = find_layout(tmp_path / "root", FolderOptions(follow_links=True)).splits
    assert sum(map(len, splits.values())) == 4


def test_find_layout_of_annotations_gives_the_command_that_converts_them(tmp_path):
    (tmp_path / "a.json").write_text('{"shapes": [], "imagePath": "a.jpg"}')
    command = rf"segjax data masks {tmp_path} --output={tmp_path.name}_masks$"
    with pytest.raises(DataError, match=rf"no image and no mask, but annotations; .*: {command}"):
        layout(tmp_path, "")
    with pytest.raises(DataError, match=rf"1 image\(s\), such as a.jpg, and no mask, .*: {command}"):
        layout(tmp_path, "a.jpg")


def test_find_layout_reads_lists_of_paths(tmp_path):
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("a.png\n\n/SegNet/CamVid/images/c.png /SegNet/CamVid/masks/c.png\n")
    (tmp_path / "splits" / "val.txt").write_text("b 1\r\n")
    files = [f"{part}/{name}.png" for part in ("images", "masks") for name in ("a", "b 1", "c", "d")]
    for path in files:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    assert layout(tmp_path, "")[1] == {"train": ["a", "c"], "val": ["b 1"]}
    assert len(layout(tmp_path, "", split_files="none")[1]["train"]) == 3
    (tmp_path / "splits" / "val.txt").write_text("c\n")
    with pytest.raises(DataError, match=r"val.txt, line 1: 'c' is in splits/train.txt too"):
        layout(tmp_path, "")
    (tmp_path / "splits" / "val.txt").write_text("b 1\nz\n")
    with pytest.raises(DataError, match=r"val.txt, line 2: 'z' is not an image .*config.data.split_files=none"):
        layout(tmp_path, "")


def test_find_layout_folds_cover_every_image_once(tmp_path):
    files = " ".join(f"{part}/{i}.png" for part in ("images", "masks") for i in range(10))
    splits = [layout(tmp_path, files, folds=3, fold=fold, split_seed=7)[1] for fold in range(3)]
    assert sorted(name for each in splits for name in each["val"]) == [str(i) for i in range(10)]
    assert [len(each["val"]) for each in splits] == [4, 3, 3]
    assert all(not {*each["train"]} & {*each["val"]} for each in splits)
    assert layout(tmp_path, files, folds=3, split_seed=8)[1] != splits[0]


@pytest.mark.parametrize("options", [{}, {"folds": 2}], ids=["held out", "folds"])
def test_find_layout_groups_are_not_split(tmp_path, options):
    files = " ".join(f"{part}/p{p}_{i}.png" for part in ("images", "masks") for p in range(5) for i in range(3))
    _, names = layout(tmp_path, files, groups="{group}_*", **options)
    train, val = ({name[:2] for name in names[split]} for split in ("train", "val"))
    assert train | val == {f"p{p}" for p in range(5)}
    assert not train & val


def test_find_layout_group_in_two_given_splits(tmp_path):
    files = " ".join(
        f"{split}/{part}/p_{i}.png" for i, split in enumerate(("train", "val")) for part in ("images", "masks")
    )
    with pytest.raises(DataError, match=r"the group 'p' of config.data.groups is in train and in val"):
        layout(tmp_path, files, groups="{group}_*")


def test_find_layout_fraction_out_of_range(tmp_path):
    with pytest.raises(ValueError, match=r"val_fraction must lie in \(0, 1\); got 1.5"):
        find_layout(tmp_path, FolderOptions(val_fraction=1.5))


def test_layout_notes_count_and_name_what_is_left_out():
    notes = find_layout(CASES / "synology_eaDir").notes()
    assert any(re.search(r"left out 1 path \(.*\): images/@eaDir/$", line) for line in notes)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            "train-volume.tif train-labels.tif val-volume.tif val-labels.tif",
            "train: train-volume.tif with train-labels.tif; val: val-volume.tif with val-labels.tif",
        ),
        (
            "train/a/img.png train/a/label.png val/b/img.png val/b/label.png",
            "train: train/{stem}/img.png with train/{stem}/label.png; "
            "val: val/{stem}/img.png with val/{stem}/label.png",
        ),
    ],
)
def test_find_layout_description_of_names_that_are_roles(tmp_path, files, expected):
    assert layout(tmp_path, files)[0].description == expected


def test_find_layout_describes_a_pattern_of_the_options(tmp_path):
    found, _ = layout(tmp_path, "0.jpg 1.jpg 0_gt.png 1_gt.png", masks="{stem}_gt")
    assert "{stem}.jpg with {stem}_gt.png" in found.description


def test_find_layout_mask_pattern_beside_images_with_an_ending(tmp_path):
    files = " ".join(f"{name}_{end}.png" for name in "ab" for end in ("photo", "mask"))
    assert layout(tmp_path, files, masks="{stem}_mask")[0].splits["train"][0].image.path.endswith("_photo.png")


@pytest.mark.parametrize(
    ("files", "way_out"),
    [
        (["images/img_{}.png", "masks/mask_{}_seg.png"], "= 'img_{stem}' and config.data.masks = 'mask_{stem}_seg'"),
        (["images/img{}.png", "masks/mask{}.png"], "= 'img{stem}' and config.data.masks = 'mask{stem}'"),
        (["rgb/{}.png", "seg/{}.png"], "set config.data.images = 'rgb/{stem}'"),
    ],
    ids=["suffix", "digits", "folder"],
)
def test_find_layout_suggests_the_patterns_of_pairs(tmp_path, files, way_out):
    paths = " ".join(file.format(number) for number in (1, 10) for file in files)
    with pytest.raises(DataError, match=re.escape(way_out)):
        layout(tmp_path, paths)
