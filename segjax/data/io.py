"""Raw files: what is in a folder or an archive, and how images and masks are decoded."""

import glob
import io
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image


class DataError(ValueError):
    """Something about the data is wrong; the message names the file, what was expected and what was seen."""


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
    """Reads the bytes of a file.

    Raises:
      DataError: it has a problem, cannot be read, or has changed since it was verified.
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
    """Lists the files under a folder with one of these suffixes, by their path within it, without hidden files.

    A link that leads out of `root`, or anything but a regular file, has a problem and is never read.

    Args:
      folder: where to look.
      suffixes: in lower case.
      root: the folder of the data set, which no link may lead out of; default `folder`.

    Raises:
      DataError: no such folder, or one in it that cannot be read or is a link.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder; {'it is a file' if folder.exists() else 'it does not exist'}")
    home = os.path.realpath(root or folder)
    files: dict[str, RawFile] = {}
    for parent, folders, names in os.walk(folder, onerror=_refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if os.path.islink(path := os.path.join(parent, name)):
                # Not followed, since it may lead anywhere, and not ignored silently.
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
    """Lists the members of a ZIP archive with one of these suffixes, by their path within it; extracts nothing.

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


def named_images(arguments: Sequence[str]) -> dict[str, RawFile]:
    """Lists the images that `arguments` name, in the order of the arguments, then by name, without reading them.

    Args:
      arguments: files, of any suffix; folders, whose images are found however deep they lie; and patterns with `*`,
        `?`, `[…]` and `**`, of files. A file or folder of exactly that name takes precedence over the pattern.

    Returns:
      The files by name, without suffix: of a file its own, in a folder its path within it, of a pattern the path within
      the folder before the first wildcard. So `a/b.png` in a folder is "a/b".

    Raises:
      DataError: nothing is there, a folder or pattern without images, or two images of one name.
    """
    named: dict[str, RawFile] = {}
    missing = []
    for argument in arguments:
        if not Path(argument).exists() and not _is_pattern(argument):
            missing.append(argument)
        for name, file in _found(argument).items():
            if name in named and named[name].path != file.path:
                raise DataError(f"{named[name].path} and {file.path} would both be written as {name}_mask.png")
            named[name] = file
    if missing:
        raise DataError(f"{missing[0]}: expected an image, a folder of images or a pattern; it does not exist")
    return named


def _is_pattern(argument: str) -> bool:
    return glob.has_magic(argument) and not Path(argument).exists()


def _found(argument: str) -> dict[str, RawFile]:
    path = Path(argument)
    if path.is_dir():
        # A link in a folder of one's own may lead anywhere.
        files = list_folder(path, root=Path(path.absolute().anchor))
        where = "in this folder or in those within it"
    elif _is_pattern(argument):
        plain = [not glob.has_magic(part) for part in path.parts]
        folder = Path(*path.parts[: plain.index(False)])
        matches = sorted(Path(match) for match in glob.glob(argument, recursive=True))
        images = [match for match in matches if match.suffix.lower() in IMAGE_SUFFIXES and match.is_file()]
        files = {image.relative_to(folder).as_posix(): _raw(image) for image in images}
        where = "matches this pattern"
    else:
        return {path.stem: _raw(path)}
    if not files:
        raise DataError(f"{argument}: no image {where}; expected one of {', '.join(IMAGE_SUFFIXES)}")
    found: dict[str, RawFile] = {}
    for name, file in files.items():
        stem = name.rsplit(".", 1)[0]
        if stem in found:
            raise DataError(f"{found[stem].path} and {file.path} would both be written as {stem}_mask.png")
        found[stem] = file
    return found


def _raw(path: Path) -> RawFile:
    return RawFile(str(path), 0, path.read_bytes)


def decode_image(data: bytes, channels: int, file: str) -> UInt8[np.ndarray, "h w channels"]:
    """Decodes a PNG or JPEG to grey (1 channel) or RGB (3), 16 bits to 8, alpha dropped, pixels as they are stored.

    Raises:
      DataError: the bytes are not an image, or the image has too many pixels.
    """
    if not data:
        raise DataError(f"{file}: cannot be decoded; the file is empty")
    # The stored pixels, because the mask beside an image has no EXIF orientation to turn it by.
    colour = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), colour | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:  # a size that it refuses; damaged bytes give None
        raise DataError(
            f"{file}: cannot be decoded; expected at most 2^30 pixels, or as many as $OPENCV_IO_MAX_IMAGE_PIXELS "
            f"({str(error).strip()[:200]})"
        ) from error
    if image is None:
        raise DataError(f"{file}: cannot be decoded; expected a PNG or JPEG image, got {len(data)} bytes")
    return image[..., None] if channels == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode_mask(data: bytes, file: str) -> UInt8[np.ndarray, "h w"]:
    """Decodes a PNG of one byte per pixel: grey values, or the indices (not the colours) of a palette.

    Raises:
      DataError: the bytes are not such a PNG.
    """
    # Pillow, because OpenCV turns a palette's indices into colours.
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.format != "PNG" or picture.mode not in ("L", "P", "1"):
                raise DataError(
                    f"{file}: expected a mask that is a PNG of class ids, 8 bits a pixel, grey or palette; "
                    f"got a {picture.format} in mode {picture.mode}"
                )
            if picture.mode == "L" and data[24] != 8:  # the byte of the PNG's bit depth
                raise DataError(
                    f"{file}: a grey mask of {data[24]} bits a pixel, whose ids are stretched to 0..255 when it is "
                    "read; expected 8 bits"
                )
            picture.verify()  # the checksums, which decoding does not look at
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture).astype(np.uint8)
    except DataError:
        raise
    except Exception as error:  # whatever Pillow's parsers raise for damaged bytes: OSError, SyntaxError, ValueError...
        raise DataError(f"{file}: cannot be decoded; expected a PNG mask, got {len(data)} bytes ({error})") from error
