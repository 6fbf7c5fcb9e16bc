"""Images under layers for a page: masks, errors and uncertainties, with the values of the pixel under the pointer."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image

from segjax import inference
from segjax.data.labels import UNSEEN, VOID, LabelSet, colorize
from segjax.data.resize import resize_nearest
from segjax.inference.visualize import colorize_overlaps, overlay_palette
from segjax.reporting.charts import data_url
from segjax.reporting.report import Overlay
from segjax.storage import printable

_WIDEST = 800  # pixels of an image on the page
_BOXES_WIDTH = 480  # the same of an image with boxes, of any size
_VOID_GREY = np.full(3, 128, np.uint8)
_FLAGS = ((240, 228, 66), (0, 158, 255), (204, 121, 167))  # yellow, blue and pink
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

    `maxima` has the value of each uncertainty at which its colour is lightest. With two classes, the errors are the
    missed and the false pixels of the rare class.
    """
    tiles = inference.png(inference.example_tiles(image, truth, prediction, uncertainties, maxima, labels))
    shape = shown_shape(truth.shape)
    masks = {"prediction": resize_nearest(prediction, shape), "truth": resize_nearest(truth, shape)}
    layers, legends = _mask_layers(masks, labels)
    layers["errors"], legends["errors"] = flag_layer(_errors(**masks, labels=labels))
    values = _values(truth.shape) | _class_values(masks, labels)
    for kind, uncertainty in uncertainties.items():
        layer = f"{kind}, 0 to {maxima[kind]:.2g}"
        layers[layer], legends[layer] = _heat_layer(uncertainty, maxima[kind], shape)
        values["maxima"][layer] = [kind, maxima[kind]]
    return Overlay(name, caption, tiles, shrunk(image, shape), layers, legends, values)


def comparison_overlay(
    name: str,
    caption: str,
    content: bytes,
    image: Shaped[np.ndarray, "H W C"],
    truth: UInt8[np.ndarray, "H W"],
    predictions: Masks,
    labels: LabelSet,
) -> Overlay:
    """Draws an image and its layers: the prediction of each network, the truth, and where the predictions differ."""
    shape = shown_shape(truth.shape)
    masks = {one: resize_nearest(mask, shape) for one, mask in {**predictions, "truth": truth}.items()}
    layers, legends = _mask_layers(masks, labels)
    exists = (masks["truth"] != VOID) & (masks["truth"] != UNSEEN)
    right = {one: exists & (masks[one] == masks["truth"]) for one in predictions}
    differ = predictions_differ([masks[one] for one in predictions])
    layers["difference"], legends["difference"] = flag_layer(_differences(right, differ))
    values = _values(truth.shape) | _class_values(masks, labels)
    return Overlay(name, caption, content, shrunk(image, shape), layers, legends, values)


def _differences(
    right: Mapping[str, Bool[np.ndarray, "h w"]], differ: Bool[np.ndarray, "h w"]
) -> dict[str, Bool[np.ndarray, "h w"]]:
    """Returns the pixels in which the predictions differ; of two predictions, also which one is right."""
    if len(right) != 2:
        return {"predictions differ": differ}
    (one, first), (other, second) = right.items()
    flags = {f"only {one} is right": first & ~second, f"only {other} is right": second & ~first}
    return flags | {"both are wrong and differ, or void": differ & ~first & ~second}


