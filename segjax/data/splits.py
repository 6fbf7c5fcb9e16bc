"""Splits of a folder: by names of folders, by text files, or held out, in folds and by groups; and their options."""

import hashlib
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, runtime_checkable

from segjax.data.io import DataError, as_data_error, composed

SPLITS = {"train": "train|training", "val": "val|valid|validation", "test": "test|testing"}
"""Names of the folders, and of the text files, of each split, as a pattern."""
SPLIT_WORDS = {word: split for split, words in SPLITS.items() for word in words.split("|")}
"""Split of each name."""
SPLIT_WORD = "|".join(SPLIT_WORDS)
"""Pattern of such a name."""

_IMAGES = "images?|imgs?|photos?|pictures?|jpegimages|leftimg8bit|volume"
_MASKS = (
    "masks?|labels?|annotations?|annots?|ann|gts?|groundtruths?|gtfine|gtcoarse|targets?|segmentations?|segs?"
    "|segmentationclass|(1st|2nd)?manual[12]?|(1st|2nd)(ho|manual)"
)
# A name of a folder without spaces, hyphens and underscores in small letters: "trainannot", "1stmanual", "imgdir".
_FOLDER_NAME = re.compile(
    rf"(?P<before>{SPLIT_WORD})?((?P<images>{_IMAGES})|(?P<masks>{_MASKS}))?(?P<after>{SPLIT_WORD})?(data)?(set|dir)?"
)


@runtime_checkable
class Named(Protocol):
    """An image with a name, such as a `segjax.data.pairs.Pair`."""

    name: str


class FolderOptions(NamedTuple):
    """The config fields that select and split the files of a folder; `FIELDS` of the config gives their meaning."""

    images: str = ""
    masks: str = ""
    split_files: str = ""
    groups: str = ""
    val_fraction: float = 0.1
    folds: int = 0
    fold: int = 0
    split_seed: int = 0
    follow_links: bool = False


def folder_options(data_config: Any) -> FolderOptions:
    """Returns the fields of a config that `find_layout` takes; missing ones have their default."""
    fields = (field for field in FolderOptions._fields if hasattr(data_config, field))
    return FolderOptions(**{field: getattr(data_config, field) for field in fields})


DEFAULT_OPTIONS = FolderOptions()


def check_options(options: FolderOptions) -> None:
    """Raises DataError if an option is invalid."""
    if not 0 < options.val_fraction < 1:
        raise DataError(f"config.data.val_fraction must lie in (0, 1); got {options.val_fraction}")
    if options.folds and not 0 <= options.fold < options.folds:
        valid = f"0 to {options.folds - 1}, as config.data.folds = {options.folds}"
        raise DataError(f"config.data.fold must be one of {valid}; got {options.fold}")
    if options.fold and not options.folds:
        raise DataError(f"config.data.fold = {options.fold} needs config.data.folds, the number of folds")
    if options.folds == 1:
        raise DataError("config.data.folds must be at least 2, or 0 for a single split; got 1")


def words_of(name: str) -> tuple[str | None, str | None]:
    """Returns the split and the role in the name of a folder.

    >>> words_of("trainannot"), words_of("JPEGImages"), words_of("valid"), words_of("day 1")
    (('train', 'masks'), (None, 'images'), ('val', None), (None, None))
    """
    fit = _FOLDER_NAME.fullmatch(re.sub("[ _-]", "", name).lower())
    if not fit or (fit["before"] and fit["after"]):
        return None, None
    role = "images" if fit["images"] else "masks" if fit["masks"] else None
    return SPLIT_WORDS.get(fit["before"] or fit["after"]), role


