"""Monte Carlo dropout: mean probabilities, predictive entropy, mutual information and variance over samples.

Where the network has one linear head, K dropout samples need one pass of the network and K small products. Samples are
added up one after another, so K = 30 takes the memory of one. The same numbers from a stack of K logits are
`segjax.metrics`' `log_mean_softmax`, `predictive_entropy` and `mutual_information` and `segjax.losses.mc_variance`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer, Key, Real, Shaped

from segjax.models import Segmentation, example_dropout_keys, logit_variance
from segjax.models.network import checked_rate, dropout

# Pixels per block. On a CPU a block stays in the cache from one sample to the next; elsewhere each step costs a launch.
_BLOCK, _BLOCK_CPU = 2**20, 2**14
# Range of sum(exp(logits)) within which no digit is lost without subtracting the maximum first.
_UNSHIFTED = (1e-25, 1e30)
# Mutual information below this many epsilons of the dtype is rounding.
_ROUNDING = 16


class SampleStatistics(NamedTuple):
    """Means over the samples of a batch of images; a pytree.

    Attributes:
        probabilities: `[..., C]`, mean of the samples' softmax.
        entropy: `[...]` in nats, mean entropy of the samples' softmax: the part of the uncertainty that is in the data.
        logits: `[..., C]`, mean of the samples' logits.
        variance: `[...]` in squared logits, biased variance of the logits over the samples, mean over the classes.
    """

    probabilities: Float[Array, "*pixels c"]
    entropy: Float[Array, "*pixels"]
    logits: Float[Array, "*pixels c"]
    variance: Float[Array, "*pixels"]


class Uncertainty(NamedTuple):
    """Uncertainty of a batch of images from samples of its logits; a pytree.

    Attributes:
        probabilities: `[B, H, W, C]`, the mean of the samples' softmax.
        predictive_entropy: `[B, H, W]` in nats, in [0, log C]: entropy of `probabilities`, the total uncertainty.
        mutual_information: `[B, H, W]` in nats, ≥ 0: the part on which samples disagree. None without samples: it has
            no closed form.
        variance: `[B, H, W]` in squared logits: unbiased variance over the samples, mean over the classes.
    """

    probabilities: Float[Array, "b h w c"]
    predictive_entropy: Float[Array, "b h w"]
    mutual_information: Float[Array, "b h w"] | None
    variance: Float[Array, "b h w"]


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
    r"""Returns the uncertainty from K dropout masks over the features of one pass, through one shared linear head.

    .. math::
        z_k = W^\top x'_k + b, \quad p_k = softmax(z_k), \quad \bar p = \frac{1}{K} \sum_k p_k, \quad
        H = -\sum_c \bar p_c \log \bar p_c, \\
        I = H - \frac{1}{K} \sum_k H[p_k], \quad
        v = \frac{1}{C} \sum_c \frac{1}{K - 1} \sum_k (z_{kc} - \bar z_c)^2

    The samples are those of `segjax.models.head_samples` with `example_dropout_keys(key, examples)`; the first 3 of 30
    are those of K = 3. They are added up one by one. Masks per channel are masks of the kernel's rows, and v is then a
    quadratic form of x. Call it under `jax.jit`: a call outside traces and compiles again.

    Args:
        features: x, `[B, H, W, F]`, any floating dtype, such as `Segmentation.features` of a clean pass.
        kernel: W, `[F, C]`, C ≥ 2.
        bias: b, `[C]`.
        key: PRNG key of the masks, typed or raw.
        samples: K ≥ 2; static. (The unbiased variance divides by K - 1.)
        rate: p in [0, 1), a scalar; not checked if traced.
        mask: "channel", F · K random numbers per image, or "element", H · W times as many; static.
        examples: `[B]`, the images' global indices, which select their masks; None: 0 … B-1.

    Returns:
        `Uncertainty`, at least float32 (float64 stays). The error of I is about 1e-6 nats (float32, logits of tens);
        values below 2e-6 become 0, so that I is never negative. Finite for |z| ≤ 1e4. NaN features give NaN.

    Raises:
        TypeError: features are not floating point, or examples not integers.
        ValueError: K < 2, C < 2, p outside [0, 1), an unknown `mask`, or shapes that do not match.

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
    _check_samples(samples)
    keys = example_dropout_keys(key, jnp.arange(x.shape[0]) if examples is None else examples)
    if keys.shape != x.shape[:1]:
        raise ValueError(f"examples must hold one index per image, shape {x.shape[:1]}; got {keys.shape}")
    found = head_statistics(x, kernel, bias, keys, jnp.arange(samples), rate=checked_rate("rate", rate), mask=mask)
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
    r"""Returns one clean pass of a network, and the `head_uncertainty` of K dropout samples of its head.

    .. math:: z = W^\top x + b, \qquad z_k = W^\top x'_k + b, \quad k = 0 \ldots K-1

    Args:
        model: a network with one linear head, `head/linear` in its parameters, such as `segjax.models.UNet`.
        variables: its parameters and statistics.
        images: `[B, H, W, channels]`, as the network takes them.
        key: PRNG key of the masks, typed or raw.
        samples: K ≥ 2; static.
        rate: p in [0, 1), a scalar, may be traced; None: the model's.
        mask: "channel" (K = 30 takes about half a pass of a narrow U-Net on a CPU) or "element" (many passes); static.
            None: the model's.
        examples: `[B]`, the images' global indices, which select their masks; None: 0 … B-1.

    Returns:
        The network's output without dropout, and the `Uncertainty` of the samples.

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
    r"""Returns a clean pass of a network, and the uncertainty of K whole passes with its dropout on.

    .. math:: z_k = f(x; m_k), \quad m_k \text{ drawn with } \text{fold\_in}(\text{key}, k)

    Dropout deep in the network needs whole passes. Each sample draws all of the model's masks: the deep ones, and one
    of the head if the model has dropout="sampled". It takes at most K + 1 times as long as the clean pass (XLA computes
    the layers before the first mask once), and the memory of one pass.

    Args:
        model: a `segjax.models.UNet` with deep_dropout > 0 or dropout="sampled".
        variables: its parameters and statistics.
        images: `[B, H, W, channels]`, as the network takes them.
        key: PRNG key of the masks, typed or raw.
        samples: K ≥ 2; static.
        rate: dropout rate of the head in [0, 1), a scalar, may be traced; None: the model's.
        deep_rate: of the deep dropout, likewise.
        examples: `[B]`, the images' global indices, which select their masks; None: 0 … B-1.

    Returns:
        The network's output without dropout, and the `Uncertainty` of the samples, as in `head_uncertainty`.

    Raises:
        ValueError: K < 2, a model with neither kind of dropout, or a rate outside [0, 1).

    References:
        Gal and Ghahramani, arXiv 1506.02142; Kendall et al., Bayesian SegNet, arXiv 1511.02680.

    >>> from segjax.models import UNet
    >>> model, images = UNet(num_classes=3, width=4, depth=2, deep_dropout=1), jnp.ones((1, 8, 12, 3))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> predict = jax.jit(lambda *inputs: whole_passes(model, *inputs, samples=5))
    >>> predict(variables, images, jax.random.key(1))[1].mutual_information.shape
    (1, 8, 12)
    """
    _check_samples(samples)
    logits = dropout_passes(model, variables, key, rate=rate, deep_rate=deep_rate, examples=examples)
    first = model.apply(variables, images, train=False)
    return first, uncertainty_of(sample_statistics(lambda k: logits(images, k), jnp.arange(samples)), samples)


def dropout_passes(model: Any, variables: Any, key: Shaped[Array, "..."], **rates: Any) -> Callable:
    """Builds `logits(images, k)` of pass k with the model's dropout on; `rates` are those of `whole_passes`.

    Raises:
        ValueError: the model has no dropout.
    """
    if model.deep_dropout == 0 and model.dropout != "sampled":
        raise ValueError(
            'whole passes need a model with deep_dropout > 0 or dropout="sampled"; '
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
    r"""Returns the uncertainty without samples: clean softmax, its entropy, and the exact variance of the logits.

    .. math::
        p = softmax(W^\top x + b), \quad H = -\sum_c p_c \log p_c, \quad
        v = \frac{1}{C} \sum_c \frac{r}{1 - r} \sum_i w_{ic}^2 x_i^2

    v is the limit of `head_uncertainty`'s for K → ∞, for both masks. p and H are not limits: the mean of a softmax is
    not the softmax of the mean. The mutual information has no closed form and is None.

    Args:
        features: x, `[B, H, W, F]`, any floating dtype.
        kernel: W, `[F, C]`, C ≥ 2.
        bias: b, `[C]`.
        rate: r in [0, 1), a scalar; not checked if traced.

    Returns:
        `Uncertainty`, at least float32.

    Raises:
        TypeError: features are not floating point.
        ValueError: C < 2, r outside [0, 1), or shapes that do not match.

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


