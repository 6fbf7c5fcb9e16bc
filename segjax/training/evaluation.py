"""Scores of a state on a whole split: counts from the device are added on the host and become scores at the end."""

import functools
import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer
from ml_collections import ConfigDict

from segjax import data, inference, losses, metrics
from segjax.collectives import psum
from segjax.data import UNSEEN, VOID, Source, colorize, eval_batches
from segjax.data.augment import example_keys
from segjax.data.decode import ORIGIN_FILE, decode_ids, predicted_values
from segjax.data.io import DataError, RawFile, by_stem, list_folder, read_bytes
from segjax.data.labels import numbered_classes, to_train_ids, values_of
from segjax.inference.forward import Ensemble, Preprocessing, class_logits, classify, log_odds
from segjax.storage import printable, read_json
from segjax.training.config import ConfigError, input_shape
from segjax.training.objective import PIXEL_LOSSES, Hyperparams, background_of, hparams_from_config, targets
from segjax.training.parallel import DeviceMapping
from segjax.training.train_step import TrainState

_ADDED_AS = {"i": np.int64, "u": np.int64, "f": np.float64}
_DEVICE_KEYS = ("image", "label", "size", "where", "index")  # file names stay on the host


def preprocessing_of(config: ConfigDict, num_classes: int) -> Preprocessing:
    """Returns the input and classes of the network of `config`."""
    data, (*size, channels) = config.data, input_shape(config)
    value_range = None if isinstance(data.range, str) else tuple(data.range)
    dtype = None if value_range is None else data.dtype
    pixels = {"mean": tuple(data.mean), "std": tuple(data.std), "value_range": value_range, "dtype": dtype}
    return Preprocessing(tuple(size), channels, num_classes=num_classes, letterbox=data.letterbox, **pixels)


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
    """Returns `split_facts` and `scores` of every image of `source`, against labels at their own resolution, for JSON.

    `eval_step` is that of `make_eval_step`, mapped by `mapping.map_step`, and `state` the replicated state. A detector
    has the scores of `segjax.training.detection.score_detections`.
    """
    count = counter(eval_step, state, mapping, hparams_from_config(config))
    return score_batches(count_batches(count, source, config, devices=mapping.mesh.size), source, config)


def score_batches(batches: Iterable[dict[str, Any]], source: Source, config: ConfigDict) -> dict[str, Any]:
    """Returns the result of `evaluate` for the `count_batches` of every image of `source`."""
    if config.data.box_classes:
        from segjax.training.detection import score_detections  # loaded for detectors only

        return score_detections(batches, source, config)
    return split_facts(source) | scores(_sum_of(batches))


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


def split_facts(source: Source) -> dict[str, Any]:
    """Returns "images", "skipped" (the number of bad images left out), "data" (the digest), "classes" (the names).

    Of two classes there is also the "rare_class", whose average precision `scores` returns.
    """
    classes, facts = source.label_set, {"images": len(source), "skipped": len(source.skipped), "data": source.digest}
    rare = {"rare_class": classes.names[classes.rare]} if classes.num_classes == 2 else {}
    return facts | {"classes": list(classes.names), **rare}


def make_eval_step(
    config: ConfigDict, model: Any, num_classes: int, axis_name: str | None, corruption: tuple[str, int] | None = None
) -> Callable:
    """Builds `step(state, batch, hparams) -> counts`, which add over batches: those of `make_score_counts`.

    For an ensemble with unseen classes, "unknown" also has the "mutual_information" of class and member. With a
    `corruption`, (kind, severity) of `data.corrupt`, the images are corrupted first. The step of a detector is that of
    `segjax.training.detection.make_detection_step`.
    """
    if config.data.box_classes:
        from segjax.training.detection import make_detection_step

        return make_detection_step(config, model, axis_name, corruption)
    count = make_score_counts(config, num_classes, axis_name, is_ensemble=isinstance(model, Ensemble))

    def count_maps(maps: dict[str, Array], labels: Array, where: Array, hparams: Hyperparams) -> dict[str, Any]:
        counts = count(maps["outputs"], labels, where, hparams)
        if "mutual_information" in maps:
            share = maps["mutual_information"][..., 0] / math.log(num_classes)
            score, options = jax.scipy.special.logit(jnp.clip(share, 0, 1)), {"where": where, "axis_name": axis_name}
            unknown = metrics.score_histogram(score, labels == UNSEEN, **options)
            counts["unknown"] = counts["unknown"] | {"mutual_information": unknown}
        return counts

    return _counting_step(config, model, num_classes, count_maps, corruption)


