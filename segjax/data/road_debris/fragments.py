"""Debris, and the flat marks that share its outlines and colours without its relief and its contact shadow."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from segjax.data.road_debris.geometry import (
    Layout,
    Stream,
    View,
    coverage,
    value_noise,
    window,
)


class Material(NamedTuple):
    """A class of debris: what its outline and surface may be."""

    sides: tuple[int, int]
    aspect: tuple[float, float]  # apparent height over width
    bend: float
    tint: tuple[float, float, float]
    contrast: tuple[float, float]  # log of its tone over the asphalt's
    relief: float


MATERIALS = {
    "stone": Material((6, 8), (0.6, 0.95), 0.0, (1.0, 0.99, 0.97), (-0.22, 0.22), 0.27),
    "tyre": Material((5, 6), (0.28, 0.5), 0.3, (1.0, 1.0, 1.01), (-0.42, -0.1), 0.25),
    "cardboard": Material((4, 5), (0.4, 0.8), 0.0, (1.08, 1.0, 0.88), (-0.12, 0.24), 0.22),
    "wood": Material((4, 4), (0.16, 0.34), 0.0, (1.07, 1.0, 0.90), (-0.22, 0.2), 0.24),
    "metal": Material((4, 6), (0.3, 0.7), 0.12, (0.98, 1.0, 1.03), (-0.22, 0.2), 0.28),
}
RADII = (0.012, 0.055)  # smallest and largest half width, image heights


class Piece(NamedTuple):
    """One outline on the road, in local coordinates: image offsets from (u, v) over `radius`, y downwards."""

    u: float
    v: float
    radius: float
    normals: Float[np.ndarray, "sides 2"]
    offsets: Float[np.ndarray, "sides"]
    bend: float
    tone: Float[np.ndarray, "3"]  # its colour over the asphalt's
    material: Material
    shift: float  # where in the noise it takes its texture from

    def sides(self, x, y):
        """Signed distance to each side over the radius, [sides, ...], negative inside."""
        y = y + self.bend * (x * x - 0.35)
        return np.stack([n[0] * x + n[1] * y - d for n, d in zip(self.normals, self.offsets, strict=True)])

    def distance(self, x, y):
        """Signed distance to the outline over the radius, negative inside."""
        return self.sides(x, y).max(axis=0)

    def area(self, margin: float) -> float:
        """Area inside the outline and `margin` (image heights) away from it, in square image heights."""
        steps = (np.arange(20) + 0.5) / 8.0 - 20.0 / 16.0
        inside = self.distance(steps[None, :], steps[:, None]) < -margin / self.radius
        return int(np.count_nonzero(inside)) / 8.0**2 * self.radius**2

    def local(self, scene: View):
        """The pixels that it and its shadow may touch, their view, and their local coordinates."""
        reach = 2.0 * self.radius + 2.0 * scene.pixel
        part = window(scene, self.u, self.v, reach, reach)
        seen = scene.crop(*part)
        return part, seen, (seen.u - self.u) / self.radius, (seen.v - self.v) / self.radius


def piece(random: Stream, road: Layout, near: Piece | None = None) -> Piece | None:
    """Draw an outline somewhere on the road (close to `near`, if given); None if that place is off the road."""
    material = MATERIALS[tuple(MATERIALS)[random.integer(0, len(MATERIALS) - 1)]]
    u, depth = random.uniform(-0.62, 0.62), 0.07 + (0.92 - road.horizon - 0.07) * random.uniform() ** 1.3
    if near is not None:
        u, depth = near.u + random.uniform(-0.15, 0.15), near.v - road.horizon + random.uniform(-0.06, 0.06)
        depth = min(max(depth, 0.07), 0.92 - road.horizon)
    v = road.horizon + road.roll * u + depth
    z = road.focal * road.camera_height / depth
    size = 0.07 * 5.0 ** random.uniform()
    radius = min(max(road.focal * size / z, RADII[0]), RADII[1])
    tone = np.array(material.tint) * random.colour(0.05) * np.exp(random.uniform(*material.contrast))
    bend, shift = material.bend * random.uniform(-1.0, 1.0), random.uniform(0.0, 200.0)
    s = u * z / road.focal - road.bend(z)
    if road.clearance(s, z) < 1.25 * radius + 0.025:
        return None
    normals, offsets = _outline(random, material)
    return Piece(u, v, radius, normals, offsets, bend, tone, material, shift)


def _outline(random, material):
    """Sides of an irregular polygon: squashed to the material's aspect, turned a little, cut flat at the base."""
    sides, aspect, turn = random.integer(*material.sides), random.uniform(*material.aspect), random.uniform(-0.35, 0.35)
    corners = np.arange(sides) + random.uniforms(-0.28, 0.28, sides)
    angles = random.uniform(0.0, 2.0 * np.pi) + corners * (2.0 * np.pi / sides)
    flat = np.stack([np.cos(angles), np.sin(angles) / aspect], axis=1)
    length = np.sqrt(flat[:, 0] ** 2 + flat[:, 1] ** 2)
    offsets = random.uniforms(0.62, 1.0, sides) / length
    flat = flat / length[:, None]
    cos, sin = np.cos(turn), np.sin(turn)
    normals = np.stack([cos * flat[:, 0] - sin * flat[:, 1], sin * flat[:, 0] + cos * flat[:, 1]], axis=1)
    cuts = np.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])  # its base, and its ends where two sides meet too far out
    cut_offsets = np.array([aspect * random.uniform(0.45, 0.8), 1.15, 1.15])
    return np.concatenate([normals, cuts]), np.concatenate([offsets, cut_offsets])


