"""Drawn road scenes whose debris is left out of the training: the protocol of Lost and Found in miniature.

Source: Pinggera et al., "Lost and Found: detecting small road hazards for self-driving vehicles", IROS 2016, where the
  obstacles of the test images are of kinds that the training images do not label.
DATA: road_debris_scene
COMMAND: segjax train --config=road_debris_unseen --workdir=runs/debris_unseen
SCORE: debris by the energy: AUROC 0.856, average precision 0.018, where chance is 0.005; seed 0 (commit 7fce9b0). Mean
  IoU of the four classes 0.718: without class weights the markings are not learned (IoU 0).
"""

from segjax.configs.rare_class import NO_PRIOR
from segjax.configs.rare_class import get_config as rare_class


def get_config():
    """Returns the sweeps' network with a softmax over road, marking, verge and sky."""
    config = rare_class()
    config.data.name, config.data.unseen_classes = "road_debris_scene", ("debris",)
    config.objective.loss, config.objective.alpha = "softmax_cross_entropy", None
    config.model.prior, config.model.head_stddev = NO_PRIOR["model.prior"], NO_PRIOR["model.head_stddev"]
    config.training.evaluate_every = config.training.checkpoint_every = 100
    return config
