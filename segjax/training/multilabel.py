"""The task of classes that overlap: one sigmoid per class, its objective, counts and scores.

`segjax.training.train_step.task_of` lists the functions that a task has. Labels are train ids of
`LabelSet.combinations`, so that augmentation, cropping and void are those of segmentation; the targets of each class
are looked up on the device.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from segjax import data, inference, losses, metrics
from segjax.collectives import psum
from segjax.data import VOID, LabelSet, Source
from segjax.inference.visualize import colorize_overlaps
from segjax.models import Segmentation
from segjax.training.objective import BINARY_LOSSES, Hyperparams, mined_mean, region_loss
from segjax.training.segmentation import counting_step, make_predictor, make_truth, sum_batches

__all__ = [
    "draw_truth",
    "example_sheet",
    "make_eval_step",
    "make_objective",
    "make_predictor",
    "make_ranking_step",
    "make_truth",
    "microbatch_shares",
    "score_batches",
    "scores",
]


def make_class_targets(config: ConfigDict) -> Callable[[Int[Array, "*pixels"]], Int[Array, "*pixels classes"]]:
    """Builds `targets(labels)`: 1 where a pixel has the class, else 0; -1 for a label that is not a combination."""
    table = jnp.asarray(data.label_set(config.data).combinations, jnp.int32)

    def targets(labels: Int[Array, "*pixels"]) -> Int[Array, "*pixels classes"]:
        valid = (labels >= 0) & (labels < len(table))
        return jnp.where(valid[..., None], table[jnp.where(valid, labels, 0)], -1)

    return targets


def make_objective(config: ConfigDict, num_classes: int) -> Callable:
    r"""Builds `objective(output, labels, hparams, axis_name=None, share=None, outliers=None) -> (loss, parts)`.

    .. math:: L = \frac{1}{N} \sum_i w_i \sum_c \ell(z_{ic}, t_{ic}) + r R + κ A

    ℓ is the binary loss `config.objective.loss` of the logit of each class, w the boundary weight of the pixel (a
    boundary is where the combination of classes changes), R the region loss and A the
    `losses.average_calibration_loss`, both of independent channels. Logits take the role of pixels: OHEM selects
    logits, and N is the number of valid or of positive ones. `share` is the microbatch's entry of `microbatch_shares`.
    Results are over the global batch. `parts` contains "pixel_loss" and, where used, "region_loss" and
    "calibration_loss".
    """
    options, targets_of = config.objective, make_class_targets(config)
    per_logit, region = BINARY_LOSSES[options.loss], region_loss(config, num_classes)
    mode, normalizer, num_bins = options.boundary_mode, options.normalizer, options.calibration_bins

    def objective(
        output: Segmentation,
        labels: Int[Array, "B H W"],
        hparams: Hyperparams,
        axis_name: str | None = None,
        share: dict[str, Float[Array, ""]] | None = None,
        outliers: None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        logits, targets, exists = output.logits, targets_of(labels), labels != VOID
        where, weights = jnp.broadcast_to(exists[..., None], logits.shape), None
        each = per_logit(logits[..., None], targets, where, hparams)
        if hparams.boundary_factor is not None:
            weights = losses.boundary_weights(labels, hparams.boundary_factor, mode=mode, where=exists)
            weights = jnp.broadcast_to(weights[..., None], logits.shape)
        positives = targets == 1
        options = {"positives": positives, "normalizer": normalizer, "axis_name": axis_name}
        loss = mined_mean(each, hparams, where=where, weights=weights, **options)
        loss = loss if share is None else share["pixel_loss"] * loss
        parts = {"pixel_loss": loss}
        if hparams.region_weight is not None:
            parts["region_loss"] = region(logits, targets, where, hparams, axis_name)
            loss += hparams.region_weight * parts["region_loss"]
        if hparams.calibration_weight is not None:
            parts["calibration_loss"] = losses.average_calibration_loss(
                logits, targets, num_bins=num_bins, where=where, activation="sigmoid", axis_name=axis_name
            )
            loss += hparams.calibration_weight * parts["calibration_loss"]
        return loss, parts

    return objective


def microbatch_shares(
    labels: Int[Array, "k b H W"],
    config: ConfigDict,
    num_classes: int,
    axis_name: str | None,
    outliers: None = None,
) -> dict[str, Float[Array, " k"]]:
    """Returns the weight of each microbatch's mean in the mean over the whole batch, see `segmentation`."""
    counted = (labels != VOID)[..., None]
    if config.objective.normalizer == "positives":
        counted = (make_class_targets(config)(labels) == 1) & counted
    counts = psum(counted.sum(axis=(1, 2, 3, 4), dtype=jnp.float32), axis_name)
    if config.objective.normalizer == "positives":
        counts = jnp.maximum(counts, 1)  # `losses.mean` divides by no less than 1
    return {"pixel_loss": counts / jnp.maximum(counts.sum(), 1)}


