"""Batches from an open split, by grain: worker processes, one shard per host, a position that can be saved."""

import functools
import gc
import hashlib
import multiprocessing.spawn
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from segjax.data.io import DataError
from segjax.data.labels import VOID
from segjax.data.pairs import Example, Source
from segjax.data.resize import resize_nearest

Batch = dict[str, np.ndarray]


class LoaderDied(RuntimeError):
    """Death of a worker process of the loader; the message gives its exit code and likely causes."""


class TrainLoader:
    """Endless iterator over shuffled batches, with a position that can be saved; see `train_loader`."""

    def __init__(
        self, batches_from: Callable[[int], Iterator[Batch]], global_batch_size: int, identity: dict[str, Any]
    ):
        self._batches_from, self._global_batch_size, self._identity = batches_from, global_batch_size, identity
        self._position, self._batches = 0, None

    def __iter__(self) -> "TrainLoader":
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = self._batches_from(self._position)
        batch = _next(self._batches)
        self._position += self._global_batch_size
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position for JSON: examples taken over all hosts, and the identity of the stream."""
        return {"position": self._position, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a saved position; raises `DataError` if it belongs to another seed or data set."""
        for key, value in self._identity.items():
            if state.get(key, value if key == "data" else None) != value:  # older positions have no "data"
                streams = f"another stream: its {key} is {state.get(key)!r}, this loader's is {value!r}"
                remedy = "A run with other data or another seed cannot continue; start in another workdir"
                raise DataError(f"the saved loader position is of {streams}. {remedy}")
        self.close()
        self._position = int(state["position"])

    def close(self) -> None:
        """Ends the worker processes; the next batch starts new ones."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None


def train_loader(
    source: Source,
    *,
    global_batch_size: int,
    seed: int,
    size: tuple[int, int] | None,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
) -> TrainLoader:
    """Returns an endless stream of training batches: every image once per epoch, in a new order each epoch.

    The stream is a function of (source, seed) alone. Global batch k has its examples kG to (k+1)G - 1, and host h of n
    reads the h-th of n equal parts of it.

    Args:
      source: the split.
      global_batch_size: G, over all hosts.
      seed: seed of the order.
      size: (height, width) to resize to: images by area where they shrink and bilinearly where they grow, labels by
        `resize_nearest`. None: the native resolution, which all images must share.
      process_index: h, this host.
      process_count: n, the number of hosts; must divide G.
      workers: number of reading processes; 0 reads in threads of this process.
      prefetch: batches to prepare in advance, per worker.

    Returns:
      An iterator over dicts of "image" uint8 `[b, H, W, C]`, "label" uint8 `[b, H, W]`, "name" `[b]`, and "index"
      uint32 `[b]`, the example's position in the stream (modulo 2^32), for b = G / n. It raises `DataError` for a file
      that can no longer be read and `LoaderDied` for a worker that was killed or crashed.
    """
    share = _share(global_batch_size, process_index, process_count)
    if size is None and source.native_size is None:
        raise ValueError("the images of this split have different sizes; expected a size to resize them to, got None")
    # Hashed, because grain adds the epoch to the seed: seed 1 would repeat the second epoch of seed 0.
    digest = hashlib.sha256(f"segjax:{seed}".encode()).digest()
    stream = grain.MapDataset.source(source).shuffle(seed=int.from_bytes(digest[:4], "big"))
    stream = stream.repeat(2**48 // len(source) + 1)  # an endless repeat overflows grain's lengths
    stream = stream.map_with_index(functools.partial(_train_example, size=size))

    def batches_from(position: int) -> Iterator[Batch]:
        shard = stream[position:].batch(share)[process_index::process_count]
        return _iterate(shard, workers, prefetch)

    return TrainLoader(batches_from, global_batch_size, {"seed": seed, "examples": len(source), "data": source.digest})


def eval_batches(
    source: Source,
    *,
    global_batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Yields every image of a split exactly once over all hosts, in order, in batches of one shape.

    Every host yields ⌈N / G⌉ batches for N images. The arguments are those of `train_loader`.

    Yields:
      Dicts of "image" uint8 `[b, H, W, C]` and "label" uint8 `[b, H, W]`, at native resolution and padded at the
      bottom and the right, with 0 and void, to the largest size of the split; "size" int32 `[b, 2]`, (height, width)
      of each image; "where" bool `[b]`, False for the examples that fill the last batch; "name" `[b]`.
    """
    share = _share(global_batch_size, process_index, process_count)
    count = -(-len(source) // global_batch_size)
    padded = grain.MapDataset.range(count * global_batch_size).map(EvalExamples(source))
    shard = padded.batch(share)[process_index::process_count]

    def batches() -> Iterator[Batch]:
        iterator = _iterate(shard, min(workers, count), prefetch)
        try:
            for _ in range(count):
                yield _next(iterator)
        finally:
            iterator.close()
            del iterator
            if workers:
                gc.collect()  # frees the iterator's 25 semaphores; Python 3.13 may warn of a leak if it happens later

    return batches()


def _share(global_batch_size: int, process_index: int, process_count: int) -> int:
    if global_batch_size < 1 or process_count < 1 or global_batch_size % process_count:
        raise ValueError(f"{process_count} hosts cannot share a global batch of {global_batch_size} evenly")
    if not 0 <= process_index < process_count:
        raise ValueError(f"expected a process_index in 0..{process_count - 1}; got {process_index}")
    return global_batch_size // process_count


def _train_example(position: int, example: Example, *, size: tuple[int, int] | None) -> dict[str, Any]:
    image, label = example["image"], example["label"]
    if size is not None and label.shape != tuple(size):
        # INTER_AREA is centred only if no axis grows, so the axes that grow follow in a second call.
        shrunk = [min(lengths) for lengths in zip(size, label.shape, strict=True)]
        image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        image = image.reshape(*size, -1)  # OpenCV drops a single channel
        label = resize_nearest(label, size)
    return {"image": image, "label": label, "index": np.uint32(position % 2**32), "name": example["name"]}


class EvalExamples:
    """Rows of `eval_batches`: example i of a split, or a filler beyond its end."""

    def __init__(self, source: Source):
        self._source = source

    def __call__(self, index: int) -> dict[str, Any]:
        """Returns example `index`, padded to the largest size of the split."""
        height, width = size = self._source.largest_size
        image = np.zeros((height, width, self._source.channels), np.uint8)
        label, name, where = np.full((height, width), VOID, np.uint8), "", np.bool_(index < len(self._source))
        if where:
            example = self._source[index]
            name, size = example["name"], example["label"].shape
            image[: size[0], : size[1]], label[: size[0], : size[1]] = example["image"], example["label"]
        return {"image": image, "label": label, "size": np.array(size, np.int32), "where": where, "name": name}


def _iterate(batches: grain.MapDataset, workers: int, prefetch: int) -> grain.DatasetIterator:
    if not workers:
        threads = min(prefetch, 2)
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))
    script = _skip_the_script()
    if not flags.FLAGS.is_parsed():  # as in a notebook; grain's workers read absl's flags
        flags.FLAGS.mark_as_parsed()
    gc.collect()  # frees the semaphores of ended iterators, see `eval_batches`
    read = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(prefetch, 1))
    return iter(read.mp_prefetch(options, worker_init_fn=functools.partial(_start_worker, script)))


