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
from segjax.inference.measures import head_measures
from segjax.inference.moments import Moments, packed, uncertainty_of, unpacked
from segjax.inference.predictions import Done, Found, Wanted, done_lines, png, write_predictions
from segjax.inference.tiling import Tiles, predict_tiled, tiles_along
from segjax.inference.visualize import contact_sheet, example_tiles, heatmap, legend, overlay, panel, tiles

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
    "example_tiles",
    "head_measures",
    "head_uncertainty",
    "heatmap",
    "legend",
    "overlay",
    "packed",
    "panel",
    "png",
    "predict_tiled",
    "predict_with_uncertainty",
    "restored",
    "tiles",
    "tiles_along",
    "transformed",
    "uncertainty_of",
    "unpacked",
    "whole_passes",
    "write_predictions",
]
