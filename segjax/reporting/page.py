"""A report written as Markdown, CSV, LaTeX, JSON, PNG and one self-contained HTML page."""

import base64
import itertools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jinja2
from etils import epath

from segjax.reporting.tables import Table, format_rows, latex, markdown, to_csv
from segjax.storage import to_json, write_bytes


class Picture(NamedTuple):
    """A PNG file with a caption; its file is named REPORT_NAME.png.

    Two pictures with `half` stand side by side on a wide page.
    """

    name: str
    caption: str
    png: bytes
    half: bool = False


class Section(NamedTuple):
    """A heading with a few sentences, tables and pictures."""

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


class Report(NamedTuple):
    """A question, the measurements that answer it, and their provenance.

    `text` gives the question and the method in a few sentences, `facts` the provenance by name, such as command, commit
    and versions; its values may be mappings.
    """

    title: str
    text: str
    sections: tuple[Section, ...]
    facts: Mapping[str, Any]


def write_report(report: Report, folder: str | os.PathLike, name: str, data: Any = None) -> list[epath.Path]:
    """Writes a report as NAME.html, NAME.md, NAME.tex, NAME.json, one CSV per table and one PNG per picture.

    `folder` is local or in a bucket and is made if needed. NAME.json contains the facts of the report and `data`.

    Returns:
      The paths of the files, NAME.html first.

    Raises:
      OSError: a file cannot be written; the message names it. The files before it are complete.
    """
    folder = epath.Path(folder)
    tables = [table for section in report.sections for table in section.tables]
    files: dict[str, bytes] = {
        f"{name}.html": html(report).encode(),
        f"{name}.md": as_markdown(report, name).encode(),
        f"{name}.tex": ("\n\n".join(map(latex, tables)) + "\n").encode(),
        f"{name}.json": to_json({"facts": dict(report.facts), "data": data}),
    }
    for i, table in enumerate(tables):
        files[f"{name}.csv" if len(tables) == 1 else f"{name}_{i + 1}.csv"] = to_csv(table).encode()
    for section in report.sections:
        files |= {f"{name}_{picture.name}.png": picture.png for picture in section.pictures}
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        write_bytes(folder / file, content)
    return [folder / file for file in files]


def as_markdown(report: Report, name: str) -> str:
    """Returns the report as Markdown, with links to the picture files that `write_report` writes beside it."""
    parts = [f"# {report.title}", report.text]
    for section in report.sections:
        parts += [f"## {section.title}", section.text]
        for table in section.tables:
            parts += [table.title, markdown(table)]
        parts += [f"![{picture.caption}]({name}_{picture.name}.png)" for picture in section.pictures]
    facts = [f"- {key}: {_text(value)}" for key, value in report.facts.items()]
    return "\n\n".join(filter(None, [*parts, "## Provenance", "\n".join(facts)])) + "\n"


def html(report: Report) -> str:
    """Returns the report as one HTML page that contains its style and pictures, runs no script and loads no file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("segjax", "reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html").render(
        report=report,
        format_rows=format_rows,
        grouped=lambda pictures: [(half, list(group)) for half, group in itertools.groupby(pictures, lambda p: p.half)],
        encoded=lambda picture: base64.b64encode(picture.png).decode(),
        facts={key: _text(value) for key, value in report.facts.items()},
    )


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
