"""Metrics for segmentation: additive counts on the device, and scores of their sums on the host.

`where=False` excludes a pixel from every count, whatever its label or logit. `axis_name` is the mapped device axis over
which the pixels are distributed; leave it out under `jit`. Counts are int32: add those of batches on the host in int64,
`total += np.asarray(counts, np.int64)`. Integers have no NaN, so an unmasked invalid pixel makes every count of its
call -2^31, and the scores refuse such a sum with a ValueError.
"""

# One name per line would be 110 lines.
# fmt: off
# isort: off
from segjax.metrics.boundary import (
    boundary_counts, boundary_counts_per_image, boundary_f1, boundary_f1_per_image, boundary_iou, boundary_iou_counts,
    boundary_tolerance,
)
from segjax.metrics.calibration import (
    CalibrationBins, ProperScoreSums, brier_score, calibration_bins, classwise_calibration_bins,
    classwise_calibration_error, expected_calibration_error, maximum_calibration_error, negative_log_likelihood,
    proper_score_sums, reliability_diagram,
)
from segjax.metrics.checkerboard import CheckerboardSums, checkerboard_energy, checkerboard_sums
from segjax.metrics.confusion import (
    confusion_matrix, confusion_matrix_per_image, per_image_scores, per_image_sums, recipe_jaccard, segmentation_scores,
)
from segjax.metrics.obstacles import component_counts, component_scores, obstacle_targets
from segjax.metrics.ranking import (
    auroc, auroc_bounds, average_precision, average_precision_bounds, best_f1, best_f1_bounds, class_log_odds,
    fpr_at_tpr, fpr_at_tpr_bounds, precision_recall_curve, score_histogram, threshold_at_precision,
)
from segjax.metrics.uncertainty import (
    accuracy_vs_uncertainty, area_under_risk_coverage, area_under_risk_coverage_bounds, expected_entropy,
    log_mean_softmax, max_probability, mutual_information, patch_means, predictive_entropy, risk_coverage,
    uncertainty_histogram,
)

__all__ = [
    "CalibrationBins", "CheckerboardSums", "ProperScoreSums", "accuracy_vs_uncertainty", "area_under_risk_coverage",
    "area_under_risk_coverage_bounds", "auroc", "auroc_bounds", "average_precision", "average_precision_bounds",
    "best_f1", "best_f1_bounds", "boundary_counts", "boundary_counts_per_image", "boundary_f1", "boundary_f1_per_image",
    "boundary_iou", "boundary_iou_counts", "boundary_tolerance", "brier_score", "calibration_bins",
    "checkerboard_energy", "checkerboard_sums", "class_log_odds", "classwise_calibration_bins",
    "classwise_calibration_error", "component_counts", "component_scores", "confusion_matrix",
    "confusion_matrix_per_image", "expected_calibration_error", "expected_entropy", "fpr_at_tpr", "fpr_at_tpr_bounds",
    "log_mean_softmax", "max_probability", "maximum_calibration_error", "mutual_information", "negative_log_likelihood",
    "obstacle_targets", "patch_means", "per_image_scores", "per_image_sums", "precision_recall_curve",
    "predictive_entropy", "proper_score_sums", "recipe_jaccard", "reliability_diagram", "risk_coverage",
    "score_histogram", "segmentation_scores", "threshold_at_precision", "uncertainty_histogram",
]
