import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal
from sklearn.covariance import EmpiricalCovariance
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis

from segjax import metrics

CLASSES, SIZE = 3, 4
RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(5, 7, CLASSES)) * 4).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, size=(40, 9)).astype(np.int32)
# Correlated features with a mean per class, far from 0 beside their deviation.
MIXING = RNG.normal(size=(SIZE, SIZE))
FEATURES = (RNG.normal(size=(40, 9, SIZE)) @ MIXING + 3 * RNG.normal(size=(CLASSES, SIZE))[LABELS] + 20).astype("f4")
CENTER = np.full(SIZE, 20, np.float32)
GAUSSIAN_SUMS, LAPLACE_SUMS = jax.jit(metrics.gaussian_sums, static_argnums=2), jax.jit(metrics.laplace_sums)
SCORES = {
    "max_logit_score": metrics.max_logit_score,
    "energy_score": metrics.energy_score,
    "margin_score": metrics.margin_score,
    "standardized_max_logit_score": lambda z, **options: metrics.standardized_max_logit_score(
        z, metrics.Gaussians(np.ones((CLASSES, 1)), np.ones((CLASSES, 1, 1)), np.zeros(3), np.zeros(3)), **options
    ),
    "mahalanobis_score": lambda x, **options: metrics.mahalanobis_score(x, _standard(), **options),
    "relative_mahalanobis_score": lambda x, **options: metrics.relative_mahalanobis_score(
        x, _standard(), jax.tree.map(lambda leaf: 2 * leaf[:1], _standard()), **options
    ),
    "gaussian_density_score": lambda x, **options: metrics.gaussian_density_score(x, _standard(), **options),
}
SCORES["laplace_variance"] = lambda x, **options: metrics.laplace_variance(x, LAPLACE, **options).mean(axis=-1)
each = pytest.mark.parametrize("name", SCORES)
HEAD = RNG.normal(size=(SIZE, CLASSES)).astype(np.float32)
LAPLACE = metrics.Laplace(*(np.eye(n, dtype=np.float32) for n in (CLASSES + 1, 2)), np.ones((CLASSES + 1, 2), "f4"))


@functools.cache
def _sums():
    return GAUSSIAN_SUMS(FEATURES, LABELS, CLASSES, center=CENTER)


def _standard():
    identity = np.eye(CLASSES, dtype=np.float32)
    return metrics.Gaussians(identity, np.tile(identity, (CLASSES, 1, 1)), np.zeros(3, "f4"), np.full(3, -1, "f4"))


def _fit(covariance="tied", **options):
    return metrics.fit_gaussians(_sums(), center=CENTER, covariance=covariance, ridge=0.0, **options)


def _of_class(c):
    return FEATURES[c == LABELS].astype(np.float64)


def _normals(covariance):
    """Returns SciPy's Gaussian of each class, with the means and the covariances of scikit-learn."""
    fits = [EmpiricalCovariance().fit(_of_class(c)) for c in range(CLASSES)]
    shares = np.bincount(LABELS.ravel()) / LABELS.size
    tied = sum(share * fit.covariance_ for share, fit in zip(shares, fits, strict=True))
    return [
        multivariate_normal(fit.location_, fit.covariance_ if covariance == "class" else tied) for fit in fits
    ], shares


def _distance(normal, x):
    delta = x.astype(np.float64) - normal.mean
    return np.einsum("...i,ij,...j", delta, np.linalg.inv(normal.cov), delta)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0])
def test_energy_score_equals_scipy(temperature):
    expected = -temperature * logsumexp(LOGITS.astype(np.float64) / temperature, axis=-1)
    np.testing.assert_allclose(metrics.energy_score(LOGITS, temperature=temperature), expected, rtol=1e-5, atol=1e-5)


def test_margin_score_and_max_logit_score_equal_numpy():
    first_two = np.sort(softmax(LOGITS.astype(np.float64), axis=-1), axis=-1)[..., -2:]
    np.testing.assert_allclose(metrics.margin_score(LOGITS), 1 - np.diff(first_two)[..., 0], atol=1e-6)
    np.testing.assert_array_equal(metrics.max_logit_score(LOGITS), -LOGITS.max(axis=-1))


