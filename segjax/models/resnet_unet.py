"""U-Net (arXiv 1505.04597) whose way down is a ResNet (arXiv 1512.03385)."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from segjax.models.layers import ConvBlock
from segjax.models.network import Network, Pass
from segjax.models.resnet import check_encoder, encoder_of
from segjax.models.upsampling import upsample_nearest_2x2

LEVELS = 5


class ResNetUNet(Network):
    r"""A ResNet's features of stride 32, upsampled five times by 2 and joined with those of the same size on the way.

    .. math:: y_5 = x_{32}, \qquad y_l = B_l([\,\text{nearest}(y_{l+1}),\ x_{2^l}\,]), \qquad l = 4 \ldots 0

    with B two 3×3 convolutions, each with norm and ReLU; the full size, l = 0, has no features to join.

    ResNet-18, width 64, 3 channels, batch norm: 14.3 M parameters; ResNet-34: 24.4 M. The structure is that of
    segmentation-models-pytorch's `Unet`, but for its head, a 3×3 convolution where ours is 1×1.

    Attributes: those of `Network`, and
        encoder_depth: 18 | 34 | 50 | 101.
        width: channels of the encoder's stem.
        decoder: channels of the five steps up, the coarsest first; None: 4, 2, 1, 1/2 and 1/4 widths.

    `deep_dropout` = n is dropout after the encoder and after the first n - 1 steps up; 0 to 5.

    References:
        Ronneberger et al., arXiv 1505.04597; He et al., arXiv 1512.03385.

    >>> import jax
    >>> model, images = ResNetUNet(5, width=4, decoder=(32, 16, 8, 4, 4)), jnp.zeros((1, 33, 50, 3))
    >>> output = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False)[0])
    >>> output.logits.shape
    (1, 33, 50, 5)
    """

    num_classes: int
    encoder_depth: int = 18
    width: int = 64
    decoder: Sequence[int] | None = None

    @property
    def multiple(self) -> int:
        """The encoder's stride."""
        return 2**LEVELS

    @property
    def deep_places(self) -> int:
        """After the encoder, and after every step up but the last, which the head's own dropout follows."""
        return LEVELS

    def check(self) -> None:
        """Raises a ValueError where there is no such encoder, or not one width a step."""
        check_encoder(self.encoder_depth, self.multiple)
        if len(self._decoder) != LEVELS or min(self._decoder) < 1:
            raise ValueError(f"decoder must have {LEVELS} widths, one a step up, all positive; got {self._decoder}")

    @property
    def _decoder(self) -> tuple[int, ...]:
        if self.decoder is None:
            return tuple(4 * self.width // 2**step for step in range(LEVELS))
        return tuple(self.decoder)

    def body(self, x: Float[Array, "b h w channels"], go: Pass) -> tuple[Float[Array, "b h w f"], int]:
        """`[B, H, W, channels]`, a multiple of 32, to the last of the decoder's channels."""
        encoder = encoder_of(self, depth=self.encoder_depth, width=self.width, output_stride=self.multiple)
        *skips, x = encoder(x, go.train)
        x = go.drop(x, 1) if self.deep_dropout else x
        for step, width in enumerate(self._decoder):
            x = upsample_nearest_2x2(x)
            x = jnp.concatenate([x, skips.pop()], axis=-1) if skips else x
            x = self.block(ConvBlock, width, padding="zeros", name=f"up{LEVELS - 1 - step}")(x, go.train)
            x = go.drop(x, 2 + step) if step + 1 < self.deep_dropout else x
        return x, 1
