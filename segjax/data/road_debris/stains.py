"""Hard negatives in the plane of the road, labelled road: stains, repair patches, cracks and covers."""

import numpy as np
from jaxtyping import Float

from segjax.data.road_debris.geometry import ASPECT, Layout, View, coverage, window
from segjax.data.road_debris.randomness import Stream, value_noise


def draw(random: Stream, table, road: Layout, scene: View, colour: Float[np.ndarray, "h w 3"]) -> None:
    """Draw all of a scene's flat disturbances onto `colour`."""
    for _ in range(random.integer(0, 2)):
        _patch(random, table, road, scene, colour)
    for _ in range(random.integer(0, 3)):
        _crack(random, table, road, scene, colour)
    for _ in range(random.integer(1, 6)):
        _stain(random, table, road, scene, colour)
    for _ in range(random.integer(0, 1)):
        _cover(random, road, scene, colour)


def _place(random, road):
    """A ground point (s, z) on the road, spread evenly over the rows of the image rather than over the metres."""
    depth = random.uniform(0.07, 0.92 - road.horizon)
    z = road.focal * road.camera_height / depth
    seen = min(0.6 * z / road.focal, max(-road.left, road.right))
    centre = road.bend(z)
    low, high = max(road.left, -seen - centre), min(road.right, seen - centre)
    return random.uniform(low, high) if low < high else 0.0, z


def _stretch(road, scene, z0, z1):
    """The rows that see the ground from z0 to z1, and the softness of an edge there along and across."""
    tilt = abs(road.roll) * ASPECT / 2.0
    reach = road.focal * road.camera_height
    far, near = road.horizon + reach / max(z1, 0.5) - tilt, road.horizon + reach / max(z0, 0.5) + tilt
    rows, _ = window(scene, 0.0, 0.5 * (far + near), ASPECT, 0.5 * (near - far) + scene.pixel)
    seen = scene.crop(rows)
    across = seen.z * seen.pixel / road.focal
    return rows, seen, across, across * seen.z / road.camera_height


def _multiply(colour, rows, road, seen, tone, cover):
    inside = (seen.s > road.left) & (seen.s < road.right)
    colour[rows] *= 1.0 + (tone - 1.0) * (cover * inside)[..., None]


def _stain(random, table, road, scene, colour):
    s, z = _place(random, road)
    size = random.uniform(0.1, 0.5)
    long = size * random.uniform(1.0, 2.0 + 0.6 * z / road.camera_height)
    tone = np.exp(random.uniform(-0.5, 0.12)) * random.colour(0.05)
    sharp, shift = random.uniform(0.1, 0.6), random.uniform(0.0, 99.0)
    rows, seen, across, along = _stretch(road, scene, z - 1.6 * long, z + 1.6 * long)
    x, y = (seen.s - s) / size, (seen.z - z) / long
    ragged = 0.45 * value_noise(table, x * 1.3 + shift, y * 1.3) + 0.2 * value_noise(table, x * 4.0, y * 4.0 + shift)
    soft = sharp + np.minimum(across / size + along / long, 2.0)
    _multiply(colour, rows, road, seen, tone, coverage(np.sqrt(x * x + y * y) - 0.9 + ragged, soft))


def _patch(random, table, road, scene, colour):
    s, z = _place(random, road)
    half_width, half_length = random.uniform(0.3, 1.4), random.uniform(0.5, 3.0)
    tone, skew = np.exp(random.uniform(-0.3, 0.2)) * random.colour(0.03), random.uniform(-0.3, 0.3)
    seam = random.uniform(0.55, 0.9) if random.chance(0.6) else 1.0
    rows, seen, across, along = _stretch(road, scene, z - 1.3 * half_length, z + 1.3 * half_length)
    uneven = 0.06 * value_noise(table, seen.s * 3.0, seen.z * 2.0)
    sideways = np.abs(seen.s - s - skew * (seen.z - z)) - half_width + uneven
    lengthways = np.abs(seen.z - z) - half_length + uneven
    cover = coverage(sideways, across) * coverage(lengthways, along)
    _multiply(colour, rows, road, seen, tone, cover)
    rim = coverage(sideways - 0.05, across) * coverage(lengthways - 0.08, along) - cover
    _multiply(colour, rows, road, seen, seam, np.clip(rim, 0.0, 1.0))


def _crack(random, table, road, scene, colour):
    s, z = _place(random, road)
    half, width = random.uniform(0.4, 3.0), random.uniform(0.012, 0.04)
    tone, shift, lengthways = random.uniform(0.35, 0.7), random.uniform(0.0, 99.0), random.chance(0.5)
    extent = half * 2.0 if lengthways else 0.9 + 0.2 * half
    rows, seen, across, along = _stretch(road, scene, z - extent, z + extent)
    if lengthways:
        walk, off, end, soft = seen.z, seen.s - s, np.abs(seen.z - z) - 2.0 * half, across
    else:
        walk, off, end, soft = seen.s, seen.z - z - 0.2 * (seen.s - s), np.abs(seen.s - s) - half, along
    lane = np.zeros(())
    wander = 0.35 * value_noise(table, walk * 0.9 + shift, lane) + 0.12 * value_noise(table, walk * 4.0 + shift, lane)
    cover = coverage(np.abs(off - wander) - width, soft) * np.minimum(1.0, 2.0 * width / soft) * coverage(end, 0.5)
    _multiply(colour, rows, road, seen, tone, cover)


def _cover(random, road, scene, colour):
    s, z = _place(random, road)
    radius, tone, ring = random.uniform(0.25, 0.36), random.uniform(0.65, 1.1), random.uniform(0.5, 0.8)
    rows, seen, across, along = _stretch(road, scene, z - 1.2 * radius, z + 1.2 * radius)
    distance = np.sqrt((seen.s - s) ** 2 + (seen.z - z) ** 2) - radius
    soft = np.minimum(along, 4.0 * across)
    _multiply(colour, rows, road, seen, tone, coverage(distance, soft))
    _multiply(colour, rows, road, seen, ring, coverage(np.abs(distance) - 0.02, soft) * np.minimum(1.0, 0.06 / soft))
