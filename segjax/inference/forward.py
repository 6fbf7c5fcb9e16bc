"""The path from images to class logits that evaluation, prediction, report and export share."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Integer, Shaped

from segjax import metrics
from segjax.data.augment import normalise, prepare
from segjax.data.decode import ValueRange
from segjax.data.resize import equal_sizes, fit_within, resize
from segjax.models import Segmentation


class Preprocessing(NamedTuple):
    """Input and classes of a trained network.

    Attributes:
      size: height and width that whole images are resized to.
      channels: number of channels of an image; 3 in the order RGB.
      mean: mean of the pixels in 0..1, one value or one per channel.
      std: standard deviation of the pixels, as `mean`.
      num_classes: C, without void.
      value_range: values of image files that become 0 and 255; None: files of 8 bits per channel.
      dtype: dtype of the image files under `value_range`; None: any.
      letterbox: whole images keep their proportions and are padded to `size` at the bottom and the right, with the
        mean; False: they are stretched.
      multilabel: classes overlap, and each output is the log odds of its class; False: one class per pixel.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    value_range: ValueRange = None
    dtype: str | None = None
    letterbox: bool = False
    multilabel: bool = False

    def record(self) -> dict[str, Any]:
        """Returns the fields on which the network's input depends; without `dtype`, since another dtype is refused."""
        new = ("letterbox", "multilabel")  # records of older predictions do not have them
        return {k: v for k, v in self._asdict().items() if k != "dtype" and (k not in new or v)}

    def normalise(
        self, images: Shaped[Array, "b h w c"], sizes: Integer[Array, "b 2"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Returns pixels 0..255 as the network takes them, (x / 255 - mean) / std; nothing is resized.

        `sizes` are those of images in padded arrays, outside which the result is 0.
        """
        return normalise(images, self.mean, self.std, sizes)

    def network_input(
        self, images: Shaped[Array, "..."], sizes: Integer[ArrayLike, "b 2"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Resizes images of 0..255 to `size` and normalises them; `sizes` are those of images in padded arrays."""
        options = {"size": self.size, "mean": self.mean, "std": self.std, "letterbox": self.letterbox}
        return prepare(images, sizes=sizes, **options)

    def to_native(
        self,
        maps: Float[Array, "b h w k"],
        shape: tuple[int, int],
        sizes: Integer[ArrayLike, "b 2"] | None = None,
        first_row: Integer[ArrayLike, ""] | int = 0,
    ) -> Float[Array, "b H W k"]:
        """Resizes maps of the `network_input` back to the sizes of the images, bilinearly, without the padding.

        `shape` is that of the arrays of the images, and `sizes` and `first_row` are those of `resize`.
        """
        fitted = None
        if self.letterbox:
            natives = equal_sizes(shape, maps.shape[0]) if sizes is None else jnp.asarray(sizes)
            fitted = fit_within(natives, self.size)
        return resize(maps, shape, antialias=False, from_sizes=fitted, to_sizes=sizes, first_row=first_row)


class Ensemble(NamedTuple):
    """Ensemble of networks with the same architecture, which averages their class probabilities.

    Their variables are stacked: each array has a leading axis of `members`.

    Attributes:
      network: the network of each member.
      members: M, their number.
      num_classes: C, without void.
      multilabel: each output is the log odds of its class, whose probabilities are averaged.
    """

    network: Any
    members: int
    num_classes: int
    multilabel: bool = False

    def clone(self, **fields: Any) -> "Ensemble":
        """Returns the ensemble with other fields of the network."""
        return self._replace(network=self.network.clone(**fields))

    def apply(self, variables: Any, images: Float[Array, "b h w c"], *, train: bool) -> Segmentation:
        """Returns a `Segmentation` whose `logits` are `mean_outputs` and whose `mc_logits` are the members' outputs.

        `train` must be False.
        """
        # Not `vmap`: convolutions with a kernel per member become grouped ones, which are many times slower.
        outputs = jax.lax.map(lambda one: self.network.apply(one, images, train=train).logits, variables)
        if self.multilabel:
            return Segmentation(mean_outputs(outputs[..., None], 2)[..., 0], outputs, None, None)
        return Segmentation(mean_outputs(outputs, self.num_classes), outputs, None, None)


def mean_outputs(outputs: Float[Array, "m *pixels outputs"], num_classes: int) -> Float[Array, "*pixels outputs"]:
    r"""Returns the outputs whose class probabilities are the means over M networks.

    .. math:: \bar z_c = \log \frac{1}{M} \sum_m softmax(z_m)_c, \qquad
        \bar z = \log \frac{\sum_m \sigma(z_m)}{\sum_m \sigma(-z_m)} \quad \text{(a single output)}

    If void is a class, its probability is averaged, and so are the class probabilities conditional on not-void. M = 1
    returns the network's own outputs. Finite for \|z\| ≤ 1e4.

    >>> print(jax.nn.sigmoid(mean_outputs(jnp.array([[0.0], [100.0]]), 2)).round(4))
    [0.75]
    """
    if len(outputs) == 1:
        return outputs[0]

    def mean_odds(odds: Array) -> Array:
        log_p = metrics.log_mean_softmax(class_logits(odds, 2))
        return log_p[..., 1:] - log_p[..., :1]

    if outputs.shape[-1] == 1:
        return mean_odds(outputs)
    classes, void = outputs[..., :num_classes], outputs[..., num_classes:]
    means = metrics.log_mean_softmax(classes)
    if void.shape[-1] == 0:
        return means
    return jnp.concatenate([means, mean_odds(void - jax.nn.logsumexp(classes, axis=-1, keepdims=True))], axis=-1)


def predict_logits(
    model: Any,
    variables: Any,
    images: Shaped[Array, "..."],
    sizes: Integer[ArrayLike, "b 2"],
    preprocessing: Preprocessing,
) -> Float[Array, "b H W outputs"]:
    """Returns a network's outputs `[b, H, W, outputs]` at each image's own resolution, 0 outside each image.

    The network sees each image resized to `preprocessing.size`; its outputs are resized back, both bilinearly. The
    images are `[b, H, W, C]`, 0..255, each in the top left corner of its array, and `sizes` are their height and width.
    """
    output = model.apply(variables, preprocessing.network_input(images, sizes), train=False)
    return preprocessing.to_native(output.logits, images.shape[1:3], sizes)


def class_logits(outputs: Float[Array, "*pixels outputs"], num_classes: int) -> Float[Array, "*pixels {num_classes}"]:
    """Returns one logit per class from a network's outputs.

    A single output z becomes 0 and z, whose softmax is 1 - sigmoid(z) and sigmoid(z). The output of void, of a network
    that learned void as a class, is left out.
    """
    if outputs.shape[-1] == 1:
        return jnp.concatenate([jnp.zeros_like(outputs), outputs], axis=-1)
    return outputs[..., :num_classes]


def classify(outputs: Float[Array, "*pixels outputs"], num_classes: int) -> Int[Array, "*pixels"]:
    """Returns the class of the largest logit per pixel; of a single output, 1 where it is positive (p > 0.5)."""
    return jnp.argmax(class_logits(outputs, num_classes), axis=-1).astype(jnp.int32)


def probabilities(outputs: Float[Array, "*pixels outputs"], num_classes: int) -> Float[Array, "*pixels {num_classes}"]:
    """Returns the probability of each class, sum 1: the softmax of `class_logits`."""
    return jax.nn.softmax(class_logits(outputs, num_classes))


def log_odds(outputs: Float[Array, "*pixels outputs"]) -> Float[Array, "*pixels"]:
    """Returns log(p / (1 - p)) of class 1, for a network of two classes."""
    return outputs[..., 0] if outputs.shape[-1] == 1 else outputs[..., 1] - outputs[..., 0]


def network_record(network: Any, *, dropout: bool = False) -> dict[str, Any]:
    """Returns the name and the fields of a network that its output depends on; with `dropout` also those of dropout."""
    # A field counts unless it is listed here.
    ignored = {"parent", "name", "axis_name", "remat", "param_dtype"}
    ignored |= {"head_bias", "head_kernel_stddev"}  # of the initial parameters
    if not dropout:
        ignored |= {"dropout", "heads", "rate", "mask", "deep_dropout", "deep_rate"}
    names = {field.name for field in dataclasses.fields(network)} - ignored
    return {
        "network": type(network).__name__,
        **{f"network.{name}": getattr(network, name) for name in sorted(names)},
        "network.dtype": jnp.dtype(network.dtype).name,
    }
