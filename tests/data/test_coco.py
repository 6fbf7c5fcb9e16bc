import json
import pickle
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from segjax.data import DataError, Part, open_split, train_loader
from segjax.data.coco import CocoSource, annotation_files

CATEGORIES = [{"id": 90, "name": "dog"}, {"id": 7, "name": "cat"}, {"id": 3, "name": "boat"}]
SIZES = {"a.jpg": (12, 16), "b.jpg": (16, 12), "c.png": (12, 16)}
# b has a crowd, a box without area and one outside the image; c has none.
ANNOTATIONS = [
    {"id": 5, "image_id": 40, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 10, "iscrowd": 0},
    {"id": 6, "image_id": 40, "category_id": 90, "bbox": [-2.5, 1, 6.0, 5], "area": 30, "iscrowd": 0},
    {"id": 7, "image_id": 40, "category_id": 3, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0},
    {"id": 8, "image_id": 41, "category_id": 90, "bbox": [0, 0, 12, 8], "area": 50, "iscrowd": 1},
    {"id": 9, "image_id": 41, "category_id": 90, "bbox": [4, 4, 0, 3]},
    {"id": 10, "image_id": 41, "category_id": 90, "bbox": [20, 4, 2, 3]},
    {"id": 11, "image_id": 41, "category_id": 90, "bbox": [2, 6, 8, 10]},
]


def content():
    """Returns the content of a file of annotations of three images, for tests to change."""
    images = [
        {"id": 40 + i, "file_name": name, "height": height, "width": width}
        for i, (name, (height, width)) in enumerate(SIZES.items())
    ]
    return json.loads(json.dumps({"images": images, "annotations": ANNOTATIONS, "categories": CATEGORIES}))


def write(root, annotations="annotations/instances_train2017.json", images="train2017", found=None):
    for i, (name, size) in enumerate(SIZES.items()):
        (root / images).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        assert cv2.imwrite(str(root / images / name), pixels)
    (root / annotations).parent.mkdir(parents=True, exist_ok=True)
    (root / annotations).write_text(json.dumps(content() if found is None else found))
    return root


