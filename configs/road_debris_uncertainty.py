"""Uncertainty about debris: dropout heads and their variance on the embedded road scenes.

Source: the Cityscapes recipe (configs/cityscapes_unet_recipe.py) on two classes; the road is the background.
DATA: road_debris
COMMAND: segjax train --config=road_debris_uncertainty --workdir=runs/debris_uncertainty
SCORE: debris: average precision 0.717, AUROC 0.995, recall 0.43 and precision 0.84 at p > 1/2, seed 0 (commit
  2143520a3ce4). Earlier code had 0.756, and with π = 0.01, twice the frequency of debris, 0.32 and recall 0 with this
  seed: see below.
TIME: 50 seconds on 2 CPU cores (commit 2143520a3ce4).
"""

from segjax.configs.rare_class import get_config as rare_class


def get_config():
    """Returns the sweeps' network with two softmax outputs, the prior bias, and dropout heads with channel masks."""
    config = rare_class()
    # The frequencies of the training split. With 0.01, more than the frequency of debris, the first steps push all
    # weights of the head below 0, and with seed 0 they stay there.
    config.model.prior, config.model.head_stddev = (0.9945, 0.0055), 0.01
    config.model.dropout, config.model.dropout_mask = "sampled", "channel"
    config.objective.loss, config.objective.alpha = "softmax_cross_entropy", None
    config.objective.boundary_factor = 2.0
    config.objective.uncertainty_weight = 1.0
    config.objective.background = 0
    config.training.steps = 400
    config.training.evaluate_every = config.training.checkpoint_every = 100
    return config
