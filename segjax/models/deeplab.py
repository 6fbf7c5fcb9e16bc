"""DeepLab v2 (Chen et al. 2016, arXiv 1606.00915) and v3+ (Chen et al. 2018, arXiv 1802.02611)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from segjax import collectives
from segjax.models.dilated import Conv, ConvNorm
from segjax.models.layers import upsample_bilinear
from segjax.models.network import Network, Pass
from segjax.models.resnet import check_encoder, encoder_of


class DeepLabV2(Network):
    r"""A dilated ResNet and atrous spatial pyramid pooling (ASPP): 3×3 convolutions of several dilations, summed.

    .. math:: y = \sum_r W_r *_r x

    with :math:`*_r` the convolution of dilation r. In the paper y are the scores of the classes, which are upsampled by
    8. Here y are the features that the linear head sees: with `aspp=None` as many as classes, and since nothing but
    linear maps comes after x, the network can say what the paper's can, and no more. The convolutions have no bias:
    the head has one.

    ResNet-101, width 64, 3 channels, batch norm: 42.5 M parameters of the encoder, and rates · 9 · 2048 · C. The
    paper's three scales of the image and its conditional random field are not part of the network.

    Attributes: those of `Network`, and
        encoder_depth: 18 | 34 | 50 | 101.
        width: channels of the encoder's stem.
        output_stride: of the encoder, 8 | 16 | 32; the logits are computed there, and upsampled.
        rates: the dilations r; the paper's "ASPP-L", for output stride 8 and crops of 321 pixels. On a map that is no
            larger than r the convolution's outer taps see padding alone: choose less for small images.
        aspp: channels of y; None: `num_classes`.

    `deep_dropout` = 1 is dropout before ASPP, where the paper's VGG has it. (What the heads draw comes after it.)

    References:
        Chen et al., arXiv 1606.00915.

    >>> import jax
    >>> model, images = DeepLabV2(5, encoder_depth=18, width=4), jnp.zeros((1, 33, 50, 3))
    >>> output = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False)[0])
    >>> output.logits.shape
    (1, 33, 50, 5)
    """

    num_classes: int
    encoder_depth: int = 101
    width: int = 64
    output_stride: int = 8
    rates: Sequence[int] = (6, 12, 18, 24)
    aspp: int | None = None

    @property
    def multiple(self) -> int:
        """The encoder's stride."""
        return self.output_stride

    @property
    def deep_places(self) -> int:
        """Before ASPP."""
        return 1

    def check(self) -> None:
        """Raises a ValueError where there is no such encoder, or a rate is none."""
        check_encoder(self.encoder_depth, self.output_stride)
        _check_rates(self.rates)

    def body(self, x: Float[Array, "b h w channels"], go: Pass) -> tuple[Float[Array, "b H W f"], int]:
        """`[B, H, W, channels]`, a multiple of `multiple`, to `[B, H/n, W/n, aspp]` with n the output stride."""
        encoder = encoder_of(self, depth=self.encoder_depth, width=self.width, output_stride=self.output_stride)
        x = encoder(x, go.train)[-1]
        x = go.drop(x, 1) if self.deep_dropout else x
        features = self.num_classes if self.aspp is None else self.aspp
        # Together they are to have the variance that one convolution before a linear head has.
        kinds = {"gain": 1 / len(self.rates), **self.kinds}
        branches = (Conv(features, dilation=rate, name=f"aspp_rate{rate}", **kinds) for rate in self.rates)
        return sum(branch(x) for branch in branches), self.output_stride


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling of DeepLab v3+: what several dilations and the whole image see, side by side.

    A 1×1 convolution, a separable 3×3 one of every rate, and the image's mean through a 1×1 convolution, each with norm
    and ReLU; then all through one more 1×1 convolution with norm and ReLU.

    Batch norm of the image's mean has one value an image and channel to take statistics of. From a single one it would
    make 0, whatever the image, and a running variance of 0: in training that is an error. `axis_name` counts all
    devices' images.

    Attributes:
        features: channels of every branch and of the output.
        rates: of the separable convolutions.
        norm: "batch" | "group" | "none".
        axis_name: mapped axis of synchronised batch norm.
        dtype: of the computation.
        param_dtype: of the parameters.

    References:
        Chen et al., arXiv 1802.02611 and 1706.05587; image-level features: Liu et al., ParseNet, arXiv 1506.04579.
    """

    features: int
    rates: Sequence[int]
    norm: str = "batch"
    axis_name: str | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w f"]:
        """`[B, H, W, C]` to `[B, H, W, features]`.

        Raises:
            ValueError: training with batch norm, and one image in all.
        """
        if train and self.norm == "batch" and x.shape[0] * collectives.psum(1, self.axis_name) < 2:
            raise ValueError(
                "the image pooling of DeepLabV3Plus takes batch statistics over images and needs at least 2 of them in "
                'training; got a batch of 1: use a larger one, or norm="group"'
            )
        common = {"norm": self.norm, "axis_name": self.axis_name, "dtype": self.dtype, "param_dtype": self.param_dtype}
        branches = [ConvNorm(self.features, size=1, name="point", **common)(x, train)]
        for rate in self.rates:
            branch = ConvNorm(self.features, dilation=rate, separable=True, name=f"rate{rate}", **common)
            branches.append(branch(x, train))
        pooled = x.mean((1, 2), keepdims=True, dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)
        pooled = ConvNorm(self.features, size=1, name="pool", **common)(pooled, train)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        return ConvNorm(self.features, size=1, name="project", **common)(jnp.concatenate(branches, -1), train)


class DeepLabV3Plus(Network):
    r"""A dilated ResNet, ASPP with image pooling, and a decoder that sees the features of stride 4.

    .. math:: f = D([\,\text{up}(S(\text{ASPP}(x_{16}))),\ P(x_4)\,])

    with S and D separable 3×3 convolutions and P a 1×1 one to few channels, so that the fine features, which are many,
    do not outweigh the coarse ones; each with norm and ReLU. The logits are computed at stride 4, and upsampled.

    ResNet-50, width 64, 3 channels, batch norm, 12 classes: 26.68 M parameters, those of segmentation-models-pytorch's
    `DeepLabV3Plus("resnet50")`, which has S and a single D; the paper has two D, no S. Both upsample with aligned
    corners, which we do not. Training with batch norm takes two images or more, see `ASPP`.

    Attributes: those of `Network`, and
        encoder_depth: 18 | 34 | 50 | 101.
        width: channels of the encoder's stem.
        output_stride: of the encoder, 8 | 16 | 32.
        rates: the dilations of ASPP; None: the paper's 6, 12, 18 at output stride 16, doubled at 8.
            (segmentation-models-pytorch has 12, 24, 36 at 16.) They are for crops of 513 pixels, and on a map that is
            no larger than a rate only the middle tap of its convolution sees anything: choose less for small images.
        channels: of ASPP and the decoder.
        low: channels to which P takes the features of stride 4; None: 3 of 16, the paper's 48 of 256.

    `deep_dropout` = 1 is dropout after ASPP, where segmentation-models-pytorch has it, 2: after the decoder too.

    References:
        Chen et al., arXiv 1802.02611. Batch norm: Ioffe and Szegedy, arXiv 1502.03167.

    >>> import jax
    >>> model, images = DeepLabV3Plus(5, encoder_depth=18, width=4, channels=8), jnp.zeros((1, 33, 50, 3))
    >>> output = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False)[0])
    >>> output.logits.shape
    (1, 33, 50, 5)
    """

    num_classes: int
    encoder_depth: int = 50
    width: int = 64
    output_stride: int = 16
    rates: Sequence[int] | None = None
    channels: int = 256
    low: int | None = None

    @property
    def multiple(self) -> int:
        """The encoder's stride."""
        return self.output_stride

    @property
    def deep_places(self) -> int:
        """After ASPP, after the decoder."""
        return 2

    def check(self) -> None:
        """Raises a ValueError where there is no such encoder, or a rate is none."""
        check_encoder(self.encoder_depth, self.output_stride)
        _check_rates(self._rates())

    def _rates(self) -> tuple[int, ...]:
        first = 96 // self.output_stride
        return (first, 2 * first, 3 * first) if self.rates is None else tuple(self.rates)

    def body(self, x: Float[Array, "b h w channels"], go: Pass) -> tuple[Float[Array, "b H W f"], int]:
        """`[B, H, W, channels]`, a multiple of `multiple`, to `[B, H/4, W/4, channels]`."""
        encoder = encoder_of(self, depth=self.encoder_depth, width=self.width, output_stride=self.output_stride)
        _, fine, *_, coarse = encoder(x, go.train)
        coarse = self.block(ASPP, self.channels, self._rates(), name="aspp")(coarse, go.train)
        coarse = go.drop(coarse, 1) if self.deep_dropout >= 1 else coarse
        coarse = self.block(ConvNorm, self.channels, separable=True, name="after_aspp")(coarse, go.train)
        coarse = upsample_bilinear(coarse, self.output_stride // 4)
        low = max(1, 3 * fine.shape[-1] // 16) if self.low is None else self.low
        fine = self.block(ConvNorm, low, size=1, name="low")(fine, go.train)
        x = jnp.concatenate([coarse, fine], axis=-1)
        x = self.block(ConvNorm, self.channels, separable=True, name="decoder")(x, go.train)
        return go.drop(x, 2) if self.deep_dropout >= 2 else x, 4


def _check_rates(rates: Sequence[int]) -> None:
    if not rates or min(rates) < 1 or len(set(rates)) < len(rates):
        raise ValueError(f"rates must be one or more different dilations of at least 1; got {tuple(rates)}")
