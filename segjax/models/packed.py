"""Neighbouring columns side by side in the channels: the first levels of a U-Net as chips with wide lanes like them.

A TPU keeps the channels of a pixel in 128 lanes and pads them: 64 channels at the image's own size fill half of what is
moved and kept, 32 a quarter. Packed by k, `[B, H, W, C]` is `[B, H, W/k, kC]`, k pixels of a row one after the other,
and nothing is padded. The layers here take and give packed arrays, with the parameters and the numbers of their own
forms. A convolution then multiplies k times as much, most of it by zeros, and moves 1/k of the bytes.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from segjax.models.convolution import inner_lines
from segjax.models.pooling import max_of_windows

# Of products with 0 and 1, which place weights: at its usual precision a TPU rounds these, and their gradients.
_EXACT = lax.Precision.HIGHEST


def pack(x: Float[Array, "b h w c"], columns: int) -> Float[Array, "b h w//{columns} {columns}*c"]:
    """`[B, H, W, C]` to `[B, H, W/k, kC]`, k = `columns`: the same numbers in the same order.

    Raises:
        ValueError: k does not divide W.

    >>> print(pack(jnp.arange(8.0).reshape(1, 1, 4, 2), 2)[0, 0])
    [[0. 1. 2. 3.]
     [4. 5. 6. 7.]]
    """
    b, h, w, c = x.shape
    if w % columns:
        raise ValueError(f"a width of {w} cannot be packed by {columns} columns; expected a multiple of {columns}")
    return x.reshape(b, h, w // columns, columns * c)


def unpack(x: Float[Array, "b h w c"], columns: int) -> Float[Array, "b h {columns}*w c//{columns}"]:
    """The inverse of `pack`: `[B, H, W/k, kC]` to `[B, H, W, C]`.

    >>> print(unpack(jnp.arange(4.0).reshape(1, 1, 1, 4), 2)[0, 0])
    [[0. 1.]
     [2. 3.]]
    """
    b, h, w, c = x.shape
    return x.reshape(b, h, w * columns, c // columns)


def conv3x3_packed(
    x: Float[Array, "b h w lanes"], kernel: Float[Array, "3 3 c f"], columns: int, *, padding: str, parts: int = 1
) -> Float[Array, "b h w {columns}*f"]:
    """`conv3x3_zeros` or `conv3x3_reflect` from packed to packed: one convolution with a kernel of k × k blocks.

    Reverse mode only with padding="reflect", as `conv3x3_reflect`.

    Args:
        x: `[B, H, W/k, kC]`; with padding="reflect" H is at least 2.
        kernel: `[3, 3, C, F]`.
        columns: k, at least 2.
        padding: "zeros" | "reflect".
        parts: of how many packed arrays of C / parts channels each the channels of `x` are the concatenation.

    Returns:
        `[B, H, W/k, kF]`.

    >>> y = conv3x3_packed(jnp.ones((1, 2, 1, 4)), jnp.ones((3, 3, 2, 1)), 2, padding="zeros")
    >>> print(y.shape, y[0, 0, 0])
    (1, 2, 1, 2) [8. 8.]
    """
    features = kernel.shape[-1]
    by_part = kernel.reshape(3, 3, parts, -1, features)

    def convolve(x: Array, rows: slice, seen: np.ndarray, above: int, before: int) -> Array:
        taps = seen.astype(kernel.dtype)
        blocks = jnp.einsum("rtpcf,tgab->rgpacbf", by_part[rows], taps, precision=_EXACT)
        blocks = blocks.reshape(blocks.shape[0], taps.shape[1], -1, columns * features)
        around, numbers = ((above, above), (before, before)), ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, blocks, (1, 1), around, dimension_numbers=numbers)

    if padding == "zeros":
        return convolve(x, slice(None), _taps(columns), 1, 1)

    def mirrored_in_rows(x: Array, before: Array, after: Array, rows: slice, above: int) -> Array:
        first, last = _mirrored_taps(columns)
        y = convolve(x, rows, _taps(columns), above, 1)
        y = y.at[:, :, :1].add(convolve(before, rows, first, above, 0))
        return y.at[:, :, -1:].add(convolve(after, rows, last, above, 0))

    # As in `conv3x3_reflect`; but the column that is mirrored lies in the group at the edge.
    x, (above, below, before, after) = inner_lines(x, 0)
    y = mirrored_in_rows(x, before, after, slice(None), 1)
    for place, line, rows in ((slice(0, 1), above, slice(0, 1)), (slice(-1, None), below, slice(2, 3))):
        y = y.at[:, place].add(mirrored_in_rows(line, line[:, :, :1], line[:, :, -1:], rows, 0))
    return y


def _taps(columns: int) -> np.ndarray:
    """[t, g, a, b]: does column b of a group see column a of group g (the one before, it, the next) through tap t?

    From a to b it is k (g - 1) + a - b columns, and tap 1 is the middle one.
    """
    t, g, a, b = np.ogrid[:3, :3, :columns, :columns]
    return t - 1 == columns * (g - 1) + a - b


def _mirrored_taps(columns: int) -> tuple[np.ndarray, np.ndarray]:
    """At the edges the first column sees the second by tap 0 as well, and the last the one before it by tap 2."""
    t, _, a, b = np.ogrid[:3, :1, :columns, :columns]
    return (t == 0) & (a == 1) & (b == 0), (t == 2) & (a == columns - 2) & (b == columns - 1)


def max_pool_2x2_packed(x: Float[Array, "b h w lanes"], columns: int) -> Float[Array, "b h//2 w lanes//2"]:
    """`max_pool_2x2` from columns packed by k, which is even, to half as many.

    Args:
        x: `[B, H, W/k, kC]`, H even.
        columns: k.

    Returns:
        `[B, H/2, W/k, kC/2]`.

    >>> print(max_pool_2x2_packed(jnp.arange(8.0).reshape(1, 2, 1, 4), 4)[0, 0])
    [[5. 7.]]
    """
    b, h, w, lanes = x.shape
    rows = x.reshape(b, h // 2, 2, w, lanes)
    channels = lanes // columns

    def columns_from(row: Array, first: int) -> Array:
        every_second = (row[..., i * channels : (i + 1) * channels] for i in range(first, columns, 2))
        return jnp.concatenate(list(every_second), axis=-1)

    return max_of_windows([(columns_from(rows[:, :, i], 0), columns_from(rows[:, :, i], 1)) for i in (0, 1)])


def conv_transpose_2x2_packed(
    x: Float[Array, "b h w lanes"], kernel: Float[Array, "2 2 c f"], columns: int
) -> Float[Array, "b 2*h w 2*{columns}*f"]:
    """A transposed convolution of 2×2 and stride 2, without bias, from columns packed by k to twice as many.

    Args:
        x: `[B, H, W/k, kC]`; k = 1: not packed.
        kernel: `[2, 2, C, F]`, as `nn.ConvTranspose` has it.
        columns: k.

    Returns:
        `[B, 2H, W/k, 2kF]`.

    >>> print(conv_transpose_2x2_packed(jnp.ones((1, 1, 1, 1)), jnp.arange(4.0).reshape(2, 2, 1, 1), 1)[0, :, 0])
    [[3. 2.]
     [1. 0.]]
    """
    b, h, w, lanes = x.shape
    of_row = 2 * columns * kernel.shape[-1]
    own = np.eye(columns, dtype=kernel.dtype)  # each column makes its own two
    product = jnp.einsum("ijcf,ab->acibjf", kernel[::-1, ::-1], own, precision=_EXACT).reshape(lanes, 2 * of_row)
    return (x @ product).reshape(b, h, w, 2, of_row).swapaxes(2, 3).reshape(b, 2 * h, w, of_row)
