"""Ways to see a rare pixel: losses, weights, sampling, prior and adjustments, all with the same network and steps.

Source: each method at the values of its paper (`segjax.losses` names them); nothing is tuned on these data.
DATA: road_debris, or crackforest, or camvid
COMMAND: python -m experiments.rare_methods --processes=2 --workdir=runs/rare_methods
SCORE: none yet.
TIME: not measured yet.
"""

import numpy as np

from segjax import losses
from segjax.configs import camvid_unet, rare_class

# Labelled pixels per class of the training split.
PIXELS = {
    "road_debris": (3_046_803, 16_764),
    "crackforest": (11_849_990, 194_680),
    "camvid": (
        *(10_682_767, 14_750_079, 623_349, 20_076_880, 2_845_085, 6_166_762, 743_859, 714_595, 3_719_877),
        *(405_385, 184_967),
    ),
}
DATA = tuple(PIXELS)
# Names of the classes whose scores are averaged.
RARE = {
    "road_debris": ("debris",),
    "crackforest": ("crack",),
    "camvid": ("pole", "sign", "fence", "pedestrian", "bicyclist"),
}
BASELINE = "cross entropy"


def get_config(data="road_debris"):
    """Returns the config that the rows change: cross entropy, without a prior."""
    if data == "camvid":
        config = camvid_unet.get_config()
        config.data.size, config.data.workers = (144, 192), 0
        config.model.width, config.model.depth, config.model.padding = 8, 3, "zeros"
        config.optimizer.learning_rate = 5e-3
        config.training.steps, config.training.global_batch = 500, 4
    else:
        config = rare_class.get_config("cpu", data)
        config.objective.loss, config.objective.alpha = "softmax_cross_entropy", None
        config.model.prior, config.model.head_stddev = (), None
    config.training.evaluate_every = config.training.checkpoint_every = config.training.steps
    return config


def get_rows(data="road_debris"):
    """Returns the changes of each method, by name."""
    counts, binary = np.array(PIXELS[data]), len(PIXELS[data]) == 2
    shares = tuple((counts / counts.sum()).tolist())
    inverse, median, log = (
        _weights(losses.class_weights(counts, scheme)) for scheme in ("inverse", "median-frequency", "log")
    )
    effective = _weights(losses.class_weights(counts, "effective-number", beta=1 - 1 / counts.min()))
    root = {"objective.class_weights": tuple(weight**0.5 for weight in median["objective.class_weights"])}
    prior = {"model.prior": shares, "model.head_stddev": 0.01}
    focal = {"objective.loss": "softmax_focal", "objective.gamma": 2.0}
    crops = {"augment.crop_fraction": 0.75}
    rare = {} if binary else {"augment.rare_classes": RARE[data]}
    rows = {
        BASELINE: {},
        "weights, inverse frequency": inverse,
        "weights, median frequency": median,
        "weights, root of median frequency": root,
        "weights, ENet": log,
        "weights, effective number": effective,
        "prior": prior,
        "logit adjustment": {"objective.logit_adjustment": 1.0},
        "focal": focal,
        "focal, prior": focal | prior,
        "focal, root weights": focal | root,
        "Poly-1": {"objective.loss": "softmax_poly1", "objective.gamma": 0.0},
        "LDAM": {"objective.loss": "ldam"},
        "LDAM, deferred weights": {"objective.loss": "ldam", "objective.class_weights_after": 0.8} | effective,
        "seesaw": {"objective.loss": "seesaw"},
        "OHEM, hardest 1/16": {"objective.hard_fraction": 0.0625},
        "OHEM, p below 0.7": {"objective.hard_threshold": 0.3567},
        "CE + Dice": {"objective.region": "dice"},
        "CE + generalized Dice": {"objective.region": "generalized_dice"},
        "CE + Jaccard": {"objective.region": "jaccard"},
        "CE + Lovász": {"objective.region": "lovasz"},
        "CE + Tversky, 0.3 and 0.7": {
            "objective.region": "tversky",
            "objective.tversky_alpha": 0.3,
            "objective.tversky_beta": 0.7,
        },
        "CE + Matthews": {"objective.region": "matthews"},
        "CE + clDice": {"objective.region": "cl_dice"},
        "CE + 0.01 boundary loss": {"objective.region": "boundary", "objective.region_weight": 0.01},
        "focal + Dice": focal | {"objective.region": "dice"},
        "boundary weights, 3": {"objective.boundary_factor": 3.0},
        "crops of 75 %": crops,
        "crops of 75 %, a third rare": crops | rare | {"augment.rare_crops": 1 / 3},
        "copy-paste, half": rare | {"augment.copy_paste": 0.5},
        "rare images (DAFormer)": {"data.sampling_temperature": 0.01},
        "root weights, boundary weights, Jaccard": {"objective.boundary_factor": 3.0, "objective.region": "jaccard"}
        | root,
    }
    if binary:
        rows["asymmetric focal"] = {
            "objective.loss": "asymmetric_focal",
            "objective.gamma": 0.5,
            "objective.asymmetric_delta": 0.6,
        }
        rows["RetinaNet's: sigmoid focal, α = ¼, prior"] = {
            "objective.loss": "sigmoid_focal",
            "objective.alpha": 0.25,
            **rare_class.PRIOR,
        }
    return rows


def get_seeds(data="road_debris"):
    """Returns the seeds of each method."""
    return (0, 1, 2)


def _weights(weights):
    return {"objective.class_weights": tuple(np.asarray(weights).tolist())}
