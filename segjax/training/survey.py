"""Survey of a folder of images and masks, and the config that it suggests.

Every file is read and decoded once, in threads, and only numbers are kept, so that the memory does not grow with the
number of pixels.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Num, UInt8, UInt16
from ml_collections import ConfigDict

from segjax import losses
from segjax.data.decode import read_image, read_mask
from segjax.data.folder import Layout
from segjax.data.io import DataError, read_bytes
from segjax.data.labels import VOID, LabelSet, to_train_ids
from segjax.data.pairs import Pair
from segjax.data.resize import resize_nearest

Value = int | tuple[int, ...]  # of a mask: an id, or a colour
SCALES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)
_RESIZED = 200  # masks that are resized for `iou_caps`
_MANY_VALUES = 64  # a mask with more is rather a photograph, or was saved as JPEG
_RARE = 0.1  # share of the pixels below which a class gets a larger weight
_ENOUGH = 0.9  # IoU that labels keep at the suggested size
_LARGEST = 2**20  # pixels of the suggested size


class PairSurvey(NamedTuple):
    """Numbers of one image and its mask."""

    split: str
    name: str
    mask: str  # path
    size: tuple[int, int]
    channels: int
    dtype: str
    extremes: tuple[float, float]  # smallest and largest value of the image
    sums: np.ndarray  # of the values and of their squares, [2, C]
    values: dict[Value, int]  # pixels of each value of the mask
    content: str  # hash of the image's pixels
    kept: dict[float, dict[Value, tuple[int, int]]]  # intersection and union per scale and value, see `iou_caps`


class Survey(NamedTuple):
    """Numbers of all pairs of a folder, and the reasons why others are bad."""

    layout: Layout
    pairs: list[PairSurvey]
    bad: list[str]


def survey(layout: Layout, pairs: Iterable[PairSurvey | str]) -> Survey:
    """Returns the survey of a layout from the results of `survey_pairs`."""
    found = list(pairs)
    bad = [one for one in found if isinstance(one, str)]
    return Survey(layout, [one for one in found if not isinstance(one, str)], bad)


def survey_pairs(layout: Layout, *, threads: int = 8) -> Iterator[PairSurvey | str]:
    """Yields the survey of each pair of a layout, in its order, or the reason why it is bad."""
    pairs = [(split, pair) for split, part in layout.splits.items() for pair in part]
    step = max(1, len(pairs) // _RESIZED)

    def attempt(index: int) -> PairSurvey | str:
        try:
            return _survey_pair(*pairs[index], scales=SCALES if index % step == 0 else ())
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(threads) as pool:
        try:
            yield from pool.map(attempt, range(len(pairs)))
        finally:
            pool.shutdown(cancel_futures=True)


def _survey_pair(split: str, pair: Pair, scales: Sequence[float]) -> PairSurvey:
    image, mask = read_image(read_bytes(pair.image), pair.image.path), read_mask(read_bytes(pair.mask), pair.mask.path)
    if image.shape[:2] != mask.shape[:2]:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape[:2]
        sizes = f"a mask of {mask_height}×{mask_width} for an image of {height}×{width}"
        raise DataError(f"{pair.mask.path}: {sizes} ({pair.image.path}); expected one size")
    flat = image.reshape(-1, image.shape[-1])
    sums = np.stack([flat.sum(axis=0, dtype=np.float64), np.einsum("ij,ij->j", flat, flat, dtype=np.float64)])
    content = hashlib.blake2b(np.ascontiguousarray(image), digest_size=16, key=str(image.shape).encode()).hexdigest()
    return PairSurvey(
        split,
        pair.name,
        pair.mask.path,
        image.shape[:2],
        image.shape[2],
        str(image.dtype),
        (float(image.min()), float(image.max())),
        sums,
        count_values(mask),
        content,
        {scale: _kept(mask, scale) for scale in scales},
    )


def count_values(mask: UInt8[np.ndarray, "h w *rgb"] | UInt16[np.ndarray, "h w"]) -> dict[Value, int]:
    """Returns the number of pixels of each value of a mask, an id or a colour.

    >>> count_values(np.array([[0, 7, 7]], np.uint8))
    {0: 1, 7: 2}
    """
    codes = _codes(mask).ravel()
    if mask.ndim == 2:
        counts = np.bincount(codes)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    # A mask has far fewer runs of one colour than pixels.
    starts = np.flatnonzero(np.diff(codes, prepend=codes[0] + 1))
    values, inverse = np.unique(codes[starts], return_inverse=True)
    counts = np.bincount(inverse, np.diff(starts, append=codes.size))
    return {_value(code): int(count) for code, count in zip(values.tolist(), counts, strict=True)}


def _codes(mask: np.ndarray) -> np.ndarray:
    return mask if mask.ndim == 2 else mask.astype(np.int32) @ np.array((1 << 16, 1 << 8, 1), np.int32)


def _value(code: int) -> tuple[int, int, int]:
    return code >> 16, code >> 8 & 255, code & 255


def _kept(mask: np.ndarray, scale: float) -> dict[Value, tuple[int, int]]:
    """Returns intersection and union of each value with itself, resized by `scale` and back."""
    size = tuple(max(1, round(scale * side)) for side in mask.shape[:2])
    codes = _codes(mask)
    back = resize_nearest(resize_nearest(codes, size), codes.shape)
    before, after, both = (dict(zip(*_unique(part), strict=True)) for part in (codes, back, codes[codes == back]))
    pairs = {code: (both.get(code, 0), before[code] + after.get(code, 0) - both.get(code, 0)) for code in before}
    return {code if mask.ndim == 2 else _value(code): pair for code, pair in pairs.items()}


def _unique(codes: np.ndarray) -> tuple[list[int], list[int]]:
    values, counts = np.unique(codes, return_counts=True)
    return values.tolist(), counts.tolist()


class ClassCounts(NamedTuple):
    """Pixels of each class, and the pairs with values that no class has."""

    per_split: dict[str, np.ndarray]  # [images, C + 1], the last column is void
    refused: list[str]  # one message per pair

    @property
    def train(self) -> np.ndarray:
        """Pixels of the training split, [images, C]."""
        return self.per_split["train"][:, :-1]


def count_classes(found: Survey, label_set: LabelSet) -> ClassCounts:
    """Returns the pixels of each class in each image of each split."""
    rows: dict[str, list[np.ndarray]] = {split: [] for split in found.layout.splits}
    refused = []
    for pair in found.pairs:
        values, pixels = list(pair.values), list(pair.values.values())
        try:
            ids = to_train_ids(_as_pixels(values), label_set, pair.mask)
        except DataError as error:
            refused.append(str(error))
            continue
        ids = np.where(ids == VOID, label_set.num_classes, ids).ravel()
        rows[pair.split].append(np.bincount(ids, pixels, label_set.num_classes + 1).astype(np.int64))
    empty = np.zeros((0, label_set.num_classes + 1), np.int64)
    return ClassCounts({split: np.array(part) if part else empty for split, part in rows.items()}, refused)


def _as_pixels(values: list[Value]) -> np.ndarray:
    """Returns values as a mask of one row."""
    if isinstance(values[0], tuple):
        return np.array([values], np.uint8)
    return np.array([values], np.uint8 if max(values) < 256 else np.uint16)


def found_values(found: Survey) -> Counter[Value]:
    """Returns the number of pixels of each value of all masks."""
    total: Counter[Value] = Counter()
    for pair in found.pairs:
        total.update(pair.values)
    return total


def find_classes(values: Mapping[Value, int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns class names and mask values for masks of which nothing else is known.

    255 is void beside at least two other values, the largest of which is below 64; else it is a class.

    >>> find_classes({0: 90, 255: 10}), find_classes({0: 5, 1: 3, 2: 2, 255: 1})
    ((('background', 'object'), (0, 255)), (('background', 'class 1', 'class 2'), (0, 1, 2)))
    """
    ids = sorted(values)
    if ids[-1] == VOID and len(ids) > 2 and ids[-2] < 64:
        ids = ids[:-1]
    if len(ids) == 2:
        return ("background", "object"), tuple(ids)
    return tuple("background" if value == 0 else f"class {value}" for value in ids), tuple(ids)


