"""Euclidean distance to a mask, on the device; `segjax.losses` and `segjax.metrics` share it."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from segjax import checks
from segjax.checks import Scalar


def distance_to(
    mask: Bool[ArrayLike, "*images height width"], *, spacing: tuple[Scalar, Scalar] = (1.0, 1.0)
) -> Float[Array, "*images height width"]:
    r"""Returns the Euclidean distance of every pixel to the nearest pixel of the mask of its image.

    .. math:: d_i = \min_{j \in M} \sqrt{s_y^2 (y_i - y_j)^2 + s_x^2 (x_i - x_j)^2}

    It equals SciPy's `distance_transform_edt(~mask, sampling=spacing)`. The nearest pixel within each row is found by
    two scans, and the nearest row by a minimum over all rows, in O(H² W) time and O(H W) memory. Squared distances
    in pixels are exact below 2^24, that is for a diagonal of up to 4096 pixels.

    Args:
        mask: M, boolean `[..., H, W]`.
        spacing: (s_y, s_x), height and width of a pixel, more than 0; may be traced.

    Returns: d, float32 `[..., H, W]`; inf in an image whose mask is empty.
    Raises: TypeError or ValueError if the mask is not boolean or has fewer than 2 axes, or a spacing is not positive.
    References: Felzenszwalb and Huttenlocher, Distance Transforms of Sampled Functions, Theory of Computing 8, 2012.

    >>> print(distance_to(jnp.array([[False, False, True], [False, False, False]])))
    [[2.        1.        0.       ]
     [2.236068  1.4142135 1.       ]]
    """
    mask = checks.array("mask", mask)
    mask = checks.mask("mask", mask, mask.shape)
    if mask.ndim < 2:
        raise ValueError(f"mask must be [..., height, width]; got shape {mask.shape}")
    if len(spacing) != 2:
        raise ValueError(f"spacing must be the height and the width of a pixel; got {len(spacing)} numbers")
    height, width = (checks.finite("spacing", size, jnp.float32, above=0.0) for size in spacing)
    return _distance(mask, height, width)


# Compiled here, because an uncompiled caller would compile the scan anew at each call.
@jax.jit
def _distance(mask, pixel_height, pixel_width):
    height, width = mask.shape[-2:]
    column = lax.broadcasted_iota(jnp.int32, mask.shape, mask.ndim - 1)
    before = lax.cummax(jnp.where(mask, column, -width), axis=mask.ndim - 1)
    after = lax.cummin(jnp.where(mask, column, 2 * width), axis=mask.ndim - 1, reverse=True)
    steps = jnp.minimum(column - before, after - column)
    # Squared distance within the row; inf if the row has no pixel of the mask.
    in_row = jnp.where(steps < width, (pixel_width * steps.astype(jnp.float32)) ** 2, jnp.inf)
    row = lax.broadcasted_iota(jnp.int32, (height, 1), 0).reshape((1,) * (mask.ndim - 2) + (height, 1))

    def nearer(best, other):
        index, squares = other
        return jnp.minimum(best, squares[..., None, :] + (pixel_height * (row - index).astype(jnp.float32)) ** 2), None

    rows = jnp.arange(height, dtype=jnp.int32), jnp.moveaxis(in_row, -2, 0)
    return jnp.sqrt(lax.scan(nearer, in_row, rows)[0])
