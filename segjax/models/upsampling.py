"""Ways to make a map of features larger."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float


class ConvTransposeBilinear(nn.Module):
    r"""Upsampling by `stride`, each channel with its own kernel that starts as bilinear interpolation and is learned.

    .. math:: y_{s i + t - s/2} \mathrel{+}= x_i \, k_t, \quad 0 \le t < 2 s, \qquad
        k_t = 1 - \left| t + \tfrac12 - s \right| / s \text{ at the start}

    in rows and columns: PyTorch's `ConvTranspose2d(C, C, 2 * s, s, padding=s // 2, groups=C, bias=False)`, the layer of
    FCN (Long et al., arXiv 1411.4038), away from the edges. There x goes on as its outermost pixels and not as zeros:
    a layer as new is `upsample_bilinear` everywhere, where zeros would pull the outermost s/2 logits towards 0. (FCN's
    authors pad the image by 100 pixels instead and crop them off.)

    Computed as what it is: each of the (H+1)·(W+1) blocks of s×s outputs between four pixels is their sum, weighted by
    a quarter of the kernel each. XLA's convolution would multiply the zeros between the pixels too.

    Attributes:
        stride: s, even.
        dtype: of the computation.
        param_dtype: of the parameters.

    >>> x = jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1)
    >>> print(ConvTransposeBilinear(2).init_with_output(jax.random.key(0), x)[0][0, 0, :, 0])
    [0. 1. 3. 4.]
    """

    stride: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
        """`[B, H, W, C]` to `[B, s·H, s·W, C]`; the kernel is `[2s, 2s, 1, C]`, as of a depthwise convolution.

        Raises:
            ValueError: the stride is odd or less than 2.
        """
        s = self.stride
        if s < 2 or s % 2:
            raise ValueError(f"stride of ConvTransposeBilinear must be even and at least 2; got {s}")
        b, h, w, c = x.shape
        line = 1 - np.abs(np.arange(2 * s) + 0.5 - s) / s

        def bilinear(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jnp.broadcast_to(jnp.asarray(line[:, None] * line, dtype)[:, :, None, None], shape)

        kernel = self.param("kernel", bilinear, (2 * s, 2 * s, 1, c), self.param_dtype)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        around = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        # Of a pixel above a block, the lower half of the kernel falls into the block; of one below, the upper half.
        y = sum(
            around[:, 1 - lower : h + 2 - lower, None, 1 - right : w + 2 - right, None]
            * kernel[lower * s : (lower + 1) * s, None, right * s : (right + 1) * s, 0]
            for lower in (0, 1)
            for right in (0, 1)
        )
        half = s // 2
        return y.reshape(b, (h + 1) * s, (w + 1) * s, c)[:, half:-half, half:-half]
