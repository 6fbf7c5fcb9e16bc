import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from segjax import losses

COUNTS = np.array([9000, 900, 100])


def test_inverse_equals_scikit_learns_balanced():
    pixels = np.repeat([0, 1, 2], COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=pixels)
    np.testing.assert_allclose(losses.class_weights(COUNTS, "inverse"), expected, rtol=1e-6)


def test_inverse_gives_every_class_one_weight_in_total_and_a_pixel_one_on_average():
    weights = np.asarray(losses.class_weights(COUNTS, "inverse"), np.float64)
    np.testing.assert_allclose(weights * COUNTS, np.full(3, COUNTS.sum() / 3), rtol=1e-6)
    np.testing.assert_allclose(np.average(weights, weights=COUNTS), 1, rtol=1e-6)


def test_median_frequency_counts_only_images_that_hold_the_class():
    # Class 1 is in the second image only: 50 of its 100 pixels. Class 0: 150 of all 200.
    images = np.array([[100, 0], [50, 50]])
    np.testing.assert_allclose(losses.class_weights(images, "median-frequency"), [0.625 / 0.75, 0.625 / 0.5], rtol=1e-6)
    np.testing.assert_allclose(
        losses.class_weights(images.sum(0), "median-frequency"), [0.5 / 0.75, 0.5 / 0.25], rtol=1e-6
    )


def test_median_frequency_gives_the_median_class_one():
    np.testing.assert_allclose(losses.class_weights(COUNTS, "median-frequency"), [0.1, 1, 9], rtol=1e-6)


def test_log_stays_within_enets_bounds():
    # The paper: "class weights in the interval of [1, 50]"; to four digits the ends are 1 / ln 2.02 and 1 / ln 1.02.
    np.testing.assert_allclose(losses.class_weights(np.array([10**12, 1]), "log"), [1.4222, 50.4983], rtol=1e-4)


def test_log_is_enets():
    expected = 1 / np.log(1.02 + COUNTS / COUNTS.sum())
    np.testing.assert_allclose(losses.class_weights(COUNTS, "log"), expected, rtol=1e-6)


def test_effective_number_is_a_geometric_series():
    # E_n = 1 + β + ... + β^(n-1): 1, 1.5 and 1.75 for β = 0.5, and weights go with 1 / E_n.
    inverse = np.array([1, 1 / 1.5, 1 / 1.75])
    weights = losses.class_weights(np.array([1, 2, 3]), "effective-number", beta=0.5)
    np.testing.assert_allclose(weights, 3 * inverse / inverse.sum(), rtol=1e-6)


def test_effective_number_is_the_papers():
    beta = 0.999
    expected = (1 - beta) / (1 - beta**COUNTS)
    expected *= 3 / expected.sum()
    np.testing.assert_allclose(losses.class_weights(COUNTS, "effective-number", beta=beta), expected, rtol=1e-6)
    for none in (0, 0.0, np.float32(0), jnp.float32(0)):
        np.testing.assert_array_equal(losses.class_weights(COUNTS, "effective-number", beta=none), np.ones(3))


def test_effective_number_of_a_beta_near_one_is_inverse_frequency():
    weights = losses.class_weights(COUNTS, "effective-number", beta=1 - 1e-12)
    inverse = losses.class_weights(COUNTS, "inverse")
    np.testing.assert_allclose(weights / weights[0], inverse / inverse[0], rtol=1e-4)


@pytest.mark.parametrize("scheme", ["inverse", "median-frequency", "log", "effective-number"])
def test_class_weights_of_a_class_without_pixels_are_zero_and_change_no_other(scheme):
    with_absent = losses.class_weights(np.insert(COUNTS, 1, 0), scheme, beta=0.999)
    alone = losses.class_weights(COUNTS, scheme, beta=0.999)
    np.testing.assert_array_equal(with_absent, np.insert(np.asarray(alone), 1, 0))


@pytest.mark.parametrize("scheme", ["inverse", "median-frequency", "log", "effective-number"])
def test_images_and_their_sum_agree_where_every_image_holds_every_class_alike(scheme):
    images = np.stack([COUNTS, COUNTS * 3])
    summed = losses.class_weights(images.sum(0), scheme, beta=0.999)
    np.testing.assert_allclose(losses.class_weights(images, scheme, beta=0.999), summed, rtol=1e-6)
    assert summed[0] < summed[1] < summed[2]


def test_counts_beyond_32_bits_are_exact():
    huge = np.array([6_000_000_000, 3_000_000_000])
    np.testing.assert_allclose(losses.class_weights(huge, "inverse"), [0.75, 1.5], rtol=1e-6)


