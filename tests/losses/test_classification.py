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

GAMMAS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
# (γ, β) of FL*: the paper's two, cross entropy, and two without symmetry.
PAIRS = ((2.0, 1.0), (4.0, 0.0), (1.0, 0.0), (0.5, -1.5), (5.0, 3.0))
EXTREME = (-1e4, -300.0, -90.0, -17.0, -1.0, 0.0, 1e-3, 1.0, 17.0, 90.0, 300.0, 1e4)
RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(2, 4, 5, 7)) * 3).astype(np.float32)
LABELS = RNG.integers(0, 7, size=(2, 4, 5)).astype(np.int32)
TARGETS = RNG.integers(0, 2, size=LOGITS.shape).astype(np.int32)
SOFT = RNG.uniform(size=LOGITS.shape).astype(np.float32)
MIXED = np.asarray(jax.nn.softmax(SOFT * 4))  # distributions over the classes
KEEP = RNG.uniform(size=LABELS.shape) < 0.7
EVERY = np.ones_like(KEEP)


def softmax_reference(logits, labels, gamma=0.0, alpha=None):
    """Returns the textbook's formula in float64."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    p_t = np.take_along_axis(p, labels[..., None], -1)[..., 0]
    return (1.0 if alpha is None else np.asarray(alpha)[labels]) * (1 - p_t) ** gamma * -np.log(p_t)


def sigmoid_reference(logits, targets, gamma=0.0, alpha=None):
    """Returns the textbook's formula in float64."""
    t, p = np.asarray(targets, np.float64), 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    alpha_t = 1.0 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
    p_t = t * p + (1 - t) * (1 - p)
    return alpha_t * (1 - p_t) ** gamma * -(t * np.log(p) + (1 - t) * np.log(1 - p))


def star_reference(logits, targets, gamma, beta, alpha=None):
    """Returns the formula with both terms weighted, in float64, with -log σ(v) = log(1 + exp(-v))."""
    z, t = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    positive, negative = (np.logaddexp(0, -(gamma * x + beta)) for x in (z, -z))
    alpha_t = 1.0 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
    return alpha_t * (t * positive + (1 - t) * negative) / gamma


def soft_reference(logits, t, gamma=0.0, alpha=1.0):
    """Returns -Σ α_j t_j (1 - p_j)^γ log p_j in float64, class by class."""
    p = np.exp(np.asarray(logits, np.float64))
    p /= p.sum(-1, keepdims=True)
    return sum(
        -np.broadcast_to(alpha, 7)[j] * t[..., j] * (1 - p[..., j]) ** gamma * np.log(p[..., j]) for j in range(7)
    )


def poly1_reference(p_t, epsilon, gamma):
    """Returns the paper's series Σ (1 - p_t)^(j + γ) / j in float64, with ε added to its first coefficient."""
    j = np.arange(1, 20001, dtype=np.float64)
    coefficients = 1 / j + np.where(j == 1, epsilon, 0)
    return np.array([coefficients @ (1 - p) ** (j + gamma) for p in p_t])


def distribution(labels):
    """Returns labels smoothed to a distribution over the classes; not one for a label that is not a class."""
    return 0.75 * jax.nn.one_hot(labels, 7) + 0.25 / 7


# Compiled once each: γ, β, α and δ are traced.
SOFTMAX_FOCAL = jax.jit(lambda z, y, gamma, alpha: losses.softmax_focal_loss(z, y, gamma=gamma, alpha=alpha))
SIGMOID_FOCAL = jax.jit(lambda z, t, gamma, alpha: losses.sigmoid_focal_loss(z, t, gamma=gamma, alpha=alpha))
SOFTMAX_POLY1 = jax.jit(lambda z, y, e, g, a: losses.softmax_poly1_loss(z, y, epsilon=e, gamma=g, alpha=a))
SIGMOID_POLY1 = jax.jit(lambda z, t, e, g, a: losses.sigmoid_poly1_loss(z, t, epsilon=e, gamma=g, alpha=a))
STAR = jax.jit(lambda z, t, g, b, a: losses.sigmoid_focal_star_loss(z, t, gamma=g, beta=b, alpha=a))
HUBER = jax.jit(lambda p, t, d: losses.huber_loss(p, t, delta=d))


# Parity with optax, the textbook and the papers


def test_softmax_cross_entropy_equals_optax():
    ours = losses.softmax_cross_entropy(LOGITS, LABELS)
    theirs = optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_label_smoothing_equals_optax(smoothing):
    ours = losses.softmax_cross_entropy(LOGITS, LABELS, label_smoothing=smoothing)
    one_hot = jax.nn.one_hot(LABELS, 7)
    theirs = optax.softmax_cross_entropy(LOGITS, optax.smooth_labels(one_hot, smoothing))
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def test_class_weights_weight_each_class_of_the_smoothed_sum():
    weights = np.linspace(0, 2, 7, dtype=np.float32)
    ours = losses.softmax_cross_entropy(LOGITS, LABELS, class_weights=weights, label_smoothing=0.1)
    each = -np.asarray(jax.nn.log_softmax(LOGITS)) * weights.reshape(1, 1, 1, 7)
    own = np.take_along_axis(each, LABELS[..., None], -1)[..., 0]
    np.testing.assert_allclose(ours, 0.9 * own + 0.1 * each.mean(-1), rtol=2e-5, atol=1e-6)


def test_traced_label_smoothing_of_zero_equals_none():
    traced = jax.jit(lambda s: losses.softmax_cross_entropy(LOGITS, LABELS, label_smoothing=s))(0.0)
    np.testing.assert_array_equal(traced, jax.jit(lambda: losses.softmax_cross_entropy(LOGITS, LABELS))())


@pytest.mark.parametrize("targets", [TARGETS, SOFT], ids=["hard", "soft"])
def test_sigmoid_focal_loss_equals_optax(targets):
    for gamma in GAMMAS:
        for alpha in (None, 0.25):
            with jax.numpy_dtype_promotion("standard"):
                theirs = optax.sigmoid_focal_loss(LOGITS, targets.astype(np.float32), alpha=alpha, gamma=gamma)
            # optax forms 1 - p_t in float32 and so keeps fewer digits of a confident pixel.
            np.testing.assert_allclose(SIGMOID_FOCAL(LOGITS, targets, gamma, alpha), theirs, rtol=1e-4, atol=2e-6)


def test_focal_losses_equal_the_textbook():
    weights = np.linspace(0.1, 1, 7)
    logits, soft = LOGITS.astype(np.float64), SOFT.astype(np.float64)
    for gamma in GAMMAS:
        with jax.enable_x64(True):
            softmax = SOFTMAX_FOCAL(logits, LABELS, gamma, weights)
            hard_loss = SIGMOID_FOCAL(logits, TARGETS, gamma, 0.25)
            soft_loss = SIGMOID_FOCAL(logits, soft, gamma, 0.25)
            assert {x.dtype for x in (softmax, hard_loss, soft_loss)} == {jnp.dtype("float64")}
        np.testing.assert_allclose(softmax, softmax_reference(LOGITS, LABELS, gamma, weights), rtol=1e-9)
        np.testing.assert_allclose(hard_loss, sigmoid_reference(LOGITS, TARGETS, gamma, 0.25), rtol=1e-9)
        np.testing.assert_allclose(soft_loss, sigmoid_reference(LOGITS, SOFT, gamma, 0.25), rtol=1e-9)


