"""The budget against its definition pixel by pixel, and how it splits over devices."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from segjax import losses
from segjax.training import gradient_budget as budget
from segjax.training.gradient_budget import EASY, HARD

NAMES = ("background", "debris", "water")


def _batch(outputs):
    rng = np.random.default_rng(0)
    shape = (4, 6, 8)
    labels = rng.integers(0, max(outputs, 2), shape).astype(np.int32)
    logits = (3 * rng.normal(size=(*shape, outputs))).astype(np.float32)
    where = rng.uniform(size=shape) < np.array([1.0, 0.6, 0.1, 0.0]).reshape(4, 1, 1)  # the last image is all void
    return logits, labels, where


def _loss(logits, labels, where):
    """Focal loss: a gradient that is no monotone function of p."""
    if logits.shape[-1] == 1:
        per_pixel = losses.sigmoid_focal_loss(logits[..., 0], labels, gamma=2.0, alpha=0.75, where=where)
    else:
        per_pixel = losses.softmax_focal_loss(logits, labels, gamma=2.0, where=where)
    return losses.mean(per_pixel, where=where)


GRADIENT = jax.jit(jax.grad(_loss))
BUDGET = jax.jit(budget.gradient_budget, static_argnames=("num_classes", "axis_name"))


def _oracle(gradient, logits, labels, where, easy=0.9):
    """A loop over the pixels, in float64."""
    logits = np.asarray(logits, np.float64)
    if logits.shape[-1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=-1)
    sums, counts = np.zeros((logits.shape[-1], 2)), np.zeros((logits.shape[-1], 2), int)
    for i in np.argwhere(where):
        pixel, label = tuple(i), labels[tuple(i)]
        p = np.exp(logits[pixel]) / np.exp(logits[pixel]).sum()
        column = EASY if p[label] > easy else HARD
        sums[label, column] += np.abs(np.asarray(gradient[pixel], np.float64)).sum()
        counts[label, column] += 1
    return sums, counts


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("easy", [0.9, 0.5])
def test_equals_a_loop_over_the_pixels(outputs, easy):
    logits, labels, where = _batch(outputs)
    gradient = GRADIENT(logits, labels, where)
    sums, counts = _oracle(gradient, logits, labels, where, easy)
    got = BUDGET(gradient, logits, labels, num_classes=max(outputs, 2), where=where, easy=easy)
    assert (counts > 0).all()
    np.testing.assert_allclose(got.gradient, sums, rtol=1e-5)
    np.testing.assert_array_equal(got.pixels, counts)
    assert (got.gradient.dtype, got.pixels.dtype) == (jnp.float32, jnp.int32)


def test_one_logit_is_two_logits_with_a_zero():
    logits, labels, where = _batch(1)
    pair = np.concatenate([np.zeros_like(logits), logits], axis=-1)
    one = BUDGET(GRADIENT(logits, labels, where), logits, labels, num_classes=2, where=where)
    two = BUDGET(np.repeat(GRADIENT(logits, labels, where), 2, axis=-1), pair, labels, num_classes=2, where=where)
    np.testing.assert_allclose(2 * one.gradient, two.gradient, rtol=1e-6)
    np.testing.assert_array_equal(one.pixels, two.pixels)


def test_a_fresh_sigmoid_gives_each_class_its_share_of_the_pixels():
    """p = 1/2 everywhere: focal loss scales all pixels alike, so without α a rare class gets what it has of pixels."""
    labels = np.zeros((1, 10, 20), np.int32)
    labels[0, 0, 0] = 1
    logits, all_of_them = np.zeros((1, 10, 20, 1), np.float32), np.ones((1, 10, 20), bool)
    for loss, expected in (
        (lambda z: losses.sigmoid_cross_entropy(z[..., 0], labels), 0.005),
        (lambda z: losses.sigmoid_focal_loss(z[..., 0], labels, gamma=2.0), 0.005),
        (lambda z: losses.sigmoid_focal_loss(z[..., 0], labels, gamma=2.0, alpha=0.75), 0.75 / (0.75 + 199 * 0.25)),
    ):
        gradient = jax.grad(lambda z, loss=loss: losses.mean(loss(z)))(logits)
        got = BUDGET(gradient, logits, labels, num_classes=2, where=all_of_them)
        shares = budget.budget_shares(got.gradient, rare=[1])
        assert shares["rare"] == pytest.approx(expected, rel=1e-5)
        assert shares["easy background"] == 0


# Pixels that do not exist


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(("void", "garbage"), [(255, np.nan), (-1, np.inf), (0, -1e4)])
def test_nothing_that_is_masked_matters(outputs, void, garbage):
    logits, labels, where = _batch(outputs)
    gradient = GRADIENT(logits, labels, where)
    dirty = [np.where(where[..., None], x, garbage).astype(np.float32) for x in (gradient, logits)]
    expected = BUDGET(gradient, logits, labels, num_classes=max(outputs, 2), where=where)
    got = BUDGET(*dirty, np.where(where, labels, void), num_classes=max(outputs, 2), where=where)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_where_broadcasts_and_none_keeps_all():
    logits, labels, _ = _batch(3)
    columns = np.arange(8) < 5
    gradient = GRADIENT(logits, labels, np.broadcast_to(columns, labels.shape))
    sums, counts = _oracle(gradient, logits, labels, np.broadcast_to(columns, labels.shape))
    got = budget.gradient_budget(gradient, logits, labels, num_classes=3, where=columns)
    np.testing.assert_allclose(got.gradient, sums, rtol=1e-5)
    np.testing.assert_array_equal(got.pixels, counts)
    assert int(budget.gradient_budget(gradient, logits, labels, num_classes=3).pixels.sum()) == labels.size


def test_nothing_kept_is_zero():
    logits, labels, where = _batch(3)
    nan = np.full_like(logits, np.nan)
    got = BUDGET(nan, nan, labels, num_classes=3, where=np.zeros_like(where))
    assert not np.any(got.gradient)
    assert not np.any(got.pixels)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("label", [-1, 3, 255])
def test_a_kept_label_that_is_no_class_is_loud(outputs, label):
    logits, labels, where = _batch(outputs)
    gradient, labels = np.asarray(GRADIENT(logits, labels, where)), labels.copy()
    labels[0, 1, 2] = label
    got = BUDGET(gradient, logits, labels, num_classes=max(outputs, 2), where=where)
    assert np.isnan(got.gradient).all()
    assert (np.asarray(got.pixels) == -(2**31)).all()
    assert all(np.isnan(v) for v in budget.budget_scalars(got, NAMES).values())


def test_a_kept_nan_in_the_gradient_is_not_hidden():
    logits, labels, where = _batch(3)
    gradient = np.array(GRADIENT(logits, labels, where))
    gradient[0, 0, 0, 1] = np.nan
    got = BUDGET(gradient, logits, labels, num_classes=3, where=where)
    assert np.isnan(np.asarray(got.gradient)[labels[0, 0, 0]]).sum() == 1
    assert np.isnan(np.asarray(got.gradient)).sum() == 1


# Numbers


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats_are_summed_in_float32(dtype):
    # 4096 pixels of |∂L/∂z| = 1: bfloat16 would stop adding at 256, float16 at 2048.
    ones = jnp.ones((1, 64, 64, 1), dtype)
    got = BUDGET(ones, ones, np.ones((1, 64, 64), np.uint8), num_classes=2)
    assert got.gradient.dtype == jnp.float32
    assert got.gradient.tolist() == [[0, 0], [4096, 0]]


def test_easy_pixels_are_not_lost_beside_hard_ones():
    logits = np.full((8, 512, 512, 1), -12.0, np.float32)
    logits[..., ::2, :] = -1.0
    labels = np.zeros(logits.shape[:-1], np.int32)
    gradient = np.asarray(jax.nn.sigmoid(logits))
    got = BUDGET(gradient, logits, labels, num_classes=2)
    exact = gradient.astype(np.float64)
    np.testing.assert_allclose(got.gradient[0], [exact[..., ::2, :].sum(), exact[..., 1::2, :].sum()], rtol=1e-5)


def test_float64_stays():
    with jax.enable_x64(True):
        logits = np.zeros((2, 3, 1))
        assert budget.gradient_budget(logits, logits, np.zeros((2, 3), int), num_classes=2).gradient.dtype == np.float64


def test_confidence_that_rounds_to_one_is_easy_and_easy_may_be_traced():
    logits = np.array([[[40.0], [400.0], [1e4]]], np.float32)
    got = BUDGET(np.ones_like(logits), logits, np.ones((1, 3), np.int32), num_classes=2, easy=jnp.float32(0.999))
    assert got.pixels.tolist() == [[0, 0], [0, 3]]


# Devices


@pytest.mark.parametrize("mapping", ["pmap", "shard_map", "shard_map unchecked"])
def test_four_devices_are_one(mapping):
    logits, labels, where = _batch(3)
    gradient = GRADIENT(logits, labels, where)
    expected = BUDGET(gradient, logits, labels, num_classes=3, where=where)

    def step(gradient, logits, labels, where):
        """The budget of the gradient that one device would have, and of the one that the global loss has in a map."""

        def loss(z):
            per_pixel = losses.softmax_focal_loss(z, labels, gamma=2.0, where=where)
            return losses.mean(per_pixel, where=where, axis_name="devices")

        common = {"num_classes": 3, "where": where, "axis_name": "devices"}
        return (
            budget.gradient_budget(gradient, logits, labels, **common),
            budget.gradient_budget(jax.grad(loss)(logits), logits, labels, **common),
        )

    batch = (gradient, logits, labels, where)
    if mapping == "pmap":
        every = jax.device_get(jax.pmap(step, axis_name="devices")(*[x.reshape(4, 1, *x.shape[1:]) for x in batch]))
        jax.tree.map(lambda x: np.testing.assert_array_equal(x, np.repeat(x[:1], 4, axis=0)), every)
        given, inside = jax.tree.map(lambda x: x[0], every)
    else:
        mesh = jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
        specs = {"in_specs": (PartitionSpec("devices"),) * 4, "out_specs": PartitionSpec()}
        mapped = jax.shard_map(step, mesh=mesh, check_vma=mapping == "shard_map", **specs)
        given, inside = jax.jit(mapped)(*batch)
    np.testing.assert_allclose(given.gradient, expected.gradient, rtol=1e-5)
    np.testing.assert_array_equal(given.pixels, expected.pixels)
    expected_shares, shares = (budget.budget_scalars(b, "abc") for b in (expected, inside))
    assert shares == pytest.approx(expected_shares, rel=1e-5)


# Host


def test_shares_sum_to_one_and_know_which_classes_are_rare():
    amounts = np.array([[1.0, 3.0], [2.0, 0.5], [1.0, 0.5]])
    assert budget.budget_shares(amounts, rare=[1]) == {
        "easy background": 3.5 / 8,
        "hard background": 2 / 8,
        "rare": 2.5 / 8,
    }
    assert budget.budget_shares(amounts, rare=[1, 2])["rare"] == 4 / 8
    assert sum(budget.budget_shares(np.array([[1, 5], [2, 0]]), rare=[1]).values()) == 1


def test_shares_of_nothing_are_undefined():
    assert all(np.isnan(v) for v in budget.budget_shares(np.zeros((2, 2)), rare=[1]).values())


def test_scalars_are_shares_by_name_and_names_after_the_classes_are_not_read():
    given = budget.GradientBudget(jnp.array([[2.0, 5.0], [1.0, 0.0]]), jnp.array([[1, 98], [1, 0]]))
    assert budget.budget_scalars(given, NAMES) == {
        "budget/background/hard": 0.25,
        "budget/background/easy": 0.625,
        "budget/debris/hard": 0.125,
        "budget/debris/easy": 0.0,
        "budget_pixels/background/hard": 0.01,
        "budget_pixels/background/easy": 0.98,
        "budget_pixels/debris/hard": 0.01,
        "budget_pixels/debris/easy": 0.0,
    }


# Broken arguments


ONE, PAIR, LABELS = np.zeros((2, 3, 1), np.float32), np.zeros((2, 3, 2), np.float32), np.zeros((2, 3), np.int32)

BROKEN = {
    "integer gradient": (
        (LABELS[..., None], ONE, LABELS),
        {},
        TypeError,
        r"gradient must be floating point; got int32",
    ),
    "integer logits": ((ONE, LABELS[..., None], LABELS), {}, TypeError, r"logits must be floating point; got int32"),
    "float labels": ((ONE, ONE, ONE[..., 0]), {}, TypeError, r"labels must be integers; got float32"),
    "another gradient": (
        (PAIR, ONE, LABELS),
        {},
        ValueError,
        r"gradient must have the shape of logits, \(2, 3, 1\); got \(2, 3, 2\)",
    ),
    "labels of another shape": (
        (ONE, ONE, LABELS.T),
        {},
        ValueError,
        r"labels must have the shape of logits without their class axis, \(2, 3\); got \(3, 2\)",
    ),
    "one logit, three classes": (
        (ONE, ONE, LABELS),
        {"num_classes": 3},
        ValueError,
        r"num_classes must be 2 for one logit a pixel, else their number; got 3 for logits of shape \(2, 3, 1\)",
    ),
    "two logits, three classes": ((PAIR, PAIR, LABELS), {"num_classes": 3}, ValueError, r"got 3 for .* \(2, 3, 2\)"),
    "one class": ((ONE, ONE, LABELS), {"num_classes": 1}, ValueError, r"num_classes must be 2 .*; got 1"),
    "no class axis": ((np.float32(1), np.float32(1), np.int32(0)), {}, ValueError, r"got 2 for logits of shape \(\)"),
    "float mask": (
        (ONE, ONE, LABELS),
        {"where": np.ones((2, 3))},
        TypeError,
        r"where must be boolean; got float\d\d of shape \(2, 3\)",
    ),
    "mask of another shape": (
        (ONE, ONE, LABELS),
        {"where": np.ones(2, bool)},
        ValueError,
        r"where must have shape \(2, 3\) or one that broadcasts to it; got \(2,\)",
    ),
    "easy above 1": ((ONE, ONE, LABELS), {"easy": 1.5}, ValueError, r"easy must be between 0 and 1; got 1.5"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_argument_is_named(name):
    arguments, options, error, message = BROKEN[name]
    with pytest.raises(error, match=message):
        inspect.unwrap(budget.gradient_budget)(*arguments, **{"num_classes": 2, **options})


@pytest.mark.parametrize(
    ("amounts", "rare", "message"),
    [
        (np.ones((2, 3)), [1], r"amounts must be \[classes, 2\]; got shape \(2, 3\)"),
        (np.ones(2), [1], r"amounts must be \[classes, 2\]; got shape \(2,\)"),
        (np.ones((2, 2)), [], r"rare must name classes in 0..1, at least one; got \[\]"),
        (np.ones((2, 2)), [2], r"rare must name classes in 0..1, at least one; got \[2\]"),
    ],
)
def test_shares_of_something_else_are_refused(amounts, rare, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(budget.budget_shares)(amounts, rare)


def test_too_few_names_are_refused():
    given = budget.GradientBudget(np.ones((2, 2), np.float32), np.ones((2, 2), np.int32))
    with pytest.raises(ValueError, match=r"names must have one name per class, 2; got \['road'\]"):
        budget.budget_scalars(given, ["road"])


def test_a_traced_budget_is_refused():
    with pytest.raises(TypeError, match="amounts must be known on the host"):
        jax.jit(lambda x: inspect.unwrap(budget.budget_shares)(x, [1])["rare"])(np.ones((2, 2)))
