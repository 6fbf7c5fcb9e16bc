"""A small RetinaNet that finds debris on the road as boxes, trained with the focal loss of its paper.

Source: Lin et al. 2017 (arXiv 1708.02002): γ = 2, α = 0.25, π = 0.01, 9 anchors per cell, normalised by the positives.
DATA: road_debris
COMMAND: segjax train --config=road_debris_boxes --workdir=runs/boxes
"""

from segjax.training import defaults


def get_config():
    """Returns a RetinaNet on a narrow ResNet-18; levels and anchors are for objects of 4 to 50 pixels."""
    config = defaults()
    config.data.name, config.data.box_classes = "road_debris", ("debris",)
    config.data.scene_size = config.data.size = (192, 256)
    config.augment.scale = (0.8, 1.5)
    config.model.name = "retinanet"
    config.model.encoder_depth, config.model.width, config.model.hidden = 18, 16, 64
    config.model.levels, config.model.anchor_base = (2, 3, 4, 5), 1.0
    config.model.prior = (0.01,)
    config.objective.loss, config.objective.gamma, config.objective.alpha = "sigmoid_focal", 2.0, 0.25
    config.objective.normalizer = "positives"
    config.training.steps = 2000
    return config
