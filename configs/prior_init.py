"""The prior-probability bias of the head and its effect on the first step, the background trap and the final score.

Source: Lin et al. 2017 (arXiv 1708.02002), sections 3.3, 4.1 ("Initialization") and 5.1.
DATA: road_debris, or crackforest, or road_debris_boxes
COMMAND: python -m experiments.focal_paper.prior_init --preset=cpu --processes=2 --workdir=runs/prior_init
SCORE: cpu: experiments/results/prior_init_road_debris.md and prior_init_crackforest.md;
  boxes, three seeds: experiments/results/prior_init_road_debris_boxes.md
TIME: cpu: 0.7 core hours per seed. 75 to 95 s per cell on one quiet CPU core. smoke has 4 cells; cpu 30 per seed,
  3 seeds on road_debris and 2 on CrackForest; full 5 seeds.
  Boxes: 0.2 core hours per seed on a quiet core.
"""

from segjax.configs.rare_class import DATA, NO_PRIOR, PRESETS, get_config, get_seeds

__all__ = ["DATA", "PRESETS", "get_config", "get_grids", "get_seeds"]

PRIORS = (0.5, 0.1, 0.01, 0.001)
# α = ¼ as in the paper; with a softmax α is the weight of the rare class and 1 - α that of the background.
SIGMOID = (
    {"objective.loss": "sigmoid_cross_entropy", "objective.alpha": None},
    {"objective.loss": "sigmoid_focal", "objective.alpha": 0.25},
)
SOFTMAX = (
    {"objective.loss": "softmax_cross_entropy", "objective.alpha": None, "objective.class_weights": ()},
    {"objective.loss": "softmax_focal", "objective.alpha": None, "objective.class_weights": (0.75, 0.25)},
)


def _priors(values, frequencies):
    return (NO_PRIOR, *({"model.prior": frequencies(pi), "model.head_stddev": 0.01} for pi in values))


def get_grids(preset="cpu", data="road_debris"):
    """Returns π × loss × normaliser for sigmoid, π × loss for softmax; without a prior the head starts as usual.

    Detectors have no softmax, and boxes only the paper's normaliser.
    """
    if preset == "smoke":
        return ((_priors((0.01,), lambda pi: (pi,)), SIGMOID),)
    if data == "road_debris_boxes":
        return ((_priors(PRIORS, lambda pi: (pi,)), SIGMOID),)
    normalizers = ({"objective.normalizer": "valid"}, {"objective.normalizer": "positives"})
    return (
        (_priors(PRIORS, lambda pi: (pi,)), SIGMOID, normalizers),
        (_priors(PRIORS, lambda pi: (1 - pi, pi)), SOFTMAX),
    )
