"""Batches from an open split, by grain: worker processes, one shard per host, a position that can be saved."""

import atexit
import functools
import gc
import hashlib
import math
import multiprocessing.spawn
import os
import pickle
import re
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags
from jaxtyping import Float, Float64, Integer

from segjax.data.io import DataError
from segjax.data.labels import VOID
from segjax.data.pairs import Example, Source
from segjax.data.resize import fit_within, resize_nearest

Batch = dict[str, np.ndarray]
_FOR_THE_PARENT = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)  # signals that a worker leaves to its parent
_OPEN = weakref.WeakSet()  # loaders to close at exit


class LoaderDied(RuntimeError):
    """Death of a worker process of the loader; the message gives its exit code and likely causes."""


class TrainLoader:
    """Endless iterator over shuffled batches, with a position that can be saved; see `train_loader`."""

    def __init__(
        self, batches_from: Callable[[int], Iterator[Batch]], global_batch_size: int, identity: dict[str, Any]
    ):
        self._batches_from, self._global_batch_size, self._identity = batches_from, global_batch_size, identity
        self._position, self._batches = 0, None
        _OPEN.add(self)

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
    letterbox: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    probabilities: Float[np.ndarray, "images"] | None = None,
) -> TrainLoader:
    """Returns an endless stream of training batches: every image once per epoch, in a new order each epoch.

    With `probabilities`, each example is drawn independently, and there are no epochs. The stream is a function of
    (source, seed, probabilities) alone. Global batch k has its examples kG to (k+1)G - 1, and host h of n
    reads the h-th of n equal parts of it.

    Args:
      source: the split.
      global_batch_size: G, over all hosts.
      seed: seed of the order.
      size: (height, width) to resize to: images by area where they shrink and bilinearly where they grow, labels by
        `resize_nearest`. None: the native resolution, which all images must share.
      letterbox: resize to `fit_within(…, size)`, and pad at the bottom and the right, with 0 and void.
      process_index: h, this host.
      process_count: n, the number of hosts; must divide G.
      workers: number of reading processes; 0 reads in threads of this process.
      prefetch: batches to prepare in advance, per worker.
      probabilities: of each image, with sum 1, such as those of `rare_class_sampling`; None: the epochs above.

    Returns:
      An iterator over dicts of "image" `[b, H, W, C]`, see `Example`, "label" uint8 `[b, H, W]`, or of COCO annotations
      "boxes" `[b, N, 4]` and "classes" `[b, N]`, "name" `[b]`, and "index" uint32 `[b]`, the example's position in the
      stream (modulo 2^32), for b = G / n; and, if images are padded, "size" int32 `[b, 2]`, (height, width) of each. It
      raises `DataError` for a file that can no longer be read and `LoaderDied` for a worker that was killed or crashed.
    """
    share = _share(global_batch_size, process_index, process_count)
    if size is None and source.native_size is None:
        raise ValueError("the images of this split have different sizes; expected a size to resize them to, got None")
    # Hashed, because grain adds the epoch to the seed: seed 1 would repeat the second epoch of seed 0.
    hashed = int.from_bytes(hashlib.sha256(f"segjax:{seed}".encode()).digest()[:4], "big")
    if probabilities is None:
        stream = grain.MapDataset.range(len(source)).shuffle(seed=hashed)
        stream = stream.repeat(2**48 // len(source) + 1)  # an endless repeat overflows grain's lengths
    else:
        draw = functools.partial(_draw_image, until=np.cumsum(probabilities), seed=hashed)
        stream = grain.MapDataset.range(2**48).map(draw)
    stream = stream.map_with_index(functools.partial(_train_example, source=source, size=size, letterbox=letterbox))

    def batches_from(position: int) -> Iterator[Batch]:
        shard = stream[position:].batch(share)[process_index::process_count]
        return _iterate(shard, workers, prefetch)

    return TrainLoader(batches_from, global_batch_size, {"seed": seed, "examples": len(source), "data": source.digest})


def eval_batches(
    source: Source,
    *,
    global_batch_size: int,
    devices: int = 1,
    max_pixels: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Yields each image of a split once over all hosts; all hosts get the same sequence of few batch shapes.

    Images are padded to one of `padded_sizes`, and those of one padded size share batches, in the order of the split.
    A batch has `global_batch_size` images, or fewer where they would have more than `max_pixels` per device, but at
    least one per device. `devices` is their number over all hosts. The other arguments are those of `train_loader`.

    Yields:
      Dicts of "image" `[b, H, W, C]`, see `Example`, and "label" uint8 `[b, H, W]`, at native resolution and padded at
      the bottom and the right, with 0 and void; "size" int32 `[b, 2]`, (height, width) of each; "where" bool `[b]`,
      False for the examples that fill a batch; "index" int32 `[b]`, the image's index in the split, and the number of
      images for a filler; "name" `[b]`.
    """
    read = _EvalBatch(source, global_batch_size, devices, max_pixels, process_index, process_count)
    count = len(read.plan)

    def batches() -> Iterator[Batch]:
        iterator = _iterate(grain.MapDataset.range(count).map(read), min(workers, count), prefetch)
        try:
            for _ in range(count):
                yield _next(iterator)
        finally:
            iterator.close()
            del iterator
            if workers:
                gc.collect()  # frees the iterator's 25 semaphores; Python 3.13 may warn of a leak if it happens later

    _OPEN.add(generator := batches())
    return generator


def padded_sizes(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the padded size of each image for an evaluation: each side rounded up to a power of two.

    No side exceeds the largest of its axis in the split. So few programs are compiled, and no side doubles.

    >>> padded_sizes([(300, 400), (333, 500), (4000, 6000), (1, 5000)])
    [(512, 512), (512, 512), (4000, 6000), (1, 6000)]
    """
    greatest = [max(lengths) for lengths in zip(*sizes, strict=True)]
    return [tuple(min(1 << (n - 1).bit_length(), top) for n, top in zip(size, greatest, strict=True)) for size in sizes]


def eval_rows(source: Source, indices: Sequence[int], shape: tuple[int, int], count: int) -> Batch:
    """Returns a batch of `eval_batches`: the images `indices`, padded to `shape`, then fillers, `count` rows in all."""
    batch = {
        "image": np.zeros((count, *shape, source.channels), np.uint8 if source.value_range is None else np.float32),
        "label": np.full((count, *shape), VOID, np.uint8),
        "size": np.full((count, 2), shape, np.int32),
        "where": np.arange(count) < len(indices),
        "index": np.array([*indices, *[len(source)] * (count - len(indices))], np.int32),
    }
    names = [""] * count
    for row, index in enumerate(indices):
        example = _read(source, index)
        height, width = batch["size"][row] = example["label"].shape
        batch["image"][row, :height, :width], batch["label"][row, :height, :width] = example["image"], example["label"]
        names[row] = example["name"]
    return batch | {"name": np.array(names)}


class _EvalBatch:
    """Reads this host's part of each batch of `eval_batches`, by the number of the batch."""

    def __init__(self, source: Source, *arguments: Any):
        self._source, self._arguments = source, arguments
        self.plan = _eval_plan(source.sizes, *arguments)

    def __reduce__(self):
        # Worker processes plan again, because a long pickle can make Python wait forever, see `FolderSource`.
        return _EvalBatch, (self._source, *self._arguments)

    def __call__(self, number: int) -> Batch:
        return eval_rows(self._source, *self.plan[number])


def _eval_plan(
    sizes: Sequence[tuple[int, int]],
    global_batch_size: int,
    devices: int,
    max_pixels: int | None,
    process_index: int,
    process_count: int,
) -> list[tuple[list[int], tuple[int, int], int]]:
    """Returns the arguments of `eval_rows` for each batch of this host; every host has as many of the same shapes."""
    _share(global_batch_size, process_index, process_count)
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index, shape in enumerate(padded_sizes(sizes)):
        by_shape.setdefault(shape, []).append(index)
    plan = []
    for shape, indices in sorted(by_shape.items()):
        batch = global_batch_size
        if max_pixels is not None:
            batch = min(batch, devices * max(1, max_pixels // math.prod(shape)))
        share = batch // process_count
        firsts = range(process_index * share, len(indices) + process_index * share, batch)
        plan += [(indices[first : first + share], shape, share) for first in firsts]
    return plan


def _share(global_batch_size: int, process_index: int, process_count: int) -> int:
    if global_batch_size < 1 or process_count < 1 or global_batch_size % process_count:
        raise ValueError(f"{process_count} hosts cannot share a global batch of {global_batch_size} evenly")
    if not 0 <= process_index < process_count:
        raise ValueError(f"expected a process_index in 0..{process_count - 1}; got {process_index}")
    return global_batch_size // process_count


def rare_class_sampling(
    counts: Integer[np.ndarray, "images classes"], temperature: float
) -> Float64[np.ndarray, "images"]:
    r"""Returns the probability of each training image in rare-class sampling.

    .. math::
        P(c) \propto e^{(1 - f_c) / T}, \qquad p_i = \sum_c P(c) \frac{[n_{ic} > 0]}{\sum_j [n_{jc} > 0]}

    with the pixels :math:`n_{ic}` of class c in image i and the fraction :math:`f_c` of all pixels. That is, first a
    class is drawn, then one of the images that contain it.

    Args:
        counts: n, see `segjax.data.class_pixels`.
        temperature: T > 0, 0.01 in DAFormer. A large T draws every class with the same probability.

    Returns: p, with sum 1; 0 for an image without a labelled pixel.

    References: Hoyer et al., DAFormer, arXiv 2111.14887.

    >>> print(rare_class_sampling(np.array([[100, 0], [90, 10]]), temperature=1.0).round(3))
    [0.145 0.855]
    """
    present, frequencies = counts > 0, counts.sum(axis=0) / counts.sum()
    occurs = present.any(axis=0)
    logits = np.where(occurs, (1 - frequencies) / temperature, -np.inf)
    of_class = np.exp(logits - logits.max())
    of_class /= of_class.sum()
    return (present / np.maximum(present.sum(axis=0), 1)) @ of_class


def _draw_image(position: int, *, until: Float[np.ndarray, "images"], seed: int) -> int:
    """Draws the index of an image, by the cumulative probabilities `until`; a function of seed and position."""
    uniform = np.random.default_rng((seed, position)).random() * until[-1]
    return min(int(np.searchsorted(until, uniform, side="right")), len(until) - 1)


def _train_example(
    position: int, index: int, *, source: Source, size: tuple[int, int] | None, letterbox: bool
) -> dict[str, Any]:
    example = _read(source, index)
    image, label, sizes = example["image"], example["label"], {}
    if size is not None and letterbox:
        image, label, sizes["size"] = letterbox_pair(image, label, size)
    elif size is not None:
        image, label = resize_pair(image, label, size)
    shared = {"image": image, "index": np.uint32(position % 2**32), "name": example["name"], **sizes}
    if "boxes" in example:
        zoom = np.divide(sizes.get("size", label.shape), example["label"].shape, dtype=np.float32)[[1, 0, 1, 0]]
        return shared | {"boxes": example["boxes"] * zoom, "classes": example["classes"]}
    return shared | {"label": label}


def resize_pair(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Resizes an image and its labels as `train_loader` does."""
    if label.shape == tuple(size):
        return image, label
    # INTER_AREA is centred only if no axis grows, so the axes that grow follow in a second call.
    shrunk = [min(lengths) for lengths in zip(size, label.shape, strict=True)]
    image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return image.reshape(*size, -1), resize_nearest(label, size)  # OpenCV drops a single channel


def letterbox_pair(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns an image and its labels, letterboxed to `size` as `train_loader` does, and their size without padding."""
    fitted = fit_within(np.array(label.shape), size)
    image, label = resize_pair(image, label, tuple(fitted.tolist()))
    padding = [(0, full - n) for full, n in zip(size, label.shape, strict=True)]
    return np.pad(image, [*padding, (0, 0)]), np.pad(label, padding, constant_values=VOID), fitted


def _read(source: Source, index: int) -> Example:
    """Returns an example. An exception that a worker cannot send, such as one of a script's class, is sent as text."""
    try:
        return source[index]
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # the parent would wait for ever
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise


def _iterate(batches: grain.MapDataset, workers: int, prefetch: int) -> grain.DatasetIterator:
    if not workers or multiprocessing.current_process().daemon:  # as in a Pool, which may not start processes
        threads = min(prefetch, 2)
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))
    script = _skip_the_script()
    if not flags.FLAGS.is_parsed():  # as in a notebook; grain's workers read absl's flags
        flags.FLAGS.mark_as_parsed()
    gc.collect()  # frees the semaphores of ended iterators, see `eval_batches`
    read = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(prefetch, 1))
    return iter(read.mp_prefetch(options, worker_init_fn=functools.partial(_start_worker, script)))


@atexit.register
def _close_all() -> None:
    """Ends open loaders, whose shared memory and threads Python can no longer free when it deletes modules."""
    for loader in list(_OPEN):
        loader.close()
    gc.collect()


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
        if not name.startswith("grain-process-prefetch"):
            return data
        # The worker inherits the mask of this thread of grain, so that no signal finds it before `_start_worker`.
        signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_PARENT)
        return {k: data[k] for k in data if k not in script}

    script = {key: value for key, value in preparation_data("").items() if key.startswith("init_main")}
    multiprocessing.spawn.get_preparation_data = without_script
    return script


def _start_worker(script: dict[str, Any], worker: int, workers: int) -> None:
    """Makes this worker end with its parent, even a killed one, and not before; runs the script if it is needed."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    def from_script(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        multiprocessing.spawn.prepare(script)
        return getattr(sys.modules["__main__"], name)

    # A terminal or a cluster signals all processes at once, but the parent decides when its workers are done.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_THE_PARENT)
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
