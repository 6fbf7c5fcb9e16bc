"""Monte Carlo dropout: mean probabilities, predictive entropy, mutual information and variance over samples.

A network with one linear head needs one pass and K small products for K samples. Samples are added up one after
another, so K = 30 takes the memory of one. `segjax.metrics` computes the same numbers from a stack of K logits.

PRNG keys are typed or raw. Dropout rates are scalars in [0, 1), not checked if traced; K and the kind of mask are
static. `examples` `[B]` are the global indices of the images, which key their masks; None: 0 to B - 1.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer, Key, Real, Shaped

from segjax.models import Segmentation, example_dropout_keys, logit_variance
from segjax.models.network import checked_rate, dropout

# Pixels per block. On a CPU a block stays in the cache from one sample to the next; elsewhere each step costs a launch.
_BLOCK, _BLOCK_CPU = 2**20, 2**14
# Mutual information below this many epsilons of the dtype is rounding.
_ROUNDING = 16


class SampleStatistics(NamedTuple):
    """Means over the samples of a batch of images (a pytree).

    These are the means of the softmax, of its entropy (in nats, the uncertainty that is in the data) and of the logits,
    and the biased variance of the logits over the samples, mean over the classes, in squared logits.
    """

    probabilities: Float[Array, "*pixels c"]
    entropy: Float[Array, "*pixels"]
    logits: Float[Array, "*pixels c"]
    variance: Float[Array, "*pixels"]


class Uncertainty(NamedTuple):
    """Uncertainty of a batch of images from samples of its logits (a pytree).

    Attributes:
        probabilities: `[B, H, W, C]`, mean of the samples' softmax.
        predictive_entropy: `[B, H, W]` in nats, in [0, log C]: entropy of `probabilities`, the total uncertainty.
        mutual_information: `[B, H, W]` in nats, ≥ 0: the part on which samples disagree; None without samples.
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

    The samples are those of `segjax.models.head_samples`: the first 3 of 30 equal those of K = 3. Call it under
    `jax.jit`; a call outside compiles again.

    Args:
        features: x, `[B, H, W, F]`, any floating dtype, such as `Segmentation.features` of a clean pass.
        kernel: W, `[F, C]`, C ≥ 2.
        bias: b, `[C]`.
        key: PRNG key of the masks.
        samples: K ≥ 2.
        rate: dropout rate.
        mask: "channel", F · K random numbers per image, or "element", H · W times as many.
        examples: `[B]`, indices of the images.

    Returns:
        `Uncertainty`, at least float32. I has an error of about 1e-6 nats, and values below 2e-6 become 0 (float32).
        Finite for |z| ≤ 1e4; NaN where features are NaN.

    Raises:
        TypeError: features are not floating point, or examples not integers.
        ValueError: K < 2, C < 2, a rate outside [0, 1), an unknown `mask`, or shapes that do not match.

    References:
        Gal and Ghahramani, arXiv 1506.02142; Houlsby et al., arXiv 1112.5745 (mutual information).

    >>> x, kernel, bias = jnp.ones((1, 4, 6, 8)), jnp.eye(8, 3), jnp.zeros(3)
    >>> head = jax.jit(head_uncertainty, static_argnames="samples")
    >>> unsure = head(x, kernel, bias, jax.random.key(0), samples=30, rate=0.2)
    >>> unsure.probabilities.shape, bool((unsure.mutual_information > 0).all())
    ((1, 4, 6, 3), True)
    """
    x, kernel, bias = _head_inputs(features, kernel, bias)
    _check_samples(samples)
    keys = example_dropout_keys(key, jnp.arange(x.shape[0]) if examples is None else examples)
    if keys.shape != x.shape[:1]:
        raise ValueError(f"examples must hold one index per image, shape {x.shape[:1]}; got {keys.shape}")
    statistics = head_statistics(x, kernel, bias, keys, jnp.arange(samples), rate=checked_rate("rate", rate), mask=mask)
    return uncertainty_of(statistics, samples)


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

    `model` has one linear head, `head/linear` in its parameters, like `segjax.models.UNet`, and takes `images`
    `[B, H, W, channels]`. The other arguments and the errors are those of `head_uncertainty`; rate and mask default to
    the model's. On a CPU, 30 masks per channel take less than a pass of a narrow U-Net, masks per element take
    as long as many passes.

    >>> from segjax.models import UNet
    >>> model, images = UNet(num_classes=3, width=4, depth=1), jnp.ones((1, 8, 12, 3))
    >>> variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), images, train=False)
    >>> predict = jax.jit(lambda *inputs: predict_with_uncertainty(model, *inputs, samples=5, mask="channel"))
    >>> clean, unsure = predict(variables, images, jax.random.key(1))
    >>> clean.logits.shape, unsure.variance.shape
    ((1, 8, 12, 3), (1, 8, 12))
    """
    kernel, bias = linear_head(variables)
    clean = model.apply(variables, images, train=False)
    rate, mask = model.rate if rate is None else rate, model.mask if mask is None else mask
    return clean, head_uncertainty(
        clean.features, kernel, bias, key, samples=samples, rate=rate, mask=mask, examples=examples
    )


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

    z_k are the logits of pass k of the network f on the images x with the dropout masks m_k, and K is `samples`. Each
    sample draws all masks of the model: the deep ones, and one of the head if dropout="sampled". All passes
    together take the memory of one. The arguments are those of `predict_with_uncertainty`; `rate` of the head and
    `deep_rate` of the deep dropout default to the model's.

    Raises:
        ValueError: K < 2, a model without deep_dropout > 0 or dropout="sampled", or a rate outside [0, 1).

    >>> from segjax.models import UNet
    >>> model, images = UNet(num_classes=3, width=4, depth=1, deep_dropout=1), jnp.ones((1, 8, 12, 3))
    >>> variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), images, train=False)
    >>> predict = jax.jit(lambda *inputs: whole_passes(model, *inputs, samples=5))
    >>> predict(variables, images, jax.random.key(1))[1].mutual_information.shape
    (1, 8, 12)
    """
    _check_samples(samples)
    logits = dropout_passes(model, variables, key, rate=rate, deep_rate=deep_rate, examples=examples)
    clean = model.apply(variables, images, train=False)
    return clean, uncertainty_of(sample_statistics(lambda k: logits(images, k), jnp.arange(samples)), samples)


def dropout_passes(model: Any, variables: Any, key: Shaped[Array, "..."], **options: Any) -> Callable:
    """Builds `logits(images, k)` of pass k with the model's dropout on; raises ValueError for a model without."""
    if model.deep_dropout == 0 and model.dropout != "sampled":
        raise ValueError(
            'whole passes need a model with deep_dropout > 0 or dropout="sampled"; '
            f"got deep_dropout={model.deep_dropout} and dropout={model.dropout!r}"
        )

    def logits(images: Array, k: Array) -> Array:
        rngs = {"dropout": jax.random.fold_in(key, k)}
        output = model.clone(heads=1).apply(variables, images, train=False, rngs=rngs, **options)
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

    v is the limit of that of `head_uncertainty` for K → ∞; p and H are not limits. The mutual information is None.
    Arguments and errors are those of `head_uncertainty`, r is the dropout rate.

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
    """Returns the variance of `analytic_uncertainty` and the mutual information of `head_uncertainty`.

    "variance" is in squared logits, "mutual information" in nats, both at least float32. The mutual information is that
    of K masks per channel, the same in every call. A single logit z counts as the logits 0 and z, and outputs beyond
    the `num_classes` classes are left out. Other arguments and the errors are those of `head_uncertainty`.

    >>> variables = {"params": {"head": {"linear": {"kernel": jnp.ones((4, 1)), "bias": jnp.zeros(1)}}}}
    >>> head = jax.jit(head_uncertainty_maps, static_argnames="num_classes")
    >>> maps = head(variables, jnp.ones((1, 2, 3, 4)), jnp.arange(1), num_classes=2, rate=0.2)
    >>> maps["mutual information"].shape, float(maps["variance"][0, 0, 0])
    ((1, 2, 3), 1.0)
    """
    kernel, bias = linear_head(variables)
    kernel, bias = kernel[:, :num_classes], bias[:num_classes]
    variance = jnp.mean(logit_variance(features, kernel, rate), axis=-1)
    if kernel.shape[1] == 1:
        kernel, bias = jnp.pad(kernel, ((0, 0), (1, 0))), jnp.pad(bias, (1, 0))
    sampled = head_uncertainty(features, kernel, bias, jax.random.key(0), samples=samples, rate=rate, examples=examples)
    return {"variance": variance, "mutual information": sampled.mutual_information}


