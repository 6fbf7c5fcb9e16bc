"""The directive `entries`: a table of public names of a package, whose docstrings are on a page of their own.

The page is api/PACKAGE/HEADING, one for each heading of api/PACKAGE.rst with this directive. git ignores these pages.

Per pixel
---------

.. entries:: segjax.losses

   softmax_focal_loss
   hinge_loss
"""

import ast
import importlib
import inspect
import re
import unicodedata
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

GROUP = re.compile(r"^(.+)\n-+\n(?:(?!^-).*\n)*?\.\. entries:: (\S+)\n\n((?:   \w+\n?)+)", re.MULTILINE)


def directive_of(thing: Any) -> str:
    """Returns the name of the autodoc directive for an object."""
    if inspect.isclass(thing):
        return "exception" if issubclass(thing, BaseException) else "class"
    return "function" if inspect.isroutine(thing) else "data"


def is_linen(thing: Any) -> bool:
    """Returns True for Linen modules, whose public interface is `init` and `apply` only."""
    return inspect.isclass(thing) and any(base.__module__.startswith("flax") for base in thing.__mro__)


def docstring_of(package: ModuleType, name: str) -> list[str]:
    """Returns the lines of a docstring; a constant has its docstring below it, in the module that defines it."""
    thing = getattr(package, name)
    if directive_of(thing) != "data":
        return inspect.getdoc(thing).splitlines()
    analyzer = ModuleAnalyzer.for_module(package.__name__)
    analyzer.analyze()
    if ("", name) in analyzer.attr_docs:
        return analyzer.attr_docs["", name]
    for line in ast.walk(ast.parse(analyzer.code)):
        if isinstance(line, ast.ImportFrom) and name in [one.name for one in line.names]:
            return docstring_of(importlib.import_module(line.module), name)
    raise ValueError(f"{package.__name__}.{name} has no docstring below it")


def home_of(package: ModuleType, name: str) -> str:
    """Returns the public package that documents a name: the one that defines it, else `package`."""
    module = getattr(getattr(package, name), "__module__", package.__name__)
    home = ".".join(module.split(".")[:2])
    return home if name in getattr(importlib.import_module(home), "__all__", ()) else package.__name__


def own_names(package: ModuleType, names: list[str]) -> list[str]:
    """Returns the names whose docstrings belong to the pages of `package`."""
    return [name for name in names if home_of(package, name) == package.__name__]


def documented(package: ModuleType, name: str) -> list[str]:
    """Returns the reStructuredText of the entry of a name."""
    thing = getattr(package, name)
    kind = directive_of(thing)
    if kind == "data":
        return ["", f".. data:: {name}", "", *(f"   {line}" for line in docstring_of(package, name))]
    members = kind != "function" and not is_linen(thing)
    return ["", f".. auto{kind}:: {name}", *(["   :members:"] if members else [])]


def page_of(package: str, heading: str) -> str:
    """Returns the page of a group, such as "losses/per_pixel"."""
    ascii_only = unicodedata.normalize("NFKD", heading.lower()).encode("ascii", "ignore").decode()
    return f"{package.rpartition('.')[2]}/{re.sub(r'[^a-z0-9]+', '_', ascii_only).strip('_')}"


def write_pages(app: Sphinx) -> None:
    """Writes one page per group of names."""
    folder = Path(app.srcdir, "api")
    for stale in folder.glob("*/*.rst"):
        stale.unlink()
    for source in folder.glob("*.rst"):
        for heading, full, names in GROUP.findall(source.read_text("utf-8")):
            package = importlib.import_module(full)
            own = own_names(package, names.split())
            if own:
                page = (folder / page_of(full, heading)).with_suffix(".rst")
                page.parent.mkdir(exist_ok=True)
                lines = [heading, "=" * len(heading), "", f".. currentmodule:: {full}"]
                lines += [line for name in own for line in documented(package, name)]
                page.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Entries(SphinxDirective):
    """The directive; its argument is the package."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Returns the nodes of the table, and of a hidden table of contents with the page of the names."""
        package = importlib.import_module(self.arguments[0])
        names = [line.strip() for line in self.content if line.strip()]
        unknown = [name for name in names if name not in package.__all__]
        if unknown:
            raise self.error(f"{package.__name__} has no public {', '.join(unknown)}")
        lines = [f".. currentmodule:: {package.__name__}", "", ".. list-table::", "   :class: names", ""]
        for name in names:
            link = f":py:obj:`{name} <{home_of(package, name)}.{name}>`"
            lines += [f"   * - {link}", f"     - {docstring_of(package, name)[0]}"]
        if own_names(package, names):
            heading = self.state.parent.next_node(nodes.title).astext()
            lines += ["", ".. toctree::", "   :hidden:", "", f"   {page_of(package.__name__, heading)}"]
        return self.parse_text_to_nodes(StringList(lines, self.get_source_info()[0]))


def skip(app: Sphinx, what: str, name: str, thing: Any, *_: Any) -> bool | None:
    """Skips the fields of a `NamedTuple`, which its signature and its docstring contain."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.add_directive("entries", Entries)
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
