"""Prediction with uncertainty: Monte Carlo dropout over the head's features, over whole passes, or in closed form.

Where the network has one linear head, K dropout samples need one pass of the network and K small products. They are
summed up one after another, so K = 30 takes the memory of one. The same numbers from a stack of K logits are
`segjax.metrics`' `log_mean_softmax`, `predictive_entropy` and `mutual_information` and `segjax.losses.mc_variance`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer, Real, Shaped

from segjax.inference.moments import Uncertainty, check_samples, uncertainty_of
from segjax.inference.sampling import head_moments, sampled_moments
from segjax.models import Segmentation, example_dropout_keys, logit_variance
from segjax.models.dropout import checked_rate


def head_uncertainty(
    features: Float[Array, "b h w f"],
    kernel: Float[Array, "f c"],
    bias: Float[Array, "c"],
    key: Shaped[Array, "..."],
    *,
    samples: int,
    rate: Real[ArrayLike, ""],
    mask: str = "channel",
    examples: Integer[ArrayLike, "b"] | None = None,
) -> Uncertainty:
    r"""The uncertainty of K dropout masks over the features of one pass, through one shared linear head.

    .. math::
        z_k = W^\top x'_k + b, \quad p_k = softmax(z_k), \quad \bar p = \frac{1}{K} \sum_k p_k, \quad
        H = -\sum_c \bar p_c \log \bar p_c, \\
        I = H - \frac{1}{K} \sum_k H[p_k], \quad
        v = \frac{1}{C} \sum_c \frac{1}{K - 1} \sum_k (z_{kc} - \bar z_c)^2

    The samples are those of `segjax.models.head_samples` with `example_dropout_keys(key, examples)`, the first 3 of 30
    the 3 of 3, and are summed one by one: K of them never exist together. Masks per channel are masks of the kernel's
    rows, and v is then a quadratic form of x. Jit it: a call outside a jit traces and compiles anew.

    Args:
        features: x, `[B, H, W, F]`, any floating dtype, such as `Segmentation.features` of a clean pass.
        kernel: W, `[F, C]`, C ≥ 2.
        bias: b, `[C]`.
        key: of the masks, typed or raw.
        samples: K ≥ 2; static. (The unbiased variance divides by K - 1.)
        rate: p in [0, 1), a scalar; may be traced, and is then not checked.
        mask: "channel", F · K random numbers an image, or "element", H · W times as many; static.
        examples: `[B]`, the images' global indices, which key their masks; None: 0 … B-1.

    Returns:
        `Uncertainty`, float32 at least (float64 stays). I is right to about 1e-6 nats (in float32, and
        for logits of tens); less than 2e-6 is given as 0, so I is never negative, and 0 where p = 0. Finite for
        |z| ≤ 1e4. Features that are NaN give NaN.

    Raises:
        TypeError: features are not floating, examples no integers.
        ValueError: K < 2, C < 2, p is not in [0, 1), `mask` is unknown, or shapes do not fit.

    References:
        Gal and Ghahramani, arXiv 1506.02142; Houlsby et al. (BALD), arXiv 1112.5745; Kendall et al., Bayesian SegNet,
        arXiv 1511.02680; Kendall and Gal, arXiv 1703.04977; Welford, Technometrics 4 (1962).

    >>> x, kernel, bias = jnp.ones((1, 4, 6, 8)), jnp.eye(8, 3), jnp.zeros(3)
    >>> unsure = head_uncertainty(x, kernel, bias, jax.random.key(0), samples=30, rate=0.2)
    >>> unsure.probabilities.shape, unsure.mutual_information.shape
    ((1, 4, 6, 3), (1, 4, 6))
    >>> bool((unsure.mutual_information > 0).all())
    True
    """
    x, kernel, bias = _head_inputs(features, kernel, bias)
    check_samples(samples)
    keys = example_dropout_keys(key, jnp.arange(x.shape[0]) if examples is None else examples)
    if keys.shape != x.shape[:1]:
        raise ValueError(f"examples must hold one index an image, shape {x.shape[:1]}; got {keys.shape}")
    found = head_moments(x, kernel, bias, keys, jnp.arange(samples), rate=checked_rate("rate", rate), mask=mask)
    return uncertainty_of(found, samples)


def predict_with_uncertainty(
    model: Any,
    variables: Any,
    images: Float[Array, "b h w channels"],
    key: Shaped[Array, "..."],
    *,
    samples: int = 30,
    rate: Real[ArrayLike, ""] | None = None,
    mask: str | None = None,
    examples: Integer[ArrayLike, "b"] | None = None,
) -> tuple[Segmentation, Uncertainty]:
    r"""One clean pass of a network, and K dropout samples of its head beside it: `head_uncertainty` of its features.

    .. math:: z = W^\top x + b, \qquad z_k = W^\top x'_k + b, \quad k = 0 \ldots K-1

    Args:
        model: a network with one linear head, `head/linear` in its parameters, such as `segjax.models.UNet`.
        variables: its parameters and statistics.
        images: `[B, H, W, channels]`, as the network takes them.
        key: of the masks, typed or raw.
        samples: K ≥ 2; static.
        rate: p in [0, 1), a scalar, may be traced; None: the model's.
        mask: "channel" (at K = 30 about half a pass of a narrow U-Net on a CPU) or "element" (many passes); static.
            None: the model's.
        examples: `[B]`, the images' global indices, which key their masks; None: 0 … B-1.

    Returns:
        What the network says without dropout, and the `Uncertainty` of the samples.

    Raises:
        TypeError: as `head_uncertainty`.
        ValueError: as `head_uncertainty`; no `head/linear` in the parameters.

    References:
        As `head_uncertainty`.

    >>> from segjax.models import UNet
    >>> model, images = UNet(num_classes=3, width=4, depth=2), jnp.ones((1, 8, 12, 3))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> predict = jax.jit(lambda *inputs: predict_with_uncertainty(model, *inputs, samples=5, mask="channel"))
    >>> clean, unsure = predict(variables, images, jax.random.key(1))
    >>> clean.logits.shape, unsure.variance.shape
    ((1, 8, 12, 3), (1, 8, 12))
    """
    kernel, bias = linear_head(variables)
    clean = model.apply(variables, images, train=False)
    rate, mask = model.rate if rate is None else rate, model.mask if mask is None else mask
    unsure = head_uncertainty(
        clean.features, kernel, bias, key, samples=samples, rate=rate, mask=mask, examples=examples
    )
    return clean, unsure


def whole_passes(
    model: Any,
    variables: Any,
    images: Float[Array, "b h w channels"],
    key: Shaped[Array, "..."],
    *,
    samples: int,
    rate: Real[ArrayLike, ""] | None = None,
    deep_rate: Real[ArrayLike, ""] | None = None,
    examples: Integer[ArrayLike, "b"] | None = None,
) -> tuple[Segmentation, Uncertainty]:
    r"""A clean pass of a network, and K whole passes with its dropout on: what dropout deep in it needs.

    .. math:: z_k = f(x; m_k), \quad m_k \text{ drawn with } \text{fold\_in}(\text{key}, k)

    Every sample draws all of the model's masks anew: the deep ones, and one of the head where the model has
    dropout="sampled". It takes at most K + 1 times as long as the clean pass (XLA computes what lies before the
    first mask once for all), and the memory of one.

    Args:
        model: a `segjax.models.UNet` with deep_dropout > 0 or dropout="sampled".
        variables: its parameters and statistics.
        images: `[B, H, W, channels]`, as the network takes them.
        key: of the masks, typed or raw.
        samples: K ≥ 2; static.
        rate: of the head's dropout, in [0, 1), a scalar, may be traced; None: the model's.
        deep_rate: of the deep dropout, likewise.
        examples: `[B]`, the images' global indices, which key their masks; None: 0 … B-1.

    Returns:
        What the network says without dropout, and the `Uncertainty` of the samples, as `head_uncertainty`.

    Raises:
        ValueError: K < 2, the model has neither dropout, a rate is not in [0, 1).

    References:
        Gal and Ghahramani, arXiv 1506.02142; Kendall et al., Bayesian SegNet, arXiv 1511.02680.

    >>> from segjax.models import UNet
    >>> model, images = UNet(num_classes=3, width=4, depth=2, deep_dropout=1), jnp.ones((1, 8, 12, 3))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> predict = jax.jit(lambda *inputs: whole_passes(model, *inputs, samples=5))
    >>> predict(variables, images, jax.random.key(1))[1].mutual_information.shape
    (1, 8, 12)
    """
    check_samples(samples)
    logits = dropout_passes(model, variables, key, rate=rate, deep_rate=deep_rate, examples=examples)
    first = model.apply(variables, images, train=False)
    return first, uncertainty_of(sampled_moments(lambda k: logits(images, k), jnp.arange(samples)), samples)


def dropout_passes(model: Any, variables: Any, key: Shaped[Array, "..."], **rates: Any) -> Callable:
    """`logits(images, k)` of pass k with the model's dropout on, as in `whole_passes`, whose `rates` it takes.

    Raises:
        ValueError: the model has no dropout.
    """
    if model.deep_dropout == 0 and model.dropout != "sampled":
        raise ValueError(
            'whole passes differ by their dropout: the model needs deep_dropout > 0 or dropout="sampled"; '
            f"got deep_dropout={model.deep_dropout} and dropout={model.dropout!r}"
        )
    one_head = model.clone(heads=1)

    def logits(images: Array, k: Array) -> Array:
        rngs = {"dropout": jax.random.fold_in(key, k)}
        output = one_head.apply(variables, images, train=False, rngs=rngs, **rates)
        return output.logits if output.mc_logits is None else output.mc_logits[0]

    return logits


def analytic_uncertainty(
    features: Float[Array, "b h w f"],
    kernel: Float[Array, "f c"],
    bias: Float[Array, "c"],
    *,
    rate: Real[ArrayLike, ""],
) -> Uncertainty:
    r"""The uncertainty that needs no samples: the clean softmax, its entropy, and the exact variance of the logits.

    .. math::
        p = softmax(W^\top x + b), \quad H = -\sum_c p_c \log p_c, \quad
        v = \frac{1}{C} \sum_c \frac{r}{1 - r} \sum_i w_{ic}^2 x_i^2

    v is the limit of `head_uncertainty`'s for K → ∞, both masks. p and H are not, for the mean of a softmax is not the
    softmax of the mean; and the mutual information has no closed form: it is None.

    Args:
        features: x, `[B, H, W, F]`, any floating dtype.
        kernel: W, `[F, C]`, C ≥ 2.
        bias: b, `[C]`.
        rate: r in [0, 1), a scalar; may be traced, and is then not checked.

    Returns:
        `Uncertainty`, float32 at least.

    Raises:
        TypeError: features are not floating.
        ValueError: C < 2, r is not in [0, 1), or shapes do not fit.

    References:
        Wang and Manning, Fast dropout training, ICML 2013; Kendall and Gal, arXiv 1703.04977.

    >>> x, kernel, bias = jnp.ones((1, 1, 1, 2)), jnp.eye(2), jnp.zeros(2)
    >>> unsure = analytic_uncertainty(x, kernel, bias, rate=0.5)
    >>> print(unsure.probabilities[0, 0, 0], unsure.variance[0, 0, 0], unsure.mutual_information)
    [0.5 0.5] 1.0 None
    """
    x, kernel, bias = _head_inputs(features, kernel, bias)
    log_p = jax.nn.log_softmax(x @ kernel + bias)
    p = jnp.exp(log_p)
    variance = jnp.mean(logit_variance(x, kernel, rate), axis=-1)
    return Uncertainty(p, -jnp.sum(jnp.where(p == 0, 0, p * log_p), axis=-1), None, variance)


def linear_head(variables: Any) -> tuple[Array, Array]:
    """Its kernel and bias, or a ValueError where there is none."""
    try:
        linear = variables["params"]["head"]["linear"]
        return linear["kernel"], linear["bias"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            'variables must hold a linear head, ["params"]["head"]["linear"] with kernel and bias'
        ) from error


def _head_inputs(features: Array, kernel: Array, bias: Array) -> tuple[Array, Array, Array]:
    """All three in one dtype of at least float32, or an error."""
    if not jnp.issubdtype(features.dtype, jnp.floating):
        raise TypeError(f"features must be floating point; got {features.dtype} of shape {features.shape}")
    if features.ndim != 4 or kernel.ndim != 2 or kernel.shape[0] != features.shape[-1] or kernel.shape[1] < 2:
        raise ValueError(
            "features [batch, height, width, F] need a kernel [F, C] of at least 2 classes; "
            f"got shapes {features.shape} and {kernel.shape}"
        )
    if bias.shape != kernel.shape[1:]:
        raise ValueError(f"bias must have one value a class, shape {kernel.shape[1:]}; got {bias.shape}")
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    return features.astype(dtype), kernel.astype(dtype), bias.astype(dtype)
