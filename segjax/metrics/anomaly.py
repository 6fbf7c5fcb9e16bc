r"""Anomaly scores per pixel, from logits or from features: high for pixels unlike the training data.

All apply to a trained network unchanged. Feature scores compare each pixel with one Gaussian per class, fitted to the
training pixels from sums that add over batches and devices::

    sums = gaussian_sums(features, labels, num_classes, where=where)      # per batch; add them on the host
    score = mahalanobis_score(features, fit_gaussians(sums))

A last-layer Laplace approximation has such sums too: `laplace_sums`, `fit_laplace`, `laplace_variance`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from segjax import checks
from segjax.checks import AxisName, Labels, Logits, Scalar, Where
from segjax.collectives import psum
from segjax.metrics._counting import Counts, count, host_counts

_CAUSE = "a label outside [0, C) or a non-finite feature was counted in an unmasked pixel"
_LAPLACE_CAUSE = "a feature or logit that is not finite was counted in an unmasked pixel"

Features = Float[ArrayLike, "*pixels features"]


class GaussianSums(NamedTuple):
    """Sums over the pixels of each class, from which Gaussians are fitted.

    Add batches with `jax.tree.map(np.add, a, b)`, from int64 and float64 zeros: int32 overflows and float32 rounds.
    """

    count: Counts
    """Pixels of each class, int32 `[C]`."""
    total: Float[jax.Array | np.ndarray, "classes features"]
    """Sum of x - center, at least float32."""
    outer: Float[jax.Array | np.ndarray, "classes features features"]
    """Sum of (x - center)(x - center)ᵀ, at least float32."""


class Gaussians(NamedTuple):
    """One Gaussian per class (a pytree), from `fit_gaussians`. A class without pixels has infinite distances."""

    mean: Float[ArrayLike, "classes features"]
    """μ_c, 0 without pixels."""
    whitening: Float[ArrayLike, "classes features features"]
    """L_c⁻¹ of the Cholesky factor of the covariance, L_c L_cᵀ = Σ_c."""
    log_determinant: Float[ArrayLike, "classes"]
    """log |Σ_c|."""
    log_prior: Float[ArrayLike, "classes"]
    """Log of the share of the pixels; -inf without pixels."""


class LaplaceSums(NamedTuple):
    """Kronecker factors of the curvature of a linear head, from `laplace_sums`; they add as `GaussianSums` do."""

    count: Counts
    """Pixels, an int32 scalar."""
    features: Float[jax.Array | np.ndarray, "inputs inputs"]
    """Sum of φφᵀ for the features and a 1 for the bias, F + 1 inputs, at least float32."""
    logits: Float[jax.Array | np.ndarray, "classes classes"]
    """Sum of diag(p) - ppᵀ, at least float32."""


class Laplace(NamedTuple):
    """Gaussian posterior of a linear head's parameters (a pytree), from `fit_laplace`."""

    feature_basis: Float[ArrayLike, "inputs inputs"]
    """Eigenvectors of the features' factor, in columns."""
    class_basis: Float[ArrayLike, "classes classes"]
    """Eigenvectors of the logits' factor, in columns."""
    variance: Float[ArrayLike, "inputs classes"]
    """Variance of the parameters along each pair of eigenvectors."""


def max_logit_score(logits: Logits, *, where: Where = None) -> Float[Array, "*pixels"]:
    r"""Returns the negative of the largest logit.

    .. math:: s = -\max_c z_c

    Unlike the probability, the logit is not normalised: it is low where all classes lack evidence.

    Args:
        logits: z, `[..., C]`, C ≥ 2; -inf rules a class out.
        where: boolean `[...]`, broadcastable; False removes the pixel; its result is 0.

    Returns: `[...]`, at least float32, higher for anomalies; NaN where an unmasked logit is NaN.
    Raises: TypeError or ValueError if a dtype or shape does not fit.
    References: Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, arXiv 1911.11132.

    >>> print(max_logit_score(jnp.array([[4.0, 1.0], [0.5, 0.0]])))
    [-4.  -0.5]
    """
    logits, keep = _logits(logits, where)
    return jnp.where(keep, -jnp.max(logits, axis=-1), 0)


