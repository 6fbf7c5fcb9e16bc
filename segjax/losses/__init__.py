"""Losses for semantic segmentation: pure functions of logits, labels and a mask of the pixels that exist."""

from segjax.losses.classification import (
    hinge_loss,
    huber_loss,
    sigmoid_cross_entropy,
    sigmoid_focal_loss,
    sigmoid_focal_star_loss,
    softmax_cross_entropy,
    softmax_focal_loss,
)
from segjax.losses.detection import AnchorTargets, DetectionLoss, anchor_targets, box_loss, retinanet_loss
from segjax.losses.lovasz import lovasz_hinge_loss, lovasz_softmax_loss
from segjax.losses.reduction import hard_pixels, mean
from segjax.losses.region import dice_loss, generalized_dice_loss, jaccard_loss, matthews_loss, tversky_loss
from segjax.losses.shape import boundary_loss, cl_dice_loss
from segjax.losses.uncertainty import logit_margin_penalty, mc_variance, uncertainty_penalty, uniform_cross_entropy
from segjax.losses.weights import boundary_mask, boundary_weights, class_weights, prior_bias, prior_bias_softmax

__all__ = [
    "AnchorTargets",
    "DetectionLoss",
    "anchor_targets",
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
    "logit_margin_penalty",
    "lovasz_hinge_loss",
    "lovasz_softmax_loss",
    "matthews_loss",
    "mc_variance",
    "mean",
    "prior_bias",
    "prior_bias_softmax",
    "retinanet_loss",
    "sigmoid_cross_entropy",
    "sigmoid_focal_loss",
    "sigmoid_focal_star_loss",
    "softmax_cross_entropy",
    "softmax_focal_loss",
    "tversky_loss",
    "uncertainty_penalty",
    "uniform_cross_entropy",
]
