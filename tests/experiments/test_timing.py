import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from experiments import metrics_speed
from experiments.metrics_speed import OURS, Case

RESULT = Path(metrics_speed.__file__).parent / "results" / "metrics_speed.json"


def test_a_small_run_prints_both_tables_and_writes_every_case(tmp_path, python):
    output = tmp_path / "new" / "speed.json"
    done = python("-m", "experiments.metrics_speed", "--shape=1,40,64", "--rounds=2", f"--output={output}")
    assert done.returncode == 0, done.stderr
    written = json.loads(output.read_text())
    times, ratios = written["confusion_matrix_ms"], written["confusion_matrix_ratios"]
    assert {OURS, "numpy.bincount", "scikit-learn confusion_matrix"} <= set(times) == set(ratios)
    assert all(name in done.stdout for name in [*times, *written["from_logits_ms"]])
    assert all(taken > 0 for taken in [*times.values(), *written["from_logits_ms"].values()])
    assert ratios[OURS] == 1
    assert written["shape"] == [1, 40, 64]


def test_rounds_are_interleaved_in_changing_order_and_the_first_is_not_counted(monkeypatch):
    now, order, seconds = [0], [], {"a": [99, 1, 2, 9], "b": [99, 5, 6, 7], "c": [0, 0, 0, 0]}

    def run(name):
        now[0] += seconds[name][order.count(name)]
        order.append(name)

    monkeypatch.setattr(metrics_speed, "PAUSE", 0)
    monkeypatch.setattr(metrics_speed.time, "perf_counter", lambda: now[0])
    taken = metrics_speed.milliseconds([Case(name, partial(run, name)) for name in seconds], 3)
    assert taken == {"a": 2000, "b": 6000, "c": 0}
    rounds = [tuple(order[i : i + 3]) for i in range(0, 12, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 1


def test_a_library_that_counts_something_else_is_an_error():
    cases = [Case(OURS, lambda: np.eye(2)), Case("other", lambda: 2 * np.eye(2))]
    with pytest.raises(ValueError, match=r"other counts other true positives, \[2\. 2\.\], than segjax, int32"):
        metrics_speed.check(cases)


def test_what_was_measured_is_ten_times_as_fast_as_torchmetrics():
    measured = json.loads(RESULT.read_text())
    ratios = measured["confusion_matrix_ratios"]
    assert ratios["torchmetrics MulticlassConfusionMatrix"] >= 10
    assert ratios["torchmetrics MulticlassJaccardIndex"] >= 10
    assert measured["shape"] == [2, 512, 1024]
