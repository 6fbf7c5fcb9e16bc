"""A training that kills itself: `python -m experiments.fault_injection.fault_child CONFIG WORKDIR MOMENT COUNT`.

A moment is an event of the run and not a time, so that the same kill can be made again.
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

from segjax.training import train
from segjax.training.config import from_leaves

# Before or after the n-th call of a function.
CALLS = {
    "before a batch is read": ("segjax.data.loader:TrainLoader.__next__", "before"),
    "after a step was dispatched": ("segjax.training.preemption:Preemption.stopping", "before"),
    "in the middle of a line of the log": ("segjax.training.metrics_writer:append", "within"),
    "after a line of the log": ("segjax.training.metrics_writer:append", "after"),
    "before the images are scored": ("segjax.training.loop:evaluate", "before"),
    "after the images were scored": ("segjax.training.loop:evaluate", "after"),
    "before a file of the run is replaced": ("segjax.training.loop:write_json", "before"),
    "save: before it begins": ("segjax.training.checkpoint:Checkpoints.save", "before"),
    "save: it runs in the background": ("segjax.training.checkpoint:Checkpoints.save", "after"),
    "save: the data are there, not summed up": ("segjax.training.checkpoint:Checkpoints._seal", "before"),
    "save: summed up, without its name": ("segjax.training.checkpoint:Checkpoints._seal", "after"),
}
# What Python's audit tells of the file system.
FILES = ("save: before it gets its name", "save: before an old one is removed", "save: an old one is half removed")
# A file that another thread sees appear.
DATA = "save: its first data file is there"
MOMENTS = (*CALLS, *FILES, DATA)


def kill() -> None:
    """Ends this process at once, as a power cut would: nothing is flushed, closed or waited for."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str, count: int, workdir: Path) -> None:
    """Kills this process at the `count`-th time of `moment`, counted from 1."""
    checkpoints = workdir.resolve() / "checkpoints"
    if moment in CALLS:
        _at_call(*CALLS[moment], count)
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
    function, calls = getattr(owner, name), 0

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

    setattr(owner, name, counted)


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
    """Counts renames of new checkpoints to their names, and removals of old ones."""

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
    """Trains; a moment of "" is never reached."""
    if moment:
        arm(moment, int(count), Path(workdir))
    values = json.loads(Path(config).read_text(encoding="utf-8"))
    train(from_leaves(values), workdir, console=rich.console.Console(width=200))


if __name__ == "__main__":
    main(*sys.argv[1:])
