"""Your own images with classes that overlap: `ROOT/images`, and one mask per class, `ROOT/masks/CLASS`.

Source: none; a place to start from.
DATA: folder
COMMAND: segjax train --config=folder_multilabel --config.data.manual_dir=ROOT --workdir=runs/mine
"""

from segjax.configs.folder_unet import get_config as folder_unet


def get_config():
    """Returns a config to change: name your classes, without a background; a pixel may have several, or none."""
    config = folder_unet()
    config.data.multilabel = True
    config.data.class_names = ("rust", "crack")
    config.data.mask_values = ()
    config.objective.loss = "sigmoid_cross_entropy"
    config.objective.region = "dice"
    return config
