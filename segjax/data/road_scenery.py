"""Surroundings of debris, painted at random: camera, road, lane lines, stains, light, sky, plants and posts.

Image coordinates have no resolution: v runs from 0 (top) to 1 (bottom), u from -2/3 to 2/3. On the ground, z is the
distance ahead in metres, and s the distance to the right of the road's axis, which starts under the camera.
"""

import copy
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

ASPECT = 4.0 / 3.0
FARTHEST = 400.0  # metres; beyond it the ground is haze
_TABLE_BITS = 8  # the noise lattice repeats after 256 cells
# Base colours of the verges (grass, dry grass, soil, gravel) and their patches.
_VERGES = (
    ((0.30, 0.36, 0.19), (0.40, 0.40, 0.24)),
    ((0.47, 0.43, 0.28), (0.36, 0.38, 0.22)),
    ((0.42, 0.35, 0.27), (0.33, 0.29, 0.23)),
    ((0.47, 0.45, 0.42), (0.37, 0.36, 0.33)),
)
_LINE_REACH = 45.0  # metres; farther lane lines are labelled as road
# Zenith and horizon colours.
SKIES = {
    "clear": ((0.36, 0.53, 0.78), (0.74, 0.82, 0.88)),
    "hazy": ((0.55, 0.65, 0.77), (0.80, 0.83, 0.84)),
    "overcast": ((0.66, 0.69, 0.72), (0.80, 0.82, 0.83)),
    "evening": ((0.45, 0.48, 0.62), (0.86, 0.74, 0.62)),
}


