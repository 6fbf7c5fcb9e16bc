"""`road_debris`, the embedded data set of procedural road scenes; docs/road_debris.md describes it."""

from etils import epy

with epy.lazy_api_imports(globals()):  # drawn only when the data set is prepared
    from segjax.data.road_debris.render import SCENE_CLASSES, VOID, Scene, scene

__all__ = ["SCENE_CLASSES", "VOID", "Scene", "scene"]
