"""One scene from (seed, index): debris and flat marks, and all parts put together, lit, photographed and labelled."""

import operator
from typing import NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Float, UInt8

from segjax.data import road_scenery as scenery
from segjax.data.labels import SCENE_CLASSES, VOID
from segjax.data.road_scenery import ASPECT, Road, Stream, View, blend, coverage

ROAD, MARKING, VERGE, SKY, DEBRIS = range(len(SCENE_CLASSES))

_PIXEL = 1.0 / 96.0  # the unit of the void bands: a pixel of a 96-row image
_RING = (0.15 * _PIXEL, 0.65 * _PIXEL)  # reach of the void ring into a piece of debris and out of it
_BAND = 0.5 * _PIXEL  # half width of the void bands along the road's edges and the skyline
_DOUBTFUL_ROAD = (110.0, 160.0)  # metres; the road between is void, and farther road is verge
_WITHOUT_DEBRIS = 0.15  # fraction of the scenes
_DEBRIS_SHARE, _MARK_SHARE = (0.0025, 0.0100), (0.003, 0.016)  # fractions of the pixels of a scene that has them
_LEAST_AREA = 4.0 * _PIXEL**2  # of a fragment without its void ring
_RADII = (0.012, 0.055)  # smallest and largest half width, image heights


# Kinds of debris: number of sides, apparent height over width, bend, tint, log of the tone over the asphalt's, relief.
_MATERIALS = (
    ((6, 8), (0.6, 0.95), 0.0, (1.0, 0.99, 0.97), (-0.22, 0.22), 0.27),  # stone
    ((5, 6), (0.28, 0.5), 0.3, (1.0, 1.0, 1.01), (-0.42, -0.1), 0.25),  # tyre
    ((4, 5), (0.4, 0.8), 0.0, (1.08, 1.0, 0.88), (-0.12, 0.24), 0.22),  # cardboard
    ((4, 4), (0.16, 0.34), 0.0, (1.07, 1.0, 0.90), (-0.22, 0.2), 0.24),  # wood
    ((4, 6), (0.3, 0.7), 0.12, (0.98, 1.0, 1.03), (-0.22, 0.2), 0.28),  # metal
)


class Piece(NamedTuple):
    """One outline on the road, in local coordinates: image offsets from (u, v) over `radius`, y downwards."""

    u: float
    v: float
    radius: float
    normals: Float[np.ndarray, "sides 2"]
    offsets: Float[np.ndarray, "sides"]
    bend: float
    tone: Float[np.ndarray, "3"]  # its colour over the asphalt's
    relief: float
    shift: float  # position of its texture in the noise

    def sides(self, x, y):
        """Returns the signed distance to each side over the radius, [sides, ...], negative inside."""
        y = y + self.bend * (x * x - 0.35)
        return np.stack([n[0] * x + n[1] * y - d for n, d in zip(self.normals, self.offsets, strict=True)])

    def distance(self, x, y):
        """Returns the signed distance to the outline over the radius, negative inside."""
        return self.sides(x, y).max(axis=0)

    def area(self, margin: float) -> float:
        """Returns the area, in square image heights, that is inside the outline by more than `margin`."""
        steps = (np.arange(20) + 0.5) / 8.0 - 20.0 / 16.0
        inside = self.distance(steps[None, :], steps[:, None]) < -margin / self.radius
        return int(np.count_nonzero(inside)) / 8.0**2 * self.radius**2

    def local(self, scene: View):
        """Returns the part of the image that it and its shadow may touch, and its local coordinates there."""
        reach = 2.0 * self.radius + 2.0 * scene.pixel
        part = scene.window(self.u, self.v, reach, reach)
        seen = scene.crop(*part)
        return part, (seen.u - self.u) / self.radius, (seen.v - self.v) / self.radius


