"""What our docstrings say in words of their own, before napoleon and docutils read them."""

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python._object import PyObject
from sphinx.transforms import SphinxTransform

ATTRIBUTES = re.compile(r"Attributes: \w.*, and$")


def attributes_apart(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """ "Attributes: those of `Network`, and" is a sentence, and then a section."""
    for i, line in reversed(list(enumerate(lines))):
        if ATTRIBUTES.match(line):
            lines[i : i + 1] = [f"{line} these:", "", "Attributes:"]


class Bars(SphinxTransform):
    """`|z| ≤ 1e4` is an absolute value: nothing here is a substitution, which docutils takes it for."""

    default_priority = 200  # before docutils' own

    def apply(self, **_: Any) -> None:
        """Called by Sphinx."""
        for bars in list(self.document.findall(nodes.substitution_reference)):
            bars.replace_self(nodes.Text(f"|{bars.astext()}|"))


class Dashes(SphinxTransform):
    """Between an argument and what is said of it Sphinx puts two hyphens, which `smartquotes` would make a dash."""

    default_priority = 200

    def apply(self, **_: Any) -> None:
        """Called by Sphinx."""
        for text in list(self.document.findall(nodes.Text)):
            if text == " -- ":
                text.parent.replace(text, nodes.Text(" – "))


class Files(SphinxTransform):
    """A page's link to a file of the repository that is no page, such as a report in `experiments/results`."""

    default_priority = 200

    def apply(self, **_: Any) -> None:
        """Gives the file to be read or saved."""
        for link in list(self.document.findall(addnodes.pending_xref)):
            if link.get("refdomain") == "doc" and link["reftarget"].startswith("/"):
                path = os.path.relpath(f"{link['reftarget']}.md", Path(self.env.doc2path(self.env.docname)).parent)
                file = addnodes.download_reference("", "", *link.children, reftarget=path)
                link.replace_self(file)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("autodoc-process-docstring", attributes_apart, priority=400)
    app.add_transform(Bars)
    app.add_transform(Dashes)
    app.add_transform(Files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
