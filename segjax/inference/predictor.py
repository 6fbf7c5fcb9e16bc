"""Prediction of images of any size, whole or in blended tiles, with augmentation and dropout samples.

The network is compiled for one input shape, `PredictOptions.tile`, for images of all sizes. Images and maps are resized
in blocks of bounded size, so that maps larger than memory may be stored in a file.
"""

import copy
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, pairwise, product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Shaped, UInt8

from segjax import metrics
from segjax.data.resize import BLOCK, crop_block, fit_within, resize_blocks, resize_large
from segjax.inference.augmentation import SYMMETRIES, augmented_statistics, dropout_head
from segjax.inference.forward import Ensemble, Preprocessing, class_logits, network_record
from segjax.inference.monte_carlo import dropout_passes, maps_to_statistics, statistics_to_maps, uncertainty_of
from segjax.storage import scratch

AUGMENTATIONS = {
    "none": (SYMMETRIES["none"], (1.0,)),
    "flip": (SYMMETRIES["mirror"], (1.0,)),
    "d4": (SYMMETRIES["d4"], (1.0,)),
    "scales": (SYMMETRIES["none"], (0.75, 1.0, 1.25)),
}
"""Test-time augmentations by name: the symmetries and the scale factors that an image is predicted under."""
UNCERTAINTIES = ("entropy", "mutual_information", "variance")
"""Uncertainties of a pixel. All but the entropy need at least two samples."""
LOGIT_SCORES = {"margin": metrics.margin_score, "max_logit": metrics.max_logit_score, "energy": metrics.energy_score}
"""Scores of the unscaled logits of one pass by name, high where the network is unsure or the pixel unknown."""

