"""What the networks are built of: convolution and norm, bilinear upsampling, and the padding to a size that pools."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from segjax import checks
from segjax.models.convolution import conv3x3_reflect, conv3x3_zeros
from segjax.models.layout import Layout, conv3x3_laid_out
from segjax.models.norm import Norm


def pad_to_multiple(x: Float[Array, "b h w c"], multiple: int, minimum: int = 1) -> Float[Array, "b H W c"]:
    """Grows height and width at the bottom and the right to a multiple of `multiple` that is at least `minimum`.

    The new pixels are the image's reflection, edge pixel not repeated; where it is smaller than what is missing it is
    reflected again and again, as in `np.pad`, and a line of one pixel is repeated. `[:, :H, :W]` undoes it.

    >>> print(pad_to_multiple(jnp.arange(3.0).reshape(1, 1, 3, 1), 4)[0, :, :, 0])
    [[0. 1. 2. 1.]
     [0. 1. 2. 1.]
     [0. 1. 2. 1.]
     [0. 1. 2. 1.]]
    """
    # In integers: a symbolic size of `jax.export`, a multiple by its form, is then found to lack nothing.
    grown = [max(n, minimum) for n in x.shape[1:3]]
    missing = [big + -big % multiple - n for big, n in zip(grown, x.shape[1:3], strict=True)]
    if not any(missing):
        return x
    return jnp.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)), mode="reflect")


def upsample_bilinear(x: Float[Array, "b h w c"], scale: int) -> Float[Array, "b {scale}*h {scale}*w c"]:
    """Each side `scale` times as long, bilinear between pixel centres, the edge repeated; computed in x's dtype.

    PyTorch's `interpolate(mode="bilinear", align_corners=False)`, OpenCV's and Pillow's way of placing the pixels.

    >>> print(upsample_bilinear(jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1), 2)[0, :, :, 0])
    [[0. 1. 3. 4.]
     [0. 1. 3. 4.]]
    """
    b, h, w, c = x.shape
    return x if scale == 1 else jax.image.resize(x, (b, scale * h, scale * w, c), "linear")


def fan_in_normal(gain: float, fan_in: int) -> nn.initializers.Initializer:
    """A truncated normal of variance `gain / fan_in`, cut at 2σ: gain 2 is `nn.initializers.he_normal`, 1 LeCun's.

    The same numbers as Linen's, drawn as one line and reshaped: XLA's CPU compiler takes ten times as long over a draw
    with four axes, which made the compilation of `init` slower than that of a training step.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        # The standard deviation of a standard normal cut at 2σ.
        stddev = math.sqrt(gain / fan_in) / 0.87962566103423978
        return (jax.random.truncated_normal(key, -2, 2, (math.prod(shape),), dtype) * stddev).reshape(shape)

    return init


