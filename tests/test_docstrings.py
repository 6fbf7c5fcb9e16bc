"""Docstrings: their opening word everywhere, and the sections of every public function of boxes, losses and metrics."""

import ast
import functools
import inspect
import re
from pathlib import Path

from segjax import boxes, losses, metrics

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("configs", "docs", "experiments", "segjax", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
SECTIONS = (".. math::", "Args:", "Returns:", "Raises:", "References:", ">>> ")
PUBLIC = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in (boxes, losses, metrics)
    for name in package.__all__
    if inspect.isfunction(getattr(package, name))
}


@functools.cache
def opening_words():
    """Returns (definition, place, first word) of every docstring in `FILES`."""
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (docstring := ast.get_docstring(node)):
                place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
                found.append((node, place, docstring.split()[0].strip(",.:;")))
    return found


def needs_verb(node):
    """Returns True for functions but properties, which may name their quantity, and tests, which state a property."""
    is_property = isinstance(node, ast.FunctionDef) and any("property" in ast.unparse(d) for d in node.decorator_list)
    return isinstance(node, ast.FunctionDef) and not is_property and not node.name.startswith("test_")


def test_no_docstring_opens_with_a_question_word():
    questions = ("What", "Of", "Whether", "How", "Which", "Whose")
    assert [f"{place} {word}" for _, place, word in opening_words() if word in questions] == []


def test_function_docstrings_open_with_a_verb():
    words = [(place, word) for node, place, word in opening_words() if needs_verb(node)]
    assert [f"{place} {word}" for place, word in words if not re.fullmatch(r"[A-Z][a-z]+s", word)] == []


def test_public_functions_have_every_section():
    missing = [
        f"{name}: {part}" for name, function in PUBLIC.items() for part in SECTIONS if part not in function.__doc__
    ]
    assert missing == []


def test_public_functions_document_their_arguments_in_order():
    wrong = []
    for name, function in PUBLIC.items():
        section = inspect.getdoc(function).split("Args:\n")[1].split("\nReturns:")[0]
        lines = re.findall(r"^  (?:  )?(\w+(?:, \w+)*):", section, re.MULTILINE)
        documented = [argument for line in lines for argument in line.split(", ")]
        if documented != list(inspect.signature(function).parameters):
            wrong.append(f"{name}: {documented}")
    assert wrong == []
