import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import losses

COUNTS = np.array([6_000_000_000, 9000, 900, 20])  # the first is beyond 32 bits
CLASSES = len(COUNTS)
RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(2, 6, 5, CLASSES)) * 3).astype(np.float32)
EXACT = LOGITS.astype(np.float64)
LABELS = RNG.integers(0, CLASSES, size=LOGITS.shape[:-1]).astype(np.int32)
KEEP = RNG.uniform(size=LABELS.shape) < 0.7
WEIGHTS = np.array([0.0, 0.5, 1.0, 4.0], np.float32)
ONE_HOT = np.eye(CLASSES)[LABELS]
EXTREME = np.array([-1e4, -300.0, -90.0, -17.0, -1.0, 0.0, 1e-3, 1.0, 17.0, 90.0, 300.0, 1e4], np.float32)


def cross_entropy(logits, labels=LABELS):
    """Returns -log softmax(logits) of the labels in float64."""
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, labels[..., None], -1)[..., 0]


def in_float64(loss, logits=LOGITS):
    """Returns a loss of the logits and the gradient of its sum, in float64."""
    with jax.enable_x64(True):
        (_, value), gradient = jax.jit(jax.value_and_grad(lambda z: (jnp.sum(loss(z)), loss(z)), has_aux=True))(
            logits.astype(np.float64)
        )
    return np.asarray(value), np.asarray(gradient)


def slope_of(oracle, step=1e-6):
    """Returns the central differences of the sum of an oracle by each logit."""
    gradient = np.zeros(LOGITS.shape)
    for c in range(CLASSES):
        shift = step * np.eye(CLASSES)[c]
        gradient[..., c] = (oracle(EXACT + shift) - oracle(EXACT - shift)) / (2 * step)
    return gradient


# LDAM


def ldam_oracle(logits, max_margin, scale):
    """Returns the paper's formula pixel by pixel, with its constant C = Δ_max n_min^(1/4)."""
    constant = max_margin * 20**0.25
    loss = np.zeros(LABELS.shape)
    for pixel in np.ndindex(LABELS.shape):
        z, y = scale * np.asarray(logits[pixel], np.float64), LABELS[pixel]
        own = np.exp(z[y] - scale * constant / float(COUNTS[y]) ** 0.25)
        loss[pixel] = -np.log(own / (own + np.exp(np.delete(z, y)).sum()))
    return loss


@pytest.mark.parametrize(("max_margin", "scale"), [(0.5, 30.0), (3.0, 1.0)])
def test_ldam_loss_equals_the_papers_formula(max_margin, scale):
    value, gradient = in_float64(
        lambda z: losses.ldam_loss(z / scale, LABELS, COUNTS, max_margin=max_margin, scale=scale)
    )
    np.testing.assert_allclose(value, ldam_oracle(EXACT / scale, max_margin, scale), rtol=1e-9)
    slope = slope_of(lambda z: ldam_oracle(z / scale, max_margin, scale))
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-8)


def test_ldam_loss_equals_the_authors_code():
    """github.com/kaidic/LDAM-DRW, losses.py: margins subtracted from the one-hot logit, weights as in PyTorch."""
    margins = 1 / np.sqrt(np.sqrt(COUNTS.astype(np.float64)))
    margins *= 0.5 / margins.max()
    theirs = WEIGHTS[LABELS] * cross_entropy(30 * np.where(ONE_HOT == 1, EXACT - margins, EXACT))
    value, _ = in_float64(lambda z: losses.ldam_loss(z, LABELS, COUNTS, class_weights=WEIGHTS))
    np.testing.assert_allclose(value, theirs, rtol=1e-9, atol=1e-13)
    # Its mean is PyTorch's: divided by the weights of the labels.
    weights = WEIGHTS[LABELS]
    mean = losses.mean(losses.ldam_loss(LOGITS, LABELS, COUNTS), weights=weights, normalizer="weights")
    np.testing.assert_allclose(mean, theirs.sum() / weights.sum(), rtol=1e-5)


def test_ldam_loss_without_margin_is_cross_entropy():
    plain = losses.softmax_cross_entropy(LOGITS, LABELS, class_weights=WEIGHTS)
    ours = losses.ldam_loss(LOGITS, LABELS, COUNTS, max_margin=0.0, scale=1.0, class_weights=WEIGHTS)
    np.testing.assert_array_equal(ours, plain)


def test_ldam_loss_of_a_class_without_pixels_has_the_largest_margin():
    counts = np.array([1600, 100, 0, 0])
    margins = np.array([0.5, 1.0, 1.0, 1.0])
    loss = losses.ldam_loss(jnp.zeros((4, 4)), jnp.arange(4), counts, max_margin=1.0, scale=1.0)
    np.testing.assert_allclose(loss, np.log(1 + 3 * np.exp(margins)), rtol=1e-6)


