"""Data: labels, sources, loaders."""

from segjax.data.datasets import DATASETS, label_set, open_split
from segjax.data.io import DataError
from segjax.data.labels import VOID, LabelSet, colorize
from segjax.data.loader import LoaderDied, TrainLoader, eval_batches, train_loader
from segjax.data.pairs import Example, Source, skipped_lines

__all__ = [
    "DATASETS",
    "VOID",
    "DataError",
    "Example",
    "LabelSet",
    "LoaderDied",
    "Source",
    "TrainLoader",
    "colorize",
    "eval_batches",
    "label_set",
    "open_split",
    "skipped_lines",
    "train_loader",
]
