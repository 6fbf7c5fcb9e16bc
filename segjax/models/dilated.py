"""Convolutions that can have a stride or a dilation, full and separable, padded by zeros as PyTorch pads."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from segjax.models.convolution import conv3x3_zeros, depthwise3x3
from segjax.models.layers import fan_in_normal
from segjax.models.norm import Norm


class Conv(nn.Module):
    """A k×k convolution with PyTorch's padding: dilation · (k - 1) / 2 zeros on every side; He-normal initial kernel.

    At stride s it takes the pixels 0, s, 2s, …, and H pixels come out as ceil(H / s). (XLA's "SAME" begins at another
    pixel where H is even.)

    Attributes:
        features: output channels.
        size: k, odd.
        stride: of the output's pixels.
        dilation: pixels from tap to tap.
        use_bias: False before a norm, which would cancel it.
        gain: of the initial kernel: variance gain / fan-in; He's 2 is for the ReLU that follows.
        dtype: of the computation.
        param_dtype: of the parameters.
    """

    features: int
    size: int = 3
    stride: int = 1
    dilation: int = 1
    use_bias: bool = False
    gain: float = 2.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W f"]:
        """`[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), features]`."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", fan_in_normal(self.gain, math.prod(shape[:3])), shape, self.param_dtype)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        if self.size == 1:
            y = x[:, :: self.stride, :: self.stride] @ kernel[0, 0]
        elif (self.size, self.stride, self.dilation) == (3, 1, 1):
            y = conv3x3_zeros(x, kernel)
        else:
            zeros = self.dilation * (self.size // 2)
            strides, dilations = (self.stride,) * 2, (self.dilation,) * 2
            y = jax.lax.conv_general_dilated(
                x, kernel, strides, ((zeros, zeros),) * 2, None, dilations, ("NHWC", "HWIO", "NHWC")
            )
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype).astype(y.dtype)
        return y


class SeparableConv3x3(nn.Module):
    """A 3×3 convolution of every channel by itself, then a 1×1 convolution across them; no norm between.

    9C + C · features parameters for the 9C · features of a full one (Chollet, Xception, arXiv 1610.02357).

    Attributes:
        features: output channels.
        dilation: pixels from tap to tap, of the first.
        use_bias: of the second; False before a norm.
        dtype: of the computation.
        param_dtype: of the parameters.
    """

    features: int
    dilation: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w f"]:
        """`[B, H, W, C]` to `[B, H, W, features]`."""
        c = x.shape[-1]
        # No ReLU follows: LeCun's scale.
        kernel = self.param("depthwise", fan_in_normal(1.0, 9), (3, 3, c), self.param_dtype)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        x = depthwise3x3(x, kernel, self.dilation)
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return Conv(self.features, size=1, use_bias=self.use_bias, name="pointwise", **kinds)(x)


class ConvNorm(nn.Module):
    """A convolution, full or separable, norm, ReLU. The convolution has a bias only where there is no norm.

    Attributes:
        features: output channels.
        size: k of a full one; a separable one is 3×3.
        dilation: pixels from tap to tap.
        separable: `SeparableConv3x3` instead of `Conv`.
        norm: "batch" | "group" | "none".
        axis_name: mapped axis of synchronised batch norm.
        dtype: of the computation.
        param_dtype: of the parameters.
    """

    features: int
    size: int = 3
    dilation: int = 1
    separable: bool = False
    norm: str = "batch"
    axis_name: str | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w f"]:
        """`[B, H, W, C]` to `[B, H, W, features]`."""
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        fields = {"dilation": self.dilation, "use_bias": self.norm == "none", "name": "conv", **kinds}
        conv = SeparableConv3x3(self.features, **fields) if self.separable else Conv(self.features, self.size, **fields)
        return nn.relu(Norm(self.norm, self.axis_name, name="norm", **kinds)(conv(x), train))