def test_weights_fit_the_losses_under_strict_promotion():
    weights = losses.class_weights(COUNTS, "log")
    assert weights.dtype == jnp.float32
    logits, labels = jnp.zeros((4, 3), jnp.bfloat16), jnp.array([0, 1, 2, 2])
    np.testing.assert_allclose(
        losses.softmax_cross_entropy(logits, labels, class_weights=weights), np.log(3) * weights[labels], rtol=1e-6
    )


@pytest.mark.parametrize("pi", [1e-6, 0.01, 0.5, 0.999])
def test_prior_bias_starts_a_sigmoid_at_pi(pi):
    np.testing.assert_allclose(jax.nn.sigmoid(losses.prior_bias(pi)), pi, rtol=1e-5)
    np.testing.assert_allclose(losses.prior_bias(pi), -np.log((1 - pi) / pi), rtol=1e-5, atol=1e-7)


def test_prior_bias_of_a_pi_that_float32_cannot_hold_is_finite():
    # log(1e8 - 1), and its mirror: the background and the foreground of a class of one pixel in 1e8.
    np.testing.assert_allclose(losses.prior_bias(1 - 1e-8), 18.420680734, rtol=1e-6)
    np.testing.assert_allclose(losses.prior_bias(np.array([1e-8, 1e-60])), [-18.420680734, -138.15510558], rtol=1e-6)


def test_prior_bias_widens_and_keeps_the_float_type():
    assert losses.prior_bias(jnp.bfloat16(0.25)).dtype == jnp.float32
    np.testing.assert_allclose(losses.prior_bias(jnp.bfloat16(0.25)), -np.log(3), rtol=1e-6)
    with jax.enable_x64(True):
        assert losses.prior_bias(np.float64(0.25)).dtype == jnp.float64
        assert losses.prior_bias(np.float32(0.25)).dtype == jnp.float32


def test_prior_bias_maps_over_outputs_and_traces():
    pis = jnp.array([0.01, 0.2])
    expected = [losses.prior_bias(0.01), losses.prior_bias(0.2)]
    for biases in (losses.prior_bias(pis), jax.jit(losses.prior_bias)(pis), jax.vmap(losses.prior_bias)(pis)):
        np.testing.assert_allclose(biases, expected, rtol=1e-6)


def test_the_two_prior_biases_agree_where_there_are_two_classes():
    background, foreground = losses.prior_bias_softmax(np.array([0.99, 0.01]))
    np.testing.assert_allclose(foreground - background, losses.prior_bias(0.01), rtol=1e-6)


def test_prior_bias_softmax_starts_at_the_frequencies():
    biases = losses.prior_bias_softmax(COUNTS)
    np.testing.assert_allclose(jax.nn.softmax(biases), COUNTS / COUNTS.sum(), rtol=1e-5)
    np.testing.assert_allclose(biases, losses.prior_bias_softmax(COUNTS / COUNTS.sum()), rtol=1e-6)


def test_logit_adjustment_is_tau_times_the_log_frequencies():
    expected = 0.5 * np.log(COUNTS / COUNTS.sum())
    np.testing.assert_allclose(losses.logit_adjustment(COUNTS, tau=0.5), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda t: losses.logit_adjustment(COUNTS, tau=t))(0.5), expected, rtol=1e-6)
    traced = jax.jit(losses.logit_adjustment)(np.float32(COUNTS))
    np.testing.assert_allclose(traced, losses.logit_adjustment(COUNTS), rtol=1e-6)
    np.testing.assert_array_equal(losses.logit_adjustment(COUNTS), losses.prior_bias_softmax(COUNTS))
    np.testing.assert_array_equal(losses.logit_adjustment(COUNTS, tau=0.0), np.zeros(3))


def test_logit_adjustment_in_training_equals_the_authors_code():
    """google-research/logit_adjustment: cross entropy of logits + log(π^τ + 1e-12)."""
    rng = np.random.default_rng(0)
    logits, labels, tau = rng.normal(size=(20, 3)) * 3, rng.integers(0, 3, 20), 1.5
    shifted = logits + np.log((COUNTS / COUNTS.sum()) ** tau + 1e-12)
    expected = np.log(np.exp(shifted).sum(-1)) - np.take_along_axis(shifted, labels[:, None], -1)[:, 0]
    with jax.enable_x64(True):
        adjustment = losses.logit_adjustment(COUNTS, tau=tau)
        ours = losses.softmax_cross_entropy(logits + adjustment[None], labels)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_logit_adjustment_after_training_gives_the_balanced_posterior():
    """The classifier is calibrated at the frequencies; the balanced one is p(x | y) / Σ_j p(x | j)."""
    likelihood = np.random.default_rng(1).uniform(size=(20, 3))
    posterior = likelihood * COUNTS / (likelihood * COUNTS).sum(-1, keepdims=True)
    balanced = jax.nn.softmax(np.log(posterior) - np.asarray(losses.logit_adjustment(COUNTS))[None])
    np.testing.assert_allclose(balanced, likelihood / likelihood.sum(-1, keepdims=True), rtol=1e-5)


