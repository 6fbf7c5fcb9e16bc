import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from segjax import losses

CLASSES = 3
RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(3, 9, 8, CLASSES)) * 3).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, size=(3, 9, 8)).astype(np.int32)
LABELS[0, 2:4, 1:7], LABELS[0, 5:8, 2:6] = 1, 2  # structures with an inside
LABELS[1] = np.where(LABELS[1] == 2, 0, LABELS[1])  # an absent class
LABELS[2] = 1  # one class alone
KEEP = RNG.uniform(size=LABELS.shape) < 0.8
KEEP[1, :, :2] = False
WEIGHTS = np.array([0.5, 2.0, 1.0])
ALL = np.ones_like(KEEP)


def softmax(logits):
    p = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


# clDice

CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)


def skeleton(image, keep, iterations):
    """Ports `soft_skel` of github.com/jocpae/clDice for one image, with void outside of every pooling window."""

    def erode(x):
        return ndimage.minimum_filter(np.where(keep, x, np.inf), footprint=CROSS, mode="constant", cval=np.inf)

    def opening(x):
        eroded = np.where(keep, erode(x), -np.inf)
        return np.where(keep, ndimage.maximum_filter(eroded, size=(3, 3), mode="constant", cval=-np.inf), 0)

    found = np.where(keep, np.maximum(image - opening(image), 0), 0)
    for _ in range(iterations):
        image = np.where(keep, erode(image), 0)
        delta = np.maximum(image - opening(image), 0)
        found = found + np.where(keep, np.maximum(delta - found * delta, 0), 0)
    return np.where(keep, found, 0)


def line_sums(p, t, keep, iterations):
    """Returns Σ S(p) t, Σ S(p), Σ S(t) p and Σ S(t) of one image and class."""
    of_p, of_t = skeleton(p, keep, iterations), skeleton(t, keep, iterations)
    return np.array([(of_p * t).sum(), of_p.sum(), (of_t * p).sum(), of_t.sum()])


def cl_dice_of(sums, smooth):
    precision, sensitivity = (sums[0] + smooth) / (sums[1] + smooth), (sums[2] + smooth) / (sums[3] + smooth)
    return 1 - 2 * precision * sensitivity / (precision + sensitivity)


def cl_dice_reference(logits, labels, keep, iterations=3, smooth=1.0, over_batch=False, weights=WEIGHTS):
    """Returns the weighted mean of the clDice losses of the (image, class) pairs with a skeleton, in float64."""
    p, t = softmax(logits), np.eye(CLASSES)[labels]
    sums = np.array(
        [[line_sums(p[b, ..., c], t[b, ..., c], keep[b], iterations) for c in range(CLASSES)] for b in range(len(p))]
    )
    sums = sums.sum(axis=0, keepdims=True) if over_batch else sums
    pairs = [(cl_dice_of(sums[i], smooth), weights[i[1]]) for i in np.ndindex(sums.shape[:2]) if sums[i][3] > 0]
    return np.average([loss for loss, _ in pairs], weights=[weight for _, weight in pairs])


@pytest.mark.parametrize(
    ("over_batch", "where", "iterations", "smooth"), [(False, ALL, 3, 1.0), (False, KEEP, 2, 0.3), (True, KEEP, 0, 1.0)]
)
def test_cl_dice_loss_equals_the_formula(over_batch, where, iterations, smooth):
    options = {"over_batch": over_batch, "iterations": iterations}
    loss = jax.jit(
        lambda alpha: losses.cl_dice_loss(
            LOGITS, LABELS, alpha=alpha, where=where, class_weights=WEIGHTS, smooth=smooth, **options
        )
    )
    lines = cl_dice_reference(LOGITS, LABELS, where, smooth=smooth, **options)
    dice = losses.dice_loss(LOGITS, LABELS, where=where, over_batch=over_batch, class_weights=WEIGHTS)
    for alpha in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(loss(alpha), (1 - alpha) * dice + alpha * lines, rtol=5e-6)


def test_cl_dice_loss_equals_the_authors_loss_but_for_the_epsilon_of_its_dice():
    """Port of `soft_dice_cldice(iter_=3, alpha=0.5, smooth=1)`: class 0 is left out, and all else is summed at once."""
    logits, labels = LOGITS[..., :2], (LABELS == 1).astype(np.int32)
    p, t = softmax(logits)[..., 1], labels.astype(np.float64)
    lines = cl_dice_of(sum(line_sums(p[b], t[b], ALL[b], 3) for b in range(3)), 1.0)
    authors_dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    without_epsilon = 1 - 2 * (p * t).sum() / (p.sum() + t.sum())
    assert abs(authors_dice - without_epsilon) < 5e-3
    loss = jax.jit(lambda: losses.cl_dice_loss(logits, labels, classes=(1,), over_batch=True))()
    np.testing.assert_allclose(loss, 0.5 * without_epsilon + 0.5 * lines, rtol=5e-6)


