"""CrackForest, cracks against road, cross entropy: the rare class on real photographs.

COMMAND: SEGJAX_CRACKFOREST_DIR=… python -m segjax.train --config=configs/crackforest_unet.py --workdir=runs/crack_ce
"""

from segjax.training import defaults


def get_config():
    """Plain cross entropy on one logit a pixel; `crackforest_focal.py` changes the loss and nothing else."""
    config = defaults()
    config.data.name = "crackforest"
    config.data.eval_split = "test"
    config.data.size = (320, 480)
    config.augment.crop_fraction = 0.5
    config.model.width = 16
    config.objective.loss = "sigmoid_cross_entropy"
    config.training.steps = 400
    config.training.evaluate_every = 100
    config.training.checkpoint_every = 50
    return config
