"""Upsampling layers, fixed and learned: by 2, and FCN's transposed convolution by any even stride."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax
from jaxtyping import Array, Float, UInt8

from segjax.models.layers import Layer, fan_in_normal, upsample_bilinear


def upsample_nearest_2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Repeats each pixel as a 2×2 block.

    >>> print(upsample_nearest_2x2(jnp.array([1.0, 2.0]).reshape(1, 1, 2, 1))[0, 0, :, 0])
    [1. 1. 2. 2.]
    """
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def bed_of_nails_2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Puts each pixel at the top left of a 2×2 block of zeros: the transpose of taking every second pixel.

    >>> print(bed_of_nails_2x2(jnp.array([1.0, 2.0]).reshape(1, 1, 2, 1))[0, :, :, 0])
    [[1. 0. 2. 0.]
     [0. 0. 0. 0.]]
    """
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 1, 1), (0, 1, 1), (0, 0, 0)))


def max_unpool_2x2(x: Float[Array, "b h w c"], positions: UInt8[Array, "..."]) -> Float[Array, "b 2*h 2*w c"]:
    """Puts each value at its position from `max_pool_2x2_positions`, zeros elsewhere: PyTorch's `max_unpool2d(…, 2)`.

    Used by SegNet (Badrinarayanan et al., arXiv 1511.00561). Positions of another shape than x are a ValueError.

    >>> positions = jnp.array([[3, 0]], jnp.uint8)[None, :, :, None]
    >>> print(max_unpool_2x2(jnp.array([[1.0, 2]])[None, :, :, None], positions)[0, :, :, 0])
    [[0. 0. 2. 0.]
     [0. 1. 0. 0.]]
    """
    if positions.shape != x.shape:
        raise ValueError(f"positions must have the shape of the pooled values, {x.shape}; got {positions.shape}")
    b, h, w, c = x.shape
    window = jnp.arange(4, dtype=positions.dtype).reshape(1, 1, 2, 1, 2, 1)
    blocks = jnp.where(positions[:, :, None, :, None] == window, x[:, :, None, :, None], jnp.zeros((), x.dtype))
    return blocks.reshape(b, 2 * h, 2 * w, c)


def depth_to_space_2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c//4"]:
    """Rearranges four groups of F channels into a 2×2 block: top left, top right, bottom left, bottom right.

    A ValueError unless 4 divides the channels. Shi et al., arXiv 1609.05158, group the channels of one output instead.

    >>> print(depth_to_space_2x2(jnp.arange(8.0).reshape(1, 1, 2, 4))[0, :, :, 0])
    [[0. 1. 4. 5.]
     [2. 3. 6. 7.]]
    """
    b, h, w, c = x.shape
    if c % 4:
        raise ValueError(f"depth_to_space_2x2 needs a multiple of 4 channels; got {c}")
    return x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)


class FixedUpsampling2x2(Layer):
    """A 1×1 convolution with bias to `features` channels, then `upsample`: in this order at a quarter of the cost."""

    features: int
    upsample: Callable[..., Array]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *positions: UInt8[Array, "b h w f"]) -> Float[Array, "b 2*h 2*w f"]:
        """Maps `[B, H, W, C]` to `[B, 2H, 2W, features]`."""
        x = nn.Dense(self.features, kernel_init=fan_in_normal(1.0), name="reduce", **self.dtypes)(x)
        return self.upsample(x, *positions)


class Upsampling2x2(Layer):
    """Base class of the learned upsamplings by 2 to `features` channels, with a kernel and a bias."""

    features: int

    def parameters(self, x: Array, init: nn.initializers.Initializer, *shape: int) -> tuple[Array, Array, Array]:
        """Returns x, the kernel of this shape and the bias of its last axis, in the dtype of the computation."""
        kernel = self.param("kernel", init, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:], self.param_dtype)
        return tuple(promote_dtype(x, kernel, bias, dtype=self.dtype))


class ConvTranspose2x2(Upsampling2x2):
    """A 2×2 transposed convolution with stride 2: `nn.ConvTranspose(features, (2, 2), (2, 2))`, same parameters.

    Each input pixel yields its own 2×2 block, by one 1×1 product and depth to space. The initial variance is 1/C.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w f"]:
        """Maps `[B, H, W, C]` to `[B, 2H, 2W, features]`."""
        c = x.shape[-1]
        x, kernel, bias = self.parameters(x, fan_in_normal(1.0, c), 2, 2, c, self.features)
        # Linen correlates with the dilated input, so a pixel's block is the kernel rotated by 180 degrees.
        product = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(c, 4 * self.features)
        return depth_to_space_2x2(x @ product) + bias[None, None, None]


