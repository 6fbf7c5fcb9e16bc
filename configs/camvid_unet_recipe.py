"""The Cityscapes recipe at CamVid's size; `experiments/camvid/uncertainty_ladder.py` adds its parts one by one.

Source: configs/cityscapes_unet_recipe.py; k = 2, C = 1 (the recipe's notebook), K = 3 heads with p = 0.2, void as a
  twelfth class, crops of 60 %, 75 % and 100 % for one third of the steps each.
DATA: camvid
COMMAND: segjax train --config=camvid_unet_recipe --workdir=runs/camvid_recipe
SCORE: mean IoU 0.429 (cross entropy alone: 0.440), accuracy with void 0.868, the mean of two seeds; it is the row
  "+ sampled variance" of experiments/results/uncertainty_ladder.md.
TIME: 26 to 34 minutes on one of two busy CPU cores.
"""

from segjax.configs.camvid_unet import get_config as cross_entropy

STEPS = 2202  # 12 epochs of 367 images in batches of 2


def get_config():
    """Returns the whole recipe; the ladder adds its parts one by one."""
    config = cross_entropy()
    config.model.dropout, config.model.num_samples, config.model.dropout_rate = "sampled", 3, 0.2
    config.objective.void = "class"
    config.objective.boundary_factor = 2.0
    config.objective.uncertainty_weight = 1.0
    rate = config.optimizer.learning_rate
    config.training.steps = STEPS
    config.training.phases = tuple((fraction, STEPS // 3, rate) for fraction in (0.6, 0.75, 1.0))
    config.training.evaluate_every = STEPS // 3
    config.training.checkpoint_every = STEPS // 12
    return config