def make_eval_step(
    config: ConfigDict, model: Any, num_classes: int, axis_name: str | None, corruption: tuple[str, int] | None = None
) -> Callable:
    """Builds `step(state, batch, hparams) -> counts`, the counts of `make_score_counts`, which add over batches."""
    count = make_score_counts(config, axis_name)

    def count_maps(maps: dict[str, Array], labels: Array, where: Array, hparams: Hyperparams) -> dict[str, Array]:
        return count(maps["outputs"], labels, where, hparams)

    return counting_step(config, model, num_classes, count_maps, corruption)


def make_ranking_step(config: ConfigDict, model: Any, num_classes: int, number: int, axis_name: str | None) -> Callable:
    """Builds `step(state, batch) -> counts`, which add over batches: "scores", a histogram of class `number`."""
    targets_of = make_class_targets(config)

    def count(maps: dict[str, Array], labels: Array, where: Array) -> dict[str, Array]:
        odds, targets = maps["outputs"][..., number], targets_of(labels)[..., number]
        return {"scores": metrics.score_histogram(odds, targets, where=where, axis_name=axis_name)}

    return counting_step(config, model, num_classes, count)


def make_score_counts(config: ConfigDict, axis_name: str | None) -> Callable:
    """Builds `count(logits, labels, where, hparams)`, which returns the counts of `scores`.

    - "confusion": `[C, 2, 2]`, per class the confusion matrix of its absence and presence;
    - "scores": `[C, 2, bins]`, per class its score histogram;
    - "exact" and "pixels": the number of pixels with exactly the right classes, and of all;
    - "loss_sum" and "loss_logits": numerator and denominator of the pixel loss without boundary weights and OHEM.
    """
    per_logit, targets_of = BINARY_LOSSES[config.objective.loss], make_class_targets(config)
    counts_positives = config.objective.normalizer == "positives"

    def count(
        logits: Float[Array, "b H W C"], labels: Int[Array, "b H W"], where: Bool[Array, "b H W"], hparams: Any
    ) -> dict[str, Array]:
        targets, shared = targets_of(labels), {"where": where, "axis_name": axis_name}

        def count_class(one: tuple[Array, Array]) -> tuple[Array, Array]:
            odds, target = one
            predicted = (odds > 0).astype(jnp.int32)
            matrix = metrics.confusion_matrix(target, predicted, 2, **shared)
            return matrix, metrics.score_histogram(odds, target, **shared)

        # One compiled body for all classes.
        confusion, histograms = jax.lax.map(count_class, (jnp.moveaxis(logits, -1, 0), jnp.moveaxis(targets, -1, 0)))
        exact = ((logits > 0) == (targets == 1)).all(axis=-1) & where
        each_where = jnp.broadcast_to(where[..., None], logits.shape)
        loss = losses.mean(
            per_logit(logits[..., None], targets, each_where, hparams), where=each_where, axis_name=axis_name
        )
        counted = each_where & (targets == 1) if counts_positives else each_where
        all_logits, pixels = (psum(x.sum(dtype=jnp.int32), axis_name) for x in (each_where, where))
        return {
            "confusion": confusion,
            "scores": histograms,
            "exact": psum(exact.sum(dtype=jnp.int32), axis_name),
            "pixels": pixels,
            "loss_sum": loss * all_logits.astype(loss.dtype),
            "loss_logits": psum(counted.sum(dtype=jnp.int32), axis_name),
        }

    return count


