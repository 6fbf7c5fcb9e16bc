"""Base class of the networks: fields, input sizes, and the linear head with its dropout, keyed by the example."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Key, Real, Shaped

from segjax import checks
from segjax.models.layers import Block, pad_to_multiple, upsample_bilinear

DROPOUTS = ("none", "sampled", "analytic")
MASKS = ("element", "channel")


class Segmentation(NamedTuple):
    """Output of a network for a batch of images (a pytree).

    Attributes:
        logits: of the head without dropout, at least float32.
        mc_logits: logits of each dropout mask or ensemble member, or None.
        logit_variance: variance of the logits under dropout in closed form, or None.
        features: input of the linear head, in the network's dtype; None for an ensemble.
    """

    logits: Float[Array, "b h w c"]
    mc_logits: Float[Array, "k b h w c"] | None
    logit_variance: Float[Array, "b h w c"] | None
    features: Float[Array, "b h w f"] | None


class ForwardContext(NamedTuple):
    """Mode, dropout keys (one per image, or None) and deep dropout's rate of one forward pass, for a network's body."""

    train: bool  # use and update batch statistics
    keys: Key[Array, "b"] | None  # one per image; None: no dropout in this pass
    deep_rate: Float[Array, ""]  # rate of the dropout inside the network

    def drop(self, x: Float[Array, "b h w f"], place: int) -> Float[Array, "b h w f"]:
        """Returns dropout per element of x at place 1, 2, … of the network; x itself in a pass without dropout."""
        return x if self.keys is None else dropout(x, self.deep_rate, _fold_in(self.keys, place))


class Network(Block, kw_only=True):
    r"""Base class of the networks, from images to `Segmentation`. A subclass defines the part between padding and head.

    - `multiple`: height and width of the input of its body are multiples of it;
    - `body(x, ctx) -> (features, n)`: maps padded images and the `ForwardContext` to `[B, H/n, W/n, F]`. Since the head
      and bilinear upsampling are linear, the logits are computed at the features' size and upsampled by n.

    Any input size works, including one pixel: images are padded by reflection, and logits are cropped back.
    `rngs={"dropout": key}` enables dropout, in evaluation too: such a pass is one Monte Carlo sample of the deep
    dropout and K samples of the head. Masks depend only on (key, example index). Parameters do not depend on dropout.

    Attributes: those of `Block`, and
        num_classes: C, number of channels of the logits (1 for a sigmoid).
        remat: recompute the blocks in the backward pass instead of keeping their activations.
        head_bias: initial bias of the logits, one value per class, such as `losses.prior_bias(π)`; None: 0.
        head_kernel_stddev: standard deviation of the head's initial kernel; None: the usual fan-in scale.
        dropout: dropout of the features before the head: "none" | "sampled": `mc_logits` of K masks, if there is a key
            | "analytic": `logit_variance`, the variance at K = ∞, without a key (Kendall and Gal, arXiv 1703.04977).
        heads: K, number of masks of "sampled".
        rate: p of these masks, in [0, 1).
        mask: "element" | "channel" for "sampled", see `head_samples`.
        deep_dropout: number of the network's own places, deepest first, with dropout per element; 0 to `deep_places`.
        deep_rate: p of these, in [0, 1).
    """

    num_classes: int
    remat: bool = False
    head_bias: Sequence[float] | None = None
    head_kernel_stddev: float | None = None
    dropout: str = "none"
    heads: int = 3
    rate: float = 0.2
    mask: str = "element"
    deep_dropout: int = 0
    deep_rate: float = 0.5

    deep_places = 0  # largest `deep_dropout`; replaced by subclasses

    @property
    def minimum(self) -> int:
        """Smallest height and width of the body's input; a multiple of `multiple`."""
        return self.multiple

    def check(self) -> None:
        """Raises a ValueError if a field that a subclass adds is out of range."""

    @nn.compact
    def __call__(
        self,
        images: Shaped[Array, "..."],
        *,
        train: bool,
        rate: Real[ArrayLike, ""] | None = None,
        deep_rate: Real[ArrayLike, ""] | None = None,
        examples: Integer[ArrayLike, "b"] | None = None,
    ) -> Segmentation:
        """Maps images `[B, H, W, channels]` to logits `[B, H, W, C]`.

        Args:
            images: floating point and normalized.
            train: whether to use and update batch statistics.
            rate: replaces the field `rate`; not checked if traced.
            deep_rate: replaces the field `deep_rate`; not checked if traced.
            examples: `[B]`, global indices of the images, which key their masks; None: 0 to B-1. Without them, images
                on different devices of a mapped axis share masks.

        Raises: TypeError or ValueError if an argument or field is not valid, or a "dropout" key is missing in training.
        """
        check_images(images)
        self.check_fields()
        rate = checked_rate("rate", self.rate if rate is None else rate)
        deep_rate = checked_rate("deep_rate", self.deep_rate if deep_rate is None else deep_rate)
        keys = self._dropout_keys(images.shape[0], train, examples)
        padded = pad_to_multiple(images, self.multiple, minimum=self.minimum)
        features, scale = self.body(padded, ForwardContext(train, keys, deep_rate))

        def full_size(x: Array) -> Array:
            return upsample_bilinear(x, scale)[..., : images.shape[1], : images.shape[2], :]

        # Logits and samples with masks per channel are computed before the upsampling, which is linear too. Masks per
        # element and the analytic variance need the upsampled features themselves.
        head = LinearHead(self.num_classes, self.head_bias, self.head_kernel_stddev, self.param_dtype, name="head")
        upsampled = full_size(features)
        logits = head(upsampled) if scale == 1 else full_size(head(features))
        linear = head.variables["params"]["linear"]
        samples = variance = None
        if self.dropout == "sampled" and keys is not None:
            early = scale > 1 and self.mask == "channel"
            x, options = features if early else upsampled, {"heads": self.heads, "rate": rate, "mask": self.mask}
            samples = head_samples(x, linear["kernel"], linear["bias"], _fold_in(keys, 0), **options)
            samples = jax.vmap(full_size)(samples) if early else samples
        if self.dropout == "analytic":
            variance = logit_variance(upsampled, linear["kernel"], rate)
        return Segmentation(logits, samples, variance, upsampled)

    def block(self, kind: type[nn.Module], *arguments: Any, **fields: Any) -> Callable:
        """Returns `kind(…)` with the network's norm and dtypes, rematerialized if `remat`; call it with (x, train)."""
        kind = rematerialized(kind) if self.remat else kind
        return kind(*arguments, norm=self.norm, axis_name=self.axis_name, **self.dtypes, **fields)

    def check_fields(self) -> None:
        """Raises a ValueError if a field is out of range."""
        checks.choice("dropout", self.dropout, DROPOUTS)
        checks.choice("mask", self.mask, MASKS)
        checks.scalar("heads", self.heads, jnp.int32, 1.0)
        self.check()
        name = f"deep_dropout of this {type(self).__name__}"
        checks.scalar(name, self.deep_dropout, jnp.int32, 0.0, float(self.deep_places))

    def _dropout_keys(self, batch: int, train: bool, examples: ArrayLike | None) -> Key[Array, "b"] | None:
        """Returns one key per example, or None for a pass without dropout."""
        samples = [f"dropout={self.dropout!r}"] * (self.dropout == "sampled")
        samples += [f"deep_dropout={self.deep_dropout}"] * (self.deep_dropout > 0)
        if not samples or self.is_initializing() or not (train or self.has_rng("dropout")):
            return None
        if not self.has_rng("dropout"):
            masks = f"train=True with {' and '.join(samples)} draws masks"
            raise ValueError(f'{masks}; pass rngs={{"dropout": key}} to apply, with a new key each step')
        examples = jnp.arange(batch) if examples is None else examples
        keys = example_dropout_keys(self.make_rng("dropout"), examples)
        if keys.shape != (batch,):
            raise ValueError(f"examples must be one index per image, shape ({batch},); got {keys.shape}")
        return keys