def test_cl_dice_loss_gradient_is_the_formulas_central_difference():
    with jax.enable_x64(True):
        logits = LOGITS[:1].astype(np.float64)
        run = jax.jit(jax.grad(lambda z: losses.cl_dice_loss(z, LABELS[:1], alpha=1.0, where=KEEP[:1], iterations=2)))
        gradient = run(logits)
    for position in [(0, 2, 3, 1), (0, 6, 4, 2), (0, 0, 0, 0), (0, 8, 7, 1)]:
        step = np.zeros_like(logits)
        step[position] = 1e-6
        ahead, behind = (
            cl_dice_reference(z, LABELS[:1], KEEP[:1], iterations=2, weights=np.ones(3))
            for z in (logits + step, logits - step)
        )
        np.testing.assert_allclose(gradient[position], (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-9)


def test_cl_dice_loss_of_a_gap_is_larger_than_that_of_as_many_pixels_at_the_rim():
    line = np.zeros((1, 9, 20, 1), bool)
    line[:, 3:6] = True

    def without(rows, columns):
        predicted = line.copy()
        predicted[:, rows, columns] = False
        return np.where(predicted, 9.0, -9.0).astype(np.float32)

    loss = jax.jit(lambda z, alpha: losses.cl_dice_loss(z, line, alpha=alpha, activation="sigmoid"))
    gap, rim = without(slice(3, 6), slice(9, 11)), without(slice(3, 4), slice(7, 13))
    np.testing.assert_allclose(loss(gap, 0.0), loss(rim, 0.0), rtol=1e-5)
    assert loss(gap, 1.0) > 5 * loss(rim, 1.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shape_losses_and_their_derivatives_are_finite_everywhere(dtype):
    extreme = RNG.choice([-1e4, -90.0, -17.0, 0.0, 1e-3, 17.0, 1e4], size=LOGITS.shape)
    flat, perfect = np.zeros_like(LOGITS), 1e4 * np.eye(CLASSES)[LABELS]

    def both(z):
        return losses.cl_dice_loss(z, LABELS, iterations=2, smooth=1e-3) + losses.boundary_loss(z, LABELS)

    def derivatives(z):
        slope = jax.grad(both)
        return both(z), slope(z), jax.jvp(slope, (z,), (jnp.ones_like(z),))[1]

    for result in jax.jit(jax.vmap(derivatives))(jnp.asarray(np.stack([extreme, flat, perfect]), dtype)):
        assert np.isfinite(np.asarray(result, np.float32)).all()


def test_shape_losses_of_a_perfect_prediction_are_zero_and_of_a_nearly_perfect_one_tiny():
    run = jax.jit(lambda z: (losses.cl_dice_loss(z, LABELS), losses.boundary_loss(z, LABELS)))
    one_hot = np.eye(CLASSES, dtype=np.float32)[LABELS]
    assert run(1e4 * one_hot) == (0, 0)
    with jax.enable_x64(True):
        expected = jax.device_get(run(25.0 * one_hot.astype(np.float64)))
    np.testing.assert_allclose(run(25 * one_hot), expected, rtol=1e-4)
    assert all(0 < loss < 1e-9 for loss in expected)


# Boundary loss


def signed_distance(labels, keep):
    """Ports `one_hot2dist` of github.com/LIVIAETS/boundary-loss for one image, φ = 0 without a boundary."""
    found = np.zeros((*labels.shape, CLASSES))
    for c in range(CLASSES):
        inside, outside = (labels == c) & keep, (labels != c) & keep
        if inside.any() and outside.any():
            to_inside, to_outside = (ndimage.distance_transform_edt(~side) for side in (inside, outside))
            found[..., c] = to_inside * outside - (to_outside - 1) * inside
    return found


@pytest.mark.parametrize("where", [ALL, KEEP], ids=["all", "masked"])
def test_boundary_loss_and_gradient_are_the_authors_but_for_the_constant(where):
    """Port of `SurfaceLoss(idc=[1, 2])`: the mean of p φ over the images, classes and (here unmasked) pixels."""
    p, t, idc = softmax(LOGITS), np.eye(CLASSES)[LABELS], [1, 2]
    phi = np.stack([signed_distance(y, k) for y, k in zip(LABELS, where, strict=True)])
    count = where.sum() * len(idc)
    authors, constant = ((values * phi)[..., idc].sum() / count for values in (p, t))
    phi[..., 0] = 0
    slope = p * (phi - (p * phi).sum(-1, keepdims=True)) / count
    loss = jax.jit(jax.value_and_grad(lambda z: losses.boundary_loss(z, LABELS, where=where, classes=idc)))
    value, gradient = loss(LOGITS)
    np.testing.assert_allclose(value, authors - constant, rtol=5e-6)
    np.testing.assert_allclose(gradient, np.where(where[..., None], slope, 0), rtol=1e-4, atol=1e-7)


def test_boundary_loss_of_an_image_without_a_boundary_is_zero():
    for labels in (LABELS[2:], np.zeros_like(LABELS[2:])):
        assert losses.boundary_loss(LOGITS[2:], labels) == 0


def test_boundary_loss_is_half_of_the_papers_distance_between_hard_boundaries():
    """Equation 3: the integral of 2 |φ| over the pixels between the two boundaries."""
    truth = np.zeros((1, 1, 12, 1), bool)
    truth[..., 4:9, :] = True
    predicted = np.roll(truth, 2, axis=2)
    loss = losses.boundary_loss(np.where(predicted, 1e4, -1e4).astype(np.float32), truth, activation="sigmoid")
    # Left, distances 0 and 1 inside; right, 1 and 2 outside.
    np.testing.assert_allclose(loss, (0 + 1 + 1 + 2) / 12, rtol=1e-6)


# Both


@pytest.mark.parametrize("name", ["cl_dice_loss", "boundary_loss"])
def test_void_is_the_end_of_the_image(name):
    where = np.zeros_like(KEEP)
    where[:, 1:8, :6] = True
    part = slice(None), slice(1, 8), slice(0, 6)
    loss = getattr(losses, name)
    masked = jax.jit(lambda: loss(LOGITS, np.where(where, LABELS, 255).astype(np.int32), where=where))()
    np.testing.assert_allclose(masked, jax.jit(lambda: loss(LOGITS[part], LABELS[part]))(), rtol=1e-6)


@pytest.mark.parametrize("name", ["cl_dice_loss", "boundary_loss"])
def test_one_sigmoid_channel_is_class_1_of_two(name):
    z, t = LOGITS[..., 0], LABELS == 1
    pair = np.stack([np.zeros_like(z), z], axis=-1)

    def both(loss):
        channel = loss(z[..., None], t[..., None], where=KEEP, activation="sigmoid")
        return channel, loss(pair, t.astype(np.int32), where=KEEP, classes=(1,))

    np.testing.assert_allclose(*jax.jit(lambda: both(getattr(losses, name)))(), rtol=1e-6)


BROKEN = {
    "alpha": ("cl_dice_loss", {"alpha": 1.5}, r"alpha must be between 0 and 1; got 1.5"),
    "smooth": ("cl_dice_loss", {"smooth": 0.0}, r"smooth must be finite and more than 0; got 0"),
    "iterations": ("cl_dice_loss", {"iterations": -1}, r"iterations must be an integer of at least 0; got -1"),
    "half an iteration": ("cl_dice_loss", {"iterations": 1.5}, r"iterations must be an integer .*; got 1.5"),
    "one axis of pixels": (
        "cl_dice_loss",
        {"logits": LOGITS[:, 0], "labels": LABELS[:, 0]},
        r"logits must be \[batch, height, width, classes\]; got shape \(3, 8, 3\)",
    ),
    "classes": ("boundary_loss", {"classes": (3,)}, r"classes must be None or .*in \[0, 3\).*got \(3,\)"),
    "activation": ("boundary_loss", {"activation": "tanh"}, r"activation must be one of 'softmax', 'sigmoid'"),
    "labels": ("boundary_loss", {"labels": LABELS[:2]}, r"labels must have .*\(3, 9, 8\); got \(2, 9, 8\)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_invalid_arguments_are_named(case):
    name, arguments, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(getattr(losses, name))(**({"logits": LOGITS, "labels": LABELS} | arguments))


@pytest.mark.parametrize("loss", [losses.matthews_loss, losses.cl_dice_loss, losses.boundary_loss])
def test_soft_targets_are_refused(loss):
    logits, soft = jnp.zeros((1, 3, 4, 2)), jnp.full((1, 3, 4, 2), 0.5)
    with pytest.raises(TypeError, match=r"^labels must be integers; got float32 of shape \(1, 3, 4, 2\)$"):
        loss(logits, soft)
    assert jnp.isnan(loss(logits, soft, activation="sigmoid"))
