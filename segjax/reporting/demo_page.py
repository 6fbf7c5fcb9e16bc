"""A page on which you drop images to predict them, and its server, which needs no network.

The page posts the bytes of an image and shows the answer. For a segmentation network it has the mask, the log odds of
every class and the uncertainties, each as a PNG file of 8 bits; for a detector, all detections. Opacity, threshold and
the values under the pointer need no further request.
"""

import base64
import contextlib
import functools
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Shaped, UInt8

from segjax import inference
from segjax.boxes import Detections
from segjax.data.decode import decode_image, inspect_image
from segjax.data.io import DataError, RawFile, read_bytes
from segjax.data.resize import fit_within, resize_nearest
from segjax.inference import Detector, Prediction, Predictor
from segjax.inference.visualize import overlay_palette
from segjax.reporting.report import script_json
from segjax.storage import printable, to_json
from segjax.trained_run import TrainedRun

LARGEST = 200 * 2**20
"""Largest image file in bytes."""
MOST_PIXELS = 50_000_000
"""Largest image in pixels, so that a small file cannot take all memory."""
_SHOWN = 1280  # longer side of an image on the page, in pixels
LOG_ODDS = 16.0
"""The log odds are sent as 256 values between -16 and 16."""
_HOSTS = ("localhost", "127.0.0.1", "[::1]", "::1")


class Demo(NamedTuple):
    """Data of the server: the run, its predictors, and the images that the page shows at the start.

    The first of `predictors` is the default; then follows one per entry of `guarantees`. The page offers the names of
    `guarantees` as choices and shows the text of the chosen one. A detector is the only predictor;
    `record` is then the origin of the detections, which their JSON file contains.
    """

    run: TrainedRun
    predictors: Sequence[Predictor] | Sequence[Detector]
    guarantees: Mapping[str, str] = {}
    images: Mapping[str, RawFile] = {}
    notes: Sequence[str] = ()
    record: Mapping[str, Any] = {}

    @property
    def page(self) -> bytes:
        """The page, one HTML file."""
        folder, boxes = Path(__file__).parent, bool(self.run.config.data.box_classes)
        style = "".join((folder / name).read_text(encoding="utf-8") for name in ("page.css", "demo.css"))
        config = {
            "run": printable(self.run.name),
            "guarantees": [{"name": name, "text": text} for name, text in self.guarantees.items()],
            "images": [f"{name}{Path(file.path).suffix}" for name, file in self.images.items()],
            "notes": list(self.notes),
            "largest": LARGEST,
            **(self._box_config() if boxes else self._mask_config()),
        }
        page = (folder / "demo.html").read_text(encoding="utf-8")
        own = "demo_boxes.js" if boxes else "demo_masks.js"
        script = "".join((folder / name).read_text(encoding="utf-8") for name in (own, "demo.js"))
        values = {"STYLE": style, "SCRIPT": script, "CONFIG": script_json(config)}
        return functools.reduce(lambda text, key: text.replace(f"/*{key}*/", values[key]), values, page).encode()

    def _mask_config(self) -> dict[str, Any]:
        labels = self.run.label_set
        tints = overlay_palette(labels)  # black: a class that an overlay leaves as it is
        return {
            "classes": [
                {"name": printable(name), "colour": colour, "tinted": any(tint)}
                for name, colour, tint in zip(labels.names, labels.palette.tolist(), tints.tolist(), strict=True)
            ],
            "overlap": labels.combinations is not None,
            "rare": labels.rare if labels.num_classes == 2 else labels.num_classes - 1,
            "heat": inference.heatmap(np.linspace(0, 1, 256)[None], 1.0)[0].tolist(),
            "span": LOG_ODDS,
        }

    def _box_config(self) -> dict[str, Any]:
        names, palette = self.run.box_classes
        classes = zip(names, palette.tolist(), strict=True)
        return {
            "classes": [{"name": printable(name), "colour": colour} for name, colour in classes],
            "lowest": self.predictors[0].record()["score_threshold"],
        }

    def answer(self, data: bytes, name: str, choice: int = 0) -> dict[str, Any]:
        """Returns the `mask_answer` or `box_answer` of the bytes of an image file, with the "seconds" it took."""
        start = time.perf_counter()
        image, found = self.predict(data, name, choice)
        seconds = time.perf_counter() - start
        if isinstance(found, Detections):
            shown = box_answer(image, found, name, self.run.box_classes[0], self.record)
        else:
            shown = mask_answer(image, found, self.run.label_set.num_classes)
        return shown | {"seconds": seconds}

    def predict(self, data: bytes, name: str, choice: int = 0) -> tuple[np.ndarray, Prediction | Detections]:
        """Decodes the bytes of an image file and predicts it with `predictors[choice]`.

        Raises DataError if the bytes are not an image, or the image has more than `MOST_PIXELS`.
        """
        inputs = self.predictors[choice].preprocessing
        found = inspect_image(RawFile(name, 0, lambda: data), data, whole=False)
        if found.height * found.width > MOST_PIXELS:  # before it is decoded: a small file may have billions
            expected = f"expected at most {MOST_PIXELS // 10**6} million; use segjax predict"
            raise DataError(f"{name}: {found.width} × {found.height} pixels; {expected}")
        image = decode_image(data, inputs.channels, inputs.value_range, name, inputs.dtype)
        return image, self.predictors[choice](image)


