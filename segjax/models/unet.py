"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from segjax.models.heads import LinearHead, Segmentation
from segjax.models.layers import ConvBlock, ConvTranspose2x2, max_pool_2x2, pad_to_multiple


class UNet(nn.Module):
    r"""U-Net with padded convolutions and transposed convolutions: `depth` poolings, width · 2^level channels.

    `init(key, images, train=False)` and `apply(variables, images, train=…, mutable=["batch_stats"])` are pure.
    Any input size works, one pixel included: images are padded by reflection at the bottom and the right to a multiple
    of 2^depth, and logits cropped back. With padding="reflect" they are padded to at least 2 · 2^depth, so that the
    lowest level has two pixels to reflect; an image smaller than what is missing is reflected more than once.
    Width 64, depth 4, 3 channels, batch norm: 31.0 M parameters; width 16: 1.94 M.

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

    >>> import jax
    >>> model, images = UNet(num_classes=5, width=4, depth=2), jnp.zeros((1, 13, 18, 3))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> model.apply(variables, images, train=False).logits.shape
    (1, 13, 18, 5)
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

    @nn.compact
    def __call__(self, images: Shaped[Array, "..."], *, train: bool) -> Segmentation:
        """Images `[B, H, W, channels]`, floating and normalised, to logits `[B, H, W, C]`.

        Raises:
            TypeError: images of integers.
            ValueError: images of another rank or without pixels; an unknown norm or padding.
        """
        _check(images)
        height, width = images.shape[1:3]
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        block = partial(
            nn.remat(ConvBlock, static_argnums=(2,)) if self.remat else ConvBlock,
            norm=self.norm,
            padding=self.padding,
            axis_name=self.axis_name,
            **kinds,
        )

        x = pad_to_multiple(images, 2**self.depth, minimum=2 ** (self.depth + (self.padding == "reflect")))
        skips = []
        for level in range(self.depth):
            x = block(self.width * 2**level, name=f"down{level}")(x, train)
            skips.append(x)
            x = max_pool_2x2(x)
        x = block(self.width * 2**self.depth, name=f"down{self.depth}")(x, train)
        for level in reversed(range(self.depth)):
            x = ConvTranspose2x2(self.width * 2**level, name=f"up{level}_transpose", **kinds)(x)
            x = jnp.concatenate([skips[level], x], axis=-1)
            x = block(self.width * 2**level, name=f"up{level}")(x, train)

        features = x[:, :height, :width]
        head = LinearHead(
            self.num_classes, self.head_bias, self.head_kernel_stddev, param_dtype=self.param_dtype, name="head"
        )
        return Segmentation(logits=head(features), mc_logits=None, logit_variance=None, features=features)


def _check(images: Array) -> None:
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images must be [batch, height, width, channels] with pixels; got shape {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images must be floating point and normalised (segjax.data.augment.prepare does it); got {images.dtype}"
        )
