"""The one reduction of per-pixel losses: sum and count, both over all devices, divide last."""

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
    r"""The mean of a per-pixel loss over the kept pixels of all devices.

    .. math::
        L = \frac{\sum_i w_i l_i}{N}, \qquad
        N = \sum_i 1 \;(valid), \quad \sum_i w_i \;(weights), \quad \max(1, \sum_i [i \text{ positive}]) \;(positives)

    with every sum over the pixels i that `where` keeps, on all devices of `axis_name`. An empty sum divided by 0 is 0.

    Args:
        per_pixel: l, the unreduced loss, any shape.
        where: boolean of that shape or broadcastable to it; False: no such pixel. It protects the *value* only:
            give it to the per-pixel loss too, or a masked NaN logit still gives a NaN gradient.
        weights: w ≥ 0, that shape or broadcastable to it; 1 if not given. They multiply the loss whatever the
            normalizer, which only says what to divide by.
        positives: boolean, that shape or broadcastable to it; read by `normalizer="positives"` only.
        normalizer: "valid" divides by the number of kept pixels, "weights" by their weight, "positives" by the number
            of positive ones, at least 1 (the focal loss paper's: easy negatives then do not dilute the loss).
        axis_name: the mapped device axis, or None under `jit`. Inside a map every device gets the same *global* loss;
            `pmean` the gradients.

    Returns:
        A scalar, at least float32.

    Raises:
        TypeError: `per_pixel` is not floating, or `where` or `positives` not boolean.
        ValueError: a shape does not fit, the normalizer is unknown, or what it divides by was not given.

    References:
        Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.1 (positives).

    >>> import jax.numpy as jnp
    >>> loss = jnp.array([[1.0, 2.0], [3.0, jnp.nan]])
    >>> where = jnp.array([[True, True], [True, False]])
    >>> print(mean(loss, where=where))
    2.0
    >>> print(mean(loss, where=where, weights=jnp.array([[3.0], [1.0]]), normalizer="weights"))
    1.7142857
    >>> print(mean(loss, where=where, positives=loss > 2.5, normalizer="positives"))
    6.0
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

    # Counted as integers, over all devices too: float32 stops counting at 2^24.
    total, count = psum(sum_and_count(jnp.atleast_1d(loss), jnp.atleast_1d(counted)), axis_name)
    if normalizer == "positives":
        return total / jnp.maximum(count, 1).astype(loss.dtype)
    divisor = psum(jnp.sum(weights), axis_name) if normalizer == "weights" else count.astype(loss.dtype)
    # An empty sum divided by 0 is 0, with a gradient of 0.
    return jnp.where(divisor == 0, 0, total / jnp.where(divisor == 0, 1, divisor))
