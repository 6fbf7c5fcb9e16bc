"""Prediction of images of any size, larger than the device's memory too: tile by tile, blended by Gaussian weights.

Tiles stand on a grid and their weights are products of one factor per row and one per column. So the weights are
normalized before anything is predicted, and the blended map is a plain sum, the only array of the image's size.
"""

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Integer, Shaped


class Tiles(NamedTuple):
    """Starts and weights of the tiles along one axis of an image.

    Attributes:
        starts: `[n]`, first pixel of each tile.
        weights: `[n, tile]`, float64; at every pixel of the axis the weights of its tiles add up to 1.
    """

    starts: Integer[np.ndarray, "n"]
    weights: Float[np.ndarray, "n tile"]


def tiles_along(length: int, tile: int, overlap: int, *, sigma: float = 0.125, margin: int = 0) -> Tiles:
    r"""Lays tiles along one axis: a step of `tile - overlap` pixels, the last one shifted back to end with the axis.

    .. math:: w_t(x) = \frac{g(x - s_t)}{\sum_u g(x - s_u)}, \qquad g(i) = \exp \frac{-(i - (T - 1) / 2)^2}{2 (σ T)^2}

    This is one axis of nnU-Net's importance map: near the edges of a tile the network lacks context.

    Args:
        length: L, pixels of the axis, at least `tile`.
        tile: T, pixels.
        overlap: pixels that a tile shares with the one before, at least 2 · `margin` and less than T.
        sigma: σ, standard deviation as a fraction of T. At 1/8 the weight of an edge is e^-8 of that of the middle.
        margin: pixels along an edge inside the image that get no weight. If the network's receptive field reaches no
            further than this, tiles give the prediction of the whole image.

    Returns:
        `Tiles`. A pixel that only one tile holds has the weight 1, exactly.

    Raises:
        ValueError: `tile` is not in 1 to `length`, `overlap` not in 2 · `margin` to `tile` - 1, `margin` is negative,
            or `sigma` is not positive.

    References:
        Isensee et al., nnU-Net, Nature Methods 18 (2021), https://github.com/MIC-DKFZ/nnUNet.

    >>> tiles_along(10, 4, 1).starts
    array([0, 3, 6])
    >>> tiles_along(6, 4, 2).weights[:, :2].round(3)
    array([[1.   , 1.   ],
           [0.018, 0.982]])
    """
    if not 1 <= tile <= length:
        raise ValueError(f"a tile must have between 1 and {length} pixels, as many as the image; got {tile}")
    if margin < 0 or not 2 * margin <= overlap < tile:
        raise ValueError(
            f"overlap must be at least twice the margin of 0 or more, and less than the tile of {tile} pixels; "
            f"got overlap {overlap} and margin {margin}"
        )
    if not sigma > 0:
        raise ValueError(f"sigma must be more than 0; got {sigma}")
    count = 1 + math.ceil((length - tile) / (tile - overlap))
    starts = np.minimum(np.arange(count) * (tile - overlap), length - tile)
    indices = np.arange(tile)
    # A narrow Gaussian would underflow far from the middle, and a pixel without weight has no prediction.
    bell = np.maximum(np.exp(-(((indices - (tile - 1) / 2) / (sigma * tile)) ** 2) / 2), 1e-30)
    inside = (indices >= margin) | (starts == 0)[:, None]
    inside &= (indices < tile - margin) | (starts == length - tile)[:, None]
    raw = np.where(inside, bell, 0)
    total = np.zeros(length)
    for start, weights in zip(starts, raw, strict=True):
        total[start : start + tile] += weights
    return Tiles(starts, raw / total[starts[:, None] + indices])


