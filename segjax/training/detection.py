"""Objective and evaluation of detectors, in place of those of segmentation networks.

Labels are the `object_ids` of `segjax.data.objects`, from which the boxes are computed on the device.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer
from ml_collections import ConfigDict

from segjax import boxes, inference, losses, metrics
from segjax.checks import AxisName
from segjax.data import Source
from segjax.data.objects import image_boxes
from segjax.inference.detector import AnchorOptions, Detector, detect_boxes
from segjax.models import DetectorOutput
from segjax.training.evaluation import count_batches, images_of, preprocessing_of, split_facts
from segjax.training.objective import BINARY_LOSSES, Hyperparams, mined_mean
from segjax.training.train_step import TrainState


def anchor_options(config: ConfigDict) -> AnchorOptions:
    """Returns the anchors of the detector of `config`."""
    model = config.model
    return AnchorOptions(tuple(model.levels), tuple(model.anchor_scales), tuple(model.anchor_ratios), model.anchor_base)


def make_detector(config: ConfigDict, model: Any, variables: Any, **thresholds: Any) -> Detector:
    """Returns the `Detector` of a network of `config`."""
    preprocessing = preprocessing_of(config, len(config.data.box_classes))
    return Detector(model.clone(axis_name=None), variables, preprocessing, anchor_options(config), **thresholds)


def make_anchor_targets(config: ConfigDict) -> Callable[[Integer[Array, "B H W"]], losses.AnchorTargets]:
    """Builds `targets(ids)`, the targets of the detector of `config` for object ids of the network's size."""
    options, num_classes, max_boxes = config.objective, len(config.data.box_classes), config.data.max_boxes
    grid = boxes.anchors(tuple(config.data.size), **anchor_options(config)._asdict())
    matching = {"positive": options.positive_iou, "negative": options.negative_iou}

    def targets(ids: Integer[Array, "B H W"]) -> losses.AnchorTargets:
        truth = image_boxes(ids, num_classes, max_boxes)
        return losses.anchor_targets(grid, truth.boxes, truth.classes, num_classes, where=truth.where, **matching)

    return targets


