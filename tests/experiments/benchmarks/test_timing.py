"""Interleaved rounds, and the comparison of outputs before them."""

from functools import partial

import numpy as np
import pytest

from experiments.benchmarks import timing
from experiments.benchmarks.timing import Case


def test_milliseconds_interleaves_rounds_and_leaves_out_the_first(monkeypatch):
    now, order, seconds = [0], [], {"a": [99, 1, 2, 9], "b": [99, 5, 6, 7], "c": [0, 0, 0, 0]}

    def run(name):
        now[0] += seconds[name][order.count(name)]
        order.append(name)

    monkeypatch.setattr(timing, "PAUSE", 0)
    monkeypatch.setitem(timing.CLOCKS, "wall", lambda: now[0])
    taken = timing.milliseconds([Case(name, partial(run, name)) for name in seconds], 3)
    assert taken == {"a": 2000, "b": 6000, "c": 0}
    rounds = [tuple(order[i : i + 3]) for i in range(0, 12, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 1


def test_milliseconds_refuses_cpu_time_of_several_threads(monkeypatch):
    monkeypatch.setattr(timing, "threads", lambda: 2)
    with pytest.raises(ValueError, match=r'clock="cpu" needs a process with one CPU .* this one has 2'):
        timing.milliseconds([], 1, "cpu")


def cases(*outputs):
    return [Case(f"case {i}", lambda arrays=arrays: arrays, lambda result: result) for i, arrays in enumerate(outputs)]


def test_agree_returns_fractions_of_the_largest_value():
    found = timing.agree(cases([np.array([4.0, 0])], [np.array([4.0, 0.5])]), tolerance=0.2)
    assert found == {"case 0": 0, "case 1": 0.125}


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.array([4.0, 1]), "case 1 and case 0 must agree to 0.2 of the largest value; they differ by 0.25"),
        (np.array([np.nan, 0]), "they differ by nan"),
        (np.zeros(3), r"case 1 returns an array of shape \(3,\), case 0 one of \(2,\)"),
    ],
)
def test_agree_different_outputs(output, message):
    with pytest.raises(ValueError, match=message):
        timing.agree(cases(np.array([4.0, 0]), output), tolerance=0.2)


def test_agree_ignores_cases_without_outputs():
    assert timing.agree([Case("only timed", lambda: 1 / 0)]) == {}