class Conv3x3(nn.Module):
    """A 3×3 convolution, stride 1, that keeps height and width; He-normal initial kernel (arXiv 1502.01852).

    Attributes:
        features: output channels.
        padding: "reflect" or "zeros".
        use_bias: False before a norm, which would cancel it.
        layout: of input and output.
        dtype: of the computation.
        param_dtype: of the parameters.
    """

    features: int
    padding: str = "reflect"
    use_bias: bool = False
    layout: Layout = Layout()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"] | Sequence[Float[Array, "b h w _"]]) -> Float[Array, "b h w f"]:
        """`[B, H, W, C]` to `[B, H, W, features]`, both laid out as `layout` says.

        Several arrays stand for their concatenation, which is never made: what comes out is the sum of their
        convolutions.
        """
        checks.choice("padding", self.padding, tuple(_PAD_MODES))
        parts = list(x) if isinstance(x, Sequence) else [x]
        sizes = [part.shape[-1] // self.layout.columns for part in parts]
        init = fan_in_normal(2.0, 9 * sum(sizes))
        kernel = self.param("kernel", init, (3, 3, sum(sizes), self.features), self.param_dtype)
        *parts, kernel = promote_dtype(*parts, kernel, dtype=self.dtype)
        kernels = jnp.split(kernel, np.cumsum(sizes)[:-1], axis=2)
        y = functools.reduce(jnp.add, map(self._convolved, parts, kernels))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
            y += jnp.tile(bias.astype(y.dtype), self.layout.columns)
        return y

    def _convolved(self, x: Array, kernel: Array) -> Array:
        if self.layout != Layout():
            return conv3x3_laid_out(x, kernel, self.layout, padding=self.padding)
        return (conv3x3_reflect if self.padding == "reflect" else conv3x3_zeros)(x, kernel)


class StridedConv3x3(nn.Module):
    """3×3 convolution with stride 2, norm, ReLU: a pooling that is learned. A bias only where there is no norm.

    The kernel's centre lies on every even row and column, so one line of padding above and at the left is all that an
    even size needs: PyTorch's `Conv2d(C, F, 3, stride=2, padding=1)`.

    Attributes:
        features: output channels.
        norm: "batch" | "group" | "none".
        padding: "reflect" | "zeros".
        axis_name: mapped axis of synchronised batch norm.
        dtype: of the computation.
        param_dtype: of the parameters.
    """

    features: int
    norm: str = "batch"
    padding: str = "reflect"
    axis_name: str | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h/2 w/2 f"]:
        """`[B, H, W, C]`, H and W even, to `[B, H/2, W/2, features]`.

        Raises:
            ValueError: H or W is odd, or `padding` is unknown.
        """
        h, w, c = x.shape[1:]
        if h % 2 or w % 2:
            raise ValueError(f"StridedConv3x3 needs an even height and width; got {h}x{w}")
        checks.choice("padding", self.padding, tuple(_PAD_MODES))
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = nn.Conv(
            self.features,
            (3, 3),
            (2, 2),
            padding="VALID",
            use_bias=self.norm == "none",
            kernel_init=fan_in_normal(2.0, 9 * c),
            name="conv",
            **kinds,
        )
        y = conv(jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)), mode=_PAD_MODES[self.padding]))
        return nn.relu(Norm(self.norm, self.axis_name, name="norm", **kinds)(y, train))


# As `jnp.pad` calls them.
_PAD_MODES = {"reflect": "reflect", "zeros": "constant"}


# Of each level of VGG16 (Simonyan and Zisserman, arXiv 1409.1556): channels in units of the width, and convolutions.
VGG16 = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))


class ConvStack(nn.Module):
    """3×3 convolution, norm, ReLU, `count` times, as in VGG. The convolutions have a bias only without a norm.

    Attributes:
        features: output channels of each convolution.
        count: how many convolutions.
        last: output channels of the last one, where they are others; None: `features`.
        norm: "batch" | "group" | "none".
        padding: "reflect" | "zeros".
        layout: of input and output.
        axis_name: mapped axis of synchronised batch norm.
        dtype: of the computation.
        param_dtype: of the parameters.
    """

    features: int
    count: int
    last: int | None = None
    norm: str = "batch"
    padding: str = "reflect"
    layout: Layout = Layout()
    axis_name: str | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"] | Sequence[Float[Array, "b h w _"]], train: bool
    ) -> Float[Array, "b h w f"]:
        """`[B, H, W, C]` to `[B, H, W, features]`, or to `last` channels; laid out, or in parts, as `Conv3x3` has it.

        Raises:
            ValueError: `count` is less than 1.
        """
        if self.count < 1:
            raise ValueError(f"count of ConvStack must be at least 1; got {self.count}")
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        widths = [self.features] * (self.count - 1) + [self.features if self.last is None else self.last]
        kinds |= {"layout": self.layout}
        for i, width in enumerate(widths, 1):
            conv = Conv3x3(width, self.padding, use_bias=self.norm == "none", name=f"conv{i}", **kinds)
            norm = Norm(self.norm, self.axis_name, name=f"norm{i}", **kinds)
            x = nn.relu(norm(conv(x), train))
        return x


class ConvBlock(ConvStack):
    """U-Net's block: a `ConvStack` of two."""

    count: int = 2