def head_uncertainty_maps(
    variables: Any,
    features: Float[Array, "b h w f"],
    examples: Integer[ArrayLike, "b"],
    *,
    num_classes: int,
    rate: Real[ArrayLike, ""],
    samples: int = 30,
) -> dict[str, Float[Array, "b h w"]]:
    r"""Returns the variance and the mutual information under dropout of a linear head, from the features of one pass.

    .. math::
        v = \frac{1}{C} \sum_c \frac{r}{1 - r} \sum_i w_{ic}^2 x_i^2, \qquad
        I = H\left[\frac{1}{K} \sum_k p_k\right] - \frac{1}{K} \sum_k H[p_k]

    The variance of the logits is exact (K = ∞). The mutual information has no closed form: it is that of K masks per
    channel, selected by the image and the same in every call. A single logit z counts as the logits 0 and z; the output
    of void, of a head that learned void as a class, is left out.

    Args:
        variables: the network's, with `head/linear` in their parameters.
        features: x, `[B, H, W, F]`, any floating dtype, such as `Segmentation.features` of a clean pass.
        examples: `[B]`, the images' global indices.
        num_classes: C, without void.
        rate: r in [0, 1), a scalar; not checked if traced.
        samples: K ≥ 2; static.

    Returns:
        "variance" in squared logits and "mutual information" in nats; both ≥ 0, at least float32.

    Raises:
        TypeError: features are not floating point.
        ValueError: no `head/linear`, K < 2, r outside [0, 1), or shapes that do not match.

    References:
        Wang and Manning, Fast dropout training, ICML 2013; Houlsby et al. (BALD), arXiv 1112.5745.

    >>> linear = {"kernel": jnp.ones((4, 1)), "bias": jnp.zeros(1)}
    >>> variables = {"params": {"head": {"linear": linear}}}
    >>> found = head_uncertainty_maps(variables, jnp.ones((1, 2, 3, 4)), jnp.arange(1), num_classes=2, rate=0.2)
    >>> {name: values.shape for name, values in found.items()}, float(found["variance"][0, 0, 0])
    ({'variance': (1, 2, 3), 'mutual information': (1, 2, 3)}, 1.0)
    """
    kernel, bias = linear_head(variables)
    kernel, bias = kernel[:, :num_classes], bias[:num_classes]
    variance = jnp.mean(logit_variance(features, kernel, rate), axis=-1)
    if kernel.shape[1] == 1:
        kernel, bias = jnp.pad(kernel, ((0, 0), (1, 0))), jnp.pad(bias, (1, 0))
    sampled = head_uncertainty(
        features, kernel, bias, jax.random.key(0), samples=samples, rate=rate, mask="channel", examples=examples
    )
    return {"variance": variance, "mutual information": sampled.mutual_information}