_PAIR_MAPS = 6  # of the statistics of two classes, see `statistics_to_maps`
_MIN_PROBABILITY = 1e-37  # its logarithm is finite in float32


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction; `segjax predict` has a flag for most of them.

    Attributes:
      tile: height and width of the network's input.
      scale: None: resize the whole image to one tile. A number: resize the image by this factor and cut it into tiles.
      overlap: least number of pixels that neighbouring tiles share.
      batch: tiles of one image, or whole images, that pass the network together.
      augment: a key of `AUGMENTATIONS`.
      samples: K dropout masks of the head per augmentation, per channel and the same for all images and tiles. 0: none.
      passes: K whole passes per augmentation with the network's own dropout on, each tile with its own masks. 0: none.
      rate: dropout rate of the head.
      seed: seed of the dropout masks.
      threshold: log odds from which a pixel is `positive`, whatever the other classes. None: the likeliest class.
      radius: distance in pixels of the image up to which pixels around the mask of `positive` become `positive` too.
        None: 0.
      positive: the class of the threshold or the radius.
      members: networks of the ensemble; a `Predictor` sets it.
      scaling: applied to the logits before the probabilities and the entropy; never changes the likeliest class.
      scale_threshold: the threshold is of the log odds with `scaling`; False: of those without it.
      logit_score: a key of `LOGIT_SCORES`, predicted in addition to the entropy; one sample only.
      set_thresholds: log odds, without `scaling`, from which a class is in the set of a pixel, one per class. None: no
        sets.
      adaptive_sets: the log odds of sets are `metrics.adaptive_log_odds`; False: `metrics.class_log_odds`.
    """

    tile: tuple[int, int]
    scale: float | None = None
    overlap: int = 0
    batch: int = 1
    augment: str = "none"
    samples: int = 0
    passes: int = 0
    rate: float = 0.2
    seed: int = 0
    threshold: float | None = None
    radius: float | None = None
    positive: int = 1
    members: int = 1
    scaling: metrics.Scaling | None = None
    scale_threshold: bool = True
    logit_score: str | None = None
    set_thresholds: tuple[float, ...] | None = None
    adaptive_sets: bool = False

    def __post_init__(self):
        if self.augment not in AUGMENTATIONS:
            raise ValueError(f"augment must be one of {', '.join(AUGMENTATIONS)}; got {self.augment!r}")
        if len(self.tile) != 2 or min(self.tile) < 1:
            raise ValueError(f"tile must be a positive height and width; got {self.tile}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1; got {self.batch}")
        if self.scale is not None and not 0 <= self.overlap < min(self.tile):
            limit = min(self.tile)
            raise ValueError(f"overlap must be at least 0 and less than the tile's {limit} pixels; got {self.overlap}")
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be more than 0; got {self.scale:g}")
        for name, n in (("samples", self.samples), ("passes", self.passes)):
            if n < 0 or n == 1:
                raise ValueError(f"{name} must be 0 (none) or at least 2, since one sample has no variance; got {n}")
        if self.samples and self.passes:
            both = f"samples {self.samples} and passes {self.passes}"
            raise ValueError(f"samples and passes exclude each other; got {both}")
        if self.threshold is not None and self.radius is not None:
            raise ValueError(f"threshold and radius exclude each other; got {self.threshold:g} and {self.radius:g}")
        if self.logit_score is not None and self.logit_score not in LOGIT_SCORES:
            raise ValueError(f"logit_score must be one of {', '.join(LOGIT_SCORES)} or None; got {self.logit_score!r}")
        if self.logit_score is not None and self.num_samples > 1:
            raise ValueError(
                f"uncertainty={self.logit_score} is a score of one pass of one network; got {self.num_samples} samples "
                "per pixel: remove augment, samples and passes, or use the entropy"
            )

    @property
    def num_samples(self) -> int:
        """Samples per pixel: members times augmentations times dropout masks. Tiles do not count."""
        symmetries, scales = AUGMENTATIONS[self.augment]
        return self.members * len(symmetries) * len(scales) * max(1, self.samples, self.passes)

    @property
    def uncertainties(self) -> tuple[str, ...]:
        """The available `UNCERTAINTIES` (the entropy; with two or more samples all of them), and the `logit_score`."""
        if self.num_samples > 1:
            return UNCERTAINTIES
        return UNCERTAINTIES[:1] if self.logit_score is None else (*UNCERTAINTIES[:1], self.logit_score)

    def non_default(self) -> dict[str, Any]:
        """Returns the options that change the logits and are not at their default, for JSON.

        >>> PredictOptions((192, 256), scale=1.0, overlap=32).non_default()
        {'scale': 1.0, 'overlap': 32, 'tile': [192, 256]}
        """
        defaults = dataclasses.asdict(PredictOptions(self.tile)) | {"size": self.tile, "rate": None}
        after = {"threshold", "radius", "positive", "scaling", "scale_threshold", "set_thresholds", "adaptive_sets"}
        fields = {k: v for k, v in self.record().items() if k not in after and v != defaults[k]}
        return fields if self.scale is None else {**fields, "tile": list(self.tile)}

    def record(self) -> dict[str, Any]:
        """Returns all options on which the mask and the probabilities depend.

        >>> PredictOptions((192, 256), batch=8, samples=3).record() == PredictOptions((192, 256), samples=3).record()
        True
        """
        # An option counts unless it is listed here; the members are the network's.
        ignored = {"batch", "members", "logit_score"} | (set() if self.samples or self.passes else {"rate", "seed"})
        ignored |= {"positive"} if self.threshold is self.radius is None else set()
        ignored |= {name for name in ("radius", "scaling", "set_thresholds") if getattr(self, name) is None}
        ignored |= {"adaptive_sets"} if self.set_thresholds is None else set()
        ignored |= {"scale_threshold"} if self.threshold is None or self.scaling is None else set()
        ignored |= {"overlap"} if self.scale is None else set()
        fields = {key: value for key, value in dataclasses.asdict(self).items() if key not in ignored}
        return fields if self.scale is not None else {"size": fields.pop("tile"), **fields}


def predict_options(
    size: tuple[int, int],
    *,
    tile: tuple[int, int] | None = None,
    scale: float | None = None,
    overlap: int | None = None,
    **fields: Any,
) -> PredictOptions:
    """Returns `PredictOptions` with tiles if a tile, a scale or an overlap is given, and of whole images otherwise.

    The tile is by default the `size` that the network was trained at, the scale 1, and the overlap a quarter of the
    tile's shorter side. `fields` are the other ones; the errors are those of `PredictOptions`.

    >>> predict_options((192, 256), tile=(64, 96)).overlap
    16
    """
    if (tile, scale, overlap) != (None, None, None):
        fields["scale"] = 1.0 if scale is None else scale
        fields["overlap"] = min(tile or size) // 4 if overlap is None else overlap
    return PredictOptions(tile or size, **fields)


class Prediction(NamedTuple):
    """Prediction of one image, at its own size.

    Attributes:
      mask: `[H, W]`, the class of each pixel; of classes that overlap boolean `[H, W, C]`.
      uncertainties: `[H, W]` each, by name: `PredictOptions.uncertainties`, in the units of `OutputOptions.scale`.
      probabilities: `[H, W, C]`, sum 1 unless classes overlap; None unless the predictor was made with `probabilities`.
      sets: `[H, W, C]`, True for the classes in the set of a pixel; None without `PredictOptions.set_thresholds`.
    """

    mask: UInt8[np.ndarray, "H W"] | Bool[np.ndarray, "H W C"]
    uncertainties: dict[str, Float[np.ndarray, "H W"]]
    probabilities: Float[np.ndarray, "H W C"] | None
    sets: Bool[np.ndarray, "H W C"] | None = None


def fingerprint(variables: Any) -> str:
    """Returns a hash of parameters and batch statistics: 16 digits of their SHA-256."""
    digest = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]


class Predictor:
    r"""A network ready to predict images `[H, W, channels]` of 0..255, of any size: `predictor(image) -> Prediction`.

    For each tile the network returns class logits or, with two or more samples, sample statistics, which become the log
    of the mean probabilities and the uncertainties (`statistics_to_maps`). Maps of overlapping tiles are blended
    (`predict_tiled`). Resized bilinearly to the image's size, the maps give

    .. math:: p = softmax(\log \bar p), \qquad \text{mask} = \operatorname{argmax}_c p_c

    Without samples, p is the softmax of the resized logits. Masks of the default options are those that evaluation
    scores. The entropy is that of p; mutual information and variance are resized as they are. A scaling calibrates p
    last, after averaging and resizing (Rahaman and Thiery, arXiv 2007.08792), and leaves the mask.

    With `preprocessing.multilabel` the classes are independent: p is the sigmoid per class, a pixel has every class of
    p > 1/2, entropy and mutual information are sums over the classes, and the variance is their mean. A scaling is of
    the log odds. There are no sets and logit scores.

    `model` has one linear head, like `segjax.models.UNet`, or is an `Ensemble` of such networks, each of which adds its
    own samples. `variables` are its parameters and batch statistics, and the default options are
    `PredictOptions(preprocessing.size)`. With `probabilities`, predictions have these too.
    """

    def __init__(
        self,
        model: Any,
        variables: Any,
        preprocessing: Preprocessing,
        options: PredictOptions | None = None,
        *,
        probabilities: bool = False,
    ):
        """Prepares the programs without compiling them."""
        self.preprocessing = preprocessing
        network, members = (model.network, model.members) if isinstance(model, Ensemble) else (model, 1)
        self.options = dataclasses.replace(options or PredictOptions(preprocessing.size), members=members)
        self._network, self._variables, self._probabilities = network, variables, probabilities
        if preprocessing.multilabel:
            excluded = ("logit_score", "set_thresholds")
            for name in (name for name in excluded if getattr(self.options, name) is not None):
                raise ValueError(
                    f"{name} is of one class per pixel; got {getattr(self.options, name)!r} and multilabel"
                )
        self._tile_maps = _make_tile_maps(network, self.options, preprocessing)

    def with_variables(self, variables: Any) -> "Predictor":
        """Returns this predictor with other parameters; both share the compiled programs."""
        other = copy.copy(self)
        other._variables = variables
        return other

    def record(self) -> dict[str, Any]:
        """Returns all on which predictions depend: parameters, network, normalisation and options, for JSON."""
        fields = {"parameters": fingerprint(self._variables)}
        fields |= network_record(self._network, dropout=bool(self.options.passes))
        fields |= {"members": self.options.members} if self.options.members > 1 else {}
        inputs = self.preprocessing.record()
        del inputs["size"]  # the options contain it
        if self.options.scale is not None:  # the letterbox is of whole images only
            inputs.pop("letterbox", None)
        return fields | inputs | self.options.record()

    def __call__(self, image: Shaped[np.ndarray, "H W channels"]) -> Prediction:
        """Predicts one image."""
        return next(self.predict_batch([image]))

    def predict_batch(self, images: Sequence[Shaped[np.ndarray, "..."]]) -> Iterator[Prediction]:
        """Predicts images of any sizes, one after another; whole images pass the network `options.batch` at a time."""
        if self.options.scale is not None:
            yield from map(self._predict_tiles, images)
            return
        batch = self.options.batch
        for start in range(0, len(images), batch):
            group = images[start : start + batch]
            tiles, sizes = map(list, zip(*map(self._whole_in_tile, group), strict=True))
            tiles, filled = (np.stack(rows + rows[-1:] * (batch - len(rows))) for rows in (tiles, sizes))
            maps = self._tile_maps(self._variables, tiles, filled if self.preprocessing.letterbox else None)
            for image, one, (height, width) in zip(group, np.array(maps), sizes, strict=False):
                yield self._at_size(one[:height, :width], image.shape[:2])

    def _whole_in_tile(
        self, image: Shaped[np.ndarray, "H W channels"]
    ) -> tuple[Shaped[np.ndarray, "h w channels"], tuple[int, int]]:
        """Returns a tile with the whole image, resized, in its top left corner, and the size of the image there."""
        tile = self.options.tile
        if not self.preprocessing.letterbox:
            return resize_large(image, tile), tile
        size = tuple(fit_within(np.array(image.shape[:2]), tile).tolist())
        padding = [(0, full - n) for full, n in zip(tile, size, strict=True)]
        return np.pad(resize_large(image, size), [*padding, (0, 0)]), size

    @property
    def _num_maps(self) -> int:
        """Number of maps of `_make_tile_maps`."""
        classes = self.preprocessing.num_classes
        if self.options.num_samples == 1:
            return classes
        return _PAIR_MAPS * classes if self.preprocessing.multilabel else 2 * classes + 2

    def _predict_tiles(self, image: Shaped[np.ndarray, "H W channels"]) -> Prediction:
        options, size = self.options, image.shape[:2]
        scaled = tuple(max(1, round(side * options.scale)) for side in size)
        maps = predict_tiled(
            resize_large(image, scaled),
            partial(self._tile_maps, self._variables),
            tile=options.tile,
            overlap=options.overlap,
            batch=options.batch,
            out=scratch((*scaled, self._num_maps)),
        )
        return self._at_size(maps, size)

    def _at_size(self, maps: Float[np.ndarray, "h w maps"], size: tuple[int, int]) -> Prediction:
        """Returns the prediction of `maps`, which are overwritten, at the image's own size."""
        options, classes, multilabel = self.options, self.preprocessing.num_classes, self.preprocessing.multilabel
        if options.num_samples > 1:
            summary = classes + len(options.uncertainties) - 1
            for rows, columns, block in resize_blocks(maps, maps.shape[:2]):
                maps[rows, columns, :summary] = crop_block(_summarise(block, options, multilabel), rows, columns)
            maps = maps[..., :summary]
        mask = scratch((*size, classes), np.bool_) if multilabel else np.empty(size, np.uint8)
        uncertainties = {name: np.empty(size, np.float32) for name in options.uncertainties}
        probabilities = scratch((*size, classes)) if self._probabilities else None
        sets = None if options.set_thresholds is None else scratch((*size, classes), np.bool_)
        outputs = (mask, probabilities, sets, *uncertainties.values())
        for rows, columns, block in resize_blocks(maps, size):
            for output, values in zip(outputs, _conclude(block, options, classes, multilabel), strict=True):
                if output is not None:
                    output[rows, columns] = crop_block(values, rows, columns)
        if options.radius and multilabel:
            _dilate_class(mask[..., options.positive], 1, options.radius)
        elif options.radius:
            _dilate_class(mask, options.positive, options.radius)
        return Prediction(mask, uncertainties, probabilities, sets)


