"""Classes that overlap: their config, objective, scores, and one run from a folder to masks."""

import json
import runpy
from dataclasses import replace
from functools import partial

import cv2
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from scipy.ndimage import distance_transform_edt
from sklearn.metrics import average_precision_score

from segjax import export, losses
from segjax.collectives import pmean
from segjax.data import VOID, label_set
from segjax.data.augment import example_keys
from segjax.inference import PredictOptions
from segjax.models import Segmentation
from segjax.trained_run import TrainedRun, guaranteed_mask, load_run, score_run, stored_scaling
from segjax.training import ConfigError, train, validate
from segjax.training.multilabel import (
    make_objective,
    make_score_counts,
    microbatch_shares,
    scores,
)
from segjax.training.network import make_model
from segjax.training.objective import hparams_from_config
from segjax.training.train_step import init_state, make_augmentation, rare_train_ids, split, task_of

RNG = np.random.default_rng(0)
SIZE = (8, 12)
LABELS = RNG.integers(0, 4, (4, *SIZE)).astype(np.int32)  # none, rust, crack, both
LABELS[:, :2], LABELS[2] = VOID, 0  # the third image has no class
LABELS[3] = VOID
LOGITS = RNG.normal(0, 3, (4, *SIZE, 2)).astype(np.float32)
TARGETS = np.stack([(LABELS & 1) * 1.0, (LABELS >> 1 & 1) * 1.0], axis=-1)
EXISTS = np.broadcast_to((LABELS != VOID)[..., None], TARGETS.shape)


@pytest.fixture
def overlapping(tiny):
    """Returns the config of rust and crack in a folder."""
    tiny.data.name, tiny.data.multilabel, tiny.data.class_names = "folder", True, ("rust", "crack")
    tiny.objective.loss = "sigmoid_cross_entropy"
    return tiny


def objective_of(config):
    objective, hparams = make_objective(config, 2), hparams_from_config(config)
    return jax.jit(lambda z, y: objective(Segmentation(z, None, None, None), y, hparams))


def test_objective_is_the_mean_binary_cross_entropy_of_all_classes(overlapping):
    total, parts = objective_of(overlapping)(LOGITS, LABELS)
    z = LOGITS.astype(np.float64)
    each = np.logaddexp(0, np.where(TARGETS == 1, -z, z))
    np.testing.assert_allclose(total, each[EXISTS].mean(), rtol=1e-5)
    assert parts.keys() == {"pixel_loss"}


def test_objective_normalizer_ohem_and_alpha_count_logits(overlapping):
    overlapping.objective.normalizer, overlapping.objective.alpha = "positives", 0.75
    overlapping.objective.negatives_per_positive = 1.0
    total, _ = objective_of(overlapping)(LOGITS, LABELS)
    z = LOGITS.astype(np.float64)
    each = np.where(TARGETS == 1, 0.75 * np.logaddexp(0, -z), 0.25 * np.logaddexp(0, z))
    positive = each[EXISTS & (TARGETS == 1)]
    negative = np.sort(each[EXISTS & (TARGETS == 0)])[::-1][: len(positive)]
    np.testing.assert_allclose(total, (positive.sum() + negative.sum()) / len(positive), rtol=1e-5)


def test_objective_region_loss_is_of_independent_channels(overlapping):
    overlapping.objective.region, overlapping.objective.region_weight = "dice", 0.5
    total, parts = objective_of(overlapping)(LOGITS, LABELS)
    p, t = np.where(EXISTS, 1 / (1 + np.exp(-LOGITS.astype(np.float64))), 0), np.where(EXISTS, TARGETS, 0)
    axes = (1, 2)
    dice = [2 * (p * t).sum(axes), (p + t).sum(axes)]
    counted = t.sum(axes) > 0
    np.testing.assert_allclose(parts["region_loss"], 1 - (dice[0][counted] / dice[1][counted]).mean(), rtol=1e-5)
    np.testing.assert_allclose(total, parts["pixel_loss"] + 0.5 * parts["region_loss"], rtol=1e-6)


