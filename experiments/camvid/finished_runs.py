"""Scores finished CamVid runs with boundary F1 beside IoU: `python -m experiments.camvid.finished_runs RUN RUN …`.

Runs whose configs differ in the seed only are one row. Every run is scored at the native resolution on the split of its
evaluation, with the checkpoint at its end.
"""

from collections.abc import Sequence
from typing import Any

import rich.console
from absl import app, flags

from experiments.camvid.selection import COLUMNS, make_counts
from experiments.camvid.uncertainty_ladder import TOLERANCE
from experiments.sweep import table_rows
from experiments.sweep.results_io import local_path, provenance_facts, publish
from segjax import cli
from segjax.reporting import Report, Section, Table, comparison, spread
from segjax.storage import read_json
from segjax.trained_run import TrainedRun, load_run
from segjax.training.checkpoint import FOLDER
from segjax.training.loop import SCORES_FILE


def measure(run: TrainedRun, row: str) -> dict[str, Any]:
    """Returns the columns of a run, with its row, seed, number of parameters and the provenance of its training."""
    step = make_counts(run.config, run.model, run.label_set.num_classes)
    counts, _ = table_rows.counts_over_split(run, step)
    finished = read_json(run.workdir / SCORES_FILE, {"provenance": dict}, "the scores of a run")
    return {
        "row": row,
        "seed": run.config.seed,
        "size": list(run.config.data.size),
        "parameters": run.state.num_parameters,
        **table_rows.segmentation_columns(counts["confusion"], counts["boundary"]),
        "classes": list(run.label_set.names),
        "provenance": finished["provenance"],
    }


def report(cells: Sequence[dict[str, Any]], split: str) -> Report:
    """Returns the report of all rows, with the IoU of every class."""
    lines, names = [], cells[0]["classes"]
    for row in dict.fromkeys(cell["row"] for cell in cells):
        own = [cell for cell in cells if cell["row"] == row]
        per_class = [spread(list(values)) for values in zip(*(cell["iou_per_class"] for cell in own), strict=True)]
        millions, size = f"{own[0]['parameters'] / 1e6:.2f}", "×".join(map(str, own[0]["size"]))
        lines.append((row, len(own), size, millions, *table_rows.over_seeds(cells, row, COLUMNS.values()), *per_class))
    best = max(lines, key=lambda line: line[4].mean)
    columns = ("row", "seeds", "size", "M parameters", *COLUMNS, *names)
    text = (
        f"{best[0]} has the highest mean IoU, {best[4].mean:.3f}. Runs are scored at the native resolution on {split}; "
        f"boundary F1 has a tolerance of {TOLERANCE:g} pixels."
    )
    table = Table("Finished runs", columns, lines, tuple(COLUMNS))
    return Report("CamVid: finished runs", text, (Section("All runs", "", (table,)),), provenance_facts(cells))


def main(argv: list[str]) -> None:
    """Scores the runs, and prints and writes the table."""
    if len(argv) < 2:
        raise app.UsageError("expected one or more RUNs, each the workdir of a finished run; got none")
    runs = [load_run(f"{path}/{FOLDER}/latest") for path in argv[1:]]
    groups = comparison.group_runs(runs) if len(runs) > 1 else [comparison.Group(runs[0].name, tuple(runs))]
    cells = [measure(run, group.name) for group in groups for run in group.runs]
    data = report(cells, runs[0].config.data.eval_split)
    publish(data, local_path(flags.FLAGS.workdir), "camvid_finished_runs", {"cells": cells}, rich.console.Console())


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/camvid_finished_runs", "Folder of the table.")
    cli.run(main, required=[])
