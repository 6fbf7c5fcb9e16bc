"""U-Net with its arrays laid out for a TPU: neighbouring columns side by side in the channels, strips in the batch.

A TPU stores arrays in tiles of 8 × 128 (for a convolution: examples × channels). 64 channels fill half of the lanes,
and two images per chip a quarter of the sublanes, so XLA cuts few images into strips before each convolution and joins
them after it. Here this happens once, at the two ends of the network: with k packed columns and S strips,
`[B, H, W, C]` becomes `[SB, H/S, W/k, kC]`. A packed convolution multiplies k times as much and moves 1/k of the bytes.
"""

import functools
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax
from jaxtyping import Array, Float

from segjax import checks, collectives
from segjax.models.layers import Block, Layer, Norm, fan_in_normal, first_is_larger, larger, max_pool_2x2
from segjax.models.network import ForwardContext
from segjax.models.unet import UNet
from segjax.models.upsampling import Upsampling2x2

# For products with 0 and 1 that place weights: at its default precision a TPU rounds these and their gradients.
_EXACT = lax.Precision.HIGHEST


class Layout(NamedTuple):
    """Layout of images in memory: k `columns` side by side in the channels, S `strips` of rows in the batch.

    >>> print(Layout(columns=2, strips=2).lay(jnp.arange(8.0).reshape(1, 2, 4, 1))[0, 0])
    [[0. 1.]
     [2. 3.]]
    """

    columns: int = 1
    strips: int = 1

    def lay(self, x: Float[Array, "b h w c"]) -> Float[Array, "_ _ _ _"]:
        """Reshapes `[B, H, W, C]` to `[SB, H/S, W/k, kC]`; raises ValueError if k does not divide W, or S not H."""
        b, h, w, c = x.shape
        if w % self.columns or h % self.strips:
            layout = f"{self.strips} strips and packed by {self.columns} columns"
            raise ValueError(f"{h}×{w} pixels cannot be laid out in {layout}")
        return x.reshape(b * self.strips, h // self.strips, w // self.columns, self.columns * c)

    def flat(self, x: Float[Array, "b h w c"]) -> Float[Array, "_ _ _ _"]:
        """Inverts `lay`."""
        b, h, w, c = x.shape
        return x.reshape(b // self.strips, h * self.strips, w * self.columns, c // self.columns)


class PackedUNet(UNet):
    """`UNet` with packed columns and strips: same parameters, statistics, logits and gradients. Not for CPUs.

    Attributes: those of `UNet`, and
        pack: columns of the first level, a power of two up to 2^depth; half as many on each level below. On a TPU
            128 / width moves the fewest bytes.
        strips: strips per image, if its padded height is a multiple of strips · 2^depth and at least twice that. With
            few images per chip, 16 / images moves a third of the bytes on a TPU.
    """

    pack: int = 1
    strips: int = 1

    def check(self) -> None:
        """Raises a ValueError if a field of the U-Net, `pack` or `strips` is out of range."""
        super().check()
        checks.scalar("strips", self.strips, jnp.int32, 1.0)
        if self.pack not in [2**level for level in range(self.depth + 1)]:
            raise ValueError(f"pack must be a power of two, at most 2^depth = {2**self.depth}; got {self.pack}")

    def body(self, x: Float[Array, "b h w channels"], ctx: ForwardContext) -> tuple[Float[Array, "b h w f"], int]:
        """Maps `[B, H, W, channels]`, H and W multiples of `multiple`, to `[B, H, W, width]`."""
        # One strip if the height is symbolic or does not leave two rows per strip at the lowest level.
        height, lowest = x.shape[1], self.strips * 2**self.depth
        strips = self.strips if isinstance(height, int) and height % lowest == 0 and height >= 2 * lowest else 1
        layouts = [Layout(max(1, self.pack >> level), strips) for level in range(self.depth + 1)]

        def conv_block(x: Array | list[Array], side: str, level: int) -> Array:
            fields = {"padding": self.padding, "layout": layouts[level], "name": f"{side}{level}"}
            x = self.block(PackedConvBlock, self._channels(level), **fields)(x, ctx.train)
            # Dropout masks are drawn for the pixels of the image, independent of the layout.
            return layouts[level].lay(self._deep_dropout(layouts[level].flat(x), side, level, ctx))

        def downsample(x: Array, level: int) -> Array:
            if self.downsample == "max":
                columns = layouts[level].columns
                return max_pool_2x2_packed(x, columns) if columns > 1 else max_pool_2x2(x)
            return layouts[level + 1].lay(self._downsample(layouts[level].flat(x), level, ctx))

        def upsample(x: Array, level: int, skip: Array) -> Array:
            if self.upsample == "transpose" and layouts[level].columns > 1:
                fields = {"columns": layouts[level + 1].columns, "name": f"up{level}_transpose", **self.dtypes}
                return PackedConvTranspose2x2(self._channels(level), **fields)(x)
            return layouts[level].lay(self._upsample(layouts[level + 1].flat(x), level, layouts[level].flat(skip)))

        x, skips = layouts[0].lay(x), []
        for level in range(self.depth):
            skips.append(conv_block(x, "down", level))
            x = downsample(skips[level], level)
        x = conv_block(x, "down", self.depth)
        coarse = self._project(layouts[self.depth].flat(x), self.depth)
        for level in reversed(range(self.depth)):
            # As a list, because the concatenation and its gradient would be written to memory.
            x = conv_block([skips[level], upsample(x, level, skips[level])], "up", level)
            coarse += self._project(layouts[level].flat(x), level)
        return layouts[0].flat(x) + coarse, 1


class PackedConvBlock(Block):
    """`ConvBlock` of arrays with a layout."""

    features: int
    padding: str = "reflect"
    layout: Layout = Layout()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"] | Sequence[Float[Array, "b h w _"]], train: bool
    ) -> Float[Array, "b h w f"]:
        """Maps an array, or several that stand for their concatenation, to `features` channels."""
        for i in (1, 2):
            x = PackedConv3x3(self.features, self.padding, self.layout, name=f"conv{i}", **self.conv_fields)(x)
            norm = PackedNorm(self.norm, self.axis_name, layout=self.layout, name=f"norm{i}", **self.dtypes)
            x = nn.relu(norm(x, train))
        return x


class PackedConv3x3(Layer):
    """`Conv3x3` of arrays with a layout."""

    features: int
    padding: str = "reflect"
    layout: Layout = Layout()
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"] | Sequence[Float[Array, "b h w _"]]) -> Float[Array, "b h w f"]:
        """Maps an array, or several that stand for their concatenation, to the sum of their convolutions."""
        parts = list(x) if isinstance(x, Sequence) else [x]
        sizes = [part.shape[-1] // self.layout.columns for part in parts]
        kernel = self.param("kernel", fan_in_normal(2.0), (3, 3, sum(sizes), self.features), self.param_dtype)
        *parts, kernel = promote_dtype(*parts, kernel, dtype=self.dtype)
        kernels = jnp.split(kernel, np.cumsum(sizes)[:-1], axis=2)
        convolve = partial(conv3x3_laid_out, layout=self.layout, padding=self.padding)
        y = functools.reduce(jnp.add, map(convolve, parts, kernels))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
            y += _per_column(bias.astype(y.dtype), self.layout.columns)
        return y


class PackedNorm(Norm):
    """`Norm` of arrays with a layout."""

    layout: Layout = Layout()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """Normalizes `x` as `Norm` normalizes the image."""
        if self.kind == "batch":
            return BatchNorm(self.axis_name, self.layout, name="batch", **self.dtypes)(x, train)
        return self.layout.lay(super().__call__(self.layout.flat(x), train))


class BatchNorm(Layer):
    """`nn.BatchNorm(momentum=0.9, epsilon=1e-5, use_fast_variance=False)` of arrays with a layout."""

    axis_name: str | None = None
    layout: Layout = Layout()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """Normalizes `[SB, H/S, W/k, kC]` by batch statistics if `train`, and by the running statistics if not."""
        columns = self.layout.columns
        channels = (x.shape[-1] // columns,)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, channels, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, channels, self.param_dtype)
        x, wide = x.astype(jnp.promote_types(x.dtype, jnp.float32)), partial(_per_column, columns=columns)
        axis_name = None if self.is_initializing() else self.axis_name

        def mean_of(x: Array) -> Array:
            return collectives.pmean(x.mean((0, 1, 2)).reshape(columns, -1).mean(0), axis_name)

        mean, var = running_mean.value, running_var.value
        if train:
            mean = mean_of(x)
            var = mean_of(lax.square(x - wide(mean)))
            if not self.is_initializing():
                running_mean.value = 0.9 * running_mean.value + 0.1 * mean
                running_var.value = 0.9 * running_var.value + 0.1 * var
        return ((x - wide(mean)) * wide(lax.rsqrt(var + 1e-5) * scale) + wide(bias)).astype(self.dtype)


def _per_column(per_channel: Array, columns: int) -> Array:
    """Repeats `[C]` for each column side by side: `[1, 1, 1, kC]`."""
    return jnp.tile(per_channel, columns)[None, None, None]


class PackedConvTranspose2x2(Upsampling2x2):
    """`ConvTranspose2x2` from k columns side by side to 2k."""

    columns: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h w f"]:
        """Maps `[B, H, W/k, kC]` to `[B, 2H, W/k, 2k · features]`."""
        b, h, w, lanes = x.shape
        c = lanes // self.columns
        x, kernel, bias = self.parameters(x, fan_in_normal(1.0, c), 2, 2, c, self.features)
        row = 2 * self.columns * self.features
        own = np.eye(self.columns, dtype=kernel.dtype)  # each column yields its own two
        product = jnp.einsum("ijcf,ab->acibjf", kernel[::-1, ::-1], own, precision=_EXACT).reshape(lanes, 2 * row)
        y = (x @ product).reshape(b, h, w, 2, row).swapaxes(2, 3).reshape(b, 2 * h, w, row)
        return y + _per_column(bias, 2 * self.columns)


def conv3x3_laid_out(
    x: Float[Array, "b h w lanes"], kernel: Float[Array, "3 3 c f"], layout: Layout, *, padding: str
) -> Float[Array, "b h w lanes_out"]:
    """Returns the padded 3×3 convolution of arrays with a layout: one convolution with a kernel of k × k blocks.

    Neighbouring strips and reflected lines are added to the lines at the edges, as in `conv3x3_reflect`. With
    padding="reflect" x has at least two rows and columns. Reverse mode only.
    """
    columns, reflect = layout.columns, padding == "reflect"

    def convolve(x: Array, rows: slice, seen: np.ndarray, above: int, before: int) -> Array:
        taps = seen.astype(kernel.dtype)
        blocks = jnp.einsum("rtcf,tgab->rgacbf", kernel[rows], taps, precision=_EXACT)
        blocks = blocks.reshape(blocks.shape[0], taps.shape[1], -1, columns * kernel.shape[-1])
        around, numbers = ((above, above), (before, before)), ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, blocks, (1, 1), around, dimension_numbers=numbers)

    def convolve_rows(x: Array, before: Array, after: Array, rows: slice, above: int) -> Array:
        y = convolve(x, rows, _taps(columns), above, 1)
        if not reflect:
            return y
        first, last = _mirrored_taps(columns)
        y = y.at[:, :, :1].add(convolve(before, rows, first, above, 0))
        return y.at[:, :, -1:].add(convolve(after, rows, last, above, 0))

    x, (above, below, before, after) = _with_lines(x, layout, reflect)
    y = convolve_rows(x, before, after, slice(None), 1)
    if reflect or layout.strips > 1:
        first, last = _at_the_edge(columns)
        y = y.at[:, :1].add(convolve_rows(above, above[:, :, first], above[:, :, last], slice(0, 1), 0))
        y = y.at[:, -1:].add(convolve_rows(below, below[:, :, first], below[:, :, last], slice(2, 3), 0))
    return y


def _at_the_edge(columns: int) -> tuple[slice, slice]:
    """Returns the columns that are reflected, the second and the last but one, or the groups that hold them."""
    return (slice(1, 2), slice(-2, -1)) if columns == 1 else (slice(0, 1), slice(-1, None))


def _slice_lines(x: Array, layout: Layout, reflect: bool) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """Returns `x`, the rows above and below each strip, and the two columns at the edges."""
    first, last = _at_the_edge(layout.columns)
    strips = x.reshape(-1, layout.strips, *x.shape[1:])
    beyond = (strips[:, :1, 1:2], strips[:, -1:, -2:-1]) if reflect else (jnp.zeros_like(strips[:, :1, :1]),) * 2
    above = jnp.concatenate([beyond[0], strips[:, :-1, -1:]], axis=1)
    below = jnp.concatenate([strips[:, 1:, :1], beyond[1]], axis=1)
    rows = (row.reshape(-1, 1, *x.shape[2:]) for row in (above, below))
    return x, (*rows, x[:, :, first], x[:, :, last])


def _add_lines(layout: Layout, reflect: bool, _: None, cotangents: Any) -> tuple[Array]:
    whole, (*rows, before, after) = cotangents
    first, last = _at_the_edge(layout.columns)
    strips = whole.reshape(-1, layout.strips, *whole.shape[1:])
    above, below = (row.reshape(-1, layout.strips, 1, *whole.shape[2:]) for row in rows)
    if layout.strips > 1:
        strips = strips.at[:, :-1, -1:].add(above[:, 1:]).at[:, 1:, :1].add(below[:, :-1])
    if not reflect:
        return (strips.reshape(whole.shape),)
    strips = strips.at[:, :1, 1:2].add(above[:, :1]).at[:, -1:, -2:-1].add(below[:, -1:])
    whole = strips.reshape(whole.shape)
    return (whole.at[:, :, first].add(before).at[:, :, last].add(after),)


_with_lines = jax.custom_vjp(_slice_lines, nondiff_argnums=(1, 2))
_with_lines.defvjp(lambda x, layout, reflect: (_slice_lines(x, layout, reflect), None), _add_lines)


def _taps(columns: int) -> np.ndarray:
    """Returns `[t, g, a, b]`: column b of a group sees column a of group g (previous, same, next) through tap t."""
    t, g, a, b = np.ogrid[:3, :3, :columns, :columns]
    return t - 1 == columns * (g - 1) + a - b


def _mirrored_taps(columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the extra taps at the edges: tap 0 of the first column and tap 2 of the last."""
    t, _, a, b = np.ogrid[:3, :1, :columns, :columns]
    second, last_but_one = min(1, columns - 1), max(0, columns - 2)
    return (t == 0) & (a == second) & (b == 0), (t == 2) & (a == last_but_one) & (b == columns - 1)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool_2x2_packed(x: Float[Array, "b h w lanes"], columns: int) -> Float[Array, "b h//2 w lanes//2"]:
    """Returns `max_pool_2x2` of columns packed by an even k, packed by k / 2. Reverse mode only.

    The backward pass recomputes the positions of the maxima from the input, which a U-Net keeps for its skips.
    """
    rows, left, right = _pairs_of_rows(x), range(0, columns, 2), range(1, columns, 2)
    a, b, c, d = (_select_columns(rows[:, :, i], columns, side) for i in (0, 1) for side in (left, right))
    return larger(larger(a, b), larger(c, d))


def _pairs_of_rows(x: Array) -> Array:
    b, h, w, lanes = x.shape
    return x.reshape(b, h // 2, 2, w, lanes)


def _select_columns(x: Array, columns: int, order: Iterable[int]) -> Array:
    """Returns the given columns of those side by side, in this order."""
    channels = x.shape[-1] // columns
    return jnp.concatenate([x[..., i * channels : (i + 1) * channels] for i in order], axis=-1)


def _max_pool_backward(columns: int, x: Array, gradient: Array) -> tuple[Array]:
    # The four values are compared with each other, and not with the pooled one: where the compiler recomputes `x` with
    # another rounding, none may equal that.
    rows, given = _pairs_of_rows(x), _select_columns(gradient, columns // 2, [i // 2 for i in range(columns)])
    beside = _select_columns(rows, columns, [i ^ 1 for i in range(columns)])
    left = np.repeat(np.arange(columns) % 2 == 0, x.shape[-1] // columns)[None, None, None, None]
    in_row = jnp.where(left, first_is_larger(rows, beside), ~first_is_larger(beside, rows))
    largest = larger(jnp.where(left, rows, beside), jnp.where(left, beside, rows))
    above = first_is_larger(largest[:, :, :1], largest[:, :, 1:])
    in_window = jnp.concatenate([above, ~above], axis=2)
    return (jnp.where(in_row & in_window, given[:, :, None], jnp.zeros((), x.dtype)).reshape(x.shape),)


max_pool_2x2_packed.defvjp(lambda x, columns: (max_pool_2x2_packed(x, columns), x), _max_pool_backward)
