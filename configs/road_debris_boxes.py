"""A small RetinaNet that finds debris on the road as boxes, trained with the focal loss of its paper.

Source: Lin et al. 2017 (arXiv 1708.02002): γ = 2, α = 0.25, π = 0.01, 9 anchors per cell, normalised by the positives.
DATA: road_debris
COMMAND: segjax train --config=road_debris_boxes --workdir=runs/boxes
SCORE: AP of boxes 0.162, AP50 0.533, AR100 0.309 on 128 validation scenes with 517 objects, seed 0
  (experiments/results/road_debris_boxes.json)
TIME: 35 minutes on one CPU core of a busy machine
"""

from segjax.training import defaults


def get_config():
    """Returns a RetinaNet on the encoder of a small U-Net; levels and anchors are for objects of 4 to 25 pixels."""
    config = defaults()
    config.data.name, config.data.box_classes = "road_debris", ("debris",)
    config.data.scene_size = config.data.size = (192, 256)
    config.model.name, config.model.encoder, config.model.width = "retinanet", "unet", 8
    config.model.levels, config.model.anchor_base, config.model.hidden = (2, 3, 4), 1.0, 32
    config.model.head_convs, config.model.head_norm = 2, "group"
    config.model.prior, config.model.head_stddev = (0.01,), 0.01
    config.objective.loss, config.objective.gamma, config.objective.alpha = "sigmoid_focal", 2.0, 0.25
    config.objective.normalizer = "positives"
    config.optimizer.learning_rate = 5e-3
    config.training.steps = 1200
    config.training.evaluate_every = config.training.checkpoint_every = 300
    return config
