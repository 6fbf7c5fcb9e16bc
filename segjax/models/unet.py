"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from segjax import checks
from segjax.models.layers import ConvBlock, StridedConv3x3
from segjax.models.layout import Layout, max_pool_2x2_packed
from segjax.models.network import Network, Pass
from segjax.models.pooling import max_pool_2x2, max_pool_2x2_positions
from segjax.models.upsampling import UPSAMPLINGS

DOWNSAMPLINGS = ("max", "stride")


class UNet(Network):
    r"""U-Net with padded convolutions: `depth` poolings and as many upsamplings, width · 2^level channels.

    Width 64, depth 4, 3 channels, batch norm: 31.0 M parameters; width 16: 1.94 M. With padding="reflect" images are
    padded to at least 2 · 2^depth pixels, so that the lowest level has two to reflect.

    Attributes: those of `Network`, and
        width: channels of the first level.
        depth: number of 2×2 poolings.
        padding: of the convolutions, "reflect" | "zeros".
        downsample: "max": 2×2 max pooling | "stride": 3×3 convolution with stride 2, norm, ReLU, of as many channels:
            at width 64 it adds 3.14 M parameters.
        upsample: "transpose": 2×2 transposed convolution; "transpose3", "transpose4": 3×3 and 4×4, whose windows
            overlap | "pixel_shuffle": 1×1 convolution, ReLU, depth to space | or a 1×1 convolution to the level's
            channels and then "nearest", "bilinear", "bed_of_nails" (zeros between) or "max_unpool" (to where the maxima
            lay in the encoder's pooling of that level; needs downsample="max").
        pack: columns that the first level's arrays have side by side in their channels, a power of two, at most
            2^depth; half as many a level down. The parameters and the numbers are the same; a TPU, which keeps channels
            in lanes of 128, moves fewer bytes with 128 / width, and every device multiplies more. Not for CPUs.
        strips: of rows, into which each image is cut, where its padded height is a multiple of strips · 2^depth, and
            at least twice that: they lie in the batch like images, from end to end of the network. The parameters and
            the numbers are the same; with a few images a chip a TPU moves a third of the bytes with 16 / images. Not
            for CPUs.

    `deep_dropout` = n is dropout after the n deepest blocks of the encoder (the lowest level first) and the n deepest
    of the decoder, as Bayesian SegNet's central units have it; 0 to depth.

    References:
        Ronneberger et al., arXiv 1505.04597. Pixel shuffle: Shi et al., arXiv 1609.05158; Aitken et al., arXiv
        1707.02937.

    >>> import jax
    >>> model, images = UNet(num_classes=5, width=4, depth=2), jnp.zeros((1, 13, 18, 3))
    >>> variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))
    >>> jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images).logits.shape
    (1, 13, 18, 5)
    >>> unsure, rngs = model.clone(dropout="sampled", heads=7, mask="channel"), {"dropout": jax.random.key(1)}
    >>> jax.eval_shape(lambda v, x: unsure.apply(v, x, train=False, rngs=rngs), variables, images).mc_logits.shape
    (7, 1, 13, 18, 5)
    """

    num_classes: int
    width: int = 64
    depth: int = 4
    padding: str = "reflect"
    downsample: str = "max"
    upsample: str = "transpose"
    pack: int = 1
    strips: int = 1

    @property
    def multiple(self) -> int:
        """The stride of the lowest level."""
        return 2**self.depth

    @property
    def minimum(self) -> int:
        """One pixel at the lowest level, or two to reflect."""
        return 2 ** (self.depth + (self.padding == "reflect"))

    @property
    def deep_places(self) -> int:
        """Blocks with a twin on the other side."""
        return self.depth

    def check(self) -> None:
        """Raises a ValueError where a field of the U-Net makes no sense, or two of them do not go together."""
        checks.choice("downsample", self.downsample, DOWNSAMPLINGS)
        checks.choice("upsample", self.upsample, tuple(UPSAMPLINGS))
        if self.upsample == "max_unpool" and self.downsample != "max":
            raise ValueError(
                "upsample='max_unpool' puts values where max pooling found them: it needs downsample='max'; "
                f"got {self.downsample!r}"
            )
        if self.strips < 1:
            raise ValueError(f"strips must be at least 1; got {self.strips}")
        if self.pack not in [2**level for level in range(self.depth + 1)]:
            raise ValueError(f"pack must be a power of two, at most 2^depth = {2**self.depth}; got {self.pack}")

    def body(self, x: Float[Array, "b h w channels"], go: Pass) -> tuple[Float[Array, "b h w f"], int]:
        """`[B, H, W, channels]`, a multiple of `multiple`, to `[B, H, W, width]`."""

        strips = self._strips(x.shape[1])

        def layout(level: int) -> Layout:
            return Layout(max(1, self.pack >> level), strips)

        def stage(x: Array | list[Array], side: str, level: int) -> Array:
            fields = {"padding": self.padding, "layout": layout(level), "name": f"{side}{level}"}
            x = self.block(ConvBlock, self.width * 2**level, **fields)(x, go.train)
            deep = level - (side == "down") >= self.depth - self.deep_dropout
            if not deep:
                return x
            # A mask follows the pixels' places, whichever way they are kept.
            return layout(level).lay(go.drop(layout(level).flat(x), 1 + 2 * level + (side == "up")))

        def down(x: Array, level: int) -> tuple[Array, Array | None]:
            if self.downsample == "max" and self.upsample != "max_unpool":
                columns = layout(level).columns
                return (max_pool_2x2_packed(x, columns) if columns > 1 else max_pool_2x2(x)), None
            x = layout(level).flat(x)
            if self.downsample == "max":
                x, places = max_pool_2x2_positions(x)
            else:
                name = f"down{level}_{self.downsample}"
                stride = self.block(StridedConv3x3, x.shape[-1], padding=self.padding, name=name)
                x, places = stride(x, go.train), None
            return layout(level + 1).lay(x), places

        def up(x: Array, level: int) -> Array:
            kind, fields = UPSAMPLINGS[self.upsample], {"name": f"up{level}_{self.upsample}", **self.kinds}
            features = self.width * 2**level
            if self.upsample == "transpose":
                columns = layout(level + 1).columns if layout(level).columns > 1 else None
                return kind(features, columns=columns, **fields)(x)
            x, upsample = layout(level + 1).flat(x), kind(features, **fields)
            x = upsample(x, positions[level]) if self.upsample == "max_unpool" else upsample(x)
            return layout(level).lay(x)

        x, skips, positions = layout(0).lay(x), [], []
        for level in range(self.depth):
            skips.append(stage(x, "down", level))
            x, places = down(skips[-1], level)
            positions.append(places)
        x = stage(x, "down", self.depth)
        for level in reversed(range(self.depth)):
            both = [skips[level], up(x, level)]
            # Where bytes are what counts, neither the concatenation nor its gradient is written.
            x = stage(both if layout(0) != Layout() else jnp.concatenate(both, axis=-1), "up", level)
        return layout(0).flat(x), 1

    def _strips(self, height: int) -> int:
        """1 where the height is not known, or cannot be cut into strips of two rows or more at the lowest level."""
        lowest = self.strips * 2**self.depth
        return self.strips if isinstance(height, int) and height % lowest == 0 and height >= 2 * lowest else 1
