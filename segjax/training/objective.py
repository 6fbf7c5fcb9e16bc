"""Traced hyperparameters of an objective, their phases, the losses by name, and the gradient budget."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from segjax import losses
from segjax.checks import AxisName
from segjax.collectives import psum
from segjax.data.labels import VOID


class Hyperparams(NamedTuple):
    """Hyperparameters that differ between runs or change during one: arrays, so a sweep over them compiles once.

    None leaves a part of the objective out, which is another program.
    """

    learning_rate: Float[Array, ""]  # peak of the schedule
    crop_fraction: Float[Array, ""]  # in (0, 1], side of the training crop as a fraction of the image's side
    rare_crops: Float[Array, ""] | None  # in (0, 1], share of the crops that contain a rare pixel
    copy_paste: Float[Array, ""] | None  # in (0, 1], share of the images with rare pixels of the next image
    gamma: Float[Array, ""]  # γ ≥ 0, focusing parameter of the focal losses
    beta: Float[Array, ""]  # β, shift of FL*
    poly_epsilon: Float[Array, ""]  # ε ≥ -1, coefficient of Poly-1
    ldam_margin: Float[Array, ""]  # Δ ≥ 0, LDAM's margin of the rarest class
    ldam_scale: Float[Array, ""]  # s > 0, LDAM's factor of the logits
    seesaw_p: Float[Array, ""]  # p ≥ 0, exponent of the mitigation
    seesaw_q: Float[Array, ""]  # q ≥ 0, exponent of the compensation
    asymmetric_delta: Float[Array, ""]  # δ in [0, 1], weight of all classes but the first
    logit_adjustment: Float[Array, ""] | None  # τ ≥ 0
    class_frequencies: Float[Array, "C"] | None  # positive, of each output in the training set
    alpha: Float[Array, ""] | None  # in [0, 1], weight of class 1 against 1 - α for class 0 (sigmoid losses)
    class_weights: Float[Array, "C"] | None  # one weight per output (softmax losses)
    boundary_factor: Float[Array, ""] | None  # k ≥ 0, weight of pixels on a boundary
    # OHEM, at most one of the three.
    hard_fraction: Float[Array, ""] | None  # in [0, 1], fraction of the hardest pixels that contribute
    hard_threshold: Float[Array, ""] | None  # smallest loss of a pixel that contributes
    negatives_per_positive: Float[Array, ""] | None  # number of hardest negatives per positive pixel
    region_weight: Float[Array, ""] | None  # factor r of the region loss
    tversky_alpha: Float[Array, ""] | None  # α ≥ 0, weight of false positives in the Tversky loss
    tversky_beta: Float[Array, ""] | None  # β ≥ 0, weight of false negatives
    tversky_gamma: Float[Array, ""] | None  # γ > 0, focal exponent
    cl_dice_alpha: Float[Array, ""] | None  # α in [0, 1], weight of the centre lines in clDice
    region_class_weights: Float[Array, "C"] | None  # one weight per class, of the region loss
    uncertainty_weight: Float[Array, ""] | None  # factor C of the uncertainty penalty
    label_smoothing: Float[Array, ""] | None  # ε in [0, 1), of the softmax cross entropy
    logit_margin: Float[Array, ""] | None  # m ≥ 0, largest difference of logits without a penalty
    logit_margin_weight: Float[Array, ""] | None  # factor of the penalty
    calibration_weight: Float[Array, ""] | None  # factor κ of the average calibration error
    outlier_weight: Float[Array, ""] | None  # factor λ of the loss on pasted outliers
    dropout_rate: Float[Array, ""]  # in [0, 1), of the dropout heads
    deep_dropout_rate: Float[Array, ""]  # in [0, 1), inside the network
    ema_decay: Float[Array, ""] | None  # in [0, 1), of the moving average of the parameters


def hparams_from_config(config: ConfigDict) -> Hyperparams:
    """Returns the traced hyperparameters of `config`."""
    objective = config.objective
    values = {name: objective[name] for name in Hyperparams._fields if name in objective}
    if objective.region != "tversky":
        values |= dict.fromkeys(("tversky_alpha", "tversky_beta", "tversky_gamma"))
    if objective.region != "cl_dice":
        values["cl_dice_alpha"] = None
    values |= {
        "learning_rate": config.optimizer.learning_rate,
        "crop_fraction": config.augment.crop_fraction,
        "rare_crops": config.augment.rare_crops,
        "copy_paste": config.augment.copy_paste,
        "class_weights": objective.class_weights or None,
        "class_frequencies": objective.class_frequencies or None,
        "region_class_weights": objective.region_class_weights or None,
        "region_weight": None if objective.region == "none" else objective.region_weight,
        "logit_margin_weight": None if objective.logit_margin is None else objective.logit_margin_weight,
        "dropout_rate": config.model.dropout_rate,
        "deep_dropout_rate": config.model.deep_dropout_rate,
        "ema_decay": config.training.ema_decay,
    }
    return Hyperparams(**{k: None if v is None else jnp.asarray(v, jnp.float32) for k, v in values.items()})


class Phase(NamedTuple):
    """Steps up to and including `end` with one crop fraction and one peak learning rate, as in a crop curriculum.

    Without `weighted`, the class weights are 1.
    """

    end: int
    crop_fraction: float
    learning_rate: float
    weighted: bool = True


def phases(config: ConfigDict) -> tuple[Phase, ...]:
    """Returns the phases of `config.training.phases`, cut where the class weights begin; without any, one phase."""
    single = (config.augment.crop_fraction, config.training.steps, config.optimizer.learning_rate)
    crops, steps, rates = zip(*(config.training.phases or (single,)), strict=True)
    plan = tuple(map(Phase, np.cumsum(steps).tolist(), crops, rates))
    if config.objective.class_weights_after is None:
        return plan
    begin = round(config.objective.class_weights_after * config.training.steps)
    starts = (0, *(phase.end for phase in plan))
    before = (
        phase._replace(end=min(phase.end, begin), weighted=False)
        for phase, start in zip(plan, starts, strict=False)
        if start < begin
    )
    return (*before, *(phase for phase in plan if phase.end > begin))


def hparams_at(step: int, hparams: Hyperparams, plan: tuple[Phase, ...]) -> Hyperparams:
    """Returns `hparams` at `step` (the first is 1). Only values change: the step function is not compiled again."""
    phase = next(phase for phase in plan if step <= phase.end)
    weights = hparams.class_weights
    return hparams._replace(
        crop_fraction=jnp.float32(phase.crop_fraction),
        learning_rate=jnp.float32(phase.learning_rate),
        class_weights=weights if phase.weighted or weights is None else jnp.ones_like(weights),
    )


# Functions of logits z, labels y, the mask w of the valid pixels, and the hyperparameters h.
SOFTMAX_LOSSES: dict[str, Callable] = {
    "softmax_cross_entropy": lambda z, y, w, h: losses.softmax_cross_entropy(
        z,
        y,
        where=w,
        class_weights=h.class_weights,
        label_smoothing=0.0 if h.label_smoothing is None else h.label_smoothing,
    ),
    "softmax_focal": lambda z, y, w, h: losses.softmax_focal_loss(z, y, gamma=h.gamma, alpha=h.class_weights, where=w),
    "softmax_poly1": lambda z, y, w, h: losses.softmax_poly1_loss(
        z, y, epsilon=h.poly_epsilon, gamma=h.gamma, alpha=h.class_weights, where=w
    ),
    "ldam": lambda z, y, w, h: losses.ldam_loss(
        z,
        y,
        h.class_frequencies,
        max_margin=h.ldam_margin,
        scale=h.ldam_scale,
        class_weights=h.class_weights,
        where=w,
    ),
    "seesaw": lambda z, y, w, h: losses.seesaw_loss(z, y, h.class_frequencies, p=h.seesaw_p, q=h.seesaw_q, where=w),
    "asymmetric_focal": lambda z, y, w, h: losses.asymmetric_focal_loss(
        z, y, rare=range(1, z.shape[-1]), delta=h.asymmetric_delta, gamma=h.gamma, where=w
    ),
}
# Losses of a data set of two classes, with one logit per pixel, or of each class that overlaps others.
BINARY_LOSSES: dict[str, Callable] = {
    "sigmoid_cross_entropy": lambda z, y, w, h: losses.sigmoid_cross_entropy(z[..., 0], y, where=w, alpha=h.alpha),
    "sigmoid_focal": lambda z, y, w, h: losses.sigmoid_focal_loss(z[..., 0], y, gamma=h.gamma, alpha=h.alpha, where=w),
    "sigmoid_focal_star": lambda z, y, w, h: losses.sigmoid_focal_star_loss(
        z[..., 0], y, gamma=h.gamma, beta=h.beta, alpha=h.alpha, where=w
    ),
    "sigmoid_poly1": lambda z, y, w, h: losses.sigmoid_poly1_loss(
        z[..., 0], y, epsilon=h.poly_epsilon, gamma=h.gamma, alpha=h.alpha, where=w
    ),
    "hinge": lambda z, y, w, h: losses.hinge_loss(z[..., 0], y, where=w),
}
PIXEL_LOSSES = SOFTMAX_LOSSES | BINARY_LOSSES
# Functions of logits z of two or more classes, labels y, the hyperparameters h, weights v of the classes and options o.
REGION_LOSSES: dict[str, Callable | None] = {
    "none": None,
    "dice": lambda z, y, h, v, o: losses.dice_loss(z, y, class_weights=v, **o),
    "generalized_dice": lambda z, y, h, v, o: losses.generalized_dice_loss(z, y, **o),
    "jaccard": lambda z, y, h, v, o: losses.jaccard_loss(z, y, class_weights=v, **o),
    "tversky": lambda z, y, h, v, o: losses.tversky_loss(
        z, y, alpha=h.tversky_alpha, beta=h.tversky_beta, gamma=h.tversky_gamma, class_weights=v, **o
    ),
    "matthews": lambda z, y, h, v, o: losses.matthews_loss(z, y, class_weights=v, **o),
    "cl_dice": lambda z, y, h, v, o: losses.cl_dice_loss(z, y, alpha=h.cl_dice_alpha, class_weights=v, **o),
    "boundary": lambda z, y, h, v, o: losses.boundary_loss(z, y, **o),
    "lovasz": lambda z, y, h, v, o: losses.lovasz_softmax_loss(z, y, class_weights=v, **o),
    "lovasz_hinge": lambda z, y, h, v, o: losses.lovasz_hinge_loss(
        z if o.get("multi_label") else z[..., 1] - z[..., 0], y, **o
    ),
}
WEIGHTED_REGION_LOSSES = ("dice", "jaccard", "tversky", "matthews", "cl_dice", "lovasz")


def region_loss(config: ConfigDict, num_classes: int) -> Callable:
    """Returns `config.objective.region` as a function of z, y, the mask w of the counted pixels, h, and an axis name.

    The Lovász losses are of all outputs, of which w leaves out void. The others are of the classes, and with a binary
    loss of class 1. Where classes overlap, all are of independent channels.
    """
    options, fixed = config.objective, {}
    if not options.region.startswith("lovasz"):
        is_binary = options.loss in BINARY_LOSSES and not config.data.multilabel
        fixed["classes"] = (1,) if is_binary else range(num_classes)
    if config.data.multilabel:
        fixed |= {"multi_label": True} if options.region == "lovasz_hinge" else {"activation": "sigmoid"}
    if options.region_over is not None:
        fixed["over_batch"] = options.region_over == "batch"
    if options.region_absent != "exclude":
        fixed["absent"] = options.region_absent
    if options.region_squared:
        fixed["squared"] = True
    if options.region == "cl_dice":
        fixed["iterations"] = options.cl_dice_iterations

    def loss(z: Float[Array, "B H W C"], y: Array, w: Array, h: Hyperparams, axis_name: AxisName) -> Float[Array, ""]:
        weights = h.region_class_weights
        if weights is not None:  # void has none
            weights = jnp.pad(weights, (0, z.shape[-1] - num_classes))
        return REGION_LOSSES[options.region](z, y, h, weights, {**fixed, "where": w, "axis_name": axis_name})

    return loss


# Pixel losses that depend on how frequent the classes are.
FREQUENCY_LOSSES = ("ldam", "seesaw")


def needs_frequencies(objective: ConfigDict) -> bool:
    """Returns True if an objective depends on the class frequencies of the training set."""
    return objective.loss in FREQUENCY_LOSSES or objective.logit_adjustment is not None


def pixel_loss(config: ConfigDict) -> Callable:
    """Returns `config.objective.loss` as a function of z, y, w and h, with the logit adjustment if there is one."""
    loss = PIXEL_LOSSES[config.objective.loss]
    if config.objective.logit_adjustment is None:
        return loss

    def adjusted(z: Float[Array, "*pixels outputs"], y: Array, w: Array, h: Hyperparams) -> Float[Array, "*pixels"]:
        return loss(z + losses.logit_adjustment(h.class_frequencies, tau=h.logit_adjustment), y, w, h)

    return adjusted


def targets(
    labels: Int[Array, "*B H W"], num_classes: int, void: str
) -> tuple[Int[Array, "*B H W"], Bool[Array, "*B H W"]]:
    """Returns the labels to learn and the mask of the valid pixels.

    With void = "ignore" the mask leaves void pixels out; with "class" they are one more class, the last.
    """
    if void == "class":
        return jnp.where(labels == VOID, num_classes, labels), jnp.ones(labels.shape, bool)
    return labels, labels != VOID


def background_of(config: ConfigDict, num_classes: int) -> int | None:
    """Returns the background class: class 0 of a binary loss, the void class, or `config.objective.background`."""
    options = config.objective
    return 0 if options.loss in BINARY_LOSSES else num_classes if options.void == "class" else options.background


def mined_mean(
    per_pixel: Float[Array, "*pixels"],
    hparams: Hyperparams,
    *,
    where: Bool[Array, "*pixels"],
    positives: Bool[Array, "*pixels"] | None,
    normalizer: str,
    axis_name: AxisName,
    weights: Float[Array, "*pixels"] | None = None,
) -> Float[Array, ""]:
    """Returns the mean of a loss per pixel, or per anchor, over those that the OHEM of `hparams` selects."""
    counted = where
    hard = {"fraction": hparams.hard_fraction, "threshold": hparams.hard_threshold}
    if hparams.negatives_per_positive is not None:
        hard |= {"positives": positives, "negatives_per_positive": hparams.negatives_per_positive}
    if any(criterion is not None for criterion in hard.values()):
        counted = losses.hard_pixels(per_pixel, where=where, axis_name=axis_name, **hard)
    if normalizer == "positives":  # N counts easy positives too, else it would jump as they become easy
        per_pixel, counted = jnp.where(counted, per_pixel, 0), where
    options = {"positives": positives, "normalizer": normalizer, "axis_name": axis_name}
    return losses.mean(per_pixel, where=counted, weights=weights, **options)


class GradientBudget(NamedTuple):
    """Sums of `gradient_budget` per class, hard pixels in column 0, easy ones in 1; budgets of several batches add."""

    gradient: Float[jax.Array | np.ndarray, "classes 2"]  # the sum of |∂L/∂z| over the pixels
    pixels: Int[jax.Array | np.ndarray, "classes 2"]  # int32, their number


def gradient_budget(
    gradient: Float[Array, "*pixels outputs"],
    logits: Float[Array, "*pixels outputs"],
    labels: Int[Array, "*pixels"],
    *,
    where: Bool[Array, "*pixels"],
    easy: float = 0.9,
    axis_name: str | None = None,
) -> GradientBudget:
    r"""Sums the gradient ∂L/∂z by the class of the pixel and by whether the pixel is easy.

    .. math::
        G_{ce} = \sum_{i:\; y_i = c,\; [p_i > easy] = e} \sum_j \left| \frac{\partial L}{\partial z_{ij}} \right|

    p is the probability of the pixel's own class: softmax, or with one logit σ(z) for class 1 and σ(-z) for class 0.
    Only fractions of the whole are meaningful (`budget_scalars`): the scale is that of the reduction. `gradient` is
    ∂L/∂z of any loss L; a pixel with `where` False adds nothing. An unmasked label outside [0, C) gives NaN and -2^31
    by design.
    """
    classes = max(logits.shape[-1], 2)
    cross_entropy = losses.softmax_cross_entropy if logits.shape[-1] > 1 else losses.sigmoid_cross_entropy
    entropy = cross_entropy(logits if logits.shape[-1] > 1 else logits[..., 0], labels, where=where)
    dtype = jnp.promote_types(gradient.dtype, jnp.float32)
    strength = jnp.sum(jnp.where(where[..., None], jnp.abs(gradient).astype(dtype), 0), axis=-1)
    # -log p < -log easy: p itself would round to 1.
    index = labels.astype(jnp.int32) * 2 + (entropy < -math.log(easy)).astype(jnp.int32)
    inside = where[..., None] & jax.nn.one_hot(index, 2 * classes, dtype=bool)
    sums, counts = jnp.where(inside, strength[..., None], 0), inside.astype(jnp.int32)
    while sums.ndim > 1:  # row by row, because one float32 sum over millions of pixels drops small gradients
        sums, counts = sums.sum(-2), counts.sum(-2)
    valid = psum(jnp.sum(where & ((labels < 0) | (labels >= classes)), dtype=jnp.int32), axis_name) == 0
    return GradientBudget(
        jnp.where(valid, psum(sums, axis_name), jnp.nan).reshape(classes, 2),
        jnp.where(valid, psum(counts, axis_name), np.iinfo(np.int32).min).reshape(classes, 2),
    )


def budget_scalars(budget: GradientBudget, names: Sequence[str]) -> dict[str, float]:
    """Returns "budget/NAME/easy" and "…/hard", fractions of the gradient, and "budget_pixels/…", of the pixels. Host.

    All are NaN if the sum is 0 or a label was outside the classes. Names after the last class are ignored.

    >>> budget = GradientBudget(np.array([[2.0, 5.0], [1.0, 0.0]]), np.array([[1, 98], [1, 0]]))
    >>> scalars = budget_scalars(budget, ["road", "debris"])
    >>> scalars["budget/debris/hard"], scalars["budget_pixels/debris/hard"]
    (0.125, 0.01)
    """
    scalars = {}
    for prefix, amounts in zip(("budget", "budget_pixels"), budget, strict=True):
        amounts = np.asarray(amounts, np.float64)
        fractions = amounts / amounts.sum() if amounts.sum() > 0 else np.full_like(amounts, np.nan)
        for name, (hard, easy) in zip(names, fractions.tolist(), strict=False):
            scalars |= {f"{prefix}/{name}/easy": easy, f"{prefix}/{name}/hard": hard}
    return scalars
