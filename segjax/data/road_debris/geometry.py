"""Camera, road and random numbers of a scene: what every other part of the drawing is a function of.

Image coordinates have no resolution: v runs from 0 (top) to 1 (bottom), u from -2/3 to 2/3, so the scene is 4:3. On the
ground, z is the distance ahead and s the distance to the right of the road's axis, which starts under the camera, both
in metres.

Random numbers are the same on every machine and under every NumPy version: NumPy guarantees the bits of a bit
generator and not the methods of `Generator`, so only `Philox.random_raw` is used."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_TABLE_BITS = 8  # the noise lattice repeats after 256 cells


class Stream:
    """The random numbers of one purpose of one scene: Philox keyed by (seed, index), its counter by the purpose.

    A purpose of its own for each part of the scene keeps the other parts unchanged when one part draws more numbers.
    """

    def __init__(self, seed: int, index: int, purpose: int):
        key = np.array([seed, index], np.uint64)
        counter = np.array([0, 0, 0, purpose], np.uint64)
        self._bits = np.random.Philox(key=key, counter=counter)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float in [low, high)."""
        return low + (high - low) * (self._bits.random_raw() >> 11) * 2.0**-53

    def uniforms(self, low: float, high: float, count: int) -> Float[np.ndarray, "count"]:
        """As many floats in [low, high)."""
        return low + (high - low) * ((self._bits.random_raw(count) >> np.uint64(11)) * 2.0**-53)

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + int(self.uniform() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform() < probability

    def sign(self) -> float:
        """-1.0 or 1.0."""
        return 1.0 if self.chance(0.5) else -1.0

    def colour(self, spread: float) -> Float[np.ndarray, "3"]:
        """Three factors, each in [1 - spread, 1 + spread)."""
        return self.uniforms(1.0 - spread, 1.0 + spread, 3)

    def table(self) -> Float[np.ndarray, "65536"]:
        """The lattice of `value_noise`: uniform on [-1, 1], steps of 2^-15."""
        words = self._bits.random_raw(1 << (2 * _TABLE_BITS - 2))
        return _halves(words).reshape(-1) * 2.0**-15 - 1.0

    def gaussian(self, count: int) -> Float[np.ndarray, "count"]:
        """Zero mean, unit variance: the sum of four 16-bit uniforms (Irwin-Hall), which needs integer sums only."""
        quarters = _halves(self._bits.random_raw(count))
        return (quarters.sum(axis=0) - 4 * 32767.5) * (np.sqrt(3.0) / 65536.0)


def value_noise(
    table: Float[np.ndarray, "65536"], x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Smooth noise in [-1, 1] at the points (x, y), one random value for each unit cell's corner.

    Continuous in x and y, so that a last-bit difference in a coordinate stays a last-bit difference in the noise.
    """
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


def _halves(words):
    """The four 16-bit parts of each 64-bit word, as float64 [4, n], in an order that no byte order can change."""
    return np.stack([(words >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)]).astype(np.float64)


ASPECT = 4.0 / 3.0
FARTHEST = 400.0  # metres; beyond it the ground is haze


class Layout(NamedTuple):
    """Camera and road. Lengths in metres, image lengths in image heights."""

    focal: float
    camera_height: float
    horizon: float  # v of the horizon at u = 0
    roll: float  # dv/du of the horizon
    heading: float
    curvature: float
    lanes: int
    lane_width: float
    left: float  # s of the left road edge
    right: float
    first_line: float  # s of the leftmost lane line

    def bend(self, z):
        """X of the road's axis (s = 0) at the distance z."""
        return self.heading * z + 0.5 * self.curvature * z * z

    def project(self, s, z):
        """Image coordinates (u, v) of the ground point (s, z)."""
        u = self.focal * (s + self.bend(z)) / z
        return u, self.horizon + self.roll * u + self.focal * self.camera_height / z

    def clearance(self, s: float, z: float) -> float:
        """How far inside the road the ground point (s, z) appears: image heights to the nearer edge, negative outside.

        An edge at s leaves the foot of the image at the slope s / camera_height, hence the square root.
        """
        return min(
            sign * (edge - s) * self.focal / z / (1.0 + (edge / self.camera_height) ** 2) ** 0.5
            for sign, edge in ((1.0, self.right), (-1.0, self.left))
        )


class View(NamedTuple):
    """What each pixel sees. Above the horizon z is `FARTHEST`."""

    u: Float[np.ndarray, "1 w"]
    v: Float[np.ndarray, "h 1"]
    drop: Float[np.ndarray, "h w"]  # v below the horizon; negative in the sky
    z: Float[np.ndarray, "h w"]
    s: Float[np.ndarray, "h w"]
    pixel: float  # a pixel's side, in image heights

    def crop(self, rows: slice, columns: slice = slice(None)) -> "View":
        """The same view of a part of the image."""
        ground = (array[rows, columns] for array in (self.drop, self.z, self.s))
        return View(self.u[:, columns], self.v[rows], *ground, self.pixel)


def layout(random: Stream) -> Layout:
    """Draw a camera and a road."""
    lanes = random.integer(1, 3)
    lane_width = random.uniform(2.9, 3.6)
    first_line = -(random.integer(0, lanes - 1) + random.uniform(0.38, 0.62)) * lane_width
    return Layout(
        focal=random.uniform(0.95, 1.3),
        camera_height=random.uniform(1.2, 2.1),
        horizon=random.uniform(0.27, 0.43),
        roll=random.uniform(-0.035, 0.035),
        heading=random.uniform(-0.05, 0.05),
        curvature=random.sign() * random.uniform(0.0, 1.0) ** 2 / 200.0,
        lanes=lanes,
        lane_width=lane_width,
        left=first_line - random.uniform(0.25, 1.0),
        right=first_line + lanes * lane_width + random.uniform(0.25, 1.0),
        first_line=first_line,
    )


def view(road: Layout, height: int, width: int) -> View:
    """Look through the camera at the pixel centres of a height x width image."""
    u = ((np.arange(width) + 0.5) / width - 0.5)[None, :] * ASPECT
    v = ((np.arange(height) + 0.5) / height)[:, None]
    drop = v - road.roll * u - road.horizon
    reach = road.focal * road.camera_height
    z = reach / np.maximum(drop, reach / FARTHEST)
    return View(u, v, drop, z, u * z / road.focal - road.bend(z), max(1.0 / height, ASPECT / width))


def coverage(distance: Float[np.ndarray, "..."], softness: float | Float[np.ndarray, "..."]):
    """The share of a pixel inside a shape: 1 well inside (distance < 0), 0 well outside, linear over `softness`."""
    return np.clip(0.5 - distance / softness, 0.0, 1.0)


def window(scene: View, u: float, v: float, reach_u: float, reach_v: float) -> tuple[slice, slice]:
    """The pixels within (reach_u, reach_v) of the image point (u, v), as row and column slices, possibly empty."""
    rows = np.searchsorted(scene.v[:, 0], (v - reach_v, v + reach_v))
    columns = np.searchsorted(scene.u[0], (u - reach_u, u + reach_u))
    return slice(int(rows[0]), int(rows[1])), slice(int(columns[0]), int(columns[1]))
