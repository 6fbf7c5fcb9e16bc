"""Batch norm (Ioffe and Szegedy 2015, arXiv 1502.03167), group norm, or nothing."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from segjax import collectives
from segjax.models.layout import Layout

EPSILON, MOMENTUM = 1e-5, 0.9


class Norm(nn.Module):
    """Batch norm, group norm or nothing, with torch's constants: epsilon 1e-5, running statistics decay by 0.9 a step.

    Attributes:
        kind: "batch" | "group" | "none".
        axis_name: mapped axis over which batch norm's statistics are averaged; None under plain `jit`.
        groups: of group norm; the greatest common divisor with the channels is taken.
        layout: of input and output.
        dtype: of the result; statistics are float32 at least.
        param_dtype: of the parameters.
    """

    kind: str = "batch"
    axis_name: str | None = None
    groups: int = 8
    layout: Layout = Layout()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """Batch statistics, and an update of "batch_stats", where `train`; running statistics otherwise."""
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.kind == "batch":
            return BatchNorm(self.axis_name, self.layout, name="batch", **kinds)(x, train)
        if self.kind == "group":
            x = self.layout.flat(x)
            groups = math.gcd(self.groups, x.shape[-1])
            norm = nn.GroupNorm(num_groups=groups, epsilon=EPSILON, use_fast_variance=False, name="group", **kinds)
            return self.layout.lay(norm(x))
        if self.kind == "none":
            return x
        raise ValueError(f"norm must be 'batch', 'group' or 'none'; got {self.kind!r}")


class BatchNorm(nn.Module):
    """`nn.BatchNorm(momentum=0.9, use_fast_variance=False)`, the same names and numbers, whatever the layout.

    The running variance is the biased one (1/N), as always in Linen; torch keeps N/(N-1) of it. The variance is the
    mean of squared distances and not E[x²] - E[x]², which cancels for channels far from 0; the price is about 3 % of a
    CPU step.

    Attributes:
        axis_name: mapped axis over which the statistics are averaged; None under plain `jit`.
        layout: of input and output.
        dtype: of the result; statistics are float32 at least.
        param_dtype: of the parameters.
    """

    axis_name: str | None = None
    layout: Layout = Layout()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """`[B, H, W/k, kC]`, of C channels."""
        channels = x.shape[-1] // self.layout.columns
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            mean = self._mean(x)
            var = self._mean(lax.square(x - self._wide(mean)))
            if not self.is_initializing():
                running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
                running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * var
        else:
            mean, var = running_mean.value, running_var.value
        y = (x - self._wide(mean)) * self._wide(lax.rsqrt(var + EPSILON) * scale) + self._wide(bias)
        return y.astype(self.dtype)

    def _mean(self, x: Float[Array, "b h w c"]) -> Float[Array, "channels"]:
        mean = x.mean((0, 1, 2)).reshape(self.layout.columns, -1).mean(0)
        return collectives.pmean(mean, None if self.is_initializing() else self.axis_name)

    def _wide(self, of_channel: Float[Array, "channels"]) -> Float[Array, "c"]:
        return jnp.tile(of_channel, self.layout.columns)
