import numpy as np
import pytest

from experiments.uncertainty import guarantee
from segjax import metrics
from segjax.data import VOID
from segjax.trained_run import load_run
from segjax.training import loop, open_split


def _counts(images=200, seed=0):
    """Returns histograms of two classes: normal log odds, with a mean of each image."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(images):
        odds = rng.normal(size=400) + rng.normal() + np.repeat([-4.0, 1.0], [360, 40])
        label = np.repeat([0, 1], [360, 40])
        rows.append([metrics.score_histogram(x.astype(np.float32), y) for x, y in ((-odds, 1 - label), (odds, label))])
    classes = np.array(rows)
    return guarantee.Histograms(classes, classes.sum(axis=1), classes[:, 1])


COUNTS = _counts()
RARE = COUNTS.classes[:, 1]
HALVES = guarantee.divisions(200, 100, seed=0)


def test_divisions_are_halves():
    assert (HALVES.sum(axis=1) == 100).all()
    assert len(np.unique(HALVES, axis=0)) == 100


def test_rare_class_rows_keep_the_level_on_average():
    for row in guarantee.rare_class_rows(RARE, HALVES, (0.05, 0.1)):
        error = np.std(row["risks"]) / 10
        assert row["level"] - 2 / 101 - 3 * error <= np.mean(row["risks"]) <= row["level"] + 3 * error
        assert row["calibration_images"] == [100] * 100


def test_rare_class_rows_level_that_too_few_images_allow_is_reported():
    (row,) = guarantee.rare_class_rows(RARE, HALVES[:2], (0.005,))
    assert row["risks"] == []
    assert "raise the level to 0.01" in row["infeasible"]
    assert "not feasible" in guarantee.band(row["risks"])


def test_set_rows_share_missed_and_mean_size():
    rows = guarantee.set_rows(COUNTS, HALVES[:10], (0.1,))
    assert [row["sets"] for row in rows] == ["one threshold", "a threshold per class", "adaptive"]
    for row in rows:
        assert np.mean(row["risks"]) == pytest.approx(0.1, abs=0.03)
        assert np.mean(row["mean_size"]) == pytest.approx(0.9, abs=0.05)


def test_own_threshold_counts_from_a_probability_of_one_half():
    rare = np.zeros((1, 2, 4096), int)
    rare[0, 0, [2047, 2048]], rare[0, 1, [2047, 2048]] = (6, 2), (1, 3)
    assert guarantee.own_threshold(rare) == {"risk": 0.25, "false_positive_rate": 0.25, "precision": 0.6}


@pytest.mark.slow
def test_histograms_and_report_of_a_trained_run(tiny_scenes, tmp_path):
    loop.train(tiny_scenes, tmp_path / "run")
    run = load_run(tmp_path / "run")
    source = open_split(run.config.data, "val")
    counts = guarantee.histograms_of(run, source, 1)
    labels = [source[i]["label"] for i in range(len(source))]
    pixels = [[(label == c).sum() for c in range(2)] for label in labels]
    np.testing.assert_array_equal(counts.classes[:, :, 1].sum(axis=-1), pixels)
    np.testing.assert_array_equal(counts.classes.sum(axis=(2, 3))[:, 0], [(label != VOID).sum() for label in labels])
    np.testing.assert_array_equal(counts.adaptive.sum(axis=-1), np.sum(pixels, axis=1)[:, None] * [1, 1])
    np.testing.assert_array_equal(counts.distances.sum(axis=-1), pixels)
    # Distance 0: in the mask.
    np.testing.assert_array_equal(counts.distances[..., -1], counts.classes[:, 1, :, 2048:].sum(axis=-1))
    halves, rare = guarantee.divisions(len(source), 3, seed=0), counts.classes[:, 1]
    rare_rows, dilations = (guarantee.rare_class_rows(each, halves, (0.5, 0.9)) for each in (rare, counts.distances))
    rows = rare_rows, dilations, guarantee.set_rows(counts, halves, (0.5, 0.9))
    made = guarantee.report(run, "val", "debris", *rows, guarantee.own_threshold(rare))
    assert [section.title for section in made.sections] == [
        "Missed debris pixels",
        "Dilation of the mask",
        "Prediction sets",
    ]
    assert len(made.sections[0].tables[0].rows) == 3
