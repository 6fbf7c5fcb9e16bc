"""Discovery of the images, masks and splits of your own folder by their names."""

import hashlib
import re
import unicodedata
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from segjax.data.io import (
    IMAGE_SUFFIXES,
    LINKED_FOLDER,
    OTHER_FILE,
    DataError,
    RawFile,
    as_data_error,
    count_pages,
    list_tree,
    with_reader,
)
from segjax.data.pairs import Pair, match

MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".mat")

# A name of a folder without spaces, hyphens and underscores in small letters: "trainannot", "1stmanual", "imgdir".
_SPLITS = {"train": "train|training", "val": "val|valid|validation", "test": "test|testing"}
_SPLIT_WORDS = {word: split for split, words in _SPLITS.items() for word in words.split("|")}
_IMAGES = "images?|imgs?|photos?|pictures?|jpegimages|leftimg8bit|volume"
_MASKS = (
    "masks?|labels?|annotations?|annots?|ann|gts?|groundtruths?|gtfine|gtcoarse|targets?|segmentations?|segs?"
    "|segmentationclass|(1st|2nd)?manual[12]?|(1st|2nd)(ho|manual)"
)
_WORDS = "|".join(_SPLIT_WORDS)
_FOLDER_NAME = re.compile(
    rf"(?P<before>{_WORDS})?((?P<images>{_IMAGES})|(?P<masks>{_MASKS}))?(?P<after>{_WORDS})?(data)?(set|dir)?"
)

_CLASS_FILE = re.compile(
    r"(^|/)(class_dict|classes|label_colou?rs|labels|labelmap|colormap)\.(csv|txt)$", re.IGNORECASE
)

# Masks beside those of the classes, by "FOLDER/STEM"; they are left out where others are left.
_SECOND = re.compile(r"2nd[ _-]?(ho|manual)|manual[ _-]?2", re.IGNORECASE)
_NO_CLASSES = re.compile(r"[ _-](colou?rs?|instance(Train)?Ids|overlay|vi[sz])$", re.IGNORECASE)
_FIELD_OF_VIEW = re.compile(r"^masks?/", re.IGNORECASE)  # beside a folder with "manual" in its name, as in DRIVE


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


class Layout(NamedTuple):
    """The images and masks of a folder, as `find_layout` found them; their pixels were not read."""

    description: str  # for the user: "train: 20 of train/images/{stem}.png with train/masks/{stem}.png; …"
    splits: dict[str, list[Pair]]  # "train" and "val", and "test" if it has masks
    unlabelled: dict[str, list[RawFile]]  # images of the splits without masks
    ignored: dict[str, list[str]]  # paths below the root by the reason for which they are not read
    class_file: Path | None = None  # file of class names with their colours or ids, for `labels.read_class_file`

    def notes(self, shown: int = 3) -> list[str]:
        """Returns lines for the user: the layout, and the number and the first files left out for each reason."""
        lines = [f"layout: {self.description}"]
        for reason, paths in self.ignored.items():
            lines.append(f"left out {len(paths)}, {reason}: {', '.join(paths[:shown])}{', …' * (len(paths) > shown)}")
        return lines


class _File(NamedTuple):
    """A path below the root, parsed into its split, its role and the name that pairs it."""

    path: str
    split: str | None
    role: str | None  # "images", "masks" or None
    folder: str  # up to that of the role, "training/1st_manual", or else the file's own
    name: str  # path without the folders of split and role, and without suffix

    @property
    def last_names(self) -> str:
        """Folder of the role and stem, "1st_manual/21_manual1"."""
        return f"{PurePosixPath(self.folder).name}/{PurePosixPath(self.path).stem}"


