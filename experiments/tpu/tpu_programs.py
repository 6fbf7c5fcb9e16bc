"""Cost of each loss and metric on a TPU chip, by its compiler: `python -m experiments.tpu.tpu_programs`.

Nothing is executed. The programs (value and gradient of a loss, or the counts of a metric) are compiled ahead of time
for one chip of a slice (`--topology=v5e:2x2`), as in `tpu_compile`. A copy of the logits is compiled too, as the unit
of cost. The compiler does not estimate gathers and scatters of single elements, so the table counts them. Each row is
written once measured; an interrupted program resumes with the missing rows.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.benchmarks import benchmarks_losses, benchmarks_metrics
from experiments.tpu.tpu_slices import add_row, compile_only, devices_of, origin, read_rows, traffic_and_cycles
from segjax import cli, metrics
from segjax.reporting import Report, Section, Table, show
from segjax.training import ConfigError

COPY = benchmarks_losses.COPY
METRICS: dict[str, Callable[..., Any]] = benchmarks_metrics.COUNTS | {
    "boundary counts": lambda z, y, classes: metrics.boundary_counts(
        y, jnp.argmax(z, axis=-1), classes, tolerance=benchmarks_metrics.TOLERANCE
    ),
    "score histogram of a class": lambda z, y, classes: metrics.score_histogram(z[..., 1], y == 1),
    "calibration bins": lambda z, y, classes: metrics.calibration_bins(z, y),
    "uncertainty histogram": lambda z, y, classes: metrics.uncertainty_histogram(
        metrics.max_probability(z), jnp.argmax(z, axis=-1) == y, maximum=1.0
    ),
}


def programs(shape: tuple[int, int, int], classes: int) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Returns functions and the shapes of their operands by name; the first is the copy."""
    logits, labels = benchmarks_losses.operands("", shape, classes)
    # Negated, because XLA may return an unchanged array without a copy.
    found: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {COPY: (jnp.negative, (logits,))}
    for name, loss in benchmarks_losses.LOSSES.items():
        found[name] = jax.value_and_grad(loss), benchmarks_losses.operands(name, shape, classes)
    for name, count in METRICS.items():
        found[name] = partial(count, classes=classes), (logits, labels)
    return found


def costs(function: Callable[..., Any], operands: Sequence[Any], device: Any) -> dict[str, Any]:
    """Compiles the function for one device and returns its cost by the compiler."""
    here = NamedSharding(Mesh([device], ("devices",)), PartitionSpec())
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for x in operands]
    compiled = jax.jit(function).lower(*shapes).compile()
    hlo, memory = compiled.as_text(), compiled.memory_analysis()
    return {
        **traffic_and_cycles(compiled),
        "extra_bytes": memory.temp_size_in_bytes,
        **{kind: len(re.findall(rf" {kind}\(", hlo)) for kind in ("gather", "scatter", "sort")},
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Builds the table of cycles, bytes through HBM and temporary memory, with their ratios to the copy."""
    copy = next(row for row in rows if row["of"] == COPY)

    def over(row: dict[str, Any], key: str) -> float | None:
        return row[key] / copy[key] if row[key] is not None and copy[key] else None

    lines = [
        (
            row["of"],
            None if row["cycles"] is None else row["cycles"] / 1e6,
            over(row, "cycles"),
            row["hbm_bytes"] / 1e9,
            over(row, "hbm_bytes"),
            row["extra_bytes"] / 1e6,
            row["gather"] + row["scatter"],
            row["sort"],
        )
        for row in rows
    ]
    columns = ("", "Mcycles", "/ copy", "GB through HBM", "/ copy's", "temporary MB", "gathers, scatters", "sorts")
    first = rows[0]
    size = "×".join(map(str, (*first["shape"], first["classes"])))
    return Table(f"One chip of {first['topology']}, float32 logits of {size}", columns, lines)


def report(rows: Sequence[dict[str, Any]]) -> Report:
    """Builds the report: the table, how to read it, and its provenance."""
    text = (
        "Compiled ahead of time, not run. Cycles are the compiler's estimate for all instructions in sequence; it has "
        "no estimate for gathers, scatters and sorts. Bytes are those through the chip's HBM, read from the program's "
        "text and padded to its tiles. Temporary memory is without arguments and results."
    )
    return Report(
        "Losses and metrics, compiled for a TPU", text, (Section("Programs", "", (table(rows),)),), origin(rows[:1])
    )


def run(
    topology: str, shape: tuple[int, int, int], classes: int, output: Path, only: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Compiles the programs that `output` lacks (those whose name contains a part in `only`, and the copy).

    Returns:
      All rows.

    Raises:
      ConfigError: the topology is unknown, or `output` has rows of another topology or size.
    """
    rows, setting = read_rows(output), {"topology": topology, "shape": list(shape), "classes": classes}
    for row in rows:
        if not setting.items() <= row.items():
            found = {key: row[key] for key in setting}
            raise ConfigError(f"{output} has rows of {found}, and this run has {setting}; choose another --output")
    device = devices_of(topology)[0]
    for name, (function, operands) in programs(shape, classes).items():
        chosen = not only or name == COPY or any(part in name for part in only)
        if chosen and not any(row["of"] == name for row in rows):
            rows = add_row(output, {"of": name, **setting, **costs(function, operands, device)}, report)
    return rows


def main(argv: list[str]) -> None:
    """Compiles the missing rows and prints the table."""
    compile_only(argv)
    options = flags.FLAGS
    shape = tuple(int(size) for size in options.shape)
    rows = run(options.topology, shape, options.classes, Path(options.output), options.only)
    show(table(rows), rich.console.Console())
    print(f"wrote {options.output}, and the same as Markdown beside it")


if __name__ == "__main__":
    flags.DEFINE_string("topology", "v5e:2x2", "Slice that contains the chip to compile for, or cpu.")
    flags.DEFINE_list("shape", ["2", "512", "1024"], "Images, height and width of the logits.")
    flags.DEFINE_integer("classes", 19, "Classes of the logits.", lower_bound=2)
    flags.DEFINE_list("only", [], "Parts of the names of programs; default all.")
    flags.DEFINE_string("output", "runs/tpu_programs.json", "JSON file of the rows.")
    cli.run(main, required=[])
