"""What the JSON of a sweep's report keeps of its cells, and how another workdir takes them over from there.

Seeds may be run on several machines, or go on where a workdir was lost: `--measured=REPORT.json` of any study.
Checkpoints do not come along: a figure that is drawn from trained networks is drawn from those that are here.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.sweep.grid import Cell, result_of
from experiments.sweep.parallel_cells import RESULT_FILE
from segjax.storage import write_json
from segjax.training import ConfigError, DataError
from segjax.training.config import defaults, leaves
from segjax.training.loop import CONFIG_FILE


def record(cells: Sequence[Cell], results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The cells that have a result, for JSON.

    Returns:
      "config": the fields that no cell changes; "cells": a dictionary each, with "changes" (the fields that the sweep
      set, and their values) and all of its result.
    """
    changed = {key for cell in cells for key in cell.changes}
    return {
        "config": {key: value for key, value in leaves(cells[0].config).items() if key not in changed},
        "cells": [
            {"changes": dict(cell.changes), **results[cell.name]}
            for cell in cells
            if results.get(cell.name) is not None
        ],
    }


def take_over(cells: Sequence[Cell], workdir: Path, file: Path) -> int:
    """Writes into `workdir` the results that `file` holds of `cells` and that are not there yet.

    Returns:
      How many.

    Raises:
      DataError: the file is not there, or not the JSON of a sweep's report.
      ConfigError: its cells were run with another config.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))["data"]
        config, entries = data["config"], [dict(entry) for entry in data["cells"]]
        changes = [entry.pop("changes") for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: expected the JSON of a sweep's report ({type(error).__name__}: {error})") from error
    taken = 0
    for cell in cells:
        wanted = json.loads(json.dumps(dict(cell.changes)))
        if wanted not in changes or result_of(cell, workdir) is not None:
            continue
        # A field that came after the report was written is as if it had its default.
        was, now = (json.loads(json.dumps(fields)) for fields in (leaves(defaults()) | config, leaves(cell.config)))
        for key in sorted(now.keys() - wanted.keys()):
            if was.get(key) != now[key]:
                raise ConfigError(f"{file} was run with config.{key} = {was.get(key)!r}; expected {now[key]!r}")
        (workdir / cell.name).mkdir(parents=True, exist_ok=True)
        # So that the folder is known as a cell of this config, as one that was run here is.
        write_json(workdir / cell.name / CONFIG_FILE, leaves(cell.config))
        write_json(workdir / cell.name / RESULT_FILE, entries[changes.index(wanted)])
        taken += 1
    return taken