def _make_tile_maps(model: Any, options: PredictOptions, preprocessing: Preprocessing) -> Callable:
    """Builds `tile_maps(variables, tiles, sizes=None)`: `[batch, th, tw, C]` logits, or maps of the sample statistics.

    `sizes` are those of letterboxed images in the top left corner of their tiles. The variables of an ensemble are
    stacked, and its maps are the means over its members. Statistics of classes that overlap are those of each class
    against its absence, `_PAIR_MAPS` maps per class.
    """
    stochastic, model = model.clone(remat=False), model.clone(dropout="none", deep_dropout=0, remat=False)
    symmetries, scales = AUGMENTATIONS[options.augment]
    classes, multilabel = preprocessing.num_classes, preprocessing.multilabel
    key = jax.random.key(options.seed)
    if options.passes:
        dropout_passes(stochastic, {}, key)  # raises for a network without dropout
        symmetries = [symmetry for symmetry in symmetries for _ in range(options.passes)]

    def maps_of(
        variables: Any, tiles: Shaped[Array, "b h w channels"], sizes: Integer[Array, "b 2"] | None
    ) -> Float[Array, "b h w maps"]:
        images = preprocessing.normalise(tiles, sizes)
        # One index for all: a sample is one network for the whole image, and for all images.
        examples = jnp.zeros(len(images), jnp.int32)

        def outputs_of(images: Array, a: Array) -> Array:
            if options.passes:
                return dropout_passes(stochastic, variables, key, rate=options.rate, examples=examples)(images, a)
            return model.apply(variables, images, train=False).logits

        def statistics(to_classes: Callable) -> Float[Array, "b h w maps"]:
            parts, samples = (lambda images, a: to_classes(outputs_of(images, a)),), max(1, options.samples)
            if options.samples:
                fields = {"rate": options.rate, "mask": "channel", "examples": examples}
                parts = dropout_head(model, variables, key, class_logits=to_classes, **fields)
            found = augmented_statistics(images, *parts, samples=samples, symmetries=symmetries, scales=scales)
            return statistics_to_maps(found)

        def pair_statistics(index: Array) -> Float[Array, "b h w maps"]:
            return statistics(lambda outputs: class_logits(jnp.take(outputs, index[None], axis=-1), 2))

        if options.num_samples == 1:
            outputs = outputs_of(images, jnp.int32(0))
            return outputs if multilabel else class_logits(outputs, classes)
        if not multilabel:
            return statistics(partial(class_logits, num_classes=classes))
        maps = jax.vmap(pair_statistics)(jnp.arange(classes))  # the network does not depend on the class, and runs once
        return jnp.moveaxis(maps, 0, -2).reshape(*maps.shape[1:4], -1)

    @jax.jit
    def tile_maps(
        variables: Any, tiles: Shaped[Array, "b h w channels"], sizes: Integer[Array, "b 2"] | None = None
    ) -> Float[Array, "b h w maps"]:
        if options.members == 1:
            return maps_of(variables, tiles, sizes)
        return jax.lax.map(lambda one: maps_of(one, tiles, sizes), variables).mean(axis=0)

    return tile_maps


