import pytest

from experiments.benchmarks import prediction_cost
from segjax.inference import PredictOptions

SIZE, TILE = (24, 32), (16, 16)


def test_tiles_overlap_by_their_share_and_the_others_are_the_image():
    ways = {name: prediction_cost.way_of(SIZE, TILE, fields) for name, fields in prediction_cost.WAYS.items()}
    assert ways["D4"] == PredictOptions(SIZE, scale=1.0, augment="d4")
    assert ways["tiles, no overlap"] == PredictOptions(TILE, scale=1.0)
    assert ways["tiles, D4 and 3 samples"] == PredictOptions(TILE, scale=1.0, overlap=4, augment="d4", samples=3)


def test_every_case_is_timed_and_has_its_ratio(monkeypatch):
    names = (prediction_cost.WHOLE, "tiles, a quarter of overlap")  # the others are the engine's tests' to compile
    monkeypatch.setattr(prediction_cost, "WAYS", {name: prediction_cost.WAYS[name] for name in names})
    measured = prediction_cost.measure(2, SIZE, TILE, rounds=1)
    taken, ratios = measured["seconds_per_megapixel"], measured["ratios"]
    assert list(taken) == [*names, "the network alone", "3 whole passes", "CRF, radius 3"]
    assert all(seconds > 0 for seconds in taken.values())
    assert ratios["CRF, radius 3"] == pytest.approx(taken["CRF, radius 3"] / taken[prediction_cost.WHOLE])
