"""Wraps the examples of docstrings at 88 columns, which is what a page has room for; the source may have 120."""

import subprocess
import sys
from doctest import DocTestParser, Example
from typing import Any

from sphinx.application import Sphinx

COLUMNS = 88


def wrapped(source: str, columns: int) -> str:
    r"""Returns Python statements formatted by ruff.

    >>> wrapped("print(one_argument, another_argument)\n", 30)
    'print(\n    one_argument,\n    another_argument,\n)\n'
    """
    command = [sys.executable, "-m", "ruff", "format", "--isolated", f"--line-length={columns}", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


def wrap_examples(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Replaces the long statements of a docstring's doctests."""
    if all(len(line) <= COLUMNS for line in lines if line.lstrip().startswith((">>>", "..."))):
        return
    examples = [one for one in DocTestParser().parse("\n".join(lines)) if isinstance(one, Example)]
    for example in reversed(examples):
        start, stop = example.lineno, example.lineno + example.source.count("\n")
        if max(map(len, lines[start:stop])) > COLUMNS:
            indent = " " * example.indent
            first, *rest = wrapped(example.source, COLUMNS - example.indent - 4).splitlines()
            lines[start:stop] = [f"{indent}>>> {first}", *(f"{indent}... {line}".rstrip() for line in rest)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("autodoc-process-docstring", wrap_examples, priority=300)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
