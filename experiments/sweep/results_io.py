"""Output and provenance of reports, results of cells in their JSON, and their import into another workdir.

`--measured=REPORT.json` imports the cells of an earlier report, from another machine or a lost workdir. Checkpoints are
not part of the report.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.console

from experiments.sweep.grid import FORM, Cell, check_same, result_of, row_name
from experiments.sweep.parallel_cells import RESULT_FILE
from segjax.reporting import Report, show, write_report
from segjax.storage import StorageError, read_json, say, write_json
from segjax.training.config import CONFIG_FILE, from_leaves, leaves
from segjax.training.provenance import provenance


def local_path(path: str | os.PathLike) -> Path:
    """Returns a local path; raises StorageError for a bucket, where several processes cannot rename and append."""
    if "://" in os.fspath(path):
        raise StorageError(f"{os.fspath(path)}: expected a local folder; only a single run may be in a bucket")
    return Path(path)


def publish(report: Report, folder: Path, name: str, data: Any, console: rich.console.Console) -> None:
    """Prints the text and tables of a report, and writes it to `folder` in every format, with `data` in the JSON."""
    for section in report.sections:
        console.print("\n".join(["", section.title, section.text, ""]), highlight=False, markup=False)
        for table in section.tables:
            show(table, console)
    written = write_report(report, folder, name, data)
    formats = sorted({file.suffix.removeprefix(".").upper() for file in written[1:]})
    say(f"Wrote {written[0]} and, in the same folder, {', '.join(formats)}", console)


def provenance_facts(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the facts of a report that are derived from the provenance of the results of its cells.

    The time is left out if no result has one.
    """
    origins = [result["provenance"] for result in results] or [provenance()]
    seconds = sum(origin.get("wall_seconds", 0) for origin in origins)
    time = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes"
    # Some committed results have the mean time of their report.
    averaged = sum("wall_seconds_of" in origin for origin in origins)
    note = f"; for {averaged} cells the mean of an earlier report" if averaged else ""

    def distinct(key: str) -> list[Any]:
        values = [origin[key] for origin in origins]
        return [value for i, value in enumerate(values) if value not in values[:i]]

    total = f"{time}, the sum over the cells (wall time of each since its last start{note})"
    timed = {"time": total} if any("wall_seconds" in origin for origin in origins) else {}
    return timed | {
        "command": sorted({re.sub(r" --parent=\d+", "", origin["command"]) for origin in origins}),
        "commit": distinct("commit"),
        "device": distinct("device"),
        "CPU threads per process": distinct("cpu_threads"),
        "python": distinct("python"),
        "versions": distinct("versions"),
    }


def cells_as_json(cells: Sequence[Cell], results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns the cells that have a result, ready for JSON.

    Returns:
      "config": the fields of the cells that do not change them; "cells": one dictionary per cell, with "changes" (the
      fields that the sweep set, and their values) and the entries of its result.
    """
    return {
        "config": {
            key: value for cell in cells for key, value in leaves(cell.config).items() if key not in cell.changes
        },
        "cells": [{"changes": dict(cell.changes), **results[cell.name]} for cell in cells if cell.name in results],
    }


def cells_from_json(file: Path) -> tuple[list[Cell], dict[str, dict[str, Any]], dict[str, Any]]:
    """Returns the cells of a sweep's report, their results by name, and the facts of the report, from its JSON alone.

    Raises:
      StorageError: the file does not exist, or is not the JSON of a sweep's report.
      ConfigError: a field of its config is unknown.
    """
    form = {"facts": dict, "data": {"config": dict, "cells": [{"changes": dict} | FORM]}}
    content = read_json(file, form, "the JSON of a sweep's report")
    cells, by_cell = [], {}
    for entry in content["data"]["cells"]:
        config = from_leaves(content["data"]["config"] | entry["changes"])
        fields = leaves(config)
        changes = {key: fields[key] for key in entry["changes"]}  # with tuples for lists
        cell = Cell(row_name({key: value for key, value in changes.items() if key != "seed"}), changes, config)
        cells.append(cell)
        by_cell[cell.name] = {key: value for key, value in entry.items() if key != "changes"}
    return cells, by_cell, content["facts"]


def import_results(cells: Sequence[Cell], workdir: Path, file: Path, part: str | None = None) -> int:
    """Writes to `workdir` the results of `cells` that `file` contains and `workdir` does not; returns their number.

    A report of several sweeps has one `part` per sweep; a part that it does not have has no cells.

    Raises:
      StorageError: the file does not exist, or is not the JSON of a sweep's report.
      ConfigError: its cells were run with another config.
    """
    form = {"config": dict, "cells": [{"changes": dict} | FORM]}
    if part is None:
        data = read_json(file, {"data": form}, "the JSON of a sweep's report")["data"]
    elif part not in read_json(file, {"data": dict}, "the JSON of a report of sweeps")["data"]:
        return 0
    else:
        data = read_json(file, {"data": {part: form}}, "the JSON of a report of sweeps")["data"][part]
    config, entries = data["config"], data["cells"]
    changes = [entry.pop("changes") for entry in entries]
    # Reports of earlier versions lack a field that only some of their cells change.
    unknown = {key for fields in changes for key in fields} - config.keys()
    imported = 0
    for cell in cells:
        wanted = json.loads(json.dumps(dict(cell.changes)))
        if wanted not in changes or result_of(cell, workdir) is not None:
            continue
        check_same(file, config, cell.config, ignore=wanted.keys() | unknown)
        folder = workdir / cell.name
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG_FILE, leaves(cell.config))  # `result_of` compares it, as for a cell that ran here
        write_json(folder / RESULT_FILE, entries[changes.index(wanted)])
        imported += 1
    return imported