def find_layout(root: Path, options: FolderOptions = DEFAULT_OPTIONS) -> Layout:
    """Finds the images, masks and splits of a folder by their names; of pixels it reads none.

    Folders of images are named `images`, `imgs`, `JPEGImages`, `leftImg8bit`, …, those of masks `masks`, `labels`,
    `annotations`, `SegmentationClass`, `gt`, `1st_manual`, …. The folders `train`, `val` (`valid`, `validation`) and
    `test` are above or below them, or in one word, as in `trainannot`. An image and its mask have the same path below
    these folders, up to an ending that all masks share. Without folders of masks, masks are files beside the images,
    such as `a_mask.png`, or TIFF stacks, such as `train-labels.tif`. `options.images` and `options.masks` are patterns
    that replace this guess.

    Splits come from the folders, else from text files such as `ImageSets/Segmentation/train.txt`. Without "val", the
    images whose name, or group, has a SHA-256, read as a number in [0, 1), below `val_fraction` are "val". So adding,
    removing or skipping a file moves no other file. (An otherwise empty split gets the nearest image.)

    Raises: DataError for a layout that is ambiguous or unknown; the message gives the candidates and the field.
    """
    _check_options(options)
    files, ignored = list_tree(root, MASK_SUFFIXES, follow_links=options.follow_links)
    for path in ignored.get(LINKED_FOLDER, ()):
        if _parse(f"{path}x").role:
            expected = "expected a folder of files, or config.data.follow_links=True"
            raise DataError(f"{root / path}: a link to a folder, which is not followed; {expected}")
    images, masks = _select(list(files), options, ignored)
    lists = _find_lists(root, options, ignored, split_by_folders=any(each.split for each in images))
    if lists:
        images, masks = ([each._replace(split=None) for each in part] for part in (images, masks))
    if images and not masks:
        found = f"{len(images)} image(s), such as {images[0].path}, and no mask"
        expected = "expected masks in a folder such as masks, named as the images, or config.data.masks = '{stem}_mask'"
        if any(path.endswith((".json", ".xml")) for path in ignored.get(OTHER_FILE, ())):
            expected += "; segjax data masks converts annotations in JSON and XML files"
        raise DataError(f"{root}: {found}; {expected}")
    splits, unlabelled, words = {}, {}, []
    for split, part in _by_split(root, images, masks, ignored).items():
        named_images, named_masks, text = _join(root, split, *part, options)
        words.append(text)
        spelled = {name: image.name for name, image in named_images.items()}  # not in NFC, and it decides the split
        names = _read_lists(root, lists, named_images, ignored) if lists else {split: {*named_images, *named_masks}}
        for each, members in names.items():
            chosen = {name: files[image.path] for name, image in named_images.items() if name in members}
            labels = {name: files[mask.path] for name, mask in named_masks.items() if name in members}
            if chosen and not labels:
                unlabelled[each] = list(chosen.values())
                continue
            pairs = [pair._replace(name=spelled.get(pair.name, pair.name)) for pair in match(chosen, labels, str(root))]
            splits[each] = [page for pair in sorted(pairs, key=lambda pair: pair.name) for page in _pages(pair)]
    if lists:
        words.append(f"splits of {', '.join(lists.values())}")
    splits = _hold_out(root, splits, options, words)
    others = ignored.pop(OTHER_FILE, [])
    class_file = next((path for path in others if _CLASS_FILE.search(path)), None)
    if others := [path for path in others if path != class_file]:
        ignored[OTHER_FILE] = others
    return Layout("; ".join(words), splits, unlabelled, ignored, class_file and root / class_file)


def _check_options(options: FolderOptions) -> None:
    """Raises DataError for a value that no folder has a use for."""
    if not 0 < options.val_fraction < 1:
        raise DataError(f"config.data.val_fraction must lie in (0, 1); got {options.val_fraction}")
    if options.folds and not 0 <= options.fold < options.folds:
        valid = f"0 to {options.folds - 1}, as config.data.folds = {options.folds}"
        raise DataError(f"config.data.fold must be one of {valid}; got {options.fold}")
    if options.fold and not options.folds:
        raise DataError(f"config.data.fold = {options.fold} needs config.data.folds, the number of folds")
    if options.folds == 1:
        raise DataError("config.data.folds must be at least 2, or 0 for a single split; got 1")


