"""Confusion matrices of a data set or of each image, and the scores that are functions of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from segjax import checks
from segjax.checks import AxisName, Labels, Logits, Scalar, Where
from segjax.metrics._counting import Counts, count, fill_of, host_counts, nanmean, ratio

_CAUSE = "a label or prediction outside [0, C), or a NaN logit, was counted in an unmasked pixel"
_PER_IMAGE = ("mean_iou", "mean_dice", "pixel_accuracy", "mean_accuracy", "iou_per_class", "dice_per_class")


def confusion_matrix(
    labels: Labels, predictions: Labels | Logits, num_classes: int, *, where: Where = None, axis_name: AxisName = None
) -> Int[Array, "{num_classes} {num_classes}"]:
    r"""Counts the pixels per true and predicted class, over all devices.

    .. math:: M_{ij} = \#\{\text{unmasked pixels with label } i \text{ and prediction } j\}

    Args:
        labels: true classes, integers in [0, C) or booleans, `[...]`.
        predictions: predicted classes in the labels' shape, or floating logits `[..., C]`, of which the argmax counts.
        num_classes: C ≥ 1, static.
        where: boolean, broadcastable to the labels; False removes the pixel.
        axis_name: mapped device axis, or None.

    Returns:
        int32 `[C, C]`: rows are true classes, columns predictions. Add batches on the host in int64: int32 overflows.
        Every entry is -2^31 if an unmasked label or prediction is outside [0, C) or an unmasked logit is NaN.

    Raises: TypeError or ValueError if a dtype or shape does not fit, or C < 1.
    References: Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 88 (2010).

    >>> labels = jnp.array([0, 0, 1, 255])
    >>> print(confusion_matrix(labels, jnp.array([0, 1, 1, 0]), 2, where=labels != 255))
    [[1 1]
     [0 1]]
    """
    cells, valid, keep = _cells(labels, predictions, num_classes, where)
    return count(cells, valid, keep, num_classes * num_classes, axis_name).reshape(num_classes, num_classes)


def segmentation_scores(
    confusion: Counts, *, absent: str = "exclude", beta: Scalar | None = None
) -> dict[str, float | np.ndarray]:
    r"""Returns all scores of a confusion matrix, which may be a sum over a data set.

    With TP, FP, FN and TN of each class against the others, N pixels, and means over classes:

    .. math:: IoU_c = \frac{TP_c}{TP_c + FP_c + FN_c} = \frac{M_{cc}}{\sum_j M_{cj} + \sum_i M_{ic} - M_{cc}}

    - `iou_per_class` and its mean `mean_iou` (Jaccard index; not the mean of the images' IoU);
    - `dice_per_class` = 2 TP / (2 TP + FP + FN) and its mean `mean_dice` (F1);
    - `recall_per_class` = `accuracy_per_class` = TP / (TP + FN) and its mean `mean_accuracy` (balanced accuracy);
    - `precision_per_class` = TP / (TP + FP);
    - with `beta`, `f_beta_per_class` = (1 + β²) TP / ((1 + β²) TP + β² FN + FP) and its mean `mean_f_beta`;
    - `pixel_accuracy` = Σ TP / N;
    - `one_vs_rest_accuracy_per_class` = (TP + TN) / N: near 1 for every rare class, found or not;
    - `frequency_weighted_iou` = Σ (TP + FN) / N · IoU;
    - `matthews_correlation` = (N Σ TP - Σ t p) / √((N² - Σ t²) (N² - Σ p²)), with t = TP + FN and p = TP + FP.

    Args:
        confusion: integers `[C, C]`, rows are true classes: a sum of `confusion_matrix`.
        absent: score of a class whose denominator is 0: "exclude" (NaN, which the means leave out), "zero" or "one".
        beta: β > 0, the weight of recall against precision in the F-beta score; 1 is Dice. None: no such score.

    Returns:
        The scores by name: floats, and float64 `[C]` for `_per_class`, in [0, 1]; the Matthews (Gorodkin's) coefficient
        in [-1, 1]. NaN for 0 / 0: means without a class, N = 0, one true or one predicted class for Matthews.

    Raises: TypeError or ValueError if the counts are traced, not integers, of another shape, or negative
        (invalid), or β is not more than 0.
    References: Long et al., arXiv 1411.4038 (accuracies); Gorodkin, Computational Biology and Chemistry 28 (2004).

    >>> scores = segmentation_scores(np.array([[6, 2, 0], [0, 2, 0], [0, 0, 0]]))
    >>> print(scores["mean_iou"], scores["iou_per_class"], scores["pixel_accuracy"])
    0.625 [0.75 0.5   nan] 0.8
    """
    fill = fill_of(absent)
    matrix = host_counts("confusion", confusion, _CAUSE)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"confusion must be [classes, classes]; got shape {matrix.shape}")
    total = matrix.sum()
    true_positives = np.diagonal(matrix)
    true, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    union = true + predicted - true_positives
    iou = ratio(true_positives, union, fill)
    dice = ratio(2 * true_positives, true + predicted, fill)
    recall = ratio(true_positives, true, fill)
    scores = {
        "mean_iou": nanmean(iou),
        "iou_per_class": iou,
        "pixel_accuracy": float(ratio(true_positives.sum(), total)),
        "mean_accuracy": nanmean(recall),
        "accuracy_per_class": recall,
        "one_vs_rest_accuracy_per_class": ratio(total - union + true_positives, np.full_like(union, total)),
        # A class without a true pixel has weight 0, so `absent` does not matter.
        "frequency_weighted_iou": float(ratio((true * ratio(true_positives, union, 0.0)).sum(), total)),
        "mean_dice": nanmean(dice),
        "dice_per_class": dice,
        "precision_per_class": ratio(true_positives, predicted, fill),
        "recall_per_class": recall.copy(),
        "matthews_correlation": _matthews(true_positives, true, predicted),
    }
    if beta is not None:
        checks.finite("beta", checks.host("beta", beta), jnp.float32, above=0.0)
        square = float(beta) ** 2
        scores["f_beta_per_class"] = ratio((1 + square) * true_positives, square * true + predicted, fill)
        scores["mean_f_beta"] = nanmean(scores["f_beta_per_class"])
    return scores


def confusion_matrix_per_image(
    labels: Labels, predictions: Labels | Logits, num_classes: int, *, where: Where = None
) -> Int[Array, "images {num_classes} {num_classes}"]:
    r"""Returns the confusion matrix of each image. Their sum is the `confusion_matrix` of the batch.

    .. math:: M_{nij} = \#\{\text{unmasked pixels of image } n \text{ with label } i \text{ and prediction } j\}

    Args:
        labels, predictions, num_classes, where: as in `confusion_matrix`; N images first.

    Returns: int32 `[N, C, C]`, rows are true classes. An image with an invalid unmasked pixel has -2^31 in every entry.
    Raises: as `confusion_matrix`, or labels are a scalar.
    References: Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013.

    >>> labels = jnp.array([[0, 0, 1], [1, 1, 255]])
    >>> confusion_matrix_per_image(labels, jnp.array([[0, 1, 1], [1, 1, 0]]), 2, where=labels != 255).tolist()
    [[[1, 1], [0, 1]], [[0, 0], [0, 2]]]
    """
    cells, valid, keep = _cells(labels, predictions, num_classes, where)
    if cells.ndim == 0:
        raise ValueError("labels must have an axis of images; got a scalar")
    matrices = jax.vmap(lambda *image: count(*image, num_classes * num_classes, None))(cells, valid, keep)
    return matrices.reshape(-1, num_classes, num_classes)


def per_image_sums(confusions: Counts, *, absent: str = "exclude") -> dict[str, np.ndarray]:
    r"""Sums each score over the images, and counts the images in each sum.

    .. math:: S = \left(\sum_{n \in J} s_n,\; |J|\right)

    J are the images in which the score s_n is defined (not NaN). An image without unmasked pixels does not exist. Add
    the sums of batches, `sums = jax.tree.map(np.add, sums, per_image_sums(batch))`; then call `per_image_scores`.

    Args:
        confusions: integers `[N, C, C]` from `confusion_matrix_per_image`, or `[C, C]` for one image.
        absent: as in `segmentation_scores`; "exclude" also leaves the image out of the class's mean.

    Returns: The keys of `per_image_scores`, each float64 `[2, ...]`: sum of the score, and number of images.
    Raises: as `segmentation_scores`, for `[..., C, C]`.
    References: Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013.

    >>> sums = per_image_sums(np.array([[[3, 1], [0, 0]], [[0, 0], [0, 0]], [[2, 0], [0, 2]]]))
    >>> sums["pixel_accuracy_per_image"].tolist(), sums["iou_per_class_per_image"].tolist()
    ([1.75, 2.0], [[1.75, 1.0], [2.0, 2.0]])
    """
    fill_of(absent)
    matrices = host_counts("confusions", confusions, _CAUSE)
    if matrices.ndim < 2 or matrices.shape[-1] != matrices.shape[-2]:
        raise ValueError(f"confusions must be [images, classes, classes]; got shape {matrices.shape}")
    num_classes = matrices.shape[-1]
    sums = {name: np.zeros((2, num_classes) if name.endswith("_per_class") else 2) for name in _PER_IMAGE}
    for matrix in matrices.reshape(-1, num_classes, num_classes):
        if matrix.any():
            scores = segmentation_scores(matrix, absent=absent)
            for name, total in sums.items():
                known = ~np.isnan(scores[name])
                total += np.stack([np.where(known, scores[name], 0.0), known])
    return {f"{name}_per_image": total for name, total in sums.items()}


def per_image_scores(sums: dict[str, np.ndarray]) -> dict[str, float | np.ndarray]:
    r"""Returns the means over images of each image's scores, from sums of `per_image_sums`.

    .. math:: \bar{s} = \frac{1}{|J|} \sum_{n \in J} s_n

    J are the images in which the score s_n of `segmentation_scores` is defined. Every image has the same weight:

    - `mean_iou_per_image`, `mean_dice_per_image`, `mean_accuracy_per_image`: mean over the classes counted in an image
      (IoU, Dice: TP + FP + FN > 0; accuracy: TP + FN > 0), then over the images;
    - `pixel_accuracy_per_image`: mean of the images' pixel accuracies;
    - `iou_per_class_per_image`, `dice_per_class_per_image`: `[C]`, per class the mean over the images that count it.

    Args:
        sums: sums over all images, by name.

    Returns: The same names, float or float64 `[C]`, in [0, 1]; NaN where the score is defined in no image.
    Raises: ValueError if an entry is not `[2, ...]`, sum and number.
    References: Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013.

    >>> matrices = np.array([[[96, 1], [0, 0]], [[1, 0], [1, 1]]])  # a large image and a small one
    >>> per_image = per_image_scores(per_image_sums(matrices))["mean_iou_per_image"]
    >>> round(per_image, 3), round(segmentation_scores(matrices.sum(axis=0))["mean_iou"], 3)
    (0.497, 0.657)
    """
    scores = {}
    for name, entry in sums.items():
        entry = np.asarray(entry, np.float64)
        if entry.ndim == 0 or entry.shape[0] != 2:
            raise ValueError(f"sums[{name!r}] must be [2, ...], sum and number; got shape {entry.shape}")
        mean = ratio(entry[0], entry[1])
        scores[name] = mean if mean.ndim else float(mean)
    return scores


def recipe_jaccard(confusions: Counts) -> float:
    r"""Returns the Cityscapes recipe's "IoU": the mean over images of the pixel accuracy, with void as a class.

    .. math:: \frac{1}{|\{n : N_n > 0\}|} \sum_{n} \frac{1}{N_n} \sum_k M_{nkk}

    It is not an IoU: the recipe's 0.8354 came from scikit-learn's old `jaccard_similarity_score`, which returned the
    accuracy for several classes. To compare, count as the recipe did: void is class K - 1, and no pixel is masked.

    Args:
        confusions: integers `[N, K, K]` of `confusion_matrix_per_image` with void as a class; `[K, K]` for one image.

    Returns: A number in [0, 1]; NaN without images.
    Raises: as `per_image_sums`.
    References: scikit-learn 0.21, documentation of `sklearn.metrics.jaccard_similarity_score`.

    >>> recipe_jaccard(np.array([[[90, 0], [0, 10]], [[30, 20], [0, 50]]]))
    0.9
    """
    return per_image_scores(per_image_sums(confusions))["pixel_accuracy_per_image"]


def _cells(labels, predictions, num_classes, where):
    """Returns each pixel's cell of the flattened matrix, and the masks of the valid and of the unmasked pixels."""
    labels = checks.integers("labels", labels)
    checks.scalar("num_classes", num_classes, jnp.int32, 1.0)
    valid = (labels >= 0) & (labels < num_classes)
    if jnp.issubdtype(getattr(predictions, "dtype", None) or jnp.asarray(predictions).dtype, jnp.floating):
        logits = checks.array("predictions", predictions)
        if logits.shape != (*labels.shape, num_classes):
            expected = f"classes of shape {labels.shape} or logits of shape {(*labels.shape, num_classes)}"
            raise ValueError(f"predictions must be {expected}; got {logits.dtype} of shape {logits.shape}")
        # argmax returns a NaN as the largest logit. max propagates it, at a third of the cost of isnan(...).any().
        valid &= ~jnp.isnan(jnp.max(logits, axis=-1))
        predictions = jnp.argmax(logits, axis=-1)
    else:
        predictions = checks.integers("predictions", predictions)
        checks.same_shape("predictions", predictions.shape, "labels", labels.shape)
        valid &= (predictions >= 0) & (predictions < num_classes)
    keep = None if where is None else checks.mask("where", where, labels.shape)
    return labels.astype(jnp.int32) * num_classes + predictions.astype(jnp.int32), valid, keep


def _matthews(true_positives: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> float:
    # Python integers: N² exceeds int64 from 2^32 pixels on, and float64 loses a rare class in N² - Σ t².
    correct, truth, prediction = sum(true_positives.tolist()), true.tolist(), predicted.tolist()
    total = sum(truth)
    covariance = total * correct - sum(t * p for t, p in zip(truth, prediction, strict=True))
    variances = (total**2 - sum(t * t for t in truth)) * (total**2 - sum(p * p for p in prediction))
    return min(max(covariance / math.sqrt(variances), -1.0), 1.0) if variances else float("nan")
