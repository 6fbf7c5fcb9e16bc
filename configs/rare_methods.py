"""Ways to see a rare pixel: losses, weights, sampling, prior and adjustments, all with the same network and steps.

Source: the papers that `segjax.losses` names; parameters are theirs or defaults, and none is tuned on these data.
DATA: road_debris, or crackforest, or camvid
COMMAND: python -m experiments.rare_methods --processes=2 --workdir=runs/rare_methods
SCORE: 22 methods with seeds 0, 1 and 2, and 12 more with fewer (experiments/results/rare_methods.md): average precision
  0.762 ± 0.020 on road_debris and 0.638 ± 0.012 on CrackForest with the prior, 0.157 ± 0.132 and 0.420 ± 0.085 without;
  on CamVid nothing ranks above cross entropy, 0.085 ± 0.040
TIME: 48 to 105 s per cell on a core that other jobs shared, 85 to 160 s on CamVid; 5.1 hours for 217 cells of 444.
  --measured=experiments/results/rare_methods.json runs the missing cells only, and --method=… some methods.
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
# Methods that are trained from the prior too.
WITH_PRIOR = (
    *("weights, root of median frequency", "Poly-1", "OHEM, hardest 1/16", "CE + Dice", "CE + generalized Dice"),
    *("CE + Jaccard", "CE + Lovász", "CE + Tversky, 0.3 and 0.7", "CE + Matthews", "CE + clDice"),
    *("CE + 0.01 boundary loss", "boundary weights, 3", "crops of 75 %", "crops of 75 %, a third rare"),
    *("copy-paste, half", "rare images (DAFormer)", "root weights, boundary weights, Jaccard"),
)


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
    # Weights by median frequency are these times a number, which Adam divides out.
    inverse, log = (_weights(losses.class_weights(counts, scheme)) for scheme in ("inverse", "log"))
    effective = _weights(losses.class_weights(counts, "effective-number", beta=1 - 1 / counts.min()))
    median = np.asarray(losses.class_weights(counts, "median-frequency"))
    root = {"objective.class_weights": tuple(weight**0.5 for weight in median.tolist())}
    prior = {"model.prior": shares, "model.head_stddev": 0.01}
    focal = {"objective.loss": "softmax_focal", "objective.gamma": 2.0}
    crops = {"augment.crop_fraction": 0.75}
    rare = {} if binary else {"augment.rare_classes": RARE[data]}
    rows = {
        BASELINE: {},
        "weights, inverse frequency": inverse,
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
    rows |= {f"{name}, prior": rows[name] | prior for name in WITH_PRIOR}
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
