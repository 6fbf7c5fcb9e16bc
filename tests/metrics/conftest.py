"""Metrics must work in the strictest project that imports them: no implicit promotion of dtypes or of ranks."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
