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
from segjax.inference import (
    Done,
    ImageFile,
    Prediction,
    Wanted,
    done_lines,
    heatmap,
    pictures,
    write_predictions,
    written_here,
)

LABELS = LABEL_SETS["road_debris_scene"]
ALL = Wanted(uncertainty=True, probabilities=True, palette=True, sheet=True)
ORIGIN = {"checkpoint": "run", "step": 3}


def image_of(name):
    return np.random.default_rng(len(name)).integers(0, 256, (6, 8, 3)).astype(np.uint8)


def said_of(image):
    rng = np.random.default_rng(int(image.sum()))
    probabilities = rng.dirichlet(np.ones(5), (6, 8)).astype(np.float32)
    mask = probabilities.argmax(-1).astype(np.uint8)
    entropy = -(probabilities * np.log(probabilities)).sum(-1)
    unsure = {"entropy": entropy, "variance": 2 * entropy}
    return Prediction(mask, unsure, probabilities)


class Predict:
    """`said_of`, which remembers what it was asked and refuses what it is told to."""

    def __init__(self, bad=()):
        self.asked, self.groups, self._bad = [], [], bad

    def read(self, name):
        self.asked.append(name)
        if name in self._bad:
            raise DataError(f"{name}.png: cannot be decoded")
        return image_of(name)

    def __call__(self, images):
        self.groups.append(len(images))
        return map(said_of, images)


def source(name):
    return ImageFile(f"/images/{name}.png", f"digest of {name}")


def plain_write(path, data):
    path.write_bytes(data)


MASK_AND_OVERLAY = Wanted()


def write(names, predict, output, wanted=MASK_AND_OVERLAY, origin=ORIGIN, **options):
    options = {"write": plain_write, "console": rich.console.Console(file=io.StringIO())} | options
    source_of = options.pop("source", source)
    return write_predictions(names, predict.read, predict, source_of, output, wanted, LABELS, origin, **options)


def picture(path):
    return cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)


def test_every_file_holds_what_it_says(tmp_path):
    assert write(["sub/a"], Predict(), tmp_path, ALL) == Done(1, 0, ())
    image = image_of("sub/a")
    expected = said_of(image)
    with Image.open(tmp_path / "sub" / "a_mask.png") as mask:
        assert np.array_equal(np.asarray(mask), expected.mask)
        assert np.array_equal(np.asarray(mask.convert("RGB")), LABELS.palette[expected.mask])
    with np.load(tmp_path / "sub" / "a_probabilities.npz") as arrays:
        assert np.array_equal(arrays["probabilities"], expected.probabilities)
        for name, values in expected.uncertainties.items():
            assert np.array_equal(arrays[name], values)
        assert tuple(arrays["classes"]) == LABELS.names
    entropy = picture(tmp_path / "sub" / "a_uncertainty.png")
    assert np.array_equal(entropy, heatmap(expected.uncertainties["entropy"], math.log(5)))
    colours = LABELS.palette[expected.mask].astype(float)
    assert np.abs(picture(tmp_path / "sub" / "a_overlay.png") - (image + colours) / 2).max() <= 0.5
    assert picture(tmp_path / "contact_sheet.png").shape[1] == 4 + 3 * 244


def test_a_mask_without_a_palette_is_grey_indices(tmp_path):
    write(["a"], Predict(), tmp_path, Wanted(overlay=False))
    assert np.array_equal(cv2.imread(str(tmp_path / "a_mask.png"), cv2.IMREAD_UNCHANGED), said_of(image_of("a")).mask)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_mask.png", "predicted_by.json"]


def test_an_overlay_of_one_class_leaves_the_others_pixels_alone(tmp_path):
    write(["a"], Predict(), tmp_path, Wanted(only=2))
    changed = (picture(tmp_path / "a_overlay.png") != image_of("a")).any(-1)
    assert np.array_equal(changed, said_of(image_of("a")).mask == 2)


def test_the_scale_of_the_uncertainty_is_the_one_that_is_told(tmp_path):
    wanted = Wanted(uncertainty=True, measure="variance", maximum=3.0)
    write(["a"], Predict(), tmp_path, wanted)
    shown = picture(tmp_path / "a_uncertainty.png")
    assert np.array_equal(shown, heatmap(said_of(image_of("a")).uncertainties["variance"], 3.0))
    assert wanted.scale(LABELS) == "variance, 0 to 3 squared logits"
    assert Wanted().scale(LABELS) == "entropy, 0 to 1.61 nats"


def test_a_half_done_folder_is_completed(tmp_path):
    write(["a", "bb"], Predict(), tmp_path)
    (tmp_path / "a_mask.png").unlink()
    predict = Predict()
    assert write(["a", "bb", "ccc"], predict, tmp_path) == Done(2, 1, ())
    assert predict.asked == ["a", "ccc"]


def test_images_are_predicted_together_and_a_bad_one_stops_none_before_it(tmp_path):
    predict, names = Predict(bad=["bad"]), ["a", "bb", "ccc", "dddd", "eeeee"]
    assert write(names, predict, tmp_path / "all", batch=2) == Done(5, 0, ())
    assert predict.groups == [2, 2, 1]
    for name in names:
        expected = LABELS.palette[said_of(image_of(name)).mask].astype(float)
        mixed = picture(tmp_path / "all" / f"{name}_overlay.png") - (image_of(name) + expected) / 2
        assert np.abs(mixed).max() <= 0.5
    with pytest.raises(DataError, match="cannot be decoded"):
        write(["a", "bb", "ccc", "bad"], predict, tmp_path / "half", batch=2)
    assert {path.name for path in (tmp_path / "half").glob("*_mask.png")} == {f"{n}_mask.png" for n in names[:3]}


