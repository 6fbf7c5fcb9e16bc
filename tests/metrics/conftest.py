"""Strict promotion: metrics must work in a project that forbids implicit promotion of dtypes and ranks."""

import inspect
from types import SimpleNamespace

import jax
import pytest

from segjax import metrics


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def raw():
    """Returns the public functions without the import hook of the tests, as a user calls them."""
    functions = {name: getattr(metrics, name) for name in metrics.__all__}
    return SimpleNamespace(**{name: inspect.unwrap(f) for name, f in functions.items() if inspect.isfunction(f)})
