"""FL*, the focal loss of the paper's appendix, beside focal loss and cross entropy.

Source: Lin et al. 2017 (arXiv 1708.02002), appendix A, table 3.
DATA: road_debris, or crackforest, or road_debris_boxes
COMMAND: python -m experiments.focal_paper.focal_star --preset=cpu --processes=2 --workdir=runs/focal_star
SCORE: cpu: experiments/results/focal_star_road_debris.md and focal_star_crackforest.md;
  boxes, three seeds: experiments/results/focal_star_road_debris_boxes.md
TIME: cpu: 0.1 core hours per seed. 75 to 95 s per cell on one quiet CPU core. smoke has 4 cells; cpu 4 per seed,
  3 seeds on road_debris and 2 on CrackForest; full 5 seeds.
  Boxes: 0.1 core hours per seed on a quiet core.
"""

from segjax.configs.rare_class import DATA, PRESETS, get_config, get_seeds

__all__ = ["DATA", "PRESETS", "get_config", "get_grids", "get_seeds"]


def get_grids(preset="cpu", data="road_debris"):
    """Returns the rows of the paper's table, all with α = ½, so that only the form of the loss differs."""
    rows = (
        {"objective.loss": "sigmoid_focal", "objective.gamma": 0.0},
        {"objective.loss": "sigmoid_focal", "objective.gamma": 2.0},
        {"objective.loss": "sigmoid_focal_star", "objective.gamma": 2.0, "objective.beta": 1.0},
        {"objective.loss": "sigmoid_focal_star", "objective.gamma": 4.0, "objective.beta": 0.0},
    )
    return ((({"objective.alpha": 0.5},), rows),)
