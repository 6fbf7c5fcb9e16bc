"""CamVid with a small U-Net and cross entropy only: the baseline that every later idea has to beat.

Source: the 11-class CamVid of the SegNet tutorial (367 training, 101 validation images of 360×480).
COMMAND: python -m segjax.train --config=configs/camvid_unet.py --workdir=runs/camvid_unet
SCORE: validation mean IoU 0.432, pixel accuracy 0.883 at the native 360×480, seed 0; 0.419 after 10 epochs. Pole, sign,
  pedestrian and bicyclist are at exactly 0: the background trap (experiments/results/camvid_unet_batch8.json).
  A plain PyTorch U-Net on the same work reaches 0.438: this config is not there yet.
TIME: an hour on 2 CPU cores that were shared with other jobs all along.
"""

from segjax.training import defaults


def get_config():
    """20 epochs of 367 images: 918 steps of batch 8, with horizontal flips."""
    config = defaults()
    config.data.name = "camvid"
    config.data.size = (192, 256)
    config.model.width = 16
    config.objective.loss = "softmax_cross_entropy"
    config.training.steps = 918
    config.training.evaluate_every = 230  # five epochs
    config.training.checkpoint_every = 46  # one epoch
    return config
