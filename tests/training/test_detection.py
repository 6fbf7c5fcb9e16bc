"""Detectors: their config, objective, scores and a short training."""

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from ml_collections import FrozenConfigDict
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segjax import boxes, losses
from segjax.collectives import pmean
from segjax.data import open_split
from segjax.data.augment import example_keys
from segjax.data.objects import ObjectSource, image_boxes
from segjax.models import DetectorOutput
from segjax.trained_run import load_run, score_run
from segjax.training import ConfigError, parallel, train, validate
from segjax.training.config import from_leaves, leaves
from segjax.training.detection import (
    ImageLosses,
    make_image_losses,
    make_objective,
    make_truth,
    mean_losses,
    microbatch_shares,
    score_batches,
)
from segjax.training.evaluation import evaluate
from segjax.training.network import TrainState, make_model
from segjax.training.objective import hparams_from_config
from segjax.training.train_step import init_state, split

SIZE = (64, 96)
IMAGES = Path(__file__).parent.parent / "data" / "cases" / "predict_folder"
RNG = np.random.default_rng(0)
IDS = np.zeros((2, *SIZE), np.int32)
IDS[0, 4:12, 8:20], IDS[0, 30:34, 40:44], IDS[1, 20:30, 60:66] = 1, 2, 1
IDS[:, :2] = 255


def grid(config):
    return boxes.anchors(SIZE, levels=config.model.levels, base=config.model.anchor_base)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "sigmoid_focal", "gamma": 2.0, "alpha": 0.25},
        {"loss": "sigmoid_cross_entropy", "alpha": 0.9, "negatives_per_positive": 3.0},
        {"loss": "sigmoid_focal_star", "gamma": 2.0, "hard_fraction": 0.1, "normalizer": "valid"},
    ],
    ids=lambda options: options["loss"],
)
def test_objective_is_the_mean_loss_of_logits_and_boxes(options, detector):
    for name, value in options.items():
        detector.objective[name] = value
    detector.objective.box_weight, detector.objective.box_beta = 0.5, 1.0
    validate(detector)
    count = len(grid(detector))
    drawn = (RNG.normal(size=(2, count, n)).astype(np.float32) for n in (1, 4))
    output, hparams = DetectorOutput(*map(jnp.asarray, drawn)), hparams_from_config(detector)
    truth = image_boxes(jnp.asarray(IDS), 1, 20)
    total, parts = jax.jit(make_objective(detector, 2))(output, truth, hparams)

    targets = losses.anchor_targets(grid(detector), truth.boxes, truth.classes, 1, where=truth.where)
    z, t, where = output.logits, np.asarray(targets.classes), np.asarray(targets.where)[..., None]
    each = {
        "sigmoid_focal": lambda: losses.sigmoid_focal_loss(z, t, gamma=2.0, alpha=0.25),
        "sigmoid_cross_entropy": lambda: losses.sigmoid_cross_entropy(z, t, alpha=0.9),
        "sigmoid_focal_star": lambda: losses.sigmoid_focal_star_loss(z, t, gamma=2.0, beta=1.0),
    }[options["loss"]]()
    each, positive = np.asarray(each, np.float64), t == 1
    kept, divisor = where, positive.sum()
    if "negatives_per_positive" in options:
        hardest = np.sort(each[where & ~positive])[-3 * divisor]
        kept = where & (positive | (each >= hardest))
    if "hard_fraction" in options:
        divisor = int(np.ceil(0.1 * where.sum()))
        kept = where & (each >= np.sort(each[where])[-divisor])
    assert positive.sum() > 3
    assert not where.all()
    np.testing.assert_allclose(parts["class_loss"], each[kept].sum() / divisor, rtol=1e-5)
    error = np.abs(output.offsets - targets.offsets)[np.asarray(targets.matched)].astype(np.float64)
    expected = np.where(error < 1, error**2 / 2, error - 0.5).sum() / targets.matched.sum()
    np.testing.assert_allclose(parts["box_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(total, parts["class_loss"] + 0.5 * parts["box_loss"], rtol=1e-6)


GAMMAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def drawn_output(images):
    """Draws the output of a detector of one class, and of 9 anchors per cell of strides 4 to 32."""
    rng, count = np.random.default_rng(3), 9 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3)
    return DetectorOutput(*(jnp.asarray(rng.normal(size=(images, count, n)), jnp.float32) for n in (1, 4)))


@pytest.fixture(scope="module")
def value_and_gradient(detector_config):
    """Returns `f(output, gammas)`: the objective of focal loss and its gradients by the output, for every γ."""
    objective, hparams = make_objective(detector_config, 2), hparams_from_config(detector_config)
    truth = image_boxes(jnp.asarray(IDS), 1, 20)

    def total(output, gamma):
        return objective(output, truth, hparams._replace(gamma=gamma, alpha=jnp.float32(0.25)))[0]

    return jax.jit(jax.vmap(jax.value_and_grad(total), in_axes=(None, 0)))


def test_objective_of_focal_loss_is_the_retinanet_loss_for_every_gamma(value_and_gradient, detector):
    truth, output = image_boxes(jnp.asarray(IDS), 1, 20), drawn_output(2)
    targets = losses.anchor_targets(grid(detector), truth.boxes, truth.classes, 1, where=truth.where)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def expected(output, gamma):
        return jax.value_and_grad(lambda x: losses.retinanet_loss(*x, targets, gamma=gamma).total)(output)

    found, expected = (function(output, jnp.array(GAMMAS)) for function in (value_and_gradient, expected))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found, expected)


