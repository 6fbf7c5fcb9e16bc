"""Debris and how sure the network is of it: dropout heads and their variance on the embedded road scenes.

Source: the Cityscapes recipe (configs/cityscapes_unet_recipe.py) on two classes; the road is the background.
COMMAND: python -m segjax.train --config=configs/road_debris_uncertainty.py --workdir=runs/debris_uncertainty
SCORE: average precision 0.321 of debris, AUROC 0.993, but recall 0 at p > 1/2 and pixel accuracy 0.995, seed 0: 400
  steps do not leave the background trap. With C = 0.1 it is the same (average precision 0.299), so the penalty is not
  what holds it there.
TIME: 2 minutes on 2 CPU cores.
"""

from configs.road_debris_ablation import get_config as ablation


def get_config():
    """The ablation's network with two softmax outputs, the prior bias, and dropout heads with channel masks."""
    config = ablation()
    config.model.prior, config.model.head_stddev = (0.99, 0.01), 0.01
    config.model.dropout, config.model.mask = "sampled", "channel"
    config.objective.loss = "softmax_cross_entropy"
    config.objective.boundary_factor = 2.0
    config.objective.uncertainty_weight = 1.0
    config.objective.background = 0
    config.training.steps = 400
    return config
