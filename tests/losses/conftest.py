"""Runs the loss tests without implicit promotion of dtypes or ranks, as the strictest project may."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
