"""Layout of your own folder: its images and masks, found, paired and split by their names."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple, NoReturn

from segjax.data.io import (
    IMAGE_SUFFIXES,
    LINKED_FOLDER,
    OTHER_FILE,
    DataError,
    RawFile,
    composed,
    count_pages,
    list_tree,
    with_reader,
)
from segjax.data.pairs import Pair, match
from segjax.data.splits import (
    DEFAULT_OPTIONS,
    SPLIT_WORDS,
    SPLITS,
    FolderOptions,
    check_options,
    compile_pattern,
    find_lists,
    hold_out,
    read_lists,
    words_of,
)

MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".mat")

_CLASS_FILE = re.compile(
    r"(^|/)(class_dict|classes|label_colou?rs|labels|labelmap|colormap)\.(csv|txt)$", re.IGNORECASE
)

# Masks beside those of the classes, by "FOLDER/STEM"; they are left out where others are left.
_SECOND = re.compile(r"2nd[ _-]?(ho|manual)|manual[ _-]?2", re.IGNORECASE)
_NO_CLASSES = re.compile(r"[ _-](colou?rs?|instance(Train)?Ids|overlay|vi[sz])$", re.IGNORECASE)
_FIELD_OF_VIEW = re.compile(r"^masks?/", re.IGNORECASE)  # beside a folder with "manual" in its name, as in DRIVE


class Layout(NamedTuple):
    """The images and masks of a folder, as `find_layout` found them; their pixels were not read."""

    description: str  # for the user: "train: train/images/{stem}.png with train/masks/{stem}.png; …"
    splits: dict[str, list[Pair]]  # "train" and "val", and "test" if it has masks
    without_masks: dict[str, list[RawFile]]  # images of each split that has no mask at all
    ignored: dict[str, list[str]]  # paths below the root by the reason for which they are not read
    class_file: Path | None = None  # file of class names with their colours or ids, for `labels.read_class_file`

    def notes(self, examples: int = 3) -> list[str]:
        """Returns lines for the user: the layout, and the number and the first paths left out for each reason."""
        lines = [f"layout: {self.description}"]
        for reason, paths in self.ignored.items():
            count = f"{len(paths)} path{'s' * (len(paths) > 1)}"
            lines.append(f"left out {count} ({reason}): {', '.join(paths[:examples])}{', …' * (len(paths) > examples)}")
        return lines


class _File(NamedTuple):
    """A path below the root, parsed into its split, its role and the name that pairs it."""

    path: str
    split: str | None
    role: str | None  # "images", "masks" or None
    folder: str  # up to that of the role, "training/1st_manual", or else the file's own
    name: str  # path without the folders of split and role, and without suffix

    @property
    def folder_name(self) -> str:
        """Last part of `folder`, "1st_manual"."""
        return PurePosixPath(self.folder).name

    @property
    def last_names(self) -> str:
        """Folder of the role and stem, "1st_manual/21_manual1"."""
        return f"{self.folder_name}/{PurePosixPath(self.path).stem}"


def find_layout(root: Path, options: FolderOptions = DEFAULT_OPTIONS) -> Layout:
    """Finds the images, masks and splits of a folder by their names, without reading pixels.

    Folders of images are named `images`, `imgs`, `JPEGImages`, `leftImg8bit`, …, those of masks `masks`, `labels`,
    `annotations`, `SegmentationClass`, `gt`, `1st_manual`, …. The folders `train`, `val` (`valid`, `validation`) and
    `test` are above or below them, or in one word, as in `trainannot`. An image and its mask have the same path below
    these folders, up to an ending or a beginning that all images, or all masks, share. Without folders of masks, masks
    are files beside the images, such as `a_mask.png`, or TIFF stacks, such as `train-labels.tif`. `options.images` and
    `options.masks` are patterns that replace this guess.

    Splits come from the folders, else from text files such as `ImageSets/Segmentation/train.txt`. Without "val", the
    images whose name, or group, has a SHA-256, read as a number in [0, 1), below `val_fraction` are "val". So adding,
    removing or skipping a file moves no other file. (An otherwise empty split gets the nearest image.)

    Raises: DataError if the layout is ambiguous or unknown; the message gives the candidates and the field.
    """
    check_options(options)
    files, skipped = list_tree(root, MASK_SUFFIXES, follow_links=options.follow_links)
    other_files = skipped.pop(OTHER_FILE, [])
    for path in skipped.get(LINKED_FOLDER, ()):
        if _parse(f"{path}x").role:
            expected = "expected a folder of files, or config.data.follow_links=True"
            raise DataError(f"{root / path}: a link to a folder, which is not followed; {expected}")
    images, masks, unselected = _select(list(files), options)
    lists = find_lists(root, other_files, options, split_by_folders=any(each.split for each in images))
    if lists:
        images, masks = ([each._replace(split=None) for each in part] for part in (images, masks))
    if not masks:
        others = {each.name: each for path in chain.from_iterable(unselected.values()) if (each := _parse(path))}
        names = {each.name for each in images}
        _refuse_without_masks(root, images, _way_to_overlap(root, names, others, options))

    splits: dict[str, list[Pair]] = {}
    without_masks: dict[str, list[RawFile]] = {}
    descriptions: list[str] = []
    unlisted: list[str] = []
    by_folders, outside = _by_split(root, images, masks)
    for folder_split, (images, masks) in by_folders.items():
        image_of, mask_of, description = _join(root, folder_split, images, masks, options)
        descriptions.append(description)
        names_of = {folder_split: {*image_of, *mask_of}}
        if lists:
            names_of, unlisted = read_lists(root, lists, {name: each.path for name, each in image_of.items()})
        for split, names in names_of.items():
            split_images = {name: image for name, image in image_of.items() if name in names}
            split_masks = {name: mask for name, mask in mask_of.items() if name in names}
            if split_images and not split_masks:
                without_masks[split] = [files[image.path] for image in split_images.values()]
            else:
                splits[split] = _pair(root, split_images, split_masks, files)
    if lists:
        descriptions.append(f"splits of {', '.join(lists.values())}")
    splits, description = hold_out(root, splits, options)

    class_file = next((path for path in other_files if _CLASS_FILE.search(path)), None)
    ignored = skipped | unselected
    ignored["outside the folders of the splits"] = outside
    ignored["not in a list of a split"] = unlisted
    ignored[OTHER_FILE] = [path for path in other_files if path not in (class_file, *lists.values())]
    return Layout(
        "; ".join(filter(None, [*descriptions, description])),
        splits,
        without_masks,
        {reason: paths for reason, paths in ignored.items() if paths},
        class_file and root / class_file,
    )


def _refuse_without_masks(root: Path, images: list[_File], per_class: str) -> NoReturn:
    from segjax.data.annotations import conversion  # not for training

    found = f"{len(images)} image(s), such as {images[0].path}," if images else "no image"
    if command := conversion(root):
        raise DataError(f"{root}: {found} and no mask, but annotations; convert them with: {command}")
    expected = "put masks with the names of the images into a folder 'masks', or set config.data.masks = '{stem}_mask'"
    raise DataError(f"{root}: {found} and no mask; {expected}{per_class}")


def _way_to_overlap(root: Path, images: Collection[str], masks: dict[str, _File], options: FolderOptions) -> str:
    """Returns the way out for one mask per class and image, as "masks/rust/1.png"; "" for other masks."""
    folders = {each.folder_name for each in masks.values() if each.role}
    found = None if options.masks or len(folders) > 1 else _find_pattern(images, masks)
    if found is None:
        return ""
    return (
        "; if there is one mask per class, set config.data.multilabel=True: segjax train --config=folder_multilabel "
        f"--config.data.class_names=\"{found[1]}\" --config.data.masks='{'/'.join([*folders, found[0]])}' "
        f"--config.data.manual_dir='{root}'"
    )


def _find_pattern(images: Collection[str], masks: Collection[str]) -> tuple[str, tuple[str, ...]] | None:
    """Returns the pattern of the names of masks that have a class beside the name of an image, and the classes.

    It is None if not all masks have one pattern, or only one class.

    >>> _find_pattern(["1", "2"], ["rust/1", "rust/2", "crack/1", "crack/2"])
    ('{class}/{stem}', ('crack', 'rust'))
    >>> _find_pattern(["1"], ["1_rust", "1_crack"])
    ('{stem}_{class}', ('crack', 'rust'))
    """
    found: dict[str, list[str]] = {}
    for name in masks:
        for pattern, word in _with_class(name, images):
            found.setdefault(pattern, []).append(word)
    pattern = max(found, key=lambda pattern: len(found[pattern]), default="")
    words = found.get(pattern, [])
    if len(words) < len(masks) or len(set(words)) < 2 or any(words_of(word)[1] for word in words):
        return None
    return pattern, tuple(sorted(set(words)))


def _with_class(name: str, stems: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yields the patterns in which the name of a mask is a stem and a class, each with the class.

    >>> list(_with_class("rust/1_mask", ["1"]))
    [('{class}/{stem}_mask', 'rust')]
    """
    (first, _, rest), (folder, _, last) = name.partition("/"), name.rpartition("/")
    if rest in stems:
        yield "{class}/{stem}", first
    if folder in stems:
        yield "{stem}/{class}", last
    for affix in _affixes_of(name):
        text, (first, _, rest) = affix.before + affix.after, (affix.stem(name) or "").partition("/")
        word = text.strip("_-. ")
        if affix.stem(name) in stems:
            yield affix.pattern.replace(text, text.replace(word, "{class}")), word
        elif rest in stems:
            yield f"{{class}}/{affix.pattern}", first


