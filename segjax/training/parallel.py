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


def map_cells(step: Callable, mesh: Mesh, *, shared: Sequence[bool], donate: bool = False) -> Callable:
    """Compiles `step` for a cell a device: independent runs side by side, which differ in values and not in program.

    Args:
      step: code of one run on one device, without an axis name.
      mesh: its devices; as many cells.
      shared: of each argument, whether it is the same for all cells. The others, and the result, have a leading axis of
        `mesh.size` cells (`jnp.stack` them).
      donate: the first argument's buffers are handed over.
    """

    def one(*arguments: Any) -> Any:
        own = (x if same else jax.tree.map(lambda a: a[0], x) for x, same in zip(arguments, shared, strict=True))
        return jax.tree.map(lambda a: a[None], step(*own))

    specs = tuple(P() if same else P(AXIS) for same in shared)
    # No value crosses from cell to cell, so there is nothing for the checks of varying axes to find.
    mapped = jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False)
    return jax.jit(mapped, donate_argnums=(0,) if donate else ())
