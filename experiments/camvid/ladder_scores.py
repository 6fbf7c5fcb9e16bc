"""The columns of the ladder: counts on the device, at the labels' own resolution, and scores of their sums."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from segjax import metrics
from segjax.data.labels import VOID
from segjax.data.resize import resize
from segjax.inference import classify
from segjax.training.evaluation import preprocessing_of

RATE = 0.2  # p of the dropout whose variance is looked at
TOLERANCE = 3.0  # of boundary F1, in pixels of 360×480 images: SegNet's 0.75 % of the diagonal is 4.5


def make_counts(config: ConfigDict, model: Any, num_classes: int) -> Callable:
    """Builds `step(state, batch) -> counts`: what the columns are made of, at the labels' own resolution."""
    preprocessing, model = preprocessing_of(config, num_classes), model.clone(dropout="analytic")
    knows_void = config.objective.void == "class"

    def step(state, batch: dict[str, jax.Array]) -> dict[str, Any]:
        labels = batch["label"].astype(jnp.int32)
        images = preprocessing.network_input(batch["image"], batch["size"])
        output = model.apply(state.variables, images, train=False, rate=RATE)
        maps = jnp.concatenate([output.logits, output.logit_variance.mean(-1, keepdims=True)], axis=-1)
        maps = resize(maps, labels.shape[1:], antialias=False, to_sizes=batch["size"])
        logits, variance = maps[..., :-1], maps[..., -1]
        shown = jnp.broadcast_to(batch["where"][:, None, None], labels.shape)
        where, predicted = shown & (labels != VOID), classify(logits, num_classes)
        likeliest = jnp.argmax(logits, axis=-1) if knows_void else predicted
        with_void = metrics.confusion_matrix_per_image(
            jnp.where(labels == VOID, num_classes, labels), likeliest, num_classes + 1, where=shown
        )
        right = jnp.trace(with_void, axis1=1, axis2=2)
        return {
            "confusion": metrics.confusion_matrix(labels, predicted, num_classes, where=where),
            "boundary": metrics.boundary_counts(labels, predicted, num_classes, tolerance=TOLERANCE, where=where),
            "calibration": metrics.calibration_bins(logits[..., :num_classes], labels, where=where),
            # The histogram has bins for logits; the order of the pixels is that of the variance itself.
            "void_or_wrong": metrics.score_histogram(
                jnp.log(jnp.maximum(variance, 1e-7)), predicted != labels, where=shown
            ),
            # scikit-learn's old "Jaccard", `metrics.recipe_jaccard`, as a sum over the images.
            "accuracy_with_void": jnp.sum(right / jnp.maximum(with_void.sum((1, 2)), 1)),
        }

    return step


def scores(counts: dict[str, Any], images: int) -> dict[str, Any]:
    """The columns, and IoU by class, from the added counts."""
    segmentation = metrics.segmentation_scores(counts["confusion"])
    return {
        "mean_iou": float(segmentation["mean_iou"]),
        "mean_accuracy": float(segmentation["mean_accuracy"]),
        "pixel_accuracy": float(segmentation["pixel_accuracy"]),
        "boundary_f1": float(metrics.boundary_f1(counts["boundary"])["mean_boundary_f1"]),
        "expected_calibration_error": float(metrics.expected_calibration_error(counts["calibration"])),
        "void_or_wrong_average_precision": float(metrics.average_precision(counts["void_or_wrong"])),
        "recipe_jaccard": float(counts["accuracy_with_void"]) / images,
        "iou_per_class": [float(value) for value in segmentation["iou_per_class"]],
    }