def uncertainty_of(statistics: SampleStatistics, samples: int) -> Uncertainty:
    r"""Returns the uncertainty that follows from the statistics of N samples.

    .. math:: H = -\sum_c \bar p_c \log \bar p_c, \qquad I = H - \bar h, \qquad \text{variance} = \frac{N}{N - 1} v

    Args:
        statistics: of images `[B, H, W, ...]`, of `augmented_statistics`, or blended over tiles.
        samples: N = A · K ≥ 2, augmentations times dropout samples per tile; the number of tiles does not count.

    Returns:
        `Uncertainty`. Information below 2e-6 nats (float32) is rounding and becomes 0.

    Raises:
        ValueError: N < 2.

    >>> p = jnp.array([0.5, 0.5]).reshape(1, 1, 1, 2)  # two certain samples that disagree
    >>> found = uncertainty_of(SampleStatistics(p, jnp.zeros((1, 1, 1)), 0 * p, jnp.ones((1, 1, 1))), samples=2)
    >>> print(found.predictive_entropy[0, 0].round(3), found.mutual_information[0, 0].round(3), found.variance[0, 0])
    [0.693] [0.693] [2.]
    """
    _check_samples(samples)
    entropy, information = _entropy_and_information(
        _pixels_last(statistics.probabilities), _pixels_last(statistics.entropy[..., None])
    )
    shape = statistics.entropy.shape
    return Uncertainty(
        statistics.probabilities,
        entropy.reshape(shape),
        information.reshape(shape),
        statistics.variance * (samples / (samples - 1)),
    )