def overlap_overlay(
    name: str,
    caption: str,
    content: bytes,
    image: Shaped[np.ndarray, "H W C"],
    truth: UInt8[np.ndarray, "H W"],
    predictions: Mapping[str, Bool[np.ndarray, "H W classes"]],
    labels: LabelSet,
    entropy: Float[np.ndarray, "H W"] | None = None,
    maximum: float = 1.0,
) -> Overlay:
    """Draws an image and its layers for classes that overlap: the page shows all classes, or one.

    The layers are each prediction, the truth, the errors of one prediction or the difference of several, and the
    entropy, whose lightest colour means `maximum`.
    """
    shape = shown_shape(truth.shape)
    small = resize_nearest(truth, shape)
    exists = small < len(labels.combinations)
    true = labels.combinations[np.where(exists, small, 0)] & exists[..., None]
    masks = {one: resize_nearest(mask.astype(np.uint8), shape) > 0 for one, mask in predictions.items()}
    layers = {one: _class_parts(mask, labels) for one, mask in (masks | {"truth": true}).items()}
    if not exists.all():
        layers["truth"] |= {"void": _painted(~exists, _VOID_GREY)}
    present = np.any([mask.any(axis=(0, 1)) for mask in (*masks.values(), true)], axis=0)
    legend = {labels.names[i]: _css(labels.palette[i]) for i in np.flatnonzero(present)}
    legends = dict.fromkeys(layers, legend)
    if len(masks) == 1:
        (mask,), kind = masks.values(), "errors"
        flags = {"missed": true & ~mask & exists[..., None], "false": mask & ~true & exists[..., None]}
    else:
        kind, flags = "difference", {"predictions differ": predictions_differ(list(masks.values()))}
    layers[kind] = {"": flag_layer({flag: where.any(axis=-1) for flag, where in flags.items()})[0]}
    for i, one in enumerate(labels.names):
        layer, legends[kind] = flag_layer({flag: where[..., i] for flag, where in flags.items()})
        layers[kind][one] = layer
    values = _values(truth.shape) | {"overlaps": list(map(printable, (*masks, "truth")))}
    values["parts"] = list(map(printable, labels.names))
    if entropy is not None:
        layer = f"entropy, 0 to {maximum:.2g}"
        layers[layer], legends[layer] = _heat_layer(entropy, maximum, shape)
        values["maxima"] = {layer: ["entropy", maximum]}
    return Overlay(name, caption, content, shrunk(image, shape), layers, legends, values)


def _class_parts(mask: Bool[np.ndarray, "h w classes"], labels: LabelSet) -> dict[str, bytes]:
    """Returns the layer of all classes, under "", and that of each class that occurs."""
    together = colorize_overlaps(mask, labels.palette)
    parts = {"": inference.png(np.dstack([together, 255 * mask.any(axis=-1).astype(np.uint8)]))}
    for i in np.flatnonzero(mask.any(axis=(0, 1))).tolist():
        parts[labels.names[i]] = _painted(mask[..., i], labels.palette[i])
    return parts


def _painted(where: Bool[np.ndarray, "h w"], colour: UInt8[np.ndarray, "3"]) -> bytes:
    layer = np.zeros((*where.shape, 4), np.uint8)
    layer[where] = (*colour, 255)
    return inference.png(layer)


class DrawnBox(NamedTuple):
    """A box (x_min, y_min, x_max, y_max) of a layer, in pixels of the image.

    `text` is written beside the box; `meaning` is shown when the pointer is in it.
    """

    box: tuple[float, float, float, float]
    colour: tuple[int, int, int]
    text: str
    meaning: str


def box_overlay(
    name: str,
    caption: str,
    image: Shaped[np.ndarray, "H W C"],
    layers: Mapping[str, Sequence[DrawnBox]],
    legends: Mapping[str, Mapping[str, tuple[int, int, int]]],
) -> Overlay:
    """Draws an image, enlarged or reduced to one width, and its layers of boxes; the last box of a layer is on top.

    `legends` has the colours of each layer by their meaning.
    """
    height, width = image.shape[:2]
    shape = min(max(1, round(_BOXES_WIDTH * height / width)), 4 * _BOXES_WIDTH), _BOXES_WIDTH
    shown = cv2.resize(
        inference.as_rgb(image), shape[::-1], interpolation=cv2.INTER_AREA if width > shape[1] else cv2.INTER_LINEAR
    )
    scale = np.array(shape)[[1, 0, 1, 0]] / (width, height, width, height)
    scaled = {kind: scale * np.array([each.box for each in boxes]).reshape(-1, 4) for kind, boxes in layers.items()}

    def draw(ground: UInt8[np.ndarray, "h w 3"]) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        colours = {kind: np.array([each.colour for each in boxes], np.uint8) for kind, boxes in layers.items()}
        return {
            kind: inference.draw_boxes(
                ground, scaled[kind], colours[kind].reshape(-1, 3), [each.text for each in boxes]
            )
            for kind, boxes in layers.items()
        }

    transparent = {
        kind: inference.png(np.dstack([boxes, 255 * boxes.any(axis=-1).astype(np.uint8)]))
        for kind, boxes in draw(np.zeros_like(shown)).items()
    }
    values = _values((height, width))
    values["boxes"] = {
        printable(kind): [
            [*box, printable(each.meaning)] for box, each in zip(scaled[kind].round(1).tolist(), boxes, strict=True)
        ]
        for kind, boxes in layers.items()
    }
    css = {kind: {meaning: f"rgb{colour}" for meaning, colour in one.items()} for kind, one in legends.items()}
    tiles = inference.png(inference.tiles({"image": shown, **draw(shown)}, width=shape[1]))
    return Overlay(name, caption, tiles, inference.jpeg(shown), transparent, css, values)


