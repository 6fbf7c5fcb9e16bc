import functools
import inspect
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax import losses

# The paper's pairs (its appendix A), cross entropy itself, and pairs off every symmetry.
PAIRS = ((2.0, 1.0), (4.0, 0.0), (1.0, 0.0), (0.5, -1.5), (5.0, 3.0))
EXTREME = (-1e4, -300.0, -90.0, -17.0, -1.0, 0.0, 1e-3, 1.0, 17.0, 90.0, 300.0, 1e4)
RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(2, 4, 5)) * 3).astype(np.float32)
TARGETS = RNG.integers(0, 2, size=LOGITS.shape).astype(np.int32)
SOFT = RNG.uniform(size=LOGITS.shape).astype(np.float32)
KEEP = RNG.uniform(size=LOGITS.shape) < 0.7


def star_reference(logits, targets, gamma, beta, alpha=None):
    """The appendix's formula, in float64."""
    z, t = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    # -log σ(v) = log(1 + exp(-v)): σ(v) of a confident pixel is no number short of 1, not even in float64.
    positive, negative = (np.logaddexp(0, -(gamma * x + beta)) for x in (z, -z))
    alpha_t = 1.0 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
    return alpha_t * (t * positive + (1 - t) * negative) / gamma


# Compiled once each: γ, β, α and δ are traced.
STAR = jax.jit(lambda z, t, g, b, a: losses.sigmoid_focal_star_loss(z, t, gamma=g, beta=b, alpha=a))
HUBER = jax.jit(lambda p, t, d: losses.huber_loss(p, t, delta=d))


# Parity


@pytest.mark.parametrize(("gamma", "beta"), PAIRS)
@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("targets", [TARGETS, SOFT], ids=["hard", "soft"])
def test_focal_star_equals_the_papers_formula(gamma, beta, alpha, targets):
    expected = star_reference(LOGITS, targets, gamma, beta, alpha)
    np.testing.assert_allclose(STAR(LOGITS, targets, gamma, beta, alpha), expected, rtol=2e-5)
    with jax.enable_x64(True):
        wide = targets.astype(np.float64) if targets is SOFT else targets
        loss = STAR(LOGITS.astype(np.float64), wide, gamma, beta, alpha)
        assert loss.dtype == jnp.dtype("float64")
    np.testing.assert_allclose(loss, expected, rtol=1e-11)


def test_focal_star_carries_its_beta():
    ours = losses.sigmoid_focal_star_loss(LOGITS, TARGETS, gamma=2.0, beta=1.0)
    forgotten = losses.sigmoid_focal_star_loss(LOGITS, TARGETS, gamma=2.0, beta=0.0)
    # Of an easy pixel's loss β = 1 leaves exp(-β), off a hard pixel's it takes β / γ.
    assert np.all(np.asarray(ours) < np.asarray(forgotten))
    one = jnp.int32(1)
    easy, hard = (
        [losses.sigmoid_focal_star_loss(jnp.float32(z), one, gamma=2.0, beta=b) for b in (0.0, 1.0)]
        for z in (8.0, -8.0)
    )
    np.testing.assert_allclose(easy[0] / easy[1], np.e, rtol=1e-5)
    np.testing.assert_allclose(hard[0] - hard[1], 0.5, rtol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("targets", [TARGETS, SOFT], ids=["hard", "soft"])
def test_focal_star_without_focus_is_cross_entropy(targets, jit):
    compiled = jax.jit if jit else lambda f: f
    star = compiled(lambda z: losses.sigmoid_focal_star_loss(z, targets, gamma=1.0, beta=0.0, alpha=0.25))
    cross_entropy = compiled(lambda z: losses.sigmoid_cross_entropy(z, targets, alpha=0.25))
    np.testing.assert_allclose(star(LOGITS), cross_entropy(LOGITS), rtol=1e-6)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32, jnp.bfloat16])
def test_hard_targets_of_every_dtype_give_the_same_bits(dtype):
    for loss in (functools.partial(losses.sigmoid_focal_star_loss, alpha=0.25), losses.hinge_loss):
        np.testing.assert_array_equal(loss(LOGITS, TARGETS.astype(dtype)), loss(LOGITS, TARGETS))


