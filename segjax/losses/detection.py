"""Losses of a dense detector: anchor targets, the box loss, and RetinaNet's loss.

RetinaNet's loss adds the two terms for classes and boxes. For another loss of the classes, use the per-pixel losses
with anchors in place of pixels, see `retinanet_loss`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Integer

from segjax import boxes as geometry
from segjax import checks
from segjax.checks import AxisName, Scalar
from segjax.losses.classification import huber_loss, sigmoid_focal_loss
from segjax.losses.reduction import mean


class AnchorTargets(NamedTuple):
    """Values that a dense detector has to predict for every anchor.

    Attributes:
        classes: 1 for the class of the anchor's box, else 0. An anchor whose box has a class outside [0, C) has -1 in
            every column, so that its loss is NaN by design.
        offsets: offset of the anchor's box from the anchor, `segjax.boxes.encode`; 0 without a box.
        matched: True for an anchor with a box, a positive of the paper.
        where: False for an ignored anchor, which is neither positive nor background.
    """

    classes: Int[Array, "b anchors c"]
    offsets: Float[Array, "b anchors 4"]
    matched: Bool[Array, "b anchors"]
    where: Bool[Array, "b anchors"]


def anchor_targets(
    anchors: Float[ArrayLike, "anchors 4"],
    boxes: Float[ArrayLike, "b boxes 4"],
    classes: Integer[ArrayLike, "b boxes"],
    num_classes: int,
    *,
    where: Bool[ArrayLike, "b boxes"] | None = None,
    positive: float = 0.5,
    negative: float = 0.4,
    low_quality: bool = True,
) -> AnchorTargets:
    r"""Returns the targets of the anchors of a batch of images, from the boxes that `match_anchors` gives them.

    .. math:: t_{ac} = [c = c_{m(a)}], \qquad o_a = \text{encode}(b_{m(a)}, a), \qquad
        m = \text{match\_anchors}(a, b)

    `retinanet_loss` is a loss of these targets.

    Args:
        anchors: `[A, 4]`, see `segjax.boxes.anchors`.
        boxes: `[B, N, 4]` in pixels; N may be 0.
        classes: `[B, N]`, integers in [0, C).
        num_classes: C, without the background; static.
        where: `[B, N]`; False: the box does not exist (padding). Boxes without area are ignored too.
        positive, negative, low_quality: as in `segjax.boxes.match_anchors`.

    Returns: the targets; none of them has a gradient.
    Raises: TypeError or ValueError if a dtype or a shape is not valid, or the thresholds are out of order.
    References: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.

    >>> anchors = jnp.array([[0.0, 0.0, 4.0, 4.0], [8.0, 0.0, 12.0, 4.0]])
    >>> targets = anchor_targets(anchors, jnp.array([[[0.0, 1.0, 4.0, 5.0]]]), jnp.array([[1]]), 2)
    >>> print(targets.classes[0], targets.offsets[0, 0])
    [[0 1]
     [0 0]] [0.   0.25 0.   0.  ]
    """
    boxes, classes = checks.floating("boxes", boxes), checks.integers("classes", classes)
    if boxes.ndim != 3 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be [batch, boxes, 4]; got shape {boxes.shape}")
    checks.same_shape("classes", classes.shape, "boxes without their last axis", boxes.shape[:-1])
    exists = checks.mask("where", where, classes.shape) & (geometry.areas(boxes) > 0)
    anchors = checks.floating("anchors", anchors)
    thresholds = {"positive": positive, "negative": negative, "low_quality": low_quality}

    def of_image(boxes: Array, classes: Array, exists: Array) -> AnchorTargets:
        match = geometry.match_anchors(anchors, boxes, where=exists, **thresholds)
        matched, index = match >= 0, jnp.maximum(match, 0)
        if not len(boxes):
            boxes, classes = jnp.zeros((1, 4), boxes.dtype), jnp.zeros(1, classes.dtype)
        own = classes[index]
        one_hot = matched[:, None] & jax.nn.one_hot(own, num_classes, dtype=bool)
        invalid = matched & ((own < 0) | (own >= num_classes))
        return AnchorTargets(
            jnp.where(invalid[:, None], -1, one_hot.astype(jnp.int32)),
            geometry.encode(boxes[index], anchors, where=matched),
            matched,
            match != geometry.IGNORED,
        )

    return jax.tree.map(jax.lax.stop_gradient, jax.vmap(of_image)(boxes, classes, exists))


def box_loss(
    offsets: Float[ArrayLike, "*anchors 4"],
    targets: Float[ArrayLike, "*anchors 4"],
    *,
    beta: Scalar = 1 / 9,
    where: Bool[ArrayLike, "*#anchors"] | None = None,
) -> Float[Array, "*anchors"]:
    r"""Computes the smooth L1 loss of the four offsets of each anchor's box, summed.

    .. math:: L = \frac{1}{β} \sum_{i = 1}^{4} H_β(o_i - t_i)

    with Huber's loss :math:`H_β`, `huber_loss`. β → 0 is the absolute error, torchvision's default for RetinaNet.

    Args:
        offsets: o, `[..., 4]`, the output of a detector.
        targets: t, that shape, see `anchor_targets`.
        beta: β > 0, the error at which the loss becomes linear. Fast R-CNN uses 1, Detectron's RetinaNet 1/9.
        where: boolean `[...]`; False removes the anchor. Only anchors with a box have a box loss.

    Returns:
        `[...]`, at least float32.

    Raises: TypeError or ValueError if a dtype or shape does not fit, or β is not finite and more than 0.

    References: Girshick, Fast R-CNN, arXiv 1504.08083; Lin et al., arXiv 1708.02002, section 4.

    >>> print(box_loss(jnp.array([[1.0, 0.0, 0.0, 0.5]]), jnp.zeros((1, 4)), beta=1.0))
    [0.625]
    """
    offsets = checks.floating_as_given("offsets", offsets)
    if offsets.ndim == 0 or offsets.shape[-1] != 4:
        raise ValueError(f"offsets must be [..., 4], four numbers per anchor; got shape {offsets.shape}")
    targets = checks.floating_as_given("targets", targets)
    checks.same_shape("targets", targets.shape, "offsets", offsets.shape)
    beta = checks.finite("beta", beta, checks.widened(offsets.dtype), above=0.0)
    where = None if where is None else checks.mask("where", where, offsets.shape[:-1])[..., None]
    return huber_loss(offsets, targets, delta=beta, where=where).sum(axis=-1) / beta


class DetectionLoss(NamedTuple):
    """The parts of `retinanet_loss`; `total` is the one to minimize.

    Attributes:
        total: class_loss + box_weight · box_loss.
        class_loss: sum of the focal loss over anchors that are not ignored, divided by P.
        box_loss: sum of the smooth L1 loss over matched anchors, divided by P = max(1, number of matched anchors).
    """

    total: Float[Array, ""]
    class_loss: Float[Array, ""]
    box_loss: Float[Array, ""]


def retinanet_loss(
    logits: Float[ArrayLike, "b anchors c"],
    offsets: Float[ArrayLike, "b anchors 4"],
    targets: AnchorTargets,
    *,
    gamma: Scalar = 2.0,
    alpha: Scalar | None = 0.25,
    beta: Scalar = 1 / 9,
    box_weight: Scalar = 1.0,
    axis_name: AxisName = None,
) -> DetectionLoss:
    r"""Computes RetinaNet's loss of a batch: focal loss of the classes plus smooth L1 loss of the boxes.

    .. math::
        L = \frac{1}{P} \sum_{a \text{ not ignored}} \sum_{c} FL(z_{ac}, t_{ac})
            + \frac{w}{P} \sum_{a \text{ matched}} \frac{1}{β} \sum_{i = 1}^{4} H_β(o_{ai} - t_{ai})

    with FL = `sigmoid_focal_loss`, and P = max(1, number of matched anchors) over the images of all devices. `box_loss`
    is the term of one anchor in the second sum. torchvision divides by P of each image instead, and then averages over
    the images.

    For another loss of the classes or for OHEM, write the two terms yourself: OHEM 1:3 is `hard_pixels` of the loss per
    logit with `positives=targets.classes == 1` and `negatives_per_positive=3`.

    Args:
        logits: z, `[B, A, C]`, one per class and anchor, without the background.
        offsets: o, `[B, A, 4]`, see `segjax.boxes.encode`.
        targets: t, see `anchor_targets`.
        gamma: focusing parameter γ ≥ 0.
        alpha: weight of positive logits in [0, 1], 1 - α for negative ones; None: weight 1 for both.
        beta: β > 0, as in `box_loss`.
        box_weight: w ≥ 0, factor of the box loss.
        axis_name: mapped device axis, or None. Every device gets the same global loss; `pmean` the gradients.

    Returns:
        Three scalars, at least float32. Without a matched anchor the box loss is 0.

    Raises: TypeError or ValueError if a dtype or shape does not fit, or a number is outside its range.

    References: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.

    >>> anchors = jnp.array([[0.0, 0.0, 4.0, 4.0], [8.0, 0.0, 12.0, 4.0]])
    >>> targets = anchor_targets(anchors, jnp.array([[[0.0, 1.0, 4.0, 5.0]]]), jnp.array([[1]]), num_classes=2)
    >>> loss = retinanet_loss(jnp.full((1, 2, 2), -4.6), jnp.zeros((1, 2, 4)), targets)
    >>> print(f"{loss.class_loss:.3f} + {loss.box_loss:.3f} = {loss.total:.3f}")
    1.130 + 0.194 = 1.324
    """
    where, matched = targets.where, targets.matched
    checks.same_shape("logits", jnp.shape(logits), "targets.classes", targets.classes.shape)
    checks.same_shape("offsets", jnp.shape(offsets), "targets.offsets", targets.offsets.shape)
    per_logit = sigmoid_focal_loss(logits, targets.classes, gamma=gamma, alpha=alpha, where=where[..., None])
    per_box = box_loss(offsets, targets.offsets, beta=beta, where=matched)
    box_weight = checks.scalar("box_weight", box_weight, per_box.dtype, 0.0)
    per_matched = {"positives": matched, "normalizer": "positives", "axis_name": axis_name}
    class_loss = mean(per_logit.sum(axis=-1), where=where, **per_matched)
    mean_box_loss = mean(per_box, where=matched, **per_matched)
    return DetectionLoss(class_loss + box_weight * mean_box_loss, class_loss, mean_box_loss)
