"""The pages of docs/api contain every public name, and the notebooks run; `make docs` shows that the site builds."""

import importlib
import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted((DOCS / "api").glob("*.rst"))
SUFFIXES = (".md", ".rst", ".ipynb")
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def test_api_pages_list_every_public_name_once():
    wrong = {}
    for page in PAGES:
        lists = re.findall(rf"^\.\. entries:: segjax\.{page.stem}\n\n((?:   \w+\n?)+)", page.read_text(), re.MULTILINE)
        listed, public = " ".join(lists).split(), importlib.import_module(f"segjax.{page.stem}").__all__
        if sorted(listed) != sorted(public):
            wrong[page.name] = {"missing": set(public) - set(listed), "stale or twice": set(listed) - set(public)}
    assert wrong == {}


def test_every_package_has_an_api_page():
    packages = {path.parent.name for path in (DOCS.parent / "segjax").glob("*/__init__.py")}
    assert {*packages, "boxes"} == {page.stem for page in PAGES}


def test_every_page_is_in_the_table_of_contents():
    listed = set(
        re.findall(r"^(?:.* <)?(\w+(?:/\w+)*)>?$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*") if path.suffix in SUFFIXES}
    generated = {page for page in pages if re.match(r"api/\w+/|reports/", page)}
    assert pages - generated - {"index"} <= listed


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_notebook_runs_and_prints_its_saved_output(notebook, capsys, monkeypatch):
    """All cells share one namespace, as in a kernel. A cell with the tag "varies" prints times or scores."""
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    names, backend = {}, matplotlib.get_backend()
    matplotlib.use("agg")
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            # Half of the time of the test would be steps that show nothing else.
            exec("".join(cell["source"]).replace("evaluate_every = 200", "evaluate_every = 80"), names)
            saved = "".join("".join(part["text"]) for part in cell["outputs"] if part["output_type"] == "stream")
            assert "varies" in cell["metadata"].get("tags", ()) or capsys.readouterr().out == saved
            capsys.readouterr()
    if notebook.stem == "losses_in_your_project":
        assert names["recall"][0, -1] < 0.1 < 0.3 < names["recall"][2, -1]  # recall without and with the prior bias
    else:
        assert names["scores"]["mean_iou"] > 0.4  # after 80 steps; 0.65 after the 200 of the page
    matplotlib.pyplot.close("all")
    matplotlib.use(backend)


def test_notebooks_are_small():
    assert [notebook.name for notebook in NOTEBOOKS if notebook.stat().st_size >= 130_000] == []
