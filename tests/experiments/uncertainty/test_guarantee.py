import numpy as np
import pytest

from experiments.uncertainty import guarantee
from segjax import metrics
from segjax.data import VOID
from segjax.trained_run import load_run
from segjax.training import loop, open_split

BINS = 4096


def _counts(images=200, seed=0):
    """Returns histograms of images whose positives and negatives have normal log odds, with a mean of each image."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(images):
        centre = rng.normal()
        odds = rng.normal(size=400) + centre + np.repeat([-4.0, 1.0], [360, 40])
        rows.append(metrics.score_histogram(odds.astype(np.float32), np.repeat([0, 1], [360, 40])))
    rare = np.stack(rows)
    positives = rare[:, 1]
    return guarantee.Histograms(
        rare, dict.fromkeys(guarantee.SETS, positives), dict.fromkeys(guarantee.SETS, rare.sum(1))
    )


COUNTS = _counts()
HALVES = guarantee.divisions(200, 100, seed=0)


def test_divisions_are_halves():
    assert (HALVES.sum(axis=1) == 100).all()
    assert len(np.unique(HALVES, axis=0)) == 100


def test_rare_class_rows_keep_the_level_on_average():
    for row in guarantee.rare_class_rows(COUNTS, HALVES, (0.05, 0.1)):
        error = np.std(row["risks"]) / 10
        assert row["level"] - 2 / 101 - 3 * error <= np.mean(row["risks"]) <= row["level"] + 3 * error
        assert row["calibration_images"] == [100] * 100


def test_rare_class_rows_level_that_too_few_images_allow_is_reported():
    (row,) = guarantee.rare_class_rows(COUNTS, HALVES[:2], (0.005,))
    assert row["risks"] == []
    assert "smallest level" in row["infeasible"]
    assert "not feasible" in guarantee.band(row["risks"])


def test_set_rows_share_missed_and_mean_size():
    rows = guarantee.set_rows(COUNTS, HALVES[:10], (0.1,))
    assert [row["sets"] for row in rows] == list(guarantee.SETS)
    assert np.mean(rows[0]["risks"]) == pytest.approx(0.1, abs=0.05)
    assert all(size > 0 for size in rows[0]["mean_size"])


def test_own_threshold_counts_from_a_probability_of_one_half():
    rare = np.zeros((1, 2, BINS), int)
    rare[0, 0, [2047, 2048]], rare[0, 1, [2047, 2048]] = (6, 2), (1, 3)
    counts = guarantee.Histograms(rare, {}, {})
    assert guarantee.own_threshold(counts) == {"risk": 0.25, "false_positive_rate": 0.25, "precision": 0.6}


@pytest.mark.slow
def test_histograms_and_report_of_a_trained_run(tiny_scenes, tmp_path):
    loop.train(tiny_scenes, tmp_path / "run")
    run = load_run(tmp_path / "run")
    source = open_split(run.config.data, "val")
    counts = guarantee.histograms_of(run, source, 1)
    labels = [source[i]["label"] for i in range(len(source))]
    np.testing.assert_array_equal(counts.rare.sum(axis=(1, 2)), [(label != VOID).sum() for label in labels])
    np.testing.assert_array_equal(counts.rare[:, 1].sum(axis=1), [(label == 1).sum() for label in labels])
    for name in guarantee.SETS:
        np.testing.assert_array_equal(counts.own[name].sum(axis=1), counts.rare.sum(axis=(1, 2)))
        np.testing.assert_array_equal(counts.every[name].sum(axis=1), 2 * counts.rare.sum(axis=(1, 2)))
    halves = guarantee.divisions(len(source), 3, seed=0)
    rare, sets = (f(counts, halves, (0.5, 0.9)) for f in (guarantee.rare_class_rows, guarantee.set_rows))
    made = guarantee.report(run, "val", "debris", rare, sets, guarantee.own_threshold(counts))
    assert [section.title for section in made.sections] == ["Missed debris", "Prediction sets"]
    assert len(made.sections[0].tables[0].rows) == 3
