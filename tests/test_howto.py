"""The how-tos of docs/howto and the commands of README and "Getting started", run as written on tiny data.

All other commands on pages, in configs and in the docstrings of programs, many of them hours long, are parsed by their
programs: flags, config and overrides.

Tests replace only the config fields in `TINY` and the folders that they name. The commands of "Reproduce a table" run
in tests/experiments, and those of "Run on a TPU VM" in tests/training, which start the processes that they need.
"""

import importlib
import json
import math
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

from segjax import cli, losses
from segjax.__main__ import MODULES
from segjax.metrics import risk_coverage

ROOT = Path(__file__).parent.parent

SIZE = {"data.size": (32, 48), "data.workers": 0, "model.width": 4, "model.depth": 1, "model.padding": "zeros"}
PLAIN = {"augment.scale": (1.0, 1.0), "augment.brightness": 0.0, "augment.contrast": 0.0}  # compiles faster
STEPS = {"training.steps": 2, "training.global_batch": 4, "training.log_every": 1}
TINY = {"folder_unet": SIZE | PLAIN | STEPS}
VAL = (33, 71)
# `fault_child` is started by other programs only.
COMMANDS = sorted(
    {
        re.sub(r" [\[(].*", "", command.replace("\\\n", " ")).rstrip('". ')
        for pattern in ("README.md", "docs/**/*.md", "configs/*.py", "segjax/*.py", "experiments/**/*.py")
        for path in ROOT.glob(pattern)
        if path.parent.name != "reports"  # generated
        for command in re.findall(
            r"((?:python -m (?!experiments\S*fault_child)(?:segjax|experiments)\.[a-z]"
            r"|\bsegjax (?:data \w+ (?=\S* --)"
            r"|(?:train|evaluate|calibrate|predict|report|compare|demo|export) (?=\S*[-/])))"
            r"(?:[^\n`\\]|\\\n)*)",
            path.read_text("utf-8"),
        )
        # Not the command in an f-string, and not one in a sentence about its flags.
        if "{" not in command and re.search(r"^python|--(?:config|checkpoint|output)=|runs/", command)
    }
)
# Pages with Python beside the how-tos; each runs by itself.
EXAMPLES = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if "```python" in path.read_text("utf-8")]


def tiny(module, arguments):
    """Inserts the overrides of `TINY` before the overrides of the page."""
    found = dict(argument.partition("=")[::2] for argument in arguments)
    config = found.get("--config", "folder_unet" if module == "segjax.train" else "")
    given = [argument for argument in arguments if argument.startswith("--config.")]
    overrides = [f"--config.{key}={value}" for key, value in TINY.get(Path(config).stem, {}).items()]
    return [*(one for one in arguments if one not in given), *overrides, *given]


def run_command(line):
    """Runs `python -m MODULE …` or `segjax COMMAND …` in this process and removes the flags that it defined."""
    module, *arguments = shlex.split(line.removeprefix("python -m "))
    if module == "segjax":
        module, *arguments = MODULES[arguments[0]], *arguments[1:]
    for library in ("absl.app", "segjax.training"):  # the flags that these define stay
        importlib.import_module(library)
    path = ROOT / module.replace(".", "/")
    file = path.with_suffix(".py") if not path.is_dir() else path / "__main__.py"
    before, argv = set(flags.FLAGS), sys.argv
    sys.argv = [str(file), *tiny(module, arguments)]
    try:
        with warnings.catch_warnings():
            # ml_collections loads config files this way.
            warnings.filterwarnings("ignore", r"the load_module\(\) method is deprecated", DeprecationWarning)
            runpy.run_path(str(file), run_name="__main__")
    except SystemExit as end:
        if end.code:
            pytest.fail(f"{line}: {end.code}")
    finally:
        sys.argv = argv
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


def replace_paths(text, places):
    """Replaces the paths of a page by those of the test."""
    for path, replacement in places.items():
        text = text.replace(path, str(replacement))
    return text


