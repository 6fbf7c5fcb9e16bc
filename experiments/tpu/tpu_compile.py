"""Cost of a training step on a TPU slice, by its compiler: `python -m experiments.tpu.tpu_compile --config=…`.

The step of any config is compiled ahead of time for a named slice, `--topology=v5e:2x4`, by the compiler that a TPU VM
has (`pip install '.[tpu]'`), on a machine without a TPU, in minutes at full size. Of the program for one chip it says
FLOPs, bytes accessed, the memory it needs, its collectives, and the time that the chip's published figures allow. A
program that does not fit the chip's memory is a row that says so.

Each row is written as it is done, and one that `--output` holds already is not compiled again: what was cut carries
on, and several commands (`--config.model.remat=True`, another topology) fill one table. `--topology=cpu` compiles for
the devices of this machine.
"""

import copy
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
from absl import app, flags
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict, config_flags

from experiments.tpu.hlo_collectives import collectives
from experiments.tpu.hlo_traffic import estimated_cycles, hbm_traffic
from experiments.tpu.tpu_slices import CHIPS, CPU, Chip, chip_of, compiler_provenance, devices_of, roofline
from segjax import cli
from segjax.data.labels import LABEL_SETS
from segjax.reporting import Report, Section, Table, as_markdown, show
from segjax.storage import write_json
from segjax.training import ConfigError, parallel, validate
from segjax.training.objective import Hyperparams, hparams_at, hparams_from_config, phases
from segjax.training.train_step import init_state, make_model, make_train_step

# Height and width as the loader hands the images over; of the sets that are not here they follow from the config.
NATIVE_SIZES = {
    "camvid": (360, 480),
    "crackforest": (320, 480),
    "cityscapes": (1024, 2048),
    "lost_and_found": (1024, 2048),
}
GB = 1e9


def lower(config: ConfigDict, devices: Sequence[Any], hparams: Hyperparams) -> jax.stages.Lowered:
    """The training step of `config` on `devices`, lowered from shapes alone: nothing is read, nothing computed.

    Raises:
      ConfigError: the config makes no sense, or is mapped by `pmap`.
    """
    validate(config)
    if config.parallel == "pmap":
        raise ConfigError(
            "config.parallel must be jit or shard_map, since pmap compiles for devices that are here; got 'pmap'"
        )
    mesh = parallel.make_mesh(devices)
    parallel.check_batch(config, mesh)
    axis_name, classes = parallel.axis_name(config), num_classes(config)
    model = make_model(config, classes, axis_name)
    batch, (height, width) = config.training.global_batch, native_size(config)

    def arrays(spec: P, tree: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    images = {
        "image": jax.ShapeDtypeStruct((batch, height, width, config.data.channels), np.uint8),
        "label": jax.ShapeDtypeStruct((batch, height, width), np.uint8),
        "index": jax.ShapeDtypeStruct((batch,), np.uint32),
    }
    step = make_train_step(config, model, classes, axis_name)
    state = jax.eval_shape(lambda: init_state(config, model))
    mapped = parallel.map_step(step, config, mesh, arguments=3, donate=True)
    return mapped.lower(arrays(P(), state), arrays(P(parallel.AXIS), images), arrays(P(), hparams))


def num_classes(config: ConfigDict) -> int:
    """The classes of the config's data set, without void."""
    return len(config.data.class_names) if config.data.name == "folder" else LABEL_SETS[config.data.name].num_classes


def native_size(config: ConfigDict) -> tuple[int, int]:
    """Height and width of the images that the step is given."""
    if config.data.name.startswith("road_debris"):
        return tuple(config.data.scene_size)
    return NATIVE_SIZES.get(config.data.name, tuple(config.data.size))


def hypers(config: ConfigDict) -> list[Hyperparams]:
    """The traced hyperparameters of each phase of a run; one compilation serves them all."""
    return [hparams_at(phase.end, hparams_from_config(config), phases(config)) for phase in phases(config)]


def measure(config: ConfigDict, topology: str, batch_per_chip: int) -> dict[str, Any]:
    """Compiles the step of `config` for `topology`, and says what it costs one chip.

    Returns:
      "flops", "bytes_accessed", "hbm_bytes", "memory" (bytes by what they hold), "peak_bytes", "collectives" (by kind,
      how many and their bytes), "loops", "seconds" (the roofline) and its "bound"; with "fits" False "peak_bytes"
      alone, None where the compiler does not say. "compile_seconds" is the wall time.
    """
    devices = devices_of(topology)
    config = copy.deepcopy(config)
    config.training.global_batch = batch_per_chip * len(devices)
    lowered = lower(config, devices, hypers(config)[0])
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
    """The bytes that a program needs which the compiler refused, from its message; None where it does not say.

    >>> needed("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.") / 2**30
    20.5
    """
    found = re.search(r"Used ([\d.]+)([KMGT]) of", message)
    return float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1) if found else None