def test_standardized_max_logit_score_has_mean_0_and_deviation_1_per_predicted_class():
    logits = (RNG.normal(size=(2000, CLASSES)) * [1, 2, 3] + [3, 2, 1]).astype(np.float32)
    predicted = logits.argmax(axis=-1)
    sums = GAUSSIAN_SUMS(logits.max(axis=-1, keepdims=True), predicted, CLASSES)
    gaussians = metrics.fit_gaussians(sums, covariance="class", ridge=0.0)
    score = np.asarray(metrics.standardized_max_logit_score(logits, gaussians))
    for c in range(CLASSES):
        assert abs(score[predicted == c].mean()) < 1e-4
        assert score[predicted == c].std() == pytest.approx(1, abs=1e-4)


def test_standardized_max_logit_score_of_a_class_never_predicted_is_infinite():
    sums = GAUSSIAN_SUMS(jnp.array([[1.0], [2.0]]), jnp.array([0, 0]), 2)
    score = metrics.standardized_max_logit_score(jnp.array([[0.0, 5.0]]), metrics.fit_gaussians(sums))
    assert score.tolist() == [np.inf]


@pytest.mark.parametrize("covariance", ["tied", "class"])
def test_mahalanobis_score_and_density_equal_scikit_learn(covariance):
    normals, shares = _normals(covariance)
    gaussians, x = _fit(covariance), FEATURES[:3] + 1
    distances = np.stack([_distance(normal, x) for normal in normals])
    np.testing.assert_allclose(metrics.mahalanobis_score(x, gaussians), distances.min(axis=0), rtol=1e-3)
    log_joint = np.stack([np.log(p) + n.logpdf(x.astype("f8")) for p, n in zip(shares, normals, strict=True)])
    expected = -logsumexp(log_joint, axis=0)
    np.testing.assert_allclose(metrics.gaussian_density_score(x, gaussians), expected, rtol=1e-3)


def test_mahalanobis_score_of_class_covariances_ranks_as_quadratic_discriminant_analysis():
    model = QuadraticDiscriminantAnalysis().fit(FEATURES.reshape(-1, SIZE).astype("f8"), LABELS.ravel())
    decisions = model.decision_function(FEATURES[0].astype("f8"))
    gaussians = _fit("class")
    one = [jax.tree.map(lambda leaf, c=c: leaf[c : c + 1], gaussians) for c in range(CLASSES)]
    joint = np.stack([-metrics.gaussian_density_score(FEATURES[0], g) for g in one], axis=-1)
    np.testing.assert_array_equal(joint.argmax(axis=-1), decisions.argmax(axis=-1))


def test_relative_mahalanobis_score_equals_the_difference():
    background = metrics.fit_gaussians(
        jax.tree.map(lambda leaf: np.asarray(leaf).sum(axis=0, keepdims=True), _sums()), center=CENTER, ridge=0.0
    )
    whole = EmpiricalCovariance().fit(FEATURES.reshape(-1, SIZE).astype("f8"))
    normals, _ = _normals("tied")
    nearest = np.min([_distance(normal, FEATURES[0]) for normal in normals], axis=0)
    expected = nearest - whole.mahalanobis(FEATURES[0].astype("f8"))
    score = metrics.relative_mahalanobis_score(FEATURES[0], _fit(), background)
    np.testing.assert_allclose(score, expected, rtol=1e-3, atol=1e-3)


