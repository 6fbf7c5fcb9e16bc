"""Region losses: Tversky and its special cases Dice and Jaccard, and generalised Dice.

They share these rules. The sums run over the unmasked pixels of each image, or with `over_batch=True` over those of all
images on all devices; the result is the mean over the counted (image, class) pairs of all devices. There is no
smoothing constant: it would pull the losses of small objects towards 0 and make the loss depend on the resolution.

A class is *absent* if it labels no unmasked pixel of the image (`over_batch=True`: of any image). `absent` selects the
loss of such a pair: "exclude": the pair is not counted; "zero": it counts as 0; "one": it counts as 1, which is also
the formula's value, whose numerator is 0. None of the three has a gradient: predicting an absent class costs only where
the sums include a present one (`over_batch=True`), or through another loss. An image without an unmasked pixel does not
exist and none of its pairs is counted, so that a batch may be padded with void images. If nothing is counted the loss
is 0.

`classes` selects the classes that count: `classes=(1, 2)` leaves out the background 0 (`include_background=False`
elsewhere). A single sigmoid logit z is the two-class softmax of (0, z), of which class 1 counts:
`dice_loss(jnp.stack([jnp.zeros_like(z), z], axis=-1), labels, classes=(1,))`.

1 - TI is never formed by a subtraction. With N = α Σ_{t=0} p + β Σ_{t=1} (1 - p), or for squared sums
N = α Σ (p - t)² + (β - α) Σ_{t=1} (1 - p), it is N / (I + N). Every term is accurate (1 - p of the label's class comes
from the log-odds, see `_log_odds.py`) and none is negative, so that a nearly perfect prediction keeps its tiny loss.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Real

from segjax import checks
from segjax.collectives import psum
from segjax.losses._log_odds import pixel_sums, softmax_inputs, varying_like


def dice_loss(
    logits: Float[ArrayLike, "*pixels classes"],
    labels: Integer[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"],
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    squared: bool = False,
    over_batch: bool = False,
    absent: str = "exclude",
    classes: Sequence[int] | None = None,
    axis_name: Hashable | None = None,
) -> Float[Array, ""]:
    r"""Dice loss of integer labels: the Tversky loss of α = β = 1/2.

    .. math::
        L = \operatorname{mean}_{b,c} \left(1 - \frac{2 I_{bc}}{P_{bc} + T_{bc}}\right), \qquad
        I = \sum_i p_i t_i, \quad P = \sum_i p_i, \; T = \sum_i t_i \text{ or, squared, } \sum_i p_i^2, \sum_i t_i^2

    with p = softmax(logits), t the one-hot labels, pixels i of image b, and classes c.

    Args:
        logits: z, `[B, ..., C]`: the batch, at least one axis of pixels, C ≥ 2 classes last.
        labels: integers in [0, C), `[B, ...]`. One that is no class and that `where` keeps gives NaN.
        where: boolean `[B, ...]`, broadcastable; False: no such pixel.
        squared: static; False: plain sums in the denominator; True: squared, V-Net's.
        over_batch: static; False: one Dice for each image; True: one over the whole batch on all devices.
        absent: "exclude", "zero" or "one": what a class without a kept label pixel is worth (see the module).
        classes: the indices of the classes that count, None for all; static. For a single sigmoid logit too: (1,).
        axis_name: the mapped device axis, or None under `jit`. Inside a map every device gets the same *global* loss;
            `pmean` the gradients.

    Returns:
        A scalar in [0, 1], at least float32. Gradients are finite for |logit| ≤ 1e4, second derivatives too.

    Raises:
        TypeError: logits are not floating, labels not integers, or `where` not boolean.
        ValueError: shapes do not fit, no axis of pixels, C < 2, unknown `absent`, or `classes` not distinct classes.

    References:
        Milletari et al., V-Net, arXiv 1606.04797 (squared).

    >>> import jax.numpy as jnp
    >>> p = jnp.array([[0.9, 0.8, 0.2, 0.1]])  # of class 1, one image of four pixels
    >>> logits = jnp.log(jnp.stack([1 - p, p], axis=-1))
    >>> labels = jnp.array([[1, 1, 0, 255]])
    >>> loss = dice_loss(logits, labels, where=labels != 255, classes=(1,))
    >>> print(f"{loss:.4f}")  # 1 - 2 · 1.7 / (1.9 + 2)
    0.1282
    """
    sums, alarm = _sums(logits, labels, where, squared, over_batch, classes, axis_name)
    loss = _ratio(_cost(sums, 0.5, 0.5, squared), sums.hit)
    return _mean_over_pairs(loss, sums.truth > 0, sums, absent, over_batch, axis_name) + alarm


def jaccard_loss(
    logits: Float[ArrayLike, "*pixels classes"],
    labels: Integer[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"],
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    squared: bool = False,
    over_batch: bool = False,
    absent: str = "exclude",
    classes: Sequence[int] | None = None,
    axis_name: Hashable | None = None,
) -> Float[Array, ""]:
    r"""Jaccard (soft IoU) loss of integer labels: the Tversky loss of α = β = 1.

    .. math:: L = \operatorname{mean}_{b,c} \left(1 - \frac{I_{bc}}{P_{bc} + T_{bc} - I_{bc}}\right)

    with I, P and T as in `dice_loss`. For each pair, J = 2D / (1 + D) of the Dice loss D.

    Args:
        logits: as in `dice_loss`.
        labels: as in `dice_loss`.
        where: as in `dice_loss`.
        squared: as in `dice_loss`.
        over_batch: as in `dice_loss`.
        absent: as in `dice_loss`.
        classes: as in `dice_loss`.
        axis_name: as in `dice_loss`.

    Returns:
        As `dice_loss`.

    Raises:
        TypeError: as `dice_loss`.
        ValueError: as `dice_loss`.

    References:
        Rahman and Wang, Optimizing Intersection-Over-Union in Deep Neural Networks for Image Segmentation, ISVC 2016.

    >>> import jax.numpy as jnp
    >>> p = jnp.array([[0.9, 0.8, 0.2]])
    >>> logits = jnp.log(jnp.stack([1 - p, p], axis=-1))
    >>> loss = jaccard_loss(logits, jnp.array([[1, 1, 0]]), classes=(1,))
    >>> print(f"{loss:.4f}")  # 1 - 1.7 / (1.9 + 2 - 1.7)
    0.2273
    """
    sums, alarm = _sums(logits, labels, where, squared, over_batch, classes, axis_name)
    loss = _ratio(_cost(sums, 1.0, 1.0, squared), sums.hit)
    return _mean_over_pairs(loss, sums.truth > 0, sums, absent, over_batch, axis_name) + alarm


def tversky_loss(
    logits: Float[ArrayLike, "*pixels classes"],
    labels: Integer[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"],
    *,
    alpha: Real[ArrayLike, ""] = 0.5,
    beta: Real[ArrayLike, ""] = 0.5,
    gamma: Real[ArrayLike, ""] = 1.0,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    squared: bool = False,
    over_batch: bool = False,
    absent: str = "exclude",
    classes: Sequence[int] | None = None,
    axis_name: Hashable | None = None,
) -> Float[Array, ""]:
    r"""Tversky loss of integer labels; with γ > 1 focal Tversky loss.

    .. math::
        L = \operatorname{mean}_{b,c} (1 - TI_{bc})^γ, \qquad TI = \frac{I}{I + α (P - I) + β (T - I)}

    with I, P and T as in `dice_loss`: α weighs the false positives, β the false negatives. α = β = 1/2 is Dice,
    α = β = 1 Jaccard. A class of which nothing at all is predicted, where β = 0 forgives that, has the loss 0.

    Args:
        logits: as in `dice_loss`.
        labels: as in `dice_loss`.
        alpha: α ≥ 0, a scalar; may be traced, as may β and γ.
        beta: β ≥ 0, a scalar. Squared sums need β ≥ α, or TI passes 1 at a p below 1; traced, the loss is cut off at 0.
        gamma: γ ≥ 1, a scalar: above 1 the badly segmented images and classes weigh more. The paper writes 1/γ for the
            exponent, with the weights swapped (its α is of false negatives), and takes its γ = 4/3. That is an exponent
            of 0.75, excluded here: below 1 the gradient is infinite at a perfect prediction.
        where: as in `dice_loss`.
        squared: as in `dice_loss`.
        over_batch: as in `dice_loss`.
        absent: as in `dice_loss`.
        classes: as in `dice_loss`.
        axis_name: as in `dice_loss`.

    Returns:
        As `dice_loss`.

    Raises:
        TypeError: as `dice_loss`.
        ValueError: as `dice_loss`; α < 0, β < 0, γ < 1, squared and α > β (where they have values: not when traced).

    References:
        Salehi et al., Tversky loss function for image segmentation, arXiv 1706.05721;
        Abraham and Khan, A Novel Focal Tversky Loss Function, arXiv 1810.07842.

    >>> import jax.numpy as jnp
    >>> p = jnp.array([[0.9, 0.8, 0.2]])
    >>> logits = jnp.log(jnp.stack([1 - p, p], axis=-1))
    >>> loss = tversky_loss(logits, jnp.array([[1, 1, 0]]), alpha=0.3, beta=0.7, classes=(1,))
    >>> print(f"{loss:.4f}")  # 1 - 1.7 / (1.7 + 0.3 · 0.2 + 0.7 · 0.3)
    0.1371
    """
    sums, alarm = _sums(logits, labels, where, squared, over_batch, classes, axis_name)
    dtype = sums.hit.dtype
    weights = checks.scalar("alpha", alpha, dtype, 0.0), checks.scalar("beta", beta, dtype, 0.0)
    gamma = checks.scalar("gamma", gamma, dtype, 1.0)
    if squared and not isinstance(alpha, jax.core.Tracer) and not isinstance(beta, jax.core.Tracer) and alpha > beta:
        raise ValueError(
            f"alpha must be at most beta with squared=True; got alpha={float(alpha):g} and beta={float(beta):g}: "
            "a prediction short of the label would then score better than the label itself"
        )
    loss = _power(_ratio(_cost(sums, *weights, squared), sums.hit), gamma)
    return _mean_over_pairs(loss, sums.truth > 0, sums, absent, over_batch, axis_name) + alarm


def generalized_dice_loss(
    logits: Float[ArrayLike, "*pixels classes"],
    labels: Integer[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"],
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    squared: bool = False,
    over_batch: bool = False,
    absent: str = "exclude",
    classes: Sequence[int] | None = None,
    axis_name: Hashable | None = None,
) -> Float[Array, ""]:
    r"""Generalised Dice loss of integer labels: one Dice of all classes, a rare one weighs like a frequent one.

    .. math::
        L = \operatorname{mean}_b \left(1 - \frac{2 \sum_c w_{bc} I_{bc}}{\sum_c w_{bc} (P_{bc} + T_{bc})}\right),
        \qquad w_{bc} = \left(\sum_i t_{bci}\right)^{-2}

    with I, P and T as in `dice_loss`. The mean is over images; `over_batch=True` has only one value.

    Args:
        logits: as in `dice_loss`.
        labels: as in `dice_loss`.
        where: as in `dice_loss`.
        squared: as in `dice_loss`.
        over_batch: as in `dice_loss`.
        absent: the weight of an absent class, whose formula is infinite. "exclude" and "zero": 0, which is the same
            here, for there is no mean over classes in which a zero could be counted. "one": the largest weight of the
            classes present, as MONAI has it, and so its false positives cost, with a gradient. An image in which *all*
            of `classes` are absent is one pair: not counted, counted as 0, or counted as 1.
        classes: as in `dice_loss`: the classes in the two sums.
        axis_name: as in `dice_loss`.

    Returns:
        As `dice_loss`.

    Raises:
        TypeError: as `dice_loss`.
        ValueError: as `dice_loss`.

    References:
        Sudre et al., Generalised Dice overlap as a deep learning loss function, arXiv 1707.03237.

    >>> import jax.numpy as jnp
    >>> p = jnp.array([[0.1, 0.2, 0.2, 0.9]])
    >>> logits = jnp.log(jnp.stack([1 - p, p], axis=-1))
    >>> loss = generalized_dice_loss(logits, jnp.array([[0, 0, 0, 1]]))
    >>> print(f"{loss:.4f}")  # 1 - 2 (2.5 / 9 + 0.9) / (5.6 / 9 + 2.4)
    0.2206
    """
    sums, alarm = _sums(logits, labels, where, squared, over_batch, classes, axis_name)
    present = sums.truth > 0
    # Relative to the rarest class: 1e9 pixels squared would leave float32's range of a weight with any digits.
    rarest = jnp.min(jnp.where(present, sums.truth, jnp.inf), axis=-1, keepdims=True)
    weights = jnp.where(present, rarest / jnp.where(present, sums.truth, 1), 1 if absent == "one" else 0) ** 2
    any_present = jnp.any(present, axis=-1, keepdims=True)
    weights = jnp.where(any_present, weights, 0)
    cost = jnp.sum(weights * _cost(sums, 0.5, 0.5, squared), axis=-1, keepdims=True)
    loss = _ratio(cost, jnp.sum(weights * sums.hit, axis=-1, keepdims=True))
    return _mean_over_pairs(loss, any_present, sums, absent, over_batch, axis_name) + alarm


class _Sums(NamedTuple):
    """Sums over the unmasked pixels of each image (or of the batch), `[images, classes]`; pixels `[images, 1]`."""

    hit: Array  # Σ p t
    miss: Array  # Σ_{t=1} (1 - p)
    error: Array  # plain: Σ_{t=0} p; squared: Σ (p - t)²
    truth: Array  # Σ t
    pixels: Array  # Σ 1


def _sums(
    logits: ArrayLike,
    labels: ArrayLike,
    where: ArrayLike | None,
    squared: bool,
    over_batch: bool,
    classes: Any,
    axis_name: Hashable | None,
) -> tuple[_Sums, Float[Array, ""]]:
    """Returns the sums of all devices, and 0: NaN, in value and gradient, if an unmasked label is not a class."""
    shape = jnp.shape(logits)
    if len(shape) < 3 or shape[-1] < 2:
        raise ValueError(
            "logits must be [batch, ..., classes] with at least one axis of pixels and 2 classes, class last; "
            f"got shape {shape}. A single sigmoid logit z is the two classes (0, z), with classes=(1,)"
        )
    logits, labels, where = softmax_inputs(logits, labels, where)
    where = jnp.ones(labels.shape, bool) if where is None else where
    labels, where = varying_like(labels, logits[..., 0]), varying_like(where, logits[..., 0])
    *by_class, alarm = pixel_sums(logits, labels, where, squared)
    if classes is not None:
        chosen = _class_indices(classes, shape[-1])
        by_class = [total[:, chosen] for total in by_class]
    pixels = jnp.sum(where, axis=tuple(range(1, labels.ndim)), dtype=jnp.int32).astype(logits.dtype)[:, None]
    sums = _Sums(*by_class, pixels)
    if over_batch:
        sums = psum(jax.tree.map(lambda x: jnp.sum(x, axis=0, keepdims=True), sums), axis_name)
    return sums, psum(alarm, axis_name)


def _class_indices(classes: Any, num_classes: int) -> np.ndarray:
    indices = checks.host("classes", classes)
    if (
        indices.ndim != 1
        or indices.size == 0
        or not np.issubdtype(indices.dtype, np.integer)
        or ((indices < 0) | (indices >= num_classes)).any()
        or np.unique(indices).size != indices.size
    ):
        raise ValueError(
            f"classes must be None or a sequence of distinct class indices in [0, {num_classes}), at least one; "
            f"got {classes!r}"
        )
    return indices


def _cost(sums: _Sums, alpha: Any, beta: Any, squared: bool) -> Float[Array, "images classes"]:
    """Returns N, the term beside I in the denominator of TI, from sums that are accurate and not negative."""
    if not squared:
        return alpha * sums.error + beta * sums.miss
    cost = alpha * sums.error + (beta - alpha) * sums.miss
    return jnp.where(cost < 0, 0, cost)


def _ratio(cost: Float[Array, "images classes"], hit: Float[Array, "images classes"]) -> Float[Array, "images classes"]:
    """Returns 1 - TI = N / (I + N), and 0 where both are 0."""
    whole = jax.lax.stop_gradient(hit + cost)
    nothing = whole < jnp.finfo(whole.dtype).tiny
    # Scaled by a constant that cancels: the derivatives of a quotient have squares of I + N, which is tiny if β is 0.
    scale = 1 / jnp.where(nothing, 1, whole)
    cost, hit = cost * scale, hit * scale
    return jnp.where(nothing, 0, cost / jnp.where(nothing, 1, hit + cost))


def _power(base: Float[Array, "images classes"], gamma: Float[Array, ""]) -> Float[Array, "images classes"]:
    """Returns base^γ for γ ≥ 1, with the right derivatives at 0, where the formula's are 0 · ∞."""
    positive = base >= jnp.finfo(base.dtype).tiny
    return jnp.where(positive, jnp.where(positive, base, 1) ** gamma, jnp.where(gamma == 1, base, 0))


def _mean_over_pairs(
    loss: Float[Array, "images pairs"],
    present: Bool[Array, "images pairs"],
    sums: _Sums,
    absent: str,
    over_batch: bool,
    axis_name: Hashable | None,
) -> Float[Array, ""]:
    """Returns the mean over the pairs that `absent` counts, on all devices (over the batch, each has all sums)."""
    checks.choice("absent", absent, ("exclude", "zero", "one"))
    counted = jnp.broadcast_to(sums.pixels > 0, present.shape)
    counted = counted & present if absent == "exclude" else counted
    loss = jnp.where(present, loss, 1 if absent == "one" else 0)
    total, count = jnp.sum(jnp.where(counted, loss, 0)), jnp.sum(counted, dtype=jnp.int32)
    total, count = psum((total, count), None if over_batch else axis_name)
    return total / jnp.maximum(count, 1).astype(total.dtype)
