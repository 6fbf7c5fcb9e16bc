"""The task of a segmentation network: objective, counts of an evaluation and their scores, and pictures.

`segjax.training.train_step.task_of` lists the functions that a task has.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key
from ml_collections import ConfigDict

from segjax import data, inference, losses, metrics
from segjax.collectives import psum
from segjax.data import UNSEEN, VOID, Source, colorize
from segjax.inference.forward import Ensemble, Preprocessing, class_logits, classify, log_odds
from segjax.models import Segmentation
from segjax.training.network import TrainState, images_of, preprocessing_of
from segjax.training.objective import (
    BINARY_LOSSES,
    Hyperparams,
    background_of,
    mined_mean,
    pixel_loss,
    region_loss,
    targets,
)

# Parts of the objective that are means over pixels: each microbatch has a share in each.
_SHARES = ("pixel_loss", "penalty", "margin_penalty", "outlier_loss")


def make_objective(config: ConfigDict, num_classes: int) -> Callable:
    r"""Builds `objective(output, labels, hparams, axis_name=None, share=None, outliers=None) -> (loss, parts)`.

    .. math::
        L = \frac{1}{N} \sum_i w_i \ell_i + \frac{C}{n} \sum_i v_i (1 - p_i(b)) + r R + κ A
            + \frac{μ}{n} \sum_i m_i + \frac{λ}{|O|} \sum_{i \in O} u_i

    ℓ is the pixel loss of the logits without dropout, p their probabilities, w the boundary weight (k on a boundary, 1
    elsewhere), v the variance of the logits under dropout (mean over the classes), b the background class, R the
    region loss, A the `losses.average_calibration_loss`, m the `losses.logit_margin_penalty`, O the pixels of pasted
    `outliers` (void in the labels), u their `losses.uniform_cross_entropy`, and n the number of valid pixels. N
    depends on `objective.normalizer`. With OHEM the first sum is over `losses.hard_pixels` and N is their number; with
    the normalizer "positives" N counts all positive pixels.

    The gradient flows through v to the head and the features, and through p(b) to the logits. Void is 255 in the
    labels `[B, H, W]`. `share` is the microbatch's entry of `microbatch_shares`. Results are over the global batch if
    `axis_name` names the mapped axis. `parts` has "pixel_loss" and, where used, "penalty", "region_loss",
    "calibration_loss", "margin_penalty" and "outlier_loss", without the factors C, r, κ, μ and λ.
    """
    options = config.objective
    per_pixel, region = pixel_loss(config), region_loss(config, num_classes)
    binary, background = options.loss in BINARY_LOSSES, background_of(config, num_classes)
    void, mode, normalizer = options.void, options.boundary_mode, options.normalizer
    num_bins = options.calibration_bins

    def objective(
        output: Segmentation,
        labels: Int[Array, "B H W"],
        hparams: Hyperparams,
        axis_name: str | None = None,
        share: dict[str, Float[Array, ""]] | None = None,
        outliers: Bool[Array, "B H W"] | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        labels, where = targets(labels, num_classes, void)
        share, mean = share or dict.fromkeys(_SHARES, 1), partial(losses.mean, axis_name=axis_name)
        pixels = per_pixel(output.logits, labels, where, hparams)
        weights, positives = None, None if background is None else labels != background
        if hparams.boundary_factor is not None:
            weights = losses.boundary_weights(labels, hparams.boundary_factor, mode=mode, where=where)
        reduction = {"normalizer": normalizer, "axis_name": axis_name}
        loss = share["pixel_loss"] * mined_mean(
            pixels, hparams, where=where, weights=weights, positives=positives, **reduction
        )
        parts = {"pixel_loss": loss}
        logits = output.logits
        if binary:  # the same model as two classes
            logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
        if hparams.uncertainty_weight is not None:
            analytic, sampled = output.logit_variance, output.mc_logits
            variance = losses.mc_variance(sampled, where=where) if analytic is None else analytic.mean(-1)
            penalties = losses.uncertainty_penalty(variance, logits, background, where=where)
            parts["penalty"] = share["penalty"] * mean(penalties, where=where)
            loss += hparams.uncertainty_weight * parts["penalty"]
        kept = where & (labels < num_classes)
        if hparams.region_weight is not None:
            parts["region_loss"] = region(logits, labels, kept, hparams, axis_name)
            loss += hparams.region_weight * parts["region_loss"]
        if hparams.calibration_weight is not None:
            classes = (1,) if binary else range(num_classes)
            parts["calibration_loss"] = losses.average_calibration_loss(
                logits, labels, num_bins=num_bins, where=kept, classes=classes, axis_name=axis_name
            )
            loss += hparams.calibration_weight * parts["calibration_loss"]
        if hparams.logit_margin is not None:
            penalties = losses.logit_margin_penalty(logits, margin=hparams.logit_margin, where=where)
            parts["margin_penalty"] = share["margin_penalty"] * mean(penalties, where=where)
            loss += hparams.logit_margin_weight * parts["margin_penalty"]
        if hparams.outlier_weight is not None:
            unsure = losses.uniform_cross_entropy(logits, where=outliers)
            parts["outlier_loss"] = share["outlier_loss"] * mean(unsure, where=outliers)
            loss += hparams.outlier_weight * parts["outlier_loss"]
        return loss, parts

    return objective


def make_truth(
    batch: dict[str, Array],
    labels: Int[Array, "b h w"],
    keys: Key[Array, "b"],
    config: ConfigDict,
    crop_fraction: Float[Array, ""],
) -> Int[Array, "b h w"]:
    """Returns what the objective learns from an augmented training batch: the augmented `labels`."""
    return labels


def microbatch_shares(
    labels: Int[Array, "k b H W"],
    config: ConfigDict,
    num_classes: int,
    axis_name: str | None,
    outliers: Bool[Array, "k b H W"] | None = None,
) -> dict[str, Float[Array, " k"]]:
    """Returns the weight of each microbatch's mean in the mean over the whole batch.

    The parts of the objective, times their shares and summed over the microbatches, equal those of the whole batch,
    however unevenly the labelled pixels are distributed.
    """

    def count(pixels: jax.Array) -> Float[Array, " k"]:
        return psum(pixels.sum(axis=(1, 2, 3), dtype=jnp.float32), axis_name)

    labels, where = targets(labels, num_classes, config.objective.void)
    kept = count(where)
    shares = dict.fromkeys(("pixel_loss", "penalty", "margin_penalty"), kept / jnp.maximum(kept.sum(), 1))
    if config.objective.normalizer == "positives":
        positives = count((labels != background_of(config, num_classes)) & where)
        # `losses.mean` divides by no less than 1.
        shares["pixel_loss"] = jnp.maximum(positives, 1) / jnp.maximum(positives.sum(), 1)
    if outliers is not None:
        pasted = count(outliers)
        shares["outlier_loss"] = pasted / jnp.maximum(pasted.sum(), 1)
    return shares


def make_eval_step(
    config: ConfigDict, model: Any, num_classes: int, axis_name: str | None, corruption: tuple[str, int] | None = None
) -> Callable:
    """Builds `step(state, batch, hparams) -> counts`, the counts of `make_score_counts`, which add over batches.

    For an ensemble with unseen classes, "unknown" also has the "mutual_information" of class and member. With a
    `corruption`, (kind, severity) of `data.corrupt`, the images are corrupted first.
    """
    count = make_score_counts(config, num_classes, axis_name, is_ensemble=isinstance(model, Ensemble))

    def count_maps(maps: dict[str, Array], labels: Array, where: Array, hparams: Hyperparams) -> dict[str, Any]:
        counts = count(maps["outputs"], labels, where, hparams)
        if "mutual_information" in maps:
            share = maps["mutual_information"][..., 0] / math.log(num_classes)
            score, options = jax.scipy.special.logit(jnp.clip(share, 0, 1)), {"where": where, "axis_name": axis_name}
            unknown = metrics.score_histogram(score, labels == UNSEEN, **options)
            counts["unknown"] = counts["unknown"] | {"mutual_information": unknown}
        return counts

    return counting_step(config, model, num_classes, count_maps, corruption)


def make_ranking_step(config: ConfigDict, model: Any, num_classes: int, number: int, axis_name: str | None) -> Callable:
    """Builds `step(state, batch) -> counts`, which add over batches: "scores", a histogram of class `number`."""

    def count(maps: dict[str, Array], labels: Array, where: Array) -> dict[str, Array]:
        odds = metrics.class_log_odds(class_logits(maps["outputs"], num_classes))[..., number]
        return {"scores": metrics.score_histogram(odds, labels == number, where=where, axis_name=axis_name)}

    return counting_step(config, model, num_classes, count)


def make_image_step(
    config: ConfigDict, model: Any, num_classes: int, axis_name: str | None, count: Callable
) -> Callable:
    """Builds `step(state, batch) -> {"index": …, "counts": …}`, one row per image of the global batch.

    `count(logits, labels, where, index)` gets the class logits `[rows, W, C]`, the labels and `where` of one image, or
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


