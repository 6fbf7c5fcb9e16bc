"""Private: sums per (image, class) pair, and the mean over the counted pairs of all devices."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from segjax import checks
from segjax.collectives import psum

PerClass = Float[Array, "images classes"]


class Sums(NamedTuple):
    """Sums over the unmasked pixels of each image (or of the batch), `[images, classes]`."""

    hit: Array  # Σ p t; plain sums of soft targets: Σ min(p, t)
    miss: Array  # Σ_{t=1} (1 - p); of soft targets Σ max(t - p, 0), or squared Σ t (t - p)
    error: Array  # plain: Σ_{t=0} p, of soft targets Σ max(p - t, 0); squared: Σ (p - t)²
    truth: Array  # Σ t
    pixels: Array  # Σ 1


def check_logits(shape: Sequence[int], activation: str) -> None:
    """Raises an error if the activation is unknown or logits of this shape lack a batch, pixel or class axis."""
    checks.choice("activation", activation, ("softmax", "sigmoid"))
    if activation == "softmax" and (len(shape) < 3 or shape[-1] < 2):
        raise ValueError(
            "logits must be [batch, ..., classes] with at least one axis of pixels and 2 classes, class last; "
            f'got shape {shape}. For one sigmoid logit z per pixel use activation="sigmoid" with z[..., None]'
        )
    if len(shape) < 3 or shape[-1] < 1:
        expected = "[batch, ..., channels] with at least one axis of pixels and 1 channel, channel last"
        raise ValueError(f"logits must be {expected}; got shape {shape}")


def channel_sums(x, targets, where, squared: bool) -> Sums:
    """Returns the sums of channels of log odds x, with boolean or soft targets."""
    p, not_p = jax.nn.sigmoid(x), jax.nn.sigmoid(-x)
    if targets.dtype != jnp.bool_:
        return _soft_sums(p, not_p, targets, where, squared)
    positive, negative = targets & where, ~targets & where
    hit, miss, error = jnp.where(positive, p, 0), jnp.where(positive, not_p, 0), jnp.where(negative, p, 0)
    error = error * error + miss * miss if squared else error
    axes = tuple(range(1, x.ndim - 1))
    counts = (jnp.sum(mask, axis=axes, dtype=jnp.int32).astype(x.dtype) for mask in (positive, where))
    return Sums(*(jnp.sum(values, axis=axes) for values in (hit, miss, error)), *counts)


def _soft_sums(p, not_p, t, where, squared: bool) -> Sums:
    difference = jnp.where(t > 0.5, (1 - t) - not_p, p - t)  # p - t, exact at t = 0 and t = 1
    if squared:
        terms = p * t, -t * difference, difference * difference
    else:
        terms = jnp.where(difference > 0, t, p), jax.nn.relu(-difference), jax.nn.relu(difference)
    axes = tuple(range(1, p.ndim - 1))
    hit, miss, error, truth = (jnp.sum(jnp.where(where, term, 0), axis=axes) for term in (*terms, t))
    return Sums(hit, miss, error, truth, jnp.sum(where, axis=axes, dtype=jnp.int32).astype(p.dtype))


def chosen_and_pooled(sums: Sums, classes, over_batch: bool, axis_name) -> Sums:
    """Returns the sums of the classes that count, with `over_batch` over all images of all devices."""
    if classes is not None:
        chosen = checks.class_indices("classes", classes, sums.hit.shape[-1])
        sums = jax.tree.map(lambda total: total[:, chosen], sums)
    return pooled(sums, over_batch, axis_name)


def pooled(sums: Any, over_batch: bool, axis_name: Any) -> Any:
    """Returns `[images, classes]` sums as they are, or with `over_batch` their sum over all images of all devices."""
    return psum(jax.tree.map(lambda x: jnp.sum(x, axis=0, keepdims=True), sums), axis_name) if over_batch else sums


def pair_weights(class_weights: Any, classes: Any, num_classes: int, dtype: Any) -> Float[Array, "classes"] | None:
    """Returns the weights of the classes that count."""
    if class_weights is None:
        return None
    weights = checks.per_class("class_weights", class_weights, num_classes, dtype)
    return weights if classes is None else weights[checks.class_indices("classes", classes, num_classes)]


def ratio(cost: PerClass, hit: PerClass) -> PerClass:
    """Returns 1 - TI = N / (I + N), and 0 where both are 0."""
    whole = jax.lax.stop_gradient(hit + cost)
    nothing = whole < jnp.finfo(whole.dtype).tiny
    # Scaled by a constant that cancels, because derivatives of the quotient have squares of a possibly tiny I + N.
    scale = 1 / jnp.where(nothing, 1, whole)
    cost, hit = cost * scale, hit * scale
    return jnp.where(nothing, 0, cost / jnp.where(nothing, 1, hit + cost))


def mean_over_pairs(
    loss: PerClass,
    present: Bool[Array, "images classes"],
    pixels: PerClass,
    absent: str,
    over_batch: bool,
    axis_name: Any,
    weights: Float[Array, "classes"] | None = None,
) -> Float[Array, ""]:
    """Returns the mean over the counted pairs of all devices (`over_batch`: the sums already are of all devices)."""
    checks.choice("absent", absent, ("exclude", "zero", "one"))
    counted = (pixels > 0) & present if absent == "exclude" else pixels > 0
    loss = jnp.where(counted, jnp.where(present, loss, 1 if absent == "one" else 0), 0)
    axis_name = None if over_batch else axis_name
    if weights is None:
        total, count = psum((jnp.sum(loss), jnp.sum(counted, dtype=jnp.int32)), axis_name)
        return total / jnp.maximum(count, 1).astype(total.dtype)
    weights = jnp.where(counted, weights[None], 0)
    total, weight = psum((jnp.sum(weights * loss), jnp.sum(weights)), axis_name)
    return total / jnp.where(weight == 0, 1, weight)
