"""Metrics for segmentation: counts on the device, which add; scores of the sums, on the host."""

from segjax.metrics.boundary import (
    boundary_counts,
    boundary_counts_per_image,
    boundary_f1,
    boundary_f1_per_image,
    boundary_iou,
    boundary_iou_counts,
    boundary_tolerance,
)
from segjax.metrics.calibration import (
    CalibrationBins,
    calibration_bins,
    classwise_calibration_bins,
    classwise_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_diagram,
)
from segjax.metrics.checkerboard import CheckerboardSums, checkerboard_energy, checkerboard_sums
from segjax.metrics.confusion import confusion_matrix, segmentation_scores
from segjax.metrics.obstacles import component_counts, component_scores, obstacle_targets
from segjax.metrics.per_image import confusion_matrix_per_image, per_image_scores, per_image_sums, recipe_jaccard
from segjax.metrics.precision_recall import class_log_odds, precision_recall_curve
from segjax.metrics.proper_scores import ProperScoreSums, brier_score, negative_log_likelihood, proper_score_sums
from segjax.metrics.ranking import (
    auroc,
    auroc_bounds,
    average_precision,
    average_precision_bounds,
    fpr_at_tpr,
    fpr_at_tpr_bounds,
    score_histogram,
)
from segjax.metrics.selective import (
    accuracy_vs_uncertainty,
    area_under_risk_coverage,
    area_under_risk_coverage_bounds,
    patch_means,
    risk_coverage,
    uncertainty_histogram,
)
from segjax.metrics.thresholds import best_f1, best_f1_bounds, threshold_at_precision
from segjax.metrics.uncertainty import (
    expected_entropy,
    log_mean_softmax,
    max_probability,
    mutual_information,
    predictive_entropy,
)

__all__ = [
    "CalibrationBins",
    "CheckerboardSums",
    "ProperScoreSums",
    "accuracy_vs_uncertainty",
    "area_under_risk_coverage",
    "area_under_risk_coverage_bounds",
    "auroc",
    "auroc_bounds",
    "average_precision",
    "average_precision_bounds",
    "best_f1",
    "best_f1_bounds",
    "boundary_counts",
    "boundary_counts_per_image",
    "boundary_f1",
    "boundary_f1_per_image",
    "boundary_iou",
    "boundary_iou_counts",
    "boundary_tolerance",
    "brier_score",
    "calibration_bins",
    "checkerboard_energy",
    "checkerboard_sums",
    "class_log_odds",
    "classwise_calibration_bins",
    "classwise_calibration_error",
    "component_counts",
    "component_scores",
    "confusion_matrix",
    "confusion_matrix_per_image",
    "expected_calibration_error",
    "expected_entropy",
    "fpr_at_tpr",
    "fpr_at_tpr_bounds",
    "log_mean_softmax",
    "max_probability",
    "maximum_calibration_error",
    "mutual_information",
    "negative_log_likelihood",
    "obstacle_targets",
    "patch_means",
    "per_image_scores",
    "per_image_sums",
    "precision_recall_curve",
    "predictive_entropy",
    "proper_score_sums",
    "recipe_jaccard",
    "reliability_diagram",
    "risk_coverage",
    "score_histogram",
    "segmentation_scores",
    "threshold_at_precision",
    "uncertainty_histogram",
]