# Distributions over the classes


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_a_distribution_equals_its_formula_and_optax(smoothing):
    weights = np.linspace(0, 2, 7, dtype=np.float32)
    expected = soft_reference(LOGITS, 0.9 * MIXED + 0.1 / 7 if smoothing else MIXED, alpha=weights)
    ours = losses.softmax_cross_entropy(LOGITS, MIXED, class_weights=weights, label_smoothing=smoothing)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    if not smoothing:
        theirs = optax.softmax_cross_entropy(LOGITS, MIXED)
        np.testing.assert_allclose(losses.softmax_cross_entropy(LOGITS, MIXED), theirs, rtol=1e-5)


def test_focal_loss_of_a_distribution_equals_its_formula():
    weights = np.linspace(0.1, 1, 7)
    with jax.enable_x64(True):
        ours = [SOFTMAX_FOCAL(LOGITS.astype(np.float64), MIXED.astype(np.float64), g, weights) for g in GAMMAS]
    for loss, gamma in zip(ours, GAMMAS, strict=True):
        exact = MIXED.astype(np.float64)
        np.testing.assert_allclose(loss, soft_reference(LOGITS, exact, gamma, weights), rtol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_hot_distributions_equal_labels_in_value_and_gradient(dtype):
    wide, labels = (np.concatenate([x] * 3) for x in (LOGITS, LABELS))
    wide = wide * np.array([1, 100, 1000], np.float32).repeat(2).reshape(6, 1, 1, 1)
    weights = np.linspace(0.1, 1, 7, dtype=np.float32)
    for loss in (
        functools.partial(losses.softmax_cross_entropy, class_weights=weights, label_smoothing=0.1),
        functools.partial(losses.softmax_focal_loss, gamma=0.5, alpha=weights),
    ):
        both = jax.jit(jax.vmap(jax.value_and_grad(lambda z, y, f=loss: f(z, y).sum())))
        hard, soft = both(wide, labels), both(wide, jax.nn.one_hot(labels, 7, dtype=dtype))
        chex.assert_trees_all_close(hard, soft, rtol=2e-5, atol=1e-6)


def test_a_uniform_distribution_is_uniform_cross_entropy():
    uniform = np.full_like(LOGITS, 1 / 7)
    expected = losses.uniform_cross_entropy(LOGITS)
    np.testing.assert_allclose(losses.softmax_cross_entropy(LOGITS, uniform), expected, rtol=1e-5)


def test_tiny_losses_of_a_distribution_keep_their_digits():
    true = np.log1p(np.exp(-np.float64(19.4)))
    logits, t = jnp.array([19.4, 0.0]), jnp.array([1.0, 0.0])
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, t), true, rtol=1e-5)
    np.testing.assert_allclose(losses.softmax_focal_loss(logits, t, gamma=0.5), true**1.5, rtol=1e-5)


def test_a_distribution_without_a_class_switched_off_is_finite():
    off, t = jnp.array([1.0, 2.0, -jnp.inf]), jnp.array([0.25, 0.75, 0.0])
    for loss in (losses.softmax_cross_entropy, losses.softmax_focal_loss):
        value, gradient = jax.value_and_grad(loss)(off, t)
        np.testing.assert_allclose(value, loss(off[:2], t[:2]), rtol=1e-6)
        np.testing.assert_allclose(gradient, [*jax.grad(loss)(off[:2], t[:2]), 0], rtol=1e-5)


@pytest.mark.parametrize(
    "bad", [[0.5, 0.5, 0.5], [1.5, -0.5, 0.0], [0.0, 0.0, 0.0], [np.nan, 0.5, 0.5], [np.inf, 0.0, 0.0]]
)
def test_an_unmasked_distribution_that_is_not_one_gives_nan(bad):
    logits, t = jnp.zeros((2, 3)), jnp.array([bad, [0.2, 0.3, 0.5]])
    for loss in (losses.softmax_cross_entropy, losses.softmax_focal_loss):
        gradient = jax.grad(lambda z, f=loss: f(z, t).sum())(logits)
        np.testing.assert_array_equal(np.isnan(loss(logits, t)), [True, False])
        np.testing.assert_array_equal(np.isnan(gradient), [[True] * 3, [False] * 3])
        masked = jax.value_and_grad(lambda z, f=loss: f(z, t, where=jnp.array([False, True])).sum())(logits)
        assert all(np.isfinite(x).all() for x in masked)


def test_a_distribution_is_a_constant():
    for loss in (losses.softmax_cross_entropy, losses.softmax_focal_loss):
        assert not np.any(np.asarray(jax.grad(lambda t, f=loss: f(LOGITS, t).sum())(MIXED)))


# Poly-1


@pytest.mark.parametrize("epsilon", [-1.0, 0.5, 2.0])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_poly1_is_the_papers_series_with_another_leading_coefficient(epsilon, gamma):
    p_t = np.array([0.01, 0.2, 0.5, 0.9, 0.999])
    expected = poly1_reference(p_t, epsilon, gamma)
    x = np.log(p_t) - np.log1p(-p_t)
    with jax.enable_x64(True):
        softmax = SOFTMAX_POLY1(np.stack([0 * x, x], -1), np.ones(5, np.int32), epsilon, gamma, None)
        sigmoid = SIGMOID_POLY1(-x, np.zeros(5, np.int32), epsilon, gamma, None)
    np.testing.assert_allclose(softmax, expected, rtol=1e-8)
    np.testing.assert_allclose(sigmoid, expected, rtol=1e-8)


def test_softmax_poly1_loss_equals_optax():
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.losses.poly_loss_cross_entropy(LOGITS, jax.nn.one_hot(LABELS, 7), epsilon=2.0)
    np.testing.assert_allclose(SOFTMAX_POLY1(LOGITS, LABELS, 2.0, 0.0, None), theirs, rtol=2e-5)