class ConvTransposeOverlapping(Upsampling2x2):
    """Transposed convolution with stride 2 and a k×k kernel, k = `size` = 3 or 4, whose windows overlap.

    PyTorch's `ConvTranspose2d(C, F, k, 2, padding=1, output_padding=4 - k)`. With k = 3 the pixels of a 2×2 block
    receive one, two, two and four input pixels, so constant inputs give a checkerboard. With k = 4 every pixel receives
    four (Odena et al., Distill 2016). The initial kernel has variance 4 / (k² C).
    """

    size: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w f"]:
        """Maps `[B, H, W, C]` to `[B, 2H, 2W, features]` by one 3×3 convolution to 4F channels, then depth to space."""
        k, c, f = self.size, x.shape[-1], self.features
        if k not in (3, 4):
            raise ValueError(f"size of ConvTransposeOverlapping must be 3 or 4; got {k}")
        x, kernel, bias = self.parameters(x, fan_in_normal(4.0, k * k * c), k, k, c, f)
        # y[2i + r] = Σ x[i + d] k[r + 1 - 2d]: rows d = -1, 0, 1, columns r = 0, 1; tap 4 is beyond the kernel, zero.
        tap = np.array([[3, 4], [1, 2], [4, 0]])
        padded = jnp.pad(kernel, ((0, 5 - k), (0, 5 - k), (0, 0), (0, 0)))
        spread = padded[tap[:, None, :, None], tap[None, :, None, :]]
        spread = spread.transpose(0, 1, 4, 2, 3, 5).reshape(3, 3, c, 4 * f)
        y = lax.conv_general_dilated(x, spread, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return depth_to_space_2x2(y) + bias[None, None, None]


class PixelShuffle2x2(Upsampling2x2):
    """Upsampling by 2: a 1×1 convolution with bias to 4·features channels, ReLU, depth to space (arXiv 1609.05158).

    The initial kernel is He-normal with ICNR (Aitken et al., arXiv 1707.02937): the four groups of channels start
    equal, so the layer starts as a nearest-neighbour upsampling, without a checkerboard.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w f"]:
        """Maps `[B, H, W, C]` to `[B, 2H, 2W, features]`; the kernel is `[C, 4F]`, the F channels of top left first."""
        c = x.shape[-1]

        def icnr(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
            return jnp.tile(fan_in_normal(2.0, c)(key, (c, shape[1] // 4), dtype), 4)

        x, kernel, bias = self.parameters(x, icnr, c, 4 * self.features)
        return depth_to_space_2x2(nn.relu(x @ kernel + bias[None, None, None]))


class ConvTransposeBilinear(Layer):
    r"""Transposed convolution by `stride` with one learned kernel per channel, initially bilinear interpolation.

    .. math:: y_{s i + t - s/2} \, {+}{=} \, x_i \, k_t, \quad 0 \le t < 2 s, \qquad
        k_t = 1 - \left| t + \tfrac12 - s \right| / s \text{ initially}

    in rows and columns, for an even stride s. Away from the edges it is the layer of FCN (arXiv 1411.4038), PyTorch's
    `ConvTranspose2d(C, C, 2 * s, s, padding=s // 2, groups=C, bias=False)`. Beyond the edges x is continued by its edge
    pixels and not by zeros: a new layer equals `upsample_bilinear` everywhere.

    Each of the (H+1)·(W+1) blocks of s×s outputs between four pixels is the sum of the four, each times a quarter of
    the kernel. XLA's convolution takes a thousand times as long on a CPU.

    >>> x = jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1)
    >>> print(ConvTransposeBilinear(2).init_with_output(jax.random.key(0), x)[0][0, 0, :, 0])
    [0. 1. 3. 4.]
    """

    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
        """Maps `[B, H, W, C]` to `[B, s·H, s·W, C]`; the kernel is `[2s, 2s, 1, C]`, as in a depthwise convolution."""
        s = self.stride
        if s < 2 or s % 2:
            raise ValueError(f"stride of ConvTransposeBilinear must be even and at least 2; got {s}")
        b, h, w, c = x.shape
        line = 1 - np.abs(np.arange(2 * s) + 0.5 - s) / s

        def bilinear(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jnp.broadcast_to(jnp.asarray(line[:, None] * line, dtype)[:, :, None, None], shape)

        kernel = self.param("kernel", bilinear, (2 * s, 2 * s, 1, c), self.param_dtype)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        around = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        # A block receives the lower half of the kernel of a pixel above it, and the upper half of one below it.
        four = [around[:, 1 - low : h + 2 - low, 1 - right : w + 2 - right] for low in (0, 1) for right in (0, 1)]
        quarters = kernel.reshape(2, s, 2, s, c).transpose(4, 0, 2, 1, 3).reshape(c, 4, s * s)
        y = jnp.einsum("bijcq,cqp->bijcp", jnp.stack(four, axis=-1), quarters).reshape(b, h + 1, w + 1, c, s, s)
        y = y.transpose(0, 1, 4, 2, 5, 3).reshape(b, (h + 1) * s, (w + 1) * s, c)
        return y[:, s // 2 : -(s // 2), s // 2 : -(s // 2)]


# Called as layer(features, name=…, dtype=…, param_dtype=…)(x), and "max_unpool" with (x, positions).
UPSAMPLINGS = {
    "nearest": partial(FixedUpsampling2x2, upsample=upsample_nearest_2x2),
    "bed_of_nails": partial(FixedUpsampling2x2, upsample=bed_of_nails_2x2),
    "max_unpool": partial(FixedUpsampling2x2, upsample=max_unpool_2x2),
    "bilinear": partial(FixedUpsampling2x2, upsample=partial(upsample_bilinear, scale=2)),
    "transpose": ConvTranspose2x2,
    "transpose3": partial(ConvTransposeOverlapping, size=3),
    "transpose4": partial(ConvTransposeOverlapping, size=4),
    "pixel_shuffle": PixelShuffle2x2,
}