def statistics_to_maps(statistics: SampleStatistics) -> Float[Array, "*pixels maps"]:
    r"""Returns the statistics as 2C + 2 maps that may be blended by `predict_tiled`.

    .. math:: \bar p, \quad \bar h, \quad \bar z, \quad s = v + \frac{1}{C} \sum_c \bar z_c^2

    All maps are means over samples, so a blend of tiles with weights that add up to 1 is the weighted mean over all
    tiles, augmentations and dropout samples of a pixel. Disagreement between tiles therefore counts as uncertainty.

    Args:
        statistics: `[..., C]` and `[...]`.

    Returns:
        `[..., 2C + 2]`, finite where the squares of the logits are.

    >>> p = jnp.full((1, 1, 2, 3), 1 / 3)
    >>> statistics_to_maps(SampleStatistics(p, jnp.zeros((1, 1, 2)), p, jnp.zeros((1, 1, 2)))).shape
    (1, 1, 2, 8)
    """
    squares = statistics.variance + jnp.mean(statistics.logits**2, axis=-1)
    return jnp.concatenate(
        [statistics.probabilities, statistics.entropy[..., None], statistics.logits, squares[..., None]], axis=-1
    )


def maps_to_statistics(maps: Float[ArrayLike, "*pixels maps"]) -> SampleStatistics:
    r"""Returns the statistics of blended maps: the inverse of `statistics_to_maps`.

    .. math:: v = s - \frac{1}{C} \sum_c \bar z_c^2

    The difference of squares has an error of about 1e-6 of the larger: 1e-4 in the variance of logits of 10.

    Args:
        maps: `[..., 2C + 2]`, NumPy or JAX.

    Raises:
        ValueError: the last axis is not 2C + 2 with C ≥ 2.

    >>> maps = jnp.arange(6.0)
    >>> statistics = maps_to_statistics(maps.at[5].set(10.0))
    >>> print(statistics.probabilities, statistics.entropy, statistics.logits, statistics.variance)
    [0. 1.] 2.0 [3. 4.] 0.0
    """
    maps = jnp.asarray(maps)
    if maps.shape[-1] < 6 or maps.shape[-1] % 2:
        raise ValueError(f"maps must be 2C + 2 of at least 2 classes; got {maps.shape[-1]} of shape {maps.shape}")
    classes = maps.shape[-1] // 2 - 1
    logits = maps[..., classes + 1 : -1]
    variance = jnp.maximum(maps[..., -1] - jnp.mean(logits**2, axis=-1), 0)
    return SampleStatistics(maps[..., :classes], maps[..., classes], logits, variance)


