"""Scores of each image, averaged over the images: not the data set's scores, and so not under their names.

`segmentation_scores(confusion)["mean_iou"]` is a ratio of sums: every pixel of the set counts alike.
`per_image_scores(sums)["mean_iou_per_image"]` is a mean of ratios: every image counts alike, and a class that has a
handful of pixels in one image weighs there as much as the road.
"""

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer

from segjax import checks
from segjax.metrics.confusion import segmentation_scores
from segjax.metrics.counts import confusion_cells, count, host_counts

_SCORES = ("mean_iou", "mean_dice", "pixel_accuracy", "mean_accuracy", "iou_per_class", "dice_per_class")


def confusion_matrix_per_image(
    labels: Integer[ArrayLike, "images *pixels"],
    predictions: Integer[ArrayLike, "images *pixels"] | Float[ArrayLike, "images *pixels classes"],
    num_classes: int,
    *,
    where: Bool[ArrayLike, "*#kept"] | None = None,
) -> Int[Array, "images {num_classes} {num_classes}"]:
    r"""The confusion matrix of each image. Their sum is `confusion_matrix` of the batch.

    .. math:: M_{nij} = \#\{\text{kept pixels of image } n \text{ with label } i \text{ and prediction } j\}

    There is no `axis_name`: an image lies on one device, so the matrices are sharded as the images are.

    Args:
        labels: the true classes, integers in [0, num_classes), `[N, ...]`, images first.
        predictions: the predicted classes, or floating logits `[N, ..., C]`, as in `confusion_matrix`.
        num_classes: C ≥ 1, static.
        where: boolean of the labels' shape or broadcastable to it; False: no such pixel, whatever its label and logits.

    Returns:
        int32 `[N, C, C]`, rows truth, columns prediction; all zero for an image without a kept pixel. All entries of an
        image are -2^31 if `where` keeps a label or prediction outside [0, C) or a NaN logit in it: `per_image_sums`
        refuses it.

    Raises:
        TypeError: labels are not integers, predictions neither integers nor floating, `where` not boolean.
        ValueError: shapes do not fit, labels are a scalar, or C < 1.

    References:
        Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013.

    >>> import jax.numpy as jnp
    >>> labels = jnp.array([[0, 0, 1], [1, 1, 255]])
    >>> print(confusion_matrix_per_image(labels, jnp.array([[0, 1, 1], [1, 1, 0]]), 2, where=labels != 255))
    [[[1 1]
      [0 1]]
    <BLANKLINE>
     [[0 0]
      [0 2]]]
    """
    cells, valid = confusion_cells(labels, predictions, num_classes)
    if cells.ndim == 0:
        raise ValueError("labels must have an axis of images; got a scalar")
    keep = None if where is None else checks.mask("where", where, cells.shape)
    matrices = jax.vmap(lambda *image: count(*image, num_classes * num_classes, None))(cells, valid, keep)
    return matrices.reshape(-1, num_classes, num_classes)


def per_image_sums(
    confusions: Integer[jax.Array | np.ndarray, "*images classes classes"], *, absent: str = "exclude"
) -> dict[str, np.ndarray]:
    r"""Sums over images of their scores, and how many images each sum has. Sums of batches add, key by key.

    .. math:: S = \left(\sum_{n \in J} s_n,\; |J|\right)

    for each score s, with the images J that have it (s_n is not NaN). An image without a kept pixel does not exist,
    whatever `absent` says. The sums have a constant size:
    `sums = jax.tree.map(np.add, sums, per_image_sums(batch))`.

    Args:
        confusions: integers `[N, C, C]`, matrices of `confusion_matrix_per_image`, or `[C, C]`: one image.
        absent: as in `segmentation_scores`, within each image. "exclude": a class whose denominator is 0 in an image is
            left out of that image's means, and that image out of the class's mean; "zero" or "one": it gets that score.

    Returns:
        The keys of `per_image_scores`, each float64 `[2, ...]`: the sum of the score over the images that have it, and
        the number of these images.

    Raises:
        TypeError: `confusions` are traced, or not integers.
        ValueError: they are not `[..., C, C]`, a count is negative (see `confusion_matrix`), or `absent` is unknown.

    References:
        Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013.

    >>> import numpy as np
    >>> sums = per_image_sums(np.array([[[3, 1], [0, 0]], [[0, 0], [0, 0]], [[2, 0], [0, 2]]]))
    >>> sums["pixel_accuracy_per_image"].tolist()
    [1.75, 2.0]
    >>> sums["iou_per_class_per_image"].tolist()
    [[1.75, 1.0], [2.0, 2.0]]
    """
    checks.choice("absent", absent, ("exclude", "zero", "one"))
    matrices = host_counts(
        "confusions", confusions, "a label or prediction without a class was counted, in a pixel that `where` keeps"
    )
    if matrices.ndim < 2 or matrices.shape[-1] != matrices.shape[-2]:
        raise ValueError(f"confusions must be [images, classes, classes]; got shape {matrices.shape}")
    num_classes = matrices.shape[-1]
    sums = {
        f"{name}_per_image": np.zeros((2, num_classes) if name.endswith("_per_class") else 2, np.float64)
        for name in _SCORES
    }
    for matrix in matrices.reshape(-1, num_classes, num_classes):
        if not matrix.any():
            continue
        scores = segmentation_scores(matrix, absent=absent)
        for name in _SCORES:
            known = ~np.isnan(scores[name])
            sums[f"{name}_per_image"] += np.stack([np.where(known, scores[name], 0.0), known])
    return sums


