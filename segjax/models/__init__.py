"""Networks in Flax Linen: pure `init` and `apply`, any input size, float32 logits."""

from segjax.models.deeplab import ASPP, DeepLabV2, DeepLabV3Plus
from segjax.models.fcn import FCN, PatchClassifier, ValidBlock
from segjax.models.layers import (
    Conv,
    Conv3x3,
    ConvBlock,
    ConvNorm,
    ConvStack,
    Norm,
    SeparableConv3x3,
    StridedConv3x3,
    max_pool_2x2,
    max_pool_2x2_dense,
    max_pool_2x2_positions,
    max_pool_3x3,
    pad_to_multiple,
)
from segjax.models.network import (
    ForwardContext,
    LinearHead,
    Network,
    Segmentation,
    example_dropout_keys,
    head_samples,
    logit_variance,
)
from segjax.models.packed_unet import BatchNorm, Layout, PackedUNet
from segjax.models.pretrained import load_encoder, load_retinanet, load_torch_state, resnet_variables, with_encoder
from segjax.models.resnet import ResidualBlock, ResNet
from segjax.models.retinanet import DetectorOutput, RetinaNet
from segjax.models.segnet import Conv7x7Block, SegNet, SegNetBasic
from segjax.models.unet import ResNetUNet, UNet
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

Pass = ForwardContext  # its old name
__all__ = [
    "ASPP",
    "FCN",
    "BatchNorm",
    "Conv",
    "Conv3x3",
    "Conv7x7Block",
    "ConvBlock",
    "ConvNorm",
    "ConvStack",
    "ConvTranspose2x2",
    "ConvTransposeBilinear",
    "ConvTransposeOverlapping",
    "DeepLabV2",
    "DeepLabV3Plus",
    "DetectorOutput",
    "FixedUpsampling2x2",
    "ForwardContext",
    "Layout",
    "LinearHead",
    "Network",
    "Norm",
    "PackedUNet",
    "PatchClassifier",
    "PixelShuffle2x2",
    "ResNet",
    "ResNetUNet",
    "ResidualBlock",
    "RetinaNet",
    "SegNet",
    "SegNetBasic",
    "Segmentation",
    "SeparableConv3x3",
    "StridedConv3x3",
    "UNet",
    "ValidBlock",
    "bed_of_nails_2x2",
    "depth_to_space_2x2",
    "example_dropout_keys",
    "head_samples",
    "load_encoder",
    "load_retinanet",
    "load_torch_state",
    "logit_variance",
    "max_pool_2x2",
    "max_pool_2x2_dense",
    "max_pool_2x2_positions",
    "max_pool_3x3",
    "max_unpool_2x2",
    "pad_to_multiple",
    "resnet_variables",
    "upsample_nearest_2x2",
    "with_encoder",
]
