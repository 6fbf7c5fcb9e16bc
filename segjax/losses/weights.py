"""Class weights and initial biases against class imbalance. Host code: computed once, before training."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from segjax import checks

SCHEMES = ("inverse", "median-frequency", "log", "effective-number")


def class_weights(
    counts: Real[ArrayLike, "... classes"], scheme: str, *, beta: Real[ArrayLike, ""] | None = None
) -> Float[Array, "classes"]:
    r"""Computes one weight per class from the pixel counts of a training set.

    With :math:`n_c` pixels of class c, their sum n, and the number C of classes that occur:

    .. math::
        w_c^{inv} = \frac{n}{C n_c}, \quad w_c^{med} = \frac{\operatorname{median}(f)}{f_c}, \quad
        w_c^{log} = \frac{1}{\ln(1.02 + n_c / n)}, \quad w_c^{eff} \propto \frac{1 - β}{1 - β^{n_c}}

    - "inverse": the mean weight per pixel is 1, and every class has the same total weight.
    - "median-frequency": :math:`f_c` is :math:`n_c` divided by the pixels of the images that contain class c. Counts
      `[C]` mean that every image contains every class.
    - "log": ENet's weights, between 1.4 and 50.
    - "effective-number": scaled to a mean of 1 over the classes. Choose β near 1 - 1/n of a rare class of n pixels: at
      the paper's β = 0.9999 all weights of a large data set are 1.

    A class without pixels has weight 0 and does not enter C, the median or the scale.

    Args:
        counts: unmasked pixels per class `[C]`, or per image and class `[images, C]`. May exceed 2^31.
        scheme: one of the four names above.
        beta: β in [0, 1), for "effective-number" only, which requires it.

    Returns:
        `[C]`, JAX's default float (float32).

    Raises:
        TypeError: `counts` or β is traced.
        ValueError: unknown scheme; counts of another rank, negative, not finite or all 0; β missing or out of range.

    References:
        Eigen and Fergus, arXiv 1411.4734 (median frequency); Paszke et al., ENet, arXiv 1606.02147 (log);
        Cui et al., Class-Balanced Loss Based on Effective Number of Samples, arXiv 1901.05555.

    >>> print(class_weights(np.array([900, 100, 0]), "inverse"))
    [0.5555556 5.        0.       ]
    """
    checks.choice("scheme", scheme, SCHEMES)
    counts = _counts("counts", counts)
    if counts.ndim not in (1, 2):
        raise ValueError(f"counts must be [classes] or [images, classes]; got shape {counts.shape}")
    beta = None if beta is None else float(checks.host("beta", beta))
    if scheme == "effective-number" and (beta is None or not 0 <= beta < 1):
        raise ValueError(f'scheme="effective-number" needs beta in [0, 1); got {beta}')
    counts = np.atleast_2d(counts)
    present = counts.sum(axis=0) > 0
    counts = counts[:, present]
    per_class = counts.sum(axis=0)
    if scheme == "inverse":
        values = per_class.sum() / (per_class.size * per_class)
    elif scheme == "median-frequency":
        frequency = per_class / np.where(counts > 0, counts.sum(axis=1, keepdims=True), 0).sum(axis=0)
        values = np.median(frequency) / frequency
    elif scheme == "log":
        values = 1 / np.log(1.02 + per_class / per_class.sum())
    else:
        with np.errstate(divide="ignore"):  # log 0 at β = 0 gives the right weight of 1
            values = (1 - beta) / -np.expm1(per_class * np.log(beta))
        values = values / values.mean()
    weights = np.zeros(present.size)
    weights[present] = values
    return jnp.asarray(weights)


def prior_bias(pi: Float[ArrayLike, "*outputs"]) -> Float[Array, "*outputs"]:
    r"""Returns the bias with which a sigmoid head predicts the foreground probability π at every pixel.

    .. math:: b = -\log\frac{1 - π}{π}

    A head with bias 0 starts at 0.5, and the many negatives of a rare class dominate the first steps.

    Args:
        pi: π in (0, 1), a scalar or one per output; may be traced. The paper uses 0.01 for every data set.

    Returns:
        b, the shape of π, at least float32.

    Raises:
        TypeError: π is not floating point.
        ValueError: π is not in (0, 1) (not checked when traced).

    References:
        Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.1.

    >>> print(prior_bias(0.01))
    -4.59512
    """
    if isinstance(pi, jax.core.Tracer):
        pi = checks.floating("pi", pi)
        return jnp.log(pi) - jnp.log1p(-pi)
    # In float64: 1 - 1e-8, the background of a rare class, is 1 in float32 and its bias infinite.
    exact = np.asarray(pi, np.float64)
    if not ((exact > 0) & (exact < 1)).all():
        raise ValueError(f"pi must be between 0 and 1, both excluded; got {exact.tolist()}")
    return jnp.asarray(np.log(exact) - np.log1p(-exact), checks.floating("pi", pi).dtype)


def prior_bias_softmax(frequencies: Real[ArrayLike, "classes"]) -> Float[Array, "classes"]:
    r"""Returns the biases with which a softmax head predicts the class frequencies at every pixel.

    .. math:: b_c = \log\frac{f_c}{\sum_j f_j}

    Args:
        frequencies: f, `[C]`, all positive: frequencies or pixel counts.

    Returns:
        b, `[C]`, JAX's default float (float32); softmax(b) = f / Σ f.

    Raises:
        TypeError: `frequencies` are traced.
        ValueError: not `[C]`, negative or not finite, or 0 for a class, whose bias would be -∞ for ever.

    References:
        Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.1 (for two classes).

    >>> print(prior_bias_softmax(np.array([0.9, 0.1])))
    [-0.10536052 -2.3025851 ]
    """
    frequencies = _counts("frequencies", frequencies)
    if frequencies.ndim != 1:
        raise ValueError(f"frequencies must be [classes]; got shape {frequencies.shape}")
    if not frequencies.all():
        raise ValueError(
            f"frequencies must be positive; got 0 for classes {np.flatnonzero(frequencies == 0).tolist()}: their bias "
            "would be -inf. Give it a floor, for instance np.maximum(counts, 1)"
        )
    return jnp.asarray(np.log(frequencies / frequencies.sum()))


def _counts(name: str, values: ArrayLike) -> np.ndarray:
    """Returns checked counts in float64, since JAX would wrap counts beyond 2^31."""
    counts = checks.host(name, values).astype(np.float64)
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError(f"{name} must be finite and not negative; got {counts.tolist()}")
    if not counts.any():
        raise ValueError(f"{name} must not be all 0; got {counts.tolist()}")
    return counts
