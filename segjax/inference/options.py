"""Options of a prediction, as `segjax.predict` has flags for them."""

import dataclasses
from typing import Any

from segjax.inference.augmentation import SYMMETRIES

AUGMENTATIONS = {
    "none": (SYMMETRIES["none"], (1.0,)),
    "flip": (SYMMETRIES["mirror"], (1.0,)),
    "d4": (SYMMETRIES["d4"], (1.0,)),
    "scales": (SYMMETRIES["none"], (0.75, 1.0, 1.25)),
}
"""Test-time augmentations by name: the symmetries and the scale factors that an image is predicted under."""
UNCERTAINTIES = ("entropy", "mutual_information", "variance")
"""Uncertainties of a pixel. All but the entropy need at least two samples."""


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction.

    Attributes:
      tile: height and width of the network's input.
      scale: None: resize the whole image to one tile. A number: resize the image by this factor and cut it into tiles.
      overlap: pixels that neighbouring tiles share, at least.
      batch: tiles of one image, or whole images, that pass the network together.
      augment: a key of `AUGMENTATIONS`.
      samples: K dropout masks of the head per augmentation, per channel and the same for all images and tiles. 0: none.
      passes: K whole passes per augmentation with the network's own dropout on, in place of `samples`. Each tile draws
        its own masks. 0: none.
      rate: dropout rate of the head.
      seed: seed of the dropout masks.
      threshold: log odds from which a pixel is `positive`, whatever the other classes. None: the likeliest class.
      positive: the class of the threshold.

    Raises:
      ValueError: an option out of its range, or options that exclude each other.
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

    def __post_init__(self):
        if self.augment not in AUGMENTATIONS:
            raise ValueError(f"augment must be one of {', '.join(AUGMENTATIONS)}; got {self.augment!r}")
        if len(self.tile) != 2 or min(self.tile) < 1:
            raise ValueError(f"tile must be a positive height and width; got {self.tile}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1; got {self.batch}")
        if self.scale is not None and not 0 <= self.overlap < min(self.tile):
            raise ValueError(
                f"overlap must be at least 0 and less than the tile's {min(self.tile)} pixels; got {self.overlap}"
            )
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be more than 0; got {self.scale:g}")
        for name in ("samples", "passes"):
            if getattr(self, name) < 0 or getattr(self, name) == 1:
                raise ValueError(
                    f"{name} must be 0 (none) or at least 2, since one sample has no variance; "
                    f"got {getattr(self, name)}"
                )
        if self.samples and self.passes:
            raise ValueError(
                f"samples and passes exclude each other; got samples {self.samples} and passes {self.passes}"
            )

    @property
    def num_samples(self) -> int:
        """Samples per pixel: augmentations times dropout masks. Tiles do not count."""
        symmetries, scales = AUGMENTATIONS[self.augment]
        return len(symmetries) * len(scales) * max(1, self.samples, self.passes)

    @property
    def uncertainties(self) -> tuple[str, ...]:
        """The available `UNCERTAINTIES`: the entropy, and all of them from two samples on."""
        return UNCERTAINTIES if self.num_samples > 1 else UNCERTAINTIES[:1]

    def non_default(self) -> dict[str, Any]:
        """Returns the options that change the mask and are not at their default, ready for JSON.

        The threshold is left out.

        >>> PredictOptions((192, 256)).non_default()
        {}
        >>> PredictOptions((192, 256), scale=1.0, overlap=32).non_default()
        {'scale': 1.0, 'overlap': 32, 'tile': [192, 256]}
        """
        is_sampled = self.samples or self.passes
        ignored = {"batch", "threshold", "positive"} | (set() if is_sampled else {"rate", "seed"})
        defaults = dataclasses.asdict(PredictOptions(self.tile))
        fields = {k: v for k, v in dataclasses.asdict(self).items() if v != defaults[k] and k not in ignored}
        if is_sampled:
            fields["rate"] = self.rate
        return fields if self.scale is None else {**fields, "tile": list(self.tile)}


def predict_options(
    size: tuple[int, int],
    *,
    tile: tuple[int, int] | None = None,
    scale: float | None = None,
    overlap: int | None = None,
    **fields: Any,
) -> PredictOptions:
    """Returns `PredictOptions` with tiles if a tile, a scale or an overlap is given, and of whole images otherwise.

    Args:
      size: the size that the network was trained at: the default tile.
      tile: height and width of the tiles.
      scale: factor of the image before it is cut into tiles; default 1.
      overlap: pixels that tiles share; default a quarter of the tile's shorter side.
      fields: other fields of `PredictOptions`.

    Raises:
      ValueError: as `PredictOptions`.

    >>> predict_options((192, 256), tile=(64, 96)).overlap
    16
    """
    tile_or_size = tile or size
    if (tile, scale, overlap) != (None, None, None):
        fields["scale"] = 1.0 if scale is None else scale
        fields["overlap"] = min(tile_or_size) // 4 if overlap is None else overlap
    return PredictOptions(tile_or_size, **fields)
