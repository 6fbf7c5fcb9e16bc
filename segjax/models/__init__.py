"""Networks in Flax Linen: pure `init` and `apply`, any input size, float32 logits."""

from segjax.models.dropout import example_dropout_keys
from segjax.models.fcn import FCN
from segjax.models.heads import LinearHead, Segmentation, head_samples, logit_variance
from segjax.models.layers import (
    Conv3x3,
    ConvBlock,
    ConvStack,
    Norm,
    StridedConv3x3,
    max_pool_2x2,
    max_pool_2x2_dense,
    max_pool_2x2_positions,
    pad_to_multiple,
)
from segjax.models.network import Network, Pass
from segjax.models.patch import PatchClassifier, ValidBlock
from segjax.models.segnet import Conv7x7Block, SegNet, SegNetBasic
from segjax.models.unet import UNet
from segjax.models.upsampling import (
    ConvTranspose2x2,
    ConvTransposeBilinear,
    ConvTransposeOverlapping,
    FixedUpsampling2x2,
    PixelShuffle2x2,
    bed_of_nails_2x2,
    depth_to_space_2x2,
    max_unpool_2x2,
    upsample_nearest_2x2,
)

__all__ = [
    "FCN",
    "Conv3x3",
    "Conv7x7Block",
    "ConvBlock",
    "ConvStack",
    "ConvTranspose2x2",
    "ConvTransposeBilinear",
    "ConvTransposeOverlapping",
    "FixedUpsampling2x2",
    "LinearHead",
    "Network",
    "Norm",
    "Pass",
    "PatchClassifier",
    "PixelShuffle2x2",
    "SegNet",
    "SegNetBasic",
    "Segmentation",
    "StridedConv3x3",
    "UNet",
    "ValidBlock",
    "bed_of_nails_2x2",
    "depth_to_space_2x2",
    "example_dropout_keys",
    "head_samples",
    "logit_variance",
    "max_pool_2x2",
    "max_pool_2x2_dense",
    "max_pool_2x2_positions",
    "max_unpool_2x2",
    "pad_to_multiple",
    "upsample_nearest_2x2",
]
