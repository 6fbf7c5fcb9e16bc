"""A grid of runs: each cell is trained once and writes one result file, however often the command is killed and rerun.

Cells whose configs differ only in traced fields (`segjax.training.fields.TRACED`) share one compilation. They are laid
over the devices, one cell per device. Cells that run side by side have the same seed and therefore read the same
batches. On a single device they run one after another through the same compiled step. On CPUs `run_in_processes`
starts several processes of one core each, which share compiled programs through a cache in the workdir.
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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import rich.console
from ml_collections import ConfigDict

from experiments.sweep.parallel_cells import RESULT_FILE, compile_sweep, train_together
from segjax.data import Source
from segjax.storage import read_json, say, write_json
from segjax.trained_run import model_of
from segjax.training import ConfigError, parallel, validate
from segjax.training.checkpoint import FOLDER, Checkpoints
from segjax.training.config import CONFIG_FILE, defaults, from_leaves, leaves, program
from segjax.training.fields import FOUND
from segjax.training.metrics_writer import METRICS_FILE

# Makes glibc request huge pages, which shortens a training step on CPU; see `benchmarks_pages`.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

FORM = {"status": str, "provenance": dict}  # of a result
Changes = Mapping[str, Any]


class Orphaned(RuntimeError):
    """The process that started this one has ended."""


class Cell(NamedTuple):
    """One run of a sweep.

    Attributes:
      row: name of its row in the table, the same for every seed.
      changes: fields that it changes in the base config, with their values; "seed" is one of them.
      config: the complete config.
    """

    row: str
    changes: Changes
    config: ConfigDict

    @property
    def name(self) -> str:
        """Name of its folder: the row and the seed.

        >>> Cell("DeepLab v2, ResNet-18", {"seed": 1}, ConfigDict()).name
        'DeepLab_v2,_ResNet-18,seed=1'
        """
        return re.sub(r"[^\w.,=-]+", "_", f"{self.row},seed={self.changes['seed']}").strip("_,")


def row_name(changes: Changes) -> str:
    """Returns the name of a row without one: the last part of each changed field, with its value.

    >>> row_name({"objective.gamma": 2.0, "model.prior": (0.01,)})
    'gamma=2,prior=0.01'
    """
    return ",".join(f"{key.split('.')[-1]}={_plain(value)}" for key, value in changes.items())


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_plain, value)) or "none"
    return re.sub(r"[^\w.]+", "_", f"{value:g}" if isinstance(value, float) else str(value))


def product(*axes: Sequence[Changes]) -> list[Changes]:
    """Returns every combination of one entry per axis, the last axis fastest. An entry may change several fields.

    >>> product([{"a": 1}, {"a": 2}], [{"b": 3}])
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    return [dict(itertools.chain(*(entry.items() for entry in entries))) for entries in itertools.product(*axes)]


def make_cells(base: ConfigDict, rows: Sequence[Changes] | Mapping[str, Changes], seeds: Sequence[int]) -> list[Cell]:
    """Returns one cell per row and seed. The seed changes slowest, so that a whole table is complete early.

    Args:
      base: the config that the rows change.
      rows: changed fields of each row; a mapping also names the rows.
      seeds: the seeds of each row.

    Raises:
      ConfigError: a row gives an invalid config, or two cells have the same name.
    """
    named = list(rows.items()) if isinstance(rows, Mapping) else [(row_name(row), row) for row in rows]
    cells: dict[str, Cell] = {}
    for seed, (name, row) in itertools.product(seeds, named):
        changes = {**row, "seed": seed}
        cell = Cell(name, changes, from_leaves(leaves(base) | changes))
        validate(cell.config)
        model_of(cell.config)
        if cell.name in cells:
            raise ConfigError(f"two cells of the sweep are named {cell.name}: {cells[cell.name].changes}, {changes}")
        cells[cell.name] = cell
    return list(cells.values())


def result_of(cell: Cell, workdir: Path) -> dict[str, Any] | None:
    """Returns the result of a cell, or None if it has not ended.

    Raises:
      ConfigError: the cell's folder contains a run of another config.
    """
    folder = workdir / cell.name
    if (folder / CONFIG_FILE).exists():
        saved = read_json(folder / CONFIG_FILE, dict, "the config of a cell", "Remove this folder")
        check_same(folder, saved, cell.config, "; choose another --workdir, or remove this folder")
    path = folder / RESULT_FILE
    return read_json(path, FORM, "the result of a cell", "Remove this file") if path.exists() else None


def check_same(
    path: Path, saved: Mapping[str, Any], config: ConfigDict, remedy: str = "", *, ignore: Collection[str] = ()
) -> None:
    """Raises `ConfigError` if the fields `saved` in `path` differ from `config`, other than in `ignore`.

    A field that did not exist when they were saved counts as having its default, and one of `FOUND` may have any value
    if it is left open in `config`.
    """
    before, now = (json.loads(json.dumps(fields)) for fields in (leaves(defaults()) | saved, leaves(config)))
    for key in sorted(now.keys() - set(ignore)):
        if before[key] != now[key] and not (key in FOUND and now[key] in FOUND[key]):
            raise ConfigError(f"{path} was run with config.{key} = {before[key]!r}; expected {now[key]!r}{remedy}")


