"""Sums and means over device axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.collectives import pmean, psum


@pytest.mark.parametrize("reduce", [psum, pmean])
def test_reduction_without_an_axis_is_the_identity(reduce):
    tree = {"loss": jnp.arange(3.0), "count": jnp.int32(4)}
    assert reduce(tree) is tree
    assert reduce(tree, None) is tree


@pytest.mark.parametrize(("reduce", "expected"), [(psum, 6.0), (pmean, 1.5)])
@pytest.mark.parametrize("mapping", [jax.pmap, jax.vmap])
def test_reduction_of_pytrees_over_an_axis(reduce, expected, mapping):
    mapped = mapping(lambda x: reduce({"a": x, "b": (x,)}, "devices"), axis_name="devices")
    reduced = mapped(jnp.arange(4.0))
    for leaf in jax.tree.leaves(reduced):
        np.testing.assert_array_equal(leaf, np.full(4, expected))


def test_psum_over_several_axes():
    def over_rows(row):
        return jax.vmap(lambda x: psum(x, ("rows", "columns")), axis_name="columns")(row)

    total = jax.vmap(over_rows, axis_name="rows")(jnp.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(total, np.full((2, 3), 15.0))
