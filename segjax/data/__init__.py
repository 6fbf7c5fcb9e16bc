"""Data: labels, sources, loaders."""

from segjax.data.builders import DATASETS, label_set, open_split
from segjax.data.labels import VOID, LabelSet, colorize
from segjax.data.loader import TrainLoader, eval_batches, train_loader
from segjax.data.source import DataError, Example, Source

__all__ = [
    "DATASETS",
    "VOID",
    "DataError",
    "Example",
    "LabelSet",
    "Source",
    "TrainLoader",
    "colorize",
    "eval_batches",
    "label_set",
    "open_split",
    "train_loader",
]