def compile_pattern(text: str, field: str, key: str = "stem") -> re.Pattern | None:
    """Compiles a pattern for the end of a path, from the start of a name on; None for ""."""
    if not text:
        return None
    names = re.findall(r"\{(.*?)\}", text)
    if names.count(key) != 1 or not set(names) <= {key, "split"} or names.count("split") > 1:
        example = "{stem}_mask" if key == "stem" else "{group}_*"
        raise DataError(f"config.data.{field}: expected a pattern with {{{key}}} once, as {example!r}; got {text!r}")
    special = {f"{{{key}}}": f"(?P<{key}>[^/]+?)", "{split}": f"(?P<split>(?i:{SPLIT_WORD}))", "*": "[^/]*"}
    parts = re.split(r"(\{\w+\}|\*)", text.strip("/"))
    return re.compile("(?:(?P<above>.*)/)?" + "".join(special.get(part, re.escape(part)) for part in parts))


def find_lists(root: Path, other_files: list[str], options: FolderOptions, *, split_by_folders: bool) -> dict[str, str]:
    """Returns the path below the root of the text file of each split; {} without such files."""
    if options.split_files == "none" or (not options.split_files and split_by_folders):
        return {}
    lists = [PurePosixPath(path) for path in other_files if path.endswith(".txt")]
    lists = [path for path in lists if path.stem.lower() in SPLIT_WORDS]
    folders = sorted({str(path.parent) for path in lists})
    if options.split_files:
        folder = str(PurePosixPath(options.split_files))
        if folder not in folders:
            raise DataError(
                f"config.data.split_files: expected a folder in {root} with train.txt, or none; got {folder!r}"
            )
    elif any(PurePosixPath(folder).name == "Segmentation" for folder in folders):  # VOC has lists of other tasks too
        folder = next(folder for folder in folders if PurePosixPath(folder).name == "Segmentation")
    elif len(folders) > 1:
        raise DataError(f"{root}: text files of splits in {', '.join(folders)}; choose with config.data.split_files")
    else:
        folder = folders[0] if folders else ""
    list_of: dict[str, str] = {}
    for path in (path for path in lists if str(path.parent) == folder):
        split = SPLIT_WORDS[path.stem.lower()]
        if split in list_of:
            raise DataError(f"{root}: {list_of[split]} and {path} are lists of one split; remove or rename one")
        list_of[split] = str(path)
    if list_of and "train" not in list_of:
        expected = "expected train.txt too, or config.data.split_files=none"
        raise DataError(f"{root}: found the lists {', '.join(list_of.values())} only; {expected}")
    return {split: list_of[split] for split in SPLITS if split in list_of}


def read_lists(root: Path, lists: dict[str, str], paths: dict[str, str]) -> tuple[dict[str, set[str]], list[str]]:
    """Returns the names in the text file of each split, and the paths of images in none of them.

    Each line is the name or the path of an image, or what is left of its path without its first folders.
    """
    names_of_end: dict[str, set[str]] = {}
    for name, path in paths.items():
        path = composed(path)
        for whole in (path, str(PurePosixPath(path).with_suffix("")), name):
            for end in _path_ends(whole):
                names_of_end.setdefault(end, set()).add(name)
    ignore_lists = "ignore these lists with config.data.split_files=none"
    names: dict[str, set[str]] = {split: set() for split in lists}
    split_of: dict[str, str] = {}
    for split, path in lists.items():
        with as_data_error(f"{root / path}: cannot be read"):
            lines = (root / path).read_text(encoding="utf-8-sig").splitlines()
        for number, line in enumerate(lines, 1):
            whole = composed(line).replace("\\", "/").strip()
            if not whole:
                continue
            where = f"{root / path}, line {number}: {line.strip()!r}"
            ends = [end for text in (whole, re.split(r"[\s,;]", whole)[0]) for end in _path_ends(text.lstrip("/"))]
            matching = next((names_of_end[end] for end in ends if end in names_of_end), set())
            if not matching:
                raise DataError(
                    f"{where} is not an image of this folder; correct or delete the line, or {ignore_lists}"
                )
            if len(matching) > 1:
                several = f"is the name of {len(matching)} images"
                raise DataError(f"{where} {several}; write the path of one from the folder on, or {ignore_lists}")
            (name,) = matching
            if split_of.setdefault(name, split) != split:
                raise DataError(f"{where} is in {lists[split_of[name]]} too; delete it from one of the two lists")
            names[split].add(name)
    return names, [path for name, path in paths.items() if name not in split_of]


