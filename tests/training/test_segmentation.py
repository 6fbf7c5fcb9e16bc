"""The objective against NumPy, in parts and whole; counts of images of any size, and scores from counts."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from scipy.special import log_softmax, softmax
from skimage.segmentation import find_boundaries
from sklearn.metrics import roc_auc_score

from segjax import losses, metrics
from segjax.data import UNSEEN, corrupt
from segjax.data.augment import example_keys
from segjax.data.labels import VOID
from segjax.data.resize import resize
from segjax.inference import Ensemble, Preprocessing
from segjax.models import Segmentation
from segjax.training import defaults
from segjax.training.network import TrainState, make_model, num_outputs, preprocessing_of
from segjax.training.objective import BINARY_LOSSES, PIXEL_LOSSES, REGION_LOSSES, hparams_from_config
from segjax.training.segmentation import (
    make_eval_step,
    make_objective,
    make_score_counts,
    scores,
    sum_over_strips,
    unknown_scores,
)
from segjax.training.train_step import init_state

RNG = np.random.default_rng(0)
CLASSES, HEADS, SHAPE = 3, 4, (2, 6, 8)
LABELS = RNG.integers(0, CLASSES, SHAPE).astype(np.int32)
LABELS[:, :2, :3] = VOID
LOGITS = RNG.normal(size=(*SHAPE, CLASSES + 1)).astype(np.float32)
HEAD_LOGITS = RNG.normal(size=(HEADS, *SHAPE, CLASSES + 1)).astype(np.float32)


def config_with(**options):
    config = defaults()
    for key, value in options.items():
        config.objective[key] = value
    return config


def output_of(logits, mc_logits=None, logit_variance=None):
    features = jnp.zeros((*SHAPE, 1))
    logits, mc_logits, logit_variance = (
        None if x is None else jnp.asarray(x) for x in (logits, mc_logits, logit_variance)
    )
    return Segmentation(logits, mc_logits, logit_variance, features)


def value(config, output, labels=LABELS, num_classes=CLASSES, **hparams):
    changes = {k: jnp.float32(v) for k, v in hparams.items()}
    loss, parts = make_objective(config, num_classes)(
        output, jnp.asarray(labels), hparams_from_config(config)._replace(**changes)
    )
    return float(loss), {k: float(v) for k, v in parts.items()}


def numpy_objective(labels, *, factor, weight, background, variance, gamma=0.0):
    """Returns pixel loss and penalty per pixel, both weighted, for `labels` without void."""
    z = LOGITS.astype(np.float64)
    log_p = np.take_along_axis(log_softmax(z, -1), labels[..., None], -1)[..., 0]
    pixel = -((1 - np.exp(log_p)) ** gamma) * log_p
    boundary = np.stack([find_boundaries(image, mode="outer") for image in labels])
    penalty = variance * (1 - softmax(z, -1)[..., background])
    return np.where(boundary, factor, 1.0) * pixel, weight * penalty


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("dropout", ["sampled", "analytic"])
def test_objective_equals_numpy(dropout, gamma):
    config = config_with(void="class", boundary_factor=1.0, uncertainty_weight=1.0, loss="softmax_focal")
    variance = HEAD_LOGITS.astype(np.float64).var(0, ddof=1)
    output = output_of(LOGITS, HEAD_LOGITS) if dropout == "sampled" else output_of(LOGITS, None, variance[...])
    labels = np.where(LABELS == VOID, CLASSES, LABELS)
    pixel, penalty = numpy_objective(
        labels, factor=4.0, weight=10.0, background=CLASSES, variance=variance.mean(-1), gamma=gamma
    )
    loss, parts = value(config, output, boundary_factor=4.0, uncertainty_weight=10.0, gamma=gamma)
    assert loss == pytest.approx(pixel.mean() + penalty.mean(), rel=1e-5)
    assert parts["pixel_loss"] == pytest.approx(pixel.mean(), rel=1e-5)
    assert 10 * parts["penalty"] == pytest.approx(penalty.mean(), rel=1e-5)


def test_objective_void_ignored_in_every_part_and_in_boundaries():
    config = config_with(boundary_factor=4.0, uncertainty_weight=10.0, background=1)
    kept = LABELS != VOID
    logits = np.where(kept[..., None], LOGITS[..., :CLASSES], np.nan)
    heads = np.where(kept[..., None], HEAD_LOGITS[..., :CLASSES], np.nan)
    log_p = log_softmax(LOGITS[..., :CLASSES].astype(np.float64), -1)
    pixel = -np.take_along_axis(log_p, np.where(kept, LABELS, 0)[..., None], -1)[..., 0]
    # scikit-image does not have void, so that the weights are those of the function under test.
    weights = np.asarray(losses.boundary_weights(LABELS, 4.0, where=kept))
    assert weights[~kept].max() == 1
    penalty = HEAD_LOGITS[..., :CLASSES].astype(np.float64).var(0, ddof=1).mean(-1) * (1 - np.exp(log_p[..., 1]))
    expected = (weights * pixel + 10 * penalty)[kept].mean()
    assert value(config, output_of(logits, heads))[0] == pytest.approx(expected, rel=1e-5)


def test_penalty_of_a_binary_loss_leaves_out_class_zero():
    config = config_with(loss="sigmoid_cross_entropy", uncertainty_weight=1.0, background=0)
    labels = np.where(LABELS == VOID, VOID, LABELS % 2)
    _, parts = value(config, output_of(LOGITS[..., :1], HEAD_LOGITS[..., :1]), labels, num_classes=2)
    p = 1 / (1 + np.exp(-LOGITS[..., 0].astype(np.float64)))
    penalty = HEAD_LOGITS[..., 0].astype(np.float64).var(0, ddof=1) * p
    assert parts["penalty"] == pytest.approx(penalty[labels != VOID].mean(), rel=1e-5)


def test_penalty_gradient_reaches_heads_and_background():
    config = config_with(void="class", uncertainty_weight=1.0)
    objective, hparams = make_objective(config, CLASSES), hparams_from_config(config)

    def penalty(logits, mc_logits):
        return objective(output_of(logits, mc_logits), jnp.asarray(LABELS), hparams)[1]["penalty"]

    by_logits, by_heads = jax.grad(penalty, argnums=(0, 1))(jnp.asarray(LOGITS), jnp.asarray(HEAD_LOGITS))
    # The penalty decreases along the background's logit everywhere.
    assert float(by_logits[..., CLASSES].max()) < 0
    assert float(jnp.abs(by_heads).min(axis=(0, 4)).min()) >= 0
    assert float(jnp.abs(by_heads).sum()) > 0
    # The variance does not depend on the heads' mean: the gradient sums to 0 over the heads.
    np.testing.assert_allclose(by_heads.sum(0), 0, atol=1e-6)


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "sigmoid_focal"])
def test_outliers_add_the_cross_entropy_to_the_uniform_distribution(loss):
    config = config_with(loss=loss, outlier_weight=0.5)
    outliers, labels = LABELS == VOID, np.where(LABELS == VOID, VOID, LABELS % 2)
    outliers[1] = False
    logits = LOGITS[..., : num_outputs(config, 2)]
    objective, hparams = make_objective(config, 2), hparams_from_config(config)
    total, parts = objective(output_of(logits), jnp.asarray(labels), hparams, outliers=jnp.asarray(outliers))
    both = logits if loss[:7] == "softmax" else np.concatenate([0 * logits, logits], axis=-1)
    expected = -log_softmax(both.astype(np.float64), axis=-1)[outliers].mean()
    assert float(parts["outlier_loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(total) == pytest.approx(float(parts["pixel_loss"]) + 0.5 * expected, rel=1e-5)
    assert float(parts["pixel_loss"]) == value(config_with(loss=loss), output_of(logits), labels, 2)[0]


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "sigmoid_focal"])
def test_logit_margin_adds_the_penalty_of_labelled_pixels(loss):
    labels = np.where(LABELS == VOID, VOID, LABELS % 2)
    logits = LOGITS[..., : num_outputs(config_with(loss=loss), 2)]
    config = config_with(loss=loss, logit_margin=1.0, logit_margin_weight=0.3)
    total, parts = value(config, output_of(logits), labels, 2)
    both = logits if loss[:7] == "softmax" else np.concatenate([0 * logits, logits], axis=-1)
    beyond = np.maximum(both.max(axis=-1, keepdims=True) - both.astype(np.float64) - 1, 0).mean(axis=-1)
    expected = beyond[labels != VOID].mean()
    assert parts["margin_penalty"] == pytest.approx(expected, rel=1e-5)
    assert total == pytest.approx(parts["pixel_loss"] + 0.3 * expected, rel=1e-5)


def test_label_smoothing_is_that_of_the_loss():
    kept = LABELS != VOID
    expected = losses.mean(losses.softmax_cross_entropy(LOGITS, LABELS, where=kept, label_smoothing=0.1), where=kept)
    found, _ = value(config_with(label_smoothing=0.1), output_of(LOGITS))
    assert found == pytest.approx(float(expected), rel=1e-6)
    assert found != value(config_with(), output_of(LOGITS))[0]


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_pixel_loss_ignores_void(name):
    two = 1 if name in BINARY_LOSSES else 2
    logits, labels = LOGITS[..., :two], np.where(LABELS == VOID, VOID, LABELS % 2)
    with_nan = np.where((labels != VOID)[..., None], logits, np.nan)
    config = config_with(loss=name, class_frequencies=(0.9, 0.1))
    kept, _ = value(config, output_of(logits), labels, num_classes=2)
    assert kept > 0
    assert value(config, output_of(with_nan), labels, num_classes=2)[0] == kept


FREQUENCIES = (0.7, 0.2, 0.1)
WITH_COUNTS = {"class_frequencies": FREQUENCIES}


@pytest.mark.parametrize(
    ("options", "direct"),
    [
        (
            {"loss": "softmax_poly1", "poly_epsilon": 2.0, "gamma": 1.0},
            lambda z, **o: losses.softmax_poly1_loss(z, LABELS, epsilon=2.0, gamma=1.0, **o),
        ),
        (
            {"loss": "ldam", "ldam_margin": 1.0, "ldam_scale": 2.0, "class_weights": (1.0, 2.0, 3.0)} | WITH_COUNTS,
            lambda z, **o: losses.ldam_loss(
                z,
                LABELS,
                np.array(FREQUENCIES),
                max_margin=1.0,
                scale=2.0,
                class_weights=np.array([1.0, 2.0, 3.0]),
                **o,
            ),
        ),
        (
            {"loss": "seesaw", "seesaw_p": 0.5, "seesaw_q": 1.0} | WITH_COUNTS,
            lambda z, **o: losses.seesaw_loss(z, LABELS, np.array(FREQUENCIES), p=0.5, q=1.0, **o),
        ),
        (
            {"loss": "asymmetric_focal", "asymmetric_delta": 0.6, "gamma": 0.5},
            lambda z, **o: losses.asymmetric_focal_loss(z, LABELS, rare=(1, 2), delta=0.6, gamma=0.5, **o),
        ),
        (
            {"loss": "softmax_focal", "gamma": 1.0, "logit_adjustment": 0.5} | WITH_COUNTS,
            lambda z, **o: losses.softmax_focal_loss(z + 0.5 * np.log(FREQUENCIES), LABELS, gamma=1.0, **o),
        ),
    ],
    ids=lambda one: one["loss"] if isinstance(one, dict) else "",
)
def test_pixel_loss_is_that_of_the_config(options, direct):
    logits, kept = LOGITS[..., :CLASSES], LABELS != VOID
    expected = losses.mean(direct(logits, where=kept), where=kept)
    assert value(config_with(**options), output_of(logits))[0] == pytest.approx(float(expected), rel=1e-5)


def test_focal_gamma_zero_is_cross_entropy_bit_for_bit():
    labels = np.where(LABELS == VOID, VOID, LABELS % 2)
    for family, outputs in (("softmax", 2), ("sigmoid", 1)):
        focal, entropy = (
            value(config_with(loss=f"{family}_{kind}", gamma=0.0), output_of(LOGITS[..., :outputs]), labels, 2)[0]
            for kind in ("focal", "cross_entropy")
        )
        assert focal == entropy


def test_normalizer_positives_divides_by_their_number():
    labels = np.where(LABELS == VOID, VOID, LABELS % 2)
    per_pixel = losses.sigmoid_focal_loss(
        LOGITS[..., 0], (labels == 1).astype(np.float32), gamma=2.0, alpha=0.25, where=labels != VOID
    )
    config = config_with(loss="sigmoid_focal", normalizer="positives", alpha=0.25)
    actual, _ = value(config, output_of(LOGITS[..., :1]), labels, num_classes=2)
    assert actual == pytest.approx(float(per_pixel.sum()) / int((labels == 1).sum()), rel=1e-6)


def test_class_weights_reach_both_softmax_losses():
    ones = np.ones(SHAPE, np.int32)
    for name in ("softmax_cross_entropy", "softmax_focal"):
        rare, _ = value(config_with(loss=name), output_of(LOGITS[..., :2]), ones, num_classes=2)
        weighted, _ = value(
            config_with(loss=name, class_weights=(1.0, 5.0)), output_of(LOGITS[..., :2]), ones, num_classes=2
        )
        assert weighted == pytest.approx(5 * rare, rel=1e-6)


def test_hard_fraction_selects_the_hardest():
    kept = LABELS != VOID
    config = config_with(hard_fraction=0.25)
    per_pixel = np.asarray(losses.softmax_cross_entropy(LOGITS[..., :CLASSES], LABELS, where=kept))[kept]
    hardest = np.sort(per_pixel)[-int(np.ceil(0.25 * kept.sum())) :]
    assert value(config, output_of(LOGITS[..., :CLASSES]))[0] == pytest.approx(hardest.mean(), rel=1e-5)


def test_hard_threshold_and_negatives_per_positive():
    kept = LABELS != VOID
    per_pixel = np.asarray(losses.softmax_cross_entropy(LOGITS[..., :CLASSES], LABELS, where=kept))[kept]
    output = output_of(LOGITS[..., :CLASSES])
    above = per_pixel[per_pixel >= 1.0]
    assert value(config_with(hard_threshold=1.0), output)[0] == pytest.approx(above.mean(), rel=1e-5)
    positive = (LABELS != 0)[kept]
    hardest = np.sort(per_pixel[~positive])[-int(np.ceil(0.1 * positive.sum())) :]
    config = config_with(negatives_per_positive=0.1, background=0)
    expected = np.concatenate([per_pixel[positive], hardest]).mean()
    assert value(config, output)[0] == pytest.approx(expected, rel=1e-5)


def test_positives_of_a_softmax_are_all_but_the_background():
    kept = LABELS != VOID
    per_pixel = np.asarray(losses.softmax_cross_entropy(LOGITS[..., :CLASSES], LABELS, where=kept))[kept]
    config = config_with(normalizer="positives", background=0)
    expected = per_pixel.sum() / (LABELS != 0)[kept].sum()
    assert value(config, output_of(LOGITS[..., :CLASSES]))[0] == pytest.approx(expected, rel=1e-5)


def test_hard_pixels_are_divided_by_all_positives():
    labels = np.where(LABELS == VOID, VOID, LABELS % 2)
    kept = labels != VOID
    per_pixel = np.asarray(losses.sigmoid_cross_entropy(LOGITS[..., 0], labels, where=kept))[kept]
    mined = per_pixel[per_pixel >= 0.5]
    config = config_with(loss="sigmoid_cross_entropy", hard_threshold=0.5, normalizer="positives")
    actual = value(config, output_of(LOGITS[..., :1]), labels, num_classes=2)[0]
    assert actual == pytest.approx(mined.sum() / (labels == 1).sum(), rel=1e-5)


def test_beta_shifts_focal_star():
    labels = np.where(LABELS == VOID, VOID, LABELS % 2)
    output = output_of(LOGITS[..., :1])
    config = config_with(loss="sigmoid_focal_star", gamma=2.0, beta=1.0)
    per_pixel = losses.sigmoid_focal_star_loss(LOGITS[..., 0], labels, gamma=2.0, beta=0.5, where=labels != VOID)
    expected = float(per_pixel.sum()) / int((labels != VOID).sum())
    assert value(config, output, labels, num_classes=2, beta=0.5)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", [name for name in REGION_LOSSES if name not in ("none", "lovasz_hinge")])
def test_region_loss_is_added_over_the_classes_without_void(name):
    kept = LABELS != VOID
    of_tversky = {"tversky_alpha": 0.3, "tversky_beta": 0.7, "tversky_gamma": 1.5} if name == "tversky" else {}
    with_nan = config_with(void="class", region=name)
    loss, parts = value(with_nan, output_of(LOGITS), region_weight=3.0, **of_tversky)
    assert loss == pytest.approx(parts["pixel_loss"] + 3 * parts["region_loss"], rel=1e-6)
    direct = {
        "lovasz": lambda: losses.lovasz_softmax_loss(LOGITS, np.where(kept, LABELS, 0), where=kept),
        "dice": lambda: losses.dice_loss(LOGITS, LABELS, where=kept, classes=(0, 1, 2)),
        "jaccard": lambda: losses.jaccard_loss(LOGITS, LABELS, where=kept, classes=(0, 1, 2)),
        "generalized_dice": lambda: losses.generalized_dice_loss(LOGITS, LABELS, where=kept, classes=(0, 1, 2)),
        "matthews": lambda: losses.matthews_loss(LOGITS, LABELS, where=kept, classes=(0, 1, 2)),
        "cl_dice": lambda: losses.cl_dice_loss(LOGITS, LABELS, where=kept, classes=(0, 1, 2)),
        "boundary": lambda: losses.boundary_loss(LOGITS, LABELS, where=kept, classes=(0, 1, 2)),
        "tversky": lambda: losses.tversky_loss(
            LOGITS, LABELS, where=kept, classes=(0, 1, 2), alpha=0.3, beta=0.7, gamma=1.5
        ),
    }[name]()
    assert parts["region_loss"] == pytest.approx(float(direct), rel=1e-5)


@pytest.mark.parametrize("void", ["ignore", "class"])
@pytest.mark.parametrize(
    ("name", "fields", "options"),
    [
        ("dice", {}, {}),
        ("dice", {"region_squared": True, "region_absent": "one"}, {"squared": True, "absent": "one"}),
        ("jaccard", {"region_over": "batch"}, {"over_batch": True}),
        ("cl_dice", {"cl_dice_alpha": 0.3, "cl_dice_iterations": 1}, {"alpha": 0.3, "iterations": 1}),
        ("tversky", {"tversky_gamma": 0.5, "tversky_alpha": 0.3}, {"gamma": 0.5, "alpha": 0.3}),
        ("lovasz", {"region_over": "image"}, {"over_batch": False}),
    ],
)
def test_region_loss_has_the_weights_and_options_of_the_config(name, fields, options, void):
    kept, logits = LABELS != VOID, LOGITS if void == "class" else LOGITS[..., :CLASSES]
    config = config_with(void=void, region=name, region_class_weights=(1.0, 0.0, 5.0), **fields)
    _, parts = value(config, output_of(logits))
    loss = getattr(losses, {"lovasz": "lovasz_softmax_loss"}.get(name, f"{name}_loss"))
    if name != "lovasz":
        options = options | {"classes": (0, 1, 2)}
    weights = np.array([1.0, 0.0, 5.0, 0.0][: logits.shape[-1]])
    expected = loss(logits, np.where(kept, LABELS, 0), where=kept, class_weights=weights, **options)
    assert parts["region_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert parts["region_loss"] != pytest.approx(
        value(config_with(void=void, region=name), output_of(logits))[1]["region_loss"]
    )


def test_region_loss_of_a_binary_loss_is_that_of_class_one():
    labels = np.where(LABELS == VOID, VOID, LABELS % 2)
    config = config_with(loss="sigmoid_focal", region="dice")
    _, parts = value(config, output_of(LOGITS[..., :1]), labels, num_classes=2)
    p, t = 1 / (1 + np.exp(-LOGITS[..., 0].astype(np.float64))), labels == 1
    kept = labels != VOID
    dice = [1 - 2 * (p * t)[i][kept[i]].sum() / (p + t)[i][kept[i]].sum() for i in range(len(p))]
    assert parts["region_loss"] == pytest.approx(np.mean(dice), rel=1e-5)


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "sigmoid_focal"])
def test_calibration_loss_is_added_over_the_classes_without_void(loss):
    binary = loss == "sigmoid_focal"
    labels = np.where(LABELS == VOID, VOID, LABELS % 2) if binary else LABELS
    kept, logits = labels != VOID, LOGITS[..., :1] if binary else LOGITS
    config = config_with(loss=loss, calibration_weight=2.0, calibration_bins=7, void="ignore" if binary else "class")
    total, parts = value(config, output_of(logits), labels, num_classes=2 if binary else CLASSES)
    assert total == pytest.approx(parts["pixel_loss"] + 2 * parts["calibration_loss"], rel=1e-6)
    channels = {"activation": "sigmoid"} if binary else {"classes": (0, 1, 2)}
    targets = (labels == 1)[..., None] if binary else np.where(kept, labels, 0)
    direct = losses.average_calibration_loss(logits, targets, num_bins=7, where=kept, **channels)
    assert parts["calibration_loss"] == pytest.approx(float(direct), rel=1e-5)


def test_region_loss_of_a_binary_loss_lovasz_hinge():
    labels = np.where(LABELS == VOID, VOID, LABELS % 2)
    config = config_with(loss="hinge", region="lovasz_hinge")
    _, parts = value(config, output_of(LOGITS[..., :1]), labels, num_classes=2)
    direct = losses.lovasz_hinge_loss(LOGITS[..., 0], labels, where=labels != VOID)
    assert parts["region_loss"] == pytest.approx(float(direct), rel=1e-6)


def test_objective_factors_are_traced():
    config = config_with(void="class", boundary_factor=1.0, uncertainty_weight=1.0, loss="softmax_focal")
    objective, traces = make_objective(config, CLASSES), []

    @jax.jit
    def loss(hparams):
        traces.append(hparams)
        return objective(output_of(LOGITS, HEAD_LOGITS), jnp.asarray(LABELS), hparams)[0]

    hparams = hparams_from_config(config)
    found = {
        float(loss(hparams._replace(**{name: jnp.float32(3.0)})))
        for name in ("boundary_factor", "uncertainty_weight", "gamma")
    }
    assert len(found) == 3
    assert len(traces) == 1


# Counts and scores.


def counted(logits, labels):
    @jax.jit
    def count(logits, labels):
        confusion = metrics.confusion_matrix(labels, (logits > 0).astype(jnp.int32), 2)
        return {"confusion": confusion, "scores": metrics.score_histogram(logits, labels == 1)}

    return {key: np.asarray(one, np.int64) for key, one in count(logits, labels).items()}


def test_scores_best_iou_and_its_threshold():
    rng = np.random.default_rng(0)
    labels = (rng.random(4000) < 0.1).astype(np.int32)
    # Nearly every positive is below 0, so that 0 is a bad threshold.
    logits = (2 * labels + rng.normal(-3, 1, labels.shape)).astype(np.float32)
    found = scores(counted(logits, labels))

    def iou(threshold):
        predicted = logits >= threshold
        return (predicted & (labels == 1)).sum() / (predicted | (labels == 1)).sum()

    assert found["best_iou"] == pytest.approx(max(map(iou, np.sort(logits))), abs=5e-3)
    assert found["best_iou"] > found["iou_per_class"][1] + 0.1
    logit = np.log(found["best_threshold"] / (1 - found["best_threshold"]))
    assert found["best_iou"] == pytest.approx(iou(logit), rel=1e-3)


def test_scores_without_a_positive_are_nan():
    found = scores(counted(np.full(5, -1.0, np.float32), np.zeros(5, np.int32)))
    assert np.isnan([found["best_iou"], found["best_threshold"], found["average_precision"]]).all()


def test_make_score_counts_average_precision_of_the_rare_class(tiny):
    """Exchanging the classes exchanges rare and common, and the rare class keeps its scores."""
    tiny.data.name, tiny.data.class_names = "folder", ("crack", "background")
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 8, 9, 2)).astype(np.float32), rng.integers(0, 5, (2, 8, 9)).clip(0, 1)
    where, found = np.ones(labels.shape, bool), {}
    for name, flip in (("crack", False), ("background", True)):
        tiny.data.rare_class = name
        count = jax.jit(make_score_counts(tiny, 2, None))
        arrays = (logits[..., ::-1], 1 - labels) if flip else (logits, labels)
        found[name] = scores(count(*arrays, where, hparams_from_config(tiny)))
    for key in ("average_precision", "best_iou", "best_threshold"):
        assert found["crack"][key] == found["background"][key]


def test_scores_of_three_classes_have_no_ranking():
    confusion = np.asarray(metrics.confusion_matrix(np.array([0, 1, 2]), np.array([0, 1, 1]), 3), np.int64)
    assert {"best_iou", "average_precision", "auroc"} & scores({"confusion": confusion}).keys() == set()


def test_make_score_counts_pixel_loss_with_void_as_a_class_is_that_of_training(tiny):
    tiny.objective.loss, tiny.objective.void = "softmax_cross_entropy", "class"
    rng, hparams = np.random.default_rng(0), hparams_from_config(tiny)
    outputs = jnp.asarray(rng.normal(size=(2, 5, 6, 3)), jnp.float32)
    labels = jnp.asarray(rng.choice([0, 1, VOID], (2, 5, 6)), jnp.int32)
    beside = ((0, 0), (0, 0), (0, 2))  # columns that are not of the images

    @jax.jit
    def losses_of(outputs, labels):
        _, parts = make_objective(tiny, 2)(Segmentation(outputs, None, None, outputs), labels, hparams)
        labels, outputs = jnp.pad(labels, beside, constant_values=-1), jnp.pad(outputs, (*beside, (0, 0)))
        where = (labels >= 0) & (labels != VOID)
        return parts["pixel_loss"], make_score_counts(tiny, 2, None)(outputs, labels, where, hparams)

    expected, counts = jax.device_get(losses_of(outputs, labels))
    assert scores(counts)["pixel_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_unknown_scores_rank_as_their_formulas():
    logits = 6 * np.random.default_rng(0).normal(size=(200, 4))
    found = jax.device_get(jax.jit(unknown_scores)(jnp.asarray(logits, jnp.float32)))
    p = scipy.special.softmax(logits, axis=-1)
    top = np.sort(p, axis=-1)
    expected = {
        "max_probability": 1 - top[:, -1],
        "entropy": scipy.special.entr(p).sum(-1),
        "margin": 1 - (top[:, -1] - top[:, -2]),
        "max_logit": -logits.max(-1),
        "energy": -scipy.special.logsumexp(logits, axis=-1),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert scipy.stats.spearmanr(found[name], values).statistic > 1 - 1e-6, name
        assert (np.abs(found[name]) <= 16).mean() > 0.95, name


def test_unknown_scores_of_an_ensemble_leave_out_those_of_the_evidence():
    found = jax.eval_shape(partial(unknown_scores, is_ensemble=True), jax.ShapeDtypeStruct((1, 3), jnp.float32))
    assert found.keys() == {"max_probability", "entropy", "margin"}


def test_make_score_counts_unseen_pixels_against_known_ones(tiny):
    tiny.data.name, tiny.data.unseen_classes = "road_debris_scene", ("debris",)
    tiny.objective.loss = "softmax_cross_entropy"
    rng, count, hparams = np.random.default_rng(0), make_score_counts(tiny, 4, None), hparams_from_config(tiny)
    outputs = rng.normal(size=(2, 9, 8, 4)).astype(np.float32)
    labels = rng.choice([0, 1, 2, 3, UNSEEN, VOID, -1], (2, 9, 8)).astype(np.int32)
    where = (labels != VOID) & (labels >= 0)
    unknown = labels == UNSEEN
    count = jax.jit(count)
    found = scores(jax.device_get(count(outputs, labels, where, hparams)))
    energy = -scipy.special.logsumexp(outputs, axis=-1)[where]
    assert found["unknown"]["energy"]["auroc"] == pytest.approx(roc_auc_score(unknown[where], energy), abs=3e-3)
    assert found["unknown"]["share"] == unknown[where].mean()
    without = scores(jax.device_get(count(outputs, np.where(unknown, VOID, labels), where & ~unknown, hparams)))
    assert found["confusion"] == without["confusion"]
    assert found["pixel_loss"] == without["pixel_loss"]
    assert np.isnan(without["unknown"]["energy"]["auroc"])


def count_confusion(logits, labels, where):
    return {"confusion": metrics.confusion_matrix(labels, logits.argmax(-1), 3, where=where)}


@pytest.fixture
def batch():
    """Returns two images of different sizes and a filler, labelled with three classes and void."""
    labels = np.random.default_rng(0).choice([0, 1, 2, VOID], (3, 23, 13)).astype(np.uint8)
    labels[1, 17:], labels[1, :, 5:] = VOID, VOID
    return {"label": labels, "size": np.array([[23, 13], [17, 5], [23, 13]]), "where": np.array([True, True, False])}


STRETCHED = Preprocessing((8, 6), 3, (0.5,), (0.5,), 3)


LOW_LOGITS = np.random.default_rng(1).normal(size=(3, 8, 6, 3)).astype(np.float32)


@pytest.mark.parametrize("max_pixels", [1, 40, 23 * 12])  # strips of one row, of three, and two strips
def test_sum_over_strips_counts_of_the_whole(batch, max_pixels):
    where = (batch["label"] != VOID) & batch["where"][:, None, None]

    @jax.jit
    def found_and_expected(maps, batch):
        whole = resize(maps, (23, 13), antialias=False, to_sizes=batch["size"])
        expected = count_confusion(whole, batch["label"].astype(jnp.int32), where)
        return sum_over_strips(count_confusion, maps, batch, STRETCHED, max_pixels)["confusion"], expected["confusion"]

    found, expected = found_and_expected(LOW_LOGITS, batch)
    np.testing.assert_array_equal(found, expected)
    assert expected.sum() == where.sum() > 100


def test_sum_over_strips_invalid_labels_stay_negative(batch):
    batch["label"][0, [2, 20]] = 7  # in two strips: the sum of two of the smallest int32 is 0
    found = jax.jit(lambda maps, batch: sum_over_strips(count_confusion, maps, batch, STRETCHED, 100))(
        LOW_LOGITS, batch
    )
    assert (np.asarray(found["confusion"]) < 0).all()


def test_make_eval_step_memory_of_a_large_image(tiny):
    """A photo of 24 megapixels takes 6.3 GB in a batch of 8 that is counted at once."""
    tiny.model.depth = 1
    model, shape = make_model(tiny, 2, None), (1, 4000, 6000)
    state = jax.eval_shape(lambda: init_state(tiny, model))
    batch = {"image": (*shape, 3), "label": shape, "size": (1, 2), "where": (1,), "index": (1,)}
    dtypes = {"image": jnp.uint8, "label": jnp.uint8, "size": jnp.int32, "where": bool, "index": jnp.int32}
    batch = {key: jax.ShapeDtypeStruct(batch[key], dtypes[key]) for key in batch}
    step = jax.jit(make_eval_step(tiny, model, 2, None))
    memory = step.lower(state, batch, hparams_from_config(tiny)).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.argument_size_in_bytes < 450e6


def test_make_eval_step_counts_corrupted_images(tiny, batch):
    """The network returns its first channel."""
    first = SimpleNamespace(apply=lambda variables, images, train: SimpleNamespace(logits=images[..., :1]))
    state, hparams = TrainState(*[None] * 7), hparams_from_config(tiny)
    images = np.random.default_rng(0).integers(0, 256, (3, 23, 13, 3)).astype(np.uint8)
    inputs = jax.tree.map(jnp.asarray, batch | {"image": images, "index": np.int32([4, 2, 6])})
    inputs["label"] = jnp.where(inputs["label"] == 2, VOID, inputs["label"])

    @jax.jit
    def corrupted(inputs):
        keys = example_keys(jax.random.key(0), 0, inputs["index"])
        return corrupt(inputs["image"], keys, kind="impulse_noise", severity=5, sizes=inputs["size"])

    step = jax.jit(make_eval_step(tiny, first, 2, None))
    expected = step(state, inputs | {"image": corrupted(inputs)}, hparams)
    unchanged = step(state, inputs, hparams)
    found = jax.jit(make_eval_step(tiny, first, 2, None, ("impulse_noise", 5)))(state, inputs, hparams)
    np.testing.assert_array_equal(found["confusion"], expected["confusion"])
    assert (found["confusion"] != unchanged["confusion"]).any()


def test_make_eval_step_ranks_unseen_pixels_by_the_disagreement_of_the_members(tiny):
    """The network is linear in the pixels."""
    tiny.data.name, tiny.data.unseen_classes, tiny.data.size = "road_debris_scene", ("debris",), (16, 24)
    tiny.objective.loss = "softmax_cross_entropy"
    linear = SimpleNamespace(apply=lambda variables, images, train: SimpleNamespace(logits=images @ variables["w"]))
    rng, size = np.random.default_rng(0), np.int32([[16, 24]] * 2)
    kernels = rng.normal(size=(3, 3, 4)).astype(np.float32)
    labels = rng.choice([0, 1, 2, 3, UNSEEN, VOID], (2, 16, 24)).astype(np.uint8)
    batch = {"image": rng.integers(0, 256, (2, 16, 24, 3)).astype(np.uint8), "label": labels, "size": size}
    batch |= {"where": np.ones(2, bool), "index": np.arange(2, dtype=np.int32)}
    state, step = TrainState(*[None] * 7), make_eval_step(tiny, Ensemble(linear, 3, 4), 4, None)
    counts = jax.jit(step)(state.replace(ema={"w": kernels}), batch, hparams_from_config(tiny))
    found = scores(jax.device_get(counts))
    inputs = np.asarray(preprocessing_of(tiny, 4).normalise(jnp.asarray(batch["image"])))
    p = scipy.special.softmax(inputs @ kernels[:, None, None], axis=-1)
    disagreement = scipy.special.entr(p.mean(0)).sum(-1) - scipy.special.entr(p).sum(-1).mean(0)
    where = labels != VOID
    expected = roc_auc_score(labels[where] == UNSEEN, disagreement[where])
    assert found["unknown"]["mutual_information"]["auroc"] == pytest.approx(expected, abs=2e-3)
