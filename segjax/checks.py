"""What losses and metrics ask of their arguments: one place for the question and for the words of the error.

The annotations say the same, but only a program that installs jaxtyping's import hook has them checked.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def floating(name: str, value: Any) -> jax.Array:
    """`value` as a floating array of at least float32 (float64 stays), or a TypeError that names it."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point; got {array.dtype} of shape {array.shape}")
    return array.astype(jnp.float32) if array.dtype.itemsize < 4 else array


def integers(name: str, value: Any) -> jax.Array:
    """`value` as an integer array of at least int32, or a TypeError that names it."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers; got {array.dtype} of shape {array.shape}")
    # Narrow and unsigned types cannot hold the -1 and the num_classes that labels are compared with.
    return array.astype(jnp.int64 if array.dtype.itemsize == 8 else jnp.int32)


def same_shape(name: str, shape: Sequence[int], expected_name: str, expected: Sequence[int]) -> None:
    """A ValueError that names both where the two shapes differ."""
    if tuple(shape) != tuple(expected):
        raise ValueError(f"{name} must have the shape of {expected_name}, {tuple(expected)}; got {tuple(shape)}")


def spread(name: str, value: Any, shape: Sequence[int]) -> jax.Array:
    """`value` broadcast to `shape` by NumPy's rule (axes align from the last), or a ValueError that names it."""
    array = jnp.asarray(value)
    fits = array.ndim <= len(shape) and all(
        have in (1, want) for have, want in zip(reversed(array.shape), reversed(tuple(shape)), strict=False)
    )
    if not fits:
        raise ValueError(f"{name} must have shape {tuple(shape)} or one that broadcasts to it; got {array.shape}")
    return jnp.broadcast_to(array, shape)


def mask(name: str, value: Any, shape: Sequence[int]) -> jax.Array:
    """`value` as a boolean array spread to `shape`, or an error that names it."""
    array = jnp.asarray(value)
    if array.dtype != jnp.bool_:
        raise TypeError(f"{name} must be boolean; got {array.dtype} of shape {array.shape}")
    return spread(name, array, shape)


def per_class(name: str, value: Any, num_classes: int, dtype: Any, scalar_hint: str = "") -> jax.Array:
    """`value` as a `[num_classes]` array of `dtype`, or a ValueError that names it."""
    array = jnp.asarray(value)
    if array.shape != (num_classes,):
        hint = f". {scalar_hint}" if scalar_hint and array.ndim == 0 else ""
        raise ValueError(
            f"{name} must have one value per class, shape ({num_classes},); got {_shown(value, array)}{hint}"
        )
    return array.astype(dtype)


def scalar(name: str, value: Any, dtype: Any, low: float, high: float = float("inf")) -> jax.Array:
    """`value` as a scalar of `dtype` in [low, high], or a ValueError. A traced value is checked for its shape only."""
    array = jnp.asarray(value)
    if array.ndim != 0:
        raise ValueError(f"{name} must be a scalar; got {_shown(value, array)}")
    if not isinstance(value, jax.core.Tracer) and not low <= float(value) <= high:
        expected = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} must be {expected}; got {float(value):g}")
    return array.astype(dtype)


def finite(name: str, value: Any, dtype: Any, above: float = -float("inf")) -> jax.Array:
    """`value` as a finite scalar of `dtype`, more than `above`; else as `scalar`."""
    array = jnp.asarray(value)
    if array.ndim != 0:
        raise ValueError(f"{name} must be a scalar; got {_shown(value, array)}")
    if not isinstance(value, jax.core.Tracer) and not above < float(value) < float("inf"):
        expected = "finite" if above == -float("inf") else f"finite and more than {above:g}"
        raise ValueError(f"{name} must be {expected}; got {float(value):g}")
    return array.astype(dtype)


def choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """A ValueError that lists the choices where `value` is none of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def host(name: str, value: Any) -> np.ndarray:
    """`value` as a NumPy array, or a TypeError where it is traced and so has no value yet."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} must be known on the host; got a traced array of shape {value.shape}: call outside jit"
        )
    return np.asarray(value)


def _shown(value: Any, array: jax.Array) -> str:
    if array.ndim == 0 and not isinstance(value, jax.core.Tracer):
        return f"the scalar {np.asarray(value)}"
    return f"shape {array.shape}"
