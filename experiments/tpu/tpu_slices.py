"""The TPU slices that programs are compiled for, and the published figures of their chips."""

import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from segjax.training import ConfigError
from segjax.training.provenance import provenance

CPU = "cpu"


class Chip(NamedTuple):
    """A TPU chip's published figures, from its page in Google Cloud's documentation (cloud.google.com/tpu/docs).

    Attributes:
      flops: peak FLOP/s in bfloat16, which a float32 product with default precision takes too.
      memory: bytes of HBM.
      bandwidth: of the HBM, bytes/s.
    """

    flops: float
    memory: float
    bandwidth: float


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1200e9),
    "v5e": Chip(197e12, 16e9, 819e9),
    "v5p": Chip(459e12, 95e9, 2765e9),
    "v6e": Chip(918e12, 32e9, 1638e9),
}


def roofline(flops: float, accessed: float, chip: Chip) -> tuple[float, str]:
    """The least time a program can take, max(flops / peak, bytes / bandwidth), and which of the two it is.

    Args:
      flops: of one chip.
      accessed: bytes to and from its memory.
      chip: its figures.

    Returns:
      Seconds, and "compute" or "memory".

    >>> roofline(2e12, 1e12, Chip(flops=1e12, memory=1e9, bandwidth=1e12))
    (2.0, 'compute')
    """
    return max((flops / chip.flops, "compute"), (accessed / chip.bandwidth, "memory"))


def chip_of(topology: str) -> Chip | None:
    """The chip of a topology's name, "v5e:2x4"; None of "cpu".

    Raises:
      ConfigError: there is no such chip.
    """
    name = topology.partition(":")[0]
    if topology != CPU and (name not in CHIPS or ":" not in topology):
        raise ConfigError(
            f"--topology must be a chip, one of {', '.join(CHIPS)}, and a shape, such as v5e:2x4, or {CPU}; "
            f"got {topology!r}"
        )
    return CHIPS.get(name)


def compiler_provenance() -> dict[str, Any]:
    """Where a compiled program comes from: `provenance`, and the version of libtpu where it is installed."""
    origin = provenance()
    if importlib.util.find_spec("libtpu"):
        origin["versions"]["libtpu"] = importlib.metadata.version("libtpu")
    return origin


def devices_of(topology: str) -> Sequence[Any]:
    """The devices of a slice that need not exist, or with "cpu" those of this machine.

    Raises:
      ConfigError: no such topology, or libtpu is not installed.
    """
    if chip_of(topology) is None:
        return jax.devices(CPU)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--topology={topology} needs libtpu, the compiler for TPUs, which is not installed: "
            "pip install --constraint constraints.txt '.[tpu]'"
        )
    # Nobody is asked what machine this is, and no TPU is taken: several compilers may run beside each other.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any that there is: the topology says what is compiled for
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"--topology={topology} is refused by libtpu: {str(error).splitlines()[0]}") from error