def _piece(random: Stream, road: Road, near: Piece | None = None) -> Piece | None:
    """Draws an outline on the road (close to `near`, if given); None if its place is off the road."""
    sides, aspect, bend, tint, contrast, relief = _MATERIALS[random.integer(0, len(_MATERIALS) - 1)]
    u, depth = random.uniform(-0.62, 0.62), 0.07 + (0.92 - road.horizon - 0.07) * random.uniform() ** 1.3
    if near is not None:
        u, depth = near.u + random.uniform(-0.15, 0.15), near.v - road.horizon + random.uniform(-0.06, 0.06)
        depth = min(max(depth, 0.07), 0.92 - road.horizon)
    v = road.horizon + road.roll * u + depth
    z = road.focal * road.camera_height / depth
    size = 0.07 * 5.0 ** random.uniform()
    radius = min(max(road.focal * size / z, _RADII[0]), _RADII[1])
    tone = np.array(tint) * random.colour(0.05) * np.exp(random.uniform(*contrast))
    bend, shift = bend * random.uniform(-1.0, 1.0), random.uniform(0.0, 200.0)
    s = u * z / road.focal - road.bend(z)
    if road.clearance(s, z) < 1.25 * radius + 0.025:
        return None
    # An irregular polygon, squashed to the material's aspect and turned a little.
    sides, aspect, turn = random.integer(*sides), random.uniform(*aspect), random.uniform(-0.35, 0.35)
    corners = np.arange(sides) + random.uniform(-0.28, 0.28, sides)
    angles = random.uniform(0.0, 2.0 * np.pi) + corners * (2.0 * np.pi / sides)
    flat = np.stack([np.cos(angles), np.sin(angles) / aspect], axis=1)
    length = np.sqrt(flat[:, 0] ** 2 + flat[:, 1] ** 2)
    offsets = random.uniform(0.62, 1.0, sides) / length
    flat = flat / length[:, None]
    cos, sin = np.cos(turn), np.sin(turn)
    normals = np.stack([cos * flat[:, 0] - sin * flat[:, 1], sin * flat[:, 0] + cos * flat[:, 1]], axis=1)
    cuts = np.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])  # its base, and its ends where two sides meet too far out
    cut_offsets = np.array([aspect * random.uniform(0.45, 0.8), 1.15, 1.15])
    normals, offsets = np.concatenate([normals, cuts]), np.concatenate([offsets, cut_offsets])
    return Piece(u, v, radius, normals, offsets, bend, tone, relief, shift)


def _scatter(random: Stream, road: Road, share: float) -> list[Piece]:
    """Draws outlines on the road until their areas sum to `share` of the image."""
    pieces, left = [], share * ASPECT
    for _ in range(80):
        if left < _LEAST_AREA:
            break
        near = pieces[-1] if pieces and random.chance(0.35) else None
        shape = _piece(random, road, near)
        if shape is None:
            continue
        area = shape.area(_RING[0])
        if area > left:
            shape = shape._replace(radius=shape.radius * (left / area) ** 0.5)
            area = left
        if shape.radius < _RADII[0] or area < _LEAST_AREA:
            continue
        pieces.append(shape)
        left -= area
    return pieces


def _paint_mark(random: Stream, scene: View, land: scenery.Ground, shape: Piece) -> None:
    """Paints the outline flat: a tar drip, a squashed leaf, a scrap of paper, a worn spot."""
    part, x, y = shape.local(scene)
    distance = shape.distance(x, y) + 0.12 * scene.noise(x * 2.0 + shape.shift, y * 2.0)
    cover = coverage(distance * shape.radius, scene.pixel + random.uniform(0.0, 0.25) * shape.radius)
    land.colour[part] *= (1.0 - random.uniform(0.0, 0.25) * coverage(distance - 0.15, 0.4))[..., None]
    _lay(land, part, shape.tone, random.uniform(0.3, 1.0), cover)


def _lay(land, part, tone, through, cover):
    """Paints a surface over the ground, whose grain shows `through` it."""
    grain = land.colour[part] - land.asphalt
    blend(land.colour[part], (land.asphalt + grain * through) * tone, cover)