def energy_score(logits: Logits, *, temperature: Scalar = 1.0, where: Where = None) -> Float[Array, "*pixels"]:
    r"""Returns the free energy of the logits.

    .. math:: E = -T \log \sum_c e^{z_c / T}

    Args:
        logits: as in `max_logit_score`, which is the limit T → 0.
        temperature: T > 0, may be traced.
        where: as in `max_logit_score`.

    Returns: `[...]`, as `max_logit_score`.
    Raises: as `max_logit_score`, or the temperature is not positive and finite.
    References: Liu et al., Energy-based Out-of-distribution Detection, arXiv 2010.03759.

    >>> print(energy_score(jnp.log(jnp.array([[3.0, 1.0], [0.5, 0.5]]))).round(4))
    [-1.3863 -0.    ]
    """
    logits, keep = _logits(logits, where)
    temperature = checks.finite("temperature", temperature, logits.dtype, above=0.0)
    return jnp.where(keep, -temperature * jax.nn.logsumexp(logits / temperature, axis=-1), 0)


def margin_score(logits: Logits, *, where: Where = None) -> Float[Array, "*pixels"]:
    r"""Returns one minus the difference of the two largest probabilities.

    .. math:: s = 1 - (p_{(1)} - p_{(2)}), \qquad p = softmax(z)

    Args:
        logits, where: as in `max_logit_score`; for an ensemble, `log_mean_softmax(mc_logits)`.

    Returns: `[...]` in [0, 1], at least float32: 1 where two classes are equally likely.
    Raises: as `max_logit_score`.
    References: Scheffer et al., Active Hidden Markov Models for Information Extraction, IDA 2001.

    >>> print(margin_score(jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.4, 0.4, 0.2]]))))
    [0.75 1.  ]
    """
    logits, keep = _logits(logits, where)
    top = jnp.argmax(logits, axis=-1, keepdims=True).astype(jnp.int32)
    is_top = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == top
    # 1 - p is the sum of the others: the difference would round to 0 for the confident pixels, most of an image.
    others = jnp.where(is_top, 0, jax.nn.softmax(logits))
    return jnp.where(keep, jnp.sum(others, axis=-1) + jnp.max(others, axis=-1), 0)


def standardized_max_logit_score(
    logits: Logits, gaussians: Gaussians, *, where: Where = None
) -> Float[Array, "*pixels"]:
    r"""Returns the negative largest logit, standardised with the mean and standard deviation of its class.

    .. math:: s = -\frac{z_c - \mu_c}{\sigma_c}, \qquad c = \arg\max_j z_j

    Fit one Gaussian per *predicted* class to the largest logit of the training pixels::

        sums = gaussian_sums(jnp.max(z, -1, keepdims=True), jnp.argmax(z, -1), num_classes)
        gaussians = fit_gaussians(sums, covariance="class")

    Args:
        logits: as in `max_logit_score`.
        gaussians: of one feature per class: `mean` is `[C, 1]`.
        where: as in `max_logit_score`.

    Returns: `[...]`, at least float32, higher for anomalies; inf if no training pixel was predicted as the class.
    Raises: as `max_logit_score`, or the Gaussians are not of C classes and one feature.
    References: Jung et al., Standardized Max Logits, ICCV 2021, arXiv 2107.11264.

    >>> train = jnp.array([[6.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 1.0]])
    >>> sums = gaussian_sums(jnp.max(train, -1, keepdims=True), jnp.argmax(train, -1), 2)
    >>> gaussians = fit_gaussians(sums, covariance="class", ridge=0.0)
    >>> print(standardized_max_logit_score(jnp.array([[2.0, 0.0], [0.0, 2.0]]), gaussians))
    [1. 0.]
    """
    logits, keep = _logits(logits, where)
    checks.same_shape("gaussians.mean", np.shape(gaussians.mean), "one feature per class", (logits.shape[-1], 1))
    predicted, largest = jnp.argmax(logits, axis=-1), jnp.max(logits, axis=-1)
    mean, scale = (jnp.asarray(x, logits.dtype).reshape(-1)[predicted] for x in (gaussians.mean, gaussians.whitening))
    known = jnp.asarray(gaussians.log_prior)[predicted] > -jnp.inf
    score = jnp.where(known | jnp.isnan(largest), (mean - largest) * scale, jnp.inf)
    return jnp.where(keep, score, 0)


