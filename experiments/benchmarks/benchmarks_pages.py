"""What huge pages bring: the sweeps' training step with the memory as the system gives it, and asked for in huge pages.

The C library gives large arrays back to the system and asks for them again at every step, and the system then clears
and enters each page of 4 KiB. `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` in the environment asks for pages of 2 MiB (glibc
2.35 or newer, where /sys/kernel/mm/transparent_hugepage/enabled says madvise; where it says always they are huge
already). It must be there when a process starts, so a process after the other takes the measurements, in turns.
"""

import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from experiments.benchmarks import benchmarks_devices
from experiments.benchmarks.baselines import OURS, Setting, Target
from experiments.sweep.grid import HUGE_PAGES
from segjax.reporting import Table

TITLE = "Huge pages"
WITH = "with huge pages"
COLUMNS = (WITH,)
TURNS = 3


def rows(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """One row; `OURS` is without them."""
    return {"training step, a small U-Net": partial(_row, setting)}


def _row(setting: Setting) -> dict[str, Any]:
    plain = {name: value for name, value in os.environ.items() if name not in HUGE_PAGES}
    taken: dict[str, list[float]] = {OURS: [], WITH: []}
    with tempfile.TemporaryDirectory() as cache:
        compiled_once = {"JAX_COMPILATION_CACHE_DIR": cache}
        for _ in range(min(setting.rounds, TURNS)):
            for who, pages in ((OURS, {}), (WITH, HUGE_PAGES)):
                environment = plain | compiled_once | pages
                row = benchmarks_devices.measured_in_process(benchmarks_devices.STEP, setting, environment)
                taken[who].append(row["ms"]["1"])
    offered = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "ms": {name: statistics.median(times) for name, times in taken.items()},
        "not_installed": [],
        "transparent_hugepage": offered.read_text(encoding="utf-8").strip() if offered.exists() else None,
    }


def targets(measured: dict[str, Any]) -> list[Target]:
    """None of its own."""
    del measured
    return []


def tables(measured: dict[str, Any]) -> list[Table]:
    """None beside the times."""
    del measured
    return []
