"""Comparable times: medians of interleaved rounds.

Every case runs once per round, in another order each round, so that other load on the machine affects all cases alike.
All cases run in one process: processes would be seconds apart, and other load changes faster. OpenMP's threads must not
spin while they wait, because several thread pools share the process.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# OpenMP's threads may spin for a while after their work, which would slow the next case.
PAUSE = 0.02


class Case(NamedTuple):
    """Timed case.

    Attributes:
      name: name of the case.
      run: runs it once, on existing arrays.
      outputs: maps the result of `run` to the arrays that must be equal in all cases; None: no comparison.
    """

    name: str
    run: Callable[[], Any]
    outputs: Callable[[Any], Any] | None = None


def agree(cases: Sequence[Case], tolerance: float = 0.0) -> dict[str, float]:
    """Returns the largest difference of each case's outputs from the first case's, as a fraction of the largest value.

    Raises:
      ValueError: a difference exceeds `tolerance`, so that the cases are not comparable.
    """
    outputs = {case.name: jax.tree.leaves(case.outputs(case.run())) for case in cases if case.outputs}
    differs: dict[str, float] = {}
    for name, arrays in outputs.items():
        first, reference = next(iter(outputs.items()))
        pairs = zip(arrays, reference, strict=True)
        differs[name] = max(_difference(*map(np.asarray, pair), names=(name, first)) for pair in pairs)
        if not differs[name] <= tolerance:
            raise ValueError(
                f"{name} and {first} must agree to {tolerance:g} of the largest value; "
                f"they differ by {differs[name]:.3g}"
            )
    return differs


def _difference(found: np.ndarray, expected: np.ndarray, names: tuple[str, str]) -> float:
    if found.shape != expected.shape:
        raise ValueError(f"{names[0]} returns an array of shape {found.shape}, {names[1]} one of {expected.shape}")
    distance = np.abs(np.subtract(found, expected, dtype=np.float64))
    return float(distance.max(initial=0.0) / max(float(np.abs(expected).max(initial=0)), np.finfo(np.float32).tiny))


def milliseconds(cases: Sequence[Case], rounds: int, clock: str = "wall") -> dict[str, float]:
    """Returns the median time of each case, without the first call, which compiles.

    Args:
      cases: the timed cases.
      rounds: number of timed rounds.
      clock: "wall", or "cpu", the CPU time of the process, which other processes do not affect.

    Raises:
      ValueError: clock="cpu" with more than one CPU, where the time of waiting threads would count.
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
    """Returns the number of CPUs of this process, which is the number of threads of JAX and PyTorch."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
