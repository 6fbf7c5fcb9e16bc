"""Calibration of a trained run: the pixels that it is fitted to, thresholds with a guarantee, and the stored file."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from scipy.special import log_softmax, softmax

from segjax import calibrate, metrics
from segjax.inference import PredictOptions, class_logits, predict_logits
from segjax.reporting import calibration_tables
from segjax.storage import StorageError
from segjax.trained_run import (
    CALIBRATION_FILE,
    calibration_of,
    guaranteed_threshold,
    image_counts,
    load_run,
    prediction_sets,
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
    found = calibrate.calibrate(run, source, kind="none", risk="fnr", number=1, level=0.5)
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
    logits, labels, kind = calibrate.calibrate(run, source, risk="fnr", number=1, level=0.5)["scaling"]
    known = pixels[1] != 255
    np.testing.assert_array_equal(labels, pixels[1][known])
    np.testing.assert_allclose(logits, pixels[0][known], atol=1e-4)
    assert kind == "temperature"


@pytest.mark.parametrize("kind", ["class", "vector"])
def test_calibrate_several_factors_for_one_output(run, source, kind):
    with pytest.raises(ConfigError, match=rf"--scaling={kind}: .* one output, .* debris.* --scaling=temperature$"):
        calibrate.calibrate(run, source, kind=kind)


def test_calibrate_guarantee_at_its_threshold(found, pixels):
    logits, labels = pixels
    chosen = logits[..., 1] - logits[..., 0] >= found["guarantee"]["threshold"]
    missed = [1 - chosen[i][labels[i] == 1].mean() for i in range(len(labels)) if (labels[i] == 1).any()]
    assert found["guarantee"]["miss_rate"] == pytest.approx(np.mean(missed), abs=1e-3)
    assert found["guarantee"]["false_positive_rate"] == pytest.approx(chosen[labels == 0].mean(), abs=1e-3)
    assert (np.sum(missed) + 1) / (len(missed) + 1) <= 0.5 + 1e-3


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
        return calibrate._count_image(*arrays, share=0.1, risk=None, number=None)["sample"]

    values, drawn, where = sample(0)
    np.testing.assert_array_equal(values, np.stack([drawn, -drawn], axis=-1))
    np.testing.assert_array_equal(where, drawn < 500)
    assert drawn.shape == (60,)
    assert len(np.unique(drawn)) > 45
    assert (drawn != sample(1)[1]).mean() > 0.9


def histograms(scores, labels):
    """Returns the score histograms of images `[images, pixels]`."""
    return np.stack([metrics.score_histogram(z, y) for z, y in zip(scores, labels, strict=True)]).astype(np.int64)


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
        (slice(25, 30), 0.1, "--class=debris: no image of the split has a pixel of it; choose a --split"),
        (slice(1), 0.1, r"--level=0.1: 1 image\(s\) with debris allow a level of 0.5 or more; raise --level"),
        (slice(30), 0.01, r"--level=0.01: 25 image\(s\) with debris allow a level of 0.0385 or more"),
    ],
)
def test_guarantee_of_a_degenerate_calibration_set(noise, images, level, message):
    counts = histograms(*(x[images] for x in noise))
    with pytest.raises(ConfigError, match=message):
        calibrate.guarantee(counts, level, "debris")


def test_guarantee_of_prediction_sets():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (25, 100))
    logits = rng.normal(4 * np.eye(3)[labels]).astype(np.float32)
    odds, own = np.asarray(metrics.class_log_odds(logits)), np.eye(3, dtype=np.int32)[labels]
    found = calibrate.guarantee(histograms(odds, own), 0.1, "")
    sets = odds >= found["threshold"]
    missed = 1 - (sets & (own == 1)).any(-1).mean(-1)
    assert (found["risk"], found["class"], found["images_with_class"]) == ("miscoverage", "", 25)
    assert (missed.sum() + 1) / 26 <= 0.1 + 1e-9
    assert found["miss_rate"] == pytest.approx(missed.mean())
    assert found["mean_size"] == pytest.approx(sets.sum(-1).mean())


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
    [("train", "train", "12 of its 12"), ("train[:50%]", "train[25%:75%]", "3 of its 6"), ("train+val", "val", "6 of")],
)
def test_refuse_training_images(run, training, split, shared):
    config = run.config.copy_and_resolve_references()
    config.data.train_split = training
    with pytest.raises(ConfigError, match=rf"--split=.*trained on {shared}.* images.*; choose other images"):
        calibrate.refuse_training_images(run._replace(config=config), split, open_split(config.data, split))


def test_refuse_training_images_accepts_the_rest_of_a_split(run):
    config = run.config.copy_and_resolve_references()
    config.data.train_split = "train[:50%]"
    for split in ("train[50%:]", "val"):
        calibrate.refuse_training_images(run._replace(config=config), split, open_split(config.data, split))


@pytest.fixture
def calibrated(run, found, tmp_path):
    """Returns the run in a folder with its calibration, and the calibration."""
    stored = calibrate.merge(None, {"split": "val", **found}) | {"step": 4, "predictor": run.predictor().record()}
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(stored))
    return run._replace(workdir=epath.Path(tmp_path)), json.loads(json.dumps(stored))


def test_calibration_of_the_same_checkpoint(calibrated, run):
    assert calibration_of(calibrated[0]) == (calibrated[1], "")
    assert calibration_of(run) == (None, "")
    assert [len(table.rows) for table in calibration_tables(calibrated[1])] == [3, 1]


def test_calibration_of_another_checkpoint_or_other_options(calibrated, trained):
    run, _ = calibrated
    earlier = load_run(trained.workdir / "checkpoints" / "2")._replace(workdir=run.workdir)
    assert calibration_of(earlier) == (
        None,
        f"{run.workdir / CALIBRATION_FILE} is of another checkpoint, of step 4; this is step 2",
    )
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
    assert (scaling, line) == (None, "the probabilities are not calibrated: the scaling is not of {'augment': 'flip'}")
    earlier = load_run(trained.workdir / "checkpoints" / "2")._replace(workdir=here.workdir)
    scaling, line = stored_scaling(earlier, options)
    assert scaling is None
    assert re.match("the probabilities are not calibrated: .* is of another checkpoint", line)
    with pytest.raises(ConfigError, match=r"--guarantee: .* is of another checkpoint.* --class=debris --overwrite$"):
        guaranteed_threshold(earlier, 0.5, None)


def test_guaranteed_threshold_gives_masks_of_its_miss_rate(calibrated, source):
    run, stored = calibrated
    fields, guarantee, line = guaranteed_threshold(run, True, None)
    assert guarantee == stored["guarantees"][0]
    assert f"the {guarantee['images_with_class']} images of val with debris" in line
    predict, missed = run.predictor(PredictOptions(tuple(run.config.data.size), **fields)), []
    for example in (source[i] for i in range(len(source))):
        positive = example["label"] == 1
        missed += [1 - (predict(example["image"]).mask[positive] == 1).mean()] if positive.any() else []
    assert np.mean(missed) == pytest.approx(guarantee["miss_rate"], abs=1e-3)


@pytest.mark.parametrize(
    ("levels", "level", "number", "message"),
    [
        ((0.5,), 0.1, None, "--guarantee: stored are --guarantee=0.5 --class=debris. To add it: .* --level=0.1 "),
        ((0.5,), True, 0, "--guarantee: stored are --guarantee=0.5 --class=debris. To add it: .*--class=background$"),
        ((0.5, 0.6), True, None, "--guarantee: several are stored; choose one of --guarantee=0.5 --class=debris, "),
        ((), True, None, "--guarantee: .* was not calibrated for it. To add it: segjax calibrate --checkpoint="),
    ],
)
def test_guaranteed_threshold_that_is_not_stored_once(calibrated, levels, level, number, message):
    run, stored = calibrated
    stored["guarantees"] = [stored["guarantees"][0] | {"level": one} for one in levels]
    (run.workdir / CALIBRATION_FILE).write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=message):
        guaranteed_threshold(run, level, number)


def test_prediction_sets_are_selected_by_their_level(calibrated):
    run, stored = calibrated
    stored["guarantees"].append(stored["guarantees"][0] | {"risk": "miscoverage", "class": "", "mean_size": 1.5})
    (run.workdir / CALIBRATION_FILE).write_text(json.dumps(stored))
    fields, one, line = prediction_sets(run, 0.5)
    assert fields == {"set_threshold": one["threshold"]}
    assert "the 6 images of val, where the mean size of a set is 1.500" in line
    assert guaranteed_threshold(run, True, None)[1]["risk"] == "fnr"
    with pytest.raises(ConfigError, match=r"--sets: stored are --sets=0\.5\. To .* --risk=miscoverage --level=0.1$"):
        prediction_sets(run, 0.1)


@pytest.mark.parametrize(
    ("scaling", "guarantee", "damage"),
    [
        ({"scale": [1.0, 1.0, 1.0]}, {}, "its scaling has 3 factors and 2 biases for 2 classes"),
        ({"scale": []}, {}, "its scaling has 0 factors"),
        ({"scale": [-1.0, 1.0]}, {}, "its scaling has a factor or bias of -1.0"),
        ({"bias": [0.0, float("inf")]}, {}, "its scaling has a factor or bias of inf"),
        ({}, {"threshold": float("nan")}, "its guarantees item 1 has threshold = nan"),
        ({}, {"class": "dog"}, "its guarantees item 1 is of risk 'fnr' and class 'dog'"),
        ({}, {"risk": "miscoverage", "class": ""}, "its guarantees item 1 has mean_size = None"),
        ({}, {"risk": "luck"}, "its guarantees item 1 is of risk 'luck'"),
    ],
)
def test_calibration_of_invalid_values(calibrated, scaling, guarantee, damage):
    run, stored = calibrated
    stored = stored | {"scaling": stored["scaling"] | scaling, "guarantees": [stored["guarantees"][0] | guarantee]}
    (run.workdir / CALIBRATION_FILE).write_text(json.dumps(stored))
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
        "step -1",
        "predictor {}",
    }
