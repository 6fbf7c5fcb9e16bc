"""Times that can be compared: several ways of doing one thing, timed in interleaved rounds, and the median of each.

Every way runs once a round and each round in another order, so that whatever else the machine does falls on all alike.
All ways run in one process: processes that take turns would be seconds apart, and a busy neighbour comes and goes
faster. The price is one pool of threads beside another, and so OpenMP's are told not to spin while they wait.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# OpenMP's threads may go on spinning for a while after the work is done, and would slow whoever is next.
PAUSE = 0.02


class Case(NamedTuple):
    """What is timed.

    Attributes:
      name: of the way.
      run: does it once, from arrays that are there already.
      answer: of what `run` returned, the arrays that all ways must agree in; None: nothing is compared.
    """

    name: str
    run: Callable[[], Any]
    answer: Callable[[Any], Any] | None = None


def agree(cases: Sequence[Case], tolerance: float = 0.0) -> dict[str, float]:
    """How far each way's answer is from that of the first that has one, as a share of its largest value.

    Raises:
      ValueError: further than `tolerance`: then the ways do not do the same work.
    """
    answers = {case.name: jax.tree.leaves(case.answer(case.run())) for case in cases if case.answer}
    differs: dict[str, float] = {}
    for name, arrays in answers.items():
        first, reference = next(iter(answers.items()))
        shares = [_share(*map(np.asarray, pair), names=(name, first)) for pair in zip(arrays, reference, strict=True)]
        differs[name] = max(shares)
        if not differs[name] <= tolerance:
            raise ValueError(
                f"{name} and {first} must find the same, to {tolerance:g} of the largest value; "
                f"they differ by {differs[name]:.3g}"
            )
    return differs


def _share(found: np.ndarray, expected: np.ndarray, names: tuple[str, str]) -> float:
    if found.shape != expected.shape:
        raise ValueError(f"{names[0]} finds an array of shape {found.shape}, {names[1]} one of {expected.shape}")
    # In place, since gradients of full size are large.
    distance = np.abs(np.subtract(found, expected, dtype=np.float64))
    return float(distance.max(initial=0.0) / max(float(np.abs(expected).max(initial=0)), np.finfo(np.float32).tiny))


def milliseconds(cases: Sequence[Case], rounds: int, clock: str = "wall") -> dict[str, float]:
    """The median time of each case. The first call of each, which compiles and warms up, is not counted.

    Args:
      cases: the ways.
      rounds: how often each is timed.
      clock: "wall", or "cpu": the time that the process had a CPU. That one is right for one thread only, and then
        says something on a machine that others use too.

    Raises:
      ValueError: clock="cpu" with more than one CPU: time of threads that only wait would count.
    """
    if clock == "cpu" and threads() > 1:
        raise ValueError(f'clock="cpu" needs a process with one CPU (taskset -c 0 …); this one has {threads()}')
    now, times = CLOCKS[clock], {case.name: [] for case in cases}
    rng = np.random.default_rng(0)
    for _ in range(rounds + 1):
        for i in rng.permutation(len(cases)):
            case = cases[i]
            time.sleep(PAUSE)
            started = now()
            jax.block_until_ready(case.run())
            times[case.name].append(now() - started)
    return {name: 1000 * float(np.median(taken[1:])) for name, taken in times.items()}


def threads() -> int:
    """The CPUs this process may use, and so the threads that JAX and PyTorch are given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