def _parse(path: str, pattern: re.Pattern | None = None) -> _File | None:
    """Parses a path; returns None if it does not fit a pattern of `_compile`."""
    without_suffix = str(PurePosixPath(path).with_suffix(""))
    *folders, name = PurePosixPath(without_suffix).parts
    split = None
    if pattern is not None:
        found = pattern.fullmatch(without_suffix) or pattern.fullmatch(path)
        if not found:
            return None
        folders, name = PurePosixPath(found["above"] or "").parts, found["stem"]
        split = _SPLIT_WORDS.get((found.groupdict().get("split") or "").lower())
    role, where, others = None, str(PurePosixPath(path).parent), []
    for depth, folder in enumerate(folders, 1):  # the outermost counts: `images/labels/1.png` is an image
        its_split, its_role = _words_of(folder)
        if its_role and not role:
            role, where, split = its_role, "/".join(folders[:depth]), split or its_split
        elif its_split and not split:
            split = its_split
        else:
            others.append(folder)
    return _File(path, split, role, where, "/".join([*others, name]))


def _words_of(name: str) -> tuple[str | None, str | None]:
    """Returns the split and the role in the name of a folder.

    >>> _words_of("trainannot"), _words_of("JPEGImages"), _words_of("valid"), _words_of("day 1")
    (('train', 'masks'), (None, 'images'), ('val', None), (None, None))
    """
    found = _FOLDER_NAME.fullmatch(re.sub("[ _-]", "", name).lower())
    if not found or (found["before"] and found["after"]):
        return None, None
    role = "images" if found["images"] else "masks" if found["masks"] else None
    return _SPLIT_WORDS.get(found["before"] or found["after"]), role


def _compile(text: str, field: str, key: str = "stem") -> re.Pattern | None:
    """Compiles a pattern for the end of a path, from the start of a name on; None for ""."""
    if not text:
        return None
    names = re.findall(r"\{(.*?)\}", text)
    if names.count(key) != 1 or not set(names) <= {key, "split"} or names.count("split") > 1:
        example = "{stem}_mask" if key == "stem" else "{group}_*"
        raise DataError(f"config.data.{field}: expected a pattern with {{{key}}} once, as {example!r}; got {text!r}")
    special = {f"{{{key}}}": f"(?P<{key}>[^/]+?)", "{split}": f"(?P<split>(?i:{_WORDS}))", "*": "[^/]*"}
    pieces = re.split(r"(\{\w+\}|\*)", text.strip("/"))
    return re.compile("(?:(?P<above>.*)/)?" + "".join(special.get(piece, re.escape(piece)) for piece in pieces))


def _select(paths: list[str], options: FolderOptions, ignored: dict[str, list[str]]) -> tuple[list[_File], list[_File]]:
    """Returns the images and the masks among the paths, and adds the others to `ignored`."""
    patterns = _compile(options.images, "images"), _compile(options.masks, "masks")
    images, masks = ([each for path in paths if (each := _parse(path, pattern))] for pattern in patterns)
    if not any(patterns) and not any(each.role for each in images):
        images = masks = [_named_by_role(each) for each in images]
    in_folders = [each for each in masks if each.role == "masks"]
    if "/" not in options.masks and in_folders:
        masks = in_folders
    elif not options.masks:
        masks = _beside(images)
    images = [each for each in images if each.path.lower().endswith(IMAGE_SUFFIXES)]
    if "/" not in options.images:
        images = [each for each in images if each.role != "masks"]
    taken = {each.path for each in masks}
    images = [each for each in images if each.path not in taken]
    if not options.masks:
        way_out = "config.data.masks selects them"
        exact = {each.name for each in images}
        masks = _without(_SECOND, masks, exact, f"masks of a second annotator; {way_out}", ignored)
        masks = _without(_NO_CLASSES, masks, exact, f"colours or instances of masks; {way_out}", ignored)
        if any("manual" in each.folder.lower() for each in masks):
            reason = f"masks of the field of view beside 'manual'; {way_out}"
            masks = _without(_FIELD_OF_VIEW, masks, set(), reason, ignored)
        masks = _prefer("masks", masks, f"other folders of masks than 'masks'; {way_out}", ignored)
    if "/" not in options.images:
        in_images = {each.split for each in images if each.role}
        images = [each for each in images if each.role or not in_images or each.split not in {None, *in_images}]
        reason = "other folders of images than 'images'; config.data.images selects them"
        images = _prefer("images", images, reason, ignored)
    if options.masks and not in_folders:  # `a_other.png` beside `a.png` and its `a_mask.png`
        labelled, shared = {each.name for each in masks}, {PurePosixPath(each.path).parent for each in masks}
        beside = {each for each in images if PurePosixPath(each.path).parent in shared}
        beside = {each for each in beside if _ending(each.name, labelled)}
        images = [each for each in images if each not in beside]
        if beside:
            ignored["beside images and masks; config.data.masks excludes them"] = sorted(each.path for each in beside)
    named = {path for paths in ignored.values() for path in paths} | {each.path for each in images + masks}
    if others := [path for path in paths if path not in named]:
        ignored["neither an image nor a mask by folder and pattern"] = others
    return images, masks