def counting_step(
    config: ConfigDict, model: Any, num_classes: int, count: Callable, corruption: tuple[str, int] | None = None
) -> Callable:
    """Builds `step(state, batch, *hparams)`, the sum over strips of `count(maps, labels, where, *hparams)`."""
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
    """Applies `count(maps, labels, where)` to a batch of `eval_batches`, in strips of rows; returns `[strips, …]`.

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
    per_pixel, background = pixel_loss(config), background_of(config, num_classes)
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


def split_facts(source: Source) -> dict[str, Any]:
    """Returns "images", "skipped" (the number of bad images left out), "data" (the digest), "classes" (the names).

    A source with two classes also has the "rare_class", whose average precision `scores` returns.
    """
    classes, facts = source.label_set, {"images": len(source), "skipped": len(source.skipped), "data": source.digest}
    has_rare = classes.num_classes == 2 and classes.combinations is None
    rare = {"rare_class": classes.names[classes.rare]} if has_rare else {}
    return facts | {"classes": list(classes.names), **rare}


def score_batches(batches: Iterable[dict[str, Any]], source: Source, config: ConfigDict) -> dict[str, Any]:
    """Returns `split_facts` and `scores` of the counts of every image of `source`."""
    return split_facts(source) | scores(sum_batches(batches))


def sum_batches(batches: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Returns the sum of counts."""
    return reduce(lambda total, counts: jax.tree.map(np.add, total, counts), batches)


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


def make_predictor(config: ConfigDict, model: Any, variables: Any) -> "inference.Predictor":
    """Returns a `Predictor` for a network of `config`; it predicts the masks that the evaluation scores."""
    preprocessing = preprocessing_of(config, data.label_set(config.data).num_classes)
    return inference.Predictor(model.clone(axis_name=None), variables, preprocessing)


def example_sheet(
    predictors: Mapping[str, Callable], source: Source, config: ConfigDict, indices: Iterable[int]
) -> np.ndarray:
    """Draws one row per image, uint8 RGB `[height, width, 3]`: image, truth and the mask of each predictor, by name."""
    rows, palette = {}, source.label_set.palette
    for index in indices:
        image, label = source[index]["image"], source[index]["label"]
        masks = [label, *(predictor(image).mask for predictor in predictors.values())]
        pictures = [inference.as_rgb(image), *(colorize(mask, palette) for mask in masks)]
        rows[source.name(index)] = pictures
    return inference.contact_sheet(rows, ("image", "truth", *predictors), source.label_set)
