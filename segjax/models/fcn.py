"""Fully convolutional networks for semantic segmentation, FCN-32s, 16s and 8s (Long et al. 2015, arXiv 1411.4038)."""

import flax.linen as nn
from jaxtyping import Array, Float

from segjax import checks
from segjax.models.layers import VGG16, ConvNorm, ConvStack, fan_in_normal, max_pool_2x2
from segjax.models.network import ForwardContext, Network
from segjax.models.upsampling import ConvTransposeBilinear


class FCN(Network):
    r"""FCN: VGG16 with its fully connected layers as convolutions, and scores of several depths upsampled and summed.

    Five blocks of convolutions and poolings lead to 1/32 of the size; `fc6`, a 7×7, and `fc7`, a 1×1 convolution, have
    `hidden` channels; a linear 1×1 convolution gives the scores. The finer networks add scores of earlier poolings:

    .. math:: s_{32} = S(fc7), \quad s_{16} = U(s_{32}) + S_4(pool4), \quad s_8 = U(s_{16}) + S_3(pool3)

    U is a learned transposed convolution by 2, initially bilinear interpolation. S_4 and S_3 are initially 0, so a
    finer network starts as the coarser one. The last upsampling, by `stride`, stays bilinear, as in the paper.

    Convolutions keep height and width by zero padding, where the authors pad the image by 100 pixels and crop. Dropout
    heads drop the scores: give them more than `num_classes`. Width 64, 21 classes, norm "none": 134.4 M parameters.

    Attributes: those of `Network`, and
        width: number of channels of the first block.
        hidden: number of channels of fc6 and fc7.
        stride: stride of the finest scores, 8 | 16 | 32.
        score: number of channels of the scores; None: `num_classes`, as in the paper.

    `deep_dropout` = 1 applies dropout after fc7, 2 after fc6 too, as in the paper and in VGG (arXiv 1409.1556).
    """

    num_classes: int
    width: int = 64
    hidden: int = 4096
    stride: int = 8
    score: int | None = None

    multiple, deep_places = 32, 2

    def check(self) -> None:
        """Raises a ValueError if `stride` is not 8, 16 or 32."""
        checks.choice("stride", self.stride, (8, 16, 32))

    def body(self, x: Float[Array, "b h w channels"], ctx: ForwardContext) -> tuple[Float[Array, "b H W f"], int]:
        """Maps `[B, H, W, channels]`, multiples of 32, to the sum of the scores, `[B, H/stride, W/stride, score]`."""
        pools = []
        for i, (widths, count) in enumerate(VGG16, 1):
            x = self.block(ConvStack, self.width * widths, count, padding="zeros", name=f"block{i}")(x, ctx.train)
            x = max_pool_2x2(x)
            pools.append(x)
        x = self.block(ConvNorm, self.hidden, size=7, name="fc6")(x, ctx.train)
        x = ctx.drop(x, 2) if self.deep_dropout > 1 else x
        x = self.block(ConvNorm, self.hidden, size=1, name="fc7")(x, ctx.train)
        x = ctx.drop(x, 1) if self.deep_dropout > 0 else x
        x = self._scores("score_fr", fan_in_normal(1.0, self.hidden))(x)  # the authors' names of the layers
        for stride, up, pool in ((16, "upscore2", 4), (8, "upscore_pool4", 3)):
            if self.stride <= stride:
                skip = self._scores(f"score_pool{pool}", nn.initializers.zeros)(pools[pool - 1])
                x = ConvTransposeBilinear(2, name=up, **self.dtypes)(x) + skip
        return x, self.stride

    def _scores(self, name: str, init: nn.initializers.Initializer) -> nn.Dense:
        channels = self.num_classes if self.score is None else self.score
        return nn.Dense(channels, kernel_init=init, name=name, **self.dtypes)
