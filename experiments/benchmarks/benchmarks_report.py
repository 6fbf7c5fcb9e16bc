"""Results of the benchmarks as files, and as tables of times, targets and what each section adds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich.console

from experiments.benchmarks.baselines import NOT_INSTALLED, OURS, Setting, Target, versions
from experiments.benchmarks.timing import threads
from segjax.reporting import Report, Section, Table, show
from segjax.storage import read_json, say, write_json
from segjax.training import ConfigError
from segjax.training.provenance import provenance

_TEXT = (
    "Each number in a table of times is the time of a column divided by segjax's in the same row: above 1 it is slower "
    "than segjax, below 1 faster. Times are medians of interleaved rounds in one process, on the same arrays. The "
    "results of a row agreed before they were timed."
)


def store(workdir: Path, section: str, facts: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
    """Writes the rows of a section with their setting."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / f"rows_{section}.json", {"facts": facts, "rows": rows})


def results(workdir: Path, sections: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the rows of each section in the workdir.

    Raises:
      ConfigError: a section was measured in another setting, so that the rows are not comparable.
    """
    found: dict[str, dict[str, Any]] = {}
    expected = json.loads(json.dumps(facts))
    for section in sections:
        path = workdir / f"rows_{section}.json"
        found[section] = {}
        if path.is_file():
            stored = read_json(path, {"facts": dict, "rows": dict}, "the rows of a benchmark", "Remove the file")
            for key, value in expected.items():
                if stored["facts"].get(key) != value:
                    raise ConfigError(
                        f"{path} was measured with {key} = {stored['facts'].get(key)}, and this run has {value}: "
                        "choose another --workdir, or remove the file"
                    )
            found[section] = stored["rows"]
    return found


def times(module: Any, measured: Mapping[str, Any]) -> Table:
    """Builds the table of times: segjax in milliseconds, the others as multiples of it."""
    used = [label for label in module.COLUMNS if any(_cell(row, label) is not None for row in measured.values())]
    rows = [(name, row["ms"][OURS], *(_cell(row, label) for label in used)) for name, row in measured.items()]
    return Table(module.TITLE, ("", f"{OURS}, ms", *used), rows)


def _cell(row: Mapping[str, Any], label: str) -> float | str | None:
    if label in row["not_installed"]:
        return NOT_INSTALLED
    return row["ms"][label] / row["ms"][OURS] if label in row["ms"] else None


def target_table(found: list[Target]) -> Table:
    """Builds the table of targets: limit, measurement and outcome."""
    outcomes = {True: "met", False: "missed", None: NOT_INSTALLED}
    rows = [
        (
            target.of,
            target.number,
            f"{'≥' if target.least else '≤'} {target.limit:g}",
            target.ratio,
            outcomes[target.met],
        )
        for target in found
    ]
    return Table("Targets", ("", "number", "target", "measured", ""), rows)


def show_all(
    modules: Mapping[str, Any], measured: Mapping[str, Any], setting: Setting, console: rich.console.Console
) -> Report:
    """Prints the tables of all measured sections and returns them as a report."""
    sections, targets = [], []
    for name, module in modules.items():
        rows = measured[name]
        if not rows:
            continue
        tables = [times(module, rows)] if all(OURS in row["ms"] for row in rows.values()) else []
        added = {
            kind: getattr(module, kind)(rows) for kind in ("tables", "pictures", "targets") if hasattr(module, kind)
        }
        targets += added.get("targets", [])
        tables += added.get("tables", [])
        text = " ".join(module.__doc__.split())
        sections.append(Section(module.TITLE, text, tuple(tables), added.get("pictures", ())))
    met = sum(target.met is True for target in targets)
    missed = sum(target.met is False for target in targets)
    summary = f"{met} met, {missed} missed, {len(targets) - met - missed} without their baseline."
    sections.insert(0, Section("Targets", summary, (target_table(targets),)))
    for section in sections:
        for table in section.tables:
            show(table, console)
    say(f"Targets: {summary}", console)
    missing = [package for package, version in versions().items() if version == NOT_INSTALLED]
    if missing:
        say(f"Not installed and not timed: {', '.join(missing)}. The extra bench installs all of them.", console)
    facts = {**setting._asdict(), "threads": threads(), "baselines": versions(), **provenance()}
    return Report("Speed in comparison with other libraries", _TEXT, tuple(sections), facts)
