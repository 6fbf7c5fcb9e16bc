"""Tables 1a and 1b of the focal loss paper: α at γ = 0, and the best α for each γ in the whole γ × α grid.

Source: Lin et al. 2017 (arXiv 1708.02002), section 5.1, with its prior bias π = 0.01 at the head.
DATA: road_debris, or crackforest, or road_debris_boxes
COMMAND: python -m experiments.focal_paper.focal_ablation --preset=cpu --processes=2 --workdir=runs/focal_ablation
SCORE: cpu and smoke: experiments/results/focal_ablation_road_debris.md, focal_ablation_crackforest.md and
  focal_ablation_smoke.md;
  boxes, three seeds: experiments/results/focal_ablation_road_debris_boxes.md
TIME: cpu: 1.4 core hours per seed on road_debris, 1.2 on CrackForest. smoke (5 cells) 3.3 minutes on two CPU cores.
  cpu: 60 cells per seed, 3 seeds on road_debris (75 to 95 s per cell on one quiet core) and 2 on CrackForest (54 to
  85 s with huge pages). full: 5 seeds, for accelerators; not timed.
  Boxes: 1.5 core hours per seed on a quiet core.
"""

from segjax.configs.rare_class import DATA, NO_PRIOR, PRESETS, PRIOR, get_config, get_seeds

__all__ = ["DATA", "PRESETS", "get_config", "get_grids", "get_seeds"]

GAMMAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
ALPHAS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
# The best α for a high γ may be below ALPHAS; the paper searched from 0.01 too.
LOW_ALPHAS, LOW_FROM = (0.01, 0.05), 0.5


def _cells(prior, pairs):
    return ((prior,), tuple({"objective.gamma": gamma, "objective.alpha": alpha} for gamma, alpha in pairs))


def get_grids(preset="cpu", data="road_debris"):
    """Returns products of axes; an axis is a tuple of changes to the config. γ = 0, α = ½ is cross entropy."""
    trap = _cells(NO_PRIOR, ((0.0, 0.5), (0.0, 0.95), (2.0, 0.75)))
    if preset == "smoke":
        return (trap, _cells(PRIOR, ((0.0, 0.5), (2.0, 0.75))))
    low = tuple((gamma, alpha) for gamma in GAMMAS if gamma >= LOW_FROM for alpha in LOW_ALPHAS)
    return (_cells(PRIOR, (*((gamma, alpha) for gamma in GAMMAS for alpha in ALPHAS), *low)), trap)
