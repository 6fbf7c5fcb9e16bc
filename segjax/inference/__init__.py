"""Using what was trained."""

from segjax.inference.ensemble import (
    Uncertainty,
    analytic_uncertainty,
    head_uncertainty,
    predict_with_uncertainty,
    whole_passes,
)
from segjax.inference.visualize import heatmap, overlay, panel

__all__ = [
    "Uncertainty",
    "analytic_uncertainty",
    "head_uncertainty",
    "heatmap",
    "overlay",
    "panel",
    "predict_with_uncertainty",
    "whole_passes",
]
