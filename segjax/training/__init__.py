"""Training and evaluation: `train(config, workdir)` and what it is made of."""

from segjax.data import DataError, LoaderDied, open_split, skipped_lines
from segjax.data.io import named_images
from segjax.training.artifact import export_run
from segjax.training.checkpoint import CheckpointError
from segjax.training.config import ConfigError, changed, defaults, validate
from segjax.training.inspection import Inspection, Shown, inspect_run
from segjax.training.loop import NonFiniteLoss, train
from segjax.training.metrics_writer import read_log
from segjax.training.preemption import Terminated
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
