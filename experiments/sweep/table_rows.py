"""Tables of runs: a row and a seed is a cell, trained, scored and written once, whatever is cut and called again."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import rich.console
from absl import app, flags
from ml_collections import ConfigDict

from experiments.sweep.grid import check_config, locked
from segjax.storage import write_json
from segjax.trained_run import load_run
from segjax.training import open_split, parallel, train
from segjax.training.evaluation import counter, sum_counts

CELL_FILE = "cell.json"

# `make_counts(config, model, num_classes)` builds the step over the evaluation split whose counts are added, and
# `scores(counts, images)` makes a cell's columns of them.
MakeCounts = Callable[[ConfigDict, Any, int], Callable]
Scores = Callable[[dict[str, Any], int], dict[str, Any]]


class Row(NamedTuple):
    """A row of a table: its name and what it changes in the table's config, field by field."""

    name: str
    changes: dict[str, Any]


def row_config(config: ConfigDict, row: Row, seed: int, steps: int | None = None) -> ConfigDict:
    """`config` with the changes of `row`, in place; with `steps` a shorter run of the same shape."""
    for key, value in row.changes.items():
        node, (*path, last) = config, key.split(".")
        for name in path:
            node = node[name]
        node[last] = value
    config.seed = seed
    if steps:
        config.training.steps = config.training.evaluate_every = steps
        config.training.checkpoint_every = min(config.training.checkpoint_every, steps)
        thirds = (steps // 3, steps // 3, steps - 2 * (steps // 3))
        config.training.phases = tuple(
            (phase[0], third, phase[2]) for phase, third in zip(config.training.phases, thirds, strict=False)
        )
    return config


def cell_folder(workdir: Path, row: Row, seed: int) -> Path:
    """Where a cell lives."""
    plain = row.name.replace("+ ", "with_").replace(" = ", "").replace(", ", "_").replace(" ", "_")
    return workdir / plain / str(seed)


def define_flags(name: str, seeds: Collection[int], steps: str, timed: str) -> None:
    """The flags of a program that makes such a table: where, which rows and seeds, how long; `timed` is of `--time`."""
    flags.DEFINE_string("workdir", f"runs/{name}", "Where cells and tables go.")
    flags.DEFINE_multi_string("row", None, "A row to run, by its name; may be repeated. Default: all.")
    flags.DEFINE_multi_integer("seed", list(seeds), "A seed; may be repeated.")
    flags.DEFINE_integer("steps", None, f"Steps a cell; default {steps}.")
    flags.DEFINE_bool("time", False, f"{timed}, too: on a machine with nothing else to do.")
    flags.DEFINE_bool("only_table", False, "Run nothing; print what was measured.")


def run_cells(
    options: flags.FlagValues,
    rows: Mapping[str, Row],
    config: Callable[[Row, int, int | None], ConfigDict],
    workdir: Path,
    console: rich.console.Console,
    make_counts: MakeCounts,
    scores: Scores,
) -> None:
    """Runs the cells that `define_flags`' options ask for and that are missing: `config(row, seed, steps)` is a cell's.

    Raises:
      app.UsageError: `--row` names none of `rows`.
    """
    unknown = [name for name in options.row or () if name not in rows]
    if unknown:
        raise app.UsageError(f"no row is called {', '.join(unknown)}; the rows are {'; '.join(rows)}")
    if not options.only_table:
        for seed in options.seed:
            for name in options.row or rows:
                run_cell(config(rows[name], seed, options.steps), rows[name], workdir, console, make_counts, scores)


def run_cell(
    config: ConfigDict,
    row: Row,
    workdir: Path,
    console: rich.console.Console,
    make_counts: MakeCounts,
    scores: Scores,
) -> None:
    """Trains `config`, scores its end and writes `cell.json`, or does nothing where there is one, or will be: another
    process that runs this cell is left to it.

    Raises:
      ConfigError: there is one of another config, such as of fewer steps.
    """
    folder = cell_folder(workdir, row, config.seed)
    lock = locked(folder)
    if lock is None:
        console.print(f"{row.name}, seed {config.seed}: another process runs it")
        return
    with lock:
        if (folder / CELL_FILE).exists():
            check_config(folder, config)
            return
        console.rule(f"{row.name}, seed {config.seed}")
        _run(config, row, folder, console, make_counts, scores)


def _run(
    config: ConfigDict,
    row: Row,
    folder: Path,
    console: rich.console.Console,
    make_counts: MakeCounts,
    scores: Scores,
) -> None:
    trained = train(config, folder, console=console)
    run = load_run(folder / "checkpoints" / "latest")
    mesh = parallel.make_mesh()
    step = parallel.map_step(
        make_counts(run.config, run.model, len(run.label_set.names)), run.config, mesh, arguments=2
    )
    source = open_split(run.config.data, run.config.data.eval_split)
    counts = sum_counts(
        counter(step, parallel.replicate(run.state, run.config, mesh), run.config, mesh), source, run.config
    )
    write_json(
        folder / CELL_FILE,
        {
            "row": row.name,
            "seed": config.seed,
            "steps": run.config.training.steps,
            **scores(counts, len(source)),
            "classes": list(run.label_set.names),
            "provenance": trained["provenance"],
        },
    )


def cells(workdir: Path, names: Collection[str]) -> list[dict[str, Any]]:
    """Every cell of these rows that was measured, in their order."""
    order = {name: i for i, name in enumerate(names)}
    found = [json.loads(path.read_text(encoding="utf-8")) for path in workdir.glob(f"*/*/{CELL_FILE}")]
    return sorted((cell for cell in found if cell["row"] in order), key=lambda cell: (order[cell["row"]], cell["seed"]))
