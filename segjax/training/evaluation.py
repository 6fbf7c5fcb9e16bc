"""Scores of a state on a whole split: counts from the device, added on the host, turned into numbers at the end."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from segjax import metrics
from segjax.data import Source, colorize, eval_batches
from segjax.training import parallel
from segjax.training.step import TrainState, classify

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
      `segjax.metrics.segmentation_scores`' keys as floats and lists, "confusion" (int64 rows), "images", and for two
      classes "average_precision", "average_precision_bounds" and "auroc" of class 1. Ready for JSON.
    """
    totals: dict[str, np.ndarray] | None = None
    batches = eval_batches(
        source,
        global_batch_size=config.training.global_batch,
        size=tuple(config.data.size),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
    )
    images = 0
    for batch in batches:
        images += int(batch["where"].sum())
        counts = eval_step(state, parallel.shard({k: batch[k] for k in _DEVICE_KEYS}, config, mesh))
        # int32 on the device is exact for a batch; a split of Cityscapes' size needs int64.
        counts = jax.tree.map(lambda x: np.asarray(x, np.int64), parallel.unreplicate(counts, config))
        totals = counts if totals is None else jax.tree.map(np.add, totals, counts)
    return {"images": images, **scores(totals)}


def scores(counts: dict[str, np.ndarray]) -> dict[str, Any]:
    """`evaluate`'s scores from the added counts of an evaluation step."""
    result = {"confusion": counts["confusion"].tolist()}
    result |= {k: np.asarray(v).tolist() for k, v in metrics.segmentation_scores(counts["confusion"]).items()}
    if "scores" in counts:
        result["average_precision"] = float(metrics.average_precision(counts["scores"]))
        result["average_precision_bounds"] = [float(b) for b in metrics.average_precision_bounds(counts["scores"])]
        result["auroc"] = float(metrics.auroc(counts["scores"]))
    return result


def contact_sheet(predict: Callable, state: TrainState, source: Source, count: int = 4) -> np.ndarray:
    """The first `count` images of `source`, a row each: image, truth, prediction; uint8 `[H, W, 3]`.

    `predict` is `make_predict`'s function, jitted; `state` is one copy, not replicated.
    """
    rows = []
    palette = source.label_set.palette
    for i in range(min(count, len(source))):
        record = source[i]
        image, label = record["image"], record["label"]
        logits = predict(state, image[None], np.array([label.shape], np.int32), label.shape)
        predicted = np.asarray(classify(logits)[0])
        colour = np.broadcast_to(image, (*image.shape[:2], 3))
        rows.append(np.concatenate([colour, colorize(label, palette), colorize(predicted, palette)], axis=1))
    width, height = max(r.shape[1] for r in rows), sum(r.shape[0] for r in rows)
    sheet = np.zeros((height, width, 3), np.uint8)
    top = 0
    for row in rows:
        sheet[top : top + row.shape[0], : row.shape[1]] = row
        top += row.shape[0]
    return sheet
