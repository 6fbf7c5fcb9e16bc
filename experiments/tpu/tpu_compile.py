"""Cost of a training step on a TPU slice, by its compiler: `python -m experiments.tpu.tpu_compile --config=…`.

The training step of any config is compiled ahead of time for a named slice, such as `--topology=v5e:2x4`, by the
compiler of a TPU VM (`pip install '.[tpu]'`). It needs no TPU and takes minutes at full size. A row contains FLOPs,
bytes accessed, memory, collectives, and the least time by the chip's published figures, all for one chip. A program
that does not fit the chip's memory is a row without these.

Each row is written once compiled, and rows in `--output` are not compiled again. An interrupted program resumes, and
several commands (`--config.model.remat=True`, another topology) fill one table. `--topology=cpu` compiles for the
devices of this machine.
"""

import copy
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
from absl import flags
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from experiments.tpu.hlo_collectives import collectives
from experiments.tpu.tpu_slices import (
    CHIPS,
    Chip,
    add_row,
    chip_of,
    compile_only,
    devices_of,
    origin,
    read_rows,
    roofline,
    traffic_and_cycles,
)
from segjax import cli
from segjax.data import label_set
from segjax.reporting import Report, Section, Table, show
from segjax.storage import say
from segjax.training import ConfigError, parallel, validate
from segjax.training.config import input_shape
from segjax.training.network import make_model
from segjax.training.objective import Hyperparams, hparams_at, hparams_from_config, phases
from segjax.training.train_step import init_state, make_train_step

# Height and width of the loader's images; data sets that are not listed have their size in the config.
NATIVE_SIZES = {
    "camvid": (360, 480),
    "crackforest": (320, 480),
    "cityscapes": (1024, 2048),
    "lost_and_found": (1024, 2048),
}
GB = 1e9


def lower(config: ConfigDict, devices: Sequence[Any], hparams: Hyperparams) -> jax.stages.Lowered:
    """Lowers the training step of `config` on `devices` from shapes only, without data or computation.

    Raises:
      ConfigError: the config is invalid, or mapped by `pmap`.
    """
    validate(config)
    if config.parallel == "pmap":
        raise ConfigError(
            "config.parallel must be jit or shard_map, because pmap compiles for local devices only; got 'pmap'"
        )
    mapping = parallel.device_mapping(config, devices)
    axis_name, classes = parallel.axis_name(config), label_set(config.data).num_classes
    model = make_model(config, classes, axis_name)
    batch, (height, width) = config.training.global_batch, native_size(config)
    *_, channels = input_shape(config)

    def arrays(spec: P, tree: Any) -> Any:
        sharding = NamedSharding(mapping.mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    images = {
        "image": jax.ShapeDtypeStruct((batch, height, width, channels), np.uint8),
        "label": jax.ShapeDtypeStruct((batch, height, width), np.uint8),
        "index": jax.ShapeDtypeStruct((batch,), np.uint32),
    }
    step = make_train_step(config, model, classes, axis_name)
    state = jax.eval_shape(lambda: init_state(config, model))
    mapped = mapping.map_step(step, arguments=3, donate=True)
    return mapped.lower(arrays(P(), state), arrays(P(parallel.AXIS), images), arrays(P(), hparams))


def native_size(config: ConfigDict) -> tuple[int, int]:
    """Returns height and width of the images that the step receives."""
    if config.data.name.startswith("road_debris"):
        return tuple(config.data.scene_size)
    return NATIVE_SIZES.get(config.data.name, tuple(config.data.size))


def phase_hparams(config: ConfigDict) -> list[Hyperparams]:
    """Returns the traced hyperparameters of each phase of a run; one compilation serves all phases."""
    return [hparams_at(phase.end, hparams_from_config(config), phases(config)) for phase in phases(config)]


def measure(config: ConfigDict, topology: str, batch_per_chip: int) -> dict[str, Any]:
    """Compiles the step of `config` for `topology` and returns its cost on one chip.

    Returns:
      "chips", "fits", "peak_bytes", "compile_seconds" of wall time, and the entries of `costs` if the program fits.
      "peak_bytes" is None if the compiler refuses the program without a number.
    """
    devices = devices_of(topology)
    config = copy.deepcopy(config)
    config.training.global_batch = batch_per_chip * len(devices)
    lowered = lower(config, devices, phase_hparams(config)[0])
    begun = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        row = {"fits": False, "peak_bytes": needed(str(error))}
    else:
        row = {"fits": True, **costs(compiled, chip_of(topology))}
    return {"chips": len(devices), **row, "compile_seconds": round(time.monotonic() - begun)}


def needed(message: str) -> float | None:
    """Returns the bytes needed by a program that the compiler refused, from its message; None without a number.

    >>> needed("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.") / 2**30
    20.5
    """
    found = re.search(r"Used ([\d.]+)([KMGT]) of", message)
    return float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1) if found else None


def costs(compiled: jax.stages.Compiled, chip: Chip | None) -> dict[str, Any]:
    """Returns the compiler's analyses of a program for one device, and its roofline on `chip`.

    "memory" contains the bytes by use, "collectives" number and bytes by kind, "loops" the number of loops, and
    "seconds" and "bound" the roofline.
    """
    cost, memory, hlo = compiled.cost_analysis(), compiled.memory_analysis(), compiled.as_text()
    parts = {
        name: getattr(memory, f"{name}_size_in_bytes")
        for name in ("argument", "output", "alias", "temp", "generated_code")
    }
    seconds, bound = roofline(cost["flops"], cost["bytes accessed"], chip) if chip else (None, None)
    return {
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        **traffic_and_cycles(compiled),
        "memory": parts,
        # The new state overwrites the old one.
        "peak_bytes": sum(parts.values()) - 2 * parts["alias"],
        "collectives": {kind: traffic._asdict() for kind, traffic in collectives(hlo).items()},
        "loops": len(re.findall(r" while\(", hlo)),
        "seconds": seconds,
        "bound": bound,
    }


