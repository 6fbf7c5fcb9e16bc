"""Pictures of a prediction."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from jaxtyping import Float, Integer, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from segjax.data.labels import LabelSet, colorize

_GAP = 4  # pixels between columns
_WHITE, _INK, _NO_VALUE = 255, (32, 32, 32), (128, 128, 128)
# matplotlib's inferno as OpenCV has it, black over red to pale yellow: its lightness grows evenly.
_COLOURS = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1].copy()


def overlay(
    image: UInt8[np.ndarray, "H W C"], colours: UInt8[np.ndarray, "H W 3"], *, opacity: float = 0.5
) -> UInt8[np.ndarray, "H W 3"]:
    """`image` with `colours` laid over it: (1 - opacity) · image + opacity · colours, rounded.

    Args:
      image: uint8 `[H, W, C]`, C = 3 (RGB) or 1 (grey).
      colours: uint8 `[H, W, 3]`, such as a colourised mask; black leaves the image as it is.
      opacity: in [0, 1].

    Raises:
      ValueError: `opacity` outside [0, 1].

    >>> overlay(np.full((1, 1, 1), 100, np.uint8), np.array([[[200, 0, 0]]], np.uint8))
    array([[[150,  50,  50]]], dtype=uint8)
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in [0, 1]; got {opacity!r}")
    share = np.float32(opacity)
    grey_or_rgb: Shaped[np.ndarray, "H W 3"] = np.broadcast_to(image, colours.shape)
    mixed = np.round((1 - share) * grey_or_rgb + share * colours).astype(np.uint8)
    return np.where(colours.any(axis=-1, keepdims=True), mixed, grey_or_rgb)


def heatmap(values: Float[np.ndarray, "*shape"], maximum: float) -> UInt8[np.ndarray, "*shape 3"]:
    """Non-negative values, such as an uncertainty, as colours from black (0) over red to pale yellow (`maximum`).

    Args:
      values: floating; what lies outside [0, maximum] is drawn as its nearer end, NaN in grey.
      maximum: finite and more than 0. One for all pictures that are to be compared.

    Returns:
      uint8 RGB, lighter wherever the value is larger.

    Raises:
      ValueError: `maximum` is not finite, or not more than 0.

    >>> heatmap(np.array([0.0, 0.5, 1.0, np.nan]), maximum=1.0).tolist()
    [[0, 0, 4], [188, 55, 84], [252, 255, 164], [128, 128, 128]]
    """
    if not 0 < maximum < np.inf:
        raise ValueError(f"maximum must be finite and more than 0; got {maximum!r}")
    undefined = np.isnan(values)
    places = np.round(255 * np.clip(np.where(undefined, 0, values) / maximum, 0, 1)).astype(np.uint8)
    return np.where(undefined[..., None], np.array(_NO_VALUE, np.uint8), _COLOURS[places])


def contact_sheet(
    rows: Mapping[str, Sequence[UInt8[np.ndarray, "..."]]],
    titles: Sequence[str],
    label_set: LabelSet | None = None,
    *,
    width: int = 240,
) -> UInt8[np.ndarray, "height width 3"]:
    """Small pictures of many images: a row an image, its name above it, and the colours of the classes at the bottom.

    Args:
      rows: of each name its pictures, uint8 RGB `[H, W, 3]` of one size.
      titles: of the columns.
      label_set: whose colours are explained; None: none are.
      width: of each picture, in pixels (`thumbnail`).

    Returns:
      uint8 RGB on white.

    Raises:
      ValueError: no rows, or a row that has not one picture a title.

    >>> black = np.zeros((30, 40, 3), np.uint8)
    >>> contact_sheet({"a": [black, black]}, ("image", "prediction"), width=80).shape
    (100, 172, 3)
    """
    if not rows or any(len(pictures) != len(titles) for pictures in rows.values()):
        raise ValueError(f"a contact sheet needs rows of {len(titles)} pictures, one a title; got {len(rows)} rows")
    total = _GAP + len(titles) * (width + _GAP)

    def strip(texts: Sequence[str], step: int) -> UInt8[np.ndarray, "strip total 3"]:
        picture = Image.new("RGB", (total, 20), "white")
        for i, text in enumerate(texts):
            ImageDraw.Draw(picture).text((_GAP + i * step, 3), text, fill=_INK, font=_font())
        return np.asarray(picture)

    parts = [strip(titles, width + _GAP)]
    for name, pictures in rows.items():
        small = [thumbnail(picture, width=width) for picture in pictures]
        row = np.full((small[0].shape[0], total, 3), _WHITE, np.uint8)
        for i, picture in enumerate(small):
            left = _GAP + i * (width + _GAP)
            row[:, left : left + picture.shape[1]] = picture
        parts += [strip([name], total), row]
    if label_set is not None:
        parts += _legend(label_set, total)
    return np.concatenate(parts)


