"""DeepLab v2 (Chen et al. 2016, arXiv 1606.00915) and v3+ (Chen et al. 2018, arXiv 1802.02611)."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from segjax import checks, collectives
from segjax.models.encoders import ENCODERS, OUTPUT_STRIDES, encoder_of
from segjax.models.layers import Block, Conv, ConvNorm, upsample_bilinear
from segjax.models.network import ForwardContext, Network


class DeepLabV2(Network):
    r"""DeepLab v2 (arXiv 1606.00915): a dilated encoder and 3×3 convolutions of several dilations, summed (ASPP).

    .. math:: y = \sum_r W_r *_r x

    with :math:`*_r` the convolution of dilation r. In the paper y are the scores of the classes; here they are the
    features of the linear head. The paper's three image scales and its conditional random field are left out.

    Attributes: those of `Network`, and
        encoder_depth, width, output_stride: those of the encoder; an `EfficientNetLite` has the last one only.
        rates: dilations r; the default is the paper's "ASPP-L", for output stride 8 and crops of 321 pixels. On a map
            not larger than r the outer taps see only padding: choose smaller rates for small images.
        aspp: number of channels of y; None: `num_classes`.
        encoder: "resnet" | "efficientnet_lite0" | "efficientnet_lite2".

    `deep_dropout` = 1 applies dropout before ASPP, as in the paper's VGG.
    """

    num_classes: int
    encoder_depth: int = 101
    width: int = 64
    output_stride: int = 8
    rates: Sequence[int] = (6, 12, 18, 24)
    aspp: int | None = None
    encoder: str = "resnet"

    deep_places = 1

    @property
    def multiple(self) -> int:
        """Output stride of the encoder."""
        return self.output_stride

    def check(self) -> None:
        """Raises a ValueError if the encoder, the output stride or a rate is out of range."""
        _check(self.encoder, self.output_stride, self.rates)

    def body(self, x: Float[Array, "b h w channels"], ctx: ForwardContext) -> tuple[Float[Array, "b H W f"], int]:
        """Maps `[B, H, W, channels]` to `[B, H/n, W/n, aspp]`, n the output stride."""
        x = encoder_of(self, self.output_stride)(x, ctx.train)[-1]
        x = ctx.drop(x, 1) if self.deep_dropout else x
        features = self.num_classes if self.aspp is None else self.aspp
        # Their sum has the variance of one convolution before a linear head.
        fields = {"gain": 1 / len(self.rates), **self.dtypes}
        branches = (Conv(features, dilation=rate, name=f"aspp_rate{rate}", **fields) for rate in self.rates)
        return sum(branch(x) for branch in branches), self.output_stride


class ASPP(Block):
    """Atrous spatial pyramid pooling of DeepLab v3+: several dilations and the image's mean side by side.

    A 1×1 convolution, a separable 3×3 one per rate, and the image's mean through a 1×1 convolution, each with norm and
    ReLU, are concatenated and followed by a 1×1 convolution with norm and ReLU (Chen et al., arXiv 1706.05587). Batch
    norm of the mean has one value per image and channel, so training on a single image (of all devices) is an error.
    `rates` are the dilations; every branch and the output have `features` channels.
    """

    features: int
    rates: Sequence[int]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w f"]:
        """Maps `[B, H, W, C]` to `[B, H, W, features]`."""
        if train and self.norm == "batch" and x.shape[0] * collectives.psum(1, self.axis_name) < 2:
            needs = "the image pooling of DeepLabV3Plus takes batch statistics over at least 2 images in training"
            raise ValueError(f'{needs}; got a batch of 1: use a larger one, or norm="group"')
        block = partial(ConvNorm, self.features, norm=self.norm, axis_name=self.axis_name, **self.dtypes)
        branches = [block(size=1, name="point")(x, train)]
        branches += [block(dilation=rate, separable=True, name=f"rate{rate}")(x, train) for rate in self.rates]
        pooled = x.mean((1, 2), keepdims=True, dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)
        branches.append(jnp.broadcast_to(block(size=1, name="pool")(pooled, train), branches[0].shape))
        return block(size=1, name="project")(jnp.concatenate(branches, axis=-1), train)


class DeepLabV3Plus(Network):
    r"""DeepLab v3+ (arXiv 1802.02611): a dilated encoder, ASPP with image pooling, a decoder with features of stride 4.

    .. math:: f = D([\,\text{up}(S(\text{ASPP}(x_{16}))),\ P(x_4)\,])

    S and D are separable 3×3 convolutions and P is a 1×1 convolution, each with norm and ReLU; the paper applies
    D twice and omits S. ResNet-50, width 64, 3 channels, batch norm, 12 classes: 26.68 M parameters, as many as
    segmentation-models-pytorch's `DeepLabV3Plus("resnet50")`, which upsamples with aligned corners.

    Attributes: those of `Network`, and
        encoder_depth, width, output_stride: those of the encoder; an `EfficientNetLite` has the last one only.
        rates: dilations of ASPP; None: the paper's 6, 12, 18 at output stride 16, doubled at 8, for crops of 513
            pixels. Choose smaller rates for small images.
        channels: number of channels of ASPP and the decoder.
        low: number of output channels of P; None: 3/16 of the features of stride 4, the paper's 48 of 256.
        encoder: "resnet" | "efficientnet_lite0" | "efficientnet_lite2".

    `deep_dropout` = 1 applies dropout after ASPP, 2 after the decoder too.
    """

    num_classes: int
    encoder_depth: int = 50
    width: int = 64
    output_stride: int = 16
    rates: Sequence[int] | None = None
    channels: int = 256
    low: int | None = None
    encoder: str = "resnet"

    deep_places = 2

    @property
    def multiple(self) -> int:
        """Output stride of the encoder."""
        return self.output_stride

    def check(self) -> None:
        """Raises a ValueError if the encoder, the output stride or a rate is out of range."""
        _check(self.encoder, self.output_stride, (1,) if self.rates is None else self.rates)

    def body(self, x: Float[Array, "b h w channels"], ctx: ForwardContext) -> tuple[Float[Array, "b H W f"], int]:
        """Maps `[B, H, W, channels]`, multiples of `multiple`, to `[B, H/4, W/4, channels]`."""
        _, fine, *_, coarse = encoder_of(self, self.output_stride)(x, ctx.train)
        rates = [96 // self.output_stride * i for i in (1, 2, 3)] if self.rates is None else self.rates
        coarse = self.block(ASPP, self.channels, tuple(rates), name="aspp")(coarse, ctx.train)
        coarse = ctx.drop(coarse, 1) if self.deep_dropout >= 1 else coarse
        coarse = self.block(ConvNorm, self.channels, separable=True, name="after_aspp")(coarse, ctx.train)
        coarse = upsample_bilinear(coarse, self.output_stride // 4)
        low = max(1, 3 * fine.shape[-1] // 16) if self.low is None else self.low
        fine = self.block(ConvNorm, low, size=1, name="low")(fine, ctx.train)
        x = jnp.concatenate([coarse, fine], axis=-1)
        x = self.block(ConvNorm, self.channels, separable=True, name="decoder")(x, ctx.train)
        return ctx.drop(x, 2) if self.deep_dropout >= 2 else x, 4


def _check(encoder: str, output_stride: int, rates: Sequence[int]) -> None:
    checks.choice("encoder", encoder, ENCODERS)
    checks.choice("output_stride", output_stride, OUTPUT_STRIDES)
    if not rates or min(rates) < 1 or len(set(rates)) < len(rates):
        raise ValueError(f"rates must be one or more different dilations of at least 1; got {tuple(rates)}")