def run_page(blocks, places):
    """Runs a page from top to bottom with its paths replaced; returns the names that its code defines."""
    names = {}
    for language, text in blocks:
        text = replace_paths(text, places)
        if language == "python":
            exec(text, names)
            continue
        for line in text.splitlines():
            run_command(line)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("howto")


@pytest.fixture(scope="module")
def own_folder_run(folder, page):
    """Runs "Train on your own folder" on grey images of different sizes; returns its names and its paths.

    The page about uncertainty starts from them.
    """
    rng, root = np.random.default_rng(0), folder / "own"
    for split, sizes in (("train", [(40, 60), (50, 44), (33, 71), (40, 60)]), ("val", [VAL] * 4)):
        for i, size in enumerate(sizes):
            mask = np.where(rng.random(size) < 0.2, 255, 0).astype(np.uint8)
            for kind, pixels in (("images", rng.integers(0, 256, size).astype(np.uint8)), ("masks", mask)):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(root / split / kind / f"{i}.png"), pixels)
    places = {"ROOT": root, "runs/mine": folder / "mine"}
    places |= {f"={name}": f"={folder / name}" for name in ("predictions", "my_config.py", "page.html")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return run_page(page("howto/your_own_folder.md"), places), places


def test_howto_losses_in_your_project(page):
    names = run_page(page("howto/losses_in_your_project.md"), {})
    logits, labels = names["logits"], names["labels"]
    assert np.isfinite([names["composed"], names["rare"], *names["values"]]).all()
    assert np.all(np.diff(names["values"]) < 0)  # the loss falls with γ

    @jax.jit
    def on_one_device(scale):
        keep = labels != 255
        return losses.mean(losses.softmax_cross_entropy(scale * logits, labels, where=keep), where=keep)

    value, gradient = jax.value_and_grad(on_one_device)(1.0)
    assert float(names["values"][0]) == pytest.approx(float(value), rel=1e-6)  # γ = 0
    assert (float(names["value"]), float(names["gradient"])) == pytest.approx((float(value), float(gradient)), rel=1e-5)


@pytest.mark.slow
def test_howto_training_step_learns(page):
    names = run_page(page("howto/losses_in_your_project.md")[:1], {})
    images, labels = names["images"], names["labels"]
    untrained = names["model"].init(jax.random.key(1), images)
    assert names["value"] < 0.5 * names["loss"](untrained, images, labels)


def test_howto_your_own_folder(own_folder_run, folder):
    names, _ = own_folder_run
    assert names["config"].data.mask_values == (0, 128, 200)
    assert cli.ConfigFile("config").parse(str(folder / "my_config.py")).data.mask_values == (0, 255)
    assert (folder / "page.html").exists()
    scores = json.loads((folder / "mine" / "scores.json").read_text())
    assert (scores["images"], scores["steps"], scores["classes"]) == (4, 2, ["background", "object"])
    written = {path.name for path in (folder / "predictions").iterdir()}
    assert {f"{i}_{kind}.png" for i in range(4) for kind in ("mask", "overlay")} <= written
    assert np.sum(scores["confusion"]) == 4 * math.prod(VAL)
    assert names["image"].shape == (*VAL, 1)
    assert names["predicted"].mask.shape == VAL
    assert sum(names["fraction"].values()) == pytest.approx(1)


@pytest.mark.slow
def test_howto_uncertainty(own_folder_run, folder, page, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = run_page(page("howto/uncertainty.md"), own_folder_run[1] | {"=unsure": f"={folder / 'unsure'}"})
    written = {path.name for path in (folder / "unsure").iterdir()}
    assert {"contact_sheet.png", "3_uncertainty.png", "3_probabilities.npz"} <= written
    shifted = json.loads((folder / "mine" / "scores_val_2_fog_3.json").read_text())
    assert (shifted["corruption"], shifted["severity"], shifted["images"]) == ("fog", 3, 4)
    assert shifted["pixel_loss"] != json.loads((folder / "mine" / "scores.json").read_text())["pixel_loss"]
    unsure, total = names["unsure"], names["total"]
    assert unsure.probabilities.shape == (*VAL, 2)
    assert total.sum() == 4 * math.prod(VAL)
    assert 0 <= names["aurc"] <= 1
    # The threshold keeps 90 % of the pixels of all images, to one bin of the histogram.
    answered = np.sum(total, axis=0)[: names["last"] + 1].sum() / total.sum()
    assert answered >= 0.9 > answered - np.sum(total, axis=0)[names["last"]] / total.sum()
    assert names["curve"]["coverage"][-1] == risk_coverage(total)["coverage"][-1] == 1
    assert names["to_check"].shape == VAL
    assert (names["variance"] > 0).all()
    assert np.isfinite(names["bayesian"]).all()
    sampled, exact = names["sampled"], names["exact"]
    assert sampled.probabilities.shape == names["clean"].logits.shape == exact.shape == (2, 48, 64, 12)
    assert sampled.variance.shape == sampled.mutual_information.shape == (2, 48, 64)
    # Thirty samples estimate the closed form.
    assert float(sampled.variance.mean()) == pytest.approx(float(exact.mean()), rel=0.3)


@pytest.mark.slow
def test_howto_unknown_objects(tmp_path, monkeypatch, page):
    scenes = {"data.scene_size": (64, 96), "data.train_examples": 4, "data.val_examples": 2, "data.data_dir": tmp_path}
    monkeypatch.setitem(TINY, "road_debris_unseen", SIZE | STEPS | scenes)
    monkeypatch.chdir(ROOT)
    names = run_page(page("howto/unknown_objects.md")[:2], {"runs/debris_unseen": tmp_path / "debris_unseen"})
    scores = json.loads((tmp_path / "debris_unseen" / "scores.json").read_text())
    assert scores["classes"] == ["road", "marking", "verge", "sky"]
    found = scores["unknown"]["max_probability"]
    assert found["average_precision"] == pytest.approx(names["precision"], rel=0.02)
    assert found["auroc"] == pytest.approx(names["auroc"], abs=2e-3)
    assert (tmp_path / "debris_unseen" / "report" / "report.html").exists()


@pytest.mark.slow
def test_howto_boxes_from_masks(tmp_path, monkeypatch, page):
    rng, (height, width), root = np.random.default_rng(0), (48, 64), tmp_path / "own"
    annotated = tmp_path / "annotated"
    content = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "roof"}, {"id": 8, "name": "car"}]}
    for folder in (root / "images", root / "masks", annotated):
        folder.mkdir(parents=True)
    for i in range(6):
        image, mask = rng.integers(0, 99, (height, width, 3), dtype=np.uint8), np.zeros((height, width), np.uint8)
        for left in (4, 36):
            x, y, side = left, int(rng.integers(2, 30)), int(rng.integers(8, 16))
            image[y : y + side, x : x + side] = mask[y : y + side, x : x + side] = 255
            annotation = {"id": len(content["annotations"]), "image_id": i, "bbox": [x, y, side, side]}
            content["annotations"].append(annotation | {"category_id": 3 if left == 4 else 8, "area": side**2})
        content["images"].append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        for path in (root / "images", annotated):
            assert cv2.imwrite(str(path / f"{i}.png"), image)
        assert cv2.imwrite(str(root / "masks" / f"{i}.png"), mask)
    (annotated / "annotations.json").write_text(json.dumps(content))
    network = {"data.size": (48, 64), "data.workers": 0, "model.width": 4, "model.hidden": 8, "model.levels": (2, 3)}
    monkeypatch.setitem(TINY, "road_debris_boxes", network | STEPS)
    monkeypatch.chdir(ROOT)
    places = {"ROOT": root, "ANNOTATED": annotated, "street.jpg": annotated / "0.png"}
    places |= {"runs/objects": tmp_path / "objects", "runs/annotated": tmp_path / "boxes"}
    names = run_page(page("howto/boxes_from_masks.md"), places | {"=detections": f"={tmp_path / 'found'}"})
    assert set(names["counts"]) == {2}
    assert 8 * 3 <= min(names["sides"]) <= max(names["sides"]) <= 16 * 4  # in pixels of 192 × 256
    for run, classes in (("objects", ["object"]), ("boxes", ["car", "roof"])):
        scores = json.loads((tmp_path / run / "scores.json").read_text())
        assert (scores["images"], scores["classes"], scores["steps"]) == (1, classes, 2)
    assert (tmp_path / "objects" / "report" / "report.html").exists()
    assert {"0_boxes.png", "detections.json"} <= {path.name for path in (tmp_path / "found").iterdir()}


