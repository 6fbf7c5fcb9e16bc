"""What losses and metrics ask of their arguments: one place for the question and for the words of the error.

The annotations say the same, but only a program that installs jaxtyping's import hook has them checked.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def array(name: str, value: Any) -> jax.Array:
    """`value` as an array, or a TypeError that names it where it is none (None, text, a ragged list)."""
    try:
        given = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array or a number; got {value!r}") from error
    # Of a NumPy array under `vmap`, what is traced is NumPy's still, which JAX refuses under `jit` where it meets a
    # rule of differentiation of one's own. The copy makes it JAX's; compiled it is none.
    return jnp.copy(given) if isinstance(value, jax.core.Tracer) else given


def floating(name: str, value: Any) -> jax.Array:
    """`value` as a floating array of at least float32 (float64 stays), or a TypeError that names it."""
    given = floating_as_given(name, value)
    return given.astype(widened(given.dtype))


def floating_as_given(name: str, value: Any) -> jax.Array:
    """`value` as a floating array of its own dtype, or a TypeError that names it."""
    given = array(name, value)
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point; got {given.dtype} of shape {given.shape}")
    return given


def widened(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which a floating `dtype` is computed: float32 for narrower ones."""
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype


def integers(name: str, value: Any) -> jax.Array:
    """`value` as an integer array of at least int32, or a TypeError that names it."""
    if isinstance(value, np.ndarray | np.integer | int) and np.asarray(value).dtype in (np.int64, np.uint64):
        # Where 64 bits are off, JAX would keep the lower 32: 2^32 + 1 would come out as class 1.
        limits = np.iinfo(jax.dtypes.canonicalize_dtype(np.int64))
        value = np.clip(value, limits.min, limits.max).astype(limits.dtype)
    given = array(name, value)
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers; got {given.dtype} of shape {given.shape}")
    # Narrow and unsigned types cannot hold the -1 and the num_classes that labels are compared with.
    return given.astype(jnp.int64 if given.dtype.itemsize == 8 else jnp.int32)


def same_shape(name: str, shape: Sequence[int], expected_name: str, expected: Sequence[int]) -> None:
    """A ValueError that names both where the two shapes differ."""
    if tuple(shape) != tuple(expected):
        raise ValueError(f"{name} must have the shape of {expected_name}, {tuple(expected)}; got {tuple(shape)}")


def spread(name: str, value: Any, shape: Sequence[int]) -> jax.Array:
    """`value` broadcast to `shape` by NumPy's rule (axes align from the last), or a ValueError that names it."""
    given = array(name, value)
    fits = given.ndim <= len(shape) and all(
        have in (1, want) for have, want in zip(reversed(given.shape), reversed(tuple(shape)), strict=False)
    )
    if not fits:
        raise ValueError(f"{name} must have shape {tuple(shape)} or one that broadcasts to it; got {given.shape}")
    return jnp.broadcast_to(given, shape)


def mask(name: str, value: Any, shape: Sequence[int]) -> jax.Array:
    """`value` as a boolean array spread to `shape`, or an error that names it."""
    given = array(name, value)
    if given.dtype != jnp.bool_:
        raise TypeError(f"{name} must be boolean; got {given.dtype} of shape {given.shape}")
    return spread(name, given, shape)


def per_class(name: str, value: Any, num_classes: int, dtype: Any, scalar_hint: str = "") -> jax.Array:
    """`value` as a `[num_classes]` array of `dtype`, or a ValueError that names it."""
    given = array(name, value)
    if given.shape != (num_classes,):
        hint = f". {scalar_hint}" if scalar_hint and given.ndim == 0 else ""
        raise ValueError(f"{name} must have one value per class, shape ({num_classes},); got {_shown(value)}{hint}")
    return given.astype(dtype)


def scalar(
    name: str, value: Any, dtype: Any, low: float, high: float = float("inf"), *, infinite: bool = False
) -> jax.Array:
    """`value` as a scalar of `dtype` in [low, high], infinity only if asked for, or a ValueError.

    A traced value is checked for its shape only; a number is checked under `jit` too.
    """
    given = _one_number(name, value, dtype)
    # `value` and not `given`: under jit the array of a Python number is traced.
    if not isinstance(value, jax.core.Tracer):
        number = float(np.asarray(value))
        if not low <= number <= high or (np.isinf(number) and not infinite):
            expected = f"between {low:g} and {high:g}"
            if np.isinf(high):
                expected = "a number" if np.isinf(low) else f"at least {low:g}"
            raise ValueError(f"{name} must be {expected}{' and finite' if np.isinf(number) else ''}; got {number:g}")
    return given.astype(dtype)


def finite(name: str, value: Any, dtype: Any, above: float = -float("inf")) -> jax.Array:
    """`value` as a finite scalar of `dtype`, more than `above`; else as `scalar`."""
    given = _one_number(name, value, dtype)
    if not isinstance(value, jax.core.Tracer) and not above < float(np.asarray(value)) < float("inf"):
        expected = "finite" if above == -float("inf") else f"finite and more than {above:g}"
        raise ValueError(f"{name} must be {expected}; got {float(np.asarray(value)):g}")
    return given.astype(dtype)


def choice(name: str, value: Any, choices: Sequence[Any]) -> None:
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


def _one_number(name: str, value: Any, dtype: Any) -> jax.Array:
    given = integers(name, value) if jnp.issubdtype(dtype, jnp.integer) else array(name, value)
    if given.ndim != 0:
        raise ValueError(f"{name} must be a scalar; got {_shown(value)}")
    if jnp.issubdtype(given.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be a real number; got {value!r}")
    return given


def _shown(value: Any) -> str:
    if np.ndim(value) == 0 and not isinstance(value, jax.core.Tracer):
        return f"the scalar {np.asarray(value)}"
    return f"shape {np.shape(value)}"
