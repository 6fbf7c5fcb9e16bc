import inspect
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax import losses

ABSENT = ("exclude", "zero", "one")

CLASSES = 4
RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(4, 3, 5, CLASSES)) * 3).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, size=(4, 3, 5)).astype(np.int32)
LABELS[1] = np.where(LABELS[1] == 2, 0, LABELS[1])  # an absent class
LABELS[2] = 3  # one class alone
# Void: half of most images, and the whole of the last.
KEEP = RNG.uniform(size=LABELS.shape) < 0.5
KEEP[3] = False

LOSSES = {
    "dice": losses.dice_loss,
    "jaccard": losses.jaccard_loss,
    "tversky": lambda *args, **options: losses.tversky_loss(*args, alpha=0.3, beta=0.7, gamma=1.5, **options),
    "generalized dice": losses.generalized_dice_loss,
}
TVERSKY = {"dice": (0.5, 0.5, 1.0), "jaccard": (1.0, 1.0, 1.0), "tversky": (0.3, 0.7, 1.5)}
GAMMAS = (1.0, 1.5, 2.0, 5.0)


def reference(
    name,
    logits,
    labels,
    where=None,
    squared=False,
    over_batch=False,
    absent="exclude",
    classes=None,
    class_weights=None,
    activation="softmax",
):
    """Returns the textbook's formulas in float64, image by image."""
    logits = np.asarray(logits, np.float64)
    num_classes = logits.shape[-1]
    if activation == "softmax":
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p, t = p / p.sum(-1, keepdims=True), np.eye(num_classes)[labels]
    else:
        p, t = 1 / (1 + np.exp(-logits)), np.asarray(labels, np.float64)
    keep = np.ones(labels.shape, bool) if where is None else where
    keep = np.broadcast_to(keep if keep.ndim == p.ndim else keep[..., None], p.shape)
    axes = (0, 1, 2) if over_batch else (1, 2)
    chosen = list(range(num_classes) if classes is None else classes)
    hit, size, truth, pixels = (
        np.sum(values * keep, axis=axes, keepdims=over_batch).reshape(-1, num_classes)[:, chosen]
        for values in (p * t, p ** (2 if squared else 1), t, np.ones_like(p))
    )
    weights = np.ones(len(chosen)) if class_weights is None else class_weights[chosen]
    values = []
    for hits, p, t, n in zip(hit, size, truth, pixels, strict=True):
        if name == "generalized dice":
            w = np.where(t > 0, 1 / np.maximum(t, 1) ** 2, 0)
            w = np.where((t == 0) & (absent == "one"), w.max(), w)
            with np.errstate(invalid="ignore"):
                pairs = [(n.max(), t.any(), 1 - 2 * (w * hits).sum() / (w * (p + t)).sum(), 1.0)]
        elif name == "matthews":
            denominator = np.sqrt(p * t * (n - p) * (n - t))
            with np.errstate(invalid="ignore"):
                pairs = zip(n, (t > 0) & (t < n), 1 - (hits * n - p * t) / denominator, weights, strict=True)
        else:
            alpha, beta, gamma = TVERSKY[name]
            with np.errstate(invalid="ignore"):
                index = hits / (hits + alpha * (p - hits) + beta * (t - hits))
            pairs = zip(n, t > 0, (1 - index) ** gamma, weights, strict=True)
        for pixels_of_pair, present, loss, weight in pairs:
            if pixels_of_pair > 0 and (present or absent != "exclude"):
                values.append((loss if present else {"zero": 0.0, "one": 1.0}[absent], weight))
    return np.average([v for v, _ in values], weights=[w for _, w in values]) if values else 0.0