def gaussian_sums(
    features: Features,
    labels: Labels,
    num_classes: int,
    *,
    center: Float[ArrayLike, "features"] | None = None,
    where: Where = None,
    axis_name: AxisName = None,
) -> GaussianSums:
    r"""Sums the features of each class and their products, over all devices.

    .. math:: n_c, \qquad \sum_{i: y_i = c} (x_i - m), \qquad \sum_{i: y_i = c} (x_i - m) (x_i - m)^\top

    Args:
        features: x, `[..., F]`, floating, such as `Segmentation.features`.
        labels: y, integers in [0, C) or booleans, `[...]`: the true or the predicted class.
        num_classes: C ≥ 1, static.
        center: m, `[F]`, the same for all batches and in `fit_gaussians`. None: 0. The covariance loses about
            2 log10(|mean - m| / deviation) of float32's 7 digits: give a mean of the features if they vary little.
        where, axis_name: as in `confusion_matrix`.

    Returns:
        `GaussianSums`. Every count is -2^31 and every sum NaN if an unmasked label is outside [0, C) or an unmasked
        feature is not finite.

    Raises: TypeError or ValueError if a dtype or shape does not fit.
    References: Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples, arXiv 1807.03888.

    >>> sums = gaussian_sums(jnp.array([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]]), jnp.array([0, 0, 1]), 2)
    >>> print(sums.count, sums.total.tolist(), sums.outer[0].tolist())
    [2 1] [[4.0, 2.0], [5.0, 5.0]] [[10.0, 6.0], [6.0, 4.0]]
    """
    x, given = _features(features, where)
    labels = checks.integers("labels", labels)
    checks.same_shape("labels", labels.shape, "features without their last axis", x.shape[:-1])
    checks.scalar("num_classes", num_classes, jnp.int32, 1.0)
    if center is not None:
        center = checks.floating("center", center)
        checks.same_shape("center", center.shape, "one pixel's features", x.shape[-1:])
        x = x - jnp.broadcast_to(center.astype(x.dtype), x.shape)
    valid = (labels >= 0) & (labels < num_classes) & jnp.all(jnp.isfinite(x), axis=-1)
    counts = count(labels.astype(jnp.int32), valid, given, num_classes, axis_name)
    x, labels, counted = x.reshape(-1, x.shape[-1]), labels.ravel(), (valid & given).ravel()

    def of_class(c):
        # Not a matrix product with one-hot labels, which a NaN of a masked pixel would reach.
        own = jnp.where((counted & (labels == c))[:, None], x, 0)
        return jnp.sum(own, axis=0), jnp.matmul(own.T, own, precision="highest")

    total, outer = psum(jax.lax.map(of_class, jnp.arange(num_classes)), axis_name)
    invalid = counts < 0
    return GaussianSums(
        counts, jnp.where(invalid[:, None], jnp.nan, total), jnp.where(invalid[:, None, None], jnp.nan, outer)
    )


