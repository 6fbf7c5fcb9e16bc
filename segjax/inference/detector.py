"""Detection of objects in images of any size by a trained detector: boxes in pixels of the image."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Shaped

from segjax import boxes
from segjax.boxes import Detections
from segjax.data.resize import equal_sizes, fit_within
from segjax.inference.forward import Preprocessing, network_record


class AnchorOptions(NamedTuple):
    """Anchors of a detector, see `segjax.boxes.anchors`; hashable."""

    levels: tuple[int, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...]
    base: float


class Detector:
    """Detector of the objects of an image: a network, its variables, preprocessing and anchors.

    `score_threshold` and `max_detections` are those of `segjax.boxes.detect`. The detector is compiled once per size of
    the images.
    """

    def __init__(
        self,
        model: Any,
        variables: Any,
        preprocessing: Preprocessing,
        anchors: AnchorOptions,
        *,
        score_threshold: float = 0.05,
        max_detections: int = 100,
    ):
        self.preprocessing, self._variables, self._model, self._anchors = preprocessing, variables, model, anchors
        self._thresholds = {"score_threshold": score_threshold, "max_detections": max_detections}
        self._detect = jax.jit(
            lambda variables, images, sizes: detect_boxes(
                model, variables, images, sizes, preprocessing, anchors, **self._thresholds
            )
        )

    def with_variables(self, variables: Any) -> "Detector":
        """Returns the detector with other variables of the same network, without compiling again."""
        other = object.__new__(Detector)
        other.__dict__ = {**self.__dict__, "_variables": variables}
        return other

    def record(self) -> dict[str, Any]:
        """Returns all but the parameters on which detections depend: network, input, anchors, thresholds; for JSON."""
        fields = network_record(self._model) | self.preprocessing.record() | self._thresholds
        return fields | {f"anchors.{name}": value for name, value in self._anchors._asdict().items()}

    def __call__(self, image: Shaped[np.ndarray, "H W C"]) -> Detections:
        """Returns the detections of one image of 0..255, by decreasing score, as NumPy arrays."""
        found = jax.device_get(self._detect(self._variables, image[None], np.array([image.shape[:2]], np.int32)))
        return Detections(*(values[0][found.where[0]] for values in found))


def detect_boxes(
    model: Any,
    variables: Any,
    images: Shaped[Array, "..."],
    sizes: Integer[Array, "b 2"],
    preprocessing: Preprocessing,
    anchors: AnchorOptions,
    **thresholds: Any,
) -> Detections:
    """Returns the detections of a batch of images, `[b, D, 4]` and `[b, D]`, in pixels of each image.

    The network sees each image resized to `preprocessing.size`; if it is letterboxed, anchors with their centre in the
    padding detect nothing, and boxes end with the image. The images are `[b, H, W, C]`, 0..255, each in the top left
    corner of its array, and `sizes` are their height and width. `thresholds` are arguments of `segjax.boxes.detect`.
    """
    output = model.apply(variables, preprocessing.network_input(images, sizes), train=False)
    return detect_in_output(*output, sizes, preprocessing, anchors, **thresholds)


def detect_in_output(
    logits: Float[Array, "b anchors c"],
    offsets: Float[Array, "b anchors 4"],
    sizes: Integer[Array, "b 2"],
    preprocessing: Preprocessing,
    anchors: AnchorOptions,
    **thresholds: Any,
) -> Detections:
    """Returns the detections of `detect_boxes` from the output of the network."""
    size = preprocessing.size
    grid = boxes.anchors(size, **anchors._asdict())
    per_cell = len(anchors.scales) * len(anchors.ratios)
    counts = boxes.anchor_counts(size, levels=anchors.levels, per_cell=per_cell)
    fitted = fitted_sizes(sizes, preprocessing)
    if preprocessing.letterbox:
        centres = (grid[:, :2] + grid[:, 2:]) / 2
        in_image = (centres < fitted[:, None, ::-1]).all(axis=-1)
        logits = jnp.where(in_image[..., None], logits, -jnp.inf)
    detect = partial(boxes.detect, counts=counts, **thresholds)
    found = jax.vmap(detect, in_axes=(0, 0, None, 0))(logits, offsets, grid, fitted)
    rows, columns = jnp.moveaxis(sizes / fitted, -1, 0)
    scale = jnp.stack([columns, rows, columns, rows], axis=-1).astype(found.boxes.dtype)
    return found._replace(boxes=found.boxes * scale[:, None])


def fitted_sizes(sizes: Integer[Array, "b 2"], preprocessing: Preprocessing) -> Integer[Array, "b 2"]:
    """Returns height and width of each image in the input of the network, without the padding of a letterbox."""
    size = preprocessing.size
    return fit_within(sizes, size) if preprocessing.letterbox else equal_sizes(size, sizes.shape[0])
