"""CrackForest with focal loss, γ = 2 and α = 0.75: `crackforest_unet.py` with another loss and nothing else.

Source: Lin et al. 2017 (arXiv 1708.02002).
COMMAND: python -m segjax.train --config=configs/crackforest_focal.py --workdir=runs/crack_focal
"""

from configs.crackforest_unet import get_config as cross_entropy


def get_config():
    """The same run as with cross entropy, but for the loss."""
    config = cross_entropy()
    config.objective.loss = "sigmoid_focal"
    config.objective.gamma = 2.0
    config.objective.alpha = 0.75
    return config
