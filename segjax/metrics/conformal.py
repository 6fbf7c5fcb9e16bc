r"""Conformal guarantees: thresholds that bound the expected risk on a new image, from a calibration split.

The bound holds for any network and any number of calibration images if these and the new image are exchangeable: their
order does not matter. The pixels of one image are not exchangeable, so the risk is computed per image. This bounds
the share of a rare class that is missed; count on the device, and do the rest on the host::

    count = lambda z, y, k: score_histogram(class_log_odds(z)[..., c], y == c, where=k)
    histograms = jax.vmap(count)(logits, labels, where)
    rates, thresholds = false_negative_rates(histograms)
    threshold = thresholds[risk_control(rates, level=0.05)]       # positive: class_log_odds(z)[..., c] >= threshold

The alternative to a lower threshold is to dilate the mask: `distance_histogram` and `dilate`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from segjax import checks
from segjax.checks import AxisName, Labels, Logits, Where
from segjax.metrics._counting import Counts, count, host_counts, ratio
from segjax.metrics.ranking import bin_thresholds


class FalseNegativeRates(NamedTuple):
    """Share of an image's positives that a threshold misses: float64 `[images, bins]`, and the thresholds `[bins]`."""

    rates: Float[np.ndarray, "images bins"]
    thresholds: Float[np.ndarray, "bins"]


def false_negative_rates(histograms: Counts) -> FalseNegativeRates:
    r"""Returns the share of each image's positives below each threshold, for `risk_control`.

    .. math:: L_i(t) = \frac{\#\{\text{positives of image } i \text{ with a logit} < t\}}{\#\{\text{positives of } i\}}

    Images without positives have no such rate: they are left out, and the guarantee is for images that have some.

    Args:
        histograms: integers `[images, 2, bins]`, one `score_histogram` or `distance_histogram` per image. For a
            `distance_histogram`, ignore `thresholds`: candidate k is the radius `[inf, *radii[::-1]][k]`.

    Returns: `FalseNegativeRates` of the images with positives, over rising thresholds; the first, -inf, misses nothing.
    Raises: TypeError or ValueError if counts are traced, not integers, not `[images, 2, bins]`, or negative (invalid).
    References: Angelopoulos et al., Conformal Risk Control, ICLR 2024, arXiv 2208.02814, section 3.1.

    >>> rates, thresholds = false_negative_rates(np.array([[[5, 0, 0, 0], [0, 1, 1, 2]], [[9, 0, 0, 0], [0, 0, 0, 0]]]))
    >>> print(rates, thresholds)  # the second image has no positives
    [[0.   0.   0.25 0.5 ]] [-inf  -8.   0.   8.]
    """
    counts = host_counts("histograms", histograms, "a NaN logit or an invalid target was counted in an unmasked pixel")
    if counts.ndim != 3 or counts.shape[1] != 2:
        raise ValueError(f"histograms must be [images, 2, bins], one per image; got shape {counts.shape}")
    positives = counts[:, 1]
    positives = positives[positives.sum(axis=1) > 0]
    missed = np.cumsum(positives, axis=1) - positives
    return FalseNegativeRates(
        ratio(missed, positives.sum(axis=1, keepdims=True)), bin_thresholds(counts.shape[2])[::-1]
    )


def distance_histogram(
    mask: Bool[ArrayLike, "height width"],
    targets: Bool[ArrayLike, "height width"],
    radii: Sequence[int | float],
    *,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Int[np.ndarray, "2 bins"]:
    r"""Counts the pixels of one image by their distance to a mask, from far to near, on the host.

    .. math:: n_{t0} = \#\{d > r_R\}, \quad n_{tk} = \#\{r_{R-k} < d \le r_{R-k+1}\}, \quad n_{tR} = \#\{d \le r_1\}

    d is the Euclidean distance from a pixel with target t to the nearest pixel of the mask, measured between pixel
    centres, and 0 inside the mask. Dilating the mask by r pixels adds every pixel with d ≤ r. The following radius
    misses at most 5 % of a class in expectation over new images that contain it::

        histograms = np.stack([distance_histogram(mask, y == c, radii, where=k) for mask, y, k in calibration])
        radius = [np.inf, *radii[::-1]][risk_control(false_negative_rates(histograms).rates, level=0.05)]

    The first candidate is the whole image, and the last one the mask with the smallest radius.

    Args:
        mask: boolean `[H, W]`, such as the pixels predicted as class c. It may be empty: then d is infinite.
        targets: boolean `[H, W]`, the pixels of class c.
        radii: r_1 < … < r_R, in pixels, at least 0.
        where: boolean, broadcastable; False: the pixel is not counted. `where` does not restrict the mask, since it is
            unknown for a new image.

    Returns: int64 `[2, R + 1]`: row 0 counts non-targets, row 1 targets.
    Raises: TypeError or ValueError if a dtype or shape does not fit, or the radii do not rise.
    References: Angelopoulos et al., arXiv 2208.02814; Mossina and Friedrich, Conformal Prediction for Image
        Segmentation Using Morphological Prediction Sets, arXiv 2503.05618.

    >>> mask, targets = np.array([[False, False, False, True]]), np.array([[True, False, True, True]])
    >>> print(distance_histogram(mask, targets, [0, 1]))  # distances 3, 2, 1, 0
    [[1 0 0]
     [1 1 1]]
    """
    mask, targets = checks.host("mask", mask), checks.host("targets", targets)
    if mask.ndim != 2:
        raise ValueError(f"mask must be [height, width], of one image; got shape {mask.shape}")
    checks.same_shape("targets", targets.shape, "mask", mask.shape)
    for name, value in (("mask", mask), ("targets", targets)):
        if value.dtype != bool:
            raise TypeError(f"{name} must be boolean; got {value.dtype}")
    keep = np.asarray(checks.mask("where", where, mask.shape))
    given = checks.host("radii", radii)
    if given.dtype.kind not in "iuf":
        raise TypeError(f"radii must be real numbers, in pixels; got {given.dtype}")
    edges = given.astype(np.float64)
    if edges.ndim != 1 or not edges.size or not (edges >= 0).all() or not (np.diff(edges) > 0).all():
        raise ValueError(f"radii must be rising numbers of at least 0; got {radii!r:.80}")
    # SciPy comes with JAX, but takes longer to import than all of segjax.metrics.
    from scipy import ndimage

    distance = ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)
    bins = len(edges) - np.searchsorted(edges, distance)
    places = bins + targets * (len(edges) + 1)
    return np.bincount(places[keep], minlength=2 * len(edges) + 2).reshape(2, -1)