@functools.cache
def _skip_the_script() -> dict[str, Any]:
    """Keeps grain's workers from running the program's script at their start, as Python does in spawned processes.

    A script without `if __name__ == "__main__"` would start workers without end, and one from standard input cannot be
    read again. grain pickles by value what is defined in it, except functions with a cache: see `_start_worker`.
    Returns the entries that tell Python where the script is.
    """
    preparation_data = multiprocessing.spawn.get_preparation_data

    def without_script(name: str) -> dict[str, Any]:
        data = preparation_data(name)
        return data if not name.startswith("grain-process-prefetch") else {k: data[k] for k in data if k not in script}

    script = {key: value for key, value in preparation_data("").items() if key.startswith("init_main")}
    multiprocessing.spawn.get_preparation_data = without_script
    return script


def _start_worker(script: dict[str, Any], worker: int, workers: int) -> None:
    """Ends this worker when its parent dies, since a killed parent cannot stop it; runs the script if it is needed."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    def from_script(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        multiprocessing.spawn.prepare(script)
        return getattr(sys.modules["__main__"], name)

    threading.Thread(target=watch, name="segjax-end-with-parent", daemon=True).start()
    if script:
        sys.modules["__main__"].__getattr__ = from_script


def _next(batches: Iterator[Batch]) -> Batch:
    try:
        # Copied out of shared memory, which is small (64 MiB in a container), because batches may live long.
        return {key: np.array(value) for key, value in next(batches).items()}
    except RuntimeError as error:
        # grain's message for a dead process; the exception of a live worker is passed on unchanged.
        died = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
        if not died:
            raise
        causes = "-9: killed, as when memory runs out; -7: shared memory, /dev/shm, ran out; -11: a crash"
        remedy = "The same command again carries on; config.data.workers = 0 reads without such processes"
        raise LoaderDied(f"a loader process died with exit code {died[1]} ({causes}). {remedy}") from error
