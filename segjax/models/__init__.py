"""Networks in Flax Linen: pure `init` and `apply`, any input size, float32 logits."""

from segjax.models.dropout import example_dropout_keys
from segjax.models.heads import LinearHead, Segmentation, head_samples, logit_variance
from segjax.models.layers import (
    Conv3x3,
    ConvBlock,
    ConvStack,
    ConvTranspose2x2,
    Norm,
    PixelShuffle2x2,
    depth_to_space_2x2,
    max_pool_2x2,
    pad_to_multiple,
)
from segjax.models.network import Network, Pass
from segjax.models.unet import UNet
from segjax.models.upsampling import ConvTransposeBilinear

__all__ = [
    "Conv3x3",
    "ConvBlock",
    "ConvStack",
    "ConvTranspose2x2",
    "ConvTransposeBilinear",
    "LinearHead",
    "Network",
    "Norm",
    "Pass",
    "PixelShuffle2x2",
    "Segmentation",
    "UNet",
    "depth_to_space_2x2",
    "example_dropout_keys",
    "head_samples",
    "logit_variance",
    "max_pool_2x2",
    "pad_to_multiple",
]