def test_a_confident_pixels_tiny_loss_keeps_its_value():
    true = np.log1p(np.exp(-np.float64(2 * 19.4 + 1))) / 2
    for target in (jnp.int32(1), jnp.float32(1)):
        np.testing.assert_allclose(losses.sigmoid_focal_star_loss(jnp.float32(19.4), target), true, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_hinge_equals_its_formula(dtype):
    expected = np.maximum(0, 1 - np.where(TARGETS == 1, LOGITS, -LOGITS))
    np.testing.assert_array_equal(losses.hinge_loss(LOGITS, TARGETS.astype(dtype)), expected)


def test_hinge_equals_optax():
    # optax takes targets of -1 and 1.
    theirs = optax.hinge_loss(LOGITS, 2.0 * TARGETS.astype(np.float32) - 1)
    np.testing.assert_array_equal(losses.hinge_loss(LOGITS, TARGETS), theirs)


@pytest.mark.parametrize("delta", [0.1, 1.0, 3.0])
def test_huber_equals_optax_in_value_and_gradients(delta):
    ours, theirs = (
        jax.value_and_grad(lambda p, t, f=f: f(p, t, delta=delta).sum(), argnums=(0, 1))(LOGITS, SOFT)
        for f in (losses.huber_loss, optax.huber_loss)
    )
    np.testing.assert_allclose(HUBER(LOGITS, SOFT, delta), optax.huber_loss(LOGITS, SOFT, delta=delta), rtol=1e-6)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5)


def test_huber_at_one_is_smooth_l1():
    error = np.abs(LOGITS - SOFT)
    fast_rcnn = np.where(error < 1, 0.5 * error**2, error - 0.5)
    np.testing.assert_allclose(losses.huber_loss(LOGITS, SOFT), fast_rcnn, rtol=1e-6)


def test_huber_divided_by_delta_is_pytorchs_smooth_l1():
    beta, error = 0.25, np.abs(LOGITS - SOFT)
    pytorch = np.where(error < beta, 0.5 * error**2 / beta, error - 0.5 * beta)
    np.testing.assert_allclose(losses.huber_loss(LOGITS, SOFT, delta=beta) / beta, pytorch, rtol=1e-6)


# Numerics

CURVES = {
    "star 0": lambda z, g, b: losses.sigmoid_focal_star_loss(z, jnp.int32(0), gamma=g, beta=b),
    "star 1": lambda z, g, b: losses.sigmoid_focal_star_loss(z, jnp.int32(1), gamma=g, beta=b),
    "star soft 1": lambda z, g, b: losses.sigmoid_focal_star_loss(z, jnp.float32(1), gamma=g, beta=b),
    "star soft .3": lambda z, g, b: losses.sigmoid_focal_star_loss(z, jnp.float32(0.3), gamma=g, beta=b),
    "hinge 0": lambda z, g, b: losses.hinge_loss(z, jnp.int32(0)),
    "hinge 1": lambda z, g, b: losses.hinge_loss(z, jnp.float32(1)),
    "huber": lambda z, g, b: losses.huber_loss(z, b.astype(z.dtype), delta=g),
}


@functools.cache
def derivatives(curve):
    """(value, first and second derivative by the logit, first by γ or δ and by β) of a curve, for all arguments."""
    f = CURVES[curve]
    functions = f, jax.grad(f), jax.grad(jax.grad(f)), jax.grad(f, argnums=1), jax.grad(f, argnums=2)
    every = jax.vmap(jax.vmap(lambda z, g, b: [h(z, g, b) for h in functions], (0, None, None)), (None, 0, 0))
    return jax.jit(every)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("curve", CURVES)
def test_values_and_two_derivatives_are_finite(curve, dtype):
    value, *rest = derivatives(curve)(jnp.array(EXTREME, dtype), *jnp.array(PAIRS).T)
    assert value.dtype == jnp.float32
    assert np.all(np.asarray(value) >= 0)
    for derivative in (value, *rest):
        assert np.isfinite(np.asarray(derivative, np.float32)).all()