def _named_by_role(each: _File) -> _File:
    """Gives a file the role of its own name, as `train-volume.tif` has one, and its folder's name for pairing."""
    path = PurePosixPath(each.path)
    split, role = _words_of(path.stem)
    if role is None:
        return each
    above = str(PurePosixPath(each.name).parent)
    return each._replace(split=each.split or split, role=role, name="image" if above == "." else above)


def _beside(images: list[_File]) -> list[_File]:
    """Returns the masks beside images: `a_mask.png` of `a.png` by a word for masks, or else `a.png` of `a.jpg`."""
    names: dict[str | None, set[str]] = {}
    for each in images:
        names.setdefault(each.split, set()).add(each.name)
    ends = [(each, _ending(each.name, names[each.split])) for each in images]
    masks = [each for each, end in ends if end and _words_of(end)[1] == "masks"]
    jpegs = {(each.split, each.name) for each in images if each.path.lower().endswith((".jpg", ".jpeg"))}
    pngs = [each for each in images if each.path.lower().endswith(".png")]
    same = len(images) == 2 * len(pngs) and {(each.split, each.name) for each in pngs} == jpegs
    return masks or (pngs if same else [])


def _ending(name: str, names: set[str]) -> str:
    """Returns what follows the longest of `names` that begins `name`, from a separator on: "_mask"; else "".

    >>> _ending("a/1_2_mask", {"a/1", "a/1_2"}), _ending("12", {"1"}), _ending("1_2", {"1"})
    ('_mask', '', '')
    """
    # A number is not an ending, so that 1_2.png is not taken for a mask of 1.png.
    cuts = [i for i in range(len(name) - 1, name.rfind("/") + 1, -1) if name[i] in "_-. "]
    return next((name[i:] for i in cuts if name[:i] in names and re.search(r"[^\W\d_]", name[i:])), "")


def _without(
    pattern: re.Pattern, masks: list[_File], exact: set[str], reason: str, ignored: dict[str, list[str]]
) -> list[_File]:
    """Returns the masks of an `exact` name or a "FOLDER/STEM" without the pattern, if any; the others are ignored."""
    left = [each for each in masks if each.name in exact or not pattern.search(each.last_names)]
    if not left or len(left) == len(masks):
        return masks
    ignored[reason] = sorted({each.path for each in masks} - {each.path for each in left})
    return left


def _prefer(name: str, files: list[_File], reason: str, ignored: dict[str, list[str]]) -> list[_File]:
    """Returns the files without those in other folders of a split that has a folder `name`, which are ignored."""
    preferred = {each.split for each in files if PurePosixPath(each.folder).name == name}
    left = [each for each in files if each.split not in preferred or PurePosixPath(each.folder).name == name]
    if len(left) < len(files):
        ignored[reason] = sorted({each.path for each in files} - {each.path for each in left})
    return left


