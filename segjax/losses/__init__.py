"""Losses for semantic segmentation: pure functions of logits, labels and a mask of the valid pixels."""

from segjax.losses.classification import (
    hinge_loss,
    huber_loss,
    sigmoid_cross_entropy,
    sigmoid_focal_loss,
    sigmoid_focal_star_loss,
    sigmoid_poly1_loss,
    softmax_cross_entropy,
    softmax_focal_loss,
    softmax_poly1_loss,
)
from segjax.losses.detection import AnchorTargets, DetectionLoss, anchor_targets, box_loss, retinanet_loss
from segjax.losses.long_tail import asymmetric_focal_loss, ldam_loss, seesaw_loss
from segjax.losses.lovasz import lovasz_hinge_loss, lovasz_softmax_loss
from segjax.losses.reduction import hard_pixels, mean
from segjax.losses.region import dice_loss, generalized_dice_loss, jaccard_loss, matthews_loss, tversky_loss
from segjax.losses.shape import boundary_loss, cl_dice_loss
from segjax.losses.uncertainty import (
    average_calibration_loss,
    logit_margin_penalty,
    mc_variance,
    uncertainty_penalty,
    uniform_cross_entropy,
)
from segjax.losses.weights import (
    boundary_mask,
    boundary_weights,
    class_weights,
    logit_adjustment,
    prior_bias,
    prior_bias_softmax,
)

__all__ = [
    "AnchorTargets",
    "DetectionLoss",
    "anchor_targets",
    "asymmetric_focal_loss",
    "average_calibration_loss",
    "boundary_loss",
    "boundary_mask",
    "boundary_weights",
    "box_loss",
    "cl_dice_loss",
    "class_weights",
    "dice_loss",
    "generalized_dice_loss",
    "hard_pixels",
    "hinge_loss",
    "huber_loss",
    "jaccard_loss",
    "ldam_loss",
    "logit_adjustment",
    "logit_margin_penalty",
    "lovasz_hinge_loss",
    "lovasz_softmax_loss",
    "matthews_loss",
    "mc_variance",
    "mean",
    "prior_bias",
    "prior_bias_softmax",
    "retinanet_loss",
    "seesaw_loss",
    "sigmoid_cross_entropy",
    "sigmoid_focal_loss",
    "sigmoid_focal_star_loss",
    "sigmoid_poly1_loss",
    "softmax_cross_entropy",
    "softmax_focal_loss",
    "softmax_poly1_loss",
    "tversky_loss",
    "uncertainty_penalty",
    "uniform_cross_entropy",
]
