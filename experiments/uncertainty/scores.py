"""Uncertainty scores of one network or of an ensemble, counted over the images of a split.

A *family* is a way to get probabilities: one pass ("softmax"), dropout samples of the head, test-time augmentation, or
an ensemble. Each family has several scores per pixel, all higher where the network should be less certain.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from experiments.sweep.table_rows import counts_over_split
from segjax import calibrate, metrics
from segjax.data import VOID
from segjax.data.resize import resize
from segjax.inference import augmented_statistics, class_logits, head_uncertainty
from segjax.inference.augmentation import SYMMETRIES
from segjax.inference.monte_carlo import Uncertainty, linear_head, uncertainty_of
from segjax.metrics.anomaly import Gaussians, Laplace
from segjax.trained_run import TrainedRun
from segjax.training.segmentation import sum_over_strips

RATE, HEAD_SAMPLES = 0.2, 30
SCALES = (0.75, 1.0, 1.25)  # of the augmentation, each with its mirror image
PIXELS = 2000  # random pixels per image, for the scaling and the calibration errors
# Scores of either sign; the others are at least 0.
SIGNED = ("max logit", "energy", "standardised max logit", "relative Mahalanobis", "feature density")
AGGREGATIONS = ("mean", "patch")
SCALINGS = ("temperature", "class", "vector")
FAMILIES = ("softmax", "dropout", "augmentation", "ensemble")
# In the order of the tables; JAX sorts the keys of the counts.
NAMES = (
    "1 - max p",
    "entropy",
    "margin",
    *SIGNED[:3],
    "Mahalanobis",
    *SIGNED[3:],
    "Laplace variance",
    *(f"{f}: {s}" for f in FAMILIES[1:] for s in ("1 - max p", "entropy", "mutual information", "variance")),
)


class Maps(NamedTuple):
    """One family's logits, or log of its mean probabilities, and its scores by name, at the image's own size."""

    logits: Float[Array, "H W C"]
    scores: dict[str, Float[Array, "H W"]]


class Fitted(NamedTuple):
    """Statistics of the training pixels, for the scores that compare with them."""

    tied: Gaussians
    per_class: Gaussians
    background: Gaussians
    max_logit: Gaussians
    laplace: Laplace  # of the head, with a prior precision of 1


class ImageCounts(NamedTuple):
    """Counts of one image: histograms by score, confusion matrix by family, and random pixels for the calibration."""

    errors: dict[str, Int[np.ndarray, "2 bins"]]  # right and wrong pixels
    unknown: dict[str, Int[np.ndarray, "2 bins"]]  # known and unknown pixels
    confusion: dict[str, Int[np.ndarray, "C C"]]
    pixels: dict[str, Float[np.ndarray, "{PIXELS} C"]]  # logits of each family
    labels: Int[np.ndarray, "{PIXELS}"]
    uncertainty: dict[str, dict[str, float]]  # by score and by aggregation over the image


def fit(run: TrainedRun) -> Fitted:
    """Fits Gaussians and the head's posterior to the features and logits of the training split."""
    classes, model = run.label_set.num_classes, run.model.clone(dropout="none", deep_dropout=0)

    def count(maps, labels, where):
        logits = class_logits(maps["logits"], classes)
        top, predicted = jnp.max(logits, axis=-1, keepdims=True), jnp.argmax(logits, axis=-1)
        return {
            "features": metrics.gaussian_sums(maps["features"], labels, classes, where=where),
            "max_logit": metrics.gaussian_sums(top, predicted, classes, where=where),
            "laplace": metrics.laplace_sums(maps["features"], logits, where=where),
        }

    def step(state, batch):
        inputs = run.preprocessing.network_input(batch["image"], batch["size"])
        output = model.apply(state.variables, inputs, train=False)
        maps = {"logits": output.logits, "features": output.features}
        return sum_over_strips(count, maps, batch, run.preprocessing, run.config.training.eval_pixels)

    sums, _ = counts_over_split(run, step, run.config.data.train_split)
    features = sums["features"]
    return Fitted(
        metrics.fit_gaussians(features),
        metrics.fit_gaussians(features, covariance="class"),
        metrics.fit_gaussians(jax.tree.map(lambda x: x.sum(axis=0, keepdims=True), features)),
        metrics.fit_gaussians(sums["max_logit"], covariance="class"),
        metrics.fit_laplace(sums["laplace"]),
    )