def _parse(path: str, pattern: re.Pattern | None = None) -> _File | None:
    """Parses a path; returns None if it does not fit a pattern of `compile_pattern`."""
    without_suffix = str(PurePosixPath(path).with_suffix(""))
    *folders, name = PurePosixPath(without_suffix).parts
    split = None
    if pattern is not None:
        fit = pattern.fullmatch(without_suffix) or pattern.fullmatch(path)
        if not fit:
            return None
        folders, name = PurePosixPath(fit["above"] or "").parts, fit["stem"]
        split = SPLIT_WORDS.get((fit.groupdict().get("split") or "").lower())
    role, where, others = None, str(PurePosixPath(path).parent), []
    for depth, folder in enumerate(folders, 1):  # the outermost counts: `images/labels/1.png` is an image
        its_split, its_role = words_of(folder)
        if its_role and not role:
            role, where, split = its_role, "/".join(folders[:depth]), split or its_split
        elif its_split and not split:
            split = its_split
        else:
            others.append(folder)
    return _File(path, split, role, where, "/".join([*others, name]))


def _select(paths: list[str], options: FolderOptions) -> tuple[list[_File], list[_File], dict[str, list[str]]]:
    """Returns the images, the masks, and the paths of all other files by the reason for which they are ignored."""
    images = _fitting(paths, options.images, "images")
    if options.images or options.masks or any(each.role for each in images):
        masks = _fitting(paths, options.masks, "masks")
    else:
        images = masks = [_named_by_role(each) for each in images]
    in_folders = any(each.role == "masks" for each in masks)
    masks = _masks_among(masks, images, options.masks)
    images = _images_among(images, masks, options.images)

    ignored: dict[str, list[str]] = {}
    if not options.masks:
        masks, second_masks = _main_masks(masks, {each.name for each in images})
        ignored |= second_masks
    if "/" not in options.images:
        images, second_images = _main_images(images)
        ignored |= second_images
    if options.masks and not in_folders:
        images, variants = _without(images, _variants_of_masks(images, masks))
        ignored["beside images and masks; config.data.masks does not select them"] = variants
    used = {each.path for each in images + masks}.union(*ignored.values())
    ignored["not an image or a mask by folder and name"] = [path for path in paths if path not in used]
    return images, masks, ignored


