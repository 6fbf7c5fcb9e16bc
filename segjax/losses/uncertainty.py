"""Uncertainty in the objective: the variance over dropout heads, and penalties on uncertain or overconfident pixels.

The Cityscapes U-Net recipe (Regressionist/Semantic-Segmentation-UNet) adds a multiple of the mean penalty to its loss.
"""

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from segjax import checks
from segjax.checks import AxisName, ChannelLabels, ChannelWhere, ClassWeights, Logits, PerPixel, Scalar, Where
from segjax.collectives import psum
from segjax.losses._log_odds import channels, mask_to_zero, softmax_log_odds
from segjax.losses._pairs import check_logits, mean_over_pairs, pair_weights, pooled


def mc_variance(
    mc_logits: Float[ArrayLike, "heads *pixels classes"], *, where: Where = None
) -> Float[Array, "*pixels"]:
    r"""Computes the unbiased variance of the logits over dropout heads, averaged over the classes.

    .. math::
        v = \frac{1}{C} \sum_c \frac{1}{K - 1} \sum_k (z_{kc} - \bar z_c)^2, \qquad \bar z_c = \frac{1}{K} \sum_k z_{kc}

    Args:
        mc_logits: z, `[K, ..., C]`, K ≥ 2 heads first, C classes last.
        where: boolean `[...]`, broadcastable; a pixel with False has variance 0 and gradient 0, even if it is NaN.

    Returns:
        v, `[...]`, in logits squared, at least float32.

    Raises: TypeError or ValueError if a dtype or shape does not fit, or K < 2.

    References: Gal and Ghahramani, Dropout as a Bayesian Approximation, arXiv 1506.02142.

    >>> print(mc_variance(jnp.array([[[1.0, 0.0]], [[2.0, 0.0]], [[3.0, 3.0]]])))  # class variances 1 and 3
    [2.]
    """
    mc_logits = checks.floating("mc_logits", mc_logits)
    if mc_logits.ndim < 2 or mc_logits.shape[-1] == 0:
        expected = "[heads, ..., classes], head first and class last"
        raise ValueError(f"mc_logits must be {expected}; got shape {mc_logits.shape}")
    heads = mc_logits.shape[0]
    if heads < 2:
        why = "since the unbiased variance divides by heads - 1"
        raise ValueError(f"mc_logits must hold at least 2 heads, {why}; got {heads} (shape {mc_logits.shape})")
    if where is not None:
        mc_logits = jnp.where(checks.mask("where", where, mc_logits.shape[1:-1])[None, ..., None], mc_logits, 0)
    # Without the offset that the heads share, the mean loses no digits.
    deviations = mc_logits - jax.lax.stop_gradient(mc_logits[:1])
    deviations = deviations - jnp.mean(deviations, axis=0, keepdims=True)
    return jnp.mean(jnp.sum(deviations**2, axis=0) / (heads - 1), axis=-1)


def uncertainty_penalty(
    variance: PerPixel, logits: Logits, background: SupportsIndex | None, *, where: Where = None
) -> Float[Array, "*pixels"]:
    r"""Returns the variance per pixel, weighted by the probability that the pixel is not background.

    .. math:: U = v \, (1 - p_b), \qquad p = softmax(z)

    The factor keeps the large, uncertain rim of the background from dominating the objects. Gradients flow through
    variance and logits, as in the recipe: the loss also falls when an uncertain pixel becomes background.

    Args:
        variance: v ≥ 0, `[...]`: `mc_variance(mc_logits)`, or `logit_variance.mean(-1)` of analytic dropout.
        logits: z, `[..., C]`, class last, of the pass without dropout. C ≥ 2 unless `background` is None.
        background: b in [0, C), static. None: the penalty is the variance, and the logits have no effect.
        where: boolean `[...]`, broadcastable; a pixel with False has penalty 0 and gradient 0.

    Returns:
        U, `[...]`, in logits squared, at least float32.

    Raises: TypeError or ValueError if a dtype or shape does not fit, or `background` is not an integer in [0, C).

    References: Kendall and Gal, What Uncertainties Do We Need in Bayesian Deep Learning?, arXiv 1703.04977.

    >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.5, 0.5]]))
    >>> print(uncertainty_penalty(jnp.array([2.0, 2.0]), logits, background=0).round(4))
    [0.5 1. ]
    """
    logits = checks.floating("logits", logits)
    if logits.ndim == 0:
        raise ValueError("logits must be [..., classes], class last; got a scalar")
    variance = checks.floating("variance", variance)
    if variance.shape == logits.shape:
        raise ValueError(
            f"variance must have one value per pixel, shape {logits.shape[:-1]}; got one per class, {variance.shape}: "
            "give their mean, variance.mean(-1)"
        )
    checks.same_shape("variance", variance.shape, "logits without their class axis", logits.shape[:-1])
    dtype = max(variance.dtype, logits.dtype, key=lambda dtype: dtype.itemsize)
    variance, logits = variance.astype(dtype), logits.astype(dtype)
    if background is not None:
        background = _class_index(background, logits.shape[-1])
    keep = None if where is None else checks.mask("where", where, variance.shape)

    variance = mask_to_zero(variance, keep)
    if background is None:
        return variance
    x = softmax_log_odds(logits, jnp.full(variance.shape, background, jnp.int32), keep)
    return mask_to_zero(variance * jax.nn.sigmoid(-x), keep)  # 1 - p_b = σ(-x)