# Parity


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("over_batch", [False, True])
@pytest.mark.parametrize("absent", ["exclude", "zero", "one"])
@pytest.mark.parametrize("where", [None, KEEP], ids=["all", "masked"])
def test_equals_the_textbook(name, squared, over_batch, absent, where):
    options = {"where": where, "squared": squared, "over_batch": over_batch, "absent": absent}
    expected = reference(name, LOGITS, LABELS, **options)
    np.testing.assert_allclose(LOSSES[name](LOGITS, LABELS, **options), expected, rtol=2e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("absent", ["exclude", "zero", "one"])
@pytest.mark.parametrize("classes", [(2,), (3, 1), range(1, 4)])
def test_classes_selects_the_classes_that_count(name, absent, classes):
    # Class 2 is in neither image 1 nor 2: images with no class at all.
    options = {"where": KEEP, "absent": absent, "classes": classes}
    expected = reference(name, LOGITS, LABELS, **options)
    np.testing.assert_allclose(LOSSES[name](LOGITS, LABELS, **options), expected, rtol=2e-6)


@pytest.mark.parametrize("name", TVERSKY)
@pytest.mark.parametrize("over_batch", [False, True])
@pytest.mark.parametrize("absent", ["exclude", "zero", "one"])
@pytest.mark.parametrize("classes", [None, (3, 1)])
def test_class_weights_give_the_weighted_mean_over_counted_pairs(name, over_batch, absent, classes):
    weights = np.array([0.2, 3.0, 0.0, 1.5])
    options = {"where": KEEP, "over_batch": over_batch, "absent": absent, "classes": classes}
    expected = reference(name, LOGITS, LABELS, class_weights=weights, **options)
    loss = LOSSES[name](LOGITS, LABELS, class_weights=weights.astype(np.float32), **options)
    np.testing.assert_allclose(loss, expected, rtol=2e-6)


@pytest.mark.parametrize("name", TVERSKY)
def test_equal_class_weights_change_nothing_and_zero_weights_give_zero(name):
    loss = jax.jit(lambda weights: LOSSES[name](LOGITS, LABELS, where=KEEP, class_weights=weights))
    np.testing.assert_allclose(loss(np.full(CLASSES, 7.0)), LOSSES[name](LOGITS, LABELS, where=KEEP), rtol=1e-6)
    assert loss(np.zeros(CLASSES)) == 0


def test_a_class_weight_of_zero_leaves_the_class_out():
    without = losses.dice_loss(LOGITS, LABELS, class_weights=np.array([1.0, 1.0, 0.0, 1.0]))
    np.testing.assert_allclose(without, losses.dice_loss(LOGITS, LABELS, classes=(0, 1, 3)), rtol=1e-6)


# Sigmoid channels and the Matthews correlation

TARGETS = RNG.uniform(size=LOGITS.shape) < [0.1, 0.3, 0.5, 0.9]
TARGETS[1, ..., 2], TARGETS[2, ..., 1] = False, True  # a channel without a positive, and one of positives alone
KEEP_CHANNELS = KEEP[..., None] & (RNG.uniform(size=LOGITS.shape) < 0.8)
ALL = LOSSES | {"matthews": losses.matthews_loss}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("over_batch", [False, True])
@pytest.mark.parametrize("absent", ["exclude", "zero", "one"])
def test_sigmoid_channels_equal_the_textbook(name, over_batch, absent):
    options = {"over_batch": over_batch, "absent": absent, "activation": "sigmoid"}
    loss = jax.jit(lambda z, t, k: ALL[name](z, t, where=k, **options))
    for where in (KEEP, KEEP_CHANNELS):
        expected = reference(name, LOGITS, TARGETS, where=where, **options)
        np.testing.assert_allclose(loss(LOGITS, TARGETS, where), expected, rtol=5e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_sigmoid_channels_of_squared_sums_classes_and_weights(name):
    options = {"squared": True, "classes": (3, 1), "activation": "sigmoid", "where": KEEP_CHANNELS}
    options |= {} if name == "generalized dice" else {"class_weights": np.array([9.0, 0.5, 9.0, 2.0])}
    expected = reference(name, LOGITS, TARGETS, **options)
    loss = jax.jit(lambda t: ALL[name](LOGITS, t, **options))
    np.testing.assert_allclose(loss(TARGETS), expected, rtol=5e-6)
    np.testing.assert_array_equal(loss(TARGETS.astype(np.float32)), loss(TARGETS.astype(np.int8)))


@pytest.mark.parametrize("name", ALL)
def test_one_sigmoid_channel_is_class_1_of_two(name):
    z, t = LOGITS[..., 0], TARGETS[..., 2]

    def both(z):
        pair = jnp.stack([jnp.zeros_like(z), z], axis=-1)
        softmax = ALL[name](pair, t.astype(np.int32), where=KEEP, classes=(1,))
        return softmax, ALL[name](z[..., None], t[..., None], where=KEEP, activation="sigmoid")

    values, slopes = jax.jit(lambda z: (both(z), jax.jacrev(both)(z)))(z)
    np.testing.assert_allclose(*values, rtol=1e-6)
    np.testing.assert_allclose(*slopes, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", ALL)
def test_masked_sigmoid_channels_have_no_gradient_and_wrong_targets_give_nan(name):
    def loss(z, t):
        return ALL[name](z, t, where=KEEP_CHANNELS, activation="sigmoid")

    run = jax.jit(jax.value_and_grad(loss))
    expected = run(LOGITS, TARGETS.astype(np.float32))
    value, gradient = run(np.where(KEEP_CHANNELS, LOGITS, np.nan), np.where(KEEP_CHANNELS, TARGETS, np.nan))
    np.testing.assert_array_equal(value, expected[0])
    np.testing.assert_array_equal(gradient, expected[1])
    assert not np.any(np.asarray(gradient)[~KEEP_CHANNELS])
    at = tuple(np.argwhere(KEEP_CHANNELS)[3])
    for wrong in (0.5 if name == "matthews" else 1.001, 2.0, -1.0):
        targets = TARGETS.astype(np.float32)
        targets[at] = wrong
        value, gradient = run(LOGITS, targets)
        assert np.isnan(value)
        assert np.isnan(gradient[at])


# Soft targets

SOFT = RNG.dirichlet(np.full(CLASSES, 0.3), size=LABELS.shape).astype(np.float32)
SOFT[0, ..., 2], SOFT[0, ..., 1] = 0, SOFT[0, ..., 1] + SOFT[0, ..., 2]  # a class that is absent from an image


def soft_reference(name, p, t, keep, squared, over_batch):
    """Returns the losses of soft targets as zifuwanggg/JDTLosses has them (jdt_loss.py), without its constant.

    Norms of prediction, target and their difference give tp, fp and fn.
    """
    order, axes = 1 + squared, (0, 1, 2) if over_batch else (1, 2)
    keep = np.broadcast_to(keep[..., None], p.shape)
    size, truth, difference, labelled = (
        np.sum(np.abs(values) ** power * keep, axis=axes, keepdims=over_batch).reshape(-1, CLASSES)
        for values, power in ((p, order), (t, order), (p - t, order), (t, 1))
    )
    tp = (size + truth - difference) / 2
    fp, fn = size - tp, truth - tp
    present = labelled > 0
    if name == "generalized dice":
        w = np.where(present, 1 / np.where(present, labelled, 1) ** 2, 0)[present.any(-1)]
        tp, both = tp[present.any(-1)], (size + truth)[present.any(-1)]
        return np.mean(1 - 2 * (w * tp).sum(-1) / (w * both).sum(-1))
    alpha, beta, gamma = TVERSKY[name]
    tp, fp, fn = tp[present], fp[present], fn[present]
    return np.mean(np.maximum(1 - tp / (tp + alpha * fp + beta * fn), 0) ** gamma)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("over_batch", [False, True])
def test_soft_targets_equal_the_authors_formula(name, squared, over_batch):
    z, options = LOGITS.astype(np.float64), {"where": KEEP, "squared": squared, "over_batch": over_batch}
    softmax, sigmoid = np.exp(z) / np.exp(z).sum(-1, keepdims=True), 1 / (1 + np.exp(-z))
    for activation, p in (("softmax", softmax), ("sigmoid", sigmoid)):
        loss = jax.jit(lambda t, a=activation: LOSSES[name](LOGITS, t, activation=a, **options))
        expected = soft_reference(name, p, SOFT.astype(np.float64), KEEP, squared, over_batch)
        np.testing.assert_allclose(loss(SOFT), expected, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("squared", [False, True])
def test_soft_targets_of_zero_and_one_are_labels(name, squared):
    run = jax.jit(jax.value_and_grad(lambda z, t: LOSSES[name](z, t, where=KEEP, squared=squared)))
    hard, soft = run(LOGITS, LABELS), run(LOGITS, np.eye(CLASSES, dtype=np.float32)[LABELS])
    np.testing.assert_allclose(soft[0], hard[0], rtol=1e-6)
    np.testing.assert_allclose(soft[1], hard[1], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("squared", [False, True])
def test_soft_targets_are_the_minimum(name, squared):
    t = np.clip(SOFT, 0.01, None) / np.clip(SOFT, 0.01, None).sum(-1, keepdims=True)
    loss = jax.jit(jax.vmap(lambda z: LOSSES[name](z, t, where=KEEP, squared=squared)))
    argmax = 30 * np.eye(CLASSES, dtype=np.float32)[t.argmax(-1)]  # the minimum of the product form
    at_target, elsewhere = loss(np.stack([np.log(t), argmax]))
    assert at_target < 1e-6 < 0.05 < elsewhere


@pytest.mark.parametrize("function", [losses.matthews_loss, losses.cl_dice_loss, losses.boundary_loss])
def test_losses_of_hard_labels_refuse_distributions(function):
    with pytest.raises(TypeError, match=r"labels must be integers; got float32 of shape \(4, 3, 5, 4\)"):
        inspect.unwrap(function)(LOGITS, SOFT)


@pytest.mark.parametrize("over_batch", [False, True])
@pytest.mark.parametrize("absent", ["exclude", "zero", "one"])
@pytest.mark.parametrize("scale", [1, 4])
def test_matthews_loss_equals_the_textbook(over_batch, absent, scale):
    options = {"where": KEEP, "over_batch": over_batch, "absent": absent, "classes": (3, 0, 2)}
    options["class_weights"] = np.array([0.5, 0.0, 1.0, 2.0])
    loss = jax.jit(lambda z: losses.matthews_loss(z, LABELS, **options))(LOGITS * scale)
    np.testing.assert_allclose(loss, reference("matthews", LOGITS * scale, LABELS, **options), rtol=5e-6)


def test_matthews_loss_of_a_hard_prediction_is_one_minus_the_coefficient():
    labels, predictions = LABELS[0] == 1, LABELS[1] == 1
    loss = jax.jit(lambda z: losses.matthews_loss(z, labels[None, ..., None], activation="sigmoid"))
    hard = np.where(predictions, 1e4, -1e4).astype(np.float32)[None, ..., None]
    coefficient = np.corrcoef(labels.ravel(), predictions.ravel())[0, 1]  # of binary variables: the same
    np.testing.assert_allclose(loss(hard), 1 - coefficient, rtol=1e-6)
    np.testing.assert_allclose(loss(-hard), 1 + coefficient, rtol=1e-6)
    np.testing.assert_allclose(loss(np.zeros_like(hard)), 1, rtol=1e-6)
    truth = np.where(labels, 1e4, -1e4).astype(np.float32)[None, ..., None]
    assert loss(truth) == 0
    np.testing.assert_allclose(loss(-truth), 2, rtol=1e-6)


@pytest.mark.parametrize("confidence", [25.0, -25.0, 12.0])
def test_matthews_loss_and_gradient_keep_their_digits(confidence):
    """Nearly right, nearly wrong, and nearly one class alone."""
    logits = confidence * np.eye(CLASSES, dtype=np.float32)[LABELS]
    logits[0, ..., 1] += 40 if confidence == 12 else 0
    loss = jax.jit(jax.value_and_grad(lambda z: losses.matthews_loss(z, LABELS)))
    with jax.enable_x64(True):
        expected, slope = loss(logits.astype(np.float64))
    value, gradient = loss(logits)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-6 * np.abs(slope).max())


def test_matthews_loss_and_its_derivatives_are_finite_everywhere():
    def derivatives(logits):
        loss = partial(losses.matthews_loss, labels=EXTREME_LABELS)
        return loss(logits), jax.grad(loss)(logits), jax.hessian(loss)(logits)

    for dtype in (jnp.float32, jnp.bfloat16):
        results = jax.jit(jax.vmap(derivatives))(jnp.asarray(EXTREME_LOGITS, dtype))
        assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in results)
        assert 0 <= results[0].min() <= results[0].max() <= 2


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("over_batch", [False, True])
def test_gradients_are_the_textbooks_central_differences(name, squared, over_batch):
    options = {"where": KEEP[:3], "squared": squared, "over_batch": over_batch, "absent": "one"}
    logits, labels = LOGITS[:3].astype(np.float64), LABELS[:3]
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda z: LOSSES[name](z, labels, **options)))(logits)
        assert gradient.dtype == jnp.float64
    for position in [(0, 0, 1, 0), (0, 2, 2, 3), (1, 1, 1, 2), (2, 0, 0, 3), (2, 2, 4, 1)]:
        step = np.zeros_like(logits)
        step[position] = 1e-5
        ahead, behind = (reference(name, z, labels, **options) for z in (logits + step, logits - step))
        np.testing.assert_allclose(gradient[position], (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-10)


LECTURE = np.array(
    [[0.01, 0.03, 0.02, 0.02], [0.05, 0.12, 0.09, 0.07], [0.89, 0.85, 0.88, 0.91], [0.99, 0.97, 0.95, 0.97]]
)


@pytest.mark.parametrize(("squared", "power", "total"), [(False, 1, 7.82), (True, 2, 6.9132)])
def test_the_lectures_grid(squared, power, total):
    target = np.array([[0] * 4, [0] * 4, [1] * 4, [1] * 4], np.int32)
    # The slide prints 7.82 for the squared sum too.
    np.testing.assert_allclose([(LECTURE * target).sum(), (LECTURE**power).sum()], [7.41, total], rtol=1e-12)
    z = np.log(LECTURE / (1 - LECTURE)).astype(np.float32)[None]
    loss = jax.jit(lambda z: losses.dice_loss(z, target[None], squared=squared, classes=(1,)))(
        np.stack([np.zeros_like(z), z], -1)
    )
    np.testing.assert_allclose(loss, 1 - 2 * 7.41 / (total + 8), rtol=2e-6)


@pytest.mark.parametrize("squared", [False, True])
def test_dice_and_jaccard_are_the_same_for_each_pair(squared):
    one = {"squared": squared, "classes": (0,), "where": KEEP[:1]}
    dice, jaccard = jax.jit(
        lambda: [1 - loss(LOGITS[:1], LABELS[:1], **one) for loss in (losses.dice_loss, losses.jaccard_loss)]
    )()
    np.testing.assert_allclose(dice, 2 * jaccard / (1 + jaccard), rtol=1e-5)


@pytest.mark.parametrize(("name", "weight"), [("dice", 0.5), ("jaccard", 1)])
def test_dice_and_jaccard_are_tverskys(name, weight):
    ours = losses.tversky_loss(LOGITS, LABELS, alpha=weight, beta=weight)
    np.testing.assert_array_equal(LOSSES[name](LOGITS, LABELS), ours)


def test_alpha_weighs_false_positives_and_beta_false_negatives():
    def loss(false_positive, alpha, beta):
        # Four pixels, two of class 1; one pixel wrong.
        z = np.array([30.0, 30.0, -30.0, -30.0], np.float32)
        z[2 if false_positive else 1] *= -1
        logits = np.stack([np.zeros_like(z), z], -1)[None]
        return losses.tversky_loss(logits, np.array([[1, 1, 0, 0]]), alpha=alpha, beta=beta, classes=(1,))

    loss = jax.jit(loss, static_argnums=0)
    np.testing.assert_allclose(loss(True, 0.25, 0.75), 0.25 / 2.25, rtol=1e-6)
    np.testing.assert_allclose(loss(False, 0.25, 0.75), 0.75 / 1.75, rtol=1e-6)


# Numerics


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("squared", [False, True])
def test_the_tiny_loss_of_a_confident_prediction_is_not_rounded_to_zero(name, squared):
    logits = 25 * np.eye(CLASSES, dtype=np.float32)[LABELS]
    loss = jax.jit(jax.value_and_grad(lambda z: LOSSES[name](z, LABELS, where=KEEP, squared=squared)))
    with jax.enable_x64(True):
        expected, slope = loss(logits.astype(np.float64))
    value, gradient = loss(logits)
    assert 0 < value < 1e-9
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.25, 0.75])
def test_tversky_of_an_exponent_below_one_equals_the_textbook_in_value_and_gradient(gamma):
    def textbook(z):
        p, t = np.exp(z) / np.exp(z).sum(-1, keepdims=True), np.eye(CLASSES)[LABELS[:1]]
        hit, p, t = (x.sum((1, 2)) for x in (p * t, p, t))
        return np.mean((1 - hit / (hit + 0.3 * (p - hit) + 0.7 * (t - hit))) ** gamma)

    logits, step = LOGITS[:1].astype(np.float64), 1e-6
    with jax.enable_x64(True):
        value, gradient = jax.jit(
            jax.value_and_grad(lambda z: losses.tversky_loss(z, LABELS[:1], alpha=0.3, beta=0.7, gamma=gamma))
        )(logits)
    np.testing.assert_allclose(value, textbook(logits), rtol=1e-9)
    for pixel in ((0, 0, 0, 0), (0, 1, 2, 3), (0, 2, 4, 1)):
        shift = np.zeros_like(logits)
        shift[pixel] = step
        slope = (textbook(logits + shift) - textbook(logits - shift)) / (2 * step)
        np.testing.assert_allclose(gradient[pixel], slope, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_tversky_of_an_exponent_below_one_and_its_slope_fall_to_zero(gamma):
    confidence = jnp.array([1.0, 10.0, 20.0, 40.0, 60.0, 1e4])
    labels = jnp.array([[[0, 1]]])

    def loss(z):
        logits = z * jax.nn.one_hot(labels, 2)
        return losses.tversky_loss(logits, labels, gamma=gamma)

    value, slope = jax.jit(jax.vmap(jax.value_and_grad(loss)))(confidence)
    assert np.all(np.diff(value) < 0)
    assert value[-1] == slope[-1] == 0
    # 1 - TI = σ(-z), until it is so small that the power begins as a line.
    exact = np.exp(-gamma * np.logaddexp(0, np.asarray(confidence[:4], np.float64)))
    np.testing.assert_allclose(value[:4], exact, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("squared", [False, True])
def test_a_perfect_prediction_costs_nothing(name, squared):
    logits = 1e4 * np.eye(CLASSES, dtype=np.float32)[LABELS]
    value, gradient = jax.jit(jax.value_and_grad(lambda z: LOSSES[name](z, LABELS, squared=squared)))(logits)
    assert value == 0
    assert not np.any(np.asarray(gradient))


EXTREME = np.array([-1e4, -300.0, -90.0, -45.0, -17.0, -1.0, 0.0, 1e-3, 1.0, 17.0, 45.0, 90.0, 300.0, 1e4], np.float32)
# Four pixels of two images, class 2 absent: random logits, then one right and one wrong however confident.
EXTREME_LABELS = np.array([[0, 1], [1, 1]], np.int32)
EXTREME_LOGITS = np.concatenate(
    [
        RNG.choice(EXTREME, size=(200, 2, 2, 3)),
        EXTREME.reshape(-1, 1, 1, 1) * np.eye(3, dtype=np.float32)[EXTREME_LABELS],
    ]
)


def _tversky_to_second_order(squared, over_batch):
    def loss(logits, weights, gamma):
        alpha, beta = weights
        return losses.tversky_loss(
            logits,
            EXTREME_LABELS,
            alpha=alpha,
            beta=beta,
            gamma=gamma,
            squared=squared,
            over_batch=over_batch,
        )

    def derivatives(logits, weights, gamma):
        first = jax.value_and_grad(loss, argnums=(0, 1, 2))(logits, weights, gamma)
        return first, jax.hessian(loss)(logits, weights, gamma)

    every = jax.vmap(derivatives, in_axes=(0, None, None))
    return jax.jit(jax.vmap(jax.vmap(every, in_axes=(None, 0, None)), in_axes=(None, None, 0)))


@pytest.mark.parametrize(
    ("squared", "over_batch", "dtype"),
    [(False, False, jnp.float32), (True, True, jnp.float32), (False, False, jnp.bfloat16)],
)
def test_tversky_and_its_derivatives_are_finite_everywhere(squared, over_batch, dtype):
    weights = np.array([[0.5, 0.5], [1, 1], [0.3, 0.7], [0, 1], [1, 0], [0, 0]], np.float32)
    weights = weights[weights[:, 0] <= weights[:, 1]] if squared else weights
    derivatives = _tversky_to_second_order(squared, over_batch)
    first, second = derivatives(jnp.asarray(EXTREME_LOGITS, dtype), weights, np.float32((0.1, 0.5, *GAMMAS)))
    (value, _), (of_logits, *_) = first, first[1]
    assert value.dtype == jnp.float32
    assert of_logits.dtype == dtype
    assert 0 <= value.min() <= value.max() <= 1
    finite = np.stack(
        [
            np.isfinite(np.asarray(x, np.float32)).reshape(*value.shape[:2], -1).all(axis=-1)
            for x in jax.tree.leaves((first, second))
        ]
    ).all(axis=0)
    finite[:2, weights[:, 1] == 0] = True  # γ < 1 needs β > 0
    assert finite.all()


@pytest.mark.parametrize(
    ("squared", "over_batch", "absent"), [(False, False, "exclude"), (True, True, "one"), (False, False, "one")]
)
def test_generalized_dice_and_its_derivatives_are_finite_everywhere(squared, over_batch, absent):
    def loss(logits):
        return losses.generalized_dice_loss(
            logits, EXTREME_LABELS, squared=squared, over_batch=over_batch, absent=absent
        )

    results = jax.jit(jax.vmap(lambda z: (loss(z), jax.grad(loss)(z), jax.hessian(loss)(z))))(EXTREME_LOGITS)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))


