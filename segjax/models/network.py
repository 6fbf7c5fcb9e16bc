"""What every network is but for its body: the fields, any input size, keys of dropout, and the linear head."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer, Key, Real, Shaped

from segjax import checks
from segjax.models.dropout import MASKS, checked_rate, dropout, example_dropout_keys
from segjax.models.heads import DROPOUTS, LinearHead, Segmentation
from segjax.models.layers import pad_to_multiple


class Pass(NamedTuple):
    """One pass through a network, as its body sees it.

    Attributes:
        train: use and update batch statistics.
        keys: `[B]`, one dropout key an image, or None: no dropout in this pass.
        deep_rate: of the dropout inside the network.
    """

    train: bool
    keys: Key[Array, "b"] | None
    deep_rate: Float[Array, ""]

    def drop(self, x: Float[Array, "b h w f"], place: int) -> Float[Array, "b h w f"]:
        """Dropout per element at a place of the network, 1 or more; `x` itself in a pass without."""
        return x if self.keys is None else dropout(x, self.deep_rate, keys_of_place(self.keys, place))


class Network(nn.Module, kw_only=True):
    r"""A network from images to `Segmentation`; a subclass gives what lies between the padding and the head:

    - `multiple`: height and width of what its body sees are a multiple of it;
    - `body(x, go) -> (features, n)`: padded images and the `Pass` to `[B, H/n, W/n, F]`. The head is linear and so is
      bilinear upsampling: at n > 1 the logits are computed where the features are, and upsampled.

    `init(key, images, train=False)` and `apply(variables, images, train=…, mutable=["batch_stats"])` are pure.
    Any input size works, one pixel included: images are padded by reflection at the bottom and the right to a multiple
    of the network's own, and logits cropped back; an image smaller than what is missing is reflected more than once.

    `rngs={"dropout": key}` switches dropout on, in evaluation too: one such pass is one Monte Carlo sample of the deep
    dropout, and K of the head. The heads see the features that the clean `logits` see, so K samples cost K small
    products and not K networks; "analytic" is their variance at K = ∞, without a key and without noise. Masks depend
    on (key, example index) alone. Parameters do not depend on any of it.

    Attributes:
        num_classes: C, the channels of the logits (1 for a sigmoid).
        norm: "batch" | "group" | "none".
        axis_name: the mapped axis (`pmap`, `shard_map`, `vmap`) over which batch statistics are averaged. With it set,
            `apply(…, train=True)` works only inside that axis; parameters do not depend on it.
        dtype: of the computation; the head's is float32 at least, and so are the logits.
        param_dtype: of the parameters.
        remat: compute the blocks again in the backward pass instead of keeping their activations.
        head_bias: initial bias of the logits, one value a class, such as `losses.prior_bias(π)`; None: 0.
        head_kernel_stddev: of the head's initial kernel; None: the usual fan-in scale.
        dropout: of the features, before the head: "none" | "sampled": `mc_logits` of K masks, where there is a key |
            "analytic": `logit_variance`, always.
        heads: K, the masks of "sampled".
        rate: p of these masks, in [0, 1).
        mask: of "sampled", "element" | "channel": one draw a value, or one a channel of an image, which has the same
            variance at every pixel and takes H · W times fewer random numbers.
        deep_dropout: how many of the network's own places, the deepest first, have dropout per element; 0 to
            `deep_places`.
        deep_rate: p of these, in [0, 1).

    References:
        Dropout: Gal and Ghahramani, arXiv 1506.02142; Kendall et al., Bayesian SegNet, arXiv 1511.02680; Kendall and
        Gal, arXiv 1703.04977.
    """

    num_classes: int
    norm: str = "batch"
    axis_name: str | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: bool = False
    head_bias: Sequence[float] | None = None
    head_kernel_stddev: float | None = None
    dropout: str = "none"
    heads: int = 3
    rate: float = 0.2
    mask: str = "element"
    deep_dropout: int = 0
    deep_rate: float = 0.5

    @property
    def minimum(self) -> int:
        """The smallest height and width that the body takes; a multiple of `multiple`."""
        return self.multiple

    @property
    def symbolic_minimum(self) -> int:
        """The smallest height and width where they are symbolic, in `jax.export`; a multiple of `multiple`."""
        return self.minimum

    @property
    def deep_places(self) -> int:
        """The largest `deep_dropout`."""
        return 0

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
        """Images `[B, H, W, channels]`, floating and normalised, to logits `[B, H, W, C]`.

        Args:
            images: the batch.
            train: use and update batch statistics; dropout then has to have its key.
            rate: instead of the field's; may be traced, and is then not checked.
            deep_rate: instead of the field's; may be traced, and is then not checked.
            examples: `[B]`, the images' global indices, which key their masks; None: 0 … B-1. Under a mapped device
                axis pass them: else images of different devices share their masks.

        Raises:
            TypeError: images of integers.
            ValueError: images of another rank or without pixels; an unknown choice in a field; a rate outside [0, 1),
                heads < 1, deep_dropout outside 0 … `deep_places`; no "dropout" key in training that needs one; not one
                example an image.
        """
        check_images(images)
        self._check_fields()
        rate = checked_rate("rate", self.rate if rate is None else rate)
        deep_rate = checked_rate("deep_rate", self.deep_rate if deep_rate is None else deep_rate)
        keys = self._dropout_keys(images.shape[0], train, examples)
        padded = pad_to_multiple(images, self.multiple, minimum=self.minimum)
        features, scale = self.body(padded, Pass(train, keys, deep_rate))
        head = LinearHead(
            self.num_classes, self.head_bias, self.head_kernel_stddev, param_dtype=self.param_dtype, name="head"
        )
        return head.segment(
            features,
            scale=scale,
            size=images.shape[1:3],
            dropout=self.dropout,
            heads=self.heads,
            rate=rate,
            mask=self.mask,
            keys=None if keys is None else keys_of_place(keys, 0),
        )

    @property
    def kinds(self) -> dict[str, Any]:
        """The two dtypes, as every layer takes them."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def block(self, kind: type[nn.Module], *arguments: Any, **fields: Any) -> Callable:
        """`kind(…)(x, train)` with the network's norm and dtypes; under `remat` the backward pass computes it again."""
        kind = rematerialised(kind) if self.remat else kind
        return kind(*arguments, norm=self.norm, axis_name=self.axis_name, **self.kinds, **fields)

    def check(self) -> None:
        """Raises a ValueError where a field that a subclass adds makes no sense."""

    def _check_fields(self) -> None:
        checks.choice("dropout", self.dropout, DROPOUTS)
        checks.choice("mask", self.mask, MASKS)
        checked_rate("rate", self.rate)
        checked_rate("deep_rate", self.deep_rate)
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1; got {self.heads}")
        self.check()
        if not 0 <= self.deep_dropout <= self.deep_places:
            raise ValueError(
                f"deep_dropout of this {type(self).__name__} must be between 0 and {self.deep_places}; "
                f"got {self.deep_dropout}"
            )

    def _dropout_keys(self, batch: int, train: bool, examples: ArrayLike | None) -> Key[Array, "b"] | None:
        """One key an example, or None: no dropout in this pass."""
        samples = [f"dropout={self.dropout!r}"] * (self.dropout == "sampled")
        samples += [f"deep_dropout={self.deep_dropout}"] * (self.deep_dropout > 0)
        if not samples or self.is_initializing():
            return None
        if self.has_rng("dropout"):
            examples = jnp.arange(batch) if examples is None else examples
            keys = example_dropout_keys(self.make_rng("dropout"), examples)
            if keys.shape != (batch,):
                raise ValueError(f"examples must be one index an image, shape ({batch},); got {keys.shape}")
            return keys
        if train:
            raise ValueError(
                f'train=True with {" and ".join(samples)} draws masks: pass rngs={{"dropout": key}} to apply, '
                "a key of this step"
            )
        return None


def rematerialised(kind: type[nn.Module]) -> type[nn.Module]:
    """`kind`, called as `(x, train)`, whose backward pass computes it again."""
    return nn.remat(kind, static_argnums=(2,), policy=_is_collective)


def _is_collective(primitive: Any, *_: Any, **__: Any) -> bool:
    """What is kept for the backward pass all the same: the few numbers of the batch statistics, to send once."""
    return primitive.name.startswith("psum")


def keys_of_place(keys: Key[Array, "b"], place: int) -> Key[Array, "b"]:
    """The keys of one of the network's places: 0 is the head."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, place)


def check_images(images: Array) -> None:
    """An error where `images` are not what a network takes: a batch with pixels, floating point."""
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images must be [batch, height, width, channels] with pixels; got shape {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images must be floating point and normalised (segjax.data.augment.prepare does it); got {images.dtype}"
        )