def run(
    cells: Sequence[Cell],
    workdir: Path,
    console: rich.console.Console,
    *,
    measure: Callable[[Cell, Path], dict[str, Any]] | None = None,
    change_split: Callable[[Source], Source] = lambda source: source,
    parent: int | None = None,
) -> None:
    """Runs, one per device, the cells that have no result and that no other process is running.

    Returns when every cell has a result; cells that another process is running are waited for.

    Args:
      cells: cells of `make_cells`.
      workdir: folder that contains one folder per cell.
      console: prints one line per finished cell.
      measure: `measure(cell, folder)` returns further entries of the result of a trained cell.
      change_split: `change_split(source)` returns the training split to use instead of the config's.
      parent: process id; the cells stop, and can be resumed, when the parent of this process is another one.

    Raises:
      Orphaned: the parent has ended.
    """

    def check_parent() -> None:
        if parent is not None and os.getppid() != parent:
            raise Orphaned(f"process {parent}, which started this one, has ended")

    mesh, compiled, waiting = parallel.make_mesh(), {}, False
    programs = {cell.name: program(cell.config) for cell in cells}
    while True:
        with contextlib.ExitStack() as locks:
            chunk = _claim(cells, programs, workdir, mesh.size, locks)
            if chunk:
                sweep = compiled.get(programs[chunk[0].name]) or compile_sweep(chunk[0].config, mesh, change_split)
                compiled[programs[chunk[0].name]] = sweep
                folders = [workdir / cell.name for cell in chunk]
                results = train_together([cell.config for cell in chunk], folders, sweep, before_step=check_parent)
                for cell, folder, result in zip(chunk, folders, results, strict=True):
                    if measure and result["status"] == "done":
                        result |= measure(cell, folder)
                    write_json(folder / RESULT_FILE, result)
        done = sum(result_of(cell, workdir) is not None for cell in cells)
        for cell in chunk:
            _print(console, f"{done}/{len(cells)}  {_summary(cell, workdir)}")
        if done == len(cells):
            return
        if not chunk:  # another process may finish them, or be killed and leave them to this one
            if not waiting:
                _print(console, f"waiting for {len(cells) - done} cells that other processes are running")
            waiting = True
            _pause(1)


def _summary(cell: Cell, workdir: Path) -> str:
    result = result_of(cell, workdir)
    seconds = f"{result['provenance']['wall_seconds']} s"
    if result["status"] == "diverged":
        return f"{cell.name}  diverged at step {result['diverged_at']}  {seconds}"
    score = next(name for name in ("ap", "average_precision", "mean_iou") if name in result["scores"])
    return f"{cell.name}  {score.replace('_', ' ')} {result['scores'][score]:.3f}  {seconds}"


_pause = time.sleep


def _print(console: rich.console.Console, line: str) -> None:
    say(line, console)


def _progress(cells: Sequence[Cell], workdir: Path, done: Collection[str]) -> str:
    """Returns the names of the running cells, each with the last step that it has logged."""
    running = []
    for cell in cells:
        log = workdir / cell.name / METRICS_FILE
        if cell.name not in done and log.exists():
            *_, last = log.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
            step = re.match(r'{"step": (\d+)', last)
            running.append(f"{cell.name} step {step[1] if step else 0} of {cell.config.training.steps}")
    return f"{len(done)}/{len(cells)} cells. {', '.join(running) or 'compiling'}"


def _claim(
    cells: Sequence[Cell], programs: Mapping[str, Any], workdir: Path, count: int, locks: contextlib.ExitStack
) -> list[Cell]:
    """Locks up to `count` cells without a result that have one program, one seed and one saved step."""
    chunk: list[Cell] = []
    kind = None
    for cell in cells:
        same_batches = kind is None or kind[:2] == (programs[cell.name], cell.config.seed)
        if len(chunk) == count or not same_batches or result_of(cell, workdir) is not None:
            continue
        lock = locked(workdir / cell.name)
        if lock is None:
            continue
        this = (programs[cell.name], cell.config.seed, _saved_step(workdir / cell.name))
        # Another process may have finished the cell before it was locked.
        if result_of(cell, workdir) is not None or kind not in (None, this):
            lock.close()
            continue
        locks.enter_context(lock)
        chunk, kind = [*chunk, cell], this
    return chunk


def locked(folder: Path) -> IO[str] | None:
    """Returns the folder's lock, held until it is closed or the process ends; None if another process holds it."""
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
    """Runs `command` in `processes` processes, each on one CPU core, until all have ended.

    The command must call `run` on the same cells, with `parent` from its flag `--parent`. Each process takes the next
    free cell. Its output goes to a log in `workdir`.

    Raises:
      RuntimeError: a process failed; raised after the others have ended, with the name of the log.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    logs = [workdir / f"process_{os.getpid()}_{i}.log" for i in range(processes)]
    with contextlib.ExitStack() as stack:
        cache = {"JAX_COMPILATION_CACHE_DIR": str(workdir / "compiled")}
        children, environment = [], {**HUGE_PAGES, **cache, **os.environ}
        argv = [sys.executable, *command, f"--parent={os.getpid()}"]
        for i, log in enumerate(logs):
            out = stack.enter_context(log.open("w"))
            with _on_core(i):
                children.append(subprocess.Popen(argv, stdout=out, stderr=out, env=environment))
        printed: set[str] = set()
        status = stack.enter_context(console.status("starting"))
        ended = False
        while not ended:
            ended = all(child.poll() is not None for child in children)
            for cell in cells:
                if cell.name not in printed and result_of(cell, workdir) is not None:
                    printed.add(cell.name)
                    _print(console, f"{len(printed)}/{len(cells)}  {_summary(cell, workdir)}")
            if not ended:
                status.update(_progress(cells, workdir, printed))
                time.sleep(1)
    for child, log in zip(children, logs, strict=True):
        if child.returncode:
            lines = log.read_text(encoding="utf-8").splitlines() or ["it printed nothing"]
            raise RuntimeError(f"a process of the sweep ended with status {child.returncode}; {log} ends: {lines[-1]}")


@contextlib.contextmanager
def _on_core(i: int) -> Iterator[None]:
    """Starts processes on core i of this process, where the system supports it; XLA then uses one thread."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(cores)[i % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
