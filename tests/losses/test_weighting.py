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


def test_median_frequency_counts_only_images_that_hold_the_class():
    # Class 1 is in the second image only: 50 of its 100 pixels. Class 0: 150 of all 200.
    images = np.array([[100, 0], [50, 50]])
    np.testing.assert_allclose(losses.class_weights(images, "median-frequency"), [0.625 / 0.75, 0.625 / 0.5], rtol=1e-6)
    np.testing.assert_allclose(
        losses.class_weights(images.sum(0), "median-frequency"), [0.5 / 0.75, 0.5 / 0.25], rtol=1e-6
    )


def test_log_is_enets():
    expected = 1 / np.log(1.02 + COUNTS / COUNTS.sum())
    np.testing.assert_allclose(losses.class_weights(COUNTS, "log"), expected, rtol=1e-6)


def test_effective_number_is_the_papers():
    beta = 0.999
    expected = (1 - beta) / (1 - beta**COUNTS)
    expected *= 3 / expected.sum()
    np.testing.assert_allclose(losses.class_weights(COUNTS, "effective-number", beta=beta), expected, rtol=1e-6)
    np.testing.assert_array_equal(losses.class_weights(COUNTS, "effective-number", beta=0.0), np.ones(3))


def test_effective_number_of_a_beta_near_one_is_inverse_frequency():
    weights = losses.class_weights(COUNTS, "effective-number", beta=1 - 1e-12)
    inverse = losses.class_weights(COUNTS, "inverse")
    np.testing.assert_allclose(weights / weights[0], inverse / inverse[0], rtol=1e-4)


@pytest.mark.parametrize("scheme", ["inverse", "median-frequency", "log", "effective-number"])
def test_a_class_without_pixels_weighs_nothing_and_changes_nothing(scheme):
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


def test_prior_bias_maps_over_outputs_and_traces():
    pis = jnp.array([0.01, 0.2])
    expected = [losses.prior_bias(0.01), losses.prior_bias(0.2)]
    for biases in (losses.prior_bias(pis), jax.jit(losses.prior_bias)(pis), jax.vmap(losses.prior_bias)(pis)):
        np.testing.assert_allclose(biases, expected, rtol=1e-6)


def test_prior_bias_softmax_starts_at_the_frequencies():
    biases = losses.prior_bias_softmax(COUNTS)
    np.testing.assert_allclose(jax.nn.softmax(biases), COUNTS / COUNTS.sum(), rtol=1e-5)
    np.testing.assert_allclose(biases, losses.prior_bias_softmax(COUNTS / COUNTS.sum()), rtol=1e-6)


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
    "table": (
        lambda f: f.prior_bias_softmax(np.ones((2, 2))),
        ValueError,
        r"frequencies must be \[classes\]; got .*2, 2",
    ),
}


class Raw:
    """The functions without the tests' import hook, as a user has them."""

    class_weights = staticmethod(inspect.unwrap(losses.class_weights))
    prior_bias = staticmethod(inspect.unwrap(losses.prior_bias))
    prior_bias_softmax = staticmethod(inspect.unwrap(losses.prior_bias_softmax))


@pytest.mark.parametrize("case", BROKEN)
def test_broken_input_is_named(case):
    call, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        call(Raw)
