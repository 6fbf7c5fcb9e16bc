"""Using what was trained."""

from segjax.inference.ensemble import (
    Uncertainty,
    analytic_uncertainty,
    head_uncertainty,
    predict_with_uncertainty,
    whole_passes,
)
from segjax.inference.predictions import Done, Found, Wanted, done_lines, write_predictions
from segjax.inference.visualize import contact_sheet, heatmap, overlay, panel

__all__ = [
    "Done",
    "Found",
    "Uncertainty",
    "Wanted",
    "analytic_uncertainty",
    "contact_sheet",
    "done_lines",
    "head_uncertainty",
    "heatmap",
    "overlay",
    "panel",
    "predict_with_uncertainty",
    "whole_passes",
    "write_predictions",
]