def predict_tiled(
    image: Shaped[np.ndarray, "H W channels"],
    predict: Callable,
    *,
    tile: tuple[int, int],
    overlap: int,
    batch: int = 1,
    sigma: float = 0.125,
    margin: int = 0,
    out: Float[np.ndarray, "H W maps"] | None = None,
) -> Float[np.ndarray, "H W maps"]:
    r"""Returns the blended predictions of an image's overlapping tiles.

    .. math:: y(i, j) = \sum_t w_t(i, j) \, f(\text{tile}_t)(i, j), \qquad \sum_t w_t(i, j) = 1

    The weights are products of those of `tiles_along` for both axes. `predict` sees one shape for all images and is
    compiled once: the last batch is filled up, and an image smaller than a tile is continued by reflection at the
    bottom and the right. Two batches of tiles are on the device at a time, so that it need not wait for the host.

    Blend means only, such as probabilities or `statistics_to_maps`; compute a variance or an entropy from the blended
    means (`uncertainty_of`).

    The blend equals one pass over the whole image if each tile with a weight at a pixel holds the pixel's receptive
    field (`margin` at least its reach) and starts at a multiple of the network's stride, and if the network has neither
    global pooling nor statistics of the image (group norm).

    Args:
        image: `[H, W, channels]`, any dtype; may be memory-mapped, only tiles of it are read.
        predict: jitted function from tiles `[batch, th, tw, channels]` to maps `[batch, th, tw, k]`.
        tile: th and tw.
        overlap: pixels that neighbouring tiles share, at least, in both directions. Half a tile, as in nnU-Net, costs
            four times the work; a quarter less than twice.
        batch: tiles at a time.
        sigma: standard deviation of the Gaussian, as a fraction of the tile.
        margin: pixels along a tile's edges inside the image that get no weight; at most half of `overlap`.
        out: float32 or float64 array for the result, such as a `np.memmap`; None: a new float32 array.

    Returns:
        `[H, W, k]`, `out` if it is given. A NaN of a tile spreads to all pixels of the tile's weights.

    Raises:
        ValueError: an image of another rank or without pixels; tiles, overlap, sigma or margin as in `tiles_along`; a
            batch less than 1; a result of `predict` that is not `[batch, th, tw, k]`; `out` of another shape or dtype.

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
    axes = [
        tiles_along(max(length, side), side, overlap, sigma=sigma, margin=margin)
        for length, side in zip(size, tile, strict=True)
    ]
    # Pairs of (start, weights), one for the row and one for the column of the grid.
    corners = list(product(*(zip(axis.starts, axis.weights, strict=True) for axis in axes)))
    groups = [corners[start : start + batch] for start in range(0, len(corners), batch)]
    for group, maps in _predict_ahead(groups, image, predict, tile, batch):
        if maps.ndim != 4 or maps.shape[:3] != (batch, *tile):
            raise ValueError(f"predict must give maps [{batch}, {tile[0]}, {tile[1]}, k]; got shape {maps.shape}")
        if group is groups[0]:
            out = _zeros((*size, maps.shape[-1]), out)
        for ((top, rows), (left, columns)), one in zip(group, maps, strict=False):
            # Only pixels of the image, which may be smaller than the tile, and with a weight, because 0 · NaN is NaN.
            y, x = (slice(i[0], i[-1] + 1) for i in map(np.flatnonzero, (rows[: size[0]], columns[: size[1]])))
            weights = (rows[y, None] * columns[x]).astype(out.dtype)
            out[top + y.start : top + y.stop, left + x.start : left + x.stop] += weights[..., None] * one[y, x]
    return out


def _predict_ahead(
    groups: list, image: np.ndarray, predict: Callable, tile: tuple[int, int], batch: int
) -> Iterator[tuple[list, np.ndarray]]:
    """Yields each group of corners with the maps of its tiles; `predict` is called one group ahead."""
    ahead = None
    for group in groups:
        tiles = [_cut(image, int(top), int(left), tile) for (top, _), (left, _) in group]
        maps = predict(np.stack(tiles + tiles[-1:] * (batch - len(tiles))))
        if ahead is not None:
            yield ahead[0], np.asarray(jax.device_get(ahead[1]))
        ahead = group, maps
    yield ahead[0], np.asarray(jax.device_get(ahead[1]))


def _cut(image: np.ndarray, top: int, left: int, tile: tuple[int, int]) -> np.ndarray:
    part = np.asarray(image[top : top + tile[0], left : left + tile[1]])
    missing = [(0, side - have) for side, have in zip(tile, part.shape[:2], strict=True)]
    return np.pad(part, [*missing, (0, 0)], mode="reflect") if np.any(missing) else part


def _zeros(shape: tuple[int, ...], out: np.ndarray | None) -> np.ndarray:
    if out is None:
        return np.zeros(shape, np.float32)
    if out.shape != shape or out.dtype not in (np.float32, np.float64):
        raise ValueError(f"out must be float32 or float64 of shape {shape}; got {out.dtype} of shape {out.shape}")
    out[...] = 0
    return out
