"""Three mappings of one per-device function over the devices, `jit`, `pmap` and `shard_map`, with the same numbers.

A mapped function takes (state, batch, ...). The batch is split along its first axis; the state, the other arguments
and the result are the same on every device.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from segjax.training.config import ConfigError

AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with the single axis `data` over `devices` (default: all)."""
    devices = list(devices or jax.devices())
    # `jax.make_mesh` defaults to Explicit axes, under which every intermediate would need its sharding spelt out.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def axis_name(config: ConfigDict) -> str | None:
    """Returns the axis that per-device code reduces over; None for `jit`, whose compiler inserts the collectives."""
    return None if config.parallel == "jit" else AXIS


def device_mapping(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> "DeviceMapping":
    """Returns the mapping of `config.parallel` over `devices` (default: all).

    Raises:
      ConfigError: the global batch cannot be split evenly over the devices and their microbatches.
    """
    mesh, count = make_mesh(devices), config.training.accumulate
    if config.training.global_batch % (mesh.size * count):
        raise ConfigError(
            f"config.training.global_batch = {config.training.global_batch} does not divide evenly over {mesh.size} "
            f"devices{f' with {count} microbatches each' * (count > 1)}; choose a multiple of {mesh.size * count}"
        )
    return DeviceMapping(config.parallel, mesh)


class DeviceMapping(NamedTuple):
    """One way of running per-device code on the devices of a mesh, with the matching placement of its arguments.

    Attributes:
      mode: "jit", "pmap" or "shard_map".
      mesh: the devices, those of all hosts.
    """

    mode: str
    mesh: Mesh

    def __str__(self) -> str:
        return f"{self.mesh.size} {self.mesh.devices.flat[0].platform} device(s), {self.mode}"

    def map_step(self, step: Callable, *, arguments: int, donate: bool = False) -> Callable:
        """Compiles `step(state, batch, ...)`, of `arguments` arguments in all.

        With `donate` the state's buffers are reused: the old state must not be used again.
        """
        donated = (0,) if donate else ()
        if self.mode == "pmap":  # takes the state with an axis of devices, see `replicate`
            axes, devices = (0, 0) + (None,) * (arguments - 2), self.mesh.devices.tolist()
            return jax.pmap(step, AXIS, in_axes=axes, donate_argnums=donated, devices=devices)
        if self.mode == "shard_map":
            specs = (P(), P(AXIS)) + (P(),) * (arguments - 2)
            # Unchecked: the checks of varying axes would add the gradients up over the devices, and then `pmean` does.
            step = jax.shard_map(step, mesh=self.mesh, in_specs=specs, out_specs=P(), check_vma=False)
        return jax.jit(step, donate_argnums=donated, out_shardings=NamedSharding(self.mesh, P()))

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Splits a host's batch over its devices along the first axis; the hosts' batches follow each other."""
        if self.mode == "pmap":
            count, sharding = len(self.mesh.local_devices), _of_this_host(self.mesh)
            return jax.device_put({k: v.reshape(count, -1, *v.shape[1:]) for k, v in batch.items()}, sharding)
        sharding = NamedSharding(self.mesh, P(AXIS))
        return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}

    def everywhere(self, tree: Any) -> Any:
        """Returns a global copy of `tree`, the same on every device of all hosts: the form of checkpoints."""
        sharding = NamedSharding(self.mesh, P())

        def place(x: Any) -> jax.Array:
            if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):  # JAX places typed keys on this host's devices only
                return jax.random.wrap_key_data(place(jax.random.key_data(x)))
            # Through the host, because not every platform can send from one device to those of another host.
            return jax.device_put(np.asarray(x), sharding)

        return jax.tree.map(place, tree)

    def replicate(self, tree: Any) -> Any:
        """Returns copies of `tree` on every device, in the form that the functions of `map_step` take."""
        if self.mode != "pmap":
            return self.everywhere(tree)
        count, sharding = len(self.mesh.local_devices), _of_this_host(self.mesh)
        return jax.tree.map(lambda x: jax.device_put(jax.numpy.stack([x] * count), sharding), local(tree))

    def unreplicate(self, tree: Any) -> Any:
        """Returns this host's single copy of a replicated `tree`."""
        return jax.tree.map(lambda x: x.addressable_data(0)[0], tree) if self.mode == "pmap" else tree

    def collect(self, tree: Any) -> Any:
        """Returns a replicated `tree` in the form of `everywhere`."""
        return self.everywhere(self.unreplicate(tree)) if self.mode == "pmap" else tree


def local(tree: Any) -> Any:
    """Returns a copy of a tree that is the same everywhere on one device, for work that each host does by itself."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def _of_this_host(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that `pmap` takes: the first axis over the devices of this host alone."""
    return NamedSharding(make_mesh(mesh.local_devices), P(AXIS))
