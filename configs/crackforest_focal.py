"""CrackForest with focal loss, γ = 2 and α = 0.75: `crackforest_unet.py` with another loss and nothing else.

Source: Lin et al. 2017 (arXiv 1708.02002).
DATA: crackforest
COMMAND: segjax train --config=crackforest_focal --workdir=runs/crack_focal
SCORE: crack IoU 0.362, average precision 0.506 on the 39 test images, seed 0
  (experiments/results/crackforest_focal.json).
TIME: 31 minutes on one CPU core of a busy machine.
"""

from segjax.configs.crackforest_unet import get_config as cross_entropy


def get_config():
    """Returns `crackforest_unet.py` with another loss."""
    config = cross_entropy()
    config.objective.loss = "sigmoid_focal"
    config.objective.gamma = 2.0
    config.objective.alpha = 0.75
    return config