@partial(jax.jit, static_argnums=(1, 2))
def _summarise(
    maps: Float[Array, "h w maps"], options: PredictOptions, multilabel: bool
) -> Float[Array, "h w summary"]:
    """Returns the log of the mean probabilities, and the uncertainties except the entropy, of maps of statistics.

    For classes that overlap, it returns the log odds of the mean probabilities.
    """
    if multilabel:
        pairs = jnp.moveaxis(maps.reshape(*maps.shape[:2], -1, _PAIR_MAPS), -2, 0)
        found = uncertainty_of(maps_to_statistics(pairs), options.num_samples)
        log_p = jnp.log(jnp.maximum(found.probabilities, _MIN_PROBABILITY))
        log_odds = jnp.moveaxis(log_p[..., 1] - log_p[..., 0], 0, -1)
        # The variance of a pair is the mean of those of the logits 0 and z.
        others = found.mutual_information.sum(axis=0), 2 * found.variance.mean(axis=0)
        return jnp.concatenate([log_odds, jnp.stack(others, axis=-1)], axis=-1)
    found = uncertainty_of(maps_to_statistics(maps[None]), options.num_samples)
    others = [getattr(found, name)[0, ..., None] for name in options.uncertainties[1:]]
    return jnp.concatenate([jnp.log(jnp.maximum(found.probabilities[0], _MIN_PROBABILITY)), *others], axis=-1)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _conclude(
    maps: Float[Array, "h w summary"], options: PredictOptions, num_classes: int, multilabel: bool
) -> tuple[Array | None, ...]:
    """Returns the class before dilation, the probabilities, the set and the uncertainties of logits or `_summarise`."""
    logits = maps[..., :num_classes]
    if multilabel:
        present, calibrated = present_classes(logits, options)
        entropy = metrics.predictive_entropy(class_logits(calibrated[..., None], 2)[None]).sum(axis=-1)
        uncertainties = (entropy, *jnp.moveaxis(maps[..., num_classes:], -1, 0))
        return present, jax.nn.sigmoid(calibrated), None, *uncertainties
    mask, calibrated = mask_and_calibrated_logits(logits, options)
    sets = None if options.set_thresholds is None else prediction_sets(logits, options)
    entropy = metrics.predictive_entropy(calibrated[None])
    scores = [] if options.logit_score is None else [LOGIT_SCORES[options.logit_score](logits)]
    uncertainties = (entropy, *jnp.moveaxis(maps[..., num_classes:], -1, 0), *scores)
    return mask, jax.nn.softmax(calibrated), sets, *uncertainties


