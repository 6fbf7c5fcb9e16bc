"""The paper's optimiser, where ours contradicts the paper: SGD with momentum, no clipping, the sum over rare pixels.

Source: Lin et al. 2017 (arXiv 1708.02002), section 4.1: learning rate 0.01, momentum 0.9, weight decay 1e-4; cross
  entropy from the usual start diverged, and focal loss was better than cross entropy with the prior. With AdamW and
  clipped gradients, as in the other sweeps, neither is so here.
COMMAND: python -m experiments.focal_paper.sgd_focal --preset=cpu --processes=2 --workdir=runs/sgd_focal
SCORE: of this grid none yet. Of an earlier one, at rates 0.01, 0.001 and 0.0001 and with a warm-up: road_debris, seed
  0, average precision at the paper's rate 0.433 cross entropy and 0.412 focal with the prior, 0.006 both without;
  nothing diverged (experiments/results/sgd_focal_road_debris.json).
TIME: a cell took 79 to 141 s of one CPU core, in the median 90. smoke has 4 cells; cpu 16 (0.4 core hours) a seed, 3
  seeds on road_debris and 2 on CrackForest; full 5 seeds, for accelerators; not timed.
"""

from configs import rare_class
from configs.rare_class import DATA, NO_PRIOR, PRESETS, PRIOR, get_seeds

__all__ = ["DATA", "PRESETS", "get_config", "get_grids", "get_seeds"]

LOSSES = (
    {"objective.loss": "sigmoid_cross_entropy", "objective.alpha": None},
    {"objective.loss": "sigmoid_focal", "objective.alpha": 0.25},
)
RATES = (0.01, 0.03, 0.1, 0.3)


def get_config(preset="cpu", data="road_debris"):
    """The other sweeps' network, data and steps, with the paper's optimiser and normaliser, from the first step on."""
    config = rare_class.get_config(preset, data)
    config.optimizer.name, config.optimizer.momentum, config.optimizer.clip_norm = "sgd", 0.9, 0.0
    config.objective.normalizer = "positives"
    # A warm-up would hide the divergence that is asked about.
    config.optimizer.warmup_fraction = 0.0
    return config


def get_grids(preset="cpu", data="road_debris"):
    """Learning rate × prior × loss; the first rate is the paper's, and those above it are where SGD may diverge."""
    rates = tuple({"optimizer.learning_rate": rate} for rate in (RATES[:1] if preset == "smoke" else RATES))
    return ((rates, (NO_PRIOR, PRIOR), LOSSES),)
