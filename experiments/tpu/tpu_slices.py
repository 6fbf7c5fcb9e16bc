"""TPU slices to compile for, the published figures of their chips, and the table files that both programs fill."""

import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import app
from jax.experimental import topologies

from experiments.tpu.hlo_traffic import estimated_cycles, hbm_traffic
from segjax.reporting import Report, as_markdown
from segjax.storage import read_json, write_bytes, write_json
from segjax.training import ConfigError
from segjax.training.provenance import provenance

CPU = "cpu"
Rows = list[dict[str, Any]]


class Chip(NamedTuple):
    """A TPU chip's published figures, from its page in Google Cloud's documentation (cloud.google.com/tpu/docs).

    Attributes:
      flops: peak FLOP/s in bfloat16, also used by float32 products with default precision.
      memory: bytes of HBM.
      bandwidth: bytes/s of the HBM.
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
    """Returns the least seconds of a program on one chip, max(flops / peak, accessed bytes / bandwidth), and its bound.

    >>> roofline(2e12, 1e12, Chip(flops=1e12, memory=1e9, bandwidth=1e12))
    (2.0, 'compute')
    """
    return max((flops / chip.flops, "compute"), (accessed / chip.bandwidth, "memory"))


def chip_of(topology: str) -> Chip | None:
    """Returns the chip of a topology such as "v5e:2x4", or None for "cpu".

    Raises:
      ConfigError: the chip is unknown.
    """
    name = topology.partition(":")[0]
    if topology != CPU and (name not in CHIPS or ":" not in topology):
        raise ConfigError(
            f"--topology must be a chip, one of {', '.join(CHIPS)}, and a shape, such as v5e:2x4, or {CPU}; "
            f"got {topology!r}"
        )
    return CHIPS.get(name)


def compiler_provenance() -> dict[str, Any]:
    """Returns `provenance` with the version of libtpu where it is installed."""
    origin = provenance()
    if importlib.util.find_spec("libtpu"):
        origin["versions"]["libtpu"] = importlib.metadata.version("libtpu")
    return origin


def devices_of(topology: str) -> Sequence[Any]:
    """Returns the devices of a slice, which this machine need not have, or for "cpu" those of this machine.

    Raises:
      ConfigError: the topology is unknown, or libtpu is not installed.
    """
    if chip_of(topology) is None:
        return jax.devices(CPU)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--topology={topology} needs libtpu, the compiler for TPUs, which is not installed: "
            "pip install --constraint constraints.txt '.[tpu]'"
        )
    # Without queries of the machine's type and without a TPU lock, several compilers may run at the same time.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any valid type: the topology selects the target
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"--topology={topology} is refused by libtpu: {str(error).splitlines()[0]}") from error


def compile_only(argv: Sequence[str]) -> None:
    """Refuses arguments that are not flags, and keeps JAX from looking for a TPU, since nothing is run."""
    if argv[1:]:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    jax.config.update("jax_platforms", CPU)


def traffic_and_cycles(compiled: jax.stages.Compiled) -> dict[str, Any]:
    """Returns "hbm_bytes" and "cycles" of a compiled program."""
    hlo = compiled.as_text()
    return {"hbm_bytes": hbm_traffic(hlo), "cycles": estimated_cycles(hlo)}


def read_rows(output: Path) -> Rows:
    """Returns the rows of a table file; none if it does not exist."""
    return read_json(output, [{"provenance": dict}], "the rows of a table", "Remove it") if output.exists() else []


def add_row(output: Path, row: dict[str, Any], report: Callable[[Rows], Report]) -> Rows:
    """Adds a row with its provenance to a table file and to the Markdown beside it; returns all rows."""
    # Read again: another process may have added a row.
    rows = [*read_rows(output), row | {"provenance": compiler_provenance()}]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, rows)
    write_bytes(output.with_suffix(".md"), as_markdown(report(rows), output.stem).encode())
    return rows


def origin(rows: Rows) -> dict[str, str]:
    """Returns command, commit, Python and versions of the rows, each different value once."""
    facts = {}
    for key in ("command", "commit", "python", "versions"):
        values = [json.dumps(row["provenance"][key]).strip('"') for row in rows]
        facts[key] = "; ".join(dict.fromkeys(values))
    return facts