def present_classes(
    log_odds: Float[Array, "*pixels classes"], options: PredictOptions
) -> tuple[Bool[Array, "*pixels classes"], Float[Array, "*pixels classes"]]:
    """Returns the classes of each pixel where they overlap, and the log odds after scaling.

    A pixel has the classes of p > 1/2, and the class of a threshold at or above it. Nothing is dilated.
    """
    calibrated = log_odds if options.scaling is None else metrics.scale_logits(log_odds, options.scaling)
    present = log_odds > 0
    if options.threshold is not None:
        is_positive = jnp.arange(log_odds.shape[-1]) == options.positive
        odds = calibrated if options.scale_threshold else log_odds
        present = jnp.where(is_positive, odds >= jnp.float32(options.threshold), present)
    return present, calibrated


def mask_and_calibrated_logits(
    logits: Float[Array, "*pixels classes"], options: PredictOptions
) -> tuple[UInt8[Array, "*pixels"], Float[Array, "*pixels classes"]]:
    """Returns the class per pixel, by the threshold of `options` if they have one, and the logits after scaling.

    The mask is not dilated: only whole images can be.
    """
    calibrated = logits if options.scaling is None else metrics.scale_logits(logits, options.scaling)
    mask = jnp.argmax(logits, axis=-1)
    if options.threshold is not None:
        positive = options.positive
        others = jnp.where(jnp.arange(logits.shape[-1]) == positive, -jnp.inf, logits)
        log_odds = metrics.class_log_odds(calibrated if options.scale_threshold else logits)[..., positive]
        is_positive = log_odds >= jnp.float32(options.threshold)
        mask = jnp.where(is_positive, positive, jnp.argmax(others, axis=-1))
    return mask.astype(jnp.uint8), calibrated


