"""Sum and mean over a mapped device axis, and the next example of the global batch.

Every reduction in segjax is per-device code: sum on the device, `psum` the sums, divide last. Without an axis name sum
and mean are the identity.
"""

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp


def psum(values: Any, axis_name: Hashable | None = None) -> Any:
    """Returns a pytree of arrays summed over the mapped axis `axis_name` (or a tuple of axes).

    >>> print(jax.vmap(lambda x: psum(x, "devices"), axis_name="devices")(jax.numpy.arange(4.0)))
    [6. 6. 6. 6.]
    """
    return values if axis_name is None else jax.lax.psum(values, axis_name)


def pmean(values: Any, axis_name: Hashable | None = None) -> Any:
    """Returns a pytree of arrays averaged over the mapped axis `axis_name` (or a tuple of axes).

    Use it for gradients: losses are global scalars, so the mean of the devices' gradients is the gradient under every
    mapping. A mean of local means would overweight devices with few valid pixels.

    >>> print(jax.vmap(lambda x: pmean(x, "devices"), axis_name="devices")(jax.numpy.arange(4.0)))
    [1.5 1.5 1.5 1.5]
    """
    return values if axis_name is None else jax.lax.pmean(values, axis_name)


def next_example(values: Any, axis_name: Hashable | None = None) -> Any:
    """Returns a pytree of arrays `[b, …]` with the next example of the global batch for each; the first for the last.

    The global batch lies over the devices of `axis_name` in their order. Each device sends one example.

    >>> print(next_example(jnp.arange(4)))
    [1 2 3 0]
    """

    def shift(x: jax.Array) -> jax.Array:
        first = x[:1]
        if axis_name is not None:
            size = jax.lax.axis_size(axis_name)
            first = jax.lax.ppermute(first, axis_name, [((i + 1) % size, i) for i in range(size)])
        return jnp.concatenate([x[1:], first])

    return jax.tree.map(shift, values)