def _path_ends(path: str) -> list[str]:
    """Returns a path, and what is left of it without its first folders.

    >>> _path_ends("a/b/1.png")
    ['a/b/1.png', 'b/1.png', '1.png']
    """
    parts = PurePosixPath(path).parts
    return ["/".join(parts[start:]) for start in range(len(parts))]


def hold_out(root: Path, splits: dict[str, list[Named]], options: FolderOptions) -> tuple[dict[str, list[Named]], str]:
    """Returns the splits with a "val" held out of "train" if it is missing, or for `folds`; and a description of it."""
    group_of = _groups(root, splits, options)
    if "train" not in splits or ("val" in splits and not options.folds):
        return splits, ""
    pairs = sorted(splits["train"] + splits.get("val", []), key=lambda pair: pair.name)
    for name, count in Counter(pair.name for pair in pairs).items():
        if count > 1:
            clash = f"train and val both have an image {name!r}"
            raise DataError(f"config.data.folds needs images of different names; in {root}, {clash}")
    sizes = Counter(group_of[pair.name] for pair in pairs)
    noun, least = "groups" if options.groups else "images", options.folds or 2
    if len(sizes) < least:
        aim = f"for {least} folds" if options.folds else "to split into train and val"
        raise DataError(f"{root}: expected at least {least} {noun} {aim}; found {len(sizes)}")
    hashes = {group: _hash(group, options.split_seed) for group in sizes}
    ordered = sorted(hashes, key=hashes.get)
    if options.folds:
        val_groups, fold_sizes = set(), [0] * options.folds
        for group in ordered:
            smallest = fold_sizes.index(min(fold_sizes))
            fold_sizes[smallest] += sizes[group]
            if smallest == options.fold:
                val_groups.add(group)
        description = f"val is fold {options.fold} of the {options.folds} folds of {len(sizes)} {noun}"
    else:
        count = sum(int.from_bytes(hashes[group], "big") < options.val_fraction * 2**48 for group in ordered)
        val_groups = set(ordered[: min(max(count, 1), len(ordered) - 1)])
        description = f"val is {len(val_groups)} of {len(sizes)} {noun} of train, by the hash of their names"
    train = [pair for pair in pairs if group_of[pair.name] not in val_groups]
    val = [pair for pair in pairs if group_of[pair.name] in val_groups]
    return {"train": train, "val": val} | {split: splits[split] for split in splits if split == "test"}, description


def _groups(root: Path, splits: dict[str, list[Named]], options: FolderOptions) -> dict[str, str]:
    """Returns the group of each image by its name; without `options.groups`, the name itself.

    Raises: DataError if the pattern does not fit a name, or a group is in two splits.
    """
    if not options.groups:
        return {pair.name: pair.name for pairs in splits.values() for pair in pairs}
    pattern = compile_pattern(options.groups, "groups", "group")
    groups: dict[str, str] = {}
    split_of: dict[str, str] = {}
    for split, name in ((split, pair.name) for split, pairs in splits.items() for pair in pairs):
        fit = pattern.fullmatch(name)
        if not fit:
            way_out = "correct the pattern so that it fits the name of every image, or rename the file"
            raise DataError(f"{root}: config.data.groups = {options.groups!r} does not fit {name!r}; {way_out}")
        group, part = fit["group"], "the folds" if options.folds and split != "test" else split
        if (other := split_of.setdefault(group, part)) != part:
            way_out = "move its images into one of them, or change the pattern"
            raise DataError(f"{root}: the group {group!r} of config.data.groups is in {other} and in {part}; {way_out}")
        groups[name] = group
    return groups


def _hash(name: str, seed: int) -> bytes:
    """Returns 48 bits that depend on the name and, unless it is 0, on the seed."""
    text = f"{seed}/{name}" if seed else name
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:6]
