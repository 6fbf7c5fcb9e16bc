"""How long a person waits for the first step: `segjax.train` from its start, its compilation cache empty, then full.

Each start is a process of its own, in a new workdir, up to the first line of its `metrics.jsonl`, which is written when
the step's numbers are there; the data set is prepared before. JAX's persistent cache is what the environment's
JAX_COMPILATION_CACHE_DIR names: empty at the first start, and what that left at the second. Beside them the compilation
of the same step alone, without a cache, in a process that has everything else ready. All by the wall, medians of a few.
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
import numpy as np

from configs import rare_class
from experiments.benchmarks.baselines import OURS, Setting, Target, quotient
from segjax.reporting import Table
from segjax.training import open_split
from segjax.training.objective import hparams_at, hparams_from_config, phases
from segjax.training.train_step import init_state, make_model, make_train_step

TITLE = "Start: seconds to the first step"
AGAIN, COMPILATION = "second start, from the cache", "compilation alone"
COLUMNS = (AGAIN, COMPILATION)
CONFIG, OVERRIDES = "configs/rare_class.py", ("--config.training.log_every=1",)
STARTS, PATIENCE = 3, 600
_CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def rows(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """One row; `OURS` is the first start."""
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
    """Seconds from the start of a training to the first line of its log; it is killed then.

    Raises:
      RuntimeError: it ended before, or takes longer than `PATIENCE` seconds.
    """
    command = [sys.executable, "-m", "segjax.train", f"--config={CONFIG}", f"--workdir={workdir}", *overrides]
    log, begun = workdir / "metrics.jsonl", time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=_environment(environment), stdout=subprocess.DEVNULL, stderr=said)
        try:
            while not (log.exists() and log.stat().st_size):
                if process.poll() is not None or time.monotonic() - begun > PATIENCE:
                    said.seek(0)
                    raise RuntimeError(f"{' '.join(command)}: took no step: {said.read()[-500:]}")
                time.sleep(0.01)
            return time.monotonic() - begun
        finally:
            process.kill()
            process.wait()


def compilation() -> float:
    """Seconds to compile the step of `CONFIG`, traced and lowered before."""
    config = rare_class.get_config()
    classes = len(open_split(config.data, config.data.train_split).label_set.names)
    model, batch = make_model(config, classes), config.training.global_batch
    height, width = config.data.scene_size
    data = {
        "image": np.zeros((batch, height, width, config.data.channels), np.uint8),
        "label": np.zeros((batch, height, width), np.uint8),
        "index": np.arange(batch, dtype=np.int32),
    }
    operands = (init_state(config, model), data, hparams_at(1, hparams_from_config(config), phases(config)))
    lowered = jax.jit(make_train_step(config, model, classes, None), donate_argnums=0).lower(*operands)
    begun = time.monotonic()
    lowered.compile()
    return time.monotonic() - begun


def _environment(changes: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    return kept | changes


def targets(measured: dict[str, Any]) -> list[Target]:
    """Target 7."""
    found = []
    for name, row in measured.items():
        ms = row["ms"]
        found.append(Target(7, f"{name}: first start / compilation", quotient(ms[OURS], ms[COMPILATION]), 2.0))
        found.append(Target(7, f"{name}: second start / first", quotient(ms[AGAIN], ms[OURS]), 1 / 3))
    return found


def tables(measured: dict[str, Any]) -> list[Table]:
    """None beside the times."""
    del measured
    return []