def test_logit_adjustment_in_training_is_a_prior_bias_that_prediction_leaves_out():
    zeros, labels = jnp.zeros((3, 3)), jnp.arange(3)
    adjusted = zeros + losses.logit_adjustment(COUNTS)[None]
    np.testing.assert_allclose(losses.softmax_cross_entropy(adjusted, labels), -np.log(COUNTS / 1e4), rtol=1e-6)


# Any weight composes with any per-pixel loss. Each entry is `loss(logits, labels, where) -> [...]`.
PER_PIXEL = {
    "softmax_cross_entropy": lambda z, y, k: losses.softmax_cross_entropy(z, y, where=k),
    "softmax_focal_loss": lambda z, y, k: losses.softmax_focal_loss(z, y, gamma=0.5, where=k),
    "softmax_poly1_loss": lambda z, y, k: losses.softmax_poly1_loss(z, y, where=k),
    "ldam_loss": lambda z, y, k: losses.ldam_loss(z, y, COUNTS, scale=1.0, where=k),
    "seesaw_loss": lambda z, y, k: losses.seesaw_loss(z, y, COUNTS, where=k),
    "asymmetric_focal_loss": lambda z, y, k: losses.asymmetric_focal_loss(z, y, rare=(2,), where=k),
    "sigmoid_cross_entropy": lambda z, y, k: losses.sigmoid_cross_entropy(z[..., 0], y == 1, where=k),
    "sigmoid_focal_loss": lambda z, y, k: losses.sigmoid_focal_loss(z[..., 0], y == 1, alpha=0.25, where=k),
    "sigmoid_focal_star_loss": lambda z, y, k: losses.sigmoid_focal_star_loss(z[..., 0], y == 1, where=k),
    "sigmoid_poly1_loss": lambda z, y, k: losses.sigmoid_poly1_loss(z[..., 0], y == 1, where=k),
    "hinge_loss": lambda z, y, k: losses.hinge_loss(z[..., 0], y == 1, where=k),
    "huber_loss": lambda z, y, k: losses.huber_loss(z[..., 0], z[..., 1], where=k),
}


