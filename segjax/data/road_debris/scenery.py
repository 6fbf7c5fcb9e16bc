"""The drawn surroundings of debris: ground, lane lines, stains, sky, plants and posts."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from segjax.data.road_debris.geometry import (
    ASPECT,
    Layout,
    Stream,
    View,
    coverage,
    value_noise,
    window,
)

# Base colours of the verges (grass, dry grass, soil, gravel) and their patches.
_VERGES = (
    ((0.30, 0.36, 0.19), (0.40, 0.40, 0.24)),
    ((0.47, 0.43, 0.28), (0.36, 0.38, 0.22)),
    ((0.42, 0.35, 0.27), (0.33, 0.29, 0.23)),
    ((0.47, 0.45, 0.42), (0.37, 0.36, 0.33)),
)
_LINE_REACH = 45.0  # metres; farther lane lines are asphalt by label


class Ground(NamedTuple):
    """Reflectance of the ground and who owns each pixel."""

    colour: Float[np.ndarray, "h w 3"]
    road: Bool[np.ndarray, "h w"]
    marking: Bool[np.ndarray, "h w"]
    asphalt: Float[np.ndarray, "3"]  # its mean colour
    edge: Float[np.ndarray, "h w"]  # distance to the road's edge in image heights, negative on the road


def grain(table, scene: View, road: Layout, cell: float, stretch: float, shift: float):
    """Noise on the ground with `cell` metres across and cell * stretch along, fading where a pixel is coarser than it.

    The fade keeps far asphalt from aliasing; it depends on the resolution as a camera's does.
    """
    footprint = scene.z * scene.pixel / road.focal
    depth = footprint * scene.z / road.camera_height
    fade = 1.0 / (1.0 + (0.7 * footprint / cell) ** 2 + (0.5 * depth / (cell * stretch)) ** 2)
    return value_noise(table, scene.s / cell + shift, scene.z / (cell * stretch) + 3.7 * shift) * fade


def ground(random: Stream, table, road: Layout, scene: View) -> Ground:
    """Draw the ground of the scene (rows that see ground)."""
    wobble = value_noise(table, scene.z / 3.0, 0.5 + 0.0 * scene.z) * random.uniform(0.0, 0.12)
    beyond = np.maximum(road.left - scene.s, scene.s - road.right) + wobble
    lateral = np.where(scene.s < 0.0, road.left, road.right)
    edge = beyond * road.focal / scene.z / np.sqrt(1.0 + (lateral / road.camera_height) ** 2)
    on_road = coverage(edge, scene.pixel)[..., None]
    colour = _verge(random, table, road, scene)
    asphalt = random.uniform(0.34, 0.52) * random.colour(0.035)
    colour += (asphalt * _asphalt(random, table, road, scene)[..., None] - colour) * on_road
    marking = _paint_lines(random, table, road, scene, colour, edge < 0.0)
    return Ground(colour, edge < 0.0, marking, asphalt, edge)


def _asphalt(random, table, road, scene):
    fine = grain(table, scene, road, 0.035, 1.5, 11.3) * random.uniform(0.10, 0.2)
    coarse = grain(table, scene, road, 0.16, 2.0, 57.1) * random.uniform(0.05, 0.12)
    patchy = grain(table, scene, road, 1.1, 4.0, 91.7) * random.uniform(0.03, 0.1)
    streaks = value_noise(table, scene.s / 0.35, scene.z / 60.0 + 17.0) * random.uniform(0.01, 0.05)
    lane = (scene.s - road.first_line) / road.lane_width
    tracks = np.cos(4.0 * np.pi * lane) * random.uniform(-0.07, 0.07)
    return 1.0 + fine + coarse + patchy + streaks + tracks


def _verge(random, table, road, scene):
    tufts = grain(table, scene, road, 0.12, 2.0, 23.9)
    clumps = grain(table, scene, road, 0.7, 2.5, 71.3)
    field = grain(table, scene, road, 6.0, 3.0, 5.5)
    mix = np.clip(0.5 + 0.7 * field + 0.4 * clumps, 0.0, 1.0)[..., None]
    tone = (1.0 + random.uniform(0.15, 0.4) * tufts + random.uniform(0.1, 0.3) * clumps)[..., None]
    kinds = [_VERGES[random.integer(0, 3)] for _ in range(2)]
    if random.chance(0.6):
        kinds[1] = kinds[0]
    tint = random.uniform(0.85, 1.15) * random.colour(0.04)
    sides = [(np.array(base) + (np.array(other) - np.array(base)) * mix) * tint for base, other in kinds]
    plain = np.where((scene.s > 0.0)[..., None], sides[1], sides[0])
    gravel = np.array([0.45, 0.43, 0.40]) * random.uniform(0.8, 1.1)
    shoulder = random.uniform(0.0, 0.8)
    beyond = np.maximum(road.left - scene.s, scene.s - road.right)
    strip = coverage(beyond - shoulder - 0.2 * clumps, 0.3)[..., None]
    return (plain + (gravel - plain) * strip) * tone


def _paint_lines(random, table, road, scene, colour, inside):
    """Paint the lane lines onto `colour`; the mask is where paint is by label."""
    marking = np.zeros(scene.z.shape, bool)
    if random.chance(0.08):
        return marking
    paint = np.array([0.80, 0.80, 0.77]) * random.uniform(0.8, 1.05)
    worn, width = random.uniform(0.0, 0.7), random.uniform(0.10, 0.17)
    period, duty, phase = random.uniform(6.0, 14.0), random.uniform(0.3, 0.6), random.uniform(0.0, 14.0)
    wear = np.clip(1.0 - worn * (0.75 + 0.8 * grain(table, scene, road, 0.07, 2.0, 33.3)), 0.4, 1.0)
    wear *= np.clip(1.0 - worn * (0.4 + 1.2 * grain(table, scene, road, 0.9, 6.0, 44.4)), 0.5, 1.0)
    across = scene.z * scene.pixel / road.focal
    thinnest = 0.45 * scene.z / (96.0 * road.focal)  # half a pixel of a 96-row image: the label's lines do not break up
    for line in range(road.lanes + 1):
        outer = line in (0, road.lanes)
        if outer and random.chance(0.25):
            continue
        off = np.abs(scene.s - road.first_line - line * road.lane_width) - width / 2
        opacity = np.clip(0.5 - off / across, 0.0, 1.0) * np.minimum(1.0, width / across)
        mask = off < np.maximum(0.0, thinnest - width / 2)
        if not outer and random.chance(0.8):
            within = np.abs((scene.z + phase) / period % 1.0 - 0.5) - duty / 2
            opacity *= np.clip(0.5 - within * period / (across * scene.z / road.camera_height), 0.0, 1.0)
            mask &= within < 0.0
        cover = (opacity * wear * 0.9)[..., None]
        colour += (paint * (0.7 + 0.3 * wear[..., None]) - colour) * cover
        marking |= mask & inside & (scene.z < _LINE_REACH)
    return marking


def shade(random: Stream, table, road: Layout, scene: View, sun: float) -> Float[np.ndarray, "h w"]:
    """The share of light that reaches the ground through trees and past poles; 1 under an overcast sky (sun = 0)."""
    light = np.ones(scene.z.shape)
    if sun == 0.0:
        return light
    depth = random.uniform(0.3, 0.5) * sun
    slope, soft = random.uniform(-1.5, 1.5), scene.z * scene.z * scene.pixel / (road.focal * road.camera_height)
    for _ in range(random.integer(0, 3)):  # poles and trunks: bands across the road
        across = np.abs(scene.z - random.uniform(3.0, 30.0) - slope * scene.s) - random.uniform(0.1, 0.5)
        light = np.minimum(light, 1.0 - depth * coverage(across, soft + 0.25))
    if random.chance(0.55):  # crowns: a dappled mass from one side
        start, length, side = random.uniform(3.0, 25.0), random.uniform(3.0, 12.0), random.sign()
        reach = random.uniform(-1.5, 2.5)
        leaves = grain(table, scene, road, 0.5, 1.5, 66.6) + 0.9 * grain(table, scene, road, 1.8, 1.5, 77.7)
        inside = np.minimum(reach - side * scene.s, length - np.abs(scene.z - start - slope * scene.s)) / 2.0
        light = np.minimum(light, 1.0 - depth * np.clip(0.5 + 1.5 * np.minimum(inside, 0.7) + 1.2 * leaves, 0.0, 1.0))
    return light


def draw_stains(random: Stream, table, road: Layout, scene: View, colour: Float[np.ndarray, "h w 3"]) -> None:
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
