"""Weights and biases that answer a class imbalance, from pixel counts. Host code: computed once, before training."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from segjax import checks

# Paszke et al. 2016: c of 1 / ln(c + p), which bounds the weights to [1.4, 50].
_ENET_C = 1.02


def class_weights(
    counts: Real[ArrayLike, "... classes"], scheme: str, *, beta: Real[ArrayLike, ""] | None = None
) -> Float[Array, "classes"]:
    r"""Class weights from the pixel counts of a training set, for `class_weights`, `alpha` and their like.

    With n_c pixels of class c, their sum n, and the number C of classes that occur:

    .. math::
        w_c^{inv} = \frac{n}{C n_c}, \quad w_c^{med} = \frac{\operatorname{median}(f)}{f_c}, \quad
        w_c^{log} = \frac{1}{\ln(1.02 + n_c / n)}, \quad w_c^{eff} \propto \frac{1 - β}{1 - β^{n_c}}

    - "inverse": the mean weight of a pixel is 1 and every class weighs the same in total.
    - "median-frequency": f_c is n_c over the pixels of the images that hold class c. That needs counts `[images, C]`;
      with `[C]` every image is taken to hold every class.
    - "log": ENet's.
    - "effective-number": scaled to a mean of 1 over the classes. β near 1 - 1/n_c of the rare classes: pixels are many,
      so with the paper's β = 0.9999 all weights of a big set are 1.

    A class of 0 pixels has weight 0 in every scheme and is left out of C, the median and the scale: nothing is known of
    it, and an infinite weight would turn 0 · ∞ into NaN.

    Args:
        counts: pixels of each class, void left out: `[C]`, or `[images, C]` for each image. May exceed 2^31.
        scheme: "inverse", "median-frequency", "log" or "effective-number".
        beta: β in [0, 1); read by "effective-number" only, which needs it.

    Returns:
        `[C]`, JAX's default float (float32).

    Raises:
        TypeError: `counts` or β are traced.
        ValueError: unknown scheme; counts of another rank, negative, not finite or all 0; β missing or out of range.

    References:
        Eigen and Fergus, arXiv 1411.4734 (median frequency); Paszke et al., ENet, arXiv 1606.02147 (log);
        Cui et al., Class-Balanced Loss Based on Effective Number of Samples, arXiv 1901.05555.

    >>> import numpy as np
    >>> print(class_weights(np.array([900, 100, 0]), "inverse"))
    [0.5555556 5.        0.       ]
    >>> print(class_weights(np.array([900, 100]), "log").round(2))
    [1.53 8.82]
    """
    checks.choice("scheme", scheme, tuple(_SCHEMES))
    counts = _counts("counts", counts)
    if counts.ndim not in (1, 2):
        raise ValueError(f"counts must be [classes] or [images, classes]; got shape {counts.shape}")
    counts = np.atleast_2d(counts)
    if beta is not None:
        beta = float(checks.host("beta", beta))
    if scheme == "effective-number" and (beta is None or not 0 <= beta < 1):
        raise ValueError(f'scheme="effective-number" needs beta in [0, 1); got {beta}')
    present = counts.sum(axis=0) > 0
    weights = np.zeros(counts.shape[1])
    weights[present] = _SCHEMES[scheme](counts[:, present], beta)
    return jnp.asarray(weights)


def prior_bias(pi: Float[ArrayLike, "*outputs"]) -> Float[Array, "*outputs"]:
    r"""The bias of a sigmoid head that starts every pixel at the foreground probability π.

    .. math:: b = -\log\frac{1 - π}{π}

    Without it a fresh head says 0.5 everywhere, and the many negatives of a rare class swamp the first steps.

    Args:
        pi: π in (0, 1), a scalar or one for each output; may be traced. The paper takes 0.01, whatever the data.

    Returns:
        b, the shape of π, at least float32.

    Raises:
        TypeError: π is not floating.
        ValueError: π is not in (0, 1) (where it has a value: not when traced).

    References:
        Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.1.

    >>> print(prior_bias(0.01))
    -4.59512
    """
    if isinstance(pi, jax.core.Tracer):
        pi = checks.floating("pi", pi)
        return jnp.log(pi) - jnp.log1p(-pi)
    # In float64 on the host: 1 - 1e-8, the background of a rare class, is 1 in float32, and its bias infinite.
    exact = np.asarray(pi, np.float64)
    if not ((exact > 0) & (exact < 1)).all():
        raise ValueError(f"pi must be between 0 and 1, both excluded; got {exact.tolist()}")
    return jnp.asarray(np.log(exact) - np.log1p(-exact), checks.floating("pi", pi).dtype)


def prior_bias_softmax(frequencies: Real[ArrayLike, "classes"]) -> Float[Array, "classes"]:
    r"""The biases of a softmax head that starts every pixel at the class frequencies.

    .. math:: b_c = \log\frac{f_c}{\sum_j f_j}

    Args:
        frequencies: f, `[C]`, all positive: frequencies or pixel counts, they are divided by their sum.

    Returns:
        b, `[C]`, JAX's default float (float32); softmax(b) = f / Σ f.

    Raises:
        TypeError: `frequencies` are traced.
        ValueError: not `[C]`, negative or not finite, or a class has 0: its bias would be -∞, and never learnt away.

    References:
        Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.1: the same idea, C classes.

    >>> import numpy as np
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
    # float64 on the host: counts pass 2^31, and JAX would wrap them to int32 without a word.
    counts = checks.host(name, values).astype(np.float64)
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError(f"{name} must be finite and not negative; got {counts.tolist()}")
    if not counts.any():
        raise ValueError(f"{name} must not be all 0; got {counts.tolist()}")
    return counts


def _inverse(counts: np.ndarray, _beta: float | None) -> np.ndarray:
    of_class = counts.sum(axis=0)
    return of_class.sum() / (of_class.size * of_class)


def _median_frequency(counts: np.ndarray, _beta: float | None) -> np.ndarray:
    pixels_with_class = np.where(counts > 0, counts.sum(axis=1, keepdims=True), 0).sum(axis=0)
    frequency = counts.sum(axis=0) / pixels_with_class
    return np.median(frequency) / frequency


def _log(counts: np.ndarray, _beta: float | None) -> np.ndarray:
    return 1 / np.log(_ENET_C + counts.sum(axis=0) / counts.sum())


def _effective_number(counts: np.ndarray, beta: float | None) -> np.ndarray:
    of_class = counts.sum(axis=0)
    # β = 0 means one effective pixel a class: its logarithm is -∞, and -expm1(-∞) is the right 1.
    with np.errstate(divide="ignore"):
        weights = (1 - beta) / -np.expm1(of_class * np.log(beta))
    return weights / weights.mean()


_SCHEMES = {
    "inverse": _inverse,
    "median-frequency": _median_frequency,
    "log": _log,
    "effective-number": _effective_number,
}