def test_ldam_loss_with_deferred_weights_in_one_compilation():
    """The weights of the authors' last 40 of 200 epochs: effective numbers of β = 0.9999, with a mean of 1."""
    counts = np.array([5000, 500, 50, 5])
    deferred = losses.class_weights(counts, "effective-number", beta=0.9999)

    @jax.jit
    def loss(epoch):
        return losses.ldam_loss(LOGITS, LABELS, counts, class_weights=jnp.where(epoch < 160, 1, deferred))

    plain = losses.ldam_loss(LOGITS, LABELS, counts)
    theirs = (1 - 0.9999) / (1 - 0.9999 ** counts.astype(np.float64))
    theirs *= 4 / theirs.sum()
    np.testing.assert_allclose(loss(159), plain, rtol=1e-5)
    np.testing.assert_allclose(loss(160), plain * theirs[LABELS].astype(np.float32), rtol=1e-5)


# Seesaw


def seesaw_oracle(logits, p, q, min_score=0.0, scores=None):
    """Returns the paper's formula pixel by pixel; `scores` are the constant σ, by default of the logits."""
    loss = np.zeros(LABELS.shape)
    n = COUNTS.astype(np.float64)
    for pixel in np.ndindex(LABELS.shape):
        z, y = np.asarray(logits[pixel], np.float64), LABELS[pixel]
        sigma = np.exp(z) / np.exp(z).sum() if scores is None else scores[pixel]
        total = np.exp(z[y])
        for j in range(CLASSES):
            if j != y:
                m = (n[j] / n[y]) ** p if n[y] > n[j] else 1.0
                ratio = sigma[j] / max(sigma[y], min_score)
                total += m * (ratio**q if ratio > 1 else 1.0) * np.exp(z[j])
        loss[pixel] = -np.log(np.exp(z[y]) / total)
    return loss


@pytest.mark.parametrize(("p", "q", "min_score"), [(0.8, 2.0, 0.0), (0.8, 2.0, 0.01), (0.0, 1.5, 0.3), (2.0, 0.0, 0.0)])
def test_seesaw_loss_equals_the_papers_formula(p, q, min_score):
    value, gradient = in_float64(lambda z: losses.seesaw_loss(z, LABELS, COUNTS, p=p, q=q, min_score=min_score))
    np.testing.assert_allclose(value, seesaw_oracle(LOGITS, p, q, min_score), rtol=1e-9, atol=1e-13)
    scores = np.exp(EXACT)
    scores /= scores.sum(-1, keepdims=True)
    slope = slope_of(lambda z: seesaw_oracle(z, p, q, min_score, scores))
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-8)


def test_seesaw_loss_equals_mmdets_of_the_counts_that_it_has_accumulated():
    """mmdet/models/losses/seesaw_loss.py: log S added to the logits of the other classes, counts and scores clamped."""
    batches = [LABELS, RNG.integers(0, CLASSES - 1, size=LABELS.shape)]  # the last class is not in the second batch
    accumulated = sum(np.bincount(batch.ravel(), minlength=CLASSES) for batch in batches).astype(np.float64)
    n = np.maximum(accumulated, 1)
    ratios = n[None, :] / n[:, None]
    mitigation = np.where(ratios < 1, ratios**0.8, 1)[LABELS]
    scores = np.exp(EXACT)
    scores /= scores.sum(-1, keepdims=True)
    against_own = scores / np.maximum((scores * ONE_HOT).sum(-1, keepdims=True), 0.01)
    compensation = np.where(against_own > 1, against_own**2, 1)
    theirs = cross_entropy(LOGITS + np.log(mitigation * compensation) * (1 - ONE_HOT))
    state = jnp.zeros(CLASSES, jnp.int32)
    for batch in batches:
        state = state + jnp.bincount(batch.ravel(), length=CLASSES).astype(jnp.int32)
    ours = jax.jit(lambda counts: losses.seesaw_loss(LOGITS, LABELS, counts))(state)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7)


def test_seesaw_loss_without_exponents_is_cross_entropy():
    plain = losses.softmax_cross_entropy(LOGITS, LABELS)
    np.testing.assert_allclose(losses.seesaw_loss(LOGITS, LABELS, COUNTS, p=0.0, q=0.0), plain, rtol=1e-5)
    # Equal counts, and every label's class on top: both factors are 1.
    right = np.where(ONE_HOT == 1, 5, LOGITS).astype(np.float32)
    right = np.where(right > 5, 4, right).astype(np.float32)
    equal = losses.seesaw_loss(right, LABELS, np.full(CLASSES, 7))
    np.testing.assert_allclose(equal, losses.softmax_cross_entropy(right, LABELS), rtol=1e-5)


