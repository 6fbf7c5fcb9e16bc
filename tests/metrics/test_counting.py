"""Negative counts: the error of every score names the cause, an overflow of int32 or an invalid pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import metrics

BINS = metrics.CalibrationBins(jnp.full(3, 2**30), jnp.full(3, 2**30), jnp.full(3, 2.0**29))
SUMS = metrics.ProperScoreSums(jnp.int32(2**30 + 5), jnp.float32(1), jnp.float32(1))
LARGE = jnp.array([[2**30, 1], [5, 2**30 + 7]])  # one addition overflows int32
HISTOGRAM = jnp.zeros((2, 64), int).at[0, 3].set(2**30 + 2).at[1, 60].set(9)
# Score -> counts whose sum with themselves overflows int32.
SCORES = {
    metrics.segmentation_scores: LARGE,
    metrics.per_image_sums: jnp.stack([LARGE, LARGE]),
    metrics.recipe_jaccard: LARGE,
    metrics.boundary_f1: jnp.tile(LARGE, (1, 2)),
    metrics.boundary_f1_per_image: jnp.tile(LARGE, (3, 1, 2)),
    metrics.boundary_iou: LARGE,
    metrics.component_scores: jnp.array([[2**30, 5, 1]]),
    metrics.expected_calibration_error: BINS,
    metrics.maximum_calibration_error: BINS,
    metrics.reliability_diagram: BINS,
    metrics.classwise_calibration_error: jax.tree.map(lambda x: jnp.stack([x, x]), BINS),
    metrics.brier_score: SUMS,
    metrics.negative_log_likelihood: SUMS,
    lambda h: metrics.accuracy_vs_uncertainty(h, 1.0): HISTOGRAM,
    lambda h: metrics.threshold_at_precision(h, 0.5): HISTOGRAM,
    **dict.fromkeys(
        [
            metrics.average_precision,
            metrics.average_precision_bounds,
            metrics.auroc,
            metrics.auroc_bounds,
            metrics.fpr_at_tpr,
            metrics.fpr_at_tpr_bounds,
            metrics.best_f1,
            metrics.best_f1_bounds,
            metrics.precision_recall_curve,
            metrics.risk_coverage,
            metrics.area_under_risk_coverage,
            metrics.area_under_risk_coverage_bounds,
        ],
        HISTOGRAM,
    ),
}


@pytest.mark.parametrize("score", SCORES)
def test_scores_int32_overflow(score):
    wrapped = jax.tree.map(lambda x: x + x, SCORES[score])
    with pytest.raises(ValueError, match=r"overflowed int32: add counts on the host in int64"):
        score(wrapped)
    score(jax.tree.map(lambda x: np.asarray(x, np.int64 if x.dtype == jnp.int32 else np.float64) * 2, SCORES[score]))


def test_segmentation_scores_overflow_is_not_an_invalid_pixel():
    with pytest.raises(ValueError, match=r"^confusion has a negative count, -2147483648: a sum overflowed int32"):
        metrics.segmentation_scores(LARGE + LARGE)
    # With one invalid image among several, the error names both causes.
    images = jnp.stack([jnp.full((2, 2), -(2**31)), jnp.eye(2, dtype=int)])
    with pytest.raises(ValueError, match=r"a label or prediction outside .* was counted"):
        metrics.per_image_sums(images)
