"""Layers that the networks share: convolutions, norms, max pooling, bilinear upsampling and padding.

Max pooling, depthwise convolution and initial kernels are written out: XLA is several times slower with flax's on CPUs.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax
from jaxtyping import Array, Float, UInt8

from segjax import checks

# Channels in units of the width, and number of convolutions, of each level of VGG16 (arXiv 1409.1556).
VGG16 = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
_PAD_MODES = {"reflect": "reflect", "zeros": "constant"}


def pad_to_multiple(
    x: Float[Array, "b h w c"], multiple: int, minimum: int = 1, mode: str = "reflect"
) -> Float[Array, "b H W c"]:
    """Pads height and width, at the bottom and the right, to a multiple of `multiple` that is at least `minimum`.

    The new pixels are the reflection of the image without its edge pixel, repeated as in `np.pad` if it is too small,
    or 0 with the mode "constant".

    >>> print(pad_to_multiple(jnp.arange(3.0).reshape(1, 1, 3, 1), 4)[0, 0, :, 0])
    [0. 1. 2. 1.]
    """
    # In integers, so that `jax.export` sees that a symbolic multiple of `multiple` needs no padding.
    missing = [max(n, minimum) - n + -max(n, minimum) % multiple for n in x.shape[1:3]]
    return jnp.pad(x, ((0, 0), *((0, n) for n in missing), (0, 0)), mode=mode) if any(missing) else x


def upsample_bilinear(x: Float[Array, "b h w c"], scale: int) -> Float[Array, "b {scale}*h {scale}*w c"]:
    """Upsamples each side by `scale`, as PyTorch's `interpolate(mode="bilinear", align_corners=False)`."""
    b, h, w, c = x.shape
    return x if scale == 1 else jax.image.resize(x, (b, scale * h, scale * w, c), "linear")


def fan_in_normal(gain: float, fan_in: int | None = None) -> nn.initializers.Initializer:
    """Returns a truncated normal initializer of variance `gain / fan_in`, cut at 2σ: He's at gain 2, LeCun's at 1.

    `fan_in` is by default the product of all axes but the last. The numbers are those of
    `nn.initializers.variance_scaling`, drawn as one vector, which compiles ten times as fast on a CPU.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        inputs = math.prod(shape[:-1]) if fan_in is None else fan_in
        stddev = math.sqrt(gain / inputs) / 0.87962566103423978  # of a standard normal cut at 2σ
        return (jax.random.truncated_normal(key, -2, 2, (math.prod(shape),), dtype) * stddev).reshape(shape)

    return init


class Layer(nn.Module, kw_only=True):
    """Base class of layers and networks."""

    dtype: Any = jnp.float32  # of the computation; statistics and logits are at least float32
    param_dtype: Any = jnp.float32

    @property
    def dtypes(self) -> dict[str, Any]:
        """Both dtypes as arguments of a layer."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}


class Norm(Layer):
    """Batch norm, group norm or no norm; by default with PyTorch's epsilon 1e-5 and momentum 0.9 (PyTorch's 0.1).

    `nn.BatchNorm` keeps the biased running variance (1/N); PyTorch keeps N/(N-1) of it. The variance is the mean of
    squared deviations: E[x²] - E[x]² would cancel for channels far from 0. `kind` is "batch" (Ioffe and Szegedy, arXiv
    1502.03167) | "group", with the greatest common divisor of `groups` and the channels | "none".
    """

    kind: str = "batch"
    axis_name: str | None = None
    groups: int = 8
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """Normalizes by batch statistics, updating "batch_stats", if `train`, and by the running statistics if not."""
        checks.choice("norm", self.kind, ("batch", "group", "none"))
        common = {"epsilon": self.epsilon, "use_fast_variance": False, **self.dtypes}
        if self.kind == "batch":
            return nn.BatchNorm(not train, momentum=0.9, axis_name=self.axis_name, name="batch", **common)(x)
        if self.kind == "group":
            return nn.GroupNorm(math.gcd(self.groups, x.shape[-1]), name="group", **common)(x)
        return x


