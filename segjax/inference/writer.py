"""Files of a prediction: masks, pictures and arrays of each image, and one contact sheet of many.

A mask stores the path and hash of its image, and `predicted_by.json` the network and the options of a folder. So a
second call keeps complete predictions; `storage.write_outputs` replaces no other file.
"""

import hashlib
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import rich.progress
from jaxtyping import Float, Shaped, UInt8, UInt16
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from segjax.boxes import Detections
from segjax.data.decode import DATASET_VALUES, ORIGIN_FILE, SOURCE_KEYWORD, decode_image
from segjax.data.io import DataError, RawFile, read_bytes
from segjax.data.labels import LabelSet, class_values, colorize
from segjax.inference.detector import Detector
from segjax.inference.predictor import Prediction, Predictor
from segjax.inference.visualize import (
    as_rgb,
    colorize_overlaps,
    contact_sheet,
    draw_boxes,
    heatmap,
    overlay,
    overlay_palette,
    rare_outlines,
    thumbnail,
)
from segjax.storage import ForeignFileError, check_outputs, is_regular, read_json, to_json, write_json, write_outputs

SHEET_FILE, BOXES_FILE = "contact_sheet.png", "detections.json"
_NOT_COMPARED = ("checkpoint", "runs", "made_by")  # a run may be moved, and another device rounds differently
_SHEET_ROWS = 24
_LISTED = 20  # skipped files that are listed by name
_BAND = 2**20  # pixels painted at a time
_UNITS = {"entropy": "nats", "mutual_information": "nats", "variance": "squared logits"}
_UNITS |= {"margin": "", "max_logit": "logits", "energy": "logits"}


class OutputOptions(NamedTuple):
    """Files to write for each image besides its mask, NAME_mask.png.

    Attributes:
      overlay: NAME_overlay.png, the image with the colours of the classes over it. The background, which is a
        class of this name or the first of two, is not tinted, and classes of less than 2 % of the image are outlined.
      only: the one class that overlays show; None: all.
      uncertainty: NAME_uncertainty.png, from 0, black, to `maximum`, pale yellow; the negative largest logit and the
        energy from -`maximum` to 0.
      measure: the uncertainty that it shows, one of `PredictOptions.uncertainties`.
      maximum: end of the colour scale for all images. None: log C for the entropy (C log 2 if classes overlap), a
        quarter of that for the mutual information, 5 squared logits for the variance, 1 for the margin, 10 for largest
        logit and energy.
      probabilities: NAME_probabilities.npz: "probabilities" float32 `[H, W, C]`, each uncertainty under its own name,
        float32 `[H, W]`, and "classes"; with `sets` also "sets", bool `[H, W, C]`.
      sets: NAME_set.png, the number of classes in the set of each pixel (`PredictOptions.set_thresholds`).
      values: pixels of NAME_mask.png: "index", that of the class, or "dataset", its id or colour in the masks of the
        data set (`labels.class_values`).
      palette: store the classes' colours in NAME_mask.png as a palette. The pixels do not change, except for colours of
        the data set, which become class indices with these colours.
      sheet: contact_sheet.png, a row of small pictures for each of up to 24 images, evenly chosen.
      classes: names of classes that overlap, each with a mask of its own, NAME_CLASS_mask.png, 255 in the class and 0
        elsewhere; (): one mask.
    """

    overlay: bool = True
    only: int | None = None
    uncertainty: bool = False
    measure: str = "entropy"
    maximum: float | None = None
    probabilities: bool = False
    sets: bool = False
    values: str = "index"
    palette: bool = False
    sheet: bool = False
    classes: tuple[str, ...] = ()

    @property
    def suffixes(self) -> list[str]:
        """Suffixes of an image's file names. A mask is written last, so that it marks a complete set."""
        suffixes = ("_overlay.png", "_uncertainty.png", "_probabilities.npz", "_set.png")
        chosen = itertools.compress(suffixes, (self.overlay, self.uncertainty, self.probabilities, self.sets))
        return [*chosen, *self.masks]

    @property
    def masks(self) -> list[str]:
        """Suffixes of the masks among `suffixes`."""
        return [f"_{name}_mask.png" for name in self.classes] or ["_mask.png"]

    def record(self) -> dict[str, Any]:
        """Returns all options on which the contents of files depend."""
        # An option counts unless it is listed here: these select the files.
        ignored = {"overlay", "uncertainty", "probabilities", "sets", "sheet", "classes"}
        ignored |= {"values"} if self.values == "index" else set()
        return {k: v for k, v in self._asdict().items() if k not in ignored}

    def scale_range(self, label_set: LabelSet) -> tuple[float, float]:
        """Returns the uncertainties that are black and pale yellow."""
        log_c = math.log(label_set.num_classes)
        if label_set.combinations is not None:  # a sum over the classes
            log_c = label_set.num_classes * math.log(2)
        defaults = {"entropy": log_c, "mutual_information": log_c / 4, "variance": 5.0, "margin": 1.0}
        span = defaults.get(self.measure, 10.0) if self.maximum is None else self.maximum
        return (-span, 0.0) if self.measure in ("max_logit", "energy") else (0.0, span)

    def scale(self, label_set: LabelSet) -> str:
        """Returns the meaning of the uncertainty's colours, such as "entropy, 0 to 2.4 nats"."""
        low, high = self.scale_range(label_set)
        return f"{self.measure.replace('_', ' ')}, {low:.3g} to {high:.3g} {_UNITS[self.measure]}".rstrip()


