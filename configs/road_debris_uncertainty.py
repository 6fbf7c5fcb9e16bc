"""Debris and how sure the network is of it: dropout heads and their variance on the embedded road scenes.

Source: the Cityscapes recipe (configs/cityscapes_unet_recipe.py) on two classes; the road is the background.
COMMAND: python -m segjax.train --config=configs/road_debris_uncertainty.py --workdir=runs/debris_uncertainty
SCORE: TO MEASURE
TIME: TO MEASURE
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
