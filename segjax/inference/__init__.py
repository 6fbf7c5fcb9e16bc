"""Prediction with trained networks: masks, uncertainties, tiles, files and pictures.

A name loads its module when it is first used, because training needs only a few of them.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from segjax.inference.augmentation import SYMMETRIES, Symmetry, augmented_statistics, dropout_head
    from segjax.inference.detector import AnchorOptions, Detector, detect_boxes
    from segjax.inference.forward import (
        Ensemble,
        Preprocessing,
        class_logits,
        classify,
        log_odds,
        mean_outputs,
        predict_logits,
        probabilities,
    )
    from segjax.inference.monte_carlo import (
        SampleStatistics,
        Uncertainty,
        analytic_uncertainty,
        head_uncertainty,
        head_uncertainty_maps,
        maps_to_statistics,
        predict_with_uncertainty,
        sample_statistics,
        statistics_to_maps,
        uncertainty_of,
        whole_passes,
    )
    from segjax.inference.predictor import (
        AUGMENTATIONS,
        LOGIT_SCORES,
        UNCERTAINTIES,
        Prediction,
        PredictOptions,
        Predictor,
        predict_options,
        predict_tiled,
    )
    from segjax.inference.visualize import (
        as_rgb,
        colorize_overlaps,
        contact_sheet,
        draw_boxes,
        example_tiles,
        heatmap,
        legend,
        overlay,
        tiles,
    )
    from segjax.inference.writer import (
        OutputOptions,
        WriteSummary,
        is_prediction_file,
        jpeg,
        png,
        write_detections,
        write_predictions,
    )

__all__ = [
    "AUGMENTATIONS",
    "LOGIT_SCORES",
    "SYMMETRIES",
    "UNCERTAINTIES",
    "AnchorOptions",
    "Detector",
    "Ensemble",
    "OutputOptions",
    "PredictOptions",
    "Prediction",
    "Predictor",
    "Preprocessing",
    "SampleStatistics",
    "Symmetry",
    "Uncertainty",
    "WriteSummary",
    "analytic_uncertainty",
    "as_rgb",
    "augmented_statistics",
    "class_logits",
    "classify",
    "colorize_overlaps",
    "contact_sheet",
    "detect_boxes",
    "draw_boxes",
    "dropout_head",
    "example_tiles",
    "head_uncertainty",
    "head_uncertainty_maps",
    "heatmap",
    "is_prediction_file",
    "jpeg",
    "legend",
    "log_odds",
    "maps_to_statistics",
    "mean_outputs",
    "overlay",
    "png",
    "predict_logits",
    "predict_options",
    "predict_tiled",
    "predict_with_uncertainty",
    "probabilities",
    "sample_statistics",
    "statistics_to_maps",
    "tiles",
    "uncertainty_of",
    "whole_passes",
    "write_detections",
    "write_predictions",
]