def iou_caps(found: Survey, label_set: LabelSet) -> dict[float, np.ndarray]:
    """Returns the IoU per class that labels keep when they are resized to a share of their size and back.

    It is the most that a network of this input size reaches with masks of one class per pixel. NaN: no pixels.
    """
    caps = {}
    for scale in SCALES:
        sums = np.zeros((2, label_set.num_classes))
        for pair in found.pairs:
            if not (kept := pair.kept.get(scale)):
                continue
            ids = to_train_ids(_as_pixels(list(kept)), label_set, pair.mask).ravel()
            for train_id, counts in zip(ids, kept.values(), strict=True):
                if train_id < label_set.num_classes:
                    sums[:, train_id] += counts
        caps[scale] = np.divide(*sums, out=np.full(sums.shape[1], np.nan), where=sums[1] > 0)
    return caps


def duplicates(found: Survey) -> list[tuple[str, ...]]:
    """Returns the groups of images, as "SPLIT/NAME", that are in more than one split with the same pixels."""
    groups: dict[str, list[PairSurvey]] = {}
    for pair in found.pairs:
        groups.setdefault(pair.content, []).append(pair)
    return [
        tuple(f"{pair.split}/{pair.name}" for pair in group)
        for group in groups.values()
        if len({pair.split for pair in group}) > 1
    ]


