"""The files, modules and networks that the pages of docs/ name exist."""

import inspect
import re
from pathlib import Path

from segjax import models
from segjax.training.config import NETWORKS

ROOT = Path(__file__).parent.parent
PAGES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))}


def test_linked_files_exist():
    links = [(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\(([^)#:]+)\)", text)]
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []


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