def fit_gaussians(
    sums: GaussianSums,
    *,
    center: Float[ArrayLike, "features"] | None = None,
    covariance: str = "tied",
    ridge: float = 1e-6,
) -> Gaussians:
    r"""Fits the mean and the covariance of each class by maximum likelihood, in float64 on the host.

    .. math::
        \mu_c = \frac{1}{n_c} \sum_{y_i = c} x_i, \qquad
        \Sigma_c = \frac{1}{n_c} \sum_{y_i = c} (x_i - \mu_c)(x_i - \mu_c)^\top, \qquad
        \Sigma = \sum_c \frac{n_c}{N} \Sigma_c

    Sum over the classes for the background of `relative_mahalanobis_score`::

        background = fit_gaussians(jax.tree.map(lambda x: x.sum(axis=0, keepdims=True), sums))

    Args:
        sums: sums of `gaussian_sums`.
        center: the same as in `gaussian_sums`.
        covariance: "tied" (one Σ for all classes) or "class" (one per class, which needs many pixels per class).
        ridge: ρ ≥ 0; adds ρ times the mean variance to the diagonal, so that Σ stays invertible.

    Returns: `Gaussians` in float32.

    Raises:
        TypeError, ValueError: sums are traced, invalid, of shapes that do not match, or without a pixel; a covariance
            is singular at this ridge.

    References: Lee et al., arXiv 1807.03888; with a covariance per class, Mukhoti et al., arXiv 2102.11582.

    >>> sums = gaussian_sums(jnp.array([[1.0], [3.0], [5.0], [9.0]]), jnp.array([0, 0, 1, 1]), 2)
    >>> gaussians = fit_gaussians(sums, ridge=0.0)
    >>> print(gaussians.mean.ravel(), (1 / gaussians.whitening.ravel() ** 2).round(3))  # variances 1 and 4, tied
    [2. 7.] [2.5 2.5]
    """
    checks.choice("covariance", covariance, ("tied", "class"))
    checks.scalar("ridge", ridge, jnp.float32, 0.0)
    counts, total, outer = _host_sums(sums)
    classes, size = total.shape
    present = counts > 0
    n = np.maximum(counts, 1).astype(np.float64)
    mean = total / n[:, None]
    scatter = outer - n[:, None, None] * mean[:, :, None] * mean[:, None, :]
    if covariance == "tied":
        matrices = np.repeat(scatter.sum(axis=0, keepdims=True) / counts.sum(), classes, axis=0)
    else:
        matrices = scatter / n[:, None, None]
    matrices += ridge * np.trace(matrices, axis1=1, axis2=2)[:, None, None] / size * np.eye(size)
    matrices[~present] = np.eye(size)
    try:
        factors = np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        raise ValueError(
            f"a covariance of the {size} features is singular (constant or dependent features, too few pixels of a "
            f'class, or a mean far from center); got ridge={ridge:g}, covariance="{covariance}": raise ridge, use '
            'covariance="tied", or give gaussian_sums a center'
        ) from None
    with np.errstate(divide="ignore"):
        log_prior = np.log(counts / counts.sum())
    shift = np.zeros(size) if center is None else checks.host("center", center).astype(np.float64)
    checks.same_shape("center", shift.shape, "one pixel's features", (size,))
    result = Gaussians(
        mean=np.where(present[:, None], mean + shift, 0.0),
        whitening=np.linalg.inv(factors),
        log_determinant=2 * np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1),
        log_prior=log_prior,
    )
    return jax.tree.map(lambda x: np.asarray(x, np.float32), result)


def mahalanobis_score(features: Features, gaussians: Gaussians, *, where: Where = None) -> Float[Array, "*pixels"]:
    r"""Returns the squared Mahalanobis distance to the nearest class.

    .. math:: s = \min_c M_c, \qquad M_c = (x - \mu_c)^\top \Sigma_c^{-1} (x - \mu_c)

    Args:
        features: x, `[..., F]`, floating.
        gaussians: from `fit_gaussians`, of F features.
        where: as in `max_logit_score`.

    Returns: `[...]` ≥ 0, at least float32, higher for anomalies; NaN where an unmasked feature is NaN.
    Raises: TypeError or ValueError if a dtype or shape does not fit.
    References: Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples, arXiv 1807.03888.

    >>> sums = gaussian_sums(jnp.array([[1.0], [3.0], [5.0], [7.0]]), jnp.array([0, 0, 1, 1]), 2)
    >>> print(mahalanobis_score(jnp.array([[2.0], [4.0], [10.0]]), fit_gaussians(sums, ridge=0.0)))
    [ 0.  4. 16.]
    """
    x, keep = _features(features, where)
    return jnp.where(keep, jnp.min(_distances(x, gaussians), axis=0), 0)