def single_network(run: TrainedRun, fitted: Fitted | None) -> Callable:
    """Builds `maps(image) -> {family: Maps}` of one network: softmax, dropout of the head, and augmentation.

    With fitted = None there are no scores that compare with the training pixels.
    """
    classes, variables = run.label_set.num_classes, run.state.variables
    model = run.model.clone(dropout="none", deep_dropout=0, remat=False)
    kernel, bias = (class_logits(part, classes) for part in linear_head(variables))

    def maps(image: Array) -> dict[str, Maps]:
        size = image.shape[:2]
        inputs = run.preprocessing.network_input(image[None], jnp.array([size], jnp.int32))
        output = model.apply(variables, inputs, train=False)
        logits = resize(class_logits(output.logits, classes), size, antialias=False)[0]
        softmax = {
            "1 - max p": 1 - metrics.max_probability(logits),
            "entropy": metrics.predictive_entropy(logits[None]),
            "margin": metrics.margin_score(logits),
            "max logit": metrics.max_logit_score(logits),
            "energy": metrics.energy_score(logits),
        }
        if fitted is not None:
            features = resize(output.features, size, antialias=False)[0]
            softmax |= {
                "standardised max logit": metrics.standardized_max_logit_score(logits, fitted.max_logit),
                "Mahalanobis": metrics.mahalanobis_score(features, fitted.tied),
                "relative Mahalanobis": metrics.relative_mahalanobis_score(features, fitted.tied, fitted.background),
                "feature density": metrics.gaussian_density_score(features, fitted.per_class),
                "Laplace variance": metrics.laplace_variance(features, fitted.laplace).mean(axis=-1),
            }
        dropout = head_uncertainty(
            output.features, kernel, bias, jax.random.key(0), samples=HEAD_SAMPLES, rate=RATE, mask="channel"
        )
        symmetries = SYMMETRIES["mirror"]
        augmented = augmented_statistics(
            inputs,
            lambda x, _: class_logits(model.apply(variables, x, train=False).logits, classes),
            symmetries=symmetries,
            scales=SCALES,
        )
        augmented = uncertainty_of(augmented, len(symmetries) * len(SCALES))
        return {
            "softmax": Maps(logits, softmax),
            "dropout": _sampled(dropout, size, "dropout"),
            "augmentation": _sampled(augmented, size, "augmentation"),
        }

    return maps


def ensemble(runs: Sequence[TrainedRun]) -> Callable:
    """Builds `maps(image) -> {"ensemble": Maps}` of networks of one shape, whose probabilities are averaged."""
    first, classes = runs[0], runs[0].label_set.num_classes
    model = first.model.clone(dropout="none", deep_dropout=0, remat=False)
    members = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(run.state.variables for run in runs))

    def maps(image: Array) -> dict[str, Maps]:
        size = image.shape[:2]
        inputs = first.preprocessing.network_input(image[None], jnp.array([size], jnp.int32))
        outputs = jax.lax.map(lambda variables: model.apply(variables, inputs, train=False).logits, members)
        logits = class_logits(outputs, classes)
        found = Uncertainty(
            jnp.exp(metrics.log_mean_softmax(logits)),
            metrics.predictive_entropy(logits),
            metrics.mutual_information(logits),
            jnp.mean(jnp.var(logits, axis=0, ddof=1), axis=-1),
        )
        return {"ensemble": _sampled(found, size, "ensemble")}

    return maps


def _sampled(found: Uncertainty, size: tuple[int, int], family: str) -> Maps:
    """Returns the maps of a family of samples; log probabilities and measures are resized, as in `segjax predict`."""
    log_p = jnp.log(jnp.maximum(found.probabilities, 1e-30))
    measures = jnp.stack([found.mutual_information, found.variance], axis=-1)
    native = resize(jnp.concatenate([log_p, measures], axis=-1), size, antialias=False)[0]
    logits = native[..., :-2]
    scores = {
        "1 - max p": 1 - metrics.max_probability(logits),
        "entropy": metrics.predictive_entropy(logits[None]),
        "mutual information": native[..., -2],
        "variance": native[..., -1],
    }
    return Maps(logits, {f"{family}: {name}": values for name, values in scores.items()})


def ranked(name: str, values: Float[Array, "H W"]) -> Float[Array, "H W"]:
    """Maps a score of any range into [-16, 16] without changing its order, for `metrics.score_histogram`."""
    return jnp.arcsinh(32 * values) if name in SIGNED else 0.57 * jnp.log(jnp.maximum(values, 1e-12))


def make_count(maps: Callable, num_classes: int) -> Callable:
    """Builds the jitted `count(image, label, unknown, at)`: the entries of `ImageCounts` of one image.

    `at` are the indices of the pixels for the calibration. Known pixels are all but the unknown ones and void.
    """

    @jax.jit
    def count(image: Array, label: Int[Array, "H W"], unknown: Bool[Array, "H W"], at: Int[Array, "n"]) -> dict:
        known = (label != VOID) & ~unknown
        counts: dict[str, dict] = {name: {} for name in ("errors", "unknown", "confusion", "pixels", "uncertainty")}
        for family, (logits, found) in maps(image).items():
            predicted = jnp.argmax(logits, axis=-1)
            counts["confusion"][family] = metrics.confusion_matrix(label, predicted, num_classes, where=known)
            counts["pixels"][family] = logits.reshape(-1, num_classes)[at]
            for name, values in found.items():
                place = ranked(name, values)
                counts["errors"][name] = metrics.score_histogram(place, predicted != label, where=known)
                counts["unknown"][name] = metrics.score_histogram(place, unknown, where=known | unknown)
                counts["uncertainty"][name] = {
                    how: metrics.image_uncertainty(values, how, where=known) for how in AGGREGATIONS
                }
        return counts

    return count


