"""Survey of a folder of images and masks, and the config that it suggests.

Every file is read and decoded once, in threads, and only numbers are kept, so that the memory does not grow with the
number of pixels.
"""

import dataclasses
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import rich.console
import rich.progress
from jaxtyping import Float, Int64, UInt8, UInt16
from ml_collections import ConfigDict

from segjax import losses
from segjax.data.datasets import common_channels
from segjax.data.datasets import label_set as label_set_of
from segjax.data.decode import ImageInfo, ValueRange
from segjax.data.io import DataError, read_bytes
from segjax.data.labels import VOID, LabelSet, count_ids, is_grey, read_class_file, to_train_ids
from segjax.data.layout import Layout, find_layout
from segjax.data.pairs import Pair, Verified, decode_pair, find_range, refuse_palettes, refuse_problems
from segjax.data.resize import resize_nearest
from segjax.data.splits import folder_options
from segjax.training.config import ConfigError, changed, from_leaves, leaves, validate
from segjax.training.fields import FIELDS
from segjax.training.network import make_model

Value = int | tuple[int, ...]  # of a mask: an id, or a colour
SCALES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)
_PLACES = (1 << 16, 1 << 8, 1)  # a colour as one number
_MOST_RESIZED = 256  # values of a mask that is resized for `iou_caps`
_MOST_CLASSES = 64  # that are found without their names
_RESIZED = 200  # masks that are resized for `iou_caps`
_RARE = 0.1  # share of the pixels below which a class gets a larger weight
_ENOUGH = 0.9  # IoU that labels keep at the suggested size
_SHORTER_SIDE, _LARGEST = 256, 2**20  # of the suggested size: least side, most pixels
_EPOCHS, _MOST_STEPS = 10, 20_000  # of the suggested training
# Fields that fix the classes, and their defaults.
_CLASS_FIELDS = {
    f"data.{name}": FIELDS[f"data.{name}"].default
    for name in ("class_names", "mask_values", "void_values", "mask_colours", "void_colours", "mask_threshold")
}


_DECISIVE = {"data.class_names", "data.mask_values", "data.mask_colours", "data.mask_threshold"}  # if given


class PairSurvey(NamedTuple):
    """Numbers of one image and its mask."""

    split: str
    pair: Pair
    image: ImageInfo  # with the smallest and the largest value
    moments: Float[np.ndarray, "2 channels"]  # means of the image's values and of their squares
    checksum: int  # CRC-32 of the image's pixels
    values: dict[Value, int]  # pixels of each value of the mask
    resized: dict[float, Int64[np.ndarray, "values values"]]  # see `_resize_there_and_back`; empty for most masks

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image[:2]


class FolderSurvey(NamedTuple):
    """A folder, its classes, and the config that it suggests; see `survey_from_pairs`."""

    layout: Layout
    pairs: list[PairSurvey]
    label_set: LabelSet | None  # None if the classes do not fit the masks, and then the next two are empty
    images: dict[str, np.ndarray]  # pixels per split of each class in each image, [images, C + 1]; the last is void
    caps: dict[float, np.ndarray]  # see `iou_caps`
    value_range: ValueRange  # see `pairs.find_range`
    refusals: list[str]  # reasons for which training would refuse the folder
    warnings: list[str]
    config: ConfigDict

    def lines(self) -> list[str]:
        """Returns a line of Python per field of the config that differs from the defaults."""
        lines = {key: f"config.{key} = {value!r}" for key, value, _ in changed(self.config)}
        return [lines[key] for key in FIELDS if key in lines]


def survey_folder(root: Path, config: ConfigDict, keep: Iterable[str], console: rich.console.Console) -> FolderSurvey:
    """Reads every image and mask of a folder, with a progress bar, and returns the survey; see `survey_from_pairs`.

    Raises: DataError if the layout of the folder is not known.
    """
    config = _with(config, {"data.name": "folder", "data.manual_dir": str(root.absolute())}, set())
    if config.data.multilabel:
        raise DataError(
            f"{root}: --data and segjax data read one mask per image, and config.data.multilabel=True has one per "
            f"class; use segjax train --config=folder_multilabel --config.data.manual_dir={root}"
        )
    layout, keep = find_layout(root, folder_options(config.data)), set(keep)
    class_file = {} if keep & _DECISIVE or not layout.class_file else read_class_file(layout.class_file)
    colours = bool(config.data.mask_colours or class_file.get("mask_colours"))
    bar = rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    pairs = survey_pairs(layout, colours=colours, drawn_on=config.data.orientation)
    with bar:
        surveyed = list(bar.track(pairs, total=sum(map(len, layout.splits.values())), description="reading"))
    return survey_from_pairs(
        layout, surveyed, config, keep, {f"data.{key}": value for key, value in class_file.items()}
    )


