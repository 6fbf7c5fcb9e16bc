"""The objective against NumPy, in parts and whole; its gradient budget against a loop over the pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
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
    GradientBudget,
    Phase,
    budget_scalars,
    gradient_budget,
    hparams_at,
    hparams_from_config,
    make_objective,
    num_outputs,
    phases,
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
    config = config_with(loss=name)
    kept, _ = value(config, output_of(logits), labels, num_classes=2)
    assert kept > 0
    assert value(config, output_of(with_nan), labels, num_classes=2)[0] == kept


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


@pytest.mark.parametrize("name", [name for name in REGION_LOSSES if name != "none"])
def test_region_loss_is_added_over_the_classes_without_void(name):
    kept = LABELS != VOID
    with_nan = config_with(void="class", region=name)
    loss, parts = value(with_nan, output_of(LOGITS), region_weight=3.0)
    assert loss == pytest.approx(parts["pixel_loss"] + 3 * parts["region_loss"], rel=1e-6)
    direct = {
        "lovasz": lambda: losses.lovasz_softmax_loss(LOGITS, np.where(kept, LABELS, 0), where=kept),
        "dice": lambda: losses.dice_loss(LOGITS, LABELS, where=kept, classes=(0, 1, 2)),
        "jaccard": lambda: losses.jaccard_loss(LOGITS, LABELS, where=kept, classes=(0, 1, 2)),
        "generalized_dice": lambda: losses.generalized_dice_loss(LOGITS, LABELS, where=kept, classes=(0, 1, 2)),
    }[name]()
    assert parts["region_loss"] == pytest.approx(float(direct), rel=1e-5)


def test_region_loss_of_a_binary_loss_is_that_of_class_one():
    labels = np.where(LABELS == VOID, VOID, LABELS % 2)
    config = config_with(loss="sigmoid_focal", region="dice")
    _, parts = value(config, output_of(LOGITS[..., :1]), labels, num_classes=2)
    p, t = 1 / (1 + np.exp(-LOGITS[..., 0].astype(np.float64))), labels == 1
    kept = labels != VOID
    dice = [1 - 2 * (p * t)[i][kept[i]].sum() / (p + t)[i][kept[i]].sum() for i in range(len(p))]
    assert parts["region_loss"] == pytest.approx(np.mean(dice), rel=1e-5)


def test_targets_and_num_outputs_void():
    labels, where = targets(jnp.asarray(LABELS), CLASSES, "class")
    assert labels.max() == CLASSES
    assert bool(where.all())
    _, where = targets(jnp.asarray(LABELS), CLASSES, "ignore")
    np.testing.assert_array_equal(where, LABELS != VOID)
    assert [num_outputs(config_with(void=void), CLASSES) for void in ("ignore", "class")] == [CLASSES, CLASSES + 1]
    assert num_outputs(config_with(loss="sigmoid_focal"), 2) == 1


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


# The gradient budget.

BUDGET = jax.jit(gradient_budget, static_argnames=("easy", "axis_name"))
HARD, EASY = 0, 1


def focal_mean(logits, labels, where, axis_name=None):
    """Returns a loss whose gradient is not a monotone function of p."""
    if logits.shape[-1] == 1:
        pixels = losses.sigmoid_focal_loss(logits[..., 0], labels, gamma=2.0, alpha=0.75, where=where)
    else:
        pixels = losses.softmax_focal_loss(logits, labels, gamma=2.0, where=where)
    return losses.mean(pixels, where=where, axis_name=axis_name)


def budget_batch(outputs):
    """Returns gradient, logits, labels and `where`; the last of four images is all void."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, max(outputs, 2), (4, 6, 8)).astype(np.int32)
    logits = (3 * rng.normal(size=(4, 6, 8, outputs))).astype(np.float32)
    where = rng.uniform(size=labels.shape) < np.array([1.0, 0.6, 0.1, 0.0]).reshape(4, 1, 1)
    return np.asarray(jax.grad(focal_mean)(logits, labels, where)), logits, labels, where


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("easy", [0.9, 0.5])
def test_gradient_budget_equals_a_loop_over_the_pixels(outputs, easy):
    gradient, logits, labels, where = budget_batch(outputs)
    z = np.concatenate([np.zeros_like(logits), logits], axis=-1) if outputs == 1 else logits
    p = softmax(z.astype(np.float64), -1)
    sums, counts = np.zeros((z.shape[-1], 2)), np.zeros((z.shape[-1], 2), int)
    for pixel in map(tuple, np.argwhere(where)):
        column = EASY if p[pixel][labels[pixel]] > easy else HARD
        sums[labels[pixel], column] += np.abs(gradient[pixel].astype(np.float64)).sum()
        counts[labels[pixel], column] += 1
    found = BUDGET(gradient, logits, labels, where=where, easy=easy)
    assert (counts > 0).all()
    np.testing.assert_allclose(found.gradient, sums, rtol=1e-5)
    np.testing.assert_array_equal(found.pixels, counts)
    assert (found.gradient.dtype, found.pixels.dtype) == (jnp.float32, jnp.int32)


