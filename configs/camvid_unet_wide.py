"""CamVid with a wider U-Net: more channels at full size, fewer below, a multiscale head, a Lovász loss.

Source: chosen on a part of the training split (experiments/camvid/selection.py), so that the validation split is scored
  once per seed, at the end.
DATA: camvid
COMMAND: segjax train --config=camvid_unet_wide --workdir=runs/camvid_wide
SCORE: validation mean IoU 0.660, pixel accuracy 0.922 at the native 360×480, mean of seeds 0 and 1 (0.654, 0.666). Per
  class: pole 0.100, sign 0.374, fence 0.622, pedestrian 0.361, bicyclist 0.667; poles are not found better than with
  camvid_unet_multiscale (experiments/results/camvid_unet_wide_seed0.json, _seed1.json).
TIME: 48 minutes on one CPU core.
"""

from segjax.configs.camvid_unet_multiscale import get_config as multiscale


def get_config():
    """Returns the recipe with a multiscale head for a network of 1.75 million parameters."""
    config = multiscale()
    config.model.width, config.model.depth, config.model.max_width = 32, 5, 96
    config.objective.region = "lovasz"
    return config
