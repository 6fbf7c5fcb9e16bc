"""Pictures of a prediction: overlays, heat maps, contact sheets and legends, RGB uint8 arrays."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from segjax.data.labels import UNSEEN, VOID, LabelSet, colorize
from segjax.data.resize import resize_nearest
from segjax.storage import printable

_GAP, _LINE = 4, 20  # pixels between columns; height of a line of text
_RARE = 0.02  # fraction of an image's pixels below which a class is outlined
_INK, _NO_VALUE = (32, 32, 32), (128, 128, 128)
# matplotlib's inferno from OpenCV, black over red to pale yellow: its lightness grows evenly.
_COLOURS = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1].copy()


def as_rgb(image: Shaped[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the first three channels, or the first one three times, of an image of values 0..255.

    >>> as_rgb(np.full((1, 1, 2), 99.6, np.float32)).tolist(), as_rgb(np.zeros((4, 6, 5))).shape
    ([[[100, 100, 100]]], (4, 6, 3))
    """
    if image.dtype != np.uint8:
        image = np.clip(np.round(image), 0, 255).astype(np.uint8)
    return image[..., :3] if image.shape[-1] >= 3 else np.broadcast_to(image[..., :1], (*image.shape[:2], 3))


def overlay(
    image: Shaped[np.ndarray, "H W C"], colours: UInt8[np.ndarray, "H W 3"], *, opacity: float = 0.5
) -> UInt8[np.ndarray, "H W 3"]:
    """Lays `colours` over `image`: (1 - opacity) · image + opacity · colours, rounded.

    The image is shown as `as_rgb` returns it. Where `colours`, such as a colourized mask, are black, it stays as it is.

    >>> overlay(np.full((1, 1, 1), 100, np.uint8), np.array([[[200, 0, 0]]], np.uint8))
    array([[[150,  50,  50]]], dtype=uint8)
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in [0, 1]; got {opacity!r}")
    share = np.float32(opacity)
    image = as_rgb(image)
    mixed = np.round((1 - share) * image + share * colours).astype(np.uint8)
    return np.where(colours.any(axis=-1, keepdims=True), mixed, image)


def overlay_palette(label_set: LabelSet, only: int | None = None) -> UInt8[np.ndarray, "classes 3"]:
    """Returns the palette with black for the classes that an overlay does not tint.

    These are all but the class `only`; without it, a class named "background", or else of two the one that is not rare.
    For classes that overlap, there are none without `only`.
    """
    names, palette = label_set.names, label_set.palette.copy()
    if only is not None:
        palette[np.arange(len(names)) != only] = 0
    elif label_set.combinations is not None:
        pass  # all classes that overlap are tinted
    elif "background" in names:
        palette[names.index("background")] = 0
    elif len(names) == 2:
        palette[1 - label_set.rare] = 0
    return palette


def draw_boxes(
    image: Shaped[np.ndarray, "H W C"],
    boxes: Float[np.ndarray, "n 4"],
    colours: UInt8[np.ndarray, "n 3"],
    texts: Sequence[str] = (),
) -> UInt8[np.ndarray, "H W 3"]:
    """Draws the edges of boxes (x_min, y_min, x_max, y_max), in pixels, on a copy of the image, each in its colour.

    The image is shown as `as_rgb` returns it. Edges are outside of the box and 1/200 of the shorter side wide. `texts`,
    one per box or none, are written above the boxes, or below those at the upper edge of the image; "" is not written.

    >>> drawn = draw_boxes(np.zeros((5, 5, 3), np.uint8), np.array([[2.0, 2, 3, 3]]), np.array([[9, 0, 0]], np.uint8))
    >>> print(drawn[..., 0])
    [[0 0 0 0 0]
     [0 9 9 9 0]
     [0 9 0 9 0]
     [0 9 9 9 0]
     [0 0 0 0 0]]
    """
    picture = as_rgb(image).copy()
    width = max(1, round(min(picture.shape[:2]) / 200))
    for (left, top, right, bottom), colour in zip(np.round(boxes).astype(int).tolist(), colours, strict=True):
        outer = slice(max(top - width, 0), bottom + width), slice(max(left - width, 0), right + width)
        inner = picture[top:bottom, left:right].copy()
        picture[outer] = colour
        picture[top:bottom, left:right] = inner
    return _label_boxes(picture, boxes, colours, texts) if texts else picture


def _label_boxes(picture: np.ndarray, boxes: np.ndarray, colours: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Writes a text on the colour of its box beside each box."""
    drawn = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(drawn), _font(max(9, round(min(picture.shape[:2]) / 40)))
    for (left, top, _, bottom), colour, text in zip(boxes.tolist(), colours.tolist(), texts, strict=True):
        if not text:
            continue
        _, _, width, height = draw.textbbox((0, 0), printable(text), font=font)
        x = max(0, min(left, picture.shape[1] - width - 2))
        y = top - height - 2 if top >= height + 2 else bottom
        ink = _INK if np.dot(colour, (0.299, 0.587, 0.114)) > 110 else (255, 255, 255)
        draw.rectangle((x, y, x + width + 1, y + height + 1), fill=tuple(colour))
        draw.text((x + 1, y), printable(text), fill=ink, font=font)
    return np.asarray(drawn)


