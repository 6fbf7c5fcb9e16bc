"""Using what was trained."""

from segjax.inference.augmented import (
    SYMMETRIES,
    Symmetry,
    augmented_moments,
    dropout_head,
    restored,
    transformed,
)
from segjax.inference.crf import dense_crf
from segjax.inference.ensemble import (
    Uncertainty,
    analytic_uncertainty,
    head_uncertainty,
    predict_with_uncertainty,
    whole_passes,
)
from segjax.inference.moments import Moments, packed, uncertainty_of, unpacked
from segjax.inference.predictions import Done, Found, Wanted, done_lines, write_predictions
from segjax.inference.tiling import Tiles, predict_tiled, tiles_along
from segjax.inference.visualize import contact_sheet, heatmap, overlay, panel

__all__ = [
    "SYMMETRIES",
    "Done",
    "Found",
    "Moments",
    "Symmetry",
    "Tiles",
    "Uncertainty",
    "Wanted",
    "analytic_uncertainty",
    "augmented_moments",
    "contact_sheet",
    "dense_crf",
    "done_lines",
    "dropout_head",
    "head_uncertainty",
    "heatmap",
    "overlay",
    "packed",
    "panel",
    "predict_tiled",
    "predict_with_uncertainty",
    "restored",
    "tiles_along",
    "transformed",
    "uncertainty_of",
    "unpacked",
    "whole_passes",
    "write_predictions",
]
