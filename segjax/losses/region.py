r"""Region losses: Tversky and its special cases Dice and Jaccard, and generalised Dice.

They share these conventions. Sums run over the unmasked pixels of each image, or with `over_batch=True` over those of
all images on all devices. The loss is the mean over the counted (image, class) pairs of all devices, 0 if there is
none. An image without unmasked pixels is not counted. There is no smoothing constant, which would bias small objects.
With `class_weights` w it is the weighted mean over those pairs: Σ w_c L_bc / Σ w_c, 0 if Σ w_c = 0. Only the ratios of
the weights matter, and equal weights change nothing.

A class that labels no unmasked pixel of the image (or batch) is *absent*. `absent` sets the loss of such a pair:
"exclude" (not counted), "zero" or "one". The value is a constant without a gradient: a false positive of an absent
class is penalised only through the classes that are present.

`activation="sigmoid"` is for C ≥ 1 independent channels (multi-label): p = sigmoid(logits), and the labels are booleans
or numbers 0 and 1 in the shape of the logits. A class is then a channel, and `where` may remove a pixel of one channel
only. For a single logit z per pixel: `dice_loss(z[..., None], labels[..., None], activation="sigmoid")`.

*Soft targets*: floating-point labels are a distribution over the classes per pixel, `[..., C]` with sum 1 (softmax), or
a number in [0, 1] per channel (sigmoid). Dice, Jaccard, Tversky and generalised Dice take them in the form of Wang et
al., arXiv 2302.05666, whose value is 0 at p = t and, with α and β above 0, only there:

.. math:: I = \tfrac{1}{2} \sum_i (p_i + t_i - |p_i - t_i|) = \sum_i \min(p_i, t_i) \text{ or, squared, } \sum_i p_i t_i

with :math:`T = \sum_i t_i` or, squared, :math:`\sum_i t_i^2`. For targets of 0 and 1 it is the formula of each loss.
The authors' code and MONAI with `soft_label=True` add a smoothing constant. MONAI's default and
segmentation_models_pytorch have :math:`I = \sum_i p_i t_i` in plain sums too: there a hard prediction is better than
p = t. A class is present if one of its targets is positive. Squared sums with α ≠ β are cut off at 0, so that soft
targets have minima other than p = t.

1 - TI is N / (I + N) with N = α Σ_{t=0} p + β Σ_{t=1} (1 - p), or squared N = α Σ (p - t)² + (β - α) Σ_{t=1} (1 - p).
No term is negative or a difference of close numbers, so the tiny loss of a nearly perfect prediction stays accurate.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from segjax import checks
from segjax.checks import AxisName, ChannelLabels, ChannelWhere, ClassWeights, Logits, Scalar
from segjax.collectives import psum
from segjax.losses._log_odds import channels, pixel_sums, varying_like
from segjax.losses._pairs import (
    PerClass,
    Sums,
    channel_sums,
    check_logits,
    chosen_and_pooled,
    mean_over_pairs,
    pair_weights,
    ratio,
)


def dice_loss(
    logits: Logits,
    labels: ChannelLabels,
    *,
    where: ChannelWhere = None,
    squared: bool = False,
    over_batch: bool = False,
    absent: str = "exclude",
    classes: Sequence[int] | None = None,
    class_weights: ClassWeights | None = None,
    activation: str = "softmax",
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Computes the Dice loss of integer labels: the Tversky loss of α = β = 1/2.

    .. math::
        L = \operatorname{mean}_{b,c} \left(1 - \frac{2 I_{bc}}{P_{bc} + T_{bc}}\right), \qquad
        I = \sum_i p_i t_i, \quad P = \sum_i p_i, \; T = \sum_i t_i \text{ or, squared, } \sum_i p_i^2, \sum_i t_i^2

    with p = softmax(logits), one-hot labels t, pixels i of image b, and classes c.

    Args:
        logits: `[B, ..., C]`: batch, at least one pixel axis, C ≥ 2 classes (sigmoid: C ≥ 1 channels) last.
        labels: integers in [0, C), `[B, ...]`; sigmoid: booleans or numbers 0 and 1, `[B, ..., C]`. Or soft targets,
            floats `[B, ..., C]`. Any other unmasked label gives NaN.
        where: boolean `[B, ...]`, broadcastable; False removes the pixel. Sigmoid: also `[B, ..., C]`.
        squared: static; True: squared sums in the denominator (V-Net).
        over_batch: static; True: one Dice over the batch on all devices instead of one per image.
        absent: "exclude", "zero" or "one": the loss of an absent class.
        classes: static; indices of the classes that count, for instance (1, 2) without background. None: all.
        class_weights: w ≥ 0, `[C]`, of all classes, also with `classes`; may be traced. None: all equal.
        activation: static; "softmax", or "sigmoid" for independent channels.
        axis_name: mapped device axis, or None. Every device gets the same global loss; `pmean` the gradients.

    Returns:
        A scalar in [0, 1], at least float32. Its first two derivatives are finite for |logit| ≤ 1e4.

    Raises: TypeError or ValueError if a dtype or shape does not fit, an option is not valid, or a class weight is
        negative.

    References: Milletari et al., V-Net, arXiv 1606.04797 (squared).

    >>> logits = jnp.log(jnp.array([[[0.1, 0.9], [0.2, 0.8], [0.8, 0.2]]]))  # one image of three pixels
    >>> print(f"{dice_loss(logits, jnp.array([[1, 1, 0]]), classes=(1,)):.4f}")  # 1 - 2 · 1.7 / (1.9 + 2)
    0.1282
    """
    sums, alarm = _sums(logits, labels, where, squared, over_batch, classes, activation, axis_name)
    weights = pair_weights(class_weights, classes, jnp.shape(logits)[-1], sums.hit.dtype)
    loss = ratio(_cost(sums, 0.5, 0.5, squared), sums.hit)
    return mean_over_pairs(loss, sums.truth > 0, sums.pixels, absent, over_batch, axis_name, weights) + alarm