@pytest.mark.parametrize(("outputs", "void", "garbage"), [(1, 255, np.nan), (3, -1, np.inf)])
def test_gradient_budget_ignores_masked_pixels(outputs, void, garbage):
    gradient, logits, labels, where = budget_batch(outputs)
    dirty = [np.where(where[..., None], x, garbage).astype(np.float32) for x in (gradient, logits)]
    expected = BUDGET(gradient, logits, labels, where=where)
    jax.tree.map(np.testing.assert_array_equal, BUDGET(*dirty, np.where(where, labels, void), where=where), expected)
    nothing = BUDGET(np.full_like(gradient, np.nan), logits, labels, where=np.zeros_like(where))
    assert not np.any(nothing.gradient)
    assert not np.any(nothing.pixels)


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_gradient_budget_unmasked_label_outside_the_classes_gives_nan(label):
    gradient, logits, labels, where = budget_batch(3)
    labels[0, 1, 2] = label
    found = BUDGET(gradient, logits, labels, where=where)
    assert np.isnan(found.gradient).all()
    assert (np.asarray(found.pixels) == -(2**31)).all()
    assert np.isnan(list(budget_scalars(found, ("a", "b", "c")).values())).all()


def test_gradient_budget_unmasked_nan_stays_in_its_bin():
    gradient, logits, labels, where = budget_batch(3)
    gradient = gradient.copy()
    gradient[0, 0, 0, 1] = np.nan
    found = np.asarray(BUDGET(gradient, logits, labels, where=where).gradient)
    assert np.isnan(found).sum() == np.isnan(found[labels[0, 0, 0]]).sum() == 1


def test_gradient_budget_sums_narrow_and_small_floats_exactly():
    ones = jnp.ones((1, 64, 64, 1), jnp.bfloat16)  # bfloat16 would stop adding at 256
    found = BUDGET(ones, ones, np.ones((1, 64, 64), np.int32), where=np.ones((1, 64, 64), bool))
    assert found.gradient.dtype == jnp.float32
    assert found.gradient.tolist() == [[0, 0], [4096, 0]]
    logits = np.full((8, 512, 512, 1), -12.0, np.float32)
    logits[..., ::2, :] = -1.0
    labels, gradient = np.zeros(logits.shape[:-1], np.int32), np.asarray(jax.nn.sigmoid(logits))
    found = BUDGET(gradient, logits, labels, where=labels == 0)
    exact = gradient.astype(np.float64)
    np.testing.assert_allclose(found.gradient[0], [exact[..., ::2, :].sum(), exact[..., 1::2, :].sum()], rtol=1e-5)


def test_gradient_budget_probability_that_rounds_to_one_is_easy():
    logits = np.array([[[40.0], [400.0], [1e4]]], np.float32)
    found = BUDGET(np.ones_like(logits), logits, np.ones((1, 3), np.int32), where=np.ones((1, 3), bool), easy=0.999)
    assert found.pixels.tolist() == [[0, 0], [0, 3]]


@pytest.mark.parametrize("mapping", ["pmap", "shard_map"])
def test_gradient_budget_four_devices_equal_one(mapping):
    batch = budget_batch(3)
    expected = BUDGET(*batch[:3], where=batch[3])

    def step(gradient, logits, labels, where):
        """Returns the budgets of the given gradient and of the gradient of the global loss inside the map."""
        inside = jax.grad(focal_mean)(logits, labels, where, "devices")
        return tuple(gradient_budget(x, logits, labels, where=where, axis_name="devices") for x in (gradient, inside))

    if mapping == "pmap":
        split = [x.reshape(4, 1, *x.shape[1:]) for x in batch]
        given, inside = jax.tree.map(lambda x: x[0], jax.pmap(step, axis_name="devices")(*split))
    else:
        mesh = jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
        specs = {"in_specs": (PartitionSpec("devices"),) * 4, "out_specs": PartitionSpec()}
        given, inside = jax.jit(jax.shard_map(step, mesh=mesh, check_vma=False, **specs))(*batch)
    np.testing.assert_allclose(given.gradient, expected.gradient, rtol=1e-5)
    np.testing.assert_array_equal(given.pixels, expected.pixels)
    assert budget_scalars(inside, "abc") == pytest.approx(budget_scalars(expected, "abc"), rel=1e-5)


def test_budget_scalars_are_fractions_by_name():
    budget = GradientBudget(jnp.array([[2.0, 5.0], [1.0, 0.0]]), jnp.array([[1, 98], [1, 0]]))
    assert budget_scalars(budget, ("road", "debris", "void")) == {
        "budget/road/hard": 0.25,
        "budget/road/easy": 0.625,
        "budget/debris/hard": 0.125,
        "budget/debris/easy": 0.0,
        "budget_pixels/road/hard": 0.01,
        "budget_pixels/road/easy": 0.98,
        "budget_pixels/debris/hard": 0.01,
        "budget_pixels/debris/easy": 0.0,
    }
    nothing = GradientBudget(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.int32))
    assert np.isnan(list(budget_scalars(nothing, "ab").values())).all()


# Hyperparameters by step.


def test_phases_without_phases_is_one():
    config = defaults()
    config.augment.crop_fraction = 0.75
    assert phases(config) == (Phase(config.training.steps, 0.75, config.optimizer.learning_rate),)


def test_hparams_at_changes_values_only():
    config = defaults()
    config.training.steps, config.training.phases = 6, ((0.6, 3, 1e-3), (0.75, 2, 5e-4), (1.0, 1, 1e-4))
    plan, hparams = phases(config), hparams_from_config(config)
    by_step = [hparams_at(step, hparams, plan) for step in range(1, 7)]
    np.testing.assert_allclose([h.crop_fraction for h in by_step], [0.6, 0.6, 0.6, 0.75, 0.75, 1.0], rtol=1e-6)
    np.testing.assert_allclose([h.learning_rate for h in by_step], [1e-3] * 3 + [5e-4] * 2 + [1e-4], rtol=1e-6)
    assert {jax.tree.structure(h) for h in by_step} == {jax.tree.structure(hparams)}
    assert {leaf.dtype for h in by_step for leaf in jax.tree.leaves(h)} == {jnp.dtype("float32")}
