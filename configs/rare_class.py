"""The config of the sweeps: a small U-Net on a rare class, in three sizes, on drawn road scenes or on CrackForest.

Source: Lin et al. 2017 (arXiv 1708.02002), for segmentation.
DATA: road_debris, or crackforest
COMMAND: segjax train --config=rare_class --workdir=runs/rare_class
TIME: on one CPU core: `smoke` 50 to 70 seconds, `cpu` 75 to 95 with two runs at once; `full` not measured.
"""

from segjax.training import defaults

PRESETS = ("smoke", "cpu", "full")
DATA = ("road_debris", "crackforest")
PRIOR = {"model.prior": (0.01,), "model.head_stddev": 0.01}
NO_PRIOR = {"model.prior": (), "model.head_stddev": None}


def get_config(preset="cpu", data="road_debris"):
    """Returns focal loss with the paper's γ, α and prior bias; the sweeps change only these and the loss."""
    config = defaults()
    config.data.name, config.data.workers = data, 0
    config.objective.loss, config.objective.gamma, config.objective.alpha = "sigmoid_focal", 2.0, 0.25
    config.model.prior, config.model.head_stddev = PRIOR["model.prior"], PRIOR["model.head_stddev"]
    config.optimizer.learning_rate = 5e-3
    if preset == "full":
        config.model.width, config.model.depth = 16, 4
        config.training.steps, config.training.global_batch = 4000, 16
    else:
        config.model.width, config.model.depth = 8, 3
        config.model.padding = "zeros"  # compiles three times as fast as reflection
        config.training.steps = {"smoke": 200, "cpu": 300}[preset]
    if data == "road_debris":
        height, scenes = {"smoke": (96, 256), "cpu": (96, 256), "full": (192, 2048)}[preset]
        config.data.scene_size = config.data.size = (height, height * 4 // 3)
        config.data.train_examples, config.data.val_examples = scenes, max(64, scenes // 8)
    else:
        # The data set has no validation split: do not choose anything by these scores.
        config.data.eval_split = "test"
        config.data.size = (320, 480) if preset == "full" else (128, 192)
        config.augment.scale = (1.0, 1.5)
        config.augment.brightness, config.augment.contrast = 0.1, 0.2
        if preset != "full":
            config.training.global_batch = 4
    every = config.training.steps // {"smoke": 4, "cpu": 12, "full": 20}[preset]
    config.training.evaluate_every = config.training.checkpoint_every = every
    return config


def get_seeds(preset="cpu", data="road_debris"):
    """Returns the seeds of the parameters, the order of the images and their augmentation."""
    return {"smoke": (0,), "cpu": (0, 1, 2) if data == "road_debris" else (0, 1), "full": (0, 1, 2, 3, 4)}[preset]