def costs(compiled: jax.stages.Compiled, chip: Chip | None) -> dict[str, Any]:
    """What the compiler says of a program for one device, and the roofline of `chip`."""
    cost, memory, hlo = compiled.cost_analysis(), compiled.memory_analysis(), compiled.as_text()
    parts = {
        name: getattr(memory, f"{name}_size_in_bytes")
        for name in ("argument", "output", "alias", "temp", "generated_code")
    }
    seconds, bound = roofline(cost["flops"], cost["bytes accessed"], chip) if chip else (None, None)
    return {
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "hbm_bytes": hbm_traffic(hlo),
        "cycles": estimated_cycles(hlo),
        "memory": parts,
        # The new state is written where the old one was.
        "peak_bytes": sum(parts.values()) - 2 * parts["alias"],
        "collectives": {kind: traffic._asdict() for kind, traffic in collectives(hlo).items()},
        "loops": len(re.findall(r" while\(", hlo)),
        "seconds": seconds,
        "bound": bound,
    }


def what(config_file: str, config: ConfigDict, topology: str, batch_per_chip: int) -> dict[str, Any]:
    """What a row is of, and what tells it from the others."""
    return {
        "config": Path(config_file.partition(":")[0]).stem,
        "crops": [float(hparams.crop_fraction) for hparams in hypers(config)],
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
    """The rows for people, a table a network: 1e12 FLOPs and 1e9 bytes, of one chip and step."""
    columns = (
        "slice",
        "mapped",
        "dtype",
        "remat",
        "packed",
        "strips",
        "a chip",
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
    """What a row is of: the config, the network's width and input, and the crops of its phases."""
    crops = ", ".join(f"{100 * crop:.3g} %" for crop in row["crops"])
    return f"{row['config']}, width {row['width']}, {row['size'][0]}×{row['size'][1]} pixels, crops of {crops}"


def report(rows: Sequence[dict[str, Any]]) -> Report:
    """What was compiled, how to read it, and where it comes from."""
    text = (
        "Of the program for one chip and one step, as XLA's cost and memory analysis have it; GB are 1e9 bytes. The "
        "bytes accessed are XLA's, of every instruction and wherever they lie; through the HBM go those that are not "
        "kept in the chip's VMEM, read from the program's text (a row of before that was read has none), as are the "
        "cycles that the compiler itself expects its instructions to take, one after the other. The least "
        "time is max(FLOPs / peak, bytes accessed / bandwidth) of the chip's published figures, and which of the two "
        "it is: nothing was run. The crop is traced, so one program, and its memory, serves all phases of a run. The "
        "body of a loop is counted once: of K dropout heads, one. An all-reduce's bytes are those of its result."
    )
    facts = {
        f"chip {name}": f"{chip.flops / 1e12:g} TFLOP/s, {chip.memory / GB:.3g} GB, {chip.bandwidth / GB:g} GB/s"
        for name, chip in CHIPS.items()
    }
    for key in ("command", "commit", "python", "versions"):
        values = [json.dumps(row["provenance"][key]).strip('"') for row in rows]
        facts[key] = "; ".join(dict.fromkeys(values))
    return Report("Compiled for TPUs", text, (Section("The training step", "", tables(rows)),), facts)


def run(config_file: str, config: ConfigDict, topology: str, batch_per_chip: int, output: Path) -> list[dict[str, Any]]:
    """Adds a row to `output`, and to the Markdown beside it, unless it is there.

    Returns:
      All rows.
    """
    rows = json.loads(output.read_text(encoding="utf-8")) if output.exists() else []
    wanted = what(config_file, config, topology, batch_per_chip)
    if not any(wanted == {key: row[key] for key in wanted} for row in rows):
        new = {**wanted, **measure(config, topology, batch_per_chip), "provenance": compiler_provenance()}
        # Another process may have added one meanwhile.
        rows = [*(json.loads(output.read_text(encoding="utf-8")) if output.exists() else []), new]
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, rows)
        output.with_suffix(".md").write_text(as_markdown(report(rows), output.stem), encoding="utf-8")
    return rows


def main(argv: list[str]) -> None:
    """Compiles what is missing, and prints the table."""
    if argv[1:]:
        raise app.UsageError(f"unexpected {' '.join(argv[1:])}")
    # Nothing is run here, and with libtpu installed JAX would look for a TPU.
    jax.config.update("jax_platforms", CPU)
    options, console = flags.FLAGS, rich.console.Console()
    rows: list[dict[str, Any]] = []
    for topology in options.topology:
        chip_of(topology)
    for topology in options.topology:
        for batch in options.batch_per_chip:
            rows = run(flags.FLAGS["config"].config_filename, options.config, topology, batch, Path(options.output))
    for table in tables(rows):
        show(table, console)
    console.print(f"In {options.output}, and as Markdown beside it")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The experiment; --config.model.remat=True changes a field.")
    flags.DEFINE_list("topology", ["v5e:2x4"], "Slices, such as v5e:2x4,v5e:16x16; or cpu.")
    flags.DEFINE_multi_integer("batch_per_chip", [2], "Images a chip; may be given again.", lower_bound=1)
    flags.DEFINE_string("output", "runs/tpu_compile.json", "Where the rows go.")
    cli.run(main, required=["config"])
