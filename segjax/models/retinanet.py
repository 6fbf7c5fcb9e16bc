"""RetinaNet (Lin et al. 2017, arXiv 1708.02002): a ResNet or U-Net encoder, a feature pyramid, and two shared heads."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from segjax import checks
from segjax.models.encoders import ENCODERS, encoder_of
from segjax.models.layers import Block, Conv, ConvBlock, Layer, Norm, fan_in_normal, max_pool_2x2, pad_to_multiple
from segjax.models.network import check_images
from segjax.models.upsampling import upsample_nearest_2x2

# Variance times fan-in of the heads' initial kernels: the paper's σ = 0.01 at its 256 channels.
_HEAD_GAIN = 0.01**2 * 9 * 256
_ENCODER_STRIDE = 32


class DetectorOutput(NamedTuple):
    """Output of a detector for a batch of images (a pytree), one row per anchor, at least float32.

    Attributes:
        logits: one independent log odds per class; the background has no column.
        offsets: offset of the box from its anchor, the input of `segjax.boxes.decode`.
    """

    logits: Float[Array, "b anchors c"]
    offsets: Float[Array, "b anchors 4"]


class ContractingPath(Block):
    """Encoder of a U-Net (Ronneberger et al. 2015, arXiv 1505.04597): a `ConvBlock` per level, 2×2 pooling in between.

    Attributes: those of `Block`, and
        width: number of channels of level 0; level l has 2^l times as many.
        depth: number of poolings.
    """

    width: int
    depth: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> list[Float[Array, "_ _ _ _"]]:
        """Maps `[B, H, W, C]` to `[B, H/2^l, W/2^l, width · 2^l]` per level l from 0; H, W are multiples of 2^depth."""
        common = {"padding": "zeros", "norm": self.norm, "axis_name": self.axis_name, **self.dtypes}
        features = []
        for level in range(self.depth + 1):
            x = max_pool_2x2(x) if level else x
            x = ConvBlock(self.width * 2**level, name=f"down{level}", **common)(x, train)
            features.append(x)
        return features


class FeaturePyramid(Layer):
    r"""Feature pyramid network (Lin et al. 2016, arXiv 1612.03144) with RetinaNet's coarser levels, up to two.

    .. math:: M_n = A_n C_n, \quad M_l = A_l C_l + \text{up}(M_{l + 1}), \quad P_l = B_l M_l, \quad
        P_{n + 1} = D_{n + 1} P_n, \quad P_{n + 2} = D_{n + 2} \max(0, P_{n + 1})

    n is the coarsest level of the encoder's features C: 5 for a ResNet. A U-Net has features at all levels, so it adds
    no coarser ones. A are 1×1 convolutions, B 3×3 convolutions and D 3×3 convolutions with stride 2, all with bias and
    without norm; up doubles both sides. P_6 is computed from P_5 as in torchvision's `retinanet_resnet50_fpn`; the
    paper computes it from C_5.

    Attributes: those of `Layer`, and
        levels: consecutive levels l; level l has stride 2^l.
        channels: number of channels of every level.
    """

    levels: Sequence[int]
    channels: int

    @nn.compact
    def __call__(self, features: Sequence[Float[Array, "_ _ _ _"]]) -> list[Float[Array, "_ _ _ _"]]:
        """Maps C of the first levels, `[B, H/2^l, W/2^l, F]`, to `[B, H/2^l, W/2^l, channels]` for every level."""

        def conv(name: str, size: int, stride: int = 1) -> nn.Conv:
            return Conv(self.channels, size, stride, gain=1.0, use_bias=True, name=name, **self.dtypes)

        maps, merged = [], None
        for level, x in reversed(list(zip(self.levels, features, strict=False))):
            x = conv(f"inner{level}", 1)(x)
            merged = x if merged is None else x + upsample_nearest_2x2(merged)
            maps.insert(0, conv(f"layer{level}", 3)(merged))
        for i, level in enumerate(self.levels[len(features) :]):
            maps.append(conv(f"p{level}", 3, 2)(nn.relu(maps[-1]) if i else maps[-1]))
        return maps


class DetectionHead(Layer):
    """3×3 convolutions with ReLU, then one that maps to `outputs` values per anchor and computes in at least float32.

    All levels share its parameters. The initial kernels have the paper's σ = 0.01 at 256 channels, and the
    same gain for any other number of channels.

    Attributes: those of `Layer`, and
        channels: number of channels between the convolutions.
        per_cell: K, number of anchors per cell of a level.
        outputs: number of outputs per anchor.
        convs: number of convolutions before the last.
        norm: norm before each ReLU, "none" | "group".
        bias: initial bias of each output; None: 0.
        kernel_stddev: standard deviation of the last convolution's initial kernel; None: as the others.
    """

    channels: int
    per_cell: int
    outputs: int
    convs: int = 4
    norm: str = "none"
    bias: Sequence[float] | None = None
    kernel_stddev: float | None = None

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "_ _ _ _"]]) -> list[Float[Array, "_ _ _ _"]]:
        """Maps `[B, h, w, F]` per level to `[B, h, w, K · outputs]` per level."""
        fields, indices = {"use_bias": self.norm == "none", "gain": _HEAD_GAIN, **self.dtypes}, range(1, self.convs + 1)
        convs = [Conv(self.channels, name=f"conv{i}", **fields) for i in indices]
        norms = [Norm(kind=self.norm, name=f"norm{i}", **self.dtypes) for i in indices]
        bias = np.tile(np.zeros(self.outputs) if self.bias is None else np.asarray(self.bias), self.per_cell)
        initial = fan_in_normal(_HEAD_GAIN)
        last = Conv(
            self.per_cell * self.outputs,
            use_bias=True,
            kernel_init=initial if self.kernel_stddev is None else nn.initializers.normal(self.kernel_stddev),
            bias_init=lambda key, shape, dtype: jnp.asarray(bias, dtype),
            dtype=jnp.promote_types(self.dtype, jnp.float32),
            param_dtype=self.param_dtype,
            name="linear",
        )
        outputs = []
        for x in maps:
            for conv, norm in zip(convs, norms, strict=True):
                x = nn.relu(norm(conv(x), False))
            outputs.append(last(x))
        return outputs


class RetinaNet(Block):
    r"""RetinaNet (arXiv 1708.02002): class logits and box offsets for every anchor, from a feature pyramid.

    The classification head starts at `head_bias`, `losses.prior_bias(π)` in the paper, so that every anchor's
    probability is π and the many anchors of the background do not dominate the first steps. The regression head
    predicts one box per anchor for all classes together. `norm` is that of the encoder; the pyramid has none, and the
    heads have `head_norm`.

    The encoder "unet" is a small one for small images: it sees them at full resolution and learns faster from scratch,
    as do heads with few convolutions and a norm. Any input size works, including one pixel: images are padded with 0
    (the mean after normalization) to a multiple of 32, or, with "unet", of the coarsest stride. Level l is then cropped
    to ⌈H / 2^l⌉ × ⌈W / 2^l⌉ cells. The rows are those of `segjax.boxes.anchors`.

    With depth 50, width 64 and 91 classes, it has 34.07 M parameters. torchvision's `retinanet_resnet50_fpn` has
    34.01 M, because its batch-norm scales and biases are frozen buffers.

    Attributes: those of `Block`, and
        num_classes: C, without the background.
        encoder: "resnet": a `ResNet` | "unet": a `ContractingPath` as deep as the last level.
        encoder_depth: that of the `ResNet`.
        width: number of channels of the encoder's first level.
        levels: consecutive pyramid levels. With a ResNet the first level is in [2, 5] and the last in [5, 7]; with
            "unet" all are in [1, 7]. Level l has stride 2^l. Levels 1 and 2 are for objects of a few pixels.
        channels: number of channels of pyramid and heads.
        per_cell: K, number of anchors per cell of a level: scales times ratios.
        head_convs: number of convolutions of each head before the last.
        head_norm: norm of the heads' convolutions, "none", the paper's | "group".
        remat: recompute the blocks of the ResNet and the heads in the backward pass.
        head_bias: initial bias of the class logits, one value per class; None: 0.
        head_kernel_stddev: standard deviation of the classification head's last initial kernel; None: the paper's 0.01
            at 256 channels, scaled by fan-in.

    >>> import jax
    >>> model, images = RetinaNet(1, encoder_depth=18, width=4, channels=8), jnp.zeros((2, 96, 130, 3))
    >>> output = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False)[0])
    >>> cells = [-(-96 // stride) * -(-130 // stride) for stride in (8, 16, 32, 64, 128)]
    >>> output.logits.shape, output.offsets.shape, 9 * sum(cells)
    ((2, 2529, 1), (2, 2529, 4), 2529)
    """

    num_classes: int
    encoder: str = "resnet"
    encoder_depth: int = 50
    width: int = 64
    levels: Sequence[int] = (3, 4, 5, 6, 7)
    channels: int = 256
    per_cell: int = 9
    head_convs: int = 4
    head_norm: str = "none"
    remat: bool = False
    head_bias: Sequence[float] | None = None
    head_kernel_stddev: float | None = None

    @nn.compact
    def __call__(self, images: Shaped[Array, "..."], *, train: bool) -> DetectorOutput:
        """Maps images `[B, H, W, channels]`, floating point and normalized, to one row per anchor.

        `train` selects batch statistics, and updates the running ones. It raises a TypeError or ValueError if the
        images or a field are not valid.
        """
        check_images(images)
        self.check_fields()
        _, height, width, _ = images.shape
        first, last = self.levels[0], self.levels[-1]
        if self.encoder == "unet":
            common = {"norm": self.norm, "axis_name": self.axis_name, **self.dtypes}
            encoder = ContractingPath(self.width, last, name="encoder", **common)
            features = encoder(pad_to_multiple(images, 2**last, mode="constant"), train)[first:]
        else:
            encoder = encoder_of(self, _ENCODER_STRIDE)
            # Its features begin at stride 2.
            features = encoder(pad_to_multiple(images, _ENCODER_STRIDE, mode="constant"), train)[first - 1 :]
        maps = FeaturePyramid(self.levels, self.channels, name="pyramid", **self.dtypes)(features)

        def rows(maps: Sequence[Array], outputs: int) -> Float[Array, "b anchors n"]:
            inside = [x[:, : -(-height // 2**n), : -(-width // 2**n)] for n, x in zip(self.levels, maps, strict=True)]
            return jnp.concatenate([x.reshape(x.shape[0], -1, outputs) for x in inside], axis=1)

        head = nn.remat(DetectionHead) if self.remat else DetectionHead
        common = {"channels": self.channels, "per_cell": self.per_cell, **self.dtypes}
        common |= {"convs": self.head_convs, "norm": self.head_norm}
        classes = {"bias": self.head_bias, "kernel_stddev": self.head_kernel_stddev}
        logits = head(outputs=self.num_classes, name="classification", **classes, **common)(maps)
        offsets = head(outputs=4, name="regression", **common)(maps)
        return DetectorOutput(rows(logits, self.num_classes), rows(offsets, 4))

    def check_fields(self) -> None:
        """Raises a ValueError if a field is out of range."""
        checks.choice("encoder", self.encoder, (*ENCODERS, "unet"))
        checks.choice("head_norm", self.head_norm, ("none", "group"))
        levels, firsts, lasts, example = tuple(self.levels), (2, 3, 4, 5), (5, 6, 7), (3, 4, 5, 6, 7)
        if self.encoder == "unet":
            firsts, lasts, example = range(1, 8), range(1, 8), (1, 2, 3)
        if levels not in [tuple(range(first, last + 1)) for first in firsts for last in lasts if first <= last]:
            ends = f"the first level in [{firsts[0]}, {firsts[-1]}] and the last in [{lasts[0]}, {lasts[-1]}]"
            if self.encoder == "unet":
                ends = "all levels in [1, 7]"
            got = f"got {levels}: use for example {example}"
            raise ValueError(f"levels must be consecutive, with encoder {self.encoder!r} {ends}; {got}")
        checks.scalar("head_convs", self.head_convs, jnp.int32, 0.0)
        for name in ("num_classes", "channels", "per_cell"):
            checks.scalar(name, getattr(self, name), jnp.int32, 1.0)
        if self.head_bias is not None and len(self.head_bias) != self.num_classes:
            raise ValueError(f"head_bias must have one value per class, {self.num_classes}; got {self.head_bias}")
