"""The pictures and arrays of one predicted image, and the contact sheet of many.

A mask says in its own file of which image it is, so that none is taken for another image's, or a person's file for one.
"""

import io
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from segjax.data.labels import LabelSet, colorize
from segjax.inference.engine import Prediction
from segjax.inference.visualize import contact_sheet, heatmap, overlay, thumbnail

_SHEET_ROWS = 24
_TEXT = "segjax"  # of a PNG file: the keyword of what it was made from
_BAND = 2**20  # pixels that are painted at a time
_UNITS = {"entropy": "nats", "mutual_information": "nats", "variance": "squared logits"}


class Wanted(NamedTuple):
    """Which files are written of each image, beside its mask of class indices.

    Attributes:
      overlay: NAME_overlay.png, the image under the colours of its classes.
      only: the one class that overlays show; None: all.
      uncertainty: NAME_uncertainty.png, from 0, black, to `maximum`, pale yellow.
      measure: which uncertainty it shows, one of `Way.uncertainties`.
      maximum: one for all images; None: `default_maximum`.
      probabilities: NAME_probabilities.npz: "probabilities" float32 `[H, W, C]`, each uncertainty of the way under its
        own name, float32 `[H, W]`, and "classes".
      palette: NAME_mask.png shows the classes' colours; its pixels are the same indices, of a palette.
      sheet: contact_sheet.png, a row of small pictures for each of up to 24 images, evenly chosen.
    """

    overlay: bool = True
    only: int | None = None
    uncertainty: bool = False
    measure: str = "entropy"
    maximum: float | None = None
    probabilities: bool = False
    palette: bool = False
    sheet: bool = False

    @property
    def suffixes(self) -> list[str]:
        """How the files of one image end; the mask's is the last to be written."""
        chosen = {
            "_overlay.png": self.overlay,
            "_uncertainty.png": self.uncertainty,
            "_probabilities.npz": self.probabilities,
        }
        return [*(suffix for suffix, yes in chosen.items() if yes), "_mask.png"]

    def highest(self, label_set: LabelSet) -> float:
        """The uncertainty that is drawn lightest."""
        return default_maximum(self.measure, label_set.num_classes) if self.maximum is None else self.maximum

    def scale(self, label_set: LabelSet) -> str:
        """What the colours of the uncertainty mean, such as "entropy, 0 to 2.4 nats"."""
        return f"{self.measure.replace('_', ' ')}, 0 to {self.highest(label_set):.3g} {_UNITS[self.measure]}"


class ImageFile(NamedTuple):
    """An image's file: where it lies, and the SHA-256 of its bytes."""

    path: str
    sha256: str


class Found(NamedTuple):
    """One image and what was predicted of it."""

    image: UInt8[np.ndarray, "H W c"]
    prediction: Prediction


def default_maximum(measure: str, num_classes: int) -> float:
    """The end of the scale unless another is named, the same for all images and networks of so many classes.

    log C of the entropy, which is its largest; of the mutual information a quarter of it, and of the variance 5, which
    the networks of the results here seldom pass.
    """
    return {"entropy": math.log(num_classes), "mutual_information": math.log(num_classes) / 4, "variance": 5.0}[measure]


def png(pixels: UInt8[np.ndarray, "..."]) -> bytes:
    """The PNG of a grey `[H, W]` or RGB `[H, W, 3]` picture."""
    return cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[..., ::-1])[1].tobytes()


def encoded(suffix: str, found: Found, wanted: Wanted, label_set: LabelSet, source: ImageFile) -> bytes:
    """The bytes of one of `Wanted.suffixes`' files."""
    mask, uncertainties, probabilities = found.prediction
    if suffix == "_probabilities.npz":
        buffer, classes = io.BytesIO(), np.array(label_set.names)
        np.savez_compressed(buffer, probabilities=probabilities, **uncertainties, classes=classes)
        return buffer.getvalue()
    if suffix == "_uncertainty.png":
        return png(_uncertainty(found, wanted, label_set))
    if suffix == "_overlay.png":
        return png(_overlay(found, wanted, label_set))
    return _png_of(mask.astype(np.uint8), source._asdict(), label_set.palette.tobytes() if wanted.palette else None)