@pytest.mark.parametrize("over", ["image", "batch"])
def test_objective_lovasz_hinge_is_the_mean_over_the_classes(over, overlapping):
    overlapping.objective.region, overlapping.objective.region_over = "lovasz_hinge", over
    validate(overlapping)
    _, parts = objective_of(overlapping)(LOGITS, LABELS)
    where, by_image = LABELS != VOID, over == "image"
    alone = [
        losses.lovasz_hinge_loss(LOGITS[..., c], TARGETS[..., c], where=where, over_batch=not by_image)
        for c in range(2)
    ]
    np.testing.assert_allclose(parts["region_loss"], np.mean(alone), rtol=1e-5)


def test_objective_calibration_loss_is_of_independent_channels(overlapping):
    overlapping.objective.calibration_weight, overlapping.objective.calibration_bins = 2.0, 5
    total, parts = objective_of(overlapping)(LOGITS, LABELS)
    options = {"num_bins": 5, "where": EXISTS, "activation": "sigmoid"}
    direct = losses.average_calibration_loss(LOGITS, TARGETS, **options)
    np.testing.assert_allclose(parts["calibration_loss"], direct, rtol=1e-5)
    np.testing.assert_allclose(total, parts["pixel_loss"] + 2 * direct, rtol=1e-5)


def test_objective_region_class_weights_are_of_the_channels(overlapping):
    overlapping.objective.region, overlapping.objective.region_class_weights = "dice", (1.0, 0.0)
    validate(overlapping)
    labels = LABELS.copy()
    labels[labels != VOID] &= 1  # without the second class, whose weight is 0
    found = [objective_of(overlapping)(LOGITS, one)[1]["region_loss"] for one in (LABELS, labels)]
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_objective_boundary_weights_are_those_of_the_combinations(overlapping):
    overlapping.objective.boundary_factor, overlapping.objective.boundary_mode = 3.0, "thick"
    labels = np.zeros((1, *SIZE), np.int32)
    labels[:, :, 6:] = 3
    total, _ = objective_of(overlapping)(jnp.zeros((1, *SIZE, 2)), labels)
    np.testing.assert_allclose(total, np.log(2) * (10 + 3 * 2) / 12, rtol=1e-6)  # two columns of 12


def test_objective_label_outside_the_combinations_is_nan(overlapping):
    labels = LABELS.copy()
    labels[0, -1, -1] = 4
    assert np.isnan(objective_of(overlapping)(LOGITS, labels)[0])


