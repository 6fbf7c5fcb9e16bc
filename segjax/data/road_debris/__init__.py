"""`road_debris`, the embedded data set of procedural road scenes; docs/road_debris.md describes it."""

from segjax.data.road_debris.render import SCENE_CLASSES, VOID, Scene, scene

__all__ = ["SCENE_CLASSES", "VOID", "Scene", "scene"]
