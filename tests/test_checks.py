"""Errors for arguments that JAX alone would accept, or would refuse without their name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import checks


@pytest.mark.parametrize(
    "value", [2**32 + 1, np.int64(2**32 + 1), np.array([2**32 + 1]), np.array([2**63 + 1], np.uint64)]
)
def test_integers_of_64_bits_saturate_instead_of_wrapping(value):
    assert np.all(checks.integers("labels", value) == np.iinfo(np.int32).max)


def test_integers_of_64_bits_stay_with_x64():
    with jax.enable_x64(True):
        assert checks.integers("labels", np.array([2**32 + 1]))[0] == 2**32 + 1


@pytest.mark.parametrize("check", [checks.floating, checks.integers])
@pytest.mark.parametrize("value", [None, "2", [[1.0], [1.0, 2.0]]])
def test_a_value_that_is_not_an_array_is_named(check, value):
    with pytest.raises(TypeError, match=r"logits must be an array or a number that JAX can hold; got a value of type"):
        check("logits", value)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (-1.0, ValueError, "gamma must be at least 0; got -1"),
        (np.inf, ValueError, "gamma must be at least 0 and finite; got inf"),
        (np.nan, ValueError, "gamma must be at least 0; got nan"),
        (1j, TypeError, r"gamma must be a real number; got complex64"),
        ("2", TypeError, "gamma must be an array or a number that JAX can hold; got a value of type str"),
        (np.ones(2), ValueError, r"gamma must be a scalar; got shape \(2,\)"),
    ],
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_a_number_out_of_range_is_named(value, error, message, transform):
    with pytest.raises(error, match=message):
        transform(lambda: checks.scalar("gamma", value, jnp.float32, 0.0))()


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
@pytest.mark.parametrize("value", [0.0, -1, np.float32(-1.0), np.inf, np.nan])
def test_a_number_that_must_be_finite_and_positive_is_named(value, transform):
    with pytest.raises(ValueError, match=f"delta must be finite and more than 0; got {value:g}"):
        transform(lambda: checks.finite("delta", value, jnp.float32, above=0.0))()


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_an_integer_argument_must_be_an_integer_in_range(transform):
    with pytest.raises(TypeError, match="min_kept must be integers; got float32"):
        transform(lambda: checks.scalar("min_kept", 2.5, jnp.int32, 0.0))()
    with pytest.raises(ValueError, match="min_kept must be at least 0; got -1"):
        transform(lambda: checks.scalar("min_kept", -1, jnp.int32, 0.0))()


def test_a_traced_number_is_not_range_checked():
    assert jax.jit(lambda gamma: checks.scalar("gamma", gamma, jnp.float32, 0.0))(-1.0) == -1.0


def test_infinity_is_valid_where_allowed():
    assert np.isinf(checks.scalar("threshold", np.inf, jnp.float32, -np.inf, infinite=True))
