"""The page on which images are dropped: its answers against the prediction, its server over HTTP, and real clicks."""

import base64
import contextlib
import io
import json
import struct
import threading
import time
import urllib.error
import urllib.request
import zlib

import numpy as np
import pytest
from PIL import Image

from segjax import inference
from segjax.boxes import Detections
from segjax.data import label_set
from segjax.data.io import RawFile
from segjax.reporting.demo_page import Demo, box_answer, log_odds, make_server, mask_answer, mask_from
from segjax.trained_run import TrainedRun
from segjax.training import defaults
from segjax.training.network import make_model
from segjax.training.train_step import init_state

STREET = np.random.default_rng(2).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def as_png(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def pixels_of(url):
    """Returns the pixels of a data URL."""
    kind, _, content = url.partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def zlib_bomb():
    """Returns the PNG of 20 000 × 20 000 black pixels, of which only the header and the first bytes are there."""
    header = as_png(STREET)
    size = struct.pack(">II", 20_000, 20_000) + header[24:29]
    return header[:16] + size + struct.pack(">I", zlib.crc32(b"IHDR" + size)) + header[33:]


@pytest.fixture(scope="module")
def demo():
    """Returns a network that was not trained, with a second predictor that finds debris everywhere."""
    config = defaults()
    config.data.size = (32, 48)
    config.model.width, config.model.depth, config.model.padding = 4, 1, "zeros"
    labels = label_set(config.data)
    model = make_model(config, labels.num_classes)
    run = TrainedRun(None, config, model, init_state(config, model), labels)
    options = [inference.PredictOptions((32, 48), threshold=value) for value in (None, -50.0)]
    predictors = [run.predictor(one, probabilities=True) for one in options]
    street = RawFile("street.png", 0, lambda: as_png(STREET))
    guarantees = {"at most 0.1 of debris missed": "guarantee: at most 10 %"}
    return Demo(run._replace(workdir="runs/street"), predictors, guarantees, {"street": street}, ("a </script> note",))


@contextlib.contextmanager
def served(demo):
    """Serves a page, and returns its address."""
    with make_server(demo, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def address(demo):
    """Returns the address of a running server."""
    with served(demo) as found:
        yield found


def check_layout_console_and_requests(opened, address):
    """Asserts that no width needs sideways scrolling, the console is empty, and nothing else was loaded."""
    for width in (390, 1600):
        opened.resize(width, 900)
        assert not opened.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    assert opened.console == []
    assert all(url.startswith((address, "data:", "blob:")) for url in opened.requests)


@pytest.fixture(scope="module")
def overlapping():
    """Returns a network of classes that overlap, which was not trained."""
    config = defaults()
    config.data.size, config.data.name, config.data.multilabel = (32, 48), "folder", True
    config.data.class_names = ("rust", "crack", "leak")
    config.model.width, config.model.depth, config.model.padding = 4, 1, "zeros"
    labels = label_set(config.data)
    model = make_model(config, labels.num_classes)
    run = TrainedRun("runs/wall", config, model, init_state(config, model), labels)
    wall = RawFile("wall.png", 0, lambda: as_png(STREET))
    return Demo(run, [run.predictor(probabilities=True)], {}, {"wall": wall})


class TwoBoxes(inference.Detector):
    """A detector that finds a stone and a tyre in each image, one inside the other, and an unlikely stone."""

    def __init__(self):
        self.preprocessing = inference.Preprocessing((32, 48), 3, (0.5,), (0.5,), 2)

    def record(self):
        return {"score_threshold": 0.05}

    def __call__(self, image):
        boxes = np.array([[8, 10, 48, 38], [20, 15, 40.5, 25], [1, 1, 5, 5]], np.float32)
        scores = np.array([0.9, 0.6, 0.25], np.float32)
        return Detections(boxes, scores, np.array([0, 1, 0]), np.ones(3, bool))


@pytest.fixture(scope="module")
def boxes():
    """Returns the page of `TwoBoxes`."""
    config = defaults()
    config.data.name, config.data.class_names = "folder", ("stone", "tyre")
    config.data.box_classes = ("stone", "tyre")
    run = TrainedRun("runs/boxes", config, None, None, label_set(config.data))
    road = RawFile("road.png", 0, lambda: as_png(STREET))
    return Demo(run, [TwoBoxes()], images={"road": road}, record={"checkpoint": "runs/boxes"})


def fetch(url, data=None, **headers):
    """Returns status, type and content of an answer."""
    request = urllib.request.Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=60) as found:
        return found.status, found.headers["Content-Type"], found.read()
    try:
        urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def test_mask_answer_has_the_image_and_the_maps_of_its_prediction(demo):
    image, prediction = demo.predict(as_png(STREET), "street")
    found = mask_answer(image, prediction, 2)
    assert found["size"] == [40, 56]
    assert pixels_of(found["image"]).shape == STREET.shape
    np.testing.assert_array_equal(pixels_of(found["mask"]), prediction.mask)
    levels = pixels_of(found["log_odds"]).reshape(2, 40, 56).astype(float)
    odds = np.log(prediction.probabilities) - np.log1p(-prediction.probabilities)
    np.testing.assert_allclose(levels * 32 / 255 - 16, np.moveaxis(odds, -1, 0), atol=16 / 255 + 1e-5)
    entropy = found["uncertainties"]["entropy"]
    assert entropy["maximum"] == pytest.approx(np.log(2))
    values = pixels_of(entropy["levels"]) * np.log(2) / 255
    np.testing.assert_allclose(values, prediction.uncertainties["entropy"], atol=np.log(2) / 510 + 1e-6)


def test_mask_answer_shows_a_large_image_in_a_smaller_size(demo):
    image = np.zeros((700, 2560, 3), np.uint8)
    prediction = inference.Prediction(
        np.zeros((700, 2560), np.uint8), {"entropy": np.zeros((700, 2560), np.float32)}, np.full((700, 2560, 2), 0.5)
    )
    found = mask_answer(image, prediction, 2)
    assert found["size"] == [700, 2560]
    assert pixels_of(found["mask"]).shape == pixels_of(found["image"]).shape[:2] == (350, 1280)
    assert pixels_of(found["log_odds"]).shape == (700, 1280)


def test_log_odds_are_clipped():
    np.testing.assert_allclose(log_odds(np.array([0.0, 0.5, 1.0, 0.25])), [-16, 0, 16, np.log(1 / 3)], atol=1e-12)


def test_mask_from_equals_a_predictor_with_the_threshold(demo):
    _, prediction = demo.predict(as_png(STREET), "street")
    probability = float(np.median(prediction.probabilities[..., 1])) + 1e-4
    options = inference.PredictOptions((32, 48), threshold=float(np.log(probability / (1 - probability))))
    expected = demo.run.predictor(options)(STREET).mask
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(mask_from(prediction.probabilities, 1, probability), expected)


def test_mask_from_gives_the_likeliest_other_class_below_the_threshold():
    probabilities = np.array([[[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]])
    assert mask_from(probabilities, 0, 0.9).tolist() == [[1, 2]]
    assert mask_from(probabilities, 0, 0.1).tolist() == [[0, 0]]


def test_server_sends_the_page_and_its_images(address):
    status, kind, page = fetch(address)
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert b"/*" not in page.partition(b"<script")[0].replace(b"/* The", b"")  # every part is filled in
    assert page.count(b"</script>") == 2
    assert fetch(f"{address}/images/0") == (200, "application/octet-stream", as_png(STREET))


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:1"])
def test_server_answers_to_the_names_of_this_machine(address, name):
    assert fetch(f"{address}/images/0", Host=name)[0] == 200


def test_page_keeps_text_that_looks_like_html(demo):
    text = "<!--<script>"
    page = demo._replace(notes=[text]).page.decode()
    assert text not in page.partition("<body>")[2]
    config = page.partition('<script type="application/json" id="config">')[2].partition("</script>")[0]
    assert json.loads(config)["notes"] == [text]


def test_server_predicts_what_is_posted(address, demo):
    status, _, content = fetch(f"{address}/predict?name=street.png", as_png(STREET))
    found = json.loads(content)
    assert (status, found["size"]) == (200, [40, 56])
    np.testing.assert_array_equal(pixels_of(found["mask"]), demo.predictors[0](STREET).mask)


def test_server_predicts_with_the_chosen_guarantee(address):
    _, _, content = fetch(f"{address}/predict?guarantee=1", as_png(STREET))
    assert pixels_of(json.loads(content)["mask"]).min() == 1
    _, kind, mask = fetch(f"{address}/mask?guarantee=1", as_png(STREET))
    assert (kind, np.asarray(Image.open(io.BytesIO(mask))).min()) == ("image/png", 1)


def test_server_sends_the_mask_of_a_threshold(address, demo):
    _, prediction = demo.predict(as_png(STREET), "street")
    probability = float(np.median(prediction.probabilities[..., 1]))
    _, kind, mask = fetch(f"{address}/mask?class=1&threshold={probability}", as_png(STREET))
    assert kind == "image/png"
    expected = mask_from(prediction.probabilities, 1, probability)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(mask))), expected)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "line"),
    [
        ("/predict?name=notes.txt", b"hello", {}, 200, "notes.txt: cannot be decoded; expected PNG, JPEG, TIFF"),
        ("/predict?guarantee=7", as_png(STREET), {}, 200, "guarantee=7 must be an integer from 0 to 1"),
        ("/mask?guarantee=x", as_png(STREET), {}, 200, "guarantee=x must be an integer from 0 to 1"),
        ("/mask?class=-1&threshold=0.5", as_png(STREET), {}, 200, "class=-1 must be an integer from 0 to 1"),
        ("/mask?threshold=nan", as_png(STREET), {}, 200, "threshold=nan must be a probability from 0 to 1"),
        ("/predict?name=a", zlib_bomb(), {}, 200, "a: 20000 × 20000 pixels; expected at most 50 million"),
        ("/nothing", b"", {}, 404, "there is no /nothing"),
        ("/images/1", None, {}, 404, "there is no /images/1"),
        ("/../demo_page.py", None, {}, 404, "there is no /"),
        ("/", None, {"Host": "[evil"}, 403, "requests of other pages are refused"),
        ("/", None, {"Host": "evil.example"}, 403, "requests of other pages are refused"),
        ("/predict", as_png(STREET), {"Origin": "http://evil.example"}, 403, "requests of other pages are refused"),
        ("/predict", b"", {"Content_Length": str(2**40)}, 413, "expected an image file of at most 200 MB"),
    ],
)
def test_server_answers_a_mistake_with_one_line(address, path, body, headers, status, line):
    found, kind, content = fetch(address + path, body, **headers)
    assert (found, kind) == (status, "application/json")
    assert line in json.loads(content)["error"]


