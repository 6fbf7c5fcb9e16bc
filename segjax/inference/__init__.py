"""Using what was trained."""

from segjax.inference.crf import dense_crf
from segjax.inference.ensemble import (
    Uncertainty,
    analytic_uncertainty,
    head_uncertainty,
    predict_with_uncertainty,
    whole_passes,
)
from segjax.inference.tiling import Tiles, predict_tiled, tiles_along
from segjax.inference.visualize import heatmap, overlay, panel

__all__ = [
    "Tiles",
    "Uncertainty",
    "analytic_uncertainty",
    "dense_crf",
    "head_uncertainty",
    "heatmap",
    "overlay",
    "panel",
    "predict_tiled",
    "predict_with_uncertainty",
    "tiles_along",
    "whole_passes",
]
