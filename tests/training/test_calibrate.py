"""Calibration of a trained run: the pixels that it is fitted to, thresholds with a guarantee, and the stored file."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image
from scipy.ndimage import distance_transform_edt
from scipy.special import log_softmax, softmax
from scipy.special import logit as scipy_logit

from segjax import calibrate, metrics
from segjax.inference import PredictOptions, class_logits, predict_logits
from segjax.reporting import calibration_tables
from segjax.storage import StorageError, to_json, write_outputs
from segjax.trained_run import (
    CALIBRATION_FILE,
    calibration_of,
    combine,
    guaranteed_mask,
    guaranteed_sets,
    image_counts,
    load_run,
    stored_scaling,
)
from segjax.training import ConfigError, open_split


@pytest.fixture(scope="module")
def run(trained):
    return load_run(trained.workdir / "checkpoints" / "latest")


@pytest.fixture(scope="module")
def source(run):
    return open_split(run.config.data, "val")


@pytest.fixture(scope="module")
def pixels(run, source):
    """Returns class logits `[images, H, W, C]` and labels of all images, by a pass of the network."""
    examples = [source[i] for i in range(len(source))]
    images, labels = (np.stack([one[key] for one in examples]) for key in ("image", "label"))
    sizes = np.tile(np.int32(labels.shape[1:]), (len(labels), 1))
    model = run.model.clone(axis_name=None)
    predict = jax.jit(
        lambda x: class_logits(predict_logits(model, run.state.variables, x, sizes, run.preprocessing), 2)
    )
    return np.asarray(predict(images)), labels.astype(np.int32)


@pytest.fixture(scope="module")
def overconfident():
    """Returns logits that are three times too large for their labels."""
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(2000, 2)).astype(np.float32) * 2
    return 3 * honest, (softmax(honest, axis=-1)[:, 1] > rng.uniform(size=2000)).astype(np.int32)


@pytest.fixture(scope="module")
def found(run, source, overconfident):
    """Returns a guarantee of the run, and the scaling of other logits: its own may have no skill after four steps."""
    found = calibrate.calibrate(run, source, scaling="none", risk="fnr", positive=1, level=0.5)
    assert found["scaling"] is None
    return found | {"scaling": calibrate.fit(*overconfident, "temperature")}


def test_fit_scores_before_and_after(overconfident):
    (logits, labels), found = overconfident, calibrate.fit(*overconfident, "temperature")
    assert 1 / found["scale"][0] == pytest.approx(3, rel=0.1)
    for when, factor in (("before", 1.0), ("after", found["scale"][0])):
        likelihoods = log_softmax(logits.astype(float) * factor, axis=-1)[np.arange(len(labels)), labels]
        assert found[when]["negative_log_likelihood"] == pytest.approx(-likelihoods.mean(), rel=1e-5)
    for name in ("expected_calibration_error", "adaptive_calibration_error"):
        assert found["after"][name] < 0.03 < found["before"][name]


def test_calibrate_fits_all_pixels_of_a_small_split(run, source, pixels, monkeypatch):
    monkeypatch.setattr(calibrate, "fit", lambda *arguments: arguments)
    logits, labels, kind = calibrate.calibrate(run, source, risk="fnr", positive=1, level=0.5)["scaling"]
    known = pixels[1] != 255
    np.testing.assert_array_equal(labels, pixels[1][known])
    np.testing.assert_allclose(logits, pixels[0][known], atol=1e-4)
    assert kind == "temperature"


@pytest.mark.parametrize("kind", ["class", "vector"])
def test_calibrate_several_factors_for_one_output(run, source, kind):
    with pytest.raises(ConfigError, match=rf"--scaling={kind}: .* one output, .* debris.* --scaling=temperature$"):
        calibrate.calibrate(run, source, scaling=kind)


@pytest.mark.parametrize(("family", "field", "level"), [("threshold", "threshold", 0.5), ("dilation", "radius", 0.2)])
def test_calibrate_guarantee_of_a_mask(run, source, pixels, family, field, level):
    options = {"scaling": "none", "risk": "fnr", "positive": 1, "level": level, "family": family}
    found = calibrate.calibrate(run, source, **options)["guarantee"]
    logits, labels = pixels
    chosen = logits[..., 1] - logits[..., 0] >= found.get("threshold", 0)
    if family == "dilation":
        assert found["radius"] > 0
        chosen = np.stack([distance_transform_edt(~mask) <= found["radius"] for mask in chosen])
    predict = run.predictor(PredictOptions(tuple(run.config.data.size), **{field: found[field]}))
    predicted = np.stack([predict(source[i]["image"]).mask == 1 for i in range(len(source))])
    assert (predicted != chosen).mean() < 1e-3
    missed = [1 - chosen[i][labels[i] == 1].mean() for i in range(len(labels)) if (labels[i] == 1).any()]
    assert found["miss_rate"] == pytest.approx(np.mean(missed), abs=1e-3)
    assert found["false_positive_rate"] == pytest.approx(chosen[labels == 0].mean(), abs=1e-3)
    assert (np.sum(missed) + 1) / (len(missed) + 1) <= level + 1e-3


def sets_of(logits, guarantee):
    """Returns the sets of a guarantee by their definition in float64."""
    p = softmax(logits.astype(float), axis=-1)
    if guarantee["family"] == "adaptive":
        p = 1 - (p[..., None, :] * (p[..., None, :] > p[..., None])).sum(-1)
    with np.errstate(divide="ignore"):
        return scipy_logit(p) >= [one["threshold"] for one in guarantee["classes"]]


@pytest.mark.parametrize(
    "family", ["class", *(pytest.param(one, marks=pytest.mark.slow) for one in ("threshold", "adaptive"))]
)
def test_calibrate_coverage_and_size_of_sets_per_class(run, source, pixels, family):
    options = {"scaling": "none", "risk": "miscoverage", "level": 0.3, "family": family}
    found, (logits, labels) = calibrate.calibrate(run, source, **options)["guarantee"], pixels
    sets = sets_of(logits, found)
    covered = np.where(labels == 1, sets[..., 1], sets[..., 0])
    for where, one in ((labels != 255, found), *((labels == c, found["classes"][c]) for c in range(2))):
        assert one["coverage"] == pytest.approx(covered[where].mean(), abs=1e-3)
        assert one["mean_size"] == pytest.approx(sets.sum(-1)[where].mean(), abs=1e-3)
    assert [one["images"] for one in found["classes"]] == [6, 5]
    thresholds = {one["threshold"] for one in found["classes"]}
    assert len(thresholds) == (2 if family == "class" else 1)


def test_image_counts_of_strips_in_the_order_of_the_split(run, source, pixels):
    config = run.config.copy_and_resolve_references()
    config.training.eval_pixels = 96 * 20  # strips of 16 rows

    def count(logits, labels, where, index):
        return {"labels": jnp.sum(labels * where), "index": index}

    counts = image_counts(run._replace(config=config), source, count)
    assert [one["index"].tolist() for one in counts] == [[i] * 4 for i in range(len(source))]
    expected = np.where(pixels[1] == 255, 0, pixels[1]).sum(axis=(1, 2))
    np.testing.assert_array_equal([one["labels"].sum() for one in counts], expected)


def test_sample_is_of_its_image_and_differs_between_images():
    labels = np.arange(600, dtype=np.int32).reshape(20, 30)
    logits = np.stack([labels, -labels], axis=-1).astype(np.float32)

    @jax.jit
    def sample(index):
        arrays = map(jnp.asarray, (logits, labels, labels < 500, index))
        return calibrate._count_image(*arrays, fraction=0.1, risk=None, family="threshold", positive=None)["sample"]

    values, drawn, where = sample(0)
    np.testing.assert_array_equal(values, np.stack([drawn, -drawn], axis=-1))
    np.testing.assert_array_equal(where, drawn < 500)
    assert drawn.shape == (60,)
    assert len(np.unique(drawn)) > 45
    assert (drawn != sample(1)[1]).mean() > 0.9


def histograms(scores, labels):
    """Returns the score histograms of images `[images, pixels]`."""
    return np.asarray(jax.jit(jax.vmap(metrics.score_histogram))(scores, labels), np.int64)


@pytest.fixture(scope="module")
def noise():
    """Returns scores and labels of 30 images, the last five without a positive."""
    rng = np.random.default_rng(0)
    labels = (rng.random((30, 200)) < 0.1).astype(np.int32)
    labels[:25, 0], labels[25:] = 1, 0
    return rng.normal(3 * labels - 2).astype(np.float32), labels


def test_guarantee_is_the_least_conservative_threshold_of_the_level(noise):
    scores, labels = noise
    counts = histograms(scores, labels)
    found = calibrate.guarantee(counts, 0.1, "debris")
    assert found["images_with_class"] == 25
    assert found["smallest_level"] == pytest.approx(1 / 26)

    def risk(threshold):
        return sum((z[y == 1] < threshold).mean() for z, y in zip(scores[:25], labels, strict=False))

    assert (risk(found["threshold"]) + 1) / 26 <= 0.1 < (risk(found["threshold"] + 1 / 128) + 1) / 26
    assert found["miss_rate"] == pytest.approx(risk(found["threshold"]) / 25)
    marked = (scores >= found["threshold"])[labels == 0]
    assert found["false_positive_rate"] == pytest.approx(marked.mean())
    assert calibrate.guarantee(counts, 1 / 26, "debris")["miss_rate"] == 0


@pytest.mark.parametrize(
    ("images", "level", "message"),
    [
        (slice(25, 30), 0.1, "--split: no image has a pixel of debris; choose a split that has some"),
        (slice(1), 0.1, r"--level=0.1: 1 image\(s\) with debris allow a level of 0.5 or more; raise --level"),
        (slice(30), 0.01, r"--level=0.01: 25 image\(s\) with debris allow a level of 0.0385 or more"),
    ],
)
def test_guarantee_of_a_degenerate_calibration_set(noise, images, level, message):
    counts = histograms(*(x[images] for x in noise))
    with pytest.raises(ConfigError, match=message):
        calibrate.guarantee(counts, level, "debris")


@pytest.fixture(scope="module")
def three_classes():
    """Returns logits and labels of 25 images, the third class in 20 of them, and `own_class_histograms` by family."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (25, 100)).astype(np.int32)
    labels[20:] %= 2
    logits = rng.normal(2 * np.eye(3)[labels]).astype(np.float32)

    def histograms(family):
        count = jax.vmap(lambda z, y: calibrate.own_class_histograms(z, y, jnp.ones(y.shape, bool), family))
        return np.asarray(jax.jit(count)(logits, labels), np.int64)

    return logits, labels, histograms


