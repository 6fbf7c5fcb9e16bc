"""The mean of a per-pixel loss over the pixels of all devices."""

from collections.abc import Hashable

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Real

from segjax import checks
from segjax.collectives import psum
from segjax.losses._log_odds import mask_to_zero, sum_and_count

NORMALIZERS = ("valid", "weights", "positives")


def mean(
    per_pixel: Float[ArrayLike, "*pixels"],
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    weights: Real[ArrayLike, "*#pixels"] | None = None,
    positives: Bool[ArrayLike, "*#pixels"] | None = None,
    normalizer: str = "valid",
    axis_name: Hashable | None = None,
) -> Float[Array, ""]:
    r"""Returns the mean of a per-pixel loss over the unmasked pixels of all devices.

    .. math::
        L = \frac{\sum_i w_i l_i}{N}, \qquad
        N = \sum_i 1 \;(valid), \quad \sum_i w_i \;(weights), \quad \max(1, \sum_i [i \text{ positive}]) \;(positives)

    The sums run over the unmasked pixels i of all devices. An empty sum divided by 0 is 0.

    Args:
        per_pixel: l, the unreduced loss, any shape.
        where: boolean, broadcastable to `per_pixel`; False removes the pixel. It protects the value only: pass it to
            the per-pixel loss too, or the gradient of a masked NaN logit is NaN.
        weights: w ≥ 0, broadcastable to `per_pixel`; default 1. They multiply the loss under every normalizer.
        positives: boolean, broadcastable to `per_pixel`; used by `normalizer="positives"` only.
        normalizer: "valid": number of unmasked pixels; "weights": their total weight; "positives": number of unmasked
            positives, at least 1 (the normalizer of the focal loss paper).
        axis_name: mapped device axis, or None. Every device gets the same global loss; `pmean` the gradients.

    Returns:
        A scalar, at least float32.

    Raises:
        TypeError: `per_pixel` is not floating point, or `where` or `positives` is not boolean.
        ValueError: a shape does not fit, a weight is negative, the normalizer is unknown, or its argument is missing.

    References:
        Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.1 (positives).

    >>> loss = jnp.array([[1.0, 2.0], [3.0, jnp.nan]])
    >>> where = jnp.array([[True, True], [True, False]])
    >>> print(mean(loss, where=where), mean(loss, where=where, positives=loss > 2.5, normalizer="positives"))
    2.0 6.0
    """
    checks.choice("normalizer", normalizer, NORMALIZERS)
    for name, value in (("weights", weights), ("positives", positives)):
        if normalizer == name and value is None:
            raise ValueError(f'normalizer="{name}" divides by the {name}; got {name}=None')
    loss = checks.floating("per_pixel", per_pixel)
    keep = None if where is None else checks.mask("where", where, loss.shape)
    loss = mask_to_zero(loss, keep)
    if weights is not None:
        checks.not_negative("weights", weights, where)
        weights = checks.spread("weights", checks.array("weights", weights).astype(loss.dtype), loss.shape)
        weights = mask_to_zero(weights, keep)
        loss = loss * weights
    counted = jnp.ones(loss.shape, bool) if keep is None else keep
    if normalizer == "positives":
        counted = mask_to_zero(checks.mask("positives", positives, loss.shape), keep)

    # The count is an integer on all devices too: float32 stops counting at 2^24.
    total, count = psum(sum_and_count(jnp.atleast_1d(loss), jnp.atleast_1d(counted)), axis_name)
    if normalizer == "positives":
        return total / jnp.maximum(count, 1).astype(loss.dtype)
    divisor = psum(jnp.sum(weights), axis_name) if normalizer == "weights" else count.astype(loss.dtype)
    return jnp.where(divisor == 0, 0, total / jnp.where(divisor == 0, 1, divisor))