@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_objective_of_confident_outputs_is_finite_for_every_gamma(logit, value_and_gradient):
    output = jax.tree.map(lambda x: jnp.full_like(x, logit), drawn_output(2))
    found = value_and_gradient(output, jnp.array(GAMMAS))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.fixture(scope="module")
def total_on(detector_config):
    """Returns `f(mesh)`: the objective of focal loss on OHEM 1:3, four images in all, and its gradients by scales."""
    config = detector_config.copy_and_resolve_references()
    config.objective.negatives_per_positive = 3.0
    objective, hparams = make_objective(config, 2), hparams_from_config(config)
    # The third image has no object, and the fourth is void.
    ids = np.concatenate([IDS, np.zeros_like(IDS[:1]), np.full_like(IDS[:1], 255)])
    images = drawn_output(4), image_boxes(jnp.asarray(ids), 1, 20)

    def step(scales, output, truth, axis_name=None):
        def total(scales):
            return objective(jax.tree.map(jnp.multiply, output, scales), truth, hparams, axis_name)

        found, gradients = jax.value_and_grad(total, has_aux=True)(scales)
        return found, pmean(gradients, axis_name)

    def on(mesh):
        mapped = step
        if mesh is not None:
            names = mesh.axis_names
            specs = {"in_specs": (PartitionSpec(), *[PartitionSpec(names)] * 2), "out_specs": PartitionSpec()}
            mapped = jax.shard_map(partial(step, axis_name=names), mesh=mesh, **specs, check_vma=False)
        return jax.jit(mapped)(DetectorOutput(jnp.float32(1), jnp.float32(0.5)), *images)

    return on


@pytest.fixture(scope="module")
def total_on_one_device(total_on):
    return total_on(None)


@pytest.mark.parametrize("shape", [(4,), (2, 2)], ids=["4", "2x2"])
def test_objective_and_gradients_are_those_of_one_device(shape, total_on, total_on_one_device):
    names = ("hosts", "devices")[-len(shape) :]
    mesh = jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(shape))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), total_on(mesh), total_on_one_device)