def thumbnail(picture: UInt8[np.ndarray, "H W 3"], *, width: int = 240) -> UInt8[np.ndarray, "h w 3"]:
    """`picture` made small: `width` pixels wide, and as high as follows, but at most four times that: then less wide.

    >>> thumbnail(np.zeros((30, 40, 3), np.uint8), width=80).shape, thumbnail(np.zeros((9000, 9, 3), np.uint8)).shape
    ((60, 80, 3), (960, 1, 3))
    """
    height, wide = picture.shape[:2]
    scale = min(width / wide, 4 * width / height)
    return cv2.resize(picture, tuple(max(1, round(n * scale)) for n in (wide, height)), interpolation=cv2.INTER_AREA)


def tiles(pictures: Mapping[str, UInt8[np.ndarray, "..."]], *, width: int = 300) -> UInt8[np.ndarray, "height total 3"]:
    """Pictures of one image, two in a row, each under its title: as much as a telephone shows.

    Args:
      pictures: by title, uint8 RGB `[H, W, 3]` of one size, at least one.
      width: of each, in pixels; heights follow, up to four times that.

    Returns:
      uint8 RGB on white.

    Raises:
      ValueError: there are none.

    >>> black = np.zeros((30, 40, 3), np.uint8)
    >>> tiles({"image": black, "truth": black, "prediction": black}, width=80).shape
    (164, 164, 3)
    """
    if not pictures:
        raise ValueError("tiles need at least one picture; got none")
    shown = []
    for title, picture in pictures.items():
        height = min(max(1, round(width * picture.shape[0] / picture.shape[1])), 4 * width)
        shrinks = width < picture.shape[1]
        size = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
        strip = Image.new("RGB", (width, 20), "white")
        ImageDraw.Draw(strip).text((0, 2), title, fill=_INK, font=_font(14))
        shown.append(np.concatenate([np.asarray(strip), cv2.resize(picture, (width, height), interpolation=size)]))
    shown += [np.full_like(shown[0], _WHITE)] * (len(shown) % 2)
    gap = np.full((shown[0].shape[0], _GAP, 3), _WHITE, np.uint8)
    rows = [np.concatenate([left, gap, right], axis=1) for left, right in zip(shown[::2], shown[1::2], strict=True)]
    between = np.full((_GAP, rows[0].shape[1], 3), _WHITE, np.uint8)
    return np.concatenate([part for row in rows for part in (between, row)][1:])


def example_tiles(
    image: UInt8[np.ndarray, "H W C"],
    truth: Integer[np.ndarray, "H W"],
    prediction: Integer[np.ndarray, "H W"],
    uncertainties: Mapping[str, Float[np.ndarray, "H W"]],
    maxima: Mapping[str, float],
    palette: UInt8[np.ndarray, "classes 3"],
) -> UInt8[np.ndarray, "height total 3"]:
    """`tiles` of an image, its truth, its prediction and its uncertainties.

    Args:
      image: C = 3 (RGB) or 1 (grey).
      truth: train ids, void 255 in black.
      prediction: train ids.
      uncertainties: by name, ≥ 0.
      maxima: by name, the uncertainty that has the lightest colour.
      palette: RGB, a row a class.

    Raises:
      ValueError: an id without a colour, or a maximum that is not finite and more than 0.
    """
    shown = {
        "image": np.broadcast_to(image, (*truth.shape, 3)),
        "truth": colorize(truth, palette),
        "prediction": colorize(prediction, palette),
    }
    for name, values in uncertainties.items():
        shown[f"{name}, 0 to {maxima[name]:.2g}"] = heatmap(values, maxima[name])
    return tiles(shown)


def legend(label_set: LabelSet, *, width: int = 360) -> UInt8[np.ndarray, "height width 3"]:
    """The colours of the classes, with their names, as a picture `width` pixels wide."""
    return np.concatenate(_legend(label_set, width))


def _font(size: int = 12) -> ImageFont.FreeTypeFont:
    # Pillow's own has English letters only, as OpenCV's, and names of files have others.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def _legend(label_set: LabelSet, total: int) -> list[UInt8[np.ndarray, "h total 3"]]:
    """Lines of coloured squares with the classes' names."""
    font, height = _font(), 20
    lines, left = [], total
    for name, colour in zip(label_set.names, label_set.palette, strict=True):
        needed = 18 + math.ceil(font.getlength(name)) + 10
        if left + needed > total:
            lines.append(Image.new("RGB", (total, height), "white"))
            left = _GAP
        draw = ImageDraw.Draw(lines[-1])
        draw.rectangle((left, 4, left + 12, 16), fill=tuple(int(c) for c in colour))
        draw.text((left + 18, 3), name, fill=_INK, font=font)
        left += needed
    return [np.asarray(line) for line in lines]
