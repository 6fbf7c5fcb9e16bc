"""Raw files: listing of folders and archives, reading, and names."""

import contextlib
import glob
import io
import os
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from segjax.storage import WRITTEN_FILE

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".npy")
_JUNK = {
    "@eadir",
    "#recycle",
    "@recycle",
    "$recycle.bin",
    "__macosx",
    "thumbs",
    "thumbnails",
    "thumbs.db",
    "desktop.ini",
}
"""Names, in small letters, that file systems and viewers of pictures leave."""
LINKED_FOLDER = "links to folders; config.data.follow_links=True follows them"
OTHER_FILE = "not images or masks by their suffix"
"""Two of the reasons of `list_tree`."""


class DataError(ValueError):
    """Data that cannot be used; the message gives the file, what was expected and what was found."""


@contextlib.contextmanager
def as_data_error(message: str) -> Iterator[None]:
    """Turns any exception of a reader or decoder into a `DataError` with the message and the reason."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{message} ({reason})") from error


class RawFile(NamedTuple):
    """A file on disk or in an archive."""

    path: str  # shown in errors
    size: int  # in bytes
    read: Callable[[], bytes]  # used by `read_bytes` only
    problem: str = ""  # reason why it must not be read
    checksum: int | None = None  # CRC-32 of the bytes when they were verified, or of a ZIP archive's directory
    changed: int = 0  # time of the last change of a file on disk, in nanoseconds
    page: int | None = None  # number of the page of a TIFF stack, from 0


def read_bytes(file: RawFile) -> bytes:
    """Reads a file; raises `DataError` if it has a problem, cannot be read, or changed since it was verified."""
    if file.problem:
        raise DataError(file.problem)
    with as_data_error(f"{file.path}: cannot be read"):
        data = file.read()
    if file.checksum is not None and zlib.crc32(data) != file.checksum:
        got = f"expected the {file.size} bytes of then, got {len(data)} bytes that differ"
        raise DataError(f"{file.path}: has changed since it was verified; {got}")
    return data


def list_folder(
    folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, *, root: Path | None = None
) -> dict[str, RawFile]:
    """Lists the files below a folder by their path within it, without hidden files and folders.

    A link that leads out of `root` (default `folder`) has a problem. A bad folder raises `DataError`.
    """
    files, left_out = list_tree(folder, suffixes, root=root)
    for path in left_out.get(LINKED_FOLDER, ()):
        raise DataError(f"{folder / path}: a link to a folder, which is not followed; expected a folder of files")
    return files


def list_tree(
    folder: Path, suffixes: tuple[str, ...], *, root: Path | None = None, follow_links: bool = False
) -> tuple[dict[str, RawFile], dict[str, list[str]]]:
    """Lists the files below a folder as `list_folder` does, and the paths that it leaves out by their reason.

    With `follow_links`, links to folders are followed, and links may lead out of `root`.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder; {'it is a file' if folder.exists() else 'it does not exist'}")

    def refuse_folder(error: OSError) -> None:
        raise DataError(f"{error.filename}: a folder that cannot be read ({error.strerror})") from error

    home = Path(folder).absolute().anchor if follow_links else os.path.realpath(root or folder)
    files: dict[str, RawFile] = {}
    left_out: dict[str, list[str]] = {}
    for parent, folders, names in os.walk(folder, onerror=refuse_folder, followlinks=follow_links):
        inside = os.path.relpath(parent, folder)
        ancestors = {os.path.realpath(parent), *map(str, Path(os.path.realpath(parent)).parents)}
        walked = []
        for name in [*folders, *names]:
            path, is_folder = os.path.normpath(os.path.join(inside, name)), name in folders
            linked = is_folder and os.path.islink(os.path.join(parent, name))
            if name == WRITTEN_FILE:
                continue
            if name.startswith("."):
                reason = "hidden"
            elif name.lower() in _JUNK:
                reason = "left by a file system or a viewer"
            elif linked and (not follow_links or os.path.realpath(os.path.join(parent, name)) in ancestors):
                reason = LINKED_FOLDER
            elif is_folder:
                walked.append(name)
                continue
            elif os.path.splitext(name)[1].lower() in suffixes:
                files[Path(path).as_posix()] = _on_disk(Path(parent, name), home)
                continue
            else:
                reason = OTHER_FILE
            left_out.setdefault(reason, []).append(path + "/" * is_folder)
        folders[:] = walked
    return dict(sorted(files.items())), {reason: sorted(paths) for reason, paths in sorted(left_out.items())}


def _on_disk(path: Path, home: str) -> RawFile:
    shown = str(path).encode(errors="backslashreplace").decode()
    size, changed, problem = 0, 0, ""
    real = os.path.realpath(path)
    if os.path.commonpath([real, home]) != home:
        expected = f"expected a file in {home}, or for data.name=folder config.data.follow_links=True"
        problem = f"{shown}: a link that leads out of the data set, to {real}; {expected}"
    elif shown != str(path):
        problem = f"{shown}: the name is not UTF-8; expected one that can be written down"
    else:
        try:
            status = path.stat()
            size, changed = status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait forever
                problem = f"{shown}: expected a regular file; got {stat.filemode(status.st_mode)}"
        except OSError as error:
            problem = f"{shown}: cannot be read ({error})"
    return RawFile(shown, size, path.read_bytes, problem, changed=changed)


