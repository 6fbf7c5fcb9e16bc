"""CamVid with a U-Net for thin objects: more channels at full size, fewer below, a multiscale head, a Lovász loss.

Source: chosen on a part of the training split (experiments/camvid/selection.py), so that the validation split is scored
  once per seed, at the end.
DATA: camvid
COMMAND: segjax train --config=camvid_unet_wide --workdir=runs/camvid_wide
SCORE: not measured yet.
TIME: not measured yet.
"""

from segjax.configs.camvid_unet_multiscale import get_config as multiscale


def get_config():
    """Returns the recipe with a multiscale head for a network of 1.75 million parameters."""
    config = multiscale()
    config.model.width, config.model.depth, config.model.max_width = 32, 5, 96
    config.objective.region = "lovasz"
    return config