class Block(Layer, kw_only=True):
    """Base class of blocks of convolutions and norms, and of networks. Convolutions have a bias only if norm is "none".

    `norm` is "batch" | "group" | "none". `axis_name` is the mapped axis (`pmap`, `shard_map`, `vmap`) over which batch
    statistics are averaged. If set, training works only inside that axis; leave it None under plain `jit`.
    """

    norm: str = "batch"
    axis_name: str | None = None

    @property
    def conv_fields(self) -> dict[str, Any]:
        """Dtypes and `use_bias` as arguments of a convolution that a norm follows."""
        return {"use_bias": self.norm == "none", **self.dtypes}

    def normalize(
        self, x: Float[Array, "b h w c"], train: bool, name: str = "norm", **fields: Any
    ) -> Float[Array, "b h w c"]:
        """Normalizes `x` by a `Norm` of this name; `fields` are other fields of it."""
        return Norm(self.norm, self.axis_name, name=name, **fields, **self.dtypes)(x, train)


def Conv(
    features: int, size: int = 3, stride: int = 1, dilation: int = 1, *, gain: float = 2.0, **fields: Any
) -> nn.Conv:
    """Returns a k×k `nn.Conv` with PyTorch's padding, dilation · (k - 1) / 2 zeros on every side, and without bias.

    `size` is an odd k, and `fields` are other fields of `nn.Conv`. With stride s the outputs lie at pixels 0, s, 2s, …,
    so H pixels become ceil(H / s). The initial kernel has variance gain / fan-in; He's 2 is for the ReLU that follows.
    """
    defaults = {"padding": dilation * (size // 2), "use_bias": False, "dtype": jnp.float32}
    fields = {**defaults, "kernel_init": fan_in_normal(gain), "kernel_dilation": dilation, **fields}
    return nn.Conv(features, (size, size), stride, **fields)


def Conv3x3(features: int, padding: str = "reflect", **fields: Any) -> nn.Conv:
    """Returns a 3×3 `Conv` with stride 1 and a padding of "reflect" or "zeros", with He-normal kernel (1502.01852)."""
    checks.choice("padding", padding, tuple(_PAD_MODES))
    return Conv(features, conv_general_dilated=conv3x3_reflect if padding == "reflect" else None, **fields)


def conv3x3_reflect(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c f"], *_: Any, dimension_numbers: Any, **__: Any
) -> Float[Array, "b h w f"]:
    """Returns the 3×3 convolution of `x` padded by its reflection, without a padded copy; other arguments: `nn.Conv`'s.

    It is the zero-padded convolution plus the contributions of the reflected lines to the outermost rows and columns.
    Padding the whole array doubles a U-Net's training step on a CPU with jax 0.10, adds a fifth with jax 0.12
    (docs/speed.md), and moves a quarter more bytes on a TPU. Reverse mode only. A single row or column is repeated.
    """

    def conv(lines: Array, part: Array, padding: Any) -> Array:
        return lax.conv_general_dilated(lines, part, (1, 1), padding, dimension_numbers=dimension_numbers)

    def reflect_columns(row: Array) -> Array:  # rows include the corners, columns do not
        return jnp.pad(row, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="reflect")

    if 1 in x.shape[1:3]:
        return conv(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect"), kernel, "VALID")
    x, (above, below, before, after) = _second_lines(x)
    y = conv(x, kernel, "SAME")
    y = y.at[:, :1].add(conv(reflect_columns(above), kernel[:1], "VALID"))
    y = y.at[:, -1:].add(conv(reflect_columns(below), kernel[2:], "VALID"))
    y = y.at[:, :, :1].add(conv(before, kernel[:, :1], ((1, 1), (0, 0))))
    return y.at[:, :, -1:].add(conv(after, kernel[:, 2:], ((1, 1), (0, 0))))


def _slice_second_lines(x: Array) -> tuple[Array, tuple[Array, ...]]:
    """Returns `x`, its second row, its last row but one, its second column, and its last but one."""
    return x, (x[:, 1:2], x[:, -2:-1], x[:, :, 1:2], x[:, :, -2:-1])


def _add_second_lines(_: None, cotangents: tuple[Array, tuple[Array, ...]]) -> tuple[Array]:
    # In place: JAX's own gradient of the four slices pads each of them to the full size before adding them.
    whole, (above, below, before, after) = cotangents
    whole = whole.at[:, 1:2].add(above).at[:, -2:-1].add(below)
    return (whole.at[:, :, 1:2].add(before).at[:, :, -2:-1].add(after),)


_second_lines = jax.custom_vjp(_slice_second_lines)
_second_lines.defvjp(lambda x: (_slice_second_lines(x), None), _add_second_lines)


class SeparableConv3x3(Layer):
    """A dilated depthwise 3×3 convolution, then a 1×1 convolution to `features` channels (arXiv 1610.02357)."""

    features: int
    dilation: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w f"]:
        """Maps `[B, H, W, C]` to `[B, H, W, features]`."""
        # LeCun's scale, because no ReLU follows.
        kernel = self.param("depthwise", fan_in_normal(1.0, 9), (3, 3, x.shape[-1]), self.param_dtype)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        x = depthwise_conv(x, kernel[:, :, None], rhs_dilation=(self.dilation, self.dilation))
        return Conv(self.features, 1, use_bias=self.use_bias, name="pointwise", **self.dtypes)(x)


class ConvNorm(Block):
    """A dilated convolution to `features` channels, norm, and ReLU if `relu`.

    The convolution is a `Conv` of this `size`, or, if `separable`, a `SeparableConv3x3`.
    """

    features: int
    size: int = 3
    dilation: int = 1
    separable: bool = False
    relu: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w f"]:
        """Maps `[B, H, W, C]` to `[B, H, W, features]`."""
        fields = {"dilation": self.dilation, "name": "conv", **self.conv_fields}
        conv = SeparableConv3x3(self.features, **fields) if self.separable else Conv(self.features, self.size, **fields)
        x = self.normalize(conv(x), train)
        return nn.relu(x) if self.relu else x


class StridedConv3x3(Block):
    """A learned pooling: 3×3 convolution with stride 2 and a padding of "reflect" | "zeros", norm, ReLU."""

    features: int
    padding: str = "reflect"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h/2 w/2 f"]:
        """Maps `[B, H, W, C]`, H and W even (otherwise a ValueError), to `[B, H/2, W/2, features]`."""
        _check_even(x, "StridedConv3x3")
        checks.choice("padding", self.padding, tuple(_PAD_MODES))
        padded = jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)), mode=_PAD_MODES[self.padding])
        y = Conv(self.features, 3, 2, padding="VALID", name="conv", **self.conv_fields)(padded)
        return nn.relu(self.normalize(y, train))