def test_precision_alone_is_exact_where_the_class_is_hardly_predicted():
    # β = 0: the quotient of two sums near 1e-26, whose squares float32 cannot hold.
    def loss(z):
        logits = jnp.stack([jnp.zeros_like(z), z], axis=-1)
        return losses.tversky_loss(logits, jnp.array([[1, 0]]), alpha=1.0, beta=0.0, classes=(1,))

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.array([[-60.0, -60.0]]))
    np.testing.assert_allclose(value, 0.5, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-0.25, 0.25]], rtol=1e-5)
    curvature = jax.jit(jax.hessian(loss))(jnp.array([[-60.0, -61.0]]))[0, 0, 0, 0]
    share = 1 / (1 + np.e)  # of the wrong pixel
    np.testing.assert_allclose(curvature, share * (1 - share) * (1 - 2 * share), rtol=1e-4)


def test_traced_alpha_above_beta_is_cut_off_at_zero_for_squared_sums():
    z = jnp.array([[2.0, 2.0, -9.0]])
    logits = jnp.stack([jnp.zeros_like(z), z], axis=-1)
    loss = jax.jit(
        lambda alpha: losses.tversky_loss(
            logits, jnp.array([[1, 1, 0]]), alpha=alpha, beta=0.1, squared=True, classes=(1,)
        )
    )
    assert loss(0.9) == 0
    assert loss(0.1) > 0