def _fitting(paths: list[str], pattern: str, field: str) -> list[_File]:
    """Returns the files that fit a pattern of the config, or all files without one."""
    compiled = compile_pattern(pattern, field)
    return [each for path in paths if (each := _parse(path, compiled))]


def _masks_among(candidates: list[_File], images: list[_File], pattern: str) -> list[_File]:
    """Returns the masks among the files that fit the pattern of masks.

    They are all files that fit a pattern with a folder, "2nd_manual/{stem}". Otherwise they are the files in folders of
    masks; if there is no such folder, the files that fit the pattern, or without one those of `_masks_beside`.
    """
    in_folders = [each for each in candidates if each.role == "masks"]
    if "/" in pattern:
        return candidates
    if in_folders:
        return in_folders
    return candidates if pattern else _masks_beside(images)


def _images_among(candidates: list[_File], masks: list[_File], pattern: str) -> list[_File]:
    """Returns the images among the files that fit the pattern of images.

    Files in folders of masks are images only if the pattern contains a folder.
    """
    mask_paths = {each.path for each in masks}
    images = [each for each in candidates if each.path not in mask_paths and each.path.lower().endswith(IMAGE_SUFFIXES)]
    return images if "/" in pattern else [each for each in images if each.role != "masks"]


def _without(files: list[_File], others: set[_File]) -> tuple[list[_File], list[str]]:
    """Returns the files that are not among `others`, and the paths of `others`; all files if none would be left."""
    rest = [each for each in files if each not in others]
    return (rest, sorted(each.path for each in others)) if rest else (files, [])


