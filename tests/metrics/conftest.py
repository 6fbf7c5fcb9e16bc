"""Metrics must work in the strictest project that imports them: no implicit promotion of dtypes or of ranks."""

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
    """The public functions without the tests' import hook, as a user has them."""
    functions = {name: getattr(metrics, name) for name in metrics.__all__}
    return SimpleNamespace(**{name: inspect.unwrap(f) for name, f in functions.items() if inspect.isfunction(f)})