def rare_outlines(
    mask: Integer[np.ndarray, "H W"], palette: UInt8[np.ndarray, "classes 3"]
) -> UInt8[np.ndarray, "H W"]:
    """Returns a mask of outlines around each class that covers less than 2 % of the image, `VOID` elsewhere.

    Outlines are outside of the class and 1/200 of the shorter side wide. Classes whose colour is black have none.
    """
    outlines = np.full(mask.shape, VOID, np.uint8)
    pixels = sum(np.bincount(row, minlength=VOID + 1) for row in mask)[: len(palette)]  # a row needs little memory
    width = max(1, round(min(mask.shape) / 200))
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    for index in np.argsort(-pixels, kind="stable"):  # the rarest is drawn last, over the others
        if 0 < pixels[index] < _RARE * mask.size and palette[index].any():
            inside = (mask == index).astype(np.uint8)
            outlines[cv2.dilate(inside, square) > inside] = index
    return outlines


def colorize_overlaps(
    mask: Bool[np.ndarray, "H W classes"], palette: UInt8[np.ndarray, "classes 3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Paints classes that overlap: the mean colour of the classes of a pixel, inside outlines of each one in its own.

    Outlines are inside of the class and 1/200 of the shorter side wide. Pixels without a class are black; a class whose
    colour is black is not painted.

    >>> mask = np.zeros((5, 5, 2), bool)
    >>> mask[..., 0], mask[:, 2:, 1] = True, True
    >>> colorize_overlaps(mask, np.array([[200, 0, 0], [0, 200, 0]], np.uint8))[2].tolist()
    [[200, 0, 0], [200, 0, 0], [0, 200, 0], [100, 100, 0], [0, 200, 0]]
    """
    mask = mask & palette.any(axis=-1)
    count = np.maximum(mask.sum(axis=-1, dtype=np.uint8), 1)[..., None]
    painted = np.round(mask.astype(np.float32) @ palette.astype(np.float32) / count).astype(np.uint8)
    width = max(1, round(min(mask.shape[:2]) / 200))
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    for index in np.argsort(-mask.sum(axis=(0, 1)), kind="stable"):  # the rarest is drawn last, over the others
        inside = np.pad(mask[..., index].astype(np.uint8), 1)  # the class ends at the border of the image
        edge = inside > cv2.erode(inside, square)
        painted[edge[1:-1, 1:-1]] = palette[index]
    return painted


def heatmap(values: Float[np.ndarray, "*shape"], maximum: float) -> UInt8[np.ndarray, "*shape 3"]:
    """Returns non-negative values, such as an uncertainty, as RGB from black (0) over red to pale yellow (`maximum`).

    Values above `maximum`, which is finite and more than 0, are clipped; NaN is grey. Compare pictures of one maximum.

    >>> heatmap(np.array([0.0, 0.5, 1.0, np.nan]), maximum=1.0).tolist()
    [[0, 0, 4], [188, 55, 84], [252, 255, 164], [128, 128, 128]]
    """
    if not 0 < maximum < np.inf:
        raise ValueError(f"maximum must be finite and more than 0; got {maximum!r}")
    undefined = np.isnan(values)
    indices = np.round(255 * np.clip(np.where(undefined, 0, values) / maximum, 0, 1)).astype(np.uint8)
    return np.where(undefined[..., None], np.array(_NO_VALUE, np.uint8), _COLOURS[indices])


def contact_sheet(
    rows: Mapping[str, Sequence[UInt8[np.ndarray, "..."]]],
    titles: Sequence[str],
    label_set: LabelSet | None = None,
    ids: Sequence[int] | None = None,
    *,
    width: int = 240,
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns small pictures of many images, one row per image under its name, and the classes' colours, on white.

    `rows` maps the name of an image to its RGB pictures, one per column title, all of one size; each is drawn
    `width` pixels wide (`thumbnail`). The `legend` of the classes `ids` of a label set, by default of all, is at the
    bottom.

    >>> black = np.zeros((30, 40, 3), np.uint8)
    >>> contact_sheet({"a": [black, black]}, ("image", "prediction"), width=80).shape
    (100, 172, 3)
    """
    if not rows or any(len(pictures) != len(titles) for pictures in rows.values()):
        raise ValueError(f"a contact sheet needs rows of {len(titles)} pictures, one per title; got {len(rows)} rows")
    step = width + _GAP
    total = _GAP + len(titles) * step
    parts = [_text(titles, step, total)]
    for name, pictures in rows.items():
        small = [thumbnail(picture, width=width) for picture in pictures]
        row = np.full((small[0].shape[0], total, 3), 255, np.uint8)
        for left, picture in zip(range(_GAP, total, step), small, strict=True):
            row[:, left : left + picture.shape[1]] = picture
        parts += [_text([name], total, total), row]
    if label_set is not None:
        parts.append(legend(label_set, ids, width=total))
    return np.concatenate(parts)


def thumbnail(picture: UInt8[np.ndarray, "H W 3"], *, width: int = 240) -> UInt8[np.ndarray, "h w 3"]:
    """Shrinks `picture` to `width` pixels, or less where its height would exceed four times that.

    >>> thumbnail(np.zeros((30, 40, 3), np.uint8), width=80).shape, thumbnail(np.zeros((9000, 9, 3), np.uint8)).shape
    ((60, 80, 3), (960, 1, 3))
    """
    height, wide = picture.shape[:2]
    scale = min(width / wide, 4 * width / height)
    return cv2.resize(picture, tuple(max(1, round(n * scale)) for n in (wide, height)), interpolation=cv2.INTER_AREA)


def tiles(pictures: Mapping[str, UInt8[np.ndarray, "..."]], *, width: int = 240) -> UInt8[np.ndarray, "height total 3"]:
    """Returns pictures of one image and size, two per row, each under its title, on white: the width of a telephone.

    Each is `width` pixels wide, and at most four times as high.

    >>> black = np.zeros((30, 40, 3), np.uint8)
    >>> tiles({"image": black, "truth": black, "prediction": black}, width=80).shape
    (164, 164, 3)
    """
    if not pictures:
        raise ValueError("tiles need at least one picture; got none")
    shown = []
    for title, picture in pictures.items():
        height = min(max(1, round(width * picture.shape[0] / picture.shape[1])), 4 * width)
        if width < picture.shape[1]:
            resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        else:
            resized = resize_nearest(picture, (height, width))
        shown.append(np.concatenate([_text([title], width, width, left=0, size=14), resized]))
    shown += [np.full_like(shown[0], 255)] * (len(shown) % 2)
    rows = []
    for left, right in zip(shown[::2], shown[1::2], strict=True):
        row = np.concatenate([left, np.full((len(left), _GAP, 3), 255, np.uint8), right], axis=1)
        rows += [np.full((_GAP, row.shape[1], 3), 255, np.uint8), row]
    return np.concatenate(rows[1:])


def example_tiles(
    image: Shaped[np.ndarray, "H W C"],
    truth: Integer[np.ndarray, "H W"],
    prediction: Integer[np.ndarray, "H W"],
    uncertainties: Mapping[str, Float[np.ndarray, "H W"]],
    maxima: Mapping[str, float],
    label_set: LabelSet,
) -> UInt8[np.ndarray, "height total 3"]:
    """Returns `tiles` of an image, its truth, its prediction and its uncertainties, above a legend of its classes.

    The image is shown as `as_rgb` returns it; truth and prediction are train ids, with void black and unseen cyan.
    `maxima` are the uncertainties, by name, that have the lightest colour.
    """
    shown = {
        "image": as_rgb(image),
        "truth": colorize(truth, label_set.palette),
        "prediction": colorize(prediction, label_set.palette),
    }
    heatmaps = {f"{name}, 0 to {maxima[name]:.2g}": heatmap(y, maxima[name]) for name, y in uncertainties.items()}
    sheet = tiles(shown | heatmaps)
    ids = np.union1d(truth, prediction)
    return np.concatenate([sheet, legend(label_set, ids.tolist(), width=sheet.shape[1])])


def legend(
    label_set: LabelSet, ids: Sequence[int] | None = None, *, width: int = 360
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the colours and names of the train ids `ids`, by default of all classes. `width` is in pixels."""
    names = {**dict(enumerate(map(printable, label_set.names))), VOID: "void", UNSEEN: "unseen"}
    font, lines, left = _font(12), [], width
    for index in range(label_set.num_classes) if ids is None else ids:
        needed = 18 + math.ceil(font.getlength(names[index])) + 10
        if left + needed > width:
            lines.append(Image.new("RGB", (width, _LINE), "white"))
            left = _GAP
        draw = ImageDraw.Draw(lines[-1])
        colour = colorize(np.array(index), label_set.palette)
        draw.rectangle((left, 4, left + 12, 16), fill=tuple(colour.tolist()))
        draw.text((left + 18, 3), names[index], fill=_INK, font=font)
        left += needed
    return np.concatenate([np.asarray(line) for line in lines])


def _text(texts: Sequence[str], step: int, total: int, *, left: int = _GAP, size: int = 12) -> np.ndarray:
    """Returns a line of texts, `step` pixels apart."""
    picture = Image.new("RGB", (total, _LINE), "white")
    for i, text in enumerate(map(printable, texts)):
        ImageDraw.Draw(picture).text((left + i * step, 3 if size == 12 else 2), text, fill=_INK, font=_font(size))
    return np.asarray(picture)


def _font(size: int) -> ImageFont.FreeTypeFont:
    # The fonts of Pillow and OpenCV have English letters only, and file names have others.
    folder = Path(importlib.util.find_spec("matplotlib").origin).parent  # found, not imported: it is slow
    return ImageFont.truetype(str(folder / "mpl-data/fonts/ttf/DejaVuSans.ttf"), size)
