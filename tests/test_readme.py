"""What the README shows runs, and what it names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert 0 <= float(capsys.readouterr().out) <= 1


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make (\w+)", README))))
def test_a_make_target_it_names_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"--config=(\S+\.py)|\]\(([\w/.]+)\)", README))))
def test_a_file_it_names_exists(path):
    assert (ROOT / "".join(path)).exists()


def test_the_file_map_names_every_module():
    listed = README[README.index("segjax/\n") : README.index("configs/         ")]
    modules = {p.stem for p in (ROOT / "segjax").rglob("*.py")} - {"__init__"}
    private = {"margin", "counts", "source", "pairs"} | {
        p.stem for folder in ("road_debris", "builders") for p in (ROOT / "segjax" / "data" / folder).glob("*.py")
    }
    assert {m for m in modules - private if not re.search(rf"\b{m}\b", listed)} == set()
