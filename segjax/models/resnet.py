"""ResNet (He et al. 2015, arXiv 1512.03385) as an encoder, with a smaller output stride by dilation."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from segjax import checks
from segjax.models.dilated import Conv
from segjax.models.network import Network, check_images, rematerialised
from segjax.models.norm import Norm
from segjax.models.pooling import max_pool_3x3

# Depth to the blocks of its four stages, and whether they are bottlenecks.
STAGES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
OUTPUT_STRIDES = (8, 16, 32)


class ResidualBlock(nn.Module):
    """ReLU of the input plus what two or three convolutions, each with its norm, make of it.

    Where size or channels change the input goes through a 1×1 convolution and a norm of its own, `downsample`.

    Attributes:
        width: channels of the 3×3 convolution.
        bottleneck: 1×1, 3×3, 1×1 to 4 · width channels, and not 3×3, 3×3.
        stride: of the first 3×3 convolution (torchvision's "v1.5": He et al. have a bottleneck's in its first 1×1).
        dilation: of the first 3×3 convolution.
        next_dilation: of the second.
        norm: "batch" | "group" | "none".
        axis_name: mapped axis of synchronised batch norm.
        dtype: of the computation.
        param_dtype: of the parameters.
    """

    width: int
    bottleneck: bool = False
    stride: int = 1
    dilation: int = 1
    next_dilation: int = 1
    norm: str = "batch"
    axis_name: str | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b H W f"]:
        """`[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), width or 4 · width]`."""
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def conv_norm(x: Array, name: str, features: int, size: int, stride: int = 1, dilation: int = 1) -> Array:
            conv = name.replace("norm", "conv")
            x = Conv(features, size, stride, dilation, use_bias=self.norm == "none", name=conv, **kinds)(x)
            return Norm(self.norm, self.axis_name, name=name, **kinds)(x, train)

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


class ResNet(nn.Module):
    r"""ResNet-18, 34, 50 or 101 without its classifier: images to the features of its stem and of its four stages.

    .. math:: x_{l+1} = \operatorname{ReLU}(x_l + F_l(x_l))

    torchvision's, in structure, padding and names: `layer2.0.conv1.weight` is `layer2_0/conv1/kernel`, `bn1` is
    `norm1`, `downsample.0` and `downsample.1` are `downsample_conv` and `downsample_norm` (`segjax.models.pretrained`
    converts them). Width 64, 3 channels, batch norm: 11.18, 21.28, 23.51 and 42.50 M parameters.

    With an output stride of 16 or 8 the last one or two stages dilate instead of striding, as torchvision's
    `replace_stride_with_dilation` (arXiv 1412.7062, 1706.05587): the same parameters, and at every second or fourth
    pixel the same features as those of stride 32. (segmentation-models-pytorch dilates the first convolution of such a
    stage too, and that is not the same.)

    `init(key, images, train=False)`, `apply(variables, images, train=…, mutable=["batch_stats"])`. It is no `Network`:
    no head, no padding.

    Attributes:
        depth: 18 | 34, of two 3×3 convolutions a block, or 50 | 101, of bottlenecks.
        width: channels of the stem; the stages have 1, 2, 4 and 8 times as many, bottlenecks four times these.
        output_stride: of the last features, 8 | 16 | 32.
        norm: "batch" | "group" | "none".
        axis_name: the mapped axis over which batch statistics are averaged.
        dtype: of the computation.
        param_dtype: of the parameters.
        remat: compute the blocks again in the backward pass instead of keeping their activations.

    References:
        He et al., arXiv 1512.03385. Dilation: Chen et al., arXiv 1412.7062; Yu and Koltun, arXiv 1511.07122.

    >>> import jax
    >>> model, images = ResNet(18, width=4, output_stride=16), jnp.zeros((1, 65, 33, 3))
    >>> features = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False)[0])
    >>> [feature.shape[1:] for feature in features]
    [(33, 17, 4), (17, 9, 4), (9, 5, 8), (5, 3, 16), (5, 3, 32)]
    """

    depth: int = 50
    width: int = 64
    output_stride: int = 32
    norm: str = "batch"
    axis_name: str | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Shaped[Array, "..."], train: bool) -> tuple[Float[Array, "_ _ _ _"], ...]:
        """`[B, H, W, channels]` to five features, `[B, ceil(H / s), ceil(W / s), F]` for s = 2, 4, 8, 16, 32.

        No s is larger than the output stride. F: width, then those of the stages.

        Raises:
            TypeError: images of integers.
            ValueError: an unknown depth or output stride; images of another rank, or smaller than the output stride.
        """
        checks.choice("depth", self.depth, tuple(STAGES))
        checks.choice("output_stride", self.output_stride, OUTPUT_STRIDES)
        check_images(images)
        # Each by itself: symbolic sizes cannot be compared with each other.
        if any(n < self.output_stride for n in images.shape[1:3]):
            raise ValueError(
                f"images must be at least {self.output_stride}x{self.output_stride}, the output stride of this "
                f"ResNet-{self.depth}; got {images.shape[1]}x{images.shape[2]}"
            )
        common = {"norm": self.norm, "axis_name": self.axis_name}
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Conv(self.width, 7, 2, use_bias=self.norm == "none", name="conv1", **kinds)(images)
        x = nn.relu(Norm(self.norm, self.axis_name, name="norm1", **kinds)(x, train))
        features = [x]
        x = max_pool_3x3(x)
        block = rematerialised(ResidualBlock) if self.remat else ResidualBlock
        blocks, bottleneck = STAGES[self.depth]
        reached, dilation = 4, 1
        for stage, count in enumerate(blocks):
            stride, before = min(2, 2**stage), dilation
            if reached * stride > self.output_stride:
                stride, dilation = 1, dilation * stride
            reached *= stride
            for i in range(count):
                x = block(
                    self.width * 2**stage,
                    bottleneck,
                    stride=stride if i == 0 else 1,
                    # The first convolution of a stage that no longer strides still sees the pixels of the stage before.
                    dilation=before if i == 0 else dilation,
                    next_dilation=dilation,
                    name=f"layer{stage + 1}_{i}",
                    **common,
                    **kinds,
                )(x, train)
            features.append(x)
        return tuple(features)


def encoder_of(network: Network, *, depth: int, width: int, output_stride: int) -> ResNet:
    """The ResNet "encoder" inside a network's body, with the network's norm, dtypes and rematerialisation."""
    common = {"norm": network.norm, "axis_name": network.axis_name, "remat": network.remat}
    return ResNet(depth, width, output_stride, name="encoder", **common, **network.kinds)


def check_encoder(depth: int, output_stride: int) -> None:
    """A ValueError where a network's `encoder_depth` or `output_stride` is none of `ResNet`'s."""
    checks.choice("encoder_depth", depth, tuple(STAGES))
    checks.choice("output_stride", output_stride, OUTPUT_STRIDES)
