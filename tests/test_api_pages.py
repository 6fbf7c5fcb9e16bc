"""Every public name has its entry in docs/api; that the site can be built is `make docs`'s to see."""

import importlib
import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted((DOCS / "api").glob("*.rst"))
SUFFIXES = (".md", ".rst", ".ipynb")
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_every_public_name_of_its_package_once(page):
    listed = re.findall(rf"^\.\. entries:: segjax\.{page.stem}\n\n((?:   \w+\n?)+)", page.read_text(), re.MULTILINE)
    assert sorted(" ".join(listed).split()) == sorted(importlib.import_module(f"segjax.{page.stem}").__all__)


def test_every_package_has_a_page():
    packages = {path.parent.name for path in (DOCS.parent / "segjax").glob("*/__init__.py")}
    assert packages == {page.stem for page in PAGES}


def test_every_page_is_in_the_table_of_contents():
    listed = set(
        re.findall(r"^(?:.* <)?(\w+(?:/\w+)*)>?$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*") if path.suffix in SUFFIXES}
    assert pages - {"index"} <= listed


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_runs_from_top_to_bottom_and_prints_what_it_shows(notebook, capsys, monkeypatch):
    """In one namespace, as a kernel would; what it needs beside segjax.losses is flax, optax and matplotlib."""
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    names, backend = {}, matplotlib.get_backend()
    matplotlib.use("agg")
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            shown = "".join("".join(one["text"]) for one in cell["outputs"] if one["output_type"] == "stream")
            assert capsys.readouterr().out == shown
    assert names["recall"][0, -1] < 0.1 < 0.3 < names["recall"][2, -1]  # the trap, and the prior
    matplotlib.pyplot.close("all")
    matplotlib.use(backend)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_is_small(notebook):
    assert notebook.stat().st_size < 130_000
