"""The directive `entries`: a table of public names of a package, then each name with its docstring.

.. entries:: segjax.losses

   softmax_focal_loss
   mean
"""

import ast
import importlib
import inspect
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective


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


class Entries(SphinxDirective):
    """The directive; its argument is the package."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Returns the nodes of the table and of every entry."""
        package = importlib.import_module(self.arguments[0])
        names = [line.strip() for line in self.content if line.strip()]
        unknown = [name for name in names if name not in package.__all__]
        if unknown:
            raise self.error(f"{package.__name__} has no public {', '.join(unknown)}")
        lines = [f".. currentmodule:: {package.__name__}", "", ".. list-table::", "   :class: names", ""]
        for name in names:
            link = f":py:obj:`{name} <{home_of(package, name)}.{name}>`"
            lines += [f"   * - {link}", f"     - {docstring_of(package, name)[0]}"]
        for name in names:
            thing = getattr(package, name)
            kind = directive_of(thing)
            if home_of(package, name) != package.__name__:
                continue
            if kind == "data":
                lines += ["", f".. data:: {name}", "", *(f"   {line}" for line in docstring_of(package, name))]
            else:
                members = kind != "function" and not is_linen(thing)
                lines += ["", f".. auto{kind}:: {name}", *(["   :members:"] if members else [])]
        return self.parse_text_to_nodes(StringList(lines, self.get_source_info()[0]))


def skip(app: Sphinx, what: str, name: str, thing: Any, *_: Any) -> bool | None:
    """Skips the fields of a `NamedTuple`, which its signature and its docstring contain."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.add_directive("entries", Entries)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
