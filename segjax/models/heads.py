"""From the penultimate features to logits, and what every network returns."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Segmentation(NamedTuple):
    """What a network says of a batch of images; a pytree.

    Attributes:
        logits: `[B, H, W, C]`, float32 at least.
        mc_logits: `[K, B, H, W, C]`, one set of logits a dropout mask, or None.
        logit_variance: `[B, H, W, C]`, the variance of the logits under dropout in closed form, or None.
        features: `[B, H, W, F]`, what the linear head sees, in the network's compute dtype.
    """

    logits: Float[Array, "b h w c"]
    mc_logits: Float[Array, "k b h w c"] | None
    logit_variance: Float[Array, "b h w c"] | None
    features: Float[Array, "b h w f"]


class LinearHead(nn.Module):
    """A 1×1 convolution to logits, computed in float32 at least whatever the features' dtype.

    With `bias_init` = `losses.prior_bias(π)` and a small `kernel_stddev` the network starts out predicting the prior
    (focal loss paper, arXiv 1708.02002, section 4.1, which uses 0.01). No norm may follow: it would cancel the prior.

    Attributes:
        num_classes: C.
        bias_init: initial bias, one value a class; None: 0.
        kernel_stddev: standard deviation of the initial kernel, normal; None: sqrt(1 / fan-in) (LeCun).
        param_dtype: of the parameters.
    """

    num_classes: int
    bias_init: Sequence[float] | None = None
    kernel_stddev: float | None = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "b h w f"]) -> Float[Array, "b h w c"]:
        """`[B, H, W, F]` to logits `[B, H, W, num_classes]`.

        Raises:
            ValueError: `bias_init` has not one value a class.
        """
        bias = np.zeros(self.num_classes) if self.bias_init is None else np.asarray(self.bias_init)
        if bias.shape != (self.num_classes,):
            raise ValueError(f"the head's bias needs one value a class, {self.num_classes}; got {self.bias_init}")
        init = nn.initializers
        return nn.Dense(
            self.num_classes,
            kernel_init=init.lecun_normal() if self.kernel_stddev is None else init.normal(self.kernel_stddev),
            bias_init=lambda key, shape, dtype: jnp.asarray(bias, dtype),
            dtype=jnp.promote_types(features.dtype, jnp.float32),
            param_dtype=self.param_dtype,
            name="linear",
        )(features)