@pytest.mark.parametrize("normalizer", ["positives", "valid"])
def test_microbatch_shares_make_the_microbatches_equal_the_whole_batch(normalizer, detector):
    detector.objective.normalizer = normalizer
    objective, hparams = make_objective(detector, 2), hparams_from_config(detector)
    truth, output = image_boxes(jnp.asarray(IDS), 1, 20), drawn_output(2)

    @jax.jit
    def both(output, truth):
        halves = split((output, truth), 2)
        shares = microbatch_shares(halves[1], detector, 2, None)
        found = jax.vmap(lambda output, truth, share: objective(output, truth, hparams, None, share))(*halves, shares)
        return objective(output, truth, hparams), jax.tree.map(lambda parts: parts.sum(axis=0), found), shares

    whole, summed, shares = both(output, truth)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), summed, whole)
    assert shares["box_loss"][0] != shares["box_loss"][1]


def test_make_truth_of_annotations(detector):
    detector.augment.flip, detector.augment.scale = False, (1.0, 1.0)
    drawn = np.array([[10, 10, 14, 14], [-48, -32, 96, 64], [0, 0, 96, 64], [0, 0, 9, 9]], np.float32)
    batch = {"boxes": jnp.broadcast_to(drawn, (16, 4, 4)), "classes": jnp.array([[0, 0, 0, -1]] * 16)}
    batch["image"] = jnp.zeros((16, *SIZE, 3), jnp.uint8)
    keys = example_keys(jax.random.key(0), 0, jnp.arange(16))
    labels, crop = jnp.zeros((16, *SIZE), jnp.int32), jnp.float32(0.51)
    found = jax.jit(make_truth, static_argnums=3)(batch, labels, keys, FrozenConfigDict(detector), crop)
    # The window has 26 % of the image: of the third box, just more than `MIN_VISIBLE`, and 12 % of the second.
    assert found.where.sum(axis=0).tolist()[1:] == [0, 16, 0]
    np.testing.assert_allclose(found.boxes[:, 2], [[0, 0, 96, 64]] * 16)
    small = found.boxes[:, 0][found.where[:, 0]]
    assert 0 < len(small) < 16
    assert (small[:, 2:] - small[:, :2]).max() == pytest.approx(4 / 0.51, abs=1e-3)
    assert not found.boxes[~found.where].any()


@pytest.mark.parametrize(("normalizer", "scale"), [("positives", 1), ("valid", 3)])
def test_image_losses_add_up_to_the_objective(normalizer, scale, detector):
    detector.objective.normalizer, detector.objective.box_beta = normalizer, 0.5
    hparams, truth, output = hparams_from_config(detector), image_boxes(jnp.asarray(IDS), 1, 20), drawn_output(2)
    _, expected = jax.jit(make_objective(detector, 2))(output, truth, hparams)
    larger, sizes = truth._replace(boxes=truth.boxes * scale), jnp.array([SIZE] * 2) * scale
    rows = jax.jit(make_image_losses(detector))(output, larger, sizes, hparams)
    assert rows.matched.shape == (2,)
    assert mean_losses(rows, normalizer) == pytest.approx(jax.tree.map(float, expected), rel=1e-5)


def test_mean_losses_without_an_object_are_finite():
    rows = ImageLosses(np.array([3.0]), np.array([0]), np.array([0.0]), np.array([0]))
    assert mean_losses(rows, "positives") == {"class_loss": 3.0, "box_loss": 0.0}


def test_init_state_of_a_detector_predicts_the_prior(detector):
    model = make_model(detector, 2)
    images = jnp.asarray(RNG.normal(size=(2, *SIZE, 3)), jnp.float32)
    logits = jax.jit(partial(model.apply, train=False))(init_state(detector, model).variables, images).logits
    assert np.mean(jax.nn.sigmoid(logits)) == pytest.approx(0.01, rel=0.1)


class Scenes(list):
    """A split of masks with black images."""

    label_set = SimpleNamespace(names=("road", "debris"), num_classes=2, rare=1)
    channels, value_range, dtype, native_size, sizes = 3, None, "uint8", SIZE, [SIZE] * 2
    unsure_turns, skipped, absent, void, notes, digest, pixels = 0, (), (), None, (), "0", None

    def __getitem__(self, index):
        label = (super().__getitem__(index) > 0).astype(np.uint8)
        return {"image": np.zeros((*SIZE, 3), np.uint8), "label": label, "name": str(index)}

    def name(self, index):
        return str(index)