def mask_answer(image: Shaped[np.ndarray, "H W channels"], prediction: Prediction, num_classes: int) -> dict[str, Any]:
    """Returns what the page shows of a segmented image, ready for JSON: PNG and JPEG files as data URLs.

    "log_odds" is one image with the log odds x of all classes, one below the other, as `round((x + 16) · 255 / 32)`.
    "mask" is an image of class indices; for classes that overlap, it has one mask of 0 and 1 per class, one below the
    other. An uncertainty is scaled to its "maximum": for the entropy its largest possible value, otherwise the largest
    value in the image.
    """
    overlap = prediction.mask.ndim == 3
    masks = np.moveaxis(prediction.mask.astype(np.uint8), -1, 0) if overlap else [prediction.mask]
    largest_entropy = num_classes * np.log(2) if overlap else np.log(num_classes)
    picture = _picture(image)
    size = picture.shape[:2]
    uncertainties = {}
    for name, values in prediction.uncertainties.items():
        maximum = float(largest_entropy) if name == "entropy" else max(float(values.max()), 1e-6)
        levels = np.round(np.clip(values / maximum, 0, 1) * 255).astype(np.uint8)
        uncertainties[name] = {"maximum": maximum, "levels": _png_url(resize_nearest(levels, size))}
    return {
        "size": list(image.shape[:2]),
        "image": _url("image/jpeg", inference.jpeg(picture)),
        "mask": _png_url(np.concatenate([resize_nearest(mask, size) for mask in masks])),
        "log_odds": _png_url(np.concatenate(_log_odds_levels(prediction.probabilities, size))),
        "uncertainties": uncertainties,
    }


def box_answer(
    image: Shaped[np.ndarray, "H W channels"], found: Detections, name: str, names: Sequence[str], record: Mapping
) -> dict[str, Any]:
    """Returns what the page shows of an image and its detections, ready for JSON.

    "coco" is the `inference.coco_detections` of the image, whose file is `name`; `names` are the classes of the boxes,
    and `record` is the origin of the detections.
    """
    coco = inference.coco_detections({name: inference.stored_detections(image, found)}, names, record)
    picture = _url("image/jpeg", inference.jpeg(_picture(image)))
    return {"size": list(image.shape[:2]), "image": picture, "coco": coco}


