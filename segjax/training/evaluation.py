"""Scores of a state on a whole split: counts from the device are added on the host and become scores at the end."""

import html
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from segjax.data import Source, eval_batches
from segjax.data.decode import ORIGIN_FILE, decode_ids, predicted_values
from segjax.data.io import DataError, RawFile, by_stem, list_folder, read_bytes
from segjax.data.labels import numbered_classes, to_train_ids, values_of
from segjax.storage import printable, read_json
from segjax.training.network import TrainState
from segjax.training.objective import Hyperparams, hparams_from_config
from segjax.training.parallel import DeviceMapping
from segjax.training.segmentation import scores, split_facts, sum_batches
from segjax.training.train_step import task_of

_ADDED_AS = {"i": np.int64, "u": np.int64, "f": np.float64}
_DEVICE_KEYS = ("image", "label", "size", "where", "index")  # file names stay on the host


class Progress(NamedTuple):
    """Progress of a run by the `headline` of its evaluations."""

    best: float = 0.0
    step: int = 0  # of the best score; 0: there was no evaluation yet
    since: int = 0  # evaluations after the best one

    def after(self, step: int, score: float) -> "Progress":
        """Returns the progress after an evaluation."""
        if not self.step or score > self.best:
            return Progress(score, step)
        return self._replace(since=self.since + 1)

    def has_stalled(self, patience: int | None) -> bool:
        """Returns True if the last `patience` evaluations had no better score; None: never."""
        return patience is not None and self.since >= patience


class Scores(dict[str, Any]):
    """Scores of a split; a notebook shows those of the classes as a table."""

    def _repr_html_(self) -> str:
        columns = {"IoU": "iou", "Dice": "dice", "precision": "precision", "recall": "recall"}
        if "ap" in self:  # of a detector
            columns = {"AP": "ap", "AP50": "ap50", "AR100": "ar100"}
        rows = [["", *columns]]
        for i, name in enumerate(map(printable, self["classes"])):
            rows.append([html.escape(name), *(f"{self[f'{key}_per_class'][i]:.3f}" for key in columns.values())])
        table = "".join(f"<tr>{''.join(f'<td>{value}</td>' for value in row)}</tr>" for row in rows)
        main = ", ".join(f"{key} {value:.3f}" for key, value in self.items() if isinstance(value, float))
        return f"<table>{table}</table><p>{main}</p>"


def evaluate(
    eval_step: Callable, state: TrainState, source: Source, config: ConfigDict, mapping: DeviceMapping
) -> dict[str, Any]:
    """Returns the scores of every image of `source`, ready for JSON: those of the `score_batches` of the task.

    `eval_step` is the `make_eval_step` of the task, mapped by `mapping.map_step`, and `state` the replicated state.
    Labels and boxes are compared at their own resolution.
    """
    count = counter(eval_step, state, mapping, hparams_from_config(config))
    batches = count_batches(count, source, config, devices=mapping.mesh.size)
    return task_of(config).score_batches(batches, source, config)


def score_masks(source: Source, folder: Path) -> dict[str, Any]:
    """Returns `split_facts` and `scores` of masks in files, against the labels of `source`; no network is needed.

    The mask of image NAME is FOLDER/NAME_mask or FOLDER/NAME, of any format. Its pixels are class indices if
    `predicted_values` finds them; otherwise they are the labels' values or colours, as in masks of other programs.
    `DataError`: an image has no mask or two, or a mask has another size, an undefined value, void where the label has a
    class, or indices of a run with the same classes in another order.
    """
    classes, confusion = source.label_set, 0
    number, masks = classes.num_classes, by_stem(list_folder(folder))
    indices = replace(numbered_classes(classes.names), remedy="; the run that predicted this mask has other classes")
    names = {source.name(i) for i in range(len(source))}
    predicted = classes.names
    if (folder / ORIGIN_FILE).is_file():
        predicted = read_json(folder / ORIGIN_FILE, {"classes": [str]}, "the origin of predictions")["classes"]
    order = {name: index for index, name in enumerate(predicted)}
    is_moved = any(order.get(name, index) != index for index, name in enumerate(classes.names))
    for example in (source[i] for i in range(len(source))):
        name, label = example["name"], example["label"]
        file, pixels, values = _mask_of(name, masks, names, folder)
        if is_moved and values == "indices":
            raise DataError(
                f"{file.path}: the run of this mask has the classes {', '.join(predicted)}, and the labels have "
                f"{', '.join(classes.names)}; expected one order: set config.data.class_names and the fields of the "
                "values, such as config.data.mask_values, in the order of the run"
            )
        its_classes = indices if values == "indices" else classes
        if values is None:
            remark = "; segjax predict did not write this file, so its values are taken for those of the labels"
            its_classes = replace(classes, remedy=classes.remedy + remark)
        ids = decode_ids(pixels, file.path, colours=its_classes.by_colour)
        mask, where = to_train_ids(ids, its_classes, file.path), label < number
        if mask.shape != label.shape:
            sizes = f"a mask of {mask.shape[0]}×{mask.shape[1]} for labels of {label.shape[0]}×{label.shape[1]}"
            raise DataError(f"{file.path}: {sizes}; expected one size")
        if void := int((mask[where] >= number).sum()):
            expected = f"expected a value of a class in each of them; those of void are {values_of(its_classes)}"
            raise DataError(f"{file.path}: {void} pixels are void where the label has a class; {expected}")
        pairs = number * label[where].astype(np.int64) + mask[where]
        confusion += np.bincount(pairs, minlength=number**2).reshape(number, number)
    return split_facts(source) | scores({"confusion": confusion})