def row_key(config_file: str, config: ConfigDict, topology: str, batch_per_chip: int) -> dict[str, Any]:
    """Returns the entries of a row that identify it."""
    return {
        "config": Path(config_file.partition(":")[0]).stem,
        "crops": [float(hparams.crop_fraction) for hparams in phase_hparams(config)],
        "size": list(config.data.size),
        "width": config.model.width,
        "topology": topology,
        "parallel": config.parallel,
        "dtype": config.model.dtype,
        "remat": config.model.remat,
        "pack": config.model.pack,
        "strips": config.model.strips,
        "batch_per_chip": batch_per_chip,
    }


def tables(rows: Sequence[dict[str, Any]]) -> tuple[Table, ...]:
    """Builds one table per network, in 1e12 FLOPs and 1e9 bytes per chip and step."""
    columns = (
        "slice",
        "mapped",
        "dtype",
        "remat",
        "packed",
        "strips",
        "batch per chip",
        "TFLOP",
        "GB accessed",
        "GB through HBM",
        "Mcycles",
        "GB needed",
    )
    networks: dict[str, list[tuple[Any, ...]]] = {}
    for row in rows:
        traffic = row.get("collectives", {}).values()
        peak, seconds, measured = row["peak_bytes"], row.get("seconds"), [None] * 6
        if row["fits"]:
            count, moved = sum(one["count"] for one in traffic), sum(one["bytes"] for one in traffic)
            through = f"{row['hbm_bytes'] / GB:.1f}" if "hbm_bytes" in row else None
            cycles = f"{row['cycles'] / 1e6:.0f}" if row.get("cycles") else None
            accessed = f"{row['bytes_accessed'] / GB:.1f}"
            measured = [f"{row['flops'] / 1e12:.2f}", accessed, through, cycles, count, f"{moved / GB:.3f}"]
        needs = [] if peak is None else [f"{peak / GB:.1f}"]
        networks.setdefault(network(row), []).append(
            (
                *(row[key] for key in ("topology", "parallel", "dtype")),
                "yes" if row["remat"] else "no",
                row["pack"],
                row["strips"],
                row["batch_per_chip"],
                *measured[:4],
                ", ".join([*needs, *["does not fit"] * (not row["fits"])]),
                *measured[4:],
                f"{1000 * seconds:.0f}, {row['bound']}" if seconds else None,
            )
        )
    columns = (*columns, "collectives", "their GB", "least ms")
    return tuple(Table(title, columns, shown) for title, shown in networks.items())


def network(row: dict[str, Any]) -> str:
    """Returns the heading of a table: the config, the width and input of the network, and the crops of its phases."""
    crops = ", ".join(f"{100 * crop:.3g} %" for crop in row["crops"])
    return f"{row['config']}, width {row['width']}, {row['size'][0]}×{row['size'][1]} pixels, crops of {crops}"


def report(rows: Sequence[dict[str, Any]]) -> Report:
    """Builds the report: the tables, how to read them, and their provenance."""
    text = (
        "Costs of the program for one chip and one step by XLA's cost and memory analysis; GB are 1e9 bytes. Bytes "
        "accessed are XLA's, of every instruction and in any memory. Bytes through HBM leave out arrays that stay in "
        "the chip's VMEM. They are read from the program's text (older rows have none), like the cycles that the "
        "compiler expects its instructions to take in sequence. The least time is max(FLOPs / peak, bytes accessed / "
        "bandwidth) of the chip's published figures, with the larger of the two named; nothing was run. The crop is "
        "traced, so that one program and its memory serve all phases of a run. The body of a loop is counted once: one "
        "of K dropout heads. The bytes of an all-reduce are those of its result."
    )
    facts = {
        f"chip {name}": f"{chip.flops / 1e12:g} TFLOP/s, {chip.memory / GB:.3g} GB, {chip.bandwidth / GB:g} GB/s"
        for name, chip in CHIPS.items()
    }
    return Report("Compiled for TPUs", text, (Section("The training step", "", tables(rows)),), facts | origin(rows))


def run(config_file: str, config: ConfigDict, topology: str, batch_per_chip: int, output: Path) -> list[dict[str, Any]]:
    """Compiles the program of a row unless `output` contains the row; returns all rows."""
    rows, key = read_rows(output), row_key(config_file, config, topology, batch_per_chip)
    if any(key == {name: row[name] for name in key} for row in rows):
        return rows
    return add_row(output, key | measure(config, topology, batch_per_chip), report)


def main(argv: list[str]) -> None:
    """Compiles the missing rows and prints the tables."""
    compile_only(argv)
    options, console = flags.FLAGS, rich.console.Console()
    rows: list[dict[str, Any]] = []
    for topology in options.topology:
        chip_of(topology)
    for topology in options.topology:
        for batch in options.batch_per_chip:
            rows = run(flags.FLAGS["config"].config_filename, options.config, topology, batch, Path(options.output))
    for table in tables(rows):
        show(table, console)
    say(f"wrote {options.output}, and the same as Markdown beside it", console)


if __name__ == "__main__":
    cli.define_config("config")
    flags.DEFINE_list("topology", ["v5e:2x4"], "Slices to compile for, such as v5e:2x4,v5e:16x16, or cpu.")
    flags.DEFINE_multi_integer("batch_per_chip", [2], "Images per chip; may be repeated.", lower_bound=1)
    flags.DEFINE_string("output", "runs/tpu_compile.json", "JSON file of the rows.")
    cli.run(main, required=["config"])
