"""Weights of classes and of boundary pixels, initial biases and logit adjustments against class imbalance.

Class weights and biases are host code, computed once before training. Boundaries are found on the device.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Real

from segjax import checks
from segjax.checks import ClassWeights, Labels, Scalar, Where


def class_weights(
    counts: Real[ArrayLike, "... classes"], scheme: str, *, beta: Scalar | None = None
) -> Float[Array, "classes"]:
    r"""Computes one weight per class from the pixel counts of a training set.

    With :math:`n_c` pixels of class c, their sum n, and the number C of classes that occur:

    .. math::
        w_c^{inv} = \frac{n}{C n_c}, \quad w_c^{med} = \frac{\operatorname{median}(f)}{f_c}, \quad
        w_c^{log} = \frac{1}{\ln(1.02 + n_c / n)}, \quad w_c^{eff} \propto \frac{1 - β}{1 - β^{n_c}}

    - "inverse": the mean weight per pixel is 1, and every class has the same total weight.
    - "median-frequency": :math:`f_c` is :math:`n_c` divided by the pixels of the images that contain class c.
    - "log": ENet's weights, between 1.4 and 50.
    - "effective-number": scaled to a mean of 1 over the classes. Choose β near 1 - 1/n for a rare class of n pixels.

    Args:
        counts: unmasked pixels per class `[C]` (as of one image), or per image and class `[images, C]`.
        scheme: one of the four names above.
        beta: β in [0, 1), required by "effective-number".

    Returns:
        `[C]`, float32; 0 for a class without pixels, which does not enter C, the median or the scale.

    Raises: TypeError or ValueError if counts are traced, negative, not finite or all 0, or an option is not valid.

    References: Eigen and Fergus, arXiv 1411.4734; Paszke et al. (ENet), arXiv 1606.02147; Cui et al., arXiv 1901.05555.

    >>> print(class_weights(np.array([900, 100, 0]), "inverse"))
    [0.5555556 5.        0.       ]
    """
    checks.choice("scheme", scheme, ("inverse", "median-frequency", "log", "effective-number"))
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

    Args:
        pi: π in (0, 1), a scalar or one per output; may be traced. The paper uses 0.01 for every data set.

    Returns:
        b, the shape of π, at least float32.

    Raises: TypeError or ValueError if π is not floating point, or not in (0, 1) (not checked when traced).

    References: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.1.

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


def prior_bias_softmax(frequencies: ClassWeights) -> Float[Array, "classes"]:
    r"""Returns the biases with which a softmax head predicts the class frequencies at every pixel.

    .. math:: b_c = \log\frac{f_c}{\sum_j f_j}

    Args:
        frequencies: f, `[C]`, all positive: frequencies or pixel counts; may be traced.

    Returns:
        b, `[C]`, JAX's default float (float32); softmax(b) = f / Σ f.

    Raises: TypeError or ValueError if `frequencies` are not `[C]`, or negative, not finite, or 0 for a class (values
        are not checked when traced).

    References: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.1 (for two classes).

    >>> print(prior_bias_softmax(np.array([0.9, 0.1])))
    [-0.10536052 -2.3025851 ]
    """
    is_traced = isinstance(frequencies, jax.core.Tracer)
    frequencies = checks.floating("frequencies", frequencies) if is_traced else _counts("frequencies", frequencies)
    if frequencies.ndim != 1:
        raise ValueError(f"frequencies must be [classes]; got shape {frequencies.shape}")
    if is_traced:
        return jnp.log(frequencies / jnp.sum(frequencies))
    if not frequencies.all():
        classes = np.flatnonzero(frequencies == 0).tolist()
        advice = "their logarithm would be -inf. Give them a floor, for instance np.maximum(counts, 1)"
        raise ValueError(f"frequencies must be positive; got 0 for classes {classes}: {advice}")
    return jnp.asarray(np.log(frequencies / frequencies.sum()))


def logit_adjustment(frequencies: ClassWeights, *, tau: Scalar = 1.0) -> Float[Array, "classes"]:
    r"""Returns the logit adjustment of each class, which makes a softmax rank classes as if all were equally frequent.

    .. math:: a_c = τ \log π_c, \qquad π = \frac{f}{\sum_j f_j}

    Use it in one of two places, since p(y | x) / π_y is the balanced posterior:

    - in training: `softmax_cross_entropy(logits + a, labels)`, and predict from the logits alone;
    - after training without it: predict from `logits - a`. This needs no new training, and τ can be tuned.

    τ = 1 is `prior_bias_softmax(frequencies)`. That bias is a parameter: training changes it, and it stays in
    the predictions. The adjustment in training is the same bias, held fixed and then removed. Do not use both:
    `logits + a` starts at the frequencies without a prior bias. A sigmoid logit is adjusted by `tau * prior_bias(pi)`.

    Args:
        frequencies: f, `[C]`, all positive: frequencies or pixel counts; may be traced.
        tau: τ ≥ 0; may be traced. 0 adjusts nothing.

    Returns:
        a, `[C]`, JAX's default float (float32).

    Raises: TypeError or ValueError if `frequencies` are not `[C]`, or negative, not finite, or 0 for a class (values
        are not checked when traced), or τ < 0.

    References: Menon et al., Long-Tail Learning via Logit Adjustment, arXiv 2007.07314. Its code adds 1e-12 to π^τ.

    >>> logits = jnp.log(jnp.array([0.8, 0.2]))  # 0.2 is much for a class of frequency 0.1
    >>> print(jax.nn.softmax(logits - logit_adjustment(np.array([0.9, 0.1]))).round(2))
    [0.31 0.69]
    """
    bias = prior_bias_softmax(frequencies)
    return checks.scalar("tau", tau, bias.dtype, 0.0) * bias


def boundary_mask(
    labels: Labels,
    *,
    mode: str = "thick",
    connectivity: int = 1,
    background: Integer[ArrayLike, ""] = 0,
    where: Where = None,
) -> Bool[Array, "*pixels"]:
    r"""Marks the pixels with a neighbour of another label; equals scikit-image's `find_boundaries` per image.

    .. math::
        T_i = \bigvee_{j \in N(i)} [y_j \ne y_i], \qquad
        I_i = T_i \wedge [y_i \ne b], \qquad
        O_i = T_i \wedge \left([y_i = b] \vee
        \bigvee_{j \in N_8(i)} [y_j \ne y_i] \wedge ([y_j \ne b] \vee [y_j > y_i])\right)

    with label y, background b and the 4 or 8 neighbours N(i) of pixel i. "thick", T: both sides of every boundary.
    "inner", I: the side of the object. "outer", O: the side of the background, and both sides where two objects touch
    (as in scikit-image, an object whose label is below b is marked on its own side too).

    Args:
        labels: y, integers of any value and type, `[..., H, W]`.
        mode: "thick", "inner" or "outer"; static.
        connectivity: 1 for 4 neighbours, 2 for 8; static.
        background: b, used by "inner" and "outer"; static. Class 0 is road in Cityscapes' train ids.
        where: boolean, broadcastable; a pixel with False (void) is neither a boundary nor a neighbour.

    Returns:
        boolean `[..., H, W]`.

    Raises: TypeError or ValueError if a dtype, shape or option is not valid, or the background is traced.

    References: van der Walt et al., scikit-image, arXiv 1407.6245: `skimage.segmentation.find_boundaries`.

    >>> labels = jnp.array([[0, 0, 5, 5, 1, 1, 255]])
    >>> print(boundary_mask(labels, mode="outer", where=labels != 255).astype(int))
    [[0 1 0 1 1 0 0]]
    """
    labels = checks.array("labels", labels)
    labels = labels.astype(jnp.uint8) if labels.dtype == jnp.bool_ else labels
    # Not widened: labels are only compared, narrow ones move fewer bytes, and uint32 would overflow int32.
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers; got {labels.dtype} of shape {labels.shape}")
    if labels.ndim < 2:
        raise ValueError(f"labels must be [..., height, width]; got shape {labels.shape}")
    keep = checks.mask("where", where, labels.shape)
    checks.choice("mode", mode, ("thick", "inner", "outer"))
    if connectivity not in (1, 2):
        raise ValueError(f"connectivity must be 1 (4 neighbours) or 2 (8 neighbours); got {connectivity!r}")
    b = checks.host("background", background)
    if b.ndim != 0 or not np.issubdtype(b.dtype, np.integer):
        raise TypeError(f"background must be one integer; got {background!r}")

    thick = _any_neighbour(labels, keep, connectivity, lambda own, other: own != other)
    if mode == "thick":
        return thick
    is_background = _equals(labels, int(b))
    if mode == "inner":
        return thick & ~is_background
    touching = _any_neighbour(
        labels, keep, 2, lambda own, other: (own != other) & (~_equals(other, int(b)) | (other > own))
    )
    return thick & (is_background | touching)


def boundary_weights(
    labels: Labels,
    factor: Scalar,
    *,
    mode: str = "outer",
    connectivity: int = 1,
    background: Integer[ArrayLike, ""] = 0,
    where: Where = None,
) -> Float[Array, "*pixels"]:
    r"""Returns one weight per pixel, for `mean(loss, weights=weights)`: `factor` at boundaries, 1 elsewhere.

    .. math:: w_i = 1 + (k - 1) [i \in boundary]

    Args:
        labels: as in `boundary_mask`.
        factor: k ≥ 0; may be traced. The Cityscapes U-Net recipe uses 2.
        mode, connectivity, background: as in `boundary_mask`; static.
        where: as in `boundary_mask`; a pixel with False has weight 1. Without it the rim of void is weighted too.

    Returns:
        float32 `[..., H, W]`.

    Raises: as `boundary_mask`, or the factor is not a scalar, or negative (unless traced).

    References: van der Walt et al., scikit-image, arXiv 1407.6245: `skimage.segmentation.find_boundaries`.

    >>> print(boundary_weights(jnp.array([[0, 0, 0, 1, 1, 2, 2]]), 2.0))
    [[1. 1. 2. 1. 2. 2. 1.]]
    """
    factor = checks.scalar("factor", factor, jnp.float32, 0.0)
    boundary = boundary_mask(labels, mode=mode, connectivity=connectivity, background=background, where=where)
    return jnp.where(boundary, factor, jnp.float32(1))


def _counts(name: str, values: ArrayLike) -> np.ndarray:
    """Returns checked counts in float64, since JAX would wrap counts beyond 2^31."""
    counts = checks.host(name, values).astype(np.float64)
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError(f"{name} must be finite and not negative; got {counts.tolist()}")
    if not counts.any():
        raise ValueError(f"{name} must not be all 0; got {counts.tolist()}")
    return counts


def _equals(labels: jax.Array, value: int) -> jax.Array:
    """Returns labels == value, False if their dtype cannot hold the value, which JAX would wrap to another label."""
    limits = jnp.iinfo(labels.dtype)
    if not limits.min <= value <= limits.max:
        return jnp.zeros(labels.shape, bool)
    return labels == jnp.asarray(value, labels.dtype)


def _any_neighbour(
    labels: jax.Array, keep: jax.Array, connectivity: int, marks: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """Returns True at unmasked pixels where `marks(own label, label of an unmasked neighbour)` is True."""
    found = jnp.zeros(labels.shape, bool)
    if labels.size == 0:
        return found
    height, width = labels.shape[-2:]
    margins = [(0, 0)] * (labels.ndim - 2) + [(1, 1), (1, 1)]
    # Padding by the edge repeats the pixel or one of its neighbours, and so adds no neighbour.
    padded = jnp.pad(labels, margins, mode="edge")
    kept = jnp.pad(keep, margins, mode="edge")
    for down, right in itertools.product((-1, 0, 1), repeat=2):
        if 1 <= abs(down) + abs(right) <= connectivity:
            window = ..., slice(1 + down, 1 + down + height), slice(1 + right, 1 + right + width)
            found |= marks(labels, padded[window]) & kept[window]
    return found & keep
