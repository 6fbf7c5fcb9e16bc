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

from segjax.training.config import ConfigError

AXIS = "data"


def join_hosts(coordinator: str | None = None, hosts: int | None = None, host: int | None = None) -> None:
    """Makes this process one of several: `jax.devices()` are then those of all hosts.

    To be called before anything asks for devices. On TPU pods, and where Slurm or Open MPI starts the processes, the
    cluster says all three.

    Args:
      coordinator: "ADDRESS:PORT" of the first host, any free port.
      hosts: how many processes there are.
      host: which of them this is, from 0.

    Raises:
      ConfigError: only some of the three are given, or neither they nor a cluster say what is needed.
    """
    given = (coordinator, hosts, host)
    if any(value is None for value in given) and any(value is not None for value in given):
        raise ConfigError(
            "give all of --coordinator, --hosts and --host, or none where the cluster says them; got "
            f"{coordinator!r}, {hosts!r}, {host!r}"
        )
    try:
        jax.distributed.initialize(coordinator, hosts, host)
    except ValueError as error:  # what JAX raises where nothing tells it of a cluster
        raise ConfigError(
            f"no cluster says who the hosts are; give --coordinator, --hosts and --host ({error})"
        ) from error


def is_first_host() -> bool:
    """Whether this is the process that speaks and writes logs for all."""
    return jax.process_index() == 0


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
    pieces = config.training.accumulate
    if config.training.global_batch % (mesh.size * pieces):
        raise ConfigError(
            f"config.training.global_batch = {config.training.global_batch} does not divide evenly over "
            f"{mesh.size} devices{f' in {pieces} pieces each' if pieces > 1 else ''}; choose a multiple of "
            f"{mesh.size * pieces}"
        )


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """One `tree`, the same on every device of all hosts: what a checkpoint is saved from and restored to."""
    sharding = NamedSharding(mesh, P())

    def place(x: Any) -> jax.Array:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):  # JAX places typed keys on this host's devices only
            return jax.random.wrap_key_data(place(jax.random.key_data(x)))
        # By way of the host: what is on one device may not be sent to those of another host on every platform.
        return jax.device_put(np.asarray(x), sharding)

    return jax.tree.map(place, tree)


def collect(tree: Any, config: ConfigDict, mesh: Mesh) -> Any:
    """A replicated `tree` in `everywhere`'s form."""
    return everywhere(unreplicate(tree, config), mesh) if config.parallel == "pmap" else tree


def replicate(tree: Any, config: ConfigDict, mesh: Mesh) -> Any:
    """Puts the same `tree` on every device, in the form `map_step`'s functions take."""
    if config.parallel == "pmap":
        count = len(mesh.local_devices)
        one, sharding = local(tree), _of_this_host(mesh)
        return jax.tree.map(lambda x: jax.device_put(jax.numpy.stack([x] * count), sharding), one)
    return everywhere(tree, mesh)


def unreplicate(tree: Any, config: ConfigDict) -> Any:
    """This host's one copy of a replicated `tree`, whatever the mapping."""
    return jax.tree.map(lambda x: x.addressable_data(0)[0], tree) if config.parallel == "pmap" else tree


def local(tree: Any) -> Any:
    """A copy of a tree that is the same everywhere, on one device of this host: for work that each does for itself."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def shard(batch: dict[str, np.ndarray], config: ConfigDict, mesh: Mesh) -> dict[str, jax.Array]:
    """Splits a host's batch over its devices along the first axis; the hosts' batches are one after another."""
    if config.parallel == "pmap":
        count = len(mesh.local_devices)
        return jax.device_put({k: v.reshape(count, -1, *v.shape[1:]) for k, v in batch.items()}, _of_this_host(mesh))
    sharding = NamedSharding(mesh, P(AXIS))
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def _of_this_host(mesh: Mesh) -> NamedSharding:
    """What `pmap` takes: the first axis over the devices of this host alone."""
    return NamedSharding(make_mesh(mesh.local_devices), P(AXIS))


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
        # Unchecked: the checks of varying axes would add the gradients up over the devices, and then `pmean` does.
        step = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(AXIS)) + (P(),) * rest, out_specs=P(), check_vma=False)
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