def _mask_of(
    name: str, masks: Mapping[str, RawFile], names: set[str], folder: Path
) -> tuple[RawFile, bytes, str | None]:
    """Returns the mask of an image from files by stem, its bytes, and their `predicted_values`; see `score_masks`."""
    found = []
    for stem in (f"{name}_mask", name):
        if stem in masks:
            data = read_bytes(masks[stem])
            values = predicted_values(data, masks[stem].path)
            # With images "a" and "a_mask", a file "a_mask" of segjax is the mask of "a", and any other of "a_mask".
            has_suffix = values is not None or stem not in names
            if has_suffix == (stem != name):
                found.append((masks[stem], data, values))
    if not found:
        raise DataError(f"{folder}: no mask of the image {name}; expected {name}_mask.png or {name}.png")
    if len(found) > 1:
        files = " and ".join(file.path for file, *_ in found)
        raise DataError(f"{files}: two masks of the image {name}; expected one: move the other to another folder")
    return found[0]


def counter(step: Callable, state: TrainState, mapping: DeviceMapping, *hparams: Hyperparams) -> Callable:
    """Returns `count(batch)` for `count_batches`: a mapped `step(state, batch, *hparams)` of a replicated state."""

    def count(batch: dict[str, np.ndarray]) -> Any:
        return mapping.unreplicate(step(state, mapping.shard(batch), *hparams))

    return count


def sum_counts(count: Callable, source: Source, config: ConfigDict, *, devices: int) -> dict[str, Any]:
    """Returns the sum of `count_batches`. int32 is exact for one batch, but not for all of Cityscapes."""
    return sum_batches(count_batches(count, source, config, devices=devices))


def count_batches(count: Callable, source: Source, config: ConfigDict, *, devices: int) -> Iterator[dict[str, Any]]:
    """Yields `count(batch)` of host batches of `eval_batches`, every image of `source` once, in int64 and float64.

    `devices` is the number of devices that share a batch.
    """
    batches = eval_batches(
        source,
        global_batch_size=config.training.global_batch,
        devices=devices,
        max_pixels=config.training.eval_pixels,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
    )
    for batch in batches:
        counts = count({key: batch[key] for key in _DEVICE_KEYS})
        yield jax.tree.map(lambda x: np.asarray(x, _ADDED_AS.get(x.dtype.kind)), counts)


def eval_scalars(scores: dict[str, Any]) -> dict[str, float]:
    """Returns the scalars among the scores, those of each class, and AUROC of the unknown; NaN if undefined."""
    scalars = {f"eval/{key}": value for key, value in scores.items() if isinstance(value, float)}
    for key in ("iou", "recall", "average_precision", "ap", "ap50"):
        if f"{key}_per_class" in scores:
            named = zip(scores["classes"], scores[f"{key}_per_class"], strict=True)
            scalars |= {f"eval/{key}/{name}": value for name, value in named}
    detected = {name: found for name, found in scores.get("unknown", {}).items() if isinstance(found, dict)}
    return scalars | {f"eval/unknown_auroc/{name}": found["auroc"] for name, found in detected.items()}


def headline(scores: dict[str, Any]) -> float:
    """Returns the score that selects the best checkpoint: average precision if it is defined, else mean IoU."""
    found = (scores.get(name, math.nan) for name in ("ap", "average_precision", "mean_iou"))
    return next((score for score in found if score == score), -1.0)