def test_seesaw_loss_mitigation_spares_the_rare_class():
    """Only of pixels of the frequent class: the gradient of a rare class's own pixels is that of cross entropy."""
    slope = jax.vmap(jax.grad(lambda z, y: losses.seesaw_loss(z, y, np.array([900, 100]), p=1.0)))
    gradient = slope(jnp.zeros((2, 2)), jnp.arange(2))
    np.testing.assert_allclose(gradient, [[-0.1, 0.1], [0.5, -0.5]], rtol=1e-5)


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_seesaw_loss_an_offset_of_all_logits_costs_no_digits(offset):
    logits = np.round(LOGITS * 64).astype(np.float32) / 64  # exact in float32 at 1e4
    loss = jax.jit(lambda z: losses.seesaw_loss(z, LABELS, COUNTS))
    np.testing.assert_allclose(loss(logits + np.float32(offset)), loss(logits), rtol=1e-6)


def test_frequencies_do_for_counts_and_no_counts_at_all_for_equal_ones():
    losses_of = jax.jit(
        lambda n: (losses.ldam_loss(LOGITS, LABELS, n, scale=1.0), losses.seesaw_loss(LOGITS, LABELS, n))
    )
    counts = COUNTS.astype(np.float32)
    for frequencies, same in ((counts / counts.sum(), counts), (np.zeros(4), np.ones(4))):
        for ours, expected in zip(losses_of(frequencies), losses_of(same), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-5)


# Asymmetric focal


def asymmetric_oracle(logits, rare, delta, gamma):
    """Returns the paper's formula pixel by pixel."""
    loss = np.zeros(LABELS.shape)
    for pixel in np.ndindex(LABELS.shape):
        z, y = np.asarray(logits[pixel], np.float64), LABELS[pixel]
        p = np.exp(z[y]) / np.exp(z).sum()
        loss[pixel] = -delta * np.log(p) if y in rare else -(1 - delta) * (1 - p) ** gamma * np.log(p)
    return loss


@pytest.mark.parametrize(("rare", "delta", "gamma"), [((3,), 0.6, 0.5), ((1, 2, 3), 0.7, 2.0)])
def test_asymmetric_focal_loss_equals_the_papers_formula(rare, delta, gamma):
    value, gradient = in_float64(lambda z: losses.asymmetric_focal_loss(z, LABELS, rare=rare, delta=delta, gamma=gamma))
    np.testing.assert_allclose(value, asymmetric_oracle(LOGITS, rare, delta, gamma), rtol=1e-9)
    slope = slope_of(lambda z: asymmetric_oracle(z, rare, delta, gamma))
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-8)


def test_asymmetric_focal_loss_equals_the_authors_code_of_two_classes():
    """github.com/mlyg/unified-focal-loss, loss_functions.py: a sum over classes of clipped probabilities."""
    logits, labels = LOGITS[..., :2], LABELS % 2
    p = np.exp(logits.astype(np.float64))
    p = np.clip(p / p.sum(-1, keepdims=True), 1e-7, 1 - 1e-7)
    terms = np.stack([0.3 * (1 - p[..., 0]) ** 2 * -np.log(p[..., 0]), 0.7 * -np.log(p[..., 1])], -1)
    theirs = np.mean(np.sum(np.eye(2)[labels] * terms, -1))
    np.testing.assert_allclose(losses.asymmetric_focal_loss(logits, labels, rare=(1,)).mean(), theirs, rtol=1e-5)


def test_asymmetric_focal_loss_is_monais_times_the_number_of_classes():
    """monai/losses/unified_focal_loss.py, weight=1: class 0 is the background, and the mean is over classes too."""
    p = np.exp(EXACT)
    p = np.clip(p / p.sum(-1, keepdims=True), 1e-7, 1 - 1e-7)
    factor = np.concatenate([0.4 * (1 - p[..., :1]) ** 0.5, np.full_like(p[..., 1:], 0.6)], -1)
    theirs = np.mean(factor * ONE_HOT * -np.log(p))
    ours = losses.asymmetric_focal_loss(LOGITS, LABELS, rare=(1, 2, 3), delta=0.6, gamma=0.5).mean()
    np.testing.assert_allclose(ours / CLASSES, theirs, rtol=1e-5)