def mark(random: Stream, table, scene: View, colour: Float[np.ndarray, "h w 3"], asphalt, shape: Piece) -> None:
    """Paint the outline flat: a tar drip, a squashed leaf, a scrap of paper, a worn spot."""
    part, seen, x, y = shape.local(scene)
    distance = shape.distance(x, y) + 0.12 * value_noise(table, x * 2.0 + shape.shift, y * 2.0)
    cover = coverage(distance * shape.radius, seen.pixel + random.uniform(0.0, 0.25) * shape.radius)
    colour[part] *= (1.0 - random.uniform(0.0, 0.25) * coverage(distance - 0.15, 0.4))[..., None]
    _cover(colour[part], asphalt, shape.tone, random.uniform(0.3, 1.0), cover)


def _cover(colour, asphalt, tone, through, cover):
    """Lay a surface over the ground, whose grain shows `through` it."""
    surface = (asphalt + (colour - asphalt) * through) * tone
    colour += (surface - colour) * cover[..., None]


def debris(
    random: Stream, table, scene: View, colour: Float[np.ndarray, "h w 3"], asphalt, shape: Piece, sun_side: float
) -> None:
    """Paint the outline as a solid thing: a shadow at its foot, a lit top, a dark side, a thin bright rim."""
    part, seen, x, y = shape.local(scene)
    sides = shape.sides(x, y)
    distance, nearest = sides.max(axis=0), sides.argmax(axis=0)
    shadow = shape.distance(x + 0.3 * sun_side, y - 0.22)
    below = coverage(0.0 - y, 0.5) * coverage(shadow - 0.02, 0.3)
    colour[part] *= (1.0 - random.uniform(0.22, 0.42) * below)[..., None]

    relief, inside = shape.material.relief, np.clip(-distance, 0.0, 1.0)
    lit = (0.6 * sun_side * shape.normals[:, 0] - 0.8 * shape.normals[:, 1])[nearest]
    ridge = random.uniform(-0.15, 0.15) + random.uniform(-0.5, 0.5) * x
    tone = 0.6 * np.clip(1.0 - inside / 0.4, 0.0, 1.0) * lit + 0.28 - 0.56 * coverage(ridge - y, 0.2)
    tone += 0.5 * np.clip(1.0 - inside / 0.14, 0.0, 1.0) * (lit > 0.45)
    rough = 0.1 * value_noise(table, x * 3.5 + shape.shift, y * 3.5)
    tone = np.maximum(1.0 + relief * tone + rough, 0.1)[..., None] * shape.tone
    _cover(colour[part], asphalt, tone, random.uniform(0.2, 0.7), coverage(distance * shape.radius, seen.pixel))


def outline_masks(
    scene: View, shape: Piece, inner: float, outer: float
) -> tuple[tuple, Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """The part of the image, the pixels well inside (by `inner` image heights), and those in the doubtful ring."""
    part, _, x, y = shape.local(scene)
    distance = shape.distance(x, y) * shape.radius
    return part, distance < -inner, (distance >= -inner) & (distance < outer)