def rematerialized(kind: type[nn.Module]) -> type[nn.Module]:
    """Returns the module class `kind`, called with (x, train), recomputed in the backward pass."""
    # Synchronized batch statistics are kept, so that they are sent only once.
    return nn.remat(kind, static_argnums=(2,), policy=lambda primitive, *_, **__: primitive.name.startswith("psum"))


def _fold_in(keys: Key[Array, "b"], place: int | Array) -> Key[Array, "b"]:
    """Returns the keys of a place of the network (0 is the head) or of a head."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, place)


def check_images(images: Array) -> None:
    """Raises an error unless `images` is a floating-point batch with pixels."""
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images must be [batch, height, width, channels] with pixels; got shape {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images must be floating point and normalized, as by augment.prepare; got {images.dtype}")


class LinearHead(nn.Module):
    """A 1×1 convolution to logits, computed in at least float32 for features of any dtype.

    With `bias_init` = `losses.prior_bias(π)`, one value per class (None: 0), and a small `kernel_stddev` (None: LeCun's
    sqrt(1 / fan-in)) the network starts by predicting the prior (focal loss paper, arXiv 1708.02002, section 4.1).
    """

    num_classes: int
    bias_init: Sequence[float] | None = None
    kernel_stddev: float | None = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "b h w f"]) -> Float[Array, "b h w c"]:
        """Maps `[B, H, W, F]` to logits `[B, H, W, num_classes]`; raises ValueError if `bias_init` does not fit."""
        bias = np.zeros(self.num_classes) if self.bias_init is None else np.asarray(self.bias_init)
        if bias.shape != (self.num_classes,):
            raise ValueError(f"the head's bias needs one value per class, {self.num_classes}; got {self.bias_init}")
        init, stddev = nn.initializers, self.kernel_stddev
        return nn.Dense(
            self.num_classes,
            kernel_init=init.lecun_normal() if stddev is None else init.normal(stddev),
            bias_init=lambda key, shape, dtype: jnp.asarray(bias, dtype),
            dtype=jnp.promote_types(features.dtype, jnp.float32),
            param_dtype=self.param_dtype,
            name="linear",
        )(features)


def head_samples(
    features: Float[Array, "b h w f"],
    kernel: Float[Array, "f c"],
    bias: Float[Array, "c"],
    keys: Key[Array, "b"],
    *,
    heads: int,
    rate: Real[ArrayLike, ""],
    mask: str = "element",
) -> Float[Array, "{heads} b h w c"]:
    r"""Returns logits of K dropout masks over the features through one linear head, in at least float32.

    .. math:: z_k = W^\top x'_k + b, \qquad x'_k = \text{dropout}(x, p, \text{fold\_in}(\text{key}, k))

    The masks of head k do not depend on K. The heads are computed one after another, without K copies of the features,
    in the backward pass too. `segjax.inference.head_uncertainty` is for large K: it does not hold K sets of logits.

    Args:
        features: x, any floating dtype.
        kernel: W.
        bias: b.
        keys: PRNG keys of the examples (`example_dropout_keys`).
        heads: K ≥ 1; static.
        rate: p in [0, 1), a scalar; not checked if traced.
        mask: "element" | "channel"; static. Masks per element need H · W times as many random numbers.

    Raises: ValueError if an argument is out of range, or there are not as many keys as images.
    References: Gal and Ghahramani, arXiv 1506.02142; Kendall et al., arXiv 1511.02680.

    >>> keys, x = jax.random.split(jax.random.key(0), 2), jnp.ones((2, 5, 6, 4))
    >>> head_samples(x, jnp.ones((4, 3)), jnp.zeros(3), keys, heads=8, rate=0.2, mask="channel").shape
    (8, 2, 5, 6, 3)
    """
    checks.scalar("heads", heads, jnp.int32, 1.0)
    shape, threshold, scale = _mask_parameters(features, rate, keys, mask)
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    x, kernel, bias = (array.astype(dtype) for array in (features, kernel, bias))
    kernel = kernel * scale.astype(kernel.dtype)

    # The backward pass applies the mask again, so that only the boolean mask of a head is kept for it.
    @partial(jax.checkpoint, prevent_cse=False)
    def masked_product(keep: Array, x: Array, kernel: Array) -> Array:
        return jnp.where(keep, x, jnp.zeros((), x.dtype)) @ kernel

    def head(keys: Array) -> Array:
        return masked_product(_keep_mask(keys, shape, threshold), x, kernel) + bias[None, None, None]

    return jax.lax.map(head, jax.vmap(partial(_fold_in, keys))(jnp.arange(heads)))


def logit_variance(
    features: Float[Array, "b h w f"], kernel: Float[Array, "f c"], rate: Real[ArrayLike, ""]
) -> Float[Array, "b h w c"]:
    r"""Returns the exact variance of a linear head's logits under dropout: that of K = ∞ heads, in at least float32.

    .. math:: \operatorname{Var} z_c = \operatorname{Var} \sum_i \frac{m_i}{1 - p} w_{ic} x_i
        = \frac{p}{1 - p} \sum_i w_{ic}^2 x_i^2

    Masks per element and per channel have the same variance; they differ only in the covariance between pixels.

    x are the features, of any floating dtype, and w is the kernel. The rate p is a scalar in [0, 1), otherwise a
    ValueError; it is not checked if traced.

    References: Wang and Manning, Fast dropout training, ICML 2013 (the closed form); Kendall and Gal, arXiv 1703.04977.

    >>> x, kernel = jnp.array([3.0, 1.0]).reshape(1, 1, 1, 2), jnp.array([[1.0], [2.0]])
    >>> print(logit_variance(x, kernel, 0.2)[0, 0, 0])  # 0.2 / 0.8 · (1 · 9 + 4 · 1)
    [3.25]
    """
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    x, kernel, p = (array.astype(dtype) for array in (features, kernel, checked_rate("rate", rate)))
    return (x**2 @ kernel**2) * (p / (1 - p))


def example_dropout_keys(key: Shaped[Array, "..."], examples: Integer[ArrayLike, "b"]) -> Key[Array, "b"]:
    """Returns one typed PRNG key per example, from a typed or raw key and the example's index in the global batch.

    >>> key = jax.random.key(0)
    >>> bool(example_dropout_keys(key, jnp.array([7, 8]))[1] == example_dropout_keys(key, jnp.array([8]))[0])
    True
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    examples = checks.integers("examples", examples)
    if examples.ndim != 1:
        raise ValueError(f"examples must be [batch], one index per image; got shape {examples.shape}")
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, examples)


