"""Metrics for segmentation: counts on the device, which add; scores of the sums, on the host."""

from segjax.metrics.confusion import confusion_matrix, segmentation_scores
from segjax.metrics.ranking import (
    auroc,
    average_precision,
    average_precision_bounds,
    fpr_at_tpr,
    score_histogram,
)

__all__ = [
    "auroc",
    "average_precision",
    "average_precision_bounds",
    "confusion_matrix",
    "fpr_at_tpr",
    "score_histogram",
    "segmentation_scores",
]
