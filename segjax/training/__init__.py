"""Training and evaluation: `train(config, workdir)` and what it is made of."""

from segjax.data import DataError, LoaderDied, open_split, skipped_lines
from segjax.storage import StorageError
from segjax.training.checkpoint import CheckpointError
from segjax.training.config import ConfigError, changed, defaults, validate
from segjax.training.loop import NonFiniteLoss, train
from segjax.training.metrics_writer import read_log
from segjax.training.preemption import Terminated

MISTAKES = (
    ConfigError,
    DataError,
    LoaderDied,
    NonFiniteLoss,
    CheckpointError,
    StorageError,
    FileNotFoundError,
    PermissionError,
)
"""What a person can get wrong, as against a fault of ours: a command prints these as one line."""

__all__ = [
    "MISTAKES",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "NonFiniteLoss",
    "StorageError",
    "Terminated",
    "changed",
    "defaults",
    "open_split",
    "read_log",
    "skipped_lines",
    "train",
    "validate",
]