def dropout(
    x: Float[Array, "b h w f"], rate: Real[ArrayLike, ""], keys: Key[Array, "b"], *, mask: str = "element"
) -> Float[Array, "b h w f"]:
    r"""Returns inverted dropout of x: each value, or each channel of an image, is 0 with probability p.

    .. math:: x'_i = \frac{m_i}{1 - p} x_i, \quad m_i \sim \operatorname{Bernoulli}(1 - p), \quad
        \operatorname{E} x' = x, \quad \operatorname{Var} x'_i = \frac{p}{1 - p} x_i^2

    1 - p is rounded to a positive multiple of 2^-16, and values are divided by the rounded one, so the mean is exact.
    `nn.Dropout` needs a Python float; this p may be traced. Arguments and errors are those of `head_samples`.

    >>> print(dropout(jnp.ones((1, 1, 2, 4)), 0.5, jax.random.split(jax.random.key(0), 1), mask="channel")[0, 0, 0])
    [0. 2. 0. 2.]
    """
    shape, threshold, scale = _mask_parameters(x, rate, keys, mask)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    scaled = (x.astype(dtype) * scale.astype(dtype)).astype(x.dtype)
    return jnp.where(_keep_mask(keys, shape, threshold), scaled, jnp.zeros((), x.dtype))