def test_evaluate_a_detector_scores_each_image_once(detector):
    detector.training.global_batch = 4  # two images, and two fillers
    ids = np.where(IDS == 255, 0, IDS)
    source = ObjectSource(Scenes(ids), ("debris",), 20)

    def step(state, batch, hparams):
        """Finds every object of the first image, and none of the second."""
        truth = image_boxes(batch["label"], 1, 20)
        found = boxes.Detections(
            truth.boxes, 0.9 * truth.where, truth.classes, truth.where & (batch["index"] == 0)[:, None]
        )
        sums = ImageLosses(*(batch["index"] + n for n in (1, 10, 3, 2)))
        return {"index": batch["index"], "detections": found, "truth": truth, "losses": sums}

    mapping, state = parallel.device_mapping(detector), TrainState(jnp.int32(0), *[None] * 6)
    scores = evaluate(mapping.map_step(step, arguments=3), state, source, detector, mapping)
    assert (scores["images"], scores["classes"], scores["objects"]) == (2, ["debris"], [3])
    assert scores["ar100"] == pytest.approx(2 / 3)
    assert scores["ap_per_class"] == [scores["ap"]] == [pytest.approx(67 / 101)]
    assert (scores["class_loss"], scores["box_loss"]) == (pytest.approx((1 + 2) / 5), pytest.approx((3 + 4) / 5))


@pytest.fixture(scope="module")
def coco_root(tmp_path_factory):
    """Writes a set in COCO's layout, with crowds, areas of masks, and a box outside its image; returns its folder."""
    root, rng = tmp_path_factory.mktemp("coco"), np.random.default_rng(1)
    categories = [{"id": 17, "name": "cat"}, {"id": 5, "name": "dog"}]
    for name in ("train2017", "val2017"):
        images, annotations = [], []
        (root / name).mkdir()
        (root / "annotations").mkdir(exist_ok=True)
        for image in range(4):
            height, width = (48, 64) if image % 2 else (40, 72)
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            assert cv2.imwrite(str(root / name / f"{image}.png"), pixels)
            images.append({"id": 900 + image, "file_name": f"{image}.png", "height": height, "width": width})
            for _ in range(3 * image):  # the first image has none
                box = [*rng.uniform(-5, 40, 2).round(2), *rng.uniform(5, 40, 2).round(2)]
                annotation = {"id": len(annotations) + 1, "image_id": 900 + image, "bbox": box}
                annotation |= {"category_id": int(rng.choice([17, 5])), "iscrowd": int(rng.random() < 0.2)}
                annotations.append(annotation | {"area": float(rng.uniform(0.3, 1) * box[2] * box[3])})
        found = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(found))
    return root


@pytest.fixture
def coco_detector(detector, coco_root):
    """Returns a config on `coco_root`."""
    detector.data.name, detector.data.manual_dir = "coco", str(coco_root)
    detector.data.box_classes, detector.data.channels = ("dog", "cat"), 3
    return detector


def drawn_detections(truth):
    """Draws 12 detections per image: its objects, moved, and false ones."""
    rng, rows = np.random.default_rng(2), []
    for boxes_of_image, classes, where in zip(truth.boxes, truth.classes, truth.where, strict=True):
        near = boxes_of_image[where] + rng.normal(0, 1.5, (where.sum(), 4))
        corners = np.concatenate([near, rng.uniform(0, 40, (12, 4))])[:12].reshape(12, 2, 2)
        drawn = np.append(classes[where], rng.integers(0, 2, 12))[:12]
        rows.append((np.sort(corners, axis=1).reshape(12, 4), rng.uniform(0.1, 1, 12), drawn, np.ones(12, bool)))
    found = boxes.Detections(*(np.stack(values) for values in zip(*rows, strict=True)))
    return found._replace(classes=found.classes.astype(np.int32))


