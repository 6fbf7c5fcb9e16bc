"""Code that is a public name is a link to its entry, on every page and in every docstring.

`softmax_focal_loss`, `losses.mean`, `segjax.training.train(config, workdir)`: a name of the package that the text
belongs to, one that says its package, or one that only one package has. `segjax.something` that is not there is a
warning, and so an error.
"""

import importlib.util
import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

LOGGER = logging.getLogger(__name__)
NAME = re.compile(r"[A-Za-z_][\w.]*")


def entry_of(text: str, package: str | None, entries: dict[str, Any]) -> str | None:
    """The full name of the entry that `text` names, seen from a package; None where there is none, or more than one."""
    for full in (text, f"segjax.{text}", f"{package}.{text}"):
        if full in entries:
            return full
    telling = "_" in text or text != text.lower()  # `mean` and `cell` are words
    found = [full for full in entries if full.rpartition(".")[2] == text] if telling else []
    return found[0] if len(found) == 1 else None


def exists(name: str) -> bool:
    """Whether `segjax.a.b` is a module, or something in one."""
    parent, _, last = name.rpartition(".")
    try:
        if importlib.util.find_spec(name):
            return True
        return hasattr(importlib.import_module(parent), last)
    except ImportError:
        return bool(parent) and "." in parent and exists(parent) and _has(parent, last)


def _has(name: str, attribute: str) -> bool:
    parent, _, last = name.rpartition(".")
    return hasattr(getattr(importlib.import_module(parent), last, None), attribute)


class Names(SphinxPostTransform):
    """Looks at every literal of a page."""

    default_priority = 5

    def run(self, **_: Any) -> None:
        """Wraps those that are names."""
        entries = self.env.domains["py"].objects
        for literal in list(self.document.findall(nodes.literal)):
            match = NAME.match(literal.astext())
            if not match or _inside(literal, (nodes.reference, nodes.title, addnodes.desc_signature)):
                continue
            text = match[0].rstrip(".")
            if literal.astext()[len(text) :][:1] not in ("", "("):  # `labels != 255`, `a/b.py`
                continue
            here = _inside(literal, (addnodes.desc,))
            signature = here[0] if here else {}
            full = entry_of(text, signature.get("module"), entries)
            if full is None:
                if text.startswith("segjax.") and not text.endswith(".py") and not exists(text):
                    LOGGER.warning("there is no %s", text, location=literal)
            elif full != f"{signature.get('module')}.{signature.get('fullname')}":
                link = _link(self.app, self.env.current_document.docname, full, literal.deepcopy())
                literal.replace_self(link)


def _inside(node: nodes.Node, kinds: tuple[type, ...]) -> Any:
    while node is not None and not isinstance(node, kinds):
        node = node.parent
    return node


def _link(app: Sphinx, page: str, full: str, content: nodes.Node) -> nodes.reference:
    entry = app.env.domains["py"].objects[full]
    return make_refnode(app.builder, page, entry.docname, entry.node_id, content, full)


def of_annotation(app: Sphinx, env: Any, node: Any, content: nodes.Node) -> nodes.Node | None:
    """Types in signatures that belong to another package of ours."""
    full = entry_of(node["reftarget"], node.get("py:module"), env.domains["py"].objects)
    return _link(app, node["refdoc"], full, content) if full and node.get("refdomain") == "py" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_post_transform(Names)
    app.connect("missing-reference", of_annotation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