def checked_rate(name: str, rate: Real[ArrayLike, ""]) -> Float[Array, ""]:
    """Returns `rate` as a float32 scalar; raises a ValueError if its value is not in [0, 1)."""
    given = checks.finite(name, rate, jnp.float32)
    # `rate` and not `given`, because under jit the array of a Python number is traced.
    if not isinstance(rate, jax.core.Tracer) and not 0 <= np.float32(rate) < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1; got {float(rate):g}")
    return given


def _mask_parameters(x: Array, rate: ArrayLike, keys: Array, mask: str) -> tuple[tuple[int, int, int], Array, Array]:
    """Returns the shape of one image's mask, the largest 16-bit number that keeps a value, and 1 / P(keep)."""
    if keys.shape != x.shape[:1]:
        raise ValueError(f"keys must be one PRNG key per image, shape {x.shape[:1]}; got {keys.shape}")
    checks.choice("mask", mask, MASKS)
    shape = x.shape[1:] if mask == "element" else (1, 1, x.shape[-1])
    keeping = jnp.clip(jnp.round((1 - checked_rate("rate", rate)) * 2**16), 1, 2**16)
    return shape, keeping.astype(jnp.uint32) - 1, 2**16 / keeping


def _keep_mask(keys: Array, shape: tuple[int, int, int], threshold: Array) -> Bool[Array, "b ..."]:
    """Returns a mask of `shape` for each key. Both halves of each random word are used, which halves the cost."""
    height, width, channels = shape
    words = jax.vmap(lambda key: jax.random.bits(key, (height, width, (channels + 1) // 2), jnp.uint32))(keys)
    return jnp.concatenate([(words & 0xFFFF) <= threshold, (words >> 16) <= threshold], axis=-1)[..., :channels]
