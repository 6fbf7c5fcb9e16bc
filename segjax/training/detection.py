"""The task of a detector: objective, detections of an evaluation and their scores, and pictures.

`segjax.training.train_step.task_of` lists the functions that a task has.

The objects are those of the `object_ids` of masks, whose boxes are computed on the device, or the boxes of COCO
annotations, which move with the pixels of their image.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key
from ml_collections import ConfigDict

from segjax import boxes, inference, losses, metrics
from segjax.checks import AxisName
from segjax.collectives import psum
from segjax.data import Source
from segjax.data.augment import augment_boxes
from segjax.data.objects import ImageBoxes, image_boxes
from segjax.data.resize import equal_sizes
from segjax.inference.detector import AnchorOptions, Detector, detect_in_output, fitted_sizes
from segjax.models import DetectorOutput
from segjax.training.network import TrainState, images_of, preprocessing_of
from segjax.training.objective import BINARY_LOSSES, Hyperparams, mined_mean

MIN_VISIBLE = 0.25
"""Smallest share of a COCO box inside the augmented image; an object of which less is visible is left out."""


def anchor_options(config: ConfigDict) -> AnchorOptions:
    """Returns the anchors of the detector of `config`."""
    model = config.model
    return AnchorOptions(tuple(model.levels), tuple(model.anchor_scales), tuple(model.anchor_ratios), model.anchor_base)


def make_predictor(config: ConfigDict, model: Any, variables: Any, **thresholds: Any) -> Detector:
    """Returns the `Detector` of a network of `config`."""
    preprocessing = preprocessing_of(config, len(config.data.box_classes))
    return Detector(model.clone(axis_name=None), variables, preprocessing, anchor_options(config), **thresholds)


def make_anchor_targets(config: ConfigDict) -> Callable[[Integer[Array, "B H W"]], losses.AnchorTargets]:
    """Builds `targets(ids)`: anchor targets of a detector of `config`, for object ids at the network's input size."""
    num_classes, max_boxes, targets_of = len(config.data.box_classes), config.data.max_boxes, _make_targets(config)
    return lambda ids: targets_of(image_boxes(ids, num_classes, max_boxes))


def _make_targets(config: ConfigDict) -> Callable[[ImageBoxes], losses.AnchorTargets]:
    options, num_classes = config.objective, len(config.data.box_classes)
    grid = boxes.anchors(tuple(config.data.size), **anchor_options(config)._asdict())
    matching = {"positive": options.positive_iou, "negative": options.negative_iou}

    def targets(truth: ImageBoxes) -> losses.AnchorTargets:
        return losses.anchor_targets(grid, truth.boxes, truth.classes, num_classes, where=truth.where, **matching)

    return targets


def make_truth(
    batch: dict[str, Array],
    labels: Int[Array, "b h w"],
    keys: Key[Array, "b"],
    config: ConfigDict,
    crop_fraction: Float[Array, ""],
) -> ImageBoxes:
    """Returns the objects of an augmented training batch: `labels` are augmented by `keys`.

    Objects of masks are those of the pixels of `labels`. Boxes of COCO annotations are moved with their image, and are
    left out if less than `MIN_VISIBLE` of their area is inside.
    """
    if "boxes" not in batch:
        return image_boxes(labels, len(config.data.box_classes), config.data.max_boxes)
    geometry = {"flip": config.augment.flip, "scale": tuple(config.augment.scale), "rotation": config.augment.rotation}
    geometry |= {"size": tuple(config.data.size), "crop_fraction": crop_fraction, "letterbox": config.data.letterbox}
    sizes = batch["size"] if "size" in batch else equal_sizes(batch["image"].shape[1:3], len(keys))
    moved, visible = augment_boxes(batch["boxes"], keys, sizes, **geometry)
    where = (batch["classes"] >= 0) & (visible >= MIN_VISIBLE)
    return ImageBoxes(jnp.where(where[..., None], moved, 0), jnp.where(where, batch["classes"], 0), where)


