"""Time to the first training step: `segjax.train` with an empty compilation cache, then with a filled one.

Each start is a process with a new workdir, timed until the first line of its `metrics.jsonl`. The data set is prepared
before. The folder of JAX_COMPILATION_CACHE_DIR is empty at the first start and reused at the second. Another process
times the compilation of the same step alone, without a cache. All are medians of wall times.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks.baselines import OURS, Setting, Target, quotient
from experiments.benchmarks.benchmarks_devices import step_operands
from segjax.configs import rare_class
from segjax.training import open_split
from segjax.training.network import make_model
from segjax.training.train_step import make_train_step

TITLE = "Start: seconds to the first step"
AGAIN, COMPILATION = "second start, from the cache", "compilation alone"
COLUMNS = (AGAIN, COMPILATION)
CONFIG, OVERRIDES = "configs/rare_class.py", ("--config.training.log_every=1",)
STARTS, TIMEOUT = 3, 600
_CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def rows(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns one row; `OURS` is the first start."""
    return {f"segjax.train, {CONFIG}": partial(_row, min(setting.rounds, STARTS))}


def _row(starts: int) -> dict[str, Any]:
    config = rare_class.get_config()
    for split in (config.data.train_split, config.data.eval_split):
        open_split(config.data, split)
    taken: dict[str, list[float]] = {OURS: [], AGAIN: [], COMPILATION: []}
    for _ in range(starts):
        with tempfile.TemporaryDirectory() as folder:
            cache = _CACHE | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
            for name in (OURS, AGAIN):
                taken[name].append(first_step(Path(folder, name), OVERRIDES, cache))
        program = "from experiments.benchmarks import benchmarks_start; print(benchmarks_start.compilation())"
        done = subprocess.run([sys.executable, "-c", program], env=_environment({}), check=True, capture_output=True)
        taken[COMPILATION].append(float(done.stdout.split()[-1]))
    return {"ms": {name: 1000 * statistics.median(times) for name, times in taken.items()}, "not_installed": []}


def first_step(workdir: Path, overrides: Sequence[str], environment: dict[str, str]) -> float:
    """Returns the seconds from the start of a training to the first line of its log, and kills it.

    Raises:
      RuntimeError: the training ended without a step, or takes longer than `TIMEOUT` seconds.
    """
    command = [sys.executable, "-m", "segjax.train", f"--config={CONFIG}", f"--workdir={workdir}", *overrides]
    log, begun = workdir / "metrics.jsonl", time.monotonic()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, env=_environment(environment), stdout=subprocess.DEVNULL, stderr=printed)
        try:
            while not (log.exists() and log.stat().st_size):
                if process.poll() is not None or time.monotonic() - begun > TIMEOUT:
                    printed.seek(0)
                    raise RuntimeError(f"{' '.join(command)}: no step was taken: {printed.read()[-500:]}")
                time.sleep(0.01)
            return time.monotonic() - begun
        finally:
            process.kill()
            process.wait()


def compilation() -> float:
    """Returns the seconds to compile the step of `CONFIG` after lowering."""
    config = rare_class.get_config()
    classes = len(open_split(config.data, config.data.train_split).label_set.names)
    model = make_model(config, classes)
    operands = step_operands(config, classes, tuple(config.data.scene_size))
    lowered = jax.jit(make_train_step(config, model, classes, None), donate_argnums=0).lower(*operands)
    begun = time.monotonic()
    lowered.compile()
    return time.monotonic() - begun


def _environment(changes: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    return kept | changes


def targets(measured: dict[str, Any]) -> list[Target]:
    """Returns target 7."""
    found = []
    for name, row in measured.items():
        ms = row["ms"]
        found.append(Target(7, f"{name}: first start / compilation", quotient(ms[OURS], ms[COMPILATION]), 2.0))
        found.append(Target(7, f"{name}: second start / first", quotient(ms[AGAIN], ms[OURS]), 1 / 3))
    return found
