"""A grid of runs: every cell trained once, each result a file, whatever is killed and called again.

Cells whose configs differ in traced fields only (`segjax.training.config.TRACED`) share one compilation. They are
laid over the devices, a cell each, and cells side by side have one seed and so read the same batches; on one device
they go one after another through the same compiled step. On CPUs `run_in_processes` spreads them over processes of one
core each, which find each other's compiled programs in the workdir, unless JAX_COMPILATION_CACHE_DIR names a place.
"""

import contextlib
import fcntl
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import rich.console
from ml_collections import ConfigDict

from experiments.sweep.parallel_cells import RESULT_FILE, CompiledSweep, compile_sweep, train_together
from segjax.trained_run import model_of
from segjax.training import ConfigError, parallel, validate
from segjax.training.checkpoint import FOLDER, Checkpoints
from segjax.training.config import defaults, from_leaves, leaves, program
from segjax.training.loop import CONFIG_FILE
from segjax.training.metrics_writer import METRICS_FILE

# Of a process that computes on a CPU: glibc asks for huge pages, and a step takes less time; `benchmarks_pages` says
# how much less. Where there are none it does nothing.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

Changes = Mapping[str, Any]


class Cell(NamedTuple):
    """One run of a sweep: what it changes in the base config, and the config that this makes."""

    changes: Changes
    config: ConfigDict

    @property
    def name(self) -> str:
        """The name of its folder: the last part of each changed field with its value, the seed at the end.

        >>> Cell({"seed": 1, "objective.gamma": 2.0, "model.prior": (0.01,)}, ConfigDict()).name
        'gamma=2,prior=0.01,seed=1'
        """
        parts = [f"{key.split('.')[-1]}={_plain(value)}" for key, value in self.changes.items() if key != "seed"]
        return ",".join([*parts, f"seed={self.changes['seed']}"])


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_plain, value)) or "none"
    return re.sub(r"[^\w.]+", "_", f"{value:g}" if isinstance(value, float) else str(value))


def axis(field: str, *values: Any) -> tuple[Changes, ...]:
    """An axis of a grid along one field of the config: `axis("objective.gamma", 0.0, 2.0)`."""
    return tuple({field: value} for value in values)


