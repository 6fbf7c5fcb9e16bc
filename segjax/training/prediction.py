"""From images to logits, masks and counts, with the network that a state holds."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from segjax import metrics
from segjax.data.augment import normalise, prepare, resize_logits_to
from segjax.data.labels import VOID
from segjax.training.train_step import TrainState


def make_input(config: ConfigDict) -> Callable[[UInt8[Array, "b H W c"]], Float[Array, "b h w c"]]:
    """Builds `input_of(images)`: uint8 images as the network of `config` sees them, resized and normalised."""
    return partial(prepare, size=tuple(config.data.size), mean=tuple(config.data.mean), std=tuple(config.data.std))


def make_predict(config: ConfigDict, model: Any) -> Callable:
    """Builds `predict(state, images, sizes, canvas) -> logits [b, *canvas, C]` at each image's own resolution.

    `images` are uint8 `[b, H, W, C]`, `sizes` `[b, 2]` the native height and width of each, `canvas` the static size
    that holds them all: the network works at `config.data.size`, its logits are resized to the native grid.
    """
    input_of = make_input(config)

    def predict(state: TrainState, images: jax.Array, sizes: jax.Array, canvas: tuple[int, int]) -> jax.Array:
        output = model.apply(state.variables, input_of(images), train=False)
        return resize_logits_to(output.logits, canvas, sizes)

    return predict


def classify(logits: jax.Array, num_classes: int) -> jax.Array:
    """The predicted class a pixel: that of the largest logit, or for one logit whether it is positive (p > 0.5).

    A network that learned void as a class too, number `num_classes`, is asked for the likeliest of the others.
    """
    if logits.shape[-1] == 1:
        return (logits[..., 0] > 0).astype(jnp.int32)
    return jnp.argmax(logits[..., :num_classes], axis=-1)


def probabilities(logits: Float[Array, "b h w outputs"], num_classes: int) -> Float[Array, "b h w {num_classes}"]:
    """How likely each class is, sum 1: the softmax of the logits, or for one logit p of class 1 and before it 1 - p.

    Of a network that learned void as a class too: how likely where it is not void, as `classify`.
    """
    return jax.nn.softmax(class_logits(logits, num_classes))


def class_logits(logits: Float[Array, "*pixels outputs"], num_classes: int) -> Float[Array, "*pixels {num_classes}"]:
    """A logit a class: of a single one, 0 for the class before it, whose softmax is the sigmoid and what it leaves.

    Of a network that learned void as a class too, the others' only.
    """
    if logits.shape[-1] == 1:
        return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
    return logits[..., :num_classes]


def make_native(config: ConfigDict, model: Any, num_classes: int, *, variance: bool) -> Callable:
    """Builds `native(variables, images)`, which resizes nothing: uint8 `[b, H, W, channels]` to a dictionary.

    "probabilities", float32 `[b, H, W, C]`, and where `variance`, "variance" `[b, H, W]`: of the logits under dropout
    of the head in closed form, in squared logits, mean over the outputs.
    """
    model = model.clone(dropout="analytic" if variance else "none", remat=False)

    def native(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        output = model.apply(variables, normalise(images, config.data.mean, config.data.std), train=False)
        found = {"probabilities": probabilities(output.logits, num_classes)}
        return found | {"variance": output.logit_variance.mean(-1)} if variance else found

    return native


def log_odds(logits: Float[Array, "*pixels outputs"]) -> Float[Array, "*pixels"]:
    """log p / (1 - p) of class 1, of a network that tells two classes."""
    return logits[..., 0] if logits.shape[-1] == 1 else logits[..., 1] - logits[..., 0]


def make_predictor(config: ConfigDict, model: Any, num_classes: int) -> Callable:
    """Builds `predictor(state)(image) -> mask`: a uint8 image `[H, W, C]` to its class a pixel, uint8 `[H, W]`."""
    logits_of = make_predict(config, model)

    @partial(jax.jit, static_argnums=3)
    def mask_of(state: TrainState, images: jax.Array, sizes: jax.Array, canvas: tuple[int, int]) -> jax.Array:
        return classify(logits_of(state, images, sizes, canvas), num_classes)

    def predictor(state: TrainState) -> Callable:
        def predict(image: np.ndarray) -> np.ndarray:
            size = image.shape[:2]
            return np.asarray(mask_of(state, image[None], np.array([size], np.int32), size)[0], np.uint8)

        return predict

    return predictor


def make_eval_step(config: ConfigDict, model: Any, num_classes: int, axis_name: str | None) -> Callable:
    """Builds `step(state, batch) -> counts`, which add over batches: a confusion matrix at native resolution, and for
    two classes the score histogram of class 1.
    """
    predict = make_predict(config, model)

    def step(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, Any]:
        labels = batch["label"].astype(jnp.int32)
        logits = predict(state, batch["image"], batch["size"], labels.shape[1:])
        where = (labels != VOID) & batch["where"][:, None, None]
        return score_counts(logits, labels, num_classes, where=where, axis_name=axis_name)

    return step


def make_ranking_step(config: ConfigDict, model: Any, num_classes: int, number: int, axis_name: str | None) -> Callable:
    """Builds `step(state, batch) -> counts`, which add over batches: "scores", the score histogram of one class."""
    predict = make_predict(config, model)

    def step(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, Any]:
        labels = batch["label"].astype(jnp.int32)
        logits = predict(state, batch["image"], batch["size"], labels.shape[1:])
        where = (labels != VOID) & batch["where"][:, None, None]
        odds = metrics.class_log_odds(class_logits(logits, num_classes))[..., number]
        return {"scores": metrics.score_histogram(odds, labels == number, where=where, axis_name=axis_name)}

    return step


def score_counts(
    logits: Float[Array, "b H W outputs"],
    labels: Int[Array, "b H W"],
    num_classes: int,
    *,
    where: Bool[Array, "b H W"],
    axis_name: str | None,
) -> dict[str, Array]:
    """What `evaluation.scores` takes: "confusion", and for two classes "scores", the score histogram of class 1."""
    predictions = classify(logits, num_classes)
    counts = {"confusion": metrics.confusion_matrix(labels, predictions, num_classes, where=where, axis_name=axis_name)}
    if num_classes == 2:
        counts["scores"] = metrics.score_histogram(log_odds(logits), labels == 1, where=where, axis_name=axis_name)
    return counts
