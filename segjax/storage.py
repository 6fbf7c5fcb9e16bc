"""Paths and files of a workdir: on this machine, or in a bucket, which can neither rename nor append.

A bucket is read and written with epath, which leaves `gs://` to gcsfs; orbax writes arrays with tensorstore's driver.
`say` prints every line that contains a path or another text from outside.
"""

import contextlib
import datetime
import fcntl
import fnmatch
import hashlib
import importlib.util
import json
import math
import os
import re
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

import numpy as np
import rich.console
import rich.text
from etils import epath

BUCKET = "gs://"
WRITTEN_FILE = ".segjax.sha256"
"""SHA-256 of every output written to this folder, one per line; kept after an output is deleted."""
LOCK_FILE = ".segjax.lock"
# Seconds between two touches of a lock, and without any until it is taken over: NFS shows times up to 60 s late.
_ALIVE, _SILENT = 15, 90
_PARTIAL = ".segjax-{}.partial"  # name of a file while it is written


class StorageError(ValueError):
    """A path that cannot be reached, read or written; the message names it and the way out."""


class ForeignFileError(StorageError):
    """A file that would have to be replaced, and that segjax did not write or that was changed since."""

    def __init__(self, file: Any, reason: str = "exists, and segjax did not write it, or it was changed since"):
        commands = "calibrate, compare, data, evaluate, export, predict and report"
        super().__init__(f"{file}: {reason}. Choose another folder, or move the file; {commands} have --overwrite")


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


def named_like(folder: epath.Path, pattern: str) -> list[epath.Path]:
    """Returns the entries of a folder whose names match; `glob` would expand brackets in its path too."""
    return [path for path in (folder.iterdir() if folder.exists() else ()) if fnmatch.fnmatchcase(path.name, pattern)]


def output_folder(path: str | os.PathLike) -> epath.Path:
    """Returns `path_of` a folder to write into, which need not exist; raises StorageError for a file.

    Deletes partial files that are at least a day old, left by processes that were killed while writing.
    """
    folder = path_of(path)
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder}: expected a folder to write into; it is a file. Name another folder")
    for remains in () if in_bucket(folder) else named_like(folder, _PARTIAL.format("*")):
        with contextlib.suppress(OSError):
            if remains.stat().mtime < time.time() - 24 * 3600:
                remains.unlink()
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


def is_regular(path: str | os.PathLike) -> bool:
    """Returns True for a file, and False for a folder, a pipe or a device, or if there is nothing."""
    return epath.Path(path).is_file() if in_bucket(path) else os.path.isfile(path)  # epath takes a pipe for a file


def read_file(path: str | os.PathLike, expected: str, remedy: str = "") -> bytes:
    """Returns the content of a regular file; raises StorageError, with what was expected and the way out."""
    path = epath.Path(path)
    try:
        if is_regular(path):  # reading a pipe would wait forever
            return path.read_bytes()
        problem = "it is not a regular file" if path.exists() else "it does not exist"
    except OSError as error:
        problem = f"it cannot be read ({error.strerror or error})"
    raise StorageError(f"{path}: expected {expected}; {problem}{remedy and '. '}{remedy}")


def read_json(path: str | os.PathLike, form: Any = object, expected: str = "JSON", remedy: str = "") -> Any:
    """Returns the content of a JSON file of a known form.

    Args:
      path: the file.
      form: the expected structure: a type; a dictionary from each required key to its form (other keys are allowed); or
        a list of one form, which all items must have.
      expected: noun phrase for the error message.
      remedy: sentence for the error message, without the final full stop.

    Raises:
      StorageError: the file cannot be read, is not JSON, or has another form.
    """
    try:
        value = json.loads(read_file(path, expected, remedy))
        problem = difference(value, form)
    except StorageError:
        raise
    except (ValueError, RecursionError) as error:
        problem = f"it is not JSON ({' '.join(str(error).split())[:100]})"
    if problem:
        raise StorageError(f"{os.fspath(path)}: expected {expected}; {problem}{remedy and '. '}{remedy}")
    return value


def difference(value: Any, form: Any, key: str = "") -> str:
    """Returns the first difference between a JSON value and its form as in `read_json`, or an empty string."""
    kind, named = form if isinstance(form, type) else type(form), f"its {key}" if key else "it"
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind in (int, float)):
        return f"{named} is {type(value).__name__} and not {kind.__name__}"
    if isinstance(form, dict):
        if missing := sorted(form.keys() - value.keys()):
            return f"{named} has no {missing[0]}"
        return next(filter(None, (difference(value[name], form[name], f"{key} {name}".strip()) for name in form)), "")
    if isinstance(form, list):
        items = enumerate(value, 1)
        return next(filter(None, (difference(item, form[0], f"{key} item {i}".strip()) for i, item in items)), "")
    return ""


def nan_to_none(value: Any) -> Any:
    """Replaces each number that is not finite by None, in nested containers too: standard JSON has no NaN."""
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_foreign(file: epath.Path) -> bool:
    """Returns True if a file exists that segjax did not write, or that was changed since."""
    return file.exists() and (not is_regular(file) or sha256(file) not in _listed(file.parent))


def check_outputs(files: Iterable[str | os.PathLike], *, overwrite: bool = False) -> None:
    """Creates the parent folders of `files`; raises ForeignFileError if an existing file must not be replaced.

    A file is replaced only if `WRITTEN_FILE` lists its content, or with `overwrite`.
    """
    for file in map(epath.Path, files):
        with bucket_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            if not in_bucket(file) and not os.access(file.parent, os.W_OK):
                raise StorageError(f"{file.parent}: expected a folder that can be written to")
            if not overwrite and is_foreign(file):
                raise ForeignFileError(file)