def _main_masks(masks: list[_File], image_names: set[str]) -> tuple[list[_File], dict[str, list[str]]]:
    """Returns the masks of the classes, and the paths of other masks of the same images by their reason.

    Names of folders and files decide. A mask that has the name of an image is a mask of the classes, even if the name
    ends in a word such as "color".
    """
    named_as_image = {each for each in masks if each.name in image_names}
    others: dict[str, list[str]] = {}
    second = {each for each in masks if _SECOND.search(each.last_names)} - named_as_image
    masks, others["masks of a second annotator"] = _without(masks, second)
    colours = {each for each in masks if _NO_CLASSES.search(each.last_names)} - named_as_image
    masks, others["colours or instances of masks"] = _without(masks, colours)
    has_manual = any("manual" in each.folder.lower() for each in masks)
    fields_of_view = {each for each in masks if has_manual and _FIELD_OF_VIEW.search(each.last_names)}
    masks, others["masks of the field of view beside 'manual'"] = _without(masks, fields_of_view)
    masks, others["other folders of masks than 'masks'"] = _without(masks, _in_other_folders(masks, "masks"))
    return masks, {f"{reason}; to use them, set config.data.masks": paths for reason, paths in others.items()}


def _main_images(images: list[_File]) -> tuple[list[_File], dict[str, list[str]]]:
    """Returns the images in the folder `images`, or else in a folder of images, of each split that has one.

    The result includes the paths of the images in other folders than `images`, by their reason.
    """
    splits = {each.split for each in images if each.role}
    if splits:
        images = [each for each in images if each.role or each.split not in {None, *splits}]
    images, others = _without(images, _in_other_folders(images, "images"))
    return images, {"other folders of images than 'images'; to use them, set config.data.images": others}


def _in_other_folders(files: list[_File], name: str) -> set[_File]:
    """Returns the files in other folders than `name`, of the splits that have a folder of this name."""
    splits = {each.split for each in files if each.folder_name == name}
    return {each for each in files if each.split in splits and each.folder_name != name}


def _variants_of_masks(images: list[_File], masks: list[_File]) -> set[_File]:
    """Returns the images beside masks whose name extends that of a mask, as `a_other.png` beside `a_mask.png`."""
    names, folders = {each.name for each in masks}, {PurePosixPath(each.path).parent for each in masks}
    beside = [each for each in images if PurePosixPath(each.path).parent in folders]
    return {each for each in beside if (affix := _affix_of(each.name, names)) and affix.after}


def _named_by_role(each: _File) -> _File:
    """Gives a file the role of its own name, as `train-volume.tif` has one, and its folder's name for pairing."""
    path = PurePosixPath(each.path)
    split, role = words_of(path.stem)
    if role is None:
        return each
    above = str(PurePosixPath(each.name).parent)
    return each._replace(split=each.split or split, role=role, name="image" if above == "." else above)


def _masks_beside(files: list[_File]) -> list[_File]:
    """Returns the masks beside images: `a_mask.png` or `mask_a.png` by a word for masks, or else `a.png` of `a.jpg`."""
    stems: dict[str | None, set[str]] = {}
    for each in files:
        its_images = [affix.stem(each.name) for affix in _affixes_of(each.name) if affix.role == "images"]
        stems.setdefault(each.split, set()).update([each.name, *its_images])
    affixes = [(each, _affix_of(each.name, stems[each.split])) for each in files]
    masks = [each for each, affix in affixes if affix and affix.role == "masks"]
    jpegs = {(each.split, each.name) for each in files if each.path.lower().endswith((".jpg", ".jpeg"))}
    pngs = [each for each in files if each.path.lower().endswith(".png")]
    in_pairs = len(files) == 2 * len(pngs) and {(each.split, each.name) for each in pngs} == jpegs
    return masks or (pngs if in_pairs else [])


