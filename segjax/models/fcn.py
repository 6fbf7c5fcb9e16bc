"""FCN-32s, 16s and 8s (Long et al. 2015, arXiv 1411.4038), and the classifier of patches that came before them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from segjax import checks
from segjax.models.layers import (
    VGG16,
    Block,
    Conv,
    ConvNorm,
    ConvStack,
    fan_in_normal,
    max_pool_2x2,
    max_pool_2x2_dense,
)
from segjax.models.network import ForwardContext, Network
from segjax.models.upsampling import ConvTransposeBilinear


class FCN(Network):
    r"""FCN: VGG16 with its fully connected layers as convolutions, and scores of several depths upsampled and summed.

    Five blocks of convolutions and poolings lead to 1/32 of the size; `fc6`, a 7×7, and `fc7`, a 1×1 convolution, have
    `hidden` channels; a linear 1×1 convolution gives the scores. The finer networks add scores of earlier poolings:

    .. math:: s_{32} = S(fc7), \quad s_{16} = U(s_{32}) + S_4(pool4), \quad s_8 = U(s_{16}) + S_3(pool3)

    U is a learned transposed convolution by 2, initially bilinear interpolation. S_4 and S_3 are initially 0, so a
    finer network starts as the coarser one. The last upsampling, by `stride`, stays bilinear, as in the paper.

    Convolutions keep height and width by zero padding, where the authors pad the image by 100 pixels and crop. Dropout
    heads drop the scores: give them more than `num_classes`. Width 64, 21 classes, norm "none": 134.4 M parameters.

    Attributes: those of `Network`, and
        width: number of channels of the first block.
        hidden: number of channels of fc6 and fc7.
        stride: stride of the finest scores, 8 | 16 | 32.
        score: number of channels of the scores; None: `num_classes`, as in the paper.

    `deep_dropout` = 1 applies dropout after fc7, 2 after fc6 too, as in the paper and in VGG (arXiv 1409.1556).
    """

    num_classes: int
    width: int = 64
    hidden: int = 4096
    stride: int = 8
    score: int | None = None

    multiple, deep_places = 32, 2

    def check(self) -> None:
        """Raises a ValueError if `stride` is not 8, 16 or 32."""
        checks.choice("stride", self.stride, (8, 16, 32))

    def body(self, x: Float[Array, "b h w channels"], ctx: ForwardContext) -> tuple[Float[Array, "b H W f"], int]:
        """Maps `[B, H, W, channels]`, multiples of 32, to the sum of the scores, `[B, H/stride, W/stride, score]`."""
        pools = []
        for i, (widths, count) in enumerate(VGG16, 1):
            x = self.block(ConvStack, self.width * widths, count, padding="zeros", name=f"block{i}")(x, ctx.train)
            x = max_pool_2x2(x)
            pools.append(x)
        x = self.block(ConvNorm, self.hidden, size=7, name="fc6")(x, ctx.train)
        x = ctx.drop(x, 2) if self.deep_dropout > 1 else x
        x = self.block(ConvNorm, self.hidden, size=1, name="fc7")(x, ctx.train)
        x = ctx.drop(x, 1) if self.deep_dropout > 0 else x
        x = self._scores("score_fr", fan_in_normal(1.0, self.hidden))(x)  # the authors' names of the layers
        for stride, up, pool in ((16, "upscore2", 4), (8, "upscore_pool4", 3)):
            if self.stride <= stride:
                skip = self._scores(f"score_pool{pool}", nn.initializers.zeros)(pools[pool - 1])
                x = ConvTransposeBilinear(2, name=up, **self.dtypes)(x) + skip
        return x, self.stride

    def _scores(self, name: str, init: nn.initializers.Initializer) -> nn.Dense:
        channels = self.num_classes if self.score is None else self.score
        return nn.Dense(channels, kernel_init=init, name=name, **self.dtypes)


class ValidBlock(Block):
    """Unpadded size × size convolution, norm, ReLU, `convolutions` times."""

    features: int
    size: int = 3
    convolutions: int = 2
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b H W f"]:
        """Maps `[B, H, W, C]` to `[B, H - n, W - n, features]`, n = convolutions · dilation · (size - 1)."""
        fields = {"dilation": self.dilation, "padding": "VALID", **self.conv_fields}
        for i in range(1, self.convolutions + 1):
            conv = Conv(self.features, self.size, name=f"conv{i}", **fields)
            x = nn.relu(self.normalize(conv(x), train, f"norm{i}"))
        return x


class PatchClassifier(Network):
    r"""Classifier of the centre pixel of every P × P patch of an image, patch by patch or all patches in one pass.

    `depth` levels of two unpadded 3×3 convolutions and a 2×2 max pooling, width · 2^level channels, leave k × k pixels;
    a k × k convolution, the fully connected layer, leaves one vector of width · 2^depth features per patch:

    .. math:: P = 2^{depth} (k + 4) - 4, \qquad
        52 \to 50, 48 \to 24 \to 22, 20 \to 10 \to 8, 6 \to 3 \to 1 \quad (depth\ 3, k = 3)

    The image is padded by reflection, so that each pixel is the centre of a patch (the lower right one of its four
    central pixels). Fully convolutionally the same weights give the features of all patches in one pass: every stride
    becomes the dilation of all later layers. Training always takes one pass. Width 32, depth 3, 3 channels, batch norm:
    0.58 M parameters.

    Attributes: those of `Network`, and
        width: number of channels of the first level.
        depth: number of 2×2 poolings.
        patch_size: P; None: 7 · 2^depth - 4, which leaves k = 3 pixels to the fully connected layer.
        sliding: evaluate each patch separately, one row of patches at a time; the result is the same to rounding.

    References: Ciresan et al., NIPS 2012; Sermanet et al., arXiv 1312.6229; Giusti et al., arXiv 1302.1700.

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

    multiple = 1  # every pixel has its patch

    @property
    def patch(self) -> int:
        """P, the side of a patch in pixels: the receptive field of a logit."""
        return 7 * 2**self.depth - 4 if self.patch_size is None else self.patch_size

    def check(self) -> None:
        """Raises a ValueError if the poolings do not divide the patch, or `sliding` would change the output."""
        stride = 2**self.depth
        if (self.patch + 4) % stride or self.patch + 4 < 5 * stride:
            sizes = ", ".join(str(stride * (4 + k) - 4) for k in (1, 2, 3))
            expected = f"patch_size of a PatchClassifier with {self.depth} poolings must be {sizes}, …"
            raise ValueError(f"{expected}, which leave k = 1, 2, 3, … whole pixels; got {self.patch}")
        if self.sliding and self.norm == "group":
            problem = "sliding=True with norm='group' would change the output with statistics per patch"
            raise ValueError(f"{problem}; use norm='batch' or 'none'")

    def body(self, x: Float[Array, "b h w channels"], ctx: ForwardContext) -> tuple[Float[Array, "b h w f"], int]:
        """Maps `[B, H, W, channels]` to `[B, H, W, width · 2^depth]`."""
        around = (self.patch // 2, (self.patch - 1) // 2)
        padded = jnp.pad(x, ((0, 0), around, around, (0, 0)), mode="reflect")
        if self.sliding and not ctx.train and not self.is_initializing():
            return self._patches_of_rows(padded), 1
        return self._features(padded, ctx.train, dense=True), 1

    def _features(self, x: Array, train: bool, *, dense: bool) -> Array:
        """Maps `[N, P, P, channels]` to `[N, 1, 1, F]`, or, if `dense`, images to the features of all patches."""
        dilation = 1
        for level in range(self.depth):
            x = self.block(ValidBlock, self.width * 2**level, dilation=dilation, name=f"level{level}")(x, train)
            x = max_pool_2x2_dense(x, dilation) if dense else max_pool_2x2(x)
            dilation *= 2 if dense else 1
        left = (self.patch + 4) // 2**self.depth - 4
        fields = {"size": left, "convolutions": 1, "dilation": dilation, "name": "fully_connected"}
        return self.block(ValidBlock, self.width * 2**self.depth, **fields)(x, train)

    def _patches_of_rows(self, padded: Array) -> Array:
        """Maps `[B, H + P - 1, W + P - 1, channels]` to `[B, H, W, F]`, one row of patches after another."""
        batch, height, width, channels = padded.shape
        height, width = height - self.patch + 1, width - self.patch + 1
        columns = jnp.arange(width)[:, None] + jnp.arange(self.patch)

        def row(network: PatchClassifier, nothing: None, first: Array, padded: Array) -> tuple[None, Array]:
            strip = jax.lax.dynamic_slice_in_dim(padded, first, self.patch, axis=1)
            patches = strip[:, :, columns].swapaxes(1, 2).reshape(batch * width, self.patch, self.patch, channels)
            return nothing, network._features(patches, False, dense=False).reshape(batch, width, -1)

        # Linen's scan, because its modules cannot be called inside `lax.map`.
        axes = {"in_axes": (0, nn.broadcast), "out_axes": 1}
        rows = nn.scan(row, variable_broadcast=("params", "batch_stats"), split_rngs={"params": False}, **axes)
        return rows(self, None, jnp.arange(height), padded)[1]
