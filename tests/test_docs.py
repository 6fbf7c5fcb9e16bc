"""The pages of docs/: what they name exists, and the built site contains every config field and fits a phone."""

import inspect
import json
import re
from pathlib import Path

import pytest

from segjax import models
from segjax.training.fields import FIELDS, NETWORKS

ROOT = Path(__file__).parent.parent
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if path.parent.name != "reports"  # generated
}


def anchors(text):
    """Returns the anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_linked_files_and_headings_exist():
    pages = PAGES | {path: path.read_text(encoding="utf-8") for path in ROOT.glob("*.md")}
    broken = []
    for page, text in pages.items():
        for link, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", text):
            target = page.parent / link if link else page
            if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
                broken.append(f"{page.name}: {link}#{anchor}")
    assert broken == []


def test_external_links_are_complete():
    pages = [*PAGES.values(), *(path.read_text(encoding="utf-8") for path in ROOT.glob("*.md"))]
    links = re.findall(r"\]\((\w+:[^)]*)\)", "".join(pages))
    assert [link for link in links if not re.fullmatch(r"https?://[\w-]+(\.[\w-]+)+(/\S*)?", link)] == []


def test_named_modules_and_configs_exist():
    missing = []
    for page, text in PAGES.items():
        named = re.findall(r"`((?:experiments|configs|segjax|tests)/[\w/.]+\.\w+)`", text)
        modules = re.findall(r"python -m ((?:experiments|segjax)(?:\.\w+)+)", text)
        for module in modules:
            path = module.replace(".", "/")
            named.append(f"{path}.py" if (ROOT / f"{path}.py").exists() else f"{path}/__main__.py")
        folders = (ROOT, ROOT / "tests")  # pages name tests by their path in tests/
        missing += [f"{page.name}: {name}" for name in named if not any((top / name).exists() for top in folders)]
    assert missing == []


def test_architectures_page_lists_every_network_with_its_class_and_file():
    story = PAGES[ROOT / "docs" / "architectures.md"]
    table = re.findall(r"^\| (`[^|]*) \| (`[^|]*) \| `([^|]*)` \|", story, re.MULTILINE)
    names, classes = ({name for row in table for name in re.findall(r"`(\w+)`", row[i])} for i in (0, 1))
    assert names == set(NETWORKS)
    # A PackedUNet is the TPU layout of the page's UNet.
    in_code = {network.__name__.removeprefix("Packed") for network, _ in NETWORKS.values()}
    assert classes == in_code
    for _, row, file in table:
        for name in re.findall(r"`(\w+)`", row):
            assert Path(inspect.getfile(getattr(models, name))).name == file


def test_config_page_has_every_group_of_fields():
    groups = re.findall(r"^```{config-fields} ?(\w*)$", PAGES[ROOT / "docs" / "config.md"], re.MULTILINE)
    assert groups == list(dict.fromkeys(key.rpartition(".")[0] for key in FIELDS))


@pytest.fixture(scope="module")
def site(tmp_path_factory, python):
    """Returns the folder of the site: that of `make docs` if it is newer than its sources, else built here."""
    sources = (ROOT / "docs", ROOT / "segjax", ROOT / "experiments" / "results")
    files = [path for folder in sources for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    built = ROOT / "site" / ".built"
    if built.exists() and built.stat().st_mtime > max(path.stat().st_mtime for path in files):
        return built.parent
    for library in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("site")
    built = python("-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-d", folder / "trees", "docs", folder / "html")
    assert built.returncode == 0, built.stderr
    return folder / "html"


@pytest.mark.slow
@pytest.mark.parametrize("extension", ["config_fields", "width"])
def test_doctests_of_extension(extension, python):
    pytest.importorskip("sphinx")
    run = python("-m", "doctest", f"docs/extensions/{extension}.py")
    assert (run.returncode, run.stdout) == (0, "")


@pytest.mark.slow
def test_config_page_describes_every_field_and_names_its_readers(site):
    page = (site / "config.html").read_text(encoding="utf-8")
    entries = dict(re.findall(r'<dt id="([\w-]+)">.*?</dt>(.*?)</dd>', page, re.DOTALL))
    assert list(entries) == [re.sub(r"[._]", "-", key) for key in FIELDS]
    assert [key for key, entry in entries.items() if "Used in <code" not in entry] == []


@pytest.mark.slow
def test_search_for_mean_iou_finds_segmentation_scores(site):
    index = json.loads((site / "searchindex.js").read_text("utf-8").removeprefix("Search.setIndex(").removesuffix(")"))
    page = index["docnames"].index("api/metrics/mean_iou_accuracy_and_dice")
    for word in ("mean", "iou"):
        assert page in [index["titleterms"][word]] or page in index["titleterms"][word]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index", "api/losses/focal_loss", "config", "howto/uncertainty", "results"])
def test_page_fits_a_phone_and_loads_its_pictures(page, site, browser):
    seen = browser(site / f"{page}.html")
    assert [width for width, view in seen.items() if view["wide"]] == []
    assert all(all(view["images"]) for view in seen.values())


def test_tests_that_the_failures_page_names_exist():
    named = re.findall(r"`([\w/]+\.py)::(\w+)(…?)`", PAGES[ROOT / "docs" / "failures.md"])
    assert named
    missing = []
    for file, name, shortened in named:
        path = ROOT / "tests" / file
        definition = f"def {name}{'' if shortened else '('}"
        if not path.exists() or definition not in path.read_text(encoding="utf-8"):
            missing.append(f"{file}::{name}")
    assert missing == []
