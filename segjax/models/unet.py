"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597), plain and with another encoder."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from segjax import checks
from segjax.models.encoders import ENCODERS, encoder_of
from segjax.models.layers import ConvBlock, StridedConv3x3, max_pool_2x2, max_pool_2x2_positions, upsample_bilinear
from segjax.models.network import ForwardContext, Network
from segjax.models.upsampling import UPSAMPLINGS, upsample_nearest_2x2

DOWNSAMPLINGS = ("max", "stride")
ENCODER_LEVELS = 5


def _project(x: Float[Array, "b h w c"], level: int, features: int, dtypes: dict[str, Any]) -> Float[Array, "b H W f"]:
    """Maps the features of a level to `features` channels at full size: linearly, then by bilinear upsampling."""
    return upsample_bilinear(nn.Dense(features, use_bias=False, name=f"coarse{level}", **dtypes)(x), 2**level)


class UNet(Network):
    r"""U-Net with padded convolutions: `depth` poolings and as many upsamplings, width · 2^level channels.

    Width 64, depth 4, 3 channels, batch norm: 31.0 M parameters; width 16: 1.94 M.

    Attributes: those of `Network`, and
        width: number of channels of the first level.
        depth: number of 2×2 poolings.
        max_width: largest number of channels of a level, as in nnU-Net (arXiv 1904.08128); None: no limit. Not in the
            paper.
        padding: padding of the convolutions, "reflect" | "zeros".
        downsample: "max": 2×2 max pooling | "stride": `StridedConv3x3`, which adds 3.14 M parameters at width 64.
        upsample: "transpose": 2×2 transposed convolution; "transpose3", "transpose4": 3×3 and 4×4, whose windows
            overlap | "pixel_shuffle": 1×1 convolution, ReLU, depth to space | or a 1×1 convolution to the level's
            channels followed by "nearest", "bilinear", "bed_of_nails" (zeros between pixels) or "max_unpool" (each
            value at the position of the maximum in the pooling of that level; needs downsample="max").
        multiscale: give the head, in addition to the features of the finest level, those of all coarser ones, mapped to
            `width` channels by a linear 1×1 convolution, upsampled bilinearly and summed, as FCN (arXiv 1411.4038) sums
            scores. The gradient then reaches the coarse levels directly. 7 680 more parameters at width 16. Not in the
            paper.

    `deep_dropout` = n, 0 to depth, applies dropout after the n deepest blocks of the encoder, the lowest level first,
    and the n deepest of the decoder, like the central units of Bayesian SegNet.

    >>> import jax
    >>> model, images = UNet(num_classes=5, width=4, depth=2), jnp.zeros((1, 13, 18, 3))
    >>> variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))
    >>> jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images).logits.shape
    (1, 13, 18, 5)
    """

    num_classes: int
    width: int = 64
    depth: int = 4
    padding: str = "reflect"
    downsample: str = "max"
    upsample: str = "transpose"
    multiscale: bool = False
    max_width: int | None = None

    @property
    def multiple(self) -> int:
        """Stride of the lowest level."""
        return 2**self.depth

    @property
    def minimum(self) -> int:
        """Size that leaves one pixel at the lowest level, or two with padding="reflect"."""
        return 2 ** (self.depth + (self.padding == "reflect"))

    @property
    def deep_places(self) -> int:
        """Number of levels with a block in the encoder and one in the decoder."""
        return self.depth

    def check(self) -> None:
        """Raises a ValueError if a field of the U-Net is out of range or two fields exclude each other."""
        if self.max_width is not None and self.max_width < self.width:
            raise ValueError(f"max_width must be at least width = {self.width}, or None; got {self.max_width}")
        checks.choice("downsample", self.downsample, DOWNSAMPLINGS)
        checks.choice("upsample", self.upsample, tuple(UPSAMPLINGS))
        if self.upsample == "max_unpool" and self.downsample != "max":
            raise ValueError(f"upsample='max_unpool' needs downsample='max'; got {self.downsample!r}")

    def body(self, x: Float[Array, "b h w channels"], ctx: ForwardContext) -> tuple[Float[Array, "b h w f"], int]:
        """Maps `[B, H, W, channels]`, H and W multiples of `multiple`, to `[B, H, W, width]`."""
        skips = []
        for level in range(self.depth):  # the contracting path
            x = self._conv_block(x, "down", level, ctx)
            skips.append(x)
            x = self._downsample(x, level, ctx)
        x = self._conv_block(x, "down", self.depth, ctx)
        coarse = self._project(x, self.depth)
        for level in reversed(range(self.depth)):  # the expansive path
            x = self._upsample(x, level, skips[level])
            x = jnp.concatenate([skips[level], x], axis=-1)
            x = self._conv_block(x, "up", level, ctx)
            coarse += self._project(x, level)
        return x + coarse, 1

    def _channels(self, level: int) -> int:
        return min(self.width * 2**level, self.max_width or self.width * 2**level)

    def _conv_block(self, x: Array, side: str, level: int, ctx: ForwardContext) -> Array:
        block = self.block(ConvBlock, self._channels(level), padding=self.padding, name=f"{side}{level}")
        return self._deep_dropout(block(x, ctx.train), side, level, ctx)

    def _project(self, x: Array, level: int) -> Array | float:
        """Returns the features of a coarse level at full size, for the head of a multiscale network; else 0."""
        if not self.multiscale or level == 0:
            return 0.0
        return _project(x, level, self.width, self.dtypes)

    def _deep_dropout(self, x: Array, side: str, level: int, ctx: ForwardContext) -> Array:
        deep = level - (side == "down") >= self.depth - self.deep_dropout
        return ctx.drop(x, 1 + 2 * level + (side == "up")) if deep else x

    def _downsample(self, x: Array, level: int, ctx: ForwardContext) -> Array:
        if self.downsample == "max":
            return max_pool_2x2(x)
        return self.block(StridedConv3x3, x.shape[-1], self.padding, name=f"down{level}_stride")(x, ctx.train)

    def _upsample(self, x: Array, level: int, skip: Array) -> Array:
        layer = UPSAMPLINGS[self.upsample](self._channels(level), name=f"up{level}_{self.upsample}", **self.dtypes)
        return layer(x, max_pool_2x2_positions(skip)[1]) if self.upsample == "max_unpool" else layer(x)