def _by_split(
    root: Path, images: list[_File], masks: list[_File], ignored: dict[str, list[str]]
) -> dict[str, tuple[list[_File], list[_File]]]:
    """Returns the images and the masks of "train", and of "val" and "test" where they have any."""
    found = {each.split for each in images + masks}
    parts = {
        split: tuple([each for each in part if each.split == split] for part in (images, masks))
        for split in [*_SPLITS, None]
        if split in found
    }
    outside = parts.pop(None, ([], []))
    if "train" in parts:
        if all(outside) and "val" not in parts:
            folder = root / outside[0][0].path
            raise DataError(
                f"{folder}: images beside the folder 'train'; rename their folder to 'val', or move it away"
            )
        if any(outside):
            ignored["outside the folders of the splits"] = [each.path for part in outside for each in part]
        return parts
    return parts if parts and not any(outside) else {"train": outside} | parts


def _join(
    root: Path, split: str, images: list[_File], masks: list[_File], options: FolderOptions
) -> tuple[dict[str, _File], dict[str, _File], str]:
    """Returns the images and the masks of a split by the names that pair them, and their pattern in words."""
    by_image, by_mask = (_named(root, files, field) for files, field in ((images, "images"), (masks, "masks")))
    image_end = mask_end = ""
    if by_image and by_mask and not by_image.keys() & by_mask.keys():
        image_end, mask_end = _endings(root, split, by_image, by_mask, options)
        by_image = {
            _strip(name, image_end): each._replace(name=_strip(name, image_end)) for name, each in by_image.items()
        }
        by_mask = {_strip(name, mask_end): each for name, each in by_mask.items()}
    pattern = f"{split}: {_describe(images, image_end)}"
    return by_image, by_mask, f"{pattern} with {_describe(masks, mask_end)}" if masks else f"{pattern} without masks"


def _strip(name: str, end: str) -> str:
    return name.removesuffix(end) if end else name


def _named(root: Path, files: list[_File], field: str) -> dict[str, _File]:
    """Returns the files by their names in NFC; raises DataError for two of one name."""
    named: dict[str, _File] = {}
    for each in files:
        other = named.setdefault(unicodedata.normalize("NFC", each.name), each)
        if other is each:
            continue
        if other.folder != each.folder:
            choice = f"choose with config.data.{field} = '{other.folder}/{{stem}}' or '{each.folder}/{{stem}}'"
            raise DataError(f"{root}: {other.path} and {each.path} are {field} of one name; {choice}")
        clash = f"another file has the same stem, {root / other.path}"
        remedy = (
            f"rename or remove one, or choose with config.data.{field} = '{{stem}}{PurePosixPath(each.path).suffix}'"
        )
        raise DataError(f"{root / each.path}: {clash}; expected one file named {each.name!r}: {remedy}")
    return named


def _endings(
    root: Path, split: str, images: dict[str, _File], masks: dict[str, _File], options: FolderOptions
) -> tuple[str, str]:
    """Returns what follows the common part in the names of all images, and in those of the masks; raises DataError."""
    first = next(iter(images))
    parts = [first[i:] for i in range(first.rfind("/") + 2, len(first)) if first[i] in "_-. "]
    shared = [end for end in parts if re.search(r"[^\W\d_]", end) and all(name.endswith(end) for name in images)]
    found = {}
    for image_end in ["", *shared[::-1] * (not options.images)]:  # at a tie, the shortest
        stems = {_strip(name, image_end) for name in images}
        if len(stems) == len(images):
            ends = [("" if name in stems else _ending(name, stems), name) for name in masks]
            found[image_end] = Counter(end for end, name in ends if end or name in stems)
    image_end = max(found, key=lambda end: found[end].total())
    mask_ends = found[image_end]
    if len(mask_ends) == 1 and not (options.masks and "" not in mask_ends):
        return image_end, next(iter(mask_ends))
    image, mask = next(iter(images.values())).path, next(iter(masks.values())).path
    if mask_ends:
        ends = " or ".join(f"'{{stem}}{end}' ({count} files)" for end, count in sorted(mask_ends.items()))
        raise DataError(f"{root}: {split} has masks of several endings; choose with config.data.masks = {ends}")
    raise DataError(
        f"{root}: no image of {split} has a mask, for example {image} and {mask}; give the patterns config.data.images "
        f"and config.data.masks, such as 'img_{{stem}}' and 'mask_{{stem}}', where {{stem}} is what the two share"
    )


