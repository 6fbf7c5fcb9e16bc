"""CamVid with a U-Net whose head sees the features of all decoder levels; else the recipe of camvid_unet_weighted.

Source: chosen on a part of the training split (experiments/camvid/selection.py), so that the validation split is scored
  once per seed, at the end.
DATA: camvid
COMMAND: segjax train --config=camvid_unet_multiscale --workdir=runs/camvid_multiscale
SCORE: validation mean IoU 0.649, pixel accuracy 0.917 at the native 360×480, mean of seeds 0 and 1 (0.642, 0.656). Per
  class: pole 0.114, sign 0.317, fence 0.584, pedestrian 0.368, bicyclist 0.623
  (experiments/results/camvid_unet_multiscale_seed0.json, _seed1.json).
TIME: 24 minutes on one CPU core.
"""

from segjax.configs.camvid_unet_weighted import get_config as weighted


def get_config():
    """Returns the recipe with a multiscale head."""
    config = weighted()
    config.model.multiscale = True
    config.training.evaluate_every = config.training.steps
    return config
