import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax import losses

RNG = np.random.default_rng(0)
MC_LOGITS = RNG.normal(size=(3, 2, 4, 5, 7)).astype(np.float32) * 3
LOGITS = RNG.normal(size=(2, 4, 5, 7)).astype(np.float32) * 3
VARIANCE = RNG.uniform(size=(2, 4, 5)).astype(np.float32)
KEEP = RNG.uniform(size=VARIANCE.shape) < 0.7
BACKGROUND = 6
EXTREME = (-1e4, -300.0, -90.0, -17.0, -1.0, 0.0, 1e-3, 1.0, 17.0, 90.0, 300.0, 1e4)


def variance_reference(mc_logits):
    return np.var(np.asarray(mc_logits, np.float64), axis=0, ddof=1).mean(-1)


def foreground_reference(logits, background):
    """Returns 1 - softmax(logits)[background], as the sum of the other classes' probabilities."""
    logits = np.asarray(logits, np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return np.delete(p, background, axis=-1).sum(-1) / p.sum(-1)


# The whole term, and each half of it, compiled once.
MC_VARIANCE = jax.jit(losses.mc_variance)
PENALTY_OF = jax.jit(losses.uncertainty_penalty, static_argnames="background")
PENALTY = functools.partial(PENALTY_OF, background=BACKGROUND)
UNIFORM, UNIFORM_SLOPE = jax.jit(losses.uniform_cross_entropy), jax.jit(jax.grad(losses.uniform_cross_entropy))


@functools.partial(jax.jit, static_argnames="background")
@functools.partial(jax.value_and_grad, argnums=(0, 1))
def term(mc_logits, logits, keep, background):
    variance = losses.mc_variance(mc_logits, where=keep)
    return losses.mean(losses.uncertainty_penalty(variance, logits, background, where=keep), where=keep)


# Parity


def test_the_recipes_formula():
    # 3 dropout heads and a clean pass, 19 classes and void as the twentieth, C = 100.
    rng = np.random.default_rng(1)
    heads, clean = rng.normal(size=(3, 2, 4, 6, 20)), rng.normal(size=(2, 4, 6, 20)) * 2
    p = np.exp(clean) / np.exp(clean).sum(-1, keepdims=True)
    expected = 100 * (heads.var(axis=0, ddof=1).mean(-1) * (1 - p[..., 19])).mean()
    heads, clean = heads.astype(np.float32), clean.astype(np.float32)
    ours = jax.jit(lambda heads, z: losses.mean(losses.uncertainty_penalty(losses.mc_variance(heads), z, 19)))
    ours = 100 * ours(heads, clean)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize("heads", [2, 3, 10])
def test_variance_equals_numpys_unbiased(heads):
    mc_logits = RNG.normal(size=(heads, 2, 4, 7)).astype(np.float32)
    np.testing.assert_allclose(MC_VARIANCE(mc_logits), variance_reference(mc_logits), rtol=1e-5)


@pytest.mark.parametrize("offset", [1e2, 1e4, -1e6])
def test_logits_far_from_zero_keep_the_digits_of_their_variance(offset):
    far = (np.float32(offset) + MC_LOGITS).astype(np.float32)
    np.testing.assert_allclose(MC_VARIANCE(far), variance_reference(far), rtol=2e-6)
    textbook = (far**2).mean(0) - far.mean(0) ** 2
    if abs(offset) >= 1e4:
        assert not np.allclose(1.5 * textbook.mean(-1), variance_reference(far), rtol=0.1)


@pytest.mark.parametrize("background", [0, 3, np.int64(6)])
def test_penalty_equals_its_formula(background):
    ours = PENALTY_OF(VARIANCE, LOGITS, background=background)
    np.testing.assert_allclose(ours, VARIANCE * foreground_reference(LOGITS, background), rtol=1e-5)


def test_a_tiny_foreground_keeps_its_value():
    logits = jnp.array([30.0, 0.0])
    assert 1 - jax.nn.softmax(logits)[0] == 0
    ours = PENALTY_OF(jnp.float32(1), logits, background=0)
    np.testing.assert_allclose(ours, foreground_reference(logits, 0), rtol=1e-5)


def test_penalty_without_background_is_the_variance_and_ignores_the_logits():
    nothing = np.full_like(LOGITS, np.nan)
    np.testing.assert_array_equal(PENALTY_OF(VARIANCE, nothing, background=None), VARIANCE)
    total = jax.grad(lambda v, z: losses.uncertainty_penalty(v, z, None).sum(), argnums=(0, 1))
    to_variance, to_logits = jax.jit(total)(VARIANCE, nothing)
    np.testing.assert_array_equal(to_variance, np.ones_like(VARIANCE))
    assert not np.any(np.asarray(to_logits))


def test_one_logit_per_pixel_is_enough_without_background():
    ours = PENALTY_OF(VARIANCE, LOGITS[..., :1], background=None)
    np.testing.assert_array_equal(ours, VARIANCE)


def test_the_analytic_variance_is_averaged_over_the_classes_first():
    # The analytic variance per class, and many heads drawn with that variance.
    per_class = np.random.default_rng(2).uniform(0.5, 2, size=(4, 7)).astype(np.float32)
    noise = np.random.default_rng(3).normal(size=(4000, 4, 7)).astype(np.float32)
    analytic = PENALTY(per_class.mean(-1), LOGITS[0, 0, :4])
    sampled = MC_VARIANCE(LOGITS[:1, 0, :4] + noise * np.sqrt(per_class)[None])
    sampled = PENALTY(sampled, LOGITS[0, 0, :4])
    np.testing.assert_allclose(sampled, analytic, rtol=0.05)


# Numerics


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_logits_are_widened_first(dtype):
    heads, logits = jnp.asarray(MC_LOGITS, dtype), jnp.asarray(LOGITS, dtype)
    variance = MC_VARIANCE(heads)
    np.testing.assert_array_equal(variance, MC_VARIANCE(heads.astype(jnp.float32)))
    penalty = PENALTY_OF(variance.astype(dtype), logits, background=0)
    assert variance.dtype == penalty.dtype == jnp.float32


def test_float64_stays():
    with jax.enable_x64(True):
        variance = MC_VARIANCE(MC_LOGITS.astype(np.float64))
        penalty = PENALTY_OF(VARIANCE, LOGITS.astype(np.float64), background=0)
        assert variance.dtype == penalty.dtype == jnp.dtype("float64")
    np.testing.assert_allclose(variance, variance_reference(MC_LOGITS), rtol=1e-12)


def test_heads_that_agree_have_no_variance_and_no_gradient():
    agreed = np.broadcast_to(LOGITS * np.float32(1000.1), MC_LOGITS.shape)
    value, gradient = jax.jit(jax.value_and_grad(lambda z: losses.mc_variance(z).sum()))(agreed)
    assert value == 0
    assert not np.any(np.asarray(gradient))


def test_the_gradient_of_the_variance_is_twice_the_deviation():
    gradient = jax.jit(jax.grad(lambda z: losses.mc_variance(z).sum()))(MC_LOGITS)
    deviations = MC_LOGITS - MC_LOGITS.mean(0, keepdims=True)
    np.testing.assert_allclose(gradient, 2 * deviations / (2 * 7), rtol=1e-5, atol=1e-6)


def test_gradient_flows_through_the_variance_and_through_the_logits():
    # A step against the gradient lowers the variance, and raises the background's logit where there is variance.
    _, (to_heads, to_logits) = term(MC_LOGITS, LOGITS, np.ones_like(KEEP), background=BACKGROUND)
    assert np.all(np.asarray(to_heads).any(axis=(0, -1)))
    assert np.all(np.asarray(to_logits)[..., BACKGROUND] < 0)
    _, (_, to_logits) = term(MC_LOGITS, LOGITS, np.ones_like(KEEP), background=None)
    assert not np.any(np.asarray(to_logits))


def _one_pixel(shift, head, logit):
    heads = jnp.stack([jnp.stack([shift + head, logit]), jnp.stack([shift, head])])
    variance = losses.mc_variance(heads)
    return losses.uncertainty_penalty(variance, jnp.stack([logit, jnp.zeros_like(logit), head]), 0)


@functools.cache
def derivatives(argument):
    """Returns (value, first and second derivative by one of the three arguments) of one pixel's term, compiled."""
    first = jax.grad(_one_pixel, argnums=argument)
    functions = _one_pixel, first, jax.grad(first, argnums=argument)
    return jax.jit(jax.vmap(jax.vmap(lambda *x: [f(*x) for f in functions], (None, 0, None)), (None, None, 0)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("argument", [0, 1, 2])
def test_values_and_two_derivatives_are_finite(argument, dtype):
    points = jnp.array(EXTREME, dtype)
    value, first, second = derivatives(argument)(jnp.asarray(1.5, dtype), points, points)
    assert value.dtype == jnp.float32
    assert np.all(np.asarray(value) >= 0)
    for each in (value, first, second):
        assert np.isfinite(np.asarray(each, np.float32)).all()


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_derivatives_agree_with_central_differences(argument):
    step = 1e-4
    with jax.enable_x64(True):
        arguments = [np.float64(0.3), np.array([-5.0, 0.0, 0.7, 20.0]), np.array([-30.0, -1.0, 0.0, 2.0, 20.0])]
        moved = [[x + s * (i == argument) for i, x in enumerate(arguments)] for s in (0, step, -step)]
        at, above, below = (jax.device_get(derivatives(argument)(*x)) for x in moved)
    for i in (1, 2):
        np.testing.assert_allclose(at[i], (above[i - 1] - below[i - 1]) / (2 * step), rtol=1e-6, atol=1e-6)


# Masks


@pytest.mark.parametrize("background", [BACKGROUND, None])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_masked_pixels_have_no_loss_and_no_gradient(background, garbage):
    dirty_heads = np.where(KEEP[None, ..., None], MC_LOGITS, garbage).astype(np.float32)
    dirty_logits = np.where(KEEP[..., None], LOGITS, garbage).astype(np.float32)
    dirty = term(dirty_heads, dirty_logits, KEEP, background=background)
    clean = term(MC_LOGITS, LOGITS, KEEP, background=background)
    chex.assert_trees_all_equal(dirty, clean)
    to_heads, to_logits = map(np.asarray, dirty[1])
    assert not to_heads[:, ~KEEP].any()
    assert not to_logits[~KEEP].any()


@pytest.mark.parametrize("background", [BACKGROUND, None])
def test_a_masked_variance_may_be_nan(background):
    penalty = functools.partial(losses.uncertainty_penalty, logits=LOGITS, background=background, where=KEEP)
    both = jax.jit(lambda v: (penalty(v), jax.grad(lambda v: penalty(v).sum())(v)))
    chex.assert_trees_all_equal(both(np.where(KEEP, VARIANCE, np.nan).astype(np.float32)), both(VARIANCE))


@pytest.mark.parametrize("background", [BACKGROUND, None])
def test_an_empty_mask_gives_zero(background):
    nothing = np.full_like(MC_LOGITS, np.nan)
    value, gradients = term(nothing, nothing[0], np.zeros_like(KEEP), background=background)
    assert value == 0
    assert not any(np.asarray(gradient).any() for gradient in gradients)


def test_an_unmasked_nan_gives_nan():
    heads, logits, variance = MC_LOGITS.copy(), LOGITS.copy(), VARIANCE.copy()
    heads[1, 0, 1, 2, 3] = logits[1, 2, 3, 4] = variance[0, 0, 0] = np.nan
    assert np.isnan(MC_VARIANCE(heads)[0, 1, 2])
    np.testing.assert_array_equal(np.argwhere(np.isnan(PENALTY(variance, logits))), [[0, 0, 0], [1, 2, 3]])


@pytest.mark.parametrize("mask", [(1, 4, 5), (2, 1, 1), (4, 5), (5,), ()])
def test_a_mask_broadcasts(mask):
    part = np.random.default_rng(1).uniform(size=mask) < 0.5
    full = np.broadcast_to(part, VARIANCE.shape)
    np.testing.assert_array_equal(PENALTY(VARIANCE, LOGITS, where=part), PENALTY(VARIANCE, LOGITS, where=full))
    np.testing.assert_array_equal(MC_VARIANCE(MC_LOGITS, where=part), MC_VARIANCE(MC_LOGITS, where=full))


# Transforms


@chex.assert_max_traces(n=1)
def _weighted_term(weight, heads):
    return weight * losses.mean(losses.uncertainty_penalty(losses.mc_variance(heads), LOGITS, 0))


def test_the_recipes_factor_is_traced_and_vmaps():
    chex.clear_trace_counter()
    compiled = jax.jit(_weighted_term)
    one_by_one = [compiled(np.float32(c), MC_LOGITS) for c in (0.0, 1.0, 100.0)]
    expected = (variance_reference(MC_LOGITS) * foreground_reference(LOGITS, 0)).mean()
    np.testing.assert_allclose(one_by_one, [0, expected, 100 * expected], rtol=1e-5)


# Properties

LOGIT = st.floats(-100, 100, width=32)


@settings(max_examples=60)
@given(st.lists(LOGIT, min_size=6, max_size=6), LOGIT, st.permutations(range(3)))
def test_mc_variance_is_invariant_to_order_offset_and_sign(values, offset, order):
    heads = np.array(values, np.float32).reshape(3, 1, 2)
    variance = MC_VARIANCE(heads)[0]
    assert variance >= 0
    tolerance = {"rtol": 1e-4, "atol": 1e-3}
    np.testing.assert_allclose(MC_VARIANCE(heads[np.array(order)])[0], variance, **tolerance)
    np.testing.assert_allclose(MC_VARIANCE(heads + np.float32(offset))[0], variance, **tolerance)
    np.testing.assert_allclose(MC_VARIANCE(-heads)[0], variance, **tolerance)


@settings(max_examples=60)
@given(st.floats(0, 1000, width=32), st.lists(LOGIT, min_size=7, max_size=7), st.floats(0.5, 50, width=32))
def test_penalty_is_at_most_the_variance_and_falls_as_background_gains(variance, logits, gain):
    logits = np.array(logits, np.float32)
    gained = logits + np.float32(gain) * (np.arange(7) == BACKGROUND).astype(np.float32)
    penalty, less = (PENALTY(np.float32(variance), z) for z in (logits, gained))
    assert 0 <= less <= penalty <= variance


# Errors of the undecorated functions: a user has no import hook

BROKEN_VARIANCE = {
    "one head": (
        {"mc_logits": MC_LOGITS[:1]},
        ValueError,
        r"mc_logits must hold at least 2 heads, since the unbiased variance divides by heads - 1; "
        r"got 1 \(shape \(1, 2, 4, 5, 7\)\)",
    ),
    "no head": ({"mc_logits": MC_LOGITS[:0]}, ValueError, r"mc_logits must hold at least 2 heads.*; got 0"),
    "no class axis": ({"mc_logits": np.ones(3, np.float32)}, ValueError, r"\[heads, ..., classes\].*got shape \(3,\)"),
    "no class": ({"mc_logits": MC_LOGITS[..., :0]}, ValueError, r"\[heads, ..., classes\].*got shape .*0\)"),
    "integers": ({"mc_logits": np.ones((3, 7), np.int32)}, TypeError, r"mc_logits must be floating point; got int32"),
    "mask of labels": ({"where": KEEP * 1}, TypeError, r"where must be boolean; got int"),
    "mask of heads": (
        {"where": np.ones((3, 2, 4, 5), bool)},
        ValueError,
        r"where must have shape \(2, 4, 5\).*got \(3, 2, 4, 5\)",
    ),
}
BROKEN_PENALTY = {
    "background above": ({"background": 7}, ValueError, r"background must be a class index in \[0, 7\); got 7"),
    "background below": ({"background": -1}, ValueError, r"background must be a class index in \[0, 7\); got -1"),
    "background a float": (
        {"background": 6.0},
        TypeError,
        r"background must be a class index, an integer known at compile time, or None; got 6.0",
    ),
    "one class": ({"logits": LOGITS[..., :1], "background": 0}, ValueError, r"at least 2 classes .* background; got 1"),
    "scalar logits": ({"logits": np.float32(1)}, ValueError, r"logits must be \[..., classes\].*got a scalar"),
    "variance of classes": (
        {"variance": LOGITS},
        ValueError,
        r"variance must have one value per pixel, shape \(2, 4, 5\); got one per class, .*7\): .*variance.mean\(-1\)",
    ),
    "variance shape": (
        {"variance": VARIANCE[0]},
        ValueError,
        r"variance must have the shape of logits without their class axis, \(2, 4, 5\); got \(4, 5\)",
    ),
    "integer variance": (
        {"variance": KEEP.astype(np.int32)},
        TypeError,
        r"variance must be floating point; got int32",
    ),
    "integer logits": ({"logits": LOGITS.astype(int)}, TypeError, r"logits must be floating point; got int32"),
    "mask of labels": ({"where": KEEP * 1}, TypeError, r"where must be boolean; got int"),
    "mask shape": ({"where": np.ones(3, bool)}, ValueError, r"where must have shape \(2, 4, 5\).*got \(3,\)"),
}


@pytest.mark.parametrize("case", BROKEN_VARIANCE)
def test_broken_heads_are_named(case):
    arguments, error, message = BROKEN_VARIANCE[case]
    with pytest.raises(error, match=message):
        inspect.unwrap(losses.mc_variance)(**({"mc_logits": MC_LOGITS} | arguments))


@pytest.mark.parametrize("case", BROKEN_PENALTY)
def test_broken_penalties_are_named(case):
    arguments, error, message = BROKEN_PENALTY[case]
    good = {"variance": VARIANCE, "logits": LOGITS, "background": BACKGROUND}
    with pytest.raises(error, match=message):
        inspect.unwrap(losses.uncertainty_penalty)(**(good | arguments))


def test_a_traced_background_is_named():
    penalty = inspect.unwrap(losses.uncertainty_penalty)
    with pytest.raises(TypeError, match="background must be a class index, an integer known at compile time"):
        jax.jit(penalty)(VARIANCE, LOGITS, BACKGROUND)


# Outlier exposure


def test_uniform_cross_entropy_equals_its_formula():
    logits = np.asarray(30 * LOGITS, np.float64)
    log_p = logits - scipy.special.logsumexp(logits, axis=-1, keepdims=True)
    np.testing.assert_allclose(UNIFORM(30 * LOGITS), -log_p.mean(-1), rtol=2e-6)


def test_uniform_cross_entropy_is_least_and_flat_at_equal_logits():
    logits = jnp.full((3, 5), 7.0)
    loss, gradient = jax.jit(jax.value_and_grad(lambda z: losses.uniform_cross_entropy(z).sum()))(logits)
    np.testing.assert_allclose(loss, 3 * np.log(5), rtol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


@pytest.mark.parametrize("value", EXTREME)
def test_uniform_cross_entropy_gradient_is_finite(value):
    gradient = UNIFORM_SLOPE(np.array([value, 0, 1], np.float32))
    p = scipy.special.softmax(np.array([value, 0.0, 1.0]))
    np.testing.assert_allclose(gradient, p - 1 / 3, atol=1e-6)


@pytest.mark.parametrize("margin", [0.0, 2.5, 10.0])
def test_logit_margin_penalty_equals_its_formula(margin):
    logits = LOGITS.astype(np.float64)
    expected = np.maximum(logits.max(-1, keepdims=True) - logits - margin, 0).mean(-1)
    np.testing.assert_allclose(losses.logit_margin_penalty(LOGITS, margin=margin), expected, rtol=1e-5, atol=1e-6)


def test_logit_margin_penalty_is_0_and_flat_within_the_margin():
    within, beyond = np.array([[6.0, 0.0, -3.0], [6.0, 0.0, -7.0]], np.float32)
    slope = jax.jit(jax.grad(losses.logit_margin_penalty))
    for logits, expected in ((within, [0, 0, 0]), (beyond, [1 / 3, 0, -1 / 3])):
        np.testing.assert_allclose(slope(logits), expected, rtol=1e-6)


def test_logit_margin_penalty_refuses_a_negative_margin():
    with pytest.raises(ValueError, match="margin must be at least 0; got -1"):
        losses.logit_margin_penalty(LOGITS, margin=-1.0)


# Average calibration error

LABELS = RNG.integers(0, 5, size=KEEP.shape).astype(np.int32)  # of seven classes, two without a pixel


def calibration_reference(p, t, keep, num_bins, over_batch=False):
    """Returns the loss per image and class as cai4cai/ACE-DLIRIS has it, hardl1ace.py, with a mask, in float64.

    `searchsorted` is `torch.bucketize` with `right=False`.
    """
    boundaries = np.linspace(0, 1 + np.finfo(np.float32).eps, num_bins + 1)
    if over_batch:
        p, t, keep = (x.reshape(1, -1, x.shape[-1]) for x in (p, t, keep))
    found = np.full((len(p), p.shape[-1]), np.nan)
    for b, c in np.ndindex(found.shape):
        kept = keep[b, ..., c]
        index = np.searchsorted(boundaries[1:], p[b, ..., c][kept])
        error = (p - t)[b, ..., c][kept]
        found[b, c] = np.mean([abs(error[index == m].mean()) for m in np.unique(index)])
    return found


@pytest.mark.parametrize("num_bins", [1, 7, 20])
@pytest.mark.parametrize("over_batch", [False, True])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_average_calibration_loss_equals_the_authors(num_bins, over_batch, activation):
    z = LOGITS.astype(np.float64)
    p = scipy.special.softmax(z, axis=-1) if activation == "softmax" else scipy.special.expit(z)
    t = np.eye(7)[LABELS]
    keep = np.broadcast_to(KEEP[..., None], p.shape)
    expected = calibration_reference(p, t, keep, num_bins, over_batch)
    options = {"num_bins": num_bins, "where": KEEP, "over_batch": over_batch, "activation": activation}
    labels = LABELS if activation == "softmax" else t.astype(bool)
    loss = jax.jit(lambda z: losses.average_calibration_loss(z, labels, **options))
    np.testing.assert_allclose(loss(LOGITS), expected.mean(), rtol=1e-5)
    weights = np.array([0, 1, 2, 3, 0, 1, 5.0])
    weighted = jax.jit(lambda z: losses.average_calibration_loss(z, labels, class_weights=weights, **options))
    np.testing.assert_allclose(weighted(LOGITS), np.average(expected.mean(0), weights=weights), rtol=1e-5)
    chosen = jax.jit(lambda z: losses.average_calibration_loss(z, labels, classes=(5, 1), **options))
    np.testing.assert_allclose(chosen(LOGITS), expected[:, [5, 1]].mean(), rtol=1e-5)


def test_average_calibration_loss_of_calibrated_probabilities_is_zero():
    p = jnp.array([0.25, 0.25, 0.25, 0.25, 0.5, 0.5]).reshape(1, 6, 1)
    labels = jnp.array([1, 0, 0, 0, 1, 0]).reshape(1, 6, 1)
    loss = jax.jit(lambda z: losses.average_calibration_loss(z, labels, activation="sigmoid"))
    np.testing.assert_allclose(loss(jax.scipy.special.logit(p)), 0, atol=1e-7)
    np.testing.assert_allclose(loss(jax.scipy.special.logit(p + 0.2)), 0.2, rtol=1e-5)


def test_average_calibration_loss_gradient_is_the_sign_of_the_error_per_bin():
    labels = np.array([1, 1, 0, 0]).reshape(1, 4, 1)
    p = np.array([0.31, 0.32, 0.33, 0.81]).reshape(1, 4, 1)  # a bin of 2/3 positives, and one of none
    z = np.log(p / (1 - p)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda z: losses.average_calibration_loss(z, labels, activation="sigmoid")))(z)
    expected = np.array([-1 / 3, -1 / 3, -1 / 3, 1]).reshape(p.shape) / 2 * p * (1 - p)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_average_calibration_loss_derivatives_are_finite(dtype):
    logits = jnp.asarray(RNG.choice(EXTREME, size=(20, 1, 2, 2)), dtype)

    def loss(z):
        return losses.average_calibration_loss(z, jnp.array([[0, 1]]))

    results = jax.jit(jax.vmap(lambda z: (loss(z), jax.grad(loss)(z), jax.hessian(loss)(z))))(logits)
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(results))


@pytest.mark.parametrize("num_bins", [0, 2.0, True])
def test_average_calibration_loss_refuses_a_number_of_bins(num_bins):
    with pytest.raises(ValueError, match=rf"num_bins must be an integer of at least 1; got {num_bins}"):
        inspect.unwrap(losses.average_calibration_loss)(LOGITS, LABELS, num_bins=num_bins)