@pytest.mark.parametrize("name", LOSSES)
def test_loss_of_a_billion_pixels_equals_the_loss_of_their_sample(name):
    # As a reduction over a million copies of the batch; a rare class has a million pixels, a frequent one 2e9.
    logits, labels = np.tile(LOGITS, (1, 12, 12, 1)), np.zeros((4, 36, 60), np.int32)
    labels[0, 0, :3] = 1, 2, 3

    def loss(axis_name=None):
        return LOSSES[name](logits, labels, over_batch=True, axis_name=axis_name)

    copies = jax.vmap(lambda _: loss("copies"), in_axes=None, out_axes=None, axis_size=250_000, axis_name="copies")
    np.testing.assert_allclose(jax.jit(copies)(0.0), jax.jit(loss)(), rtol=1e-5)


def test_narrow_floats_are_computed_in_float32_and_float64_stays():
    narrow = jnp.asarray(LOGITS, jnp.bfloat16)
    assert losses.dice_loss(narrow, LABELS) == losses.dice_loss(narrow.astype(jnp.float32), LABELS)
    assert losses.dice_loss(narrow, LABELS).dtype == jnp.float32
    with jax.enable_x64(True):
        assert losses.tversky_loss(LOGITS.astype(np.float64), LABELS, gamma=2).dtype == jnp.float64