def relative_mahalanobis_score(
    features: Features, gaussians: Gaussians, background: Gaussians, *, where: Where = None
) -> Float[Array, "*pixels"]:
    r"""Returns the squared distance to the nearest class, minus that to the Gaussian of all pixels.

    .. math:: s = \min_c M_c - M_0

    The difference cancels variation that the pixels of all classes share.

    Args:
        features, gaussians: as in `mahalanobis_score`.
        background: the Gaussian of all pixels, of one class: see `fit_gaussians`.
        where: as in `max_logit_score`.

    Returns: `[...]` of either sign, otherwise as `mahalanobis_score`.
    Raises: as `mahalanobis_score`.
    References: Ren et al., A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection, arXiv 2106.09022.

    >>> sums = gaussian_sums(jnp.array([[1.0], [3.0], [5.0], [7.0]]), jnp.array([0, 0, 1, 1]), 2)
    >>> background = fit_gaussians(jax.tree.map(lambda x: x.sum(axis=0, keepdims=True), sums), ridge=0.0)
    >>> score = relative_mahalanobis_score(jnp.array([[2.0], [4.0]]), fit_gaussians(sums, ridge=0.0), background)
    >>> print(score.round(3))
    [-0.8  4. ]
    """
    x, keep = _features(features, where)
    score = jnp.min(_distances(x, gaussians), axis=0) - jnp.min(_distances(x, background), axis=0)
    return jnp.where(keep, score, 0)


def gaussian_density_score(features: Features, gaussians: Gaussians, *, where: Where = None) -> Float[Array, "*pixels"]:
    r"""Returns the negative log density of the features under the mixture of the classes.

    .. math:: s = -\log \sum_c \pi_c\, \mathcal{N}(x;\, \mu_c, \Sigma_c)

    Args:
        features, gaussians, where: as in `mahalanobis_score`; the paper fits `covariance="class"`.

    Returns: `[...]` in nats, of either sign, otherwise as `mahalanobis_score`.
    Raises: as `mahalanobis_score`.
    References: Mukhoti et al., Deep Deterministic Uncertainty: A Simple Baseline, arXiv 2102.11582.

    >>> sums = gaussian_sums(jnp.array([[-1.0], [1.0]]), jnp.array([0, 0]), 1)
    >>> score = gaussian_density_score(jnp.array([[0.0]]), fit_gaussians(sums, ridge=0.0))
    >>> round(float(score[0]), 4)  # log(2π) / 2
    0.9189
    """
    x, keep = _features(features, where)
    axes = (slice(None), *(None,) * (x.ndim - 1))
    offset = jnp.asarray(gaussians.log_prior) - jnp.asarray(gaussians.log_determinant) / 2
    log_joint = offset.astype(x.dtype)[axes] - _distances(x, gaussians) / 2
    constant = x.shape[-1] / 2 * float(np.log(2 * np.pi))
    return jnp.where(keep, constant - jax.nn.logsumexp(log_joint, axis=0), 0)


