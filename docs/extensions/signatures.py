"""Signatures as they stand in the source.

What `inspect.signature` has of `Float[ArrayLike, "*pixels"] | None` is the union that jaxtyping made of it, a dozen
types long. And the fields of a class (a `NamedTuple`, a dataclass, a Linen module) are its signature.
"""

import ast
import dataclasses
import inspect
import textwrap
from typing import Any

from sphinx.application import Sphinx

LINEN = ("parent", "name")  # fields that Linen adds to every module


def tree_of(thing: Any) -> Any:
    """The syntax tree of a function or class."""
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing)))).body[0]


def of_function(function: Any, *, bound: bool) -> tuple[str, str | None]:
    """("(x: int = 1)", "int"); without its first argument if it is bound."""
    definition = tree_of(function)
    given = definition.args
    if bound:
        del (given.posonlyargs or given.args)[0]
    return f"({ast.unparse(given)})", definition.returns and ast.unparse(definition.returns)


def fields(cls: type) -> dict[str, tuple[str, str | None]]:
    """By name, what is annotated in the bodies of a class and its bases: the annotation and the default, as typed."""
    found = {}
    for one in reversed(cls.__mro__):
        if one.__module__.startswith("segjax."):
            for line in tree_of(one).body:
                if isinstance(line, ast.AnnAssign):
                    found[line.target.id] = (ast.unparse(line.annotation), line.value and ast.unparse(line.value))
    return found


def of_class(cls: type) -> tuple[str, None] | None:
    """The fields of a class that is a record, else the arguments of its `__init__`; None where it has none."""
    if issubclass(cls, tuple):
        keywords, names = (), cls._fields
    elif dataclasses.is_dataclass(cls):
        known = [one for one in dataclasses.fields(cls) if one.init and one.name not in LINEN]
        names = [one.name for one in known if not one.kw_only]
        keywords = [one.name for one in known if one.kw_only]
    else:
        own = cls.__dict__.get("__init__")
        return (of_function(own, bound=True)[0], None) if own else None
    typed = fields(cls)

    def field(name: str) -> str:
        annotation, default = typed[name]
        return f"{name}: {annotation}" + (f" = {default}" if default else "")

    return f"({', '.join([*map(field, names), *(['*'] if keywords else []), *map(field, keywords)])})", None


def as_typed(app: Sphinx, what: str, name: str, thing: Any, *_: Any) -> tuple[str, str | None] | None:
    """What autodoc shall show; None where it knows better."""
    if not getattr(inspect.unwrap(thing), "__module__", "").startswith("segjax"):
        return None
    if what in ("class", "exception"):
        return of_class(thing)
    if what in ("function", "method"):
        static = what == "function" or isinstance(inspect.getattr_static(*_owner(name)), staticmethod)
        return of_function(getattr(thing, "__func__", thing), bound=not static)
    return None


def _owner(name: str) -> tuple[Any, str]:
    """The class of the method "segjax.package.Class.method", and "method"."""
    package, cls, method = name.rsplit(".", 2)
    return getattr(__import__(package, fromlist=[cls]), cls), method


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", as_typed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
