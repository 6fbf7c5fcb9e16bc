"""The ground: asphalt, lane lines, verges, and the shadows that fall on them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from segjax.data.road_debris.geometry import Layout, View, coverage
from segjax.data.road_debris.randomness import Stream, value_noise

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
