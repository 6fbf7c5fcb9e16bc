"""Your own images and masks: `ROOT/images` and `ROOT/masks`, two classes to begin with.

Source: none; a place to start from.
DATA: folder
COMMAND: segjax train --config=folder_unet --config.data.manual_dir=ROOT --workdir=runs/mine
"""

from segjax.training import defaults


def get_config():
    """Masks painted 0 and 255; name your classes in `data.class_names`, their values in `data.mask_values`."""
    config = defaults()
    config.data.name = "folder"
    config.data.class_names = ("background", "object")
    config.data.mask_values = (0, 255)
    config.data.size = (256, 256)
    config.augment.scale = (0.75, 1.5)
    config.augment.brightness = 0.1
    config.augment.contrast = 0.2
    return config
