"""Prediction of images of any size, larger than the device's memory too: tile by tile, blended by Gaussian weights.

The tiles of an image stand on a grid and their weights are products of one factor a row and one a column. So the
weights can be normalised before anything is predicted: the blended map is a plain sum, the only array of the image's
size, and no map of weights is kept.
"""

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Integer, Shaped


class Tiles(NamedTuple):
    """Where the tiles along one axis of an image begin, and what they weigh there.

    Attributes:
        starts: `[n]`, their first pixels.
        weights: `[n, tile]`, float64; at every pixel of the axis the weights of the tiles that hold it add up to 1.
    """

    starts: Integer[np.ndarray, "n"]
    weights: Float[np.ndarray, "n tile"]


def tiles_along(length: int, tile: int, overlap: int, *, sigma: float = 0.125, margin: int = 0) -> Tiles:
    r"""The tiles along one axis: a step of `tile - overlap` pixels, the last one shifted back to end with the axis.

    .. math:: w_t(x) = \frac{g(x - s_t)}{\sum_u g(x - s_u)}, \qquad g(i) = \exp \frac{-(i - (T - 1) / 2)^2}{2 (σ T)^2}

    nnU-Net's importance map, one axis of it: a tile is trusted most in its middle, for near its edges the network did
    not see what lies beyond. At σ = 1/8 the weight of an edge is e^-8 of the middle's.

    Args:
        length: L, pixels of the axis, at least `tile`.
        tile: T, pixels.
        overlap: pixels that a tile shares with the one before, at least 2 · `margin` and less than T.
        sigma: σ, the standard deviation as a share of T.
        margin: pixels along an edge inside the image that weigh nothing. Where the network's receptive field reaches no
            further than this, tiles show what the whole image does.

    Returns:
        `Tiles`. A pixel that only one tile holds has the weight 1, exactly.

    Raises:
        ValueError: `tile` is not in 1 … `length`, `overlap` not in 2 · `margin` … `tile` - 1, `margin` is negative, or
            `sigma` is not positive.

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
    places = np.arange(tile)
    # A narrow Gaussian would underflow far from the middle, and a pixel without weight has no prediction.
    bell = np.maximum(np.exp(-(((places - (tile - 1) / 2) / (sigma * tile)) ** 2) / 2), 1e-30)
    inside = (places >= margin) | (starts == 0)[:, None]
    inside &= (places < tile - margin) | (starts == length - tile)[:, None]
    raw = np.where(inside, bell, 0)
    total = np.zeros(length)
    for start, weights in zip(starts, raw, strict=True):
        total[start : start + tile] += weights
    return Tiles(starts, raw / total[starts[:, None] + places])


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
    r"""The blended predictions of an image's overlapping tiles.

    .. math:: y(i, j) = \sum_t w_t(i, j) \, f(\text{tile}_t)(i, j), \qquad \sum_t w_t(i, j) = 1

    with the products of `tiles_along`'s weights of both axes. `predict` sees one shape whatever the image's, and so is
    compiled once: the last batch is filled up, and an image smaller than a tile is continued by reflection at the
    bottom and the right. Two batches of tiles are on the device at a time, so that it need not wait for the host.

    What is blended has to be a mean, such as probabilities or `packed` moments: a variance or an entropy of blended
    predictions is computed of the blended means (`segjax.inference.uncertainty_of`), not blended itself.

    Blended tiles are what one pass over the whole image gives where every tile that weighs there holds all of the
    pixel's receptive field (`margin` at least its reach makes that all pixels), and starts at a multiple of the
    network's stride, so that its pooling meets the same pixels. Global pooling and statistics of the image itself
    (group norm) see a tile instead of the image, whatever the margin.

    Args:
        image: `[H, W, channels]`, any dtype; may be memory-mapped, only tiles of it are read.
        predict: tiles `[batch, th, tw, channels]` to maps `[batch, th, tw, k]`, a jitted function.
        tile: th and tw.
        overlap: pixels that neighbouring tiles share, at least, in both directions. Half a tile is nnU-Net's, and four
            times the work; a quarter is less than twice.
        batch: tiles at a time.
        sigma: of the Gaussian, as a share of the tile.
        margin: pixels along a tile's edges inside the image that weigh nothing; `overlap` is at least twice as many.
        out: float32 or float64, where to write the result, such as a `np.memmap`; None: a new float32 array.

    Returns:
        `[H, W, k]`, `out` if it is given. Finite where `predict` is; a NaN of a tile is one of all that it covers with
        a weight.

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
    # The weights of a row and a column of tiles, which all their tiles share.
    corners = list(product(*(zip(axis.starts, axis.weights, strict=True) for axis in axes)))
    groups = [corners[start : start + batch] for start in range(0, len(corners), batch)]
    for group, maps in _maps_of(groups, image, predict, tile, batch):
        if maps.ndim != 4 or maps.shape[:3] != (batch, *tile):
            raise ValueError(f"predict must give maps [{batch}, {tile[0]}, {tile[1]}, k]; got shape {maps.shape}")
        out = _target(out, (*size, maps.shape[-1])) if group is groups[0] else out
        for ((top, rows), (left, columns)), one in zip(group, maps, strict=False):
            # No further than the image, which may be smaller than the tile; and 0 · NaN is NaN: what weighs nothing is
            # left out.
            y, x = (slice(i[0], i[-1] + 1) for i in map(np.flatnonzero, (rows[: size[0]], columns[: size[1]])))
            weights = (rows[y, None] * columns[x]).astype(out.dtype)
            out[top + y.start : top + y.stop, left + x.start : left + x.stop] += weights[..., None] * one[y, x]
    return out


def _maps_of(
    groups: list, image: np.ndarray, predict: Callable, tile: tuple[int, int], batch: int
) -> Iterator[tuple[list, np.ndarray]]:
    """Each group of corners with what `predict` says of its tiles, which is called one group ahead."""
    ahead = None
    for group in groups:
        tiles = [_tile(image, (int(top), int(left)), tile) for (top, _), (left, _) in group]
        found = predict(np.stack(tiles + tiles[-1:] * (batch - len(tiles))))
        if ahead is not None:
            yield ahead[0], np.asarray(jax.device_get(ahead[1]))
        ahead = group, found
    yield ahead[0], np.asarray(jax.device_get(ahead[1]))


def _tile(image: np.ndarray, corner: tuple[int, int], tile: tuple[int, int]) -> np.ndarray:
    part = np.asarray(image[tuple(slice(start, start + side) for start, side in zip(corner, tile, strict=True))])
    missing = [(0, side - have) for side, have in zip(tile, part.shape[:2], strict=True)]
    return np.pad(part, [*missing, (0, 0)], mode="reflect") if np.any(missing) else part


def _target(out: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if out is None:
        return np.zeros(shape, np.float32)
    if out.shape != shape or out.dtype not in (np.float32, np.float64):
        raise ValueError(f"out must be float32 or float64 of shape {shape}; got {out.dtype} of shape {out.shape}")
    out[...] = 0
    return out