class ConvStack(Block):
    """`Conv3x3` to `features` channels, norm, ReLU, `count` times, as in VGG; the last has `last` channels if given."""

    features: int
    count: int
    last: int | None = None
    padding: str = "reflect"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w f"]:
        """Maps `[B, H, W, C]` to `[B, H, W, features]`."""
        if self.count < 1:
            raise ValueError(f"count of ConvStack must be at least 1; got {self.count}")
        widths = [self.features] * (self.count - 1) + [self.features if self.last is None else self.last]
        for i, width in enumerate(widths, 1):
            x = Conv3x3(width, self.padding, name=f"conv{i}", **self.conv_fields)(x)
            x = nn.relu(self.normalize(x, train, f"norm{i}"))
        return x


class ConvBlock(ConvStack):
    """U-Net's block: a `ConvStack` of two convolutions."""

    count: int = 2


def max_pool_2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c"]:
    """Returns the maximum of each 2×2 window, stride 2: `nn.max_pool(x, (2, 2), (2, 2))` in value and gradient.

    Among equal maxima the first receives the gradient. The gradient of `jnp.max` would divide by the number of values
    equal to the maximum, which is 0 where the compiler recomputes x with another rounding.

    >>> print(max_pool_2x2(jnp.arange(8.0).reshape(1, 2, 4, 1))[0, :, :, 0])
    [[5. 7.]]
    """
    (a, b), (c, d) = _windows_2x2(x)
    return larger(larger(a, b), larger(c, d))