def product(*axes: Sequence[Changes]) -> list[Changes]:
    """Every combination of one entry an axis, the last axis fastest. An entry may change several fields at once.

    >>> product(axis("a", 1, 2), axis("b", 3))
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    return [dict(itertools.chain(*(entry.items() for entry in entries))) for entries in itertools.product(*axes)]


def make_cells(base: ConfigDict, rows: Sequence[Changes], seeds: Sequence[int]) -> list[Cell]:
    """The cells of `rows`, each with every seed; the seed changes slowest, so that whole tables come early.

    Raises:
      ConfigError: a row makes a config that is wrong; or two rows the same one.
    """
    cells: dict[str, Cell] = {}
    for seed in seeds:
        for row in rows:
            changes = {**row, "seed": seed}
            cell = Cell(changes, from_leaves(leaves(base) | changes))
            validate(cell.config)
            model_of(cell.config)
            if cell.name in cells:
                raise ConfigError(
                    f"two cells of the sweep are called {cell.name}: {cells[cell.name].changes}, {changes}"
                )
            cells[cell.name] = cell
    return list(cells.values())


def result_of(cell: Cell, workdir: Path) -> dict[str, Any] | None:
    """What was measured in a cell; None where it has not ended yet.

    Raises:
      ConfigError: the folder holds a cell of another config.
    """
    folder = workdir / cell.name
    check_config(folder, cell.config)
    path = folder / RESULT_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def check_config(folder: Path, config: ConfigDict) -> None:
    """Raises `ConfigError` where the folder is that of a run with another config."""
    if not (folder / CONFIG_FILE).exists():
        return
    saved = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    # A field that the run's code did not have yet is as if it had its default.
    was, now = (json.loads(json.dumps(fields)) for fields in (leaves(defaults()) | saved, leaves(config)))
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            raise ConfigError(
                f"{folder} was run with config.{key} = {was.get(key)!r}; expected {now.get(key)!r}. Name another "
                "--workdir, or remove this folder"
            )


def run(cells: Sequence[Cell], workdir: Path, console: rich.console.Console, *, parent: int | None = None) -> None:
    """Runs in this process the cells that have no result and that no other process holds, a cell a device.

    Cells that others hold are waited for: when this returns, all have a result.

    Args:
      cells: of `make_cells`.
      workdir: holds a folder a cell.
      console: is told of every cell that ends.
      parent: the process that must live on, or the cells stop (and can go on later); None: nobody.
    """
    mesh, compiled_sweeps, waiting = parallel.make_mesh(), {}, False
    programs = {cell.name: program(cell.config) for cell in cells}
    while True:
        with contextlib.ExitStack() as locks:
            chunk = _claim(cells, programs, workdir, mesh.size, locks)
            if chunk:
                one = programs[chunk[0].name]
                compiled_sweeps[one] = compiled_sweeps.get(one) or compile_sweep(chunk[0].config, mesh)
                _run_chunk(chunk, workdir, compiled_sweeps[one], parent)
        done = sum(result_of(cell, workdir) is not None for cell in cells)
        for cell in chunk:
            _tell(console, f"{done}/{len(cells)}  {_outcome(cell, workdir)}")
        if done == len(cells):
            return
        if not chunk:  # its holder may end it, or be killed and leave it to us
            if not waiting:
                _tell(console, f"waiting for {len(cells) - done} cells that other processes hold")
            waiting = True
            _pause(1)


def _run_chunk(chunk: Sequence[Cell], workdir: Path, sweep: CompiledSweep, parent: int | None) -> None:
    train_together(
        [cell.config for cell in chunk],
        [workdir / cell.name for cell in chunk],
        sweep,
        going_on=lambda: parent is None or os.getppid() == parent,
    )


def _outcome(cell: Cell, workdir: Path) -> str:
    result = result_of(cell, workdir)
    seconds = f"{result['provenance']['wall_seconds']} s"
    if result["status"] == "diverged":
        return f"{cell.name}  diverged at step {result['diverged_at']}  {seconds}"
    score = "average_precision" if "average_precision" in result["scores"] else "mean_iou"
    return f"{cell.name}  {score.replace('_', ' ')} {result['scores'][score]:.3f}  {seconds}"


_pause = time.sleep


def _tell(console: rich.console.Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def _progress(cells: Sequence[Cell], workdir: Path, done: Collection[str]) -> str:
    """Which cells are under way, and how far: the last step that each has logged."""
    running = []
    for cell in cells:
        log = workdir / cell.name / METRICS_FILE
        if cell.name not in done and log.exists():
            *_, last = log.read_text(encoding="utf-8").splitlines() or [""]
            step = re.match(r'{"step": (\d+)', last)
            running.append(f"{cell.name} step {step[1] if step else 0} of {cell.config.training.steps}")
    return f"{len(done)}/{len(cells)} cells. {', '.join(running) or 'compiling'}"


def _claim(
    cells: Sequence[Cell], programs: Mapping[str, Any], workdir: Path, most: int, locks: contextlib.ExitStack
) -> list[Cell]:
    """Up to `most` cells without a result, of one program and seed and saved at one step, which this process holds."""
    chunk: list[Cell] = []
    kind = None
    for cell in cells:
        if len(chunk) == most:
            break
        if kind is not None and kind[:2] != (programs[cell.name], cell.config.seed):
            continue
        if result_of(cell, workdir) is not None:
            continue
        lock = locked(workdir / cell.name)
        if lock is None:
            continue
        this = (programs[cell.name], cell.config.seed, _saved_step(workdir / cell.name))
        # Another process may have ended the cell between the two looks.
        if result_of(cell, workdir) is not None or kind not in (None, this):
            lock.close()
            continue
        locks.enter_context(lock)
        chunk, kind = [*chunk, cell], this
    return chunk


def locked(folder: Path) -> IO[str] | None:
    """The folder's lock, held until it is closed or the process ends, however it ends; None if another holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _saved_step(folder: Path) -> int:
    if not (folder / FOLDER).exists():
        return 0
    with Checkpoints(folder, read_only=True) as checkpoints:
        return checkpoints.latest_step() or 0


def run_in_processes(
    cells: Sequence[Cell], workdir: Path, console: rich.console.Console, command: Sequence[str], processes: int
) -> None:
    """Runs `command` in `processes` processes, each on a core of its own, until all have ended.

    `command` is one that calls `run` on the same cells with `parent=` the process it is given as `--parent`; it takes
    whichever cell is free. What a process prints goes to a log in `workdir`, which the message of an error names.

    Raises:
      RuntimeError: a process ended with an error; the others were waited for, and the message names its log.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    logs = [workdir / f"process_{os.getpid()}_{i}.log" for i in range(processes)]
    with contextlib.ExitStack() as stack:
        cache = {"JAX_COMPILATION_CACHE_DIR": str(workdir / "compiled")}
        children, environment = [], {**HUGE_PAGES, **cache, **os.environ}
        for i, log in enumerate(logs):
            out = stack.enter_context(log.open("w"))
            with _on_core(i):
                argv = [sys.executable, *command, f"--parent={os.getpid()}"]
                children.append(subprocess.Popen(argv, stdout=out, stderr=out, env=environment))
        told: set[str] = set()
        status = stack.enter_context(console.status("starting"))
        while True:
            ended = all(child.poll() is not None for child in children)
            for cell in cells:
                if cell.name not in told and result_of(cell, workdir) is not None:
                    told.add(cell.name)
                    _tell(console, f"{len(told)}/{len(cells)}  {_outcome(cell, workdir)}")
            if ended:
                break
            status.update(_progress(cells, workdir, told))
            time.sleep(1)
    for child, log in zip(children, logs, strict=True):
        if child.returncode:
            lines = log.read_text(encoding="utf-8").splitlines() or ["it printed nothing"]
            raise RuntimeError(f"a process of the sweep ended with status {child.returncode}; {log} ends: {lines[-1]}")


@contextlib.contextmanager
def _on_core(i: int) -> Iterator[None]:
    """What is started meanwhile has one core, the i-th of ours, where the system can say so; XLA takes one thread."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(ours)[i % len(ours)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)