@pytest.mark.parametrize("family", ["threshold", "class", "adaptive"])
def test_set_guarantee_is_the_least_conservative_threshold_of_the_level(three_classes, family):
    logits, labels, histograms = three_classes
    found = calibrate.set_guarantee(histograms(family), 0.1, ("a", "b", "c"), family)
    assert (found["class"], found["images_with_class"]) == ("", 20 if family == "class" else 25)
    assert found["smallest_level"] == pytest.approx(1 / (1 + found["images_with_class"]))

    def risks(shift):
        """Returns the adjusted risk of each group of pixels, for thresholds that are shifted."""
        shifted = found | {"classes": [one | {"threshold": one["threshold"] + shift} for one in found["classes"]]}
        missed = 1 - np.take_along_axis(sets_of(logits, shifted), labels[..., None], axis=-1)[..., 0]
        groups = [labels == c for c in range(3)] if family == "class" else [labels >= 0]
        rates = [[row[own].mean() for row, own in zip(missed, group, strict=True) if own.any()] for group in groups]
        return np.array([(sum(one) + 1) / (len(one) + 1) for one in rates])

    assert (risks(0) <= 0.1 + 1e-9).all()
    assert (risks(1 / 128) > 0.1).all()


def test_set_guarantee_of_the_class_with_the_fewest_images(three_classes):
    _, _, histograms = three_classes
    with pytest.raises(
        ConfigError, match=r"--level=0.04: 20 image\(s\) with c allow a level of 0.0477 or more; .*famil"
    ):
        calibrate.set_guarantee(histograms("class"), 0.04, ("a", "b", "c"), "class")
    with pytest.raises(ConfigError, match=r"--split: no image has a pixel of c; .* or use --family=threshold"):
        calibrate.set_guarantee(histograms("class")[20:], 0.2, ("a", "b", "c"), "class")


