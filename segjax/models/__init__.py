"""Networks in Flax Linen: pure `init` and `apply`, any input size, float32 logits."""

from segjax.models.heads import LinearHead, Segmentation
from segjax.models.layers import Conv3x3, ConvBlock, ConvTranspose2x2, Norm, max_pool_2x2, pad_to_multiple
from segjax.models.unet import UNet

__all__ = [
    "Conv3x3",
    "ConvBlock",
    "ConvTranspose2x2",
    "LinearHead",
    "Norm",
    "Segmentation",
    "UNet",
    "max_pool_2x2",
    "pad_to_multiple",
]
