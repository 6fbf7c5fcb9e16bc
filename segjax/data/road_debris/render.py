"""One scene from (seed, index): the parts put together, lit, photographed and labelled."""

import operator
from typing import NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Float, UInt8

from segjax.data.road_debris import fragments, scenery
from segjax.data.road_debris.geometry import (
    ASPECT,
    Layout,
    Stream,
    View,
    coverage,
    layout,
    view,
)
from segjax.data.road_debris.scenery import Ground, ground, shade

SCENE_CLASSES = ("road", "marking", "verge", "sky", "debris")
VOID = 255
ROAD, MARKING, VERGE, SKY, DEBRIS = range(5)

_SMALLEST = (64, 96)
_PIXEL = 1.0 / 96.0  # the unit of the void bands: a pixel of a 96-row image
_RING = (0.15 * _PIXEL, 0.65 * _PIXEL)  # how far the void ring reaches into a piece of debris and out of it
_ROADSIDE = 0.5 * _PIXEL  # half width of the void band at the road's edge
_SKYLINE = 0.5 * _PIXEL
_DOUBTFUL_ROAD = (110.0, 160.0)  # metres; the road between is void, and what is farther is verge
_WITHOUT_DEBRIS = 0.15  # share of the scenes
_DEBRIS_SHARE = (0.0025, 0.0100)  # of the pixels of a scene with debris
_MARK_SHARE = (0.003, 0.016)
_LEAST_AREA = 4.0 * _PIXEL**2  # of a fragment, less its void ring


class Scene(NamedTuple):
    """An image and its scene labels: an index into `SCENE_CLASSES`, or `VOID`."""

    image: UInt8[np.ndarray, "h w 3"]
    label: UInt8[np.ndarray, "h w"]


def scene(seed: SupportsIndex, index: SupportsIndex, *, height: int = 192, width: int = 256) -> Scene:
    """Draw scene number `index` of the endless sequence that `seed` names.

    Args:
        seed: Names the sequence, in [0, 2**63).
        index: Names the scene in it, in [0, 2**63).
        height: Rows to sample the scene at, at least 64.
        width: Columns to sample it at, at least 96. The scene is 4:3; another ratio stretches it.

    Returns:
        `image`, uint8 RGB `[height, width, 3]`, and `label`, uint8 `[height, width]`: an index into `SCENE_CLASSES`, or
        `VOID` (255) where the edge is ambiguous.

    Raises:
        ValueError: A negative or too large seed or index, or a size below 64x96.
        TypeError: A seed or an index that is not an integer.

    >>> image, label = scene(0, 3, height=96, width=128)
    >>> image.shape, image.dtype, label.shape, label.dtype
    ((96, 128, 3), dtype('uint8'), (96, 128), dtype('uint8'))
    >>> [SCENE_CLASSES[c] for c in sorted(set(label.flat) - {VOID})]
    ['road', 'marking', 'verge', 'sky', 'debris']
    >>> bool((scene(0, 3, height=96, width=128).image == image).all())
    True
    """
    seed, index = operator.index(seed), operator.index(index)
    _check(seed, index, height, width)
    place, noise, weather, earth, shadows, flat, marks, solid, standing, camera = (
        Stream(seed, index, purpose) for purpose in range(10)
    )
    table, road = noise.table(), layout(place)
    kind = tuple(scenery.SKIES)[weather.integer(0, len(scenery.SKIES) - 1)]
    sun, sun_side = (0.0 if kind == "overcast" else weather.uniform(0.4, 1.0)), weather.sign()
    whole = view(road, height, width)
    below = slice(int(np.argmax((whole.drop > -whole.pixel).any(axis=1))), None)
    above = slice(0, int(np.count_nonzero((whole.drop < whole.pixel).any(axis=1))))
    near = whole.crop(below)

    land = ground(earth, table, road, near)
    scenery.draw_stains(flat, table, road, near, land.colour)
    for shape in _scatter(marks, road, marks.uniform(*_MARK_SHARE)):
        fragments.mark(marks, table, near, land.colour, land.asphalt, shape)
    pieces = _scatter(solid, road, 0.0 if solid.chance(_WITHOUT_DEBRIS) else solid.uniform(*_DEBRIS_SHARE))
    for shape in pieces:
        fragments.debris(solid, table, near, land.colour, land.asphalt, shape, sun_side)

    colour = np.zeros((height, width, 3))
    sky = scenery.sky(weather, table, whole.crop(above), kind)
    fog = 1.0 - np.exp(near.z / -weather.uniform(120.0, 700.0))
    lit = land.colour * shade(shadows, table, road, near, sun)[..., None]
    colour[below] = lit + (sky.haze - lit) * fog[..., None]
    colour[above] += (sky.colour - colour[above]) * coverage(whole.drop[above], whole.pixel)[..., None]
    beside = scenery.plants_and_posts(standing, table, road, whole, colour)

    label = np.full((height, width), SKY, np.uint8)
    _label_ground(label[below], near, land)
    _label_sky(label[above], whole.drop[above], sky.skyline)
    label[beside] = VERGE
    for shape in pieces:
        part, _, ring = fragments.outline_masks(whole, shape, *_RING)
        label[part][ring] = VOID
    for shape in pieces:
        part, inside, _ = fragments.outline_masks(whole, shape, *_RING)
        label[part][inside] = DEBRIS
    return Scene(_photograph(camera, whole, colour), label)


