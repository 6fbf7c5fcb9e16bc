"""Classes that overlap: one mask per class and image, joined to labels that are combinations of classes."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from segjax.data.io import DataError
from segjax.data.labels import UNDEFINED, VOID, LabelSet, count_ids
from segjax.data.layout import find_layout
from segjax.data.pairs import Example, FolderSource, Source, refuse_all_bad
from segjax.data.splits import FolderOptions

PATTERN = "masks/{class}/{stem}"
"""Default of `config.data.masks` with `config.data.multilabel`."""


def class_options(options: FolderOptions, name: str) -> FolderOptions:
    """Returns the options that find the masks of one class; raises DataError if the pattern has no {class}."""
    pattern = options.masks or PATTERN
    if pattern.count("{class}") != 1:
        expected = f"a pattern with {{class}} and {{stem}} once each with config.data.multilabel, such as {PATTERN!r}"
        raise DataError(f"config.data.masks: expected {expected}; got {pattern!r}")
    return options._replace(masks=pattern.replace("{class}", name))


def layout_notes(root: Path, names: Sequence[str], options: FolderOptions) -> list[str]:
    """Returns the notes of `Layout.notes` for the masks of all classes: files are left out that no class uses."""
    layouts = [find_layout(root, class_options(options, name)) for name in names]
    unused = set.intersection(*({path for paths in each.ignored.values() for path in paths} for each in layouts))
    ignored = {reason: [path for path in paths if path in unused] for reason, paths in layouts[0].ignored.items()}
    described = "; ".join(f"{name}: {each.description}" for name, each in zip(names, layouts, strict=True))
    merged = layouts[0]._replace(description=described, ignored={key: paths for key, paths in ignored.items() if paths})
    return merged.notes()


class MultilabelSource:
    """A split of a folder with one mask per class; see `segjax.data.Source`.

    Labels are the train ids of `LabelSet.combinations`. An image is left out if the split of a class has left it out.
    """

    def __init__(self, sources: Sequence[FolderSource], label_set: LabelSet, notes: Sequence[str] = ()):
        self._sources, self.label_set, self.notes = sources, label_set, notes
        first = sources[0]
        self.channels, self.value_range, self.dtype = first.channels, first.value_range, first.dtype
        self.unsure_turns = max(source.unsure_turns for source in sources)
        self.digest = hashlib.sha256(" ".join(source.digest for source in sources).encode()).hexdigest()[:16]
        self.skipped: tuple[str, ...] = tuple(message for source in sources for message in source.skipped)
        self.absent, self.void, self.pixels = [], None, None
        places = [{source.name(i): i for i in range(len(source))} for source in sources]
        shared = [name for name in places[0] if all(name in each for each in places)]
        self._keep([[each[name] for each in places] for name in shared])

    def _keep(self, indices: list[list[int]]) -> None:
        """Selects images, each by its index in the split of every class."""
        self._indices = indices
        self.sizes = [self._sources[0].sizes[first] for first, *_ in indices]
        self.native_size = self.sizes[0] if len(set(self.sizes)) == 1 else None

    def __reduce__(self):
        return _reopened, (self._sources, self.label_set, self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return {**self._sources[0][self._indices[index][0]], "label": self.label(index)}

    def name(self, index: int) -> str:
        """Returns the name of example `index`: its path under `images`, without its suffix."""
        return self._sources[0].name(self._indices[index][0])

    def label(self, index: int) -> UInt8[np.ndarray, "H W"]:
        """Reads the train ids of example `index`, without decoding its image."""
        parts = zip(self._sources, self._indices[index], strict=True)
        masks = np.stack([source.label(i) for source, i in parts], axis=-1)
        try:
            ids = combine(masks == 1, self.label_set)
        except DataError as error:
            raise DataError(f"{self.name(index)}: {error}") from error
        return np.where((masks == VOID).any(axis=-1), np.uint8(VOID), ids)

    def verify(self, on_error: str) -> None:
        """Reads all masks, counts the pixels, and raises or leaves out an image with too many overlapping classes."""

        def attempt(index: int) -> np.ndarray | str:
            try:
                return count_ids(self.label(index), 256)
            except DataError as error:
                if on_error == "raise":
                    raise DataError(
                        f"{error}. Repair it, or leave such images out: config.data.on_error=skip"
                    ) from error
                return str(error)

        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(attempt, range(len(self))))
        bad = tuple(each for each in found if isinstance(each, str))
        self.skipped += bad
        good = [index for index, each in enumerate(found) if not isinstance(each, str)]
        refuse_all_bad(len(good), self.skipped)
        self._keep([self._indices[index] for index in good])
        counts = sum(found[index] for index in good)
        self.pixels = (counts[: len(self.label_set.combinations)] @ self.label_set.combinations).tolist()
        self.absent = [name for name, count in zip(self.label_set.names, self.pixels, strict=True) if not count]
        self.void = float(counts[VOID] / counts.sum())


def _reopened(sources: Sequence[FolderSource], label_set: LabelSet, indices: list[list[int]]) -> Source:
    source = MultilabelSource(sources, label_set)
    source._keep(indices)
    return source


def combine(present: Bool[np.ndarray, "*pixels classes"], label_set: LabelSet) -> UInt8[np.ndarray, "*pixels"]:
    """Returns the train id of the combination of classes of each pixel.

    Raises: DataError if more classes overlap in a pixel than `class_combinations` has.

    >>> from segjax.data.labels import overlapping_classes
    >>> print(combine(np.array([[True, False], [True, True]]), overlapping_classes(("rust", "crack"))))
    [1 3]
    """
    table, bits = label_set.combinations, 1 << np.arange(label_set.num_classes)
    ids = np.full(1 << label_set.num_classes, UNDEFINED, np.uint8)
    ids[table @ bits] = np.arange(len(table))
    found = ids[present @ bits]
    if (undefined := found == UNDEFINED).any():
        names = ", ".join(np.array(label_set.names)[present[undefined][0]])
        limit = int(table.sum(axis=1).max())
        raise DataError(
            f"a pixel of {names}; with {label_set.num_classes} classes at most {limit} may overlap in a pixel: leave "
            "classes out of config.data.class_names, or merge two that always overlap"
        )
    return found
