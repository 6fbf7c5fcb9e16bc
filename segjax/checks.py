"""Argument types and checks. A check returns its argument as an array or raises an error of one line that names it.

No error prints the contents of an array. Only the shape and the dtype of a traced value are checked.
"""

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Integer, Real

# Arguments that many losses and metrics share. `*pixels` is any shape, the same in all arguments of one call.
Logits = Float[ArrayLike, "*pixels classes"]
PerPixel = Float[ArrayLike, "*pixels"]
Labels = Integer[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"]
Distribution = Float[ArrayLike, "*pixels classes"]
Targets = Real[ArrayLike, "*pixels"] | Bool[ArrayLike, "*pixels"]
Where = Bool[ArrayLike, "*#pixels"] | None
# Labels and mask of losses that also take independent sigmoid channels.
ChannelLabels = Labels | Real[ArrayLike, "*pixels classes"] | Bool[ArrayLike, "*pixels classes"]
ChannelWhere = Bool[ArrayLike, "*#pixels"] | Bool[ArrayLike, "*#pixels #classes"] | None
AxisName = Hashable | None
Scalar = Real[ArrayLike, ""]
ClassWeights = Real[ArrayLike, "classes"]


def array(name: str, value: Any) -> jax.Array:
    """Returns `value` as a JAX array; big-endian NumPy arrays (FITS, TIFF) are converted to native byte order."""
    try:
        given = jnp.asarray(_native(value))
    except (TypeError, ValueError, OverflowError):
        is_array = isinstance(value, np.ndarray | np.generic | jax.Array)
        got = f"{value.dtype} of shape {value.shape}" if is_array else f"a value of type {type(value).__name__}"
        raise TypeError(f"{name} must be an array or a number that JAX can hold; got {got}") from None
    # A custom derivative inside `jit` refuses a NumPy array that `vmap` traced. The compiler removes the copy.
    return jnp.copy(given) if isinstance(value, jax.core.Tracer) else given


def floating(name: str, value: Any) -> jax.Array:
    """Returns `value` as a floating-point array of at least float32 (float64 stays)."""
    given = floating_as_given(name, value)
    return given.astype(widened(given.dtype))


def floating_as_given(name: str, value: Any) -> jax.Array:
    """Returns `value` as a floating-point array of its own dtype."""
    given = array(name, value)
    with _raising(TypeError, f"{name} must be floating point; got {given.dtype} of shape {given.shape}"):
        chex.assert_type(given, float)
    return given


def widened(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype of the computation for a floating `dtype`: float32 for narrower ones."""
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype


def integers(name: str, value: Any) -> jax.Array:
    """Returns `value` as an integer array of at least int32; booleans become 0 and 1."""
    value = _native(value)
    if isinstance(value, np.ndarray | np.integer | int) and np.asarray(value).dtype in (np.int64, np.uint64):
        # Without 64-bit types JAX would keep the lower 32 bits and turn 2^32 + 1 into class 1.
        limits = np.iinfo(jax.dtypes.canonicalize_dtype(np.int64))
        value = np.clip(value, limits.min, limits.max).astype(limits.dtype)
    given = array(name, value)
    if given.dtype == jnp.bool_:
        return given.astype(jnp.int32)
    with _raising(TypeError, f"{name} must be integers; got {given.dtype} of shape {given.shape}"):
        chex.assert_type(given, int)
    # Narrow and unsigned types cannot hold the -1 and the num_classes that labels are compared with.
    return given.astype(jnp.int64 if given.dtype.itemsize == 8 else jnp.int32)


def softmax_inputs(
    logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns logits (widened, masked ones unchanged), integer labels (0 where masked), and the mask or None."""
    logits = classes("logits", logits)
    labels = integers("labels", labels)
    same_shape("labels", labels.shape, "logits without their class axis", logits.shape[:-1])
    if where is None:
        return logits, labels, None
    where = mask("where", where, labels.shape)
    return logits, jnp.where(where, labels, jnp.zeros_like(labels)), where


def softmax_targets(
    logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns the same as `softmax_inputs`; floats of the logits' shape are a distribution over the classes per pixel.

    A distribution is a constant of the logits' dtype, uniform where masked. It is NaN at an unmasked pixel where one
    of its probabilities is negative or their sum is not 1 to within 1 %, the rounding of a bfloat16 distribution.
    """
    given = array("labels", labels)
    if given.ndim == 0 or given.ndim != np.ndim(logits) or not jnp.issubdtype(given.dtype, jnp.floating):
        return softmax_inputs(logits, labels, where)
    logits = classes("logits", logits)
    same_shape("labels as a distribution", given.shape, "logits", logits.shape)
    where = None if where is None else mask("where", where, given.shape[:-1])
    given = jax.lax.stop_gradient(given.astype(logits.dtype))
    if where is not None:
        given = jnp.where(where[..., None], given, 1 / given.shape[-1])
    valid = jnp.all(given >= 0, axis=-1) & (jnp.abs(jnp.sum(given, axis=-1) - 1) <= 0.01)
    return logits, jnp.where(valid[..., None], given, jnp.nan), where


def classes(name: str, value: Any) -> jax.Array:
    """Returns `value`, one number per class on its last axis, as `floating`."""
    given = floating(name, value)
    if given.ndim == 0 or given.shape[-1] < 2:
        raise ValueError(
            f"{name} must be [..., classes] with at least 2 classes, class last; got shape {given.shape}. "
            "For one logit z per pixel use a sigmoid loss, or stack 0 and z"
        )
    return given


def same_shape(name: str, shape: Sequence[int], expected_name: str, expected: Sequence[int]) -> None:
    """Raises a ValueError that names both arguments if their shapes differ."""
    if tuple(shape) != tuple(expected):
        raise ValueError(f"{name} must have the shape of {expected_name}, {tuple(expected)}; got {tuple(shape)}")


def spread(name: str, value: Any, shape: Sequence[int]) -> jax.Array:
    """Returns `value` broadcast to `shape` by NumPy's rule (axes align from the last)."""
    given = array(name, value)
    try:
        return jnp.broadcast_to(given, shape)
    except ValueError:
        expected = f"shape {tuple(shape)} or one that broadcasts to it"
        raise ValueError(f"{name} must have {expected}; got {given.shape}") from None


def mask(name: str, value: Any, shape: Sequence[int]) -> jax.Array:
    """Returns `value` as a boolean array broadcast to `shape`; None is True everywhere."""
    given = array(name, True if value is None else value)
    with _raising(TypeError, f"{name} must be boolean; got {given.dtype} of shape {given.shape}"):
        chex.assert_type(given, bool)
    return spread(name, given, shape)


def per_class(name: str, value: Any, num_classes: int, dtype: Any, scalar_hint: str = "") -> jax.Array:
    """Returns `value`, one weight ≥ 0 per class, as a `[num_classes]` array of `dtype`."""
    given = array(name, value)
    hint = f". {scalar_hint}" if scalar_hint and given.ndim == 0 else ""
    got = f"{_shape_or_number(value)}{hint}"
    with _raising(ValueError, f"{name} must have one value per class, shape ({num_classes},); got {got}"):
        chex.assert_shape(given, (num_classes,))
    not_negative(name, value)
    return given.astype(dtype)


def class_indices(name: str, value: Any, num_classes: int, *, optional: bool = True) -> np.ndarray:
    """Returns `value`, a sequence of distinct class indices known on the host, as an array."""
    indices = host(name, value)
    integers = indices.ndim == 1 and indices.size > 0 and np.issubdtype(indices.dtype, np.integer)
    if not integers or not np.isin(indices, range(num_classes)).all() or np.unique(indices).size != indices.size:
        expected = f"a sequence of distinct class indices in [0, {num_classes}), at least one"
        raise ValueError(f"{name} must be {'None or ' if optional else ''}{expected}; got {value!r}")
    return indices


def not_negative(name: str, value: Any, where: Any = None) -> None:
    """Raises a ValueError if an unmasked value is negative; traced values and arrays of other hosts pass."""
    traced = isinstance(value, jax.core.Tracer) or isinstance(where, jax.core.Tracer)
    if traced or (isinstance(value, jax.Array) and not value.is_fully_addressable):
        return
    numbers = np.asarray(value)
    negative = (numbers < 0) if where is None else (numbers < 0) & np.asarray(where)
    if negative.any():
        at = tuple(map(int, np.argwhere(negative)[0]))
        found = float(np.broadcast_to(numbers, negative.shape)[at])
        raise ValueError(f"{name} must be at least 0; got {found:g}{f' at index {at}' if at else ''}")


def scalar(
    name: str, value: Any, dtype: Any, low: float, high: float = float("inf"), *, infinite: bool = False
) -> jax.Array:
    """Returns `value` as a scalar of `dtype` in [low, high]; infinity is valid only if `infinite`."""
    given = _one_number(name, value, dtype)
    # Not `given`, which is traced under `jit` even if `value` is a Python number.
    if not isinstance(value, jax.core.Tracer):
        number = float(np.asarray(value))
        if not low <= number <= high or (np.isinf(number) and not infinite):
            expected = f"between {low:g} and {high:g}"
            if np.isinf(high):
                expected = "a number" if np.isinf(low) else f"at least {low:g}"
            raise ValueError(f"{name} must be {expected}{' and finite' if np.isinf(number) else ''}; got {number:g}")
    return given.astype(dtype)


def finite(name: str, value: Any, dtype: Any, above: float = -float("inf")) -> jax.Array:
    """Returns `value` as a finite scalar of `dtype` that is more than `above`."""
    given = _one_number(name, value, dtype)
    if not isinstance(value, jax.core.Tracer) and not above < float(np.asarray(value)) < float("inf"):
        expected = "finite" if above == -float("inf") else f"finite and more than {above:g}"
        raise ValueError(f"{name} must be {expected}; got {float(np.asarray(value)):g}")
    return given.astype(dtype)


def choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises a ValueError that lists the choices if `value` is not one of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def host(name: str, value: Any) -> np.ndarray:
    """Returns `value` as a NumPy array in native byte order; a traced value is an error."""
    if isinstance(value, jax.core.Tracer):
        got = f"a traced array of shape {value.shape}"
        raise TypeError(f"{name} must be known on the host; got {got}: call outside jit")
    try:
        return np.asarray(_native(value))
    except ValueError:  # NumPy's does not contain the name
        raise ValueError(f"{name} must be an array; got rows of different lengths: {value!r:.80}") from None


def _native(value: Any) -> Any:
    big_endian = isinstance(value, np.ndarray | np.generic) and not value.dtype.isnative
    return value.astype(value.dtype.newbyteorder("=")) if big_endian else value


@contextlib.contextmanager
def _raising(error: type[Exception], message: str) -> Iterator[None]:
    """Turns chex's AssertionError into an error of one line that names the argument."""
    try:
        yield
    except AssertionError:
        raise error(message) from None


def _one_number(name: str, value: Any, dtype: Any) -> jax.Array:
    given = integers(name, value) if jnp.issubdtype(dtype, jnp.integer) else array(name, value)
    with _raising(ValueError, f"{name} must be a scalar; got {_shape_or_number(value)}"):
        chex.assert_rank(given, 0)
    if jnp.issubdtype(given.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be a real number; got {given.dtype}")
    return given


def _shape_or_number(value: Any) -> str:
    if np.ndim(value) == 0 and not isinstance(value, jax.core.Tracer):
        return f"the scalar {np.asarray(value)}"
    return f"shape {np.shape(value)}"