def test_mask_answer_of_classes_that_overlap_has_a_mask_per_class(overlapping):
    image, prediction = overlapping.predict(as_png(STREET), "wall")
    found = mask_answer(image, prediction, 3)
    assert 0 < prediction.mask.mean() < 1
    np.testing.assert_array_equal(pixels_of(found["mask"]).reshape(3, 40, 56), np.moveaxis(prediction.mask, -1, 0))
    assert found["uncertainties"]["entropy"]["maximum"] == pytest.approx(3 * np.log(2))


@pytest.mark.parametrize("threshold", [None, 0.4])
def test_server_sends_the_mask_of_one_of_the_classes_that_overlap(overlapping, threshold):
    _, prediction = overlapping.predict(as_png(STREET), "wall")
    expected = prediction.mask[..., 1] if threshold is None else prediction.probabilities[..., 1] >= threshold
    with served(overlapping) as address:
        query = "class=1" + ("" if threshold is None else f"&threshold={threshold}")
        _, kind, mask = fetch(f"{address}/mask?{query}", as_png(STREET))
    assert kind == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(mask))), 255 * expected)


@pytest.mark.slow
def test_page_shows_classes_that_overlap_in_a_browser(overlapping, tab):
    text = "document.querySelector('#{}').textContent".format
    _, prediction = overlapping.predict(as_png(STREET), "wall")
    names = [name for name, has in zip(("rust", "crack", "leak"), prediction.mask[20, 28], strict=True) if has]
    with served(overlapping) as address, tab() as opened:
        opened.open(f"{address}/")
        opened.wait("!document.querySelector('#viewer').hidden && document.querySelector('#canvas').width === 56")
        opened.move("#canvas", 28.5 / 56, 20.5 / 40)
        opened.wait(text("values") + f".startsWith('x 28, y 20: {' and '.join(names) or 'no class'}, p(')")
        shares = [
            f"{name}{100 * share:.2f} %"
            for name, share in zip(("rust", "crack", "leak"), prediction.mask.mean((0, 1)), strict=True)
        ]
        assert opened.evaluate(text("legend")) == "".join(shares)
        opened.click("#threshold", 0.3)  # a low threshold: leak everywhere
        opened.wait(text("legend") + ".endsWith('leak100.00 %')")
        pixel = "[...document.querySelector('#canvas').getContext('2d').getImageData(0, 0, 1, 1).data].slice(0, 3)"
        opened.click("input[value=one]")
        opened.click("#opacity", 0.995)
        palette = overlapping.run.label_set.palette.tolist()
        opened.wait(f"JSON.stringify({pixel}) === '{json.dumps(palette[2]).replace(' ', '')}'")
        assert opened.console == []