class _Affix(NamedTuple):
    """Text before or after the stem that the names of an image and its mask share, as "mask_" or "_mask"."""

    before: str = ""
    after: str = ""

    @property
    def role(self) -> str | None:
        """Returns the role in the text, "images" or "masks"."""
        return words_of(self.before + self.after)[1]

    @property
    def pattern(self) -> str:
        """Returns the form of `config.data.masks`."""
        return f"{self.before}{{stem}}{self.after}"

    def stem(self, name: str, key: Callable[[str], str] = str) -> str | None:
        """Returns a name without the affix, "a/1" of "a/mask_1"; None if the name does not have it.

        `key` makes affixes comparable: with `str.casefold`, "a/MASK_1" has the affix "mask_" too.
        """
        start, before, after = name.rfind("/") + 1, len(self.before), len(self.after)
        own = name[start:]
        end = len(own) - after
        if end <= before or (key(own[:before]), key(own[end:])) != (key(self.before), key(self.after)):
            return None
        return name[:start] + own[before:end]


def _affixes_of(name: str) -> list[_Affix]:
    """Returns the ends of a name from each separator on, then its beginnings up to each; the shortest come first.

    >>> [affix.pattern for affix in _affixes_of("a/ulm_1_ids")]
    ['{stem}_ids', '{stem}_1_ids', 'ulm_{stem}', 'ulm_1_{stem}']
    """
    own = PurePosixPath(name).name
    separators = [i for i in range(1, len(own) - 1) if own[i] in "_-. "]
    found = [*(_Affix("", own[i:]) for i in reversed(separators)), *(_Affix(own[: i + 1]) for i in separators)]
    # A number is not an affix, so that 1_2.png is not taken for a mask of 1.png.
    return [affix for affix in found if re.search(r"[^\W\d_]", affix.before + affix.after)]


def _affix_of(name: str, stems: set[str], key: Callable[[str], str] = str) -> _Affix | None:
    """Returns the first of the `_affixes_of` without which the name is one of the stems.

    >>> _affix_of("a/1_2_mask", {"a/1", "a/1_2"}).after, _affix_of("img_1", {"1"}).before, _affix_of("1_2", {"1"})
    ('_mask', 'img_', None)
    """
    return next((affix for affix in _affixes_of(name) if key(affix.stem(name)) in stems), None)


def _by_split(
    root: Path, images: list[_File], masks: list[_File]
) -> tuple[dict[str, tuple[list[_File], list[_File]]], list[str]]:
    """Returns the images and the masks of "train", and of "val" and "test" where they have any.

    Files outside folders of splits are "train" if it has no folder; else their paths are returned too.
    """
    parts = {
        split: tuple([each for each in part if each.split == split] for part in (images, masks))
        for split in [*SPLITS, None]
    }
    outside_images, outside_masks = outside = parts.pop(None)
    parts = {split: part for split, part in parts.items() if any(part)}
    if "train" not in parts:
        return {"train": outside} | parts if any(outside) or not parts else parts, []
    if outside_images and outside_masks and "val" not in parts:
        way_out = f"move such pairs into {root / 'val'} to evaluate on them, or out of {root}"
        outside_train = "the image and its mask are outside the folder 'train'"
        raise DataError(f"{root / outside_images[0].path}: {outside_train}; {way_out}")
    return parts, [each.path for part in outside for each in part]