@pytest.mark.parametrize("targets", [TARGETS, SOFT], ids=["hard", "soft"])
def test_sigmoid_poly1_loss_weights_both_terms(targets):
    """Ours weights both terms. abhuse/polyloss-pytorch weights the focal loss only; without α the two are equal."""
    t, p = np.asarray(targets, np.float64), 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    alpha_t, one_minus_pt = 0.25 * t + 0.75 * (1 - t), 1 - (t * p + (1 - t) * (1 - p))
    focal = one_minus_pt**2 * -(t * np.log(p) + (1 - t) * np.log(1 - p))
    plain, balanced = (SIGMOID_POLY1(LOGITS, targets, 1.5, 2.0, alpha) for alpha in (None, 0.25))
    np.testing.assert_allclose(plain, focal + 1.5 * one_minus_pt**3, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(balanced, alpha_t * (focal + 1.5 * one_minus_pt**3), rtol=1e-4, atol=1e-7)


def test_poly1_without_epsilon_is_the_focal_loss():
    weights = np.linspace(0.1, 1, 7, dtype=np.float32)
    for gamma in GAMMAS:
        focal = SOFTMAX_FOCAL(LOGITS, LABELS, gamma, weights), SIGMOID_FOCAL(LOGITS, SOFT, gamma, 0.25)
        np.testing.assert_allclose(SOFTMAX_POLY1(LOGITS, LABELS, 0.0, gamma, weights), focal[0], rtol=2e-5)
        np.testing.assert_allclose(SIGMOID_POLY1(LOGITS, SOFT, 0.0, gamma, 0.25), focal[1], rtol=2e-5)


def test_poly1_of_the_smallest_epsilon_is_not_negative_beyond_rounding():
    z = jnp.linspace(-30, 30, 121)
    cross_entropy = losses.sigmoid_cross_entropy(z, jnp.ones(121, jnp.int32))
    assert np.all(SIGMOID_POLY1(z, jnp.ones(121, jnp.int32), -1.0, 0.0, None) >= -1e-5 * cross_entropy)


@pytest.mark.parametrize("targets", [TARGETS, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_star_equals_the_papers_formula(alpha, targets):
    for gamma, beta in PAIRS:
        expected = star_reference(LOGITS, targets, gamma, beta, alpha)
        np.testing.assert_allclose(STAR(LOGITS, targets, gamma, beta, alpha), expected, rtol=3e-5)
        with jax.enable_x64(True):
            wide = targets.astype(np.float64) if targets is SOFT else targets
            loss = STAR(LOGITS.astype(np.float64), wide, gamma, beta, alpha)
            assert loss.dtype == jnp.dtype("float64")
        np.testing.assert_allclose(loss, expected, rtol=1e-11)


def test_focal_star_without_focus_is_cross_entropy():
    for targets in (TARGETS, SOFT):
        cross_entropy = losses.sigmoid_cross_entropy(LOGITS, targets, alpha=0.25)
        np.testing.assert_allclose(STAR(LOGITS, targets, 1.0, 0.0, 0.25), cross_entropy, rtol=1e-6)


def test_focal_star_beta_scales_easy_pixels_and_shifts_hard_ones():
    easy, hard = ([STAR(jnp.float32(z), jnp.int32(1), 2.0, b, None) for b in (0.0, 1.0)] for z in (8.0, -8.0))
    np.testing.assert_allclose(easy[0] / easy[1], np.e, rtol=1e-5)
    np.testing.assert_allclose(hard[0] - hard[1], 0.5, rtol=1e-5)


@pytest.mark.parametrize(("p_t", "ratio"), [(0.9, 100.0), (0.5, 4.0)])
def test_focal_losses_match_the_papers_worked_numbers(p_t, ratio):
    softmax = jnp.log(jnp.array([(1 - p_t) / 2, p_t, (1 - p_t) / 2]))
    label = jnp.int32(1)
    sigmoid = jnp.log(jnp.float32(p_t)) - jnp.log1p(jnp.float32(-p_t))
    for ce, focal in (
        (losses.softmax_cross_entropy(softmax, label), losses.softmax_focal_loss(softmax, label, gamma=2)),
        (losses.sigmoid_cross_entropy(sigmoid, label), losses.sigmoid_focal_loss(sigmoid, label, gamma=2)),
    ):
        np.testing.assert_allclose(ce / focal, ratio, rtol=1e-5)


def test_alpha_balances_cross_entropy():
    plain = losses.sigmoid_cross_entropy(LOGITS, TARGETS)
    balanced = losses.sigmoid_cross_entropy(LOGITS, TARGETS, alpha=0.75)
    np.testing.assert_allclose(balanced, plain * np.where(TARGETS == 1, 0.75, 0.25).astype(np.float32), rtol=1e-6)


@pytest.mark.parametrize("weight", [0.2, 1.0, 300.0])
def test_alpha_is_pytorchs_pos_weight(weight):
    """torch.nn.BCEWithLogitsLoss: -(w t log p + (1 - t) log(1 - p)), also of one w per label."""
    z, t = LOGITS.astype(np.float64), TARGETS
    pos_weights = weight * np.arange(1, 8).reshape(1, 1, 1, 7)
    theirs = [w * t * np.logaddexp(0, -z) + (1 - t) * np.logaddexp(0, z) for w in (weight, pos_weights)]
    ours = (1 + weight) * losses.sigmoid_cross_entropy(LOGITS, TARGETS, alpha=weight / (1 + weight))
    np.testing.assert_allclose(ours, theirs[0], rtol=1e-4)
    per_label = jnp.where(TARGETS == 1, pos_weights.astype(np.float32), 1) * losses.sigmoid_cross_entropy(
        LOGITS, TARGETS
    )
    np.testing.assert_allclose(per_label, theirs[1], rtol=1e-4)


def test_hinge_loss_equals_its_formula_and_optax():
    expected = np.maximum(0, 1 - np.where(TARGETS == 1, LOGITS, -LOGITS))
    np.testing.assert_array_equal(losses.hinge_loss(LOGITS, TARGETS), expected)
    # optax takes targets of -1 and 1.
    np.testing.assert_array_equal(optax.hinge_loss(LOGITS, 2.0 * TARGETS.astype(np.float32) - 1), expected)


@pytest.mark.parametrize("delta", [0.1, 3.0])
def test_huber_loss_equals_optax_in_value_and_gradients(delta):
    ours, theirs = (
        jax.value_and_grad(lambda p, t, f=f: f(p, t, delta=delta).sum(), argnums=(0, 1))(LOGITS, SOFT)
        for f in (losses.huber_loss, optax.huber_loss)
    )
    np.testing.assert_allclose(HUBER(LOGITS, SOFT, delta), optax.huber_loss(LOGITS, SOFT, delta=delta), rtol=1e-6)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5)


def test_huber_loss_divided_by_delta_is_smooth_l1():
    error = np.abs(LOGITS - SOFT)
    for beta in (1.0, 0.25):
        smooth_l1 = np.where(error < beta, 0.5 * error**2 / beta, error - 0.5 * beta)
        np.testing.assert_allclose(HUBER(LOGITS, SOFT, beta) / beta, smooth_l1, rtol=1e-6)


# Dtypes


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32, jnp.bfloat16])
def test_hard_targets_of_every_dtype_give_the_same_bits(dtype):
    for loss in (
        functools.partial(losses.sigmoid_focal_loss, gamma=0.5, alpha=0.25),
        functools.partial(losses.sigmoid_focal_star_loss, alpha=0.25),
        losses.hinge_loss,
    ):
        np.testing.assert_array_equal(loss(LOGITS, TARGETS.astype(dtype)), loss(LOGITS, TARGETS))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint32])