def _pixels():
    """Returns two images of three classes with void: label 255 and NaN logits."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (2, 2, 3), dtype=np.int32).repeat(3, 1).repeat(3, 2)
    where = rng.uniform(size=labels.shape) < 0.8
    logits = rng.normal(size=(*labels.shape, 3)).astype(np.float32)
    return np.where(where[..., None], logits, np.nan), np.where(where, labels, 255), where


LOGITS, LABELS, WHERE = _pixels()
CLASS_WEIGHTS = np.array([0.5, 2.0, 7.0], np.float32)
PIXEL_WEIGHTS = {
    "class": lambda: CLASS_WEIGHTS[np.where(WHERE, LABELS, 0)],
    "boundary": lambda: np.asarray(losses.boundary_weights(LABELS, 2.0, where=WHERE)),
    "void is garbage": lambda: np.where(WHERE, CLASS_WEIGHTS[LABELS % 3], np.nan),
    "of an image": lambda: np.array([0.25, 3.0], np.float32).reshape(2, 1, 1),
}


@functools.cache
def _losses_and_means(name):
    per_pixel = functools.partial(PER_PIXEL[name], y=LABELS, k=WHERE)

    def mean(logits, weights, normalizer):
        options = {"where": WHERE, "weights": weights, "positives": LABELS == 1}
        return losses.mean(per_pixel(logits), normalizer=normalizer, **options)

    def everything(logits, weights):
        loss, pullback = jax.vjp(per_pixel, logits)
        (gradient_of_each,) = pullback(jnp.ones_like(loss))
        of_mean = {n: jax.value_and_grad(mean)(logits, weights, n) for n in ("valid", "weights", "positives")}
        return loss, gradient_of_each, of_mean

    return jax.jit(everything)


@pytest.mark.parametrize("weight", PIXEL_WEIGHTS)
@pytest.mark.parametrize("name", PER_PIXEL)
def test_any_weight_composes_with_any_per_pixel_loss(name, weight):
    weights = PIXEL_WEIGHTS[weight]()
    loss, gradient, of_mean = jax.tree.map(np.asarray, _losses_and_means(name)(LOGITS, weights))
    weights = np.where(WHERE, weights, 0).astype(np.float64)
    total = np.sum(weights * loss)
    assert total > 0
    divisors = {"valid": WHERE.sum(), "weights": weights.sum(), "positives": (WHERE & (LABELS == 1)).sum()}
    for normalizer, divisor in divisors.items():
        value, of_logits = of_mean[normalizer]
        np.testing.assert_allclose(value, total / divisor, rtol=1e-5, err_msg=normalizer)
        np.testing.assert_allclose(
            of_logits, weights[..., None] * gradient / divisor, rtol=1e-5, atol=1e-8, err_msg=normalizer
        )


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "softmax_focal_loss"])
def test_a_class_weight_in_the_loss_is_the_same_weight_in_the_mean(name):
    inside = {
        "softmax_cross_entropy": losses.softmax_cross_entropy(LOGITS, LABELS, where=WHERE, class_weights=CLASS_WEIGHTS),
        "softmax_focal_loss": losses.softmax_focal_loss(LOGITS, LABELS, gamma=0.5, alpha=CLASS_WEIGHTS, where=WHERE),
    }
    outside = losses.mean(PER_PIXEL[name](LOGITS, LABELS, WHERE), where=WHERE, weights=PIXEL_WEIGHTS["class"]())
    np.testing.assert_allclose(losses.mean(inside[name], where=WHERE), outside, rtol=1e-6)


BROKEN = {
    "scheme": (
        lambda f: f.class_weights(COUNTS, "sqrt"),
        ValueError,
        r"scheme must be one of 'inverse', 'median-frequency', 'log', 'effective-number'; got 'sqrt'",
    ),
    "rank": (lambda f: f.class_weights(COUNTS.reshape(1, 1, 3), "log"), ValueError, r"counts must be .*\(1, 1, 3\)"),
    "negative": (
        lambda f: f.class_weights(-COUNTS, "log"),
        ValueError,
        r"counts must be finite and not negative.*-9000",
    ),
    "nan": (lambda f: f.class_weights(np.array([1, np.nan]), "log"), ValueError, r"counts must be finite .*nan"),
    "all zero": (lambda f: f.class_weights(0 * COUNTS, "log"), ValueError, r"counts must not be all 0; got \[0.0, "),
    "no beta": (lambda f: f.class_weights(COUNTS, "effective-number"), ValueError, r"needs beta in \[0, 1\); got None"),
    "beta": (lambda f: f.class_weights(COUNTS, "effective-number", beta=1.0), ValueError, r"beta in \[0, 1\); got 1.0"),
    "traced beta": (
        lambda f: jax.jit(lambda b: f.class_weights(COUNTS, "effective-number", beta=b))(0.9),
        TypeError,
        r"beta must be known on the host; got a traced array",
    ),
    "traced": (
        lambda f: jax.jit(lambda c: f.class_weights(c, "log"))(COUNTS),
        TypeError,
        r"counts must be known on the host; got a traced array of shape \(3,\)",
    ),
    "pi": (lambda f: f.prior_bias(1.0), ValueError, r"pi must be between 0 and 1, both excluded; got 1.0"),
    "integer pi": (
        lambda f: f.prior_bias(jnp.int32(0)),
        ValueError,
        r"pi must be between 0 and 1, both excluded; got 0",
    ),
    "never seen": (
        lambda f: f.prior_bias_softmax(np.array([3, 0, 0])),
        ValueError,
        r"got 0 for classes \[1, 2\].*floor",
    ),
    "tau": (lambda f: f.logit_adjustment(COUNTS, tau=-1.0), ValueError, r"tau must be at least 0; got -1"),
    "never seen, adjusted": (
        lambda f: f.logit_adjustment(np.array([3, 0, 0])),
        ValueError,
        r"frequencies must be positive; got 0 for classes \[1, 2\].*floor",
    ),
    "table": (
        lambda f: f.prior_bias_softmax(np.ones((2, 2))),
        ValueError,
        r"frequencies must be \[classes\]; got .*2, 2",
    ),
}


class Raw:
    """The functions without the import hook of the tests, as a user calls them."""

    class_weights = staticmethod(inspect.unwrap(losses.class_weights))
    logit_adjustment = staticmethod(inspect.unwrap(losses.logit_adjustment))
    prior_bias = staticmethod(inspect.unwrap(losses.prior_bias))
    prior_bias_softmax = staticmethod(inspect.unwrap(losses.prior_bias_softmax))


@pytest.mark.parametrize("case", BROKEN)
def test_invalid_arguments_are_named(case):
    call, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        call(Raw)
