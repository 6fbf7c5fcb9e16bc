"""The files of a prediction: what each holds, and that a half-done folder is completed and never mixed."""

import io
import math
import re

import cv2
import numpy as np
import pytest
import rich.console
from PIL import Image

from segjax.data import DataError
from segjax.data.labels import LABEL_SETS
from segjax.inference import Done, Found, Prediction, Wanted, done_lines, heatmap, write_predictions

LABELS = LABEL_SETS["road_debris_scene"]
ALL = Wanted(uncertainty=True, probabilities=True, palette=True, sheet=True)
ORIGIN = {"checkpoint": "run", "step": 3}


def found(name):
    rng = np.random.default_rng(len(name))
    probabilities = rng.dirichlet(np.ones(5), (6, 8)).astype(np.float32)
    mask = probabilities.argmax(-1).astype(np.uint8)
    entropy = -(probabilities * np.log(probabilities)).sum(-1)
    return Found(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8), Prediction(mask, entropy, probabilities))


class Predict:
    """`found`, which remembers what it was asked and refuses what it is told to."""

    def __init__(self, bad=()):
        self.asked, self._bad = [], bad

    def __call__(self, name):
        self.asked.append(name)
        if name in self._bad:
            raise DataError(f"{name}.png: cannot be decoded")
        return found(name)


def plain_write(path, data):
    path.write_bytes(data)


MASK_AND_OVERLAY = Wanted()


def write(names, predict, output, wanted=MASK_AND_OVERLAY, origin=ORIGIN, **options):
    options = {"write": plain_write, "console": rich.console.Console(file=io.StringIO())} | options
    return write_predictions(names, predict, output, wanted, LABELS, origin, **options)


def picture(path):
    return cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)


def test_every_file_holds_what_it_says(tmp_path):
    assert write(["sub/a"], Predict(), tmp_path, ALL) == Done(1, 0, ())
    image, expected = found("sub/a")
    with Image.open(tmp_path / "sub" / "a_mask.png") as mask:
        assert np.array_equal(np.asarray(mask), expected.mask)
        assert np.array_equal(np.asarray(mask.convert("RGB")), LABELS.palette[expected.mask])
    with np.load(tmp_path / "sub" / "a_probabilities.npz") as arrays:
        assert np.array_equal(arrays["probabilities"], expected.probabilities)
        assert np.array_equal(arrays["uncertainty"], expected.uncertainty)
        assert tuple(arrays["classes"]) == LABELS.names
    entropy = picture(tmp_path / "sub" / "a_uncertainty.png")
    assert np.array_equal(entropy, heatmap(expected.uncertainty, math.log(5)))
    colours = LABELS.palette[expected.mask].astype(float)
    assert np.abs(picture(tmp_path / "sub" / "a_overlay.png") - (image + colours) / 2).max() <= 0.5
    assert picture(tmp_path / "contact_sheet.png").shape[1] == 4 + 3 * 244


def test_a_mask_without_a_palette_is_grey_indices(tmp_path):
    write(["a"], Predict(), tmp_path, Wanted(overlay=False))
    assert np.array_equal(cv2.imread(str(tmp_path / "a_mask.png"), cv2.IMREAD_UNCHANGED), found("a").prediction.mask)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_mask.png", "predicted_by.json"]


def test_an_overlay_of_one_class_leaves_the_others_pixels_alone(tmp_path):
    write(["a"], Predict(), tmp_path, Wanted(only=2))
    changed = (picture(tmp_path / "a_overlay.png") != found("a").image).any(-1)
    assert np.array_equal(changed, found("a").prediction.mask == 2)


def test_the_scale_of_the_uncertainty_is_the_one_that_is_told(tmp_path):
    wanted = Wanted(uncertainty=True, measure="variance", maximum=3.0)
    write(["a"], Predict(), tmp_path, wanted)
    shown = picture(tmp_path / "a_uncertainty.png")
    assert np.array_equal(shown, heatmap(found("a").prediction.uncertainty, 3.0))
    assert wanted.scale(LABELS) == "variance, 0 to 3 squared logits"
    assert Wanted().scale(LABELS) == "entropy, 0 to 1.61 nats"


def test_a_half_done_folder_is_completed(tmp_path):
    write(["a", "bb"], Predict(), tmp_path)
    (tmp_path / "a_mask.png").unlink()
    predict = Predict()
    assert write(["a", "bb", "ccc"], predict, tmp_path) == Done(2, 1, ())
    assert predict.asked == ["a", "ccc"]


def test_a_folder_of_another_checkpoint_is_not_completed(tmp_path):
    write(["a"], Predict(), tmp_path)
    expected = f"{tmp_path}: holds predictions made with step = 3; now it is 4. Name another --output, or remove them"
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        write(["a", "bb"], Predict(), tmp_path, origin=ORIGIN | {"step": 4})


def test_a_bad_image_stops_it_and_leaves_those_before_it(tmp_path):
    with pytest.raises(DataError, match=r"^bb\.png: cannot be decoded$"):
        write(["a", "bb", "ccc"], Predict(bad=["bb"]), tmp_path)
    assert (tmp_path / "a_mask.png").exists()
    assert not (tmp_path / "ccc_mask.png").exists()


def test_a_bad_image_is_skipped_and_named(tmp_path):
    done = write(["a", "bb", "ccc"], Predict(bad=["bb"]), tmp_path, on_error="skip")
    assert done == Done(2, 0, ("bb.png: cannot be decoded",))
    assert done_lines(done) == ["predicted 2 image(s)", "skipped 1 bad image(s):", "  bb.png: cannot be decoded"]


def test_the_mask_comes_last_so_that_it_vouches_for_the_rest(tmp_path):
    order = []

    def full(path, data):
        order.append(path.name)
        if path.name == "bb_mask.png":
            raise OSError(28, "No space left on device", str(path))
        plain_write(path, data)

    with pytest.raises(OSError, match="No space left"):
        write(["a", "bb"], Predict(), tmp_path, write=full)
    assert order == ["predicted_by.json", "a_overlay.png", "a_mask.png", "bb_overlay.png", "bb_mask.png"]
    assert write(["a", "bb"], Predict(), tmp_path) == Done(1, 1, ())


def test_what_was_there_before_is_said():
    assert done_lines(Done(1, 2, ())) == ["predicted 1 image(s); 2 had been predicted before and are kept"]