def laplace_sums(
    features: Features, logits: Float[ArrayLike, "*pixels classes"], *, where: Where = None, axis_name: AxisName = None
) -> LaplaceSums:
    r"""Sums the Kronecker factors of the curvature of a linear head, over all devices.

    .. math::
        n, \qquad A = \sum_i φ_i φ_i^\top, \qquad G = \sum_i \left(\mathrm{diag}(p_i) - p_i p_i^\top\right), \qquad
        φ = (x, 1), \quad p = softmax(z)

    Add the sums of all training images. Labels are not needed, because this is the generalised Gauss-Newton matrix of
    the cross entropy.

    Args:
        features: x, `[..., F]`, floating: the head's input, such as `Segmentation.features`.
        logits: z, `[..., C]`, the head's output, finite; for a single logit (C = 1), p = σ(z).
        where, axis_name: as in `confusion_matrix`.

    Returns: `LaplaceSums`. The count is -2^31 and every sum NaN if an unmasked feature or logit is not finite.
    Raises: TypeError or ValueError if a dtype or shape does not fit.
    References: Ritter et al., A Scalable Laplace Approximation for Neural Networks, ICLR 2018; Daxberger et al.,
        Laplace Redux, arXiv 2106.14806.

    >>> sums = laplace_sums(jnp.array([[2.0], [4.0]]), jnp.zeros((2, 2)))
    >>> print(sums.count, sums.features.tolist(), sums.logits.tolist())
    2 [[20.0, 6.0], [6.0, 2.0]] [[0.5, -0.5], [-0.5, 0.5]]
    """
    x, given = _features(features, where)
    z = _head_logits(logits)
    checks.same_shape("logits", z.shape[:-1], "features without their last axis", x.shape[:-1])
    valid = jnp.all(jnp.isfinite(x), axis=-1) & jnp.all(jnp.isfinite(z), axis=-1)
    counts = count(jnp.zeros(valid.shape, jnp.int32), valid, given, 1, axis_name)[0]
    counted = (valid & given)[..., None]
    inputs = jnp.concatenate([jnp.where(counted, x, 0), counted.astype(x.dtype)], axis=-1).reshape(-1, x.shape[-1] + 1)
    z = jnp.where(counted, z, 0)
    p = jax.nn.softmax(z if z.shape[-1] > 1 else jnp.concatenate([jnp.zeros_like(z), z], axis=-1))
    p = jnp.where(counted, p, 0).reshape(-1, p.shape[-1])
    outer, products = psum([jnp.matmul(a.T, a, precision="highest") for a in (inputs, p)], axis_name)
    # The rows of G sum to 0: p - p² itself would lose its digits where p is near 1, almost everywhere.
    others = jnp.where(jnp.eye(len(products), dtype=bool), 0, products)
    curvature = (jnp.diag(others.sum(axis=1)) - others)[-z.shape[-1] :, -z.shape[-1] :]
    return LaplaceSums(counts, *(jnp.where(counts < 0, jnp.nan, one) for one in (outer, curvature)))


def fit_laplace(sums: LaplaceSums, *, prior_precision: float = 1.0) -> Laplace:
    r"""Fits the posterior of the head's parameters W around the trained ones, in float64 on the host.

    .. math:: W \sim \mathcal{N}\left(\hat W,\; \left(\tfrac{1}{n} A \otimes G + τ I\right)^{-1}\right)

    The factored curvature is exact if all pixels have the same p. Fitting is cheap: try powers of 10 for τ and keep the
    one with the lowest `negative_log_likelihood` of `probit_logits` on a validation split.

    Args:
        sums: sums of `laplace_sums`.
        prior_precision: τ > 0, of the prior W ~ N(0, I / τ).

    Returns: `Laplace` in float32.
    Raises: TypeError or ValueError if sums are traced or invalid, a factor is not symmetric or has negative eigenvalues
        beyond rounding, no pixel was counted, or τ ≤ 0.
    References: Ritter et al., ICLR 2018; Daxberger et al., arXiv 2106.14806.

    >>> sums = laplace_sums(jnp.array([[2.0], [2.0]]), jnp.zeros((2, 1)))  # curvature 2 · [[4, 2], [2, 1]] / 4
    >>> print(fit_laplace(sums, prior_precision=0.5).variance.round(3).ravel())  # 1 / (0 + τ), 1 / (2.5 + τ)
    [2.    0.333]
    """
    checks.finite("prior_precision", prior_precision, jnp.float32, above=0.0)
    counts = host_counts("sums.count", sums.count, _LAPLACE_CAUSE)
    factors = [checks.host(f"sums.{name}", getattr(sums, name)).astype(np.float64) for name in ("features", "logits")]
    for name, factor in zip(("features", "logits"), factors, strict=True):
        if factor.ndim != 2 or len(set(factor.shape)) != 1:
            raise ValueError(f"sums.{name} must be a square matrix; got shape {factor.shape}")
        if not np.isfinite(factor).all():
            raise ValueError(f"sums.{name} is not finite: {_LAPLACE_CAUSE}")
        if np.abs(factor - factor.T).max(initial=0) > 1e-3 * np.abs(factor).max(initial=0):
            raise ValueError(f"sums.{name} must be a symmetric matrix: add sums of laplace_sums")
    if counts.shape != () or not counts:
        raise ValueError(f"sums.count must be a scalar of at least one pixel; got {counts.tolist()}")
    (a, feature_basis), (g, class_basis) = map(np.linalg.eigh, factors)
    for name, eigenvalues in (("features", a), ("logits", g)):
        if eigenvalues.min(initial=0) < -1e-3 * eigenvalues.max(initial=0):
            raise ValueError(
                f"sums.{name} must have no negative eigenvalues; got {eigenvalues.min():.3g}: add sums of laplace_sums"
            )
    curvature = np.maximum(a, 0)[:, None] * np.maximum(g, 0) / counts
    result = Laplace(feature_basis, class_basis, 1 / (curvature + float(prior_precision)))
    return jax.tree.map(lambda x: np.asarray(x, np.float32), result)


