import jax
import numpy as np
import pytest

from experiments.uncertainty import local_temperature
from segjax import metrics
from segjax.data import label_set
from segjax.trained_run import TrainedRun, model_of
from segjax.training.train_step import init_state

RNG = np.random.default_rng(0)


def _pixels(images=11, size=48):
    """Returns pixels whose logits are ten times too large in the right half of the image, and right elsewhere."""
    inputs = np.zeros((images, size, size, 1), np.float32)
    inputs[:, :, size // 2 :] = 1
    logits = RNG.normal(size=(images, size * size, 3)).astype(np.float32)
    labels = np.asarray(jax.random.categorical(jax.random.key(0), logits))
    logits = logits * (1 + 9 * inputs.reshape(images, -1, 1))
    at = np.broadcast_to(np.arange(size * size), labels.shape)
    outputs = logits.reshape(images, size, size, 3)
    return local_temperature.Pixels(inputs, outputs, at, logits, labels, np.ones_like(labels, bool))


@pytest.fixture(scope="module")
def pixels():
    """Pixels of eleven images."""
    return _pixels()


def _likelihood(logits, labels):
    return metrics.negative_log_likelihood(metrics.proper_score_sums(logits, labels))


@pytest.mark.slow
def test_calibrated_local_finds_a_temperature_that_depends_on_the_image(pixels, monkeypatch):
    monkeypatch.setattr(local_temperature, "RATE", 1e-2)
    monkeypatch.setattr(local_temperature, "WIDTH", 4)
    fitted, scored = pixels.select(slice(0, 10)), pixels.select(slice(10, 11))
    plain, one, local = (
        _likelihood(local_temperature.calibrated(kind, fitted, scored, 0), scored.labels)
        for kind in ("none", "temperature", "local: logits and image")
    )
    assert local < one - 0.02 < one < plain


@pytest.mark.slow
def test_fit_local_that_finds_nothing_better_keeps_the_first_temperature(pixels, monkeypatch):
    monkeypatch.setattr(local_temperature, "EPOCHS", 0)
    logits = local_temperature.fit_local(pixels, float(np.log(0.5)), False, 0)(pixels)
    np.testing.assert_allclose(logits, 0.5 * pixels.logits, rtol=1e-6)


@pytest.mark.slow
def test_pixels_of_are_labelled_and_on_the_boundaries_of_the_labels(tiny_scenes):
    config = tiny_scenes.copy_and_resolve_references().unlock()
    config.data.name, config.objective.alpha, config.model.prior = "road_debris_scene", None, ()
    config.objective.loss, config.data.size = "softmax_cross_entropy", config.data.scene_size
    model = model_of(config)
    run = TrainedRun(None, config, model, init_state(config, model), label_set(config.data))
    pixels = local_temperature.pixels_of(run)
    assert pixels.labels.shape == (4, local_temperature.PIXELS)
    assert pixels.labels.max() < 5
    assert 0.01 < pixels.near.mean() < 0.3
    outputs = pixels.outputs.reshape(4, -1, 5)
    np.testing.assert_allclose(np.take_along_axis(outputs, pixels.at[..., None], 1), pixels.logits, rtol=1e-5)


def test_report_has_a_row_per_data_set_and_scaling():
    columns = dict.fromkeys(("ece", "ace", "nll", "boundary_ece"), 0.5)
    scalings = dict.fromkeys(local_temperature.SCALINGS, columns) | {"local: logits": columns | {"nll": 0.25}}
    made = local_temperature.report({"camvid": [{"scalings": scalings, "provenance": _PROVENANCE}] * 2})
    assert "camvid: NLL 0.5000 with one temperature, 0.2500 with one per pixel (from logits)" in made.text
    assert len(made.sections[0].tables[0].rows) == len(local_temperature.SCALINGS)


_PROVENANCE = dict.fromkeys(("command", "commit", "device", "cpu_threads", "python", "versions"), "x")
