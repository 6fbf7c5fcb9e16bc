"""Which images a person means by files, folders and patterns, and what is made of each is to be called."""

import glob
from collections.abc import Sequence
from pathlib import Path

from segjax.data.errors import DataError
from segjax.data.files import IMAGE_SUFFIXES, RawFile, list_folder


def named_images(arguments: Sequence[str]) -> dict[str, RawFile]:
    """The images that `arguments` name, in the order of the arguments, then of their names; none is read yet.

    Args:
      arguments: files, of any suffix; folders, whose images are found however deep they lie; and patterns with `*`,
        `?`, `[…]` and `**`, of files. What exists under its own name is no pattern.

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
        raise DataError(f"{missing[0]}: expected an image, a folder of images or a pattern; there is nothing")
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
