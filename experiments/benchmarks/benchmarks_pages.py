"""Effect of huge pages on the sweeps' training step.

The C library returns large arrays to the system and requests them again at every step, and the system then clears and
maps each page of 4 KiB. `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` requests pages of 2 MiB (glibc 2.35 or newer, if
/sys/kernel/mm/transparent_hugepage/enabled contains madvise; with always, pages are huge already). It must be set when
a process starts, so that processes with and without it take turns.
"""

import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from experiments.benchmarks import benchmarks_devices
from experiments.benchmarks.baselines import OURS, Setting
from experiments.sweep.grid import HUGE_PAGES

TITLE = "Huge pages"
WITH = "with huge pages"
COLUMNS = (WITH,)
TURNS = 3


def rows(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns one row; `OURS` is without huge pages."""
    return {"training step, a small U-Net": partial(_row, setting)}


def _row(setting: Setting) -> dict[str, Any]:
    plain = {name: value for name, value in os.environ.items() if name not in HUGE_PAGES}
    taken: dict[str, list[float]] = {OURS: [], WITH: []}
    with tempfile.TemporaryDirectory() as cache:
        compiled_once = {"JAX_COMPILATION_CACHE_DIR": cache}
        for _ in range(min(setting.rounds, TURNS)):
            for label, pages in ((OURS, {}), (WITH, HUGE_PAGES)):
                environment = plain | compiled_once | pages
                row = benchmarks_devices.measured_in_process(benchmarks_devices.STEP, setting, environment)
                taken[label].append(row["ms"]["1"])
    offered = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "ms": {name: statistics.median(times) for name, times in taken.items()},
        "not_installed": [],
        "transparent_hugepage": offered.read_text(encoding="utf-8").strip() if offered.exists() else None,
    }
