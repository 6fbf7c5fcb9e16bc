"""The pinhole camera, the road it stands on, and where each pixel of an image of any size looks.

Image coordinates have no resolution: v runs from 0 (top) to 1 (bottom), u from -2/3 to 2/3, so the scene is 4:3. On the
ground, z is the distance ahead and s the distance to the right of the road's axis, which starts under the camera, both
in metres.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from segjax.data.road_debris.randomness import Stream

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