def test_softmax_cross_entropy_labels_of_every_integer_dtype(dtype):
    np.testing.assert_array_equal(
        losses.softmax_cross_entropy(LOGITS, LABELS.astype(dtype)), losses.softmax_cross_entropy(LOGITS, LABELS)
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_logits_are_widened_first(dtype):
    narrow = jnp.asarray(LOGITS, dtype)
    for f, targets in (
        (losses.softmax_focal_loss, LABELS),
        (losses.softmax_cross_entropy, LABELS),
        (losses.softmax_focal_loss, MIXED),
        (losses.softmax_cross_entropy, MIXED),
        (losses.softmax_poly1_loss, LABELS),
        (losses.sigmoid_poly1_loss, TARGETS),
        (losses.sigmoid_focal_loss, TARGETS),
        (losses.sigmoid_cross_entropy, TARGETS),
        (losses.sigmoid_focal_star_loss, TARGETS),
        (losses.hinge_loss, TARGETS),
        (losses.huber_loss, SOFT),
    ):
        np.testing.assert_array_equal(f(narrow, targets), f(narrow.astype(jnp.float32), targets))
    assert jax.grad(lambda z: losses.softmax_focal_loss(z, LABELS).sum())(narrow).dtype == dtype
    assert jax.grad(lambda p: losses.huber_loss(p, SOFT).sum())(narrow).dtype == dtype


def test_huber_loss_has_the_wider_of_two_dtypes():
    with jax.enable_x64(True):
        assert losses.huber_loss(LOGITS.astype(np.float64), SOFT).dtype == jnp.dtype("float64")
        assert losses.huber_loss(LOGITS, SOFT.astype(np.float64)).dtype == jnp.dtype("float64")


# Numerics


def test_tiny_losses_of_confident_pixels_keep_their_digits():
    true = np.log1p(np.exp(-np.float64(19.4)))  # 3.76e-9, where log_softmax in float32 gives 0
    logits, one = jnp.array([19.4, 0.0]), jnp.int32(1)
    assert -jax.nn.log_softmax(logits)[0] == 0
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, jnp.int32(0)), true, rtol=1e-5)
    np.testing.assert_allclose(losses.softmax_focal_loss(logits, jnp.int32(0), gamma=0.5), true**1.5, rtol=1e-5)
    for target in (one, jnp.float32(1)):
        np.testing.assert_allclose(losses.sigmoid_cross_entropy(logits[0], target), true, rtol=1e-5)
        star = losses.sigmoid_focal_star_loss(logits[0], target)
        np.testing.assert_allclose(star, np.log1p(np.exp(-np.float64(2 * 19.4 + 1))) / 2, rtol=1e-5)


@pytest.mark.parametrize("offset", [100.0, 1e4, -1e4])
def test_an_offset_of_all_logits_costs_no_digits(offset):
    logits = np.round(LOGITS * 64).astype(np.float32) / 64 + np.float32(offset)  # exact in float32 at 1e4
    exact = softmax_reference(logits, LABELS), softmax_reference(logits, LABELS, 2.0)
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, LABELS), exact[0], rtol=2e-6)
    np.testing.assert_allclose(losses.softmax_focal_loss(logits, LABELS, gamma=2.0), exact[1], rtol=6e-6)
    wide = logits.astype(np.float64) - offset
    smoothed = losses.softmax_cross_entropy(logits, LABELS, label_smoothing=1.0)
    np.testing.assert_allclose(smoothed, np.log(np.exp(wide).sum(-1)) - wide.mean(-1), rtol=2e-6)


def _softmax_curve(label):
    return lambda z, g, b: losses.softmax_focal_loss(jnp.stack([z, z * 0, -z]), jnp.int32(label), gamma=g)


def _focal_curve(target):
    return lambda z, g, b: losses.sigmoid_focal_loss(z, target, gamma=g)


def _softmax_distribution_curve(*t):
    return lambda z, g, b: losses.softmax_focal_loss(jnp.stack([z, z * 0, -z]), jnp.array(t, z.dtype), gamma=g)


def _softmax_poly1_curve(label):
    return lambda z, g, b: losses.softmax_poly1_loss(jnp.stack([z, z * 0, -z]), jnp.int32(label), epsilon=2.0, gamma=g)


def _poly1_curve(target):
    return lambda z, g, b: losses.sigmoid_poly1_loss(z, target, epsilon=-0.5, gamma=g)


def _star_curve(target):
    return lambda z, g, b: losses.sigmoid_focal_star_loss(z, target, gamma=g, beta=b)


# Each loss as a function of one logit z and two parameters: γ (or δ) and β.
FOCAL_CURVES = {
    "softmax, the label's logit": _softmax_curve(0),
    "softmax, another logit": _softmax_curve(1),
    "softmax, a distribution": _softmax_distribution_curve(0.25, 0.25, 0.5),
    "softmax, a one-hot distribution": _softmax_distribution_curve(1, 0, 0),
    "softmax Poly-1, the label's logit": _softmax_poly1_curve(0),
    "softmax Poly-1, another logit": _softmax_poly1_curve(1),
    "Poly-1, target 1": _poly1_curve(jnp.int32(1)),
    "Poly-1, soft target 0.3": _poly1_curve(jnp.float32(0.3)),
    "target 0": _focal_curve(jnp.int32(0)),
    "target 1": _focal_curve(jnp.int32(1)),
    "soft target 0": _focal_curve(jnp.float32(0)),
    "soft target 1": _focal_curve(jnp.float32(1)),
    "soft target 0.3": _focal_curve(jnp.float32(0.3)),
    "soft target 1e-30": _focal_curve(jnp.float32(1e-30)),
}
STAR_CURVES = {
    "star, target 0": _star_curve(jnp.int32(0)),
    "star, target 1": _star_curve(jnp.int32(1)),
    "star, soft target 1": _star_curve(jnp.float32(1)),
    "star, soft target 0.3": _star_curve(jnp.float32(0.3)),
    "hinge, target 0": lambda z, g, b: losses.hinge_loss(z, jnp.int32(0)),
    "hinge, target 1": lambda z, g, b: losses.hinge_loss(z, jnp.float32(1)),
    "huber": lambda z, g, b: losses.huber_loss(z, b.astype(z.dtype), delta=g),
}
CURVES = FOCAL_CURVES | STAR_CURVES


def parameters(curve):
    """Returns the values of γ (or δ) and β at which a curve is tested."""
    return np.array([(g, 0.0) for g in GAMMAS] if curve in FOCAL_CURVES else PAIRS).T


@functools.cache
def derivatives(curve):
    """Returns (value, first and second derivative by z, first by each parameter) of a curve, compiled for all pairs."""
    f = CURVES[curve]
    functions = f, jax.grad(f), jax.grad(jax.grad(f)), jax.grad(f, argnums=1), jax.grad(f, argnums=2)
    every = jax.vmap(jax.vmap(lambda z, g, b: [h(z, g, b) for h in functions], (0, None, None)), (None, 0, 0))
    return jax.jit(every)