def _bands(mask: np.ndarray) -> Iterator[slice]:
    """Some rows of a picture after another: what is made of them on the way takes several times their room."""
    rows = max(1, _BAND // mask.shape[1])
    return (slice(top, top + rows) for top in range(0, mask.shape[0], rows))


def _overlay(found: Found, wanted: Wanted, label_set: LabelSet) -> UInt8[np.ndarray, "H W 3"]:
    mask = found.prediction.mask
    painted = np.empty((*mask.shape, 3), np.uint8)
    for band in _bands(mask):
        colours = colorize(mask[band], label_set.palette)
        if wanted.only is not None:
            colours *= (mask[band] == wanted.only)[..., None]
        painted[band] = overlay(found.image[band], colours)
    return painted


def _uncertainty(found: Found, wanted: Wanted, label_set: LabelSet) -> UInt8[np.ndarray, "H W 3"]:
    values, highest = found.prediction.uncertainties[wanted.measure], wanted.highest(label_set)
    painted = np.empty((*values.shape, 3), np.uint8)
    for band in _bands(values):
        painted[band] = heatmap(values[band], highest)
    return painted


class Sheet:
    """The rows of a contact sheet, small from the start: of some images, evenly chosen among all."""

    def __init__(self, names: Sequence[str], wanted: Wanted, label_set: LabelSet):
        places = np.linspace(0, len(names) - 1, min(len(names), _SHEET_ROWS)).round().astype(int)
        self._chosen = [names[place] for place in dict.fromkeys(places.tolist())]
        self._wanted, self._label_set = wanted, label_set
        self._rows: dict[str, list[np.ndarray]] = {}
        self._made_of: dict[str, ImageFile] = {}
        # Chosen images that an earlier call predicted.
        self.kept: dict[str, ImageFile] = {}

    def take(self, name: str, found: Found, source: ImageFile) -> None:
        """Keeps the small pictures of an image, if it is one of those chosen."""
        if name not in self._chosen:
            return
        whole = np.broadcast_to(found.image, (*found.prediction.mask.shape, 3))
        drawn = (_overlay(found, self._wanted, self._label_set), _uncertainty(found, self._wanted, self._label_set))
        self._rows[name], self._made_of[name] = [thumbnail(picture) for picture in (whole, *drawn)], source

    def keep(self, name: str, source: ImageFile) -> None:
        """Remembers an image that an earlier call predicted, if it is one of those chosen."""
        if name in self._chosen:
            self.kept[name] = source

    def text(self) -> dict[str, Any]:
        """What the sheet is made from: of each of its images the bytes."""
        sources = self.kept | self._made_of
        return {name: sources[name].sha256 for name in self._chosen if name in sources}

    def drawn(self) -> bytes:
        """The sheet's file, of the rows there are."""
        only, label_set = self._wanted.only, self._label_set
        titles = ("image", "prediction" if only is None else label_set.names[only], self._wanted.scale(label_set))
        rows = {name: self._rows[name] for name in self._chosen if name in self._rows}
        return _png_of(contact_sheet(rows, titles, label_set if only is None else None), self.text())


def text_of(file: Any) -> dict[str, Any] | None:
    """What a PNG file says that it was made from; None: nothing, or it is no PNG."""
    try:
        # Not `Image.open`, which refuses a picture as large as a mask may be; no pixel is read here.
        with file.open("rb") as opened, PngImageFile(opened) as picture:
            made_of = json.loads(picture.info[_TEXT])
            return made_of if isinstance(made_of, dict) else None
    except (OSError, KeyError, ValueError, AttributeError, SyntaxError):
        return None


def _png_of(pixels: UInt8[np.ndarray, "..."], made_of: Any, palette: bytes | None = None) -> bytes:
    """The PNG of a picture that says what it was made from."""
    buffer, text, picture = io.BytesIO(), PngInfo(), Image.fromarray(pixels)
    text.add_itxt(_TEXT, json.dumps(made_of))
    if palette is not None:
        # From L to P the indices stay; a palette of fewer than 256 colours is enough for PNG.
        picture = picture.convert("P")
        picture.putpalette(palette)
    picture.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()