def _paint_debris(random: Stream, scene: View, land: scenery.Ground, shape: Piece, sun_side: float) -> None:
    """Paints the outline as a solid object: a shadow at its foot, a lit top, a dark side, a thin bright rim."""
    part, x, y = shape.local(scene)
    sides = shape.sides(x, y)
    distance, nearest = sides.max(axis=0), sides.argmax(axis=0)
    shadow = shape.distance(x + 0.3 * sun_side, y - 0.22)
    below = coverage(0.0 - y, 0.5) * coverage(shadow - 0.02, 0.3)
    land.colour[part] *= (1.0 - random.uniform(0.22, 0.42) * below)[..., None]

    inside = np.clip(-distance, 0.0, 1.0)
    lit = (0.6 * sun_side * shape.normals[:, 0] - 0.8 * shape.normals[:, 1])[nearest]
    ridge = random.uniform(-0.15, 0.15) + random.uniform(-0.5, 0.5) * x
    tone = 0.6 * np.clip(1.0 - inside / 0.4, 0.0, 1.0) * lit + 0.28 - 0.56 * coverage(ridge - y, 0.2)
    tone += 0.5 * np.clip(1.0 - inside / 0.14, 0.0, 1.0) * (lit > 0.45)
    rough = 0.1 * scene.noise(x * 3.5 + shape.shift, y * 3.5)
    tone = np.maximum(1.0 + shape.relief * tone + rough, 0.1)[..., None] * shape.tone
    _lay(land, part, tone, random.uniform(0.2, 0.7), coverage(distance * shape.radius, scene.pixel))


class Scene(NamedTuple):
    """An RGB image and the class of each pixel: an index into `SCENE_CLASSES`, or `VOID`."""

    image: UInt8[np.ndarray, "h w 3"]
    label: UInt8[np.ndarray, "h w"]


def scene(seed: SupportsIndex, index: SupportsIndex, *, height: int = 192, width: int = 256) -> Scene:
    """Draws scene number `index` of the endless sequence of `seed`; void where an edge is ambiguous.

    Args:
        seed: number of the sequence, in [0, 2**63).
        index: number of the scene, in [0, 2**63).
        height: rows, at least 64.
        width: columns, at least 96. The scene is 4:3; another ratio stretches it.

    Raises: TypeError or ValueError if a seed or an index is not an integer in [0, 2**63), or the size is below 64x96.

    >>> image, label = scene(0, 3, height=96, width=128)
    >>> image.shape, image.dtype, label.shape, label.dtype
    ((96, 128, 3), dtype('uint8'), (96, 128), dtype('uint8'))
    >>> [SCENE_CLASSES[c] for c in sorted(set(label.flat) - {VOID})]
    ['road', 'marking', 'verge', 'sky', 'debris']
    """
    place, noise, weather, earth, shadows, flat, marks, solid, standing, camera = _streams(seed, index, height, width)
    road = Road(place)
    kind = tuple(scenery.SKIES)[weather.integer(0, len(scenery.SKIES) - 1)]
    sun, sun_side = (0.0 if kind == "overcast" else weather.uniform(0.4, 1.0)), 1.0 if weather.chance(0.5) else -1.0
    whole = View(road, noise.table(), height, width)
    below = slice(int(np.argmax((whole.drop > -whole.pixel).any(axis=1))), None)
    above = slice(0, int(np.count_nonzero((whole.drop < whole.pixel).any(axis=1))))
    near = whole.crop(below)

    land = scenery.ground(earth, near)
    scenery.draw_stains(flat, near, land.colour)
    for shape in _scatter(marks, road, marks.uniform(*_MARK_SHARE)):
        _paint_mark(marks, near, land, shape)
    pieces = _draw_debris(solid, road)
    for shape in pieces:
        _paint_debris(solid, near, land, shape, sun_side)

    colour = np.zeros((height, width, 3))
    sky, haze, skyline = scenery.sky(weather, whole.crop(above), kind)
    fog = 1.0 - np.exp(near.z / -weather.uniform(120.0, 700.0))
    lit = land.colour * scenery.shade(shadows, near, sun)[..., None]
    colour[below] = lit + (haze - lit) * fog[..., None]
    blend(colour[above], sky, coverage(whole.drop[above], whole.pixel))
    beside = scenery.plants_and_posts(standing, whole, colour)

    label = np.full((height, width), SKY, np.uint8)
    on_ground = near.drop > 0.0
    of_ground = label[below]
    of_ground[on_ground] = VERGE
    of_ground[land.road & on_ground] = ROAD
    of_ground[land.marking] = MARKING
    of_ground[(np.abs(land.edge) < _BAND) | (land.road & (near.z > _DOUBTFUL_ROAD[0]))] = VOID
    of_ground[on_ground & (near.z > _DOUBTFUL_ROAD[1])] = VERGE
    of_ground[~on_ground] = SKY
    hills = whole.drop[above] <= 0.0
    label[above][hills & (skyline < 0.0)] = VERGE
    label[above][hills & (np.abs(skyline) < _BAND)] = VOID
    label[beside] = VERGE
    outlines = _outlines(pieces, whole)
    for part, distance in outlines:
        label[part][(distance >= -_RING[0]) & (distance < _RING[1])] = VOID
    for part, distance in outlines:
        label[part][distance < -_RING[0]] = DEBRIS
    return Scene(_photograph(camera, whole, colour), label)