def laplace_variance(features: Features, laplace: Laplace, *, where: Where = None) -> Float[Array, "*pixels classes"]:
    r"""Returns the variance of the logits under the posterior of the head.

    .. math:: v_c = \sum_j U_{cj}^2 \sum_i (V^\top φ)_i^2 \, s_{ij}, \qquad φ = (x, 1)

    V and U are the bases of features and classes, s the variances. The mean over the classes is a score. It is high
    where the features differ from the training features along directions of low training variance.

    Args:
        features: x, `[..., F]`, floating.
        laplace: from `fit_laplace`, of F features.
        where: as in `max_logit_score`.

    Returns: `[..., C]` ≥ 0 in logits squared, at least float32; NaN where an unmasked feature is NaN.
    Raises: TypeError or ValueError if a dtype or shape does not fit.
    References: Daxberger et al., arXiv 2106.14806; Kristiadi et al., arXiv 2002.10118.

    >>> laplace = fit_laplace(laplace_sums(jnp.array([[2.0], [2.0]]), jnp.zeros((2, 1))), prior_precision=0.5)
    >>> print(laplace_variance(jnp.array([[2.0], [-2.0]]), laplace).round(2).ravel())
    [1.67 7.  ]
    """
    x, keep = _features(features, where)
    basis, classes, variance = (jnp.asarray(leaf, x.dtype) for leaf in laplace)
    checks.same_shape("laplace.feature_basis", basis.shape, "features and bias", (x.shape[-1] + 1,) * 2)
    expected = (x.shape[-1] + 1, *classes.shape[1:])
    checks.same_shape("laplace.variance", variance.shape, "features and bias, and laplace.class_basis", expected)
    checks.same_shape("laplace.class_basis", classes.shape, "the classes of laplace.variance", variance.shape[-1:] * 2)
    inputs = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
    along = jnp.matmul(inputs, basis, precision="highest") ** 2
    result = jnp.matmul(jnp.matmul(along, variance, precision="highest"), classes.T**2, precision="highest")
    return jnp.where(keep[..., None], result, 0)