def score_batches(batches: Iterable[dict[str, Any]], source: Source, config: ConfigDict) -> dict[str, Any]:
    """Returns `scores` of the counts of every image of `source`.

    "images", "skipped", "data" and "classes" are the number of images, of bad images left out, the digest, and the
    names of the classes.
    """
    facts = {"images": len(source), "skipped": len(source.skipped), "data": source.digest}
    return facts | {"classes": list(source.label_set.names)} | scores(sum_batches(batches))


def scores(counts: dict[str, Any]) -> dict[str, Any]:
    """Returns the scores for the summed counts of an evaluation step.

    - "confusion": int64, per class the rows of its confusion matrix;
    - per class "iou_per_class", "dice_per_class", "precision_per_class", "recall_per_class" of p > 1/2,
      "average_precision_per_class", and "best_iou_per_class" with its "best_threshold_per_class"; NaN if undefined;
    - their means over the classes in which they are defined, "mean_iou", "mean_dice", "mean_precision", "mean_recall"
      and "mean_average_precision";
    - "exact_match": the fraction of the pixels with exactly the right classes; and "pixel_loss".
    """
    found: dict[str, Any] = {"confusion": counts["confusion"].tolist()}
    of_classes = [metrics.segmentation_scores(matrix) for matrix in counts["confusion"]]
    for name in ("iou", "dice", "precision", "recall"):
        found[f"{name}_per_class"] = [float(one[f"{name}_per_class"][1]) for one in of_classes]
    found["average_precision_per_class"] = [float(metrics.average_precision(one)) for one in counts["scores"]]
    best = [metrics.best_f1(one) for one in counts["scores"]]
    # IoU = F1 / (2 - F1) grows with F1, so both are best at the same threshold.
    found["best_iou_per_class"] = [f1 / (2 - f1) for f1, _ in best]
    found["best_threshold_per_class"] = [1 / (1 + math.exp(-logit)) for _, logit in best]
    for name in ("iou", "dice", "precision", "recall", "average_precision"):
        found[f"mean_{name}"] = _mean(found[f"{name}_per_class"])
    found["exact_match"] = int(counts["exact"]) / max(1, int(counts["pixels"]))
    found["pixel_loss"] = float(counts["loss_sum"]) / max(1, int(counts["loss_logits"]))
    return found


def _mean(values: Sequence[float]) -> float:
    """Returns the mean of the values that are not NaN; NaN without any."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def example_sheet(
    predictors: Mapping[str, Callable], source: Source, config: ConfigDict, indices: Iterable[int]
) -> np.ndarray:
    """Draws one row per image, uint8 RGB `[height, width, 3]`: image, truth, and what each predictor returns."""
    rows, labels = {}, source.label_set
    for index in indices:
        image, truth = source[index]["image"], draw_truth(source[index]["label"], labels)
        predicted = [colorize_overlaps(predictor(image).mask, labels.palette) for predictor in predictors.values()]
        rows[source.name(index)] = [inference.as_rgb(image), truth, *predicted]
    return inference.contact_sheet(rows, ("image", "truth", *predictors), labels)


def draw_truth(label: UInt8[np.ndarray, "H W"], label_set: LabelSet) -> UInt8[np.ndarray, "H W 3"]:
    """Paints the combinations of a label with `colorize_overlaps`; void is grey."""
    truth = colorize_overlaps(label_set.combinations[np.where(label == VOID, 0, label)], label_set.palette)
    truth[label == VOID] = 128
    return truth
