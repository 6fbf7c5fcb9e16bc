"""Scores from counts, and counts of images of any size."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from segjax import metrics
from segjax.data import VOID, DataError, open_split
from segjax.data.decode import DATASET_VALUES, ORIGIN_FILE, SCRIPT_MARK, SOURCE_KEYWORD
from segjax.training.evaluation import Progress, Scores, headline, score_masks, sum_counts
from segjax.training.segmentation import scores


def test_scores_show_a_table_in_a_notebook():
    found = scores({"confusion": np.eye(2, dtype=np.int64)})
    table = Scores(found | {"classes": ["road", "<b>"]})._repr_html_()
    assert "<td>&lt;b&gt;</td><td>1.000</td>" in table
    assert "mean_iou 1.000" in table


def test_headline_without_a_positive_is_mean_iou():
    histogram = metrics.score_histogram(jnp.full(5, -1.0), jnp.zeros(5, bool))
    found = scores({"confusion": np.array([[5, 0], [0, 0]]), "scores": np.asarray(histogram)})
    assert headline(found) == found["mean_iou"] == 1
    nothing = scores({"confusion": np.zeros((3, 3), np.int64)})
    assert headline(nothing) == -1


def test_progress_after_equal_and_better_scores():
    progress = Progress().after(2, -1.0)
    assert progress == (-1.0, 2, 0)
    assert not progress.has_stalled(1)
    progress = progress.after(4, -1.0)
    assert progress == (-1.0, 2, 1)
    assert progress.has_stalled(1)
    assert not progress.has_stalled(None)
    assert progress.after(6, 0.5) == (0.5, 6, 0)


@pytest.mark.parametrize("devices", [1, 4])
def test_sum_counts_every_pixel_of_images_of_different_sizes_once(tiny, devices):
    sizes = [(30, 40), (3, 4), (4, 3), (2, 2), (40, 30), (5, 5)]

    class Ones(SimpleNamespace):
        def __len__(self):
            return len(sizes)

        def __getitem__(self, i):
            return {"image": np.zeros((*sizes[i], 1), np.uint8), "label": np.full(sizes[i], i, np.uint8), "name": ""}

        def name(self, i):
            return ""

    shapes, tiny.training.eval_pixels = [], 100

    def count(batch):
        shapes.append(batch["label"].shape)
        kept = batch["label"][batch["where"]]
        return {"pixels": np.bincount(kept[kept != VOID], minlength=6)}

    fields = {
        "label_set": None,
        "channels": 1,
        "value_range": None,
        "dtype": "uint8",
        "native_size": None,
        "digest": "",
    }
    source = Ones(**fields, sizes=sizes, skipped=(), absent=(), unsure_turns=0, void=None, pixels=None, notes=())
    totals = sum_counts(count, source, tiny, devices=devices)
    assert totals["pixels"].tolist() == [height * width for height, width in sizes]
    assert max(np.prod(shape) for shape in shapes) == devices * 40 * 32


CASE = Path(__file__).parent.parent / "data" / "cases" / "train_valid"


@pytest.fixture
def labelled():
    """Returns the six labelled images of a made folder, with masks of 0 and 255."""
    data = {"manual_dir": str(CASE), "class_names": ("a", "b"), "mask_values": (0, 255)}
    return open_split(SimpleNamespace(name="folder", data_dir="", **data), "train")


def test_score_masks_of_the_labels_themselves(labelled):
    result = score_masks(labelled, CASE / "train" / "masks")
    assert (result["images"], result["mean_iou"], result["classes"]) == (6, 1.0, ["a", "b"])


def save_predicted(mask, file, *marks):
    text = PngInfo()
    for mark in marks or ((SOURCE_KEYWORD, "{}"),):
        text.add_text(*mark)
    Image.fromarray(mask).save(file, pnginfo=text)


@pytest.mark.parametrize("mark", [(SOURCE_KEYWORD, "{}"), SCRIPT_MARK], ids=["predict", "script"])
def test_score_masks_of_class_indices(labelled, tmp_path, mark):
    for i in range(6):
        mask = labelled[i]["label"].copy()
        mask[:, :10] = 1  # false positives
        save_predicted(mask, tmp_path / f"{labelled.name(i)}_mask.png", mark)
    result = score_masks(labelled, tmp_path)
    truth = np.stack([labelled[i]["label"] for i in range(6)])
    wrong = int((truth[..., :10] == 0).sum())
    assert result["confusion"] == [[int((truth == 0).sum()) - wrong, wrong], [0, int((truth == 1).sum())]]


def test_score_masks_of_dataset_values(labelled, tmp_path):
    for i in range(6):
        values = labelled[i]["label"] * np.uint8(255)
        save_predicted(values, tmp_path / f"{i}_mask.png", (SOURCE_KEYWORD, "{}"), DATASET_VALUES)
    assert score_masks(labelled, tmp_path)["mean_iou"] == 1


def test_score_masks_reads_unmarked_files_in_the_values_of_the_labels(labelled, tmp_path):
    for i in range(6):
        Image.fromarray(labelled[i]["label"] * np.uint8(255)).save(tmp_path / f"{i}_mask.png")
    assert score_masks(labelled, tmp_path)["mean_iou"] == 1


@pytest.mark.parametrize("classes", [["b", "a"], ["x", "b"], ["a", "x"]])
def test_score_masks_of_a_run_with_other_classes(labelled, tmp_path, classes):
    for i in range(6):
        save_predicted(labelled[i]["label"], tmp_path / f"{i}_mask.png")
    (tmp_path / ORIGIN_FILE).write_text(json.dumps({"classes": classes}))
    if classes == ["b", "a"]:
        with pytest.raises(DataError, match=r"0_mask\.png: .* the classes b, a, .*config\.data\.class_names"):
            score_masks(labelled, tmp_path)
    else:
        assert score_masks(labelled, tmp_path)["mean_iou"] == 1


def test_score_masks_of_two_files_of_one_image(labelled, tmp_path):
    for name in ("0", "0_mask"):
        Image.fromarray(labelled[0]["label"] * np.uint8(255)).save(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match=r"0_mask\.png and .*0\.png: two masks of the image 0.*another folder"):
        score_masks(labelled, tmp_path)


@pytest.mark.parametrize("predicted", [False, True])
def test_score_masks_of_images_whose_names_end_in_mask(labelled, tmp_path, predicted):
    masks = {name: labelled[i]["label"] for i, name in enumerate(("a", "a_mask"))}

    class Two(type(labelled)):
        def __len__(self):
            return len(masks)

        def name(self, index):
            return list(masks)[index]

        def __getitem__(self, index):
            name = self.name(index)
            return {"name": name, "label": masks[name]}

    two = copy.copy(labelled)
    two.__class__ = Two
    for name, mask in masks.items():
        if predicted:
            save_predicted(mask, tmp_path / f"{name}_mask.png")
        else:
            Image.fromarray(mask * np.uint8(255)).save(tmp_path / f"{name}.png")
    assert score_masks(two, tmp_path)["mean_iou"] == 1


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, "no mask of the image 0; expected 0_mask.png or 0.png"),
        (np.zeros((3, 4), np.uint8), "a mask of 3×4 for labels of 48×64; expected one size"),
        (np.full((48, 64), 255, np.uint8), "3072 pixels are void where the label has a class; .* are 255"),
        (np.full((48, 64), 2, np.uint8), "label id 2 is outside the 2 classes.* has other classes"),
    ],
    ids=["missing", "size", "void", "value"],
)
def test_score_masks_invalid(labelled, tmp_path, mask, message):
    if mask is not None:
        save_predicted(mask, tmp_path / "0_mask.png")
    with pytest.raises(DataError, match=message):
        score_masks(labelled, tmp_path)


def test_score_masks_of_indices_without_a_mark(labelled, tmp_path):
    Image.fromarray(labelled[0]["label"]).save(tmp_path / "0_mask.png")
    with pytest.raises(DataError, match=r"label id 1 is outside the 2 classes.* did not write this file"):
        score_masks(labelled, tmp_path)