def predictions_differ(masks: Sequence[Shaped[np.ndarray, "*shape"]]) -> Bool[np.ndarray, "*shape"]:
    """Returns True where not all masks are equal."""
    return np.any([mask != masks[0] for mask in masks], axis=0)


def shown_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Returns the height and width at which the page shows an image of this height and width."""
    height, width = shape
    return max(1, round(height * min(1, _WIDEST / width))), min(width, _WIDEST)


def shrunk(image: Shaped[np.ndarray, "H W C"], shape: tuple[int, int]) -> bytes:
    """Returns the JPEG file of an image, resized to this height and width."""
    return inference.jpeg(cv2.resize(inference.as_rgb(image), shape[::-1], interpolation=cv2.INTER_AREA))


def _mask_layers(masks: Masks, labels: LabelSet) -> tuple[dict[str, bytes], dict[str, Legend]]:
    """Returns one layer per mask, and one legend per mask with the classes that occur in it."""
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
    """Returns a layer in which each flag, of at most three, has its own colour, and the legend."""
    colours = dict(zip(flags, _FLAGS, strict=False))
    layer = np.zeros((*next(iter(flags.values())).shape, 4), np.uint8)
    for name, where in flags.items():
        layer[where] = (*colours[name], 255)
    return inference.png(layer), {name: f"rgb{colour}" for name, colour in colours.items()}


def _heat_layer(
    values: Float[np.ndarray, "H W"], maximum: float, shape: tuple[int, int]
) -> tuple[bytes, dict[str, str]]:
    """Returns a layer of values from 0 to `maximum`, and its legend."""
    small = cv2.resize(values.astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA)
    levels, file = np.round(63 * np.clip(small / maximum, 0, 1)).astype(np.uint8), io.BytesIO()
    picture = Image.fromarray(levels, "P")
    picture.putpalette(_HEAT.tobytes())
    picture.save(file, "PNG", optimize=True)
    return file.getvalue(), {f"{maximum * i / 63:.2g}": _css(_HEAT[i]) for i in (0, 21, 42, 63)}


def _values(size: tuple[int, int]) -> dict[str, Any]:
    """Returns what the page needs to find the values of a pixel in the layers of an image of this height and width.

    The classes of masks with one class per pixel are in "ids" (`_class_values`). The page finds an uncertainty from its
    colour: "colours" lists those from 0 to the layer's entry of "maxima". In the layers "overlaps", a pixel has each
    class of "parts" whose layer is not transparent there. "boxes" lists, per layer, the edges of boxes in pixels of
    the page's image and their meanings.
    """
    return {
        "size": size,
        "masks": [],
        "maxima": {},
        "colours": _HEAT.tolist(),
        "overlaps": [],
        "parts": [],
        "boxes": {},
    }


def _class_values(masks: Masks, labels: LabelSet) -> dict[str, Any]:
    """Returns the classes of every pixel: a PNG file with the masks one below the other, and the names."""
    names = {**dict(enumerate(map(printable, labels.names))), VOID: "void", UNSEEN: "unseen class"}
    ids = data_url(inference.png(np.concatenate(list(masks.values()))))
    return {"classes": names, "masks": list(map(printable, masks)), "ids": ids}


def _css(colour: UInt8[np.ndarray, "3"]) -> str:
    return f"rgb{tuple(colour.tolist())}"