def test_guarantee_of_a_dilation_that_no_radius_reaches():
    far = np.zeros((9, 2, len(calibrate.RADII) + 1), int)
    far[:, :, 0] = 1  # farther than the largest radius
    with pytest.raises(
        ConfigError, match=r"--level=0.5: 9 .* allow a level of 1 or more; .* or use --family=threshold"
    ):
        calibrate.guarantee(far, 0.5, "debris", "dilation")


def test_guarantee_without_the_class_has_no_other_family():
    absent = np.zeros((9, 2, len(calibrate.RADII) + 1), int)
    with pytest.raises(ConfigError, match=r"choose a split that has some$"):
        calibrate.guarantee(absent, 0.5, "debris", "dilation")


def test_fit_without_an_optimum_names_the_flag(noise):
    scores, labels = noise
    logits = np.stack([np.zeros_like(scores), scores], axis=-1)[0]
    with pytest.raises(ConfigError, match=r"^--scaling=vector: .*fit a temperature"):
        calibrate.fit(logits, labels[0], "vector")


def test_merge_keeps_what_is_not_calibrated_again(found):
    first = calibrate.merge(None, {"split": "val", **found})
    assert first["scaling"]["split"] == "val"
    other = found | {"scaling": None, "guarantee": found["guarantee"] | {"level": 0.6}}
    second = calibrate.merge(first, {"split": "test", **other})
    assert second["scaling"] == first["scaling"]
    assert [(one["level"], one["split"]) for one in second["guarantees"]] == [(0.5, "val"), (0.6, "test")]
    third = calibrate.merge(second, {"split": "test", **found})
    assert [(one["level"], one["split"]) for one in third["guarantees"]] == [(0.6, "test"), (0.5, "test")]


