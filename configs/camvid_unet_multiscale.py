"""CamVid with a U-Net whose head sees the features of all decoder levels; else the recipe of camvid_unet_weighted.

Source: chosen on a part of the training split (experiments/camvid/selection.py), so that the validation split is scored
  once per seed, at the end.
DATA: camvid
COMMAND: segjax train --config=camvid_unet_multiscale --workdir=runs/camvid_multiscale
SCORE: validation mean IoU 0.651 ± 0.008, pixel accuracy 0.916 at the native 360×480, seeds 0, 1 and 2 (0.642, 0.656,
  0.656). Per class: pole 0.113, sign 0.322, fence 0.568, pedestrian 0.390, bicyclist 0.644
  (experiments/results/camvid_unet_multiscale_seed0.json, _seed1.json, _seed2.json).
TIME: 24 minutes on one CPU core; seed 2 took 37 on a core that other jobs shared.
"""

from segjax.configs.camvid_unet_weighted import get_config as weighted


def get_config():
    """Returns the recipe with a multiscale head."""
    config = weighted()
    config.model.multiscale = True
    config.training.evaluate_every = config.training.steps
    return config