class WriteSummary(NamedTuple):
    """Numbers of images predicted and kept from before, and an error message per skipped image.

    For a detector, also the number of detections, the number of those that are drawn, and the highest score.
    """

    written: int
    kept: int
    skipped: tuple[str, ...]
    detections: int = 0
    drawn: int = 0
    highest_score: float = 0.0

    def lines(self) -> list[str]:
        """Returns the summary as lines of text."""
        kept = f"; kept {self.kept} that had been predicted before" if self.kept else ""
        lines = [f"predicted {self.written} image(s){kept}"]
        if self.skipped:
            lines += [f"skipped {len(self.skipped)} bad image(s):", *(f"  {one}" for one in self.skipped[:_LISTED])]
        if len(self.skipped) > _LISTED:
            lines.append(f"  and {len(self.skipped) - _LISTED} more")
        return lines


class _Predicted(NamedTuple):
    """An image, its prediction, and "path" and "sha256" of its file, which the PNG of the mask stores."""

    image: Shaped[np.ndarray, "H W c"]
    prediction: Prediction
    source: dict[str, str]


def write_predictions(
    predictor: Predictor,
    files: Mapping[str, RawFile],
    output: Any,
    options: OutputOptions,
    label_set: LabelSet,
    origin: Mapping[str, Any],
    *,
    on_error: str = "raise",
    overwrite: bool = False,
) -> WriteSummary:
    """Predicts the images whose files do not all exist yet, and writes them, each file atomically.

    Args:
      predictor: made with `probabilities` if `options` has them.
      files: the images by name; a name with slashes is written into folders of `output`.
      output: the folder, a `Path` or epath's; made if it does not exist.
      options: the files to write.
      label_set: names and colours of the classes.
      origin: the network's origin, ready for JSON. It is stored in `predicted_by.json` with the records of `predictor`
        and `options`, so that a folder never mixes masks of several networks or options. "checkpoint", "runs" and
        "made_by" are not compared.
      on_error: "raise", or "skip" images that cannot be read.
      overwrite: predict all images again, and replace files of the same names, whoever wrote them.

    Raises:
      DataError: the folder contains predictions of another origin; an image cannot be read and `on_error` is "raise".
      ForeignFileError: a file would be replaced that is not a prediction of the same image, or was changed since.
      OSError: a file cannot be written. The files before it are complete, and a second call resumes.
    """
    output.mkdir(parents=True, exist_ok=True)
    record = {**origin, **predictor.record(), **options.record(), "classes": label_set.names}
    if not _has_origin(output / ORIGIN_FILE, record):
        targets = [output / f"{name}{suffix}" for name in files for suffix in options.suffixes]
        for target in (*targets, *[output / SHEET_FILE] * options.sheet):
            if target.exists() and not overwrite:
                raise ForeignFileError(target)
        write_json(output / ORIGIN_FILE, record)
    check_outputs([output / SHEET_FILE] * options.sheet, overwrite=overwrite)
    names = list(files)
    chosen = np.linspace(0, len(names) - 1, min(len(names), _SHEET_ROWS)).round().astype(int)
    on_sheet = [names[index] for index in chosen] if options.sheet else []
    sources: dict[str, dict[str, str]] = {}
    rows: dict[str, list[np.ndarray]] = {}
    waiting: list[tuple[str, np.ndarray]] = []
    kept, skipped, inputs = 0, [], predictor.preprocessing
    batch = predictor.options.batch if predictor.options.scale is None else 1

    def write_waiting() -> None:
        predictions = predictor.predict_batch([image for _, image in waiting])
        for (name, image), prediction in zip(waiting, predictions, strict=True):
            predicted = _Predicted(image, prediction, sources[name])
            _has_origin(output / ORIGIN_FILE, record)  # another process may have begun at the same time
            for suffix in options.suffixes:
                data = _encode(suffix, predicted, options, label_set)
                write_outputs({output / f"{name}{suffix}": data}, overwrite=overwrite)
            if name in on_sheet:
                rows[name] = _sheet_row(predicted, options, label_set)
        waiting.clear()

    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns) as bar:
        for name, file in bar.track(files.items(), description="predict"):
            try:
                data = read_bytes(file)
                source = {"path": str(Path(file.path).resolve()), "sha256": hashlib.sha256(data).hexdigest()}
                targets = [output / f"{name}{suffix}" for suffix in options.suffixes]
                if not overwrite and _is_complete(targets, source):
                    kept += 1
                else:
                    image = decode_image(data, inputs.channels, inputs.value_range, file.path, inputs.dtype)
                    waiting.append((name, image))
                sources[name] = source
            except (DataError, ForeignFileError) as error:
                if on_error == "raise" or isinstance(error, ForeignFileError):
                    write_waiting()
                    raise
                skipped.append(str(error))
            if len(waiting) == batch:
                write_waiting()
        write_waiting()
        hashes = {name: sources[name]["sha256"] for name in on_sheet if name in sources}
        if hashes and _png_text(output / SHEET_FILE) != hashes:
            # Small pictures of images that an earlier call predicted need another prediction.
            again = [name for name in hashes if name not in rows]
            for name in bar.track(again, description="contact sheet") if again else ():
                data, path = read_bytes(files[name]), files[name].path
                image = decode_image(data, inputs.channels, inputs.value_range, path, inputs.dtype)
                rows[name] = _sheet_row(_Predicted(image, predictor(image), sources[name]), options, label_set)
            shown, titles = {name: rows[name] for name in hashes}, ("image", "prediction", options.scale(label_set))
            tinted = np.flatnonzero(overlay_palette(label_set, options.only).any(axis=-1))
            sheet = contact_sheet(shown, titles, label_set, tinted.tolist())
            write_outputs({output / SHEET_FILE: _png_with_text(sheet, hashes)}, overwrite=overwrite)
    return WriteSummary(len(files) - kept - len(skipped), kept, tuple(skipped))