@pytest.mark.parametrize(
    ("training", "split", "shared"),
    [
        ("train", "train", "12 of its 12 images.*such as --split=val"),
        ("train[:50%]", "train[25%:75%]", "3 of its 6 images.*such as --split=val"),
        ("train+val", "val", r"6 of its 6 images.*choose a split that does not overlap .*'train\+val'"),
    ],
)
def test_refuse_training_images(run, training, split, shared):
    config = run.config.copy_and_resolve_references()
    config.data.train_split = training
    with pytest.raises(ConfigError, match=rf"--split=.*trained on {shared}"):
        calibrate.refuse_training_images(run._replace(config=config), split, open_split(config.data, split))


@pytest.mark.parametrize(
    ("training", "split", "message"),
    [
        ("train", "all", "2 of its 3 images.*such as --split=val"),
        ("all", "val", "1 of its 1 images.*choose a split that does not overlap .*'all'"),
    ],
)
def test_refuse_training_images_of_all_splits(run, tmp_path, training, split, message):
    for file in ("train/{}/0.png", "train/{}/1.png", "val/{}/0.png"):
        for part in ("images", "masks"):
            (path := tmp_path / file.format(part)).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.eye(8, dtype=np.uint8)).save(path)
    config = run.config.copy_and_resolve_references()
    config.data.update({"name": "folder", "manual_dir": str(tmp_path), "class_names": ("a", "b"), "channels": None})
    config.data.train_split = training
    with pytest.raises(ConfigError, match=message):
        calibrate.refuse_training_images(run._replace(config=config), split, open_split(config.data, split))


