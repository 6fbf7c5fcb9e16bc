"""Networks in Flax Linen: pure `init` and `apply`, any input size, float32 logits."""

from segjax.models.deeplab import ASPP, DeepLabV2, DeepLabV3Plus
from segjax.models.dilated import Conv, ConvNorm, SeparableConv3x3
from segjax.models.dropout import example_dropout_keys
from segjax.models.heads import LinearHead, Segmentation, head_samples, logit_variance
from segjax.models.layers import (
    Conv3x3,
    ConvBlock,
    ConvTranspose2x2,
    Norm,
    PixelShuffle2x2,
    depth_to_space_2x2,
    max_pool_2x2,
    max_pool_3x3,
    pad_to_multiple,
)
from segjax.models.network import Network, Pass
from segjax.models.pretrained import load_encoder, load_torch_state, resnet_variables, with_encoder
from segjax.models.resnet import ResidualBlock, ResNet
from segjax.models.resnet_unet import ResNetUNet
from segjax.models.unet import UNet

__all__ = [
    "ASPP",
    "Conv",
    "Conv3x3",
    "ConvBlock",
    "ConvNorm",
    "ConvTranspose2x2",
    "DeepLabV2",
    "DeepLabV3Plus",
    "LinearHead",
    "Network",
    "Norm",
    "Pass",
    "PixelShuffle2x2",
    "ResNet",
    "ResNetUNet",
    "ResidualBlock",
    "Segmentation",
    "SeparableConv3x3",
    "UNet",
    "depth_to_space_2x2",
    "example_dropout_keys",
    "head_samples",
    "load_encoder",
    "load_torch_state",
    "logit_variance",
    "max_pool_2x2",
    "max_pool_3x3",
    "pad_to_multiple",
    "resnet_variables",
    "with_encoder",
]
