"""Signatures as typed in the source.

At run time `Float[ArrayLike, "*pixels"] | None` is a union of a dozen jaxtyping types, which `inspect.signature` would
show. The fields of a `NamedTuple`, a dataclass or a Linen module are its signature.
"""

import ast
import dataclasses
import inspect
import textwrap
from typing import Any

from sphinx.application import Sphinx

LINEN = ("parent", "name")  # fields that Linen adds to every module


def tree_of(thing: Any) -> Any:
    """Returns the syntax tree of a function or class."""
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing)))).body[0]


def function_signature(function: Any, *, bound: bool) -> tuple[str, str | None]:
    """Returns arguments and result, such as ("(x: int = 1)", "int"), without `self` if `bound`."""
    definition = tree_of(function)
    given = definition.args
    if bound:
        del (given.posonlyargs or given.args)[0]
    return f"({ast.unparse(given)})", definition.returns and ast.unparse(definition.returns)


def fields(cls: type) -> dict[str, tuple[str, str | None]]:
    """Returns annotation and default of each annotated field of a class and its bases, as typed."""
    found = {}
    for one in reversed(cls.__mro__):
        if one.__module__.startswith("segjax."):
            for line in tree_of(one).body:
                if isinstance(line, ast.AnnAssign):
                    found[line.target.id] = (ast.unparse(line.annotation), line.value and ast.unparse(line.value))
    return found


def class_signature(cls: type) -> tuple[str, None] | None:
    """Returns the fields of a record class, else the arguments of `__init__`, else None."""
    if issubclass(cls, tuple):
        keywords, names = (), cls._fields
    elif dataclasses.is_dataclass(cls):
        known = [one for one in dataclasses.fields(cls) if one.init and one.name not in LINEN]
        names = [one.name for one in known if not one.kw_only]
        keywords = [one.name for one in known if one.kw_only]
    else:
        own = cls.__dict__.get("__init__")
        return (function_signature(own, bound=True)[0], None) if own else None
    typed = fields(cls)

    def field(name: str) -> str:
        annotation, default = typed[name]
        return f"{name}: {annotation}" + (f" = {default}" if default else "")

    return f"({', '.join([*map(field, names), *(['*'] if keywords else []), *map(field, keywords)])})", None


def signature_as_typed(app: Sphinx, what: str, name: str, thing: Any, *_: Any) -> tuple[str, str | None] | None:
    """Returns the signature as typed in the source; None leaves it to autodoc."""
    if not getattr(inspect.unwrap(thing), "__module__", "").startswith("segjax"):
        return None
    if what in ("class", "exception"):
        return class_signature(thing)
    if what in ("function", "method"):
        static = what == "function" or isinstance(inspect.getattr_static(*_owner(name)), staticmethod)
        return function_signature(getattr(thing, "__func__", thing), bound=not static)
    return None


def _owner(name: str) -> tuple[Any, str]:
    """Returns the class of the method "segjax.package.Class.method", and "method"."""
    package, cls, method = name.rsplit(".", 2)
    return getattr(__import__(package, fromlist=[cls]), cls), method


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("autodoc-process-signature", signature_as_typed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
