"""Targets, the gradient budget against a loop over the pixels, and hyperparameters by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from scipy.special import softmax

from segjax import losses
from segjax.data.labels import VOID
from segjax.training import defaults
from segjax.training.objective import (
    GradientBudget,
    Phase,
    budget_scalars,
    gradient_budget,
    hparams_at,
    hparams_from_config,
    phases,
    targets,
)

RNG = np.random.default_rng(0)
CLASSES, SHAPE = 3, (2, 6, 8)
LABELS = RNG.integers(0, CLASSES, SHAPE).astype(np.int32)
LABELS[:, :2, :3] = VOID


def test_targets_void():
    labels, where = targets(jnp.asarray(LABELS), CLASSES, "class")
    assert labels.max() == CLASSES
    assert bool(where.all())
    _, where = targets(jnp.asarray(LABELS), CLASSES, "ignore")
    np.testing.assert_array_equal(where, LABELS != VOID)


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


def test_phases_are_cut_where_the_class_weights_begin():
    config = defaults()
    config.training.steps, config.training.phases = 10, ((0.5, 4, 2e-3), (1.0, 6, 1e-3))
    config.objective.class_weights, config.objective.class_weights_after = (1.0, 3.0), 0.7
    plan, hparams = phases(config), hparams_from_config(config)
    assert plan == (Phase(4, 0.5, 2e-3, False), Phase(7, 1.0, 1e-3, False), Phase(10, 1.0, 1e-3, True))
    weights = [hparams_at(step, hparams, plan).class_weights.tolist() for step in (1, 4, 5, 7, 8, 10)]
    assert weights == [[1.0, 1.0]] * 4 + [[1.0, 3.0]] * 2


def test_phases_are_not_cut_again_where_a_phase_begins():
    config = defaults()
    config.training.steps, config.training.phases = 10, ((0.5, 4, 2e-3), (1.0, 6, 1e-3))
    config.objective.class_weights, config.objective.class_weights_after = (1.0, 3.0), 0.4
    assert phases(config) == (Phase(4, 0.5, 2e-3, False), Phase(10, 1.0, 1e-3, True))


def test_hparams_at_changes_values_only():
    config = defaults()
    config.training.steps, config.training.phases = 6, ((0.6, 3, 1e-3), (0.75, 2, 5e-4), (1.0, 1, 1e-4))
    plan, hparams = phases(config), hparams_from_config(config)
    by_step = [hparams_at(step, hparams, plan) for step in range(1, 7)]
    np.testing.assert_allclose([h.crop_fraction for h in by_step], [0.6, 0.6, 0.6, 0.75, 0.75, 1.0], rtol=1e-6)
    np.testing.assert_allclose([h.learning_rate for h in by_step], [1e-3] * 3 + [5e-4] * 2 + [1e-4], rtol=1e-6)
    assert {jax.tree.structure(h) for h in by_step} == {jax.tree.structure(hparams)}
    assert {leaf.dtype for h in by_step for leaf in jax.tree.leaves(h)} == {jnp.dtype("float32")}
