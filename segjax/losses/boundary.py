"""Where labels change: the boundary pixels of label images, found on the device, and a weight for them.

All of it is shifts and comparisons: it runs inside the jitted step, after the augmentation has made the labels.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

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
    r"""The pixels with a neighbour of another label: scikit-image's `find_boundaries`, each image by itself.

    .. math::
        T_i = \bigvee_{j \in N(i)} [y_j \ne y_i], \qquad
        I_i = T_i \wedge [y_i \ne b], \qquad
        O_i = T_i \wedge \left([y_i = b] \vee
        \bigvee_{j \in N_8(i)} [y_j \ne y_i] \wedge ([y_j \ne b] \vee [y_j > y_i])\right)

    with label y, background b and the neighbours N(i) of pixel i, 4 or (N₈) 8 of them. In words:

    - "thick", T: both sides of every boundary, two pixels thick.
    - "inner", I: the object's side only; background pixels are never marked.
    - "outer", O: the background's side, and both sides where two objects touch.

    "outer" takes the background for the smallest label, as scikit-image does. Objects of smaller labels (negative, or
    any with `background=255`) are marked on their own side too, by the last term.

    Void: without `where`, 255 is a label like any other and its rim is a boundary. With `where=labels != 255` the
    image ends where void begins, as it ends at its edge, and neither is a boundary.

    Args:
        labels: y, integers of any value and type, `[..., H, W]`.
        mode: "thick", "inner" or "outer"; static.
        connectivity: 1 for 4 neighbours, 2 for 8; static.
        background: b, the label that is no object, read by "inner" and "outer"; static. Which class it is matters:
            of Cityscapes' train ids 0 is the road, of its raw ids unlabelled.
        where: boolean `[..., H, W]`, broadcastable; False: no such pixel. It is no boundary, and makes none of its
            neighbours one, whatever its label.

    Returns:
        boolean `[..., H, W]`.

    Raises:
        TypeError: labels are not integers, `where` is not boolean, or the background is no integer or traced.
        ValueError: labels of fewer than two axes, a `where` that does not fit, an unknown mode or connectivity.

    References:
        van der Walt et al., scikit-image, arXiv 1407.6245: `skimage.segmentation.find_boundaries`.

    >>> import jax.numpy as jnp
    >>> labels = jnp.array([[0, 0, 5, 5, 1, 1, 255]])
    >>> for mode in ("thick", "inner", "outer"):
    ...     print(boundary_mask(labels, mode=mode, where=labels != 255).astype(int))
    [[0 1 1 1 1 0 0]]
    [[0 0 1 1 1 0 0]]
    [[0 1 0 1 1 0 0]]
    """
    labels, keep = _inputs(labels, where)
    checks.choice("mode", mode, MODES)
    if connectivity not in (1, 2):
        raise ValueError(f"connectivity must be 1 (4 neighbours) or 2 (8 neighbours); got {connectivity!r}")
    background = _one_integer("background", background)
    thick = _any_neighbour(labels, keep, connectivity, lambda own, other: own != other)
    if mode == "thick":
        return thick
    is_background = _equals(labels, background)
    if mode == "inner":
        return thick & ~is_background
    touching = _any_neighbour(
        labels, keep, 2, lambda own, other: (own != other) & (~_equals(other, background) | (other > own))
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
    r"""A weight for each pixel: `factor` on the boundaries between labels, 1 elsewhere.

    .. math:: w_i = 1 + (k - 1) [i \in boundary]

    with factor k. Weights for `mean`, whatever the per-pixel loss: `mean(loss, where=where, weights=weights)`. A U-Net
    recipe for Cityscapes takes k = 2 and mode "outer" (2 pixels thick between objects, 1 around them).

    Args:
        labels: integers, `[..., H, W]`.
        factor: k ≥ 0, a scalar; may be traced.
        mode: "thick", "inner" or "outer", as in `boundary_mask`; static.
        connectivity: 1 for 4 neighbours, 2 for 8; static.
        background: the label that is no object; static.
        where: boolean `[..., H, W]`, broadcastable; False: no such pixel, its weight is 1 and counts nowhere if the
            reduction gets the same `where`. Void labels need it: their rim is weighted like any other boundary else.

    Returns:
        float32 `[..., H, W]`.

    Raises:
        TypeError: as `boundary_mask`.
        ValueError: as `boundary_mask`; or the factor is no scalar, or negative (where it has a value).

    References:
        van der Walt et al., scikit-image, arXiv 1407.6245: `skimage.segmentation.find_boundaries`.

    >>> import jax.numpy as jnp
    >>> print(boundary_weights(jnp.array([[0, 0, 0, 1, 1, 2, 2]]), 2.0))
    [[1. 1. 2. 1. 2. 2. 1.]]
    """
    factor = checks.scalar("factor", factor, jnp.float32, 0.0)
    boundary = boundary_mask(labels, mode=mode, connectivity=connectivity, background=background, where=where)
    return jnp.where(boundary, factor, jnp.float32(1))


def _inputs(labels, where):
    labels = checks.array("labels", labels)
    labels = labels.astype(jnp.uint8) if labels.dtype == jnp.bool_ else labels
    # Not widened: labels are only compared with each other, a quarter of the bytes is moved, and uint32 would wrap.
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers; got {labels.dtype} of shape {labels.shape}")
    if labels.ndim < 2:
        raise ValueError(f"labels must be [..., height, width]; got shape {labels.shape}")
    return labels, None if where is None else checks.mask("where", where, labels.shape)


def _one_integer(name: str, value: Any) -> int:
    array = checks.host(name, value)
    if array.ndim != 0 or not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be one integer; got {value!r}")
    return int(array)


def _equals(labels: jax.Array, value: int) -> jax.Array:
    """labels == value, False where the labels' type cannot hold it: JAX would wrap it to another label."""
    limits = jnp.iinfo(labels.dtype)
    if not limits.min <= value <= limits.max:
        return jnp.zeros(labels.shape, bool)
    return labels == jnp.asarray(value, labels.dtype)


def _any_neighbour(
    labels: jax.Array, keep: jax.Array | None, connectivity: int, marks: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """True at kept pixels that a kept neighbour marks: `marks(the pixel's label, the neighbour's)`."""
    if labels.size == 0:
        return jnp.zeros(labels.shape, bool)
    padded = _edge_padded(labels)
    kept = None if keep is None else _edge_padded(keep)
    found = jnp.zeros(labels.shape, bool)
    for window in _neighbours(labels.shape, connectivity):
        marked = marks(labels, padded[window])
        found |= marked if kept is None else marked & kept[window]
    return found if keep is None else found & keep


def _edge_padded(images: jax.Array) -> jax.Array:
    # What the edge repeats is the pixel itself or one of its neighbours: it adds no neighbour that is not there.
    return jnp.pad(images, [(0, 0)] * (images.ndim - 2) + [(1, 1), (1, 1)], mode="edge")


def _neighbours(shape: tuple[int, ...], connectivity: int) -> Iterator[tuple]:
    """The slices of a padded image that lie over each pixel's neighbours."""
    height, width = shape[-2:]
    for down, right in itertools.product((-1, 0, 1), repeat=2):
        if 1 <= abs(down) + abs(right) <= connectivity:
            yield ..., slice(1 + down, 1 + down + height), slice(1 + right, 1 + right + width)
