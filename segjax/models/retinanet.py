"""RetinaNet (Lin et al. 2017, arXiv 1708.02002): a ResNet, a feature pyramid, and two heads shared by its levels."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from segjax import checks
from segjax.models.layers import Block, Conv, Layer, fan_in_normal, pad_to_multiple
from segjax.models.network import check_images
from segjax.models.resnet import encoder_of
from segjax.models.upsampling import upsample_nearest_2x2

# Variance times fan-in of the heads' initial kernels: the paper's σ = 0.01 at its 256 channels.
_HEAD_GAIN = 0.01**2 * 9 * 256
_ENCODER_STRIDE = 32


class DetectorOutput(NamedTuple):
    """Output of a detector for a batch of images (a pytree), one row per anchor, at least float32.

    Attributes:
        logits: log odds of each class; the classes are independent, and there is none for the background.
        offsets: offset of the box from its anchor, the input of `segjax.boxes.decode`.
    """

    logits: Float[Array, "b anchors c"]
    offsets: Float[Array, "b anchors 4"]


class FeaturePyramid(Layer):
    r"""Feature pyramid network (Lin et al. 2016, arXiv 1612.03144) with RetinaNet's two coarser levels.

    .. math:: M_5 = A_5 C_5, \quad M_l = A_l C_l + \text{up}(M_{l + 1}), \quad P_l = B_l M_l, \quad
        P_6 = D_6 P_5, \quad P_7 = D_7 \max(0, P_6)

    A are 1×1 convolutions, B 3×3 convolutions and D 3×3 convolutions with stride 2, all with bias and without norm;
    up doubles both sides. P_6 is computed from P_5 as in torchvision's `retinanet_resnet50_fpn`; the paper computes it
    from C_5.

    Attributes: those of `Layer`, and
        levels: consecutive levels l, the first 2 to 5 and the last 5 to 7; level l has stride 2^l.
        channels: number of channels of every level.
    """

    levels: Sequence[int]
    channels: int

    @nn.compact
    def __call__(self, features: Sequence[Float[Array, "_ _ _ _"]]) -> list[Float[Array, "_ _ _ _"]]:
        """Maps C_l to C_5, l the first level, `[B, H/2^l, W/2^l, F]`, to `[B, H/2^l, W/2^l, channels]` per level."""

        def conv(name: str, size: int, stride: int = 1) -> nn.Conv:
            return Conv(self.channels, size, stride, gain=1.0, use_bias=True, name=name, **self.dtypes)

        maps, merged = [], None
        for level, x in reversed(list(zip(range(self.levels[0], 6), features, strict=True))):
            x = conv(f"inner{level}", 1)(x)
            merged = x if merged is None else x + upsample_nearest_2x2(merged)
            maps.insert(0, conv(f"layer{level}", 3)(merged))
        for level in range(6, self.levels[-1] + 1):
            x = maps[-1] if level == 6 else nn.relu(maps[-1])
            maps.append(conv(f"p{level}", 3, 2)(x))
        return maps


class DetectionHead(Layer):
    """Four 3×3 convolutions with ReLU and a last one to `outputs` numbers per anchor, in at least float32.

    All levels share its parameters. The initial kernels have the paper's σ = 0.01 at 256 channels, and the same gain at
    any other number of them.

    Attributes: those of `Layer`, and
        channels: number of channels between the convolutions.
        per_cell: K, number of anchors per cell of a level.
        outputs: number of outputs per anchor.
        bias: initial bias of each output; None: 0.
        kernel_stddev: standard deviation of the last convolution's initial kernel; None: as the others.
    """

    channels: int
    per_cell: int
    outputs: int
    bias: Sequence[float] | None = None
    kernel_stddev: float | None = None

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "_ _ _ _"]]) -> list[Float[Array, "_ _ _ _"]]:
        """Maps `[B, h, w, F]` per level to `[B, h, w, K · outputs]` per level."""
        fields = {"use_bias": True, "gain": _HEAD_GAIN, **self.dtypes}
        convs = [Conv(self.channels, name=f"conv{i}", **fields) for i in (1, 2, 3, 4)]
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
        found = []
        for x in maps:
            for conv in convs:
                x = nn.relu(conv(x))
            found.append(last(x))
        return found


class RetinaNet(Block):
    r"""RetinaNet (arXiv 1708.02002): class logits and box offsets for every anchor, from a ResNet's feature pyramid.

    The classification head starts at `head_bias`, `losses.prior_bias(π)` in the paper, so that every anchor's
    probability is π and the many anchors of the background do not dominate the first steps. The regression head
    predicts one box per anchor for all classes together. Norms are those of the encoder; pyramid and heads have none.

    Any input size works, including one pixel: images are padded with 0, the mean, to a multiple of 32, and level l is
    cropped to ⌈H / 2^l⌉ × ⌈W / 2^l⌉ cells. The rows are those of `segjax.boxes.anchors`. Depth 50, width 64, 91
    classes: 34.07 M parameters, torchvision's 34.01 M of `retinanet_resnet50_fpn` and the scales and biases of batch
    normalization, which are frozen there.

    Attributes: those of `Block`, and
        num_classes: C, without the background.
        encoder_depth, width: those of the `ResNet`. Width 8 to 16 is a small backbone for small images.
        levels: consecutive levels of the pyramid, the first 2 to 5 and the last 5 to 7; level l has stride 2^l. Level 2
            is for objects of a few pixels.
        channels: number of channels of pyramid and heads.
        per_cell: K, number of anchors per cell of a level: scales times ratios.
        remat: recompute the blocks of the encoder and the heads in the backward pass.
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
    encoder_depth: int = 50
    width: int = 64
    levels: Sequence[int] = (3, 4, 5, 6, 7)
    channels: int = 256
    per_cell: int = 9
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
        encoder = encoder_of(self, depth=self.encoder_depth, width=self.width, output_stride=_ENCODER_STRIDE)
        features = encoder(pad_to_multiple(images, _ENCODER_STRIDE, mode="constant"), train)
        pyramid = FeaturePyramid(self.levels, self.channels, name="pyramid", **self.dtypes)
        maps = pyramid(features[self.levels[0] - 1 :])

        def rows(maps: Sequence[Array], outputs: int) -> Float[Array, "b anchors n"]:
            inside = [x[:, : -(-height // 2**n), : -(-width // 2**n)] for n, x in zip(self.levels, maps, strict=True)]
            return jnp.concatenate([x.reshape(x.shape[0], -1, outputs) for x in inside], axis=1)

        head = nn.remat(DetectionHead) if self.remat else DetectionHead
        common = {"channels": self.channels, "per_cell": self.per_cell, **self.dtypes}
        classes = {"bias": self.head_bias, "kernel_stddev": self.head_kernel_stddev}
        logits = head(outputs=self.num_classes, name="classification", **classes, **common)(maps)
        offsets = head(outputs=4, name="regression", **common)(maps)
        return DetectorOutput(rows(logits, self.num_classes), rows(offsets, 4))

    def check_fields(self) -> None:
        """Raises a ValueError if a field is out of range."""
        levels = tuple(self.levels)
        if levels not in [tuple(range(first, last + 1)) for first in (2, 3, 4, 5) for last in (5, 6, 7)]:
            valid = "consecutive, the first 2 to 5 and the last 5 to 7"
            raise ValueError(f"levels must be {valid}; got {levels}: use, for example, (3, 4, 5, 6, 7)")
        for name in ("num_classes", "channels", "per_cell"):
            checks.scalar(name, getattr(self, name), jnp.int32, 1.0)
        if self.head_bias is not None and len(self.head_bias) != self.num_classes:
            raise ValueError(f"head_bias must have one value per class, {self.num_classes}; got {self.head_bias}")