def make_ranking_step(config: ConfigDict, model: Any, num_classes: int, number: int, axis_name: str | None) -> Callable:
    """Builds `step(state, batch) -> counts`, which add over batches: "scores", a histogram of class `number`."""

    def count(maps: dict[str, Array], labels: Array, where: Array) -> dict[str, Array]:
        odds = metrics.class_log_odds(class_logits(maps["outputs"], num_classes))[..., number]
        return {"scores": metrics.score_histogram(odds, labels == number, where=where, axis_name=axis_name)}

    return _counting_step(config, model, num_classes, count)


def make_image_step(
    config: ConfigDict, model: Any, num_classes: int, axis_name: str | None, count: Callable
) -> Callable:
    """Builds `step(state, batch) -> {"index": …, "counts": …}`, one row per image of the global batch.

    `count(logits, labels, where, index)` gets the class logits `[rows, W, C]`, the labels and the mask of one image, or
    of a strip of its rows (`count_strips`), and its index in the split. The counts are `[images, strips, …]`.
    """
    maps_of, preprocessing = _make_maps(config, model, num_classes), preprocessing_of(config, num_classes)

    def step(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, Any]:
        def count_images(outputs: Array, labels: Array, where: Array) -> Any:
            return jax.vmap(count)(class_logits(outputs, num_classes), labels, where, batch["index"])

        outputs = maps_of(state, batch)["outputs"]
        counts = count_strips(count_images, outputs, batch, preprocessing, config.training.eval_pixels)
        rows = {"index": batch["index"], "counts": jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), counts)}
        return rows if axis_name is None else jax.lax.all_gather(rows, axis_name, tiled=True)

    return step


def _counting_step(
    config: ConfigDict, model: Any, num_classes: int, count: Callable, corruption: tuple[str, int] | None = None
) -> Callable:
    maps_of, preprocessing = _make_maps(config, model, num_classes, corruption), preprocessing_of(config, num_classes)

    def step(state: TrainState, batch: dict[str, jax.Array], *hparams: Hyperparams) -> dict[str, Any]:
        maps, max_pixels = maps_of(state, batch), config.training.eval_pixels
        return sum_over_strips(lambda *strip: count(*strip, *hparams), maps, batch, preprocessing, max_pixels)

    return step


def _make_maps(config: ConfigDict, model: Any, num_classes: int, corruption: tuple[str, int] | None = None) -> Callable:
    """Builds `maps(state, batch)`, maps `[b, h, w, …]` at the network's own resolution: its "outputs".

    For an ensemble with unseen classes there is also the "mutual_information" of class and member, in nats.
    """
    preprocessing = preprocessing_of(config, num_classes)

    def maps(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, Float[Array, "b h w _"]]:
        images = preprocessing.network_input(images_of(batch, corruption), batch["size"])
        output = model.apply(state.variables, images, train=False)
        found = {"outputs": output.logits}
        if isinstance(model, Ensemble) and config.data.unseen_classes:
            members = class_logits(output.mc_logits, num_classes)
            found["mutual_information"] = metrics.mutual_information(members)[..., None]
        return found

    return maps


