"""Sum and mean over a mapped device axis; without an axis name both are the identity.

Every reduction in segjax is per-device code: sum on the device, `psum` the sums, divide last.
"""

from collections.abc import Hashable
from typing import Any

import jax


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