def jaccard_loss(
    logits: Logits,
    labels: ChannelLabels,
    *,
    where: ChannelWhere = None,
    squared: bool = False,
    over_batch: bool = False,
    absent: str = "exclude",
    classes: Sequence[int] | None = None,
    class_weights: ClassWeights | None = None,
    activation: str = "softmax",
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Computes the Jaccard (soft IoU) loss of integer labels: the Tversky loss of α = β = 1.

    .. math:: L = \operatorname{mean}_{b,c} \left(1 - \frac{I_{bc}}{P_{bc} + T_{bc} - I_{bc}}\right)

    Args:
        logits, labels, where, squared, over_batch, absent, classes, class_weights, activation, axis_name: as in
            `dice_loss`, which also defines I, P and T.

    Returns:
        As `dice_loss`.

    Raises: as `dice_loss`.

    References: Rahman and Wang, Optimizing Intersection-Over-Union in Deep Neural Networks, ISVC 2016.

    >>> logits = jnp.log(jnp.array([[[0.1, 0.9], [0.2, 0.8], [0.8, 0.2]]]))
    >>> print(f"{jaccard_loss(logits, jnp.array([[1, 1, 0]]), classes=(1,)):.4f}")  # 1 - 1.7 / (1.9 + 2 - 1.7)
    0.2273
    """
    sums, alarm = _sums(logits, labels, where, squared, over_batch, classes, activation, axis_name)
    weights = pair_weights(class_weights, classes, jnp.shape(logits)[-1], sums.hit.dtype)
    loss = ratio(_cost(sums, 1.0, 1.0, squared), sums.hit)
    return mean_over_pairs(loss, sums.truth > 0, sums.pixels, absent, over_batch, axis_name, weights) + alarm


def tversky_loss(
    logits: Logits,
    labels: ChannelLabels,
    *,
    alpha: Scalar = 0.5,
    beta: Scalar = 0.5,
    gamma: Scalar = 1.0,
    where: ChannelWhere = None,
    squared: bool = False,
    over_batch: bool = False,
    absent: str = "exclude",
    classes: Sequence[int] | None = None,
    class_weights: ClassWeights | None = None,
    activation: str = "softmax",
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Computes the Tversky loss of integer labels; γ ≠ 1 gives the focal Tversky loss.

    .. math::
        L = \operatorname{mean}_{b,c} (1 - TI_{bc})^γ, \qquad TI = \frac{I}{I + α (P - I) + β (T - I)}

    Args:
        logits, labels: as in `dice_loss`, which also defines I, P and T.
        alpha: α ≥ 0, the weight of false positives; may be traced, like β and γ.
        beta: β ≥ 0, that of false negatives. Squared sums need β ≥ α (traced: the loss is cut off at 0).
        gamma: γ > 0. Abraham and Khan's γ is 1/γ here. γ > 1 down-weights pairs that are nearly right. γ < 1
            down-weights all others and needs β > 0; dL/dTI is infinite at TI = 1, dL/dz is 0 there.
        where, squared, over_batch, absent, classes, class_weights, activation, axis_name: as in `dice_loss`.

    Returns:
        As `dice_loss`.

    Raises: as `dice_loss`, or α < 0, β < 0, γ ≤ 0, squared with α > β, or γ < 1 with β = 0 (the last two
        unless traced).

    References: Salehi et al., Tversky loss, arXiv 1706.05721; Abraham and Khan, Focal Tversky loss, arXiv 1810.07842.

    >>> logits = jnp.log(jnp.array([[[0.1, 0.9], [0.2, 0.8], [0.8, 0.2]]]))
    >>> loss = tversky_loss(logits, jnp.array([[1, 1, 0]]), alpha=0.3, beta=0.7, classes=(1,))
    >>> print(f"{loss:.4f}")  # 1 - 1.7 / (1.7 + 0.3 · 0.2 + 0.7 · 0.3)
    0.1371
    """
    sums, alarm = _sums(logits, labels, where, squared, over_batch, classes, activation, axis_name)
    weights = pair_weights(class_weights, classes, jnp.shape(logits)[-1], sums.hit.dtype)
    dtype = sums.hit.dtype
    alpha_beta = checks.scalar("alpha", alpha, dtype, 0.0), checks.scalar("beta", beta, dtype, 0.0)
    exponent = checks.finite("gamma", gamma, dtype, above=0.0)
    if squared and not isinstance(alpha, jax.core.Tracer) and not isinstance(beta, jax.core.Tracer) and alpha > beta:
        raise ValueError(
            f"alpha must be at most beta with squared=True; got alpha={float(alpha):g} and beta={float(beta):g}: "
            "a prediction short of the label would then score better than the label itself"
        )
    if not isinstance(gamma, jax.core.Tracer) and not isinstance(beta, jax.core.Tracer) and gamma < 1 and beta == 0:
        raise ValueError(
            f"beta must be more than 0 with gamma < 1; got beta=0 and gamma={float(gamma):g}: "
            "the slope is then infinite where a class is not predicted"
        )
    loss = _power(ratio(_cost(sums, *alpha_beta, squared), sums.hit), exponent)
    return mean_over_pairs(loss, sums.truth > 0, sums.pixels, absent, over_batch, axis_name, weights) + alarm


def generalized_dice_loss(
    logits: Logits,
    labels: ChannelLabels,
    *,
    where: ChannelWhere = None,
    squared: bool = False,
    over_batch: bool = False,
    absent: str = "exclude",
    classes: Sequence[int] | None = None,
    activation: str = "softmax",
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Computes the generalised Dice loss of integer labels: one Dice, its classes weighted by 1 / size².

    .. math::
        L = \operatorname{mean}_b \left(1 - \frac{2 \sum_c w_{bc} I_{bc}}{\sum_c w_{bc} (P_{bc} + T_{bc})}\right),
        \qquad w_{bc} = \left(\sum_i t_{bci}\right)^{-2}

    Args:
        logits, labels, where, squared, over_batch: as in `dice_loss`, which also defines I, P and T.
        absent: unlike in the other losses, the weight of an absent class: "exclude" and "zero": 0; "one": the largest
            weight of the present classes, so that its false positives are penalised. For an image without any of the
            classes: as in `dice_loss`.
        classes, activation, axis_name: as in `dice_loss`.

    Returns:
        As `dice_loss`.

    Raises: as `dice_loss`.

    References: Sudre et al., Generalised Dice overlap as a deep learning loss function, arXiv 1707.03237.

    >>> logits = jnp.log(jnp.array([[[0.9, 0.1], [0.8, 0.2], [0.8, 0.2], [0.1, 0.9]]]))
    >>> print(f"{generalized_dice_loss(logits, jnp.array([[0, 0, 0, 1]])):.4f}")  # 1 - 2 (2.5/9 + 0.9) / (5.6/9 + 2.4)
    0.2206
    """
    sums, alarm = _sums(logits, labels, where, squared, over_batch, classes, activation, axis_name)
    present = sums.truth > 0
    # Relative to the rarest class, because 1 / (1e9 pixels)² underflows.
    rarest = jnp.min(jnp.where(present, sums.truth, jnp.inf), axis=-1, keepdims=True)
    weights = jnp.where(present, rarest / jnp.where(present, sums.truth, 1), 1 if absent == "one" else 0) ** 2
    any_present = jnp.any(present, axis=-1, keepdims=True)
    weights = jnp.where(any_present, weights, 0)
    cost = jnp.sum(weights * _cost(sums, 0.5, 0.5, squared), axis=-1, keepdims=True)
    loss = ratio(cost, jnp.sum(weights * sums.hit, axis=-1, keepdims=True))
    pixels = jnp.max(sums.pixels, axis=-1, keepdims=True)
    return mean_over_pairs(loss, any_present, pixels, absent, over_batch, axis_name) + alarm


def matthews_loss(
    logits: Logits,
    labels: ChannelLabels,
    *,
    where: ChannelWhere = None,
    over_batch: bool = False,
    absent: str = "exclude",
    classes: Sequence[int] | None = None,
    class_weights: ClassWeights | None = None,
    activation: str = "softmax",
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Computes the Matthews correlation loss: 1 minus the correlation of prediction and label, for each class.

    .. math::
        L = \operatorname{mean}_{b,c} \left(1 - \frac{TP \cdot TN - FP \cdot FN}
        {\sqrt{(TP + FP) (TP + FN) (TN + FP) (TN + FN)}}\right), \qquad
        TP = \sum_i p_i t_i, \; FP = \sum_i p_i (1 - t_i), \;
        FN = \sum_i (1 - p_i) t_i, \; TN = \sum_i (1 - p_i) (1 - t_i)

    It is symmetric: unlike Dice, it also rewards true negatives. The paper's binary loss is that of `classes=(1,)`, or
    of one sigmoid channel. The authors' code pools the batch (`over_batch=True`) and adds 1e-7 under the root;
    segmentation_models_pytorch adds 1e-5 to each of the four sums. Soft targets are not valid: with them the formula
    is not 0 at p = t, and a hard prediction is better than p = t.

    Args:
        logits: as in `dice_loss`.
        labels: as in `dice_loss`, without soft targets: a distribution is a TypeError, and a target of a sigmoid
            channel between 0 and 1 gives NaN.
        where, over_batch: as in `dice_loss`.
        absent: loss of a class that labels none or all of the unmasked pixels, for which the correlation is 0 / 0:
            "exclude", "zero" or "one".
        classes, class_weights, activation, axis_name: as in `dice_loss`.

    Returns:
        A scalar in [0, 2], at least float32: 1 for a constant prediction. Its first two derivatives are finite for
        |logit| ≤ 1e4.

    Raises: as `dice_loss`.

    References: Abhishek and Hamarneh, Matthews Correlation Coefficient Loss, arXiv 2010.13454.

    >>> logits = jnp.log(jnp.array([[[0.1, 0.9], [0.2, 0.8], [0.8, 0.2], [0.9, 0.1]]]))
    >>> labels = jnp.array([[1, 1, 0, 0]])
    >>> print(f"{matthews_loss(logits, labels, classes=(1,)):.4f}")  # 1 - (1.7 · 1.7 - 0.3 · 0.3) / (2 · 2)
    0.3000
    """
    check_logits(jnp.shape(logits), activation)
    x, targets, where, alarm = channels(logits, labels, where, activation)
    pooled = classes, over_batch, axis_name
    positive = chosen_and_pooled(channel_sums(x, targets, where, False), *pooled)
    negative = chosen_and_pooled(channel_sums(-x, ~targets, where, False), *pooled)
    loss = _one_minus_correlation(positive, negative)
    defined = (positive.truth > 0) & (negative.truth > 0)
    weights = pair_weights(class_weights, classes, jnp.shape(logits)[-1], x.dtype)
    return mean_over_pairs(loss, defined, positive.pixels, absent, over_batch, axis_name, weights) + psum(
        alarm, axis_name
    )


def _sums(logits, labels, where, squared, over_batch, classes, activation, axis_name) -> tuple[Sums, Float[Array, ""]]:
    """Returns the sums of all devices, and 0, or NaN with a NaN gradient if an unmasked label is not a class."""
    check_logits(jnp.shape(logits), activation)
    if activation == "softmax" and jnp.ndim(labels) < jnp.ndim(logits):
        logits, labels, where = checks.softmax_inputs(logits, labels, where)
        where = jnp.ones(labels.shape, bool) if where is None else where
        labels, where = varying_like(labels, logits[..., 0]), varying_like(where, logits[..., 0])
        *by_class, alarm = pixel_sums(logits, labels, where, squared)
        pixels = jnp.sum(where, axis=tuple(range(1, where.ndim)), dtype=jnp.int32).astype(logits.dtype)[:, None]
        sums = Sums(*by_class, jnp.broadcast_to(pixels, by_class[0].shape))
    else:
        x, targets, where, alarm = channels(logits, labels, where, activation, soft=True)
        sums = channel_sums(x, targets, where, squared)
    return chosen_and_pooled(sums, classes, over_batch, axis_name), psum(alarm, axis_name)


def _cost(sums: Sums, alpha: Any, beta: Any, squared: bool) -> PerClass:
    """Returns N of 1 - TI = N / (I + N)."""
    if not squared:
        return alpha * sums.error + beta * sums.miss
    cost = alpha * sums.error + (beta - alpha) * sums.miss
    return jnp.where(cost < 0, 0, cost)


def _one_minus_correlation(positive: Sums, negative: Sums) -> PerClass:
    """Returns 1 - MCC from the sums of a class and of its complement; 1 where nothing, or everything, is predicted."""
    positives, negatives = jnp.maximum(positive.truth, 1), jnp.maximum(negative.truth, 1)
    tpr, fnr, fpr, tnr = (
        total / truth
        for total, truth in (
            (positive.hit, positives),
            (positive.miss, positives),
            (negative.miss, negatives),
            (negative.hit, negatives),
        )
    )
    odds = negatives / positives
    # MCC = (TPR - FPR) / √(A B), with A = (TP + FP) / (TP + FN) and B = (TN + FN) / (TN + FP).
    a, b = tpr + odds * fpr, tnr + fnr / odds
    scale_a, scale_b = jax.lax.stop_gradient((a, b))
    nothing = jnp.minimum(scale_a, scale_b) < jnp.finfo(a.dtype).tiny
    a, b, scale_a, scale_b = (jnp.where(nothing, 1, x) for x in (a, b, scale_a, scale_b))
    # TPR - FPR = TNR - FNR. Scaled by constants that cancel, because derivatives have powers of a possibly tiny A or B.
    difference = jnp.where(scale_a <= scale_b, (tpr - fpr) / scale_a, (tnr - fnr) / scale_b)
    factor = jnp.sqrt(jnp.minimum(scale_a, scale_b) / jnp.maximum(scale_a, scale_b))
    far = 1 - factor * difference / jnp.sqrt((a / scale_a) * (b / scale_b))
    # Near 1 without cancellation: 1 - m / √(AB) = (AB - m²) / (√(AB) (√(AB) + m)), and no term of AB - m² is negative.
    m = tpr - fpr
    is_near = jnp.minimum(tpr, tnr) > 0.75
    cost = m * (fnr + fpr) + 2 * fnr * fpr + fnr * tpr / odds + odds * fpr * tnr
    root = jnp.sqrt(jnp.where(is_near, a * b, 1))
    near = cost / jnp.where(is_near, root * (root + m), 1)
    return jnp.where(nothing, 1, jnp.where(is_near, near, far))


def _power(base: PerClass, gamma: Float[Array, ""]) -> PerClass:
    """Returns base^γ for γ > 0, with finite derivatives at 0, where the formula has 0 · ∞: it begins as a line."""
    tiny = jnp.asarray(jnp.finfo(base.dtype).tiny, base.dtype)
    end_of_line = jnp.where(gamma < 1, jnp.sqrt(tiny), tiny)  # the second derivative has the factor base^(γ - 2)
    beyond = base >= end_of_line
    return jnp.where(beyond, jnp.where(beyond, base, 1) ** gamma, base * end_of_line ** (gamma - 1))
