"""Cases of the prediction cost."""

import pytest

from experiments.benchmarks import prediction_cost
from segjax.inference import PredictOptions

SIZE, TILE = (24, 32), (16, 16)


def test_options_of_tiles_and_of_whole_images():
    options = {name: prediction_cost.options_of(SIZE, TILE, fields) for name, fields in prediction_cost.OPTIONS.items()}
    assert options["D4"] == PredictOptions(SIZE, scale=1.0, augment="d4")
    assert options["tiles, no overlap"] == PredictOptions(TILE, scale=1.0)
    assert options["tiles, D4 and 3 samples"] == PredictOptions(TILE, scale=1.0, overlap=4, augment="d4", samples=3)


@pytest.mark.slow
def test_measure_times_every_case(monkeypatch):
    names = (prediction_cost.WHOLE, "tiles, a quarter of overlap")
    monkeypatch.setattr(prediction_cost, "OPTIONS", {name: prediction_cost.OPTIONS[name] for name in names})
    measured = prediction_cost.measure(2, SIZE, TILE, rounds=1)
    taken, ratios = measured["seconds_per_megapixel"], measured["ratios"]
    assert list(taken) == [*names, "the network alone", "3 whole passes", "CRF, radius 3"]
    assert all(seconds > 0 for seconds in taken.values())
    assert ratios["CRF, radius 3"] == pytest.approx(taken["CRF, radius 3"] / taken[prediction_cost.WHOLE])