def suggest_size(found: Survey, caps: Mapping[float, np.ndarray]) -> tuple[int, int]:
    """Returns the smallest input size at which every class keeps an IoU of 0.9 (`iou_caps`), at most 2^20 pixels.

    It is a multiple of 16 with the median height and width of the images as its largest.
    """
    median = np.median([pair.size for pair in found.pairs], axis=0)
    scale = min((scale for scale, cap in caps.items() if np.nanmin(cap, initial=1) >= _ENOUGH), default=1.0)
    scale = min(scale, (_LARGEST / np.prod(median)) ** 0.5)
    height, width = (int(max(32, 16 * round(scale * side / 16))) for side in median)
    return height, width


def suggest(found: Survey, config: ConfigDict, label_set: LabelSet, *, keep: Iterable[str] = ()) -> ConfigDict:
    """Returns `config` with the fields that a folder suggests, but for those in `keep`.

    Mean and standard deviation of the training pixels; the input size; and, if the rarest class has less than a tenth
    of the pixels, class weights √(median frequency / frequency), as in configs/camvid_unet_weighted.py, and the class
    frequencies as prior.
    """
    counts = count_classes(found, label_set)
    mean, std = pixel_statistics(found)
    fields: dict[str, Any] = {
        "data.channels": found.pairs[0].channels,
        "data.size": suggest_size(found, iou_caps(found, label_set)),
        "data.mean": mean,
        "data.std": std,
    }
    pixels = counts.train.sum(axis=0)
    shares = pixels / max(1, pixels.sum())
    if 0 < shares.min() < _RARE:
        weights = np.sqrt(np.asarray(losses.class_weights(counts.train, "median-frequency"), float))
        fields["objective.class_weights"] = tuple(float(f"{weight:.3g}") for weight in weights)
        fields["model.prior"] = tuple(float(f"{share:.3g}") for share in shares)
    images = len(counts.train)
    fields["training.steps"] = min(20_000, max(config.training.steps, 10 * images // config.training.global_batch))
    suggested = config.copy_and_resolve_references()
    suggested.update_from_flattened_dict({key: value for key, value in fields.items() if key not in set(keep)})
    return suggested.lock()


def pixel_statistics(found: Survey) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of the training pixels in [0, 1], per channel."""
    train = [pair for pair in found.pairs if pair.split == "train"]
    count = sum(pair.size[0] * pair.size[1] for pair in train)
    first, second = sum(pair.sums for pair in train) / count
    std = np.sqrt(np.maximum(second - first**2, 1e-4))
    return tuple(tuple(round(float(value) / 255, 4) for value in values) for values in (first, std))