def write_detections(
    detector: Detector,
    files: Mapping[str, RawFile],
    output: Any,
    names: Sequence[str],
    palette: UInt8[np.ndarray, "classes 3"],
    origin: Mapping[str, Any],
    *,
    min_score: float = 0.5,
    on_error: str = "raise",
    overwrite: bool = False,
) -> WriteSummary:
    """Detects the objects of images; writes NAME_boxes.png for each image, and then one `detections.json` of all.

    `detections.json` has COCO's form: images, categories, and annotations with a score. It contains every detection,
    also those below `min_score`, which average precision needs; boxes are rounded to 0.001 pixels. Each NAME_boxes.png
    stores the detections of its image, so that a second call with the same images completes an interrupted folder.

    Args:
      detector: the detector.
      files: the images by name; a name with slashes is written into folders of `output`.
      output: the folder, a `Path` or epath's; made if it does not exist.
      names: names of the classes that the detector finds.
      palette: their RGB colours.
      origin: the network's origin, ready for JSON, as in `write_predictions`.
      min_score: smallest score of the boxes that are drawn.
      on_error: "raise", or "skip" images that cannot be read.
      overwrite: detect in all images again, and replace files of the same names, whoever wrote them.

    Raises: as `write_predictions`.
    """
    output.mkdir(parents=True, exist_ok=True)
    record = {**origin, **detector.record(), "min_score": min_score, "classes": list(names)}
    inputs = detector.preprocessing
    if not _has_origin(output / ORIGIN_FILE, record):
        for target in (output / BOXES_FILE, *(output / f"{name}_boxes.png" for name in files)):
            if target.exists() and not overwrite:
                raise ForeignFileError(target)
        write_json(output / ORIGIN_FILE, record)
    check_outputs([output / BOXES_FILE], overwrite=overwrite)
    kept, skipped, detected = 0, [], {}
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns) as bar:
        for name, file in bar.track(files.items(), description="predict"):
            picture = output / f"{name}_boxes.png"
            try:
                data = read_bytes(file)
                source = {"path": str(Path(file.path).resolve()), "sha256": hashlib.sha256(data).hexdigest()}
                stored = None
                if not overwrite and _is_complete([picture], source):
                    stored = _read_detections(picture, len(names))
                if stored is None:
                    image = decode_image(data, inputs.channels, inputs.value_range, file.path, inputs.dtype)
                else:
                    kept += 1
            except DataError as error:
                if on_error == "raise":
                    raise
                skipped.append(str(error))
                continue
            if stored is None:
                found = detector(image)
                stored = stored_detections(image, found)
                pixels = _paint_detections(image, found, names, palette, min_score)
                _has_origin(output / ORIGIN_FILE, record)  # another process may have begun at the same time
                write_outputs({picture: _png_with_text(pixels, source | stored)}, overwrite=overwrite)
            detected[f"{name}{Path(file.path).suffix}"] = stored
    content = coco_detections(detected, names, record)
    write_outputs({output / BOXES_FILE: to_json(content)}, overwrite=overwrite)
    scores = np.array([one["score"] for one in content["annotations"]], np.float32)
    counts = len(scores), int((scores >= min_score).sum()), float(scores.max(initial=0))
    return WriteSummary(len(detected) - kept, kept, tuple(skipped), *counts)