# In the fast tier, test_log_odds.py covers bfloat16 up to forward over reverse.
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("curve", CURVES)
def test_values_and_two_derivatives_are_finite(curve, dtype):
    value, *rest = derivatives(curve)(jnp.array(EXTREME, dtype), *jnp.array(parameters(curve)))
    assert value.dtype == jnp.float32
    assert np.all(np.asarray(value) >= 0)
    for derivative in (value, *rest):
        assert np.isfinite(np.asarray(derivative, np.float32)).all()


@pytest.mark.parametrize("curve", CURVES)
def test_derivatives_agree_with_central_differences(curve):
    step = 1e-4
    with jax.enable_x64(True):
        # |z| has its kink at 0; the hinge and Huber's second derivative have theirs between these points.
        z, (g, b) = np.array([-30.0, -5.0, -1.3, 0.0, 0.6, 3.1, 30.0]), parameters(curve)
        at, above, below = (jax.device_get(derivatives(curve)(z + s, g, b)) for s in (0, step, -step))
        pairs = [(1, above[0], below[0]), (2, above[1], below[1])]
        if curve in STAR_CURVES:
            steeper, flatter = (jax.device_get(derivatives(curve)(z, g + s, b)) for s in (step, -step))
            right, left = (jax.device_get(derivatives(curve)(z, g, b + s)) for s in (step, -step))
            pairs += [(3, steeper[0], flatter[0]), (4, right[0], left[0])]
    assert at[1].dtype == np.float64
    for i, high, low in pairs:
        np.testing.assert_allclose(at[i], (high - low) / (2 * step), rtol=1e-6, atol=1e-6)


def test_softmax_focal_loss_gradient_is_the_papers():
    logits, gamma = jnp.array([0.7, -0.2, 1.1]), 2.0
    p = float(jax.nn.softmax(logits)[2])
    # dFL/dx_t = (1 - p_t)^γ (γ p_t log p_t + p_t - 1), and the derivative of x_t by the label's logit is 1.
    expected = (1 - p) ** gamma * (gamma * p * np.log(p) + p - 1)
    gradient = jax.grad(lambda z: losses.softmax_focal_loss(z, jnp.int32(2), gamma=gamma))(logits)
    np.testing.assert_allclose(gradient[2], expected, rtol=1e-5)
    np.testing.assert_allclose(gradient.sum(), 0, atol=1e-6)


def test_focal_star_gradient_is_the_papers():
    slope = jax.jit(jax.grad(lambda z, g, b: losses.sigmoid_focal_star_loss(z, TARGETS, gamma=g, beta=b).sum()))
    y = 2.0 * TARGETS - 1
    for gamma, beta in PAIRS:
        p_star = 1 / (1 + np.exp(-(gamma * y * LOGITS.astype(np.float64) + beta)))
        np.testing.assert_allclose(slope(LOGITS, gamma, beta), y * (p_star - 1), rtol=5e-5, atol=1e-8)


def test_hinge_loss_slope_is_zero_from_its_kink_on():
    slope = jax.vmap(jax.grad(lambda z: losses.hinge_loss(z, jnp.int32(1))))(jnp.array([0.999, 1.0, 1.001]))
    np.testing.assert_array_equal(slope, [-1, 0, 0])


def test_huber_loss_is_smooth_at_zero_and_at_delta():
    slope = jax.grad(lambda d: losses.huber_loss(d, jnp.float32(0), delta=2.0))
    points = jnp.array([-2.0, -1e-30, 0.0, 1e-30, 2.0])
    first, second = jax.jit(jax.vmap(lambda d: (slope(d), jax.grad(slope)(d))))(points)
    np.testing.assert_array_equal(first, points)
    np.testing.assert_array_equal(second, np.ones(5))


def test_huber_loss_of_a_huge_error_is_linear():
    huge = jnp.array([1e4, 1e20, 1e38, np.inf])
    value = losses.huber_loss(-huge, jnp.zeros(4))
    slopes = jax.grad(lambda p, t: losses.huber_loss(p, t).sum(), argnums=(0, 1))(-huge, jnp.zeros(4))
    np.testing.assert_allclose(value, huge - jnp.float32(0.5))
    np.testing.assert_array_equal(slopes, [[-1] * 4, [1] * 4])


def test_a_class_switched_off_by_minus_infinity_takes_no_part():
    off = jnp.array([1.0, -jnp.inf, 0.0])
    value, gradient = jax.value_and_grad(lambda z: losses.softmax_focal_loss(z, jnp.int32(0), gamma=0.5))(off)
    expected = losses.softmax_focal_loss(jnp.array([1.0, 0.0]), jnp.int32(0), gamma=0.5)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert gradient[1] == 0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_of_a_class_switched_off(smoothing):
    off, label = jnp.array([1.0, 2.0, -jnp.inf]), jnp.int32(0)

    def loss(z, weights, epsilon):
        return losses.softmax_cross_entropy(z, label, class_weights=weights, label_smoothing=epsilon)

    left_out = jnp.array([1.0, 1.0, 0.0])
    value, gradient = jax.jit(jax.value_and_grad(loss))(off, left_out, smoothing)
    other = jax.nn.log_softmax(off[:2])
    np.testing.assert_allclose(value, -(1 - smoothing) * other[0] - smoothing * other.sum() / 3, rtol=1e-6)
    assert np.isfinite(gradient).all()
    # With a weight it costs infinity, unless there is no smoothing.
    assert np.isinf(jax.jit(loss)(off, None, smoothing)) == (smoothing > 0)


BALANCED = [
    functools.partial(loss, alpha=0.25)
    for loss in (
        losses.sigmoid_cross_entropy,
        losses.sigmoid_focal_loss,
        losses.sigmoid_poly1_loss,
        losses.sigmoid_focal_star_loss,
    )
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
def test_gradients_per_logit_need_no_temporary_array(loss, dtype, target, masked):
    shape = (2, 64, 128, 19)
    arguments = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape, target)
    where = {"where": jax.ShapeDtypeStruct(shape, bool)} if masked else {}
    program = jax.jit(jax.value_and_grad(lambda p, t, **where: losses.mean(loss(p, t, **where), **where)))
    needed = program.lower(*arguments, **where).compile().memory_analysis().temp_size_in_bytes
    assert needed < 0.15 * math.prod(shape) * jnp.dtype(dtype).itemsize


# Masks and invalid labels. Each entry is `loss(logits, labels, where) -> [...]`; the sigmoid losses take one logit.

