"""The Cityscapes U-Net recipe in full: crop curriculum, boundary weight, three dropout heads and their variance.

Source: the recipe's write-up and its code (Regressionist/Semantic-Segmentation-UNet), which differ: the crops are
  60 %, 75 % and the whole image as written, 62.5 %, 75 % and 87.5 % as coded. Same: 19 classes and void as a
  twentieth, which is learned, 512×1024 of 1024×2048 pixels, width 64 with reflect padding, k = 2 on outer boundaries,
  p = 0.2, C = 100, constant Adam 1e-3. Different: bfloat16, and a batch of 16 on eight devices instead of 2 on one GPU.
DATA: cityscapes
COMMAND: SEGJAX_CITYSCAPES_DIR=… segjax train --config=cityscapes_unet_recipe --workdir=runs/recipe
  and --config=cityscapes_unet_recipe:as_coded for the other crops; the same command on every host of a pod.
SCORE: not run by us. Published: 0.8354 "IoU", which is pixel accuracy with void as a class; a fully trained
  U-Net reaches mean IoU 0.691 in 160k iterations of 512×1024 crops (mmsegmentation, UNet-S5-D16).
TIME: not measured by us; three days on one GPU in the recipe.
"""

from segjax.training import defaults

CROPS = {"as_written": (0.6, 0.75, 1.0), "as_coded": (0.625, 0.75, 0.875)}


def get_config(crops: str = "as_written"):
    """Returns three phases of 40 epochs; 186 steps of batch 16 are one epoch of the 2975 images."""
    config = defaults()
    config.parallel = "shard_map"
    config.data.name = "cityscapes"
    config.data.size = (512, 1024)
    config.model.width = 64
    config.model.dtype = "bfloat16"
    config.model.dropout, config.model.num_samples, config.model.dropout_rate = "sampled", 3, 0.2
    config.objective.void = "class"
    config.objective.boundary_factor = 2.0
    config.objective.uncertainty_weight = 100.0
    config.optimizer.name, config.optimizer.learning_rate = "adam", 1e-3
    config.optimizer.schedule, config.optimizer.warmup_fraction = "constant", 0.0
    config.optimizer.weight_decay, config.optimizer.clip_norm = 0.0, 0.0
    epoch = 186
    config.training.global_batch = 16
    config.training.steps = 3 * 40 * epoch
    config.training.phases = tuple((fraction, 40 * epoch, 1e-3) for fraction in CROPS[crops])
    config.training.evaluate_every = 5 * epoch
    config.training.checkpoint_every = epoch
    return config
