"""Encoders, with a smaller output stride by dilation: ResNet (arXiv 1512.03385) and EfficientNet-Lite (1905.11946)."""

from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float, Shaped

from segjax import checks
from segjax.models.layers import Block, Conv, depthwise_conv, max_pool_3x3
from segjax.models.network import check_images, rematerialized

# By depth: the number of blocks of each stage, and whether they are bottlenecks.
STAGES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
OUTPUT_STRIDES = (8, 16, 32)
# By variant of EfficientNet-Lite: the channels and the number of blocks of each stage.
LITES = {
    "efficientnet_lite0": ((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
    "efficientnet_lite2": ((16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1)),
}
_LITE_STEM = 32
# Expansion, kernel size and stride of each of these stages.
_LITE_STAGES = ((1, 3, 1), (6, 3, 2), (6, 5, 2), (6, 3, 2), (6, 5, 1), (6, 5, 2), (6, 3, 1))
_LITE_EPSILON, _SAME = 1e-3, {"padding": "SAME"}  # of its norms, and of its convolutions
ENCODERS = ("resnet", *LITES)


class ResidualBlock(Block):
    """Residual block: two 3×3 convolutions, or 1×1, 3×3 and 1×1 if `bottleneck`, each with norm; the input is added.

    The 3×3 convolutions have `width` channels, the last 1×1 four times as many. The first 3×3 has the stride (He et al.
    put it in the first 1×1) and `dilation`, the second `next_dilation`. Where size or channels change, the input passes
    through a 1×1 convolution with norm, `downsample`.
    """

    width: int
    bottleneck: bool = False
    stride: int = 1
    dilation: int = 1
    next_dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b H W f"]:
        """Maps `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), width or 4 · width]`."""

        def conv_norm(x: Array, name: str, features: int, size: int, stride: int = 1, dilation: int = 1) -> Array:
            conv = Conv(features, size, stride, dilation, name=name.replace("norm", "conv"), **self.conv_fields)
            return self.normalize(conv(x), train, name)

        features = self.width * (4 if self.bottleneck else 1)
        if self.bottleneck:
            y = nn.relu(conv_norm(x, "norm1", self.width, 1))
            y = nn.relu(conv_norm(y, "norm2", self.width, 3, self.stride, self.dilation))
            y = conv_norm(y, "norm3", features, 1)
        else:
            y = nn.relu(conv_norm(x, "norm1", features, 3, self.stride, self.dilation))
            y = conv_norm(y, "norm2", features, 3, dilation=self.next_dilation)
        if self.stride > 1 or x.shape[-1] != features:
            x = conv_norm(x, "downsample_norm", features, 1, self.stride)
        return nn.relu(x + y)


class ResNet(Block):
    r"""ResNet-18, 34, 50 or 101 without its classifier: maps images to the features of its stem and four stages.

    Structure and names are torchvision's. Width 64, 3 channels, batch norm: 11.18, 21.28, 23.51, 42.50 M parameters.

    With an output stride of 16 or 8 the last one or two stages dilate instead of striding (arXiv 1412.7062): the
    parameters stay the same, and every second or fourth pixel has the features of output stride 32.

    Attributes: those of `Block`, and
        depth: 18 | 34, with two 3×3 convolutions per block, or 50 | 101, with bottlenecks.
        width: number of channels of the stem; the stages have 1, 2, 4 and 8 times as many, bottlenecks 4 to 32 times.
        output_stride: stride of the last features, 8 | 16 | 32.
        remat: recompute the blocks in the backward pass instead of keeping their activations.

    >>> import jax
    >>> model, images = ResNet(18, width=4, output_stride=16), jax.numpy.zeros((1, 65, 33, 3))
    >>> features = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False)[0])
    >>> [feature.shape[1:] for feature in features]
    [(33, 17, 4), (17, 9, 4), (9, 5, 8), (5, 3, 16), (5, 3, 32)]
    """

    depth: int = 50
    width: int = 64
    output_stride: int = 32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Shaped[Array, "..."], train: bool) -> tuple[Float[Array, "_ _ _ _"], ...]:
        """Maps `[B, H, W, channels]` to five features `[B, ceil(H / s), ceil(W / s), F]`, s = 2, 4, 8, 16, 32.

        s is at most the output stride, and H and W are at least that. F is the width, then the channels of the stages.
        """
        checks.choice("depth", self.depth, tuple(STAGES))
        _check_input(images, self.output_stride, f"ResNet-{self.depth}")
        x = Conv(self.width, 7, 2, name="conv1", **self.conv_fields)(images)
        x = nn.relu(self.normalize(x, train, "norm1"))
        features, x = [x], max_pool_3x3(x)
        block = rematerialized(ResidualBlock) if self.remat else ResidualBlock
        common = {"norm": self.norm, "axis_name": self.axis_name, **self.dtypes}
        blocks, bottleneck = STAGES[self.depth]
        reached, dilation = 4, 1
        for stage, count in enumerate(blocks):
            stride, before = min(2, 2**stage), dilation
            if reached * stride > self.output_stride:
                stride, dilation = 1, dilation * stride
            reached *= stride
            for i in range(count):
                # The first convolution of a dilated stage still has the dilation of the stage before.
                first = {"stride": stride, "dilation": before} if i == 0 else {"dilation": dilation}
                fields = {"next_dilation": dilation, "name": f"layer{stage + 1}_{i}", **first, **common}
                x = block(self.width * 2**stage, bottleneck, **fields)(x, train)
            features.append(x)
        return tuple(features)


class InvertedBottleneck(Block):
    """Block of MobileNet v2 (arXiv 1801.04381): 1×1 expansion, depthwise convolution, and 1×1 projection without ReLU.

    Each convolution has a norm, the first two a ReLU6. The depthwise one has `size`, stride and dilation. The input is
    added if the shape stays the same. `expansion` = 1 omits the first convolution.
    """

    features: int
    expansion: int = 6
    size: int = 3
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b H W f"]:
        """Maps `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), features]`."""
        norm = partial(self.normalize, train=train, epsilon=_LITE_EPSILON)
        y, expanded = x, self.expansion * x.shape[-1]
        if self.expansion > 1:
            y = nn.relu6(norm(Conv(expanded, 1, name="expand_conv", **self.conv_fields)(y), name="expand_norm"))
        fields = {"feature_group_count": expanded, "conv_general_dilated": depthwise_conv, **_SAME}
        fields |= {"name": "depthwise_conv", **self.conv_fields}
        y = Conv(expanded, self.size, self.stride, self.dilation, **fields)(y)
        y = nn.relu6(norm(y, name="depthwise_norm"))
        # LeCun's scale, because no ReLU follows.
        y = norm(Conv(self.features, 1, gain=1.0, name="project_conv", **self.conv_fields)(y), name="project_norm")
        return x + y if x.shape == y.shape else y


class EfficientNetLite(Block):
    r"""EfficientNet-Lite0 or 2 without its head: maps images to the last features of strides 2, 4, 8, 16 and 32.

    EfficientNet (Tan and Le 2019, arXiv 1905.11946) without squeeze and excitation, with ReLU6, and with an unscaled
    stem. With 3 channels and batch norm it has 2.96 M parameters, variant 2 4.36 M. The padding is TensorFlow's: of an
    even size, stride 2 keeps the odd pixels 1, 3, 5, …. Stochastic depth, used to train the published weights, is left
    out, and norms have epsilon 1e-3. Output strides 16 and 8 dilate as in the `ResNet`.

    Attributes: those of `Block`, and
        variant: "efficientnet_lite0" | "efficientnet_lite2".
        output_stride: stride of the last features, 8 | 16 | 32.
        remat: recompute the blocks in the backward pass instead of keeping their activations.

    >>> import jax
    >>> model, images = EfficientNetLite(output_stride=16), jax.numpy.zeros((1, 65, 33, 3))
    >>> features = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False)[0])
    >>> [feature.shape[1:] for feature in features]
    [(33, 17, 16), (17, 9, 24), (9, 5, 40), (5, 3, 112), (5, 3, 320)]
    """

    variant: str = "efficientnet_lite0"
    output_stride: int = 32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Shaped[Array, "..."], train: bool) -> tuple[Float[Array, "_ _ _ _"], ...]:
        """Maps `[B, H, W, channels]` to five features `[B, ceil(H / s), ceil(W / s), F]`, s = 2, 4, 8, 16, 32.

        s is at most the output stride, and H and W are at least that.
        """
        checks.choice("variant", self.variant, tuple(LITES))
        _check_input(images, self.output_stride, self.variant)
        x = Conv(_LITE_STEM, 3, 2, name="stem_conv", **_SAME, **self.conv_fields)(images)
        x = nn.relu6(self.normalize(x, train, "stem_norm", epsilon=_LITE_EPSILON))
        block = rematerialized(InvertedBottleneck) if self.remat else InvertedBottleneck
        common = {"norm": self.norm, "axis_name": self.axis_name, **self.dtypes}
        features, stride, dilation, number = [], 2, 1, 0
        for channels, count, (expansion, size, step) in zip(*LITES[self.variant], _LITE_STAGES, strict=True):
            if step == 2:
                features.append(x)  # the last features of this stride
            before, dilates = dilation, stride * step > self.output_stride
            stride, dilation = (stride, dilation * step) if dilates else (stride * step, dilation)
            for i in range(count):
                # The first block of a dilated stage still has the dilation of the stage before.
                first = {"stride": 1 if dilates else step, "dilation": before}
                fields = {**(first if i == 0 else {"dilation": dilation}), "name": f"block{number}", **common}
                x, number = block(channels, expansion, size, **fields)(x, train), number + 1
        return (*features, x)


def _check_input(images: Array, output_stride: int, encoder: str) -> None:
    checks.choice("output_stride", output_stride, OUTPUT_STRIDES)
    check_images(images)
    height, width = images.shape[1:3]
    if height < output_stride or width < output_stride:
        expected = f"at least {output_stride}x{output_stride}, the output stride of this {encoder}"
        raise ValueError(f"images must be {expected}; got {height}x{width}")


def encoder_of(network: Block, output_stride: int) -> ResNet | EfficientNetLite:
    """Returns the module "encoder" of a network: by its fields, with its norm, dtypes and rematerialization."""
    common = {"norm": network.norm, "axis_name": network.axis_name, "remat": network.remat, **network.dtypes}
    if network.encoder in LITES:
        return EfficientNetLite(network.encoder, output_stride, name="encoder", **common)
    checks.choice("encoder_depth", network.encoder_depth, tuple(STAGES))
    return ResNet(network.encoder_depth, network.width, output_stride, name="encoder", **common)