def test_a_folder_of_another_checkpoint_is_not_completed(tmp_path):
    write(["a"], Predict(), tmp_path)
    expected = f"{tmp_path}: holds predictions made with step = 3; now it is 4. Name another --output, or remove them"
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        write(["a", "bb"], Predict(), tmp_path, origin=ORIGIN | {"step": 4})


def test_a_folder_may_be_told_of_its_checkpoint_in_other_words(tmp_path):
    write(["a"], Predict(), tmp_path)
    assert write(["a"], Predict(), tmp_path, origin=ORIGIN | {"checkpoint": "./run"}) == Done(0, 1, ())


def test_an_image_that_has_changed_is_predicted_anew(tmp_path):
    write(["a", "bb"], Predict(), tmp_path)
    predict = Predict()
    changed = {"source": lambda name: source(name)._replace(sha256="another" if name == "a" else source(name).sha256)}
    assert write(["a", "bb"], predict, tmp_path, **changed) == Done(1, 1, ())
    assert predict.asked == ["a"]
    assert write(["a", "bb"], Predict(), tmp_path, **changed) == Done(0, 2, ())


def test_an_image_that_has_moved_is_kept(tmp_path):
    write(["a"], Predict(), tmp_path)
    assert write(["a"], Predict(), tmp_path, source=lambda n: source(n)._replace(path="/moved")) == Done(0, 1, ())


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_another_image_of_the_same_name_is_neither_kept_nor_overwritten(tmp_path, on_error):
    write(["a"], Predict(), tmp_path)
    expected = f"{tmp_path}/a_mask.png: is of /images/a.png, and would be of /others/a.png. Name another --output"
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        write(["a"], Predict(), tmp_path, source=lambda name: ImageFile("/others/a.png", "another"), on_error=on_error)


@pytest.mark.parametrize(("file", "before"), [("a_mask.png", ["bb"]), ("a_mask.png", []), ("a_overlay.png", [])])
def test_a_persons_own_file_is_never_taken_for_a_prediction(tmp_path, file, before):
    if before:
        write(before, Predict(), tmp_path)
    assert cv2.imwrite(str(tmp_path / file), np.zeros((6, 8), np.uint8))
    own = (tmp_path / file).read_bytes()
    with pytest.raises(DataError, match=rf"/{file}: exists, and segjax.predict did not write it. Name another"):
        write(["a"], Predict(), tmp_path)
    assert (tmp_path / file).read_bytes() == own


def test_a_mask_too_large_for_pillow_is_known_all_the_same(tmp_path, monkeypatch):
    write(["a"], Predict(), tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)  # of 48: more than twice as many are an error
    assert write(["a"], Predict(), tmp_path) == Done(0, 1, ())


def test_predictions_are_no_images_to_predict(tmp_path):
    write(["a"], Predict(), tmp_path / "out")
    names = ("out/a_mask.png", "out/sub/b_overlay.png", "out/contact_sheet.png", "out/a.png", "a_mask.png")
    assert [written_here(str(tmp_path / name), tmp_path / "out") for name in names] == [True] * 3 + [False] * 2
    assert not written_here(str(tmp_path / "a_mask.png"), tmp_path)


def test_the_contact_sheet_predicts_nothing_twice(tmp_path):
    predict, names = Predict(), [f"{i:02}" for i in range(30)]
    assert write(names, predict, tmp_path, Wanted(sheet=True)) == Done(30, 0, ())
    assert predict.asked == names
    again = Predict()
    assert write(names, again, tmp_path, Wanted(sheet=True)) == Done(0, 30, ())
    assert again.asked == []


def test_a_contact_sheet_that_was_not_reached_or_is_of_other_images_is_made(tmp_path):
    write(["a", "bb"], Predict(), tmp_path, Wanted(sheet=True))
    two = picture(tmp_path / "contact_sheet.png")
    write(["a", "bb", "ccc"], Predict(), tmp_path)
    predict = Predict()
    assert write(["a", "bb", "ccc"], predict, tmp_path, Wanted(sheet=True)) == Done(0, 3, ())
    assert predict.asked == ["a", "bb", "ccc"]
    three = picture(tmp_path / "contact_sheet.png")
    assert three.shape[0] > two.shape[0]
    write(["a", "bb", "ccc", "dddd"], predict := Predict(), tmp_path, Wanted(sheet=True))
    assert sorted(predict.asked) == ["a", "bb", "ccc", "dddd"]
    assert picture(tmp_path / "contact_sheet.png").shape[0] > three.shape[0]


def test_a_large_picture_is_painted_in_bands(tmp_path, monkeypatch):
    write(["a"], Predict(), tmp_path / "whole", ALL)
    monkeypatch.setattr(pictures, "_BAND", 16)  # two rows of eight pixels
    write(["a"], Predict(), tmp_path / "bands", ALL)
    for file in ("a_overlay.png", "a_uncertainty.png", "contact_sheet.png"):
        assert np.array_equal(picture(tmp_path / "whole" / file), picture(tmp_path / "bands" / file))


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