def test_refuse_training_images_accepts_the_rest_of_a_split(run):
    config = run.config.copy_and_resolve_references()
    config.data.train_split = "train[:50%]"
    for split in ("train[50%:]", "val"):
        calibrate.refuse_training_images(run._replace(config=config), split, open_split(config.data, split))


def write(file, calibration):
    write_outputs({epath.Path(file): to_json(calibration)}, overwrite=True)


@pytest.fixture
def calibrated(run, found, tmp_path):
    """Returns the run in a folder with its calibration, and the calibration."""
    stored = calibrate.merge(None, {"split": "val", **found})
    stored |= {"checkpoints": run.checkpoints, "predictor": run.predictor().record()}
    write(tmp_path / CALIBRATION_FILE, stored)
    return run._replace(workdir=epath.Path(tmp_path)), json.loads(json.dumps(stored))


def test_calibration_of_the_same_checkpoint(calibrated, run):
    assert calibration_of(calibrated[0]) == (calibrated[1], "")
    assert calibration_of(run) == (None, "")
    assert [len(table.rows) for table in calibration_tables(calibrated[1])] == [3, 1]


def test_calibration_of_another_checkpoint_or_other_options(calibrated, trained):
    run, _ = calibrated
    earlier = load_run(trained.workdir / "checkpoints" / "2")._replace(workdir=run.workdir)
    calibration, reason = calibration_of(earlier)
    assert calibration is None
    assert re.search(r"is of another checkpoint, .*/checkpoints/4; this is .*/checkpoints/2$", reason)
    config = run.config.copy_and_resolve_references()
    config.data.mean = (0.0, 0.0, 0.0)
    assert calibration_of(run._replace(config=config))[1].endswith("now it is [0.0, 0.0, 0.0]")


def test_stored_scaling_of_this_checkpoint_and_the_default_options(calibrated, run, trained):
    (here, stored), options = calibrated, PredictOptions(tuple(run.config.data.size))
    scaling, line = stored_scaling(here, options)
    assert scaling == (tuple(stored["scaling"]["scale"]), (0.0, 0.0))
    assert re.match("the probabilities are calibrated: temperature scaling, [23].* fitted to 6 images of val", line)
    assert here.predictor(dataclasses.replace(options, scaling=scaling)).record()["scaling"] == scaling
    assert stored_scaling(run, options) == (None, "")
    scaling, line = stored_scaling(here, dataclasses.replace(options, augment="flip"))
    assert (scaling, line) == (None, "the probabilities are not calibrated: the scaling was fitted without --augment")
    earlier = load_run(trained.workdir / "checkpoints" / "2")._replace(workdir=here.workdir)
    scaling, line = stored_scaling(earlier, options)
    assert scaling is None
    assert re.match("the probabilities are not calibrated: .* is of another checkpoint", line)
    with pytest.raises(ConfigError, match=r"--guarantee: .* is of another checkpoint.* --class=debris --overwrite$"):
        guaranteed_mask(earlier, 0.5, None)


def test_guaranteed_mask_gives_masks_of_its_miss_rate(calibrated, source):
    run, stored = calibrated
    fields, guarantee, line = guaranteed_mask(run, True, None)
    assert guarantee == stored["guarantees"][0]
    assert f"the {guarantee['images_with_class']} images of val with debris" in line
    predict, missed = run.predictor(PredictOptions(tuple(run.config.data.size), **fields)), []
    for example in (source[i] for i in range(len(source))):
        positive = example["label"] == 1
        missed += [1 - (predict(example["image"]).mask[positive] == 1).mean()] if positive.any() else []
    assert np.mean(missed) == pytest.approx(guarantee["miss_rate"], abs=1e-3)


