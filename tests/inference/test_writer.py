"""Files of a prediction: their contents, and completion of an interrupted folder without mixing origins."""

import dataclasses
import json
import math
import re

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from segjax.boxes import Detections
from segjax.data import DataError
from segjax.data.decode import predicted_values, read_mask
from segjax.data.io import RawFile
from segjax.data.labels import LABEL_SETS, numbered_classes, to_train_ids
from segjax.inference import (
    Detector,
    OutputOptions,
    Prediction,
    PredictOptions,
    Predictor,
    Preprocessing,
    WriteSummary,
    heatmap,
    is_prediction_file,
    png,
    write_detections,
    write_predictions,
    writer,
)
from segjax.storage import ForeignFileError

LABELS = LABEL_SETS["road_debris_scene"]
ALL = OutputOptions(uncertainty=True, probabilities=True, sets=True, palette=True, sheet=True)
ORIGIN = {"checkpoint": "run", "step": 3}


def image_of(name):
    return np.random.default_rng(list(name.encode())).integers(0, 256, (6, 8, 3)).astype(np.uint8)


def prediction_of(image):
    rng = np.random.default_rng(int(image.sum()))
    probabilities = rng.dirichlet(np.ones(5), (6, 8)).astype(np.float32)
    mask = probabilities.argmax(-1).astype(np.uint8)
    entropy = -(probabilities * np.log(probabilities)).sum(-1)
    unsure = {"entropy": entropy, "variance": 2 * entropy}
    return Prediction(mask, unsure, probabilities, probabilities >= 0.2)


class Predict(Predictor):
    """A predictor that returns `prediction_of` its images; `asked` are the names of the images that it predicted."""

    def __init__(self, batch=1):
        self.preprocessing = Preprocessing((6, 8), 3, (0.5,), (0.5,), 5)
        self.options, self.groups, self._names, self.asked = PredictOptions((6, 8), batch=batch), [], {}, []

    def record(self):
        return {"parameters": "a1", **self.options.record()}

    def predict_batch(self, images):
        self.groups.append(len(images))
        self.asked += [self._names[image.tobytes()] for image in images]
        return map(prediction_of, images)

    def files(self, names, bad=(), **changed):
        """Returns the images by name; `changed` are those with other bytes or, given a string, at another path."""
        files = {}
        for name in names:
            image, path = image_of(name), f"/images/{name}.png"
            if isinstance(changed.get(name), str):
                path = changed[name]
            elif name in changed:
                image = changed[name]
            self._names[image.tobytes()] = name
            data = b"broken" if name in bad else png(image)
            files[name] = RawFile(path, 0, lambda data=data: data)
        return files


MASK_AND_OVERLAY = OutputOptions()


def write(names, predict, output, wanted=MASK_AND_OVERLAY, origin=ORIGIN, *, bad=(), changed=None, **options):
    files = predict.files(names, bad, **(changed or {}))
    return write_predictions(predict, files, output, wanted, LABELS, origin, **options)


def picture(path):
    return cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)


def test_files_contain_mask_probabilities_uncertainty_and_overlay(tmp_path):
    assert write(["sub/a"], Predict(), tmp_path, ALL) == WriteSummary(1, 0, ())
    image = image_of("sub/a")
    expected = prediction_of(image)
    with Image.open(tmp_path / "sub" / "a_mask.png") as mask:
        assert np.array_equal(np.asarray(mask), expected.mask)
        assert np.array_equal(np.asarray(mask.convert("RGB")), LABELS.palette[expected.mask])
    with np.load(tmp_path / "sub" / "a_probabilities.npz") as arrays:
        assert np.array_equal(arrays["probabilities"], expected.probabilities)
        for name, values in expected.uncertainties.items():
            assert np.array_equal(arrays[name], values)
        assert tuple(arrays["classes"]) == LABELS.names
        assert np.array_equal(arrays["sets"], expected.sets)
    entropy = picture(tmp_path / "sub" / "a_uncertainty.png")
    assert np.array_equal(entropy, heatmap(expected.uncertainties["entropy"], math.log(5)))
    colours = LABELS.palette[expected.mask].astype(float)
    assert np.abs(picture(tmp_path / "sub" / "a_overlay.png") - (image + colours) / 2).max() <= 0.5
    assert np.array_equal(np.asarray(Image.open(tmp_path / "sub" / "a_set.png")), expected.sets.sum(-1))
    assert picture(tmp_path / "contact_sheet.png").shape[1] == 4 + 3 * 244