def uncertainty_of(statistics: SampleStatistics, samples: int) -> Uncertainty:
    r"""Returns the uncertainty that follows from the statistics of N samples.

    .. math:: H = -\sum_c \bar p_c \log \bar p_c, \qquad I = H - \bar h, \qquad \text{variance} = \frac{N}{N - 1} v

    `statistics` are those of images `[B, H, W, ...]`, from `augmented_statistics`, or blended over tiles. N ≥ 2 counts
    augmentations times dropout samples, not tiles. Information below 2e-6 nats (float32) is rounding and becomes 0.

    >>> p = jnp.array([0.5, 0.5]).reshape(1, 1, 1, 2)  # two certain samples that disagree
    >>> found = uncertainty_of(SampleStatistics(p, jnp.zeros((1, 1, 1)), 0 * p, jnp.ones((1, 1, 1))), samples=2)
    >>> print(found.predictive_entropy[0, 0].round(3), found.mutual_information[0, 0].round(3), found.variance[0, 0])
    [0.693] [0.693] [2.]
    """
    _check_samples(samples)
    p = _pixels_last(statistics.probabilities)
    entropy = -_sum_classes(p * jnp.log(jnp.where(p == 0, 1, p))).reshape(statistics.entropy.shape)
    entropy = jnp.maximum(entropy, 0)  # rounding may make p larger than 1
    information = entropy - jnp.maximum(statistics.entropy, 0)
    information = jnp.where(information < _ROUNDING * jnp.finfo(p.dtype).eps, 0, information)
    variance = statistics.variance * (samples / (samples - 1))
    return Uncertainty(statistics.probabilities, entropy, information, variance)


