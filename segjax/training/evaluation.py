"""Scores of a state on a whole split: counts from the device, added on the host, turned into numbers at the end."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from segjax import metrics
from segjax.data import Source, colorize, eval_batches
from segjax.training import parallel
from segjax.training.train_step import TrainState

# What the device reads of a batch; file names stay on the host.
_DEVICE_KEYS = ("image", "label", "size", "where")


def evaluate(eval_step: Callable, state: TrainState, source: Source, config: ConfigDict, mesh) -> dict[str, Any]:
    """Scores over every image of `source` once, against labels at their own resolution.

    Args:
      eval_step: `make_eval_step`'s function, mapped by `parallel.map_step`.
      state: the replicated state.
      source: the split.
      config: the run's config.
      mesh: the devices.

    Returns:
      `segjax.metrics.segmentation_scores`' keys as floats and lists, "confusion" (int64 rows), "images", "skipped" (bad
      images that were left out), "classes" (the names), and for two classes "average_precision",
      "average_precision_bounds", "auroc", "best_iou" of class 1, the last at the probability "best_threshold". Ready
      for JSON.
    """
    totals = add_up(counter(eval_step, state, config, mesh), source, config)
    return about(source) | scores(totals)


def about(source: Source) -> dict[str, Any]:
    """What `evaluate` says of the split itself."""
    return {"images": len(source), "skipped": len(source.skipped), "classes": list(source.label_set.names)}


def counter(step: Callable, state: TrainState, config: ConfigDict, mesh) -> Callable:
    """`count(batch)` for `add_up`: `step(state, batch)`, mapped by `parallel.map_step`, of a replicated state."""

    def count(batch: dict[str, np.ndarray]) -> Any:
        return parallel.unreplicate(step(state, parallel.shard(batch, config, mesh)), config)

    return count


def add_up(count: Callable, source: Source, config: ConfigDict) -> dict[str, Any]:
    """What `count(batch)` gives, added up over every image of `source` once.

    A batch holds "image", "label", "size" and "where" (False: no such image), on the host. Integers are added in int64,
    floats in float64: on the device int32 is exact for a batch, and a split of Cityscapes' size needs more.
    """
    totals: dict[str, Any] | None = None
    batches = eval_batches(
        source,
        global_batch_size=config.training.global_batch,
        size=tuple(config.data.size),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
    )
    for batch in batches:
        counts = jax.tree.map(_widened, count({k: batch[k] for k in _DEVICE_KEYS}))
        totals = counts if totals is None else jax.tree.map(np.add, totals, counts)
    return totals


def _widened(counts: jax.Array) -> np.ndarray:
    return np.asarray(counts, np.int64 if np.issubdtype(counts.dtype, np.integer) else np.float64)


def scores(counts: dict[str, Any]) -> dict[str, Any]:
    """`evaluate`'s scores from the added counts of an evaluation step."""
    result = {"confusion": counts["confusion"].tolist()}
    result |= {k: np.asarray(v).tolist() for k, v in metrics.segmentation_scores(counts["confusion"]).items()}
    if "scores" in counts:
        result["average_precision"] = float(metrics.average_precision(counts["scores"]))
        result["average_precision_bounds"] = [float(b) for b in metrics.average_precision_bounds(counts["scores"])]
        result["auroc"] = float(metrics.auroc(counts["scores"]))
        f1, logit = metrics.best_f1(counts["scores"])
        # IoU = F1 / (2 - F1) grows with F1, so both are best at the same threshold.
        result["best_iou"], result["best_threshold"] = f1 / (2 - f1), 1 / (1 + math.exp(-logit))
    return result


def contact_sheet(predictors: Sequence[Callable], source: Source, indices: Iterable[int], gap: int = 4) -> np.ndarray:
    """A picture to look at: a row an image of `source`, with image, truth and what each predictor says.

    Args:
      predictors: functions from a uint8 image `[H, W, C]` to a class a pixel, `[H, W]`.
      source: the split.
      indices: which of its images.
      gap: white pixels right of and below each panel.

    Returns:
      uint8 RGB `[height, width, 3]`; black is void, white is where there is nothing.
    """
    palette = source.label_set.palette

    def padded(panel: np.ndarray, right: int) -> np.ndarray:
        return np.pad(panel, ((0, gap), (0, right), (0, 0)), constant_values=255)

    rows = []
    for index in indices:
        image, label = source[index]["image"], source[index]["label"]
        masks = [label, *(predict(image) for predict in predictors)]
        panels = [np.broadcast_to(image, (*label.shape, 3)), *(colorize(mask, palette) for mask in masks)]
        rows.append(np.hstack([padded(panel, gap) for panel in panels]))
    width = max(row.shape[1] for row in rows)
    whole = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.vstack(whole)


def rarest_first(source: Source, label: int) -> list[int]:
    """The images of `source` in the order of how many pixels of class `label` they have, most first."""
    counts = [int((source[i]["label"] == label).sum()) for i in range(len(source))]
    return sorted(range(len(source)), key=lambda i: -counts[i])
