"""Pixels of polygons, ellipses, lines and run lengths, as labelling tools define objects.

Coordinates are continuous: pixel i covers [i, i + 1), and it belongs to an outline if its centre is inside, so that two
outlines with a common edge share no pixel and leave no gap.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from segjax.data.io import DataError


def box_corners(left: float, top: float, right: float, bottom: float, turn: float = 0.0) -> Float[np.ndarray, "4 2"]:
    """Returns the corners of a box that is turned clockwise about its centre by `turn` radians."""
    corners, centre = (
        np.array([(left, top), (right, top), (right, bottom), (left, bottom)]),
        (left + right, top + bottom),
    )
    cos, sin = np.cos(turn), np.sin(turn)
    return (corners - np.array(centre) / 2) @ np.array([(cos, sin), (-sin, cos)]) + np.array(centre) / 2


def _window(low: np.ndarray, high: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns top, left, bottom and right of the pixels whose centres may lie between two points (x, y)."""
    limits = np.clip(np.floor([low[::-1], high[::-1] + 1]), 0, size).astype(int)
    return (*limits[0].tolist(), *np.maximum(*limits).tolist())


def fill(polygons: Sequence[Float[np.ndarray, "points 2"]], size: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """Returns top, left and pixels of the union of polygons of points (x, y), each filled by the even-odd rule.

    >>> fill([np.array([(1.0, 0.0), (3.0, 0.0), (3.0, 1.0), (1.0, 1.0)])], (2, 4))[2].astype(int).tolist()
    [[1, 1, 0], [0, 0, 0]]
    """
    points = np.concatenate(polygons)
    top, left, bottom, right = _window(points.min(axis=0), points.max(axis=0), size)
    union = np.zeros((bottom - top, right - left), bool)
    for polygon in polygons:
        (x, y), (next_x, next_y) = polygon.T, np.roll(polygon, -1, axis=0).T
        # One entry per edge and row whose centres it crosses. A pixel is inside if an odd number of these crossings is
        # to the left of its centre.
        first, last = (np.clip(np.ceil(f(y, next_y) - 0.5), top, bottom).astype(int) for f in (np.minimum, np.maximum))
        lengths = last - first
        edge = np.repeat(np.arange(len(x)), lengths)
        row = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + first[edge]
        at = x[edge] + (row + 0.5 - y[edge]) * (next_x - x)[edge] / (next_y - y)[edge]
        column = np.clip(np.ceil(at - 0.5), left, right).astype(int) - left
        crossings = np.zeros((union.shape[0], union.shape[1] + 1), np.int32)
        np.add.at(crossings, (row - top, column), 1)
        union |= np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1
    return top, left, union


def fill_ellipse(
    centre: Float[np.ndarray, "2"], radii: tuple[float, float], turn: float, size: tuple[int, int]
) -> tuple[int, int, np.ndarray]:
    """Returns top, left and pixels of an ellipse, turned clockwise by `turn` radians; see `fill`."""
    reach = max(radii)
    top, left, bottom, right = _window(centre - reach, centre + reach, size)
    dy, dx = np.arange(top, bottom)[:, None] + 0.5 - centre[1], np.arange(left, right)[None] + 0.5 - centre[0]
    along, across = np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx
    return top, left, (along * radii[1]) ** 2 + (across * radii[0]) ** 2 < (radii[0] * radii[1]) ** 2


def draw_lines(
    lines: Sequence[Float[np.ndarray, "points 2"]], size: tuple[int, int], width: float | None, where: str
) -> tuple[int, int, np.ndarray]:
    """Returns top, left and the pixels whose centres are at most width / 2 pixels from one of the lines.

    Raises: DataError, which begins with `where`, if `width` is None.
    """
    if width is None:
        raise DataError(f"{where}: a line or point has no area; --line_width=3 draws it 3 pixels wide")
    points = np.concatenate(list(lines))
    top, left, bottom, right = _window(points.min(axis=0) - width / 2, points.max(axis=0) + width / 2, size)
    y, x = np.mgrid[top:bottom, left:right] + 0.5
    drawn = np.zeros(x.shape, bool)
    for line in lines:
        for start, end in zip(line[: max(1, len(line) - 1)], line[min(1, len(line) - 1) :], strict=True):
            step = end - start
            along = ((x - start[0]) * step[0] + (y - start[1]) * step[1]) / max(step @ step, 1e-12)
            along = np.clip(along, 0, 1)
            drawn |= np.hypot(x - start[0] - along * step[0], y - start[1] - along * step[1]) <= width / 2
    return top, left, drawn


def clip_window(top: int, left: int, inside: np.ndarray, size: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """Returns a window without what is outside of the image."""
    first_row, first_column = max(0, -top), max(0, -left)
    inside = inside[first_row : max(0, size[0] - top), first_column : max(0, size[1] - left)]
    return top + first_row, left + first_column, inside


def decompress(counts: str) -> list[int]:
    """Returns the run lengths of COCO's compressed encoding, in which five bits and a flag make a character.

    From the third on, each length is the difference to the last but one (pycocotools, `rleFrString`).

    >>> decompress("52203")
    [5, 2, 2, 2, 5]
    """
    lengths: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:  # more follow
            continue
        if bits & 0x10:  # negative
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return lengths


def runs_to_mask(lengths: Sequence[int], size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Returns the mask of run lengths by rows, of which the first, third, … are outside.

    Raises: ValueError if they do not add up to the number of pixels.

    >>> runs_to_mask([1, 2, 1], (2, 2)).tolist()
    [[False, True], [True, False]]
    """
    if min(lengths, default=0) < 0 or sum(lengths) != size[0] * size[1]:
        raise ValueError(f"run lengths add up to {sum(lengths)}; expected {size[0] * size[1]}")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(size)