# Masks, absent classes and invalid labels


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("over_batch", "absent"), [(False, "exclude"), (False, "one"), (True, "exclude")])
def test_masked_pixels_have_no_value_and_no_gradient(name, over_batch, absent):
    loss = jax.jit(
        jax.value_and_grad(lambda z, y, k: LOSSES[name](z, y, where=k, over_batch=over_batch, absent=absent))
    )
    expected = loss(LOGITS, LABELS, KEEP)
    noise = np.where(KEEP[..., None], LOGITS, np.nan).astype(np.float32)
    value, gradient = loss(noise, np.where(KEEP, LABELS, 255).astype(np.int32), KEEP)
    np.testing.assert_array_equal(value, expected[0])
    np.testing.assert_array_equal(gradient, expected[1])
    assert np.any(np.asarray(gradient))
    assert not np.any(np.asarray(gradient)[~KEEP])
    value, gradient = loss(noise * np.nan, LABELS, np.zeros_like(KEEP))
    assert value == 0
    assert not np.any(np.asarray(gradient))


@pytest.mark.parametrize("absent", ["exclude", "zero", "one"])
def test_an_absent_class_has_no_gradient_of_its_own(absent):
    gradient = jax.grad(lambda z: losses.dice_loss(z, LABELS[2:3], classes=(1,), absent=absent))
    gradient = jax.jit(gradient)(LOGITS[2:3])
    assert not np.any(np.asarray(gradient))