@pytest.mark.slow
def test_howto_watch_a_run(tmp_path, monkeypatch, page, browser):
    scenes = {"data.scene_size": (64, 96), "data.train_examples": 4, "data.val_examples": 2, "data.data_dir": tmp_path}
    monkeypatch.setitem(TINY, "rare_class", SIZE | STEPS | scenes)
    monkeypatch.chdir(tmp_path)
    run_page(page("howto/watch_a_run.md"), {})
    for width, seen in browser(tmp_path / "runs" / "watched" / "run.html").items():
        assert (seen["images"], seen["charts"], seen["wide"]) == ([True], 4, False), width
    assert (tmp_path / "runs" / "watched" / "report" / "report.html").exists()


@pytest.mark.slow
def test_howto_compare_runs(tmp_path, monkeypatch, page):
    scenes = {"data.scene_size": (64, 96), "data.train_examples": 4, "data.val_examples": 2, "data.data_dir": tmp_path}
    monkeypatch.setitem(TINY, "rare_class", SIZE | STEPS | scenes)
    monkeypatch.chdir(tmp_path)
    names = run_page(page("howto/compare_runs.md"), {})
    assert [group["name"] for group in names["comparison"]["groups"]] == ["none", "prior"]
    assert [len(group["runs"]) for group in names["comparison"]["groups"]] == [2, 2]
    assert (tmp_path / "comparison" / "comparison.html").exists()