def statistics_to_maps(statistics: SampleStatistics) -> Float[Array, "*pixels maps"]:
    r"""Returns the statistics `[..., C]` and `[...]` as 2C + 2 maps that may be blended by `predict_tiled`.

    .. math:: \bar p, \quad \bar h, \quad \bar z, \quad s = v + \frac{1}{C} \sum_c \bar z_c^2

    All maps are means over samples, and so is a blend of tiles with weights of sum 1. Disagreement between tiles
    therefore counts as uncertainty.

    >>> statistics_to_maps(SampleStatistics(jnp.ones((5, 3)), jnp.zeros(5), jnp.ones((5, 3)), jnp.zeros(5))).shape
    (5, 8)
    """
    p, entropy, logits, variance = statistics
    squares = variance + jnp.mean(logits**2, axis=-1)
    return jnp.concatenate([p, entropy[..., None], logits, squares[..., None]], axis=-1)


def maps_to_statistics(maps: Float[ArrayLike, "*pixels maps"]) -> SampleStatistics:
    r"""Returns the statistics of blended maps `[..., 2C + 2]`, C ≥ 2: the inverse of `statistics_to_maps`.

    .. math:: v = s - \frac{1}{C} \sum_c \bar z_c^2

    The difference of squares has an error of about 1e-6 of the larger: 1e-4 in the variance of logits of 10.

    >>> statistics = maps_to_statistics(jnp.array([0.0, 1.0, 2.0, 3.0, 4.0, 10.0]))
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


def sample_statistics(logits: Callable, numbers: Integer[Array, "k"]) -> SampleStatistics:
    r"""Returns the statistics of K ≥ 1 samples, in their dtype. Finite for |z| ≤ 1e4.

    .. math::
        \bar p = \frac{1}{K} \sum_k softmax(z_k), \quad \bar h = \frac{1}{K} \sum_k H[softmax(z_k)], \quad
        \bar z = \frac{1}{K} \sum_k z_k, \quad v = \frac{1}{KC} \sum_{kc} (z_{kc} - \bar z_c)^2

    `logits` returns the sample z_n, `[B, H, W, C]`, C ≥ 2, for a traced n; `numbers` `[K]` are the n.

    >>> found = sample_statistics(lambda n: n * jnp.ones((1, 2, 3, 2)), jnp.arange(3))
    >>> print(found.logits[0, 0, 0], f"{found.variance[0, 0, 0]:.3f}", found.probabilities[0, 0, 0])
    [1. 1.] 0.667 [0.5 0.5]
    """
    shape = jax.eval_shape(logits, numbers[0]).shape
    return _to_images(_mean_maps(lambda n: _pixels_last(logits(n)), numbers), shape)


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

    def masked(x: Array, n: Array) -> Array:
        return dropout(x, rate, jax.vmap(jax.random.fold_in, (0, None))(keys, n), mask=mask)

    if mask != "channel":
        return sample_statistics(lambda n: masked(features, n) @ kernel + bias, numbers)
    # A mask per channel is a mask of the kernel's rows. Blocks of pixels take a third of the time of whole images.
    batch, height, width, channels = features.shape
    masks = jax.vmap(lambda n: masked(jnp.ones((batch, 1, 1, channels), features.dtype), n))(numbers)
    kernels = masks[:, :, 0, 0, None] * kernel.T  # [K, B, C, F]
    mean_kernel = kernels[0] + jnp.mean(kernels - kernels[0], axis=0)  # exact where all masks are equal
    steps = math.ceil(height * width / (_BLOCK_CPU if jax.default_backend() == "cpu" else _BLOCK))
    size = math.ceil(height * width / steps)
    pixels = jnp.pad(features.reshape(batch, -1, channels), ((0, 0), (0, steps * size - height * width), (0, 0)))

    def block(image_and_pixels: tuple[Array, Array]) -> tuple[Array, ...]:
        image, x = image_and_pixels
        mean = mean_kernel[image] @ x + bias[:, None]
        return _mean_maps(lambda k: kernels[k, image] @ x + bias[:, None], jnp.arange(len(numbers)), mean)

    blocks = jnp.swapaxes(pixels.reshape(batch * steps, size, channels), 1, 2)
    maps = jax.lax.map(block, (jnp.repeat(jnp.arange(batch), steps), blocks))
    return _to_images(maps, features.shape)


def linear_head(variables: Any) -> tuple[Array, Array]:
    """Returns kernel and bias of a network's linear head; raises ValueError if it has none."""
    try:
        linear = variables["params"]["head"]["linear"]
        return linear["kernel"], linear["bias"]
    except (KeyError, TypeError) as error:
        message = 'variables must hold a linear head, ["params"]["head"]["linear"] with kernel and bias'
        raise ValueError(message) from error


