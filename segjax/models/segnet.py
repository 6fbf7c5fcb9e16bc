"""SegNet and SegNet-Basic (Badrinarayanan et al. 2015, arXiv 1511.00561), and Bayesian SegNet (arXiv 1511.02680)."""

from collections.abc import Callable, Sequence

from jaxtyping import Array, Float

from segjax.models.layers import VGG16, ConvNorm, ConvStack, max_pool_2x2_positions
from segjax.models.network import ForwardContext, Network
from segjax.models.upsampling import max_unpool_2x2


class SegNet(Network):
    """SegNet: VGG16's 13 convolutions, five poolings that store the positions of the maxima, and a mirrored decoder.

    The decoder puts each value at the position of its maximum, zeros elsewhere (`max_unpool_2x2`), and convolutions
    make it dense: the encoder passes positions across, one byte each, and not features. Level l of the encoder is
    `down{l}` and its mirror `up{l}`, whose last convolution already has the channels of the level above.

    Width 64, 3 channels, 11 classes, batch norm: 29.44 M parameters. The authors' network has 29.45 M: biases before
    the norms, and a 3×3 convolution to the classes where our head is 1×1. The levels have 1, 2, 4, 8 and 8 times
    `width` channels.

    `deep_dropout` = n, 0 to 5, applies dropout after the n deepest levels of the encoder, after the pooling, and of the
    decoder. Bayesian SegNet's best variant, its central six units, is `deep_dropout=3` with `deep_rate=0.5`.
    """

    num_classes: int
    width: int = 64

    multiple, deep_places = 2 ** len(VGG16), len(VGG16)

    def body(self, x: Float[Array, "b h w channels"], ctx: ForwardContext) -> tuple[Float[Array, "b h w f"], int]:
        """Maps `[B, H, W, channels]`, H and W multiples of 32, to `[B, H, W, width]`."""

        def stack(name: str, factor: int, count: int, last: int) -> Callable:
            return self.block(ConvStack, factor * self.width, count, last * self.width, padding="zeros", name=name)

        down = [stack(f"down{level}", factor, count, factor) for level, (factor, count) in enumerate(VGG16)]
        (_, first), *deeper = VGG16
        up = [stack("up0", 1, first - 1, 1)]  # the mirror of the first convolution is the head
        up += [stack(f"up{i}", factor, count, VGG16[i - 1][0]) for i, (factor, count) in enumerate(deeper, 1)]
        return _pool_and_unpool(x, ctx, down, up, self.deep_dropout), 1


class SegNetBasic(Network):
    """SegNet-Basic: four 7×7 convolutions with pooling, four with unpooling, all of one width.

    A norm follows every convolution, and a ReLU only in the encoder, as in the paper (sections 3.1 and 3.3). A pixel of
    the lowest level sees 106×106 pixels of the image. The authors' Caffe version begins with local response
    normalization, which is left out. Every level has `width` channels. Width 64, 3 channels, 11 classes, batch norm:
    1.416 M parameters (published: 1.425 M).

    `deep_dropout` is that of `SegNet`, 0 to 4. The central four units of Bayesian SegNet-Basic are `deep_dropout=2`.
    """

    num_classes: int
    width: int = 64

    multiple, deep_places = 16, 4

    def body(self, x: Float[Array, "b h w channels"], ctx: ForwardContext) -> tuple[Float[Array, "b h w f"], int]:
        """Maps `[B, H, W, channels]`, H and W multiples of 16, to `[B, H, W, width]`."""
        down, up = (
            [self.block(Conv7x7Block, self.width, relu=relu, name=f"{side}{level}") for level in range(4)]
            for side, relu in (("down", True), ("up", False))
        )
        return _pool_and_unpool(x, ctx, down, up, self.deep_dropout), 1


class Conv7x7Block(ConvNorm):
    """SegNet-Basic's block: a 7×7 `ConvNorm`."""

    size: int = 7


def _pool_and_unpool(
    x: Array, ctx: ForwardContext, down: Sequence[Callable], up: Sequence[Callable], deep_dropout: int
) -> Array:
    """Applies the encoder's blocks with poolings, then the decoder's blocks, last first, with unpoolings."""
    positions, shallow = [], len(down) - deep_dropout
    for level, block in enumerate(down):
        x, where = max_pool_2x2_positions(block(x, ctx.train))
        positions.append(where)
        x = ctx.drop(x, 1 + 2 * level) if level >= shallow else x
    for level, block in reversed(list(enumerate(up))):
        x = block(max_unpool_2x2(x, positions[level]), ctx.train)
        x = ctx.drop(x, 2 + 2 * level) if level >= shallow else x
    return x
