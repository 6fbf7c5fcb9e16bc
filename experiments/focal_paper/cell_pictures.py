"""Small pictures of the predictions of each cell of a sweep, stored in its result and in the JSON of the report."""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import jax
import numpy as np
from jaxtyping import Integer, UInt8

from experiments.sweep.grid import Changes
from experiments.sweep.paper_report import SweepResults
from experiments.sweep.parallel_cells import RESULT_FILE
from segjax import inference
from segjax.data import Source
from segjax.data.labels import VOID
from segjax.data.objects import image_boxes
from segjax.storage import write_json
from segjax.trained_run import TrainedRun, load_run
from segjax.training import open_split
from segjax.training.checkpoint import FOLDER

# Colours of Okabe and Ito on dark grey.
_GROUND, _FOUND, _MISSED, _FALSE = (40, 44, 52), (0, 158, 115), (240, 228, 66), (86, 180, 233)
_IMAGES = 2


def rarest_first(source: Source, labels: Sequence[int]) -> list[int]:
    """Returns the indices of all images of `source`, sorted by their pixels of these labels, most first."""
    counts = [int(np.isin(source[i]["label"], labels).sum()) for i in range(len(source))]
    return sorted(range(len(source)), key=lambda i: -counts[i])


def store_pictures(results: SweepResults, rows: Sequence[Changes]) -> None:
    """Draws the predictions of one seed per row, the first whose checkpoint exists, and stores them in its result.

    The result then has a "picture", with a "caption" and a "file" (PNG or JPEG in base64). Rows that have one are
    skipped.
    """
    indices: list[int] = []
    for row in rows:
        names = [cell.name for cell in results.cells if {**row, "seed": cell.config.seed} == cell.changes]
        done = [name for name in names if results.by_cell.get(name, {}).get("status") == "done"]
        here = [name for name in done if (results.workdir / name / FOLDER).exists()]
        if not here or any("picture" in results.by_cell[name] for name in done):
            continue
        run = load_run(results.workdir / here[0] / FOLDER / "latest", detectors=True)
        source = open_split(run.config.data, run.config.data.eval_split)
        indices = indices or rarest_first(source, range(1, VOID) if results.on_boxes else [1])[:_IMAGES]
        results.by_cell[here[0]]["picture"] = _picture(run, source, indices)
        write_json(results.workdir / here[0] / RESULT_FILE, results.by_cell[here[0]])


def _picture(run: TrainedRun, source: Source, indices: Sequence[int]) -> dict[str, Any]:
    if run.config.data.box_classes:
        draw, form, colours = _box_maps(run), ".jpg", "truth yellow, boxes of p ≥ 0.5 blue"
    else:
        draw, form, colours = _error_maps(run), ".png", "found green, missed yellow, false blue, at p = 0.5"
    gap = ((0, 0), (0, 2), (0, 0))  # white columns between the images
    drawn = np.concatenate([np.pad(draw(source[index]), gap, constant_values=255) for index in indices], axis=1)[:, :-2]
    # Edges of boxes are one pixel wide, so the colour is not subsampled.
    jpeg = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, cv2.IMWRITE_JPEG_QUALITY, 60]
    options = jpeg if form == ".jpg" else []
    _, file = cv2.imencode(form, cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR), options)
    return {"caption": f"seed {run.config.seed}: {colours}", "file": base64.b64encode(file.tobytes()).decode()}


def _error_maps(run: TrainedRun) -> Callable[[dict[str, Any]], np.ndarray]:
    predict = run.predictor()
    return lambda example: error_map(np.asarray(predict(example["image"]).mask), example["label"])


def error_map(
    mask: Integer[np.ndarray, "height width"], label: Integer[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Colours the true positives, false negatives and false positives of class 1.

    >>> error_map(np.array([[1, 0, 1, 0]]), np.array([[1, 1, 0, 0]])).tolist()
    [[[0, 158, 115], [240, 228, 66], [86, 180, 233], [40, 44, 52]]]
    """
    predicted, true = mask == 1, label == 1
    kinds = np.select([predicted & true, true, predicted & (label != VOID)], [1, 2, 3], 0)
    return np.array((_GROUND, _FOUND, _MISSED, _FALSE), np.uint8)[kinds]


def _box_maps(run: TrainedRun) -> Callable[[dict[str, Any]], np.ndarray]:
    detect, data = run.detector(), run.config.data

    def draw(example: dict[str, Any]) -> np.ndarray:
        truth = jax.device_get(image_boxes(example["label"][None], len(data.box_classes), data.max_boxes))
        found = detect(example["image"])
        image = inference.as_rgb(example["image"])
        for boxes, colour in ((truth.boxes[truth.where], _MISSED), (found.boxes[found.scores >= 0.5], _FALSE)):
            image = inference.draw_boxes(image, boxes, np.tile(np.array([colour], np.uint8), (len(boxes), 1)))
        return image

    return draw