def make_objective(config: ConfigDict, num_classes: int) -> Callable:
    r"""Builds `objective(output, truth, hparams, axis_name=None, share=None, ...) -> (loss, parts)` of a detector.

    .. math:: L = \frac{1}{N} \sum_{a, c} \ell(z_{ac}, t_{ac}) + \frac{w}{P} \sum_{a \text{ matched}} H(o_a, t_a)

    ℓ is `config.objective.loss` of one logit. Logits take the role of pixels, so OHEM selects logits. With the
    normalizer "valid", N is the number of selected logits. With "positives", N = P = max(1, number of matched anchors).
    Ignored anchors do not contribute. H is `losses.box_loss` and w is `config.objective.box_weight`. A microbatch has
    its `share` of `microbatch_shares`. `parts` contains "class_loss" and "box_loss". Results are over the global batch.
    """
    options, targets_of = config.objective, _make_targets(config)
    per_logit = BINARY_LOSSES[options.loss]
    box_weight, box_beta = options.box_weight, options.box_beta

    def objective(
        output: DetectorOutput,
        truth: ImageBoxes,
        hparams: Hyperparams,
        axis_name: AxisName = None,
        share: dict[str, Float[Array, ""]] | None = None,
        outliers: None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        targets = targets_of(truth)
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
        if share is not None:
            parts = {name: share[name] * part for name, part in parts.items()}
        return parts["class_loss"] + box_weight * parts["box_loss"], parts

    return objective


def microbatch_shares(
    truth: ImageBoxes, config: ConfigDict, num_classes: int, axis_name: AxisName, outliers: None = None
) -> dict[str, Float[Array, " k"]]:
    """Returns the weight of each microbatch's part of the objective in that of the whole batch.

    `truth` has the objects of the microbatches, `[k, b, …]`. The parts, times their shares and summed, equal those of
    the whole batch, however unevenly the objects are distributed.
    """

    def count(anchors: Array) -> Float[Array, " k"]:
        return psum(anchors.sum(axis=(1, 2), dtype=jnp.float32), axis_name)

    targets = jax.vmap(_make_targets(config))(truth)
    matched, kept = count(targets.matched), count(targets.where)
    per_matched = jnp.maximum(matched, 1) / jnp.maximum(matched.sum(), 1)  # `losses.mean` divides by no less than 1
    per_kept = kept / jnp.maximum(kept.sum(), 1)
    by_positives = config.objective.normalizer == "positives"
    return {"class_loss": per_matched if by_positives else per_kept, "box_loss": per_matched}


class ImageLosses(NamedTuple):
    """Sums of the two losses of a detector per image, and the numbers by which their means divide."""

    class_sum: Float[Array, " b"]
    logits: Int[Array, " b"]  # of anchors that are not ignored
    box_sum: Float[Array, " b"]
    matched: Int[Array, " b"]  # anchors


def make_image_losses(config: ConfigDict) -> Callable:
    """Builds `image_losses(output, truth, sizes, hparams) -> ImageLosses`, without OHEM.

    The boxes of `truth` are in pixels of the images, of `sizes` `[b, 2]`.
    """
    options, targets_of = config.objective, _make_targets(config)
    per_logit, preprocessing = BINARY_LOSSES[options.loss], preprocessing_of(config, len(config.data.box_classes))

    def image_losses(
        output: DetectorOutput, truth: ImageBoxes, sizes: Int[Array, "b 2"], hparams: Hyperparams
    ) -> ImageLosses:
        rows, columns = jnp.moveaxis(fitted_sizes(sizes, preprocessing) / sizes, -1, 0)
        scale = jnp.stack([columns, rows, columns, rows], axis=-1).astype(truth.boxes.dtype)
        targets = targets_of(truth._replace(boxes=truth.boxes * scale[:, None]))
        where = jnp.broadcast_to(targets.where[..., None], output.logits.shape)
        each = per_logit(output.logits[..., None], targets.classes, where, hparams)
        each_box = losses.box_loss(output.offsets, targets.offsets, beta=options.box_beta, where=targets.matched)
        return ImageLosses(
            each.sum(axis=(1, 2)), where.sum(axis=(1, 2)), each_box.sum(axis=1), targets.matched.sum(axis=1)
        )

    return image_losses


def mean_losses(rows: ImageLosses, normalizer: str) -> dict[str, float]:
    """Returns "class_loss" and "box_loss" of all images, as the objective without OHEM has them. Host."""
    sums = ImageLosses(*(np.asarray(values).sum(dtype=np.float64) for values in rows))
    divisor = sums.matched if normalizer == "positives" else sums.logits
    parts = {"class_loss": sums.class_sum / max(1, divisor), "box_loss": sums.box_sum / max(1, sums.matched)}
    return {name: float(part) for name, part in parts.items()}


def make_eval_step(
    config: ConfigDict, model: Any, num_classes: int, axis_name: str | None, corruption: tuple[str, int] | None = None
) -> Callable:
    """Builds `step(state, batch, hparams) -> {"index", "detections", "truth", "losses"}`.

    Each has one row per image of the global batch. Boxes are in pixels of each image at its own resolution; "losses"
    are the `ImageLosses`. The annotations of COCO are not in a batch, so that it has no "truth" and no "losses".
    """
    box_classes, anchors = len(config.data.box_classes), anchor_options(config)
    preprocessing, image_losses = preprocessing_of(config, box_classes), make_image_losses(config)
    has_masks = config.data.name != "coco"

    def step(state: TrainState, batch: dict[str, Array], hparams: Hyperparams) -> dict[str, Any]:
        images, sizes = images_of(batch, corruption), batch["size"]
        output = model.apply(state.variables, preprocessing.network_input(images, sizes), train=False)
        rows = {"index": batch["index"], "detections": detect_in_output(*output, sizes, preprocessing, anchors)}
        if has_masks:
            rows["truth"] = image_boxes(batch["label"], box_classes, config.data.max_boxes)
            rows["losses"] = image_losses(output, rows["truth"], sizes, hparams)
        return rows if axis_name is None else jax.lax.all_gather(rows, axis_name, tiled=True)

    return step


def score_batches(batches: Iterable[dict[str, Any]], source: Source, config: ConfigDict) -> dict[str, Any]:
    """Returns the `split_scores` of the batches of `join_images`, without the curves."""
    rows = join_images(batches, source)
    scores = split_scores(rows, match_split(rows, config), source, config)
    del scores["precision_at_recall"]
    return scores


def split_scores(
    rows: dict[str, Any], records: metrics.DetectionRecords, source: Source, config: ConfigDict
) -> dict[str, Any]:
    """Returns COCO's average precision and recall of a split, ready for JSON.

    `rows` is the result of `join_images`, and `records` that of `match_split`. "images", "skipped" and "data" are the
    number of images, of bad images left out, and the digest; "classes" are the names of the classes with boxes, and
    "objects" is the number of objects per class, without crowds. The other scores are those of
    `metrics.detection_scores` and, but for annotations of COCO, of `mean_losses`.
    """
    scores = metrics.detection_scores(records)
    facts = {"images": len(source), "skipped": len(source.skipped), "data": source.digest}
    truth = rows["truth"]
    classes = truth.classes[truth.where if truth.crowd is None else truth.where & ~truth.crowd]
    facts["classes"] = list(config.data.box_classes)
    facts["objects"] = np.bincount(classes, minlength=len(config.data.box_classes)).tolist()
    scores = {name: np.asarray(value).tolist() for name, value in scores.items()}
    parts = mean_losses(rows["losses"], config.objective.normalizer) if "losses" in rows else {}
    return facts | scores | parts


def join_images(batches: Iterable[dict[str, Any]], source: Source) -> dict[str, Any]:
    """Returns "detections", "truth" and "losses" of all images of `source` in order, NumPy arrays of one row per image.

    `batches` are results of a step of `make_eval_step`, for every image of a split.
    """
    images = {}
    for rows in batches:
        indices = rows["index"].tolist()  # padding rows have index == len(source) and are ignored
        for row, index in enumerate(indices):
            images[index] = jax.tree.map(lambda values, row=row: values[row], rows)
    joined = jax.tree.map(lambda *values: np.stack(values), *(images[index] for index in range(len(source))))
    del joined["index"]
    return joined if "truth" in joined else joined | {"truth": source.objects(range(len(source)))}


def match_split(rows: dict[str, Any], config: ConfigDict) -> metrics.DetectionRecords:
    """Returns the records of the detections of `join_images`."""
    truth, num_classes = rows["truth"], len(config.data.box_classes)
    objects = {"where": truth.where, "crowd": truth.crowd, "areas": truth.areas}
    return metrics.detection_records(rows["detections"], truth.boxes, truth.classes, num_classes, **objects)


def example_sheet(
    predictors: Mapping[str, Detector], source: Source, config: ConfigDict, indices: Iterable[int]
) -> np.ndarray:
    """Draws one row per image: the ground truth and, per predictor, its detections with a score of at least 0.5.

    Returns uint8 RGB `[height, width, 3]`.
    """
    rows, names = {}, list(config.data.box_classes)
    palette = source.label_set.palette[[source.label_set.names.index(name) for name in names]]
    for index in indices:
        example = source[index]
        if config.data.name == "coco":
            truth = source.objects([index])
        else:
            truth = jax.device_get(image_boxes(example["label"][None], len(names), config.data.max_boxes))
        pairs = [(truth.boxes[truth.where], truth.classes[truth.where])]
        for detections in (predictor(example["image"]) for predictor in predictors.values()):
            likely = detections.scores >= 0.5
            pairs.append((detections.boxes[likely], detections.classes[likely]))
        image = inference.as_rgb(example["image"])
        rows[example["name"]] = [inference.draw_boxes(image, at, palette[classes]) for at, classes in pairs]
    return inference.contact_sheet(rows, ("truth", *predictors))