def test_score_batches_of_annotations_equals_pycocotools(coco_detector, coco_root, capsys):
    source = open_split(coco_detector.data, "val")
    truth = source.objects(range(4))
    found = drawn_detections(truth)
    scores = score_batches([{"index": np.arange(4), "detections": found}], source, coco_detector)
    assert sum(scores["objects"]) == (truth.where & ~truth.crowd).sum() < truth.where.sum()

    official, results = COCO(coco_root / "annotations" / "instances_val2017.json"), []
    for row, rank in np.ndindex(4, 12):
        x, y, right, bottom = found.boxes[row, rank].tolist()
        one = {"image_id": 900 + int(source.name(row)), "bbox": [x, y, right - x, bottom - y]}
        one |= {"score": float(found.scores[row, rank]), "category_id": [5, 17][found.classes[row, rank]]}
        results.append(one)
    evaluation = COCOeval(official, official.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    names += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
    expected = np.where(evaluation.stats < 0, np.nan, evaluation.stats)
    np.testing.assert_allclose([scores[name] for name in names], expected, atol=1e-9)
    assert 0 < scores["ap_small"] != scores["ap_medium"] > 0


@pytest.mark.slow
def test_train_on_annotations_in_microbatches(coco_detector, tmp_path, quiet):
    coco_detector.training.steps, coco_detector.training.global_batch = 2, 8
    coco_detector.training.accumulate, coco_detector.augment.rotation = 2, 10.0
    scores = train(coco_detector, tmp_path / "run", console=quiet())
    assert (scores["images"], scores["classes"], scores["steps"]) == (4, ["dog", "cat"], 2)
    again = score_run(load_run(tmp_path / "run", detectors=True), "val")
    np.testing.assert_equal({name: scores[name] for name in again}, again)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.box_classes": ()}, r"config.data.box_classes must name the classes that retinanet detects.*got \(\)"),
        (
            {"data.box_classes": ("a",) * 20},
            r"max_boxes must be at most 12 with 20 box classes \(254 .* in all\); got 20",
        ),
        ({"objective.loss": "softmax_focal"}, r"objective.loss of retinanet must be one of sigmoid_.*'softmax_focal'"),
        (
            {"objective.region": "dice"},
            r"objective.region='dice' has no effect with the detector retinanet; set it back to 'none'",
        ),
        ({"training.gradient_budget": True}, r"gradient_budget=True has no effect with the detector retinanet"),
        ({"objective.negative_iou": 0.6}, r"negative_iou must be at most config.objective.positive_iou = 0.5; got 0.6"),
        (
            {"data.name": "coco", "data.box_classes": (), "model.name": "unet"}
            | {"model.anchor_base": 4.0, "model.levels": (3, 4, 5, 6, 7)},
            r"config.data.name='coco' has boxes and no masks, which unet needs; set config.model.name to 'retinanet'",
        ),
        (
            {"model.name": "unet"},
            r"anchor_base=1.0 has no effect with config.model.name='unet'; .*, or set config.model.name to retinanet",
        ),
        (
            {"model.name": "unet", "model.anchor_base": 4.0, "model.levels": (3, 4, 5, 6, 7)},
            r"box_classes=\('debris',\) has no effect with .*'unet'; set it back to \(\), or set .* to retinanet",
        ),
    ],
)
def test_validate_detector(changes, message, detector):
    changes = {"model.hidden": None} | changes if "model.name" in changes else changes
    with pytest.raises(ConfigError, match=message):
        validate(from_leaves(leaves(detector) | changes))


def test_make_model_of_a_detector(detector):
    detector.data.box_classes = ("debris", "road")
    detector.model.anchor_ratios = (1.0, 2.0)
    model = make_model(detector, 2, "devices")
    assert (model.num_classes, model.per_cell, model.channels, model.levels) == (2, 6, 8, (2, 3, 4, 5))
    assert model.head_bias == pytest.approx([-np.log(99)] * 2)
    detector.model.levels = (3, 4)
    message = r"^config\.model\.levels must be consecutive, with encoder 'resnet' the first .* got \(3, 4\): use"
    with pytest.raises(ConfigError, match=message):
        make_model(detector, 2)


