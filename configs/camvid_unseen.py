"""CamVid without pedestrians and bicyclists: the network never learns them, and its uncertainty has to find them.

Source: configs/camvid_unet_weighted.py with two classes as void. Pixels of the two classes have no loss, and the
  network has no output for them.
DATA: camvid
COMMAND: segjax train --config=camvid_unseen --workdir=runs/camvid_unseen
"""

from segjax.configs.camvid_unet_weighted import CLASS_WEIGHTS
from segjax.configs.camvid_unet_weighted import get_config as all_classes


def get_config():
    """Returns the weighted config for the nine classes from sky to car."""
    config = all_classes()
    config.data.unseen_classes = ("pedestrian", "bicyclist")
    config.objective.class_weights = CLASS_WEIGHTS[:9]
    return config