def risk_control(risks: Float[ArrayLike, "images candidates"], level: float, *, bound: float = 1.0) -> int:
    r"""Selects the least conservative candidate whose expected risk on a new image is at most the level.

    .. math::
        \hat t = \max\left\{t : \frac{1}{n + 1} \left(\sum_{i=1}^{n} L_i(t) + B\right) \le \alpha\right\}
        \quad\Rightarrow\quad \mathbb{E}[L_{n+1}(\hat t)] \le \alpha

    The expectation is over the calibration images and the new image, so one calibration split may exceed α. For
    continuous risks it is at least α - 2B / (n + 1).

    Args:
        risks: L, `[n, candidates]` in [0, B], non-decreasing along the candidates: the safest comes first.
        level: α, in (0, B).
        bound: B > 0, the largest risk that an image can have.

    Returns: Index of the candidate.

    Raises:
        TypeError, ValueError: risks are traced, of another shape, NaN, outside [0, B] or falling; there is no image; or
            no candidate reaches the level: the error contains the smallest level that n images allow.

    References: Angelopoulos et al., Conformal Risk Control, ICLR 2024, arXiv 2208.02814, theorem 1.

    >>> risks = np.repeat([[0.0, 0.1, 0.2, 0.6]], 19, axis=0)  # 19 images
    >>> risk_control(risks, level=0.25)  # (19 · 0.2 + 1) / 20 = 0.24
    2
    """
    values = checks.host("risks", risks).astype(np.float64)
    checks.finite("bound", bound, jnp.float32, above=0.0)
    checks.finite("level", level, jnp.float32)
    bound, level = float(bound), float(level)
    if values.ndim != 2 or not values.shape[1]:
        raise ValueError(f"risks must be [images, candidates]; got shape {values.shape}")
    images = len(values)
    if not images:
        raise ValueError("risks must have at least one image; got 0: no calibration image has a pixel of the class")
    if not (values >= 0).all() or not (values <= bound).all():
        raise ValueError(f"risks must be in [0, {bound:g}]; got {values.min():g} to {values.max():g}")
    if (np.diff(values, axis=1) < 0).any():
        raise ValueError("risks must not fall along the candidates: order them from low to high risk")
    if not 0 < level < bound:
        raise ValueError(f"level must be between 0 and {bound:g}; got {level:g}")
    # Rounding of the mean, 1e-15, must not exclude a candidate that reaches the level exactly.
    reached = (values.sum(axis=0) + bound) / (images + 1) <= level * (1 + 1e-12)
    if not reached[0]:
        smallest = (values[:, 0].sum() + bound) / (images + 1)
        raise ValueError(
            f"no candidate reaches level {level:g} with {images} calibration images: raise the level to "
            f"{np.ceil(smallest * 1e4) / 1e4:g} or more, or use more images"
        )
    return int(np.flatnonzero(reached)[-1])


