"""A report: the same tables, pictures and facts as Markdown, CSV, LaTeX, JSON, and one HTML page with all in it."""

import base64
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from segjax.reporting.tables import Table, latex, markdown, printed, to_csv


class Picture(NamedTuple):
    """A PNG file and what is to be seen on it.

    Attributes:
      name: of its file, without the suffix.
      caption: below it.
      png: the bytes.
      half: two of its kind stand side by side where the page is wide enough.
    """

    name: str
    caption: str
    png: bytes
    half: bool = False


class Section(NamedTuple):
    """A heading, a few sentences, tables and pictures."""

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


class Report(NamedTuple):
    """What was asked, what was measured, and where it comes from.

    Attributes:
      title: of the page.
      text: a few sentences: the question, and how it was asked.
      sections: the answers.
      facts: what produced it, by name: command, commit, versions, device, wall time, configuration; values may be
        dictionaries.
    """

    title: str
    text: str
    sections: tuple[Section, ...]
    facts: Mapping[str, Any]


def write_report(
    report: Report, folder: Any, name: str, data: Any = None, *, write: Callable[[Any, bytes], None]
) -> list[Any]:
    """Writes NAME.md, NAME.html, NAME.tex, a CSV a table, a PNG a picture, and NAME.json with `data` and the facts.

    Args:
      report: what is shown.
      folder: a path, made if it is not there; or epath's, with a `write` of its kind.
      name: of the files.
      data: ready for JSON.
      write: `write(path, bytes)`, which leaves a whole file or none, such as `segjax.training.storage.write_bytes`.

    Returns:
      The paths, NAME.html first.

    Raises:
      OSError: a file cannot be written; it names the file. Those before it are whole.
    """
    folder = Path(folder) if isinstance(folder, str) else folder
    tables = [table for section in report.sections for table in section.tables]
    files: dict[str, bytes] = {
        f"{name}.html": html(report).encode(),
        f"{name}.md": as_markdown(report, name).encode(),
        f"{name}.tex": ("\n\n".join(map(latex, tables)) + "\n").encode(),
        f"{name}.json": (json.dumps({"facts": dict(report.facts), "data": data}, indent=1) + "\n").encode(),
    }
    for i, table in enumerate(tables):
        files[f"{name}.csv" if len(tables) == 1 else f"{name}_{i + 1}.csv"] = to_csv(table).encode()
    for section in report.sections:
        files |= {f"{name}_{picture.name}.png": picture.png for picture in section.pictures}
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        write(folder / file, content)
    return [folder / file for file in files]


def as_markdown(report: Report, name: str) -> str:
    """The report as Markdown; its pictures are the files that `write_report` writes beside it."""
    parts = [f"# {report.title}", report.text]
    for section in report.sections:
        parts += [f"## {section.title}", section.text]
        for table in section.tables:
            parts += [table.title, markdown(table)]
        parts += [f"![{picture.caption}]({name}_{picture.name}.png)" for picture in section.pictures]
    facts = [f"- {key}: {_plain(value)}" for key, value in report.facts.items()]
    return "\n\n".join(filter(None, [*parts, "## Where it comes from", "\n".join(facts)])) + "\n"


def html(report: Report) -> str:
    """The report as one HTML page: style and pictures are in it, no script, nothing is fetched."""
    page = jinja2.Environment(
        loader=jinja2.PackageLoader("segjax", "reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return page.get_template("page.html").render(
        report=report,
        printed=printed,
        grouped=lambda pictures: [(half, list(of)) for half, of in itertools.groupby(pictures, lambda one: one.half)],
        encoded=lambda picture: base64.b64encode(picture.png).decode(),
        facts={key: _plain(value) for key, value in report.facts.items()},
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(of)}" for key, of in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)
