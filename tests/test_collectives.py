"""Sums and means over device axes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from segjax.collectives import next_example, pmean, psum


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


@pytest.mark.parametrize("mapping", ["jit", "pmap", "vmap", "shard_map"])
def test_next_example_is_that_of_the_global_batch(mapping):
    batch = {"image": np.arange(24.0).reshape(8, 3), "label": np.arange(8)}
    if mapping == "jit":
        shifted = jax.jit(next_example)(batch)
    elif mapping == "shard_map":
        mesh = Mesh(jax.devices()[:4], ("devices",))
        specs = {"mesh": mesh, "in_specs": P("devices"), "out_specs": P("devices")}
        shifted = jax.jit(jax.shard_map(partial(next_example, axis_name="devices"), **specs))(batch)
    else:
        mapped = {"pmap": jax.pmap, "vmap": jax.vmap}[mapping](
            lambda x: next_example(x, "devices"), axis_name="devices"
        )
        on_devices = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)
        shifted = jax.tree.map(lambda x: x.reshape(8, *x.shape[2:]), mapped(on_devices))
    for name, values in batch.items():
        np.testing.assert_array_equal(shifted[name], np.roll(values, -1, axis=0))