@pytest.mark.slow
def test_init_state_of_a_detector_has_the_prior_at_every_anchor(detector):
    bias = init_state(detector, make_model(detector, 2)).params["classification"]["linear"]["bias"]
    np.testing.assert_allclose(bias, np.full(9, -np.log(99)), rtol=1e-6)


@pytest.mark.slow
def test_train_a_detector_and_score_it_again(trained_detector):
    scores = json.loads((trained_detector / "scores.json").read_text())
    assert scores["images"] == 6
    assert scores["objects"][0] > 0
    assert 0 <= scores["ap"] <= 1
    run = load_run(trained_detector / "checkpoints" / "latest", detectors=True)
    again = score_run(run, "val")
    np.testing.assert_equal({name: scores[name] for name in again}, again)
    found = run.detector(score_threshold=0.0, max_detections=3)(np.zeros((40, 50, 3), np.uint8))
    assert found.boxes.shape == (3, 4)


@pytest.mark.slow
def test_compare_detectors(trained_detector, tmp_path, run_command):
    latest = trained_detector / "checkpoints" / "latest"
    shutil.copytree(trained_detector, tmp_path / "other")
    other = tmp_path / "other" / "checkpoints" / "latest"
    status, _, error = run_command("compare", latest, other, f"--output={tmp_path}", "--images=1")
    assert (status, error) == (0, "")
    data = json.loads((tmp_path / "comparison.json").read_text())["data"]
    scores = json.loads((trained_detector / "scores.json").read_text())
    assert [group["runs"][0]["scores"]["ap"] for group in data["groups"]] == [scores["ap"]] * 2
    assert len(data["groups"][0]["f1_per_image"]) == 6
    page = (tmp_path / "comparison.md").read_text()
    assert f"| debris | {scores['objects'][0]} |" in page
    assert "interval" not in page


@pytest.mark.slow
def test_report_of_a_detector(trained_detector, tmp_path, run_command, browser):
    status, printed, error = run_command("report", trained_detector, "--images=1", f"--output={tmp_path}")
    assert (status, error) == (0, "")
    assert f"wrote {tmp_path}/report.html" in printed
    data = json.loads((tmp_path / "report.json").read_text())["data"]
    scores = json.loads((trained_detector / "scores.json").read_text())
    assert (data["scores"]["objects"], data["split"]) == (scores["objects"], "val")
    assert len(data["worst"]) == 1
    for width, seen in browser((tmp_path / "report.html").read_text()).items():
        assert (all(seen["images"]), seen["charts"] >= 3, seen["wide"]) == (True, True, False), width


@pytest.mark.slow
def test_report_of_a_detector_refuses_a_calibration(trained_detector, run_command):
    status, _, error = run_command("report", trained_detector, "--calibration=x.json")
    assert status == 1
    assert f"--calibration is for segmentation networks; {trained_detector} is a detector: remove it" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "flag"),
    [("export", "--uncertainty"), ("export", "--nocalibrated"), ("predict", "--values=dataset")]
    + [("demo", flag) for flag in ("--samples=3", "--rate=0.1", "--nocalibrated", "--calibration=x.json")],
)
def test_commands_refuse_options_of_masks_for_detectors(trained_detector, run_command, command, flag):
    images = [IMAGES] if command == "predict" else []
    status, _, error = run_command(command, f"--checkpoint={trained_detector}", flag, *images)
    assert status == 1
    name = flag.split("=")[0].replace("--no", "--")
    assert f"{name} is for segmentation networks; {trained_detector} is a detector: remove it" in error


@pytest.mark.slow
def test_calibrate_refuses_detectors(trained_detector):
    with pytest.raises(ConfigError, match=r"is a run of a detector, retinanet, .*; name a run of a segmentation"):
        load_run(trained_detector)
