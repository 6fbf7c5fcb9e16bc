"""Boundary pixels of label images, found on the device, and a weight for them."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Real

from segjax import checks

MODES = ("thick", "inner", "outer")


def boundary_mask(
    labels: Integer[ArrayLike, "*batch height width"] | Bool[ArrayLike, "*batch height width"],
    *,
    mode: str = "thick",
    connectivity: int = 1,
    background: Integer[ArrayLike, ""] = 0,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Bool[Array, "*batch height width"]:
    r"""Marks the pixels with a neighbour of another label; equals scikit-image's `find_boundaries` per image.

    .. math::
        T_i = \bigvee_{j \in N(i)} [y_j \ne y_i], \qquad
        I_i = T_i \wedge [y_i \ne b], \qquad
        O_i = T_i \wedge \left([y_i = b] \vee
        \bigvee_{j \in N_8(i)} [y_j \ne y_i] \wedge ([y_j \ne b] \vee [y_j > y_i])\right)

    with label y, background b and the 4 or 8 neighbours N(i) of pixel i:

    - "thick", T: both sides of every boundary.
    - "inner", I: the side of the object.
    - "outer", O: the side of the background, and both sides where two objects touch. As in scikit-image, an object
      whose label is below b is marked on its own side too.

    Without `where`, void (255) is a label like any other. With `where=labels != 255` the image ends where void begins.

    Args:
        labels: y, integers of any value and type, `[..., H, W]`.
        mode: "thick", "inner" or "outer"; static.
        connectivity: 1 for 4 neighbours, 2 for 8; static.
        background: b, used by "inner" and "outer"; static. Class 0 is road in Cityscapes' train ids.
        where: boolean, broadcastable to `labels`; a pixel with False is neither a boundary nor a neighbour.

    Returns:
        boolean `[..., H, W]`.

    Raises:
        TypeError: labels or background are not integers, `where` is not boolean, or the background is traced.
        ValueError: fewer than two axes, a `where` that does not fit, or an unknown mode or connectivity.

    References:
        van der Walt et al., scikit-image, arXiv 1407.6245: `skimage.segmentation.find_boundaries`.

    >>> labels = jnp.array([[0, 0, 5, 5, 1, 1, 255]])
    >>> print(boundary_mask(labels, mode="outer", where=labels != 255).astype(int))
    [[0 1 0 1 1 0 0]]
    """
    labels = checks.array("labels", labels)
    labels = labels.astype(jnp.uint8) if labels.dtype == jnp.bool_ else labels
    # Not widened: labels are only compared, narrow ones move fewer bytes, and uint32 would overflow int32.
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers; got {labels.dtype} of shape {labels.shape}")
    if labels.ndim < 2:
        raise ValueError(f"labels must be [..., height, width]; got shape {labels.shape}")
    keep = None if where is None else checks.mask("where", where, labels.shape)
    checks.choice("mode", mode, MODES)
    if connectivity not in (1, 2):
        raise ValueError(f"connectivity must be 1 (4 neighbours) or 2 (8 neighbours); got {connectivity!r}")
    b = checks.host("background", background)
    if b.ndim != 0 or not np.issubdtype(b.dtype, np.integer):
        raise TypeError(f"background must be one integer; got {background!r}")

    thick = _any_neighbour(labels, keep, connectivity, lambda own, other: own != other)
    if mode == "thick":
        return thick
    is_background = _equals(labels, int(b))
    if mode == "inner":
        return thick & ~is_background
    touching = _any_neighbour(
        labels, keep, 2, lambda own, other: (own != other) & (~_equals(other, int(b)) | (other > own))
    )
    return thick & (is_background | touching)


def boundary_weights(
    labels: Integer[ArrayLike, "*batch height width"] | Bool[ArrayLike, "*batch height width"],
    factor: Real[ArrayLike, ""],
    *,
    mode: str = "outer",
    connectivity: int = 1,
    background: Integer[ArrayLike, ""] = 0,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "*batch height width"]:
    r"""Returns one weight per pixel: `factor` at boundaries, 1 elsewhere.

    .. math:: w_i = 1 + (k - 1) [i \in boundary]

    Pass them to `mean(loss, where=where, weights=weights)`. A U-Net recipe for Cityscapes uses k = 2 and "outer".

    Args:
        labels: integers, `[..., H, W]`.
        factor: k ≥ 0, a scalar; may be traced.
        mode: as in `boundary_mask`; static.
        connectivity: as in `boundary_mask`; static.
        background: as in `boundary_mask`; static.
        where: as in `boundary_mask`; a pixel with False has weight 1. Without it the rim of void is weighted too.

    Returns:
        float32 `[..., H, W]`.

    Raises:
        TypeError: as `boundary_mask`.
        ValueError: as `boundary_mask`, or the factor is not a scalar or negative (not checked when traced).

    References:
        van der Walt et al., scikit-image, arXiv 1407.6245: `skimage.segmentation.find_boundaries`.

    >>> print(boundary_weights(jnp.array([[0, 0, 0, 1, 1, 2, 2]]), 2.0))
    [[1. 1. 2. 1. 2. 2. 1.]]
    """
    factor = checks.scalar("factor", factor, jnp.float32, 0.0)
    boundary = boundary_mask(labels, mode=mode, connectivity=connectivity, background=background, where=where)
    return jnp.where(boundary, factor, jnp.float32(1))


def _equals(labels: jax.Array, value: int) -> jax.Array:
    """Returns labels == value, False if their dtype cannot hold the value, which JAX would wrap to another label."""
    limits = jnp.iinfo(labels.dtype)
    if not limits.min <= value <= limits.max:
        return jnp.zeros(labels.shape, bool)
    return labels == jnp.asarray(value, labels.dtype)


def _any_neighbour(
    labels: jax.Array, keep: jax.Array | None, connectivity: int, marks: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """Returns True at unmasked pixels where `marks(own label, label of an unmasked neighbour)` is True."""
    found = jnp.zeros(labels.shape, bool)
    if labels.size == 0:
        return found
    height, width = labels.shape[-2:]
    margins = [(0, 0)] * (labels.ndim - 2) + [(1, 1), (1, 1)]
    # Padding by the edge repeats the pixel or one of its neighbours, and so adds no neighbour.
    padded = jnp.pad(labels, margins, mode="edge")
    kept = None if keep is None else jnp.pad(keep, margins, mode="edge")
    for down, right in itertools.product((-1, 0, 1), repeat=2):
        if 1 <= abs(down) + abs(right) <= connectivity:
            window = ..., slice(1 + down, 1 + down + height), slice(1 + right, 1 + right + width)
            marked = marks(labels, padded[window])
            found |= marked if kept is None else marked & kept[window]
    return found if keep is None else found & keep
