"""CamVid with a U-Net whose head sees the features of all decoder levels; else the recipe of camvid_unet_weighted.

Source: chosen on a part of the training split (experiments/camvid/selection.py), so that the validation split is scored
  once per seed, at the end.
DATA: camvid
COMMAND: segjax train --config=camvid_unet_multiscale --workdir=runs/camvid_multiscale
SCORE: none yet.
TIME: not measured yet.
"""

from segjax.configs.camvid_unet_weighted import get_config as weighted


def get_config():
    """Returns the recipe with a multiscale head."""
    config = weighted()
    config.model.multiscale = True
    config.training.evaluate_every = config.training.steps
    return config
