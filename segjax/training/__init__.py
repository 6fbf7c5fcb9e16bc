"""Training and evaluation: `train(config, workdir)` and what it is made of."""

from segjax.training.defaults import ConfigError, defaults, validate
from segjax.training.loop import NonFiniteLoss, train
from segjax.training.run import Run, load_run

__all__ = ["ConfigError", "NonFiniteLoss", "Run", "defaults", "load_run", "train", "validate"]
