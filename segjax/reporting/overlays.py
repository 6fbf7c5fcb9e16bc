"""Images under layers for a page: prediction, truth, errors and uncertainties."""

from collections.abc import Mapping

import cv2
import numpy as np
from jaxtyping import Float, Shaped, UInt8

from segjax import inference
from segjax.data.labels import UNSEEN, VOID, LabelSet, colorize
from segjax.data.resize import resize_nearest
from segjax.inference.visualize import overlay_palette
from segjax.reporting.report import Overlay

_WIDEST = 800  # pixels of an image on the page
_ERRORS = ((240, 228, 66), (0, 158, 255))  # yellow and blue: missed and false pixels


def mask_overlay(
    name: str,
    caption: str,
    image: Shaped[np.ndarray, "H W C"],
    truth: UInt8[np.ndarray, "H W"],
    prediction: UInt8[np.ndarray, "H W"],
    uncertainties: Mapping[str, Float[np.ndarray, "H W"]],
    maxima: Mapping[str, float],
    labels: LabelSet,
) -> Overlay:
    """Draws an image and its layers: prediction, truth, errors and uncertainties, at most `_WIDEST` pixels wide.

    `maxima` are the uncertainties that have the lightest colour. Of two classes, the errors are the missed and the
    false pixels of the rare one.
    """
    tiles = inference.png(inference.example_tiles(image, truth, prediction, uncertainties, maxima, labels))
    height, width = truth.shape
    shape = max(1, round(height * min(1, _WIDEST / width))), min(width, _WIDEST)
    truth, prediction = (resize_nearest(mask, shape) for mask in (truth, prediction))
    wrong = (truth != prediction) & (truth != VOID) & (truth != UNSEEN)  # as the scores count
    if labels.num_classes == 2:
        errors = {f"missed {labels.names[labels.rare]}": wrong & (truth == labels.rare)}
        errors[f"false {labels.names[labels.rare]}"] = wrong & (prediction == labels.rare)
    else:
        errors = {"wrong class": wrong}
    error_map, legend = np.zeros((*shape, 4), np.uint8), {}
    for (error, where), colour in zip(errors.items(), _ERRORS, strict=False):
        error_map[where] = (*colour, 255)
        legend[error] = f"rgb{colour}"
    palette = overlay_palette(labels)  # black: void, and a background that is not tinted
    masks = {"prediction": colorize(prediction, palette), "truth": colorize(truth, palette)}
    layers = {
        kind: inference.png(np.dstack([mask, 255 * mask.any(axis=-1).astype(np.uint8)])) for kind, mask in masks.items()
    }
    layers["errors"] = inference.png(error_map)
    for kind, values in uncertainties.items():
        small = cv2.resize(values.astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA)
        layers[f"{kind}, 0 to {maxima[kind]:.2g}"] = inference.jpeg(inference.heatmap(small, maxima[kind]))
    present = [i for i in range(labels.num_classes) if (truth == i).any() or (prediction == i).any()]
    classes = {labels.names[i]: f"rgb{tuple(palette[i].tolist())}" for i in present if palette[i].any()}
    unseen = {"unseen class": "rgb(0, 255, 255)"} if (truth == UNSEEN).any() else {}
    small = inference.jpeg(cv2.resize(inference.as_rgb(image), shape[::-1], interpolation=cv2.INTER_AREA))
    return Overlay(name, caption, tiles, small, layers, classes | unseen | legend)