def test_box_answer_has_all_detections_in_the_form_of_predict(tmp_path):
    detector, names = TwoBoxes(), ("stone", "tyre")
    found = box_answer(STREET, detector(STREET), "road.png", names, {"checkpoint": "c"})
    assert pixels_of(found["image"]).shape == STREET.shape
    files, palette = {"road": RawFile("road.png", 0, lambda: as_png(STREET))}, np.eye(3, dtype=np.uint8)[:2]
    inference.write_detections(detector, files, tmp_path, names, palette, {"checkpoint": "c"})
    written = json.loads((tmp_path / "detections.json").read_text())
    shown = json.loads(json.dumps(found["coco"]))
    assert [shown[key] for key in ("images", "categories", "annotations")] == [
        written[key] for key in ("images", "categories", "annotations")
    ]
    assert shown["info"] == {"checkpoint": "c"}


def test_box_answer_keeps_boxes_of_a_large_image_in_its_own_pixels():
    image = np.zeros((700, 2560, 3), np.uint8)
    found = box_answer(image, TwoBoxes()(image), "road.png", ("stone", "tyre"), {})
    assert pixels_of(found["image"]).shape == (350, 1280, 3)
    assert found["size"] == [700, 2560]
    assert found["coco"]["annotations"][0]["bbox"] == [8, 10, 40, 28]


