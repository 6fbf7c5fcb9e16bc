"""The Lovász extension of the Jaccard loss: a convex surrogate of IoU, exact where predictions are hard.

A set is the pixels of one class in one image, or in the whole batch on all devices. `where` is False for a pixel that
does not exist: it is in no set, whatever its label or logit.
"""

import math
from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer, Real

from segjax import checks
from segjax.collectives import psum
from segjax.losses._log_odds import (
    hinge,
    is_label,
    mask_classes,
    mask_to_zero,
    nan_unless,
    sigmoid_inputs,
    sigmoid_log_odds,
    softmax_inputs,
)
from segjax.losses.reduction import mean

# Of a key, and at most of a place; and into how many sorts, which run beside each other, a CPU's is divided.
_BITS, _SORTS = 32, 8
# The loss that an absent class counts as; None: it does not count.
_ABSENT = {"exclude": None, "zero": 0.0, "one": 1.0}


def lovasz_softmax_loss(
    logits: Float[ArrayLike, "*pixels classes"],
    labels: Integer[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"],
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    over_batch: bool = True,
    absent: str = "exclude",
    axis_name: Hashable | None = None,
) -> Float[Array, ""]:
    r"""Lovász-softmax: a surrogate of 1 - mean IoU, from the errors of the softmax.

    .. math::
        L = \frac{1}{|C|} \sum_{c \in C} \sum_k e_{(k)} \left(J_k - J_{k-1}\right), \qquad
        e_i = |[y_i = c] - p_{ic}|, \qquad
        J_k = 1 - \frac{G - c_k}{G + k - c_k}

    with e sorted from largest to smallest, c_k the pixels of class c among the first k, G all of them, J_0 = 0, and C
    the classes that count. J_k is the Jaccard loss if exactly the first k pixels are wrong. On hard predictions L is
    1 - IoU, averaged over the classes *present in the labels*: a class that is only predicted costs the others their
    IoU and has none of its own. The gradient takes the order of the errors as given: where two are equal it is one of
    the subgradients.

    Args:
        logits: z, `[..., C]`, C ≥ 2, class last, at least one pixel axis.
        labels: y, integers in [0, C), `[...]`. A kept label that is no class gives NaN.
        where: boolean `[...]`, broadcastable; False: no such pixel.
        over_batch: True: one set a class over all pixels of all images and devices. Each device then sorts the errors
            of all: C · (pixels of the global batch) numbers of memory. False: each image alone (axis 0 is the batch,
            logits `[B, ..., C]`), then the mean over the images that hold a kept pixel.
        absent: what a class without a kept label pixel in its image (or batch) counts as. "exclude": nothing, it is
            left out of the mean (the authors' `classes="present"`); "zero" or "one": that loss.
        axis_name: the mapped device axis, or None under `jit`. Inside a map every device gets the same *global* loss;
            `pmean` the gradients.

    Returns:
        A scalar in [0, 1], at least float32. With no kept pixel 0.

    Raises:
        TypeError: logits are not floating, labels not integers, `where` not boolean.
        ValueError: shapes do not fit, C < 2, no pixel axis (beside the batch's, for each image alone), or `absent` is
            unknown.

    References:
        Berman et al., The Lovász-Softmax loss, arXiv 1705.08790; Yu and Blaschko, Learning Submodular Losses with the
        Lovász Hinge, arXiv 1512.07797.

    >>> import jax.numpy as jnp
    >>> labels = jnp.array([0, 0, 0, 1])
    >>> hard = 1e4 * jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])  # IoU 2/3 and 1/2
    >>> print(round(float(1 - lovasz_softmax_loss(hard, labels)), 6))
    0.583333
    """
    checks.choice("absent", absent, tuple(_ABSENT))
    logits, labels, keep = softmax_inputs(logits, labels, where)
    num_classes = logits.shape[-1]
    _check_axes("logits", logits.shape, logits.ndim - 1, over_batch, ", classes")

    if keep is not None:
        logits = jnp.where(mask_classes(keep, num_classes), logits, 0)
    valid = (labels >= 0) & (labels < num_classes)
    # Added to the logits, not to the errors, so that the gradient of a wrong label is NaN too.
    p = jax.nn.softmax(logits + nan_unless(valid, logits.dtype)[..., None])
    own = is_label(labels, num_classes)
    # 1 - p of the own class as the sum of the others keeps the digits of a confident pixel.
    missed = jnp.sum(jnp.where(own, 0, p), axis=-1, keepdims=True)
    errors = jnp.where(own, missed, p)  # |[y = c] - p_c|

    within, across = (axis_name, None) if over_batch else (None, axis_name)
    loss, positives, exists = _set_losses(*_as_sets(errors, own, keep, over_batch), within)
    present = positives > 0
    # NaN must not be hidden: if all labels are wrong, no class is present.
    fill = _ABSENT[absent]
    loss = jnp.where(present | jnp.isnan(loss), loss, 0.0 if fill is None else fill)
    count = jnp.sum(present, axis=-1) if fill is None else jnp.full(exists.shape, num_classes)
    per_image = jnp.sum(loss, axis=-1) / jnp.maximum(count, 1).astype(loss.dtype)
    return mean(per_image, where=exists, axis_name=across)


def lovasz_hinge_loss(
    logits: Float[ArrayLike, "*pixels"],
    targets: Real[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"],
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    over_batch: bool = True,
    axis_name: Hashable | None = None,
) -> Float[Array, ""]:
    r"""Lovász hinge: a convex surrogate of the foreground's Jaccard loss, for one logit per pixel.

    .. math::
        L = \sum_k e_{(k)} \left(J_k - J_{k-1}\right), \qquad
        e_i = \max(0, 1 - x_i), \qquad x_i = (2 t_i - 1) z_i, \qquad
        J_k = 1 - \frac{G - c_k}{G + k - c_k}

    with logit z, target t, e sorted from largest to smallest, c_k the positives among the first k, G all of them, and
    J_0 = 0. At logits ±1 it is twice the Jaccard loss. An image (or batch) without positives costs its largest hinge
    error, as the authors' does: its IoU is 0 at the first false positive. So there is no policy for absence.

    Args:
        logits: z, at least one axis.
        targets: t, the same shape: boolean, or numbers that are 0 or 1. A kept target that is neither gives NaN.
        where: boolean of that shape or broadcastable to it; False: no such pixel.
        over_batch: True: one set over all pixels of all images and devices. Each device then sorts the errors of all.
            False: each image alone (axis 0 is the batch), then the mean over the images that hold a kept pixel.
        axis_name: the mapped device axis, or None under `jit`. Inside a map every device gets the same *global* loss;
            `pmean` the gradients.

    Returns:
        A scalar, not negative, at least float32. With no kept pixel 0.

    Raises:
        TypeError: logits are not floating, `where` not boolean.
        ValueError: shapes do not fit, or no pixel axis (beside the batch's, for each image alone).

    References:
        Yu and Blaschko, Learning Submodular Losses with the Lovász Hinge, arXiv 1512.07797; Berman et al., The
        Lovász-Softmax loss, arXiv 1705.08790.

    >>> import jax.numpy as jnp
    >>> targets = jnp.array([1, 1, 0, 0])
    >>> print(lovasz_hinge_loss(jnp.array([1.0, -1.0, 1.0, -1.0]), targets) / 2)  # IoU 1/3
    0.6666667
    """
    logits, targets, keep = sigmoid_inputs(logits, targets, where)
    _check_axes("logits", logits.shape, logits.ndim, over_batch, "")

    logits, targets = mask_to_zero(logits.astype(checks.widened(logits.dtype)), keep), mask_to_zero(targets, keep)
    errors = hinge(sigmoid_log_odds(logits, targets))

    within, across = (axis_name, None) if over_batch else (None, axis_name)
    sets = _as_sets(errors[..., None], (targets == 1)[..., None], keep, over_batch)
    loss, _, exists = _set_losses(*sets, within)
    return mean(loss[:, 0], where=exists, axis_name=across)


def _check_axes(name: str, shape: tuple[int, ...], pixel_axes: int, over_batch: bool, rest: str) -> None:
    if pixel_axes < (1 if over_batch else 2):
        expected = f"[pixels, ...{rest}]" if over_batch else f"[batch, pixels, ...{rest}] for over_batch=False"
        raise ValueError(f"{name} must be {expected}; got shape {shape}")


def _as_sets(
    errors: Float[Array, "*pixels classes"],
    positive: Bool[Array, "*pixels classes"],
    keep: Bool[Array, "*pixels"] | None,
    over_batch: bool,
) -> tuple[Float[Array, "images classes p"], Bool[Array, "images classes p"], Bool[Array, "images classes p"]]:
    """Pixels last, since they are sorted; the batch as one image if it is one set."""
    keep = jnp.ones(errors.shape[:-1], bool) if keep is None else keep
    images = 1 if over_batch else errors.shape[0]
    pixels = math.prod(errors.shape[:-1] if over_batch else errors.shape[1:-1])

    def arranged(values):
        return jnp.swapaxes(values.reshape(images, pixels, values.shape[-1]), 1, 2)

    return arranged(errors), arranged(positive), arranged(jnp.broadcast_to(keep[..., None], errors.shape))


def _set_losses(
    errors: Float[Array, "images classes p"],
    positive: Bool[Array, "images classes p"],
    keep: Bool[Array, "images classes p"],
    axis_name: Hashable | None,
) -> tuple[Float[Array, "images classes"], Int[Array, "images classes"], Bool[Array, "images"]]:
    """The loss of each set, its positives, and whether the image has a kept pixel; a set lies on all of `axis_name`."""
    positive = positive & keep
    positives = psum(jnp.sum(positive, axis=-1, dtype=jnp.int32), axis_name)
    pixels = psum(jnp.sum(keep[:, 0], axis=-1, dtype=jnp.int32), axis_name)
    weights = _weights(_sort_keys(errors, positive, keep), positives, errors.dtype, axis_name)
    # Only the weights see the other devices' pixels, and they are constants: what is differentiated is a sum like that
    # of every other loss, and no gather or sort has to be transposed.
    loss = psum(jnp.sum(errors * jnp.where(keep, weights, 0), axis=-1), axis_name)
    return loss, positives, pixels > 0


def _sort_keys(errors, positive, keep):
    """Unsigned integers whose ascending order is the descending order of the errors; their last bit is 0 at positives.

    Errors are not negative, so their bits are ordered like their values, and the sign's bit is free for the truth. A
    pixel that does not exist gets the key of a negative without error: last, and it changes no weight that matters.
    """
    unsigned = jnp.uint64 if errors.dtype.itemsize == 8 else jnp.uint32
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(errors), unsigned)
    return ~jnp.where(keep, (bits << 1) | positive.astype(unsigned), 0)


def _weights(keys, positives, dtype, axis_name):
    """J_k - J_{k-1} of each pixel of this device, with k its place among the pixels of all devices."""
    num_local = keys.shape[-1]
    if axis_name is not None:
        keys = jax.lax.all_gather(keys, axis_name, axis=keys.ndim - 1, tiled=True)
    sort = _sorted_in_one_word if keys.dtype == jnp.uint32 else _sorted_in_pairs
    keys, places_before = sort(keys)
    k = jax.lax.broadcasted_iota(jnp.int32, keys.shape, keys.ndim - 1) + 1
    steps = _jaccard_steps((keys & 1) == 0, k, positives[..., None], dtype)
    weights = _put_back(places_before, steps)
    if axis_name is not None:
        first = jax.lax.axis_index(axis_name) * num_local
        weights = jax.lax.dynamic_slice_in_dim(weights, first, num_local, axis=-1)
    return weights


def _sorted_in_pairs(keys):
    """Returns the keys in ascending order and the index that each had before; for keys of 64 bits."""
    return jax.lax.sort((keys, jax.lax.broadcasted_iota(jnp.int32, keys.shape, keys.ndim - 1)), num_keys=1)


def _sorted_in_one_word(keys):
    """Returns the same for keys of 32 bits, sorted with their indices in words of 64 bits.

    XLA's CPU compiler sorts single numbers five times as fast as pairs, and several parts in parallel.
    """

    def part(keys):
        words = (keys.astype(jnp.uint64) << np.uint64(_BITS)) | jax.lax.broadcasted_iota(jnp.uint64, keys.shape, 1)
        words = jax.lax.sort(words)
        return (words >> np.uint64(_BITS)).astype(jnp.uint32), words.astype(jnp.uint32).astype(jnp.int32)

    sets = _rows(keys)
    with jax.enable_x64(True):  # for these lines only: without it there is no integer of 64 bits
        parts = [part(some) for some in jnp.array_split(sets, max(min(len(sets), _SORTS), 1))]
    return tuple(jnp.concatenate(halves).reshape(keys.shape) for halves in zip(*parts, strict=True))


def _put_back(places_before, steps):
    def put(at, step):
        return jnp.zeros_like(step).at[at].set(step, unique_indices=True, mode="promise_in_bounds")

    return jax.vmap(put)(_rows(places_before), _rows(steps)).reshape(steps.shape)


def _rows(array):
    # Not -1 for their number, which nobody can tell where there are no pixels.
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def _jaccard_steps(positive, k, positives, dtype):
    """J_k - J_{k-1} in closed form: a difference of two losses near 1 has no digits left at millions of pixels."""
    found = jnp.cumsum(positive, axis=-1, dtype=jnp.int32)
    intersection = (positives - found).astype(dtype)
    union = (positives + k - found).astype(dtype)
    step = jnp.where(positive, 1 / union, intersection / (union * jnp.maximum(union - 1, 1)))
    # Without positives the first error makes the IoU 0, and there is nothing left to lose.
    return jnp.where((positives == 0) & (k == 1), 1, step)