def uniform_cross_entropy(logits: Logits, *, where: Where = None) -> Float[Array, "*pixels"]:
    r"""Returns the cross entropy from the uniform distribution to the prediction, the loss of outlier exposure.

    .. math:: \ell = -\frac{1}{C} \sum_c \log p_c = \log \sum_c e^{z_c} - \frac{1}{C} \sum_c z_c, \qquad p = softmax(z)

    Minimising it on pixels outside the label set drives the prediction towards equal probabilities. The minimum is
    log C, at equal logits.

    Args:
        logits: z, `[..., C]`, class last, C ≥ 2.
        where: boolean `[...]`, broadcastable; a pixel with False has loss 0 and gradient 0.

    Returns: ℓ, `[...]`, in nats, at least float32; inf where an unmasked logit is -inf.
    Raises: TypeError or ValueError if a dtype or shape does not fit, or C < 2.
    References: Hendrycks et al., Deep Anomaly Detection with Outlier Exposure, arXiv 1812.04606.

    >>> print(uniform_cross_entropy(jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))).round(4))
    [0.6931 1.204 ]
    """
    logits = checks.classes("logits", logits)
    keep = checks.mask("where", where, logits.shape[:-1])
    logits = jnp.where(keep[..., None], logits, 0)
    return jnp.where(keep, jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1), 0)


def logit_margin_penalty(logits: Logits, *, margin: Scalar = 10.0, where: Where = None) -> Float[Array, "*pixels"]:
    r"""Returns the penalty of logits that are farther than a margin below the largest, against overconfidence.

    .. math:: \ell = \frac{1}{C} \sum_c \max(0,\; \max_k z_k - z_c - m)

    Added to the cross entropy, it acts like label smoothing, but only on overconfident pixels: within the margin, it
    is 0.

    Args:
        logits: z, `[..., C]`, class last, C ≥ 2; a binary network's are 0 and z.
        margin: m ≥ 0; may be traced. 10 allows a probability of 1 - 5e-5.
        where: boolean `[...]`, broadcastable; a pixel with False has penalty 0 and gradient 0.

    Returns: ℓ, `[...]`, at least float32; inf where an unmasked logit is -inf.
    Raises: TypeError or ValueError if a dtype or shape does not fit, C < 2, or the margin is negative.
    References: Liu et al., The Devil is in the Margin: Margin-based Label Smoothing for Network Calibration, CVPR 2022,
        arXiv 2111.15430.

    >>> print(logit_margin_penalty(jnp.array([[14.0, 0.0], [6.0, 0.0]]), margin=10.0))
    [2. 0.]
    """
    logits = checks.classes("logits", logits)
    margin = checks.scalar("margin", margin, logits.dtype, 0.0)
    keep = checks.mask("where", where, logits.shape[:-1])
    logits = jnp.where(keep[..., None], logits, 0)
    below = jnp.max(logits, axis=-1, keepdims=True) - logits
    return jnp.where(keep, jnp.mean(jax.nn.relu(below - margin), axis=-1), 0)