def test_objective_and_gradient_on_devices_are_those_of_one(overlapping):
    overlapping.objective.region, overlapping.objective.normalizer = "jaccard", "positives"
    objective, hparams = make_objective(overlapping, 2), hparams_from_config(overlapping)

    def step(scale, logits, labels, axis_name=None):
        def total(scale):
            return objective(Segmentation(scale * logits, None, None, None), labels, hparams, axis_name)[0]

        value, gradient = jax.value_and_grad(total)(scale)
        return value, pmean(gradient, axis_name)

    mesh = jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {"in_specs": (PartitionSpec(), *[PartitionSpec("devices")] * 2), "out_specs": PartitionSpec()}
    mapped = jax.shard_map(partial(step, axis_name="devices"), mesh=mesh, **specs, check_vma=False)
    found = [jax.jit(one)(jnp.float32(0.5), LOGITS, LABELS) for one in (step, mapped)]
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("normalizer", ["valid", "positives"])
def test_microbatch_shares_make_the_microbatches_equal_the_whole_batch(normalizer, overlapping):
    overlapping.objective.normalizer = normalizer
    objective = objective_of(overlapping)
    logits, labels = split((jnp.asarray(LOGITS), jnp.asarray(LABELS)), 2)
    shares = microbatch_shares(labels, overlapping, 2, None)["pixel_loss"]
    parts = [objective(*one)[0] for one in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(shares @ np.array(parts), objective(LOGITS, LABELS)[0], rtol=1e-5)


def test_scores_are_those_of_each_class_alone(overlapping):
    hparams = hparams_from_config(overlapping)
    count = jax.jit(lambda z, y: make_score_counts(overlapping, None)(z, y, y != VOID, hparams))
    halves = [count(LOGITS[part], LABELS[part]) for part in (np.s_[:2], np.s_[2:])]
    found = scores(jax.tree.map(lambda *one: sum(map(np.asarray, one)), *halves))
    whole = scores(jax.tree.map(np.asarray, count(LOGITS, LABELS)))
    assert whole.pop("pixel_loss") == pytest.approx(found["pixel_loss"])
    assert whole == {key: value for key, value in found.items() if key != "pixel_loss"}
    for c in range(2):
        z, t = LOGITS[..., c][LABELS != VOID], TARGETS[..., c][LABELS != VOID] == 1
        both, either = (z > 0) & t, (z > 0) | t
        assert found["iou_per_class"][c] == pytest.approx(both.sum() / either.sum())
        assert found["dice_per_class"][c] == pytest.approx(2 * both.sum() / ((z > 0).sum() + t.sum()))
        assert found["precision_per_class"][c] == pytest.approx(both.sum() / (z > 0).sum())
        assert found["recall_per_class"][c] == pytest.approx(both.sum() / t.sum())
        assert found["average_precision_per_class"][c] == pytest.approx(average_precision_score(t, z), abs=5e-3)
        threshold = np.log(found["best_threshold_per_class"][c] / (1 - found["best_threshold_per_class"][c]))
        ious = ((z >= threshold - 1e-6) & t).sum() / ((z >= threshold - 1e-6) | t).sum()
        assert found["best_iou_per_class"][c] == pytest.approx(ious)
    for name in ("iou", "dice", "precision", "recall", "average_precision"):
        assert found[f"mean_{name}"] == pytest.approx(np.mean(found[f"{name}_per_class"]))
    exists = LABELS != VOID
    assert found["exact_match"] == ((LOGITS > 0) == (TARGETS == 1)).all(axis=-1)[exists].mean()
    z = LOGITS.astype(np.float64)
    assert found["pixel_loss"] == pytest.approx(np.logaddexp(0, np.where(TARGETS == 1, -z, z))[EXISTS].mean())


def test_scores_class_that_does_not_occur_is_left_out_of_the_means(overlapping):
    count, hparams = make_score_counts(overlapping, None), hparams_from_config(overlapping)
    labels, logits = np.where(LABELS == VOID, VOID, LABELS & 1), LOGITS.copy()
    logits[..., 1] = -5
    counts = jax.jit(lambda z, y: count(z, y, y != VOID, hparams))(logits, labels)
    found = scores(jax.tree.map(np.asarray, counts))
    assert np.isnan(found["iou_per_class"][1])
    assert found["mean_iou"] == found["iou_per_class"][0]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.name", "camvid", "config.data.multilabel=True has no effect with config.data.name='camvid'"),
        ("model.name", "retinanet", "no effect with the detector retinanet"),
        ("objective.loss", "softmax_focal", "config.objective.loss must be one of sigmoid_cross_entropy"),
        ("objective.region", "lovasz", "got 'lovasz', which is of a softmax: use 'lovasz_hinge'"),
        ("data.mask_values", (0, 255), r"config.data.mask_values=\(0, 255\) is for one class per pixel; set it back"),
        ("data.unseen_classes", ("rust",), "is for one class per pixel"),
        ("objective.uncertainty_weight", 1.0, "is for one class per pixel"),
        ("objective.logit_margin", 6.0, "is for one class per pixel"),
        ("training.gradient_budget", True, "is for one class per pixel"),
    ],
)
def test_validate_refuses_what_exclusive_classes_have(field, value, message, overlapping):
    validate(overlapping)
    group, name = field.split(".")
    overlapping[group][name] = value
    if name == "uncertainty_weight":
        overlapping.model.dropout = "analytic"
    if value == "retinanet":
        overlapping.model.depth, overlapping.model.padding, overlapping.data.box_classes = 4, "reflect", ("rust",)
    with pytest.raises(ConfigError, match=message):
        validate(overlapping)


