"""Losses of shape: centre lines (clDice) and the distance to the boundary.

They take softmax classes or independent sigmoid channels, as the region losses do (`segjax.losses.region`). Void pixels
are treated as if the image ended there: erosion and dilation ignore them, and no distance is measured to them.
"""

from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from segjax import checks
from segjax.checks import AxisName, ChannelLabels, ChannelWhere, ClassWeights, Logits, Scalar
from segjax.collectives import psum
from segjax.distance import distance_to
from segjax.losses._log_odds import channels
from segjax.losses._pairs import channel_sums, check_logits, mean_over_pairs, pair_weights, pooled, ratio


def cl_dice_loss(
    logits: Logits,
    labels: ChannelLabels,
    *,
    alpha: Scalar = 0.5,
    iterations: int = 3,
    smooth: Scalar = 1.0,
    where: ChannelWhere = None,
    over_batch: bool = False,
    absent: str = "exclude",
    classes: Sequence[int] | None = None,
    class_weights: ClassWeights | None = None,
    activation: str = "softmax",
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Computes the Dice loss and the centre-line Dice (clDice) loss of thin structures, weighted 1 - α and α.

    .. math::
        L = (1 - α) L_{Dice} + α \operatorname{mean}_{b,c} \left(1 - \frac{2 T_p T_s}{T_p + T_s}\right), \qquad
        T_p = \frac{\sum_i S(p)_i t_i + ε}{\sum_i S(p)_i + ε}, \qquad
        T_s = \frac{\sum_i S(t)_i p_i + ε}{\sum_i S(t)_i + ε}

    with the probabilities p, the labels t and the soft skeleton S, the sum of what successive openings remove:

    .. math::
        S_0 = p_0 - \operatorname{open}(p_0), \qquad
        S_k = S_{k-1} + (1 - S_{k-1}) (p_k - \operatorname{open}(p_k)), \qquad
        p_k = \operatorname{erode}(p_{k-1})

    Erosion takes the minimum over a pixel and its four neighbours. Opening is erosion followed by dilation, the maximum
    over 3 × 3 pixels. The loss rewards an unbroken centre line, however thick the line around it is. α = 0 gives
    `dice_loss`.

    The authors' code has the same skeleton, ε and α. It sums over batch and classes at once, without class 0, and its
    Dice has an ε too; here that is `dice_loss`, per image and class and without ε. The paper recommends α ≤ 0.5. Soft
    targets are not valid: the centre line is that of a set of pixels, and with them the loss is not 0 at p = t.

    Args:
        logits: `[B, H, W, C]`.
        labels: `[B, H, W]`, or with sigmoid channels `[B, H, W, C]`; as in `matthews_loss`.
        alpha: α in [0, 1]; may be traced, like ε.
        iterations: static; at least half of the width of the thickest structure, in pixels.
        smooth: ε > 0. A flat prediction has no skeleton, and T_p would be 0 / 0.
        where, over_batch: as in `dice_loss`.
        absent: as in `dice_loss`. For clDice, a class is also absent if its labels have no skeleton, because they fill
            the image.
        classes, class_weights, activation, axis_name: as in `dice_loss`.

    Returns:
        A scalar in [0, 1], at least float32. Its derivatives are finite for |logit| ≤ 1e4.

    Raises: as `dice_loss`, or α is outside [0, 1], ε is not positive, or `iterations` is not an integer of at least 0.

    References: Shit et al., clDice, arXiv 2003.07311.

    >>> line = jnp.zeros((1, 7, 7, 1), bool).at[:, 3].set(True)
    >>> broken = jnp.where(line, 9.0, -9.0).at[:, 3, 3].set(-9.0)
    >>> for alpha in (0, 1):
    ...     print(f"{cl_dice_loss(broken, line, alpha=alpha, activation='sigmoid'):.3f}")
    0.077
    0.067
    """
    check_logits(jnp.shape(logits), activation)
    if jnp.ndim(logits) != 4:
        raise ValueError(f"logits must be [batch, height, width, classes]; got shape {jnp.shape(logits)}")
    if isinstance(iterations, bool) or not isinstance(iterations, int | np.integer) or iterations < 0:
        raise ValueError(f"iterations must be an integer of at least 0; got {iterations!r}")
    num_classes = jnp.shape(logits)[-1]
    alpha = checks.scalar("alpha", alpha, jnp.float32, 0.0, 1.0)
    smooth = checks.finite("smooth", smooth, jnp.float32, above=0.0)
    x, targets, where, alarm = channels(logits, labels, where, activation)
    x, targets, where = (_of_classes(values, classes) for values in (x, targets, where))
    alpha, smooth = alpha.astype(x.dtype), smooth.astype(x.dtype)
    weights = pair_weights(class_weights, classes, num_classes, x.dtype)
    mean = partial(mean_over_pairs, absent=absent, over_batch=over_batch, axis_name=axis_name, weights=weights)

    sums = pooled(channel_sums(x, targets, where, False), over_batch, axis_name)
    dice = mean(ratio(0.5 * (sums.error + sums.miss), sums.hit), sums.truth > 0, sums.pixels)

    p, not_p, t = jax.nn.sigmoid(x), jax.nn.sigmoid(-x), targets.astype(x.dtype)
    predicted, true = _soft_skeleton(p, where, iterations), _soft_skeleton(t, where, iterations)
    lines = predicted * t, predicted * (1 - t), true * p, true * not_p, true
    on_label, off_label, found, missed, length = pooled([jnp.sum(x, axis=(1, 2)) for x in lines], over_batch, axis_name)
    # T_p = h_p / (h_p + off) and T_s = h_s / (h_s + missed), without a difference of close numbers.
    hit_p, hit_s = on_label + smooth, found + smooth
    cost = off_label * hit_s + missed * hit_p
    cl_dice = mean(cost / (cost + 2 * hit_p * hit_s), length > 0, sums.pixels)
    return (1 - alpha) * dice + alpha * cl_dice + psum(alarm, axis_name)


def boundary_loss(
    logits: Logits,
    labels: ChannelLabels,
    *,
    where: ChannelWhere = None,
    classes: Sequence[int] | None = None,
    activation: str = "softmax",
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Computes the boundary loss: the mean of the wrongly assigned probability times its distance to the boundary.

    .. math::
        L = \frac{1}{n} \sum_{c,i} φ_{ci} (p_{ci} - t_{ci}) = \frac{1}{n} \sum_{c,i} |φ_{ci}| |p_{ci} - t_{ci}|, \qquad
        φ_{ci} = \begin{cases} d(i, G_c) & t_{ci} = 0 \\ 1 - d(i, \bar G_c) & t_{ci} = 1 \end{cases}

    with the n unmasked pixels times classes, the pixels :math:`G_c` of class c in the image, its other pixels
    :math:`\bar G_c`, and the Euclidean distance d between pixel centres. The signed distance φ is the authors': 1
    outside next to the boundary, 0 inside next to it. A class that labels none or all of the unmasked pixels of an
    image has no boundary: φ = 0.

    The authors leave out the constant -Σ φ t / n ≥ 0. Their value is lower by it and may be negative; the gradients are
    equal. They add the loss to a region loss with a weight that grows from 0.01: alone, it hardly moves an empty
    prediction. The distances of an image take O(C H² W) time. Soft targets are not valid: only a set of pixels has a
    boundary.

    Args:
        logits: `[..., H, W, C]`; p = softmax(logits), or sigmoid(logits).
        labels: `[..., H, W]`, or with sigmoid channels `[..., H, W, C]`; as in `matthews_loss`.
        where: as in `dice_loss`. Distances are to unmasked pixels only.
        classes, activation, axis_name: as in `dice_loss`.

    Returns:
        A scalar ≥ 0, in pixels, at least float32; 0 without an unmasked pixel. Its derivatives are finite.

    Raises: as `dice_loss`.

    References: Kervadec et al., Boundary loss for highly unbalanced segmentation, arXiv 1812.07032.

    >>> labels = jnp.array([[[0, 0, 0, 1, 1]]])
    >>> logits = jnp.log(jnp.array([0.9, 0.1])) * jnp.ones((1, 1, 5, 1))  # p = 0.1 everywhere
    >>> print(f"{boundary_loss(logits, labels, classes=(1,)):.3f}")  # (3 · 0.1 + 2 · 0.1 + 0.1 + 0 + 1 · 0.9) / 5
    0.300
    """
    check_logits(jnp.shape(logits), activation)
    x, targets, where, alarm = channels(logits, labels, where, activation)
    x, targets, where = (_of_classes(values, classes) for values in (x, targets, where))
    distance = _boundary_distance(targets, where).astype(x.dtype)
    error = jax.nn.sigmoid(jnp.where(targets, -x, x))
    total, count = psum((jnp.sum(distance * error), jnp.sum(where, dtype=jnp.int32)), axis_name)
    return total / jnp.maximum(count, 1).astype(total.dtype) + psum(alarm, axis_name)


def _of_classes(values: Array, classes: Sequence[int] | None) -> Array:
    """Returns the classes that count, by slices: a TPU gathers one number after another."""
    if classes is None:
        return values
    return jnp.stack([values[..., c] for c in checks.class_indices("classes", classes, values.shape[-1])], axis=-1)


def _boundary_distance(
    targets: Bool[Array, "*images height width classes"], where: Bool[Array, "*images height width classes"]
) -> Float[Array, "*images height width classes"]:
    """Returns |φ|, 0 at void and where an image has pixels of one side only."""
    sides = jnp.moveaxis(jnp.stack([targets & where, ~targets & where]), -1, -3)
    to_inside, to_outside = jnp.moveaxis(distance_to(sides), -3, -1)
    distance = jnp.where(targets, to_outside - 1, to_inside)
    return jnp.where(where & jnp.isfinite(distance), distance, 0)


def _soft_skeleton(
    p: Float[Array, "batch height width classes"], where: Bool[Array, "batch height width classes"], iterations: int
) -> Float[Array, "batch height width classes"]:
    """Returns S(p), 0 at void."""

    @partial(jax.checkpoint, prevent_cse=False)  # keeps the carry of each step only
    def step(carry, _):
        p, skeleton = carry
        eroded = _erode(p, where)
        return (eroded, skeleton + (1 - skeleton) * jax.nn.relu(p - _dilate(eroded, where))), None

    # Not `jnp.zeros_like`: in a `shard_map` the carry must vary over the devices from the start.
    (_, skeleton), _ = lax.scan(step, (p, 0 * p), length=iterations + 1)
    return jnp.where(where, skeleton, 0)


def _erode(values: Array, where: Array) -> Array:
    """Returns the minimum over each pixel and its 4 neighbours in the image, void left out."""
    values = jnp.where(where, values, 1)
    neighbours = [_shifted(values, axis, step, 1.0) for axis in (1, 2) for step in (-1, 1)]
    return reduce(jnp.minimum, neighbours, values)


def _dilate(values: Array, where: Array) -> Array:
    """Returns the maximum over the 3 × 3 pixels around each pixel, void left out."""
    values = jnp.where(where, values, 0)
    for axis in (1, 2):
        values = reduce(jnp.maximum, [_shifted(values, axis, step, 0.0) for step in (-1, 1)], values)
    return values


def _shifted(values: Array, axis: int, step: int, fill: float) -> Array:
    """Returns the values moved by one pixel, with `fill` at the edge of the image."""
    config = [(step, -step, 0) if i == axis else (0, 0, 0) for i in range(values.ndim)]
    return lax.pad(values, values.dtype.type(fill), config)
