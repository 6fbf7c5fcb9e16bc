"""An exported network: run by an interpreter that has jax, flatbuffers and nothing else, and described by its card."""

import hashlib
import json
import subprocess
import sys

import jaxtyping
import numpy as np
import pytest
import tifffile
from etils import epath
from PIL import Image

from segjax import export, metrics
from segjax.data import label_set
from segjax.data.decode import predicted_values
from segjax.inference import PredictOptions, draw_boxes, standalone_predict
from segjax.inference.predictor import fingerprint
from segjax.trained_run import TrainedRun
from segjax.training.config import ConfigError
from segjax.training.network import make_model
from segjax.training.train_step import init_state

# Batch and sizes; only the second is of multiples of the network's.
SHAPES = ((1, 37, 50, 3), (3, 24, 32, 3))
PROGRAM = """
import importlib.util, sys
sys.path[:0] = [{site!r}, {folder!r}]
assert not any(importlib.util.find_spec(name) for name in ("segjax", "flax", "PIL", "optax")), sys.path
import numpy as np, run
network, card = run.load({folder!r})
images = np.load({images!r})
found = {{key: run.predict(network, images[key]) for key in images.files}}
np.savez({found!r}, **{{f"{{key}} {{name}}": y for key, outputs in found.items() for name, y in outputs.items()}})
"""


