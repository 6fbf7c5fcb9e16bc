"""One per-device step function, three ways onto the devices: `jit`, `pmap`, `shard_map`. The numbers are the same.

A mapped function takes (state, batch, ...): the state and all after the batch are the same on every device, the batch
is split along its first axis, and what comes back is the same on every device.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from segjax.training.defaults import ConfigError

AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh named `data` over `devices` (default: all)."""
    devices = list(devices or jax.devices())
    # `jax.make_mesh` defaults to Explicit axes, under which every intermediate would need its sharding spelt out.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def axis_name(config: ConfigDict) -> str | None:
    """The axis that per-device code reduces over; None under `jit`, where the compiler inserts the collectives."""
    return None if config.parallel == "jit" else AXIS


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Raises `ConfigError` if the global batch cannot be split evenly over the devices."""
    if config.training.global_batch % mesh.size:
        raise ConfigError(
            f"config.training.global_batch = {config.training.global_batch} does not divide evenly over "
            f"{mesh.size} devices; choose a multiple of {mesh.size}"
        )


def replicate(tree: Any, config: ConfigDict, mesh: Mesh) -> Any:
    """Puts the same `tree` on every device, in the form `map_step`'s functions take."""
    if config.parallel == "pmap":
        sharding = NamedSharding(mesh, P(AXIS))
        return jax.tree.map(lambda x: jax.device_put(jax.numpy.stack([x] * mesh.size), sharding), tree)
    return jax.device_put(tree, NamedSharding(mesh, P()))


def unreplicate(tree: Any, config: ConfigDict) -> Any:
    """The one copy of a replicated `tree`, whatever the mapping: what a checkpoint holds."""
    return jax.tree.map(lambda x: x[0], tree) if config.parallel == "pmap" else tree


def shard(batch: dict[str, np.ndarray], config: ConfigDict, mesh: Mesh) -> dict[str, jax.Array]:
    """Splits a host's batch over its devices along the first axis."""
    if config.parallel == "pmap":
        batch = {k: v.reshape(mesh.size, -1, *v.shape[1:]) for k, v in batch.items()}
    return jax.device_put(batch, NamedSharding(mesh, P(AXIS)))


def map_step(step: Callable, config: ConfigDict, mesh: Mesh, *, arguments: int, donate: bool = False) -> Callable:
    """Compiles `step(state, batch, ...)`, of `arguments` arguments in all, for the devices of `mesh`.

    With `donate` the state's buffers are handed over: the old state must not be used again.
    """
    donated = (0,) if donate else ()
    rest = arguments - 2
    if config.parallel == "pmap":
        return jax.pmap(
            step, axis_name=AXIS, in_axes=(0, 0) + (None,) * rest, donate_argnums=donated, devices=mesh.devices.tolist()
        )
    if config.parallel == "shard_map":
        step = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(AXIS)) + (P(),) * rest, out_specs=P())
    return jax.jit(step, donate_argnums=donated, out_shardings=NamedSharding(mesh, P()))
