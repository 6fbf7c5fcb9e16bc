"""What the README shows runs, and what it names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


EXAMPLES = [compile(text, "README.md", "exec") for text in re.findall(r"```python\n(.*?)```", README, re.DOTALL)]


def test_the_training_loop_learns():
    names = {}
    exec(EXAMPLES[0], names)
    images, labels = names["images"], names["labels"]
    untrained = names["model"].init(names["jax"].random.key(1), images)
    assert names["value"] < 0.5 * names["loss"](untrained, images, labels)


def test_the_metrics_example_prints_its_score(capsys):
    exec(EXAMPLES[1], {})
    assert float(capsys.readouterr().out) == pytest.approx((1 + 0.5 + 0) / 3)


def test_the_uncertainty_example_gives_maps_of_the_images_size():
    names = {}
    exec(EXAMPLES[2], names)
    unsure = names["unsure"]
    assert unsure.probabilities.shape == names["clean"].logits.shape == names["exact"].shape == (2, 48, 64, 12)
    assert unsure.variance.shape == unsure.mutual_information.shape == (2, 48, 64)
    # Thirty samples estimate what the closed form knows.
    assert float(unsure.variance.mean()) == pytest.approx(float(names["exact"].mean()), rel=0.3)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make (\w+)", README))))
def test_a_make_target_it_names_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"--config=(\S+\.py)|\]\(([\w/.]+)\)", README))))
def test_a_file_it_names_exists(path):
    assert (ROOT / "".join(path)).exists()


def test_the_file_map_names_every_module():
    listed = README[README.index("segjax/\n") : README.index("configs/         ")]
    modules = {p.stem for p in (ROOT / "segjax").rglob("*.py")} - {"__init__"}
    private = {"margin", "inputs", "overlap", "_counting", "source", "pairs", "streaming"} | {
        p.stem for folder in ("road_debris", "builders") for p in (ROOT / "segjax" / "data" / folder).glob("*.py")
    }
    assert {m for m in modules - private if not re.search(rf"\b{m}\b", listed)} == set()
