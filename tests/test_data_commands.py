"""`segjax data masks`, `check` and `show`, in this process, on a set of ten COCO objects made here."""

import json
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from segjax.cli import ConfigFile
from segjax.configs import folder_multilabel
from segjax.data.layout import find_layout
from segjax.training import open_split

SIZE = (32, 48)
OBJECTS = [(i, "cat" if i % 2 else "dog", [i, 2, i + 9, 2, i + 9, 20, i, 20]) for i in range(9)]
OBJECTS.append((0, "cat", [0, 10, 20, 10, 20, 30, 0, 30]))


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Returns a COCO file beside its folder of ten images, of which the last has no object."""
    root = tmp_path_factory.mktemp("coco")
    (root / "images").mkdir()
    for i in range(10):
        noise = np.random.default_rng(i).integers(0, 256, (*SIZE, 3), np.uint8)
        cv2.imwrite(str(root / f"images/{i}.png"), noise)
    categories = {"dog": 5, "cat": 2}
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in range(10)],
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": [
            {"id": i, "image_id": image, "category_id": categories[name], "segmentation": [points]}
            for i, (image, name, points) in enumerate(OBJECTS)
        ],
    }
    (root / "instances.json").write_text(json.dumps(content))
    return root / "instances.json"


@pytest.fixture
def root(coco, tmp_path, run_command):
    """Returns the folder that `segjax data masks` writes."""
    status, _, error = run_command("data", "masks", coco, f"--output={tmp_path / 'mine'}")
    assert (status, error) == (0, "")
    return tmp_path / "mine"


def test_masks_writes_images_indices_and_classes(coco, root):
    expected = np.zeros(SIZE, np.uint8)
    expected[2:20, :9], expected[10:30, :20] = 1, 2  # a dog, and over it a cat
    np.testing.assert_array_equal(Image.open(root / "masks/0.png"), expected)
    assert (root / "images/0.png").read_bytes() == (coco.parent / "images/0.png").read_bytes()
    assert (root / "classes.csv").read_text() == "name,id\nbackground,0\ndog,1\ncat,2\n"


def test_masks_names_shared_pixels_and_the_next_command(coco, tmp_path, run_command):
    _, shown, _ = run_command("data", "masks", coco, f"--output={tmp_path / 'mine'}", "--overlap=small")
    assert re.search(r"\n90 pixels .*--overlap=small: the smallest one", shown)
    assert f"Next: segjax data check {tmp_path / 'mine'}" in shown
    assert run_command("data", "masks", coco, f"--output={tmp_path / 'mine'}")[0] == 0  # again, over its own files


def test_masks_splits_share_their_classes(coco, root, run_command):
    options = [coco, f"--output={root}", "--split=val"]
    assert run_command("data", "masks", *options)[0] == 0
    assert (root / "val/masks/0.png").read_bytes() == (root / "masks/0.png").read_bytes()
    status, _, error = run_command("data", "masks", *options, "--classes=cat,dog")
    assert (status, "classes.csv: has other classes than background, cat, dog" in error) == (1, True)


def test_masks_keep_overlaps_as_a_mask_per_class(coco, tmp_path, run_command):
    root = tmp_path / "mine"
    status, shown, _ = run_command("data", "masks", coco, f"--output={root}", "--overlap=keep")
    assert status == 0
    assert re.search(r"\n90 pixels .*--overlap=keep: all of them", shown)
    masks = {name: np.array(Image.open(root / "masks" / name / "0.png")) for name in ("cat", "dog")}
    assert ((masks["cat"] == 255) & (masks["dog"] == 255)).any()
    assert not (root / "classes.csv").exists()
    assert f"--config.data.manual_dir={root} --config.data.class_names=\"('dog', 'cat')\"" in shown
    data = folder_multilabel.get_config().data
    data.manual_dir, data.class_names = str(root), ("dog", "cat")
    source = open_split(data, "all")
    np.testing.assert_array_equal(source.label_set.combinations[source[0]["label"]][..., 1], masks["cat"] == 255)


@pytest.mark.parametrize("names", [("#cat",), ("ignore",), ("1", "class 1"), (" cat",)])
def test_masks_class_that_the_file_of_classes_cannot_contain(coco, tmp_path, run_command, names):
    content = json.loads(coco.read_text())
    content["categories"] += [{"id": 90 + i, "name": name} for i, name in enumerate(names)]
    (tmp_path / "a.json").write_text(json.dumps(content))
    options = (f"--output={tmp_path / 'mine'}", f"--images={coco.parent / 'images'}")
    status, _, error = run_command("data", "masks", tmp_path / "a.json", *options)
    assert status == 1
    assert re.search(r"the class '.*' cannot be stored in classes.csv: .* leave it out with --classes", error)


def test_masks_size_of_another_image_is_refused(coco, tmp_path, run_command):
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images/0.png"), np.zeros((8, 8), np.uint8))
    options = [f"--output={tmp_path / 'mine'}", f"--images={tmp_path / 'images'}"]
    _, _, error = run_command("data", "masks", coco, *options)
    assert re.search(r"images/0.png: the image is 8×8, its annotations are for 32×48 \(.*instances.json\)", error)


def test_masks_of_pascal_voc_keep_their_splits(tmp_path, run_command):
    voc, root = tmp_path / "voc", tmp_path / "mine"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    for i in range(3):
        mask = np.zeros((*SIZE, 3), np.uint8)
        mask[4:9] = (0, 0, 128)  # an aeroplane, in OpenCV's order of the colours
        cv2.imwrite(str(voc / f"JPEGImages/{i}.jpg"), mask)
        cv2.imwrite(str(voc / f"SegmentationClass/{i}.png"), mask)
    (voc / "ImageSets/Segmentation/train.txt").write_text("0\n2\n")
    (voc / "ImageSets/Segmentation/val.txt").write_text("1\n")
    assert run_command("data", "masks", voc, f"--output={root}", "--classes=aeroplane")[0] == 0
    names = {split: [pair.name for pair in pairs] for split, pairs in find_layout(root).splits.items()}
    assert names == {"train": ["0", "2"], "val": ["1"]}


def test_check_writes_a_config_that_opens_the_folder(root, run_command):
    file = root / "mine.py"
    status, shown, _ = run_command("data", "check", root, f"--output={file}", "--config.training.steps=7")
    config = ConfigFile("config").parse(str(file))
    assert status == 0
    assert "config.training.steps = 7" in shown
    assert config.training.steps == 7
    assert config.data.class_names == ("background", "dog", "cat")
    assert [len(open_split(config.data, split)) for split in ("train", "val")] == [9, 1]


def test_check_keeps_a_file_of_the_user(root, run_command):
    (root / "mine.py").write_text("mine = 1\n")
    status, _, error = run_command("data", "check", root, f"--output={root / 'mine.py'}")
    assert (status, "mine.py: exists, and segjax did not write it" in error) == (1, True)
    assert (root / "mine.py").read_text() == "mine = 1\n"


def test_check_begins_with_the_reasons_of_a_refusal(root, run_command):
    (root / "images/3.png").write_bytes(b"")
    status, shown, _ = run_command("data", "check", root, f"--output={root / 'mine.py'}")
    assert status == 1
    assert re.match("training would refuse this folder: .*images/3.png: cannot be decoded", shown)
    assert not (root / "mine.py").exists()


def test_train_on_a_folder_that_check_refuses(root, run_command):
    (root / "images/3.png").write_bytes(b"")
    status, _, error = run_command("train", f"--data={root}", f"--workdir={root / 'run'}")
    assert status == 1
    assert re.match(r"error: .*images/3.png: cannot be decoded.*\. segjax data check .* describes the folder", error)
    assert not (root / "run").exists()


@pytest.mark.parametrize(
    ("command", "argument"),
    [(("train", "--workdir=run"), "--data="), (("data", "check"), "ROOT="), (("data", "show"), "ROOT=")],
    ids=["train", "check", "show"],
)
@pytest.mark.parametrize(("name", "problem"), [("absent", "does not exist"), ("notes.txt", "is a file")])
def test_check_image_folder_names_the_argument(tmp_path, run_command, command, argument, name, problem):
    (tmp_path / "notes.txt").write_text("x")
    given = f"{'--data=' * (command[0] == 'train')}{tmp_path / name}"
    status, _, error = run_command(*command, given)
    assert status == 1
    expected = f"{argument}{tmp_path / name}: expected a folder of images and masks; it {problem}. Correct the path;"
    assert error.startswith(f"error: {expected}")


def test_check_of_wrong_fields_shows_the_values_of_the_masks(root, run_command):
    status, shown, _ = run_command("data", "check", root, "--config.data.mask_values=(0,9)")
    assert status == 1
    assert re.search(r"Values of the masks.*\n 0 .*%.* 10 \n 2 .*%.* 5 \n 1 .*%.* 5 \n", shown, re.DOTALL)


def test_check_lists_classes_in_the_order_of_class_names(root, run_command):
    _, shown, _ = run_command("data", "check", root)
    table = shown[shown.index("Classes") : shown.index("Highest IoU")]
    assert re.findall(r"^ (background|dog|cat|void) ", table, re.MULTILINE) == ["background", "dog", "cat", "void"]
    assert "class_names = ('background', 'dog', 'cat')" in shown


def test_options_of_another_command_are_refused(root, run_command):
    status, _, error = run_command("data", "check", root, "--split=val")
    assert status == 1
    assert error.startswith("error: --split belongs to segjax data masks, not to segjax data check")


def test_show_writes_one_page_with_the_rarest_class_first(root, run_command):
    status, _, error = run_command("data", "show", root, f"--output={root / 'page.html'}", "--images_per_class=1")
    page = (root / "page.html").read_text()
    assert (status, error) == (0, "")
    assert re.findall("<h2 [^>]*>(.*)</h2>", page) == ["Folder", "dog", "cat", "background", "Provenance"]
    assert (page.count("data:image/jpeg;base64,"), page.count("data:image/png;base64,")) == (3, 1)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