def survey_pairs(
    layout: Layout, *, colours: bool = False, drawn_on: str = "displayed", threads: int = 8
) -> Iterator[PairSurvey | str]:
    """Yields the survey of each pair of a layout, in its order, or the reason why it is bad.

    `colours` and `drawn_on` are those of `pairs.decode_pair`.
    """
    pairs = [(split, pair) for split, part in layout.splits.items() for pair in part]
    step = max(1, len(pairs) // _RESIZED)

    def attempt(index: int) -> PairSurvey | str:
        (split, pair), scales = pairs[index], SCALES if index % step == 0 else ()
        try:
            refuse_problems([pair])
            content, files = (read_bytes(pair.image), read_bytes(pair.mask)), (pair.image.path, pair.mask.path)
            decoded = decode_pair(*content, files, colours=colours, drawn_on=drawn_on)
            return _survey_pair(split, pair, *decoded, scales)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(threads) as pool:
        try:
            yield from pool.map(attempt, range(len(pairs)))
        finally:
            pool.shutdown(cancel_futures=True)


def _survey_pair(
    split: str, pair: Pair, image: np.ndarray, mask: np.ndarray, orientation: int, scales: Sequence[float]
) -> PairSurvey:
    if mask.ndim == 3 and is_grey(mask):
        mask = mask[..., 0]
    # OpenCV takes at most four channels at once, and reads each value once.
    parts = [np.ascontiguousarray(image[..., start : start + 4]) for start in range(0, image.shape[2], 4)]
    mean, std = np.concatenate([cv2.meanStdDev(part) for part in parts], axis=1)[..., 0]
    values, extremes = count_values(mask), (float(image.min()), float(image.max()))
    return PairSurvey(
        split,
        pair,
        ImageInfo(*image.shape, str(image.dtype), orientation, extremes),
        np.array([mean, std**2 + mean**2]),
        zlib.crc32(image),
        values,
        _resize_there_and_back(mask, values, scales) if len(values) <= _MOST_RESIZED else {},
    )


def count_values(mask: UInt8[np.ndarray, "h w *rgb"] | UInt16[np.ndarray, "h w"]) -> dict[Value, int]:
    """Returns the number of pixels of each value of a mask, an id or a colour.

    >>> count_values(np.array([[0, 7, 7]], np.uint8))
    {0: 1, 7: 2}
    """
    if mask.ndim == 2:
        counts = count_ids(mask, np.iinfo(mask.dtype).max + 1)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    codes = _codes(mask).ravel()
    # A mask has far fewer runs of one colour than pixels.
    starts = np.append(0, np.flatnonzero(codes[1:] != codes[:-1]) + 1)
    values, inverse = np.unique(codes[starts], return_inverse=True)
    counts = np.bincount(inverse, np.diff(starts, append=codes.size))
    return {_value(code): int(count) for code, count in zip(values.tolist(), counts, strict=True)}


def _codes(mask: np.ndarray) -> np.ndarray:
    """Returns ids as they are, and colours as one number each, see `_PLACES`."""
    return mask if mask.ndim == 2 else cv2.cvtColor(mask, cv2.COLOR_RGB2BGRA).view("<u4")[..., 0] & 0xFFFFFF


def _value(code: int) -> tuple[int, int, int]:
    return code >> 16, code >> 8 & 255, code & 255


def _resize_there_and_back(
    mask: np.ndarray, values: Iterable[Value], scales: Sequence[float]
) -> dict[float, Int64[np.ndarray, "values values"]]:
    """Returns the number of pixels of each value (row) that have each value (column) after two resizings, by scale.

    The mask is resized to `scale` of its height and width, and back to its own, to the nearest pixel.
    """
    if not scales:
        return {}
    codes, confusions = _codes(mask), {}
    known = np.array([value if isinstance(value, int) else np.dot(value, _PLACES) for value in values], codes.dtype)
    before = np.searchsorted(known, codes).astype(np.uint16)
    for scale in scales:
        size = tuple(max(1, round(scale * side)) for side in before.shape)
        after = resize_nearest(resize_nearest(before, size), before.shape)
        confusions[scale] = count_ids(before * np.uint16(len(known)) + after, len(known) ** 2).reshape(len(known), -1)
    return confusions


def survey_from_pairs(
    layout: Layout,
    surveyed: Iterable[PairSurvey | str],
    config: ConfigDict,
    keep: Iterable[str] = (),
    class_file: Mapping[str, Any] | None = None,
) -> FolderSurvey:
    """Returns the survey of a folder from `survey_pairs`.

    Args:
      layout: the folder.
      surveyed: the result of `survey_pairs`.
      config: fills what the folder does not suggest.
      keep: fields of `config`, as "data.size", that are not changed.
      class_file: fields of the classes of `layout.class_file`, which are used if they fit the masks.
    """
    surveyed, keep = list(surveyed), set(keep)
    pairs, bad = ([one for one in surveyed if isinstance(one, kind)] for kind in (PairSurvey, str))
    skip = config.data.on_error == "skip" and bool(pairs)
    found = FolderSurvey(
        layout, pairs, None, {}, {}, None, [] if skip else bad, [f"skipped {one}" for one in bad * skip], config
    )
    if not pairs:
        return found
    try:
        found = _with_classes(found, keep, class_file or {})
        classes = label_set_of(found.config.data)
        if not classes.by_colour:
            refuse_palettes(one.pair for one in pairs)
    except DataError as error:
        return found._replace(refusals=[*found.refusals, str(error)])
    images, refused = count_classes(pairs, classes)
    if refused:
        return found._replace(refusals=[*found.refusals, *refused])
    if classes.num_classes == 2 and not config.data.rare_class:  # as a training will find it
        first, second, _ = sum(part.sum(axis=0) for part in images.values())
        classes = dataclasses.replace(classes, rare=int(first >= second))
    found = found._replace(label_set=classes, images=images, caps=iou_caps(pairs, classes))
    found.warnings.extend(_warnings(found))
    try:
        found = _with_range(found, keep)
        found = found._replace(config=_with(found.config, suggest(found), keep))
        validate(found.config)
        make_model(found.config, classes.num_classes)
    except (ConfigError, DataError) as error:
        found.refusals.append(str(error))
    return found


def _with_classes(found: FolderSurvey, keep: set[str], class_file: Mapping[str, Any]) -> FolderSurvey:
    """Returns the survey with the classes of the class file or, if they do not fit, of the values, in the config."""
    if keep & _DECISIVE:
        return found
    if class_file:
        config = _with(found.config, _CLASS_FIELDS | class_file, keep)
        refused = count_classes(found.pairs, label_set_of(config.data))[1]
        if not refused:
            return found._replace(config=config)
        found.warnings.append(f"{found.layout.class_file} does not fit the masks, and is not used: {refused[0]}")
    values = count_all_values(found.pairs)
    trained = count_all_values([pair for pair in found.pairs if pair.split != "test"]) or values
    fields = find_classes(trained)
    # A class needs pixels to train on; the masks of a test split are often blank.
    test_only = [value for value in sorted(values.keys() - trained.keys()) if type(value) is type(next(iter(trained)))]
    if test_only and "mask_threshold" not in fields:
        shown = ", ".join(map(format_value, test_only[:8])) + ", …" * (len(test_only) > 8)
        found.warnings.append(f"only the masks of test have {shown}: void, and not a class")
        if "mask_colours" in fields:
            fields["void_colours"] = tuple(map(colour_name, test_only))
        else:
            fields["void_values"] = tuple(sorted({VOID, *test_only} - set(fields["mask_values"])))
    fields = {f"data.{key}": value for key, value in fields.items()}
    return found._replace(config=_with(found.config, _CLASS_FIELDS | fields, keep))


def _with(config: ConfigDict, fields: Mapping[str, Any], keep: set[str]) -> ConfigDict:
    """Returns a config with other values of those fields that are not in `keep`."""
    return from_leaves(leaves(config) | {key: value for key, value in fields.items() if key not in keep})


def count_classes(pairs: Sequence[PairSurvey], label_set: LabelSet) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns `FolderSurvey.images`, and one message per mask with values that are not of a class."""
    rows: dict[str, list[np.ndarray]] = {pair.split: [] for pair in pairs}
    refused, void = [], label_set.num_classes
    for pair in pairs:
        try:
            ids = to_train_ids(_as_pixels(list(pair.values)), label_set, pair.pair.mask.path).ravel().astype(int)
        except DataError as error:
            refused.append(str(error))
            continue
        ids[ids == VOID] = void
        rows[pair.split].append(np.bincount(ids, list(pair.values.values()), void + 1).astype(np.int64))
    return {split: np.reshape(part, (len(part), void + 1)) for split, part in rows.items()}, refused


def _warnings(found: FolderSurvey) -> list[str]:
    """Returns lines about classes without pixels, void, EXIF, and images that two splits share."""
    lines, names = [], found.label_set.names
    for split, images in found.images.items():
        absent = [name for name, pixels in zip(names, images.sum(axis=0), strict=False) if not pixels]
        if absent:
            lines.append(f"{split} has no pixel of {', '.join(absent)}")
    pixels = sum(images.sum(axis=0) for images in found.images.values())
    if (void := pixels[-1]) > (total := pixels.sum()) / 2:
        lines.append(f"{void / total:.1%} of all pixels are void")
    infos = [pair.image for pair in found.pairs]
    if unsure := sum(one.orientation > 1 and (one.orientation < 5 or one.height == one.width) for one in infos):
        lines.append(
            f"{unsure} image(s) are turned by EXIF, and the sizes do not show which way their masks were drawn: "
            f"config.data.orientation = {found.config.data.orientation!r} decides, displayed or stored"
        )
    if groups := duplicates(found.pairs):
        lines.append(
            f"{len(groups)} group(s) of identical images are in more than one split, so the scores are too optimistic: "
            f"{'; '.join(' = '.join(group) for group in groups[:3])}"
        )
    return lines


def _as_pixels(values: list[Value]) -> np.ndarray:
    """Returns values as a mask of one row."""
    if isinstance(values[0], tuple):
        return np.array([values], np.uint8)
    return np.array([values], np.uint8 if max(values) < 256 else np.uint16)


def count_all_values(pairs: Sequence[PairSurvey]) -> Counter[Value]:
    """Returns the number of pixels of each value of all masks; of colours if one mask has any, else of ids."""
    total: Counter[Value] = Counter()
    for pair in pairs:
        total.update(pair.values)
    if any(isinstance(value, tuple) for value in total):
        colours: Counter[Value] = Counter()
        for value, pixels in total.items():
            colours[value if isinstance(value, tuple) else (value,) * 3] += pixels
        return colours
    return total


def find_classes(values: Mapping[Value, int]) -> dict[str, tuple | int]:
    """Returns the config fields of the classes for masks of which nothing is known but their values.

    255 is void beside at least two other ids, the largest of which is below 64; else it is a class. Of colours, black
    or else the most frequent one is the background, and of two values the other one if the first has less than a tenth
    of the pixels. More than 8 values are the noise of two classes if 95 % of the pixels are near black or white. Raises
    DataError for one value, and for more than 64.

    >>> find_classes({0: 90, 255: 10}), find_classes({(0, 0, 0): 9, (255, 0, 0): 1})["mask_colours"]
    ({'class_names': ('background', 'object'), 'mask_values': (0, 255)}, ('#000000', '#ff0000'))
    """
    near = sum(pixels for value, pixels in values.items() if not 32 < _grey(value) < 223)
    if len(values) > 8 and max(map(_grey, values)) < 256 and near >= 0.95 * sum(values.values()):
        return {"class_names": ("background", "object"), "mask_threshold": 128}
    if len(values) < 2:
        (only,) = values
        way_out = "check that these are the masks (config.data.masks), or add images that show another class"
        raise DataError(f"every pixel of the masks has the value {format_value(only)}; {way_out}")
    if len(values) > _MOST_CLASSES:
        field = "mask_colours" if isinstance(next(iter(values)), tuple) else "mask_values"
        expected = f"expected at most {_MOST_CLASSES}, unless config.data.class_names and {field} name them"
        raise DataError(f"the masks have {len(values)} different values, as photographs have; {expected}")
    if isinstance(next(iter(values)), tuple):
        ordered = _rare_last(sorted(values, key=lambda value: (any(value), -values[value])), values)
        colours = tuple(map(colour_name, ordered))
        names = ("background", "object") if len(colours) == 2 else ("background", *colours[1:])
        return {"class_names": names, "mask_colours": colours}
    ids = sorted(values)
    if ids[-1] == VOID and len(ids) > 2 and ids[-2] < 64:
        ids = ids[:-1]
    ids = _rare_last(ids, values)
    names = tuple("background" if value == 0 else f"class {value}" for value in ids)
    return {"class_names": ("background", "object") if len(ids) == 2 else names, "mask_values": tuple(ids)}


def _rare_last(classes: list[Value], values: Mapping[Value, int]) -> list[Value]:
    is_rare = len(classes) == 2 and values[classes[0]] < _RARE * sum(values[one] for one in classes)
    return classes[::-1] if is_rare else classes


def colour_name(colour: tuple[int, ...]) -> str:
    """Returns a colour as config.data.mask_colours has it.

    >>> colour_name((255, 0, 16))
    '#ff0010'
    """
    return "#{:02x}{:02x}{:02x}".format(*colour)


def format_value(value: Value) -> str:
    """Returns a value of a mask for the user: an id, or a colour as "#ff0010"."""
    return str(value) if isinstance(value, int) else colour_name(value)


def _grey(value: Value) -> float:
    return float(np.dot(value, (0.299, 0.587, 0.114))) if isinstance(value, tuple) else float(value)


def iou_caps(pairs: Sequence[PairSurvey], label_set: LabelSet) -> dict[float, np.ndarray]:
    """Returns the IoU per class that labels keep when they are resized to a fraction of their size and back.

    It is the most that a network of this input size reaches with masks of one class per pixel. NaN: no pixels.
    """
    confusions = {scale: np.zeros((256, 256)) for scale in SCALES}
    for pair in pairs:
        ids = to_train_ids(_as_pixels(list(pair.values)), label_set, pair.pair.mask.path).ravel()
        for scale, counts in pair.resized.items():
            np.add.at(confusions[scale], (ids[:, None], ids[None, :]), counts)
    caps = {}
    for scale, confusion in confusions.items():
        kept = np.diag(confusion)
        with np.errstate(invalid="ignore"):
            caps[scale] = (kept / (confusion.sum(axis=0) + confusion.sum(axis=1) - kept))[: label_set.num_classes]
    return caps


def duplicates(pairs: Sequence[PairSurvey]) -> list[list[str]]:
    """Returns the groups of images, as "SPLIT/NAME", that are in more than one split with the same pixels."""
    groups: dict[tuple, list[PairSurvey]] = {}
    for one in pairs:
        groups.setdefault((one.size, one.checksum, one.moments.tobytes()), []).append(one)
    shared = [group for group in groups.values() if len({one.split for one in group}) > 1]
    return [[f"{one.split}/{one.pair.name}" for one in group] for group in shared]


def _with_range(found: FolderSurvey, keep: set[str]) -> FolderSurvey:
    """Returns the survey with the range of the training images' values: that of their dtype, else of percentiles.

    Raises DataError if it does not suit the images of training, or those of evaluation.
    """
    data, train = found.config.data, _pairs_of(found, "train_split")
    files = [one.pair for one in train]
    if not train:
        way_out = "fix its pairs, or choose another split"
        raise DataError(f"config.data.train_split = {data.train_split!r} has no usable pair; {way_out}")
    try:
        value_range = find_range(data.range, _as_verified(train), files)
    except DataError:
        if "data.range" in keep:
            raise
        value_range = find_range("percentile", _as_verified(train), files)
        found = found._replace(config=_with(found.config, {"data.range": value_range}, keep))
    if evaluated := _pairs_of(found, "eval_split"):
        find_range(value_range or "dtype", _as_verified(evaluated), files)
    return found._replace(value_range=value_range)


def _pairs_of(found: FolderSurvey, field: str) -> list[PairSurvey]:
    """Returns the pairs of the split of a field, or of "all"; raises DataError for a split that does not exist."""
    split, splits = found.config.data[field], found.layout.splits
    if split not in splits and split != "all":
        valid = f"{', '.join(splits)}, or all (every split)"
        raise DataError(f"config.data.{field} = {split!r} does not exist; valid: {valid}")
    return [pair for pair in found.pairs if split in (pair.split, "all")]


def _as_verified(pairs: Sequence[PairSurvey]) -> Verified:
    return Verified([one.pair for one in pairs], [one.image for one in pairs], (), [], None, None)


def suggest(found: FolderSurvey) -> dict[str, Any]:
    """Returns the fields that a folder suggests.

    Number of channels; mean and standard deviation of the training pixels; the size of `suggest_size`; and the larger
    of the config's steps and ten epochs, at most 20000. If the rarest class has less than a tenth of the pixels, also
    the class weights √(median frequency / frequency), as in configs/camvid_unet_weighted.py, and the class frequencies
    as prior.
    """
    data, (low, high) = found.config.data, found.value_range or (0, 255)
    train = _pairs_of(found, "train_split")
    channels = common_channels((pair.image.channels for pair in found.pairs), Path(data.manual_dir))
    moments = [np.broadcast_to(pair.moments, (2, channels)) for pair in train]
    first, second = np.average(moments, axis=0, weights=[math.prod(pair.size) for pair in train])
    std = np.sqrt(np.maximum(second - first**2, 0))
    fields: dict[str, Any] = {
        "data.channels": channels,
        "data.size": suggest_size(found),
        "data.mean": tuple(round(float(value), 4) for value in (first - low) / (high - low)),
        "data.std": tuple(round(max(float(value), 0.004), 4) for value in std / (high - low)),
    }
    pixels = np.concatenate([found.images[split] for split in dict.fromkeys(pair.split for pair in train)])[:, :-1]
    shares = pixels.sum(axis=0) / max(1, pixels.sum())
    if 0 < shares.min() < _RARE:
        weights = np.sqrt(np.asarray(losses.class_weights(pixels, "median-frequency"), float))
        fields["objective.class_weights"] = tuple(float(f"{weight:.3g}") for weight in weights)
        fields["model.prior"] = tuple(float(f"{share:.3g}") for share in shares)
    epochs = _EPOCHS * len(train) // found.config.training.global_batch
    fields["training.steps"] = min(_MOST_STEPS, max(found.config.training.steps, epochs))
    return fields


def suggest_size(found: FolderSurvey) -> tuple[int, int]:
    """Returns the smallest input size at which every class keeps an IoU of 0.9 (`iou_caps`), about 2^20 pixels at most.

    It has the proportions of the images' median height and width. The shorter side has 256 pixels, as in
    configs/folder_unet.py, or those of smaller images, at least: masks of large objects would keep their IoU at sizes
    at which the objects cannot be recognised. Each side is rounded to the nearest multiple of 16, up or down, and is at
    least 32.
    """
    median = np.median([pair.size for pair in found.pairs], axis=0)
    enough = [scale for scale, caps in found.caps.items() if np.nanmin(caps) >= _ENOUGH]
    least = min(1.0, _SHORTER_SIDE / min(median))
    scale = min(max(least, min(enough, default=1.0)), math.sqrt(_LARGEST / math.prod(median)))
    height, width = (max(32, 16 * round(float(scale * side) / 16)) for side in median)
    return height, width


def values_of_classes(found: FolderSurvey) -> list[list[Value]]:
    """Returns the mask values of each class, and of void."""
    values = sorted(count_all_values(found.pairs))
    ids = to_train_ids(_as_pixels(values), found.label_set, str(found.layout.description)).ravel()
    return [
        [v for v, at in zip(values, ids, strict=True) if at == i] for i in [*range(found.label_set.num_classes), VOID]
    ]
