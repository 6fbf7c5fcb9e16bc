"""Using what was trained."""

from segjax.inference.visualize import overlay

__all__ = ["overlay"]
