"""One image to its mask and its uncertainty, by whichever way: resized or at its own scale, whole or in tiles, as it is
or augmented, with samples of the head or without.

The network sees one shape, `Way.tile`, whatever the images' sizes, and so is compiled once; what is not of this shape
happens on the host, a band of rows at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8
from PIL import Image

from segjax import metrics
from segjax.inference.augmented import augmented_moments, dropout_head
from segjax.inference.ensemble import dropout_passes
from segjax.inference.moments import packed, uncertainty_of, unpacked
from segjax.inference.tiling import predict_tiled
from segjax.inference.way import AUGMENTATIONS, Way, check

# Pixels that are looked at together: one shape too. And the least p whose logarithm is asked for.
_CHUNK, _LEAST = 2**16, 1e-37


class Prediction(NamedTuple):
    """What is said of one image, at its own size.

    Attributes:
      mask: `[H, W]`, a class a pixel.
      uncertainties: `[H, W]` each, by name, `Way.uncertainties`: nats, and squared logits for the variance.
      probabilities: `[H, W, C]`, sum 1; None if they were not wanted.
    """

    mask: UInt8[np.ndarray, "H W"]
    uncertainties: dict[str, Float[np.ndarray, "H W"]]
    probabilities: Float[np.ndarray, "H W C"] | None


class Engine:
    """`engine(image) -> Prediction` of a uint8 image `[H, W, channels]` of any size; `make_engine` makes it."""

    def __init__(
        self, way: Way, maps_of: Callable, num_classes: int, probabilities: bool, empty: Callable[..., np.ndarray]
    ):
        self._way, self._maps_of, self._num_classes = way, maps_of, num_classes
        self._probabilities, self._empty = probabilities, empty
        self._kinds = num_classes if way.count == 1 else 2 * num_classes + 2
        self._kept = num_classes + len(way.uncertainties) - 1
        self._told, self._concluded = _per_pixel(way, num_classes)

    def __call__(self, image: UInt8[np.ndarray, "H W channels"]) -> Prediction:
        """What the way says of one image."""
        return next(self.many([image]))

    def many(self, images: Sequence[UInt8[np.ndarray, "..."]]) -> Iterator[Prediction]:
        """The same of each of some images, one after another; whole ones pass the network `Way.batch` at a time."""
        tile, scale, batch = self._way.tile, self._way.scale, self._way.batch
        if scale is not None:
            yield from (self._of_tiles(image) for image in images)
            return
        for start in range(0, len(images), batch):
            group = images[start : start + batch]
            whole = [_resized(image, tile) for image in group]
            # A copy, into which is written.
            maps = np.array(self._maps_of(np.stack(whole + whole[-1:] * (batch - len(whole)))))
            yield from (self._at_size(one, image.shape[:2]) for one, image in zip(maps, group, strict=False))

    def _of_tiles(self, image: UInt8[np.ndarray, "H W channels"]) -> Prediction:
        way, size = self._way, image.shape[:2]
        seen = tuple(max(1, round(side * way.scale)) for side in size)
        pixels, out = image if way.scale == 1 else _resized(image, seen), self._empty((*seen, self._kinds), np.float32)
        tiled = {"tile": way.tile, "overlap": way.overlap, "batch": way.batch, "out": out}
        return self._at_size(predict_tiled(pixels, self._maps_of, **tiled), size)

    def _at_size(self, maps: Float[np.ndarray, "h w kinds"], size: tuple[int, int]) -> Prediction:
        """What the maps of an image say, which are written over, at its own size."""
        if self._way.count > 1:
            # In place: there are fewer of these.
            flat = maps.reshape(-1, self._kinds)
            for part, (found,) in _in_chunks(self._told, flat):
                flat[part, : self._kept] = found
        maps, classes = maps[..., : self._kept], self._num_classes
        mask, unsure = np.empty(size, np.uint8), {name: np.empty(size, np.float32) for name in self._way.uncertainties}
        p = self._empty((*size, classes), np.float32) if self._probabilities else None
        rows = max(1, _CHUNK // size[1])
        for band in (slice(top, min(top + rows, size[0])) for top in range(0, size[0], rows)):
            values = _band(maps, size, band).reshape(-1, self._kept)
            for part, (chosen, likely, *how_unsure) in _in_chunks(self._concluded, values):
                mask[band].reshape(-1)[part] = chosen
                for name, found in zip(unsure, how_unsure, strict=True):
                    unsure[name][band].reshape(-1)[part] = found
                if p is not None:
                    p[band].reshape(-1, classes)[part] = likely
        return Prediction(mask, unsure, p)


def make_engine(
    model: Any,
    variables: Any,
    way: Way,
    *,
    normalise: Callable[[Array], Array],
    class_logits: Callable[[Array], Array],
    probabilities: bool = False,
    empty: Callable[..., np.ndarray] = np.empty,
) -> Engine:
    r"""Builds the `Engine` of a network and a way.

    Three programs are compiled, each once for all sizes. The network gives maps of its tiles: its logits, or where
    there is more than one sample the `packed` moments of all; they are blended (`predict_tiled`). Then, with samples,
    these become the log of the mean probabilities and the uncertainties. Then, resized bilinearly to the image's size,

    .. math:: p = softmax(\log \bar p), \qquad \text{mask} = \operatorname{argmax}_c p_c

    and without samples the same of the logits themselves, which is what evaluation scores. The entropy is that of p;
    mutual information and variance are resized as they are.

    An image smaller than a tile is continued by reflection at the bottom and the right, as networks do themselves up to
    a multiple of their own: then a tile of that size is the whole image, exactly.

    Args:
      model: a network with one linear head, such as `segjax.models.UNet`.
      variables: its parameters and statistics.
      way: how.
      normalise: pixels 0..255 to what the network takes.
      class_logits: its outputs `[..., O]` to a logit a class, `[..., C]`; a linear map, such as all but the last.
      probabilities: give them too: 4 C bytes a pixel.
      empty: `empty(shape, float32)` for what is large: the maps of an image in tiles, and the probabilities. It may be
        mapped to a file; all else takes a few bytes a pixel.

    Raises:
      ValueError: `way` makes no sense; passes of a network without dropout.
    """
    check(way)
    maps_of = partial(_tile_maps(model, way, normalise, class_logits), variables)
    num_classes = jax.eval_shape(class_logits, jax.ShapeDtypeStruct((1, model.num_classes), jnp.float32)).shape[-1]
    return Engine(way, maps_of, num_classes, probabilities, empty)


def _tile_maps(model: Any, way: Way, normalise: Callable, class_logits: Callable) -> Callable:
    """`maps_of(variables, tiles)`: `[batch, th, tw, C]` logits, or with more than one sample their packed moments."""
    noisy, model = model.clone(remat=False), model.clone(dropout="none", deep_dropout=0, remat=False)
    if way.passes:
        dropout_passes(noisy, {}, jax.random.key(way.seed))  # which may refuse
    symmetries, scales = AUGMENTATIONS[way.augment]

    @jax.jit
    def maps_of(variables: Any, tiles: Shaped[Array, "b h w channels"]) -> Float[Array, "b h w maps"]:
        images = normalise(tiles)

        def clean(images: Array, a: Array) -> Array:
            return class_logits(model.apply(variables, images, train=False).logits)

        if way.count == 1:
            return clean(images, jnp.int32(0))
        kinds = {"symmetries": symmetries, "scales": scales}
        if not way.samples and not way.passes:
            return packed(augmented_moments(images, clean, **kinds))
        # One index for all: a sample is one network for the whole image, and for all images.
        alike, key = jnp.zeros(len(images), jnp.int32), jax.random.key(way.seed)
        if way.passes:
            logits = dropout_passes(noisy, variables, key, rate=way.rate, examples=alike)
            kinds["symmetries"] = [symmetry for symmetry in symmetries for _ in range(way.passes)]
            return packed(augmented_moments(images, lambda x, a: class_logits(logits(x, a)), **kinds))
        encode, head = dropout_head(
            model, variables, key, rate=way.rate, mask="channel", examples=alike, class_logits=class_logits
        )
        return packed(augmented_moments(images, encode, head, samples=way.samples, **kinds))

    return maps_of


def _per_pixel(way: Way, num_classes: int) -> tuple[Callable, Callable]:
    """`told(moments)` and `concluded(what is resized)`, of some pixels `[p, …]` each, one row a pixel."""

    @jax.jit
    def told(maps: Float[Array, "p maps"]) -> tuple[Float[Array, "p kept"]]:
        """The log of the mean probabilities, and the uncertainties that do not follow from these."""
        found = uncertainty_of(unpacked(maps[None, None]), way.count)
        others = [getattr(found, name)[..., None] for name in way.uncertainties[1:]]
        logs = jnp.log(jnp.maximum(found.probabilities, _LEAST))
        return (jnp.concatenate([logs, *others], axis=-1)[0, 0],)

    @jax.jit
    def concluded(maps: Float[Array, "p kept"]) -> tuple[Array, ...]:
        """The class, the probabilities, and the uncertainties."""
        logits = maps[:, :num_classes]
        mask = jnp.argmax(logits, axis=-1)
        if way.threshold is not None:
            others = jnp.where(jnp.arange(num_classes) == way.positive, -jnp.inf, logits)
            found = metrics.class_log_odds(logits)[:, way.positive] >= jnp.float32(way.threshold)
            mask = jnp.where(found, way.positive, jnp.argmax(others, axis=-1))
        entropy = metrics.predictive_entropy(logits[None])
        return mask.astype(jnp.uint8), jax.nn.softmax(logits), entropy, *maps[:, num_classes:].T

    return told, concluded


def _resized(image: UInt8[np.ndarray, "H W channels"], size: tuple[int, int]) -> Float[np.ndarray, "h w channels"]:
    """float32, linear and antialiased: `jax.image.resize` of the data's `prepare`, to rounding, on the host."""
    planes = (Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(image, -1, 0))
    return np.stack([np.asarray(plane.resize(size[::-1], Image.Resampling.BILINEAR)) for plane in planes], axis=-1)