@pytest.mark.slow
def test_howto_ensembles(own_folder_run, folder, page, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {"members=5": "members=2", "runs/ensemble": folder / "ensemble", "=unsure": f"={folder / 'ensemble_maps'}"}
    names |= {"runs/seed0": folder / "mine", "runs/seed1": folder / "ensemble", "runs/both": folder / "both"}
    found = run_page(page("howto/ensembles.md"), own_folder_run[1] | names)
    assert found["run"].members == 2
    assert found["expected"].min() > -1e-5
    assert np.load(folder / "ensemble_maps" / "0_probabilities.npz")["mutual_information"].shape == VAL
    runs = json.loads((folder / "both.json").read_text())["runs"]
    assert [one["checkpoint"] for one in runs] == [str(folder / "mine"), str(folder / "ensemble")]


@pytest.mark.slow
def test_readme_trains_reports_and_predicts(tmp_path, monkeypatch, page):
    scenes = {"data.scene_size": (64, 96), "data.train_examples": 4, "data.val_examples": 2, "data.data_dir": tmp_path}
    monkeypatch.setitem(TINY, "road_debris_uncertainty", SIZE | STEPS | scenes)
    monkeypatch.chdir(ROOT)
    lines = [line for _, block in page("../README.md") for line in block.splitlines() if "runs/debris" in line]
    assert [line.split()[1] for line in lines] == ["train", "report", "predict"]
    names = ("runs/debris", "predictions")
    run_page([("bash", "\n".join(lines))], {name: tmp_path / Path(name).name for name in names})
    assert (tmp_path / "debris" / "report" / "report.html").exists()
    assert {path.name for path in (tmp_path / "predictions").glob("road_*.png")} == (
        {"road_mask.png", "road_overlay.png", "road_uncertainty.png"}
    )


@pytest.mark.slow
def test_getting_started_commands(tmp_path, monkeypatch, page, python):
    rng, raw = np.random.default_rng(0), tmp_path / "camvid"
    for split, count in (("train", 4), ("val", 2)):
        for kind, pixels in ((split, (24, 32, 3)), (f"{split}annot", (24, 32))):
            (raw / kind).mkdir(parents=True)
            for i in range(count):
                drawn = rng.integers(0, 256 if len(pixels) == 3 else 12, pixels).astype(np.uint8)
                assert cv2.imwrite(str(raw / kind / f"{split}_{i}.png"), drawn)
    places = {"runs/camvid": tmp_path / "run", "night/ 'day/*.png'": f"{raw / 'val'} '{raw / 'train'}/*.png'"}
    places |= dict.fromkeys(("street.jpg", "aerial.png"), raw / "train" / "train_0.png")
    places |= {f"output={name}": f"output={tmp_path / name}" for name in ("predictions", "unsure", "large", "exported")}
    monkeypatch.setenv("SEGJAX_CAMVID_DIR", str(raw))
    monkeypatch.setitem(TINY, "camvid_unet", SIZE | PLAIN | STEPS | {"data.data_dir": tmp_path / "prepared"})
    monkeypatch.chdir(ROOT)
    ((_, block),) = page("getting_started.md")
    lines = block.splitlines()[1:]
    assert [line.split()[1] for line in lines] == (["train", "evaluate", "report", *["predict"] * 3, "export"])
    run_page([("bash", "\n".join(lines[:-1]))], places)
    # In its own process: the shape checks of the tests refuse symbolic sizes, which are not ints.
    exported = python("-m", *shlex.split(replace_paths(lines[-1], places)))
    assert exported.returncode == 0, exported.stderr
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["images"] == 2
    assert (tmp_path / "run" / "report" / "report.html").exists()
    assert (tmp_path / "predictions" / "train_0_overlay.png").exists()
    assert (tmp_path / "unsure" / "contact_sheet.png").exists()
    assert cv2.imread(str(tmp_path / "large" / "train_0_mask.png")).shape == (24, 32, 3)
    assert {"card.json", "run.py"} <= {path.name for path in (tmp_path / "exported").iterdir()}


def test_read_an_ablation(tmp_path, page):
    names = run_page(page("howto/read_an_ablation.md"), {"runs/sweep": tmp_path})
    assert names["page"] == tmp_path / "sweep.html"
    assert (tmp_path / "sweep_grid.png").exists()


@pytest.mark.parametrize("name", EXAMPLES)
def test_python_of_other_pages_runs(name, page):
    run_page([block for block in page(name) if block[0] == "python"], {})


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_command_parses(command, monkeypatch):
    parsed = []

    def parse(main, required, subcommands=None):
        parsed.append(flags.FLAGS(sys.argv))
        for names in required:
            assert any(flags.FLAGS[name].value is not None for name in ([names] if isinstance(names, str) else names))

    monkeypatch.setattr(cli, "run", parse)
    monkeypatch.chdir(ROOT)
    run_command(command.replace("--config=…", "--config=rare_class"))
    assert len(parsed) == 1


def test_code_of_pages_has_88_columns():
    long = []
    for path in (ROOT / "docs").glob("**/*.md"):
        text = path.read_text("utf-8") if path.parent.name != "reports" else ""  # generated
        for directive, block in re.findall(r"^```(\{?)[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            long += [f"{path.name}: {line}" for line in block.splitlines() if len(line) > 88 and not directive]
    assert long == []


def test_every_howto_is_run_by_a_test():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert [path.name for path in (ROOT / "docs" / "howto").iterdir() if f'"howto/{path.name}"' not in tests] == []
