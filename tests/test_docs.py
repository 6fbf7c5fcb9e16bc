"""What the pages in docs/ name is there."""

import re
from pathlib import Path

import pytest

from segjax import models
from segjax.training.networks import NETWORKS

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
STORY = (ROOT / "docs" / "architectures.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_file_that_a_page_links_exists(page):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_module_that_a_page_names_exists(page):
    named = re.findall(r"`((?:experiments|configs|segjax|tests)/[\w/.]+\.\w+)`", page.read_text())
    named += [
        name.replace(".", "/") + ".py"
        for name in re.findall(r"python -m ((?:experiments|segjax)\.\w+)", page.read_text())
    ]
    assert [name for name in named if not any((folder / name).exists() for folder in (ROOT, ROOT / "tests"))] == []


def test_the_story_tells_of_every_network_by_name_class_and_file():
    table = re.findall(r"^\| (`[^|]*) \| (`[^|]*) \| `([^|]*)` \|", STORY, re.MULTILINE)
    names, classes = ({one for row in table for one in re.findall(r"`(\w+)`", row[i])} for i in (0, 1))
    assert names == set(NETWORKS)
    assert classes == {network.__name__ for network, _ in NETWORKS.values()}
    for _, of_row, file in table:
        for name in re.findall(r"`(\w+)`", of_row):
            assert Path(__import__(getattr(models, name).__module__, fromlist=["x"]).__file__).name == file
