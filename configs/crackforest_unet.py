"""CrackForest, cracks against road, cross entropy: the rare class on real photographs.

DATA: crackforest
COMMAND: segjax train --config=crackforest_unet --workdir=runs/crack_ce
SCORE: crack IoU 0.264, average precision 0.465 on the 39 test images, seed 0
  (experiments/results/crackforest_unet.json).
TIME: 25 minutes on one CPU core of a busy machine.
"""

from segjax.training import defaults


def get_config():
    """Returns 20 epochs of 79 images; `crackforest_focal.py` changes only the loss."""
    config = defaults()
    config.data.name = "crackforest"
    config.data.eval_split = "test"
    config.data.size = (256, 384)
    config.augment.scale = (1.0, 1.5)
    config.augment.brightness, config.augment.contrast = 0.1, 0.2
    config.model.width = 16
    config.objective.loss = "sigmoid_cross_entropy"
    config.training.global_batch = 4
    config.training.steps = 400
    config.training.evaluate_every = 100
    config.training.checkpoint_every = 50
    return config