def _check_samples(samples: int) -> None:
    """Raises ValueError if there are too few samples for a variance."""
    if samples < 2:
        raise ValueError(f"samples must be at least 2, since the unbiased variance divides by K - 1; got {samples}")


def sample_statistics(
    logits: Callable[[Integer[Array, ""]], Float[Array, "b h w c"]], numbers: Integer[Array, "k"]
) -> SampleStatistics:
    r"""Returns the statistics of samples that a function returns one after another.

    .. math::
        \bar p = \frac{1}{K} \sum_k softmax(z_k), \quad \bar h = \frac{1}{K} \sum_k H[softmax(z_k)], \quad
        \bar z = \frac{1}{K} \sum_k z_k, \quad v = \frac{1}{KC} \sum_{kc} (z_{kc} - \bar z_c)^2

    Args:
        logits: returns z_n, `[B, H, W, C]`, C ≥ 2, for a traced n.
        numbers: `[K]`, the n of the samples, K ≥ 1.

    Returns:
        `SampleStatistics` in the dtype of the logits. Finite for |z| ≤ 1e4.

    >>> found = sample_statistics(lambda n: n * jnp.ones((1, 2, 3, 2)), jnp.arange(3))
    >>> print(found.logits[0, 0, 0], f"{found.variance[0, 0, 0]:.3f}", found.probabilities[0, 0, 0])
    [1. 1.] 0.667 [0.5 0.5]
    """
    shape = jax.eval_shape(logits, numbers[0]).shape

    def image(y: Float[Array, "b c p"]) -> Float[Array, "b h w c"]:
        return jnp.swapaxes(y, 1, 2).reshape(*shape[:3], -1)

    sums = _sum_samples(lambda places: [_pixels_last(logits(numbers[place])) for place in places], len(numbers))
    probabilities, entropy = _means(sums, len(numbers))
    variance = sums.squares / (len(numbers) * shape[-1])
    return SampleStatistics(image(probabilities), image(entropy)[..., 0], image(sums.mean), image(variance)[..., 0])


def head_statistics(
    features: Float[Array, "b h w f"],
    kernel: Float[Array, "f c"],
    bias: Float[Array, "c"],
    keys: Key[Array, "b"],
    numbers: Integer[Array, "k"],
    *,
    rate: Real[ArrayLike, ""],
    mask: str,
) -> SampleStatistics:
    """Returns the statistics of samples `numbers` of `segjax.models.head_samples`, all arrays of one dtype."""
    if mask != "channel":
        return sample_statistics(
            lambda n: dropout(features, rate, _fold_in(keys, n), mask=mask) @ kernel + bias, numbers
        )
    batch, height, width, channels = features.shape
    ones = jnp.ones((batch, 1, 1, channels), features.dtype)
    kept = jax.vmap(lambda n: dropout(ones, rate, _fold_in(keys, n), mask=mask))(numbers)
    thinned = kept[:, :, 0, 0, None] * kernel.T  # [K, B, C, F]

    most = _BLOCK_CPU if jax.default_backend() == "cpu" else _BLOCK
    steps = math.ceil(height * width / most)
    size = math.ceil(height * width / steps)
    padded = ((0, 0), (0, steps * size - height * width), (0, 0))
    pixels = jnp.pad(features.reshape(batch, -1, channels), padded)
    blocks = jnp.swapaxes(pixels.reshape(batch * steps, size, channels), 1, 2)
    found = jax.lax.map(_block(kernel, bias, thinned), (jnp.repeat(jnp.arange(batch), steps), blocks))

    def image(y: Float[Array, "blocks c size"]) -> Float[Array, "b h w c"]:
        pixels = jnp.swapaxes(y, 1, 2).reshape(batch, steps * size, -1)
        return pixels[:, : height * width].reshape(batch, height, width, -1)

    probabilities, entropy, mean, variance = map(image, found)
    return SampleStatistics(probabilities, entropy[..., 0], mean, variance[..., 0])


