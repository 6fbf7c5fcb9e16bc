"""Adapts the conventions of our docstrings to napoleon and docutils."""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.python._object import PyObject
from sphinx.transforms import SphinxTransform

ATTRIBUTES = re.compile(r"Attributes: \w.*, and$")
ONE_LINE = re.compile(r"(Returns|Raises|References): (.+)")


def split_sections(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Splits "Attributes: those of `Network`, and" into a sentence and a section, and one-line sections from others."""
    for i, line in reversed(list(enumerate(lines))):
        if ATTRIBUTES.match(line):
            lines[i : i + 1] = [f"{line} these:", "", "Attributes:"]
        elif match := ONE_LINE.fullmatch(line):
            lines[i : i + 1] = ["", "Returns:", f"    {match[2]}"] if match[1] == "Returns" else ["", line]


class Bars(SphinxTransform):
    """Restores absolute values such as `|z| ≤ 1e4`, which docutils reads as substitutions."""

    default_priority = 200  # before docutils' own

    def apply(self, **_: Any) -> None:
        """Replaces each substitution by its text."""
        for bars in list(self.document.findall(nodes.substitution_reference)):
            bars.replace_self(nodes.Text(f"|{bars.astext()}|"))


class Dashes(SphinxTransform):
    """Replaces the two hyphens between an argument and its description by a dash (`smartquotes` is off)."""

    default_priority = 200

    def apply(self, **_: Any) -> None:
        """Replaces each pair of hyphens."""
        for text in list(self.document.findall(nodes.Text)):
            if text.startswith(" -- "):
                text.parent.replace(text, nodes.Text(text.replace(" -- ", " – ", 1)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("autodoc-process-docstring", split_sections, priority=400)
    app.add_transform(Bars)
    app.add_transform(Dashes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