def adaptive_log_odds(logits: Logits) -> Float[Array, "*pixels classes"]:
    r"""Returns scores for adaptive prediction sets: the log odds that no likelier class is the label.

    .. math:: x_c = \log \frac{1 - m_c}{m_c}, \qquad m_c = \sum_{j:\, p_j > p_c} p_j

    The set of classes with x_c ≥ t always contains the likeliest class, and grows where the network is less sure. Sets
    from `class_log_odds` (least ambiguous sets) may be empty. Among equal logits, the first ranks as likelier.

    Args:
        logits: z, `[..., C]`, C ≥ 2; -inf rules a class out.

    Returns: `[..., C]`, at least float32; inf for the likeliest class; NaN if a logit is NaN or +inf, or all are -inf.
    Raises: TypeError or ValueError if logits are not floating, or have fewer than 2 classes.
    References: Romano et al., Classification with Valid and Adaptive Coverage, arXiv 2006.02544 (here without its
        randomisation); Sadinle et al., Least Ambiguous Set-Valued Classifiers, arXiv 1609.00451.

    >>> print(adaptive_log_odds(jnp.log(jnp.array([0.25, 0.5, 0.25]))).round(4))
    [ 0.         inf -1.0986]
    """
    logits = checks.classes("logits", logits)
    order = jnp.argsort(-logits, axis=-1)
    falling = jnp.take_along_axis(logits, order, axis=-1)
    axis = falling.ndim - 1
    likelier = jax.lax.cumlogsumexp(falling, axis)[..., :-1]
    others = jax.lax.cumlogsumexp(falling, axis, reverse=True)[..., 1:]
    ranked = jnp.concatenate([jnp.full_like(falling[..., :1], jnp.inf), others - likelier], axis=-1)
    result = jnp.take_along_axis(ranked, jnp.argsort(order, axis=-1), axis=-1)
    valid = jnp.isfinite(jnp.max(logits, axis=-1, keepdims=True))  # False for a NaN
    return jnp.where(valid, result, jnp.nan)


def prediction_set_counts(
    sets: Bool[ArrayLike, "*pixels classes"], labels: Labels, *, where: Where = None, axis_name: AxisName = None
) -> Int[Array, "classes+1 2"]:
    r"""Counts the pixels by the size of their prediction set and by whether it contains the label, over all devices.

    .. math:: n_{kb} = \#\{\text{unmasked } i : |S_i| = k,\; [y_i \in S_i] = b\}

    Args:
        sets: boolean `[..., C]`, such as `class_log_odds(logits) >= threshold`.
        labels: y, integers in [0, C) or booleans, `[...]`.
        where, axis_name: as in `confusion_matrix`.

    Returns: int32 `[C + 1, 2]`. All -2^31 if an unmasked label is outside [0, C).
    Raises: TypeError or ValueError if a dtype or shape does not fit.
    References: Angelopoulos and Bates, A Gentle Introduction to Conformal Prediction, arXiv 2107.07511.

    >>> prediction_set_counts(jnp.array([[True, False], [True, True], [False, False]]), jnp.array([1, 1, 0])).tolist()
    [[1, 0], [1, 0], [0, 1]]
    """
    sets = checks.array("sets", sets)
    if sets.ndim == 0:
        raise ValueError("sets must be [..., classes]; got a scalar")
    sets = checks.mask("sets", sets, sets.shape)
    labels = checks.integers("labels", labels)
    checks.same_shape("labels", labels.shape, "sets without their class axis", sets.shape[:-1])
    keep = None if where is None else checks.mask("where", where, labels.shape)
    classes = jax.lax.broadcasted_iota(labels.dtype, sets.shape, labels.ndim)
    covered = jnp.any(sets & (classes == labels[..., None]), axis=-1)
    size = jnp.sum(sets, axis=-1, dtype=jnp.int32)
    valid = (labels >= 0) & (labels < sets.shape[-1])
    num_classes = sets.shape[-1]
    counts = count(2 * size + covered.astype(jnp.int32), valid, keep, 2 * (num_classes + 1), axis_name)
    return counts.reshape(num_classes + 1, 2)


def prediction_set_scores(counts: Counts) -> dict[str, float]:
    r"""Returns the coverage and the size of prediction sets.

    .. math:: coverage = \frac{\sum_k n_{k1}}{N}, \qquad mean\_size = \frac{\sum_k k (n_{k0} + n_{k1})}{N}

    Args:
        counts: integers `[C + 1, 2]`, sums of `prediction_set_counts`.

    Returns: `coverage`, `mean_size`, and the shares of `empty` sets and of sets with a `single` class.
    Raises: TypeError or ValueError if the counts are traced, not integers, not `[C + 1, 2]`, or negative (invalid).
    References: as `prediction_set_counts`.

    >>> prediction_set_scores(np.array([[1, 0], [1, 0], [0, 2]]))
    {'coverage': 0.5, 'mean_size': 1.25, 'empty': 0.25, 'single': 0.25}
    """
    counts = host_counts("counts", counts, "a label outside [0, C) was counted in an unmasked pixel")
    if counts.ndim != 2 or counts.shape[1] != 2:
        raise ValueError(f"counts must be [classes + 1, 2], from prediction_set_counts; got shape {counts.shape}")
    sizes, total = counts.sum(axis=1), counts.sum()
    shares = {
        "coverage": counts[:, 1].sum(),
        "mean_size": (sizes * np.arange(len(sizes))).sum(),
        "empty": sizes[0],
        "single": sizes[1:2].sum(),
    }
    return {name: float(ratio(value, total)) for name, value in shares.items()}
