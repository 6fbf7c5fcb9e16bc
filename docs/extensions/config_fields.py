"""The directive `config-fields`: the fields of one group of a config, from `segjax.training.fields`.

Each field has an anchor, its type, default, valid values and meaning, and the modules that read it.
"""

import ast
import inspect
from functools import cache
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import segjax
from segjax.data import DATASETS
from segjax.training.fields import DETECTORS, FIELDS, NETWORKS, SHARED_ARGUMENTS, Field

ROOT = Path(segjax.__file__).parent
GROUPS = {key.rpartition(".")[0] for key in FIELDS} - {""}


def anchor(key: str) -> str:
    """Returns the anchor of a field.

    >>> anchor("model.dropout_rate")
    'model-dropout-rate'
    """
    return key.replace(".", "-").replace("_", "-")


def type_of(field: Field) -> str:
    """Returns the type of a field's values, such as "float or None" and "tuple of int"."""
    members = f" of {field.item.__name__}" if field.kind is tuple else ""
    others = " or tuple of float" * field.or_pair + " or None" * bool(field.optional)
    return f"{field.kind.__name__}{members}{others}"


def valid_values(field: Field) -> str:
    """Returns the valid values as text; "" if the type is the only condition."""
    if field.choices:
        return "one of " + ", ".join(map(repr, field.choices)) + ", or (low, high)" * field.or_pair
    return f"in {field.range}" if field.range else ""


def reads(tree: ast.Module) -> set[str]:
    """Returns the fields that a module reads: `config.data.size`, or `size` of a variable that is `config.data`."""
    groups = {"data_config": {"data"}}  # variable → groups

    def group_of(node: ast.expr) -> set[str]:
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] == "config":
            return {node.attr} & GROUPS
        return groups.get(node.id, set()) if isinstance(node, ast.Name) else set()

    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            for target, value in zip(targets, values, strict=False):
                if isinstance(target, ast.Name) and group_of(value):
                    groups[target.id] = groups.get(target.id, set()) | group_of(value)
    found, computed = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found |= {f"{group}.{node.attr}" for group in group_of(node.value)}
            if ast.unparse(node.value).split(".")[-1] == "config":
                found.add(node.attr)
        elif isinstance(node, ast.Subscript):
            computed |= group_of(node.value)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
            computed |= group_of(node.args[0])
    # `config.augment[name]`: the possible names are the strings and annotated fields of the module.
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    annotated = [node.target for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    names |= {target.id for target in annotated if isinstance(target, ast.Name)}
    return (found | {f"{group}.{name}" for group in computed for name in names}) & set(FIELDS)


@cache
def readers() -> dict[str, list[str]]:
    """Returns the modules that read each field, such as {"data.mean": ["training/network.py", …]}."""
    found: dict[str, set[str]] = {key: set() for key in FIELDS}
    for path in ROOT.rglob("*.py"):
        module = path.relative_to(ROOT).as_posix()
        if module not in ("training/config.py", "training/fields.py"):
            for key in reads(ast.parse(path.read_text("utf-8"))):
                if "." in key or not module.startswith("data/"):  # a builder's config has a seed, too
                    found[key].add(module)
    base = next(iter(NETWORKS.values()))[0].__mro__[2]
    arguments = [*NETWORKS.values(), *DETECTORS.values(), (base, SHARED_ARGUMENTS)]
    for network, fields in arguments:  # constructor arguments of the networks
        for name in fields.values():
            found[f"model.{name}"].add(Path(inspect.getfile(network)).relative_to(ROOT).as_posix())
    return {key: sorted(modules) for key, modules in found.items()}


class ConfigFields(SphinxDirective):
    """The directive; its argument is a group such as `data`, or nothing for the fields outside the groups."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Returns a definition list."""
        group = self.arguments[0] if self.arguments else ""
        items = [self.item(key, field) for key, field in FIELDS.items() if key.rpartition(".")[0] == group]
        return [nodes.definition_list("", *items, classes=["config"])]

    def item(self, key: str, field: Field) -> nodes.definition_list_item:
        """Returns name, type, default, meaning, valid values and readers of one field."""
        term = nodes.term("", "", nodes.strong(key, key), ids=[anchor(key)])
        term += [nodes.Text(f" : {type_of(field)} = "), nodes.literal("", repr(field.default), classes=["default"])]
        target = nodes.reference("", "#", refuri=f"#{anchor(key)}", classes=["headerlink"])
        term += target
        prefix = field.meaning.partition(":")[0]
        text = field.meaning if prefix in DATASETS else field.meaning[0].upper() + field.meaning[1:]
        meaning = nodes.paragraph("", f"{text}.")
        facts = nodes.paragraph(classes=["facts"])
        if valid_values(field):
            facts += nodes.Text(f"Valid: {valid_values(field)}{' or None' if field.optional else ''}. ")
        for i, module in enumerate(readers()[key]):
            facts += [nodes.Text(", " if i else "Used in "), nodes.literal("", module)]
        facts += nodes.Text(".")
        return nodes.definition_list_item("", term, nodes.definition("", meaning, facts))


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.add_directive("config-fields", ConfigFields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
