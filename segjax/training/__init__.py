"""Training and evaluation: `train(config, workdir)` and its parts."""

from segjax.data import DataError, LoaderDied, check_split, open_split
from segjax.storage import StorageError
from segjax.training.checkpoint import CheckpointError
from segjax.training.config import ConfigError, changed, defaults, validate
from segjax.training.hosts import HostError, Terminated
from segjax.training.loop import NonFiniteLoss, train
from segjax.training.metrics_writer import read_log

MISTAKES = (
    ConfigError,
    DataError,
    LoaderDied,
    NonFiniteLoss,
    CheckpointError,
    HostError,
    StorageError,
    FileNotFoundError,
    PermissionError,
)
"""Mistakes of a user, which a command prints as one line; other errors are ours and print a traceback."""

__all__ = [
    "MISTAKES",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "NonFiniteLoss",
    "StorageError",
    "Terminated",
    "changed",
    "check_split",
    "defaults",
    "open_split",
    "read_log",
    "train",
    "validate",
]