class EncoderUNet(Network):
    r"""U-Net (arXiv 1505.04597) with a `ResNet` or `EfficientNetLite`: its features of stride 32, upsampled five times.

    .. math:: y_5 = x_{32}, \qquad y_l = B_l([\,\text{nearest}(y_{l+1}),\ x_{2^l}\,]), \qquad l = 4 \ldots 0

    B is a `ConvBlock`; there is no x₁. This is segmentation-models-pytorch's `Unet`, but its head is a 3×3 convolution.
    ResNet-18, width 64, 3 channels, batch norm: 14.3 M parameters; ResNet-34: 24.4 M; EfficientNet-Lite0: 5.20 M.

    Attributes: those of `Network`, and
        encoder_depth, width: those of the `ResNet`; with another encoder the width is that of the decoder only.
        decoder: number of channels of the five decoder steps, coarsest first; None: 4, 2, 1, 1/2 and 1/4 widths.
        encoder: "resnet" | "efficientnet_lite0" | "efficientnet_lite2".
        multiscale: give the head the features of all levels, as in `UNet`, with the channels of the last decoder step.

    `deep_dropout` = n, 0 to 5, applies dropout after the encoder and after the first n - 1 decoder steps.
    """

    num_classes: int
    encoder_depth: int = 18
    width: int = 64
    decoder: Sequence[int] | None = None
    encoder: str = "resnet"
    multiscale: bool = False

    multiple, deep_places = 2**ENCODER_LEVELS, ENCODER_LEVELS

    @property
    def _widths(self) -> tuple[int, ...]:
        default = [4 * self.width // 2**step for step in range(ENCODER_LEVELS)]
        return tuple(default if self.decoder is None else self.decoder)

    def check(self) -> None:
        """Raises a ValueError if the encoder is unknown or `decoder` has not one width per step."""
        checks.choice("encoder", self.encoder, ENCODERS)
        if len(self._widths) != ENCODER_LEVELS or min(self._widths) < 1:
            raise ValueError(f"decoder must have {ENCODER_LEVELS} positive widths, one per step; got {self._widths}")

    def body(self, x: Float[Array, "b h w channels"], ctx: ForwardContext) -> tuple[Float[Array, "b h w f"], int]:
        """Maps `[B, H, W, channels]`, H and W multiples of 32, to `[B, H, W, F]`, F the last width of the decoder."""
        *skips, x = encoder_of(self, self.multiple)(x, ctx.train)
        x = ctx.drop(x, 1) if self.deep_dropout else x
        coarse = self._project(x, ENCODER_LEVELS)
        for step, width in enumerate(self._widths):
            level = ENCODER_LEVELS - 1 - step
            x = upsample_nearest_2x2(x)
            x = jnp.concatenate([x, skips.pop()], axis=-1) if skips else x
            x = self.block(ConvBlock, width, padding="zeros", name=f"up{level}")(x, ctx.train)
            x = ctx.drop(x, 2 + step) if step + 1 < self.deep_dropout else x
            coarse += self._project(x, level)
        return x + coarse, 1

    def _project(self, x: Array, level: int) -> Array | float:
        """Returns the features of a coarse level at full size, for the head of a multiscale network; else 0."""
        return _project(x, level, self._widths[-1], self.dtypes) if self.multiscale and level else 0.0
