"""Random numbers, noise, camera and road of a scene.

Image coordinates have no resolution: v runs from 0 (top) to 1 (bottom), u from -2/3 to 2/3. On the ground, z is the
distance ahead in metres, and s the distance to the right of the road's axis, which starts under the camera.
"""

import copy

import numpy as np
from jaxtyping import Float

ASPECT = 4.0 / 3.0
FARTHEST = 400.0  # metres; beyond it the ground is haze
_TABLE_BITS = 8  # the noise lattice repeats after 256 cells


class Stream:
    """Random numbers for one purpose of one scene: Philox keyed by (seed, index), with the purpose as its counter.

    One stream per purpose keeps other parts of the scene unchanged when a part draws more numbers. Only
    `Philox.random_raw` is used, because NumPy guarantees the bits of a bit generator but not `Generator`'s methods.
    """

    def __init__(self, seed: int, index: int, purpose: int):
        key = np.array([seed, index], np.uint64)
        self._bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, purpose], np.uint64))

    def uniform(self, low: float = 0.0, high: float = 1.0, count: int | None = None):
        """Returns a float in [low, high), or an array of `count`."""
        return low + (high - low) * ((self._bits.random_raw(count) >> 11) * 2.0**-53)

    def integer(self, low: int, high: int) -> int:
        """Returns an integer in [low, high]."""
        return low + int(self.uniform() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """Returns True with the given probability."""
        return self.uniform() < probability

    def colour(self, spread: float) -> Float[np.ndarray, "3"]:
        """Returns three factors in [1 - spread, 1 + spread)."""
        return self.uniform(1.0 - spread, 1.0 + spread, 3)

    def table(self) -> Float[np.ndarray, "65536"]:
        """Returns the lattice of `value_noise`: uniform on [-1, 1] in steps of 2^-15."""
        return self._quarters(1 << (2 * _TABLE_BITS - 2)).reshape(-1) * 2.0**-15 - 1.0

    def gaussian(self, count: int) -> Float[np.ndarray, "count"]:
        """Returns sums of four 16-bit uniforms (Irwin-Hall) with zero mean and unit variance; all sums are exact."""
        return (self._quarters(count).sum(axis=0) - 4 * 32767.5) * (np.sqrt(3.0) / 65536.0)

    def _quarters(self, count):
        """Returns the 16-bit parts of `count` words as float64 [4, count], independent of the byte order."""
        words, mask = self._bits.random_raw(count), np.uint64(0xFFFF)
        return np.stack([(words >> np.uint64(shift)) & mask for shift in (0, 16, 32, 48)]).astype(np.float64)


def value_noise(
    table: Float[np.ndarray, "65536"], x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Returns smooth noise in [-1, 1] at the points (x, y), continuous in both, from one value per unit cell."""
    mask = (1 << _TABLE_BITS) - 1
    left, top = np.floor(x), np.floor(y)
    across, down = x - left, y - top
    across *= across * (3.0 - 2.0 * across)
    down *= down * (3.0 - 2.0 * down)
    column, row = left.astype(np.int64), top.astype(np.int64)
    columns = column & mask, (column + 1) & mask
    rows = (row & mask) << _TABLE_BITS, ((row + 1) & mask) << _TABLE_BITS
    corners = [[table.take(r + c) for c in columns] for r in rows]
    above, below = (first + (second - first) * across for first, second in corners)
    return above + (below - above) * down


def coverage(distance: Float[np.ndarray, "..."], softness: float | Float[np.ndarray, "..."]):
    """Returns the fraction of a pixel inside a shape, linear over `softness`; negative distances are inside."""
    return np.clip(0.5 - distance / softness, 0.0, 1.0)


def blend(colour: Float[np.ndarray, "h w 3"], surface: Float[np.ndarray, "..."], cover: Float[np.ndarray, "h w"]):
    """Paints `surface` over `colour` in place, with the opacity `cover` per pixel."""
    colour += (surface - colour) * cover[..., None]


class Road:
    """Camera and road, drawn at random. Lengths in metres, image lengths in image heights."""

    def __init__(self, random: Stream):
        self.lanes = random.integer(1, 3)
        self.lane_width = random.uniform(2.9, 3.6)
        # s of the leftmost lane line
        self.first_line = -(random.integer(0, self.lanes - 1) + random.uniform(0.38, 0.62)) * self.lane_width
        self.focal = random.uniform(0.95, 1.3)
        self.camera_height = random.uniform(1.2, 2.1)
        self.horizon = random.uniform(0.27, 0.43)  # v of the horizon at u = 0
        self.roll = random.uniform(-0.035, 0.035)  # dv/du of the horizon
        self.heading = random.uniform(-0.05, 0.05)
        self.curvature = (1.0 if random.chance(0.5) else -1.0) * random.uniform(0.0, 1.0) ** 2 / 200.0
        self.left = self.first_line - random.uniform(0.25, 1.0)  # s of the left road edge
        self.right = self.first_line + self.lanes * self.lane_width + random.uniform(0.25, 1.0)

    def bend(self, z):
        """Returns the x of the road's axis (s = 0) at the distance z."""
        return self.heading * z + 0.5 * self.curvature * z * z

    def project(self, s, z):
        """Returns the image coordinates (u, v) of the ground point (s, z)."""
        u = self.focal * (s + self.bend(z)) / z
        return u, self.horizon + self.roll * u + self.focal * self.camera_height / z

    def clearance(self, s: float, z: float) -> float:
        """Returns the image heights from the ground point (s, z) to the nearer road edge, negative outside the road."""
        return min(  # in the image, an edge at s has the slope s / camera_height, hence the square root
            sign * (edge - s) * self.focal / z / (1.0 + (edge / self.camera_height) ** 2) ** 0.5
            for sign, edge in ((1.0, self.right), (-1.0, self.left))
        )


class View:
    """Geometry per pixel of an image or a part of it."""

    def __init__(self, road: Road, table: Float[np.ndarray, "65536"], height: int, width: int):
        self.road, self.table = road, table
        self.u = ((np.arange(width) + 0.5) / width - 0.5)[None, :] * ASPECT
        self.v = ((np.arange(height) + 0.5) / height)[:, None]
        self.drop = self.v - road.roll * self.u - road.horizon  # v below the horizon; negative in the sky
        reach = road.focal * road.camera_height
        self.z = reach / np.maximum(self.drop, reach / FARTHEST)  # `FARTHEST` above the horizon
        self.s = self.u * self.z / road.focal - road.bend(self.z)
        self.pixel = max(1.0 / height, ASPECT / width)  # side of a pixel in image heights

    def crop(self, rows: slice, columns: slice = slice(None)) -> "View":
        """Returns the view of a part of the image."""
        part = copy.copy(self)
        part.u, part.v = self.u[:, columns], self.v[rows]
        part.drop, part.z, part.s = (array[rows, columns] for array in (self.drop, self.z, self.s))
        return part

    def window(self, u: float, v: float, reach_u: float, reach_v: float) -> tuple[slice, slice]:
        """Returns row and column slices of the pixels within (reach_u, reach_v) of (u, v), possibly empty."""
        rows = np.searchsorted(self.v[:, 0], (v - reach_v, v + reach_v))
        columns = np.searchsorted(self.u[0], (u - reach_u, u + reach_u))
        return slice(int(rows[0]), int(rows[1])), slice(int(columns[0]), int(columns[1]))

    def noise(self, x, y):
        """Returns the scene's `value_noise` at (x, y)."""
        return value_noise(self.table, x, y)

    def grain(self, cell: float, stretch: float, shift: float) -> Float[np.ndarray, "h w"]:
        """Returns noise on the ground in cells of `cell` m across and cell * stretch along, faded against aliasing."""
        footprint = self.z * self.pixel / self.road.focal
        depth = footprint * self.z / self.road.camera_height
        fade = 1.0 / (1.0 + (0.7 * footprint / cell) ** 2 + (0.5 * depth / (cell * stretch)) ** 2)
        return self.noise(self.s / cell + shift, self.z / (cell * stretch) + 3.7 * shift) * fade
