"""The background trap in minutes: a small U-Net on the embedded road scenes, where debris is 0.5 % of the pixels.

Source: Lin et al. 2017 (arXiv 1708.02002), tables 1a and 1b, asked of segmentation.
COMMAND: make ablation (experiments/focal_ablation.py trains it five times)
SCORE: without a prior bias nothing finds debris in 200 steps; with it AP 0.74 (CE) and 0.64 (focal), seed 0
  (experiments/results/road_debris_ablation.md).
TIME: 3.4 minutes for all five rows on 2 CPU cores.
"""

from segjax.training import defaults


def get_config():
    """Plain cross entropy; the ablation changes the loss, γ, α and the prior bias, and nothing else."""
    config = defaults()
    config.data.name = "road_debris"
    config.data.scene_size = (96, 128)
    config.data.train_examples, config.data.val_examples = 256, 64
    config.data.size = (96, 128)
    config.data.workers = 0
    config.model.width, config.model.depth = 8, 3
    config.model.padding = "zeros"  # compiles three times as fast as reflection
    config.objective.loss = "sigmoid_cross_entropy"
    config.optimizer.learning_rate = 5e-3
    config.training.steps = 200
    config.training.evaluate_every = 100
    config.training.checkpoint_every = 100
    return config
