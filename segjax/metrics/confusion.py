"""The confusion matrix, counted on the device, and every score that is a function of it, on the host."""

import math
from collections.abc import Hashable

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer

from segjax import checks
from segjax.metrics.counts import ABSENT, confusion_cells, count, host_counts, mean_of_known, ratio


def confusion_matrix(
    labels: Integer[ArrayLike, "*pixels"],
    predictions: Integer[ArrayLike, "*pixels"] | Float[ArrayLike, "*pixels classes"],
    num_classes: int,
    *,
    where: Bool[ArrayLike, "*#pixels"] | None = None,
    axis_name: Hashable | None = None,
) -> Int[Array, "{num_classes} {num_classes}"]:
    r"""Pixels of each (true class, predicted class), over all devices.

    .. math:: M_{ij} = \#\{\text{kept pixels with label } i \text{ and prediction } j\}

    Matrices add: over batches with `+`, in int64 on the host (`np.asarray(m, np.int64)`), since a set can have more
    than 2^31 pixels; one call cannot.

    Args:
        labels: the true classes, integers in [0, num_classes), any shape.
        predictions: the predicted classes, integers in [0, num_classes), the same shape; or floating logits (or
            probabilities) `[..., C]`, of which the largest is the prediction, and the lowest class of equal ones.
        num_classes: C ≥ 1, static.
        where: boolean of the labels' shape or broadcastable to it; False: no such pixel, whatever its label and logits.
        axis_name: the mapped device axis, or None under `jit`.

    Returns:
        int32 `[C, C]`, rows truth, columns prediction. If `where` keeps a label or prediction outside [0, C) or a NaN
        logit, every entry is -2^31 (integers have no NaN), which `segmentation_scores` refuses, also in a sum in int64.
        To know the batch, test `(matrix < 0).any()`.

    Raises:
        TypeError: labels are not integers, predictions neither integers nor floating, `where` not boolean.
        ValueError: shapes do not fit, or C < 1.

    References:
        Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 88 (2010): IoU from pixel counts.

    >>> import jax.numpy as jnp
    >>> labels = jnp.array([0, 0, 1, 255])
    >>> print(confusion_matrix(labels, jnp.array([0, 1, 1, 0]), 2, where=labels != 255))
    [[1 1]
     [0 1]]
    """
    cells, valid = confusion_cells(labels, predictions, num_classes)
    keep = None if where is None else checks.mask("where", where, cells.shape)
    return count(cells, valid, keep, num_classes * num_classes, axis_name).reshape(num_classes, num_classes)


def segmentation_scores(
    confusion: Integer[jax.Array | np.ndarray, "classes classes"], *, absent: str = "exclude"
) -> dict[str, float | np.ndarray]:
    r"""All scores of a confusion matrix, over the data set it was summed over.

    With TP, FP, FN, TN of a class (the others against it), N the sum of the matrix M and means over classes:

    .. math:: IoU_c = \frac{TP_c}{TP_c + FP_c + FN_c} = \frac{M_{cc}}{\sum_j M_{cj} + \sum_i M_{ic} - M_{cc}}

    - `iou_per_class`, `mean_iou` its mean (Jaccard; not the mean of the images' IoU);
    - `dice_per_class` = 2 TP / (2 TP + FP + FN), `mean_dice` its mean (F1);
    - `recall_per_class` = TP / (TP + FN), also as `accuracy_per_class`, which is what the segmentation literature calls
      it, `mean_accuracy` its mean (balanced accuracy);
    - `precision_per_class` = TP / (TP + FP);
    - `pixel_accuracy` = Σ TP / N;
    - `one_vs_rest_accuracy_per_class` = (TP + TN) / N: near 1 for every rare class, found or not;
    - `frequency_weighted_iou` = Σ (TP + FN) / N · IoU;
    - `matthews_correlation` = (N Σ TP - Σ t p) / √((N² - Σ t²) (N² - Σ p²)), with t = TP + FN and p = TP + FP:
      Gorodkin's R_K, for two classes the Matthews coefficient; 0 without skill, however rare a class is.

    Args:
        confusion: integers `[C, C]`, rows truth, columns prediction: sums of `confusion_matrix`.
        absent: what a class gets whose denominator is 0. "exclude": NaN per class, and left out of the means (which are
            NaN if nothing is left); "zero" or "one": that score, and it counts in the means.

    Returns:
        The scores by name: floats, and float64 `[C]` for the names that end in `_per_class`; in [0, 1], but the
        Matthews coefficient in [-1, 1]. That one is NaN if all pixels are of one true or one predicted class (0/0, for
        which scikit-learn says 0). Of an empty matrix the scores that divide by N are NaN, whatever `absent` says.

    Raises:
        TypeError: `confusion` is traced, or not integers.
        ValueError: it is not `[C, C]`, a count is negative (see `confusion_matrix`), or `absent` is unknown.

    References:
        Long et al., Fully Convolutional Networks for Semantic Segmentation, arXiv 1411.4038 (the four accuracies).
        Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, Comput. Biol. Chem. 28
        (2004).

    >>> import numpy as np
    >>> scores = segmentation_scores(np.array([[6, 2, 0], [0, 2, 0], [0, 0, 0]]))
    >>> scores["mean_iou"], scores["pixel_accuracy"]
    (0.625, 0.8)
    >>> print(scores["iou_per_class"])
    [0.75 0.5   nan]
    """
    checks.choice("absent", absent, tuple(ABSENT))
    matrix = host_counts(
        "confusion", confusion, "a label or prediction outside [0, classes) was counted, in a pixel that `where` keeps"
    )
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"confusion must be [classes, classes]; got shape {matrix.shape}")
    total = matrix.sum()
    true_positives = np.diagonal(matrix)
    of_truth, of_prediction = matrix.sum(axis=1), matrix.sum(axis=0)
    union = of_truth + of_prediction - true_positives
    fill = ABSENT[absent]
    iou = ratio(true_positives, union, fill)
    dice = ratio(2 * true_positives, of_truth + of_prediction, fill)
    recall = ratio(true_positives, of_truth, fill)
    return {
        "mean_iou": mean_of_known(iou),
        "iou_per_class": iou,
        "pixel_accuracy": float(ratio(true_positives.sum(), total, np.nan)),
        "mean_accuracy": mean_of_known(recall),
        "accuracy_per_class": recall,
        "one_vs_rest_accuracy_per_class": ratio(total - union + true_positives, np.full_like(union, total), np.nan),
        # A class without a true pixel has weight 0 here, so its IoU is not asked for.
        "frequency_weighted_iou": float(ratio((of_truth * ratio(true_positives, union, 0.0)).sum(), total, np.nan)),
        "mean_dice": mean_of_known(dice),
        "dice_per_class": dice,
        "precision_per_class": ratio(true_positives, of_prediction, fill),
        "recall_per_class": recall.copy(),
        "matthews_correlation": _matthews(true_positives, of_truth, of_prediction),
    }


def _matthews(true_positives: np.ndarray, of_truth: np.ndarray, of_prediction: np.ndarray) -> float:
    # In Python's integers: N² passes int64 at 2^32 pixels, and float64 loses a rare class in N² - Σ t².
    correct, truth, prediction = true_positives.tolist(), of_truth.tolist(), of_prediction.tolist()
    total = sum(truth)
    covariance = total * sum(correct) - sum(t * p for t, p in zip(truth, prediction, strict=True))
    variances = (total**2 - sum(t * t for t in truth)) * (total**2 - sum(p * p for p in prediction))
    return min(max(covariance / math.sqrt(variances), -1.0), 1.0) if variances else float("nan")