def count_images(count: Callable, examples: Iterable[tuple]) -> list[ImageCounts]:
    """Returns the counts of every image: `examples` yields image, label and the boolean mask of unknown pixels."""
    counted, rng = [], np.random.default_rng(0)
    for image, label, unknown in examples:
        at = rng.choice(np.flatnonzero((label != VOID) & ~unknown), PIXELS)
        found = jax.device_get(count(image, label.astype(np.int32), unknown, at))
        counted.append(ImageCounts(**found, labels=label.ravel()[at].astype(np.int64)))
    return counted


def score_pixels(images: Sequence[ImageCounts]) -> dict[str, dict[str, float]]:
    """Returns per score how it ranks errors (AURC) and unknown pixels (AP, AUROC, FPR95), over all images."""
    result = {}
    for name in filter(images[0].errors.__contains__, NAMES):
        right_and_wrong = sum(np.asarray(one.errors[name], np.int64) for one in images)
        known_and_unknown = sum(np.asarray(one.unknown[name], np.int64) for one in images)
        result[name] = {
            "aurc": float(metrics.area_under_risk_coverage(right_and_wrong[::-1])),
            "average_precision": float(metrics.average_precision(known_and_unknown)),
            "auroc": float(metrics.auroc(known_and_unknown)),
            "fpr95": float(metrics.fpr_at_tpr(known_and_unknown, 0.95)),
            "share": float(known_and_unknown[1].sum() / known_and_unknown.sum()),
        }
    return result


def score_families(images: Sequence[ImageCounts]) -> dict[str, dict[str, Any]]:
    """Returns mean IoU and pixel accuracy of each family, and its calibration before and after each scaling.

    A scaling is fitted to random pixels of the first half of the images; the calibration scores are those of random
    pixels of the other half. "every other image" is a temperature that was fitted to every other image and is scored on
    the rest, which is easier where the images are frames of one video.
    """
    half, result = len(images) // 2, {}
    labels = np.stack([one.labels for one in images])
    for family in filter(images[0].confusion.__contains__, FAMILIES):
        scores = metrics.segmentation_scores(sum(np.asarray(one.confusion[family], np.int64) for one in images))
        logits = np.stack([one.pixels[family] for one in images])
        first, last = (logits[:half], labels[:half]), (logits[half:], labels[half:])
        calibration = {"none": calibration_scores(*last)}
        calibration |= {kind: _after_scaling(first, last, kind) for kind in SCALINGS}
        calibration["every other image"] = _after_scaling(
            (logits[::2], labels[::2]), (logits[1::2], labels[1::2]), "temperature"
        )
        result[family] = {
            "mean_iou": float(scores["mean_iou"]),
            "pixel_accuracy": float(scores["pixel_accuracy"]),
            "calibration": calibration,
        }
    return result


def _after_scaling(fitted: tuple, scored: tuple, kind: str) -> dict[str, Any]:
    """Returns the calibration scores and the scaling of logits and labels that were `scored`."""
    try:
        scaling = metrics.fit_scaling(*fitted, kind=kind)
    except ValueError as error:  # a class without pixels, or without errors
        return dict.fromkeys(("ece", "ace", "nll")) | {"error": str(error)}
    found = calibration_scores(metrics.scale_logits(scored[0], scaling), scored[1])
    return found | {"scale": scaling.scale.tolist(), "bias": scaling.bias.tolist()}


def calibration_scores(logits: Float[Any, "*pixels C"], labels: Int[np.ndarray, "*pixels"]) -> dict[str, float]:
    """Returns the scores of `segjax.calibrate` under short names."""
    found = calibrate.calibration_scores(jnp.asarray(logits), labels)
    return {
        "ece": found["expected_calibration_error"],
        "ace": found["adaptive_calibration_error"],
        "nll": found["negative_log_likelihood"],
    }


def score_images(images: Sequence[ImageCounts]) -> dict[str, dict[str, dict[str, float]]]:
    """Returns per score and aggregation how it ranks the images by 1 - mean IoU of its family's prediction."""
    risks = {
        family: 1 - np.array([metrics.segmentation_scores(one.confusion[family])["mean_iou"] for one in images])
        for family in images[0].confusion
    }
    return {
        name: {
            how: metrics.failure_detection(
                risks[family_of(name)], np.array([one.uncertainty[name][how] for one in images])
            )
            for how in AGGREGATIONS
        }
        for name in filter(images[0].errors.__contains__, NAMES)
    }


def family_of(name: str) -> str:
    """Returns the family of a score.

    >>> family_of("dropout: entropy"), family_of("entropy")
    ('dropout', 'softmax')
    """
    return name.split(":")[0] if ":" in name else "softmax"
