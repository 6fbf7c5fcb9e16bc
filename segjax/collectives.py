"""Sums and means over a device axis that also run where there is no such axis.

Every reduction in segjax is written once, as per-device code: sum what this device holds, `psum` it, divide last. With
`axis_name=None` the same code is the single-device program (or the global view of a sharded `jit`).
"""

from collections.abc import Hashable
from typing import Any

import jax


def psum(values: Any, axis_name: Hashable | None = None) -> Any:
    """Sum over the devices of a mapped axis; the identity where there is none.

    Args:
        values: an array or a pytree of arrays.
        axis_name: name (or tuple of names) of the axis given to `jax.pmap`, `jax.shard_map` or `jax.vmap`, or None.

    Returns:
        `values` summed over the axis, the same on every device; `values` itself if `axis_name` is None.

    >>> import jax, jax.numpy as jnp
    >>> psum(3.0)
    3.0
    >>> jax.vmap(lambda x: psum(x, "devices"), axis_name="devices")(jnp.arange(4.0)).tolist()
    [6.0, 6.0, 6.0, 6.0]
    """
    return values if axis_name is None else jax.lax.psum(values, axis_name)


def pmean(values: Any, axis_name: Hashable | None = None) -> Any:
    """Mean over the devices of a mapped axis; the identity where there is none.

    For gradients: losses in segjax are *global* scalars, so the mean of the devices' gradients is the gradient under
    every mapping. Never for a loss of local means: devices with fewer valid pixels would count for too much.

    Args:
        values: an array or a pytree of arrays.
        axis_name: as in `psum`.

    Returns:
        `values` averaged over the axis, the same on every device; `values` itself if `axis_name` is None.

    >>> import jax, jax.numpy as jnp
    >>> jax.vmap(lambda x: pmean(x, "devices"), axis_name="devices")(jnp.arange(4.0)).tolist()
    [1.5, 1.5, 1.5, 1.5]
    """
    return values if axis_name is None else jax.lax.pmean(values, axis_name)
