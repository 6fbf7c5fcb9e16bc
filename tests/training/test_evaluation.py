"""Scores from counts, and counts of images of any size."""

import copy
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sklearn.metrics import roc_auc_score

from segjax import metrics
from segjax.data import UNSEEN, VOID, DataError, corrupt, open_split
from segjax.data.augment import example_keys
from segjax.data.decode import DATASET_VALUES, ORIGIN_FILE, SCRIPT_MARK, SOURCE_KEYWORD
from segjax.data.resize import resize
from segjax.inference import Ensemble, Preprocessing
from segjax.models import Segmentation
from segjax.training.evaluation import (
    Scores,
    headline,
    make_eval_step,
    make_score_counts,
    preprocessing_of,
    score_masks,
    scores,
    sum_counts,
    sum_over_strips,
    unknown_scores,
)
from segjax.training.objective import hparams_from_config, make_objective
from segjax.training.train_step import TrainState, init_state, make_model


def counted(logits, labels):
    @jax.jit
    def count(logits, labels):
        confusion = metrics.confusion_matrix(labels, (logits > 0).astype(jnp.int32), 2)
        return {"confusion": confusion, "scores": metrics.score_histogram(logits, labels == 1)}

    return {key: np.asarray(one, np.int64) for key, one in count(logits, labels).items()}


def test_scores_best_iou_and_its_threshold():
    rng = np.random.default_rng(0)
    labels = (rng.random(4000) < 0.1).astype(np.int32)
    # Nearly every positive is below 0, so that 0 is a bad threshold.
    logits = (2 * labels + rng.normal(-3, 1, labels.shape)).astype(np.float32)
    found = scores(counted(logits, labels))

    def iou(threshold):
        predicted = logits >= threshold
        return (predicted & (labels == 1)).sum() / (predicted | (labels == 1)).sum()

    assert found["best_iou"] == pytest.approx(max(map(iou, np.sort(logits))), abs=5e-3)
    assert found["best_iou"] > found["iou_per_class"][1] + 0.1
    logit = np.log(found["best_threshold"] / (1 - found["best_threshold"]))
    assert found["best_iou"] == pytest.approx(iou(logit), rel=1e-3)


def test_scores_show_a_table_in_a_notebook():
    found = scores(counted(np.array([1.0, -1.0], np.float32), np.array([1, 0], np.int32)))
    table = Scores(found | {"classes": ["road", "<b>"]})._repr_html_()
    assert "<td>&lt;b&gt;</td><td>1.000</td>" in table
    assert "mean_iou 1.000" in table


def test_scores_without_a_positive_are_nan():
    found = scores(counted(np.full(5, -1.0, np.float32), np.zeros(5, np.int32)))
    assert np.isnan([found["best_iou"], found["best_threshold"], found["average_precision"]]).all()


def test_make_score_counts_average_precision_of_the_rare_class(tiny):
    """Exchanging the classes exchanges rare and common, and the rare class keeps its scores."""
    tiny.data.name, tiny.data.class_names = "folder", ("crack", "background")
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 8, 9, 2)).astype(np.float32), rng.integers(0, 5, (2, 8, 9)).clip(0, 1)
    where, found = np.ones(labels.shape, bool), {}
    for name, flip in (("crack", False), ("background", True)):
        tiny.data.rare_class = name
        count = jax.jit(make_score_counts(tiny, 2, None))
        arrays = (logits[..., ::-1], 1 - labels) if flip else (logits, labels)
        found[name] = scores(count(*arrays, where, hparams_from_config(tiny)))
    for key in ("average_precision", "best_iou", "best_threshold"):
        assert found["crack"][key] == found["background"][key]


def test_scores_of_three_classes_have_no_ranking():
    confusion = np.asarray(metrics.confusion_matrix(np.array([0, 1, 2]), np.array([0, 1, 1]), 3), np.int64)
    assert {"best_iou", "average_precision", "auroc"} & scores({"confusion": confusion}).keys() == set()


