"""Data: labels, sources, loaders."""

from etils import epy

from segjax.data.datasets import DATASETS, label_set, open_split
from segjax.data.io import DataError
from segjax.data.labels import UNSEEN, VOID, LabelSet, colorize
from segjax.data.loader import LoaderDied, TrainLoader, eval_batches, rare_class_sampling, train_loader
from segjax.data.pairs import Example, Part, Source, check_split, class_pixels

with epy.lazy_api_imports(globals()):  # not for training
    from segjax.data.corruptions import CORRUPTIONS, corrupt

__all__ = [
    "CORRUPTIONS",
    "DATASETS",
    "UNSEEN",
    "VOID",
    "DataError",
    "Example",
    "LabelSet",
    "LoaderDied",
    "Part",
    "Source",
    "TrainLoader",
    "check_split",
    "class_pixels",
    "colorize",
    "corrupt",
    "eval_batches",
    "label_set",
    "open_split",
    "rare_class_sampling",
    "train_loader",
]