SOFTMAX_LOSSES = {
    "softmax_cross_entropy": lambda z, y, k: losses.softmax_cross_entropy(z, y, where=k),
    "softmax_cross_entropy, smoothed": lambda z, y, k: losses.softmax_cross_entropy(
        z, y, where=k, class_weights=jnp.arange(7.0), label_smoothing=0.1
    ),
    "softmax_cross_entropy, a distribution": lambda z, y, k: losses.softmax_cross_entropy(
        z, distribution(y), where=k, class_weights=jnp.arange(7.0)
    ),
    "softmax_focal_loss": lambda z, y, k: losses.softmax_focal_loss(z, y, gamma=0.5, alpha=jnp.arange(7.0), where=k),
    "softmax_focal_loss, a distribution": lambda z, y, k: losses.softmax_focal_loss(
        z, distribution(y), gamma=0.5, alpha=jnp.arange(7.0), where=k
    ),
    "softmax_poly1_loss": lambda z, y, k: losses.softmax_poly1_loss(z, y, gamma=0.5, alpha=jnp.arange(7.0), where=k),
}
SIGMOID_LOSSES = {
    "sigmoid_cross_entropy": lambda z, y, k: losses.sigmoid_cross_entropy(z[..., 0], y, where=k, alpha=0.25),
    "sigmoid_cross_entropy, soft": lambda z, y, k: losses.sigmoid_cross_entropy(
        z[..., 0], y.astype(jnp.float32), where=k
    ),
    "sigmoid_focal_loss": lambda z, y, k: losses.sigmoid_focal_loss(z[..., 0], y, gamma=0.5, where=k),
    "sigmoid_focal_loss, soft": lambda z, y, k: losses.sigmoid_focal_loss(
        z[..., 0], y.astype(jnp.float32), gamma=0.5, alpha=0.25, where=k
    ),
    "sigmoid_poly1_loss": lambda z, y, k: losses.sigmoid_poly1_loss(z[..., 0], y, where=k, alpha=0.25),
    "sigmoid_poly1_loss, soft": lambda z, y, k: losses.sigmoid_poly1_loss(
        z[..., 0], y.astype(jnp.float32), gamma=0.5, where=k
    ),
    "sigmoid_focal_star_loss": lambda z, y, k: losses.sigmoid_focal_star_loss(z[..., 0], y, where=k, alpha=0.25),
    "sigmoid_focal_star_loss, soft": lambda z, y, k: losses.sigmoid_focal_star_loss(
        z[..., 0], y.astype(jnp.float32), where=k
    ),
    "hinge_loss": lambda z, y, k: losses.hinge_loss(z[..., 0], y, where=k),
    "hinge_loss, float": lambda z, y, k: losses.hinge_loss(z[..., 0], y.astype(jnp.float32), where=k),
}
LABEL_LOSSES = SOFTMAX_LOSSES | SIGMOID_LOSSES
PIXEL_LOSSES = LABEL_LOSSES | {
    "huber_loss": lambda z, y, k: losses.huber_loss(z[..., 0], y.astype(jnp.float32), where=k)
}
BINARY = LABELS % 2


def with_gradient(name):
    """Returns the loss per pixel and the gradient of its sum, as a function of logits, labels and mask."""

    def total(z, y, k):
        loss = PIXEL_LOSSES[name](z, y, k)
        return loss.sum(), loss

    return lambda *batch: jax.grad(total, has_aux=True)(*batch)[::-1]


COMPILED = {name: jax.jit(with_gradient(name)) for name in PIXEL_LOSSES}


class Variants(chex.TestCase):
    """Every per-pixel loss: eager, compiled, and on several devices."""

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_values_and_gradients_are_the_same(self):
        every = self.variant(lambda *batch: {name: with_gradient(name)(*batch) for name in PIXEL_LOSSES})
        for name, (value, gradient) in every(LOGITS, BINARY, KEEP).items():
            expected_value, expected_gradient = COMPILED[name](LOGITS, BINARY, KEEP)
            np.testing.assert_allclose(value, expected_value, rtol=1e-5, atol=1e-7, err_msg=name)
            np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6, err_msg=name)

    @chex.variants(with_jit=True, without_jit=True)
    def test_focal_losses_at_gamma_zero_are_cross_entropy(self):
        # Two compiled programs may fuse the same formula differently: jaxlib 0.12 does, by up to 2 ulp.
        maxulp = 0 if "without_jit" in self.id() else 3
        wide = np.concatenate([LOGITS, LOGITS * 100, LOGITS * 1000])
        labels, targets, soft = (np.concatenate([x] * 3) for x in (LABELS, TARGETS, SOFT))
        weights = np.linspace(0.1, 1, 7, dtype=np.float32)
        np.testing.assert_array_max_ulp(
            self.variant(lambda z, g: losses.softmax_focal_loss(z, labels, gamma=g, alpha=weights))(wide, 0.0),
            self.variant(lambda z: losses.softmax_cross_entropy(z, labels, class_weights=weights))(wide),
            maxulp,
        )
        for t in (targets, soft):
            np.testing.assert_array_max_ulp(
                self.variant(lambda z, g, t=t: losses.sigmoid_focal_loss(z, t, gamma=g, alpha=0.25))(wide, 0.0),
                self.variant(lambda z, t=t: losses.sigmoid_cross_entropy(z, t, alpha=0.25))(wide),
                maxulp,
            )


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_masked_pixels_have_no_loss_and_no_gradient(name):
    clean = COMPILED[name](LOGITS, BINARY, KEEP)
    assert not np.any(np.asarray(clean[1])[~KEEP])
    for void, garbage in ((255, np.nan), (-1, np.inf), (255, -np.inf)):
        logits = np.where(KEEP[..., None], LOGITS, garbage).astype(np.float32)
        dirty = COMPILED[name](logits, np.where(KEEP, BINARY, void).astype(np.int32), KEEP)
        chex.assert_trees_all_equal(dirty, clean)


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_an_empty_mask_gives_zero(name):
    results = COMPILED[name](np.full_like(LOGITS, np.nan), LABELS, np.zeros_like(KEEP))
    assert not any(np.any(np.asarray(x)) for x in results)


@pytest.mark.parametrize("name", LABEL_LOSSES)
@pytest.mark.parametrize("label", [-1, 7, 255])
def test_unmasked_invalid_labels_give_nan(name, label):
    labels, bad = BINARY.copy(), np.zeros_like(KEEP)
    labels[1, 2, 3], bad[1, 2, 3] = label, True
    for logits in (LOGITS, LOGITS + 100, LOGITS - 100):  # the hinge is flat on one side
        value, gradient = COMPILED[name](logits, labels, EVERY)
        np.testing.assert_array_equal(np.isnan(value), bad)
        np.testing.assert_array_equal(np.isnan(gradient).any(-1), bad)


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_an_unmasked_nan_logit_gives_nan(name):
    logits = LOGITS.copy()
    logits[0, 1, 2] = np.nan
    value, gradient = COMPILED[name](logits, BINARY, EVERY)
    assert np.isnan(value[0, 1, 2])
    assert np.isnan(gradient[0, 1, 2]).any()


def test_huber_loss_masked_nan_target_reaches_neither_gradient():
    keep = np.broadcast_to(KEEP[..., None], LOGITS.shape)
    targets = np.where(keep, SOFT, np.nan).astype(np.float32)
    gradients = jax.grad(lambda p, t: losses.huber_loss(p, t, where=keep).sum(), argnums=(0, 1))(LOGITS, targets)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert not np.any(np.asarray(gradient)[~keep])


