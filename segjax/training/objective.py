"""What is minimised: a per-pixel loss chosen by name, its traced hyperparameters, and one reduction."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from segjax import losses


class Hyper(NamedTuple):
    """The hyperparameters that change between runs, as arrays: a sweep over them compiles once.

    Attributes:
      learning_rate: scalar, the peak of the schedule.
      crop_fraction: scalar in (0, 1], the side of the training crop as a share of the image's.
      gamma: scalar ≥ 0, the focusing parameter; read by the focal losses only.
      alpha: scalar, the weight of the rare class against 1 - α for the rest (sigmoid losses); None leaves it out.
      class_weights: `[C]`, a weight a class (softmax losses); None leaves them out.
    """

    learning_rate: Float[Array, ""]
    crop_fraction: Float[Array, ""]
    gamma: Float[Array, ""]
    alpha: Float[Array, ""] | None
    class_weights: Float[Array, "C"] | None


def hyper_from_config(config: ConfigDict) -> Hyper:
    """The traced hyperparameters that `config` holds."""
    objective = config.objective
    return Hyper(
        learning_rate=jnp.float32(config.optimizer.learning_rate),
        crop_fraction=jnp.float32(config.augment.crop_fraction),
        gamma=jnp.float32(objective.gamma),
        alpha=None if objective.alpha is None else jnp.float32(objective.alpha),
        class_weights=jnp.asarray(objective.class_weights, jnp.float32) if objective.class_weights else None,
    )


def _softmax_cross_entropy(logits, labels, where, hyper):
    return losses.softmax_cross_entropy(logits, labels, where=where, class_weights=hyper.class_weights)


def _softmax_focal(logits, labels, where, hyper):
    return losses.softmax_focal_loss(logits, labels, gamma=hyper.gamma, alpha=hyper.class_weights, where=where)


def _sigmoid_cross_entropy(logits, labels, where, hyper):
    return losses.sigmoid_cross_entropy(logits[..., 0], labels, where=where, alpha=hyper.alpha)


def _sigmoid_focal(logits, labels, where, hyper):
    return losses.sigmoid_focal_loss(logits[..., 0], labels, gamma=hyper.gamma, alpha=hyper.alpha, where=where)


PIXEL_LOSSES: dict[str, Callable] = {
    "softmax_cross_entropy": _softmax_cross_entropy,
    "softmax_focal": _softmax_focal,
    "sigmoid_cross_entropy": _sigmoid_cross_entropy,
    "sigmoid_focal": _sigmoid_focal,
}


def is_sigmoid(loss: str) -> bool:
    """Whether `loss` works on one logit a pixel (rare class against the rest) and not on one a class."""
    return loss.startswith("sigmoid")


def make_objective(loss: str, normalizer: str) -> Callable[..., Float[Array, ""]]:
    """Builds `objective(logits, labels, where, hyper, axis_name=None) -> scalar`.

    Args:
      loss: a key of `PIXEL_LOSSES`. The softmax losses read `[B, H, W, C]` logits; the sigmoid ones `[B, H, W, 1]`
        logits, where label 1 is the rare class.
      normalizer: "valid" divides the summed loss by the number of kept pixels, "positives" by that of kept pixels of
        class 1 (at least 1): the focal-loss paper's.

    Returns:
      A pure function whose result is the mean over the *global* batch when `axis_name` names the mapped axis.
    """
    per_pixel = PIXEL_LOSSES[loss]

    def objective(
        logits: Float[Array, "B H W C"],
        labels: Int[Array, "B H W"],
        where: Bool[Array, "B H W"],
        hyper: Hyper,
        axis_name: str | None = None,
    ) -> Float[Array, ""]:
        positives = labels == 1 if normalizer == "positives" else None
        return losses.mean(
            per_pixel(logits, labels, where, hyper),
            where=where,
            positives=positives,
            normalizer=normalizer,
            axis_name=axis_name,
        )

    return objective