@pytest.mark.parametrize("curve", CURVES)
def test_derivatives_agree_with_central_differences(curve):
    step = 1e-4
    with jax.enable_x64(True):
        # No point lies at a kink: there the hinge, and Huber's second derivative, have two.
        z, (g, b) = np.array([-30.0, -5.0, -1.3, 0.0, 0.6, 3.1, 30.0]), np.array(PAIRS).T
        at, above, below = (jax.device_get(derivatives(curve)(z + s, g, b)) for s in (0, step, -step))
        steeper, flatter = (jax.device_get(derivatives(curve)(z, g + s, b)) for s in (step, -step))
        right, left = (jax.device_get(derivatives(curve)(z, g, b + s)) for s in (step, -step))
    assert at[1].dtype == np.float64
    for i, high, low in (
        (1, above[0], below[0]),
        (2, above[1], below[1]),
        (3, steeper[0], flatter[0]),
        (4, right[0], left[0]),
    ):
        np.testing.assert_allclose(at[i], (high - low) / (2 * step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("gamma", "beta"), PAIRS)
def test_the_focal_star_gradient_is_the_papers(gamma, beta):
    y = 2.0 * TARGETS - 1
    p_star = 1 / (1 + np.exp(-(gamma * y * LOGITS.astype(np.float64) + beta)))
    gradient = jax.grad(lambda z: losses.sigmoid_focal_star_loss(z, TARGETS, gamma=gamma, beta=beta).sum())(LOGITS)
    np.testing.assert_allclose(gradient, y * (p_star - 1), rtol=5e-5, atol=1e-9)


def test_the_hinge_is_flat_from_its_kink_on():
    slope = jax.vmap(jax.grad(lambda z: losses.hinge_loss(z, jnp.int32(1))))(jnp.array([0.999, 1.0, 1.001]))
    np.testing.assert_array_equal(slope, [-1, 0, 0])


def test_huber_is_smooth_at_zero_and_at_delta():
    slope = jax.grad(lambda d: losses.huber_loss(d, jnp.float32(0), delta=2.0))
    points = jnp.array([-2.0, -1e-30, 0.0, 1e-30, 2.0])
    np.testing.assert_array_equal(jax.vmap(slope)(points), points)
    # |d| would have its kink at 0, the target that every good prediction meets.
    np.testing.assert_array_equal(jax.vmap(jax.grad(slope))(points), np.ones(5))


BALANCED = [
    functools.partial(loss, alpha=0.25)
    for loss in (losses.sigmoid_cross_entropy, losses.sigmoid_focal_loss, losses.sigmoid_focal_star_loss)
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("loss", "dtype", "target"),
    [
        *[(losses.huber_loss, dtype, dtype) for dtype in (jnp.float32, jnp.bfloat16)],
        *[(loss, dtype, jnp.int32) for loss in BALANCED for dtype in (jnp.float32, jnp.bfloat16)],
        *[(loss, jnp.float32, jnp.float32) for loss in BALANCED],
    ],
)
def test_a_gradient_needs_no_array_of_its_own(loss, dtype, target, masked):
    shape = (2, 64, 128, 19)
    arguments = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape, target)
    where = {"where": jax.ShapeDtypeStruct(shape, bool)} if masked else {}
    program = jax.jit(jax.value_and_grad(lambda p, t, **where: losses.mean(loss(p, t, **where), **where)))
    needed = program.lower(*arguments, **where).compile().memory_analysis().temp_size_in_bytes
    assert needed < 0.15 * math.prod(shape) * jnp.dtype(dtype).itemsize