def test_make_score_counts_pixel_loss_with_void_as_a_class_is_that_of_training(tiny):
    tiny.objective.loss, tiny.objective.void = "softmax_cross_entropy", "class"
    rng, hparams = np.random.default_rng(0), hparams_from_config(tiny)
    outputs = jnp.asarray(rng.normal(size=(2, 5, 6, 3)), jnp.float32)
    labels = jnp.asarray(rng.choice([0, 1, VOID], (2, 5, 6)), jnp.int32)
    beside = ((0, 0), (0, 0), (0, 2))  # columns that are not of the images

    @jax.jit
    def losses_of(outputs, labels):
        _, parts = make_objective(tiny, 2)(Segmentation(outputs, None, None, outputs), labels, hparams)
        labels, outputs = jnp.pad(labels, beside, constant_values=-1), jnp.pad(outputs, (*beside, (0, 0)))
        where = (labels >= 0) & (labels != VOID)
        return parts["pixel_loss"], make_score_counts(tiny, 2, None)(outputs, labels, where, hparams)

    expected, counts = jax.device_get(losses_of(outputs, labels))
    assert scores(counts)["pixel_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_unknown_scores_rank_as_their_formulas():
    logits = 6 * np.random.default_rng(0).normal(size=(200, 4))
    found = jax.device_get(jax.jit(unknown_scores)(jnp.asarray(logits, jnp.float32)))
    p = scipy.special.softmax(logits, axis=-1)
    top = np.sort(p, axis=-1)
    expected = {
        "max_probability": 1 - top[:, -1],
        "entropy": scipy.special.entr(p).sum(-1),
        "margin": 1 - (top[:, -1] - top[:, -2]),
        "max_logit": -logits.max(-1),
        "energy": -scipy.special.logsumexp(logits, axis=-1),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert scipy.stats.spearmanr(found[name], values).statistic > 1 - 1e-6, name
        assert (np.abs(found[name]) <= 16).mean() > 0.95, name


def test_unknown_scores_of_an_ensemble_leave_out_those_of_the_evidence():
    found = jax.eval_shape(partial(unknown_scores, is_ensemble=True), jax.ShapeDtypeStruct((1, 3), jnp.float32))
    assert found.keys() == {"max_probability", "entropy", "margin"}


def test_make_score_counts_unseen_pixels_against_known_ones(tiny):
    tiny.data.name, tiny.data.unseen_classes = "road_debris_scene", ("debris",)
    tiny.objective.loss = "softmax_cross_entropy"
    rng, count, hparams = np.random.default_rng(0), make_score_counts(tiny, 4, None), hparams_from_config(tiny)
    outputs = rng.normal(size=(2, 9, 8, 4)).astype(np.float32)
    labels = rng.choice([0, 1, 2, 3, UNSEEN, VOID, -1], (2, 9, 8)).astype(np.int32)
    where = (labels != VOID) & (labels >= 0)
    unknown = labels == UNSEEN
    count = jax.jit(count)
    found = scores(jax.device_get(count(outputs, labels, where, hparams)))
    energy = -scipy.special.logsumexp(outputs, axis=-1)[where]
    assert found["unknown"]["energy"]["auroc"] == pytest.approx(roc_auc_score(unknown[where], energy), abs=3e-3)
    assert found["unknown"]["share"] == unknown[where].mean()
    without = scores(jax.device_get(count(outputs, np.where(unknown, VOID, labels), where & ~unknown, hparams)))
    assert found["confusion"] == without["confusion"]
    assert found["pixel_loss"] == without["pixel_loss"]
    assert np.isnan(without["unknown"]["energy"]["auroc"])


def test_headline_without_a_positive_is_mean_iou():
    found = scores(counted(np.full(5, -1.0, np.float32), np.zeros(5, np.int32)))
    assert headline(found) == found["mean_iou"] == 1
    nothing = scores({"confusion": np.zeros((3, 3), np.int64)})
    assert headline(nothing) == -1


def count_confusion(logits, labels, where):
    return {"confusion": metrics.confusion_matrix(labels, logits.argmax(-1), 3, where=where)}


@pytest.fixture
def batch():
    """Returns two images of different sizes and a filler, labelled with three classes and void."""
    labels = np.random.default_rng(0).choice([0, 1, 2, VOID], (3, 23, 13)).astype(np.uint8)
    labels[1, 17:], labels[1, :, 5:] = VOID, VOID
    return {"label": labels, "size": np.array([[23, 13], [17, 5], [23, 13]]), "where": np.array([True, True, False])}


STRETCHED = Preprocessing((8, 6), 3, (0.5,), (0.5,), 3)
LOGITS = np.random.default_rng(1).normal(size=(3, 8, 6, 3)).astype(np.float32)


@pytest.mark.parametrize("max_pixels", [1, 40, 23 * 12])  # strips of one row, of three, and two strips
def test_sum_over_strips_counts_of_the_whole(batch, max_pixels):
    where = (batch["label"] != VOID) & batch["where"][:, None, None]

    @jax.jit
    def found_and_expected(maps, batch):
        whole = resize(maps, (23, 13), antialias=False, to_sizes=batch["size"])
        expected = count_confusion(whole, batch["label"].astype(jnp.int32), where)
        return sum_over_strips(count_confusion, maps, batch, STRETCHED, max_pixels)["confusion"], expected["confusion"]

    found, expected = found_and_expected(LOGITS, batch)
    np.testing.assert_array_equal(found, expected)
    assert expected.sum() == where.sum() > 100


def test_sum_over_strips_invalid_labels_stay_negative(batch):
    batch["label"][0, [2, 20]] = 7  # in two strips: the sum of two of the smallest int32 is 0
    found = jax.jit(lambda maps, batch: sum_over_strips(count_confusion, maps, batch, STRETCHED, 100))(LOGITS, batch)
    assert (np.asarray(found["confusion"]) < 0).all()


def test_make_eval_step_memory_of_a_large_image(tiny):
    """A photo of 24 megapixels takes 6.3 GB in a batch of 8 that is counted at once."""
    tiny.model.depth = 1
    model, shape = make_model(tiny, 2, None), (1, 4000, 6000)
    state = jax.eval_shape(lambda: init_state(tiny, model))
    batch = {"image": (*shape, 3), "label": shape, "size": (1, 2), "where": (1,), "index": (1,)}
    dtypes = {"image": jnp.uint8, "label": jnp.uint8, "size": jnp.int32, "where": bool, "index": jnp.int32}
    batch = {key: jax.ShapeDtypeStruct(batch[key], dtypes[key]) for key in batch}
    step = jax.jit(make_eval_step(tiny, model, 2, None))
    memory = step.lower(state, batch, hparams_from_config(tiny)).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.argument_size_in_bytes < 450e6


def test_make_eval_step_counts_corrupted_images(tiny, batch):
    """The network returns its first channel."""
    first = SimpleNamespace(apply=lambda variables, images, train: SimpleNamespace(logits=images[..., :1]))
    state, hparams = TrainState(*[None] * 7), hparams_from_config(tiny)
    images = np.random.default_rng(0).integers(0, 256, (3, 23, 13, 3)).astype(np.uint8)
    inputs = jax.tree.map(jnp.asarray, batch | {"image": images, "index": np.int32([4, 2, 6])})
    inputs["label"] = jnp.where(inputs["label"] == 2, VOID, inputs["label"])

    @jax.jit
    def corrupted(inputs):
        keys = example_keys(jax.random.key(0), 0, inputs["index"])
        return corrupt(inputs["image"], keys, kind="impulse_noise", severity=5, sizes=inputs["size"])

    step = jax.jit(make_eval_step(tiny, first, 2, None))
    expected = step(state, inputs | {"image": corrupted(inputs)}, hparams)
    unchanged = step(state, inputs, hparams)
    found = jax.jit(make_eval_step(tiny, first, 2, None, ("impulse_noise", 5)))(state, inputs, hparams)
    np.testing.assert_array_equal(found["confusion"], expected["confusion"])
    assert (found["confusion"] != unchanged["confusion"]).any()


def test_make_eval_step_ranks_unseen_pixels_by_the_disagreement_of_the_members(tiny):
    """The network is linear in the pixels."""
    tiny.data.name, tiny.data.unseen_classes, tiny.data.size = "road_debris_scene", ("debris",), (16, 24)
    tiny.objective.loss = "softmax_cross_entropy"
    linear = SimpleNamespace(apply=lambda variables, images, train: SimpleNamespace(logits=images @ variables["w"]))
    rng, size = np.random.default_rng(0), np.int32([[16, 24]] * 2)
    kernels = rng.normal(size=(3, 3, 4)).astype(np.float32)
    labels = rng.choice([0, 1, 2, 3, UNSEEN, VOID], (2, 16, 24)).astype(np.uint8)
    batch = {"image": rng.integers(0, 256, (2, 16, 24, 3)).astype(np.uint8), "label": labels, "size": size}
    batch |= {"where": np.ones(2, bool), "index": np.arange(2, dtype=np.int32)}
    state, step = TrainState(*[None] * 7), make_eval_step(tiny, Ensemble(linear, 3, 4), 4, None)
    counts = jax.jit(step)(state.replace(ema={"w": kernels}), batch, hparams_from_config(tiny))
    found = scores(jax.device_get(counts))
    inputs = np.asarray(preprocessing_of(tiny, 4).normalise(jnp.asarray(batch["image"])))
    p = scipy.special.softmax(inputs @ kernels[:, None, None], axis=-1)
    disagreement = scipy.special.entr(p.mean(0)).sum(-1) - scipy.special.entr(p).sum(-1).mean(0)
    where = labels != VOID
    expected = roc_auc_score(labels[where] == UNSEEN, disagreement[where])
    assert found["unknown"]["mutual_information"]["auroc"] == pytest.approx(expected, abs=2e-3)


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
