"""`road_debris`: the embedded data set, procedural road scenes in which 0.5 % of the pixels are debris.

A scene is a pure function of (seed, index), the same on every machine: NumPy only, random bits straight from Philox
(NumPy guarantees a bit generator's stream, not `Generator`'s methods), float64 maths, and a picture that is rounded to
8 bits last, so that the last bit of a sine cannot matter. There is nothing to download: give each split a seed, or a
range of indices, of its own.

**Recipe.** A pinhole camera (focal length, height, horizon, roll) stands on a road of 1 to 3 lanes that bends. Asphalt
with grain in metres, wheel tracks, streaks and worn solid or dashed lines; verges of grass, soil or gravel with bushes,
trees and posts; hills under a clear, hazy, overcast or evening sky; haze; shadow bands of poles, dappled shadows of
crowns; exposure, colour temperature, vignetting, tone curve and sensor noise.

*Debris* (stone, tyre, cardboard, wood, metal) is an irregular outline that stands on the road, with a lit upper edge, a
darker side and a faint shadow at its foot, all of low contrast. *Hard negatives*, labelled road: marks with the same
outlines, sizes and colours, but flat (about twice the debris' area, in scenes without debris as well), stains, repair
patches, cracks, covers. What tells debris is its shading, not its colour or its darkness.

*Void* is where a person could not say: a ring of 0.8 pixel (of a 96-row image; all bands scale with the resolution)
around each piece of debris, a pixel along the road's edges and the skyline, and the road beyond 110 m.

**Facts**, measured at 96x128 over the first 1,000 scenes of seed 0: road 43.1 %, marking 1.5 %, verge 21.4 %, sky
30.9 %, debris 0.51 %, void 2.6 % of the pixels; 16 % of the scenes hold no debris, none holds more than 1.1 %. (Other
seeds, 200 scenes each: debris 0.46 to 0.53 %.) Gradient-boosted trees or a logistic regression on a pixel's colour and
its brightness against its scene's road have an average precision below 0.06 among the road's pixels (chance: 0.011).

The background trap is there: a U-Net (width 8, depth 3, batch norm; Adam 3e-3, cosine, batch 8, 420 steps on 400 scenes
of 96x128, scored on 100 others) under plain cross entropy ended with a debris recall of 0.000 at 99.5 % accuracy, its
average precision near 0.35; under α-balanced cross entropy (α = 0.95) with a recall near 0.87 and an average precision
near 0.7. One run each: an indication, not a benchmark.

The geometry has no resolution: image coordinates are fractions of a 4:3 picture, so 96x128 and 192x256 sample the same
scene (another aspect ratio stretches it). Grain finer than a pixel fades, and sensor noise is drawn for each pixel.

Code: `geometry` (camera, road, random numbers) ← `scenery`, `fragments` ← `render` (`scene`).
"""

from etils import epy

with epy.lazy_api_imports(globals()):  # drawn only when the data set is prepared
    from segjax.data.road_debris.render import SCENE_CLASSES, VOID, Scene, scene

__all__ = ["SCENE_CLASSES", "VOID", "Scene", "scene"]
