"""Paths and files of a workdir: on this machine, or in a bucket, which can neither rename nor append.

A bucket is read and written with epath, which leaves `gs://` to gcsfs; orbax writes arrays with tensorstore's driver.
"""

import contextlib
import importlib.util
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

BUCKET = "gs://"


class StorageError(ValueError):
    """A path that cannot be reached or written; the message names it and the way out."""


def in_bucket(path: str | os.PathLike) -> bool:
    """Returns True if `path` is in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def path_of(path: str | os.PathLike) -> epath.Path:
    """Returns the path of a user's `gs://BUCKET/PATH` or local path; creates nothing.

    Raises:
      StorageError: an address of another kind, no such bucket, no access to it, or gcsfs is not installed.
    """
    text = os.fspath(path)
    if not in_bucket(text):
        if "://" in text or text.startswith("gs:/"):
            expected = f"a path of this machine, or {BUCKET}BUCKET/PATH as a str (pathlib drops a slash)"
            raise StorageError(f"{text}: expected {expected}")
        return epath.Path(text)
    bucket, _, folder = text.removeprefix(BUCKET).partition("/")
    if not bucket or not folder.strip("/"):
        raise StorageError(f"{text}: expected a path in a bucket, {BUCKET}BUCKET/PATH")
    if importlib.util.find_spec("gcsfs") is None:
        command = "pip install --constraint constraints.txt '.[train,gcs]'"
        raise StorageError(f"{text}: a bucket is read with gcsfs, which is not installed: {command}")
    import fsspec

    # tensorstore and other hosts write to the same folders, so that cached listings would be wrong.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    with bucket_errors(text):
        if not epath.Path(BUCKET + bucket).exists():  # gcsfs would create the bucket
            raise StorageError(f"{text}: there is no bucket {bucket}. Make it first, or correct the name")
    return epath.Path(text)


def output_folder(path: str | os.PathLike) -> epath.Path:
    """Returns `path_of` a folder to write into, which need not exist; raises StorageError for a file."""
    folder = path_of(path)
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder}: expected a folder to write into; it is a file")
    return folder


@contextlib.contextmanager
def bucket_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns the errors of a bucket's libraries, which share no type, into a `StorageError` that names `path`."""
    try:
        yield
    except (StorageError, FileNotFoundError):
        raise
    except Exception as error:
        if not in_bucket(path):
            raise
        reason = " ".join(f"{type(error).__name__} {error}".split())[:300]
        raise StorageError(f"{os.fspath(path)}: the bucket cannot be read or written: {reason}") from error


def to_json(value: Any) -> bytes:
    """Returns `value` as indented JSON; a number that is not finite becomes NaN or Infinity (`nan_to_none`)."""
    return (json.dumps(value, indent=1) + "\n").encode()


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `to_json(value)`, atomically as `write_bytes`."""
    write_bytes(path, to_json(value))


def read_json(path: str | os.PathLike) -> Any:
    """Returns the content of a JSON file; raises ValueError if it is damaged."""
    return json.loads(epath.Path(path).read_text(encoding="utf-8"))


def nan_to_none(value: Any) -> Any:
    """Replaces each number that is not finite by None, in nested containers too: standard JSON has no NaN."""
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file atomically: a reader finds the old content or the new one, never a part."""
    write_together({path: data})


def write_together(files: Mapping[str | os.PathLike, bytes]) -> None:
    """Writes the files of one folder that belong together: all, or none if the disk is full.

    In a bucket, or if the process is killed between two renames, the first files may be new and the last ones old.
    """
    partials = {}
    try:
        for path, data in files.items():
            if in_bucket(path):  # an object appears only when it is complete
                with bucket_errors(path):
                    epath.Path(path).write_bytes(data)
                continue
            partials[path] = epath.Path(f"{os.fspath(path)}.partial")
            partials[path].write_bytes(data)
        for path, partial in partials.items():
            os.replace(partial, path)
    except OSError as error:  # a full disk needs the space of the partial files
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        # An error of writing, unlike one of opening, does not contain the file's name.
        raise OSError(error.errno, error.strerror, str(path)) from error


def scratch(shape: tuple[int, ...], dtype: Any = np.float32, *, most: int = 2**28) -> np.ndarray:
    """Returns an uninitialised array: in memory up to `most` bytes, else in an unnamed file in `$TMPDIR`.

    The file ends with the array. Its space is allocated at once, with an OSError if there is none, because a process
    that writes to a mapped file on a full disk is killed.
    """
    size = np.dtype(dtype).itemsize * math.prod(shape)
    if size <= most:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS
                os.ftruncate(file.fileno(), size)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} ({size} bytes needed)", tempfile.gettempdir()) from error
        return np.memmap(file, dtype, "r+", shape=shape)