def test_generalized_dice_loss_counts_false_positives_of_an_absent_class_only_with_one():
    def slope(absent):
        gradient = jax.grad(lambda z: losses.generalized_dice_loss(z, LABELS[2:3], classes=(1, 3), absent=absent))
        return np.asarray(jax.jit(gradient)(LOGITS[2:3]))[..., 1].sum()

    assert slope("exclude") == slope("zero")
    assert slope("one") > slope("zero")


def test_an_image_of_absent_classes_is_one_pair_of_generalized_dice():
    def loss(absent):
        return losses.generalized_dice_loss(LOGITS[1:3], LABELS[1:3], classes=(1,), absent=absent)

    alone = jax.jit(lambda: losses.generalized_dice_loss(LOGITS[1:2], LABELS[1:2], classes=(1,)))()
    policies = jax.jit(lambda: [loss("exclude"), loss("zero"), loss("one")])()
    np.testing.assert_allclose(policies, [alone, alone / 2, (alone + 1) / 2], rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_unmasked_invalid_labels_give_nan(name):
    every, one = (
        jax.jit(jax.value_and_grad(lambda z, y, classes=classes: LOSSES[name](z, y, classes=classes)))
        for classes in (None, (1,))
    )
    for label in (-1, CLASSES, 255):
        # In an image of which no class is present, and so no pair is counted.
        value, gradient = one(LOGITS, np.full_like(LABELS, label))
        assert np.isnan(value), label
        assert np.isnan(gradient).any(-1).all(), label
        value, gradient = every(LOGITS, np.where(np.arange(5) == 2, np.int32(label), LABELS))
        assert np.isnan(value), label
        assert np.isnan(gradient[:, :, 2]).any(-1).all(), label


def test_a_mask_broadcasts_and_labels_come_in_every_integer_dtype():
    rows = np.array([[True], [False], [True]])
    expected = losses.dice_loss(LOGITS, LABELS, where=np.broadcast_to(rows, LABELS.shape))
    for dtype in (np.uint8, np.int8, np.uint32):
        np.testing.assert_array_equal(losses.dice_loss(LOGITS, LABELS.astype(dtype), where=rows), expected)


@pytest.mark.parametrize(
    "shape", [(15,), *(pytest.param(s, marks=pytest.mark.slow) for s in ((1, 3, 5), (3, 1, 5, 1)))]
)
def test_images_have_any_number_of_axes(shape):
    expected = losses.dice_loss(LOGITS, LABELS, where=KEEP)
    logits, labels, keep = (x.reshape(4, *shape, *x.shape[3:]) for x in (LOGITS, LABELS, KEEP))
    loss = jax.jit(lambda z, y, k: losses.dice_loss(z, y, where=k))(logits, labels, keep)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


# Transforms and devices


def test_a_sweep_over_alpha_beta_and_gamma_compiles_once():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def loss(alpha, beta, gamma):
        return losses.tversky_loss(LOGITS, LABELS, alpha=alpha, beta=beta, gamma=gamma, where=KEEP)

    alphas, betas = jnp.linspace(0.1, 0.4, 4), jnp.linspace(0.9, 0.6, 4)
    alone = [loss(*cell) for cell in zip(alphas, betas, jnp.array(GAMMAS), strict=True)]
    chex.clear_trace_counter()
    np.testing.assert_allclose(jax.vmap(loss)(alphas, betas, jnp.array(GAMMAS)), alone, rtol=1e-6)
    concrete = losses.tversky_loss(LOGITS, LABELS, alpha=alphas[1], beta=betas[1], gamma=GAMMAS[1], where=KEEP)
    np.testing.assert_allclose(alone[1], concrete, rtol=1e-6)


# Properties


@settings(max_examples=15)
@given(st.sampled_from(sorted(LOSSES)), st.booleans(), st.sampled_from(ABSENT), st.integers(0, 2**31))
def test_losses_are_independent_of_order_and_void_pixels(name, squared, absent, seed):
    rng = np.random.default_rng(seed)
    scale = rng.choice([0.1, 3, 100])
    logits = (rng.normal(size=LOGITS.shape) * scale).astype(np.float32)
    labels, keep = rng.integers(0, CLASSES, LABELS.shape).astype(np.int32), rng.uniform(size=KEEP.shape) < rng.uniform()
    options = {"squared": squared, "absent": absent}
    expected = LOSSES[name](logits, labels, where=keep, **options)
    assert 0 <= expected <= 1

    # Pixels in another order within each image, and as many void ones more; images in another order, with void ones.
    pixels, images = rng.permutation(30), rng.permutation(6)

    def moved(x, void):
        x = x.reshape(4, 15, *x.shape[3:])
        x = np.concatenate([x, np.full_like(x, void)], axis=1)[:, pixels]
        return np.concatenate([x, np.full_like(x[:2], void)])[images]

    same = LOSSES[name](moved(logits, np.nan), moved(labels, 255), where=moved(keep, False), **options)
    np.testing.assert_allclose(same, expected, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("squared", [False, True])
def test_falls_as_the_truth_gains(name, squared):
    z = np.linspace(-8, 40, 97, dtype=np.float32)
    confident = z.reshape(-1, 1, 1, 1, 1) * np.eye(CLASSES, dtype=np.float32)[LABELS][None]
    curve = jax.jit(jax.vmap(lambda logits: LOSSES[name](logits, LABELS, squared=squared)))(confident)
    assert np.all(np.diff(curve) < 0)


# Errors of the undecorated functions: a user has no import hook

FUNCTIONS = ("dice_loss", "jaccard_loss", "tversky_loss", "generalized_dice_loss", "matthews_loss")
BROKEN = {
    "no pixel axis": (
        {"logits": LOGITS[0, 0], "labels": LABELS[0, 0]},
        ValueError,
        r"logits must be \[batch, ..., classes\] with at least one axis of pixels .*got shape \(5, 4\)",
    ),
    "one class": (
        {"logits": LOGITS[..., :1]},
        ValueError,
        r"2 classes, .*got shape \(4, 3, 5, 1\). For one sigmoid logit z per pixel use activation=\"sigmoid\"",
    ),
    "activation": ({"activation": "relu"}, ValueError, r"activation must be one of 'softmax', 'sigmoid'; got 'relu'"),
    "no channel": (
        {"logits": LOGITS[..., :0], "activation": "sigmoid"},
        ValueError,
        r"logits must be \[batch, ..., channels\] with .*1 channel, .*got shape \(4, 3, 5, 0\)",
    ),
    "class labels of channels": (
        {"activation": "sigmoid"},
        ValueError,
        r"labels must have the shape of logits, \(4, 3, 5, 4\); got \(4, 3, 5\)",
    ),
    "rank": ({"labels": LABELS[0]}, ValueError, r"labels must have .*\(4, 3, 5\); got \(3, 5\)"),
    "shape": ({"labels": LABELS[:2]}, ValueError, r"labels must have .*\(4, 3, 5\); got \(2, 3, 5\)"),
    "float labels": ({"labels": KEEP * 1.0}, TypeError, r"labels must be integers; got float32 of shape \(4, 3, 5\)"),
    "integer logits": ({"logits": LOGITS.astype(int)}, TypeError, r"logits must be floating point; got int32"),
    "mask of labels": ({"where": LABELS}, TypeError, r"where must be boolean; got int32"),
    "mask of images": ({"where": KEEP[:, 0, 0]}, ValueError, r"where must have shape \(4, 3, 5\).*got \(4,\)"),
    "absent": ({"absent": "nan"}, ValueError, r"absent must be one of 'exclude', 'zero', 'one'; got 'nan'"),
    "no classes": ({"classes": ()}, ValueError, r"classes must be None or .*in \[0, 4\), at least one; got \(\)"),
    "class twice": ({"classes": [1, 1]}, ValueError, r"classes must be None or .*distinct .*got \[1, 1\]"),
    "no such class": ({"classes": (1, 4)}, ValueError, r"classes must be None or .*in \[0, 4\).*got \(1, 4\)"),
    "class from the end": ({"classes": (-1,)}, ValueError, r"classes must be None or .*in \[0, 4\).*got \(-1,\)"),
    "one class index": ({"classes": 1}, ValueError, r"classes must be None or a sequence .*got 1"),
    "mask of classes": ({"classes": (True, False)}, ValueError, r"classes must be None or .*got \(True, False\)"),
}
BROKEN_TVERSKY = {
    "negative alpha": ({"alpha": -0.1}, r"alpha must be at least 0; got -0.1"),
    "negative beta": ({"beta": -1}, r"beta must be at least 0; got -1"),
    "gamma": ({"gamma": 0.0}, r"gamma must be finite and more than 0; got 0"),
    "gamma below 1 without beta": (
        {"beta": 0.0, "gamma": 0.5},
        r"beta must be more than 0 with gamma < 1; got beta=0 and gamma=0.5",
    ),
    "gamma a class": ({"gamma": np.ones(4)}, r"gamma must be a scalar; got shape \(4,\)"),
    "squared": (
        {"alpha": 0.7, "beta": 0.3, "squared": True},
        r"alpha must be at most beta with squared=True; got alpha=0.7 and beta=0.3",
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("case", BROKEN)
def test_invalid_arguments_are_named(function, case):
    arguments, error, message = BROKEN[case]
    loss = inspect.unwrap(getattr(losses, function))
    with pytest.raises(error, match=message):
        loss(**({"logits": LOGITS, "labels": LABELS} | arguments))


@pytest.mark.parametrize("function", ["dice_loss", "jaccard_loss", "tversky_loss"])
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(3), r"class_weights must have one value per class, shape \(4,\); got shape \(3,\)"),
        ([1.0, -2.0, 1.0, 1.0], r"class_weights must be at least 0; got -2 at index \(1,\)"),
    ],
)
def test_invalid_class_weights_are_named(function, weights, message):
    loss = inspect.unwrap(getattr(losses, function))
    with pytest.raises(ValueError, match=message):
        loss(LOGITS, LABELS, class_weights=weights)


@pytest.mark.parametrize("case", BROKEN_TVERSKY)
def test_invalid_tversky_weights_are_named(case):
    arguments, message = BROKEN_TVERSKY[case]
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(losses.tversky_loss)(LOGITS, LABELS, **arguments)