def _check(seed, index, height, width):
    for name, value in (("seed", seed), ("index", index)):
        if not 0 <= value < 2**63:
            raise ValueError(f"road_debris: {name} must be in [0, 2**63), got {value}")
    if height < _SMALLEST[0] or width < _SMALLEST[1]:
        raise ValueError(
            f"road_debris: a scene needs at least {_SMALLEST[0]}x{_SMALLEST[1]} pixels (height x width), "
            f"got {height}x{width}"
        )


def _scatter(random: Stream, road: Layout, share: float) -> list[fragments.Piece]:
    """Outlines on the road until their areas sum to `share` of the image."""
    pieces, left = [], share * ASPECT
    for _ in range(80):
        if left < _LEAST_AREA:
            break
        near = pieces[-1] if pieces and random.chance(0.35) else None
        shape = fragments.piece(random, road, near)
        if shape is None:
            continue
        area = shape.area(_RING[0])
        if area > left:
            shape = shape._replace(radius=shape.radius * (left / area) ** 0.5)
            area = left
        if shape.radius < fragments.RADII[0] or area < _LEAST_AREA:
            continue
        pieces.append(shape)
        left -= area
    return pieces


def _label_ground(label, scene: View, land: Ground) -> None:
    on_ground, doubtful = scene.drop > 0.0, scene.z > _DOUBTFUL_ROAD[0]
    label[on_ground] = VERGE
    label[land.road & on_ground] = ROAD
    label[land.marking] = MARKING
    label[(np.abs(land.edge) < _ROADSIDE) | (land.road & doubtful)] = VOID
    label[on_ground & (scene.z > _DOUBTFUL_ROAD[1])] = VERGE
    label[~on_ground] = SKY


def _label_sky(label, drop, skyline):
    label[(drop <= 0.0) & (skyline < 0.0)] = VERGE
    label[(drop <= 0.0) & (np.abs(skyline) < _SKYLINE)] = VOID


def _photograph(random: Stream, scene: View, colour: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Exposure, colour temperature, vignetting, a tone curve, sensor noise, 8 bits."""
    warmth = random.uniform(-0.07, 0.07)
    gain = random.uniform(0.8, 1.15) * np.array([1.0 + warmth, 1.0, 1.0 - warmth])
    corner = random.uniform(0.05, 0.35) * (scene.u**2 + (scene.v - 0.5) ** 2)
    exposed = colour * (1.0 - corner)[..., None] * gain
    exposed = np.clip(exposed, 0.0, 1.2) ** random.uniform(0.85, 1.15)
    noise = random.gaussian(exposed.size).reshape(exposed.shape)
    noisy = exposed + random.uniform(0.006, 0.022) * (0.5 + np.sqrt(exposed)) * noise
    return np.floor(np.clip(noisy, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