@pytest.mark.parametrize("target", [0.5, -1.0, np.nan])
def test_hinge_loss_soft_targets_give_nan(target):
    value, gradient = jax.value_and_grad(losses.hinge_loss)(jnp.float32(3), jnp.float32(target))
    assert np.isnan(value)
    assert np.isnan(gradient)


def test_masks_broadcast():
    rng = np.random.default_rng(1)
    parts = [rng.uniform(size=shape) < 0.5 for shape in [(1, 4, 5), (2, 1, 1), (5,), ()]]
    every = jax.jit(lambda: {n: [f(LOGITS, BINARY, part) for part in parts] for n, f in PIXEL_LOSSES.items()})()
    for name, values in every.items():
        for part, value in zip(parts, values, strict=True):
            full = COMPILED[name](LOGITS, BINARY, np.broadcast_to(part, LABELS.shape))[0]
            np.testing.assert_allclose(value, full, rtol=1e-6, err_msg=name)


# Transforms


@chex.assert_max_traces(n=1)
def _traced_means(gamma, beta, delta, alpha, alphas):
    return [
        losses.softmax_focal_loss(LOGITS, LABELS, gamma=gamma, alpha=alphas).mean(),
        losses.sigmoid_focal_star_loss(LOGITS, TARGETS, gamma=gamma, beta=beta, alpha=alpha).mean(),
        losses.huber_loss(LOGITS, SOFT, delta=delta).mean(),
    ]


def test_numbers_are_traced():
    chex.clear_trace_counter()
    compiled = jax.jit(_traced_means)
    alphas = np.linspace(0.1, 1, 7, dtype=np.float32)
    for gamma, beta in PAIRS:
        softmax, star, huber = compiled(gamma, beta, gamma / 2, 0.25, alphas)
        np.testing.assert_allclose(softmax, softmax_reference(LOGITS, LABELS, gamma, alphas).mean(), rtol=1e-5)
        np.testing.assert_allclose(star, star_reference(LOGITS, TARGETS, gamma, beta, 0.25).mean(), rtol=1e-5)
        np.testing.assert_allclose(huber, optax.huber_loss(LOGITS, SOFT, delta=gamma / 2).mean(), rtol=1e-5)


def test_vmap_over_numbers():
    gammas, betas = np.array(PAIRS, np.float32).T
    alphas = np.linspace(0, 1, len(PAIRS), dtype=np.float32)
    class_alphas = np.random.default_rng(1).uniform(size=(len(PAIRS), 7)).astype(np.float32)

    @jax.jit
    @jax.vmap
    def each(g, b, a, class_a):
        return (
            losses.sigmoid_focal_loss(LOGITS, TARGETS, gamma=g, alpha=a),
            losses.softmax_focal_loss(LOGITS, LABELS, gamma=g, alpha=class_a),
            losses.sigmoid_focal_star_loss(LOGITS, TARGETS, gamma=g, beta=b),
            losses.huber_loss(LOGITS, SOFT, delta=g),
        )

    sigmoid, softmax, star, huber = each(gammas, betas, alphas, class_alphas)
    for i, (gamma, beta) in enumerate(PAIRS):
        np.testing.assert_allclose(sigmoid[i], SIGMOID_FOCAL(LOGITS, TARGETS, gamma, alphas[i]), rtol=1e-5)
        np.testing.assert_allclose(softmax[i], SOFTMAX_FOCAL(LOGITS, LABELS, gamma, class_alphas[i]), rtol=1e-5)
        np.testing.assert_allclose(star[i], STAR(LOGITS, TARGETS, gamma, beta, None), rtol=1e-5)
        np.testing.assert_allclose(huber[i], HUBER(LOGITS, SOFT, gamma), rtol=1e-5)


def test_no_gradient_flows_into_targets():
    def total(soft, hard):
        return sum(
            loss(LOGITS, t).sum()
            for loss, t in (
                (losses.sigmoid_focal_loss, soft),
                (losses.sigmoid_focal_star_loss, soft),
                (losses.hinge_loss, hard),
            )
        )

    for gradient in jax.grad(total, argnums=(0, 1))(SOFT, TARGETS.astype(np.float32)):
        assert not np.any(np.asarray(gradient))


# Properties

REAL = st.floats(-50, 50, width=32)


@settings(max_examples=60)
@given(REAL, st.floats(0, 5, width=32), st.floats(0, 1, width=32))
def test_focal_loss_is_between_zero_and_cross_entropy(z, gamma, target):
    z, target = jnp.float32(z), jnp.float32(target)
    ce, focal = (SIGMOID_FOCAL(z, target, jnp.float32(g), None) for g in (0.0, gamma))
    assert 0 <= focal <= ce * (1 + 1e-6)


@settings(max_examples=60)
@given(REAL, st.floats(0.125, 8, width=32), REAL, st.floats(0, 1, width=32))
def test_focal_star_is_not_negative_and_falls_as_beta_grows(z, gamma, beta, target):
    low, high = (STAR(jnp.float32(z), jnp.float32(target), gamma, b, None) for b in (beta, beta + 1))
    assert 0 <= high <= low


@settings(max_examples=60)
@given(REAL, REAL, st.floats(0.125, 50, width=32))
def test_huber_loss_is_even_and_below_its_two_bounds(prediction, target, delta):
    loss = HUBER(jnp.float32(prediction), jnp.float32(target), delta)
    assert loss == HUBER(jnp.float32(target), jnp.float32(prediction), delta)
    error = abs(np.float32(prediction) - np.float32(target))
    assert 0 <= loss <= min(error**2 / 2, delta * error) * (1 + 1e-5)


def test_a_perfect_prediction_costs_nothing():
    assert not np.any(losses.huber_loss(LOGITS, LOGITS))
    assert not np.any(losses.hinge_loss(2.0 * TARGETS.astype(np.float32) - 1, TARGETS))


def test_losses_fall_as_the_label_gains():
    z, one = jnp.linspace(-12, 12, 401), jnp.ones(401, jnp.int32)
    logits = jnp.stack([z, jnp.zeros_like(z), -z / 2], axis=-1)
    for gamma in GAMMAS:
        assert np.all(np.diff(SOFTMAX_FOCAL(logits, one - 1, gamma, None)) < 0)
        assert np.all(np.diff(SIGMOID_FOCAL(z, one, gamma, None)) < 0)
    for gamma, beta in PAIRS:
        star = STAR(z, one, gamma, beta, None)
        assert np.all(np.diff(star) < 0)
        np.testing.assert_array_equal(STAR(-z, one - 1, gamma, beta, None), star)
    assert np.all(np.diff(losses.hinge_loss(z, one)) <= 0)


# Errors of the undecorated functions: a user has no import hook