def _join(
    root: Path, split: str, images: list[_File], masks: list[_File], options: FolderOptions
) -> tuple[dict[str, _File], dict[str, _File], str]:
    """Returns the images and the masks of a split by the names that pair them, and their patterns for the user.

    Small and capital letters count only if some images, or some masks, differ in nothing else.
    """
    image_of, mask_of = _by_name(root, images, "images"), _by_name(root, masks, "masks")
    distinct = all(len({name.casefold() for name in part}) == len(part) for part in (image_of, mask_of))
    key = str.casefold if distinct else str
    image_affix = mask_affix = _Affix()
    if image_of and mask_of and not {*map(key, image_of)} & {*map(key, mask_of)}:
        image_affix, mask_affix = _find_affixes(root, split, image_of, mask_of, options, key)
        stems = {image_affix.stem(name, key) or name: each for name, each in image_of.items()}
        image_of = {stem: each._replace(name=stem) for stem, each in stems.items()}
    stem_of, pairs, other_case = {key(stem): stem for stem in image_of}, {}, 0
    for name, mask in mask_of.items():
        stem = mask_affix.stem(name, key) or name
        image_stem = stem_of.get(key(stem), stem)
        pairs[image_stem] = mask
        other_case += stem != image_stem
    mask_pattern = f"with {_common_pattern(masks, mask_affix, key)}" if masks else "without masks"
    description = f"{split}: {_common_pattern(images, image_affix, key)} {mask_pattern}"
    if other_case:
        description += f" ({other_case} of whose names differ from their images' in small and capital letters)"
    return image_of, pairs, description


def _by_name(root: Path, files: list[_File], field: str) -> dict[str, _File]:
    """Returns the files by their names in NFC.

    Raises: DataError if two files have one name.
    """
    by_name: dict[str, _File] = {}
    for each in files:
        other = by_name.setdefault(composed(each.name), each)
        if other is each:
            continue
        if other.folder != each.folder:
            choice = f"choose with config.data.{field} = '{other.folder}/{{stem}}' or '{each.folder}/{{stem}}'"
            raise DataError(f"{root}: {other.path} and {each.path} are {field} of one name; {choice}")
        if other.name != each.name:
            clash = "differ only in the form of their Unicode characters; remove one, or give it another name"
            raise DataError(f"{root}: the names of {other.path} and {each.path} {clash}")
        clash = f"another file has the same stem, {root / other.path}"
        suffix = PurePosixPath(each.path).suffix
        way_out = f"rename or remove one, or choose with config.data.{field} = '{{stem}}{suffix}'"
        raise DataError(f"{root / each.path}: {clash}; expected one file named {each.name!r}: {way_out}")
    return by_name


def _find_affixes(
    root: Path,
    split: str,
    images: dict[str, _File],
    masks: dict[str, _File],
    options: FolderOptions,
    key: Callable[[str], str],
) -> tuple[_Affix, _Affix]:
    """Returns the affix of all image names and that of all mask names, beside the stem that both share.

    Images have no affix, or one that most of their names have. The one that gives the most masks a stem is chosen, the
    first of several. A pattern in `options` contains the affix of its files, so that here it is empty. `key` makes
    stems and affixes comparable.

    Raises: DataError if no mask has a stem, or if the masks have several affixes.
    """
    image_affixes = [_Affix(), *([] if options.images else _shared_affixes(images, key))]
    counts = {
        affix: _count_affixes(masks, {key(affix.stem(name, key) or name) for name in images}, key)
        for affix in image_affixes
    }
    image_affix = max(image_affixes, key=lambda affix: counts[affix].total())
    mask_affixes, per_class = counts[image_affix], _way_to_overlap(root, images, masks, options)
    if list(mask_affixes) == [_Affix()] or (len(mask_affixes) == 1 and not options.masks):
        return image_affix, next(iter(mask_affixes))
    if mask_affixes:
        number = "several patterns" if len(mask_affixes) > 1 else "another pattern"
        choice = " or ".join(f"'{affix.pattern}' ({count} files)" for affix, count in sorted(mask_affixes.items()))
        raise DataError(f"{root}: {split} has masks of {number}; choose with config.data.masks = {choice}{per_class}")
    example = f"{next(iter(images.values())).path} and {next(iter(masks.values())).path}"
    if per_class:
        raise DataError(f"{root}: no image of {split} has one mask of all classes, for example {example}{per_class}")
    image_pattern, image_stems = _common_affix(images)
    mask_pattern, mask_stems = _common_affix(masks)
    if image_stems & mask_stems:
        patterns = {"images": image_pattern, "masks": mask_pattern}
        fields = [f"config.data.{name} = '{each}'" for name, each in patterns.items() if each != "{stem}"]
        way_out = f"set {' and '.join(fields)}"
    else:
        way_out = (
            "give the patterns config.data.images and config.data.masks, such as 'img_{stem}' and 'mask_{stem}', "
            "where {stem} is what the two share"
        )
    raise DataError(f"{root}: no image of {split} has a mask, for example {example}; {way_out}")


