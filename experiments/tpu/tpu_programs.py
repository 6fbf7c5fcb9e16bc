"""Cost of each loss and metric on a TPU chip, by its compiler: `python -m experiments.tpu.tpu_programs`.

Nothing is executed. The programs (value and gradient of a loss, or the counts of a metric) are compiled ahead of time
for one chip of a slice (`--topology=v5e:2x2`), as in `tpu_compile`. A copy of the logits is compiled too, as the unit
of cost. The compiler does not estimate gathers and scatters of single elements, so the table counts them. Each row is
written once measured; an interrupted program resumes with the missing rows.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.benchmarks import benchmarks_losses, benchmarks_metrics
from experiments.tpu.hlo_traffic import estimated_cycles, hbm_traffic
from experiments.tpu.tpu_slices import CPU, compiler_provenance, devices_of
from segjax import cli, metrics
from segjax.reporting import Report, Section, Table, as_markdown, show
from segjax.storage import write_json
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
    """By name a function and the shapes of its operands; the first is the copy."""
    logits, labels = benchmarks_losses.operands("", shape, classes)
    # Negated, for a plain copy could be handed back uncopied.
    found: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {COPY: (jnp.negative, (logits,))}
    for name, loss in benchmarks_losses.LOSSES.items():
        found[name] = jax.value_and_grad(loss), benchmarks_losses.operands(name, shape, classes)
    for name, count in METRICS.items():
        found[name] = partial(count, classes=classes), (logits, labels)
    return found


def costs(function: Callable[..., Any], operands: Sequence[Any], device: Any) -> dict[str, Any]:
    """What the compiler says of the function's program for one device."""
    here = NamedSharding(Mesh([device], ("devices",)), PartitionSpec())
    given = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for x in operands]
    compiled = jax.jit(function).lower(*given).compile()
    hlo, memory = compiled.as_text(), compiled.memory_analysis()
    return {
        "hbm_bytes": hbm_traffic(hlo),
        "cycles": estimated_cycles(hlo),
        "extra_bytes": memory.temp_size_in_bytes,
        **{kind: len(re.findall(rf" {kind}\(", hlo)) for kind in ("gather", "scatter", "sort")},
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Each program beside the copy: cycles, bytes through the HBM, and memory beside arguments and results."""
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
    columns = ("", "Mcycles", "/ copy", "GB through HBM", "/ copy's", "MB beside", "gathers, scatters", "sorts")
    first = rows[0]
    size = "×".join(map(str, (*first["shape"], first["classes"])))
    return Table(f"One chip of {first['topology']}, float32 logits of {size}", columns, lines)


def report(rows: Sequence[dict[str, Any]]) -> Report:
    """The table, how to read it, and where it comes from."""
    text = (
        "Compiled ahead of time, not run. Cycles are those that the compiler itself expects, of all instructions one "
        "after the other, and it expects none of a gather, a scatter or a sort; bytes are those that go through the "
        "chip's HBM, read from the program's text, padded as they lie there; MB beside the arguments and results."
    )
    origin = rows[0]["provenance"]
    facts = {key: json.dumps(origin[key]).strip('"') for key in ("command", "commit", "python", "versions")}
    return Report("Losses and metrics, compiled for a TPU", text, (Section("Programs", "", (table(rows),)),), facts)


def run(
    topology: str, shape: tuple[int, int, int], classes: int, output: Path, only: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Adds to `output`, and to the Markdown beside it, the rows it lacks; of those named `only`, and of the copy.

    Returns:
      All rows.

    Raises:
      ConfigError: there is no such topology, or `output` has rows of another one or of another size.
    """
    rows = json.loads(output.read_text(encoding="utf-8")) if output.exists() else []
    setting = {"topology": topology, "shape": list(shape), "classes": classes}
    for row in rows:
        if not setting.items() <= row.items():
            held = {key: row[key] for key in setting}
            raise ConfigError(f"{output} has rows of {held}, and this run has {setting}: take another --output")
    device = devices_of(topology)[0]
    for name, (function, operands) in programs(shape, classes).items():
        there = any(row["of"] == name for row in rows)
        if there or (only and name != COPY and not any(part in name for part in only)):
            continue
        rows.append({"of": name, **setting, **costs(function, operands, device), "provenance": compiler_provenance()})
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
    options = flags.FLAGS
    shape = tuple(int(size) for size in options.shape)
    rows = run(options.topology, shape, options.classes, Path(options.output), options.only)
    show(table(rows), rich.console.Console())
    print(f"In {options.output}, and as Markdown beside it")


if __name__ == "__main__":
    flags.DEFINE_string("topology", "v5e:2x2", "A slice, of which one chip is compiled for; or cpu.")
    flags.DEFINE_list("shape", ["2", "512", "1024"], "Images, height and width of the logits.")
    flags.DEFINE_integer("classes", 19, "Classes of the logits.", lower_bound=2)
    flags.DEFINE_list("only", [], "Parts of the names of programs; all if none is given.")
    flags.DEFINE_string("output", "runs/tpu_programs.json", "Where the rows go.")
    cli.run(main, required=[])
