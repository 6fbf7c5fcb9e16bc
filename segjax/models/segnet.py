"""SegNet and SegNet-Basic (Badrinarayanan et al. 2015, arXiv 1511.00561), and Bayesian SegNet (arXiv 1511.02680)."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from segjax.models.layers import VGG16, ConvStack, fan_in_normal
from segjax.models.network import Network, Pass
from segjax.models.norm import Norm
from segjax.models.pooling import max_pool_2x2_positions
from segjax.models.upsampling import max_unpool_2x2


class SegNet(Network):
    """SegNet: VGG16's 13 convolutions, five poolings that remember where the maxima lay, and the same way back.

    The decoder puts each value back where its maximum lay, zeros elsewhere (`max_unpool_2x2`), and convolutions make it
    dense; no features cross from the encoder, only positions, a byte each. Level l of the encoder is `down{l}` and
    its mirror `up{l}`, whose last convolution already has the channels of the level above.

    Width 64, 3 channels, 11 classes, batch norm: 29.44 M parameters, 14.72 M of them the encoder's (published: 14.7 M).
    The authors' has 29.45 M: biases before the norms, and a 3×3 convolution to the classes where our head is 1×1.

    Attributes: those of `Network`, and
        width: channels of the first level; the levels have 1, 2, 4, 8 and 8 times as many.

    `deep_dropout` = n is dropout after the n deepest levels of the encoder, pooling included, and of the decoder; 0 to
    5. Bayesian SegNet's best, the central six units, is `deep_dropout=3` with the `deep_rate` of 0.5; all ten are 5.

    References:
        Badrinarayanan et al., arXiv 1511.00561; Kendall et al., Bayesian SegNet, arXiv 1511.02680.

    >>> import jax
    >>> model, images = SegNet(num_classes=5, width=4), jnp.zeros((1, 33, 18, 3))
    >>> output, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False))
    >>> output.logits.shape
    (1, 33, 18, 5)
    """

    num_classes: int
    width: int = 64

    @property
    def multiple(self) -> int:
        """The stride of the lowest level."""
        return 2 ** len(VGG16)

    @property
    def deep_places(self) -> int:
        """Levels, each with a twin on the other side."""
        return len(VGG16)

    def body(self, x: Float[Array, "b h w channels"], go: Pass) -> tuple[Float[Array, "b h w f"], int]:
        """`[B, H, W, channels]`, a multiple of 32, to `[B, H, W, width]`."""

        def stack(name: str, factor: int, count: int, last: int) -> Callable:
            return self.block(ConvStack, factor * self.width, count, last * self.width, padding="zeros", name=name)

        down = [stack(f"down{level}", factor, count, factor) for level, (factor, count) in enumerate(VGG16)]
        up = []
        for level, (factor, count) in enumerate(VGG16):
            # The mirror of the very first convolution is the one to the classes: the head.
            count, last = (count, VGG16[level - 1][0]) if level else (count - 1, factor)
            up.append(stack(f"up{level}", factor, count, last))
        return _pool_and_unpool(x, go, down, up, self.deep_dropout), 1


class SegNetBasic(Network):
    """SegNet-Basic: four 7×7 convolutions with pooling, four with unpooling, all of one width.

    Norm after every convolution, ReLU in the encoder only, as the paper says. A pixel of the lowest level sees 106×106
    pixels of the image. (The authors' Caffe version begins with a local response normalisation; ours takes images that
    are normalised.)

    Width 64, 3 channels, 11 classes, batch norm: 1 416 075 parameters, 1 414 336 of them the kernels' of the eight
    convolutions, 1 024 the norms' and 715 the head's. Published: 1.425 M, in a table whose numbers are all multiples of
    0.025 M.

    Attributes: those of `Network`, and
        width: channels of every level.

    `deep_dropout` = n is dropout after the n deepest levels of the encoder, pooling included, and of the decoder; 0 to
    4. Bayesian SegNet-Basic's central four units are 2.

    References:
        Badrinarayanan et al., arXiv 1511.00561, sections 3.1 and 3.3; Kendall et al., arXiv 1511.02680.

    >>> import jax
    >>> model, images = SegNetBasic(num_classes=5, width=4), jnp.zeros((1, 33, 18, 3))
    >>> output, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False))
    >>> output.logits.shape
    (1, 33, 18, 5)
    """

    num_classes: int
    width: int = 64

    @property
    def multiple(self) -> int:
        """The stride of the lowest level."""
        return 16

    @property
    def deep_places(self) -> int:
        """Levels, each with a twin on the other side."""
        return 4

    def body(self, x: Float[Array, "b h w channels"], go: Pass) -> tuple[Float[Array, "b h w f"], int]:
        """`[B, H, W, channels]`, a multiple of 16, to `[B, H, W, width]`."""
        down, up = (
            [self.block(Conv7x7Block, self.width, relu=relu, name=f"{side}{level}") for level in range(4)]
            for side, relu in (("down", True), ("up", False))
        )
        return _pool_and_unpool(x, go, down, up, self.deep_dropout), 1


class Conv7x7Block(nn.Module):
    """7×7 convolution padded by zeros, norm, and ReLU or none. A bias only where there is no norm.

    Attributes:
        features: output channels.
        relu: whether a ReLU follows.
        norm: "batch" | "group" | "none".
        axis_name: mapped axis of synchronised batch norm.
        dtype: of the computation.
        param_dtype: of the parameters.
    """

    features: int
    relu: bool = True
    norm: str = "batch"
    axis_name: str | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w f"]:
        """`[B, H, W, C]` to `[B, H, W, features]`."""
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        init, biased = fan_in_normal(2.0, 49 * x.shape[-1]), self.norm == "none"
        x = nn.Conv(self.features, (7, 7), use_bias=biased, kernel_init=init, name="conv", **kinds)(x)
        x = Norm(self.norm, self.axis_name, name="norm", **kinds)(x, train)
        return nn.relu(x) if self.relu else x


def _pool_and_unpool(x: Array, go: Pass, down: Sequence[Callable], up: Sequence[Callable], deep_dropout: int) -> Array:
    """Down through the blocks of the encoder, and up through those of the decoder, the last first."""

    def drop(x: Array, level: int, side: int) -> Array:
        return go.drop(x, 1 + 2 * level + side) if level >= len(down) - deep_dropout else x

    remembered = []
    for level, block in enumerate(down):
        x, positions = max_pool_2x2_positions(block(x, go.train))
        remembered.append(positions)
        x = drop(x, level, 0)
    for level in reversed(range(len(up))):
        x = drop(up[level](max_unpool_2x2(x, remembered[level]), go.train), level, 1)
    return x