def _picture(image: Shaped[np.ndarray, "H W channels"]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the image as RGB with a longer side of at most `_SHOWN` pixels; a small one stays as it is."""
    size = tuple(fit_within(np.array(image.shape[:2]), (_SHOWN, _SHOWN)).tolist())
    size, picture = min(size, image.shape[:2]), inference.as_rgb(image)
    return picture if size == image.shape[:2] else cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)


def _log_odds_levels(
    probabilities: Float[np.ndarray, "H W classes"], size: tuple[int, int]
) -> list[UInt8[np.ndarray, "h w"]]:
    """Returns the log odds of each class in 256 levels, resized to `size`."""
    odds = log_odds(resize_nearest(probabilities, size))
    return list(np.moveaxis(np.round((odds + LOG_ODDS) * (255 / (2 * LOG_ODDS))).astype(np.uint8), -1, 0))


def log_odds(probabilities: Float[np.ndarray, "*pixels"]) -> Float[np.ndarray, "*pixels"]:
    """Returns log p - log(1 - p), clipped to ±`LOG_ODDS`."""
    with np.errstate(divide="ignore"):
        return np.clip(np.log(probabilities) - np.log1p(-np.minimum(probabilities, 1.0)), -LOG_ODDS, LOG_ODDS)


def mask_from(probabilities: Float[np.ndarray, "H W C"], index: int, threshold: float) -> UInt8[np.ndarray, "H W"]:
    """Returns class `index` where its probability is at least `threshold`, else the most probable other class."""
    others = np.delete(np.arange(probabilities.shape[-1]), index)
    likeliest = others[np.argmax(probabilities[..., others], axis=-1)]
    return np.where(probabilities[..., index] >= threshold, index, likeliest).astype(np.uint8)


def _png_url(pixels: UInt8[np.ndarray, "h w"]) -> str:
    return _url("image/png", inference.png(pixels))


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _index(query: Mapping[str, str], key: str, count: int) -> int:
    """Returns the integer `key` of a request, default 0; raises ValueError unless it is in [0, count)."""
    value = query.get(key, "0")
    if value not in map(str, range(count)):
        raise ValueError(f"{key}={value[:40]} must be an integer from 0 to {count - 1}")
    return int(value)


def _threshold(query: Mapping[str, str]) -> float | None:
    """Returns the "threshold" of a request, or None; raises ValueError if it is not a probability."""
    if (value := query.get("threshold")) is None:
        return None
    with contextlib.suppress(ValueError):
        if 0 <= float(value) <= 1:
            return float(value)
    raise ValueError(f"threshold={value[:40]} must be a probability from 0 to 1")


def make_server(demo: Demo, host: str, port: int) -> ThreadingHTTPServer:
    """Returns a server of the page; `serve_forever` runs it. It raises OSError if the port is taken.

    A server on a local `host` refuses the requests of other web pages: it checks the headers Host and Origin.
    """
    lock, page = threading.Lock(), demo.page

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_GET(self) -> None:
            path = urllib.parse.urlsplit(self.path).path
            if not self._is_allowed():
                return
            if path == "/":
                self._send(200, "text/html; charset=utf-8", page)
            elif path.startswith("/images/") and path.removeprefix("/images/") in map(str, range(len(demo.images))):
                file = list(demo.images.values())[int(path.removeprefix("/images/"))]
                self._run(lambda: ("application/octet-stream", read_bytes(file)))
            else:
                self._fail(404, f"there is no {path}")

        def do_POST(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            if not self._is_allowed():
                return
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > LARGEST:
                self.close_connection = True  # the body stays unread
                self._fail(413, f"expected an image file of at most {LARGEST // 2**20} MB")
                return
            data, name = self.rfile.read(int(length)), query.get("name", "image")
            if url.path == "/predict":
                self._run(lambda: ("application/json", self._predict(data, name, query)))
            elif url.path == "/mask" and not demo.run.config.data.box_classes:
                self._run(lambda: ("image/png", self._mask(data, name, query)))
            else:
                self._fail(404, f"there is no {url.path}")

        def _predict(self, data: bytes, name: str, query: Mapping[str, str]) -> bytes:
            choice = _index(query, "guarantee", len(demo.predictors))
            with lock:
                shown = demo.answer(data, name, choice)
            return to_json(shown)

        def _mask(self, data: bytes, name: str, query: Mapping[str, str]) -> bytes:
            choice = _index(query, "guarantee", len(demo.predictors))
            index, threshold = _index(query, "class", demo.run.label_set.num_classes), _threshold(query)
            with lock:
                _, prediction = demo.predict(data, name, choice)
            mask, probabilities = prediction.mask, prediction.probabilities
            if mask.ndim == 3:  # of classes that overlap, the mask of one
                mask = mask[..., index] if threshold is None else probabilities[..., index] >= threshold
                return inference.png(255 * mask.astype(np.uint8))
            return inference.png(mask if threshold is None else mask_from(probabilities, index, threshold))

        def _run(self, work: Callable[[], tuple[str, bytes]]) -> None:
            """Sends the result of `work` or its error in one line, with status 200: browsers log other statuses."""
            try:
                self._send(200, *work())
            except ValueError as error:  # also DataError
                self._fail(200, printable(str(error)))
            except (MemoryError, RuntimeError) as error:
                self._fail(200, printable(" ".join(str(error).split())[:300] or "out of memory"))

        def _is_allowed(self) -> bool:
            """Returns True, or sends an error and returns False if a page of another origin has sent the request."""
            name = self.headers.get("Host", "")
            origin = self.headers.get("Origin", f"http://{name}")
            with contextlib.suppress(ValueError):  # a malformed name or port
                local = host not in _HOSTS or urllib.parse.urlsplit(f"//{name}").hostname in _HOSTS
                if local and origin == f"http://{name}":
                    return True
            self.close_connection = True
            self._fail(403, "requests of other pages are refused")
            return False

        def _send(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def _fail(self, status: int, line: str) -> None:
            self._send(status, "application/json", to_json({"error": line}))

        def log_message(self, *arguments: Any) -> None:
            """Logs nothing: the terminal has the address only."""

    class Server(ThreadingHTTPServer):
        daemon_threads, request_queue_size = True, 128
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def handle_error(self, *arguments: Any) -> None:
            """Ignores a connection that the browser has closed."""

    return Server((host.strip("[]"), port), Handler)