@pytest.fixture(scope="module", autouse=True)
def symbolic_sizes_may_stand_for_numbers():
    """Disables jaxtyping, because a symbolic size is not an `int`."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """Returns a run with one output that was not trained, with the scores file of a training."""
    workdir = epath.Path(tmp_path_factory.mktemp("run"))
    (workdir / "scores.json").write_text(
        json.dumps({"steps": 0, "mean_iou": 0.5, "iou_per_class": [0.5, float("nan")]})
    )
    model = make_model(config, 2)
    return TrainedRun(workdir, config, model, init_state(config, model), label_set(config.data))


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return folder, export.export_run(run, folder, uncertainty=True)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return {str(i): rng.integers(0, 256, shape).astype(np.uint8) for i, shape in enumerate(SHAPES)}


@pytest.mark.slow
def test_export_runs_without_segjax_and_equals_the_predictor(
    run, exported, images, linked_site, tmp_path, process_environment
):
    np.savez(tmp_path / "images.npz", **images)
    names = {
        "site": linked_site("jax", "flatbuffers"),
        "folder": exported[0],
        "images": tmp_path / "images.npz",
        "found": tmp_path / "found.npz",
    }
    program = PROGRAM.format(**{key: str(path) for key, path in names.items()})
    # -I and -S: neither PYTHONPATH nor the environment's own packages.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        env=process_environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    predict = run.predictor(probabilities=True)
    for key, batch in images.items():
        assert np.ptp(found[f"{key} variance"]) > 1e-4
        for i, image in enumerate(batch):
            expected = predict(image)
            np.testing.assert_array_equal(found[f"{key} mask"][i], expected.mask)
            np.testing.assert_allclose(found[f"{key} probabilities"][i], expected.probabilities, rtol=1e-4, atol=1e-5)


def test_card_describes_input_output_and_scores(run, exported):
    folder, card = exported

    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    assert json.loads((folder / "card.json").read_text(), parse_constant=no_constant) == json.loads(json.dumps(card))
    data = (folder / "model.stablehlo").read_bytes()
    assert card["files"]["model.stablehlo"] == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert card["platforms"] == ["cpu", "cuda", "tpu"]
    assert [c["name"] for c in card["classes"]] == ["background", "debris"]
    assert card["input"]["size"] is None
    assert card["preprocessing"]["size"] == [32, 48]
    assert card["scores"] == {
        "file": "scores.json", "of_step": 0, "steps": 0, "mean_iou": 0.5, "iou_per_class": [0.5, None]
    }  # fmt: skip
    assert set(card["output"]) == {"mask", "probabilities", "variance"}
    assert card["exported_by"]["commit"]


def test_card_prefers_the_scores_of_its_checkpoint(run, tmp_path):
    scores = {"step": 0, "mean_iou": 0.25, "parameters": fingerprint(run.state.variables)}
    (tmp_path / "scores_val_0.json").write_text(json.dumps(scores))
    run = run._replace(workdir=epath.Path(tmp_path))
    card = export.model_card(run, uncertainty=False, size=None)
    assert card["scores"] == {"file": "scores_val_0.json", "of_step": 0, **scores}
    (tmp_path / "scores_val_0.json").write_text(json.dumps(scores | {"parameters": "of an earlier training"}))
    (tmp_path / "scores.json").write_text(json.dumps({"steps": 7, "mean_iou": 0.5}))  # the best step is not the last
    assert export.model_card(run, uncertainty=False, size=None)["scores"] is None


def test_load_refuses_a_damaged_network(exported, tmp_path):
    folder, _ = exported
    data = bytearray((folder / "model.stablehlo").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model.stablehlo").write_bytes(data)
    (tmp_path / "card.json").write_bytes((folder / "card.json").read_bytes())
    with pytest.raises(ValueError, match=r"model\.stablehlo: damaged; expected SHA-256 [0-9a-f]{64} of card.json, got"):
        standalone_predict.load(tmp_path)


def test_load_refuses_a_damaged_card(exported, misread):
    folder, _ = exported

    def load():
        try:
            standalone_predict.load(folder)
        except ValueError as error:  # the only error of a script that does not import segjax
            raise ConfigError(str(error)) from error

    assert not {"half", "{}", "null", "latin-1", "missing"} & misread(folder / "card.json", load)


@pytest.fixture
def script(monkeypatch):
    """Returns the `main` of `run.py` with a network whose class is in the first channel."""
    card = {"input": {"size": None, "channels": 1}}

    def predict(network, images):
        return {"mask": (images[..., 0] > 127).astype(np.uint8)}

    monkeypatch.setattr(standalone_predict, "load", lambda folder: (None, card))
    monkeypatch.setattr(standalone_predict, "predict", predict)
    return lambda *names: standalone_predict.main([str(name) for name in names])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_script_predicts_images_of_8_and_of_16_bits(script, tmp_path, dtype):
    pixels = np.zeros((8, 12), dtype)
    pixels[:, 6:] = np.iinfo(dtype).max
    pixels[:, :6] = 3000 if dtype == np.uint16 else 11  # which 8 bits make of it
    Image.fromarray(pixels).save(tmp_path / "a.png")
    script(tmp_path / "a.png")
    script(tmp_path / "a.png")  # its own mask it writes again
    mask = np.asarray(Image.open(tmp_path / "a_mask.png"))
    assert np.array_equal(mask[:, [0, 4, 7, 11]], np.tile([0, 0, 1, 1], (8, 1)))


@pytest.mark.parametrize("values", [[9, 255], [7, 300], [[0, 0, 9], [255, 0, 0]]], ids=["ids", "16 bits", "colours"])
def test_script_writes_values_of_the_data_set(script, tmp_path, monkeypatch, values):
    card = {"input": {"size": None, "channels": 1}, "file_values": values}
    monkeypatch.setattr(standalone_predict, "load", lambda folder: (None, card))
    Image.fromarray(np.uint8([[0, 255, 0]])).save(tmp_path / "a.png")
    script(tmp_path / "a.png")
    script(tmp_path / "a.png")
    assert np.asarray(Image.open(tmp_path / "a_mask.png")).tolist() == [[values[0], values[1], values[0]]]
    assert predicted_values((tmp_path / "a_mask.png").read_bytes(), "a") == "dataset"


@pytest.mark.parametrize("kind", ["tif", "npy"])
def test_script_reads_bands_of_16_bits(script, tmp_path, monkeypatch, kind):
    card = {"input": {"size": None, "channels": 5, "range": [0.0, 4095.0]}}
    bands, seen = np.random.default_rng(0).integers(0, 4096, (8, 12, 5), dtype=np.uint16), []

    def predict(network, images):
        seen.append(images)
        return {"mask": np.zeros(images.shape[:3], np.uint8)}

    monkeypatch.setattr(standalone_predict, "load", lambda folder: (None, card))
    monkeypatch.setattr(standalone_predict, "predict", predict)
    if kind == "npy":
        np.save(tmp_path / "a.npy", bands)
    else:
        tifffile.imwrite(tmp_path / "a.tif", bands, photometric="minisblack", planarconfig="contig")
    script(tmp_path / f"a.{kind}")
    assert seen[0].dtype == np.float32
    np.testing.assert_array_equal(seen[0][0], bands)


def test_script_turns_photos_by_exif(script, tmp_path):
    exif, stored = Image.Exif(), np.zeros((8, 12), np.uint8)
    exif[0x0112], stored[:, :3] = 6, 255
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    script(tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a_mask.png")), np.rot90(stored > 127, -1))


@pytest.mark.parametrize(
    ("pixels", "fields", "said"),
    [
        (
            np.zeros((8, 12), np.uint8),
            {"range": [0.0, 4095.0]},
            "an image of 8 bits per channel; expected",
        ),
        (np.zeros((8, 12), np.uint8), {"range": [0.0, 1.0], "dtype": "float32"}, "an image of uint8; expected float32"),
        (np.zeros((8, 12), np.uint8), {"channels": 5}, "an image of 1 channels; expected 5"),
    ],
)
def test_script_refuses_images_of_another_kind(script, tmp_path, monkeypatch, pixels, fields, said):
    card = {"input": {"size": None, "channels": 1} | fields}
    monkeypatch.setattr(standalone_predict, "load", lambda folder: (None, card))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(SystemExit, match=rf"a\.png: {said}"):
        script(tmp_path / "a.png")


def test_script_overwrites_no_file_of_the_user(script, tmp_path):
    for name in ("a.png", "a_mask.png"):
        Image.fromarray(np.zeros((8, 12), np.uint8)).save(tmp_path / name)
    own = (tmp_path / "a_mask.png").read_bytes()
    with pytest.raises(SystemExit, match=r"error: .*/a_mask\.png: exists, and run\.py did not write it; move it away"):
        script(tmp_path / "a.png")
    assert (tmp_path / "a_mask.png").read_bytes() == own


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), r"python run\.py IMAGE"),
        (("nothing.png",), r"error: .*nothing\.png: expected an image file; nothing there$"),
        (("",), r"expected an image file; it is a folder$"),
        (("\x1b[2J\n\u202e.png",), r"/\\x1b\[2J\\n\\u202e\.png: expected an image file; nothing there$"),
        (("notes.png",), r"error: .*notes\.png: cannot be read as an image \("),
        (("a.png", "a.jpg"), r"a\.png and .*a\.jpg would both be written as .*a_mask\.png$"),
    ],
)
def test_script_names_files_that_it_cannot_predict(script, tmp_path, names, said):
    (tmp_path / "notes.png").write_text("no image")
    for name in ("a.png", "a.jpg"):
        Image.fromarray(np.zeros((8, 12), np.uint8)).save(tmp_path / name)
    with pytest.raises(SystemExit, match=said):
        script(*(tmp_path / name for name in names))
    assert not (tmp_path / "a_mask.png").exists()


def test_script_names_the_only_size_of_an_export(script, tmp_path, monkeypatch):
    card = {"input": {"size": [4, 6], "channels": 1}}
    monkeypatch.setattr(standalone_predict, "load", lambda folder: (None, card))
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(
        SystemExit, match=r"a\.png: \(8, 12\) pixels; this network was exported for images of \[4, 6\] only"
    ):
        script(tmp_path / "a.png")


@pytest.mark.parametrize(
    "fields",
    [
        {"scaling": metrics.Scaling((2.0, 2.0), (0.0, 0.0)), "threshold": -0.5},
        pytest.param({"radius": 1.0, "set_thresholds": (0.0, -0.5), "adaptive_sets": True}, marks=pytest.mark.slow),
    ],
)
def test_lower_network_for_one_size_with_a_calibration_equals_the_predictor(run, fields):
    bias = run.state.params["head"]["linear"]["bias"]
    params = {**run.state.params, "head": {"linear": {**run.state.params["head"]["linear"], "bias": 0 * bias}}}
    run, options = run._replace(state=run.state.replace(params=params)), PredictOptions((32, 48), **fields)
    fixed, images = export.lower_network(run, size=(5, 7), options=options), np.zeros((3, 5, 7, 3), np.uint8)
    images[:, 2:] = 255
    found, expected = fixed.call(images), run.predictor(options, probabilities=True)(images[0])
    assert 0 < expected.mask.mean() < 1
    for i in range(3):
        np.testing.assert_array_equal(found["mask"][i], expected.mask)
        np.testing.assert_allclose(found["probabilities"][i], expected.probabilities, rtol=1e-4)
        if options.set_thresholds:
            np.testing.assert_array_equal(found["sets"][i], expected.sets)


@pytest.fixture(scope="module")
def detector_run(detector_config):
    """Returns the run of a detector that was not trained, with scores around one half."""
    config = detector_config.copy_and_resolve_references()
    config.model.prior, config.data.letterbox = (0.5,), True
    model = make_model(config, 2)
    return TrainedRun(epath.Path("nowhere"), config, model, init_state(config, model), label_set(config.data))


@pytest.fixture(scope="module")
def exported_detector(detector_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported_detector")
    return folder, export.export_run(detector_run, folder, min_score=0.25)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exported_detector_equals_the_detector(detector_run, exported_detector, images, shape):
    network, _ = standalone_predict.load(exported_detector[0])
    batch, detect = images[str(SHAPES.index(shape))], detector_run.detector()
    found = standalone_predict.predict(network, batch)
    for i, image in enumerate(batch):
        expected = detect(image)
        assert found["count"][i] == len(expected.scores) > 20
        first = slice(found["count"][i])
        np.testing.assert_array_equal(found["classes"][i, first], expected.classes)
        np.testing.assert_allclose(found["scores"][i, first], expected.scores, atol=1e-6)
        np.testing.assert_allclose(found["boxes"][i, first], expected.boxes, atol=1e-4)


def test_card_of_a_detector(exported_detector):
    _, card = exported_detector
    assert card["classes"] == [{"name": "debris", "colour": [230, 60, 40]}]
    assert list(card["output"]) == ["count", "boxes", "scores", "classes"]
    assert card["min_score"] == 0.25
    assert "boxes are scaled back" in card["preprocessing"]["applied"]
    assert not {"calibration", "file_values"} & set(card)


@pytest.mark.slow
def test_export_command_of_a_detector(trained_detector, tmp_path, run_command):
    arguments = (f"--checkpoint={trained_detector}", f"--output={tmp_path}")
    status, printed, error = run_command("export", *arguments, "--min_score=0.25")
    assert (status, error) == (0, "")
    assert "retinanet of step 2: images of any size; cpu, cuda, tpu" in printed
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["min_score"], card["scores"]["images"]) == (0.25, 6)


@pytest.fixture
def detector_script(monkeypatch):
    """Returns the `main` of `run.py` of a detector that finds two boxes, of scores 0.75 and 0.25."""
    classes = [{"name": "stone", "colour": [200, 0, 0]}, {"name": "tyre", "colour": [0, 200, 0]}]
    card = {"input": {"size": None, "channels": 1}, "output": {"boxes": ""}, "classes": classes}
    card |= {"min_score": 0.5, "network": {"name": "retinanet"}}
    found = {
        "count": np.array([2], np.int32),
        "boxes": np.array([[[10, 30, 24.5, 41], [2, 2, 5, 6], [0, 0, 0, 0]]], np.float32),
        "scores": np.array([[0.75, 0.25, 0]], np.float32),
        "classes": np.array([[1, 0, 0]], np.int32),
    }
    monkeypatch.setattr(standalone_predict, "load", lambda folder: (None, card))
    monkeypatch.setattr(standalone_predict, "predict", lambda network, images: found)
    return lambda *names: standalone_predict.main([str(name) for name in names])


@pytest.fixture
def two_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((60, 80), 9, np.uint8)).save(name)


def test_script_writes_the_detections_of_all_images_as_coco(detector_script, two_images):
    detector_script("a.png", "b.png")
    detector_script("a.png", "b.png")  # it overwrites its own files
    with open("detections.json", encoding="utf-8") as file:
        found = json.load(file)
    assert found["images"][1] == {"id": 2, "file_name": "b.png", "height": 60, "width": 80}
    assert found["categories"] == [{"id": 1, "name": "stone"}, {"id": 2, "name": "tyre"}]
    one = {"id": 3, "image_id": 2, "category_id": 2, "iscrowd": 0, "bbox": [10, 30, 14.5, 11], "area": 159.5}
    assert found["annotations"][2] == one | {"score": 0.75}
    assert len(found["annotations"]) == 4


def test_script_draws_the_boxes_of_segjax_predict(detector_script, two_images):
    detector_script("a.png")
    drawn = np.asarray(Image.open("a_boxes.png"))
    box, colour = np.array([[10, 30, 24.5, 41]]), np.array([[0, 200, 0]], np.uint8)
    expected = draw_boxes(np.full((60, 80, 1), 9, np.uint8), box, colour)
    np.testing.assert_array_equal(drawn[30:], expected[30:])
    assert (drawn[:30] == (0, 200, 0)).all(axis=-1).any()  # the text, above the box


def test_script_keeps_detections_of_the_user(detector_script, two_images, tmp_path):
    (tmp_path / "detections.json").write_text('{"info": {}}')
    with pytest.raises(SystemExit, match=r"detections\.json: exists, and run\.py did not write it; move it away"):
        detector_script("a.png")
    assert not (tmp_path / "a_boxes.png").exists()


def test_export_names_the_extra_that_installs_flatbuffers(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ConfigError, match=r"^segjax export needs the extra .* 'segjax\[export\]'$"):
        export.export_run(run, tmp_path)
