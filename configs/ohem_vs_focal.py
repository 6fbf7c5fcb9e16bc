"""Mining hard pixels against focal loss: OHEM by fraction and by threshold, OHEM 1:3, hinge.

Source: Lin et al. 2017 (arXiv 1708.02002), table 1d and section 5.1; Shrivastava et al. 2016 (arXiv 1604.03540).
DATA: road_debris, or crackforest, or road_debris_boxes
COMMAND: python -m experiments.focal_paper.ohem_vs_focal --preset=cpu --processes=2 --workdir=runs/ohem_vs_focal
SCORE: cpu: experiments/results/ohem_vs_focal_road_debris.md and ohem_vs_focal_crackforest.md;
  boxes, three seeds: experiments/results/ohem_vs_focal_road_debris_boxes.md
TIME: cpu: 0.3 core hours per seed. 75 to 95 s per cell on one quiet CPU core. smoke has 4 cells; cpu 13 per seed,
  3 seeds on road_debris and 2 on CrackForest; full 5 seeds.
  Boxes: 0.3 core hours per seed on a quiet core.
"""

import math

from segjax.configs.rare_class import DATA, PRESETS, get_config, get_seeds

__all__ = ["DATA", "PRESETS", "get_config", "get_grids", "get_seeds"]

CE = {"objective.loss": "sigmoid_cross_entropy", "objective.alpha": None}
FRACTIONS = (0.25, 0.0625, 0.015625)
# The same for boxes: the fraction of the 36 288 anchors that is 512, 256 or 128 per image, as in the paper.
BOX_FRACTIONS = {512: 0.0141, 256: 0.0071, 128: 0.0035}
# A pixel contributes if its p_t is below these.
PROBABILITIES = (0.95, 0.7)
# Per pixel of the rare class, as in the paper's OHEM 1:3.
NEGATIVES = (1.0, 3.0, 10.0)
FOCAL = tuple(
    {"objective.loss": "sigmoid_focal", "objective.gamma": 2.0, "objective.alpha": alpha} for alpha in (0.25, 0.5, 0.75)
)


def get_grids(preset="cpu", data="road_debris"):
    """Returns one axis: cross entropy, with mining, hinge and focal loss. All start from the prior π = 0.01."""
    if preset == "smoke":
        mined = ({"objective.hard_fraction": 0.0625}, {"objective.negatives_per_positive": 3.0})
        return (((CE, *(CE | one for one in mined), FOCAL[1]),),)
    on_boxes = data == "road_debris_boxes"
    mined = (
        *({"objective.hard_fraction": fraction} for fraction in (BOX_FRACTIONS.values() if on_boxes else FRACTIONS)),
        *({"objective.hard_threshold": round(-math.log(p), 4)} for p in (() if on_boxes else PROBABILITIES)),
        *({"objective.negatives_per_positive": number} for number in NEGATIVES),
    )
    hinge = {"objective.loss": "hinge", "objective.alpha": None}
    return (((CE, *(CE | one for one in mined), hinge, *FOCAL),),)