def make_detector_objective(config: ConfigDict) -> Callable:
    r"""Builds `objective(output, labels, hparams, axis_name=None, ...) -> (loss, parts)` of a detector.

    .. math:: L = \frac{1}{N} \sum_{a, c} \ell(z_{ac}, t_{ac}) + \frac{w}{P} \sum_{a \text{ matched}} H(o_a, t_a)

    ℓ is `config.objective.loss` of the logit of each class at each anchor that is not ignored, with logits in place of
    pixels: OHEM selects logits, and N is their number or, with the normalizer "positives", P, the number of anchors
    matched to an object. H is `losses.box_loss` and w `config.objective.box_weight`. `labels` are object ids
    `[B, H, W]`. `parts` has "class_loss" and "box_loss". Results are over the global batch.
    """
    options, targets_of = config.objective, make_anchor_targets(config)
    per_logit = BINARY_LOSSES[options.loss]
    box_weight, box_beta = options.box_weight, options.box_beta

    def objective(
        output: DetectorOutput,
        labels: Int[Array, "B H W"],
        hparams: Hyperparams,
        axis_name: AxisName = None,
        share: None = None,
        outliers: None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        targets = targets_of(labels)
        where = jnp.broadcast_to(targets.where[..., None], output.logits.shape)
        each = per_logit(output.logits[..., None], targets.classes, where, hparams)
        per_positive = {"normalizer": "positives", "axis_name": axis_name}
        each_box = losses.box_loss(output.offsets, targets.offsets, beta=box_beta, where=targets.matched)
        parts = {
            "class_loss": mined_mean(
                each,
                hparams,
                where=where,
                positives=targets.classes == 1,
                normalizer=options.normalizer,
                axis_name=axis_name,
            ),
            "box_loss": losses.mean(each_box, where=targets.matched, positives=targets.matched, **per_positive),
        }
        return parts["class_loss"] + box_weight * parts["box_loss"], parts

    return objective


def make_detection_step(
    config: ConfigDict, model: Any, axis_name: str | None, corruption: tuple[str, int] | None = None
) -> Callable:
    """Builds `step(state, batch, hparams) -> {"index", "detections", "truth"}`, one row per image of the global batch.

    Boxes are in pixels of each image at its own resolution.
    """
    num_classes, anchors = len(config.data.box_classes), anchor_options(config)
    preprocessing = preprocessing_of(config, num_classes)

    def step(state: TrainState, batch: dict[str, Array], hparams: Hyperparams) -> dict[str, Any]:
        images = images_of(batch, corruption)
        found = detect_boxes(model, state.variables, images, batch["size"], preprocessing, anchors)
        truth = image_boxes(batch["label"], num_classes, config.data.max_boxes)
        rows = {"index": batch["index"], "detections": found, "truth": truth}
        return rows if axis_name is None else jax.lax.all_gather(rows, axis_name, tiled=True)

    return step


def score_detections(batches: Iterable[dict[str, Any]], source: Source, config: ConfigDict) -> dict[str, Any]:
    """Returns the `split_scores` of the batches of `join_images`, without the curves."""
    rows = join_images(batches, len(source))
    scores = split_scores(rows, match_split(rows, config), source, config)
    del scores["precision_at_recall"]
    return scores


def split_scores(
    rows: dict[str, Any], records: metrics.DetectionRecords, source: Source, config: ConfigDict
) -> dict[str, Any]:
    """Returns COCO's average precision and recall of a split, for JSON, from the results of the next two functions.

    "images", "skipped" and "data" are those of `split_facts`, "classes" are the names of the classes with boxes, and
    "objects" is the number of objects per class; the other scores are those of `metrics.detection_scores`.
    """
    scores = metrics.detection_scores(records)
    facts = {name: value for name, value in split_facts(source).items() if name in ("images", "skipped", "data")}
    classes = rows["truth"].classes[rows["truth"].where]
    facts["classes"] = list(config.data.box_classes)
    facts["objects"] = np.bincount(classes, minlength=len(config.data.box_classes)).tolist()
    return facts | {name: np.asarray(value).tolist() for name, value in scores.items()}


def detect_split(count: Callable, source: Source, config: ConfigDict, *, devices: int) -> dict[str, Any]:
    """Returns `join_images` of a split; arguments are those of `evaluation.count_batches`."""
    return join_images(count_batches(count, source, config, devices=devices), len(source))


def join_images(batches: Iterable[dict[str, Any]], count: int) -> dict[str, Any]:
    """Returns the "detections" and the "truth" of `count` images in order, NumPy arrays of one row per image.

    `batches` are results of a step of `make_detection_step`, for every image of a split.
    """
    images = {}
    for rows in batches:
        indices = rows["index"].tolist()  # that of a filler is the number of images
        for row, index in enumerate(indices):
            images[index] = jax.tree.map(lambda values, row=row: values[row], rows)
    joined = jax.tree.map(lambda *values: np.stack(values), *(images[index] for index in range(count)))
    del joined["index"]
    return joined


def match_split(rows: dict[str, Any], config: ConfigDict) -> metrics.DetectionRecords:
    """Returns the records of the detections of `detect_split`."""
    truth, num_classes = rows["truth"], len(config.data.box_classes)
    return metrics.detection_records(rows["detections"], truth.boxes, truth.classes, num_classes, where=truth.where)


def box_sheet(
    detectors: Mapping[str, Detector], source: Source, config: ConfigDict, indices: Iterable[int]
) -> np.ndarray:
    """Draws a row per image, uint8 RGB `[height, width, 3]`: the truth and the detections of p ≥ 0.5, by name."""
    rows, names = {}, list(config.data.box_classes)
    palette = source.label_set.palette[[source.label_set.names.index(name) for name in names]]
    for index in indices:
        example = source[index]
        truth = jax.device_get(image_boxes(example["label"][None], len(names), config.data.max_boxes))
        pairs = [(truth.boxes[truth.where], truth.classes[truth.where])]
        for found in (detector(example["image"]) for detector in detectors.values()):
            likely = found.scores >= 0.5
            pairs.append((found.boxes[likely], found.classes[likely]))
        picture = inference.as_rgb(example["image"])
        rows[example["name"]] = [inference.draw_boxes(picture, at, palette[classes]) for at, classes in pairs]
    return inference.contact_sheet(rows, ("truth", *detectors))
