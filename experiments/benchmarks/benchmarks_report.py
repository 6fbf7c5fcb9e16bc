"""What a benchmark has measured so far, as files, and as tables: times, targets, and what each section adds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich.console

from experiments.benchmarks.baselines import NOT_INSTALLED, OURS, Setting, Target, versions
from experiments.benchmarks.timing import threads
from segjax.reporting import Report, Section, Table, show
from segjax.storage import write_json
from segjax.training import ConfigError
from segjax.training.provenance import provenance

_TEXT = (
    "Each number of a table of times is a way's time divided by segjax's in the same row: above 1 it takes longer than "
    "segjax, below 1 it is faster. Medians of interleaved rounds in one process, on the same arrays; before a row was "
    "timed, its ways had found the same."
)


def store(workdir: Path, section: str, facts: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
    """Writes the rows of a section with the setting they were measured in."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / f"rows_{section}.json", {"facts": facts, "rows": rows})


def results(workdir: Path, sections: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of each section that the workdir holds.

    Raises:
      ConfigError: one was measured in another setting, with which these could not be compared.
    """
    found: dict[str, dict[str, Any]] = {}
    expected = json.loads(json.dumps(facts))
    for section in sections:
        path = workdir / f"rows_{section}.json"
        found[section] = {}
        if path.is_file():
            held = json.loads(path.read_text(encoding="utf-8"))
            for key, value in expected.items():
                if held["facts"].get(key) != value:
                    raise ConfigError(
                        f"{path} was measured with {key} = {held['facts'].get(key)}, and this run has {value}: "
                        "take another --workdir, or remove the file"
                    )
            found[section] = held["rows"]
    return found


def times(module: Any, measured: Mapping[str, Any]) -> Table:
    """Ours in milliseconds, and every other way as a multiple of it."""
    used = [who for who in module.COLUMNS if any(_cell(row, who) is not None for row in measured.values())]
    rows = [(name, row["ms"][OURS], *(_cell(row, who) for who in used)) for name, row in measured.items()]
    return Table(module.TITLE, ("", f"{OURS}, ms", *used), rows)


def _cell(row: Mapping[str, Any], who: str) -> float | str | None:
    if who in row["not_installed"]:
        return NOT_INSTALLED
    return row["ms"][who] / row["ms"][OURS] if who in row["ms"] else None


def target_table(found: list[Target]) -> Table:
    """Each target, what was measured, and whether it is met."""
    says = {True: "met", False: "missed", None: NOT_INSTALLED}
    rows = [
        (target.of, target.number, f"{'≥' if target.least else '≤'} {target.limit:g}", target.ratio, says[target.met])
        for target in found
    ]
    return Table("Targets", ("", "number", "target", "measured", ""), rows)


def show_all(
    modules: Mapping[str, Any], measured: Mapping[str, Any], setting: Setting, console: rich.console.Console
) -> Report:
    """Prints every table of what there is, and returns them as a report."""
    sections, targets = [], []
    for name, module in modules.items():
        rows = measured[name]
        if not rows:
            continue
        tables = [times(module, rows)] if all(OURS in row["ms"] for row in rows.values()) else []
        tables += module.tables(rows)
        pictures = module.pictures(rows) if hasattr(module, "pictures") else ()
        targets += module.targets(rows)
        sections.append(Section(module.TITLE, " ".join(module.__doc__.split()), tuple(tables), pictures))
    met = sum(target.met is True for target in targets)
    missed = sum(target.met is False for target in targets)
    summary = f"{met} met, {missed} missed, {len(targets) - met - missed} without their peer."
    sections.insert(0, Section("Targets", summary, (target_table(targets),)))
    for section in sections:
        for table in section.tables:
            show(table, console)
    console.print(f"Targets: {summary}")
    missing = [package for package, version in versions().items() if version == NOT_INSTALLED]
    if missing:
        console.print(f"Not installed, and so not timed: {', '.join(missing)}. The extra bench brings all of them.")
    facts = {**setting._asdict(), "threads": threads(), "peers": versions(), **provenance()}
    return Report("Speed, beside what people would use instead", _TEXT, tuple(sections), facts)