def test_make_model_has_one_output_and_one_prior_per_class(overlapping):
    overlapping.model.prior = (0.25, 0.01)
    model = make_model(overlapping, 2)
    assert model.num_classes == 2
    np.testing.assert_allclose(model.head_bias, [-np.log(3), -np.log(99)])
    overlapping.model.prior = (0.25,)
    with pytest.raises(ConfigError, match=r"config.model.prior needs 2 value\(s\)"):
        make_model(overlapping, 2)


def test_rare_train_ids_are_the_combinations_with_a_rare_class(overlapping):
    overlapping.augment.copy_paste = 0.5
    with pytest.raises(ConfigError, match=r"config.augment.rare_classes must name classes"):
        rare_train_ids(overlapping)
    overlapping.augment.rare_classes = ("crack",)
    assert rare_train_ids(overlapping) == ((2, 3),)
    overlapping.augment.rare_classes = ("rust", "crack")
    assert rare_train_ids(overlapping) == ((1, 3), (2, 3))


def test_rare_crops_and_copy_paste_take_all_combinations_with_the_class(overlapping):
    overlapping.augment.rare_crops, overlapping.augment.copy_paste = 1.0, 1.0
    overlapping.augment.rare_classes, overlapping.augment.crop_fraction = ("crack",), 0.25
    validate(overlapping)
    labels = np.zeros((8, *overlapping.data.size), np.uint8)
    labels[:4, 3, 5], labels[4:, 20, 30] = 2, 3  # one pixel of crack, alone or with rust
    augmentation, hparams = make_augmentation(overlapping, None), hparams_from_config(overlapping)
    batch = {"image": jnp.zeros((*labels.shape, 3), jnp.uint8), "label": jnp.asarray(labels)}
    keys = example_keys(jax.random.key(0), 0, jnp.arange(8))
    moved = np.asarray(jax.jit(augmentation)(batch, keys, hparams)[1])
    assert [set(np.unique(label)) - {0} for label in moved] == [{2}] * 3 + [{2, 3}] + [{3}] * 3 + [{2, 3}]


def test_task_of_is_that_of_overlapping_classes(overlapping):
    assert task_of(overlapping).__name__ == "segjax.training.multilabel"


@pytest.fixture(scope="module")
def scene():
    """Returns `scene(index)`: an image that is red in rust and not blue in crack, and the masks of both."""

    def draw(index):
        rng = np.random.default_rng(index)
        (top, left), noise = rng.integers(2, 10, 2), rng.integers(0, 20, (32, 48, 3))
        rust, crack = np.zeros((2, 32, 48), bool)
        rust[top : top + 18, left : left + 20] = True
        crack[top + 6 : top + 12, left + 5 : left + 34] = True
        image = np.stack([220 * rust, np.full((32, 48), 90), 220 * ~crack], axis=-1) + noise
        return image.astype(np.uint8), {"rust": rust, "crack": crack}

    return draw


@pytest.fixture(scope="module")
def folder(scene, tmp_path_factory):
    """Returns a folder of twelve images with a mask per class."""
    root = tmp_path_factory.mktemp("overlapping")
    for i in range(12):
        image, masks = scene(i)
        pictures = {"images": image[..., ::-1]} | {f"masks/{name}": 255 * mask for name, mask in masks.items()}
        for path, pixels in pictures.items():
            (root / path).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / path / f"{i:02d}.png"), pixels.astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def run(folder, config, tmp_path_factory, quiet):
    """Returns the workdir and the scores of a run that has learned the two classes, not to be changed."""
    config, workdir = config.copy_and_resolve_references(), tmp_path_factory.mktemp("overlapping_run") / "run"
    config.data.name, config.data.manual_dir = "folder", str(folder)
    config.data.multilabel, config.data.class_names = True, ("rust", "crack")
    config.data.val_fraction = 0.3
    config.model.depth, config.model.norm, config.optimizer.learning_rate = 1, "group", 2e-2
    config.model.prior, config.objective.loss = (0.2, 0.1), "sigmoid_cross_entropy"
    config.training.steps, config.training.evaluate_every, config.training.checkpoint_every = 60, 30, 60
    return workdir, train(config, workdir, console=quiet())