def _common_affix(names: Collection[str]) -> tuple[str, set[str]]:
    """Returns the pattern of what all names begin and end with, and the rest of each name; a number is not divided.

    >>> pattern, stems = _common_affix(["rgb/img1", "rgb/img10"])
    >>> pattern, sorted(stems)
    ('rgb/img{stem}', ['1', '10'])
    """
    common_start = os.path.commonprefix
    before = common_start(list(names)).rstrip("0123456789")
    rest = [name.removeprefix(before) for name in names]
    after = common_start([name[::-1] for name in rest])[::-1].lstrip("0123456789")
    return f"{before}{{stem}}{after}", {name.removesuffix(after) for name in rest} - {""}


def _shared_affixes(names: Iterable[str], key: Callable[[str], str] = str) -> list[_Affix]:
    """Returns the affixes that more than half of the names have, and without which no two names are equal.

    >>> [affix.pattern for affix in _shared_affixes(["img_a_0_left", "img_b_1_left", "overview"])]
    ['{stem}_left', 'img_{stem}']
    """
    names = list(names)
    counts = _count_by_key((affix for name in names for affix in _affixes_of(name)), key)
    frequent = [affix for affix, count in counts.items() if 2 * count > len(names)]
    return [affix for affix in frequent if len({key(affix.stem(name, key) or name) for name in names}) == len(names)]


def _count_affixes(names: Iterable[str], stems: set[str], key: Callable[[str], str]) -> Counter[_Affix]:
    """Returns how many of the names have each affix beside a stem; the empty one counts those that are a stem."""
    found = (_Affix() if key(name) in stems else _affix_of(name, stems, key) for name in names)
    return _count_by_key((affix for affix in found if affix is not None), key)


def _count_by_key(affixes: Iterable[_Affix], key: Callable[[str], str]) -> Counter[_Affix]:
    """Returns how often each affix occurs; of several that `key` makes equal, the first counts for all."""
    first: dict[tuple[str, ...], _Affix] = {}
    return Counter(first.setdefault(tuple(map(key, affix)), affix) for affix in affixes)


def _common_pattern(files: list[_File], affix: _Affix, key: Callable[[str], str]) -> str:
    """Returns the commonest pattern of the paths: "training/images/{stem}_training.tif"."""
    if not files:
        return "no file"
    patterns = Counter(_pattern(each, affix, key) for each in files).most_common()
    return f"{patterns[0][0]} and {len(patterns) - 1} like it" if len(patterns) > 1 else patterns[0][0]


def _pattern(file: _File, affix: _Affix, key: Callable[[str], str]) -> str:
    """Returns the path of a file with "{stem}" in place of its name, if the path contains it."""
    path, own = PurePosixPath(file.path), PurePosixPath(file.name).name
    if path.stem == own:
        return str(path.with_name(f"{affix.pattern if affix.stem(own, key) else '{stem}'}{path.suffix}"))
    if path.parent.name == own:  # of a folder per image, "a/img.png"
        return str(path.parent.with_name("{stem}") / path.name)
    before, found, after = path.stem.partition(own)  # of a pattern in the options
    return str(path.with_name(f"{before}{{stem}}{after}{path.suffix}")) if found else str(path)


def _pair(root: Path, images: dict[str, _File], masks: dict[str, _File], files: dict[str, RawFile]) -> list[Pair]:
    """Returns the pairs of a split in the order of their names; a TIFF stack gives one pair per page."""
    image_files, mask_files = ({name: files[each.path] for name, each in part.items()} for part in (images, masks))
    pairs = match(image_files, mask_files, str(root))
    # The hash of the name that the file has, which may not be in NFC, decides which images are held out.
    pairs = [pair._replace(name=images[pair.name].name) if pair.name in images else pair for pair in pairs]
    return [page for pair in sorted(pairs, key=lambda pair: pair.name) for page in _pages(pair)]


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
