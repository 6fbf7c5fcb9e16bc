"""A classifier of every pixel by the patch around it, and the same weights run fully convolutionally."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from segjax.models.layers import fan_in_normal
from segjax.models.network import Network, Pass
from segjax.models.norm import Norm
from segjax.models.pooling import max_pool_2x2, max_pool_2x2_dense


class ValidBlock(nn.Module):
    """`convolutions` times an unpadded convolution, norm, ReLU. The convolutions have a bias only without a norm.

    Attributes:
        features: output channels.
        size: side of the kernels.
        convolutions: how many; each takes `dilation` · (size - 1) pixels off height and width.
        dilation: distance of the kernel's taps; parameters do not depend on it.
        norm: "batch" | "group" | "none".
        axis_name: mapped axis of synchronised batch norm.
        dtype: of the computation.
        param_dtype: of the parameters.
    """

    features: int
    size: int = 3
    convolutions: int = 2
    dilation: int = 1
    norm: str = "batch"
    axis_name: str | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b H W f"]:
        """`[B, H, W, C]` to `[B, H - n, W - n, features]`, n = convolutions · dilation · (size - 1)."""
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i in range(1, self.convolutions + 1):
            x = nn.Conv(
                self.features,
                (self.size, self.size),
                padding="VALID",
                kernel_dilation=self.dilation,
                use_bias=self.norm == "none",
                kernel_init=fan_in_normal(2.0, self.size**2 * x.shape[-1]),
                name=f"conv{i}",
                **kinds,
            )(x)
            x = nn.relu(Norm(self.norm, self.axis_name, name=f"norm{i}", **kinds)(x, train))
        return x


class PatchClassifier(Network):
    r"""Classifies the centre pixel of every P × P patch of an image, the patches one by one or all in one pass.

    The classifier of one patch has no padding anywhere. `depth` levels of two 3×3 convolutions and a 2×2 max pooling,
    width · 2^level channels, leave k × k pixels; a k × k convolution, its fully connected layer, leaves one vector of
    width · 2^depth features, which the linear head classifies:

    .. math:: P = 2^{depth} (k + 4) - 4, \qquad
        52 \to 50, 48 \to 24 \to 22, 20 \to 10 \to 8, 6 \to 3 \to 1 \quad (depth\ 3, k = 3)

    The image is padded by reflection, P/2 pixels at the top and the left and P/2 - 1 at the bottom and the right, so
    each of its pixels is the centre of a patch (of its four central pixels the lower right one).

    Neighbouring patches overlap by all but a line, and what they share is computed again for each. So the same
    weights run fully convolutionally: every stride becomes the dilation of all that follows it. Behind l poolings a
    convolution has its taps 2^l pixels apart, and a pooling takes the larger of pixels 2^l apart, at every place: one
    pass gives the features of all patches. `sliding` chooses the way in evaluation, and changes the time and not the
    answer; training always takes one pass. Of that:

    - Batch norm in evaluation is a fixed affine map, and the two ways agree to rounding, with norm "none" too.
    - Batch norm in training takes its statistics over the positions of the pass, each counted once. A batch of all
      patches would count a position once for every patch that it is in: less near the border of the padded image,
      behind a pooling by other numbers again. Only the vectors of the last layer are counted alike.
    - Group norm takes statistics over a patch, or over the image: two different networks. `sliding` with it is an
      error.

    Width 32, depth 3, 3 channels, batch norm: 0.58 M parameters.

    Attributes: those of `Network`, and
        width: channels of the first level.
        depth: number of 2×2 poolings.
        patch_size: P; None: the P that leaves k = 3 pixels to the fully connected layer, 7 · 2^depth - 4.
        sliding: evaluate each patch of its own, a row of the image's patches at a time: the honest slow way. Memory is
            that of B · W patches.

    References:
        Ciresan et al., Deep Neural Networks Segment Neuronal Membranes in Electron Microscopy Images, NIPS 2012;
        Sermanet et al., OverFeat, arXiv 1312.6229; Giusti et al., Fast image scanning with deep max-pooling
        convolutional neural networks, arXiv 1302.1700.

    >>> model, images = PatchClassifier(num_classes=5, width=2, depth=1), jnp.zeros((1, 4, 9, 3))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> model.patch, model.apply(variables, images, train=False).logits.shape
    (10, (1, 4, 9, 5))
    """

    num_classes: int
    width: int = 32
    depth: int = 3
    patch_size: int | None = None
    sliding: bool = False

    @property
    def multiple(self) -> int:
        """One: every pixel has its patch."""
        return 1

    @property
    def symbolic_minimum(self) -> int:
        """More than half a patch: only an image of known size is reflected more than once."""
        return self.patch // 2 + 1

    @property
    def patch(self) -> int:
        """P, the side of a patch in pixels: what a logit sees of the image."""
        return 7 * 2**self.depth - 4 if self.patch_size is None else self.patch_size

    def check(self) -> None:
        """Raises a ValueError where the poolings do not divide the patch, or two ways would be two networks."""
        stride = 2**self.depth
        if (self.patch + 4) % stride or self.patch + 4 < 5 * stride:
            first, second, third = (stride * (4 + k) - 4 for k in (1, 2, 3))
            raise ValueError(
                f"patch_size of a PatchClassifier with {self.depth} poolings must be {first}, {second}, {third}, …, "
                f"which they leave k = 1, 2, 3, … whole pixels of; got {self.patch}"
            )
        if self.sliding and self.norm == "group":
            raise ValueError(
                "sliding=True with norm='group' would be another network, since each patch has statistics of its own; "
                "use norm='batch' or 'none'"
            )

    def body(self, x: Float[Array, "b h w channels"], go: Pass) -> tuple[Float[Array, "b h w f"], int]:
        """`[B, H, W, channels]` to `[B, H, W, width · 2^depth]`."""
        before = self.patch // 2
        around = (before, self.patch - 1 - before)
        padded = jnp.pad(x, ((0, 0), around, around, (0, 0)), mode="reflect")
        if self.sliding and not go.train and not self.is_initializing():
            return self._patches_of_rows(padded), 1
        return self._features(padded, go.train, dense=True), 1

    def _features(self, x: Array, train: bool, *, dense: bool) -> Array:
        """`[N, P, P, channels]` to `[N, 1, 1, F]`; where `dense`, any larger image to the features of its patches."""
        dilation = 1
        for level in range(self.depth):
            x = self.block(ValidBlock, self.width * 2**level, dilation=dilation, name=f"level{level}")(x, train)
            x = max_pool_2x2_dense(x, dilation) if dense else max_pool_2x2(x)
            dilation *= 2 if dense else 1
        left = (self.patch + 4) // 2**self.depth - 4
        fields = {"size": left, "convolutions": 1, "dilation": dilation, "name": "fully_connected"}
        return self.block(ValidBlock, self.width * 2**self.depth, **fields)(x, train)

    def _patches_of_rows(self, padded: Array) -> Array:
        """`[B, H + P - 1, W + P - 1, channels]` to `[B, H, W, F]`, a row of patches after another."""
        batch, height, width, channels = padded.shape
        height, width = height - self.patch + 1, width - self.patch + 1
        columns = jnp.arange(width)[:, None] + jnp.arange(self.patch)

        def row(network: PatchClassifier, nothing: None, first: Array, padded: Array) -> tuple[None, Array]:
            strip = jax.lax.dynamic_slice_in_dim(padded, first, self.patch, axis=1)
            patches = strip[:, :, columns].swapaxes(1, 2).reshape(batch * width, self.patch, self.patch, channels)
            return nothing, network._features(patches, False, dense=False).reshape(batch, width, -1)

        # Linen's scan, since its modules may not be called inside `lax.map`.
        rows = nn.scan(
            row,
            variable_broadcast=("params", "batch_stats"),
            split_rngs={"params": False},
            in_axes=(0, nn.broadcast),
            out_axes=1,
        )
        return rows(self, None, jnp.arange(height), padded)[1]
