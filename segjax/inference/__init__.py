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
from segjax.inference.engine import Engine, Prediction, make_engine
from segjax.inference.ensemble import (
    analytic_uncertainty,
    head_uncertainty,
    predict_with_uncertainty,
    whole_passes,
)
from segjax.inference.measures import head_measures
from segjax.inference.moments import Moments, Uncertainty, packed, uncertainty_of, unpacked
from segjax.inference.pictures import Found, ImageFile, Wanted, png
from segjax.inference.predictions import Done, done_lines, write_predictions, written_here
from segjax.inference.sampling import sampled_moments
from segjax.inference.tiling import Tiles, predict_tiled, tiles_along
from segjax.inference.visualize import contact_sheet, example_tiles, heatmap, legend, overlay, panel, thumbnail, tiles
from segjax.inference.way import AUGMENTATIONS, UNCERTAINTIES, Way, chosen_way

__all__ = [
    "AUGMENTATIONS",
    "SYMMETRIES",
    "UNCERTAINTIES",
    "Done",
    "Engine",
    "Found",
    "ImageFile",
    "Moments",
    "Prediction",
    "Symmetry",
    "Tiles",
    "Uncertainty",
    "Wanted",
    "Way",
    "analytic_uncertainty",
    "augmented_moments",
    "chosen_way",
    "contact_sheet",
    "dense_crf",
    "done_lines",
    "dropout_head",
    "example_tiles",
    "head_measures",
    "head_uncertainty",
    "heatmap",
    "legend",
    "make_engine",
    "overlay",
    "packed",
    "panel",
    "png",
    "predict_tiled",
    "predict_with_uncertainty",
    "restored",
    "sampled_moments",
    "thumbnail",
    "tiles",
    "tiles_along",
    "transformed",
    "uncertainty_of",
    "unpacked",
    "whole_passes",
    "write_predictions",
    "written_here",
]