def _check_samples(samples: int) -> None:
    if samples < 2:
        raise ValueError(f"samples must be at least 2, since the unbiased variance divides by K - 1; got {samples}")


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


def _pixels_last(x: Float[Array, "b h w c"]) -> Float[Array, "b c p"]:
    """Moves the pixels last: exp is then vectorised on a CPU, and a sum over classes is a fast product with ones."""
    return jnp.swapaxes(x.reshape(x.shape[0], -1, x.shape[-1]), 1, 2)


def _sum_classes(x: Float[Array, "... c p"]) -> Float[Array, "... 1 p"]:
    return jnp.matmul(jnp.ones((1, x.shape[-2]), x.dtype), x, precision="highest")


def _mean_maps(logits: Callable, numbers: Integer[Array, "k"], mean: Array | None = None) -> tuple[Array, ...]:
    """Returns the fields of `SampleStatistics`, pixels last, of `logits(n)` `[..., C, P]`; `mean`: theirs, if known."""
    # Squares of the logits themselves would cancel.
    reference = logits(numbers[0]) if mean is None else mean

    def add(sums: tuple[Array, ...], n: Array) -> tuple[tuple[Array, ...], None]:
        z = logits(n)
        shifted = z - jnp.max(z, axis=-2, keepdims=True)
        exps = jnp.exp(shifted)
        total = _sum_classes(exps)
        p, away = exps * (1 / total), z - reference
        entropy = jnp.log(total) - _sum_classes(p * shifted)
        return jax.tree.map(jnp.add, sums, (p, entropy, away, _sum_classes(away**2))), None

    # Zeros that vary over devices as the logits do: a checked shard_map requires it of a scan's carry.
    zero = 0 * reference
    sums = jax.lax.scan(add, (zero, zero[..., :1, :], zero, zero[..., :1, :]), numbers)[0]
    p, entropy, away, squares = jax.tree.map(lambda total: total / len(numbers), sums)
    if mean is None:
        mean, squares = reference + away, jnp.maximum(squares - _sum_classes(away**2), 0)
    return p, entropy, mean, squares / mean.shape[-2]


def _to_images(maps: tuple[Array, ...], shape: tuple[int, ...]) -> SampleStatistics:
    """Returns the statistics as images of `shape`, from maps with the pixels last, in blocks or not."""
    batch, height, width, _ = shape
    pixels = [jnp.swapaxes(y, 1, 2).reshape(batch, -1, y.shape[1])[:, : height * width] for y in maps]
    p, entropy, logits, variance = (y.reshape(batch, height, width, -1) for y in pixels)
    return SampleStatistics(p, entropy[..., 0], logits, variance[..., 0])
