import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from experiments.camvid.crf import dense_crf

SIZE, CLASSES = (5, 7), 3
RANDOM = np.random.default_rng(0)
P = softmax(RANDOM.normal(size=(2, *SIZE, CLASSES)), axis=-1).astype(np.float32)
IMAGES = RANDOM.integers(0, 256, (2, *SIZE, 3), np.uint8)
SCALES = {
    "appearance_weight": 1.0,
    "smoothness_weight": 0.5,
    "theta_alpha": 1.5,
    "theta_beta": 90.0,
    "theta_gamma": 1.0,
}
FIRST = np.arange(SIZE[1]) < 4  # columns
both_normalisations = pytest.mark.parametrize("symmetric", [True, False])


@partial(jax.jit, static_argnames=("radius", "iterations", "symmetric"))
def crf_of(p, images, where=None, scales=SCALES, *, radius=6, iterations=4, symmetric=True):
    return dense_crf(p, images, radius=radius, iterations=iterations, symmetric=symmetric, where=where, **scales)


def all_pairs(p, image, *, symmetric, iterations=4, appearance_weight, smoothness_weight, **thetas):
    """Computes the mean field of one image over all pairs of pixels, in float64."""
    colours = image.reshape(-1, image.shape[-1]).astype(np.float64)
    places = np.stack(np.meshgrid(*map(np.arange, image.shape[:2]), indexing="ij"), axis=-1).reshape(-1, 2)
    far = ((places[:, None] - places) ** 2).sum(axis=-1)
    unlike = ((colours[:, None] - colours) ** 2).sum(axis=-1)
    kernels = [
        np.exp(-far / (2 * thetas["theta_alpha"] ** 2) - unlike / (2 * thetas["theta_beta"] ** 2)),
        np.exp(-far / (2 * thetas["theta_gamma"] ** 2)),
    ]
    pairs = 0
    for weight, kernel in zip((appearance_weight, smoothness_weight), kernels, strict=True):
        np.fill_diagonal(kernel, 0)
        degree = kernel.sum(axis=1)
        pairs = pairs + weight * (kernel / np.sqrt(np.outer(degree, degree)) if symmetric else kernel)
    unary = -np.log(p.reshape(-1, p.shape[-1]).astype(np.float64))
    q = np.exp(-unary)
    for _ in range(iterations):
        # Potts: the cost of a label is the probability of all other labels.
        q = softmax(-unary - pairs @ (1 - q), axis=-1)
    return q.reshape(p.shape)


@both_normalisations
def test_dense_crf_tends_to_the_mean_field_of_all_pairs(symmetric):
    expected = np.stack([all_pairs(p, i, symmetric=symmetric, **SCALES) for p, i in zip(P, IMAGES, strict=True)])
    errors = [np.abs(crf_of(P, IMAGES, radius=r, symmetric=symmetric) - expected).max() for r in (0, 1, 2, 4, 6)]
    assert errors == sorted(errors, reverse=True), errors
    assert errors[1] > 1e-2
    assert errors[-1] < 1e-5


def test_dense_crf_window_larger_than_the_image():
    np.testing.assert_allclose(crf_of(P, IMAGES, radius=50), crf_of(P, IMAGES), atol=1e-6)


@pytest.mark.parametrize("settings", [{"iterations": 0}, {"radius": 0}], ids=str)
def test_dense_crf_without_messages_changes_nothing(settings):
    np.testing.assert_allclose(crf_of(P, IMAGES, **settings), P, rtol=1e-5)


def test_dense_crf_of_a_single_pixel_changes_nothing():
    np.testing.assert_allclose(crf_of(P[:, :1, :1], IMAGES[:, :1, :1]), P[:, :1, :1], rtol=1e-5)


def test_dense_crf_masked_nan_pixels_have_no_influence():
    p, images = P.copy(), IMAGES.astype(np.float32)
    p[:, :, ~FIRST], images[:, :, ~FIRST] = np.nan, np.nan
    found = crf_of(p, images, jnp.broadcast_to(FIRST, P.shape[:3]))
    np.testing.assert_allclose(found[:, :, FIRST], crf_of(P[:, :, FIRST], IMAGES[:, :, FIRST]), atol=1e-6)
    np.testing.assert_array_equal(found[:, :, ~FIRST], 0)


def test_dense_crf_follows_colour_and_not_position():
    images = np.zeros((1, *SIZE, 3), np.uint8)
    images[:, :, FIRST] = 255
    p = np.broadcast_to(np.where(FIRST[:, None], [0.9, 0.05, 0.05], [0.05, 0.9, 0.05]), (1, *SIZE, 3))
    p = p.astype(np.float32)
    p[0, 2, 3] = [0.3, 0.6, 0.1]  # white, next to the black half, and labelled as it
    scales = SCALES | {"smoothness_weight": 0.0, "theta_beta": 10.0}
    found = crf_of(p, images, scales=scales)
    np.testing.assert_array_equal(found[0].argmax(axis=-1), np.broadcast_to(np.where(FIRST, 0, 1), SIZE))


def test_dense_crf_of_probability_zero_is_finite():
    p = np.zeros((1, *SIZE, 2), np.float32)
    p[..., 0] = 1
    p[0, 2, 3] = [0, 1]
    found = crf_of(p, IMAGES[:1], scales=SCALES | {"smoothness_weight": 500.0})
    assert jnp.isfinite(found).all()
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-6)
    assert found[0, 2, 3, 0] > 0.99


def test_dense_crf_images_of_a_batch_are_independent():
    np.testing.assert_allclose(crf_of(P, IMAGES)[1:], crf_of(P[1:], IMAGES[1:]), atol=1e-6)


def test_dense_crf_compiles_once_for_all_weights_and_widths():
    traced = 0

    @jax.jit
    def crf(scales):
        nonlocal traced
        traced += 1
        return dense_crf(P, IMAGES, radius=1, iterations=1, **scales)

    found = [crf({name: jnp.float32(value * factor) for name, value in SCALES.items()}) for factor in (1, 2)]
    assert traced == 1
    assert jnp.abs(found[0] - found[1]).max() > 1e-3


def test_dense_crf_dtypes():
    assert crf_of(P.astype(jnp.bfloat16), IMAGES, radius=1).dtype == jnp.float32
    with jax.enable_x64(True):
        assert dense_crf(jnp.asarray(P, jnp.float64), IMAGES, radius=1).dtype == jnp.float64


# Without the run-time type checks of the tests.
CRF = inspect.unwrap(dense_crf)
BROKEN = {
    "integers": (lambda: CRF(IMAGES, IMAGES, radius=1), TypeError, r"must be floating point; got uint8"),
    "sizes": (
        lambda: CRF(P, IMAGES[:, 1:], radius=1),
        ValueError,
        r"of the same size; got shapes \(2, 5, 7, 3\) and \(2, 4, 7, 3\)",
    ),
    "where": (
        lambda: CRF(P, IMAGES, radius=1, where=np.ones((5, 7), bool)),
        ValueError,
        r"where must have the shape of the pixels, \(2, 5, 7\); got \(5, 7\)",
    ),
    "radius": (lambda: CRF(P, IMAGES, radius=-1), ValueError, r"must not be negative; got -1 and 5"),
    "iterations": (lambda: CRF(P, IMAGES, radius=1, iterations=-2), ValueError, r"must not be negative; got 1 and -2"),
    "width": (
        lambda: CRF(P, IMAGES, radius=1, theta_beta=0.0),
        ValueError,
        r"theta_beta must be more than 0; got 0",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_dense_crf_errors(case):
    call, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        call()
