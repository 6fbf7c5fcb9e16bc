"""The paper's optimiser: SGD with momentum, without clipping, loss divided by the number of rare pixels.

Source: Lin et al. 2017 (arXiv 1708.02002), section 4.1: learning rate 0.01, momentum 0.9, weight decay 1e-4; cross
  entropy without the prior diverged, and focal loss was better than cross entropy with the prior. With AdamW and
  clipped gradients, as in the other sweeps, neither is the case here.
DATA: road_debris, or crackforest, or road_debris_boxes
COMMAND: python -m experiments.focal_paper.sgd_focal --preset=cpu --processes=2 --workdir=runs/sgd_focal
SCORE: pixels: none for this grid yet. In an earlier one, at rates 0.01, 0.001 and 0.0001 and with a warm-up:
  road_debris, seed 0, average precision at the paper's rate 0.433 cross entropy and 0.412 focal with the prior, 0.006
  both without; nothing diverged (experiments/results/sgd_focal_road_debris.json). Boxes, seed 0, this
  grid: AP 0.037 focal, 0.033 cross entropy with α = 0.9 and 0.000 plain cross entropy, all with the prior and at their
  best rates; 0.001 without the prior (experiments/results/sgd_focal_road_debris_boxes.md).
TIME: cpu: 0.4 core hours per seed. 79 to 141 s per cell on one CPU core, median 90. smoke has 4 cells; cpu 16 per
  seed, 3 seeds on road_debris and 2 on CrackForest; full 5 seeds, for accelerators; not timed. Boxes: 32 cells, 1.0
  core hours per seed on a core that other jobs shared.
"""

from segjax.configs import rare_class
from segjax.configs.rare_class import DATA, NO_PRIOR, PRESETS, PRIOR, get_seeds

__all__ = ["DATA", "PRESETS", "get_config", "get_grids", "get_seeds"]

LOSSES = (
    {"objective.loss": "sigmoid_cross_entropy", "objective.alpha": None},
    {"objective.loss": "sigmoid_focal", "objective.alpha": 0.25},
)
RATES = (0.01, 0.03, 0.1, 0.3)
# On boxes cross entropy learns nothing at the paper's rate.
LOW_RATES = (0.0003, 0.001, 0.003)


def get_config(preset="cpu", data="road_debris"):
    """Returns the sweeps' config with the paper's optimiser and normaliser."""
    config = rare_class.get_config(preset, data)
    config.optimizer.name, config.optimizer.momentum, config.optimizer.clip_norm = "sgd", 0.9, 0.0
    config.objective.normalizer = "positives"
    # A warm-up would hide the divergence in question.
    config.optimizer.warmup_fraction = 0.0
    return config


def get_grids(preset="cpu", data="road_debris"):
    """Returns learning rate × prior × loss; the first rate is the paper's, and SGD may diverge at higher ones."""
    values = RATES[:1] if preset == "smoke" else LOW_RATES * (data == "road_debris_boxes") + RATES
    rates = tuple({"optimizer.learning_rate": rate} for rate in values)
    grid = (rates, (NO_PRIOR, PRIOR), LOSSES)
    if data != "road_debris_boxes" or preset == "smoke":
        return (grid,)
    # The best α of cross entropy on boxes.
    balanced = {"objective.loss": "sigmoid_cross_entropy", "objective.alpha": 0.9}
    return (
        grid,
        (tuple({"optimizer.learning_rate": rate} for rate in (0.003, 0.01, 0.03, 0.1)), (PRIOR,), (balanced,)),
    )
