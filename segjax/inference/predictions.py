"""The files that a prediction leaves: a mask, and whatever pictures are wanted, of every image of a folder."""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import rich.console
import rich.progress
from jaxtyping import UInt8
from PIL import Image

from segjax.data.errors import DataError
from segjax.data.labels import LabelSet, colorize
from segjax.inference.engine import Prediction
from segjax.inference.visualize import contact_sheet, heatmap, overlay

ORIGIN_FILE, SHEET_FILE = "predicted_by.json", "contact_sheet.png"
_SHEET_ROWS = 24
_UNITS = {"entropy": "nats", "mutual_information": "nats", "variance": "squared logits"}
# File names that are listed of what was left out; of the rest, only the number.
_SHOWN = 20


class Wanted(NamedTuple):
    """Which files are written of each image, beside its mask of class indices.

    Attributes:
      overlay: NAME_overlay.png, the image under the colours of its classes.
      only: the one class that overlays show; None: all.
      uncertainty: NAME_uncertainty.png, from 0, black, to `maximum`, pale yellow.
      measure: which uncertainty it is, of `UNCERTAINTIES`, for the words.
      maximum: one for all images; None: `default_maximum`.
      probabilities: NAME_probabilities.npz: "probabilities" float32 `[H, W, C]`, "uncertainty" float32 `[H, W]` and
        "classes".
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


class Found(NamedTuple):
    """One image and what was predicted of it."""

    image: UInt8[np.ndarray, "H W c"]
    prediction: Prediction


class Done(NamedTuple):
    """What became of the images.

    Attributes:
      written: how many were predicted.
      kept: how many had all their files already.
      skipped: why each of the others was left out, a message an image.
    """

    written: int
    kept: int
    skipped: tuple[str, ...]


def write_predictions(
    names: Sequence[str],
    predict: Callable[[str], Found],
    output: Any,
    wanted: Wanted,
    label_set: LabelSet,
    origin: Mapping[str, Any],
    *,
    write: Callable[[Any, bytes], None],
    on_error: str = "raise",
    console: rich.console.Console | None = None,
) -> Done:
    """Predicts the images that have not all their files yet, one after another, and writes these, whole or not at all.

    Args:
      names: of the images; with slashes they come into folders of `output`.
      predict: reads an image by its name and predicts it.
      output: the folder, a `Path` or epath's; made if it is not there.
      wanted: which files.
      label_set: names and colours of the classes.
      origin: what the masks depend on, ready for JSON. It is kept in `predicted_by.json`, so that a folder is never
        completed with the masks of another network or threshold.
      write: `write(path, bytes)`, which leaves a whole file or none.
      on_error: "raise", or "skip" images that `predict` refuses with a `DataError`.
      console: where the bar goes; default standard output.

    Raises:
      DataError: the folder holds predictions of another origin; an image is bad, and `on_error` is "raise".
      OSError: a file cannot be written. Those before it are whole, and a second call carries on.
    """
    output.mkdir(parents=True, exist_ok=True)
    _check_origin(output / ORIGIN_FILE, dict(origin), write)
    kept, skipped = 0, []
    with _bar(console) as bar:
        for name in bar.track(names, description="predict"):
            targets = {suffix: output / f"{name}{suffix}" for suffix in wanted.suffixes}
            if all(target.exists() for target in targets.values()):
                kept += 1
                continue
            try:
                found = predict(name)
            except DataError as error:
                if on_error == "raise":
                    raise
                skipped.append(str(error))
                continue
            targets["_mask.png"].parent.mkdir(parents=True, exist_ok=True)
            for suffix, target in targets.items():
                write(target, _encoded(suffix, found, wanted, label_set))
    written = len(names) - kept - len(skipped)
    if wanted.sheet and (written or (kept and not (output / SHEET_FILE).exists())):
        write(output / SHEET_FILE, png(_sheet(names, predict, output, wanted, label_set)))
    return Done(written, kept, tuple(skipped))


def _bar(console: rich.console.Console | None) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("eta"),
        rich.progress.TimeRemainingColumn(),
        console=console,
    )


def done_lines(done: Done) -> list[str]:
    """What to tell a person: how many images were predicted, kept and left out, and why those were."""
    lines = [f"predicted {done.written} image(s)"]
    if done.kept:
        lines[0] += f"; {done.kept} had been predicted before and are kept"
    if done.skipped:
        lines.append(f"skipped {len(done.skipped)} bad image(s):")
        lines += [f"  {message}" for message in done.skipped[:_SHOWN]]
        lines += [f"  and {len(done.skipped) - _SHOWN} more"] * (len(done.skipped) > _SHOWN)
    return lines


def png(pixels: UInt8[np.ndarray, "..."]) -> bytes:
    """The PNG of a grey `[H, W]` or RGB `[H, W, 3]` picture."""
    return cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[..., ::-1])[1].tobytes()


def _check_origin(file: Any, origin: dict[str, Any], write: Callable[[Any, bytes], None]) -> None:
    if not file.exists():
        write(file, (json.dumps(origin, indent=1) + "\n").encode())
        return
    try:
        before = json.loads(file.read_bytes())
        differing = sorted(key for key in {*before, *origin} if before.get(key) != origin.get(key))
    except (ValueError, TypeError) as error:
        raise DataError(f"{file}: no JSON of an earlier prediction ({error}); name another --output") from error
    if differing:
        key = differing[0]
        raise DataError(
            f"{file.parent}: holds predictions made with {key} = {before.get(key)!r}; now it is {origin.get(key)!r}. "
            "Name another --output, or remove them"
        )


def default_maximum(measure: str, num_classes: int) -> float:
    """The end of the scale unless another is named, the same for all images and networks of so many classes.

    log C of the entropy, which is its largest; of the mutual information a quarter of it, and of the variance 5, which
    the networks of the results here seldom pass.
    """
    return {"entropy": math.log(num_classes), "mutual_information": math.log(num_classes) / 4, "variance": 5.0}[measure]


def _encoded(suffix: str, found: Found, wanted: Wanted, label_set: LabelSet) -> bytes:
    buffer, (mask, uncertainty, probabilities) = io.BytesIO(), found.prediction
    if suffix == "_probabilities.npz":
        classes = np.array(label_set.names)
        np.savez_compressed(buffer, probabilities=probabilities, uncertainty=uncertainty, classes=classes)
    elif suffix == "_uncertainty.png":
        return png(heatmap(uncertainty, wanted.highest(label_set)))
    elif suffix == "_overlay.png":
        return png(_overlay(found.image, mask, wanted, label_set))
    elif wanted.palette:
        picture = Image.fromarray(mask.astype(np.uint8)).convert("P")
        # From L to P the indices stay; a palette of fewer than 256 colours is enough for PNG.
        picture.putpalette(label_set.palette.tobytes())
        picture.save(buffer, "PNG")
    else:
        return png(mask.astype(np.uint8))
    return buffer.getvalue()


def _overlay(image: np.ndarray, mask: np.ndarray, wanted: Wanted, label_set: LabelSet) -> np.ndarray:
    colours = colorize(mask, label_set.palette)
    return overlay(image, colours if wanted.only is None else colours * (mask == wanted.only)[..., None])


def _sheet(
    names: Sequence[str], predict: Callable[[str], Found], output: Any, wanted: Wanted, label_set: LabelSet
) -> np.ndarray:
    """Predicts what it shows anew: what an earlier call wrote need not hold it."""
    there = [name for name in names if (output / f"{name}_mask.png").exists()]
    places = np.unique(np.linspace(0, len(there) - 1, min(len(there), _SHEET_ROWS)).round().astype(int))
    rows = {}
    for name in (there[place] for place in places):
        found = predict(name)
        mask, uncertainty, _ = found.prediction
        rows[name] = [
            np.broadcast_to(found.image, (*mask.shape, 3)),
            _overlay(found.image, mask, wanted, label_set),
            heatmap(uncertainty, wanted.highest(label_set)),
        ]
    shown = "prediction" if wanted.only is None else label_set.names[wanted.only]
    titles = ("image", shown, wanted.scale(label_set))
    return contact_sheet(rows, titles, label_set if wanted.only is None else None)
