"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Integer, Key, Real, Shaped

from segjax import checks
from segjax.models.dropout import MASKS, checked_rate, dropout, example_dropout_keys
from segjax.models.heads import DROPOUTS, LinearHead, Segmentation
from segjax.models.layers import ConvBlock, ConvTranspose2x2, PixelShuffle2x2, max_pool_2x2, pad_to_multiple

UPSAMPLINGS = {"transpose": ConvTranspose2x2, "pixel_shuffle": PixelShuffle2x2}


class UNet(nn.Module):
    r"""U-Net with padded convolutions: `depth` poolings and as many upsamplings, width · 2^level channels.

    `init(key, images, train=False)` and `apply(variables, images, train=…, mutable=["batch_stats"])` are pure.
    Any input size works, one pixel included: images are padded by reflection at the bottom and the right to a multiple
    of 2^depth, and logits cropped back. With padding="reflect" they are padded to at least 2 · 2^depth, so that the
    lowest level has two pixels to reflect; an image smaller than what is missing is reflected more than once.
    Width 64, depth 4, 3 channels, batch norm: 31.0 M parameters; width 16: 1.94 M.

    `rngs={"dropout": key}` switches dropout on, in evaluation too: one such pass is one Monte Carlo sample of the deep
    dropout, and K of the head. The heads see the features that the clean `logits` see, so K samples cost K small
    products and not K networks; "analytic" is their variance at K = ∞, without a key and without noise. Masks depend
    on (key, example index) alone. Parameters do not depend on any of it.

    Attributes:
        num_classes: C, the channels of the logits (1 for a sigmoid).
        width: channels of the first level.
        depth: number of 2×2 poolings.
        norm: "batch" | "group" | "none".
        padding: of the convolutions, "reflect" | "zeros".
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
        deep_dropout: n, dropout per element after the n deepest blocks of the encoder (the lowest level first) and
            the n deepest of the decoder, as Bayesian SegNet's central units have it; 0 to depth.
        deep_rate: p of these, in [0, 1).
        upsample: "transpose": 2×2 transposed convolution | "pixel_shuffle": 1×1 convolution, ReLU, depth to space.

    References:
        Ronneberger et al., arXiv 1505.04597. Dropout: Gal and Ghahramani, arXiv 1506.02142; Kendall et al., Bayesian
        SegNet, arXiv 1511.02680; Kendall and Gal, arXiv 1703.04977. Pixel shuffle: Shi et al., arXiv 1609.05158; Aitken
        et al., arXiv 1707.02937.

    >>> import jax
    >>> model, images = UNet(num_classes=5, width=4, depth=2), jnp.zeros((1, 13, 18, 3))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> model.apply(variables, images, train=False).logits.shape
    (1, 13, 18, 5)
    >>> unsure = model.clone(dropout="sampled", heads=7, mask="channel")
    >>> unsure.apply(variables, images, train=False, rngs={"dropout": jax.random.key(1)}).mc_logits.shape
    (7, 1, 13, 18, 5)
    """

    num_classes: int
    width: int = 64
    depth: int = 4
    norm: str = "batch"
    padding: str = "reflect"
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
    upsample: str = "transpose"

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
            ValueError: images of another rank or without pixels; an unknown norm, padding, dropout, mask or upsampling;
                a rate outside [0, 1), heads < 1, deep_dropout outside 0 … depth; no "dropout" key in training that
                needs one; not one example an image.
        """
        _check(images)
        self._check_fields()
        height, width = images.shape[1:3]
        rate = checked_rate("rate", self.rate if rate is None else rate)
        deep_rate = checked_rate("deep_rate", self.deep_rate if deep_rate is None else deep_rate)
        keys = self._dropout_keys(images.shape[0], train, examples)
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def stage(x: Array, side: str, level: int) -> Array:
            x = self._block(self.width * 2**level, name=f"{side}{level}")(x, train)
            if keys is None or level - (side == "down") < self.depth - self.deep_dropout:
                return x
            return dropout(x, deep_rate, _keys_of_place(keys, 1 + 2 * level + (side == "up")))

        x = pad_to_multiple(images, 2**self.depth, minimum=2 ** (self.depth + (self.padding == "reflect")))
        skips = []
        for level in range(self.depth):
            skips.append(stage(x, "down", level))
            x = max_pool_2x2(skips[-1])
        x = stage(x, "down", self.depth)
        for level in reversed(range(self.depth)):
            upsampled = UPSAMPLINGS[self.upsample](self.width * 2**level, name=f"up{level}_{self.upsample}", **kinds)(x)
            x = stage(jnp.concatenate([skips[level], upsampled], axis=-1), "up", level)

        head = LinearHead(
            self.num_classes, self.head_bias, self.head_kernel_stddev, param_dtype=self.param_dtype, name="head"
        )
        return head.segment(
            x[:, :height, :width],
            dropout=self.dropout,
            heads=self.heads,
            rate=rate,
            mask=self.mask,
            keys=None if keys is None else _keys_of_place(keys, 0),
        )

    def _block(self, features: int, name: str) -> nn.Module:
        block = nn.remat(ConvBlock, static_argnums=(2,), policy=_is_collective) if self.remat else ConvBlock
        return block(
            features,
            norm=self.norm,
            padding=self.padding,
            axis_name=self.axis_name,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    def _check_fields(self) -> None:
        checks.choice("dropout", self.dropout, DROPOUTS)
        checks.choice("mask", self.mask, MASKS)
        checks.choice("upsample", self.upsample, tuple(UPSAMPLINGS))
        checked_rate("rate", self.rate)
        checked_rate("deep_rate", self.deep_rate)
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1; got {self.heads}")
        if not 0 <= self.deep_dropout <= self.depth:
            raise ValueError(f"deep_dropout must be between 0 and depth, {self.depth}; got {self.deep_dropout}")

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


def _is_collective(primitive: Any, *_: Any, **__: Any) -> bool:
    """What is kept for the backward pass all the same: the few numbers of the batch statistics, to send once."""
    return primitive.name.startswith("psum")


def _keys_of_place(keys: Key[Array, "b"], place: int) -> Key[Array, "b"]:
    """The keys of one of the network's places: 0 is the head."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, place)


def _check(images: Array) -> None:
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images must be [batch, height, width, channels] with pixels; got shape {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images must be floating point and normalised (segjax.data.augment.prepare does it); got {images.dtype}"
        )
