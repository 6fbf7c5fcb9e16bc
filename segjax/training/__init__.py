"""Training and evaluation: `train(config, workdir)` and what it is made of."""

from segjax.data import DataError, LoaderDied, open_split, skipped_lines
from segjax.data.io import named_images
from segjax.training.artifact import export_run
from segjax.training.checkpoint import CheckpointError
from segjax.training.defaults import ConfigError, changed, defaults
from segjax.training.inspection import Inspection, Shown, inspect_run
from segjax.training.loop import train
from segjax.training.run import (
    Run,
    chosen_threshold,
    class_named,
    digest_of,
    facts_of,
    fingerprint,
    head_rate,
    load_run,
    no_nan,
    read_image,
    run_predictor,
    score_run,
)
from segjax.training.storage import StorageError
from segjax.training.termination import Terminated
from segjax.training.tracker import read_log
from segjax.training.validation import validate
from segjax.training.watch import NonFiniteLoss

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
    "Inspection",
    "NonFiniteLoss",
    "Run",
    "Shown",
    "StorageError",
    "Terminated",
    "changed",
    "chosen_threshold",
    "class_named",
    "defaults",
    "digest_of",
    "export_run",
    "facts_of",
    "fingerprint",
    "head_rate",
    "inspect_run",
    "load_run",
    "named_images",
    "no_nan",
    "open_split",
    "read_image",
    "read_log",
    "run_predictor",
    "score_run",
    "skipped_lines",
    "train",
    "validate",
]
