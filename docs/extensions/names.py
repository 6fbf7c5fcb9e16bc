"""Links public names in code style to their entries, on every page and in every docstring.

`softmax_focal_loss`, `losses.mean` and `segjax.training.train(config, workdir)` are linked: a name of the package that
the text belongs to, a name with its package, or a name that only one package has. Config fields such as `data.size`
and `training.steps=300` are linked to the config reference. A `segjax.something` that does not exist is a warning, and
so an error.
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

from config_fields import anchor
from segjax.training.fields import FIELDS

LOGGER = logging.getLogger(__name__)
NAME = re.compile(r"(?:--)?[A-Za-z_][\w.]*")


def entry_of(text: str, package: str | None, entries: dict[str, Any]) -> str | None:
    """Returns the full name of the entry that `text` names within `package`; None without or with several matches."""
    for full in (text, f"segjax.{text}", f"{package}.{text}"):
        if full in entries:
            return full
    specific = "_" in text or text != text.lower()  # `mean` and `cell` are words
    found = [full for full in entries if full.rpartition(".")[2] == text] if specific else []
    return found[0] if len(found) == 1 else None


def exists(name: str) -> bool:
    """Returns True if `segjax.a.b` is a module or an attribute of one."""
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
    """Links the literals of a page that are public names."""

    default_priority = 5

    def run(self, **_: Any) -> None:
        """Replaces each such literal by a link."""
        entries = self.env.domains["py"].objects
        for literal in list(self.document.findall(nodes.literal)):
            match = NAME.match(literal.astext())
            if not match or _inside(literal, (nodes.reference, nodes.title, addnodes.desc_signature)):
                continue
            text = match[0].rstrip(".")
            rest = literal.astext()[len(text) :][:1]
            field = text.removeprefix("--").removeprefix("config.")
            if "." in field and field in FIELDS and rest in ("", "="):
                literal.replace_self(
                    _field_link(self.app, self.env.current_document.docname, field, literal.deepcopy())
                )
                continue
            if rest not in ("", "("):  # `labels != 255`, `a/b.py`
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


def _field_link(app: Sphinx, page: str, field: str, content: nodes.Node) -> nodes.reference:
    return make_refnode(app.builder, page, "config", anchor(field), content, FIELDS[field].meaning)


def link_annotation(app: Sphinx, env: Any, node: Any, content: nodes.Node) -> nodes.Node | None:
    """Links types in signatures that belong to another package of segjax."""
    full = entry_of(node["reftarget"], node.get("py:module"), env.domains["py"].objects)
    return _link(app, node["refdoc"], full, content) if full and node.get("refdomain") == "py" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.add_post_transform(Names)
    app.connect("missing-reference", link_annotation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