def _describe(files: list[_File], end: str) -> str:
    """Returns the commonest pattern of the files: "training/images/{stem}_training.tif"."""
    if not files:
        return "no file"
    paths = [PurePosixPath(each.path) for each in files]
    patterns = Counter(str(path.parent / f"{{stem}}{end}{path.suffix}") for path in paths).most_common()
    return f"{patterns[0][0]} and {len(patterns) - 1} like it" if len(patterns) > 1 else patterns[0][0]


def _find_lists(
    root: Path, options: FolderOptions, ignored: dict[str, list[str]], *, split_by_folders: bool
) -> dict[str, str]:
    """Returns the path below the root of the text file of each split; {} without such files."""
    others = ignored.get(OTHER_FILE, [])
    lists = [PurePosixPath(path) for path in others if path.endswith(".txt")]
    lists = [path for path in lists if path.stem.lower() in _SPLIT_WORDS]
    if options.split_files == "none" or (not options.split_files and split_by_folders):
        return {}
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
    found: dict[str, str] = {}
    for path in (path for path in lists if str(path.parent) == folder):
        split = _SPLIT_WORDS[path.stem.lower()]
        if split in found:
            raise DataError(f"{root}: {found[split]} and {path} are lists of one split; remove or rename one")
        found[split] = str(path)
    if found and "train" not in found:
        expected = "expected train.txt too, or config.data.split_files=none"
        raise DataError(f"{root}: found the lists {', '.join(found.values())} only; {expected}")
    ignored[OTHER_FILE] = [path for path in others if path not in found.values()]
    if not ignored[OTHER_FILE]:
        ignored.pop(OTHER_FILE)
    return {split: found[split] for split in _SPLITS if split in found}


def _read_lists(
    root: Path, lists: dict[str, str], images: dict[str, _File], ignored: dict[str, list[str]]
) -> dict[str, set[str]]:
    """Returns the names that the text file of each split lists, one image per line by name or path."""
    known: dict[str, set[str]] = {}
    for name, each in images.items():
        path = unicodedata.normalize("NFC", each.path)
        for whole in (path, str(PurePosixPath(path).with_suffix("")), name):
            parts = whole.split("/")
            for start in range(len(parts)):
                known.setdefault("/".join(parts[start:]), set()).add(name)
    names, split_of = {split: set() for split in lists}, {}
    for split, path in lists.items():
        with as_data_error(f"{root / path}: cannot be read"):
            lines = (root / path).read_text(encoding="utf-8-sig").splitlines()
        for number, line in enumerate(lines, 1):
            whole = unicodedata.normalize("NFC", line).replace("\\", "/").strip()
            if not whole:
                continue
            where = f"{root / path}, line {number}: {line.strip()!r}"
            found = next(
                (known[end] for text in (whole, re.split(r"[\s,;]", whole)[0]) for end in _ends(text) if end in known),
                (),
            )
            if len(found) != 1:
                what = f"is the name of {len(found)} images" if found else "is not an image of this folder"
                raise DataError(f"{where} {what}; mend it, or ignore these lists with config.data.split_files=none")
            (name,) = found
            if split_of.setdefault(name, split) != split:
                raise DataError(f"{where} is in {lists[split_of[name]]} too; an image belongs to one split")
            names[split].add(name)
    if unlisted := [each.path for name, each in images.items() if name not in split_of]:
        ignored["not in a list of a split"] = unlisted
    return names


