"""Training and evaluation: `train(config, workdir)` and what it is made of."""

from segjax.data import DataError, LoaderDied, open_split, skipped_lines
from segjax.training.defaults import ConfigError, defaults
from segjax.training.loop import NonFiniteLoss, train
from segjax.training.run import Run, load_run, predict_file, run_predictor, score_run
from segjax.training.validation import validate

MISTAKES = (ConfigError, DataError, LoaderDied, NonFiniteLoss, FileNotFoundError, PermissionError)
"""What a person can get wrong, as against a fault of ours: a command prints these as one line."""

__all__ = [
    "MISTAKES",
    "ConfigError",
    "DataError",
    "NonFiniteLoss",
    "Run",
    "defaults",
    "load_run",
    "open_split",
    "predict_file",
    "run_predictor",
    "score_run",
    "skipped_lines",
    "train",
    "validate",
]