def test_server_sends_boxes_and_has_no_mask_of_a_detector(boxes):
    with served(boxes) as address:
        found = json.loads(fetch(f"{address}/predict?name=road.png", as_png(STREET))[2])
        refused = fetch(f"{address}/mask", as_png(STREET))
        mistake = fetch(f"{address}/predict?name=notes.txt", b"hello")
    assert [one["category_id"] for one in found["coco"]["annotations"]] == [1, 2, 1]
    assert found["seconds"] >= 0
    assert (refused[0], json.loads(refused[2])["error"]) == (404, "there is no /mask")
    assert json.loads(mistake[2])["error"].startswith("notes.txt: cannot be decoded; expected PNG, JPEG, TIFF")


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_page_shows_boxes_thresholds_and_classes_of_a_detector_in_a_browser(boxes, tab, tmp_path, dark):
    text = "document.querySelector('#{}').textContent".format
    (tmp_path / "second.png").write_bytes(as_png(STREET[::-1].copy()))
    with served(boxes) as address, tab(dark=dark) as opened:
        opened.open(f"{address}/")
        opened.wait(text("legend") + " === 'stone1tyre1'")  # at score 0.5
        requests = len(opened.requests)
        opened.move("#canvas", 30.2 / 56, 20.2 / 40)
        opened.wait(
            text("values") + " === 'x 30, y 20: tyre, score 0.600, 20.5 × 10.0 pixels at x 20.0, y 15.0; "
            "stone, score 0.900, 40.0 × 28.0 pixels at x 8.0, y 10.0'"
        )
        pixel = (
            "((canvas, copy) => (copy.drawImage(canvas, -30 * canvas.width / 56, -15 * canvas.width / 56),"
            "[...copy.getImageData(0, 0, 1, 1).data].slice(0, 3).join()))"
            "(document.querySelector('#canvas'), new OffscreenCanvas(1, 1).getContext('2d'))"
        )
        stone, tyre = (",".join(map(str, colour)) for colour in boxes.run.label_set.palette.tolist())
        assert opened.evaluate(pixel) == tyre
        assert stone != tyre
        opened.click("#legend tr:nth-child(2) input")  # hides tyres
        opened.wait(f"{pixel} !== '{tyre}'")
        opened.move("#canvas", 30.2 / 56, 20.2 / 40)
        opened.wait(text("values") + ".startsWith('x 30, y 20: stone')")
        opened.click("#legend tr:nth-child(2) input")
        opened.wait(f"{pixel} === '{tyre}'")

        opened.click("#threshold", 0.05)
        opened.wait(text("legend") + " === 'stone2tyre1'")
        opened.evaluate("document.querySelector('#canvas').focus()")
        opened.press("ArrowLeft")
        opened.wait(text("values") + ".startsWith('box ')")
        for _ in range(3):
            opened.press("ArrowRight")
        opened.wait(text("values") + " === 'box 3 of 3: stone, score 0.250, 4.0 × 4.0 pixels at x 1.0, y 1.0'")
        opened.click("#threshold", 0.7)
        opened.wait(text("legend") + " === 'stone1tyre0'")
        assert opened.evaluate(text("threshold-value")).startswith("score ≥ 0.7")
        opened.tap("#canvas", 10 / 56, 20 / 40)
        opened.wait(text("values") + ".endsWith('stone, score 0.900, 40.0 × 28.0 pixels at x 8.0, y 10.0')")
        opened.click("#opacity", 0.001)
        plain = opened.evaluate("document.querySelector('#canvas').toDataURL()")
        opened.click("#opacity", 0.99)
        opened.wait(f"document.querySelector('#canvas').toDataURL() !== {json.dumps(plain)}")
        assert len(opened.requests) == requests

        opened.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        opened.click("#save")
        opened.click("#save-picture")
        wanted = [tmp_path / "road_detections.json", tmp_path / "road_picture.png"]
        deadline = time.monotonic() + 20
        while not all(file.exists() for file in wanted):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        downloaded = json.loads(wanted[0].read_text())
        expected = boxes.answer(as_png(STREET), "road.png")["coco"]
        assert downloaded == json.loads(json.dumps(expected))
        assert np.asarray(Image.open(wanted[1])).shape == (720, 1008, 4)

        files = opened.send("Runtime.evaluate", expression="document.querySelector('#files')")["result"]["objectId"]
        opened.send("DOM.setFileInputFiles", files=[str(tmp_path / "second.png")], objectId=files)
        opened.wait("[...document.querySelectorAll('#images button')].map(b => b.disabled).join() === 'false,false'")
        opened.click("#images li:nth-child(2) button")
        opened.wait(text("values") + ".startsWith('second.png, 56 × 40 pixels')")
        check_layout_console_and_requests(opened, address)


