"""CamVid with a small U-Net and cross entropy only: the baseline.

Source: the 11-class CamVid of the SegNet tutorial (367 training, 101 validation images of 360×480).
DATA: camvid
COMMAND: segjax train --config=camvid_unet --workdir=runs/camvid_unet
SCORE: validation mean IoU 0.486, pixel accuracy 0.895 at the native 360×480, seed 0; 0.380, 0.415 and 0.456 after 5, 10
  and 15 epochs. Bicyclist is at 0.000, pole at 0.001: the background trap (experiments/results/camvid_unet.json).
  With batch 8 a plain PyTorch U-Net reaches 0.438, with five classes at exactly 0, and ours 0.432, with five at 0.02
  or less. The small batch gives more steps: 3670 instead of 918 in the same 20 epochs.
TIME: 53 minutes on 2 CPU cores that other jobs shared.
"""

from segjax.training import defaults


def get_config():
    """Returns the config: 20 epochs of 367 images are 3670 steps of batch 2."""
    config = defaults()
    config.data.name = "camvid"
    config.data.size = (192, 256)
    config.model.width = 16
    config.objective.loss = "softmax_cross_entropy"
    config.training.steps = 3670
    config.training.global_batch = 2
    config.training.evaluate_every = 918  # five epochs
    config.training.checkpoint_every = 184  # one epoch
    return config