def _band(maps: Float[np.ndarray, "h w maps"], size: tuple[int, int], rows: slice) -> Float[np.ndarray, "r W maps"]:
    """Some rows of `maps` resized to `size`, bilinearly with half-pixel centres, no antialiasing."""
    if maps.shape[:2] == size:
        return np.ascontiguousarray(maps[rows])

    def between(length: int, target: int, wanted: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        places = (np.arange(wanted.start, wanted.stop) + 0.5) * (length / target) - 0.5
        places = np.clip(places, 0, length - 1)
        low = np.floor(places).astype(int)
        return low, np.minimum(low + 1, length - 1), (places - low).astype(np.float32)

    low, high, share = between(maps.shape[0], size[0], rows)
    found = maps[low] + share[:, None, None] * (maps[high] - maps[low])
    low, high, share = between(maps.shape[1], size[1], slice(0, size[1]))
    return found[:, low] + share[:, None] * (found[:, high] - found[:, low])


def _in_chunks(function: Callable, values: Float[np.ndarray, "n maps"]) -> Iterator[tuple[slice, tuple]]:
    """(slice, what `function` gives of these pixels) for all of `values`, `_CHUNK` pixels at a time: one shape."""
    for start in range(0, len(values), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(values)))
        missing = _CHUNK - (part.stop - part.start)
        found = function(np.pad(values[part], ((0, missing), (0, 0))))
        yield part, tuple(np.asarray(one)[: _CHUNK - missing] for one in found)