def test_gaussian_sums_add_and_the_center_does_not_change_the_fit():
    halves = [GAUSSIAN_SUMS(FEATURES[i::2], LABELS[i::2], CLASSES, center=CENTER) for i in range(2)]
    added = jax.tree.map(lambda a, b: np.asarray(a, np.float64) + np.asarray(b, np.float64), *halves)
    for one, other in zip(added, _sums(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-3)
    plain = metrics.fit_gaussians(GAUSSIAN_SUMS(FEATURES, LABELS, CLASSES), ridge=0.0)
    np.testing.assert_allclose(plain.mean, _fit().mean, rtol=1e-5)
    np.testing.assert_allclose(plain.whitening, _fit().whitening, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("bad", ["label", "nan", "inf"])
def test_gaussian_sums_of_an_invalid_pixel_are_invalid(bad):
    features, labels = FEATURES.copy(), LABELS.copy()
    if bad == "label":
        labels[3, 4] = CLASSES
    else:
        features[3, 4, 1] = float(bad)
    sums = GAUSSIAN_SUMS(features, labels, CLASSES)
    assert (np.asarray(sums.count) == -(2**31)).all()
    assert np.isnan(sums.total).all()
    assert np.isnan(sums.outer).all()
    with pytest.raises(ValueError, match=r"sums\.count has a negative count"):
        metrics.fit_gaussians(sums)
    where = np.ones(labels.shape, bool)
    where[3, 4] = False
    masked = GAUSSIAN_SUMS(features, labels, CLASSES, where=where)
    assert int(np.sum(masked.count)) == labels.size - 1
    assert np.isfinite(masked.outer).all()


def test_fit_gaussians_class_without_pixels_is_never_the_nearest():
    sums = GAUSSIAN_SUMS(FEATURES, np.minimum(LABELS, 1), CLASSES, center=CENTER)
    gaussians = metrics.fit_gaussians(sums, center=CENTER)
    assert gaussians.log_prior[2] == -np.inf
    assert np.isfinite(metrics.mahalanobis_score(np.zeros((2, SIZE), np.float32), gaussians)).all()
    assert np.isfinite(metrics.gaussian_density_score(FEATURES[0], gaussians)).all()


def test_fit_gaussians_singular_covariance_is_an_error_that_the_ridge_mends():
    constant = np.concatenate([FEATURES, np.ones_like(FEATURES[..., :1])], axis=-1)
    sums = GAUSSIAN_SUMS(constant, LABELS, CLASSES)
    with pytest.raises(ValueError, match=r"singular .* ridge=0, .* raise ridge"):
        metrics.fit_gaussians(sums, ridge=0.0)
    assert np.isfinite(metrics.mahalanobis_score(constant, metrics.fit_gaussians(sums, ridge=1e-4))).all()


def test_fit_gaussians_without_a_pixel_is_an_error():
    sums = GAUSSIAN_SUMS(FEATURES, LABELS, CLASSES, where=np.zeros(LABELS.shape, bool))
    with pytest.raises(ValueError, match="at least one pixel"):
        metrics.fit_gaussians(sums)


@each
def test_scores_masked_pixels_are_0_without_any_gradient(name):
    values = LOGITS[0].copy()
    values[2] = np.nan
    where = np.arange(len(values)) != 2
    masked = jax.jit(jax.value_and_grad(lambda z: jnp.sum(SCORES[name](z, where=where))))
    score, gradient = masked(values)
    assert np.isfinite(score)
    assert np.isfinite(gradient).all()
    assert not gradient[2].any()
    assert np.isnan(jax.jit(SCORES[name])(values)[2])


@each
def test_scores_widen_bfloat16_and_refuse_integers(name):
    assert SCORES[name](jnp.asarray(LOGITS, jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(TypeError):
        SCORES[name](np.zeros((2, CLASSES), np.int32))


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_energy_score_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature must be finite and more than 0"):
        metrics.energy_score(LOGITS, temperature=temperature)


def test_margin_score_of_confident_pixels_is_not_rounded_to_0():
    logits = np.array([[18.0, 0, 0], [25, 0, 0], [40, 0, 0]], np.float32)
    p = softmax(logits.astype(np.float64), axis=-1)
    np.testing.assert_allclose(metrics.margin_score(logits), 3 * p[:, 1], rtol=1e-5)


@pytest.mark.parametrize("classes", [CLASSES, 1])
def test_laplace_variance_equals_the_inverse_hessian_of_a_head_of_equal_probabilities(classes):
    """All pixels have p = 1 / C, where the factored curvature is exact; one logit z is the same as 0 and z."""
    x, new, precision = FEATURES[0].astype(np.float64), FEATURES[1, :2], 0.7
    inputs = np.concatenate([x, np.ones_like(x[:, :1])], axis=-1).astype(np.float32)

    def loss(head):
        logits = inputs @ head if classes > 1 else jnp.concatenate([0 * inputs[:, :1], inputs @ head], axis=-1)
        return -jax.nn.log_softmax(logits)[:, 0].sum()

    hessian = jax.jit(jax.hessian(loss))(jnp.zeros((SIZE + 1, classes))).reshape([(SIZE + 1) * classes] * 2)
    covariance = np.linalg.inv(np.asarray(hessian, np.float64) + precision * np.eye(len(hessian)))
    jacobian = np.kron(np.concatenate([new, np.ones_like(new[:, :1])], axis=-1), np.eye(classes))
    expected = np.einsum("ni,ij,nj->n", jacobian, covariance, jacobian).reshape(2, classes)
    sums = LAPLACE_SUMS(FEATURES[0], np.zeros((len(x), classes), np.float32))
    laplace = metrics.fit_laplace(sums, prior_precision=precision)
    np.testing.assert_allclose(metrics.laplace_variance(new, laplace), expected, rtol=1e-3)


def test_laplace_sums_equal_numpy_also_where_the_network_is_sure():
    logits = 5 * (FEATURES - 20) @ HEAD
    sums = LAPLACE_SUMS(FEATURES, logits)
    x = np.concatenate([FEATURES, np.ones_like(FEATURES[..., :1])], axis=-1).reshape(-1, SIZE + 1).astype("f8")
    p = softmax(logits.reshape(-1, CLASSES).astype("f8"), axis=-1)
    assert np.median(p.max(axis=-1)) > 1 - 1e-6
    assert int(sums.count) == len(x)
    np.testing.assert_allclose(sums.features, x.T @ x, rtol=1e-5)
    np.testing.assert_allclose(sums.logits, np.diag(p.sum(axis=0)) - p.T @ p, rtol=1e-4)


@pytest.mark.parametrize("bad", ["features", "logits"])
def test_laplace_sums_of_an_invalid_pixel_are_invalid(bad):
    given = {"features": FEATURES.copy(), "logits": (FEATURES - 20) @ HEAD}
    given[bad][3, 4, 1] = np.nan
    sums = LAPLACE_SUMS(**given)
    assert np.isnan(sums.features).all()
    assert np.isnan(sums.logits).all()
    with pytest.raises(ValueError, match=r"sums\.count has a negative count.*feature or logit"):
        metrics.fit_laplace(sums)
    where = np.ones(LABELS.shape, bool)
    where[3, 4] = False
    masked = LAPLACE_SUMS(**given, where=where)
    assert int(masked.count) == LABELS.size - 1
    assert np.isfinite(metrics.fit_laplace(masked).variance).all()


def test_laplace_variance_is_high_away_from_the_training_features():
    sums = LAPLACE_SUMS(FEATURES, (FEATURES - 20) @ HEAD)
    laplace = metrics.fit_laplace(sums)
    inside, outside = (metrics.laplace_variance(x, laplace).mean() for x in (FEATURES, 3 * FEATURES))
    assert outside > 5 * inside


def test_fit_laplace_shrinks_with_the_prior_precision_and_the_pixels():
    sums = LAPLACE_SUMS(FEATURES, (FEATURES - 20) @ HEAD)
    double = jax.tree.map(lambda leaf: 2 * np.asarray(leaf), sums)
    base = metrics.fit_laplace(sums, prior_precision=1.0).variance
    assert (metrics.fit_laplace(sums, prior_precision=2.0).variance < base).all()
    np.testing.assert_allclose(metrics.fit_laplace(double, prior_precision=2.0).variance, base / 2, rtol=1e-5)


def test_fit_laplace_refuses_a_prior_precision_of_0_and_no_pixels():
    with pytest.raises(ValueError, match="prior_precision must be finite and more than 0"):
        metrics.fit_laplace(LAPLACE_SUMS(FEATURES, FEATURES), prior_precision=0.0)
    with pytest.raises(ValueError, match="at least one pixel"):
        metrics.fit_laplace(LAPLACE_SUMS(FEATURES, FEATURES, where=np.zeros(LABELS.shape, bool)))


def test_probit_logits_approximate_the_mean_of_the_sigmoid():
    mean, variance = np.float32([-3, 0, 0.5, 4]), np.float32([1, 9, 4, 25])
    draws = mean + np.sqrt(variance) * np.random.default_rng(0).normal(size=(20_000, 4))
    expected = (1 / (1 + np.exp(-draws))).mean(axis=0)
    logits = metrics.probit_logits(mean[:, None], variance[:, None])
    np.testing.assert_allclose(jax.nn.sigmoid(logits)[:, 0], expected, atol=0.02)


def test_probit_logits_do_not_depend_on_a_constant_added_to_all_logits():
    logits, variance = np.float32([[3, 0, -1], [1, 1.5, 0]]), np.float32([[0, 5, 1], [4, 1, 0]])
    expected = metrics.probit_logits(logits, variance)
    np.testing.assert_allclose(metrics.probit_logits(logits + 100, variance), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [([3.0, -np.inf, 0.0], [1.5, -np.inf, -1.5]), ([3e38, 3e38, -3e38], [0, 0, -np.inf]), ([1e38, 0], [5e37, -5e37])],
)
def test_probit_logits_of_impossible_and_of_huge_logits(logits, expected):
    np.testing.assert_allclose(metrics.probit_logits(np.float32(logits), np.zeros(len(logits), "f4")), expected)


def test_probit_logits_gradient_of_an_impossible_class_is_0():
    def likelihood(z, v):
        return jax.nn.log_softmax(metrics.probit_logits(z, v))[0]

    gradients = jax.grad(likelihood, (0, 1))(jnp.array([3.0, -jnp.inf, 0.0]), jnp.ones(3))
    assert np.isfinite(gradients).all()
    assert [gradient[1] for gradient in gradients] == [0, 0]


def test_probit_logits_negative_variance_is_an_error_and_if_traced_nan():
    logits, variance = np.float32([1, 0]), np.float32([1, -1])
    with pytest.raises(ValueError, match="variance must be at least 0; got -1"):
        metrics.probit_logits(logits, variance)
    assert np.isnan(jax.jit(metrics.probit_logits)(logits, variance)).tolist() == [False, True]


def test_laplace_sums_and_probit_logits_need_a_class(raw):
    with pytest.raises(ValueError, match=r"logits must be .* at least 1 class"):
        raw.probit_logits(np.float32(1), np.float32(1))
    with pytest.raises(ValueError, match=r"logits must be .* at least 1 class"):
        raw.laplace_sums(np.zeros((4, 2), "f4"), np.zeros((4, 0), "f4"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": -np.eye(3)}, "sums.features must have no negative eigenvalues; got -1"),
        ({"logits": np.diag([1.0, -0.1])}, "sums.logits must have no negative eigenvalues"),
        ({"logits": np.array([[1.0, 0.5], [0.0, 1.0]])}, "sums.logits must be a symmetric"),
    ],
)
def test_fit_laplace_factors_must_be_of_a_covariance(change, message):
    sums = metrics.LaplaceSums(np.int32(1), np.eye(3), np.eye(2))
    with pytest.raises(ValueError, match=message):
        metrics.fit_laplace(sums._replace(**change))


@pytest.mark.parametrize("change", [{"variance": np.ones((4, 3))}, {"variance": np.ones((3, 2))}])
def test_laplace_variance_of_another_head_is_an_error(change):
    with pytest.raises(ValueError, match=r"laplace\.variance must have the shape of"):
        metrics.laplace_variance(np.zeros((5, CLASSES), "f4"), LAPLACE._replace(**change))
