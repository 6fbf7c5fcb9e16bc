"""Worker processes of the loader: same batches as without them, errors when they die, end with their parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from segjax.data.datasets import open_folder
from segjax.data.labels import numbered_classes
from segjax.data.loader import LoaderDied, eval_batches, train_loader

pytestmark = pytest.mark.slow  # worker processes

CLASSES = numbered_classes(("a", "b", "c"))


@pytest.fixture(scope="module")
def on_disk(make, tmp_path_factory):
    """Opens twelve images of one size that a worker process can read."""
    return open_folder(make.folder(tmp_path_factory.mktemp("folder"), 14, (8, 10)), "train", CLASSES)


def take(loader, count):
    return [next(loader) for _ in range(count)]


def equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])


def test_train_loader_position_is_independent_of_workers(on_disk):
    here = train_loader(on_disk, global_batch_size=5, seed=0, size=None)
    take(here, 3)
    there = train_loader(on_disk, global_batch_size=5, seed=0, size=None, workers=2)
    there.set_state(here.get_state())
    for one, other in zip(take(here, 3), take(there, 3), strict=True):
        equal(one, other)
    assert there.get_state() == here.get_state()
    there.close()


def started(loader):
    """Takes the first batch; returns the worker process."""
    before = set(multiprocessing.active_children())
    next(loader)
    (worker,) = set(multiprocessing.active_children()) - before
    return worker


def died_of(loader, number):
    """Asserts that the loader soon raises the exit code of its dead worker, after batches that are left."""
    start = time.monotonic()
    with pytest.raises(LoaderDied, match=rf"a loader process died with exit code {number} \(-9: killed, as when"):
        take(loader, 10)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSEGV])
def test_dead_idle_worker_raises_and_the_loader_can_continue(on_disk, death):
    loader = train_loader(on_disk, global_batch_size=5, seed=0, size=None, workers=1, prefetch=1)
    worker = started(loader)
    time.sleep(0.5)  # it has read its one batch in advance and waits for room
    os.kill(worker.pid, death)
    died_of(loader, -death)
    state = loader.get_state()
    loader.set_state(state)
    assert next(loader)["index"][0] == state["position"]
    loader.close()


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSEGV])
def test_dead_reading_worker_raises(make, tmp_path, death):
    source = open_folder(make.folder(tmp_path, 4, (8, 10)), "train", CLASSES)
    pipe = next((tmp_path / "images").glob(f"{source.name(0)}.*"))
    pipe.unlink()
    os.mkfifo(pipe)  # reading it blocks
    loader = train_loader(source, global_batch_size=len(source), seed=0, size=None, workers=1)

    def kill_while_it_reads():
        with pipe.open("wb"):  # returns when the worker has opened the other end
            (worker,) = set(multiprocessing.active_children()) - before
            os.kill(worker.pid, death)

    before = set(multiprocessing.active_children())
    killer = threading.Thread(target=kill_while_it_reads)
    killer.start()
    died_of(loader, -death)
    killer.join()
    loader.close()


READS_FOREVER = """
import multiprocessing, sys, time
from segjax.data.datasets import open_folder
from segjax.data.labels import numbered_classes
from segjax.data.loader import train_loader

if __name__ == "__main__":
    source = open_folder(sys.argv[1], "train", numbered_classes(("a", "b", "c")))
    next(loader := train_loader(source, global_batch_size=2, seed=0, size=(8, 8), workers=1))
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


def test_worker_ends_with_its_parent(make, tmp_path, process_environment):
    script = tmp_path / "script.py"
    script.write_text(READS_FOREVER)
    environment = process_environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, script, make.folder(tmp_path / "set", 4)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as reader:
        try:
            worker = Path("/proc") / reader.stdout.readline().strip()
            assert worker.exists()
        finally:
            reader.kill()
    deadline = time.monotonic() + 30
    while worker.exists() and "Z" not in (worker / "stat").read_text().rsplit(")", 1)[1].split()[0]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_eval_batches_are_independent_of_workers(on_disk):
    here, there = (list(eval_batches(on_disk, global_batch_size=5, workers=n)) for n in (0, 1))
    for one, other in zip(here, there, strict=True):
        equal(one, other)


def test_open_loader_ends_without_a_word(make, tmp_path, process_environment):
    script = tmp_path / "script.py"
    script.write_text(READS_FOREVER.replace("time.sleep(600)", "sys.kept = loader"))
    environment = process_environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, script, make.folder(tmp_path / "set", 4)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")  # no leak of shared memory, no traceback of grain's destructors