def _ends(path: str) -> list[str]:
    """Returns a path, and what is left of it without its first folders."""
    parts = PurePosixPath(path.lstrip("/")).parts
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _pages(pair: Pair) -> list[Pair]:
    """Returns the pair, or one pair per page of TIFF stacks."""
    image, mask = (count_pages(file) for file in (pair.image, pair.mask))
    if image == mask == 1:
        return [pair]
    if image != mask:
        problem = f"{pair.mask.path}: {mask} page(s) for an image of {image} ({pair.image.path}); expected as many"
        return [pair._replace(mask=pair.mask._replace(problem=pair.mask.problem or problem))]
    digits = len(str(image - 1))
    return [
        Pair(
            f"{pair.name}/{page:0{digits}}",
            *(with_reader(file._replace(page=page)) for file in (pair.image, pair.mask)),
        )
        for page in range(image)
    ]


def _hold_out(
    root: Path, splits: dict[str, list[Pair]], options: FolderOptions, words: list[str]
) -> dict[str, list[Pair]]:
    """Returns the splits with a "val" held out of "train" if it is missing, or for `folds`; adds this to `words`."""
    groups = _groups(root, splits, options)
    if "train" not in splits or ("val" in splits and not options.folds):
        return splits
    pairs = sorted(splits["train"] + splits.get("val", []), key=lambda pair: pair.name)
    for name, count in Counter(pair.name for pair in pairs).items():
        if count > 1:
            found = f"train and val both have an image {name!r}"
            raise DataError(f"config.data.folds needs images of different names; in {root}, {found}")
    sizes = Counter(groups[pair.name] for pair in pairs)
    what, least = "groups" if options.groups else "images", options.folds or 2
    if len(sizes) < least:
        aim = f"for {least} folds" if options.folds else "to split into train and val"
        raise DataError(f"{root}: expected at least {least} {what} {aim}; found {len(sizes)}")
    hashes = {group: _hash(group, options.split_seed) for group in sizes}
    ordered = sorted(hashes, key=hashes.get)
    if options.folds:
        held, filled = set(), [0] * options.folds
        for group in ordered:  # into the smallest fold
            fold = filled.index(min(filled))
            filled[fold] += sizes[group]
            held |= {group} if fold == options.fold else set()
        words.append(f"val is fold {options.fold} of the {options.folds} folds of {len(sizes)} {what}")
    else:
        count = sum(int.from_bytes(hashes[group], "big") < options.val_fraction * 2**48 for group in ordered)
        held = set(ordered[: min(max(count, 1), len(ordered) - 1)])
        words.append(f"val is {len(held)} of {len(sizes)} {what} of train, by the hash of their names")
    train, val = ([pair for pair in pairs if (groups[pair.name] in held) == kept] for kept in (False, True))
    return {"train": train, "val": val} | {split: splits[split] for split in splits if split == "test"}


def _groups(root: Path, splits: dict[str, list[Pair]], options: FolderOptions) -> dict[str, str]:
    """Returns the group of each name, by default the name; raises DataError for a group in two splits."""
    if not options.groups:
        return {pair.name: pair.name for pairs in splits.values() for pair in pairs}
    pattern = _compile(options.groups, "groups", "group")
    groups: dict[str, str] = {}
    split_of: dict[str, str] = {}
    for split, name in ((split, pair.name) for split, pairs in splits.items() for pair in pairs):
        if not (found := pattern.fullmatch(name)):
            raise DataError(f"config.data.groups = {options.groups!r} does not fit the image {name!r} of {root}")
        groups[name], part = found["group"], "the folds" if options.folds and split != "test" else split
        if (other := split_of.setdefault(found["group"], part)) != part:
            raise DataError(f"{root}: the group {found['group']!r} of config.data.groups is in {other} and in {part}")
    return groups


def _hash(name: str, seed: int) -> bytes:
    """Returns 48 bits that depend on the name and, unless it is 0, on the seed."""
    text = f"{seed}/{name}" if seed else name
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:6]
