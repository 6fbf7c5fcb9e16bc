"""Images under layers for a page: masks, errors and uncertainties, with the values of the pixel under the pointer."""

import io
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image

from segjax import inference
from segjax.data.labels import UNSEEN, VOID, LabelSet, colorize
from segjax.data.resize import resize_nearest
from segjax.inference.visualize import overlay_palette
from segjax.reporting.charts import data_url
from segjax.reporting.report import Overlay
from segjax.storage import printable

_WIDEST = 800  # pixels of an image on the page
_ERRORS = ((240, 228, 66), (0, 158, 255))  # yellow and blue: missed and false pixels
# An uncertainty has 64 colours: the page finds the value of a pixel from its colour, and the PNG is as small as a JPEG.
_HEAT = inference.heatmap(np.linspace(0, 1, 64), 1.0)

Masks = Mapping[str, UInt8[np.ndarray, "H W"]]
Legend = dict[str, str]


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
    shape = shown_shape(truth.shape)
    masks = {"prediction": resize_nearest(prediction, shape), "truth": resize_nearest(truth, shape)}
    layers, legends = _mask_layers(masks, labels)
    layers["errors"], legends["errors"] = flag_layer(_errors(**masks, labels=labels))
    readings = {}
    for kind, values in uncertainties.items():
        small = cv2.resize(values.astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA)
        layer = f"{kind}, 0 to {maxima[kind]:.2g}"
        layers[layer] = _heat_png(small / maxima[kind])
        legends[layer] = {f"{maxima[kind] * i / 63:.2g}": _css(_HEAT[i]) for i in (0, 21, 42, 63)}
        readings[layer] = [kind, maxima[kind]]
    values = _class_values(truth.shape, masks, labels) | {"maxima": readings, "colours": _HEAT.tolist()}
    return Overlay(name, caption, tiles, shrunk(image, shape), layers, legends, values)


def shown_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Returns the height and width on the page of an image of this height and width."""
    height, width = shape
    return max(1, round(height * min(1, _WIDEST / width))), min(width, _WIDEST)


def shrunk(image: Shaped[np.ndarray, "H W C"], shape: tuple[int, int]) -> bytes:
    """Returns the JPEG file of an image in this height and width."""
    return inference.jpeg(cv2.resize(inference.as_rgb(image), shape[::-1], interpolation=cv2.INTER_AREA))


def _mask_layers(masks: Masks, labels: LabelSet) -> tuple[dict[str, bytes], dict[str, Legend]]:
    """Returns a layer and a legend of the classes that occur per mask."""
    palette = overlay_palette(labels)  # black: void, and a background that is not tinted
    layers, legends = {}, {}
    for kind, mask in masks.items():
        colours = colorize(mask, palette)
        layers[kind] = inference.png(np.dstack([colours, 255 * colours.any(axis=-1).astype(np.uint8)]))
        present = [i for i in np.unique(mask).tolist() if i < labels.num_classes and palette[i].any()]
        legends[kind] = {labels.names[i]: _css(palette[i]) for i in present}
        legends[kind] |= {"unseen class": "rgb(0, 255, 255)"} if (mask == UNSEEN).any() else {}
    return layers, legends


def _errors(
    prediction: UInt8[np.ndarray, "H W"], truth: UInt8[np.ndarray, "H W"], labels: LabelSet
) -> dict[str, Bool[np.ndarray, "H W"]]:
    wrong = (truth != prediction) & (truth != VOID) & (truth != UNSEEN)  # as the scores count
    if labels.num_classes > 2:
        return {"wrong class": wrong}
    rare = labels.names[labels.rare]
    return {f"missed {rare}": wrong & (truth == labels.rare), f"false {rare}": wrong & (prediction == labels.rare)}


def flag_layer(flags: Mapping[str, Bool[np.ndarray, "H W"]]) -> tuple[bytes, Legend]:
    """Returns a layer with the pixels of each flag, at most two, in one colour, and its legend."""
    colours = dict(zip(flags, _ERRORS, strict=False))
    layer = np.zeros((*next(iter(flags.values())).shape, 4), np.uint8)
    for name, where in flags.items():
        layer[where] = (*colours[name], 255)
    return inference.png(layer), {name: f"rgb{colour}" for name, colour in colours.items()}


def _heat_png(shares: Float[np.ndarray, "h w"]) -> bytes:
    picture, file = Image.fromarray(np.round(63 * np.clip(shares, 0, 1)).astype(np.uint8), "P"), io.BytesIO()
    picture.putpalette(_HEAT.tobytes())
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _class_values(size: tuple[int, int], masks: Masks, labels: LabelSet) -> dict[str, Any]:
    """Returns the classes of every pixel for the page: a PNG file with the masks one below the other, and the names."""
    names = {**dict(enumerate(map(printable, labels.names))), VOID: "void", UNSEEN: "unseen class"}
    ids = data_url(inference.png(np.concatenate(list(masks.values()))))
    return {"size": size, "classes": names, "masks": list(map(printable, masks)), "ids": ids}


def _css(colour: UInt8[np.ndarray, "3"]) -> str:
    return f"rgb{tuple(colour.tolist())}"
