from functools import partial

import numpy as np
import pytest

from experiments.benchmarks import timing
from experiments.benchmarks.timing import Case


def test_rounds_are_interleaved_in_changing_order_and_the_first_is_not_counted(monkeypatch):
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


def test_cpu_time_of_several_threads_is_refused(monkeypatch):
    monkeypatch.setattr(timing, "threads", lambda: 2)
    with pytest.raises(ValueError, match=r'clock="cpu" needs a process with one CPU .* this one has 2'):
        timing.milliseconds([], 1, "cpu")


def cases(*answers):
    return [Case(f"way {i}", lambda answer=answer: answer, lambda found: found) for i, answer in enumerate(answers)]


def test_what_ways_differ_by_is_a_share_of_the_largest_value():
    found = timing.agree(cases([np.array([4.0, 0])], [np.array([4.0, 0.5])]), tolerance=0.2)
    assert found == {"way 0": 0, "way 1": 0.125}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.array([4.0, 1]), "way 1 and way 0 must find the same, to 0.2 of the largest value; they differ by 0.25"),
        (np.array([np.nan, 0]), "they differ by nan"),
        (np.zeros(3), r"way 1 finds an array of shape \(3,\), way 0 one of \(2,\)"),
    ],
)
def test_ways_that_find_something_else_are_an_error(answer, message):
    with pytest.raises(ValueError, match=message):
        timing.agree(cases(np.array([4.0, 0]), answer), tolerance=0.2)


def test_a_way_without_an_answer_is_not_compared():
    assert timing.agree([Case("only timed", lambda: 1 / 0)]) == {}
