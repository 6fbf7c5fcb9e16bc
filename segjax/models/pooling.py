"""Max pooling: 2×2, with its positions, at every place, and 3×3; XLA's in value and gradient, and faster on a CPU."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def max_pool_2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c"]:
    """The largest of each 2×2 window, stride 2: `nn.max_pool(x, (2, 2), (2, 2))` in value and gradient, fast on a CPU.

    Of equal maxima the first takes the gradient. Three selections, and not `jnp.max`: that one divides by how many
    values equal the maximum, and where the compiler computes a value again, with other roundings, none may: 0/0.

    Args:
        x: `[B, H, W, C]`, H and W even.

    Returns:
        `[B, H/2, W/2, C]`, x's dtype.

    Raises:
        ValueError: H or W is odd.

    >>> print(max_pool_2x2(jnp.arange(8.0).reshape(1, 2, 4, 1))[0, :, :, 0])
    [[5. 7.]]
    """
    return max_of_windows(_windows_2x2(x))


def max_of_windows(rows: Sequence[tuple[Array, Array]]) -> Array:
    """The largest of four, given as two rows of (left, right); of equal ones the first takes the gradient."""
    top, bottom = (larger(left, right) for left, right in rows)
    return larger(top, bottom)


def max_pool_2x2_positions(
    x: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b h/2 w/2 c"], UInt8[Array, "b h/2 w/2 c"]]:
    """`max_pool_2x2`, and where in its window each maximum lay: what SegNet remembers (arXiv 1511.00561).

    A position is 2 · row + column in the window: 0 top left, 1 top right, 2 bottom left, 3 bottom right. One byte, and
    it does not know of the size of the image; PyTorch's int64 index into the plane of H × W is
    (2i + p // 2) · W + 2j + p % 2. Of equal maxima the first counts, as in PyTorch; they are common after a ReLU.

    Args:
        x: `[B, H, W, C]`, H and W even.

    Returns:
        The maxima, `[B, H/2, W/2, C]`, x's dtype, and their positions, the same shape, uint8, without a gradient.

    Raises:
        ValueError: H or W is odd.

    >>> grid = jnp.array([[1.0, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]])
    >>> pooled, positions = max_pool_2x2_positions(grid[None, :, :, None])
    >>> print(pooled[0, :, :, 0], positions[0, :, :, 0])
    [[5. 6.]
     [7. 8.]] [[3 0]
     [2 3]]
    """
    (a, b), (c, d) = _windows_2x2(x)
    top, bottom = larger(a, b), larger(c, d)
    column_above, column_below = ((~first_is_larger(*pair)).astype(jnp.uint8) for pair in ((a, b), (c, d)))
    return larger(top, bottom), jnp.where(first_is_larger(top, bottom), column_above, 2 + column_below)


def _windows_2x2(x: Array) -> list[tuple[Array, Array]]:
    """The four pixels of each window, as its two rows of (left, right)."""
    b, h, w, c = x.shape
    if h % 2 or w % 2:
        raise ValueError(f"max_pool_2x2 needs an even height and width; got {h}x{w}")
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    return [(x[:, :, row, :, 0], x[:, :, row, :, 1]) for row in (0, 1)]


def first_is_larger(a: Array, b: Array) -> Array:
    """Whether `larger` takes `a`: it is the larger, or they are equal, or it is NaN."""
    return (a >= b) | jnp.isnan(a)


def max_pool_2x2_dense(x: Float[Array, "b h w c"], dilation: int) -> Float[Array, "b H W c"]:
    """The largest of the 2×2 pixels that lie `dilation` apart, at every place: `max_pool_2x2` of all its offsets.

    `[:, i::2, j::2]` at dilation 1 is `max_pool_2x2` of `x[:, i:, j:]`; the same of equal maxima takes the gradient.

    Args:
        x: `[B, H, W, C]`, H and W more than `dilation`.
        dilation: 1 or more.

    Returns:
        `[B, H - dilation, W - dilation, C]`, x's dtype.

    >>> print(max_pool_2x2_dense(jnp.array([[3.0, 1, 2, 0], [0, 0, 0, 4]]).reshape(1, 2, 4, 1), 1)[0, :, :, 0])
    [[3. 2. 4.]]
    """
    x = larger(x[:, :, :-dilation], x[:, :, dilation:])
    return larger(x[:, :-dilation], x[:, dilation:])


def max_pool_3x3(x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
    """The largest of each 3×3 window, stride 2, one pixel beyond the edge: PyTorch's `MaxPool2d(3, 2, padding=1)`.

    `nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))` in value and gradient. On a CPU the gradient takes a seventeenth
    of the time: a row's three, then a column's. Of equal maxima the first takes the gradient.

    Args:
        x: `[B, H, W, C]`.

    Returns:
        `[B, ceil(H / 2), ceil(W / 2), C]`, x's dtype.

    >>> print(max_pool_3x3(jnp.arange(8.0).reshape(1, 2, 4, 1))[0, :, :, 0])
    [[5. 7.]]
    """
    return _largest_of_three(_largest_of_three(x, 2), 1)


def _largest_of_three(x: Array, axis: int) -> Array:
    """The largest of the lines 2i - 1, 2i and 2i + 1 for every i, those beyond the edges left out."""
    lines = x.shape[axis]
    out = (lines + 1) // 2
    # Pair i is the lines 2i - 1 and 2i, and pair i + 1 has the third: one line before, and some behind for whole pairs.
    padding = [(1, 2 * out + 1 - lines) if i == axis else (0, 0) for i in range(x.ndim)]
    x = jnp.pad(x, padding, constant_values=-jnp.inf)
    pairs = x.reshape(*x.shape[:axis], out + 1, 2, *x.shape[axis + 1 :])

    def every(first: int, of_pair: int) -> Array:
        chosen = jax.lax.slice_in_dim(pairs, first, first + out, axis=axis)
        return jax.lax.index_in_dim(chosen, of_pair, axis + 1, keepdims=False)

    return larger(larger(every(0, 0), every(0, 1)), every(1, 0))


def larger(a: Array, b: Array) -> Array:
    """The larger, `a` where they are equal, NaN where either is."""
    return jnp.where(first_is_larger(a, b), a, b)
