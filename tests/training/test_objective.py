"""The objective against a straightforward NumPy one, part by part and whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from skimage.segmentation import find_boundaries

from segjax import losses
from segjax.data.labels import VOID
from segjax.models import Segmentation
from segjax.training import defaults
from segjax.training.objective import (
    BINARY_LOSSES,
    PIXEL_LOSSES,
    REGION_LOSSES,
    hparams_from_config,
    make_objective,
    num_outputs,
    targets,
)

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
    """weight · pixel loss + C · penalty, as anybody would write it; `labels` hold no void."""
    z = LOGITS.astype(np.float64)
    log_p = np.take_along_axis(log_softmax(z, -1), labels[..., None], -1)[..., 0]
    pixel = -((1 - np.exp(log_p)) ** gamma) * log_p
    boundary = np.stack([find_boundaries(image, mode="outer") for image in labels])
    penalty = variance * (1 - softmax(z, -1)[..., background])
    return np.where(boundary, factor, 1.0) * pixel, weight * penalty


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("dropout", ["sampled", "analytic"])
def test_the_recipes_objective_is_numpys(dropout, gamma):
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


def test_with_void_left_out_it_counts_in_no_part_and_makes_no_boundary():
    config = config_with(boundary_factor=4.0, uncertainty_weight=10.0, background=1)
    kept = LABELS != VOID
    logits = np.where(kept[..., None], LOGITS[..., :CLASSES], np.nan)
    heads = np.where(kept[..., None], HEAD_LOGITS[..., :CLASSES], np.nan)
    log_p = log_softmax(LOGITS[..., :CLASSES].astype(np.float64), -1)
    pixel = -np.take_along_axis(log_p, np.where(kept, LABELS, 0)[..., None], -1)[..., 0]
    # scikit-image knows no void: a boundary towards it is one that fades if void takes the pixel's own label.
    weights = np.asarray(losses.boundary_weights(LABELS, 4.0, where=kept))
    assert weights[~kept].max() == 1
    penalty = HEAD_LOGITS[..., :CLASSES].astype(np.float64).var(0, ddof=1).mean(-1) * (1 - np.exp(log_p[..., 1]))
    expected = (weights * pixel + 10 * penalty)[kept].mean()
    assert value(config, output_of(logits, heads))[0] == pytest.approx(expected, rel=1e-5)


def test_the_penalty_of_a_sigmoid_is_free_of_class_zero():
    config = config_with(loss="sigmoid_cross_entropy", uncertainty_weight=1.0, background=0)
    labels = np.where(LABELS == VOID, VOID, LABELS % 2)
    _, parts = value(config, output_of(LOGITS[..., :1], HEAD_LOGITS[..., :1]), labels, num_classes=2)
    p = 1 / (1 + np.exp(-LOGITS[..., 0].astype(np.float64)))
    penalty = HEAD_LOGITS[..., 0].astype(np.float64).var(0, ddof=1) * p
    assert parts["penalty"] == pytest.approx(penalty[labels != VOID].mean(), rel=1e-5)


def test_the_gradient_flows_through_the_heads_and_through_the_background():
    config = config_with(void="class", uncertainty_weight=1.0)
    objective, hparams = make_objective(config, CLASSES), hparams_from_config(config)

    def penalty(logits, mc_logits):
        return objective(output_of(logits, mc_logits), jnp.asarray(LABELS), hparams)[1]["penalty"]

    by_logits, by_heads = jax.grad(penalty, argnums=(0, 1))(jnp.asarray(LOGITS), jnp.asarray(HEAD_LOGITS))
    # Called background, an uncertain pixel costs less: the penalty falls along the background's logit everywhere.
    assert float(by_logits[..., CLASSES].max()) < 0
    assert float(jnp.abs(by_heads).min(axis=(0, 4)).min()) >= 0
    assert float(jnp.abs(by_heads).sum()) > 0
    # The heads may not move the mean of the logits: their gradient sums to 0 over the heads.
    np.testing.assert_allclose(by_heads.sum(0), 0, atol=1e-6)


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_void_pixels_do_not_count(name):
    two = 1 if name in BINARY_LOSSES else 2
    logits, labels = LOGITS[..., :two], np.where(LABELS == VOID, VOID, LABELS % 2)
    spoilt = np.where((labels != VOID)[..., None], logits, np.nan)
    config = config_with(loss=name)
    kept, _ = value(config, output_of(logits), labels, num_classes=2)
    assert kept > 0
    assert value(config, output_of(spoilt), labels, num_classes=2)[0] == kept


def test_gamma_zero_is_cross_entropy_to_the_last_bit():
    labels = np.where(LABELS == VOID, VOID, LABELS % 2)
    for family, outputs in (("softmax", 2), ("sigmoid", 1)):
        focal, entropy = (
            value(config_with(loss=f"{family}_{kind}", gamma=0.0), output_of(LOGITS[..., :outputs]), labels, 2)[0]
            for kind in ("focal", "cross_entropy")
        )
        assert focal == entropy


def test_the_papers_normalizer_divides_by_the_kept_positives():
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


def test_of_the_hard_pixels_only_the_hardest_count():
    kept = LABELS != VOID
    config = config_with(hard_fraction=0.25)
    per_pixel = np.asarray(losses.softmax_cross_entropy(LOGITS[..., :CLASSES], LABELS, where=kept))[kept]
    hardest = np.sort(per_pixel)[-int(np.ceil(0.25 * kept.sum())) :]
    assert value(config, output_of(LOGITS[..., :CLASSES]))[0] == pytest.approx(hardest.mean(), rel=1e-5)


def test_hard_pixels_are_those_above_a_threshold_or_so_many_a_positive():
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


def test_positives_of_a_softmax_are_what_is_not_background():
    kept = LABELS != VOID
    per_pixel = np.asarray(losses.softmax_cross_entropy(LOGITS[..., :CLASSES], LABELS, where=kept))[kept]
    config = config_with(normalizer="positives", background=0)
    expected = per_pixel.sum() / (LABELS != 0)[kept].sum()
    assert value(config, output_of(LOGITS[..., :CLASSES]))[0] == pytest.approx(expected, rel=1e-5)


def test_mined_pixels_are_divided_by_all_positives():
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


@pytest.mark.parametrize("name", [name for name in REGION_LOSSES if name != "none"])
def test_a_region_loss_is_added_over_the_classes_without_void(name):
    kept = LABELS != VOID
    spoilt = config_with(void="class", region=name)
    loss, parts = value(spoilt, output_of(LOGITS), region_weight=3.0)
    assert loss == pytest.approx(parts["pixel_loss"] + 3 * parts["region_loss"], rel=1e-6)
    direct = {
        "lovasz": lambda: losses.lovasz_softmax_loss(LOGITS, np.where(kept, LABELS, 0), where=kept),
        "dice": lambda: losses.dice_loss(LOGITS, LABELS, where=kept, classes=(0, 1, 2)),
        "jaccard": lambda: losses.jaccard_loss(LOGITS, LABELS, where=kept, classes=(0, 1, 2)),
        "generalized_dice": lambda: losses.generalized_dice_loss(LOGITS, LABELS, where=kept, classes=(0, 1, 2)),
    }[name]()
    assert parts["region_loss"] == pytest.approx(float(direct), rel=1e-5)


def test_the_region_loss_of_a_sigmoid_is_that_of_the_rare_class():
    labels = np.where(LABELS == VOID, VOID, LABELS % 2)
    config = config_with(loss="sigmoid_focal", region="dice")
    _, parts = value(config, output_of(LOGITS[..., :1]), labels, num_classes=2)
    p, t = 1 / (1 + np.exp(-LOGITS[..., 0].astype(np.float64))), labels == 1
    kept = labels != VOID
    dice = [1 - 2 * (p * t)[i][kept[i]].sum() / (p + t)[i][kept[i]].sum() for i in range(len(p))]
    assert parts["region_loss"] == pytest.approx(np.mean(dice), rel=1e-5)


def test_void_is_a_class_or_does_not_count():
    labels, where = targets(jnp.asarray(LABELS), CLASSES, "class")
    assert labels.max() == CLASSES
    assert bool(where.all())
    _, where = targets(jnp.asarray(LABELS), CLASSES, "ignore")
    np.testing.assert_array_equal(where, LABELS != VOID)
    assert [num_outputs(config_with(void=void), CLASSES) for void in ("ignore", "class")] == [CLASSES, CLASSES + 1]
    assert num_outputs(config_with(loss="sigmoid_focal"), 2) == 1


def test_factors_are_traced():
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
