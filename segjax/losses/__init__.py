"""Losses for segmentation: pure functions of logits, labels and a mask of the pixels that exist."""

from segjax.losses.pixel import (
    sigmoid_cross_entropy,
    sigmoid_focal_loss,
    softmax_cross_entropy,
    softmax_focal_loss,
)
from segjax.losses.reduction import mean
from segjax.losses.weighting import class_weights, prior_bias, prior_bias_softmax

__all__ = [
    "class_weights",
    "mean",
    "prior_bias",
    "prior_bias_softmax",
    "sigmoid_cross_entropy",
    "sigmoid_focal_loss",
    "softmax_cross_entropy",
    "softmax_focal_loss",
]
