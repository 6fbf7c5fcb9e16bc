"""What every public docstring of the losses and metrics holds; that their examples run is pytest's doctest's to see."""

import inspect

import pytest

from segjax import losses, metrics

FUNCTIONS = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in (losses, metrics)
    for name in package.__all__
    if inspect.isfunction(getattr(package, name))
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("part", [".. math::", "Args:", "Returns:", "Raises:", "References:", ">>> "])
def test_a_docstring_holds(name, part):
    assert part in inspect.getdoc(FUNCTIONS[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_tells_of_every_argument_and_no_other(name):
    told = inspect.getdoc(FUNCTIONS[name]).split("Args:\n")[1].split("Returns:\n")[0]
    named = [line.strip().split(":")[0] for line in told.splitlines() if line.startswith("    ") and line[4:5].strip()]
    assert [n for n in named if n.isidentifier()] == list(inspect.signature(FUNCTIONS[name]).parameters)