@pytest.mark.parametrize("error", [1e4, 1e20, 1e38, np.inf])
def test_a_huge_error_is_linear_and_never_squared(error):
    value, slopes = jax.value_and_grad(losses.huber_loss, argnums=(0, 1))(jnp.float32(-error), jnp.float32(0))
    np.testing.assert_allclose(value, np.float32(error) - np.float32(0.5))
    assert (float(slopes[0]), float(slopes[1])) == (-1, 1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_values_are_widened_first(dtype):
    narrow = jnp.asarray(LOGITS, dtype)
    for f in (losses.sigmoid_focal_star_loss, losses.hinge_loss):
        np.testing.assert_array_equal(f(narrow, TARGETS), f(narrow.astype(jnp.float32), TARGETS))
    huber = losses.huber_loss(narrow, SOFT)
    np.testing.assert_array_equal(huber, losses.huber_loss(narrow.astype(jnp.float32), SOFT))
    assert jax.grad(lambda p: losses.huber_loss(p, SOFT).sum())(narrow).dtype == dtype


def test_the_wider_of_two_dtypes_stays():
    with jax.enable_x64(True):
        assert losses.huber_loss(LOGITS.astype(np.float64), SOFT).dtype == jnp.dtype("float64")
        assert losses.huber_loss(LOGITS, SOFT.astype(np.float64)).dtype == jnp.dtype("float64")


# Pixels that do not exist, and targets that are none

MASKED = {
    "star": lambda z, t, k: losses.sigmoid_focal_star_loss(z, t, where=k, alpha=0.25),
    "star soft": lambda z, t, k: losses.sigmoid_focal_star_loss(z, t.astype(jnp.float32), where=k),
    "hinge": lambda z, t, k: losses.hinge_loss(z, t, where=k),
    "hinge float": lambda z, t, k: losses.hinge_loss(z, t.astype(jnp.float32), where=k),
    "huber": lambda z, t, k: losses.huber_loss(z, t.astype(jnp.float32), where=k),
}

# One compilation each: per pixel, and summed with its gradient.
COMPILED = {name: jax.jit(loss) for name, loss in MASKED.items()}
SUMMED = {
    name: jax.jit(jax.value_and_grad(lambda z, t, k, loss=loss: loss(z, t, k).sum())) for name, loss in MASKED.items()
}


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("void", [255, -1])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_what_is_masked_gives_no_loss_and_no_gradient(name, void, garbage):
    logits = np.where(KEEP, LOGITS, garbage).astype(np.float32)
    value, gradient = SUMMED[name](logits, np.where(KEEP, TARGETS, void).astype(np.int32), KEEP)
    clean, clean_gradient = SUMMED[name](LOGITS, TARGETS, KEEP)
    np.testing.assert_array_equal(value, clean)
    np.testing.assert_array_equal(gradient, clean_gradient)
    assert not np.any(np.asarray(gradient)[~KEEP])


def test_a_masked_nan_among_hubers_targets_reaches_neither_gradient():
    targets = np.where(KEEP, SOFT, np.nan).astype(np.float32)
    gradients = jax.grad(lambda p, t: losses.huber_loss(p, t, where=KEEP).sum(), argnums=(0, 1))(LOGITS, targets)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert not np.any(np.asarray(gradient)[~KEEP])


@pytest.mark.parametrize("name", MASKED)
def test_nothing_kept_is_zero(name):
    value, gradient = SUMMED[name](np.full_like(LOGITS, np.nan), TARGETS, np.zeros_like(KEEP))
    assert value == 0
    assert not np.any(np.asarray(gradient))


@pytest.mark.parametrize("name", [name for name in MASKED if name != "huber"])
@pytest.mark.parametrize("target", [-1, 2, 255])
def test_a_kept_target_that_is_none_gives_nan_loudly(name, target):
    targets, everything = TARGETS.copy(), np.ones_like(KEEP)
    targets[1, 2, 3] = target
    bad = np.zeros_like(KEEP)
    bad[1, 2, 3] = True
    for logits in (LOGITS, LOGITS + 100, LOGITS - 100):  # the hinge is flat on one side
        np.testing.assert_array_equal(np.isnan(COMPILED[name](logits, targets, everything)), bad)
        np.testing.assert_array_equal(np.isnan(SUMMED[name](logits, targets, everything)[1]), bad)


@pytest.mark.parametrize("target", [0.5, -1.0, np.nan])
def test_the_hinge_takes_no_soft_targets(target):
    value, gradient = jax.value_and_grad(losses.hinge_loss)(jnp.float32(3), jnp.float32(target))
    assert np.isnan(value)
    assert np.isnan(gradient)


@pytest.mark.parametrize("name", MASKED)
def test_a_kept_nan_is_not_hidden(name):
    logits, everything = LOGITS.copy(), np.ones_like(KEEP)
    logits[0, 1, 2] = np.nan
    assert np.isnan(COMPILED[name](logits, TARGETS, everything)[0, 1, 2])
    assert np.isnan(SUMMED[name](logits, TARGETS, everything)[1][0, 1, 2])


@pytest.mark.parametrize("mask", [(1, 4, 5), (2, 1, 1), (4, 5), (5,), ()])
def test_a_mask_broadcasts(mask):
    part = np.random.default_rng(1).uniform(size=mask) < 0.5
    for loss in COMPILED.values():
        full = np.broadcast_to(part, LOGITS.shape)
        np.testing.assert_array_equal(loss(LOGITS, TARGETS, part), loss(LOGITS, TARGETS, full))


# Transforms


@chex.assert_max_traces(n=1)
def _traced_means(gamma, beta, delta, alpha):
    star = losses.sigmoid_focal_star_loss(LOGITS, TARGETS, gamma=gamma, beta=beta, alpha=alpha)
    return star.mean(), losses.huber_loss(LOGITS, SOFT, delta=delta).mean()


def test_gamma_beta_delta_and_alpha_are_traced():
    chex.clear_trace_counter()
    compiled = jax.jit(_traced_means)
    for gamma, beta in PAIRS:
        star, huber = compiled(gamma, beta, gamma / 2, 0.25)
        np.testing.assert_allclose(star, star_reference(LOGITS, TARGETS, gamma, beta, 0.25).mean(), rtol=1e-5)
        np.testing.assert_allclose(huber, optax.huber_loss(LOGITS, SOFT, delta=gamma / 2).mean(), rtol=1e-5)


def test_vmap_over_gamma_beta_and_delta():
    gammas, betas = np.array(PAIRS, np.float32).T
    star = jax.vmap(lambda g, b: losses.sigmoid_focal_star_loss(LOGITS, TARGETS, gamma=g, beta=b))(gammas, betas)
    huber = jax.vmap(lambda d: losses.huber_loss(LOGITS, SOFT, delta=d))(gammas)
    for i, (gamma, beta) in enumerate(PAIRS):
        np.testing.assert_allclose(star[i], STAR(LOGITS, TARGETS, gamma, beta, None), rtol=1e-5)
        np.testing.assert_allclose(huber[i], HUBER(LOGITS, SOFT, gamma), rtol=1e-5)


def test_no_gradient_flows_into_class_targets():
    hard = TARGETS.astype(np.float32)
    for gradient in (
        jax.grad(lambda t: losses.sigmoid_focal_star_loss(LOGITS, t).sum())(SOFT),
        jax.grad(lambda t: losses.hinge_loss(LOGITS, t).sum())(hard),
    ):
        assert not np.any(np.asarray(gradient))


# Properties

REAL = st.floats(-50, 50, width=32)


@settings(max_examples=60)
@given(REAL, st.floats(0.125, 8, width=32), REAL, st.floats(0, 1, width=32))
def test_focal_star_is_not_negative_and_falls_as_beta_grows(z, gamma, beta, target):
    low, high = (STAR(jnp.float32(z), jnp.float32(target), gamma, b, None) for b in (beta, beta + 1))
    assert 0 <= high <= low


@settings(max_examples=60)
@given(REAL, REAL, st.floats(0.125, 50, width=32))
def test_huber_is_even_not_negative_and_between_its_two_bounds(prediction, target, delta):
    loss = HUBER(jnp.float32(prediction), jnp.float32(target), delta)
    assert loss == HUBER(jnp.float32(target), jnp.float32(prediction), delta)
    error = abs(np.float32(prediction) - np.float32(target))
    assert 0 <= loss <= min(error**2 / 2, delta * error) * (1 + 1e-5)


def test_a_perfect_prediction_costs_nothing():
    assert not np.any(losses.huber_loss(LOGITS, LOGITS))
    assert not np.any(losses.hinge_loss(2.0 * TARGETS.astype(np.float32) - 1, TARGETS))


@pytest.mark.parametrize(("gamma", "beta"), PAIRS)
def test_falls_as_the_true_class_gains(gamma, beta):
    z = jnp.linspace(-12, 12, 401)
    positive = STAR(z, jnp.ones(401, jnp.int32), gamma, beta, None)
    negative = STAR(-z, jnp.zeros(401, jnp.int32), gamma, beta, None)
    assert np.all(np.diff(positive) < 0)
    np.testing.assert_array_equal(negative, positive)
    assert np.all(np.diff(losses.hinge_loss(z, jnp.ones(401, jnp.int32))) <= 0)


# Broken input: the raw functions, since a user has no import hook and must be told all the same

SHAPE = (
    {"targets": TARGETS[0]},
    ValueError,
    r"targets must have the shape of logits, \(2, 4, 5\); got \(4, 5\)",
)
MASK_OF_LABELS = ({"where": TARGETS}, TypeError, r"where must be boolean; got int32")
MASK_SHAPE = ({"where": np.ones(3, bool)}, ValueError, r"where must have shape \(2, 4, 5\).*got \(3,\)")
INTEGER_LOGITS = ({"logits": TARGETS}, TypeError, r"logits must be floating point; got int32")
BROKEN = {
    "sigmoid_focal_star_loss": {
        "shape": SHAPE,
        "integer logits": INTEGER_LOGITS,
        "mask of labels": MASK_OF_LABELS,
        "mask shape": MASK_SHAPE,
        "gamma 0": ({"gamma": 0.0}, ValueError, r"gamma must be finite and more than 0; got 0$"),
        "negative gamma": ({"gamma": -2}, ValueError, r"gamma must be finite and more than 0; got -2"),
        "infinite gamma": ({"gamma": np.inf}, ValueError, r"gamma must be finite and more than 0; got inf"),
        "nan gamma": ({"gamma": np.nan}, ValueError, r"gamma must be finite and more than 0; got nan"),
        "gamma a class": ({"gamma": np.ones(5)}, ValueError, r"gamma must be a scalar; got shape \(5,\)"),
        "nan beta": ({"beta": np.nan}, ValueError, r"beta must be finite; got nan"),
        "infinite beta": ({"beta": -np.inf}, ValueError, r"beta must be finite; got -inf"),
        "beta a class": ({"beta": np.ones(5)}, ValueError, r"beta must be a scalar; got shape \(5,\)"),
        "alpha": ({"alpha": 1.5}, ValueError, r"alpha must be between 0 and 1; got 1.5"),
    },
    "hinge_loss": {
        "shape": SHAPE,
        "integer logits": INTEGER_LOGITS,
        "mask of labels": MASK_OF_LABELS,
        "mask shape": MASK_SHAPE,
    },
    "huber_loss": {
        "shape": (
            {"targets": SOFT[0]},
            ValueError,
            r"targets must have the shape of predictions, \(2, 4, 5\); got \(4, 5\)",
        ),
        "integer predictions": ({"predictions": TARGETS}, TypeError, r"predictions must be floating point; got int32"),
        "integer targets": ({"targets": TARGETS}, TypeError, r"targets must be floating point; got int32"),
        "mask of labels": MASK_OF_LABELS,
        "mask shape": MASK_SHAPE,
        "delta 0": ({"delta": 0}, ValueError, r"delta must be finite and more than 0; got 0$"),
        "negative delta": ({"delta": -1.0}, ValueError, r"delta must be finite and more than 0; got -1"),
        "delta a pixel": ({"delta": np.ones(5)}, ValueError, r"delta must be a scalar; got shape \(5,\)"),
    },
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in BROKEN for case in BROKEN[name]])
def test_broken_input_is_named(name, case):
    arguments, error, message = BROKEN[name][case]
    loss = inspect.unwrap(getattr(losses, name))
    good = {"predictions": LOGITS, "targets": SOFT} if name == "huber_loss" else {"logits": LOGITS, "targets": TARGETS}
    with pytest.raises(error, match=message):
        loss(**(good | arguments))