def test_server_refuses_a_port_that_is_taken(demo, address):
    with pytest.raises(OSError, match="Address already in use"):
        make_server(demo, "127.0.0.1", int(address.rpartition(":")[2]))


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_page_shows_masks_values_thresholds_and_guarantees_in_a_browser(address, tab, tmp_path, dark):
    text = "document.querySelector('#{}').textContent".format
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "second.png").write_bytes(as_png(STREET[::-1].copy()))
    with tab(dark=dark) as opened:
        opened.open(f"{address}/")
        opened.wait("!document.querySelector('#viewer').hidden && document.querySelector('#canvas').width === 56")
        opened.move("#canvas", 0.5, 0.5)
        opened.wait(text("values") + ".startsWith('x 28, y 20: ')")
        assert "entropy 0." in opened.evaluate(text("values"))
        opened.click("#canvas")
        opened.evaluate("document.querySelector('#canvas').focus()")
        opened.press("ArrowRight")
        opened.wait(text("values") + ".startsWith('x 29, y 20: ')")

        opened.click("#threshold", 0.3)  # a low threshold: debris everywhere
        opened.wait(text("legend") + ".includes('debris100.00 %')")
        assert opened.evaluate(text("threshold-value")).startswith("p ≥ ")
        opened.click("input[value=entropy]")
        before = opened.evaluate("document.querySelector('#canvas').toDataURL()")
        opened.click("#opacity", 0.01)
        opened.wait(f"document.querySelector('#canvas').toDataURL() !== {json.dumps(before)}")

        choose = "(e => {e.value = 1; e.dispatchEvent(new Event('change'))})(document.querySelector('#guarantee'))"
        opened.evaluate(choose)
        opened.wait(text("guarantee-text") + " === 'guarantee: at most 10 %'")
        assert opened.evaluate("document.querySelector('#threshold').disabled")
        assert opened.evaluate(text("legend")).endswith("debris100.00 %")

        files = opened.send("Runtime.evaluate", expression="document.querySelector('#files')")["result"]["objectId"]
        paths = [str(tmp_path / name) for name in ("notes.txt", "second.png")]
        opened.send("DOM.setFileInputFiles", files=paths, objectId=files)
        opened.wait("[...document.querySelectorAll('#images button')].map(b => b.disabled).join() === 'false,false'")
        assert opened.evaluate(text("errors")).startswith("notes.txt: cannot be decoded")
        opened.click("#images li:nth-child(2) button")
        opened.wait(text("values") + ".startsWith('second.png, 56 × 40 pixels')")
        check_layout_console_and_requests(opened, address)