def write_outputs(files: Mapping[str | os.PathLike, bytes], *, overwrite: bool = False) -> None:
    """Checks the files of one folder by `check_outputs`, lists their hashes, and writes them by `write_together`."""
    check_outputs(files, overwrite=overwrite)
    folder = epath.Path(next(iter(files))).parent
    # The hashes are listed first, so that a rerun after a kill may replace the files. The leading newline ends a line
    # that a full disk left unfinished.
    lines = "".join(f"\n{hashlib.sha256(data).hexdigest()}\n" for data in files.values())
    if in_bucket(folder):  # nothing can be appended
        write_bytes(folder / WRITTEN_FILE, "\n".join([*_listed(folder), lines]).encode())
    else:
        try:
            with (folder / WRITTEN_FILE).open("a") as listing:
                listing.write(lines)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder / WRITTEN_FILE)) from error
    write_together(files)


def _listed(folder: epath.Path) -> set[str]:
    try:
        return set((folder / WRITTEN_FILE).read_bytes().decode(errors="replace").split())
    except OSError:
        return set()


def sha256(file: epath.Path) -> str:
    """Returns the SHA-256 of a file, read piece by piece."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file atomically: a reader finds the old content or the new one, never a part."""
    write_together({path: data})


def write_together(files: Mapping[str | os.PathLike, bytes]) -> None:
    """Writes the files of one folder that belong together: all, or none if the disk is full.

    In a bucket, or if the process is killed between two renames, the first files may be new and the last ones old.
    Processes that write the same file at the same time do not disturb each other: the last one wins.
    """
    partials = {}
    try:
        for path, data in files.items():
            if in_bucket(path):  # an object appears only when it is complete
                with bucket_errors(path):
                    epath.Path(path).write_bytes(data)
                continue
            partials[path] = epath.Path(path).with_name(_PARTIAL.format(uuid.uuid4().hex))
            partials[path].write_bytes(data)
        for path, partial in partials.items():
            os.replace(partial, path)
    except OSError as error:  # an error of writing, unlike one of opening, does not contain the file's name
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:  # a full disk needs the space of the partial files
        for partial in partials.values():
            partial.unlink(missing_ok=True)


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


# Control characters, line and paragraph separators, marks that change the direction of writing, and the halves of
# surrogate pairs, in which Python stores the bytes of a file name that is not UTF-8.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Returns one line that any output can contain: control characters and the like as Python's escapes.

    >>> print(printable("a\x1b[2Jb\nc"), printable("è, 日本"))
    a\x1b[2Jb\nc è, 日本
    """
    return _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(line: object, to: rich.console.Console | TextIO | None = None) -> None:
    """Prints a line as it is, without rich's markup and line breaks; by default on the standard output."""
    text = printable(str(line))
    if isinstance(to, rich.console.Console):
        to.print(rich.text.Text(text), soft_wrap=True)
    else:
        print(text, file=to, flush=True)


def escape_what_cannot_be_encoded() -> None:
    """Makes the standard streams print characters that their encoding lacks as escapes, as with LANG=C."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def reserve(folder: epath.Path) -> Iterator[None]:
    """Reserves a folder, which is made if it does not exist, for this process; `LOCK_FILE` names the process.

    On one machine the system's lock of the folder decides, because it ends with its process, even a killed one. Where
    there is none, as in a bucket, the number of the process decides. A process of another machine counts as running if
    the time of its `LOCK_FILE` changes within `_SILENT` seconds, for which this call waits.

    Raises:
      StorageError: another process has reserved the folder; names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, host = folder / LOCK_FILE, socket.gethostname()
    try:
        owner = read_json(file, {"host": str, "pid": int, "since": str})
    except StorageError:  # none, or damaged
        owner = {"host": host, "pid": os.getpid(), "since": "now"}
    in_use = owner["pid"] != os.getpid() and _is_running(owner["pid"])
    with contextlib.ExitStack() as stack:
        if not in_bucket(folder):
            stack.callback(os.close, descriptor := os.open(folder, os.O_RDONLY))
            with contextlib.suppress(OSError):  # a file system without locks
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    in_use = False
                except BlockingIOError:
                    in_use = True
        named = f"process {owner['pid']} on {owner['host']} since {owner['since']}"
        if owner["host"] != host and not in_use:
            say(f"{folder}: was in use by {named}; waiting {_SILENT} s for a sign of life of it")
            in_use = _is_touched(file)
        if in_use:
            raise StorageError(f"{folder}: in use by {named}. Wait for its end, or choose another folder")
        lock = to_json({"host": host, "pid": os.getpid(), "since": datetime.datetime.now().isoformat(" ", "seconds")})
        write_bytes(file, lock)
        ended = threading.Event()
        touching = threading.Thread(target=_keep_touching, args=(file, lock, ended), name="segjax-lock", daemon=True)
        touching.start()
        try:
            yield
        finally:
            ended.set()
            touching.join()  # else it could write the lock again
            file.unlink(missing_ok=True)


def _keep_touching(file: epath.Path, lock: bytes, ended: threading.Event) -> None:
    while not ended.wait(_ALIVE):
        with contextlib.suppress(OSError, StorageError):  # a full disk must not end the run
            if in_bucket(file):
                write_bytes(file, lock)
            else:
                os.utime(file)


def _is_touched(file: epath.Path) -> bool:
    """Returns True if the time of a file changes within `_SILENT` seconds."""
    deadline, before = time.monotonic() + _SILENT, file.stat().mtime
    while time.monotonic() < deadline and file.exists():
        time.sleep(min(1, _SILENT))
        if file.exists() and file.stat().mtime != before:
            return True
    return False


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True
