"""Prediction of images of any size, larger than the device's memory too: tile by tile, blended by Gaussian weights.

Tiles stand on a grid and their weights are products of one factor per row and one per column. So the weights are
normalized before anything is predicted, and the blended map is a plain sum, the only array of the image's size.
"""

import math
from collections.abc import Callable
from itertools import chain, pairwise, product
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Shaped


def tiles_along(length: int, tile: int, overlap: int) -> tuple[Integer[np.ndarray, "n"], Float[np.ndarray, "n {tile}"]]:
    r"""Returns starts `[n]` and float64 weights `[n, T]` of tiles along one axis, the last one ending with the axis.

    .. math:: w_t(x) = \frac{g(x - s_t)}{\sum_u g(x - s_u)}, \qquad g(i) = \exp \frac{-(i - (T - 1) / 2)^2}{2 (T / 8)^2}

    This is one axis of nnU-Net's importance map (Isensee et al., Nature Methods 18, 2021): near the edges of a tile,
    where the network lacks context, the weight is small. A pixel that only one tile holds has the weight 1, exactly.

    >>> starts, weights = tiles_along(6, 4, 2)
    >>> print(starts, weights[:, :2].round(3).tolist())
    [0 2] [[1.0, 1.0], [0.018, 0.982]]
    """
    if not 1 <= tile <= length:
        raise ValueError(f"a tile must have between 1 and {length} pixels, as many as the image; got {tile}")
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

    Weights are products of `tiles_along` for both axes. `predict` sees one shape and is compiled once: the last batch
    is filled up, and a smaller image is continued by reflection at the bottom and the right.

    Blend means only, such as probabilities or `statistics_to_maps`; compute a variance or an entropy from the blended
    means (`uncertainty_of`). A pixel whose tiles all hold its receptive field, and start at multiples of the network's
    stride, gets the prediction of the whole image; global pooling and group norm see the tile instead.

    Args:
        image: `[H, W, channels]`, any dtype; may be memory-mapped, only tiles of it are read.
        predict: jitted function from tiles `[batch, th, tw, channels]` to maps `[batch, th, tw, k]`.
        tile: th and tw.
        overlap: pixels that neighbouring tiles share, at least. Half a tile, as in nnU-Net, costs four times the work,
            a quarter less than twice.
        batch: tiles at a time.
        out: float32 or float64 array for the result, such as a `np.memmap`; None: a new float32 array.

    Returns:
        `[H, W, k]`, `out` if it is given. A NaN of a tile is a NaN of the result.

    Raises:
        ValueError: an image of another rank or without pixels; a tile or an overlap as in `tiles_along`; a
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
            out = _zeros((*size, maps.shape[-1]), out)
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


def _zeros(shape: tuple[int, ...], out: np.ndarray | None) -> np.ndarray:
    if out is None:
        return np.zeros(shape, np.float32)
    if out.shape != shape or out.dtype not in (np.float32, np.float64):
        raise ValueError(f"out must be float32 or float64 of shape {shape}; got {out.dtype} of shape {out.shape}")
    out[...] = 0
    return out