def max_pool_2x2_positions(
    x: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b h/2 w/2 c"], UInt8[Array, "b h/2 w/2 c"]]:
    """Returns `max_pool_2x2` and the position of each maximum in its window, as SegNet stores it (arXiv 1511.00561).

    A position p is 2 · row + column within the window, uint8, without a gradient; the first of equal maxima counts.
    PyTorch's int64 index into the H × W plane is (2i + p // 2) · W + 2j + p % 2.

    >>> pooled, positions = max_pool_2x2_positions(jnp.array([[1.0, 2, 6, 3], [3, 5, 2, 1]])[None, :, :, None])
    >>> print(pooled[0, :, :, 0], positions[0, :, :, 0])
    [[5. 6.]] [[3 0]]
    """
    (a, b), (c, d) = _windows_2x2(x)
    top, bottom = larger(a, b), larger(c, d)
    upper, lower = jnp.uint8(~first_is_larger(a, b)), jnp.uint8(2) + jnp.uint8(~first_is_larger(c, d))
    return larger(top, bottom), jnp.where(first_is_larger(top, bottom), upper, lower)


def _windows_2x2(x: Array) -> list[tuple[Array, Array]]:
    """Returns the four pixels of each window as two rows of (left, right)."""
    _check_even(x, "max_pool_2x2")
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    return [(x[:, :, row, :, 0], x[:, :, row, :, 1]) for row in (0, 1)]


def _check_even(x: Array, layer: str) -> None:
    h, w = x.shape[1:3]
    if h % 2 or w % 2:
        raise ValueError(f"{layer} needs an even height and width; got {h}x{w}")


def max_pool_2x2_dense(x: Float[Array, "b h w c"], dilation: int) -> Float[Array, "b H W c"]:
    """Returns the maximum of the 2×2 pixels that lie `dilation` apart, at every pixel: `max_pool_2x2` at all offsets.

    At dilation 1, `[:, i::2, j::2]` equals `max_pool_2x2` of `x[:, i:, j:]`, in the gradient of ties too.

    >>> print(max_pool_2x2_dense(jnp.array([[3.0, 1, 2, 0], [0, 0, 0, 4]]).reshape(1, 2, 4, 1), 1)[0, :, :, 0])
    [[3. 2. 4.]]
    """
    x = larger(x[:, :, :-dilation], x[:, :, dilation:])
    return larger(x[:, :-dilation], x[:, dilation:])


def max_pool_3x3(x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
    """Returns the maximum of each 3×3 window, stride 2, padding 1: PyTorch's `MaxPool2d(3, 2, padding=1)`.

    H becomes ceil(H / 2). Equals `nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))` in value and gradient; on a CPU the
    gradient takes a third of the time.

    >>> print(max_pool_3x3(jnp.arange(8.0).reshape(1, 2, 4, 1))[0, :, :, 0])
    [[5. 7.]]
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    x = larger(larger(x[:, :, :-2:2], x[:, :, 1:-1:2]), x[:, :, 2::2])
    return larger(larger(x[:, :-2:2], x[:, 1:-1:2]), x[:, 2::2])


def first_is_larger(a: Array, b: Array) -> Array:
    """Returns where `larger` takes `a`: a ≥ b, or a is NaN."""
    return (a >= b) | jnp.isnan(a)


def larger(a: Array, b: Array) -> Array:
    """Returns the larger of the two, `a` if they are equal, NaN if either is NaN."""
    return jnp.where(first_is_larger(a, b), a, b)


def depthwise_conv(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k 1 c"],
    strides: tuple[int, int] = (1, 1),
    padding: str = "SAME",
    *,
    rhs_dilation: tuple[int, int] = (1, 1),
    **_: Any,
) -> Float[Array, "b H W c"]:
    """Returns the depthwise convolution of `x`, `feature_group_count` = C, with TensorFlow's zeros, "SAME".

    A field `conv_general_dilated` of `nn.Conv`. On CPUs it is computed as k² shifted products: XLA's form, used
    elsewhere, takes at least five times as long with its gradients (docs/speed.md).
    """
    k, (stride, _), (dilation, _) = kernel.shape[0], strides, rhs_dilation
    taps = (dilation * (k - 1) + 1,) * 2

    def shifted(x: Array, kernel: Array) -> Array:
        height, width = (-(-n // stride) for n in x.shape[1:3])
        x = jnp.pad(x, ((0, 0), *lax.padtype_to_pads(x.shape[1:3], taps, strides, padding), (0, 0)))
        offsets = [(i, j) for i in range(k) for j in range(k)]
        lines = [x[:, i * dilation :: stride, j * dilation :: stride][:, :height, :width] for i, j in offsets]
        return sum(line * kernel[None, None, i, j] for line, (i, j) in zip(lines, offsets, strict=True))

    def grouped(x: Array, kernel: Array) -> Array:
        fields = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": x.shape[-1]}
        return lax.conv_general_dilated(x, kernel, strides, padding, rhs_dilation=rhs_dilation, **fields)

    return lax.platform_dependent(x, kernel, cpu=shifted, default=grouped)
