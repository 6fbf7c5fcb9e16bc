"""The config of the sweeps in three sizes: a small U-Net on rare pixels, or a small RetinaNet on the boxes of debris.

Source: Lin et al. 2017 (arXiv 1708.02002), for segmentation and, on boxes, for detection as in the paper.
DATA: road_debris, or crackforest, or road_debris_boxes
COMMAND: segjax train --config=rare_class --workdir=runs/rare_class
TIME: on one CPU core: `smoke` 50 to 70 seconds, `cpu` 75 to 95 with two runs at once (boxes: 80 to 110); `full` not
  measured.
"""

from segjax.training import defaults

PRESETS = ("smoke", "cpu", "full")
PIXELS = ("road_debris", "crackforest")
DATA = (*PIXELS, "road_debris_boxes")
PRIOR = {"model.prior": (0.01,), "model.head_stddev": 0.01}
NO_PRIOR = {"model.prior": (), "model.head_stddev": None}


def get_config(preset="cpu", data="road_debris"):
    """Returns the base config of the sweeps: focal loss with the paper's γ, α and prior bias."""
    if data == "road_debris_boxes":
        return _boxes_config(preset)
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


def _boxes_config(preset):
    """Returns a RetinaNet on a U-Net's encoder; in the cpu preset with twice the scenes, and 400 steps, not 300."""
    config = get_config(preset, "road_debris")
    config.data.box_classes, config.data.max_boxes = ("debris",), 16
    config.model.name, config.model.encoder, config.model.hidden = "retinanet", "unet", {"full": 64}.get(preset, 16)
    config.model.depth, config.model.padding = defaults().model.depth, defaults().model.padding
    # Debris is 1 to 8 pixels wide in scenes of 96×128.
    config.model.levels, config.model.anchor_base = (1, 2, 3), 1.0
    config.model.head_convs, config.model.head_norm = {"full": 4}.get(preset, 1), "group"
    config.objective.normalizer = "positives"
    if preset != "full":
        config.data.train_examples, config.data.val_examples = 512, 128
        config.training.steps = {"smoke": 200, "cpu": 400}[preset]
    every = config.training.steps // {"smoke": 4, "cpu": 8, "full": 20}[preset]
    config.training.evaluate_every = config.training.checkpoint_every = every
    return config


def get_seeds(preset="cpu", data="road_debris"):
    """Returns the seeds of the parameters, the order of the images and their augmentation."""
    return {"smoke": (0,), "cpu": (0, 1) if data == "crackforest" else (0, 1, 2), "full": (0, 1, 2, 3, 4)}[preset]