def prediction_sets(logits: Float[Array, "*pixels classes"], options: PredictOptions) -> Bool[Array, "*pixels classes"]:
    """Returns the set of classes of each pixel, by the thresholds of `options`, from the unscaled logits."""
    odds = metrics.adaptive_log_odds(logits) if options.adaptive_sets else metrics.class_log_odds(logits)
    return odds >= jnp.asarray(options.set_thresholds, jnp.float32)


def _dilate_class(mask: Shaped[np.ndarray, "H W"], class_index: int, radius: float) -> None:
    """Changes pixels within the radius of a class into that class, in place, block by block."""
    reach = int(radius)
    # Each block is read with a margin that contains all pixels within the radius.
    found = np.pad(mask == class_index, [(reach, reach + -side % BLOCK) for side in mask.shape])
    for top, left in product(*(range(0, side, BLOCK) for side in mask.shape)):
        window = found[top : top + BLOCK + 2 * reach, left : left + BLOCK + 2 * reach]
        target = mask[top : top + BLOCK, left : left + BLOCK]
        height, width = target.shape
        near = np.asarray(_dilate_block(window, radius))
        target[near[reach : reach + height, reach : reach + width]] = class_index


_dilate_block = partial(jax.jit, static_argnums=1)(metrics.dilate)