def _fold_in(keys: Key[Array, "b"], n: Integer[Array, ""]) -> Key[Array, "b"]:
    """Returns the keys of head n in `segjax.models.head_samples`."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, n)


def _block(kernel: Array, bias: Array, thinned: Float[Array, "k b c f"]) -> Callable[[tuple[Array, Array]], tuple]:
    """Builds `block((image index, pixels [F, P]))`, the four statistics of a block of pixels, pixels last."""
    samples, channels = thinned.shape[0], kernel.shape[0]
    # Relative to the first, so that the common part does not enter the rounding of the mean.
    centred = thinned - thinned[:1]
    away = jnp.mean(centred, axis=0)
    mean_kernel = thinned[0] + away
    centred -= away
    scale, rows = 1 / (samples * kernel.shape[1]), samples * kernel.shape[1]
    precise = partial(jnp.matmul, precision="highest")
    if rows < channels:
        centred = centred.swapaxes(0, 1).reshape(-1, rows, channels)
    else:
        covariance = scale * jnp.einsum("kbcf,kbcg->bfg", centred, centred, precision="highest")

    def variance_of(image: Array, x: Array) -> Array:
        """Returns xᵀ Σ x, F² products per pixel; of wide features Σ (z - mean)², which takes fewer."""
        if rows < channels:
            return scale * _sum_classes(precise(centred[image], x) ** 2)
        return _sum_classes(precise(covariance[image], x) * x)

    def block(image_and_pixels: tuple[Array, Array]) -> tuple[Array, ...]:
        image, x = image_and_pixels
        # Minus the clean log-sum-exp, clean logits are log probabilities, and those of the samples are close to them.
        log_total = jax.nn.logsumexp(kernel.T @ x + bias[:, None], axis=0)

        def logits(places: Array) -> list[Array]:
            kernels = thinned[places, image].reshape(-1, channels)
            return [z + bias[:, None] - log_total for z in jnp.split(kernels @ x, len(places))]

        def result(shifted: bool) -> tuple[Array, Array]:
            return _means(_sum_samples(logits, samples, together=2, shifted=shifted, spread=False), samples)

        quick = result(shifted=False)
        sound = jnp.all(jnp.isfinite(quick[-1]))
        probabilities, entropy = jax.lax.cond(sound, lambda: quick, lambda: result(shifted=True))
        return probabilities, entropy, mean_kernel[image] @ x + bias[:, None], jnp.maximum(variance_of(image, x), 0)

    return block


def linear_head(variables: Any) -> tuple[Array, Array]:
    """Returns kernel and bias of a network's linear head; raises ValueError if it has none."""
    try:
        linear = variables["params"]["head"]["linear"]
        return linear["kernel"], linear["bias"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            'variables must hold a linear head, ["params"]["head"]["linear"] with kernel and bias'
        ) from error


def _head_inputs(features: Array, kernel: Array, bias: Array) -> tuple[Array, Array, Array]:
    """Returns all three in one dtype, at least float32, or raises an error."""
    if not jnp.issubdtype(features.dtype, jnp.floating):
        raise TypeError(f"features must be floating point; got {features.dtype} of shape {features.shape}")
    if features.ndim != 4 or kernel.ndim != 2 or kernel.shape[0] != features.shape[-1] or kernel.shape[1] < 2:
        raise ValueError(
            "features [batch, height, width, F] need a kernel [F, C] of at least 2 classes; "
            f"got shapes {features.shape} and {kernel.shape}"
        )
    if bias.shape != kernel.shape[1:]:
        raise ValueError(f"bias must have one value per class, shape {kernel.shape[1:]}; got {bias.shape}")
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    return features.astype(dtype), kernel.astype(dtype), bias.astype(dtype)


