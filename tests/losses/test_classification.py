import functools
import inspect

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
EXTREME = (-1e4, -300.0, -90.0, -17.0, -1.0, 0.0, 1e-3, 1.0, 17.0, 90.0, 300.0, 1e4)
RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(2, 4, 5, 7)) * 3).astype(np.float32)
LABELS = RNG.integers(0, 7, size=(2, 4, 5)).astype(np.int32)
TARGETS = RNG.integers(0, 2, size=LOGITS.shape).astype(np.int32)
SOFT = RNG.uniform(size=LOGITS.shape).astype(np.float32)
KEEP = RNG.uniform(size=LABELS.shape) < 0.7


def softmax_reference(logits, labels, gamma=0.0, alpha=None):
    """The textbook's formula, in float64."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    p_t = np.take_along_axis(p, labels[..., None], -1)[..., 0]
    return (1.0 if alpha is None else np.asarray(alpha)[labels]) * (1 - p_t) ** gamma * -np.log(p_t)


def sigmoid_reference(logits, targets, gamma=0.0, alpha=None):
    t, p = np.asarray(targets, np.float64), 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    alpha_t = 1.0 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
    p_t = t * p + (1 - t) * (1 - p)
    return alpha_t * (1 - p_t) ** gamma * -(t * np.log(p) + (1 - t) * np.log(1 - p))


# Compiled once each: γ and α are traced.
SOFTMAX_FOCAL = jax.jit(lambda z, y, gamma, alpha: losses.softmax_focal_loss(z, y, gamma=gamma, alpha=alpha))
SIGMOID_FOCAL = jax.jit(lambda z, t, gamma, alpha: losses.sigmoid_focal_loss(z, t, gamma=gamma, alpha=alpha))


# Parity


def test_softmax_cross_entropy_equals_optax():
    ours = losses.softmax_cross_entropy(LOGITS, LABELS)
    theirs = optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_equals_optax(smoothing):
    ours = losses.softmax_cross_entropy(LOGITS, LABELS, label_smoothing=smoothing)
    one_hot = jax.nn.one_hot(LABELS, 7)
    theirs = optax.softmax_cross_entropy(LOGITS, optax.smooth_labels(one_hot, smoothing))
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def test_class_weights_weigh_each_class_of_the_smoothed_sum():
    weights = np.linspace(0, 2, 7, dtype=np.float32)
    ours = losses.softmax_cross_entropy(LOGITS, LABELS, class_weights=weights, label_smoothing=0.1)
    each = -np.asarray(jax.nn.log_softmax(LOGITS)) * weights.reshape(1, 1, 1, 7)
    own = np.take_along_axis(each, LABELS[..., None], -1)[..., 0]
    np.testing.assert_allclose(ours, 0.9 * own + 0.1 * each.mean(-1), rtol=2e-5, atol=1e-6)


def test_traced_label_smoothing_of_zero_is_no_smoothing():
    traced = jax.jit(lambda s: losses.softmax_cross_entropy(LOGITS, LABELS, label_smoothing=s))(0.0)
    np.testing.assert_array_equal(traced, jax.jit(lambda: losses.softmax_cross_entropy(LOGITS, LABELS))())


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("targets", [TARGETS, SOFT], ids=["hard", "soft"])
def test_sigmoid_focal_loss_equals_optax(gamma, alpha, targets):
    ours = SIGMOID_FOCAL(LOGITS, targets, gamma, alpha)
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.sigmoid_focal_loss(LOGITS, targets.astype(np.float32), alpha=alpha, gamma=gamma)
    # optax forms 1 - p_t in float32 and so keeps fewer digits of a confident pixel.
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_losses_equal_the_textbook(gamma):
    weights = np.linspace(0.1, 1, 7)
    with jax.enable_x64(True):
        logits = LOGITS.astype(np.float64)
        softmax = SOFTMAX_FOCAL(logits, LABELS, gamma, weights)
        hard = SIGMOID_FOCAL(logits, TARGETS, gamma, 0.25)
        soft = SIGMOID_FOCAL(logits, SOFT.astype(np.float64), gamma, 0.25)
        assert {x.dtype for x in (softmax, hard, soft)} == {jnp.dtype("float64")}
    np.testing.assert_allclose(softmax, softmax_reference(LOGITS, LABELS, gamma, weights), rtol=1e-9)
    np.testing.assert_allclose(hard, sigmoid_reference(LOGITS, TARGETS, gamma, 0.25), rtol=1e-9)
    np.testing.assert_allclose(soft, sigmoid_reference(LOGITS, SOFT, gamma, 0.25), rtol=1e-9)


@pytest.mark.parametrize(("p_t", "ratio"), [(0.9, 100.0), (0.5, 4.0)])
def test_the_papers_worked_numbers(p_t, ratio):
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


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float32])
def test_hard_targets_of_every_dtype_give_the_same_bits(dtype):
    expected = losses.sigmoid_focal_loss(LOGITS, TARGETS, gamma=0.5, alpha=0.25)
    np.testing.assert_array_equal(
        losses.sigmoid_focal_loss(LOGITS, TARGETS.astype(dtype), gamma=0.5, alpha=0.25), expected
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint32])
def test_labels_of_every_integer_dtype(dtype):
    np.testing.assert_array_equal(
        losses.softmax_cross_entropy(LOGITS, LABELS.astype(dtype)), losses.softmax_cross_entropy(LOGITS, LABELS)
    )


# Numerics


@pytest.mark.parametrize("jit", [False, True])
def test_gamma_zero_is_cross_entropy_to_the_last_bit(jit):
    compiled = jax.jit if jit else lambda f: f
    # Two compiled programs may fuse the same formula differently: jaxlib 0.12 does, by up to 2 ulp.
    maxulp = 3 if jit else 0
    wide = np.concatenate([LOGITS, LOGITS * 100, LOGITS * 1000])
    labels, targets, soft = (np.concatenate([x] * 3) for x in (LABELS, TARGETS, SOFT))
    weights = np.linspace(0.1, 1, 7, dtype=np.float32)
    np.testing.assert_array_max_ulp(
        compiled(lambda z, g: losses.softmax_focal_loss(z, labels, gamma=g, alpha=weights))(wide, 0.0),
        compiled(lambda z: losses.softmax_cross_entropy(z, labels, class_weights=weights))(wide),
        maxulp,
    )
    for t in (targets, soft):
        np.testing.assert_array_max_ulp(
            compiled(lambda z, g, t=t: losses.sigmoid_focal_loss(z, t, gamma=g, alpha=0.25))(wide, 0.0),
            compiled(lambda z, t=t: losses.sigmoid_cross_entropy(z, t, alpha=0.25))(wide),
            maxulp,
        )


def test_a_confident_pixels_tiny_loss_keeps_its_value():
    true = np.log1p(np.exp(-np.float64(19.4)))  # 3.76e-9: log_softmax in float32 says 0.
    logits = jnp.array([19.4, 0.0])
    assert -jax.nn.log_softmax(logits)[0] == 0
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, jnp.int32(0)), true, rtol=1e-5)
    np.testing.assert_allclose(losses.sigmoid_cross_entropy(logits[0], jnp.int32(1)), true, rtol=1e-5)
    np.testing.assert_allclose(losses.sigmoid_cross_entropy(logits[0], jnp.float32(1)), true, rtol=1e-5)
    np.testing.assert_allclose(losses.softmax_focal_loss(logits, jnp.int32(0), gamma=0.5), true**1.5, rtol=1e-5)


@pytest.mark.parametrize("offset", [100.0, 1e4, -1e4])
def test_what_all_logits_share_costs_no_digits(offset):
    logits = np.round(LOGITS * 64).astype(np.float32) / 64 + np.float32(offset)  # exact in float32 at 1e4
    exact = softmax_reference(logits, LABELS), softmax_reference(logits, LABELS, 2.0)
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, LABELS), exact[0], rtol=2e-6)
    np.testing.assert_allclose(losses.softmax_focal_loss(logits, LABELS, gamma=2.0), exact[1], rtol=6e-6)
    uniform = (
        np.log(np.exp(logits.astype(np.float64) - offset).sum(-1)) + offset - logits.mean(-1, dtype=np.float64)
    ).T
    smoothed = losses.softmax_cross_entropy(logits, LABELS, label_smoothing=1.0)
    np.testing.assert_allclose(smoothed, uniform.T, rtol=2e-6)


def per_logit(name):
    """`name` as a function of one logit and γ; to the softmax forms it is one of three, the label or another."""
    if name == "softmax label":
        return lambda z, g: losses.softmax_focal_loss(jnp.stack([z, z * 0, -z]), jnp.int32(0), gamma=g)
    if name == "softmax other":
        return lambda z, g: losses.softmax_focal_loss(jnp.stack([z, z * 0, -z]), jnp.int32(1), gamma=g)
    target = {"0": jnp.int32(0), "1": jnp.int32(1), "soft 0": 0.0, "soft 1": 1.0, "soft .3": 0.3, "tiny": 1e-30}[name]
    if not isinstance(target, float):
        return lambda z, g: losses.sigmoid_focal_loss(z, target, gamma=g)
    return lambda z, g: losses.sigmoid_focal_loss(z, jnp.float32(target), gamma=g)


CURVES = ("softmax label", "softmax other", "0", "1", "soft 0", "soft 1", "soft .3", "tiny")


@functools.cache
def derivatives(curve):
    """(value, first and second derivative by the logit, first by γ) of a curve, compiled, for all argument pairs."""
    f = per_logit(curve)
    functions = f, jax.grad(f), jax.grad(jax.grad(f)), jax.grad(f, argnums=1)
    return jax.jit(jax.vmap(jax.vmap(lambda z, g: [h(z, g) for h in functions], (0, None)), (None, 0)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("curve", CURVES)
def test_values_and_two_derivatives_are_finite(curve, dtype):
    value, *rest = derivatives(curve)(jnp.array(EXTREME, dtype), jnp.array(GAMMAS))
    assert value.dtype == jnp.float32
    assert np.all(np.asarray(value) >= 0)
    for derivative in (value, *rest):
        assert np.isfinite(np.asarray(derivative, np.float32)).all()


@pytest.mark.parametrize("curve", CURVES)
def test_derivatives_agree_with_central_differences(curve):
    step = 1e-4
    with jax.enable_x64(True):
        # 0 is where |z| has its kink, and where every logit of a fresh head is.
        z, g = np.array([-30.0, -5.0, -1.0, 0.0, 0.5, 3.0, 30.0]), np.array(GAMMAS)
        at, above, below = (jax.device_get(derivatives(curve)(z + shift, g)) for shift in (0, step, -step))
    assert at[1].dtype == np.float64
    np.testing.assert_allclose(at[1], (above[0] - below[0]) / (2 * step), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(at[2], (above[1] - below[1]) / (2 * step), rtol=1e-6, atol=1e-7)


def test_the_softmax_gradient_is_the_papers():
    logits, gamma = jnp.array([0.7, -0.2, 1.1]), 2.0
    p = float(jax.nn.softmax(logits)[2])
    # dFL/dx_t = (1 - p_t)^γ (γ p_t log p_t + p_t - 1), and the margin's derivative by its own logit is 1.
    expected = (1 - p) ** gamma * (gamma * p * np.log(p) + p - 1)
    gradient = jax.grad(lambda z: losses.softmax_focal_loss(z, jnp.int32(2), gamma=gamma))(logits)
    np.testing.assert_allclose(gradient[2], expected, rtol=1e-5)
    np.testing.assert_allclose(gradient.sum(), 0, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_logits_are_widened_first(dtype):
    narrow = jnp.asarray(LOGITS, dtype)
    wide = narrow.astype(jnp.float32)
    for f in (losses.softmax_focal_loss, losses.softmax_cross_entropy):
        np.testing.assert_array_equal(f(narrow, LABELS), f(wide, LABELS))
    for f in (losses.sigmoid_focal_loss, losses.sigmoid_cross_entropy):
        np.testing.assert_array_equal(f(narrow, TARGETS), f(wide, TARGETS))
    gradient = jax.grad(lambda z: losses.softmax_focal_loss(z, LABELS).sum())(narrow)
    assert gradient.dtype == dtype


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
    # Not left out it costs infinity, and without smoothing nothing.
    assert np.isinf(jax.jit(loss)(off, None, smoothing)) == (smoothing > 0)


# Pixels that do not exist, and labels that are no class

PIXEL_LOSSES = {
    "softmax_cross_entropy": lambda z, y, k: losses.softmax_cross_entropy(z, y, where=k),
    "softmax_cross_entropy smoothed": lambda z, y, k: losses.softmax_cross_entropy(
        z, y, where=k, class_weights=jnp.arange(7.0), label_smoothing=0.1
    ),
    "softmax_focal_loss": lambda z, y, k: losses.softmax_focal_loss(z, y, gamma=0.5, alpha=jnp.arange(7.0), where=k),
    "sigmoid_cross_entropy": lambda z, y, k: losses.sigmoid_cross_entropy(z[..., 0], y, where=k, alpha=0.25),
    "sigmoid_focal_loss": lambda z, y, k: losses.sigmoid_focal_loss(z[..., 0], y, gamma=0.5, where=k),
    "sigmoid_cross_entropy soft": lambda z, y, k: losses.sigmoid_cross_entropy(
        z[..., 0], y.astype(jnp.float32), where=k
    ),
    "sigmoid_focal_loss soft": lambda z, y, k: losses.sigmoid_focal_loss(
        z[..., 0], y.astype(jnp.float32), gamma=0.5, alpha=0.25, where=k
    ),
}


# One compilation each: per pixel, and summed with its gradient.
COMPILED = {name: jax.jit(loss) for name, loss in PIXEL_LOSSES.items()}
SUMMED = {
    name: jax.jit(jax.value_and_grad(lambda z, y, k, loss=loss: loss(z, y, k).sum()))
    for name, loss in PIXEL_LOSSES.items()
}


@pytest.mark.parametrize("name", PIXEL_LOSSES)
@pytest.mark.parametrize("void", [255, -1])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_what_is_masked_gives_no_loss_and_no_gradient(name, void, garbage):
    labels = LABELS % 2
    value, gradient = SUMMED[name](
        np.where(KEEP[..., None], LOGITS, garbage).astype(np.float32),
        np.where(KEEP, labels, void).astype(np.int32),
        KEEP,
    )
    clean, clean_gradient = SUMMED[name](LOGITS, labels, KEEP)
    np.testing.assert_array_equal(value, clean)
    np.testing.assert_array_equal(gradient, clean_gradient)
    assert not np.any(np.asarray(gradient)[~KEEP])


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_nothing_kept_is_zero(name):
    value, gradient = SUMMED[name](np.full_like(LOGITS, np.nan), LABELS, np.zeros_like(KEEP))
    assert value == 0
    assert not np.any(np.asarray(gradient))


@pytest.mark.parametrize("name", PIXEL_LOSSES)
@pytest.mark.parametrize("label", [-1, 7, 255])
def test_a_kept_label_that_is_no_class_gives_nan_loudly(name, label):
    labels, everything = LABELS % 2, np.ones_like(KEEP)
    labels[1, 2, 3] = label
    bad = np.zeros_like(KEEP)
    bad[1, 2, 3] = True
    np.testing.assert_array_equal(np.isnan(COMPILED[name](LOGITS, labels, everything)), bad)
    _, gradient = SUMMED[name](LOGITS, labels, everything)
    np.testing.assert_array_equal(np.isnan(gradient).any(-1), bad)


@pytest.mark.parametrize("mask", [(1, 4, 5), (2, 1, 1), (4, 5), (5,), ()])
def test_a_mask_broadcasts(mask):
    part = np.random.default_rng(1).uniform(size=mask) < 0.5
    full = np.broadcast_to(part, LABELS.shape)
    for loss in COMPILED.values():
        np.testing.assert_array_equal(loss(LOGITS, LABELS % 2, part), loss(LOGITS, LABELS % 2, full))


# Transforms


@chex.assert_max_traces(n=1)
def _mean_focal(gamma, alpha):
    return losses.softmax_focal_loss(LOGITS, LABELS, gamma=gamma, alpha=alpha).mean()


def test_gamma_and_alpha_are_traced():
    chex.clear_trace_counter()
    compiled = jax.jit(_mean_focal)
    alphas = np.linspace(0.1, 1, 7, dtype=np.float32)
    one_by_one = [compiled(np.float32(g), alphas * np.float32(g + 1)) for g in GAMMAS]
    expected = [softmax_reference(LOGITS, LABELS, g, alphas * (g + 1)).mean() for g in GAMMAS]
    np.testing.assert_allclose(one_by_one, expected, rtol=1e-5)


def test_vmap_over_gamma_and_alpha():
    gammas = np.array(GAMMAS, np.float32)
    alphas = np.linspace(0, 1, len(GAMMAS), dtype=np.float32)
    class_alphas = np.random.default_rng(1).uniform(size=(len(GAMMAS), 7)).astype(np.float32)
    sigmoid = jax.vmap(lambda g, a: losses.sigmoid_focal_loss(LOGITS, TARGETS, gamma=g, alpha=a))(gammas, alphas)
    softmax = jax.vmap(lambda g, a: losses.softmax_focal_loss(LOGITS, LABELS, gamma=g, alpha=a))(gammas, class_alphas)
    for i, gamma in enumerate(GAMMAS):
        alone = SIGMOID_FOCAL(LOGITS, TARGETS, gamma, alphas[i])
        np.testing.assert_allclose(sigmoid[i], alone, rtol=1e-5)
        alone = SOFTMAX_FOCAL(LOGITS, LABELS, gamma, class_alphas[i])
        np.testing.assert_allclose(softmax[i], alone, rtol=1e-5)


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_scan_and_checkpoint_change_nothing(name):
    def total(z):
        def step(carry, image):
            return carry + PIXEL_LOSSES[name](image[0], image[1], image[2]).sum(), None

        return jax.lax.scan(jax.checkpoint(step), jnp.float32(0), (z, LABELS % 2, KEEP))[0]

    _, plain = SUMMED[name](LOGITS, LABELS % 2, KEEP)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(LOGITS), plain, rtol=1e-5, atol=1e-6)


def test_no_gradient_flows_into_targets():
    gradient = jax.grad(lambda t: losses.sigmoid_focal_loss(LOGITS, t).sum())(SOFT)
    assert not np.any(np.asarray(gradient))


# Properties


@settings(max_examples=60)
@given(st.floats(-50, 50, width=32), st.floats(0, 5, width=32), st.floats(0, 1, width=32))
def test_focal_is_at_most_cross_entropy_and_not_negative(z, gamma, target):
    z, gamma, target = jnp.float32(z), jnp.float32(gamma), jnp.float32(target)
    ce, focal = losses.sigmoid_cross_entropy(z, target), losses.sigmoid_focal_loss(z, target, gamma=gamma)
    assert 0 <= focal <= ce * (1 + 1e-6)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_falls_as_the_true_class_gains(gamma):
    z = jnp.linspace(-12, 12, 401)
    logits = jnp.stack([z, jnp.zeros_like(z), -z / 2], axis=-1)
    softmax = SOFTMAX_FOCAL(logits, jnp.zeros(401, jnp.int32), gamma, None)
    sigmoid = SIGMOID_FOCAL(z, jnp.ones(401, jnp.int32), gamma, None)
    for curve in (softmax, sigmoid):
        assert np.all(np.diff(curve) < 0)


# Broken input: the raw functions, since a user has no import hook and must be told all the same

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
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in BROKEN for case in BROKEN[name]])
def test_broken_input_is_named(name, case):
    arguments, error, message = BROKEN[name][case]
    loss = inspect.unwrap(getattr(losses, name))
    good = {"logits": LOGITS} | ({"labels": LABELS} if name.startswith("softmax") else {"targets": TARGETS})
    with pytest.raises(error, match=message):
        loss(**(good | arguments))
