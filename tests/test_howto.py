"""The how-tos of docs/howto: every block of code and every command runs as it stands on its page, on tiny data.

What is put in place of what the page says is `PLACES` and `TINY`, and nothing else.
"""

import csv
import io
import json
import os
import re
import runpy
import shlex
import sys
import warnings
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from absl import flags

from configs import focal_ablation, rare_class
from segjax import losses
from segjax.metrics import risk_coverage

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "howto"

SIZE = {"data.size": (32, 48), "data.workers": 0, "model.width": 4, "model.depth": 1, "model.padding": "zeros"}
STEPS = {"training.steps": 2, "training.global_batch": 4, "training.log_every": 1}
SCENES = {"data.scene_size": (64, 96), "data.train_examples": 8, "data.val_examples": 4}
TINY = {
    "configs/folder_unet.py": SIZE | STEPS,
    "configs/rare_class.py": SIZE | SCENES | STEPS | {"training.evaluate_every": 2, "training.checkpoint_every": 2},
}


def blocks(page):
    """(language, text) of every fenced block of a page that runs."""
    return re.findall(r"^```(python|bash)\n(.*?)^```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL | re.M)


def commands(text):
    """The command lines of a block, those that go on in the next line joined."""
    return text.replace("\\\n", " ").splitlines()


def tiny(arguments):
    """A command's arguments with the overrides of its config in `TINY`, before those that the page gives itself."""
    config = next((argument.partition("=")[2] for argument in arguments if argument.startswith("--config=")), None)
    given = [argument for argument in arguments if argument.startswith("--config.")]
    overrides = [f"--config.{key}={value}" for key, value in TINY.get(config, {}).items()]
    return [*(one for one in arguments if one not in given), *overrides, *given]


def run_command(line):
    """Runs `python -m MODULE ARGUMENTS` in this process, as the interpreter would; its flags are forgotten after it."""
    python, dash_m, module, *arguments = shlex.split(line)
    assert (python, dash_m) == ("python", "-m")
    file, before, argv = ROOT / f"{module.replace('.', '/')}.py", set(flags.FLAGS), sys.argv
    sys.argv = [str(file), *tiny(arguments)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # as in a process of its own: ml_collections uses `load_module`
            runpy.run_path(str(file), run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
    finally:
        sys.argv = argv
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


def timed(f):
    import time
    def g(line):
        t=time.process_time(); w=time.time()
        f(line)
        print("CPU", round(time.process_time()-t,1), "WALL", round(time.time()-w,1), line[:60], file=sys.__stderr__)
    return g
run_command = timed(run_command)


def run_page(page, places, *, skip=()):
    """Runs a page from top to bottom with `places` in place of the page's; gives the names that its code leaves."""
    names = {}
    for language, text in blocks(page):
        for named, here in places.items():
            text = text.replace(named, str(here))
        if language == "python":
            exec(compile(text, page, "exec"), names)
            continue
        for line in commands(text):
            if line.startswith("export "):  # set before this process began: see tests/conftest.py
                for setting in line.split()[1:]:
                    name, _, value = setting.partition("=")
                    assert value in os.environ[name]
            elif not any(part in line for part in skip):
                run_command(line)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("howto")


@pytest.fixture(scope="module")
def mine(folder):
    """What "Train on your own folder" leaves: its names, ROOT and the run, for the page that begins with them."""
    rng, root = np.random.default_rng(0), folder / "own"
    for split, count in (("train", 6), ("val", 4)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = np.where(rng.random((40, 60)) < 0.3, 255, 0).astype(np.uint8)
            image = np.stack([mask // 2 + rng.integers(0, 100, mask.shape).astype(np.uint8)] * 3, axis=-1)
            assert cv2.imwrite(str(root / split / "images" / f"{i}.png"), image)
            assert cv2.imwrite(str(root / split / "masks" / f"{i}.png"), mask)
    places = {"ROOT": root, "runs/mine": folder / "mine", "=predictions": f"={folder / 'predictions'}"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return run_page("your_own_folder.md", places), places


def test_a_loss_in_your_own_project():
    names = run_page("losses_in_your_project.md", {})
    logits, labels = names["logits"], names["labels"]
    assert np.isfinite([names["composed"], *names["values"]]).all()
    assert np.all(np.diff(names["values"]) < 0)  # γ only takes away

    @jax.jit
    def on_one_device(scale):
        keep = labels != 255
        return losses.mean(losses.softmax_cross_entropy(scale * logits, labels, where=keep), where=keep)

    value, gradient = jax.value_and_grad(on_one_device)(1.0)
    assert float(names["values"][0]) == pytest.approx(float(value), rel=1e-6)  # γ = 0
    assert (float(names["value"]), float(names["gradient"])) == pytest.approx((float(value), float(gradient)), rel=1e-5)


def test_training_on_your_own_folder(mine, folder):
    names, places = mine
    assert names["config"].data.mask_values == (0, 128, 200)
    scores = json.loads((folder / "mine" / "scores.json").read_text())
    assert (scores["images"], scores["steps"], scores["classes"]) == (4, 2, ["background", "object"])
    written = {path.name for path in (folder / "predictions").iterdir()}
    assert {f"{i}_{kind}.png" for i in range(4) for kind in ("mask", "overlay")} <= written
    assert names["mask"].shape == (40, 60)
    assert sum(names["share"].values()) == pytest.approx(1)


def test_reading_the_uncertainty(mine, folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = run_page("uncertainty.md", mine[1] | {"=unsure": f"={folder / 'unsure'}"})
    written = {path.name for path in (folder / "unsure").iterdir()}
    assert {"contact_sheet.png", "3_uncertainty.png", "3_probabilities.npz"} <= written
    unsure, total = names["unsure"], names["total"]
    assert unsure.probabilities.shape == (1, 40, 60, 2)
    assert total.sum() == 4 * 40 * 60
    assert 0 <= names["aurc"] <= 1
    # The threshold answers nine pixels of ten, of all images, to a bin of the histogram.
    answered = np.sum(total, axis=0)[: names["last"] + 1].sum() / total.sum()
    assert answered >= 0.9 > answered - np.sum(total, axis=0)[names["last"]] / total.sum()
    assert names["curve"]["coverage"][-1] == risk_coverage(total)["coverage"][-1] == 1
    assert names["asked"].shape == (1, 40, 60)


def test_reproducing_a_table(folder, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)

    def tiny_config(preset="smoke", data="road_debris"):
        config = rare_class.get_config(preset, data)
        config.update_from_flattened_dict(TINY["configs/rare_class.py"])
        return config

    monkeypatch.setattr(focal_ablation, "get_config", tiny_config)
    names = run_page("reproduce_a_table.md", {"runs/focal_ablation": folder / "focal_ablation"})
    assert [row["loss"] for row in names["rows"]] == [
        "CE",
        "balanced CE",
        "focal",
        "CE, prior bias",
        "focal, prior bias",
    ]
    assert len(names["cells"]) == 5
    assert (folder / "focal_ablation" / "focal_ablation_road_debris.html").exists()
    assert "With and without the prior bias" in capsys.readouterr().out


def test_a_rehearsal_of_a_tpu_vm(folder, monkeypatch, python):
    monkeypatch.chdir(ROOT)
    places = {"runs/rehearsal": folder / "rehearsal", "steps=400": "steps=3"}
    run_page("tpu_vm.md", places, skip=["--distributed"])
    assert json.loads((folder / "rehearsal" / "scores.json").read_text())["steps"] == 3