def per_image_scores(sums: dict[str, np.ndarray]) -> dict[str, float | np.ndarray]:
    r"""Means over the images of each image's scores, from the sums of `per_image_sums`.

    .. math:: \bar{s} = \frac{1}{|J|} \sum_{n \in J} s_n

    with s_n the score of image n as `segmentation_scores` gives it of that image's matrix, and the images J that have
    it:

    - `mean_iou_per_image`, `mean_dice_per_image`, `mean_accuracy_per_image`: in each image the mean over the classes
      counted in it (IoU, Dice: TP + FP + FN > 0; accuracy: TP + FN > 0), then the mean over the images;
    - `pixel_accuracy_per_image`: the mean of the images' pixel accuracies;
    - `iou_per_class_per_image`, `dice_per_class_per_image`: `[C]`, for each class the mean over the images that count
      it.

    The mean over classes of `iou_per_class_per_image` is another number than `mean_iou_per_image`.

    Args:
        sums: the sums of all images, by name.

    Returns:
        The same names, float or float64 `[C]`, in [0, 1]; NaN where no image has the score.

    Raises:
        ValueError: an entry is not `[2, ...]`, sum and number.

    References:
        Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013.

    >>> import numpy as np
    >>> matrices = np.array([[[96, 1], [0, 0]], [[1, 0], [1, 1]]])  # a large image and a small one
    >>> round(per_image_scores(per_image_sums(matrices))["mean_iou_per_image"], 3)
    0.497
    >>> from segjax.metrics import segmentation_scores
    >>> round(segmentation_scores(matrices.sum(axis=0))["mean_iou"], 3)
    0.657
    """
    scores = {}
    for name, entry in sums.items():
        entry = np.asarray(entry, np.float64)
        if entry.ndim == 0 or entry.shape[0] != 2:
            raise ValueError(f"sums[{name!r}] must be [2, ...], sum and number; got shape {entry.shape}")
        mean = np.where(entry[1] > 0, entry[0] / np.maximum(entry[1], 1), np.nan)
        scores[name] = mean if mean.ndim else float(mean)
    return scores


def recipe_jaccard(confusions: Integer[jax.Array | np.ndarray, "*images classes classes"]) -> float:
    r"""The Cityscapes recipe's "IoU": pixel accuracy, with void counted as a class, averaged over the images.

    .. math:: \frac{1}{|\{n : N_n > 0\}|} \sum_{n} \frac{1}{N_n} \sum_k M_{nkk}

    It is *no* IoU. The 0.8354 published for the recipe came from scikit-learn's `jaccard_similarity_score`, which "in
    binary and multiclass classification ... is equivalent to the accuracy_score" (its documentation; deprecated in
    0.21, removed in 0.23). To compare with that number, count as the recipe did: void is one more class, K - 1, which
    is predicted and scored like the others, and no pixel is masked. Over a stream add `per_image_sums` of such
    matrices: this number is their `pixel_accuracy_per_image`.

    Args:
        confusions: integers `[N, K, K]`, of `confusion_matrix_per_image` with void as a class; or `[K, K]`: one image.

    Returns:
        A number in [0, 1]; NaN without images.

    Raises:
        TypeError: `confusions` are traced, or not integers.
        ValueError: they are not `[..., K, K]`, or a count is negative (see `confusion_matrix`).

    References:
        scikit-learn 0.21, documentation of `sklearn.metrics.jaccard_similarity_score`.

    >>> import numpy as np
    >>> recipe_jaccard(np.array([[[90, 0], [0, 10]], [[30, 20], [0, 50]]]))
    0.9
    """
    return per_image_scores(per_image_sums(confusions))["pixel_accuracy_per_image"]
