"""The losses of one converged network, γ = 2: figures 1, 4, 5 and 6 of the focal loss paper.

Source: Lin et al. 2017 (arXiv 1708.02002), section 5.1 ("Analysis of the Focal Loss") and appendices A and B.
DATA: road_debris, or crackforest, or road_debris_boxes
COMMAND: python -m experiments.focal_paper.loss_curves --preset=cpu --processes=2 --workdir=runs/loss_curves
SCORE: cpu: experiments/results/loss_curves_road_debris.md, loss_curves_crackforest.md and
  loss_curves_road_debris_boxes.md
TIME: cpu: 5 minutes per seed on one CPU core. One cell per seed, with twice the steps of the other sweeps. smoke 1
  seed; cpu 3 on road_debris and 2 on CrackForest; full 5.
"""

from segjax.configs import rare_class
from segjax.configs.rare_class import DATA, PRESETS, get_seeds

__all__ = ["DATA", "PRESETS", "get_config", "get_grids", "get_seeds"]


def get_config(preset="cpu", data="road_debris"):
    """Returns the sweeps' config with twice the steps, because the figures show a converged network."""
    config = rare_class.get_config(preset, data)
    config.training.steps *= 2
    return config


def get_grids(preset="cpu", data="road_debris"):
    """Returns one row: the paper's γ and α."""
    return ((({"objective.gamma": 2.0, "objective.alpha": 0.25},),),)
