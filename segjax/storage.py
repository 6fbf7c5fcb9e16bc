"""Where a workdir lies: a folder of this machine, or one in a bucket, which can neither rename nor append.

A bucket is reached through epath, which leaves `gs://` to gcsfs; checkpoints' arrays go by tensorstore's own driver.
"""

import contextlib
import importlib.util
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

BUCKET = "gs://"


class StorageError(ValueError):
    """A workdir cannot be reached or written; the message names it and says what to do."""


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether `path` is in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def path_of(path: str | os.PathLike) -> epath.Path:
    """The path that a person named, `gs://BUCKET/PATH` or one of this machine; nothing is made.

    Raises:
      StorageError: an address of another kind, no such bucket, no access to it, or gcsfs is not installed.
    """
    text = os.fspath(path)
    if not in_bucket(text):
        if "://" in text or text.startswith("gs:/"):
            raise StorageError(
                f"{text}: expected a path of this machine, or {BUCKET}BUCKET/PATH as a str (pathlib drops a slash)"
            )
        return epath.Path(text)
    bucket, _, folder = text.removeprefix(BUCKET).partition("/")
    if not bucket or not folder.strip("/"):
        raise StorageError(f"{text}: expected a path in a bucket, {BUCKET}BUCKET/PATH")
    if importlib.util.find_spec("gcsfs") is None:
        raise StorageError(
            f"{text}: a bucket is read with gcsfs, which is not installed: pip install --constraint constraints.txt "
            "'.[train,gcs]'"
        )
    import fsspec

    # tensorstore writes the same folders behind gcsfs's back, and so do other hosts: a remembered list is wrong.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    with saying(text):
        if not epath.Path(BUCKET + bucket).exists():  # gcsfs would make the bucket
            raise StorageError(f"{text}: there is no bucket {bucket}. Make it first, or correct the name")
    return epath.Path(text)


def local_path(path: str | os.PathLike) -> Path:
    """A path of this machine, for what several processes share by renaming and appending.

    Raises:
      StorageError: it is in a bucket, or elsewhere.
    """
    if "://" in os.fspath(path):
        raise StorageError(f"{os.fspath(path)}: expected a folder of this machine; only single runs go to a bucket")
    return Path(path)


def output_folder(path: str | os.PathLike) -> epath.Path:
    """`path_of` of a folder to write into, which need not be there yet.

    Raises:
      StorageError: as `path_of`; it is a file.
    """
    folder = path_of(path)
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder}: expected a folder to write into; it is a file")
    return folder


@contextlib.contextmanager
def saying(path: str | os.PathLike) -> Iterator[None]:
    """Turns what a bucket's libraries raise, which has no type in common, into a line that names `path`."""
    try:
        yield
    except (StorageError, FileNotFoundError):
        raise
    except Exception as error:
        if not in_bucket(path):
            raise
        said = " ".join(f"{type(error).__name__} {error}".split())[:300]
        raise StorageError(f"{os.fspath(path)}: the bucket cannot be read or written: {said}") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """`write_bytes` of a text, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file so that a reader finds the old one or the new one, never half of one."""
    write_together({path: data})


def write_together(files: Mapping[str | os.PathLike, bytes]) -> None:
    """Writes files of one folder that belong together: all, or none where one of them finds no room.

    In a bucket, or killed between two renames, the first ones may be new and the last ones old.
    """
    partials = {}
    try:
        for path, data in files.items():
            if in_bucket(path):  # an object appears when all of it is there
                with saying(path):
                    epath.Path(path).write_bytes(data)
                continue
            partials[path] = epath.Path(f"{os.fspath(path)}.partial")
            partials[path].write_bytes(data)
        for path, partial in partials.items():
            os.replace(partial, path)
    except OSError as error:  # a full disk: the room that half a file takes is the person's
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        # What writing raises, as against opening, does not say of which file.
        raise OSError(error.errno, error.strerror, str(path)) from error


def scratch(shape: tuple[int, ...], dtype: Any = np.float32, *, most: int = 2**28) -> np.ndarray:
    """An array to work in, as `np.empty`: in memory up to `most` bytes, else in a file that ends with it.

    The file has no name and lies in `$TMPDIR`. Its room is taken before it is used: a mapped file for which the disk
    has none would end the process.

    Raises:
      OSError: the disk has no room for it.
    """
    size = np.dtype(dtype).itemsize * math.prod(shape)
    if size <= most:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:
        take = getattr(os, "posix_fallocate", lambda number, _, length: os.ftruncate(number, length))  # macOS has none
        try:
            take(file.fileno(), 0, size)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} ({size} bytes to work in)", tempfile.gettempdir()) from error
        return np.memmap(file, dtype, "r+", shape=shape)