def images_of(batch: dict[str, jax.Array], corruption: tuple[str, int] | None = None) -> Array:
    """Returns the images of a batch of `eval_batches`, with a `corruption` (kind, severity) those of `data.corrupt`."""
    if corruption is None:
        return batch["image"]
    kind, severity = corruption
    if (channels := batch["image"].shape[-1]) not in (1, 3):
        raise ConfigError(
            f"--corruption and --severity need images of 1 or 3 channels; these have {channels}: leave them out"
        )
    keys = example_keys(jax.random.key(0), 0, batch["index"])  # the same in every evaluation
    return data.corrupt(batch["image"], keys, kind=kind, severity=severity, sizes=batch["size"])


def sum_over_strips(
    count: Callable, maps: Any, batch: dict[str, jax.Array], preprocessing: Preprocessing, max_pixels: int
) -> dict[str, Any]:
    """Returns the sum of the counts of `count_strips`."""
    counts = count_strips(count, maps, batch, preprocessing, max_pixels)
    # Invalid counts are negative, and two of them would wrap.
    return jax.tree.map(
        lambda x: x[0] if len(x) == 1 else jnp.where((x < 0).any(0), x.min(0), x.sum(0, dtype=x.dtype)), counts
    )


def count_strips(
    count: Callable, maps: Any, batch: dict[str, jax.Array], preprocessing: Preprocessing, max_pixels: int
) -> Any:
    """Returns `count(maps, labels, where)` of a batch of `eval_batches`, `[strips, …]`: one strip, or one per few rows.

    `maps` are arrays `[b, h, w, k]` of the `network_input`, and are resized to the labels (`to_native`). `where` is
    False for void, padding and fillers; the last two have the label -1. Images of more than `max_pixels` are counted in
    strips of rows, to bound the memory.
    """
    height, width = batch["label"].shape[1:]
    strips = -(-height // max(1, max_pixels // width))
    rows = -(-height // strips)

    def count_strip(labels: Integer[Array, "b rows W"], first_row: Integer[Array, ""] | int) -> Any:
        to_native = partial(preprocessing.to_native, shape=labels.shape[1:], sizes=batch["size"], first_row=first_row)
        resized = jax.tree.map(to_native, maps)
        row, column = (first_row + jnp.arange(rows))[:, None], jnp.arange(width)
        heights, widths = batch["size"][:, :1, None], batch["size"][:, 1:, None]
        exists = (row < heights) & (column < widths) & batch["where"][:, None, None]
        return count(resized, jnp.where(exists, labels.astype(jnp.int32), -1), exists & (labels != VOID))

    if strips == 1:
        return jax.tree.map(lambda x: x[None], count_strip(batch["label"], 0))
    padding = [(0, 0), (0, strips * rows - height), (0, 0)]
    labels = jnp.pad(batch["label"], padding, constant_values=VOID).reshape(-1, strips, rows, width)
    firsts = rows * jnp.arange(strips, dtype=jnp.int32)
    return jax.lax.map(lambda strip: count_strip(*strip), (jnp.moveaxis(labels, 1, 0), firsts))


def make_score_counts(
    config: ConfigDict, num_classes: int, axis_name: str | None, *, is_ensemble: bool = False
) -> Callable:
    """Builds `count(outputs, labels, where, hparams)`, which returns the counts of `scores`.

    - "confusion": the confusion matrix of the classes;
    - "loss_sum" and "loss_pixels": numerator and denominator of the pixel loss without boundary weights and OHEM, in
      which void counts if it is learned as a class;
    - "scores": for two classes, the score histogram of the rare one (`LabelSet.rare`);
    - "unknown": with unseen classes, one score histogram per entry of `unknown_scores`, with pixels labelled `UNSEEN`
      as positives and other labelled pixels as negatives.

    Labels outside an image are -1.
    """
    per_pixel, background = PIXEL_LOSSES[config.objective.loss], background_of(config, num_classes)
    counts_positives, rare = config.objective.normalizer == "positives", data.label_set(config.data).rare

    def count(
        outputs: Float[Array, "b H W outputs"], labels: Int[Array, "b H W"], where: Bool[Array, "b H W"], hparams: Any
    ) -> dict[str, Array]:
        unknown = {}
        if config.data.unseen_classes:
            unknown = unknown_scores(class_logits(outputs, num_classes), is_ensemble=is_ensemble)
            unknown = score_histograms(unknown, labels == UNSEEN, where=where, axis_name=axis_name)
            where, labels = where & (labels != UNSEEN), jnp.where(labels == UNSEEN, VOID, labels)
        shared = {"where": where, "axis_name": axis_name}
        learned, exists = targets(labels, num_classes, config.objective.void)
        exists = exists & (labels >= 0)
        pixels = psum(exists.sum(dtype=jnp.int32), axis_name)
        loss = losses.mean(per_pixel(outputs, learned, exists, hparams), where=exists, axis_name=axis_name)
        counted = exists & (learned != background) if counts_positives else exists
        counts = {
            "confusion": metrics.confusion_matrix(labels, classify(outputs, num_classes), num_classes, **shared),
            "loss_sum": loss * pixels.astype(loss.dtype),
            "loss_pixels": psum(counted.sum(dtype=jnp.int32), axis_name),
        }
        if num_classes == 2:
            odds = log_odds(outputs) if rare else -log_odds(outputs)
            counts["scores"] = metrics.score_histogram(odds, labels == rare, **shared)
        return counts | ({"unknown": unknown} if unknown else {})

    return count


def unknown_scores(
    logits: Float[Array, "*pixels classes"], *, is_ensemble: bool = False
) -> dict[str, Float[Array, "*pixels"]]:
    """Returns scores that are high for unknown pixels, by name, on the scale of `metrics.score_histogram`.

    The probability score 1 - p ("max_probability"), the normalised "entropy" and the "margin" score are in [0, 1] and
    are stored as log odds. "max_logit" and "energy" are unbounded; s -> 16 s / (16 + |s|) maps them to (-16, 16). Both
    maps are increasing, so the ranking is unchanged. C ≥ 2.

    Ensembles have only the first three: their class logits are log probabilities (or, for one output, log odds), which
    contain no unnormalised evidence.
    """
    entropy = metrics.predictive_entropy(logits[None]) / math.log(logits.shape[-1])
    found = {
        "max_probability": -metrics.class_log_odds(logits).max(axis=-1),
        "entropy": jax.scipy.special.logit(jnp.minimum(entropy, 1)),  # not 1 + 1e-7, by rounding
        "margin": jax.scipy.special.logit(jnp.minimum(metrics.margin_score(logits), 1)),
    }
    if not is_ensemble:
        for name, score in (("max_logit", metrics.max_logit_score), ("energy", metrics.energy_score)):
            found[name] = 16 * score(logits) / (16 + jnp.abs(score(logits)))
    return found


def score_histograms(
    scores: dict[str, Float[Array, "*pixels"]], targets: Bool[Array, "*pixels"], **options: Any
) -> dict[str, Int[Array, "2 bins"]]:
    """Returns `metrics.score_histogram` of several scores of the same pixels, through one compiled body."""
    histograms = jax.lax.map(
        lambda score: metrics.score_histogram(score, targets, **options), jnp.stack(list(scores.values()))
    )
    return dict(zip(scores, histograms, strict=True))


def counter(step: Callable, state: TrainState, mapping: DeviceMapping, *hparams: Hyperparams) -> Callable:
    """Returns `count(batch)` for `count_batches`: a mapped `step(state, batch, *hparams)` of a replicated state."""

    def count(batch: dict[str, np.ndarray]) -> Any:
        return mapping.unreplicate(step(state, mapping.shard(batch), *hparams))

    return count


def sum_counts(count: Callable, source: Source, config: ConfigDict, *, devices: int) -> dict[str, Any]:
    """Returns the sum of `count_batches`. int32 is exact for one batch, but not for all of Cityscapes."""
    return _sum_of(count_batches(count, source, config, devices=devices))


def _sum_of(batches: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return functools.reduce(lambda total, counts: jax.tree.map(np.add, total, counts), batches)


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


def scores(counts: dict[str, Any]) -> dict[str, Any]:
    """Returns the scores for the summed counts of an evaluation step.

    - "confusion": int64 rows;
    - "pixel_loss";
    - the entries of `segjax.metrics.segmentation_scores`;
    - for two classes "average_precision", "average_precision_bounds", "auroc" and "best_iou" of the rare one,
      and "best_threshold", its probability at that IoU;
    - with unseen classes "unknown", a dictionary of

      - "pixels": the number of unseen pixels;
      - "share": their fraction of the labelled pixels, which is the average precision of a random ranking;
      - each name of `unknown_scores`, and of an ensemble "mutual_information": "average_precision", "auroc" and
        "fpr_at_95_tpr", NaN without unseen pixels.
    """
    result = {"confusion": counts["confusion"].tolist()}
    result |= {k: np.asarray(v).tolist() for k, v in metrics.segmentation_scores(counts["confusion"]).items()}
    if "loss_sum" in counts:  # experiments may count the rest only
        result["pixel_loss"] = float(counts["loss_sum"]) / max(1, int(counts["loss_pixels"]))
    if "scores" in counts:
        result["average_precision"] = float(metrics.average_precision(counts["scores"]))
        result["average_precision_bounds"] = list(map(float, metrics.average_precision_bounds(counts["scores"])))
        result["auroc"] = float(metrics.auroc(counts["scores"]))
        f1, logit = metrics.best_f1(counts["scores"])
        # IoU = F1 / (2 - F1) grows with F1, so both are best at the same threshold.
        result["best_iou"], result["best_threshold"] = f1 / (2 - f1), 1 / (1 + math.exp(-logit))
    if "unknown" in counts:
        known, unseen = next(iter(counts["unknown"].values())).sum(axis=1).tolist()
        result["unknown"] = {"pixels": unseen, "share": unseen / max(1, known + unseen)}
        for name, histogram in counts["unknown"].items():
            result["unknown"][name] = {
                "average_precision": float(metrics.average_precision(histogram)),
                "auroc": float(metrics.auroc(histogram)),
                "fpr_at_95_tpr": float(metrics.fpr_at_tpr(histogram, 0.95)),
            }
    return result


def eval_scalars(scores: dict[str, Any]) -> dict[str, float]:
    """Returns the scalars among the scores, those of each class, and AUROC of the unknown; NaN if undefined."""
    scalars = {f"eval/{key}": value for key, value in scores.items() if isinstance(value, float)}
    for key in ("iou", "recall", "ap", "ap50"):
        if f"{key}_per_class" in scores:
            named = zip(scores["classes"], scores[f"{key}_per_class"], strict=True)
            scalars |= {f"eval/{key}/{name}": value for name, value in named}
    detected = {name: found for name, found in scores.get("unknown", {}).items() if isinstance(found, dict)}
    return scalars | {f"eval/unknown_auroc/{name}": found["auroc"] for name, found in detected.items()}


def headline(scores: dict[str, Any]) -> float:
    """Returns the score that selects the best checkpoint: average precision if it is defined, else mean IoU."""
    found = (scores.get(name, math.nan) for name in ("ap", "average_precision", "mean_iou"))
    return next((score for score in found if score == score), -1.0)


def example_sheet(predictors: Mapping[str, Callable], source: Source, indices: Iterable[int]) -> np.ndarray:
    """Draws a row per image, uint8 RGB `[height, width, 3]`: image, truth and the mask of each predictor, by name."""
    rows, palette = {}, source.label_set.palette
    for index in indices:
        image, label = source[index]["image"], source[index]["label"]
        masks = [label, *(predictor(image).mask for predictor in predictors.values())]
        pictures = [inference.as_rgb(image), *(colorize(mask, palette) for mask in masks)]
        rows[source.name(index)] = pictures
    return inference.contact_sheet(rows, ("image", "truth", *predictors), source.label_set)
