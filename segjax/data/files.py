"""The raw files of a data set: what lies in a folder or an archive, and nothing from outside it."""

import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from segjax.data.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


class RawFile(NamedTuple):
    """A file on disk or in an archive.

    Attributes:
      path: the name that errors show.
      size: in bytes.
      read: gives its bytes; called by `read_bytes` only.
      problem: what is wrong with it, known before it is read; a file with a problem is never read.
      checksum: the CRC-32 of its bytes when they were verified.
    """

    path: str
    size: int
    read: Callable[[], bytes]
    problem: str = ""
    checksum: int | None = None


def read_bytes(file: RawFile) -> bytes:
    """The bytes of a file.

    Raises:
      DataError: it has a problem, cannot be read, or is not any more what was verified.
    """
    if file.problem:
        raise DataError(file.problem)
    try:
        data = file.read()
    # An archive's member may be damaged, cut short, encrypted or packed in a way that nobody here can unpack.
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file.path}: cannot be read ({error})") from error
    if file.checksum is not None and zlib.crc32(data) != file.checksum:
        raise DataError(
            f"{file.path}: has changed since it was verified; expected the {file.size} bytes of then, "
            f"got {len(data)} bytes that differ"
        )
    return data


def list_folder(
    folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, *, root: Path | None = None
) -> dict[str, RawFile]:
    """The files under a folder with one of these suffixes, by their path within it, hidden ones left out.

    A file that is no regular file, or a link that leads out of `root`, has a problem, and is never read.

    Args:
      folder: where to look.
      suffixes: in lower case.
      root: the folder of the data set, which no link may lead out of; default `folder`.

    Raises:
      DataError: no such folder, or one in it that cannot be read or is a link.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder; there is {'a file' if folder.exists() else 'nothing'}")
    home = os.path.realpath(root or folder)
    files: dict[str, RawFile] = {}
    for parent, folders, names in os.walk(folder, onerror=_refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if os.path.islink(path := os.path.join(parent, name)):
                # Neither followed, since it may lead anywhere, nor left out without a word.
                raise DataError(f"{path}: a link to a folder, which is not followed; expected a folder of files")
        for name in names:
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith("."):
                path = Path(parent, name)
                files[path.relative_to(folder).as_posix()] = _on_disk(path, home)
    return dict(sorted(files.items()))


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename}: a folder that cannot be read ({error.strerror})") from error


def _on_disk(path: Path, home: str) -> RawFile:
    shown, size, problem = str(path).encode(errors="backslashreplace").decode(), 0, ""
    real = os.path.realpath(path)
    if os.path.commonpath([real, home]) != home:
        problem = f"{shown}: a link that leads out of the data set, to {real}; expected a file in {home}"
    elif shown != str(path):
        problem = f"{shown}: the name is not UTF-8; expected one that can be written down"
    else:
        try:
            status = path.stat()
            size = status.st_size
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
                problem = f"{shown}: expected a regular file; got {stat.filemode(status.st_mode)}"
        except OSError as error:
            problem = f"{shown}: cannot be read ({error})"
    return RawFile(shown, size, path.read_bytes, problem)


def list_zip(archive: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, RawFile]:
    """The members of a ZIP archive with one of these suffixes, by their path within it; nothing is extracted.

    Raises:
      DataError: the archive is damaged, or a member's path leads out of it.
    """
    try:
        opened = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{archive}: expected a whole ZIP archive ({error})") from error
    for name in opened.namelist():
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"{archive}: its member {name!r} leads out of the archive; expected paths within it")
    members = sorted(
        (m for m in opened.infolist() if m.filename.lower().endswith(suffixes)), key=lambda member: member.filename
    )
    return {
        m.filename: RawFile(f"{archive}:{m.filename}", m.file_size, partial(opened.read, m.filename)) for m in members
    }


def by_stem(files: dict[str, RawFile]) -> dict[str, RawFile]:
    """Files by their path without its suffix; two of one stem are a `DataError`."""
    return by_name((path.rsplit(".", 1)[0], file) for path, file in files.items())


def by_name(files: Iterable[tuple[str, RawFile]]) -> dict[str, RawFile]:
    """Files by the names they are given; two of one name are a `DataError`, lest one stand for the other unseen."""
    named: dict[str, RawFile] = {}
    for name, file in files:
        if name in named:
            raise DataError(
                f"{file.path}: another file has the same stem, {named[name].path}; expected one file named {name!r}"
            )
        named[name] = file
    return named
