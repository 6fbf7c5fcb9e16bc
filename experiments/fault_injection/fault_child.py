"""A training that kills itself: `python -m experiments.fault_injection.fault_child CONFIG WORKDIR MOMENT COUNT`.

A moment is an event of the run and not a time, so that a kill can be repeated.
"""

import importlib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich.console

from segjax.training import parallel, train
from segjax.training.config import from_leaves

# Function, and when to kill: before its n-th call, after it, or half-way through the line that it appends.
CALLS = {
    "before a batch is read": ("segjax.data.loader:TrainLoader.__next__", "before"),
    "in the middle of a line of the log": ("segjax.training.metrics_writer:append", "within"),
    "after a line of the log": ("segjax.training.metrics_writer:append", "after"),
    "before the images are scored": ("segjax.training.loop:evaluate", "before"),
    "after the images were scored": ("segjax.training.loop:evaluate", "after"),
    "before a file of the run is replaced": ("segjax.training.loop:write_json", "before"),
    "save: before it begins": ("segjax.training.checkpoint:Checkpoints.save", "before"),
    "save: it runs in the background": ("segjax.training.checkpoint:Checkpoints.save", "after"),
    "save: its data exist without checksums": ("segjax.training.checkpoint:Checkpoints._seal", "before"),
    "save: it has checksums but not its name": ("segjax.training.checkpoint:Checkpoints._seal", "after"),
}
# Events of the file system that Python's audit hooks report.
FILES = ("save: before it gets its name", "save: before an old one is removed", "save: an old one is half removed")
# A thread waits for this file.
DATA = "save: its first data file exists"
DISPATCH = "after a step was dispatched"
MOMENTS = (*CALLS, *FILES, DATA, DISPATCH)


def kill() -> None:
    """Ends this process at once, as a power cut would: it flushes and closes nothing."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str, count: int, workdir: Path) -> None:
    """Kills this process at the `count`-th occurrence of `moment`, counted from 1."""
    checkpoints = workdir.resolve() / "checkpoints"
    if moment in CALLS:
        _at_call(*CALLS[moment], count)
    elif moment == DISPATCH:
        _at_dispatch(count)
    elif moment in FILES:
        sys.addaudithook(_FileWatch(moment, count, str(checkpoints)))
    elif moment == DATA:
        _at_save(count, lambda step: threading.Thread(target=_wait_for_data, args=(checkpoints, step)).start())
    else:
        raise ValueError(f"expected a moment of {', '.join(MOMENTS)}; got {moment!r}")


def _at_call(target: str, when: str, count: int) -> None:
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, _kill_at(getattr(owner, name), when, count))


def _at_dispatch(count: int) -> None:
    map_step = parallel.DeviceMapping.map_step

    def counted(*arguments, **options):
        mapped = map_step(*arguments, **options)
        is_train_step = "donate" in options
        return _kill_at(mapped, "after", count) if is_train_step else mapped

    parallel.DeviceMapping.map_step = counted


def _kill_at(function: Callable, when: str, count: int) -> Callable:
    """Wraps `function` so that its `count`-th call kills the process."""
    calls = 0

    def counted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == count and when == "before":
            kill()
        if calls == count and when == "within":
            with arguments[0].open("a", encoding="utf-8") as lines:
                lines.write('{"step": 1, "train/lo')
            kill()
        result = function(*arguments, **options)
        if calls == count:
            kill()
        return result

    return counted


def _at_save(count: int, do: Callable[[int], None]) -> None:
    from segjax.training.checkpoint import Checkpoints

    save, calls = Checkpoints.save, 0

    def counted(self, state, *arguments, **options):
        nonlocal calls
        calls += 1
        if calls == count:
            do(int(state.step))
        return save(self, state, *arguments, **options)

    Checkpoints.save = counted


def _wait_for_data(checkpoints: Path, step: int) -> None:
    while not any(checkpoints.glob(f"{step}.orbax-checkpoint-tmp*/state/**/d/*")):
        pass
    kill()


class _FileWatch:
    """Counter of renames of new checkpoints to their names, and of removals of old ones."""

    def __init__(self, moment: str, count: int, folder: str):
        self._moment, self._count, self._folder, self._seen, self._inside = moment, count, folder, 0, 0

    def __call__(self, event: str, arguments: tuple) -> None:
        renamed = event == "os.rename" and re.fullmatch(rf"{self._folder}/\d+", os.fspath(arguments[1]))
        removed = event == "shutil.rmtree" and str(arguments[0]).startswith(self._folder)
        if self._moment == FILES[0] and renamed:
            self._seen += 1
            if self._seen == self._count:
                kill()
        elif self._moment in FILES[1:] and removed:
            self._seen += 1
            if self._seen == self._count and self._moment == FILES[1]:
                kill()
        elif self._moment == FILES[2] and event == "os.remove" and self._seen == self._count:
            self._inside += 1
            if self._inside == 4:
                kill()


def main(config: str, workdir: str, moment: str, count: str) -> None:
    """Trains, and arms the kill unless `moment` is empty."""
    if moment:
        arm(moment, int(count), Path(workdir))
    values = json.loads(Path(config).read_text(encoding="utf-8"))
    train(from_leaves(values), workdir, console=rich.console.Console(width=200))


if __name__ == "__main__":
    main(*sys.argv[1:])