class Stream:
    """Random numbers for one purpose of one scene: Philox keyed by (seed, index), with the purpose as its counter.

    A part that draws more numbers leaves the others unchanged. Only `Philox.random_raw` is used, because NumPy
    guarantees the bits of a bit generator but not `Generator`'s methods.
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
        """Returns the lattice of `View.noise`: uniform on [-1, 1] in steps of 2^-15."""
        return self._quarters(1 << (2 * _TABLE_BITS - 2)).reshape(-1) * 2.0**-15 - 1.0

    def gaussian(self, count: int) -> Float[np.ndarray, "count"]:
        """Returns sums of four 16-bit uniforms (Irwin-Hall) with zero mean and unit variance; all sums are exact."""
        return (self._quarters(count).sum(axis=0) - 4 * 32767.5) * (np.sqrt(3.0) / 65536.0)

    def _quarters(self, count):
        """Returns the 16-bit parts of `count` words as float64 [4, count], independent of the byte order."""
        words, mask = self._bits.random_raw(count), np.uint64(0xFFFF)
        return np.stack([(words >> np.uint64(shift)) & mask for shift in (0, 16, 32, 48)]).astype(np.float64)


def coverage(
    distance: Float[np.ndarray, "..."], softness: float | Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Returns the fraction of a pixel inside a shape, linear over `softness`, in the unit of `distance`.

    Negative distances are inside.
    """
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

    def noise(self, x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Returns smooth noise in [-1, 1] at the points (x, y), continuous in both, from one value per unit cell."""
        mask = (1 << _TABLE_BITS) - 1
        left, top = np.floor(x), np.floor(y)
        across, down = x - left, y - top
        across *= across * (3.0 - 2.0 * across)
        down *= down * (3.0 - 2.0 * down)
        column, row = left.astype(np.int64), top.astype(np.int64)
        columns = column & mask, (column + 1) & mask
        rows = (row & mask) << _TABLE_BITS, ((row + 1) & mask) << _TABLE_BITS
        corners = [[self.table.take(r + c) for c in columns] for r in rows]
        above, below = (first + (second - first) * across for first, second in corners)
        return above + (below - above) * down

    def grain(self, cell: float, stretch: float, shift: float) -> Float[np.ndarray, "h w"]:
        """Returns noise on the ground in cells of `cell` m across and cell * stretch along, faded against aliasing."""
        footprint = self.z * self.pixel / self.road.focal
        depth = footprint * self.z / self.road.camera_height
        fade = 1.0 / (1.0 + (0.7 * footprint / cell) ** 2 + (0.5 * depth / (cell * stretch)) ** 2)
        return self.noise(self.s / cell + shift, self.z / (cell * stretch) + 3.7 * shift) * fade


class Ground(NamedTuple):
    """Reflectance of the ground and the class of each pixel."""

    colour: Float[np.ndarray, "h w 3"]
    road: Bool[np.ndarray, "h w"]
    marking: Bool[np.ndarray, "h w"]
    asphalt: Float[np.ndarray, "3"]  # its mean colour
    edge: Float[np.ndarray, "h w"]  # distance to the road's edge in image heights, negative on the road


def ground(random: Stream, scene: View) -> Ground:
    """Paints road and verges on the rows that show ground."""
    road = scene.road
    wobble = scene.noise(scene.z / 3.0, 0.5 + 0.0 * scene.z) * random.uniform(0.0, 0.12)
    beyond = np.maximum(road.left - scene.s, scene.s - road.right) + wobble
    lateral = np.where(scene.s < 0.0, road.left, road.right)
    edge = beyond * road.focal / scene.z / np.sqrt(1.0 + (lateral / road.camera_height) ** 2)
    colour = _verge(random, scene)
    asphalt = random.uniform(0.34, 0.52) * random.colour(0.035)
    fine = scene.grain(0.035, 1.5, 11.3) * random.uniform(0.10, 0.2)
    coarse = scene.grain(0.16, 2.0, 57.1) * random.uniform(0.05, 0.12)
    patchy = scene.grain(1.1, 4.0, 91.7) * random.uniform(0.03, 0.1)
    streaks = scene.noise(scene.s / 0.35, scene.z / 60.0 + 17.0) * random.uniform(0.01, 0.05)
    lane = (scene.s - road.first_line) / road.lane_width
    tracks = np.cos(4.0 * np.pi * lane) * random.uniform(-0.07, 0.07)
    tone = 1.0 + fine + coarse + patchy + streaks + tracks
    blend(colour, asphalt * tone[..., None], coverage(edge, scene.pixel))
    marking = _paint_lines(random, scene, colour) & (edge < 0.0)
    return Ground(colour, edge < 0.0, marking, asphalt, edge)


def _verge(random, scene):
    tufts, clumps, field = scene.grain(0.12, 2.0, 23.9), scene.grain(0.7, 2.5, 71.3), scene.grain(6.0, 3.0, 5.5)
    mix = np.clip(0.5 + 0.7 * field + 0.4 * clumps, 0.0, 1.0)[..., None]
    tone = (1.0 + random.uniform(0.15, 0.4) * tufts + random.uniform(0.1, 0.3) * clumps)[..., None]
    kinds = [_VERGES[random.integer(0, 3)] for _ in range(2)]
    if random.chance(0.6):
        kinds[1] = kinds[0]
    tint = random.uniform(0.85, 1.15) * random.colour(0.04)
    sides = [(np.array(base) + (np.array(other) - np.array(base)) * mix) * tint for base, other in kinds]
    colour = np.where((scene.s > 0.0)[..., None], sides[1], sides[0])
    gravel = np.array([0.45, 0.43, 0.40]) * random.uniform(0.8, 1.1)
    shoulder = random.uniform(0.0, 0.8)
    beyond = np.maximum(scene.road.left - scene.s, scene.s - scene.road.right)
    blend(colour, gravel, coverage(beyond - shoulder - 0.2 * clumps, 0.3))
    return colour * tone


def _paint_lines(random, scene, colour):
    """Paints the lane lines and returns the mask of their label."""
    road, marking = scene.road, np.zeros(scene.z.shape, bool)
    if random.chance(0.08):
        return marking
    paint = np.array([0.80, 0.80, 0.77]) * random.uniform(0.8, 1.05)
    worn, width = random.uniform(0.0, 0.7), random.uniform(0.10, 0.17)
    period, duty, phase = random.uniform(6.0, 14.0), random.uniform(0.3, 0.6), random.uniform(0.0, 14.0)
    wear = np.clip(1.0 - worn * (0.75 + 0.8 * scene.grain(0.07, 2.0, 33.3)), 0.4, 1.0)
    wear *= np.clip(1.0 - worn * (0.4 + 1.2 * scene.grain(0.9, 6.0, 44.4)), 0.5, 1.0)
    across = scene.z * scene.pixel / road.focal
    thinnest = 0.45 * scene.z / (96.0 * road.focal)  # half a pixel of a 96-row image: labelled lines do not break up
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
        blend(colour, paint * (0.7 + 0.3 * wear[..., None]), opacity * wear * 0.9)
        marking |= mask & (scene.z < _LINE_REACH)
    return marking


def shade(random: Stream, scene: View, sun: float) -> Float[np.ndarray, "h w"]:
    """Returns the fraction of light that passes trees and poles; 1 under an overcast sky (sun = 0)."""
    light = np.ones(scene.z.shape)
    if sun == 0.0:
        return light
    depth, slope = random.uniform(0.3, 0.5) * sun, random.uniform(-1.5, 1.5)
    soft = scene.z * scene.z * scene.pixel / (scene.road.focal * scene.road.camera_height)
    for _ in range(random.integer(0, 3)):  # poles and trunks: bands across the road
        across = np.abs(scene.z - random.uniform(3.0, 30.0) - slope * scene.s) - random.uniform(0.1, 0.5)
        light = np.minimum(light, 1.0 - depth * coverage(across, soft + 0.25))
    if random.chance(0.55):  # crowns: a dappled mass from one side
        start, length, side = random.uniform(3.0, 25.0), random.uniform(3.0, 12.0), 1.0 if random.chance(0.5) else -1.0
        reach = random.uniform(-1.5, 2.5)
        leaves = scene.grain(0.5, 1.5, 66.6) + 0.9 * scene.grain(1.8, 1.5, 77.7)
        inside = np.minimum(reach - side * scene.s, length - np.abs(scene.z - start - slope * scene.s)) / 2.0
        light = np.minimum(light, 1.0 - depth * np.clip(0.5 + 1.5 * np.minimum(inside, 0.7) + 1.2 * leaves, 0.0, 1.0))
    return light


def draw_stains(random: Stream, scene: View, colour: Float[np.ndarray, "h w 3"]) -> None:
    """Paints the flat disturbances of the road onto `colour`: repair patches, cracks, stains and manhole covers."""
    for draw, least, most in ((_patch, 0, 2), (_crack, 0, 3), (_stain, 1, 6), (_manhole, 0, 1)):
        for _ in range(random.integer(least, most)):
            draw(random, scene, colour, *_place(random, scene.road))


def _place(random, road):
    """Draws a ground point (s, z) on the road, uniform over the rows of the image and not over the metres."""
    depth = random.uniform(0.07, 0.92 - road.horizon)
    z = road.focal * road.camera_height / depth
    seen = min(0.6 * z / road.focal, max(-road.left, road.right))
    centre = road.bend(z)
    low, high = max(road.left, -seen - centre), min(road.right, seen - centre)
    return random.uniform(low, high) if low < high else 0.0, z


def _stretch(scene, z, reach):
    """Returns the rows within `reach` of z, their view, and the softness of an edge there across and along."""
    road = scene.road
    tilt = abs(road.roll) * ASPECT / 2.0
    far, near = (
        road.horizon + road.focal * road.camera_height / max(end, 0.5) + sign * tilt
        for end, sign in ((z + reach, -1.0), (z - reach, 1.0))
    )
    rows, _ = scene.window(0.0, 0.5 * (far + near), ASPECT, 0.5 * (near - far) + scene.pixel)
    seen = scene.crop(rows)
    across = seen.z * seen.pixel / road.focal
    return rows, seen, across, across * seen.z / road.camera_height


def _multiply(colour, rows, seen, tone, cover):
    """Multiplies the colour of the road by `tone` where `cover` is 1."""
    inside = (seen.s > seen.road.left) & (seen.s < seen.road.right)
    colour[rows] *= 1.0 + (tone - 1.0) * (cover * inside)[..., None]


def _stain(random, scene, colour, s, z):
    size = random.uniform(0.1, 0.5)
    long = size * random.uniform(1.0, 2.0 + 0.6 * z / scene.road.camera_height)
    tone = np.exp(random.uniform(-0.5, 0.12)) * random.colour(0.05)
    sharp, shift = random.uniform(0.1, 0.6), random.uniform(0.0, 99.0)
    rows, seen, across, along = _stretch(scene, z, 1.6 * long)
    x, y = (seen.s - s) / size, (seen.z - z) / long
    ragged = 0.45 * scene.noise(x * 1.3 + shift, y * 1.3) + 0.2 * scene.noise(x * 4.0, y * 4.0 + shift)
    soft = sharp + np.minimum(across / size + along / long, 2.0)
    _multiply(colour, rows, seen, tone, coverage(np.sqrt(x * x + y * y) - 0.9 + ragged, soft))


def _patch(random, scene, colour, s, z):
    half_width, half_length = random.uniform(0.3, 1.4), random.uniform(0.5, 3.0)
    tone, skew = np.exp(random.uniform(-0.3, 0.2)) * random.colour(0.03), random.uniform(-0.3, 0.3)
    seam = random.uniform(0.55, 0.9) if random.chance(0.6) else 1.0
    rows, seen, across, along = _stretch(scene, z, 1.3 * half_length)
    uneven = 0.06 * scene.noise(seen.s * 3.0, seen.z * 2.0)
    sideways = np.abs(seen.s - s - skew * (seen.z - z)) - half_width + uneven
    lengthways = np.abs(seen.z - z) - half_length + uneven
    cover = coverage(sideways, across) * coverage(lengthways, along)
    _multiply(colour, rows, seen, tone, cover)
    rim = coverage(sideways - 0.05, across) * coverage(lengthways - 0.08, along) - cover
    _multiply(colour, rows, seen, seam, np.clip(rim, 0.0, 1.0))


def _crack(random, scene, colour, s, z):
    half, width = random.uniform(0.4, 3.0), random.uniform(0.012, 0.04)
    tone, shift, lengthways = random.uniform(0.35, 0.7), random.uniform(0.0, 99.0), random.chance(0.5)
    rows, seen, across, along = _stretch(scene, z, half * 2.0 if lengthways else 0.9 + 0.2 * half)
    if lengthways:
        walk, off, end, soft = seen.z, seen.s - s, np.abs(seen.z - z) - 2.0 * half, across
    else:
        walk, off, end, soft = seen.s, seen.z - z - 0.2 * (seen.s - s), np.abs(seen.s - s) - half, along
    lane = np.zeros(())
    wander = 0.35 * scene.noise(walk * 0.9 + shift, lane) + 0.12 * scene.noise(walk * 4.0 + shift, lane)
    cover = coverage(np.abs(off - wander) - width, soft) * np.minimum(1.0, 2.0 * width / soft) * coverage(end, 0.5)
    _multiply(colour, rows, seen, tone, cover)


def _manhole(random, scene, colour, s, z):
    radius, tone, ring = random.uniform(0.25, 0.36), random.uniform(0.65, 1.1), random.uniform(0.5, 0.8)
    rows, seen, across, along = _stretch(scene, z, 1.2 * radius)
    distance = np.sqrt((seen.s - s) ** 2 + (seen.z - z) ** 2) - radius
    soft = np.minimum(along, 4.0 * across)
    _multiply(colour, rows, seen, tone, coverage(distance, soft))
    _multiply(colour, rows, seen, ring, coverage(np.abs(distance) - 0.02, soft) * np.minimum(1.0, 0.06 / soft))


def sky(random: Stream, scene: View, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paints the sky of one of the `SKIES` and the hills or woods under it.

    Returns its colour, the colour of haze, and the distance to the skyline in image heights, negative below it.
    """
    height = np.maximum(-scene.drop, 0.0)
    zenith, low = (np.array(colour) * random.colour(0.04) for colour in SKIES[kind])
    rise = 1.0 - np.exp(-height / random.uniform(0.12, 0.25))
    colour = low + (zenith - low) * rise[..., None]
    ceiling = 0.35 / (height + 0.06)
    across, away = scene.u * ceiling * random.uniform(1.0, 2.5), ceiling * random.uniform(2.0, 4.0)
    puffs = scene.noise(across + 40.0, away) + 0.5 * scene.noise(2.1 * across + 80.0, 2.1 * away)
    puffs += 0.25 * scene.noise(4.3 * across + 120.0, 4.3 * away)
    cloud = np.clip((puffs - random.uniform(-0.3, 0.7)) * random.uniform(0.6, 1.4), 0.0, 1.0) * random.uniform(0.2, 0.8)
    white = np.array([0.58, 0.60, 0.63] if kind == "overcast" else [0.93, 0.92, 0.91])
    blend(colour, white, cloud * np.clip(height / 0.1, 0.15, 1.0))
    scale, amplitude = random.uniform(1.5, 5.0), random.uniform(0.01, 0.05)
    ridge = amplitude * (1.0 + scene.noise(scene.u * scale + 9.0, np.full((), 0.3)))
    ragged = random.uniform(0.0, 0.014) * scene.noise(scene.u * 37.0, np.full((), 0.7))
    skyline = -scene.drop - ridge - ragged
    tone = 1.0 + 0.25 * scene.noise(scene.u * 45.0, scene.v * 70.0)
    woods = np.array([0.34, 0.38, 0.31]) * random.colour(0.1) * tone[..., None]
    woods += (low - woods) * random.uniform(0.15, 0.6)
    blend(colour, woods, coverage(skyline, scene.pixel))
    return colour, low, skyline


def plants_and_posts(random: Stream, scene: View, colour: Float[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """Paints bushes, trees and posts beside the road onto `colour`, far ones first, and returns their mask."""
    road, covered = scene.road, np.zeros(scene.z.shape, bool)
    # They never cover the near road, so all that lies on it stays visible.
    free = (scene.drop < 0.0) | (scene.z > 60.0) | (scene.s < road.left) | (scene.s > road.right)

    def put(part, distance, tones):
        cover = coverage(distance, scene.pixel) * free[part]
        blend(colour[part], tones, cover)
        covered[part] |= cover > 0.5

    green = np.array([0.25, 0.30, 0.16]) * random.colour(0.15)
    tree, post_every = random.chance(0.5), random.uniform(8.0, 20.0)
    for z in sorted((random.uniform(8.0, 90.0) for _ in range(random.integer(0, 9))), reverse=True):
        right, size = random.chance(0.5), random.uniform(0.5, 1.6) * (2.2 if tree and random.chance(0.6) else 1.0)
        away, tone = random.uniform(0.5, 6.0) + size, random.uniform(0.8, 1.15)
        u, v = road.project(road.right + away if right else road.left - away, z)
        scale = road.focal / z * size
        part = scene.window(u, v - scale, 1.4 * scale, 1.4 * scale)
        seen = scene.crop(*part)
        across, up = (seen.u - u) / scale, (v - seen.v) / scale
        ragged = scene.noise(across * 3.0 + z, up * 3.0)
        fine = scene.noise(across * 7.0 + 4.0 * up + z, up * 7.0 - 4.0 * across)
        ball = np.sqrt(across**2 + ((up - 0.65) / 0.95) ** 2) - 1.0 + 0.25 * ragged
        leaves = 0.65 + 0.3 * fine + 0.4 * ragged + 0.35 * up
        put(part, np.maximum(ball, 0.15 * fine - up) * scale, green * tone * leaves[..., None])
    if random.chance(0.6):
        side = road.right + random.uniform(0.4, 1.2) if random.chance(0.5) else road.left - random.uniform(0.4, 1.2)
        for step in range(7, 0, -1):
            u, v = road.project(side, post_every * step)
            scale = road.focal / (post_every * step)
            part = scene.window(u, v - scale / 2, 0.1 * scale, 0.6 * scale)
            seen = scene.crop(*part)
            up = (v - seen.v) / scale
            distance = np.maximum(np.abs(seen.u - u) - 0.05 * scale, np.maximum(up - 1.0, -up) * scale)
            band = coverage((np.abs(up - 0.78) - 0.1) * scale, seen.pixel)
            put(part, distance, (0.72 - 0.52 * band)[..., None] * np.array([1.0, 1.0, 0.98]))
    return covered