def test_train_learns_pixels_of_two_classes(run, scene):
    workdir, found = run
    assert found["mean_iou"] > 0.9
    assert found["exact_match"] > 0.9
    assert found["classes"] == ["rust", "crack"]
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in logged if "eval/mean_iou" in line]
    assert {"eval/iou/rust", "eval/recall/crack", "eval/average_precision/crack"} <= evaluated[-1].keys()
    image, masks = scene(99)
    predicted = load_run(workdir, multilabel=True).predictor()(image).mask
    both = masks["rust"] & masks["crack"]
    assert predicted[both].all(axis=-1).mean() > 0.9  # both classes
    assert (predicted[~(masks["rust"] | masks["crack"])].any(axis=-1)).mean() < 0.1


def test_score_run_equals_the_training_and_the_masks(run, folder):
    workdir, found = run
    opened = load_run(workdir, multilabel=True)
    again = score_run(opened, "val")
    assert {key: found[key] for key in again} == again
    predictor, counts = opened.predictor(), np.zeros((2, 2), int)
    images = sorted((folder / "images").iterdir())
    everything = score_run(opened, "all")
    for path in images:
        mask = predictor(cv2.imread(str(path))[..., ::-1]).mask
        for c, name in enumerate(("rust", "crack")):
            truth = cv2.imread(str(folder / "masks" / name / path.name), 0) > 0
            counts[c] += [(mask[..., c] & truth).sum(), (mask[..., c] | truth).sum()]
    np.testing.assert_allclose(counts[:, 0] / counts[:, 1], everything["iou_per_class"])


def test_load_run_refuses_the_run_where_classes_must_not_overlap(run):
    with pytest.raises(ConfigError, match="which this program does not support; name a run of one class per pixel"):
        load_run(run[0])


def test_predict_command_writes_a_mask_per_class(run, folder, tmp_path, run_command):
    arguments = ["predict", f"--checkpoint={run[0]}", f"--output={tmp_path}", "--uncertainty", "--probabilities"]
    status, printed, error = run_command(*arguments, "--contact_sheet", folder / "images/00.png")
    assert (status, error) == (0, "")
    masks = {name: cv2.imread(str(tmp_path / f"00_{name}_mask.png"), -1) for name in ("rust", "crack")}
    truth = {name: cv2.imread(str(folder / f"masks/{name}/00.png"), -1) for name in masks}
    for name, mask in masks.items():
        assert set(np.unique(mask)) == {0, 255}
        assert (mask == truth[name]).mean() > 0.95
    overlap, rest = (masks["rust"] & masks["crack"]) > 0, (masks["rust"] | masks["crack"]) == 0
    drawn, image = cv2.imread(str(tmp_path / "00_overlay.png")), cv2.imread(str(folder / "images/00.png"))
    assert (drawn[rest] == image[rest]).all()
    assert (drawn[overlap] != image[overlap]).any(axis=-1).all()
    with np.load(tmp_path / "00_probabilities.npz") as stored:
        assert stored["classes"].tolist() == ["rust", "crack"]
        np.testing.assert_array_equal(stored["probabilities"][..., 1] > 0.5, masks["crack"] > 0)
        assert stored["entropy"].max() <= 2 * np.log(2) + 1e-6
    assert "NAME_rust_mask.png, NAME_crack_mask.png" in printed
    again = run_command(*arguments, "--contact_sheet", folder / "images/00.png")[1]
    assert "kept 1 that had been predicted before" in again


