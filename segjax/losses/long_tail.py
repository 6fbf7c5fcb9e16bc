"""Per-pixel losses for long-tailed classes: margins, penalties and focusing that depend on how rare a class is.

They share the conventions of `segjax.losses.classification`. `counts` are pixels per class of the training set, or
frequencies: only their ratios matter. They may be traced. A class without pixels counts as the rarest class that has
some. `logit_adjustment` and `class_weights` serve the same purpose with any loss.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import log_sigmoid
from jaxtyping import Array, Float

from segjax import checks
from segjax.checks import ClassWeights, Labels, Logits, Scalar, Where
from segjax.losses import _log_odds as numerics


def ldam_loss(
    logits: Logits,
    labels: Labels,
    counts: ClassWeights,
    *,
    max_margin: Scalar = 0.5,
    scale: Scalar = 30.0,
    class_weights: ClassWeights | None = None,
    where: Where = None,
) -> Float[Array, "*pixels"]:
    r"""Computes the label-distribution-aware margin loss per pixel: rare classes have to win by a larger margin.

    .. math::
        L = -w_y \log \frac{e^{s (z_y - Δ_y)}}{e^{s (z_y - Δ_y)} + \sum_{j \ne y} e^{s z_j}}, \qquad
        Δ_c = Δ_{max} \left(\frac{\min_j n_j}{n_c}\right)^{1/4}

    The defaults are those of the authors' code, whose logits are cosines in [-1, 1] of normalised features and weights.
    For the logits of a linear head take `scale=1` and a margin in nats. Predict from the logits, without margins.

    The paper's deferred re-weighting (DRW) leaves out the class weights until the learning rate first falls, after
    80 % of the authors' epochs. With a traced step:
    `class_weights=jnp.where(step < start, 1, class_weights(counts, "effective-number", beta=beta))`.

    Args:
        logits: z, `[..., C]`, C ≥ 2.
        labels: y, integers in [0, C), `[...]`.
        counts: n, `[C]`: pixels per class of the training set, or frequencies.
        max_margin: Δ_max ≥ 0, the margin of the rarest class.
        scale: s > 0.
        class_weights: w ≥ 0, `[C]`; default 1. See `segjax.losses.class_weights`.
        where: boolean `[...]`; False removes the pixel.

    Returns:
        `[...]`, in nats, at least float32.

    Raises: TypeError or ValueError if a dtype or shape does not fit, a count or weight is negative, Δ_max < 0, or
        s ≤ 0.

    References: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, arXiv 1906.07413.

    >>> loss = ldam_loss(jnp.zeros((2, 2)), jnp.array([0, 1]), np.array([1600, 100]), max_margin=1.0, scale=1.0)
    >>> print(loss.round(4))  # margins 1/2 and 1: log(1 + e^Δ)
    [0.9741 1.3133]
    """
    logits, labels, where = checks.softmax_inputs(logits, labels, where)
    num_classes, dtype = logits.shape[-1], logits.dtype
    max_margin = checks.scalar("max_margin", max_margin, dtype, 0.0)
    scale = checks.finite("scale", scale, dtype, above=0.0)
    weights = None if class_weights is None else checks.per_class("class_weights", class_weights, num_classes, dtype)
    margins = max_margin * _relative_counts(counts, num_classes, dtype) ** -0.25

    logits = numerics.mask_logits(logits, where)
    x = numerics.softmax_log_odds(scale * logits, labels, where) - scale * numerics.weight_of_label(margins, labels)
    loss = -log_sigmoid(x)
    if weights is not None:
        loss = numerics.weight_of_label(weights, labels) * loss
    return numerics.mask_to_zero(loss, where)


def seesaw_loss(
    logits: Logits,
    labels: Labels,
    counts: ClassWeights,
    *,
    p: Scalar = 0.8,
    q: Scalar = 2.0,
    min_score: Scalar = 0.01,
    where: Where = None,
) -> Float[Array, "*pixels"]:
    r"""Computes the seesaw loss per pixel: pixels of frequent classes push the logits of rare classes down less.

    .. math::
        L = -\log \frac{e^{z_y}}{e^{z_y} + \sum_{j \ne y} M_{yj} C_{yj} e^{z_j}}, \qquad
        M_{yj} = \min\left(1, \frac{n_j}{n_y}\right)^p, \qquad
        C_{yj} = \max\left(1, \frac{σ_j}{\max(σ_y, σ_{min})}\right)^q

    with σ = softmax(z), a constant for the gradient. The mitigation factor M reduces the penalty on classes that
    are rarer than the label's. The compensation factor C restores the penalty of a class that scores higher than the
    label's. σ_min is 0 in the paper and 0.01 in mmdet, the authors' code.

    mmdet has no counts before training. It accumulates those of each batch, per process, before it computes the loss.
    Counts below 1 are raised to 1. To do the same, keep the sum in your training state and pass it here; the counts of
    the training set need no state. mmdet's normalised classifier and its background logit are not part of this loss.

    Args:
        logits: z, `[..., C]`, C ≥ 2.
        labels: y, integers in [0, C), `[...]`.
        counts: n, `[C]`: pixels per class, or frequencies.
        p: exponent of the mitigation, p ≥ 0. 0 turns it off.
        q: exponent of the compensation, q ≥ 0. 0 turns it off.
        min_score: σ_min in [0, 1].
        where: boolean `[...]`; False removes the pixel.

    Returns:
        `[...]`, in nats, at least float32. p = q = 0 is `softmax_cross_entropy`.

    Raises: TypeError or ValueError if a dtype or shape does not fit, a count, p or q is negative, or σ_min is outside
        [0, 1].

    References: Wang et al., Seesaw Loss for Long-Tailed Instance Segmentation, arXiv 2008.10032.

    >>> print(seesaw_loss(jnp.zeros((2, 2)), jnp.array([0, 1]), np.array([900, 100]), p=1.0).round(4))  # log(1 + 1/9)
    [0.1054 0.6931]
    """
    logits, labels, where = checks.softmax_inputs(logits, labels, where)
    num_classes, dtype = logits.shape[-1], logits.dtype
    p, q = checks.scalar("p", p, dtype, 0.0), checks.scalar("q", q, dtype, 0.0)
    min_score = checks.scalar("min_score", min_score, dtype, 0.0, 1.0)
    log_n = jnp.log(_relative_counts(counts, num_classes, dtype))

    logits = numerics.mask_logits(logits, where)
    logits = logits - lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))  # a large offset would round log M
    log_score = jax.nn.log_softmax(lax.stop_gradient(logits))
    own = numerics.is_label(labels, num_classes)
    log_own_score = jnp.sum(jnp.where(own, log_score, 0), axis=-1, keepdims=True)
    log_ratio = jnp.broadcast_to(log_n, logits.shape) - numerics.weight_of_label(log_n, labels)[..., None]
    log_m = p * jnp.minimum(log_ratio, 0)
    log_c = q * jnp.maximum(log_score - jnp.maximum(log_own_score, jnp.log(lax.stop_gradient(min_score))), 0)
    x = numerics.softmax_log_odds(logits + log_m + log_c, labels, where)  # both factors are 1 for the label's class
    return numerics.mask_to_zero(-log_sigmoid(x), where)


def asymmetric_focal_loss(
    logits: Logits,
    labels: Labels,
    *,
    rare: Sequence[int],
    delta: Scalar = 0.7,
    gamma: Scalar = 2.0,
    where: Where = None,
) -> Float[Array, "*pixels"]:
    r"""Computes the asymmetric focal loss per pixel: it down-weights easy pixels, except those of the rare classes.

    .. math::
        L = \begin{cases} -δ \log p_y & y \text{ rare} \\ -(1 - δ) (1 - p_y)^γ \log p_y & \text{otherwise} \end{cases},
        \qquad p = softmax(z)

    The asymmetric unified focal loss is its mean and the asymmetric focal Tversky loss, in which only the rare classes
    have an exponent, 1 - γ. With classes 0 and 1, δ = 0.6, γ = 0.5 and equal parts of both:

        0.5 * mean(asymmetric_focal_loss(logits, labels, rare=(1,), delta=0.6, gamma=0.5))
        + 0.25 * tversky_loss(logits, labels, alpha=0.4, beta=0.6, classes=(0,))
        + 0.25 * tversky_loss(logits, labels, alpha=0.4, beta=0.6, gamma=0.5, classes=(1,))

    Args:
        logits: z, `[..., C]`, C ≥ 2; a binary network's are 0 and z, with `rare=(1,)`.
        labels: y, integers in [0, C), `[...]`.
        rare: static; indices of the rare classes. The authors' code has two classes and rare class 1; MONAI treats
            all classes except 0 as rare and also divides by C.
        delta: δ in [0, 1], the weight of the rare classes.
        gamma: focusing parameter γ ≥ 0 of the other classes.
        where: boolean `[...]`; False removes the pixel.

    Returns:
        `[...]`, in nats, at least float32. δ = 1/2 and γ = 0 is half of `softmax_cross_entropy`.

    Raises: TypeError or ValueError if a dtype or shape does not fit, `rare` is not valid, δ is outside [0, 1], or
        γ < 0.

    References: Yeung et al., Unified Focal Loss: Generalising Dice and Cross Entropy-Based Losses to Handle Class
        Imbalanced Medical Image Segmentation, arXiv 2102.04525.

    >>> print(asymmetric_focal_loss(jnp.zeros((2, 2)), jnp.array([0, 1]), rare=(1,)) / jnp.log(2))  # 0.3 / 4 and 0.7
    [0.075 0.7  ]
    """
    logits, labels, where = checks.softmax_inputs(logits, labels, where)
    num_classes, dtype = logits.shape[-1], logits.dtype
    is_rare = np.isin(np.arange(num_classes), checks.class_indices("rare", rare, num_classes, optional=False))
    delta = checks.scalar("delta", delta, dtype, 0.0, 1.0)
    gamma = checks.scalar("gamma", gamma, dtype, 0.0)

    x = numerics.softmax_log_odds(logits, labels, where)
    rare_label = numerics.weight_of_label(jnp.asarray(is_rare, dtype), labels) == 1
    focus = jnp.where(rare_label, delta, (1 - delta) * jnp.exp(gamma * log_sigmoid(-x)))
    return numerics.mask_to_zero(focus * -log_sigmoid(x), where)


def _relative_counts(counts: Any, num_classes: int, dtype: jnp.dtype) -> Float[Array, "classes"]:
    """Returns n_c / min n ≥ 1; a class without pixels counts as the rarest class that has some."""
    if not isinstance(counts, jax.Array):
        counts = np.asarray(checks.host("counts", counts), np.float64)  # JAX would wrap integers beyond 2^31
    counts = checks.per_class("counts", counts, num_classes, dtype)
    rarest = jnp.min(counts, where=counts > 0, initial=jnp.finfo(dtype).max)
    return jnp.maximum(counts / rarest, 1)