@pytest.mark.parametrize(
    ("levels", "level", "class_index", "message"),
    [
        ((0.5,), 0.1, None, "--guarantee: stored are --guarantee=0.5 --class=debris. To add it: .* --level=0.1 "),
        ((0.5,), True, 0, "--guarantee: stored are --guarantee=0.5 --class=debris. To add it: .*--class=background$"),
        ((0.5, 0.6), True, None, "--guarantee: several are stored; choose one of --guarantee=0.5 --class=debris, "),
        ((), True, None, "--guarantee: .* was not calibrated for it. To add it: segjax calibrate --checkpoint="),
    ],
)
def test_guaranteed_mask_that_is_not_stored_once(calibrated, levels, level, class_index, message):
    run, stored = calibrated
    stored["guarantees"] = [stored["guarantees"][0] | {"level": one} for one in levels]
    write(run.workdir / CALIBRATION_FILE, stored)
    with pytest.raises(ConfigError, match=message):
        guaranteed_mask(run, level, class_index)


@pytest.mark.parametrize("by_hand", [False, True])
def test_guaranteed_mask_proposes_overwrite_for_a_file_that_was_changed(calibrated, by_hand):
    run, stored = calibrated
    if by_hand:
        (run.workdir / CALIBRATION_FILE).write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=r"checkpoints/4 .* --level=0.1 ") as error:
        guaranteed_mask(run, 0.1, None)
    assert str(error.value).endswith("--overwrite") == by_hand


@pytest.fixture(scope="module")
def pair(trained):
    """Returns the ensemble of two checkpoints."""
    return combine([load_run(trained.workdir / "checkpoints" / step) for step in ("2", "latest")])


def test_calibration_of_several_runs_is_of_the_same_members_only(pair, run, found, tmp_path):
    file = epath.Path(tmp_path / "both.json")
    stored = calibrate.merge(None, {"split": "val", **found})
    write(file, stored | {"checkpoints": pair.checkpoints, "predictor": pair.predictor().record()})
    assert calibration_of(pair) == (None, "")
    calibration, reason = calibration_of(pair._replace(calibration=file))
    assert (calibration["scaling"], reason) == (json.loads(json.dumps(stored["scaling"])), "")
    calibration, reason = calibration_of(run._replace(calibration=file))
    assert calibration is None
    assert re.search(r"another checkpoint, .*/checkpoints/2, .*/checkpoints/4; this is .*/checkpoints/4$", reason)
    with pytest.raises(StorageError, match=r"--calibration=.*: no such file; .* --output=.*none.json"):
        calibration_of(pair._replace(calibration=epath.Path(tmp_path / "none.json")))


def test_calibration_of_several_runs_in_another_order(pair, found, tmp_path):
    file = epath.Path(tmp_path / "both.json")
    stored = calibrate.merge(None, {"split": "val", **found})
    write(file, stored | {"checkpoints": pair.checkpoints, "predictor": pair.predictor().record()})
    calibration, reason = calibration_of(combine(pair.runs[::-1])._replace(calibration=file))
    assert (calibration is None, reason) == (False, "")


def test_guaranteed_mask_of_several_runs_proposes_a_file(pair):
    command = r"segjax calibrate --checkpoint=\S*/checkpoints/2,\S*/checkpoints/4 .* --output=FILE.json; .*"
    with pytest.raises(ConfigError, match=rf"--guarantee: .* {command}--calibration=FILE.json$"):
        guaranteed_mask(pair, True, None)