def probit_logits(
    logits: Float[ArrayLike, "*pixels classes"], variance: Float[ArrayLike, "*pixels classes"]
) -> Float[Array, "*pixels classes"]:
    r"""Returns logits whose softmax approximates the mean softmax of normally distributed logits.

    .. math:: z'_c = \frac{z_c - \bar z}{\sqrt{1 + π v_c / 8}}, \qquad \bar z = \mathrm{mean}_{z_c > -\infty}\, z_c

    Pass them to any other metric or score. Uncertain pixels become less confident; a class with a smaller variance may
    overtake the likeliest one. Subtracting the mean makes the result independent of a constant that is added
    to all logits, as the softmax is.

    Args:
        logits: mean z, `[..., C]`, finite, or -inf for an impossible class, which stays -inf; of one logit, C = 1, its
            sigmoid, with :math:`\bar z = 0`.
        variance: v ≥ 0, in the logits' shape: of `laplace_variance`, or the `logit_variance` of analytic dropout.

    Returns: `[..., C]`, at least float32; NaN where v is NaN, or traced and negative.
    Raises: TypeError or ValueError if a dtype or shape does not fit, or v is negative.
    References: MacKay, The Evidence Framework Applied to Classification Networks, 1992; Kristiadi et al., Being
        Bayesian, Even Just a Bit, arXiv 2002.10118.

    >>> print(probit_logits(jnp.array([3.0, 0.0]), jnp.array([0.0, 5.0])).round(4))
    [ 1.5    -0.8713]
    """
    z, v = _head_logits(logits), checks.floating("variance", variance)
    checks.same_shape("variance", v.shape, "logits", z.shape)
    checks.not_negative("variance", variance)
    v = v.astype(z.dtype)
    if z.shape[-1] > 1:
        # Differences from the largest logit cannot overflow upwards, nor can their mean, divided before it is summed.
        z = z - jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
    possible = z != -jnp.inf
    z = jnp.where(possible, z, 0)
    if z.shape[-1] > 1:
        number = jnp.sum(possible, axis=-1, keepdims=True, dtype=z.dtype)
        z = z - jnp.sum(z / number, axis=-1, keepdims=True)
    scaled = jnp.where(possible, z / jnp.sqrt(1 + float(np.pi / 8) * v), -jnp.inf)
    return jnp.where(v >= 0, scaled, jnp.nan)


def _head_logits(logits):
    z = checks.floating("logits", logits)
    if z.ndim == 0 or not z.shape[-1]:
        raise ValueError(f"logits must be [..., classes] with at least 1 class; got shape {z.shape}")
    return z


def _logits(logits, where):
    logits = checks.classes("logits", logits)
    keep = checks.mask("where", where, logits.shape[:-1])
    return jnp.where(keep[..., None], logits, 0), keep


def _features(features, where):
    x = checks.floating("features", features)
    if x.ndim == 0:
        raise ValueError("features must be [..., features]; got a scalar")
    keep = checks.mask("where", where, x.shape[:-1])
    return jnp.where(keep[..., None], x, 0), keep


def _distances(x: Features, gaussians: Gaussians) -> Float[Array, "classes *pixels"]:
    """Returns the squared Mahalanobis distance to each class, inf for a class without pixels."""
    checks.same_shape("gaussians.mean[0]", np.shape(gaussians.mean)[1:], "one pixel's features", x.shape[-1:])

    def of_class(gaussian):
        mean, whitening = (jnp.asarray(g, x.dtype) for g in (gaussian.mean, gaussian.whitening))
        squares = jnp.matmul(x - jnp.broadcast_to(mean, x.shape), whitening.T, precision="highest") ** 2
        return jnp.where(gaussian.log_prior > -jnp.inf, jnp.sum(squares, axis=-1), jnp.inf)

    return jax.lax.map(of_class, jax.tree.map(jnp.asarray, gaussians))


def _host_sums(sums: GaussianSums) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counts = host_counts("sums.count", sums.count, _CAUSE)
    total, outer = (checks.host(f"sums.{n}", getattr(sums, n)).astype(np.float64) for n in ("total", "outer"))
    if counts.ndim != 1 or total.ndim != 2:
        raise ValueError(f"sums must be of [classes] and [classes, features]; got {counts.shape} and {total.shape}")
    checks.same_shape("sums.total", total.shape[:1], "sums.count", counts.shape)
    checks.same_shape("sums.outer", outer.shape, "sums.total and its features", (*total.shape, total.shape[1]))
    if not counts.sum():
        raise ValueError("sums must count at least one pixel; got 0")
    if not (np.isfinite(total).all() and np.isfinite(outer).all()):
        raise ValueError(f"sums are not finite: {_CAUSE}, or they overflowed: give gaussian_sums a center")
    return counts, total, outer