def average_calibration_loss(
    logits: Logits,
    labels: ChannelLabels,
    *,
    num_bins: int = 20,
    where: ChannelWhere = None,
    over_batch: bool = False,
    classes: Sequence[int] | None = None,
    class_weights: ClassWeights | None = None,
    activation: str = "softmax",
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Computes the average calibration error (L1-ACE) of every class, an auxiliary loss against overconfidence.

    .. math::
        L = \operatorname{mean}_{b,c} \frac{1}{|M_{bc}|} \sum_{m \in M_{bc}} \left|
        \frac{1}{n_{bcm}} \sum_{i \in m} (p_{bci} - t_{bci}) \right|

    The pixels of image b are in B bins by their probability p of class c, :math:`p \in (m / B, (m + 1) / B]`, and p = 0
    is in the first. :math:`M_{bc}` are the bins that are not empty, each of :math:`n_{bcm}` pixels. The bin of a pixel
    is a constant: the gradient moves the mean probability of a bin towards the frequency of the class in it. Every bin
    counts the same, however few pixels it has. Unlike ECE, the loss is therefore not dominated by the easy background.

    Bins and means are those of the authors' code, in which `right=False` closes the bins at the right too. The authors
    add it to the Dice loss and the cross entropy, with equal weights.

    Args:
        logits: `[B, ..., C]`; p = softmax(logits), or sigmoid(logits).
        labels: integers in [0, C), `[B, ...]`; sigmoid: booleans or numbers 0 and 1, `[B, ..., C]`. Another unmasked
            label gives NaN.
        num_bins: B ≥ 1, static. The work grows with it.
        where: boolean `[B, ...]`, broadcastable; False removes the pixel. Sigmoid: also `[B, ..., C]`.
        over_batch: static; True: one set of bins for the batch on all devices, instead of one per image.
        classes: static; indices of the classes that count. None: all, those that label no pixel included.
        class_weights: w ≥ 0, `[C]`; the mean over the classes is weighted by them. None: all equal.
        activation: static; "softmax", or "sigmoid" for independent channels.
        axis_name: mapped device axis, or None. Every device gets the same global loss; `pmean` the gradients.

    Returns: A scalar in [0, 1], at least float32; 0 without an unmasked pixel. Its derivatives are finite.
    Raises: TypeError or ValueError if a dtype or shape does not fit, an option is not valid, or a weight is negative.
    References: Barfoot et al., Average Calibration Error: A Differentiable Loss for Improved Reliability in Image
        Segmentation, MICCAI 2024, arXiv 2403.06759.

    >>> logits = jnp.log(jnp.array([[[0.1, 0.9], [0.1, 0.9], [0.4, 0.6]]]))
    >>> loss = average_calibration_loss(logits, jnp.array([[1, 0, 1]]), classes=(1,))
    >>> print(f"{loss:.4f}")  # (|0.9 - 1/2| + |0.6 - 1|) / 2
    0.4000
    """
    check_logits(jnp.shape(logits), activation)
    if isinstance(num_bins, bool) or not isinstance(num_bins, int | np.integer) or num_bins < 1:
        raise ValueError(f"num_bins must be an integer of at least 1; got {num_bins!r}")
    x, targets, where, alarm = channels(logits, labels, where, activation)
    weights = pair_weights(class_weights, classes, x.shape[-1], x.dtype)
    p = jax.nn.sigmoid(x)
    error = jnp.where(targets, -jax.nn.sigmoid(-x), p)  # p - t
    bins = jnp.clip(jnp.ceil(jax.lax.stop_gradient(p) * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)
    axes = tuple(range(1, x.ndim - 1))

    @partial(jax.checkpoint, prevent_cse=False)  # keeps no array per bin
    def bin_sums(number):
        inside = where & (bins == number)
        return jnp.sum(jnp.where(inside, error, 0), axis=axes), jnp.sum(inside, axis=axes, dtype=jnp.int32)

    sums = (jnp.moveaxis(values, 0, -1) for values in lax.map(bin_sums, jnp.arange(num_bins, dtype=bins.dtype)))
    if classes is not None:
        chosen = checks.class_indices("classes", classes, x.shape[-1])
        sums = (values[:, chosen] for values in sums)
    total, count = pooled(tuple(sums), over_batch, axis_name)
    filled = jnp.sum(count > 0, axis=-1).astype(x.dtype)
    means = jnp.abs(total) / jnp.maximum(count, 1).astype(x.dtype)
    loss = jnp.sum(means, axis=-1) / jnp.maximum(filled, 1)
    loss = mean_over_pairs(loss, filled > 0, filled, "exclude", over_batch, axis_name, weights)
    return loss + psum(alarm, axis_name)


def _class_index(background: Any, num_classes: int) -> int:
    try:
        index = operator.index(background)
    except TypeError as error:
        expected = "a class index, an integer known at compile time, or None"
        raise TypeError(f"background must be {expected}; got {background!r}") from error
    if num_classes < 2:
        raise ValueError(f"logits must have at least 2 classes for one of them to be the background; got {num_classes}")
    if not 0 <= index < num_classes:
        raise ValueError(f"background must be a class index in [0, {num_classes}); got {index}")
    return index
