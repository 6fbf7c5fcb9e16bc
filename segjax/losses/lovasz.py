"""The Lovász extension of the Jaccard loss: a convex surrogate of IoU that equals 1 - IoU on hard predictions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, UInt

from segjax import checks
from segjax.checks import AxisName, ClassWeights, Labels, Logits, PerPixel, Targets, Where
from segjax.collectives import psum
from segjax.losses import _log_odds as numerics
from segjax.losses.reduction import mean

# The loss of an absent class; None: it is not counted.
_ABSENT = {"exclude": None, "zero": 0.0, "one": 1.0}


def lovasz_softmax_loss(
    logits: Logits,
    labels: Labels,
    *,
    where: Where = None,
    over_batch: bool = True,
    absent: str = "exclude",
    class_weights: ClassWeights | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Computes the Lovász-softmax loss: a surrogate of 1 - mean IoU, from the errors of the softmax.

    .. math::
        L = \frac{1}{\sum_{c \in C} w_c} \sum_{c \in C} w_c \sum_k e_{(k)} \left(J_k - J_{k-1}\right), \qquad
        e_i = |[y_i = c] - p_{ic}|, \qquad
        J_k = 1 - \frac{G - c_k}{G + k - c_k}

    :math:`e_{(k)}` are the errors of class c in descending order. :math:`c_k` of the first k pixels, and G of all,
    are of class c. C are the counted classes, and :math:`J_0 = 0`. :math:`J_k` is the Jaccard loss if exactly the first
    k pixels are wrong.

    Args:
        logits: `[..., C]`, C ≥ 2, class last, at least one pixel axis; p = softmax(logits).
        labels: y, integers in [0, C), `[...]`. Any other unmasked label gives NaN.
        where: boolean `[...]`, broadcastable; False removes the pixel.
        over_batch: static. True: one set per class over all images and devices; each device sorts the errors of the
            global batch. False: one set per class and image (`[B, ..., C]`), then the mean over images with a pixel.
        absent: loss of a class that labels no pixel of the set: "exclude" (not counted), "zero" or "one".
        class_weights: w ≥ 0, `[C]`; may be traced. None: 1. Only their ratios matter. With `over_batch=False` an image
            whose counted classes all have the weight 0 is not counted.
        axis_name: mapped device axis, or None. Every device gets the same global loss; `pmean` the gradients.

    Returns:
        A scalar in [0, 1], at least float32; 0 without an unmasked pixel.

    Raises: TypeError or ValueError if a dtype or shape does not fit, `absent` is unknown, or a weight is negative.

    References: Berman et al., The Lovász-Softmax loss, arXiv 1705.08790.

    >>> hard = 1e4 * jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # IoU 2/3 and 1/2
    >>> print(1 - lovasz_softmax_loss(hard, jnp.array([0, 0, 0, 1])).round(6))
    0.583333
    """
    checks.choice("absent", absent, tuple(_ABSENT))
    logits, labels, keep = checks.softmax_inputs(logits, labels, where)
    num_classes = logits.shape[-1]
    if labels.ndim < (1 if over_batch else 2):
        expected = "[pixels, ..., classes]" if over_batch else "[batch, pixels, ..., classes] for over_batch=False"
        raise ValueError(f"logits must be {expected}; got shape {logits.shape}")

    if keep is not None:
        logits = jnp.where(numerics.mask_classes(keep, num_classes), logits, 0)
    # Added to the logits, so that the gradient of an invalid label is NaN too.
    valid = (labels >= 0) & (labels < num_classes)
    p = jax.nn.softmax(logits + numerics.nan_unless(valid, logits.dtype)[..., None])
    own = numerics.is_label(labels, num_classes)
    # 1 - p of the own class as the sum of the others keeps the digits of a confident pixel.
    missed = jnp.sum(jnp.where(own, 0, p), axis=-1, keepdims=True)
    errors = jnp.where(own, missed, p)  # |[y = c] - p_c|

    keep = None if keep is None else keep[..., None]
    loss, positives, exists = _set_losses(errors, own, keep, over_batch, axis_name)
    exists = exists[:, 0]
    present, fill = positives > 0, _ABSENT[absent]
    # A NaN stays: with invalid labels only, no class is present.
    loss = jnp.where(present | jnp.isnan(loss), loss, 0.0 if fill is None else fill)
    counted = present if fill is None else jnp.ones_like(present)
    if class_weights is None:
        count = jnp.sum(counted, axis=-1)
        per_image = jnp.sum(loss, axis=-1) / jnp.maximum(count, 1).astype(loss.dtype)
    else:
        weights = checks.per_class("class_weights", class_weights, num_classes, loss.dtype)[None]
        weight = jnp.sum(jnp.where(counted, weights, 0), axis=-1)
        per_image = jnp.sum(weights * loss, axis=-1) / jnp.where(weight == 0, 1, weight)
        exists &= (weight > 0) | jnp.isnan(per_image)
    return mean(per_image, where=exists, axis_name=None if over_batch else axis_name)


