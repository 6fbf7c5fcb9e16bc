"""A batch that does not fit the device, taken piece by piece: the gradients are those of the whole."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from segjax.collectives import psum
from segjax.training.objective import positives_of, targets


def split(batch: Any, pieces: int) -> Any:
    """Every array `[b, …]` of `batch` as `[pieces, b / pieces, …]`.

    Example i goes to piece i modulo `pieces`, so that a batch which lies on several devices is cut on each of them.
    """
    return jax.tree.map(lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), batch)


def make_shares(config: ConfigDict, num_classes: int) -> Callable[..., dict[str, Float[Array, " k"]]]:
    """Builds `shares(labels, axis_name)`: what each piece's mean counts in the mean over the whole batch.

    A mean over pixels is a sum and a count, and the counts are known before the network is asked: they are functions of
    the labels `[k, b, H, W]`. Each part of the objective, multiplied by its share and added up over the pieces, is that
    of the whole batch, however unevenly the labelled pixels lie.
    """
    normalizer, void = config.objective.normalizer, config.objective.void
    is_positive = positives_of(config, num_classes)

    def shares(labels: Int[Array, "k b H W"], axis_name: str | None) -> dict[str, Float[Array, " k"]]:
        kept_labels, where = targets(labels, num_classes, void)
        kept = _counted(where, axis_name)
        of_kept = kept / jnp.maximum(kept.sum(), 1)
        if normalizer != "positives":
            return {"pixel_loss": of_kept, "penalty": of_kept}
        positives = _counted(is_positive(kept_labels) & where, axis_name)
        # `losses.mean` divides by no less than 1.
        return {"pixel_loss": jnp.maximum(positives, 1) / jnp.maximum(positives.sum(), 1), "penalty": of_kept}

    return shares


def _counted(pixels: jax.Array, axis_name: str | None) -> jax.Array:
    return psum(pixels.sum(axis=(1, 2, 3), dtype=jnp.float32), axis_name)


def accumulated(loss_and_gradients: Callable, params: Any, batch_stats: Any, pieces: Any) -> tuple[Any, ...]:
    """Adds up over the pieces, one after another through one compiled body.

    Args:
      loss_and_gradients: `f(params, batch_stats, *piece) -> ((loss, (_, parts, batch_stats)), gradients)`.
      params: of the network.
      batch_stats: running statistics, which each piece hands on to the next.
      pieces: a tuple of arrays with a leading axis of pieces.

    Returns:
      loss, parts, batch_stats, gradients.
    """

    def add(carry, piece):
        batch_stats, total = carry
        (loss, (_, parts, batch_stats)), gradients = loss_and_gradients(params, batch_stats, *piece)
        return (batch_stats, jax.tree.map(jnp.add, total, (loss, parts, gradients))), None

    first = jax.tree.map(lambda x: x[0], pieces)
    (loss, (_, parts, _)), gradients = jax.eval_shape(loss_and_gradients, params, batch_stats, *first)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, parts, gradients))
    (batch_stats, (loss, parts, gradients)), _ = jax.lax.scan(add, (batch_stats, nothing), pieces)
    return loss, parts, batch_stats, gradients