def fragments(
    seed: SupportsIndex, index: SupportsIndex, *, height: int = 192, width: int = 256
) -> UInt8[np.ndarray, "h w"]:
    """Returns the number of the piece of debris that each pixel of `scene` shows, from 1; elsewhere 0.

    Pieces that touch have numbers of their own, but are one connected component of the label. A piece that others hide
    has no pixel.

    Args:
        seed: number of the sequence.
        index: number of the scene.
        height: rows, at least 64.
        width: columns, at least 96.

    Raises: TypeError or ValueError as `scene` does.

    >>> numbers = fragments(0, 3, height=96, width=128)
    >>> np.array_equal(numbers > 0, scene(0, 3, height=96, width=128).label == DEBRIS)
    True
    """
    place, noise, *_, solid, _, _ = _streams(seed, index, height, width)
    road, numbers = Road(place), np.zeros((height, width), np.uint8)
    outlines = _outlines(_draw_debris(solid, road), View(road, noise.table(), height, width))
    for number, (part, distance) in enumerate(outlines, 1):
        numbers[part][distance < -_RING[0]] = number
    return numbers


def _streams(seed: SupportsIndex, index: SupportsIndex, height: int, width: int) -> list[Stream]:
    """Returns the random numbers for each of the ten purposes of a scene, after a check of the arguments."""
    seed, index = operator.index(seed), operator.index(index)
    for name, value in (("seed", seed), ("index", index)):
        if not 0 <= value < 2**63:
            raise ValueError(f"road_debris: {name} must be in [0, 2**63), got {value}")
    if height < 64 or width < 96:
        raise ValueError(f"road_debris: a scene needs at least 64x96 pixels (height x width), got {height}x{width}")
    return [Stream(seed, index, purpose) for purpose in range(10)]


def _draw_debris(random: Stream, road: Road) -> list[Piece]:
    """Draws the pieces of debris, those in front last."""
    return _scatter(random, road, 0.0 if random.chance(_WITHOUT_DEBRIS) else random.uniform(*_DEBRIS_SHARE))


def _outlines(pieces: list[Piece], scene: View) -> list[tuple[tuple[slice, slice], np.ndarray]]:
    """Returns for each piece a part of the image, and the distance to its outline there in image heights."""
    return [(part, shape.distance(x, y) * shape.radius) for shape in pieces for part, x, y in [shape.local(scene)]]


def _photograph(random: Stream, scene: View, colour: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Applies exposure, colour temperature, vignetting, a tone curve and sensor noise, and rounds to 8 bits."""
    warmth = random.uniform(-0.07, 0.07)
    gain = random.uniform(0.8, 1.15) * np.array([1.0 + warmth, 1.0, 1.0 - warmth])
    corner = random.uniform(0.05, 0.35) * (scene.u**2 + (scene.v - 0.5) ** 2)
    exposed = colour * (1.0 - corner)[..., None] * gain
    exposed = np.clip(exposed, 0.0, 1.2) ** random.uniform(0.85, 1.15)
    noise = random.gaussian(exposed.size).reshape(exposed.shape)
    noisy = exposed + random.uniform(0.006, 0.022) * (0.5 + np.sqrt(exposed)) * noise
    return np.floor(np.clip(noisy, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
