"""Four times the steps for five cells of the other sweeps; two of them ended without a rare pixel found.

Source: Lin et al. 2017 (arXiv 1708.02002) train each of their rows for 90k steps; the sweeps here have 300.
DATA: road_debris, or crackforest
COMMAND: python -m experiments.focal_paper.training_length --preset=cpu --processes=2 --workdir=runs/training_length
SCORE: road_debris, cpu, seed 0 of 3: experiments/results/training_length_road_debris.md
TIME: cpu: 0.5 core hours per seed. road_debris: 311 to 366 s per cell on one CPU core that other work shared, 5
  cells per seed; 3 seeds, and 2 on CrackForest. smoke (2 cells) and full (5 seeds) not timed.
"""

from segjax.configs import rare_class
from segjax.configs.rare_class import PIXELS as DATA
from segjax.configs.rare_class import PRESETS, get_seeds

__all__ = ["DATA", "PRESETS", "get_config", "get_grids", "get_seeds"]

TIMES = 4


def get_config(preset="cpu", data="road_debris"):
    """Returns the sweeps' config with four times the steps."""
    config = rare_class.get_config(preset, data)
    config.training.steps *= TIMES
    config.training.evaluate_every = config.training.checkpoint_every = config.training.steps // 24
    return config


def get_grids(preset="cpu", data="road_debris"):
    """Returns cross entropy, two cells in the background trap, and focal loss at γ = 2, all with the prior π = 0.01."""
    sigmoid = [
        {"objective.loss": "sigmoid_focal", "objective.gamma": gamma, "objective.alpha": alpha}
        for gamma, alpha in ((0.0, 0.25), (0.0, 0.5), (2.0, 0.1), (2.0, 0.25))
    ]
    softmax = {
        "objective.loss": "softmax_cross_entropy",
        "objective.alpha": None,
        "objective.class_weights": (),
        "model.prior": (0.99, 0.01),
    }
    return ((tuple(sigmoid[1:3]) if preset == "smoke" else (*sigmoid, softmax),),)