def test_the_documented_unified_focal_loss_equals_the_authors_code():
    """asym_unified_focal_loss of loss_functions.py: two classes, means over images and classes."""
    logits, labels = LOGITS[..., :2], LABELS % 2
    t = np.eye(2)[labels]
    p = np.exp(logits.astype(np.float64))
    p = np.clip(p / p.sum(-1, keepdims=True), 1e-7, 1 - 1e-7)
    focal = np.where(labels == 1, 0.6, 0.4 * (1 - p[..., 0]) ** 0.5) * -np.log((p * t).sum(-1))
    tp, fn, fp = (x.sum((1, 2)) for x in (t * p, t * (1 - p), (1 - t) * p))
    index = (tp + 1e-7) / (tp + 0.6 * fn + 0.4 * fp + 1e-7)
    tversky = np.mean([1 - index[:, 0], (1 - index[:, 1]) ** 0.5])
    ours = (
        0.5 * losses.mean(losses.asymmetric_focal_loss(logits, labels, rare=(1,), delta=0.6, gamma=0.5))
        + 0.25 * losses.tversky_loss(logits, labels, alpha=0.4, beta=0.6, classes=(0,))
        + 0.25 * losses.tversky_loss(logits, labels, alpha=0.4, beta=0.6, gamma=0.5, classes=(1,))
    )
    np.testing.assert_allclose(ours, 0.5 * focal.mean() + 0.5 * tversky, rtol=1e-5)


def test_asymmetric_focal_loss_limits():
    halves = losses.asymmetric_focal_loss(LOGITS, LABELS, rare=(3,), delta=0.5, gamma=0.0)
    np.testing.assert_allclose(halves, losses.softmax_cross_entropy(LOGITS, LABELS) / 2, rtol=1e-6)
    of_others = losses.asymmetric_focal_loss(LOGITS, LABELS, rare=(3,), delta=0.0, gamma=2.0)
    focal = losses.softmax_focal_loss(LOGITS, LABELS, gamma=2.0, alpha=np.array([1.0, 1.0, 1.0, 0.0]))
    np.testing.assert_allclose(of_others, focal, rtol=1e-6)


# All three

LOSSES = {
    "ldam_loss": lambda z, y, k: losses.ldam_loss(z, y, COUNTS, class_weights=WEIGHTS, where=k),
    "seesaw_loss": lambda z, y, k: losses.seesaw_loss(z, y, COUNTS, where=k),
    "seesaw_loss of the paper": lambda z, y, k: losses.seesaw_loss(z, y, COUNTS, min_score=0.0, where=k),
    "asymmetric_focal_loss": lambda z, y, k: losses.asymmetric_focal_loss(z, y, rare=(1, 3), gamma=0.5, where=k),
}


@jax.jit
def every_loss(logits, labels, where):
    """Returns the loss per pixel and the gradient of its sum, of every loss."""

    def total(z, loss):
        value = loss(z, labels, where)
        return jnp.sum(value), value

    return {name: jax.grad(total, has_aux=True)(logits, loss)[::-1] for name, loss in LOSSES.items()}


def test_masked_pixels_have_no_loss_and_no_gradient():
    clean = every_loss(LOGITS, LABELS, KEEP)
    for void, garbage in ((255, np.nan), (-1, np.inf), (255, -np.inf)):
        logits = np.where(KEEP[..., None], LOGITS, garbage).astype(np.float32)
        dirty = every_loss(logits, np.where(KEEP, LABELS, void).astype(np.int32), KEEP)
        for name, (value, gradient) in dirty.items():
            np.testing.assert_array_equal(value, clean[name][0], err_msg=name)
            np.testing.assert_array_equal(gradient, clean[name][1], err_msg=name)
            assert not np.any(np.asarray(value)[~KEEP]), name
            assert not np.any(np.asarray(gradient)[~KEEP]), name


@pytest.mark.parametrize("label", [-1, CLASSES, 255])
def test_unmasked_invalid_labels_give_nan(label):
    labels, bad = LABELS.copy(), np.zeros_like(KEEP)
    labels[1, 2, 3], bad[1, 2, 3] = label, True
    for name, (value, gradient) in every_loss(LOGITS, labels, np.ones_like(KEEP)).items():
        np.testing.assert_array_equal(np.isnan(value), bad, err_msg=name)
        np.testing.assert_array_equal(np.isnan(gradient).any(-1), bad, err_msg=name)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_logits_are_finite_and_not_negative(dtype):
    z, y = (x.ravel() for x in np.meshgrid(EXTREME, np.arange(CLASSES, dtype=np.int32)))
    logits = jnp.asarray(np.stack([z, 0 * z, -z, z / 2], -1), dtype)
    for name, (value, gradient) in every_loss(logits, y, np.ones(y.shape, bool)).items():
        assert value.dtype == jnp.float32, name
        assert gradient.dtype == dtype, name
        assert np.isfinite(np.asarray(gradient, np.float32)).all(), name
        assert (np.isfinite(value) & (np.asarray(value) >= 0)).all(), name