def count_pages(file: RawFile) -> int:
    """Returns the number of pages of a TIFF; 1 for a file of another suffix or with a problem."""
    if file.problem or not file.path.lower().endswith((".tif", ".tiff")):
        return 1
    import tifffile

    with as_data_error(f"{file.path}: cannot be decoded; expected a TIFF"), tifffile.TiffFile(file.path) as opened:
        return sum(page.shape == opened.pages.first.shape for page in opened.pages)  # without previews


def with_reader(file: RawFile) -> RawFile:
    """Returns a file on disk, or its `page`, with the function that reads it."""
    return file._replace(read=_reader(file.path, file.page))


def to_listing(file: RawFile) -> list[str | int | None]:
    """Returns the fields of a file on disk, ready for JSON, from which `from_listing` makes the file again.

    >>> from_listing(to_listing(RawFile("a.tif", 9, bytes, page=1))).page
    1
    """
    return [value for name, value in file._asdict().items() if name != "read"]


def from_listing(fields: Sequence[str | int | None]) -> RawFile:
    """Returns the file of `to_listing`, with the function that reads it."""
    path, size, *others, page = fields
    return RawFile(path, size, _reader(path, page), *others, page)


def _reader(path: str, page: int | None) -> Callable[[], bytes]:
    return Path(path).read_bytes if page is None else partial(_read_page, path, page)


def _read_page(path: str, number: int) -> bytes:
    """Returns one page of a TIFF stack as a TIFF of its own, with the same pixels."""
    import tifffile

    with tifffile.TiffFile(path) as opened:
        page, buffer = opened.pages[number], io.BytesIO()
        kinds = {"RGB": "rgb", "MINISWHITE": "miniswhite"}
        tifffile.imwrite(buffer, page.asarray(), photometric=kinds.get(page.photometric.name, "minisblack"))
    return buffer.getvalue()


def list_zip(archive: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, RawFile]:
    """Lists the members of a ZIP archive by their path, without extracting; raises `DataError` for a bad archive."""
    with as_data_error(f"{archive}: expected a whole ZIP archive"):
        opened = zipfile.ZipFile(archive)
    files = {}
    for member in sorted(opened.infolist(), key=lambda member: member.filename):
        name = member.filename
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"{archive}: its member {name!r} leads out of the archive; expected paths within it")
        if name.lower().endswith(suffixes):
            read = partial(opened.read, name)
            files[name] = RawFile(f"{archive}:{name}", member.file_size, read, checksum=member.CRC)
    return files


def composed(name: str) -> str:
    """Returns a name in the Unicode form NFC, in which equal names are equal strings."""
    return unicodedata.normalize("NFC", name)


def by_stem(files: dict[str, RawFile]) -> dict[str, RawFile]:
    """Renames files to their path without suffix; see `by_name`."""
    return by_name((path.rsplit(".", 1)[0], file) for path, file in files.items())


def by_name(files: Iterable[tuple[str, RawFile]]) -> dict[str, RawFile]:
    """Maps names to files; raises `DataError` if two files have the same name."""
    named: dict[str, RawFile] = {}
    for name, file in files:
        if (other := named.setdefault(name, file)) is not file:
            clash = f"another file has the same stem, {other.path}"
            raise DataError(f"{file.path}: {clash}; expected one file named {name!r}: rename or remove one")
    return named


def named_images(arguments: Sequence[str]) -> dict[str, RawFile]:
    """Lists the images that a command line names, in the order of the arguments, then by name; reads none.

    Arguments are files of any suffix, folders (searched at any depth), and patterns with `*`, `?`, `[…]` and `**`.
    Names have no suffix: the path within the folder, or within the part of a pattern before its first wildcard. A path
    or pattern without images raises `DataError`, and so do two images of one name.
    """
    named: dict[str, RawFile] = {}
    for argument in arguments:
        for path, file in _images_of(argument).items():
            name = Path(path).with_suffix("").as_posix()
            other = named.setdefault(name, file)
            if other.path != file.path:
                raise DataError(f"{other.path} and {file.path} would both be written as {name}_mask.png")
    return named


def _images_of(argument: str) -> dict[str, RawFile]:
    """Lists the images of one argument of `named_images`, by path."""
    path = Path(argument)
    if path.is_dir():
        files = list_folder(path, root=Path(path.absolute().anchor))  # links of the user's own folder are fine
        where = "in this folder or in those within it"
    elif path.exists():
        return {path.name: _on_disk(path, path.absolute().anchor)}
    elif glob.has_magic(argument):
        folder = Path(*path.parts[: [glob.has_magic(part) for part in path.parts].index(True)])
        matches = sorted(Path(match) for match in glob.glob(argument, recursive=True))
        files = {
            match.relative_to(folder).as_posix(): _on_disk(match, match.absolute().anchor)
            for match in matches
            if match.suffix.lower() in IMAGE_SUFFIXES and match.is_file()
        }
        where = "matches this pattern"
    else:
        raise DataError(
            f"{argument}: expected an image, a folder of images or a pattern; it does not exist. Correct the path"
        )
    if not files:
        raise DataError(f"{argument}: no image {where}; expected one of {', '.join(IMAGE_SUFFIXES)}")
    return files