def coco(root, **fields):
    """Returns the data fields of a config for cats and dogs."""
    fields = {"box_classes": ("cat", "dog"), "max_boxes": 4} | fields
    return SimpleNamespace(name="coco", data_dir="", manual_dir=str(root), **fields)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Returns a set in the official layout, whose validation set is its training set."""
    root = write(tmp_path_factory.mktemp("coco") / "set")
    return write(root, "annotations/instances_val2017.json", "val2017")


@pytest.fixture(scope="module")
def source(root):
    return open_split(coco(root), "train")


def test_coco_source_boxes_to_train_on(source):
    first, second, third = (source[i] for i in range(3))
    assert first["boxes"].tolist() == [[1, 2, 4, 6], [0, 1, 3.5, 6], [0] * 4, [0] * 4]
    assert first["classes"].tolist() == [0, 1, -1, -1]
    assert (second["boxes"][0].tolist(), second["classes"].tolist()) == ([2, 6, 10, 16], [1, -1, -1, -1])
    assert (third["classes"] == -1).all()
    assert [each["image"].shape for each in (first, second, third)] == [(12, 16, 3), (16, 12, 3), (12, 16, 3)]
    assert not first["label"].any()


def test_coco_source_objects_are_all_annotations(source):
    found = source.objects(range(3))
    assert found.where.sum(axis=1).tolist() == [2, 4, 0]
    assert found.boxes[0, 1].tolist() == [-2.5, 1, 3.5, 6]
    assert found.crowd[found.where].tolist() == [False, False, True, False, False, False]
    assert found.areas[found.where].tolist() == [10, 30, 50, 0, 6, 80]


def test_part_of_a_coco_source_has_the_objects_of_its_images(source):
    part = Part(source, 1)
    assert part.name(0) == source.name(1)
    np.testing.assert_array_equal(part.objects([0]).boxes, source.objects([1]).boxes)


def test_coco_source_facts(source):
    assert (len(source), source.channels, source.native_size, source.sizes) == (3, 3, None, list(SIZES.values()))
    assert source.label_set.names == ("background", "cat", "dog")
    assert source.name(2) == "c"
    assert list(source.notes) == [
        "train: 3 box(es) in 3 image(s)",
        "train: 2 box(es) have no area inside their image, and are not trained on",
    ]


def test_coco_source_survives_pickling(source):
    again = pickle.loads(pickle.dumps(source))
    assert (len(again), again.sizes, again.digest) == (3, source.sizes, source.digest)
    for index in range(3):
        np.testing.assert_equal(again[index], source[index])
    np.testing.assert_equal(again.objects([1]), source.objects([1]))


def test_coco_source_digest_depends_on_the_boxes(source, tmp_path):
    moved = content()
    moved["annotations"][0]["bbox"][0] += 1
    write(write(tmp_path, found=moved), "annotations/instances_val2017.json", "val2017")
    digests = {open_split(coco(tmp_path), split).digest for split in ("train", "val")}
    assert len(digests) == 2
    assert source.digest in digests


def test_train_loader_resizes_boxes_with_their_image(source):
    batch = next(train_loader(source, global_batch_size=3, seed=0, size=(24, 24)))
    assert "label" not in batch
    rows = {name: (batch["boxes"][i], batch["classes"][i]) for i, name in enumerate(batch["name"].tolist())}
    np.testing.assert_allclose(rows["a"][0][0], [1.5, 4, 6, 12])
    np.testing.assert_allclose(rows["b"][0][0], [4, 9, 20, 24])
    assert rows["a"][1].tolist() == [0, 1, -1, -1]


def test_train_loader_letterboxes_boxes_with_their_image(source):
    batch = next(train_loader(source, global_batch_size=3, seed=0, size=(24, 24), letterbox=True))
    rows = {name: (batch["boxes"][i], batch["size"][i]) for i, name in enumerate(batch["name"].tolist())}
    np.testing.assert_allclose(rows["a"][0][0], [1.5, 3, 6, 9])
    np.testing.assert_allclose(rows["b"][0][0], [3, 9, 15, 24])
    assert rows["a"][1].tolist() == [18, 24]


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/instances_default.json", "images/default"),
        ("train/_annotations.coco.json", "train"),
        ("result.json", "images"),
        ("labels.json", "."),
    ],
    ids=["official in images", "CVAT", "Roboflow", "Label Studio", "beside the images"],
)
def test_open_split_of_the_layouts_of_tools(annotations, images, tmp_path, source):
    write(tmp_path, annotations, images)
    train, val = (open_split(coco(tmp_path, val_fraction=0.1, split_seed=1), split) for split in ("train", "val"))
    assert sorted(each.name(i) for each in (train, val) for i in range(len(each))) == ["a", "b", "c"]
    assert train.notes[0].endswith("val is 1 of 3 images of train, by the hash of their names")


def test_annotation_files_of_a_set_with_other_tasks(root, tmp_path):
    files = annotation_files(root)
    assert {split: file.name for split, file in files.items()} == {
        "train": "instances_train2017.json",
        "val": "instances_val2017.json",
    }
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        write(tmp_path, f"{folder}/_annotations.coco.json", folder)
        assert annotation_files(tmp_path)[split].parent.name == folder


def changed(key, entry, **fields):
    def change(found):
        found[key][entry].update(fields)

    return change


def copied(key, **fields):
    def change(found):
        found[key].append(found[key][0] | fields)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("annotations", 0, category_id=8), r"annotation 5: its category_id 8 is not in the file"),
        (changed("annotations", 0, image_id=8), r"annotation 5: its image_id 8 is not in the file"),
        (
            changed("annotations", 0, bbox=[1, 2, -3, 4]),
            r"annotation 5 of a\.jpg: bbox is \[1, 2, -3, 4\]; .* at least 0",
        ),
        (changed("annotations", 0, bbox=[1, 2, float("nan"), 4]), r"bbox is \[1, 2, nan, 4\]; expected .* finite"),
        (
            changed("annotations", 0, bbox=None),
            r"annotation 5 of a\.jpg: bbox is None; expected \[x, y, width, height\]",
        ),
        (changed("annotations", 0, area=-1), r"annotation 5 of a\.jpg: area is -1; expected a finite number"),
        (changed("annotations", 0, iscrowd=2), r"annotation 5 of a\.jpg: iscrowd is 2; expected 0 or 1"),
        (changed("annotations", 1, id=5), r"two annotations have the id 5; expected different ids"),
        (copied("images"), r"images: two have the id 40"),
        (copied("images", id=1), r"two images have the file_name 'a\.jpg'; expected one"),
        (copied("categories"), r"categories: two have the id 90"),
        (changed("images", 0, file_name="x.jpg"), r"the image 'x\.jpg': no file of this name .*\.on_error=skip"),
        (changed("images", 0, height=16, width=12), r"a\.jpg: 12×16 \(height×width\), and annotated as 16×12"),
        (changed("images", 0, height=0), r"a\.jpg: a size of 0×16 \(height×width\); expected at least 1 pixel"),
        (lambda found: found.update(annotations=[]), r"train: no box of .* \('cat', 'dog'\) in 3 image\(s\); expected"),
        (lambda found: found.update(images=[], annotations=[]), r"no images; expected at least one"),
        (lambda found: found.pop("categories"), r"expected COCO annotations of objects; "),
    ],
)
def test_open_split_of_bad_annotations(change, message, tmp_path):
    found = content()
    change(found)
    write(write(tmp_path, found=found), "annotations/instances_val2017.json", "val2017")
    with pytest.raises(DataError, match=message):
        open_split(coco(tmp_path), "train")


@pytest.mark.parametrize(
    ("fields", "split", "message"),
    [
        (
            {"box_classes": ("cat", "cow")},
            "train",
            r"box_classes: 'cow' is not a category of .* which has dog, cat, boat",
        ),
        ({"max_boxes": 1}, "train", r"a\.jpg: 2 objects; config\.data\.max_boxes = 1: raise it"),
        ({}, "test", r"split 'test' does not exist; valid: train, val"),
        ({"val_fraction": 1.5}, "train", r"config\.data\.val_fraction must lie in \(0, 1\); got 1\.5"),
    ],
)
def test_open_split_of_coco_with_bad_options(fields, split, message, root):
    with pytest.raises(DataError, match=message):
        open_split(coco(root, **fields), split)


def test_open_split_skips_bad_images(root, tmp_path):
    write(write(tmp_path), "annotations/instances_val2017.json", "val2017")
    (tmp_path / "train2017" / "b.jpg").unlink()
    (tmp_path / "train2017" / "c.png").write_bytes(b"no image")
    source = open_split(coco(tmp_path, on_error="skip"), "train")
    assert isinstance(source, CocoSource)
    assert [source.name(i) for i in range(len(source))] == ["a"]
    assert ["b.jpg" in source.skipped[0], "c.png" in source.skipped[1]] == [True, True]


def test_annotation_files_without_one_per_split(tmp_path):
    with pytest.raises(DataError, match=r"no COCO annotations; expected annotations/instances_train2017\.json"):
        annotation_files(tmp_path)
    write(write(tmp_path, "one.json"), "two.json")
    with pytest.raises(DataError, match=r"one\.json: its path has no split; expected one file per split"):
        annotation_files(tmp_path)


def test_open_split_without_a_folder(monkeypatch):
    monkeypatch.delenv("SEGJAX_COCO_DIR", raising=False)
    with pytest.raises(DataError, match=r"coco: set config\.data\.manual_dir or \$SEGJAX_COCO_DIR to its images"):
        open_split(coco(""), "train")