def lovasz_hinge_loss(
    logits: PerPixel,
    targets: Targets,
    *,
    where: Bool[ArrayLike, "..."] | None = None,
    over_batch: bool = True,
    multi_label: bool = False,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Computes the Lovász hinge: a convex surrogate of the foreground's Jaccard loss, for one logit per pixel.

    .. math:: L = \sum_k e_{(k)} (J_k - J_{k-1}), \qquad e_i = \max(0, 1 - x_i), \qquad x_i = (2 t_i - 1) z_i

    with the sorted errors e and J of `lovasz_softmax_loss`. At logits ±1 it is twice the Jaccard loss.

    Args:
        logits: z, at least one axis.
        targets: t, that shape: boolean, or numbers that are 0 or 1. Any other unmasked target gives NaN.
        where: boolean, broadcastable; with `multi_label` of the pixels `[...]` or of the channels `[..., C]`.
        over_batch: as in `lovasz_softmax_loss`; False needs `[B, ...]`.
        multi_label: static; True: the last axis has C independent channels, and the loss is the mean of their losses.
            With `over_batch=False` it is the mean over all (image, channel) pairs with an unmasked pixel.
        axis_name: as in `lovasz_softmax_loss`.

    Returns:
        A scalar ≥ 0, at least float32; 0 without an unmasked pixel.

    Raises: TypeError or ValueError if a dtype or shape does not fit.

    References: Yu and Blaschko, Learning Submodular Losses with the Lovász Hinge, arXiv 1512.07797.

    >>> print(lovasz_hinge_loss(jnp.array([1.0, -1.0, 1.0, -1.0]), jnp.array([1, 1, 0, 0])) / 2)  # IoU 1/3
    0.6666667
    """
    if multi_label and where is not None:
        where = checks.array("where", where)
        where = where if where.ndim == jnp.ndim(logits) else where[..., None]
    logits, targets, keep = numerics.sigmoid_inputs(logits, targets, where)
    if logits.ndim < (1 if over_batch else 2) + multi_label:
        last = ", channels" * multi_label
        expected = f"[pixels, ...{last}]" if over_batch else f"[batch, pixels, ...{last}] for over_batch=False"
        raise ValueError(f"logits must be {expected}; got shape {logits.shape}")

    logits = numerics.mask_to_zero(logits.astype(checks.widened(logits.dtype)), keep)
    targets = numerics.mask_to_zero(targets, keep)
    errors = numerics.hinge(numerics.sigmoid_log_odds(logits, targets))

    positive = targets == 1
    if not multi_label:
        errors, positive, keep = errors[..., None], positive[..., None], None if keep is None else keep[..., None]
    loss, _, exists = _set_losses(errors, positive, keep, over_batch, axis_name)
    return mean(loss, where=exists, axis_name=None if over_batch else axis_name)


def _set_losses(
    errors: Float[Array, "*pixels classes"], positive: Bool[Array, "*pixels classes"], keep, over_batch, axis_name
) -> tuple[Float[Array, "images classes"], Int[Array, "images classes"], Bool[Array, "images classes"]]:
    """Returns loss and positives per set, and True for a set with an unmasked pixel."""
    axis_name = axis_name if over_batch else None  # the set of an image is on one device
    images, num_classes = 1 if over_batch else errors.shape[0], errors.shape[-1]
    pixels = math.prod(errors.shape[:-1] if over_batch else errors.shape[1:-1])

    def as_sets(values):
        values = jnp.broadcast_to(values, errors.shape).reshape(images, pixels, num_classes)
        return jnp.swapaxes(values, 1, 2).reshape(images * num_classes, pixels)

    keep = as_sets(jnp.bool_(True) if keep is None else keep)
    errors, positive = as_sets(errors), as_sets(positive) & keep
    positives = psum(jnp.sum(positive, axis=-1, dtype=jnp.int32), axis_name)
    exists = psum(jnp.sum(keep, axis=-1, dtype=jnp.int32), axis_name) > 0
    # Only these constant weights depend on the pixels of other devices: no sort or gather is differentiated.
    weights = jnp.where(keep, _jaccard_steps(errors, positive, keep, positives[:, None], axis_name), 0)
    loss = psum(jnp.sum(errors * weights, axis=-1), axis_name)
    return (
        loss.reshape(images, num_classes),
        positives.reshape(images, num_classes),
        exists.reshape(images, num_classes),
    )


def _jaccard_steps(
    errors: Float[Array, "sets pixels"], positive, keep, positives: Int[Array, "sets 1"], axis_name: AxisName
) -> Float[Array, "sets pixels"]:
    """Returns J_k - J_{k-1} of each pixel, where k is its rank by error among the pixels of all devices."""
    # The bits of a float ≥ 0 are ordered like its value. The last bit of a key is 0 at positives; masked pixels get the
    # key of a negative without error and come last, where they change no other weight.
    unsigned = jnp.uint64 if errors.dtype.itemsize == 8 else jnp.uint32
    bits = lax.bitcast_convert_type(lax.stop_gradient(errors), unsigned)
    keys = ~jnp.where(keep, (bits << 1) | positive.astype(unsigned), 0)
    keys = keys if axis_name is None else lax.all_gather(keys, axis_name, axis=1, tiled=True)
    keys, order = _argsort(keys)

    positive = (keys & 1) == 0
    k = lax.broadcasted_iota(jnp.int32, keys.shape, 1) + 1
    found = jnp.cumsum(positive, axis=-1, dtype=jnp.int32)
    intersection, union = (positives - found).astype(errors.dtype), (positives + k - found).astype(errors.dtype)
    # In closed form, since a difference of two losses near 1 has no digits left at millions of pixels.
    steps = jnp.where(positive, 1 / union, intersection / (union * jnp.maximum(union - 1, 1)))
    steps = jnp.where((positives == 0) & (k == 1), 1, steps)  # without positives the first error makes the IoU 0

    def scattered(order, steps):
        return jnp.zeros_like(steps).at[order].set(steps, unique_indices=True, mode="promise_in_bounds")

    def sorted_back(order, steps):
        return lax.sort((order, steps), num_keys=1)[1]

    # A TPU scatters one number after another, but sorts whole vectors.
    steps = lax.platform_dependent(order, steps, tpu=sorted_back, default=jax.vmap(scattered))
    if axis_name is None:
        return steps
    pixels = errors.shape[1]
    return lax.dynamic_slice_in_dim(steps, lax.axis_index(axis_name) * pixels, pixels, axis=1)


def _argsort(keys: UInt[Array, "sets pixels"]) -> tuple[UInt[Array, "sets pixels"], Int[Array, "sets pixels"]]:
    """Returns the keys in ascending order and their previous indices."""

    def as_pairs(keys):
        return tuple(lax.sort((keys, lax.broadcasted_iota(jnp.int32, keys.shape, 1)), num_keys=1))

    def as_words(keys):
        with jax.enable_x64(True):
            words = (keys.astype(jnp.uint64) << np.uint64(32)) | lax.broadcasted_iota(jnp.uint64, keys.shape, 1)
            parts = [lax.sort(part) for part in jnp.array_split(words, max(min(len(words), 8), 1))]
            words = jnp.concatenate(parts)
            return (words >> np.uint64(32)).astype(jnp.uint32), words.astype(jnp.uint32).astype(jnp.int32)

    # XLA's CPU compiler sorts words of 64 bits five times as fast as pairs of 32, and several parts in parallel.
    return as_pairs(keys) if keys.dtype == jnp.uint64 else lax.platform_dependent(keys, cpu=as_words, default=as_pairs)