def test_mask_without_palette_is_grey_indices(tmp_path):
    write(["a"], Predict(), tmp_path, OutputOptions(overlay=False))
    assert np.array_equal(
        cv2.imread(str(tmp_path / "a_mask.png"), cv2.IMREAD_UNCHANGED), prediction_of(image_of("a")).mask
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [".segjax.sha256", "a_mask.png", "predicted_by.json"]


NAMES = LABELS.names
COLOURS = ("#102030", "#ff0000", "#00ff00", "#0000ff", "#102031")


IDS = numbered_classes(NAMES, (9, 0, 255, 3, 7))
BY_COLOUR = numbered_classes(NAMES, mask_colours=COLOURS, void_colours=("#ffffff",))


@pytest.mark.parametrize(
    ("labels", "palette", "mode"),
    [
        (IDS, False, "L"),
        (IDS, True, "P"),
        (BY_COLOUR, False, "RGB"),
        (BY_COLOUR, True, "P"),
        (numbered_classes((*NAMES, "road"), (0, 300, 2, 65535, 4, 1)), False, "I;16"),
    ],
    ids=["ids", "ids with a palette", "colours", "palette of colours", "16 bits"],
)
def test_mask_of_dataset_values_is_read_as_its_labels_are(tmp_path, labels, palette, mode):
    wanted = OutputOptions(overlay=False, values="dataset", palette=palette)
    predict = Predict()
    write_predictions(predict, predict.files(["a"]), tmp_path, wanted, labels, ORIGIN)
    file = tmp_path / "a_mask.png"
    ids = read_mask(file.read_bytes(), "a", colours=labels.by_colour)
    expected = prediction_of(image_of("a")).mask
    assert np.array_equal(to_train_ids(ids, labels, "a"), expected)
    assert predicted_values(file.read_bytes(), "a") == "dataset"
    with Image.open(file) as opened:
        assert opened.mode == mode
        if palette:
            assert np.array_equal(np.asarray(opened.convert("RGB")), labels.palette[expected])


def test_folder_of_other_values_is_refused(tmp_path):
    write(["a"], Predict(), tmp_path)
    assert predicted_values((tmp_path / "a_mask.png").read_bytes(), "a") == "indices"
    with pytest.raises(DataError, match=r"values is 'dataset'\. Choose another --output"):
        write(["a"], Predict(), tmp_path, OutputOptions(values="dataset"))


def test_overlay_of_one_class_leaves_other_pixels_unchanged(tmp_path):
    write(["a"], Predict(), tmp_path, OutputOptions(only=2))
    changed = (picture(tmp_path / "a_overlay.png") != image_of("a")).any(-1)
    assert np.array_equal(changed, prediction_of(image_of("a")).mask == 2)


def test_uncertainty_picture_uses_the_given_scale(tmp_path):
    wanted = OutputOptions(uncertainty=True, measure="variance", maximum=3.0)
    write(["a"], Predict(), tmp_path, wanted)
    shown = picture(tmp_path / "a_uncertainty.png")
    assert np.array_equal(shown, heatmap(prediction_of(image_of("a")).uncertainties["variance"], 3.0))
    assert wanted.scale(LABELS) == "variance, 0 to 3 squared logits"
    assert OutputOptions().scale(LABELS) == "entropy, 0 to 1.61 nats"
    assert OutputOptions(measure="energy").scale(LABELS) == "energy, -10 to 0 logits"
    assert OutputOptions(measure="margin").scale(LABELS) == "margin, 0 to 1"


def test_incomplete_folder_is_completed(tmp_path):
    write(["a", "bb"], Predict(), tmp_path)
    (tmp_path / "a_mask.png").unlink()
    predict = Predict()
    assert write(["a", "bb", "ccc"], predict, tmp_path) == WriteSummary(2, 1, ())
    assert predict.asked == ["a", "ccc"]


def test_images_are_predicted_in_batches_and_written_before_a_bad_one(tmp_path):
    predict, names = Predict(batch=2), ["a", "bb", "ccc", "dddd", "eeeee"]
    assert write(names, predict, tmp_path / "all") == WriteSummary(5, 0, ())
    assert predict.groups == [2, 2, 1]
    for name in names:
        expected = LABELS.palette[prediction_of(image_of(name)).mask].astype(float)
        mixed = picture(tmp_path / "all" / f"{name}_overlay.png") - (image_of(name) + expected) / 2
        assert np.abs(mixed).max() <= 0.5
    with pytest.raises(DataError, match="cannot be decoded"):
        write(["a", "bb", "ccc", "bad"], predict, tmp_path / "half", bad=["bad"])
    assert {path.name for path in (tmp_path / "half").glob("*_mask.png")} == {f"{n}_mask.png" for n in names[:3]}


def test_folder_of_another_checkpoint_is_refused(tmp_path):
    write(["a"], Predict(), tmp_path)
    expected = (
        f"{tmp_path}: contains predictions made with step = 3; now step is 4. Choose another --output, or remove them "
        "and predicted_by.json"
    )
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        write(["a", "bb"], Predict(), tmp_path, origin=ORIGIN | {"step": 4})


def test_folder_that_another_process_begins_at_the_same_time_gets_no_file_of_the_first(tmp_path):
    class Overtaken(Predict):
        def predict_batch(self, images):
            record = json.loads((tmp_path / "predicted_by.json").read_text())
            (tmp_path / "predicted_by.json").write_text(json.dumps(record | {"step": 4}))
            return super().predict_batch(images)

    with pytest.raises(DataError, match="made with step = 4; now step is 3"):
        write(["a"], Overtaken(), tmp_path)
    assert not list(tmp_path.glob("*.png"))


def test_folder_is_completed_if_only_the_checkpoint_path_differs(tmp_path):
    write(["a"], Predict(), tmp_path)
    moved = ORIGIN | {"checkpoint": "./run", "made_by": {"jax": "9.9"}}
    assert write(["a"], Predict(), tmp_path, origin=moved) == WriteSummary(0, 1, ())


@pytest.mark.parametrize(
    "changed", [{"only": 2}, {"measure": "variance"}, {"maximum": 3.0}, {"palette": True}, {"threshold": 0.5}]
)
def test_folder_of_other_options_is_refused(tmp_path, changed):
    write(["a"], Predict(), tmp_path)
    predict, wanted = Predict(), OutputOptions()._replace(**{k: v for k, v in changed.items() if k != "threshold"})
    predict.options = dataclasses.replace(predict.options, threshold=changed.get("threshold"))
    ((key, value),) = changed.items()
    with pytest.raises(DataError, match=rf"made with {key} = .*; now {key} is {value!r}\. Choose another --output"):
        write(["a", "bb"], predict, tmp_path, wanted)


def test_folder_is_completed_with_other_files_of_the_same_contents(tmp_path):
    write(["a"], Predict(), tmp_path)
    wanted = OutputOptions(uncertainty=True, probabilities=True, sheet=True)
    assert write(["a"], Predict(batch=2), tmp_path, wanted) == WriteSummary(1, 0, ())


def test_folder_of_another_class_list_is_refused(tmp_path):
    write(["a"], Predict(), tmp_path)
    other = dataclasses.replace(LABELS, names=LABELS.names[::-1])
    with pytest.raises(DataError, match="made with classes = "):
        write_predictions(Predict(), {}, tmp_path, MASK_AND_OVERLAY, other, ORIGIN)


def test_changed_image_is_predicted_again(tmp_path):
    write(["a", "bb"], Predict(), tmp_path)
    predict = Predict()
    changed = {"changed": {"a": image_of("other")}}
    assert write(["a", "bb"], predict, tmp_path, **changed) == WriteSummary(1, 1, ())
    assert predict.asked == ["a"]
    assert write(["a", "bb"], Predict(), tmp_path, **changed) == WriteSummary(0, 2, ())


def test_moved_image_keeps_its_prediction(tmp_path):
    write(["a"], Predict(), tmp_path)
    assert write(["a"], Predict(), tmp_path, changed={"a": "/moved/a.png"}) == WriteSummary(0, 1, ())


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_another_image_of_the_same_name_is_refused(tmp_path, on_error):
    write(["a"], Predict(), tmp_path)
    expected = (
        f"{tmp_path}/a_mask.png: was made from /images/a.png; /others/a.png would overwrite it. "
        "Choose another folder, or move the file; calibrate, compare, data, evaluate, export, predict and report have "
        "--overwrite"
    )
    with pytest.raises(ForeignFileError, match=f"^{re.escape(expected)}$"):
        write_predictions(
            Predict(),
            {"a": RawFile("/others/a.png", 0, lambda: png(image_of("other")))},
            tmp_path,
            MASK_AND_OVERLAY,
            LABELS,
            ORIGIN,
            on_error=on_error,
        )


@pytest.mark.parametrize("file", ["a_mask.png", "a_overlay.png", "contact_sheet.png"])
@pytest.mark.parametrize("before", [["bb"], []], ids=["others", "empty"])
def test_file_of_the_user_is_never_overwritten(tmp_path, file, before):
    if before:
        write(before, Predict(), tmp_path)
    wanted = OutputOptions(sheet=True)
    assert cv2.imwrite(str(tmp_path / file), np.zeros((6, 8), np.uint8))
    own = (tmp_path / file).read_bytes()
    with pytest.raises(ForeignFileError, match=rf"/{file}: exists.*another folder.*--overwrite"):
        write(["a"], Predict(), tmp_path, wanted)
    assert (tmp_path / file).read_bytes() == own
    assert write(["a"], Predict(), tmp_path, wanted, overwrite=True) == WriteSummary(1, 0, ())
    assert (tmp_path / file).read_bytes() != own


def test_prediction_that_the_user_changed_is_not_replaced(tmp_path):
    write(["a"], Predict(), tmp_path)
    assert cv2.imwrite(str(tmp_path / "a_overlay.png"), np.zeros((6, 8), np.uint8))
    with pytest.raises(ForeignFileError, match=r"/a_overlay\.png: exists"):
        write(["a"], Predict(), tmp_path, changed={"a": image_of("other")})


def test_mask_above_pillows_pixel_limit_is_recognized(tmp_path, monkeypatch):
    write(["a"], Predict(), tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)  # of 48: more than twice as many are an error
    assert write(["a"], Predict(), tmp_path) == WriteSummary(0, 1, ())


def test_is_prediction_file(tmp_path):
    write(["a"], Predict(), tmp_path / "out")
    names = ("out/a_mask.png", "out/sub/b_overlay.png", "out/contact_sheet.png", "out/a.png", "a_mask.png")
    assert [is_prediction_file(str(tmp_path / name), tmp_path / "out") for name in names] == [True] * 3 + [False] * 2
    assert not is_prediction_file(str(tmp_path / "a_mask.png"), tmp_path)


def test_contact_sheet_predicts_no_image_twice(tmp_path):
    predict, names = Predict(), [f"{i:02}" for i in range(30)]
    assert write(names, predict, tmp_path, OutputOptions(sheet=True)) == WriteSummary(30, 0, ())
    assert predict.asked == names
    again = Predict()
    assert write(names, again, tmp_path, OutputOptions(sheet=True)) == WriteSummary(0, 30, ())
    assert again.asked == []


def test_contact_sheet_is_made_again_if_missing_or_of_other_images(tmp_path):
    write(["a", "bb"], Predict(), tmp_path, OutputOptions(sheet=True))
    two = picture(tmp_path / "contact_sheet.png")
    write(["a", "bb", "ccc"], Predict(), tmp_path)
    predict = Predict()
    assert write(["a", "bb", "ccc"], predict, tmp_path, OutputOptions(sheet=True)) == WriteSummary(0, 3, ())
    assert predict.asked == ["a", "bb", "ccc"]
    three = picture(tmp_path / "contact_sheet.png")
    assert three.shape[0] > two.shape[0]
    write(["a", "bb", "ccc", "dddd"], predict := Predict(), tmp_path, OutputOptions(sheet=True))
    assert sorted(predict.asked) == ["a", "bb", "ccc", "dddd"]
    assert picture(tmp_path / "contact_sheet.png").shape[0] > three.shape[0]


def test_painting_in_bands_equals_painting_at_once(tmp_path, monkeypatch):
    write(["a"], Predict(), tmp_path / "whole", ALL)
    monkeypatch.setattr(writer, "_BAND", 16)  # two rows of eight pixels
    write(["a"], Predict(), tmp_path / "bands", ALL)
    for file in ("a_overlay.png", "a_uncertainty.png", "contact_sheet.png"):
        assert np.array_equal(picture(tmp_path / "whole" / file), picture(tmp_path / "bands" / file))


def test_bad_image_raises_and_earlier_predictions_stay(tmp_path):
    with pytest.raises(DataError, match=r"^/images/bb\.png: cannot be decoded"):
        write(["a", "bb", "ccc"], Predict(), tmp_path, bad=["bb"])
    assert (tmp_path / "a_mask.png").exists()
    assert not (tmp_path / "ccc_mask.png").exists()


def test_bad_image_is_skipped_and_named(tmp_path):
    done = write(["a", "bb", "ccc"], Predict(), tmp_path, bad=["bb"], on_error="skip")
    assert done[:2] == (2, 0)
    first, second, third = done.lines()
    assert (first, second) == ("predicted 2 image(s)", "skipped 1 bad image(s):")
    assert third.startswith("  /images/bb.png: cannot be decoded")


def test_mask_is_written_last(tmp_path, monkeypatch):
    order, write_outputs = [], writer.write_outputs

    def full(files, **options):
        ((path, data),) = files.items()
        order.append(path.name)
        if path.name == "bb_mask.png":
            raise OSError(28, "No space left on device", str(path))
        write_outputs({path: data}, **options)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_outputs", full)
        with pytest.raises(OSError, match="No space left"):
            write(["a", "bb"], Predict(), tmp_path)
    assert order == ["a_overlay.png", "a_mask.png", "bb_overlay.png", "bb_mask.png"]
    assert write(["a", "bb"], Predict(), tmp_path) == WriteSummary(1, 1, ())


def test_summary_counts_kept_images():
    assert WriteSummary(1, 2, ()).lines() == ["predicted 1 image(s); kept 2 that had been predicted before"]


def test_damaged_mark_of_a_mask_is_not_taken_for_a_prediction(tmp_path, misread):
    write(["a"], Predict(), tmp_path)
    returned = misread(tmp_path / "a_mask.png", lambda: write(["a"], Predict(), tmp_path))
    assert returned <= {"missing", "loop", "cut", "latin-1"}  # the last two are damages behind the mark


def test_damaged_record_of_a_folder_is_named(tmp_path, misread):
    write(["a"], Predict(), tmp_path)
    returned = misread(tmp_path / "predicted_by.json", lambda: write(["a"], Predict(), tmp_path))
    assert not {"empty", "half", "cut", "{}", "null", "lists", "missing"} & returned


class Detect(Detector):
    """A detector that returns two boxes of each image."""

    def __init__(self):
        self.preprocessing = Preprocessing((6, 8), 3, (0.5,), (0.5,), 2)

    def record(self):
        return {"parameters": "a1"}

    def __call__(self, image):
        boxes = np.array([[1, 2, 4, 5], [0.5, 0, 8, 5.25]], np.float32)
        return Detections(boxes, np.array([0.9, 0.25], np.float32), np.array([1, 0]), np.ones(2, bool))


def detect(names, output, *, bad=(), changed=None, **options):
    files = Predict().files(names, bad, **(changed or {}))
    return write_detections(Detect(), files, output, ("stone", "tyre"), LABELS.palette[:2], ORIGIN, **options)


def test_write_detections_coco_annotations(tmp_path):
    assert detect(["sub/a", "b"], tmp_path) == WriteSummary(2, 0, (), 4, 2, pytest.approx(0.9))
    written = json.loads((tmp_path / "detections.json").read_text())
    assert [(image["id"], image["file_name"]) for image in written["images"]] == [(1, "sub/a.png"), (2, "b.png")]
    assert (written["images"][0]["height"], written["images"][0]["width"]) == (6, 8)
    assert [one["name"] for one in written["categories"]] == ["stone", "tyre"]
    keys = ("id", "image_id", "category_id", "bbox", "area")
    assert [[one[key] for key in keys] for one in written["annotations"][1:3]] == [
        [2, 1, 1, [0.5, 0, 7.5, 5.25], 39.375],
        [3, 2, 2, [1, 2, 3, 3], 9],
    ]
    assert [one["score"] for one in written["annotations"]] == pytest.approx([0.9, 0.25] * 2)


@pytest.mark.parametrize(("min_score", "drawn"), [(0.95, False), (0.5, True)])
def test_write_detections_draws_the_likely_boxes(min_score, drawn, tmp_path):
    detect(["a"], tmp_path, min_score=min_score)
    assert (picture(tmp_path / "a_boxes.png") != image_of("a")).any() == drawn
    assert is_prediction_file(str(tmp_path / "a_boxes.png"), tmp_path)


def test_write_detections_of_another_network_need_another_folder(tmp_path):
    detect(["a"], tmp_path)
    with pytest.raises(DataError, match=r"min_score = 0\.5.*another --output"):
        detect(["a"], tmp_path, min_score=0.6)


def test_write_detections_replaces_no_other_file(tmp_path):
    (tmp_path / "a_boxes.png").write_bytes(b"mine")
    with pytest.raises(ForeignFileError, match=r"a_boxes\.png"):
        detect(["a"], tmp_path)
    assert not (tmp_path / "predicted_by.json").exists()


def test_write_detections_skips_bad_images(tmp_path):
    summary = detect(["a", "b"], tmp_path, bad=["a"], on_error="skip")
    assert (summary.written, len(summary.skipped)) == (1, 1)
    assert len(json.loads((tmp_path / "detections.json").read_text())["images"]) == 1


def test_write_detections_completes_an_interrupted_folder(tmp_path):
    with pytest.raises(DataError, match=r"/images/bb\.png: cannot be decoded"):
        detect(["a", "bb"], tmp_path / "again", bad=["bb"])
    assert not (tmp_path / "again" / "detections.json").exists()
    assert detect(["a", "bb"], tmp_path / "again")[:3] == (1, 1, ())
    assert detect(["a", "bb"], tmp_path / "once")[:3] == (2, 0, ())
    once, again = ((tmp_path / folder / "detections.json").read_bytes() for folder in ("once", "again"))
    assert again == once
    assert detect(["a", "bb"], tmp_path / "again") == WriteSummary(0, 2, (), 4, 2, pytest.approx(0.9))
    assert detect(["a", "bb"], tmp_path / "again", overwrite=True)[:3] == (2, 0, ())


def test_write_detections_detects_again_in_a_changed_image(tmp_path):
    detect(["a"], tmp_path)
    assert detect(["a"], tmp_path, changed={"a": image_of("other")})[:3] == (1, 0, ())
    assert detect(["a"], tmp_path, changed={"a": image_of("other")})[:3] == (0, 1, ())


def test_write_detections_refuses_another_image_of_the_same_name(tmp_path):
    detect(["a"], tmp_path)
    files = {"a": RawFile("/others/a.png", 0, lambda: png(image_of("other")))}
    with pytest.raises(ForeignFileError, match=r"a_boxes\.png: was made from /images/a\.png; /others/a\.png would"):
        write_detections(Detect(), files, tmp_path, ("stone", "tyre"), LABELS.palette[:2], ORIGIN)


@pytest.mark.parametrize(
    "detections",
    [None, "x", [[1, 0.5, 0, 0]], [[3, 0.5, 0, 0, 1, 1]], [[1, 2.0, 0, 0, 1, 1]], [[1, 0.5, 0, 0, 1, None]]],
    ids=["none", "text", "short", "class", "score", "no number"],
)
def test_write_detections_does_not_read_damaged_ones(detections, tmp_path):
    detect(["a"], tmp_path)
    file, info = tmp_path / "a_boxes.png", PngInfo()
    with Image.open(file) as found:
        info.add_itxt("segjax", json.dumps(json.loads(found.info["segjax"]) | {"detections": detections}))
        found.save(file, pnginfo=info)
    with pytest.raises(ForeignFileError, match=r"a_boxes\.png: exists, and segjax did not write it, or it was changed"):
        detect(["a"], tmp_path)
