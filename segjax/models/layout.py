"""How a U-Net's arrays lie in memory: neighbouring columns side by side in the channels, strips of rows in the batch.

A TPU keeps an array in tiles of 8 × 128, for a convolution examples × channels, and pads what does not fill them.
64 channels at the image's own size fill half of the 128 lanes, and two images a chip a quarter of the 8 sublanes;
before a convolution of so few images XLA cuts them into strips, and puts them together again after it, which is most of
what such a step then moves. Here both are done once, at the network's two ends: packed by k columns and cut into S
strips, `[B, H, W, C]` is `[SB, H/S, W/k, kC]`, k pixels of a row one after the other. The layers here take and give
such arrays, with the parameters and the numbers of their own forms. A convolution of packed columns multiplies k times
as much, most of it by zeros, and moves 1/k of the bytes; a strip's first and last row see the strips above and below.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from segjax.models.pooling import first_is_larger, larger, max_of_windows

# Of products with 0 and 1, which place weights: at its usual precision a TPU rounds these, and their gradients.
_EXACT = lax.Precision.HIGHEST


class Layout(NamedTuple):
    """How arrays of images lie in memory; a layout of ones changes nothing.

    Attributes:
        columns: k, neighbouring columns that lie side by side in the channels.
        strips: S, of as many rows each, into which every image is cut; they follow one another in the batch.

    >>> layout, x = Layout(columns=2, strips=2), jnp.arange(8.0).reshape(1, 2, 4, 1)
    >>> print(layout.lay(x)[:, 0])
    [[[0. 1.]
      [2. 3.]]
    <BLANKLINE>
     [[4. 5.]
      [6. 7.]]]
    >>> bool((layout.flat(layout.lay(x)) == x).all())
    True
    """

    columns: int = 1
    strips: int = 1

    def lay(self, x: Float[Array, "b h w c"]) -> Float[Array, "_ _ _ _"]:
        """`[B, H, W, C]` to `[SB, H/S, W/k, kC]`: the same numbers in the same order.

        Raises:
            ValueError: k does not divide W, or S not H.
        """
        b, h, w, c = x.shape
        if w % self.columns or h % self.strips:
            raise ValueError(
                f"{h}×{w} pixels cannot be laid out in {self.strips} strips and packed by {self.columns} columns; "
                "expected multiples of them"
            )
        return x.reshape(b * self.strips, h // self.strips, w // self.columns, self.columns * c)

    def flat(self, x: Float[Array, "b h w c"]) -> Float[Array, "_ _ _ _"]:
        """The inverse of `lay`."""
        b, h, w, c = x.shape
        return x.reshape(b // self.strips, h * self.strips, w * self.columns, c // self.columns)


def conv3x3_laid_out(
    x: Float[Array, "b h w lanes"], kernel: Float[Array, "3 3 c f"], layout: Layout, *, padding: str
) -> Float[Array, "b h w lanes_out"]:
    """`conv3x3_zeros` or `conv3x3_reflect` of laid out arrays: one convolution with a kernel of k × k blocks.

    It is padded by zeros, and what it lacks then is added to the lines at the edges. Reverse mode only.

    Args:
        x: `[SB, h, W/k, kC]`; with padding="reflect" h is at least 2, and W is at least 2.
        kernel: `[3, 3, C, F]`.
        layout: of `x`.
        padding: "zeros" | "reflect".

    Returns:
        `[SB, h, W/k, kF]`.

    >>> y = conv3x3_laid_out(jnp.ones((1, 2, 1, 4)), jnp.ones((3, 3, 2, 1)), Layout(columns=2), padding="zeros")
    >>> print(y.shape, y[0, 0, 0])
    (1, 2, 1, 2) [8. 8.]
    """
    columns, reflect = layout.columns, padding == "reflect"

    def convolve(x: Array, rows: slice, seen: np.ndarray, above: int, before: int) -> Array:
        taps = seen.astype(kernel.dtype)
        blocks = jnp.einsum("rtcf,tgab->rgacbf", kernel[rows], taps, precision=_EXACT)
        blocks = blocks.reshape(blocks.shape[0], taps.shape[1], -1, columns * kernel.shape[-1])
        around, numbers = ((above, above), (before, before)), ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, blocks, (1, 1), around, dimension_numbers=numbers)

    def of_rows(x: Array, before: Array, after: Array, rows: slice, above: int) -> Array:
        y = convolve(x, rows, _taps(columns), above, 1)
        if not reflect:
            return y
        first, last = _mirrored_taps(columns)
        y = y.at[:, :, :1].add(convolve(before, rows, first, above, 0))
        return y.at[:, :, -1:].add(convolve(after, rows, last, above, 0))

    def mirrored_columns(x: Array) -> tuple[Array, Array]:
        first, last = _at_the_edge(columns)
        return x[:, :, first], x[:, :, last]

    x, (above, below, before, after) = _with_lines(x, layout, reflect)
    y = of_rows(x, before, after, slice(None), 1)
    if reflect or layout.strips > 1:
        y = y.at[:, :1].add(of_rows(above, *mirrored_columns(above), slice(0, 1), 0))
        y = y.at[:, -1:].add(of_rows(below, *mirrored_columns(below), slice(2, 3), 0))
    return y


def _at_the_edge(columns: int) -> tuple[slice, slice]:
    """Where the columns lie that are mirrored: the second and the last but one, or the groups that hold them."""
    return (slice(1, 2), slice(-2, -1)) if columns == 1 else (slice(0, 1), slice(-1, None))


def _slice_lines(x: Array, layout: Layout, reflect: bool) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """`x`, the rows above and below each strip, and the two mirrored columns.

    Beyond the image rows are its second and its last but one, or zeros without `reflect`.
    """
    first, last = _at_the_edge(layout.columns)
    strips = x.reshape(-1, layout.strips, *x.shape[1:])
    beyond = (strips[:, :1, 1:2], strips[:, -1:, -2:-1]) if reflect else (jnp.zeros_like(strips[:, :1, :1]),) * 2
    above = jnp.concatenate([beyond[0], strips[:, :-1, -1:]], axis=1)
    below = jnp.concatenate([strips[:, 1:, :1], beyond[1]], axis=1)
    rows = (row.reshape(-1, 1, *x.shape[2:]) for row in (above, below))
    return x, (*rows, x[:, :, first], x[:, :, last])


def _add_lines(layout: Layout, reflect: bool, _: None, cotangents: Any) -> tuple[Array]:
    # In place. JAX's own gradient of the slices pads each to the full size before it adds them.
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
    """[t, g, a, b]: does column b of a group see column a of group g (the one before, it, the next) through tap t?

    From a to b it is k (g - 1) + a - b columns, and tap 1 is the middle one.
    """
    t, g, a, b = np.ogrid[:3, :3, :columns, :columns]
    return t - 1 == columns * (g - 1) + a - b


def _mirrored_taps(columns: int) -> tuple[np.ndarray, np.ndarray]:
    """At the edges the first column sees the second by tap 0 as well, and the last the one before it by tap 2."""
    t, _, a, b = np.ogrid[:3, :1, :columns, :columns]
    second, last_but_one = min(1, columns - 1), max(0, columns - 2)
    return (t == 0) & (a == second) & (b == 0), (t == 2) & (a == last_but_one) & (b == columns - 1)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool_2x2_packed(x: Float[Array, "b h w lanes"], columns: int) -> Float[Array, "b h//2 w lanes//2"]:
    """`max_pool_2x2` from columns packed by k, which is even, to half as many. Reverse mode only.

    The backward pass looks for the maxima again, in the input, which a U-Net keeps for its skip connection: nothing of
    half the lanes is kept or moved.

    Args:
        x: `[B, H, W/k, kC]`, H even.
        columns: k.

    Returns:
        `[B, H/2, W/k, kC/2]`.

    >>> print(max_pool_2x2_packed(jnp.arange(8.0).reshape(1, 2, 1, 4), 4)[0, 0])
    [[5. 7.]]
    """

    def row(i: int) -> tuple[Array, Array]:
        left, right = (_chosen(_pairs_of_rows(x)[:, :, i], columns, range(side, columns, 2)) for side in (0, 1))
        return left, right

    return max_of_windows([row(0), row(1)])


def _pairs_of_rows(x: Array) -> Array:
    b, h, w, lanes = x.shape
    return x.reshape(b, h // 2, 2, w, lanes)


def _chosen(x: Array, columns: int, order: Iterable[int]) -> Array:
    """These of the columns that lie side by side, in this order."""
    channels = x.shape[-1] // columns
    return jnp.concatenate([x[..., i * channels : (i + 1) * channels] for i in order], axis=-1)


def _max_pool_backward(columns: int, x: Array, gradient: Array) -> tuple[Array]:
    """To the largest of each window, of equal ones to the first, as `max_of_windows` has it.

    Found by comparing the four, and not with what was pooled: where the compiler computes `x` again, with other
    roundings, none may be equal to that.
    """
    rows, given = _pairs_of_rows(x), _chosen(gradient, columns // 2, [i // 2 for i in range(columns)])
    beside = _chosen(rows, columns, [i ^ 1 for i in range(columns)])
    left = np.repeat(np.arange(columns) % 2 == 0, x.shape[-1] // columns)
    of_its_row = jnp.where(left, first_is_larger(rows, beside), ~first_is_larger(beside, rows))
    largest = larger(jnp.where(left, rows, beside), jnp.where(left, beside, rows))
    above = first_is_larger(largest[:, :, :1], largest[:, :, 1:])
    of_its_window = jnp.concatenate([above, ~above], axis=2)
    return (jnp.where(of_its_row & of_its_window, given[:, :, None], 0).reshape(x.shape),)


max_pool_2x2_packed.defvjp(lambda x, columns: (max_pool_2x2_packed(x, columns), x), _max_pool_backward)


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
