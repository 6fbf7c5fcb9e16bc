"""What is minimised, weight · pixel loss + C · penalty + a region loss: chosen by name, its hyperparameters traced."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from segjax import losses
from segjax.data.labels import VOID
from segjax.models import Segmentation


class Hyperparams(NamedTuple):
    """The hyperparameters that change between runs or during one, as arrays: a sweep over them compiles once.

    None leaves a part of the objective out, and is another program.

    Attributes:
      learning_rate: scalar, the peak of the schedule.
      crop_fraction: scalar in (0, 1], the side of the training crop as a share of the image's.
      gamma: scalar ≥ 0, the focusing parameter; read by the focal losses only.
      beta: scalar, the shift of FL*.
      alpha: scalar, the weight of the rare class against 1 - α for the rest (sigmoid losses); None leaves it out.
      class_weights: `[C]`, a weight a class (softmax losses); None leaves them out.
      boundary_factor: scalar k ≥ 0, the weight of the pixels on a boundary; None: no boundary is looked for.
      hard_fraction: scalar in [0, 1], the share of hardest pixels that count (OHEM). Of this and the next two at most
        one is not None; without them all pixels count.
      hard_threshold: scalar ≥ 0, the pixel loss from which a pixel counts.
      negatives_per_positive: scalar ≥ 0, how many of the hardest background pixels count for each of the rare class.
      region_weight: scalar, the factor of the region loss; None where there is none.
      uncertainty_weight: scalar, the factor C of the uncertainty penalty; None where there is none.
      dropout_rate: scalar in [0, 1), p of the dropout heads.
      deep_dropout_rate: scalar in [0, 1), p of the dropout inside the network.
      ema_decay: scalar in [0, 1), of the running mean of the parameters; None: none is kept.
    """

    learning_rate: Float[Array, ""]
    crop_fraction: Float[Array, ""]
    gamma: Float[Array, ""]
    beta: Float[Array, ""]
    alpha: Float[Array, ""] | None
    class_weights: Float[Array, "C"] | None
    boundary_factor: Float[Array, ""] | None
    hard_fraction: Float[Array, ""] | None
    hard_threshold: Float[Array, ""] | None
    negatives_per_positive: Float[Array, ""] | None
    region_weight: Float[Array, ""] | None
    uncertainty_weight: Float[Array, ""] | None
    dropout_rate: Float[Array, ""]
    deep_dropout_rate: Float[Array, ""]
    ema_decay: Float[Array, ""] | None


def hparams_from_config(config: ConfigDict) -> Hyperparams:
    """The traced hyperparameters that `config` holds."""
    objective = config.objective

    def optional(value: float | None) -> Float[Array, ""] | None:
        return None if value is None else jnp.float32(value)

    region_weight = jnp.float32(objective.region_weight)
    return Hyperparams(
        learning_rate=jnp.float32(config.optimizer.learning_rate),
        crop_fraction=jnp.float32(config.augment.crop_fraction),
        gamma=jnp.float32(objective.gamma),
        beta=jnp.float32(objective.beta),
        alpha=optional(objective.alpha),
        class_weights=jnp.asarray(objective.class_weights, jnp.float32) if objective.class_weights else None,
        boundary_factor=optional(objective.boundary_factor),
        hard_fraction=optional(objective.hard_fraction),
        hard_threshold=optional(objective.hard_threshold),
        negatives_per_positive=optional(objective.negatives_per_positive),
        region_weight=None if objective.region == "none" else region_weight,
        uncertainty_weight=optional(objective.uncertainty_weight),
        dropout_rate=jnp.float32(config.model.dropout_rate),
        deep_dropout_rate=jnp.float32(config.model.deep_dropout_rate),
        ema_decay=optional(config.training.ema_decay),
    )


def _softmax_cross_entropy(logits, labels, where, hparams):
    return losses.softmax_cross_entropy(logits, labels, where=where, class_weights=hparams.class_weights)


def _softmax_focal(logits, labels, where, hparams):
    return losses.softmax_focal_loss(logits, labels, gamma=hparams.gamma, alpha=hparams.class_weights, where=where)


def _sigmoid_cross_entropy(logits, labels, where, hparams):
    return losses.sigmoid_cross_entropy(logits[..., 0], labels, where=where, alpha=hparams.alpha)


def _sigmoid_focal(logits, labels, where, hparams):
    return losses.sigmoid_focal_loss(logits[..., 0], labels, gamma=hparams.gamma, alpha=hparams.alpha, where=where)


def _sigmoid_focal_star(logits, labels, where, hparams):
    return losses.sigmoid_focal_star_loss(
        logits[..., 0], labels, gamma=hparams.gamma, beta=hparams.beta, alpha=hparams.alpha, where=where
    )


def _hinge(logits, labels, where, hparams):
    return losses.hinge_loss(logits[..., 0], labels, where=where)


SOFTMAX_LOSSES: dict[str, Callable] = {
    "softmax_cross_entropy": _softmax_cross_entropy,
    "softmax_focal": _softmax_focal,
}
# These work on one logit a pixel, the rare class against the rest.
BINARY_LOSSES: dict[str, Callable] = {
    "sigmoid_cross_entropy": _sigmoid_cross_entropy,
    "sigmoid_focal": _sigmoid_focal,
    "sigmoid_focal_star": _sigmoid_focal_star,
    "hinge": _hinge,
}
PIXEL_LOSSES = SOFTMAX_LOSSES | BINARY_LOSSES


def _lovasz(logits, labels, *, where, classes, axis_name):
    # The Lovász loss has no `classes`: left in are the outputs that are classes, and void has no pixel that counts.
    return losses.lovasz_softmax_loss(logits, labels, where=where, axis_name=axis_name)


REGION_LOSSES: dict[str, Callable | None] = {
    "none": None,
    "dice": losses.dice_loss,
    "generalized_dice": losses.generalized_dice_loss,
    "jaccard": losses.jaccard_loss,
    "lovasz": _lovasz,
}


def num_outputs(config: ConfigDict, num_classes: int) -> int:
    """How many logits a pixel has: one for a binary loss, else one a class, and one more where void is a class."""
    if config.objective.loss in BINARY_LOSSES:
        return 1
    return num_classes + (config.objective.void == "class")


def targets(
    labels: Int[Array, "*B H W"], num_classes: int, void: str
) -> tuple[Int[Array, "*B H W"], Bool[Array, "*B H W"]]:
    """What is learned where: labels in [0, outputs), and which pixels count.

    With void = "ignore" void pixels do not; with "class" they are one more class, the last, and all pixels count.
    """
    if void == "class":
        return jnp.where(labels == VOID, num_classes, labels), jnp.ones(labels.shape, bool)
    return labels, labels != VOID


def make_objective(config: ConfigDict, num_classes: int) -> Callable:
    r"""Builds `objective(output, labels, hparams, axis_name=None) -> (loss, parts)`.

    .. math::
        L = \frac{1}{N} \sum_i w_i \ell_i + \frac{C}{n} \sum_i v_i (1 - p_i(b)) + r R

    with the pixel loss ℓ of the clean logits, the boundary weight w (k on a boundary, 1 elsewhere), the variance v of
    the logits under dropout (`losses.mc_variance` of the sampled heads or the analytic one; mean over the classes), the
    background class b of the clean pass and a region loss R. N is what `objective.normalizer` says, n the kept pixels.
    With `hard_fraction`, `hard_threshold` or `negatives_per_positive` the first sum is over `losses.hard_pixels` only,
    and N counts those; divided by "positives", N is the number of all of them, mined or not.

    The gradient flows through everything: through v to the head's kernel and the features, through p(b) to the clean
    logits (the recipe's code does the same, so an uncertain pixel also gains by being called background), and ℓ sees
    the clean pass only. w is a function of the labels.

    Args:
      config: `config.objective` names the pixel loss, the region loss and what void is. The softmax losses read
        `[B, H, W, C]` logits; the binary ones `[B, H, W, 1]`, where label 1 is the rare class, and their background
        is class 0 of the two.
      num_classes: the classes of the data set, without void. Where void is a class it is number `num_classes`, and it
        is the background, free of the penalty and no positive; else that is `config.objective.background`.

    Returns:
      A pure function of `Segmentation`, labels `[B, H, W]` (void 255) and `Hyperparams`, and for a piece of a batch of
      `accumulation.make_shares`' factors of the parts. Both results are over the *global*
      batch when `axis_name` names the mapped axis; `parts` holds what the sum is made of, without C and r:
      "pixel_loss", and where asked for "penalty" and "region_loss".
    """
    options = config.objective
    per_pixel, region_loss = PIXEL_LOSSES[options.loss], REGION_LOSSES[options.region]
    normalizer, void, mode = options.normalizer, options.void, options.boundary_mode
    binary = options.loss in BINARY_LOSSES
    background, is_positive = _background(config, num_classes), positives_of(config, num_classes)
    scored = (1,) if binary else range(num_classes)  # neither the sea of background nor void is a region

    def objective(
        output: Segmentation,
        labels: Int[Array, "B H W"],
        hparams: Hyperparams,
        axis_name: str | None = None,
        share: dict[str, Float[Array, ""]] | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        labels, where = targets(labels, num_classes, void)
        mean = partial(losses.mean, axis_name=axis_name)
        pixels = per_pixel(output.logits, labels, where, hparams)
        weights = None
        if hparams.boundary_factor is not None:
            weights = losses.boundary_weights(labels, hparams.boundary_factor, mode=mode, where=where)
        counted = where
        hard = {"fraction": hparams.hard_fraction, "threshold": hparams.hard_threshold}
        if hparams.negatives_per_positive is not None:
            hard |= {"positives": is_positive(labels), "negatives_per_positive": hparams.negatives_per_positive}
        if any(criterion is not None for criterion in hard.values()):
            counted = losses.hard_pixels(pixels, where=where, axis_name=axis_name, **hard)
        positives = is_positive(labels) if normalizer == "positives" else None
        if positives is not None:  # all of them, or the loss would leap when the last one is no longer hard
            pixels, counted = jnp.where(counted, pixels, 0), where
        loss = mean(pixels, where=counted, weights=weights, positives=positives, normalizer=normalizer)
        loss *= 1 if share is None else share["pixel_loss"]
        parts = {"pixel_loss": loss}

        logits = output.logits
        if binary:  # the same model as two classes
            logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
        if hparams.uncertainty_weight is not None:
            penalties = losses.uncertainty_penalty(_variance(output, where), logits, background, where=where)
            parts["penalty"] = mean(penalties, where=where) * (1 if share is None else share["penalty"])
            loss += hparams.uncertainty_weight * parts["penalty"]
        if hparams.region_weight is not None:
            kept = where & (labels < num_classes)
            parts["region_loss"] = region_loss(logits, labels, where=kept, classes=scored, axis_name=axis_name)
            loss += hparams.region_weight * parts["region_loss"]
        return loss, parts

    return objective


def _background(config: ConfigDict, num_classes: int) -> int | None:
    options = config.objective
    return 0 if options.loss in BINARY_LOSSES else num_classes if options.void == "class" else options.background


def positives_of(config: ConfigDict, num_classes: int) -> Callable[[Int[Array, "..."]], Bool[Array, "..."]]:
    """Builds `is_positive(labels)`: the pixels, of labels as `targets` gives them, that are not background."""
    background = _background(config, num_classes)
    return lambda labels: labels != background


def _variance(output: Segmentation, where: Bool[Array, "B H W"]) -> Float[Array, "B H W"]:
    """The variance of a pixel's logits under dropout, mean over the classes: in closed form, or that of the heads."""
    if output.logit_variance is not None:
        return output.logit_variance.mean(-1)
    return losses.mc_variance(output.mc_logits, where=where)
