"""Which pixels lie on the boundary of their class, and near to another: the work behind the boundary scores. Private.

A pixel belongs to one class, so one image of labels holds the boundaries of all classes at once. What is near to a
boundary of its own class is found for eight classes in one byte a pixel, in a time that grows with the tolerance and
not with its square. No class is ever an image of its own, and nothing is a float.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8

from segjax.metrics.counts import tally


# Compiled as one also where the caller compiles nothing: each call would compile its loops anew.
@partial(jax.jit, static_argnames=("num_classes", "tolerance"))
def count_boundaries(labels, predictions, keep, num_classes, tolerance):
    """`[images, C, 4]` as `boundary_counts_per_image`, and which images have a class out of range."""
    labels, predictions, invalid = _cleaned(labels, predictions, keep, num_classes)
    true, predicted = _boundary(labels), _boundary(predictions)
    of, near_to = jnp.stack([predicted, true]), jnp.stack([true, predicted])
    return _count(of, _near_own_class(of, near_to, num_classes, tolerance), num_classes), invalid


@partial(jax.jit, static_argnames=("num_classes", "distance"))
def count_regions(labels, predictions, keep, num_classes, distance):
    """`[images, C, 2]`, intersection and union, and which images have a class out of range."""
    labels, predictions, invalid = _cleaned(labels, predictions, keep, num_classes)
    true, predicted = _region(labels, distance), _region(predictions, distance)
    both = true == predicted
    counts = _count(jnp.stack([predicted, true]), jnp.stack([both, both]), num_classes)
    union = counts[..., 1] + counts[..., 3] - counts[..., 0]
    return jnp.stack([counts[..., 0], union], axis=-1), invalid


def _cleaned(labels, predictions, keep, num_classes):
    """Both in the narrowest type, -1 where no class is counted; and which images have a class out of range."""
    valid = (labels >= 0) & (labels < num_classes) & (predictions >= 0) & (predictions < num_classes)
    # All that follows is bound by the memory it moves: a byte a pixel is many times as fast as four.
    narrow = np.min_scalar_type(-num_classes)
    labels, predictions = (jnp.where(valid & keep, classes, -1).astype(narrow) for classes in (labels, predictions))
    return labels, predictions, (~valid & keep).any(axis=(1, 2))


def _boundary(classes: Int[Array, "images height width"]) -> Int[Array, "images height width"]:
    """The class of every pixel on the inner boundary of its class; -1 elsewhere."""
    height, width = classes.shape[1:]
    padded = jnp.pad(classes, [(0, 0), (1, 1), (1, 1)], constant_values=-1)
    found = jnp.zeros(classes.shape, bool)
    for down, right in ((0, 1), (1, 0), (1, 2), (2, 1)):
        neighbour = padded[:, down : down + height, right : right + width]
        found |= (neighbour != classes) & (neighbour >= 0)
    return jnp.where(found, classes, -1)


def _near_own_class(
    of: Int[Array, "*images height width"],
    near_to: Int[Array, "*images height width"],
    num_classes: int,
    tolerance: float,
) -> Bool[Array, "*images height width"]:
    """Has a pixel of a class (-1: of none) a pixel of that class in the other image within the tolerance?"""
    steps = _quarter_circle(tolerance, *of.shape[-2:])

    def eight_classes(found, group):
        bits = jnp.where(near_to >> 3 == group, jnp.uint8(1) << (near_to & 7).astype(jnp.uint8), jnp.uint8(0))
        own = _dilated(bits, steps) >> (of & 7).astype(jnp.uint8) & 1
        return found | ((of >> 3 == group) & (own == 1)), None

    # Not `jnp.zeros`: in a `shard_map` the carry must vary over the devices from the start.
    nothing = of < -1
    return jax.lax.scan(eight_classes, nothing, jnp.arange(-(-num_classes // 8), dtype=of.dtype))[0]


def _quarter_circle(tolerance: float, height: int, width: int) -> list[tuple[int, int]]:
    """(right, down) along the rim of a disc's quarter, from its bottom inwards: right grows one by one, down falls.

    Lengths are compared, not their squares: the square of sqrt(13) is less than 13.
    """
    steps, reach = [], -1
    for down in range(height - 1, -1, -1):
        before = reach
        while reach + 1 < width and math.sqrt((reach + 1) ** 2 + down**2) <= tolerance:
            reach += 1
            steps.append((reach, down))
        if reach == before and reach >= 0:
            steps.append((reach, down))
    return steps


def _dilated(
    bits: UInt8[Array, "*images height width"], steps: list[tuple[int, int]]
) -> UInt8[Array, "*images height width"]:
    """The bits of all pixels of the disc around each pixel, by `or`.

    A row of the disc is a run to the left and right, and the nearer to the centre the longer: one run grows along the
    rim, and at each step is taken from as many rows above and below.
    """
    height, width = bits.shape[-2:]
    right, down = max((r for r, _ in steps), default=0), max((d for _, d in steps), default=0)
    other_axes = [(0, 0)] * (bits.ndim - 2)
    run = jnp.pad(bits, [*other_axes, (down, down), (0, 0)])
    wide = jnp.pad(run, [*other_axes, (0, 0), (right, right)])

    def step(carry, offset):
        run, disc = carry
        run |= _cut(wide, right - offset[0], width, -1) | _cut(wide, right + offset[0], width, -1)
        disc |= _cut(run, down - offset[1], height, -2) | _cut(run, down + offset[1], height, -2)
        return (run, disc), None

    # A loop, not a chain: XLA would fuse the chain and look at every row of the disc anew for every pixel.
    return jax.lax.scan(step, (run, bits), np.array(steps, np.int32).reshape(-1, 2))[0][1]


def _cut(images: jax.Array, start: jax.Array, size: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(images, start, size, axis)


def _region(classes: Int[Array, "images height width"], distance: int) -> Int[Array, "images height width"]:
    """The class of every pixel whose square of 2 · distance + 1 pixels has another class, void or the edge; else -1."""
    distance = min(distance, *classes.shape[1:])
    padded = jnp.pad(classes, [(0, 0), (distance, distance), (distance, distance)], constant_values=-1)
    lowest, highest = (
        _sliding(_sliding(padded, 2 * distance + 1, 1, combine), 2 * distance + 1, 2, combine)
        for combine in (jnp.minimum, jnp.maximum)
    )
    return jnp.where(lowest != highest, classes, -1)


def _sliding(
    values: jax.Array, length: int, axis: int, combine: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """`combine` of every `length` neighbours along an axis: windows of 2, 4, 8, ... then two that overlap."""
    reach = 1
    while reach < length:
        shift, size = min(reach, length - reach), values.shape[axis]
        values = combine(
            jax.lax.slice_in_dim(values, 0, size - shift, axis=axis),
            jax.lax.slice_in_dim(values, shift, size, axis=axis),
        )
        reach += shift
    return values


def _count(
    classes: Int[Array, "2 images height width"], matched: Bool[Array, "2 images height width"], num_classes: int
) -> Int[Array, "images {num_classes} 4"]:
    """Of the pixels of each class (-1: of none) on either side: the matched ones and all, side by side."""
    images = classes.shape[1]
    counted = classes >= 0
    of_image = jnp.arange(2 * images, dtype=jnp.int32).reshape(2, images, 1, 1) * num_classes
    nowhere = 2 * images * num_classes * 2
    places = jnp.where(counted, (of_image + classes.astype(jnp.int32)) * 2 + matched.astype(jnp.int32), nowhere)
    counts = tally(places, nowhere + 1)[:nowhere].reshape(2, images, num_classes, 2)
    columns = jnp.stack([counts[..., 1], counts.sum(axis=-1, dtype=jnp.int32)], axis=-1)
    return jnp.moveaxis(columns, 0, -2).reshape(images, num_classes, 4)
