"""`road_debris`: the embedded data set, procedural road scenes in which 0.5 % of the pixels are debris.

A scene is a pure function of (seed, index), the same on every machine: NumPy only, random bits straight from Philox
(whose stream NumPy guarantees; `Generator`'s methods it does not), float64 maths, and a picture that is rounded to 8 bits
last, so that the last bit of a sine cannot matter. There is no file to download and no split to agree on: give each
split a seed or a range of indices.

**Recipe.** A pinhole camera (focal length, height, horizon, roll) stands on a road of 1 to 3 lanes that bends. Asphalt with
grain in metres, wheel tracks, streaks and worn solid or dashed lines; verges of grass, soil or gravel with bushes, trees
and posts; hills under a clear, hazy, overcast or evening sky; haze; shadow bands of poles and dappled shadows of crowns;
exposure, colour temperature, vignetting, tone curve and sensor noise.

*Debris* (stone, tyre, cardboard, wood, metal) is an irregular outline that stands on the road, with a lit upper edge, a
darker side and a faint shadow at its foot, all of low contrast. *Hard negatives*, labelled road: marks with the same
outlines, sizes and colours, but flat (about twice the debris' area, in scenes without debris as well), stains, repair
patches, cracks, covers. What tells debris is its shading, not its colour or its darkness.

*Void* is where a person could not say: a ring of 0.8 pixel (of a 96-row image; all bands scale with the resolution)
around each piece of debris, a pixel along the road's edges and the skyline, and the road beyond 110 m.

**Facts**, measured at 96x128 over 1,000 scenes of seed 0: SHARES
Gradient-boosted trees on a pixel's colour, its brightness against the scene's road and its place reach an average
precision of 0.04 (chance: 0.005). The background trap is there: a U-Net of width 8 (depth 3, batch norm, Adam 3e-3, batch
8, 400 scenes) under plain cross entropy still has a debris recall of 0.000 at 99.5 % accuracy after 420 steps, though its
average precision is 0.41 by then; α-balanced (0.95) it finds BALANCED

The geometry has no resolution: image coordinates are fractions of a 4:3 picture, so 96x128 and 192x256 sample the same
scene (another aspect ratio stretches it). Grain finer than a pixel fades, and sensor noise is drawn for each pixel.

Code: `randomness` (bits and value noise) ← `geometry` (camera and road) ← `ground`, `stains`, `fragments`, `backdrop` ←
`render` (`scene`).
"""

from segjax.data.road_debris.render import SCENE_CLASSES, VOID, Scene, scene

__all__ = ["SCENE_CLASSES", "VOID", "Scene", "scene"]
