"""CamVid with a small U-Net and cross entropy only: the baseline that every later idea has to beat.

Source: the 11-class CamVid of the SegNet tutorial (367 training, 101 validation images of 360×480).
COMMAND: python -m segjax.train --config=configs/camvid_unet.py --workdir=runs/camvid_unet
"""

from segjax.training import defaults


def get_config():
    """20 epochs of 367 images: 1835 steps of batch 4."""
    config = defaults()
    config.data.name = "camvid"
    config.data.size = (192, 256)
    config.model.width = 16
    config.objective.loss = "softmax_cross_entropy"
    config.augment.scale = (0.8, 1.4)
    config.augment.brightness, config.augment.contrast = 0.1, 0.2
    config.training.global_batch = 4
    config.training.steps = 1835
    config.training.evaluate_every = 459  # five epochs
    config.training.checkpoint_every = 92  # one epoch
    return config
