"""3×3 convolutions that keep height and width, padded by zeros or by reflection: the numbers of XLA's, faster on a CPU.

Most of a U-Net's training step is in them. The gradient of the kernel of a convolution with few outputs is what XLA's
CPU compiler does worst: at 16 outputs a fifth of the speed it has at 32. Here that gradient comes by another road. And
depthwise convolutions, of which that compiler makes C small ones.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_NHWC = ("NHWC", "HWIO", "NHWC")
# Up to so many outputs XLA's own gradient of the kernel is slow, and from so many inputs on the turned one is faster,
# of any number of images; the packed one is so for up to so many images, and from so many outputs on.
_FEW_OUTPUTS, _MANY_INPUTS = 16, 32
_PACKED_IMAGES, _PACKED_OUTPUTS = 2, 9


def _plain(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_NHWC)


@jax.custom_jvp
def conv3x3_zeros(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c f"]) -> Float[Array, "b h w f"]:
    """A 3×3 convolution of `x` padded by zeros: `lax.conv_general_dilated(x, kernel, (1, 1), "SAME")`.

    On a CPU the gradient of a kernel with at most 16 outputs is computed in less time: with 32 inputs or more, of one
    image, in a seventh to a half of it, of eight in a half to all; with 16 inputs and outputs, of one image, in two to
    three fifths. Elsewhere as ever.

    Args:
        x: `[B, H, W, C]`.
        kernel: `[3, 3, C, F]`.

    Returns:
        `[B, H, W, F]`.

    >>> conv3x3_zeros(jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0]
    Array([[4., 4.],
           [4., 4.]], dtype=float32)
    """
    return _plain(x, kernel)


@conv3x3_zeros.defjvp
def _conv3x3_zeros_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    x, kernel = primals
    x_dot, kernel_dot = tangents
    return conv3x3_zeros(x, kernel), conv3x3_zeros(x_dot, kernel) + _of_kernel(x, kernel_dot)


def _of_kernel(x: Array, kernel: Array) -> Array:
    """The convolution again, written so that JAX's own transposition gives the gradient of the kernel in a fast form.

    Reverse mode never runs what is written here, only its transpose with respect to `kernel`.
    """
    (images, height, width, channels), outputs = x.shape, kernel.shape[-1]
    if outputs > _FEW_OUTPUTS or channels < 8 or min(height, width) < 2 or images == 0:
        return _plain(x, kernel)
    if channels >= _MANY_INPUTS:
        way = _turned
    elif width % 2 == 0 and images <= _PACKED_IMAGES and outputs >= _PACKED_OUTPUTS:
        way = _packed
    else:
        return _plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=partial(_one_by_one, way), default=_plain)


def _one_by_one(way: Callable[[Array, Array], Array], x: Array, kernel: Array) -> Array:
    """Each image alone: of three at once both ways take seven times as long, of any number never less."""
    return jnp.concatenate([way(image, kernel) for image in jnp.split(x, x.shape[0])])


def _turned(x: Array, kernel: Array) -> Array:
    """The kernel as the image and `x` as the kernel. The transpose then has C outputs, and not F."""
    height, width = x.shape[1:3]
    padding = ((height - 2, height - 2), (width - 2, width - 2))
    y = lax.conv_general_dilated(kernel, x, (1, 1), padding, dimension_numbers=("HWCN", "OHWI", "NHWC"))
    return y[:, ::-1, ::-1].transpose(3, 1, 2, 0)


def _packed(x: Array, kernel: Array) -> Array:
    """Two columns at a time, as 2C inputs and 2F outputs: column a of a pair sees column b through tap a - b + 1."""
    b, h, w, c = x.shape
    f = kernel.shape[-1]
    zero = jnp.zeros((3, c, f), kernel.dtype)
    # Of the pair before, the same and the one after: rows are the inputs' column, columns the outputs'.
    before = ((zero, zero), (kernel[:, 0], zero))
    same = ((kernel[:, 1], kernel[:, 0]), (kernel[:, 2], kernel[:, 1]))
    after = ((zero, kernel[:, 2]), (zero, zero))
    blocks = [jnp.concatenate([jnp.concatenate(row, axis=2) for row in pair], axis=1) for pair in (before, same, after)]
    y = _plain(x.reshape(b, h, w // 2, 2 * c), jnp.stack(blocks, axis=1))
    return y.reshape(b, h, w, f)


def conv3x3_reflect(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c f"]) -> Float[Array, "b h w f"]:
    """A 3×3 convolution of `x` padded by its reflection: `conv(jnp.pad(x, 1, mode="reflect"), kernel, "VALID")`.

    Computed as the zero-padded convolution plus what the reflected lines add to the outermost rows and columns: padding
    the whole array added two fifths to a plain U-Net's training step on a CPU, this adds a twentieth to ours.
    Reverse mode only (a custom VJP): `jax.grad`, and `jax.jvp` of it, but not `jax.jvp` alone.

    Args:
        x: `[B, H, W, C]`, H and W at least 2.
        kernel: `[3, 3, C, F]`.

    Returns:
        `[B, H, W, F]`.

    Raises:
        ValueError: H or W is 1, so that there is nothing to reflect.
    """
    h, w = x.shape[1:3]
    if h < 2 or w < 2:  # each by itself: symbolic sizes cannot be compared with each other
        raise ValueError(f"reflect padding needs a height and width of at least 2; got {h}x{w}")

    def thin(line: jax.Array, part: jax.Array, padding: tuple[tuple[int, int], tuple[int, int]]) -> jax.Array:
        return lax.conv_general_dilated(line, part, (1, 1), padding, dimension_numbers=_NHWC)

    def mirrored(row: jax.Array) -> jax.Array:  # the rows bring the corners along, the columns must not
        return jnp.pad(row, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="reflect")

    x, (above, below, before, after) = _inner_lines(x)
    y = conv3x3_zeros(x, kernel)
    none, one = (0, 0), (1, 1)
    y = y.at[:, :1].add(thin(mirrored(above), kernel[:1], (none, none)))
    y = y.at[:, -1:].add(thin(mirrored(below), kernel[2:], (none, none)))
    y = y.at[:, :, :1].add(thin(before, kernel[:, :1], (one, none)))
    return y.at[:, :, -1:].add(thin(after, kernel[:, 2:], (one, none)))


def _slice_inner_lines(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """`x`, its second row, its last row but one, its second column, and its last but one."""
    return x, (x[:, 1:2], x[:, -2:-1], x[:, :, 1:2], x[:, :, -2:-1])


def _add_inner_lines(_: None, cotangents: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[jax.Array]:
    # In place. JAX's own gradient of the slices pads each of the four to the full size before it adds them.
    whole, (above, below, before, after) = cotangents
    whole = whole.at[:, 1:2].add(above).at[:, -2:-1].add(below)
    return (whole.at[:, :, 1:2].add(before).at[:, :, -2:-1].add(after),)


_inner_lines = jax.custom_vjp(_slice_inner_lines)
_inner_lines.defvjp(lambda x: (_slice_inner_lines(x), None), _add_inner_lines)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise3x3(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c"], dilation: int = 1
) -> Float[Array, "b h w c"]:
    """A 3×3 convolution of every channel by itself, padded by zeros: `feature_group_count` = C.

    On a CPU it is nine shifted products, and takes a thirtieth of the time that XLA's does; elsewhere it is XLA's.
    Reverse mode only (a custom VJP).

    Args:
        x: `[B, H, W, C]`.
        kernel: `[3, 3, C]`.
        dilation: pixels from tap to tap; static.

    Returns:
        `[B, H, W, C]`.

    >>> print(depthwise3x3(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1)), 2)[0, :, :, 0])
    [[4. 2. 4.]
     [2. 1. 2.]
     [4. 2. 4.]]
    """
    shifted, grouped = partial(_shifted, dilation=dilation), partial(_grouped, dilation=dilation)
    return lax.platform_dependent(x, kernel, cpu=shifted, default=grouped)


def _grouped(x: Array, kernel: Array, dilation: int) -> Array:
    around, apart = ((dilation, dilation),) * 2, (dilation, dilation)
    return lax.conv_general_dilated(
        x, kernel[:, :, None], (1, 1), around, None, apart, _NHWC, feature_group_count=x.shape[-1]
    )


def _padded(x: Array, dilation: int) -> Array:
    return jnp.pad(x, ((0, 0), (dilation, dilation), (dilation, dilation), (0, 0)))


def _shifted(x: Array, kernel: Array, dilation: int) -> Array:
    (height, width), x = x.shape[1:3], _padded(x, dilation)
    taps = ((i, j) for i in range(3) for j in range(3))
    return sum(x[:, i * dilation :, j * dilation :][:, :height, :width] * kernel[i, j] for i, j in taps)


def _kernel_by_rows(x: Array, y: Array, dilation: int) -> Array:
    """The kernel's cotangent, a row of `y` at a time: in one sum over all rows XLA's CPU reads them nine times."""
    (height, width, channels), x = x.shape[1:], _padded(x, dilation)

    def add_row(total: Array, row: Array) -> tuple[Array, None]:
        seen = lax.dynamic_slice_in_dim(x, row, 2 * dilation + 1, axis=1)[:, ::dilation]
        given = lax.dynamic_slice_in_dim(y, row, 1, axis=1)
        columns = (seen[:, :, j * dilation :][:, :, :width] * given for j in range(3))
        return total + jnp.stack([column.sum((0, 2), total.dtype) for column in columns], axis=1), None

    zero = jnp.zeros((3, 3, channels), jnp.promote_types(x.dtype, jnp.float32))
    return lax.scan(add_row, zero, jnp.arange(height))[0].astype(x.dtype)


def _kernel_by_groups(x: Array, y: Array, dilation: int) -> Array:
    zero = jnp.zeros((3, 3, x.shape[-1]), x.dtype)
    return jax.vjp(lambda kernel: _grouped(x, kernel, dilation), zero)[1](y)[0]


def _depthwise_backward(dilation: int, kept: tuple[Array, Array], y: Array) -> tuple[Array, Array]:
    x, kernel = kept
    by_rows, by_groups = (partial(road, dilation=dilation) for road in (_kernel_by_rows, _kernel_by_groups))
    of_kernel = lax.platform_dependent(x, y, cpu=by_rows, default=by_groups)
    return depthwise3x3(y, kernel[::-1, ::-1], dilation), of_kernel


depthwise3x3.defvjp(lambda x, kernel, dilation: (depthwise3x3(x, kernel, dilation), (x, kernel)), _depthwise_backward)
