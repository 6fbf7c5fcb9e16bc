"""The example of the README runs, and the files and targets that it names exist."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


EXAMPLES = [compile(text, "README.md", "exec") for text in re.findall(r"```python\n(.*?)```", README, re.DOTALL)]


def test_quick_start_prints_the_loss_and_the_mean_iou(capsys):
    exec(EXAMPLES[0], {})
    loss, mean_iou = map(float, capsys.readouterr().out.split())
    p = 1 / (1 + np.exp([4.0, 2.0]))  # 1 - p_t of the two labelled pixels
    assert loss == pytest.approx(np.mean(-(p**2) * np.log1p(-p)), rel=1e-5)
    assert mean_iou == 1


def test_length():
    assert len(README.splitlines()) <= 180
    assert len(README.split()) <= 1000


def test_named_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [t for t in set(re.findall(r"make (\w+)", README)) if not re.search(rf"^{t}:", makefile, re.MULTILINE)] == []


def test_make_ablation_ends_with_a_command_of_the_readme():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (command,) = re.findall(r'"Next: .* && (segjax .*)"', makefile)
    assert f"\n{command}\n" in README


def test_named_files_exist():
    paths = ["".join(path) for path in re.findall(r"--config=(\S+\.py)|\]\(([\w/.]+)\)|`(\w+\.cff)`", README)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_file_map_names_every_module():
    """Subpackages and modules with a leading underscore are named by their package only."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = contributing[contributing.index("segjax/\n") : contributing.index("configs/         ")]
    modules = {path for folder in ("", "*/") for path in (ROOT / "segjax").glob(f"{folder}*.py")}
    names = {path.stem for path in modules if not (path.stem.startswith("_") or path.parent.is_symlink())}
    assert {name for name in names if not re.search(rf"\b{name}\b", listed)} == set()
