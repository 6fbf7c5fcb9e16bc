"""What stands behind and beside the road: the sky, far hills and trees, bushes and posts."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from segjax.data.road_debris.geometry import Layout, View, coverage, window
from segjax.data.road_debris.randomness import Stream, value_noise

# Zenith and horizon colours.
SKIES = {
    "clear": ((0.36, 0.53, 0.78), (0.74, 0.82, 0.88)),
    "hazy": ((0.55, 0.65, 0.77), (0.80, 0.83, 0.84)),
    "overcast": ((0.66, 0.69, 0.72), (0.80, 0.82, 0.83)),
    "evening": ((0.45, 0.48, 0.62), (0.86, 0.74, 0.62)),
}


class Sky(NamedTuple):
    """Everything behind the ground's horizon."""

    colour: Float[np.ndarray, "h w 3"]
    haze: Float[np.ndarray, "3"]  # what far things fade to
    skyline: Float[np.ndarray, "h w"]  # distance to the skyline in image heights, negative in the hills and below


def sky(random: Stream, table, scene: View, kind: str) -> Sky:
    """Draw the sky of one of the `SKIES` and the hills or woods under it."""
    height = np.maximum(-scene.drop, 0.0)
    zenith, low = (np.array(colour) * random.colour(0.04) for colour in SKIES[kind])
    rise = 1.0 - np.exp(-height / random.uniform(0.12, 0.25))
    colour = low + (zenith - low) * rise[..., None]
    ceiling = 0.35 / (height + 0.06)
    across, away = scene.u * ceiling * random.uniform(1.0, 2.5), ceiling * random.uniform(2.0, 4.0)
    puffs = value_noise(table, across + 40.0, away) + 0.5 * value_noise(table, 2.1 * across + 80.0, 2.1 * away)
    puffs += 0.25 * value_noise(table, 4.3 * across + 120.0, 4.3 * away)
    cloud = np.clip((puffs - random.uniform(-0.3, 0.7)) * random.uniform(0.6, 1.4), 0.0, 1.0) * random.uniform(0.2, 0.8)
    cloud = (cloud * np.clip(height / 0.1, 0.15, 1.0))[..., None]
    white = np.array([0.58, 0.60, 0.63] if kind == "overcast" else [0.93, 0.92, 0.91])
    colour += (white - colour) * cloud
    skyline = _skyline(random, table, scene)
    tone = 1.0 + 0.25 * value_noise(table, scene.u * 45.0, scene.v * 70.0)
    woods = np.array([0.34, 0.38, 0.31]) * random.colour(0.1) * tone[..., None]
    woods += (low - woods) * random.uniform(0.15, 0.6)
    colour += (woods - colour) * coverage(skyline, scene.pixel)[..., None]
    return Sky(colour, low, skyline)


def _skyline(random, table, scene):
    scale, amplitude = random.uniform(1.5, 5.0), random.uniform(0.01, 0.05)
    ridge = amplitude * (1.0 + value_noise(table, scene.u * scale + 9.0, np.full((), 0.3)))
    ragged = random.uniform(0.0, 0.014) * value_noise(table, scene.u * 37.0, np.full((), 0.7))
    return -scene.drop - ridge - ragged


def plants_and_posts(
    random: Stream, table, road: Layout, scene: View, colour: Float[np.ndarray, "h w 3"]
) -> Bool[np.ndarray, "h w"]:
    """Draw bushes, trees and posts beside the road onto `colour`, far ones first; returns where they stand.

    They never cover near road: what lies on it stays in sight.
    """
    covered = np.zeros(scene.z.shape, bool)
    free = (scene.drop < 0.0) | (scene.z > 60.0) | (scene.s < road.left) | (scene.s > road.right)
    green = np.array([0.25, 0.30, 0.16]) * random.colour(0.15)
    tree, post_every = random.chance(0.5), random.uniform(8.0, 20.0)
    places = sorted((random.uniform(8.0, 90.0) for _ in range(random.integer(0, 9))), reverse=True)
    for z in places:
        right, size = random.chance(0.5), random.uniform(0.5, 1.6) * (2.2 if tree and random.chance(0.6) else 1.0)
        away, tone = random.uniform(0.5, 6.0) + size, random.uniform(0.8, 1.15)
        u, v = road.project(road.right + away if right else road.left - away, z)
        scale = road.focal / z * size
        part = window(scene, u, v - scale, 1.4 * scale, 1.4 * scale)
        shape, leaves = _crown(table, scene.crop(*part), u, v, scale, z)
        _put(colour[part], covered[part], free[part], shape, green * tone * leaves, scene.pixel)
    if random.chance(0.6):
        side = road.right + random.uniform(0.4, 1.2) if random.chance(0.5) else road.left - random.uniform(0.4, 1.2)
        for step in range(7, 0, -1):
            u, v = road.project(side, post_every * step)
            scale = road.focal / (post_every * step)
            part = window(scene, u, v - scale / 2, 0.1 * scale, 0.6 * scale)
            shape, tones = _post(scene.crop(*part), u, v, scale)
            _put(colour[part], covered[part], free[part], shape, tones, scene.pixel)
    return covered


def _crown(table, scene, u, v, scale, z):
    """Signed distance and leaf tones of a ragged bush, `scale` image heights in radius, that stands at (u, v)."""
    across, up = (scene.u - u) / scale, (v - scene.v) / scale
    ragged = value_noise(table, across * 3.0 + z, up * 3.0)
    fine = value_noise(table, across * 7.0 + 4.0 * up + z, up * 7.0 - 4.0 * across)
    leaves = 0.65 + 0.3 * fine + 0.4 * ragged + 0.35 * up
    ball = np.sqrt(across**2 + ((up - 0.65) / 0.95) ** 2) - 1.0 + 0.25 * ragged
    return np.maximum(ball, 0.15 * fine - up) * scale, leaves[..., None]


def _post(scene, u, v, scale):
    """Signed distance and tones of a roadside post, `scale` image heights high, with a dark band."""
    up = (v - scene.v) / scale
    distance = np.maximum(np.abs(scene.u - u) - 0.05 * scale, np.maximum(up - 1.0, -up) * scale)
    band = coverage((np.abs(up - 0.78) - 0.1) * scale, scene.pixel)
    return distance, (0.72 - 0.52 * band)[..., None] * np.array([1.0, 1.0, 0.98])


def _put(colour, covered, free, distance, tones, pixel):
    cover = coverage(distance, pixel) * free
    colour += (tones - colour) * cover[..., None]
    covered |= cover > 0.5
