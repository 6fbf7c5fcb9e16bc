import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sweep import parallel_cells
from experiments.uncertainty import methods, scores
from segjax import metrics
from segjax.data import VOID
from segjax.trained_run import load_run
from segjax.training import parallel

RNG = np.random.default_rng(0)


def _examples(count=4, size=(24, 32), classes=3):
    """Returns images whose first channel contains the label, with noise, some void and some unknown pixels."""
    found = []
    for _ in range(count):
        label = RNG.integers(0, classes, size).astype(np.uint8)
        image = np.stack([80.0 * label, *RNG.uniform(0, 255, (2, *size))], axis=-1)
        unknown = RNG.uniform(size=size) < 0.1
        label = np.where(unknown | (RNG.uniform(size=size) < 0.1), VOID, label)
        found.append((np.where(unknown[..., None], 40, image).astype(np.uint8), label, unknown))
    return found


def _maps(image):
    """Scores the first channel: large logits at the values of the classes, small ones between them."""
    value = image[..., :1].astype(jnp.float32)
    logits = 3 - (value - jnp.array([0.0, 80.0, 160.0])) ** 2 / 400
    found = {"entropy": metrics.predictive_entropy(logits[None]), "energy": metrics.energy_score(logits)}
    return {"softmax": scores.Maps(logits, found)}


@pytest.fixture(scope="module")
def images():
    """Counts of four images."""
    return scores.count_images(scores.make_count(_maps, 3), _examples())


def test_ranked_keeps_the_order_of_scores_of_any_range():
    values = np.sort(RNG.normal(size=200) * np.geomspace(1e-3, 1e4, 200)).astype(np.float32)
    for name, rising in (("energy", values), ("entropy", np.abs(values)[np.argsort(np.abs(values))])):
        placed = np.asarray(scores.ranked(name, jnp.asarray(rising)))
        assert (np.diff(placed) >= 0).all()
        assert np.abs(placed).max() < 16


def test_score_pixels_finds_the_unknown_between_the_classes(images):
    found = scores.score_pixels(images)
    assert list(found) == ["entropy", "energy"]
    for one in found.values():
        assert one["auroc"] == 1
        assert one["average_precision"] == pytest.approx(1)
        assert one["aurc"] == 0
        assert one["share"] == pytest.approx(0.11, abs=0.02)


def test_count_images_counts_known_pixels_only(images):
    assert sum(one.confusion["softmax"].sum() for one in images) == sum(
        one.unknown["entropy"][0].sum() for one in images
    )
    assert all((one.labels < 3).all() for one in images)


def test_score_families_without_errors_has_no_scaling(images):
    family = scores.score_families(images)["softmax"]
    assert family["mean_iou"] == 1
    assert family["calibration"]["temperature"]["ece"] is None
    assert "optimum" in family["calibration"]["temperature"]["error"]


def test_score_families_temperature_is_fitted_on_the_other_half():
    logits = RNG.normal(size=(4, scores.PIXELS, 3)).astype(np.float32)
    labels = np.array(jax.random.categorical(jax.random.key(0), logits))
    confusion, none = np.eye(3, dtype=int), {"softmax": {}}
    made = [
        scores.ImageCounts({}, {}, {"softmax": confusion}, {"softmax": 4 * z}, y, none)
        for z, y in zip(logits, labels, strict=True)
    ]
    found = scores.score_families(made)["softmax"]["calibration"]
    np.testing.assert_allclose(found["temperature"]["scale"], 0.25, rtol=0.05)
    assert found["temperature"]["ece"] < 0.03 < found["none"]["ece"]


def test_score_images_ranks_the_image_with_errors_last():
    confusions = [np.diag([9, 9]), np.array([[9, 0], [5, 4]])]
    made = [
        scores.ImageCounts(
            {"entropy": None}, {}, {"softmax": c}, {}, None, {"entropy": dict.fromkeys(("mean", "patch"), u)}
        )
        for c, u in zip(confusions, (0.1, 0.4), strict=True)
    ]
    assert scores.score_images(made)["entropy"]["mean"]["excess_aurc"] == 0


@pytest.mark.slow
def test_measure_of_a_cell_and_of_its_ensemble_with_itself(tiny_scenes, tmp_path):
    config = tiny_scenes.copy_and_resolve_references().unlock()
    config.data.name, config.data.unseen_classes = "road_debris_scene", ("debris",)
    config.objective.loss, config.objective.alpha, config.model.prior = "softmax_cross_entropy", None, ()
    config.training.global_batch = 1
    mesh = parallel.make_mesh(jax.devices()[:1])
    folder = tmp_path / "unseen_classes,seed=0"
    (result,) = parallel_cells.train_together([config], [folder], parallel_cells.compile_sweep(config, mesh))
    assert result["scores"]["unknown"]["entropy"]["auroc"] == result["curves"]["unknown_auroc/entropy"][-1]
    run = load_run(folder / "checkpoints" / "latest")
    single, ensemble = methods.measure("unseen classes", [run]), methods.measure("unseen classes", [run, run])
    assert set(single["pixels"]) | set(ensemble["pixels"]) == set(scores.NAMES)
    same = (("entropy", "ensemble: entropy"), ("1 - max p", "ensemble: 1 - max p"))
    for one, two in same:
        assert single["pixels"][one]["auroc"] == pytest.approx(ensemble["pixels"][two]["auroc"], abs=0.02)
    assert ensemble["pixels"]["ensemble: mutual information"]["auroc"] == pytest.approx(0.5, abs=1e-6)