SHAPE = (
    {"targets": TARGETS[0]},
    ValueError,
    r"targets must have the shape of logits, \(2, 4, 5, 7\); got \(4, 5, 7\)",
)
MASK_OF_LABELS = ({"where": TARGETS}, TypeError, r"where must be boolean; got int32")
MASK_SHAPE = ({"where": np.ones(3, bool)}, ValueError, r"where must have shape \(2, 4, 5, 7\).*got \(3,\)")
INTEGER_LOGITS = ({"logits": TARGETS}, TypeError, r"logits must be floating point; got int32")
BROKEN = {
    "softmax_cross_entropy": {
        "rank": (
            {"labels": LABELS[0]},
            ValueError,
            r"labels must have the shape of logits .*\(2, 4, 5\); got \(4, 5\)",
        ),
        "shape": ({"labels": LABELS[:, :2]}, ValueError, r"labels must have .*\(2, 4, 5\); got \(2, 2, 5\)"),
        "float labels": (
            {"labels": KEEP * 1.0},
            TypeError,
            r"labels must be integers; got float32 of shape \(2, 4, 5\)",
        ),
        "distribution": (
            {"labels": MIXED[..., :6]},
            ValueError,
            r"labels as a distribution must have the shape of logits, \(2, 4, 5, 7\); got \(2, 4, 5, 6\)",
        ),
        "mask of a distribution": (
            {"labels": MIXED, "where": np.ones(3, bool)},
            ValueError,
            r"where must have shape \(2, 4, 5\).*got \(3,\)",
        ),
        "integer logits": ({"logits": LOGITS.astype(int)}, TypeError, r"logits must be floating point; got int32"),
        "one class": (
            {"logits": LOGITS[..., :1]},
            ValueError,
            r"at least 2 classes, class last; got shape \(2, 4, 5, 1\)",
        ),
        "scalar logits": ({"logits": np.float32(1), "labels": np.int32(0)}, ValueError, r"class last; got shape \(\)"),
        "mask of labels": ({"where": LABELS}, TypeError, r"where must be boolean; got int32"),
        "mask of images": ({"where": np.ones(3, bool)}, ValueError, r"where must have shape \(2, 4, 5\).*got \(3,\)"),
        "weights": (
            {"class_weights": np.ones(6)},
            ValueError,
            r"class_weights must have .*shape \(7,\); got shape \(6,\)",
        ),
        "smoothing": ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be between 0 and 1; got 1.5"),
    },
    "softmax_focal_loss": {
        "shape": ({"labels": LABELS[:, :2]}, ValueError, r"labels must have .*\(2, 4, 5\); got \(2, 2, 5\)"),
        "scalar alpha": (
            {"alpha": 0.25},
            ValueError,
            r"alpha must have one value per class, shape \(7,\); got the scalar 0.25. RetinaNet's .*sigmoid_focal_loss",
        ),
        "alpha": ({"alpha": np.ones(3)}, ValueError, r"alpha must have one value per class, .*got shape \(3,\)$"),
        "negative gamma": ({"gamma": -0.5}, ValueError, r"gamma must be at least 0; got -0.5"),
        "nan gamma": ({"gamma": np.nan}, ValueError, r"gamma must be at least 0; got nan"),
        "infinite gamma": ({"gamma": np.inf}, ValueError, r"gamma must be at least 0 and finite; got inf"),
        "gamma a class": ({"gamma": np.ones(7)}, ValueError, r"gamma must be a scalar; got shape \(7,\)"),
    },
    "sigmoid_cross_entropy": {
        "shape": (
            {"targets": TARGETS[..., 0]},
            ValueError,
            r"targets must have the shape of logits, .*got \(2, 4, 5\)",
        ),
        "integer logits": ({"logits": TARGETS}, TypeError, r"logits must be floating point; got int32"),
        "pixel mask": ({"where": KEEP}, ValueError, r"where must have shape \(2, 4, 5, 7\) or one .*got \(2, 4, 5\)"),
        "alpha": ({"alpha": 1.5}, ValueError, r"alpha must be between 0 and 1; got 1.5"),
        "alpha a class": ({"alpha": np.ones(7)}, ValueError, r"alpha must be a scalar; got shape \(7,\)"),
    },
    "sigmoid_focal_loss": {
        "shape": (
            {"targets": TARGETS[..., 0]},
            ValueError,
            r"targets must have the shape of logits, .*got \(2, 4, 5\)",
        ),
        "negative gamma": ({"gamma": -1}, ValueError, r"gamma must be at least 0; got -1"),
        "alpha": ({"alpha": -0.1}, ValueError, r"alpha must be between 0 and 1; got -0.1"),
    },
    "softmax_poly1_loss": {
        "shape": ({"labels": LABELS[:, :2]}, ValueError, r"labels must have .*\(2, 4, 5\); got \(2, 2, 5\)"),
        "distribution": ({"labels": MIXED}, TypeError, r"labels must be integers; got float32"),
        "scalar alpha": ({"alpha": 0.25}, ValueError, r"alpha must have one value per class.*sigmoid_focal_loss"),
        "epsilon": ({"epsilon": -1.5}, ValueError, r"epsilon must be at least -1; got -1.5"),
        "negative gamma": ({"gamma": -0.5}, ValueError, r"gamma must be at least 0; got -0.5"),
    },
    "sigmoid_poly1_loss": {
        "shape": SHAPE,
        "epsilon": ({"epsilon": -1.5}, ValueError, r"epsilon must be at least -1; got -1.5"),
        "infinite epsilon": ({"epsilon": np.inf}, ValueError, r"epsilon must be at least -1 and finite; got inf"),
        "negative gamma": ({"gamma": -1}, ValueError, r"gamma must be at least 0; got -1"),
        "alpha": ({"alpha": -0.1}, ValueError, r"alpha must be between 0 and 1; got -0.1"),
    },
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
            r"targets must have the shape of predictions, \(2, 4, 5, 7\); got \(4, 5, 7\)",
        ),
        "integer predictions": ({"predictions": TARGETS}, TypeError, r"predictions must be floating point; got int32"),
        "integer targets": ({"targets": TARGETS}, TypeError, r"targets must be floating point; got int32"),
        "mask of labels": MASK_OF_LABELS,
        "mask shape": MASK_SHAPE,
        "delta 0": ({"delta": 0}, ValueError, r"delta must be finite and more than 0; got 0$"),
        "negative delta": ({"delta": -1.0}, ValueError, r"delta must be finite and more than 0; got -1"),
        "delta per pixel": ({"delta": np.ones(5)}, ValueError, r"delta must be a scalar; got shape \(5,\)"),
    },
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in BROKEN for case in BROKEN[name]])
def test_invalid_arguments_are_named(name, case):
    arguments, error, message = BROKEN[name][case]
    loss = inspect.unwrap(getattr(losses, name))
    good = {"predictions": LOGITS, "targets": SOFT} if name == "huber_loss" else {"logits": LOGITS}
    if name != "huber_loss":
        good |= {"labels": LABELS} if name.startswith("softmax") else {"targets": TARGETS}
    with pytest.raises(error, match=message):
        loss(**(good | arguments))