def test_predict_command_threshold_is_of_one_class(run, folder, tmp_path, run_command):
    image = folder / "images/00.png"
    command = ["predict", f"--checkpoint={run[0]}", "--nooverlay"]
    assert "add --class=NAME, one of rust, crack" in run_command(*command, "--threshold=0.9", image)[2]
    assert "--sets is for one class per pixel" in run_command(*command, "--sets", image)[2]
    for name, options in (("low", ()), ("high", ("--class=crack", "--threshold=0.999999"))):
        assert run_command(*command, f"--output={tmp_path / name}", *options, image)[0] == 0
    files = [[tmp_path / one / f"00_{name}_mask.png" for one in ("low", "high")] for name in ("rust", "crack")]
    (rust, same), (crack, fewer) = [[cv2.imread(str(file), -1) for file in pair] for pair in files]
    np.testing.assert_array_equal(rust, same)
    assert fewer.sum() < crack.sum()


def test_predictor_tiles_of_the_run(run, scene):
    opened = load_run(run[0], multilabel=True)
    image, masks = scene(98)
    tiled = opened.predictor(PredictOptions((32, 32), scale=1.0, overlap=8))(image).mask
    assert (tiled[..., 0] == masks["rust"]).mean() > 0.95


@pytest.fixture
def symbolic_sizes():
    """Disables jaxtyping, because a symbolic size is not an `int`."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_export_command_predicts_the_masks_of_the_predict_command(run, folder, tmp_path, run_command, symbolic_sizes):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes((folder / f"images/0{i}.png").read_bytes())
    images = [tmp_path / "0.png", tmp_path / "1.png"]
    command = ["export", f"--checkpoint={run[0]}", f"--output={tmp_path / 'exported'}", "--uncertainty"]
    assert "--values is for one class per pixel" in run_command(*command, "--values=dataset")[2]
    assert run_command(*command, "--overwrite")[::2] == (0, "")
    card = json.loads((tmp_path / "exported/card.json").read_text())
    assert card["classes_overlap"]
    assert card["output"]["mask"].startswith("bool [b, H, W, C]")
    assert card["scores"]["exact_match"] == run[1]["exact_match"]
    script = runpy.run_path(str(tmp_path / "exported/run.py"))
    script["main"]([str(image) for image in images])
    script["main"]([str(image) for image in images])  # its own masks it writes again
    assert run_command("predict", f"--checkpoint={run[0]}", f"--output={tmp_path / 'predicted'}", *images)[0] == 0
    for name in ("0_rust", "0_crack", "1_rust", "1_crack"):
        masks = [cv2.imread(str(path / f"{name}_mask.png"), -1) for path in (tmp_path, tmp_path / "predicted")]
        assert set(np.unique(masks[0])) == {0, 255}
        np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize("members", [1, 2])
def test_lower_network_equals_the_predictor(members, overlapping, symbolic_sizes):
    overlapping.model.members = members
    model = make_model(overlapping, 2)
    state = init_state(overlapping, model)
    opened = TrainedRun(None, overlapping, model, state, label_set(overlapping.data))
    image = RNG.integers(0, 256, (9, 14, 3)).astype(np.uint8)
    found = export.lower_network(opened, size=(9, 14), uncertainty=True).call(image[None])
    options = PredictOptions(opened.preprocessing.size, members=members)
    expected = opened.predictor(options, probabilities=True)(image)
    assert 0 < expected.mask.mean() < 1
    np.testing.assert_array_equal(found["mask"][0], expected.mask)
    np.testing.assert_allclose(found["probabilities"][0], expected.probabilities, rtol=1e-4)
    if members > 1:
        np.testing.assert_allclose(
            found["mutual_information"][0], expected.uncertainties["mutual_information"], rtol=1e-3, atol=1e-6
        )
    else:
        assert np.ptp(found["variance"]) > 1e-6


def test_report_command_of_overlapping_classes(run, tmp_path, run_command):
    command = ["report", run[0], f"--output={tmp_path}", "--images=2"]
    assert run_command(*command)[::2] == (0, "")
    written = json.loads((tmp_path / "report.json").read_text())["data"]
    page = (tmp_path / "report.html").read_text()
    assert {key: written["scores"][key] for key in run[1] if key in written["scores"]}.items() <= run[1].items()
    assert "exact match" in page
    assert (tmp_path / "report_precision_recall.png").exists()
    assert (tmp_path / "report_worst_1.png").exists()


def test_compare_command_of_overlapping_classes(run, tmp_path, run_command):
    command = ["compare", f"{run[0]}/checkpoints/30", f"{run[0]}/checkpoints/60", f"--output={tmp_path}", "--images=1"]
    assert run_command(*command)[::2] == (0, "")
    written = json.loads((tmp_path / "comparison.json").read_text())["data"]
    first, second = (group["runs"][0]["scores"] for group in written["groups"])
    assert second["confusion"] == run[1]["confusion"]
    page = (tmp_path / "comparison.md").read_text()
    assert f"{second['mean_iou'] - first['mean_iou']:+.3f}" in page
    share = sum(second["confusion"][1][1]) / np.sum(second["confusion"][1])
    assert f"| crack | {share:.3f} | {first['iou_per_class'][1]:.3f} |" in page
    assert "exact match" in page
    assert (tmp_path / "comparison_image_1.png").exists()


@pytest.mark.parametrize("family", ["threshold", "dilation"])
def test_calibrate_command_bounds_the_missed_pixels_of_one_class(
    run, folder, family, tmp_path, run_command, symbolic_sizes
):
    file, image = tmp_path / "calibration.json", folder / "images/00.png"
    command = ["calibrate", f"--checkpoint={run[0]}", f"--output={file}"]
    assert "the classes of" in run_command(*command, "--risk=miscoverage", "--level=0.5")[2]
    assert "overlap: use --scaling=class" in run_command(*command, "--scaling=vector")[2]
    risk = ["--risk=fnr", "--level=0.5", "--class=crack", f"--family={family}"]
    assert run_command(*command, "--scaling=class", *risk)[::2] == (0, "")
    stored = json.loads(file.read_text())
    (guarantee,), scaling = stored["guarantees"], stored["scaling"]
    assert scaling["after"]["negative_log_likelihood"] < scaling["before"]["negative_log_likelihood"]
    opened = load_run(run[0], file, multilabel=True)
    plain = opened.predictor(probabilities=True)(cv2.imread(str(image))[..., ::-1])
    odds = np.log(plain.probabilities) - np.log1p(-plain.probabilities)
    expected = plain.mask.copy()
    if family == "threshold":
        expected[..., 1] = odds[..., 1] >= guarantee["threshold"]
    else:
        expected[..., 1] = distance_transform_edt(~plain.mask[..., 1]) <= guarantee["radius"]
    predicted = ["predict", f"--checkpoint={run[0]}", f"--calibration={file}", "--guarantee", "--probabilities"]
    assert run_command(*predicted, f"--output={tmp_path / 'predicted'}", image)[::2] == (0, "")
    for c, name in enumerate(("rust", "crack")):
        mask = cv2.imread(str(tmp_path / f"predicted/00_{name}_mask.png"), -1) > 0
        assert (mask != expected[..., c]).mean() < 2e-3
    with np.load(tmp_path / "predicted/00_probabilities.npz") as written:
        scaled = 1 / (1 + np.exp(-odds * np.array(scaling["scale"])))
        np.testing.assert_allclose(written["probabilities"], scaled, atol=1e-4)
        calibrated = written["probabilities"]
    fields, *_ = guaranteed_mask(opened, True, 1)
    options = PredictOptions(opened.preprocessing.size, scaling=stored_scaling(opened, PredictOptions((32, 48)))[0])
    program = export.lower_network(opened, size=plain.mask.shape[:2], options=replace(options, **fields))
    found = program.call(cv2.imread(str(image))[None, ..., ::-1])
    np.testing.assert_allclose(found["probabilities"][0], calibrated, rtol=1e-4, atol=1e-6)
    crack = cv2.imread(str(tmp_path / "predicted/00_crack_mask.png"), -1) > 0
    np.testing.assert_array_equal(found["mask"][0, ..., 1], crack)