class _Sums(NamedTuple):
    """Sums over samples of p = softmax(z), p · z and log Σ exp z, and Welford's mean and squares of z."""

    probability: Float[Array, "... c p"]
    weighted: Float[Array, "... c p"]
    log_total: Float[Array, "... 1 p"]
    mean: Float[Array, "... c p"] | None
    squares: Float[Array, "... 1 p"] | None


def _pixels_last(x: Float[Array, "b h w c"]) -> Float[Array, "b c p"]:
    """Moves the pixels last: exp is then vectorised on a CPU, and a sum over classes is a fast product with ones."""
    return jnp.swapaxes(x.reshape(x.shape[0], -1, x.shape[-1]), 1, 2)


def _sum_classes(x: Float[Array, "... c p"]) -> Float[Array, "... 1 p"]:
    """Returns the sum over the classes."""
    return jnp.matmul(jnp.ones((1, x.shape[-2]), x.dtype), x, precision="highest")


def _sum_samples(
    logits: Callable[[Array], list[Float[Array, "... c p"]]],
    samples: int,
    *,
    together: int = 1,
    shifted: bool = True,
    spread: bool = True,
) -> _Sums:
    """Adds up `samples`; `logits(indices [n])` returns a list of the logits of n ≤ `together` of them.

    `shifted=False` takes half the time, but logits further than about 60 from log probabilities give NaN.
    `spread=False` leaves out the variance.
    """

    def add(sums: _Sums, k: Array, z: Array) -> _Sums:
        one = _of_one(z, shifted)
        added = _Sums(*(a + b for a, b in zip(sums[:3], one[:3], strict=True)), None, None)
        if not spread:
            return added
        mean = sums.mean + (z - sums.mean) / (k + 1).astype(z.dtype)
        return added._replace(mean=mean, squares=sums.squares + _sum_classes((z - sums.mean) * (z - mean)))

    def add_all(sums: _Sums, numbers: Array) -> tuple[_Sums, None]:
        for k, z in zip(numbers, logits(numbers), strict=True):
            sums = add(sums, k, z)
        return sums, None

    # Starts from the first samples, because a checked shard_map requires a carry that varies over devices.
    numbers = jnp.arange(samples, dtype=jnp.int32)
    head = samples % together or together
    first, *others = logits(numbers[:head])
    sums = _of_one(first, shifted)
    sums = sums._replace(mean=first, squares=0 * sums.log_total) if spread else sums
    for k, z in zip(numbers[1:head], others, strict=True):
        sums = add(sums, k, z)
    return jax.lax.scan(add_all, sums, numbers[head:].reshape(-1, together))[0]


def _means(sums: _Sums, samples: int) -> tuple[Float[Array, "... c p"], Float[Array, "... 1 p"]]:
    """Returns the mean probabilities, and the mean entropy of the samples."""
    return sums.probability / samples, (sums.log_total - _sum_classes(sums.weighted)) / samples


def _entropy_and_information(p: Float[Array, "... c p"], each: Float[Array, "... 1 p"]) -> tuple[Array, Array]:
    """Returns H[p̄] and H[p̄] - mean_k H[p_k]; values within the rounding error become 0, as for samples that agree."""
    # By rounding p may exceed 1.
    entropy = jnp.maximum(-_sum_classes(p * jnp.log(jnp.where(p == 0, 1, p))), 0)
    information = entropy - jnp.maximum(each, 0)
    return entropy, jnp.where(information < _ROUNDING * jnp.finfo(p.dtype).eps, 0, information)


def _of_one(z: Array, shifted: bool) -> _Sums:
    if shifted:
        z = z - jnp.max(z, axis=-2, keepdims=True)
    exps = jnp.exp(z)
    total = _sum_classes(exps)
    if not shifted:
        total = jnp.where((total > _UNSHIFTED[0]) & (total < _UNSHIFTED[1]), total, jnp.nan)
    probability = exps * (1 / total)
    return _Sums(probability, probability * z, jnp.log(total), None, None)
