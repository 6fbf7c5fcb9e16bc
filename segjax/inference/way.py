"""The ways to predict an image, as a person names them: what `segjax.predict` has flags for."""

from typing import Any, NamedTuple

from segjax.inference.augmented import SYMMETRIES

# What the words of a command mean: symmetries, and scales.
AUGMENTATIONS = {
    "none": (SYMMETRIES["none"], (1.0,)),
    "flip": (SYMMETRIES["mirror"], (1.0,)),
    "d4": (SYMMETRIES["d4"], (1.0,)),
    "scales": (SYMMETRIES["none"], (0.75, 1.0, 1.25)),
}
"""By name, what an image is predicted under: symmetries, and factors of its size."""
UNCERTAINTIES = ("entropy", "mutual_information", "variance")
"""What may be said of a pixel besides its class; all but the first are what samples disagree on."""
_OF_MASKS = {"rate", "seed"}


class Way(NamedTuple):
    """How an image is predicted.

    Attributes:
      tile: height and width of what the network sees.
      scale: None: the whole image is resized to one tile. Else it is resized by this factor (1: it stays as it is) and
        cut into tiles.
      overlap: pixels that neighbouring tiles share, at least.
      batch: tiles of an image, or whole images, at a time.
      augment: a key of `AUGMENTATIONS`.
      samples: K dropout masks of the head for each augmentation, the same for all images and tiles, a channel each; 0:
        the clean pass.
      passes: instead of samples: K whole passes for each augmentation, with the network's own dropout on, deep in it
        or of the head; 0: none. The masks are each tile's own.
      rate: p of the head's dropout.
      seed: of the masks.
      threshold: the log odds from which on a pixel is `positive`, however likely others are; None: the likeliest class.
      positive: the class of the threshold, such as a rare one.
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
    positive: int = 1

    @property
    def count(self) -> int:
        """N: how many samples there are of a pixel, augmentations times masks; tiles do not count."""
        symmetries, scales = AUGMENTATIONS[self.augment]
        return len(symmetries) * len(scales) * max(1, self.samples, self.passes)

    @property
    def uncertainties(self) -> tuple[str, ...]:
        """Those of `UNCERTAINTIES` that this way tells: the entropy, and all where there are two samples or more."""
        return UNCERTAINTIES if self.count > 1 else UNCERTAINTIES[:1]

    def differing(self) -> dict[str, Any]:
        """On what the mask depends beside network and threshold, where it is not `Way(tile)`'s; ready for JSON.

        >>> Way((192, 256)).differing(), Way((192, 256), scale=1.0, overlap=32).differing()
        ({}, {'scale': 1.0, 'overlap': 32, 'tile': [192, 256]})
        """
        drawn = self.samples or self.passes
        plain, ignored = Way(self.tile)._asdict(), {"batch", "threshold", "positive"} | (set() if drawn else _OF_MASKS)
        fields = {key: value for key, value in self._asdict().items() if value != plain[key] and key not in ignored}
        if drawn:
            fields["rate"] = self.rate
        return fields if self.scale is None else {**fields, "tile": list(self.tile)}


def chosen_way(
    size: tuple[int, int],
    *,
    tile: tuple[int, int] | None = None,
    scale: float | None = None,
    overlap: int | None = None,
    **fields: Any,
) -> Way:
    """The `Way` that a person means who names some of it: tiles where a tile, a scale or an overlap is named.

    Args:
      size: what the network was trained at: the tile, unless one is named, and else that of the whole image.
      tile: of the tiles.
      scale: of the image that is cut into them; default 1.
      overlap: default a quarter of the tile's shorter side.
      fields: the others of `Way`.

    Raises:
      ValueError: they make no sense together.
    """
    way = Way(tile or size, **fields)
    if (tile, scale, overlap) != (None, None, None):
        shared = min(way.tile) // 4 if overlap is None else overlap
        way = way._replace(scale=1.0 if scale is None else scale, overlap=shared)
    check(way)
    return way


def check(way: Way) -> None:
    """Raises a ValueError where `way` makes no sense."""
    if way.augment not in AUGMENTATIONS:
        raise ValueError(f"augment must be one of {', '.join(AUGMENTATIONS)}; got {way.augment!r}")
    if len(way.tile) != 2 or min(way.tile) < 1 or way.batch < 1:
        raise ValueError(f"tile must be a positive height and width and batch at least 1; got {way.tile}, {way.batch}")
    side = min(way.tile)
    if way.scale is not None and not 0 <= way.overlap < side:
        raise ValueError(f"overlap must be at least 0 and less than the tile's {side} pixels; got {way.overlap}")
    if way.scale is not None and not 0 < way.scale < float("inf"):
        raise ValueError(f"scale must be more than 0; got {way.scale:g}")
    for name in ("samples", "passes"):
        if getattr(way, name) < 0 or getattr(way, name) == 1:
            raise ValueError(
                f"{name} must be 0 (none) or at least 2, since one tells of no difference; got {getattr(way, name)}"
            )
    if way.samples and way.passes:
        raise ValueError(f"samples of the head or whole passes, not both; got {way.samples} and {way.passes}")