def test_a_class_switched_off_by_minus_infinity_takes_no_part():
    off = LOGITS.copy()
    off[..., 3] = -np.inf
    labels = LABELS % 3
    results = every_loss(off, labels, KEEP)
    off[..., 3] = -1e4
    for name, (value, gradient) in every_loss(off, labels, KEEP).items():
        np.testing.assert_allclose(results[name][0], value, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(results[name][1], gradient, rtol=1e-6, atol=1e-12, err_msg=name)


def test_vmap_over_numbers():
    numbers = np.array([0.5, 1.0, 3.0], np.float32)

    def three(x):
        return (
            losses.ldam_loss(LOGITS, LABELS, COUNTS, max_margin=x, scale=x),
            losses.seesaw_loss(LOGITS, LABELS, COUNTS, p=x, q=x, min_score=x / 10),
            losses.asymmetric_focal_loss(LOGITS, LABELS, rare=(1,), delta=x / 4, gamma=x),
        )

    mapped = jax.jit(jax.vmap(three))(numbers)
    for i, x in enumerate(numbers.tolist()):
        for ours, expected in zip(mapped, three(x), strict=True):
            np.testing.assert_allclose(ours[i], expected, rtol=1e-5, atol=1e-7)


def test_masked_nan_logits_leave_the_gradient_of_the_numbers_finite():
    logits = np.where(KEEP[..., None], LOGITS, np.nan).astype(np.float32)

    def total(x):
        return (
            losses.ldam_loss(logits, LABELS, COUNTS, max_margin=x, scale=x, where=KEEP).sum()
            + losses.seesaw_loss(logits, LABELS, COUNTS, p=x, q=x, where=KEEP).sum()
            + losses.asymmetric_focal_loss(logits, LABELS, rare=(1,), delta=x, gamma=x, where=KEEP).sum()
        )

    slope = jax.jit(jax.grad(total))(0.5)
    assert np.isfinite(slope)
    assert slope != 0


BROKEN = {
    "ldam_loss": {
        "shape": ({"labels": LABELS[:, :2]}, ValueError, r"labels must have .*\(2, 6, 5\); got \(2, 2, 5\)"),
        "counts": (
            {"counts": COUNTS[:3]},
            ValueError,
            r"counts must have one value per class, shape \(4,\); got .*\(3,\)",
        ),
        "negative count": ({"counts": -COUNTS}, ValueError, r"counts must be at least 0; got -6e\+09 at index \(0,\)"),
        "scale": ({"scale": 0.0}, ValueError, r"scale must be finite and more than 0; got 0"),
        "margin": ({"max_margin": -1.0}, ValueError, r"max_margin must be at least 0; got -1"),
        "weights": ({"class_weights": np.ones(3)}, ValueError, r"class_weights must have .*got shape \(3,\)"),
    },
    "seesaw_loss": {
        "counts": ({"counts": 3}, ValueError, r"counts must have one value per class, shape \(4,\); got the scalar 3"),
        "p": ({"p": -0.1}, ValueError, r"p must be at least 0; got -0.1"),
        "q": ({"q": np.inf}, ValueError, r"q must be at least 0 and finite; got inf"),
        "min_score": ({"min_score": 2.0}, ValueError, r"min_score must be between 0 and 1; got 2"),
    },
    "asymmetric_focal_loss": {
        "rare": (
            {"rare": (4,)},
            ValueError,
            r"rare must be a sequence of distinct class indices in \[0, 4\).*got \(4,\)",
        ),
        "no rare class": ({"rare": ()}, ValueError, r"rare must be a sequence .*at least one; got \(\)"),
        "delta": ({"delta": 1.5}, ValueError, r"delta must be between 0 and 1; got 1.5"),
        "gamma": ({"gamma": -1.0}, ValueError, r"gamma must be at least 0; got -1"),
    },
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in BROKEN for case in BROKEN[name]])
def test_invalid_arguments_are_named(name, case):
    changed, error, message = BROKEN[name][case]
    loss = inspect.unwrap(getattr(losses, name))
    arguments = {"logits": LOGITS, "labels": LABELS}
    arguments |= {"rare": (3,)} if name == "asymmetric_focal_loss" else {"counts": COUNTS}
    with pytest.raises(error, match=message):
        loss(**(arguments | changed))