def tiles_along(length: int, tile: int, overlap: int) -> tuple[Integer[np.ndarray, "n"], Float[np.ndarray, "n {tile}"]]:
    r"""Returns starts `[n]` and float64 weights `[n, T]` of tiles along one axis, the last one ending with the axis.

    .. math:: w_t(x) = \frac{g(x - s_t)}{\sum_u g(x - s_u)}, \qquad g(i) = \exp \frac{-(i - (T - 1) / 2)^2}{2 (T / 8)^2}

    This is one axis of nnU-Net's importance map (Isensee et al., Nature Methods 18, 2021): small near the edges of a
    tile, where the network lacks context, and exactly 1 where only one tile has the pixel.

    >>> starts, weights = tiles_along(6, 4, 2)
    >>> print(starts, weights[:, :2].round(3).tolist())
    [0 2] [[1.0, 1.0], [0.018, 0.982]]
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap must be at least 0 and less than the tile of {tile} pixels; got {overlap}")
    count = 1 + math.ceil((length - tile) / (tile - overlap))
    starts = np.minimum(np.arange(count) * (tile - overlap), length - tile)
    indices = np.arange(tile)
    bell = np.exp(-(((indices - (tile - 1) / 2) / (tile / 8)) ** 2) / 2)
    total = np.zeros(length)
    for start in starts:
        total[start : start + tile] += bell
    return starts, bell / total[starts[:, None] + indices]


def predict_tiled(
    image: Shaped[np.ndarray, "H W channels"],
    predict: Callable,
    *,
    tile: tuple[int, int],
    overlap: int,
    batch: int = 1,
    out: Float[np.ndarray, "H W maps"] | None = None,
) -> Float[np.ndarray, "H W maps"]:
    r"""Returns the blended predictions of an image's overlapping tiles.

    .. math:: y(i, j) = \sum_t w_t(i, j) \, f(\text{tile}_t)(i, j), \qquad \sum_t w_t(i, j) = 1

    Weights are Gaussian (`tiles_along` for each axis) and normalised before anything is predicted, so the sum is the
    only array of the image's size. `predict` is compiled for one shape: the last batch is filled up, and a smaller
    image is continued by reflection at the bottom and the right.

    Blend means only, such as probabilities or `statistics_to_maps`; compute a variance or an entropy from the blended
    means (`uncertainty_of`). Where all tiles of a pixel contain its receptive field, and start at multiples of the
    network's stride, the result is that of the whole image, unless the network has global pooling or group norm.

    Args:
        image: `[H, W, channels]`, any dtype; may be memory-mapped, only tiles of it are read.
        predict: jitted function from tiles `[batch, th, tw, channels]` to maps `[batch, th, tw, k]`.
        tile: th and tw.
        overlap: least number of pixels that neighbouring tiles share. Half a tile, as in nnU-Net, costs four times the
            work, a quarter less than twice.
        batch: tiles at a time.
        out: float32 or float64 array `[H, W, k]` for the result, such as a `np.memmap`; None: a new float32 array.

    Raises:
        ValueError: an argument of another rank, shape or dtype or out of range, or such a result of `predict`.

    >>> image = np.arange(35.0).reshape(5, 7, 1)
    >>> doubled = predict_tiled(image, lambda tiles: 2 * tiles, tile=(4, 4), overlap=2, batch=2)
    >>> doubled.shape, bool(np.allclose(doubled, 2 * image))
    ((5, 7, 1), True)
    """
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"the image must be [height, width, channels] with pixels; got shape {image.shape}")
    if len(tile) != 2 or min(tile) < 1 or batch < 1:
        raise ValueError(f"tile must be a positive height and width and batch at least 1; got {tile} and {batch}")
    size = image.shape[:2]
    axes = [tiles_along(max(length, side), side, overlap) for length, side in zip(size, tile, strict=True)]
    # Pairs of (start, weights), one for the row and one for the column of the grid.
    corners = list(product(*(zip(*axis, strict=True) for axis in axes)))
    groups = [corners[start : start + batch] for start in range(0, len(corners), batch)]

    def predict_group(group: list) -> Any:
        tiles = [_cut(image, int(top), int(left), tile) for (top, _), (left, _) in group]
        return predict(np.stack(tiles + tiles[-1:] * (batch - len(tiles))))

    results = ((group, predict_group(group)) for group in groups)
    for (group, maps), _ in pairwise(chain(results, [None])):  # the next batch is on the device before this one is read
        if maps.ndim != 4 or maps.shape[:3] != (batch, *tile):
            raise ValueError(f"predict must give maps [{batch}, {tile[0]}, {tile[1]}, k]; got shape {maps.shape}")
        if group is groups[0]:
            shape = (*size, maps.shape[-1])
            out = np.empty(shape, np.float32) if out is None else out
            if out.shape != shape or out.dtype not in (np.float32, np.float64):
                raise ValueError(f"out must be float32 or float64 of shape {shape}; got {out.dtype} of {out.shape}")
            out[...] = 0
        for ((top, rows), (left, columns)), one in zip(group, np.asarray(maps), strict=False):
            target = out[top : top + tile[0], left : left + tile[1]]  # smaller than the tile if the image is
            height, width = target.shape[:2]
            weights = (rows[:height, None] * columns[:width]).astype(out.dtype)
            target += weights[..., None] * one[:height, :width]
    return out


def _cut(image: np.ndarray, top: int, left: int, tile: tuple[int, int]) -> np.ndarray:
    part = np.asarray(image[top : top + tile[0], left : left + tile[1]])
    missing = [(0, side - have) for side, have in zip(tile, part.shape[:2], strict=True)]
    return np.pad(part, [*missing, (0, 0)], mode="reflect") if np.any(missing) else part