def coco_detections(
    detected: Mapping[str, Mapping[str, Any]], names: Sequence[str], record: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the content of `detections.json`: COCO's form, with a score in each annotation.

    Args:
      detected: the `stored_detections` of each image by its file name.
      names: names of the classes that the detector finds.
      record: the origin of the detections, ready for JSON.
    """
    images, annotations = [], []
    for file_name, stored in detected.items():
        height, width = stored["size"]
        images.append({"id": len(images) + 1, "file_name": file_name, "height": height, "width": width})
        for label, score, *box in stored["detections"]:
            one = {"id": len(annotations) + 1, "image_id": len(images), "category_id": label, "iscrowd": 0}
            annotations.append(one | {"bbox": box, "area": round(box[2] * box[3], 3), "score": score})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    return {"info": dict(record), "images": images, "categories": categories, "annotations": annotations}


def stored_detections(image: Shaped[np.ndarray, "H W c"], found: Detections) -> dict[str, Any]:
    """Returns the "size" of an image, and (category_id, score, x, y, width, height) of its "detections", for JSON."""
    boxes = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], axis=1)
    rows = [
        [int(label) + 1, float(score), *(round(float(number), 3) for number in box)]
        for label, score, box in zip(found.classes, found.scores, boxes, strict=True)
    ]
    return {"size": list(image.shape[:2]), "detections": rows}


def _read_detections(picture: Any, num_classes: int) -> dict[str, Any] | None:
    """Returns "size" and "detections" that a NAME_boxes.png stores; None if they are damaged."""
    stored = _png_text(picture) or {}
    try:
        size, rows = np.array(stored["size"]), np.array(stored["detections"], np.float64).reshape(-1, 6)
    except (KeyError, ValueError, TypeError):
        return None
    labels, scores = rows[:, 0], rows[:, 1]
    valid = np.isin(labels, np.arange(1, num_classes + 1)).all() and np.isfinite(rows).all()
    valid = valid and ((scores >= 0) & (scores <= 1)).all() and size.shape == (2,) and size.dtype.kind == "i"
    return {name: stored[name] for name in ("size", "detections")} if valid else None


def _paint_detections(
    image: Shaped[np.ndarray, "H W c"],
    found: Detections,
    names: Sequence[str],
    palette: UInt8[np.ndarray, "classes 3"],
    min_score: float,
) -> UInt8[np.ndarray, "H W 3"]:
    likely = Detections(*(values[found.scores >= min_score] for values in found))
    texts = [f"{names[c]} {score:.2f}" for c, score in zip(likely.classes, likely.scores, strict=True)]
    # The most likely one is drawn last, over the others.
    return draw_boxes(image, likely.boxes[::-1], palette[likely.classes][::-1], texts[::-1])


def is_prediction_file(path: str, output: Any) -> bool:
    """Returns True if an earlier prediction left an image file in `output`, so that it is not an image to predict."""
    if not (output / ORIGIN_FILE).exists() or not Path(path).resolve().is_relative_to(Path(output).resolve()):
        return False
    return Path(path).name.endswith(
        ("_mask.png", "_overlay.png", "_boxes.png", "_uncertainty.png", "_set.png", SHEET_FILE)
    )


def png(pixels: UInt8[np.ndarray, "..."]) -> bytes:
    """Returns the PNG of a grey `[H, W]`, RGB `[H, W, 3]` or RGBA `[H, W, 4]` picture."""
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[-1]]]
    return cv2.imencode(".png", pixels)[1].tobytes()


def jpeg(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Returns a JPEG of an RGB picture, about a fifth as large as its `png`: quality 85, colours at full resolution."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", pixels[..., ::-1], options)[1].tobytes()


def _has_origin(file: Any, origin: dict[str, Any]) -> bool:
    """Returns True if the folder contains predictions of this origin; raises DataError for another origin."""
    if not file.exists():
        return False
    before = read_json(file, dict, "the record of an earlier prediction", "Choose another --output")
    origin = json.loads(to_json(origin))  # with lists for tuples
    differing = [key for key in {**origin, **before} if before.get(key) != origin.get(key) and key not in _NOT_COMPARED]
    for key in differing[:1]:
        raise DataError(
            f"{file.parent}: contains predictions made with {key} = {before.get(key)!r}; now {key} is "
            f"{origin.get(key)!r}. Choose another --output, or remove them and {file.name}"
        )
    return True


def _is_complete(files: Sequence[Any], source: dict[str, str]) -> bool:
    """Returns True if all files of an image exist and were made from the same bytes; else they may all be replaced.

    The last one is the PNG that stores the source of the image.
    """
    marked = files[-1]
    before = _png_text(marked)
    if before is not None and source.keys() <= before.keys():
        if before["sha256"] == source["sha256"] and all(file.exists() for file in files):
            return True
        if before["sha256"] != source["sha256"] and before["path"] != source["path"]:
            raise ForeignFileError(marked, f"was made from {before['path']}; {source['path']} would overwrite it")
    check_outputs(files)
    return False


def _encode(suffix: str, predicted: _Predicted, options: OutputOptions, label_set: LabelSet) -> bytes:
    """Returns the bytes of the file with this suffix."""
    mask, uncertainties, probabilities, sets = predicted.prediction
    if suffix == "_probabilities.npz":
        buffer, arrays = (
            io.BytesIO(),
            {"classes": np.array(label_set.names), **({"sets": sets} if options.sets else {})},
        )
        np.savez_compressed(buffer, probabilities=probabilities, **uncertainties, **arrays)
        return buffer.getvalue()
    if suffix == "_uncertainty.png":
        return png(_paint_uncertainty(uncertainties[options.measure], *options.scale_range(label_set)))
    if suffix == "_set.png":
        return png(sets.sum(axis=-1, dtype=np.uint8))
    if suffix == "_overlay.png":
        return png(_paint_overlay(predicted, options, label_set))
    if options.classes:
        present = mask[..., options.masks.index(suffix)]
        return _png_with_text(np.where(present, np.uint8(255), np.uint8(0)), predicted.source)
    pixels, palette, marks = mask, label_set.palette, ()
    if options.values == "dataset":
        values, marks = class_values(label_set), (DATASET_VALUES,)
        if values.ndim == 1:  # ids, which a palette lists from 0
            pixels, palette = values[mask], np.zeros((int(values.max()) + 1, 3), np.uint8)
            palette[values] = label_set.palette
        elif not options.palette:
            pixels = values[mask]
    return _png_with_text(pixels, predicted.source, marks, palette.tobytes() if options.palette else None)


def _bands(shape: tuple[int, int]) -> list[slice]:
    """Returns bands of rows to paint one after another, because painting takes several times their memory."""
    rows = max(1, _BAND // shape[1])
    return [slice(top, top + rows) for top in range(0, shape[0], rows)]


def _paint_overlay(predicted: _Predicted, options: OutputOptions, label_set: LabelSet) -> UInt8[np.ndarray, "H W 3"]:
    mask, palette = predicted.prediction.mask, overlay_palette(label_set, options.only)
    if options.classes:
        return overlay(predicted.image, colorize_overlaps(mask, palette), opacity=0.6)
    outlines, painted = rare_outlines(mask, palette), np.empty((*mask.shape, 3), np.uint8)
    for rows in _bands(mask.shape):
        tinted = overlay(predicted.image[rows], colorize(mask[rows], palette))
        painted[rows] = overlay(tinted, colorize(outlines[rows], palette), opacity=1.0)
    return painted


def _paint_uncertainty(values: Float[np.ndarray, "H W"], low: float, high: float) -> UInt8[np.ndarray, "H W 3"]:
    painted = np.empty((*values.shape, 3), np.uint8)
    for rows in _bands(values.shape):
        painted[rows] = heatmap(values[rows] - low, high - low)
    return painted


def _sheet_row(predicted: _Predicted, options: OutputOptions, label_set: LabelSet) -> list[np.ndarray]:
    colours = _paint_overlay(predicted, options, label_set)
    values = predicted.prediction.uncertainties[options.measure]
    uncertainty = _paint_uncertainty(values, *options.scale_range(label_set))
    return [thumbnail(picture) for picture in (as_rgb(predicted.image), colours, uncertainty)]


def _png_text(file: Any) -> dict[str, Any] | None:
    """Returns what `_png_with_text` stored in a PNG file; None for any other file."""
    if not is_regular(file):
        return None
    try:
        # `Image.open` would refuse a picture as large as a mask may be; no pixel is read here.
        with file.open("rb") as opened, PngImageFile(opened) as picture:
            text = json.loads(picture.info[SOURCE_KEYWORD])
            return text if isinstance(text, dict) else None
    except (OSError, KeyError, ValueError, AttributeError, SyntaxError, RecursionError):
        return None


def _png_with_text(
    pixels: UInt8[np.ndarray, "..."] | UInt16[np.ndarray, "..."],
    text: Any,
    marks: Sequence[tuple[str, str]] = (),
    palette: bytes | None = None,
) -> bytes:
    """Returns the PNG of a picture with a JSON text chunk, and more text chunks of keyword and text."""
    buffer, info, picture = io.BytesIO(), PngInfo(), Image.fromarray(pixels)
    info.add_itxt(SOURCE_KEYWORD, json.dumps(text))
    for mark in marks:
        info.add_text(*mark)
    if palette is not None:
        # Converting L to P keeps the indices, and PNG allows a palette of fewer than 256 colours.
        picture = picture.convert("P")
        picture.putpalette(palette)
    picture.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