@pytest.fixture
def sets(found):
    """Returns a guarantee of sets as it is stored."""
    classes = [{"class": name, "threshold": -1.0 - i, "images": 6} for i, name in enumerate(("background", "debris"))]
    classes = [one | {"coverage": 0.75, "mean_size": 1.25} for one in classes]
    one = {key: value for key, value in found["guarantee"].items() if key not in ("threshold", "false_positive_rate")}
    one |= {"risk": "miscoverage", "family": "class", "class": "", "coverage": 0.7, "mean_size": 1.5}
    return one | {"classes": classes, "split": "val", "images": 6, "data": "x"}


def test_guaranteed_sets_are_selected_by_their_level(calibrated, sets):
    run, stored = calibrated
    stored["guarantees"].append(sets)
    write(run.workdir / CALIBRATION_FILE, stored)
    fields, one, line = guaranteed_sets(run, 0.5)
    assert fields == {"set_thresholds": (-1.0, -2.0), "adaptive_sets": False}
    assert one == sets
    assert re.search("the 6 images of val; .* all 0.700, 1.500; background 0.750, 1.250; debris 0.750, 1.250$", line)
    assert guaranteed_mask(run, True, None)[1]["risk"] == "fnr"
    with pytest.raises(ConfigError, match=r"--sets: stored are --sets=0\.5\. To .* --risk=miscoverage --level=0.1$"):
        guaranteed_sets(run, 0.1)


@pytest.mark.parametrize(
    ("scaling", "guarantee", "damage"),
    [
        ({"scale": [1.0, 1.0, 1.0]}, {}, "its scaling has 3 factors and 2 biases for 2 classes"),
        ({"scale": []}, {}, "its scaling has 0 factors"),
        ({"scale": [-1.0, 1.0]}, {}, "its scaling has a factor or bias of -1.0"),
        ({"bias": [0.0, float("inf")]}, {}, "its scaling has a factor or bias of inf"),
        ({}, {"threshold": float("nan")}, "its guarantees item 1 has threshold = nan"),
        ({}, {"class": "dog"}, "its guarantees item 1 is of risk 'fnr', family 'threshold' and class 'dog'"),
        ({}, {"risk": "luck"}, "its guarantees item 1 is of risk 'luck'"),
        ({}, {"family": "adaptive"}, "its guarantees item 1 is of risk 'fnr', family 'adaptive'"),
        ({}, {"family": "dilation"}, "its guarantees item 1 has no radius"),
        ({}, {"family": "dilation", "radius": -1.0}, "its guarantees item 1 has radius = -1.0"),
        ({}, {"risk": "miscoverage", "class": ""}, "its guarantees item 1 has no classes"),
        ({}, "sets", "its guarantees item 1 has sets of background"),
        ({}, "infinite", "its guarantees item 1 has threshold = inf"),
    ],
)
def test_calibration_of_invalid_values(calibrated, sets, scaling, guarantee, damage):
    run, stored = calibrated
    if guarantee == "sets":
        guarantee = sets | {"classes": sets["classes"][:1]}
    elif guarantee == "infinite":
        guarantee = sets | {"classes": [sets["classes"][0], sets["classes"][1] | {"threshold": float("inf")}]}
    stored = stored | {"scaling": stored["scaling"] | scaling, "guarantees": [stored["guarantees"][0] | guarantee]}
    write(run.workdir / CALIBRATION_FILE, stored)
    with pytest.raises(StorageError, match=rf"{CALIBRATION_FILE}: .*{damage}.* Remove it .*--overwrite$"):
        calibration_of(run)
    with pytest.raises(StorageError, match=r"--overwrite; .* --nocalibrated$"):
        stored_scaling(run, PredictOptions(tuple(run.config.data.size)))


def test_calibration_of_a_damaged_file(calibrated, misread):
    run, _ = calibrated
    accepted = misread(run.workdir / CALIBRATION_FILE, lambda: calibration_of(run))
    assert accepted <= {
        "missing",
        "loop",
        "utf-8-sig",
        "utf-16",
        "utf-32",
        "scaling None",
        "guarantees []",
        "checkpoints []",
        "predictor {}",
    }
